/* SPDX-License-Identifier: MIT */
/*
 * pq_sending.h: the ways in which a program sends one statement on a guard's connection: each of the guard's, and libpq's.
 *
 *     for (int way = 0; way < PQ_SENDINGS; way++) {
 *         pq_send(pq, "SAVEPOINT a", (pq_sending)way, 0);
 *     }
 */
#ifndef TESTS_PQ_SENDING_H
#define TESTS_PQ_SENDING_H

#include <stddef.h>

#include <guard/guard_pq.h>

typedef enum pq_sending {
    PQ_BY_EXEC,
    PQ_BY_PARAMS,
    PQ_BY_PREPARED,
    PQ_BY_PIPELINE,
    PQ_BY_STREAM,
    PQ_BY_LIBPQ,         /* these three are one to pq_send: the program has the connection before the transaction, */
    PQ_BY_LIBPQ_LATE,    /* asks for it in the transaction, */
    PQ_BY_LIBPQ_ADOPTED, /* or gave it to the guard */
    PQ_SENDINGS
} pq_sending;

/* Panics as the guard does; what libpq is answered is not looked at. `number` makes a prepared statement's name. */
void pq_send(guard_pq *pq, const char *sql, pq_sending way, size_t number);

#endif
