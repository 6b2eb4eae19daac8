/* SPDX-License-Identifier: MIT */
/* check_stderr.c: what the library writes for itself harms nobody: neither where nobody reads it any more nor where nobody reads it for now. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_dump.h>
#include <guard/guard_log.h>
#include <guard/guard_metrics.h>

#include "suite.h"

/* A pipe whose reader is gone; its writing end. */
static int dead_pipe(void)
{
    int ends[2];
    ck_assert_int_eq(pipe(ends), 0);
    close(ends[0]);
    return ends[1];
}

/* A pipe that is full, which nobody reads. */
static int full_pipe(void)
{
    static const char block[4096];
    int ends[2];
    ck_assert_int_eq(pipe(ends), 0);
    ck_assert_int_eq(fcntl(ends[1], F_SETFL, O_NONBLOCK), 0);
    while (write(ends[1], block, sizeof block) > 0) {
    }
    ck_assert_int_eq(fcntl(ends[1], F_SETFL, 0), 0);
    return ends[1];
}

/* Runs fn in a child whose standard error is `error`; returns its status. */
static int child_status(void (*fn)(int report), int error, int report)
{
    int status;
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        static const struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        signal(SIGABRT, SIG_DFL);
        signal(SIGPIPE, SIG_DFL);
        alarm(30);
        dup2(error, STDERR_FILENO);
        fn(report);
        _exit(0);
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    return status;
}

static int told;

static void tell(const guard_error *error, const char *report)
{
    (void)report;
    ck_assert_int_eq((int)write(told, error->message, strlen(error->message)), (int)strlen(error->message));
}

static void die(int report)
{
    GUARD_AUTO(s);
    guard_log_options options = {.mode = GUARD_LOG_BATCHED, .flush_ms = 600000, .flush_bytes = 1 << 20};
    guard_log *log = guard_log_open(s, "test", &options);
    guard_log_to_descriptor(log, report);
    guard_log_write(log, GUARD_LOG_INFO, "waits in the log");
    told = report;
    guard_fatal_handler(tell);
    guard_panic(1, "nobody recovers");
}

/* The defers have run, the log's lines are written, the fatal handler is called, the process aborts: whatever standard error is. */
static void expect_death(int error)
{
    char text[8192];
    int ends[2];
    ck_assert_int_eq(pipe(ends), 0);
    int status = child_status(die, error, ends[1]);
    close(ends[1]);
    ssize_t got = read(ends[0], text, sizeof text - 1);
    ck_assert_int_ge((int)got, 0);
    text[got] = '\0';
    ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "status %x, \"%s\"", (unsigned)status, text);
    for (ssize_t more; (more = read(ends[0], text + got, sizeof text - 1 - (size_t)got)) > 0; got += more) {
    }
    text[got] = '\0';
    ck_assert_msg(strstr(text, "nobody recovers") != NULL, "the fatal handler was not called: \"%s\"", text);
    ck_assert_msg(strstr(text, "waits in the log") != NULL, "the log was not flushed: \"%s\"", text);
}

START_TEST(who_dies_with_a_dead_standard_error_dies_of_abort)
{
    expect_death(dead_pipe());
}
END_TEST

START_TEST(who_dies_with_a_standard_error_that_nobody_reads_does_not_wait_for_ever)
{
    expect_death(full_pipe());
}
END_TEST

static void note(int report)
{
    (void)report;
    guard_note("worth knowing");
    _exit(errno == EEXIST ? 1 : 7);
}

START_TEST(a_note_to_a_dead_standard_error_ends_no_program)
{
    int status = child_status(note, dead_pipe(), -1);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 7, "status %x", (unsigned)status);
}
END_TEST

START_TEST(a_note_that_nobody_reads_is_given_up)
{
    int status = child_status(note, full_pipe(), -1);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 7, "status %x", (unsigned)status);
}
END_TEST

static void dump_to_dead_pipe(int report)
{
    (void)report;
    _exit(guard_dump(dead_pipe()) == EPIPE ? 7 : 1);
}

START_TEST(a_dump_to_a_dead_pipe_returns_its_error)
{
    int status = child_status(dump_to_dead_pipe, STDERR_FILENO, -1);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 7, "status %x", (unsigned)status);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ handler -- */

static const guard_metric notes = {.name = "notes_total", .help = "Notes.", .type = GUARD_METRIC_COUNTER};
static int note_count;

static void count_note(const char *text)
{
    (void)text;
    note_count++;
    guard_counter_add(guard_counter_open(&notes, NULL, 0), 1);
}

static void collect_in_vain(guard_metrics_page *page, void *arg)
{
    (void)page;
    (void)arg;
    guard_panic(1, "asked in vain");
}

START_TEST(a_note_handler_may_count_what_a_collector_failed_at)
{
    GUARD_AUTO(s);
    guard_note_handler(count_note);
    guard_metrics_collect(s, collect_in_vain, NULL);
    guard_metrics_collect(s, collect_in_vain, NULL);
    ck_assert_ptr_nonnull(guard_metrics_text(s, NULL));
    ck_assert_int_eq(note_count, 1);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        who_dies_with_a_dead_standard_error_dies_of_abort,
        who_dies_with_a_standard_error_that_nobody_reads_does_not_wait_for_ever,
        a_note_to_a_dead_standard_error_ends_no_program,
        a_note_that_nobody_reads_is_given_up,
        a_dump_to_a_dead_pipe_returns_its_error,
        a_note_handler_may_count_what_a_collector_failed_at,
    };
    return suite_run("stderr", tests, sizeof tests / sizeof *tests);
}
