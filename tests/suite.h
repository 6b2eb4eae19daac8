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
#include <stdint.h>
#include <string.h>

/* Returns the exit status for main. Tests that are NULL are left out. */
int suite_run(const char *name, const TTest *const *tests, size_t count);

/* The same; each test calls `before`, which may fail it, in its own process first. */
int suite_run_after(const char *name, const TTest *const *tests, size_t count, void (*before)(void));

/* Tests that are run so many times: their _i is 0, 1, .... */
typedef struct suite_group {
    const char *name;
    int times;
    const TTest *const *tests;
    size_t count;
} suite_group;

int suite_run_groups(const char *name, const suite_group *groups, size_t count);

/* Room for valgrind: alone, a test takes milliseconds. */
#define SUITE_SECONDS 60

/* For what a sanitizer's own threads and bookkeeping cannot bear; the test says why. */
#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define WITH_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WITH_TSAN 1
#endif
#endif

#define ck_assert_has(text, part) \
    ck_assert_msg(strstr((text), (part)) != NULL, "\"%s\" should contain \"%s\"", (text), (part))

/* Milliseconds of the monotonic clock. What a machine needs for something is no more to be asserted than that it is not for ever. */
int64_t now_ms(void);

/* For a step of a loop that waits until something has happened; or for time itself, and then the test says so. */
void pause_ms(int ms);

/*
 * For a test that does on purpose what valgrind (one of its tools, or any) reports, such as reading what was never written, or that valgrind cannot
 * follow: the test, or NULL there, which suite_run leaves out and says so. The reason stands beside it.
 */
const TTest *suite_unless_valgrind(const TTest *test);
const TTest *suite_unless_memcheck(const TTest *test);
const TTest *suite_unless_helgrind(const TTest *test);
int suite_under_valgrind(void);

#endif
