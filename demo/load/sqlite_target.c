/* SPDX-License-Identifier: MIT */
#include "sqlite_target.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <guard/guard_file.h>

#include "schema.h"

const char *sqlite_identifier(guard_scope *scope, const char *name)
{
    guard_reserve(scope, 1);
    char *quoted = sqlite3_mprintf("\"%w\"", name);
    if (quoted == NULL) {
        guard_panic_in(GUARD_MEMORY, ENOMEM, "no memory for a name");
    }
    guard_defer(scope, sqlite3_free, quoted);
    return quoted;
}

GUARD_NORETURN void sqlite_panic_about(const char *what, const guard_error *error)
{
    guard_error told = *error;
    guard_error named;
    guard_error_set(&named, error->domain, error->code, "%s: %s", what, error->message);
    memcpy(told.message, named.message, sizeof told.message);
    guard_panic_error(&told);
}

/* ------------------------------------------------------------------------------------------------- table -- */

/* Fills in the table's name as the database spells it: 1, or 0 if there is none. */
static int find_table(guard_scope *scope, load_target *target)
{
    GUARD_AUTO(s);
    guard_sqlite_stmt *query = guard_sqlite_prepare(
        s, target->db,
        "SELECT name, type FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE AND type IN ('table', 'view')");
    guard_sqlite_bind_text(query, 1, target->options->table, -1);
    if (!guard_sqlite_step(query)) {
        return 0;
    }
    if (strcmp(guard_sqlite_column_text(query, 1), "view") == 0) {
        guard_panic(EXIT_FAILED, "\"%s\" is a view, not a table", target->options->table);
    }
    target->table = guard_memory_copy(scope, guard_sqlite_column_text(query, 0), NULL);
    return 1;
}

static void read_columns(guard_scope *scope, load_target *target)
{
    GUARD_AUTO(s);
    guard_ticket ticket;
    /* Hidden ones are generated, or those of a virtual table that are no columns. */
    guard_sqlite_stmt *query = guard_sqlite_prepare(s, target->db,
                                                    "SELECT name, type FROM pragma_table_xinfo(?1) WHERE hidden = 0");
    guard_sqlite_bind_text(query, 1, target->table, -1);
    while (guard_sqlite_step(query)) {
        size_t count = target->column_count;
        target->columns = guard_memory_resize(scope, target->columns, (count + 1) * sizeof *target->columns, &ticket);
        target->columns[count].name = guard_memory_copy(scope, guard_sqlite_column_text(query, 0), NULL);
        const char *type = guard_sqlite_column_text(query, 1);
        target->columns[count].type = guard_memory_copy(scope, type == NULL ? "" : type, NULL);
        target->column_count++;
    }
}

/* ------------------------------------------------------------------------------------------------ schema -- */

typedef struct schema_run {
    guard_scope *scope;
    load_target *target;
    const char *sql;
} schema_run;

static void run_schema(guard_tx *tx, void *arg)
{
    schema_run *schema = arg;
    (void)tx;
    guard_sqlite_exec(schema->target->db, schema->sql);
    if (!find_table(schema->scope, schema->target)) {
        guard_panic(EXIT_FAILED, "it does not create table \"%s\"", schema->target->options->table);
    }
}

static void make_table(guard_scope *scope, load_target *target)
{
    const load_options *o = target->options;
    if (o->schema == NULL) {
        guard_panic(EXIT_FAILED, "database %s has no table \"%s\" (--schema FILE.sql makes it)", o->database, o->table);
    }
    GUARD_AUTO(s);
    schema_run schema = {scope, target, schema_read(s, o->schema)};
    guard_result result;
    if (guard_sqlite_transact(target->db, run_schema, &schema, NULL, &result) != GUARD_COMMITTED) {
        sqlite_panic_about(o->schema, &result.error);
    }
}

/* ------------------------------------------------------------------------------------------------ driver -- */

static load_target *open_database(guard_scope *scope, const load_options *options, uint32_t flags, int journal)
{
    /* Nobody asks SQLite how much memory it uses, and counting takes a lock at each allocation: a tenth of a load's
     * instructions (callgrind, flights.csv). It fails where SQLite is in use already, and counts on. */
    sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0);
    guard_sqlite_options how = {.flags = flags | GUARD_SQLITE_ONE_THREAD, .journal = journal};
    load_target *target = guard_memory_allocate_array(scope, 1, sizeof *target, NULL);
    target->options = options;
    target->db = guard_sqlite_open(scope, options->database, &how);
    target->raw = guard_sqlite_raw(target->db);
    return target;
}

static load_target *sqlite_open(guard_scope *scope, const load_options *options)
{
    guard_file_lock_options lock = {.no_wait = 1};
    /* Without a schema there must be a table already: a name that is mistyped must not become a database. */
    int existing = options->schema == NULL || options->action != ACTION_LOAD;
    if (existing && access(options->database, F_OK) != 0) {
        if (errno == ENOENT && options->action == ACTION_LOAD) {
            guard_panic(EXIT_FAILED, "there is no database %s (--schema FILE.sql makes it and the table)",
                        options->database);
        }
        guard_panic_os("database %s", options->database);
    }
    guard_file_lock_beside(scope, options->database, &lock);
    load_target *target = open_database(scope, options, existing ? GUARD_SQLITE_EXISTING : 0, GUARD_SQLITE_WAL);
    if (!find_table(scope, target)) {
        make_table(scope, target);
    }
    read_columns(scope, target);
    if (!sqlite_record_exist(target)) {
        sqlite_record_install(target);
    }
    return target;
}

static load_target *sqlite_open_to_read(guard_scope *scope, const load_options *options)
{
    load_target *target = open_database(scope, options, GUARD_SQLITE_READ_ONLY | GUARD_SQLITE_EXISTING,
                                        GUARD_SQLITE_JOURNAL_AS_IS);
    if (!sqlite_record_exist(target)) {
        return NULL;
    }
    /* Records stay when the table is dropped. */
    if (!find_table(scope, target)) {
        target->table = options->table;
    }
    return target;
}

static const char *sqlite_table(const load_target *target)
{
    return target->table;
}

static const load_column *sqlite_columns(const load_target *target, size_t *count)
{
    *count = target->column_count;
    return target->columns;
}

static void sqlite_prepare(guard_scope *scope, load_target *target, const load_job *load)
{
    sqlite_row_prepare(scope, target, load->plan);
    sqlite_record_prepare(scope, target);
}

const target_driver sqlite_driver = {
    .open = sqlite_open,
    .open_to_read = sqlite_open_to_read,
    .table = sqlite_table,
    .columns = sqlite_columns,
    .find = sqlite_record_find,
    .find_unfinished = sqlite_record_find_unfinished,
    .each_record = sqlite_record_each,
    .each_reject = sqlite_reject_each,
    .prepare = sqlite_prepare,
    .load_batch = sqlite_batch_load,
    .forget = sqlite_record_forget,
};
