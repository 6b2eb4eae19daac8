/* SPDX-License-Identifier: MIT */
/*
 * rejects.h: the file that --rejects names: the rejected rows of the run's files, also those of earlier runs, as CSV.
 */
#ifndef LOAD_REJECTS_H
#define LOAD_REJECTS_H

#include <guard/guard.h>

#include "target.h"

typedef struct load_rejects load_rejects;

/*
 * Sees to it that the file can be written; it stays as it is until rejects_publish. NULL if path is NULL, and a rejects that is NULL
 * takes everything and does nothing.
 */
load_rejects *rejects_open(guard_scope *scope, const char *path);

/* The rejects of this record belong into the file, under this name of the file they come from. */
void rejects_add(load_rejects *rejects, const char *digest, const char *name);

/* Writes the file from the table, whole or not at all. Only the first call does anything. */
void rejects_publish(load_rejects *rejects, const target_driver *driver, load_target *target);

#endif
