/* SPDX-License-Identifier: MIT */
/* talloc: a context for each scope, with a child that has a destructor for each cleanup, as Samba does. */
#include <stdint.h>
#include <talloc.h>

#include "bench.h"

typedef struct cleanup {
    uint64_t *sum;
} cleanup;

static int add(cleanup *mine)
{
    bench_add(mine->sum);
    return 0;
}

static __attribute__((noinline)) void scope_turn(uint64_t *sum, int cleanups)
{
    void *scope = talloc_new(NULL);
    for (int i = 0; i < cleanups; i++) {
        cleanup *one = talloc(scope, cleanup);
        if (one == NULL) {
            bench_fail("out of memory");
        }
        one->sum = sum;
        talloc_set_destructor(one, add);
    }
    talloc_free(scope);
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
    return bench_serve(argc, argv, works);
}
