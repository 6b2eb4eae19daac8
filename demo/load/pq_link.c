/* SPDX-License-Identifier: MIT */
/*
 *                    lost                       made within retry_for
 *     CONNECTED --------------> LOST (pq NULL) -----------------------> CONNECTED
 *                                   |
 *                                   +-- retry_for is over --> panics with the last reason
 *
 * A transaction that a lost connection took with it is rolled back, or its COMMIT is resolved before it is run again.
 */
#include "pq_target.h"

#include <string.h>
#include <time.h>

#include <guard/guard_file.h>

#include "clock.h"
#include "stop.h"

/* One chunk may be large, and wait for another worker's rows. */
#define STATEMENT_MS 600000
/* Reruns after deadlocks are begun no later than this. */
#define RERUN_MS 120000
#define FIRST_TRIES 4
#define BACKOFF_LEAST_MS 20
#define BACKOFF_MOST_MS 1000

static void connect_link(pq_link *link)
{
    guard_pq_options options = {.statement_ms = STATEMENT_MS, .commit_ms = STATEMENT_MS};
    link->pq = guard_pq_open(link->scope, link->conninfo, &options);
    link->connections++;
}

static pq_link *make_link(guard_scope *scope, const char *conninfo, double retry_for)
{
    pq_link *link = guard_memory_allocate_array(scope, 1, sizeof *link, NULL);
    link->scope = scope;
    link->conninfo = conninfo;
    link->retry_for = retry_for;
    return link;
}

static void connect_again(void *arg)
{
    connect_link(arg);
}

static void close_lost(void *arg)
{
    pq_link *link = arg;
    guard_pq *pq = link->pq;
    link->pq = NULL;
    guard_pq_close(pq);
}

static void pause_ms(long ms)
{
    struct timespec pause = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&pause, NULL); /* shorter for a signal, after which stop_check ends the wait */
}

/* Makes the connection anew before `deadline`, or panics. */
static void reconnect(pq_link *link, double deadline)
{
    guard_error error;
    if (link->pq != NULL) {
        /* What fails while a dead connection is closed is no news. */
        guard_run(close_lost, link, &error);
    }
    for (long ms = BACKOFF_LEAST_MS;; ms = ms * 2 < BACKOFF_MOST_MS ? ms * 2 : BACKOFF_MOST_MS) {
        stop_check();
        if (guard_run(connect_again, link, &error) == 0) {
            return;
        }
        if (clock_seconds() + (double)ms / 1000 > deadline) {
            guard_panic_error(&error);
        }
        pause_ms(ms);
    }
}

/*
 * A wrong address or password is told soon; a connection that is killed while it is made is not taken for that. libpq says only in words
 * which it was, in the server's language, so it is tried a few times, however long each took.
 */
pq_link *pq_link_open(guard_scope *scope, const char *conninfo, double retry_for)
{
    pq_link *link = make_link(scope, conninfo, retry_for);
    guard_error error;
    long pause = BACKOFF_LEAST_MS;
    for (int tries = 1; guard_run(connect_again, link, &error) != 0; tries++, pause *= 2) {
        if (tries == FIRST_TRIES) {
            guard_panic_error(&error);
        }
        stop_check();
        pause_ms(pause);
    }
    return link;
}

pq_link *pq_link_open_again(guard_scope *scope, const char *conninfo, double retry_for)
{
    pq_link *link = make_link(scope, conninfo, retry_for);
    reconnect(link, clock_seconds() + retry_for);
    return link;
}

/* 1 when the connection, not what it was used for, is what failed. */
static int is_lost(pq_link *link, const guard_result *result)
{
    static const char *const states[] = {"57P01", "57P02", "57P03", "25P03"};
    const guard_error *error = &result->error;
    if (!result->has_error || error->domain == GUARD_CANCELLED) {
        return 0;
    }
    if ((result->notes & GUARD_NOTE_POISONED) || (error->domain == GUARD_PQ && error->code == GUARD_PQ_CONNECTION)) {
        return 1;
    }
    if (error->sqlstate[0] != '\0') {
        int lost = strncmp(error->sqlstate, "08", 2) == 0;
        for (size_t i = 0; i < sizeof states / sizeof *states; i++) {
            lost |= strcmp(error->sqlstate, states[i]) == 0;
        }
        return lost; /* where the rollback has lost it, the next BEGIN says so */
    }
    /*
     * The transaction is over: a connection that is not at rest was given up, whatever the error is that was seen first. To take the raw connection
     * makes each later statement dearer, so that it is not done for a bad row.
     */
    PGconn *raw = guard_pq_raw(link->pq);
    return raw == NULL || PQtransactionStatus(raw) != PQTRANS_IDLE;
}

/* Finds the outcome of a transaction in doubt, on new connections, before the deadline. */
static guard_outcome resolve(pq_link *link, const guard_pq_tx_options *options, guard_result *result, double deadline)
{
    guard_outcome outcome = GUARD_IN_DOUBT;
    while (outcome == GUARD_IN_DOUBT && clock_seconds() < deadline) {
        guard_error error;
        reconnect(link, deadline);
        outcome = guard_pq_resolve(link->pq, result->token, options, &error);
    }
    if (outcome == GUARD_COMMITTED) {
        link->resolved++;
    }
    return outcome;
}

guard_outcome pq_link_transact(pq_link *link, guard_tx_fn *fn, void *arg, const char *probe, const char *probe_key,
                               guard_result *result)
{
    guard_pq_tx_options options = {.tx = {.attempts = -1, .retry_ms = RERUN_MS},
                                   .marker = probe != NULL ? GUARD_PQ_MARKER_PROBE : GUARD_PQ_MARKER_NONE,
                                   .probe = probe,
                                   .probe_key = probe_key};
    double deadline = 0;
    if (link->pq == NULL) {
        reconnect(link, clock_seconds() + link->retry_for);
    }
    for (;;) {
        guard_outcome outcome = guard_pq_transact(link->pq, fn, arg, &options, result);
        link->retries += result->attempts > 1 ? result->attempts - 1 : 0;
        link->resolved += outcome == GUARD_COMMITTED && (result->notes & GUARD_NOTE_RESOLVED) != 0;
        if (outcome == GUARD_COMMITTED) {
            return outcome;
        }
        deadline = deadline != 0 ? deadline : clock_seconds() + link->retry_for;
        if (outcome == GUARD_IN_DOUBT && probe != NULL) {
            outcome = resolve(link, &options, result, deadline);
            if (outcome != GUARD_ROLLED_BACK) {
                return outcome;
            }
        } else if (outcome == GUARD_ROLLED_BACK && !is_lost(link, result)) {
            return outcome;
        } else if (clock_seconds() > deadline) {
            return outcome;
        } else {
            reconnect(link, deadline);
        }
        link->retries++;
    }
}

void pq_link_run(pq_link *link, guard_tx_fn *fn, void *arg)
{
    guard_result result;
    if (pq_link_transact(link, fn, arg, NULL, NULL, &result) != GUARD_COMMITTED) {
        guard_panic_error(&result.error);
    }
}
