/* SPDX-License-Identifier: MIT */
/*
 * check_metrics_page.c: the page is as the text format wants it, has what collectors put, and is written whole or given up.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_metrics.h>

#include "exposition.h"
#include "program_metrics.h"
#include "scratch.h"
#include "suite.h"

static guard_error error;

/* ------------------------------------------------------------------------------------------------ labels -- */

START_TEST(labels_of_any_bytes_are_written_as_the_format_wants)
{
    static const char *const values[] = {"a\"b",        "a\\b", "a\nb", "\x01\x7f",   "\xff\xfe",
                                         "caf\xc3\xa9", "",     NULL,   "{a=\"b\"} 1"};
    GUARD_AUTO(s);
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        guard_counter_add(guard_counter_open(&apple_counter, &(guard_label){"kind", values[i]}, 1), 1);
    }
    char longest[300];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    guard_counter_add(guard_counter_open(&apple_counter, (guard_label[]){{"kind", longest}, {"also", longest}}, 2), 1);
    const char *text = exposition_read(s);
    ck_assert_int_eq(exposition_value(text, "apples_total{kind=\"a\\\"b\"}"), 1);
    ck_assert_int_eq(exposition_value(text, "apples_total{kind=\"a\\\\b\"}"), 1);
    ck_assert_int_eq(exposition_value(text, "apples_total{kind=\"caf\xc3\xa9\"}"), 1);
    ck_assert_int_eq(exposition_value(text, "apples_total{kind=\"\"}"), 2); /* "" and NULL are one */
    ck_assert_int_eq(exposition_sum(text, "apples_total"), 10);
}
END_TEST

static unsigned misuses;

static void count_misuse(const guard_error *told)
{
    ck_assert_int_eq(told->code, GUARD_MISUSE_ARGUMENT);
    misuses++;
}

START_TEST(names_that_the_format_forbids_are_misuse)
{
    static const guard_metric bad[] = {
        {.name = "1apples_total", .type = GUARD_METRIC_COUNTER},
        {.name = "apples-total", .type = GUARD_METRIC_COUNTER},
        {.name = "apples", .type = GUARD_METRIC_COUNTER},
        {.name = "", .type = GUARD_METRIC_COUNTER},
        {.name = NULL, .type = GUARD_METRIC_COUNTER},
        {.name = "apples_total", .type = 0},
        {.name = "apples_total", .type = GUARD_METRIC_GAUGE}, /* of another type than is asked for */
        {.name = "apples_total", .type = GUARD_METRIC_COUNTER, .in_seconds = 2},
    };
    static const char *const labels[] = {"", "1a", "a b", "le", "__a", "a:b", NULL};
    guard_misuse_handler(count_misuse);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_uint_eq(guard_counter_open(&bad[i], NULL, 0).slot, 0);
    }
    ck_assert_uint_eq(guard_counter_open(NULL, NULL, 0).slot, 0);
    for (size_t i = 0; i < sizeof labels / sizeof *labels; i++) {
        ck_assert_uint_eq(guard_counter_open(&apple_counter, &(guard_label){labels[i], "x"}, 1).slot, 0);
    }
    ck_assert_uint_eq(guard_counter_open(&apple_counter, (guard_label[]){{"a", "1"}, {"a", "2"}}, 2).slot, 0);
    ck_assert_uint_eq(guard_counter_open(&apple_counter, NULL, 1).slot, 0);
    ck_assert_uint_eq(misuses, sizeof bad / sizeof *bad + 1 + sizeof labels / sizeof *labels + 2);
    guard_misuse_handler(NULL);
    GUARD_AUTO(s);
    ck_assert_ptr_null(strstr(exposition_read(s), "apples"));
}
END_TEST

static unsigned notes;

static void count_note(const char *text)
{
    (void)text;
    notes++;
}

START_TEST(without_room_a_counter_counts_nothing_and_that_is_noted_once)
{
    GUARD_AUTO(s);
    guard_note_handler(count_note);
    for (int i = 0; i < 600; i++) {
        char text[16];
        snprintf(text, sizeof text, "%d", i);
        guard_counter_add(guard_counter_open(&apple_counter, &(guard_label){"kind", text}, 1), 1);
    }
    guard_histogram_observe(guard_histogram_open(&time_histogram, NULL, 0), 1);
    ck_assert_int_eq(exposition_sum(exposition_read(s), "apples_total"), 370);
    ck_assert_uint_eq(notes, 1);
}
END_TEST

/* -------------------------------------------------------------------------------------------- collectors -- */

static void collect_badly(guard_metrics_page *page, void *arg)
{
    (void)arg;
    guard_metrics_put(page, &level_gauge, &(guard_label){"of", "nobody"}, 1, 1);
    guard_panic(1, "a collector");
}

START_TEST(a_collector_is_asked_at_each_reading_until_its_scope_ends)
{
    GUARD_AUTO(s);
    guard_note_handler(count_note);
    guard_counter_add(guard_counter_open(&apple_counter, &(guard_label){"kind", "collected"}, 1), 4);
    {
        GUARD_AUTO(inner);
        guard_metrics_collect(inner, collect, "pool");
        guard_ticket ticket = guard_metrics_collect(inner, collect, "pool");
        guard_metrics_collect(inner, collect_badly, NULL);
        const char *text = exposition_read(s);
        ck_assert_int_eq(exposition_value(text, "level{of=\"pool\"}"), 1 + 2); /* one name: added up */
        ck_assert_int_eq(exposition_value(text, "apples_total{kind=\"collected\"}"), 4 + 3 + 3);
        ck_assert_int_eq(exposition_has(text, "level{of=\"nobody\"}"), 0);
        ck_assert_uint_eq(notes, 1);
        guard_release(ticket);
        ck_assert_int_eq(exposition_value(exposition_read(s), "level{of=\"pool\"}"), 3);
    }
    ck_assert_ptr_null(strstr(exposition_read(s), "level"));
    ck_assert_int_eq(asked, 3);
}
END_TEST

static void collect_much(guard_metrics_page *page, void *arg)
{
    (void)arg;
    for (int i = 0; i < 10500; i++) {
        char text[16];
        snprintf(text, sizeof text, "%d", i);
        guard_metrics_put(page, &level_gauge, &(guard_label){"of", text}, 1, i);
    }
}

static void collect_other_type(guard_metrics_page *page, void *arg)
{
    static const guard_metric other = {.name = "level_total", .type = GUARD_METRIC_GAUGE};
    static const guard_metric same = {.name = "level_total", .type = GUARD_METRIC_COUNTER};
    (void)arg;
    guard_metrics_put(page, &other, &(guard_label){"of", "a"}, 1, 1);
    guard_metrics_put(page, &same, &(guard_label){"of", "b"}, 1, 1);
}

START_TEST(a_page_is_bounded_and_says_what_it_lacks)
{
    GUARD_AUTO(s);
    {
        GUARD_AUTO(inner);
        guard_metrics_collect(inner, collect_other_type, NULL);
        ck_assert_int_eq(exposition_value(exposition_read(s), "guard_metrics_dropped"), 1);
    }
    guard_metrics_collect(s, collect_much, NULL);
    const char *text = guard_metrics_text(s, NULL);
    ck_assert_int_ge(exposition_value(text, "guard_metrics_dropped"), 500);
    ck_assert_uint_lt(strlen(text), 1024 * 1024);
}
END_TEST

/* ----------------------------------------------------------------------------------------------- writing -- */

START_TEST(the_page_is_written_to_a_file)
{
    static char text[65536];
    scratch_enter();
    int fd = open("page", O_RDWR | O_CREAT, 0600);
    guard_histogram_observe(guard_histogram_open(&time_histogram, NULL, 0), 1500000);
    size_t size = guard_metrics_write(fd);
    ck_assert_int_eq(pread(fd, text, sizeof text - 1, 0), (ssize_t)size);
    exposition_check(text);
    ck_assert_ptr_nonnull(strstr(text, "times_seconds_sum 0.0015\n"));
    close(fd);
}
END_TEST

static void ignore(int number)
{
    (void)number;
}

static int ends[2];
static char taken[1024 * 1024];
static size_t taken_size;

/* Takes a little at a time, so that the writer is often without room. */
static void *take_slowly(void *arg)
{
    ssize_t got;
    while ((got = read(ends[0], taken + taken_size, 1000)) != 0) {
        ck_assert(got > 0 || errno == EINTR); /* the signals come to any thread */
        taken_size += got > 0 ? (size_t)got : 0;
    }
    return arg;
}

static void write_to(void *arg)
{
    guard_metrics_write(*(int *)arg);
}

static void write_into_little_room(void)
{
    GUARD_AUTO(s);
    pthread_t reader;
    struct sigaction action = {.sa_handler = ignore}; /* without SA_RESTART: calls end with EINTR */
    sigaction(SIGALRM, &action, NULL);
    guard_metrics_collect(s, collect_much, NULL);
    ck_assert_int_eq(pthread_create(&reader, NULL, take_slowly, NULL), 0);
    setitimer(ITIMER_REAL, &(struct itimerval){{0, 1000}, {0, 1000}}, NULL);
    size_t size = guard_metrics_write(ends[1]);
    setitimer(ITIMER_REAL, &(struct itimerval){{0, 0}, {0, 0}}, NULL);
    close(ends[1]);
    pthread_join(reader, NULL);
    ck_assert_uint_eq(size, taken_size);
    taken[taken_size] = '\0';
    ck_assert_ptr_nonnull(strstr(taken, "level{of=\"7\"} 7\n"));
}

START_TEST(a_slow_reader_of_a_pipe_gets_all_of_it_though_signals_come)
{
    ck_assert_int_eq(pipe(ends), 0);
    fcntl(ends[1], F_SETPIPE_SZ, 4096);
    write_into_little_room();
}
END_TEST

START_TEST(a_slow_reader_of_a_socket_gets_all_of_it_though_signals_come)
{
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    write_into_little_room();
}
END_TEST

START_TEST(a_dead_pipe_and_a_full_disk_are_panics_and_no_signal)
{
    int full = open("/dev/full", O_WRONLY);
    ck_assert_int_eq(pipe(ends), 0);
    close(ends[0]);
    ck_assert_int_eq(guard_run(write_to, &ends[1], &error), EPIPE);
    ck_assert_int_eq(error.domain, GUARD_OS);
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    close(ends[0]);
    ck_assert_int_eq(guard_run(write_to, &ends[1], &error), EPIPE);
    ck_assert_int_eq(guard_run(write_to, &full, &error), ENOSPC);
    close(ends[1]);
    ck_assert_int_eq(guard_run(write_to, &ends[1], &error), EBADF);
    int none = -1; /* which poll(2) passes over, so that it would be waited for */
    ck_assert_int_eq(guard_run(write_to, &none, &error), EBADF);
    ck_assert_int_eq(error.domain, GUARD_OS);
}
END_TEST

static void write_until(void *arg)
{
    GUARD_AUTO(s);
    guard_metrics_collect(s, collect_much, NULL);
    guard_deadline(s, 50);
    write_to(arg);
}

START_TEST(a_reader_that_takes_nothing_is_left_at_the_deadline)
{
    ck_assert_int_eq(pipe(ends), 0);
    ck_assert_int_eq(guard_run(write_until, &ends[1], &error), ETIMEDOUT);
    ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        labels_of_any_bytes_are_written_as_the_format_wants,
        names_that_the_format_forbids_are_misuse,
        without_room_a_counter_counts_nothing_and_that_is_noted_once,
        a_collector_is_asked_at_each_reading_until_its_scope_ends,
        a_page_is_bounded_and_says_what_it_lacks,
        the_page_is_written_to_a_file,
        a_slow_reader_of_a_pipe_gets_all_of_it_though_signals_come,
        a_slow_reader_of_a_socket_gets_all_of_it_though_signals_come,
        a_dead_pipe_and_a_full_disk_are_panics_and_no_signal,
        a_reader_that_takes_nothing_is_left_at_the_deadline,
    };
    return suite_run("metrics_page", tests, sizeof tests / sizeof *tests);
}
