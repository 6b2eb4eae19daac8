/* SPDX-License-Identifier: MIT */
/*
 * defer.c: registrations that the inline path in guard_inline.h does not make.
 *
 * Whatever is wrong, the function or the release runs before the panic: a caller that acquired a resource never has to
 * release it because its registration failed. What guard_reserve puts aside hangs on the scope's own list, out of reach of other scopes, and
 * is used where the pool cannot grow.
 */
#include <errno.h>

#include "internal.h"

static const char NO_STACK[] = "out of memory for the thread's guard stack";
static const char NO_FUNCTION[] = "there is no function";
static const guard_ticket no_ticket = {NULL, 0, 0};

/* ------------------------------------------------------------------------------------------- refusals -- */

/* What was to be registered. */
typedef struct defer_work {
    guard_fn *fn;
    const void *action;
    void *arg;
    uint32_t flags;
} defer_work;

static void defer_count(void)
{
    if (guard_stack_own != NULL) {
        guard_word_add(&guard_stack_own->hot.ran, 1);
    }
}

/* A recovering defer has nothing to release, and one on success did not succeed. */
static void defer_work_run(void *memory)
{
    const defer_work *work = memory;
    if (work->fn != NULL) {
        if ((work->flags & GUARD_IMPL_WHEN) != GUARD_ON_SUCCESS) {
            defer_count();
            work->fn(work->arg);
        }
    } else if (work->action != NULL && (work->flags & GUARD_IMPL_KIND)) {
        defer_count();
        ((const guard_kind *)work->action)->release(work->arg);
    }
}

/* Runs it although it cannot be registered. Returns 0, or the code of its own panic, which is in *later and attached to *error. */
static int defer_work_contain(defer_work *work, guard_error *error, guard_error *later)
{
    if (guard_stack_make() == NULL) {
        defer_work_run(work); /* no border can be had; a panic of it is uncaught, as *error will be */
        return 0;
    }
    int code = guard_run(defer_work_run, work, later);
    if (code != 0) {
        guard_error_attach(error, later, GUARD_ATTACHED);
    }
    return code;
}

GUARD_NORETURN static void defer_refuse(guard_error *error, defer_work *work)
{
    guard_error later;
    (void)defer_work_contain(work, error, &later);
    guard_panic_error(error);
}

GUARD_NORETURN static void defer_refuse_memory(const guard_place *place, const char *message, defer_work *work)
{
    guard_error error;
    guard_error_open(&error, GUARD_MEMORY, ENOMEM);
    guard_error_place(&error, place);
    guard_text_copy(error.message, sizeof error.message, message);
    defer_refuse(&error, work);
}

/* Returns when the handler does. A release that failed meanwhile goes on as a panic, for the handler's answer is not about it. */
static guard_ticket defer_misuse(const guard_place *place, int code, const char *objection, defer_work *work)
{
    guard_error error;
    guard_error later;
    guard_error_open(&error, GUARD_MISUSE, code);
    guard_error_place(&error, place);
    snprintf(error.message, sizeof error.message, "registration: %s", objection);
    int failed = defer_work_contain(work, &error, &later);
    guard_misuse_tell(&error);
    if (failed != 0) {
        guard_panic_error(&later);
    }
    return no_ticket;
}

/* A held panic waits while the resource is already acquired: it is released, as the scope would have done. */
static void defer_raise_held(guard_stack *stack, defer_work *work)
{
    if (stack->held == HELD_WAITING) {
        guard_error error;
        guard_unhold(stack, &error);
        defer_refuse(&error, work);
    }
}

/* The thread's stack, on which no panic is held. */
static guard_stack *defer_stack(const guard_place *place, defer_work *work)
{
    guard_stack *stack = guard_stack_make();
    if (stack == NULL) {
        defer_refuse_memory(place, NO_STACK, work);
    }
    defer_raise_held(stack, work);
    return stack;
}

/* -------------------------------------------------------------------------------------- registrations -- */

static guard_ticket defer_link(guard_scope *scope, guard_impl_record *record, const defer_work *work,
                               const guard_place *place)
{
    record->scope = scope;
    if (work->fn != NULL) {
        record->action.fn = work->fn;
    } else {
        record->action.kind = work->action;
    }
    record->arg = work->arg;
    record->place = place;
    record->flags = work->flags;
    record->next = scope->head;
    __atomic_signal_fence(__ATOMIC_RELEASE);
    scope->head = record;
    return (guard_ticket){record, record->generation, guard_scope_is_owner(scope)};
}

/* NULL where there is no memory. A panic that is held waits: what GUARD_DEFER is to release has been acquired. */
guard_impl_stack_t *guard_impl_single_stack(void)
{
    guard_stack *stack = guard_stack_make();
    return stack != NULL ? &stack->hot : NULL;
}

void guard_impl_single_refuse(guard_fn *fn, void *arg, const guard_place *place)
{
    defer_refuse_memory(place, NO_STACK, &(defer_work){fn, NULL, arg, 0});
}

void guard_impl_single_misuse(const guard_place *place)
{
    (void)defer_misuse(place, GUARD_MISUSE_ARGUMENT, NO_FUNCTION, &(defer_work){.flags = 0});
}

guard_ticket guard_impl_defer_slow(guard_scope *scope, guard_fn *fn, const void *action, void *arg, uint32_t flags,
                                   const guard_place *place)
{
    defer_work work = {fn, action, arg, flags};
    guard_stack *stack = defer_stack(place, &work);
    if (fn == NULL && action == NULL) {
        return defer_misuse(place, GUARD_MISUSE_ARGUMENT, NO_FUNCTION, &work);
    }
    if ((flags & GUARD_IMPL_WHEN) == GUARD_IMPL_WHEN) {
        return defer_misuse(place, GUARD_MISUSE_ARGUMENT, "that is not a guard_when", &work);
    }
    int code;
    const char *objection = guard_scope_objection(stack, scope, &code);
    if (objection != NULL) {
        return defer_misuse(place, code, objection, &work);
    }
    guard_impl_record *record = guard_record_take(stack, scope);
    if (record == NULL) {
        defer_refuse_memory(place, "out of memory for a registration", &work);
    }
    return defer_link(scope, record, &work, place);
}

/* Where the bytes of a copy go: another record while they are few, else the heap. NULL when there is no memory. */
static void *copy_place(guard_stack *stack, guard_scope *scope, size_t size, uint32_t *flags)
{
    *flags = size <= GUARD_COPY_INLINE ? GUARD_IMPL_COPY : GUARD_IMPL_HEAP_COPY;
    if (*flags == GUARD_IMPL_HEAP_COPY) {
        return guard_memory_take(size);
    }
    guard_impl_record *bytes = guard_record_take(stack, scope);
    if (bytes != NULL) {
        bytes->flags = GUARD_IMPL_INERT;
    }
    return bytes;
}

/* The usual case: few bytes, and two records at hand. */
static guard_ticket defer_copy_inline(guard_impl_stack_t *stack, guard_scope *scope, const defer_work *work,
                                      size_t size, const guard_place *place)
{
    guard_impl_record *record = stack->free;
    guard_impl_record *bytes = record->next;
    defer_work copied = {work->fn, NULL, bytes, GUARD_IMPL_COPY};
    if (size <= sizeof(void *)) {
        copied.arg = guard_impl_word(work->arg, size);
        copied.flags = GUARD_IMPL_WORD;
        stack->free = bytes;
    } else {
        stack->free = bytes->next;
        bytes->flags = GUARD_IMPL_INERT;
        memcpy(bytes, work->arg, size);
    }
    return defer_link(scope, record, &copied, place);
}

/* Makes the argument of `work` a copy. False when there is no memory. */
static bool copy_make(guard_stack *stack, guard_scope *scope, defer_work *work, size_t size)
{
    const void *data = work->arg;
    if (size <= sizeof(void *)) {
        work->arg = size != 0 ? guard_impl_word(data, size) : NULL;
        work->flags = GUARD_IMPL_WORD;
        return true;
    }
    void *bytes = copy_place(stack, scope, size, &work->flags);
    if (bytes != NULL) {
        memcpy(bytes, data, size);
        work->arg = bytes;
    }
    return bytes != NULL;
}

guard_ticket guard_impl_defer_copy(guard_scope *scope, guard_fn *fn, const void *data, size_t size,
                                   const guard_place *place)
{
    /* fn gets the address of the original only when nothing can be registered. */
    defer_work work = {fn, NULL, (void *)(uintptr_t)data, 0};
    guard_impl_stack_t *hot = guard_impl_stack;
    if (GUARD_IMPL_LIKELY(hot != NULL && scope != NULL && scope->stack == hot && fn != NULL && data != NULL &&
                          size <= GUARD_COPY_INLINE && hot->free != NULL && hot->free->next != NULL)) {
        return defer_copy_inline(hot, scope, &work, size, place);
    }
    if (data == NULL && size != 0) {
        work.fn = NULL; /* it cannot be run */
    }
    guard_stack *stack = defer_stack(place, &work);
    if (work.fn == NULL) {
        return defer_misuse(place, GUARD_MISUSE_ARGUMENT, fn != NULL ? "a copy of nothing" : NO_FUNCTION, &work);
    }
    int code;
    const char *objection = guard_scope_objection(stack, scope, &code);
    if (objection != NULL) {
        return defer_misuse(place, code, objection, &work);
    }
    guard_impl_record *record = guard_record_take(stack, scope);
    if (record == NULL || !copy_make(stack, scope, &work, size)) {
        if (record != NULL) {
            guard_pool_give(guard_scope_pool(stack, scope), record);
        }
        work.flags = 0;
        defer_refuse_memory(place, "out of memory for the copy of a registration", &work);
    }
    return defer_link(scope, record, &work, place);
}

/* -------------------------------------------------------------------------------------- reservations -- */

/* Where the record that heads the reserved ones is linked; NULL if there is none. */
static guard_impl_record **reserve_find(guard_scope *scope)
{
    guard_impl_record **at = &scope->head;
    while (*at != NULL && !((*at)->flags & GUARD_IMPL_RESERVED)) {
        at = &(*at)->next;
    }
    return *at != NULL ? at : NULL;
}

static void reserve_add(guard_scope *scope, guard_impl_record *record)
{
    guard_impl_record **at = guard_scope_reserved(scope) > 0 ? reserve_find(scope) : NULL;
    if (at != NULL) {
        record->flags = GUARD_IMPL_INERT;
        record->next = (*at)->arg;
        (*at)->arg = record;
    } else {
        record->scope = scope;
        record->arg = NULL;
        record->flags = GUARD_IMPL_RESERVED;
        record->next = scope->head;
        __atomic_signal_fence(__ATOMIC_RELEASE);
        scope->head = record;
    }
    scope->reserved++;
}

/* The head of the rest goes to the front, where the next one that is taken finds it at once. */
static guard_impl_record *reserve_take(guard_scope *scope)
{
    guard_impl_record **at = reserve_find(scope);
    guard_impl_record *holder = *at;
    guard_impl_record *record = holder->arg;
    *at = holder->next;
    scope->reserved--;
    if (record == NULL) {
        return holder;
    }
    holder->arg = record->next;
    holder->next = scope->head;
    scope->head = holder;
    return record;
}

guard_impl_record *guard_record_take(guard_stack *stack, guard_scope *scope)
{
    guard_impl_record *record = guard_pool_take(guard_scope_pool(stack, scope));
    return record == NULL && guard_scope_reserved(scope) > 0 ? reserve_take(scope) : record;
}

void guard_impl_reserve(guard_scope *scope, size_t count, const guard_place *place)
{
    guard_stack *stack = guard_stack_here();
    guard_raise_held();
    int code;
    const char *objection = guard_scope_objection(stack, scope, &code);
    if (objection != NULL) {
        guard_impl_misuse(place, code, "registration: %s", objection);
        return;
    }
    guard_scope_count(scope);
    while (scope->reserved < count) {
        guard_impl_record *record = count <= UINT32_MAX ? guard_pool_take(guard_scope_pool(stack, scope)) : NULL;
        if (record == NULL) {
            guard_impl_panic(place, GUARD_MEMORY, ENOMEM, "out of memory for %zu registrations", count);
        }
        reserve_add(scope, record);
    }
}
