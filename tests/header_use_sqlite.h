/* SPDX-License-Identifier: MIT */
/* As header_use.h, for the macros of <guard/tx.h> and <guard/guard_sqlite.h>. Only compiled, never run. */
#ifndef HEADER_USE_SQLITE_H
#define HEADER_USE_SQLITE_H

#include <guard/guard_sqlite.h>
#include <guard/tx.h>

static void header_use_body(guard_tx *tx, void *arg)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_tx *nested = guard_tx_begin_nested(s, tx);
    guard_tx_on_commit(nested, NULL, arg);
    guard_tx_on_rollback(nested, NULL, arg);
    guard_tx_commit(nested);
    guard_tx_rollback(guard_tx_begin_savepoint(s, tx, "name"));
    if (guard_tx_nested(tx, header_use_body, arg, &result) != GUARD_RELEASED) {
        guard_panic_error(&result.error);
    }
}

extern guard_outcome header_use_sqlite(guard_scope *s, sqlite3 *raw);

guard_outcome header_use_sqlite(guard_scope *s, sqlite3 *raw)
{
    char bytes[4];
    guard_error error;
    guard_sqlite *db = guard_sqlite_open(s, "a.db", NULL);
    guard_sqlite *adopted = guard_sqlite_adopt(s, raw, NULL);
    guard_sqlite_exec(db, "SELECT 1");
    guard_sqlite_exec_rows(db, "SELECT 1", NULL, NULL);
    guard_sqlite_stmt *stmt = guard_sqlite_prepare(s, db, "SELECT ?1");
    guard_sqlite_bind_int64(stmt, 1, guard_sqlite_query_int64(db, "SELECT 1", 0));
    guard_sqlite_bind_double(stmt, 1, 0.5);
    guard_sqlite_bind_null(stmt, 1);
    guard_sqlite_bind_text(stmt, 1, "text", -1);
    guard_sqlite_bind_static_text(stmt, 1, "text", -1);
    guard_sqlite_bind_blob(stmt, 1, bytes, 4);
    if (guard_sqlite_step(stmt)) {
        guard_sqlite_run(stmt);
    }
    guard_sqlite_function(db, "f", 1, SQLITE_UTF8, NULL, NULL);
    guard_sqlite_aggregate(db, "a", 1, SQLITE_UTF8, 8, NULL, NULL, NULL);
    guard_sqlite_collation(db, "c", NULL, NULL);
    guard_sqlite_blob *blob = guard_sqlite_blob_open(s, db, "t", "data", 1, 1);
    guard_sqlite_blob_read(blob, bytes, 4, 0);
    guard_sqlite_blob_write(blob, bytes, 4, 0);
    guard_sqlite_blob_close(blob);
    guard_sqlite_backup *backup = guard_sqlite_backup_open(s, adopted, db);
    if (guard_sqlite_backup_step(backup, 1)) {
        guard_sqlite_backup_finish(backup, 0);
    }
    guard_sqlite_marker_install(db);
    guard_tx_commit(guard_sqlite_begin(s, db, NULL));
    guard_sqlite_transact_raw(raw, header_use_body, NULL, NULL, NULL);
    if (guard_sqlite_transact(db, header_use_body, NULL, NULL, NULL) == GUARD_COMMITTED) {
        return GUARD_COMMITTED;
    }
    return guard_sqlite_resolve(db, "token", NULL, &error);
}

#ifndef __cplusplus
/* Options are written in the call, commas and all. */
extern void header_use_sqlite_options(guard_scope *s, sqlite3 *raw);

void header_use_sqlite_options(guard_scope *s, sqlite3 *raw)
{
    guard_sqlite *db = guard_sqlite_open(s, "a.db", &(guard_sqlite_options){.flags = 1, .busy_ms = 100});
    guard_sqlite_adopt(s, raw, &(guard_sqlite_options){.flags = 1, .busy_ms = 100});
    guard_tx_commit(guard_sqlite_begin(s, db, &(guard_sqlite_tx_options){.probe = "SELECT 1", .probe_key = "a"}));
}
#endif

#endif
