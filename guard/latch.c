/* SPDX-License-Identifier: MIT */
/* latch.c: carries a panic over the frames of a library that knows nothing of panics. */
#include "internal.h"

void guard_latch_open(guard_latch *latch)
{
    latch->code = 0;
    latch->reserved = 0;
}

int guard_latch_run(guard_latch *latch, guard_fn *fn, void *arg)
{
    if (latch->code == 0) {
        latch->code = guard_run(fn, arg, &latch->error);
    }
    return latch->code;
}

void guard_latch_raise(guard_latch *latch)
{
    if (latch->code != 0) {
        latch->code = 0;
        guard_panic_error(&latch->error);
    }
}

void guard_latch_drop(guard_latch *latch, const char *why)
{
    if (latch->code != 0) {
        latch->code = 0;
        guard_note("a panic in a callback was dropped (%s): %s", why, latch->error.message);
    }
}
