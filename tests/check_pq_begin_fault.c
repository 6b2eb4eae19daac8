/* SPDX-License-Identifier: MIT */
/*
 * check_pq_begin_fault.c: GUARD_PQ_BEGIN_WITH_FIRST, where the first statement or its BEGIN fails, is late, or is lost: the error is that of a
 * statement behind a BEGIN of its own, and the outcome told is the outcome found, wherever the wire breaks.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "pq_table.h"
#include "suite.h"

static const guard_pq_tx_options with_first = {.flags = GUARD_PQ_BEGIN_WITH_FIRST};
static const guard_pq_tx_options alone;

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
    pq_insert_params(pq, 1);
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
    pq_insert_params(guard_pq_of(tx), 1);
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

static void ask_for_raw(void *pq)
{
    guard_pq_raw(pq);
}

static void go_on_after_a_refusal(guard_tx *tx, void *arg)
{
    guard_error error;
    (void)arg;
    bodies++;
    ck_assert_int_ne(guard_run(select_one, guard_pq_of(tx), &error), 0);
    ck_assert_str_eq(error.sqlstate, "0A000");
    told_inside = guard_tx_outcome(tx);
    ck_assert_int_ne(guard_run(select_one, guard_pq_of(tx), &error), 0);
    ck_assert_int_eq(error.code, GUARD_TX_OVER);
    ck_assert_int_ne(guard_run(ask_for_raw, guard_pq_of(tx), &error), 0);
    ck_assert_int_eq(error.code, GUARD_TX_OVER);
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
    pq_insert_params(guard_pq_of(tx), *(int *)arg);
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
    cut_both_ways(GUARD_PQ_MARKER_ROW, 220);
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
    ck_assert_int_eq(server_number("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND "
                                   "pid <> pg_backend_pid()"),
                     0);
    pq_insert_params(pq, 1);
    guard_tx_commit(tx);
    ck_assert_int_eq(server_rows(1), 1);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
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
        a_begin_that_is_refused_is_told_by_the_first_statement_and_nothing_runs, /* the last: the server is a standby meanwhile */
    };
    return suite_run("pq_begin_fault", tests, sizeof tests / sizeof *tests);
}
