/* SPDX-License-Identifier: MIT */
/*
 * check_pq_bouncer.c: through PgBouncer in transaction mode everything works but session advisory locks, which are refused
 * (behaviour 39). The program starts itself again under tests/with-pgbouncer.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "pq_table.h"
#include "suite.h"
#include "wire_proxy.h"

static char bouncer[256];

static guard_pq *open_pq(guard_scope *s)
{
    server_reset();
    snprintf(bouncer, sizeof(bouncer), "host=%s port=%s", getenv("GUARD_TEST_PGBOUNCER_SOCKET"),
             getenv("GUARD_TEST_PGBOUNCER_PORT"));
    return guard_pq_open(s, bouncer, NULL);
}

/* Rows 1 and, in a savepoint, 2; a third is taken back. */
static void work(guard_tx *tx, void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_pq *pq = guard_pq_of(tx);
    guard_pq_lock(pq, 7, 0);
    pq_insert(pq, 1);
    guard_tx *inner = guard_tx_begin_nested(s, tx);
    pq_insert(pq, 2);
    guard_tx_commit(inner);
    inner = guard_tx_begin_savepoint(s, tx, "a \"name\"");
    pq_insert(pq, 3);
    guard_tx_rollback(inner);
}

static void work_with_first(guard_tx *tx, void *arg)
{
    static const char *const values[] = {"1"};
    guard_pq_params params = {.count = 1, .values = values};
    (void)arg;
    guard_pq_exec_params(NULL, guard_pq_of(tx), "INSERT INTO t VALUES ($1)", &params);
    pq_insert(guard_pq_of(tx), 2);
}

/* The pooler gives the message one server's connection, and keeps that to the end. */
START_TEST(a_begin_that_goes_with_the_first_statement_goes_through)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_pq_tx_options options = {
        .flags = GUARD_PQ_BEGIN_WITH_FIRST, .isolation = GUARD_PQ_REPEATABLE_READ, .marker = GUARD_PQ_MARKER_ROW};
    guard_pq *pq = open_pq(s);
    ck_assert_msg(guard_pq_transact(pq, work_with_first, NULL, &options, &result) == GUARD_COMMITTED, "%s",
                  result.error.message);
    ck_assert_int_eq(server_number("SELECT sum(id) FROM t"), 3);
    ck_assert_int_eq(guard_pq_transact(pq, work_with_first, NULL, &options, &result), GUARD_ROLLED_BACK);
    ck_assert_str_eq(result.error.sqlstate, "23505");
    ck_assert_int_eq(guard_pq_transact(pq, pq_do_nothing, NULL, &options, &result), GUARD_COMMITTED);
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT 1", 0), 1);
}
END_TEST

START_TEST(transactions_with_every_marker_commit)
{
    static const int markers[] = {GUARD_PQ_MARKER_NONE, GUARD_PQ_MARKER_STATUS, GUARD_PQ_MARKER_ROW,
                                  GUARD_PQ_MARKER_PROBE};
    for (size_t i = 0; i < sizeof(markers) / sizeof(*markers); i++) {
        GUARD_AUTO(s);
        guard_result result;
        guard_pq_tx_options options = {.marker = markers[i],
                                       .isolation = GUARD_PQ_REPEATABLE_READ,
                                       .probe = markers[i] == GUARD_PQ_MARKER_PROBE ? "SELECT 1 FROM t WHERE id = 1"
                                                                                    : NULL};
        guard_pq *pq = open_pq(s);
        ck_assert_msg(guard_pq_transact(pq, work, NULL, &options, &result) == GUARD_COMMITTED, "%s",
                      result.error.message);
        ck_assert_int_eq(server_number("SELECT sum(id) FROM t"), 3);
    }
}
END_TEST

static void work_and_lose_the_answer(guard_tx *tx, void *arg)
{
    wire_proxy *proxy = arg;
    unsigned wire = wire_proxy_connections(proxy);
    work(tx, NULL);
    wire_proxy_mark(proxy, wire);
    wire_proxy_cut_after(proxy, wire, WIRE_TO_CLIENT, 0, WIRE_RST | WIRE_DRAIN);
}

static void work_and_lose_the_request(guard_tx *tx, void *arg)
{
    wire_proxy *proxy = arg;
    unsigned wire = wire_proxy_connections(proxy);
    work(tx, NULL);
    wire_proxy_mark(proxy, wire);
    wire_proxy_cut_after(proxy, wire, WIRE_TO_SERVER, 5, WIRE_RST);
}

START_TEST(a_lost_commit_is_resolved)
{
    static guard_tx_fn *const bodies[] = {work_and_lose_the_answer, work_and_lose_the_request};
    for (int marker = GUARD_PQ_MARKER_ROW; marker <= GUARD_PQ_MARKER_PROBE; marker++) {
        for (int i = 0; i < 2; i++) {
            GUARD_AUTO(s);
            guard_result result;
            guard_pq_tx_options options = {
                .marker = marker, .probe = marker == GUARD_PQ_MARKER_PROBE ? "SELECT 1 FROM t WHERE id = 1" : NULL};
            open_pq(s);
            wire_proxy *proxy = wire_proxy_open(getenv("GUARD_TEST_PGBOUNCER_SOCKET"),
                                                atoi(getenv("GUARD_TEST_PGBOUNCER_PORT")), NULL);
            ck_assert_ptr_nonnull(proxy);
            char conninfo[300];
            snprintf(conninfo, sizeof(conninfo), "%s", wire_proxy_conninfo(proxy));
            guard_pq *pq = guard_pq_open(s, conninfo, NULL);
            guard_pq_transact(pq, bodies[i], proxy, &options, &result);
            int64_t rows = server_rows(1);
            ck_assert_msg(result.outcome == (rows == 1 ? GUARD_COMMITTED : GUARD_ROLLED_BACK), "%s (%s), found %d rows",
                          guard_outcome_name(result.outcome), result.has_error ? result.error.message : "", (int)rows);
            ck_assert_int_eq(rows, i == 0);
            wire_proxy_close(proxy);
        }
    }
}
END_TEST

START_TEST(statements_copy_streams_and_pipelines_work)
{
    GUARD_AUTO(s);
    const char *values[] = {"4"};
    guard_pq_params params = {.count = 1, .values = values};
    guard_pq *pq = open_pq(s);
    PGresult *result = guard_pq_exec_params(s, pq, "SELECT $1::int + 1", &params);
    ck_assert_str_eq(PQgetvalue(result, 0, 0), "5");
    guard_pq_copy *copy = guard_pq_copy_in(s, pq, "COPY t FROM STDIN");
    guard_pq_copy_put(copy, "1\tone\n2\ttwo\n", 12);
    ck_assert_int_eq(guard_pq_copy_end(copy), 2);
    const char *row;
    copy = guard_pq_copy_out(s, pq, "COPY t TO STDOUT");
    ck_assert_uint_eq(guard_pq_copy_get(copy, &row), 6);
    guard_pq_copy_close(copy);
    guard_pq_stream *stream = guard_pq_stream_open(s, pq, "SELECT repeat('x', 1000), generate_series(1, 10000000)",
                                                   NULL);
    ck_assert_ptr_nonnull(guard_pq_stream_next(stream));
    guard_pq_stream_close(stream);
    guard_pq_pipeline *pipeline = guard_pq_pipeline_open(s, pq);
    for (int i = 0; i < 10; i++) {
        guard_pq_pipeline_send(pipeline, "SELECT $1::int", &params);
    }
    guard_pq_pipeline_end(pipeline);
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT count(*) FROM t", 0), 2);
}
END_TEST

static void sleep_long(guard_tx *tx, void *arg)
{
    (void)arg;
    pq_insert(guard_pq_of(tx), 1);
    guard_pq_statement_ms(guard_pq_of(tx), 100);
    guard_pq_exec(NULL, guard_pq_of(tx), "SELECT pg_sleep(60)");
}

START_TEST(a_statement_past_its_deadline_is_cancelled_and_rolled_back)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_pq *pq = open_pq(s);
    ck_assert_int_eq(guard_pq_transact(pq, sleep_long, NULL, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.domain, GUARD_TIMEOUT);
    ck_assert_str_eq(result.error.sqlstate, "57014");
    guard_pq_statement_ms(pq, 0);
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT 1", 0), 1);
    ck_assert_int_eq(server_rows(1), 0);
}
END_TEST

START_TEST(a_prepared_transaction_is_committed_by_name)
{
    GUARD_AUTO(s);
    guard_pq_tx_options options = {.prepare_as = "through the bouncer"};
    guard_pq *pq = open_pq(s);
    ck_assert_int_eq(guard_pq_transact(pq, work, NULL, &options, NULL), GUARD_PREPARED);
    guard_pq_prepared_commit(pq, options.prepare_as);
    ck_assert_int_eq(server_rows(1), 1);
}
END_TEST

START_TEST(the_servers_settings_are_not_changed_for_the_next_client)
{
    GUARD_AUTO(s);
    guard_pq *pq = open_pq(s);
    PGresult *result = guard_pq_exec(s, pq, "SHOW client_connection_check_interval");
    ck_assert_str_eq(PQgetvalue(result, 0, 0), "0");
}
END_TEST

static void lock_session(void *pq)
{
    GUARD_AUTO(s);
    guard_pq_lock_session(s, pq, 1, 0);
}

START_TEST(session_advisory_locks_are_refused_clearly)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = open_pq(s);
    ck_assert_int_ne(guard_run(lock_session, pq, &error), 0);
    ck_assert_int_eq(error.domain, GUARD_PQ);
    ck_assert_int_eq(error.code, GUARD_PQ_POOLER);
    PGconn *raw = server_connect(bouncer);
    guard_pq *adopted = guard_pq_adopt(s, raw, NULL);
    ck_assert_int_ne(guard_run(lock_session, adopted, &error), 0);
    ck_assert_int_eq(error.code, GUARD_PQ_POOLER);
    guard_pq_close(adopted);
    PQfinish(raw);
    ck_assert_int_eq(server_number("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"), 0);
    guard_pq *direct = guard_pq_open(s, "", NULL);
    ck_assert_int_eq(guard_run(lock_session, direct, &error), 0);
}
END_TEST

START_TEST(a_pool_works_through_it)
{
    GUARD_AUTO(s);
    guard_pq_close(open_pq(s));
    guard_pq_pool *pool = guard_pq_pool_open(s, bouncer, NULL);
    for (int i = 0; i < 20; i++) {
        GUARD_AUTO(inner);
        guard_pq *pq = guard_pq_pool_take(inner, pool, 0);
        guard_pq_begin(inner, pq, NULL);
        pq_insert(pq, 1);
    }
    ck_assert_int_eq(server_rows(1), 0);
}
END_TEST

int main(int argc, char **argv)
{
    const TTest *const tests[] = {
        transactions_with_every_marker_commit,
        a_lost_commit_is_resolved,
        statements_copy_streams_and_pipelines_work,
        a_statement_past_its_deadline_is_cancelled_and_rolled_back,
        a_prepared_transaction_is_committed_by_name,
        the_servers_settings_are_not_changed_for_the_next_client,
        session_advisory_locks_are_refused_clearly,
        a_pool_works_through_it,
        a_begin_that_goes_with_the_first_statement_goes_through,
    };
    if (getenv("GUARD_TEST_PGBOUNCER_PORT") == NULL) {
        char script[512];
        snprintf(script, sizeof(script), "%s/tests/with-pgbouncer", getenv("srcdir") != NULL ? getenv("srcdir") : ".");
        (void)argc;
        execl(script, script, argv[0], (char *)NULL);
        perror(script);
        return 99;
    }
    return suite_run("pq_bouncer", tests, sizeof tests / sizeof *tests);
}
