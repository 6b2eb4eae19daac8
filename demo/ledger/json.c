/* SPDX-License-Identifier: MIT */
#include "json.h"

#include <errno.h>

static void release_json(void *value)
{
    json_decref(value);
}

static const guard_kind json_kind = {.name = "json value", .release = release_json, .flags = GUARD_KIND_HEAP};

static void need_memory(int failed)
{
    if (failed) {
        guard_panic_in(GUARD_MEMORY, ENOMEM, "no memory for a JSON value");
    }
}

json_t *json_own(guard_scope *scope, json_t *value)
{
    need_memory(value == NULL);
    guard_defer_kind(scope, &json_kind, value);
    return value;
}

void json_append(json_t *array, json_t *value)
{
    need_memory(json_array_append_new(array, value) != 0);
}

void json_set(json_t *object, const char *key, json_t *value)
{
    need_memory(json_object_set_new(object, key, value) != 0);
}

char *json_text(const json_t *value)
{
    char *text = json_dumps(value, JSON_COMPACT);
    need_memory(text == NULL);
    return text;
}
