/* SPDX-License-Identifier: MIT */
/*
 * check_sqlite_limits.c: what the kernel refuses in the middle of a transaction (room on the disk, the size of a file, descriptors, memory, rights): the
 * outcome that is told is what another process finds afterwards (behaviours 44, 47).
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_sqlite.h>
#include <guard/tx.h>

#include "scratch.h"
#include "small_disk.h"
#include "sqlite_table.h"
#include "suite.h"

#define BLOBS "CREATE TABLE t(id INTEGER PRIMARY KEY, data BLOB)"

static const char *const journals[] = {"wal", "delete", "truncate", "persist"};
#define JOURNALS (int)(sizeof(journals) / sizeof(journals[0]))
#define ADOPTED JOURNALS /* WAL on an adopted handle, where a savepoint copies what is changed into a temporary file */

static unsigned long told[GUARD_RELEASED + 1];

/* ------------------------------------------------------------------------------------------- the scenario */

/* What happens in a transaction of two rows, once at `when`: 0 before the rows, 1 between them, 2 before COMMIT. */
typedef struct trial {
    int when;
    void (*strike)(long amount);
    long amount;
    guard_outcome outcome;
    guard_result result;
} trial;

static void strike_at(const trial *t, int when)
{
    if (t->when == when) {
        t->strike(t->amount);
    }
}

static void insert_two(guard_tx *tx, void *arg)
{
    const trial *t = arg;
    (void)tx;
    strike_at(t, 0);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1, zeroblob(9000))");
    strike_at(t, 1);
    guard_sqlite_exec(db, "UPDATE u SET data = zeroblob(90000)");
    guard_sqlite_exec(db, "INSERT INTO t VALUES (2, zeroblob(9000))");
    strike_at(t, 2);
}

static void make_database(const char *at, int journal)
{
    char sql[160];
    path = at;
    sqlite3 *raw = database_raw(path);
    snprintf(sql, sizeof(sql), "PRAGMA journal_mode = %s; DROP TABLE IF EXISTS t; DROP TABLE IF EXISTS u",
             journals[journal % JOURNALS]);
    database_exec(raw, sql);
    database_exec(raw, BLOBS);
    database_exec(raw, journal == ADOPTED ? "CREATE TABLE u(data); INSERT INTO u VALUES (randomblob(90000))"
                                          : "CREATE TABLE u(data)");
    sqlite3_close(raw);
}

static void transact_adopted(trial *t, void (*relieve)(void))
{
    sqlite3 *raw = database_raw(path);
    GUARD_SCOPE (inner) {
        db = guard_sqlite_adopt(inner, raw, NULL);
        t->outcome = guard_sqlite_transact(db, insert_two, t, NULL, &t->result);
        relieve();
    }
    sqlite3_close(raw);
}

static void transact(trial *t, int journal, void (*relieve)(void))
{
    if (journal == ADOPTED) {
        transact_adopted(t, relieve);
    } else {
        GUARD_AUTO(s);
        db = guard_sqlite_open(s, path, &(guard_sqlite_options){.flags = GUARD_SQLITE_EXISTING, .busy_ms = 100});
        t->outcome = guard_sqlite_transact(db, insert_two, t, NULL, &t->result);
        relieve();
    }
    told[t->outcome]++;
}

/* As another process sees it, after everything here is closed. */
static void expect_truth(const trial *t, const char *limit, int journal)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        sqlite3 *raw = NULL;
        sqlite3_stmt *stmt = NULL;
        int rows = sqlite3_open(path, &raw) == SQLITE_OK &&
                           sqlite3_prepare_v2(raw, COUNT, -1, &stmt, NULL) == SQLITE_OK &&
                           sqlite3_step(stmt) == SQLITE_ROW
                       ? sqlite3_column_int(stmt, 0)
                       : 99;
        sqlite3_finalize(stmt);
        int is_whole = sqlite3_prepare_v2(raw, "PRAGMA integrity_check", -1, &stmt, NULL) == SQLITE_OK &&
                       sqlite3_step(stmt) == SQLITE_ROW &&
                       strcmp((const char *)sqlite3_column_text(stmt, 0), "ok") == 0;
        _exit(is_whole ? rows : 98);
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    int rows = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    ck_assert_msg(rows == 0 || rows == 2, "%s %ld, %s, at %d: %d rows", limit, t->amount, journals[journal % JOURNALS],
                  t->when, rows);
    ck_assert_msg(t->outcome == GUARD_IN_DOUBT || (t->outcome == GUARD_COMMITTED) == (rows == 2),
                  "%s %ld, %s, at %d: told %s (%s), %d rows", limit, t->amount, journals[journal % JOURNALS], t->when,
                  guard_outcome_name(t->outcome), t->result.has_error ? t->result.error.message : "", rows);
    ck_assert(t->outcome == GUARD_COMMITTED || t->result.error.message[0] != '\0');
}

/* Each amount from 0 on, at each place, until it is enough. */
static void try_all(const char *limit, void (*strike)(long), void (*relieve)(void), long step, const char *at)
{
    for (int journal = 0; journal <= ADOPTED; journal++) {
        for (int when = 0; when < 3; when++) {
            trial t = {.when = when, .strike = strike, .outcome = GUARD_OPEN};
            for (long amount = 0; t.outcome != GUARD_COMMITTED; amount += step) {
                ck_assert_int_lt(amount, 1000 * step);
                t.amount = amount;
                make_database(at, journal);
                transact(&t, journal, relieve);
                expect_truth(&t, limit, journal);
            }
        }
    }
    ck_assert_uint_ge(told[GUARD_ROLLED_BACK], (unsigned long)JOURNALS);
    ck_assert_uint_eq(told[GUARD_COMMITTED], 3UL * (JOURNALS + 1));
}

/* In memory: what is tried is not the disk, and there are hundreds. */
static const char *folder;

static const char *new_path(void)
{
    static char at[256];
    folder = scratch_folder(SCRATCH_IN_MEMORY);
    snprintf(at, sizeof(at), "%s/limits.db", folder);
    return at;
}

/* ---------------------------------------------------------------------------------------------- file size */

static struct rlimit usual;

static void limit_file_size(long bytes)
{
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){(rlim_t)bytes, usual.rlim_max});
}

static void unlimit_file_size(void)
{
    setrlimit(RLIMIT_FSIZE, &usual);
}

START_TEST(a_file_size_limit_anywhere_leaves_a_true_outcome)
{
    getrlimit(RLIMIT_FSIZE, &usual);
    signal(SIGXFSZ, SIG_IGN);
    const char *at = new_path();
    try_all("file size", limit_file_size, unlimit_file_size, 1531, at);
}
END_TEST

/* By default the signal ends the process in its write: what is left is all of it or nothing. */
START_TEST(a_process_that_dies_of_the_file_size_limit_leaves_all_or_nothing)
{
    int died = 0;
    getrlimit(RLIMIT_FSIZE, &usual);
    const char *at = new_path();
    for (int i = 0; i < 3 * JOURNALS * 12; i++) {
        int journal = i % JOURNALS;
        trial t = {.when = i / JOURNALS % 3, .strike = limit_file_size, .amount = 1L + i / (3 * JOURNALS) * 4096};
        int status;
        make_database(at, journal);
        pid_t child = fork();
        if (child == 0) {
            setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
            signal(SIGXFSZ, SIG_DFL);
            transact(&t, journal, unlimit_file_size);
            _exit(t.outcome == GUARD_COMMITTED ? 1 : 2);
        }
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        if (WIFSIGNALED(status)) {
            ck_assert_int_eq(WTERMSIG(status), SIGXFSZ);
            t.outcome = GUARD_IN_DOUBT;
            t.result.error.message[0] = '?';
            died++;
        } else {
            t.outcome = WEXITSTATUS(status) == 1 ? GUARD_COMMITTED : GUARD_ROLLED_BACK;
            t.result.error.message[0] = '?';
        }
        expect_truth(&t, "file size, killed", journal);
    }
    ck_assert_int_gt(died, JOURNALS);
}
END_TEST

/* -------------------------------------------------------------------------------------------- descriptors */

static void limit_descriptors(long more)
{
    int next = dup(0);
    close(next);
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){(rlim_t)(next + more), usual.rlim_max});
}

static void unlimit_descriptors(void)
{
    setrlimit(RLIMIT_NOFILE, &usual);
}

START_TEST(no_descriptor_for_a_journal_leaves_a_true_outcome)
{
    getrlimit(RLIMIT_NOFILE, &usual);
    const char *at = new_path();
    for (int journal = 0; journal <= ADOPTED; journal++) {
        for (int i = 0; i < 3 * 4; i++) {
            trial t = {.when = i % 3, .strike = limit_descriptors, .amount = i / 3};
            make_database(at, journal);
            transact(&t, journal, unlimit_descriptors);
            expect_truth(&t, "descriptors", journal);
        }
    }
    ck_assert_uint_ge(told[GUARD_ROLLED_BACK], 3); /* where there was none before the first row */
    ck_assert_uint_ge(told[GUARD_COMMITTED], 4UL * JOURNALS);
}
END_TEST

static void open_limited(void *more)
{
    GUARD_AUTO(s);
    limit_descriptors(*(int *)more);
    guard_sqlite_open(s, path, &(guard_sqlite_options){.journal = GUARD_SQLITE_WAL});
}

START_TEST(a_database_that_finds_no_descriptor_is_not_opened_and_keeps_none)
{
    getrlimit(RLIMIT_NOFILE, &usual);
    path = database_new(TABLE);
    for (int more = 0, code = 1; code != 0; more++) {
        guard_error error;
        int next = dup(0);
        close(next);
        ck_assert_int_lt(more, 10);
        code = guard_run(open_limited, &more, &error);
        unlimit_descriptors();
        int again = dup(0);
        close(again);
        ck_assert_int_eq(again, next);
        if (code != 0) {
            ck_assert_int_eq(error.domain, GUARD_SQLITE);
            ck_assert_has(error.message, "test.db");
        }
    }
}
END_TEST

/* ------------------------------------------------------------------------------------------------- memory */

/* The kernel gives no more pages, and what malloc has left is taken, but for so many bytes. */
static void *taken;

static void limit_memory(long left)
{
    void *kept = left > 0 ? malloc((size_t)left) : NULL;
    getrlimit(RLIMIT_AS, &usual);
    setrlimit(RLIMIT_AS, &(struct rlimit){1, usual.rlim_max});
    for (size_t size = 1 << 24; size >= sizeof(void *); size /= 2) {
        for (void *block; (block = malloc(size)) != NULL;) {
            *(void **)block = taken;
            taken = block;
        }
    }
    free(kept);
}

static void unlimit_memory(void)
{
    setrlimit(RLIMIT_AS, &usual);
    while (taken != NULL) {
        void *next = *(void **)taken;
        free(taken);
        taken = next;
    }
}

START_TEST(no_memory_from_anywhere_leaves_a_true_outcome)
{
    const char *at = new_path();
    try_all("memory", limit_memory, unlimit_memory, 2048, at);
}
END_TEST

/* --------------------------------------------------------------------------------------------------- disk */

static void fill_disk(long left)
{
    static char block[1024];
    int fd = open("small/filler", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    off_t size = 0;
    for (size_t part = sizeof(block); part > 0; part /= 2) {
        for (ssize_t count; (count = pwrite(fd, block, part, size)) > 0;) {
            size += count;
        }
    }
    ck_assert_int_eq(ftruncate(fd, size > left ? size - left : 0), 0);
    close(fd);
}

static void empty_disk(void)
{
    unlink("small/filler");
}

START_TEST(a_full_disk_anywhere_leaves_a_true_outcome)
{
    if (!small_disk_is_allowed()) {
        puts("a tmpfs cannot be mounted here");
        return;
    }
    scratch_enter();
    small_disk_mount("size=512k");
    try_all("disk", fill_disk, empty_disk, 4096, "small/limits.db");
}
END_TEST

/* ------------------------------------------------------------------------------------------------- rights */

static void give_up_rights(long mode)
{
    ck_assert_int_eq(chmod(folder, (mode_t)mode), 0);
    ck_assert_int_eq(seteuid(65534), 0);
}

static void take_rights_back(void)
{
    ck_assert_int_eq(seteuid(0), 0);
}

START_TEST(rights_that_are_given_up_in_a_transaction_leave_a_true_outcome)
{
    static const long modes[] = {0700, 0755, 0777};
    if (geteuid() != 0) {
        puts("only root has rights to give up");
        return;
    }
    const char *at = new_path();
    for (int i = 0; i < 3 * 3 * JOURNALS; i++) {
        trial t = {.when = i % 3, .strike = give_up_rights, .amount = modes[i / 3 % 3]};
        make_database(at, i / 9);
        transact(&t, i / 9, take_rights_back);
        expect_truth(&t, "rights", i / 9);
        /* What it needs is open in WAL mode: it commits, and its file is not taken for gone. */
        ck_assert_msg(i / 9 != 0 || t.outcome == GUARD_COMMITTED, "wal, mode %lo, at %d: %s", (unsigned long)t.amount,
                      t.when, t.result.error.message);
    }
    ck_assert_uint_gt(told[GUARD_ROLLED_BACK], 0);
}
END_TEST

int main(void)
{
#if defined(WITH_ASAN) || defined(WITH_TSAN)
    int sanitized = 1; /* they have memory of their own, as valgrind */
#else
    int sanitized = 0;
#endif
    const TTest *const tests[] = {
        a_file_size_limit_anywhere_leaves_a_true_outcome,
        a_process_that_dies_of_the_file_size_limit_leaves_all_or_nothing,
        no_descriptor_for_a_journal_leaves_a_true_outcome,
        a_database_that_finds_no_descriptor_is_not_opened_and_keeps_none,
        sanitized ? NULL : suite_unless_valgrind(no_memory_from_anywhere_leaves_a_true_outcome),
        a_full_disk_anywhere_leaves_a_true_outcome,
        rights_that_are_given_up_in_a_transaction_leave_a_true_outcome,
    };
    return suite_run("sqlite_limits", tests, sizeof tests / sizeof *tests);
}
