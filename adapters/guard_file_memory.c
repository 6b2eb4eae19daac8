/* SPDX-License-Identifier: MIT */
/*
 * guard_file_memory.c: memory from malloc that is freed with its scope.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "guard_file_internal.h"

static size_t memory_describe(const void *object, char *text, size_t size)
{
    int length = snprintf(text, size, "memory at %p", object);
    return length < 0 ? 0 : (size_t)length;
}

/* A child keeps it: no child rule. */
static const guard_kind memory_kind = {
    .name = "memory", .release = free, .describe = memory_describe, .flags = GUARD_KIND_HEAP};

/* Registers what malloc or its like gave; `size` only for the message. The registration was reserved. */
static void *memory_register(guard_scope *scope, void *memory, size_t size, guard_ticket *ticket,
                             const guard_place *place)
{
    if (memory == NULL) {
        guard_impl_panic(place, GUARD_MEMORY, ENOMEM, "no memory for %zu bytes", size);
    }
    guard_impl_file_register(scope, &memory_kind, memory, ticket, place);
    return memory;
}

void *guard_impl_memory_allocate(guard_scope *scope, size_t size, guard_ticket *ticket, const guard_place *place)
{
    guard_impl_reserve(scope, 1, place);
    return memory_register(scope, malloc(size != 0 ? size : 1), size, ticket, place);
}

void *guard_impl_memory_allocate_array(guard_scope *scope, size_t count, size_t size, guard_ticket *ticket,
                                       const guard_place *place)
{
    size_t whole;
    if (__builtin_mul_overflow(count, size, &whole)) {
        guard_impl_panic(place, GUARD_MEMORY, ENOMEM, "no memory for %zu times %zu bytes", count, size);
    }
    guard_impl_reserve(scope, 1, place);
    return memory_register(scope, whole != 0 ? calloc(count, size) : calloc(1, 1), whole, ticket, place);
}

void *guard_impl_memory_resize(guard_scope *scope, void *memory, size_t size, guard_ticket *ticket,
                               const guard_place *place)
{
    if (memory == NULL) {
        return guard_impl_memory_allocate(scope, size, ticket, place);
    }
    if (ticket == NULL || !guard_pending(*ticket) || guard_ticket_object(*ticket, &memory_kind) != memory) {
        guard_impl_misuse(place, GUARD_MISUSE_TICKET, "guard_memory_resize without the ticket of its memory");
        return memory;
    }
    guard_impl_reserve(scope, 1, place);
    void *resized = realloc(memory, size != 0 ? size : 1);
    if (resized == NULL) {
        guard_impl_panic(place, GUARD_MEMORY, ENOMEM, "no memory for %zu bytes", size);
    }
    /* The old registration names memory that may be gone: nothing may run between realloc and this. */
    guard_dismiss(*ticket);
    return memory_register(scope, resized, size, ticket, place);
}

char *guard_impl_memory_copy(guard_scope *scope, const char *text, guard_ticket *ticket, const guard_place *place)
{
    if (text == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "guard_memory_copy of NULL");
        return NULL;
    }
    guard_impl_reserve(scope, 1, place);
    return memory_register(scope, strdup(text), strlen(text) + 1, ticket, place);
}

char *guard_impl_memory_format(guard_scope *scope, guard_ticket *ticket, const guard_place *place, const char *format,
                               ...)
{
    guard_impl_reserve(scope, 1, place);
    char *text = NULL;
    va_list arguments;
    va_start(arguments, format);
    int length = vasprintf(&text, format, arguments);
    va_end(arguments);
    if (length < 0 && errno != ENOMEM) {
        guard_impl_panic_os(place, "cannot format \"%s\"", format);
    }
    return memory_register(scope, length < 0 ? NULL : text, strlen(format), ticket, place);
}
