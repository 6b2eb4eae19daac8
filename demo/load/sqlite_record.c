/* SPDX-License-Identifier: MIT */
#include "sqlite_target.h"

#include <errno.h>
#include <inttypes.h>

#include <guard/guard_file.h>

#define RECORD_COLUMNS \
    "sha256, name, path, options, size, next_offset, next_line, rows_loaded, rows_rejected, runs, complete, updated"

int sqlite_record_exist(load_target *target)
{
    return guard_sqlite_query_int64(target->db,
                                    "SELECT count(*) FROM sqlite_schema"
                                    " WHERE name IN ('guard_load_file', 'guard_load_reject') AND type = 'table'",
                                    0) == 2;
}

static void install(guard_tx *tx, void *arg)
{
    load_target *target = arg;
    (void)tx;
    guard_sqlite_exec(target->db, "CREATE TABLE IF NOT EXISTS guard_load_file ("
                                  " table_name TEXT NOT NULL COLLATE NOCASE,"
                                  " sha256 TEXT NOT NULL,"
                                  " name TEXT NOT NULL,"
                                  " path TEXT NOT NULL,"
                                  " options TEXT NOT NULL,"
                                  " size INTEGER NOT NULL,"
                                  " next_offset INTEGER NOT NULL,"
                                  " next_line INTEGER NOT NULL,"
                                  " rows_loaded INTEGER NOT NULL,"
                                  " rows_rejected INTEGER NOT NULL,"
                                  " runs INTEGER NOT NULL,"
                                  " complete INTEGER NOT NULL CHECK (complete IN (0, 1)),"
                                  " updated TEXT NOT NULL,"
                                  " PRIMARY KEY (table_name, sha256)) WITHOUT ROWID;"
                                  "CREATE TABLE IF NOT EXISTS guard_load_reject ("
                                  " table_name TEXT NOT NULL COLLATE NOCASE,"
                                  " sha256 TEXT NOT NULL,"
                                  " line INTEGER NOT NULL,"
                                  " code TEXT NOT NULL,"
                                  " reason TEXT NOT NULL,"
                                  " row BLOB NOT NULL,"
                                  " PRIMARY KEY (table_name, sha256, line))");
}

void sqlite_record_install(load_target *target)
{
    guard_result result;
    if (guard_sqlite_transact(target->db, install, target, NULL, &result) != GUARD_COMMITTED) {
        guard_panic_error(&result.error);
    }
}

/* ----------------------------------------------------------------------------------------------- reading -- */

static const char *copy_text(guard_scope *scope, guard_sqlite_stmt *query, int column)
{
    return guard_memory_copy(scope, guard_sqlite_column_text(query, column), NULL);
}

static void read_record(guard_scope *scope, guard_sqlite_stmt *query, load_record *record)
{
    record->digest = copy_text(scope, query, 0);
    record->name = copy_text(scope, query, 1);
    record->path = copy_text(scope, query, 2);
    record->meaning = copy_text(scope, query, 3);
    record->size = (uint64_t)guard_sqlite_column_int64(query, 4);
    record->at.offset = (uint64_t)guard_sqlite_column_int64(query, 5);
    record->at.line = (uint64_t)guard_sqlite_column_int64(query, 6);
    record->loaded = (uint64_t)guard_sqlite_column_int64(query, 7);
    record->rejected = (uint64_t)guard_sqlite_column_int64(query, 8);
    record->runs = (uint64_t)guard_sqlite_column_int64(query, 9);
    record->complete = guard_sqlite_column_int64(query, 10) != 0;
    record->updated = copy_text(scope, query, 11);
}

static int find(load_target *target, guard_scope *scope, const char *sql, const char *value, load_record *record)
{
    GUARD_AUTO(s);
    guard_sqlite_stmt *query = guard_sqlite_prepare(s, target->db, sql);
    guard_sqlite_bind_text(query, 1, target->table, -1);
    guard_sqlite_bind_text(query, 2, value, -1);
    if (!guard_sqlite_step(query)) {
        return 0;
    }
    read_record(scope, query, record);
    return 1;
}

int sqlite_record_find(load_target *target, guard_scope *scope, const char *digest, load_record *record)
{
    return find(target, scope, "SELECT " RECORD_COLUMNS " FROM guard_load_file WHERE table_name = ?1 AND sha256 = ?2",
                digest, record);
}

int sqlite_record_find_unfinished(load_target *target, guard_scope *scope, const char *path, load_record *record)
{
    return find(target, scope,
                "SELECT " RECORD_COLUMNS " FROM guard_load_file WHERE table_name = ?1 AND path = ?2 AND NOT complete",
                path, record);
}

void sqlite_record_each(load_target *target, target_record_fn *fn, void *arg)
{
    GUARD_AUTO(s);
    guard_sqlite_stmt *query = guard_sqlite_prepare(
        s, target->db, "SELECT " RECORD_COLUMNS " FROM guard_load_file WHERE table_name = ?1 ORDER BY updated, name");
    guard_sqlite_bind_text(query, 1, target->table, -1);
    while (guard_sqlite_step(query)) {
        GUARD_AUTO(texts);
        load_record record;
        read_record(texts, query, &record);
        fn(arg, &record);
    }
}

void sqlite_reject_each(load_target *target, const char *digest, target_reject_fn *fn, void *arg)
{
    GUARD_AUTO(s);
    guard_sqlite_stmt *query = guard_sqlite_prepare(s, target->db,
                                                    "SELECT line, code, reason, row FROM guard_load_reject"
                                                    " WHERE table_name = ?1 AND sha256 = ?2 ORDER BY line");
    guard_sqlite_bind_text(query, 1, target->table, -1);
    guard_sqlite_bind_text(query, 2, digest, -1);
    while (guard_sqlite_step(query)) {
        int size = 0;
        const void *raw = guard_sqlite_column_blob(query, 3, &size);
        load_reject reject = {.at = {.line = (uint64_t)guard_sqlite_column_int64(query, 0)},
                              .code = guard_sqlite_column_text(query, 1),
                              .reason = guard_sqlite_column_text(query, 2),
                              .raw = raw,
                              .raw_size = (size_t)size};
        fn(arg, &reject);
    }
}

/* ----------------------------------------------------------------------------------------------- writing -- */

void sqlite_record_prepare(guard_scope *scope, load_target *target)
{
    target->save_record = guard_sqlite_prepare(
        scope, target->db,
        "INSERT OR REPLACE INTO guard_load_file (table_name, " RECORD_COLUMNS ")"
        " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, datetime('now'))");
    target->save_reject = guard_sqlite_prepare(
        scope, target->db,
        "INSERT INTO guard_load_reject (table_name, sha256, line, code, reason, row)"
        " VALUES (?1, ?2, ?3, ?4, ?5, ?6)");
    target->drop_rejects = guard_sqlite_prepare(scope, target->db,
                                                "DELETE FROM guard_load_reject WHERE table_name = ?1 AND sha256 = ?2");
}

void sqlite_record_save(load_target *target, const load_record *record)
{
    guard_sqlite_stmt *save = target->save_record;
    guard_sqlite_bind_text(save, 1, target->table, -1);
    guard_sqlite_bind_text(save, 2, record->digest, -1);
    guard_sqlite_bind_text(save, 3, record->name, -1);
    guard_sqlite_bind_text(save, 4, record->path, -1);
    guard_sqlite_bind_text(save, 5, record->meaning, -1);
    guard_sqlite_bind_int64(save, 6, (int64_t)record->size);
    guard_sqlite_bind_int64(save, 7, (int64_t)record->at.offset);
    guard_sqlite_bind_int64(save, 8, (int64_t)record->at.line);
    guard_sqlite_bind_int64(save, 9, (int64_t)record->loaded);
    guard_sqlite_bind_int64(save, 10, (int64_t)record->rejected);
    guard_sqlite_bind_int64(save, 11, (int64_t)record->runs);
    guard_sqlite_bind_int64(save, 12, record->complete);
    guard_sqlite_run(save);
}

void sqlite_reject_save(load_target *target, const char *digest, const load_reject *reject)
{
    guard_sqlite_stmt *save = target->save_reject;
    guard_sqlite_bind_text(save, 1, target->table, -1);
    guard_sqlite_bind_text(save, 2, digest, -1);
    guard_sqlite_bind_int64(save, 3, (int64_t)reject->at.line);
    guard_sqlite_bind_text(save, 4, reject->code, -1);
    guard_sqlite_bind_text(save, 5, reject->reason, -1);
    guard_sqlite_bind_blob(save, 6, reject->raw, (int64_t)reject->raw_size);
    guard_sqlite_run(save);
}

void sqlite_reject_drop(load_target *target, const char *digest)
{
    guard_sqlite_bind_text(target->drop_rejects, 1, target->table, -1);
    guard_sqlite_bind_text(target->drop_rejects, 2, digest, -1);
    guard_sqlite_run(target->drop_rejects);
}

const char *sqlite_record_probe(guard_scope *scope, const load_target *target, const load_record *record)
{
    GUARD_AUTO(s);
    guard_reserve(s, 1);
    char *table = sqlite3_mprintf("%Q", target->table);
    if (table == NULL) {
        guard_panic_in(GUARD_MEMORY, ENOMEM, "no memory for a name");
    }
    guard_defer(s, sqlite3_free, table);
    return guard_memory_format(scope, NULL,
                               "SELECT 1 FROM guard_load_file WHERE table_name = %s AND sha256 = ?1 AND runs = %" PRIu64
                               " AND (next_offset > %" PRIu64 " OR complete)",
                               table, record->runs, record->at.offset);
}

typedef struct forgetting {
    load_target *target;
    const char *digest;
} forgetting;

static void forget(guard_tx *tx, void *arg)
{
    const forgetting *f = arg;
    GUARD_AUTO(s);
    (void)tx;
    static const char *const statements[] = {"DELETE FROM guard_load_file WHERE table_name = ?1 AND sha256 = ?2",
                                             "DELETE FROM guard_load_reject WHERE table_name = ?1 AND sha256 = ?2"};
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++) {
        guard_sqlite_stmt *drop = guard_sqlite_prepare(s, f->target->db, statements[i]);
        guard_sqlite_bind_text(drop, 1, f->target->table, -1);
        guard_sqlite_bind_text(drop, 2, f->digest, -1);
        guard_sqlite_run(drop);
    }
}

void sqlite_record_forget(load_target *target, const char *digest)
{
    forgetting f = {target, digest};
    guard_result result;
    if (guard_sqlite_transact(target->db, forget, &f, NULL, &result) != GUARD_COMMITTED) {
        guard_panic_error(&result.error);
    }
}
