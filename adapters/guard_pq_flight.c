/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_flight.c: what COPY, streams and pipelines have in common: being on the wire.
 *
 *     begin --> on the wire (pq->flight) --its own end, its scope's close, or a rollback--> over (flight->pq is NULL)
 *
 * Invariant: the handle lives until its record is released; once over, every use of it is misuse and its release only frees it.
 */
#include "guard_pq_internal.h"

void guard_pq_flight_begin(guard_scope *scope, guard_pq_flight *flight, guard_pq *pq, guard_pq_flight_kind kind,
                           const guard_kind *record, const guard_place *place)
{
    flight->pq = pq;
    flight->kind = kind;
    flight->since = guard_dump_clock();
    pq->flight = flight;
    flight->ticket = guard_impl_defer_kind(scope, record, flight, place);
}

int64_t guard_pq_flight_since(const void *object)
{
    return ((const guard_pq_flight *)object)->since;
}

void guard_pq_flight_over(guard_pq_flight *flight)
{
    if (flight->pq != NULL) {
        flight->pq->flight = NULL;
        flight->pq = NULL;
    }
}

void guard_pq_flight_abandon(const guard_pq_flight *flight, const char *what)
{
    guard_pq *pq = flight->pq;
    guard_pq_call call;
    if (pq == NULL) {
        return;
    }
    if (guard_pq_disown_in_child(pq)) {
        pq->flight = NULL;
        return;
    }
    guard_pq_call_begin(pq, &call); /* the flight is still ours: what is on the wire is not the program's */
    pq->flight = NULL;
    int at_rest = guard_pq_quiesce(pq, guard_pq_in(pq->options.rollback_ms));
    if (!at_rest) {
        guard_pq_cut(pq);
    }
    guard_pq_call_end(pq, &call);
    if (!at_rest) {
        guard_panic_in(GUARD_PQ, GUARD_PQ_CONNECTION, "%s could not be ended in time: the connection is given up",
                       what);
    }
}
