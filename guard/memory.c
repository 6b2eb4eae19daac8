/* SPDX-License-Identifier: MIT */
/* memory.c: where the library's memory comes from. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

static void *(*memory_allocate)(size_t) = malloc;
static void (*memory_release)(void *) = free;

void guard_allocator(void *(*allocate)(size_t), void (*release)(void *))
{
    if ((allocate == NULL) != (release == NULL)) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "guard_allocator needs both functions or neither");
        return;
    }
    memory_allocate = allocate != NULL ? allocate : malloc;
    memory_release = release != NULL ? release : free;
}

void *guard_memory_take(size_t size)
{
    return memory_allocate(size != 0 ? size : 1);
}

void *guard_allocate(size_t size)
{
    void *memory = guard_memory_take(size);
    if (memory == NULL) {
        guard_panic_in(GUARD_MEMORY, ENOMEM, "out of memory for %zu bytes", size);
    }
    return memory;
}

void guard_deallocate(void *memory)
{
    if (memory != NULL) {
        memory_release(memory);
    }
}
