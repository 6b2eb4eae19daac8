/* SPDX-License-Identifier: MIT */
/*
 * The calls in which SQLite may wait for a lock or a disk, or run the program's functions. They are all here (and guard_sqlite_step_any), so
 * that what must hold around them has one place: `calls` tells a user function that a call of ours will raise its panic, pthread_cancel
 * is closed out, and a cancel or deadline of the thread interrupts the call: by the progress handler on a connection that
 * we opened, by sqlite3_interrupt from the library's watcher on an adopted one, whose handlers are the program's.
 */
#include "guard_sqlite_internal.h"

#include <stdio.h>

typedef struct call_guard {
    guard_interrupt interrupt;
    int state;
} call_guard;

static void interrupt_raw(void *raw)
{
    sqlite3_interrupt(raw);
}

static inline void call_open(guard_sqlite *db, call_guard *call)
{
    if (db->adopted) {
        guard_interrupt_open(&call->interrupt, interrupt_raw, db->raw); /* first, for it may panic */
    }
    db->calls++;
    call->state = guard_foreign_open();
}

static inline void call_close(guard_sqlite *db, call_guard *call)
{
    guard_foreign_close(call->state);
    db->calls--;
    if (db->adopted) {
        guard_interrupt_close(&call->interrupt);
    }
}

/* After what may have taken the lock of a DEFERRED transaction. */
static inline void look_after(guard_sqlite *db)
{
    if (db->adopted && !db->has_version && db->session.tx != NULL) {
        guard_sqlite_note_version(db);
    }
}

int guard_sqlite_progress(void *db)
{
    (void)db;
    return guard_checkpoint_error(NULL) != 0;
}

int guard_sqlite_call_prepare(guard_sqlite *db, const char *sql, int64_t length, unsigned flags, sqlite3_stmt **stmt,
                              const char **tail)
{
    call_guard call;
    call_open(db, &call);
    int rc = sqlite3_prepare_v3(db->raw, sql, (int)length, flags, stmt, tail);
    call_close(db, &call);
    return rc;
}

int guard_sqlite_call_step_adopted(guard_sqlite *db, sqlite3_stmt *stmt)
{
    call_guard call;
    call_open(db, &call);
    if (!sqlite3_stmt_busy(stmt)) {
        guard_sqlite_look_behind(db);
    }
    int rc = sqlite3_step(stmt);
    look_after(db);
    call_close(db, &call);
    return rc;
}

int guard_sqlite_call_step(guard_sqlite *db, sqlite3_stmt *stmt)
{
    return guard_sqlite_step_any(db, stmt);
}

int guard_sqlite_call_exec(guard_sqlite *db, const char *sql, guard_sqlite_row_fn *row, void *arg, char **message)
{
    call_guard call;
    call_open(db, &call);
    guard_sqlite_look_behind(db);
    int rc = sqlite3_exec(db->raw, sql, row, arg, message);
    look_after(db);
    call_close(db, &call);
    return rc;
}

int guard_sqlite_call_backup(guard_sqlite *db, sqlite3_backup *backup, int pages)
{
    call_guard call;
    call_open(db, &call);
    int rc = sqlite3_backup_step(backup, pages);
    call_close(db, &call);
    return rc;
}

/*
 * Those that run no statement, and cannot be interrupted. A file is opened, closed or unlocked in them, a WAL copied back, what a statement has
 * written outside of a transaction committed.
 */
int guard_sqlite_call_open(const char *path, sqlite3 **raw, int flags, const char *vfs)
{
    int state = guard_foreign_open();
    int rc = sqlite3_open_v2(path, raw, flags, vfs);
    guard_foreign_close(state);
    return rc;
}

int guard_sqlite_call_close(sqlite3 *raw)
{
    int state = guard_foreign_open();
    int rc = sqlite3_close(raw);
    guard_foreign_close(state);
    return rc;
}

void guard_sqlite_call_close_later(sqlite3 *raw)
{
    int state = guard_foreign_open();
    sqlite3_close_v2(raw);
    guard_foreign_close(state);
}

int guard_sqlite_call_reset(sqlite3_stmt *stmt)
{
    int state = guard_foreign_open();
    int rc = sqlite3_reset(stmt);
    guard_foreign_close(state);
    return rc;
}

int guard_sqlite_call_finalize(sqlite3_stmt *stmt)
{
    int state = guard_foreign_open();
    int rc = sqlite3_finalize(stmt);
    guard_foreign_close(state);
    return rc;
}

int guard_sqlite_call_blob_open(guard_sqlite *db, const char *table, const char *column, int64_t rowid, int writable,
                                sqlite3_blob **blob)
{
    int state = guard_foreign_open();
    guard_sqlite_look_behind(db);
    int rc = sqlite3_blob_open(db->raw, "main", table, column, rowid, writable, blob);
    look_after(db);
    guard_foreign_close(state);
    return rc;
}

int guard_sqlite_call_blob_read(guard_sqlite *db, sqlite3_blob *blob, void *data, int length, int offset)
{
    int state = guard_foreign_open();
    guard_sqlite_look_behind(db);
    int rc = sqlite3_blob_read(blob, data, length, offset);
    guard_foreign_close(state);
    return rc;
}

int guard_sqlite_call_blob_write(guard_sqlite *db, sqlite3_blob *blob, const void *data, int length, int offset)
{
    int state = guard_foreign_open();
    guard_sqlite_look_behind(db);
    int rc = sqlite3_blob_write(blob, data, length, offset);
    guard_foreign_close(state);
    return rc;
}

int guard_sqlite_call_blob_close(sqlite3_blob *blob)
{
    int state = guard_foreign_open();
    int rc = sqlite3_blob_close(blob);
    guard_foreign_close(state);
    return rc;
}

sqlite3_backup *guard_sqlite_call_backup_open(sqlite3 *to, sqlite3 *from)
{
    int state = guard_foreign_open();
    sqlite3_backup *backup = sqlite3_backup_init(to, "main", from, "main");
    guard_foreign_close(state);
    return backup;
}

int guard_sqlite_call_backup_finish(sqlite3_backup *backup)
{
    int state = guard_foreign_open();
    int rc = sqlite3_backup_finish(backup);
    guard_foreign_close(state);
    return rc;
}

int guard_sqlite_call_sql(guard_sqlite *db, const char *sql)
{
    sqlite3_stmt *stmt;
    int rc = guard_sqlite_call_prepare(db, sql, -1, 0, &stmt, NULL);
    if (rc != SQLITE_OK) {
        return sqlite3_extended_errcode(db->raw);
    }
    do {
        rc = guard_sqlite_call_step(db, stmt);
    } while (rc == SQLITE_ROW);
    if (rc != SQLITE_DONE) {
        rc = sqlite3_extended_errcode(db->raw);
    }
    guard_sqlite_call_finalize(stmt);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

static const char *control_sql(const guard_sqlite *db, control which, char *text, size_t size)
{
    static const char *const fixed[] = {
        "BEGIN IMMEDIATE",
        "BEGIN DEFERRED",
        "BEGIN EXCLUSIVE",
        "COMMIT",
        "ROLLBACK",
        ("INSERT INTO main.guard_marker(session, seq) VALUES(?1, ?2)"
         " ON CONFLICT(session) DO UPDATE SET seq = excluded.seq"),
    };
    static const char *const verbs[] = {"SAVEPOINT", "RELEASE", "ROLLBACK TO"};
    if (which < CONTROL_SAVEPOINT) {
        return fixed[which];
    }
    if (which >= CONTROL_PROOF) {
        snprintf(text, size, "%s guard_proof_%u", which == CONTROL_PROOF ? "SAVEPOINT" : "RELEASE", db->proof_number);
        return text;
    }
    int at = which - CONTROL_SAVEPOINT;
    snprintf(text, size, "%s guard_%d", verbs[at / SAVEPOINT_LEVELS], at % SAVEPOINT_LEVELS + 1);
    return text;
}

int guard_sqlite_prepare_control(guard_sqlite *db, control which)
{
    char text[40];
    if (db->control[which] != NULL) {
        return SQLITE_OK;
    }
    const char *sql = control_sql(db, which, text, sizeof(text));
    int rc = guard_sqlite_call_prepare(db, sql, -1, SQLITE_PREPARE_PERSISTENT, &db->control[which], NULL);
    return rc == SQLITE_OK ? rc : sqlite3_extended_errcode(db->raw);
}

int guard_sqlite_call_control_slow(guard_sqlite *db, control which)
{
    int rc = guard_sqlite_prepare_control(db, which);
    return rc == SQLITE_OK ? guard_sqlite_call_control(db, which) : rc;
}

/* It did not end with SQLITE_DONE. */
int guard_sqlite_control_failed(guard_sqlite *db, control which, int rc)
{
    sqlite3_stmt *stmt = db->control[which];
    if (rc == SQLITE_MISUSE) {
        /* An SQLite that was built with SQLITE_OMIT_AUTORESET. */
        guard_sqlite_call_reset(stmt);
        rc = guard_sqlite_call_step(db, stmt);
    }
    int is_done = rc == SQLITE_DONE;
    rc = is_done ? SQLITE_OK : sqlite3_extended_errcode(db->raw);
    guard_sqlite_call_reset(stmt); /* gives the same code and message again */
    return is_done || rc != SQLITE_OK ? rc : SQLITE_ERROR;
}
