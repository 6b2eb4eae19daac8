/* SPDX-License-Identifier: MIT */
/* check_pq.c: connections, statements, COPY, streams and pipelines. */
#include <libpq-events.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "fault_memory.h"
#include "pq_table.h"
#include "suite.h"
#include "wire_proxy.h"

#define PASSWORD "s3cret-Passw0rd"

/* ------------------------------------------------------------------------------------------------ connections */

typedef struct opening {
    const char *conninfo;
    guard_pq_options options;
} opening;

static void open_it(void *arg)
{
    opening *o = arg;
    GUARD_AUTO(s);
    guard_pq_open(s, o->conninfo, &o->options);
}

START_TEST(no_error_of_connecting_shows_the_password)
{
    static const char *const texts[] = {
        "host=127.0.0.1 port=1 user=u password=" PASSWORD,
        "postgresql://u:" PASSWORD "@127.0.0.1:1/d",
        "password=" PASSWORD " dbname=none_there",
        "password " PASSWORD,
        "password='" PASSWORD,
        "postgresql://u:" PASSWORD "@[::1/d",
        "postgresql://u@h/d?" PASSWORD "=1",
        "options='-c nonsense=" PASSWORD "' password=" PASSWORD,
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
        char text[2048];
        guard_error error;
        opening o = {.conninfo = texts[i]};
        ck_assert_msg(guard_run(open_it, &o, &error) != 0, "%s", texts[i]);
        guard_error_format(&error, text, sizeof(text));
        ck_assert_msg(strstr(text, PASSWORD) == NULL, "%s", text);
        ck_assert_int_eq(error.domain, GUARD_PQ);
        ck_assert_int_eq(error.code, GUARD_PQ_CONNECTION);
        ck_assert_str_ne(error.message, "");
    }
}
END_TEST

START_TEST(a_connection_is_described_without_its_password)
{
    GUARD_AUTO(s);
    char text[1024];
    char small[16];
    guard_pq *pq = guard_pq_open(s, "password='" PASSWORD "' application_name='it\\'s me'", NULL);
    size_t length = guard_pq_conninfo(pq, text, sizeof(text));
    ck_assert_uint_eq(length, strlen(text));
    ck_assert_ptr_null(strstr(text, PASSWORD));
    ck_assert_ptr_null(strstr(text, "password"));
    ck_assert_ptr_nonnull(strstr(text, "dbname='postgres'"));
    ck_assert_uint_eq(guard_pq_conninfo(pq, small, sizeof(small)), length);
    ck_assert_int_eq(strncmp(small, text, sizeof(small) - 1), 0);
    guard_pq_open(s, text, NULL); /* and it is a conninfo text */
}
END_TEST

START_TEST(connecting_waits_no_longer_than_its_deadline)
{
    guard_error error;
    wire_proxy *proxy = server_proxy();
    wire_proxy_admit(proxy, WIRE_SILENT);
    opening o = {.conninfo = wire_proxy_conninfo(proxy), .options = {.connect_ms = 300}};
    int64_t begun = now_ms();
    ck_assert_int_ne(guard_run(open_it, &o, &error), 0);
    ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
    ck_assert_int_ge(now_ms() - begun, 290);
    ck_assert_int_lt(now_ms() - begun, 20000);
    wire_proxy_close(proxy);
}
END_TEST

START_TEST(a_silent_host_leaves_time_for_the_next_one)
{
    GUARD_AUTO(s);
    char conninfo[400];
    wire_proxy *proxy = server_proxy();
    wire_proxy_admit(proxy, WIRE_SILENT);
    snprintf(conninfo, sizeof(conninfo), "host=%s,%s port=%d,%s target_session_attrs=read-write",
             wire_proxy_host(proxy), getenv("GUARD_TEST_PG_SOCKET"), wire_proxy_port(proxy),
             getenv("GUARD_TEST_PG_PORT"));
    guard_pq_options options = {.connect_ms = 4000};
    int64_t begun = now_ms();
    guard_pq *pq = guard_pq_open(s, conninfo, &options);
    ck_assert_int_ge(now_ms() - begun, 1900);
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT 1", 0), 1);
    wire_proxy_close(proxy);
}
END_TEST

static void check_setting(guard_pq *pq, const char *name, const char *value)
{
    GUARD_AUTO(s);
    char sql[100];
    snprintf(sql, sizeof(sql), "SHOW %s", name);
    ck_assert_str_eq(PQgetvalue(guard_pq_exec(s, pq, sql), 0, 0), value);
}

START_TEST(the_server_is_told_to_notice_that_we_are_gone_unless_somebody_has_said_otherwise)
{
    GUARD_AUTO(s);
    guard_pq *pq = guard_pq_open(s, "options='-c idle_in_transaction_session_timeout=5s'", NULL);
    check_setting(pq, "client_connection_check_interval", "2s");
    check_setting(pq, "idle_in_transaction_session_timeout", "5s");
    guard_pq_options options = {.check_ms = -1, .idle_ms = 7000};
    pq = guard_pq_open(s, "", &options);
    check_setting(pq, "client_connection_check_interval", "0");
    check_setting(pq, "idle_in_transaction_session_timeout", "7s");
}
END_TEST

START_TEST(reserved_words_that_are_not_zero_are_misuse)
{
    guard_error error;
    opening o = {.conninfo = "", .options = {.reserved = {0, 1}}};
    ck_assert_int_ne(guard_run(open_it, &o, &error), 0);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
    opening table = {.conninfo = "", .options = {.marker_table = "t; DROP TABLE t"}};
    ck_assert_int_ne(guard_run(open_it, &table, &error), 0);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
}
END_TEST

/* ------------------------------------------------------------------------------------------------- statements */

static const char *statement;
static guard_pq *pq_of_test;

static void run_statement(void *arg)
{
    guard_pq_exec(arg, pq_of_test, statement);
}

static guard_error error_of(guard_pq *pq, const char *sql)
{
    guard_error error;
    statement = sql;
    pq_of_test = pq;
    ck_assert_msg(guard_run(run_statement, NULL, &error) != 0, "%s", sql);
    return error;
}

START_TEST(an_error_has_the_servers_sqlstate_message_detail_hint_and_constraint)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (1)");
    guard_error error = error_of(pq, "INSERT INTO t VALUES (1)");
    ck_assert_int_eq(error.domain, GUARD_PQ);
    ck_assert_int_eq(error.code, GUARD_PQ_SERVER);
    ck_assert_str_eq(error.sqlstate, "23505");
    ck_assert_str_eq(error.constraint, "t_pkey");
    ck_assert_str_eq(error.message, "duplicate key value violates unique constraint \"t_pkey\"");
    ck_assert_str_eq(error.detail, "Key (id)=(1) already exists.");
    ck_assert_str_eq(error.file, "check_pq.c");
    error = error_of(pq, "SELECT nte FROM t");
    ck_assert_ptr_nonnull(strstr(error.hint, "t.note"));
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT 1", 0), 1);
}
END_TEST

START_TEST(statements_return_their_last_result_and_count_their_rows)
{
    GUARD_AUTO(s);
    const char *values[] = {"7", NULL};
    guard_pq_params params = {.count = 2, .values = values};
    guard_pq *pq = pq_open(s);
    ck_assert_ptr_null(guard_pq_exec(NULL, pq, "INSERT INTO t SELECT generate_series(1, 5)"));
    ck_assert_int_eq(guard_pq_changes(pq), 5);
    PGresult *last = guard_pq_exec(s, pq, "SELECT 1; SELECT 2; SELECT 3");
    ck_assert_str_eq(PQgetvalue(last, 0, 0), "3");
    guard_pq_exec_params(NULL, pq, "INSERT INTO t VALUES ($1, $2)", &params);
    guard_pq_prepare(pq, "count", "SELECT count(*) FROM t WHERE id > $1", NULL);
    params.count = 1;
    ck_assert_str_eq(PQgetvalue(guard_pq_exec_prepared(s, pq, "count", &params), 0, 0), "0");
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT max(id) FROM t", -1), 7);
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT id FROM t WHERE false", -1), -1);
    ck_assert_int_eq(error_of(pq, "SELECT 1; SELECT 1/0; SELECT 3").code, GUARD_PQ_SERVER);
}
END_TEST

START_TEST(a_copy_given_to_exec_is_refused_and_the_connection_usable)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    ck_assert_int_eq(error_of(pq, "COPY t FROM STDIN").code, GUARD_PQ_ANSWER);
    ck_assert_int_eq(error_of(pq, "COPY (SELECT generate_series(1, 100000)) TO STDOUT").code, GUARD_PQ_ANSWER);
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT 1", 0), 1);
}
END_TEST

START_TEST(a_large_statement_to_a_server_that_does_not_read_ends_at_its_deadline)
{
    GUARD_AUTO(s);
    size_t size = 32 << 20;
    char *sql = malloc(size);
    memset(sql, ' ', size - 1);
    sql[size - 1] = '\0';
    server_reset();
    wire_proxy *proxy = server_proxy();
    guard_pq_options options = {.statement_ms = 300, .rollback_ms = 300};
    guard_pq *pq = guard_pq_open(s, wire_proxy_conninfo(proxy), &options);
    wire_proxy_mark(proxy, 1);
    wire_proxy_stop_after(proxy, 1, WIRE_TO_SERVER, 1000);
    int64_t begun = now_ms();
    guard_error error = error_of(pq, sql);
    ck_assert_int_lt(now_ms() - begun, 20000);
    ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
    free(sql);
    wire_proxy_close(proxy);
}
END_TEST

/* ------------------------------------------------------------------------------------ COPY, streams, pipelines */

static guard_pq_copy *copy_of_test;

static void end_copy(void *arg)
{
    (void)arg;
    guard_pq_copy_end(copy_of_test);
}

START_TEST(a_bad_row_of_a_copy_is_told_with_its_line)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = pq_open(s);
    copy_of_test = guard_pq_copy_in(s, pq, "COPY t FROM STDIN");
    guard_pq_copy_put(copy_of_test, "1\ta\nx\tb\n", 8);
    ck_assert_int_ne(guard_run(end_copy, NULL, &error), 0);
    ck_assert_str_eq(error.sqlstate, "22P02");
    ck_assert_ptr_nonnull(strstr(guard_pq_error_context(pq), "line 2"));
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT count(*) FROM t", -1), 0);
}
END_TEST

START_TEST(a_copy_in_and_out_carries_every_row)
{
    GUARD_AUTO(s);
    char line[32];
    const char *row;
    int64_t sum = 0;
    guard_pq *pq = pq_open(s);
    guard_pq_copy *copy = guard_pq_copy_in(s, pq, "COPY t(id) FROM STDIN");
    for (int i = 1; i <= 50000; i++) {
        guard_pq_copy_put(copy, line, (size_t)snprintf(line, sizeof(line), "%d\n", i));
    }
    ck_assert_int_eq(guard_pq_copy_end(copy), 50000);
    copy = guard_pq_copy_out(s, pq, "COPY t(id) TO STDOUT");
    while (guard_pq_copy_get(copy, &row) > 0) {
        sum += atoi(row);
    }
    ck_assert_int_eq(guard_pq_copy_end(copy), 50000);
    ck_assert_int_eq(sum, 50000LL * 50001 / 2);
}
END_TEST

START_TEST(only_one_thing_is_in_flight)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_pq_stream *stream = guard_pq_stream_open(s, pq, "SELECT generate_series(1, 3)", NULL);
    ck_assert_int_eq(error_of(pq, "SELECT 1").code, GUARD_PQ_BUSY);
    for (int i = 1; i <= 3; i++) {
        ck_assert_int_eq(atoi(PQgetvalue(guard_pq_stream_next(stream), 0, 0)), i);
    }
    ck_assert_ptr_null(guard_pq_stream_next(stream));
    ck_assert_ptr_null(guard_pq_stream_next(stream));
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT 1", 0), 1);
    guard_pq_stream_close(stream);
}
END_TEST

static void next_of_pipeline(void *arg)
{
    guard_pq_pipeline_next(NULL, arg);
}

START_TEST(a_pipeline_answers_in_order_and_skips_what_follows_an_error_up_to_the_sync)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = pq_open(s);
    guard_pq_pipeline *pipeline = guard_pq_pipeline_open(s, pq);
    guard_pq_pipeline_send(pipeline, "SELECT 10", NULL);
    guard_pq_pipeline_send(pipeline, "SELECT 1/0", NULL);
    guard_pq_pipeline_send(pipeline, "INSERT INTO t VALUES (1)", NULL);
    guard_pq_pipeline_sync(pipeline);
    guard_pq_pipeline_send(pipeline, "SELECT 20", NULL);
    ck_assert_uint_eq(guard_pq_pipeline_pending(pipeline), 4);
    ck_assert_str_eq(PQgetvalue(guard_pq_pipeline_next(s, pipeline), 0, 0), "10");
    for (int i = 0; i < 2; i++) {
        ck_assert_int_ne(guard_run(next_of_pipeline, pipeline, &error), 0);
        ck_assert_str_eq(error.sqlstate, "22012");
    }
    ck_assert_str_eq(PQgetvalue(guard_pq_pipeline_next(s, pipeline), 0, 0), "20");
    guard_pq_pipeline_end(pipeline);
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT count(*) FROM t", -1), 0);
}
END_TEST

START_TEST(a_long_pipeline_does_not_block_on_answers_nobody_has_read)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_pq_pipeline *pipeline = guard_pq_pipeline_open(s, pq);
    for (int i = 0; i < 3000; i++) {
        guard_pq_pipeline_send(pipeline, "SELECT repeat('x', 5000)", NULL);
    }
    guard_pq_pipeline_end(pipeline);
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT 1", 0), 1);
}
END_TEST

START_TEST(a_pipeline_sends_prepared_statements_and_may_be_closed_early)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    const char *const values[] = {"7"};
    const guard_pq_params seven = {.count = 1, .values = values};
    guard_pq_prepare(pq, "put", "INSERT INTO t VALUES ($1) RETURNING id", NULL);
    guard_pq_pipeline *pipeline = guard_pq_pipeline_open(s, pq);
    guard_pq_pipeline_send_prepared(pipeline, "put", &seven);
    ck_assert_str_eq(PQgetvalue(guard_pq_pipeline_next(s, pipeline), 0, 0), "7");
    guard_pq_pipeline_send_prepared(pipeline, "put", &seven); /* there is one already */
    guard_pq_pipeline_close(pipeline);
    ck_assert_int_eq(PQpipelineStatus(guard_pq_raw(pq)), PQ_PIPELINE_OFF);
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT count(*) FROM t", -1), 1);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ raw results */

static int results_made;
static int results_cleared;

static int count_result(PGEventId id, void *info, void *arg)
{
    (void)info;
    (void)arg;
    results_made += id == PGEVT_RESULTCREATE;
    results_cleared += id == PGEVT_RESULTDESTROY;
    return 1;
}

START_TEST(a_raw_result_is_cleared_with_the_scope_that_has_it)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    ck_assert(PQregisterEventProc(guard_pq_raw(pq), count_result, "test", NULL));
    PGresult *raw = PQexec(guard_pq_raw(pq), "SELECT 5");
    {
        GUARD_AUTO(inner);
        ck_assert_str_eq(PQgetvalue(guard_pq_own(inner, raw), 0, 0), "5");
        ck_assert_int_eq(results_cleared, 0);
    }
    ck_assert_int_eq(results_cleared, 1);
}
END_TEST

/* ----------------------------------------------------------------------------------------------------- memory */

/* More results than the thread has records for, so that registering one needs memory. */
static void own_many_results(void *arg)
{
    GUARD_AUTO(s);
    for (int i = 0; i < 100; i++) {
        guard_pq_own(s, PQexec(arg, "SELECT 1"));
    }
}

static void keep_many_results(void *arg)
{
    GUARD_AUTO(s);
    for (int i = 0; i < 100; i++) {
        guard_pq_exec(s, arg, "SELECT 1");
    }
}

START_TEST(a_result_that_cannot_be_registered_is_not_asked_for)
{
    guard_error error;
    fault_memory_install();
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    fault_memory_fail_from(1);
    int code = guard_run(keep_many_results, pq, &error);
    int hit = fault_memory_was_hit();
    fault_memory_fail_at(0);
    ck_assert(hit);
    ck_assert_int_ne(code, 0);
    ck_assert_int_eq(error.domain, GUARD_MEMORY);
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT 1", 0), 1);
}
END_TEST

START_TEST(a_raw_result_that_cannot_be_registered_is_cleared)
{
    guard_error error;
    fault_memory_install();
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    PGconn *raw = guard_pq_raw(pq);
    ck_assert(PQregisterEventProc(raw, count_result, "test", NULL));
    fault_memory_fail_from(1);
    ck_assert_int_ne(guard_run(own_many_results, raw, &error), 0);
    fault_memory_fail_at(0);
    ck_assert_int_eq(error.domain, GUARD_MEMORY);
    ck_assert_int_eq(results_cleared, results_made);
    ck_assert_int_gt(results_made, 0);
}
END_TEST

static void use_nothing(void *which)
{
    guard_pq_pool_stats stats;
    char text[8];
    switch (*(int *)which) {
    case 0:
        guard_pq_close(NULL);
        break;
    case 1:
        guard_pq_raw(NULL);
        break;
    case 2:
        guard_pq_cancel(NULL, 0);
        break;
    case 3:
        guard_pq_conninfo(NULL, text, sizeof text);
        break;
    case 4:
        guard_pq_statement_ms(NULL, 1);
        break;
    case 5:
        guard_pq_changes(NULL);
        break;
    case 6:
        guard_pq_error_context(NULL);
        break;
    case 7:
        guard_pq_copy_close(NULL);
        break;
    case 8:
        guard_pq_stream_close(NULL);
        break;
    case 9:
        guard_pq_pipeline_close(NULL);
        break;
    case 10:
        guard_pq_pipeline_pending(NULL);
        break;
    default:
        guard_pq_pool_stats_read(NULL, &stats);
    }
}

START_TEST(null_is_misuse_in_every_function_that_takes_no_place)
{
    guard_error error;
    for (int i = 0; i <= 11; i++) {
        ck_assert_int_eq(guard_run(use_nothing, &i, &error), GUARD_MISUSE_ARGUMENT);
        ck_assert_int_eq(error.domain, GUARD_MISUSE);
    }
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        no_error_of_connecting_shows_the_password,
        a_connection_is_described_without_its_password,
        connecting_waits_no_longer_than_its_deadline,
        a_silent_host_leaves_time_for_the_next_one,
        the_server_is_told_to_notice_that_we_are_gone_unless_somebody_has_said_otherwise,
        reserved_words_that_are_not_zero_are_misuse,
        null_is_misuse_in_every_function_that_takes_no_place,
        an_error_has_the_servers_sqlstate_message_detail_hint_and_constraint,
        statements_return_their_last_result_and_count_their_rows,
        a_copy_given_to_exec_is_refused_and_the_connection_usable,
        a_large_statement_to_a_server_that_does_not_read_ends_at_its_deadline,
        a_bad_row_of_a_copy_is_told_with_its_line,
        a_copy_in_and_out_carries_every_row,
        only_one_thing_is_in_flight,
        a_pipeline_answers_in_order_and_skips_what_follows_an_error_up_to_the_sync,
        a_long_pipeline_does_not_block_on_answers_nobody_has_read,
        a_pipeline_sends_prepared_statements_and_may_be_closed_early,
        a_raw_result_is_cleared_with_the_scope_that_has_it,
        a_result_that_cannot_be_registered_is_not_asked_for,
        a_raw_result_that_cannot_be_registered_is_cleared,
    };
    return suite_run("pq", tests, sizeof tests / sizeof *tests);
}
