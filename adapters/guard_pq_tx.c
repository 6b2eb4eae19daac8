/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_tx.c: PostgreSQL as a driver of guarded transactions (tx.h), but for its begin and the two ends, which have files of their own.
 *
 * libpq is asked for the transaction's state (PQtransactionStatus, which is the server's own word in each ReadyForQuery), never a
 * flag of ours, but while BEGIN is still to be sent (guard_pq_begin.c). What cannot be asked is remembered from the results that pass by (guard_pq.c): the error that aborted the
 * transaction, and a COMMIT that was not ours.
 */
#include "guard_pq_internal.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ----------------------------------------------------------------------------------------------- status -- */

guard_tx_status guard_pq_status(void *connection)
{
    const guard_pq *pq = connection;
    if (pq->conn == NULL || pq->cut || PQstatus(pq->conn) == CONNECTION_BAD) {
        return GUARD_TX_LOST;
    }
    if (pq->session.tx != NULL && (pq->t.over || pq->t.begin == GUARD_PQ_UNBEGUN)) {
        return GUARD_TX_IDLE; /* COMMIT AND CHAIN, or COMMIT; BEGIN: what is open now is not ours */
    }
    if (guard_pq_is_unsent(pq)) {
        return GUARD_TX_ACTIVE; /* whatever is run next is in it */
    }
    switch (PQtransactionStatus(pq->conn)) {
    case PQTRANS_IDLE:
        return GUARD_TX_IDLE;
    case PQTRANS_INERROR:
        return GUARD_TX_ABORTED;
    case PQTRANS_UNKNOWN:
        return GUARD_TX_LOST;
    default:
        return GUARD_TX_ACTIVE;
    }
}

/* -------------------------------------------------------------------------------------------------- text -- */

/* libpq knows which bytes are a part of a character in the connection's encoding. Its blank in front of E'' is left out. */
int guard_pq_literal(PGconn *conn, char *to, size_t size, const char *text, guard_error *error)
{
    char *literal = PQescapeLiteral(conn, text, strlen(text));
    if (literal == NULL) {
        return guard_pq_error_conn(conn, error, "quoting a name");
    }
    int length = snprintf(to, size, "%s", literal + (literal[0] == ' '));
    PQfreemem(literal);
    if (length < 0 || (size_t)length >= size) {
        guard_error_set(error, GUARD_PQ, GUARD_PQ_CLIENT, "the name is too long");
        return error->code;
    }
    return 0;
}

int guard_pq_name_literal(guard_pq *pq, char literal[GUARD_PQ_NAME_LITERAL_MAX], guard_error *error)
{
    return guard_pq_literal(pq->conn, literal, GUARD_PQ_NAME_LITERAL_MAX, pq->t.prepare_as, error);
}

/* --------------------------------------------------------------------------------------------- savepoints -- */

#define SAVEPOINT_SQL_MAX 360 /* a name of 63 quotes, doubled and quoted, twice, and the sign */

static int driver_savepoint(void *connection, const guard_tx_savepoint *savepoint, guard_error *error)
{
    guard_pq *pq = connection;
    guard_pq_call call;
    char sql[SAVEPOINT_SQL_MAX];
    if (savepoint->level == 1 && savepoint->in_foreign) {
        guard_pq_transaction_set(pq, NULL); /* the caller's own: it is not ours to commit */
        pq->t.marker = pq->t.wanted = GUARD_PQ_MARKER_NONE;
    }
    pq->t.savepoints = 1;
    snprintf(sql, sizeof(sql), "SAVEPOINT %s", savepoint->name);
    guard_pq_call_begin(pq, &call);
    int code = guard_pq_is_unsent(pq) ? guard_pq_begin_now(pq, error) : 0;
    code = code != 0 ? code : guard_pq_query(pq, sql, pq->options.statement_ms, NULL, error);
    guard_pq_call_end(pq, &call);
    return code;
}

static int driver_release(void *connection, const guard_tx_savepoint *savepoint, guard_error *error)
{
    guard_pq *pq = connection;
    guard_pq_call call;
    char sql[SAVEPOINT_SQL_MAX];
    if (pq->flight != NULL) {
        guard_error_set(error, GUARD_PQ, GUARD_PQ_BUSY, "something is still in flight on the connection");
        return error->code;
    }
    snprintf(sql, sizeof(sql), "RELEASE %s", savepoint->name);
    guard_pq_call_begin(pq, &call);
    int code = guard_pq_query(pq, sql, pq->options.statement_ms, NULL, error);
    guard_pq_call_end(pq, &call);
    if (code != 0 && strcmp(error->sqlstate, "25P02") == 0 && pq->t.has_error) {
        *error = pq->t.error; /* what was swallowed says more */
    }
    return code;
}

/* 0, or the error's code: then the savepoint's changes may still be there. */
static int roll_back_to(guard_pq *pq, const char *sql, guard_error *error)
{
    guard_pq_deadline deadline = guard_pq_in(pq->t.rollback_ms);
    int code = 0;
    /* A cancel that came late hits this statement instead of its own: it is told again. */
    for (int tries = 0; tries < 5 && guard_pq_quiesce(pq, deadline); tries++) {
        code = guard_pq_query_of(pq, sql, deadline, error);
        if (code == 0 || strcmp(error->sqlstate, "57014") != 0) {
            break;
        }
    }
    if (code == 0 && guard_pq_status(pq) == GUARD_TX_ACTIVE && PQtransactionStatus(pq->conn) == PQTRANS_INTRANS) {
        return 0;
    }
    if (code == 0 || PQtransactionStatus(pq->conn) == PQTRANS_ACTIVE) {
        guard_pq_cut(pq);
        guard_error_set(error, GUARD_TX, GUARD_TX_ROLLBACK,
                        "the connection could not be brought to rest within %d ms and is given up",
                        (int)pq->t.rollback_ms);
    }
    return error->code;
}

static int driver_rollback_to(void *connection, const guard_tx_savepoint *savepoint, guard_error *error)
{
    guard_pq *pq = connection;
    guard_pq_call call;
    char sql[SAVEPOINT_SQL_MAX];
    int ended = pq->t.ended;
    int signs = pq->t.sign_inside && ended == GUARD_OPEN;
    snprintf(sql, sizeof(sql), "ROLLBACK TO %s; RELEASE %s%s", savepoint->name, savepoint->name,
             signs ? "; " GUARD_PQ_SIGN_SQL : "");
    guard_pq_call_begin(pq, &call);
    int code = roll_back_to(pq, sql, error);
    guard_pq_call_end(pq, &call);
    if (code == 0 && pq->t.ended == GUARD_ROLLED_BACK) {
        pq->t.ended = ended; /* the tag is that of our own ROLLBACK TO */
    }
    return code;
}

/* ------------------------------------------------------------------------------------------------ the rest -- */

static int driver_retryable(void *connection, const guard_error *error)
{
    const guard_pq *pq = connection;
    int ours = error->domain == GUARD_PQ || error->domain == GUARD_TX;
    if (ours && guard_pq_is_retryable(error->sqlstate)) {
        return 1;
    }
    if (ours && strcmp(error->sqlstate, "25P02") == 0) {
        return pq->t.has_error && guard_pq_is_retryable(pq->t.error.sqlstate);
    }
    return pq->t.retry;
}

static void driver_forget(void *connection)
{
    guard_pq *pq = connection;
    pq->t.retry = pq->t.has_error = 0;
}

static size_t driver_describe(const void *connection, char *text, size_t size)
{
    const guard_pq *pq = connection;
    int length = pq->conn == NULL ? snprintf(text, size, "a closed PostgreSQL connection")
                                  : snprintf(text, size, "%s at %s:%s as %s", PQdb(pq->conn), PQhost(pq->conn),
                                             PQport(pq->conn), PQuser(pq->conn));
    return length < 0 ? 0 : (size_t)length;
}

const guard_tx_driver guard_pq_driver = {
    .name = "PostgreSQL",
    .status = guard_pq_status,
    .begin = guard_pq_begin_driver,
    .commit = guard_pq_commit,
    .rollback = guard_pq_rollback,
    .savepoint = driver_savepoint,
    .release = driver_release,
    .rollback_to = driver_rollback_to,
    .retryable = driver_retryable,
    .forget = driver_forget,
    .describe = driver_describe,
};

/* ------------------------------------------------------------------------------------------------ public -- */

/* 1, or misuse and 0. */
static int check(guard_pq *pq, const guard_pq_tx_options *o, const guard_place *place)
{
    if (pq == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the connection is NULL");
        return 0;
    }
    if (pq->pid != guard_pq_process()) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "the connection belongs to the parent process");
        return 0;
    }
    if (o == NULL) {
        return 1;
    }
    uint32_t reserved = 0;
    for (size_t i = 0; i < sizeof(o->reserved) / sizeof(o->reserved[0]); i++) {
        reserved |= o->reserved[i];
    }
    int probe = guard_pq_or(o->marker, o->probe != NULL ? GUARD_PQ_MARKER_PROBE : 0) == GUARD_PQ_MARKER_PROBE;
    if (reserved != 0 || o->isolation < GUARD_PQ_ISOLATION_DEFAULT || o->isolation > GUARD_PQ_SERIALIZABLE ||
        (o->flags & ~(GUARD_PQ_READ_ONLY | GUARD_PQ_READ_WRITE | GUARD_PQ_DEFERRABLE | GUARD_PQ_BEGIN_WITH_FIRST)) !=
            0 ||
        (o->flags & GUARD_PQ_READ_ONLY && o->flags & GUARD_PQ_READ_WRITE) || o->marker < GUARD_PQ_MARKER_NONE ||
        o->marker > GUARD_PQ_MARKER_PROBE || o->commit_ms < -1 || o->resolve_ms < -1 || o->rollback_ms < -1 ||
        probe != (o->probe != NULL) || (o->prepare_as != NULL && strnlen(o->prepare_as, 200) == 200)) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "transaction options out of range (reserved words must be 0)");
        return 0;
    }
    return 1;
}

guard_tx *guard_pq_begin_at(guard_scope *scope, guard_pq *pq, const guard_pq_tx_options *options,
                            const guard_place *place)
{
    if (!check(pq, options, place)) {
        return NULL;
    }
    if (pq->flight != NULL) {
        guard_pq_enter(pq, NULL, place);
    }
    return guard_tx_begin(scope, &pq->session, options != NULL ? &options->tx : NULL, options, place);
}

guard_outcome guard_pq_transact_at(guard_pq *pq, guard_tx_fn *fn, void *arg, const guard_pq_tx_options *options,
                                   guard_result *result, const guard_place *place)
{
    if (!check(pq, options, place)) {
        return GUARD_OPEN;
    }
    if (pq->flight != NULL) {
        guard_pq_enter(pq, NULL, place);
    }
    return guard_tx_transact(&pq->session, fn, arg, options != NULL ? &options->tx : NULL, options, result, place);
}

typedef struct raw_call {
    PGconn *raw;
    guard_tx_fn *fn;
    void *arg;
    const guard_pq_tx_options *options;
    guard_result *result;
    const guard_place *place;
} raw_call;

static void transact_raw(void *arg)
{
    raw_call *c = arg;
    GUARD_AUTO(s);
    guard_pq *pq = guard_pq_adopt_at(s, c->raw, NULL, c->place);
    guard_pq_transact_at(pq, c->fn, c->arg, c->options, c->result, c->place);
}

guard_outcome guard_pq_transact_raw_at(PGconn *raw, guard_tx_fn *fn, void *arg, const guard_pq_tx_options *options,
                                       guard_result *result, const guard_place *place)
{
    guard_result own;
    guard_error error;
    raw_call call = {raw, fn, arg, options, result != NULL ? result : &own, place};
    memset(call.result, 0, sizeof(*call.result));
    if (guard_run(transact_raw, &call, &error) != 0) {
        if (call.result->outcome == GUARD_OPEN) {
            call.result->outcome = GUARD_ROLLED_BACK; /* it was never begun, or taken back on the way out */
        }
        if (call.result->has_error) {
            guard_error_attach(&call.result->error, &error, GUARD_ATTACHED);
        } else {
            call.result->error = error;
            call.result->has_error = 1;
        }
    }
    return call.result->outcome;
}
