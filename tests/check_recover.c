/* SPDX-License-Identifier: MIT */
/*
 * check_recover.c: who may end a panic, and what goes on then (behaviours 4 to 7, 9, 10, 13 to 16).
 *
 * After Go's test/recover.go, recover1.go and runtime/defer_test.go. Where Go's function recovers and returns to its caller, here its border does.
 */
#include <guard/guard.h>

#include "suite.h"
#include "trace.h"

static guard_error error;

/* Runs a body in a border and tells how it ended. */
static void run_border(guard_fn *body, void *arg)
{
    guard_error inner;
    int code = guard_run(body, arg, &inner);
    trace_add(code == 0 ? "border: ok" : "border: %s", inner.message);
}

/* ---------------------------------------------------------------------------------------- recover.go -- */

static guard_recovery *token;

static void recover_without_the_token(void *arg)
{
    (void)arg;
    ck_assert_int_eq(guard_recover(NULL), 0);
    trace_add("without");
}

static void must_recover(guard_recovery *recovery, void *message)
{
    ck_assert_ptr_nonnull(recovery);
    ck_assert_str_eq(guard_recovery_error(recovery)->message, message);
    ck_assert_int_eq(guard_recover(NULL), 0);
    ck_assert_int_eq(guard_recover(recovery), 1);
    ck_assert_int_eq(guard_recover(recovery), 0);
    trace_add("recovered %s", (const char *)message);
}

static void must_not_recover(guard_recovery *recovery, void *name)
{
    ck_assert_ptr_null(recovery);
    ck_assert_ptr_null(guard_recovery_error(recovery));
    ck_assert_int_eq(guard_recover(recovery), 0);
    trace_add("%s has nothing to recover", (const char *)name);
}

static void test1(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, must_not_recover, "last");
    guard_defer_recover(s, must_recover, "1");
    guard_defer(s, recover_without_the_token, NULL);
    guard_panic(1, "1");
}

/* test1 */
START_TEST(only_the_token_recovers_and_only_once)
{
    ck_assert_int_eq(guard_run(test1, NULL, NULL), 0);
    trace_expect("without, recovered 1, last has nothing to recover");
}
END_TEST

static void keep_the_token(guard_recovery *recovery, void *arg)
{
    (void)arg;
    token = recovery;
}

static void use_the_kept_token(void *arg)
{
    (void)arg;
    trace_add("kept token: %d", guard_recover(token));
}

static void keep_and_use_later(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, use_the_kept_token, NULL);
    guard_defer_recover(s, keep_the_token, NULL);
    guard_panic(2, "2");
}

START_TEST(a_token_is_worth_nothing_once_its_function_returned)
{
    ck_assert_int_eq(guard_run(keep_and_use_later, NULL, NULL), 2);
    trace_expect("kept token: 0");
    ck_assert_int_eq(guard_recover(token), 0);
}
END_TEST

static void run_with_recover(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "earlier defer");
    guard_defer_recover(s, trace_recover, "r");
    guard_defer(s, trace_run, "later defer");
    trace_fail(arg);
}

static void caller(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "caller's defer");
    run_border(run_with_recover, arg);
    trace_add("caller goes on");
}

/* test7 */
START_TEST(after_recovery_the_borders_earlier_defers_run_and_the_caller_goes_on)
{
    caller("P");
    trace_expect(
        "fail P, run later defer, recover r from P, run earlier defer, border: ok, caller goes on, run caller's defer");
}
END_TEST

static void inner_scope_recovers(void *arg)
{
    GUARD_AUTO(outer);
    guard_defer_on(outer, GUARD_ON_FAILURE, trace_run, "outer, cut short");
    GUARD_SCOPE (inner) {
        guard_defer_recover(inner, trace_recover, "r");
        trace_fail(arg);
    }
    trace_add("not reached");
}

START_TEST(recovery_resumes_after_the_border_not_after_the_scope)
{
    ck_assert_int_eq(guard_run(inner_scope_recovers, "P", NULL), 0);
    trace_expect("fail P, recover r from P, run outer, cut short");
}
END_TEST

static void see_only(void *arg)
{
    GUARD_AUTO(s);
    guard_defer_recover(s, trace_see, "last");
    guard_defer_recover(s, trace_see, "first");
    if (arg != NULL) {
        trace_fail(arg);
    }
}

START_TEST(a_recovering_defer_may_look_and_let_go)
{
    ck_assert_int_eq(guard_run(see_only, "P", NULL), TRACE_FAILED);
    trace_expect("fail P, first sees P, last sees P");
    ck_assert_int_eq(guard_run(see_only, NULL, NULL), 0);
    trace_expect("first sees nothing, last sees nothing");
}
END_TEST

/* --------------------------------------------------------------------------------------- recover1.go -- */

static void panic_and_recover_here(void *message)
{
    GUARD_AUTO(s);
    guard_defer_recover(s, must_recover, message);
    guard_panic(3, "%s", (const char *)message);
}

static void contain_a_panic(void *message)
{
    ck_assert_int_eq(guard_run(panic_and_recover_here, message, NULL), 0);
    trace_add("went on");
}

static void recover1_test1(void *defers)
{
    GUARD_AUTO(s);
    guard_defer_recover(s, must_recover, "1");
    guard_defer(s, (guard_fn *)((void **)defers)[0], "2");
    guard_panic(1, "1");
}

/* Without a border of its own the deferred function is cut short where it recovers, as Go's function returns there. */
START_TEST(a_panic_raised_and_recovered_inside_a_defer_leaves_the_running_one)
{
    void *with_border[] = {(void *)contain_a_panic};
    void *without[] = {(void *)panic_and_recover_here};
    ck_assert_int_eq(guard_run(recover1_test1, with_border, NULL), 0);
    trace_expect("recovered 2, went on, recovered 1");
    ck_assert_int_eq(guard_run(recover1_test1, without, NULL), 0);
    trace_expect("recovered 2, recovered 1");
}
END_TEST

static void recover_inside(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "rest");
    guard_defer(s, panic_and_recover_here, "2");
    guard_defer_kind(s, &trace_kind, "kind");
    guard_panic(1, "1");
}

START_TEST(the_running_panic_reaches_its_border_whatever_was_recovered_on_its_way)
{
    ck_assert_int_eq(guard_run(recover_inside, NULL, &error), 1);
    trace_expect("release kind, recovered 2, run rest");
    ck_assert_str_eq(error.message, "1");
    ck_assert_uint_eq(error.cause_count, 0);
}
END_TEST

static const guard_kind recovers_in_its_release = {.name = "nested", .release = panic_and_recover_here};

static void release_with_a_panic_of_its_own(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "rest");
    guard_defer_kind(s, &recovers_in_its_release, "2");
    guard_panic(1, "1");
}

START_TEST(a_release_recovers_its_own_panic_and_never_the_one_that_runs_it)
{
    ck_assert_int_eq(guard_run(release_with_a_panic_of_its_own, NULL, &error), 1);
    trace_expect("recovered 2, run rest");
    ck_assert_uint_eq(error.cause_count, 0);
}
END_TEST

static void recover_then_panic(guard_recovery *recovery, void *arg)
{
    (void)arg;
    must_recover(recovery, "2");
    panic_and_recover_here("3");
}

static void recover_then_contain(guard_recovery *recovery, void *arg)
{
    (void)arg;
    must_recover(recovery, "2");
    contain_a_panic("3");
}

static void sequential(void *which)
{
    GUARD_AUTO(s);
    guard_defer_recover(s, must_not_recover, "outer level");
    guard_defer_recover(s, *(guard_recover_fn **)which, NULL);
    guard_panic(2, "2");
}

/* test2, test3 */
START_TEST(recover_2_panic_3_recover_3_inside_one_defer_shows_the_outer_level_nothing)
{
    guard_recover_fn *which = recover_then_panic;
    ck_assert_int_eq(guard_run(sequential, &which, NULL), 0);
    trace_expect("recovered 2, recovered 3, outer level has nothing to recover");
    which = recover_then_contain;
    ck_assert_int_eq(guard_run(sequential, &which, NULL), 0);
    trace_expect("recovered 2, recovered 3, went on, outer level has nothing to recover");
}
END_TEST

static void recover_then_fail(guard_recovery *recovery, void *arg)
{
    (void)arg;
    must_recover(recovery, "2");
    guard_panic(3, "3");
}

static void panic_after_recovery(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, trace_see, "outer level");
    guard_defer_recover(s, recover_then_fail, NULL);
    guard_panic(2, "2");
}

START_TEST(a_panic_after_recovery_is_a_new_one_that_says_what_was_recovered)
{
    ck_assert_int_eq(guard_run(panic_after_recovery, NULL, &error), 3);
    trace_expect("recovered 2, outer level sees 3");
    ck_assert_uint_eq(error.cause_count, 1);
    ck_assert_int_eq(error.causes[0].relation, GUARD_RECOVERED);
    ck_assert_str_eq(error.causes[0].message, "2");
}
END_TEST

static void fail_after_recovery(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "rest");
    guard_defer(s, trace_fail, "late");
    guard_defer_recover(s, trace_recover, "r");
    guard_panic(1, "1");
}

START_TEST(an_earlier_defer_that_fails_after_recovery_fails_the_border)
{
    ck_assert_int_eq(guard_run(fail_after_recovery, NULL, &error), TRACE_FAILED);
    trace_expect("recover r from 1, fail late, run rest");
    ck_assert_str_eq(error.message, "late");
}
END_TEST

/* ------------------------------------------------------------------------------------- defer_test.go -- */

static void abort_panic(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, must_not_recover, "last");
    guard_defer_recover(s, must_recover, "fail");
    guard_defer(s, trace_fail, "fail");
    guard_panic(1, "panic1");
}

/* TestAbortedPanic */
START_TEST(a_newer_panic_replaces_an_older_one_and_then_nothing_is_left_to_recover)
{
    ck_assert_int_eq(guard_run(abort_panic, NULL, NULL), 0);
    trace_expect("fail fail, recovered fail, last has nothing to recover");
}
END_TEST

static void defer_inside_a_defer(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, must_not_recover, "inner");
}

static void recover_matching(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, must_recover, "panic1");
    guard_defer(s, defer_inside_a_defer, NULL);
    guard_panic(1, "panic1");
}

/* TestRecoverMatching */
START_TEST(a_defer_registered_inside_a_deferred_function_cannot_recover_the_outer_panic)
{
    ck_assert_int_eq(guard_run(recover_matching, NULL, NULL), 0);
    trace_expect("inner has nothing to recover, recovered panic1");
}
END_TEST

typedef struct interpreter_level {
    int level;
    int last;
    int wanted;
} interpreter_level;

static void recover_at_the_wanted_level(guard_recovery *recovery, void *arg)
{
    const interpreter_level *at = arg;
    if (recovery == NULL) {
        return;
    }
    guard_error copy = *guard_recovery_error(recovery);
    ck_assert_int_eq(guard_recover(recovery), 1);
    if (copy.code != at->level) {
        guard_panic_error(&copy);
    }
    trace_add("level %d", at->level);
}

static void interpret(void *arg)
{
    const interpreter_level *at = arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, recover_at_the_wanted_level, arg);
    if (at->level == at->last) {
        guard_panic(at->wanted, "rec");
    }
    interpreter_level next = {at->level + 1, at->last, at->wanted};
    guard_error inner;
    if (guard_run(interpret, &next, &inner) != 0) {
        guard_panic_error(&inner);
    }
}

/* TestDeferWithRepeatedRepanics */
START_TEST(repanicking_six_levels_deep_leaves_no_stale_record)
{
    GUARD_AUTO(s);
    for (int wanted = 1; wanted <= 6; wanted++) {
        interpreter_level first = {1, 6, wanted};
        ck_assert_int_eq(guard_run(interpret, &first, NULL), 0);
        ck_assert_int_eq(trace_text()[6] - '0', wanted);
        trace_clear();
    }
    interpreter_level first = {1, 6, 100};
    ck_assert_int_eq(guard_run(interpret, &first, &error), 100);
    ck_assert_uint_eq(error.cause_count, 0); /* it is no cause of itself */
    ck_assert_ptr_null(s->head);
    ck_assert_ptr_null(guard_panicking());
}
END_TEST

/* ----------------------------------------------------------------------------- fixedbugs/issue48898.go -- */

static void recover_quietly(guard_recovery *recovery, void *arg)
{
    (void)arg;
    guard_recover(recovery);
}

static void nest_recoveries(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, recover_quietly, NULL);
    guard_defer(s, trace_fail, "3");
    guard_panic(2, "2");
}

static void panic_over_recoveries(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, nest_recoveries, NULL);
    guard_defer_recover(s, recover_quietly, NULL);
    guard_panic(1, "1");
}

static void panic_4(void *arg)
{
    (void)arg;
    GUARD_AUTO(outer);
    guard_defer(outer, trace_run, "x");
    GUARD_AUTO(inner);
    guard_defer(inner, trace_run, "inner");
    guard_panic(4, "4");
}

START_TEST(no_defer_is_lost_after_nested_recoveries)
{
    ck_assert_int_eq(guard_run(panic_over_recoveries, NULL, NULL), 0);
    trace_expect("fail 3");
    ck_assert_int_eq(guard_run(panic_4, NULL, NULL), 4);
    trace_expect("run inner, run x");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        only_the_token_recovers_and_only_once,
        a_token_is_worth_nothing_once_its_function_returned,
        after_recovery_the_borders_earlier_defers_run_and_the_caller_goes_on,
        recovery_resumes_after_the_border_not_after_the_scope,
        a_recovering_defer_may_look_and_let_go,
        a_panic_raised_and_recovered_inside_a_defer_leaves_the_running_one,
        the_running_panic_reaches_its_border_whatever_was_recovered_on_its_way,
        a_release_recovers_its_own_panic_and_never_the_one_that_runs_it,
        recover_2_panic_3_recover_3_inside_one_defer_shows_the_outer_level_nothing,
        a_panic_after_recovery_is_a_new_one_that_says_what_was_recovered,
        an_earlier_defer_that_fails_after_recovery_fails_the_border,
        a_newer_panic_replaces_an_older_one_and_then_nothing_is_left_to_recover,
        a_defer_registered_inside_a_deferred_function_cannot_recover_the_outer_panic,
        repanicking_six_levels_deep_leaves_no_stale_record,
        no_defer_is_lost_after_nested_recoveries,
    };
    return suite_run("recover", tests, sizeof tests / sizeof *tests);
}
