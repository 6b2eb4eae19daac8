/* SPDX-License-Identifier: MIT */
/*
 * Rows go in by one of two ways: together, as COPY does it, or one by one.
 *
 * COPY collects up to a thousand rows before it writes them, and holds a reference to the table's description for each. They are still held
 * when it looks up the rows' foreign keys afterwards, in a hash table of references by address (CopyMultiInsertBuffer and ResourceArray of
 * PostgreSQL 15), where they are one run of a thousand. Each look-up enters the other table's description: where its address falls into that run,
 * it goes past up to a thousand entries to do so. This is a matter of chance, and the same for all COPYs of a connection: of 231,083 flights,
 * with two keys each, psql's \copy takes 1.74 to 1.81 s of the server's time in one half of its starts, anything up to 2.66 in the other, and
 * one function, ResourceOwnerRememberTupleDesc, 8 or 536 ms of it (perf). A COPY with a condition that is volatile collects no rows:
 * 1.79 to 1.86 s in 14 starts.
 *
 *     OPEN --the first rows of a chunk one by one, the next ones together--> SETTLED for the faster way
 *       ^----------------------- the connection is made anew -------------------/
 *
 * One by one goes first. No try is the last COPY of a full chunk, behind whose rows the next chunks are looked for (pq_cut.c) while the server
 * may have nothing to do. While it is open and rows are bad, they go in one by one: no COPY is large enough to measure, and on average that is
 * better. A server that does not take such a COPY is not asked again by a worker.
 */
#include "pq_target.h"

#include <string.h>

#define TOGETHER 0
#define SINGLY 1

/*
 * Their paces' ratio was 0.86 to 1.04 in fifteen starts of an idle server where chance was kind and one by one takes a twenty-fifth longer, and
 * 1.09 to 1.42 in nine where it was not.
 */
#define SINGLY_GAIN 1.06

/* Of each try. With fewer than a thousand rows a COPY has a shorter run. */
#define TRY_ROWS 3500
#define TRY_ROWS_LEAST 1000

/* The first whose COPY FROM takes a condition: https://www.postgresql.org/docs/12/release-12.html. */
#define SERVER_WITH_CONDITION 120000

static size_t try_rows(const pq_worker *w)
{
    uint64_t batch = w->load->options->batch;
    return batch == 0 || batch / 3 > TRY_ROWS ? TRY_ROWS : (size_t)batch / 3;
}

static int may_go_singly(const pq_worker *w)
{
    return w->target->has_foreign_key && !w->target->is_checked_late && !w->way.refused &&
           try_rows(w) >= TRY_ROWS_LEAST && w->target->server_version >= SERVER_WITH_CONDITION;
}

void pq_way_begin(pq_worker *w)
{
    pq_way *way = &w->way;
    if (way->connection != w->link->connections) {
        way->connection = w->link->connections;
        way->is_settled = way->singly = 0;
    }
    if (!way->is_settled) {
        way->singly = w->is_careful && may_go_singly(w);
    }
}

size_t pq_way_open(pq_worker *w)
{
    if (w->way.is_settled || w->is_careful || !may_go_singly(w)) {
        return 0;
    }
    w->way.singly = SINGLY;
    memset(w->way.rows, 0, sizeof w->way.rows);
    return try_rows(w);
}

void pq_way_measure(pq_worker *w, size_t rows, double seconds)
{
    pq_way *way = &w->way;
    way->rows[way->singly] = (double)rows / (seconds + 1e-6);
    if (way->singly) {
        way->singly = TOGETHER;
    } else {
        way->singly = way->rows[SINGLY] > way->rows[TOGETHER] * SINGLY_GAIN;
        way->is_settled = 1;
    }
}

int pq_way_refuse(pq_worker *w)
{
    if (!w->way.singly) {
        return 0;
    }
    w->way.singly = 0;
    w->way.refused = 1;
    return 1;
}

const char *pq_way_copy(const pq_worker *w)
{
    return w->way.singly ? w->target->copy_singly : w->target->copy;
}
