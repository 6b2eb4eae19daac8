/* SPDX-License-Identifier: MIT */
/*
 * guard_mutex_held.c: what is known of a lock that is held, and waiting for one.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#if defined(__has_include)
#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#endif
#endif

#include "guard_mutex_internal.h"

/* ----------------------------------------------------------------------------------------------- objects -- */

lock_held *guard_impl_lock_new(guard_scope *scope, size_t size, const char *what, const char *name, void *lock,
                               const guard_place *place)
{
    if (lock == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "%s %s is NULL", what, name);
        guard_impl_panic(place, GUARD_LOCK, EINVAL, "%s %s is NULL", what,
                         name); /* nobody may go on as if it were held */
    }
    guard_impl_checkpoint(place);
    guard_impl_reserve(scope, 1, place);
    lock_held *held = guard_allocate(size);
    memset(held, 0, size);
    held->what = what;
    held->name = name;
    held->place = place;
    held->thread = pthread_self();
    held->lock = lock;
    held->since = guard_dump_clock();
    return held;
}

size_t guard_impl_lock_describe(const void *object, char *text, size_t size)
{
    const lock_held *held = object;
    int length = snprintf(text, size, "%s %s", held->what, held->name);
    return length < 0 ? 0 : (size_t)length;
}

int64_t guard_impl_lock_since(const void *object)
{
    return ((const lock_held *)object)->since;
}

void guard_impl_lock_fail(lock_held *held, int error, int wait_ms)
{
    lock_held copy = *held;
    guard_deallocate(held);
    switch (error) {
    case ETIMEDOUT:
        guard_impl_panic(copy.place, GUARD_TIMEOUT, error, "%s %s was not to be had within %d ms", copy.what, copy.name,
                         wait_ms != 0 ? wait_ms : GUARD_MUTEX_WAIT_MS);
    case EOWNERDEAD:
        guard_impl_panic(copy.place, GUARD_LOCK, error, "the owner of %s %s died and there is no repair", copy.what,
                         copy.name);
    case ENOTRECOVERABLE:
        guard_impl_panic(copy.place, GUARD_LOCK, error, "%s %s is beyond repair since its owner died", copy.what,
                         copy.name);
    case EDEADLK:
        guard_impl_panic(copy.place, GUARD_LOCK, error, "%s %s is held by this thread already", copy.what, copy.name);
    default:
        guard_impl_panic(copy.place, GUARD_LOCK, error, "cannot lock %s %s: %s", copy.what, copy.name,
                         strerrordesc_np(error));
    }
}

bool guard_impl_lock_is_own(const lock_held *held)
{
    return pthread_equal(held->thread, pthread_self());
}

void guard_impl_lock_misuse_thread(const lock_held *held)
{
    guard_impl_misuse(held->place, GUARD_MISUSE_THREAD, "%s %s was taken by another thread", held->what, held->name);
}

void guard_impl_lock_end(lock_held *held, int (*unlock)(void *lock))
{
    bool own = guard_impl_lock_is_own(held);
    int error = own ? unlock(held->lock) : 0;
    lock_held copy = *held;
    guard_deallocate(held); /* before the misuse, which does not return as a rule */
    if (!own) {
        guard_impl_lock_misuse_thread(&copy);
    } else if (error != 0) {
        guard_impl_misuse(copy.place, GUARD_MISUSE_STATE, "cannot unlock %s %s, was it unlocked behind its guard? %s",
                          copy.what, copy.name, strerrordesc_np(error));
    }
}

/* ----------------------------------------------------------------------------------------------- waiting -- */

bool guard_impl_lock_wait_ms_is_right(int wait_ms, const guard_place *place)
{
    if (wait_ms >= -1) {
        return true;
    }
    guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "a wait of %d ms", wait_ms);
    return false;
}

static struct timespec time_after(struct timespec time, long ms)
{
    time.tv_sec += ms / 1000;
    time.tv_nsec += ms % 1000 * 1000000;
    if (time.tv_nsec >= 1000000000) {
        time.tv_sec++;
        time.tv_nsec -= 1000000000;
    }
    return time;
}

lock_deadline guard_impl_lock_deadline(int wait_ms)
{
    lock_deadline deadline = {.never = wait_ms == -1};
    clock_gettime(CLOCK_MONOTONIC, &deadline.at);
    deadline.at = time_after(deadline.at, wait_ms != 0 ? wait_ms : GUARD_MUTEX_WAIT_MS);
    return deadline;
}

bool guard_impl_lock_slice(const lock_deadline *deadline, clockid_t clock, struct timespec *end)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long long left_ns = (deadline->at.tv_sec - now.tv_sec) * 1000000000LL + (deadline->at.tv_nsec - now.tv_nsec);
    if (!deadline->never && left_ns <= 0) {
        return false;
    }
    if (clock != CLOCK_MONOTONIC) {
        clock_gettime(clock, &now);
    }
    /* Never early, and no longer than until the next checkpoint is due. */
    long slice_ms = GUARD_WAIT_SLICE_MS;
    if (!deadline->never && left_ns / 1000000 < slice_ms) {
        slice_ms = (long)(left_ns / 1000000) + 1;
    }
    *end = time_after(now, (long)guard_remaining_ms(slice_ms));
    return true;
}

#ifdef RUNNING_ON_VALGRIND
static bool under_valgrind(void)
{
    return RUNNING_ON_VALGRIND;
}
#else
static bool under_valgrind(void)
{
    return false;
}
#endif

/*
 * The clocked calls are right whatever is done to the wall clock. ThreadSanitizer (gcc 12, clang 14) knows none
 * of them and valgrind 3.19 not pthread_mutex_clocklock: to them the lock would not be held, and every access
 * under it a race.
 */
static clockid_t wait_clock(void)
{
#ifdef UNDER_TSAN
    return CLOCK_REALTIME;
#else
    return under_valgrind() ? CLOCK_REALTIME : CLOCK_MONOTONIC;
#endif
}

/* For locks whose timed calls valgrind does not know or takes for failed when they time out. */
static int lock_poll(const lock_calls *calls, void *lock)
{
    int error = calls->now(lock);
    if (error == EBUSY) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        return ETIMEDOUT;
    }
    return error;
}

/* The one place where this adapter waits for a lock. *held is on a scope of its own meanwhile: a checkpoint may
 * panic. */
static int lock_wait(const lock_calls *calls, lock_held *held, int wait_ms)
{
    GUARD_AUTO(waiting);
    guard_ticket ticket = guard_impl_defer(waiting, guard_deallocate, held, held->place);
    clockid_t clock = wait_clock();
    lock_deadline deadline = guard_impl_lock_deadline(wait_ms);
    int error = ETIMEDOUT;
    for (struct timespec end; guard_impl_lock_slice(&deadline, clock, &end);) {
        guard_impl_checkpoint(held->place);
        bool polled = calls->polled && under_valgrind();
        error = polled ? lock_poll(calls, held->lock) : calls->until(held->lock, clock, &end);
        if (error != ETIMEDOUT && error != EINTR) {
            break;
        }
        error = ETIMEDOUT;
    }
    guard_dismiss(ticket);
    return error;
}

int guard_impl_lock_take(const lock_calls *calls, lock_held *held, int wait_ms)
{
    int error = calls->now != NULL ? calls->now(held->lock) : EBUSY;
    return error != EBUSY ? error : lock_wait(calls, held, wait_ms);
}
