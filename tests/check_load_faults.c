/* SPDX-License-Identifier: MIT */
/*
 * check_load_faults.c: whatever SQLite's file layer or memory does to the loader, at whatever place, what it tells is what the
 * table holds, and the next run loads each good row once and tells each bad one.
 *
 * The loader runs in a process of its own, with its database on the VFS that fails.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <sqlite3.h>

#include "../demo/load/load.h"
#include "fault_vfs.h"
#include "load_program.h"

#define ROWS 23
#define BATCH 4

/* What the loader's process tells of its run. */
typedef struct told_run {
    int code; /* of its panic, or 0 */
    int exit_code;
    int hit;
    char outcome[16];
    uint64_t loaded;
    char message[300];
} told_run;

/* ------------------------------------------------------------------------------------------------- memory -- */

/* With a sanitizer, memory is the sanitizer's. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OWN_MEMORY 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define OWN_MEMORY 0
#endif
#endif
#ifndef OWN_MEMORY
#define OWN_MEMORY 1
#endif

/* The number of the allocation that fails, counted down; 0: none. */
static unsigned long allocations_left;

#if OWN_MEMORY
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *memory, size_t size);

static int fails_now(void)
{
    return allocations_left > 0 && --allocations_left == 0;
}

/* These come before those of libc for every library of the process. */
GUARD_API void *malloc(size_t size)
{
    return fails_now() ? (errno = ENOMEM, NULL) : __libc_malloc(size);
}

GUARD_API void *calloc(size_t count, size_t size)
{
    return fails_now() ? (errno = ENOMEM, NULL) : __libc_calloc(count, size);
}

GUARD_API void *realloc(void *memory, size_t size)
{
    return fails_now() ? (errno = ENOMEM, NULL) : __libc_realloc(memory, size);
}
#endif

/* ------------------------------------------------------------------------------------------- the loader's run -- */

typedef struct fault {
    int armed;
    unsigned long allocation; /* instead of an operation of the VFS */
    unsigned operations;
    fault_way way;
    unsigned long nth;
    bool stays;
} fault;

static void write_csv(void)
{
    FILE *file = fopen("f.csv", "w");
    fputs("a,b\n", file);
    for (int i = 1; i <= ROWS; i++) {
        if (i % 5 == 0) {
            fprintf(file, "x,%d\n%d,\"row\n%d\"\n", i, i, i);
        } else {
            fprintf(file, "%d,row %d\n", i, i);
        }
    }
    fclose(file);
}

typedef struct one_load {
    const load_options *options;
    load_totals totals;
    int exit_code;
} one_load;

static void load(void *arg)
{
    one_load *one = arg;
    one->exit_code = load_files(one->options, &sqlite_driver, &one->totals);
}

static void load_and_tell(const fault *f)
{
    static char *files[] = {"f.csv"};
    load_options options = {.database = "t.db",
                            .table = "t",
                            .schema = "s.sql",
                            .rejects = "r.csv",
                            .null_text = "",
                            .batch = BATCH,
                            .max_rejects = UINT64_MAX,
                            .max_row = 1000,
                            .delimiter = ',',
                            .quiet = 1,
                            .files = files,
                            .file_count = 1};
    one_load one = {.options = &options, .totals = {.outcome = "committed"}};
    guard_error error = {.code = 0};
    told_run told = {.code = 0};
    fault_vfs_install();
    sqlite3_vfs_register(sqlite3_vfs_find("fault"), 1);
    if (f->armed) {
        fault_vfs_arm(f->operations, f->way, f->nth, f->stays);
    }
    allocations_left = f->allocation;
    told.code = guard_run(load, &one, &error);
    told.hit = f->allocation > 0 ? allocations_left == 0 : f->armed && fault_vfs_was_hit();
    allocations_left = 0;
    told.exit_code = one.exit_code;
    told.loaded = one.totals.loaded;
    snprintf(told.outcome, sizeof told.outcome, "%s", one.totals.outcome);
    snprintf(told.message, sizeof told.message, "%s", error.message);
    write_bytes("told", &told, sizeof told);
    _exit(0);
}

/* Runs the loader: 1 with what it told, or 0 if it was killed. */
static int run_loader(const fault *f, told_run *told)
{
    int status = 0;
    pid_t process = fork();
    ck_assert_int_ge(process, 0);
    if (process == 0) {
        load_and_tell(f);
    }
    ck_assert_int_eq(waitpid(process, &status, 0), process);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) {
        return 0;
    }
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the loader ended with wait status %#x",
                  (unsigned)status);
    FILE *file = fopen("told", "r");
    ck_assert_uint_eq(fread(told, sizeof *told, 1, file), 1);
    fclose(file);
    return 1;
}

static void expect_all_loaded(void)
{
    const fault none = {.armed = 0};
    told_run told;
    ck_assert(run_loader(&none, &told));
    ck_assert_msg(told.code == 0 && told.exit_code == EXIT_REJECTS, "the next run: %s", told.message);
    ck_assert_str_eq(query("t.db", "SELECT count(*), count(DISTINCT a), min(a), max(a) FROM t"), "23|23|1|23");
    ck_assert_str_eq(query("t.db", "SELECT line, code, reason FROM guard_load_reject"),
                     "6|type|column a: \"x\" is not an integer\n13|type|column a: \"x\" is not an integer\n"
                     "20|type|column a: \"x\" is not an integer\n27|type|column a: \"x\" is not an integer");
    ck_assert_str_eq(query("t.db", "PRAGMA integrity_check"), "ok");
    ck_assert_str_eq(read_file("r.csv"), "file,line,code,reason,row\n"
                                         "f.csv,6,type,\"column a: \"\"x\"\" is not an integer\",\"x,5\"\n"
                                         "f.csv,13,type,\"column a: \"\"x\"\" is not an integer\",\"x,10\"\n"
                                         "f.csv,20,type,\"column a: \"\"x\"\" is not an integer\",\"x,15\"\n"
                                         "f.csv,27,type,\"column a: \"\"x\"\" is not an integer\",\"x,20\"\n");
}

/* What was told of a run that a fault ended is what the table holds. */
static void expect_truth(const told_run *told)
{
    ck_assert_msg(told->message[0] != '\0', "it failed without a word");
    if (query_int64("t.db", "SELECT count(*) FROM sqlite_schema WHERE name = 't'") == 0) {
        ck_assert_uint_eq(told->loaded, 0);
        return;
    }
    uint64_t found = (uint64_t)query_int64("t.db", "SELECT count(*) FROM t");
    if (strcmp(told->outcome, "in_doubt") == 0) {
        ck_assert_msg(found >= told->loaded && found <= told->loaded + BATCH, "told %d, found %d", (int)told->loaded,
                      (int)found);
    } else {
        ck_assert_msg(found == told->loaded, "told %d (%s: %s), found %d", (int)told->loaded, told->outcome,
                      told->message, (int)found);
    }
}

static void remove_database(void)
{
    static const char *const files[] = {"t.db", "t.db-wal", "t.db-shm", "t.db-journal", "r.csv", "told"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        unlink(files[i]);
    }
}

/* Runs the loader with the fault, then without: 1, or 0 if the fault outran it. */
static int fail_one(const fault *f)
{
    told_run told;
    remove_database();
    if (run_loader(f, &told)) {
        if (told.code != 0) {
            expect_truth(&told);
        }
        if (!told.hit) {
            ck_assert_int_eq(told.code, 0);
            return 0;
        }
    }
    expect_all_loaded();
    return 1;
}

static void write_input(void)
{
    write_csv();
    write_file("s.sql", "CREATE TABLE t (a INTEGER NOT NULL, b TEXT)");
}

/* Fails each operation of a load in turn, or every `step`th. Returns how many there were, at least. */
static unsigned long fail_each(unsigned operations, fault_way way, bool stays, unsigned long step)
{
    fault f = {.armed = 1, .operations = operations, .way = way, .nth = 1, .stays = stays};
    write_input();
    while (fail_one(&f)) {
        f.nth += step;
    }
    return f.nth - step;
}

#define CHANGES (FAULT_WRITE | FAULT_SYNC | FAULT_TRUNCATE | FAULT_DELETE)

START_TEST(killed_before_any_write_the_next_run_completes)
{
    ck_assert_uint_gt(fail_each(CHANGES, FAULT_KILL, false, 1), 50);
}
END_TEST

START_TEST(any_write_that_fails_is_told_and_the_next_run_completes)
{
    ck_assert_uint_gt(fail_each(CHANGES, FAULT_ERROR, false, 1), 50);
}
END_TEST

START_TEST(any_write_that_is_done_though_it_failed_is_told_and_the_next_run_completes)
{
    ck_assert_uint_gt(fail_each(CHANGES, FAULT_DONE, false, 1), 50);
}
END_TEST

START_TEST(a_sync_from_which_on_all_fail_is_told_and_the_next_run_completes)
{
    /* In doubt for two seconds each, so not all. */
    ck_assert_uint_gt(fail_each(FAULT_SYNC, FAULT_DONE, true, 5), 4);
}
END_TEST

START_TEST(any_torn_write_is_told_and_the_next_run_completes)
{
    ck_assert_uint_gt(fail_each(FAULT_WRITE, FAULT_TORN, false, 1), 30);
}
END_TEST

START_TEST(a_disk_full_at_any_write_is_told_and_the_next_run_completes)
{
    ck_assert_uint_gt(fail_each(FAULT_WRITE, FAULT_FULL, true, 1), 30);
}
END_TEST

START_TEST(any_read_or_lock_that_fails_is_told_and_the_next_run_completes)
{
    ck_assert_uint_gt(fail_each(FAULT_READ | FAULT_OPEN | FAULT_LOCK | FAULT_SHM, FAULT_ERROR, false, 1), 30);
}
END_TEST

#if OWN_MEMORY
START_TEST(any_allocation_that_fails_is_told_and_the_next_run_completes)
{
    fault f = {.allocation = 1};
    write_input();
    while (fail_one(&f)) {
        f.allocation += f.allocation < 200 ? 1 : 5;
    }
    ck_assert_uint_gt(f.allocation, 500);
}
END_TEST
#endif

int main(void)
{
    const TTest *const tests[] = {
        killed_before_any_write_the_next_run_completes,
        any_write_that_fails_is_told_and_the_next_run_completes,
        any_write_that_is_done_though_it_failed_is_told_and_the_next_run_completes,
        a_sync_from_which_on_all_fail_is_told_and_the_next_run_completes,
        any_torn_write_is_told_and_the_next_run_completes,
        a_disk_full_at_any_write_is_told_and_the_next_run_completes,
        any_read_or_lock_that_fails_is_told_and_the_next_run_completes,
#if OWN_MEMORY
        any_allocation_that_fails_is_told_and_the_next_run_completes,
#endif
    };
    return load_suite_run("load faults", tests, sizeof tests / sizeof *tests, SCRATCH_IN_MEMORY);
}
