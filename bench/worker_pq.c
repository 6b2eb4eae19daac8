/* SPDX-License-Identifier: MIT */
/* Guarded transactions of one insert on PostgreSQL, without a marker and with a marker row; the pool. The server is the one that libpq finds by itself. */
#include <stdio.h>
#include <stdlib.h>

#include <guard/guard_pq.h>

#include "bench.h"

typedef struct job {
    uint64_t count;
    uint64_t check;
    int32_t marker;
} job;

static void insert_one(guard_pq *pq, uint64_t i)
{
    GUARD_AUTO(s);
    char number[24];
    const char *values[] = {number};
    snprintf(number, sizeof number, "%llu", (unsigned long long)i);
    guard_pq_params params = {.count = 1, .values = values};
    guard_pq_exec_prepared(s, pq, "insert", &params);
}

/* A turn is one statement: its BEGIN goes with it. */
static const guard_pq_tx_options with_first = {.flags = GUARD_PQ_BEGIN_WITH_FIRST};

static void transactions(guard_pq *pq, uint64_t first, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        GUARD_AUTO(turn);
        guard_tx *tx = guard_pq_begin(turn, pq, &with_first);
        insert_one(pq, first + i);
        guard_tx_commit(tx);
    }
}

static void job_run(void *memory)
{
    GUARD_AUTO(s);
    job *mine = memory;
    guard_pq *pq = guard_pq_open(s, "", &(guard_pq_options){.marker = mine->marker});
    bench_place((int)guard_pq_query_int64(pq, "SELECT pg_backend_pid()", -1));
    if (mine->marker == GUARD_PQ_MARKER_ROW) {
        guard_pq_marker_install(pq, NULL);
    }
    guard_pq_exec(s, pq,
                  "SET client_min_messages = warning; DROP TABLE IF EXISTS entry_guard;"
                  "CREATE TABLE entry_guard (n bigint NOT NULL)");
    guard_pq_prepare(pq, "insert", "INSERT INTO entry_guard VALUES ($1)", NULL);
    transactions(pq, 0, 1); /* a session's first one asks for the marker's table */
    bench_begin();
    transactions(pq, 1, mine->count);
    bench_end();
    mine->check = (uint64_t)guard_pq_query_int64(pq, "SELECT sum(n)::bigint FROM entry_guard", -1);
}

static uint64_t job_contain(guard_fn *run, job *mine)
{
    guard_error error;
    if (getenv("PGHOST") == NULL) {
        bench_skip("no server: PGHOST is not set");
    }
    if (guard_run(run, mine, &error) != 0) {
        bench_fail("%s", error.message);
    }
    return mine->check;
}

static uint64_t pq_tx(uint64_t count)
{
    job mine = {.count = count, .marker = GUARD_PQ_MARKER_NONE};
    return job_contain(job_run, &mine);
}

static uint64_t pq_tx_marker(uint64_t count)
{
    job mine = {.count = count, .marker = GUARD_PQ_MARKER_ROW};
    return job_contain(job_run, &mine);
}

/* A turn takes a connection that is idle, and gives it back. The check counts the takes that the pool served. */
static void pool_run(void *memory)
{
    GUARD_AUTO(s);
    job *mine = memory;
    guard_pq_pool_stats stats;
    guard_pq_pool *pool = guard_pq_pool_open(s, "", NULL);
    {
        GUARD_AUTO(first); /* makes the connection */
        guard_pq_pool_take(first, pool, 0);
    }
    bench_begin();
    for (uint64_t i = 1; i < mine->count; i++) {
        GUARD_AUTO(turn);
        guard_pq_pool_take(turn, pool, 0);
    }
    bench_end();
    guard_pq_pool_stats_read(pool, &stats);
    if (stats.opened != 1) {
        bench_fail("%llu connections were opened", (unsigned long long)stats.opened);
    }
    mine->check = stats.takes;
}

static uint64_t pool_take(uint64_t count)
{
    job mine = {.count = count};
    return job_contain(pool_run, &mine);
}

int main(int argc, char **argv)
{
    static const bench_work works[] = {
        {"pq-tx", pq_tx}, {"pq-tx-marker", pq_tx_marker}, {"pool-take", pool_take}, {NULL, NULL}};
    return bench_serve(argc, argv, works);
}
