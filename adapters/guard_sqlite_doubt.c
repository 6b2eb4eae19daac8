/* SPDX-License-Identifier: MIT */
/*
 * What a COMMIT means that failed and left no transaction: rolled back for sure, or in doubt.
 *
 * SQLite undoes such a transaction in memory (vdbe.c, sqlite3VdbeHalt), which says nothing about the files:
 *   - Rollback journal: the commit point is the journal's end (deleted, truncated or its header zeroed). An I/O error may come from
 *     there, or from the unlock behind it. Other codes come earlier, with the journal still whole, but for the next.
 *   - INTERRUPT: earlier it leaves the transaction open. A progress handler of the program's is also asked behind the commit point
 *     (vdbe.c, vdbe_return; tried), and its INTERRUPT then hides how the COMMIT ended.
 *   - WAL: the commit point is the last frame. An I/O error may hit its sync, and no memory the index behind it: the frame
 *     is in the file, later readers do not see it, and recovery after a crash does (tried). FULL is a write that did not happen, hence
 *     an incomplete frame, unless the file system needs padding behind the commit frame (no powersafe overwrite).
 *   - No file: there is nothing to be in doubt.
 */
#include "guard_sqlite_internal.h"

#include <stdio.h>
#include <string.h>

typedef struct files {
    int count; /* on a disk */
    int wal;
    int apart; /* there are several, and one is committed or not by itself: SQLite's super-journal does not span them */
    int off;   /* without a journal, nothing can be rolled back */
} files;

/* One value of a schema's pragma as text of `size` bytes; empty where it cannot be asked. */
static void read_setting(guard_sqlite *db, const char *schema, const char *pragma, char *value, size_t size)
{
    sqlite3_stmt *stmt = NULL;
    char *sql = sqlite3_mprintf("PRAGMA \"%w\".%s", schema, pragma);
    value[0] = '\0';
    if (sql != NULL && guard_sqlite_call_prepare(db, sql, -1, 0, &stmt, NULL) == SQLITE_OK &&
        guard_sqlite_call_step(db, stmt) == SQLITE_ROW) {
        const char *text = (const char *)sqlite3_column_text(stmt, 0);
        snprintf(value, size, "%s", text != NULL ? text : "");
    }
    guard_sqlite_call_finalize(stmt);
    sqlite3_free(sql);
}

static void look_at_file(guard_sqlite *db, const char *schema, files *seen)
{
    char mode[16];
    char synchronous[16];
    read_setting(db, schema, "journal_mode", mode, sizeof(mode));
    read_setting(db, schema, "synchronous", synchronous, sizeof(synchronous));
    int wal = mode[0] == '\0' || strcmp(mode, "wal") == 0; /* unknown: the doubtful answer */
    int off = strcmp(mode, "off") == 0;
    seen->count++;
    seen->wal |= wal;
    seen->off |= off;
    seen->apart |= wal || off || strcmp(mode, "memory") == 0 || strcmp(synchronous, "0") == 0;
}

static files look_at_files(guard_sqlite *db)
{
    files seen = {0, 0, 0, 0};
    sqlite3_stmt *stmt = NULL;
    int rc = guard_sqlite_call_prepare(db, "PRAGMA database_list", -1, 0, &stmt, NULL);
    while (rc == SQLITE_OK && (rc = guard_sqlite_call_step(db, stmt)) == SQLITE_ROW) {
        const char *schema = (const char *)sqlite3_column_text(stmt, 1);
        const char *path = (const char *)sqlite3_column_text(stmt, 2);
        if (schema != NULL && path != NULL && path[0] != '\0') { /* else it is in memory, or temporary */
            look_at_file(db, schema, &seen);
        }
        rc = SQLITE_OK;
    }
    guard_sqlite_call_finalize(stmt);
    if (rc != SQLITE_DONE) {
        /* No memory to look: there is a file at least. */
        seen.count = seen.count > 0 ? seen.count : 1;
        seen.wal = 1;
    }
    seen.apart &= seen.count > 1;
    return seen;
}

/* What was not written before the rollback needs no journal; that is asked first, as it costs least. */
int guard_sqlite_cannot_undo(guard_sqlite *db)
{
    int spilled = 0;
    int highest = 0;
    int rc = sqlite3_db_status(db->raw, SQLITE_DBSTATUS_CACHE_SPILL, &spilled, &highest, 0);
    return rc == SQLITE_OK && spilled > 0 && look_at_files(db).off;
}

static int pads_sectors(guard_sqlite *db)
{
    int powersafe = -1;
    int rc = sqlite3_file_control(db->raw, "main", SQLITE_FCNTL_POWERSAFE_OVERWRITE, &powersafe);
    return rc != SQLITE_OK || powersafe != 1;
}

static int is_rolled_back(guard_sqlite *db, int rc, const files *seen)
{
    /*
     * SQLite calls the rollback hook when it takes a transaction back. If it did not, the COMMIT took place and a WAL hook of the
     * program's failed behind it, with a code of its own (c3ref/wal_hook.html).
     */
    if (seen->off || (!db->adopted && !db->rolled_back)) {
        return 0;
    }
    switch (rc & 0xff) {
    case SQLITE_CONSTRAINT: /* a commit hook said no */
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return 1;
    case SQLITE_FULL:
        return !seen->wal || !pads_sectors(db);
    case SQLITE_NOMEM:
        return !seen->wal;
    case SQLITE_INTERRUPT: /* before anything is written it leaves the transaction; a progress handler may say so behind the end */
        return 0;
    default:
        return seen->count == 0;
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
    if (seen.apart) {
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
