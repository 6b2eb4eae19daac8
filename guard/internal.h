/* SPDX-License-Identifier: MIT */
/*
 * internal.h: what the core's own files share; nothing outside guard/ includes it. (What only the log's files share is in log_internal.h.)
 *
 * Everything declared here is hidden (-fvisibility=hidden). The state of a thread is one struct guard_stack, made at its first use;
 * see README.md for the state diagram of scope, border and panic.
 */
#ifndef GUARD_INTERNAL_H
#define GUARD_INTERNAL_H

#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* gcc says so by a macro, clang by a feature. */
#if defined(__SANITIZE_THREAD__)
#define IS_THREAD_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define IS_THREAD_SANITIZED 1
#endif
#endif
#ifndef IS_THREAD_SANITIZED
#define IS_THREAD_SANITIZED 0
#endif

/* The library's own scopes have the probes of guard.h too. A semaphore says whether somebody looks on: else no argument is computed. */
#ifdef GUARD_WITH_PROBES
#define GUARD_PROBES
#define _SDT_HAS_SEMAPHORES 1
extern unsigned short guard_defer_semaphore __attribute__((visibility("hidden")));
extern unsigned short guard_panic_semaphore __attribute__((visibility("hidden")));
extern unsigned short guard_recover_semaphore __attribute__((visibility("hidden")));
#endif

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_context.h>
#include <guard/guard_fault.h>
#include <guard/guard_metrics.h>
#include <guard/guard_process.h>
#include <guard/guard_trace.h>

_Static_assert(sizeof(guard_error) <= 1024, "guard_error is at most 1 KiB");
_Static_assert(sizeof(guard_impl_record) <= 48, "a record is at most 48 bytes");

/* Flags of guard_scope. */
#define SCOPE_FAILED 1U /* guard_fail, or a held panic passed through */
#define SCOPE_LEAVING \
    GUARD_IMPL_SCOPE_LEAVING /* an automatic close runs its records: a panic from them must come back to it */
#define SCOPE_CLOSING 4U     /* an explicit close runs its records */
#define SCOPE_UNWINDING 8U   /* a panic or the exit of the thread runs its records, or has run them */
#define SCOPE_MASKED GUARD_IMPL_SCOPE_MASKED
#define SCOPE_DEADLINE 32U /* its deadline is set */
#define SCOPE_COUNTED 64U  /* its sweep and reserved are set */
#define SCOPE_SINGLE GUARD_IMPL_SCOPE_SINGLE
_Static_assert((SCOPE_FAILED | SCOPE_LEAVING | SCOPE_CLOSING | SCOPE_UNWINDING) == GUARD_IMPL_SCOPE_ENDED,
               "what an inline close leaves to the slow one");

/* ------------------------------------------------------------------------------------------------- pool -- */

/* Records in the thread's own state: enough for most threads to never allocate (64 * 48 = 3 KiB). */
#define POOL_FIRST 64U
/* Records in a chunk: 48 KiB, so that the header and malloc's own are below 0.1 % of it. */
#define POOL_CHUNK 1024U
/* So many of a chunk become free at a time: 3 KiB, still in the first cache when they are used. 32 to 256 take the same time. */
#define POOL_STEP 64U
_Static_assert(POOL_CHUNK % POOL_STEP == 0, "a chunk becomes free in whole steps");
/* Flags that mark a free record while a pool is walked; no registration has all of these. */
#define RECORD_FREE UINT32_MAX

/* Free records of one chunk, while memory is given back. */
typedef struct guard_free_list {
    guard_impl_record *head;
    guard_impl_record **tail;
    uint32_t count;
    uint32_t generation; /* the greatest of them */
} guard_free_list;

typedef struct guard_chunk {
    struct guard_chunk *next;
    guard_free_list list;
    uint32_t count;       /* records that have ever been free: the memory behind them is untouched */
    uint32_t reserved[3]; /* keeps the records aligned to 16, for small copies */
    guard_impl_record records[POOL_CHUNK];
} guard_chunk;

typedef struct guard_pool {
    guard_impl_record **free; /* the list's head, where the inline path reads it */
    guard_impl_record *first; /* the records that are not in a chunk */
    uint32_t first_count;
    uint32_t chunk_count;
    guard_chunk *chunks;
    uint32_t freed;      /* since the last trim */
    uint32_t generation; /* where the generations of a new chunk begin: beyond those of all chunks given back */
} guard_pool;

void guard_pool_open(guard_pool *pool, guard_impl_record **free_list, guard_impl_record *first, uint32_t count);
void guard_pool_close(guard_pool *pool);
bool guard_pool_grow(guard_pool *pool);
bool guard_pool_holds(const guard_pool *pool, const guard_impl_record *record);
void guard_pool_trim(guard_pool *pool);

/* After `count` records were given back: trims where that is due, see pool.c. */
static inline void guard_pool_freed(guard_pool *pool, uint32_t count)
{
    if (GUARD_IMPL_UNLIKELY(pool->chunk_count > 1)) {
        pool->freed += count;
        if (pool->freed >= pool->chunk_count * (POOL_CHUNK / 2)) {
            guard_pool_trim(pool);
        }
    }
}

static inline guard_impl_record *guard_pool_take(guard_pool *pool)
{
    if (*pool->free == NULL && !guard_pool_grow(pool)) {
        return NULL;
    }
    guard_impl_record *record = *pool->free;
    *pool->free = record->next;
    return record;
}

static inline void guard_pool_give(guard_pool *pool, guard_impl_record *record)
{
    record->generation++;
    record->next = *pool->free;
    *pool->free = record;
}

/* ------------------------------------------------------------------------------------------------ stack -- */

/* A panic that an automatic close could not raise at once. */
typedef enum guard_held { HELD_NONE, HELD_WAITING } guard_held;

struct guard_stack {
    guard_impl_stack_t hot; /* first: the inline path's view */
    guard_pool pool;
    guard_impl_border *border; /* innermost */
    guard_recovery *panic;     /* innermost running panic */
    void *leaving;             /* innermost automatic close, where it needs setjmp */
    guard_held held;
    guard_error held_error;
    guard_scope orphans; /* on no list: registrations whose scope was passed without being run, see orphan.c */
    guard_stack *next;   /* of all stacks, under the life lock */
    guard_stack **at;
    bool is_swapped; /* a fiber's stack, which a thread uses at the moment */
    bool is_unwound; /* guard_exit_thread has ended all its scopes: what the dying frames still close is gone */
    struct guard_context_state *context; /* NULL: nothing was set yet */
    guard_impl_record records[POOL_FIRST];
};

/* The thread's stack, NULL before its first use. guard_impl_stack is the same but NULL while a panic is held. */
extern __thread guard_stack *guard_stack_own __attribute__((tls_model("initial-exec"), visibility("hidden")));

/* Makes it if need be; NULL when there is no memory. */
guard_stack *guard_stack_make(void);
/* Fills in an empty stack. */
void guard_stack_open(guard_stack *stack);
/* Releases or reports what is still registered on it, gives its records back, takes it off the list of all stacks. */
void guard_stack_close(guard_stack *stack);
/*
 * What becomes of a held panic when nobody is left to raise it to: fatal. But that scopes were passed without being run is only noted: a
 * thread that is cancelled in code without -fexceptions does that, see orphan.c.
 */
void guard_stack_end_held(guard_stack *stack);
/* Makes it the one that this thread uses. */
void guard_stack_use(guard_stack *stack);
/* The same, panicking. */
guard_stack *guard_stack_here_first(void);
static inline guard_stack *guard_stack_here(void)
{
    guard_stack *stack = guard_stack_own;
    return GUARD_IMPL_LIKELY(stack != NULL) ? stack : guard_stack_here_first();
}

/* An owner's scope has this as its stack. */
extern guard_impl_stack_t guard_owner_mark;

struct guard_owner {
    guard_scope scope; /* first */
    guard_owner *next; /* of all owners, under the life lock */
    guard_owner **at;
    guard_impl_record *free;
    guard_pool pool;
};

/* It is empty: gives its memory back. */
void guard_owner_free(guard_owner *owner);

static inline bool guard_scope_is_owner(const guard_scope *scope)
{
    return scope->stack == &guard_owner_mark;
}

/*
 * What every walk outwards asks before it reads a scope: false for one that a foreign jump passed and whose frame has been written over,
 * as far as that can be seen. Never true for NULL.
 */
static inline bool guard_scope_is_sound(const guard_stack *stack, const guard_scope *scope)
{
    return scope != NULL && (scope->stack == &stack->hot || scope->stack == &guard_owner_mark);
}

static inline guard_impl_record *guard_single_of(const guard_scope *scope)
{
    return &((guard_impl_single *)(uintptr_t)scope)->record;
}

/*
 * Makes the function of a GUARD_DEFER a record on its scope's list, for who runs it or marks it. A frame that was passed by a foreign jump and
 * written over in part may have none: then there is nothing to run.
 */
static inline void guard_single_list(guard_scope *scope)
{
    guard_impl_record *record = guard_single_of(scope);
    if (GUARD_IMPL_LIKELY(!(scope->flags & SCOPE_SINGLE))) {
        return;
    }
    if (record->action.fn != NULL && record->place != NULL) {
        record->next = NULL;
        record->scope = scope;
        record->flags = GUARD_IMPL_IN_FRAME;
        record->generation = 0;
        __atomic_signal_fence(__ATOMIC_RELEASE);
        scope->head = record;
        __atomic_signal_fence(__ATOMIC_RELEASE);
    }
    scope->flags &= ~SCOPE_SINGLE;
}

/* The first record of a scope for who only reads, perhaps in a signal handler; that of a GUARD_DEFER is made in `room`. */
static inline const guard_impl_record *guard_scope_first(const guard_scope *scope, guard_impl_record *room)
{
    if (!(scope->flags & SCOPE_SINGLE)) {
        return scope->head;
    }
    const guard_impl_record *record = guard_single_of(scope);
    *room = (guard_impl_record){.action = record->action, .arg = record->arg, .place = record->place};
    return room;
}

/*
 * What is asked besides before its records are run: the frame may have been written over in part. A scope's records are of its
 * stack's pool, or beside it.
 */
static inline bool guard_scope_can_run(const guard_stack *stack, const guard_scope *scope)
{
    /* Mostly it is one of these: asking the whole pool costs a panic through ten frames a tenth. */
    if (!guard_scope_is_sound(stack, scope)) {
        return false;
    }
    const guard_pool *pool = &stack->pool;
    uintptr_t head = (uintptr_t)scope->head;
    return head - (uintptr_t)pool->first < pool->first_count * sizeof *pool->first || head == 0 ||
           (pool->chunks != NULL && head - (uintptr_t)pool->chunks->records < sizeof pool->chunks->records) ||
           guard_scope_is_owner(scope) || scope->head == guard_single_of(scope) || guard_pool_holds(pool, scope->head);
}

/*
 * A walk outwards over the open scopes, which ends at the first that is not sound, and also where a scope that a foreign jump passed lies
 * where a newer one is now, so that the list runs in a circle (Brent's algorithm: `mark` is met again).
 */
typedef struct guard_walk {
    guard_scope *scope; /* the present one; NULL: the end */
    const guard_scope *mark;
    uint32_t steps;
    uint32_t limit;
} guard_walk;

static inline guard_walk guard_walk_open(const guard_stack *stack)
{
    guard_scope *top = stack->hot.top;
    return (guard_walk){guard_scope_is_sound(stack, top) ? top : NULL, top, 0, 8};
}

static inline void guard_walk_next(const guard_stack *stack, guard_walk *walk)
{
    guard_scope *next = walk->scope->outer;
    walk->scope = guard_scope_is_sound(stack, next) && next != walk->mark ? next : NULL;
    if (++walk->steps == walk->limit) {
        walk->mark = next;
        walk->steps = 0;
        walk->limit *= 2;
    }
}

/* Opening a scope does not set these: few scopes use them. */
static inline void guard_scope_count(guard_scope *scope)
{
    if (!(scope->flags & SCOPE_COUNTED)) {
        scope->sweep = 0;
        scope->reserved = 0;
        scope->flags |= SCOPE_COUNTED;
    }
}

static inline uint32_t guard_scope_reserved(const guard_scope *scope)
{
    return scope->flags & SCOPE_COUNTED ? scope->reserved : 0;
}

static inline guard_pool *guard_scope_pool(guard_stack *stack, guard_scope *scope)
{
    return guard_scope_is_owner(scope) ? &((guard_owner *)(void *)scope)->pool : &stack->pool;
}

/* ---------------------------------------------------------------------------------------------- counting -- */

/* The slots of guard_impl_counts that are the core's. Slot 0 is that of a counter that counts nothing. */
/* USDT probes, see SERVICE.md. GUARD_IMPL_PROBE_DEFER is in guard_inline.h. */
#ifdef GUARD_WITH_PROBES
#define PROBE_PANIC(error, place)                                                         \
    do {                                                                                  \
        if (GUARD_IMPL_UNLIKELY(guard_panic_semaphore != 0)) {                            \
            DTRACE_PROBE5(guard, panic, (error)->domain, (error)->code, (error)->message, \
                          (place) != NULL ? (place)->file : (error)->file,                \
                          (place) != NULL ? (place)->line : (error)->line);               \
        }                                                                                 \
    } while (0)
#define PROBE_RECOVER(error, by)                                                                 \
    do {                                                                                         \
        if (GUARD_IMPL_UNLIKELY(guard_recover_semaphore != 0)) {                                 \
            DTRACE_PROBE4(guard, recover, (error)->domain, (error)->code, (error)->message, by); \
        }                                                                                        \
    } while (0)
#else
#define PROBE_PANIC(error, place) ((void)0)
#define PROBE_RECOVER(error, by) ((void)0)
#endif

#define COUNT_SITES 126U
#define COUNT_DOMAINS 12U /* those of guard_domain, a program's own being GUARD_USER */
enum {
    COUNT_NONE = 0,
    COUNT_CONTAINED = 1, /* panics that a border returned */
    COUNT_RECOVERED = 2, /* panics that a deferred function recovered */
    COUNT_AGAIN = 3,     /* panics that a border had returned before */
    COUNT_SITE = 4,      /* panics by domain and place, see site.c */
    COUNT_OTHER = COUNT_SITE + COUNT_SITES,
    COUNT_FIRST_FREE = COUNT_OTHER + COUNT_DOMAINS
};

/* One word that this thread alone adds to, and others may read: whole, as it is aligned. Under ThreadSanitizer it is said so. */
static inline void guard_word_add(uint64_t *word, uint64_t count)
{
#if IS_THREAD_SANITIZED || !defined(__LP64__)
    __atomic_store_n(word, __atomic_load_n(word, __ATOMIC_RELAXED) + count, __ATOMIC_RELAXED);
#else
    *word += count;
#endif
}

/* What a thread remembers of the places that panicked last, so that a panic looks for none. */
#define SITE_MEMOS 16U
typedef struct guard_site_memo {
    const guard_place *place; /* SITE_NONE: the memo is empty */
    uint32_t line;
    int32_t domain;
    uint64_t slot;
    uint64_t reserved; /* 32 bytes: it is found by a shift */
} guard_site_memo;
#define SITE_NONE ((const guard_place *)UINTPTR_MAX)

/* ---------------------------------------------------------------------------------------------- threads -- */

/* A trace that a thread keeps after its panic was caught. */
typedef struct guard_kept_trace {
    uint32_t number; /* guard_error.trace; 0: none */
    guard_trace trace;
} guard_kept_trace;

/* What a thread has besides its stack of scopes. */
typedef struct guard_thread {
    guard_stack stack; /* its own; first */
    struct guard_thread *next;
    struct guard_thread **at;
    pthread_t id;
    int32_t tid;         /* the kernel's, as the thread has it */
    uint64_t serial;     /* in the order of their beginnings, from 1 */
    uint32_t *attention; /* its guard_impl_attention */
    int wake;            /* eventfd of guard_cancel_descriptor; -1: none */
    bool is_woken;       /* wake is readable */
    pthread_mutex_t lock;
    guard_interrupt *interrupts; /* under lock */
    uint32_t trace_number;       /* the last one given */
    uint32_t trace_turn;         /* panics since the last one that was traced */
    uint32_t trace_next;         /* the entry that is used next */
    guard_kept_trace traces[GUARD_TRACE_KEPT];
    void *alternate; /* the stack of fatal signals, see fatal.c; NULL: none of ours */
    size_t alternate_size;
    uintptr_t stack_low; /* the bounds of its own stack, where fatal.c has asked for them; else 0 */
    uintptr_t stack_high;
    guard_site_memo memos[SITE_MEMOS];
    uint64_t counts[GUARD_METRICS_SLOTS];
} guard_thread;

extern __thread guard_thread *guard_thread_own __attribute__((tls_model("initial-exec"), visibility("hidden")));

/*
 * The life lock protects what one thread must know of others: the lists of threads, stacks and owners, and their wake descriptors. It
 * is held over fork. A thread's own lock is taken after it. No function of the program's runs under it but those of guard_interrupt.
 */
extern pthread_mutex_t guard_life_lock __attribute__((visibility("hidden")));
extern guard_thread *guard_threads __attribute__((visibility("hidden")));
extern guard_stack *guard_stacks __attribute__((visibility("hidden")));
extern guard_owner *guard_owners __attribute__((visibility("hidden")));

/*
 * metrics.c. What has ended is added to what all have counted: a thread's numbers, a stack's deferred functions. Under the life lock.
 */
void guard_counts_end(const guard_thread *thread);
void guard_ran_end(const guard_stack *stack);
/* The lock of the metrics, which is taken before the life lock, over fork; in the child all begins at 0. */
void guard_metrics_before_fork(void);
void guard_metrics_after_fork(bool is_child);
/* Adds all up: GUARD_METRICS_SLOTS words; returns how many deferred functions have run. */
uint64_t guard_counts_sum(uint64_t *sums);

/* A collector whose memory is the caller's. guard_collector_close waits for a reading that is under way. */
typedef struct guard_collector {
    guard_collect_fn *fn;
    void *arg;
    struct guard_collector *next;
    struct guard_collector **at; /* NULL: the parent's, in a forked child */
} guard_collector;
void guard_collector_open(guard_collector *collector, guard_collect_fn *fn, void *arg);
void guard_collector_close(guard_collector *collector);

static inline guard_site_memo *guard_site_memo_of(guard_thread *thread, const guard_place *place)
{
    return &thread->memos[((uintptr_t)place >> 4) % SITE_MEMOS];
}

/* site.c: the slot of a panic of this domain from this place, or where that is NULL, from that of the error. */
uint32_t guard_site_find(guard_thread *thread, const guard_error *error, const guard_place *place);
/* An error that is raised again has no place here, and is looked at by guard_site_find. */
static inline __attribute__((always_inline)) void guard_site_count(guard_error *error, const guard_place *place)
{
    guard_thread *thread = guard_thread_own;
    const guard_site_memo *memo = guard_site_memo_of(thread, place);
    uint64_t slot = memo->slot;
    if (GUARD_IMPL_UNLIKELY(memo->place != place || memo->line != place->line || memo->domain != error->domain)) {
        slot = guard_site_find(thread, error, place);
    }
    error->flags |= GUARD_ERROR_COUNTED;
    guard_word_add(&thread->counts[slot], 1);
}

/* Puts what was counted on the page. */
void guard_sites_put(guard_metrics_page *page, const uint64_t *sums);

/* metrics_page.c: what a reading has found so far. */
void guard_page_put_histogram(guard_metrics_page *page, const guard_metric *metric, const char *labels,
                              const uint64_t *slots);
void guard_page_put_text(guard_metrics_page *page, const guard_metric *metric, const char *labels, int64_t value);
/* metrics.c: asks everybody. Under the lock of the metrics, in a border; false where a collector panicked. */
void guard_metrics_gather(guard_metrics_page *page);
/* How many samples there are, and going back to so many. */
size_t guard_page_mark(const guard_metrics_page *page);
void guard_page_cut(guard_metrics_page *page, size_t mark);

/* Writes labels as the format wants them, without braces; what does not fit is left out from its label on. */
void guard_labels_format(char *text, size_t size, const guard_label *labels, size_t count);
/* NULL, or what is wrong with them. */
const char *guard_metric_objection(const guard_metric *metric, const guard_label *labels, size_t count);

/* A histogram's slots: a bucket for each bound, one for what is beyond, the sum. */
#define HISTOGRAM_BOUNDS 18U
#define HISTOGRAM_SLOTS (HISTOGRAM_BOUNDS + 2U)
extern const int64_t guard_histogram_bounds[HISTOGRAM_BOUNDS] __attribute__((visibility("hidden")));

/* Registers the fork handlers; once. 0 or errno. */
int guard_fork_prepare(void);

/* Bits of guard_impl_attention. */
#define ATTENTION_CANCEL 1U   /* guard_cancel_thread */
#define ATTENTION_SIGNAL 2U   /* the process may be cancelled by a signal */
#define ATTENTION_DEADLINE 4U /* a scope may have a deadline */
#define ATTENTION_HELD 8U     /* a panic is held */

static inline void guard_attention_set(uint32_t *attention, uint32_t bits)
{
    __atomic_fetch_or(attention, bits, __ATOMIC_SEQ_CST);
}

static inline void guard_attention_clear(uint32_t *attention, uint32_t bits)
{
    __atomic_fetch_and(attention, ~bits, __ATOMIC_SEQ_CST);
}

/* ------------------------------------------------------------------------------------------------ faults -- */

/* fatal.c: gives a new thread its alternate stack where that is switched on; takes it away. */
void guard_alternate_open(guard_thread *thread);
void guard_alternate_close(guard_thread *thread);
/* In a forked child: that of a thread that did not come along. */
void guard_alternate_lose(guard_thread *thread);
/* The handler for one more signal. Under no lock. Panics with GUARD_OS. */
void guard_fatal_install(int signo);
/* All signals that a thread of the library's own blocks: a fault that is blocked kills without a report. */
void guard_fatal_fill(sigset_t *set);
/* The alternate stack and the bounds of this thread, and of each that comes. Panics with GUARD_OS. */
void guard_fatal_prepare(void);
/* The process aborts after it has told why: the handler of SIGABRT is silent. */
void guard_fatal_told(void);
/* After fork, in the child: what other threads were about to die of is the parent's. */
void guard_fatal_forget(void);
/* Runs fn(arg) inside the handler; false where it faulted. */
bool guard_fatal_try(guard_fn *fn, void *arg);

/* Why a fault stays fatal: a text, or NULL where panics were not asked for; and where a foreign frame is, or 0. */
typedef struct guard_fault_refusal {
    const char *why;
    uintptr_t pc;
} guard_fault_refusal;

/* fault.c: makes the interrupted thread go on in a panic when the handler returns; false where that must not be. */
bool guard_fault_redirect(int signo, const siginfo_t *info, void *context, guard_fault_refusal *refusal);
/* The interrupted program counter; 0 on an unknown processor. */
uintptr_t guard_fault_pc(const void *context);

/* temporary.c: removes what is registered. Async-signal-safe. */
void guard_temporaries_remove(void);

/* line.c: text built in a signal handler. */
typedef struct guard_line {
    char *text;
    size_t size;
    size_t length;
} guard_line;

void guard_line_text(guard_line *line, const char *text);
void guard_line_escaped(guard_line *line, const char *text);
void guard_line_number(guard_line *line, uint64_t number);
void guard_line_hex(guard_line *line, uint64_t number);
void guard_line_signal(guard_line *line, int signo);
void guard_line_place(guard_line *line, uintptr_t pc); /* module+0x1234 */
void guard_line_fault(guard_line *line, int signo, int code, uintptr_t address);

/* A module by an address in it. Async-signal-safe; false for none, and where libc cannot tell. */
typedef struct guard_module {
    uintptr_t start;
    uintptr_t base; /* what to take off an address for the module's own numbering */
    const char *path;
} guard_module;
bool guard_module_find(uintptr_t address, guard_module *module);
const char *guard_module_name(const guard_module *module);

/* ------------------------------------------------------------------------------------------ cancellation -- */

/*
 * Takes a lock of the library's within `ms`; false: it was not to be had. By looking again and again: ThreadSanitizer and helgrind do not know
 * pthread_mutex_clocklock, and who waits for one of these locks waits for milliseconds.
 */
bool guard_lock_within(pthread_mutex_t *lock, int64_t ms);

/* Nanoseconds of CLOCK_MONOTONIC; async-signal-safe. */
int64_t guard_clock(void);
#define CLOCK_NEVER INT64_MAX

/*
 * Between the two pthread_cancel(3) does not end this thread: what would be left half done, or with a lock held. All that they need lies in the
 * thread's own memory, so that a signal handler may use them.
 */
static inline int guard_cancel_shut(void)
{
    int state;
    (void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state); /* fails only for another constant */
    return state;
}

static inline void guard_cancel_restore(int state)
{
    (void)pthread_setcancelstate(state, NULL);
}

/* write.c. All of these are async-signal-safe, no cancellation points, and raise no SIGPIPE. */
/* As write(2), once poll(2) has said that there is room: then it does not wait for more. What is no file or socket gets at most PIPE_BUF bytes. */
ssize_t guard_write_quietly(int fd, const char *text, size_t size);
/* All of it. 0 or errno: ETIMEDOUT where nobody takes anything for `ms`. */
int guard_write_within(int fd, const char *text, size_t size, int ms);
/* The descriptor, or a duplicate above those of the standard streams, where others write; -1 with errno where it cannot be had, closed then. */
int guard_descriptor_raise(int descriptor);
/* For an eventfd: adds one; takes what is there. False where that could not be done, or nothing was there. */
bool guard_wake_write(int descriptor);
bool guard_wake_take(int descriptor);

/* What counts at this place: whether a mask is on, and the nearest deadline inside it. */
typedef struct guard_limits {
    bool is_masked;
    int64_t deadline;
} guard_limits;
guard_limits guard_limits_here(const guard_stack *stack);

/* When the signal's cancel is due (CLOCK_NEVER: not asked for, or without end). */
int64_t guard_signal_due(void);
/* What a new thread, or one whose attention was cleared, must know. */
bool guard_signal_is_pending(void);
/* Starts the watcher where a signal may need it, which a forked child lacks. Under the life lock. */
void guard_signal_watch(void);
/* After fork, in the child. */
void guard_signal_forget(void);

/* Makes the thread's waits end. Under the life lock. */
void guard_thread_wake(guard_thread *thread);

/* The main thread has ended, the process goes on: the watcher must not keep it from ending. */
void guard_watch_main_ended(void);
/* The library's own threads that run: these do not count there. 1 where one begins, -1 before it ends. */
void guard_own_threads_add(int count);
/* watch.c: the thread that wakes others. Starts it if need be; 0 or errno. Under the life lock. */
int guard_watch_start(void);
/* The thread was cancelled: interrupts its foreign call, if it is in one. Under the life lock. */
void guard_thread_interrupt(guard_thread *thread);
/* dump.c: starts the dump that a signal asked for, if one did. By the watcher. */
void guard_dump_look(void);
/* After fork, in the child. */
void guard_dump_forget(void);
/* Makes it look again. Async-signal-safe. */
void guard_watch_poke(void);
/* After fork, in the child, where it does not run. */
void guard_watch_forget(void);

/* ---------------------------------------------------------------------------------------------- orphans -- */

/*
 * Makes orphans of the registrations whose scopes lie in [low, high): takes them off these scopes without reading them. Returns how many.
 */
uint32_t guard_orphans_collect(guard_stack *stack, uintptr_t low, uintptr_t high);
/* The innermost sound scope in (low, high) with a registration, found by its records; NULL if there is none. */
guard_scope *guard_orphans_beyond(guard_stack *stack, uintptr_t low, uintptr_t high);
/* guard_orphans_collect for scopes in frames of this thread that are gone: below `frame`. -1 where that cannot be told (a fiber, another stack). */
int guard_orphans_below(guard_stack *stack, const void *frame);
/* The bounds of this thread's own stack; false where they cannot be had. The main thread's are read from /proc. */
bool guard_thread_bounds(uintptr_t *low, uintptr_t *high);
/* The stack's frames are all gone: releases the kinds with GUARD_KIND_HEAP, reports the others. */
void guard_orphans_release(guard_stack *stack);

/* Runs every open scope of the stack as failed, borders cut. Fatal when a panic of them is not recovered. */
void guard_stack_unwind(guard_stack *stack);

/* ------------------------------------------------------------------------------------------------ panic -- */

/* What ran in a panic that nobody recovers, for its report: in the frame of the outermost such panic of the thread. */
#define RAN_MOST 8U /* more are only counted */

typedef struct guard_ran_one {
    const guard_place *place;
    const void *fn;     /* NULL: a kind */
    const char *action; /* the kind's; may be NULL */
    char text[96];      /* its description, taken before it ran */
} guard_ran_one;

typedef struct guard_ran {
    uint32_t count;
    guard_ran_one first[RAN_MOST];
} guard_ran;

/* Notes a registration that is about to run; does nothing for one that will not. */
void guard_ran_note(guard_ran *ran, const guard_impl_record *record);
/* One line; empty where nothing ran. Returns its length, at most size - 1. Names functions, so it allocates. */
size_t guard_ran_format(const guard_ran *ran, char *text, size_t size);
/* Gives back what naming frames has read (libdw's session), where no other thread is about it. */
void guard_symbol_forget(void);
/* The kind's description, or its name where it has none or fails. `size` is not 0. */
void guard_kind_describe(const guard_kind *kind, const void *object, char *text, size_t size);

/* A running panic. It lies in the frame of guard_raise, which stays alive until the jump. */
struct guard_recovery {
    guard_recovery *prev;
    guard_error *error;
    const guard_place *place;  /* still to be written into the error; NULL: it is there */
    guard_impl_border *border; /* the border it will reach; NULL: uncaught */
    const void *target;        /* where it stops: that border, or a scope whose automatic close called the raiser */
    guard_scope *scope;        /* whose records it runs at the moment */
    const guard_trace *trace;  /* where it was raised, in a frame as alive as this one; NULL: not known */
    size_t message_size; /* with its NUL, of an error without other texts, which are ended with its place; else 0 */
    guard_ran *ran;      /* where nobody will recover it; NULL otherwise */
    bool in_kind;        /* it runs a kind's release: a panic from there is attached to this one */
    bool recovering;     /* it runs a recovering defer */
    bool recovered;
};

/*
 * Raises *error, which lies in a frame that stays alive; `place` is NULL where the error has its place. A trace begins with the frame that
 * called from `from`; NULL: with the library's own.
 */
GUARD_NORETURN void guard_raise(guard_stack *stack, guard_error *error, const guard_place *place, const void *from);

/* See guard_trace_capture. */
extern int guard_trace_every __attribute__((visibility("hidden")));

/*
 * Whether a panic's trace is to be looked at: with the default, one test of a word that no panic changes. An error that was traced keeps
 * its trace when it is raised again.
 */
static inline __attribute__((always_inline)) bool guard_trace_is_wanted(const guard_stack *stack,
                                                                        const guard_error *error)
{
    return GUARD_IMPL_UNLIKELY(__atomic_load_n(&guard_trace_every, __ATOMIC_RELAXED) > 0 || stack->border == NULL ||
                               error->trace != 0);
}

/* Room for a walk over the frames, and in its place for what remains of it: where the raiser's is the second, its trace lies where it must be. */
#define GUARD_WALK_MOST (1U + GUARD_TRACE_FRAMES + 8U) /* the library's own may be as many more */
typedef union guard_walked {
    const void *all[GUARD_WALK_MOST];
    guard_trace trace;
} guard_walked;
_Static_assert(offsetof(guard_trace, frames) == sizeof(void *), "a walk's second frame is its trace's first");

/* unw_backtrace; NULL: not loaded. */
typedef int guard_walk_fn(void **frames, int size);
extern guard_walk_fn *guard_trace_walk __attribute__((visibility("hidden")));

/* Inline: each frame of the library's own costs a panic as much as one of the program's. */
static inline __attribute__((always_inline)) int guard_trace_frames(guard_walked *walked)
{
    guard_walk_fn *walk = __atomic_load_n(&guard_trace_walk, __ATOMIC_ACQUIRE);
    return walk != NULL ? walk((void **)(uintptr_t)walked->all, GUARD_WALK_MOST) : 0;
}

/* Whether the frames are to be walked now. False: the panic has its trace, in *trace, or is to have none. */
bool guard_trace_begin(guard_recovery *panic, guard_trace *trace);
/* They were walked: its trace lies in *walked. */
void guard_trace_end(guard_recovery *panic, guard_walked *walked, int count, const void *from);
/* panic.c: from the raiser to the target. */
GUARD_NORETURN void guard_panic_go(guard_stack *stack, guard_recovery *panic);
/* Keeps a trace beyond its panic. */
void guard_trace_store(const guard_trace *trace, uint32_t number);

/* Raises *error, which a border of the library's own has contained meanwhile: the same panic goes on, and is not counted again. */
GUARD_NORETURN void guard_raise_on(const guard_error *error);

/* Goes on to the border as a panic does that was recovered; there must be a border. */
GUARD_NORETURN void guard_raise_recovered(guard_stack *stack);

/* Holds *error back until the next call of the library; attaches it where one is held already. */
void guard_hold(guard_stack *stack, const guard_error *error);
/* Takes the held error into *error. */
void guard_unhold(guard_stack *stack, guard_error *error);

/*
 * Takes the newest record off `scope` and runs it. `panic` is the panic that runs it, or NULL; `failed` tells how the scope ended.
 * Off before it runs: whatever it does, it never runs twice.
 */
static inline void guard_record_run(guard_stack *stack, guard_scope *scope, guard_recovery *panic, bool failed);

/* The same for records that are not plain. */
void guard_record_run_other(guard_stack *stack, guard_scope *scope, guard_recovery *panic, bool failed);

/* For a plain record, which has no flags; `free_list` is that of the scope's pool. Inline: this is all that most records of a panic cost. */
static inline __attribute__((always_inline)) void
guard_record_run_plain(guard_stack *stack, guard_scope *scope, guard_impl_record *record, guard_impl_record **free_list)
{
    guard_fn *fn = record->action.fn;
    void *arg = record->arg;
    scope->head = record->next;
    __atomic_signal_fence(__ATOMIC_RELEASE);
    GUARD_IMPL_PROBE_DEFER(fn, arg, record->place);
    record->generation++;
    record->next = *free_list;
    *free_list = record;
    guard_word_add(&stack->hot.ran, 1);
    fn(arg);
}

static inline void guard_record_run(guard_stack *stack, guard_scope *scope, guard_recovery *panic, bool failed)
{
    guard_impl_record *record = scope->head;
    if (GUARD_IMPL_UNLIKELY(record->flags != 0)) {
        guard_record_run_other(stack, scope, panic, failed);
        return;
    }
    guard_record_run_plain(stack, scope, record, guard_scope_pool(stack, scope)->free);
}

/* Whether a record with these flags runs when its scope ends, having failed or not. */
static inline bool guard_record_is_due(uint32_t flags, bool failed)
{
    uint32_t when = flags & GUARD_IMPL_WHEN;
    return GUARD_IMPL_LIKELY(when == GUARD_ALWAYS) || (when == GUARD_ON_FAILURE) == failed;
}

/* A record for a registration on `scope`: from its pool, else one that guard_reserve put aside; NULL when there is no memory. */
guard_impl_record *guard_record_take(guard_stack *stack, guard_scope *scope);
/* NULL if the thread can register on `scope`, else what is wrong with it and its guard_misuse_code. */
const char *guard_scope_objection(const guard_stack *stack, const guard_scope *scope, int *code);
/* In a forked child: what happens to an inherited registration in place of its run. The record is off its scope. */
void guard_inherited_run(guard_pool *pool, guard_impl_record *record);
/* Gives back what a record carries besides itself. */
void guard_record_drop(guard_pool *pool, guard_impl_record *record);
/* Whether the walk outwards comes to it. Its memory is not read before. */
bool guard_scope_is_open(const guard_stack *stack, const guard_scope *scope);
/* The scope has no records left, `count` were run: unlinks it; frees an owner. */
static inline __attribute__((always_inline)) void guard_scope_end(guard_stack *stack, guard_scope *scope,
                                                                  uint32_t count)
{
    stack->hot.top = scope->outer;
    if (GUARD_IMPL_UNLIKELY(guard_scope_is_owner(scope))) {
        guard_owner_free((guard_owner *)(void *)scope);
    } else {
        scope->stack = NULL;
        guard_pool_freed(&stack->pool, count);
    }
}

/* Makes the deferred function that the automatic close of `scope` called return to it. Returns where it cannot. */
void guard_leave_resume(guard_stack *stack, const guard_scope *scope);

/* Tells the handler, and returns when it does; panics where there is none. */
void guard_misuse_tell(const guard_error *error);
/* For a close that must not jump: tells the handler of misuse, or holds it as a panic. */
void guard_misuse_hold(guard_stack *stack, const guard_error *error);

/* This thread's panic has no border: exit(3) will wait for its report. */
void guard_report_begin(void);
/* It will not be reported: the thread is being unwound by something else. */
void guard_report_give_up(void);
/* After fork, in the child. */
void guard_report_forget(void);
/* What writes the log's last lines before the process aborts, where there is a log. Async-signal-safe. */
extern void (*guard_at_death)(void) __attribute__((visibility("hidden")));

/* Standard error and the fatal handler; never returns. */
GUARD_NORETURN void guard_report_uncaught(const guard_error *error);

/*
 * Whether guard_run is written in assembly (run.c), so that its border is found by its address and needs no setjmp. Not where a sanitizer must see
 * every jump or moves locals off the stack, nor where the compiler is asked for a shadow stack.
 */
#if defined(__x86_64__) && defined(__LP64__) && !IS_THREAD_SANITIZED && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__CET__)
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(memory_sanitizer) || __has_feature(safe_stack)
#define RUN_IS_BARE 0
#endif
#endif
#ifndef RUN_IS_BARE
#define RUN_IS_BARE 1
#endif
#else
#define RUN_IS_BARE 0
#endif

/* Every jump goes through here: tells AddressSanitizer, which must unpoison the frames that are left. */
static inline void guard_before_jump(void)
{
    extern void __asan_handle_no_return(void) __attribute__((weak, visibility("default")));
    if (__asan_handle_no_return != NULL) {
        __asan_handle_no_return();
    }
}

/* ------------------------------------------------------------------------------------------------ error -- */

/* Copies text with control characters and what is no UTF-8 escaped; returns the length that it would need. `size` is not 0. */
size_t guard_text_escape(char *to, size_t size, const char *text);
/* Copies text, cut at a character of UTF-8 where it is too long; returns the length of the copy. */
size_t guard_text_copy(char *to, size_t size, const char *from);
/* The name of a file without its folders. */
static inline const char *guard_path_end(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}
/* An empty error, still without a place. */
void guard_error_open(guard_error *error, int domain, int code);
void guard_error_place(guard_error *error, const guard_place *place);
void guard_error_copy(guard_error *to, const guard_error *from);
/* The same for an error whose place is still to be written, and that has no text but a message, of so many bytes with its NUL. */
void guard_error_copy_message(guard_error *to, const guard_error *from, size_t message_size, const guard_place *place);
/* A message of one line that fits, of so many bytes with its NUL. */
void guard_error_text(guard_error *error, const char *text, size_t size);
/* Returns the size of the message with its NUL. */
size_t guard_error_message(guard_error *error, const char *format, va_list arguments) GUARD_PRINTF(2, 0);

/* How many bytes the character at `at` has, 0 if it is a control character or no UTF-8. It reads no further than the NUL that ends the text. */
size_t guard_text_character(const unsigned char *at);
/* malloc or what guard_allocator set; NULL when there is none. */
void *guard_memory_take(size_t size);

/* ---------------------------------------------------------------------------------------------- context -- */

#define CONTEXT_UNDONE 4U /* notes of guard_context_undone that are kept */

typedef enum guard_value_state { VALUE_FREE, VALUE_SET, VALUE_LEFT } guard_value_state;

typedef struct guard_context_value {
    uint64_t serial; /* the newest of a key hides the others */
    uint64_t panic;  /* VALUE_LEFT: which panic ended its scope */
    guard_value_state state;
    bool is_hiding; /* NULL was set */
    char key[GUARD_CONTEXT_KEY_SIZE];
    char value[GUARD_CONTEXT_VALUE_SIZE];
} guard_context_value;

typedef struct guard_context_state {
    guard_context_value values[GUARD_CONTEXT_VALUES];
    uint64_t serial;
    bool has_left;         /* a value may be VALUE_LEFT */
    uint32_t calls;        /* of services with a log that this thread is in */
    uint32_t undone_base;  /* where the notes of the innermost begin */
    uint32_t undone_count; /* also those that were not kept */
    char undone[CONTEXT_UNDONE][128];
} guard_context_state;

/* What guard_context_end takes back. */
typedef struct guard_context_mark {
    uint64_t serial;
    uint32_t undone_base;
    bool has_begun;
} guard_context_mark;

/* The call of a service begins and has ended, its line is logged. Without memory its line has no context. */
guard_context_mark guard_context_begin(void);
void guard_context_end(guard_context_mark mark);
/* The values that belong to this error (NULL: to what is not an error), the oldest first, one for each key. */
unsigned guard_context_list(const guard_error *error, const guard_context_value *list[GUARD_CONTEXT_VALUES]);

#endif
