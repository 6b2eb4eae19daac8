/* SPDX-License-Identifier: MIT */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "suite.h"

#if defined(__has_include)
#if __has_include(<valgrind/helgrind.h>)
#include <valgrind/helgrind.h>
#endif
#endif

#ifdef ANNOTATE_HAPPENS_BEFORE
/*
 * Helgrind 3.19 does not know pthread_once, so that all that is made under it and used later were a race: the library's, libgcc's, libpq's.
 * Valgrind puts this function, found by its name, before glibc's; elsewhere nobody calls it. See "Function wrapping" in its manual.
 */
static __thread struct {
    void (*fn)(void);
    pthread_once_t *control;
} once;

static void once_run(void)
{
    void (*fn)(void) = once.fn;
    pthread_once_t *control = once.control; /* before fn, which may come here again */
    fn();
    ANNOTATE_HAPPENS_BEFORE(control);
}

int I_WRAP_SONAME_FNNAME_ZZ(libcZdsoZd6, pthreadZuonce)(pthread_once_t *control, void (*fn)(void));
int I_WRAP_SONAME_FNNAME_ZZ(libcZdsoZd6, pthreadZuonce)(pthread_once_t *control, void (*fn)(void))
{
    OrigFn original;
    int result;
    VALGRIND_GET_ORIG_FN(original);
    once.fn = fn;
    once.control = control;
    CALL_FN_W_WW(result, original, control, once_run);
    ANNOTATE_HAPPENS_AFTER(control);
    return result;
}
#endif

/* Valgrind loads its replacements of malloc and others before the program. */
static int is_preloaded(const char *name)
{
    const char *preloaded = getenv("LD_PRELOAD");
    return preloaded != NULL && strstr(preloaded, name) != NULL;
}

int suite_under_valgrind(void)
{
    return is_preloaded("vgpreload");
}

static const TTest *test_unless(const TTest *test, int is_left_out)
{
    if (is_left_out) {
        printf("left out under valgrind: %s\n", test->name);
    }
    return is_left_out ? NULL : test;
}

const TTest *suite_unless_valgrind(const TTest *test)
{
    return test_unless(test, suite_under_valgrind());
}

const TTest *suite_unless_memcheck(const TTest *test)
{
    return test_unless(test, is_preloaded("vgpreload_memcheck"));
}

const TTest *suite_unless_helgrind(const TTest *test)
{
    return test_unless(test, is_preloaded("vgpreload_helgrind"));
}

int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void pause_ms(int ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

static int run_groups(const char *name, const suite_group *groups, size_t count, void (*before)(void))
{
    Suite *suite = suite_create(name);
    for (size_t g = 0; g < count; g++) {
        TCase *cases = tcase_create(groups[g].name);
        tcase_set_timeout(cases, SUITE_SECONDS);
        for (size_t i = 0; i < groups[g].count; i++) {
            if (groups[g].tests[i] != NULL) {
                tcase_add_loop_test(cases, groups[g].tests[i], 0, groups[g].times);
            }
        }
        if (before != NULL) {
            tcase_add_checked_fixture(cases, before, NULL);
        }
        suite_add_tcase(suite, cases);
    }
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

int suite_run(const char *name, const TTest *const *tests, size_t count)
{
    return suite_run_after(name, tests, count, NULL);
}

int suite_run_after(const char *name, const TTest *const *tests, size_t count, void (*before)(void))
{
    return run_groups(name, &(suite_group){name, 1, tests, count}, 1, before);
}

int suite_run_groups(const char *name, const suite_group *groups, size_t count)
{
    return run_groups(name, groups, count, NULL);
}
