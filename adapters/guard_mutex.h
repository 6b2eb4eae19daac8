/* SPDX-License-Identifier: MIT */
/*
 * guard_mutex.h: pthread mutexes, conditions, read-write locks and semaphores, each given back when its scope ends.
 *
 * PURPOSE
 *
 *   A lock taken here is registered on a scope. However the scope is left, by a panic too, the lock is given back. No
 *   lock is waited for without a deadline, unless one asks for that.
 *
 * CALLING SEQUENCE
 *
 *     static pthread_mutex_t accounts = PTHREAD_MUTEX_INITIALIZER;    // plain pthread objects, also of existing code
 *
 *     GUARD_AUTO(s);
 *     guard_ticket lock = guard_mutex_lock(s, &accounts, NULL);
 *     while_locked();                                                 // may panic
 *     if (!guard_mutex_wait(lock, &changed, enough_money, account, 500)) {
 *         guard_panic(1, "still not enough");                         // after 500 ms; the lock is held here
 *     }
 *     guard_release(lock);                                            // now; or when s ends
 *
 *   The ticket names the lock: guard_release gives it back early, guard_dismiss leaves it locked and makes that
 *   the caller's affair. The `try` forms return 1 with *ticket filled, or 0 where another one has it.
 *
 * ERRORS
 *
 *   All failures panic. GUARD_TIMEOUT, ETIMEDOUT: not to be had within the deadline. GUARD_LOCK: the owner of a
 *   robust mutex died (EOWNERDEAD) and there is no repair, it is beyond repair (ENOTRECOVERABLE), this thread
 *   has it already (EDEADLK), or another errno of the pthread call. GUARD_MISUSE: a lock that is not this
 *   thread's to give back, or is NULL. The message names the lock as the source does ("&accounts").
 *
 * WAITING
 *
 *   Milliseconds on CLOCK_MONOTONIC: 0 is GUARD_MUTEX_WAIT_MS, -1 for ever, anything below is misuse. Every
 *   call that takes a lock is a checkpoint, and a wait is cut into slices of GUARD_WAIT_SLICE_MS with one
 *   between: a cancel and the deadline of a scope (guard_cancel.h) end it by their panic. Under ThreadSanitizer
 *   and valgrind, which do not know the clocked calls, a slice is one of CLOCK_REALTIME.
 *
 * THREADS AND PROCESSES
 *
 *   A mutex and a read-write lock are given back by the thread that took them (an owner that is closed by
 *   another thread is misuse); a semaphore by any. The lock must outlive the scope. In a forked child a plain
 *   private mutex that its parent's thread held is unlocked; all others are left alone, because unlocking them
 *   fails or would free the parent's.
 *
 *   glibc 2.32 or later.
 */
#ifndef GUARD_GUARD_MUTEX_H
#define GUARD_GUARD_MUTEX_H

#include <pthread.h>
#include <semaphore.h>

#include <guard/guard.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GUARD_MUTEX_WAIT_MS 10000

/* ----------------------------------------------------------------------------------------------- mutexes -- */

typedef struct guard_mutex_options {
    int wait_ms; /* see WAITING */
    int reserved_int;
    /*
     * For robust mutexes: mends what the mutex protects after its owner died with it; called with the mutex
     * held, before the lock counts as taken. When it returns the mutex is consistent again. When it panics the
     * mutex is unlocked as it is, hence ENOTRECOVERABLE for everybody from then on, and the panic goes on.
     * NULL: as if it had panicked with GUARD_LOCK, EOWNERDEAD.
     */
    guard_fn *repair;
    void *repair_arg;
    const void *reserved[4]; /* NULL */
} guard_mutex_options;

/* guard_ticket guard_mutex_lock(guard_scope *, pthread_mutex_t *mutex, const guard_mutex_options *options):
 * takes a mutex of any type; options NULL: all zero. pthread_mutex_lock(3p). */
#define guard_mutex_lock(scope, mutex, ...) guard_impl_mutex_lock((scope), (mutex), #mutex, (__VA_ARGS__), GUARD_HERE)

/* int guard_mutex_try_lock(guard_scope *, pthread_mutex_t *mutex, const guard_mutex_options *options,
 * guard_ticket *ticket):
 * the same without waiting; options.wait_ms must be 0. */
#define guard_mutex_try_lock(scope, mutex, options, ticket) \
    guard_impl_mutex_try_lock((scope), (mutex), #mutex, (options), (ticket), GUARD_HERE)

/* int guard_mutex_wait(guard_ticket lock, pthread_cond_t *condition, int (*ready)(void *arg), void *arg, int
 * wait_ms):
 * waits until ready(arg), which is asked with the mutex held, first at once and then after each wake-up, is not
 * 0: then 1, or 0 at the deadline. The mutex is held again whatever it returns; if its owner died meanwhile it
 * is repaired as the options of its lock say. Only if that fails (panic GUARD_LOCK or the repair's) it is not
 * held, and the ticket's release does nothing. A recursive mutex must be locked once only.
 * pthread_cond_clockwait(3), so that the condition's own clock does not matter. */
#define guard_mutex_wait(lock, condition, ready, arg, wait_ms) \
    guard_impl_mutex_wait((lock), (condition), (ready), (arg), (wait_ms), GUARD_HERE)

/* ------------------------------------------------------------------------------------------ read-write locks -- */

/* They are here where <pthread.h> has them: strict -std=c11 needs -D_POSIX_C_SOURCE=200809L for that. */
#ifdef PTHREAD_RWLOCK_INITIALIZER

/* guard_ticket guard_rwlock_read(guard_scope *, pthread_rwlock_t *lock, int wait_ms): shared with other readers. */
#define guard_rwlock_read(scope, lock, wait_ms) guard_impl_rwlock_lock((scope), (lock), #lock, 0, (wait_ms), GUARD_HERE)

/* guard_ticket guard_rwlock_write(guard_scope *, pthread_rwlock_t *lock, int wait_ms): alone. */
#define guard_rwlock_write(scope, lock, wait_ms) \
    guard_impl_rwlock_lock((scope), (lock), #lock, 1, (wait_ms), GUARD_HERE)

/* int guard_rwlock_try_read(guard_scope *, pthread_rwlock_t *lock, guard_ticket *ticket), and the same for writing. */
#define guard_rwlock_try_read(scope, lock, ticket) \
    guard_impl_rwlock_try_lock((scope), (lock), #lock, 0, (ticket), GUARD_HERE)
#define guard_rwlock_try_write(scope, lock, ticket) \
    guard_impl_rwlock_try_lock((scope), (lock), #lock, 1, (ticket), GUARD_HERE)

#endif

/* ------------------------------------------------------------------------------------------------ semaphores -- */

/* guard_ticket guard_semaphore_wait(guard_scope *, sem_t *semaphore, int wait_ms): takes one; the scope's end
 * posts it back. */
#define guard_semaphore_wait(scope, semaphore, wait_ms) \
    guard_impl_semaphore_wait((scope), (semaphore), #semaphore, (wait_ms), GUARD_HERE)

/* int guard_semaphore_try_wait(guard_scope *, sem_t *semaphore, guard_ticket *ticket): the same without waiting. */
#define guard_semaphore_try_wait(scope, semaphore, ticket) \
    guard_impl_semaphore_try_wait((scope), (semaphore), #semaphore, (ticket), GUARD_HERE)

/* ---------------------------------------------------------------------------------------- implementation -- */

/* What the macros above call, with the text of the lock and the place of the call; part of the ABI, not for
 * direct use. */
GUARD_API guard_ticket guard_impl_mutex_lock(guard_scope *scope, pthread_mutex_t *mutex, const char *name,
                                             const guard_mutex_options *options, const guard_place *place);
GUARD_API int guard_impl_mutex_try_lock(guard_scope *scope, pthread_mutex_t *mutex, const char *name,
                                        const guard_mutex_options *options, guard_ticket *ticket,
                                        const guard_place *place);
GUARD_API int guard_impl_mutex_wait(guard_ticket lock, pthread_cond_t *condition, int (*ready)(void *arg), void *arg,
                                    int wait_ms, const guard_place *place);
#ifdef PTHREAD_RWLOCK_INITIALIZER
GUARD_API guard_ticket guard_impl_rwlock_lock(guard_scope *scope, pthread_rwlock_t *lock, const char *name, int write,
                                              int wait_ms, const guard_place *place);
GUARD_API int guard_impl_rwlock_try_lock(guard_scope *scope, pthread_rwlock_t *lock, const char *name, int write,
                                         guard_ticket *ticket, const guard_place *place);
#endif
GUARD_API guard_ticket guard_impl_semaphore_wait(guard_scope *scope, sem_t *semaphore, const char *name, int wait_ms,
                                                 const guard_place *place);
GUARD_API int guard_impl_semaphore_try_wait(guard_scope *scope, sem_t *semaphore, const char *name,
                                            guard_ticket *ticket, const guard_place *place);

#ifdef __cplusplus
}
#endif

#endif
