/* SPDX-License-Identifier: MIT */
/* check_single.c: GUARD_DEFER, a scope with one deferred function: all that ends a scope runs it once, and all that looks at scopes sees it. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_dump.h>
#include <guard/guard_fault.h>
#include <guard/guard_metrics.h>
#include <guard/guard_process.h>

#include "child.h"
#include "fault_memory.h"
#include "suite.h"
#include "trace.h"

static void *name(const char *text)
{
    return (void *)(uintptr_t)text;
}

/* In a process of its own. */
static child_result result;

static void say(void *text)
{
    ssize_t written = write(STDERR_FILENO, text, strlen(text));
    (void)written;
}

static int result_count(const char *part)
{
    int count = 0;
    for (const char *at = result.text; (at = strstr(at, part)) != NULL; at++) {
        count++;
    }
    return count;
}

/* ------------------------------------------------------------------------------------------ the block ends -- */

START_TEST(it_runs_at_the_end_of_its_block_the_newest_first)
{
    {
        GUARD_DEFER(trace_run, name("1"));
        GUARD_AUTO(s);
        guard_defer(s, trace_run, name("2"));
        GUARD_DEFER(trace_run, name("3"));
        {
            GUARD_DEFER(trace_run, name("inner"));
        }
        guard_defer(s, trace_run, name("2b"));
        GUARD_DEFER(trace_run, name("4"));
        trace_expect("run inner");
    }
    trace_expect("run 4, run 3, run 2b, run 2, run 1");
}
END_TEST

static int leave_by(int way)
{
    for (int i = 0; i < 2; i++) {
        GUARD_DEFER(trace_run, name("turn"));
        if (way == 0) {
            continue;
        }
        if (way == 1) {
            break;
        }
        if (way == 2) {
            goto out;
        }
        return 3;
    }
out:
    return way;
}

START_TEST(any_way_out_of_the_block_runs_it_once)
{
    ck_assert_int_eq(leave_by(0), 0);
    trace_expect("run turn, run turn");
    for (int way = 1; way <= 3; way++) {
        ck_assert_int_eq(leave_by(way), way);
        trace_expect("run turn");
    }
}
END_TEST

static unsigned long long count_run(void)
{
    GUARD_AUTO(s);
    const char *line = strstr(guard_metrics_text(s, NULL), "\nguard_defers_run_total ");
    ck_assert_ptr_nonnull(line);
    return strtoull(strchr(line, ' '), NULL, 10);
}

START_TEST(it_is_counted_as_a_deferred_function)
{
    unsigned long long before = count_run();
    unsigned long long one = count_run() - before;
    before = count_run();
    {
        GUARD_DEFER(trace_run, name("counted"));
    }
    ck_assert_uint_eq(count_run() - before, one + 1);
}
END_TEST

/* -------------------------------------------------------------------------------------------------- panics -- */

static __attribute__((noinline)) void panic_inside(void)
{
    GUARD_DEFER(trace_run, name("deepest"));
    guard_panic(7, "boom");
}

static void panic_through(void *arg)
{
    (void)arg;
    GUARD_DEFER(trace_run, name("outer"));
    GUARD_AUTO(s);
    guard_defer(s, trace_run, name("record"));
    guard_defer_on(s, GUARD_ON_SUCCESS, trace_run, name("success"));
    GUARD_DEFER(trace_run, name("inner"));
    panic_inside();
}

START_TEST(a_panic_runs_it_once_in_its_turn)
{
    guard_error error;
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(guard_run(panic_through, NULL, &error), 7);
        ck_assert_str_eq(error.message, "boom");
        trace_expect("run deepest, run inner, run record, run outer");
    }
}
END_TEST

static void recover_outside(void *arg)
{
    (void)arg;
    GUARD_DEFER(trace_run, name("first"));
    GUARD_AUTO(s);
    guard_defer_recover(s, trace_recover, name("it"));
    panic_through(NULL);
}

START_TEST(a_recovered_panic_still_runs_the_rest)
{
    ck_assert_int_eq(guard_run(recover_outside, NULL, NULL), 0);
    trace_expect("run deepest, run inner, run record, run outer, recover it from boom, run first");
}
END_TEST

static void fail_at_the_close(void *arg)
{
    int *went_on = arg;
    GUARD_DEFER(trace_run, name("outer"));
    {
        GUARD_DEFER(trace_fail, name("it"));
    }
    ++*went_on;
    GUARD_DEFER(trace_run, name("registered"));
    ++*went_on;
    GUARD_AUTO(s); /* raises it */
    guard_defer(s, trace_run, name("never"));
}

START_TEST(a_panic_of_its_function_is_held_and_raised_by_the_next_call_but_its_own)
{
    guard_error error;
    int went_on = 0;
    ck_assert_int_eq(guard_run(fail_at_the_close, &went_on, &error), TRACE_FAILED);
    ck_assert_int_eq(went_on, 2);
    trace_expect("fail it, run registered, run outer");
}
END_TEST

static void fail_last(void *arg)
{
    (void)arg;
    GUARD_DEFER(trace_run, name("outer"));
    GUARD_DEFER(trace_fail, name("it"));
}

START_TEST(a_panic_of_its_function_at_the_last_close_is_returned_by_the_border)
{
    guard_error error;
    ck_assert_int_eq(guard_run(fail_last, NULL, &error), TRACE_FAILED);
    ck_assert_str_eq(error.message, "it");
    trace_expect("fail it, run outer");
}
END_TEST

static void fail_in_a_panic(void *arg)
{
    (void)arg;
    GUARD_DEFER(trace_run, name("outer"));
    GUARD_DEFER(trace_fail, name("it"));
    guard_panic(7, "boom");
}

START_TEST(a_panic_of_its_function_in_a_panic_replaces_it)
{
    guard_error error;
    ck_assert_int_eq(guard_run(fail_in_a_panic, NULL, &error), TRACE_FAILED);
    ck_assert_int_eq(error.cause_count, 1);
    ck_assert_int_eq(error.causes[0].relation, GUARD_REPLACED);
    ck_assert_str_eq(error.causes[0].message, "boom");
    trace_expect("fail it, run outer");
}
END_TEST

static void run_with_scopes(void *text)
{
    GUARD_DEFER(trace_run, text);
    GUARD_AUTO(s);
    guard_defer(s, trace_run, name("record of"));
}

START_TEST(its_function_may_have_scopes_of_its_own)
{
    {
        GUARD_DEFER(run_with_scopes, name("it"));
    }
    trace_expect("run record of, run it");
}
END_TEST

static void run_uncaught(void *arg)
{
    (void)arg;
    GUARD_DEFER(say, name("one\n"));
    GUARD_AUTO(s);
    guard_defer(s, say, name("two\n"));
    guard_panic(7, "boom");
}

START_TEST(an_uncaught_panic_runs_it_and_names_it_in_its_report)
{
    child_run(run_uncaught, NULL, &result);
    child_expect_abort(&result);
    ck_assert_has(result.text, "two\none\n");
    ck_assert_has(result.text, "2 defers ran: ");
    const char *ran = strstr(result.text, "2 defers ran: ");
    ck_assert_ptr_nonnull(strstr(strstr(ran, "(check_single.c:") + 1, "(check_single.c:"));
}
END_TEST

/* ------------------------------------------------------------------------------------------- misuse, memory -- */

static void without_a_function(void *arg)
{
    guard_fn *fn = arg;
    GUARD_DEFER(trace_run, name("outer"));
    GUARD_DEFER(fn, NULL);
    trace_run(name("not reached"));
}

static void note_misuse(const guard_error *error)
{
    trace_run(name(error->domain == GUARD_MISUSE && error->code == GUARD_MISUSE_ARGUMENT ? "misuse" : "another"));
}

START_TEST(no_function_is_misuse_and_if_the_handler_returns_nothing_runs)
{
    guard_error error;
    ck_assert_int_eq(guard_run(without_a_function, NULL, &error), GUARD_MISUSE_ARGUMENT);
    trace_expect("run outer");
    guard_misuse_handler(note_misuse);
    ck_assert_int_eq(guard_run(without_a_function, NULL, &error), 0);
    trace_expect("run misuse, run not reached, run outer");
}
END_TEST

static int depth;

static void count_depth(void *arg)
{
    (void)arg;
    depth--;
}

static __attribute__((noinline)) void nest(int levels)
{
    GUARD_DEFER(count_depth, NULL);
    depth++;
    if (levels > 1) {
        nest(levels - 1);
    } else if (levels == 1) {
        guard_panic(7, "at the bottom");
    }
}

static void nest_and_panic(void *arg)
{
    (void)arg;
    nest(1000);
}

START_TEST(it_takes_no_memory)
{
    guard_error error;
    fault_memory_install();
    {
        GUARD_DEFER(trace_run, name("first"));
    }
    fault_memory_fail_from(1);
    ck_assert_int_eq(guard_run(nest_and_panic, NULL, &error), 7);
    ck_assert_int_eq(depth, 0);
    ck_assert(!fault_memory_was_hit());
}
END_TEST

static void first_use(void *arg)
{
    (void)arg;
    GUARD_DEFER(say, name("released\n"));
    say(name("not reached\n"));
}

static void *first_use_main(void *arg)
{
    first_use(arg);
    return NULL;
}

/* Without a stack for the thread there is no border either: the panic is uncaught. */
static void first_use_without_memory(void *arg)
{
    pthread_t thread;
    (void)arg;
    fault_memory_install();
    fault_memory_fail_from(1);
    pthread_create(&thread, NULL, first_use_main, NULL);
    pthread_join(thread, NULL);
}

START_TEST(where_a_thread_s_first_use_finds_no_memory_it_runs_at_once)
{
    child_run(first_use_without_memory, NULL, &result);
    child_expect_abort(&result);
    ck_assert_has(result.text, "released\n");
    ck_assert_has(result.text, "out of memory");
    ck_assert_ptr_null(strstr(result.text, "not reached"));
}
END_TEST

/* ------------------------------------------------------------------------------------------------- threads -- */

static char ended[128]; /* by one thread after the other */

static void end_run(void *text)
{
    strncat(ended, text, sizeof ended - 1 - strlen(ended));
}

static __attribute__((noinline)) void end_here(int way)
{
    GUARD_DEFER(end_run, name("inner "));
    GUARD_AUTO(s);
    guard_defer(s, end_run, name("record "));
    if (way == 0) {
        guard_exit_thread();
    }
    if (way == 1) {
        pthread_exit(NULL);
    }
    pthread_cancel(pthread_self());
    for (;;) {
        pause();
    }
}

static void *end_thread(void *arg)
{
    GUARD_DEFER(end_run, name("outer "));
    end_here(*(int *)arg);
    return arg;
}

START_TEST(the_end_of_its_thread_runs_it)
{
    for (int way = 0; way < 3; way++) {
        pthread_t thread;
        ck_assert_int_eq(pthread_create(&thread, NULL, end_thread, &way), 0);
        pthread_join(thread, NULL);
        ck_assert_str_eq(ended, "record inner outer ");
        ended[0] = '\0';
    }
}
END_TEST

static void exit_inside(void *arg)
{
    (void)arg;
    guard_process_init(GUARD_AT_EXIT);
    GUARD_DEFER(say, name("at exit\n"));
    exit(3);
}

START_TEST(exit_runs_it_where_it_runs_scopes)
{
    child_run(exit_inside, NULL, &result);
    ck_assert(WIFEXITED(result.status) && WEXITSTATUS(result.status) == 3);
    ck_assert_str_eq(result.text, "at exit\n");
}
END_TEST

/* -------------------------------------------------------------------------------------------------- a fork -- */

static void fork_inside(void *arg)
{
    (void)arg;
    say(name("begin\n"));
    GUARD_DEFER(say, name("before the fork\n"));
    pid_t pid = fork();
    GUARD_DEFER(say, name(pid == 0 ? "the child's\n" : "the parent's\n"));
    if (pid > 0) {
        waitpid(pid, NULL, 0);
    }
}

static void fork_and_panic(void *arg)
{
    (void)arg;
    GUARD_DEFER(say, name("before the fork\n"));
    pid_t pid = fork();
    if (pid == 0) {
        GUARD_DEFER(say, name("the child's\n"));
        guard_panic(7, "in the child");
    }
    waitpid(pid, NULL, 0);
}

static void fork_and_catch(void *arg)
{
    guard_error error;
    (void)arg;
    say(guard_run(fork_and_panic, NULL, &error) == 7 ? name("caught\n") : name("returned\n"));
}

START_TEST(a_forked_child_does_not_run_its_parent_s)
{
    child_run(fork_inside, NULL, &result);
    ck_assert_str_eq(result.text, "begin\nthe child's\nthe parent's\nbefore the fork\n");
    child_run(fork_and_catch, NULL, &result);
    ck_assert_str_eq(result.text, "the child's\ncaught\nbefore the fork\nreturned\n");
}
END_TEST

/* ------------------------------------------------------------------------------------------- who looks at it -- */

START_TEST(a_dump_shows_it_until_it_runs)
{
    for (int turn = 0; turn < 2; turn++) {
        int file = memfd_create("dump", MFD_CLOEXEC);
        if (turn == 0) {
            GUARD_DEFER(trace_run, name("shown"));
            ck_assert_int_eq(guard_dump(file), 0);
        } else {
            ck_assert_int_eq(guard_dump(file), 0);
        }
        ssize_t size = pread(file, result.text, sizeof result.text - 1, 0);
        ck_assert_int_gt(size, 0);
        result.text[size] = '\0';
        close(file);
        ck_assert_int_eq(result_count("check_single.c"), turn == 0);
    }
}
END_TEST

static void die_inside(void *arg)
{
    (void)arg;
    guard_fatal_signals();
    GUARD_DEFER(say, name("not run\n"));
    __builtin_trap(); /* ThreadSanitizer puts off a signal that was sent */
}

START_TEST(the_report_of_a_fatal_signal_names_it)
{
    child_run(die_inside, NULL, &result);
    ck_assert(WIFSIGNALED(result.status) && WTERMSIG(result.status) == SIGILL);
    ck_assert_has(result.text, "held: function at check_single.c");
    ck_assert_ptr_null(strstr(result.text, "not run"));
}
END_TEST

/* ------------------------------------------------------------------------------------------- foreign jumps -- */

static jmp_buf far;
static char note[512];

static void take_note(const char *text)
{
    snprintf(note, sizeof note, "%s", text);
}

static __attribute__((noinline)) void jump_out(void)
{
    GUARD_DEFER(trace_run, name("jumped over"));
    longjmp(far, 1);
}

static void jump_over(void *arg)
{
    (void)arg;
    GUARD_DEFER(trace_run, name("outer"));
    if (setjmp(far) == 0) {
        jump_out();
    }
    trace_run(name("back"));
}

/* Its record lay in the frame: nobody can say that it was passed. */
START_TEST(one_that_a_longjmp_passed_is_not_run_and_the_stack_is_whole)
{
    guard_error error;
    guard_note_handler(take_note);
    ck_assert_int_eq(guard_run(jump_over, NULL, &error), 0);
    trace_expect("run back, run outer");
    jump_over(NULL);
    trace_expect("run back, run outer");
    ck_assert_str_eq(note, "");
    ck_assert_int_eq(guard_run(panic_through, NULL, &error), 7);
    trace_expect("run deepest, run inner, run record, run outer");
}
END_TEST

/* Its frame lies over that of the scope that was jumped over. */
static __attribute__((noinline)) void panic_over_it(void)
{
    volatile char room[512];
    GUARD_DEFER(trace_run, name("deeper"));
    for (size_t i = 0; i < sizeof room; i++) {
        room[i] = 0x55;
    }
    guard_panic(4, "four");
}

static void jump_then_panic(void *arg)
{
    (void)arg;
    GUARD_DEFER(trace_run, name("outer"));
    if (setjmp(far) == 0) {
        jump_out();
    }
    panic_over_it();
}

START_TEST(a_panic_after_such_a_jump_reaches_its_border)
{
    guard_error error;
    guard_note_handler(take_note);
    ck_assert_int_eq(guard_run(jump_then_panic, NULL, &error), 4);
    ck_assert_ptr_nonnull(strstr(trace_text(), "run deeper"));
    trace_clear();
    ck_assert_int_eq(guard_run(panic_through, NULL, &error), 7);
    trace_expect("run deepest, run inner, run record, run outer");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        it_runs_at_the_end_of_its_block_the_newest_first,
        any_way_out_of_the_block_runs_it_once,
        it_is_counted_as_a_deferred_function,
        a_panic_runs_it_once_in_its_turn,
        a_recovered_panic_still_runs_the_rest,
        a_panic_of_its_function_is_held_and_raised_by_the_next_call_but_its_own,
        a_panic_of_its_function_at_the_last_close_is_returned_by_the_border,
        a_panic_of_its_function_in_a_panic_replaces_it,
        its_function_may_have_scopes_of_its_own,
        an_uncaught_panic_runs_it_and_names_it_in_its_report,
        no_function_is_misuse_and_if_the_handler_returns_nothing_runs,
        it_takes_no_memory,
        where_a_thread_s_first_use_finds_no_memory_it_runs_at_once,
        the_end_of_its_thread_runs_it,
        exit_runs_it_where_it_runs_scopes,
        a_forked_child_does_not_run_its_parent_s,
        a_dump_shows_it_until_it_runs,
        the_report_of_a_fatal_signal_names_it,
        one_that_a_longjmp_passed_is_not_run_and_the_stack_is_whole,
        a_panic_after_such_a_jump_reaches_its_border,
    };
    return suite_run("single", tests, sizeof tests / sizeof *tests);
}
