/* SPDX-License-Identifier: MIT */
/*
 * check_sqlite_adopted.c: a transaction of an adopted handle that the program ends behind the guard's back, and another one that it begins there: the
 * hooks are the program's, and still the outcome that is told is never a wrong one (behaviours 24, 44).
 */
#include <stdbool.h>

#include <guard/guard.h>
#include <guard/guard_sqlite.h>
#include <guard/tx.h>

#include "calls.h"
#include "fault_vfs.h"
#include "sqlite_table.h"
#include "suite.h"

static sqlite3 *raw;

static void adopt_database(guard_scope *scope)
{
    path = database_new(TABLE);
    raw = database_raw(path);
    db = guard_sqlite_adopt(scope, raw, NULL);
}

static void leave_database(void)
{
    guard_sqlite_close(db);
    sqlite3_close(raw);
}

/* A body: a row through the guard, then SQL behind its back, then a panic or not. */
typedef struct behind {
    const char *sql;
    bool fails;
} behind;

static void go_behind(guard_tx *tx, void *arg)
{
    const behind *b = arg;
    (void)tx;
    table_insert(1);
    database_exec(raw, b->sql);
    if (b->fails) {
        guard_panic(7, "and then it failed");
    }
}

/* Nobody tells the guard of it: the hooks are the program's. */
START_TEST(a_transaction_that_was_replaced_on_an_adopted_handle_is_in_doubt_and_the_new_one_is_left_alone)
{
    static const struct {
        const char *sql;
        int kept;
    } ways[] = {{"COMMIT; BEGIN; INSERT INTO t VALUES (2)", 1},
                {"COMMIT; BEGIN IMMEDIATE; INSERT INTO t VALUES (2)", 1},
                {"ROLLBACK; BEGIN; INSERT INTO t VALUES (2)", 0},
                {"ROLLBACK; BEGIN EXCLUSIVE; INSERT INTO t VALUES (2)", 0},
                {"ROLLBACK; SAVEPOINT mine; INSERT INTO t VALUES (2)", 0}};
    for (size_t i = 0; i < 6 * sizeof(ways) / sizeof(ways[0]); i++) {
        GUARD_AUTO(s);
        behind b = {ways[i / 6].sql, i % 2 != 0};
        const guard_sqlite_tx_options options = {.mode = (int)(i % 6 / 2)};
        guard_result result;
        adopt_database(s);
        guard_outcome outcome = guard_sqlite_transact(db, go_behind, &b, &options, &result);
        ck_assert_msg(outcome == GUARD_IN_DOUBT, "%s, %d: %s", b.sql, b.fails, guard_outcome_name(outcome));
        ck_assert(result.notes & GUARD_NOTE_ENDED_ELSEWHERE);
        ck_assert_int_eq(sqlite3_get_autocommit(raw), 0);
        database_exec(raw, "COMMIT");
        ck_assert_int_eq(database_number(path, "SELECT count(*) FROM t WHERE id = 1"), ways[i / 6].kept);
        ck_assert_int_eq(database_number(path, "SELECT count(*) FROM t WHERE id = 2"), 1);
        /* And what is begun afterwards is as any other. */
        b = (behind){"INSERT INTO t VALUES (4)", false};
        database_exec(raw, "DELETE FROM t");
        ck_assert_int_eq(guard_sqlite_transact(db, go_behind, &b, &options, NULL), GUARD_COMMITTED);
        leave_database();
    }
}
END_TEST

static void fail_in_another(guard_tx *tx, void *arg)
{
    (void)tx;
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1)");
    database_exec(raw, arg);
    guard_sqlite_exec(db, "INSERT OR ROLLBACK INTO t VALUES (9)");
}

START_TEST(what_takes_back_the_transaction_behind_does_not_take_back_the_committed_one)
{
    static const char *const ways[] = {"COMMIT; BEGIN", "SELECT 1", "ROLLBACK; BEGIN"};
    static const guard_outcome told[] = {GUARD_IN_DOUBT, GUARD_ROLLED_BACK, GUARD_ROLLED_BACK};
    for (int i = 0; i < 18; i++) {
        GUARD_AUTO(s);
        const guard_sqlite_tx_options options = {.mode = i / 3 % 3};
        adopt_database(s);
        database_exec(raw, i >= 9 ? "PRAGMA journal_mode = WAL; INSERT INTO t VALUES (9)" : "INSERT INTO t VALUES (9)");
        guard_outcome outcome = guard_sqlite_transact(db, fail_in_another, (void *)ways[i % 3], &options, NULL);
        ck_assert_msg(outcome == told[i % 3], "%s, mode %d: %s", ways[i % 3], options.mode,
                      guard_outcome_name(outcome));
        ck_assert_int_eq(database_number(path, COUNT), i % 3 == 0 ? 2 : 1);
        leave_database();
    }
}
END_TEST

static void commit_and_fail_reads(sqlite3_context *context, int count, sqlite3_value **values, void *commits)
{
    (void)count;
    (void)values;
    if (*(bool *)commits) {
        database_exec(raw, "COMMIT; BEGIN");
    }
    fault_vfs_arm(FAULT_READ, FAULT_ERROR, 1, true);
    sqlite3_result_int(context, 1);
}

static void fail_in_the_middle(guard_tx *tx, void *commits)
{
    (void)tx;
    table_insert(1);
    guard_sqlite_function(db, "f", 0, SQLITE_UTF8, commit_and_fail_reads, commits);
    guard_sqlite_exec(db, "SELECT f() UNION ALL SELECT max(hex(data)) FROM u");
}

/* An I/O error takes all back, and gives the file another version as a COMMIT does. */
START_TEST(a_function_that_commits_in_a_statement_which_fails_of_an_io_error_is_found_out)
{
    fault_vfs_install();
    for (int commits = 0; commits <= 1; commits++) {
        GUARD_AUTO(s);
        bool does = commits;
        path = database_new(TABLE "; CREATE TABLE u(data); INSERT INTO u VALUES (zeroblob(200000))");
        ck_assert_int_eq(sqlite3_open_v2(path, &raw, SQLITE_OPEN_READWRITE, "fault"), SQLITE_OK);
        db = guard_sqlite_adopt(s, raw, NULL);
        guard_outcome outcome = guard_sqlite_transact(db, fail_in_the_middle, &does, NULL, NULL);
        ck_assert(fault_vfs_was_hit());
        fault_vfs_disarm();
        ck_assert_msg(outcome == (commits ? GUARD_IN_DOUBT : GUARD_ROLLED_BACK), "%d: %s", commits,
                      guard_outcome_name(outcome));
        ck_assert_int_eq(database_number(path, COUNT), commits);
        leave_database();
    }
}
END_TEST

START_TEST(a_commit_that_failed_and_was_mended_is_still_seen_to_be_replaced)
{
    for (int replaced = 0; replaced <= 1; replaced++) {
        GUARD_AUTO(s);
        adopt_database(s);
        database_exec(raw,
                      "PRAGMA foreign_keys = ON; CREATE TABLE u(t REFERENCES t(id) DEFERRABLE INITIALLY DEFERRED)");
        guard_tx *tx = guard_sqlite_begin(s, db, NULL);
        guard_sqlite_exec(db, "INSERT INTO u VALUES (7)");
        expect_panic(call_commit, tx, GUARD_SQLITE, SQLITE_CONSTRAINT_FOREIGNKEY);
        ck_assert_int_eq(guard_tx_outcome(tx), GUARD_OPEN);
        guard_sqlite_exec(db, "INSERT INTO t VALUES (7)");
        if (replaced) {
            database_exec(raw, "ROLLBACK; BEGIN");
            expect_panic(call_commit, tx, GUARD_TX, GUARD_TX_IN_DOUBT);
            database_exec(raw, "COMMIT");
        } else {
            guard_tx_commit(tx);
        }
        ck_assert_int_eq(database_number(path, COUNT), !replaced);
        leave_database();
    }
}
END_TEST

START_TEST(no_transaction_is_begun_in_the_middle_of_a_statement_that_writes_on_its_own)
{
    GUARD_AUTO(s);
    sqlite3_stmt *stmt = NULL;
    behind b = {"", true};
    guard_result result;
    adopt_database(s);
    ck_assert_int_eq(sqlite3_prepare_v2(raw, "INSERT INTO t VALUES (5) RETURNING id", -1, &stmt, NULL), SQLITE_OK);
    ck_assert_int_eq(sqlite3_step(stmt), SQLITE_ROW);
    ck_assert_int_eq(guard_sqlite_transact(db, go_behind, &b, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.code, SQLITE_BUSY);
    ck_assert_int_eq(sqlite3_finalize(stmt), SQLITE_OK);
    ck_assert_int_eq(database_number(path, "SELECT id FROM t"), 5);
    leave_database();
}
END_TEST

static int deny_savepoints(void *unused, int action, const char *a, const char *b, const char *c, const char *d)
{
    (void)unused;
    (void)a;
    (void)b;
    (void)c;
    (void)d;
    return action == SQLITE_SAVEPOINT ? SQLITE_DENY : SQLITE_OK;
}

START_TEST(no_transaction_is_begun_where_an_authorizer_denies_what_would_prove_it)
{
    GUARD_AUTO(s);
    behind b = {"", false};
    guard_result result;
    adopt_database(s);
    sqlite3_set_authorizer(raw, deny_savepoints, NULL);
    ck_assert_int_eq(guard_sqlite_transact(db, go_behind, &b, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.code, SQLITE_AUTH);
    ck_assert(sqlite3_get_autocommit(raw));
    /* In the middle it stops the transaction's end, but for the ROLLBACK. */
    sqlite3_set_authorizer(raw, NULL, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    table_insert(1);
    sqlite3_set_authorizer(raw, deny_savepoints, NULL);
    expect_panic(call_commit, tx, GUARD_SQLITE, SQLITE_AUTH);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_OPEN);
    guard_error error;
    guard_run(call_rollback, tx, &error);
    ck_assert(guard_tx_outcome(tx) == GUARD_IN_DOUBT || guard_tx_outcome(tx) == GUARD_ROLLED_BACK);
    ck_assert(sqlite3_get_autocommit(raw));
    ck_assert_int_eq(database_number(path, COUNT), 0);
    sqlite3_set_authorizer(raw, NULL, NULL);
    leave_database();
}
END_TEST

static int stop_at(void *left)
{
    return --*(long *)left == 0;
}

static void go_behind_at_all_costs(guard_tx *tx, void *arg)
{
    const behind *b = arg;
    guard_error error;
    (void)tx;
    guard_run(table_exec, (void *)"INSERT INTO t VALUES (1)", &error);
    sqlite3_exec(raw, b->sql, NULL, NULL, NULL);
    if (b->fails) {
        guard_panic(7, "and then it failed");
    }
}

/* SQLite asks a progress handler also behind the end of RELEASE, and what that has done or found is then not its code. */
START_TEST(a_stop_at_any_instruction_does_not_hide_that_a_transaction_was_replaced)
{
    static const char *const ways[] = {"COMMIT; BEGIN; INSERT INTO t VALUES (2)",
                                       "ROLLBACK; BEGIN; INSERT INTO t VALUES (2)"};
    unsigned long left_alone = 0;
    for (int i = 0; i < 4; i++) {
        long at = 1;
        for (long left = 0; left <= 0; at++) {
            GUARD_AUTO(s);
            behind b = {ways[i % 2], i >= 2};
            adopt_database(s);
            left = at;
            sqlite3_progress_handler(raw, 1, stop_at, &left);
            guard_outcome outcome = guard_sqlite_transact(db, go_behind_at_all_costs, &b, NULL, NULL);
            sqlite3_progress_handler(raw, 0, NULL, NULL);
            left_alone += !sqlite3_get_autocommit(raw);
            long long rows = database_number(path, "SELECT count(*) FROM t WHERE id = 1");
            ck_assert_msg(outcome == GUARD_IN_DOUBT || (outcome == GUARD_COMMITTED) == (rows == 1),
                          "%s, %d, instruction %ld: %s, %lld rows", b.sql, b.fails, at, guard_outcome_name(outcome),
                          rows);
            leave_database();
        }
        ck_assert_int_gt(at, 20);
    }
    ck_assert_uint_gt(left_alone, 20);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_transaction_that_was_replaced_on_an_adopted_handle_is_in_doubt_and_the_new_one_is_left_alone,
        what_takes_back_the_transaction_behind_does_not_take_back_the_committed_one,
        a_function_that_commits_in_a_statement_which_fails_of_an_io_error_is_found_out,
        a_commit_that_failed_and_was_mended_is_still_seen_to_be_replaced,
        no_transaction_is_begun_in_the_middle_of_a_statement_that_writes_on_its_own,
        no_transaction_is_begun_where_an_authorizer_denies_what_would_prove_it,
        a_stop_at_any_instruction_does_not_hide_that_a_transaction_was_replaced,
    };
    return suite_run("sqlite_adopted", tests, sizeof tests / sizeof *tests);
}
