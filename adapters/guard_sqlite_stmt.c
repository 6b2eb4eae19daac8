/* SPDX-License-Identifier: MIT */
/*
 * Statements.
 *
 *     prepare -> idle --bind--> idle --step: row--> reading --step: end, reset, failure--> idle --> finalised
 *
 * Invariants
 *   - `stepped` is set exactly while SQLite considers the statement busy: only then may it hold a lock.
 *   - Every path that ends a step with something else than a row leaves the statement reset.
 *   - A handle whose connection was closed has neither db nor raw; its memory is its scope's.
 */
#include "guard_sqlite_internal.h"

#include <string.h>
#include <strings.h>

static void release_stmt(void *object);

static int64_t stmt_since(const void *object)
{
    return ((const guard_sqlite_stmt *)object)->since;
}

static const guard_kind stmt_kind = {.name = "sqlite statement",
                                     .release = release_stmt,
                                     .flags = GUARD_KIND_HEAP,
                                     .since = stmt_since,
                                     .action = "finalize"};

/* ------------------------------------------------------------------------------------------------- checks */

static inline void set_stepped(guard_sqlite_stmt *stmt, int stepped)
{
    if (GUARD_IMPL_UNLIKELY(stmt->stepped != stepped)) {
        stmt->db->reading += stepped ? 1U : -1U;
        stmt->stepped = stepped;
    }
}

__thread char guard_sqlite_here;

/* Slow side of guard_sqlite_may_run. */
int guard_sqlite_look(guard_sqlite *db, const guard_place *place)
{
    if (guard_sqlite_is_refused(db, place)) {
        return 0;
    }
    if (GUARD_IMPL_LIKELY(db->session.tx != NULL)) {
        if (db->thread != guard_sqlite_thread_here()) {
            guard_impl_misuse(place, GUARD_MISUSE_THREAD, "the connection is in a transaction of another thread");
            return 0;
        }
        if (sqlite3_get_autocommit(db->raw) || db->rolled_back) {
            guard_tx_refuse(&db->session, place);
        }
        return 1;
    }
    if (db->session.poison.code != 0) {
        guard_error error;
        guard_error_set(&error, GUARD_TX, GUARD_TX_POISONED,
                        "the connection is not usable: an earlier rollback on it failed");
        guard_error_attach(&error, &db->session.poison, GUARD_CAUSE);
        guard_impl_panic_error(place, &error);
    }
    db->watched = 0;
    return 1;
}

/* Past white space (a byte order mark too, as SQLite takes it) and comments. */
static const char *first_word(const char *sql)
{
    for (;;) {
        sql += strspn(sql, " \t\r\n\f;");
        if (strncmp(sql, "\xEF\xBB\xBF", 3) == 0) {
            sql += 3;
        } else if (sql[0] == '-' && sql[1] == '-') {
            sql += strcspn(sql, "\n");
        } else if (sql[0] == '/' && sql[1] == '*') {
            const char *end = strstr(sql + 2, "*/");
            sql = end != NULL ? end + 2 : sql + strlen(sql);
        } else {
            return sql;
        }
    }
}

static const char *skip_word(const char *sql, const char *word)
{
    size_t length = strlen(word);
    if (strncasecmp(sql, word, length) != 0 || sql[length] == '_' || (sql[length] >= '0' && sql[length] <= '9') ||
        ((sql[length] | 32) >= 'a' && (sql[length] | 32) <= 'z')) {
        return NULL;
    }
    return first_word(sql + length);
}

/* 1 for COMMIT, END and ROLLBACK; ROLLBACK TO a savepoint ends nothing. */
static int sql_ends(const char *sql)
{
    sql = first_word(sql);
    if (skip_word(sql, "COMMIT") != NULL || skip_word(sql, "END") != NULL) {
        return 1;
    }
    const char *rest = skip_word(sql, "ROLLBACK");
    if (rest == NULL) {
        return 0;
    }
    const char *after = skip_word(rest, "TRANSACTION");
    return skip_word(after != NULL ? after : rest, "TO") == NULL;
}

/* SQLite is in its middle, in a function that it called. */
static void refuse_running(const char *verb, const guard_place *place)
{
    guard_impl_misuse(place, GUARD_MISUSE_STATE, "a function that SQLite called %s the statement it was called from",
                      verb);
}

/* ------------------------------------------------------------------------------------------ prepare, close */

static void attach_stmt(guard_sqlite *db, guard_sqlite_stmt *stmt)
{
    stmt->db = db;
    stmt->previous = NULL;
    stmt->next = db->statements;
    if (stmt->next != NULL) {
        stmt->next->previous = stmt;
    }
    db->statements = stmt;
}

/*
 * Ends the reading of rows. What a statement with RETURNING wrote outside of a transaction is committed here, and that may fail
 * (c3ref/reset.html): returns that code. Of a step that failed it is repeated and was told then.
 */
static int end_reading(guard_sqlite_stmt *stmt)
{
    int is_untold = stmt->stepped;
    int rc = guard_sqlite_call_reset(stmt->raw);
    set_stepped(stmt, 0);
    return is_untold ? rc : SQLITE_OK;
}

static void describe_end(guard_sqlite_stmt *stmt, int rc, guard_error *error)
{
    guard_sqlite_note_error(stmt->db, rc, sqlite3_sql(stmt->raw), error);
    guard_sqlite_note_end(stmt->db, rc);
}

int guard_sqlite_detach_stmt(guard_sqlite_stmt *stmt, guard_error *error)
{
    if (stmt->db == NULL) {
        return 0;
    }
    int rc = stmt->stepped ? end_reading(stmt) : SQLITE_OK;
    if (GUARD_IMPL_UNLIKELY(rc != SQLITE_OK)) {
        describe_end(stmt, rc, error);
    }
    if (stmt->next != NULL) {
        stmt->next->previous = stmt->previous;
    }
    if (stmt->previous != NULL) {
        stmt->previous->next = stmt->next;
    } else {
        stmt->db->statements = stmt->next;
    }
    /* Its result repeats the last step's, which was told then. */
    guard_sqlite_call_finalize(stmt->raw);
    stmt->db = NULL;
    stmt->raw = NULL;
    return rc;
}

static void release_stmt(void *object)
{
    guard_sqlite_stmt *stmt = object;
    const guard_place *place = stmt->place;
    guard_error error;
    int rc = guard_sqlite_detach_stmt(stmt, &error);
    guard_deallocate(stmt);
    if (GUARD_IMPL_UNLIKELY(rc != SQLITE_OK)) {
        guard_impl_panic_error(place, &error);
    }
}

/* Prepares the first statement of *sql into *stmt and moves *sql behind it. 0: there is none, or misuse. */
int guard_sqlite_prepare_into(guard_sqlite_stmt *stmt, guard_sqlite *db, const char **sql, const guard_place *place)
{
    const char *text = *sql;
    sqlite3_stmt *raw = NULL;
    if (!guard_sqlite_may_run(db, place)) {
        *sql = "";
        return 0;
    }
    int rc = guard_sqlite_call_prepare(db, text, -1, 0, &raw, sql);
    if (GUARD_IMPL_UNLIKELY(db->latch.code != 0)) {
        /* The planner may evaluate a deterministic function. */
        guard_sqlite_call_finalize(raw);
        guard_sqlite_latch_raise(db, &db->latch);
    }
    if (rc != SQLITE_OK) {
        guard_sqlite_raise(db, rc, text, place);
    }
    if (raw == NULL) {
        return 0;
    }
    *stmt = (guard_sqlite_stmt){.raw = raw, .place = place, .since = guard_dump_clock(), .ends = sql_ends(text)};
    attach_stmt(db, stmt);
    return 1;
}

static void free_stmt(void *stmt)
{
    guard_deallocate(stmt);
}

static int prepare_only(guard_sqlite_stmt *stmt, guard_sqlite *db, const char *sql, const guard_place *place)
{
    const char *tail = sql;
    guard_error none;
    int found = guard_sqlite_prepare_into(stmt, db, &tail, place);
    if (found && first_word(tail)[0] == '\0') {
        return 1;
    }
    if (found) {
        guard_sqlite_detach_stmt(stmt, &none); /* it was never stepped */
    }
    guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT,
                      found ? "one statement is prepared at a time: %.100s" : "there is no statement in it: %.100s",
                      sql);
    return 0;
}

guard_sqlite_stmt *guard_sqlite_prepare_at(guard_scope *scope, guard_sqlite *db, const char *sql,
                                           const guard_place *place)
{
    if (db == NULL || sql == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the connection or the SQL is NULL");
        return NULL;
    }
    GUARD_AUTO(s);
    guard_reserve(scope, 1);
    guard_sqlite_stmt *stmt = guard_allocate(sizeof(*stmt));
    guard_ticket memory = guard_defer(s, free_stmt, stmt);
    if (!prepare_only(stmt, db, sql, place)) {
        return NULL;
    }
    guard_dismiss(memory);
    stmt->ticket = guard_impl_defer_kind(scope, &stmt_kind, stmt, place);
    return stmt;
}

void guard_sqlite_stmt_close(guard_sqlite_stmt *stmt)
{
    if (stmt == NULL) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "the statement is NULL");
        return;
    }
    if (stmt->running) {
        refuse_running("closes", GUARD_HERE);
        return;
    }
    guard_release(stmt->ticket);
}

sqlite3_stmt *guard_sqlite_stmt_raw(guard_sqlite_stmt *stmt)
{
    if (stmt == NULL) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "the statement is NULL");
        return NULL;
    }
    if (stmt->db != NULL) {
        stmt->db->raw_given = 1;
    }
    return stmt->raw;
}

/* --------------------------------------------------------------------------------------------------- step */

/* A failed step outside of a transaction changed nothing and may be tried again while others hold the lock. */
static int may_retry(const guard_sqlite *db, const guard_sqlite_stmt *stmt, int rc)
{
    return guard_sqlite_is_busy(rc) && !stmt->stepped && sqlite3_get_autocommit(db->raw);
}

/* Where the busy handler could not wait: an adopted handle, or a table locked in a shared cache. */
static int step_again(guard_sqlite *db, guard_sqlite_stmt *stmt, int rc)
{
    busy_wait wait = {.limit_ms = db->busy_ms};
    int handled = !db->adopted && rc != SQLITE_LOCKED_SHAREDCACHE; /* the handler has waited already */
    while (!handled && may_retry(db, stmt, rc) && guard_sqlite_wait_again(&wait)) {
        guard_sqlite_call_reset(stmt->raw);
        stmt->running = 1;
        rc = guard_sqlite_call_step(db, stmt->raw);
        stmt->running = 0;
        if (rc != SQLITE_ROW && rc != SQLITE_DONE) {
            rc = sqlite3_extended_errcode(db->raw);
        }
    }
    return rc;
}

/* The statement did not go on to a row or its end, or a function of the program's panicked in it. */
static void GUARD_NORETURN fail_step(guard_sqlite *db, guard_sqlite_stmt *stmt, int rc, const guard_place *place)
{
    guard_error error;
    guard_sqlite_note_error(db, rc, sqlite3_sql(stmt->raw), &error);
    guard_sqlite_note_end(db, rc);
    guard_sqlite_call_reset(stmt->raw);
    set_stepped(stmt, 0);
    guard_sqlite_latch_raise(db, &db->latch);
    guard_sqlite_raise_cancel(rc, place);
    guard_impl_panic_error(place, &error);
    __builtin_unreachable();
}

/* A statement that is not as others: 1 if it may be stepped all the same. */
static int may_step(const guard_sqlite *db, guard_sqlite_stmt *stmt, const guard_place *place)
{
    if (stmt->running) {
        refuse_running("steps", place);
        return 0;
    }
    if (stmt->cut) {
        stmt->cut = 0;
        return 0;
    }
    if (db->session.tx != NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "%.60s as SQL inside a guarded transaction",
                          sqlite3_sql(stmt->raw));
        return 0;
    }
    return 1;
}

static inline __attribute__((always_inline)) int step_stmt(guard_sqlite_stmt *stmt, const guard_place *place)
{
    if (!guard_sqlite_check_stmt(stmt, place)) {
        return 0;
    }
    guard_sqlite *db = stmt->db;
    if (!guard_sqlite_may_run(db, place)) {
        return 0;
    }
    if (GUARD_IMPL_UNLIKELY(stmt->ends | stmt->cut | stmt->running) && !may_step(db, stmt, place)) {
        return 0;
    }
    stmt->running = 1;
    int rc = guard_sqlite_step_any(db, stmt->raw);
    stmt->running = 0;
    if (GUARD_IMPL_UNLIKELY(rc != SQLITE_ROW && rc != SQLITE_DONE)) {
        rc = step_again(db, stmt, sqlite3_extended_errcode(db->raw));
    }
    if (GUARD_IMPL_UNLIKELY(db->latch.code != 0 || (rc != SQLITE_ROW && rc != SQLITE_DONE))) {
        fail_step(db, stmt, rc, place);
    }
    if (rc == SQLITE_ROW) {
        set_stepped(stmt, 1);
        return 1;
    }
    set_stepped(stmt, 0);
    sqlite3_reset(stmt->raw); /* at its end it holds nothing: no file is used */
    return 0;
}

int guard_sqlite_step_at(guard_sqlite_stmt *stmt, const guard_place *place)
{
    return step_stmt(stmt, place);
}

void guard_sqlite_run_at(guard_sqlite_stmt *stmt, const guard_place *place)
{
    while (step_stmt(stmt, place)) {
    }
}

void guard_sqlite_reset(guard_sqlite_stmt *stmt)
{
    guard_error error;
    if (stmt == NULL || stmt->raw == NULL) {
        return;
    }
    if (guard_sqlite_is_inherited(stmt->db, GUARD_HERE)) {
        return;
    }
    if (stmt->running) {
        refuse_running("resets", GUARD_HERE);
        return;
    }
    stmt->cut = 0;
    int rc = end_reading(stmt);
    if (GUARD_IMPL_UNLIKELY(rc != SQLITE_OK)) {
        describe_end(stmt, rc, &error);
        guard_impl_panic_error(stmt->place, &error);
    }
}

/* In a transaction: nothing is committed by it. */
void guard_sqlite_cut(guard_sqlite_stmt *stmt)
{
    stmt->cut = stmt->stepped;
    end_reading(stmt);
}

void guard_sqlite_reset_all(guard_sqlite *db)
{
    if (db->calls != 0 || db->inside != 0) {
        return; /* SQLite is in the middle of one */
    }
    for (guard_sqlite_stmt *stmt = db->statements; stmt != NULL; stmt = stmt->next) {
        guard_sqlite_cut(stmt);
    }
    if (!db->adopted) {
        guard_sqlite_reset_raw(db->raw);
    }
}

/*
 * Resets one after the other, each time from the start: a table-valued function has a statement of its own that is gone when the one that
 * reads it is reset. A blob has no SQL and is left alone.
 */
void guard_sqlite_reset_raw(sqlite3 *raw)
{
    sqlite3_stmt *stmt = sqlite3_next_stmt(raw, NULL);
    while (stmt != NULL) {
        if (sqlite3_stmt_busy(stmt) && sqlite3_sql(stmt) != NULL) {
            guard_sqlite_call_reset(stmt);
            stmt = NULL;
        }
        stmt = sqlite3_next_stmt(raw, stmt);
    }
}

/* --------------------------------------------------------------------------------------------------- bind */

/* A statement that is not simply reset. */
static __attribute__((noinline)) int may_bind_slow(guard_sqlite_stmt *stmt, const guard_place *place)
{
    if (guard_sqlite_is_inherited(stmt->db, place)) {
        return 0;
    }
    if (stmt->running) {
        refuse_running("binds a value to", place);
        return 0;
    }
    guard_sqlite_reset(stmt);
    return 1;
}

static inline __attribute__((always_inline)) int may_bind(guard_sqlite_stmt *stmt, const guard_place *place)
{
    if (!guard_sqlite_check_stmt(stmt, place)) {
        return 0;
    }
    int is_plain = (stmt->stepped | stmt->cut | stmt->running | stmt->db->is_inherited) == 0;
    return GUARD_IMPL_LIKELY(is_plain) || may_bind_slow(stmt, place);
}

static void check_bind(guard_sqlite_stmt *stmt, int rc, const guard_place *place)
{
    if (GUARD_IMPL_UNLIKELY(rc != SQLITE_OK)) {
        guard_sqlite_raise(stmt->db, rc, sqlite3_sql(stmt->raw), place);
    }
}

void guard_sqlite_bind_int64_at(guard_sqlite_stmt *stmt, int index, int64_t value, const guard_place *place)
{
    if (may_bind(stmt, place)) {
        check_bind(stmt, sqlite3_bind_int64(stmt->raw, index, value), place);
    }
}

void guard_sqlite_bind_double_at(guard_sqlite_stmt *stmt, int index, double value, const guard_place *place)
{
    if (may_bind(stmt, place)) {
        check_bind(stmt, sqlite3_bind_double(stmt->raw, index, value), place);
    }
}

void guard_sqlite_bind_null_at(guard_sqlite_stmt *stmt, int index, const guard_place *place)
{
    if (may_bind(stmt, place)) {
        check_bind(stmt, sqlite3_bind_null(stmt->raw, index), place);
    }
}

void guard_sqlite_bind_text_at(guard_sqlite_stmt *stmt, int index, const char *text, int64_t length,
                               sqlite3_destructor_type destructor, const guard_place *place)
{
    if (length < -1) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "a text has a length, or -1 where it ends with a NUL");
        return;
    }
    if (may_bind(stmt, place)) {
        sqlite3_uint64 bytes = text == NULL ? 0 : length < 0 ? strlen(text) : (sqlite3_uint64)length;
        check_bind(stmt, sqlite3_bind_text64(stmt->raw, index, text, bytes, destructor, SQLITE_UTF8), place);
    }
}

void guard_sqlite_bind_blob_at(guard_sqlite_stmt *stmt, int index, const void *data, int64_t length,
                               sqlite3_destructor_type destructor, const guard_place *place)
{
    if (length < 0) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "a blob has a length");
        return;
    }
    if (may_bind(stmt, place)) {
        check_bind(stmt, sqlite3_bind_blob64(stmt->raw, index, data, (sqlite3_uint64)length, destructor), place);
    }
}
