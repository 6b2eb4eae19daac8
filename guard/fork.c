/* SPDX-License-Identifier: MIT */
/*
 * fork.c: what a forked child does with the registrations that it inherits.
 *
 *     registered --fork, in the child--> inherited --its scope ends, or it is released--> the kind's child function, or nothing
 *                       |                   \--guard_child_adopt--> registered
 *                       \--GUARD_KIND_AT_FORK: the child function runs here, nothing later
 *
 * In the child only the forking thread lives. Its scopes go on, and so may those of fibers, which it may resume: their
 * registrations are marked. Other threads' stacks are forgotten after their GUARD_KIND_AT_FORK rules ran; their memory is kept, as it may have been
 * in the middle of a change when fork copied it. A list of records is whole at every moment, since each change of it is one store.
 *
 * The life lock is held over the fork, so that the lists of threads, stacks and owners are whole in the child, which unlocks its
 * copy: it is the thread that locked it. A thread's own lock is taken by others only under the life lock, so it is free in the child.
 */
#include <unistd.h>

#include "helgrind.h"
#include "internal.h"

guard_owner *guard_owners;
static unsigned fork_count;
static guard_thread *fork_lost; /* threads that did not come along: reachable, so that no leak is seen in them */

unsigned guard_fork_count(void)
{
    return fork_count;
}

/* ------------------------------------------------------------------------------------------- inheriting -- */

void guard_inherited_run(guard_pool *pool, guard_impl_record *record)
{
    guard_record_drop(pool, record);
    if ((record->flags & GUARD_IMPL_KIND) && !(record->action.kind->flags & GUARD_KIND_AT_FORK) &&
        record->action.kind->child != NULL) {
        record->action.kind->child(record->arg);
    }
}

static void records_inherit(guard_impl_record *record)
{
    for (; record != NULL; record = record->next) {
        HELGRIND_TAKE(record, sizeof *record);
        if (record->flags & (GUARD_IMPL_DEAD | GUARD_IMPL_RECOVER | GUARD_IMPL_RESERVED | GUARD_IMPL_INHERITED)) {
            continue;
        }
        record->flags |= GUARD_IMPL_INHERITED;
        if (record->flags & GUARD_IMPL_KIND && record->action.kind->flags & GUARD_KIND_AT_FORK &&
            record->action.kind->child != NULL) {
            record->action.kind->child(record->arg);
        }
    }
}

static void stack_inherit(guard_stack *stack)
{
    HELGRIND_TAKE(stack, sizeof *stack);
    HELGRIND_TAKE(stack->hot.top, sizeof *stack->hot.top);
    for (guard_walk walk = guard_walk_open(stack); walk.scope != NULL; guard_walk_next(stack, &walk)) {
        HELGRIND_TAKE(walk.scope->outer, sizeof *walk.scope->outer);
        guard_single_list(walk.scope);
        records_inherit(walk.scope->head);
    }
    records_inherit(stack->orphans.head);
}

/* ------------------------------------------------------------------------------------------------ handlers -- */

static void fork_before(void)
{
    guard_metrics_before_fork();
    pthread_mutex_lock(&guard_life_lock);
}

static void fork_in_parent(void)
{
    pthread_mutex_unlock(&guard_life_lock);
    guard_metrics_after_fork(false);
}

static void thread_lose(guard_thread *thread)
{
    guard_stack *stack = &thread->stack;
    *stack->at = stack->next;
    if (stack->next != NULL) {
        stack->next->at = stack->at;
    }
    if (thread->wake >= 0) {
        close(thread->wake);
    }
    guard_alternate_lose(thread);
    thread->next = fork_lost;
    fork_lost = thread;
}

static void fork_in_child(void)
{
    fork_count++;
    for (guard_stack *stack = guard_stacks; stack != NULL; stack = stack->next) {
        stack_inherit(stack);
    }
    for (guard_owner *owner = guard_owners; owner != NULL; owner = owner->next) {
        HELGRIND_TAKE(owner, sizeof *owner);
        records_inherit(owner->scope.head);
    }
    guard_thread *own = guard_thread_own;
    for (guard_thread *thread = guard_threads; thread != NULL;) {
        HELGRIND_TAKE(thread, sizeof *thread);
        guard_thread *next = thread->next;
        if (thread != own) {
            thread_lose(thread);
        }
        thread = next;
    }
    guard_threads = own;
    if (own != NULL) {
        own->next = NULL;
        own->at = &guard_threads;
        /* The descriptor is the parent's too: who wakes the parent must not wake the child. */
        if (own->wake >= 0) {
            close(own->wake);
            own->wake = -1;
        }
        own->is_woken = false;
        own->tid = gettid();
    }
    guard_metrics_after_fork(true);
    guard_watch_forget();
    guard_signal_forget();
    guard_fatal_forget();
    guard_report_forget();
    guard_dump_forget();
    guard_attention_clear(&guard_impl_attention, ATTENTION_CANCEL);
    pthread_mutex_unlock(&guard_life_lock);
}

int guard_fork_prepare(void)
{
    return pthread_atfork(fork_before, fork_in_parent, fork_in_child);
}

/* ------------------------------------------------------------------------------------------------ adopting -- */

void guard_child_adopt(guard_scope *scope)
{
    guard_stack *stack = guard_stack_here();
    guard_raise_held();
    if (scope == NULL || (scope->stack != &stack->hot && !guard_scope_is_owner(scope))) {
        guard_misuse(GUARD_MISUSE_SCOPE, "guard_child_adopt of a scope that is not open on this thread");
        return;
    }
    for (guard_impl_record *record = scope->head; record != NULL; record = record->next) {
        if (!(record->flags & GUARD_IMPL_KIND && record->action.kind->flags & GUARD_KIND_AT_FORK)) {
            record->flags &= ~GUARD_IMPL_INHERITED;
        }
    }
}
