/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_pool.c: connections that are kept and lent.
 *
 *     (slot free) --take connects, or the keeper does--> lent or idle
 *     idle --take: alive and young--> lent          idle --take: dead or too old--> closed (slot free)
 *     lent --given back clean, or made clean--> the longest waiting take, else idle
 *     lent --active, dead, poisoned, not to be cleaned--> closed (slot free, which the longest waiting take gets)
 *
 * Invariants
 *   - open counts connections and slots on which somebody is connecting; open <= max.
 *   - While somebody waits, nothing is idle and open == max: a free connection or slot is handed to the first in the queue, under
 *     the lock, and nobody overtakes it.
 *   - The pool's memory lives until it is closed and `users` is 0: those who hold a connection or are inside take.
 *   - Nothing that waits for a server runs under the lock.
 */
#include "guard_pq_internal.h"

#include <guard/guard_metrics.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct waiter {
    pthread_cond_t served;
    guard_pq *given; /* a connection, or */
    int slot;        /* the right to make one */
    struct waiter *next;
} waiter;

struct guard_pq_pool {
    pthread_mutex_t lock;
    guard_pq *idle; /* the newest first: the others grow old and are closed */
    waiter *first, *last;
    int closing;
    int64_t since; /* guard_dump_clock */
    uint32_t users;
    pid_t pid;
    guard_pq_pool_options options;
    char *conninfo;
    char *reset;
    char name[32];
    guard_error failure;       /* why the latest connection could not be made; code 0: it could */
    guard_pq_pool_stats stats; /* open, idle, taken and waiting are exact under the lock */
    pthread_t keeper;          /* makes connections while there are fewer than min */
    int has_keeper;
    pthread_cond_t work;
};

static void cond_open(pthread_cond_t *cond)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

/* 0 once the deadline has passed. */
static int cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, guard_pq_deadline deadline)
{
    struct timespec until = {.tv_sec = (time_t)(deadline / 1000), .tv_nsec = (long)(deadline % 1000) * 1000000};
    return deadline == GUARD_PQ_NEVER ? pthread_cond_wait(cond, lock) == 0
                                      : pthread_cond_timedwait(cond, lock, &until) != ETIMEDOUT;
}

static void pool_free(guard_pq_pool *pool)
{
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    free(pool->conninfo);
    free(pool->reset);
    free(pool);
}

/* With the lock held; gives it up. */
static void leave(guard_pq_pool *pool)
{
    int last = --pool->users == 0 && pool->closing;
    pthread_mutex_unlock(&pool->lock);
    if (last) {
        pool_free(pool);
    }
}

/* ---------------------------------------------------------------------------------- handing on, under the lock -- */

static waiter *dequeue(guard_pq_pool *pool)
{
    waiter *w = pool->first;
    if (w != NULL) {
        pool->first = w->next;
        pool->last = pool->first != NULL ? pool->last : NULL;
        pool->stats.waiting--;
    }
    return w;
}

static void forget(guard_pq_pool *pool, waiter *gone)
{
    waiter *before = NULL;
    for (waiter *w = pool->first; w != NULL; before = w, w = w->next) {
        if (w == gone) {
            *(before != NULL ? &before->next : &pool->first) = w->next;
            pool->last = w == pool->last ? before : pool->last;
            pool->stats.waiting--;
            return;
        }
    }
}

static void hand_on(guard_pq_pool *pool, guard_pq *pq)
{
    waiter *w = dequeue(pool);
    if (w != NULL) {
        w->given = pq;
        pthread_cond_signal(&w->served);
        return;
    }
    pq->next = pool->idle;
    pool->idle = pq;
    pool->stats.idle++;
}

/* A connection is gone: somebody else may make one in its place. */
static void free_slot(guard_pq_pool *pool)
{
    waiter *w = pool->closing ? NULL : dequeue(pool);
    if (w != NULL) {
        w->slot = 1;
        pthread_cond_signal(&w->served);
        return;
    }
    pool->stats.open--;
    if (pool->stats.open < pool->options.min) {
        pthread_cond_signal(&pool->work);
    }
}

/* ------------------------------------------------------------------------------------------------ making -- */

/* On a slot that is the caller's. NULL, and the slot given on, with *error filled. */
static guard_pq *make(guard_pq_pool *pool, guard_pq_deadline deadline, guard_error *error)
{
    guard_pq_options options = pool->options.connection;
    int left = guard_pq_left(deadline);
    int state;
    options.connect_ms = guard_pq_or(options.connect_ms, 10000);
    if (left >= 0 && (options.connect_ms < 0 || left < options.connect_ms)) {
        options.connect_ms = left > 0 ? left : 1;
    }
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    guard_pq *pq = guard_pq_make(pool->conninfo, &options, error);
    pthread_setcancelstate(state, NULL);
    pthread_mutex_lock(&pool->lock);
    if (pq == NULL) {
        pool->stats.failures++;
        pool->failure = error->domain != GUARD_CANCELLED ? *error : pool->failure; /* that is no reason for others */
        free_slot(pool);
    } else {
        pool->stats.opened++;
        pool->failure.code = 0;
        pq->pool = pool;
    }
    pthread_mutex_unlock(&pool->lock);
    return pq;
}

static void *keep(void *arg)
{
    guard_pq_pool *pool = arg;
    guard_error error;
    int pause = 50;
    GUARD_AUTO(s); /* from here on it can be cancelled */
    (void)s;
    pthread_mutex_lock(&pool->lock);
    while (!pool->closing) {
        if (pool->stats.open >= pool->options.min) {
            pthread_cond_wait(&pool->work, &pool->lock);
            continue;
        }
        pool->stats.open++;
        pthread_mutex_unlock(&pool->lock);
        guard_pq *pq = make(pool, GUARD_PQ_NEVER, &error);
        pthread_mutex_lock(&pool->lock);
        if (pq != NULL) {
            pause = 50;
            hand_on(pool, pq);
        } else if (!pool->closing) {
            cond_wait(&pool->work, &pool->lock, guard_pq_in(pause));
            pause = pause < 1000 ? pause * 2 : pause;
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

/* ------------------------------------------------------------------------------------------------ opening -- */

static void close_idle(guard_pq *pq, guard_pq_deadline deadline)
{
    guard_pq_call call;
    guard_error ignored;
    guard_pq_call_begin(pq, &call);
    guard_pq_marks_close(pq, deadline);
    guard_pq_call_end(pq, &call);
    guard_pq_end_session(pq, &ignored); /* nothing is open: frees the spare handles */
    guard_pq_free(pq);
}

static void release_pool(void *object)
{
    guard_pq_pool *pool = object;
    waiter *w;
    if (pool->pid != guard_pq_process()) {
        for (guard_pq *pq = pool->idle; pq != NULL; pq = pq->next) {
            guard_pq_disown_in_child(pq);
        }
        return; /* its lock may be held by a thread that the child does not have */
    }
    pthread_mutex_lock(&pool->lock);
    pool->closing = 1;
    while ((w = dequeue(pool)) != NULL) {
        pthread_cond_signal(&w->served);
    }
    pthread_cond_signal(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    if (pool->has_keeper) {
        guard_cancel_thread(pool->keeper); /* it may be connecting */
        pthread_join(pool->keeper, NULL);
    }
    pthread_mutex_lock(&pool->lock);
    guard_pq *idle = pool->idle;
    pool->idle = NULL;
    leave(pool);
    guard_pq_deadline deadline = idle != NULL ? guard_pq_in(idle->options.rollback_ms) : 0; /* of all of them */
    for (guard_pq *next; idle != NULL; idle = next) {
        next = idle->next;
        close_idle(idle, deadline);
    }
}

static void disown_pool(void *object)
{
    const guard_pq_pool *pool = object;
    if (pool->pid != guard_pq_process()) {
        release_pool(object);
    }
}

static int64_t pool_since(const void *object)
{
    return ((const guard_pq_pool *)object)->since;
}

static const guard_kind pool_kind = {
    .name = "PostgreSQL pool",
    .release = release_pool,
    .child = disown_pool,
    .since = pool_since,
    .action = "close",
    .flags = GUARD_KIND_HEAP,
};

/* NULL when there is no memory. */
static guard_pq_pool *pool_new(const char *conninfo, const guard_pq_pool_options *options)
{
    guard_pq_pool *pool = calloc(1, sizeof(*pool));
    if (pool == NULL) {
        return NULL;
    }
    pthread_mutex_init(&pool->lock, NULL);
    cond_open(&pool->work);
    pool->pid = guard_pq_process();
    pool->since = guard_dump_clock();
    pool->users = 1; /* the pool's own scope */
    if (options != NULL) {
        pool->options = *options;
    }
    guard_pq_pool_options *o = &pool->options;
    o->max = o->max != 0 ? o->max : 10;
    o->take_ms = guard_pq_or(o->take_ms, 10000);
    o->life_ms = guard_pq_or(o->life_ms, 3600000);
    snprintf(pool->name, sizeof(pool->name), "%s", o->name != NULL ? o->name : "postgresql");
    pool->conninfo = strdup(conninfo);
    pool->reset = o->reset != NULL ? strdup(o->reset) : NULL;
    if (pool->conninfo == NULL || (o->reset != NULL && pool->reset == NULL)) {
        pool_free(pool);
        return NULL;
    }
    return pool;
}

static void pool_collect(guard_metrics_page *page, void *arg)
{
    static const guard_metric connections = {.name = "guard_pool_connections",
                                             .help = "Connections of a pool now, by what they are doing.",
                                             .type = GUARD_METRIC_GAUGE};
    static const guard_metric waiting = {.name = "guard_pool_waiting",
                                         .help = "Threads that wait for a connection of a pool now.",
                                         .type = GUARD_METRIC_GAUGE};
    static const guard_metric events = {.name = "guard_pool_events_total",
                                        .help = "What happened to a pool's connections and those who asked for one.",
                                        .type = GUARD_METRIC_COUNTER};
    guard_pq_pool *pool = arg;
    guard_pq_pool_stats stats;
    guard_pq_pool_stats_read(pool, &stats);
    const struct {
        const char *label;
        uint64_t count;
    } states[] = {{"idle", stats.idle}, {"taken", stats.taken}, {"opening", stats.open - stats.idle - stats.taken}},
      happened[] = {{"take", stats.takes},          {"wait", stats.waits},      {"timeout", stats.timeouts},
                    {"opened", stats.opened},       {"failed", stats.failures}, {"rolled_back", stats.rolled_back},
                    {"discarded", stats.discarded}, {"expired", stats.expired}};
    for (size_t i = 0; i < sizeof(states) / sizeof(states[0]); i++) {
        const guard_label labels[] = {{"pool", pool->name}, {"state", states[i].label}};
        guard_metrics_put(page, &connections, labels, 2, (int64_t)states[i].count);
    }
    for (size_t i = 0; i < sizeof(happened) / sizeof(happened[0]); i++) {
        const guard_label labels[] = {{"pool", pool->name}, {"event", happened[i].label}};
        guard_metrics_put(page, &events, labels, 2, (int64_t)happened[i].count);
    }
    guard_metrics_put(page, &waiting, &(guard_label){"pool", pool->name}, 1, stats.waiting);
}

static int check_options(const guard_pq_pool_options *o, const guard_place *place)
{
    uint32_t reserved = 0;
    if (o == NULL) {
        return 0;
    }
    for (size_t i = 0; i < sizeof(o->reserved) / sizeof(o->reserved[0]); i++) {
        reserved |= o->reserved[i];
    }
    if (reserved != 0 || o->take_ms < -1 || o->life_ms < -1 || o->min > (o->max != 0 ? o->max : 10)) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "pool options out of range (reserved words must be 0)");
        return 1;
    }
    return guard_pq_options_check(&o->connection, place);
}

static void check_conninfo(const char *conninfo, const guard_place *place)
{
    guard_pq_keywords keywords;
    guard_error error;
    int code = guard_pq_keywords_parse(&keywords, conninfo, &error);
    guard_pq_keywords_close(&keywords);
    if (code != 0) {
        guard_impl_panic_error(place, &error);
    }
}

guard_pq_pool *guard_pq_pool_open_at(guard_scope *scope, const char *conninfo, const guard_pq_pool_options *options,
                                     const guard_place *place)
{
    if (conninfo == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the connection text is NULL");
        return NULL;
    }
    if (check_options(options, place)) {
        return NULL;
    }
    guard_raise_held();
    check_conninfo(conninfo, place);
    guard_reserve(scope, 1);
    guard_pq_pool *pool = pool_new(conninfo, options);
    if (pool == NULL) {
        guard_impl_panic(place, GUARD_MEMORY, ENOMEM, "out of memory for a pool");
    }
    if (pool->options.min > 0) {
        pool->has_keeper = pthread_create(&pool->keeper, NULL, keep, pool) == 0;
        if (!pool->has_keeper) {
            pool_free(pool);
            guard_impl_panic(place, GUARD_OS, EAGAIN, "no thread for a pool that keeps connections open");
        }
    }
    guard_impl_defer_kind(scope, &pool_kind, pool, place);
    guard_metrics_collect(scope, pool_collect, pool); /* newer than the pool: it is over before that ends */
    return pool;
}

/* ------------------------------------------------------------------------------------------------ taking -- */

static int is_too_old(const guard_pq_pool *pool, const guard_pq *pq)
{
    return pool->options.life_ms >= 0 && guard_pq_now() - pq->opened_ms >= pool->options.life_ms;
}

/*
 * Waits in the queue, under the lock, which it gives up. 1 with a connection or a slot (*given NULL); 0 past the deadline, when the thread
 * is cancelled, or when the pool is closed.
 */
static int queue(guard_pq_pool *pool, guard_pq_deadline deadline, guard_pq **given)
{
    waiter w = {.given = NULL};
    cond_open(&w.served);
    *(pool->last != NULL ? &pool->last->next : &pool->first) = &w;
    pool->last = &w;
    pool->stats.waiting++;
    pool->stats.waits++;
    while (w.given == NULL && !w.slot && !pool->closing) {
        guard_pq_deadline slice = guard_pq_sooner(deadline, guard_pq_in(GUARD_WAIT_SLICE_MS));
        if (!cond_wait(&w.served, &pool->lock, slice) &&
            (guard_pq_now() >= deadline || guard_checkpoint_error(NULL) != 0)) {
            break;
        }
    }
    int served = w.given != NULL || w.slot;
    if (!served && !pool->closing) {
        forget(pool, &w);
        pool->stats.timeouts++;
    }
    pthread_mutex_unlock(&pool->lock);
    pthread_cond_destroy(&w.served);
    *given = w.given;
    return served;
}

/* Takes what is there, or a slot (*given NULL); 0 if it has to wait for either. Under the lock. */
static int grab(guard_pq_pool *pool, guard_pq **given)
{
    *given = pool->first == NULL ? pool->idle : NULL;
    if (*given != NULL) {
        pool->idle = (*given)->next;
        pool->stats.idle--;
        return 1;
    }
    if (pool->first == NULL && pool->stats.open < pool->options.max) {
        pool->stats.open++;
        return 1;
    }
    return 0;
}

static void drop_expired(guard_pq_pool *pool, guard_pq *pq, guard_pq_deadline deadline)
{
    close_idle(pq, guard_pq_sooner(deadline, guard_pq_in(pq->options.rollback_ms)));
    pthread_mutex_lock(&pool->lock);
    pool->stats.expired++;
    free_slot(pool);
    pthread_mutex_unlock(&pool->lock);
}

/* A connection that works, or NULL with *error filled. */
static guard_pq *take(guard_pq_pool *pool, guard_pq_deadline deadline, int32_t ms, guard_error *error)
{
    for (;;) {
        guard_pq *pq;
        pthread_mutex_lock(&pool->lock);
        if (grab(pool, &pq)) {
            pthread_mutex_unlock(&pool->lock);
        } else if (!queue(pool, deadline, &pq)) {
            if (guard_checkpoint_error(error) != 0) {
                return NULL;
            }
            guard_error_set(error, GUARD_TIMEOUT, ETIMEDOUT,
                            pool->closing ? "the pool was closed" : "no connection of the pool was free within %d ms",
                            (int)ms);
            pthread_mutex_lock(&pool->lock);
            if (pool->failure.code != 0) {
                guard_error_attach(error, &pool->failure, GUARD_CAUSE);
            }
            pthread_mutex_unlock(&pool->lock);
            return NULL;
        }
        if (pq == NULL) {
            return make(pool, deadline, error);
        }
        if (!is_too_old(pool, pq) && !guard_pq_is_dead(pq)) {
            return pq;
        }
        drop_expired(pool, pq, deadline);
    }
}

guard_pq *guard_pq_pool_take_at(guard_scope *scope, guard_pq_pool *pool, int32_t wait_ms, const guard_place *place)
{
    guard_error error;
    if (pool == NULL || wait_ms < -1) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the pool is NULL or the wait is below -1");
        return NULL;
    }
    if (pool->pid != guard_pq_process()) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "the pool belongs to the parent process");
        return NULL;
    }
    guard_raise_held();
    guard_reserve(scope, 1);
    int32_t ms = guard_pq_or(wait_ms, pool->options.take_ms);
    pthread_mutex_lock(&pool->lock);
    pool->users++;
    pthread_mutex_unlock(&pool->lock);
    guard_pq *pq = take(pool, guard_pq_in(ms), ms, &error);
    pthread_mutex_lock(&pool->lock);
    if (pq == NULL) {
        leave(pool);
        guard_impl_panic_error(place, &error);
    }
    pool->stats.takes++;
    pool->stats.taken++;
    pthread_mutex_unlock(&pool->lock);
    pq->since = guard_dump_clock();
    pq->ticket = guard_impl_defer_kind(scope, &guard_pq_kind, pq, place);
    return pq;
}

/* --------------------------------------------------------------------------------------------- giving back -- */

/* 1 when it can be lent again. */
static int clean(guard_pq_pool *pool, guard_pq *pq, int *rolled_back)
{
    guard_error ignored;
    int32_t ms = pq->options.rollback_ms;
    if (pq->conn == NULL || pq->cut || pq->discard || pq->session.poison.code != 0) {
        return 0;
    }
    switch (PQtransactionStatus(pq->conn)) {
    case PQTRANS_IDLE:
        break;
    case PQTRANS_INTRANS:
    case PQTRANS_INERROR:
        *rolled_back = 1;
        if (!guard_pq_roll_back(pq, "ROLLBACK", guard_pq_in(ms), &ignored)) {
            return 0;
        }
        break;
    default:
        return 0;
    }
    if (PQpipelineStatus(pq->conn) != PQ_PIPELINE_OFF) {
        return 0;
    }
    if (pool->reset != NULL && guard_pq_query(pq, pool->reset, ms, NULL, &ignored) != 0) {
        return 0;
    }
    return !pq->unset || guard_pq_introduce(pq, guard_pq_in(ms), &ignored) == 0;
}

/* What was begun and not ended through the guard. An active connection is cut first: it will not be kept, so nobody waits for it. */
static int end_guarded(guard_pq *pq, int *rolled_back, guard_error *error)
{
    if (pq->flight != NULL || (pq->conn != NULL && PQtransactionStatus(pq->conn) == PQTRANS_ACTIVE)) {
        guard_pq_cut(pq);
    }
    if (pq->flight != NULL) {
        guard_pq_flight_over(pq->flight);
    }
    /* Handles whose scopes are still open must not point into what is somebody else's next. */
    if (pq->session.tx == NULL && pq->session.handles == NULL) {
        return 0;
    }
    *rolled_back = pq->session.tx != NULL;
    int failed = guard_pq_end_session(pq, error);
    guard_error poison = pq->session.poison;
    guard_tx_session_open(&pq->session, &guard_pq_driver, pq);
    pq->session.poison = poison;
    return failed;
}

void guard_pq_pool_give(guard_pq_pool *pool, guard_pq *pq)
{
    guard_error error;
    guard_pq_call call;
    int rolled_back = 0;
    int failed = end_guarded(pq, &rolled_back, &error);
    guard_error unlocked;
    if (guard_pq_locks_release(pq, &unlocked) != 0 && !failed) {
        error = unlocked;
        failed = 1;
    }
    guard_pq_call_begin(pq, &call);
    int kept = clean(pool, pq, &rolled_back);
    guard_pq_call_end(pq, &call);
    pq->options.statement_ms = guard_pq_or(pool->options.connection.statement_ms, 30000);
    pthread_mutex_lock(&pool->lock);
    pool->stats.taken--;
    pool->stats.rolled_back += rolled_back != 0;
    if (kept && !pool->closing) {
        hand_on(pool, pq);
    } else {
        pool->stats.discarded += !kept;
        free_slot(pool);
        pq->next = NULL;
    }
    int closed = !kept || pool->closing;
    leave(pool);
    if (closed) {
        close_idle(pq, guard_pq_in(pq->options.rollback_ms));
    }
    if (failed) {
        guard_panic_error(&error);
    }
}

void guard_pq_pool_stats_read(guard_pq_pool *pool, guard_pq_pool_stats *stats)
{
    if (pool == NULL || stats == NULL) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "the pool, or where its figures go, is NULL");
        return;
    }
    pthread_mutex_lock(&pool->lock);
    *stats = pool->stats;
    pthread_mutex_unlock(&pool->lock);
}
