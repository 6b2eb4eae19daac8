/* SPDX-License-Identifier: MIT */
/*
 * exposition.h: reads metrics as strictly as the text format is written
 * (https://prometheus.io/docs/instrumenting/exposition_formats/).
 */
#ifndef TESTS_EXPOSITION_H
#define TESTS_EXPOSITION_H

#include <stdint.h>

#include <guard/guard.h>

/*
 * Fails the test unless every line is one of the grammar; each family is there once, its TYPE before its numbers, of the names that the type
 * has; no number is there twice; all is UTF-8; counters are not negative; and the buckets of each histogram grow to that of +Inf, which is
 * its count. Returns how many numbers there are.
 */
unsigned exposition_check(const char *text);

/* The page of the library, which is checked. It is the scope's. */
const char *exposition_read(guard_scope *s);

/* The value of one number, given as it is written ("a_total{b=\"c\"}"); fails the test where it is not there, or no integer. */
int64_t exposition_value(const char *text, const char *number);

/* 1 where it is there. */
int exposition_has(const char *text, const char *number);

/* The sum of all numbers of this name. */
int64_t exposition_sum(const char *text, const char *name);

#endif
