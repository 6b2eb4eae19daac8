/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_rollback.c: taking a transaction back, in bounded time, whatever is in flight.
 *
 *     anything --quiesce--> at rest, in a transaction --ROLLBACK, agreed--> idle
 *        |                  \-at rest, in none: what was in flight has ended it, and its answer says how
 *        |--BEGIN still to be sent, or refused--> nothing is sent
 *        \---deadline, or dead---> socket shut: the server rolls back when it sees that. COMMIT was not sent, so that is certain.
 */
#include "guard_pq_internal.h"

#include <string.h>

int guard_pq_roll_back(guard_pq *pq, const char *sql, guard_pq_deadline deadline, guard_error *error)
{
    int code = 0;
    /* A cancel that came late hits our ROLLBACK instead of its statement: it is told again. */
    for (int tries = 0; tries < 5 && guard_pq_quiesce(pq, deadline); tries++) {
        code = guard_pq_query_of(pq, sql, deadline, error);
        if (PQtransactionStatus(pq->conn) == PQTRANS_IDLE) {
            return 1;
        }
        if (code == 0) {
            break; /* agreed, and still in a transaction: not a server that we understand */
        }
    }
    int dead = pq->conn == NULL || PQstatus(pq->conn) == CONNECTION_BAD;
    guard_error cause = *error;
    guard_error_set(
        error, GUARD_TX, GUARD_TX_ROLLBACK,
        dead ? "the connection is lost: the server rolls back by itself"
             : "the server did not take the ROLLBACK in time: the connection is given up, and it rolls back by "
               "itself");
    if (code != 0) {
        guard_error_attach(error, &cause, GUARD_CAUSE);
    }
    guard_pq_cut(pq);
    return 0;
}

/*
 * A probe needs nothing of COMMIT's own message. A marker row would have been in it, and no COMMIT of ours was sent: that there is none
 * says nothing about one of the program's.
 */
static void keep_probe_only(guard_pq *pq)
{
    if (pq->t.marker != GUARD_PQ_MARKER_PROBE) {
        pq->t.marker = GUARD_PQ_MARKER_NONE;
        pq->t.prepare_as = NULL;
    }
}

guard_outcome guard_pq_told_elsewhere(guard_pq *pq, guard_result *result)
{
    result->notes |= GUARD_NOTE_ENDED_ELSEWHERE;
    if (pq->t.ended != GUARD_OPEN) {
        return (guard_outcome)pq->t.ended;
    }
    keep_probe_only(pq);
    guard_pq_token_write(pq, "", result->token);
    guard_error_set(&result->error, GUARD_TX, GUARD_TX_IN_DOUBT,
                    "the transaction was ended by somebody, and libpq did not see how");
    result->has_error = 1;
    return GUARD_IN_DOUBT;
}

guard_outcome guard_pq_lost_elsewhere(guard_pq *pq, guard_result *result)
{
    int outside = pq->outside && !pq->t.may_be_over;
    keep_probe_only(pq);
    guard_outcome outcome = guard_pq_in_doubt(
        pq,
        outside ? "the program has used the connection by libpq itself, and what it sent last may have "
                  "ended the transaction"
                : "SQL of the program's own may have ended the transaction",
        result);
    if (outside && outcome == GUARD_IN_DOUBT) {
        guard_pq_text(result->error.hint, sizeof(result->error.hint),
                      "Of what is sent by guard_pq_exec the guard knows what it is; a probe finds the outcome.");
    }
    result->notes = (result->notes | GUARD_NOTE_ENDED_ELSEWHERE) & ~(uint32_t)GUARD_NOTE_NO_ROW_WRITTEN;
    return outcome;
}

/* The transaction was aborted by an error after which all of it may be run again. */
static void remember_retry(guard_pq *pq)
{
    pq->t.retry = guard_pq_status(pq) == GUARD_TX_ABORTED && pq->t.has_error &&
                  guard_pq_is_retryable(pq->t.error.sqlstate);
}

/* What is in flight may end the transaction before it can be cancelled, so its answer counts before anything is sent. */
static guard_outcome rollback(guard_pq *pq, guard_result *result)
{
    guard_error error;
    guard_pq_deadline deadline = guard_pq_in(pq->t.rollback_ms);
    int at_rest = guard_pq_quiesce(pq, deadline);
    if (at_rest && guard_pq_status(pq) == GUARD_TX_IDLE) {
        return guard_pq_told_elsewhere(pq, result);
    }
    if (!at_rest && (pq->t.over || guard_pq_may_be_over(pq))) {
        guard_pq_cut(pq);
        return pq->t.over ? guard_pq_told_elsewhere(pq, result) : guard_pq_lost_elsewhere(pq, result);
    }
    remember_retry(pq);
    memset(&error, 0, sizeof(error));
    if (!guard_pq_roll_back(pq, "ROLLBACK", deadline, &error)) {
        result->error = error;
        result->has_error = 1;
    }
    return GUARD_ROLLED_BACK;
}

guard_outcome guard_pq_rollback(void *connection, guard_result *result)
{
    guard_pq *pq = connection;
    guard_pq_call call;
    if (guard_pq_is_unsent(pq) || (pq->session.tx != NULL && pq->t.begin == GUARD_PQ_UNBEGUN)) {
        return GUARD_ROLLED_BACK; /* the server knows nothing of it */
    }
    if (guard_pq_status(pq) == GUARD_TX_IDLE) {
        return guard_pq_told_elsewhere(pq, result);
    }
    guard_pq_call_begin(pq, &call);
    guard_outcome outcome = rollback(pq, result);
    guard_pq_call_end(pq, &call);
    return outcome;
}
