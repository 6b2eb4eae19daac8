/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_stream.c: a statement whose rows come one by one.
 *
 *     open --> rows --next, next, ...--> at its end (over) --> freed
 *                 \---closed early, or a rollback: cancelled and drained---> over
 *
 * Invariant: `row` is what the latest next returned, and the stream's.
 */
#include "guard_pq_internal.h"

struct guard_pq_stream {
    guard_pq_flight flight; /* first */
    PGresult *row;
    int ended;
};

static void release_stream(void *object)
{
    guard_pq_stream *stream = object;
    guard_pq_flight flight = stream->flight;
    PQclear(stream->row);
    guard_deallocate(stream);
    guard_pq_flight_abandon(&flight, "a stream of rows");
}

static const guard_kind stream_kind = {
    .name = "PostgreSQL stream",
    .release = release_stream,
    .since = guard_pq_flight_since,
    .action = "end",
    .flags = GUARD_KIND_HEAP | GUARD_KIND_FIXED,
};

static int start(guard_pq *pq, const char *sql, const guard_pq_params *p, guard_error *error)
{
    static const guard_pq_params none;
    if (pq->conn == NULL || pq->cut) {
        return guard_pq_error_gone(error);
    }
    /* In the program's own pipeline libpq would queue it, and what is on the wire would be taken for the stream's. */
    if (PQpipelineStatus(pq->conn) != PQ_PIPELINE_OFF) {
        guard_error_set(error, GUARD_PQ, GUARD_PQ_BUSY, "a pipeline of the program's own is open on the connection");
        return error->code;
    }
    p = p != NULL ? p : &none;
    pq->context[0] = '\0';
    if (!PQsendQueryParams(pq->conn, sql, p->count, p->types, p->values, p->lengths, p->formats, p->binary_result) ||
        !PQsetSingleRowMode(pq->conn)) {
        return guard_pq_error_conn(pq->conn, error, "sending a statement");
    }
    guard_pq_remember_sent(pq, sql, 1);
    return 0;
}

guard_pq_stream *guard_pq_stream_open_at(guard_scope *scope, guard_pq *pq, const char *sql,
                                         const guard_pq_params *params, const guard_place *place)
{
    guard_error error;
    guard_pq_call call;
    guard_pq_enter(pq, NULL, place);
    if (sql == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the statement is NULL");
        return NULL;
    }
    guard_reserve(scope, 1);
    guard_pq_stream *stream = guard_allocate(sizeof(*stream));
    stream->row = NULL;
    stream->ended = 0;
    guard_pq_call_begin(pq, &call);
    int code = start(pq, sql, params, &error);
    guard_pq_call_end(pq, &call);
    if (code != 0) {
        guard_deallocate(stream);
        guard_impl_panic_error(place, &error);
    }
    guard_pq_flight_begin(scope, &stream->flight, pq, GUARD_PQ_FLIGHT_STREAM, &stream_kind, place);
    return stream;
}

/* The answer's end, with whatever it still says. */
static int finish(guard_pq_stream *stream, PGresult *last, guard_error *error)
{
    guard_pq *pq = stream->flight.pq;
    int code = 0;
    switch (PQresultStatus(last)) {
    case PGRES_TUPLES_OK:
    case PGRES_COMMAND_OK:
    case PGRES_EMPTY_QUERY:
        guard_pq_count_changes(pq, last);
        break;
    case PGRES_COPY_IN:
    case PGRES_COPY_OUT:
    case PGRES_COPY_BOTH:
        guard_error_set(error, GUARD_PQ, GUARD_PQ_ANSWER, "a COPY cannot be read as a stream of rows");
        code = error->code;
        break;
    default:
        guard_pq_text(pq->context, sizeof(pq->context), PQresultErrorField(last, PG_DIAG_CONTEXT));
        code = guard_pq_error_result(pq->conn, last, error);
        break;
    }
    PQclear(last);
    stream->ended = 1;
    if (!guard_pq_quiesce(pq, guard_pq_in(pq->options.rollback_ms)) && PQstatus(pq->conn) != CONNECTION_BAD) {
        guard_pq_cut(pq);
    }
    return code;
}

static int next(guard_pq_stream *stream, guard_error *error)
{
    guard_pq *pq = stream->flight.pq;
    int32_t ms = pq->options.statement_ms;
    if (!guard_pq_await(pq->conn, guard_pq_in(ms))) {
        guard_pq_error_timeout(error, "waiting for a row", ms);
        stream->ended = 1;
        if (!guard_pq_quiesce(pq, guard_pq_in(pq->options.rollback_ms))) {
            guard_pq_cut(pq);
        }
        return error->code;
    }
    PGresult *result = guard_pq_get_result(pq);
    if (PQresultStatus(result) == PGRES_SINGLE_TUPLE) {
        stream->row = result;
        return 0;
    }
    return finish(stream, result, error);
}

PGresult *guard_pq_stream_next_at(guard_pq_stream *stream, const guard_place *place)
{
    guard_error error;
    guard_pq_call call;
    if (stream != NULL && stream->ended) {
        PQclear(stream->row);
        return stream->row = NULL;
    }
    if (stream == NULL || stream->flight.pq == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "the stream was ended by a rollback");
        return NULL;
    }
    guard_pq *pq = stream->flight.pq;
    guard_pq_enter(pq, &stream->flight, place);
    PQclear(stream->row);
    stream->row = NULL;
    guard_pq_call_begin(pq, &call);
    int code = next(stream, &error);
    guard_pq_call_end(pq, &call);
    if (code != 0) {
        guard_impl_panic_error(place, &error);
    }
    return stream->row;
}

void guard_pq_stream_close(guard_pq_stream *stream)
{
    if (guard_pq_is_given(stream)) {
        guard_release(stream->flight.ticket);
    }
}
