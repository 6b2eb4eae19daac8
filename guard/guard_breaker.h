/* SPDX-License-Identifier: MIT */
/*
 * guard_breaker.h: a border around the calls of one dependency, which stops calling it while it keeps failing.
 *
 * PURPOSE
 *
 *   A database or a service that is down is not helped by more calls, and each of them holds its caller up until a deadline. A breaker
 *   refuses them at once, and finds out by a few calls when the dependency is well again. Each dependency has a breaker of its own.
 *
 * CALLING SEQUENCE
 *
 *     guard_breaker *breaker = guard_breaker_open(s, "database", NULL);
 *     ...
 *     guard_error error;                               // in any thread, also within guard_service_call
 *     if (guard_breaker_call(breaker, query, request, &error) != 0) {
 *         guard_panic_error(&error);
 *     }
 *
 * STATES
 *
 *     closed ── failures are failure_percent of at least `calls` calls in window_ms ──> open
 *     open ── after open_ms, at the next call ──> half-open
 *     half-open ── as many calls as `probes` succeeded ──> closed, the window empty
 *     half-open ── one failed ──> open
 *
 *   Each change is told in the log that the options name, else by guard_note. What a call says that was begun before a change counts for nothing.
 *
 * ERRORS
 *
 *   A refusal has domain GUARD_REFUSED and code GUARD_REFUSED_BREAKER; the function was not called. Every other error is its panic.
 *
 * THREADS
 *
 *   Any number of threads may use a breaker at a time; it must outlive their calls. A forked child opens its own.
 */
#ifndef GUARD_BREAKER_H
#define GUARD_BREAKER_H

#include <guard/guard.h>
#include <guard/guard_service.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum guard_breaker_state {
    GUARD_BREAKER_CLOSED = 0,
    GUARD_BREAKER_OPEN = 1,
    GUARD_BREAKER_HALF_OPEN = 2
} guard_breaker_state;

/* What a call's error says of the dependency. */
typedef enum guard_verdict {
    GUARD_VERDICT_WELL = 0,   /* it did answer: the error is the caller's */
    GUARD_VERDICT_FAILED = 1, /* it failed */
    GUARD_VERDICT_NONE = 2    /* nothing: the call is not counted */
} guard_verdict;

/*
 * GUARD_VERDICT_FAILED for GUARD_TIMEOUT, GUARD_OS, GUARD_LOCK, GUARD_FAULT, what guard_service_answer calls busy, and of SQLite's
 * results IOERR, CORRUPT, FULL and CANTOPEN; GUARD_VERDICT_NONE for a cancel and a refusal; else GUARD_VERDICT_WELL. Any thread.
 */
GUARD_API guard_verdict guard_breaker_judge(const guard_error *error);

typedef guard_verdict guard_judge_fn(const guard_error *error);

typedef struct guard_breaker_options {
    uint32_t failure_percent; /* 1 to 100; 0: 50 */
    uint32_t calls;           /* fewer in the window never open it; 0: 20 */
    int32_t window_ms;        /* at least 10, slides by a tenth; 0: 10,000 */
    int32_t open_ms;          /* 0: 5,000 */
    uint32_t probes;          /* calls that half-open lets through; 0: 1 */
    guard_judge_fn *judge;    /* any thread, must not panic; NULL: guard_breaker_judge */
    guard_log *log;           /* where changes of its state are told; NULL: guard_note */
    uint64_t reserved[3];
} guard_breaker_options;

typedef struct guard_breaker guard_breaker;

/*
 * Opens a breaker, which is closed, on `scope`, whose end frees it. `name` is copied, at most 31 bytes of it; options may be NULL. Panics
 * with GUARD_MEMORY, and with GUARD_MISUSE on options out of their range; NULL only where the misuse handler returned.
 */
#define guard_breaker_open(scope, name, ...) guard_breaker_open_at((scope), (name), (__VA_ARGS__), GUARD_HERE)
GUARD_API guard_breaker *guard_breaker_open_at(guard_scope *scope, const char *name,
                                               const guard_breaker_options *options, const guard_place *place);

/*
 * Calls fn(arg) as guard_run does, where the breaker lets it. Returns 0 when fn returned or its panic was recovered, else the
 * error's code, never 0, with *error filled where it is not NULL. A call that its thread does not come back from has failed. Any thread.
 */
GUARD_API int guard_breaker_call(guard_breaker *breaker, guard_fn *fn, void *arg, guard_error *error);

/* How many milliseconds from now an open breaker will let a call through, rounded up; 0 in the other states. Any thread. */
GUARD_API int64_t guard_breaker_retry_ms(guard_breaker *breaker);

typedef struct guard_breaker_figures {
    guard_breaker_state state;
    uint64_t well;        /* calls */
    uint64_t failed;      /* calls */
    uint64_t uncounted;   /* calls of GUARD_VERDICT_NONE */
    uint64_t refused;     /* not called at all */
    uint64_t opened;      /* how often it was opened */
    uint64_t reserved[3]; /* 0 */
} guard_breaker_figures;

/* Fills *figures, all of one moment. Calls under way are in none of them. Any thread. */
GUARD_API void guard_breaker_read(guard_breaker *breaker, guard_breaker_figures *figures);

#ifdef __cplusplus
}
#endif

#endif
