/* SPDX-License-Identifier: MIT */
/*
 * check_fault.c: faults of the program's own code as panics, and those that stay fatal. tests/fault_panics.c proves the panics however the
 * core and its user are compiled.
 */
#include <errno.h>
#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include <guard/guard_cancel.h>
#include <guard/guard_fault.h>
#include <guard/guard_process.h>
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

/* ------------------------------------------------------------------------------------- what stays fatal -- */

typedef struct fatal_case {
    guard_fn *fn;
    bool without_border;
} fatal_case;

static void fatal_body(void *arg)
{
    const fatal_case *c = arg;
    if (guard_faults_to_panics() != 0) {
        _exit(3);
    }
    if (c->without_border) {
        c->fn(NULL);
    } else {
        guard_run(c->fn, NULL, NULL);
    }
}

/* It dies of the signal, and the report has both texts. */
static void expect_fatal(const fatal_case *c, int signo, const char *first, const char *second)
{
    child_result result;
    fault_run_child(fatal_body, (void *)(uintptr_t)c, &result);
    ck_assert_msg(WIFSIGNALED(result.status) && WTERMSIG(result.status) == signo, "status %x, \"%s\"",
                  (unsigned)result.status, result.text);
    ck_assert_msg(strstr(result.text, first) != NULL, "no \"%s\" in \"%s\"", first, result.text);
    ck_assert_msg(strstr(result.text, second) != NULL, "no \"%s\" in \"%s\"", second, result.text);
}

START_TEST(without_a_border_a_fault_is_fatal)
{
    expect_fatal(&(fatal_case){fault_read_null, true}, SIGSEGV, "guard: fatal: SIGSEGV, address 0x0 ",
                 "no panic: there is no border");
}
END_TEST

START_TEST(a_fault_inside_libc_is_fatal)
{
    expect_fatal(&(fatal_case){.fn = fault_in_libc}, SIGSEGV, "guard: fatal: SIGSEGV",
                 "no panic: it was in libc.so.6+0x");
}
END_TEST

static int compare_by_fault(const void *a, const void *b)
{
    fault_read_null(NULL);
    return *(const int *)a - *(const int *)b;
}

static void sort_by_fault(void *arg)
{
    int numbers[] = {3, 1, 2};
    (void)arg;
    qsort(numbers, 3, sizeof *numbers, compare_by_fault);
}

/* Sanitizers bring a qsort of their own, which with clang is part of the program. */
#if !FAULT_SANITIZED
START_TEST(a_fault_in_a_comparison_of_qsort_is_fatal)
{
    expect_fatal(&(fatal_case){.fn = sort_by_fault}, SIGSEGV, "guard: fatal: SIGSEGV",
                 "no panic: between the fault and the border is a frame of libc.so.6+0x");
}
END_TEST
#endif

static void sort_with_border_work(void *arg)
{
    fault_read_null(arg);
}

static int compare_with_border(const void *a, const void *b)
{
    trace_add("%d", guard_run(sort_with_border_work, NULL, NULL));
    return *(const int *)a - *(const int *)b;
}

START_TEST(a_border_inside_the_comparison_makes_it_a_panic)
{
    int numbers[] = {2, 1};
    switch_on();
    qsort(numbers, 2, sizeof *numbers, compare_with_border);
    ck_assert_msg(strncmp(trace_text(), "11", 2) == 0, "%s", trace_text());
}
END_TEST

START_TEST(a_module_that_was_named_is_own_code)
{
    switch_on();
    guard_fault_module((const void *)(uintptr_t)qsort);
    ck_assert_int_eq(guard_run(sort_by_fault, NULL, &error), SIGSEGV);
    ck_assert_int_eq(error.domain, GUARD_FAULT);
}
END_TEST

#if !FAULT_THREAD_SANITIZED
static void handle_by_fault(int signo)
{
    (void)signo;
    fault_read_null(NULL);
}

static void raise_signal(void *arg)
{
    (void)arg;
    signal(SIGUSR1, handle_by_fault);
    raise(SIGUSR1);
}

START_TEST(a_fault_in_a_signal_handler_is_fatal)
{
    expect_fatal(&(fatal_case){.fn = raise_signal}, SIGSEGV, "guard: fatal: SIGSEGV",
                 "no panic: between the fault and the border is a frame of libc.so.6+0x");
}
END_TEST
#endif

static void fault_in_foreign_call(void *arg)
{
    int state = guard_foreign_open();
    fault_read_null(arg);
    guard_foreign_close(state);
}

START_TEST(a_fault_while_a_foreign_call_is_in_progress_is_fatal)
{
    expect_fatal(&(fatal_case){.fn = fault_in_foreign_call}, SIGSEGV, "guard: fatal: SIGSEGV",
                 "no panic: a call of another library is in progress");
}
END_TEST

static void send_segv(void *arg)
{
    (void)arg;
    kill(getpid(), SIGSEGV);
}

START_TEST(a_signal_that_was_sent_is_fatal)
{
    expect_fatal(&(fatal_case){.fn = send_segv}, SIGSEGV, "guard: fatal: SIGSEGV, pc ",
                 "no panic: the signal was sent");
}
END_TEST

START_TEST(a_stack_overflow_is_fatal_and_reported)
{
    expect_fatal(&(fatal_case){.fn = fault_overflow}, SIGSEGV, "guard: fatal: SIGSEGV",
                 "no panic: the stack has overflowed");
}
END_TEST

static void *overflow_here(void *arg)
{
    guard_run(fault_overflow, NULL, NULL);
    return arg;
}

static void overflow_in_thread(void *arg)
{
    pthread_t thread;
    (void)arg;
    pthread_create(&thread, NULL, overflow_here, NULL);
    pthread_join(thread, NULL);
}

START_TEST(a_stack_overflow_of_a_thread_is_fatal_and_reported)
{
    expect_fatal(&(fatal_case){.fn = overflow_in_thread}, SIGSEGV, "guard: fatal: SIGSEGV",
                 "no panic: the stack has overflowed");
}
END_TEST

static ucontext_t fiber_main;
static ucontext_t fiber;

static void fiber_body(void)
{
    guard_run(fault_read_null, NULL, NULL);
}

static void fault_on_fiber(void *arg)
{
    static char memory[256 * 1024];
    (void)arg;
    getcontext(&fiber);
    fiber.uc_stack.ss_sp = memory;
    fiber.uc_stack.ss_size = sizeof memory;
    fiber.uc_link = &fiber_main;
    makecontext(&fiber, fiber_body, 0);
    guard_stack *stack = guard_stack_new();
    guard_stack_swap(stack);
    swapcontext(&fiber_main, &fiber);
}

START_TEST(a_fault_on_a_fiber_is_fatal)
{
    expect_fatal(&(fatal_case){.fn = fault_on_fiber}, SIGSEGV, "guard: fatal: SIGSEGV",
                 "no panic: it was on another stack than the thread's own");
}
END_TEST

static void *wait_and_fault(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "the thread has used the library");
    pthread_barrier_wait(arg);
    pthread_barrier_wait(arg);
    guard_run(fault_read_null, NULL, NULL);
    return NULL;
}

static void fault_in_older_thread(void *arg)
{
    pthread_barrier_t both;
    pthread_t thread;
    (void)arg;
    pthread_barrier_init(&both, NULL, 2);
    pthread_create(&thread, NULL, wait_and_fault, &both);
    pthread_barrier_wait(&both);
    if (guard_faults_to_panics() != 0) {
        _exit(3);
    }
    pthread_barrier_wait(&both);
    pthread_join(thread, NULL);
}

START_TEST(a_fault_of_a_thread_that_used_the_library_before_is_fatal)
{
    child_result result;
    fault_run_child(fault_in_older_thread, NULL, &result);
    ck_assert_msg(WIFSIGNALED(result.status) && WTERMSIG(result.status) == SIGSEGV, "status %x, \"%s\"",
                  (unsigned)result.status, result.text);
    ck_assert_msg(strstr(result.text, "this thread used the library before") != NULL, "%s", result.text);
}
END_TEST

#ifdef __x86_64__
static void trap_float(void *arg)
{
    volatile double zero = 0;
    (void)arg;
    feenableexcept(FE_DIVBYZERO);
    zero = 1 / zero;
}

START_TEST(a_floating_point_trap_is_fatal)
{
    expect_fatal(&(fatal_case){.fn = trap_float}, SIGFPE, "guard: fatal: SIGFPE, a floating-point exception",
                 "no panic: only that of an integer division");
}
END_TEST
#endif

#if !FAULT_SANITIZED
static void destroy_frames(void *arg)
{
    /* Everything from here outwards, as an overflow of a buffer does it: the frames lead nowhere. */
    void **frame = __builtin_frame_address(0);
    memset(frame, 0x41, 2048);
    fault_read_null(arg);
}

static void destroy_inside(void *arg)
{
    volatile char room[4096];
    room[0] = 1;
    destroy_frames(arg);
    room[1] = room[0];
}

START_TEST(a_fault_on_a_stack_that_was_written_over_is_fatal)
{
    expect_fatal(&(fatal_case){.fn = destroy_inside}, SIGSEGV, "guard: fatal: SIGSEGV, address 0x0", "no panic: ");
}
END_TEST

#endif

START_TEST(an_address_in_no_module_is_misuse)
{
    static char heap[1];
    ck_assert_int_eq(guard_fatal_handler(NULL) == NULL, 1);
    GUARD_TRY(&error)
    {
        guard_fault_module(NULL);
    }
    GUARD_CATCH
    {
        heap[0] = 1;
    }
    ck_assert_int_eq(heap[0], 1);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
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
        a_floating_point_trap_is_fatal,
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
        without_a_border_a_fault_is_fatal,
        a_fault_inside_libc_is_fatal,
#if !FAULT_SANITIZED
        a_fault_in_a_comparison_of_qsort_is_fatal,
#endif
        a_border_inside_the_comparison_makes_it_a_panic,
        a_module_that_was_named_is_own_code,
#if !FAULT_THREAD_SANITIZED
        a_fault_in_a_signal_handler_is_fatal,
#endif
        a_fault_while_a_foreign_call_is_in_progress_is_fatal,
        a_signal_that_was_sent_is_fatal,
        a_stack_overflow_is_fatal_and_reported,
        a_stack_overflow_of_a_thread_is_fatal_and_reported,
        a_fault_on_a_fiber_is_fatal,
        a_fault_of_a_thread_that_used_the_library_before_is_fatal,
#if !FAULT_SANITIZED
        a_fault_on_a_stack_that_was_written_over_is_fatal,
#endif
        an_address_in_no_module_is_misuse,
    };
    return suite_run("fault", tests, sizeof tests / sizeof *tests);
}
