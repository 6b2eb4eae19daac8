/* SPDX-License-Identifier: MIT */
/*
 * load.h: loads the files of a command line, one after the other.
 */
#ifndef LOAD_LOAD_H
#define LOAD_LOAD_H

#include "options.h"
#include "target.h"

/*
 * Loads options->files. Returns EXIT_LOADED or EXIT_REJECTS; *totals says what was done, also when it panics. A stop signal panics
 * with GUARD_CANCELLED once the batch under way is committed.
 */
int load_files(const load_options *options, const target_driver *driver, load_totals *totals);

/* Forgets how far options->files came. */
void load_forget(const load_options *options, const target_driver *driver);

#endif
