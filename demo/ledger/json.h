/* SPDX-License-Identifier: MIT */
/*
 * json.h: values of jansson that belong to a scope.
 */
#ifndef LEDGER_JSON_H
#define LEDGER_JSON_H

#include <guard/guard.h>
#include <jansson.h>

/* Gives the scope a new value, which jansson returned; panics with GUARD_MEMORY where that is NULL. Returns it. */
json_t *json_own(guard_scope *scope, json_t *value);

/* Appends a new value to an array, or sets it in an object; both take it over, and panic with GUARD_MEMORY. */
void json_append(json_t *array, json_t *value);
void json_set(json_t *object, const char *key, json_t *value);

/* The value as text in one line, for free(3). Panics with GUARD_MEMORY. */
char *json_text(const json_t *value);

#endif
