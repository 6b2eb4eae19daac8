/* SPDX-License-Identifier: MIT */
/* check_exit.c: what exit(3) runs of the thread that calls it: nothing, or its scopes, once (guard_process_init). */
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_process.h>

#include "child.h"
#include "events.h"
#include "suite.h"

static void exit_inside(void *arg)
{
    event_add("exit in", arg);
    exit(3);
}

static void panic_with(void *arg)
{
    guard_panic(7, "%s", (const char *)arg);
}

static void exit_with_scopes(void *arg)
{
    (void)arg;
    GUARD_AUTO(outer);
    guard_defer(outer, event_run, (void *)"1");
    guard_defer(outer, exit_inside, (void *)"defer");
    GUARD_AUTO(s);
    guard_defer(s, event_run, (void *)"2");
    guard_defer_on(s, GUARD_ON_SUCCESS, event_run, (void *)"success");
    exit(2);
}

static void exit_in_a_border(void *arg)
{
    guard_run(exit_with_scopes, arg, NULL);
}

static void init_and_exit(void *arg)
{
    guard_process_init(GUARD_AT_EXIT);
    guard_process_init(GUARD_AT_EXIT);
    exit_in_a_border(arg);
}

START_TEST(exit_runs_nothing_unless_asked)
{
    events_open();
    ck_assert_int_eq(WEXITSTATUS(events_in_child(exit_in_a_border, NULL)), 2);
    events_expect("");
}
END_TEST

START_TEST(exit_runs_the_threads_scopes_once_and_a_second_exit_inside_does_not_loop)
{
    events_open();
    ck_assert_int_eq(WEXITSTATUS(events_in_child(init_and_exit, NULL)), 3);
    events_expect("run 2,exit in defer,run 1");
}
END_TEST

static void exit_with_a_panic(void *arg)
{
    (void)arg;
    guard_process_init(GUARD_AT_EXIT);
    GUARD_AUTO(s);
    guard_defer(s, event_run, (void *)"1");
    guard_defer(s, panic_with, (void *)"failed at exit");
    exit(0);
}

static void exit_with_a_panic_in_a_border(void *arg)
{
    guard_run(exit_with_a_panic, arg, NULL);
}

START_TEST(a_panic_at_exit_is_fatal_after_the_rest_has_run)
{
    events_open();
    child_result result;
    child_run(exit_with_a_panic_in_a_border, NULL, &result);
    child_expect_abort(&result);
    ck_assert_ptr_nonnull(strstr(result.text, "failed at exit"));
    events_expect("run 1");
}
END_TEST

static void underscore_exit(void *arg)
{
    (void)arg;
    guard_process_init(GUARD_AT_EXIT);
    GUARD_AUTO(s);
    guard_defer(s, event_run, (void *)"1");
    _exit(4);
}

START_TEST(underscore_exit_runs_nothing)
{
    events_open();
    ck_assert_int_eq(WEXITSTATUS(events_in_child(underscore_exit, NULL)), 4);
    events_expect("");
}
END_TEST

static void init_with(void *arg)
{
    guard_process_init(*(unsigned *)arg);
}

START_TEST(unknown_flags_of_guard_process_init_are_misuse)
{
    guard_error error;
    unsigned flags = 0x8000;
    ck_assert_int_eq(guard_run(init_with, &flags, &error), GUARD_MISUSE_ARGUMENT);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        exit_runs_nothing_unless_asked,
        exit_runs_the_threads_scopes_once_and_a_second_exit_inside_does_not_loop,
        a_panic_at_exit_is_fatal_after_the_rest_has_run,
        underscore_exit_runs_nothing,
        unknown_flags_of_guard_process_init_are_misuse,
    };
    return suite_run("exit", tests, sizeof tests / sizeof *tests);
}
