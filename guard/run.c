/* SPDX-License-Identifier: MIT */
/*
 * run.c: borders, which contain panics.
 *
 *     open --> LINKED --body returned--> UNLINKED                       guard_run returns 0
 *                |  \---panic landed---> CAUGHT (unlinked by it)        guard_run returns its code
 *                |  \---recovered------> RECOVERED (unlinked by it)     guard_run returns 0
 *                \---foreign unwind or return out of GUARD_TRY--> UNLINKED, by the cleanup attribute
 *
 * Invariant: stack->border is the innermost LINKED border, and its frame is live. guard_run calls setjmp in one place.
 */
#include <errno.h>

#include "internal.h"

/* The code is set when a panic lands. */
static inline void border_link(guard_stack *stack, guard_impl_border *border, guard_error *out)
{
    border->outer = stack->border;
    border->scope = stack->hot.top;
    border->panic = stack->panic;
    border->out = out;
    border->state = GUARD_IMPL_LINKED;
    border->is_short = 0;
    stack->border = border;
}

guard_impl_border *guard_impl_border_open(guard_impl_border *border, guard_error *out)
{
    guard_stack *stack = guard_stack_here();
    guard_raise_held();
    border_link(stack, border, out);
    return border;
}

/* The body ended with a scope open or a panic held. Such a scope lies in a frame that is gone: its records cannot be trusted. */
static __attribute__((noinline)) void border_mend(guard_stack *stack, guard_impl_border *border)
{
    if (stack->hot.top != border->scope) {
        stack->hot.top = border->scope;
        guard_orphans_below(stack, __builtin_frame_address(0));
        guard_misuse(GUARD_MISUSE_SCOPE,
                     "a scope was still open when the function that opened it had returned to its border");
    }
    guard_raise_held();
}

static inline void border_unlink(guard_stack *stack, guard_impl_border *border)
{
    if (GUARD_IMPL_UNLIKELY(stack->hot.top != border->scope || stack->held == HELD_WAITING)) {
        border_mend(stack, border);
    }
    stack->border = border->outer;
}

guard_impl_border *guard_impl_border_end(guard_impl_border *border)
{
    if (border->state == GUARD_IMPL_LINKED) {
        border_unlink(guard_stack_own, border);
        border->state = GUARD_IMPL_UNLINKED;
    }
    return NULL;
}

/*
 * A foreign unwind (or a return, from GUARD_TRY) passes the border. Scopes that it passed without running them are no longer on the list,
 * for the next panic must not run them: their frames are gone. What was registered on them is reported at the latest by the thread's end.
 */
static __attribute__((noinline)) void border_pass(guard_impl_border *border)
{
    guard_stack *stack = guard_stack_own;
    stack->border = border->outer;
    stack->panic = border->panic;
    border->state = GUARD_IMPL_UNLINKED;
    if (stack->hot.top != border->scope) {
        stack->hot.top = border->scope;
        guard_orphans_below(stack, __builtin_frame_address(0));
    }
    if (stack->border == NULL) {
        guard_stack_end_held(stack); /* nobody is left who could return it: it is uncaught here */
    }
}

static inline void border_leave(guard_impl_border *border)
{
    if (GUARD_IMPL_UNLIKELY(border->state == GUARD_IMPL_LINKED)) {
        border_pass(border);
    }
}

void guard_impl_border_leave(guard_impl_border *border)
{
    border_leave(border);
}

/* The border of guard_run: NULL once it is unlinked, which the compiler knows, so that what a foreign unwind needs costs a return nothing. */
static inline void run_leave(guard_impl_border **linked)
{
    if (*linked != NULL) {
        border_leave(*linked);
    }
}

static int run_without_memory(guard_error *out)
{
    if (out != NULL) {
        guard_error_set(out, GUARD_MEMORY, ENOMEM, "out of memory for the thread's guard stack");
    }
    return ENOMEM;
}

/*
 * The compiler's own setjmp knows which registers this frame uses and neither mangles nor calls. It is called in this function, not in one
 * that this calls: after a jump the processor foretells no return rightly, so each frame between the border and its caller costs.
 */
int guard_run(guard_fn *fn, void *arg, guard_error *out)
{
    if (GUARD_IMPL_UNLIKELY(fn == NULL)) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "guard_run without a function");
        return 0;
    }
    guard_stack *stack = (guard_stack *)(void *)guard_impl_stack; /* hot is its first member */
    if (GUARD_IMPL_UNLIKELY(stack == NULL)) {
        stack = guard_stack_make();
        if (stack == NULL) {
            return run_without_memory(out);
        }
        guard_raise_held();
    }
    guard_impl_border border;
    guard_impl_border *linked __attribute__((cleanup(run_leave))) = &border;
    border_link(stack, &border, out);
#if JUMP_IS_SHORT
    border.is_short = 1;
    if (__builtin_setjmp(border.frame) == 0) {
#else
    if (_setjmp(border.env) == 0) {
#endif
        fn(arg);
        border_unlink(stack, &border);
        linked = NULL;
        return 0;
    }
    linked = NULL; /* by the panic, see panic_land_border */
    return border.code;
}
