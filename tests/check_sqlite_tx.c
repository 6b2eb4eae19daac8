/* SPDX-License-Identifier: MIT */
/*
 * check_sqlite_tx.c: transactions where SQLite has ways of its own: waiting, snapshots, pending statements, deferred constraints,
 * automatic rollbacks (behaviours 40 to 44).
 */
#include <pthread.h>
#include <sched.h>
#include <string.h>

#include <guard/guard.h>
#include <guard/guard_sqlite.h>
#include <guard/tx.h>

#include "database.h"
#include "suite.h"

#define TABLE "CREATE TABLE t(id INTEGER PRIMARY KEY)"
#define COUNT "SELECT count(*) FROM t"

static const char *path;
static guard_sqlite *db;
static sqlite3 *other; /* somebody else's connection */

static void open_database(guard_scope *s, const guard_sqlite_options *options)
{
    path = database_new(TABLE);
    db = guard_sqlite_open(s, path, options);
    other = database_raw(path);
}

static void run_sql(void *sql)
{
    guard_sqlite_exec(db, sql);
}

static void commit_it(void *tx)
{
    guard_tx_commit(tx);
}

static void begin_with(void *options)
{
    GUARD_AUTO(s);
    guard_sqlite_begin(s, db, options);
}

static void insert_one(guard_tx *tx, void *arg)
{
    (void)tx;
    (void)arg;
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1)");
}

/* ---------------------------------------------------------------------- 40 */

START_TEST(busy_at_begin_waits_to_the_deadline_and_says_what_to_do)
{
    GUARD_AUTO(s);
    guard_sqlite_tx_options options = {.busy_ms = 60};
    open_database(s, NULL);
    database_exec(other, "BEGIN IMMEDIATE");
    int64_t started = now_ms();
    const guard_error *error = expect_panic(begin_with, &options, GUARD_SQLITE, SQLITE_BUSY);
    ck_assert_int_ge(now_ms() - started, 60);
    ck_assert_str_eq(error->message, "database is locked");
    ck_assert_str_eq(error->hint, "another connection held it for 60 ms: raise busy_ms, or end it");
    ck_assert_str_eq(error->file, "check_sqlite_tx.c");
    database_exec(other, "COMMIT");
    ck_assert_int_eq(guard_sqlite_transact(db, insert_one, NULL, &options, NULL), GUARD_COMMITTED);
    sqlite3_close(other);
}
END_TEST

START_TEST(busy_at_begin_on_an_adopted_handle_waits_as_long)
{
    GUARD_AUTO(s);
    open_database(s, NULL);
    sqlite3 *raw = database_raw(path);
    sqlite3_busy_timeout(raw, 0);
    const guard_sqlite_options options = {.busy_ms = 60};
    db = guard_sqlite_adopt(s, raw, &options);
    database_exec(other, "BEGIN IMMEDIATE");
    int64_t started = now_ms();
    expect_panic(begin_with, NULL, GUARD_SQLITE, SQLITE_BUSY);
    ck_assert_int_ge(now_ms() - started, 60);
    started = now_ms();
    expect_panic(run_sql, (void *)"INSERT INTO t VALUES (1)", GUARD_SQLITE, SQLITE_BUSY);
    ck_assert_int_ge(now_ms() - started, 60);
    guard_sqlite_close(db);
    sqlite3_close(raw);
    sqlite3_close(other);
}
END_TEST

START_TEST(an_upgrade_from_reading_to_writing_against_a_writer_fails_at_once)
{
    GUARD_AUTO(s);
    const guard_sqlite_tx_options deferred = {.mode = GUARD_SQLITE_DEFERRED};
    open_database(s, &(guard_sqlite_options){.busy_ms = 60000});
    guard_tx *tx = guard_sqlite_begin(s, db, &deferred);
    ck_assert_int_eq(guard_sqlite_query_int64(db, COUNT, -1), 0);
    database_exec(other, "BEGIN IMMEDIATE; INSERT INTO t VALUES (9)");
    /* In rollback-journal mode the other one waits for us to stop reading: its COMMIT takes PENDING. */
    sqlite3_busy_timeout(other, 0);
    ck_assert_int_eq(sqlite3_exec(other, "COMMIT", NULL, NULL, NULL), SQLITE_BUSY);
    int64_t started = now_ms();
    expect_panic(run_sql, (void *)"INSERT INTO t VALUES (1)", GUARD_SQLITE, SQLITE_BUSY);
    ck_assert_int_lt(now_ms() - started, 20000);
    guard_tx_rollback(tx);
    database_exec(other, "COMMIT");
    sqlite3_close(other);
}
END_TEST

typedef struct snapshot {
    int writes; /* how often the other one writes in between */
    int runs;
    int nested;
} snapshot;

static void write_row(guard_tx *tx, void *arg)
{
    (void)tx;
    (void)arg;
    guard_sqlite_exec(db, "INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t");
}

static void read_then_write(guard_tx *tx, void *arg)
{
    snapshot *test = arg;
    GUARD_AUTO(s);
    guard_sqlite_stmt *count = guard_sqlite_prepare(s, db, COUNT);
    guard_sqlite_step(count);
    if (test->runs++ < test->writes) {
        database_exec(other, "INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t");
    }
    guard_sqlite_reset(count);
    if (test->nested) {
        guard_result result;
        guard_tx_nested(tx, write_row, NULL, &result);
    } else {
        write_row(tx, NULL);
    }
}

static const guard_sqlite_options wal = {.journal = GUARD_SQLITE_WAL};

START_TEST(a_stale_snapshot_reruns_the_whole_body)
{
    GUARD_AUTO(s);
    const guard_sqlite_tx_options deferred = {.mode = GUARD_SQLITE_DEFERRED};
    snapshot test = {.writes = 2};
    guard_result result;
    open_database(s, &wal);
    ck_assert_int_eq(guard_sqlite_transact(db, read_then_write, &test, &deferred, &result), GUARD_COMMITTED);
    ck_assert_uint_eq(result.attempts, 3);
    ck_assert_int_eq(test.runs, 3);
    ck_assert(!result.has_error);
    ck_assert_int_eq(database_number(path, COUNT), 3);
    sqlite3_close(other);
}
END_TEST

START_TEST(a_stale_snapshot_in_a_nested_part_reruns_from_the_outermost)
{
    GUARD_AUTO(s);
    const guard_sqlite_tx_options deferred = {.mode = GUARD_SQLITE_DEFERRED};
    snapshot test = {.writes = 1, .nested = 1};
    guard_result result;
    open_database(s, &wal);
    ck_assert_int_eq(guard_sqlite_transact(db, read_then_write, &test, &deferred, &result), GUARD_COMMITTED);
    ck_assert_uint_eq(result.attempts, 2);
    ck_assert_int_eq(database_number(path, COUNT), 2);
    sqlite3_close(other);
}
END_TEST

START_TEST(reruns_are_counted_and_end)
{
    GUARD_AUTO(s);
    const guard_sqlite_tx_options deferred = {.mode = GUARD_SQLITE_DEFERRED, .tx = {.attempts = 2}};
    snapshot test = {.writes = 100};
    guard_result result;
    open_database(s, &wal);
    ck_assert_int_eq(guard_sqlite_transact(db, read_then_write, &test, &deferred, &result), GUARD_ROLLED_BACK);
    ck_assert_uint_eq(result.attempts, 2);
    ck_assert_int_eq(result.error.code, SQLITE_BUSY_SNAPSHOT);
    ck_assert_int_eq(database_number(path, COUNT), 2);
    sqlite3_close(other);
}
END_TEST

static void fail_once(guard_tx *tx, void *runs)
{
    (void)tx;
    ++*(int *)runs;
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1), (1)");
}

START_TEST(no_other_error_reruns_the_body)
{
    GUARD_AUTO(s);
    int runs = 0;
    open_database(s, NULL);
    ck_assert_int_eq(guard_sqlite_transact(db, fail_once, &runs, NULL, NULL), GUARD_ROLLED_BACK);
    ck_assert_int_eq(runs, 1);
    sqlite3_close(other);
}
END_TEST

START_TEST(a_locked_table_in_a_shared_cache_is_waited_for)
{
    GUARD_AUTO(s);
    const guard_sqlite_options shared = {.flags = GUARD_SQLITE_URI, .busy_ms = 60};
    const char *uri = "file:guard?mode=memory&cache=shared";
    guard_sqlite *writer = guard_sqlite_open(s, uri, &shared);
    guard_sqlite_exec(writer, TABLE);
    db = guard_sqlite_open(s, uri, &shared);
    guard_tx *tx = guard_sqlite_begin(s, writer, NULL);
    guard_sqlite_exec(writer, "INSERT INTO t VALUES (1)");
    int64_t started = now_ms();
    const guard_error *error = expect_panic(begin_with, NULL, GUARD_SQLITE, SQLITE_LOCKED_SHAREDCACHE);
    ck_assert_int_ge(now_ms() - started, 60);
    ck_assert_msg(error->hint[0] != '\0', "no hint");
    guard_tx_commit(tx);
    ck_assert_int_eq(guard_sqlite_query_int64(db, COUNT, -1), 1);
}
END_TEST

/* ---------------------------------------------------------------------- 41 */

START_TEST(busy_at_commit_keeps_the_transaction_until_the_deadline_then_rolls_back)
{
    GUARD_AUTO(s);
    const guard_sqlite_tx_options options = {.commit_ms = 60};
    sqlite3_stmt *reader;
    guard_result result;
    open_database(s, NULL);
    database_exec(other, "INSERT INTO t VALUES (8), (9)");
    sqlite3_prepare_v2(other, "SELECT id FROM t", -1, &reader, NULL);
    ck_assert_int_eq(sqlite3_step(reader), SQLITE_ROW);
    int64_t started = now_ms();
    ck_assert_int_eq(guard_sqlite_transact(db, insert_one, NULL, &options, &result), GUARD_ROLLED_BACK);
    ck_assert_int_ge(now_ms() - started, 60);
    ck_assert_int_eq(result.error.code, SQLITE_BUSY);
    ck_assert_str_eq(result.error.hint, "other connections used it for 60 ms: raise commit_ms");
    ck_assert(sqlite3_get_autocommit(guard_sqlite_raw(db)));
    sqlite3_finalize(reader);
    ck_assert_int_eq(database_number(path, COUNT), 2);
    sqlite3_close(other);
}
END_TEST

static sqlite3 *third;

/* Ends its reading as soon as the writer's COMMIT waits: then PENDING keeps new readers out. */
static void *end_reading(void *reader)
{
    while (sqlite3_exec(third, COUNT, NULL, NULL, NULL) != SQLITE_BUSY) {
        sched_yield();
    }
    sqlite3_finalize(reader);
    return NULL;
}

START_TEST(a_commit_that_waits_for_a_reader_commits_when_that_is_done)
{
    GUARD_AUTO(s);
    sqlite3_stmt *reader;
    guard_result result;
    pthread_t thread;
    open_database(s, NULL);
    database_exec(other, "INSERT INTO t VALUES (8), (9)");
    sqlite3_prepare_v2(other, "SELECT id FROM t", -1, &reader, NULL);
    ck_assert_int_eq(sqlite3_step(reader), SQLITE_ROW);
    third = database_raw(path);
    sqlite3_busy_timeout(third, 0);
    ck_assert_int_eq(pthread_create(&thread, NULL, end_reading, reader), 0);
    guard_outcome outcome = guard_sqlite_transact(db, insert_one, NULL, NULL, &result);
    ck_assert_msg(outcome == GUARD_COMMITTED, "%s: %s", guard_outcome_name(outcome), result.error.message);
    pthread_join(thread, NULL);
    ck_assert_int_eq(database_number(path, COUNT), 3);
    sqlite3_close(third);
    sqlite3_close(other);
}
END_TEST

/* ---------------------------------------------------------------------- 42 */

START_TEST(an_insert_returning_that_is_pending_at_commit_is_reset_and_kept)
{
    GUARD_AUTO(s);
    open_database(s, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_sqlite_stmt *stmt = guard_sqlite_prepare(s, db, "INSERT INTO t VALUES (1), (2), (3) RETURNING id");
    ck_assert(guard_sqlite_step(stmt));
    int64_t started = now_ms();
    guard_tx_commit(tx);
    ck_assert_int_lt(now_ms() - started, 20000);
    ck_assert_int_eq(database_number(path, COUNT), 3);
    sqlite3_close(other);
}
END_TEST

START_TEST(an_insert_returning_that_is_pending_at_a_release_is_reset_and_kept)
{
    GUARD_AUTO(s);
    open_database(s, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_tx *nested = guard_tx_begin_nested(s, tx);
    guard_sqlite_stmt *stmt = guard_sqlite_prepare(s, db, "INSERT INTO t VALUES (1), (2), (3) RETURNING id");
    ck_assert(guard_sqlite_step(stmt));
    guard_tx_commit(nested);
    guard_tx_commit(tx);
    ck_assert_int_eq(database_number(path, COUNT), 3);
    sqlite3_close(other);
}
END_TEST

START_TEST(a_select_that_is_pending_at_commit_is_noted)
{
    GUARD_AUTO(s);
    open_database(s, &wal);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1), (2)");
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_sqlite_stmt *stmt = guard_sqlite_prepare(s, db, "SELECT id FROM t");
    ck_assert(guard_sqlite_step(stmt));
    guard_sqlite_exec(db, "INSERT INTO t VALUES (3)");
    guard_tx_commit(tx);
    ck_assert_uint_eq(guard_tx_result(tx)->notes, GUARD_NOTE_READER_LEFT_OPEN);
    ck_assert_int_eq(database_number(path, COUNT), 3);
    guard_sqlite_reset(stmt);
    tx = guard_sqlite_begin(s, db, NULL);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (4)");
    guard_tx_commit(tx);
    ck_assert_uint_eq(guard_tx_result(tx)->notes, 0);
    sqlite3_close(other);
}
END_TEST

START_TEST(a_raw_select_that_is_pending_at_commit_is_noted)
{
    GUARD_AUTO(s);
    sqlite3_stmt *stmt;
    open_database(s, &wal);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1), (2)");
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    ck_assert_int_eq(sqlite3_prepare_v2(guard_sqlite_raw(db), "SELECT id FROM t", -1, &stmt, NULL), SQLITE_OK);
    ck_assert_int_eq(sqlite3_step(stmt), SQLITE_ROW);
    guard_tx_commit(tx);
    ck_assert_uint_eq(guard_tx_result(tx)->notes, GUARD_NOTE_READER_LEFT_OPEN);
    sqlite3_finalize(stmt);
    sqlite3_close(other);
}
END_TEST

START_TEST(a_statement_stepped_by_its_raw_handle_at_commit_is_noted)
{
    GUARD_AUTO(s);
    open_database(s, &wal);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1), (2)");
    guard_sqlite_stmt *stmt = guard_sqlite_prepare(s, db, "SELECT id FROM t");
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    ck_assert_int_eq(sqlite3_step(guard_sqlite_stmt_raw(stmt)), SQLITE_ROW);
    guard_tx_commit(tx);
    ck_assert_uint_eq(guard_tx_result(tx)->notes, GUARD_NOTE_READER_LEFT_OPEN);
    sqlite3_close(other);
}
END_TEST

START_TEST(a_blob_that_is_open_at_commit_is_noted)
{
    GUARD_AUTO(s);
    open_database(s, &wal);
    guard_sqlite_exec(db, "CREATE TABLE picture (data BLOB); INSERT INTO picture VALUES (zeroblob(10))");
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_sqlite_blob_open(s, db, "picture", "data", 1, 0);
    guard_tx_commit(tx);
    ck_assert_uint_eq(guard_tx_result(tx)->notes, GUARD_NOTE_READER_LEFT_OPEN);
    sqlite3_close(other);
}
END_TEST

static unsigned misused;

static void count_misuse(const guard_error *error)
{
    (void)error;
    misused++;
}

START_TEST(beginning_on_a_closed_scope_begins_nothing)
{
    GUARD_AUTO(s);
    guard_scope closed;
    open_database(s, NULL);
    guard_scope_open(&closed);
    guard_scope_close(&closed);
    guard_misuse_handler(count_misuse);
    guard_tx *tx = guard_sqlite_begin(&closed, db, NULL);
    guard_misuse_handler(NULL);
    ck_assert_ptr_null(tx);
    ck_assert_uint_gt(misused, 0);
    ck_assert(sqlite3_get_autocommit(guard_sqlite_raw(db)));
    guard_tx_commit(guard_sqlite_begin(s, db, NULL));
    sqlite3_close(other);
}
END_TEST

/* ---------------------------------------------------------------------- 43 */

static void open_with_deferred_key(guard_scope *s)
{
    open_database(s, NULL);
    guard_sqlite_exec(db, "CREATE TABLE child(parent INTEGER REFERENCES t(id) DEFERRABLE INITIALLY DEFERRED)");
}

START_TEST(a_deferred_constraint_at_commit_leaves_the_transaction_open_and_mendable)
{
    GUARD_AUTO(s);
    open_with_deferred_key(s);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_sqlite_exec(db, "INSERT INTO child VALUES (5)");
    expect_panic(commit_it, tx, GUARD_SQLITE, SQLITE_CONSTRAINT_FOREIGNKEY);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_OPEN);
    ck_assert(!sqlite3_get_autocommit(guard_sqlite_raw(db)));
    guard_sqlite_exec(db, "INSERT INTO t VALUES (5)");
    guard_tx_commit(tx);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_COMMITTED);
    ck_assert(!guard_tx_result(tx)->has_error);
    ck_assert_int_eq(database_number(path, "SELECT parent FROM child"), 5);
    sqlite3_close(other);
}
END_TEST

static void insert_orphan(guard_tx *tx, void *arg)
{
    (void)tx;
    (void)arg;
    guard_sqlite_exec(db, "INSERT INTO child VALUES (5)");
}

START_TEST(a_deferred_constraint_that_is_not_mended_rolls_back)
{
    GUARD_AUTO(s);
    guard_result result;
    open_with_deferred_key(s);
    ck_assert_int_eq(guard_sqlite_transact(db, insert_orphan, NULL, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.code, SQLITE_CONSTRAINT_FOREIGNKEY);
    ck_assert_int_eq(database_number(path, "SELECT count(*) FROM child"), 0);
    ck_assert_int_eq(guard_sqlite_transact(db, insert_one, NULL, NULL, NULL), GUARD_COMMITTED);
    sqlite3_close(other);
}
END_TEST

static int refuse_commit(void *arg)
{
    (void)arg;
    return 1;
}

START_TEST(a_commit_hook_that_refuses_is_a_rollback)
{
    GUARD_AUTO(s);
    guard_result result;
    open_database(s, NULL);
    sqlite3_commit_hook(guard_sqlite_raw(db), refuse_commit, NULL);
    ck_assert_int_eq(guard_sqlite_transact(db, insert_one, NULL, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.code, SQLITE_CONSTRAINT_COMMITHOOK);
    ck_assert_int_eq(database_number(path, COUNT), 0);
    sqlite3_close(other);
}
END_TEST

/* ---------------------------------------------------------------------- 44 */

static int trace_statement(unsigned type, void *count, void *stmt, void *sql)
{
    (void)type;
    (void)stmt;
    if (strncmp(sql, "ROLLBACK", 8) == 0) {
        ++*(int *)count;
    }
    return 0;
}

/* A statement that makes SQLite roll back: the guard knows it, refuses what follows, and sends no ROLLBACK. */
static void check_automatic_rollback(guard_scope *s, const char *sql, int code)
{
    int rollbacks = 0;
    {
        GUARD_AUTO(inner);
        guard_tx *tx = guard_sqlite_begin(inner, db, NULL);
        guard_tx *nested = guard_tx_begin_nested(inner, tx);
        sqlite3_trace_v2(guard_sqlite_raw(db), SQLITE_TRACE_STMT, trace_statement, &rollbacks);
        guard_sqlite_exec(db, "INSERT INTO t VALUES (2)");
        expect_panic(run_sql, (void *)sql, GUARD_SQLITE, code);
        ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
        ck_assert_int_eq(guard_tx_outcome(nested), GUARD_ROLLED_BACK);
        const guard_error *error = expect_panic(run_sql, (void *)"INSERT INTO t VALUES (3)", GUARD_TX, GUARD_TX_OVER);
        ck_assert_int_eq(error->causes[0].code, code);
        expect_panic(commit_it, nested, GUARD_SQLITE, code);
        expect_panic(commit_it, tx, GUARD_SQLITE, code);
        ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
    }
    sqlite3_trace_v2(guard_sqlite_raw(db), 0, NULL, NULL);
    ck_assert_int_eq(rollbacks, 0);
    ck_assert_int_eq(database_number(path, "SELECT count(*) FROM t WHERE id > 1"), 0);
    (void)s;
}

START_TEST(insert_or_rollback_is_rolled_back_once_and_nothing_autocommits)
{
    GUARD_AUTO(s);
    open_database(s, NULL);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1)");
    check_automatic_rollback(s, "INSERT OR ROLLBACK INTO t VALUES (1)", SQLITE_CONSTRAINT_PRIMARYKEY);
    ck_assert_int_eq(guard_sqlite_transact(db, insert_one, NULL, NULL, NULL), GUARD_ROLLED_BACK);
    sqlite3_close(other);
}
END_TEST

static int interrupt_later(void *raw)
{
    sqlite3_interrupt(raw);
    return 0;
}

START_TEST(an_interrupted_write_is_rolled_back_once_and_nothing_autocommits)
{
    GUARD_AUTO(s);
    open_database(s, NULL);
    sqlite3_progress_handler(guard_sqlite_raw(db), 5000, interrupt_later, guard_sqlite_raw(db));
    check_automatic_rollback(
        s, "INSERT INTO t WITH RECURSIVE c(x) AS (SELECT 10 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c",
        SQLITE_INTERRUPT);
    sqlite3_close(other);
}
END_TEST

START_TEST(a_full_database_is_rolled_back_or_still_open_as_it_says)
{
    GUARD_AUTO(s);
    guard_result result;
    open_database(s, NULL);
    guard_sqlite_exec(db, "CREATE TABLE big(data BLOB); PRAGMA max_page_count = 30");
    {
        GUARD_AUTO(inner);
        guard_tx *tx = guard_sqlite_begin(inner, db, NULL);
        guard_sqlite_exec(db, "INSERT INTO t VALUES (1)");
        const guard_error *error = expect_panic(run_sql, (void *)"INSERT INTO big VALUES (zeroblob(1000000))",
                                                GUARD_SQLITE, SQLITE_FULL);
        ck_assert_str_eq(error->message, "database or disk is full");
        ck_assert_str_eq(error->hint, "free space on the disk, then try again");
        ck_assert_int_eq(guard_tx_outcome(tx) == GUARD_OPEN, !sqlite3_get_autocommit(guard_sqlite_raw(db)));
    }
    ck_assert_int_eq(database_number(path, COUNT), 0);
    ck_assert_int_eq(guard_sqlite_transact(db, insert_one, NULL, NULL, &result), GUARD_COMMITTED);
    sqlite3_close(other);
}
END_TEST

START_TEST(sql_that_ends_a_guarded_transaction_is_misuse)
{
    GUARD_AUTO(s);
    open_database(s, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1)");
    static const char *const ends[] = {"COMMIT", "end transaction", " -- x\n /* y */ Rollback",
                                       "ROLLBACK TRANSACTION;"};
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
        expect_panic(run_sql, (void *)ends[i], GUARD_MISUSE, GUARD_MISUSE_STATE);
    }
    guard_sqlite_exec(db, "SAVEPOINT mine; INSERT INTO t VALUES (2); ROLLBACK TO mine; ROLLBACK TRANSACTION TO "
                          "SAVEPOINT mine; RELEASE mine");
    guard_tx_commit(tx);
    ck_assert_int_eq(database_number(path, COUNT), 1);
    /* Without a guard it is the program's own business. */
    guard_sqlite_exec(db, "BEGIN; INSERT INTO t VALUES (5); COMMIT");
    ck_assert_int_eq(database_number(path, COUNT), 2);
    sqlite3_close(other);
}
END_TEST

START_TEST(a_commit_behind_the_guards_back_is_not_taken_for_a_rollback)
{
    GUARD_AUTO(s);
    open_database(s, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1)");
    database_exec(guard_sqlite_raw(db), "COMMIT");
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_IN_DOUBT);
    ck_assert(guard_tx_result(tx)->notes & GUARD_NOTE_ENDED_ELSEWHERE);
    expect_panic(run_sql, (void *)"INSERT INTO t VALUES (3)", GUARD_TX, GUARD_TX_OVER);
    expect_panic(commit_it, tx, GUARD_TX, GUARD_TX_IN_DOUBT);
    ck_assert_int_eq(database_number(path, COUNT), 1);
    sqlite3_close(other);
}
END_TEST

START_TEST(a_rollback_behind_the_guards_back_is_known_on_an_opened_connection)
{
    GUARD_AUTO(s);
    open_database(s, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1)");
    database_exec(guard_sqlite_raw(db), "ROLLBACK");
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
    expect_panic(commit_it, tx, GUARD_TX, GUARD_TX_ROLLED_BACK);
    sqlite3_close(other);
}
END_TEST

static void *write_in_thread(void *arg)
{
    (void)arg;
    expect_panic(run_sql, (void *)"INSERT INTO t VALUES (7)", GUARD_MISUSE, GUARD_MISUSE_THREAD);
    return NULL;
}

START_TEST(a_statement_of_another_thread_in_a_transaction_is_misuse)
{
    GUARD_AUTO(s);
    pthread_t thread;
    open_database(s, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    ck_assert_int_eq(pthread_create(&thread, NULL, write_in_thread, NULL), 0);
    pthread_join(thread, NULL);
    guard_tx_commit(tx);
    ck_assert_int_eq(database_number(path, COUNT), 0);
    sqlite3_close(other);
}
END_TEST

START_TEST(a_marker_without_its_table_is_told_at_begin)
{
    GUARD_AUTO(s);
    guard_sqlite_tx_options options = {.marker = GUARD_SQLITE_MARKER_ROW};
    open_database(s, NULL);
    const guard_error *error = expect_panic(begin_with, &options, GUARD_SQLITE, SQLITE_ERROR);
    ck_assert_str_eq(error->message, "no such table: main.guard_marker");
    ck_assert_str_eq(error->hint, "call guard_sqlite_marker_install once for the database");
    ck_assert(sqlite3_get_autocommit(guard_sqlite_raw(db)));
    guard_sqlite_marker_install(db);
    guard_sqlite_marker_install(db);
    ck_assert_int_eq(guard_sqlite_transact(db, insert_one, NULL, &options, NULL), GUARD_COMMITTED);
    ck_assert_int_eq(guard_sqlite_transact(db, fail_once, &(int){0}, &options, NULL), GUARD_ROLLED_BACK);
    ck_assert_int_eq(database_number(path, "SELECT count(*) FROM guard_marker"), 1);
    sqlite3_close(other);
}
END_TEST

START_TEST(a_read_only_database_can_be_read_in_a_transaction)
{
    GUARD_AUTO(s);
    const guard_sqlite_tx_options deferred = {.mode = GUARD_SQLITE_DEFERRED};
    const guard_sqlite_options read_only = {.flags = GUARD_SQLITE_READ_ONLY};
    guard_result result;
    open_database(s, NULL);
    db = guard_sqlite_open(s, path, &read_only);
    guard_tx *tx = guard_sqlite_begin(s, db, &deferred);
    ck_assert_int_eq(guard_sqlite_query_int64(db, COUNT, -1), 0);
    guard_tx_commit(tx);
    ck_assert_int_eq(guard_sqlite_transact(db, insert_one, NULL, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.code, SQLITE_READONLY);
    sqlite3_close(other);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ contention */

#define CLERKS 4
#define TRANSFERS 40

typedef struct transfer {
    guard_sqlite *bank;
    int from;
    int to;
} transfer;

/* Reads first: in a DEFERRED transaction its snapshot is often stale when it writes. */
static void move_money(guard_tx *tx, void *arg)
{
    (void)tx;
    transfer *order = arg;
    GUARD_AUTO(s);
    guard_sqlite_stmt *read = guard_sqlite_prepare(s, order->bank, "SELECT money FROM account WHERE id = ?1");
    guard_sqlite_bind_int64(read, 1, order->from);
    ck_assert(guard_sqlite_step(read));
    int64_t money = guard_sqlite_column_int64(read, 0);
    guard_sqlite_reset(read);
    if (money < 10) {
        guard_panic(10, "account %d is empty", order->from);
    }
    /* The amount is computed from what was read: a lost update would change the sum. */
    guard_sqlite_stmt *write = guard_sqlite_prepare(s, order->bank, "UPDATE account SET money = ?2 WHERE id = ?1");
    guard_sqlite_bind_int64(write, 1, order->from);
    guard_sqlite_bind_int64(write, 2, money - 10);
    guard_sqlite_run(write);
    write = guard_sqlite_prepare(s, order->bank, "UPDATE account SET money = money + 10 WHERE id = ?1");
    guard_sqlite_bind_int64(write, 1, order->to);
    guard_sqlite_run(write);
    guard_sqlite_exec(order->bank, "INSERT INTO journal VALUES (NULL)");
}

typedef struct clerk {
    pthread_t thread;
    int mode;
    int number;
    long committed;
    long others;
    guard_error error;
} clerk;

static void run_clerk(void *arg)
{
    clerk *c = arg;
    const guard_sqlite_options open_options = {.synchronous = GUARD_SQLITE_SYNC_OFF};
    const guard_sqlite_tx_options options = {.mode = c->mode, .tx = {.attempts = -1, .retry_ms = -1}};
    GUARD_AUTO(s);
    transfer order = {.bank = guard_sqlite_open(s, path, &open_options)};
    for (int i = 0; i < TRANSFERS; i++) {
        guard_result result;
        order.from = (c->number + i) % 5;
        order.to = (c->number + 3 * i + 1) % 5;
        guard_outcome outcome = guard_sqlite_transact(order.bank, move_money, &order, &options, &result);
        if (outcome == GUARD_COMMITTED) {
            c->committed++;
        } else if (outcome != GUARD_ROLLED_BACK ||
                   (result.error.code != 10 && (result.error.code & 0xff) != SQLITE_BUSY)) {
            guard_panic_error(&result.error);
        } else {
            c->others++;
        }
    }
}

static void *start_clerk(void *arg)
{
    clerk *c = arg;
    if (guard_run(run_clerk, c, &c->error) == 0) {
        c->error.code = 0;
    }
    return NULL;
}

static void check_bank(int mode)
{
    clerk clerks[CLERKS];
    long committed = 0;
    path = database_new(
        "CREATE TABLE account(id INTEGER PRIMARY KEY, money INTEGER); CREATE TABLE journal(id INTEGER PRIMARY KEY);"
        "INSERT INTO account VALUES (0, 100), (1, 100), (2, 100), (3, 100), (4, 100); PRAGMA journal_mode = WAL");
    for (int i = 0; i < CLERKS; i++) {
        clerks[i] = (clerk){.mode = mode, .number = i};
        ck_assert_int_eq(pthread_create(&clerks[i].thread, NULL, start_clerk, &clerks[i]), 0);
    }
    for (int i = 0; i < CLERKS; i++) {
        pthread_join(clerks[i].thread, NULL);
        ck_assert_msg(clerks[i].error.code == 0, "%s", clerks[i].error.message);
        ck_assert_int_eq(clerks[i].committed + clerks[i].others, TRANSFERS);
        committed += clerks[i].committed;
    }
    ck_assert_int_eq(database_number(path, "SELECT sum(money) FROM account"), 500);
    ck_assert_int_eq(database_number(path, "SELECT count(*) FROM journal"), committed);
    ck_assert_int_gt(committed, 0);
}

START_TEST(threads_that_transfer_at_once_lose_no_money_and_are_told_the_truth)
{
    check_bank(GUARD_SQLITE_IMMEDIATE);
}
END_TEST

START_TEST(stale_snapshots_among_threads_are_rerun_until_they_commit)
{
    check_bank(GUARD_SQLITE_DEFERRED);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        busy_at_begin_waits_to_the_deadline_and_says_what_to_do,
        busy_at_begin_on_an_adopted_handle_waits_as_long,
        an_upgrade_from_reading_to_writing_against_a_writer_fails_at_once,
        a_stale_snapshot_reruns_the_whole_body,
        a_stale_snapshot_in_a_nested_part_reruns_from_the_outermost,
        reruns_are_counted_and_end,
        no_other_error_reruns_the_body,
        a_locked_table_in_a_shared_cache_is_waited_for,
        busy_at_commit_keeps_the_transaction_until_the_deadline_then_rolls_back,
        a_commit_that_waits_for_a_reader_commits_when_that_is_done,
        an_insert_returning_that_is_pending_at_commit_is_reset_and_kept,
        an_insert_returning_that_is_pending_at_a_release_is_reset_and_kept,
        a_select_that_is_pending_at_commit_is_noted,
        a_raw_select_that_is_pending_at_commit_is_noted,
        a_statement_stepped_by_its_raw_handle_at_commit_is_noted,
        a_blob_that_is_open_at_commit_is_noted,
        beginning_on_a_closed_scope_begins_nothing,
        a_deferred_constraint_at_commit_leaves_the_transaction_open_and_mendable,
        a_deferred_constraint_that_is_not_mended_rolls_back,
        a_commit_hook_that_refuses_is_a_rollback,
        insert_or_rollback_is_rolled_back_once_and_nothing_autocommits,
        an_interrupted_write_is_rolled_back_once_and_nothing_autocommits,
        a_full_database_is_rolled_back_or_still_open_as_it_says,
        sql_that_ends_a_guarded_transaction_is_misuse,
        a_commit_behind_the_guards_back_is_not_taken_for_a_rollback,
        a_rollback_behind_the_guards_back_is_known_on_an_opened_connection,
        a_statement_of_another_thread_in_a_transaction_is_misuse,
        a_marker_without_its_table_is_told_at_begin,
        a_read_only_database_can_be_read_in_a_transaction,
        threads_that_transfer_at_once_lose_no_money_and_are_told_the_truth,
        stale_snapshots_among_threads_are_rerun_until_they_commit,
    };
    return suite_run("sqlite_tx", tests, sizeof tests / sizeof *tests);
}
