/* SPDX-License-Identifier: MIT */
#include "chaos.h"

#include <stddef.h>
#include <string.h>

#include <guard/guard_cancel.h>

#include "refusal.h"

/* The last one is left out where faults cannot be panics. */
const char *chaos_names[] = {"panic", "debit", "sleep", "kill", "null", NULL};

static const chaos_kind kinds[] = {CHAOS_PANIC, CHAOS_DEBIT, CHAOS_SLEEP, CHAOS_KILL, CHAOS_NULL};
enum { LAST = sizeof kinds / sizeof *kinds - 1 };

static int *volatile nowhere; /* volatile: a compiler that knew it could do anything with what comes after */

void chaos_open(int faults_are_panics)
{
    chaos_names[LAST] = faults_are_panics ? "null" : NULL;
}

chaos_kind chaos_read(const char *name)
{
    for (size_t i = 0; chaos_names[i] != NULL; i++) {
        if (strcmp(name, chaos_names[i]) == 0) {
            return kinds[i];
        }
    }
    if (strcmp(name, "null") == 0) {
        refuse(501, "X-Chaos: null needs faults as panics, which this machine does not have");
    }
    refuse(400, "X-Chaos is panic, null, debit, sleep or kill");
}

/* UBSan would find it first. */
__attribute__((no_sanitize("undefined"))) static void follow_null(void)
{
    *(volatile int *)nowhere = 1;
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
    case CHAOS_NULL:
        follow_null();
        break;
    default:
        break;
    }
}
