/* SPDX-License-Identifier: MIT */
/*
 * check_log.c: the log's thread writes lines when its mode says so and before the process ends, and whoever logs waits for nothing.
 */
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_fault.h>
#include <guard/guard_log.h>
#include <guard/guard_service.h>

#include "child.h"
#include "fault_memory.h"
#include "file_faults.h"
#include "log_lines.h"
#include "suite.h"

static guard_log_figures figures;

static void fail_with(void *arg)
{
    guard_panic_in(*(int *)arg == 9 ? GUARD_TIMEOUT : GUARD_USER, *(int *)arg, "code %d", *(int *)arg);
}

/* -------------------------------------------------------------------------------------------------- modes -- */

static void wait_for_lines(size_t count)
{
    while (log_lines_count() < count) {
        pause_ms(1);
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
    guard_log_options options = log_lines_everything;
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
    log_lines_flush(log);
    ck_assert_uint_eq(log_lines_count(), 100);
}
END_TEST

START_TEST(a_batch_waits_for_its_time)
{
    GUARD_AUTO(s);
    guard_log_options options = log_lines_everything;
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
    guard_log_options options = log_lines_everything;
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
    child_expect_signal(&result, SIGSEGV);
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
    log_lines_flush(log);
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
    log_lines_flush(log);
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
    guard_log_options options = log_lines_everything;
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
    log_lines_flush(log);
    ck_assert_uint_eq(log_lines_events() + log_lines_more(), LINES + 1);
    guard_log_read(log, &figures);
    ck_assert_uint_eq(figures.full + figures.brief, figures.dropped + figures.written + figures.lost);
}
END_TEST

START_TEST(logging_takes_no_memory)
{
    GUARD_AUTO(s);
    fault_memory_install();
    guard_log *log = guard_log_open(s, "log", &log_lines_everything);
    log_lines_collect(log);
    const guard_service_options options = {.log = log};
    guard_service *service = guard_service_open(s, "ledger", &options);
    int code = 5;
    guard_service_call(service, fail_with, &code, NULL); /* what a thread needs once */
    log_lines_flush(log);
    fault_memory_fail_from(1);
    for (int i = 0; i < 10; i++) {
        guard_service_call(service, fail_with, &code, NULL);
        guard_log_write(log, GUARD_LOG_INFO, "a line");
    }
    ck_assert(!fault_memory_was_hit());
    fault_memory_fail_at(0);
    log_lines_flush(log);
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
