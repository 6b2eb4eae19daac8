/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_pipeline.c: statements sent ahead of their answers.
 *
 *     open --> in pipeline mode --send, sync, next, ...--> --end, close, scope, rollback: synced and drained--> over
 *
 * Invariants
 *   - pending counts the statements whose answers were not read, unsynced those sent since the last sync.
 *   - libpq gives for each statement its results and a NULL, and for each sync one result without a NULL.
 *   - `first` is the error for which the server skips statements, until the next sync.
 */
#include "guard_pq_internal.h"

struct guard_pq_pipeline {
    guard_pq_flight flight; /* first */
    uint32_t pending;
    uint32_t unsynced;
    uint32_t syncs; /* sent, and not read back */
    int has_first;
    guard_error first;
};

static void release_pipeline(void *object)
{
    guard_pq_pipeline *pipeline = object;
    guard_pq_flight flight = pipeline->flight;
    guard_deallocate(pipeline);
    guard_pq_flight_abandon(&flight, "a pipeline");
}

static const guard_kind pipeline_kind = {
    .name = "PostgreSQL pipeline",
    .release = release_pipeline,
    .since = guard_pq_flight_since,
    .action = "end",
    .flags = GUARD_KIND_HEAP | GUARD_KIND_FIXED,
};

guard_pq_pipeline *guard_pq_pipeline_open_at(guard_scope *scope, guard_pq *pq, const guard_place *place)
{
    guard_error error;
    guard_pq_enter(pq, NULL, place);
    /* What is on the wire would be taken for the pipeline's. */
    if (pq->conn != NULL && PQtransactionStatus(pq->conn) == PQTRANS_ACTIVE) {
        guard_impl_panic(place, GUARD_PQ, GUARD_PQ_BUSY, "something of the program's own is open on the connection");
    }
    guard_reserve(scope, 1);
    guard_pq_pipeline *pipeline = guard_allocate(sizeof(*pipeline));
    pipeline->pending = 0;
    pipeline->unsynced = 0;
    pipeline->syncs = 0;
    pipeline->has_first = 0;
    if (pq->conn != NULL) {
        /*
         * libpq 15 forgets that a former statement was read row by row only when one is begun outside of a pipeline: the first
         * answer of this one would come so too. This begins one, and refuses it before anything is sent.
         */
        PQsendQuery(pq->conn, NULL);
    }
    if (pq->conn == NULL || pq->cut || !PQenterPipelineMode(pq->conn)) {
        guard_deallocate(pipeline);
        guard_pq_error_conn(pq->conn, &error, "beginning a pipeline");
        guard_impl_panic_error(place, &error);
    }
    pq->context[0] = '\0';
    guard_pq_flight_begin(scope, &pipeline->flight, pq, GUARD_PQ_FLIGHT_PIPELINE, &pipeline_kind, place);
    return pipeline;
}

/* The connection, or NULL after misuse. */
static guard_pq *check(guard_pq_pipeline *pipeline, const guard_place *place)
{
    if (pipeline == NULL || pipeline->flight.pq == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "the pipeline was ended by a rollback");
        return NULL;
    }
    guard_pq_enter(pipeline->flight.pq, &pipeline->flight, place);
    return pipeline->flight.pq;
}

/* It cannot go on: what was sent is drained, or the connection given up. */
static void fail(guard_pq *pq)
{
    if (!guard_pq_quiesce(pq, guard_pq_in(pq->options.rollback_ms))) {
        guard_pq_cut(pq);
    }
}

/* libpq queues without bound what the server does not take; answers are read meanwhile, or neither side would go on. */
static int push(guard_pq *pq, int queued, const char *doing, guard_error *error)
{
    if (!queued) {
        return guard_pq_error_conn(pq->conn, error, doing);
    }
    if (!guard_pq_flush(pq->conn, guard_pq_in(pq->options.statement_ms))) {
        guard_pq_error_timeout(error, doing, pq->options.statement_ms);
        fail(pq);
        return error->code;
    }
    return 0;
}

static void send_statement(guard_pq_pipeline *pipeline, const char *sql, const char *name, const guard_pq_params *p,
                           const guard_place *place)
{
    static const guard_pq_params none;
    guard_error error;
    guard_pq_call call;
    guard_pq *pq = check(pipeline, place);
    if (pq == NULL) {
        return;
    }
    if (sql == NULL && name == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the statement is NULL");
        return;
    }
    p = p != NULL ? p : &none;
    guard_pq_call_begin(pq, &call);
    int queued = sql != NULL ? PQsendQueryParams(pq->conn, sql, p->count, p->types, p->values, p->lengths, p->formats,
                                                 p->binary_result)
                             : PQsendQueryPrepared(pq->conn, name, p->count, p->values, p->lengths, p->formats,
                                                   p->binary_result);
    guard_pq_remember_sent(pq, sql, 1);
    pipeline->pending += queued != 0;
    pipeline->unsynced += queued != 0;
    int code = push(pq, queued, "sending a statement", &error);
    guard_pq_call_end(pq, &call);
    if (code != 0) {
        guard_impl_panic_error(place, &error);
    }
}

void guard_pq_pipeline_send_at(guard_pq_pipeline *pipeline, const char *sql, const guard_pq_params *params,
                               const guard_place *place)
{
    send_statement(pipeline, sql, NULL, params, place);
}

void guard_pq_pipeline_send_prepared_at(guard_pq_pipeline *pipeline, const char *name, const guard_pq_params *params,
                                        const guard_place *place)
{
    send_statement(pipeline, NULL, name, params, place);
}

static int sync_now(guard_pq_pipeline *pipeline, guard_error *error)
{
    guard_pq *pq = pipeline->flight.pq;
    int queued = PQpipelineSync(pq->conn);
    pipeline->unsynced = 0;
    pipeline->syncs += queued != 0;
    return push(pq, queued, "syncing a pipeline", error);
}

void guard_pq_pipeline_sync_at(guard_pq_pipeline *pipeline, const guard_place *place)
{
    guard_error error;
    guard_pq_call call;
    guard_pq *pq = check(pipeline, place);
    if (pq == NULL) {
        return;
    }
    guard_pq_call_begin(pq, &call);
    int code = sync_now(pipeline, &error);
    guard_pq_call_end(pq, &call);
    if (code != 0) {
        guard_impl_panic_error(place, &error);
    }
}

/* One result of libpq's into the statement's: 0 or the error's code. *done: the statement has no more. */
static int take(guard_pq_pipeline *pipeline, PGresult *result, PGresult **kept, int *done, guard_error *error)
{
    guard_pq *pq = pipeline->flight.pq;
    int code = 0;
    switch (result == NULL ? PGRES_PIPELINE_SYNC : PQresultStatus(result)) {
    case PGRES_PIPELINE_SYNC:
        *done = result == NULL;
        if (result != NULL) {
            pipeline->has_first = 0;
            pipeline->syncs--;
        }
        break;
    case PGRES_PIPELINE_ABORTED:
        if (pipeline->has_first) {
            *error = pipeline->first;
            code = error->code;
        } else {
            guard_error_set(error, GUARD_PQ, GUARD_PQ_SERVER, "skipped, since an earlier statement failed");
            code = error->code;
        }
        break;
    case PGRES_COMMAND_OK:
    case PGRES_TUPLES_OK:
    case PGRES_EMPTY_QUERY:
        guard_pq_count_changes(pq, result);
        PQclear(*kept);
        *kept = result;
        return 0;
    default:
        guard_pq_text(pq->context, sizeof(pq->context), PQresultErrorField(result, PG_DIAG_CONTEXT));
        code = guard_pq_error_result(pq->conn, result, error);
        pipeline->first = *error;
        pipeline->has_first = 1;
        break;
    }
    PQclear(result);
    return code;
}

static int next(guard_pq_pipeline *pipeline, PGresult **kept, guard_error *error)
{
    guard_pq *pq = pipeline->flight.pq;
    int code = 0;
    int done = 0;
    *kept = NULL;
    if (pipeline->unsynced >= pipeline->pending && (code = sync_now(pipeline, error)) != 0) {
        return code;
    }
    guard_pq_deadline deadline = guard_pq_in(pq->options.statement_ms);
    while (!done) {
        guard_error later;
        if (!guard_pq_await(pq->conn, deadline)) {
            code = guard_pq_error_timeout(error, "an answer of the pipeline", pq->options.statement_ms);
            fail(pq);
            break;
        }
        PGresult *result = guard_pq_get_result(pq);
        int failed = take(pipeline, result, kept, &done, code == 0 ? error : &later);
        code = code != 0 ? code : failed;
        if (PQstatus(pq->conn) == CONNECTION_BAD) {
            code = code != 0 ? code : guard_pq_error_conn(pq->conn, error, "reading an answer of the pipeline");
            break;
        }
    }
    pipeline->pending--;
    if (code != 0) {
        PQclear(*kept);
        *kept = NULL;
    }
    return code;
}

PGresult *guard_pq_pipeline_next_at(guard_scope *scope, guard_pq_pipeline *pipeline, const guard_place *place)
{
    guard_error error;
    guard_pq_call call;
    PGresult *kept;
    guard_pq *pq = check(pipeline, place);
    if (pq == NULL) {
        return NULL;
    }
    if (pipeline->pending == 0) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "no statement of the pipeline waits for its answer");
        return NULL;
    }
    if (scope != NULL) {
        guard_reserve(scope, 1);
    }
    guard_pq_call_begin(pq, &call);
    int code = next(pipeline, &kept, &error);
    guard_pq_call_end(pq, &call);
    if (code != 0) {
        guard_impl_panic_error(place, &error);
    }
    if (scope == NULL) {
        PQclear(kept);
        return NULL;
    }
    guard_impl_defer_kind(scope, &guard_pq_result_kind, kept, place);
    return kept;
}

uint32_t guard_pq_pipeline_pending(const guard_pq_pipeline *pipeline)
{
    return guard_pq_is_given(pipeline) ? pipeline->pending : 0;
}

void guard_pq_pipeline_end_at(guard_pq_pipeline *pipeline, const guard_place *place)
{
    guard_error error, first;
    guard_pq_call call;
    int failed = 0;
    guard_pq *pq = check(pipeline, place);
    if (pq == NULL) {
        return;
    }
    guard_pq_call_begin(pq, &call);
    while (pipeline->flight.pq != NULL && pipeline->pending > 0) {
        PGresult *kept;
        if (next(pipeline, &kept, &error) != 0 && !failed) {
            first = error;
            failed = 1;
        }
        PQclear(kept);
    }
    /* The last syncs' answers: then the pipeline can be left without another round trip. */
    guard_pq_deadline deadline = guard_pq_in(pq->options.statement_ms);
    while (pipeline->flight.pq != NULL && pipeline->syncs > 0 && guard_pq_await(pq->conn, deadline) &&
           PQstatus(pq->conn) != CONNECTION_BAD) {
        PGresult *result = guard_pq_get_result(pq);
        pipeline->syncs -= PQresultStatus(result) == PGRES_PIPELINE_SYNC;
        PQclear(result);
    }
    guard_pq_call_end(pq, &call);
    guard_release(pipeline->flight.ticket);
    if (failed) {
        guard_impl_panic_error(place, &first);
    }
}

void guard_pq_pipeline_close(guard_pq_pipeline *pipeline)
{
    if (guard_pq_is_given(pipeline)) {
        guard_release(pipeline->flight.ticket);
    }
}
