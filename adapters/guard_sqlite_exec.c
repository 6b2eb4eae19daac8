/* SPDX-License-Identifier: MIT */
/* SQL that is run once: exec, exec with a callback, a single number. */
#include "guard_sqlite_internal.h"

#include <string.h>

static void finalize_local(void *object)
{
    guard_sqlite_stmt *stmt = object;
    guard_error error;
    if (guard_sqlite_detach_stmt(stmt, &error) != SQLITE_OK) {
        guard_impl_panic_error(stmt->place, &error);
    }
}

/* A statement in a frame of ours, for as long as that lasts. */
static const guard_kind local_kind = {.name = "sqlite statement", .release = finalize_local};

static int check_exec(guard_sqlite *db, const char *sql, const guard_place *place)
{
    if (db == NULL || sql == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the connection or the SQL is NULL");
        return 0;
    }
    return 1;
}

void guard_sqlite_exec_at(guard_sqlite *db, const char *sql, const guard_place *place)
{
    if (!check_exec(db, sql, place)) {
        return;
    }
    while (*sql != '\0') {
        guard_sqlite_stmt stmt;
        GUARD_AUTO(s);
        guard_reserve(s, 1);
        if (guard_sqlite_prepare_into(&stmt, db, &sql, place)) {
            guard_impl_defer_kind(s, &local_kind, &stmt, place);
            guard_sqlite_run_at(&stmt, place);
        }
    }
}

int64_t guard_sqlite_query_int64_at(guard_sqlite *db, const char *sql, int64_t missing, const guard_place *place)
{
    guard_sqlite_stmt stmt;
    if (!check_exec(db, sql, place)) {
        return missing;
    }
    GUARD_AUTO(s);
    guard_reserve(s, 1);
    if (!guard_sqlite_prepare_into(&stmt, db, &sql, place)) {
        return missing;
    }
    guard_impl_defer_kind(s, &local_kind, &stmt, place);
    if (!guard_sqlite_step_at(&stmt, place)) {
        return missing;
    }
    int64_t value = sqlite3_column_type(stmt.raw, 0) == SQLITE_NULL ? missing : sqlite3_column_int64(stmt.raw, 0);
    if (!sqlite3_stmt_readonly(stmt.raw)) {
        guard_sqlite_run_at(&stmt, place); /* what it wrote is there when it has ended */
    }
    return value;
}

/* ---------------------------------------------------------------------------------------------- callbacks */

typedef struct row_call {
    guard_sqlite *db;
    guard_sqlite_row_fn *row;
    void *arg;
    int columns;
    char **texts;
    char **names;
    int answer;
    guard_latch latch;
} row_call;

static void run_row(void *arg)
{
    row_call *call = arg;
    call->answer = call->row(call->arg, call->columns, call->texts, call->names);
}

/* The border between SQLite's frames and the program's callback. */
static int row_border(void *arg, int columns, char **texts, char **names)
{
    row_call *call = arg;
    call->columns = columns;
    call->texts = texts;
    call->names = names;
    return guard_sqlite_border(call->db, &call->latch, run_row, call) != 0 || call->answer != 0;
}

int guard_sqlite_exec_rows_at(guard_sqlite *db, const char *sql, guard_sqlite_row_fn *row, void *arg,
                              const guard_place *place)
{
    row_call call = {.db = db, .row = row, .arg = arg};
    if (!check_exec(db, sql, place) || !guard_sqlite_may_run(db, place)) {
        return 0;
    }
    guard_latch_open(&call.latch);
    int rc = guard_sqlite_call_exec(db, sql, row != NULL ? row_border : NULL, &call, NULL);
    if (GUARD_IMPL_LIKELY(rc == SQLITE_OK && db->latch.code == 0)) {
        return 0;
    }
    guard_error error;
    guard_sqlite_note_error(db, rc, sql, &error);
    if (strchr(sql, ';') == NULL) {
        guard_sqlite_note_end(db, rc); /* of several, a former one may have been a COMMIT */
    }
    guard_sqlite_latch_raise(db, &call.latch);
    guard_sqlite_latch_raise(db, &db->latch);
    if ((rc & 0xff) == SQLITE_ABORT && call.answer != 0) {
        return call.answer;
    }
    guard_sqlite_raise_cancel(rc, place);
    guard_impl_panic_error(place, &error);
    __builtin_unreachable();
}
