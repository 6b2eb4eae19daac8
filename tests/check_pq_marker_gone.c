/* SPDX-License-Identifier: MIT */
/*
 * check_pq_marker_gone.c: the marker table is taken away, made anew, or its statement is, while a session uses it; and its install does what it
 * says or says that it has not.
 */
#include <pthread.h>
#include <stdio.h>

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "server.h"
#include "suite.h"

static const guard_pq_tx_options with_row = {.marker = GUARD_PQ_MARKER_ROW};

static int runs;

static void insert_one(guard_tx *tx, void *arg)
{
    (void)arg;
    runs++;
    guard_pq_exec(NULL, guard_pq_of(tx), "INSERT INTO t VALUES (1)");
}

/* ----------------------------------------------------------------------------------------------- taken away -- */

static void take_its_statement_away(guard_tx *tx, void *arg)
{
    insert_one(tx, arg);
    if (runs == 1) {
        guard_pq_exec(NULL, guard_pq_of(tx), "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$");
    }
}

/* A function does it, so that no tag tells. */
START_TEST(a_marker_statement_that_was_taken_away_unseen_costs_a_rerun_at_most)
{
    GUARD_AUTO(s);
    guard_result result;
    server_reset();
    guard_pq *pq = guard_pq_open(s, "", NULL);
    guard_outcome told = guard_pq_transact(pq, take_its_statement_away, NULL, &with_row, &result);
    ck_assert_msg(told == GUARD_COMMITTED, "%s: %s", guard_outcome_name(told), result.error.message);
    ck_assert_int_eq(runs, 2);
    server_run("DELETE FROM t");
    ck_assert_int_eq(guard_pq_transact(pq, insert_one, NULL, &with_row, &result), GUARD_COMMITTED);
    ck_assert_int_eq(server_rows(1), 1);
}
END_TEST

START_TEST(a_marker_table_that_is_dropped_under_a_session_is_told_at_the_next_begin)
{
    GUARD_AUTO(s);
    guard_result result;
    server_reset();
    guard_pq *pq = guard_pq_open(s, "", NULL);
    ck_assert_int_eq(guard_pq_transact(pq, insert_one, NULL, &with_row, &result), GUARD_COMMITTED);
    server_run("DELETE FROM t; DROP TABLE guard_marker");
    ck_assert_int_eq(guard_pq_transact(pq, insert_one, NULL, &with_row, &result), GUARD_ROLLED_BACK);
    ck_assert_str_eq(result.error.sqlstate, "42P01");
    runs = 0;
    ck_assert_int_eq(guard_pq_transact(pq, insert_one, NULL, &with_row, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.code, GUARD_PQ_MARKER);
    ck_assert_int_eq(runs, 0); /* it was not begun */
    ck_assert_int_eq(server_rows(1), 0);
    guard_pq_marker_install(pq, NULL);
    ck_assert_int_eq(guard_pq_transact(pq, insert_one, NULL, &with_row, &result), GUARD_COMMITTED);
    ck_assert_int_eq(server_rows(1), 1);
}
END_TEST

START_TEST(an_adopted_connection_whose_marker_table_was_dropped_is_left_at_rest)
{
    guard_result result;
    PGconn *raw = server_connect("");
    server_reset();
    {
        GUARD_AUTO(s);
        guard_pq *pq = guard_pq_adopt(s, raw, NULL);
        ck_assert_int_eq(guard_pq_transact(pq, insert_one, NULL, &with_row, &result), GUARD_COMMITTED);
        server_run("DROP TABLE guard_marker");
    }
    ck_assert_int_eq(PQtransactionStatus(raw), PQTRANS_IDLE);
    PGresult *rows = PQexec(raw, "SELECT 1");
    ck_assert_int_eq(PQresultStatus(rows), PGRES_TUPLES_OK);
    PQclear(rows);
    PQfinish(raw);
}
END_TEST

/* --------------------------------------------------------------------------------------------------- prepared -- */

START_TEST(a_prepared_transaction_leaves_no_marker_row_whichever_way_it_ends)
{
    for (int rolled_back = 0; rolled_back < 2; rolled_back++) {
        GUARD_AUTO(s);
        guard_result result;
        guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW, .prepare_as = "two phases"};
        server_reset();
        guard_pq *pq = guard_pq_open(s, "", NULL);
        ck_assert_int_eq(guard_pq_transact(pq, insert_one, NULL, &with_row, &result), GUARD_COMMITTED);
        server_run("DELETE FROM t");
        ck_assert_int_eq(guard_pq_transact(pq, insert_one, NULL, &options, &result), GUARD_PREPARED);
        if (rolled_back) {
            guard_pq_prepared_rollback(pq, "two phases");
        } else {
            guard_pq_prepared_commit(pq, "two phases");
        }
        guard_pq_close(pq);
        ck_assert_int_eq(server_number("SELECT count(*) FROM guard_marker WHERE NOT fenced"), 0);
    }
}
END_TEST

/* ----------------------------------------------------------------------------------------------------- install -- */

#define ROLES                                                                                                        \
    "DROP SCHEMA IF EXISTS ops CASCADE; DROP ROLE IF EXISTS app, keeper; CREATE ROLE app LOGIN; CREATE ROLE keeper " \
    "LOGIN; "

static void install_for_app(void *arg)
{
    guard_pq_marker_install(arg, "app");
}

/* The server only warns of a GRANT that has granted nothing. */
START_TEST(an_install_that_could_not_grant_says_so)
{
    GUARD_AUTO(s);
    guard_error error;
    server_reset();
    server_run(ROLES "GRANT SELECT, INSERT, DELETE ON guard_marker TO keeper");
    guard_pq *keeper = guard_pq_open(s, "user=keeper", NULL);
    ck_assert_int_ne(guard_run(install_for_app, keeper, &error), 0);
    ck_assert_msg(error.domain == GUARD_PQ && error.code == GUARD_PQ_MARKER, "%s", error.message);
    server_run("GRANT SELECT, INSERT, DELETE ON guard_marker TO app");
    guard_pq_marker_install(keeper, "app"); /* it has them */
    server_run("DROP OWNED BY keeper, app");
}
END_TEST

START_TEST(an_install_in_another_schema_lets_the_role_into_it)
{
    GUARD_AUTO(s);
    guard_result result;
    server_reset();
    server_run(ROLES "CREATE SCHEMA ops; GRANT INSERT ON t TO app");
    guard_pq_options options = {.marker = GUARD_PQ_MARKER_ROW, .marker_table = "ops.guard_marker"};
    guard_pq_marker_install(guard_pq_open(s, "", &options), "app");
    guard_pq *app = guard_pq_open(s, "user=app", &options);
    guard_outcome told = guard_pq_transact(app, insert_one, NULL, NULL, &result);
    ck_assert_msg(told == GUARD_COMMITTED, "%s: %s", guard_outcome_name(told), result.error.message);
    guard_pq_close(app);
    server_run("DROP SCHEMA ops CASCADE; DROP OWNED BY app");
}
END_TEST

static void *install_in_thread(void *arg)
{
    guard_error error;
    GUARD_AUTO(s);
    if (guard_run(install_for_app, guard_pq_open(s, "", NULL), &error) != 0) {
        snprintf(arg, 300, "%s", error.message);
    }
    return NULL;
}

START_TEST(several_that_install_at_once_do_not_disturb_each_other)
{
    enum { ROUNDS = 8, THREADS = 4 };
    server_reset();
    server_run(ROLES);
    for (int round = 0; round < ROUNDS; round++) {
        pthread_t threads[THREADS];
        char errors[THREADS][300] = {""};
        server_run("DROP TABLE IF EXISTS guard_marker");
        for (int i = 0; i < THREADS; i++) {
            ck_assert_int_eq(pthread_create(&threads[i], NULL, install_in_thread, errors[i]), 0);
        }
        for (int i = 0; i < THREADS; i++) {
            pthread_join(threads[i], NULL);
        }
        for (int i = 0; i < THREADS; i++) {
            ck_assert_str_eq(errors[i], "");
        }
        ck_assert_int_eq(server_number("SELECT count(*) FROM guard_marker"), 1);
    }
    server_run("DROP OWNED BY app");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_marker_statement_that_was_taken_away_unseen_costs_a_rerun_at_most,
        a_marker_table_that_is_dropped_under_a_session_is_told_at_the_next_begin,
        an_adopted_connection_whose_marker_table_was_dropped_is_left_at_rest,
        a_prepared_transaction_leaves_no_marker_row_whichever_way_it_ends,
        an_install_that_could_not_grant_says_so,
        an_install_in_another_schema_lets_the_role_into_it,
        several_that_install_at_once_do_not_disturb_each_other,
    };
    return suite_run("pq_marker_gone", tests, sizeof tests / sizeof *tests);
}
