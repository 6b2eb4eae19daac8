/* SPDX-License-Identifier: MIT */
/*
 * owner.c: a scope on the heap.
 *
 *     new --> open, on no thread's list --guard_owner_close--> on the closing thread's list, its records run --> freed
 *
 * Invariants: its records come from its own pool, so that any thread can close it. It is on a thread's list only while it is
 * being closed; whoever empties it then (the close, or a panic) frees it, in guard_scope_end.
 */
#include "internal.h"

guard_impl_stack_t guard_owner_mark;

guard_owner *guard_owner_new(void)
{
    guard_raise_held();
    guard_owner *owner = guard_allocate(sizeof *owner);
    memset(&owner->scope, 0, sizeof owner->scope);
    owner->scope.stack = &guard_owner_mark;
    guard_pool_open(&owner->pool, &owner->free, NULL, 0);
    pthread_mutex_lock(&guard_life_lock);
    owner->next = guard_owners;
    owner->at = &guard_owners;
    if (owner->next != NULL) {
        owner->next->at = &owner->next;
    }
    guard_owners = owner;
    pthread_mutex_unlock(&guard_life_lock);
    return owner;
}

void guard_owner_free(guard_owner *owner)
{
    pthread_mutex_lock(&guard_life_lock);
    *owner->at = owner->next;
    if (owner->next != NULL) {
        owner->next->at = owner->at;
    }
    pthread_mutex_unlock(&guard_life_lock);
    guard_pool_close(&owner->pool);
    guard_deallocate(owner);
}

guard_scope *guard_owner_scope(guard_owner *owner)
{
    return owner != NULL ? &owner->scope : NULL;
}

void guard_owner_close(guard_owner *owner)
{
    if (owner == NULL) {
        return;
    }
    guard_stack *stack = guard_stack_here();
    guard_scope *scope = &owner->scope;
    if (scope->flags & SCOPE_CLOSING) {
        guard_misuse(GUARD_MISUSE_SCOPE, "guard_owner_close from inside its own close");
        return;
    }
    scope->outer = stack->hot.top;
    stack->hot.top = scope;
    guard_scope_close(scope);
}

static void owner_release(void *object)
{
    guard_owner_close(object);
}

const guard_kind guard_owner_kind = {
    .name = "owner",
    .release = owner_release,
    .flags = GUARD_KIND_HEAP,
};
