/* SPDX-License-Identifier: MIT */
/*
 * check_held.c: a panic that an automatic close raises is held until the next call of the library, or the end of the border.
 * tests/held_panics.c proves the same whatever the compiler does with the frames.
 */
#include <string.h>

#include <guard/guard.h>

#include "suite.h"
#include "trace.h"

static guard_error error;

static void expect_cause(unsigned index, guard_relation relation, const char *message)
{
    ck_assert_uint_lt(index, error.cause_count);
    ck_assert_str_eq(error.causes[index].message, message);
    ck_assert_int_eq(error.causes[index].relation, relation);
}

/* ------------------------------------------------------------------------------------ where it goes -- */

static int leave_by_return(void)
{
    GUARD_AUTO(s);
    guard_defer(s, trace_fail, "held");
    return 5;
}

static void return_through(void *result)
{
    *(int *)result = leave_by_return();
    trace_add("the code after it runs");
}

START_TEST(the_function_returns_and_its_border_returns_the_held_panic)
{
    int result = 0;
    ck_assert_int_eq(guard_run(return_through, &result, &error), TRACE_FAILED);
    trace_expect("fail held, the code after it runs");
    ck_assert_int_eq(result, 5);
    ck_assert_str_eq(error.message, "held");
    ck_assert_str_eq(error.function, "trace_fail");
}
END_TEST

typedef struct held_call {
    const char *name;
    void (*call)(void);
} held_call;

static guard_scope *outside;
static guard_owner *owner;
static guard_ticket ticket;
static guard_latch latch;

static void call_open(void)
{
    guard_scope s;
    guard_scope_open(&s);
    trace_add("went on");
    guard_scope_close(&s);
}

static void call_auto(void)
{
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "WRONG");
}

static void call_close(void)
{
    guard_scope_close(outside);
    trace_add("went on");
}

static void call_fail(void)
{
    guard_fail(outside);
}

static void call_reserve(void)
{
    guard_reserve(outside, 1);
}

static void call_owner_new(void)
{
    guard_owner_close(guard_owner_new());
}

static void call_owner_close(void)
{
    guard_owner_close(owner);
}

static void call_dismiss(void)
{
    guard_dismiss(ticket);
}

static void call_release(void)
{
    guard_release(ticket);
}

static void call_move(void)
{
    guard_move(ticket, guard_owner_scope(owner));
}

static void call_run(void)
{
    ck_assert_int_eq(guard_run(trace_run, "WRONG", NULL), 0);
}

static void call_try(void)
{
    GUARD_TRY(NULL)
    {
        trace_add("WRONG");
    }
    GUARD_CATCH
    {
        trace_add("WRONG");
    }
}

static void call_latch_raise(void)
{
    guard_latch_raise(&latch);
}

static void call_raise_held(void)
{
    guard_raise_held();
}

static const held_call calls[] = {
    {"guard_scope_open", call_open},
    {"GUARD_AUTO", call_auto},
    {"guard_scope_close", call_close},
    {"guard_fail", call_fail},
    {"guard_reserve", call_reserve},
    {"guard_owner_new", call_owner_new},
    {"guard_owner_close", call_owner_close},
    {"guard_dismiss", call_dismiss},
    {"guard_release", call_release},
    {"guard_move", call_move},
    {"guard_run", call_run},
    {"GUARD_TRY", call_try},
    {"guard_latch_raise", call_latch_raise},
    {"guard_raise_held", call_raise_held},
};

static void call_while_held(void *arg)
{
    const held_call *this = arg;
    guard_scope s;
    guard_scope_open(&s);
    outside = &s;
    owner = guard_owner_new();
    guard_defer_kind(&s, &guard_owner_kind, owner);
    ticket = guard_defer(&s, trace_run, "ticket");
    guard_latch_open(&latch);
    trace_hold("held");
    trace_add("before");
    this->call();
    trace_add("not reached");
    guard_scope_close(&s);
}

START_TEST(each_call_of_the_library_raises_the_held_panic_before_it_does_anything)
{
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        held_call this = calls[i];
        if (this.call == call_owner_close) {
            continue; /* closes the owner all the same, see the next test */
        }
        ck_assert_int_eq(guard_run(call_while_held, &this, &error), TRACE_FAILED);
        ck_assert_msg(strcmp(trace_text(), "fail held, before, run ticket") == 0, "%s: %s", this.name, trace_text());
        ck_assert_str_eq(error.message, "held");
        ck_assert_uint_eq(error.cause_count, 0);
        trace_clear();
    }
}
END_TEST

static void close_an_owner_while_held(void *arg)
{
    (void)arg;
    guard_owner *closed = guard_owner_new();
    guard_defer_on(guard_owner_scope(closed), GUARD_ON_FAILURE, trace_run, "in the owner");
    trace_hold("held");
    guard_owner_close(closed);
}

START_TEST(closing_an_owner_while_a_panic_is_held_closes_it_in_the_panic)
{
    ck_assert_int_eq(guard_run(close_an_owner_while_held, NULL, &error), TRACE_FAILED);
    trace_expect("fail held, run in the owner");
}
END_TEST

typedef void register_form(guard_scope *scope);

static void form_plain(guard_scope *scope)
{
    guard_defer(scope, trace_run, "x");
}

static void form_on(guard_scope *scope)
{
    guard_defer_on(scope, GUARD_ON_FAILURE, trace_run, "x");
}

static void form_kind(guard_scope *scope)
{
    guard_defer_kind(scope, &trace_kind, "x");
}

static void form_copy(guard_scope *scope)
{
    const char *name = "x";
    guard_defer_copy(scope, trace_run_copy, &name, sizeof name);
}

static void register_while_held(void *form)
{
    GUARD_AUTO(s);
    trace_hold("held");
    (*(register_form **)form)(s);
    trace_add("not reached");
}

START_TEST(what_is_registered_while_a_panic_is_held_is_released_before_it_is_raised)
{
    register_form *forms[] = {form_plain, form_on, form_kind, form_copy};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        ck_assert_int_eq(guard_run(register_while_held, &forms[i], &error), TRACE_FAILED);
        trace_expect(forms[i] == form_kind ? "fail held, release x" : "fail held, run x");
        ck_assert_str_eq(error.message, "held");
    }
}
END_TEST

static void panic_while_held(void *arg)
{
    (void)arg;
    trace_hold("held");
    guard_panic(3, "newer");
}

START_TEST(a_panic_raised_while_one_is_held_replaces_it)
{
    ck_assert_int_eq(guard_run(panic_while_held, NULL, &error), 3);
    ck_assert_uint_eq(error.cause_count, 1);
    expect_cause(0, GUARD_REPLACED, "held");
}
END_TEST

static void query_while_held(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_ticket pending = guard_defer(s, trace_run, "p");
    guard_error filled;
    trace_hold("held");
    ck_assert_int_eq(guard_pending(pending), 1);
    ck_assert_ptr_null(guard_panicking());
    ck_assert_int_eq(guard_recover(NULL), 0);
    guard_error_set(&filled, 1, 2, "three");
    guard_deallocate(guard_allocate(10));
    trace_add("went on");
}

START_TEST(queries_errors_and_memory_do_not_raise_it)
{
    ck_assert_int_eq(guard_run(query_while_held, NULL, &error), TRACE_FAILED);
    trace_expect("fail held, went on, run p");
}
END_TEST

/* ------------------------------------------------------------------------------------- the rest -- */

static void fail_among_others(void *arg)
{
    (void)arg;
    {
        GUARD_AUTO(s);
        guard_defer_on(s, GUARD_ON_SUCCESS, trace_run, "WRONG");
        guard_defer_on(s, GUARD_ON_FAILURE, trace_run, "failure");
        guard_defer_recover(s, trace_see, "look");
        guard_defer_kind(s, &trace_kind, "kind");
        guard_defer(s, trace_fail, "held");
        guard_defer_on(s, GUARD_ON_SUCCESS, trace_run, "success until then");
    }
    trace_add("after");
}

START_TEST(the_rest_of_the_scope_runs_in_the_name_of_the_held_panic)
{
    ck_assert_int_eq(guard_run(fail_among_others, NULL, &error), TRACE_FAILED);
    trace_expect("run success until then, fail held, release kind, look sees held, run failure, after");
}
END_TEST

static void fail_twice(void *kinds)
{
    {
        GUARD_AUTO(s);
        if (kinds != NULL) {
            guard_defer_kind(s, &trace_failing_kind, "second");
        } else {
            guard_defer(s, trace_fail, "second");
        }
        guard_defer(s, trace_run, "between");
        guard_defer(s, trace_fail, "first");
    }
    trace_add("after");
}

START_TEST(a_second_failing_defer_replaces_the_held_panic_and_a_failing_cleanup_is_attached)
{
    ck_assert_int_eq(guard_run(fail_twice, NULL, &error), TRACE_FAILED);
    trace_expect("fail first, run between, fail second, after");
    ck_assert_str_eq(error.message, "second");
    expect_cause(0, GUARD_REPLACED, "first");
    ck_assert_int_eq(guard_run(fail_twice, "kinds", &error), TRACE_FAILED);
    trace_expect("fail first, run between, fail second, after");
    ck_assert_str_eq(error.message, "first");
    expect_cause(0, GUARD_ATTACHED, "second");
}
END_TEST

static void fail_in_nested_scopes(void *kinds)
{
    const guard_kind *kind = kinds;
    {
        GUARD_AUTO(outer);
        guard_defer_kind(outer, kind, "outer");
        GUARD_AUTO(middle);
        guard_defer_recover(middle, trace_see, "middle");
        GUARD_AUTO(inner);
        guard_defer_kind(inner, kind, "inner");
    }
    trace_add("after");
}

START_TEST(panics_held_in_nested_scopes_are_attached_to_the_first)
{
    ck_assert_int_eq(guard_run(fail_in_nested_scopes, (void *)(uintptr_t)&trace_failing_kind, &error), TRACE_FAILED);
    trace_expect("fail inner, middle sees inner, fail outer, after");
    ck_assert_str_eq(error.message, "inner");
    ck_assert_uint_eq(error.cause_count, 1);
    expect_cause(0, GUARD_ATTACHED, "outer");
}
END_TEST

/* ----------------------------------------------------------------------------------- recovering -- */

static void recover_in_an_outer_scope(void *arg)
{
    (void)arg;
    {
        GUARD_AUTO(outer);
        guard_defer_recover(outer, trace_see, "last");
        guard_defer_on(outer, GUARD_ON_FAILURE, trace_run, "it failed all the same");
        guard_defer_recover(outer, trace_recover, "r");
        trace_hold("held");
    }
    trace_add("after");
    guard_raise_held();
}

START_TEST(a_recovering_defer_of_an_outer_scope_ends_the_held_panic_and_the_function_goes_on)
{
    ck_assert_int_eq(guard_run(recover_in_an_outer_scope, NULL, NULL), 0);
    trace_expect("fail held, recover r from held, run it failed all the same, last sees nothing, after");
}
END_TEST

static void leave_one_held_after_recovery(guard_recovery *recovery, void *arg)
{
    (void)arg;
    trace_recover(recovery, "r");
    trace_hold("newer");
}

static void hold_again_while_recovering(void *panics)
{
    {
        GUARD_AUTO(s);
        guard_defer_recover(s, trace_recover, "outer");
        guard_defer_recover(s, leave_one_held_after_recovery, NULL);
        if (panics != NULL) {
            guard_panic(1, "held");
        }
        trace_hold("held");
    }
    trace_add("after");
}

START_TEST(what_is_held_after_a_recovery_is_seen_by_the_next_recovering_defer)
{
    ck_assert_int_eq(guard_run(hold_again_while_recovering, NULL, NULL), 0);
    trace_expect("fail held, recover r from held, fail newer, recover outer from newer, after");
    ck_assert_int_eq(guard_run(hold_again_while_recovering, "panics", NULL), 0);
    trace_expect("recover r from held, fail newer, recover outer from newer");
}
END_TEST

/* --------------------------------------------------------------------------- in deferred functions -- */

static void hold_inside(void *message)
{
    trace_hold(message);
    trace_add("goes on");
}

static void hold_in_a_defer_of_a_panic(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "rest");
    guard_defer(s, hold_inside, "cleanup");
    guard_panic(1, "original");
}

START_TEST(what_a_deferred_function_holds_during_a_panic_is_attached_to_it)
{
    ck_assert_int_eq(guard_run(hold_in_a_defer_of_a_panic, NULL, &error), 1);
    trace_expect("fail cleanup, goes on, run rest");
    ck_assert_uint_eq(error.cause_count, 1);
    expect_cause(0, GUARD_ATTACHED, "cleanup");
}
END_TEST

static void contain_a_held_one(void *message)
{
    guard_error inner;
    ck_assert_int_eq(guard_run(hold_inside, message, &inner), TRACE_FAILED);
    ck_assert_str_eq(inner.message, message);
    trace_add("contained");
}

static void contain_a_held_one_in_a_defer(void *arg)
{
    (void)arg;
    {
        GUARD_AUTO(s);
        guard_defer(s, contain_a_held_one, "second");
        guard_defer(s, trace_fail, "first");
    }
    trace_add("after");
}

START_TEST(a_border_inside_a_deferred_function_holds_and_returns_its_own)
{
    ck_assert_int_eq(guard_run(contain_a_held_one_in_a_defer, NULL, &error), TRACE_FAILED);
    trace_expect("fail first, fail second, goes on, contained, after");
    ck_assert_str_eq(error.message, "first");
    ck_assert_uint_eq(error.cause_count, 0);
}
END_TEST

static void hold_inside_and_call(void *message)
{
    trace_hold(message);
    guard_raise_held();
    trace_add("not reached");
}

static void call_in_a_leaving_defer(void *arg)
{
    (void)arg;
    {
        GUARD_AUTO(s);
        guard_defer_recover(s, trace_see, "look");
        guard_defer(s, hold_inside_and_call, "raised inside");
    }
    trace_add("after");
}

START_TEST(one_that_is_raised_inside_a_deferred_function_is_held_by_the_close_that_runs_it)
{
    ck_assert_int_eq(guard_run(call_in_a_leaving_defer, NULL, &error), TRACE_FAILED);
    trace_expect("fail raised inside, look sees raised inside, after");
}
END_TEST

static void close_explicitly_inside(void *arg)
{
    (void)arg;
    guard_scope explicit;
    guard_scope_open(&explicit);
    guard_defer(&explicit, trace_run, "rest of the explicit scope");
    guard_defer(&explicit, trace_fail, "explicit");
    guard_scope_close(&explicit);
    trace_add("not reached");
}

static void explicit_in_a_leaving_defer(void *arg)
{
    (void)arg;
    {
        GUARD_AUTO(s);
        guard_defer(s, trace_run, "rest");
        guard_defer(s, close_explicitly_inside, NULL);
    }
    trace_add("after");
}

START_TEST(the_scopes_of_a_panicking_deferred_function_run_before_the_rest_of_the_close)
{
    ck_assert_int_eq(guard_run(explicit_in_a_leaving_defer, NULL, &error), TRACE_FAILED);
    trace_expect("fail explicit, run rest of the explicit scope, run rest, after");
}
END_TEST

static void fail_silently(void *arg)
{
    (void)arg;
    guard_panic(5, "silent");
}

static void ten_thousand_fail(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    for (int i = 0; i < 10000; i++) {
        guard_defer(s, fail_silently, NULL);
    }
}

START_TEST(ten_thousand_failing_defers_of_one_close_do_not_use_up_the_stack)
{
    ck_assert_int_eq(guard_run(ten_thousand_fail, NULL, &error), 5);
    ck_assert_uint_eq(error.cause_count, GUARD_CAUSES);
    ck_assert_uint_eq(error.cause_more, 255);
}
END_TEST

static void commit_like_an_adapter(void *arg)
{
    (void)arg;
    trace_hold("cleanup before COMMIT");
    guard_raise_held();
    trace_add("COMMIT");
}

START_TEST(an_adapter_asks_before_it_commits)
{
    ck_assert_int_eq(guard_run(commit_like_an_adapter, NULL, &error), TRACE_FAILED);
    trace_expect("fail cleanup before COMMIT");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        the_function_returns_and_its_border_returns_the_held_panic,
        each_call_of_the_library_raises_the_held_panic_before_it_does_anything,
        closing_an_owner_while_a_panic_is_held_closes_it_in_the_panic,
        what_is_registered_while_a_panic_is_held_is_released_before_it_is_raised,
        a_panic_raised_while_one_is_held_replaces_it,
        queries_errors_and_memory_do_not_raise_it,
        the_rest_of_the_scope_runs_in_the_name_of_the_held_panic,
        a_second_failing_defer_replaces_the_held_panic_and_a_failing_cleanup_is_attached,
        panics_held_in_nested_scopes_are_attached_to_the_first,
        a_recovering_defer_of_an_outer_scope_ends_the_held_panic_and_the_function_goes_on,
        what_is_held_after_a_recovery_is_seen_by_the_next_recovering_defer,
        what_a_deferred_function_holds_during_a_panic_is_attached_to_it,
        a_border_inside_a_deferred_function_holds_and_returns_its_own,
        one_that_is_raised_inside_a_deferred_function_is_held_by_the_close_that_runs_it,
        the_scopes_of_a_panicking_deferred_function_run_before_the_rest_of_the_close,
        ten_thousand_failing_defers_of_one_close_do_not_use_up_the_stack,
        an_adapter_asks_before_it_commits,
    };
    return suite_run("held", tests, sizeof tests / sizeof *tests);
}
