/* SPDX-License-Identifier: MIT */
/*
 * check_log_storm.c: in a storm of panics the log says less of each and at last only how many, every count is exact, and what cannot be written
 * harms nobody. GUARD_STORM_PANICS is how many panics a storm has; make soak gives it a million.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include <guard/guard.h>
#include <guard/guard_log.h>
#include <guard/guard_service.h>

#include "file_faults.h"
#include "log_lines.h"
#include "suite.h"

enum { THREADS = 4 };

static guard_log_figures figures;

static uint64_t storm_panics(void)
{
    const char *text = getenv("GUARD_STORM_PANICS");
    uint64_t panics = text != NULL && *text != '\0' ? strtoull(text, NULL, 10) : 20000;
    ck_assert_uint_ge(panics, 1000);
    return panics / THREADS * THREADS;
}

static void fail_request(void *arg)
{
    (void)arg;
    guard_error error;
    guard_error cause;
    guard_error_set(&error, GUARD_USER, 1, "it fails");
    guard_error_set(&cause, GUARD_USER, 2, "for a reason");
    guard_error_attach(&error, &cause, GUARD_CAUSE);
    guard_panic_error(&error);
}

static guard_service *open_service(guard_scope *scope, guard_log *log)
{
    const guard_service_options options = {.log = log};
    return guard_service_open(scope, "storm", &options);
}

/* What holds once nobody logs and all is flushed, whatever became of the lines. */
static void expect_exact(guard_log *log, uint64_t events)
{
    guard_log_read(log, &figures);
    ck_assert_uint_eq(figures.events, events);
    ck_assert_uint_eq(figures.full + figures.brief + figures.counted, events);
    ck_assert_uint_eq(figures.waiting, 0);
    ck_assert_uint_eq(figures.full + figures.brief, figures.dropped + figures.written + figures.lost);
    uint64_t sum = 0;
    guard_log_site site;
    for (unsigned i = 0; i < GUARD_LOG_SITES; i++) {
        sum += guard_log_read_site(log, i, &site) ? site.events : 0;
    }
    ck_assert_uint_eq(sum, events);
}

/* --------------------------------------------------------------------------------------------------- form -- */

START_TEST(a_site_gets_full_records_then_short_lines_then_a_count)
{
    GUARD_AUTO(s);
    const guard_log_options options = {.report_ms = 3600000};
    guard_log *log = guard_log_open(s, "log", &options);
    log_lines_collect(log);
    guard_service *service = open_service(s, log);
    for (int i = 0; i < 1000; i++) {
        guard_service_call(service, fail_request, NULL, NULL);
    }
    log_lines_flush(log);
    guard_log_read(log, &figures);
    /* More than the five and ten at once only where this took so long. */
    ck_assert_uint_ge(figures.full, 5);
    ck_assert_uint_ge(figures.full + figures.brief, 10);
    ck_assert_uint_gt(figures.brief, 0);
    ck_assert_uint_gt(figures.counted, 0);
    for (size_t i = 0; i < 5; i++) {
        ck_assert_ptr_nonnull(json_object_get(log_lines_at(i), "chain"));
    }
    ck_assert_ptr_null(json_object_get(log_lines_at(5), "chain"));
    ck_assert_str_eq(log_lines_text(5, "message"), "it fails");
    char expected[100];
    size_t last = log_lines_count() - 1;
    int line = atoi(log_lines_text(0, "line"));
    int prefix = snprintf(expected, sizeof expected, "%llu more of check_log_storm.c:%d in ",
                          (unsigned long long)figures.counted, line);
    ck_assert_msg(strncmp(log_lines_text(last, "message"), expected, (size_t)prefix) == 0, "%s",
                  log_lines_text(last, "message"));
    ck_assert_str_eq(log_lines_text(last, "severity"), "warning");
    ck_assert_str_eq(log_lines_text(last, "file"), "check_log_storm.c");
    ck_assert_int_eq(atoi(log_lines_text(last, "line")), line);
    ck_assert_uint_eq(log_lines_events() + log_lines_more(), 1000);
    expect_exact(log, 1000);
}
END_TEST

START_TEST(what_was_counted_is_told_by_itself)
{
    GUARD_AUTO(s);
    const guard_log_options options = {.report_ms = 20};
    guard_log *log = guard_log_open(s, "log", &options);
    log_lines_collect(log);
    guard_service *service = open_service(s, log);
    uint64_t calls = 0;
    do {
        for (int i = 0; i < 100; i++, calls++) {
            guard_service_call(service, fail_request, NULL, NULL);
        }
        guard_log_read(log, &figures);
    } while (figures.counted == 0);
    while (log_lines_events() + log_lines_more() < calls) {
        pause_ms(1);
    }
    expect_exact(log, calls);
}
END_TEST

START_TEST(after_a_storm_a_panic_is_a_full_record_again)
{
    GUARD_AUTO(s);
    const guard_log_options options = {.site_full = 20, .site_lines = 20, .report_ms = 3600000};
    guard_log *log = guard_log_open(s, "log", &options);
    log_lines_collect(log);
    guard_service *service = open_service(s, log);
    do {
        guard_service_call(service, fail_request, NULL, NULL);
        guard_log_read(log, &figures);
    } while (figures.counted == 0);
    uint64_t full = figures.full;
    do {
        pause_ms(5);
        guard_service_call(service, fail_request, NULL, NULL);
        guard_log_read(log, &figures);
    } while (figures.full == full);
}
END_TEST

static void log_at(guard_log *log, uint32_t line)
{
    guard_error error;
    guard_error_set(&error, GUARD_USER, 1, "at line %u", line);
    strcpy(error.file, "many.c");
    error.line = line;
    guard_log_error(log, GUARD_LOG_ERROR, &error);
}

START_TEST(the_log_as_a_whole_is_bounded_however_many_sites_there_are)
{
    enum { SITES = 300, EACH = 10 };
    GUARD_AUTO(s);
    const guard_log_options options = {.all_lines = 5, .all_full = 1, .report_ms = 3600000};
    guard_log *log = guard_log_open(s, "log", &options);
    log_lines_collect(log);
    for (uint32_t i = 0; i < SITES * EACH; i++) {
        log_at(log, i % SITES + 1);
    }
    log_lines_flush(log);
    expect_exact(log, SITES * EACH);
    ck_assert_uint_ge(figures.full + figures.brief, 5);
    ck_assert_uint_gt(figures.counted, SITES * EACH / 2);
    ck_assert_uint_eq(log_lines_events() + log_lines_more(), SITES * EACH);
    guard_log_site site;
    ck_assert_int_eq(guard_log_read_site(log, GUARD_LOG_SITES - 1, &site), 1);
    ck_assert_str_eq(site.file, "others");
    ck_assert_uint_eq(site.events, (SITES - (GUARD_LOG_SITES - 1)) * EACH);
    ck_assert_uint_eq(site.untold, 0);
    ck_assert_int_eq(guard_log_read_site(log, GUARD_LOG_SITES, &site), 0);
}
END_TEST

START_TEST(a_quiet_site_is_not_silenced_by_a_loud_one)
{
    GUARD_AUTO(s);
    const guard_log_options options = {.report_ms = 3600000};
    guard_log *log = guard_log_open(s, "log", &options);
    log_lines_collect(log);
    do {
        log_at(log, 1);
        guard_log_read(log, &figures);
    } while (figures.counted < 1000);
    log_at(log, 2);
    log_lines_flush(log);
    bool is_there = false;
    for (size_t i = 0; i < log_lines_count(); i++) {
        is_there |= strcmp(log_lines_text(i, "message"), "at line 2") == 0;
    }
    ck_assert(is_there);
}
END_TEST

/* --------------------------------------------------------------------------------------------- many threads -- */

typedef struct storm {
    guard_service *service;
    uint64_t panics; /* of each thread */
} storm;

static void *storm_thread(void *arg)
{
    const storm *this = arg;
    for (uint64_t i = 0; i < this->panics; i++) {
        guard_service_call(this->service, fail_request, NULL, NULL);
    }
    return NULL;
}

/* Seconds. */
static double rage(guard_service *service, uint64_t panics)
{
    pthread_t threads[THREADS];
    struct timespec from;
    struct timespec to;
    storm this = {service, panics / THREADS};
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (int i = 0; i < THREADS; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, storm_thread, &this), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    clock_gettime(CLOCK_MONOTONIC, &to);
    guard_service_figures calls;
    guard_service_read(service, &calls);
    ck_assert_uint_eq(calls.failed, panics);
    ck_assert_uint_eq(calls.under_way, 0);
    return (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9;
}

static void tell(const char *where, uint64_t panics, double seconds)
{
    printf("# %s: %llu panics in %.2f s: %llu full, %llu short, %llu counted, %llu dropped, %llu written, %llu lost\n",
           where, (unsigned long long)panics, seconds, (unsigned long long)figures.full,
           (unsigned long long)figures.brief, (unsigned long long)figures.counted, (unsigned long long)figures.dropped,
           (unsigned long long)figures.written, (unsigned long long)figures.lost);
    fflush(stdout);
}

START_TEST(every_panic_of_many_threads_is_in_a_line_or_in_a_count)
{
    uint64_t panics = storm_panics();
    GUARD_AUTO(s);
    const guard_log_options options = {.report_ms = 50, .queue_lines = 8, .site_lines = 100000, .all_lines = 100000};
    guard_log *log = guard_log_open(s, "log", &options);
    log_lines_collect(log);
    log_lines_only_count();
    double seconds = rage(open_service(s, log), panics);
    log_lines_flush(log);
    expect_exact(log, panics);
    ck_assert_uint_eq(log_lines_events() + log_lines_more(), panics);
    ck_assert_uint_eq(log_lines_events(), figures.written);
    tell("a queue of 8 lines", panics, seconds);
}
END_TEST

START_TEST(on_a_full_disk_nothing_is_lost_but_lines)
{
    uint64_t panics = storm_panics();
    GUARD_AUTO(s);
    const guard_log_options options = {.report_ms = 50};
    guard_log *log = guard_log_open(s, "log", &options);
    guard_log_to_file(log, "/dev/full", 0);
    double seconds = rage(open_service(s, log), panics);
    log_lines_flush(log);
    expect_exact(log, panics);
    ck_assert_uint_eq(figures.written, 0);
    ck_assert_uint_eq(figures.told, 0);
    ck_assert_uint_ge(figures.lost, 5);
    uint64_t untold = 0;
    guard_log_site site;
    for (unsigned i = 0; i < GUARD_LOG_SITES; i++) {
        untold += guard_log_read_site(log, i, &site) ? site.untold : 0;
    }
    ck_assert_uint_eq(untold, figures.counted + figures.dropped);
    tell("/dev/full", panics, seconds);
}
END_TEST

/* A file that may not grow: SIGXFSZ must not come to anybody, and what fits is whole. */
START_TEST(a_disk_that_fills_up_and_is_emptied_takes_lines_again)
{
    enum { LIMIT = 100000 };
    uint64_t panics = storm_panics();
    struct rlimit limit;
    scratch_enter();
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
    rlim_t before = limit.rlim_cur;
    limit.rlim_cur = LIMIT;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    GUARD_AUTO(s);
    const guard_log_options options = {
        .report_ms = 3600000, .site_lines = 1000000, .all_lines = 1000000, .site_full = 1000000, .all_full = 1000000};
    guard_log *log = guard_log_open(s, "log", &options);
    guard_log_to_file(log, "log", -1);
    uint64_t rounds = 0;
    double seconds = 0;
    do { /* its queue takes 256 lines at a time, which are a third of what the file may have */
        seconds += rage(open_service(s, log), panics);
        rounds++;
        guard_log_flush(log, 60000);
        guard_log_read(log, &figures);
    } while (figures.lost == 0);
    panics *= rounds;
    ck_assert_uint_gt(figures.written, 0);
    limit.rlim_cur = before;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    uint64_t lost = figures.lost;
    log_lines_flush(log);
    expect_exact(log, panics);
    ck_assert_uint_ge(figures.told, 1);

    char text[64];
    snprintf(text, sizeof text, "\"message\":\"%llu lines could not be written\"", (unsigned long long)lost);
    FILE *file = fopen("log", "r");
    char *line = NULL;
    size_t size = 0;
    uint64_t whole = 0;
    uint64_t torn = 0;
    bool is_told = false;
    while (getline(&line, &size, file) > 0) {
        json_t *parsed = json_loads(line, 0, NULL);
        whole += parsed != NULL && json_object_get(parsed, "more") == NULL;
        torn += parsed == NULL;
        is_told |= strstr(line, text) != NULL;
        json_decref(parsed);
    }
    free(line);
    fclose(file);
    ck_assert_uint_eq(whole, figures.written);
    ck_assert_uint_le(torn, 1);
    ck_assert(is_told);
    tell("a file of 100,000 bytes", panics, seconds);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_site_gets_full_records_then_short_lines_then_a_count,
        what_was_counted_is_told_by_itself,
        after_a_storm_a_panic_is_a_full_record_again,
        the_log_as_a_whole_is_bounded_however_many_sites_there_are,
        a_quiet_site_is_not_silenced_by_a_loud_one,
        every_panic_of_many_threads_is_in_a_line_or_in_a_count,
        on_a_full_disk_nothing_is_lost_but_lines,
        a_disk_that_fills_up_and_is_emptied_takes_lines_again,
    };
    return suite_run("log_storm", tests, sizeof tests / sizeof *tests);
}
