/* SPDX-License-Identifier: MIT */
/*
 * check_fault_fatal.c: the faults that stay fatal where the program's own become panics.
 */
#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#include <guard/guard_cancel.h>
#include <guard/guard_fault.h>
#include <guard/guard_process.h>

#include "faults.h"
#include "suite.h"
#include "trace.h"

static guard_error error;

static void switch_on(void)
{
    ck_assert_int_eq(guard_faults_to_panics(), 0);
}

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
    child_expect_signal(&result, signo);
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
    child_expect_signal(&result, SIGSEGV);
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
#ifdef __x86_64__
        a_floating_point_trap_is_fatal,
#endif
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
    return suite_run("fault_fatal", tests, sizeof tests / sizeof *tests);
}
