/* SPDX-License-Identifier: MIT */
/*
 * Streams, descriptors, directories, mappings, memory and temporary files.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#else
#define RUNNING_ON_VALGRIND 0
#endif

#include <guard/guard_cancel.h>
#include <guard/guard_dump.h>
#include <guard/guard_file.h>

#include "fault_memory.h"
#include "file_faults.h"
#include "suite.h"

static guard_error error;

#define ck_assert_has(text, part) \
    ck_assert_msg(strstr((text), (part)) != NULL, "\"%s\" should contain \"%s\"", (text), (part))

static void scratch_begin(void)
{
    fault_memory_install();
    scratch_enter();
    memset(&error, 0, sizeof error);
}

/* ---------------------------------------------------------------------------------- every acquisition -- */

/* Each acquires one thing on the scope it is given; "data" is a file of four bytes, "." may be written. */
static void acquire_stream(void *scope)
{
    guard_file_open(scope, "data", "r+", NULL);
}

static void acquire_descriptor(void *scope)
{
    guard_file_open_descriptor(scope, "data", O_RDONLY, 0, NULL);
}

static void acquire_adopted_stream(void *scope)
{
    FILE *stream = fopen("data", "re");
    if (stream == NULL) {
        guard_panic_os("cannot open data");
    }
    guard_file_adopt(scope, stream, "adopted", NULL);
}

static void acquire_adopted_descriptor(void *scope)
{
    int descriptor = open("data", O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
        guard_panic_os("cannot open data");
    }
    guard_file_adopt_descriptor(scope, descriptor, "adopted", NULL);
}

static void acquire_directory(void *scope)
{
    guard_file_open_directory(scope, ".", NULL);
}

static void acquire_map(void *scope)
{
    size_t size;
    guard_file_map(scope, "data", &size, NULL);
}

static void acquire_memory(void *scope)
{
    guard_memory_allocate(scope, 100, NULL);
}

static void acquire_memory_array(void *scope)
{
    guard_memory_allocate_array(scope, 10, 10, NULL);
}

static void acquire_memory_copy(void *scope)
{
    guard_memory_copy(scope, "text", NULL);
}

static void acquire_memory_format(void *scope)
{
    guard_memory_format(scope, NULL, "%d", 1);
}

static void acquire_memory_resize(void *scope)
{
    guard_ticket ticket;
    void *memory = guard_memory_allocate(scope, 100, &ticket);
    guard_memory_resize(scope, memory, 100000, &ticket);
}

static void acquire_temporary(void *scope)
{
    guard_file_temporary(scope, ".", NULL);
}

static void acquire_temporary_named(void *scope)
{
    const char *path;
    guard_file_temporary_named(scope, ".", &path, NULL);
}

static void acquire_temporary_directory(void *scope)
{
    guard_file_temporary_directory(scope, ".", NULL);
}

static void acquire_lock(void *scope)
{
    int descriptor = guard_file_open_descriptor(scope, "data", O_RDWR, 0, NULL);
    guard_file_lock(scope, descriptor, NULL);
}

static void acquire_lock_beside(void *scope)
{
    guard_file_lock_beside(scope, "locked", NULL);
}

static void acquire_replacement(void *scope)
{
    guard_file_replace_begin(scope, "data", NULL);
}

static const struct acquisition {
    const char *name;
    guard_fn *acquire;
} acquisitions[] = {
    {"stream", acquire_stream},
    {"descriptor", acquire_descriptor},
    {"adopted stream", acquire_adopted_stream},
    {"adopted descriptor", acquire_adopted_descriptor},
    {"directory", acquire_directory},
    {"map", acquire_map},
    {"memory", acquire_memory},
    {"memory array", acquire_memory_array},
    {"memory copy", acquire_memory_copy},
    {"memory format", acquire_memory_format},
    {"memory resize", acquire_memory_resize},
    {"temporary", acquire_temporary},
    {"temporary named", acquire_temporary_named},
    {"temporary directory", acquire_temporary_directory},
    {"lock", acquire_lock},
    {"lock beside", acquire_lock_beside},
    {"replacement", acquire_replacement},
};
#define ACQUISITIONS ((int)(sizeof acquisitions / sizeof acquisitions[0]))

static const struct acquisition *current;
static int registrations_before; /* so that the record itself is what finds no memory */
static bool acquired, fails_afterwards;

static void nothing(void *arg)
{
    (void)arg;
}

/* The numbers of the descriptors that exec would leave open. */
static unsigned long long inheritable(void)
{
    unsigned long long set = 0;
    for (int i = 0; i < 64; i++) {
        int flags = fcntl(i, F_GETFD);
        set |= flags >= 0 && !(flags & FD_CLOEXEC) ? 1ULL << i : 0;
    }
    return set;
}

static void acquire_in_scope(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    for (int i = 0; i < registrations_before; i++) {
        guard_defer(s, nothing, NULL);
    }
    unsigned long long before = inheritable();
    current->acquire(s);
    acquired = true;
    ck_assert_msg(inheritable() == before, "%s is inherited by exec", current->name);
    if (fails_afterwards) {
        guard_panic(77, "afterwards");
    }
}

static int descriptors_before;
static size_t blocks_before;

/* Chooses the acquisition, and notes how things are when all that the library keeps for good is there. */
static void acquisition_begin(const struct acquisition *acquisition)
{
    scratch_begin();
    file_put("data", "data");
    current = acquisition;
    registrations_before = 64; /* all that a thread has without an allocation */
    ck_assert_int_eq(guard_run(acquire_in_scope, NULL, &error), 0);
    registrations_before = 0;
    unlink("locked.guard-lock");
    descriptors_before = descriptors_open();
    blocks_before = fault_memory_blocks();
}

/* The directory is as it was, but for lock files, which stay by design. */
static void ck_assert_as_before(const char *when)
{
    ck_assert_msg(descriptors_open() == descriptors_before, "%s, %s: %d descriptors are open, %d were", current->name,
                  when, descriptors_open(), descriptors_before);
    ck_assert_msg(fault_memory_blocks() == blocks_before, "%s, %s: %zu blocks are taken, %zu were", current->name, when,
                  fault_memory_blocks(), blocks_before);
    unlink("locked.guard-lock");
    ck_assert_msg(strcmp(directory_list("."), "data") == 0, "%s, %s: left %s", current->name, when,
                  directory_list("."));
    ck_assert_str_eq(file_get("data"), "data");
}

START_TEST(everything_acquired_is_given_back_when_all_after_it_fails)
{
    acquisition_begin(&acquisitions[_i]);
    fails_afterwards = true;
    ck_assert_int_eq(guard_run(acquire_in_scope, NULL, &error), 77);
    ck_assert(acquired);
    ck_assert_int_eq(error.cause_count, 0);
    ck_assert_as_before("afterwards");
}
END_TEST

/* Fails every allocation in turn; how many there were. */
static int fail_each_allocation(void)
{
    for (int n = 1;; n++) {
        acquired = false;
        fault_memory_fail_at((unsigned long)n);
        int code = guard_run(acquire_in_scope, NULL, &error);
        bool hit = fault_memory_was_hit();
        fault_memory_fail_at(0);
        ck_assert_as_before("out of memory");
        if (!hit) {
            ck_assert_msg(code == 0 && acquired, "%s: %s", current->name, error.message);
            return n - 1;
        }
        ck_assert_msg(code == ENOMEM && error.domain == GUARD_MEMORY && !acquired, "%s, allocation %d: code %d, %s",
                      current->name, n, code, error.message);
    }
}

START_TEST(an_acquisition_without_memory_at_any_allocation_leaves_nothing)
{
    acquisition_begin(&acquisitions[_i]);
    /* Plain memory is malloc's own and needs no object beside it. */
    bool has_object = strncmp(current->name, "memory", 6) != 0;
    ck_assert_int_eq(fail_each_allocation() > 0, has_object);
}
END_TEST

/* In a process whose thread has no room for another registration. */
START_TEST(an_acquisition_without_memory_for_its_registration_leaves_nothing)
{
    scratch_begin();
    file_put("data", "data");
    current = &acquisitions[_i];
    guard_run(nothing, NULL, NULL);
    descriptors_before = descriptors_open();
    blocks_before = fault_memory_blocks();
    registrations_before = 64;
    fault_memory_fail_at(1);
    ck_assert_int_eq(guard_run(acquire_in_scope, NULL, &error), ENOMEM);
    ck_assert(fault_memory_was_hit() && !acquired);
    ck_assert_as_before("no room to register");
}
END_TEST

START_TEST(an_acquisition_without_descriptors_leaves_nothing)
{
    acquisition_begin(&acquisitions[_i]);
    if (RUNNING_ON_VALGRIND) {
        return; /* it lets the kernel create the file, and refuses the descriptor afterwards */
    }
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    int next = open("/dev/null", O_RDONLY);
    close(next);
    for (int extra = 0; extra < 20; extra++) {
        acquired = false;
        setrlimit(RLIMIT_NOFILE, &(struct rlimit){(rlim_t)(next + extra), limit.rlim_max});
        int code = guard_run(acquire_in_scope, NULL, &error);
        setrlimit(RLIMIT_NOFILE, &limit);
        ck_assert_as_before("afterwards");
        if (code == 0) {
            ck_assert(acquired);
            return;
        }
        ck_assert_msg(code == EMFILE && error.domain == GUARD_OS, "%s: %s", current->name, error.message);
    }
    ck_abort_msg("%s needs more than 20 descriptors", current->name);
}
END_TEST

START_TEST(an_acquisition_with_any_system_call_failing_leaves_nothing)
{
    acquisition_begin(&acquisitions[_i]);
    int tried = 0;
    for (int n = 1;; n++) {
        acquired = false;
        faults_arm(n, EIO);
        int code = guard_run(acquire_in_scope, NULL, &error);
        faults_disarm();
        if (!faults_struck()) {
            ck_assert_msg(code == 0, "%s: %s", current->name, error.message);
            break;
        }
        tried++;
        if (strcmp(faults_where(), "unlinkat") == 0) { /* nothing can take that file away */
            ck_assert_int_eq(code, EIO);
            ck_assert_int_eq(system("rm -rf .guard.*.guard-tmp"), 0);
        }
        ck_assert_as_before(faults_where());
        ck_assert_msg(code == 0 || error.code == EIO, "%s: %s failing is told as %s", current->name, faults_where(),
                      error.message);
    }
    /* fopen and opendir make their calls inside libc, memory makes none. */
    bool direct = strstr(current->name, "descriptor") != NULL || strstr(current->name, "temporary") != NULL ||
                  strstr(current->name, "lock") != NULL || strcmp(current->name, "replacement") == 0;
    ck_assert_msg(tried > 0 || !direct, "%s: no call was tried", current->name);
}
END_TEST

START_TEST(an_acquisition_of_a_cancelled_thread_is_not_made)
{
    acquisition_begin(&acquisitions[_i]);
    acquired = false;
    guard_cancel_thread(pthread_self());
    int code = guard_run(acquire_in_scope, NULL, &error);
    guard_cancel_clear();
    /* Taking memory takes no time. */
    bool is_checkpoint = strncmp(current->name, "memory", 6) != 0;
    ck_assert_int_eq(code, is_checkpoint ? ECANCELED : 0);
    ck_assert(acquired != is_checkpoint);
    ck_assert_as_before("cancelled");
}
END_TEST

/* ------------------------------------------------------------------------------------------------ streams -- */

static void open_missing(void *path)
{
    GUARD_AUTO(s);
    guard_file_open(s, path, "r", NULL);
}

START_TEST(a_file_that_cannot_be_opened_is_named_with_the_place_of_the_caller)
{
    scratch_begin();
    ck_assert_int_eq(guard_run(open_missing, (void *)"no such.csv", &error), ENOENT);
    ck_assert_int_eq(error.domain, GUARD_OS);
    ck_assert_has(error.message, "cannot open \"no such.csv\"");
    ck_assert_has(error.message, strerror(ENOENT));
    ck_assert_str_eq(error.file, "check_file.c");
    ck_assert_str_eq(error.function, "open_missing");
}
END_TEST

START_TEST(control_characters_of_a_path_are_escaped_in_messages)
{
    scratch_begin();
    ck_assert_int_eq(guard_run(open_missing, (void *)"a\nb\033[31m\"c\\\x7f", &error), ENOENT);
    ck_assert_has(error.message, "\"a\\nb\\x1b[31m\\\"c\\\\\\x7f\"");
}
END_TEST

START_TEST(a_long_path_keeps_its_beginning_and_its_end_in_messages)
{
    scratch_begin();
    char path[400];
    memset(path, 'x', sizeof path);
    memcpy(path, "/begin/", 7);
    strcpy(path + 385, "/\xc3\xa4"
                       "end.csv");
    ck_assert_int_eq(guard_run(open_missing, path, &error), ENOENT);
    ck_assert_has(error.message, "\"/begin/xxx");
    ck_assert_has(error.message, "xxx/\xc3\xa4"
                                 "end.csv\": ");
    /* A cut never falls inside a character. */
    for (size_t shift = 0; shift < 4; shift++) {
        memset(path, 'x', shift);
        for (size_t i = shift; i < 300; i += 3) {
            memcpy(path + i, "\xe2\x82\xac", 4);
        }
        guard_run(open_missing, path, &error);
        for (const unsigned char *at = (const unsigned char *)error.message; *at != '\0'; at++) {
            if (*at == 0xe2) {
                ck_assert_msg(at[1] == 0x82 && at[2] == 0xac, "cut in a character: %s", error.message);
                at += 2;
            }
            ck_assert_msg(*at < 0x80 || *at == 0xac, "cut in a character: %s", error.message);
        }
    }
    /* Every length around the limits, of characters that double: quoted, terminated, nothing overrun (ASan). */
    for (size_t length = 1; length < 399; length++) {
        memset(path, length % 2 != 0 ? '"' : '\001', length);
        path[length] = '\0';
        guard_run(open_missing, path, &error);
        ck_assert_has(error.message, "\": ");
    }
}
END_TEST

START_TEST(a_directory_is_no_file_to_read)
{
    scratch_begin();
    ck_assert_int_eq(guard_run(open_missing, (void *)".", &error), EISDIR);
    ck_assert_has(error.message, "\".\"");
}
END_TEST

static void open_badly(void *mode)
{
    GUARD_AUTO(s);
    guard_file_open(s, "data", mode, NULL);
}

START_TEST(a_mode_that_fopen_does_not_know_is_an_error)
{
    scratch_begin();
    file_put("data", "data");
    ck_assert_int_eq(guard_run(open_badly, NULL, &error), EINVAL);
    ck_assert_int_eq(guard_run(open_badly, (void *)"", &error), EINVAL);
    ck_assert_int_eq(guard_run(open_badly, (void *)"q", &error), EINVAL);
    ck_assert_str_eq(file_get("data"), "data");
}
END_TEST

static void write_then_read(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_ticket ticket;
    FILE *out = guard_file_open(s, "out", "w", &ticket);
    fputs("first\n", out);
    ck_assert_int_eq(fcntl(fileno(out), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    ck_assert_str_eq(file_get("out"), "");
    guard_release(ticket);
    ck_assert_str_eq(file_get("out"), "first\n");
    guard_file_sync(guard_file_open(s, "out", "a+", NULL));
    ck_assert_int_eq(guard_pending(ticket), 0);
}

START_TEST(a_stream_is_closed_when_its_ticket_is_released)
{
    scratch_begin();
    int before = descriptors_open();
    ck_assert_int_eq(guard_run(write_then_read, NULL, &error), 0);
    ck_assert_int_eq(descriptors_open(), before);
}
END_TEST

static FILE *kept;

static void keep_stream(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_ticket ticket;
    kept = guard_file_open(s, "out", "w", &ticket);
    guard_dismiss(ticket);
}

START_TEST(a_dismissed_stream_is_the_callers)
{
    scratch_begin();
    guard_run(nothing, NULL, NULL);
    size_t blocks = fault_memory_blocks();
    ck_assert_int_eq(guard_run(keep_stream, NULL, &error), 0);
    ck_assert_uint_eq(fault_memory_blocks(), blocks);
    ck_assert_int_ge(fputs("kept", kept), 0);
    ck_assert_int_eq(fclose(kept), 0);
    ck_assert_str_eq(file_get("out"), "kept");
}
END_TEST

static void write_to_full(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    FILE *out = guard_file_open(s, "/dev/full", "w", NULL);
    fputs("lost", out);
}

static void write_to_full_early(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_ticket ticket;
    FILE *out = guard_file_open(s, "/dev/full", "w", &ticket);
    fputs("lost", out);
    guard_release(ticket);
    ck_abort_msg("a close that lost data was not told");
}

static void write_to_full_while_panicking(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    FILE *out = guard_file_open(s, "/dev/full", "w", NULL);
    fputs("lost", out);
    guard_panic(5, "first");
}

START_TEST(a_close_that_loses_data_on_a_full_disk_is_told)
{
    ck_assert_int_eq(guard_run(write_to_full, NULL, &error), ENOSPC);
    ck_assert_int_eq(error.domain, GUARD_OS);
    ck_assert_has(error.message, "cannot close \"/dev/full\"");
    ck_assert_int_eq(guard_run(write_to_full_early, NULL, &error), ENOSPC);
    ck_assert_str_eq(error.function, "write_to_full_early");
}
END_TEST

START_TEST(a_close_that_fails_while_panicking_is_attached)
{
    ck_assert_int_eq(guard_run(write_to_full_while_panicking, NULL, &error), 5);
    ck_assert_str_eq(error.message, "first");
    ck_assert_int_eq(error.cause_count, 1);
    ck_assert_int_eq(error.causes[0].relation, GUARD_ATTACHED);
    ck_assert_int_eq(error.causes[0].code, ENOSPC);
    ck_assert_has(error.causes[0].message, "/dev/full");
}
END_TEST

static bool dealt_with;

static void fail_early_and_go_on(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    FILE *out = guard_file_open(s, "limited", "w", NULL);
    setvbuf(out, NULL, _IONBF, 0);
    ck_assert_int_eq(fputs("0123456789", out), EOF); /* the limit is 5 */
    rewind(out);                                     /* which clears it */
    ck_assert_int_ge(fputs("01", out), 0);
    fseek(out, 0, SEEK_END);
    ck_assert_int_eq(fputs("x", out), EOF);
    if (dealt_with) {
        clearerr(out);
    }
}

START_TEST(a_write_that_failed_unnoticed_is_told_when_the_stream_is_closed)
{
    scratch_begin();
    struct rlimit limit;
    getrlimit(RLIMIT_FSIZE, &limit);
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){5, limit.rlim_max});
    int code = guard_run(fail_early_and_go_on, NULL, &error);
    dealt_with = true;
    int code_dealt_with = guard_run(fail_early_and_go_on, NULL, NULL);
    setrlimit(RLIMIT_FSIZE, &limit);
    ck_assert_int_eq(code, EIO);
    ck_assert_has(error.message, "\"limited\"");
    ck_assert_int_eq(code_dealt_with, 0);
}
END_TEST

static void sync_full(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_ticket ticket;
    FILE *out = guard_file_open(s, "/dev/full", "w", &ticket);
    guard_dismiss(ticket);
    kept = out;
    fputs("lost", out);
    guard_file_sync(out);
}

START_TEST(a_sync_that_fails_is_told)
{
    ck_assert_int_eq(guard_run(sync_full, NULL, &error), ENOSPC);
    ck_assert_has(error.message, "cannot bring \"/dev/full\" to the disk");
    fclose(kept);
    scratch_begin();
    faults_refuse("fsync", EIO);
    ck_assert_int_eq(guard_run(write_then_read, NULL, &error), EIO);
    ck_assert_has(error.message, "/out\" to the disk");
}
END_TEST

/* --------------------------------------------------------------------------------------------- descriptors -- */

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
    scratch_begin();
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
    scratch_begin();
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

/* ------------------------------------------------------------------------------ directories and mappings -- */

static void count_entries(void *count)
{
    GUARD_AUTO(s);
    DIR *directory = guard_file_open_directory(s, ".", NULL);
    while (guard_file_read_directory(directory) != NULL) {
        ++*(int *)count;
    }
}

static void open_directory_of_file(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_file_open_directory(s, "one", NULL);
}

static void read_directory_badly(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    DIR *directory = guard_file_open_directory(s, ".", NULL);
    int null = open("/dev/null", O_RDONLY);
    dup2(null, dirfd(directory));
    close(null);
    guard_file_read_directory(directory);
}

START_TEST(a_directory_is_read_to_its_end_and_errors_are_told)
{
    scratch_begin();
    file_put("one", "");
    file_put(".two", "");
    int count = 0;
    ck_assert_int_eq(guard_run(count_entries, &count, &error), 0);
    ck_assert_int_eq(count, 2);
    ck_assert_int_eq(guard_run(open_directory_of_file, NULL, &error), ENOTDIR);
    ck_assert_has(error.message, "\"one\"");
    ck_assert_int_eq(guard_run(read_directory_badly, NULL, &error), ENOTDIR);
    ck_assert_has(error.message, "/dev/null");
}
END_TEST

static const char *mapped;

static void map_data(void *size)
{
    GUARD_AUTO(s);
    mapped = guard_file_map(s, "data", size, NULL);
    ck_assert_ptr_nonnull(mapped);
    if (*(size_t *)size != 0) {
        ck_assert_int_eq(memcmp(mapped, "data", 4), 0);
    }
}

static void map_directory(void *arg)
{
    GUARD_AUTO(s);
    guard_file_map(s, ".", arg, NULL);
}

/* Whether the page is mapped: mincore(2) says ENOMEM where it is not. */
static bool is_mapped(const void *address)
{
    unsigned char residence;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return mincore((void *)((uintptr_t)address & ~(page - 1)), 1, &residence) == 0;
}

START_TEST(a_file_is_mapped_whole_and_unmapped_with_its_scope)
{
    scratch_begin();
    size_t size = 9;
    file_put("data", "data");
    ck_assert_int_eq(guard_run(map_data, &size, &error), 0);
    ck_assert_uint_eq(size, 4);
    ck_assert(!is_mapped(mapped));
    file_put("data", "");
    ck_assert_int_eq(guard_run(map_data, &size, &error), 0);
    ck_assert_uint_eq(size, 0);
    ck_assert_int_eq(guard_run(map_directory, &size, &error), EISDIR);
}
END_TEST

static void map_shared(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    int descriptor = guard_file_open_descriptor(s, "data", O_RDWR, 0, NULL);
    guard_ticket ticket;
    char *text = guard_file_map_descriptor(s, descriptor, 0, 4, PROT_READ | PROT_WRITE, MAP_SHARED, &ticket);
    memcpy(text, "DATA", 4);
    guard_release(ticket);
    guard_file_map_descriptor(s, descriptor, 1, 4, PROT_READ, MAP_SHARED, NULL); /* no multiple of the page size */
}

START_TEST(a_shared_mapping_writes_the_file_and_a_wrong_one_is_told)
{
    scratch_begin();
    file_put("data", "data");
    ck_assert_int_eq(guard_run(map_shared, NULL, &error), EINVAL);
    ck_assert_has(error.message, "cannot map ");
    ck_assert_has(error.message, "/data\"");
    ck_assert_str_eq(file_get("data"), "DATA");
}
END_TEST

/* ------------------------------------------------------------------------------------------------- memory -- */

static void use_memory(void *arg)
{
    GUARD_AUTO(s);
    guard_ticket ticket = {0};
    char *text = guard_memory_resize(s, NULL, 10, &ticket);
    strcpy(text, "123456789");
    for (size_t size = 10; size < 100000; size *= 3) {
        text = guard_memory_resize(s, text, size, &ticket);
        ck_assert_str_eq(text, "123456789");
    }
    int *zeros = guard_memory_allocate_array(s, 100, sizeof *zeros, NULL);
    for (int i = 0; i < 100; i++) {
        ck_assert_int_eq(zeros[i], 0);
    }
    ck_assert_ptr_nonnull(guard_memory_allocate(s, 0, NULL));
    ck_assert_str_eq(guard_memory_format(s, NULL, "%s-%d", guard_memory_copy(s, "a", NULL), 7), "a-7");
    if (arg == NULL) {
        guard_dismiss(ticket);
        free(text);
    } else {
        guard_memory_resize(s, text, PTRDIFF_MAX, &ticket);
    }
}

static void allocate_array_overflowing(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_memory_allocate_array(s, SIZE_MAX / 2, 3, NULL);
}

static void allocate_too_much(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_memory_allocate(s, PTRDIFF_MAX, NULL);
}

static void resize_stale(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_ticket ticket;
    void *memory = guard_memory_allocate(s, 10, &ticket);
    guard_release(ticket);
    guard_memory_resize(s, memory, 20, &ticket);
}

/* Sanitizers are to answer a malloc beyond all bounds as malloc does. */
const char *__asan_default_options(void) __attribute__((visibility("default")));
const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1";
}
const char *__tsan_default_options(void) __attribute__((visibility("default")));
const char *__tsan_default_options(void)
{
    return "allocator_may_return_null=1";
}

START_TEST(memory_is_freed_with_its_scope_and_grows_in_place_of_itself)
{
    ck_assert_int_eq(guard_run(use_memory, NULL, &error), 0);
    ck_assert_int_eq(guard_run(use_memory, &error, &error), ENOMEM);
    ck_assert_int_eq(error.domain, GUARD_MEMORY);
    ck_assert_int_eq(guard_run(allocate_array_overflowing, NULL, &error), ENOMEM);
    ck_assert_int_eq(guard_run(allocate_too_much, NULL, &error), ENOMEM);
    ck_assert_int_eq(guard_run(resize_stale, NULL, &error), GUARD_MISUSE_TICKET);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
}
END_TEST

/* ---------------------------------------------------------------------------------------- temporary files -- */

static void use_temporary(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    FILE *file = guard_file_temporary(s, ".", NULL);
    ck_assert_int_ge(fputs("scratch", file), 0);
    rewind(file);
    char text[8];
    ck_assert_str_eq(fgets(text, sizeof text, file), "scratch");
    ck_assert_str_eq(directory_list("."), "");
    ck_assert_int_eq(fcntl(fileno(file), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}

START_TEST(a_temporary_file_has_no_name)
{
    scratch_begin();
    ck_assert_int_eq(guard_run(use_temporary, NULL, &error), 0);
    faults_refuse("O_TMPFILE", EOPNOTSUPP);
    ck_assert_int_eq(guard_run(use_temporary, NULL, &error), 0);
    ck_assert_str_eq(directory_list("."), "");
}
END_TEST

static void use_named(void *arg)
{
    GUARD_AUTO(s);
    const char *path;
    FILE *file = guard_file_temporary_named(s, ".", &path, NULL);
    fputs("named", file);
    fflush(file);
    struct stat status;
    ck_assert_int_eq(stat(path, &status), 0);
    ck_assert_int_eq(status.st_mode & 07777, 0600);
    ck_assert_int_eq(path[0], '/');
    ck_assert_str_eq(file_get(path), "named");
    if (arg != NULL) {
        ck_assert_int_eq(rename(path, arg), 0);
    }
}

static void use_named_in_moving_directory(void *arg)
{
    GUARD_AUTO(s);
    const char *path;
    guard_file_temporary_named(s, "before", &path, NULL);
    const char *directory = guard_file_temporary_directory(s, "before", NULL);
    ck_assert_int_eq(access(directory, W_OK), 0);
    ck_assert_int_eq(rename("before", "after"), 0);
    guard_panic(3, "%s", (const char *)arg);
}

START_TEST(a_named_temporary_file_is_unlinked_wherever_its_directory_is)
{
    scratch_begin();
    ck_assert_int_eq(guard_run(use_named, NULL, &error), 0);
    ck_assert_str_eq(directory_list("."), "");
    /* Renamed by its user it is his. */
    ck_assert_int_eq(guard_run(use_named, (void *)"mine", &error), 0);
    ck_assert_str_eq(directory_list("."), "mine");
    mkdir("before", 0700);
    ck_assert_int_eq(guard_run(use_named_in_moving_directory, (void *)"panic", &error), 3);
    ck_assert_str_eq(directory_list("after"), "");
}
END_TEST

static void fill_directory(void *arg)
{
    GUARD_AUTO(s);
    const char *path = guard_file_temporary_directory(s, ".", NULL);
    struct stat status;
    ck_assert_int_eq(stat(path, &status), 0);
    ck_assert_int_eq(status.st_mode & 07777, 0700);
    ck_assert_int_eq(chdir(path), 0);
    ck_assert_int_eq(system("mkdir -p a/b/c d; touch a/b/c/file a/file d/.hidden; ln -s \"$OLDPWD\" a/away; "
                            "ln -s nowhere dangling; mkfifo pipe"),
                     0);
    ck_assert_int_eq(symlink(arg, "keep"), 0);
    ck_assert_int_eq(chdir(".."), 0);
}

START_TEST(a_temporary_directory_goes_with_all_in_it_but_what_its_links_lead_to)
{
    const char *top = scratch_enter();
    mkdir("kept", 0700);
    file_put("kept/file", "");
    char target[100];
    snprintf(target, sizeof target, "%s/kept", top);
    ck_assert_int_eq(guard_run(fill_directory, target, &error), 0);
    ck_assert_str_eq(directory_list("."), "kept");
    ck_assert_str_eq(directory_list("kept"), "file");
}
END_TEST

static void temporary_by_default(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    const char *path;
    guard_file_temporary_named(s, NULL, &path, NULL);
    ck_assert_msg(strncmp(path, getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp", 4) == 0, "%s", path);
}

static void temporary_nowhere(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_file_temporary_directory(s, "nowhere", NULL);
}

START_TEST(temporary_files_are_made_in_tmpdir)
{
    const char *top = scratch_enter();
    setenv("TMPDIR", top, 1);
    ck_assert_int_eq(guard_run(temporary_by_default, NULL, &error), 0);
    unsetenv("TMPDIR");
    ck_assert_int_eq(guard_run(temporary_by_default, NULL, &error), 0);
    ck_assert_int_eq(guard_run(temporary_nowhere, NULL, &error), ENOENT);
    ck_assert_has(error.message, "\"nowhere\"");
}
END_TEST

/* --------------------------------------------------------------------------------------------------- fork -- */

static void fork_with_all(void *arg)
{
    (void)arg;
    guard_ticket tickets[5];
    const char *path;
    char byte;
    GUARD_AUTO(s);
    FILE *out = guard_file_open(s, "out", "w", &tickets[0]);
    FILE *in = guard_file_open(s, "data", "r", &tickets[1]);
    guard_file_temporary_named(s, ".", &path, &tickets[2]);
    guard_file_temporary_directory(s, ".", &tickets[3]);
    guard_file_open_descriptor(s, "data", O_RDONLY, 0, &tickets[4]);
    fputs("once", out);
    ck_assert_int_eq(getc(in), 'd');
    pid_t child = fork();
    if (child == 0) {
        int before = descriptors_open();
        for (int i = 0; i < 5; i++) {
            guard_release(tickets[i]);
        }
        /* two streams, a stream and its directory, a directory, a descriptor */
        _exit(before - descriptors_open() == 6 ? 0 : 1);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
    ck_assert_str_eq(file_get("out"), "");
    ck_assert_int_eq(access(path, F_OK), 0);
    /* The offset is shared: the child must not have moved it to where its reader was. */
    ck_assert_int_eq(read(fileno(in), &byte, 1), 0);
    ck_assert_int_eq(getc(in), 'a');
}

START_TEST(a_forked_child_closes_its_copies_and_writes_moves_and_unlinks_nothing)
{
    scratch_begin();
    file_put("data", "data");
    ck_assert_int_eq(guard_run(fork_with_all, NULL, &error), 0);
    ck_assert_str_eq(file_get("out"), "once");
    ck_assert_str_eq(directory_list("."), "data out");
}
END_TEST

static void describe_all(void *arg)
{
    (void)arg;
    char text[256];
    guard_ticket ticket;
    GUARD_AUTO(s);
    guard_file_open(s, "a\n.csv", "w", &ticket);
    ticket.record->action.kind->describe(ticket.record->arg, text, sizeof text);
    ck_assert_str_eq(text, "file \"a\\n.csv\"");
    int64_t age = guard_dump_clock() - ticket.record->action.kind->since(ticket.record->arg);
    ck_assert(age >= 0 && age < (int64_t)60 * 1000000000);
    guard_file_temporary_directory(s, ".", &ticket);
    ticket.record->action.kind->describe(ticket.record->arg, text, sizeof text);
    ck_assert_has(text, "temporary directory \"/");
    guard_memory_allocate(s, 1, &ticket);
    ticket.record->action.kind->describe(ticket.record->arg, text, sizeof text);
    ck_assert_has(text, "memory at 0x");
}

START_TEST(what_is_held_says_what_it_is)
{
    scratch_begin();
    ck_assert_int_eq(guard_run(describe_all, NULL, &error), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("file");
    TCase *acquiring = tcase_create("acquisitions");
    tcase_set_timeout(acquiring, SUITE_SECONDS);
    tcase_add_loop_test(acquiring, everything_acquired_is_given_back_when_all_after_it_fails, 0, ACQUISITIONS);
    tcase_add_loop_test(acquiring, an_acquisition_without_memory_at_any_allocation_leaves_nothing, 0, ACQUISITIONS);
    tcase_add_loop_test(acquiring, an_acquisition_without_memory_for_its_registration_leaves_nothing, 0, ACQUISITIONS);
    tcase_add_loop_test(acquiring, an_acquisition_without_descriptors_leaves_nothing, 0, ACQUISITIONS);
    tcase_add_loop_test(acquiring, an_acquisition_with_any_system_call_failing_leaves_nothing, 0, ACQUISITIONS);
    tcase_add_loop_test(acquiring, an_acquisition_of_a_cancelled_thread_is_not_made, 0, ACQUISITIONS);
    suite_add_tcase(suite, acquiring);

    TCase *plain = tcase_create("files");
    tcase_set_timeout(plain, SUITE_SECONDS);
    tcase_add_test(plain, a_file_that_cannot_be_opened_is_named_with_the_place_of_the_caller);
    tcase_add_test(plain, control_characters_of_a_path_are_escaped_in_messages);
    tcase_add_test(plain, a_long_path_keeps_its_beginning_and_its_end_in_messages);
    tcase_add_test(plain, a_directory_is_no_file_to_read);
    tcase_add_test(plain, a_mode_that_fopen_does_not_know_is_an_error);
    tcase_add_test(plain, a_stream_is_closed_when_its_ticket_is_released);
    tcase_add_test(plain, a_dismissed_stream_is_the_callers);
    tcase_add_test(plain, a_close_that_loses_data_on_a_full_disk_is_told);
    tcase_add_test(plain, a_close_that_fails_while_panicking_is_attached);
    tcase_add_test(plain, a_write_that_failed_unnoticed_is_told_when_the_stream_is_closed);
    tcase_add_test(plain, a_sync_that_fails_is_told);
    tcase_add_test(plain, a_descriptor_whose_close_fails_is_told_and_gone);
    tcase_add_test(plain, a_descriptor_is_opened_in_an_open_directory_wherever_that_is);
    tcase_add_test(plain, reading_goes_on_after_signals_and_short_reads);
    tcase_add_test(plain, writing_goes_on_after_signals_and_short_writes);
    tcase_add_test(plain, a_failing_read_or_write_names_what_is_open_there);
    tcase_add_test(plain, a_read_of_what_does_not_come_ends_when_it_is_cancelled_or_late);
    tcase_add_test(plain, a_directory_is_read_to_its_end_and_errors_are_told);
    tcase_add_test(plain, a_file_is_mapped_whole_and_unmapped_with_its_scope);
    tcase_add_test(plain, a_shared_mapping_writes_the_file_and_a_wrong_one_is_told);
    tcase_add_test(plain, memory_is_freed_with_its_scope_and_grows_in_place_of_itself);
    tcase_add_test(plain, a_temporary_file_has_no_name);
    tcase_add_test(plain, a_named_temporary_file_is_unlinked_wherever_its_directory_is);
    tcase_add_test(plain, a_temporary_directory_goes_with_all_in_it_but_what_its_links_lead_to);
    tcase_add_test(plain, temporary_files_are_made_in_tmpdir);
    tcase_add_test(plain, a_forked_child_closes_its_copies_and_writes_moves_and_unlinks_nothing);
    tcase_add_test(plain, what_is_held_says_what_it_is);
    suite_add_tcase(suite, plain);

    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
