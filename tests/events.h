/* SPDX-License-Identifier: MIT */
/*
 * events.h: what happens in any process of a test goes through one pipe, in order.
 *
 *     events_open();
 *     events_in_child(fn, arg);    // where a deferred event_run says what ran
 *     events_expect("run 2,run 1");
 */
#ifndef TESTS_EVENTS_H
#define TESTS_EVENTS_H

#include <guard/guard.h>

void events_open(void);

/* Adds "WHAT NAME". */
void event_add(const char *what, const char *name);

/* A deferred function: adds "run NAME". */
void event_run(void *name);

/* What has come since the last time, with "," between; valid until the next call. */
const char *events_read(void);

/* Compares that. */
void events_expect(const char *expected);

/* Forks, runs fn in the child, and returns the child's status when it has ended. */
int events_in_child(guard_fn *fn, void *arg);

#endif
