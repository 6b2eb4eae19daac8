/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "suite.h"

int suite_under_valgrind(void)
{
    const char *preloaded = getenv("LD_PRELOAD"); /* valgrind puts its replacement of malloc there */
    return preloaded != NULL && strstr(preloaded, "vgpreload") != NULL;
}

int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int suite_run(const char *name, const TTest *const *tests, size_t count)
{
    return suite_run_after(name, tests, count, NULL);
}

int suite_run_after(const char *name, const TTest *const *tests, size_t count, void (*before)(void))
{
    Suite *suite = suite_create(name);
    TCase *cases = tcase_create(name);
    tcase_set_timeout(cases, SUITE_SECONDS);
    for (size_t i = 0; i < count; i++) {
        tcase_add_test(cases, tests[i]);
    }
    if (before != NULL) {
        tcase_add_checked_fixture(cases, before, NULL);
    }
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
