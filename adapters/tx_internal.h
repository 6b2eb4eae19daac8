/* SPDX-License-Identifier: MIT */
/* What the files of the transaction code share; for nobody else. */
#ifndef GUARD_TX_INTERNAL_H
#define GUARD_TX_INTERNAL_H

#include <guard/guard_cancel.h>
#include <guard/guard_context.h>
#include <guard/guard_dump.h>
#include <guard/guard_metrics.h>
#include <guard/guard_process.h>
#include <guard/tx.h>

/* USDT probes, see guard/SERVICE.md. */
#ifdef GUARD_WITH_PROBES
#include <sys/sdt.h>
#define TX_PROBE(probe, tx) \
    DTRACE_PROBE3(guard, probe, (tx)->session->driver->name, (tx)->session->connection, (tx)->savepoint.level)
#define TX_PROBE_OUTCOME(tx)                                                                                        \
    DTRACE_PROBE4(guard, tx_outcome, (tx)->session->driver->name, (tx)->session->connection, (tx)->savepoint.level, \
                  guard_tx_outcome_names[(tx)->result.outcome])
#else
#define TX_PROBE(probe, tx) ((void)0)
#define TX_PROBE_OUTCOME(tx) ((void)0)
#endif

#define GUARD_TX_NAME_MAX 63

typedef struct guard_tx_hook {
    struct guard_tx_hook *next;
    guard_fn *fn;
    void *arg;
    guard_outcome when; /* COMMITTED or ROLLED_BACK */
} guard_tx_hook;

struct guard_tx {
    guard_tx_session *session; /* NULL once the connection is closed */
    guard_tx *parent;          /* the enclosing one of the tree */
    guard_tx *next;            /* in session->handles or session->spare */
    guard_tx *previous;
    const void *thread;
    const guard_place *place; /* where it was begun */
    int64_t since;            /* when: guard_dump_clock */
    guard_tx_hook *first_hook;
    guard_tx_hook *last_hook;
    guard_tx_savepoint savepoint; /* level 0: it is the transaction itself */
    unsigned generated;           /* the level that `name` was generated for, 0: a user's */
    uint8_t linked;               /* it is in the tree */
    uint8_t scoped;               /* its scope is open */
    uint8_t rerun;                /* what was remembered of it when its hooks began: running it again can help */
    uint8_t kept;                 /* a border form reads `result` after the scope closed, and frees it */
    guard_result result;
    char name[2 * GUARD_TX_NAME_MAX + 3];
};

extern const char *const guard_tx_outcome_names[GUARD_RELEASED + 1];

/* What is counted for a driver; see tx_count.c. */
typedef struct guard_tx_counts {
    const guard_tx_driver *driver;
    guard_counter transactions[GUARD_RELEASED + 1]; /* by guard_outcome */
    guard_counter savepoints[GUARD_RELEASED + 1];
    guard_counter resolved[GUARD_RELEASED + 1];
    guard_counter retries;
    guard_histogram commit;
    guard_histogram rollback;
    char database[24];
} guard_tx_counts;

/* tx_handle.c */
guard_tx *guard_tx_take_new(void);
void guard_tx_free_slow(guard_tx *tx);
guard_tx *guard_tx_root(guard_tx *tx);
void guard_tx_tell_undone(const guard_tx *tx);
extern const guard_kind guard_tx_kind;
#define GUARD_TX_SPARES 4 /* a connection seldom nests deeper; each is about 3 KiB */
void guard_tx_set_place(guard_error *error, const guard_place *place);
void guard_tx_add_error(guard_result *result, const guard_error *error);
void guard_tx_raise_poisoned(const guard_tx_session *session, const guard_place *place) GUARD_NORETURN;
/* Slow sides of the checks below: 0 after misuse was told; 1 where options are in range. */
int guard_tx_refuse_thread(const guard_tx *tx, const guard_place *place);
int guard_tx_refuse_order(const guard_tx *tx, const char *verb, const guard_place *place);
int guard_tx_check_given(const guard_tx_options *options, const guard_place *place);

/* Its addresses tell threads apart, and a forked child's from its parent's. */
extern __thread char guard_tx_here[64] __attribute__((tls_model("initial-exec")));

static inline const void *guard_tx_thread_here(void)
{
    return &guard_tx_here[guard_fork_count() % sizeof(guard_tx_here)];
}

static inline void guard_tx_link(guard_tx *tx, guard_tx *parent)
{
    const void *thread = guard_tx_thread_here();
    tx->parent = parent;
    tx->thread = thread;
    tx->linked = 1;
    tx->session->tx = tx;
    tx->session->thread = thread;
}

static inline int guard_tx_check_thread(const guard_tx *tx, const guard_place *place)
{
    return GUARD_IMPL_LIKELY(tx != NULL && tx->thread == guard_tx_thread_here()) || guard_tx_refuse_thread(tx, place);
}

/* The transaction can be the innermost open one only. */
static inline int guard_tx_check_innermost(const guard_tx *tx, const char *verb, const guard_place *place)
{
    return GUARD_IMPL_LIKELY(tx->session->tx == tx) || guard_tx_refuse_order(tx, verb, place);
}

static inline int guard_tx_check_options(const guard_tx_options *options, const guard_place *place)
{
    return options == NULL || guard_tx_check_given(options, place);
}

/* tx.c */
void guard_tx_release_handle(void *object);
guard_tx *guard_tx_open(guard_scope *scope, guard_tx_session *session, const guard_tx_options *options,
                        const void *driver_options, int kept, const guard_place *place);
guard_tx *guard_tx_open_savepoint(guard_scope *scope, guard_tx *parent, const char *name, int kept,
                                  const guard_place *place);

/* tx_count.c */
/* NULL where there are too many drivers. Allocates nothing. */
const guard_tx_counts *guard_tx_counts_of(const guard_tx_driver *driver);
void guard_tx_count_resolved(const guard_tx *tx); /* after it had left the tree in doubt */
void guard_tx_count_retry(const guard_tx_session *session);
/* A ROLLBACK that was begun at guard_metrics_clock() and has ended now. */
void guard_tx_count_rollback(const guard_tx_session *session, int64_t begun);

/* A handle leaves the tree with its outcome. */
static inline void guard_tx_count_end(const guard_tx *tx)
{
    const guard_tx_counts *counts = tx->session->counts;
    if (GUARD_IMPL_LIKELY(counts != NULL)) {
        const guard_counter *by_outcome = tx->savepoint.level == 0 ? counts->transactions : counts->savepoints;
        guard_counter_add(by_outcome[tx->result.outcome], 1);
    }
}

/* tx_hook.c */
void guard_tx_hooks_end(guard_tx *tx); /* there are some */
void guard_tx_hooks_move(guard_tx *tx, guard_tx *parent);
void guard_tx_hooks_drop(guard_tx *tx);

static inline void guard_tx_hooks_run(guard_tx *tx)
{
    if (GUARD_IMPL_UNLIKELY(tx->first_hook != NULL)) {
        guard_tx_hooks_end(tx);
    }
}

/* ----------------------------------------------------------------------- handles: inline, each transaction does it all */

/* Where error.code is 0, nobody reads the rest of it. */
static inline void guard_tx_clear_result(guard_result *result)
{
    result->outcome = GUARD_OPEN;
    result->notes = 0;
    result->attempts = 1;
    result->has_error = 0;
    result->has_hook_error = 0;
    result->reserved = 0;
    __builtin_memset(result->more_reserved, 0, sizeof(result->more_reserved));
    result->token[0] = '\0';
    result->error.code = 0;
    result->error.message[0] = '\0';
    result->hook_error.code = 0;
    result->hook_error.message[0] = '\0';
}

/* A handle in session->handles, OPEN and not in the tree. */
static inline guard_tx *guard_tx_take(guard_tx_session *session, const guard_place *place)
{
    guard_tx *tx = session->spare;
    if (GUARD_IMPL_LIKELY(tx != NULL)) {
        session->spare = tx->next;
        session->spares--;
    } else {
        tx = guard_tx_take_new();
    }
    tx->session = session;
    tx->parent = NULL;
    tx->previous = NULL;
    tx->place = place;
    tx->first_hook = NULL;
    tx->last_hook = NULL;
    tx->linked = 0;
    tx->scoped = 1;
    tx->rerun = 0;
    tx->kept = 0;
    guard_tx_clear_result(&tx->result);
    guard_tx *next = session->handles;
    tx->next = next;
    if (GUARD_IMPL_UNLIKELY(next != NULL)) {
        next->previous = tx;
    }
    session->handles = tx;
    return tx;
}

static inline void guard_tx_free(guard_tx *tx)
{
    guard_tx_session *session = tx->session;
    if (GUARD_IMPL_UNLIKELY(tx->first_hook != NULL || session == NULL || session->handles != tx ||
                            session->spares == GUARD_TX_SPARES)) {
        guard_tx_free_slow(tx);
        return;
    }
    guard_tx *next = tx->next;
    session->handles = next;
    if (GUARD_IMPL_UNLIKELY(next != NULL)) {
        next->previous = NULL;
    }
    tx->next = session->spare;
    session->spare = tx;
    session->spares++;
}

static inline void guard_tx_unlink(guard_tx *tx)
{
    if (GUARD_IMPL_UNLIKELY(tx->result.outcome == GUARD_ROLLED_BACK || tx->result.outcome == GUARD_IN_DOUBT)) {
        guard_tx_tell_undone(tx);
    }
    guard_tx_count_end(tx);
    TX_PROBE_OUTCOME(tx);
    tx->session->tx = tx->parent;
    tx->parent = NULL;
    tx->linked = 0;
}

#endif
