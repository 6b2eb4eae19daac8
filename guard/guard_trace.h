/* SPDX-License-Identifier: MIT */
/*
 * guard_trace.h: the stack on which a panic was raised, and the names of its frames.
 *
 * PURPOSE
 *
 *   An error says where its panic was raised; a trace says by whom that code was called. Taking one is cheap (it keeps return addresses,
 *   and allocates nothing); naming its frames is not, and is done only when somebody prints it.
 *
 * CALLING SEQUENCE
 *
 *     guard_trace_capture(1);                            // once, at start: every panic
 *     ...
 *     guard_error error;
 *     guard_trace trace;
 *     if (guard_run(work, arg, &error) != 0 && guard_trace_of(&error, &trace) > 0) {
 *         char text[GUARD_TRACE_TEXT];
 *         guard_trace_format(&trace, text, sizeof text); // "\ttransfer at transfer.c:41\n\thandle at main.c:12\n..."
 *     }
 *
 *   A panic that nobody recovers has its trace in the report; for that nothing need be switched on.
 *
 * WHAT IT COSTS
 *
 *   A panic that is raised and caught nine frames below main takes about 45 ns; with its trace 135 ns by libunwind (the rows panic-1 and
 *   panic-stack of BENCHMARKS.md; gcc 12 -O2), and some 1,600 ns by libgcc's unwinder. So by default only those panics are traced that no
 *   border encloses. A service, whose panics are rare and each worth a line in the log, switches it on.
 *
 * THREADS
 *
 *   A thread keeps the traces of the last GUARD_TRACE_KEPT panics that its borders have caught. To take one to another thread, copy it
 *   beside the error and call guard_trace_keep there.
 */
#ifndef GUARD_TRACE_H
#define GUARD_TRACE_H

#include <guard/guard.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GUARD_TRACE_FRAMES 32 /* the innermost; those of deeper stacks are cut */
#define GUARD_TRACE_KEPT 4
#define GUARD_TRACE_TEXT 4096 /* room for the text of most traces */

/* A stack, flat: copy it with `=`. */
typedef struct guard_trace {
    uint32_t count;                         /* frames; 0: none */
    uint32_t is_cut;                        /* 1: the stack had more */
    const void *frames[GUARD_TRACE_FRAMES]; /* return addresses, the innermost first: what raised the panic */
} guard_trace;

/* -------------------------------------------------------------------------------------------------- taking -- */

#define GUARD_TRACE_NEVER (-1)
#define GUARD_TRACE_UNCAUGHT 0 /* the default */

/*
 * Which panics are traced: none, only those that no border encloses, or these and each `every`th of a thread's others (1: all). Returns
 * what was set before. Process-wide. Call it at start: where libunwind is configured in it is loaded here (dlopen(3), which allocates), so
 * that no panic has to; where it cannot be had, libgcc's unwinder is used. Any thread.
 */
GUARD_API int guard_trace_capture(int every);

/*
 * The trace of the panic that `error` comes from, also while a deferred function runs in that panic. Returns its count of frames; 0, and an
 * empty trace, where it was not traced, was raised by another thread, or is older than GUARD_TRACE_KEPT others that this thread caught.
 * An error that is raised again by guard_panic_error keeps the trace of its first panic. Any thread; allocates nothing.
 */
GUARD_API unsigned guard_trace_of(const guard_error *error, guard_trace *trace);

/*
 * Makes *trace that of *error in this thread: for an error that came from another one, copied there together with its trace. Does
 * nothing in a thread that has not used the library yet, and for an empty trace.
 */
GUARD_API void guard_trace_keep(guard_error *error, const guard_trace *trace);

/* The calling function's own stack, outwards from its caller. Returns the count. Allocates nothing, async-signal-safe where
 * guard_trace_capture was called before. */
GUARD_API unsigned guard_trace_here(guard_trace *trace);

/* -------------------------------------------------------------------------------------------------- naming -- */

/* What is known of one frame; texts are terminated, cut where they are too long, and empty where nothing is known. */
typedef struct guard_frame {
    const void *address;
    uint64_t offset;   /* of the address in its module, as addr2line(1) takes it */
    uint32_t line;     /* 0: not known */
    char function[92]; /* as in the symbol table: C++ names are mangled */
    char file[48];     /* the last part of the path */
    char module[48];   /* the program or library, the last part of its path */
} guard_frame;

/*
 * Looks a return address up. With libdw configured in function, file and line are known for code with debugging information, and functions for
 * code that is not stripped; otherwise, or when libdw fails, by the dynamic linker: exported functions, and module and offset. Returns 1,
 * or 0 where not even the module is known. Reads files and allocates; the first call takes milliseconds. Never panics, never asks the
 * network. Any thread; not in a signal handler.
 */
GUARD_API int guard_frame_find(const void *address, guard_frame *frame);

/*
 * One frame as text, without a newline: "transfer at transfer.c:41", "transfer in bank+0x1234", "bank+0x1234" or "0x7f0012345678", by what is
 * known. Control characters are escaped. Returns the length the whole text has. Allocates nothing.
 */
GUARD_API size_t guard_frame_format(const guard_frame *frame, char *text, size_t size);

/*
 * The frames as text, the innermost first, each on a line of its own that begins with a tab; then "\t...\n" where the trace was cut. Returns the
 * length the whole text has, which may be more than `size` - 1. As guard_frame_find.
 */
GUARD_API size_t guard_trace_format(const guard_trace *trace, char *text, size_t size);

#ifdef __cplusplus
}
#endif

#endif
