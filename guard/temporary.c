/* SPDX-License-Identifier: MIT */
/*
 * temporary.c: the names of files that a dying process removes.
 *
 *     FREE --register--> FILLING --> LISTED --forget--> FREE
 *                                      \--a fatal signal--> DYING, removed --forget--> FREE
 *
 * A signal handler reads this while other threads change it, so that there are no locks: each step is one exchange of a slot's
 * state, and the handler touches only what it took from LISTED. Between that and unlinkat the owner may close the directory and another thread
 * get its number: then a name that nobody else has (adapters choose 64 random bits) is looked for in the wrong directory.
 */
#include <unistd.h>

#include "internal.h"

enum { TEMPORARY_FREE, TEMPORARY_FILLING, TEMPORARY_LISTED, TEMPORARY_DYING };

/* 72 KiB of zeroed memory, of which a program touches what it uses. */
#define TEMPORARY_COUNT 256

typedef struct temporary_slot {
    uint32_t state;
    int directory;
    int flags;
    pid_t owner;    /* a child made by vfork or clone shares this memory, or has a copy of it, and is another process */
    unsigned forks; /* process ids are used again */
    char name[256];
} temporary_slot;

static temporary_slot temporary_slots[TEMPORARY_COUNT];

static bool slot_step(temporary_slot *slot, uint32_t from, uint32_t to)
{
    return __atomic_load_n(&slot->state, __ATOMIC_RELAXED) == from &&
           __atomic_compare_exchange_n(&slot->state, &from, to, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

int guard_temporary_register(int directory, const char *name, int flags)
{
    size_t length = name != NULL ? strnlen(name, sizeof temporary_slots->name) : 0;
    if (length == 0 || length == sizeof temporary_slots->name) {
        return 0;
    }
    for (int i = 0; i < TEMPORARY_COUNT; i++) {
        temporary_slot *slot = &temporary_slots[i];
        if (slot_step(slot, TEMPORARY_FREE, TEMPORARY_FILLING)) {
            slot->directory = directory;
            slot->flags = flags;
            slot->owner = getpid();
            slot->forks = guard_fork_count();
            memcpy(slot->name, name, length + 1);
            __atomic_store_n(&slot->state, TEMPORARY_LISTED, __ATOMIC_RELEASE);
            return i + 1;
        }
    }
    return 0;
}

void guard_temporary_forget(int temporary)
{
    if (temporary > 0 && temporary <= TEMPORARY_COUNT) {
        __atomic_store_n(&temporary_slots[temporary - 1].state, TEMPORARY_FREE, __ATOMIC_RELEASE);
    }
}

void guard_temporaries_remove(void)
{
    pid_t own = getpid();
    unsigned forks = guard_fork_count();
    for (int i = 0; i < TEMPORARY_COUNT; i++) {
        temporary_slot *slot = &temporary_slots[i];
        if (__atomic_load_n(&slot->state, __ATOMIC_ACQUIRE) == TEMPORARY_LISTED && slot->owner == own &&
            slot->forks == forks && slot_step(slot, TEMPORARY_LISTED, TEMPORARY_DYING)) {
            (void)unlinkat(slot->directory, slot->name, slot->flags);
        }
    }
}
