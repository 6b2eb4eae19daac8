/* SPDX-License-Identifier: MIT */
/*
 * plan.h: which field of a row goes to which column of the table.
 */
#ifndef LOAD_PLAN_H
#define LOAD_PLAN_H

#include <guard/guard.h>
#include <stddef.h>

#include "options.h"
#include "reader.h"

/* A column of the table that can be given a value. */
typedef struct load_column {
    const char *name;
    const char *type; /* as declared; "" for none */
} load_column;

#define PLAN_SKIP ((size_t)-1)

typedef struct load_plan {
    size_t field_count; /* a row has so many */
    size_t *columns;    /* of each field, the index of its column, or PLAN_SKIP */
} load_plan;

/*
 * The plan for a file with this header (NULL with --no-header); memory is the scope's. Panics with EXIT_FAILED where the header,
 * --map and the table do not fit, naming the file and the column.
 */
const load_plan *plan_make(guard_scope *scope, const load_options *options, const char *file, const load_row *header,
                           const load_column *columns, size_t column_count);

#endif
