/* SPDX-License-Identifier: MIT */
/* check_service.c: a service contains its requests' panics, keeps to its limits and counts exactly, also from many threads. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_service.h>

#include "calls.h"
#include "fault_memory.h"
#include "suite.h"
#include "trace.h"

static guard_error error;
static guard_service_figures figures;

static void serve(void *arg)
{
    (void)arg;
    trace_add("ran");
}

static void fail_request(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "defer");
    guard_panic(*(int *)arg, "request %d", *(int *)arg);
}

static void check_figures(const guard_service *service, uint64_t returned, uint64_t failed, uint64_t refused_calls,
                          uint64_t refused_rate)
{
    guard_service_read(service, &figures);
    ck_assert_uint_eq(figures.returned, returned);
    ck_assert_uint_eq(figures.failed, failed);
    ck_assert_uint_eq(figures.refused_calls, refused_calls);
    ck_assert_uint_eq(figures.refused_rate, refused_rate);
    ck_assert_uint_eq(figures.under_way, 0);
}

START_TEST(a_panic_ends_its_call_and_no_other)
{
    GUARD_AUTO(s);
    guard_service *service = guard_service_open(s, "test", NULL);
    int code = 7;
    ck_assert_int_eq(guard_service_call(service, fail_request, &code, &error), 7);
    ck_assert_int_eq(error.domain, GUARD_USER);
    ck_assert_str_eq(error.message, "request 7");
    ck_assert_int_eq(guard_service_call(service, serve, NULL, &error), 0);
    ck_assert_int_eq(guard_service_call(service, fail_request, &code, NULL), 7);
    ck_assert_str_eq(trace_text(), "run defer, ran, run defer");
    check_figures(service, 1, 2, 0, 0);
}
END_TEST

static void wait_for_ever(void *arg)
{
    guard_wait_descriptor(*(int *)arg, POLLIN, -1);
}

START_TEST(a_call_ends_at_the_deadline)
{
    GUARD_AUTO(s);
    int ends[2];
    ck_assert_int_eq(pipe(ends), 0);
    const guard_service_options options = {.deadline_ms = 20};
    guard_service *service = guard_service_open(s, "test", &options);
    ck_assert_int_eq(guard_service_call(service, wait_for_ever, &ends[0], &error), ETIMEDOUT);
    ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
    ck_assert_int_eq(guard_service_answer(&error), GUARD_ANSWER_CANCELLED);
    check_figures(service, 0, 1, 0, 0);
}
END_TEST

typedef struct nest {
    guard_service *service;
    int depth;
    int refused; /* the code at the bottom */
} nest;

static void call_again(void *arg)
{
    nest *this = arg;
    this->depth++;
    int code = guard_service_call(this->service, call_again, this, &error);
    if (code != 0 && this->refused == 0) {
        this->refused = code;
    }
}

START_TEST(a_call_beyond_those_under_way_is_refused_and_not_called)
{
    GUARD_AUTO(s);
    const guard_service_options options = {.calls = 3};
    nest this = {guard_service_open(s, "test", &options), 0, 0};
    ck_assert_int_eq(guard_service_call(this.service, call_again, &this, NULL), 0);
    ck_assert_int_eq(this.depth, 3);
    ck_assert_int_eq(this.refused, GUARD_REFUSED_CALLS);
    ck_assert_int_eq(error.domain, GUARD_REFUSED);
    ck_assert_int_eq(guard_service_answer(&error), GUARD_ANSWER_REFUSED);
    ck_assert_str_eq(error.message, "service test has all its calls under way");
    check_figures(this.service, 3, 0, 1, 0);
    ck_assert_int_eq(guard_service_call(this.service, serve, NULL, NULL), 0);
}
END_TEST

START_TEST(a_rate_lets_its_burst_through_and_says_when_there_is_more)
{
    GUARD_AUTO(s);
    const guard_service_options options = {.per_second = 1, .burst = 2};
    guard_service *service = guard_service_open(s, "test", &options);
    ck_assert_int_eq(guard_service_retry_ms(service), 0);
    int64_t begun = now_ms();
    uint64_t calls = 0;
    while (guard_service_call(service, serve, NULL, &error) == 0) {
        calls++;
    }
    ck_assert_int_eq(error.domain, GUARD_REFUSED);
    ck_assert_int_eq(error.code, GUARD_REFUSED_RATE);
    int64_t retry = guard_service_retry_ms(service);
    int64_t took = now_ms() - begun;
    /* One more for each second that this has taken. */
    ck_assert_uint_ge(calls, 2);
    ck_assert_uint_le(calls, 2 + (uint64_t)(took + 1) / 1000);
    ck_assert_msg(retry <= 1000 && (retry > 0 || took >= 999), "a retry after %lld ms", (long long)retry);
    while (guard_service_retry_ms(service) > 0) {
        guard_wait_descriptor(-1, 0, guard_service_retry_ms(service));
    }
    ck_assert_int_eq(guard_service_call(service, serve, NULL, &error), 0);
    check_figures(service, calls + 1, 0, 0, 1);
}
END_TEST

enum { THREADS = 4, CALLS = 20000 };

static atomic_int inside;
static atomic_int inside_most;

static void enter(void *arg)
{
    int now = atomic_fetch_add(&inside, 1) + 1;
    int most = atomic_load(&inside_most);
    while (now > most && !atomic_compare_exchange_weak(&inside_most, &most, now)) {
    }
    atomic_fetch_sub(&inside, 1);
    if (*(int *)arg % 2 != 0) {
        guard_panic(1, "odd");
    }
}

typedef struct tally {
    guard_service *service;
    uint64_t returned, failed, refused;
} tally;

static void *call_many(void *arg)
{
    tally *this = arg;
    for (int i = 0; i < CALLS; i++) {
        guard_error own = {0};
        if (guard_service_call(this->service, enter, &i, &own) == 0) {
            this->returned++;
        } else if (own.domain == GUARD_REFUSED) {
            this->refused++;
        } else {
            this->failed++;
        }
    }
    return NULL;
}

START_TEST(a_storm_from_many_threads_is_counted_exactly_within_the_limit)
{
    GUARD_AUTO(s);
    const guard_service_options options = {.calls = 2};
    guard_service *service = guard_service_open(s, "test", &options);
    pthread_t threads[THREADS];
    tally tallies[THREADS] = {{0}};
    tally sum = {0};
    for (int i = 0; i < THREADS; i++) {
        tallies[i].service = service;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, call_many, &tallies[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        sum.returned += tallies[i].returned;
        sum.failed += tallies[i].failed;
        sum.refused += tallies[i].refused;
    }
    ck_assert_int_le(atomic_load(&inside_most), 2);
    ck_assert_uint_eq(sum.returned + sum.failed + sum.refused, (uint64_t)THREADS * CALLS);
    check_figures(service, sum.returned, sum.failed, sum.refused, 0);
}
END_TEST

static void *call_and_leave(void *service)
{
    guard_service_call(service, call_pthread_exit, NULL, NULL);
    return NULL;
}

START_TEST(a_call_whose_thread_ends_in_it_is_no_longer_under_way)
{
    GUARD_AUTO(s);
    guard_service *service = guard_service_open(s, "test", NULL);
    pthread_t thread;
    ck_assert_int_eq(pthread_create(&thread, NULL, call_and_leave, service), 0);
    pthread_join(thread, NULL);
    check_figures(service, 0, 1, 0, 0);
}
END_TEST

static void call_with_held(void *service)
{
    trace_hold("held");
    guard_service_call(service, serve, NULL, NULL);
}

START_TEST(a_panic_held_before_a_call_is_raised_and_the_call_not_begun)
{
    GUARD_AUTO(s);
    guard_service *service = guard_service_open(s, "test", NULL);
    ck_assert_int_eq(guard_run(call_with_held, service, &error), TRACE_FAILED);
    ck_assert_str_eq(error.message, "held");
    trace_expect("fail held");
    check_figures(service, 0, 0, 0, 0);
}
END_TEST

START_TEST(an_error_is_answered_by_its_domain_and_code)
{
    static const struct {
        int domain, code;
        const char *sqlstate;
        guard_answer answer;
    } rows[] = {
        {GUARD_REFUSED, GUARD_REFUSED_RATE, "", GUARD_ANSWER_REFUSED},
        {GUARD_CANCELLED, ECANCELED, "", GUARD_ANSWER_CANCELLED},
        {GUARD_TIMEOUT, ETIMEDOUT, "", GUARD_ANSWER_CANCELLED},
        {GUARD_PQ, 1, "57014", GUARD_ANSWER_CANCELLED},
        {GUARD_MEMORY, ENOMEM, "", GUARD_ANSWER_BUSY},
        {GUARD_SQLITE, 5, "", GUARD_ANSWER_BUSY},
        {GUARD_SQLITE, 5 | 2 << 8, "", GUARD_ANSWER_BUSY}, /* SQLITE_BUSY_SNAPSHOT */
        {GUARD_SQLITE, 6, "", GUARD_ANSWER_BUSY},
        {GUARD_PQ, 1, "40001", GUARD_ANSWER_BUSY},
        {GUARD_PQ, 1, "53300", GUARD_ANSWER_BUSY},
        {GUARD_PQ, 1, "57P01", GUARD_ANSWER_BUSY},
        {GUARD_PQ, 1, "08006", GUARD_ANSWER_BUSY},
        {GUARD_PQ, 1, "55P03", GUARD_ANSWER_BUSY},
        {GUARD_PQ, 2, "", GUARD_ANSWER_BUSY}, /* GUARD_PQ_CONNECTION */
        {GUARD_FAULT, 11, "", GUARD_ANSWER_FAULT},
        {GUARD_MISUSE, GUARD_MISUSE_STATE, "", GUARD_ANSWER_BUG},
        {GUARD_SQLITE, 19, "", GUARD_ANSWER_FAILED},
        {GUARD_PQ, 1, "23505", GUARD_ANSWER_FAILED},
        {GUARD_PQ, 6, "", GUARD_ANSWER_FAILED},
        {GUARD_TX, 1, "", GUARD_ANSWER_FAILED},
        {GUARD_OS, ENOSPC, "", GUARD_ANSWER_FAILED},
        {GUARD_USER, 3, "", GUARD_ANSWER_FAILED},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        guard_error_set(&error, rows[i].domain, rows[i].code, "test");
        strcpy(error.sqlstate, rows[i].sqlstate);
        ck_assert_msg(guard_service_answer(&error) == rows[i].answer, "%s %d '%s': answer %d, not %d",
                      guard_domain_name(rows[i].domain), rows[i].code, rows[i].sqlstate,
                      (int)guard_service_answer(&error), (int)rows[i].answer);
    }
    memset(&error, 0, sizeof error);
    ck_assert_int_eq(guard_service_answer(&error), GUARD_ANSWER_DONE);
    ck_assert_int_eq(guard_service_answer(NULL), GUARD_ANSWER_DONE);
}
END_TEST

static void open_with(void *options)
{
    GUARD_AUTO(s);
    guard_service_open(s, "test", options);
}

START_TEST(options_that_can_not_be_right_are_misuse)
{
    guard_service_options wrong[] = {{.per_second = 1000001}, {.burst = 1}, {.deadline_ms = -2}, {.reserved = {0, 1}}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        ck_assert_msg(guard_run(open_with, &wrong[i], &error) == GUARD_MISUSE_ARGUMENT && error.domain == GUARD_MISUSE,
                      "options %zu were taken", i);
    }
    guard_service_options widest = {
        .calls = UINT32_MAX, .per_second = 1, .burst = UINT32_MAX, .deadline_ms = INT32_MAX};
    ck_assert_int_eq(guard_run(open_with, &widest, &error), 0);
}
END_TEST

static void open_and_call(void *arg)
{
    GUARD_AUTO(s);
    guard_service *service = guard_service_open(s, "test", NULL);
    ck_assert_int_eq(guard_service_call(service, serve, arg, NULL), 0);
}

START_TEST(no_memory_at_any_allocation_opens_no_service_and_leaks_nothing)
{
    fault_memory_install();
    ck_assert_int_eq(guard_run(serve, NULL, NULL), 0); /* the thread's stack */
    ck_assert_uint_ge(fault_memory_fail_each(open_and_call, NULL), 1);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_panic_ends_its_call_and_no_other,
        a_call_ends_at_the_deadline,
        a_call_beyond_those_under_way_is_refused_and_not_called,
        a_rate_lets_its_burst_through_and_says_when_there_is_more,
        a_storm_from_many_threads_is_counted_exactly_within_the_limit,
        a_call_whose_thread_ends_in_it_is_no_longer_under_way,
        a_panic_held_before_a_call_is_raised_and_the_call_not_begun,
        an_error_is_answered_by_its_domain_and_code,
        options_that_can_not_be_right_are_misuse,
        no_memory_at_any_allocation_opens_no_service_and_leaks_nothing,
    };
    return suite_run("service", tests, sizeof tests / sizeof *tests);
}
