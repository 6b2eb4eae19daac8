/* SPDX-License-Identifier: MIT */
/*
 * schema.h: the SQL of --schema, which makes the table.
 */
#ifndef LOAD_SCHEMA_H
#define LOAD_SCHEMA_H

#include <guard/guard.h>

/* The file as text, the scope's. Panics where it cannot be read. */
const char *schema_read(guard_scope *scope, const char *file);

#endif
