/* SPDX-License-Identifier: MIT */
/*
 * guard_dump.h: who holds what: every thread's registrations, with the place and the age of each acquisition.
 *
 * PURPOSE
 *
 *   A program hangs, or a lock or a transaction is held for too long, and the question is: by whom, since when, and from which line?
 *
 * CALLING SEQUENCE
 *
 *     guard_dump_on_signal(SIGUSR1, STDERR_FILENO);    // once, in main; then: kill -USR1 PID
 *     guard_dump(STDERR_FILENO);                       // or from any thread, whenever the program likes
 *
 *   It writes, the innermost and newest first:
 *
 *     guard: what process 4767 holds
 *     thread 4767 (bank):
 *     	transaction on ledger.db, open; for 12.301 s, since transfer.c:41
 *     	mutex &accounts; for 12.302 s, since transfer.c:38
 *     	free, registered at transfer.c:30
 *     thread 4768 (worker): nothing
 *     thread 4770 (reader): it has not answered within 200 ms
 *
 * HOW, AND WHAT IT CANNOT SHOW
 *
 *   A thread's registrations are read by nobody but the thread itself: it is sent a signal, and the handler, on top of whatever the thread
 *   does, describes them into a pipe. So nothing needs a lock, and registering costs what it costs without. A thread that is
 *   stuck in another library or in the kernel answers too, as far as a signal interrupts that; its waits go on (SA_RESTART), but those
 *   that signal(7) lists as never restarted, such as poll(2), end with EINTR. One that blocks the signal, or is in an uninterruptible wait, is named
 *   as not answering. Asked one after the other, threads are shown each at its own moment.
 *
 *   Not shown are fibers' stacks that are not swapped in and what an owner holds (only how many there are, and an owner that is itself
 *   registered on a scope). The age is known of kinds that keep it (guard_kind.since): of all that the adapters hold but malloc's memory and
 *   libpq's results.
 *
 * THE SIGNAL
 *
 *   SIGURG, as in Go's runtime: it is ignored by default, so that a stray one harms nobody, and hardly any program uses it. Its handler is
 *   installed by the first guard_dump, where the program has none. guard_dump_on_signal makes threads be asked by that signal.
 *
 * FOR AUTHORS OF KINDS
 *
 *   `describe` and `since` run in a signal handler on top of the owner's code: they read the object, format it (snprintf with integers and
 *   strings is safe in glibc) and do nothing else: no lock, no memory, no scope, no call into another library. What they read must be whole
 *   whenever the object is registered.
 */
#ifndef GUARD_DUMP_H
#define GUARD_DUMP_H

#include <guard/guard.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GUARD_DUMP_RECORDS 64    /* shown of a thread; more are counted */
#define GUARD_DUMP_ANSWER_MS 200 /* that a thread has to answer */
#define GUARD_DUMP_WHOLE_MS 3000 /* after that, threads that are left are only named */
#define GUARD_DUMP_WRITE_MS 1000 /* that the reader of fd has to make room */

/*
 * Writes it to fd, which stays open. Returns 0, or errno: of writing (ETIMEDOUT: nobody reads), EBUSY where the program has a SIGURG handler of
 * its own and guard_dump_on_signal was not called (then only the calling thread is shown), ETIMEDOUT while other threads' dumps go on.
 * Never panics, nor raises SIGPIPE. Any thread, also one that has not used the library; one dump at a time. Not in a signal handler, nor in a describe.
 */
GUARD_API int guard_dump(int fd);

/*
 * Makes signal `signo` dump to fd, which must stay open: the handler pokes the library's watching thread, which starts one that does
 * it, for collecting the answers takes locks and waits. Threads are asked by the same signal. Calling it again changes fd. A signal
 * that cannot be caught, or one of a fault, is misuse; panics with GUARD_OS. In a forked child call it again.
 */
GUARD_API void guard_dump_on_signal(int signo, int fd);

/*
 * For adapters: the present in nanoseconds, to be kept in an object when it is acquired and given by its kind's `since`. Within
 * 4 ms of CLOCK_MONOTONIC (it is CLOCK_MONOTONIC_COARSE, which takes a fifth of the time). Any thread, async-signal-safe.
 */
GUARD_API int64_t guard_dump_clock(void);

#ifdef __cplusplus
}
#endif

#endif
