/* SPDX-License-Identifier: MIT */
/*
 * check_metrics.c: what is counted is exact, also by threads that come and go and after a fork.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_breaker.h>
#include <guard/guard_metrics.h>
#include <guard/guard_service.h>

#include "exposition.h"
#include "fault_memory.h"
#include "program_metrics.h"
#include "suite.h"

static guard_error error;

static void nothing(void *arg)
{
    (void)arg;
}

/* ---------------------------------------------------------------------------------------------- counting -- */

START_TEST(a_counter_is_there_from_its_opening_and_is_what_was_added)
{
    GUARD_AUTO(s);
    guard_counter green = guard_counter_open(&apple_counter, &(guard_label){"kind", "green"}, 1);
    guard_counter red = guard_counter_open(&apple_counter, &(guard_label){"kind", "red"}, 1);
    ck_assert_int_eq(exposition_value(exposition_read(s), "apples_total{kind=\"red\"}"), 0);
    guard_counter_add(green, 1);
    guard_counter_add(guard_counter_open(&apple_counter, &(guard_label){"kind", "green"}, 1), 41);
    guard_counter_add(red, 1);
    guard_counter_add((guard_counter){0}, 1);
    const char *text = exposition_read(s);
    ck_assert_int_eq(exposition_value(text, "apples_total{kind=\"green\"}"), 42);
    ck_assert_int_eq(exposition_value(text, "apples_total{kind=\"red\"}"), 1);
    ck_assert_int_eq(guard_counter_read(green), 42);
    ck_assert_ptr_nonnull(strstr(text, "# HELP apples_total Apples.\n# TYPE apples_total counter\napples_total{"));
}
END_TEST

static guard_gauge height;

static void *add_three(void *arg)
{
    guard_gauge_add(height, 3);
    return arg;
}

START_TEST(a_gauge_goes_up_in_one_thread_and_down_in_another)
{
    GUARD_AUTO(s);
    pthread_t thread;
    height = guard_gauge_open(&level_gauge, NULL, 0);
    ck_assert_int_eq(pthread_create(&thread, NULL, add_three, NULL), 0);
    pthread_join(thread, NULL);
    guard_gauge_add(height, -5);
    ck_assert_int_eq(exposition_value(exposition_read(s), "level"), -2);
    ck_assert_int_eq(guard_gauge_read(height), -2);
}
END_TEST

START_TEST(a_histogram_has_each_time_in_its_bucket_and_writes_seconds)
{
    GUARD_AUTO(s);
    guard_histogram h = guard_histogram_open(&time_histogram, &(guard_label){"of", "this"}, 1);
    guard_histogram_observe(h, -1);
    guard_histogram_observe(h, 10000); /* a bound belongs to its bucket */
    guard_histogram_observe(h, 10001);
    guard_histogram_observe(h, 2500000);
    guard_histogram_observe(h, 20000000000);
    const char *text = exposition_read(s);
    ck_assert_int_eq(exposition_value(text, "times_seconds_bucket{of=\"this\",le=\"0.00001\"}"), 2);
    ck_assert_int_eq(exposition_value(text, "times_seconds_bucket{of=\"this\",le=\"0.00005\"}"), 3);
    ck_assert_int_eq(exposition_value(text, "times_seconds_bucket{of=\"this\",le=\"0.0025\"}"), 4);
    ck_assert_int_eq(exposition_value(text, "times_seconds_bucket{of=\"this\",le=\"10\"}"), 4);
    ck_assert_int_eq(exposition_value(text, "times_seconds_bucket{of=\"this\",le=\"+Inf\"}"), 5);
    ck_assert_int_eq(exposition_value(text, "times_seconds_count{of=\"this\"}"), 5);
    ck_assert_ptr_nonnull(strstr(text, "times_seconds_sum{of=\"this\"} 20.002520001\n"));
    ck_assert_int_eq(guard_histogram_read(h), 5);
}
END_TEST

/* ----------------------------------------------------------------------------------------------- threads -- */

enum { THREADS = 8, LIVES = 12, ROUNDS = 200 };

static guard_counter shared;
static guard_histogram shared_times;
static atomic_int over;

static void fail_once(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, nothing, arg);
    guard_panic(1, "one");
}

/* Counts before its first use of the library, in it, and when its state is gone. */
static void count_late(void *arg)
{
    (void)arg;
    guard_counter_add(shared, 1);
}

static pthread_key_t late;

static void *count_much(void *arg)
{
    (void)arg;
    pthread_setspecific(late, &late);
    guard_counter_add(shared, 1);
    for (int i = 0; i < ROUNDS; i++) {
        GUARD_AUTO(s);
        guard_defer(s, nothing, NULL);
        guard_defer(s, nothing, NULL);
        guard_run(fail_once, NULL, NULL);
        guard_counter_add(shared, 1);
        guard_histogram_observe(shared_times, i * 1000);
    }
    return NULL;
}

static void *live_on(void *arg)
{
    pthread_t thread;
    for (int i = 0; i < LIVES; i++) {
        ck_assert_int_eq(pthread_create(&thread, NULL, count_much, NULL), 0);
        pthread_join(thread, NULL);
    }
    return arg;
}

static void *read_on(void *arg)
{
    int64_t before = 0;
    while (!atomic_load(&over)) {
        GUARD_AUTO(s);
        int64_t now = exposition_value(guard_metrics_text(s, NULL), "apples_total{kind=\"shared\"}");
        ck_assert_int_ge(now, before); /* nobody is lost or found twice when a thread ends */
        before = now;
    }
    return arg;
}

START_TEST(threads_that_come_and_go_are_summed_exactly_while_others_read)
{
    GUARD_AUTO(s);
    pthread_t threads[THREADS];
    pthread_t reader;
    pthread_key_create(&late, count_late);
    shared = guard_counter_open(&apple_counter, &(guard_label){"kind", "shared"}, 1);
    shared_times = guard_histogram_open(&time_histogram, NULL, 0);
    const char *text = exposition_read(s);
    int64_t ran = exposition_value(text, "guard_defers_run_total");
    int64_t panics = exposition_sum(text, "guard_panics_total");
    int64_t contained = exposition_value(text, "guard_recoveries_total{by=\"border\"}");
    ck_assert_int_eq(pthread_create(&reader, NULL, read_on, NULL), 0);
    for (int i = 0; i < THREADS; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, live_on, NULL), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    atomic_store(&over, 1);
    pthread_join(reader, NULL);
    text = exposition_read(s);
    const int64_t lives = THREADS * LIVES;
    ck_assert_int_eq(guard_counter_read(shared), lives * (ROUNDS + 2));
    ck_assert_int_eq(guard_histogram_read(shared_times), lives * ROUNDS);
    ck_assert_int_eq(exposition_sum(text, "guard_panics_total") - panics, lives * ROUNDS);
    ck_assert_int_eq(exposition_value(text, "guard_recoveries_total{by=\"border\"}") - contained, lives * ROUNDS);
    /* The reader's own reading runs deferred functions too. */
    ck_assert_int_ge(exposition_value(text, "guard_defers_run_total") - ran, lives * ROUNDS * 3);
}
END_TEST

/* --------------------------------------------------------------------------------------- the core's figures -- */

static void recover(guard_recovery *recovery, void *arg)
{
    (void)arg;
    guard_recover(recovery);
}

static const guard_kind kind = {.name = "thing", .release = nothing, .flags = GUARD_KIND_HEAP};

/* 11 that run: one of each sort, two by a ticket, one each by an explicit close and an owner. */
static void run_each(void *arg)
{
    char big[100] = "";
    {
        GUARD_AUTO(one);
        guard_defer(one, nothing, arg);
    }
    GUARD_AUTO(s);
    guard_defer(s, nothing, arg);
    guard_defer_kind(s, &kind, arg);
    guard_defer_copy(s, nothing, big, 8);
    guard_defer_copy(s, nothing, big, sizeof big);
    guard_defer_on(s, GUARD_ON_SUCCESS, nothing, arg);
    guard_defer_on(s, GUARD_ON_FAILURE, nothing, arg); /* not this one */
    guard_defer_recover(s, recover, arg);
    guard_dismiss(guard_defer(s, nothing, arg)); /* nor this one */
    guard_release(guard_defer(s, nothing, arg));
    guard_release(guard_defer_copy(s, nothing, big, 8));
    guard_reserve(s, 3);
    guard_scope scope;
    guard_scope_open(&scope);
    guard_defer(&scope, nothing, arg);
    guard_scope_close(&scope);
    guard_owner *owner = guard_owner_new();
    guard_defer(guard_owner_scope(owner), nothing, arg);
    guard_owner_close(owner);
}

static int64_t defers_run(void)
{
    guard_scope s;
    guard_scope_open(&s);
    int64_t count = exposition_value(guard_metrics_text(&s, NULL), "guard_defers_run_total");
    guard_scope_close(&s);
    return count;
}

START_TEST(every_deferred_function_that_ran_is_counted_and_no_other)
{
    /* What a reading runs itself. */
    int64_t first = defers_run();
    int64_t own = defers_run() - first;
    int64_t before = defers_run();
    run_each(NULL);
    ck_assert_int_eq(defers_run() - before - own, 11);
    before = defers_run();
    guard_run(fail_once, NULL, NULL);
    ck_assert_int_eq(defers_run() - before - own, 1);
}
END_TEST

static void raise_here(void *arg)
{
    guard_panic_in(*(const int *)arg, 1, "here");
}

static void raise_there(void *arg)
{
    (void)arg;
    guard_panic(2, "there");
}

static void recovered(void *arg)
{
    GUARD_AUTO(s);
    guard_defer_recover(s, recover, arg);
    guard_panic(3, "recovered");
}

static void raise_given(void *arg)
{
    (void)arg;
    guard_error_set(&error, GUARD_SQLITE, 5, "again");
    snprintf(error.file, sizeof error.file, "else\"where.c");
    error.line = 12;
    guard_panic_error(&error);
}

/* As one does after a border. */
static void raise_again(void *arg)
{
    guard_panic_error((const guard_error *)arg);
}

static void raise_through_a_latch(void *arg)
{
    guard_latch latch;
    guard_latch_open(&latch);
    guard_latch_run(&latch, raise_there, arg);
    guard_latch_raise(&latch);
}

START_TEST(a_panic_that_a_latch_carries_is_one_panic)
{
    GUARD_AUTO(s);
    guard_run(raise_through_a_latch, NULL, NULL);
    const char *text = exposition_read(s);
    ck_assert_int_eq(exposition_sum(text, "guard_panics_total"), 1);
    ck_assert_int_eq(exposition_value(text, "guard_panics_raised_again_total"), 0);
}
END_TEST

START_TEST(panics_are_counted_by_domain_and_by_the_place_they_come_from)
{
    static const int domains[] = {GUARD_USER, GUARD_OS, 4711};
    GUARD_AUTO(s);
    char here[128];
    for (int i = 0; i < 30; i++) {
        guard_run(raise_here, (void *)(uintptr_t)&domains[i % 3], &error);
    }
    unsigned line = error.line;
    guard_run(raise_there, NULL, NULL);
    guard_run(recovered, NULL, NULL);
    guard_run(raise_given, NULL, &error);
    guard_run(raise_again, &error, NULL);
    const char *text = exposition_read(s);
    snprintf(here, sizeof here, "guard_panics_total{domain=\"user\",site=\"check_metrics.c:%u\"}", line);
    ck_assert_int_eq(exposition_value(text, here), 20); /* a program's own domains are "user" */
    snprintf(here, sizeof here, "guard_panics_total{domain=\"os\",site=\"check_metrics.c:%u\"}", line);
    ck_assert_int_eq(exposition_value(text, here), 10);
    ck_assert_int_eq(exposition_value(text, "guard_panics_total{domain=\"sqlite\",site=\"else\\\"where.c:12\"}"), 1);
    ck_assert_int_eq(exposition_sum(text, "guard_panics_total"), 33);
    ck_assert_int_eq(exposition_value(text, "guard_panics_raised_again_total"), 1);
    ck_assert_int_eq(exposition_value(text, "guard_recoveries_total{by=\"border\"}"), 33);
    ck_assert_int_eq(exposition_value(text, "guard_recoveries_total{by=\"defer\"}"), 1);
}
END_TEST

static void raise_from(void *arg)
{
    guard_error_set(&error, GUARD_PQ, 1, "from line %d", *(int *)arg);
    snprintf(error.file, sizeof error.file, "long.c");
    error.line = (uint32_t) * (int *)arg;
    guard_panic_error(&error);
}

START_TEST(more_places_than_there_is_room_for_are_counted_as_other)
{
    GUARD_AUTO(s);
    for (int turn = 0; turn < 2; turn++) {
        for (int line = 1; line <= 500; line++) {
            guard_run(raise_from, &line, NULL);
        }
    }
    const char *text = exposition_read(s);
    ck_assert_int_eq(exposition_sum(text, "guard_panics_total"), 1000);
    ck_assert_int_eq(exposition_value(text, "guard_panics_total{domain=\"pq\",site=\"long.c:1\"}"), 2);
    ck_assert_int_eq(exposition_value(text, "guard_panics_total{domain=\"pq\",site=\"other\"}"), 2 * (500 - 126));
}
END_TEST

START_TEST(services_and_breakers_are_there_by_name_while_they_live)
{
    GUARD_AUTO(s);
    {
        GUARD_AUTO(inner);
        guard_service *service = guard_service_open(inner, "shop \"one\"", NULL);
        guard_service *same = guard_service_open(inner, "shop \"one\"", NULL);
        guard_breaker *breaker = guard_breaker_open(inner, "store", &(guard_breaker_options){.calls = 1});
        guard_service_call(service, nothing, NULL, NULL);
        guard_service_call(same, raise_there, NULL, NULL);
        guard_breaker_call(breaker, nothing, NULL, NULL);
        const char *text = exposition_read(s);
        ck_assert_int_eq(
            exposition_value(text, "guard_service_calls_total{service=\"shop \\\"one\\\"\",result=\"returned\"}"), 1);
        ck_assert_int_eq(
            exposition_value(text, "guard_service_calls_total{service=\"shop \\\"one\\\"\",result=\"failed\"}"), 1);
        ck_assert_int_eq(exposition_value(text, "guard_breaker_state{breaker=\"store\",state=\"closed\"}"), 1);
        ck_assert_int_eq(exposition_value(text, "guard_breaker_state{breaker=\"store\",state=\"open\"}"), 0);
        ck_assert_int_eq(exposition_value(text, "guard_breaker_calls_total{breaker=\"store\",result=\"well\"}"), 1);
        static const int domain = GUARD_OS;
        guard_breaker_call(breaker, raise_here, (void *)(uintptr_t)&domain, NULL);
        guard_breaker_call(breaker, nothing, NULL, NULL);
        text = exposition_read(s);
        ck_assert_int_eq(exposition_value(text, "guard_breaker_state{breaker=\"store\",state=\"open\"}"), 1);
        ck_assert_int_eq(exposition_value(text, "guard_breaker_calls_total{breaker=\"store\",result=\"refused\"}"), 1);
        ck_assert_int_eq(exposition_value(text, "guard_breaker_opened_total{breaker=\"store\"}"), 1);
    }
    const char *text = exposition_read(s);
    ck_assert_ptr_null(strstr(text, "guard_service_calls_total"));
    ck_assert_ptr_null(strstr(text, "guard_breaker_state"));
}
END_TEST

/* -------------------------------------------------------------------------------------------- fork, memory -- */

static guard_counter inherited;

static int count_in_child(void)
{
    GUARD_AUTO(s);
    guard_counter_add(inherited, 2);
    guard_run(raise_there, NULL, NULL);
    guard_metrics_collect(s, collect, "child");
    const char *text = guard_metrics_text(s, NULL);
    if (exposition_value(text, "level{of=\"child\"}") != 1 || exposition_has(text, "level{of=\"parent\"}")) {
        return 2;
    }
    return exposition_value(text, "apples_total") == 2 && exposition_sum(text, "guard_panics_total") == 1 ? 0 : 1;
}

START_TEST(a_forked_child_begins_at_0_and_its_parent_goes_on)
{
    GUARD_AUTO(s);
    int status;
    guard_metrics_collect(s, collect, "parent");
    inherited = guard_counter_open(&apple_counter, NULL, 0);
    guard_counter_add(inherited, 5);
    guard_run(raise_there, NULL, NULL);
    pid_t pid = fork();
    if (pid == 0) {
        _exit(count_in_child());
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
    ck_assert_int_eq(guard_counter_read(inherited), 5);
    ck_assert_int_eq(exposition_value(exposition_read(s), "level{of=\"parent\"}"), 1);
}
END_TEST

static void read_once(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_metrics_collect(s, collect, "memory");
    guard_histogram_open(&time_histogram, NULL, 0);
    guard_metrics_text(s, NULL);
}

START_TEST(no_memory_at_any_allocation_is_a_panic_and_leaks_nothing)
{
    fault_memory_install();
    ck_assert_int_eq(guard_run(read_once, NULL, &error), 0);
    ck_assert_uint_ge(fault_memory_fail_each(read_once, NULL), 5);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_counter_is_there_from_its_opening_and_is_what_was_added,
        a_gauge_goes_up_in_one_thread_and_down_in_another,
        a_histogram_has_each_time_in_its_bucket_and_writes_seconds,
        threads_that_come_and_go_are_summed_exactly_while_others_read,
        every_deferred_function_that_ran_is_counted_and_no_other,
        panics_are_counted_by_domain_and_by_the_place_they_come_from,
        a_panic_that_a_latch_carries_is_one_panic,
        more_places_than_there_is_room_for_are_counted_as_other,
        services_and_breakers_are_there_by_name_while_they_live,
        a_forked_child_begins_at_0_and_its_parent_goes_on,
        no_memory_at_any_allocation_is_a_panic_and_leaks_nothing,
    };
    return suite_run("metrics", tests, sizeof tests / sizeof *tests);
}
