/* SPDX-License-Identifier: MIT */
/*
 * check_log_line.c: the lines of the panic log are whole, valid and true whatever is in them.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <guard/guard.h>
#include <guard/guard_breaker.h>
#include <guard/guard_context.h>
#include <guard/guard_file.h>
#include <guard/guard_log.h>
#include <guard/guard_service.h>
#include <guard/guard_trace.h>

#include "file_faults.h"
#include "log_lines.h"
#include "suite.h"

static guard_log_figures figures;

/* ------------------------------------------------------------------------------------------------- fields -- */

static void fail_cleanup(void *arg)
{
    (void)arg;
    guard_panic_in(GUARD_OS, EIO, "the cleanup failed");
}

static const guard_kind failing_kind = {.name = "failing", .release = fail_cleanup};

static void fail_request(void *arg)
{
    GUARD_AUTO(s);
    guard_context_set(s, "customer", arg);
    guard_context_undone("transaction on %s: rolled back", "bank.db");
    guard_defer_kind(s, &failing_kind, arg);
    guard_error error;
    guard_error_set(&error, GUARD_PQ, 3, "no such \"table\"");
    strcpy(error.sqlstate, "42P01");
    strcpy(error.detail, "Failing row contains (4111 1111 1111 1111)");
    guard_panic_error(&error);
}

START_TEST(a_panic_of_a_service_is_one_line_with_everything)
{
    GUARD_AUTO(s);
    guard_log *log = guard_log_open(s, "log", &log_lines_everything);
    log_lines_collect(log);
    guard_trace_capture(1);
    const guard_service_options options = {.log = log};
    guard_service *service = guard_service_open(s, "ledger", &options);
    guard_context_set(s, "request", "POST /transfers");
    guard_context_traceparent(s, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    ck_assert_int_eq(guard_service_call(service, fail_request, "alice", NULL), 3);
    log_lines_flush(log);
    ck_assert_uint_eq(log_lines_count(), 1);
    ck_assert_str_eq(log_lines_text(0, "service"), "ledger");
    ck_assert_str_eq(log_lines_text(0, "severity"), "error");
    ck_assert_str_eq(log_lines_text(0, "domain"), "pq");
    ck_assert_str_eq(log_lines_text(0, "code"), "3");
    ck_assert_str_eq(log_lines_text(0, "sqlstate"), "42P01");
    ck_assert_str_eq(log_lines_text(0, "message"), "no such \"table\"");
    ck_assert_str_eq(log_lines_text(0, "file"), "check_log_line.c");
    ck_assert_str_eq(log_lines_text(0, "function"), "fail_request");
    ck_assert_int_gt(atoi(log_lines_text(0, "line")), 0);
    ck_assert_str_eq(log_lines_text(0, "traceparent"), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    ck_assert_str_eq(log_lines_text(0, "context"), "{\"request\":\"POST /transfers\",\"customer\":\"alice\"}");
    ck_assert_str_eq(log_lines_text(0, "undone"), "[\"transaction on bank.db: rolled back\"]");
    ck_assert_ptr_nonnull(strstr(log_lines_text(0, "chain"), "\"relation\":\"attached\""));
    ck_assert_ptr_nonnull(strstr(log_lines_text(0, "chain"), "the cleanup failed"));
    ck_assert_ptr_nonnull(strstr(log_lines_text(0, "stack"), "fail_request"));
    const char *time = log_lines_text(0, "time");
    ck_assert_msg(strlen(time) == 24 && time[10] == 'T' && time[23] == 'Z', "%s", time);
    ck_assert_msg(log_lines_text(0, "detail")[0] == '\0', "what a server tells of rows is in the log");
}
END_TEST

/* time(2) may be a tick behind the clock, and so told after it as the second before. */
static time_t clock_second(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec;
}

START_TEST(the_time_is_that_of_the_clock)
{
    GUARD_AUTO(s);
    guard_log *log = guard_log_open(s, "log", &log_lines_everything);
    log_lines_collect(log);
    time_t before = clock_second();
    guard_log_write(log, GUARD_LOG_INFO, "now");
    time_t after = clock_second();
    log_lines_flush(log);
    struct tm parts;
    memset(&parts, 0, sizeof parts);
    ck_assert_ptr_nonnull(strptime(log_lines_text(0, "time"), "%Y-%m-%dT%H:%M:%S", &parts));
    time_t told = timegm(&parts);
    ck_assert_msg(before <= told && told <= after, "%s", log_lines_text(0, "time"));
}
END_TEST

static void fail_inside(void *arg)
{
    GUARD_AUTO(s);
    guard_context_set(s, "step", arg);
    guard_panic(7, "inside %s", (const char *)arg);
}

static void fail_after_another(void *arg)
{
    guard_error error;
    guard_run(fail_inside, "one", &error); /* contained: what it knew is not that of the next */
    guard_context_undone("file %d: discarded", 1);
    guard_panic(8, "outside");
    (void)arg;
}

static void raise_again(void *arg)
{
    guard_error error;
    GUARD_AUTO(s);
    guard_context_set(s, "order", arg);
    guard_run(fail_inside, "two", &error);
    guard_panic_error(&error);
}

START_TEST(a_line_has_the_context_of_its_own_panic)
{
    GUARD_AUTO(s);
    guard_log *log = guard_log_open(s, "log", &log_lines_everything);
    log_lines_collect(log);
    const guard_service_options options = {.log = log};
    guard_service *service = guard_service_open(s, "ledger", &options);
    ck_assert_int_eq(guard_service_call(service, fail_after_another, NULL, NULL), 8);
    ck_assert_int_eq(guard_service_call(service, raise_again, "7", NULL), 7);
    ck_assert_int_eq(guard_service_call(service, fail_inside, "three", NULL), 7);
    log_lines_flush(log);
    ck_assert_str_eq(log_lines_text(0, "context"), "");
    ck_assert_str_eq(log_lines_text(0, "undone"), "[\"file 1: discarded\"]");
    ck_assert_str_eq(log_lines_text(1, "context"), "{\"order\":\"7\",\"step\":\"two\"}");
    ck_assert_str_eq(log_lines_text(1, "undone"), "");
    ck_assert_str_eq(log_lines_text(2, "context"), "{\"step\":\"three\"}");
}
END_TEST

static void undo_many(void *arg)
{
    for (int i = 0; i < *(int *)arg; i++) {
        guard_context_undone("part %d", i);
    }
    guard_panic(1, "undone");
}

START_TEST(what_was_taken_back_is_bounded_and_counted)
{
    GUARD_AUTO(s);
    int many = 10;
    guard_log *log = guard_log_open(s, "log", &log_lines_everything);
    log_lines_collect(log);
    const guard_service_options options = {.log = log};
    guard_service *service = guard_service_open(s, "ledger", &options);
    guard_context_undone("outside of a call: nobody's");
    guard_service_call(service, undo_many, &many, NULL);
    log_lines_flush(log);
    ck_assert_str_eq(log_lines_text(0, "undone"), "[\"part 0\",\"part 1\",\"part 2\",\"part 3\"]");
    ck_assert_str_eq(log_lines_text(0, "undone_more"), "6");
}
END_TEST

static void replace_and_fail(void *arg)
{
    GUARD_AUTO(s);
    fputs("new", guard_file_replace_stream(guard_file_replace_begin(s, arg, NULL)));
    guard_panic(1, "half way");
}

START_TEST(a_file_that_was_not_replaced_is_told)
{
    scratch_enter();
    GUARD_AUTO(s);
    guard_log *log = guard_log_open(s, "log", &log_lines_everything);
    log_lines_collect(log);
    const guard_service_options options = {.log = log};
    guard_service *service = guard_service_open(s, "ledger", &options);
    guard_service_call(service, replace_and_fail, "receipt", NULL);
    log_lines_flush(log);
    ck_assert_str_eq(log_lines_text(0, "undone"), "[\"replacement of \\\"receipt\\\": given up\"]");
}
END_TEST

/* A service says how severe its errors are, and that a refusal of its own is none. */
static guard_severity judge(const guard_error *error)
{
    return error->code == 7 ? GUARD_LOG_NOTHING : error->code == 8 ? GUARD_LOG_CRITICAL : GUARD_LOG_BY_ERROR;
}

static void fail_with(void *arg)
{
    guard_panic_in(*(int *)arg == 9 ? GUARD_TIMEOUT : GUARD_USER, *(int *)arg, "code %d", *(int *)arg);
}

START_TEST(a_service_says_how_severe_an_error_is)
{
    GUARD_AUTO(s);
    guard_log *log = guard_log_open(s, "log", &log_lines_everything);
    log_lines_collect(log);
    const guard_service_options options = {.log = log, .severity = judge};
    guard_service *service = guard_service_open(s, "ledger", &options);
    for (int code = 7; code < 11; code++) {
        guard_service_call(service, fail_with, &code, NULL);
    }
    log_lines_flush(log);
    ck_assert_uint_eq(log_lines_count(), 3);
    ck_assert_str_eq(log_lines_text(0, "severity"), "critical");
    ck_assert_str_eq(log_lines_text(1, "severity"), "warning");
    ck_assert_str_eq(log_lines_text(2, "severity"), "error");
    guard_log_read(log, &figures);
    ck_assert_uint_eq(figures.events, 3);
}
END_TEST

static void break_down(void *arg)
{
    (void)arg;
    guard_panic_in(GUARD_TIMEOUT, ETIMEDOUT, "no answer");
}

START_TEST(a_breaker_tells_its_changes_in_the_log)
{
    GUARD_AUTO(s);
    guard_log *log = guard_log_open(s, "ledger", &log_lines_everything);
    log_lines_collect(log);
    const guard_breaker_options options = {.calls = 2, .open_ms = 60000, .log = log};
    guard_breaker *breaker = guard_breaker_open(s, "database", &options);
    guard_breaker_call(breaker, break_down, NULL, NULL);
    guard_breaker_call(breaker, break_down, NULL, NULL);
    log_lines_flush(log);
    ck_assert_uint_eq(log_lines_count(), 1);
    ck_assert_str_eq(log_lines_text(0, "message"), "breaker database is open");
    ck_assert_str_eq(log_lines_text(0, "severity"), "warning");
    ck_assert_str_eq(log_lines_text(0, "service"), "ledger");
}
END_TEST

/* -------------------------------------------------------------------------------------------------- bytes -- */

static uint64_t seed = 20261125;

static uint32_t random_number(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)(seed >> 32);
}

/* All of it, also where a text should end: a program may fill an error in as it likes. */
static void fill_at_random(void *memory, size_t size)
{
    unsigned char *bytes = memory;
    unsigned kind = random_number() % 4;
    for (size_t i = 0; i < size; i++) {
        uint32_t number = random_number();
        bytes[i] = (unsigned char)(kind == 0   ? number          /* anything */
                                   : kind == 1 ? number % 32 + 1 /* control characters */
                                   : kind == 2
                                       ? (number & 1 ? '"' : '\\')
                                       : 0xC0 +
                                             number % 64 /* what begins a character of UTF-8, and nothing after it */);
    }
}

START_TEST(whatever_the_bytes_each_line_is_json_in_utf8)
{
    enum { ROUNDS = 4000 };
    GUARD_AUTO(s);
    guard_log *log = guard_log_open(s, "l\x1B\"og\xFF", &log_lines_everything);
    log_lines_collect(log);
    log_lines_only_count();
    guard_error error;
    char text[200];
    for (int i = 0; i < ROUNDS; i++) {
        GUARD_AUTO(each);
        fill_at_random(&error, sizeof error);
        fill_at_random(text, sizeof text - 1);
        text[random_number() % sizeof text] = '\0';
        text[sizeof text - 1] = '\0';
        if (text[0] != '\0') {
            guard_context_set(each, text, text);
            guard_context_set(each, "k", text);
        }
        error.domain = (int32_t)(random_number() % 2000);
        guard_log_error(log, i % 9 - 1, &error);
        guard_log_write(log, GUARD_LOG_INFO, "%s", text);
        if (i % 64 == 0) {
            log_lines_flush(log);
        }
    }
    log_lines_flush(log);
    guard_log_read(log, &figures);
    ck_assert_uint_eq(figures.events, (uint64_t)ROUNDS * 2 - (ROUNDS + 8) / 9); /* severity -1 is nothing */
    ck_assert_uint_eq(figures.dropped, 0);
    ck_assert_uint_eq(log_lines_events(), figures.events);
}
END_TEST

START_TEST(a_character_is_kept_and_a_control_character_is_escaped)
{
    GUARD_AUTO(s);
    guard_log *log = guard_log_open(s, "log", &log_lines_everything);
    log_lines_collect(log);
    guard_log_write(log, GUARD_LOG_INFO, "%s",
                    "gr\xC3\xBC\xC3\x9F \xE2\x82\xAC \xF0\x9F\x92\xA5 \x1B[31m\xC2\x9B\x7F\n\t\xFF\xC3");
    log_lines_flush(log);
    ck_assert_str_eq(
        log_lines_text(0, "message"),
        "gr\xC3\xBC\xC3\x9F \xE2\x82\xAC \xF0\x9F\x92\xA5 \x1B[31m\xC2\x9B\x7F\n\t\xEF\xBF\xBD\xEF\xBF\xBD");
}
END_TEST

/* As long as everything can be, in characters that take six bytes each. */
static void fail_at_length(void *arg)
{
    guard_error *error = arg;
    GUARD_AUTO(s);
    char key[GUARD_CONTEXT_KEY_SIZE];
    for (int i = 0; i < GUARD_CONTEXT_VALUES; i++) {
        memset(key, 1, sizeof key - 1);
        key[sizeof key - 1] = '\0';
        key[0] = (char)('a' + i);
        guard_context_set(s, key, error->message);
    }
    for (int i = 0; i < 4; i++) {
        guard_context_undone("%s", error->message);
    }
    guard_panic_error(error);
}

START_TEST(the_longest_line_is_bounded_and_says_that_it_is_cut)
{
    GUARD_AUTO(s);
    guard_log *log = guard_log_open(s, "log", &log_lines_everything);
    log_lines_collect(log);
    guard_trace_capture(1);
    const guard_service_options options = {.log = log};
    guard_service *service = guard_service_open(s, "ledger", &options);
    guard_error error;
    memset(&error, 1, sizeof error);
    error.message[sizeof error.message - 1] = '\0';
    error.domain = 1000;
    error.cause_count = GUARD_CAUSES;
    for (int i = 0; i < GUARD_CAUSES; i++) {
        error.causes[i].relation = GUARD_CAUSE;
    }
    guard_service_call(service, fail_at_length, &error, NULL);
    log_lines_flush(log);
    ck_assert_str_eq(log_lines_text(0, "cut"), "true");
    ck_assert_uint_gt(strlen(log_lines_text(0, "message")), 90);                      /* what matters most is there, */
    ck_assert_uint_le(strlen(log_lines_text(0, "message")), 640 / strlen("\\u0001")); /* and leaves room for others */
    ck_assert_str_ne(log_lines_text(0, "undone"), "");
    ck_assert_str_eq(log_lines_text(0, "domain_number"), "1000");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_panic_of_a_service_is_one_line_with_everything,
        the_time_is_that_of_the_clock,
        a_line_has_the_context_of_its_own_panic,
        what_was_taken_back_is_bounded_and_counted,
        a_file_that_was_not_replaced_is_told,
        a_service_says_how_severe_an_error_is,
        a_breaker_tells_its_changes_in_the_log,
        whatever_the_bytes_each_line_is_json_in_utf8,
        a_character_is_kept_and_a_control_character_is_escaped,
        the_longest_line_is_bounded_and_says_that_it_is_cut,
    };
    return suite_run("log_line", tests, sizeof tests / sizeof *tests);
}
