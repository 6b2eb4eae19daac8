/* SPDX-License-Identifier: MIT */
/*
 * check_tx.c: what every guarded transaction promises, on SQLite (behaviours 21 to 25 and 27).
 */
#include <pthread.h>
#include <string.h>

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_sqlite.h>
#include <guard/tx.h>

#include "calls.h"
#include "sqlite_table.h"
#include "suite.h"
#include "trace.h"

/* How many statements reach SQLite. */
static int count_statement(unsigned type, void *count, void *stmt, void *sql)
{
    (void)type;
    (void)stmt;
    (void)sql;
    ++*(int *)count;
    return 0;
}

/* ---------------------------------------------------------------------- 21 */

START_TEST(a_scope_left_without_commit_rolls_back)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    {
        GUARD_AUTO(inner);
        guard_sqlite_begin(inner, db, NULL);
        table_insert(1);
    }
    ck_assert(sqlite3_get_autocommit(guard_sqlite_raw(db)));
    ck_assert_int_eq(database_number(path, COUNT), 0);
}
END_TEST

static void insert_and_panic(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_sqlite_begin(s, db, NULL);
    table_insert(1);
    guard_panic(42, "no more");
}

START_TEST(a_panic_rolls_back_and_goes_on_with_the_same_value)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    const guard_error *error = expect_panic(insert_and_panic, NULL, GUARD_USER, 42);
    ck_assert_str_eq(error->message, "no more");
    ck_assert_uint_eq(error->cause_count, 0);
    ck_assert_int_eq(database_number(path, COUNT), 0);
}
END_TEST

START_TEST(a_commit_is_durable_and_told)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_OPEN);
    table_insert(1);
    ck_assert_int_eq(database_number(path, COUNT), 0);
    guard_tx_commit(tx);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_COMMITTED);
    ck_assert_int_eq(database_number(path, COUNT), 1);
}
END_TEST

static void fail_cleanup(void *arg)
{
    (void)arg;
    guard_panic(42, "cleanup");
}

static void commit_after_failed_cleanup(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    table_insert(1);
    {
        GUARD_AUTO(inner);
        guard_defer(inner, fail_cleanup, NULL);
    }
    guard_tx_commit(tx);
}

START_TEST(a_held_panic_of_a_cleanup_is_raised_before_commit)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    expect_panic(commit_after_failed_cleanup, NULL, GUARD_USER, 42);
    ck_assert_int_eq(database_number(path, COUNT), 0);
}
END_TEST

/* ---------------------------------------------------------------------- 22 */

static void insert_two_and_panic(guard_tx *tx, void *arg)
{
    (void)tx;
    (void)arg;
    table_insert(2);
    guard_panic(7, "inner");
}

START_TEST(an_inner_failure_that_is_handled_keeps_the_outer_rows)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    guard_result result;
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    table_insert(1);
    ck_assert_int_eq(guard_tx_nested(tx, insert_two_and_panic, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert(result.has_error);
    ck_assert_int_eq(result.error.code, 7);
    guard_tx_commit(tx);
    ck_assert_int_eq(database_number(path, "SELECT id FROM t"), 1);
    ck_assert_int_eq(database_number(path, COUNT), 1);
}
END_TEST

START_TEST(an_inner_commit_is_lost_with_its_outer)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    table_insert(1);
    ck_assert_int_eq(guard_tx_nested(tx, table_insert_two, NULL, NULL), GUARD_RELEASED);
    guard_tx_rollback(tx);
    ck_assert_int_eq(database_number(path, COUNT), 0);
}
END_TEST

START_TEST(a_nested_scope_left_without_commit_takes_back_its_part)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    table_insert(1);
    {
        GUARD_AUTO(inner);
        guard_tx_begin_nested(inner, tx);
        table_insert(2);
    }
    table_insert(3);
    guard_tx_commit(tx);
    ck_assert_int_eq(database_number(path, "SELECT sum(id) FROM t"), 4);
}
END_TEST

START_TEST(beginning_on_a_connection_in_a_guarded_transaction_nests)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    table_insert(1);
    ck_assert_int_eq(guard_sqlite_transact(db, insert_two_and_panic, NULL, NULL, NULL), GUARD_ROLLED_BACK);
    ck_assert_int_eq(guard_sqlite_transact(db, table_insert_two, NULL, NULL, NULL), GUARD_RELEASED);
    guard_tx_commit(tx);
    ck_assert_int_eq(database_number(path, COUNT), 2);
}
END_TEST

/* ---------------------------------------------------------------------- 23 */

START_TEST(a_rolled_back_savepoint_is_gone)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    {
        GUARD_AUTO(inner);
        guard_tx_begin_savepoint(inner, tx, "mine");
    }
    int rc = sqlite3_exec(guard_sqlite_raw(db), "RELEASE mine", NULL, NULL, NULL);
    ck_assert_int_eq(rc, SQLITE_ERROR);
    ck_assert_str_eq(sqlite3_errmsg(guard_sqlite_raw(db)), "no such savepoint: mine");
    guard_tx_commit(tx);
}
END_TEST

static const char *const hostile[] = {"x",
                                      "x",
                                      "\"",
                                      "a\"; DROP TABLE t; --",
                                      "'",
                                      "ROLLBACK",
                                      "\xc3\xa4 \n\t",
                                      "x",
                                      "0123456789012345678901234567890123456789012345678901234567890\"\""};

START_TEST(repeated_and_hostile_savepoint_names_work)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_tx *inner = tx;
    for (size_t i = 0; i < sizeof(hostile) / sizeof(hostile[0]); i++) {
        inner = guard_tx_begin_savepoint(s, inner, hostile[i]);
        table_insert((int)i);
    }
    /* The upper half is taken back, the lower one kept. */
    for (size_t i = sizeof(hostile) / sizeof(hostile[0]); i-- > 0;) {
        if (i >= 5) {
            guard_tx_rollback(inner);
        } else {
            guard_tx_commit(inner);
        }
        inner = guard_tx_session_of(tx)->tx;
    }
    guard_tx_commit(tx);
    ck_assert_int_eq(database_number(path, COUNT), 5);
    ck_assert_int_eq(database_number(path, "SELECT max(id) FROM t"), 4);
}
END_TEST

static void begin_long_name(void *tx)
{
    GUARD_AUTO(s);
    guard_tx_begin_savepoint(s, tx, "0123456789012345678901234567890123456789012345678901234567890123");
}

START_TEST(a_savepoint_name_that_would_be_cut_is_misuse)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    expect_panic(begin_long_name, tx, GUARD_MISUSE, GUARD_MISUSE_ARGUMENT);
}
END_TEST

START_TEST(ten_levels_of_nesting_keep_what_was_committed)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    guard_tx *levels[10];
    levels[0] = guard_sqlite_begin(s, db, NULL);
    for (int i = 1; i < 10; i++) {
        levels[i] = guard_tx_begin_nested(s, levels[i - 1]);
        table_insert(i);
    }
    for (int i = 9; i > 0; i--) {
        if (i == 6) {
            guard_tx_rollback(levels[i]);
        } else {
            guard_tx_commit(levels[i]);
        }
    }
    guard_tx_commit(levels[0]);
    ck_assert_int_eq(database_number(path, "SELECT sum(id) FROM t"), 1 + 2 + 3 + 4 + 5);
}
END_TEST

/* ---------------------------------------------------------------------- 24 */

START_TEST(a_second_commit_is_misuse_and_sends_nothing)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    int statements = 0;
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    table_insert(1);
    guard_tx_commit(tx);
    sqlite3_trace_v2(guard_sqlite_raw(db), SQLITE_TRACE_STMT, count_statement, &statements);
    expect_panic(call_commit, tx, GUARD_MISUSE, GUARD_MISUSE_STATE);
    ck_assert_int_eq(statements, 0);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_COMMITTED);
}
END_TEST

START_TEST(a_second_rollback_is_harmless)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    int statements = 0;
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    table_insert(1);
    guard_tx_rollback(tx);
    sqlite3_trace_v2(guard_sqlite_raw(db), SQLITE_TRACE_STMT, count_statement, &statements);
    guard_tx_rollback(tx);
    ck_assert_int_eq(statements, 0);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
}
END_TEST

START_TEST(a_commit_after_a_rollback_is_misuse)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    int statements = 0;
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    table_insert(1);
    guard_tx_rollback(tx);
    sqlite3_trace_v2(guard_sqlite_raw(db), SQLITE_TRACE_STMT, count_statement, &statements);
    expect_panic(call_commit, tx, GUARD_MISUSE, GUARD_MISUSE_STATE);
    ck_assert_int_eq(statements, 0);
    ck_assert_int_eq(database_number(path, COUNT), 0);
}
END_TEST

START_TEST(a_rollback_after_a_commit_is_misuse)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    table_insert(1);
    guard_tx_commit(tx);
    expect_panic(call_rollback, tx, GUARD_MISUSE, GUARD_MISUSE_STATE);
    ck_assert_int_eq(database_number(path, COUNT), 1);
}
END_TEST

START_TEST(ending_an_outer_one_before_its_nested_one_is_misuse)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_tx *nested = guard_tx_begin_nested(s, tx);
    table_insert(1);
    expect_panic(call_commit, tx, GUARD_MISUSE, GUARD_MISUSE_STATE);
    expect_panic(call_rollback, tx, GUARD_MISUSE, GUARD_MISUSE_STATE);
    guard_tx_commit(nested);
    guard_tx_commit(tx);
    ck_assert_int_eq(database_number(path, COUNT), 1);
}
END_TEST

static void *commit_in_thread(void *tx)
{
    expect_panic(call_commit, tx, GUARD_MISUSE, GUARD_MISUSE_THREAD);
    return NULL;
}

START_TEST(a_transaction_of_another_thread_is_misuse)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    pthread_t thread;
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    table_insert(1);
    ck_assert_int_eq(pthread_create(&thread, NULL, commit_in_thread, tx), 0);
    pthread_join(thread, NULL);
    guard_tx_commit(tx);
    ck_assert_int_eq(database_number(path, COUNT), 1);
}
END_TEST

/* The handle lies on the outer scope, its connection on the inner one. */
START_TEST(a_handle_outlives_its_connection)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    guard_tx *tx;
    {
        GUARD_AUTO(inner);
        db = guard_sqlite_open(inner, path, NULL);
        tx = guard_sqlite_begin(s, db, NULL);
        table_insert(1);
    }
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
    ck_assert_ptr_null(guard_sqlite_of(tx));
    expect_panic(call_commit, tx, GUARD_MISUSE, GUARD_MISUSE_STATE);
    ck_assert_int_eq(database_number(path, COUNT), 0);
}
END_TEST

/* ---------------------------------------------------------------------- 25 */

static void begin_durable(void *arg)
{
    static const guard_sqlite_tx_options durable = {.tx = {.durable = 1}};
    (void)arg;
    GUARD_AUTO(s);
    guard_sqlite_begin(s, db, &durable);
}

static void hook_on_commit(void *tx)
{
    guard_tx_on_commit(tx, trace_run, (void *)"hook");
}

START_TEST(a_guard_in_the_callers_transaction_is_a_savepoint_and_leaves_that_open)
{
    path = database_new(TABLE);
    sqlite3 *raw = database_raw(path);
    database_exec(raw, "BEGIN; INSERT INTO t VALUES (1)");
    {
        GUARD_AUTO(inner);
        db = guard_sqlite_adopt(inner, raw, NULL);
        guard_tx *tx = guard_sqlite_begin(inner, db, NULL);
        table_insert(2);
        guard_tx_commit(tx);
        ck_assert_int_eq(guard_tx_outcome(tx), GUARD_RELEASED);
        guard_sqlite_begin(inner, db, NULL);
        table_insert(3);
    }
    ck_assert(!sqlite3_get_autocommit(raw));
    ck_assert_int_eq(database_number_on(raw, COUNT), 2);
    database_exec(raw, "COMMIT");
    ck_assert_int_eq(database_number(path, "SELECT sum(id) FROM t"), 3);
    sqlite3_close(raw);
}
END_TEST

START_TEST(on_commit_and_durable_are_refused_in_the_callers_transaction)
{
    path = database_new(TABLE);
    sqlite3 *raw = database_raw(path);
    database_exec(raw, "BEGIN; INSERT INTO t VALUES (1)");
    {
        GUARD_AUTO(inner);
        db = guard_sqlite_adopt(inner, raw, NULL);
        expect_panic(begin_durable, NULL, GUARD_TX, GUARD_TX_NOT_OUTERMOST);
        guard_tx *tx = guard_sqlite_begin(inner, db, NULL);
        expect_panic(hook_on_commit, tx, GUARD_TX, GUARD_TX_NOT_OUTERMOST);
        guard_tx_commit(tx);
        tx = guard_sqlite_begin(inner, db, NULL);
        expect_panic(begin_durable, NULL, GUARD_TX, GUARD_TX_NOT_OUTERMOST);
    }
    ck_assert(!sqlite3_get_autocommit(raw));
    sqlite3_close(raw);
}
END_TEST

/* ---------------------------------------------------------------------- 27 */

static int deny_rollback(void *arg, int action, const char *verb, const char *a, const char *b, const char *c)
{
    (void)arg;
    (void)a;
    (void)b;
    (void)c;
    return action == SQLITE_TRANSACTION && strcmp(verb, "ROLLBACK") == 0 ? SQLITE_DENY : SQLITE_OK;
}

/* A new authorizer makes SQLite prepare its statements again, and ROLLBACK is then refused: a real failing rollback. */
static void panic_where_rollback_fails(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_sqlite_begin(s, db, NULL);
    table_insert(1);
    sqlite3_set_authorizer(guard_sqlite_raw(db), deny_rollback, NULL);
    guard_panic(42, "the first error");
}

static void begin_again(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_sqlite_begin(s, db, NULL);
}

static void insert_three(void *arg)
{
    (void)arg;
    guard_sqlite_exec(db, "INSERT INTO t VALUES (3)");
}

START_TEST(a_failing_rollback_poisons_the_connection_and_the_first_error_survives)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    {
        GUARD_AUTO(inner);
        db = guard_sqlite_open(inner, path, NULL);
        const guard_error *error = expect_panic(panic_where_rollback_fails, NULL, GUARD_USER, 42);
        ck_assert_str_eq(error->message, "the first error");
        ck_assert_uint_eq(error->cause_count, 1);
        ck_assert_int_eq(error->causes[0].relation, GUARD_ATTACHED);
        ck_assert_int_eq(error->causes[0].domain, GUARD_SQLITE);
        ck_assert_int_eq(error->causes[0].code, SQLITE_AUTH);
        sqlite3_set_authorizer(guard_sqlite_raw(db), NULL, NULL);
        error = expect_panic(begin_again, NULL, GUARD_TX, GUARD_TX_POISONED);
        ck_assert_int_eq(error->causes[0].code, SQLITE_AUTH);
        expect_panic(insert_three, NULL, GUARD_TX, GUARD_TX_POISONED);
    }
    /* Closing it has rolled back and freed the lock. */
    ck_assert_int_eq(database_number(path, COUNT), 0);
    ck_assert_int_eq(database_number(path, "INSERT INTO t VALUES (9) RETURNING id"), 9);
}
END_TEST

static void take_the_savepoint_away(guard_tx *tx, void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_sqlite_exec(db, "SAVEPOINT mine");
    guard_tx_begin_nested(s, tx);
    table_insert(1);
    guard_sqlite_exec(db, "ROLLBACK TO mine");
}

static void lose_a_part(guard_tx *tx, void *arg)
{
    guard_error error;
    table_insert(2);
    GUARD_TRY(&error)
    {
        take_the_savepoint_away(tx, arg);
        guard_checkpoint(); /* what the close of that scope has held */
        ck_abort();
    }
    GUARD_CATCH
    {
        ck_assert_int_eq(error.domain, GUARD_SQLITE);
    }
}

/* All of it is rolled back then, and the commit that finds it so must know why. */
START_TEST(a_part_that_cannot_be_taken_back_is_the_reason_why_all_is)
{
    GUARD_AUTO(s);
    guard_result result;
    table_open(s, TABLE, NULL);
    ck_assert_int_eq(guard_sqlite_transact(db, lose_a_part, NULL, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert(result.has_error);
    ck_assert_str_eq(result.error.message, "no such savepoint: guard_1");
    ck_assert_uint_ne(result.notes & GUARD_NOTE_POISONED, 0);
    ck_assert_int_eq(database_number(path, COUNT), 0);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ the border form */

static void body_rolls_back(guard_tx *tx, void *arg)
{
    (void)arg;
    table_insert(1);
    guard_tx_rollback(tx);
}

START_TEST(a_body_that_rolls_back_is_no_error)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    guard_result result;
    ck_assert_int_eq(guard_sqlite_transact(db, body_rolls_back, NULL, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert(!result.has_error);
    ck_assert_uint_eq(result.attempts, 1);
    ck_assert_int_eq(database_number(path, COUNT), 0);
}
END_TEST

static void body_commits_and_panics(guard_tx *tx, void *arg)
{
    (void)arg;
    table_insert(1);
    guard_tx_commit(tx);
    guard_panic(5, "too late");
}

START_TEST(a_panic_after_the_commit_leaves_it_committed)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    guard_result result;
    ck_assert_int_eq(guard_sqlite_transact(db, body_commits_and_panics, NULL, NULL, &result), GUARD_COMMITTED);
    ck_assert(result.has_error);
    ck_assert_int_eq(result.error.code, 5);
    ck_assert_int_eq(database_number(path, COUNT), 1);
}
END_TEST

START_TEST(a_raw_handle_is_guarded_for_one_transaction)
{
    path = database_new(TABLE);
    sqlite3 *raw = database_raw(path);
    {
        GUARD_AUTO(s);
        db = guard_sqlite_adopt(s, raw, NULL);
        ck_assert_int_eq(guard_sqlite_transact_raw(raw, table_insert_two, NULL, NULL, NULL), GUARD_COMMITTED);
        ck_assert_int_eq(guard_sqlite_transact_raw(raw, insert_two_and_panic, NULL, NULL, NULL), GUARD_ROLLED_BACK);
    }
    ck_assert_ptr_null(sqlite3_next_stmt(raw, NULL));
    ck_assert_int_eq(sqlite3_close(raw), SQLITE_OK);
    ck_assert_int_eq(database_number(path, COUNT), 1);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_scope_left_without_commit_rolls_back,
        a_panic_rolls_back_and_goes_on_with_the_same_value,
        a_commit_is_durable_and_told,
        a_held_panic_of_a_cleanup_is_raised_before_commit,
        an_inner_failure_that_is_handled_keeps_the_outer_rows,
        an_inner_commit_is_lost_with_its_outer,
        a_nested_scope_left_without_commit_takes_back_its_part,
        beginning_on_a_connection_in_a_guarded_transaction_nests,
        a_rolled_back_savepoint_is_gone,
        repeated_and_hostile_savepoint_names_work,
        a_savepoint_name_that_would_be_cut_is_misuse,
        ten_levels_of_nesting_keep_what_was_committed,
        a_second_commit_is_misuse_and_sends_nothing,
        a_second_rollback_is_harmless,
        a_commit_after_a_rollback_is_misuse,
        a_rollback_after_a_commit_is_misuse,
        ending_an_outer_one_before_its_nested_one_is_misuse,
        a_transaction_of_another_thread_is_misuse,
        a_handle_outlives_its_connection,
        a_guard_in_the_callers_transaction_is_a_savepoint_and_leaves_that_open,
        on_commit_and_durable_are_refused_in_the_callers_transaction,
        a_failing_rollback_poisons_the_connection_and_the_first_error_survives,
        a_part_that_cannot_be_taken_back_is_the_reason_why_all_is,
        a_body_that_rolls_back_is_no_error,
        a_panic_after_the_commit_leaves_it_committed,
        a_raw_handle_is_guarded_for_one_transaction,
    };
    return suite_run("tx", tests, sizeof tests / sizeof *tests);
}
