/* SPDX-License-Identifier: MIT */
/* check_tx_count.c: every transaction is counted once, by how it ended, and its COMMIT or ROLLBACK timed. */
#include <pthread.h>
#include <stdio.h>

#include <guard/guard.h>
#include <guard/guard_sqlite.h>
#include <guard/tx.h>

#include "calls.h"
#include "exposition.h"
#include "sqlite_table.h"
#include "suite.h"

/* One number of SQLite's. */
static int64_t figure(const char *name, const char *outcome)
{
    GUARD_AUTO(s);
    char number[160];
    const char *text = exposition_read(s);
    snprintf(number, sizeof number, "%s{database=\"sqlite\"%s%s%s}", name, outcome != NULL ? ",outcome=\"" : "",
             outcome != NULL ? outcome : "", outcome != NULL ? "\"" : "");
    return exposition_value(text, number);
}

static void expect_ends(int64_t committed, int64_t rolled_back, int64_t released, int64_t parts_rolled_back)
{
    ck_assert_int_eq(figure("guard_transactions_total", "committed"), committed);
    ck_assert_int_eq(figure("guard_transactions_total", "rolled_back"), rolled_back);
    ck_assert_int_eq(figure("guard_transactions_total", "in_doubt"), 0);
    ck_assert_int_eq(figure("guard_savepoints_total", "released"), released);
    ck_assert_int_eq(figure("guard_savepoints_total", "rolled_back"), parts_rolled_back);
    ck_assert_int_eq(figure("guard_transaction_commit_seconds_count", NULL), committed);
}

static void work(guard_tx *tx, void *arg)
{
    (void)tx;
    guard_sqlite_exec(db, "INSERT INTO t DEFAULT VALUES");
    if (arg != NULL) {
        guard_panic(1, "no");
    }
}

static void work_in_parts(guard_tx *tx, void *arg)
{
    guard_tx_nested(tx, work, NULL, NULL);
    guard_result result;
    guard_tx_nested(tx, work, "fail", &result);
    work(tx, arg);
}

START_TEST(transactions_are_counted_by_how_they_ended)
{
    GUARD_AUTO(s);
    guard_result result;
    table_open(s, TABLE, NULL);
    expect_ends(0, 0, 0, 0);
    guard_sqlite_transact(db, work, NULL, NULL, NULL);
    expect_ends(1, 0, 0, 0);
    guard_sqlite_transact(db, work, "fail", NULL, &result);
    expect_ends(1, 1, 0, 0);
    guard_sqlite_transact(db, work_in_parts, NULL, NULL, NULL);
    expect_ends(2, 1, 1, 1);
    guard_sqlite_transact(db, work_in_parts, "fail", NULL, &result);
    expect_ends(2, 2, 2, 2);
    {
        GUARD_AUTO(inner);
        guard_tx *tx = guard_sqlite_begin(inner, db, NULL);
        guard_tx_begin_nested(inner, tx); /* both are left without a commit */
    }
    expect_ends(2, 3, 2, 3);
    ck_assert_int_eq(figure("guard_transaction_rollback_seconds_count", NULL), 3);
}
END_TEST

static void end_it_by_sql(guard_tx *tx, void *arg)
{
    (void)tx;
    (void)arg;
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1)");
    sqlite3_exec(guard_sqlite_raw(db), "INSERT OR ROLLBACK INTO t VALUES (1)", NULL, NULL, NULL);
}

START_TEST(one_that_the_database_ended_is_counted_as_it_ended)
{
    GUARD_AUTO(s);
    guard_result result;
    table_open(s, TABLE, NULL);
    ck_assert_int_eq(guard_sqlite_transact(db, end_it_by_sql, NULL, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(figure("guard_transactions_total", "rolled_back"), 1);
    ck_assert_int_eq(figure("guard_transactions_total", "committed"), 0);
}
END_TEST

static int attempts;

/* BUSY_SNAPSHOT at the first attempt: somebody else wrote after this one had read. */
static void read_then_write(guard_tx *tx, void *arg)
{
    (void)tx;
    guard_sqlite_query_int64(db, "SELECT count(*) FROM t", 0);
    if (attempts++ == 0) {
        guard_sqlite_exec(arg, "INSERT INTO t DEFAULT VALUES");
    }
    guard_sqlite_exec(db, "INSERT INTO t DEFAULT VALUES");
}

START_TEST(a_body_that_was_run_again_is_a_retry_and_two_transactions)
{
    GUARD_AUTO(s);
    const guard_sqlite_options wal = {.journal = GUARD_SQLITE_WAL};
    table_open(s, TABLE, &wal);
    guard_sqlite *second = guard_sqlite_open(s, path, &wal);
    const guard_sqlite_tx_options deferred = {.mode = GUARD_SQLITE_DEFERRED};
    ck_assert_int_eq(guard_sqlite_transact(db, read_then_write, second, &deferred, NULL), GUARD_COMMITTED);
    ck_assert_int_eq(attempts, 2);
    ck_assert_int_eq(figure("guard_transaction_retries_total", NULL), 1);
    ck_assert_int_eq(figure("guard_transactions_total", "rolled_back"), 1);
    ck_assert_int_eq(figure("guard_transactions_total", "committed"), 1);
}
END_TEST

enum { THREADS = 4, EACH = 50 };

static void *transact_much(void *unused)
{
    (void)unused;
    GUARD_AUTO(s);
    guard_sqlite *own = guard_sqlite_open(s, path, NULL);
    for (int i = 0; i < EACH; i++) {
        GUARD_AUTO(inner);
        guard_tx *tx = guard_sqlite_begin(inner, own, NULL);
        if (i % 5 != 0) {
            guard_tx_commit(tx);
        }
    }
    return NULL;
}

START_TEST(threads_that_have_ended_are_in_the_sum)
{
    pthread_t threads[THREADS];
    path = database_new(TABLE);
    for (int i = 0; i < THREADS; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, transact_much, NULL), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    expect_ends(THREADS * EACH * 4 / 5, THREADS * EACH / 5, 0, 0);
}
END_TEST

/* ------------------------------------------------------------------------- a database that loses its answers */

static guard_outcome answer;

static guard_tx_status status(void *connection)
{
    return *(int *)connection ? GUARD_TX_ACTIVE : GUARD_TX_IDLE;
}

static int begin(void *connection, const void *options, guard_error *error)
{
    (void)options;
    (void)error;
    *(int *)connection = 1;
    return 0;
}

static guard_outcome commit(void *connection, guard_result *result)
{
    *(int *)connection = 0;
    if (answer == GUARD_IN_DOUBT) {
        guard_error_set(&result->error, GUARD_TX, GUARD_TX_IN_DOUBT, "lost");
        result->has_error = 1;
    }
    return answer;
}

static guard_outcome rollback(void *connection, guard_result *result)
{
    (void)result;
    *(int *)connection = 0;
    return GUARD_ROLLED_BACK;
}

static int retryable(void *connection, const guard_error *error)
{
    (void)connection;
    (void)error;
    return 0;
}

static void do_nothing(guard_tx *tx, void *arg)
{
    (void)tx;
    (void)arg;
}

START_TEST(in_doubt_and_prepared_are_counted_and_what_was_resolved_later)
{
    static const guard_tx_driver forgetful = {.name = "Forgetful \"DB\"",
                                              .status = status,
                                              .begin = begin,
                                              .commit = commit,
                                              .rollback = rollback,
                                              .retryable = retryable};
    int connection = 0;
    guard_tx_session session;
    guard_result result;
    GUARD_AUTO(s);
    guard_tx_session_open(&session, &forgetful, &connection);
    answer = GUARD_PREPARED;
    guard_tx_transact(&session, do_nothing, NULL, NULL, NULL, &result, GUARD_HERE);
    answer = GUARD_IN_DOUBT;
    guard_tx_transact(&session, do_nothing, NULL, NULL, NULL, &result, GUARD_HERE);
    ck_assert_int_eq(result.outcome, GUARD_IN_DOUBT);
    guard_tx *tx = guard_tx_begin(s, &session, NULL, NULL, GUARD_HERE);
    ck_assert_int_ne(guard_run(call_commit, tx, NULL), 0);
    guard_tx_settle(tx, GUARD_COMMITTED);
    const char *text = exposition_read(s);
#define DATABASE "database=\"forgetful \\\"db\\\"\","
    ck_assert_int_eq(exposition_value(text, "guard_transactions_total{" DATABASE "outcome=\"prepared\"}"), 1);
    ck_assert_int_eq(exposition_value(text, "guard_transactions_total{" DATABASE "outcome=\"in_doubt\"}"), 2);
    ck_assert_int_eq(exposition_value(text, "guard_transactions_total{" DATABASE "outcome=\"committed\"}"), 0);
    ck_assert_int_eq(exposition_value(text, "guard_transactions_resolved_total{" DATABASE "outcome=\"committed\"}"), 1);
    guard_tx_session_close(&session);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        transactions_are_counted_by_how_they_ended,
        one_that_the_database_ended_is_counted_as_it_ended,
        a_body_that_was_run_again_is_a_retry_and_two_transactions,
        threads_that_have_ended_are_in_the_sum,
        in_doubt_and_prepared_are_counted_and_what_was_resolved_later,
    };
    return suite_run("tx count", tests, sizeof tests / sizeof *tests);
}
