/* SPDX-License-Identifier: MIT */
/*
 * guard_mutex.c: mutexes, and conditions that are waited for with one.
 *
 *     free --lock--> HELD --release--> free
 *     free --lock, its owner died--> (repair runs) --returns--> consistent, HELD
 *                                                  --panics, none--> unlocked as it is: ENOTRECOVERABLE for all
 *     HELD --condition wait--> HELD            also at its deadline, and when a dead owner's state was repaired
 *                          \--not repaired--> LOST: not held, release does nothing
 */
#include <errno.h>
#include <string.h>

#include "guard_mutex_internal.h"

#ifdef UNDER_TSAN
#include <sanitizer/tsan_interface.h>
#endif

typedef struct mutex_held {
    lock_held head; /* first */
    guard_fn *repair;
    void *repair_arg;
    bool lost;
    bool plain; /* private and without any bookkeeping of its owner */
} mutex_held;

/* ------------------------------------------------------------------------------------------------- calls -- */

static int mutex_now(void *lock)
{
    return pthread_mutex_trylock(lock);
}

static int mutex_until(void *lock, clockid_t clock, const struct timespec *time)
{
    if (clock == CLOCK_REALTIME) {
        int result = pthread_mutex_timedlock(lock, time);
#ifdef UNDER_TSAN
        if (result == EOWNERDEAD) { /* which it does not take for a lock */
            __tsan_mutex_pre_lock(lock, __tsan_mutex_try_lock);
            __tsan_mutex_post_lock(lock, __tsan_mutex_try_lock, 0);
        }
#endif
        return result;
    }
    int error = pthread_mutex_clocklock(lock, clock, time);
    if (error == EINVAL) {
        /* A priority-inheriting mutex before Linux 5.14 has the wall clock only (futex(2), FUTEX_LOCK_PI). One
         * short slice of that. */
        struct timespec now, wall;
        clock_gettime(clock, &now);
        clock_gettime(CLOCK_REALTIME, &wall);
        wall.tv_sec += time->tv_sec - now.tv_sec;
        wall.tv_nsec += time->tv_nsec - now.tv_nsec;
        wall.tv_sec += wall.tv_nsec >= 1000000000 ? 1 : wall.tv_nsec < 0 ? -1 : 0;
        wall.tv_nsec += wall.tv_nsec >= 1000000000 ? -1000000000 : wall.tv_nsec < 0 ? 1000000000 : 0;
        error = pthread_mutex_timedlock(lock, &wall);
    }
    return error;
}

/*
 * Whether a forked child may unlock it. Pthreads have no call to ask a mutex for its attributes, but
 * PTHREAD_MUTEX_INITIALIZER has made the kind's place and bits a part of glibc's ABI: 0-1 type, 4 robust, 5-6
 * protocol, 7 shared, 8-9 elision. Where that is unknown, no.
 */
static bool mutex_is_plain(const pthread_mutex_t *mutex)
{
#ifdef __GLIBC__
    enum { ELISION = 0x300 };
    int kind = mutex->__data.__kind & ~ELISION;
    return kind == PTHREAD_MUTEX_TIMED_NP || kind == PTHREAD_MUTEX_ADAPTIVE_NP;
#else
    (void)mutex;
    return false;
#endif
}

/*
 * pthread_mutex_trylock of a robust mutex that is beyond repair says so, but leaves it locked (glibc 2.36): everybody
 * after that waits for nothing. So it is tried on plain mutexes only, where it saves reading the clock.
 */
static const lock_calls plain_calls = {.now = mutex_now, .until = mutex_until};
static const lock_calls other_calls = {.now = NULL, .until = mutex_until};

static int mutex_take(mutex_held *held, int wait_ms)
{
    return guard_impl_lock_take(held->plain ? &plain_calls : &other_calls, &held->head, wait_ms);
}

/* 0, EBUSY or another errno. */
static int mutex_try(const mutex_held *held)
{
    if (held->plain) {
        return mutex_now(held->head.lock);
    }
    static const struct timespec long_ago;
    int error = mutex_until(held->head.lock, CLOCK_REALTIME, &long_ago);
    return error == ETIMEDOUT || error == EDEADLK ? EBUSY : error;
}

/* -------------------------------------------------------------------------------------------------- kind -- */

static int mutex_unlock(void *lock)
{
    return pthread_mutex_unlock(lock);
}

static void mutex_release(void *object)
{
    mutex_held *held = object;
    if (held->lost) {
        guard_deallocate(held);
    } else {
        guard_impl_lock_end(&held->head, mutex_unlock);
    }
}

static void mutex_child(void *object)
{
    mutex_held *held = object;
    if (held->plain && !held->lost) {
        pthread_mutex_unlock(held->head.lock);
    }
    guard_deallocate(held);
}

static const guard_kind mutex_kind = {.name = "mutex",
                                      .release = mutex_release,
                                      .child = mutex_child,
                                      .describe = guard_impl_lock_describe,
                                      .since = guard_impl_lock_since,
                                      .action = "unlock",
                                      .flags = GUARD_KIND_HEAP,
                                      .dismiss = guard_deallocate};

/* --------------------------------------------------------------------------------------------- robustness -- */

/*
 * The mutex is held and its owner died: mends that, or unlocks it, marks it lost and returns false with *error
 * filled. The border keeps the mutex from staying held after a panic of the repair, wherever that is recovered.
 */
static bool mutex_repair(mutex_held *held, guard_error *error)
{
    pthread_mutex_t *mutex = held->head.lock;
    if (held->repair == NULL) {
        guard_error_set(error, GUARD_LOCK, EOWNERDEAD, "the owner of mutex %s died and there is no repair",
                        held->head.name);
    } else if (guard_run(held->repair, held->repair_arg, error) == 0) {
        int code = pthread_mutex_consistent(mutex);
        if (code == 0) {
            return true;
        }
        guard_error_set(error, GUARD_LOCK, code, "mutex %s cannot be made consistent", held->head.name);
    }
    held->lost = true;
    pthread_mutex_unlock(mutex);
    return false;
}

/* ----------------------------------------------------------------------------------------------- locking -- */

static const guard_mutex_options defaults;

/* Misuse where they can never be right; false then. */
static bool options_are_right(const guard_mutex_options *options, bool waits, const guard_place *place)
{
    bool wrong = options->reserved_int != 0 || (!waits && options->wait_ms != 0);
    for (size_t i = 0; i < sizeof options->reserved / sizeof options->reserved[0]; i++) {
        wrong = wrong || options->reserved[i] != NULL;
    }
    if (wrong) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "guard_mutex_options that can never be right");
        return false;
    }
    return guard_impl_lock_wait_ms_is_right(options->wait_ms, place);
}

static mutex_held *mutex_new(guard_scope *scope, pthread_mutex_t *mutex, const char *name,
                             const guard_mutex_options *options, const guard_place *place)
{
    lock_held *head = guard_impl_lock_new(scope, sizeof(mutex_held), "mutex", name, mutex, place);
    mutex_held *held = (mutex_held *)(void *)head;
    held->repair = options->repair;
    held->repair_arg = options->repair_arg;
    held->plain = mutex_is_plain(mutex);
    return held;
}

/* The mutex was taken, or not, with `error`: registers it, or gives the object back and panics. */
static guard_ticket mutex_register(guard_scope *scope, mutex_held *held, int error, int wait_ms,
                                   const guard_place *place)
{
    if (error == EOWNERDEAD) {
        guard_error repair_error;
        if (!mutex_repair(held, &repair_error)) {
            guard_deallocate(held);
            guard_impl_panic_error(place, &repair_error);
        }
    } else if (error != 0) {
        guard_impl_lock_fail(&held->head, error, wait_ms);
    }
    return guard_impl_defer_kind(scope, &mutex_kind, held, place);
}

guard_ticket guard_impl_mutex_lock(guard_scope *scope, pthread_mutex_t *mutex, const char *name,
                                   const guard_mutex_options *options, const guard_place *place)
{
    options = options != NULL ? options : &defaults;
    if (!options_are_right(options, true, place)) {
        return (guard_ticket){NULL, 0, 0};
    }
    mutex_held *held = mutex_new(scope, mutex, name, options, place);
    int error = mutex_take(held, options->wait_ms);
    return mutex_register(scope, held, error, options->wait_ms, place);
}

int guard_impl_mutex_try_lock(guard_scope *scope, pthread_mutex_t *mutex, const char *name,
                              const guard_mutex_options *options, guard_ticket *ticket, const guard_place *place)
{
    options = options != NULL ? options : &defaults;
    if (!options_are_right(options, false, place)) {
        return 0;
    }
    mutex_held *held = mutex_new(scope, mutex, name, options, place);
    int error = mutex_try(held);
    if (error == EBUSY) {
        guard_deallocate(held);
        return 0;
    }
    guard_ticket taken = mutex_register(scope, held, error, 0, place);
    if (ticket != NULL) {
        *ticket = taken;
    }
    return 1;
}

/* -------------------------------------------------------------------------------------------- conditions -- */

/* What a wait that did not simply end means; the mutex is held after it, or a panic says why not. */
static void wait_failed(mutex_held *held, int error, const guard_place *place)
{
    guard_error repair_error;
    switch (error) {
    case EOWNERDEAD:
        if (!mutex_repair(held, &repair_error)) {
            guard_impl_panic_error(place, &repair_error);
        }
        return;
    case ENOTRECOVERABLE:
        held->lost = true;
        guard_impl_panic(place, GUARD_LOCK, error, "mutex %s is beyond repair since its owner died", held->head.name);
    case EPERM:
        held->lost = true;
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "mutex %s was unlocked behind its guard", held->head.name);
        return;
    default:
        guard_impl_panic(place, GUARD_LOCK, error, "cannot wait with mutex %s: %s", held->head.name,
                         strerrordesc_np(error));
    }
}

/* Without the marks of AddressSanitizer: a cancel passes this frame, which it knows nothing of, and would leave them behind (guard/wait.c). */
__attribute__((no_sanitize("address"))) int guard_impl_mutex_wait(guard_ticket lock, pthread_cond_t *condition,
                                                                  int (*ready)(void *arg), void *arg, int wait_ms,
                                                                  const guard_place *place)
{
    mutex_held *held = guard_ticket_object(lock, &mutex_kind);
    if (held == NULL || !guard_impl_lock_wait_ms_is_right(wait_ms, place)) {
        return 0;
    }
    if (!guard_impl_lock_is_own(&held->head)) {
        guard_impl_lock_misuse_thread(&held->head);
        return 0;
    }
    if (held->lost || ready == NULL || condition == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, held->lost ? "a wait without the mutex" : "a wait for nothing");
        return 0;
    }
    lock_deadline deadline = guard_impl_lock_deadline(wait_ms);
    for (struct timespec end; !ready(arg);) {
        if (!guard_impl_lock_slice(&deadline, CLOCK_MONOTONIC, &end)) {
            return 0;
        }
        guard_impl_checkpoint(place);
        int error = pthread_cond_clockwait(condition, held->head.lock, CLOCK_MONOTONIC, &end);
        if (error != 0 && error != ETIMEDOUT) {
            wait_failed(held, error, place);
            if (held->lost) {
                return 0;
            }
        }
    }
    return 1;
}
