/* SPDX-License-Identifier: MIT */
/*
 * What is counted of transactions, by database: a set of numbers for each driver, made when its first session is opened.
 *
 * Invariants: a set is complete before count_sets tells of it, and never changes. A handle is counted once, when it leaves the tree.
 */
#include "tx_internal.h"

#include <ctype.h>
#include <pthread.h>

/* Valgrind's helgrind takes an atomic for any other access and learns no order from it, so that it is told. */
#if defined(__has_include)
#if __has_include(<valgrind/helgrind.h>)
#include <valgrind/helgrind.h>
#endif
#endif
#ifndef ANNOTATE_HAPPENS_BEFORE
#define ANNOTATE_HAPPENS_BEFORE(object) ((void)(object))
#define ANNOTATE_HAPPENS_AFTER(object) ((void)(object))
#define VALGRIND_HG_DISABLE_CHECKING(object, size) ((void)(object))
#endif

#define SETS_MOST 8U /* drivers in a process; those beyond are not counted */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of making one */
static guard_tx_counts sets[SETS_MOST];
static unsigned count_sets;

static const guard_metric transactions = {.name = "guard_transactions_total",
                                          .help = "Outermost transactions by database and how they ended.",
                                          .type = GUARD_METRIC_COUNTER};
static const guard_metric savepoints = {.name = "guard_savepoints_total",
                                        .help = "Nested transactions by database and how they ended.",
                                        .type = GUARD_METRIC_COUNTER};
static const guard_metric resolved = {
    .name = "guard_transactions_resolved_total",
    .help = "Transactions that were in doubt, and what they were found to be later on their handle.",
    .type = GUARD_METRIC_COUNTER};
static const guard_metric retries = {.name = "guard_transaction_retries_total",
                                     .help = "Bodies of transactions that were run again.",
                                     .type = GUARD_METRIC_COUNTER};
static const guard_metric commit_seconds = {
    .name = "guard_transaction_commit_seconds",
    .help = "How long COMMIT took, its resolution included where the answer was lost.",
    .type = GUARD_METRIC_HISTOGRAM};
static const guard_metric rollback_seconds = {.name = "guard_transaction_rollback_seconds",
                                              .help = "How long ROLLBACK took, with what had to be ended before it.",
                                              .type = GUARD_METRIC_HISTOGRAM};

/* The values of the label `outcome`. */
static const char *const outcome_labels[] = {"open", "committed", "rolled_back", "in_doubt", "prepared", "released"};

static guard_counter open_outcome(const guard_metric *metric, const guard_tx_counts *set, guard_outcome outcome)
{
    const guard_label labels[] = {{"database", set->database}, {"outcome", outcome_labels[outcome]}};
    return guard_counter_open(metric, labels, 2);
}

static void fill(guard_tx_counts *set, const guard_tx_driver *driver)
{
    static const guard_outcome ends[] = {GUARD_COMMITTED, GUARD_ROLLED_BACK, GUARD_IN_DOUBT, GUARD_PREPARED};
    for (size_t i = 0; i + 1 < sizeof set->database && driver->name[i] != '\0'; i++) {
        set->database[i] = (char)tolower((unsigned char)driver->name[i]);
    }
    const guard_label database = {"database", set->database};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        set->transactions[ends[i]] = open_outcome(&transactions, set, ends[i]);
    }
    set->savepoints[GUARD_RELEASED] = open_outcome(&savepoints, set, GUARD_RELEASED);
    set->savepoints[GUARD_ROLLED_BACK] = open_outcome(&savepoints, set, GUARD_ROLLED_BACK);
    set->resolved[GUARD_COMMITTED] = open_outcome(&resolved, set, GUARD_COMMITTED);
    set->resolved[GUARD_ROLLED_BACK] = open_outcome(&resolved, set, GUARD_ROLLED_BACK);
    set->retries = guard_counter_open(&retries, &database, 1);
    set->commit = guard_histogram_open(&commit_seconds, &database, 1);
    set->rollback = guard_histogram_open(&rollback_seconds, &database, 1);
    set->driver = driver;
}

static const guard_tx_counts *find(const guard_tx_driver *driver, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (sets[i].driver == driver) {
            return &sets[i];
        }
    }
    return NULL;
}

const guard_tx_counts *guard_tx_counts_of(const guard_tx_driver *driver)
{
    unsigned count = __atomic_load_n(&count_sets, __ATOMIC_ACQUIRE);
    ANNOTATE_HAPPENS_AFTER(sets);
    const guard_tx_counts *found = find(driver, count);
    if (found != NULL) {
        return found;
    }
    pthread_mutex_lock(&lock);
    found = find(driver, count_sets);
    if (found == NULL && count_sets < SETS_MOST) {
        found = &sets[count_sets];
        fill(&sets[count_sets], driver);
        VALGRIND_HG_DISABLE_CHECKING(&count_sets, sizeof count_sets);
        ANNOTATE_HAPPENS_BEFORE(sets);
        __atomic_store_n(&count_sets, count_sets + 1, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&lock);
    return found;
}

/* ---------------------------------------------------------------------------------------------- counting */

void guard_tx_count_resolved(const guard_tx *tx)
{
    if (tx->session != NULL && tx->session->counts != NULL) {
        guard_counter_add(tx->session->counts->resolved[tx->result.outcome], 1);
    }
}

void guard_tx_count_retry(const guard_tx_session *session)
{
    if (session->counts != NULL) {
        guard_counter_add(session->counts->retries, 1);
    }
}

void guard_tx_count_rollback(const guard_tx_session *session, int64_t begun)
{
    if (session->counts != NULL) {
        guard_histogram_observe(session->counts->rollback, guard_metrics_clock() - begun);
    }
}
