/* SPDX-License-Identifier: MIT */
/*
 * check_log_sink.c: whatever a descriptor, a file, the syslog or the journal does to the log, no line is mixed with another, what was lost is
 * counted exactly, and nobody waits. writev, sendmsg and syslog are defined here, before those of libc, also for the library under test.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_log.h>

#include "file_faults.h"
#include "log_lines.h"
#include "suite.h"

static guard_log_figures figures;

static const guard_log_options everything = {.site_full = 1000000,
                                             .site_lines = 1000000,
                                             .all_full = 1000000,
                                             .all_lines = 1000000,
                                             .report_ms = 3600000,
                                             .sink_ms = 20};

static void write_lines(guard_log *log, int count)
{
    for (int i = 0; i < count; i++) {
        guard_log_write(log, GUARD_LOG_ERROR, "line %d", i);
    }
}

static void expect_figures(guard_log *log, uint64_t written, uint64_t lost)
{
    guard_log_read(log, &figures);
    ck_assert_uint_eq(figures.written, written);
    ck_assert_uint_eq(figures.lost, lost);
    ck_assert_uint_eq(figures.dropped, 0);
    ck_assert_uint_eq(figures.waiting, 0);
}

/* ---------------------------------------------------------------------------------------------- writing fails -- */

/* Of the log's thread, while the test waits in a flush. */
static atomic_int call;       /* of writev, since it was set to 0 */
static atomic_int fault_at;   /* the number of the call that fails; 0: none */
static atomic_int fault;      /* errno; 0: it is short */
static atomic_int fault_half; /* bytes that it writes before that */
static atomic_bool fault_stays;

static atomic_int filled = -1; /* before each writev this pipe is filled up, as another of its writers may do */

static void fill_up(int descriptor)
{
    char path[40];
    char bytes[4096] = "";
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    int own = open(path, O_WRONLY | O_NONBLOCK);
    while (write(own, bytes, sizeof bytes) > 0) {
    }
    close(own);
}

GUARD_API ssize_t writev(int descriptor, const struct iovec *parts, int count)
{
    if (filled >= 0) {
        fill_up(filled);
    }
    int number = atomic_fetch_add(&call, 1) + 1;
    bool is_hit = fault_at != 0 && (fault_stays ? number >= fault_at : number == fault_at);
    if (is_hit && (fault_half == 0 || (fault_stays && number > fault_at))) {
        errno = fault;
        return -1;
    }
    if (is_hit) {
        size_t half = (size_t)fault_half < parts[0].iov_len ? (size_t)fault_half : parts[0].iov_len;
        return syscall(SYS_write, descriptor, parts[0].iov_base, half);
    }
    return syscall(SYS_writev, descriptor, parts, count);
}

static void arm(int at, int error, int half, bool stays)
{
    call = 0;
    fault_at = at;
    fault = error;
    fault_half = half;
    fault_stays = stays;
}

START_TEST(a_write_that_is_short_or_interrupted_is_gone_on_with)
{
    scratch_enter();
    for (int half = 0; half < 200; half += 7) {
        for (int at = 1; at < 4; at++) {
            GUARD_SCOPE (s) {
                guard_log *log = guard_log_open(s, "log", &everything);
                guard_log_to_file(log, "log", 0);
                arm(at, EINTR, half, false);
                write_lines(log, 5);
                log_lines_flush(log);
                arm(0, 0, 0, false);
                expect_figures(log, 5, 0);
            }
            log_lines_read("log");
            ck_assert_uint_eq(log_lines_events(), 5);
            unlink("log");
        }
    }
}
END_TEST

/* The lines of a file that are JSON, and those that are not. */
static void count_lines(const char *path, uint64_t *whole, uint64_t *torn, uint64_t *told)
{
    char *line = NULL;
    size_t size = 0;
    FILE *file = fopen(path, "r");
    ck_assert_ptr_nonnull(file);
    *whole = *torn = *told = 0;
    while (getline(&line, &size, file) > 0) {
        json_t *parsed = json_loads(line, 0, NULL);
        bool is_told = json_object_get(parsed, "more") != NULL;
        *torn += parsed == NULL;
        *told += is_told;
        *whole += parsed != NULL && !is_told;
        json_decref(parsed);
    }
    free(line);
    fclose(file);
}

START_TEST(at_whichever_write_a_disk_is_full_the_lines_are_counted_and_the_next_is_whole)
{
    scratch_enter();
    for (int half = 0; half < 150; half += 49) {
        for (int at = 1; at < 8; at++) {
            uint64_t whole;
            uint64_t torn;
            uint64_t told;
            GUARD_SCOPE (s) {
                guard_log *log = guard_log_open(s, "log", &everything);
                guard_log_to_file(log, "log", 0);
                arm(at, ENOSPC, half, true);
                for (int i = 0; i < 6; i++) {
                    write_lines(log, 1);
                    guard_log_flush(log, 60000);
                }
                arm(0, 0, 0, false);
                write_lines(log, 3);
                log_lines_flush(log);
                guard_log_read(log, &figures);
                count_lines("log", &whole, &torn, &told);
                ck_assert_uint_eq(figures.written + figures.lost, 9);
                ck_assert_msg(whole == figures.written, "write %d, %d bytes: %d lines are there, %d were said to be",
                              at, half, (int)whole, (int)figures.written);
                ck_assert_uint_eq(told, figures.lost > 0);
                ck_assert_uint_eq(told, figures.told);
                ck_assert_uint_le(torn, 1);
                ck_assert_uint_ge(figures.written, 3);
                ck_assert_uint_le(figures.lost, 6);
            }
            unlink("log");
        }
    }
}
END_TEST

/* -------------------------------------------------------------------------------------------------- pipes -- */

START_TEST(a_dead_pipe_is_counted_and_kills_nobody)
{
    int ends[2];
    GUARD_AUTO(s);
    signal(SIGPIPE, SIG_DFL);
    ck_assert_int_eq(pipe(ends), 0);
    guard_log *log = guard_log_open(s, "log", &everything);
    guard_log_to_descriptor(log, ends[1]);
    write_lines(log, 3);
    log_lines_flush(log);
    expect_figures(log, 3, 0);
    close(ends[0]);
    write_lines(log, 5);
    log_lines_flush(log);
    expect_figures(log, 3, 5);
    guard_log_flush_in_signal();
}
END_TEST

/* Reads what is there. */
static void drain_into(int from, const char *path)
{
    char bytes[8192];
    FILE *file = fopen(path, "a");
    fcntl(from, F_SETFL, O_NONBLOCK);
    for (ssize_t got; (got = read(from, bytes, sizeof bytes)) > 0;) {
        fwrite(bytes, 1, (size_t)got, file);
    }
    fclose(file);
}

static void fill_until_lost(guard_log *log)
{
    do {
        write_lines(log, 50);
        guard_log_flush(log, 60000);
        guard_log_read(log, &figures);
    } while (figures.lost == 0);
}

static void expect_recovery(guard_log *log, int from)
{
    uint64_t whole;
    uint64_t torn;
    uint64_t told;
    drain_into(from, "log");
    uint64_t lost = figures.lost;
    write_lines(log, 5);
    log_lines_flush(log);
    drain_into(from, "log");
    guard_log_read(log, &figures);
    ck_assert_uint_eq(figures.lost, lost);
    ck_assert_uint_eq(figures.written + figures.lost, figures.events);
    count_lines("log", &whole, &torn, &told);
    ck_assert_uint_eq(whole, figures.written);
    ck_assert_uint_eq(torn, 0);
    ck_assert_uint_eq(told, 1);
}

START_TEST(a_pipe_that_nobody_reads_is_passed_over_until_somebody_does)
{
    int ends[2];
    scratch_enter();
    GUARD_AUTO(s);
    ck_assert_int_eq(pipe(ends), 0);
    guard_log *log = guard_log_open(s, "log", &everything);
    guard_log_to_descriptor(log, ends[1]);
    fill_until_lost(log);
    ck_assert_msg((fcntl(ends[1], F_GETFL) & O_NONBLOCK) == 0, "the pipe of others has become non-blocking");
    expect_recovery(log, ends[0]);
}
END_TEST

START_TEST(a_pipe_that_another_fills_just_before_the_write_holds_nobody_up)
{
    int ends[2];
    GUARD_AUTO(s);
    ck_assert_int_eq(pipe(ends), 0);
    guard_log *log = guard_log_open(s, "log", &everything);
    guard_log_to_descriptor(log, ends[1]);
    filled = ends[1];
    write_lines(log, 3);
    guard_log_flush(log, 60000);
    expect_figures(log, 0, 3);
    filled = -1;
}
END_TEST

START_TEST(a_socket_that_nobody_reads_is_passed_over_until_somebody_does)
{
    int ends[2];
    scratch_enter();
    GUARD_AUTO(s);
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends), 0);
    guard_log *log = guard_log_open(s, "log", &everything);
    guard_log_to_descriptor(log, ends[1]);
    fill_until_lost(log);
    expect_recovery(log, ends[0]);
    close(ends[0]);
    write_lines(log, 5); /* and one whose other end is gone raises no SIGPIPE */
    log_lines_flush(log);
}
END_TEST

START_TEST(a_log_is_closed_although_its_pipe_is_stuck)
{
    int ends[2];
    ck_assert_int_eq(pipe(ends), 0);
    GUARD_SCOPE (s) {
        guard_log_options options = everything;
        options.sink_ms = 3600000; /* it would wait that long */
        options.queue_lines = 4096;
        guard_log *log = guard_log_open(s, "log", &options);
        guard_log_to_descriptor(log, ends[1]);
        write_lines(log, 3000);
    }
    ck_assert_int_eq(close(ends[0]), 0);
}
END_TEST

/* -------------------------------------------------------------------------------------------------- files -- */

static int64_t size_of(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 ? status.st_size : -1;
}

START_TEST(a_file_is_moved_away_before_it_is_longer_than_it_may_be)
{
    enum { MOST = 8192, LINES = 500 };
    scratch_enter();
    GUARD_AUTO(s);
    guard_log *log = guard_log_open(s, "log", &everything);
    guard_log_to_file(log, "log", MOST);
    for (int i = 0; i < LINES; i += 10) {
        write_lines(log, 10);
        log_lines_flush(log);
        ck_assert_int_le(size_of("log"), MOST);
        ck_assert_int_le(size_of("log.1"), MOST);
    }
    expect_figures(log, LINES, 0);
    ck_assert_int_gt(size_of("log.1"), MOST - GUARD_LOG_LINE);
    ck_assert_str_eq(directory_list("."), "log log.1");
    log_lines_read("log.1");
    uint64_t older = log_lines_events();
    log_lines_read("log");
    ck_assert_uint_gt(older + log_lines_events(), 2);
    ck_assert_str_eq(log_lines_text(log_lines_count() - 1, "message"), "line 9");
}
END_TEST

START_TEST(a_file_that_cannot_be_moved_is_full_until_it_can)
{
    scratch_enter();
    ck_assert_int_eq(mkdir("log.1", 0700), 0);
    GUARD_AUTO(s);
    guard_log *log = guard_log_open(s, "log", &everything);
    guard_log_to_file(log, "log", 4096);
    write_lines(log, 100);
    guard_log_flush(log, 60000);
    guard_log_read(log, &figures);
    ck_assert_uint_gt(figures.lost, 0);
    ck_assert_int_le(size_of("log"), 4096);
    uint64_t lost = figures.lost;
    ck_assert_int_eq(rmdir("log.1"), 0);
    write_lines(log, 3);
    log_lines_flush(log);
    guard_log_read(log, &figures);
    ck_assert_uint_eq(figures.lost, lost);
    ck_assert_uint_eq(figures.written + lost, 103);
    ck_assert_uint_eq(figures.told, 1);
}
END_TEST

static atomic_bool is_over;

static void *log_on(void *arg)
{
    uint64_t *lines = calloc(1, sizeof *lines);
    while (!is_over) {
        guard_log_write(arg, GUARD_LOG_INFO, "line %llu", (unsigned long long)++*lines);
        if (*lines % 16 == 0) {
            guard_log_flush(arg, 60000); /* so that its queue is not full */
        }
    }
    return lines;
}

/* logrotate, as fast as it goes: each line is in one of the files. */
START_TEST(reopening_under_load_loses_no_line)
{
    enum { TURNS = 40 };
    pthread_t threads[2];
    uint64_t asked = 0;
    uint64_t found = 0;
    scratch_enter();
    GUARD_AUTO(s);
    guard_log_options options = everything;
    options.queue_lines = 4096;
    guard_log *log = guard_log_open(s, "log", &options);
    guard_log_to_file(log, "log", -1);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, log_on, log), 0);
    }
    for (int i = 0; i < TURNS; i++) {
        char path[32];
        snprintf(path, sizeof path, "log.%d", i + 10);
        while (size_of("log") <= 0) {
            pause_ms(1);
        }
        ck_assert_int_eq(rename("log", path), 0);
        guard_log_reopen(log);
    }
    is_over = true;
    for (int i = 0; i < 2; i++) {
        void *lines;
        pthread_join(threads[i], &lines);
        asked += *(uint64_t *)lines;
        free(lines);
    }
    log_lines_flush(log);
    expect_figures(log, asked, 0);
    glob_t files;
    ck_assert_int_eq(glob("log*", 0, NULL, &files), 0);
    ck_assert_uint_ge(files.gl_pathc, TURNS);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        log_lines_read(files.gl_pathv[i]);
        found += log_lines_events();
    }
    globfree(&files);
    ck_assert_uint_eq(found, asked);
}
END_TEST

START_TEST(a_file_that_was_removed_is_made_anew_without_being_asked_for)
{
    scratch_enter();
    GUARD_AUTO(s);
    guard_log *log = guard_log_open(s, "log", &everything);
    guard_log_to_file(log, "log", 0);
    write_lines(log, 1);
    log_lines_flush(log);
    ck_assert_int_eq(unlink("log"), 0);
    while (size_of("log") <= 0) { /* within a second */
        write_lines(log, 1);
        log_lines_flush(log);
        pause_ms(5);
    }
    log_lines_read("log");
    ck_assert_uint_ge(log_lines_events(), 1);
}
END_TEST

START_TEST(a_path_that_cannot_be_opened_panics_and_changes_nothing)
{
    guard_error error;
    scratch_enter();
    GUARD_AUTO(s);
    guard_log *log = guard_log_open(s, "log", &everything);
    GUARD_TRY(&error)
    {
        guard_log_to_file(log, "no/such/folder", 0);
        ck_abort_msg("it was opened");
    }
    GUARD_CATCH
    {
        ck_assert_int_eq(error.domain, GUARD_OS);
        ck_assert_int_eq(error.code, ENOENT);
    }
    guard_log_to_file(log, "log", 0);
    write_lines(log, 1);
    log_lines_flush(log);
    expect_figures(log, 1, 0);
}
END_TEST

/* ------------------------------------------------------------------------------------ functions and the system's -- */

static void panic_at_line(const char *line, size_t length, void *arg)
{
    (void)line;
    (void)length;
    (void)arg;
    guard_panic(1, "a sink of the program's");
}

START_TEST(a_panic_in_a_callback_is_contained_and_the_other_sinks_have_the_line)
{
    GUARD_AUTO(s);
    guard_log *log = guard_log_open(s, "log", &everything);
    guard_log_to_callback(log, panic_at_line, NULL);
    log_lines_collect(log);
    write_lines(log, 3);
    guard_log_flush(log, 60000);
    expect_figures(log, 0, 3);
    ck_assert_uint_eq(log_lines_events(), 3);
}
END_TEST

static void flush_inside(const char *line, size_t length, void *arg)
{
    (void)line;
    (void)length;
    guard_log **log = arg;
    ck_assert_int_eq(guard_log_flush(*log, -1), 0); /* it would wait for itself */
}

START_TEST(a_flush_in_a_callback_returns)
{
    GUARD_AUTO(s);
    guard_log *log = guard_log_open(s, "log", &everything);
    guard_log_to_callback(log, flush_inside, &log);
    write_lines(log, 3);
    log_lines_flush(log);
    expect_figures(log, 3, 0);
}
END_TEST

static char syslog_text[GUARD_LOG_LINE];
static atomic_int syslog_priority = -1;

static GUARD_PRINTF(2, 0) void take_syslog(int priority, const char *format, va_list arguments)
{
    vsnprintf(syslog_text, sizeof syslog_text, format, arguments);
    syslog_priority = priority;
}

GUARD_API GUARD_PRINTF(2, 3) void syslog(int priority, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    take_syslog(priority, format, arguments);
    va_end(arguments);
}

/* With _FORTIFY_SOURCE. */
GUARD_API void __syslog_chk(int priority, int flag, const char *format, ...) GUARD_PRINTF(3, 4);
void __syslog_chk(int priority, int flag, const char *format, ...)
{
    va_list arguments;
    (void)flag;
    va_start(arguments, format);
    take_syslog(priority, format, arguments);
    va_end(arguments);
}

START_TEST(syslog_gets_the_line_at_its_priority)
{
    GUARD_AUTO(s);
    guard_log *log = guard_log_open(s, "log", &everything);
    guard_log_to_syslog(log);
    guard_log_write(log, GUARD_LOG_WARNING, "100%% %s of it", "s");
    log_lines_flush(log);
    ck_assert_int_eq(syslog_priority, 4);
    ck_assert_ptr_nonnull(strstr(syslog_text, "\"message\":\"100% s of it\""));
    ck_assert_int_eq(syslog_text[strlen(syslog_text) - 1], '}');
}
END_TEST

static char journal[2 * GUARD_LOG_LINE]; /* a datagram */
static atomic_int journal_fault;

/* What libsystemd sends to the journal's socket; all else goes to the kernel. */
GUARD_API ssize_t sendmsg(int descriptor, const struct msghdr *message, int flags)
{
    const struct sockaddr_un *to = message->msg_name;
    if (to == NULL || to->sun_family != AF_UNIX || strcmp(to->sun_path, "/run/systemd/journal/socket") != 0) {
        return syscall(SYS_sendmsg, descriptor, message, flags);
    }
    if (journal_fault != 0) {
        errno = journal_fault;
        return -1;
    }
    size_t size = 0;
    for (size_t i = 0; i < message->msg_iovlen; i++) {
        ck_assert_uint_lt(size + message->msg_iov[i].iov_len, sizeof journal);
        memcpy(journal + size, message->msg_iov[i].iov_base, message->msg_iov[i].iov_len);
        size += message->msg_iov[i].iov_len;
    }
    journal[size] = '\0';
    return (ssize_t)size;
}

START_TEST(the_journal_gets_the_line_and_its_fields)
{
    guard_error error;
    GUARD_AUTO(s);
    guard_log *log = guard_log_open(s, "ledger\nPRIORITY=0", &everything);
    GUARD_TRY(&error)
    {
        guard_log_to_journal(log);
    }
    GUARD_CATCH
    {
        ck_assert_int_eq(error.code, ENOSYS);
        printf("# libsystemd is not here\n");
        return;
    }
    write_lines(log, 1);
    log_lines_flush(log);
    expect_figures(log, 1, 0);
    ck_assert_ptr_nonnull(strstr(journal, "MESSAGE={\"time\":"));
    ck_assert_ptr_nonnull(strstr(journal, "\"message\":\"line 0\""));
    ck_assert_ptr_nonnull(strstr(journal, "\nPRIORITY=3\n"));
    ck_assert_ptr_nonnull(strstr(journal, "\nSYSLOG_IDENTIFIER=ledger\n"));
    ck_assert_ptr_nonnull(strstr(journal, "\nCODE_FILE=check_log_sink.c\n"));
    ck_assert_ptr_nonnull(strstr(journal, "\nCODE_LINE="));
    ck_assert_ptr_null(strstr(journal, "\nPRIORITY=0"));
    journal_fault = EPERM;
    write_lines(log, 2);
    guard_log_flush(log, 60000);
    expect_figures(log, 1, 2);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_write_that_is_short_or_interrupted_is_gone_on_with,
        at_whichever_write_a_disk_is_full_the_lines_are_counted_and_the_next_is_whole,
        a_dead_pipe_is_counted_and_kills_nobody,
        a_pipe_that_nobody_reads_is_passed_over_until_somebody_does,
        a_pipe_that_another_fills_just_before_the_write_holds_nobody_up,
        a_socket_that_nobody_reads_is_passed_over_until_somebody_does,
        a_log_is_closed_although_its_pipe_is_stuck,
        a_file_is_moved_away_before_it_is_longer_than_it_may_be,
        a_file_that_cannot_be_moved_is_full_until_it_can,
        reopening_under_load_loses_no_line,
        a_file_that_was_removed_is_made_anew_without_being_asked_for,
        a_path_that_cannot_be_opened_panics_and_changes_nothing,
        a_panic_in_a_callback_is_contained_and_the_other_sinks_have_the_line,
        a_flush_in_a_callback_returns,
        syslog_gets_the_line_at_its_priority,
        the_journal_gets_the_line_and_its_fields,
    };
    return suite_run("log_sink", tests, sizeof tests / sizeof *tests);
}
