/* SPDX-License-Identifier: MIT */
/*
 * worker.h: a thread that says when it is in the middle of its work, which runs in a border, and keeps the error.
 *
 *     static void work(void *self)
 *     {
 *         ...
 *         worker_is_ready(self);
 *         ...
 *     }
 *
 *     worker w;
 *     worker_start(&w, work);
 *     guard_cancel_thread(w.thread);
 *     worker_join(&w);
 *     ck_assert_int_eq(w.code, ECANCELED);
 */
#ifndef TESTS_WORKER_H
#define TESTS_WORKER_H

#include <pthread.h>
#include <semaphore.h>

#include <guard/guard.h>

typedef struct worker {
    pthread_t thread;
    sem_t ready;
    guard_fn *work; /* called with the worker */
    guard_error error;
    int code; /* what the border returned, once the thread has ended */
} worker;

/* Returns when the work is ready. */
void worker_start(worker *w, guard_fn *work);

/* Called by the work, once. */
void worker_is_ready(void *self);

/* Waits until it has ended, in whatever way. Returns what the thread did. */
void *worker_join(worker *w);

#endif
