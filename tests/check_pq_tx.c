/* SPDX-License-Identifier: MIT */
/* check_pq_tx.c: guarded transactions on PostgreSQL (behaviours 21 to 30), locks and prepared transactions. */
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "server.h"
#include "suite.h"

static guard_pq *open_pq(guard_scope *s)
{
    server_reset();
    return guard_pq_open(s, "", NULL);
}

static void insert(guard_pq *pq, int id)
{
    char sql[64];
    snprintf(sql, sizeof(sql), "INSERT INTO t VALUES (%d)", id);
    guard_pq_exec(NULL, pq, sql);
}

static void commit_it(void *tx)
{
    guard_tx_commit(tx);
}

static void roll_it_back(void *tx)
{
    guard_tx_rollback(tx);
}

static int status_of(guard_pq *pq)
{
    return PQtransactionStatus(guard_pq_raw(pq));
}

/* Statements that the server has seen: none may be sent where a call is refused. */
static int64_t statements_sent(guard_pq *pq)
{
    char sql[128];
    snprintf(sql, sizeof(sql), "SELECT extract(epoch FROM query_start) * 1000000 FROM pg_stat_activity WHERE pid = %d",
             server_pid(guard_pq_raw(pq)));
    return server_number(sql);
}

/* ------------------------------------------------------------------------------------------------------ 21 */

START_TEST(a_scope_left_without_commit_rolls_back)
{
    GUARD_AUTO(s);
    guard_pq *pq = open_pq(s);
    {
        GUARD_AUTO(inner);
        guard_pq_begin(inner, pq, NULL);
        insert(pq, 1);
    }
    ck_assert_int_eq(status_of(pq), PQTRANS_IDLE);
    ck_assert_int_eq(server_rows(1), 0);
}
END_TEST

static void insert_and_panic(void *pq)
{
    GUARD_AUTO(s);
    guard_pq_begin(s, pq, NULL);
    insert(pq, 1);
    guard_panic(42, "no more");
}

START_TEST(a_panic_rolls_back_and_goes_on_with_the_same_value)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = open_pq(s);
    ck_assert_int_eq(guard_run(insert_and_panic, pq, &error), 42);
    ck_assert_str_eq(error.message, "no more");
    ck_assert_int_eq(status_of(pq), PQTRANS_IDLE);
    ck_assert_int_eq(server_rows(1), 0);
}
END_TEST

START_TEST(a_commit_is_committed)
{
    GUARD_AUTO(s);
    guard_pq *pq = open_pq(s);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    insert(pq, 1);
    guard_tx_commit(tx);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_COMMITTED);
    ck_assert_int_eq(server_rows(1), 1);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ 22 */

static void insert_twice(guard_tx *tx, void *arg)
{
    (void)arg;
    insert(guard_pq_of(tx), 2);
    insert(guard_pq_of(tx), 2);
}

static void insert_two(guard_tx *tx, void *arg)
{
    (void)arg;
    insert(guard_pq_of(tx), 2);
}

START_TEST(an_inner_failure_is_handled_and_the_outer_rows_commit)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_pq *pq = open_pq(s);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    insert(pq, 1);
    ck_assert_int_eq(guard_tx_nested(tx, insert_twice, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_str_eq(result.error.sqlstate, "23505");
    ck_assert_str_eq(result.error.constraint, "t_pkey");
    guard_tx_commit(tx);
    ck_assert_int_eq(server_rows(1), 1);
    ck_assert_int_eq(server_rows(2), 0);
}
END_TEST

START_TEST(an_outer_rollback_takes_back_what_was_committed_inside)
{
    GUARD_AUTO(s);
    guard_pq *pq = open_pq(s);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    ck_assert_int_eq(guard_tx_nested(tx, insert_two, NULL, NULL), GUARD_RELEASED);
    guard_tx_rollback(tx);
    ck_assert_int_eq(server_rows(2), 0);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ 23 */

START_TEST(savepoints_may_have_hostile_names_and_repeat_them)
{
    GUARD_AUTO(s);
    static const char *const names[] = {"a\"; ROLLBACK; --",    "a\"; ROLLBACK; --", "'", "\\", "SELECT",
                                        "\xc3\xa4 \xe2\x82\xac"};
    char longest[64];
    guard_pq *pq = open_pq(s);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        guard_tx *inner = guard_tx_begin_savepoint(s, tx, names[i]);
        guard_tx *innermost = guard_tx_begin_savepoint(s, inner, names[i]);
        insert(pq, 100);
        guard_tx_rollback(innermost);
        insert(pq, (int)i);
        guard_tx_commit(inner);
    }
    memset(longest, '"', 63);
    longest[63] = '\0';
    guard_tx_rollback(guard_tx_begin_savepoint(s, tx, longest));
    guard_tx_commit(tx);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t"), sizeof(names) / sizeof(*names));
    ck_assert_int_eq(server_rows(100), 0);
}
END_TEST

static void release_gone(void *pq)
{
    guard_pq_exec(NULL, pq, "ROLLBACK TO guard_1");
}

START_TEST(a_rolled_back_savepoint_is_gone)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = open_pq(s);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    guard_tx_rollback(guard_tx_begin_nested(s, tx));
    ck_assert_int_ne(guard_run(release_gone, pq, &error), 0);
    ck_assert_str_eq(error.sqlstate, "3B001");
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ 24 */

START_TEST(a_second_commit_is_misuse_and_sends_nothing)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = open_pq(s);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    insert(pq, 1);
    guard_tx_commit(tx);
    int64_t sent = statements_sent(pq);
    ck_assert_int_ne(guard_run(commit_it, tx, &error), 0);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
    ck_assert_int_ne(guard_run(roll_it_back, tx, &error), 0);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
    ck_assert_int_eq(statements_sent(pq), sent);
}
END_TEST

START_TEST(a_second_rollback_is_harmless_and_a_commit_after_it_is_misuse)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = open_pq(s);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    guard_tx_rollback(tx);
    int64_t sent = statements_sent(pq);
    guard_tx_rollback(tx);
    ck_assert_int_ne(guard_run(commit_it, tx, &error), 0);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
    ck_assert_int_eq(statements_sent(pq), sent);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ 25 */

START_TEST(in_the_callers_own_transaction_it_is_a_savepoint_and_that_stays_open)
{
    server_reset();
    PGconn *raw = server_connect("");
    PQclear(PQexec(raw, "BEGIN"));
    PQclear(PQexec(raw, "INSERT INTO t VALUES (1)"));
    guard_result result;
    ck_assert_int_eq(guard_pq_transact_raw(raw, insert_two, NULL, NULL, &result), GUARD_RELEASED);
    ck_assert_int_eq(guard_pq_transact_raw(raw, insert_twice, NULL, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_str_eq(result.error.sqlstate, "23505");
    ck_assert_int_eq(PQtransactionStatus(raw), PQTRANS_INTRANS);
    ck_assert_int_eq(server_rows(2), 0);
    PQclear(PQexec(raw, "COMMIT"));
    ck_assert_int_eq(server_rows(1), 1);
    ck_assert_int_eq(server_rows(2), 1);
    PQfinish(raw);
}
END_TEST

START_TEST(a_durable_transaction_inside_the_callers_own_is_an_error)
{
    server_reset();
    PGconn *raw = server_connect("");
    PQclear(PQexec(raw, "BEGIN"));
    guard_result result;
    guard_pq_tx_options options = {.tx = {.durable = 1}};
    ck_assert_int_eq(guard_pq_transact_raw(raw, insert_two, NULL, &options, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.code, GUARD_TX_NOT_OUTERMOST);
    ck_assert_int_eq(PQtransactionStatus(raw), PQTRANS_INTRANS);
    PQfinish(raw);
}
END_TEST

START_TEST(a_durable_transaction_waits_for_the_disk_where_the_session_does_not)
{
    GUARD_AUTO(s);
    guard_pq *pq = open_pq(s);
    guard_pq_tx_options options = {.tx = {.durable = 1}};
    guard_pq_exec(NULL, pq, "SET synchronous_commit = off");
    guard_tx *tx = guard_pq_begin(s, pq, &options);
    PGresult *now = guard_pq_exec(s, pq, "SHOW synchronous_commit");
    ck_assert_str_eq(PQgetvalue(now, 0, 0), "on");
    guard_tx_commit(tx);
    now = guard_pq_exec(s, pq, "SHOW synchronous_commit");
    ck_assert_str_eq(PQgetvalue(now, 0, 0), "off");
}
END_TEST

/* An existing program's connection keeps its blocking mode and its own handlers. */
static int notices;

static void count_notice(void *arg, const PGresult *notice)
{
    (void)arg;
    (void)notice;
    notices++;
}

START_TEST(an_adopted_connection_is_left_as_it_was)
{
    server_reset();
    PGconn *raw = server_connect("");
    {
        GUARD_AUTO(s);
        guard_pq_marker_install(guard_pq_open(s, "", NULL), NULL);
    }
    PQsetNoticeReceiver(raw, count_notice, NULL);
    for (int i = 0; i < 3; i++) {
        GUARD_AUTO(s);
        guard_pq_options options = {.marker = GUARD_PQ_MARKER_ROW, .pooler = GUARD_PQ_POOLER_NONE};
        guard_pq *pq = guard_pq_adopt(s, raw, &options);
        guard_pq_begin(s, pq, NULL);
        insert(pq, 1);
        guard_pq_exec(NULL, pq, "DO $$ BEGIN RAISE NOTICE 'heard'; END $$");
    }
    ck_assert_int_eq(notices, 3);
    ck_assert_int_eq(PQisnonblocking(raw), 0);
    ck_assert_int_eq(PQtransactionStatus(raw), PQTRANS_IDLE);
    PGresult *result = PQexec(raw, "SELECT count(*) FROM t");
    ck_assert_str_eq(PQgetvalue(result, 0, 0), "0");
    PQclear(result);
    result = PQexec(raw, "SELECT count(*) FROM pg_prepared_statements");
    ck_assert_str_eq(PQgetvalue(result, 0, 0), "0");
    PQclear(result);
    PQfinish(raw);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ 26 */

static int hooks;
static guard_pq *hook_pq;

static void first_hook(void *arg)
{
    (void)arg;
    ck_assert_int_eq(server_rows(1), 1);
    hooks = hooks * 10 + 1;
    guard_panic(7, "a hook fails");
}

static void second_hook(void *arg)
{
    (void)arg;
    hooks = hooks * 10 + 2;
    insert(hook_pq, 3);
}

static void with_hooks(guard_tx *tx, void *arg)
{
    (void)arg;
    guard_tx_on_commit(tx, first_hook, NULL);
    guard_tx_on_commit(tx, second_hook, NULL);
    insert(guard_pq_of(tx), 1);
}

START_TEST(hooks_run_in_order_after_the_commit_and_all_of_them)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_pq *pq = hook_pq = open_pq(s);
    ck_assert_int_eq(guard_pq_transact(pq, with_hooks, NULL, NULL, &result), GUARD_COMMITTED);
    ck_assert_int_eq(hooks, 12);
    ck_assert(result.has_hook_error);
    ck_assert_int_eq(result.hook_error.code, 7);
    ck_assert_int_eq(server_rows(3), 1);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ 28 */

static void swallow_an_error(guard_tx *tx, void *arg)
{
    (void)arg;
    PGconn *raw = guard_pq_raw(guard_pq_of(tx));
    insert(guard_pq_of(tx), 1);
    PQclear(PQexec(raw, "INSERT INTO t VALUES (1)"));
    PQclear(PQexec(raw, "INSERT INTO t VALUES (2)")); /* 25P02, which is not why */
}

START_TEST(a_swallowed_error_and_then_commit_is_rolled_back_with_that_errors_sqlstate)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_pq *pq = open_pq(s);
    ck_assert_int_eq(guard_pq_transact(pq, swallow_an_error, NULL, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.domain, GUARD_TX);
    ck_assert_int_eq(result.error.code, GUARD_TX_ROLLED_BACK);
    ck_assert_str_eq(result.error.sqlstate, "23505");
    ck_assert_str_eq(result.error.constraint, "t_pkey");
    ck_assert_int_eq(status_of(pq), PQTRANS_IDLE);
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
                {"SAVEPOINT a; ROLLBACK TO a; COMMIT", GUARD_COMMITTED}};
    for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++) {
        GUARD_AUTO(inner);
        guard_pq *pq = open_pq(inner);
        guard_tx *tx = guard_pq_begin(inner, pq, NULL);
        insert(pq, 1);
        PQclear(PQexec(guard_pq_raw(pq), ends[i].sql));
        ck_assert_int_ne(guard_run(release_gone, pq, &error), 0);
        ck_assert_msg(error.domain == GUARD_TX && error.code == GUARD_TX_OVER, "%s: %s", ends[i].sql, error.message);
        ck_assert_msg(guard_tx_outcome(tx) == ends[i].outcome, "%s: %s", ends[i].sql,
                      guard_outcome_name(guard_tx_outcome(tx)));
        ck_assert(guard_tx_result(tx)->notes & GUARD_NOTE_ENDED_ELSEWHERE);
        ck_assert_int_eq(server_rows(1), ends[i].outcome == GUARD_COMMITTED);
    }
}
END_TEST

/* A COMMIT that is in flight when the body fails: whatever the server made of it is what is told. */
static void send_a_commit_and_panic(guard_tx *tx, void *arg)
{
    insert(guard_pq_of(tx), 1);
    ck_assert_int_eq(PQsendQuery(guard_pq_raw(guard_pq_of(tx)), arg), 1);
    guard_panic(9, "and gone");
}

START_TEST(a_commit_in_flight_when_the_body_fails_is_told_as_it_ended)
{
    static char *const sent[] = {"COMMIT", "SELECT pg_sleep(0.3); COMMIT", "COMMIT AND CHAIN", "ROLLBACK"};
    for (size_t i = 0; i < sizeof sent / sizeof *sent; i++) {
        GUARD_AUTO(s);
        guard_result result;
        guard_pq *pq = open_pq(s);
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
    insert(guard_pq_of(tx), 1);
    guard_pq_exec(NULL, guard_pq_of(tx), "INSERT INTO later VALUES (77)");
}

static void check_deferred(int marker)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_pq_tx_options options = {.marker = marker};
    guard_pq *pq = open_pq(s);
    server_run("CREATE TABLE IF NOT EXISTS parent(id integer PRIMARY KEY);"
               "DROP TABLE IF EXISTS later; CREATE TABLE later(id integer CONSTRAINT later_parent REFERENCES parent "
               "DEFERRABLE "
               "INITIALLY DEFERRED)");
    ck_assert_int_eq(guard_pq_transact(pq, break_a_deferred_constraint, NULL, &options, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.domain, GUARD_PQ);
    ck_assert_str_eq(result.error.sqlstate, "23503");
    ck_assert_str_eq(result.error.constraint, "later_parent");
    ck_assert_int_eq(status_of(pq), PQTRANS_IDLE);
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
    insert(pq, id);
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
    guard_pq *pq = open_pq(s);
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
    guard_pq *pq = open_pq(s);
    ck_assert_int_eq(guard_pq_transact(pq, write_skew, &w, &options, &result), GUARD_COMMITTED);
    ck_assert_int_eq(w.runs, 2);
}
END_TEST

START_TEST(the_isolation_and_access_asked_for_are_in_force)
{
    GUARD_AUTO(s);
    guard_pq *pq = open_pq(s);
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
    insert(guard_pq_of(tx), 1);
    terminate_backend(guard_pq_raw(guard_pq_of(tx)));
}

START_TEST(a_connection_that_is_dead_before_commit_is_sent_is_rolled_back_and_not_in_doubt)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_pq *pq = open_pq(s);
    ck_assert_int_eq(guard_pq_transact(pq, lose_the_connection, NULL, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.domain, GUARD_PQ);
    ck_assert_int_eq(result.error.code, GUARD_PQ_CONNECTION);
    ck_assert_uint_eq(result.attempts, 1);
    ck_assert_int_eq(server_rows(1), 0);
    ck_assert_int_eq(guard_pq_transact(pq, insert_two, NULL, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.code, GUARD_PQ_CONNECTION);
}
END_TEST

START_TEST(an_adopted_connection_that_the_program_closes_is_rolled_back)
{
    GUARD_AUTO(s);
    server_reset();
    PGconn *raw = server_connect("");
    guard_pq *pq = guard_pq_adopt(s, raw, NULL);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    insert(pq, 1);
    PQfinish(raw);
    ck_assert_ptr_null(guard_pq_raw(pq));
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
    server_wait("SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL", 0);
    ck_assert_int_eq(server_rows(1), 0);
}
END_TEST

/* ---------------------------------------------------------------------------------------------------- marker */

static void begin_with_marker(void *pq)
{
    GUARD_AUTO(s);
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW};
    guard_pq_begin(s, pq, &options);
}

START_TEST(a_missing_marker_table_is_a_clear_panic_at_begin)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = open_pq(s);
    server_run("DROP TABLE guard_marker");
    ck_assert_int_ne(guard_run(begin_with_marker, pq, &error), 0);
    ck_assert_int_eq(error.domain, GUARD_PQ);
    ck_assert_int_eq(error.code, GUARD_PQ_MARKER);
    ck_assert_ptr_nonnull(strstr(error.message, "public.guard_marker does not exist"));
    guard_pq_marker_install(pq, NULL);
    ck_assert_int_eq(guard_run(begin_with_marker, pq, &error), 0);
}
END_TEST

START_TEST(an_ordinary_role_uses_the_marker_table_that_was_granted_to_it)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_result result;
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW};
    guard_pq *owner = open_pq(s);
    server_run("DROP TABLE guard_marker; DROP ROLE IF EXISTS \"plain \"\"role\"; CREATE ROLE \"plain \"\"role\" LOGIN; "
               "GRANT INSERT ON t TO \"plain \"\"role\"");
    guard_pq *pq = guard_pq_open(s, "user='plain \"role'", NULL);
    guard_pq_marker_install(owner, NULL);
    ck_assert_int_ne(guard_run(begin_with_marker, pq, &error), 0);
    ck_assert_int_eq(error.code, GUARD_PQ_MARKER);
    ck_assert_ptr_nonnull(strstr(error.message, "may not be used"));
    guard_pq_marker_install(owner, "plain \"role");
    ck_assert_int_eq(guard_pq_transact(pq, insert_two, NULL, &options, &result), GUARD_COMMITTED);
    guard_pq_close(pq);
    server_run("DROP OWNED BY \"plain \"\"role\"; DROP ROLE \"plain \"\"role\"");
}
END_TEST

static int next_id;

static void insert_next(guard_tx *tx, void *arg)
{
    (void)arg;
    insert(guard_pq_of(tx), ++next_id);
}

START_TEST(a_session_keeps_one_marker_row_and_takes_it_back_at_its_end)
{
    GUARD_AUTO(s);
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW};
    guard_pq *pq = open_pq(s);
    for (int i = 0; i < 5; i++) {
        ck_assert_int_eq(guard_pq_transact(pq, insert_next, NULL, &options, NULL), GUARD_COMMITTED);
        ck_assert_int_eq(server_number("SELECT count(*) FROM guard_marker"), 2); /* and the table's own */
    }
    guard_pq_close(pq);
    ck_assert_int_eq(server_number("SELECT count(*) FROM guard_marker"), 1);
}
END_TEST

static void deallocate_and_insert(guard_tx *tx, void *arg)
{
    insert_next(tx, arg);
    PQclear(PQexec(guard_pq_raw(guard_pq_of(tx)), "DEALLOCATE ALL"));
}

static void commit_with_marker(guard_pq *pq, guard_tx_fn *body)
{
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW};
    guard_result result;
    ck_assert_msg(guard_pq_transact(pq, body, NULL, &options, &result) == GUARD_COMMITTED, "%s", result.error.message);
    ck_assert_int_eq(server_number("SELECT count(*) FROM guard_marker WHERE made < 'infinity'"), 1);
}

START_TEST(a_program_that_takes_the_markers_statements_away_commits_all_the_same)
{
    GUARD_AUTO(s);
    guard_pq *pq = open_pq(s);
    commit_with_marker(pq, insert_next);
    guard_pq_exec(NULL, pq, "DISCARD ALL");
    commit_with_marker(pq, insert_next);
    pq = open_pq(s);
    server_run("DELETE FROM guard_marker WHERE made < 'infinity'");
    commit_with_marker(pq, deallocate_and_insert);
    commit_with_marker(pq, insert_next);
    /* Their names may be the program's own. */
    pq = open_pq(s);
    server_run("DELETE FROM guard_marker WHERE made < 'infinity'");
    guard_pq_exec(NULL, pq, "PREPARE guard_marker_put (uuid, bigint) AS SELECT $1, $2");
    commit_with_marker(pq, insert_next);
    commit_with_marker(pq, insert_next);
}
END_TEST

START_TEST(a_prepared_transaction_with_a_marker_does_not_block_the_next_of_its_session)
{
    GUARD_AUTO(s);
    guard_pq_tx_options prepare = {.prepare_as = "later", .marker = GUARD_PQ_MARKER_ROW};
    guard_pq_tx_options next = {.marker = GUARD_PQ_MARKER_ROW, .commit_ms = 20000};
    guard_result result;
    guard_pq *pq = open_pq(s);
    ck_assert_int_eq(guard_pq_transact(pq, insert_next, NULL, &next, NULL), GUARD_COMMITTED);
    ck_assert_int_eq(guard_pq_transact(pq, insert_next, NULL, &prepare, NULL), GUARD_PREPARED);
    guard_pq_exec(NULL, pq, "SET lock_timeout = 1000"); /* what would wait for it fails */
    ck_assert_int_eq(guard_pq_transact(pq, insert_next, NULL, &next, &result), GUARD_COMMITTED);
    guard_pq *other = guard_pq_open(s, "", NULL);
    guard_pq_prepared_commit(other, prepare.prepare_as);
    ck_assert_int_eq(server_number("SELECT count(*) FROM guard_marker WHERE seq IN (1, 3)"), 1);
}
END_TEST

/* ---------------------------------------------------------------------------------------------- advisory locks */

static int64_t advisory_locks(void)
{
    return server_number("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted");
}

START_TEST(a_transactions_advisory_lock_ends_with_it)
{
    GUARD_AUTO(s);
    guard_pq *pq = open_pq(s);
    guard_pq *other = guard_pq_open(s, "", NULL);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    guard_pq_lock(pq, -5, 0);
    guard_tx *rival = guard_pq_begin(s, other, NULL);
    ck_assert_int_eq(guard_pq_try_lock(other, -5), 0);
    guard_tx_rollback(tx);
    ck_assert_int_eq(guard_pq_try_lock(other, -5), 1);
    guard_tx_commit(rival);
    ck_assert_int_eq(advisory_locks(), 0);
}
END_TEST

static void lock_session(void *pq)
{
    GUARD_AUTO(s);
    guard_pq_lock_session(s, pq, 9, 200);
}

START_TEST(a_sessions_advisory_lock_is_released_by_its_scope_and_waited_for_within_its_deadline)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = open_pq(s);
    guard_pq *other = guard_pq_open(s, "", NULL);
    {
        GUARD_AUTO(inner);
        guard_pq_lock_session(inner, pq, 9, 0);
        ck_assert_int_eq(guard_pq_transact(pq, insert_two, NULL, NULL, NULL), GUARD_COMMITTED);
        ck_assert_int_eq(advisory_locks(), 1);
        ck_assert_int_ne(guard_run(lock_session, other, &error), 0);
        ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
    }
    ck_assert_int_eq(advisory_locks(), 0);
    ck_assert_int_eq(guard_run(lock_session, other, &error), 0);
}
END_TEST

/* -------------------------------------------------------------------------------------------------- prepared */

START_TEST(a_prepared_transaction_is_listed_and_committed_or_rolled_back_by_name)
{
    GUARD_AUTO(s);
    guard_pq *pq = open_pq(s);
    for (int keep = 0; keep < 2; keep++) {
        guard_pq_tx_options options = {.prepare_as = "it's \\ one", .marker = keep ? GUARD_PQ_MARKER_ROW : 0};
        guard_result result;
        ck_assert_int_eq(guard_pq_transact(pq, insert_two, NULL, &options, &result), GUARD_PREPARED);
        ck_assert_int_eq(server_rows(2), 0);
        PGresult *left = guard_pq_prepared_list(s, pq);
        ck_assert_int_eq(PQntuples(left), 1);
        ck_assert_str_eq(PQgetvalue(left, 0, 0), options.prepare_as);
        guard_pq *other = guard_pq_open(s, "", NULL);
        if (keep) {
            guard_pq_prepared_commit(other, options.prepare_as);
        } else {
            guard_pq_prepared_rollback(other, options.prepare_as);
        }
        ck_assert_int_eq(server_rows(2), keep);
        ck_assert_int_eq(PQntuples(guard_pq_prepared_list(s, pq)), 0);
    }
}
END_TEST

static void commit_unknown(void *pq)
{
    guard_pq_prepared_commit(pq, "nobody");
}

START_TEST(a_prepared_transaction_that_is_not_there_is_an_error)
{
    GUARD_AUTO(s);
    guard_error error;
    ck_assert_int_ne(guard_run(commit_unknown, open_pq(s), &error), 0);
    ck_assert_str_eq(error.sqlstate, "42704");
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ fork */

START_TEST(a_forked_child_neither_uses_nor_ends_its_parents_transaction)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = open_pq(s);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    insert(pq, 1);
    pid_t child = fork();
    if (child == 0) {
        /* Using it is misuse; and leaving the scope, as a panic in the child would, tells the server nothing. */
        int used = guard_run(release_gone, pq, &error);
        guard_pq_close(pq);
        _exit(used != 0 && error.domain == GUARD_MISUSE ? 0 : 1);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", (unsigned)status);
    insert(pq, 2);
    guard_tx_commit(tx);
    ck_assert_int_eq(server_rows(1), 1);
    ck_assert_int_eq(server_rows(2), 1);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_scope_left_without_commit_rolls_back,
        a_panic_rolls_back_and_goes_on_with_the_same_value,
        a_commit_is_committed,
        an_inner_failure_is_handled_and_the_outer_rows_commit,
        an_outer_rollback_takes_back_what_was_committed_inside,
        savepoints_may_have_hostile_names_and_repeat_them,
        a_rolled_back_savepoint_is_gone,
        a_second_commit_is_misuse_and_sends_nothing,
        a_second_rollback_is_harmless_and_a_commit_after_it_is_misuse,
        in_the_callers_own_transaction_it_is_a_savepoint_and_that_stays_open,
        a_durable_transaction_inside_the_callers_own_is_an_error,
        a_durable_transaction_waits_for_the_disk_where_the_session_does_not,
        an_adopted_connection_is_left_as_it_was,
        hooks_run_in_order_after_the_commit_and_all_of_them,
        a_swallowed_error_and_then_commit_is_rolled_back_with_that_errors_sqlstate,
        a_commit_sent_as_sql_is_told_as_ended_elsewhere_and_later_statements_are_refused,
        a_commit_in_flight_when_the_body_fails_is_told_as_it_ended,
        a_deferred_constraint_that_fails_at_commit_is_rolled_back_without_another_rollback,
        a_serialization_failure_at_commit_runs_the_whole_body_again,
        a_swallowed_serialization_failure_runs_the_whole_body_again,
        the_isolation_and_access_asked_for_are_in_force,
        a_connection_that_is_dead_before_commit_is_sent_is_rolled_back_and_not_in_doubt,
        an_adopted_connection_that_the_program_closes_is_rolled_back,
        a_missing_marker_table_is_a_clear_panic_at_begin,
        an_ordinary_role_uses_the_marker_table_that_was_granted_to_it,
        a_session_keeps_one_marker_row_and_takes_it_back_at_its_end,
        a_program_that_takes_the_markers_statements_away_commits_all_the_same,
        a_prepared_transaction_with_a_marker_does_not_block_the_next_of_its_session,
        a_transactions_advisory_lock_ends_with_it,
        a_sessions_advisory_lock_is_released_by_its_scope_and_waited_for_within_its_deadline,
        a_prepared_transaction_is_listed_and_committed_or_rolled_back_by_name,
        a_prepared_transaction_that_is_not_there_is_an_error,
        a_forked_child_neither_uses_nor_ends_its_parents_transaction,
    };
    return suite_run("pq_tx", tests, sizeof tests / sizeof *tests);
}
