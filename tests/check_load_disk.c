/* SPDX-License-Identifier: MIT */
/*
 * check_load_disk.c: a disk that is full or read-only is told in one line, and nothing is half done.
 *
 * The small disk is a tmpfs of the test's own, mounted in a mount namespace that nobody else sees. Where that is not allowed
 * the program is skipped.
 */
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "load_program.h"

#define TABLE "CREATE TABLE t (a INTEGER NOT NULL, b TEXT)"

/* A mount namespace of this process: as root, else as root of a user namespace. Returns 0, or -1 with errno. */
static int enter_namespace(void)
{
    if (unshare(CLONE_NEWNS) != 0) {
        unsigned user = getuid();
        unsigned group = getgid();
        if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) {
            return -1;
        }
        char map[64];
        write_file("/proc/self/setgroups", "deny");
        snprintf(map, sizeof map, "0 %u 1", user);
        write_file("/proc/self/uid_map", map);
        snprintf(map, sizeof map, "0 %u 1", group);
        write_file("/proc/self/gid_map", map);
    }
    return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
}

/* Whether a child may mount. */
static int can_mount(void)
{
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        _exit(enter_namespace() != 0 || mount("none", "/mnt", "tmpfs", 0, "size=64k") != 0);
    }
    return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void mount_small_disk(const char *size)
{
    ck_assert_int_eq(mkdir("small", 0777), 0);
    ck_assert_msg(enter_namespace() == 0, "%s", strerror(errno));
    ck_assert_msg(mount("none", "small", "tmpfs", 0, size) == 0, "%s", strerror(errno));
}

static void write_rows(int rows)
{
    FILE *file = fopen("f.csv", "w");
    fputs("a,b\n", file);
    for (int i = 1; i <= rows; i++) {
        fprintf(file, "%d,%0100d\n", i, i);
    }
    fclose(file);
}

/* As long as there are rows, each is there once. */
static void expect_rows_from_one(int64_t rows)
{
    char expected[64];
    snprintf(expected, sizeof expected, "%d|%d|%d", (int)rows, (int)rows, (int)rows);
    ck_assert_str_eq(query("small/t.db", "SELECT count(*), count(DISTINCT a), coalesce(max(a), 0) FROM t"), expected);
}

START_TEST(a_full_disk_is_told_and_the_same_command_goes_on_when_there_is_room)
{
    mount_small_disk("size=1m");
    run_sql("small/t.db", TABLE);
    write_rows(20000);
    load_output output = load_run("--db sqlite:small/t.db --into t --batch 500 --json --quiet f.csv");
    load_expect_error(output, 1, "small/t.db");
    ck_assert_ptr_nonnull(strstr(output.err, "full"));
    ck_assert_str_eq(load_json_text(output, "outcome"), "rolled_back");
    int64_t loaded = load_json(output, "rows_loaded");
    ck_assert_int_lt(loaded, 20000);
    ck_assert_msg(mount(NULL, "small", NULL, MS_REMOUNT, "size=20m") == 0, "%s", strerror(errno));
    expect_rows_from_one(loaded);
    output = load_run("--db sqlite:small/t.db --into t --batch 500 --json f.csv");
    load_expect(output, 0);
    ck_assert_int_eq(load_json(output, "resumed"), loaded > 0);
    ck_assert_int_eq(load_json(output, "rows_loaded"), 20000 - loaded);
    expect_rows_from_one(20000);
    ck_assert_str_eq(query("small/t.db", "PRAGMA integrity_check"), "ok");
}
END_TEST

START_TEST(a_read_only_disk_is_told_and_nothing_is_done)
{
    mount_small_disk("size=1m");
    run_sql("small/t.db", TABLE);
    write_rows(10);
    ck_assert_msg(mount(NULL, "small", NULL, MS_REMOUNT | MS_RDONLY, "size=1m") == 0, "%s", strerror(errno));
    load_expect_error(load_run("--db sqlite:small/t.db --into t --quiet f.csv"), 1, "small/t.db");
    load_expect_error(load_run("--db sqlite:small/new.db --schema f.csv --into t --quiet f.csv"), 1, "small/new.db");
    run_sql("t.db", TABLE);
    load_expect_error(load_run("--db sqlite:t.db --into t --rejects small/r.csv --quiet f.csv"), 1, "small/r.csv");
    ck_assert_int_eq(query_int64("t.db", "SELECT count(*) FROM t"), 0);
}
END_TEST

START_TEST(a_rejects_file_that_finds_no_room_is_told_and_the_old_one_stays)
{
    mount_small_disk("size=64k");
    run_sql("t.db", "CREATE TABLE t (a INTEGER CHECK (a < 0), b)");
    write_rows(2000);
    write_file("small/r.csv", "of the run before\n");
    load_output output = load_run("--db sqlite:t.db --into t --rejects small/r.csv --quiet f.csv");
    load_expect_error(output, 1, "small/r.csv");
    ck_assert_str_eq(read_file("small/r.csv"), "of the run before\n");
    /* They are in the table. */
    ck_assert_int_eq(query_int64("t.db", "SELECT count(*) FROM guard_load_reject"), 2000);
}
END_TEST

START_TEST(a_copy_of_standard_input_that_finds_no_room_is_told)
{
    mount_small_disk("size=64k");
    run_sql("t.db", TABLE);
    write_rows(2000);
    char command[8192];
    snprintf(command, sizeof command,
             "cat f.csv | TMPDIR=small %s/demo/guard-load --db sqlite:t.db --into t --quiet --name in - 2> err",
             getenv("builddir"));
    int status = system(command);
    ck_assert_int_eq(WEXITSTATUS(status), 1);
    ck_assert_ptr_nonnull(strstr(read_file("err"), "No space left on device"));
    ck_assert_int_eq(query_int64("t.db", "SELECT count(*) FROM t"), 0);
}
END_TEST

int main(void)
{
    if (!can_mount()) {
        puts("a tmpfs cannot be mounted here");
        return 77;
    }
    const TTest *const tests[] = {
        a_full_disk_is_told_and_the_same_command_goes_on_when_there_is_room,
        a_read_only_disk_is_told_and_nothing_is_done,
        a_rejects_file_that_finds_no_room_is_told_and_the_old_one_stays,
        a_copy_of_standard_input_that_finds_no_room_is_told,
    };
    return load_suite_run("load disk", tests, sizeof tests / sizeof *tests, SCRATCH_ON_DISK);
}
