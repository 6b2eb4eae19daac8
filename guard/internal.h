/* SPDX-License-Identifier: MIT */
/*
 * internal.h: what the core's own files share; nothing outside guard/ includes it.
 *
 * Everything declared here is hidden (-fvisibility=hidden). The state of a thread is one struct guard_stack, made at its first use;
 * see README.md for the state diagram of scope, border and panic.
 */
#ifndef GUARD_INTERNAL_H
#define GUARD_INTERNAL_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <guard/guard.h>

_Static_assert(sizeof(guard_error) <= 1024, "guard_error is at most 1 KiB");
_Static_assert(sizeof(guard_impl_record) <= 48, "a record is at most 48 bytes");

/* Flags of guard_scope. */
#define SCOPE_FAILED 1U /* guard_fail, or a held panic passed through */
#define SCOPE_LEAVING \
    GUARD_IMPL_SCOPE_LEAVING /* an automatic close runs its records: a panic from them must come back to it */
#define SCOPE_CLOSING 4U     /* an explicit close runs its records */

/* ------------------------------------------------------------------------------------------------- pool -- */

/* Records in the thread's own state: enough for most threads to never allocate (64 * 48 = 3 KiB). */
#define POOL_FIRST 64U
/* Records in a chunk: 48 KiB, so that the header and malloc's own are below 0.1 % of it. */
#define POOL_CHUNK 1024U

typedef struct guard_chunk {
    struct guard_chunk *next;
    uint64_t reserved; /* keeps the records aligned to 16, for small copies */
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

typedef struct guard_stack {
    guard_impl_stack_t hot; /* first: the inline path's view */
    guard_pool pool;
    guard_impl_border *border; /* innermost */
    guard_recovery *panic;     /* innermost running panic */
    void *leaving;             /* innermost automatic close, where it needs setjmp */
    guard_held held;
    guard_error held_error;
    guard_impl_record records[POOL_FIRST];
} guard_stack;

/* The thread's stack, NULL before its first use. guard_impl_stack is the same but NULL while a panic is held. */
extern __thread guard_stack *guard_stack_own __attribute__((tls_model("initial-exec"), visibility("hidden")));

/* Makes it if need be; NULL when there is no memory. */
guard_stack *guard_stack_make(void);
/* The same, panicking. */
guard_stack *guard_stack_here(void);

/* An owner's scope has this as its stack. */
extern guard_impl_stack_t guard_owner_mark;

struct guard_owner {
    guard_scope scope; /* first */
    guard_impl_record *free;
    guard_pool pool;
};

static inline bool guard_scope_is_owner(const guard_scope *scope)
{
    return scope->stack == &guard_owner_mark;
}

static inline guard_pool *guard_scope_pool(guard_stack *stack, guard_scope *scope)
{
    return guard_scope_is_owner(scope) ? &((guard_owner *)(void *)scope)->pool : &stack->pool;
}

/* ------------------------------------------------------------------------------------------------ panic -- */

/* A running panic. It lies in the frame of guard_raise, which stays alive until the jump. */
struct guard_recovery {
    guard_recovery *prev;
    guard_error *error;
    const guard_place *place;  /* still to be written into the error; NULL: it is there */
    guard_impl_border *border; /* the border it will reach; NULL: uncaught */
    const void *target;        /* where it stops: that border, or a scope whose automatic close called the raiser */
    guard_scope *scope;        /* whose records it runs at the moment */
    bool in_kind;              /* it runs a kind's release: a panic from there is attached to this one */
    bool recovering;           /* it runs a recovering defer */
    bool recovered;
};

/* Raises *error, which lies in a frame that stays alive; `place` is NULL where the error has its place. */
GUARD_NORETURN void guard_raise(guard_stack *stack, guard_error *error, const guard_place *place);

/* Holds *error back until the next call of the library. */
void guard_hold(guard_stack *stack, const guard_error *error);
/* Takes the held error into *error. */
void guard_unhold(guard_stack *stack, guard_error *error);

/*
 * Takes the newest record off `scope` and runs it. `panic` is the panic that runs it, or NULL; `failed` tells how the scope ended.
 * Off before it runs: whatever it does, it never runs twice.
 */
void guard_record_run(guard_stack *stack, guard_scope *scope, guard_recovery *panic, bool failed);
/* A record for a registration on `scope`: from its pool, else one that guard_reserve put aside; NULL when there is no memory. */
guard_impl_record *guard_record_take(guard_stack *stack, guard_scope *scope);
/* NULL if the thread can register on `scope`, else what is wrong with it and its guard_misuse_code. */
const char *guard_scope_objection(const guard_stack *stack, const guard_scope *scope, int *code);
/* Gives back what a record carries besides itself. */
void guard_record_drop(guard_pool *pool, guard_impl_record *record);
/* The scope has no records left, `count` were run: unlinks it; frees an owner. */
void guard_scope_end(guard_stack *stack, guard_scope *scope, uint32_t count);

/* Makes the deferred function that the automatic close of `scope` called return to it. Returns where it cannot. */
void guard_leave_resume(guard_stack *stack, const guard_scope *scope);

/* Tells the handler, and returns when it does; panics where there is none. */
void guard_misuse_tell(const guard_error *error);
/* For a close that must not jump: tells the handler of misuse, or holds it as a panic. */
void guard_misuse_hold(guard_stack *stack, const guard_error *error);

/* Standard error and the fatal handler; never returns. */
GUARD_NORETURN void guard_report_uncaught(const guard_error *error);

/* Every jump goes through here: tells AddressSanitizer, which must unpoison the frames that are left. */
static inline void guard_before_jump(void)
{
    extern void __asan_handle_no_return(void) __attribute__((weak, visibility("default")));
    if (__asan_handle_no_return != NULL) {
        __asan_handle_no_return();
    }
}

/* ------------------------------------------------------------------------------------------------ error -- */

/* Copies text, cut at a character of UTF-8 where it is too long. */
void guard_text_copy(char *to, size_t size, const char *from);
/* An empty error, still without a place. */
void guard_error_open(guard_error *error, int domain, int code);
void guard_error_place(guard_error *error, const guard_place *place);
void guard_error_copy(guard_error *to, const guard_error *from);
void guard_error_message(guard_error *error, const char *format, va_list arguments) GUARD_PRINTF(2, 0);

/* malloc or what guard_allocator set; NULL when there is none. */
void *guard_memory_take(size_t size);

#endif
