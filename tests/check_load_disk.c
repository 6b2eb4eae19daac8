/* SPDX-License-Identifier: MIT */
/* check_load_disk.c: a disk that is full or read-only is told in one line, and nothing is half done. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include "load_program.h"
#include "small_disk.h"

#define TABLE "CREATE TABLE t (a INTEGER NOT NULL, b TEXT)"

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
    small_disk_mount("size=1m");
    run_sql("small/t.db", TABLE);
    write_rows(20000);
    load_output output = load_run("--db sqlite:small/t.db --into t --batch 500 --json --quiet f.csv");
    load_expect_error(output, 1, "small/t.db");
    ck_assert_ptr_nonnull(strstr(output.err, "full"));
    ck_assert_str_eq(load_json_text(output, "outcome"), "rolled_back");
    int64_t loaded = load_json(output, "rows_loaded");
    ck_assert_int_lt(loaded, 20000);
    small_disk_remount(0, "size=20m");
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
    small_disk_mount("size=1m");
    run_sql("small/t.db", TABLE);
    write_rows(10);
    small_disk_remount(MS_RDONLY, "size=1m");
    load_expect_error(load_run("--db sqlite:small/t.db --into t --quiet f.csv"), 1, "small/t.db");
    load_expect_error(load_run("--db sqlite:small/new.db --schema f.csv --into t --quiet f.csv"), 1, "small/new.db");
    run_sql("t.db", TABLE);
    load_expect_error(load_run("--db sqlite:t.db --into t --rejects small/r.csv --quiet f.csv"), 1, "small/r.csv");
    ck_assert_int_eq(query_int64("t.db", "SELECT count(*) FROM t"), 0);
}
END_TEST

START_TEST(a_rejects_file_that_finds_no_room_is_told_and_the_old_one_stays)
{
    small_disk_mount("size=64k");
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
    small_disk_mount("size=64k");
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
    if (!small_disk_is_allowed()) {
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
