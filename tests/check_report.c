/* SPDX-License-Identifier: MIT */
/* check_report.c: what happens when nobody recovers: all defers of the thread run, one report is written, the process aborts. */
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard_fault.h>
#include <guard/guard_trace.h>

#include "calls.h"
#include "child.h"
#include "faults.h"
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

/* -------------------------------------------------------------------------------- the chain, as Go prints it -- */

static void recover_it(guard_recovery *recovery, void *arg)
{
    (void)arg;
    if (recovery != NULL) {
        guard_recover(recovery);
    }
}

static void recover_and_raise_another(guard_recovery *recovery, void *message)
{
    guard_recover(recovery);
    guard_panic(2, "%s", (const char *)message);
}

static void recover_and_raise_it_again(guard_recovery *recovery, void *arg)
{
    guard_error error = *guard_recovery_error(recovery);
    (void)arg;
    guard_recover(recovery);
    guard_panic_error(&error);
}

static void raise_over(void *recover)
{
    GUARD_AUTO(s);
    guard_defer_recover(s, *(guard_recover_fn **)recover, "second");
    guard_panic(1, "first");
}

/* What a border catches and its caller raises without one, for nobody can recover where there is none. */
static void catch_and_raise_again(void *recover)
{
    guard_error error;
    guard_run(raise_over, recover, &error);
    guard_panic_error(&error);
}

START_TEST(a_panic_that_was_recovered_stands_first_and_says_so)
{
    guard_recover_fn *recover = recover_and_raise_another;
    child_run(catch_and_raise_again, &recover, &result);
    child_expect_abort(&result);
    const char *end = strstr(result.text, " [recovered]\n\tpanic: second [user 2] at check_report.c:");
    ck_assert_msg(strncmp(result.text, "panic: first [user 1] at check_report.c:", 39) == 0 && end != NULL,
                  "it wrote: %s", result.text);
    ck_assert_ptr_eq(strchr(result.text, '\n'), end + strlen(" [recovered]"));
}
END_TEST

START_TEST(one_that_was_recovered_and_raised_again_is_one_line)
{
    guard_recover_fn *recover = recover_and_raise_it_again;
    child_run(catch_and_raise_again, &recover, &result);
    child_expect_abort(&result);
    const char *end = strstr(result.text, " [recovered, repanicked]\n\nthread ");
    ck_assert_msg(strncmp(result.text, "panic: first [user 1] at check_report.c:", 39) == 0 && end != NULL,
                  "it wrote: %s", result.text);
    ck_assert_ptr_null(strstr(result.text, "\tpanic:"));
}
END_TEST

START_TEST(an_error_knows_whether_it_was_caught_and_whether_it_was_raised_again)
{
    guard_error error;
    guard_error again;
    guard_recover_fn *recover = recover_it;
    ck_assert_int_eq(guard_run(raise_over, &recover, &error), 0);
    ck_assert_int_eq(guard_run(fail_now, "x", &error), 2);
    ck_assert_uint_eq(error.flags, GUARD_ERROR_CAUGHT | GUARD_ERROR_COUNTED);
    recover = recover_and_raise_it_again;
    ck_assert_int_eq(guard_run(raise_over, &recover, &again), 1);
    ck_assert_uint_eq(again.flags, GUARD_ERROR_CAUGHT | GUARD_ERROR_REPANICKED | GUARD_ERROR_COUNTED);
    ck_assert_uint_eq(again.cause_count, 0);
}
END_TEST

/* --------------------------------------------------------------------------------------- stack, and what ran -- */

static __attribute__((noinline)) void deep_in_the_program(void *arg)
{
    guard_note("deep");
    guard_panic(3, "%s", (const char *)arg);
}

static void panic_with_a_stack(void *arg)
{
    pthread_setname_np(pthread_self(), "doomed\t1"); /* valgrind has a name of its own for the first thread */
    deep_in_the_program(arg);
    guard_note("not reached");
}

START_TEST(the_report_has_the_stack_of_the_panic)
{
    child_run(panic_with_a_stack, "boom", &result);
    child_expect_abort(&result);
    const char *head = strstr(result.text, "\n\nthread ");
    ck_assert_msg(head != NULL && strstr(head, " (doomed\\x091), raised by:\n\t") != NULL, "it wrote: %s", result.text);
#ifdef GUARD_HAVE_LIBDW
    ck_assert_msg(strstr(head, "\n\tdeep_in_the_program at check_report.c:") != NULL &&
                      strstr(head, "\n\tpanic_with_a_stack at check_report.c:") != NULL,
                  "it wrote: %s", result.text);
#else
    ck_assert_ptr_nonnull(strstr(head, "\n\tcheck_report+0x"));
#endif
}
END_TEST

static void panic_without_traces(void *arg)
{
    guard_trace_capture(GUARD_TRACE_NEVER);
    deep_in_the_program(arg);
}

START_TEST(there_is_no_stack_where_traces_are_switched_off)
{
    child_run(panic_without_traces, "boom", &result);
    child_expect_abort(&result);
    ck_assert_ptr_nonnull(strstr(result.text, "panic: boom [user 3] at check_report.c:"));
    ck_assert_ptr_null(strstr(result.text, "raised by"));
}
END_TEST

static void let_go(void *object)
{
    (void)object;
}

static size_t tell(const void *object, char *text, size_t size)
{
    return (size_t)snprintf(text, size, "the %s", (const char *)object);
}

static size_t tell_failing(const void *object, char *text, size_t size)
{
    snprintf(text, size, "half");
    guard_panic(9, "no words for %s", (const char *)object);
}

static const guard_kind told = {.name = "told", .release = let_go, .describe = tell, .action = "let go of"};
static const guard_kind named = {.name = "named", .release = let_go};
static const guard_kind speechless = {.name = "speechless", .release = let_go, .describe = tell_failing};

static void panic_holding_things(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, let_go, NULL);
    guard_defer_on(s, GUARD_ON_SUCCESS, let_go, NULL);
    guard_defer_kind(s, &told, "boat\n\033[1m");
    guard_defer_kind(s, &named, "unseen");
    guard_dismiss(guard_defer_kind(s, &named, "dismissed"));
    guard_defer_kind(s, &speechless, "silence");
    guard_panic(1, "over board");
}

/* The line after "N defers ran: ", without places' line numbers. */
static const char *what_ran(void)
{
    static char line[2048];
    const char *begin = strstr(result.text, " ran: ");
    ck_assert_msg(begin != NULL, "it wrote: %s", result.text);
    while (begin > result.text && begin[-1] != '\n') {
        begin--;
    }
    size_t length = 0;
    for (const char *at = begin; *at != '\0' && length + 1 < sizeof line; at++) {
        line[length++] = *at;
        if (at[0] == '.' && at[1] == 'c' && at[2] == ':') {
            line[length++] = 'c';
            at += 2 + strspn(at + 3, "0123456789");
        }
    }
    line[length] = '\0';
    return line;
}

START_TEST(it_ends_with_what_ran_the_newest_first_and_where_that_was_registered)
{
    child_run(panic_holding_things, NULL, &result);
    child_expect_abort(&result);
#ifdef GUARD_HAVE_LIBDW
    static const char *const function = "let_go";
#else
    static const char *const function = "a function";
#endif
    char expected[512];
    snprintf(
        expected, sizeof expected,
        "4 defers ran: speechless that cannot be described (check_report.c), named (check_report.c), let go of the "
        "boat\\x0a\\x1b[1m (check_report.c), %s (check_report.c)\n",
        function);
    ck_assert_str_eq(what_ran(), expected);
}
END_TEST

START_TEST(a_formatter_that_fails_is_left_out_and_does_not_loop)
{
    child_run(panic_holding_things, NULL, &result);
    child_expect_abort(&result);
    ck_assert_uint_eq(result.writes, 1);
    ck_assert_ptr_null(strstr(result.text, "no words"));
    ck_assert_ptr_null(strstr(result.text, "half"));
}
END_TEST

/* A formatter that goes through NULL, where faults are panics. */
static size_t tell_through_null(const void *object, char *text, size_t size)
{
    (void)object;
    fault_read_null(NULL);
    return (size_t)snprintf(text, size, "not reached");
}

static const guard_kind hollow = {.name = "hollow", .release = let_go, .describe = tell_through_null};

static void panic_holding_a_hollow_thing(void *arg)
{
    (void)arg;
    if (guard_faults_to_panics() != 0) {
        _exit(3);
    }
    GUARD_AUTO(s);
    guard_defer_kind(s, &hollow, NULL);
    guard_panic(1, "over board");
}

START_TEST(a_formatter_that_faults_into_a_panic_does_not_loop_either)
{
    fault_run_child(panic_holding_a_hollow_thing, NULL, &result);
    if (WIFEXITED(result.status) && WEXITSTATUS(result.status) == 3) {
        return; /* not on this processor */
    }
    child_expect_abort(&result);
    ck_assert_ptr_nonnull(strstr(result.text, "panic: over board [user 1]"));
    ck_assert_str_eq(what_ran(), "1 defer ran: hollow that cannot be described (check_report.c)\n");
}
END_TEST

static void panic_in_the_names_of_many(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    for (int i = 0; i < 1000; i++) {
        guard_defer_kind(s, &named, "one of many");
    }
    guard_panic(1, "many");
}

START_TEST(more_than_a_few_are_counted)
{
    child_run(panic_in_the_names_of_many, NULL, &result);
    child_expect_abort(&result);
    ck_assert_str_eq(what_ran(),
                     "1000 defers ran: named (check_report.c), named (check_report.c), named (check_report.c), "
                     "named (check_report.c), named (check_report.c), named (check_report.c), named "
                     "(check_report.c), named (check_report.c) and 992 more\n");
}
END_TEST

static void panic_twice(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_kind(s, &told, "outer");
    guard_defer(s, fail_now, "second");
    guard_defer_kind(s, &told, "inner");
    guard_panic(1, "first");
}

START_TEST(what_ran_before_a_panic_was_replaced_is_in_the_list_too)
{
    child_run(panic_twice, NULL, &result);
    child_expect_abort(&result);
    ck_assert_uint_eq(strncmp(what_ran(), "3 defers ran: let go of the inner (", 35), 0);
    ck_assert_ptr_nonnull(strstr(what_ran(), "let go of the outer ("));
}
END_TEST

/* -------------------------------------------------------------------------------- several threads, and main -- */

#define THREADS 4

static pthread_barrier_t all_are_dying;

static void wait_for_all(void *arg)
{
    (void)arg;
    pthread_barrier_wait(&all_are_dying);
}

static void *die(void *arg)
{
    GUARD_AUTO(s);
    for (int i = 0; i < 8; i++) {
        guard_defer_kind(s, &told, "something with a name that makes the report of its thread a long one");
    }
    guard_defer(s, wait_for_all, NULL);
    guard_panic(1, "thread %d", *(int *)arg);
    return NULL;
}

static void die_together(void *arg)
{
    static int numbers[THREADS];
    pthread_t thread;
    (void)arg;
    pthread_barrier_init(&all_are_dying, NULL, THREADS);
    for (int i = 0; i < THREADS; i++) {
        numbers[i] = i;
        pthread_create(&thread, NULL, die, &numbers[i]);
    }
    pause();
}

START_TEST(threads_that_die_together_each_write_a_whole_report)
{
    child_run(die_together, NULL, &result);
    child_expect_abort(&result);
    ck_assert_msg(result.writes == THREADS, "%zu writes: %s", result.writes, result.text);
    for (int i = 0; i < THREADS; i++) {
        char text[64];
        snprintf(text, sizeof text, "panic: thread %d [user 1]", i);
        const char *begin = strstr(result.text, text);
        ck_assert_msg(begin != NULL, "no report of thread %d: %s", i, result.text);
        const char *end = strstr(begin + 1, "panic: thread ");
        const char *ran = strstr(begin, "9 defers ran: ");
        ck_assert_msg(ran != NULL && (end == NULL || ran < end), "cut short: %s", begin);
    }
}
END_TEST

static sem_t panic_runs;
static sem_t main_has_returned;

static void wait_for_exit(void *arg)
{
    (void)arg;
    sem_post(&panic_runs);
    sem_wait(&main_has_returned);
}

static void *die_slowly(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, wait_for_exit, NULL);
    guard_panic(1, "last words");
    return arg;
}

static void tell_that_main_returned(void)
{
    sem_post(&main_has_returned);
}

static void return_while_a_thread_dies(void *arg)
{
    pthread_t thread;
    (void)arg;
    sem_init(&panic_runs, 0, 0);
    sem_init(&main_has_returned, 0, 0);
    atexit(tell_that_main_returned);
    pthread_create(&thread, NULL, die_slowly, NULL);
    sem_wait(&panic_runs);
    exit(0);
}

START_TEST(the_return_from_main_does_not_cut_a_report_off)
{
    child_run(return_while_a_thread_dies, NULL, &result);
    child_expect_abort(&result);
    ck_assert_ptr_nonnull(strstr(result.text, "panic: last words"));
}
END_TEST

static void *panic_and_leave(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, call_pthread_exit, NULL);
    guard_panic(1, "never reported");
    return arg;
}

static void return_after_one_that_left(void *arg)
{
    pthread_t thread;
    (void)arg;
    pthread_create(&thread, NULL, panic_and_leave, NULL);
    pthread_join(thread, NULL);
    alarm(8); /* exit waits for 10 s where a thread is in its last words */
    exit(0);
}

START_TEST(exit_does_not_wait_for_a_panic_whose_thread_was_left)
{
    child_run(return_after_one_that_left, NULL, &result);
    ck_assert_int_eq(result.status, 0);
    ck_assert_ptr_null(strstr(result.text, "panic:"));
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
        a_panic_that_was_recovered_stands_first_and_says_so,
        one_that_was_recovered_and_raised_again_is_one_line,
        an_error_knows_whether_it_was_caught_and_whether_it_was_raised_again,
        the_report_has_the_stack_of_the_panic,
        there_is_no_stack_where_traces_are_switched_off,
        it_ends_with_what_ran_the_newest_first_and_where_that_was_registered,
        a_formatter_that_fails_is_left_out_and_does_not_loop,
        a_formatter_that_faults_into_a_panic_does_not_loop_either,
        more_than_a_few_are_counted,
        what_ran_before_a_panic_was_replaced_is_in_the_list_too,
        /* Who dies waits two seconds for the others' reports; valgrind on a busy machine needs more than that to read their lines. */
        suite_unless_valgrind(threads_that_die_together_each_write_a_whole_report),
        the_return_from_main_does_not_cut_a_report_off,
        exit_does_not_wait_for_a_panic_whose_thread_was_left,
        a_fatal_handler_is_called_after_the_report_instead_of_abort,
        the_process_aborts_when_the_fatal_handler_returns,
        a_note_is_one_escaped_line_on_standard_error_or_goes_to_the_handler,
    };
    return suite_run("report", tests, sizeof tests / sizeof *tests);
}
