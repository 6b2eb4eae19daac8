/* SPDX-License-Identifier: MIT */
/*
 * check_pq_begin.c: GUARD_PQ_BEGIN_WITH_FIRST: BEGIN goes with the first statement, and nothing runs outside of the transaction for that; what
 * is told of it is true, wherever the wire breaks.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "pq_table.h"
#include "suite.h"

/* libpq sends with this one. Each is a round trip, as an answer is waited for. */
static int sends;

__attribute__((visibility("default"))) ssize_t send(int descriptor, const void *bytes, size_t size, int flags)
{
    __atomic_add_fetch(&sends, 1, __ATOMIC_RELAXED);
    return syscall(SYS_sendto, descriptor, bytes, size, flags, NULL, 0);
}

static const guard_pq_tx_options with_first = {.flags = GUARD_PQ_BEGIN_WITH_FIRST};
static const guard_pq_tx_options alone;

/* Sessions that are in a transaction as the server sees it. */
#define IN_TRANSACTION \
    "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()"

static void insert_first(guard_pq *pq, int id)
{
    char text[16];
    const char *values[] = {text};
    guard_pq_params params = {.count = 1, .values = values};
    snprintf(text, sizeof(text), "%d", id);
    guard_pq_exec_params(NULL, pq, "INSERT INTO t VALUES ($1)", &params);
}

/* ------------------------------------------------------------------------------------------------ round trips -- */

static int sends_of_an_insert(guard_pq *pq, const guard_pq_tx_options *options, int id)
{
    GUARD_AUTO(s);
    int before = sends;
    guard_tx *tx = guard_pq_begin(s, pq, options);
    insert_first(pq, id);
    guard_tx_commit(tx);
    return sends - before;
}

START_TEST(a_transaction_of_one_statement_needs_two_round_trips)
{
    GUARD_AUTO(s);
    guard_pq_tx_options marked = {.flags = GUARD_PQ_BEGIN_WITH_FIRST, .marker = GUARD_PQ_MARKER_ROW};
    guard_pq *pq = pq_open(s);
    ck_assert_int_eq(sends_of_an_insert(pq, &alone, 1), 3);
    ck_assert_int_eq(sends_of_an_insert(pq, &with_first, 2), 2);
    sends_of_an_insert(pq, &marked, 3); /* the first asks for the marker's table */
    ck_assert_int_eq(sends_of_an_insert(pq, &marked, 4), 2);
    guard_pq_prepare(pq, "insert", "/* t */ INSERT INTO t VALUES (5) -- and nothing else", NULL);
    int before = sends;
    guard_tx *tx = guard_pq_begin(s, pq, &with_first);
    ck_assert_int_eq(sends, before);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_OPEN);
    ck_assert_int_eq(server_number(IN_TRANSACTION), 0);
    before = sends; /* those of the server's were counted too */
    guard_pq_exec_prepared(NULL, pq, "insert", NULL);
    ck_assert_int_eq(guard_pq_changes(pq), 1);
    ck_assert_int_eq(sends - before, 1);
    ck_assert_int_eq(server_number(IN_TRANSACTION), 1);
    ck_assert_int_eq(server_rows(5), 0);
    guard_tx_commit(tx);
    ck_assert_int_eq(server_number("SELECT sum(id) FROM t"), 1 + 2 + 3 + 4 + 5);
}
END_TEST

static const char *text_of(guard_pq *pq, const char *sql)
{
    static char text[100];
    GUARD_AUTO(s);
    snprintf(text, sizeof(text), "%s", PQgetvalue(guard_pq_exec_params(s, pq, sql, NULL), 0, 0));
    return text;
}

#define MODE                                                                                                     \
    "SELECT concat_ws(' ', current_setting('transaction_isolation'), current_setting('transaction_read_only'), " \
    "current_setting('transaction_deferrable'), current_setting('synchronous_commit'), (SELECT count(*) FROM "   \
    "pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()))"

START_TEST(what_was_asked_of_the_transaction_is_in_force_for_its_first_statement)
{
    GUARD_AUTO(s);
    static const struct {
        guard_pq_tx_options options;
        const char *mode;
    } cases[] = {
        {{.isolation = GUARD_PQ_SERIALIZABLE, .flags = GUARD_PQ_READ_ONLY | GUARD_PQ_DEFERRABLE},
         "serializable on on off 0"},
        {{.isolation = GUARD_PQ_REPEATABLE_READ, .flags = GUARD_PQ_READ_WRITE}, "repeatable read off off off 0"},
        {{.tx.durable = 1}, "read committed off off on 0"},
        {{.tx.durable = 1, .probe = "SELECT 1 FROM t"}, "read committed off off on 1"},
        {{.probe = "SELECT 1 FROM t"}, "read committed off off off 1"},
    };
    guard_pq *pq = pq_open(s);
    guard_pq_exec(NULL, pq, "SET synchronous_commit = off");
    sends_of_an_insert(pq, &(guard_pq_tx_options){.probe = "SELECT 1 FROM t"}, 1); /* asks where it is */
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        for (int first = 0; first < 2; first++) {
            GUARD_AUTO(turn);
            guard_pq_tx_options options = cases[i].options;
            options.flags |= first ? GUARD_PQ_BEGIN_WITH_FIRST : 0;
            guard_tx *tx = guard_pq_begin(turn, pq, &options);
            int before = sends;
            ck_assert_str_eq(text_of(pq, MODE), cases[i].mode);
            ck_assert_int_eq(sends - before, 1);
            guard_tx_commit(tx);
        }
    }
}
END_TEST

/* A stream before it leaves libpq 15 in the mode of single rows. */
START_TEST(the_first_statements_rows_come_as_one_result)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_pq_stream *stream = guard_pq_stream_open(s, pq, "SELECT generate_series(1, 9)", NULL);
    while (guard_pq_stream_next(stream) != NULL) {
    }
    guard_pq_stream_close(stream);
    guard_tx *tx = guard_pq_begin(s, pq, &with_first);
    PGresult *rows = guard_pq_exec_params(s, pq, "SELECT generate_series(1, 7)", NULL);
    ck_assert_int_eq(PQresultStatus(rows), PGRES_TUPLES_OK);
    ck_assert_int_eq(PQntuples(rows), 7);
    ck_assert_int_eq(guard_pq_changes(pq), 7);
    guard_tx_commit(tx);
}
END_TEST

/* -------------------------------------------------------------------------------------- whatever comes first -- */

static void first_exec(guard_scope *s, guard_pq *pq)
{
    (void)s;
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (1)");
}

static void first_number(guard_scope *s, guard_pq *pq)
{
    (void)s;
    guard_pq_query_int64(pq, "INSERT INTO t VALUES (1) RETURNING id", 0);
}

static void first_params(guard_scope *s, guard_pq *pq)
{
    (void)s;
    insert_first(pq, 1);
}

static void first_params_of_no_rows(guard_scope *s, guard_pq *pq)
{
    (void)s;
    guard_pq_exec_params(NULL, pq, "LOCK TABLE t IN SHARE MODE", NULL);
}

static void first_prepare(guard_scope *s, guard_pq *pq)
{
    (void)s;
    guard_pq_prepare(pq, "insert", "INSERT INTO t VALUES (1)", NULL);
    guard_pq_exec_prepared(NULL, pq, "insert", NULL);
}

static void first_copy_in(guard_scope *s, guard_pq *pq)
{
    guard_pq_copy *copy = guard_pq_copy_in(s, pq, "COPY t (id) FROM STDIN");
    guard_pq_copy_put(copy, "1\n", 2);
    guard_pq_copy_end(copy);
}

static void first_copy_out(guard_scope *s, guard_pq *pq)
{
    const char *row;
    guard_pq_copy *copy = guard_pq_copy_out(s, pq, "COPY (SELECT 1) TO STDOUT");
    while (guard_pq_copy_get(copy, &row) > 0) {
    }
    guard_pq_copy_end(copy);
}

static void first_stream(guard_scope *s, guard_pq *pq)
{
    guard_pq_stream *stream = guard_pq_stream_open(s, pq, "INSERT INTO t VALUES (1) RETURNING id", NULL);
    while (guard_pq_stream_next(stream) != NULL) {
    }
    guard_pq_stream_close(stream);
}

static void first_pipeline(guard_scope *s, guard_pq *pq)
{
    guard_pq_pipeline *pipeline = guard_pq_pipeline_open(s, pq);
    guard_pq_pipeline_send(pipeline, "INSERT INTO t VALUES (1)", NULL);
    guard_pq_pipeline_end(pipeline);
}

static void first_nested(guard_scope *s, guard_pq *pq)
{
    guard_tx *inner = guard_pq_begin(s, pq, &with_first);
    insert_first(pq, 1);
    guard_tx_commit(inner);
    ck_assert_int_eq(guard_tx_outcome(inner), GUARD_RELEASED);
}

static void first_lock(guard_scope *s, guard_pq *pq)
{
    (void)s;
    guard_pq_lock(pq, 7, 0);
}

static void first_try_lock(guard_scope *s, guard_pq *pq)
{
    (void)s;
    ck_assert_int_eq(guard_pq_try_lock(pq, 7), 1);
}

static void first_list(guard_scope *s, guard_pq *pq)
{
    guard_pq_prepared_list(s, pq);
}

static void first_raw(guard_scope *s, guard_pq *pq)
{
    (void)s;
    PGresult *result = PQexec(guard_pq_raw(pq), "INSERT INTO t VALUES (1)");
    ck_assert_int_eq(PQresultStatus(result), PGRES_COMMAND_OK);
    PQclear(result);
}

static void (*const first_uses[])(guard_scope *s, guard_pq *pq) = {
    first_exec,     first_number,  first_params,   first_params_of_no_rows,
    first_prepare,  first_copy_in, first_copy_out, first_stream,
    first_pipeline, first_nested,  first_lock,     first_try_lock,
    first_list,     first_raw,
};

START_TEST(whatever_uses_the_connection_first_is_in_the_transaction)
{
    for (size_t i = 0; i < sizeof(first_uses) / sizeof(*first_uses); i++) {
        GUARD_AUTO(s);
        guard_pq *pq = pq_open(s);
        guard_tx *tx = guard_pq_begin(s, pq, &with_first);
        first_uses[i](s, pq);
        ck_assert_msg(server_number(IN_TRANSACTION) == 1, "use %d is not in a transaction", (int)i);
        ck_assert_int_eq(server_rows(1), 0);
        guard_tx_rollback(tx);
        ck_assert_int_eq(server_number(IN_TRANSACTION), 0);
        ck_assert_int_eq(server_rows(1), 0);
        guard_pq_close(pq);
    }
}
END_TEST

START_TEST(begin_is_sent_at_once_where_the_program_has_the_raw_connection)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    PGconn *own = server_connect("");
    guard_pq *adopted = guard_pq_adopt(s, own, NULL);
    PGconn *raw = guard_pq_raw(pq);
    for (int i = 0; i < 2; i++) {
        GUARD_AUTO(turn);
        guard_tx *tx = guard_pq_begin(turn, i == 0 ? pq : adopted, &with_first);
        ck_assert_int_eq(PQtransactionStatus(i == 0 ? raw : own), PQTRANS_INTRANS);
        PQclear(PQexec(i == 0 ? raw : own, "INSERT INTO t VALUES (1)"));
        guard_tx_rollback(tx);
    }
    ck_assert_int_eq(server_rows(1), 0);
    guard_pq_close(adopted);
    PQfinish(own);
}
END_TEST

static void copy_by_name(void *pq)
{
    guard_pq_exec_prepared(NULL, pq, "copy", NULL);
}

/* As without the flag: it is refused, and the connection lives. */
START_TEST(a_copy_that_was_prepared_does_not_share_begins_message)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = pq_open(s);
    guard_pq_prepare(pq, "copy", "COPY t FROM STDIN", NULL);
    guard_tx *tx = guard_pq_begin(s, pq, &with_first);
    ck_assert_int_ne(guard_run(copy_by_name, pq, &error), 0);
    ck_assert_int_eq(error.code, GUARD_PQ_ANSWER);
    guard_tx_rollback(tx);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT 1", 0), 1);
}
END_TEST

/* ---------------------------------------------------------------------------------------------- nothing is run -- */

static int hooks;

static void count_hook(void *pq)
{
    hooks++;
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (1)"); /* its own transaction */
}

START_TEST(a_transaction_that_ran_nothing_sends_nothing_and_is_told_as_it_was_ended)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_pq *pq = pq_open(s);
    guard_pq_tx_options options = {.flags = GUARD_PQ_BEGIN_WITH_FIRST, .tx.durable = 1};
    int before = sends;
    ck_assert_int_eq(guard_pq_transact(pq, pq_do_nothing, NULL, &options, &result), GUARD_COMMITTED);
    ck_assert_uint_eq(result.notes, 0);
    {
        GUARD_AUTO(turn);
        guard_pq_begin(turn, pq, &with_first); /* left open */
    }
    guard_tx *tx = guard_pq_begin(s, pq, &with_first);
    guard_tx_on_rollback(tx, count_hook, pq);
    ck_assert_int_eq(sends, before);
    guard_tx_rollback(tx);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
    ck_assert_uint_eq(guard_tx_result(tx)->notes, 0);
    ck_assert_int_eq(hooks, 1);
    ck_assert_int_eq(server_rows(1), 1);
    server_run("DELETE FROM t");
    tx = guard_pq_begin(s, pq, &with_first);
    guard_tx_on_commit(tx, count_hook, pq);
    guard_tx_commit(tx);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_COMMITTED);
    ck_assert_int_eq(hooks, 2);
    ck_assert_int_eq(server_rows(1), 1);
    ck_assert_int_eq(pq_status(pq), PQTRANS_IDLE);
}
END_TEST

START_TEST(a_transaction_that_ran_nothing_is_prepared_all_the_same)
{
    GUARD_AUTO(s);
    guard_pq_tx_options options = {.flags = GUARD_PQ_BEGIN_WITH_FIRST, .prepare_as = "nothing"};
    guard_pq *pq = pq_open(s);
    ck_assert_int_eq(guard_pq_transact(pq, pq_do_nothing, NULL, &options, NULL), GUARD_PREPARED);
    ck_assert_int_eq(server_number("SELECT count(*) FROM pg_prepared_xacts WHERE gid = 'nothing'"), 1);
    guard_pq_prepared_rollback(pq, "nothing");
}
END_TEST

/* ------------------------------------------------------------------------------------------------ what fails -- */

typedef struct failure {
    const char *sql;
    const guard_pq_params *params;
    const char *sqlstate;
} failure;

static const failure *failing;

static void fail_first(guard_tx *tx, void *arg)
{
    (void)arg;
    guard_pq_exec_params(NULL, guard_pq_of(tx), failing->sql, failing->params);
}

static void compare_errors(const guard_error *a, const guard_error *b)
{
    ck_assert_int_eq(a->domain, b->domain);
    ck_assert_int_eq(a->code, b->code);
    ck_assert_str_eq(a->sqlstate, b->sqlstate);
    ck_assert_str_eq(a->message, b->message);
    ck_assert_str_eq(a->detail, b->detail);
    ck_assert_str_eq(a->hint, b->hint);
    ck_assert_str_eq(a->constraint, b->constraint);
    ck_assert_str_eq(a->file, b->file);
    ck_assert_str_eq(a->function, b->function);
    ck_assert_uint_eq(a->line, b->line);
}

START_TEST(a_first_statement_that_fails_has_the_same_error_as_behind_a_begin_of_its_own)
{
    static const char *const one[] = {"1"};
    static const int binary[] = {1};
    static const guard_pq_params with_value = {.count = 1, .values = one};
    static const guard_pq_params too_many = {.count = 70000, .values = one};
    static const guard_pq_params no_length = {.count = 1, .values = one, .formats = binary};
    static const failure failures[] = {
        {"INSERT INTO t VALUES ($1)", &with_value, "23505"},
        {"INSERT INTO t VALUES ($1); SELECT 1", &with_value, "42601"},
        {"SELECT no_such FROM t WHERE id = $1", &with_value, "42703"},
        {"SELECT 1 FORM t", NULL, "42601"},
        {"INSERT INTO nowhere VALUES (1)", NULL, "42P01"},
        {"SELECT 1 / (id - 1) FROM t", NULL, "22012"},
        {"INSERT INTO t VALUES ($1)", &too_many, ""},
        {"INSERT INTO t VALUES ($1)", &no_length, ""},
        {"DO $$ BEGIN RAISE EXCEPTION 'no' USING DETAIL = 'why', HINT = 'how'; END $$", NULL, "P0001"},
    };
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    pq_insert(pq, 1);
    for (size_t i = 0; i < sizeof(failures) / sizeof(*failures); i++) {
        guard_result results[2];
        char context[2][256];
        failing = &failures[i];
        for (int first = 0; first < 2; first++) {
            guard_pq_transact(pq, fail_first, NULL, first ? &with_first : &alone, &results[first]);
            snprintf(context[first], sizeof(context[first]), "%s", guard_pq_error_context(pq));
            ck_assert_int_eq(results[first].outcome, GUARD_ROLLED_BACK);
            ck_assert_uint_eq(results[first].notes, 0);
            ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT count(*) FROM t", 0), 1);
        }
        ck_assert_str_eq(results[1].error.sqlstate, failures[i].sqlstate);
        compare_errors(&results[0].error, &results[1].error);
        ck_assert_str_eq(context[0], context[1]);
    }
}
END_TEST

static void swallow(void *pq)
{
    insert_first(pq, 1);
}

static void swallow_an_error(guard_tx *tx, void *arg)
{
    guard_error error;
    (void)arg;
    ck_assert_int_ne(guard_run(swallow, guard_pq_of(tx), &error), 0);
}

START_TEST(a_first_statement_whose_error_is_swallowed_is_rolled_back_with_that_error)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_pq *pq = pq_open(s);
    pq_insert(pq, 1);
    ck_assert_int_eq(guard_pq_transact(pq, swallow_an_error, NULL, &with_first, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.code, GUARD_TX_ROLLED_BACK);
    ck_assert_str_eq(result.error.sqlstate, "23505");
    ck_assert_int_eq(pq_status(pq), PQTRANS_IDLE);
}
END_TEST

static void fail_then_insert(guard_tx *tx, void *arg)
{
    int *runs = arg;
    if (++*runs == 1) {
        guard_pq_exec_params(NULL, guard_pq_of(tx), "SELECT fail_to_serialize()", NULL);
    }
    insert_first(guard_pq_of(tx), 1);
}

START_TEST(a_first_statement_that_only_a_rerun_helps_has_the_whole_body_run_again)
{
    GUARD_AUTO(s);
    guard_result result;
    int runs = 0;
    guard_pq *pq = pq_open(s);
    server_run("CREATE OR REPLACE FUNCTION fail_to_serialize() RETURNS void LANGUAGE plpgsql AS "
               "$$ BEGIN RAISE serialization_failure; END $$");
    ck_assert_int_eq(guard_pq_transact(pq, fail_then_insert, &runs, &with_first, &result), GUARD_COMMITTED);
    ck_assert_int_eq(runs, 2);
    ck_assert_uint_eq(result.attempts, 2);
    ck_assert_int_eq(server_rows(1), 1);
}
END_TEST

/* A standby refuses these BEGINs. */
static void make_standby(int is_one)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/standby.signal", getenv("GUARD_TEST_PG_DIR"));
    server_control("-m fast stop");
    if (is_one) {
        fclose(fopen(path, "w"));
    } else {
        unlink(path);
    }
    server_control("start");
}

static int bodies;
static guard_outcome told_inside;

static void select_first(guard_tx *tx, void *arg)
{
    (void)arg;
    bodies++;
    guard_pq_exec_params(NULL, guard_pq_of(tx), "SELECT 1", NULL);
}

static void exec_first(guard_tx *tx, void *arg)
{
    (void)arg;
    bodies++;
    guard_pq_exec(NULL, guard_pq_of(tx), "SELECT 1");
}

static void nest_first(guard_tx *tx, void *arg)
{
    GUARD_AUTO(s);
    (void)arg;
    bodies++;
    guard_tx_begin_nested(s, tx);
}

static void select_one(void *pq)
{
    guard_pq_exec_params(NULL, pq, "SELECT 1", NULL);
}

static void go_on_after_a_refusal(guard_tx *tx, void *arg)
{
    guard_error error;
    (void)arg;
    bodies++;
    ck_assert_int_ne(guard_run(select_one, guard_pq_of(tx), &error), 0);
    ck_assert_str_eq(error.sqlstate, "0A000");
    told_inside = guard_tx_outcome(tx);
    int before = sends;
    ck_assert_int_ne(guard_run(select_one, guard_pq_of(tx), &error), 0);
    ck_assert_int_eq(error.code, GUARD_TX_OVER);
    ck_assert_int_eq(sends, before);
}

START_TEST(a_begin_that_is_refused_is_told_by_the_first_statement_and_nothing_runs)
{
    GUARD_AUTO(s);
    static guard_tx_fn *const firsts[] = {select_first, exec_first, nest_first, go_on_after_a_refusal};
    guard_pq_tx_options options = {.flags = GUARD_PQ_BEGIN_WITH_FIRST | GUARD_PQ_READ_WRITE};
    make_standby(1);
    PQfinish(server_connect(""));
    guard_pq *pq = guard_pq_open(s, "", NULL);
    for (size_t i = 0; i < sizeof(firsts) / sizeof(*firsts); i++) {
        guard_result result;
        ck_assert_int_eq(guard_pq_transact(pq, firsts[i], NULL, &options, &result), GUARD_ROLLED_BACK);
        ck_assert_int_eq(bodies, (int)i + 1); /* the body began, as BEGIN had not been asked for */
        ck_assert_str_eq(result.error.sqlstate, "0A000");
        ck_assert_uint_eq(result.notes, 0);
        ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT 2", 0), 2);
    }
    ck_assert_int_eq(told_inside, GUARD_ROLLED_BACK);
    guard_tx *tx = guard_pq_begin(s, pq, &options);
    guard_error error;
    ck_assert_int_ne(guard_run(select_one, pq, &error), 0);
    guard_tx_rollback(tx);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
    guard_pq_close(pq);
    make_standby(0);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ time limits -- */

static void sleep_long(void *pq)
{
    guard_pq_exec_params(NULL, pq, "SELECT pg_sleep(60)", NULL);
}

START_TEST(a_first_statement_past_its_time_limit_is_cancelled_and_its_transaction_rolled_back)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = pq_open(s);
    int32_t former = guard_pq_statement_ms(pq, 200);
    guard_tx *tx = guard_pq_begin(s, pq, &with_first);
    ck_assert_int_ne(guard_run(sleep_long, pq, &error), 0);
    ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
    ck_assert_str_eq(error.sqlstate, "57014");
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_OPEN);
    guard_pq_statement_ms(pq, former);
    guard_tx_rollback(tx);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT 3", 0), 3);
    ck_assert_int_eq(PQpipelineStatus(guard_pq_raw(pq)), PQ_PIPELINE_OFF);
}
END_TEST

static void *cancel_when_it_sleeps(void *pq)
{
    server_wait("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'", 1);
    ck_assert_int_eq(guard_pq_cancel(pq, 0), 1);
    return NULL;
}

static void sleep_in_transaction(guard_tx *tx, void *arg)
{
    (void)arg;
    sleep_long(guard_pq_of(tx));
}

START_TEST(a_first_statement_that_is_cancelled_fails_and_its_transaction_is_rolled_back)
{
    GUARD_AUTO(s);
    guard_result result;
    pthread_t thread;
    guard_pq *pq = pq_open(s);
    ck_assert_int_eq(pthread_create(&thread, NULL, cancel_when_it_sleeps, pq), 0);
    ck_assert_int_eq(guard_pq_transact(pq, sleep_in_transaction, NULL, &with_first, &result), GUARD_ROLLED_BACK);
    pthread_join(thread, NULL);
    ck_assert_str_eq(result.error.sqlstate, "57014");
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT 4", 0), 4);
}
END_TEST

START_TEST(a_server_that_is_silent_during_the_first_statement_holds_nobody_past_the_limits)
{
    guard_result result;
    guard_pq_options limits = {.statement_ms = 200, .rollback_ms = 300};
    server_reset();
    wire_proxy *proxy = server_proxy();
    for (uint64_t n = 0; n < 60; n += 19) {
        GUARD_AUTO(turn);
        guard_pq *pq = guard_pq_open(turn, wire_proxy_conninfo(proxy), &limits);
        unsigned wire = wire_proxy_connections(proxy);
        int64_t begun = now_ms();
        wire_proxy_mark(proxy, wire);
        wire_proxy_stop_after(proxy, wire, WIRE_TO_CLIENT, n);
        ck_assert_int_eq(guard_pq_transact(pq, pq_do_nothing, NULL, &with_first, &result), GUARD_COMMITTED);
        bodies = 0;
        ck_assert_int_eq(guard_pq_transact(pq, select_first, NULL, &with_first, &result), GUARD_ROLLED_BACK);
        ck_assert_int_eq(result.error.domain, GUARD_TIMEOUT);
        ck_assert_msg(now_ms() - begun < 20000, "byte %d: %d ms", (int)n, (int)(now_ms() - begun));
        ck_assert_int_eq(bodies, 1);
        wire_proxy_cut(proxy, wire, WIRE_RST);
    }
    wire_proxy_close(proxy);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ lost -- */

static void insert_two(guard_tx *tx, void *arg)
{
    bodies++;
    insert_first(guard_pq_of(tx), *(int *)arg);
}

START_TEST(a_connection_that_is_found_dead_by_the_first_statement_is_rolled_back)
{
    GUARD_AUTO(s);
    guard_result result;
    int id = 1;
    guard_pq *pq = pq_open(s);
    guard_tx *tx = guard_pq_begin(s, pq, &with_first);
    guard_tx_rollback(tx);
    server_run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND "
               "backend_type = 'client backend'");
    server_wait("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'", 1);
    ck_assert_int_eq(guard_pq_transact(pq, insert_two, &id, &with_first, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(bodies, 1);
    ck_assert_int_eq(result.error.domain, GUARD_PQ);
    ck_assert_int_eq(server_rows(1), 0);
    ck_assert_int_eq(guard_pq_transact(pq, insert_two, &id, &with_first, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(bodies, 1); /* now it is known before */
    ck_assert_int_eq(result.error.code, GUARD_PQ_CONNECTION);
}
END_TEST

/* COMMIT's own bytes are check_pq_commit.c's. */
enum { FIRST_TO_SERVER = 130, FIRST_TO_CLIENT = 70, STRIDE = 7 };

/* Every byte of BEGIN and INSERT in one direction: what is told is what is found. Returns how many there were, with those of COMMIT. */
static int cut_everywhere(wire_proxy *proxy, int marker, wire_direction direction, unsigned how, int id, int outcomes[])
{
    int fired = 1;
    uint64_t n = 0;
    uint64_t passed = 0;
    uint64_t each = direction == WIRE_TO_SERVER ? FIRST_TO_SERVER : FIRST_TO_CLIENT;
    for (; fired; n += n < each ? 1 : STRIDE, id++) {
        GUARD_AUTO(s);
        guard_result result;
        guard_pq_tx_options options = {.flags = GUARD_PQ_BEGIN_WITH_FIRST, .marker = marker};
        guard_pq *pq = guard_pq_open(s, wire_proxy_conninfo(proxy), NULL);
        unsigned wire = wire_proxy_connections(proxy);
        if (marker == GUARD_PQ_MARKER_ROW) {
            guard_pq_transact(pq, pq_do_nothing, NULL, &options, NULL); /* asks for the marker's table */
        }
        bodies = 0;
        wire_proxy_mark(proxy, wire);
        wire_proxy_cut_after(proxy, wire, direction, n, how);
        guard_outcome told = guard_pq_transact(pq, insert_two, &id, &options, &result);
        fired = wire_proxy_fired(proxy, wire, direction);
        outcomes[told]++;
        server_wait_settled();
        int64_t rows = server_rows(id);
        ck_assert_msg((told == GUARD_COMMITTED && rows == 1) || (told == GUARD_ROLLED_BACK && rows == 0) ||
                          (told == GUARD_IN_DOUBT && marker == GUARD_PQ_MARKER_NONE),
                      "byte %d: told \"%s\" (%s), found %d rows", (int)n, guard_outcome_name(told),
                      result.has_error ? result.error.message : "no error", (int)rows);
        ck_assert_int_eq(bodies, 1);
        ck_assert_msg(fired || told == GUARD_COMMITTED, "nothing was cut: %s", guard_outcome_name(told));
        passed = wire_proxy_look(proxy, wire).passed[direction];
    }
    return (int)passed;
}

static void cut_both_ways(int marker, int least)
{
    int outcomes[GUARD_RELEASED + 1] = {0};
    server_reset();
    wire_proxy *proxy = server_proxy();
    int to_server = cut_everywhere(proxy, marker, WIRE_TO_SERVER, WIRE_RST, 1000, outcomes);
    int to_client = cut_everywhere(proxy, marker, WIRE_TO_CLIENT, WIRE_RST, 2000, outcomes);
    cut_everywhere(proxy, marker, WIRE_TO_CLIENT, WIRE_FIN | WIRE_DRAIN, 3000, outcomes);
    ck_assert_msg(to_server >= least && to_client > FIRST_TO_CLIENT, "%d bytes to the server, %d to the client",
                  to_server, to_client);
    ck_assert_int_gt(outcomes[GUARD_ROLLED_BACK], 100);
    ck_assert_int_gt(outcomes[GUARD_COMMITTED], 3);
    wire_proxy_close(proxy);
}

START_TEST(the_wire_is_cut_at_every_byte_of_a_transaction_without_a_marker)
{
    cut_both_ways(GUARD_PQ_MARKER_NONE, 120);
}
END_TEST

START_TEST(the_wire_is_cut_at_every_byte_of_a_transaction_with_a_marker_row)
{
    cut_both_ways(GUARD_PQ_MARKER_ROW, 240);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ fork -- */

START_TEST(a_forked_child_begins_nothing_on_its_parents_connection)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_tx *tx = guard_pq_begin(s, pq, &with_first);
    pid_t child = fork();
    if (child == 0) {
        guard_error error;
        int refused = guard_run(select_one, pq, &error) != 0 && error.domain == GUARD_MISUSE;
        guard_pq_raw(pq);
        _exit(refused ? 0 : 1);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    ck_assert_int_eq(server_number(IN_TRANSACTION), 0);
    insert_first(pq, 1);
    guard_tx_commit(tx);
    ck_assert_int_eq(server_rows(1), 1);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_transaction_of_one_statement_needs_two_round_trips,
        what_was_asked_of_the_transaction_is_in_force_for_its_first_statement,
        the_first_statements_rows_come_as_one_result,
        whatever_uses_the_connection_first_is_in_the_transaction,
        begin_is_sent_at_once_where_the_program_has_the_raw_connection,
        a_copy_that_was_prepared_does_not_share_begins_message,
        a_transaction_that_ran_nothing_sends_nothing_and_is_told_as_it_was_ended,
        a_transaction_that_ran_nothing_is_prepared_all_the_same,
        a_first_statement_that_fails_has_the_same_error_as_behind_a_begin_of_its_own,
        a_first_statement_whose_error_is_swallowed_is_rolled_back_with_that_error,
        a_first_statement_that_only_a_rerun_helps_has_the_whole_body_run_again,
        a_first_statement_past_its_time_limit_is_cancelled_and_its_transaction_rolled_back,
        a_first_statement_that_is_cancelled_fails_and_its_transaction_is_rolled_back,
        a_server_that_is_silent_during_the_first_statement_holds_nobody_past_the_limits,
        a_connection_that_is_found_dead_by_the_first_statement_is_rolled_back,
        the_wire_is_cut_at_every_byte_of_a_transaction_without_a_marker,
        the_wire_is_cut_at_every_byte_of_a_transaction_with_a_marker_row,
        a_forked_child_begins_nothing_on_its_parents_connection,
        a_begin_that_is_refused_is_told_by_the_first_statement_and_nothing_runs, /* the server was a standby */
    };
    return suite_run("pq_begin", tests, sizeof tests / sizeof *tests);
}
