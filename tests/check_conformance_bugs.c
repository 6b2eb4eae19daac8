/* SPDX-License-Identifier: MIT */
/*
 * check_conformance_bugs.c: Go's test/defer*.go, abi/, stack.go and fixedbugs/, as far as they are about defer, panic and recover, restated.
 * Where each of Go's tests stands, and those that C cannot or need not have, is in guard/CONFORMANCE.md.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <guard/guard.h>

#include "conform.h"
#include "suite.h"

/* ------------------------------------------------------------------------------- what may be deferred -- */

/* deferprint.go, fixedbugs/issue47227.go: functions that others wrote are deferred as they are. */
START_TEST(a_function_of_libc_is_deferred_as_it_is)
{
    GUARD_AUTO(s);
    void *memory = malloc(100); /* AddressSanitizer and valgrind see whether it is freed */
    guard_defer(s, free, memory);
    strcpy(memory, "used");
    ck_assert_str_eq(memory, "used");
}
END_TEST

static void defer_nothing_then_panic(void *arg)
{
    GUARD_AUTO(s);
    guard_fn *volatile g = NULL;
    guard_defer(s, trace_run, "the rest");
    guard_defer(s, g, arg);
    trace_add("not reached");
    raise_code(as_arg(1));
}

/* defernil.go, fixedbugs/issue8047.go, issue8047b.go, issue6055.go, issue15975.go: here at once, not when the function ends. */
START_TEST(deferring_no_function_panics_where_it_is_deferred)
{
    guard_error error;
    ck_assert_int_eq(guard_run(defer_nothing_then_panic, NULL, &error), GUARD_MISUSE_ARGUMENT);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
    trace_expect("run the rest");
}
END_TEST

static void show_double(void *copy)
{
    trace_add("%.17g", *(double *)copy);
}

/* fixedbugs/bug364.go */
START_TEST(each_turn_of_a_loop_captures_its_own_value)
{
    {
        GUARD_AUTO(s);
        volatile double v = 0.0;
        for (int i = 0; i < 3; i++) {
            v += 0.1;
            double now = v;
            guard_defer_copy(s, show_double, &now, sizeof now);
        }
    }
    trace_expect("0.30000000000000004, 0.20000000000000001, 0.10000000000000001");
}
END_TEST

typedef struct set {
    unsigned members;
    int member;
} set;

typedef struct removal {
    set *of;
    int member;
} removal;

static void remove_member(void *copy)
{
    const removal *r = copy;
    r->of->members &= ~(1U << r->member);
}

static void fill_and_empty(set *m)
{
    GUARD_AUTO(s);
    for (int i = 0; i < 3; i++) {
        m->members |= 1U << i;
        removal r = {m, i};
        guard_defer_copy(s, remove_member, &r, sizeof r);
    }
}

/* fixedbugs/issue19710.go, issue8039.go: arguments are those of the registration, effects come after the return value is there. */
START_TEST(deferred_calls_with_captured_arguments_change_what_was_returned_by_reference)
{
    set m = {0, 0};
    fill_and_empty(&m);
    ck_assert_uint_eq(m.members, 0);
}
END_TEST

typedef struct aggregate {
    const char *p0;
    uint64_t p1, p2, p3, p4;
} aggregate;

static void check_aggregate(void *copy)
{
    const aggregate *p = copy;
    ck_assert_str_eq(p->p0, "foo");
    ck_assert_uint_eq(p->p1, 10101);
    ck_assert_uint_eq(p->p2, 3030303);
    ck_assert_uint_eq(p->p3, 505050505);
    ck_assert_uint_eq(p->p4, 70707070707);
    trace_add("aggregate");
}

static void defer_an_aggregate(void *arg)
{
    aggregate p = {"foo", 10101, 3030303, 505050505, 70707070707};
    GUARD_AUTO(s);
    guard_defer_copy(s, check_aggregate, &p, sizeof p);
    guard_defer_recover(s, recover_any, NULL);
    memset(&p, 0, sizeof p);
    raise_code(arg);
}

/* abi/defer_aggregate.go, abi/open_defer_1.go, abi/wrapdefer_largetmp.go */
START_TEST(captured_arguments_are_whole_after_a_recovered_panic)
{
    call_go(defer_an_aggregate, as_arg(1));
    trace_expect("aggregate");
}
END_TEST

static void check_twenty(void *copy)
{
    const int *t = copy;
    int sum = 0;
    for (int i = 0; i < 20; i++) {
        sum += t[i];
    }
    ck_assert_int_eq(sum, 20);
    trace_clear(); /* 8000 entries would not fit */
    trace_add("deepest last");
}

static __attribute__((noinline)) void recur(int n)
{
    int t[20];
    for (int i = 0; i < 20; i++) {
        t[i] = 1;
    }
    GUARD_AUTO(s);
    guard_defer_copy(s, check_twenty, t, sizeof t);
    memset(t, 0, sizeof t);
    if (n > 0) {
        recur(n - 1);
    }
}

/* stack.go, fixedbugs/issue24419.go */
START_TEST(a_scope_with_arguments_at_each_of_eight_thousand_depths)
{
    recur(8000);
    trace_expect("deepest last");
}
END_TEST

/* ----------------------------------------------------------------------------------------------- results -- */

static void increment(void *number)
{
    ++*(int *)number;
}

static void see_42(void *number)
{
    ck_assert_int_eq(*(int *)number, 42);
    trace_add("42");
}

static void set_by_return(void *arg)
{
    int *a = arg;
    GUARD_AUTO(s);
    guard_defer(s, increment, a);
    guard_defer(s, see_42, a);
    *a = 42;
}

/* fixedbugs/bug293.go, issue9738.go, issue32175.go */
START_TEST(a_deferred_function_sees_the_result_that_was_returned_and_may_change_it)
{
    int a = 0;
    set_by_return(&a);
    ck_assert_int_eq(a, 43);
    trace_expect("42");
}
END_TEST

typedef struct results {
    int a;
    const char *b;
    int unnamed;
    struct {
        uint8_t x;
        uint16_t y;
        uint32_t z;
        double w;
    } c;
    int d[2];
    unsigned char twenty[20];
} results;

static void set_results_and_panic(void *arg)
{
    results *r = arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, recover_any, NULL);
    r->a = 10;
    r->b = "hello";
    r->c.x = 1;
    r->c.y = 2;
    r->c.z = 3;
    r->c.w = 4;
    r->d[0] = 111;
    r->d[1] = 222;
    for (unsigned char i = 0; i < 20; i++) {
        r->twenty[i] = i;
    }
    raise_code(as_arg(0));
    r->unnamed = 1;
}

/* abi/defer_recover_results.go, fixedbugs/issue16095.go, issue43835.go */
START_TEST(results_set_before_the_panic_are_there_and_those_after_it_are_not)
{
    results r = {0};
    call_go(set_results_and_panic, &r);
    ck_assert_int_eq(r.a, 10);
    ck_assert_str_eq(r.b, "hello");
    ck_assert_int_eq(r.unnamed, 0);
    ck_assert(r.c.x == 1 && r.c.y == 2 && r.c.z == 3 && r.c.w == 4);
    ck_assert(r.d[0] == 111 && r.d[1] == 222);
    for (unsigned char i = 0; i < 20; i++) {
        ck_assert_uint_eq(r.twenty[i], i);
    }
}
END_TEST

static void recover_and_set_1(guard_recovery *recovery, void *x)
{
    guard_recover(recovery);
    *(int *)x = 1;
}

static void defer_in_an_endless_loop(void *x)
{
    GUARD_AUTO(s);
    for (;;) {
        guard_defer_recover(s, recover_and_set_1, x);
        raise_code(as_arg(0));
    }
}

/* fixedbugs/issue14725.go, bug301.go: panic(nil) is a panic like any other; its code is -1. */
START_TEST(a_panic_of_nothing_is_a_panic_and_is_recovered)
{
    int x = 0;
    guard_error error;
    call_go(defer_in_an_endless_loop, &x);
    ck_assert_int_eq(x, 1);
    ck_assert_int_eq(guard_run(raise_code, as_arg(0), &error), -1);
}
END_TEST

/* -------------------------------------------------------------------------------------- the dying frames -- */

#define N 40

static void check_locals(guard_recovery *recovery, void *p)
{
    guard_recover(recovery);
    for (int i = 0; i < N; i++) {
        ck_assert_int_eq(((int *)p)[i], 0x999);
    }
    trace_add("whole");
}

static __attribute__((noinline)) int use_stack(int n)
{
    volatile char frame[64];
    memset((void *)(uintptr_t)frame, 0x55, sizeof frame);
    return n == 0 ? frame[0] : use_stack(n - 1) + frame[63];
}

static void *use_stack_thread(void *arg)
{
    use_stack(1000);
    return arg;
}

static void use_the_stack_deeply(void *arg)
{
    (void)arg;
    use_stack(1000);
}

static void use_another_stack(void *arg)
{
    pthread_t thread;
    ck_assert_int_eq(pthread_create(&thread, NULL, use_stack_thread, arg), 0);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
}

static void panic_with_locals(void *code)
{
    int x[N];
    for (int i = 0; i < N; i++) {
        x[i] = 0x999;
    }
    GUARD_AUTO(s);
    guard_defer_recover(s, check_locals, x);
    guard_defer(s, use_another_stack, NULL);
    guard_defer(s, use_the_stack_deeply, NULL);
    raise_code(code);
    for (;;) { /* as in Go's test: the end of this function is not reachable */
    }
}

/* fixedbugs/issue40629.go */
START_TEST(locals_of_the_dying_frames_are_whole_in_every_deferred_function)
{
    call_go(panic_with_locals, as_arg(1));
    trace_expect("whole");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_function_of_libc_is_deferred_as_it_is,
        deferring_no_function_panics_where_it_is_deferred,
        each_turn_of_a_loop_captures_its_own_value,
        deferred_calls_with_captured_arguments_change_what_was_returned_by_reference,
        captured_arguments_are_whole_after_a_recovered_panic,
        a_scope_with_arguments_at_each_of_eight_thousand_depths,
        a_deferred_function_sees_the_result_that_was_returned_and_may_change_it,
        results_set_before_the_panic_are_there_and_those_after_it_are_not,
        a_panic_of_nothing_is_a_panic_and_is_recovered,
        locals_of_the_dying_frames_are_whole_in_every_deferred_function,
    };
    return suite_run("conformance_bugs", tests, sizeof tests / sizeof *tests);
}
