/* SPDX-License-Identifier: MIT */
/*
 * context.c: what a thread works for at the moment.
 *
 *     VALUE_FREE ──guard_context_set──> VALUE_SET ──its scope ends──────────────> VALUE_FREE
 *                                          └──its scope is ended by a panic──> VALUE_LEFT ──┬─the service's call has ended──> VALUE_FREE
 *                                                                                           └─its place is needed───────────> VALUE_SET
 *
 * A value never moves: the record on its scope points at it. So the order in which they were set is not that of their places but of their
 * serial numbers. A panic has unwound all scopes when it is logged; what it left is therefore kept, with the panic's mark on it: a mark is
 * made of what a copy of the error has too, also one that became the cause of another.
 */
#include "internal.h"

static uint64_t mix(uint64_t hash, uint64_t with)
{
    hash = (hash ^ with) * 0x9e3779b97f4a7c15U;
    return hash ^ (hash >> 29);
}

/* Of the file as much as a cause keeps of it. */
static uint64_t panic_mark(int domain, int code, uint32_t line, const char *file)
{
    uint64_t hash = mix(mix(mix(1, (uint32_t)domain), (uint32_t)code), line);
    for (size_t i = 0; i < sizeof((guard_cause *)0)->file - 1 && file[i] != '\0'; i++) {
        hash = mix(hash, (unsigned char)file[i]);
    }
    return hash;
}

/* ----------------------------------------------------------------------------------------------- values -- */

static void value_release(void *arg)
{
    guard_context_value *value = arg;
    const guard_error *error = guard_panicking();
    value->state = error != NULL ? VALUE_LEFT : VALUE_FREE;
    if (error != NULL) {
        value->panic = panic_mark(error->domain, error->code, error->line, error->file);
        guard_stack_own->context->has_left = true;
    }
}

static size_t value_describe(const void *object, char *text, size_t size)
{
    const guard_context_value *value = object;
    return (size_t)snprintf(text, size, "context %s", value->key);
}

/* Fixed: it is this thread's. A forked child works on for the same. */
static const guard_kind value_kind = {.name = "context",
                                      .release = value_release,
                                      .child = value_release,
                                      .describe = value_describe,
                                      .flags = GUARD_KIND_HEAP | GUARD_KIND_FIXED};

static guard_context_state *state_here(void)
{
    return guard_stack_own != NULL ? guard_stack_own->context : NULL;
}

static guard_context_state *state_open(guard_context_state *state)
{
    memset(state, 0, sizeof *state);
    guard_stack_own->context = state;
    return state;
}

/* A free one, else the oldest that was left; NULL where all are set. */
static guard_context_value *value_find_place(guard_context_state *state)
{
    guard_context_value *oldest = NULL;
    for (size_t i = 0; i < GUARD_CONTEXT_VALUES; i++) {
        guard_context_value *value = &state->values[i];
        if (value->state == VALUE_FREE) {
            return value;
        }
        if (value->state == VALUE_LEFT && (oldest == NULL || value->serial < oldest->serial)) {
            oldest = value;
        }
    }
    return oldest;
}

int guard_context_set_at(guard_scope *scope, const char *key, const char *text, const guard_place *place)
{
    guard_stack_here();
    guard_raise_held();
    if (key == NULL || key[0] == '\0' || scope == NULL || guard_scope_is_owner(scope)) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "guard_context_set %s",
                          key == NULL || key[0] == '\0' ? "without a key" : "on an owner, or without a scope");
        return 0;
    }
    guard_impl_reserve(scope, 1, place);
    guard_context_state *state = state_here();
    if (state == NULL) {
        state = state_open(guard_allocate(sizeof *state));
    }
    guard_context_value *value = value_find_place(state);
    if (value == NULL) {
        return 0;
    }
    guard_text_copy(value->key, sizeof value->key, key);
    guard_text_copy(value->value, sizeof value->value, text != NULL ? text : "");
    value->is_hiding = text == NULL;
    value->serial = ++state->serial;
    value->state = VALUE_SET;
    guard_ticket ticket = guard_impl_defer_kind(scope, &value_kind, value, place);
    return ticket.record != NULL;
}

const char *guard_context_get(const char *key)
{
    const guard_context_state *state = state_here();
    const guard_context_value *newest = NULL;
    for (size_t i = 0; state != NULL && key != NULL && i < GUARD_CONTEXT_VALUES; i++) {
        const guard_context_value *value = &state->values[i];
        if (value->state == VALUE_SET && strncmp(value->key, key, sizeof value->key - 1) == 0 &&
            (newest == NULL || value->serial > newest->serial)) {
            newest = value;
        }
    }
    return newest != NULL && !newest->is_hiding ? newest->value : NULL;
}

/* ------------------------------------------------------------------------------------------- other threads -- */

struct guard_context {
    unsigned count;
    struct {
        char key[GUARD_CONTEXT_KEY_SIZE];
        char value[GUARD_CONTEXT_VALUE_SIZE];
    } values[GUARD_CONTEXT_VALUES];
};

guard_context *guard_context_copy(void)
{
    const guard_context_value *list[GUARD_CONTEXT_VALUES];
    unsigned count = guard_context_list(NULL, list);
    if (count == 0) {
        return NULL;
    }
    guard_context *copy = guard_allocate(sizeof *copy);
    copy->count = count;
    for (unsigned i = 0; i < count; i++) {
        memcpy(copy->values[i].key, list[i]->key, sizeof list[i]->key);
        memcpy(copy->values[i].value, list[i]->value, sizeof list[i]->value);
    }
    return copy;
}

void guard_context_enter(guard_scope *scope, const guard_context *context)
{
    for (unsigned i = 0; context != NULL && i < context->count; i++) {
        guard_context_set(scope, context->values[i].key, context->values[i].value);
    }
}

void guard_context_free(guard_context *context)
{
    guard_deallocate(context);
}

/* -------------------------------------------------------------------------------------------- for the log -- */

guard_context_mark guard_context_begin(void)
{
    guard_context_state *state = state_here();
    if (state == NULL) {
        void *memory = guard_stack_make() != NULL ? guard_memory_take(sizeof *state) : NULL;
        if (memory == NULL) {
            return (guard_context_mark){0, 0, false};
        }
        state = state_open(memory);
    }
    guard_context_mark mark = {state->serial, state->undone_base, true};
    state->calls++;
    state->undone_base = state->undone_count;
    return mark;
}

void guard_context_end(guard_context_mark mark)
{
    guard_context_state *state = state_here();
    if (!mark.has_begun || state == NULL) {
        return;
    }
    for (size_t i = 0; state->has_left && i < GUARD_CONTEXT_VALUES; i++) {
        if (state->values[i].state == VALUE_LEFT && state->values[i].serial > mark.serial) {
            state->values[i].state = VALUE_FREE;
        }
    }
    state->calls--;
    state->has_left = state->has_left && state->calls > 0;
    state->undone_count = state->undone_base;
    state->undone_base = mark.undone_base;
}

int guard_context_in_call(void)
{
    const guard_context_state *state = state_here();
    return state != NULL && state->calls > 0;
}

void guard_context_undone(const char *format, ...)
{
    guard_context_state *state = state_here();
    if (!guard_context_in_call()) {
        return;
    }
    if (state->undone_count < CONTEXT_UNDONE) {
        char *text = state->undone[state->undone_count];
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text, sizeof state->undone[0], format, arguments);
        va_end(arguments);
    }
    state->undone_count++;
}

/* Whether the panic that left the value is this error or one of its causes. */
static bool value_belongs(const guard_context_value *value, const guard_error *error)
{
    if (value->state != VALUE_LEFT || error == NULL) {
        return value->state == VALUE_SET;
    }
    bool belongs = value->panic == panic_mark(error->domain, error->code, error->line, error->file);
    for (unsigned i = 0; !belongs && i < error->cause_count && i < GUARD_CAUSES; i++) {
        const guard_cause *cause = &error->causes[i];
        belongs = value->panic == panic_mark(cause->domain, cause->code, cause->line, cause->file);
    }
    return belongs;
}

/* Puts it where it belongs by its serial; the older one of the same key goes. Returns the new count. */
static unsigned list_insert(const guard_context_value **list, unsigned count, const guard_context_value *value)
{
    for (unsigned i = 0; i < count; i++) {
        if (strcmp(list[i]->key, value->key) == 0) {
            if (list[i]->serial > value->serial) {
                return count;
            }
            memmove(&list[i], &list[i + 1], (--count - i) * sizeof *list);
            break;
        }
    }
    unsigned at = count;
    for (; at > 0 && list[at - 1]->serial > value->serial; at--) {
        list[at] = list[at - 1];
    }
    list[at] = value;
    return count + 1;
}

unsigned guard_context_list(const guard_error *error, const guard_context_value *list[GUARD_CONTEXT_VALUES])
{
    const guard_context_state *state = state_here();
    unsigned count = 0;
    for (size_t i = 0; state != NULL && i < GUARD_CONTEXT_VALUES; i++) {
        if (value_belongs(&state->values[i], error)) {
            count = list_insert(list, count, &state->values[i]);
        }
    }
    unsigned kept = 0;
    for (unsigned i = 0; i < count; i++) {
        if (!list[i]->is_hiding) {
            list[kept++] = list[i];
        }
    }
    return kept;
}
