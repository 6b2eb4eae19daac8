/* SPDX-License-Identifier: MIT */
/* check_panic.c: a panic runs the defers up to its border, keeps its chain, and loses nothing (behaviours 14, 20). */
#include <errno.h>
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

/* -------------------------------------------------------------------------------------- raising -- */

static void panic_in_scopes(void *arg)
{
    (void)arg;
    char local[] = "the frame is alive";
    GUARD_AUTO(outer);
    guard_defer(outer, trace_run, local);
    GUARD_SCOPE (inner) {
        guard_defer(inner, trace_run, "inner");
        guard_panic(42, "number %d", 42);
    }
}

START_TEST(a_panic_runs_the_defers_on_top_of_the_live_frames_and_reaches_the_border)
{
    ck_assert_int_eq(guard_run(panic_in_scopes, NULL, &error), 42);
    trace_expect("run inner, run the frame is alive");
    ck_assert_int_eq(error.domain, GUARD_USER);
    ck_assert_int_eq(error.code, 42);
    ck_assert_str_eq(error.message, "number 42");
    ck_assert_str_eq(error.file, "check_panic.c");
    ck_assert_str_eq(error.function, "panic_in_scopes");
    ck_assert_uint_gt(error.line, 0);
    ck_assert_uint_eq(error.cause_count, 0);
}
END_TEST

START_TEST(a_border_without_an_error_contains_the_panic_as_well)
{
    ck_assert_int_eq(guard_run(panic_in_scopes, NULL, NULL), 42);
    trace_expect("run inner, run the frame is alive");
}
END_TEST

#define TEN "0123456789"
#define HUNDRED TEN TEN TEN TEN TEN TEN TEN TEN TEN TEN
#define LONGEST HUNDRED HUNDRED HUNDRED /* with its NUL one too many */

static int messages_asked;

static const char *next_message(void)
{
    messages_asked++;
    return "asked once";
}

static int zero(void)
{
    messages_asked++;
    return 0;
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-security"
#pragma GCC diagnostic ignored "-Wformat-extra-args"
#pragma GCC diagnostic ignored "-Wformat-zero-length"
static void panic_with_message(void *arg)
{
    switch (*(const int *)arg) {
    case 0:
        guard_panic(1, "plain, with a comma");
    case 1:
        guard_panic(1, "a line\n");
    case 2:
        guard_panic(1, "50%% done");
    case 3:
        guard_panic(1, "");
    case 4:
        guard_panic(1, &LONGEST[1]);
    case 5:
        guard_panic(1, LONGEST);
    case 6:
        guard_panic(1, "%s", "printed");
    case 7:
        guard_panic_in(GUARD_OS, 1, "one more argument", zero());
    case 8:
        guard_panic(1, next_message());
    case 9:
        guard_panic(1, messages_asked == 2 ? "one" : "the other");
    default:
        guard_panic_in(GUARD_OS, 1, "a" TEN "b");
    }
}
#pragma GCC diagnostic pop

/* A constant text goes another way than one that is printed. */
START_TEST(a_message_is_what_printf_makes_of_it_whether_or_not_the_compiler_knows_it)
{
    static const char *const messages[] = {
        "plain, with a comma", "a line",     "50% done", "",          &LONGEST[1], LONGEST, "printed",
        "one more argument",   "asked once", "one",      "a" TEN "b",
    };
    for (int i = 0; i < (int)(sizeof messages / sizeof *messages); i++) {
        char expected[sizeof error.message] = "";
        strncat(expected, messages[i], sizeof expected - 1);
        ck_assert_int_eq(guard_run(panic_with_message, &i, &error), 1);
        ck_assert_str_eq(error.message, expected);
        ck_assert_str_eq(error.function, "panic_with_message");
    }
    ck_assert_int_eq(messages_asked, 2); /* an argument is evaluated once */
}
END_TEST

static void panic_with_zero(void *arg)
{
    (void)arg;
    guard_panic(0, "nothing");
}

START_TEST(code_0_becomes_minus_1)
{
    ck_assert_int_eq(guard_run(panic_with_zero, NULL, &error), -1);
    ck_assert_int_eq(error.code, -1);
}
END_TEST

static void panic_of_the_system(void *arg)
{
    (void)arg;
    errno = ENOENT;
    guard_panic_os("cannot open %s", "a.csv");
}

static void panic_in_a_domain(void *arg)
{
    (void)arg;
    errno = EIO;
    guard_panic_in(GUARD_DOMAIN_FIRST_FREE + 1, 9, "mine");
}

static void spoil_errno(void *arg)
{
    (void)arg;
    errno = EDOM;
}

static void panic_and_spoil_errno(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, spoil_errno, NULL);
    panic_in_a_domain(arg);
}

START_TEST(a_system_error_carries_errno_and_its_text)
{
    ck_assert_int_eq(guard_run(panic_of_the_system, NULL, &error), ENOENT);
    ck_assert_int_eq(error.domain, GUARD_OS);
    ck_assert_int_eq(error.os_error, ENOENT);
    ck_assert_str_eq(error.message, "cannot open a.csv: No such file or directory");
}
END_TEST

START_TEST(errno_is_what_it_was_at_the_panic_whatever_the_defers_did)
{
    ck_assert_int_eq(guard_run(panic_and_spoil_errno, NULL, &error), 9);
    ck_assert_int_eq(error.domain, GUARD_DOMAIN_FIRST_FREE + 1);
    ck_assert_int_eq(error.os_error, EIO);
    ck_assert_int_eq(errno, EIO);
}
END_TEST

static void raise_again(void *arg)
{
    (void)arg;
    if (guard_run(panic_of_the_system, NULL, &error) != 0) {
        guard_panic_error(&error);
    }
}

static void raise_made(void *arg)
{
    (void)arg;
    guard_error made;
    guard_error_set(&made, GUARD_PQ, 3, "duplicate");
    strcpy(made.sqlstate, "23505");
    strcpy(made.constraint, "accounts_pkey");
    strcpy(made.detail, "Key (id)=(1) already exists.");
    strcpy(made.hint, "no");
    guard_panic_error(&made);
}

START_TEST(an_error_raised_again_stays_as_it_was)
{
    guard_error again;
    ck_assert_int_eq(guard_run(raise_again, NULL, &again), ENOENT);
    error.flags |= GUARD_ERROR_REPANICKED; /* but that it says so */
    ck_assert_mem_eq(&again, &error, sizeof error);
    ck_assert_str_eq(again.function, "panic_of_the_system");
}
END_TEST

START_TEST(an_error_made_by_the_program_travels_whole_and_gets_its_place)
{
    ck_assert_int_eq(guard_run(raise_made, NULL, &error), 3);
    ck_assert_int_eq(error.domain, GUARD_PQ);
    ck_assert_str_eq(error.sqlstate, "23505");
    ck_assert_str_eq(error.constraint, "accounts_pkey");
    ck_assert_str_eq(error.detail, "Key (id)=(1) already exists.");
    ck_assert_str_eq(error.hint, "no");
    ck_assert_str_eq(error.function, "raise_made");
}
END_TEST

/* ------------------------------------------------------------------------------ several panics -- */

static void three_panics(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "last");
    guard_defer(s, trace_fail, "second");
    guard_defer(s, trace_run, "middle");
    guard_defer(s, trace_fail, "first");
    guard_panic(1, "original");
}

START_TEST(a_defer_that_panics_does_not_keep_the_rest_from_running_and_all_are_in_the_chain)
{
    ck_assert_int_eq(guard_run(three_panics, NULL, &error), TRACE_FAILED);
    trace_expect("fail first, run middle, fail second, run last");
    ck_assert_str_eq(error.message, "second");
    ck_assert_uint_eq(error.cause_count, 2);
    expect_cause(0, GUARD_REPLACED, "first");
    expect_cause(1, GUARD_REPLACED, "original");
}
END_TEST

static void failing_cleanups(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_kind(s, &trace_failing_kind, "rollback");
    guard_defer_kind(s, &trace_kind, "file");
    guard_defer_kind(s, &trace_failing_kind, "unlock");
    guard_panic(1, "original");
}

START_TEST(the_first_error_is_not_overwritten_by_failing_cleanups)
{
    ck_assert_int_eq(guard_run(failing_cleanups, NULL, &error), 1);
    trace_expect("fail unlock, release file, fail rollback");
    ck_assert_str_eq(error.message, "original");
    ck_assert_uint_eq(error.cause_count, 2);
    expect_cause(0, GUARD_ATTACHED, "unlock");
    expect_cause(1, GUARD_ATTACHED, "rollback");
}
END_TEST

static void cleanups_then_panic(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_kind(s, &trace_failing_kind, "rollback");
    guard_defer(s, trace_fail, "newer");
    guard_defer_kind(s, &trace_failing_kind, "unlock");
    guard_panic(1, "original");
}

START_TEST(cleanups_are_attached_to_the_panic_that_runs_them)
{
    ck_assert_int_eq(guard_run(cleanups_then_panic, NULL, &error), TRACE_FAILED);
    ck_assert_str_eq(error.message, "newer");
    ck_assert_uint_eq(error.cause_count, 3);
    expect_cause(0, GUARD_REPLACED, "original");
    expect_cause(1, GUARD_ATTACHED, "unlock");
    expect_cause(2, GUARD_ATTACHED, "rollback");
}
END_TEST

static void explicit_close_fails(void *arg)
{
    (void)arg;
    guard_scope s;
    guard_scope_open(&s);
    guard_defer(&s, trace_run, "last");
    guard_defer_kind(&s, &trace_failing_kind, "cleanup");
    guard_defer_on(&s, GUARD_ON_SUCCESS, trace_run, "success");
    guard_scope_close(&s);
    trace_add("not reached");
}

START_TEST(a_panic_in_an_explicit_close_goes_on_at_once_after_the_rest_ran)
{
    ck_assert_int_eq(guard_run(explicit_close_fails, NULL, &error), TRACE_FAILED);
    trace_expect("run success, fail cleanup, run last");
    ck_assert_uint_eq(error.cause_count, 0);
}
END_TEST

static void contained_inside(void *arg)
{
    ck_assert_int_eq(guard_run(trace_fail, arg, NULL), TRACE_FAILED);
    ck_assert_str_eq(guard_panicking()->message, "original");
}

static void contain_in_a_defer(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, contained_inside, arg);
    guard_panic(1, "original");
}

START_TEST(a_panic_contained_inside_a_deferred_function_leaves_the_running_one_alone)
{
    ck_assert_int_eq(guard_run(contain_in_a_defer, "inner", &error), 1);
    trace_expect("fail inner");
    ck_assert_uint_eq(error.cause_count, 0);
}
END_TEST

static void many_cleanups_fail(void *arg)
{
    const int *count = arg;
    GUARD_AUTO(s);
    for (int i = 0; i < *count; i++) {
        guard_defer_kind(s, &trace_failing_kind, "c");
    }
    guard_panic(1, "original");
}

START_TEST(what_does_not_fit_into_the_chain_is_counted)
{
    int count = 8;
    ck_assert_int_eq(guard_run(many_cleanups_fail, &count, &error), 1);
    ck_assert_uint_eq(error.cause_count, GUARD_CAUSES);
    ck_assert_uint_eq(error.cause_more, 8 - GUARD_CAUSES);
    trace_clear();
    count = 300;
    ck_assert_int_eq(guard_run(many_cleanups_fail, &count, &error), 1);
    ck_assert_uint_eq(error.cause_more, 255);
}
END_TEST

/* --------------------------------------------------------------------------------- guard_panicking -- */

static void say_whether(void *name)
{
    const guard_error *running = guard_panicking();
    trace_add("%s: %s", (const char *)name, running != NULL ? running->message : "normally");
}

static void say_from_a_scope_of_its_own(void *name)
{
    GUARD_AUTO(s);
    guard_defer(s, say_whether, name);
    guard_scope explicit;
    guard_scope_open(&explicit);
    guard_defer(&explicit, say_whether, "explicit");
    say_whether("body");
    guard_scope_close(&explicit);
}

static void say_from_a_border(void *name)
{
    ck_assert_int_eq(guard_run(say_whether, name, NULL), 0);
}

static void say_everything(void *arg)
{
    const int *panics = arg;
    GUARD_AUTO(s);
    guard_defer(s, say_from_a_border, "border");
    guard_defer(s, say_from_a_scope_of_its_own, "scope");
    guard_defer(s, say_whether, "defer");
    if (*panics) {
        guard_panic(1, "P");
    }
}

/* Go: recover.go test7 */
START_TEST(a_deferred_function_knows_whether_a_panic_runs_it)
{
    int panics = 0;
    ck_assert_int_eq(guard_run(say_everything, &panics, NULL), 0);
    trace_expect("defer: normally, body: normally, explicit: normally, scope: normally, border: normally");
    panics = 1;
    ck_assert_int_eq(guard_run(say_everything, &panics, NULL), 1);
    trace_expect("defer: P, body: P, explicit: normally, scope: normally, border: normally");
    ck_assert_ptr_null(guard_panicking());
}
END_TEST

static void recovered_meanwhile(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, say_whether, "after");
    guard_defer_recover(s, trace_recover, "r");
    guard_defer(s, say_whether, "before");
    guard_panic(1, "P");
}

START_TEST(after_recovery_deferred_functions_run_normally)
{
    ck_assert_int_eq(guard_run(recovered_meanwhile, NULL, NULL), 0);
    trace_expect("before: P, recover r from P, after: normally");
}
END_TEST

#if defined(__x86_64__) && defined(__LP64__)

static void spoil_registers_and_panic(void *arg)
{
    if (arg == NULL) {
        /* A function that panics gives nothing back that it has changed. */
        __asm__ volatile(
            "xorl %%ebx, %%ebx; xorl %%r12d, %%r12d; xorl %%r13d, %%r13d; xorl %%r14d, %%r14d; xorl %%r15d, %%r15d"
            :
            :
            : "rbx", "r12", "r13", "r14", "r15");
        guard_panic(8, "eight");
    }
}

/* The registers that a called function must keep, by the ABI, set before guard_run and read after it; the sum of what is wrong. */
static __attribute__((noinline)) uint64_t run_with_registers(void *arg, int *code)
{
    uint64_t wrong;
    uint64_t returned;
    guard_fn *fn = spoil_registers_and_panic;
    __asm__ volatile("subq $128, %%rsp\n\t" /* the red zone */
                     "pushq %%rbp\n\t"
                     "movq %%rsp, %%rbp\n\t"
                     "andq $-16, %%rsp\n\t"
                     "pushq %%rbp\n\t"
                     "pushq %%rbp\n\t"
                     "movl $11, %%ebx\n\t"
                     "movl $12, %%r12d\n\t"
                     "movl $13, %%r13d\n\t"
                     "movl $14, %%r14d\n\t"
                     "movl $15, %%r15d\n\t"
                     "xorl %%edx, %%edx\n\t"
                     "call *%%rax\n\t"
                     "subq (%%rsp), %%rbp\n\t"
                     "popq %%rsp\n\t"
                     "subq $11, %%rbx\n\t"
                     "orq %%rbx, %%rbp\n\t"
                     "subq $12, %%r12\n\t"
                     "orq %%r12, %%rbp\n\t"
                     "subq $13, %%r13\n\t"
                     "orq %%r13, %%rbp\n\t"
                     "subq $14, %%r14\n\t"
                     "orq %%r14, %%rbp\n\t"
                     "subq $15, %%r15\n\t"
                     "orq %%r15, %%rbp\n\t"
                     "movq %%rbp, %%rdx\n\t"
                     "popq %%rbp\n\t"
                     "addq $128, %%rsp"
                     : "=a"(returned), "=d"(wrong), "+D"(fn), "+S"(arg)
                     : "a"(guard_run)
                     : "rbx", "rcx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
    *code = (int)returned;
    return wrong;
}

START_TEST(the_caller_of_guard_run_has_its_registers_again)
{
    int code;
    ck_assert_uint_eq(run_with_registers(NULL, &code), 0);
    ck_assert_int_eq(code, 8);
    ck_assert_uint_eq(run_with_registers(&code, &code), 0);
    ck_assert_int_eq(code, 0);
}
END_TEST

#endif

int main(void)
{
    const TTest *const tests[] = {
        a_panic_runs_the_defers_on_top_of_the_live_frames_and_reaches_the_border,
        a_border_without_an_error_contains_the_panic_as_well,
        a_message_is_what_printf_makes_of_it_whether_or_not_the_compiler_knows_it,
        code_0_becomes_minus_1,
        a_system_error_carries_errno_and_its_text,
        errno_is_what_it_was_at_the_panic_whatever_the_defers_did,
        an_error_raised_again_stays_as_it_was,
        an_error_made_by_the_program_travels_whole_and_gets_its_place,
        a_defer_that_panics_does_not_keep_the_rest_from_running_and_all_are_in_the_chain,
        the_first_error_is_not_overwritten_by_failing_cleanups,
        cleanups_are_attached_to_the_panic_that_runs_them,
        a_panic_in_an_explicit_close_goes_on_at_once_after_the_rest_ran,
        a_panic_contained_inside_a_deferred_function_leaves_the_running_one_alone,
        what_does_not_fit_into_the_chain_is_counted,
        a_deferred_function_knows_whether_a_panic_runs_it,
        after_recovery_deferred_functions_run_normally,
#if defined(__x86_64__) && defined(__LP64__)
        the_caller_of_guard_run_has_its_registers_again,
#endif
    };
    return suite_run("panic", tests, sizeof tests / sizeof *tests);
}
