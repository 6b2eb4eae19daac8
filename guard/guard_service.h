/* SPDX-License-Identifier: MIT */
/*
 * guard_service.h: a border for requests that admits no more of them than it was told to.
 *
 * PURPOSE
 *
 *   A service outlives a panic in one of its requests, gives each a deadline, and refuses at once what it cannot take on, instead of
 *   letting it wait.
 *
 * CALLING SEQUENCE
 *
 *     guard_service_options options = {.calls = 64, .per_second = 1000};
 *     guard_service *service = guard_service_open(s, "ledger", &options);
 *     ...
 *     guard_error error;                               // in each of the threads that serve
 *     if (guard_service_call(service, handle, request, &error) != 0) {
 *         respond(request, guard_service_answer(&error) == GUARD_ANSWER_FAILED ? 500 : 503, error.message);
 *     }
 *
 * ERRORS
 *
 *   A refusal is an error of domain GUARD_REFUSED whose code is a guard_refusal; the request's function was not called. Every other error
 *   is the panic that left the function, whose scopes have run.
 *
 * THREADS
 *
 *   Any number of threads may use a service at a time. It must outlive their calls: the scope it was opened on is closed after they ended.
 */
#ifndef GUARD_SERVICE_H
#define GUARD_SERVICE_H

#include <guard/guard.h>
#include <guard/guard_log.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The codes of domain GUARD_REFUSED. */
typedef enum guard_refusal {
    GUARD_REFUSED_CALLS = 1,  /* as many calls as may be were under way */
    GUARD_REFUSED_RATE = 2,   /* more calls in this time than may be */
    GUARD_REFUSED_BREAKER = 3 /* the breaker of a dependency, see guard_breaker.h */
} guard_refusal;

typedef struct guard_service_options {
    uint32_t calls;      /* under way at a time; 0: any number */
    uint32_t per_second; /* calls in a second, on average, at most 1,000,000; 0: any number */
    uint32_t burst;      /* of these, how many may come at once; 0: as many as in a second */
    int32_t deadline_ms; /* of a call; 0: 30,000, -1: only that of the scopes around it */
    guard_log *
        log; /* where each panic that ends a call is logged, see guard_log.h; NULL: nowhere. It must outlive the calls */
    guard_severity_fn *severity; /* of a panic; NULL: GUARD_LOG_BY_ERROR */
    uint64_t reserved[2];
} guard_service_options;

typedef struct guard_service guard_service;

/*
 * Opens a service on `scope`, whose end closes it. `name` is copied, at most 31 bytes of it; options may be NULL. Panics
 * with GUARD_MEMORY, and with GUARD_MISUSE on options out of their range; NULL only where the misuse handler returned.
 */
#define guard_service_open(scope, name, ...) guard_service_open_at((scope), (name), (__VA_ARGS__), GUARD_HERE)
GUARD_API guard_service *guard_service_open_at(guard_scope *scope, const char *name,
                                               const guard_service_options *options, const guard_place *place);

/*
 * Calls fn(arg) as guard_run does, under the service's deadline. Returns 0 when fn returned or its panic was recovered, else the
 * error's code, never 0, with *error filled where it is not NULL. It waits for nothing: a call beyond a limit is refused. Its panic is
 * in the log when it returns, or counted there; a refusal of the service's own is not logged, for it is in the figures. Any thread.
 */
GUARD_API int guard_service_call(guard_service *service, guard_fn *fn, void *arg, guard_error *error);

/*
 * How many milliseconds from now the rate admits a call again, rounded up, for a Retry-After; 0: now. When one of the calls under way ends
 * nobody knows, so that their limit does not count. Any thread.
 */
GUARD_API int64_t guard_service_retry_ms(const guard_service *service);

/* What became of the calls. Each of them is in exactly one of the first three. */
typedef struct guard_service_figures {
    uint64_t returned;      /* also with a recovered panic */
    uint64_t failed;        /* by a panic */
    uint64_t under_way;     /* now */
    uint64_t refused_calls; /* GUARD_REFUSED_CALLS: not called at all */
    uint64_t refused_rate;  /* GUARD_REFUSED_RATE */
    uint64_t reserved[3];   /* 0 */
} guard_service_figures;

/* Fills *figures. They are exact once no call is under way; before that, each by itself. Any thread. */
GUARD_API void guard_service_read(const guard_service *service, guard_service_figures *figures);

/* What an error means to the one who asked. */
typedef enum guard_answer {
    GUARD_ANSWER_DONE = 0,      /* no error: a code of 0, or NULL */
    GUARD_ANSWER_REFUSED = 1,   /* GUARD_REFUSED: nothing was begun; later */
    GUARD_ANSWER_CANCELLED = 2, /* GUARD_CANCELLED, GUARD_TIMEOUT, PostgreSQL's 57014: ended before it was done */
    GUARD_ANSWER_BUSY = 3,      /* no memory, a database that is busy, locked, restarting or not to be reached: later */
    GUARD_ANSWER_FAULT = 4,     /* GUARD_FAULT */
    GUARD_ANSWER_BUG = 5,       /* GUARD_MISUSE */
    GUARD_ANSWER_FAILED = 6     /* everything else, also a transaction in doubt, which must not simply be tried again */
} guard_answer;

/*
 * The answer to an error, by its domain, and for a database by SQLite's primary code (BUSY, LOCKED) or the class of the
 * SQLSTATE (08, 40, 53, 57, and 55P03). Any thread.
 */
GUARD_API guard_answer guard_service_answer(const guard_error *error);

#ifdef __cplusplus
}
#endif

#endif
