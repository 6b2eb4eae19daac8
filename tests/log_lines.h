/* SPDX-License-Identifier: MIT */
/*
 * log_lines.h: what a log has written, read as a program reads it: each line is parsed by jansson, and one that is no JSON in valid UTF-8, or
 * longer than it may be, fails the test.
 */
#ifndef TESTS_LOG_LINES_H
#define TESTS_LOG_LINES_H

#include <guard/guard_log.h>
#include <jansson.h>

/* Options of a log that leaves nothing out: so many lines. */
extern const guard_log_options log_lines_everything;

/* Waits until all is written; fails the test after a minute. */
void log_lines_flush(guard_log *log);

/* Collects the lines of this log, from now on: a sink. The former ones are forgotten. */
void log_lines_collect(guard_log *log);
/* Reads the lines of a file instead. */
void log_lines_read(const char *path);

/* After a flush: how many there are. */
size_t log_lines_count(void);
/* Line i as an object, and as text. */
const json_t *log_lines_at(size_t i);
/* A member as text; "" where there is none. A number in decimal. Of an array or object, its JSON. Valid until the next call. */
const char *log_lines_text(size_t i, const char *key);
/* The sum of "more" over all lines. */
uint64_t log_lines_more(void);
/* How many lines have no "more": events. */
uint64_t log_lines_events(void);

/* Only the number of lines and the sums are kept from now on: for many. */
void log_lines_only_count(void);

#endif
