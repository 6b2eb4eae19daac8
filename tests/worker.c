/* SPDX-License-Identifier: MIT */
#include "worker.h"

#include <check.h>

static void *worker_main(void *self)
{
    worker *w = self;
    w->code = guard_run(w->work, w, &w->error);
    return NULL;
}

void worker_start(worker *w, guard_fn *work)
{
    *w = (worker){.work = work};
    ck_assert_int_eq(sem_init(&w->ready, 0, 0), 0);
    ck_assert_int_eq(pthread_create(&w->thread, NULL, worker_main, w), 0);
    while (sem_wait(&w->ready) != 0) {
    }
}

void worker_is_ready(void *self)
{
    sem_post(&((worker *)self)->ready);
}

void *worker_join(worker *w)
{
    void *result;
    ck_assert_int_eq(pthread_join(w->thread, &result), 0);
    sem_destroy(&w->ready);
    return result;
}
