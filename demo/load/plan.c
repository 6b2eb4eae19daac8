/* SPDX-License-Identifier: MIT */
#include "plan.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include <guard/guard_file.h>

typedef struct load_planning {
    const load_options *options;
    const char *file;
    const load_column *columns;
    size_t column_count;
    load_plan *plan;
} load_planning;

/* The column of this name, else the only one whose name differs in case, else PLAN_SKIP. */
static size_t find_column(const load_planning *p, const char *name)
{
    size_t found = PLAN_SKIP;
    for (size_t i = 0; i < p->column_count; i++) {
        if (strcmp(p->columns[i].name, name) == 0) {
            return i;
        }
        if (strcasecmp(p->columns[i].name, name) == 0) {
            found = i;
        }
    }
    return found;
}

static const load_mapping *find_mapping(const load_options *o, const char *name)
{
    for (size_t i = 0; i < o->map_count; i++) {
        if (strcmp(o->map[i].name, name) == 0) {
            return &o->map[i];
        }
    }
    return NULL;
}

static void refuse_twice(const load_planning *p, size_t field)
{
    for (size_t i = 0; i < field; i++) {
        if (p->plan->columns[field] != PLAN_SKIP && p->plan->columns[i] == p->plan->columns[field]) {
            guard_panic(EXIT_FAILED, "%s: two of its columns go to column \"%s\" of table \"%s\"", p->file,
                        p->columns[p->plan->columns[field]].name, p->options->table);
        }
    }
}

static void plan_field(const load_planning *p, size_t field, const char *name)
{
    const load_mapping *mapping = find_mapping(p->options, name);
    const char *wanted = mapping != NULL ? mapping->column : name;
    p->plan->columns[field] = PLAN_SKIP;
    if (mapping == NULL || *wanted != '\0') {
        p->plan->columns[field] = find_column(p, wanted);
        if (p->plan->columns[field] == PLAN_SKIP) {
            guard_panic(EXIT_FAILED, "%s: table \"%s\" has no column \"%s\"%s", p->file, p->options->table, wanted,
                        mapping != NULL ? " (--map)" : "");
        }
    }
    refuse_twice(p, field);
}

static void plan_by_header(const load_planning *p, const load_row *header)
{
    const load_options *o = p->options;
    if (header->fault != ROW_SOUND) {
        guard_panic(EXIT_FAILED, "%s: its header line cannot be read: %s", p->file, header->reason);
    }
    for (size_t m = 0; m < o->map_count; m++) {
        size_t i = 0;
        while (i < header->count &&
               (header->fields[i].text == NULL || strcmp(o->map[m].name, header->fields[i].text) != 0)) {
            i++;
        }
        if (i == header->count) {
            guard_panic(EXIT_FAILED, "%s: its header has no column \"%s\" (--map)", p->file, o->map[m].name);
        }
    }
    for (size_t i = 0; i < header->count; i++) {
        const char *name = header->fields[i].text;
        plan_field(p, i, name == NULL ? "" : name);
    }
}

static void plan_by_number(const load_planning *p)
{
    for (size_t i = 0; i < p->plan->field_count; i++) {
        char number[24];
        snprintf(number, sizeof number, "%zu", i + 1);
        if (p->options->map_count == 0) {
            p->plan->columns[i] = i;
        } else if (find_mapping(p->options, number) != NULL) {
            plan_field(p, i, number);
        } else {
            guard_panic(EXIT_FAILED, "%s: with --no-header, --map names every field by its number; %s is missing",
                        p->file, number);
        }
    }
}

const load_plan *plan_make(guard_scope *scope, const load_options *options, const char *file, const load_row *header,
                           const load_column *columns, size_t column_count)
{
    load_plan *plan = guard_memory_allocate_array(scope, 1, sizeof *plan, NULL);
    load_planning p = {options, file, columns, column_count, plan};
    plan->field_count = header != NULL ? header->count : options->map_count > 0 ? options->map_count : column_count;
    if (plan->field_count > READER_FIELDS) {
        guard_panic(EXIT_FAILED, "%s: its header has %zu columns", file, plan->field_count);
    }
    plan->columns = guard_memory_allocate_array(scope, plan->field_count, sizeof *plan->columns, NULL);
    if (header != NULL) {
        plan_by_header(&p, header);
    } else {
        plan_by_number(&p);
    }
    size_t loaded = 0;
    for (size_t i = 0; i < plan->field_count; i++) {
        loaded += plan->columns[i] != PLAN_SKIP;
    }
    if (loaded == 0) {
        guard_panic(EXIT_FAILED, "%s: --map leaves out all of its columns", file);
    }
    return plan;
}
