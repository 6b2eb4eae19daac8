/* SPDX-License-Identifier: MIT */
/*
 * exit.c: the ends of a thread and of the process at which deferred functions run although their frames are never left: they
 * run on top of the live stack, as in a panic.
 *
 *     guard_exit_thread, exit(3) --> guard_stack_unwind: borders are cut, every scope runs --returned--> pthread_exit, exit goes on
 *                                        | a function panics: a panic with this as its only border
 *                                        |     recovered --> all has run --> pthread_exit, exit goes on
 *                                        \     not       --> all has run --> report, abort
 *
 * Invariant: the closes that the dying frames still make (pthread_exit unwinds them) find scopes that are UNWINDING and closed, and
 * do nothing. That of an owner, whose memory is gone, finds that the stack is_unwound.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

/* Apart from setjmp, so that its locals live on over a jump. */
static __attribute__((noinline)) void unwind_scopes(guard_stack *stack)
{
    guard_raise_held();
    while (guard_scope_can_run(stack, stack->hot.top)) {
        guard_scope *scope = stack->hot.top;
        uint32_t count = 0;
        guard_single_list(scope);
        for (; scope->head != NULL; count++) {
            guard_record_run(stack, scope, NULL, true);
            guard_raise_held();
        }
        guard_scope_end(stack, scope, count);
    }
}

/* A foreign unwind out of a deferred function passes: the closes of the frames below run the rest. */
static void unwind_pass(guard_impl_border *border)
{
    (void)border;
    guard_stack_own->border = NULL;
}

void guard_stack_unwind(guard_stack *stack)
{
    guard_error error;
    guard_impl_border border __attribute__((cleanup(unwind_pass))) = {.out = &error, .state = GUARD_IMPL_LINKED};
    /* No close in a dying frame must be resumed, and no panic land in one. */
    for (guard_walk walk = guard_walk_open(stack); walk.scope != NULL; guard_walk_next(stack, &walk)) {
        walk.scope->flags = (walk.scope->flags & ~(SCOPE_LEAVING | SCOPE_CLOSING)) | SCOPE_UNWINDING;
    }
    stack->panic = NULL;
    stack->border = &border;
    if (_setjmp(border.env) == 0) {
        unwind_scopes(stack);
    } else if (border.state == GUARD_IMPL_CAUGHT) {
        guard_report_uncaught(&error);
    }
}

/* In a callback of a library that an adapter has called: it would never return, and what it has locked stay locked. */
static void refuse_inside(void)
{
    static const char why[] = "guard_exit_thread in a function that another library has called";
    guard_misuse(GUARD_MISUSE_STATE, "%s", why);
    guard_panic_in(GUARD_MISUSE, GUARD_MISUSE_STATE, "%s", why);
}

void guard_exit_thread(void)
{
    if (guard_impl_foreign != 0) {
        refuse_inside();
    }
    if (guard_stack_own != NULL) {
        guard_stack_unwind(guard_stack_own);
        guard_stack_own->is_unwound = true;
    }
    pthread_exit(NULL);
}

/* ------------------------------------------------------------------------------------------------- exit -- */

static void exit_handle(void)
{
    guard_stack *stack = guard_stack_own;
    if (stack == NULL || stack->hot.top == NULL) {
        return;
    }
    /* For a second exit inside one of the functions, which goes on with the handlers behind this one: it runs the rest. */
    (void)atexit(exit_handle);
    guard_stack_unwind(stack);
}

void guard_process_init(unsigned flags)
{
    static uint32_t is_registered;
    if (flags & ~GUARD_AT_EXIT) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "guard_process_init with unknown flags 0x%x", flags);
        return;
    }
    if ((flags & GUARD_AT_EXIT) && __atomic_exchange_n(&is_registered, 1, __ATOMIC_SEQ_CST) == 0 &&
        atexit(exit_handle) != 0) {
        __atomic_store_n(&is_registered, 0, __ATOMIC_SEQ_CST);
        guard_panic_in(GUARD_MEMORY, ENOMEM, "no room for an exit handler");
    }
}
