/* SPDX-License-Identifier: MIT */
/*
 * check_fatal_temporary.c: temporary files when the process ends: none is left, and none is taken that is not its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard_cancel.h>
#include <guard/guard_fault.h>
#include <guard/guard_file.h>
#include <guard/guard_process.h>

#include "faults.h"
#include "scratch.h"
#include "suite.h"

static const char *folder;

static void make_folder(void)
{
    folder = scratch_folder(SCRATCH_ON_DISK);
}

static void expect_empty_folder(void)
{
    ck_assert_msg(rmdir(folder) == 0, "%s is not empty: %s", folder, strerror(errno));
}

static void make_files(guard_scope *s)
{
    const char *path;
    guard_file_temporary(s, folder, NULL);
    fputs("content", guard_file_temporary_named(s, folder, &path, NULL));
    guard_file_temporary_directory(s, folder, NULL);
    char target[128];
    snprintf(target, sizeof target, "%s/target", folder);
    fputs("content", guard_file_replace_stream(guard_file_replace_begin(s, target, NULL)));
}

static void die_with_files(void *arg)
{
    guard_fatal_signals();
    GUARD_AUTO(s);
    make_files(s);
    ((guard_fn *)arg)(NULL);
}

static void die_aborting(void *arg)
{
    (void)arg;
    abort();
}

static void die_panicking(void *arg)
{
    (void)arg;
    guard_panic(1, "over temporary files");
}

START_TEST(temporary_files_are_gone_after_a_fatal_signal_and_a_panic)
{
    static const struct {
        guard_fn *fn;
        int signo;
    } ends[] = {
        {fault_read_null, SIGSEGV}, {die_aborting, SIGABRT}, {die_panicking, SIGABRT}, {fault_overflow, SIGSEGV}};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        child_result result;
        make_folder();
        fault_run_child(die_with_files, (void *)ends[i].fn, &result);
        child_expect_signal(&result, ends[i].signo);
        expect_empty_folder();
    }
}
END_TEST

static void exit_with_files(void *arg)
{
    (void)arg;
    guard_process_init(GUARD_AT_EXIT);
    GUARD_AUTO(s);
    make_files(s);
    exit(5);
}

START_TEST(temporary_files_are_gone_after_exit)
{
    child_result result;
    make_folder();
    fault_run_child(exit_with_files, NULL, &result);
    ck_assert_msg(WIFEXITED(result.status) && WEXITSTATUS(result.status) == 5, "status %x", (unsigned)result.status);
    expect_empty_folder();
}
END_TEST

static void terminate_with_files(void *arg)
{
    (void)arg;
    signal(SIGTERM, SIG_DFL); /* Check has a handler */
    guard_fatal_on_signal(SIGTERM);
    GUARD_AUTO(s);
    make_files(s);
    kill(getpid(), SIGTERM);
    pause();
}

static void cancel_wait(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    make_files(s);
    kill(getpid(), SIGTERM);
    guard_sleep(-1);
}

static void cancel_with_files(void *arg)
{
    guard_error error;
    (void)arg;
    guard_cancel_on_signal(SIGTERM, 0);
    _exit(guard_run(cancel_wait, NULL, &error) == ECANCELED ? 0 : 3);
}

START_TEST(temporary_files_are_gone_after_sigterm)
{
    child_result result;
    make_folder();
    fault_run_child(terminate_with_files, NULL, &result);
    child_expect_signal(&result, SIGTERM);
    ck_assert_str_eq(result.text, ""); /* an end that was asked for is no crash */
    expect_empty_folder();
    make_folder();
    fault_run_child(cancel_with_files, NULL, &result);
    ck_assert_msg(WIFEXITED(result.status) && WEXITSTATUS(result.status) == 0, "status %x", (unsigned)result.status);
    expect_empty_folder();
}
END_TEST

START_TEST(a_forked_child_does_not_remove_its_parents_files)
{
    child_result result;
    make_folder();
    guard_fatal_signals();
    GUARD_SCOPE (s) {
        const char *path;
        guard_file_temporary_named(s, folder, &path, NULL);
        fault_run_child(fault_read_null, NULL, &result);
        child_expect_signal(&result, SIGSEGV);
        ck_assert_msg(access(path, F_OK) == 0, "the parent's file is gone");
    }
    expect_empty_folder();
}
END_TEST

static void die_after_dismissal(void *arg)
{
    const char *path;
    guard_ticket ticket;
    guard_fatal_signals();
    GUARD_AUTO(s);
    guard_file_temporary_named(s, folder, &path, &ticket);
    rename(path, arg);
    guard_dismiss(ticket);
    guard_file_temporary_named(s, folder, &path, &ticket);
    char *name = strdup(path);
    guard_dismiss(ticket);
    rename(name, arg);
    fclose(fopen(name, "w")); /* the name is the program's now */
    rename(name, arg);
    fault_read_null(NULL);
}

START_TEST(a_file_that_was_dismissed_is_kept)
{
    child_result result;
    char kept[128];
    make_folder();
    snprintf(kept, sizeof kept, "%s/kept", folder);
    fault_run_child(die_after_dismissal, kept, &result);
    child_expect_signal(&result, SIGSEGV);
    ck_assert_int_eq(unlink(kept), 0);
    expect_empty_folder();
}
END_TEST

static void register_many(void *arg)
{
    int first = 0;
    (void)arg;
    guard_fatal_signals();
    for (int i = 0; i < 256; i++) {
        char name[16];
        snprintf(name, sizeof name, "none-%d", i);
        int id = guard_temporary_register(AT_FDCWD, name, 0);
        if (id <= 0) {
            _exit(3);
        }
        first = first != 0 ? first : id;
    }
    if (guard_temporary_register(AT_FDCWD, "one more", 0) != 0) {
        _exit(4);
    }
    guard_temporary_forget(first);
    guard_temporary_forget(0);
    if (guard_temporary_register(AT_FDCWD, folder, AT_REMOVEDIR) != first ||
        guard_temporary_register(AT_FDCWD, "", 0) != 0) {
        _exit(5);
    }
    fault_read_null(NULL);
}

START_TEST(there_is_room_for_256_names_at_a_time)
{
    child_result result;
    make_folder();
    fault_run_child(register_many, NULL, &result);
    child_expect_signal(&result, SIGSEGV);
    ck_assert_int_eq(access(folder, F_OK), -1);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        temporary_files_are_gone_after_a_fatal_signal_and_a_panic,
        temporary_files_are_gone_after_exit,
        temporary_files_are_gone_after_sigterm,
        a_forked_child_does_not_remove_its_parents_files,
        a_file_that_was_dismissed_is_kept,
        there_is_room_for_256_names_at_a_time,
    };
    return suite_run("fatal_temporary", tests, sizeof tests / sizeof *tests);
}
