/* SPDX-License-Identifier: MIT */
/*
 * guard_mutex_internal.h: what the locks of the mutex adapter share; hidden, not installed.
 */
#ifndef GUARD_MUTEX_INTERNAL_H
#define GUARD_MUTEX_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <time.h>

#include <guard/guard_cancel.h>
#include <guard/guard_dump.h>
#include <guard/guard_mutex.h>

#if defined(__SANITIZE_THREAD__)
#define UNDER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN 1
#endif
#endif

/* Begins every object: which lock, who took it, where and when. */
typedef struct lock_held {
    const char *what; /* "mutex" */
    const char *name; /* the source's text for it, constant */
    const guard_place *place;
    int64_t since; /* guard_dump_clock */
    pthread_t thread;
    void *lock;
} lock_held;

/* Reserves a registration and makes the object, of at least sizeof (lock_held) bytes. Panics GUARD_MEMORY. */
lock_held *guard_impl_lock_new(guard_scope *scope, size_t size, const char *what, const char *name, void *lock,
                               const guard_place *place);

/* As the kind's. */
size_t guard_impl_lock_describe(const void *object, char *text, size_t size);
int64_t guard_impl_lock_since(const void *object);

/* The lock was not taken, for `error`: gives the object back and panics. */
GUARD_NORETURN void guard_impl_lock_fail(lock_held *held, int error, int wait_ms);

/* Whether this thread took the lock. If not, nothing may be done with it. */
bool guard_impl_lock_is_own(const lock_held *held);
void guard_impl_lock_misuse_thread(const lock_held *held);

/* Gives a lock back that belongs to its thread, by `unlock`, and the object in any case; misuse where that failed. */
void guard_impl_lock_end(lock_held *held, int (*unlock)(void *lock));

/* How a lock is taken: at once, 0, EBUSY or another errno, NULL where that is not to be tried; and until a time
 * on a clock, 0, ETIMEDOUT or another errno. */
typedef struct lock_calls {
    int (*now)(void *lock);
    int (*until)(void *lock, clockid_t clock, const struct timespec *time);
    bool polled; /* under valgrind, which does not know `until` */
} lock_calls;

/*
 * Takes the lock of *held within `wait_ms`. Returns 0, ETIMEDOUT or another errno. When the thread is cancelled
 * meanwhile, *held is given back and it panics.
 */
int guard_impl_lock_take(const lock_calls *calls, lock_held *held, int wait_ms);

/* Deadlines: the moment `wait_ms` from now; and the end of the next slice of a wait until then, false when
 * there is none left. */
typedef struct lock_deadline {
    bool never;
    struct timespec at; /* CLOCK_MONOTONIC */
} lock_deadline;

lock_deadline guard_impl_lock_deadline(int wait_ms);
bool guard_impl_lock_slice(const lock_deadline *deadline, clockid_t clock, struct timespec *end);

/* Misuse where wait_ms can never be right; false then. */
bool guard_impl_lock_wait_ms_is_right(int wait_ms, const guard_place *place);

#endif
