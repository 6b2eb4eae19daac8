/* SPDX-License-Identifier: MIT */
/*
 * Atomic replacement: the old content or the new, whatever fails, in whichever process, and whenever the writer is killed.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard_cancel.h>
#include <guard/guard_fault.h>
#include <guard/guard_file.h>

#include "file_faults.h"
#include "replacing.h"
#include "suite.h"

static guard_error error;

/* What holds after any single fault. Returns what the write told. */
static bool ck_assert_one_or_the_other(const writing *w, int code, const char *when)
{
    const char *content = file_get("target"), *old = w->options.exclusive ? "(none)" : "old";
    ck_assert_msg(strcmp(content, w->published ? "new content" : old) == 0, "%s: told %s, found %s", when,
                  w->published ? "published" : "not published", content);
    ck_assert_msg(code == 0, "%s: the rollback after it failed, too: %s", when, error.message);
    return w->published;
}

static void try_every_fault(writing *w, int fault)
{
    bool published = false;
    int before = descriptors_open(), n = 1, told = 0;
    for (;; n++) {
        unlink("target");
        if (!w->options.exclusive) {
            file_put("target", "old");
        }
        faults_arm(n, fault);
        int code = guard_run(write_new, w, &error);
        faults_disarm();
        bool struck = faults_struck();
        char when[64];
        snprintf(when, sizeof when, "call %d, %s", n, faults_where());
        if (code == fault && !w->published) { /* begin itself */
            code = 0;
        }
        published = ck_assert_one_or_the_other(w, code, when);
        told += !published;
        const char *left = directory_list(".");
        /* Only a failing unlink leaves the file, and is told. */
        if (strcmp(faults_where(), "unlinkat") != 0) {
            ck_assert_msg(strcmp(left, "target") == 0 || (!published && left[0] == '\0'), "%s: left %s", when, left);
        }
        ck_assert_msg(descriptors_open() == before, "%s: leaks a descriptor", when);
        if (!struck) {
            break;
        }
    }
    ck_assert_msg(published, "without a fault nothing was published: %s", error.message);
    ck_assert_msg(n > 8 && told > 4, "only %d calls were tried, %d failed", n, told);
}

START_TEST(whatever_call_fails_it_is_the_old_content_or_the_new_as_told)
{
    replacing_begin(_i);
    const int faults[] = {EIO, ENOSPC, EACCES, EROFS, EDQUOT, ENOMEM, 0};
    for (int i = 0; faults[i] != 0; i++) {
        try_every_fault(&(writing){.path = "target"}, faults[i]);
        try_every_fault(&(writing){.path = "target", .options = {.exclusive = 1}}, faults[i]);
    }
}
END_TEST

START_TEST(an_interrupted_call_is_made_again)
{
    replacing_begin(_i);
    const char *const restarted[] = {"openat", "fsync", "close"};
    int seen = 0;
    for (int n = 1;; n++) {
        writing w = {.path = "target"};
        faults_arm(n, EINTR);
        int code = guard_run(write_new, &w, &error);
        faults_disarm();
        if (!faults_struck()) {
            break;
        }
        for (int i = 0; i < 3; i++) {
            if (strcmp(faults_where(), restarted[i]) == 0) {
                ck_assert_msg(code == 0 && w.published, "call %d, %s: %s", n, restarted[i], error.message);
                seen++;
            }
        }
    }
    ck_assert_int_gt(seen, 2);
}
END_TEST

START_TEST(a_rename_whose_answer_is_lost_is_told_as_it_is)
{
    replacing_begin(_i);
    file_put("target", "old");
    faults_lose("renameat", EIO);
    ck_assert_int_eq(replace_file("target", NULL, &error), 0);
    ck_assert_str_eq(file_get("target"), "new content");
    ck_assert_str_eq(directory_list("."), "target");
    unlink("target");
    faults_lose("renameat2", EIO);
    ck_assert_int_eq(replace_file("target", &(guard_file_replace_options){.exclusive = 1}, &error), 0);
    ck_assert_str_eq(directory_list("."), "target");
    faults_lose("linkat", EIO);
    replace_file("target", NULL, &error);
    ck_assert_str_eq(directory_list("."), "target");
}
END_TEST

static void write_much(void *path)
{
    char block[1024];
    memset(block, 'x', sizeof block);
    GUARD_AUTO(s);
    guard_file_replace *replace = guard_file_replace_begin(s, path, NULL);
    FILE *stream = guard_file_replace_stream(replace);
    for (int i = 0; i < 1024; i++) {
        fwrite(block, 1, sizeof block, stream);
    }
    clearerr(stream); /* the commit must not rely on it where data is still to be written */
    fputs("end", stream);
    guard_file_replace_commit(replace);
}

static void write_much_carelessly(void *path)
{
    char block[1024];
    memset(block, 'x', sizeof block);
    GUARD_AUTO(s);
    guard_file_replace *replace = guard_file_replace_begin(s, path, NULL);
    for (int i = 0; i < 1024; i++) {
        fwrite(block, 1, sizeof block, guard_file_replace_stream(replace));
    }
    guard_file_replace_commit(replace);
}

START_TEST(a_full_disk_leaves_the_old_content_and_is_told)
{
    replacing_begin(_i);
    mkdir("small", 0755);
    if (mount("tmpfs", "small", "tmpfs", 0, "size=64k") != 0) {
        return; /* the next test has a limit that everybody may set */
    }
    file_put("small/target", "old");
    int code = guard_run(write_much, (void *)"small/target", &error);
    int careless = guard_run(write_much_carelessly, (void *)"small/target", NULL);
    const char *content = strdup(file_get("small/target"));
    const char *left = directory_list("small");
    bool as_before = strcmp(content, "old") == 0 && strcmp(left, "target") == 0;
    umount("small");
    free((char *)content);
    ck_assert(as_before);
    ck_assert_int_eq(code, ENOSPC);
    ck_assert_has(error.message, "\"small/target\"");
    ck_assert_int_eq(careless, ENOSPC);
}
END_TEST

START_TEST(a_file_size_limit_leaves_the_old_content_and_is_told)
{
    replacing_begin(_i);
    struct rlimit limit;
    getrlimit(RLIMIT_FSIZE, &limit);
    signal(SIGXFSZ, SIG_IGN);
    file_put("target", "old");
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){10000, limit.rlim_max});
    int code = guard_run(write_much_carelessly, (void *)"target", &error);
    setrlimit(RLIMIT_FSIZE, &limit);
    ck_assert_msg(code == EFBIG, "%s", error.message);
    ck_assert_str_eq(file_get("target"), "old");
    ck_assert_str_eq(directory_list("."), "target");
}
END_TEST

static void hold_a_panic(void *arg)
{
    (void)arg;
    guard_panic(6, "a cleanup failed");
}

static void commit_after_failed_cleanup(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_file_replace *replace = guard_file_replace_begin(s, "target", NULL);
    GUARD_SCOPE (inner) {
        guard_defer(inner, hold_a_panic, NULL);
    }
    guard_file_replace_commit(replace);
}

START_TEST(nothing_is_published_after_a_cleanup_that_failed)
{
    replacing_begin(_i);
    file_put("target", "old");
    ck_assert_int_eq(guard_run(commit_after_failed_cleanup, NULL, &error), 6);
    ck_assert_str_eq(file_get("target"), "old");
    ck_assert_str_eq(directory_list("."), "target");
}
END_TEST

static void commit_cancelled(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_file_replace *replace = guard_file_replace_begin(s, "target", NULL);
    guard_cancel_thread(pthread_self());
    guard_file_replace_commit(replace);
}

START_TEST(nothing_is_published_by_a_cancelled_thread)
{
    replacing_begin(_i);
    file_put("target", "old");
    ck_assert_int_eq(guard_run(commit_cancelled, NULL, &error), ECANCELED);
    guard_cancel_clear();
    ck_assert_str_eq(file_get("target"), "old");
    ck_assert_str_eq(directory_list("."), "target");
}
END_TEST

/* ---------------------------------------------------------------------------------------------------- fork -- */

static int in_child; /* 0: leaves, 1: commits, 2: rolls back */

static void fork_while_writing(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_file_replace *replace = guard_file_replace_begin(s, "target", NULL);
    fputs("new ", guard_file_replace_stream(replace));
    pid_t child = fork();
    if (child == 0) {
        if (in_child == 1) {
            guard_file_replace_commit(replace);
        } else if (in_child == 2) {
            guard_file_replace_rollback(replace);
        }
        return;
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
    ck_assert_str_eq(file_get("target"), "old");
    fputs("content", guard_file_replace_stream(replace));
    guard_file_replace_commit(replace);
}

START_TEST(a_forked_child_leaves_the_replacement_to_its_parent)
{
    replacing_begin(_i);
    pid_t parent = getpid();
    for (in_child = 0; in_child < 3; in_child++) {
        file_put("target", "old");
        int before = descriptors_open();
        int code = guard_run(fork_while_writing, NULL, &error);
        if (getpid() != parent) {
            _exit(code == (in_child != 0 ? GUARD_MISUSE_STATE : 0) && descriptors_open() == before ? 0 : 1);
        }
        ck_assert_msg(code == 0, "%s", error.message);
        ck_assert_str_eq(file_get("target"), "new content");
        ck_assert_str_eq(directory_list("."), "target");
    }
}
END_TEST

/* ------------------------------------------------------------------------------------------------ power cut -- */

static void commit_traced(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_file_replace *replace = guard_file_replace_begin(s, "target", NULL);
    fputs("new content", guard_file_replace_stream(replace));
    faults_arm(0, 0);
    guard_file_replace_commit(replace);
    faults_disarm();
}

START_TEST(all_is_on_the_disk_before_the_name_leads_to_it_and_then_the_name)
{
    replacing_begin(_i);
    file_put("target", "old");
    ck_assert_int_eq(guard_run(commit_traced, NULL, &error), 0);
    ck_assert_str_eq(faults_trace(), _i ? "fstatat fchown fchmod fsync renameat fsync close"
                                        : "fstatat fchown fchmod fsync linkat renameat fsync close");
}
END_TEST

START_TEST(without_proc_the_new_file_has_a_name_from_the_beginning)
{
    replacing_begin(_i);
    file_put("target", "old");
    faults_refuse("access", ENOENT);
    ck_assert_int_eq(replace_file("target", NULL, &error), 0);
    ck_assert_str_eq(file_get("target"), "new content");
    ck_assert_str_eq(directory_list("."), "target");
}
END_TEST

/* --------------------------------------------------------------------------------------------------- kills -- */

static bool is_leftover(const char *name)
{
    size_t length = strlen(name);
    return strncmp(name, ".target.", 8) == 0 && length > 10 && strcmp(name + length - 10, ".guard-tmp") == 0;
}

/* Removes what a killed writer may have left, and nothing else; how many there were. */
static int leftovers_remove(void)
{
    int count = 0;
    char *names = strdup(directory_list("."));
    for (char *name = strtok(names, " "); name != NULL; name = strtok(NULL, " ")) {
        if (strcmp(name, "target") != 0) {
            ck_assert_msg(is_leftover(name), "left %s", name);
            unlink(name);
            count++;
        }
    }
    free(names);
    return count;
}

START_TEST(a_writer_killed_at_any_call_leaves_the_old_content_or_the_new)
{
    replacing_begin(_i);
    int old = 0, new = 0, left = 0;
    for (int n = 1;; n++) {
        file_put("target", "old");
        pid_t child = fork();
        if (child == 0) {
            writing w = {.path = "target"};
            faults_arm(n, FAULT_KILL);
            int code = guard_run(write_new, &w, NULL);
            _exit(code == 0 && w.published ? 0 : 1);
        }
        int status;
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        const char *content = file_get("target");
        bool is_old = strcmp(content, "old") == 0, is_new = strcmp(content, "new content") == 0;
        ck_assert_msg(is_old || is_new, "killed at call %d: %s", n, content);
        old += is_old;
        new += is_new;
        left += leftovers_remove();
        if (WIFEXITED(status)) {
            ck_assert_int_eq(status, 0);
            ck_assert(is_new);
            break;
        }
        ck_assert_int_eq(WTERMSIG(status), SIGKILL);
    }
    ck_assert_msg(old > 4 && new > 1, "%d old, %d new", old, new);
    /* With O_TMPFILE only the kills between link and rename leave something. */
    ck_assert_msg(_i ? left > 2 : left <= 2, "%d left", left);
}
END_TEST

START_TEST(a_writer_terminated_at_any_call_leaves_no_temporary_file)
{
    replacing_begin(_i);
    int old = 0;
    for (int n = 1;; n++) {
        file_put("target", "old");
        pid_t child = fork();
        if (child == 0) {
            writing w = {.path = "target"};
            signal(SIGTERM, SIG_DFL); /* Check has a handler */
            guard_fatal_on_signal(SIGTERM);
            faults_arm(n, FAULT_TERMINATE);
            int code = guard_run(write_new, &w, NULL);
            _exit(code == 0 && w.published ? 0 : 1);
        }
        int status;
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        const char *content = file_get("target");
        bool is_old = strcmp(content, "old") == 0;
        ck_assert_msg(is_old || strcmp(content, "new content") == 0, "terminated at call %d: %s", n, content);
        old += is_old;
        ck_assert_msg(leftovers_remove() == 0, "terminated at call %d, it left a file", n);
        if (WIFEXITED(status)) {
            ck_assert_int_eq(status, 0);
            break;
        }
        ck_assert_int_eq(WTERMSIG(status), SIGTERM);
    }
    ck_assert_int_gt(old, 4);
}
END_TEST

enum { CONTENT = 200000 };

static void write_letter(void *arg)
{
    char letter = *(const char *)arg;
    GUARD_AUTO(s);
    guard_file_replace *replace = guard_file_replace_begin(s, "target", NULL);
    for (int i = 0; i < CONTENT; i++) {
        putc_unlocked(letter, guard_file_replace_stream(replace));
    }
    guard_file_replace_commit(replace);
}

/* Reads the file whole; it must be CONTENT times one letter. */
static void ck_assert_whole(void)
{
    static char content[CONTENT + 10];
    int descriptor = open("target", O_RDONLY);
    ck_assert_msg(descriptor >= 0, "the name was without a file: %s", strerror(errno));
    ssize_t size = read(descriptor, content, sizeof content);
    close(descriptor);
    ck_assert_int_eq(size, CONTENT);
    ck_assert_msg(memcmp(content, content + 1, CONTENT - 1) == 0, "a mixture of %c and others", content[0]);
}

START_TEST(a_reader_never_sees_a_mixture_while_writers_are_killed)
{
    replacing_begin(_i);
    ck_assert_int_eq(guard_run(write_letter, (void *)"a", &error), 0);
    for (unsigned round = 0; round < 20; round++) {
        pid_t child = fork();
        ck_assert_int_ge(child, 0); /* kill(-1) would end everything on the machine */
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL); /* it writes for ever */
            for (char letter = 'a';; letter = letter == 'z' ? 'a' : (char)(letter + 1)) {
                if (guard_run(write_letter, &letter, NULL) != 0) {
                    _exit(1);
                }
            }
        }
        int64_t end = now_ms() + 1 + round * 7919 % 30; /* 1 to 30 ms, spread */
        do {
            ck_assert_whole();
        } while (now_ms() < end);
        kill(child, SIGKILL);
        int status;
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        ck_assert_msg(WIFSIGNALED(status), "the writer failed");
        ck_assert_whole();
        leftovers_remove();
    }
}
END_TEST

int main(void)
{
    const TTest *const both[] = {
        whatever_call_fails_it_is_the_old_content_or_the_new_as_told,
        an_interrupted_call_is_made_again,
        a_rename_whose_answer_is_lost_is_told_as_it_is,
        a_full_disk_leaves_the_old_content_and_is_told,
        a_file_size_limit_leaves_the_old_content_and_is_told,
        nothing_is_published_after_a_cleanup_that_failed,
        all_is_on_the_disk_before_the_name_leads_to_it_and_then_the_name,
        without_proc_the_new_file_has_a_name_from_the_beginning,
        nothing_is_published_by_a_cancelled_thread,
        a_forked_child_leaves_the_replacement_to_its_parent,
        a_writer_killed_at_any_call_leaves_the_old_content_or_the_new,
        a_writer_terminated_at_any_call_leaves_no_temporary_file,
        a_reader_never_sees_a_mixture_while_writers_are_killed,
    };
    /* 0: the new file has no name until it is published; 1: the file system has no such files. */
    const suite_group group = {"without a name, with one", 2, both, sizeof both / sizeof *both};
    return suite_run_groups("file_replace_fault", &group, 1);
}
