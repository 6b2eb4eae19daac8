/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_copy.c: COPY from and to the client.
 *
 *     copy_in:  on the wire --put, put, ...--> on the wire --end--> over, rows counted
 *                     \---scope closes: CopyFail, the server takes the rows back---> over
 *     copy_out: on the wire --get, get, ...--> at its end --end--> over
 *                     \---scope closes: cancelled and drained---> over
 *
 * Invariant: `row` is the library's until the next get; `ended` says that libpq has given the last row and the outcome was read.
 */
#include "guard_pq_internal.h"

#include <errno.h>
#include <poll.h>

struct guard_pq_copy {
    guard_pq_flight flight; /* first */
    char *row;
    int ended;
    size_t unsent; /* at most: given to libpq since it last had nothing to send */
    int64_t rows;
};

static void release_copy(void *object)
{
    guard_pq_copy *copy = object;
    guard_pq_flight flight = copy->flight;
    PQfreemem(copy->row);
    guard_deallocate(copy);
    guard_pq_flight_abandon(&flight, "a COPY");
}

static const guard_kind copy_kind = {
    .name = "PostgreSQL COPY",
    .release = release_copy,
    .since = guard_pq_flight_since,
    .action = "end",
    .flags = GUARD_KIND_HEAP | GUARD_KIND_FIXED,
};

/* Sends the statement and waits for the server to be ready for it. */
static int start(guard_pq *pq, const char *sql, ExecStatusType wanted, guard_error *error)
{
    int32_t ms = pq->options.statement_ms;
    if (pq->conn == NULL || pq->cut) {
        return guard_pq_error_gone(error);
    }
    pq->context[0] = '\0';
    if (!PQsendQuery(pq->conn, sql)) {
        return guard_pq_error_conn(pq->conn, error, "sending a COPY");
    }
    guard_pq_remember_sent(pq, sql, 0); /* behind the COPY, say */
    if (guard_pq_await(pq->conn, guard_pq_in(ms))) {
        PGresult *result = guard_pq_get_result(pq);
        ExecStatusType status = PQresultStatus(result);
        if (status == wanted) {
            PQclear(result);
            return 0;
        }
        if (status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK || status == PGRES_COPY_IN ||
            status == PGRES_COPY_OUT) {
            PQclear(result);
            guard_error_set(error, GUARD_PQ, GUARD_PQ_ANSWER, "the statement is not a COPY %s",
                            wanted == PGRES_COPY_IN ? "FROM STDIN" : "TO STDOUT");
        } else {
            guard_pq_text(pq->context, sizeof(pq->context), PQresultErrorField(result, PG_DIAG_CONTEXT));
            guard_pq_error_result(pq->conn, result, error);
            PQclear(result);
        }
    } else {
        guard_pq_error_timeout(error, "the beginning of a COPY", ms);
    }
    if (!guard_pq_quiesce(pq, guard_pq_in(pq->options.rollback_ms))) {
        guard_pq_cut(pq);
    }
    return error->code;
}

static guard_pq_copy *open_copy(guard_scope *scope, guard_pq *pq, const char *sql, ExecStatusType wanted,
                                const guard_place *place)
{
    guard_error error;
    guard_pq_call call;
    guard_pq_enter(pq, NULL, place);
    if (sql == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the statement is NULL");
        return NULL;
    }
    guard_reserve(scope, 1);
    guard_pq_copy *copy = guard_allocate(sizeof(*copy));
    copy->row = NULL;
    copy->ended = 0;
    copy->unsent = 0;
    copy->rows = 0;
    guard_pq_call_begin(pq, &call);
    int code = start(pq, sql, wanted, &error);
    guard_pq_call_end(pq, &call);
    if (code != 0) {
        guard_deallocate(copy);
        guard_impl_panic_error(place, &error);
    }
    guard_pq_flight_begin(scope, &copy->flight, pq,
                          wanted == PGRES_COPY_IN ? GUARD_PQ_FLIGHT_COPY_IN : GUARD_PQ_FLIGHT_COPY_OUT, &copy_kind,
                          place);
    return copy;
}

guard_pq_copy *guard_pq_copy_in_at(guard_scope *scope, guard_pq *pq, const char *sql, const guard_place *place)
{
    return open_copy(scope, pq, sql, PGRES_COPY_IN, place);
}

guard_pq_copy *guard_pq_copy_out_at(guard_scope *scope, guard_pq *pq, const char *sql, const guard_place *place)
{
    return open_copy(scope, pq, sql, PGRES_COPY_OUT, place);
}

/* 1 when the handle is a COPY of this direction that is still on the wire. */
static int check(guard_pq_copy *copy, guard_pq_flight_kind kind, const guard_place *place)
{
    if (copy == NULL || copy->flight.pq == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "the COPY has ended");
        return 0;
    }
    if (copy->flight.kind != kind) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "the COPY goes the other way");
        return 0;
    }
    guard_pq_enter(copy->flight.pq, &copy->flight, place);
    return 1;
}

/* The COPY cannot go on: it is given up. */
static int fail(guard_pq *pq, int code)
{
    if (!guard_pq_quiesce(pq, guard_pq_in(pq->options.rollback_ms))) {
        guard_pq_cut(pq);
    }
    return code;
}

/* Reads the COPY's outcome. */
static int read_outcome(guard_pq *pq, guard_error *error)
{
    int code = guard_pq_collect(pq, pq->options.statement_ms, NULL, error);
    if (pq->flight != NULL) {
        guard_pq_flight_over(pq->flight);
    }
    return code;
}

/* The server has ended the COPY, or the wire has: its reason comes with the outcome. */
static int put_refused(guard_pq *pq, guard_error *error)
{
    guard_error why;
    guard_pq_error_conn(pq->conn, &why, "sending rows");
    if (read_outcome(pq, error) == 0) {
        *error = why;
    }
    return error->code;
}

/*
 * In non-blocking mode libpq keeps whatever the server does not take, without bound; so we wait each time that it may be this much. It
 * sends by itself in pieces of 8 KiB.
 */
#define UNSENT_MAX 65536

static int put(guard_pq_copy *copy, const char *data, size_t size, guard_error *error)
{
    guard_pq *pq = copy->flight.pq;
    guard_pq_deadline deadline = 0;
    while (size > 0) {
        int part = size > UNSENT_MAX ? UNSENT_MAX : (int)size;
        int sent = PQputCopyData(pq->conn, data, part);
        if (sent < 0) {
            return put_refused(pq, error);
        }
        if (sent == 0) {
            guard_error_set(error, GUARD_MEMORY, ENOMEM, "out of memory for the rows of a COPY");
            return fail(pq, error->code);
        }
        data += part;
        size -= (size_t)part;
        copy->unsent += (size_t)part;
        if (copy->unsent >= UNSENT_MAX) {
            deadline = deadline != 0 ? deadline : guard_pq_in(pq->options.statement_ms);
            if (!guard_pq_flush(pq->conn, deadline)) {
                guard_pq_error_timeout(error, "sending rows", pq->options.statement_ms);
                return fail(pq, error->code);
            }
            copy->unsent = 0;
        }
    }
    return 0;
}

void guard_pq_copy_put_at(guard_pq_copy *copy, const void *data, size_t size, const guard_place *place)
{
    guard_error error;
    guard_pq_call call;
    if (!check(copy, GUARD_PQ_FLIGHT_COPY_IN, place)) {
        return;
    }
    guard_pq *pq = copy->flight.pq;
    guard_pq_call_begin(pq, &call);
    int code = put(copy, data, size, &error);
    guard_pq_call_end(pq, &call);
    if (code != 0) {
        guard_impl_panic_error(place, &error);
    }
}

static int get(guard_pq_copy *copy, guard_error *error)
{
    guard_pq *pq = copy->flight.pq;
    guard_pq_deadline deadline = guard_pq_in(pq->options.statement_ms);
    int length;
    while ((length = PQgetCopyData(pq->conn, &copy->row, 1)) == 0) {
        if (!guard_pq_poll(pq->conn, POLLIN, deadline)) {
            fail(pq, guard_pq_error_timeout(error, "waiting for a row", pq->options.statement_ms));
            return -1;
        }
        PQconsumeInput(pq->conn);
    }
    if (length > 0) {
        return length;
    }
    copy->ended = 1;
    int code = read_outcome(pq, error);
    copy->rows = pq->changes;
    return code == 0 ? 0 : -1;
}

size_t guard_pq_copy_get_at(guard_pq_copy *copy, const char **data, const guard_place *place)
{
    guard_error error;
    guard_pq_call call;
    *data = NULL;
    if (copy != NULL && copy->ended) {
        return 0;
    }
    if (!check(copy, GUARD_PQ_FLIGHT_COPY_OUT, place)) {
        return 0;
    }
    guard_pq *pq = copy->flight.pq;
    PQfreemem(copy->row);
    copy->row = NULL;
    guard_pq_call_begin(pq, &call);
    int length = get(copy, &error);
    guard_pq_call_end(pq, &call);
    if (length < 0) {
        guard_impl_panic_error(place, &error);
    }
    *data = copy->row;
    return (size_t)length;
}

static int end_in(guard_pq *pq, guard_error *error)
{
    guard_pq_deadline deadline = guard_pq_in(pq->options.statement_ms);
    if (!guard_pq_flush(pq->conn, deadline)) {
        return fail(pq, guard_pq_error_timeout(error, "ending a COPY", pq->options.statement_ms));
    }
    int sent = PQputCopyEnd(pq->conn, NULL);
    if (sent == 0) {
        guard_error_set(error, GUARD_MEMORY, ENOMEM, "out of memory for the end of a COPY");
        return fail(pq, error->code);
    }
    return read_outcome(pq, error);
}

int64_t guard_pq_copy_end_at(guard_pq_copy *copy, const guard_place *place)
{
    guard_error error;
    guard_pq_call call;
    int64_t rows;
    if (copy != NULL && copy->ended) {
        rows = copy->rows;
        guard_release(copy->flight.ticket);
        return rows;
    }
    if (!check(copy, GUARD_PQ_FLIGHT_COPY_IN, place)) {
        return 0;
    }
    guard_pq *pq = copy->flight.pq;
    guard_pq_call_begin(pq, &call);
    int code = end_in(pq, &error);
    guard_pq_call_end(pq, &call);
    rows = pq->changes;
    guard_release(copy->flight.ticket);
    if (code != 0) {
        guard_impl_panic_error(place, &error);
    }
    return rows;
}

void guard_pq_copy_close(guard_pq_copy *copy)
{
    if (guard_pq_is_given(copy)) {
        guard_release(copy->flight.ticket);
    }
}
