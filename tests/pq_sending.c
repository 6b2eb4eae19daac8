/* SPDX-License-Identifier: MIT */
#include "pq_sending.h"

#include <stdio.h>

#include <guard/guard.h>

static void send_in_pipeline(guard_pq *pq, const char *sql)
{
    GUARD_AUTO(s);
    guard_pq_pipeline *pipeline = guard_pq_pipeline_open(s, pq);
    guard_pq_pipeline_send(pipeline, sql, NULL);
    guard_pq_pipeline_end(pipeline);
}

static void send_in_stream(guard_pq *pq, const char *sql)
{
    GUARD_AUTO(s);
    guard_pq_stream_next(guard_pq_stream_open(s, pq, sql, NULL));
}

void pq_send(guard_pq *pq, const char *sql, pq_sending way, size_t number)
{
    char name[32];
    switch (way) {
    case PQ_BY_EXEC:
        guard_pq_exec(NULL, pq, sql);
        break;
    case PQ_BY_PARAMS:
        guard_pq_exec_params(NULL, pq, sql, NULL);
        break;
    case PQ_BY_PREPARED:
        snprintf(name, sizeof(name), "s%zu", number);
        guard_pq_prepare(pq, name, sql, NULL);
        guard_pq_exec_prepared(NULL, pq, name, NULL);
        break;
    case PQ_BY_PIPELINE:
        send_in_pipeline(pq, sql);
        break;
    case PQ_BY_STREAM:
        send_in_stream(pq, sql);
        break;
    default:
        PQclear(PQexec(guard_pq_raw(pq), sql));
        break;
    }
}
