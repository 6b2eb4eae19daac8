/* SPDX-License-Identifier: MIT */
/*
 * check_sqlite_tx.c: transactions where SQLite has ways of its own: pending statements, deferred constraints, automatic rollbacks
 * (behaviours 42 to 44).
 */
#include <pthread.h>
#include <string.h>

#include <guard/guard.h>
#include <guard/guard_sqlite.h>
#include <guard/tx.h>

#include "calls.h"
#include "sqlite_table.h"
#include "suite.h"

static const guard_sqlite_options wal = {.journal = GUARD_SQLITE_WAL};

/* ---------------------------------------------------------------------- 42 */

START_TEST(an_insert_returning_that_is_pending_at_commit_is_reset_and_kept)
{
    GUARD_AUTO(s);
    table_open_beside_other(s, NULL);
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
    table_open_beside_other(s, NULL);
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

static void nest(void *tx)
{
    GUARD_AUTO(s);
    guard_tx_begin_nested(s, tx);
}

/* SQLite's code for it is SQLITE_BUSY too, as where another connection is in the way. */
START_TEST(a_statement_that_is_in_the_way_of_a_savepoint_is_not_taken_for_another_connection)
{
    GUARD_AUTO(s);
    table_open_beside_other(s, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_sqlite_stmt *stmt = guard_sqlite_prepare(s, db, "INSERT INTO t VALUES (1), (2) RETURNING id");
    ck_assert(guard_sqlite_step(stmt));
    const guard_error *error = expect_panic(nest, tx, GUARD_SQLITE, SQLITE_BUSY);
    ck_assert_str_eq(error->message, "cannot open savepoint - SQL statements in progress");
    ck_assert_str_eq(error->hint, "a statement of this connection is in its middle: run it to its end, or reset it");
    guard_sqlite_run(stmt);
    nest(tx);
    guard_tx_commit(tx);
    ck_assert_int_eq(database_number(path, COUNT), 2);
    sqlite3_close(other);
}
END_TEST

START_TEST(a_select_that_is_pending_at_commit_is_noted)
{
    GUARD_AUTO(s);
    table_open_beside_other(s, &wal);
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
    table_open_beside_other(s, &wal);
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
    table_open_beside_other(s, &wal);
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
    table_open_beside_other(s, &wal);
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
    table_open_beside_other(s, NULL);
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
    table_open_beside_other(s, NULL);
    guard_sqlite_exec(db, "CREATE TABLE child(parent INTEGER REFERENCES t(id) DEFERRABLE INITIALLY DEFERRED)");
}

START_TEST(a_deferred_constraint_at_commit_leaves_the_transaction_open_and_mendable)
{
    GUARD_AUTO(s);
    open_with_deferred_key(s);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_sqlite_exec(db, "INSERT INTO child VALUES (5)");
    expect_panic(call_commit, tx, GUARD_SQLITE, SQLITE_CONSTRAINT_FOREIGNKEY);
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
    ck_assert_int_eq(guard_sqlite_transact(db, table_insert_one, NULL, NULL, NULL), GUARD_COMMITTED);
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
    table_open_beside_other(s, NULL);
    sqlite3_commit_hook(guard_sqlite_raw(db), refuse_commit, NULL);
    ck_assert_int_eq(guard_sqlite_transact(db, table_insert_one, NULL, NULL, &result), GUARD_ROLLED_BACK);
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
        expect_panic(table_exec, (void *)sql, GUARD_SQLITE, code);
        ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
        ck_assert_int_eq(guard_tx_outcome(nested), GUARD_ROLLED_BACK);
        const guard_error *error = expect_panic(table_exec, (void *)"INSERT INTO t VALUES (3)", GUARD_TX,
                                                GUARD_TX_OVER);
        ck_assert_int_eq(error->causes[0].code, code);
        expect_panic(call_commit, nested, GUARD_SQLITE, code);
        expect_panic(call_commit, tx, GUARD_SQLITE, code);
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
    table_open_beside_other(s, NULL);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1)");
    check_automatic_rollback(s, "INSERT OR ROLLBACK INTO t VALUES (1)", SQLITE_CONSTRAINT_PRIMARYKEY);
    ck_assert_int_eq(guard_sqlite_transact(db, table_insert_one, NULL, NULL, NULL), GUARD_ROLLED_BACK);
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
    table_open_beside_other(s, NULL);
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
    table_open_beside_other(s, NULL);
    guard_sqlite_exec(db, "CREATE TABLE big(data BLOB); PRAGMA max_page_count = 30");
    {
        GUARD_AUTO(inner);
        guard_tx *tx = guard_sqlite_begin(inner, db, NULL);
        guard_sqlite_exec(db, "INSERT INTO t VALUES (1)");
        const guard_error *error = expect_panic(table_exec, (void *)"INSERT INTO big VALUES (zeroblob(1000000))",
                                                GUARD_SQLITE, SQLITE_FULL);
        ck_assert_str_eq(error->message, "database or disk is full");
        ck_assert_str_eq(error->hint, "free space on the disk, then try again");
        ck_assert_int_eq(guard_tx_outcome(tx) == GUARD_OPEN, !sqlite3_get_autocommit(guard_sqlite_raw(db)));
    }
    ck_assert_int_eq(database_number(path, COUNT), 0);
    ck_assert_int_eq(guard_sqlite_transact(db, table_insert_one, NULL, NULL, &result), GUARD_COMMITTED);
    sqlite3_close(other);
}
END_TEST

START_TEST(sql_that_ends_a_guarded_transaction_is_misuse)
{
    GUARD_AUTO(s);
    table_open_beside_other(s, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1)");
    static const char *const ends[] = {"COMMIT", "end transaction", " -- x\n /* y */ Rollback",
                                       "ROLLBACK TRANSACTION;"};
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
        expect_panic(table_exec, (void *)ends[i], GUARD_MISUSE, GUARD_MISUSE_STATE);
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
    table_open_beside_other(s, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1)");
    database_exec(guard_sqlite_raw(db), "COMMIT");
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_IN_DOUBT);
    ck_assert(guard_tx_result(tx)->notes & GUARD_NOTE_ENDED_ELSEWHERE);
    expect_panic(table_exec, (void *)"INSERT INTO t VALUES (3)", GUARD_TX, GUARD_TX_OVER);
    expect_panic(call_commit, tx, GUARD_TX, GUARD_TX_IN_DOUBT);
    ck_assert_int_eq(database_number(path, COUNT), 1);
    sqlite3_close(other);
}
END_TEST

START_TEST(a_rollback_behind_the_guards_back_is_known_on_an_opened_connection)
{
    GUARD_AUTO(s);
    table_open_beside_other(s, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1)");
    database_exec(guard_sqlite_raw(db), "ROLLBACK");
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
    expect_panic(call_commit, tx, GUARD_TX, GUARD_TX_ROLLED_BACK);
    sqlite3_close(other);
}
END_TEST

static void *write_in_thread(void *arg)
{
    (void)arg;
    expect_panic(table_exec, (void *)"INSERT INTO t VALUES (7)", GUARD_MISUSE, GUARD_MISUSE_THREAD);
    return NULL;
}

START_TEST(a_statement_of_another_thread_in_a_transaction_is_misuse)
{
    GUARD_AUTO(s);
    pthread_t thread;
    table_open_beside_other(s, NULL);
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
    table_open_beside_other(s, NULL);
    const guard_error *error = expect_panic(table_begin, &options, GUARD_SQLITE, SQLITE_ERROR);
    ck_assert_str_eq(error->message, "no such table: main.guard_marker");
    ck_assert_str_eq(error->hint, "call guard_sqlite_marker_install once for the database");
    ck_assert(sqlite3_get_autocommit(guard_sqlite_raw(db)));
    guard_sqlite_marker_install(db);
    guard_sqlite_marker_install(db);
    ck_assert_int_eq(guard_sqlite_transact(db, table_insert_one, NULL, &options, NULL), GUARD_COMMITTED);
    ck_assert_int_eq(guard_sqlite_transact(db, table_insert_twice, &(int){0}, &options, NULL), GUARD_ROLLED_BACK);
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
    table_open_beside_other(s, NULL);
    db = guard_sqlite_open(s, path, &read_only);
    guard_tx *tx = guard_sqlite_begin(s, db, &deferred);
    ck_assert_int_eq(guard_sqlite_query_int64(db, COUNT, -1), 0);
    guard_tx_commit(tx);
    ck_assert_int_eq(guard_sqlite_transact(db, table_insert_one, NULL, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.code, SQLITE_READONLY);
    sqlite3_close(other);
}
END_TEST

/* ------------------------------------------------------------- writes outside of a transaction, committed at their end */

#define CHILD                                       \
    "CREATE TABLE parent(id INTEGER PRIMARY KEY);"  \
    "CREATE TABLE t(id INTEGER PRIMARY KEY, parent" \
    " INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED)"
#define ORPHAN "INSERT INTO t VALUES (1, 99) RETURNING id"

static guard_sqlite_stmt *step_orphan(guard_scope *s)
{
    guard_sqlite_stmt *stmt = guard_sqlite_prepare(s, db, ORPHAN);
    ck_assert(guard_sqlite_step(stmt));
    return stmt;
}

static void query_orphan(void *arg)
{
    (void)arg;
    guard_sqlite_query_int64(db, ORPHAN, -1);
}

static void reset_orphan(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_sqlite_reset(step_orphan(s));
    ck_abort();
}

static void bind_orphan(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_sqlite_stmt *stmt = guard_sqlite_prepare(s, db, "INSERT INTO t VALUES (?1, 99) RETURNING id");
    guard_sqlite_bind_int64(stmt, 1, 1);
    ck_assert(guard_sqlite_step(stmt));
    guard_sqlite_bind_int64(stmt, 1, 2);
    ck_abort();
}

static void close_orphan(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_sqlite_stmt_close(step_orphan(s));
    ck_abort();
}

static void leave_orphan(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    step_orphan(s);
}

static void close_over_orphan(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    step_orphan(s);
    guard_sqlite_close(db);
    ck_abort();
}

/* c3ref/reset.html: a step may give a row of RETURNING, and the end of the statement then fails all the same. */
START_TEST(a_write_that_fails_at_its_end_only_is_told_by_what_ends_it)
{
    static guard_fn *const ends[] = {query_orphan, reset_orphan, bind_orphan,
                                     close_orphan, leave_orphan, close_over_orphan};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        GUARD_AUTO(s);
        table_open(s, CHILD, NULL);
        const guard_error *error = expect_panic(ends[i], NULL, GUARD_SQLITE, SQLITE_CONSTRAINT_FOREIGNKEY);
        ck_assert_msg(strstr(error->detail, "INSERT INTO t") != NULL, "%zu: %s", i, error->detail);
        ck_assert_int_eq(database_number(path, COUNT), 0);
    }
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        an_insert_returning_that_is_pending_at_commit_is_reset_and_kept,
        an_insert_returning_that_is_pending_at_a_release_is_reset_and_kept,
        a_statement_that_is_in_the_way_of_a_savepoint_is_not_taken_for_another_connection,
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
        a_write_that_fails_at_its_end_only_is_told_by_what_ends_it,
    };
    return suite_run("sqlite_tx", tests, sizeof tests / sizeof *tests);
}
