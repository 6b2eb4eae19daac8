/* SPDX-License-Identifier: MIT */
/*
 * guard_mutex_rwlock.c: read-write locks.
 */
#include <errno.h>

#include "guard_mutex_internal.h"

static int read_now(void *lock)
{
    return pthread_rwlock_tryrdlock(lock);
}

static int read_until(void *lock, clockid_t clock, const struct timespec *time)
{
    return clock == CLOCK_REALTIME ? pthread_rwlock_timedrdlock(lock, time)
                                   : pthread_rwlock_clockrdlock(lock, clock, time);
}

static int write_now(void *lock)
{
    return pthread_rwlock_trywrlock(lock);
}

static int write_until(void *lock, clockid_t clock, const struct timespec *time)
{
    return clock == CLOCK_REALTIME ? pthread_rwlock_timedwrlock(lock, time)
                                   : pthread_rwlock_clockwrlock(lock, clock, time);
}

static const lock_calls calls[] = {{.now = read_now, .until = read_until, .polled = true},
                                   {.now = write_now, .until = write_until, .polled = true}};
static const char *const what[] = {"read lock", "write lock"};

static int rwlock_unlock(void *lock)
{
    return pthread_rwlock_unlock(lock);
}

static void rwlock_release(void *object)
{
    guard_impl_lock_end(object, rwlock_unlock);
}

/* In a child it is left alone: glibc knows the writer by its thread's id, which is another one there. */
static const guard_kind rwlock_kind = {.name = "read-write lock",
                                       .release = rwlock_release,
                                       .child = guard_deallocate,
                                       .describe = guard_impl_lock_describe,
                                       .since = guard_impl_lock_since,
                                       .action = "unlock",
                                       .flags = GUARD_KIND_HEAP,
                                       .dismiss = guard_deallocate};

guard_ticket guard_impl_rwlock_lock(guard_scope *scope, pthread_rwlock_t *lock, const char *name, int write,
                                    int wait_ms, const guard_place *place)
{
    if (!guard_impl_lock_wait_ms_is_right(wait_ms, place)) {
        return (guard_ticket){NULL, 0, 0};
    }
    lock_held *held = guard_impl_lock_new(scope, sizeof *held, what[write], name, lock, place);
    int error = guard_impl_lock_take(&calls[write], held, wait_ms);
    if (error != 0) {
        guard_impl_lock_fail(held, error, wait_ms);
    }
    return guard_impl_defer_kind(scope, &rwlock_kind, held, place);
}

int guard_impl_rwlock_try_lock(guard_scope *scope, pthread_rwlock_t *lock, const char *name, int write,
                               guard_ticket *ticket, const guard_place *place)
{
    lock_held *held = guard_impl_lock_new(scope, sizeof *held, what[write], name, lock, place);
    int error = calls[write].now(lock);
    if (error == EBUSY) {
        guard_deallocate(held);
        return 0;
    }
    if (error != 0) {
        guard_impl_lock_fail(held, error, 0);
    }
    guard_ticket taken = guard_impl_defer_kind(scope, &rwlock_kind, held, place);
    if (ticket != NULL) {
        *ticket = taken;
    }
    return 1;
}
