/* SPDX-License-Identifier: MIT */
/* program_metrics.h: metrics as a program has them of its own: one of each type, and a collector. */
#ifndef TESTS_PROGRAM_METRICS_H
#define TESTS_PROGRAM_METRICS_H

#include <guard/guard_metrics.h>

extern const guard_metric apple_counter;  /* apples_total */
extern const guard_metric level_gauge;    /* level */
extern const guard_metric time_histogram; /* times_seconds */

/* A collector: level{of=NAME} is how often it was asked, and 3 apples are of the kind "collected". */
void collect(guard_metrics_page *page, void *name);
extern int asked;

#endif
