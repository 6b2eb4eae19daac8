/* SPDX-License-Identifier: MIT */
#include "store.h"

#include <guard/guard_file.h>

void store_run_body(guard_tx *tx, void *body)
{
    store_body *b = body;
    b->work.tx = tx;
    b->fn(&b->work, b->arg);
}

const char *store_seed_name(guard_scope *scope, uint64_t n)
{
    static const char *const names[] = {"Ada", "Barbara", "Claude", "Donald", "Edsger", "Frances", "Grace", "Hedy"};
    const uint64_t count = sizeof names / sizeof *names;
    return n < count
               ? names[n]
               : guard_memory_format(scope, NULL, "%s %llu", names[n % count], (unsigned long long)(n / count + 1));
}
