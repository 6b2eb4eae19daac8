/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_message.c: several statements in one message to the server: a pipeline of the library's own, with one sync at its end.
 *
 *     at rest --open--> in pipeline mode, queueing --send--> on the wire --next: results, their ends, the sync--> at rest
 *                                 \                             |-- lost, late, no memory: the sync was not read--> cut
 *                                  '-libpq cannot queue all of it: what may have gone is not to be followed --cut by the caller
 *
 * The server skips what follows the first statement that fails, up to the sync, and then says how the transaction stands.
 *
 * Invariants
 *   - pq->message is 0 at rest; on the wire it is one more than the statements whose end was not read. libpq ends each with a NULL, and the sync
 *     with none. A wire that broke gives NULL for ever, so that they are counted.
 *   - Who uses the connection next finds it out of pipeline mode, or cut.
 */
#include "guard_pq_internal.h"

int guard_pq_message_open(guard_pq *pq)
{
    return PQenterPipelineMode(pq->conn);
}

int guard_pq_message_send(guard_pq *pq, unsigned statements)
{
    pq->message = (uint8_t)(statements + 1);
    return PQpipelineSync(pq->conn);
}

static void leave(guard_pq *pq)
{
    pq->message = 0;
    if (!PQexitPipelineMode(pq->conn)) {
        guard_pq_cut(pq);
    }
}

/* 1: it is none of a statement's. Else *result is one, or NULL at the message's end. */
static int is_between(guard_pq *pq, PGresult **result)
{
    if (*result == NULL && pq->message > 1) {
        pq->message--;
        return 1;
    }
    ExecStatusType status = *result != NULL ? PQresultStatus(*result) : PGRES_PIPELINE_SYNC;
    if (status != PGRES_PIPELINE_SYNC && status != PGRES_PIPELINE_ABORTED) {
        return 0;
    }
    PQclear(*result);
    *result = NULL;
    if (status == PGRES_PIPELINE_SYNC) {
        leave(pq);
    }
    return status == PGRES_PIPELINE_ABORTED;
}

/*
 * libpq 15 that has no memory for the sync's result has read it, and waits for it for ever. It has cleared its error's text before.
 */
static int is_sync_lost(guard_pq *pq)
{
    return PQisBusy(pq->conn) && PQerrorMessage(pq->conn)[0] != '\0';
}

int guard_pq_next(guard_pq *pq, guard_pq_deadline deadline, PGresult **result)
{
    do {
        if (GUARD_IMPL_UNLIKELY(pq->message == 1) && is_sync_lost(pq)) {
            guard_pq_cut(pq);
            *result = NULL;
            return 1;
        }
        if (!guard_pq_await_answer(pq, deadline)) {
            *result = NULL;
            return 0;
        }
        *result = guard_pq_get_result(pq);
    } while (GUARD_IMPL_UNLIKELY(pq->message != 0) && is_between(pq, result));
    return 1;
}
