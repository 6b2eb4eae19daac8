/* SPDX-License-Identifier: MIT */
#include "chaos.h"

#include <stddef.h>
#include <string.h>

#include <guard/guard_cancel.h>

#include "refusal.h"

chaos_kind chaos_read(const char *name)
{
    static const char *const names[] = {[CHAOS_PANIC] = "panic",
                                        [CHAOS_NULL] = "null",
                                        [CHAOS_DEBIT] = "debit",
                                        [CHAOS_SLEEP] = "sleep",
                                        [CHAOS_KILL] = "kill"};
    for (size_t i = CHAOS_PANIC; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) != 0) {
            continue;
        }
        if (i == CHAOS_NULL) {
            refuse(501, "X-Chaos: null needs faults as panics, which this build does not have");
        }
        return (chaos_kind)i;
    }
    refuse(400, "X-Chaos is panic, null, debit, sleep or kill");
}

void chaos_before(chaos_kind kind)
{
    if (kind == CHAOS_PANIC) {
        guard_panic(1, "chaos: a panic in the request");
    }
}

void chaos_after_debit(chaos_kind kind)
{
    switch (kind) {
    case CHAOS_DEBIT:
        guard_panic(2, "chaos: failed after the debit");
    case CHAOS_SLEEP:
        guard_sleep(-1);
        break;
    default:
        break;
    }
}
