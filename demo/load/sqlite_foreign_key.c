/* SPDX-License-Identifier: MIT */
/*
 * SQLite says "FOREIGN KEY constraint failed" and no more. A person wants to know which: each key of the table is looked up
 * with the row's values, by a query that is prepared when the first row is rejected.
 */
#include "sqlite_target.h"

#include <stdio.h>
#include <string.h>

#include <guard/guard_file.h>

typedef struct foreign_key {
    const char *parent;
    const char *columns;         /* of the parent, for the reason */
    guard_sqlite_stmt *lookup;   /* finds a row of the parent that has the values */
    sqlite_parameter **children; /* the parameters that hold the values */
    size_t count;
    struct foreign_key *next;
} foreign_key;

struct sqlite_foreign_keys {
    guard_scope *scope;
    load_target *target;
    int read;
    foreign_key *first;
};

sqlite_foreign_keys *sqlite_foreign_keys_open(guard_scope *scope, load_target *target)
{
    sqlite_foreign_keys *keys = guard_memory_allocate_array(scope, 1, sizeof *keys, NULL);
    keys->scope = scope;
    keys->target = target;
    return keys;
}

/* ----------------------------------------------------------------------------------------------- reading -- */

static sqlite_parameter *find_parameter(load_target *target, const char *column)
{
    for (size_t i = 0; i < target->parameter_count; i++) {
        if (sqlite3_stricmp(target->parameters[i].column, column) == 0) {
            return &target->parameters[i];
        }
    }
    return NULL;
}

typedef struct lookup_preparing {
    sqlite_foreign_keys *keys;
    foreign_key *key;
    const char *sql;
} lookup_preparing;

static void prepare_lookup(void *arg)
{
    const lookup_preparing *p = arg;
    p->key->lookup = guard_sqlite_prepare(p->keys->scope, p->keys->target->db, p->sql);
}

/*
 * The key with this number: NULL if one of its columns is not loaded. A column that the declaration leaves out is of the parent's
 * primary key.
 */
static foreign_key *read_key(sqlite_foreign_keys *keys, int64_t number)
{
    GUARD_AUTO(s);
    load_target *target = keys->target;
    guard_sqlite_stmt *query = guard_sqlite_prepare(
        s, target->db,
        "SELECT k.\"table\", k.\"from\", coalesce(k.\"to\", (SELECT name FROM pragma_table_info(k.\"table\") WHERE pk "
        "= k.seq + 1))"
        " FROM pragma_foreign_key_list(?1) k WHERE k.id = ?2 ORDER BY k.seq");
    guard_sqlite_bind_text(query, 1, target->table, -1);
    guard_sqlite_bind_int64(query, 2, number);
    foreign_key *key = guard_memory_allocate_array(keys->scope, 1, sizeof *key, NULL);
    key->children = guard_memory_allocate_array(keys->scope, target->parameter_count + 1, sizeof *key->children, NULL);
    const char *where = "";
    key->columns = "";
    while (guard_sqlite_step(query)) {
        sqlite_parameter *child = find_parameter(target, guard_sqlite_column_text(query, 1));
        const char *column = guard_sqlite_column_text(query, 2);
        if (child == NULL || column == NULL || key->count == target->parameter_count) {
            return NULL;
        }
        key->children[key->count++] = child;
        key->parent = guard_memory_copy(keys->scope, guard_sqlite_column_text(query, 0), NULL);
        key->columns = guard_memory_format(keys->scope, NULL, "%s%s%s", key->columns, key->count > 1 ? ", " : "",
                                           column);
        where = guard_memory_format(s, NULL, "%s%s%s = ?%zu", where, key->count > 1 ? " AND " : "",
                                    sqlite_identifier(s, column), key->count);
    }
    /* A parent that is missing, or lacks the columns, is an error of every row, which SQLite reports by itself. */
    const char *sql = guard_memory_format(s, NULL, "SELECT 1 FROM %s WHERE %s", sqlite_identifier(s, key->parent),
                                          where);
    lookup_preparing preparing = {keys, key, sql};
    return guard_run(prepare_lookup, &preparing, NULL) == 0 ? key : NULL;
}

static void read_keys(sqlite_foreign_keys *keys)
{
    GUARD_AUTO(s);
    guard_sqlite_stmt *query = guard_sqlite_prepare(
        s, keys->target->db, "SELECT DISTINCT id FROM pragma_foreign_key_list(?1) ORDER BY id DESC");
    guard_sqlite_bind_text(query, 1, keys->target->table, -1);
    while (guard_sqlite_step(query)) {
        foreign_key *key = read_key(keys, guard_sqlite_column_int64(query, 0));
        if (key != NULL) {
            key->next = keys->first;
            keys->first = key;
        }
    }
}

/* -------------------------------------------------------------------------------------------- explaining -- */

static int is_violated(load_target *target, const foreign_key *key, const load_row *row)
{
    for (size_t i = 0; i < key->count; i++) {
        if (sqlite_row_is_null(target, &row->fields[key->children[i]->field]) ||
            !sqlite_row_bind(target, key->lookup, (int)i + 1, key->children[i], row)) {
            return 0;
        }
    }
    int found = guard_sqlite_step(key->lookup);
    guard_sqlite_reset(key->lookup);
    return !found;
}

/* The first key that the row violates, or NULL. */
static const foreign_key *find_violated(sqlite_foreign_keys *keys, const load_row *row)
{
    if (!keys->read) {
        keys->read = 1;
        read_keys(keys);
    }
    const foreign_key *key = keys->first;
    while (key != NULL && !is_violated(keys->target, key, row)) {
        key = key->next;
    }
    return key;
}

int sqlite_foreign_keys_violated(sqlite_foreign_keys *keys, const load_row *row)
{
    return find_violated(keys, row) != NULL;
}

void sqlite_foreign_keys_explain(sqlite_foreign_keys *keys, const load_row *row, char *reason, size_t size)
{
    const foreign_key *key = find_violated(keys, row);
    if (key == NULL) {
        return;
    }
    char values[160] = "";
    char names[160] = "";
    for (size_t i = 0; i < key->count; i++) {
        size_t used = strlen(values);
        const char *text = row->fields[key->children[i]->field].text;
        snprintf(values + used, sizeof values - used, "%s\"%s\"", i > 0 ? ", " : "", text == NULL ? "" : text);
        used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", i > 0 ? ", " : "", key->children[i]->column);
    }
    snprintf(reason, size, "FOREIGN KEY constraint failed: %s %s is not in %s (%s)", names, values, key->parent,
             key->columns);
}
