/* SPDX-License-Identifier: MIT */
/*
 * SQLite connections.
 *
 *   guard_sqlite_open:  sqlite3_open_v2 -> set up -> registered -> closed: rolled back, all statements finalised, sqlite3_close
 *   guard_sqlite_adopt:                      registered -> ended: rolled back, our statements finalised, the handle stays
 *
 * Invariants
 *   - Whatever is registered on the connection (statement, blob, backup, transaction) has a handle of its own, in a list here, whose
 *     memory belongs to its own scope: closing the connection first leaves it valid, without a connection.
 *   - sqlite3_close, never _v2, while statements are left: a zombie keeps its locks.
 */
#include "guard_sqlite_internal.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define BUSY_MS 5000

static void close_connection(void *object);

static size_t describe_connection(const void *object, char *text, size_t size)
{
    const guard_sqlite *db = object;
    const char *slash = strrchr(db->path, '/');
    int length = snprintf(text, size, "SQLite connection to %s", slash != NULL ? slash + 1 : db->path);
    return length < 0 ? 0 : (size_t)length;
}

static int64_t connection_since(const void *object)
{
    return ((const guard_sqlite *)object)->since;
}

/*
 * What the child of a fork has of its parent's connections. Nothing is ever done with them: their locks are the parent's, and SQLite in this
 * process believes to hold them (howtocorrupt.html, 2.6), also for a second connection to the same file.
 */
static guard_sqlite *inherited;

/* In fork, in the child, where there is one thread. */
static void inherit(void *object)
{
    guard_sqlite *db = object;
    db->is_inherited = 1;
    db->watched = 1;
    db->next_inherited = inherited;
    inherited = db;
}

void guard_sqlite_refuse_inherited(const guard_place *place)
{
    guard_impl_misuse(place, GUARD_MISUSE_STATE, "the connection belongs to the parent process");
}

void guard_sqlite_refuse(const guard_sqlite *db, const guard_place *place)
{
    if (db->is_inherited) {
        guard_sqlite_refuse_inherited(place);
    } else {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "a backup into the connection has not ended");
    }
}

static void note_file(guard_sqlite *db)
{
    const char *path = db->raw != NULL ? sqlite3_db_filename(db->raw, "main") : NULL;
    struct stat file;
    snprintf(db->path, sizeof(db->path), "%s", path != NULL && path[0] != '\0' ? path : ":memory:");
    if (path != NULL && path[0] != '\0' && stat(path, &file) == 0) {
        db->device = file.st_dev;
        db->inode = file.st_ino;
        guard_sqlite_note_root();
    }
}

/* Whether it is among the files that are attached to `other`; without SQLite 3.39 nobody can tell. */
static int is_attached(const guard_sqlite *other, const guard_sqlite *db)
{
#if SQLITE_VERSION_NUMBER >= 3039000
    const char *name;
    for (int i = 1; other->raw != NULL && (name = sqlite3_db_name(other->raw, i)) != NULL; i++) {
        const char *path = sqlite3_db_filename(other->raw, name);
        struct stat file;
        if (path != NULL && path[0] != '\0' && stat(path, &file) == 0 && file.st_ino == db->inode &&
            file.st_dev == db->device) {
            return 1;
        }
    }
#endif
    (void)other;
    (void)db;
    return 0;
}

/* A file that the parent had open is refused until exec. */
static int is_parents_file(const guard_sqlite *db)
{
    const guard_sqlite *other = db->inode != 0 ? inherited : NULL;
    while (other != NULL && (other->inode != db->inode || other->device != db->device) && !is_attached(other, db)) {
        other = other->next_inherited;
    }
    return other != NULL;
}

static const guard_kind connection_kind = {
    .name = "sqlite connection",
    .release = close_connection,
    .child = inherit,
    .describe = describe_connection,
    .since = connection_since,
    .action = "close",
    .flags = GUARD_KIND_HEAP | GUARD_KIND_AT_FORK,
};

static int check_options(const guard_sqlite_options *options, const guard_place *place)
{
    uint32_t reserved = 0;
    if (options == NULL) {
        return 1;
    }
    for (size_t i = 0; i < sizeof(options->reserved) / sizeof(options->reserved[0]); i++) {
        reserved |= options->reserved[i];
    }
    if (reserved != 0 || options->flags > 31 || options->busy_ms < -1 || options->journal < 0 ||
        options->journal > GUARD_SQLITE_PERSIST || options->synchronous < 0 ||
        options->synchronous > GUARD_SQLITE_SYNC_OFF) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "connection options out of range (reserved words must be 0)");
        return 0;
    }
    return 1;
}

static guard_sqlite *new_connection(const guard_sqlite_options *options)
{
    guard_sqlite *db = guard_allocate(sizeof(*db));
    memset(db, 0, sizeof(*db));
    db->since = guard_dump_clock();
    db->busy_ms = options != NULL && options->busy_ms != 0 ? options->busy_ms : BUSY_MS;
    guard_latch_open(&db->latch);
    guard_tx_session_open(&db->session, &guard_sqlite_driver, db);
    return db;
}

/* --------------------------------------------------------------------------------------------------- open */

/*
 * The mode is written by a statement that reads first: where another connection writes, or makes the file at the same moment, SQLite
 * says SQLITE_BUSY without asking the busy handler, as two would wait for each other.
 */
static int step_waiting(guard_sqlite *db, sqlite3_stmt *stmt)
{
    db->wait = (busy_wait){.limit_ms = db->busy_ms};
    db->waiting = 1;
    int rc = guard_sqlite_call_step(db, stmt);
    while (guard_sqlite_is_busy(rc) && guard_sqlite_wait_again(&db->wait)) {
        guard_sqlite_call_reset(stmt);
        rc = guard_sqlite_call_step(db, stmt);
    }
    db->waiting = 0;
    return rc;
}

/* The journal mode is asked for and comes back as it is; a database in memory has its own. */
static int set_journal(guard_sqlite *db, int journal)
{
    static const char *const names[] = {NULL, "wal", "delete", "truncate", "persist"};
    char sql[48];
    sqlite3_stmt *stmt;
    if (journal == GUARD_SQLITE_JOURNAL_AS_IS) {
        return SQLITE_OK;
    }
    snprintf(sql, sizeof(sql), "PRAGMA main.journal_mode = %s", names[journal]);
    int rc = guard_sqlite_call_prepare(db, sql, -1, 0, &stmt, NULL);
    if (rc != SQLITE_OK) {
        return rc;
    }
    rc = step_waiting(db, stmt);
    if (rc == SQLITE_ROW) {
        const char *mode = (const char *)sqlite3_column_text(stmt, 0);
        rc = mode != NULL && (strcmp(mode, names[journal]) == 0 || strcmp(mode, "memory") == 0) ? SQLITE_OK
                                                                                                : SQLITE_CANTOPEN;
    }
    int finalized = guard_sqlite_call_finalize(stmt);
    return finalized != SQLITE_OK ? finalized : rc;
}

static void note_rollback(void *arg)
{
    guard_sqlite *db = arg;
    db->rolled_back = 1;
}

static int note_commit(void *arg)
{
    guard_sqlite *db = arg;
    db->committed_elsewhere |= !db->committing;
    return 0;
}

static int set_up(guard_sqlite *db, const guard_sqlite_options *options)
{
    /*
     * SQLite's own FULL does not sync the folder after the deletion of a journal: a power cut may bring it back, and with it what was
     * before a COMMIT that succeeded (pragma.html; tried, check_sqlite_crash). In WAL mode its EXTRA does no more than its FULL.
     */
    static const char *const synchronous[] = {"PRAGMA synchronous = EXTRA", "PRAGMA synchronous = EXTRA",
                                              "PRAGMA synchronous = NORMAL", "PRAGMA synchronous = OFF"};
    uint32_t flags = options != NULL ? options->flags : 0;
    sqlite3_extended_result_codes(db->raw, 1);
    sqlite3_busy_handler(db->raw, guard_sqlite_busy_handler, db);
    sqlite3_progress_handler(db->raw, GUARD_SQLITE_PROGRESS, guard_sqlite_progress, db);
    sqlite3_commit_hook(db->raw, note_commit, db);
    sqlite3_rollback_hook(db->raw, note_rollback, db);
    int rc = guard_sqlite_call_sql(db, synchronous[options != NULL ? options->synchronous : 0]);
    if (rc == SQLITE_OK && !(flags & GUARD_SQLITE_NO_FOREIGN_KEYS)) {
        rc = guard_sqlite_call_sql(db, "PRAGMA foreign_keys = ON");
    }
    if (rc == SQLITE_OK) {
        rc = set_journal(db, options != NULL ? options->journal : GUARD_SQLITE_JOURNAL_AS_IS);
    }
    /* sqlite3_open_v2 reads nothing: a file that is not a database, or not readable, is to be seen now. */
    return rc != SQLITE_OK ? rc : guard_sqlite_call_sql(db, "SELECT 1 FROM sqlite_schema LIMIT 1");
}

static int open_flags(const guard_sqlite_options *options)
{
    uint32_t flags = options != NULL ? options->flags : 0;
    int open = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE;
    if (flags & GUARD_SQLITE_READ_ONLY) {
        open = SQLITE_OPEN_READONLY;
    } else if (flags & GUARD_SQLITE_EXISTING) {
        open = SQLITE_OPEN_READWRITE;
    }
    open |= flags & GUARD_SQLITE_URI ? SQLITE_OPEN_URI : 0;
    open |= flags & GUARD_SQLITE_ONE_THREAD ? SQLITE_OPEN_NOMUTEX : SQLITE_OPEN_FULLMUTEX;
    return open;
}

/*
 * Opens it. Where SQLite is built with SQLITE_USE_URI (Debian's is) every name that begins with "file:" is a URI to it, which may name a
 * database in memory: without the flag it is the name of a file.
 */
static int open_file(guard_sqlite *db, const char *path, const guard_sqlite_options *options)
{
    uint32_t flags = options != NULL ? options->flags : 0;
    const char *vfs = options != NULL ? options->vfs : NULL;
    if ((flags & GUARD_SQLITE_URI) || strncmp(path, "file:", 5) != 0) {
        return guard_sqlite_call_open(path, &db->raw, open_flags(options), vfs);
    }
    char *literal = sqlite3_mprintf("./%s", path);
    int rc = literal != NULL ? guard_sqlite_call_open(literal, &db->raw, open_flags(options), vfs) : SQLITE_NOMEM;
    sqlite3_free(literal);
    return rc;
}

static void GUARD_NORETURN fail_open(guard_sqlite *db, int rc, const char *path, const guard_place *place)
{
    guard_error said;
    guard_error error;
    guard_sqlite_describe_error(db->raw, rc, NULL, &said);
    error = said;
    int system = (rc & 0xff) == SQLITE_CANTOPEN ? sqlite3_system_errno(db->raw) : 0;
    snprintf(error.message, sizeof(error.message), "cannot open %.150s: %.80s%s%s", path, said.message,
             system != 0 ? ": " : "", system != 0 && strerrordesc_np(system) != NULL ? strerrordesc_np(system) : "");
    guard_sqlite_call_close(db->raw);
    guard_deallocate(db);
    guard_impl_panic_error(place, &error);
    __builtin_unreachable();
}

/* Nothing was read or locked yet. */
static void refuse_parents_file(guard_sqlite *db, const guard_place *place)
{
    if (!db->adopted) {
        guard_sqlite_call_close(db->raw);
    }
    guard_deallocate(db);
    guard_impl_misuse(place, GUARD_MISUSE_STATE,
                      "the database was open in the parent process: a forked child must exec before it opens it");
}

guard_sqlite *guard_sqlite_open_at(guard_scope *scope, const char *path, const guard_sqlite_options *options,
                                   const guard_place *place)
{
    if (path == NULL || *path == '\0') { /* SQLite makes a temporary one for "", which nobody finds again */
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the path of the database is %s",
                          path == NULL ? "NULL" : "empty");
        return NULL;
    }
    if (!check_options(options, place)) {
        return NULL;
    }
    guard_reserve(scope, 1);
    guard_sqlite *db = new_connection(options);
    int rc = open_file(db, path, options);
    note_file(db);
    if (rc == SQLITE_OK && is_parents_file(db)) {
        refuse_parents_file(db, place);
        return NULL;
    }
    if (rc == SQLITE_OK) {
        rc = set_up(db, options);
    }
    if (rc != SQLITE_OK) {
        fail_open(db, rc, path, place);
    }
    db->ticket = guard_impl_defer_kind(scope, &connection_kind, db, place);
    return db;
}

guard_sqlite *guard_sqlite_adopt_at(guard_scope *scope, sqlite3 *raw, const guard_sqlite_options *options,
                                    const guard_place *place)
{
    if (raw == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the handle to adopt is NULL");
        return NULL;
    }
    if (!check_options(options, place)) {
        return NULL;
    }
    guard_reserve(scope, 1);
    guard_sqlite *db = new_connection(options);
    db->raw = raw;
    db->adopted = 1;
    db->proof_number = guard_sqlite_proof_number();
    note_file(db);
    if (is_parents_file(db)) {
        refuse_parents_file(db, place);
        return NULL;
    }
    db->ticket = guard_impl_defer_kind(scope, &connection_kind, db, place);
    return db;
}

/* -------------------------------------------------------------------------------------------------- close */

static void close_session(void *arg)
{
    guard_sqlite *db = arg;
    guard_tx_session_close(&db->session);
}

/* 0, or a code with *error filled: the first statement whose end failed. */
static int finalize_statements(guard_sqlite *db, guard_error *error)
{
    guard_error later;
    int failed = SQLITE_OK;
    for (size_t i = 0; i < CONTROL_COUNT; i++) {
        guard_sqlite_call_finalize(db->control[i]);
    }
    while (db->statements != NULL) {
        int rc = guard_sqlite_detach_stmt(db->statements, failed ? &later : error);
        failed = failed ? failed : rc;
    }
    if (!db->adopted) {
        guard_sqlite_reset_raw(db->raw);
    }
    return failed;
}

/*
 * Finalises the statements that the program has left. Those of virtual tables (FTS5, R-tree) are in the same list and are not to be
 * touched: SQLite ends them itself when it closes, unless a statement of the program's still uses their table. Where there is a
 * virtual table the two cannot be told apart, and nothing is finalised. A statement without SQL is the inside of a raw blob.
 */
static void finalize_raw(guard_sqlite *db)
{
    sqlite3_stmt *next;
    sqlite3_stmt *query = NULL;
    int rc = guard_sqlite_call_prepare(db, "SELECT 1 FROM pragma_table_list WHERE type = 'virtual'", -1, 0, &query,
                                       NULL);
    if (rc == SQLITE_OK) {
        rc = guard_sqlite_call_step(db, query);
    }
    guard_sqlite_call_finalize(query);
    if (rc != SQLITE_DONE) {
        return;
    }
    for (sqlite3_stmt *stmt = sqlite3_next_stmt(db->raw, NULL); stmt != NULL; stmt = next) {
        next = sqlite3_next_stmt(db->raw, stmt);
        if (sqlite3_sql(stmt) != NULL) {
            guard_sqlite_call_finalize(stmt);
        }
    }
}

/* 0, or 1 with *error filled: a raw blob, backup or (of a virtual table) statement of the program's is still open. */
static int close_raw(guard_sqlite *db, guard_error *error)
{
    /* It ends the virtual tables that nobody uses also where it then refuses to close (main.c, sqlite3Close). */
    int rc = guard_sqlite_call_close(db->raw);
    if (rc == SQLITE_OK) {
        return 0;
    }
    finalize_raw(db);
    rc = guard_sqlite_call_close(db->raw);
    if (rc == SQLITE_OK) {
        return 0;
    }
    guard_sqlite_describe_error(db->raw, rc, NULL, error);
    if (!sqlite3_get_autocommit(db->raw)) {
        guard_sqlite_call_sql(db, "ROLLBACK");
    }
    /* Nothing of ours is left and no lock, so that the zombie ends with what the program has. */
    guard_sqlite_call_close_later(db->raw);
    return 1;
}

/* After one more step of the close: what failed later is attached to the first. */
static int keep_first(int failed, guard_error *error, int failed_too, const guard_error *later)
{
    if (failed && failed_too) {
        guard_error_attach(error, later, GUARD_ATTACHED);
    }
    return failed || failed_too;
}

static void close_connection(void *object)
{
    guard_sqlite *db = object;
    guard_error error;
    guard_error later;
    int failed = guard_run(close_session, db, &error) != 0;
    guard_sqlite_detach_backups(db);
    guard_sqlite_detach_blobs(db);
    failed = keep_first(failed, &error, finalize_statements(db, failed ? &later : &error), &later);
    guard_sqlite_remove_functions(db);
    /* A transaction that a raw BEGIN left open on our own connection is rolled back by the close. */
    failed = keep_first(failed, &error, !db->adopted && close_raw(db, failed ? &later : &error), &later);
    if (db->latch.code != 0) {
        guard_latch_drop(&db->latch, "the connection was closed");
    }
    guard_deallocate(db);
    if (failed) {
        guard_panic_error(&error);
    }
}

static int check_given(const guard_sqlite *db)
{
    if (GUARD_IMPL_UNLIKELY(db == NULL)) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "the connection is NULL");
    }
    return db != NULL;
}

void guard_sqlite_close(guard_sqlite *db)
{
    if (!check_given(db)) {
        return;
    }
    if (db->calls != 0 || db->inside != 0) {
        guard_misuse(GUARD_MISUSE_STATE, "a function that SQLite called closes the connection it was called from");
        return;
    }
    guard_release(db->ticket);
}

/* ------------------------------------------------------------------------------------------------ queries */

sqlite3 *guard_sqlite_raw(guard_sqlite *db)
{
    if (!check_given(db)) {
        return NULL;
    }
    db->raw_given = 1;
    return db->raw;
}

void guard_sqlite_interrupt(guard_sqlite *db)
{
    if (check_given(db)) {
        sqlite3_interrupt(db->raw);
    }
}

int64_t guard_sqlite_changes(guard_sqlite *db)
{
    return check_given(db) ? sqlite3_changes(db->raw) : 0;
}

int64_t guard_sqlite_last_rowid(guard_sqlite *db)
{
    return check_given(db) ? sqlite3_last_insert_rowid(db->raw) : 0;
}
