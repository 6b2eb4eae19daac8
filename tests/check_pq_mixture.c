/* SPDX-License-Identifier: MIT */
/*
 * check_pq_mixture.c: transactions in which a guard's statements and the program's own meddling come in any order, by any way, on a wire that may
 * break. GUARD_TEST_SEED and GUARD_TEST_TIMES in the environment are for other draws. What is told is what the server says of the number that the transaction had, after the program has committed whatever was left open.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "pq_sending.h"
#include "random.h"
#include "server.h"
#include "suite.h"
#include "wire_proxy.h"

#define NAME "of the program"

typedef struct mixture {
    wire_proxy *proxy;
    unsigned wire;
    uint64_t seed, state;
    bool adopted;
    PGconn *raw;
    guard_pq *pq;
    int id; /* of the row that the probe looks for, and the next ones */
    int64_t number;
    unsigned steps, cut_at;
    size_t sent;
    char told[1200]; /* what was done */
} mixture;

static unsigned draw(mixture *m, unsigned below)
{
    return random_next(&m->state) % below;
}

static void note(mixture *m, const char *way, const char *what)
{
    size_t length = strlen(m->told);
    snprintf(m->told + length, sizeof(m->told) - length, "%s %s; ", way, what);
}

/* ------------------------------------------------------------------------------------------------- one step -- */

static const char *draw_statement(mixture *m, char *sql, size_t size)
{
    static const char *const statements[] = {
        "SAVEPOINT a",
        "SAVEPOINT a",
        "ROLLBACK TO a",
        "ROLLBACK TO a",
        "RELEASE a",
        "ROLLBACK AND CHAIN",
        "COMMIT AND CHAIN",
        "COMMIT",
        "ROLLBACK",
        "BEGIN",
        "SELECT 1/0",
        "SET LOCAL work_mem = '1MB'",
        "RESET ALL",
        "PREPARE TRANSACTION '" NAME "'",
        "SAVEPOINT a; ROLLBACK TO a; BEGIN",
        "COMMIT; BEGIN",
        "ROLLBACK; BEGIN",
        "SAVEPOINT a; SELECT 1/0",
    };
    unsigned drawn = draw(m, 2 * (unsigned)(sizeof statements / sizeof *statements));
    if (drawn < sizeof statements / sizeof *statements) {
        return statements[drawn];
    }
    snprintf(sql, size, "INSERT INTO t VALUES (%d)", ++m->id);
    return sql;
}

typedef struct step {
    mixture *m;
    const char *sql;
    pq_sending way;
} step;

static void run_step(void *arg)
{
    const step *p = arg;
    pq_send(p->m->pq, p->sql, p->way, p->m->sent++);
}

/* By the guard: the program swallows the panic, or not. */
static void run_by_guard(mixture *m, const char *sql)
{
    static const char *const ways[] = {"exec", "params", "prepared", "pipeline", "stream"};
    guard_error error;
    step p = {m, sql, (pq_sending)draw(m, PQ_BY_STREAM + 1)};
    note(m, ways[p.way], sql);
    if (draw(m, 4) > 0) {
        guard_run(run_step, &p, &error);
    } else {
        run_step(&p);
    }
}

static void run_by_libpq(mixture *m, const char *sql)
{
    PGconn *raw = guard_pq_raw(m->pq);
    switch (draw(m, 12)) {
    case 0:
        note(m, "sent only", sql);
        PQsendQuery(raw, sql);
        PQflush(raw);
        break;
    case 1:
        note(m, "raw pipeline", sql);
        if (PQenterPipelineMode(raw)) {
            PQsendQueryParams(raw, sql, 0, NULL, NULL, NULL, NULL, 0);
            PQpipelineSync(raw);
        }
        break;
    case 2:
        note(m, "raw COPY instead of", sql);
        PQclear(PQexec(raw, "COPY t FROM STDIN"));
        break;
    case 3:
        if (draw(m, 3) == 0) {
            note(m, "reset before", sql);
            PQreset(raw);
        }
        break;
    default:
        note(m, "raw", sql);
        PQclear(PQexec(raw, sql));
        break;
    }
}

static void run_any(mixture *m)
{
    char sql[80];
    const char *drawn = draw_statement(m, sql, sizeof(sql));
    if (m->steps == m->cut_at) {
        wire_direction direction = draw(m, 2) ? WIRE_TO_CLIENT : WIRE_TO_SERVER;
        note(m, "cut:", direction == WIRE_TO_CLIENT ? "answers" : "requests");
        wire_proxy_mark(m->proxy, m->wire);
        wire_proxy_cut_after(m->proxy, m->wire, direction, draw(m, 3) == 0 ? draw(m, 120) : draw(m, 8),
                             draw(m, 2) ? WIRE_RST : WIRE_FIN | WIRE_DRAIN);
    }
    m->steps++;
    if (draw(m, 2)) {
        run_by_guard(m, drawn);
    } else {
        run_by_libpq(m, drawn);
    }
}

static void run_nested(guard_tx *tx, void *arg)
{
    mixture *m = arg;
    (void)tx;
    run_any(m);
    if (draw(m, 3) == 0) {
        note(m, "panic", "");
        guard_panic(1, "of the program");
    }
    note(m, "release", "");
}

static void run_body(guard_tx *tx, void *arg)
{
    mixture *m = arg;
    char sql[80];
    guard_pq *pq = guard_pq_of(tx);
    m->number = guard_pq_query_int64(pq, "SELECT pg_current_xact_id()::text::bigint", -1);
    snprintf(sql, sizeof(sql), "INSERT INTO t VALUES (%d)", m->id);
    guard_pq_exec(NULL, pq, sql);
    for (unsigned left = 1 + draw(m, 5); left > 0; left--) {
        if (draw(m, 5) == 0) {
            note(m, "nested", "");
            guard_tx_nested(tx, run_nested, m, NULL);
        } else {
            run_any(m);
        }
    }
    if (draw(m, 4) == 0) {
        note(m, "roll back", "");
        guard_panic(1, "of the program");
    }
    note(m, "commit", "");
}

/* ------------------------------------------------------------------------------------------------- all of it -- */

static guard_outcome transact(mixture *m, guard_result *result)
{
    GUARD_AUTO(s);
    char probe[80];
    static const int markers[] = {GUARD_PQ_MARKER_NONE, GUARD_PQ_MARKER_STATUS, GUARD_PQ_MARKER_ROW,
                                  GUARD_PQ_MARKER_PROBE};
    const guard_pq_options limits = {.rollback_ms = 3000, .resolve_ms = 10000, .statement_ms = 10000};
    guard_pq_tx_options options = {.tx.attempts = 1, .marker = markers[draw(m, 4)]};
    snprintf(probe, sizeof(probe), "SELECT 1 FROM t WHERE id = %d", m->id);
    options.probe = options.marker == GUARD_PQ_MARKER_PROBE ? probe : NULL;
    m->adopted = draw(m, 2) == 0;
    m->raw = m->adopted ? PQconnectdb(wire_proxy_conninfo(m->proxy)) : NULL;
    m->pq = m->adopted ? guard_pq_adopt(s, m->raw, &limits) : guard_pq_open(s, wire_proxy_conninfo(m->proxy), &limits);
    m->wire = wire_proxy_connections(m->proxy);
    guard_outcome told = guard_pq_transact(m->pq, run_body, m, &options, result);
    PGconn *raw = m->adopted ? m->raw : guard_pq_raw(m->pq);
    PQclear(PQexec(raw, "COMMIT"));
    guard_pq_close(m->pq);
    PQfinish(m->raw);
    return told;
}

static guard_outcome found(const mixture *m)
{
    char sql[160];
    if (server_number("SELECT count(*) FROM pg_prepared_xacts") > 0) {
        snprintf(sql, sizeof(sql), "SELECT (transaction::text = '%" PRId64 "')::int FROM pg_prepared_xacts", m->number);
        bool ours = server_number(sql) == 1;
        server_run("ROLLBACK PREPARED '" NAME "'");
        if (ours) {
            return GUARD_PREPARED;
        }
    }
    snprintf(sql, sizeof(sql), "SELECT (pg_xact_status('%" PRId64 "'::xid8) = 'committed')::int", m->number);
    return server_number(sql) == 1 ? GUARD_COMMITTED : GUARD_ROLLED_BACK;
}

enum { TIMES = 250 };

START_TEST(a_transaction_that_the_program_meddles_with_is_never_told_wrong)
{
    int outcomes[GUARD_RELEASED + 1] = {0};
    const char *first = getenv("GUARD_TEST_SEED");
    const char *times = getenv("GUARD_TEST_TIMES");
    mixture m = {.proxy = server_proxy()};
    server_reset();
    for (int i = 0; i < (times != NULL ? atoi(times) : TIMES); i++) {
        guard_result result;
        m.seed = m.state = (uint64_t)i + (first != NULL ? strtoull(first, NULL, 10) : 1);
        m.id += 100;
        m.number = -1;
        m.steps = 0;
        m.told[0] = '\0';
        m.cut_at = draw(&m, 2) ? draw(&m, 5) : 1000;
        guard_outcome told = transact(&m, &result);
        server_wait_settled();
        outcomes[told]++;
        guard_outcome is = m.number > 0 ? found(&m) : GUARD_ROLLED_BACK;
        ck_assert_msg(told == is || told == GUARD_IN_DOUBT, "seed %" PRIu64 ": told %s, and is %s (%s): %s", m.seed,
                      guard_outcome_name(told), guard_outcome_name(is),
                      result.has_error ? result.error.message : "no error", m.told);
    }
    ck_assert(times != NULL ||
              (outcomes[GUARD_COMMITTED] > 10 && outcomes[GUARD_ROLLED_BACK] > 10 && outcomes[GUARD_IN_DOUBT] > 5));
    wire_proxy_close(m.proxy);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {a_transaction_that_the_program_meddles_with_is_never_told_wrong};
    return suite_run("pq_mixture", tests, sizeof tests / sizeof *tests);
}
