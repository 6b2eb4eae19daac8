/* SPDX-License-Identifier: MIT */
/*
 * How fast rows go in, and by which of two ways: together, as COPY does it, or one by one.
 *
 * COPY collects up to a thousand rows before it writes them, and holds a reference to the table's description for each. They are still held
 * when it looks up the rows' foreign keys afterwards, in a hash table of references by address (CopyMultiInsertBuffer and ResourceArray of
 * PostgreSQL 15), where they are one run of a thousand. Each look-up enters the other table's description: where its address falls into that run,
 * it goes past up to a thousand entries to do so. This is a matter of chance, and the same for all COPYs of a connection: of 231,083 flights,
 * with two keys each, psql's \copy takes 1.75 s of the server's time in one half of its starts, anything up to 2.65 in the other, and
 * one function, ResourceOwnerRememberTupleDesc, 8 or 536 ms of it (perf). A COPY with a condition that is volatile collects no rows:
 * 1.79 to 1.86 s in 28 starts.
 *
 *     TOGETHER --a chunk went in at one go--> ONE BY ONE, once --> the way whose last chunk was faster --> ...
 *
 * A connection made anew begins again. A server that does not take such a COPY is not asked twice by a worker.
 */
#include "pq_target.h"

#define TOGETHER 0
#define SINGLY 1

/* Where chance is kind it costs a twenty-fifth more, and two chunks of ten thousand rows differ by less than this. */
#define SINGLY_GAIN 1.05

#define SERVER_WITH_CONDITION \
    120000 /* the first whose COPY FROM takes one, https://www.postgresql.org/docs/12/release-12.html */

static int may_go_singly(const pq_worker *w)
{
    return w->target->has_foreign_key && !w->target->is_checked_late && !w->pace.refused &&
           PQserverVersion(guard_pq_raw(w->link->pq)) >= SERVER_WITH_CONDITION;
}

int pq_pace_tests_next(const pq_worker *w)
{
    const pq_pace *pace = &w->pace;
    int is_known = pace->of[TOGETHER] != 0 || pace->rows == 0;
    return !pace->singly && pace->of[SINGLY] == 0 && is_known && may_go_singly(w);
}

void pq_pace_begin(pq_worker *w)
{
    pq_pace *pace = &w->pace;
    if (pace->connection != w->link->connections) {
        pace->connection = w->link->connections;
        pace->of[TOGETHER] = pace->of[SINGLY] = 0;
    }
    pace->singly = pace->of[TOGETHER] != 0 &&
                   (pace->of[SINGLY] == 0 || pace->of[SINGLY] > pace->of[TOGETHER] * SINGLY_GAIN) && may_go_singly(w);
}

void pq_pace_end(pq_worker *w, double seconds)
{
    pq_pace *pace = &w->pace;
    pace->rows = (double)w->chunk.read / (seconds + 1e-6);
    if (pace->singly || w->rejects.count == 0) {
        pace->of[pace->singly] =
            pace->rows; /* with bad rows it says little; what is to be better must be so with them */
    }
}

int pq_pace_refuse(pq_worker *w)
{
    if (!w->pace.singly) {
        return 0;
    }
    w->pace.singly = 0;
    w->pace.refused = 1;
    return 1;
}

const char *pq_pace_copy(const pq_worker *w)
{
    return w->pace.singly ? w->target->copy_singly : w->target->copy;
}
