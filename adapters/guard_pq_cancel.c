/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_cancel.c: asking the server to cancel, in bounded time.
 *
 * libpq 17 can do it without blocking. Before, PQcancel connects, sends and waits without any deadline (against a server that
 * is stopped: for ever), so it runs on a thread that owns what it needs and is abandoned at the deadline:
 *
 *     idle --send--> running --PQcancel returned--> idle
 *                       \---deadline: the caller goes on, the thread ends whenever PQcancel does
 *
 * Invariant: the canceller lives as long as its owner or a thread has a reference.
 */
#include "guard_pq_internal.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#if defined(__has_include)
#if __has_include(<valgrind/helgrind.h>)
#include <valgrind/helgrind.h>
#endif
#endif

#ifdef LIBPQ_HAS_ASYNC_CANCEL
typedef PGcancelConn cancel_data;
#define cancel_make PQcancelCreate
#define cancel_free PQcancelFinish
#else
typedef PGcancel cancel_data;
#define cancel_make PQgetCancel
#define cancel_free PQfreeCancel
#endif

struct guard_pq_canceller {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int references;
    int running;
    int sent;
    cancel_data *cancel;
    cancel_data *former; /* of a session that was reset while it was being sent; not NULL only while running */
};

guard_pq_canceller *guard_pq_canceller_open(PGconn *conn)
{
    guard_pq_canceller *canceller = calloc(1, sizeof(*canceller));
    if (canceller == NULL) {
        return NULL;
    }
    canceller->cancel = cancel_make(conn);
    if (canceller->cancel == NULL) {
        free(canceller);
        return NULL;
    }
    canceller->references = 1;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&canceller->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&canceller->lock, NULL);
#ifdef VALGRIND_HG_DISABLE_CHECKING
    /* Whoever is the last to unlock destroys it; what glibc stores inside another's unlock helgrind takes for later. */
    VALGRIND_HG_DISABLE_CHECKING(&canceller->lock, sizeof(canceller->lock));
#endif
    return canceller;
}

void guard_pq_canceller_close(guard_pq_canceller *canceller)
{
    if (canceller == NULL) {
        return;
    }
    pthread_mutex_lock(&canceller->lock);
    int left = --canceller->references;
    pthread_mutex_unlock(&canceller->lock);
    if (left == 0) {
        cancel_free(canceller->cancel);
        pthread_cond_destroy(&canceller->changed);
        pthread_mutex_destroy(&canceller->lock);
        free(canceller);
    }
}

void guard_pq_canceller_renew(guard_pq_canceller *canceller, PGconn *conn)
{
    cancel_data *unused = cancel_make(conn);
    pthread_mutex_lock(&canceller->lock);
    if (unused != NULL && canceller->former == NULL) {
        cancel_data *former = canceller->cancel;
        canceller->cancel = unused;
        canceller->former = canceller->running ? former : NULL;
        unused = canceller->running ? NULL : former;
    }
    pthread_mutex_unlock(&canceller->lock);
    if (unused != NULL) {
        cancel_free(unused);
    }
}

/* With the lock held: 1 when nobody else is sending, 0 past the deadline. */
static int wait_until_idle(guard_pq_canceller *canceller, guard_pq_deadline deadline)
{
    struct timespec until = {.tv_sec = (time_t)(deadline / 1000), .tv_nsec = (long)(deadline % 1000) * 1000000};
    int failed = 0;
    while (canceller->running && failed == 0) {
        failed = deadline == GUARD_PQ_NEVER ? pthread_cond_wait(&canceller->changed, &canceller->lock)
                                            : pthread_cond_timedwait(&canceller->changed, &canceller->lock, &until);
    }
    return !canceller->running;
}

static void finish(guard_pq_canceller *canceller, int sent)
{
    pthread_mutex_lock(&canceller->lock);
    canceller->running = 0;
    canceller->sent = sent;
    if (canceller->former != NULL) {
        cancel_free(canceller->former);
        canceller->former = NULL;
    }
    pthread_cond_broadcast(&canceller->changed);
    pthread_mutex_unlock(&canceller->lock);
}

#ifdef LIBPQ_HAS_ASYNC_CANCEL

static int send_polling(PGcancelConn *cancel, guard_pq_deadline deadline)
{
    PQcancelReset(cancel);
    if (!PQcancelStart(cancel)) {
        return 0;
    }
    PostgresPollingStatusType next = PGRES_POLLING_WRITING;
    while (next == PGRES_POLLING_READING || next == PGRES_POLLING_WRITING) {
        struct pollfd entry = {.fd = PQcancelSocket(cancel),
                               .events = next == PGRES_POLLING_READING ? POLLIN : POLLOUT};
        int ready = poll(&entry, 1, guard_pq_left(deadline));
        if (ready == 0 && guard_pq_left(deadline) == 0) {
            PQcancelReset(cancel);
            return 0;
        }
        next = ready > 0 ? PQcancelPoll(cancel) : next;
    }
    return next == PGRES_POLLING_OK;
}

static void start(guard_pq_canceller *canceller, guard_pq_deadline deadline)
{
    cancel_data *cancel = canceller->cancel;
    pthread_mutex_unlock(&canceller->lock);
    finish(canceller, send_polling(cancel, deadline));
    pthread_mutex_lock(&canceller->lock);
}

#else

static void *send_blocking(void *arg)
{
    guard_pq_canceller *canceller = arg;
    char why[256];
    pthread_mutex_lock(&canceller->lock);
    cancel_data *cancel = canceller->cancel;
    pthread_mutex_unlock(&canceller->lock);
    finish(canceller, PQcancel(cancel, why, sizeof(why)));
    guard_pq_canceller_close(canceller);
    return NULL;
}

/* With the lock held. The thread takes none of the program's signals. */
static void start(guard_pq_canceller *canceller, guard_pq_deadline deadline)
{
    (void)deadline;
    pthread_t thread;
    pthread_attr_t detached;
    sigset_t all, former;
    sigfillset(&all);
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    canceller->references++;
    pthread_sigmask(SIG_SETMASK, &all, &former);
    if (pthread_create(&thread, &detached, send_blocking, canceller) != 0) {
        canceller->references--;
        canceller->running = 0;
    }
    pthread_sigmask(SIG_SETMASK, &former, NULL);
    pthread_attr_destroy(&detached);
}

#endif

int guard_pq_canceller_send(guard_pq_canceller *canceller, guard_pq_deadline deadline)
{
    if (canceller == NULL) {
        return 0;
    }
    pthread_mutex_lock(&canceller->lock);
    int sent = 0;
    if (wait_until_idle(canceller, deadline)) {
        canceller->running = 1;
        canceller->sent = 0;
        start(canceller, deadline);
        sent = wait_until_idle(canceller, deadline) && canceller->sent;
    }
    pthread_mutex_unlock(&canceller->lock);
    return sent;
}

int guard_pq_cancel(guard_pq *pq, int32_t ms)
{
    int state;
    if (!guard_pq_is_given(pq) || pq->pid != getpid()) {
        return 0; /* or it is the parent's statement */
    }
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    int sent = guard_pq_canceller_send(pq->canceller, guard_pq_in(guard_pq_or(ms, 2000)));
    pthread_setcancelstate(state, NULL);
    return sent;
}
