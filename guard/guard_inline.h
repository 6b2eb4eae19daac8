/* SPDX-License-Identifier: MIT */
/*
 * guard_inline.h: what the macros and inline functions of guard.h are made of. It is part of the ABI and not for direct use; guard.h
 * includes it.
 *
 * A record is 48 bytes; a registration is two tests, a few stores and a link.
 */
#include <guard/guard.h> /* which includes this in its turn */
#ifndef GUARD_GUARD_INLINE_H
#define GUARD_GUARD_INLINE_H

struct guard_impl_record {
    guard_impl_record *next;
    guard_scope *scope;
    union {
        guard_fn *fn;
        const guard_kind *kind;
        guard_recover_fn *recover;
    } action;
    void *arg;
    const guard_place *place;
    uint32_t generation; /* a ticket is stale when its generation is not this one; survives in the free list */
    uint32_t flags;      /* a guard_when and GUARD_IMPL_... */
};

#define GUARD_IMPL_WHEN 3U
#define GUARD_IMPL_KIND 4U
#define GUARD_IMPL_RECOVER 8U
#define GUARD_IMPL_COPY 16U       /* arg is another record that carries the bytes; WORD: arg is the bytes */
#define GUARD_IMPL_HEAP_COPY 32U  /* arg is allocated */
#define GUARD_IMPL_DEAD 64U       /* dismissed, waits to be swept */
#define GUARD_IMPL_RESERVED 128U  /* no registration: heads the records that guard_reserve put aside, by arg */
#define GUARD_IMPL_INHERITED 256U /* the parent's, in a forked child */
#define GUARD_IMPL_INERT 512U     /* no registration: carries the bytes of one, or is put aside */
#define GUARD_IMPL_IN_FRAME 1024U /* of a guard_impl_single: no pool's */
#define GUARD_IMPL_WORD 2048U

struct guard_impl_stack {
    guard_scope *top;
    guard_impl_record *free;
    uint64_t ran; /* deferred functions; other threads read it, see guard_metrics.h */
};

/*
 * A scope with one deferred function, GUARD_DEFER. It has no name and gives no ticket, so that its own close is mostly all that looks at it: while
 * the scope says SINGLE its list is empty, and of the record only the action, its argument and its place are set. A panic runs it
 * in the same way; whatever else comes to it makes them a record on the list first (guard_single_list).
 */
typedef struct guard_impl_single {
    guard_scope scope; /* first */
    guard_impl_record record;
} guard_impl_single;

typedef struct guard_impl_border {
    struct guard_impl_border *outer;
    guard_scope *scope;
    guard_recovery *panic;
    guard_error *out;
    volatile int state; /* read after a second return of setjmp */
    int code;           /* set when a panic lands; the last word of guard_run's own border, which ends here */
    jmp_buf env;
} guard_impl_border;

/* States of a border; CAUGHT and RECOVERED are also what setjmp returns. */
#define GUARD_IMPL_LINKED 0
#define GUARD_IMPL_CAUGHT 1
#define GUARD_IMPL_RECOVERED 2
#define GUARD_IMPL_UNLINKED 3
#define GUARD_IMPL_LINKED_BARE 4 /* guard_run's, which has no env */

/* The flag of a scope whose automatic close runs its records, and all flags that such a close must look at: not those of cancellation. */
#define GUARD_IMPL_SCOPE_LEAVING 2U
#define GUARD_IMPL_SCOPE_ENDED 15U
#define GUARD_IMPL_SCOPE_MASKED 16U  /* guard_mask */
#define GUARD_IMPL_SCOPE_SINGLE 128U /* of a guard_impl_single that is still to run, see there */

/* NULL before a thread's first use, and while a held panic waits: both send the inline path to the slow one. */
extern GUARD_API __thread guard_impl_stack_t *guard_impl_stack __attribute__((tls_model("initial-exec")));

GUARD_API void guard_impl_raise_held(void);
GUARD_API void guard_impl_open_slow(void);
GUARD_API void guard_impl_leave_run(guard_scope *scope);
GUARD_API guard_ticket guard_impl_defer_slow(guard_scope *scope, guard_fn *fn, const void *action, void *arg,
                                             uint32_t flags, const guard_place *place);
GUARD_API guard_impl_stack_t *guard_impl_single_stack(void);
GUARD_API void guard_impl_single_refuse(guard_fn *fn, void *arg, const guard_place *place) GUARD_NORETURN;
GUARD_API void guard_impl_single_misuse(const guard_place *place);
GUARD_API guard_ticket guard_impl_defer_copy(guard_scope *scope, guard_fn *fn, const void *data, size_t size,
                                             const guard_place *place);
GUARD_API void guard_impl_panic(const guard_place *place, int domain, int code, const char *format, ...) GUARD_NORETURN
    GUARD_PRINTF(4, 5);
GUARD_API void guard_impl_panic_text(const guard_place *place, int domain, int code, const char *text,
                                     size_t size) GUARD_NORETURN;
GUARD_API void guard_impl_panic_os(const guard_place *place, const char *format, ...) GUARD_NORETURN GUARD_PRINTF(2, 3);
GUARD_API void guard_impl_panic_error(const guard_place *place, const guard_error *error) GUARD_NORETURN;
GUARD_API void guard_impl_reserve(guard_scope *scope, size_t count, const guard_place *place);
GUARD_API void guard_impl_misuse(const guard_place *place, int code, const char *format, ...) GUARD_PRINTF(3, 4);
GUARD_API guard_impl_border *guard_impl_border_open(guard_impl_border *border, guard_error *out);
GUARD_API guard_impl_border *guard_impl_border_end(guard_impl_border *border);
GUARD_API void guard_impl_border_leave(guard_impl_border *border);

/*
 * Whether an automatic close runs a single record, plain or a kind, itself: where leave.c can make a deferred function return to it. Not where a
 * sanitizer moves locals off the stack or must see every jump.
 */
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && \
    !defined(GUARD_LEAVE_BY_SETJMP)
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(safe_stack)
#define GUARD_IMPL_LEAVE_INLINE 0
#endif
#endif
#ifndef GUARD_IMPL_LEAVE_INLINE
#define GUARD_IMPL_LEAVE_INLINE 1
#endif
#else
#define GUARD_IMPL_LEAVE_INLINE 0
#endif

/*
 * The USDT probe guard:defer(function, argument, place): in the library where it was built with sys/sdt.h; in a program's own code, where
 * scopes with one deferred function close inline, when it is compiled with -DGUARD_PROBES. See guard/SERVICE.md.
 */
#ifdef GUARD_PROBES
#define GUARD_IMPL_PROBE_DEFER(fn, arg, place) DTRACE_PROBE3(guard, defer, fn, arg, place)
#else
#define GUARD_IMPL_PROBE_DEFER(fn, arg, place) ((void)0)
#endif

/*
 * The object is in memory before what comes behind this; GUARD_IMPL_STORED_FIRST: before anything is stored through the pointer, or the
 * pointer is. A signal handler that reads the stack must find all of an object that it is led to. They say no more than that: a fence would
 * also make the compiler forget what it has just stored, and it would test again what cannot have changed.
 */
#define GUARD_IMPL_STORED(object) __asm__ volatile("" : : "m"(object))
#define GUARD_IMPL_STORED_FIRST(object, pointer) __asm__ volatile("" : "+r"(pointer) : "m"(object))

#define GUARD_IMPL_LIKELY(x) __builtin_expect(!!(x), 1)
#define GUARD_IMPL_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define GUARD_IMPL_PASTE_(a, b) a##b
#define GUARD_IMPL_PASTE(a, b) GUARD_IMPL_PASTE_(a, b)

/*
 * A message that is a constant text of one line without conversions is handed on with its size (with the NUL), so that the panic need not look
 * through it. It is the only argument where it is as long as all of them. What is not constant is evaluated once.
 */
#define GUARD_IMPL_PANIC(domain, code, ...)                                                                           \
    (__builtin_constant_p(GUARD_IMPL_FIRST(__VA_ARGS__, 0)) &&                                                        \
             sizeof(GUARD_IMPL_STRING(__VA_ARGS__)) == sizeof(GUARD_IMPL_STRING(GUARD_IMPL_FIRST(__VA_ARGS__, 0))) && \
             guard_impl_is_text(GUARD_IMPL_FIRST(__VA_ARGS__, 0))                                                     \
         ? guard_impl_panic_text(GUARD_HERE, (domain), (code), GUARD_IMPL_FIRST(__VA_ARGS__, 0),                      \
                                 __builtin_strlen(GUARD_IMPL_FIRST(__VA_ARGS__, 0)) + 1)                              \
         : guard_impl_panic(GUARD_HERE, (domain), (code), __VA_ARGS__))
#define GUARD_IMPL_FIRST(first, ...) first
#define GUARD_IMPL_STRING(...) GUARD_IMPL_STRING_(__VA_ARGS__)
#define GUARD_IMPL_STRING_(...) #__VA_ARGS__

static inline __attribute__((always_inline)) int guard_impl_is_text(const char *text)
{
    size_t length = __builtin_constant_p(__builtin_strlen(text)) ? __builtin_strlen(text) : 0;
    return length > 0 && length < sizeof((guard_error *)0)->message && text[length - 1] != '\n' &&
           __builtin_constant_p(__builtin_strchr(text, '%') == NULL) && __builtin_strchr(text, '%') == NULL;
}

/* `at` is volatile because it is read after a second return of setjmp. */
#define GUARD_IMPL_TRY(error, number) \
    GUARD_IMPL_TRY_(error, GUARD_IMPL_PASTE(guard_border_, number), GUARD_IMPL_PASTE(guard_border_at_, number))
#define GUARD_IMPL_TRY_(error, border, at)                                                                       \
    for (guard_impl_border border __attribute__((cleanup(guard_impl_border_leave))), *volatile at =              \
                                                                                         guard_impl_border_open( \
                                                                                             &border, (error));  \
         at != NULL; at = guard_impl_border_end(at))                                                             \
        if (_setjmp(at->env) == GUARD_IMPL_RECOVERED) {                                                          \
        } else if (at->state == GUARD_IMPL_LINKED)

static inline void guard_raise_held(void)
{
    if (GUARD_IMPL_UNLIKELY(guard_impl_stack == NULL)) {
        guard_impl_raise_held();
    }
}

/*
 * No records and these flags, by one store where the processor has stores of 16 bytes: the time of a scope with one defer is that of its stores.
 */
static inline void guard_impl_scope_begin(guard_scope *scope, uint32_t flags)
{
#if defined(__LP64__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    typedef long long pair __attribute__((vector_size(16), aligned(8), may_alias));
    const pair both = {0, (long long)flags};
    *(pair *)(void *)scope = both;
#else
    scope->head = NULL;
    scope->flags = flags;
    scope->dead = 0;
#endif
}

static inline guard_scope *guard_impl_open(guard_scope *scope)
{
    if (GUARD_IMPL_UNLIKELY(guard_impl_stack == NULL)) {
        guard_impl_open_slow();
    }
    guard_impl_stack_t *stack = guard_impl_stack;
    if (stack == NULL) {
        __builtin_unreachable(); /* the slow path has made it, or has not returned */
    }
    guard_impl_scope_begin(scope, 0);
    scope->outer = stack->top;
    scope->stack = stack;
    guard_impl_stack_t *at = stack;
    GUARD_IMPL_STORED_FIRST(*scope, at);
    at->top = scope;
    GUARD_IMPL_STORED(stack->top);
    return scope;
}

/*
 * Calls fn for an automatic close. Apart from it, and with fn hidden from the optimiser, so that neither inlining nor a promoted
 * indirect call can put fn's body into the frame to which a panic returns.
 */
static __attribute__((noinline, unused)) void guard_impl_call(void *arg, guard_fn *fn)
{
    __asm__("" : "+r"(fn));
    fn(arg);
}

/* Always inline: the frame in which the scope lies must be the one that calls. */
static inline __attribute__((always_inline)) void guard_impl_leave(guard_scope *scope)
{
    guard_impl_stack_t *stack = guard_impl_stack;
    guard_impl_record *record;
    if (GUARD_IMPL_UNLIKELY(stack == NULL || stack->top != scope || (scope->flags & GUARD_IMPL_SCOPE_ENDED) != 0)) {
        guard_impl_leave_run(scope);
        return;
    }
    record = scope->head;
    if (record != NULL) {
#if GUARD_IMPL_LEAVE_INLINE
        guard_fn *fn = record->action.fn;
        void *arg = record->arg;
        if (GUARD_IMPL_UNLIKELY(record->next != NULL)) {
            guard_impl_leave_run(scope);
            return;
        }
        if (record->flags != 0) {
            if (GUARD_IMPL_UNLIKELY(record->flags != GUARD_IMPL_KIND)) {
                guard_impl_leave_run(scope);
                return;
            }
            fn = record->action.kind->release;
        }
        guard_impl_scope_begin(scope, GUARD_IMPL_SCOPE_LEAVING);
        GUARD_IMPL_STORED_FIRST(*scope, record);
        record->generation++;
        record->next = stack->free;
        GUARD_IMPL_STORED_FIRST(*record, record);
        stack->free = record;
        stack->ran++;
        GUARD_IMPL_PROBE_DEFER(fn, arg, record->place);
        /* When fn panics this returns all the same, see leave.c. A panic that is held is nothing to a scope without records. */
        guard_impl_call(arg, fn);
        if (GUARD_IMPL_UNLIKELY(scope->head != NULL)) {
            guard_impl_leave_run(scope);
            return;
        }
#else
        guard_impl_leave_run(scope);
        return;
#endif
    }
    stack->top = scope->outer;
    scope->stack = NULL;
}

#define GUARD_IMPL_SINGLE(name, fn, arg)                                      \
    guard_impl_single name __attribute__((cleanup(guard_impl_single_leave))); \
    guard_impl_single_open(&name, (fn), (arg), GUARD_HERE)

/*
 * GUARD_IMPL_STORED between two stores: gcc 12 makes one of 16 bytes of them, which takes longer to come to the load of the first at the close
 * (4.4 to 3.3 ns). What is slow returns nothing that fn, arg and place must be kept for: they would be in registers that the function has
 * to save (5 of them instead of 3, 3.3 to 4.3 ns).
 */
static inline void guard_impl_single_open(guard_impl_single *single, guard_fn *fn, void *arg, const guard_place *place)
{
    guard_impl_stack_t *stack = guard_impl_stack;
    if (GUARD_IMPL_UNLIKELY(stack == NULL)) {
        stack = guard_impl_single_stack();
        if (stack == NULL) {
            guard_impl_single_refuse(fn, arg, place);
        }
    }
    if (GUARD_IMPL_UNLIKELY(fn == NULL)) {
        guard_impl_single_misuse(place);
    }
    guard_impl_stack_t *at = stack;
    guard_impl_scope_begin(&single->scope, fn != NULL ? GUARD_IMPL_SCOPE_SINGLE : 0);
    single->scope.outer = stack->top;
    GUARD_IMPL_STORED(single->scope.outer);
    single->scope.stack = stack;
    single->record.action.fn = fn;
    single->record.arg = arg;
    single->record.place = place;
    GUARD_IMPL_STORED_FIRST(*single, at);
    at->top = &single->scope;
    GUARD_IMPL_STORED(stack->top);
}

/* As guard_impl_leave. Nothing can be registered on the scope meanwhile. */
static inline __attribute__((always_inline)) void guard_impl_single_leave(guard_impl_single *single)
{
    guard_scope *scope = &single->scope;
#if GUARD_IMPL_LEAVE_INLINE
    guard_impl_stack_t *stack = guard_impl_stack;
    if (GUARD_IMPL_LIKELY(stack != NULL && stack->top == scope && scope->flags == GUARD_IMPL_SCOPE_SINGLE)) {
        guard_fn *fn = single->record.action.fn;
        void *arg = single->record.arg;
        scope->flags = GUARD_IMPL_SCOPE_LEAVING;
        stack->ran++;
        GUARD_IMPL_PROBE_DEFER(fn, arg, single->record.place);
        guard_impl_call(arg, fn);
        stack->top = scope->outer;
        scope->stack = NULL;
        return;
    }
#endif
    guard_impl_leave_run(scope);
}

static inline guard_ticket guard_impl_register(guard_scope *scope, guard_fn *fn, const void *action, void *arg,
                                               uint32_t flags, const guard_place *place)
{
    guard_impl_stack_t *stack = guard_impl_stack;
    guard_impl_record *record;
    guard_ticket ticket;
    if (GUARD_IMPL_UNLIKELY(stack == NULL || scope == NULL || scope->stack != stack || (record = stack->free) == NULL ||
                            (fn == NULL && action == NULL))) {
        return guard_impl_defer_slow(scope, fn, action, arg, flags, place);
    }
    stack->free = record->next;
    record->next = scope->head;
    record->scope = scope;
    if (fn != NULL) {
        record->action.fn = fn;
    } else {
        record->action.kind = (const guard_kind *)action;
    }
    record->arg = arg;
    record->place = place;
    record->flags = flags;
    GUARD_IMPL_STORED_FIRST(*record, record);
    scope->head = record;
    GUARD_IMPL_STORED(scope->head);
    ticket.record = record;
    ticket.generation = record->generation;
    ticket.home = 0;
    return ticket;
}

static inline guard_ticket guard_impl_defer(guard_scope *scope, guard_fn *fn, void *arg, const guard_place *place)
{
    return guard_impl_register(scope, fn, NULL, arg, 0, place);
}

/* The argument that is a copy: what fits in a word lies in the record itself, which is most of what is copied. */
static inline void *guard_impl_word(const void *data, size_t size)
{
    void *word = NULL;
    __builtin_memcpy(&word, data, size);
    return word;
}

/* Of a size that the compiler knows; more than a word goes into a second record. */
static inline guard_ticket guard_impl_copy(guard_scope *scope, guard_fn *fn, const void *data, size_t size,
                                           const guard_place *place)
{
    guard_impl_stack_t *stack = guard_impl_stack;
    guard_impl_record *bytes;
    if (!__builtin_constant_p(size) || size > GUARD_COPY_INLINE || stack == NULL || scope == NULL ||
        scope->stack != stack || fn == NULL || data == NULL || (bytes = stack->free) == NULL || bytes->next == NULL) {
        return guard_impl_defer_copy(scope, fn, data, size, place);
    }
    if (size <= sizeof(void *)) {
        return guard_impl_register(scope, fn, NULL, guard_impl_word(data, size), GUARD_IMPL_WORD, place);
    }
    stack->free = bytes->next;
    bytes->flags = GUARD_IMPL_INERT;
    __builtin_memcpy(bytes, data, size);
    return guard_impl_register(scope, fn, NULL, bytes, GUARD_IMPL_COPY, place);
}

static inline guard_ticket guard_impl_defer_on(guard_scope *scope, guard_when when, guard_fn *fn, void *arg,
                                               const guard_place *place)
{
    if (GUARD_IMPL_UNLIKELY((uint32_t)when > GUARD_ON_SUCCESS)) {
        return guard_impl_defer_slow(scope, fn, NULL, arg, GUARD_IMPL_WHEN, place);
    }
    return guard_impl_register(scope, fn, NULL, arg, (uint32_t)when, place);
}

static inline guard_ticket guard_impl_defer_kind(guard_scope *scope, const guard_kind *kind, void *object,
                                                 const guard_place *place)
{
    if (GUARD_IMPL_UNLIKELY(kind != NULL && kind->release == NULL)) {
        kind = NULL; /* misuse now, not a crash when the scope ends; constant kinds cost nothing */
    }
    return guard_impl_register(scope, NULL, kind, object, GUARD_IMPL_KIND, place);
}

/* The record keeps the function in a union of pointers to functions and data, which POSIX (dlsym) gives one representation. */
static inline guard_ticket guard_impl_defer_recover(guard_scope *scope, guard_recover_fn *fn, void *arg,
                                                    const guard_place *place)
{
    union {
        guard_recover_fn *recover;
        const void *action;
    } both;
    both.recover = fn;
    return guard_impl_register(scope, NULL, both.action, arg, GUARD_IMPL_RECOVER, place);
}

#endif
