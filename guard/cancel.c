/* SPDX-License-Identifier: MIT */
/*
 * cancel.c: checkpoints: whether this thread was cancelled or is late, and what masks it.
 *
 *     going on --guard_cancel_thread, a signal whose grace is over--> cancelled --clear--> going on
 *                                                                        | each checkpoint outside of masks panics
 *     going on --the nearest deadline passes--> late --its scope ends--> going on
 *
 * A thread's guard_impl_attention is 0 while there is nothing to look at, and that is all the inline checkpoint reads. Its bits are
 * hints: they are set by whoever asks (under the life lock, but for the signal handler and the thread itself) and taken back by the
 * thread, at a checkpoint that finds nothing behind them. So closing a scope that had a deadline or a mask costs nothing.
 *
 * Deferred functions are masked without a counter that a panic would have to restore: the scopes that run them are on the
 * thread's list and carry a flag, and so does a scope with guard_mask.
 */
#include <errno.h>
#include <sys/eventfd.h>
#include <time.h>

#include "internal.h"

/* The scope runs its records: what they call is masked, and its own deadline was for its body. */
#define SCOPE_ENDING (SCOPE_LEAVING | SCOPE_CLOSING | SCOPE_UNWINDING)

int64_t guard_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* `ms` from now; the clock is far from the end of its range. */
static int64_t clock_after(int64_t ms)
{
    int64_t now = guard_clock();
    return ms > (CLOCK_NEVER - now) / 1000000 ? CLOCK_NEVER : now + ms * 1000000;
}

guard_limits guard_limits_here(const guard_stack *stack)
{
    guard_limits limits = {false, CLOCK_NEVER};
    guard_walk walk = guard_walk_open(stack);
    for (; walk.scope != NULL && !limits.is_masked; guard_walk_next(stack, &walk)) {
        const guard_scope *scope = walk.scope;
        if (scope->flags & SCOPE_ENDING) {
            limits.is_masked = true;
        } else {
            if (scope->flags & SCOPE_DEADLINE && scope->deadline < limits.deadline) {
                limits.deadline = scope->deadline;
            }
            limits.is_masked = scope->flags & SCOPE_MASKED;
        }
    }
    return limits;
}

static bool cancel_is_due(uint32_t attention)
{
    return (attention & ATTENTION_CANCEL) || ((attention & ATTENTION_SIGNAL) && guard_clock() >= guard_signal_due());
}

/* ------------------------------------------------------------------------------------------- checkpoints -- */

static void cancel_describe(uint32_t attention, guard_error *error)
{
    int signo = guard_cancel_signal();
    if ((attention & ATTENTION_CANCEL) || signo == 0) {
        guard_error_set(error, GUARD_CANCELLED, ECANCELED, "cancelled");
        return;
    }
    const char *name = sigabbrev_np(signo);
    guard_error_set(error, GUARD_CANCELLED, ECANCELED, "cancelled by signal %d (%s%s)", signo,
                    name != NULL ? "SIG" : "real-time", name != NULL ? name : "");
}

/* Takes back the bits that nothing is behind any more, then looks once more, for they may have been set meanwhile. */
static uint32_t attention_refresh(const guard_limits *limits)
{
    uint32_t attention = __atomic_load_n(&guard_impl_attention, __ATOMIC_SEQ_CST);
    if ((attention & ATTENTION_SIGNAL) && !guard_signal_is_pending()) {
        guard_attention_clear(&guard_impl_attention, ATTENTION_SIGNAL);
        if (guard_signal_is_pending()) {
            guard_attention_set(&guard_impl_attention, ATTENTION_SIGNAL);
        }
    }
    if ((attention & ATTENTION_DEADLINE) && !limits->is_masked && limits->deadline == CLOCK_NEVER) {
        guard_attention_clear(&guard_impl_attention, ATTENTION_DEADLINE);
    }
    return __atomic_load_n(&guard_impl_attention, __ATOMIC_SEQ_CST);
}

int guard_impl_checkpoint_error(guard_error *error)
{
    guard_error unread;
    const guard_stack *stack = guard_stack_own;
    if (stack == NULL) {
        return 0; /* no thread that the library knows can be cancelled */
    }
    guard_limits limits = guard_limits_here(stack);
    uint32_t attention = attention_refresh(&limits);
    if (error == NULL) {
        error = &unread;
    }
    if (!limits.is_masked && cancel_is_due(attention)) {
        cancel_describe(attention, error);
        return error->code;
    }
    if (limits.deadline != CLOCK_NEVER && guard_clock() >= limits.deadline) {
        guard_error_set(error, GUARD_TIMEOUT, ETIMEDOUT, "the deadline has passed");
        return error->code;
    }
    return 0;
}

void guard_impl_checkpoint_slow(const guard_place *place)
{
    guard_error error;
    guard_stack_here();
    guard_raise_held();
    if (guard_impl_checkpoint_error(&error) != 0) {
        guard_impl_panic_error(place, &error);
    }
}

void guard_impl_cancel_point(const guard_place *place)
{
    guard_impl_checkpoint(place);
    if (!guard_masked()) {
        pthread_testcancel();
    }
}

/* ------------------------------------------------------------------------------------------ cancellation -- */

int guard_cancelled(void)
{
    uint32_t attention = __atomic_load_n(&guard_impl_attention, __ATOMIC_SEQ_CST);
    return (attention & ATTENTION_CANCEL) || guard_signal_is_pending();
}

void guard_thread_wake(guard_thread *thread)
{
    if (thread->wake >= 0 && !thread->is_woken) {
        /* It cannot fail: the counter was 0. */
        __atomic_store_n(&thread->is_woken, guard_wake_write(thread->wake), __ATOMIC_SEQ_CST);
    }
}

int guard_cancel_thread(pthread_t id)
{
    if (pthread_equal(id, pthread_self())) {
        guard_stack_here(); /* the caller itself may use the library for the first time */
    }
    pthread_mutex_lock(&guard_life_lock);
    guard_thread *thread = guard_threads;
    while (thread != NULL && !pthread_equal(thread->id, id)) {
        thread = thread->next;
    }
    if (thread != NULL) {
        guard_attention_set(thread->attention, ATTENTION_CANCEL);
        guard_thread_wake(thread);
        guard_thread_interrupt(thread);
    }
    pthread_mutex_unlock(&guard_life_lock);
    return thread != NULL;
}

void guard_cancel_clear(void)
{
    guard_attention_clear(&guard_impl_attention, ATTENTION_CANCEL);
}

/*
 * Nothing to settle: the descriptor is there, nobody asked this thread to end, and no wake of an earlier cancel is left in it. A cancel sets
 * the attention before it wakes, so one that comes from here on is seen in the descriptor.
 */
static bool wake_is_settled(const guard_thread *thread)
{
    return thread->wake >= 0 &&
           !(__atomic_load_n(&guard_impl_attention, __ATOMIC_SEQ_CST) & (ATTENTION_CANCEL | ATTENTION_SIGNAL)) &&
           !__atomic_load_n(&thread->is_woken, __ATOMIC_SEQ_CST);
}

int guard_cancel_descriptor(void)
{
    guard_stack_here();
    guard_thread *thread = guard_thread_own;
    if (guard_masked()) {
        return -1;
    }
    if (wake_is_settled(thread)) {
        return thread->wake;
    }
    pthread_mutex_lock(&guard_life_lock);
    if (thread->wake < 0) {
        thread->wake = guard_descriptor_raise(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        thread->is_woken = false;
        guard_signal_watch();
    }
    if (thread->wake >= 0) {
        bool is_due = cancel_is_due(__atomic_load_n(&guard_impl_attention, __ATOMIC_SEQ_CST));
        if (is_due) {
            guard_thread_wake(thread);
        } else if (thread->is_woken) { /* by a cancel that was cleared */
            __atomic_store_n(&thread->is_woken, !guard_wake_take(thread->wake), __ATOMIC_SEQ_CST);
        }
    }
    int wake = thread->wake;
    pthread_mutex_unlock(&guard_life_lock);
    return wake;
}

/* ----------------------------------------------------------------------------------- deadlines and masks -- */

/* NULL where the scope is not open on this thread, which was told then. */
static guard_stack *scope_stack(const guard_scope *scope, const char *call)
{
    guard_stack *stack = guard_stack_here();
    guard_raise_held();
    if (scope != NULL && scope->stack == &stack->hot) {
        return stack;
    }
    guard_misuse(GUARD_MISUSE_SCOPE, "%s on a scope that is not open on this thread", call);
    return NULL;
}

void guard_deadline(guard_scope *scope, int64_t ms)
{
    if (ms < -1) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "guard_deadline with %lld ms", (long long)ms);
        return;
    }
    if (scope_stack(scope, "guard_deadline") == NULL) {
        return;
    }
    if (ms == -1) {
        scope->flags &= ~SCOPE_DEADLINE;
        return;
    }
    scope->deadline = clock_after(ms);
    scope->flags |= SCOPE_DEADLINE;
    guard_attention_set(&guard_impl_attention, ATTENTION_DEADLINE);
}

int64_t guard_remaining_ms(int64_t own_ms)
{
    const guard_stack *stack = guard_stack_here();
    if (!(__atomic_load_n(&guard_impl_attention, __ATOMIC_RELAXED) & ATTENTION_DEADLINE)) {
        return own_ms; /* no scope has one */
    }
    guard_limits limits = guard_limits_here(stack);
    if (limits.deadline == CLOCK_NEVER) {
        return own_ms;
    }
    int64_t left = limits.deadline - guard_clock();
    int64_t left_ms = left <= 0 ? 0 : (left + 999999) / 1000000;
    return own_ms >= 0 && own_ms < left_ms ? own_ms : left_ms;
}

void guard_mask(guard_scope *scope)
{
    if (scope_stack(scope, "guard_mask") != NULL) {
        scope->flags |= SCOPE_MASKED;
    }
}

void guard_unmask(guard_scope *scope)
{
    if (scope_stack(scope, "guard_unmask") != NULL) {
        scope->flags &= ~SCOPE_MASKED;
    }
}

int guard_masked(void)
{
    const guard_stack *stack = guard_stack_own;
    if (stack == NULL) {
        return 0;
    }
    guard_walk walk = guard_walk_open(stack);
    while (walk.scope != NULL && !(walk.scope->flags & (SCOPE_ENDING | SCOPE_MASKED))) {
        guard_walk_next(stack, &walk);
    }
    return walk.scope != NULL;
}
