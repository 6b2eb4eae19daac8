/* SPDX-License-Identifier: MIT */
/* check_try.c: the thin block form, GUARD_TRY and GUARD_CATCH. */
#include <guard/guard.h>

#include "suite.h"
#include "trace.h"

static guard_error error;

static void expect_no_border(void)
{
    /* A border that were still linked would catch this one's panic. */
    ck_assert_int_eq(guard_run(trace_fail, "check", NULL), TRACE_FAILED);
    trace_clear();
}

START_TEST(a_block_that_does_not_panic_skips_the_catch)
{
    GUARD_TRY(&error)
    {
        GUARD_AUTO(s);
        guard_defer(s, trace_run, "defer");
        trace_add("block");
    }
    GUARD_CATCH
    {
        trace_add("catch");
    }
    trace_expect("block, run defer");
    expect_no_border();
}
END_TEST

START_TEST(a_panic_runs_the_defers_and_then_the_catch_with_its_error)
{
    GUARD_TRY(&error)
    {
        GUARD_AUTO(s);
        guard_defer(s, trace_run, "defer");
        trace_fail("x");
    }
    GUARD_CATCH
    {
        trace_add("catch %s", error.message);
    }
    trace_add("after");
    trace_expect("fail x, run defer, catch x, after");
    expect_no_border();
}
END_TEST

START_TEST(the_error_may_be_left_out)
{
    volatile int caught = 0;
    GUARD_TRY(NULL)
    {
        trace_fail("x");
    }
    GUARD_CATCH
    {
        caught = 1;
    }
    ck_assert_int_eq(caught, 1);
}
END_TEST

START_TEST(a_recovered_block_runs_neither_its_rest_nor_the_catch)
{
    GUARD_TRY(&error)
    {
        GUARD_AUTO(s);
        guard_defer_recover(s, trace_recover, "r");
        trace_fail("x");
        trace_add("rest");
    }
    GUARD_CATCH
    {
        trace_add("catch");
    }
    trace_expect("fail x, recover r from x");
    expect_no_border();
}
END_TEST

static int return_out(void)
{
    GUARD_TRY(&error)
    {
        GUARD_AUTO(s);
        guard_defer(s, trace_run, "defer");
        return 7;
    }
    GUARD_CATCH
    {
        return 8;
    }
    return 9;
}

START_TEST(return_out_of_the_block_leaves_it_whole)
{
    ck_assert_int_eq(return_out(), 7);
    trace_expect("run defer");
    expect_no_border();
}
END_TEST

static int return_from_the_catch(void)
{
    GUARD_TRY(&error)
    {
        trace_fail("x");
    }
    GUARD_CATCH
    {
        return error.code;
    }
    return 0;
}

START_TEST(return_from_the_catch_returns)
{
    ck_assert_int_eq(return_from_the_catch(), TRACE_FAILED);
    expect_no_border();
}
END_TEST

START_TEST(break_and_continue_leave_the_block_only)
{
    for (volatile int i = 0; i < 2; i++) {
        GUARD_TRY(&error)
        {
            if (i == 0) {
                break;
            }
            continue;
        }
        GUARD_CATCH
        {
            trace_add("catch");
        }
        trace_add("turn %d", i);
    }
    trace_expect("turn 0, turn 1");
    expect_no_border();
}
END_TEST

START_TEST(goto_out_of_the_block_leaves_it_whole)
{
    GUARD_TRY(&error)
    {
        GUARD_AUTO(s);
        guard_defer(s, trace_run, "defer");
        goto out;
    }
    GUARD_CATCH
    {
        trace_add("catch");
    }
    trace_add("not reached");
out:
    trace_expect("run defer");
    expect_no_border();
}
END_TEST

START_TEST(blocks_nest_and_the_inner_catch_may_raise_to_the_outer_one)
{
    guard_error inner;
    GUARD_TRY(&error)
    {
        GUARD_TRY(&inner)
        {
            trace_fail("x");
        }
        GUARD_CATCH
        {
            trace_add("inner catch");
            guard_panic_error(&inner);
        }
        trace_add("not reached");
    }
    GUARD_CATCH
    {
        trace_add("outer catch %s", error.message);
    }
    trace_expect("fail x, inner catch, outer catch x");
    expect_no_border();
}
END_TEST

static void try_inside(void *arg)
{
    guard_error inner;
    GUARD_TRY(&inner)
    {
        trace_fail(arg);
    }
    GUARD_CATCH
    {
        trace_add("caught");
    }
    guard_panic(3, "later");
}

START_TEST(a_block_inside_a_border_gives_the_border_back)
{
    ck_assert_int_eq(guard_run(try_inside, "x", &error), 3);
    trace_expect("fail x, caught");
}
END_TEST

START_TEST(a_panic_held_at_the_end_of_the_block_is_caught)
{
    GUARD_TRY(&error)
    {
        trace_hold("held");
        trace_add("end of the block");
    }
    GUARD_CATCH
    {
        trace_add("catch %s", error.message);
    }
    trace_expect("fail held, end of the block, catch held");
    expect_no_border();
}
END_TEST

static int return_while_held(void)
{
    GUARD_TRY(&error)
    {
        trace_hold("held");
        return 7;
    }
    GUARD_CATCH
    {
        trace_add("catch");
    }
    return 8;
}

static void call_what_returns_while_held(void *arg)
{
    (void)arg;
    trace_add("returned %d", return_while_held());
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "not reached");
}

START_TEST(a_panic_held_when_the_block_is_left_by_return_waits_for_the_next_call)
{
    ck_assert_int_eq(guard_run(call_what_returns_while_held, NULL, &error), TRACE_FAILED);
    trace_expect("fail held, returned 7");
}
END_TEST

START_TEST(volatile_locals_survive_the_panic)
{
    volatile int steps = 0;
    GUARD_TRY(&error)
    {
        steps = 1;
        trace_run("a");
        steps = 2;
        trace_fail("x");
        steps = 3;
    }
    GUARD_CATCH
    {
        ck_assert_int_eq(steps, 2);
    }
    ck_assert_int_eq(steps, 2);
}
END_TEST

static void open_in_the_block(void *arg)
{
    (void)arg;
    guard_scope forgotten;
    GUARD_TRY(NULL)
    {
        guard_scope_open(&forgotten);
        guard_defer(&forgotten, trace_run, "forgotten");
    }
    GUARD_CATCH
    {
        trace_add("catch");
    }
    trace_add("after");
}

START_TEST(a_scope_left_open_at_the_end_of_the_block_is_misuse_that_it_catches)
{
    ck_assert_int_eq(guard_run(open_in_the_block, NULL, &error), 0);
    trace_expect("catch, after");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_block_that_does_not_panic_skips_the_catch,
        a_panic_runs_the_defers_and_then_the_catch_with_its_error,
        the_error_may_be_left_out,
        a_recovered_block_runs_neither_its_rest_nor_the_catch,
        return_out_of_the_block_leaves_it_whole,
        return_from_the_catch_returns,
        break_and_continue_leave_the_block_only,
        goto_out_of_the_block_leaves_it_whole,
        blocks_nest_and_the_inner_catch_may_raise_to_the_outer_one,
        a_block_inside_a_border_gives_the_border_back,
        a_panic_held_at_the_end_of_the_block_is_caught,
        a_panic_held_when_the_block_is_left_by_return_waits_for_the_next_call,
        volatile_locals_survive_the_panic,
        a_scope_left_open_at_the_end_of_the_block_is_misuse_that_it_catches,
    };
    return suite_run("try", tests, sizeof tests / sizeof *tests);
}
