/* SPDX-License-Identifier: MIT */
/*
 * scope.c: opening and closing scopes, and running their records.
 *
 *     guard_scope_open              /--> guard_scope_close: CLOSING, a panic of a record goes on at once ---\
 *     guard_impl_open  -->  open  --+--> guard_impl_leave: LEAVING, a panic of a record is held (leave.c) ---+--> closed
 *                                   \--> guard_raise: a panic runs the records (panic.c) -------------------/
 *
 * Invariants: the open scopes of a thread are a list from hot.top outwards. A record is off its scope before its
 * function runs. A scope is off the thread's list only when its own list is empty; then its stack is NULL.
 */
#include "internal.h"

/* --------------------------------------------------------------------------------------------- records -- */

void guard_record_drop(guard_pool *pool, guard_impl_record *record)
{
    if (record->flags & GUARD_IMPL_COPY) {
        guard_pool_give(pool, record->arg);
    } else if (record->flags & GUARD_IMPL_HEAP_COPY) {
        guard_deallocate(record->arg);
    }
}

/* The bytes move to this frame, so that both records are free before fn runs, and fn may panic. */
static void record_run_copy(guard_pool *pool, guard_impl_record *record)
{
    _Alignas(16) char bytes[GUARD_COPY_INLINE];
    guard_fn *fn = record->action.fn;
    memcpy(bytes, record->arg, sizeof bytes);
    GUARD_IMPL_PROBE_DEFER(fn, bytes, record->place);
    guard_pool_give(pool, record->arg);
    guard_pool_give(pool, record);
    guard_word_add(&guard_stack_own->hot.ran, 1);
    fn(bytes);
}

static void record_run_word(guard_pool *pool, guard_impl_record *record)
{
    _Alignas(16) void *word = record->arg;
    guard_fn *fn = record->action.fn;
    GUARD_IMPL_PROBE_DEFER(fn, &word, record->place);
    guard_pool_give(pool, record);
    guard_word_add(&guard_stack_own->hot.ran, 1);
    fn(&word);
}

/* The record stays on the scope as the release of the bytes, so that they are freed although fn may panic. It is counted when they are. */
static void record_run_heap_copy(guard_scope *scope, guard_impl_record *record)
{
    guard_fn *fn = record->action.fn;
    GUARD_IMPL_PROBE_DEFER(fn, record->arg, record->place);
    record->generation++;
    record->action.fn = guard_deallocate;
    record->flags = 0;
    record->next = scope->head;
    scope->head = record;
    fn(record->arg);
}

static void record_run_kind(guard_pool *pool, guard_impl_record *record, guard_recovery *panic)
{
    const guard_kind *kind = record->action.kind;
    void *object = record->arg;
    GUARD_IMPL_PROBE_DEFER(kind->release, object, record->place);
    guard_pool_give(pool, record);
    guard_word_add(&guard_stack_own->hot.ran, 1);
    if (panic != NULL) {
        panic->in_kind = true;
    }
    kind->release(object);
    if (panic != NULL) {
        panic->in_kind = false;
    }
}

static void record_run_recover(guard_pool *pool, guard_impl_record *record, guard_recovery *panic)
{
    guard_recover_fn *recover = record->action.recover;
    void *arg = record->arg;
    GUARD_IMPL_PROBE_DEFER(recover, arg, record->place);
    guard_pool_give(pool, record);
    guard_word_add(&guard_stack_own->hot.ran, 1);
    if (panic == NULL) {
        recover(NULL, arg);
        return;
    }
    panic->recovering = true;
    recover(panic, arg);
    panic->recovering = false;
}

static void record_give_reserved(guard_pool *pool, guard_scope *scope, guard_impl_record *holder)
{
    for (guard_impl_record *record = holder->arg; record != NULL;) {
        guard_impl_record *next = record->next;
        guard_pool_give(pool, record);
        record = next;
    }
    guard_pool_give(pool, holder);
    scope->reserved = 0;
}

/* A record that may be a frame's. */
static void record_give(guard_pool *pool, guard_impl_record *record)
{
    if (!(record->flags & GUARD_IMPL_IN_FRAME)) {
        guard_pool_give(pool, record);
    }
}

void guard_record_run_other(guard_stack *stack, guard_scope *scope, guard_recovery *panic, bool failed)
{
    guard_pool *pool = guard_scope_pool(stack, scope);
    guard_impl_record *record = scope->head;
    uint32_t flags = record->flags;
    scope->head = record->next;
    __atomic_signal_fence(__ATOMIC_RELEASE);
    if (flags & GUARD_IMPL_DEAD) {
        scope->dead--;
        guard_pool_give(pool, record);
    } else if (flags & GUARD_IMPL_RESERVED) {
        record_give_reserved(pool, scope, record);
    } else if (flags & GUARD_IMPL_INHERITED) {
        guard_impl_record copy = *record;
        record_give(pool, record);
        guard_inherited_run(pool, &copy);
    } else if (!guard_record_is_due(flags, failed)) {
        guard_record_drop(pool, record);
        guard_pool_give(pool, record);
    } else if (flags & GUARD_IMPL_KIND) {
        record_run_kind(pool, record, panic);
    } else if (flags & GUARD_IMPL_RECOVER) {
        record_run_recover(pool, record, panic);
    } else if (flags & GUARD_IMPL_WORD) {
        record_run_word(pool, record);
    } else if (flags & GUARD_IMPL_COPY) {
        record_run_copy(pool, record);
    } else if (flags & GUARD_IMPL_HEAP_COPY) {
        record_run_heap_copy(scope, record);
    } else {
        guard_fn *fn = record->action.fn;
        void *arg = record->arg;
        GUARD_IMPL_PROBE_DEFER(fn, arg, record->place);
        record_give(pool, record);
        guard_word_add(&stack->hot.ran, 1);
        fn(arg);
    }
}

/* ------------------------------------------------------------------------------------------------ open -- */

const char *guard_scope_objection(const guard_stack *stack, const guard_scope *scope, int *code)
{
    *code = GUARD_MISUSE_SCOPE;
    if (scope == NULL) {
        return "there is no scope";
    }
    if (guard_scope_is_owner(scope) || scope->stack == &stack->hot) {
        return NULL;
    }
    if (scope->stack == NULL) {
        return "the scope is closed";
    }
    *code = GUARD_MISUSE_THREAD;
    return "the scope is another thread's";
}

/* When it returns, guard_impl_stack is set. */
void guard_impl_open_slow(void)
{
    guard_stack_here();
    guard_raise_held();
}

void guard_scope_open(guard_scope *scope)
{
    guard_impl_open(scope);
}

void guard_fail(guard_scope *scope)
{
    guard_stack *stack = guard_stack_here();
    guard_raise_held();
    int code;
    const char *objection = guard_scope_objection(stack, scope, &code);
    if (objection != NULL) {
        guard_misuse(code, "guard_fail: %s", objection);
        return;
    }
    scope->flags |= SCOPE_FAILED;
}

/* ----------------------------------------------------------------------------------------------- close -- */

bool guard_scope_is_open(const guard_stack *stack, const guard_scope *scope)
{
    if (stack == NULL) {
        return false;
    }
    guard_walk walk = guard_walk_open(stack);
    while (walk.scope != NULL && walk.scope != scope) {
        guard_walk_next(stack, &walk);
    }
    return walk.scope != NULL;
}

/* A scope that is not the innermost: the memory of one that was never opened must not be read. */
static void scope_misused(const guard_stack *stack, const guard_scope *scope)
{
    if (guard_scope_is_open(stack, scope)) {
        guard_misuse(GUARD_MISUSE_SCOPE, "a scope was closed while a scope inside it is open");
    } else {
        guard_misuse(GUARD_MISUSE_SCOPE,
                     "a scope was closed that is not open here: closed before, another thread's, or jumped into");
    }
}

typedef struct scope_closing {
    guard_stack *stack;
    guard_scope *scope; /* NULL once all has run */
} scope_closing;

static void closing_record(void *memory)
{
    scope_closing *closing = memory;
    guard_record_run(closing->stack, closing->scope, NULL, closing->scope->flags & SCOPE_FAILED);
}

/* A foreign unwind (pthread_cancel) out of a deferred function passes the close: the rest runs, and a panic of it must not jump. */
static void closing_pass(scope_closing *closing)
{
    guard_stack *stack = closing->stack;
    guard_error first;
    guard_error later;
    int code = 0;
    if (closing->scope == NULL || stack->is_unwound) {
        return;
    }
    if (stack->hot.top != closing->scope) {
        stack->hot.top = closing->scope;
        guard_orphans_below(stack, __builtin_frame_address(0));
    }
    if (stack->held == HELD_WAITING) {
        guard_unhold(stack, &first);
        code = first.code;
    }
    while (closing->scope->head != NULL) {
        int failed = guard_run(closing_record, closing, code == 0 ? &first : &later);
        if (code != 0 && failed != 0) {
            guard_error_attach(&first, &later, GUARD_ATTACHED);
        }
        code = code != 0 ? code : failed;
    }
    guard_scope_end(stack, closing->scope, 0);
    if (code != 0) {
        guard_hold(stack, &first);
    }
}

void guard_scope_close(guard_scope *scope)
{
    guard_stack *stack = guard_stack_own;
    if (stack == NULL || stack->hot.top != scope) {
        scope_misused(stack, scope);
        return;
    }
    if (scope->flags & (SCOPE_CLOSING | SCOPE_LEAVING)) {
        guard_misuse(GUARD_MISUSE_SCOPE, "a scope was closed by a function that its own close runs");
        return;
    }
    if (stack->border != NULL && stack->border->scope == scope) {
        guard_misuse(GUARD_MISUSE_SCOPE, "a scope was closed inside a border that was opened inside it");
        return;
    }
    scope->flags |= SCOPE_CLOSING;
    scope_closing closing __attribute__((cleanup(closing_pass))) = {stack, scope};
    uint32_t count = 0;
    while (scope->head != NULL) {
        guard_raise_held();
        guard_record_run(stack, scope, NULL, scope->flags & SCOPE_FAILED);
        count++;
    }
    closing.scope = NULL;
    guard_scope_end(stack, scope, count);
    guard_raise_held();
}
