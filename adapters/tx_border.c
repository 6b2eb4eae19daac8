/* SPDX-License-Identifier: MIT */
/*
 * The border forms: a body is run in a transaction or savepoint, its panic contained, and the whole rerun where only
 * that helps.
 *
 * A rerun needs: the outcome ROLLED_BACK (proved, so never once a COMMIT is in doubt), an error that the driver calls retryable, the
 * level that sent BEGIN, a healthy connection, and attempts and time left. A nested level lets such an error pass on.
 */
#include "tx_internal.h"

#include <time.h>

#define ATTEMPTS 5
#define RETRY_MS 10000
#define BACKOFF_MS_MAX 128

typedef struct attempt {
    guard_tx_session *session;
    guard_tx *parent; /* not NULL: a savepoint in it */
    guard_tx_fn *fn;
    void *arg;
    const guard_tx_options *options;
    const void *driver_options;
    const guard_place *place;
    guard_tx *tx; /* stays valid after its scope: the border frees it */
    int in_foreign;
    int rerun;  /* the handle's */
    int closed; /* the body closed the connection: session is not to be looked at any more */
} attempt;

static void run_body(void *arg)
{
    attempt *a = arg;
    GUARD_AUTO(s);
    if (a->parent != NULL) {
        a->tx = guard_tx_open_savepoint(s, a->parent, NULL, 1, a->place);
    } else {
        a->tx = guard_tx_open(s, a->session, a->options, a->driver_options, 1, a->place);
    }
    if (a->tx == NULL) {
        return;
    }
    a->in_foreign = a->session->in_foreign;
    a->fn(a->tx, a->arg);
    if (a->tx->linked) {
        guard_tx_commit_at(a->tx, a->place);
    }
}

/* Takes over what is known of the handle and frees it. *result has the body's error already, where has_error says so. */
static void take_result(attempt *a, guard_result *result, int failed)
{
    guard_tx *tx = a->tx;
    result->reserved = 0;
    for (size_t i = 0; i < sizeof(result->more_reserved) / sizeof(result->more_reserved[0]); i++) {
        result->more_reserved[i] = 0;
    }
    result->has_error = (uint8_t)failed;
    result->has_hook_error = 0;
    result->token[0] = '\0';
    result->notes = 0;
    if (!failed) {
        result->error.code = 0;
        result->error.message[0] = '\0';
    }
    result->hook_error.code = 0;
    result->hook_error.message[0] = '\0';
    if (tx == NULL) {
        result->outcome = GUARD_ROLLED_BACK; /* it was never begun */
        return;
    }
    if (tx->first_hook != NULL) {
        guard_tx_hooks_drop(tx); /* in doubt: the handle on which they could still be run is gone */
    }
    result->outcome = tx->result.outcome;
    result->notes = tx->result.notes;
    if (!failed && tx->result.has_error) {
        result->has_error = 1;
        result->error = tx->result.error;
    }
    if (tx->result.has_hook_error) {
        result->has_hook_error = 1;
        result->hook_error = tx->result.hook_error;
    }
    if (tx->result.token[0] != '\0') {
        for (size_t i = 0; i < GUARD_TOKEN_SIZE; i++) {
            result->token[i] = tx->result.token[i];
        }
    }
    a->rerun = tx->rerun;
    a->closed = guard_tx_session_of(tx) == NULL;
    guard_tx_free(tx);
    a->tx = NULL;
}

static void run_attempt(attempt *a, guard_result *result)
{
    a->tx = NULL;
    a->rerun = 0;
    a->in_foreign = 0;
    int code = guard_run(run_body, a, &result->error);
    take_result(a, result, code != 0);
}

/* What only the result could tell, when nobody asked for it. */
static void note_result(const guard_result *result)
{
    if (result->has_hook_error) {
        guard_note("a hook of a transaction that is %s failed: %s", guard_outcome_name(result->outcome),
                   result->hook_error.message);
    }
    if (result->has_error && (result->outcome == GUARD_COMMITTED || result->outcome == GUARD_RELEASED)) {
        guard_note("a transaction is %s, but what ran after it failed: %s", guard_outcome_name(result->outcome),
                   result->error.message);
    }
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* The clock is first read when something failed: a transaction that succeeds does not pay for it. */
static int may_rerun(const attempt *a, const guard_result *result, unsigned attempts, int64_t *first_ms)
{
    const guard_tx_session *session = a->session;
    int32_t limit = a->options != NULL && a->options->attempts != 0 ? a->options->attempts : ATTEMPTS;
    int32_t retry_ms = a->options != NULL && a->options->retry_ms != 0 ? a->options->retry_ms : RETRY_MS;
    if (!result->has_error || result->outcome != GUARD_ROLLED_BACK || a->in_foreign || a->closed ||
        session->poison.code != 0 || !(a->rerun || session->driver->retryable(session->connection, &result->error))) {
        return 0;
    }
    if (*first_ms == 0) {
        *first_ms = now_ms();
    }
    return (limit == -1 || attempts < (unsigned)limit) && (retry_ms == -1 || now_ms() - *first_ms < retry_ms);
}

static guard_outcome run_nested(attempt *a, guard_result *result)
{
    guard_tx_session *session = a->session;
    run_attempt(a, result);
    result->attempts = 1;
    if (result->has_error && result->outcome != GUARD_RELEASED && !a->closed &&
        session->driver->retryable(session->connection, &result->error)) {
        guard_impl_panic_error(a->place, &result->error);
    }
    return result->outcome;
}

guard_outcome guard_tx_nested_at(guard_tx *tx, guard_tx_fn *fn, void *arg, guard_result *result,
                                 const guard_place *place)
{
    guard_result own;
    if (!guard_tx_check_thread(tx, place)) {
        return GUARD_OPEN;
    }
    if (!tx->linked || tx->session->tx != tx || fn == NULL) {
        guard_impl_misuse(place, fn == NULL ? GUARD_MISUSE_ARGUMENT : GUARD_MISUSE_STATE,
                          fn == NULL ? "the body is NULL"
                                     : "nesting in a transaction that is not the innermost open one");
        return GUARD_OPEN;
    }
    attempt a = {.session = tx->session, .parent = tx, .fn = fn, .arg = arg, .place = place};
    guard_outcome outcome = run_nested(&a, result != NULL ? result : &own);
    if (result == NULL) {
        note_result(&own);
    }
    return outcome;
}

static guard_outcome run_until_done(attempt *a, guard_result *result)
{
    unsigned attempts = 0;
    int64_t first_ms = 0;
    for (;;) {
        attempts++;
        run_attempt(a, result);
        result->attempts = attempts;
        if (!may_rerun(a, result, attempts, &first_ms)) {
            return result->outcome;
        }
        guard_tx_count_retry(a->session);
        guard_tx_backoff(attempts);
    }
}

guard_outcome guard_tx_transact(guard_tx_session *session, guard_tx_fn *fn, void *arg, const guard_tx_options *options,
                                const void *driver_options, guard_result *result, const guard_place *place)
{
    guard_result own;
    guard_result *to = result != NULL ? result : &own;
    guard_outcome outcome;
    if (fn == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the body is NULL");
        return GUARD_OPEN;
    }
    if (!guard_tx_check_options(options, place) ||
        (session->tx != NULL && !guard_tx_check_thread(session->tx, place))) {
        return GUARD_OPEN;
    }
    attempt a = {
        .session = session, .fn = fn, .arg = arg, .options = options, .driver_options = driver_options, .place = place};
    if (session->tx != NULL) {
        outcome = run_nested(&a, to);
    } else {
        outcome = run_until_done(&a, to);
    }
    if (result == NULL) {
        note_result(to);
    }
    return outcome;
}

/* The clock's nanoseconds, mixed (splitmix64): two threads that failed together do not try again together. */
static uint64_t jitter(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t x = (uint64_t)now.tv_nsec ^ (uint64_t)(uintptr_t)&now;
    x += 0x9e3779b97f4a7c15U;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
    return x ^ (x >> 31);
}

void guard_tx_backoff(unsigned attempt_number)
{
    unsigned shift = attempt_number > 0 ? attempt_number - 1 : 0;
    uint64_t ms = shift < 7 ? 1U << shift : BACKOFF_MS_MAX;
    uint64_t us = ms * 500 + jitter() % (ms * 500);
    struct timespec pause = {.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000};
    nanosleep(&pause, NULL);
}
