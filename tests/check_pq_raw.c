/* SPDX-License-Identifier: MIT */
/*
 * check_pq_raw.c: the outcome told is true also where the program uses the connection by libpq itself, and what it sent there is lost.
 */
#include <poll.h>
#include <stdbool.h>
#include <string.h>

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "server.h"
#include "suite.h"
#include "wire_proxy.h"

/* A connection through the proxy, opened by the guard or the program's own, and what the body does on it. */
typedef struct use {
    wire_proxy *proxy;
    unsigned wire;
    bool adopted;
    PGconn *raw;
    guard_pq *pq;
} use;

typedef void use_fn(guard_tx *tx, void *use);

static void begin_use(guard_scope *s, use *u, bool adopted, const guard_pq_options *options)
{
    server_run("DELETE FROM t");
    u->adopted = adopted;
    if (adopted) {
        u->raw = PQconnectdb(wire_proxy_conninfo(u->proxy));
        ck_assert_int_eq(PQstatus(u->raw), CONNECTION_OK);
        u->pq = guard_pq_adopt(s, u->raw, options);
    } else {
        u->pq = guard_pq_open(s, wire_proxy_conninfo(u->proxy), options);
        u->raw = guard_pq_raw(u->pq);
    }
    u->wire = wire_proxy_connections(u->proxy);
}

static void end_use(use *u)
{
    guard_pq_close(u->pq);
    if (u->adopted && u->raw != NULL) {
        PQfinish(u->raw);
    }
}

static guard_outcome transact_use(use *u, bool adopted, use_fn *body, const guard_pq_tx_options *options,
                                  guard_result *result)
{
    GUARD_AUTO(s);
    static const guard_pq_options limits = {.rollback_ms = 3000, .resolve_ms = 20000};
    begin_use(s, u, adopted, &limits);
    guard_outcome told = guard_pq_transact(u->pq, body, u, options, result);
    end_use(u);
    return told;
}

/* The server gets what is sent and does it; nobody reads its answer. */
static void lose_the_answer(const use *u)
{
    wire_proxy_mark(u->proxy, u->wire);
    wire_proxy_cut_after(u->proxy, u->wire, WIRE_TO_CLIENT, 0, WIRE_FIN | WIRE_DRAIN);
}

static void insert_raw(const use *u)
{
    PGresult *result = PQexec(u->raw, "INSERT INTO t VALUES (1)");
    ck_assert_str_eq(PQcmdStatus(result), "INSERT 0 1");
    PQclear(result);
}

/* ------------------------------------------------------------------------------------------------ COMMIT is lost -- */

static void lose_exec(guard_tx *tx, void *arg)
{
    use *u = arg;
    (void)tx;
    insert_raw(u);
    lose_the_answer(u);
    PQclear(PQexec(u->raw, "COMMIT"));
}

static void lose_exec_params(guard_tx *tx, void *arg)
{
    use *u = arg;
    guard_pq_exec(NULL, guard_pq_of(tx), "INSERT INTO t VALUES (1)");
    lose_the_answer(u);
    PQclear(PQexecParams(u->raw, "COMMIT", 0, NULL, NULL, NULL, NULL, 0));
}

static void lose_exec_prepared(guard_tx *tx, void *arg)
{
    use *u = arg;
    (void)tx;
    insert_raw(u);
    PQclear(PQprepare(u->raw, "finish", "COMMIT", 0, NULL));
    lose_the_answer(u);
    PQclear(PQexecPrepared(u->raw, "finish", 0, NULL, NULL, NULL, 0));
}

static void lose_unread(guard_tx *tx, void *arg)
{
    use *u = arg;
    (void)tx;
    insert_raw(u);
    lose_the_answer(u);
    ck_assert_int_eq(PQsendQuery(u->raw, "COMMIT"), 1);
    PQflush(u->raw);
    ck_assert(wire_proxy_wait(u->proxy, u->wire, WIRE_FIRED, 0, 20000));
}

static void lose_pipeline(guard_tx *tx, void *arg)
{
    use *u = arg;
    (void)tx;
    insert_raw(u);
    lose_the_answer(u);
    ck_assert_int_eq(PQenterPipelineMode(u->raw), 1);
    ck_assert_int_eq(PQsendQueryParams(u->raw, "COMMIT", 0, NULL, NULL, NULL, NULL, 0), 1);
    ck_assert_int_eq(PQpipelineSync(u->raw), 1);
    PQclear(PQgetResult(u->raw));
}

static void lose_pipeline_below_another(guard_tx *tx, void *arg)
{
    GUARD_AUTO(s);
    lose_pipeline(tx, arg);
    guard_pq_pipeline *pipeline = guard_pq_pipeline_open(s, guard_pq_of(tx));
    guard_pq_pipeline_send(pipeline, "INSERT INTO t VALUES (2)", NULL);
    guard_pq_pipeline_end(pipeline);
}

static void send_pipeline(const use *u)
{
    insert_raw(u);
    lose_the_answer(u);
    ck_assert_int_eq(PQenterPipelineMode(u->raw), 1);
    ck_assert_int_eq(PQsendQueryParams(u->raw, "COMMIT", 0, NULL, NULL, NULL, NULL, 0), 1);
    ck_assert_int_eq(PQpipelineSync(u->raw), 1);
}

static void lose_unread_pipeline_below_another(guard_tx *tx, void *arg)
{
    GUARD_AUTO(s);
    send_pipeline(arg);
    guard_pq_pipeline_open(s, guard_pq_of(tx));
}

static void lose_unread_pipeline_below_a_stream(guard_tx *tx, void *arg)
{
    GUARD_AUTO(s);
    send_pipeline(arg);
    guard_pq_stream_next(guard_pq_stream_open(s, guard_pq_of(tx), "SELECT 1", NULL));
}

static void lose_and_panic(guard_tx *tx, void *arg)
{
    lose_exec(tx, arg);
    guard_panic(1, "the program gives up");
}

static void lose_and_go_on(guard_tx *tx, void *arg)
{
    lose_exec(tx, arg);
    guard_pq_exec(NULL, guard_pq_of(tx), "SELECT 1");
}

static void lose_and_reset(guard_tx *tx, void *arg)
{
    lose_exec(tx, arg);
    PQreset(((use *)arg)->raw);
}

static void lose_and_finish(guard_tx *tx, void *arg)
{
    use *u = arg;
    lose_exec(tx, arg);
    PQfinish(u->raw);
    u->raw = NULL;
}

static void lose_and_nest(guard_tx *tx, void *arg)
{
    GUARD_AUTO(s);
    guard_tx_begin_nested(s, tx);
    lose_exec(tx, arg);
}

/* A function that is called with the connection, and guards it too. */
static void lose_by_another_guard(use *u, const char *sql)
{
    GUARD_AUTO(s);
    insert_raw(u);
    guard_pq *inner = guard_pq_adopt(s, u->raw, NULL);
    lose_the_answer(u);
    guard_pq_exec(NULL, inner, sql);
}

static void lose_in_another_guard(guard_tx *tx, void *arg)
{
    (void)tx;
    lose_by_another_guard(arg, "COMMIT");
}

START_TEST(a_commit_by_libpq_itself_whose_answer_is_lost_is_in_doubt)
{
    static use_fn *const bodies[] = {lose_exec,
                                     lose_exec_params,
                                     lose_exec_prepared,
                                     lose_unread,
                                     lose_pipeline,
                                     lose_and_panic,
                                     lose_and_go_on,
                                     lose_and_nest,
                                     lose_in_another_guard,
                                     lose_pipeline_below_another,
                                     lose_unread_pipeline_below_another,
                                     lose_unread_pipeline_below_a_stream,
                                     lose_and_reset,
                                     lose_and_finish};
    server_reset();
    use u = {.proxy = server_proxy()};
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        for (int adopted = bodies[i] == lose_and_finish; adopted < 2; adopted++) {
            guard_result result;
            guard_pq_tx_options options = {.marker = i % 2 == 0 ? GUARD_PQ_MARKER_NONE : GUARD_PQ_MARKER_ROW};
            guard_outcome told = transact_use(&u, adopted, bodies[i], &options, &result);
            ck_assert_msg(told == GUARD_IN_DOUBT, "body %zu: %s", i, guard_outcome_name(told));
            ck_assert_msg(result.notes & GUARD_NOTE_ENDED_ELSEWHERE, "body %zu", i);
            ck_assert_msg(result.has_error && result.token[0] != '\0', "body %zu", i);
            ck_assert_uint_eq(result.attempts, 1);
            server_wait_settled();
            ck_assert_msg(server_rows(1) == 1, "body %zu", i);
        }
    }
    wire_proxy_close(u.proxy);
}
END_TEST

START_TEST(the_error_of_such_a_transaction_says_why)
{
    guard_result result;
    server_reset();
    use u = {.proxy = server_proxy()};
    transact_use(&u, true, lose_exec, NULL, &result);
    ck_assert_int_eq(result.error.domain, GUARD_TX);
    ck_assert_int_eq(result.error.code, GUARD_TX_IN_DOUBT);
    ck_assert_msg(strstr(result.error.message, "by libpq itself") != NULL, "%s", result.error.message);
    ck_assert_msg(strstr(result.error.hint, "guard_pq_exec") != NULL, "%s", result.error.hint);
    wire_proxy_close(u.proxy);
}
END_TEST

static void lose_insert(guard_tx *tx, void *arg)
{
    use *u = arg;
    (void)tx;
    lose_the_answer(u);
    PQclear(PQexec(u->raw, "INSERT INTO t VALUES (1)"));
}

START_TEST(a_probe_finds_what_libpq_itself_has_lost)
{
    static const struct {
        use_fn *body;
        int rows;
    } cases[] = {{lose_exec, 1},     {lose_unread, 1},           {lose_pipeline, 1}, {lose_and_panic, 1},
                 {lose_and_nest, 1}, {lose_in_another_guard, 1}, {lose_insert, 0}};
    server_reset();
    use u = {.proxy = server_proxy()};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int adopted = 0; adopted < 2; adopted++) {
            guard_result result;
            guard_pq_tx_options options = {.probe = "SELECT 1 FROM t WHERE id = 1"};
            guard_outcome told = transact_use(&u, adopted, cases[i].body, &options, &result);
            ck_assert_msg(told == (cases[i].rows ? GUARD_COMMITTED : GUARD_ROLLED_BACK), "case %zu: %s", i,
                          guard_outcome_name(told));
            ck_assert_int_eq(server_rows(1), cases[i].rows);
        }
    }
    wire_proxy_close(u.proxy);
}
END_TEST

/* The guard cannot look then: its connection is gone, or is another. */
START_TEST(a_probe_finds_later_what_was_lost_before_the_program_took_the_connection_away)
{
    static use_fn *const bodies[] = {lose_and_reset, lose_and_finish};
    server_reset();
    use u = {.proxy = server_proxy()};
    for (size_t i = 0; i < 2; i++) {
        guard_result result;
        guard_error error;
        guard_pq_tx_options options = {.probe = "SELECT 1 FROM t WHERE id = 1"};
        ck_assert_int_eq(transact_use(&u, true, bodies[i], &options, &result), GUARD_IN_DOUBT);
        ck_assert_int_eq(guard_pq_resolve_from("", NULL, result.token, &options, &error), GUARD_COMMITTED);
    }
    wire_proxy_close(u.proxy);
}
END_TEST

/* The server does not answer, and the guard gives the connection up. */
static void leave_in_flight(guard_tx *tx, void *arg)
{
    use *u = arg;
    (void)tx;
    insert_raw(u);
    wire_proxy_mark(u->proxy, u->wire);
    wire_proxy_stop_after(u->proxy, u->wire, WIRE_TO_CLIENT, 0);
    ck_assert_int_eq(PQsendQuery(u->raw, "COMMIT"), 1);
    PQflush(u->raw);
    ck_assert(wire_proxy_wait(u->proxy, u->wire, WIRE_WITHHELD_TO_CLIENT, 1, 20000));
}

START_TEST(a_commit_by_libpq_itself_that_is_not_answered_in_time_is_in_doubt)
{
    server_reset();
    use u = {.proxy = server_proxy()};
    for (int adopted = 0; adopted < 2; adopted++) {
        guard_result result;
        guard_pq_tx_options options = {.rollback_ms = 200};
        guard_outcome told = transact_use(&u, adopted, leave_in_flight, &options, &result);
        ck_assert_msg(told == GUARD_IN_DOUBT, "%s", guard_outcome_name(told));
        ck_assert_int_eq(server_rows(1), 1);
    }
    wire_proxy_close(u.proxy);
}
END_TEST

typedef struct cut {
    use use; /* first */
    wire_direction direction;
    uint64_t after;
} cut;

static void commit_over_a_wire_that_breaks(guard_tx *tx, void *arg)
{
    cut *c = arg;
    (void)tx;
    insert_raw(&c->use);
    wire_proxy_mark(c->use.proxy, c->use.wire);
    wire_proxy_cut_after(c->use.proxy, c->use.wire, c->direction, c->after, WIRE_RST);
    PQclear(PQexec(c->use.raw, "COMMIT"));
}

START_TEST(a_commit_by_libpq_itself_that_is_cut_at_any_byte_is_never_told_wrong)
{
    int outcomes[GUARD_RELEASED + 1] = {0};
    cut c = {.direction = _i == 0 ? WIRE_TO_SERVER : WIRE_TO_CLIENT};
    server_reset();
    c.use.proxy = server_proxy();
    for (bool fired = true; fired; c.after++) {
        guard_result result;
        guard_outcome told = transact_use(&c.use, c.after % 2, commit_over_a_wire_that_breaks, NULL, &result);
        outcomes[told]++;
        fired = wire_proxy_fired(c.use.proxy, c.use.wire, c.direction);
        server_wait_settled();
        int rows = (int)server_rows(1);
        ck_assert_msg(told == GUARD_IN_DOUBT || (told == GUARD_COMMITTED && rows == 1), "after %d bytes: %s, %d rows",
                      (int)c.after, guard_outcome_name(told), rows);
    }
    ck_assert_int_gt(outcomes[GUARD_IN_DOUBT], 5);
    ck_assert_int_gt(outcomes[GUARD_COMMITTED], 0);
    wire_proxy_close(c.use.proxy);
}
END_TEST

/* ------------------------------------------------------------------------------- what is proved stays rolled back -- */

static void lose_statement_of_the_guard(guard_tx *tx, void *arg)
{
    use *u = arg;
    insert_raw(u);
    lose_the_answer(u);
    guard_pq_exec(NULL, guard_pq_of(tx), "INSERT INTO t VALUES (2)");
}

static void lose_idle(guard_tx *tx, void *arg)
{
    use *u = arg;
    (void)tx;
    insert_raw(u);
    wire_proxy_cut(u->proxy, u->wire, WIRE_FIN);
    struct pollfd end = {.fd = PQsocket(u->raw), .events = POLLIN};
    ck_assert_int_eq(poll(&end, 1, 20000), 1);
}

static void lose_copy(guard_tx *tx, void *arg)
{
    GUARD_AUTO(s);
    use *u = arg;
    insert_raw(u);
    guard_pq_copy *copy = guard_pq_copy_in(s, guard_pq_of(tx), "COPY t FROM STDIN");
    guard_pq_copy_put(copy, "2\t\\N\n", 5);
    lose_the_answer(u);
    guard_pq_copy_end(copy);
}

static void lose_open_copy(guard_tx *tx, void *arg)
{
    GUARD_AUTO(s);
    use *u = arg;
    insert_raw(u);
    guard_pq_copy_in(s, guard_pq_of(tx), "COPY t FROM STDIN");
    wire_proxy_cut(u->proxy, u->wire, WIRE_FIN);
    guard_panic(1, "the program gives up");
}

static void lose_copy_of_libpq(guard_tx *tx, void *arg)
{
    use *u = arg;
    (void)tx;
    insert_raw(u);
    PGresult *result = PQexec(u->raw, "COPY t FROM STDIN; COMMIT");
    ck_assert_int_eq(PQresultStatus(result), PGRES_COPY_IN);
    PQclear(result);
    wire_proxy_cut(u->proxy, u->wire, WIRE_FIN);
}

static void lose_savepoint(guard_tx *tx, void *arg)
{
    GUARD_AUTO(s);
    use *u = arg;
    insert_raw(u);
    guard_tx *nested = guard_tx_begin_nested(s, tx);
    lose_the_answer(u);
    guard_tx_rollback(nested);
}

static void lose_statement_of_another_guard(guard_tx *tx, void *arg)
{
    (void)tx;
    lose_by_another_guard(arg, "INSERT INTO t VALUES (2)");
}

static void insert_two(void *pq)
{
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (2)");
}

static void lose_statement_and_reset(guard_tx *tx, void *arg)
{
    use *u = arg;
    insert_raw(u);
    lose_the_answer(u);
    ck_assert_int_ne(guard_run(insert_two, guard_pq_of(tx), NULL), 0);
    PQreset(u->raw);
}

static void lose_statement_and_finish(guard_tx *tx, void *arg)
{
    use *u = arg;
    insert_raw(u);
    lose_the_answer(u);
    ck_assert_int_ne(guard_run(insert_two, guard_pq_of(tx), NULL), 0);
    PQfinish(u->raw);
    u->raw = NULL;
}

START_TEST(what_is_lost_while_nothing_of_the_programs_is_on_the_wire_is_rolled_back)
{
    static use_fn *const bodies[] = {lose_statement_of_the_guard,
                                     lose_idle,
                                     lose_copy,
                                     lose_open_copy,
                                     lose_copy_of_libpq,
                                     lose_savepoint,
                                     lose_statement_of_another_guard,
                                     lose_statement_and_reset,
                                     lose_statement_and_finish};
    server_reset();
    use u = {.proxy = server_proxy()};
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        for (int adopted = bodies[i] == lose_statement_and_finish; adopted < 2; adopted++) {
            guard_result result;
            guard_outcome told = transact_use(&u, adopted, bodies[i], NULL, &result);
            ck_assert_msg(told == GUARD_ROLLED_BACK, "body %zu: %s", i, guard_outcome_name(told));
            server_wait_settled();
            ck_assert_int_eq(server_rows(1), 0);
        }
    }
    wire_proxy_close(u.proxy);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_commit_by_libpq_itself_whose_answer_is_lost_is_in_doubt,
        the_error_of_such_a_transaction_says_why,
        a_probe_finds_what_libpq_itself_has_lost,
        a_probe_finds_later_what_was_lost_before_the_program_took_the_connection_away,
        a_commit_by_libpq_itself_that_is_not_answered_in_time_is_in_doubt,
        what_is_lost_while_nothing_of_the_programs_is_on_the_wire_is_rolled_back,
    };
    const TTest *const cuts[] = {a_commit_by_libpq_itself_that_is_cut_at_any_byte_is_never_told_wrong};
    const suite_group groups[] = {
        {"lost", 1, tests, sizeof tests / sizeof *tests},
        {"cut to the server, and to the client", 2, cuts, sizeof cuts / sizeof *cuts},
    };
    return suite_run_groups("pq_raw", groups, sizeof groups / sizeof *groups);
}
