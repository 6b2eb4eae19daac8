/* SPDX-License-Identifier: MIT */
/* As header_use.h, for the macros of <guard/guard_pq.h>. Only compiled, never run. */
#ifndef HEADER_USE_PQ_H
#define HEADER_USE_PQ_H

#include <guard/guard_pq.h>
#include <guard/tx.h>

extern guard_outcome header_use_pq(guard_scope *s, PGconn *raw, guard_tx_fn *fn);

static void header_use_pq_in_flight(guard_scope *s, guard_pq *pq)
{
    const char *row;
    guard_pq_copy *copy = guard_pq_copy_in(s, pq, "COPY t FROM STDIN");
    guard_pq_copy_put(copy, "1\n", 2);
    if (guard_pq_copy_end(copy) == 1) {
        guard_pq_copy_get(guard_pq_copy_out(s, pq, "COPY t TO STDOUT"), &row);
    }
    guard_pq_stream_next(guard_pq_stream_open(s, pq, "SELECT 1", NULL));
    guard_pq_pipeline *pipeline = guard_pq_pipeline_open(s, pq);
    guard_pq_pipeline_send(pipeline, "SELECT 1", NULL);
    guard_pq_pipeline_send_prepared(pipeline, "name", NULL);
    guard_pq_pipeline_sync(pipeline);
    guard_pq_pipeline_next(s, pipeline);
    guard_pq_pipeline_end(pipeline);
}

guard_outcome header_use_pq(guard_scope *s, PGconn *raw, guard_tx_fn *fn)
{
    guard_error error;
    guard_pq *pq = guard_pq_open(s, "", NULL);
    guard_pq *adopted = guard_pq_adopt(s, raw, NULL);
    guard_pq_pool *pool = guard_pq_pool_open(s, "", NULL);
    guard_pq *taken = guard_pq_pool_take(s, pool, 100);
    guard_pq_marker_install(pq, NULL);
    guard_pq_exec(s, pq, "SELECT 1");
    guard_pq_exec_params(s, pq, "SELECT 1", NULL);
    guard_pq_prepare(pq, "name", "SELECT 1", NULL);
    guard_pq_exec_prepared(s, pq, "name", NULL);
    guard_pq_own(s, PQexec(raw, "SELECT 1"));
    header_use_pq_in_flight(s, pq);
    guard_pq_lock_session(s, pq, guard_pq_query_int64(pq, "SELECT 1", 0), 100);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    guard_pq_lock(pq, 1, 100);
    if (guard_pq_try_lock(pq, 2)) {
        guard_tx_commit(tx);
    }
    guard_pq_resolve_tx(tx, NULL, &error);
    guard_pq_prepared_list(s, adopted);
    guard_pq_prepared_commit(adopted, "name");
    guard_pq_prepared_rollback(adopted, "name");
    guard_pq_transact_raw(raw, fn, NULL, NULL, NULL);
    if (guard_pq_transact(taken, fn, NULL, NULL, NULL) == GUARD_COMMITTED) {
        return guard_pq_resolve(pq, "token", NULL, &error);
    }
    return guard_pq_resolve_from("", NULL, "token", NULL, &error);
}

#ifndef __cplusplus
/* Options and parameters are written in the call, commas and all. */
extern void header_use_pq_options(guard_scope *s, PGconn *raw);

void header_use_pq_options(guard_scope *s, PGconn *raw)
{
    const char *values[] = {"a"};
    guard_pq *pq = guard_pq_open(s, "", &(guard_pq_options){.statement_ms = 1000, .commit_ms = 1000});
    guard_pq_adopt(s, raw, &(guard_pq_options){.statement_ms = 1000, .commit_ms = 1000});
    guard_pq_pool_open(s, "", &(guard_pq_pool_options){.max = 4, .take_ms = 1000});
    guard_tx_commit(guard_pq_begin(s, pq, &(guard_pq_tx_options){.probe = "SELECT 1", .probe_key = "a"}));
    guard_pq_exec_params(s, pq, "SELECT $1", &(guard_pq_params){.count = 1, .values = values});
    guard_pq_prepare(pq, "name", "SELECT $1", &(guard_pq_params){.count = 1, .values = values});
    guard_pq_exec_prepared(s, pq, "name", &(guard_pq_params){.count = 1, .values = values});
    guard_pq_stream_open(s, pq, "SELECT $1", &(guard_pq_params){.count = 1, .values = values});
    guard_pq_pipeline *pipeline = guard_pq_pipeline_open(s, pq);
    guard_pq_pipeline_send(pipeline, "SELECT $1", &(guard_pq_params){.count = 1, .values = values});
    guard_pq_pipeline_send_prepared(pipeline, "name", &(guard_pq_params){.count = 1, .values = values});
}
#endif

#endif
