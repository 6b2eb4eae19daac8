/* SPDX-License-Identifier: MIT */
/*
 * report.h: what goes to standard output: the JSON object of a run, and --status.
 */
#ifndef LOAD_REPORT_H
#define LOAD_REPORT_H

#include <guard/guard.h>

#include "target.h"

/* One line: files, rows_read, rows_loaded, rows_rejected, batches, resumed, seconds, outcome. */
void report_totals(const load_totals *totals, double seconds);

/* What is known of the table: of the options' files, or of all. `target` may be NULL: nothing is. */
void report_status(const load_options *options, const target_driver *driver, load_target *target);

#endif
