/* SPDX-License-Identifier: MIT */
/* SQLite's errors as guard_error, taken at the failure: sqlite3_errmsg changes with the next call. */
#include "guard_sqlite_internal.h"

#include <stdio.h>
#include <string.h>

static void copy_line(char *to, size_t size, const char *from)
{
    size_t i = 0;
    for (; from != NULL && from[i] != '\0' && i + 1 < size; i++) {
        to[i] = from[i] == '\n' || from[i] == '\t' || from[i] == '\r' ? ' ' : from[i];
    }
    /* Not in the middle of a character. */
    while (i > 0 && from[i] != '\0' && ((unsigned char)from[i] & 0xC0) == 0x80) {
        i--;
    }
    to[i] = '\0';
}

static const char *hint_for(int rc, const char *message)
{
    /* The connection is in its own way: words of its own, not those of the code. */
    if (rc == SQLITE_BUSY && strcmp(message, sqlite3_errstr(rc)) != 0) {
        return "a statement of this connection is in its middle: run it to its end, or reset it";
    }
    switch (rc) {
    case SQLITE_BUSY_SNAPSHOT:
        return "begin IMMEDIATE, or use guard_sqlite_transact, which reruns the body";
    case SQLITE_BUSY:
    case SQLITE_LOCKED_SHAREDCACHE:
        return "another connection holds the database: raise busy_ms, begin IMMEDIATE";
    case SQLITE_CONSTRAINT_FOREIGNKEY:
        return "a deferred one may be mended, then committed again";
    case SQLITE_READONLY_DBMOVED:
        return "the file was moved, replaced or deleted while it was open: open it again";
    case SQLITE_READONLY_DIRECTORY:
    case SQLITE_READONLY_CANTINIT:
        return "the folder must be writable too: the journal is made beside the file";
    case SQLITE_READONLY:
        return "it was opened for reading, or the file may not be written";
    default:
        return (rc & 0xff) == SQLITE_FULL ? "free space on the disk, then try again" : "";
    }
}

/* "UNIQUE constraint failed: t.a, t.b" names what was violated after the colon. */
static void find_constraint(guard_error *error)
{
    static const char mark[] = "constraint failed: ";
    const char *found = strstr(error->message, mark);
    if (found != NULL) {
        copy_line(error->constraint, sizeof(error->constraint), found + sizeof(mark) - 1);
    }
}

void guard_sqlite_describe_error(sqlite3 *raw, int rc, const char *sql, guard_error *error)
{
    const char *message = sqlite3_errstr(rc);
    /* The connection's words are about rc only where its code is rc's. */
    if (raw != NULL && (sqlite3_errcode(raw) & 0xff) == (rc & 0xff)) {
        rc = sqlite3_extended_errcode(raw);
        message = sqlite3_errmsg(raw);
    }
    guard_error_set(error, GUARD_SQLITE, rc, "%s", message);
    if (raw != NULL) {
        error->os_error = sqlite3_system_errno(raw);
    }
    copy_line(error->detail, sizeof(error->detail), sql);
    snprintf(error->hint, sizeof(error->hint), "%s", hint_for(rc, message));
    find_constraint(error);
}

void guard_sqlite_note_error(guard_sqlite *db, int rc, const char *sql, guard_error *error)
{
    guard_sqlite_describe_error(db->raw, rc, sql, error);
    if (db->session.tx != NULL && !db->has_first_error) {
        db->first_error = *error;
        db->has_first_error = 1;
    }
}

/*
 * What may take a whole transaction back (lang_transaction.html, 3; lang_conflict.html, ROLLBACK). Any other failure after which there is
 * none comes from SQL behind our back, whose end we did not see.
 */
static int may_end(int rc)
{
    switch (rc & 0xff) {
    case SQLITE_FULL:
    case SQLITE_IOERR:
    case SQLITE_NOMEM:
    case SQLITE_BUSY:
    case SQLITE_INTERRUPT:
    case SQLITE_CONSTRAINT:
        return 1;
    default:
        return rc == SQLITE_ABORT_ROLLBACK;
    }
}

void guard_sqlite_note_end(guard_sqlite *db, int rc)
{
    if (db->session.tx != NULL && sqlite3_get_autocommit(db->raw) && may_end(rc)) {
        db->rolled_back = 1;
        if ((rc & 0xff) != SQLITE_FULL && (rc & 0xff) != SQLITE_IOERR) {
            guard_sqlite_look_for_commit(db); /* a function in the statement may have sent one */
        }
    }
}

void guard_sqlite_raise_cancel(int rc, const guard_place *place)
{
    if ((rc & 0xff) == SQLITE_INTERRUPT || (rc & 0xff) == SQLITE_BUSY || (rc & 0xff) == SQLITE_LOCKED) {
        guard_impl_checkpoint(place);
    }
}

void guard_sqlite_raise(guard_sqlite *db, int rc, const char *sql, const guard_place *place)
{
    guard_error error;
    guard_sqlite_note_error(db, rc, sql, &error);
    guard_sqlite_note_end(db, rc);
    guard_sqlite_raise_cancel(rc, place);
    guard_impl_panic_error(place, &error);
    __builtin_unreachable();
}
