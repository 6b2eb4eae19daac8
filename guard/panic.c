/* SPDX-License-Identifier: MIT */
/*
 * panic.c: a running panic.
 *
 *   guard_raise --> supersede: what becomes of an older panic that this one would cross
 *       |              it runs a kind's release: this one is attached to it, and the older one goes on
 *       |              otherwise: this one replaces it and keeps it as a cause
 *       v
 *   unwind: run the records of the scopes up to the target, on top of the live stack; a recovering defer may end it
 *       |
 *       v
 *   land: the target is a border   --> its error is filled in, longjmp
 *         a LEAVING scope          --> the panic is held, guard_leave_resume
 *         nothing (no border)      --> report, abort
 *
 * Invariants: the error of a running panic lies in a frame that is live until the jump. stack->panic is the innermost running panic; each
 * has a target of its own (or it would have superseded the other). Nothing here allocates.
 */
#include <errno.h>

#include "internal.h"

/* The innermost place that must not be jumped over: an automatic close, or the border. Without a border everything runs. */
static const void *panic_target(const guard_stack *stack)
{
    if (stack->border == NULL) {
        return NULL;
    }
    for (const guard_scope *scope = stack->hot.top; scope != stack->border->scope; scope = scope->outer) {
        if (scope->flags & SCOPE_LEAVING) {
            return scope;
        }
    }
    return stack->border;
}

/* The place is written into the error only when somebody may read it: a panic that a border without `out` contains saves it. */
static void panic_complete(guard_recovery *panic)
{
    if (panic->place != NULL) {
        guard_error_place(panic->error, panic->place);
        panic->place = NULL;
    }
}

/* Returns the panic that goes on: *panic, or the older one it was attached to. */
static guard_recovery *panic_supersede(guard_stack *stack, guard_recovery *panic)
{
    guard_recovery *older = panic->prev;
    if (older == NULL || older->target != panic->target) {
        return panic;
    }
    panic_complete(panic);
    panic_complete(older);
    if (older->in_kind && !older->recovered) {
        guard_error_attach(older->error, panic->error, GUARD_ATTACHED);
        older->in_kind = false;
        stack->panic = older;
        return older;
    }
    guard_error_attach(panic->error, older->error, older->recovered ? GUARD_RECOVERED : GUARD_REPLACED);
    panic->prev = older->prev;
    return panic_supersede(stack, panic);
}

/* A panic that was held back by a close inside a deferred function failed after this one. */
static void panic_take_held(guard_stack *stack, guard_recovery *panic)
{
    if (stack->held == HELD_WAITING) {
        guard_error later;
        guard_unhold(stack, &later);
        guard_error_attach(panic->error, &later, GUARD_ATTACHED);
    }
}

static const guard_scope *panic_end(const guard_recovery *panic)
{
    if (panic->target == NULL) {
        return NULL;
    }
    return panic->target == panic->border ? panic->border->scope : panic->target;
}

static void panic_unwind(guard_stack *stack, guard_recovery *panic)
{
    const guard_scope *end = panic_end(panic);
    while (stack->hot.top != end) {
        guard_scope *scope = stack->hot.top;
        uint32_t count = 0;
        panic->scope = scope;
        for (; scope->head != NULL; count++) {
            guard_record_run(stack, scope, panic->recovered ? NULL : panic, true);
            if (panic->recovered) {
                stack->panic = panic->prev;
            } else {
                panic_take_held(stack, panic);
            }
        }
        guard_scope_end(stack, scope);
        guard_pool_freed(&stack->pool, count);
    }
}

GUARD_NORETURN static void panic_land_border(guard_stack *stack, guard_recovery *panic)
{
    guard_impl_border *border = panic->border;
    guard_error later;
    const guard_error *error = panic->recovered ? NULL : panic->error;
    if (stack->held == HELD_WAITING) {
        guard_unhold(stack, &later);
        error = &later; /* only a recovered panic leaves one waiting */
    }
    stack->border = border->outer;
    stack->panic = border->panic;
    if (error != NULL) {
        border->code = error->code;
        border->state = GUARD_IMPL_CAUGHT;
        if (border->out != NULL) {
            panic_complete(panic);
            guard_error_copy(border->out, error);
        }
        errno = error->os_error;
    } else {
        border->code = 0;
        border->state = GUARD_IMPL_RECOVERED;
    }
    guard_before_jump();
    longjmp(border->env, border->state);
}

GUARD_NORETURN void guard_raise(guard_stack *stack, guard_error *error, const guard_place *place)
{
    guard_recovery here = {.prev = stack->panic, .error = error, .place = place, .border = stack->border};
    guard_recovery *panic = &here;
    panic_take_held(stack, panic);
    for (;;) {
        panic->target = panic_target(stack);
        panic = panic_supersede(stack, panic);
        stack->panic = panic;
        panic_unwind(stack, panic);
        if (panic->target == NULL) {
            panic_complete(panic);
            guard_report_uncaught(panic->error);
        }
        if (panic->target == panic->border) {
            panic_land_border(stack, panic);
        }
        stack->panic = panic->prev;
        if (!panic->recovered) {
            panic_complete(panic);
            guard_hold(stack, panic->error);
        }
        guard_leave_resume(stack, panic->target);
        /* The frame was not found, see leave.c: the panic goes on to the border from here. */
        if (!panic->recovered) {
            guard_unhold(stack, panic->error);
        }
        stack->hot.top->flags &= ~SCOPE_LEAVING;
    }
}

/* --------------------------------------------------------------------------------------- held panics -- */

void guard_hold(guard_stack *stack, const guard_error *error)
{
    guard_error_copy(&stack->held_error, error);
    stack->held = HELD_WAITING;
    guard_impl_stack = NULL;
}

void guard_unhold(guard_stack *stack, guard_error *error)
{
    guard_error_copy(error, &stack->held_error);
    stack->held = HELD_NONE;
    guard_impl_stack = &stack->hot;
}

void guard_raise_held(void)
{
    guard_stack *stack = guard_stack_own;
    if (GUARD_IMPL_UNLIKELY(stack != NULL && stack->held == HELD_WAITING)) {
        guard_error error;
        guard_unhold(stack, &error);
        guard_raise(stack, &error, NULL);
    }
}

/* -------------------------------------------------------------------------------------------- raising -- */

/* Without memory for a stack nothing can have been registered and no border opened. */
GUARD_NORETURN static void panic_begin(guard_error *error, const guard_place *place)
{
    guard_stack *stack = guard_stack_make();
    if (stack == NULL) {
        guard_error_place(error, place);
        guard_report_uncaught(error);
    }
    guard_raise(stack, error, place);
}

void guard_impl_panic(const guard_place *place, int domain, int code, const char *format, ...)
{
    guard_error error;
    guard_error_open(&error, domain, code);
    va_list arguments;
    va_start(arguments, format);
    guard_error_message(&error, format, arguments);
    va_end(arguments);
    panic_begin(&error, place);
}

void guard_impl_panic_os(const guard_place *place, const char *format, ...)
{
    guard_error error;
    guard_error_open(&error, GUARD_OS, errno);
    va_list arguments;
    va_start(arguments, format);
    guard_error_message(&error, format, arguments);
    va_end(arguments);
    size_t length = strlen(error.message);
    char text[96];
    snprintf(text, sizeof text, ": %s",
             strerrordesc_np(error.os_error) != NULL ? strerrordesc_np(error.os_error) : "unknown error");
    guard_text_copy(error.message + length, sizeof error.message - length, text);
    panic_begin(&error, place);
}

void guard_impl_panic_error(const guard_place *place, const guard_error *error)
{
    guard_error copy;
    guard_error_copy(&copy, error);
    if (copy.code == 0) {
        copy.code = -1;
    }
    panic_begin(&copy, copy.file[0] == '\0' ? place : NULL);
}

/* ----------------------------------------------------------------------------------------- recovering -- */

int guard_recover(guard_recovery *recovery)
{
    guard_stack *stack = guard_stack_own;
    if (recovery == NULL || stack == NULL || stack->panic != recovery || !recovery->recovering || recovery->recovered) {
        return 0;
    }
    if (recovery->border == NULL) {
        guard_misuse(GUARD_MISUSE_RECOVER, "guard_recover where no border encloses the scope");
        return 0;
    }
    recovery->recovered = true;
    return 1;
}

const guard_error *guard_recovery_error(const guard_recovery *recovery)
{
    const guard_stack *stack = guard_stack_own;
    if (recovery == NULL || stack == NULL || stack->panic == NULL) {
        return NULL;
    }
    panic_complete((guard_recovery *)(uintptr_t)recovery);
    return recovery->error;
}

const guard_error *guard_panicking(void)
{
    const guard_stack *stack = guard_stack_own;
    guard_recovery *panic = stack != NULL ? stack->panic : NULL;
    if (panic == NULL || panic->recovered || stack->border != panic->border) {
        return NULL;
    }
    for (const guard_scope *scope = stack->hot.top; scope != panic->scope; scope = scope->outer) {
        if (scope->flags & (SCOPE_LEAVING | SCOPE_CLOSING)) {
            return NULL; /* a scope of the deferred function, which ends normally */
        }
    }
    panic_complete(panic);
    return panic->error;
}
