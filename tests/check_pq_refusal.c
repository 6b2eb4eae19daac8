/* SPDX-License-Identifier: MIT */
/*
 * check_pq_refusal.c: transactions that the server has aborted, refuses to commit or is not there for any more: each is told as rolled back, with
 * the reason (behaviours 28 to 30).
 */
#include <poll.h>
#include <stdio.h>

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "pq_table.h"
#include "suite.h"

/* ------------------------------------------------------------------------------------------------------ 28 */

static void swallow_an_error(guard_tx *tx, void *arg)
{
    (void)arg;
    PGconn *raw = guard_pq_raw(guard_pq_of(tx));
    pq_insert(guard_pq_of(tx), 1);
    PQclear(PQexec(raw, "INSERT INTO t VALUES (1)"));
    PQclear(PQexec(raw, "INSERT INTO t VALUES (2)")); /* 25P02, which is not why */
}

START_TEST(a_swallowed_error_and_then_commit_is_rolled_back_with_that_errors_sqlstate)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_pq *pq = pq_open(s);
    ck_assert_int_eq(guard_pq_transact(pq, swallow_an_error, NULL, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.domain, GUARD_TX);
    ck_assert_int_eq(result.error.code, GUARD_TX_ROLLED_BACK);
    ck_assert_str_eq(result.error.sqlstate, "23505");
    ck_assert_str_eq(result.error.constraint, "t_pkey");
    ck_assert_int_eq(pq_status(pq), PQTRANS_IDLE);
    ck_assert_int_eq(server_rows(1), 0);
}
END_TEST

START_TEST(a_commit_sent_as_sql_is_told_as_ended_elsewhere_and_later_statements_are_refused)
{
    guard_error error;
    static const struct {
        const char *sql;
        guard_outcome outcome;
    } ends[] = {{"COMMIT", GUARD_COMMITTED},
                {"ROLLBACK", GUARD_ROLLED_BACK},
                {"COMMIT AND CHAIN", GUARD_COMMITTED},
                {"COMMIT; BEGIN", GUARD_COMMITTED},
                /* Answered as SAVEPOINT a; ROLLBACK AND CHAIN; COMMIT is. */
                {"SAVEPOINT a; ROLLBACK TO a; COMMIT", GUARD_IN_DOUBT}};
    for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++) {
        GUARD_AUTO(inner);
        guard_pq *pq = pq_open(inner);
        guard_tx *tx = guard_pq_begin(inner, pq, NULL);
        pq_insert(pq, 1);
        PQclear(PQexec(guard_pq_raw(pq), ends[i].sql));
        ck_assert_int_ne(guard_run(pq_roll_back_to_first, pq, &error), 0);
        ck_assert_msg(error.domain == GUARD_TX && error.code == GUARD_TX_OVER, "%s: %s", ends[i].sql, error.message);
        ck_assert_msg(guard_tx_outcome(tx) == ends[i].outcome, "%s: %s", ends[i].sql,
                      guard_outcome_name(guard_tx_outcome(tx)));
        ck_assert(guard_tx_result(tx)->notes & GUARD_NOTE_ENDED_ELSEWHERE);
        ck_assert_int_eq(server_rows(1), ends[i].outcome != GUARD_ROLLED_BACK);
    }
}
END_TEST

/* A COMMIT that is in flight when the body fails: whatever the server made of it is what is told. */
static void send_a_commit_and_panic(guard_tx *tx, void *arg)
{
    pq_insert(guard_pq_of(tx), 1);
    ck_assert_int_eq(PQsendQuery(guard_pq_raw(guard_pq_of(tx)), arg), 1);
    guard_panic(9, "and gone");
}

START_TEST(a_commit_in_flight_when_the_body_fails_is_told_as_it_ended)
{
    static char *const sent[] = {"COMMIT", "SELECT pg_sleep(0.3); COMMIT", "COMMIT AND CHAIN", "ROLLBACK"};
    for (size_t i = 0; i < sizeof sent / sizeof *sent; i++) {
        GUARD_AUTO(s);
        guard_result result;
        guard_pq *pq = pq_open(s);
        guard_outcome outcome = guard_pq_transact(pq, send_a_commit_and_panic, sent[i], NULL, &result);
        int64_t rows = server_rows(1);
        ck_assert_msg(outcome == (rows == 1 ? GUARD_COMMITTED : GUARD_ROLLED_BACK), "%s: %s, and %d rows", sent[i],
                      guard_outcome_name(outcome), (int)rows);
    }
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ 29 */

static void break_a_deferred_constraint(guard_tx *tx, void *arg)
{
    (void)arg;
    pq_insert(guard_pq_of(tx), 1);
    guard_pq_exec(NULL, guard_pq_of(tx), "INSERT INTO later VALUES (77)");
}

static void check_deferred(int marker)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_pq_tx_options options = {.marker = marker};
    guard_pq *pq = pq_open(s);
    server_run("CREATE TABLE IF NOT EXISTS parent(id integer PRIMARY KEY);"
               "DROP TABLE IF EXISTS later; CREATE TABLE later(id integer CONSTRAINT later_parent REFERENCES parent "
               "DEFERRABLE "
               "INITIALLY DEFERRED)");
    ck_assert_int_eq(guard_pq_transact(pq, break_a_deferred_constraint, NULL, &options, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.domain, GUARD_PQ);
    ck_assert_str_eq(result.error.sqlstate, "23503");
    ck_assert_str_eq(result.error.constraint, "later_parent");
    ck_assert_int_eq(pq_status(pq), PQTRANS_IDLE);
    /* The failed COMMIT was the last that was sent: no ROLLBACK behind it. */
    char sql[160];
    snprintf(sql, sizeof(sql), "SELECT (query LIKE '%%COMMIT')::int FROM pg_stat_activity WHERE pid = %d",
             server_pid(guard_pq_raw(pq)));
    ck_assert_int_eq(server_number(sql), 1);
    ck_assert_int_eq(server_rows(1), 0);
}

START_TEST(a_deferred_constraint_that_fails_at_commit_is_rolled_back_without_another_rollback)
{
    check_deferred(GUARD_PQ_MARKER_NONE);
    check_deferred(GUARD_PQ_MARKER_ROW);
}
END_TEST

/* Two serializable transactions that each read what the other writes; the first to run commits from within the second's body. */
typedef struct skew {
    int runs;
    int swallow;
} skew;

static void read_and_write(guard_pq *pq, int id)
{
    guard_pq_query_int64(pq, "SELECT count(*) FROM t", 0);
    pq_insert(pq, id);
}

static void write_skew(guard_tx *tx, void *arg)
{
    skew *w = arg;
    GUARD_AUTO(s);
    guard_pq_tx_options serializable = {.isolation = GUARD_PQ_SERIALIZABLE};
    w->runs++;
    read_and_write(guard_pq_of(tx), w->runs * 10);
    if (w->runs == 1) {
        guard_pq *other = guard_pq_open(s, "", NULL);
        guard_tx *between = guard_pq_begin(s, other, &serializable);
        read_and_write(other, 1);
        guard_tx_commit(between);
        if (w->swallow) {
            PQclear(PQexec(guard_pq_raw(guard_pq_of(tx)), "INSERT INTO t VALUES (11)"));
            guard_panic(5, "the program's own error, not the server's");
        }
    }
}

START_TEST(a_serialization_failure_at_commit_runs_the_whole_body_again)
{
    GUARD_AUTO(s);
    skew w = {0};
    guard_result result;
    guard_pq_tx_options options = {.isolation = GUARD_PQ_SERIALIZABLE, .marker = GUARD_PQ_MARKER_ROW};
    guard_pq *pq = pq_open(s);
    ck_assert_int_eq(guard_pq_transact(pq, write_skew, &w, &options, &result), GUARD_COMMITTED);
    ck_assert_int_eq(w.runs, 2);
    ck_assert_uint_eq(result.attempts, 2);
    ck_assert_int_eq(server_rows(10), 0);
    ck_assert_int_eq(server_rows(20), 1);
}
END_TEST

START_TEST(a_swallowed_serialization_failure_runs_the_whole_body_again)
{
    GUARD_AUTO(s);
    skew w = {.swallow = 1};
    guard_result result;
    guard_pq_tx_options options = {.isolation = GUARD_PQ_SERIALIZABLE};
    guard_pq *pq = pq_open(s);
    ck_assert_int_eq(guard_pq_transact(pq, write_skew, &w, &options, &result), GUARD_COMMITTED);
    ck_assert_int_eq(w.runs, 2);
}
END_TEST

START_TEST(the_isolation_and_access_asked_for_are_in_force)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_pq_tx_options options = {.isolation = GUARD_PQ_SERIALIZABLE,
                                   .flags = GUARD_PQ_READ_ONLY | GUARD_PQ_DEFERRABLE};
    guard_tx *tx = guard_pq_begin(s, pq, &options);
    PGresult *now = guard_pq_exec(
        s, pq,
        "SELECT current_setting('transaction_isolation'), "
        "current_setting('transaction_read_only'), current_setting('transaction_deferrable')");
    ck_assert_str_eq(PQgetvalue(now, 0, 0), "serializable");
    ck_assert_str_eq(PQgetvalue(now, 0, 1), "on");
    ck_assert_str_eq(PQgetvalue(now, 0, 2), "on");
    guard_tx_commit(tx);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ 30 */

static void terminate_backend(PGconn *conn)
{
    char sql[160];
    snprintf(sql, sizeof(sql), "SELECT pg_terminate_backend(%d)::int", server_pid(conn));
    ck_assert_int_eq(server_number(sql), 1);
    struct pollfd last_words = {.fd = PQsocket(conn), .events = POLLIN};
    ck_assert_int_eq(poll(&last_words, 1, 10000), 1);
}

static void lose_the_connection(guard_tx *tx, void *arg)
{
    (void)arg;
    pq_insert(guard_pq_of(tx), 1);
    terminate_backend(guard_pq_raw(guard_pq_of(tx)));
}

START_TEST(a_connection_that_is_dead_before_commit_is_sent_is_rolled_back_and_not_in_doubt)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_pq *pq = pq_open(s);
    ck_assert_int_eq(guard_pq_transact(pq, lose_the_connection, NULL, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.domain, GUARD_PQ);
    ck_assert_int_eq(result.error.code, GUARD_PQ_CONNECTION);
    ck_assert_uint_eq(result.attempts, 1);
    ck_assert_int_eq(server_rows(1), 0);
    ck_assert_int_eq(guard_pq_transact(pq, pq_insert_two, NULL, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.code, GUARD_PQ_CONNECTION);
}
END_TEST

START_TEST(an_adopted_connection_that_the_program_closes_is_in_doubt_as_it_may_have_committed)
{
    GUARD_AUTO(s);
    server_reset();
    PGconn *raw = server_connect("");
    guard_pq *pq = guard_pq_adopt(s, raw, NULL);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    pq_insert(pq, 1);
    PQfinish(raw);
    ck_assert_ptr_null(guard_pq_raw(pq));
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_IN_DOUBT);
    server_wait("SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL", 0);
    ck_assert_int_eq(server_rows(1), 0);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_swallowed_error_and_then_commit_is_rolled_back_with_that_errors_sqlstate,
        a_commit_sent_as_sql_is_told_as_ended_elsewhere_and_later_statements_are_refused,
        a_commit_in_flight_when_the_body_fails_is_told_as_it_ended,
        a_deferred_constraint_that_fails_at_commit_is_rolled_back_without_another_rollback,
        a_serialization_failure_at_commit_runs_the_whole_body_again,
        a_swallowed_serialization_failure_runs_the_whole_body_again,
        the_isolation_and_access_asked_for_are_in_force,
        a_connection_that_is_dead_before_commit_is_sent_is_rolled_back_and_not_in_doubt,
        an_adopted_connection_that_the_program_closes_is_in_doubt_as_it_may_have_committed,
    };
    return suite_run("pq_refusal", tests, sizeof tests / sizeof *tests);
}
