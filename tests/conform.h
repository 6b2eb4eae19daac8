/* SPDX-License-Identifier: MIT */
/*
 * conform.h: the small functions that Go's own tests are made of, for the programs that restate them.
 *
 * Where a Go function recovers and returns to its caller, here a border ends. A panic's value is its code.
 */
#ifndef TESTS_CONFORM_H
#define TESTS_CONFORM_H

#include <stdint.h>

#include <guard/guard.h>

#include "trace.h"

static inline void *as_arg(int code)
{
    return (void *)(intptr_t)code;
}

/* defer panic(code), or panic(code) as a function of its own. */
static inline void raise_code(void *code)
{
    guard_panic((int)(intptr_t)code, "%d", (int)(intptr_t)code);
}

/* defer mustRecover(code): recover gives the code, and then nothing more. Adds "recovered CODE". */
static inline void must_recover(guard_recovery *recovery, void *code)
{
    ck_assert_ptr_nonnull(recovery);
    ck_assert_int_eq(guard_recovery_error(recovery)->code, (int)(intptr_t)code);
    ck_assert_int_eq(guard_recover(recovery), 1);
    ck_assert_int_eq(guard_recover(recovery), 0);
    trace_add("recovered %d", (int)(intptr_t)code);
}

/* defer mustNotRecover() */
static inline void must_not_recover(guard_recovery *recovery, void *arg)
{
    (void)arg;
    ck_assert_ptr_null(recovery);
    ck_assert_int_eq(guard_recover(recovery), 0);
    trace_add("nothing");
}

/* defer func() { recover() }() */
static inline void recover_any(guard_recovery *recovery, void *arg)
{
    (void)arg;
    guard_recover(recovery);
}

/* Calls a function of Go's that recovers its own panic, if any, and returns. */
static inline void call_go(guard_fn *fn, void *arg)
{
    guard_error error;
    int code = guard_run(fn, arg, &error);
    ck_assert_msg(code == 0, "not recovered: %s", error.message);
}

#endif
