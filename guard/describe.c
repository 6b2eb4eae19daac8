/* SPDX-License-Identifier: MIT */
/*
 * describe.c: what registrations hold, as text, for reports; and the list of those that ran in a panic that nobody recovers.
 *
 * A kind's describe is the program's or an adapter's: it may fail while a report is being made. It runs in a border of its own, what it
 * raises is dropped, and the kind's name stands there instead. It is never called for the report of its own failure.
 */
#include "internal.h"

typedef struct describing {
    const guard_kind *kind;
    const void *object;
    char *text;
    size_t size;
} describing;

static void describe_body(void *memory)
{
    const describing *what = memory;
    what->kind->describe(what->object, what->text, what->size);
}

void guard_kind_describe(const guard_kind *kind, const void *object, char *text, size_t size)
{
    static const char failed[] = " that cannot be described";
    const guard_stack *stack = guard_stack_own;
    const char *name = kind->name != NULL ? kind->name : "object";
    describing what = {kind, object, text, size};
    text[0] = '\0';
    if (kind->describe == NULL || stack == NULL || stack->held == HELD_WAITING) {
        guard_text_copy(text, size, name); /* a border would raise the held panic first */
        return;
    }
    int code = guard_run(describe_body, &what, NULL);
    text[size - 1] = '\0';
    if (code != 0) {
        guard_text_copy(text, size, name);
        size_t length = strlen(text);
        guard_text_copy(text + length, size - length, failed);
    } else if (text[0] == '\0') {
        guard_text_copy(text, size, name);
    }
}

/* ---------------------------------------------------------------------------------------------- what ran -- */

void guard_ran_note(guard_ran *ran, const guard_impl_record *record)
{
    uint32_t flags = record->flags;
    if ((flags & (GUARD_IMPL_DEAD | GUARD_IMPL_RESERVED | GUARD_IMPL_INERT | GUARD_IMPL_INHERITED)) ||
        !guard_record_is_due(flags, true)) {
        return;
    }
    if (ran->count++ >= RAN_MOST) {
        return;
    }
    guard_ran_one *one = &ran->first[ran->count - 1];
    one->place = record->place;
    one->text[0] = '\0';
    one->action = NULL;
    one->fn = NULL;
    if (flags & GUARD_IMPL_KIND) {
        one->action = record->action.kind->action;
        guard_kind_describe(record->action.kind, record->arg, one->text, sizeof one->text);
    } else {
        one->fn = (const void *)(uintptr_t)record->action.fn;
    }
}

static void ran_name(const guard_ran_one *one, char *text, size_t size)
{
    guard_frame frame;
    char escaped[4 * sizeof one->text];
    if (one->fn == NULL) {
        guard_text_escape(escaped, sizeof escaped, one->text);
        snprintf(text, size, "%s%s%s", one->action != NULL ? one->action : "", one->action != NULL ? " " : "", escaped);
        return;
    }
    /* The byte behind the first, for an address is taken for that behind a call. */
    if (guard_frame_find((const char *)one->fn + 1, &frame) && frame.function[0] != '\0') {
        guard_text_escape(escaped, sizeof escaped, frame.function);
        snprintf(text, size, "%s", escaped);
    } else {
        snprintf(text, size, "a function");
    }
}

size_t guard_ran_format(const guard_ran *ran, char *text, size_t size)
{
    char name[512];
    char more[40] = "";
    uint32_t listed = ran->count < RAN_MOST ? ran->count : RAN_MOST;
    size_t length = 0;
    if (ran->count == 0) {
        text[0] = '\0';
        return 0;
    }
    length += (size_t)snprintf(text, size, "%u defer%s ran: ", ran->count, ran->count == 1 ? "" : "s");
    for (uint32_t i = 0; i < listed && length < size; i++) {
        const guard_ran_one *one = &ran->first[i];
        const char *slash = strrchr(one->place->file, '/');
        ran_name(one, name, sizeof name);
        length += (size_t)snprintf(text + length, size - length, "%s%s (%.48s:%u)", i > 0 ? ", " : "", name,
                                   slash != NULL ? slash + 1 : one->place->file, one->place->line);
    }
    if (ran->count > listed) {
        snprintf(more, sizeof more, " and %u more", ran->count - listed);
    }
    if (length < size) {
        length += (size_t)snprintf(text + length, size - length, "%s\n", more);
    }
    return length < size ? length : size - 1;
}
