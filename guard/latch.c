/* SPDX-License-Identifier: MIT */
/* latch.c: carries a panic over the frames of a library that knows nothing of panics. */
#include "internal.h"

void guard_latch_open(guard_latch *latch)
{
    latch->code = 0;
    latch->reserved = 0;
}

typedef struct latch_work {
    guard_fn *fn;
    void *arg;
} latch_work;

/* Inside the border, for misuse must not leave the callback either. */
static void latch_work_run(void *memory)
{
    const latch_work *work = memory;
    if (work->fn == NULL) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "guard_latch_run without a function");
        return;
    }
    work->fn(work->arg);
}

int guard_latch_run(guard_latch *latch, guard_fn *fn, void *arg)
{
    guard_stack *stack = guard_stack_own;
    if (latch->code == 0 && stack != NULL && stack->held == HELD_WAITING) {
        guard_unhold(stack, &latch->error); /* guard_run would raise it, over the library's frames */
        latch->code = latch->error.code;
    }
    if (latch->code == 0) {
        latch_work work = {fn, arg};
        latch->code = guard_run(latch_work_run, &work, &latch->error);
    }
    return latch->code;
}

void guard_latch_raise(guard_latch *latch)
{
    if (latch->code != 0) {
        latch->code = 0;
        guard_raise_on(&latch->error);
    }
    guard_raise_held();
}

void guard_latch_drop(guard_latch *latch, const char *why)
{
    if (latch->code != 0) {
        latch->code = 0;
        guard_note("a panic in a callback was dropped (%s): %s", why, latch->error.message);
    }
}
