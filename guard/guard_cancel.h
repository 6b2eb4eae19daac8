/* SPDX-License-Identifier: MIT */
/*
 * guard_cancel.h: ending work early: cancellation, deadlines, masks, and waits that know of them.
 *
 * PURPOSE
 *
 *   Work is ended by its own thread. A signal such as SIGTERM, another thread, or a deadline only asks; the thread
 *   finds out at its next checkpoint and panics there, so that its scopes run as in any other panic.
 *
 * CALLING SEQUENCE
 *
 *     guard_cancel_on_signal(SIGTERM, 2000);      // once, in main: SIGTERM cancels all threads, after 2 s of grace
 *
 *     static void work(void *arg)
 *     {
 *         GUARD_AUTO(s);
 *         guard_deadline(s, 500);                 // this scope and all inside it: 500 ms from now
 *         while (more(arg)) {
 *             guard_checkpoint();                 // panics when cancelled or late; else a load and a test
 *             step(arg);
 *         }
 *     }
 *
 *   The adapters' calls are checkpoints too, and their waits end when a cancel or the deadline comes.
 *
 * ERRORS
 *
 *   A cancel panics with domain GUARD_CANCELLED, code ECANCELED; a deadline with GUARD_TIMEOUT, code ETIMEDOUT. A cancel is sticky:
 *   after a border contained its panic, the next checkpoint panics again, until it is cleared. So does a deadline as
 *   long as its scope is open.
 *
 * MASKS
 *
 *   What must not be cut short is masked: no checkpoint panics in it. Masked are deferred functions (also while the scope
 *   is unwound by a panic), everything inside a scope with guard_mask, and so COMMIT, resolution and hooks of a transaction.
 *   A deadline that was set outside a mask does not count inside it; one set inside does.
 *
 * THREADS
 *
 *   guard_cancel_thread may be called by any thread. All else is about the calling thread.
 */
#ifndef GUARD_CANCEL_H
#define GUARD_CANCEL_H

#include <pthread.h>

#include <guard/guard.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------- checkpoints -- */

/*
 * Panics when this thread was cancelled or a deadline passed, unless that is masked; raises a panic that an automatic
 * close held back. Otherwise it costs one load and one test: call it in every loop that may last.
 */
#define guard_checkpoint() guard_impl_checkpoint(GUARD_HERE)

/*
 * The same, and outside of masks a cancellation point of pthread_cancel(3), which guard_checkpoint is not. For adapters,
 * before a foreign call, while nothing is held that is not registered.
 */
#define guard_cancel_point() guard_impl_cancel_point(GUARD_HERE)

/*
 * For adapters whose functions return errors, and for callbacks of other libraries: what guard_checkpoint would panic with here. Returns 0
 * when it would not, else the code, with *error filled where it is not NULL. A panic that an automatic close held back is not
 * looked at. Costs what guard_checkpoint costs.
 */
static inline int guard_checkpoint_error(guard_error *error);

/*
 * 1 when a cancel was asked for, also during a signal's grace and inside a mask; else 0. For work that wants to end in its own
 * way before it is ended. Knows nothing of deadlines.
 */
GUARD_API int guard_cancelled(void);

/* ------------------------------------------------------------------------------------------ cancellation -- */

/*
 * Asks `thread` to end its work. Returns 1, or 0 if that thread has not used the library yet or has ended: it must not have been
 * joined, for its id may be another's then. The thread is not touched: it panics at its next checkpoint, and waits of the library end at once.
 */
GUARD_API int guard_cancel_thread(pthread_t thread);

/* Takes back the cancel of this thread (not that of a signal): for a thread that goes on with other work. */
GUARD_API void guard_cancel_clear(void);

/*
 * Makes signal `signo` cancel all threads of the process, those that start later too. guard_cancelled says so at once; checkpoints
 * panic grace_ms later (0: at once, -1: never, work is to look at guard_cancelled), or when the signal comes a second time.
 * Sticky until guard_cancel_signal_clear. Installs a handler with sigaction (SA_RESTART off, so that system calls end with
 * EINTR) and starts one thread that wakes the others; that thread blocks all signals but those of faults.
 *
 * Call it for as many signals as there are; the grace is each one's own. grace_ms below -1, a signal that cannot be caught, or one of a fault
 * (guard_fault.h) is misuse. Panics with GUARD_OS. A forked child inherits the handler; what was asked of the parent is not asked of it.
 */
GUARD_API void guard_cancel_on_signal(int signo, int grace_ms);

/* The signal that cancelled the process, 0 if none did. For the exit status: 128 + it. Any thread, also in a signal handler. */
GUARD_API int guard_cancel_signal(void);

/* Forgets that signal: checkpoints go on, and the next one counts as the first. */
GUARD_API void guard_cancel_signal_clear(void);

/* --------------------------------------------------------------------------------------------- deadlines -- */

/*
 * Sets the deadline of a scope, and of all inside it, `ms` milliseconds from now (0: it has passed). Of several the nearest
 * counts: an inner scope can be earlier than an outer one, never later. -1 takes the scope's own deadline away. It ends with the
 * scope. A scope that is not open on this thread, an owner's, or another negative number is misuse.
 */
GUARD_API void guard_deadline(guard_scope *scope, int64_t ms);

/*
 * How long a wait may last: the milliseconds to the nearest deadline that counts here (0 when it has passed, else
 * rounded up), or own_ms if that is less. -1 is for ever, for own_ms as for the result.
 */
GUARD_API int64_t guard_remaining_ms(int64_t own_ms);

/* ------------------------------------------------------------------------------------------------- masks -- */

/*
 * Masks from here to the end of `scope`, which is open on this thread: checkpoints in it, and in all inside it, neither cancel nor
 * time out by an outer deadline. A panic out of the scope ends the mask like any other end does.
 *
 *     GUARD_AUTO(s);
 *     guard_mask(s);
 *     ... COMMIT and what must follow it ...
 */
GUARD_API void guard_mask(guard_scope *scope);

/* Ends the mask of this scope early. Not that of an outer one, nor of a deferred function. */
GUARD_API void guard_unmask(guard_scope *scope);

/* 1 inside a mask, else 0. */
GUARD_API int guard_masked(void);

/* ------------------------------------------------------------------------------------------------- waits -- */

/*
 * Waits until one of `events` (POLLIN, POLLOUT, ...; see poll(2)) is there on descriptor fd, or own_ms have passed (-1: for
 * ever). Returns what poll reported, 0 when own_ms passed. It is a checkpoint from beginning to end: a cancel or a
 * deadline ends it by its panic. fd -1 waits for the time only. Panics with GUARD_OS.
 */
#define guard_wait_descriptor(fd, events, own_ms) guard_impl_wait((fd), (events), (own_ms), GUARD_HERE)

/* Waits for `ms` milliseconds, likewise. */
#define guard_sleep(ms) ((void)guard_impl_wait(-1, 0, (ms), GUARD_HERE))

/*
 * For waits of your own: a descriptor of this thread that becomes readable (POLLIN) when a checkpoint would cancel. Poll it beside
 * yours, with guard_remaining_ms as the time; never read or close it; then call guard_checkpoint. -1 inside a mask, which
 * poll ignores: ask again for each wait. Also -1 when there is no descriptor left: then wait in slices, as below.
 */
GUARD_API int guard_cancel_descriptor(void);

/* For waits that cannot poll (pthread_mutex_clocklock, fcntl): the longest they should last before the next checkpoint. */
#define GUARD_WAIT_SLICE_MS 20

/*
 * For foreign calls that can neither poll nor be sliced, but have a function by which another thread stops them
 * (sqlite3_interrupt): between open and close that function is called with `arg` when this thread is cancelled or its
 * deadline passes, again each GUARD_INTERRUPT_MS until the close, by a thread of the library. It must not
 * block, panic, or use the library. After the close it does not run any more. Inside a mask only deadlines set there count.
 * Registering allocates nothing; the caller allocates the guard_interrupt, which is released by the close and lies still until then.
 * Open and close pair like brackets. Panics with GUARD_OS when the library's thread cannot be started.
 */
typedef struct guard_interrupt {
    struct guard_interrupt *outer;
    guard_fn *fn;
    void *arg;
    int64_t due;     /* in the library's clock; the nearest deadline, INT64_MAX: none */
    uint32_t cancel; /* 1: a cancel counts, it is not masked */
    uint32_t called; /* how often fn was called; to be read after the close */
    void *reserved[2];
} guard_interrupt;

#define GUARD_INTERRUPT_MS 10

GUARD_API void guard_interrupt_open(guard_interrupt *interrupt, guard_fn *fn, void *arg);
GUARD_API void guard_interrupt_close(guard_interrupt *interrupt);

/* ---------------------------------------------------------------------------------------- pthread_cancel -- */

/*
 * pthread_cancel(3) inside SQLite or libpq would leave their locks locked for ever. So adapters close it out around every
 * foreign call, with this pair:
 *
 *     int state = guard_foreign_open();
 *     rc = sqlite3_step(statement);
 *     guard_foreign_close(state);
 *
 * A cancel that arrives meanwhile is delivered by the next guard_cancel_point, or by the next cancellation point of the system. A fault
 * meanwhile is fatal also with guard_faults_to_panics. Nothing may panic between the two but inside a border.
 */
extern GUARD_API __thread uint32_t guard_impl_foreign __attribute__((tls_model("initial-exec"))); /* how many are open */

static inline int guard_foreign_open(void)
{
    int state;
    (void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state); /* fails only for another constant */
    guard_impl_foreign++;
    return state;
}

static inline void guard_foreign_close(int state)
{
    guard_impl_foreign--;
    (void)pthread_setcancelstate(state, NULL);
}

/* ------------------------------------------------------------------------------------- implementation -- */

/* What there may be to do at a checkpoint of this thread; 0 nearly always. Others set bits in it, atomically. */
extern GUARD_API __thread uint32_t guard_impl_attention __attribute__((tls_model("initial-exec")));

GUARD_API void guard_impl_checkpoint_slow(const guard_place *place);
GUARD_API int guard_impl_checkpoint_error(guard_error *error);
GUARD_API void guard_impl_cancel_point(const guard_place *place);
GUARD_API int guard_impl_wait(int fd, int events, int64_t own_ms, const guard_place *place);

/* guard_mask on a scope that this function has just opened: there is nothing to check. */
static inline void guard_impl_mask(guard_scope *scope)
{
    scope->flags |= GUARD_IMPL_SCOPE_MASKED;
}

static inline void guard_impl_checkpoint(const guard_place *place)
{
    if (GUARD_IMPL_UNLIKELY(__atomic_load_n(&guard_impl_attention, __ATOMIC_RELAXED) != 0)) {
        guard_impl_checkpoint_slow(place);
    }
}

static inline int guard_checkpoint_error(guard_error *error)
{
    if (GUARD_IMPL_UNLIKELY(__atomic_load_n(&guard_impl_attention, __ATOMIC_RELAXED) != 0)) {
        return guard_impl_checkpoint_error(error);
    }
    return 0;
}

#ifdef __cplusplus
}
#endif

#endif
