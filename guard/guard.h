/* SPDX-License-Identifier: MIT */
/*
 * guard.h: scopes, defers, panics and borders; Go's defer, panic and recover for C.
 *
 * PURPOSE
 *
 *   Every resource a program holds registers its release on one stack per thread. Whatever ends the code
 *   early runs that stack, newest first, so that nothing stays open, locked or half committed.
 *
 * CALLING SEQUENCE
 *
 *     static void copy(void *arg)                      // guarded code: linear, it panics, it does not return errors
 *     {
 *         GUARD_AUTO(s);                               // a scope for this block: any way out runs its defers
 *         char *buffer = malloc(4096);
 *         if (buffer == NULL) {
 *             guard_panic_os("no memory for the buffer");
 *         }
 *         guard_defer(s, free, buffer);
 *         FILE *in = guard_file_open(s, arg, "r", NULL); // adapters register what they acquire
 *         ...
 *     }
 *
 *     guard_error error;
 *     if (guard_run(copy, "data.csv", &error) != 0) {  // a border: contains a panic and returns it
 *         fprintf(stderr, "%s\n", error.message);
 *     }
 *
 *   Guarded code panics; borders (guard_run and the adapters' `transact` functions) return. Arguments come in
 *   one order everywhere: the scope, then the thing, then its options.
 *
 * ERRORS
 *
 *   A panic carries a guard_error: a domain, a code that is never 0, a message, the place. It runs the defers
 *   of every scope up to the nearest border on top of the live stack and then jumps to that border. A panic in a
 *   plain deferred function replaces the panic that was running, which stays in the new one's causes; a panic in
 *   the release of a kind (a failing cleanup) is attached to the running one. With no border, all defers of the
 *   thread run, one report is written to standard error (the chain, the stack, what ran) and the process aborts.
 *
 *   Wrong use of the library (a stale ticket, a closed scope, another thread's scope) goes to the misuse
 *   handler, which by default panics with domain GUARD_MISUSE.
 *
 * THREADS
 *
 *   Each thread has a stack of its own, made at first use and freed when the thread ends. A scope belongs to the
 *   thread that opened it. Only a guard_owner travels between threads.
 *
 * NEVER
 *
 *   let a panic cross frames of another library (qsort, SQLite, libpq) or C++ frames with destructors: wrap the
 *   callback in a guard_latch. Nor panic, register or open a scope in a signal handler: a panic would leave the code that was
 *   interrupted in its middle, with its locks held, and the signal masked; guard_cancel_on_signal (guard_cancel.h) turns signals
 *   into panics, and guard_faults_to_panics (guard_fault.h) faults. Use GUARD_TRY only where its rules on volatile locals are
 *   kept; guard_run has none.
 */
#ifndef GUARD_GUARD_H
#define GUARD_GUARD_H

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#ifdef GUARD_PROBES
#include <sys/sdt.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define GUARD_VERSION_MAJOR 0
#define GUARD_VERSION_MINOR 1
#define GUARD_VERSION_PATCH 0

#define GUARD_API __attribute__((visibility("default")))
#define GUARD_NORETURN __attribute__((noreturn))
#define GUARD_PRINTF(format_index, first_index) __attribute__((format(printf, format_index, first_index)))

/* ------------------------------------------------------------------------------------------------ errors -- */

/* Who an error code belongs to. Programs use GUARD_USER, or domains of their own from GUARD_DOMAIN_FIRST_FREE. */
typedef enum guard_domain {
    GUARD_USER = 0,      /* guard_panic: the code is the program's */
    GUARD_MISUSE = 1,    /* the library was used wrongly; code is a guard_misuse_code */
    GUARD_MEMORY = 2,    /* no memory; code is ENOMEM */
    GUARD_OS = 3,        /* a system call failed; code is errno */
    GUARD_TIMEOUT = 4,   /* a deadline passed; code is ETIMEDOUT */
    GUARD_CANCELLED = 5, /* the work was cancelled; code is ECANCELED */
    GUARD_FAULT = 6,     /* a fault of the program; code is the signal's number */
    GUARD_LOCK = 7,      /* a lock could not be had or mended; code is errno */
    GUARD_SQLITE = 8,    /* code is SQLite's extended result code */
    GUARD_PQ = 9,        /* code is a guard_pq_code; sqlstate says more */
    GUARD_TX = 10,       /* a transaction did not end as asked; code is a guard_tx_code (tx.h) */
    GUARD_REFUSED = 11,  /* a limit or an open breaker refused the call */
    GUARD_DOMAIN_FIRST_FREE = 1000
} guard_domain;

/* The codes of domain GUARD_MISUSE. */
typedef enum guard_misuse_code {
    GUARD_MISUSE_ARGUMENT = 1, /* an argument that can never be right: NULL function, reserved word not zero */
    GUARD_MISUSE_SCOPE = 2,    /* a scope that is closed, was never opened, or is closed out of order */
    GUARD_MISUSE_THREAD = 3,   /* another thread's scope */
    GUARD_MISUSE_TICKET = 4,   /* a stale ticket (already run, dismissed, released or moved), or another thread's */
    GUARD_MISUSE_RECOVER = 5,  /* recovering where no border encloses the scope */
    GUARD_MISUSE_STATE = 6     /* an object is not in a state in which the call makes sense */
} guard_misuse_code;

/* How an entry of guard_error.causes relates to the error. */
typedef enum guard_relation {
    GUARD_CAUSE = 1,     /* led to the error: given by the program in guard_panic_error */
    GUARD_REPLACED = 2,  /* an older panic that was running when a deferred function raised this one */
    GUARD_RECOVERED = 3, /* like GUARD_REPLACED, but already recovered when this one was raised */
    GUARD_ATTACHED = 4   /* a cleanup that failed afterwards */
} guard_relation;

#define GUARD_CAUSES 3 /* short forms kept in an error; more are only counted */

typedef struct guard_cause {
    int32_t domain;
    int32_t code;
    uint32_t line;
    uint8_t relation; /* a guard_relation */
    char sqlstate[6];
    uint8_t flags;    /* GUARD_ERROR_... */
    char file[28];    /* the last part of the path */
    char message[56]; /* cut at the end where it is longer */
} guard_cause;

#define GUARD_ERROR_CAUGHT 1U     /* a border returned it */
#define GUARD_ERROR_REPANICKED 2U /* it was caught, or recovered, and raised again */
#define GUARD_ERROR_COUNTED 4U    /* guard_panics_total has it: raised again, it is no other panic */

/*
 * An error, flat and at most 1 KiB: copy it with `=`, hand it to another thread, keep it as long as you like.
 * All texts are terminated and, where they were too long, cut at a character of UTF-8; an empty text means there is none.
 */
typedef struct guard_error {
    int32_t domain;      /* a guard_domain or one of the program's */
    int32_t code;        /* never 0 */
    int32_t os_error;    /* errno when the panic was raised */
    uint32_t line;       /* where it was raised */
    uint32_t trace;      /* the number of its stack trace, see guard_trace.h; 0: none */
    uint8_t cause_count; /* entries in causes, newest relation last */
    uint8_t cause_more;  /* how many more there were, at most 255 */
    uint8_t flags;       /* GUARD_ERROR_... */
    uint8_t reserved;
    char sqlstate[6]; /* five characters, for databases that have one */
    char more_reserved[2];
    char file[48]; /* the last part of the path */
    char function[40];
    char message[300];   /* one line, without a newline at its end */
    char detail[144];    /* PostgreSQL's DETAIL, or more of the message */
    char hint[80];       /* what to do about it */
    char constraint[64]; /* the constraint that was violated */
    guard_cause causes[GUARD_CAUSES];
} guard_error;

/*
 * A place in the program's source; made by GUARD_HERE, never freed. The lengths may be 0, then they are counted when they are needed: they
 * are known when the program is compiled, and a panic that counted them took a fifth longer.
 */
typedef struct guard_place {
    const char *file;
    const char *function;
    uint32_t line;
    uint16_t name_at;        /* where the last part of file begins */
    uint8_t name_length;     /* of that part */
    uint8_t function_length; /* of function */
} guard_place;

#define GUARD_HERE                                                                       \
    (__extension__({                                                                     \
        static const guard_place guard_here_ = {__FILE__,                                \
                                                __func__,                                \
                                                __LINE__,                                \
                                                GUARD_IMPL_NAME_AT,                      \
                                                GUARD_IMPL_LENGTH(GUARD_IMPL_FILE_NAME), \
                                                GUARD_IMPL_LENGTH(__func__)};            \
        &guard_here_;                                                                    \
    }))

/* Without __FILE_NAME__ (gcc 12, clang 9) the last part is looked for. */
#ifdef __FILE_NAME__
#define GUARD_IMPL_FILE_NAME __FILE_NAME__
#else
#define GUARD_IMPL_FILE_NAME ""
#endif
#define GUARD_IMPL_NAME_AT (sizeof __FILE__ - sizeof GUARD_IMPL_FILE_NAME)
#define GUARD_IMPL_LENGTH(text) (sizeof(text) <= UINT8_MAX ? sizeof(text) - 1 : 0)

/* Fills *error: clears it, sets domain, code (0 becomes -1) and the message as printf does. Any thread. */
GUARD_API void guard_error_set(guard_error *error, int domain, int code, const char *format, ...) GUARD_PRINTF(4, 5);

/*
 * Adds a short form of `later`, and of its own causes, to the causes of *error. What does not fit is counted
 * in cause_more. Any thread; the caller owns both.
 */
GUARD_API void guard_error_attach(guard_error *error, const guard_error *later, guard_relation relation);

/* The name of a domain, such as "sqlite"; "user" for the program's own. Constant text. Any thread. */
GUARD_API const char *guard_domain_name(int domain);

/*
 * Writes the error and its causes as text, one line for each, the oldest panic first as Go prints them; control
 * characters are escaped. Returns the length the whole text has, which may be more than `size` - 1. Allocates nothing.
 */
GUARD_API size_t guard_error_format(const guard_error *error, char *text, size_t size);

/* ------------------------------------------------------------------------------------------------- types -- */

typedef struct guard_scope guard_scope;
typedef struct guard_owner guard_owner;       /* a scope on the heap, see guard_owner_new */
typedef struct guard_recovery guard_recovery; /* the token of a running panic, see guard_defer_recover */
typedef struct guard_impl_record guard_impl_record;
typedef struct guard_impl_stack guard_impl_stack_t;

/* A deferred function, and the body of guard_run. */
typedef void guard_fn(void *arg);

/* A recovering deferred function; `recovery` is NULL when nothing panicked. */
typedef void guard_recover_fn(guard_recovery *recovery, void *arg);

/* When a deferred function runs. A scope fails when a panic leaves it or guard_fail was called on it. */
typedef enum guard_when { GUARD_ALWAYS = 0, GUARD_ON_FAILURE = 1, GUARD_ON_SUCCESS = 2 } guard_when;

/*
 * A kind of resource: a constant descriptor that adapters write once (after PostgreSQL's ResourceOwnerDesc).
 * It must outlive every record that names it.
 */
typedef struct guard_kind {
    const char *name;  /* "file", "sqlite transaction" */
    guard_fn *release; /* gives the object back; may panic, see ERRORS */
    guard_fn *child;   /* instead of release in a forked child, see guard_process.h; NULL: nothing */
    size_t (*describe)(const void *object, char *text, size_t size); /* as snprintf; may be NULL */
    unsigned flags;                                                  /* GUARD_KIND_... */
    guard_fn *dismiss;                                               /* frees what the object is besides the resource */
    const char *action;                   /* what the release does, for reports: "ROLLBACK", "unlock"; may be NULL */
    int64_t (*since)(const void *object); /* when it was acquired, see guard_dump.h; may be NULL */
    const void *reserved[2];              /* NULL */
} guard_kind;

#define GUARD_KIND_HEAP 1U  /* the object does not lie on the stack: it may be released after its frame is gone */
#define GUARD_KIND_FIXED 2U /* guard_move refuses it */
#define GUARD_KIND_AT_FORK \
    4U /* child runs in fork(2) itself, in the child, also for other threads' objects: async-signal-safe, no panic */

/*
 * Names one registration. A ticket that was run, dismissed or released is stale, and using it is misuse. A zeroed
 * ticket names nothing; dismissing or releasing it does nothing. Copy it freely; it is the thread's that made it (an
 * owner's ticket: of whoever holds the owner) and must not be used after its owner was closed.
 */
typedef struct guard_ticket {
    guard_impl_record *record;
    uint32_t generation;
    uint32_t home;
} guard_ticket;

/* Caller-allocated, normally by GUARD_AUTO; the fields are the library's. */
struct guard_scope {
    guard_impl_record *head;
    uint32_t flags;
    uint32_t dead;
    guard_scope *outer;
    guard_impl_stack_t *stack; /* NULL once closed */
    uint32_t sweep;            /* this and what follows is set only where a flag says so */
    uint32_t reserved;
    int64_t deadline;
};

/* ------------------------------------------------------------------------------------------------ scopes -- */

/*
 * GUARD_AUTO(s) declares `guard_scope *s`, open, for the enclosing block. However the block is left (its end, return,
 * break, goto, a panic, a C++ exception or pthread_cancel where the code is built with -fexceptions), the
 * deferred functions of s run, newest first. Jumping into the block past the declaration (a `goto out` from before it, a later `case`) is
 * misuse, and noticed at the end; clang refuses it, gcc warns of it with -Wjump-misses-init.
 *
 * A close of this form cannot know whether the code returns or is being unwound by something else. So a panic raised by
 * one of its deferred functions is held while the rest of the scope runs and the code goes on. It is raised by the next call
 * that opens, closes, fails, registers, reserves, uses a ticket, raises a panic (which then replaces it) or enters a border, before
 * that does anything else; or it is returned by the border. A recovering defer of a scope further out may recover it. Without a border
 * it is uncaught at once. Where the deferred function was compiled without call frame information (-fno-asynchronous-unwind-tables)
 * the panic goes to its border at once.
 */
#define GUARD_AUTO(name)                                                        \
    guard_scope name##_guard_scope_ __attribute__((cleanup(guard_impl_leave))); \
    guard_scope *const name = guard_impl_open(&name##_guard_scope_)

/*
 * GUARD_SCOPE(s) { ... }: the same as a block of its own. `break` and `continue` inside leave only this block, not a
 * loop around it; prefer GUARD_AUTO.
 */
#define GUARD_SCOPE(name)                                                            \
    for (guard_scope name##_guard_scope_ __attribute__((cleanup(guard_impl_leave))), \
         *name = guard_impl_open(&name##_guard_scope_);                              \
         name != NULL; name = NULL)

/*
 * GUARD_DEFER(fn, arg); runs fn(arg) at the end of the enclosing block: a scope with this one deferred function, Go's `defer fn(arg)`. All that
 * is said of GUARD_AUTO and guard_defer holds for it, but:
 *
 *   - the scope has no name, so that nothing else can be registered on it, a forked child cannot adopt it (it does not run what its parent
 *     registered), and there is no ticket to dismiss or release it by;
 *   - a panic that is held is not raised here but by the next call: what fn is to release has been acquired already;
 *   - what it needs lies in the frame. It takes no memory (but for a thread's first use, as any scope) and little more than half the time of
 *     GUARD_AUTO with a guard_defer. Where a foreign jump (longjmp) passes the frame, fn is not run and no report can say so.
 *
 *     int descriptor = open(path, O_RDONLY);
 *     ...
 *     GUARD_DEFER(close_it, &descriptor);
 */
#define GUARD_DEFER(fn, arg) GUARD_IMPL_SINGLE(GUARD_IMPL_PASTE(guard_single_, __COUNTER__), fn, arg)

/*
 * The same as functions, for compilers without the cleanup attribute: opens *scope, which the caller allocates and which
 * becomes the innermost scope of this thread. Panics with GUARD_MEMORY when the thread's first use finds no memory.
 */
GUARD_API void guard_scope_open(guard_scope *scope);

/*
 * Closes the innermost scope: runs its deferred functions, newest first. A panic of one of them goes on at once, after
 * the rest has run. Closing another than the innermost, or a closed one, is misuse.
 */
GUARD_API void guard_scope_close(guard_scope *scope);

/* Declares that this scope failed although nothing panics: its on-failure defers will run, its on-success ones will not. */
GUARD_API void guard_fail(guard_scope *scope);

/*
 * An owner is a scope on the heap that no block closes: for event loops and for objects that hold resources. It may be
 * used by one thread at a time and handed over. Its records are its own, so closing it costs the closing thread nothing.
 *
 * guard_owner_new panics with GUARD_MEMORY. The owner is the caller's until guard_owner_close, which runs its defers,
 * newest first, and frees it, also when one of them panics (the panic goes on after the rest has run); NULL is nothing to close, and
 * has no scope. Register it on a scope with guard_defer_kind(s, &guard_owner_kind, owner) to bound its life.
 */
GUARD_API guard_owner *guard_owner_new(void);
GUARD_API guard_scope *guard_owner_scope(guard_owner *owner);
GUARD_API void guard_owner_close(guard_owner *owner);
GUARD_API extern const guard_kind guard_owner_kind;

/* ----------------------------------------------------------------------------------------------- defers -- */

/*
 * All of these register on any open scope of the calling thread, not only the innermost: a callee opens a scope for
 * what is temporary and registers what it returns on its caller's. They return a ticket, which may be ignored.
 *
 * A registration that cannot be made (no memory, closed scope, another thread's scope) runs the function or the release
 * at once, so that nothing leaks, and then panics; a failure of the release is attached. (One that is to run on success only does
 * not run, nor does a recovering one.) Reserve first (guard_reserve) where that must not happen between an
 * acquisition and its registration.
 */

/* Runs fn(arg) when the scope ends. fn NULL is misuse at once. */
#define guard_defer(scope, fn, arg) guard_impl_defer((scope), (fn), (arg), GUARD_HERE)

/* Runs it always, only when the scope fails, or only when it succeeds. */
#define guard_defer_on(scope, when, fn, arg) guard_impl_defer_on((scope), (when), (fn), (arg), GUARD_HERE)

/*
 * Copies `size` bytes now, as Go evaluates a deferred call's arguments, and runs fn with the address of the
 * copy. Up to GUARD_COPY_INLINE bytes need no allocation. The copy is the library's and gone when fn has returned.
 */
#define guard_defer_copy(scope, fn, data, size) guard_impl_copy((scope), (fn), (data), (size), GUARD_HERE)
#define GUARD_COPY_INLINE 40

/* Registers an object of a kind: what adapters use. A panic in its release is a failing cleanup, see ERRORS. */
#define guard_defer_kind(scope, kind, object) guard_impl_defer_kind((scope), (kind), (object), GUARD_HERE)

/*
 * Runs fn(recovery, arg). In a panic `recovery` is its token, which is valid until fn returns; otherwise it is NULL.
 */
#define guard_defer_recover(scope, fn, arg) guard_impl_defer_recover((scope), (fn), (arg), GUARD_HERE)

/*
 * Ends the panic: the remaining defers up to the border still run (on-failure ones too, for their scopes were
 * cut short), then the border returns 0. Returns 1, or 0 if there was nothing to recover: NULL, a token that is not the running
 * panic's, or a second call. Misuse where no border encloses the scope. Only in a guard_recover_fn.
 */
GUARD_API int guard_recover(guard_recovery *recovery);

/* The error of the panic, NULL for NULL. The library's, until the deferred function returns. */
GUARD_API const guard_error *guard_recovery_error(const guard_recovery *recovery);

/*
 * Inside a deferred function: the error of the panic that runs it, NULL when it runs normally. The library's, until the
 * deferred function returns. Inside a border opened by the deferred function it is NULL again.
 */
GUARD_API const guard_error *guard_panicking(void);

/*
 * Makes sure that the next `count` registrations on this scope cannot fail for want of memory, whatever other scopes register meanwhile.
 * guard_defer_copy of more than a pointer's size counts as two, and above GUARD_COPY_INLINE bytes it allocates all the same. What is not used is given back
 * when the scope ends. Panics with GUARD_MEMORY.
 */
#define guard_reserve(scope, count) guard_impl_reserve((scope), (count), GUARD_HERE)

/* ---------------------------------------------------------------------------------------------- tickets -- */

/*
 * Takes the registration off without running it: the caller has the resource again. A kind that keeps a record of its own
 * about the resource frees that then (guard_kind.dismiss, which must not panic).
 */
GUARD_API void guard_dismiss(guard_ticket ticket);

/* Takes it off and runs it now, once, whatever its guard_when. A panic of it goes on at once. Recovering defers are misuse. */
GUARD_API void guard_release(guard_ticket ticket);

/*
 * Hands the registration to another open scope or owner, where it is the newest; returns its new ticket, the old one is
 * stale. Panics with GUARD_MEMORY before anything changed. Misuse for kinds with GUARD_KIND_FIXED.
 */
GUARD_API guard_ticket guard_move(guard_ticket ticket, guard_scope *scope);

/* 1 while the ticket's registration is still to run, else 0. */
GUARD_API int guard_pending(guard_ticket ticket);

/* For adapters: the object a pending registration of this kind names, the kind's. Misuse for any other ticket, then NULL. */
GUARD_API void *guard_ticket_object(guard_ticket ticket, const guard_kind *kind);

/* ----------------------------------------------------------------------------------------------- panics -- */

/*
 * guard_panic(code, format, ...): raises a panic of domain GUARD_USER. Code 0 becomes -1. Never returns, never allocates
 * (but for what printf does with wide characters or widths above its buffers).
 */
#define guard_panic(code, ...) GUARD_IMPL_PANIC(GUARD_USER, (code), __VA_ARGS__)

/* The same in a domain of your choice. */
#define guard_panic_in(domain, code, ...) GUARD_IMPL_PANIC((domain), (code), __VA_ARGS__)

/* Domain GUARD_OS with the present errno, whose text is added to the message. */
#define guard_panic_os(...) guard_impl_panic_os(GUARD_HERE, __VA_ARGS__)

/* Raises *error, which is copied, as it is; the place is filled in where it has none. Use it to go on after a border. */
#define guard_panic_error(error) guard_impl_panic_error(GUARD_HERE, (error))

/* ---------------------------------------------------------------------------------------------- borders -- */

/*
 * Runs fn(arg) and contains its panic. Returns 0 when fn returned or its panic was recovered, else the panic's code
 * (never 0) with *out filled, where out is not NULL. *out is not touched on 0. Any thread; where there is no memory for the thread's
 * stack, it returns ENOMEM without running fn. Locals of the caller are safe: no setjmp happens in its frame. A scope that fn
 * leaves open is misuse, and its defers cannot be run: it lies in a frame that is gone.
 */
GUARD_API int guard_run(guard_fn *fn, void *arg, guard_error *out);

/*
 * GUARD_TRY(&error) { ... } GUARD_CATCH { ... }: the thin block form. It calls setjmp in this frame: a local that is changed
 * inside the first block and read in the second must be volatile (C11 7.13.2.1), and there must be no VLA in it. `break` and
 * `continue` leave the block. The first block may be left by return or goto. error may be NULL. Not for C++.
 */
#define GUARD_TRY(error) GUARD_IMPL_TRY(error, __COUNTER__)
#define GUARD_CATCH else

/*
 * A latch carries a panic over frames of a library that knows nothing of panics. Each callback runs its work with guard_latch_run
 * and gives the library its own error code when that is not 0; after the library returned, guard_latch_raise
 * raises the first panic again.
 *
 *     static int compare(const void *a, const void *b, void *arg) { ... guard_latch_run(&latch, work, &args) ... }
 *     guard_latch_open(&latch);
 *     qsort_r(base, n, size, compare, &latch);
 *     guard_latch_raise(&latch);
 *
 * Once a panic is latched, guard_latch_run does no more work and returns its code. The caller allocates the latch; it is
 * used by one thread at a time.
 */
typedef struct guard_latch {
    int code; /* 0, or the code of error */
    int reserved;
    guard_error error;
} guard_latch;

GUARD_API void guard_latch_open(guard_latch *latch);
GUARD_API int guard_latch_run(guard_latch *latch, guard_fn *fn, void *arg);

/* Raises the latched panic and empties the latch; returns if there is none. */
GUARD_API void guard_latch_raise(guard_latch *latch);

/* For a library call that was not the latch owner's: notes the latched panic (guard_note) and empties the latch. */
GUARD_API void guard_latch_drop(guard_latch *latch, const char *why);

/* Raises a panic that an automatic close held back, if there is one. Adapters call it before work that must not be begun or
 * committed after a failed cleanup. */
static inline void guard_raise_held(void);

/* --------------------------------------------------------------------------------------------- handlers -- */

/*
 * Process-wide; set them before other threads use the library. NULL restores the default. Each returns the former one.
 *
 * The misuse handler is told of wrong use. If it returns, the call does nothing (and releases what was to be registered). By
 * default the misuse panics. It may abort, or panic itself.
 */
typedef void guard_misuse_fn(const guard_error *error);
GUARD_API guard_misuse_fn *guard_misuse_handler(guard_misuse_fn *handler);

/* Adapters report misuse here: calls the handler; when that returns, so does this. */
#define guard_misuse(code, ...) guard_impl_misuse(GUARD_HERE, (code), __VA_ARGS__)

/* Called with an uncaught panic and its report, after the report was written, instead of abort(); it must not return
 * (the process aborts if it does). */
typedef void guard_fatal_fn(const guard_error *error, const char *report);
GUARD_API guard_fatal_fn *guard_fatal_handler(guard_fatal_fn *handler);

/* Called with one line that is worth knowing but fails nothing, such as a latch dropped; by default it goes to stderr, where
 * it is lost if nobody takes it for a second. SIGPIPE is not raised, by reports neither. */
typedef void guard_note_fn(const char *text);
GUARD_API guard_note_fn *guard_note_handler(guard_note_fn *handler);
GUARD_API void guard_note(const char *format, ...) GUARD_PRINTF(1, 2);

/*
 * Where the library gets its memory: `allocate` as malloc, `release` as free. Both or neither (NULL, NULL is malloc and free).
 * Call it before the process's first scope: what was allocated before would be given to the wrong release.
 */
GUARD_API void guard_allocator(void *(*allocate)(size_t), void (*release)(void *));

/* For adapters: memory from that allocator; guard_allocate panics with GUARD_MEMORY, and never returns NULL. */
GUARD_API void *guard_allocate(size_t size);
GUARD_API void guard_deallocate(void *memory);

#include <guard/guard_inline.h>

#ifdef __cplusplus
}
#endif

#endif
