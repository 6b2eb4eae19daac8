/* SPDX-License-Identifier: MIT */
/*
 * What tx.h asks of a database, for SQLite.
 *
 * Whether there is a transaction is sqlite3_get_autocommit's to say, each time; `rolled_back` says how one ended that is gone:
 * the rollback hook (opened connections) or a failed statement of ours told so. A transaction that is gone without either was ended by
 * SQL that we did not see, and its outcome is not known.
 *
 * That there is one does not prove that it is ours: SQL behind our back may have ended ours and begun another.
 *   - rolled_back: ours is gone for good, and what is open is the program's own; we leave it alone.
 *   - committed_elsewhere: part of ours may be committed; it is no longer told as rolled back.
 * The hooks of an opened connection say so at once; an adopted handle is asked when the guard ends (guard_sqlite_proof.c).
 */
#include "guard_sqlite_internal.h"

#include <stdio.h>

static guard_tx_status driver_status(void *connection)
{
    const guard_sqlite *db = connection;
    int is_gone = sqlite3_get_autocommit(db->raw) || (db->session.tx != NULL && db->rolled_back);
    return is_gone ? GUARD_TX_IDLE : GUARD_TX_ACTIVE;
}

/* Those of the last tree are mostly the defaults too. */
static inline void set_options(guard_sqlite *db, const guard_sqlite_tx_options *options)
{
    static const guard_sqlite_tx_options defaults;
    if (GUARD_IMPL_UNLIKELY(options != NULL || db->has_options)) {
        db->options = options != NULL ? *options : defaults;
        db->has_options = options != NULL;
    }
}

/* A tree has begun: what is known of the former one, and of attempts to begin, is forgotten. */
static void start_tree(guard_sqlite *db)
{
    db->rolled_back = 0;
    db->committed_elsewhere = 0;
    db->has_first_error = 0;
    db->thread = guard_sqlite_thread_here();
    db->watched = 1;
}

/*
 * ROLLBACK, repeated where it was stopped: an interrupt holds until no statement of the connection is running any more
 * (c3ref/interrupt.html), so that one which is being read would stop it for ever. That one is reset then; of an adopted handle
 * only ours.
 */
static int send_rollback(guard_sqlite *db)
{
    int rc = guard_sqlite_call_control(db, CONTROL_ROLLBACK);
    for (int tries = 0; GUARD_IMPL_UNLIKELY(!sqlite3_get_autocommit(db->raw)) && tries < 3; tries++) {
        guard_sqlite_reset_all(db);
        rc = guard_sqlite_call_control(db, CONTROL_ROLLBACK);
    }
    return rc;
}

/* -------------------------------------------------------------------------------------------------- begin */

/*
 * COMMIT and ROLLBACK are prepared before BEGIN is run: ending a transaction must not need memory. The marker's
 * table is looked for by preparing its statement, so that a missing one is told now and not at COMMIT.
 */
static inline __attribute__((always_inline)) int prepare_ends(guard_sqlite *db, guard_error *error)
{
    int rc = SQLITE_OK;
    if (db->control[CONTROL_COMMIT] == NULL || db->control[CONTROL_ROLLBACK] == NULL) {
        rc = guard_sqlite_prepare_control(db, CONTROL_COMMIT);
        if (rc == SQLITE_OK) {
            rc = guard_sqlite_prepare_control(db, CONTROL_ROLLBACK);
        }
    }
    if (rc != SQLITE_OK) {
        guard_sqlite_describe_error(db->raw, rc, "BEGIN", error);
        return rc;
    }
    return db->options.marker == GUARD_SQLITE_MARKER_ROW ? guard_sqlite_prepare_marker(db, error) : 0;
}

/* BEGIN failed, or what belongs behind it. */
static int fail_begin(guard_sqlite *db, int rc, int32_t limit_ms, guard_error *error)
{
    guard_sqlite_describe_error(db->raw, rc, "BEGIN", error);
    if (GUARD_IMPL_UNLIKELY(!sqlite3_get_autocommit(db->raw))) {
        send_rollback(db); /* a progress handler of the program's stopped BEGIN behind its end */
    }
    if (guard_sqlite_is_busy(rc)) {
        snprintf(error->hint, sizeof(error->hint), "another connection held it for %d ms: raise busy_ms, or end it",
                 (int)limit_ms);
    }
    return rc;
}

static inline __attribute__((always_inline)) int begin_any(guard_sqlite *db, guard_error *error)
{
    int code = prepare_ends(db, error);
    if (GUARD_IMPL_UNLIKELY(code != 0)) {
        return code;
    }
    int32_t limit_ms = db->options.busy_ms != 0 ? db->options.busy_ms : db->busy_ms;
    int rc = guard_sqlite_control_waiting(db, (control)(CONTROL_BEGIN + db->options.mode), limit_ms);
    if (GUARD_IMPL_LIKELY(rc == SQLITE_OK)) {
        start_tree(db);
        return 0;
    }
    return fail_begin(db, rc, limit_ms, error);
}

static __attribute__((noinline)) int begin_adopted(guard_sqlite *db, guard_error *error)
{
    int rc = guard_sqlite_prepare_proof(db, error);
    if (rc == SQLITE_OK) {
        rc = begin_any(db, error);
    }
    if (rc != SQLITE_OK) {
        return rc;
    }
    rc = guard_sqlite_set_proof(db);
    return rc == SQLITE_OK ? 0 : fail_begin(db, rc, 0, error);
}

static int driver_begin(void *connection, const void *options, guard_error *error)
{
    guard_sqlite *db = connection;
    set_options(db, options);
    return GUARD_IMPL_UNLIKELY(db->adopted) ? begin_adopted(db, error) : begin_any(db, error);
}

/* ------------------------------------------------------------------------------------------------- commit */

static int is_writing(sqlite3_stmt *stmt)
{
    return sqlite3_stmt_busy(stmt) && !sqlite3_stmt_readonly(stmt);
}

/*
 * Resets the statements that write and were not read to their end. All their changes were made by the first step
 * (lang_returning.html, 2.1), so that nothing is lost but rows nobody asked for. Returns how many there were; or -1 in a function that
 * SQLite has called: one of them is in its middle, and resetting that would pull it away under SQLite's feet.
 */
int guard_sqlite_reset_writers(guard_sqlite *db)
{
    int running = db->calls != 0 || db->inside != 0;
    int count = running ? 0 : guard_sqlite_end_writable_blobs(db);
    for (guard_sqlite_stmt *stmt = db->statements; stmt != NULL && !running; stmt = stmt->next) {
        if (is_writing(stmt->raw)) {
            guard_sqlite_cut(stmt);
            count++;
        }
    }
    for (sqlite3_stmt *stmt = NULL; (stmt = sqlite3_next_stmt(db->raw, stmt)) != NULL;) {
        if (is_writing(stmt)) {
            if (running) {
                return -1;
            }
            if (sqlite3_sql(stmt) == NULL) {
                continue; /* a raw blob of the program's, which SQLite would use on */
            }
            guard_sqlite_call_reset(stmt);
            count++;
        }
    }
    return count;
}

/* What is open was rolled back: all of the transaction, unless SQL that we did not see has committed before. */
static guard_outcome tell_rollback(guard_sqlite *db, guard_result *result)
{
    if (GUARD_IMPL_UNLIKELY(db->committed_elsewhere)) {
        result->notes |= GUARD_NOTE_ENDED_ELSEWHERE;
        return GUARD_IN_DOUBT;
    }
    if (GUARD_IMPL_UNLIKELY(guard_sqlite_cannot_undo(db))) {
        guard_error later;
        guard_error_set(&later, GUARD_TX, GUARD_TX_IN_DOUBT,
                        "with journal_mode = OFF, SQLite cannot take back what it has written");
        if (result->has_error) {
            guard_error_attach(&result->error, &later, GUARD_ATTACHED);
        } else {
            result->error = later;
            result->has_error = 1;
        }
        return GUARD_IN_DOUBT;
    }
    return GUARD_ROLLED_BACK;
}

/* The transaction is gone without a COMMIT of ours. */
static guard_outcome tell_end(guard_sqlite *db, guard_result *result)
{
    result->has_error = 1;
    if (db->rolled_back && !db->committed_elsewhere) {
        if (db->has_first_error) {
            result->error = db->first_error;
        } else {
            guard_error_set(&result->error, GUARD_TX, GUARD_TX_ROLLED_BACK, "SQLite has rolled the transaction back");
        }
        return tell_rollback(db, result);
    }
    result->notes |= GUARD_NOTE_ENDED_ELSEWHERE;
    guard_error_set(&result->error, GUARD_TX, GUARD_TX_IN_DOUBT,
                    "the transaction was ended by SQL that did not go through the guard");
    if (db->options.marker == GUARD_SQLITE_PROBE) {
        guard_sqlite_make_token(db, result->token);
    }
    return GUARD_IN_DOUBT;
}

/* BUSY until the deadline, with the transaction kept: it is taken back now. */
static guard_outcome give_up_commit(guard_sqlite *db, int32_t limit_ms, guard_result *result)
{
    snprintf(result->error.hint, sizeof(result->error.hint), "other connections used it for %d ms: raise commit_ms",
             (int)limit_ms);
    int rc = send_rollback(db);
    if (sqlite3_get_autocommit(db->raw)) {
        return tell_rollback(db, result);
    }
    guard_error later;
    guard_sqlite_describe_error(db->raw, rc, "ROLLBACK", &later);
    guard_error_attach(&result->error, &later, GUARD_ATTACHED);
    return GUARD_OPEN;
}

/* Only a DEFERRED transaction may have written nothing that a lost answer could lose. */
static int may_have_written(guard_sqlite *db)
{
    return db->options.mode != GUARD_SQLITE_DEFERRED || sqlite3_txn_state(db->raw, NULL) == SQLITE_TXN_WRITE;
}

static guard_outcome fail_commit(guard_sqlite *db, int rc, int wrote, int32_t limit_ms, guard_result *result)
{
    guard_sqlite_describe_error(db->raw, rc, "COMMIT", &result->error);
    result->has_error = 1;
    if (sqlite3_get_autocommit(db->raw)) {
        guard_outcome outcome = guard_sqlite_judge_commit(db, rc, wrote, result);
        return outcome == GUARD_ROLLED_BACK ? tell_rollback(db, result) : outcome;
    }
    return guard_sqlite_is_busy(rc) ? give_up_commit(db, limit_ms, result) : GUARD_OPEN;
}

static guard_outcome fail_marker(guard_sqlite *db, int rc, guard_result *result)
{
    guard_sqlite_note_error(db, rc, "guard_marker", &result->error);
    result->has_error = 1;
    return sqlite3_get_autocommit(db->raw) ? GUARD_ROLLED_BACK : GUARD_OPEN;
}

/* SQLite need not be asked where nothing can stand on a row: nobody but us steps statements, and none of ours does. */
static inline __attribute__((always_inline)) int has_reader(guard_sqlite *db)
{
    if (GUARD_IMPL_LIKELY(!(db->raw_given | db->adopted) && (db->reading | db->calls) == 0 && db->blobs == NULL &&
                          db->backups_from == NULL && db->functions == NULL)) {
        return 0;
    }
    return sqlite3_txn_state(db->raw, NULL) != SQLITE_TXN_NONE;
}

static inline __attribute__((always_inline)) guard_outcome commit_ours(guard_sqlite *db, guard_result *result)
{
    int wrote = may_have_written(db);
    if (db->options.marker == GUARD_SQLITE_MARKER_ROW && wrote) {
        int rc = guard_sqlite_write_marker(db);
        if (rc != SQLITE_OK) {
            return fail_marker(db, rc, result);
        }
    }
    int32_t limit_ms = db->options.commit_ms != 0 ? db->options.commit_ms : db->busy_ms;
    db->committing = 1;
    int rc = guard_sqlite_control_waiting(db, CONTROL_COMMIT, limit_ms);
    if (GUARD_IMPL_UNLIKELY(rc != SQLITE_OK)) {
        guard_outcome outcome = fail_commit(db, rc, wrote, limit_ms, result);
        db->committing = 0; /* not before: resolving is a COMMIT of ours too */
        return outcome;
    }
    db->committing = 0;
    if (GUARD_IMPL_UNLIKELY(has_reader(db))) {
        result->notes |= GUARD_NOTE_READER_LEFT_OPEN;
    }
    return GUARD_COMMITTED;
}

/* The proof is gone, and the transaction is there: without a new one it is taken back, where that can be. */
static guard_outcome prove_anew(guard_sqlite *db, guard_result *result)
{
    guard_error later;
    int rc = guard_sqlite_set_proof(db);
    if (rc == SQLITE_OK) {
        return GUARD_OPEN;
    }
    guard_sqlite_describe_error(db->raw, rc, "SAVEPOINT", &later);
    guard_error_attach(&result->error, &later, GUARD_ATTACHED);
    send_rollback(db);
    if (sqlite3_get_autocommit(db->raw)) {
        return tell_rollback(db, result);
    }
    db->proof = PROOF_MAYBE;
    return GUARD_OPEN;
}

static guard_outcome commit_if_ours(guard_sqlite *db, guard_result *result)
{
    int rc;
    proved found = guard_sqlite_prove(db, &rc);
    if (found == PROVED_OTHER) {
        return tell_end(db, result);
    }
    if (found == PROVED_NOTHING) {
        guard_sqlite_describe_error(db->raw, rc, "COMMIT", &result->error);
        result->has_error = 1;
        return GUARD_OPEN;
    }
    guard_outcome outcome = commit_ours(db, result);
    return outcome == GUARD_OPEN && db->proof == PROOF_NONE ? prove_anew(db, result) : outcome;
}

/* Where more is to be asked than whether a transaction is open. */
static __attribute__((noinline)) guard_outcome commit_slow(guard_sqlite *db, guard_result *result)
{
    time_t second;
    if (sqlite3_get_autocommit(db->raw) || db->rolled_back) {
        return tell_end(db, result);
    }
    if (guard_sqlite_should_look(db, &second)) {
        if (guard_sqlite_look_for_files(db, &result->error)) {
            result->has_error = 1;
            return GUARD_OPEN;
        }
        db->looked = second;
    }
    return db->proof != PROOF_NONE ? commit_if_ours(db, result) : commit_ours(db, result);
}

static guard_outcome driver_commit(void *connection, guard_result *result)
{
    guard_sqlite *db = connection;
    time_t second;
    if (GUARD_IMPL_UNLIKELY((sqlite3_get_autocommit(db->raw) | db->rolled_back | (int)db->proof) != 0 ||
                            guard_sqlite_should_look(db, &second))) {
        return commit_slow(db, result);
    }
    return commit_ours(db, result);
}

/*
 * Where ROLLBACK fails and the transaction is still there, nothing of it is kept on a connection of our own: it is poisoned,
 * so that no COMMIT is ever sent, and closing it rolls back. An adopted handle may still be told anything.
 */
static guard_outcome driver_rollback(void *connection, guard_result *result)
{
    guard_sqlite *db = connection;
    if (GUARD_IMPL_UNLIKELY(db->proof != PROOF_NONE) && guard_sqlite_prove_at_rollback(db) == PROVED_OTHER) {
        return tell_rollback(db, result);
    }
    int rc = send_rollback(db);
    if (GUARD_IMPL_LIKELY(sqlite3_get_autocommit(db->raw))) {
        return tell_rollback(db, result);
    }
    guard_sqlite_describe_error(db->raw, rc, "ROLLBACK", &result->error);
    result->has_error = 1;
    return db->adopted ? GUARD_IN_DOUBT : GUARD_ROLLED_BACK;
}

/* --------------------------------------------------------------------------------------------- savepoints */

static int run_savepoint(guard_sqlite *db, control first, const char *verb, const guard_tx_savepoint *savepoint)
{
    if (!savepoint->named && savepoint->level <= SAVEPOINT_LEVELS) {
        return guard_sqlite_call_control(db, (control)(first + savepoint->level - 1));
    }
    char sql[176];
    snprintf(sql, sizeof(sql), "%s %s", verb, savepoint->name);
    return guard_sqlite_call_sql(db, sql);
}

static int fail_savepoint(guard_sqlite *db, int rc, const char *verb, guard_error *error)
{
    guard_sqlite_note_error(db, rc, verb, error);
    guard_sqlite_note_end(db, rc);
    return error->code;
}

static int driver_savepoint(void *connection, const guard_tx_savepoint *savepoint, guard_error *error)
{
    guard_sqlite *db = connection;
    if (GUARD_IMPL_UNLIKELY(savepoint->in_foreign && savepoint->level == 1)) {
        set_options(db, NULL);
        start_tree(db);
        guard_sqlite_forget_proof(db);
    }
    int rc = run_savepoint(db, CONTROL_SAVEPOINT, "SAVEPOINT", savepoint);
    return GUARD_IMPL_LIKELY(rc == SQLITE_OK) ? 0 : fail_savepoint(db, rc, "SAVEPOINT", error);
}

static int driver_release(void *connection, const guard_tx_savepoint *savepoint, guard_error *error)
{
    guard_sqlite *db = connection;
    int rc = run_savepoint(db, CONTROL_RELEASE, "RELEASE", savepoint);
    if (GUARD_IMPL_UNLIKELY(rc == SQLITE_BUSY && guard_sqlite_reset_writers(db) > 0)) {
        rc = run_savepoint(db, CONTROL_RELEASE, "RELEASE", savepoint);
    }
    return GUARD_IMPL_LIKELY(rc == SQLITE_OK) ? 0 : fail_savepoint(db, rc, "RELEASE", error);
}

static int driver_rollback_to(void *connection, const guard_tx_savepoint *savepoint, guard_error *error)
{
    guard_sqlite *db = connection;
    int rc = run_savepoint(db, CONTROL_ROLLBACK_TO, "ROLLBACK TO", savepoint);
    if (rc != SQLITE_OK) {
        return fail_savepoint(db, rc, "ROLLBACK TO", error);
    }
    return driver_release(db, savepoint, error);
}

static int driver_retryable(void *connection, const guard_error *error)
{
    guard_sqlite *db = connection;
    return (error->domain == GUARD_SQLITE && error->code == SQLITE_BUSY_SNAPSHOT) ||
           (db->has_first_error && db->first_error.code == SQLITE_BUSY_SNAPSHOT);
}

static void driver_forget(void *connection)
{
    guard_sqlite *db = connection;
    db->has_first_error = 0;
}

static size_t driver_describe(const void *connection, char *text, size_t size)
{
    const guard_sqlite *db = connection;
    int length = snprintf(text, size, "%s", db->path);
    return length < 0 ? 0 : (size_t)length;
}

const guard_tx_driver guard_sqlite_driver = {
    .name = "sqlite",
    .status = driver_status,
    .begin = driver_begin,
    .commit = driver_commit,
    .rollback = driver_rollback,
    .savepoint = driver_savepoint,
    .release = driver_release,
    .rollback_to = driver_rollback_to,
    .retryable = driver_retryable,
    .forget = driver_forget,
    .describe = driver_describe,
};

/* ---------------------------------------------------------------------------------------------- the forms */

static int check_given(const guard_sqlite_tx_options *options, const guard_place *place)
{
    uint32_t reserved = 0;
    for (size_t i = 0; i < sizeof(options->reserved) / sizeof(options->reserved[0]); i++) {
        reserved |= options->reserved[i];
    }
    if (reserved != 0 || options->zero != 0 || options->mode < 0 || options->mode > GUARD_SQLITE_EXCLUSIVE ||
        options->busy_ms < -1 || options->commit_ms < -1 || options->resolve_ms < -1 || options->marker < 0 ||
        options->marker > GUARD_SQLITE_PROBE || (options->marker == GUARD_SQLITE_PROBE) != (options->probe != NULL)) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "transaction options out of range (reserved words must be 0)");
        return 0;
    }
    return 1;
}

static int check_begin(const guard_sqlite *db, const guard_sqlite_tx_options *options, const guard_place *place)
{
    if (db == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the connection is NULL");
        return 0;
    }
    return (options == NULL || check_given(options, place)) && !guard_sqlite_is_refused(db, place);
}

/* Apart: the other needs no registers of its own. */
static __attribute__((noinline)) guard_tx *
begin_checked(guard_scope *scope, guard_sqlite *db, const guard_sqlite_tx_options *options, const guard_place *place)
{
    if (!check_begin(db, options, place)) {
        return NULL;
    }
    return guard_tx_begin(scope, &db->session, options != NULL ? &options->tx : NULL, options, place);
}

guard_tx *guard_sqlite_begin_at(guard_scope *scope, guard_sqlite *db, const guard_sqlite_tx_options *options,
                                const guard_place *place)
{
    if (GUARD_IMPL_UNLIKELY(db == NULL || options != NULL || (db->is_inherited | db->is_destination) != 0)) {
        return begin_checked(scope, db, options, place);
    }
    return guard_tx_begin(scope, &db->session, NULL, NULL, place);
}

guard_outcome guard_sqlite_transact_at(guard_sqlite *db, guard_tx_fn *fn, void *arg,
                                       const guard_sqlite_tx_options *options, guard_result *result,
                                       const guard_place *place)
{
    if (!check_begin(db, options, place)) {
        return GUARD_OPEN;
    }
    return guard_tx_transact(&db->session, fn, arg, options != NULL ? &options->tx : NULL, options, result, place);
}

typedef struct raw_call {
    sqlite3 *raw;
    guard_tx_fn *fn;
    void *arg;
    const guard_sqlite_tx_options *options;
    guard_result *result;
    const guard_place *place;
    int done;
} raw_call;

static void run_raw(void *arg)
{
    raw_call *call = arg;
    GUARD_AUTO(s);
    guard_sqlite *db = guard_sqlite_adopt_at(s, call->raw, NULL, call->place);
    if (db != NULL) {
        guard_sqlite_transact_at(db, call->fn, call->arg, call->options, call->result, call->place);
        call->done = 1;
    }
}

guard_outcome guard_sqlite_transact_raw_at(sqlite3 *raw, guard_tx_fn *fn, void *arg,
                                           const guard_sqlite_tx_options *options, guard_result *result,
                                           const guard_place *place)
{
    guard_result own;
    guard_error error;
    guard_result *to = result != NULL ? result : &own;
    raw_call call = {.raw = raw, .fn = fn, .arg = arg, .options = options, .result = to, .place = place};
    int code = guard_run(run_raw, &call, &error);
    if (!call.done) {
        *to = (guard_result){.outcome = GUARD_ROLLED_BACK, .attempts = 1};
    }
    if (code != 0 && to->has_error) {
        guard_error_attach(&to->error, &error, GUARD_ATTACHED);
    } else if (code != 0) {
        to->error = error;
        to->has_error = 1;
    }
    if (result == NULL && to->has_error && to->outcome != GUARD_ROLLED_BACK) {
        guard_note("a transaction is %s: %s", guard_outcome_name(to->outcome), to->error.message);
    }
    return to->outcome;
}

guard_sqlite *guard_sqlite_of(guard_tx *tx)
{
    return guard_tx_connection(tx);
}
