/* SPDX-License-Identifier: MIT */
/*
 * check_log.c: the lines of the panic log are whole, valid and true whatever is in them; its thread writes them when its mode says so, and
 * whoever logs waits for nothing.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_breaker.h>
#include <guard/guard_context.h>
#include <guard/guard_fault.h>
#include <guard/guard_file.h>
#include <guard/guard_log.h>
#include <guard/guard_service.h>
#include <guard/guard_trace.h>

#include "child.h"
#include "fault_memory.h"
#include "file_faults.h"
#include "log_lines.h"
#include "suite.h"

static guard_log_figures figures;

/* So many lines that nothing is left out. */
static const guard_log_options everything = {
    .site_full = 1000000, .site_lines = 1000000, .all_full = 1000000, .all_lines = 1000000, .report_ms = 60000};

static void flush(guard_log *log)
{
    ck_assert_int_eq(guard_log_flush(log, 30000), 1);
}

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
    guard_log *log = guard_log_open(s, "log", &everything);
    log_lines_collect(log);
    guard_trace_capture(1);
    const guard_service_options options = {.log = log};
    guard_service *service = guard_service_open(s, "ledger", &options);
    guard_context_set(s, "request", "POST /transfers");
    guard_context_traceparent(s, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    ck_assert_int_eq(guard_service_call(service, fail_request, "alice", NULL), 3);
    flush(log);
    ck_assert_uint_eq(log_lines_count(), 1);
    ck_assert_str_eq(log_lines_text(0, "service"), "ledger");
    ck_assert_str_eq(log_lines_text(0, "severity"), "error");
    ck_assert_str_eq(log_lines_text(0, "domain"), "pq");
    ck_assert_str_eq(log_lines_text(0, "code"), "3");
    ck_assert_str_eq(log_lines_text(0, "sqlstate"), "42P01");
    ck_assert_str_eq(log_lines_text(0, "message"), "no such \"table\"");
    ck_assert_str_eq(log_lines_text(0, "file"), "check_log.c");
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
    guard_log *log = guard_log_open(s, "log", &everything);
    log_lines_collect(log);
    time_t before = clock_second();
    guard_log_write(log, GUARD_LOG_INFO, "now");
    time_t after = clock_second();
    flush(log);
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
    guard_log *log = guard_log_open(s, "log", &everything);
    log_lines_collect(log);
    const guard_service_options options = {.log = log};
    guard_service *service = guard_service_open(s, "ledger", &options);
    ck_assert_int_eq(guard_service_call(service, fail_after_another, NULL, NULL), 8);
    ck_assert_int_eq(guard_service_call(service, raise_again, "7", NULL), 7);
    ck_assert_int_eq(guard_service_call(service, fail_inside, "three", NULL), 7);
    flush(log);
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
    guard_log *log = guard_log_open(s, "log", &everything);
    log_lines_collect(log);
    const guard_service_options options = {.log = log};
    guard_service *service = guard_service_open(s, "ledger", &options);
    guard_context_undone("outside of a call: nobody's");
    guard_service_call(service, undo_many, &many, NULL);
    flush(log);
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
    guard_log *log = guard_log_open(s, "log", &everything);
    log_lines_collect(log);
    const guard_service_options options = {.log = log};
    guard_service *service = guard_service_open(s, "ledger", &options);
    guard_service_call(service, replace_and_fail, "receipt", NULL);
    flush(log);
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
    guard_log *log = guard_log_open(s, "log", &everything);
    log_lines_collect(log);
    const guard_service_options options = {.log = log, .severity = judge};
    guard_service *service = guard_service_open(s, "ledger", &options);
    for (int code = 7; code < 11; code++) {
        guard_service_call(service, fail_with, &code, NULL);
    }
    flush(log);
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
    guard_log *log = guard_log_open(s, "ledger", &everything);
    log_lines_collect(log);
    const guard_breaker_options options = {.calls = 2, .open_ms = 60000, .log = log};
    guard_breaker *breaker = guard_breaker_open(s, "database", &options);
    guard_breaker_call(breaker, break_down, NULL, NULL);
    guard_breaker_call(breaker, break_down, NULL, NULL);
    flush(log);
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
    guard_log *log = guard_log_open(s, "l\x1B\"og\xFF", &everything);
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
            flush(log);
        }
    }
    flush(log);
    guard_log_read(log, &figures);
    ck_assert_uint_eq(figures.events, (uint64_t)ROUNDS * 2 - (ROUNDS + 8) / 9); /* severity -1 is nothing */
    ck_assert_uint_eq(figures.dropped, 0);
    ck_assert_uint_eq(log_lines_events(), figures.events);
}
END_TEST

START_TEST(a_character_is_kept_and_a_control_character_is_escaped)
{
    GUARD_AUTO(s);
    guard_log *log = guard_log_open(s, "log", &everything);
    log_lines_collect(log);
    guard_log_write(log, GUARD_LOG_INFO, "%s",
                    "gr\xC3\xBC\xC3\x9F \xE2\x82\xAC \xF0\x9F\x92\xA5 \x1B[31m\xC2\x9B\x7F\n\t\xFF\xC3");
    flush(log);
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
    guard_log *log = guard_log_open(s, "log", &everything);
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
    flush(log);
    ck_assert_str_eq(log_lines_text(0, "cut"), "true");
    ck_assert_uint_gt(strlen(log_lines_text(0, "message")), 90);                      /* what matters most is there, */
    ck_assert_uint_le(strlen(log_lines_text(0, "message")), 640 / strlen("\\u0001")); /* and leaves room for others */
    ck_assert_str_ne(log_lines_text(0, "undone"), "");
    ck_assert_str_eq(log_lines_text(0, "domain_number"), "1000");
}
END_TEST

/* -------------------------------------------------------------------------------------------------- modes -- */

static void wait_for_lines(size_t count)
{
    while (log_lines_count() < count) {
        poll(NULL, 0, 1);
    }
}

START_TEST(an_immediate_line_is_written_without_being_asked_for)
{
    GUARD_AUTO(s);
    guard_log *log = guard_log_open(s, "log", NULL);
    log_lines_collect(log);
    for (size_t i = 1; i <= 10; i++) { /* as many as its site has at once */
        guard_log_write(log, i % 2 ? GUARD_LOG_INFO : GUARD_LOG_ERROR, "line");
        wait_for_lines(i);
    }
}
END_TEST

START_TEST(a_batch_waits_for_its_bytes)
{
    GUARD_AUTO(s);
    guard_log_options options = everything;
    options.mode = GUARD_LOG_BATCHED;
    options.flush_bytes = 2000;
    options.flush_ms = 3600000;
    guard_log *log = guard_log_open(s, "log", &options);
    log_lines_collect(log);
    size_t lines = 0;
    do {
        guard_log_write(log, GUARD_LOG_ERROR, "a line");
        lines++;
        guard_log_read(log, &figures);
    } while (figures.written == 0 && lines < 10);
    ck_assert_uint_eq(log_lines_count(), 0); /* ten have about 1,300 bytes */
    while (lines++ < 100) {
        guard_log_write(log, GUARD_LOG_ERROR, "a line");
    }
    wait_for_lines(50); /* what came after the last whole batch waits on */
    flush(log);
    ck_assert_uint_eq(log_lines_count(), 100);
}
END_TEST

START_TEST(a_batch_waits_for_its_time)
{
    GUARD_AUTO(s);
    guard_log_options options = everything;
    options.mode = GUARD_LOG_BATCHED;
    options.flush_ms = 30;
    guard_log *log = guard_log_open(s, "log", &options);
    log_lines_collect(log);
    guard_log_write(log, GUARD_LOG_ERROR, "a line");
    wait_for_lines(1);
    guard_log_write(log, GUARD_LOG_ERROR, "another, after the batch");
    wait_for_lines(2);
}
END_TEST

START_TEST(on_panic_lines_wait_for_an_error)
{
    GUARD_AUTO(s);
    guard_log_options options = everything;
    options.mode = GUARD_LOG_ON_PANIC;
    options.queue_lines = 32;
    guard_log *log = guard_log_open(s, "log", &options);
    log_lines_collect(log);
    for (int i = 0; i < 10; i++) {
        guard_log_write(log, GUARD_LOG_NOTICE, "a line");
    }
    guard_log_read(log, &figures);
    ck_assert_uint_eq(figures.waiting, 10);
    ck_assert_uint_eq(log_lines_count(), 0);
    guard_log_write(log, GUARD_LOG_ERROR, "a panic");
    wait_for_lines(11);
    do { /* the lines are written a moment before their room in the queue is free */
        guard_log_read(log, &figures);
    } while (figures.waiting > 0);
    ck_assert_str_eq(log_lines_text(10, "message"), "a panic");
    for (int i = 0; i < 16; i++) { /* half of the queue, which must not be filled by what never comes to an error */
        guard_log_write(log, GUARD_LOG_NOTICE, "a line");
    }
    wait_for_lines(27);
}
END_TEST

/* ---------------------------------------------------------------------------------------- ends of processes -- */

static const guard_log_options at_leisure = {.mode = GUARD_LOG_BATCHED, .flush_bytes = 1000000, .flush_ms = 3600000};

static guard_log *open_at_leisure(guard_scope *scope, const char *path)
{
    guard_log *log = guard_log_open(scope, "log", &at_leisure);
    guard_log_to_file(log, path, 0);
    return log;
}

static void log_and_exit(void *arg)
{
    static guard_owner *owner;
    owner = guard_owner_new();
    guard_log *log = open_at_leisure(guard_owner_scope(owner), arg);
    for (int i = 0; i < 8; i++) {
        guard_log_write(log, GUARD_LOG_NOTICE, "before the exit");
    }
    exit(3);
}

START_TEST(an_exit_writes_what_waits)
{
    child_result result;
    scratch_enter();
    child_run(log_and_exit, "log", &result);
    ck_assert_int_eq(WEXITSTATUS(result.status), 3);
    log_lines_read("log");
    ck_assert_uint_eq(log_lines_events(), 8);
}
END_TEST

START_TEST(the_end_of_its_scope_writes_what_waits)
{
    scratch_enter();
    GUARD_SCOPE (s) {
        guard_log *log = open_at_leisure(s, "log");
        guard_log_write(log, GUARD_LOG_NOTICE, "before the end");
    }
    log_lines_read("log");
    ck_assert_uint_eq(log_lines_events(), 1);
}
END_TEST

static void on_segv(int signo)
{
    guard_log_flush_in_signal();
    signal(signo, SIG_DFL);
    raise(signo);
}

static void log_and_fault(void *arg)
{
    GUARD_AUTO(s);
    struct sigaction action = {.sa_handler = on_segv, .sa_flags = SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    guard_log *log = open_at_leisure(s, arg);
    guard_log_to_file(log, "second", 0);
    for (int i = 0; i < 8; i++) {
        guard_log_write(log, GUARD_LOG_NOTICE, "before the fault");
    }
    raise(SIGSEGV);
}

START_TEST(a_fatal_signal_writes_what_waits)
{
    child_result result;
    scratch_enter();
    child_run(log_and_fault, "log", &result);
    ck_assert_msg(WIFSIGNALED(result.status) && WTERMSIG(result.status) == SIGSEGV, "status %x",
                  (unsigned)result.status);
    log_lines_read("log");
    ck_assert_uint_eq(log_lines_events(), 8);
    log_lines_read("second");
    ck_assert_uint_eq(log_lines_events(), 8);
}
END_TEST

static void log_and_die(void *arg)
{
    GUARD_AUTO(s);
    guard_fatal_signals();
    guard_log *log = open_at_leisure(s, arg);
    for (int i = 0; i < 8; i++) {
        guard_log_write(log, GUARD_LOG_NOTICE, "before the abort");
    }
    abort();
}

START_TEST(the_librarys_handler_of_fatal_signals_writes_what_waits)
{
    child_result result;
    scratch_enter();
    child_run(log_and_die, "log", &result);
    child_expect_abort(&result);
    log_lines_read("log");
    ck_assert_uint_eq(log_lines_events(), 8);
}
END_TEST

static void log_forked(void *arg)
{
    GUARD_AUTO(s);
    guard_log *log = open_at_leisure(s, arg);
    /* The log's thread is past its start then: AddressSanitizer's allocator does not live through a fork while a thread is in it. */
    guard_log_write(log, GUARD_LOG_NOTICE, "before the fork");
    flush(log);
    for (int i = 0; i < 4; i++) {
        guard_log_write(log, GUARD_LOG_NOTICE, "the parent's");
    }
    pid_t child = fork();
    if (child == 0) {
        guard_log_read(log, &figures);
        int is_empty = figures.events == 0 && figures.waiting == 0;
        guard_log_write(log, GUARD_LOG_NOTICE, "the child's");
        const guard_service_options options = {.log = log};
        guard_service *service = guard_service_open(s, "child", &options);
        int code = 7;
        guard_service_call(service, fail_with, &code, NULL); /* starts a thread */
        int is_flushed = guard_log_flush(log, 30000);
        guard_log_read(log, &figures);
        exit(is_empty && is_flushed && figures.written == 2 ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    guard_log_write(log, GUARD_LOG_NOTICE, "the parent's");
    flush(log);
    guard_log_read(log, &figures);
    exit(status == 0 && figures.written == 6 ? 0 : 1);
}

/* ThreadSanitizer ends a child that starts a thread after a fork with threads. */
#if defined(__SANITIZE_THREAD__)
#define CHILD_MAY_HAVE_THREADS 0
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CHILD_MAY_HAVE_THREADS 0
#endif
#endif
#ifndef CHILD_MAY_HAVE_THREADS
#define CHILD_MAY_HAVE_THREADS 1
#endif

START_TEST(a_forked_child_writes_its_own_lines_and_none_of_its_parents)
{
    if (!CHILD_MAY_HAVE_THREADS) {
        return;
    }
    child_result result;
    scratch_enter();
    child_run(log_forked, "log", &result);
    ck_assert_msg(WIFEXITED(result.status) && WEXITSTATUS(result.status) == 0, "status %x: %s", (unsigned)result.status,
                  result.text);
    log_lines_read("log");
    ck_assert_uint_eq(log_lines_count(), 8);
    ck_assert_str_eq(log_lines_text(0, "message"), "before the fork");
    ck_assert_str_eq(log_lines_text(1, "message"), "the child's");
    ck_assert_str_eq(log_lines_text(2, "service"), "child");
    ck_assert_str_eq(log_lines_text(3, "message"), "the parent's");
}
END_TEST

static void log_uncaught(void *arg)
{
    static guard_owner *owner;
    owner = guard_owner_new();
    guard_log *log = open_at_leisure(guard_owner_scope(owner), arg);
    guard_log_write(log, GUARD_LOG_NOTICE, "before the panic");
    guard_panic(1, "nobody recovers this");
}

START_TEST(a_panic_that_nobody_recovers_writes_what_waits)
{
    child_result result;
    scratch_enter();
    child_run(log_uncaught, "log", &result);
    child_expect_abort(&result);
    log_lines_read("log");
    ck_assert_uint_eq(log_lines_events(), 1);
}
END_TEST

/* ------------------------------------------------------------------------------------------- nobody waits -- */

static sem_t gate;
static sem_t arrived;

static void wait_at_gate(const char *line, size_t length, void *arg)
{
    (void)line;
    (void)length;
    (void)arg;
    sem_post(&arrived);
    while (sem_wait(&gate) != 0) {
    }
}

START_TEST(a_full_queue_drops_counts_and_tells)
{
    enum { LINES = 100, QUEUE = 16 };
    sem_init(&gate, 0, 0);
    sem_init(&arrived, 0, 0);
    GUARD_AUTO(s);
    guard_log_options options = everything;
    options.queue_lines = QUEUE;
    guard_log *log = guard_log_open(s, "log", &options);
    guard_log_to_callback(log, wait_at_gate, NULL);
    log_lines_collect(log);
    guard_log_write(log, GUARD_LOG_INFO, "the first");
    sem_wait(&arrived); /* the log's thread is held up from now on */
    for (int i = 0; i < LINES; i++) {
        guard_log_write(log, GUARD_LOG_INFO, "one of many");
    }
    guard_log_read(log, &figures);
    ck_assert_uint_eq(figures.events, LINES + 1);
    ck_assert_uint_eq(figures.dropped, LINES + 1 - QUEUE);
    ck_assert_uint_eq(figures.waiting, QUEUE);
    for (int i = 0; i < 2 * LINES; i++) {
        sem_post(&gate);
    }
    flush(log);
    ck_assert_uint_eq(log_lines_events() + log_lines_more(), LINES + 1);
    guard_log_read(log, &figures);
    ck_assert_uint_eq(figures.full + figures.brief, figures.dropped + figures.written + figures.lost);
}
END_TEST

START_TEST(logging_takes_no_memory)
{
    GUARD_AUTO(s);
    fault_memory_install();
    guard_log *log = guard_log_open(s, "log", &everything);
    log_lines_collect(log);
    const guard_service_options options = {.log = log};
    guard_service *service = guard_service_open(s, "ledger", &options);
    int code = 5;
    guard_service_call(service, fail_with, &code, NULL); /* what a thread needs once */
    flush(log);
    fault_memory_fail_from(1);
    for (int i = 0; i < 10; i++) {
        guard_service_call(service, fail_with, &code, NULL);
        guard_log_write(log, GUARD_LOG_INFO, "a line");
    }
    ck_assert(!fault_memory_was_hit());
    fault_memory_fail_at(0);
    flush(log);
    ck_assert_uint_eq(log_lines_events(), 21);
}
END_TEST

static void open_log(void *arg)
{
    GUARD_AUTO(s);
    guard_log *log = guard_log_open(s, "log", NULL);
    guard_log_to_file(log, arg, 0);
    guard_log_write(log, GUARD_LOG_INFO, "open");
}

START_TEST(no_memory_at_any_allocation_opens_no_log_and_leaks_nothing)
{
    guard_error error;
    scratch_enter();
    fault_memory_install();
    open_log("log");
    size_t before = fault_memory_blocks();
    int code = 1;
    for (unsigned long n = 1; code != 0; n++) {
        fault_memory_fail_at(n);
        code = guard_run(open_log, "log", &error);
        bool was_hit = fault_memory_was_hit();
        fault_memory_fail_at(0);
        ck_assert_msg(code == 0 ? !was_hit : error.domain == GUARD_MEMORY, "%s", error.message);
        ck_assert_uint_eq(fault_memory_blocks(), before);
    }
}
END_TEST

static guard_misuse_code misused;

static void on_misuse(const guard_error *error)
{
    misused = (guard_misuse_code)error->code;
}

START_TEST(options_that_can_not_be_right_are_misuse)
{
    static const guard_log_options wrong[] = {
        {.mode = (guard_log_mode)3}, {.flush_ms = -1},       {.report_ms = 9},          {.close_ms = -1},
        {.queue_lines = 65537},      {.site_full = 1000001}, {.reserved = {0, 0, 0, 1}}};
    GUARD_AUTO(s);
    guard_misuse_handler(on_misuse);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        misused = 0;
        ck_assert_ptr_null(guard_log_open(s, "log", &wrong[i]));
        ck_assert_int_eq(misused, GUARD_MISUSE_ARGUMENT);
    }
    ck_assert_ptr_null(guard_log_open(s, NULL, NULL));
    guard_log *log = guard_log_open(s, "log", NULL);
    misused = 0;
    guard_log_to_file(log, NULL, 0);
    ck_assert_int_eq(misused, GUARD_MISUSE_ARGUMENT);
    misused = 0;
    guard_log_to_file(log, "log", 100);
    ck_assert_int_eq(misused, GUARD_MISUSE_ARGUMENT);
    guard_log_error(NULL, GUARD_LOG_ERROR, NULL);
    guard_log_write(NULL, GUARD_LOG_ERROR, "nothing");
    for (int i = 0; i < 4; i++) {
        guard_log_to_descriptor(log, STDERR_FILENO);
    }
    misused = 0;
    guard_log_to_descriptor(log, STDERR_FILENO);
    ck_assert_int_eq(misused, GUARD_MISUSE_STATE);
    for (int i = 0; i < 15; i++) {
        ck_assert_ptr_nonnull(guard_log_open(s, "log", NULL));
    }
    misused = 0;
    ck_assert_ptr_null(guard_log_open(s, "log", NULL));
    ck_assert_int_eq(misused, GUARD_MISUSE_STATE);
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
        an_immediate_line_is_written_without_being_asked_for,
        a_batch_waits_for_its_bytes,
        a_batch_waits_for_its_time,
        on_panic_lines_wait_for_an_error,
        /* The process ends while the log's thread lives, and glibc's memory of a thread counts as possibly lost. */
        suite_unless_memcheck(an_exit_writes_what_waits),
        the_end_of_its_scope_writes_what_waits,
        a_fatal_signal_writes_what_waits,
        the_librarys_handler_of_fatal_signals_writes_what_waits,
        a_panic_that_nobody_recovers_writes_what_waits,
        suite_unless_memcheck(a_forked_child_writes_its_own_lines_and_none_of_its_parents),
        a_full_queue_drops_counts_and_tells,
        logging_takes_no_memory,
        no_memory_at_any_allocation_opens_no_log_and_leaks_nothing,
        options_that_can_not_be_right_are_misuse,
    };
    return suite_run("log", tests, sizeof tests / sizeof *tests);
}
