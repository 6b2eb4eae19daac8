/* SPDX-License-Identifier: MIT */
/* check_breaker.c: a breaker opens on failures, refuses while it is open, and closes when its probes are well. */
#include <errno.h>
#include <pthread.h>

#include <guard/guard.h>
#include <guard/guard_breaker.h>
#include <guard/guard_cancel.h>

#include "calls.h"
#include "fault_memory.h"
#include "suite.h"
#include "trace.h"

static guard_error error;
static guard_breaker_figures figures;

static void be_well(void *arg)
{
    (void)arg;
}

static void be_down(void *arg)
{
    (void)arg;
    guard_panic_in(GUARD_OS, ECONNREFUSED, "down");
}

static void be_cancelled(void *arg)
{
    (void)arg;
    guard_panic_in(GUARD_CANCELLED, ECANCELED, "cancelled");
}

static void keep_note(const char *text)
{
    trace_add("%s", text);
}

/* Calls fn so often; none of these is refused. */
static void call(guard_breaker *breaker, guard_fn *fn, int times)
{
    for (int i = 0; i < times; i++) {
        error.domain = 0;
        guard_breaker_call(breaker, fn, NULL, &error);
        ck_assert_msg(error.domain != GUARD_REFUSED, "call %d of %d: %s", i + 1, times, error.message);
    }
}

static void check_refused(guard_breaker *breaker)
{
    ck_assert_int_eq(guard_breaker_call(breaker, be_well, NULL, &error), GUARD_REFUSED_BREAKER);
    ck_assert_int_eq(error.domain, GUARD_REFUSED);
    ck_assert_str_eq(error.message, "breaker database is open");
}

static void check_state(guard_breaker *breaker, guard_breaker_state state)
{
    guard_breaker_read(breaker, &figures);
    ck_assert_int_eq(figures.state, state);
}

/* An open breaker of 1 ms lets the next call through. */
static void wait_until_it_may(guard_breaker *breaker)
{
    for (int64_t ms; (ms = guard_breaker_retry_ms(breaker)) > 0;) {
        guard_wait_descriptor(-1, 0, ms);
    }
}

START_TEST(half_of_enough_calls_open_it_and_then_it_refuses)
{
    GUARD_AUTO(s);
    guard_note_handler(keep_note);
    const guard_breaker_options options = {.window_ms = 600000, .open_ms = 60000};
    guard_breaker *breaker = guard_breaker_open(s, "database", &options);
    call(breaker, be_well, 10);
    call(breaker, be_down, 9);
    check_state(breaker, GUARD_BREAKER_CLOSED);
    ck_assert_int_eq(guard_breaker_retry_ms(breaker), 0);
    call(breaker, be_down, 1);
    check_refused(breaker);
    int64_t retry = guard_breaker_retry_ms(breaker);
    ck_assert_msg(retry > 0 && retry <= 60000, "a retry after %lld ms", (long long)retry);
    trace_expect("breaker database is open");
    check_state(breaker, GUARD_BREAKER_OPEN);
    ck_assert_uint_eq(figures.well, 10);
    ck_assert_uint_eq(figures.failed, 10);
    ck_assert_uint_eq(figures.refused, 1);
    ck_assert_uint_eq(figures.opened, 1);
}
END_TEST

START_TEST(fewer_calls_or_a_lower_ratio_never_open_it)
{
    GUARD_AUTO(s);
    const guard_breaker_options options = {.failure_percent = 75, .calls = 8, .window_ms = 600000};
    guard_breaker *breaker = guard_breaker_open(s, "database", &options);
    call(breaker, be_down, 7);
    check_state(breaker, GUARD_BREAKER_CLOSED);
    call(breaker, be_well, 4);
    call(breaker, be_down, 4); /* 11 of 15: 73 % */
    check_state(breaker, GUARD_BREAKER_CLOSED);
    call(breaker, be_down, 1); /* 12 of 16 */
    check_state(breaker, GUARD_BREAKER_OPEN);
}
END_TEST

START_TEST(failures_older_than_the_window_do_not_count)
{
    GUARD_AUTO(s);
    const guard_breaker_options options = {.calls = 4, .window_ms = 20};
    guard_breaker *breaker = guard_breaker_open(s, "database", &options);
    call(breaker, be_down, 3);
    guard_wait_descriptor(-1, 0, 25); /* the time itself is what is waited for */
    call(breaker, be_down, 1);
    check_state(breaker, GUARD_BREAKER_CLOSED);
}
END_TEST

static guard_breaker *open_half(guard_scope *s, uint32_t probes)
{
    const guard_breaker_options options = {.calls = 1, .open_ms = 1, .probes = probes};
    guard_breaker *breaker = guard_breaker_open(s, "database", &options);
    call(breaker, be_down, 1);
    check_state(breaker, GUARD_BREAKER_OPEN);
    wait_until_it_may(breaker);
    return breaker;
}

typedef struct probe {
    guard_breaker *breaker;
    int depth;
    int refused;
} probe;

static void probe_run(void *arg)
{
    probe *this = arg;
    this->depth++;
    if (guard_breaker_call(this->breaker, probe_run, this, &error) == GUARD_REFUSED_BREAKER) {
        this->refused++;
    }
}

START_TEST(half_open_lets_so_many_through_and_they_close_it)
{
    GUARD_AUTO(s);
    guard_note_handler(keep_note);
    probe this = {open_half(s, 3), 0, 0};
    ck_assert_int_eq(guard_breaker_call(this.breaker, probe_run, &this, NULL), 0);
    ck_assert_int_eq(this.depth, 3);
    ck_assert_int_eq(this.refused, 1);
    check_state(this.breaker, GUARD_BREAKER_CLOSED);
    trace_expect("breaker database is open, breaker database is half-open, breaker database is closed");
}
END_TEST

START_TEST(a_failed_probe_opens_it_again)
{
    GUARD_AUTO(s);
    guard_breaker *breaker = open_half(s, 2);
    call(breaker, be_well, 1);
    check_state(breaker, GUARD_BREAKER_HALF_OPEN);
    call(breaker, be_down, 1);
    check_state(breaker, GUARD_BREAKER_OPEN);
    ck_assert_uint_eq(figures.opened, 2);
}
END_TEST

START_TEST(a_cancelled_probe_says_nothing_and_another_may_try)
{
    GUARD_AUTO(s);
    guard_breaker *breaker = open_half(s, 1);
    call(breaker, be_cancelled, 3);
    check_state(breaker, GUARD_BREAKER_HALF_OPEN);
    ck_assert_uint_eq(figures.uncounted, 3);
    call(breaker, be_well, 1);
    check_state(breaker, GUARD_BREAKER_CLOSED);
}
END_TEST

static void outlive_the_opening(void *breaker)
{
    call(breaker, be_down, 1);
    check_state(breaker, GUARD_BREAKER_OPEN);
    wait_until_it_may(breaker);
    call(breaker, be_cancelled, 1);
    check_state(breaker, GUARD_BREAKER_HALF_OPEN);
}

START_TEST(a_call_begun_before_a_change_decides_nothing_after_it)
{
    GUARD_AUTO(s);
    const guard_breaker_options options = {.calls = 1, .open_ms = 1};
    guard_breaker *breaker = guard_breaker_open(s, "database", &options);
    ck_assert_int_eq(guard_breaker_call(breaker, outlive_the_opening, breaker, NULL), 0);
    check_state(breaker, GUARD_BREAKER_HALF_OPEN); /* not closed: that was no probe */
    ck_assert_uint_eq(figures.well, 1);
}
END_TEST

static void *call_and_leave(void *breaker)
{
    guard_breaker_call(breaker, call_pthread_exit, NULL, NULL);
    return NULL;
}

START_TEST(a_probe_whose_thread_ends_in_it_has_failed)
{
    GUARD_AUTO(s);
    guard_breaker *breaker = open_half(s, 1);
    pthread_t thread;
    ck_assert_int_eq(pthread_create(&thread, NULL, call_and_leave, breaker), 0);
    pthread_join(thread, NULL);
    check_state(breaker, GUARD_BREAKER_OPEN);
    ck_assert_uint_eq(figures.failed, 2);
}
END_TEST

static void call_with_held(void *breaker)
{
    trace_hold("held");
    guard_breaker_call(breaker, be_well, NULL, NULL);
}

START_TEST(a_panic_held_before_a_probe_does_not_use_it_up)
{
    GUARD_AUTO(s);
    guard_breaker *breaker = open_half(s, 1);
    ck_assert_int_eq(guard_run(call_with_held, breaker, &error), TRACE_FAILED);
    call(breaker, be_well, 1);
    check_state(breaker, GUARD_BREAKER_CLOSED);
}
END_TEST

enum { THREADS = 4, CALLS = 20000 };

static void alternate(void *arg)
{
    if (*(int *)arg % 2 != 0) {
        be_down(NULL);
    }
}

/* How often the breaker changes depends on how long the calls take. */
static void ignore_note(const char *text)
{
    (void)text;
}

static void *call_many(void *breaker)
{
    for (int i = 0; i < CALLS; i++) {
        guard_breaker_call(breaker, alternate, &i, NULL);
    }
    return NULL;
}

START_TEST(calls_of_many_threads_are_counted_exactly)
{
    GUARD_AUTO(s);
    guard_note_handler(ignore_note);
    const guard_breaker_options options = {.open_ms = 1, .probes = 2};
    guard_breaker *breaker = guard_breaker_open(s, "database", &options);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, call_many, breaker), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    guard_breaker_read(breaker, &figures);
    ck_assert_uint_eq(figures.well + figures.failed + figures.refused, (uint64_t)THREADS * CALLS);
    ck_assert_uint_ge(figures.opened, 1);
    ck_assert_uint_gt(figures.refused, 0);
}
END_TEST

START_TEST(an_error_is_judged_by_whether_the_dependency_failed)
{
    static const struct {
        int domain, code;
        guard_verdict verdict;
    } rows[] = {
        {GUARD_OS, EIO, GUARD_VERDICT_FAILED},
        {GUARD_TIMEOUT, ETIMEDOUT, GUARD_VERDICT_FAILED},
        {GUARD_LOCK, EDEADLK, GUARD_VERDICT_FAILED},
        {GUARD_FAULT, 11, GUARD_VERDICT_FAILED},
        {GUARD_SQLITE, 5, GUARD_VERDICT_FAILED},
        {GUARD_SQLITE, 10 | 3 << 8, GUARD_VERDICT_FAILED},
        {GUARD_SQLITE, 13, GUARD_VERDICT_FAILED},
        {GUARD_PQ, 2, GUARD_VERDICT_FAILED},
        {GUARD_SQLITE, 19, GUARD_VERDICT_WELL},
        {GUARD_USER, 1, GUARD_VERDICT_WELL},
        {GUARD_CANCELLED, ECANCELED, GUARD_VERDICT_NONE},
        {GUARD_REFUSED, 1, GUARD_VERDICT_NONE},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        guard_error_set(&error, rows[i].domain, rows[i].code, "test");
        ck_assert_msg(guard_breaker_judge(&error) == rows[i].verdict, "%s %d: %d", guard_domain_name(rows[i].domain),
                      rows[i].code, (int)guard_breaker_judge(&error));
    }
}
END_TEST

static guard_verdict judge_all_well(const guard_error *judged)
{
    (void)judged;
    return GUARD_VERDICT_WELL;
}

START_TEST(a_judge_of_the_programs_own_decides)
{
    GUARD_AUTO(s);
    const guard_breaker_options options = {.calls = 1, .judge = judge_all_well};
    guard_breaker *breaker = guard_breaker_open(s, "database", &options);
    call(breaker, be_down, 5);
    check_state(breaker, GUARD_BREAKER_CLOSED);
    ck_assert_uint_eq(figures.well, 5);
}
END_TEST

static void open_with(void *options)
{
    GUARD_AUTO(s);
    guard_breaker_open(s, "database", options);
}

START_TEST(options_that_can_not_be_right_are_misuse)
{
    guard_breaker_options wrong[] = {
        {.failure_percent = 101}, {.window_ms = 9}, {.window_ms = -1}, {.open_ms = -1}, {.reserved = {1}}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        ck_assert_msg(guard_run(open_with, &wrong[i], &error) == GUARD_MISUSE_ARGUMENT && error.domain == GUARD_MISUSE,
                      "options %zu were taken", i);
    }
}
END_TEST

START_TEST(no_memory_at_any_allocation_opens_no_breaker_and_leaks_nothing)
{
    fault_memory_install();
    ck_assert_int_eq(guard_run(be_well, NULL, NULL), 0); /* the thread's stack */
    ck_assert_uint_ge(fault_memory_fail_each(open_with, NULL), 1);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        half_of_enough_calls_open_it_and_then_it_refuses,
        fewer_calls_or_a_lower_ratio_never_open_it,
        failures_older_than_the_window_do_not_count,
        half_open_lets_so_many_through_and_they_close_it,
        a_failed_probe_opens_it_again,
        a_cancelled_probe_says_nothing_and_another_may_try,
        a_call_begun_before_a_change_decides_nothing_after_it,
        a_probe_whose_thread_ends_in_it_has_failed,
        a_panic_held_before_a_probe_does_not_use_it_up,
        calls_of_many_threads_are_counted_exactly,
        an_error_is_judged_by_whether_the_dependency_failed,
        a_judge_of_the_programs_own_decides,
        options_that_can_not_be_right_are_misuse,
        no_memory_at_any_allocation_opens_no_breaker_and_leaks_nothing,
    };
    return suite_run("breaker", tests, sizeof tests / sizeof *tests);
}
