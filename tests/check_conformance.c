/* SPDX-License-Identifier: MIT */
/*
 * check_conformance.c: Go's test/recover.go and recover1.go, restated. Where each of Go's tests stands, and those that C cannot or need
 * not have, is in guard/CONFORMANCE.md.
 */
#include <string.h>

#include <guard/guard.h>

#include "conform.h"
#include "suite.h"

/* ------------------------------------------------------------------------------------------- recover.go -- */

static void squelch(void *code)
{
    GUARD_AUTO(s);
    guard_defer_recover(s, must_not_recover, NULL);
    guard_defer_recover(s, recover_any, NULL);
    raise_code(code);
}

/* recover.go test3, recover1.go test4 */
START_TEST(a_recover_that_looks_at_nothing_ends_the_panic_for_those_further_out)
{
    call_go(squelch, as_arg(3));
    trace_expect("nothing");
}
END_TEST

static void recover_with(void *token)
{
    trace_add("token: %d", guard_recover(token));
}

/* defer func() { defer recover() }() */
static void defer_the_recover(guard_recovery *recovery, void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, recover_with, recovery);
}

static void squelch_by_a_defer(void *code)
{
    GUARD_AUTO(s);
    guard_defer_recover(s, must_not_recover, NULL);
    guard_defer_recover(s, defer_the_recover, NULL);
    raise_code(code);
}

/* recover.go test4, recover1.go test5 */
START_TEST(the_recover_itself_may_be_deferred)
{
    call_go(squelch_by_a_defer, as_arg(4));
    trace_expect("token: 1, nothing");
}
END_TEST

typedef struct result {
    int code;
    int deflt;
    int is_panicking;
} result;

static void set_result(guard_recovery *recovery, void *arg)
{
    result *x = arg;
    if (recovery != NULL) {
        x->code = guard_recovery_error(recovery)->code;
        guard_recover(recovery);
    }
}

static void run_g(void *arg)
{
    const result *x = arg;
    if (x->is_panicking) {
        raise_code(as_arg(5));
    }
}

/* func try(g func(), deflt interface{}) (x interface{}) */
static void try_g(void *arg)
{
    result *x = arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, set_result, x);
    guard_defer(s, run_g, x);
    x->code = x->deflt;
}

/* recover.go test5; fixedbugs/issue45722.go in typeparam is this as a generic function. */
START_TEST(a_deferred_call_that_panics_after_the_return_changes_the_result)
{
    result x = {.deflt = 55, .is_panicking = 1};
    call_go(try_g, &x);
    ck_assert_int_eq(x.code, 5);
    x = (result){.deflt = 55};
    call_go(try_g, &x);
    ck_assert_int_eq(x.code, 55);
}
END_TEST

/* big(mustRecover) */
static void recover_on_a_big_frame(guard_recovery *recovery, void *expected)
{
    volatile int x[100000];
    x[0] = 1;
    x[99999] = 1;
    ck_assert_int_eq(guard_recover(recovery), (int)(intptr_t)expected);
    trace_add("big %d", x[0] + x[99999]);
}

static void panic_below_big_frames(void *code)
{
    GUARD_AUTO(s);
    guard_defer_recover(s, recover_on_a_big_frame, as_arg(0));
    guard_defer_recover(s, recover_on_a_big_frame, as_arg(1));
    raise_code(code);
}

/* recover.go test6, test6WithClosures */
START_TEST(a_function_with_a_huge_frame_recovers)
{
    call_go(panic_below_big_frames, as_arg(6));
    trace_expect("big 2, big 2");
}
END_TEST

typedef struct varargs {
    int sum;
    int count;
    int a[3];
    int panics;
} varargs;

static void add_varargs(guard_recovery *recovery, void *arg)
{
    varargs *v = arg;
    v->sum = 0;
    for (int i = 0; i < v->count; i++) {
        v->sum += v->a[i];
    }
    v->sum += guard_recover(recovery) ? 100 : 0;
}

static void test8(void *arg)
{
    varargs *v = arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, add_varargs, v);
    if (v->panics) {
        raise_code(as_arg(8));
    }
}

/* recover.go test8 */
START_TEST(the_same_recovering_function_serves_a_panic_and_a_return)
{
    varargs v = {.count = 3, .a = {1, 2, 3}, .panics = 1};
    call_go(test8, &v);
    ck_assert_int_eq(v.sum, 106);
    v = (varargs){.count = 3, .a = {4, 5, 6}};
    call_go(test8, &v);
    ck_assert_int_eq(v.sum, 15);
}
END_TEST

static void recover_112(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, must_recover, as_arg(112));
    raise_code(as_arg(112));
}

/* Another panic comes and goes between the token and its use. */
static void recover_after_bad_state(guard_recovery *recovery, void *code)
{
    recover_112(NULL);
    must_recover(recovery, code);
}

static void recover_after_bad_state_in_a_border(guard_recovery *recovery, void *code)
{
    call_go(recover_112, NULL);
    must_recover(recovery, code);
}

static void test111(void *fn)
{
    GUARD_AUTO(s);
    guard_defer_recover(s, *(guard_recover_fn **)fn, as_arg(111));
    raise_code(as_arg(111));
}

/* recover.go test111. Without a border the function is cut short where 112 was recovered, so that 111 goes on. */
START_TEST(a_panic_that_came_and_went_inside_it_does_not_confuse_a_recovering_function)
{
    guard_recover_fn *fn = recover_after_bad_state_in_a_border;
    call_go(test111, &fn);
    trace_expect("recovered 112, recovered 111");
    fn = recover_after_bad_state;
    ck_assert_int_eq(guard_run(test111, &fn, NULL), 111);
    trace_expect("recovered 112");
}
END_TEST

typedef struct enormous {
    unsigned char bytes[8192];
} enormous;

static void check_enormous(void *copy)
{
    const enormous *t = copy;
    unsigned sum = 0;
    for (size_t i = 0; i < sizeof t->bytes; i++) {
        sum += t->bytes[i];
    }
    ck_assert_uint_eq(sum, 8192 * 3);
    ck_assert_int_eq(guard_panicking()->code, 13);
    trace_add("enormous");
}

static void test13(void *code)
{
    enormous t;
    memset(t.bytes, 3, sizeof t.bytes);
    GUARD_AUTO(s);
    guard_defer_copy(s, check_enormous, &t, sizeof t);
    memset(t.bytes, 4, sizeof t.bytes);
    raise_code(code);
}

/* recover.go test13, test14: an enormous receiver is an enormous copied argument. */
START_TEST(an_enormous_argument_is_whole_in_the_panic)
{
    ck_assert_int_eq(guard_run(test13, as_arg(13), NULL), 13);
    trace_expect("enormous");
}
END_TEST

/* ------------------------------------------------------------------------------------------ recover1.go -- */

static void recover_outer_after_inner(guard_recovery *recovery, void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, recover_with, recovery);
    guard_defer_recover(s, must_recover, as_arg(3));
    raise_code(as_arg(3));
}

static void test6(void *code)
{
    GUARD_AUTO(s);
    guard_defer_recover(s, must_not_recover, NULL);
    guard_defer_recover(s, recover_outer_after_inner, NULL);
    raise_code(code);
}

/* recover1.go test6 */
START_TEST(when_the_inner_panic_was_recovered_a_deferred_recover_ends_the_outer_one)
{
    call_go(test6, as_arg(2));
    trace_expect("recovered 3, token: 1, nothing");
}
END_TEST

static void recover_outer_during_inner(guard_recovery *recovery, void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, must_recover, as_arg(3));
    guard_defer(s, recover_with, recovery);
    raise_code(as_arg(3));
}

static void test7(void *code)
{
    GUARD_AUTO(s);
    guard_defer_recover(s, must_recover, code);
    guard_defer_recover(s, recover_outer_during_inner, NULL);
    raise_code(code);
}

/* recover1.go test7 */
START_TEST(while_an_inner_panic_runs_the_outer_one_cannot_be_recovered)
{
    call_go(test7, as_arg(2));
    trace_expect("token: 0, recovered 3, recovered 2");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_recover_that_looks_at_nothing_ends_the_panic_for_those_further_out,
        the_recover_itself_may_be_deferred,
        a_deferred_call_that_panics_after_the_return_changes_the_result,
        a_function_with_a_huge_frame_recovers,
        the_same_recovering_function_serves_a_panic_and_a_return,
        a_panic_that_came_and_went_inside_it_does_not_confuse_a_recovering_function,
        an_enormous_argument_is_whole_in_the_panic,
        when_the_inner_panic_was_recovered_a_deferred_recover_ends_the_outer_one,
        while_an_inner_panic_runs_the_outer_one_cannot_be_recovered,
    };
    return suite_run("conformance", tests, sizeof tests / sizeof *tests);
}
