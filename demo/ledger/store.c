/* SPDX-License-Identifier: MIT */
#include "store.h"

#include <guard/guard_file.h>

#include "json.h"

void store_run_body(guard_tx *tx, void *body)
{
    store_body *b = body;
    b->work.tx = tx;
    b->fn(&b->work, b->arg);
}

void store_list_account(json_t *list, int64_t id, const char *name, int64_t balance)
{
    json_append(list, json_pack("{sIsssI}", "id", (json_int_t)id, "name", name, "balance", (json_int_t)balance));
}

void store_list_transfer(json_t *list, int64_t id, int64_t from, int64_t to, int64_t amount, const char *key)
{
    json_append(list, json_pack("{sIsIsIsIss}", "id", (json_int_t)id, "from", (json_int_t)from, "to", (json_int_t)to,
                                "amount", (json_int_t)amount, "key", key));
}

const char *store_seed_name(guard_scope *scope, uint64_t n)
{
    static const char *const names[] = {"Ada", "Barbara", "Claude", "Donald", "Edsger", "Frances", "Grace", "Hedy"};
    const uint64_t count = sizeof names / sizeof *names;
    return n < count
               ? names[n]
               : guard_memory_format(scope, NULL, "%s %llu", names[n % count], (unsigned long long)(n / count + 1));
}
