/* SPDX-License-Identifier: MIT */
/* APR: a pool for each scope, under one that lives on, as Apache's modules do. */
#include <apr_general.h>
#include <apr_pools.h>

#include "bench.h"

static apr_pool_t *outer;

static apr_status_t add(void *sum)
{
    bench_add(sum);
    return APR_SUCCESS;
}

static __attribute__((noinline)) void scope_turn(uint64_t *sum, int cleanups)
{
    apr_pool_t *pool;
    if (apr_pool_create(&pool, outer) != APR_SUCCESS) {
        bench_fail("apr_pool_create");
    }
    for (int i = 0; i < cleanups; i++) {
        apr_pool_cleanup_register(pool, sum, add, apr_pool_cleanup_null);
    }
    apr_pool_destroy(pool);
}

static uint64_t scope_turns(uint64_t count, int cleanups)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        scope_turn(&sum, cleanups);
    }
    return sum;
}

static uint64_t scope_defer(uint64_t count)
{
    return scope_turns(count, 1);
}

static uint64_t scope_ten(uint64_t count)
{
    return scope_turns(count, 10);
}

int main(int argc, char **argv)
{
    static const bench_work works[] = {{"scope-defer", scope_defer}, {"scope-ten", scope_ten}, {NULL, NULL}};
    if (apr_initialize() != APR_SUCCESS || apr_pool_create(&outer, NULL) != APR_SUCCESS) {
        bench_fail("apr_initialize");
    }
    int result = bench_serve(argc, argv, works);
    apr_terminate();
    return result;
}
