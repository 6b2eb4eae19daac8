/* SPDX-License-Identifier: MIT */
/* check_report.c: what happens when nobody recovers: all defers of the thread run, one report is written, the process aborts. */
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>

#include "child.h"
#include "suite.h"

static child_result result;

static void say(void *name)
{
    guard_note("%s", (const char *)name);
}

static void panic_below_scopes(void *arg)
{
    guard_scope explicit;
    guard_owner *owner = guard_owner_new();
    GUARD_AUTO(outer);
    guard_defer(outer, say, "outer");
    guard_defer_kind(outer, &guard_owner_kind, owner);
    guard_defer(guard_owner_scope(owner), say, "owner");
    guard_scope_open(&explicit);
    guard_defer_on(&explicit, GUARD_ON_FAILURE, say, "explicit");
    GUARD_AUTO(inner);
    guard_defer(inner, say, "inner");
    guard_panic(42, "nobody %s", (const char *)arg);
}

START_TEST(an_uncaught_panic_runs_all_defers_of_the_thread_then_reports_once_and_aborts)
{
    child_run(panic_below_scopes, "recovers", &result);
    child_expect_abort(&result);
    ck_assert_uint_eq(result.writes, 5); /* four notes, one report */
    static const char defers[] = "guard: note: inner\nguard: note: explicit\nguard: note: owner\nguard: note: "
                                 "outer\npanic: nobody recovers [user 42] at ";
    ck_assert_msg(strncmp(result.text, defers, strlen(defers)) == 0, "it wrote: %s", result.text);
    ck_assert_ptr_nonnull(strstr(result.text, "check_report.c:"));
}
END_TEST

static void fail_now(void *name)
{
    guard_panic(2, "%s", (const char *)name);
}

static const guard_kind failing = {.name = "failing", .release = fail_now};

static void panic_with_failures(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, say, "rest");
    guard_defer_kind(s, &failing, "cleanup");
    guard_defer(s, fail_now, "second panic");
    guard_panic(1, "first panic");
}

START_TEST(the_report_has_the_whole_chain_the_oldest_first)
{
    child_run(panic_with_failures, NULL, &result);
    child_expect_abort(&result);
    ck_assert_uint_eq(result.writes, 2);
    const char *first = strstr(result.text, "panic: first panic [user 1] at check_report.c:");
    const char *second = strstr(result.text, "\n\tpanic: second panic [user 2] at check_report.c:");
    const char *cleanup = strstr(result.text, "\n\tthen failed: cleanup [user 2] at check_report.c:");
    ck_assert_msg(first != NULL && second != NULL && cleanup != NULL, "it wrote: %s", result.text);
    ck_assert(first < second);
    ck_assert(second < cleanup);
}
END_TEST

static void hold_without_a_border(void *arg)
{
    (void)arg;
    GUARD_AUTO(outer);
    guard_defer(outer, say, "outer");
    {
        GUARD_AUTO(s);
        guard_defer(s, say, "rest");
        guard_defer(s, fail_now, "in an automatic close");
    }
    guard_note("not reached");
}

START_TEST(without_a_border_a_panic_of_an_automatic_close_is_uncaught_at_once)
{
    child_run(hold_without_a_border, NULL, &result);
    child_expect_abort(&result);
    static const char text[] = "guard: note: rest\nguard: note: outer\npanic: in an automatic close [user 2]";
    ck_assert_msg(strncmp(result.text, text, strlen(text)) == 0, "it wrote: %s", result.text);
}
END_TEST

static int return_out_of_the_last_border(void)
{
    GUARD_TRY(NULL)
    {
        GUARD_AUTO(s);
        guard_defer(s, fail_now, "held");
        return 1;
    }
    GUARD_CATCH
    {
        return 2;
    }
    return 3;
}

static void leave_the_last_border_with_one_held(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, say, "outer");
    (void)return_out_of_the_last_border();
    guard_note("not reached");
}

START_TEST(one_held_when_the_last_border_is_left_by_return_is_uncaught_there)
{
    child_run(leave_the_last_border_with_one_held, NULL, &result);
    child_expect_abort(&result);
    static const char text[] = "guard: note: outer\npanic: held [user 2]";
    ck_assert_msg(strncmp(result.text, text, strlen(text)) == 0, "it wrote: %s", result.text);
}
END_TEST

static void misuse_in_an_automatic_close(void *arg)
{
    (void)arg;
    guard_scope inner;
    GUARD_AUTO(outer);
    guard_defer(outer, say, "outer");
    {
        GUARD_AUTO(s);
        guard_defer(s, say, "s");
        guard_scope_open(&inner);
        guard_defer(&inner, say, "inner");
    }
    guard_note("not reached");
}

START_TEST(misuse_in_an_automatic_close_without_a_border_runs_all_defers_too)
{
    child_run(misuse_in_an_automatic_close, NULL, &result);
    child_expect_abort(&result);
    static const char text[] = "guard: note: inner\nguard: note: s\nguard: note: outer\npanic: ";
    ck_assert_msg(strncmp(result.text, text, strlen(text)) == 0, "it wrote: %s", result.text);
    ck_assert_ptr_nonnull(strstr(result.text, "[misuse 2]"));
}
END_TEST

static void panic_after_fatal(void *arg)
{
    (void)arg;
    guard_panic(1, "esc \033[31m");
}

START_TEST(the_report_is_escaped)
{
    child_run(panic_after_fatal, NULL, &result);
    child_expect_abort(&result);
    ck_assert_ptr_nonnull(strstr(result.text, "panic: esc \\x1b[31m [user 1]"));
}
END_TEST

/* ------------------------------------------------------------------------------------ the handler -- */

static void exit_instead(const guard_error *error, const char *report)
{
    _exit(error->code == 42 && strstr(report, "nobody recovers") != NULL && guard_panicking() != NULL ? 7 : 8);
}

static void return_instead(const guard_error *error, const char *report)
{
    (void)error;
    (void)report;
}

static void panic_with_a_handler(void *handler)
{
    if (guard_fatal_handler(*(guard_fatal_fn **)handler) != NULL) {
        _exit(9);
    }
    panic_below_scopes("recovers");
}

START_TEST(a_fatal_handler_is_called_after_the_report_instead_of_abort)
{
    guard_fatal_fn *handler = exit_instead;
    child_run(panic_with_a_handler, &handler, &result);
    ck_assert_msg(WIFEXITED(result.status) && WEXITSTATUS(result.status) == 7, "status %x", (unsigned)result.status);
    ck_assert_ptr_nonnull(strstr(result.text, "panic: nobody recovers"));
}
END_TEST

START_TEST(the_process_aborts_when_the_fatal_handler_returns)
{
    guard_fatal_fn *handler = return_instead;
    child_run(panic_with_a_handler, &handler, &result);
    child_expect_abort(&result);
    ck_assert_ptr_eq(guard_fatal_handler(exit_instead), NULL);
    ck_assert_ptr_eq(guard_fatal_handler(NULL), exit_instead);
}
END_TEST

/* ----------------------------------------------------------------------------------------- notes -- */

static char noted[1024];

static void keep_note(const char *text)
{
    strcpy(noted, text);
}

static void write_a_note(void *text)
{
    guard_note("%s", (const char *)text);
}

START_TEST(a_note_is_one_escaped_line_on_standard_error_or_goes_to_the_handler)
{
    child_run(write_a_note, "worth\033 knowing\n", &result);
    ck_assert_int_eq(result.status, 0);
    ck_assert_uint_eq(result.writes, 1);
    ck_assert_str_eq(result.text, "guard: note: worth\\x1b knowing\\x0a\n");
    ck_assert_ptr_null(guard_note_handler(keep_note));
    guard_note("number %d", 5);
    ck_assert_str_eq(noted, "number 5");
    ck_assert_ptr_eq(guard_note_handler(NULL), keep_note);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        an_uncaught_panic_runs_all_defers_of_the_thread_then_reports_once_and_aborts,
        the_report_has_the_whole_chain_the_oldest_first,
        without_a_border_a_panic_of_an_automatic_close_is_uncaught_at_once,
        one_held_when_the_last_border_is_left_by_return_is_uncaught_there,
        misuse_in_an_automatic_close_without_a_border_runs_all_defers_too,
        the_report_is_escaped,
        a_fatal_handler_is_called_after_the_report_instead_of_abort,
        the_process_aborts_when_the_fatal_handler_returns,
        a_note_is_one_escaped_line_on_standard_error_or_goes_to_the_handler,
    };
    return suite_run("report", tests, sizeof tests / sizeof *tests);
}
