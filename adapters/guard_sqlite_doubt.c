/* SPDX-License-Identifier: MIT */
/*
 * What a COMMIT means that failed and left no transaction: rolled back for sure, or in doubt.
 *
 * SQLite undoes such a transaction in memory (vdbe.c, sqlite3VdbeHalt), which says nothing about the files:
 *   - Rollback journal: the commit point is the journal's end (deleted, truncated or its header zeroed). An I/O error may come from
 *     there, or from the unlock behind it. All other codes come earlier, with the journal still whole.
 *   - WAL: the commit point is the last frame. An I/O error may hit its sync, and no memory the index behind it: the frame
 *     is in the file, later readers do not see it, and recovery after a crash does (tried). FULL is a write that did not happen, hence
 *     an incomplete frame, unless the file system needs padding behind the commit frame (no powersafe overwrite).
 *   - No file: there is nothing to be in doubt.
 */
#include "guard_sqlite_internal.h"

#include <string.h>

typedef struct files {
    int on_disk;
    int main_wal;
    int attached_wal; /* an attached one in WAL mode is committed or not by itself */
    int unprotected;  /* a file without a journal cannot be rolled back */
} files;

static int in_wal_mode(guard_sqlite *db, const char *schema, int *off)
{
    int wal = 1; /* where it cannot be asked, the doubtful answer */
    sqlite3_stmt *stmt = NULL;
    char *sql = sqlite3_mprintf("PRAGMA \"%w\".journal_mode", schema);
    if (sql != NULL && guard_sqlite_call_prepare(db, sql, -1, 0, &stmt, NULL) == SQLITE_OK &&
        guard_sqlite_call_step(db, stmt) == SQLITE_ROW) {
        const char *mode = (const char *)sqlite3_column_text(stmt, 0);
        wal = mode == NULL || strcmp(mode, "wal") == 0;
        *off |= mode != NULL && strcmp(mode, "off") == 0;
    }
    sqlite3_finalize(stmt);
    sqlite3_free(sql);
    return wal;
}

static files look_at_files(guard_sqlite *db)
{
    files seen = {0, 0, 0, 0};
    sqlite3_stmt *stmt = NULL;
    if (guard_sqlite_call_prepare(db, "PRAGMA database_list", -1, 0, &stmt, NULL) != SQLITE_OK) {
        return (files){1, 1, 0, 0};
    }
    while (guard_sqlite_call_step(db, stmt) == SQLITE_ROW) {
        const char *schema = (const char *)sqlite3_column_text(stmt, 1);
        const char *path = (const char *)sqlite3_column_text(stmt, 2);
        int is_main = sqlite3_column_int(stmt, 0) == 0;
        if (schema == NULL || path == NULL || path[0] == '\0') {
            continue; /* in memory, or temporary */
        }
        int wal = in_wal_mode(db, schema, &seen.unprotected);
        seen.on_disk = 1;
        seen.main_wal |= is_main && wal;
        seen.attached_wal |= !is_main && wal;
    }
    sqlite3_finalize(stmt);
    return seen;
}

static int pads_sectors(guard_sqlite *db)
{
    int powersafe = -1;
    int rc = sqlite3_file_control(db->raw, "main", SQLITE_FCNTL_POWERSAFE_OVERWRITE, &powersafe);
    return rc != SQLITE_OK || powersafe != 1;
}

static int is_rolled_back(guard_sqlite *db, int rc, const files *seen)
{
    int wal = seen->main_wal || seen->attached_wal;
    if (seen->unprotected) {
        return 0;
    }
    switch (rc & 0xff) {
    case SQLITE_CONSTRAINT: /* a commit hook said no */
    case SQLITE_INTERRUPT:  /* looked at before anything is written */
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return 1;
    case SQLITE_FULL:
        return !wal || !pads_sectors(db);
    case SQLITE_NOMEM:
        return !wal;
    default:
        return !wal && !seen->on_disk;
    }
}

guard_outcome guard_sqlite_judge_commit(guard_sqlite *db, int rc, int wrote, guard_result *result)
{
    if (!wrote) {
        result->notes |= GUARD_NOTE_NO_ROW_WRITTEN;
        return GUARD_ROLLED_BACK;
    }
    files seen = look_at_files(db);
    if (is_rolled_back(db, rc, &seen)) {
        return GUARD_ROLLED_BACK;
    }
    if (seen.attached_wal) {
        /* A marker in one file says nothing about another: nothing could resolve this. */
        result->notes |= GUARD_NOTE_MANY_FILES;
        db->marker_session[0] = '\0';
        return GUARD_IN_DOUBT;
    }
    if (db->options.marker == GUARD_SQLITE_MARKER_OFF) {
        return GUARD_IN_DOUBT;
    }
    guard_sqlite_make_token(db, result->token);
    guard_error later;
    guard_outcome outcome = guard_sqlite_resolve_now(db, result->token, &db->options, &later);
    if (outcome == GUARD_IN_DOUBT) {
        guard_error_attach(&result->error, &later, GUARD_ATTACHED);
        db->marker_session[0] = '\0'; /* the next transaction must not write over what this one left */
        return outcome;
    }
    result->notes |= GUARD_NOTE_RESOLVED;
    result->token[0] = '\0';
    result->has_error = outcome != GUARD_COMMITTED;
    return outcome;
}
