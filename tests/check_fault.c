/* SPDX-License-Identifier: MIT */
/*
 * check_fault.c: faults of the program's own code as panics. tests/fault_panics.c proves them however the core and its user are compiled.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include <guard/guard_fault.h>
#include <guard/guard_trace.h>

#include "faults.h"
#include "suite.h"
#include "trace.h"

static guard_error error;

static void switch_on(void)
{
    ck_assert_int_eq(guard_faults_to_panics(), 0);
}

static void expect_fault(guard_fn *fn, int signo, const char *message)
{
    memset(&error, 0, sizeof error);
    ck_assert_int_eq(guard_run(fn, NULL, &error), signo);
    ck_assert_int_eq(error.domain, GUARD_FAULT);
    ck_assert_int_eq(error.code, signo);
    ck_assert_msg(strstr(error.message, message) != NULL, "\"%s\" does not have \"%s\"", error.message, message);
    ck_assert_msg(strstr(error.message, ", pc check_fault+0x") != NULL, "no place: %s", error.message);
}

/* -------------------------------------------------------------------------------------------- what panics -- */

START_TEST(a_null_dereference_is_a_panic_with_address_and_pc)
{
    switch_on();
    expect_fault(fault_read_null, SIGSEGV, "SIGSEGV, address 0x0 (nothing is mapped there)");
    ck_assert_msg(strstr(error.detail, "address 0x0, pc 0x") != NULL, "%s", error.detail);
    expect_fault(fault_write_null, SIGSEGV, "SIGSEGV, address 0x0 ");
    expect_fault(fault_read_far, SIGSEGV, "SIGSEGV, address 0x9c40 ");
}
END_TEST

START_TEST(a_write_to_constant_memory_is_a_panic)
{
    switch_on();
    expect_fault(fault_write_constant, SIGSEGV, "(not allowed there)");
}
END_TEST

START_TEST(a_read_past_the_end_of_a_file_that_was_cut_is_a_panic)
{
    switch_on();
    expect_fault(fault_read_cut_file, SIGBUS, "SIGBUS, address 0x");
    expect_fault(fault_read_cut_file, SIGBUS, "(past the end of what is mapped)");
}
END_TEST

START_TEST(a_call_of_null_is_its_callers_panic)
{
    switch_on();
    expect_fault(fault_call_null, SIGSEGV, "SIGSEGV, address 0x0 ");
}
END_TEST

#ifdef __x86_64__
START_TEST(an_integer_division_by_zero_is_a_panic)
{
    switch_on();
    expect_fault(fault_divide_by_zero, SIGFPE, "SIGFPE: integer division by zero");
}
END_TEST

START_TEST(an_address_that_cannot_be_is_a_panic)
{
    switch_on();
    expect_fault(fault_read_noncanonical, SIGSEGV, "SIGSEGV, an address that cannot be");
}
END_TEST
#endif

/* What Go's recover2.go and recover3.go ask of run-time errors that C has: each arrives as a typed error, and the next comes too. */
START_TEST(recover2_and_recover3_typed_errors_are_recovered_one_after_the_other)
{
    static const struct {
        const char *name;
        guard_fn *fn;
        const char *message;
    } checks[] = {
#ifdef __x86_64__
        {"int-div-zero", fault_divide_by_zero, "integer division by zero"},
#endif
        {"nil-deref", fault_read_null, "address 0x0"},
        {"nil-deref-1", fault_write_null, "address 0x0"},
        {"nil-deref-big", fault_read_far, "address 0x9c40"},
        {"nil-func", fault_call_null, "address 0x0"},
    };
    switch_on();
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        ck_assert_msg(guard_run(checks[i].fn, NULL, &error) != 0, "%s did not panic", checks[i].name);
        ck_assert_msg(error.domain == GUARD_FAULT, "%s panicked but not with GUARD_FAULT", checks[i].name);
        ck_assert_msg(strstr(error.message, checks[i].message) != NULL, "%s panicked with %s, not %s", checks[i].name,
                      error.message, checks[i].message);
    }
}
END_TEST

static void recover_fault(guard_recovery *recovery, void *arg)
{
    (void)arg;
    ck_assert_ptr_nonnull(recovery);
    ck_assert_int_eq(guard_recovery_error(recovery)->domain, GUARD_FAULT);
    trace_add("recover");
    guard_recover(recovery);
}

static void fault_with_scopes(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "outer");
    if (arg != NULL) {
        guard_defer_recover(s, recover_fault, NULL);
    }
    GUARD_AUTO(t);
    guard_defer(t, trace_run, "inner");
    fault_write_null(NULL);
    trace_add("it went on");
}

START_TEST(a_fault_runs_the_scopes_and_can_be_recovered)
{
    switch_on();
    ck_assert_int_eq(guard_run(fault_with_scopes, NULL, &error), SIGSEGV);
    trace_expect("run inner, run outer");
    ck_assert_int_eq(guard_run(fault_with_scopes, "recover", &error), 0);
    trace_expect("run inner, recover, run outer");
}
END_TEST

static void fault_in_automatic_close(void *arg)
{
    (void)arg;
    {
        GUARD_AUTO(s);
        guard_defer(s, trace_run, "older");
        guard_defer(s, fault_read_null, NULL);
        guard_defer(s, trace_run, "newer");
    }
    trace_add("held");
    guard_raise_held();
    trace_add("not reached");
}

static void fault_in_lone_close(void *arg)
{
    (void)arg;
    {
        GUARD_AUTO(s);
        guard_defer(s, fault_read_null, NULL);
    }
    trace_add("held");
}

START_TEST(a_fault_of_a_deferred_function_is_held_by_an_automatic_close)
{
    switch_on();
    expect_fault(fault_in_automatic_close, SIGSEGV, "address 0x0");
    trace_expect("run newer, run older, held");
    expect_fault(fault_in_lone_close, SIGSEGV, "address 0x0");
    trace_expect("held");
}
END_TEST

static void panic_over_fault(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "first");
    guard_defer(s, arg != NULL ? fault_read_far : fault_read_null, NULL);
    if (arg != NULL) {
        fault_read_null(NULL);
    }
    guard_panic(1, "the older");
}

START_TEST(a_fault_of_a_deferred_function_replaces_the_panic_that_runs_it)
{
    switch_on();
    expect_fault(panic_over_fault, SIGSEGV, "address 0x0");
    ck_assert_int_eq(error.cause_count, 1);
    ck_assert_str_eq(error.causes[0].message, "the older");
    ck_assert_int_eq(error.causes[0].relation, GUARD_REPLACED);
    trace_expect("run first");
    /* A fault in the panic of a fault. */
    ck_assert_int_eq(guard_run(panic_over_fault, "twice", &error), SIGSEGV);
    ck_assert_msg(strstr(error.message, "address 0x9c40") != NULL, "%s", error.message);
    ck_assert_int_eq(error.cause_count, 1);
    ck_assert_int_eq(error.causes[0].domain, GUARD_FAULT);
    trace_expect("run first");
}
END_TEST

static void release_by_fault(void *object)
{
    fault_read_null(object);
}

static void panic_over_failing_release(void *arg)
{
    static const guard_kind kind = {.name = "faulty", .release = release_by_fault};
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "first");
    guard_defer_kind(s, &kind, arg);
    guard_panic(5, "the first error");
}

START_TEST(a_fault_of_a_release_is_attached_to_the_panic_that_runs_it)
{
    switch_on();
    ck_assert_int_eq(guard_run(panic_over_failing_release, NULL, &error), 5);
    ck_assert_str_eq(error.message, "the first error");
    ck_assert_int_eq(error.cause_count, 1);
    ck_assert_int_eq(error.causes[0].domain, GUARD_FAULT);
    ck_assert_int_eq(error.causes[0].relation, GUARD_ATTACHED);
    trace_expect("run first");
}
END_TEST

START_TEST(a_fault_in_guard_try_reaches_its_catch)
{
    volatile int caught = 0;
    switch_on();
    GUARD_TRY(&error)
    {
        fault_read_null(NULL);
    }
    GUARD_CATCH
    {
        caught = 1;
    }
    ck_assert_int_eq(caught, 1);
    ck_assert_int_eq(error.domain, GUARD_FAULT);
}
END_TEST

static __attribute__((noinline)) void fault_callee(void *arg)
{
    fault_read_null(arg);
    trace_add("no tail call");
}

START_TEST(the_trace_of_a_fault_begins_at_its_instruction_and_has_its_callers)
{
    guard_trace trace;
    switch_on();
    guard_trace_capture(1);
    for (int i = 0; i < 3; i++) { /* the unwinder remembers frames from the first one on */
        ck_assert_int_eq(guard_run(fault_callee, NULL, &error), SIGSEGV);
        ck_assert_uint_gt(guard_trace_of(&error, &trace), 3);
        ck_assert_uint_eq((uintptr_t)trace.frames[0], strtoull(strstr(error.detail, "pc ") + 3, NULL, 16));
        ck_assert_msg((uintptr_t)trace.frames[1] - (uintptr_t)fault_callee < 200, "%p is not in %p", trace.frames[1],
                      (void *)fault_callee);
    }
}
END_TEST

/* ------------------------------------------------------------------------- where the thread goes on -- */

static const long *volatile red_zone;
static long red_zone_sum;

static void read_red_zone(void *arg)
{
    (void)arg;
    red_zone_sum = 0;
    for (int i = 0; i < 8; i++) {
        red_zone_sum += red_zone[i];
    }
}

/* A leaf: its locals lie below the stack pointer. */
static __attribute__((noinline, no_sanitize("undefined"))) void fault_over_red_zone(const char *volatile *nothing)
{
    volatile long locals[8];
    for (int i = 0; i < 8; i++) {
        locals[i] = 1000 + i;
    }
    red_zone = (const long *)(uintptr_t)locals;
    locals[7] += *(const volatile char *)*nothing;
}

static void red_zone_work(void *arg)
{
    const char *volatile nothing = arg;
    GUARD_AUTO(s);
    guard_defer(s, read_red_zone, NULL);
    fault_over_red_zone(&nothing);
}

START_TEST(a_deferred_function_finds_the_locals_of_a_leaf_function)
{
    switch_on();
    ck_assert_int_eq(guard_run(red_zone_work, NULL, &error), SIGSEGV);
    ck_assert_int_eq(red_zone_sum, 8028);
}
END_TEST

static void expect_own_stack(void *arg)
{
    stack_t now;
    char here;
    (void)arg;
    ck_assert_int_eq(sigaltstack(NULL, &now), 0);
    ck_assert_int_eq(now.ss_flags & SS_ONSTACK, 0);
    ck_assert(&here < (char *)now.ss_sp || &here >= (char *)now.ss_sp + now.ss_size);
    trace_add("own stack");
}

static void deferred_on_own_stack(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, expect_own_stack, NULL);
    fault_read_null(NULL);
}

START_TEST(deferred_functions_run_on_the_threads_own_stack)
{
    switch_on();
    ck_assert_int_eq(guard_run(deferred_on_own_stack, NULL, &error), SIGSEGV);
    trace_expect("own stack");
}
END_TEST

static void keep_errno(void *arg)
{
    (void)arg;
    errno = EXDEV;
    fault_read_null(NULL);
}

START_TEST(errno_is_what_it_was_at_the_fault)
{
    switch_on();
    ck_assert_int_eq(guard_run(keep_errno, NULL, &error), SIGSEGV);
    ck_assert_int_eq(error.os_error, EXDEV);
}
END_TEST

enum { MANY = FAULT_SANITIZED ? 5000 : 100000 };

START_TEST(a_hundred_thousand_faults_leave_mask_and_stack_as_they_were)
{
    sigset_t before;
    sigset_t after;
    switch_on();
    sigemptyset(&before);
    sigaddset(&before, SIGUSR2);
    ck_assert_int_eq(pthread_sigmask(SIG_SETMASK, &before, NULL), 0);
    for (int i = 0; i < MANY; i++) {
        ck_assert_int_eq(guard_run(i % 2 ? fault_read_null : fault_with_scopes, NULL, NULL), SIGSEGV);
        trace_clear();
    }
    ck_assert_int_eq(pthread_sigmask(SIG_SETMASK, NULL, &after), 0);
    for (int signo = 1; signo < NSIG; signo++) {
        ck_assert_msg(sigismember(&after, signo) == (signo == SIGUSR2), "signal %d", signo);
    }
    expect_own_stack(NULL);
}
END_TEST

static void *fault_often(void *arg)
{
    guard_error own;
    pthread_barrier_wait(arg);
    for (int i = 0; i < 1000; i++) {
        if (guard_run(fault_read_null, NULL, &own) != SIGSEGV || own.domain != GUARD_FAULT) {
            return "a fault was lost";
        }
    }
    return NULL;
}

START_TEST(threads_fault_at_the_same_time)
{
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    pthread_barrier_t start;
    switch_on();
    pthread_barrier_init(&start, NULL, THREADS);
    for (int i = 0; i < THREADS; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, fault_often, &start), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        void *result;
        pthread_join(threads[i], &result);
        ck_assert_msg(result == NULL, "%s", (char *)result);
    }
    pthread_barrier_destroy(&start);
}
END_TEST

static void recurse_and_fault(void *arg)
{
    volatile int *depth = arg;
    if (--*depth > 0) {
        recurse_and_fault(arg);
    } else {
        fault_read_null(NULL);
    }
    *depth += 1;
}

START_TEST(a_fault_a_thousand_frames_deep_is_a_panic)
{
    int depth = 1000;
    switch_on();
    ck_assert_int_eq(guard_run(recurse_and_fault, &depth, &error), SIGSEGV);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_null_dereference_is_a_panic_with_address_and_pc,
        a_write_to_constant_memory_is_a_panic,
        a_read_past_the_end_of_a_file_that_was_cut_is_a_panic,
        a_call_of_null_is_its_callers_panic,
#ifdef __x86_64__
        an_integer_division_by_zero_is_a_panic,
        an_address_that_cannot_be_is_a_panic,
#endif
        recover2_and_recover3_typed_errors_are_recovered_one_after_the_other,
        a_fault_runs_the_scopes_and_can_be_recovered,
        a_fault_of_a_deferred_function_is_held_by_an_automatic_close,
        a_fault_of_a_deferred_function_replaces_the_panic_that_runs_it,
        a_fault_of_a_release_is_attached_to_the_panic_that_runs_it,
        a_fault_in_guard_try_reaches_its_catch,
        the_trace_of_a_fault_begins_at_its_instruction_and_has_its_callers,
        a_deferred_function_finds_the_locals_of_a_leaf_function,
        deferred_functions_run_on_the_threads_own_stack,
        errno_is_what_it_was_at_the_fault,
        a_hundred_thousand_faults_leave_mask_and_stack_as_they_were,
        threads_fault_at_the_same_time,
        a_fault_a_thousand_frames_deep_is_a_panic,
    };
    return suite_run("fault", tests, sizeof tests / sizeof *tests);
}
