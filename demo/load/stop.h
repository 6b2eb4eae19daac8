/* SPDX-License-Identifier: MIT */
/*
 * stop.h: SIGINT and SIGTERM ask the program to stop between two rows.
 */
#ifndef LOAD_STOP_H
#define LOAD_STOP_H

/*
 * From now on the first SIGINT or SIGTERM is noted; system calls that wait return EINTR. Later ones change nothing: what
 * is left to do then is short. One that the program was started with ignored (nohup) stays ignored.
 */
void stop_on_signals(void);

/* The number of the signal that came, else 0. */
int stop_requested(void);

/* Panics with domain GUARD_CANCELLED if one came. */
void stop_check(void);

#endif
