/* SPDX-License-Identifier: MIT */
/*
 * Markers, and resolving a transaction in doubt.
 *
 * A marker is a row of the transaction itself: (session, seq) in main.guard_marker, seq growing with each transaction of the session. If
 * the row has the seq, the transaction is committed. Reading it alone proves little: frames that readers do not see may come back
 * with a crash. So the resolver takes the write lock, reads, and commits a fence: a write at the place in the WAL where the
 * doubtful frames lie (or, were they recovered, behind them). From then on what it read is the truth.
 *
 * A probe is the caller's query instead of the row. Its fence is user_version, written with the value it has.
 */
#include "guard_sqlite_internal.h"

#include <inttypes.h>
#include <stdio.h>

#define RESOLVE_MS 2000

/* ------------------------------------------------------------------------------------------------- marker */

void guard_sqlite_marker_install_at(guard_sqlite *db, const guard_place *place)
{
    guard_sqlite_exec_at(
        db,
        "CREATE TABLE IF NOT EXISTS main.guard_marker("
        "session TEXT PRIMARY KEY, seq INTEGER NOT NULL, fenced INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID",
        place);
}

static void new_session(guard_sqlite *db)
{
    uint64_t random[2];
    sqlite3_randomness(sizeof(random), random);
    snprintf(db->marker_session, sizeof(db->marker_session), "%016" PRIx64 "%016" PRIx64, random[0], random[1]);
    db->marker_sequence = 0;
}

int guard_sqlite_prepare_marker(guard_sqlite *db, guard_error *error)
{
    int rc = guard_sqlite_prepare_control(db, CONTROL_MARKER);
    if (rc != SQLITE_OK) {
        guard_sqlite_describe_error(db->raw, rc, "guard_marker", error);
        snprintf(error->hint, sizeof(error->hint), "call guard_sqlite_marker_install once for the database");
        return rc;
    }
    if (db->marker_session[0] == '\0') {
        new_session(db);
    }
    db->marker_sequence++;
    return 0;
}

int guard_sqlite_write_marker(guard_sqlite *db)
{
    sqlite3_stmt *stmt = db->control[CONTROL_MARKER];
    guard_sqlite_call_reset(stmt); /* nothing can be bound at the end of its last run */
    int rc = sqlite3_bind_text(stmt, 1, db->marker_session, -1, SQLITE_STATIC);
    if (rc == SQLITE_OK) {
        rc = sqlite3_bind_int64(stmt, 2, db->marker_sequence);
    }
    return rc == SQLITE_OK ? guard_sqlite_call_control(db, CONTROL_MARKER) : rc;
}

void guard_sqlite_make_token(const guard_sqlite *db, char token[GUARD_TOKEN_SIZE])
{
    if (db->options.marker == GUARD_SQLITE_PROBE) {
        snprintf(token, GUARD_TOKEN_SIZE, "sqlite-probe");
    } else {
        snprintf(token, GUARD_TOKEN_SIZE, "sqlite-marker %s %" PRId64, db->marker_session, db->marker_sequence);
    }
}

/* ------------------------------------------------------------------------------------------------ resolve */

typedef struct question {
    char session[33];
    int64_t sequence;
    const char *probe; /* NULL: the marker */
    const char *key;
} question;

static int parse_token(const char *token, question *q)
{
    *q = (question){.probe = NULL};
    return token != NULL && sscanf(token, "sqlite-marker %32[0-9a-f] %" SCNd64, q->session, &q->sequence) == 2;
}

static int read_answer(guard_sqlite *db, const question *q, int *committed)
{
    sqlite3_stmt *stmt = NULL;
    const char *sql = q->probe != NULL ? q->probe : "SELECT seq FROM main.guard_marker WHERE session = ?1";
    const char *key = q->probe != NULL ? q->key : q->session;
    int rc = guard_sqlite_call_prepare(db, sql, -1, 0, &stmt, NULL);
    if (rc == SQLITE_OK && sqlite3_bind_parameter_count(stmt) > 0) {
        rc = sqlite3_bind_text(stmt, 1, key, -1, SQLITE_STATIC);
    }
    if (rc == SQLITE_OK) {
        rc = guard_sqlite_call_step(db, stmt);
        *committed = rc == SQLITE_ROW && (q->probe != NULL || sqlite3_column_int64(stmt, 0) >= q->sequence);
        rc = rc == SQLITE_ROW || rc == SQLITE_DONE ? SQLITE_OK : sqlite3_extended_errcode(db->raw);
    }
    guard_sqlite_call_finalize(stmt);
    return rc;
}

static int read_pragma(guard_sqlite *db, const char *sql, int *value)
{
    sqlite3_stmt *stmt = NULL;
    int rc = guard_sqlite_call_prepare(db, sql, -1, 0, &stmt, NULL);
    if (rc == SQLITE_OK) {
        rc = guard_sqlite_call_step(db, stmt) == SQLITE_ROW ? SQLITE_OK : sqlite3_extended_errcode(db->raw);
        *value = sqlite3_column_int(stmt, 0);
    }
    guard_sqlite_call_finalize(stmt);
    return rc;
}

static int write_fence(guard_sqlite *db, const question *q)
{
    char sql[160];
    int version = 0;
    if (q->probe == NULL) {
        snprintf(sql, sizeof(sql),
                 "INSERT INTO main.guard_marker(session, seq, fenced) VALUES('%s', 0, 1)"
                 " ON CONFLICT(session) DO UPDATE SET fenced = fenced + 1",
                 q->session);
        return guard_sqlite_call_sql(db, sql);
    }
    int rc = read_pragma(db, "PRAGMA main.user_version", &version);
    snprintf(sql, sizeof(sql), "PRAGMA main.user_version = %d", version);
    return rc == SQLITE_OK ? guard_sqlite_call_sql(db, sql) : rc;
}

static int resolve_once(guard_sqlite *db, const question *q, int *committed)
{
    int rc = guard_sqlite_call_sql(db, "BEGIN IMMEDIATE");
    if (rc == SQLITE_OK) {
        rc = read_answer(db, q, committed);
    }
    if (rc == SQLITE_OK) {
        rc = write_fence(db, q);
    }
    if (rc == SQLITE_OK) {
        rc = guard_sqlite_call_sql(db, "COMMIT");
    }
    return rc;
}

/* A fault that may pass; all else would fail again. */
static int may_pass(int rc)
{
    int primary = rc & 0xff;
    return primary == SQLITE_BUSY || primary == SQLITE_LOCKED || primary == SQLITE_IOERR || primary == SQLITE_FULL ||
           primary == SQLITE_NOMEM || primary == SQLITE_PROTOCOL;
}

static int resolve_until(guard_sqlite *db, const question *q, int32_t limit_ms, int *committed, guard_error *error)
{
    busy_wait retry = {.limit_ms = limit_ms};
    int rc;
    db->wait = (busy_wait){.limit_ms = limit_ms};
    db->waiting = 1;
    while ((rc = resolve_once(db, q, committed)) != SQLITE_OK) {
        guard_sqlite_describe_error(db->raw, rc, "resolving a transaction in doubt", error);
        if (!sqlite3_get_autocommit(db->raw)) {
            guard_sqlite_call_sql(db, "ROLLBACK");
        }
        if (!may_pass(rc) || !guard_sqlite_wait_again(&retry)) {
            break;
        }
    }
    db->waiting = 0;
    return rc;
}

/* The fence is a proof only once it is on the disk. The handle's own setting comes back. */
static guard_outcome resolve(guard_sqlite *db, const question *q, int32_t limit_ms, guard_error *error)
{
    int committed = 0;
    int synchronous = 2;
    char sql[48];
    int rc = read_pragma(db, "PRAGMA main.synchronous", &synchronous);
    if (rc == SQLITE_OK && synchronous < 2) {
        rc = guard_sqlite_call_sql(db, "PRAGMA main.synchronous = FULL");
    }
    if (rc != SQLITE_OK) {
        guard_sqlite_describe_error(db->raw, rc, "PRAGMA synchronous", error);
        return GUARD_IN_DOUBT;
    }
    rc = resolve_until(db, q, limit_ms, &committed, error);
    if (synchronous < 2) {
        snprintf(sql, sizeof(sql), "PRAGMA main.synchronous = %d", synchronous);
        guard_sqlite_call_sql(db, sql);
    }
    if (rc != SQLITE_OK) {
        return GUARD_IN_DOUBT;
    }
    return committed ? GUARD_COMMITTED : GUARD_ROLLED_BACK;
}

guard_outcome guard_sqlite_resolve_now(guard_sqlite *db, const char *token, const guard_sqlite_tx_options *options,
                                       guard_error *error)
{
    question q;
    int32_t limit_ms = options != NULL && options->resolve_ms != 0 ? options->resolve_ms : RESOLVE_MS;
    if (options != NULL && options->marker == GUARD_SQLITE_PROBE) {
        q = (question){.probe = options->probe, .key = options->probe_key};
    } else if (!parse_token(token, &q)) {
        guard_error_set(error, GUARD_TX, GUARD_TX_IN_DOUBT, "the token names no marker, and there is no probe");
        return GUARD_IN_DOUBT;
    }
    return resolve(db, &q, limit_ms, error);
}

guard_outcome guard_sqlite_resolve_at(guard_sqlite *db, const char *token, const guard_sqlite_tx_options *options,
                                      guard_error *error, const guard_place *place)
{
    guard_error own;
    if (db == NULL || db->session.tx != NULL || !sqlite3_get_autocommit(db->raw)) {
        guard_impl_misuse(place, db == NULL ? GUARD_MISUSE_ARGUMENT : GUARD_MISUSE_STATE,
                          "resolving needs a connection that is not in a transaction");
        return GUARD_IN_DOUBT;
    }
    if (guard_sqlite_is_refused(db, place)) {
        return GUARD_IN_DOUBT;
    }
    return guard_sqlite_resolve_now(db, token, options, error != NULL ? error : &own);
}
