/* SPDX-License-Identifier: MIT */
#include "pq_target.h"

#include <stdlib.h>
#include <string.h>

#include <guard/guard_file.h>

#include "schema.h"

#define INSUFFICIENT_PRIVILEGE "42501"

/* ------------------------------------------------------------------------------------------------- table -- */

typedef struct table_search {
    guard_scope *scope;
    load_target *target;
    int found;
} table_search;

static void read_columns(guard_scope *scope, load_target *target, guard_pq *pq)
{
    GUARD_AUTO(s);
    PGresult *rows = pq_query(
        s, pq,
        "SELECT attname, format_type(atttypid, atttypmod), '\"' || replace(attname, '\"', '\"\"') || '\"' FROM "
        "pg_attribute WHERE "
        "attrelid = $1::oid AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
        1, &target->oid);
    target->column_count = (size_t)PQntuples(rows);
    target->columns = guard_memory_allocate_array(scope, target->column_count + 1, sizeof *target->columns, NULL);
    target->column_names = guard_memory_allocate_array(scope, target->column_count + 1, sizeof *target->column_names,
                                                       NULL);
    for (size_t i = 0; i < target->column_count; i++) {
        target->column_names[i] = guard_memory_copy(scope, PQgetvalue(rows, (int)i, 2), NULL);
        target->columns[i].name = guard_memory_copy(scope, PQgetvalue(rows, (int)i, 0), NULL);
        target->columns[i].type = guard_memory_copy(scope, PQgetvalue(rows, (int)i, 1), NULL);
    }
}

/* The name as it stands, else as SQL: in another case, with a schema. */
static void find_table(guard_tx *tx, void *arg)
{
    static const char sql[] =
        "SELECT c.oid, n.nspname, c.relname, c.relkind IN ('r', 'p'), EXISTS (SELECT FROM pg_constraint k WHERE "
        "k.contype = 'f' AND k.conrelid = c.oid AND k.confrelid = c.oid), EXISTS (SELECT FROM pg_constraint k WHERE "
        "k.condeferred AND k.conrelid = c.oid), EXISTS (SELECT FROM pg_constraint k WHERE k.contype = 'f' AND "
        "k.conrelid = c.oid), format('\"%s\".\"%s\"', replace(n.nspname, '\"', '\"\"'), replace(c.relname, '\"', "
        "'\"\"')), current_setting('server_version_num') FROM "
        "pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE "
        "c.oid = ";
    table_search *search = arg;
    load_target *target = search->target;
    guard_pq *pq = guard_pq_of(tx);
    GUARD_AUTO(s);
    const char *name = target->options->table;
    PGresult *row = pq_query(s, pq, guard_memory_format(s, NULL, "%sto_regclass(quote_ident($1))", sql), 1, &name);
    if (PQntuples(row) == 0) {
        row = pq_query(s, pq, guard_memory_format(s, NULL, "%sto_regclass($1)", sql), 1, &name);
    }
    search->found = PQntuples(row) == 1;
    if (!search->found) {
        return;
    }
    if (strcmp(PQgetvalue(row, 0, 3), "t") != 0) {
        guard_panic(EXIT_FAILED, "\"%s\" is not a table", name);
    }
    target->oid = guard_memory_copy(search->scope, PQgetvalue(row, 0, 0), NULL);
    target->relation = guard_memory_copy(search->scope, PQgetvalue(row, 0, 2), NULL);
    target->table = guard_memory_format(search->scope, NULL, "%s.%s", PQgetvalue(row, 0, 1), target->relation);
    target->quoted = guard_memory_copy(search->scope, PQgetvalue(row, 0, 7), NULL);
    target->server_version = atoi(PQgetvalue(row, 0, 8));
    target->refers_to_itself = strcmp(PQgetvalue(row, 0, 4), "t") == 0;
    target->is_checked_late = strcmp(PQgetvalue(row, 0, 5), "t") == 0;
    target->has_foreign_key = strcmp(PQgetvalue(row, 0, 6), "t") == 0;
    read_columns(search->scope, target, pq);
}

static int has_table(guard_scope *scope, load_target *target)
{
    table_search search = {scope, target, 0};
    pq_link_run(target->link, find_table, &search);
    return search.found;
}

static void install(void *pq)
{
    pq_record_install(pq);
}

/* Also the loader's own tables. */
static void prepare_tables(guard_tx *tx, void *arg)
{
    table_search *search = arg;
    find_table(tx, search);
    guard_error error;
    if (!search->found || guard_run(install, guard_pq_of(tx), &error) == 0) {
        return;
    }
    if (strcmp(error.sqlstate, INSUFFICIENT_PRIVILEGE) == 0) {
        guard_panic(EXIT_FAILED,
                    "the loader's own tables cannot be made: %s (the role needs CREATE in the first schema of its "
                    "search_path, or these must be there; see guard-load(1))",
                    error.message);
    }
    guard_panic_error(&error);
}

/* ------------------------------------------------------------------------------------------------ schema -- */

typedef struct schema_run {
    table_search search;
    const char *sql;
} schema_run;

static void run_schema(guard_tx *tx, void *arg)
{
    schema_run *schema = arg;
    guard_pq *pq = guard_pq_of(tx);
    /* Another loader may be about to make the table, too. */
    guard_pq_exec(NULL, pq, "SELECT pg_advisory_xact_lock(hashtext('guard-load schema'))");
    find_table(tx, &schema->search);
    if (schema->search.found) {
        return;
    }
    guard_pq_exec(NULL, pq, schema->sql);
    find_table(tx, &schema->search);
    if (!schema->search.found) {
        guard_panic(EXIT_FAILED, "it does not create table \"%s\"", schema->search.target->options->table);
    }
}

static void make_table(guard_scope *scope, load_target *target)
{
    const load_options *o = target->options;
    if (o->schema == NULL) {
        GUARD_AUTO(s);
        PGresult *name = guard_pq_exec(s, target->link->pq, "SELECT current_database()");
        guard_panic(EXIT_FAILED, "database %s has no table \"%s\" (--schema FILE.sql makes it)", PQgetvalue(name, 0, 0),
                    o->table);
    }
    GUARD_AUTO(s);
    schema_run schema = {{scope, target, 0}, schema_read(s, o->schema)};
    guard_result result;
    if (pq_link_transact(target->link, run_schema, &schema, NULL, NULL, &result) != GUARD_COMMITTED) {
        guard_panic(EXIT_FAILED, "%s: %s", o->schema, result.error.message);
    }
}

/* ------------------------------------------------------------------------------------------------ driver -- */

static load_target *open_database(guard_scope *scope, const load_options *options)
{
    /* Files are UTF-8, and so is what the server says. Before any thread of ours runs that looks at them. */
    setenv("PGCLIENTENCODING", "UTF8", 1);
    setenv("PGAPPNAME", "guard-load", 0);
    load_target *target = guard_memory_allocate_array(scope, 1, sizeof *target, NULL);
    target->options = options;
    target->scope = scope;
    target->link = pq_link_open(scope, options->database, (double)options->retry_for);
    return target;
}

static load_target *pq_open(guard_scope *scope, const load_options *options)
{
    load_target *target = open_database(scope, options);
    table_search search = {scope, target, 0};
    pq_link_run(target->link, prepare_tables, &search);
    if (!search.found) {
        make_table(scope, target);
        pq_link_run(target->link, prepare_tables, &search);
    }
    return target;
}

static load_target *pq_open_to_read(guard_scope *scope, const load_options *options)
{
    load_target *target = open_database(scope, options);
    if (!pq_record_exist(target)) {
        return NULL;
    }
    /* Records stay when the table is dropped. */
    if (!has_table(scope, target)) {
        target->table = options->table;
    }
    return target;
}

static const char *pq_table(const load_target *target)
{
    return target->table;
}

static const load_column *pq_columns(const load_target *target, size_t *count)
{
    *count = target->column_count;
    return target->columns;
}

static void pq_prepare(guard_scope *scope, load_target *target, const load_job *load)
{
    GUARD_AUTO(s);
    const load_plan *plan = load->plan;
    const char *names = "";
    for (size_t field = 0; field < plan->field_count; field++) {
        if (plan->columns[field] != PLAN_SKIP) {
            const char *name = target->column_names[plan->columns[field]];
            names = guard_memory_format(s, NULL, "%s%s%s", names, *names == '\0' ? "" : ", ", name);
        }
    }
    target->copy = guard_memory_format(scope, NULL, "COPY %s (%s) FROM STDIN WITH (FORMAT text, ENCODING 'UTF8')",
                                       target->quoted, names);
    target->copy_singly = guard_memory_format(scope, NULL, "%s WHERE pg_catalog.random() IS NOT NULL", target->copy);
}

const target_driver pq_driver = {
    .open = pq_open,
    .open_to_read = pq_open_to_read,
    .table = pq_table,
    .columns = pq_columns,
    .find = pq_record_find,
    .find_unfinished = pq_record_find_unfinished,
    .each_record = pq_record_each,
    .each_reject = pq_reject_each,
    .prepare = pq_prepare,
    .load_batch = pq_worker_load,
    .forget = pq_record_forget,
};
