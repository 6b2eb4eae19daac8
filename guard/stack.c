/* SPDX-License-Identifier: MIT */
/*
 * stack.c: the state of a thread: made at its first use, freed when the thread ends.
 *
 *     (none) --first use--> empty --open/defer--> in use --last close--> empty --thread ends--> freed
 *
 * Invariants: guard_stack_own is this thread's state from its first use to its end. guard_impl_stack equals it but while a panic
 * is held: then it is NULL, which sends every inline call to its slow path, where the held panic is raised.
 */
#include <errno.h>
#include <pthread.h>

#include "internal.h"

__thread guard_impl_stack_t *guard_impl_stack __attribute__((tls_model("initial-exec")));
__thread guard_stack *guard_stack_own;

static pthread_once_t stack_once = PTHREAD_ONCE_INIT;
static pthread_key_t stack_key;
static int stack_key_error;

/* A stack that is in use when its thread ends is left as it is: its scopes may lie in frames that are gone. */
static void stack_close(void *memory)
{
    guard_stack *stack = memory;
    if (stack->hot.top != NULL) {
        return;
    }
    guard_stack_own = NULL;
    guard_impl_stack = NULL;
    guard_pool_close(&stack->pool);
    guard_deallocate(stack);
}

static void stack_key_make(void)
{
    stack_key_error = pthread_key_create(&stack_key, stack_close);
}

guard_stack *guard_stack_make(void)
{
    if (guard_stack_own != NULL) {
        return guard_stack_own;
    }
    pthread_once(&stack_once, stack_key_make);
    guard_stack *stack = guard_memory_take(sizeof *stack);
    if (stack == NULL) {
        return NULL;
    }
    stack->hot.top = NULL;
    stack->border = NULL;
    stack->panic = NULL;
    stack->leaving = NULL;
    stack->held = HELD_NONE;
    guard_pool_open(&stack->pool, &stack->hot.free, stack->records, POOL_FIRST);
    /* Without a key (PTHREAD_KEYS_MAX are in use) the state would leak at the thread's end: refuse, as for memory. */
    if (stack_key_error != 0 || pthread_setspecific(stack_key, stack) != 0) {
        guard_deallocate(stack);
        return NULL;
    }
    guard_stack_own = stack;
    guard_impl_stack = &stack->hot;
    return stack;
}

guard_stack *guard_stack_here(void)
{
    guard_stack *stack = guard_stack_make();
    if (stack == NULL) {
        guard_panic_in(GUARD_MEMORY, ENOMEM, "out of memory for the thread's guard stack");
    }
    return stack;
}
