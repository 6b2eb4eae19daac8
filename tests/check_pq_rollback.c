/* SPDX-License-Identifier: MIT */
/* check_pq_rollback.c: getting out of whatever is in flight, in bounded time (behaviours 35 to 37). */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "calls.h"
#include "pq_table.h"
#include "suite.h"

/* The connection is at rest and works. */
static void check_idle(guard_pq *pq)
{
    ck_assert_int_eq(PQtransactionStatus(guard_pq_raw(pq)), PQTRANS_IDLE);
    ck_assert_int_eq(PQpipelineStatus(guard_pq_raw(pq)), PQ_PIPELINE_OFF);
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT 1", 0), 1);
    ck_assert_int_eq(server_rows(1), 0);
}

static guard_tx *begin_and_insert(guard_scope *s, guard_pq *pq)
{
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (1)");
    return tx;
}

/* Rolls back, which has to be over long before what is in flight would be. */
static void roll_back_quickly(guard_pq *pq, guard_tx *tx)
{
    guard_error error;
    int64_t begun = now_ms();
    ck_assert_msg(guard_run(call_rollback, tx, &error) == 0, "%s", error.message);
    ck_assert_int_lt(now_ms() - begun, 30000);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
    check_idle(pq);
}

/* ------------------------------------------------------------------------------------------------------ 35 */

static void commit_is_refused(guard_tx *tx)
{
    guard_error error;
    ck_assert_int_ne(guard_run(call_commit, tx, &error), 0);
    ck_assert_int_eq(error.domain, GUARD_PQ);
    ck_assert_int_eq(error.code, GUARD_PQ_BUSY);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_OPEN);
}

START_TEST(a_commit_while_copy_in_is_open_is_refused_and_possible_after_its_end)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_tx *tx = begin_and_insert(s, pq);
    guard_pq_copy *copy = guard_pq_copy_in(s, pq, "COPY t FROM STDIN");
    guard_pq_copy_put(copy, "2\tx\n", 4);
    commit_is_refused(tx);
    ck_assert_int_eq(guard_pq_copy_end(copy), 1);
    guard_tx_commit(tx);
    ck_assert_int_eq(server_rows(2), 1);
}
END_TEST

START_TEST(a_commit_while_a_raw_copy_in_is_open_is_refused_and_rolled_back)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_tx *tx = begin_and_insert(s, pq);
    PQclear(PQexec(guard_pq_raw(pq), "COPY t FROM STDIN"));
    ck_assert_int_eq(PQputCopyData(guard_pq_raw(pq), "2\tx\n", 4), 1);
    commit_is_refused(tx);
    roll_back_quickly(pq, tx);
    ck_assert_int_eq(server_rows(2), 0);
}
END_TEST

START_TEST(a_copy_in_whose_scope_closes_is_given_up)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    {
        GUARD_AUTO(inner);
        guard_pq_copy *copy = guard_pq_copy_in(inner, pq, "COPY t FROM STDIN");
        for (int i = 1; i < 100000; i++) {
            char line[32];
            guard_pq_copy_put(copy, line, (size_t)snprintf(line, sizeof(line), "%d\tx\n", i));
        }
    }
    check_idle(pq);
}
END_TEST

START_TEST(a_copy_out_open_at_rollback_is_cancelled_and_drained)
{
    GUARD_AUTO(s);
    const char *row;
    guard_pq *pq = pq_open(s);
    guard_tx *tx = begin_and_insert(s, pq);
    guard_pq_copy *copy = guard_pq_copy_out(s, pq,
                                            "COPY (SELECT repeat('x', 1000), generate_series(1, 100000000)) TO STDOUT");
    ck_assert_uint_eq(guard_pq_copy_get(copy, &row), 1003);
    roll_back_quickly(pq, tx);
}
END_TEST

START_TEST(a_raw_copy_out_open_at_rollback_is_cancelled_and_drained)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_tx *tx = begin_and_insert(s, pq);
    PQclear(PQexec(guard_pq_raw(pq), "COPY (SELECT repeat('x', 1000), generate_series(1, 100000000)) TO STDOUT"));
    roll_back_quickly(pq, tx);
}
END_TEST

START_TEST(a_stream_open_at_rollback_is_cancelled_and_drained)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_tx *tx = begin_and_insert(s, pq);
    guard_pq_stream *stream = guard_pq_stream_open(s, pq, "SELECT repeat('x', 1000), generate_series(1, 100000000)",
                                                   NULL);
    ck_assert_int_eq(PQntuples(guard_pq_stream_next(stream)), 1);
    commit_is_refused(tx);
    roll_back_quickly(pq, tx);
}
END_TEST

START_TEST(a_raw_single_row_result_open_at_rollback_is_cancelled_and_drained)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_tx *tx = begin_and_insert(s, pq);
    PGconn *raw = guard_pq_raw(pq);
    ck_assert(PQsendQuery(raw, "SELECT repeat('x', 1000), generate_series(1, 100000000)"));
    ck_assert(PQsetSingleRowMode(raw));
    PQclear(PQgetResult(raw));
    roll_back_quickly(pq, tx);
}
END_TEST

START_TEST(a_savepoint_is_rolled_back_with_a_copy_in_flight_and_the_outer_rows_commit)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_tx *tx = begin_and_insert(s, pq);
    guard_tx *nested = guard_tx_begin_nested(s, tx);
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (2)");
    PQclear(PQexec(guard_pq_raw(pq), "COPY t FROM STDIN"));
    guard_tx_rollback(nested);
    guard_tx_commit(tx);
    ck_assert_int_eq(server_rows(1), 1);
    ck_assert_int_eq(server_rows(2), 0);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ 36 */

START_TEST(a_running_statement_at_rollback_is_cancelled)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_tx *tx = begin_and_insert(s, pq);
    ck_assert(PQsendQuery(guard_pq_raw(pq), "SELECT pg_sleep(60)"));
    roll_back_quickly(pq, tx);
}
END_TEST

static void sleep_long(void *pq)
{
    guard_pq_exec(NULL, pq, "SELECT pg_sleep(60)");
}

START_TEST(a_statement_past_its_deadline_is_cancelled_and_the_transaction_can_be_rolled_back)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = pq_open(s);
    guard_tx *tx = begin_and_insert(s, pq);
    guard_pq_statement_ms(pq, 100);
    int64_t begun = now_ms();
    ck_assert_int_ne(guard_run(sleep_long, pq, &error), 0);
    ck_assert_int_lt(now_ms() - begun, 30000);
    ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
    ck_assert_str_eq(error.sqlstate, "57014");
    guard_pq_statement_ms(pq, 0);
    roll_back_quickly(pq, tx);
}
END_TEST

static void stop_processes(const int *pids, int signal)
{
    for (int i = 0; pids[i] != 0; i++) {
        server_signal(pids[i], signal);
    }
}

/* A server that is stopped takes neither a cancel nor a ROLLBACK. */
START_TEST(a_server_that_is_stopped_does_not_hold_a_rollback_past_its_deadline)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = pq_open(s);
    guard_pq_tx_options options = {.rollback_ms = 500};
    int pids[3] = {server_pid(guard_pq_raw(pq)), server_postmaster(), 0};
    guard_tx *tx = guard_pq_begin(s, pq, &options);
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (1)");
    guard_pq_stream_open(s, pq, "SELECT pg_sleep(60)", NULL);
    stop_processes(pids, SIGSTOP);
    int64_t begun = now_ms();
    int code = guard_run(call_rollback, tx, &error);
    int64_t took = now_ms() - begun;
    guard_outcome outcome = guard_tx_outcome(tx);
    uint32_t notes = guard_tx_result(tx)->notes;
    stop_processes(pids, SIGCONT);
    ck_assert_int_ne(code, 0);
    ck_assert_int_ge(took, 400);
    ck_assert_int_lt(took, 20000);
    ck_assert_int_eq(outcome, GUARD_ROLLED_BACK);
    ck_assert(notes & GUARD_NOTE_POISONED);
    server_wait("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid()",
                0);
    ck_assert_int_eq(server_rows(1), 0);
}
END_TEST

START_TEST(nothing_is_begun_on_a_connection_whose_rollback_failed)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_result result;
    guard_pq *pq = pq_open(s);
    guard_pq_tx_options options = {.rollback_ms = 100};
    guard_tx *tx = guard_pq_begin(s, pq, &options);
    int pids[2] = {server_pid(guard_pq_raw(pq)), 0};
    stop_processes(pids, SIGSTOP);
    int code = guard_run(call_rollback, tx, &error);
    stop_processes(pids, SIGCONT);
    ck_assert_int_ne(code, 0);
    ck_assert_int_eq(guard_pq_transact(pq, pq_do_nothing, NULL, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.domain, GUARD_TX);
    ck_assert_int_eq(result.error.code, GUARD_TX_POISONED);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ 37 */

START_TEST(an_aborted_pipeline_at_rollback_is_synced_and_drained)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_tx *tx = begin_and_insert(s, pq);
    guard_pq_pipeline *pipeline = guard_pq_pipeline_open(s, pq);
    guard_pq_pipeline_send(pipeline, "INSERT INTO t VALUES (2)", NULL);
    guard_pq_pipeline_send(pipeline, "SELECT 1/0", NULL);
    guard_pq_pipeline_send(pipeline, "INSERT INTO t VALUES (3)", NULL);
    commit_is_refused(tx);
    roll_back_quickly(pq, tx);
}
END_TEST

START_TEST(a_raw_pipeline_at_rollback_is_synced_and_drained)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_tx *tx = begin_and_insert(s, pq);
    PGconn *raw = guard_pq_raw(pq);
    ck_assert(PQenterPipelineMode(raw));
    for (int i = 0; i < 5; i++) {
        ck_assert(PQsendQueryParams(raw, i == 2 ? "SELECT 1/0" : "SELECT 1", 0, NULL, NULL, NULL, NULL, 0));
        if (i % 2 == 1) {
            ck_assert(PQpipelineSync(raw));
        }
    }
    PQclear(PQgetResult(raw));
    roll_back_quickly(pq, tx);
}
END_TEST

START_TEST(a_pipeline_that_still_runs_at_rollback_is_cancelled)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_tx *tx = begin_and_insert(s, pq);
    guard_pq_pipeline *pipeline = guard_pq_pipeline_open(s, pq);
    guard_pq_pipeline_send(pipeline, "SELECT pg_sleep(60)", NULL);
    guard_pq_pipeline_sync(pipeline);
    guard_pq_pipeline_send(pipeline, "SELECT 1", NULL);
    roll_back_quickly(pq, tx);
}
END_TEST

/* A process has this signal waiting for it. */
static int has_pending(int pid, int signal)
{
    char path[64], line[256];
    unsigned long long pending = 0;
    snprintf(path, sizeof(path), "/proc/%d/status", pid);
    FILE *status = fopen(path, "r");
    ck_assert_msg(status != NULL, "there is no %s", path);
    while (fgets(line, sizeof(line), status) != NULL) {
        unsigned long long mask;
        if (sscanf(line, "SigPnd: %llx", &mask) == 1 || sscanf(line, "ShdPnd: %llx", &mask) == 1) {
            pending |= mask;
        }
    }
    fclose(status);
    return (int)(pending >> (signal - 1) & 1);
}

/* Lets a stopped process go on as soon as a cancel has reached it. */
static void *go_on_after_cancel(void *arg)
{
    const int *pid = arg;
    while (!has_pending(*pid, SIGINT)) {
        pause_ms(1);
    }
    server_signal(*pid, SIGCONT);
    return NULL;
}

/* Stopped before it reads the statement, the server has nothing to cancel when the cancel comes, and forgets it. */
START_TEST(a_cancel_that_comes_before_its_statement_is_sent_again)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_tx *tx = begin_and_insert(s, pq);
    int pid = server_pid(guard_pq_raw(pq));
    pthread_t thread;
    server_signal(pid, SIGSTOP);
    ck_assert(PQsendQuery(guard_pq_raw(pq), "SELECT pg_sleep(60)"));
    ck_assert_int_eq(pthread_create(&thread, NULL, go_on_after_cancel, &pid), 0);
    roll_back_quickly(pq, tx);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
}
END_TEST

/* ----------------------------------------------------------------------------------------- answers in step -- */

static void copy_by_params(void *pq)
{
    guard_pq_params params = {.count = 0};
    guard_pq_exec_params(NULL, pq, "COPY t FROM STDIN", &params);
}

static void raw_copy_by_params(void *pq)
{
    PGresult *result = PQexecParams(guard_pq_raw(pq), "COPY t FROM STDIN", 0, NULL, NULL, NULL, NULL, 0);
    ck_assert_int_eq(PQresultStatus(result), PGRES_COPY_IN);
    PQclear(result);
}

typedef struct question {
    guard_pq *pq;
    int64_t number;
    int64_t answer;
} question;

static void ask(void *memory)
{
    question *q = memory;
    char sql[40];
    snprintf(sql, sizeof sql, "SELECT %lld", (long long)q->number);
    q->answer = guard_pq_query_int64(q->pq, sql, -1);
}

/* A COPY in the transaction is left open. Then each answer is that of its question, or the connection is known to be gone. */
static void check_in_step(guard_fn *copy)
{
    for (int i = 1; i <= 60; i++) {
        GUARD_AUTO(s);
        guard_error error;
        guard_pq *pq = guard_pq_open(s, "", NULL);
        guard_tx *tx = guard_pq_begin(s, pq, NULL);
        guard_run(copy, pq, &error);
        guard_run(call_rollback, tx, &error);
        ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
        question q = {pq, i, 0};
        if (guard_run(ask, &q, &error) == 0) {
            ck_assert_msg(q.answer == i, "the answer to SELECT %d was %lld", i, (long long)q.answer);
        } else {
            ck_assert_int_eq(error.code, GUARD_PQ_CONNECTION);
        }
        guard_pq_close(pq);
    }
}

/* By the extended protocol libpq has sent a Sync behind the COPY, and sends another one behind its end. */
START_TEST(after_a_copy_in_by_the_extended_protocol_is_given_up_answers_are_in_step)
{
    server_reset();
    check_in_step(copy_by_params);
    check_in_step(raw_copy_by_params);
}
END_TEST

/* The server fails before it has read a byte of it, and answers both. */
START_TEST(after_a_copy_in_that_the_server_does_not_read_answers_are_in_step)
{
    server_reset();
    server_run("CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
               "RAISE EXCEPTION 'refused'; END $$;"
               "CREATE TRIGGER refuse BEFORE INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION refuse()");
    check_in_step(copy_by_params);
    check_in_step(raw_copy_by_params);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_commit_while_copy_in_is_open_is_refused_and_possible_after_its_end,
        a_commit_while_a_raw_copy_in_is_open_is_refused_and_rolled_back,
        a_copy_in_whose_scope_closes_is_given_up,
        a_copy_out_open_at_rollback_is_cancelled_and_drained,
        a_raw_copy_out_open_at_rollback_is_cancelled_and_drained,
        a_stream_open_at_rollback_is_cancelled_and_drained,
        a_raw_single_row_result_open_at_rollback_is_cancelled_and_drained,
        a_savepoint_is_rolled_back_with_a_copy_in_flight_and_the_outer_rows_commit,
        a_running_statement_at_rollback_is_cancelled,
        a_statement_past_its_deadline_is_cancelled_and_the_transaction_can_be_rolled_back,
        a_server_that_is_stopped_does_not_hold_a_rollback_past_its_deadline,
        nothing_is_begun_on_a_connection_whose_rollback_failed,
        an_aborted_pipeline_at_rollback_is_synced_and_drained,
        a_raw_pipeline_at_rollback_is_synced_and_drained,
        a_pipeline_that_still_runs_at_rollback_is_cancelled,
        after_a_copy_in_by_the_extended_protocol_is_given_up_answers_are_in_step,
        after_a_copy_in_that_the_server_does_not_read_answers_are_in_step,
        a_cancel_that_comes_before_its_statement_is_sent_again,
    };
    return suite_run("pq_rollback", tests, sizeof tests / sizeof *tests);
}
