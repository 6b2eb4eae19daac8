/* SPDX-License-Identifier: MIT */
/* Floors: the same work in plain C, which knows no more than this one function, calls directly, and cannot fail. */
#include <pthread.h>
#include <setjmp.h>

#include "bench.h"

#define NOINLINE __attribute__((noinline))

static NOINLINE void scope_defer_turn(uint64_t *sum)
{
    bench_add(sum);
}

static uint64_t scope_defer(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        scope_defer_turn(&sum);
    }
    return sum;
}

static uint64_t loop_defer(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        bench_add(&sum);
    }
    return sum;
}

/* As a C programmer writes it: a label for each resource that is held. Which of them can be had is not known here. */
static NOINLINE int scope_ten_turn(uint64_t *sum, const volatile char *granted)
{
    int result = -1;
    if (!granted[0]) {
        goto out;
    }
    if (!granted[1]) {
        goto give_1;
    }
    if (!granted[2]) {
        goto give_2;
    }
    if (!granted[3]) {
        goto give_3;
    }
    if (!granted[4]) {
        goto give_4;
    }
    if (!granted[5]) {
        goto give_5;
    }
    if (!granted[6]) {
        goto give_6;
    }
    if (!granted[7]) {
        goto give_7;
    }
    if (!granted[8]) {
        goto give_8;
    }
    if (!granted[9]) {
        goto give_9;
    }
    result = 0;
    bench_add(sum);
give_9:
    bench_add(sum);
give_8:
    bench_add(sum);
give_7:
    bench_add(sum);
give_6:
    bench_add(sum);
give_5:
    bench_add(sum);
give_4:
    bench_add(sum);
give_3:
    bench_add(sum);
give_2:
    bench_add(sum);
give_1:
    bench_add(sum);
out:
    return result;
}

static uint64_t scope_ten(uint64_t count)
{
    static const volatile char granted[10] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        if (scope_ten_turn(&sum, granted) != 0) {
            bench_fail("a resource was refused");
        }
    }
    return sum;
}

static NOINLINE void run_ok_turn(uint64_t *sum)
{
    jmp_buf env;
    if (_setjmp(env) == 0) {
        bench_add(sum);
    }
}

static uint64_t run_ok(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        run_ok_turn(&sum);
    }
    return sum;
}

static NOINLINE __attribute__((noreturn)) void panic_1_jump(jmp_buf env, uint64_t *sum)
{
    bench_add(sum);
    longjmp(env, 7);
}

static NOINLINE void panic_1_turn(uint64_t *sum)
{
    jmp_buf env;
    int code = _setjmp(env);
    if (code == 0) {
        panic_1_jump(env, sum);
    }
    *sum += (uint64_t)code;
}

static uint64_t panic_1(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        panic_1_turn(&sum);
    }
    return sum;
}

static volatile int boom = 7; /* read each time, or the compiler knows what is returned */

/* An error that is returned through ten frames, each of which has ten resources to give back. */
static NOINLINE int panic_10x10_frame(uint64_t *sum, int depth)
{
    int code = depth > 1 ? panic_10x10_frame(sum, depth - 1) : boom;
    bench_add(sum);
    bench_add(sum);
    bench_add(sum);
    bench_add(sum);
    bench_add(sum);
    bench_add(sum);
    bench_add(sum);
    bench_add(sum);
    bench_add(sum);
    bench_add(sum);
    return code;
}

static uint64_t panic_10x10(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        sum += (uint64_t)panic_10x10_frame(&sum, 10);
    }
    return sum;
}

/* The least a pool can do: what is free lies in an array under a mutex. */
static uint64_t pool_take(uint64_t count)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static int connection;
    static int *idle[10] = {&connection};
    static int idle_count = 1;
    uint64_t taken = 0;
    for (uint64_t i = 0; i < count; i++) {
        pthread_mutex_lock(&lock);
        int *mine = idle[--idle_count];
        pthread_mutex_unlock(&lock);
        taken += mine != NULL;
        pthread_mutex_lock(&lock);
        idle[idle_count++] = mine;
        pthread_mutex_unlock(&lock);
    }
    return taken;
}

int main(int argc, char **argv)
{
    static const bench_work works[] = {
        {"scope-defer", scope_defer}, {"loop-defer", loop_defer},   {"scope-ten", scope_ten}, {"run-ok", run_ok},
        {"panic-1", panic_1},         {"panic-10x10", panic_10x10}, {"pool-take", pool_take}, {NULL, NULL},
    };
    return bench_serve(argc, argv, works);
}
