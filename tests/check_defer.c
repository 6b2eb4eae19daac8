/* SPDX-License-Identifier: MIT */
/* check_defer.c: what is registered runs when its scope ends, in the promised order, once (behaviours 1, 2, 3, 5, 8, 12, 20). */
#include <stdlib.h>
#include <string.h>

#include <guard/guard.h>

#include "suite.h"
#include "trace.h"

static const char *const digits[] = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"};

static void *digit(int number)
{
    return (void *)(uintptr_t)digits[number];
}

/* -------------------------------------------------------------------------------------------- order -- */

/* Go: test/defer.go */
START_TEST(ten_defers_in_a_loop_run_newest_first)
{
    {
        GUARD_AUTO(s);
        for (int i = 0; i < 10; i++) {
            guard_defer(s, trace_run, digit(i));
        }
        ck_assert_str_eq(trace_text(), "");
    }
    trace_expect("run 9, run 8, run 7, run 6, run 5, run 4, run 3, run 2, run 1, run 0");
}
END_TEST

static void register_conditionally(void *arg)
{
    const int *n = arg;
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "1");
    if (*n > 5) {
        guard_defer(s, trace_run, "2");
        if (*n > 8) {
            guard_defer(s, trace_run, "3");
        } else {
            guard_defer(s, trace_run, "4");
        }
    }
    guard_panic(1, "conditional");
}

/* Go: TestConditionalDefers */
START_TEST(only_the_reached_defers_run)
{
    int n = 8;
    ck_assert_int_eq(guard_run(register_conditionally, &n, NULL), 1);
    trace_expect("run 4, run 2, run 1");
}
END_TEST

START_TEST(inner_scopes_run_before_outer_ones)
{
    {
        GUARD_AUTO(outer);
        guard_defer(outer, trace_run, "outer");
        {
            GUARD_AUTO(inner);
            guard_defer(outer, trace_run, "outer, registered later");
            guard_defer(inner, trace_run, "inner");
        }
        trace_expect("run inner");
    }
    trace_expect("run outer, registered later, run outer");
}
END_TEST

static void make(guard_scope *callers)
{
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "temporary");
    guard_defer(callers, trace_run, "returned");
}

START_TEST(what_a_callee_registers_on_its_callers_scope_survives_the_callee)
{
    {
        GUARD_AUTO(s);
        make(s);
        trace_expect("run temporary");
    }
    trace_expect("run returned");
}
END_TEST

static void make_and_panic(void *callers)
{
    make(callers);
    guard_panic(1, "after make");
}

START_TEST(what_a_border_registers_outside_survives_its_panic)
{
    {
        GUARD_AUTO(s);
        ck_assert_int_eq(guard_run(make_and_panic, s, NULL), 1);
        trace_expect("run temporary");
    }
    trace_expect("run returned");
}
END_TEST

static void register_more(void *scope)
{
    trace_add("run first");
    guard_defer((guard_scope *)scope, trace_run, "second");
}

START_TEST(a_deferred_function_may_register_on_the_scope_that_ends)
{
    {
        GUARD_AUTO(s);
        guard_defer(s, trace_run, "last");
        guard_defer(s, register_more, s);
    }
    trace_expect("run first, run second, run last");
    {
        GUARD_AUTO(s);
        guard_defer(s, register_more, s);
    }
    trace_expect("run first, run second");
    guard_scope explicit;
    guard_scope_open(&explicit);
    guard_defer(&explicit, register_more, &explicit);
    guard_scope_close(&explicit);
    trace_expect("run first, run second");
}
END_TEST

/* -------------------------------------------------------------------------------------- ways out -- */

static int leave_by_return(void)
{
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "a");
    return 5;
}

START_TEST(return_runs_the_defers_of_all_blocks_it_leaves)
{
    ck_assert_int_eq(leave_by_return(), 5);
    trace_expect("run a");
}
END_TEST

START_TEST(break_and_continue_run_the_defers_of_the_turn)
{
    for (int i = 0; i < 3; i++) {
        GUARD_AUTO(s);
        guard_defer(s, trace_run, digit(i));
        if (i == 0) {
            continue;
        }
        if (i == 1) {
            break;
        }
    }
    trace_expect("run 0, run 1");
}
END_TEST

START_TEST(goto_out_of_blocks_runs_their_defers)
{
    {
        GUARD_AUTO(outer);
        guard_defer(outer, trace_run, "outer");
        {
            GUARD_AUTO(inner);
            guard_defer(inner, trace_run, "inner");
            goto out;
        }
    }
out:
    trace_expect("run inner, run outer");
}
END_TEST

START_TEST(break_in_the_block_form_leaves_only_the_block)
{
    for (int i = 0; i < 2; i++) {
        GUARD_SCOPE (s) {
            guard_defer(s, trace_run, digit(i));
            break;
        }
        trace_add("turn %d", i);
    }
    trace_expect("run 0, turn 0, run 1, turn 1");
}
END_TEST

START_TEST(the_function_form_runs_at_its_close)
{
    guard_scope s;
    guard_scope_open(&s);
    guard_defer(&s, trace_run, "a");
    guard_defer(&s, trace_run, "b");
    guard_scope_close(&s);
    trace_expect("run b, run a");
    guard_scope_open(&s); /* and can be opened again */
    guard_scope_close(&s);
    trace_expect("");
}
END_TEST

/* ------------------------------------------------------------------------------------- arguments -- */

typedef struct big {
    int numbers[100];
} big;

static int evaluated;

static big make_big(int number)
{
    big made = {{0}};
    evaluated++;
    made.numbers[99] = number;
    return made;
}

static void show_int(void *copy)
{
    trace_add("%d", *(int *)copy);
}

static void show_big(void *copy)
{
    trace_add("%d", ((big *)copy)->numbers[99]);
}

/* Go: TestNonSSAableArgs */
START_TEST(a_copy_has_what_the_argument_was_at_registration)
{
    evaluated = 0;
    {
        GUARD_AUTO(s);
        for (int i = 0; i < 3; i++) {
            guard_defer_copy(s, show_int, &i, sizeof i);
        }
        big argument = make_big(7);
        guard_defer_copy(s, show_big, &argument, sizeof argument);
        argument.numbers[99] = 8;
    }
    trace_expect("7, 2, 1, 0");
    ck_assert_int_eq(evaluated, 1);
}
END_TEST

static void check_bytes(void *copy)
{
    const unsigned char *bytes = copy;
    unsigned size = bytes[0];
    for (unsigned i = 0; i < size; i++) {
        ck_assert_uint_eq(bytes[i], (unsigned char)(size - i));
    }
    ck_assert_uint_eq((uintptr_t)copy % 16, 0);
    trace_add("%u", size);
}

static guard_ticket defer_bytes(guard_scope *scope, unsigned size)
{
    unsigned char bytes[200];
    for (unsigned i = 0; i < size; i++) {
        bytes[i] = (unsigned char)(size - i);
    }
    guard_ticket ticket = guard_defer_copy(scope, check_bytes, bytes, size);
    memset(bytes, 0, sizeof bytes);
    return ticket;
}

static void close_by_itself(unsigned size)
{
    GUARD_AUTO(s);
    defer_bytes(s, size);
}

static void close_by_a_call(unsigned size)
{
    guard_scope s;
    guard_scope_open(&s);
    defer_bytes(&s, size);
    guard_scope_close(&s);
}

static void panic_over_it(void *size)
{
    GUARD_AUTO(s);
    defer_bytes(s, *(unsigned *)size);
    guard_panic(1, "over it");
}

static void panic_in_a_border(unsigned size)
{
    ck_assert_int_eq(guard_run(panic_over_it, &size, NULL), 1);
}

static void release_early(unsigned size)
{
    GUARD_AUTO(s);
    guard_release(defer_bytes(s, size));
    ck_assert_int_eq(atoi(trace_text()), (int)size);
}

static void move_outwards(unsigned size)
{
    GUARD_AUTO(outer);
    GUARD_AUTO(inner);
    guard_move(defer_bytes(inner, size), outer);
}

START_TEST(copies_of_every_size_keep_all_their_bytes_whatever_runs_them)
{
    void (*const ways[])(unsigned) = {close_by_itself, close_by_a_call, panic_in_a_border, release_early,
                                      move_outwards};
    for (unsigned size = 1; size < 200; size++) {
        for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
            ways[i](size);
            ck_assert_int_eq(atoi(trace_text()), (int)size);
            trace_clear();
        }
    }
}
END_TEST

static void run_without_bytes(void *copy)
{
    ck_assert_ptr_nonnull(copy);
    trace_add("run");
}

START_TEST(a_copy_of_no_bytes_runs)
{
    {
        GUARD_AUTO(s);
        guard_defer_copy(s, run_without_bytes, NULL, 0);
    }
    trace_expect("run");
}
END_TEST

static void set_five(void *result)
{
    *(int *)result = 5;
}

static int changed_result(void)
{
    int result = 4;
    {
        GUARD_AUTO(s);
        guard_defer(s, set_five, &result);
        result = 3;
    }
    return result;
}

/* Go: recover.go test5 */
START_TEST(a_deferred_function_can_change_the_result)
{
    ck_assert_int_eq(changed_result(), 5);
}
END_TEST

static void use_a_huge_frame(void *arg)
{
    volatile int numbers[100000];
    numbers[0] = 1;
    numbers[99999] = 1;
    trace_add("%s %d", (const char *)arg, numbers[0] + numbers[99999]);
}

static void panic_below_a_huge_frame(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, use_a_huge_frame, arg);
    guard_panic(6, "six");
}

/* Go: recover.go test6 */
START_TEST(a_deferred_function_may_have_a_huge_frame)
{
    ck_assert_int_eq(guard_run(panic_below_a_huge_frame, "huge", NULL), 6);
    trace_expect("huge 2");
}
END_TEST

/* ---------------------------------------------------------------------------------------- outcome -- */

static void register_by_outcome(guard_scope *s)
{
    guard_defer_on(s, GUARD_ALWAYS, trace_run, "always");
    guard_defer_on(s, GUARD_ON_FAILURE, trace_run, "failure");
    guard_defer_on(s, GUARD_ON_SUCCESS, trace_run, "success");
}

static void register_by_outcome_and_panic(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    register_by_outcome(s);
    guard_panic(1, "failed");
}

static void register_by_outcome_and_recover(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    register_by_outcome(s);
    guard_defer_recover(s, trace_recover, "r");
    guard_panic(1, "failed");
}

START_TEST(a_scope_that_ends_normally_runs_its_on_success_defers)
{
    {
        GUARD_AUTO(s);
        register_by_outcome(s);
    }
    trace_expect("run success, run always");
}
END_TEST

START_TEST(a_scope_that_a_panic_leaves_runs_its_on_failure_defers)
{
    ck_assert_int_eq(guard_run(register_by_outcome_and_panic, NULL, NULL), 1);
    trace_expect("run failure, run always");
}
END_TEST

START_TEST(a_recovered_scope_was_cut_short_and_runs_its_on_failure_defers)
{
    ck_assert_int_eq(guard_run(register_by_outcome_and_recover, NULL, NULL), 0);
    trace_expect("recover r from failed, run failure, run always");
}
END_TEST

START_TEST(guard_fail_makes_a_scope_fail_though_nothing_panics)
{
    {
        GUARD_AUTO(outer);
        register_by_outcome(outer);
        {
            GUARD_AUTO(s);
            register_by_outcome(s);
            guard_fail(s);
        }
        trace_expect("run failure, run always");
    }
    trace_expect("run success, run always"); /* it is that scope's failure only */
    guard_scope s;
    guard_scope_open(&s);
    register_by_outcome(&s);
    guard_fail(&s);
    guard_scope_close(&s);
    trace_expect("run failure, run always");
}
END_TEST

/* -------------------------------------------------------------------------------------- results -- */

static void set_then_panic(void *result)
{
    *(int *)result = 2;
    guard_panic(1, "after the result");
}

/* Go: fixedbugs/issue4066.go */
START_TEST(a_result_set_before_the_panic_survives_it)
{
    int result = 0;
    ck_assert_int_eq(guard_run(set_then_panic, &result, NULL), 1);
    ck_assert_int_eq(result, 2);
}
END_TEST

/* Go: fixedbugs/bug266.go */
START_TEST(an_error_is_not_touched_when_nothing_panicked)
{
    guard_error error;
    guard_error before;
    memset(&error, 0x5A, sizeof error);
    before = error;
    ck_assert_int_eq(guard_run(trace_run, "a", &error), 0);
    ck_assert_mem_eq(&error, &before, sizeof error);
    ck_assert_int_eq(guard_run(register_by_outcome_and_recover, NULL, &error), 0);
    ck_assert_mem_eq(&error, &before, sizeof error);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        ten_defers_in_a_loop_run_newest_first,
        only_the_reached_defers_run,
        inner_scopes_run_before_outer_ones,
        what_a_callee_registers_on_its_callers_scope_survives_the_callee,
        what_a_border_registers_outside_survives_its_panic,
        a_deferred_function_may_register_on_the_scope_that_ends,
        return_runs_the_defers_of_all_blocks_it_leaves,
        break_and_continue_run_the_defers_of_the_turn,
        goto_out_of_blocks_runs_their_defers,
        break_in_the_block_form_leaves_only_the_block,
        the_function_form_runs_at_its_close,
        a_copy_has_what_the_argument_was_at_registration,
        copies_of_every_size_keep_all_their_bytes_whatever_runs_them,
        a_copy_of_no_bytes_runs,
        a_deferred_function_can_change_the_result,
        a_deferred_function_may_have_a_huge_frame,
        a_scope_that_ends_normally_runs_its_on_success_defers,
        a_scope_that_a_panic_leaves_runs_its_on_failure_defers,
        a_recovered_scope_was_cut_short_and_runs_its_on_failure_defers,
        guard_fail_makes_a_scope_fail_though_nothing_panics,
        a_result_set_before_the_panic_survives_it,
        an_error_is_not_touched_when_nothing_panicked,
    };
    return suite_run("defer", tests, sizeof tests / sizeof *tests);
}
