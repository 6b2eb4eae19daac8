/* SPDX-License-Identifier: MIT */
/*
 * guard_mutex_semaphore.c: semaphores, of which one is taken and posted back.
 */
#include <errno.h>

#include "guard_mutex_internal.h"

/* 0, EBUSY or another errno. */
static int semaphore_now(void *lock)
{
    int failed;
    do {
        failed = sem_trywait(lock);
    } while (failed != 0 && errno == EINTR);
    return failed == 0 ? 0 : errno == EAGAIN ? EBUSY : errno;
}

static int semaphore_until(void *lock, clockid_t clock, const struct timespec *time)
{
    int failed = clock == CLOCK_REALTIME ? sem_timedwait(lock, time) : sem_clockwait(lock, clock, time);
    return failed == 0 ? 0 : errno;
}

static const lock_calls semaphore_calls = {.now = semaphore_now, .until = semaphore_until};

static int semaphore_post(void *lock)
{
    return sem_post(lock) == 0 ? 0 : errno;
}

static void semaphore_release(void *object)
{
    lock_held *held = object;
    held->thread = pthread_self(); /* any thread may post */
    guard_impl_lock_end(held, semaphore_post);
}

/* In a child it is left alone: where it is shared, what was taken is the parent's. */
static const guard_kind semaphore_kind = {.name = "semaphore",
                                          .release = semaphore_release,
                                          .child = guard_deallocate,
                                          .describe = guard_impl_lock_describe,
                                          .since = guard_impl_lock_since,
                                          .action = "post",
                                          .flags = GUARD_KIND_HEAP,
                                          .dismiss = guard_deallocate};

guard_ticket guard_impl_semaphore_wait(guard_scope *scope, sem_t *semaphore, const char *name, int wait_ms,
                                       const guard_place *place)
{
    if (!guard_impl_lock_wait_ms_is_right(wait_ms, place)) {
        return (guard_ticket){NULL, 0, 0};
    }
    lock_held *held = guard_impl_lock_new(scope, sizeof *held, "semaphore", name, semaphore, place);
    int error = guard_impl_lock_take(&semaphore_calls, held, wait_ms);
    if (error != 0) {
        guard_impl_lock_fail(held, error, wait_ms);
    }
    return guard_impl_defer_kind(scope, &semaphore_kind, held, place);
}

int guard_impl_semaphore_try_wait(guard_scope *scope, sem_t *semaphore, const char *name, guard_ticket *ticket,
                                  const guard_place *place)
{
    lock_held *held = guard_impl_lock_new(scope, sizeof *held, "semaphore", name, semaphore, place);
    int error = semaphore_now(semaphore);
    if (error == EBUSY) {
        guard_deallocate(held);
        return 0;
    }
    if (error != 0) {
        guard_impl_lock_fail(held, error, 0);
    }
    guard_ticket taken = guard_impl_defer_kind(scope, &semaphore_kind, held, place);
    if (ticket != NULL) {
        *ticket = taken;
    }
    return 1;
}
