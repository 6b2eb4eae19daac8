/* SPDX-License-Identifier: MIT */
/*
 * guard_process.h: the lives of processes, threads and fibers, and what happens to guarded resources when they end.
 *
 * PURPOSE
 *
 *   A scope ends in ways that are no return and no panic: the thread exits, the process exits, or it forks and lives on
 *   twice. Each has its rule, and none of them needs a call of yours but where it says so.
 *
 * THREADS
 *
 *   A thread that returns from its function has closed its scopes. pthread_exit(3) and pthread_cancel(3) run the scopes that they pass
 *   where your code is built with -fexceptions, as `pkg-config --cflags guard` says. Scopes that were passed without being run lie
 *   in frames that are gone: when the thread has ended, those of their registrations that do not need the frames
 *   (kinds with GUARD_KIND_HEAP) are released, and the others are reported by guard_note. guard_exit_thread needs no flag.
 *   Asynchronous cancellation (PTHREAD_CANCEL_ASYNCHRONOUS) is not supported. What the library writes and waits for on its own account
 *   (notes, logs, wakes, reports, and all that its signal handlers do) is no cancellation point: a thread with a cancel pending still dies
 *   of a panic that nobody recovers, or of a fatal signal, and takes the process along.
 *
 *   A deferred function that panics while the thread is cancelled has nobody to recover it: it is reported and the process aborts.
 *
 * FORK
 *
 *   A child inherits copies of what its parent holds, and must not end what the parent goes on using. So in a child none of the
 *   inherited registrations runs as it would have run: a kind's `child` function runs instead of its release, or nothing if
 *   it has none, and plain functions do not run. What the child registers itself is its own. Recovering defers stay.
 *   guard_child_adopt is for the child that replaces its parent, as a daemon does.
 *
 *   vfork(2) and posix_spawn(3) are not affected, nor is anything else by which a process execs at once. _Fork(3) and clone(2) run
 *   no handlers: a child made by them must not leave its parent's scopes.
 *
 * EXIT
 *
 *   exit(3) runs nothing unless GUARD_AT_EXIT was asked for; _exit(2), abort(3) and SIGKILL never do.
 *
 * PLUGINS
 *
 *   What a shared object has registered names its functions and its places. Linked by the flags of guard.pc it stays mapped after dlclose(3) (-z nodelete,
 *   as the library itself), and all of it can still run; loading it again gives the same one. Without that flag a dlclose with something registered is
 *   a crash when the scope ends, or at a dump: it can be neither refused nor seen here.
 *
 * FIBERS
 *
 *   Code that switches stacks itself (makecontext, a coroutine library) gives each fiber a guard_stack and swaps it beside its own.
 */
#ifndef GUARD_PROCESS_H
#define GUARD_PROCESS_H

#include <guard/guard.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------ process -- */

#define GUARD_AT_EXIT \
    1U /* exit(3), and so the return from main, runs the deferred functions of the thread that calls it */

/*
 * Switches on what `flags` name, for the process and its children; nothing is switched off. Unknown flags are misuse. Any thread.
 *
 * GUARD_AT_EXIT: the scopes that are open on the calling thread run as in guard_exit_thread, once: a second exit in
 * one of the functions runs the rest and ends the process. Panics with GUARD_MEMORY when exit(3) has no room for a handler.
 */
GUARD_API void guard_process_init(unsigned flags);

/*
 * How many forks lie between the first process and this one. An adapter keeps it beside what must not be used by a child,
 * such as a connection, and compares. Any thread, costs a load.
 */
GUARD_API unsigned guard_fork_count(void);

/*
 * The child goes on in its parent's place: what was registered on this scope (or owner's scope) before the fork is the child's own from
 * now on and will be run as usual, but for kinds with GUARD_KIND_AT_FORK, whose rule has been applied. Only where the parent does not
 * run them too: it has left by _exit(2). Misuse on a scope that is not open here.
 */
GUARD_API void guard_child_adopt(guard_scope *scope);

/* ------------------------------------------------------------------------------------------------- threads -- */

/*
 * Ends the calling thread as Go's Goexit: runs all its deferred functions, borders do not stop it, then calls pthread_exit(3) with
 * NULL. The scopes count as failed; nothing panics, so there is nothing to recover. A panic of a deferred function that no
 * older one recovers is fatal; recovered or not, the thread still ends. In the main thread the process lives on
 * until its other threads have ended; the library's own do not count (but where there is no /proc). In a callback of a library that an
 * adapter has called (a function of SQLite's) it is misuse, and panics in any case: that library would never return. pthread_exit(3) there is
 * not seen, and leaves the library's locks locked; but for SQLite's functions, see guard_sqlite.h.
 */
GUARD_API void guard_exit_thread(void) GUARD_NORETURN;

/* -------------------------------------------------------------------------------------------------- fibers -- */

typedef struct guard_stack guard_stack;

/* A stack of scopes for one fiber, empty. The caller's until guard_stack_free. Panics with GUARD_MEMORY. */
GUARD_API guard_stack *guard_stack_new(void);

/*
 * Makes `stack` the one that this thread registers on, NULL: the thread's own. Returns the former one, NULL for the thread's own. Call it
 * right before the switch to the fiber, and again after the switch back. A stack is used by one thread at a time; the scopes on it
 * go with it. Using a stack that another thread has swapped in is misuse, as far as it is noticed.
 */
GUARD_API guard_stack *guard_stack_swap(guard_stack *stack);

/*
 * Frees a stack that is not swapped in. Where scopes are still open on it, their fiber was thrown away: registrations are released
 * or reported as at the end of a thread.
 */
GUARD_API void guard_stack_free(guard_stack *stack);

#ifdef __cplusplus
}
#endif

#endif
