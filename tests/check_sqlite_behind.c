/* SPDX-License-Identifier: MIT */
/*
 * check_sqlite_behind.c: what SQL behind a guard's back, and what the program hangs into SQLite, does to a transaction: the outcome
 * that is told is never a wrong one (behaviours 24, 27, 44).
 */
#include <stdio.h>

#include <guard/guard.h>
#include <guard/guard_sqlite.h>
#include <guard/tx.h>

#include "calls.h"
#include "fault_vfs.h"
#include "sqlite_table.h"
#include "suite.h"

static void open_database(guard_scope *scope, const guard_sqlite_options *options)
{
    path = database_new("CREATE TABLE t(id INTEGER PRIMARY KEY, data BLOB)");
    if (scope != NULL) {
        db = guard_sqlite_open(scope, path, options);
    }
}

/* Begins, inserts row 1 through the guard, then runs `sql` behind its back. */
static guard_tx *begin_and_go_behind(guard_scope *scope, const char *sql)
{
    guard_tx *tx = guard_sqlite_begin(scope, db, NULL);
    guard_sqlite_exec(db, "INSERT INTO t(id) VALUES (1)");
    database_exec(guard_sqlite_raw(db), sql);
    return tx;
}

START_TEST(a_transaction_that_was_replaced_by_another_is_never_told_as_committed)
{
    GUARD_AUTO(s);
    open_database(s, NULL);
    guard_tx *tx = begin_and_go_behind(s, "ROLLBACK; BEGIN; INSERT INTO t(id) VALUES (2)");
    expect_panic(table_exec, (void *)"INSERT INTO t(id) VALUES (3)", GUARD_TX, GUARD_TX_OVER);
    expect_panic(call_commit, tx, GUARD_TX, GUARD_TX_ROLLED_BACK);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
    /* The other one is the program's own, to be ended as it likes. */
    ck_assert_int_eq(sqlite3_get_autocommit(guard_sqlite_raw(db)), 0);
    database_exec(guard_sqlite_raw(db), "COMMIT");
    ck_assert_int_eq(database_number(path, "SELECT id FROM t"), 2);
    ck_assert_int_eq(database_number(path, COUNT), 1);
}
END_TEST

START_TEST(a_transaction_that_sqlite_took_back_and_another_replaced_is_rolled_back)
{
    open_database(NULL, NULL);
    for (int adopted = 0; adopted <= 1; adopted++) {
        GUARD_AUTO(s);
        sqlite3 *raw = database_raw(path);
        db = adopted ? guard_sqlite_adopt(s, raw, NULL) : guard_sqlite_open(s, path, NULL);
        guard_tx *tx = guard_sqlite_begin(s, db, NULL);
        guard_sqlite_exec(db, "INSERT INTO t(id) VALUES (1)");
        expect_panic(table_exec, (void *)"INSERT OR ROLLBACK INTO t(id) VALUES (1)", GUARD_SQLITE,
                     SQLITE_CONSTRAINT_PRIMARYKEY);
        database_exec(guard_sqlite_raw(db), "BEGIN");
        expect_panic(table_exec, (void *)"INSERT INTO t(id) VALUES (4)", GUARD_TX, GUARD_TX_OVER);
        expect_panic(call_commit, tx, GUARD_SQLITE, SQLITE_CONSTRAINT_PRIMARYKEY);
        ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
        database_exec(guard_sqlite_raw(db), "ROLLBACK");
        guard_sqlite_close(db);
        sqlite3_close(raw);
    }
    ck_assert_int_eq(database_number(path, COUNT), 0);
}
END_TEST

/* A body: a row through the guard, then SQL behind its back, then a panic or not. */
typedef struct behind {
    const char *sql;
    bool fails;
} behind;

static void go_behind(guard_tx *tx, void *arg)
{
    const behind *b = arg;
    (void)tx;
    guard_sqlite_exec(db, "INSERT INTO t(id) VALUES (1)");
    database_exec(guard_sqlite_raw(db), b->sql);
    if (b->fails) {
        guard_panic(7, "and then it failed");
    }
}

START_TEST(a_commit_behind_the_back_is_never_told_as_a_rollback)
{
    static const char *const ways[] = {"COMMIT; BEGIN; INSERT INTO t(id) VALUES (2)",
                                       "COMMIT; BEGIN; INSERT INTO t(id) VALUES (2); ROLLBACK",
                                       "COMMIT; BEGIN; INSERT INTO t(id) VALUES (2); ROLLBACK; BEGIN"};
    for (size_t i = 0; i < 2 * sizeof(ways) / sizeof(ways[0]); i++) {
        GUARD_AUTO(s);
        behind b = {ways[i / 2], i % 2 != 0};
        guard_result result;
        open_database(s, NULL);
        guard_outcome outcome = guard_sqlite_transact(db, go_behind, &b, NULL, &result);
        if (i == 0) {
            ck_assert_int_eq(outcome, GUARD_COMMITTED); /* both halves */
            ck_assert_int_eq(database_number(path, COUNT), 2);
            continue;
        }
        ck_assert_msg(outcome == GUARD_IN_DOUBT, "%s, %d: %s", b.sql, b.fails, guard_outcome_name(outcome));
        ck_assert(result.notes & GUARD_NOTE_ENDED_ELSEWHERE);
        ck_assert_int_eq(database_number(path, COUNT), 1);
        database_exec(guard_sqlite_raw(db), sqlite3_get_autocommit(guard_sqlite_raw(db)) ? "" : "ROLLBACK");
    }
}
END_TEST

static void exec_rows(guard_tx *tx, void *sql)
{
    (void)tx;
    guard_sqlite_exec(db, "INSERT INTO t(id) VALUES (1)");
    guard_sqlite_exec_rows(db, sql, NULL, NULL);
}

START_TEST(a_commit_in_front_of_a_statement_that_fails_is_never_told_as_a_rollback)
{
    static const char *const ways[] = {"COMMIT; INSERT INTO t(id) VALUES (1)", "COMMIT; no such"};
    for (size_t i = 0; i < 4; i++) {
        GUARD_AUTO(s);
        open_database(s, NULL);
        sqlite3 *raw = database_raw(path);
        if (i < 2) {
            db = guard_sqlite_adopt(s, raw, NULL);
        }
        ck_assert_int_eq(guard_sqlite_transact(db, exec_rows, (void *)ways[i % 2], NULL, NULL), GUARD_IN_DOUBT);
        ck_assert_int_eq(database_number(path, COUNT), 1);
        guard_sqlite_close(db);
        sqlite3_close(raw);
    }
}
END_TEST

START_TEST(a_failure_of_one_statement_that_takes_all_back_is_known_by_every_call)
{
    for (int adopted = 0; adopted <= 1; adopted++) {
        GUARD_AUTO(s);
        open_database(s, NULL);
        sqlite3 *raw = database_raw(path);
        if (adopted) {
            db = guard_sqlite_adopt(s, raw, NULL);
        }
        ck_assert_int_eq(
            guard_sqlite_transact(db, exec_rows, (void *)"INSERT OR ROLLBACK INTO t(id) VALUES (1)", NULL, NULL),
            GUARD_ROLLED_BACK);
        guard_sqlite_close(db);
        sqlite3_close(raw);
    }
}
END_TEST

START_TEST(a_byte_order_mark_does_not_hide_a_commit)
{
    GUARD_AUTO(s);
    open_database(s, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    expect_panic(table_exec, (void *)"\xEF\xBB\xBF COMMIT", GUARD_MISUSE, GUARD_MISUSE_STATE);
    guard_tx_rollback(tx);
}
END_TEST

/* ---------------------------------------------------------------------------------------- what hangs in SQLite */

static void insert_one(guard_tx *tx, void *arg)
{
    (void)tx;
    (void)arg;
    guard_sqlite_exec(db, "INSERT INTO t(id) VALUES (1)");
}

static int fail_after_commit(void *code, sqlite3 *raw, const char *schema, int pages)
{
    (void)raw;
    (void)schema;
    (void)pages;
    return *(int *)code;
}

START_TEST(a_wal_hook_that_fails_behind_a_commit_does_not_make_it_a_rollback)
{
    static int codes[] = {SQLITE_FULL, SQLITE_CONSTRAINT, SQLITE_INTERRUPT, SQLITE_LOCKED, SQLITE_BUSY, SQLITE_ERROR};
    for (size_t i = 0; i < 2 * sizeof(codes) / sizeof(codes[0]); i++) {
        GUARD_AUTO(s);
        const guard_sqlite_options wal = {.journal = GUARD_SQLITE_WAL};
        const guard_sqlite_tx_options options = {.commit_ms = 10};
        open_database(s, &wal);
        sqlite3 *raw = database_raw(path);
        if (i % 2 != 0) {
            db = guard_sqlite_adopt(s, raw, NULL);
        }
        sqlite3_wal_hook(guard_sqlite_raw(db), fail_after_commit, &codes[i / 2]);
        guard_outcome outcome = guard_sqlite_transact(db, insert_one, NULL, &options, NULL);
        ck_assert_msg(outcome == GUARD_IN_DOUBT, "%d, %s: %s", codes[i / 2], i % 2 != 0 ? "adopted" : "opened",
                      guard_outcome_name(outcome));
        ck_assert_int_eq(database_number(path, COUNT), 1);
        guard_sqlite_close(db);
        sqlite3_close(raw);
    }
}
END_TEST

static void commit_inside(sqlite3_context *context, int count, sqlite3_value **values, void *tx)
{
    (void)count;
    (void)values;
    guard_tx_commit(tx);
    sqlite3_result_int(context, 1);
}

static void insert_by_function(void *arg)
{
    (void)arg;
    guard_sqlite_exec(db, "INSERT INTO t(id) SELECT id + 10 + f() FROM t");
}

static void insert_raw(void *arg)
{
    (void)arg;
    ck_assert_int_ne(
        sqlite3_exec(guard_sqlite_raw(db), "INSERT INTO t(id) SELECT id + 10 + f() FROM t", NULL, NULL, NULL),
        SQLITE_OK);
}

START_TEST(a_commit_in_the_middle_of_a_statement_that_writes_fails_and_pulls_nothing_away)
{
    for (int raw = 0; raw <= 1; raw++) {
        GUARD_AUTO(s);
        guard_error error;
        open_database(s, NULL);
        guard_tx *tx = guard_sqlite_begin(s, db, NULL);
        guard_sqlite_function(db, "f", 0, SQLITE_UTF8, commit_inside, tx);
        guard_sqlite_exec(db, "INSERT INTO t(id) VALUES (1), (2), (3)");
        int code = guard_run(raw ? insert_raw : insert_by_function, NULL, &error);
        ck_assert_int_eq(code != 0, !raw);
        ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
        ck_assert_int_eq(database_number(path, COUNT), 0);
    }
}
END_TEST

/* FTS5 keeps statements of its own for as long as the connection is open. */
START_TEST(a_connection_with_virtual_tables_commits_and_closes)
{
    for (int left = 0; left <= 2; left++) {
        GUARD_AUTO(s);
        guard_error error;
        sqlite3_stmt *stmt = NULL;
        open_database(s, NULL);
        guard_sqlite_exec(db, "CREATE VIRTUAL TABLE words USING fts5(word)");
        guard_tx *tx = guard_sqlite_begin(s, db, NULL);
        guard_sqlite_exec(db, "INSERT INTO words VALUES ('one'), ('two'); DELETE FROM words WHERE words MATCH 'one'");
        guard_tx_commit(tx);
        ck_assert_int_eq(guard_sqlite_query_int64(db, "SELECT count(*) FROM words WHERE words MATCH 'two'", 0), 1);
        const char *sql = left == 1 ? "SELECT * FROM words" : "SELECT * FROM pragma_table_info('t')";
        if (left > 0) {
            ck_assert_int_eq(sqlite3_prepare_v2(guard_sqlite_raw(db), sql, -1, &stmt, NULL), SQLITE_OK);
            ck_assert_int_eq(sqlite3_step(stmt), SQLITE_ROW);
        }
        int code = guard_run((guard_fn *)guard_sqlite_close, db, &error);
        ck_assert_int_eq(code, left > 0 ? SQLITE_BUSY : 0);
        sqlite3_finalize(stmt);
        sqlite3 *raw = database_raw(path);
        database_exec(raw, "BEGIN EXCLUSIVE; COMMIT");
        sqlite3_close(raw);
    }
}
END_TEST

START_TEST(a_statement_left_in_a_table_valued_function_is_finalised_at_the_close)
{
    GUARD_AUTO(s);
    sqlite3_stmt *stmt = NULL;
    open_database(s, NULL);
    ck_assert_int_eq(sqlite3_prepare_v2(guard_sqlite_raw(db), "SELECT * FROM pragma_table_info('t')", -1, &stmt, NULL),
                     SQLITE_OK);
    ck_assert_int_eq(sqlite3_step(stmt), SQLITE_ROW);
    guard_sqlite_close(db);
}
END_TEST

static void write_blob(void *blob)
{
    guard_sqlite_blob_write(blob, "y", 1, 1);
}

START_TEST(a_commit_closes_a_writable_blob_and_keeps_what_it_wrote)
{
    GUARD_AUTO(s);
    open_database(s, NULL);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1, 'abc')");
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_sqlite_blob *blob = guard_sqlite_blob_open(s, db, "t", "data", 1, 1);
    guard_sqlite_blob_write(blob, "x", 1, 0);
    guard_tx_commit(tx);
    expect_panic(write_blob, blob, GUARD_MISUSE, GUARD_MISUSE_STATE);
    ck_assert_int_eq(database_number(path, "SELECT data = 'xbc' FROM t"), 1);
}
END_TEST

START_TEST(a_statement_that_a_commit_has_reset_is_at_its_end_and_does_not_write_again)
{
    GUARD_AUTO(s);
    int rows = 0;
    open_database(s, NULL);
    guard_sqlite_stmt *insert = guard_sqlite_prepare(s, db, "INSERT INTO t(data) VALUES (?1), (?1) RETURNING id");
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    for (; guard_sqlite_step(insert); rows++) {
        guard_tx_commit(tx);
    }
    ck_assert_int_eq(rows, 1);
    ck_assert_int_eq(database_number(path, COUNT), 2);
    /* And then it is as any other. */
    guard_sqlite_run(insert);
    ck_assert_int_eq(database_number(path, COUNT), 4);
}
END_TEST

START_TEST(a_raw_writable_blob_keeps_a_transaction_from_committing)
{
    GUARD_AUTO(s);
    const guard_sqlite_tx_options options = {.commit_ms = 10};
    sqlite3_blob *blob = NULL;
    open_database(s, NULL);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1, 'abc')");
    guard_tx *tx = guard_sqlite_begin(s, db, &options);
    ck_assert_int_eq(sqlite3_blob_open(guard_sqlite_raw(db), "main", "t", "data", 1, 1, &blob), SQLITE_OK);
    ck_assert_int_eq(sqlite3_blob_write(blob, "x", 1, 0), SQLITE_OK);
    expect_panic(call_commit, tx, GUARD_SQLITE, SQLITE_BUSY);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
    ck_assert_int_ne(sqlite3_blob_write(blob, "y", 1, 1), SQLITE_OK);
    sqlite3_blob_close(blob);
    ck_assert_int_eq(database_number(path, "SELECT data = 'abc' FROM t"), 1);
}
END_TEST

/* ------------------------------------------------------------------------------------------- several files */

static void insert_in_both(guard_tx *tx, void *arg)
{
    (void)tx;
    (void)arg;
    guard_sqlite_exec(db, "INSERT INTO t(id) VALUES (1); INSERT INTO other.u VALUES (1)");
}

/*
 * A WAL file and one with a journal are committed one after the other. Whatever fails, a told outcome holds in both, and where they
 * differ nothing is told.
 */
START_TEST(a_wal_file_and_one_with_a_journal_are_not_taken_for_one)
{
    const guard_sqlite_options options = {.vfs = "fault", .journal = GUARD_SQLITE_WAL};
    const guard_sqlite_tx_options marked = {.marker = GUARD_SQLITE_MARKER_ROW, .resolve_ms = 5};
    bool hit = true;
    int differed = 0;
    char sql[300];
    fault_vfs_install();
    for (unsigned long n = 1; hit; n++) {
        GUARD_AUTO(s);
        open_database(s, &options);
        const char *beside = database_beside("other.db");
        snprintf(sql, sizeof(sql), "ATTACH '%s' AS other; CREATE TABLE other.u(id)", beside);
        guard_sqlite_exec(db, sql);
        guard_sqlite_marker_install(db);
        fault_vfs_arm(FAULT_WRITE | FAULT_SYNC | FAULT_DELETE, n % 2 == 0 ? FAULT_ERROR : FAULT_DONE, (n + 1) / 2,
                      false);
        guard_outcome outcome = guard_sqlite_transact(db, insert_in_both, NULL, &marked, NULL);
        hit = fault_vfs_was_hit();
        fault_vfs_disarm();
        guard_sqlite_close(db);
        long long here = database_number(path, COUNT);
        long long there = database_number(beside, "SELECT count(*) FROM u");
        differed += here != there;
        ck_assert_msg(outcome == GUARD_IN_DOUBT || (here == there && here == (outcome == GUARD_COMMITTED)),
                      "n %lu (%s): told %s, found %lld and %lld", n, fault_vfs_hit_name(), guard_outcome_name(outcome),
                      here, there);
    }
    ck_assert_int_gt(differed, 0);
}
END_TEST

/* ------------------------------------------------------------------------------------------ journal modes */

static void insert_much(guard_tx *tx, void *arg)
{
    (void)tx;
    (void)arg;
    guard_sqlite_exec(db, "UPDATE t SET data = zeroblob(20000)");
    guard_panic(7, "this is taken back");
}

START_TEST(without_a_journal_what_was_written_is_not_told_as_taken_back)
{
    GUARD_AUTO(s);
    guard_result result;
    open_database(s, NULL);
    guard_sqlite_exec(db, "INSERT INTO t WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 50) "
                          "SELECT x, zeroblob(50) FROM c; PRAGMA cache_size = 4; PRAGMA journal_mode = OFF");
    ck_assert_int_eq(guard_sqlite_transact(db, insert_much, NULL, NULL, &result), GUARD_IN_DOUBT);
    ck_assert_int_eq(result.error.code, 7);
    ck_assert(result.notes & GUARD_NOTE_POISONED);
}
END_TEST

START_TEST(every_journal_mode_takes_back_what_was_spilled)
{
    static const char *const modes[] = {"WAL", "DELETE", "TRUNCATE", "PERSIST", "MEMORY"};
    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        GUARD_AUTO(s);
        char sql[64];
        open_database(s, NULL);
        guard_sqlite_exec(db, "INSERT INTO t WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c "
                              "WHERE x < 50) SELECT x, zeroblob(50) FROM c; PRAGMA cache_size = 4");
        snprintf(sql, sizeof(sql), "PRAGMA journal_mode = %s", modes[i]);
        guard_sqlite_exec(db, sql);
        ck_assert_int_eq(guard_sqlite_transact(db, insert_much, NULL, NULL, NULL), GUARD_ROLLED_BACK);
        ck_assert_int_eq(database_number(path, "SELECT sum(length(data)) FROM t"), 2500);
        ck_assert_int_eq(guard_sqlite_transact(db, insert_one, NULL, NULL, NULL),
                         GUARD_ROLLED_BACK); /* id 1 is there */
    }
}
END_TEST

/* --------------------------------------------------------------------------------------------- interrupts */

static int stop_at(void *left)
{
    return --*(long *)left == 0;
}

static void do_some_work(guard_tx *tx, void *arg)
{
    (void)arg;
    guard_sqlite_exec(db, "INSERT INTO t(id) VALUES (1)");
    GUARD_AUTO(s);
    guard_tx *part = guard_tx_begin_nested(s, tx);
    guard_sqlite_exec(db, "INSERT INTO t WITH RECURSIVE c(x) AS (SELECT 2 UNION ALL SELECT x + 1 FROM c WHERE x < 4) "
                          "SELECT x, zeroblob(3000) FROM c");
    guard_tx_commit(part);
    guard_sqlite_exec(db, "UPDATE t SET data = 'x'; DELETE FROM t WHERE id = 4");
}

/* SQLite asks a progress handler also behind the end of a statement, of BEGIN and COMMIT too (vdbe.c, vdbe_return). */
START_TEST(a_stop_at_any_instruction_leaves_a_true_outcome_and_no_transaction)
{
    unsigned long told[6] = {0};
    for (int adopted = 0; adopted <= 1; adopted++) {
        long at = 1;
        for (long left = 0; left <= 0; at++) {
            GUARD_AUTO(s);
            open_database(s, &(guard_sqlite_options){.synchronous = GUARD_SQLITE_SYNC_OFF});
            sqlite3 *raw = database_raw(path);
            if (adopted) {
                db = guard_sqlite_adopt(s, raw, NULL);
            }
            left = at;
            sqlite3_progress_handler(guard_sqlite_raw(db), 1, stop_at, &left);
            guard_outcome outcome = guard_sqlite_transact(db, do_some_work, NULL, NULL, NULL);
            sqlite3_progress_handler(guard_sqlite_raw(db), 0, NULL, NULL);
            long long rows = database_number(path, COUNT);
            told[outcome]++;
            ck_assert_msg(rows == 3 || rows == 0, "%lld rows", rows);
            ck_assert_msg(outcome == GUARD_IN_DOUBT || (outcome == GUARD_COMMITTED) == (rows == 3),
                          "instruction %ld: %s, %lld rows", at, guard_outcome_name(outcome), rows);
            ck_assert_msg(sqlite3_get_autocommit(guard_sqlite_raw(db)), "instruction %ld: still open", at);
            guard_sqlite_close(db);
            sqlite3_close(raw);
        }
        ck_assert_int_gt(at, 100);
    }
    ck_assert_uint_gt(told[GUARD_ROLLED_BACK], 100);
    ck_assert_uint_ge(told[GUARD_COMMITTED], 2);
    ck_assert_uint_le(told[GUARD_IN_DOUBT], 8);
}
END_TEST

static void interrupt_a_reader(guard_tx *tx, void *arg)
{
    guard_sqlite_stmt *reader = arg;
    (void)tx;
    guard_sqlite_exec(db, "INSERT INTO t(id) VALUES (1), (2)");
    ck_assert_int_eq(guard_sqlite_step(reader), 1);
    guard_sqlite_interrupt(db);
    guard_panic(7, "and then it failed");
}

START_TEST(an_interrupt_that_meets_the_rollback_does_not_leave_the_transaction_open)
{
    GUARD_AUTO(s);
    guard_result result;
    open_database(s, NULL);
    guard_sqlite_stmt *reader = guard_sqlite_prepare(s, db, "SELECT id FROM t");
    ck_assert_int_eq(guard_sqlite_transact(db, interrupt_a_reader, reader, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.code, 7);
    ck_assert(!(result.notes & GUARD_NOTE_POISONED));
    ck_assert(sqlite3_get_autocommit(guard_sqlite_raw(db)));
    guard_sqlite_exec(db, "INSERT INTO t(id) VALUES (3)");
    ck_assert_int_eq(database_number(path, COUNT), 1);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ triggers */

START_TEST(a_trigger_that_rolls_back_ends_every_level_and_says_so)
{
    GUARD_AUTO(s);
    open_database(s, NULL);
    guard_sqlite_exec(
        db, "CREATE TRIGGER no BEFORE INSERT ON t WHEN NEW.id = 13 BEGIN SELECT RAISE(ROLLBACK, 'not 13'); END");
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_sqlite_exec(db, "INSERT INTO t(id) VALUES (1)");
    guard_tx *part = guard_tx_begin_nested(s, tx);
    expect_panic(table_exec, (void *)"INSERT INTO t(id) VALUES (13)", GUARD_SQLITE, SQLITE_CONSTRAINT_TRIGGER);
    expect_panic(table_exec, (void *)"INSERT INTO t(id) VALUES (2)", GUARD_TX, GUARD_TX_OVER);
    ck_assert_int_eq(guard_tx_outcome(part), GUARD_ROLLED_BACK);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
    guard_tx_rollback(part);
    expect_panic(call_commit, tx, GUARD_SQLITE, SQLITE_CONSTRAINT_TRIGGER);
    ck_assert_int_eq(database_number(path, COUNT), 0);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_transaction_that_was_replaced_by_another_is_never_told_as_committed,
        a_transaction_that_sqlite_took_back_and_another_replaced_is_rolled_back,
        a_commit_behind_the_back_is_never_told_as_a_rollback,
        a_commit_in_front_of_a_statement_that_fails_is_never_told_as_a_rollback,
        a_failure_of_one_statement_that_takes_all_back_is_known_by_every_call,
        a_byte_order_mark_does_not_hide_a_commit,
        a_wal_hook_that_fails_behind_a_commit_does_not_make_it_a_rollback,
        a_commit_in_the_middle_of_a_statement_that_writes_fails_and_pulls_nothing_away,
        a_connection_with_virtual_tables_commits_and_closes,
        a_statement_left_in_a_table_valued_function_is_finalised_at_the_close,
        a_commit_closes_a_writable_blob_and_keeps_what_it_wrote,
        a_statement_that_a_commit_has_reset_is_at_its_end_and_does_not_write_again,
        a_raw_writable_blob_keeps_a_transaction_from_committing,
        a_wal_file_and_one_with_a_journal_are_not_taken_for_one,
        without_a_journal_what_was_written_is_not_told_as_taken_back,
        every_journal_mode_takes_back_what_was_spilled,
        a_stop_at_any_instruction_leaves_a_true_outcome_and_no_transaction,
        an_interrupt_that_meets_the_rollback_does_not_leave_the_transaction_open,
        a_trigger_that_rolls_back_ends_every_level_and_says_so,
    };
    return suite_run("sqlite_behind", tests, sizeof tests / sizeof *tests);
}
