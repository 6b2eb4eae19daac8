/* SPDX-License-Identifier: MIT */
/*
 * check_conformance_runtime.c: Go's runtime/defer_test.go, and those programs of crash_test.go that are about defer, panic and recover,
 * restated. Those that other programs restate are in guard/CONFORMANCE.md.
 */
#include <string.h>

#include <guard/guard.h>

#include "child.h"
#include "conform.h"
#include "suite.h"

/* ----------------------------------------------------------------------------------------- defer_test.go -- */

static void unconditional_panic(void *code)
{
    GUARD_AUTO(s);
    guard_defer_recover(s, must_recover, code);
    raise_code(code);
}

/* TestUnconditionalPanic */
START_TEST(a_panic_at_the_end_of_a_function_is_recovered)
{
    call_go(unconditional_panic, as_arg(1));
    trace_expect("recovered 1");
}
END_TEST

static void test_open(void *arg)
{
    GUARD_AUTO(s);
    guard_defer_recover(s, must_recover, as_arg(4));
    if (*(int *)arg > 2) {
        raise_code(as_arg(4));
    }
}

static void open_and_non_open(void *order)
{
    int forty_seven = 47;
    int open_first = *(int *)order;
    GUARD_AUTO(s);
    if (open_first) {
        call_go(test_open, &forty_seven);
    }
    for (;;) {
        guard_defer_recover(s, must_recover, as_arg(3));
        if (forty_seven > 2) {
            break;
        }
    }
    if (!open_first) {
        call_go(test_open, &forty_seven);
    }
    raise_code(as_arg(3));
}

/* TestOpenAndNonOpenDefers, TestNonOpenAndOpenDefers */
START_TEST(a_defer_in_a_loop_and_one_in_a_callee_recover_each_their_own)
{
    for (int order = 0; order < 2; order++) {
        call_go(open_and_non_open, &order);
        trace_expect("recovered 4, recovered 3");
    }
}
END_TEST

static void never_reached(void *arg)
{
    switch (*(int *)arg) {
    case -1: {
        GUARD_AUTO(s);
        guard_defer(s, trace_run, "not reached");
    }
    }
    if (*(int *)arg == -2) {
        GUARD_AUTO(s);
        guard_defer(s, trace_run, "not reached");
    }
}

/* TestDisappearingDefer; fixedbugs/issue47712.go, issue48459.go, issue51839.go */
START_TEST(a_defer_that_is_not_reached_does_not_run)
{
    int zero = 0;
    call_go(never_reached, &zero);
    trace_expect("");
}
END_TEST

static __attribute__((noinline)) void grow_stack(volatile int *x, int n)
{
    volatile char frame[128];
    frame[0] = (char)n;
    ++*x;
    if (n > 0) {
        grow_stack(x, n - 1);
    }
    (void)frame[0];
}

static void see_cond(void *cond)
{
    ck_assert_int_eq(*(volatile int *)cond, 2);
    trace_add("cond 2");
}

static void no_exit(void *code)
{
    volatile int cond = 1;
    volatile int x = 0;
    GUARD_AUTO(s);
    guard_defer_recover(s, must_recover, code);
    guard_defer(s, see_cond, (void *)(uintptr_t)&cond);
    grow_stack(&x, 1000);
    cond = 2;
    raise_code(code);
    for (;;) {
    }
}

/* TestDeferForFuncWithNoExit */
START_TEST(a_function_that_never_returns_runs_its_defers_in_a_panic)
{
    call_go(no_exit, as_arg(9));
    trace_expect("cond 2, recovered 9");
}
END_TEST

typedef struct arguments {
    int a[9];
    int seen[9];
    int panics;
} arguments;

static void method(void *count)
{
    ++*(int *)count;
}

static void take_arguments(guard_recovery *recovery, void *arg)
{
    arguments *p = arg;
    guard_recover(recovery);
    memcpy(p->seen, p->a, sizeof p->a);
}

static int methods;

static void ff1(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, method, &methods);
    guard_defer_recover(s, take_arguments, arg);
    raise_code(as_arg(1));
}

static void g2(void)
{
    arguments p = {.a = {1, 2, 3, 4, 5, 6, 7, 8, 9}};
    volatile int x = 0;
    GUARD_AUTO(s);
    for (int i = 0; i < 1; i++) {
        guard_defer(s, method, &methods);
    }
    guard_defer(s, method, &methods);
    guard_defer(s, method, &methods);
    call_go(ff1, &p);
    ck_assert_mem_eq(p.seen, p.a, sizeof p.a);
    grow_stack(&x, 2000);
}

static __attribute__((noinline)) void g3(void)
{
    volatile char frame[512];
    frame[0] = 0;
    g2();
    (void)frame[0];
}

/* TestIssue37688 */
START_TEST(defers_of_loops_and_of_callees_with_many_arguments_mix)
{
    methods = 0;
    for (int j = 0; j < 10; j++) {
        g2();
        g3();
    }
    ck_assert_int_eq(methods, 80);
}
END_TEST

static void raise_and_recover(void *code)
{
    GUARD_AUTO(s);
    guard_defer_recover(s, must_recover, code);
    raise_code(code);
}

static void panic_1_over_4(void)
{
    GUARD_AUTO(s);
    for (;;) {
        guard_defer(s, trace_run, "loop");
        break;
    }
    guard_defer(s, raise_and_recover, as_arg(4));
    raise_code(as_arg(1));
}

static void issue43921(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, must_recover, as_arg(1));
    panic_1_over_4();
}

/* TestIssue43921 */
START_TEST(a_panic_recovered_in_a_deferred_function_leaves_the_outer_frames_defers_in_order)
{
    call_go(issue43921, NULL);
    trace_expect("recovered 4, run loop, recovered 1");
}
END_TEST

static void panic_4_then_5(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, must_recover, as_arg(5));
    guard_defer(s, raise_code, as_arg(5));
    raise_code(as_arg(4));
}

static void panic_3_then_4_then_5(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, panic_4_then_5, NULL);
    guard_defer_recover(s, must_recover, as_arg(3));
    guard_defer(s, raise_code, as_arg(3));
}

static void panic_1_with_a_step(void)
{
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "step 1");
    raise_code(as_arg(1));
}

static void issue43920(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, must_recover, as_arg(1));
    guard_defer(s, panic_3_then_4_then_5, NULL);
    panic_1_with_a_step();
}

/* TestIssue43920 */
START_TEST(panics_raised_and_recovered_three_deep_inside_a_deferred_function)
{
    call_go(issue43920, NULL);
    trace_expect("run step 1, recovered 3, recovered 5, recovered 1");
}
END_TEST

static void panic_2_then_3(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, must_recover, as_arg(3));
    guard_defer(s, raise_code, as_arg(3));
    raise_code(as_arg(2));
}

static void return_into_panics(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, panic_2_then_3, NULL);
    guard_defer_recover(s, must_recover, as_arg(1));
    guard_defer(s, raise_code, as_arg(1));
}

static void steps_after_recoveries(void)
{
    GUARD_AUTO(s);
    call_go(return_into_panics, NULL);
    guard_defer(s, trace_run, "step 10");
    guard_defer(s, trace_run, "step 9");
    trace_add("step 8");
}

static void panic_4_with_a_step(void)
{
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "step 11");
    raise_code(as_arg(4));
}

static void panic_through_steps(void)
{
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "step 13");
    guard_defer(s, trace_run, "step 12");
    panic_4_with_a_step();
    guard_defer(s, raise_code, as_arg(-1));
    guard_defer(s, trace_run, "step -1");
}

static void issue43941(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, must_recover, as_arg(4));
    steps_after_recoveries();
    panic_through_steps();
}

/* TestIssue43941 */
START_TEST(no_step_is_lost_or_added_by_panics_that_were_recovered_before)
{
    call_go(issue43941, NULL);
    trace_expect("recovered 1, recovered 3, step 8, run step 9, run step 10, run step 11, run step 12, run step 13, "
                 "recovered 4");
}
END_TEST

/* ----------------------------------------------------------------------------------------- crash_test.go -- */

static child_result result;

static void panic_text(const char *text)
{
    guard_panic(1, "%s", text);
}

static void defer_panic(void *text)
{
    panic_text(text);
}

static void print_recovered(guard_recovery *recovery, void *arg)
{
    (void)arg;
    guard_note("%s", recovery != NULL ? guard_recovery_error(recovery)->message : "nil");
    guard_recover(recovery);
}

/* The text begins with these lines; the place of a panic is cut off. */
static void expect_output(const char *lines)
{
    char text[sizeof result.text];
    size_t used = 0;
    child_expect_abort(&result);
    for (const char *at = result.text; *at != '\0';) {
        size_t line = strcspn(at, "\n");
        const char *place = strstr(at, " [user 1] at ");
        size_t kept = place != NULL && place < at + line ? (size_t)(place - at) : line;
        memcpy(text + used, at, kept);
        used += kept;
        if (place != NULL && place < at + line && strncmp(at + line - 12, " [recovered]", 12) == 0) {
            memcpy(text + used, " [recovered]", 12);
            used += 12;
        }
        text[used++] = '\n';
        at += line + (at[line] == '\n');
    }
    text[used] = '\0';
    ck_assert_msg(strncmp(text, lines, strlen(lines)) == 0, "not \"%s\" but \"%s\"", lines, text);
}

static void wrap(guard_recovery *recovery, void *arg)
{
    (void)arg;
    if (recovery != NULL) {
        guard_error inner = *guard_recovery_error(recovery);
        guard_recover(recovery);
        guard_panic(1, "wrap: %s", inner.message);
    }
}

static void panic_and_wrap(void)
{
    volatile char x[8192];
    x[0] = 0;
    GUARD_AUTO(s);
    guard_defer_recover(s, wrap, NULL);
    panic_text("bad");
    (void)x[0];
}

static void recover_the_wrapped(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, print_recovered, NULL);
    panic_and_wrap();
}

static void recursive_panic(void *arg)
{
    call_go(recover_the_wrapped, arg);
    panic_text("again");
}

/* TestRecursivePanic */
START_TEST(a_panic_in_place_of_a_recovered_one_is_recovered_further_out)
{
    child_run(recursive_panic, NULL, &result);
    expect_output("guard: note: wrap: bad\npanic: again\n");
}
END_TEST

static void recover_then_panic(void)
{
    GUARD_AUTO(s);
    guard_defer(s, defer_panic, "second panic");
    guard_defer_recover(s, print_recovered, NULL);
    panic_text("first panic");
}

static void recover_the_second(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, print_recovered, NULL);
    recover_then_panic();
}

static void recursive_panic2(void *arg)
{
    call_go(recover_the_second, arg);
    panic_text("third panic");
}

/* TestRecursivePanic2 */
START_TEST(recovery_and_a_new_panic_in_separate_defers_keep_their_order)
{
    child_run(recursive_panic2, NULL, &result);
    expect_output("guard: note: first panic\nguard: note: second panic\npanic: third panic\n");
}
END_TEST

static void second_panic_recovered(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, recover_any, NULL);
    panic_text("second panic");
}

static void recover_the_second_in_a_border(void *arg)
{
    call_go(second_panic_recovered, arg);
}

static void recursive_panic3(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, recover_the_second_in_a_border, arg);
    panic_text("first panic");
}

/* TestRecursivePanic3. A recovering defer needs a border, also inside a panic that has none. */
START_TEST(the_first_panic_ends_as_a_panic_though_the_second_was_recovered)
{
    child_run(recursive_panic3, NULL, &result);
    expect_output("panic: first panic\n");
    ck_assert_ptr_null(strstr(result.text, "second panic"));
}
END_TEST

static void recover_and_panic_again(guard_recovery *recovery, void *arg)
{
    (void)arg;
    if (recovery != NULL) {
        guard_recover(recovery);
        panic_text("second panic");
    }
}

static void recursive_panic4_body(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, recover_and_panic_again, NULL);
    panic_text("first panic");
}

static void recursive_panic4(void *arg)
{
    guard_error error;
    if (guard_run(recursive_panic4_body, arg, &error) != 0) {
        guard_panic_error(&error);
    }
}

/* TestRecursivePanic4 */
START_TEST(a_panic_that_was_recovered_before_a_new_one_is_told_as_recovered)
{
    child_run(recursive_panic4, NULL, &result);
    expect_output("panic: first panic [recovered]\n\tpanic: second panic\n");
}
END_TEST

static void print_and_panic(guard_recovery *recovery, void *arg)
{
    print_recovered(recovery, arg);
    panic_text("second panic");
}

static void nothing(void *arg)
{
    (void)arg;
}

static void three(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, nothing, arg);
    guard_defer_recover(s, print_recovered, NULL);
    guard_defer_recover(s, print_and_panic, NULL);
    panic_text("first panic");
}

static void two(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, nothing, arg);
    call_go(three, arg);
}

static void recursive_panic5(void *arg)
{
    two(arg);
    panic_text("third panic");
}

/* TestRecursivePanic5 */
START_TEST(recovering_with_another_defer_to_run_here_and_one_further_up)
{
    child_run(recursive_panic5, NULL, &result);
    expect_output("guard: note: first panic\nguard: note: second panic\npanic: third panic\n");
}
END_TEST

static void double_panic(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, defer_panic, "YYY");
    panic_text("XXX");
}

/* TestDoublePanic */
START_TEST(the_first_of_two_panics_keeps_its_message)
{
    child_run(double_panic, NULL, &result);
    expect_output("panic: XXX\n\tpanic: YYY\n");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_panic_at_the_end_of_a_function_is_recovered,
        a_defer_in_a_loop_and_one_in_a_callee_recover_each_their_own,
        a_defer_that_is_not_reached_does_not_run,
        a_function_that_never_returns_runs_its_defers_in_a_panic,
        defers_of_loops_and_of_callees_with_many_arguments_mix,
        a_panic_recovered_in_a_deferred_function_leaves_the_outer_frames_defers_in_order,
        panics_raised_and_recovered_three_deep_inside_a_deferred_function,
        no_step_is_lost_or_added_by_panics_that_were_recovered_before,
        a_panic_in_place_of_a_recovered_one_is_recovered_further_out,
        recovery_and_a_new_panic_in_separate_defers_keep_their_order,
        the_first_panic_ends_as_a_panic_though_the_second_was_recovered,
        a_panic_that_was_recovered_before_a_new_one_is_told_as_recovered,
        recovering_with_another_defer_to_run_here_and_one_further_up,
        the_first_of_two_panics_keeps_its_message,
    };
    return suite_run("conformance_runtime", tests, sizeof tests / sizeof *tests);
}
