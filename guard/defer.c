/* SPDX-License-Identifier: MIT */
/*
 * defer.c: registrations that the inline path in guard.h does not make.
 *
 * Whatever is wrong, the function or the release runs before the panic: a caller that acquired a resource never has to
 * release it because its registration failed.
 */
#include <errno.h>

#include "internal.h"

static const guard_ticket no_ticket = {NULL, 0, 0};

/* What must run when it cannot be registered. A recovering defer has nothing to release. */
static void defer_run_now(guard_fn *fn, const void *action, void *arg, uint32_t flags)
{
    if (fn != NULL) {
        if ((flags & GUARD_IMPL_WHEN) != GUARD_ON_SUCCESS) {
            fn(arg);
        }
    } else if (flags & GUARD_IMPL_KIND) {
        const guard_kind *kind = action;
        kind->release(arg);
    }
}

typedef struct defer_now {
    guard_fn *fn;
    const void *action;
    void *arg;
    uint32_t flags;
} defer_now;

static void defer_now_body(void *memory)
{
    defer_now *now = memory;
    defer_run_now(now->fn, now->action, now->arg, now->flags);
}

/* Runs it and raises *error; what fails in it is attached. */
GUARD_NORETURN static void defer_refuse(guard_error *error, guard_fn *fn, const void *action, void *arg, uint32_t flags)
{
    defer_now now = {fn, action, arg, flags};
    guard_error later;
    if (guard_run(defer_now_body, &now, &later) != 0) {
        guard_error_attach(error, &later, GUARD_ATTACHED);
    }
    guard_panic_error(error);
}

/* NULL if the scope can be registered on, else what is wrong with it. */
static const char *defer_objection(const guard_stack *stack, const guard_scope *scope, int *code)
{
    *code = GUARD_MISUSE_SCOPE;
    if (scope == NULL) {
        return "registration without a scope";
    }
    if (guard_scope_is_owner(scope) || scope->stack == &stack->hot) {
        return NULL;
    }
    if (scope->stack == NULL) {
        return "registration on a scope that is closed";
    }
    *code = GUARD_MISUSE_THREAD;
    return "registration on another thread's scope";
}

static guard_ticket defer_link(guard_scope *scope, guard_impl_record *record, guard_fn *fn, const void *action,
                               void *arg, uint32_t flags, const guard_place *place)
{
    record->scope = scope;
    if (fn != NULL) {
        record->action.fn = fn;
    } else {
        record->action.kind = action;
    }
    record->arg = arg;
    record->place = place;
    record->flags = flags;
    record->next = scope->head;
    __atomic_signal_fence(__ATOMIC_RELEASE);
    scope->head = record;
    return (guard_ticket){record, record->generation, guard_scope_is_owner(scope)};
}

/* A held panic waits while the resource is already acquired: it is released, as the scope would have done. */
static void defer_raise_held(guard_stack *stack, guard_fn *fn, const void *action, void *arg, uint32_t flags)
{
    if (stack->held == HELD_WAITING) {
        guard_error error;
        guard_unhold(stack, &error);
        defer_refuse(&error, fn, action, arg, flags);
    }
}

guard_ticket guard_impl_defer_slow(guard_scope *scope, guard_fn *fn, const void *action, void *arg, uint32_t flags,
                                   const guard_place *place)
{
    guard_stack *stack = guard_stack_here();
    defer_raise_held(stack, fn, action, arg, flags);
    if (fn == NULL && action == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "registration without a function");
        return no_ticket;
    }
    int code;
    const char *objection = defer_objection(stack, scope, &code);
    if (objection != NULL) {
        defer_run_now(fn, action, arg, flags);
        guard_impl_misuse(place, code, "%s", objection);
        return no_ticket;
    }
    guard_impl_record *record = guard_pool_take(guard_scope_pool(stack, scope));
    if (record == NULL) {
        guard_error error;
        guard_error_open(&error, GUARD_MEMORY, ENOMEM);
        guard_error_place(&error, place);
        guard_text_copy(error.message, sizeof error.message, "out of memory for a registration");
        defer_refuse(&error, fn, action, arg, flags);
    }
    return defer_link(scope, record, fn, action, arg, flags, place);
}

guard_ticket guard_impl_defer_recover(guard_scope *scope, guard_recover_fn *fn, void *arg, const guard_place *place)
{
    /* The record keeps it in a union of pointers to functions and data, which POSIX (dlsym) gives one representation. */
    union {
        guard_recover_fn *recover;
        const void *action;
    } both = {.recover = fn};
    return guard_impl_register(scope, NULL, both.action, arg, GUARD_IMPL_RECOVER, place);
}

/* Where the bytes of a copy go: another record while they are few, else the heap. NULL when there is no memory. */
static void *copy_place(guard_pool *pool, size_t size, uint32_t *flags)
{
    *flags = size <= GUARD_COPY_INLINE ? GUARD_IMPL_COPY : GUARD_IMPL_HEAP_COPY;
    return size <= GUARD_COPY_INLINE ? (void *)guard_pool_take(pool) : guard_memory_take(size);
}

guard_ticket guard_impl_defer_copy(guard_scope *scope, guard_fn *fn, const void *data, size_t size,
                                   const guard_place *place)
{
    guard_stack *stack = guard_stack_here();
    void *original = (void *)(uintptr_t)
        data; /* fn gets the address of a copy; of the original only when nothing can be registered */
    int code;
    if (fn == NULL || (data == NULL && size != 0) || defer_objection(stack, scope, &code) != NULL) {
        return guard_impl_defer_slow(scope, data == NULL && size != 0 ? NULL : fn, NULL, original, 0, place);
    }
    defer_raise_held(stack, fn, NULL, original, 0);
    guard_pool *pool = guard_scope_pool(stack, scope);
    uint32_t flags = 0;
    guard_impl_record *record = guard_pool_take(pool);
    void *bytes = record != NULL ? copy_place(pool, size, &flags) : NULL;
    if (bytes == NULL) {
        if (record != NULL) {
            guard_pool_give(pool, record);
        }
        guard_error error;
        guard_error_open(&error, GUARD_MEMORY, ENOMEM);
        guard_error_place(&error, place);
        guard_text_copy(error.message, sizeof error.message, "out of memory for the copy of a registration");
        defer_refuse(&error, fn, NULL, original, 0);
    }
    memcpy(bytes, data, size);
    return defer_link(scope, record, fn, NULL, bytes, flags, place);
}

void guard_reserve(guard_scope *scope, size_t count)
{
    guard_stack *stack = guard_stack_here();
    guard_raise_held();
    int code;
    const char *objection = defer_objection(stack, scope, &code);
    if (objection != NULL) {
        guard_misuse(code, "%s", objection);
        return;
    }
    if (!guard_pool_reserve(guard_scope_pool(stack, scope), count)) {
        guard_panic_in(GUARD_MEMORY, ENOMEM, "out of memory for %zu registrations", count);
    }
}
