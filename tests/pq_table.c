/* SPDX-License-Identifier: MIT */
#include "pq_table.h"

#include <stdio.h>

guard_pq *pq_open(guard_scope *s)
{
    server_reset();
    return guard_pq_open(s, "", NULL);
}

void pq_insert(guard_pq *pq, int id)
{
    char sql[64];
    snprintf(sql, sizeof(sql), "INSERT INTO t VALUES (%d)", id);
    guard_pq_exec(NULL, pq, sql);
}

void pq_insert_params(guard_pq *pq, int id)
{
    char text[16];
    const char *values[] = {text};
    guard_pq_params params = {.count = 1, .values = values};
    snprintf(text, sizeof(text), "%d", id);
    guard_pq_exec_params(NULL, pq, "INSERT INTO t VALUES ($1)", &params);
}

int pq_status(guard_pq *pq)
{
    return PQtransactionStatus(guard_pq_raw(pq));
}

void pq_begin_with_row(void *pq)
{
    GUARD_AUTO(s);
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW};
    guard_pq_begin(s, pq, &options);
}

void pq_roll_back_to_first(void *pq)
{
    guard_pq_exec(NULL, pq, "ROLLBACK TO guard_1");
}

void pq_insert_two(guard_tx *tx, void *arg)
{
    (void)arg;
    pq_insert(guard_pq_of(tx), 2);
}

void pq_do_nothing(guard_tx *tx, void *arg)
{
    (void)tx;
    (void)arg;
}
