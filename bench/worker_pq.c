/* SPDX-License-Identifier: MIT */
/* Guarded transactions of one insert on PostgreSQL, without a marker and with a marker row. The server is the one that libpq finds by itself. */
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

static void job_run(void *memory)
{
    GUARD_AUTO(s);
    job *mine = memory;
    guard_pq *pq = guard_pq_open(s, "", &(guard_pq_options){.marker = mine->marker});
    if (mine->marker == GUARD_PQ_MARKER_ROW) {
        guard_pq_marker_install(pq, NULL);
    }
    guard_pq_exec(s, pq,
                  "SET client_min_messages = warning; DROP TABLE IF EXISTS entry_guard;"
                  "CREATE TABLE entry_guard (n bigint NOT NULL)");
    guard_pq_prepare(pq, "insert", "INSERT INTO entry_guard VALUES ($1)", NULL);
    bench_begin();
    for (uint64_t i = 1; i <= mine->count; i++) {
        GUARD_AUTO(turn);
        guard_tx *tx = guard_pq_begin(turn, pq, NULL);
        insert_one(pq, i);
        guard_tx_commit(tx);
    }
    bench_end();
    mine->check = (uint64_t)guard_pq_query_int64(pq, "SELECT sum(n)::bigint FROM entry_guard", -1);
}

static uint64_t job_check(uint64_t count, int32_t marker)
{
    job mine = {.count = count, .marker = marker};
    guard_error error;
    if (getenv("PGHOST") == NULL) {
        bench_skip("no server: PGHOST is not set");
    }
    if (guard_run(job_run, &mine, &error) != 0) {
        bench_fail("%s", error.message);
    }
    return mine.check;
}

static uint64_t pq_tx(uint64_t count)
{
    return job_check(count, GUARD_PQ_MARKER_NONE);
}

static uint64_t pq_tx_marker(uint64_t count)
{
    return job_check(count, GUARD_PQ_MARKER_ROW);
}

int main(int argc, char **argv)
{
    static const bench_work works[] = {{"pq-tx", pq_tx}, {"pq-tx-marker", pq_tx_marker}, {NULL, NULL}};
    return bench_serve(argc, argv, works);
}
