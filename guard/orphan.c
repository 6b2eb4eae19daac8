/* SPDX-License-Identifier: MIT */
/*
 * orphan.c: registrations whose scope was passed without being run: by a foreign longjmp, or at the end of a thread
 * (pthread_exit, pthread_cancel) by code that was built without -fexceptions.
 *
 *     on a scope --the scope's frame is gone--> orphan --dismissed, released, moved--> as from any scope
 *                                                     \--the thread (or fiber) ends--> released if its kind allows it, else reported
 *
 * The frame of such a scope may have been written over, so the scope is never read. Its records are on the heap, and each names its scope:
 * what lies on a dead scope is found by walking the pool. Nothing of an orphan runs before the thread's end: what its function
 * would touch may be gone.
 *
 * Invariant: between calls no record of a pool carries RECORD_FREE or RECORD_FOLLOWS.
 */
#include "internal.h"

/* Marks for the walk; no registration has this bit. */
#define RECORD_FOLLOWS 0x80000000U

/* How many of them a report names. */
#define REPORT_MOST 4U

/* --------------------------------------------------------------------------------------------- the walk -- */

typedef struct orphan_range {
    uintptr_t low;
    uintptr_t high;
} orphan_range;

typedef void orphan_visit(guard_impl_record *record, const orphan_range *range, void *arg);

static bool orphan_is_one(const guard_impl_record *record, const orphan_range *range)
{
    return record->flags != RECORD_FREE && !(record->flags & GUARD_IMPL_INERT) &&
           (uintptr_t)record->scope >= range->low && (uintptr_t)record->scope < range->high;
}

static void orphans_visit(guard_stack *stack, const orphan_range *range, orphan_visit *visit, void *arg)
{
    for (uint32_t i = 0; i < stack->pool.first_count; i++) {
        if (orphan_is_one(&stack->pool.first[i], range)) {
            visit(&stack->pool.first[i], range, arg);
        }
    }
    for (guard_chunk *chunk = stack->pool.chunks; chunk != NULL; chunk = chunk->next) {
        for (uint32_t i = 0; i < chunk->count; i++) {
            if (orphan_is_one(&chunk->records[i], range)) {
                visit(&chunk->records[i], range, arg);
            }
        }
    }
}

static void orphan_mark_next(guard_impl_record *record, const orphan_range *range, void *arg)
{
    (void)range;
    (void)arg;
    if (record->next != NULL) {
        record->next->flags |= RECORD_FOLLOWS;
    }
}

/* The newest of a scope's list has no mark; the innermost scope has the lowest address. */
static void orphan_pick(guard_impl_record *record, const orphan_range *range, void *arg)
{
    (void)range;
    guard_impl_record **best = arg;
    if (!(record->flags & RECORD_FOLLOWS) && (*best == NULL || (uintptr_t)record->scope < (uintptr_t)(*best)->scope)) {
        *best = record;
    }
}

static void orphan_give_reserved(guard_stack *stack, guard_impl_record *record)
{
    guard_impl_record *next = record->arg;
    while (record != NULL) {
        guard_pool_give(&stack->pool, record);
        record->flags = RECORD_FREE;
        record = next;
        next = record != NULL ? record->next : NULL;
    }
}

typedef struct orphan_nearest {
    const guard_stack *stack;
    guard_scope *scope;
} orphan_nearest;

/* Appends a scope's list behind **tail; returns its length without what was dismissed. What is found names no scope for now. */
static uint32_t orphan_adopt(guard_stack *stack, guard_impl_record *record, guard_impl_record ***tail)
{
    uint32_t count = 0;
    while (record != NULL) {
        guard_impl_record *next = record->next;
        record->flags &= ~RECORD_FOLLOWS;
        record->scope = NULL;
        if (record->flags & GUARD_IMPL_DEAD) {
            guard_pool_give(&stack->pool, record);
            record->flags = RECORD_FREE;
        } else if (record->flags & GUARD_IMPL_RESERVED) {
            orphan_give_reserved(stack, record);
        } else {
            **tail = record;
            *tail = &record->next;
            count++;
        }
        record = next;
    }
    **tail = NULL;
    return count;
}

static void records_name(guard_impl_record *record, guard_scope *scope)
{
    for (; record != NULL; record = record->next) {
        record->scope = scope;
    }
}

static void records_flag(guard_impl_record *record, uint32_t flags)
{
    for (; record != NULL; record = record->next) {
        record->flags = flags;
    }
}

uint32_t guard_orphans_collect(guard_stack *stack, uintptr_t low, uintptr_t high)
{
    orphan_range range = {low != 0 ? low : 1, high};
    guard_impl_record **tail = &stack->orphans.head;
    uint32_t count = 0;
    records_name(stack->orphans.head, NULL); /* not to be found again */
    while (*tail != NULL) {
        tail = &(*tail)->next; /* a foreign unwind goes outwards: those that it passed before were inside of these */
    }
    records_flag(stack->hot.free, RECORD_FREE);
    orphans_visit(stack, &range, orphan_mark_next, NULL);
    for (;;) {
        guard_impl_record *head = NULL;
        orphans_visit(stack, &range, orphan_pick, &head);
        if (head == NULL) {
            break;
        }
        count += orphan_adopt(stack, head, &tail);
    }
    records_flag(stack->hot.free, 0);
    records_name(stack->orphans.head, &stack->orphans);
    return count;
}

static void orphan_pick_sound(guard_impl_record *record, const orphan_range *range, void *arg)
{
    orphan_nearest *nearest = arg;
    guard_scope *scope = record->scope;
    (void)range;
    if (scope != &nearest->stack->orphans && guard_scope_can_run(nearest->stack, scope) &&
        (nearest->scope == NULL || (uintptr_t)scope < (uintptr_t)nearest->scope)) {
        nearest->scope = scope;
    }
}

guard_scope *guard_orphans_beyond(guard_stack *stack, uintptr_t low, uintptr_t high)
{
    orphan_range range = {low + 1, high};
    orphan_nearest nearest = {stack, NULL};
    records_flag(stack->hot.free, RECORD_FREE);
    orphans_visit(stack, &range, orphan_pick_sound, &nearest);
    records_flag(stack->hot.free, 0);
    return nearest.scope;
}

bool guard_thread_bounds(uintptr_t *low, uintptr_t *high)
{
    pthread_attr_t attributes;
    void *address;
    size_t size;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0) {
        return false;
    }
    int failed = pthread_attr_getstack(&attributes, &address, &size);
    pthread_attr_destroy(&attributes);
    *low = (uintptr_t)address;
    *high = *low + size;
    return failed == 0;
}

int guard_orphans_below(guard_stack *stack, const void *frame)
{
    uintptr_t low;
    uintptr_t high;
    /* A fiber's frames, those of a handler on an alternate stack, and AddressSanitizer's fake ones lie elsewhere. */
    if (!guard_thread_bounds(&low, &high) || (uintptr_t)frame < low || (uintptr_t)frame >= high) {
        return -1;
    }
    return (int)guard_orphans_collect(stack, low, (uintptr_t)frame);
}

/* ------------------------------------------------------------------------------------------------- the end -- */

typedef struct orphan_report {
    char text[400];
    size_t length;
    uint32_t count;
} orphan_report;

static void report_add(orphan_report *report, const guard_impl_record *record)
{
    if (report->count++ >= REPORT_MOST) {
        return;
    }
    const char *file = strrchr(record->place->file, '/');
    const char *name = record->flags & GUARD_IMPL_KIND ? record->action.kind->name : "function";
    int length = snprintf(report->text + report->length, sizeof report->text - report->length, "%s%.32s at %.48s:%u",
                          report->length > 0 ? ", " : "", name, file != NULL ? file + 1 : record->place->file,
                          record->place->line);
    if (length > 0) {
        report->length += (size_t)length;
    }
}

static void orphan_release(const guard_kind *kind, void *object)
{
    guard_error error;
    if (guard_run(kind->release, object, &error) != 0) {
        guard_note("at the end of a thread, the release of a %s failed: %s", kind->name, error.message);
    }
}

void guard_orphans_release(guard_stack *stack)
{
    orphan_report report = {.count = 0};
    guard_scope *orphans = &stack->orphans;
    stack->hot.top = orphans;
    orphans->flags = SCOPE_CLOSING; /* masked, as every deferred function is */
    while (orphans->head != NULL) {
        guard_impl_record *record = orphans->head;
        uint32_t flags = record->flags;
        orphans->head = record->next;
        if ((flags & GUARD_IMPL_KIND) &&
            (flags & GUARD_IMPL_INHERITED || record->action.kind->flags & GUARD_KIND_HEAP)) {
            const guard_kind *kind = record->action.kind;
            void *object = record->arg;
            guard_pool_give(&stack->pool, record);
            if (!(flags & GUARD_IMPL_INHERITED)) {
                guard_word_add(&stack->hot.ran, 1);
                orphan_release(kind, object);
            }
        } else {
            report_add(&report, record);
            guard_record_drop(&stack->pool, record);
            guard_pool_give(&stack->pool, record);
        }
    }
    stack->hot.top = NULL;
    if (report.count > 0) {
        guard_note("%u deferred %s not run, for the code that registered %s was left without unwinding: %s%s",
                   report.count, report.count == 1 ? "function was" : "functions were",
                   report.count == 1 ? "it" : "them", report.text, report.count > REPORT_MOST ? ", ..." : "");
    }
}
