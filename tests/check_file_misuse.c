/* SPDX-License-Identifier: MIT */
/* check_file_misuse.c: the file adapter in the hands of who looks at nothing: arguments that are missing, and standard streams that are closed. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard_cancel.h>
#include <guard/guard_dump.h>
#include <guard/guard_file.h>
#include <guard/guard_log.h>

#include "scratch.h"
#include "suite.h"

/* ---------------------------------------------------------------------------------------------- arguments -- */

static int misuses;

static void count_misuse(const guard_error *error)
{
    misuses += error->domain == GUARD_MISUSE && error->code == GUARD_MISUSE_ARGUMENT;
}

static int descriptors(void)
{
    int count = 0;
    for (int i = 0; i < 256; i++) {
        count += fcntl(i, F_GETFD) >= 0;
    }
    return count;
}

enum { MISSING = 11 };

static void *missing(guard_scope *s, int which)
{
    size_t size;
    int no_descriptor = -1;
    switch (which) {
    case 0:
        return guard_file_replace_begin(s, NULL, NULL);
    case 1:
        return guard_file_lock_beside(s, NULL, NULL).record;
    case 2:
        return (void *)(uintptr_t)guard_file_map(s, NULL, &size, NULL);
    case 3:
        return (void *)(uintptr_t)guard_file_map(s, "/etc/passwd", NULL, NULL);
    case 4:
        return guard_file_adopt(s, NULL, "none", NULL);
    case 5:
        return guard_file_adopt_descriptor(s, no_descriptor, "none", NULL) == -1 ? NULL : s;
    case 6:
        return guard_file_temporary_named(s, NULL, NULL, NULL);
    case 7:
        return guard_file_read_directory(NULL);
    case 8:
        guard_file_sync(NULL);
        return NULL;
    case 9:
        guard_file_replace_commit(NULL);
        return NULL;
    case 10:
        guard_file_replace_rollback(NULL);
        return NULL;
    default:
        return NULL;
    }
}

static void use(void *arg)
{
    GUARD_AUTO(s);
    missing(s, *(int *)arg);
}

START_TEST(what_is_missing_is_misuse_and_no_crash)
{
    for (int which = 0; which < MISSING; which++) {
        guard_error error;
        int before = descriptors();
        ck_assert_int_eq(guard_run(use, &which, &error), GUARD_MISUSE_ARGUMENT);
        ck_assert_int_eq(error.domain, GUARD_MISUSE);
        ck_assert_str_eq(error.file, "check_file_misuse.c");
        ck_assert_int_eq(descriptors(), before);
    }
}
END_TEST

static void open_for_no_scope(void *arg)
{
    (void)arg;
    guard_file_open(NULL, "/etc/passwd", "r", NULL);
}

START_TEST(without_a_scope_it_is_misuse_of_the_line_that_asked)
{
    guard_error error;
    ck_assert_int_eq(guard_run(open_for_no_scope, NULL, &error), GUARD_MISUSE_SCOPE);
    ck_assert_str_eq(error.file, "check_file_misuse.c");
    ck_assert_str_eq(error.function, "open_for_no_scope");
}
END_TEST

START_TEST(with_a_handler_that_returns_nothing_is_done)
{
    guard_misuse_handler(count_misuse);
    GUARD_AUTO(s);
    for (int which = 0; which < MISSING; which++) {
        ck_assert_ptr_null(missing(s, which));
        ck_assert_int_eq(misuses, which + 1);
    }
    ck_assert_ptr_null(guard_file_replace_stream(NULL));
    ck_assert_int_eq(guard_file_replace_published(NULL), 0);
    ck_assert_int_eq(misuses, MISSING + 2);
}
END_TEST

static void resize_by_another_ticket(void *arg)
{
    GUARD_AUTO(s);
    guard_ticket mine;
    guard_ticket other;
    char *memory = guard_memory_allocate(s, 8, &mine);
    char *another = guard_memory_allocate(s, 8, &other);
    strcpy(memory, "mine");
    strcpy(another, "other");
    *(bool *)arg = true;
    guard_memory_resize(s, memory, 100000, &other);
    *(bool *)arg = false;
}

/* Else the one would be freed twice and the other never. */
START_TEST(memory_is_not_resized_by_the_ticket_of_another)
{
    bool was_refused = false;
    guard_error error;
    ck_assert_int_ne(guard_run(resize_by_another_ticket, &was_refused, &error), 0);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
    ck_assert(was_refused);
}
END_TEST

/* ----------------------------------------------------------------------------------------- closed streams -- */

/* Runs fn in a child without standard streams. */
static void expect_in_child_without_streams(bool (*fn)(guard_scope *s))
{
    int status;
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        bool is_right;
        for (int i = 0; i <= STDERR_FILENO; i++) {
            close(i);
        }
        {
            GUARD_AUTO(s);
            is_right = fn(s);
        }
        _exit(is_right ? 7 : 1);
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 7, "status %x", (unsigned)status);
}

static bool streams_are_free(void)
{
    return fcntl(0, F_GETFD) < 0 && fcntl(1, F_GETFD) < 0 && fcntl(2, F_GETFD) < 0;
}

static bool open_all(guard_scope *s)
{
    const char *path;
    char text[64] = "";
    FILE *plain = guard_file_open(s, "plain", "w", NULL);
    FILE *added = guard_file_open(s, "plain", "a+", NULL);
    bool is_right = plain != NULL && added != NULL && streams_are_free();
    int descriptor = guard_file_open_descriptor(s, "descriptor", O_RDWR | O_CREAT, 0600, NULL);
    is_right = is_right && streams_are_free();
    guard_file_lock(s, descriptor, NULL);
    guard_file_lock_beside(s, "beside", NULL);
    is_right = is_right && streams_are_free();
    guard_file_temporary(s, ".", NULL);
    guard_file_temporary_named(s, ".", &path, NULL);
    FILE *new = guard_file_replace_stream(guard_file_replace_begin(s, "replaced", NULL));
    is_right = is_right && fileno(new) > STDERR_FILENO;
    /* Where 2 is nobody's now, it may be a directory's: what is written to it is lost. */
    guard_note("of nobody's concern");
    fputs("content", plain);
    is_right = is_right && fflush(plain) == 0 && fputs(", more", added) >= 0 && fflush(added) == 0;
    rewind(added);
    return is_right && fgets(text, sizeof text, added) != NULL && strcmp(text, "content, more") == 0 &&
           lseek(descriptor, 0, SEEK_END) == 0;
}

START_TEST(files_are_opened_above_the_standard_streams)
{
    scratch_enter();
    ck_assert_int_eq(mkdir("folder", 0700), 0);
    ck_assert_int_eq(chdir("folder"), 0);
    expect_in_child_without_streams(open_all);
    ck_assert_int_eq(unlink("plain"), 0);
    ck_assert_int_eq(unlink("descriptor"), 0);
    ck_assert_int_eq(unlink("beside.guard-lock"), 0);
    ck_assert_int_eq(chdir(".."), 0);
    ck_assert_int_eq(rmdir("folder"), 0); /* nothing else is left */
}
END_TEST

/* A note on the number of an eventfd would wake its waiter for ever. */
static bool use_descriptors(guard_scope *s)
{
    int wake = guard_cancel_descriptor();
    guard_log *log = guard_log_open(s, "test", NULL);
    guard_cancel_on_signal(SIGTERM, 0);
    guard_note("of nobody's concern");
    struct pollfd woken = {.fd = wake, .events = POLLIN};
    bool is_right = wake > STDERR_FILENO && streams_are_free() && poll(&woken, 1, 0) == 0;
    int copy = open("/dev/null", O_WRONLY); /* 0 */
    is_right = is_right && guard_dump(copy) == 0;
    close(copy);
    guard_log_flush(log, 1000);
    return is_right && streams_are_free();
}

START_TEST(the_librarys_own_descriptors_are_above_the_standard_streams)
{
    expect_in_child_without_streams(use_descriptors);
}
END_TEST

/* -------------------------------------------------------------------------------- descriptors that do not block -- */

#define MUCH 1000000

static void *read_much(void *arg)
{
    GUARD_AUTO(s);
    size_t *length = arg;
    char *data = guard_memory_allocate(s, MUCH, NULL);
    *length = guard_file_read((int)*length, data, MUCH);
    return NULL;
}

/* It is a matter of the open file, which others share: who writes to a terminal may find that its other user has set it. */
START_TEST(what_does_not_block_is_waited_for)
{
    GUARD_AUTO(s);
    int ends[2];
    pthread_t reader;
    ck_assert_int_eq(pipe2(ends, O_NONBLOCK | O_CLOEXEC), 0);
    size_t length = (size_t)ends[0];
    char *data = guard_memory_allocate_array(s, MUCH, 1, NULL);
    ck_assert_int_eq(pthread_create(&reader, NULL, read_much, &length), 0);
    guard_file_write(ends[1], data, MUCH);
    ck_assert_int_eq(pthread_join(reader, NULL), 0);
    ck_assert_uint_eq(length, MUCH);
}
END_TEST

static void write_much(void *arg)
{
    GUARD_AUTO(s);
    char *data = guard_memory_allocate_array(s, MUCH, 1, NULL);
    guard_deadline(s, 50);
    guard_file_write(*(int *)arg, data, MUCH);
}

START_TEST(a_deadline_ends_a_write_that_nobody_reads)
{
    int ends[2];
    guard_error error;
    ck_assert_int_eq(pipe2(ends, O_NONBLOCK | O_CLOEXEC), 0);
    ck_assert_int_eq(guard_run(write_much, &ends[1], &error), ETIMEDOUT);
    ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
}
END_TEST

/* ------------------------------------------------------------------------------------------------- locks -- */

static void lock_now(void *arg)
{
    GUARD_AUTO(s);
    const guard_file_lock_options options = {.no_wait = 1};
    guard_file_lock_beside(s, arg, &options);
}

/* An exclusive holder that was killed has left its text, over which who shares the lock cannot write. */
START_TEST(who_shares_a_lock_is_not_told_to_be_an_earlier_holder)
{
    GUARD_AUTO(s);
    guard_error error;
    const guard_file_lock_options shared = {.shared = 1};
    scratch_enter();
    FILE *left = fopen("db.guard-lock", "w");
    fputs("pid 1 on host alpha\n", left);
    fclose(left);
    guard_ticket ticket = guard_file_lock_beside(s, "db", &shared);
    ck_assert_int_eq(guard_run(lock_now, "db", &error), EAGAIN);
    ck_assert_msg(strstr(error.message, "is held by others, which share it") != NULL, "%s", error.message);
    guard_release(ticket);
}
END_TEST

/* What is in a file that is locked is nobody's business. */
static void lock_file_now(void *arg)
{
    GUARD_AUTO(s);
    const guard_file_lock_options options = {.no_wait = 1};
    guard_file_lock(s, *(int *)arg, &options);
}

START_TEST(nothing_of_a_locked_files_own_content_is_told)
{
    GUARD_AUTO(s);
    guard_error error;
    scratch_enter();
    int one = open("data", O_RDWR | O_CREAT, 0600);
    int two = open("data", O_RDWR);
    ck_assert_int_eq((int)write(one, "pid secret\n", 11), 11);
    guard_file_lock(s, one, NULL);
    ck_assert_int_eq(guard_run(lock_file_now, &two, &error), EAGAIN);
    ck_assert_msg(strstr(error.message, "secret") == NULL, "%s", error.message);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        what_is_missing_is_misuse_and_no_crash,
        without_a_scope_it_is_misuse_of_the_line_that_asked,
        with_a_handler_that_returns_nothing_is_done,
        memory_is_not_resized_by_the_ticket_of_another,
        files_are_opened_above_the_standard_streams,
        the_librarys_own_descriptors_are_above_the_standard_streams,
        what_does_not_block_is_waited_for,
        a_deadline_ends_a_write_that_nobody_reads,
        who_shares_a_lock_is_not_told_to_be_an_earlier_holder,
        nothing_of_a_locked_files_own_content_is_told,
    };
    return suite_run("file_misuse", tests, sizeof tests / sizeof *tests);
}
