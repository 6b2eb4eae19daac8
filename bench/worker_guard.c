/* SPDX-License-Identifier: MIT */
/* The core's rows, done with libguard as a user does. */
#include <stdlib.h>

#include <guard/guard_trace.h>

#include "bench.h"

#define NOINLINE __attribute__((noinline))

static NOINLINE void scope_defer_turn(uint64_t *sum)
{
    GUARD_DEFER(bench_add, sum);
}

static uint64_t scope_defer(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        scope_defer_turn(&sum);
    }
    return sum;
}

/* A turn is one defer; each scope has a hundred of them. */
static NOINLINE void loop_defer_scope(uint64_t *sum, uint64_t count)
{
    GUARD_AUTO(s);
    for (uint64_t i = 0; i < count; i++) {
        guard_defer(s, bench_add, sum);
    }
}

static uint64_t loop_defer(uint64_t count)
{
    uint64_t sum = 0;
    for (; count > 100; count -= 100) {
        loop_defer_scope(&sum, 100);
    }
    loop_defer_scope(&sum, count);
    return sum;
}

static void add_by_copy(void *copy)
{
    bench_add(*(void **)copy);
}

static void add_by_recover(guard_recovery *recovery, void *sum)
{
    if (recovery == NULL) {
        bench_add(sum);
    }
}

static const guard_kind sum_kind = {.name = "sum", .release = bench_add};

/* Four plain ones, two on success, two kinds, a copy, a recovering one. */
static NOINLINE void scope_ten_turn(uint64_t *sum)
{
    GUARD_AUTO(s);
    guard_defer(s, bench_add, sum);
    guard_defer_kind(s, &sum_kind, sum);
    guard_defer_on(s, GUARD_ON_SUCCESS, bench_add, sum);
    guard_defer_copy(s, add_by_copy, &sum, sizeof sum);
    guard_defer(s, bench_add, sum);
    guard_defer_recover(s, add_by_recover, sum);
    guard_defer(s, bench_add, sum);
    guard_defer_kind(s, &sum_kind, sum);
    guard_defer_on(s, GUARD_ON_SUCCESS, bench_add, sum);
    guard_defer(s, bench_add, sum);
}

static uint64_t scope_ten(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        scope_ten_turn(&sum);
    }
    return sum;
}

static void run_ok_body(void *sum)
{
    GUARD_DEFER(bench_add, sum);
}

static uint64_t run_ok(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        guard_error error;
        if (guard_run(run_ok_body, &sum, &error) != 0) {
            bench_fail("%s", error.message);
        }
    }
    return sum;
}

/* Both rows of panics add the code that the border returns, so that each was raised and caught. */
static void panic_1_body(void *sum)
{
    GUARD_DEFER(bench_add, sum);
    guard_panic(7, "boom");
}

static uint64_t panic_1(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        guard_error error;
        guard_run(panic_1_body, &sum, &error);
        sum += (uint64_t)error.code;
    }
    return sum;
}

/* panic-1 with its stack captured and not named. */
static uint64_t panic_stack(uint64_t count)
{
    guard_trace_capture(
        1); /* and stays: another thread may be in the middle, and no other row follows in this process */
    uint64_t sum = panic_1(count);
    uint64_t other = 0;
    guard_error error;
    guard_trace trace;
    guard_run(panic_1_body, &other, &error);
    if (guard_trace_of(&error, &trace) < 4) {
        bench_fail("the panic was not traced");
    }
    return sum;
}

static volatile int boom = 7; /* read each time, or the compiler takes the recursion for an endless one */

static NOINLINE void panic_10x10_frame(uint64_t *sum, int depth)
{
    GUARD_AUTO(s);
    guard_defer(s, bench_add, sum);
    guard_defer(s, bench_add, sum);
    guard_defer(s, bench_add, sum);
    guard_defer(s, bench_add, sum);
    guard_defer(s, bench_add, sum);
    guard_defer(s, bench_add, sum);
    guard_defer(s, bench_add, sum);
    guard_defer(s, bench_add, sum);
    guard_defer(s, bench_add, sum);
    guard_defer(s, bench_add, sum);
    if (depth > 1) {
        panic_10x10_frame(sum, depth - 1);
    } else if (boom != 0) {
        guard_panic(boom, "boom");
    }
}

static void panic_10x10_body(void *sum)
{
    panic_10x10_frame(sum, 10);
}

static uint64_t panic_10x10(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        guard_error error;
        guard_run(panic_10x10_body, &sum, &error);
        sum += (uint64_t)error.code;
    }
    return sum;
}

/* ------------------------------------------------------------------------------- 100,000 defers in one scope -- */

#define MANY 100000U

/* Of a thread, which gives back what it takes. */
static __thread size_t held_bytes;
static __thread size_t most_bytes;

/* The size goes before the memory, so that what is given back is known. */
static void *count_allocate(size_t size)
{
    size_t *memory = malloc(size + 16);
    if (memory == NULL) {
        return NULL;
    }
    *memory = size;
    held_bytes += size;
    most_bytes = held_bytes > most_bytes ? held_bytes : most_bytes;
    return (char *)memory + 16;
}

static void count_release(void *memory)
{
    if (memory != NULL) {
        size_t *begin = (size_t *)(void *)((char *)memory - 16);
        held_bytes -= *begin;
        free(begin);
    }
}

/* One of 100,000 takes 48 bytes; the pool rounds up to a chunk of 48 KiB, of which it keeps a spare one. */
static uint64_t defers_100k(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        loop_defer_scope(&sum, MANY);
        if (most_bytes > MANY * 48 + 2 * 50000U) {
            bench_fail("%u defers took %zu bytes", MANY, most_bytes);
        }
        if (held_bytes > 3 * 50000U) {
            bench_fail("%zu bytes were kept after %u defers", held_bytes, MANY);
        }
    }
    return sum;
}

/* As many, in two scopes: what defers_100k is compared with. */
static uint64_t defers_50k(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < 2 * count; i++) {
        loop_defer_scope(&sum, MANY / 2);
    }
    return sum;
}

int main(int argc, char **argv)
{
    static const bench_work works[] = {
        {"scope-defer", scope_defer}, {"loop-defer", loop_defer},
        {"scope-ten", scope_ten},     {"run-ok", run_ok},
        {"panic-1", panic_1},         {"panic-10x10", panic_10x10},
        {"panic-stack", panic_stack}, {"defers-100k", defers_100k},
        {"defers-50k", defers_50k},   {NULL, NULL},
    };
    guard_allocator(count_allocate, count_release);
    return bench_serve(argc, argv, works);
}
