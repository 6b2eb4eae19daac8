/* SPDX-License-Identifier: MIT */
/*
 * guard_context.h: what a thread works for at the moment: a few keys and values, and the trace that it is part of.
 *
 * PURPOSE
 *
 *   A line of the panic log is worth little when it does not say whose request it was. Whoever knows something about the work puts it into
 *   the thread's context; whoever logs finds it there, without handing it through every function.
 *
 * CALLING SEQUENCE
 *
 *     GUARD_AUTO(s);
 *     guard_context_set(s, "customer", customer);      // until s ends; then what was there before
 *     guard_context_traceparent(s, header("traceparent"));   // of the request, from whoever sent it
 *     ...
 *     guard_panic(...);                                 // the log's line of this panic has both
 *
 *   A panic takes along what it leaves behind: a value whose scope was ended by a panic is no longer in the thread's context, but still
 *   in the line of that panic, wherever it is logged within the guard_service_call, and of an error that has it as a cause.
 *
 * NEVER
 *
 *   put a secret into it: it is written to the log as it is.
 *
 * THREADS
 *
 *   Each thread has its own, and so has each fiber (guard_stack). The members of a guard_group begin with a copy of their opener's; with threads
 *   of your own use guard_context_copy. A forked child goes on with its parent's.
 */
#ifndef GUARD_CONTEXT_H
#define GUARD_CONTEXT_H

#include <guard/guard.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GUARD_CONTEXT_VALUES 16   /* that a thread has at a time */
#define GUARD_CONTEXT_KEY_SIZE 32 /* a longer key is cut, at a character of UTF-8; the NUL included */
#define GUARD_CONTEXT_VALUE_SIZE 96

/*
 * Sets a value of this thread's context until `scope` ends, whatever ends it; it hides an older one of the same key meanwhile. Both texts
 * are copied; NULL as the value hides the older one. Returns 1, or 0 where there are GUARD_CONTEXT_VALUES already: nothing was set. Panics
 * with GUARD_MEMORY. Misuse: a key that is NULL or empty, an owner's scope, one that is not open on this thread.
 */
#define guard_context_set(scope, key, value) guard_context_set_at((scope), (key), (value), GUARD_HERE)
GUARD_API int guard_context_set_at(guard_scope *scope, const char *key, const char *value, const guard_place *place);

/* The newest value of this key, NULL where there is none. The library's, until its scope ends. This thread's. */
GUARD_API const char *guard_context_get(const char *key);

/* -------------------------------------------------------------------------------------------------- trace -- */

/* What a traceparent header says, https://www.w3.org/TR/trace-context/ */
typedef struct guard_traceparent {
    char trace_id[33];  /* of the whole trace: 32 hexadecimal digits in lower case */
    char parent_id[17]; /* of whoever asks: 16 of them */
    uint8_t flags;      /* bit 0: sampled */
} guard_traceparent;

/*
 * Reads the value of such a header as section 3.2 has it: in lower case, no id all zero, version 00 of exactly 55 characters, a later version
 * as far as 00 is known (of its flags only bit 0). Returns 1 with *trace filled, or 0 with it empty: then the trace begins anew. NULL is
 * no header. Any thread.
 */
GUARD_API int guard_traceparent_read(const char *traceparent, guard_traceparent *trace);

/* Writes it as version 00: 55 characters and the NUL. */
#define GUARD_TRACEPARENT_SIZE 56
GUARD_API void guard_traceparent_write(const guard_traceparent *trace, char text[GUARD_TRACEPARENT_SIZE]);

/* Parses it, and where it is valid sets it under the key "traceparent" as guard_context_set does. Returns 1, or 0 with nothing set. */
GUARD_API int guard_context_traceparent(guard_scope *scope, const char *traceparent);

/* ------------------------------------------------------------------------------------------- other threads -- */

/*
 * For threads of your own, and for work that is handed over: the values of this thread's context, for guard_context_free. NULL where it has
 * none. Panics with GUARD_MEMORY.
 */
typedef struct guard_context guard_context;
GUARD_API guard_context *guard_context_copy(void);

/* Sets them all on this thread, until `scope` ends; nothing for NULL. The copy may be freed then, or used again. As guard_context_set. */
GUARD_API void guard_context_enter(guard_scope *scope, const guard_context *context);
GUARD_API void guard_context_free(guard_context *context);

/* -------------------------------------------------------------------------------------- for authors of adapters -- */

/*
 * Notes that something this thread had done was taken back, or may have been, such as "transaction on ledger.db begun at transfer.c:83: rolled
 * back"; as printf, at most 127 bytes. The next line of a panic in this guard_service_call has it under "undone". The first four are kept, more
 * are counted. Allocates nothing and never panics; outside of a guard_service_call with a log it does nothing, at the cost of a load.
 */
GUARD_API void guard_context_undone(const char *format, ...) GUARD_PRINTF(1, 2);

/* 1 where guard_context_undone would note something: for texts that cost something to make. */
GUARD_API int guard_context_in_call(void);

#ifdef __cplusplus
}
#endif

#endif
