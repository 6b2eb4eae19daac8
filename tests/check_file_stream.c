/* SPDX-License-Identifier: MIT */
/*
 * Streams: paths in messages, modes, closes that lose data.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>

#include <guard/guard_file.h>

#include "fault_memory.h"
#include "file_faults.h"
#include "suite.h"

static guard_error error;

static void open_missing(void *path)
{
    GUARD_AUTO(s);
    guard_file_open(s, path, "r", NULL);
}

START_TEST(a_file_that_cannot_be_opened_is_named_with_the_place_of_the_caller)
{
    scratch_enter_counted();
    ck_assert_int_eq(guard_run(open_missing, (void *)"no such.csv", &error), ENOENT);
    ck_assert_int_eq(error.domain, GUARD_OS);
    ck_assert_has(error.message, "cannot open \"no such.csv\"");
    ck_assert_has(error.message, strerror(ENOENT));
    ck_assert_str_eq(error.file, "check_file_stream.c");
    ck_assert_str_eq(error.function, "open_missing");
}
END_TEST

START_TEST(control_characters_of_a_path_are_escaped_in_messages)
{
    scratch_enter_counted();
    ck_assert_int_eq(guard_run(open_missing, (void *)"a\nb\033[31m\"c\\\x7f", &error), ENOENT);
    ck_assert_has(error.message, "\"a\\nb\\x1b[31m\\\"c\\\\\\x7f\"");
}
END_TEST

START_TEST(a_long_path_keeps_its_beginning_and_its_end_in_messages)
{
    scratch_enter_counted();
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
    scratch_enter_counted();
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
    scratch_enter_counted();
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
    scratch_enter_counted();
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

static void nothing(void *arg)
{
    (void)arg;
}

START_TEST(a_dismissed_stream_is_the_callers)
{
    scratch_enter_counted();
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
    scratch_enter_counted();
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
    scratch_enter_counted();
    faults_refuse("fsync", EIO);
    ck_assert_int_eq(guard_run(write_then_read, NULL, &error), EIO);
    ck_assert_has(error.message, "/out\" to the disk");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_file_that_cannot_be_opened_is_named_with_the_place_of_the_caller,
        control_characters_of_a_path_are_escaped_in_messages,
        a_long_path_keeps_its_beginning_and_its_end_in_messages,
        a_directory_is_no_file_to_read,
        a_mode_that_fopen_does_not_know_is_an_error,
        a_stream_is_closed_when_its_ticket_is_released,
        a_dismissed_stream_is_the_callers,
        a_close_that_loses_data_on_a_full_disk_is_told,
        a_close_that_fails_while_panicking_is_attached,
        a_write_that_failed_unnoticed_is_told_when_the_stream_is_closed,
        a_sync_that_fails_is_told,
    };
    return suite_run("file stream", tests, sizeof tests / sizeof *tests);
}
