/* SPDX-License-Identifier: MIT */
/*
 * suite.h: runs the tests of one program with Check, each in a process of its own.
 *
 *     int main(void)
 *     {
 *         const TTest *const tests[] = {ten_defers_run_newest_first, a_scope_can_be_empty};
 *         return suite_run("defer", tests, sizeof tests / sizeof *tests);
 *     }
 */
#ifndef TESTS_SUITE_H
#define TESTS_SUITE_H

#include <check.h>
#include <stddef.h>

/* Returns the exit status for main. */
int suite_run(const char *name, const TTest *const *tests, size_t count);

/* Room for valgrind: alone, a test takes milliseconds. */
#define SUITE_SECONDS 60

#endif
