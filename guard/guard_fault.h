/* SPDX-License-Identifier: MIT */
/*
 * guard_fault.h: what is left to do when a signal kills the process, and faults of the program as panics.
 *
 * PURPOSE
 *
 *   A process that a signal kills (SIGSEGV, abort, SIGTERM) runs no deferred function. The databases recover by themselves, the kernel
 *   releases the locks. What remains is to say what died and what it held, and to remove temporary files. Both are switched on
 *   by guard_fatal_signals.
 *
 *   guard_faults_to_panics goes further, as Go's runtime does: where a thread's own code dereferences NULL, reads past the end of a mapped
 *   file that was cut, or divides by zero, it panics there, and the nearest border goes on.
 *
 * CALLING SEQUENCE
 *
 *     int main(void)
 *     {
 *         guard_fatal_signals();            // before other threads use the library
 *         guard_fatal_on_signal(SIGTERM);   // a signal that ends the program: temporary files are removed
 *         guard_faults_to_panics();         // faults of this program's own code are panics
 *         ...
 *     }
 *
 * FATAL SIGNALS
 *
 *   The handler runs on a stack of its own, calls async-signal-safe functions only, and does four things: it writes a report to standard
 *   error (signal, address, program counter, thread, and what is registered on the thread's scopes, by place), writes the lines that
 *   wait in panic logs (guard_log_flush_in_signal), removes the files named by guard_temporary_register, and puts back the disposition that
 *   the signal had before. Then a fault happens again, for the handler returns to its instruction, and a signal that was sent is sent again
 *   as it was: the process ends as it would have ended without the library, and a core file has the registers, frames and siginfo of
 *   the fault itself.
 *
 *   So a handler that was there before ours (AddressSanitizer's, a crash reporter's) still has the last word. One that mends faults and goes
 *   on (of a garbage collector, or of a just-in-time compiler) does not fit: it must be installed after ours, or in its place.
 *
 *     guard: fatal: SIGSEGV, address 0x8 (nothing is mapped there), pc 0x55e0c26b41f3 (ledger+0x11f3), thread 4711 "worker"
 *         no panic: a frame of libc.so.6 is between the fault and the border
 *         held: file at import.c:41
 *         held: sqlite transaction at import.c:44
 *
 * FAULTS AS PANICS
 *
 *   A fault becomes a panic of domain GUARD_FAULT whose code is the signal's number; the message has address and program counter:
 *   "SIGSEGV: address 0x8 (nothing is mapped there), pc ledger+0x11f3". Where a panic would leave somebody else's code in the middle, the
 *   fault stays fatal, and the report says why. It is a panic only if all of these hold:
 *
 *     - the thread's own instruction raised it: SIGSEGV, SIGBUS, or the SIGFPE of an integer division; not kill(2) or sigqueue(3);
 *     - the instruction is the program's own code: the main program's, or that of a module named by guard_fault_module. A NULL
 *       that strlen(3) reads is libc's fault; a call of NULL is its caller's;
 *     - a border encloses it, and every frame in between is the program's own or of libguard, libguard-sqlite or libguard-pq. libc
 *       (qsort, a signal handler), the loader, SQLite, libpq and everything else are not;
 *     - no foreign call (guard_foreign_open) is in progress on the thread, so never inside a user function of SQLite;
 *     - the thread is on its own stack and that has not overflowed.
 *
 * WHAT C DOES NOT PROMISE
 *
 *   A fault is undefined behaviour in C. A compiler may assume that it does not happen: it may drop a dereference whose value nobody
 *   uses, or the code behind a test that a dereference has made superfluous; an access may come earlier or later than it is written.
 *   What a local had when the fault came may not have reached memory: a deferred function that gets the address of a local may find
 *   an older value there. Whatever the faulting code had half changed (a list, a lock of its own that is on no scope) stays
 *   so. On aarch64 an integer division by zero is no fault, it gives 0. A wild store that hits mapped memory raises nothing.
 *   Use it where a service is to outlive a bug in one request, and mend the bug.
 *
 *   Such a panic costs 9 us and 0.2 us for each frame up to the border (gcc 12, a virtual machine with AVX-512); without a fault nothing.
 *
 * SANITIZERS
 *
 *   AddressSanitizer and UBSan find most faults before they happen and end the process by themselves; a NULL dereference arrives here, and is
 *   a panic. With locals moved off the stack (detect_stack_use_after_return) borders are not found, and faults stay fatal.
 *   ThreadSanitizer delivers signals that are sent later than they come, and under it what the handler reads is not protected against what is
 *   broken. With clang their runtimes are linked into the program and count as its own code, with gcc they are foreign.
 *
 * MACHINES
 *
 *   x86-64 and aarch64, Linux. On aarch64 the tests of faults as panics have been run under qemu-user only. Elsewhere guard_faults_to_panics
 *   returns ENOSYS, and the report of a fatal signal has no program counter.
 */
#ifndef GUARD_FAULT_H
#define GUARD_FAULT_H

#include <guard/guard.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ----------------------------------------------------------------------------------------- fatal signals -- */

/*
 * Makes SIGSEGV, SIGBUS, SIGFPE, SIGILL and SIGABRT fatal signals as described above, and gives this thread, and each that uses the library
 * from now on, an alternate stack (sigaltstack(2)), so that a stack overflow can be reported; it is freed when the thread ends. A
 * thread that has one already keeps it. A thread that used the library before can call this itself to get one. Any thread, any number of
 * times. Nothing is switched off again. Panics with GUARD_OS.
 */
GUARD_API void guard_fatal_signals(void);

/*
 * The same for a signal of another kind that ends the program, such as SIGTERM, SIGINT, SIGHUP: no report, temporary files are removed.
 * Does nothing where the signal is ignored, as nohup(1) does with SIGHUP. Not for a signal that the program goes on after, nor with
 * guard_cancel_on_signal for the same one. A signal that cannot be caught is misuse. Panics with GUARD_OS.
 */
GUARD_API void guard_fatal_on_signal(int signo);

/* ---------------------------------------------------------------------------------------- faults as panics -- */

/*
 * Makes faults of the program's own code panics, for the process and its children, and SIGSEGV, SIGBUS and SIGFPE fatal signals. Returns
 * 0; ENOSYS where it is not there: on other processors than x86-64 and aarch64, or without _dl_find_object (glibc 2.35); ENOTSUP in a
 * statically linked program, where libc's code cannot be told from the program's. Then nothing is changed. As guard_fatal_signals it is
 * for this thread and those that use the library afterwards: a fault of another thread stays fatal. Panics with GUARD_OS.
 *
 * A library that is linked statically into the program (libsqlite3.a) counts as the program's own code; so do not use this there.
 */
GUARD_API int guard_faults_to_panics(void);

/*
 * The module (shared object) that has the code at this address is the program's own too: a plugin, or the program's main part
 * where that is a library. It must stay loaded. For instance guard_fault_module((const void *)plugin_run). Misuse for an address in no
 * module, and for more than 32 modules. Any thread.
 */
GUARD_API void guard_fault_module(const void *code);

/* ---------------------------------------------------------------------------------------- temporary files -- */

/*
 * For adapters: names a file that is to be removed when a fatal signal kills the process: `name` in the open directory `directory` (or
 * AT_FDCWD), by unlinkat(2) with `flags` (0, or AT_REMOVEDIR for a directory, which is removed if it is empty). The file need not exist.
 * The name is copied, the directory must stay open. Returns what guard_temporary_forget takes, or 0 where there is no room (256 files at
 * a time, names of 255 bytes): then only this is lost. Costs a walk over the names that are registered, does not allocate, does not
 * panic. Only the process that registered it removes it: never a forked child. Any thread, also without guard_fatal_signals.
 */
GUARD_API int guard_temporary_register(int directory, const char *name, int flags);

/* It is removed, renamed or somebody else's. 0 does nothing. Before the directory is closed. Any thread. */
GUARD_API void guard_temporary_forget(int temporary);

#ifdef __cplusplus
}
#endif

#endif
