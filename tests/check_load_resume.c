/* SPDX-License-Identifier: MIT */
/* check_load_resume.c: whatever ends guard-load, the same command goes on: each good row is loaded once, each bad one told. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "load_program.h"
#include "random.h"

#define TABLE "CREATE TABLE t (a INTEGER NOT NULL, b TEXT)"

/* ------------------------------------------------------------------------------------------- a known file -- */

/* Writes `rows` good rows, numbered from 1, with a bad one before every hundredth. */
static void write_rows(const char *name, int rows)
{
    FILE *file = fopen(name, "w");
    fputs("a,b\n", file);
    for (int i = 1; i <= rows; i++) {
        if (i % 100 == 0) {
            fputs("bad,row\n", file);
        }
        fprintf(file, i % 7 == 0 ? "%d,\"row\n%d\"\n" : "%d,row %d\n", i, i);
    }
    fclose(file);
}

static void write_wide_rows(const char *name, int rows, int width)
{
    FILE *file = fopen(name, "w");
    fputs("a,b\n", file);
    for (int i = 1; i <= rows; i++) {
        fprintf(file, "%d,%0*d\n", i, width, i);
    }
    fclose(file);
}

/* Each of the rows is there once and as it was in the file, and so is each of the rejects. */
static void expect_all_rows(int rows)
{
    static const char sql[] = "SELECT count(*), count(DISTINCT a), min(a), max(a),"
                              " sum(b = 'row' || iif(a % 7 = 0, char(10), ' ') || a) FROM t";
    char expected[200];
    snprintf(expected, sizeof expected, "%d|%d|1|%d|%d", rows, rows, rows, rows);
    ck_assert_str_eq(query("t.db", sql), expected);
    ck_assert_int_eq(query_int64("t.db", "SELECT count(*) FROM guard_load_reject"), rows / 100);
    ck_assert_str_eq(query("t.db", "PRAGMA integrity_check"), "ok");
    snprintf(expected, sizeof expected, "%d|%d|1", rows, rows / 100);
    ck_assert_str_eq(query("t.db", "SELECT rows_loaded, rows_rejected, complete FROM guard_load_file"), expected);
}

static int count_lines(const char *text)
{
    int lines = 0;
    for (; (text = strchr(text, '\n')) != NULL; text++) {
        lines++;
    }
    return lines;
}

/* An unfinished load: two batches of two rows are in, the third one was given up. */
static void leave_unfinished(const char *options)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "a,b\n1,x\n2,x\n3,x\n4,x\nbad,x\n5,x\n");
    load_expect(load_run("--db sqlite:t.db --into t --batch 2 --max-rejects 1 %s f.csv", options), 1);
    ck_assert_str_eq(query("t.db", "SELECT a FROM t"), "1\n2\n3\n4");
}

/* -------------------------------------------------------------------------------------- killed and stopped -- */

/* Waits for the process, but not longer than so many microseconds, then sends the signal. */
static load_output signal_after(pid_t process, long microseconds, int number)
{
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    struct timespec time = {microseconds / 1000000, microseconds % 1000000 * 1000};
    if (sigtimedwait(&child, NULL, &time) < 0) {
        kill(process, number);
    }
    load_output output = load_wait(process);
    /* The other SIGCHLD: of the process that was signalled. */
    time = (struct timespec){0, 0};
    sigtimedwait(&child, NULL, &time);
    return output;
}

static void block_sigchld(void)
{
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

#define COMMAND "--db sqlite:t.db --schema s.sql --into t --batch 100 --rejects r.csv --quiet f.csv"
#define ROWS 1500

/* Signals the load at random moments, up to *longest microseconds, until a run comes to its end, which is expected to have loaded
 * all. Returns how often it was hit. */
static int load_with_signals(uint64_t *state, long *longest, int number, int stopped_status)
{
    for (int hits = 0;; hits++) {
        double began = seconds_now();
        load_output output = signal_after(load_start(COMMAND), 1 + (long)(random_next(state) % (unsigned long)*longest),
                                          number);
        if (output.status == 3) {
            expect_all_rows(ROWS);
            ck_assert_int_eq(count_lines(read_file("r.csv")), 1 + ROWS / 100);
            /* What a run that goes on where another was hit takes is no measure. */
            if (hits == 0) {
                *longest = (long)((seconds_now() - began) * 1e6) / 2 + 1;
            }
            return hits;
        }
        /* The signal itself ends a program that has not come to its first line. */
        load_expect(output, output.status == -number ? -number : stopped_status);
        /* On a machine that is busy now even the start may take longer. */
        *longest += *longest / 10 + 1;
    }
}

/* So many rounds at least, and on until half as many runs were hit, however fast or slow the machine has become. */
static void load_many_times(int rounds, int number, int stopped_status)
{
    uint64_t state = 2024 + (unsigned)number;
    block_sigchld();
    write_file("s.sql", TABLE);
    write_rows("f.csv", ROWS);
    double began = seconds_now();
    load_expect(load_run(COMMAND), 3);
    long longest = (long)((seconds_now() - began) * 1e6) / 2;
    int hits = 0;
    for (int round = 0; round < rounds || hits < rounds / 2; round++) {
        unlink("t.db");
        unlink("t.db-wal");
        unlink("t.db-shm");
        unlink("r.csv");
        hits += load_with_signals(&state, &longest, number, stopped_status);
    }
}

START_TEST(killed_at_random_moments_each_row_is_loaded_once_and_each_reject_told)
{
    load_many_times(25, SIGKILL, -SIGKILL);
}
END_TEST

START_TEST(stopped_by_sigterm_at_random_moments_each_row_is_loaded_once)
{
    load_many_times(8, SIGTERM, 143);
}
END_TEST

START_TEST(stopped_by_sigint_at_random_moments_each_row_is_loaded_once)
{
    load_many_times(8, SIGINT, 130);
}
END_TEST

/* Enough that the load takes a second: each batch of 20 waits for the disk. */
#define MANY 8000

/* Begins to load f.csv, and returns when it has rows in the table and many more to come. */
static pid_t start_and_wait_for_rows(void)
{
    run_sql("t.db", TABLE);
    pid_t process = load_start("--db sqlite:t.db --into t --batch 20 --rejects r.csv --json --quiet f.csv");
    while (query_int64("t.db", "SELECT count(*) FROM t") == 0) {
    }
    return process;
}

START_TEST(a_stop_signal_ends_the_batch_and_says_how_to_go_on)
{
    write_rows("f.csv", MANY);
    pid_t process = start_and_wait_for_rows();
    kill(process, SIGINT);
    /* A second one changes nothing. */
    kill(process, SIGINT);
    load_output output = load_wait(process);
    load_expect_error(output, 130, "stopped by signal 2; the same command goes on from there");
    ck_assert_str_eq(load_json_text(output, "outcome"), "committed");
    int64_t loaded = query_int64("t.db", "SELECT count(*) FROM t");
    ck_assert_int_eq(load_json(output, "rows_loaded"), loaded);
    ck_assert_int_eq(loaded, query_int64("t.db", "SELECT rows_loaded FROM guard_load_file WHERE NOT complete"));
    ck_assert_int_eq(count_lines(read_file("r.csv")) - 1, load_json(output, "rows_rejected"));
    output = load_run("--db sqlite:t.db --into t --json f.csv");
    load_expect(output, 3);
    ck_assert_int_eq(load_json(output, "resumed"), 1);
    ck_assert_int_eq(load_json(output, "rows_loaded"), MANY - loaded);
    expect_all_rows(MANY);
}
END_TEST

START_TEST(a_stop_signal_ends_the_wait_for_standard_input)
{
    run_sql("t.db", TABLE);
    ck_assert_int_eq(mkfifo("pipe", 0666), 0);
    int end = open("pipe", O_RDWR);
    int status = 0;
    pid_t process = fork();
    if (process == 0) {
        _exit(load_run_input("pipe", "--db sqlite:t.db --into t --name n -").status);
    }
    /* Its lock file says which process it is, and that it is behind the setting of its handlers. */
    const char *text;
    while (access("t.db.guard-lock", F_OK) != 0 || strlen(text = read_file("t.db.guard-lock")) == 0) {
    }
    pid_t loader = (pid_t)strtol(text + strcspn(text, "0123456789"), NULL, 10);
    ck_assert_int_gt(loader, 1);
    kill(loader, SIGTERM);
    ck_assert_int_eq(waitpid(process, &status, 0), process);
    ck_assert_int_eq(WEXITSTATUS(status), 143);
    close(end);
}
END_TEST

START_TEST(of_two_loaders_at_once_one_works_and_no_row_is_loaded_twice)
{
    run_sql("t.db", TABLE);
    write_rows("f.csv", 3000);
    pid_t processes[3];
    int done = 0;
    for (int i = 0; i < 3; i++) {
        processes[i] = load_start("--db sqlite:t.db --into t --batch 50 --quiet f.csv");
    }
    for (int i = 0; i < 3; i++) {
        load_output output = load_wait(processes[i]);
        ck_assert_msg(output.status == 3 || output.status == 1, "exit status %d", output.status);
        done += output.status == 3;
    }
    ck_assert_int_ge(done, 1);
    expect_all_rows(3000);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ identity -- */

START_TEST(a_complete_file_is_not_loaded_again)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "a\n1\n");
    write_file("g.csv", "a\nx\n2\n");
    load_expect(load_run("--db sqlite:t.db --into t f.csv"), 0);
    load_expect(load_run("--db sqlite:t.db --into t g.csv"), 3);
    load_output output = load_run("--db sqlite:t.db --into t --json f.csv");
    load_expect(output, 0);
    ck_assert_int_eq(load_json(output, "rows_loaded"), 0);
    ck_assert_int_eq(load_json(output, "batches"), 0);
    ck_assert_int_eq(load_json(output, "resumed"), 0);
    ck_assert_ptr_nonnull(strstr(output.err, "f.csv is already complete"));
    load_expect(load_run("--db sqlite:t.db --into t g.csv"), 3);
    ck_assert_str_eq(query("t.db", "SELECT a FROM t"), "1\n2");
}
END_TEST

START_TEST(a_renamed_copy_is_the_same_file_and_another_table_another_load)
{
    run_sql("t.db", TABLE "; CREATE TABLE u (a)");
    write_file("f.csv", "a\n1\n");
    write_file("copy.csv", "a\n1\n");
    load_output output = load_run("--db sqlite:t.db --into t --json f.csv copy.csv");
    load_expect(output, 0);
    ck_assert_int_eq(load_json(output, "rows_loaded"), 1);
    ck_assert_ptr_nonnull(
        strstr(output.err, "copy.csv is already complete in table \"t\": 1 rows loaded, 0 rejected (as f.csv)"));
    load_expect(load_run("--db sqlite:t.db --into u copy.csv"), 0);
    ck_assert_str_eq(query("t.db", "SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM u)"), "1|1");
}
END_TEST

START_TEST(an_unfinished_file_goes_on_under_another_name)
{
    leave_unfinished("");
    ck_assert_int_eq(rename("f.csv", "g.csv"), 0);
    load_output output = load_run("--db sqlite:t.db --into t --json g.csv");
    load_expect(output, 3);
    ck_assert_int_eq(load_json(output, "resumed"), 1);
    ck_assert_int_eq(load_json(output, "rows_loaded"), 1);
    ck_assert_str_eq(query("t.db", "SELECT a FROM t"), "1\n2\n3\n4\n5");
    ck_assert_str_eq(query("t.db", "SELECT name FROM guard_load_file"), "g.csv");
}
END_TEST

START_TEST(new_content_under_the_name_of_an_unfinished_file_is_refused_until_it_is_forgotten)
{
    leave_unfinished("");
    write_file("f.csv", "a,b\n1,x\n2,x\n3,x\n4,x\n5,mended\n");
    load_expect_error(load_run("--db sqlite:t.db --into t --quiet f.csv"), 1, "f.csv has new content, and 4 rows");
    /* The path counts, however it is written. */
    char here[4096];
    ck_assert_ptr_nonnull(getcwd(here, sizeof here));
    load_expect_error(load_run("--db sqlite:t.db --into t --quiet ../%s/./f.csv", strrchr(here, '/') + 1), 1,
                      "has new content");
    load_output output = load_run("--db sqlite:t.db --into t --forget f.csv");
    load_expect(output, 0);
    ck_assert_ptr_nonnull(strstr(output.err, "f.csv is forgotten; its 4 rows stay in table \"t\""));
    ck_assert_str_eq(query("t.db", "SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM guard_load_file),"
                                   " (SELECT count(*) FROM guard_load_reject)"),
                     "4|0|0");
    load_expect(load_run("--db sqlite:t.db --into t f.csv"), 0);
    ck_assert_str_eq(query("t.db", "SELECT count(*) FROM t"), "9");
}
END_TEST

START_TEST(new_content_under_the_name_of_a_complete_file_is_a_new_file)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "a\n1\n");
    load_expect(load_run("--db sqlite:t.db --into t f.csv"), 0);
    write_file("f.csv", "a\n2\n");
    load_expect(load_run("--db sqlite:t.db --into t f.csv"), 0);
    ck_assert_str_eq(query("t.db", "SELECT a FROM t"), "1\n2");
}
END_TEST

START_TEST(forget_works_for_a_file_that_is_gone_and_says_when_there_is_nothing)
{
    leave_unfinished("");
    ck_assert_int_eq(unlink("f.csv"), 0);
    load_output output = load_run("--db sqlite:t.db --into t --forget f.csv");
    load_expect(output, 0);
    ck_assert_ptr_nonnull(strstr(output.err, "f.csv is forgotten"));
    output = load_run("--db sqlite:t.db --into t --forget f.csv");
    load_expect(output, 0);
    ck_assert_ptr_nonnull(strstr(output.err, "there is nothing to forget"));
}
END_TEST

START_TEST(another_set_of_options_is_refused_for_a_file_that_was_begun)
{
    leave_unfinished("");
    load_expect_error(load_run("--db sqlite:t.db --into t --quiet --null NA f.csv"), 1, "was begun with other options");
    load_expect_error(load_run("--db sqlite:t.db --into t --quiet --max-row 9 f.csv"), 1, "--max-row 1048576");
    load_expect(load_run("--db sqlite:t.db --into t --batch 1 --rejects r.csv f.csv"), 3);
    load_expect_error(load_run("--db sqlite:t.db --into t --quiet --map b= f.csv"), 1,
                      "already loaded, with other options");
    ck_assert_str_eq(query("t.db", "SELECT a FROM t"), "1\n2\n3\n4\n5");
}
END_TEST

START_TEST(again_loads_a_complete_file_once_more_with_rejects_of_its_own)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "a,b\n1,x\nbad,y\n2,x\n");
    load_expect(load_run("--db sqlite:t.db --into t f.csv"), 3);
    load_output output = load_run("--db sqlite:t.db --into t --again --json f.csv");
    load_expect(output, 3);
    ck_assert_int_eq(load_json(output, "rows_loaded"), 2);
    ck_assert_str_eq(query("t.db", "SELECT a FROM t"), "1\n2\n1\n2");
    ck_assert_str_eq(query("t.db", "SELECT rows_loaded, rows_rejected, runs FROM guard_load_file"), "2|1|2");
    ck_assert_str_eq(query("t.db", "SELECT count(*) FROM guard_load_reject"), "1");
    /* Other options are another load of it. */
    load_expect(load_run("--db sqlite:t.db --into t --again --map b= f.csv"), 3);
    ck_assert_str_eq(query("t.db", "SELECT count(*), count(b) FROM t"), "6|4");
}
END_TEST

START_TEST(again_for_an_unfinished_file_goes_on_with_it)
{
    leave_unfinished("");
    load_expect(load_run("--db sqlite:t.db --into t --again f.csv"), 3);
    ck_assert_str_eq(query("t.db", "SELECT a FROM t"), "1\n2\n3\n4\n5");
    /* Once more, stopped in the middle: that round goes on too. */
    load_expect(load_run("--db sqlite:t.db --into t --again --batch 2 --max-rejects 1 f.csv"), 1);
    ck_assert_str_eq(query("t.db", "SELECT count(*) FROM t"), "9");
    load_expect(load_run("--db sqlite:t.db --into t f.csv"), 3);
    ck_assert_str_eq(query("t.db", "SELECT count(*), count(DISTINCT a) FROM t"), "10|5");
}
END_TEST

START_TEST(standard_input_has_an_identity_too)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "a,b\n1,x\n2,x\nbad,x\n3,x\n");
    load_expect(load_run_input("f.csv", "--db sqlite:t.db --into t --batch 2 --max-rejects 1 --name in -"), 1);
    load_output output = load_run_input("f.csv", "--db sqlite:t.db --into t --json --rejects r.csv --name in -");
    load_expect(output, 3);
    ck_assert_int_eq(load_json(output, "resumed"), 1);
    ck_assert_int_eq(load_json(output, "rows_loaded"), 1);
    ck_assert_ptr_nonnull(strstr(read_file("r.csv"), "in,4,type,"));
    ck_assert_str_eq(query("t.db", "SELECT a FROM t"), "1\n2\n3");
    /* Content decides, not the way it came. */
    load_expect(load_run("--db sqlite:t.db --into t f.csv"), 3);
    ck_assert_str_eq(query("t.db", "SELECT count(*) FROM t"), "3");
    write_file("g.csv", "a\n7\nbad\n");
    load_expect(load_run_input("g.csv", "--db sqlite:t.db --into t --batch 1 --max-rejects 1 --name in -"), 1);
    write_file("g.csv", "a\n8\n");
    load_expect_error(load_run_input("g.csv", "--db sqlite:t.db --into t --quiet --name in -"), 1,
                      "in has new content");
    load_expect(load_run("--db sqlite:t.db --into t --forget --name in -"), 0);
    load_expect(load_run_input("g.csv", "--db sqlite:t.db --into t --name in -"), 0);
}
END_TEST

START_TEST(a_pipe_as_standard_input_is_kept_until_it_is_loaded)
{
    run_sql("t.db", TABLE);
    write_rows("f.csv", 3000);
    char command[8192];
    snprintf(command, sizeof command, "cat f.csv | %s/demo/guard-load --db sqlite:t.db --into t --quiet --name in -",
             getenv("builddir"));
    int status = system(command);
    ck_assert_int_eq(WEXITSTATUS(status), 3);
    expect_all_rows(3000);
}
END_TEST

/* ------------------------------------------------------------------------------------------ changing files -- */

START_TEST(a_file_that_grows_while_it_is_loaded_is_refused)
{
    write_rows("f.csv", MANY);
    pid_t process = start_and_wait_for_rows();
    FILE *file = fopen("f.csv", "a");
    fputs("70000,late\n", file);
    fclose(file);
    load_output output = load_wait(process);
    load_expect_error(output, 1, "f.csv changed while it was being loaded");
    ck_assert_str_eq(load_json_text(output, "outcome"), "rolled_back");
    ck_assert_int_eq(query_int64("t.db", "SELECT count(*) FROM t"),
                     query_int64("t.db", "SELECT rows_loaded FROM guard_load_file"));
    load_expect_error(load_run("--db sqlite:t.db --into t --quiet f.csv"), 1, "f.csv has new content");
}
END_TEST

START_TEST(a_file_that_changes_behind_its_times_is_never_complete)
{
    /* Longer than what is read at a time: what has been read already may change. */
    write_wide_rows("f.csv", MANY, 200);
    pid_t process = start_and_wait_for_rows();
    /* The last line, to another of the same length, with the time of before. */
    struct stat before;
    int file = open("f.csv", O_RDWR);
    ck_assert_int_eq(fstat(file, &before), 0);
    kill(process, SIGSTOP);
    ck_assert_int_eq(pwrite(file, "x", 1, before.st_size - 2), 1);
    struct timespec times[2] = {before.st_atim, before.st_mtim};
    ck_assert_int_eq(futimens(file, times), 0);
    close(file);
    kill(process, SIGCONT);
    load_output output = load_wait(process);
    load_expect_error(output, 1, "f.csv changed while it was being loaded");
    ck_assert_str_eq(query("t.db", "SELECT complete FROM guard_load_file"), "0");
}
END_TEST

START_TEST(a_file_that_is_replaced_while_it_is_loaded_is_loaded_as_it_was)
{
    write_rows("f.csv", MANY);
    pid_t process = start_and_wait_for_rows();
    write_file("new.csv", "a,b\n1,other\n");
    ck_assert_int_eq(rename("new.csv", "f.csv"), 0);
    load_expect(load_wait(process), 3);
    expect_all_rows(MANY);
}
END_TEST

/* -------------------------------------------------------------------------------------------------- memory -- */

/* The most memory that loading so many rows of 1,000 bytes takes, in KiB. */
static long memory_of(int rows)
{
    /* Under AddressSanitizer, freed memory would wait. */
    setenv("ASAN_OPTIONS", "quarantine_size_mb=1", 1);
    write_wide_rows("f.csv", rows, 1000);
    pid_t process = load_start("--db sqlite:t.db --into t --quiet --batch 1000 f.csv");
    int status = 0;
    struct rusage usage;
    ck_assert_int_eq(wait4(process, &status, 0, &usage), process);
    ck_assert_int_eq(WEXITSTATUS(status), 0);
    return usage.ru_maxrss;
}

START_TEST(memory_stays_flat_however_large_the_file)
{
    run_sql("t.db", TABLE);
    long small = memory_of(4000);
    long large = memory_of(40000);
    ck_assert_msg(large < small + 1024, "4 MB took %ld KiB, 40 MB %ld KiB", small, large);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        killed_at_random_moments_each_row_is_loaded_once_and_each_reject_told,
        stopped_by_sigterm_at_random_moments_each_row_is_loaded_once,
        stopped_by_sigint_at_random_moments_each_row_is_loaded_once,
        a_stop_signal_ends_the_batch_and_says_how_to_go_on,
        a_stop_signal_ends_the_wait_for_standard_input,
        of_two_loaders_at_once_one_works_and_no_row_is_loaded_twice,
        a_complete_file_is_not_loaded_again,
        a_renamed_copy_is_the_same_file_and_another_table_another_load,
        an_unfinished_file_goes_on_under_another_name,
        new_content_under_the_name_of_an_unfinished_file_is_refused_until_it_is_forgotten,
        new_content_under_the_name_of_a_complete_file_is_a_new_file,
        forget_works_for_a_file_that_is_gone_and_says_when_there_is_nothing,
        another_set_of_options_is_refused_for_a_file_that_was_begun,
        again_loads_a_complete_file_once_more_with_rejects_of_its_own,
        again_for_an_unfinished_file_goes_on_with_it,
        standard_input_has_an_identity_too,
        a_pipe_as_standard_input_is_kept_until_it_is_loaded,
        a_file_that_grows_while_it_is_loaded_is_refused,
        a_file_that_changes_behind_its_times_is_never_complete,
        a_file_that_is_replaced_while_it_is_loaded_is_loaded_as_it_was,
        memory_stays_flat_however_large_the_file,
    };
    return load_suite_run("load resume", tests, sizeof tests / sizeof *tests, SCRATCH_ON_DISK);
}
