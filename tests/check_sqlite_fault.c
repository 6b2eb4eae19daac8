/* SPDX-License-Identifier: MIT */
/*
 * check_sqlite_fault.c: whatever fails, at whatever place, the outcome that is told is what a look at the database finds, with a fresh
 * connection and after a crash (behaviours 44, 47).
 */
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_sqlite.h>
#include <guard/tx.h>

#include "database.h"
#include "fault_vfs.h"
#include "suite.h"

#define TABLE "CREATE TABLE t(id INTEGER PRIMARY KEY, data BLOB); CREATE INDEX by_data ON t(data);"
#define ROWS 6
#define COUNT "SELECT count(*) FROM t"

/* What one campaign varies. */
typedef struct campaign {
    const char *journal; /* PRAGMA journal_mode */
    unsigned operations;
    fault_way way;
    bool on; /* the fault stays */
    int marker;
} campaign;

static unsigned long told[6]; /* outcomes seen */
static unsigned long resolved;

static const char *new_file(const campaign *c, unsigned long n)
{
    char name[32];
    snprintf(name, sizeof(name), "f%lu.db", n);
    const char *path = database_beside(name);
    sqlite3 *raw = database_raw(path);
    char pragma[64];
    snprintf(pragma, sizeof(pragma), "PRAGMA synchronous = OFF; PRAGMA journal_mode = %s", c->journal);
    database_exec(raw, pragma);
    database_exec(raw, TABLE);
    database_exec(raw, "CREATE TABLE guard_marker(session TEXT PRIMARY KEY, seq INTEGER NOT NULL, "
                       "fenced INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID; INSERT INTO t VALUES (1000, 'x')");
    sqlite3_close(raw);
    return path;
}

static void remove_file(const char *path)
{
    static const char *const parts[] = {"", "-journal", "-wal", "-shm"};
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        char name[160];
        snprintf(name, sizeof(name), "%s%s", path, parts[i]);
        unlink(name);
    }
}

static void insert_rows(guard_tx *tx, void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_sqlite_stmt *insert = guard_sqlite_prepare(s, guard_sqlite_of(tx),
                                                     "INSERT INTO t VALUES (?1, randomblob(700))");
    for (int i = 0; i < ROWS; i++) {
        guard_sqlite_bind_int64(insert, 1, i);
        guard_sqlite_run(insert);
    }
    guard_sqlite_exec(guard_sqlite_of(tx), "DELETE FROM t WHERE id = 1000");
}

/* All of the transaction, or nothing of it. */
static bool is_kept(const char *path)
{
    sqlite3 *raw = database_raw(path);
    database_check(raw);
    long long rows = database_number_on(raw, COUNT);
    long long old = database_number_on(raw, "SELECT count(*) FROM t WHERE id = 1000");
    sqlite3_close(raw);
    ck_assert_msg((rows == ROWS && old == 0) || (rows == 1 && old == 1), "half a transaction: %lld rows, old %lld",
                  rows, old);
    return rows == ROWS;
}

static void compare(guard_outcome outcome, bool kept, const char *where, const campaign *c, unsigned long n)
{
    ck_assert_msg(outcome == GUARD_IN_DOUBT || (outcome == GUARD_COMMITTED) == kept,
                  "%s, way %d, n %lu (%s): told %s, but %s the rows are %s", c->journal, c->way, n,
                  fault_vfs_hit_name(), guard_outcome_name(outcome), where, kept ? "there" : "not there");
}

static void look(const char *path, guard_outcome outcome, const campaign *c, unsigned long n)
{
    const char *copy = database_crash_copy(path, 0);
    compare(outcome, is_kept(copy), "after a crash", c, n);
    remove_file(copy);
    compare(outcome, is_kept(path), "for a new connection", c, n);
}

static guard_outcome settle(guard_sqlite *db, guard_outcome outcome, const guard_result *result)
{
    guard_error error;
    if (outcome != GUARD_IN_DOUBT || result->token[0] == '\0') {
        return outcome;
    }
    outcome = guard_sqlite_resolve(db, result->token, NULL, &error);
    ck_assert_msg(outcome == GUARD_COMMITTED || outcome == GUARD_ROLLED_BACK, "%s", error.message);
    resolved++;
    return outcome;
}

/* Returns whether the fault was met. */
static bool run_once(const campaign *c, unsigned long n)
{
    const guard_sqlite_options open_options = {.vfs = "fault", .busy_ms = 50};
    const guard_sqlite_tx_options options = {
        .marker = c->marker, .resolve_ms = c->on ? 5 : 1000, .tx = {.attempts = 1}};
    const char *path = new_file(c, n);
    guard_result result;
    GUARD_AUTO(s);
    guard_sqlite *db = guard_sqlite_open(s, path, &open_options);
    guard_sqlite_exec(db, "PRAGMA cache_size = 4");
    fault_vfs_arm(c->operations, c->way, n, c->on);
    guard_outcome outcome = guard_sqlite_transact(db, insert_rows, NULL, &options, &result);
    bool hit = fault_vfs_was_hit();
    fault_vfs_disarm();
    ck_assert_msg(outcome == GUARD_COMMITTED || outcome == GUARD_ROLLED_BACK || outcome == GUARD_IN_DOUBT, "n %lu: %s",
                  n, guard_outcome_name(outcome));
    ck_assert_msg(outcome == GUARD_COMMITTED || result.has_error, "no error told");
    told[outcome]++;
    outcome = settle(db, outcome, &result);
    look(path, outcome, c, n);
    guard_sqlite_close(db);
    compare(outcome, is_kept(path), "after the close", c, n);
    remove_file(path);
    return hit;
}

static unsigned long run_campaign(const campaign *c)
{
    unsigned long n = 1;
    while (run_once(c, n)) {
        n++;
    }
    ck_assert_uint_gt(n, 1);
    return n - 1;
}

/* Each way, for one operation and from it on. The ways end with FAULT_KILL. */
static void run_ways(const char *journal, int marker, const fault_way *ways)
{
    database_new(NULL);
    fault_vfs_install();
    for (; *ways != FAULT_KILL; ways++) {
        for (int on = 0; on <= 1; on++) {
            campaign c = {journal, FAULT_ALL, *ways, on, marker};
            run_campaign(&c);
        }
    }
}

#define WAYS(...) ((const fault_way[]){__VA_ARGS__, FAULT_KILL})

START_TEST(any_failing_io_in_wal_mode_leaves_a_true_outcome)
{
    run_ways("wal", GUARD_SQLITE_MARKER_OFF, WAYS(FAULT_ERROR, FAULT_DONE, FAULT_TORN, FAULT_MEMORY));
    ck_assert_uint_gt(told[GUARD_IN_DOUBT], 0);
    ck_assert_uint_gt(told[GUARD_ROLLED_BACK], 0);
    ck_assert_uint_gt(told[GUARD_COMMITTED], 0);
}
END_TEST

START_TEST(any_failing_io_in_wal_mode_with_a_marker_is_resolved_for_good)
{
    run_ways("wal", GUARD_SQLITE_MARKER_ROW, WAYS(FAULT_ERROR, FAULT_DONE, FAULT_TORN));
    ck_assert_uint_gt(resolved, 0);
}
END_TEST

START_TEST(any_failing_io_with_a_deleted_journal_leaves_a_true_outcome)
{
    run_ways("delete", GUARD_SQLITE_MARKER_OFF, WAYS(FAULT_ERROR, FAULT_DONE));
}
END_TEST

START_TEST(any_failing_io_with_a_deleted_journal_and_a_marker_is_resolved_for_good)
{
    run_ways("delete", GUARD_SQLITE_MARKER_ROW, WAYS(FAULT_DONE, FAULT_TORN));
}
END_TEST

START_TEST(any_failing_io_with_a_truncated_journal_leaves_a_true_outcome)
{
    run_ways("truncate", GUARD_SQLITE_MARKER_ROW, WAYS(FAULT_DONE));
}
END_TEST

START_TEST(any_failing_io_with_a_kept_journal_leaves_a_true_outcome)
{
    run_ways("persist", GUARD_SQLITE_MARKER_ROW, WAYS(FAULT_DONE));
}
END_TEST

START_TEST(a_full_disk_is_a_clear_error_and_rolls_back)
{
    database_new(NULL);
    fault_vfs_install();
    static const char *const journals[] = {"wal", "delete", "truncate", "persist"};
    for (int i = 0; i < 4; i++) {
        for (int on = 0; on <= 1; on++) {
            campaign c = {journals[i], FAULT_WRITE, FAULT_FULL, on, GUARD_SQLITE_MARKER_OFF};
            run_campaign(&c);
        }
    }
    ck_assert_uint_eq(told[GUARD_IN_DOUBT], 0);
    ck_assert_uint_gt(told[GUARD_ROLLED_BACK], 0);
}
END_TEST

START_TEST(a_failing_lock_leaves_a_true_outcome)
{
    database_new(NULL);
    fault_vfs_install();
    campaign wal = {"wal", FAULT_LOCK | FAULT_SHM, FAULT_ERROR, false, GUARD_SQLITE_MARKER_ROW};
    campaign locks = {"delete", FAULT_LOCK, FAULT_ERROR, false, GUARD_SQLITE_MARKER_ROW};
    run_campaign(&wal);
    run_campaign(&locks);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ SIGKILL */

static void run_child(const char *path, unsigned long n, int to_parent)
{
    const guard_sqlite_options open_options = {.vfs = "fault"};
    GUARD_AUTO(s);
    guard_sqlite *db = guard_sqlite_open(s, path, &open_options);
    guard_sqlite_exec(db, "PRAGMA cache_size = 4");
    fault_vfs_arm(FAULT_WRITE | FAULT_SYNC | FAULT_TRUNCATE | FAULT_DELETE, FAULT_KILL, n, false);
    char outcome = (char)guard_sqlite_transact(db, insert_rows, NULL, NULL, NULL);
    fault_vfs_disarm();
    if (write(to_parent, &outcome, 1) != 1) {
        _exit(3);
    }
}

/* Returns whether the child was killed. */
static bool kill_once(const campaign *c, unsigned long n)
{
    int ends[2];
    int status;
    char outcome = GUARD_OPEN;
    const char *path = new_file(c, n);
    ck_assert_int_eq(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        run_child(path, n, ends[1]);
        _exit(0);
    }
    close(ends[1]);
    ssize_t got = read(ends[0], &outcome, 1);
    close(ends[0]);
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFSIGNALED(status) || WEXITSTATUS(status) == 0, "the child failed: %d", status);
    bool kept = is_kept(path);
    ck_assert_msg(got != 1 || (outcome == GUARD_COMMITTED && kept), "told %d, %s", outcome, kept ? "kept" : "not kept");
    ck_assert_msg(got == 1 || WIFSIGNALED(status), "neither told nor killed");
    remove_file(path);
    return WIFSIGNALED(status);
}

static void kill_at_every_write(const char *journal)
{
    campaign c = {.journal = journal};
    unsigned long n = 1;
    database_new(NULL);
    fault_vfs_install();
    while (kill_once(&c, n)) {
        n++;
    }
    ck_assert_uint_gt(n, 4);
}

START_TEST(sigkill_at_any_write_in_wal_mode_is_all_or_nothing)
{
    kill_at_every_write("wal");
}
END_TEST

START_TEST(sigkill_at_any_write_with_a_journal_is_all_or_nothing)
{
    kill_at_every_write("delete");
}
END_TEST

/* ------------------------------------------------------------------------------------------------- doubt */

/* The number of the write or sync that ends a transaction of insert_rows in a new WAL: the sync of its commit frame. */
static unsigned long count_to_commit(const guard_sqlite_tx_options *options)
{
    const guard_sqlite_options open_options = {.vfs = "fault"};
    campaign c = {.journal = "wal"};
    const char *path = new_file(&c, 9);
    GUARD_AUTO(s);
    guard_sqlite *db = guard_sqlite_open(s, path, &open_options);
    fault_vfs_arm(FAULT_SYNC | FAULT_WRITE, FAULT_ERROR, 0, false);
    ck_assert_int_eq(guard_sqlite_transact(db, insert_rows, NULL, options, NULL), GUARD_COMMITTED);
    fault_vfs_disarm();
    return fault_vfs_count();
}

/* A transaction of insert_rows in a new WAL whose COMMIT fails at that place and later. */
static guard_sqlite *commit_in_doubt(guard_scope *s, const guard_sqlite_tx_options *options, const char **path,
                                     guard_result *result)
{
    const guard_sqlite_options open_options = {.vfs = "fault"};
    campaign c = {.journal = "wal"};
    database_new(NULL);
    fault_vfs_install();
    unsigned long last = count_to_commit(options);
    *path = new_file(&c, 1);
    guard_sqlite *db = guard_sqlite_open(s, *path, &open_options);
    fault_vfs_arm(FAULT_SYNC | FAULT_WRITE, FAULT_ERROR, last, true);
    ck_assert_int_eq(guard_sqlite_transact(db, insert_rows, NULL, options, result), GUARD_IN_DOUBT);
    fault_vfs_disarm();
    return db;
}

START_TEST(an_io_error_at_a_wal_commit_is_in_doubt_and_resolving_decides_for_good)
{
    const guard_sqlite_tx_options options = {.marker = GUARD_SQLITE_MARKER_ROW, .resolve_ms = 5};
    guard_result result;
    const char *path;
    GUARD_AUTO(s);
    guard_sqlite *db = commit_in_doubt(s, &options, &path, &result);
    ck_assert_int_eq(result.error.domain, GUARD_SQLITE);
    ck_assert_int_eq(result.error.code, SQLITE_IOERR_FSYNC);
    ck_assert_msg(result.token[0] != '\0', "no token");
    /* Now a crash would revive the rows, though no connection sees them. */
    const char *before = database_crash_copy(path, 1);
    ck_assert(is_kept(before));
    ck_assert(!is_kept(path));
    /* After the crash it is found committed, on another connection and for good. */
    guard_sqlite *after = guard_sqlite_open(s, before, NULL);
    ck_assert_int_eq(guard_sqlite_resolve(after, result.token, NULL, NULL), GUARD_COMMITTED);
    ck_assert_int_eq(guard_sqlite_resolve(after, result.token, NULL, NULL), GUARD_COMMITTED);
    /* Without one it is rolled back, and then a crash does not revive it any more. */
    ck_assert_int_eq(guard_sqlite_resolve(db, result.token, NULL, NULL), GUARD_ROLLED_BACK);
    const char *copy = database_crash_copy(path, 2);
    ck_assert(!is_kept(copy));
    ck_assert_int_eq(guard_sqlite_resolve(db, result.token, NULL, NULL), GUARD_ROLLED_BACK);
}
END_TEST

START_TEST(a_probe_of_the_callers_resolves_as_well)
{
    const guard_sqlite_tx_options options = {
        .marker = GUARD_SQLITE_PROBE, .probe = "SELECT 1 FROM t WHERE id = ?1", .probe_key = "3", .resolve_ms = 5};
    guard_result result;
    const char *path;
    GUARD_AUTO(s);
    guard_sqlite *db = commit_in_doubt(s, &options, &path, &result);
    ck_assert(is_kept(database_crash_copy(path, 1)));
    ck_assert_int_eq(guard_sqlite_resolve(db, result.token, &options, NULL), GUARD_ROLLED_BACK);
    ck_assert(!is_kept(database_crash_copy(path, 2)));
    /* An error that passes is resolved before the call returns. */
    fault_vfs_arm(FAULT_SYNC, FAULT_ERROR, 1, false);
    ck_assert_int_eq(guard_sqlite_transact(db, insert_rows, NULL, &options, &result), GUARD_ROLLED_BACK);
    fault_vfs_disarm();
    ck_assert(result.notes & GUARD_NOTE_RESOLVED);
    ck_assert(!is_kept(database_crash_copy(path, 3)));
}
END_TEST

static void count_hook(void *count)
{
    ++*(int *)count;
}

START_TEST(a_transaction_in_doubt_runs_no_hook_until_it_is_settled)
{
    const guard_sqlite_options open_options = {.vfs = "fault"};
    const guard_sqlite_tx_options options = {.marker = GUARD_SQLITE_MARKER_ROW, .resolve_ms = 5};
    campaign c = {.journal = "wal"};
    int committed = 0;
    int rolled_back = 0;
    guard_error error;
    database_new(NULL);
    fault_vfs_install();
    const char *path = new_file(&c, 1);
    GUARD_AUTO(s);
    guard_sqlite *db = guard_sqlite_open(s, path, &open_options);
    guard_tx *tx = guard_sqlite_begin(s, db, &options);
    guard_tx_on_commit(tx, count_hook, &committed);
    guard_tx_on_rollback(tx, count_hook, &rolled_back);
    guard_sqlite_exec(db, "DELETE FROM t");
    fault_vfs_arm(FAULT_SYNC, FAULT_ERROR, 1, true);
    GUARD_TRY(&error)
    {
        guard_tx_commit(tx);
        ck_abort_msg("it committed");
    }
    fault_vfs_disarm();
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_IN_DOUBT);
    ck_assert_int_eq(committed + rolled_back, 0);
    guard_tx_settle(tx, guard_sqlite_resolve(db, guard_tx_result(tx)->token, NULL, NULL));
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
    ck_assert_int_eq(committed, 0);
    ck_assert_int_eq(rolled_back, 1);
}
END_TEST

START_TEST(a_lost_commit_over_two_wal_files_stays_in_doubt)
{
    const guard_sqlite_options open_options = {.vfs = "fault"};
    const guard_sqlite_tx_options options = {.marker = GUARD_SQLITE_MARKER_ROW, .resolve_ms = 5};
    campaign c = {.journal = "wal"};
    guard_result result;
    char sql[200];
    database_new(NULL);
    fault_vfs_install();
    const char *path = new_file(&c, 1);
    const char *other = new_file(&c, 2);
    GUARD_AUTO(s);
    guard_sqlite *db = guard_sqlite_open(s, path, &open_options);
    snprintf(sql, sizeof(sql), "ATTACH '%s' AS other", other);
    guard_sqlite_exec(db, sql);
    fault_vfs_arm(FAULT_SYNC, FAULT_ERROR, 1, false);
    ck_assert_int_eq(guard_sqlite_transact(db, insert_rows, NULL, &options, &result), GUARD_IN_DOUBT);
    fault_vfs_disarm();
    ck_assert(result.notes & GUARD_NOTE_MANY_FILES);
    ck_assert_str_eq(result.token, "");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        any_failing_io_in_wal_mode_leaves_a_true_outcome,
        any_failing_io_in_wal_mode_with_a_marker_is_resolved_for_good,
        any_failing_io_with_a_deleted_journal_leaves_a_true_outcome,
        any_failing_io_with_a_deleted_journal_and_a_marker_is_resolved_for_good,
        any_failing_io_with_a_truncated_journal_leaves_a_true_outcome,
        any_failing_io_with_a_kept_journal_leaves_a_true_outcome,
        a_full_disk_is_a_clear_error_and_rolls_back,
        a_failing_lock_leaves_a_true_outcome,
        sigkill_at_any_write_in_wal_mode_is_all_or_nothing,
        sigkill_at_any_write_with_a_journal_is_all_or_nothing,
        an_io_error_at_a_wal_commit_is_in_doubt_and_resolving_decides_for_good,
        a_probe_of_the_callers_resolves_as_well,
        a_transaction_in_doubt_runs_no_hook_until_it_is_settled,
        a_lost_commit_over_two_wal_files_stays_in_doubt,
    };
    return suite_run("sqlite_fault", tests, sizeof tests / sizeof *tests);
}
