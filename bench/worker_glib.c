/* SPDX-License-Identifier: MIT */
/* GLib: g_auto with a type of one's own. It runs at the end of a block and knows no panics. */
#include <glib.h>

#include "bench.h"

typedef uint64_t total;

static void total_clear(total *sum)
{
    bench_add(sum);
}

G_DEFINE_AUTOPTR_CLEANUP_FUNC(total, total_clear)

static __attribute__((noinline)) void scope_defer_turn(uint64_t *sum)
{
    g_autoptr(total) one = sum;
    (void)one;
}

static uint64_t scope_defer(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        scope_defer_turn(&sum);
    }
    return sum;
}

static __attribute__((noinline)) void scope_ten_turn(uint64_t *sum)
{
    g_autoptr(total) a = sum;
    g_autoptr(total) b = sum;
    g_autoptr(total) c = sum;
    g_autoptr(total) d = sum;
    g_autoptr(total) e = sum;
    g_autoptr(total) f = sum;
    g_autoptr(total) g = sum;
    g_autoptr(total) h = sum;
    g_autoptr(total) i = sum;
    g_autoptr(total) j = sum;
    (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h, (void)i, (void)j;
}

static uint64_t scope_ten(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        scope_ten_turn(&sum);
    }
    return sum;
}

int main(int argc, char **argv)
{
    static const bench_work works[] = {{"scope-defer", scope_defer}, {"scope-ten", scope_ten}, {NULL, NULL}};
    return bench_serve(argc, argv, works);
}
