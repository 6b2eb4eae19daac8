/* SPDX-License-Identifier: MIT */
/*
 * pq_table.h: table t of the tests' server (server.h), which the test works on through a guard.
 *
 *     GUARD_AUTO(s);
 *     guard_pq *pq = pq_open(s);
 *     guard_tx *tx = guard_pq_begin(s, pq, NULL);
 *     pq_insert(pq, 1);
 */
#ifndef TESTS_PQ_TABLE_H
#define TESTS_PQ_TABLE_H

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "server.h"

/* With the table empty, a connection of the scope. */
guard_pq *pq_open(guard_scope *s);

void pq_insert(guard_pq *pq, int id);
/* The same by guard_pq_exec_params. */
void pq_insert_params(guard_pq *pq, int id);

/* PQTRANS_… of the connection. */
int pq_status(guard_pq *pq);

/* As what a border runs: a transaction with a marker row, which is left at once; ROLLBACK TO the first savepoint. */
void pq_begin_with_row(void *pq);
void pq_roll_back_to_first(void *pq);

/* As the body of a transaction: row 2; nothing. */
void pq_insert_two(guard_tx *tx, void *arg);
void pq_do_nothing(guard_tx *tx, void *arg);

#endif
