/* SPDX-License-Identifier: MIT */
/*
 * ticket.c: taking one registration off before its scope ends.
 *
 *     pending --dismiss--> gone (not run)      pending --release--> off, then run      pending --move--> pending elsewhere
 *
 * The newest record of a scope is simply unlinked. Another one stays in the list as DEAD, and the dead are swept out when they are as many as
 * the living (at least SWEEP_LEAST), so that each costs a constant time on average and a scope that lives for ever does not grow.
 */

#include "internal.h"

#define SWEEP_LEAST 32U

static void scope_sweep(guard_pool *pool, guard_scope *scope)
{
    uint32_t living = 0;
    for (guard_impl_record **at = &scope->head; *at != NULL;) {
        guard_impl_record *record = *at;
        if (record->flags & GUARD_IMPL_DEAD) {
            *at = record->next;
            guard_pool_give(pool, record);
        } else {
            living++;
            at = &record->next;
        }
    }
    scope->dead = 0;
    scope->sweep = living > SWEEP_LEAST ? living : SWEEP_LEAST;
}

/* Takes the record off; what it carries is the caller's now. */
static void record_take_off(guard_stack *stack, guard_impl_record *record)
{
    guard_scope *scope = record->scope;
    guard_pool *pool = guard_scope_pool(stack, scope);
    if (scope->head == record) {
        scope->head = record->next;
        __atomic_signal_fence(__ATOMIC_RELEASE);
        guard_pool_give(pool, record);
        return;
    }
    record->flags = GUARD_IMPL_DEAD;
    record->generation++;
    guard_scope_count(scope);
    if (++scope->dead >= (scope->sweep != 0 ? scope->sweep : SWEEP_LEAST)) {
        scope_sweep(pool, scope);
    }
}

/* Home 1 is an owner, whose records live as long as it does. */
static bool ticket_is_pending(const guard_stack *stack, guard_ticket ticket)
{
    return ticket.record != NULL && (ticket.home == 1 || guard_pool_holds(&stack->pool, ticket.record)) &&
           ticket.record->generation == ticket.generation;
}

int guard_pending(guard_ticket ticket)
{
    const guard_stack *stack = guard_stack_own;
    return stack != NULL && ticket_is_pending(stack, ticket);
}

/* The record of a ticket that is pending, else NULL, after the misuse was told unless the ticket is empty. */
static guard_impl_record *ticket_record(guard_stack *stack, guard_ticket ticket)
{
    if (ticket.record == NULL) {
        return NULL;
    }
    if (!ticket_is_pending(stack, ticket)) {
        guard_misuse(GUARD_MISUSE_TICKET,
                     "a ticket that is stale (run, dismissed or released before) or another thread's");
        return NULL;
    }
    return ticket.record;
}

void guard_dismiss(guard_ticket ticket)
{
    guard_stack *stack = guard_stack_here();
    guard_raise_held();
    guard_impl_record *record = ticket_record(stack, ticket);
    if (record != NULL) {
        const guard_kind *kind = record->flags & GUARD_IMPL_KIND ? record->action.kind : NULL;
        void *object = record->arg;
        guard_record_drop(guard_scope_pool(stack, record->scope), record);
        record_take_off(stack, record);
        if (kind != NULL && kind->dismiss != NULL) {
            kind->dismiss(object);
        }
    }
}

void *guard_ticket_object(guard_ticket ticket, const guard_kind *kind)
{
    guard_impl_record *record = ticket_record(guard_stack_here(), ticket);
    if (record != NULL && (record->flags & GUARD_IMPL_KIND) && record->action.kind == kind) {
        return record->arg;
    }
    if (record != NULL || ticket.record == NULL) { /* a stale one was told already */
        guard_misuse(GUARD_MISUSE_TICKET, "a ticket that is not one of a %s", kind->name);
    }
    return NULL;
}

typedef struct heap_copy {
    guard_fn *fn;
    void *bytes;
    bool returned;
} heap_copy;

static void heap_copy_run(void *memory)
{
    heap_copy *copy = memory;
    copy->fn(copy->bytes);
    copy->returned = true;
}

/* The border is there to free the bytes; whatever ended fn goes on from here as if there had been none. */
static void record_run_heap_copy_off(guard_fn *fn, void *bytes)
{
    heap_copy copy = {fn, bytes, false};
    guard_error error;
    int code = guard_run(heap_copy_run, &copy, &error);
    guard_deallocate(bytes);
    if (code != 0) {
        guard_raise_on(&error);
    }
    if (!copy.returned) {
        guard_stack *stack = guard_stack_own;
        if (stack->border != NULL) {
            guard_raise_recovered(stack);
        }
        guard_misuse(GUARD_MISUSE_RECOVER, "guard_recover where no border encloses the scope");
    }
}

/* Runs a registration that is off its scope already. */
static void record_run_off(guard_pool *pool, guard_impl_record *record)
{
    if (record->flags & GUARD_IMPL_INHERITED) {
        guard_inherited_run(pool, record);
    } else if (record->flags & GUARD_IMPL_KIND) {
        record->action.kind->release(record->arg);
    } else if (record->flags & GUARD_IMPL_WORD) {
        _Alignas(16) void *word = record->arg;
        record->action.fn(&word);
    } else if (record->flags & GUARD_IMPL_COPY) {
        _Alignas(16) char bytes[GUARD_COPY_INLINE];
        memcpy(bytes, record->arg, sizeof bytes);
        guard_pool_give(pool, record->arg);
        record->action.fn(bytes);
    } else if (record->flags & GUARD_IMPL_HEAP_COPY) {
        record_run_heap_copy_off(record->action.fn, record->arg);
    } else {
        record->action.fn(record->arg);
    }
}

void guard_release(guard_ticket ticket)
{
    guard_stack *stack = guard_stack_here();
    guard_raise_held();
    guard_impl_record *record = ticket_record(stack, ticket);
    if (record == NULL) {
        return;
    }
    if (record->flags & GUARD_IMPL_RECOVER) {
        guard_misuse(GUARD_MISUSE_TICKET,
                     "guard_release of a recovering defer: only a panic or the scope's end runs it");
        return;
    }
    guard_impl_record copy = *record;
    guard_pool *pool = guard_scope_pool(stack, record->scope);
    record_take_off(stack, record);
    if (!(copy.flags & GUARD_IMPL_INHERITED)) {
        guard_word_add(&stack->hot.ran, 1);
        GUARD_IMPL_PROBE_DEFER(copy.flags & GUARD_IMPL_KIND ? copy.action.kind->release : copy.action.fn, copy.arg,
                               copy.place);
    }
    record_run_off(pool, &copy);
    guard_raise_held();
}

guard_ticket guard_move(guard_ticket ticket, guard_scope *scope)
{
    guard_stack *stack = guard_stack_here();
    guard_raise_held();
    guard_impl_record *record = ticket_record(stack, ticket);
    if (record == NULL) {
        return (guard_ticket){NULL, 0, 0};
    }
    if ((record->flags & GUARD_IMPL_KIND) && (record->action.kind->flags & GUARD_KIND_FIXED)) {
        guard_misuse(GUARD_MISUSE_TICKET, "guard_move of a %s, which ends where it was begun",
                     record->action.kind->name);
        return ticket;
    }
    int code;
    const char *objection = guard_scope_objection(stack, scope, &code);
    if (objection != NULL) {
        guard_misuse(code, "guard_move: %s", objection);
        return ticket;
    }
    guard_reserve(scope, 2); /* the record, and the bytes of a small copy */
    guard_pool *from = guard_scope_pool(stack, record->scope);
    guard_pool *to = guard_scope_pool(stack, scope);
    guard_impl_record *moved = guard_record_take(stack, scope);
    moved->scope = scope;
    moved->action = record->action;
    moved->arg = record->arg;
    moved->place = record->place;
    moved->flags = record->flags;
    if (from != to && (record->flags & GUARD_IMPL_COPY)) {
        moved->arg = guard_record_take(stack, scope);
        ((guard_impl_record *)moved->arg)->flags = GUARD_IMPL_INERT;
        memcpy(moved->arg, record->arg, GUARD_COPY_INLINE);
        guard_pool_give(from, record->arg);
    }
    record_take_off(stack, record);
    moved->next = scope->head;
    __atomic_signal_fence(__ATOMIC_RELEASE);
    scope->head = moved;
    return (guard_ticket){moved, moved->generation, guard_scope_is_owner(scope)};
}
