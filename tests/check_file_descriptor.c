/* SPDX-License-Identifier: MIT */
/*
 * Descriptors: closes, reads and writes that are short, interrupted, refused or never done.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard_cancel.h>
#include <guard/guard_file.h>

#include "file_faults.h"
#include "suite.h"

static guard_error error;

static void close_badly(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_ticket ticket;
    guard_file_open_descriptor(s, "data", O_RDONLY, 0, &ticket);
    faults_refuse("close", EIO);
    guard_release(ticket);
}

START_TEST(a_descriptor_whose_close_fails_is_told_and_gone)
{
    scratch_enter_counted();
    file_put("data", "data");
    int before = descriptors_open();
    ck_assert_int_eq(guard_run(close_badly, NULL, &error), EIO);
    faults_refuse(NULL, 0);
    ck_assert_has(error.message, "cannot close \"data\"");
    ck_assert_int_eq(descriptors_open(), before);
}
END_TEST

static void open_relative(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_ticket ticket;
    int directory = guard_file_open_descriptor(s, "sub", O_DIRECTORY, 0, NULL);
    ck_assert_int_eq(rename("sub", "moved"), 0);
    int descriptor = guard_file_open_descriptor_at(s, directory, "made", O_RDWR | O_CREAT, 0600, &ticket);
    ck_assert_int_eq(fcntl(descriptor, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    guard_file_write(descriptor, "hello", 5);
    guard_release(ticket);
    ck_assert_str_eq(file_get("moved/made"), "hello");
}

START_TEST(a_descriptor_is_opened_in_an_open_directory_wherever_that_is)
{
    scratch_enter_counted();
    mkdir("sub", 0700);
    ck_assert_int_eq(guard_run(open_relative, NULL, &error), 0);
}
END_TEST

enum { PIPED = 300000 };

static void on_alarm(int number)
{
    (void)number;
}

/* Sends PIPED bytes in small pieces, interrupting the reader all the while. */
static void pipe_sender(int to)
{
    char piece[1000];
    memset(piece, 'p', sizeof piece);
    for (int i = 0; i < PIPED / (int)sizeof piece; i++) {
        kill(getppid(), SIGUSR1);
        if (write(to, piece, sizeof piece) != (ssize_t)sizeof piece) {
            _exit(1);
        }
    }
    _exit(0);
}

static int pipe_ends[2];

static void read_interrupted(void *arg)
{
    GUARD_AUTO(s);
    char *data = guard_memory_allocate(s, PIPED + 10, NULL);
    *(size_t *)arg = guard_file_read(pipe_ends[0], data, PIPED + 10);
}

START_TEST(reading_goes_on_after_signals_and_short_reads)
{
    struct sigaction action = {.sa_handler = on_alarm};
    sigaction(SIGUSR1, &action, NULL);
    ck_assert_int_eq(pipe(pipe_ends), 0);
    pid_t child = fork();
    if (child == 0) {
        pipe_sender(pipe_ends[1]);
    }
    close(pipe_ends[1]);
    size_t got = 0;
    ck_assert_int_eq(guard_run(read_interrupted, &got, &error), 0);
    ck_assert_uint_eq(got, PIPED);
    int status;
    while (waitpid(child, &status, 0) < 0) {
    }
    ck_assert_int_eq(status, 0);
}
END_TEST

static void write_interrupted(void *arg)
{
    GUARD_AUTO(s);
    guard_ticket ticket;
    guard_file_adopt_descriptor(s, pipe_ends[1], "pipe", &ticket);
    char *data = guard_memory_allocate_array(s, PIPED, 1, NULL);
    guard_file_write(pipe_ends[1], data, PIPED);
    guard_release(ticket);
    (void)arg;
}

START_TEST(writing_goes_on_after_signals_and_short_writes)
{
    struct sigaction action = {.sa_handler = on_alarm};
    sigaction(SIGUSR1, &action, NULL);
    ck_assert_int_eq(pipe(pipe_ends), 0);
    pid_t child = fork();
    if (child == 0) {
        close(pipe_ends[1]);
        char piece[1000];
        size_t got = 0;
        for (ssize_t n; (n = read(pipe_ends[0], piece, sizeof piece)) > 0; got += (size_t)n) {
            kill(getppid(), SIGUSR1);
        }
        _exit(got == PIPED ? 0 : 1);
    }
    ck_assert_int_eq(guard_run(write_interrupted, NULL, &error), 0);
    int status;
    while (waitpid(child, &status, 0) < 0) {
    }
    ck_assert_int_eq(status, 0);
}
END_TEST

static void write_descriptor_full(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    int descriptor = guard_file_open_descriptor(s, "/dev/full", O_RDWR, 0, NULL);
    guard_file_write(descriptor, "x", 1);
}

static void read_directory_as_file(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    char byte;
    int descriptor = guard_file_open_descriptor(s, "/", O_RDONLY, 0, NULL);
    guard_file_read(descriptor, &byte, 1);
}

START_TEST(a_failing_read_or_write_names_what_is_open_there)
{
    ck_assert_int_eq(guard_run(write_descriptor_full, NULL, &error), ENOSPC);
    ck_assert_has(error.message, "cannot write \"/dev/full\"");
    ck_assert_int_eq(guard_run(read_directory_as_file, NULL, &error), EISDIR);
    ck_assert_has(error.message, "cannot read \"/\"");
}
END_TEST

static void read_for_ever(void *arg)
{
    char byte;
    GUARD_AUTO(s);
    guard_deadline(s, (intptr_t)arg);
    guard_file_read(pipe_ends[0], &byte, 1);
}

static void *cancel_main(void *thread)
{
    guard_cancel_thread(*(pthread_t *)thread);
    return NULL;
}

START_TEST(a_read_of_what_does_not_come_ends_when_it_is_cancelled_or_late)
{
    pthread_t self = pthread_self(), thread;
    ck_assert_int_eq(pipe(pipe_ends), 0);
    ck_assert_int_eq(guard_run(read_for_ever, (void *)30, &error), ETIMEDOUT);
    ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
    ck_assert_int_eq(pthread_create(&thread, NULL, cancel_main, &self), 0);
    ck_assert_int_eq(guard_run(read_for_ever, (void *)-1, &error), ECANCELED);
    ck_assert_int_eq(error.domain, GUARD_CANCELLED);
    pthread_join(thread, NULL);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_descriptor_whose_close_fails_is_told_and_gone,
        a_descriptor_is_opened_in_an_open_directory_wherever_that_is,
        reading_goes_on_after_signals_and_short_reads,
        writing_goes_on_after_signals_and_short_writes,
        a_failing_read_or_write_names_what_is_open_there,
        a_read_of_what_does_not_come_ends_when_it_is_cancelled_or_late,
    };
    return suite_run("file descriptor", tests, sizeof tests / sizeof *tests);
}
