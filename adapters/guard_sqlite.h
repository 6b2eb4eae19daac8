/* SPDX-License-Identifier: MIT */
/*
 * guard_sqlite.h: guarded SQLite connections, statements and transactions.
 *
 * PURPOSE
 *
 *   A connection, a statement, a blob, a backup and a transaction each belong to a scope and end with it, whatever the way
 *   out is: statements are finalised, transactions rolled back, no lock stays. A call that cannot do its work panics
 *   with SQLite's own message. How a transaction ended is always known and true, see tx.h.
 *
 * CALLING SEQUENCE
 *
 *     static void transfer(guard_tx *tx, void *arg)
 *     {
 *         GUARD_AUTO(s);
 *         guard_sqlite *db = guard_sqlite_of(tx);
 *         guard_sqlite_stmt *debit = guard_sqlite_prepare(s, db, "UPDATE account SET money = money - ?1 WHERE id = ?2");
 *         guard_sqlite_bind_int64(debit, 1, 100);
 *         guard_sqlite_bind_text(debit, 2, "alice", -1);
 *         guard_sqlite_run(debit);
 *         ...
 *     }
 *
 *     guard_sqlite *db = guard_sqlite_open(s, "ledger.db", NULL);
 *     guard_outcome outcome = guard_sqlite_transact(db, transfer, NULL, NULL, &result);   // the border form
 *
 *     guard_tx *tx = guard_sqlite_begin(s, db, NULL);                                     // or the scope form
 *     guard_sqlite_exec(db, "INSERT INTO journal VALUES (1)");
 *     guard_tx_commit(tx);
 *
 *   A program with a sqlite3 handle of its own uses guard_sqlite_adopt, or guard_sqlite_transact_raw for one transaction. The
 *   handle is left as it was: its busy, progress, commit and rollback handlers and its settings are not touched, and no
 *   statement of ours stays behind. In each transaction of such a handle there is a savepoint (guard_proof_N), by which the guard
 *   knows at the end that it is still its own. In WAL mode SQLite copies each page that the transaction changes for it, beyond 64 KiB into a
 *   temporary file: one row more takes a hundredth more time, 20,000 rows updated at once two fifths; new pages are not copied.
 *   No transaction is begun while a statement of the handle that writes is in its middle (SQLITE_BUSY), nor where the program's authorizer
 *   denies the savepoint (SQLITE_AUTH).
 *
 * ERRORS
 *
 *   Domain GUARD_SQLITE, code: SQLite's extended result code (https://sqlite.org/rescode.html); message: sqlite3_errmsg as it was
 *   at the failure, before any cleanup ran; detail: the statement's SQL; constraint: what was violated; hint: what to
 *   do about it, where there is something to do. Wrong use is GUARD_MISUSE.
 *
 *   While a guarded transaction is open:
 *   - Some failures make SQLite roll the whole transaction back (SQLITE_FULL, _IOERR, _NOMEM, _INTERRUPT, INSERT OR ROLLBACK;
 *     https://sqlite.org/lang_transaction.html). The guard is then ROLLED_BACK, no ROLLBACK is sent, and each further statement
 *     through this library panics with GUARD_TX_OVER instead of running on its own.
 *   - COMMIT, END and ROLLBACK as SQL through this library are misuse, BEGIN is SQLite's error. Sent behind its back with the raw
 *     handle, the outcome is IN_DOUBT with GUARD_NOTE_ENDED_ELSEWHERE unless it is known. What the program then begins with the raw
 *     handle is its own: the guard does not end it. Of an adopted handle this is found out when the guard ends: until then its
 *     statements run in what the program has begun. One thing is not found out: COMMIT and BEGIN from a function that the program gave SQLite itself,
 *     in the middle of a statement of the guard's that then fails of an I/O error or a full disk.
 *
 * COMMIT
 *
 *   BUSY          another connection reads or writes: COMMIT is retried until commit_ms, then it is rolled back.
 *   787 and other deferred constraints: the transaction stays OPEN and can be mended; leaving the scope rolls back.
 *   Statements that write and were not read to their end (INSERT ... RETURNING) are reset: their rows are in, and the next
 *                 step of such a statement is its end. Writable blobs are closed. In a function that such a statement
 *                 calls, COMMIT fails instead (SQLITE_BUSY) and rolls back.
 *   A SELECT      that is not at its end does not hinder; it keeps its snapshot, and the result has
 *                 GUARD_NOTE_READER_LEFT_OPEN.
 *   I/O error     the answer is lost: in WAL mode the commit may be in the file, and a crash would revive it. The outcome is
 *                 IN_DOUBT. With a marker or a probe it is resolved within resolve_ms, or later by guard_sqlite_resolve: it writes
 *                 a fence over the doubtful frames, and what the marker said then is the truth for good.
 *   Several files (ATTACH), one of them in WAL mode: SQLite commits each file atomically, but not all of them together; after
 *                 a crash or an I/O error one may have it and another not (https://sqlite.org/lang_attach.html). A failed COMMIT
 *                 is then IN_DOUBT with GUARD_NOTE_MANY_FILES. In rollback-journal mode they are atomic together.
 *                 `synchronous` is of each file: an attached one begins with SQLite's FULL (PRAGMA name.synchronous).
 *   In memory     there is no file to be in doubt: a failed COMMIT is ROLLED_BACK.
 *   Stopped       by a progress handler or WAL hook of the program's that fails it behind the commit: IN_DOUBT, though it is mostly
 *                 committed.
 *   File gone     deleted, moved or replaced while it was open, or its WAL deleted: what is committed into it is lost with the last process that has it. COMMIT
 *                 of a connection whose main database is a file looks for the names of all its files once in a second, and then panics with
 *                 SQLITE_READONLY_DBMOVED; the transaction stays OPEN, and leaving the scope rolls back. What was committed up to a second
 *                 before, or is when the file goes behind the look, is told as committed. Not where the name is only out of sight: another root
 *                 directory (chroot), no right to search a folder.
 *   RLIMIT_FSIZE  SIGXFSZ ends the process by default, and SQLite recovers at the next open. Where it is ignored, it is an I/O error as others.
 *   journal_mode  OFF: SQLite cannot take back what it has written already. The outcome of a rollback is then IN_DOUBT, and the
 *                 connection poisoned. MEMORY: a process that dies in the middle of a COMMIT leaves a damaged file.
 *
 * THREADS
 *
 *   A connection is used by one thread at a time, and only by the one that began while a transaction is open; else misuse.
 *   guard_sqlite_interrupt may be called by any thread while the connection is open.
 *
 * NEVER
 *
 *   open, lock, copy or delete a database file while it is open in the process: closing any descriptor of it drops SQLite's
 *   locks (https://sqlite.org/howtocorrupt.html, 2.2). Use guard_sqlite_backup_open.
 */
#ifndef GUARD_SQLITE_H
#define GUARD_SQLITE_H

#include <guard/guard.h>
#include <guard/tx.h>
#include <sqlite3.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct guard_sqlite guard_sqlite;
typedef struct guard_sqlite_stmt guard_sqlite_stmt;
typedef struct guard_sqlite_blob guard_sqlite_blob;
typedef struct guard_sqlite_backup guard_sqlite_backup;

/* -------------------------------------------------------------------------------------------- connections -- */

/* guard_sqlite_options.flags */
#define GUARD_SQLITE_READ_ONLY 1U       /* do not write */
#define GUARD_SQLITE_EXISTING 2U        /* do not create the file */
#define GUARD_SQLITE_NO_FOREIGN_KEYS 4U /* leave foreign keys unchecked; by default they are on */
#define GUARD_SQLITE_URI 8U             /* the path is a URI (https://sqlite.org/uri.html); without it, never */
#define GUARD_SQLITE_ONE_THREAD 16U     /* no mutexes in SQLite: only one thread ever uses the connection at a time */

/* guard_sqlite_options.journal */
#define GUARD_SQLITE_JOURNAL_AS_IS 0 /* as the file has it; DELETE for a new one */
#define GUARD_SQLITE_WAL 1           /* ignored for a database in memory */
#define GUARD_SQLITE_DELETE 2
#define GUARD_SQLITE_TRUNCATE 3
#define GUARD_SQLITE_PERSIST 4

/* guard_sqlite_options.synchronous; what COMMITTED promises after a power cut (https://sqlite.org/pragma.html#pragma_synchronous) */
/* FULL: it is on the disk. SQLite's EXTRA, since after its FULL a deleted journal may come back. EXTRA is the same. */
#define GUARD_SQLITE_SYNC_FULL 0
#define GUARD_SQLITE_SYNC_EXTRA 1
#define GUARD_SQLITE_SYNC_NORMAL 2 /* WAL: the last commits may be lost together; never half */
#define GUARD_SQLITE_SYNC_OFF 3    /* nothing */

typedef struct guard_sqlite_options {
    uint32_t flags;
    int32_t busy_ms;     /* how long to wait for another connection; 0 means 5,000, -1 for ever */
    int32_t journal;     /* for guard_sqlite_open only */
    int32_t synchronous; /* for guard_sqlite_open only */
    const char *vfs;     /* NULL is SQLite's default; for guard_sqlite_open only */
    uint32_t reserved[8];
} guard_sqlite_options;

/*
 * Opens a database for the scope. options NULL is all defaults: read and write, created where missing, foreign keys on, 5 s of
 * waiting, synchronous FULL. Panics with the reason, names the file, and leaves nothing open.
 *
 * On connections opened here the busy and progress handlers and the commit and rollback hooks are the library's; setting others on
 * the raw handle takes their place, and with it what they are for: waiting, cancelling, seeing what is done behind the guard's back.
 */
#define guard_sqlite_open(scope, path, ...) guard_sqlite_open_at((scope), (path), (__VA_ARGS__), GUARD_HERE)
GUARD_API guard_sqlite *guard_sqlite_open_at(guard_scope *scope, const char *path, const guard_sqlite_options *options,
                                             const guard_place *place);

/*
 * Guards a handle that stays the caller's, until the scope closes: what was begun, prepared or registered through the guard is then
 * ended and gone, and the handle is as it was. Of the options only busy_ms counts; waiting is done by trying again, on top
 * of whatever busy handler the handle has. Do not close the handle before.
 */
#define guard_sqlite_adopt(scope, raw, ...) guard_sqlite_adopt_at((scope), (raw), (__VA_ARGS__), GUARD_HERE)
GUARD_API guard_sqlite *guard_sqlite_adopt_at(guard_scope *scope, sqlite3 *raw, const guard_sqlite_options *options,
                                              const guard_place *place);

/*
 * Ends the guard before its scope does: rolls back, finalises all statements (of an opened connection the raw ones too), closes blobs
 * and backups, then the connection, unless it was adopted. The pointer is invalid afterwards; statements, blobs and
 * transactions of it stay valid as handles, and using them is misuse. Panics when SQLite could not close: a raw blob or backup of
 * the program is still open or, in a database with virtual tables, a raw statement; it holds no lock then. Misuse in a function that a
 * statement of this connection called.
 */
GUARD_API void guard_sqlite_close(guard_sqlite *db);

/* SQLite's handle, for what this header does not cover. It stays the guard's (or, adopted, the caller's). */
GUARD_API sqlite3 *guard_sqlite_raw(guard_sqlite *db);

/* Makes the statement that runs on the connection fail with SQLITE_INTERRUPT. Any thread, while the connection is open. */
GUARD_API void guard_sqlite_interrupt(guard_sqlite *db);

/* Rows changed by the latest INSERT, UPDATE or DELETE, and the rowid of the latest INSERT. */
GUARD_API int64_t guard_sqlite_changes(guard_sqlite *db);
GUARD_API int64_t guard_sqlite_last_rowid(guard_sqlite *db);

/* --------------------------------------------------------------------------------------------- statements -- */

/*
 * Runs one or more statements separated by semicolons to their ends; rows are dropped. Panics at the first that fails; the former
 * ones stay done unless a transaction takes them back.
 */
#define guard_sqlite_exec(db, sql) guard_sqlite_exec_at((db), (sql), GUARD_HERE)
GUARD_API void guard_sqlite_exec_at(guard_sqlite *db, const char *sql, const guard_place *place);

/*
 * sqlite3_exec with its callback as a border: row(arg, columns, texts, names) may panic; the panic is raised again after SQLite has
 * returned. It returns 0 to go on, else the statement is ended and guard_sqlite_exec_rows returns that value.
 * SQL in it that ends a guarded transaction is not refused but found out later, as when it is sent with the raw handle.
 */
typedef int guard_sqlite_row_fn(void *arg, int columns, char **texts, char **names);
#define guard_sqlite_exec_rows(db, sql, row, arg) guard_sqlite_exec_rows_at((db), (sql), (row), (arg), GUARD_HERE)
GUARD_API int guard_sqlite_exec_rows_at(guard_sqlite *db, const char *sql, guard_sqlite_row_fn *row, void *arg,
                                        const guard_place *place);

/* The first column of the first row as an integer; `missing` when there is no row or it is NULL. A statement that writes is run to its end. */
#define guard_sqlite_query_int64(db, sql, missing) guard_sqlite_query_int64_at((db), (sql), (missing), GUARD_HERE)
GUARD_API int64_t guard_sqlite_query_int64_at(guard_sqlite *db, const char *sql, int64_t missing,
                                              const guard_place *place);

/*
 * Prepares one statement for the scope. SQL with a second statement behind it is misuse, so is one without any. The SQL need not
 * live on.
 */
#define guard_sqlite_prepare(scope, db, sql) guard_sqlite_prepare_at((scope), (db), (sql), GUARD_HERE)
GUARD_API guard_sqlite_stmt *guard_sqlite_prepare_at(guard_scope *scope, guard_sqlite *db, const char *sql,
                                                     const guard_place *place);

/* Finalises it before its scope does. The pointer is invalid afterwards. */
GUARD_API void guard_sqlite_stmt_close(guard_sqlite_stmt *stmt);
GUARD_API sqlite3_stmt *guard_sqlite_stmt_raw(guard_sqlite_stmt *stmt);

/*
 * Bind parameter `index` (from 1). A statement that was stepped is reset first. Text and blobs are copied; length -1 means up to the
 * NUL; a NULL pointer binds NULL.
 */
#define guard_sqlite_bind_int64(stmt, index, value) guard_sqlite_bind_int64_at((stmt), (index), (value), GUARD_HERE)
#define guard_sqlite_bind_double(stmt, index, value) guard_sqlite_bind_double_at((stmt), (index), (value), GUARD_HERE)
#define guard_sqlite_bind_null(stmt, index) guard_sqlite_bind_null_at((stmt), (index), GUARD_HERE)
#define guard_sqlite_bind_text(stmt, index, text, length) \
    guard_sqlite_bind_text_at((stmt), (index), (text), (length), SQLITE_TRANSIENT, GUARD_HERE)
#define guard_sqlite_bind_blob(stmt, index, data, length) \
    guard_sqlite_bind_blob_at((stmt), (index), (data), (length), SQLITE_TRANSIENT, GUARD_HERE)
/* Not copied: the bytes must stay as they are until the parameter is bound again or the statement is closed. */
#define guard_sqlite_bind_static_text(stmt, index, text, length) \
    guard_sqlite_bind_text_at((stmt), (index), (text), (length), SQLITE_STATIC, GUARD_HERE)
GUARD_API void guard_sqlite_bind_int64_at(guard_sqlite_stmt *stmt, int index, int64_t value, const guard_place *place);
GUARD_API void guard_sqlite_bind_double_at(guard_sqlite_stmt *stmt, int index, double value, const guard_place *place);
GUARD_API void guard_sqlite_bind_null_at(guard_sqlite_stmt *stmt, int index, const guard_place *place);
GUARD_API void guard_sqlite_bind_text_at(guard_sqlite_stmt *stmt, int index, const char *text, int64_t length,
                                         sqlite3_destructor_type destructor, const guard_place *place);
GUARD_API void guard_sqlite_bind_blob_at(guard_sqlite_stmt *stmt, int index, const void *data, int64_t length,
                                         sqlite3_destructor_type destructor, const guard_place *place);

/* One step: 1 when there is a row, 0 at the end. After the end or a panic the statement is reset; its bindings stay. */
#define guard_sqlite_step(stmt) guard_sqlite_step_at((stmt), GUARD_HERE)
GUARD_API int guard_sqlite_step_at(guard_sqlite_stmt *stmt, const guard_place *place);

/* Steps to the end, dropping rows. */
#define guard_sqlite_run(stmt) guard_sqlite_run_at((stmt), GUARD_HERE)
GUARD_API void guard_sqlite_run_at(guard_sqlite_stmt *stmt, const guard_place *place);

/*
 * Ends the reading of rows, so that the statement holds no lock. Outside of a transaction this commits what a statement with RETURNING has written,
 * and panics when that fails (https://sqlite.org/c3ref/reset.html); so does whatever else ends it: binding, its close, its scope, the connection's close.
 */
GUARD_API void guard_sqlite_reset(guard_sqlite_stmt *stmt);

/*
 * Column `index` (from 0) of the row that guard_sqlite_step found, converted as SQLite does. Text and blobs are the statement's
 * until it is stepped, reset or closed; NULL for an SQL NULL. Panics when the conversion has no memory. Without a row, or beyond its columns, misuse.
 * guard_sqlite_column_count: how many columns the statement's rows have, also while there is none.
 */
#define guard_sqlite_column_count(stmt) guard_sqlite_column_count_at((stmt), GUARD_HERE)
#define guard_sqlite_column_type(stmt, index) guard_sqlite_column_type_at((stmt), (index), GUARD_HERE)
#define guard_sqlite_column_int64(stmt, index) guard_sqlite_column_int64_at((stmt), (index), GUARD_HERE)
#define guard_sqlite_column_double(stmt, index) guard_sqlite_column_double_at((stmt), (index), GUARD_HERE)
#define guard_sqlite_column_text(stmt, index) guard_sqlite_column_text_at((stmt), (index), GUARD_HERE)
#define guard_sqlite_column_blob(stmt, index, length) \
    guard_sqlite_column_blob_at((stmt), (index), (length), GUARD_HERE)
GUARD_API int guard_sqlite_column_count_at(guard_sqlite_stmt *stmt, const guard_place *place);
GUARD_API int guard_sqlite_column_type_at(guard_sqlite_stmt *stmt, int index, const guard_place *place);
GUARD_API int64_t guard_sqlite_column_int64_at(guard_sqlite_stmt *stmt, int index, const guard_place *place);
GUARD_API double guard_sqlite_column_double_at(guard_sqlite_stmt *stmt, int index, const guard_place *place);
GUARD_API const char *guard_sqlite_column_text_at(guard_sqlite_stmt *stmt, int index, const guard_place *place);
GUARD_API const void *guard_sqlite_column_blob_at(guard_sqlite_stmt *stmt, int index, int *length,
                                                  const guard_place *place);

/* ------------------------------------------------------------------------------------------- transactions -- */

/*
 * guard_sqlite_tx_options.mode. IMMEDIATE is the default: it takes the write lock at once and waits for it. A DEFERRED transaction
 * that reads and then writes while another one writes fails at once, without waiting (SQLITE_BUSY), and in WAL mode whenever
 * another one wrote since it read (SQLITE_BUSY_SNAPSHOT, the only error that guard_sqlite_transact reruns its body for).
 */
#define GUARD_SQLITE_IMMEDIATE 0
#define GUARD_SQLITE_DEFERRED 1
#define GUARD_SQLITE_EXCLUSIVE 2

/* guard_sqlite_tx_options.marker */
#define GUARD_SQLITE_MARKER_OFF 0 /* an I/O error at COMMIT stays IN_DOUBT; costs nothing */
#define GUARD_SQLITE_MARKER_ROW \
    1 /* the library's table, see guard_sqlite_marker_install; costs one row updated in each COMMIT */
#define GUARD_SQLITE_PROBE 2 /* a query of the caller's; costs nothing */

typedef struct guard_sqlite_tx_options {
    guard_tx_options tx; /* attempts, retry_ms, durable */
    int32_t mode;
    int32_t busy_ms;    /* waiting at BEGIN; 0 means the connection's busy_ms, -1 for ever */
    int32_t commit_ms;  /* waiting at COMMIT; 0 means the connection's busy_ms, -1 for ever */
    int32_t resolve_ms; /* resolving at COMMIT; 0 means 2,000, -1 for ever */
    int32_t marker;
    int32_t zero;      /* 0 */
    const char *probe; /* PROBE: a SELECT that finds a row exactly when this transaction is committed */
    const char *
        probe_key; /* PROBE: bound as text to the probe's ?1; may be NULL. Both must live until the transaction ended */
    uint32_t reserved[8];
} guard_sqlite_tx_options;

/*
 * Begins a transaction for the scope, see tx.h. Inside one that is already open on the connection it is a savepoint; inside one
 * that the raw handle has begun too, and that one is left open.
 * Panics when BEGIN fails; after busy_ms with SQLITE_BUSY and a hint.
 */
#define guard_sqlite_begin(scope, db, ...) guard_sqlite_begin_at((scope), (db), (__VA_ARGS__), GUARD_HERE)
GUARD_API guard_tx *guard_sqlite_begin_at(guard_scope *scope, guard_sqlite *db, const guard_sqlite_tx_options *options,
                                          const guard_place *place);

/* The border form: runs fn(tx, arg) in a transaction; see guard_tx_transact in tx.h for what it returns. result may be NULL. */
#define guard_sqlite_transact(db, fn, arg, options, result) \
    guard_sqlite_transact_at((db), (fn), (arg), (options), (result), GUARD_HERE)
GUARD_API guard_outcome guard_sqlite_transact_at(guard_sqlite *db, guard_tx_fn *fn, void *arg,
                                                 const guard_sqlite_tx_options *options, guard_result *result,
                                                 const guard_place *place);

/* The same on a raw handle, which is adopted meanwhile. Never panics: also a failure to adopt is in the result. */
#define guard_sqlite_transact_raw(raw, fn, arg, options, result) \
    guard_sqlite_transact_raw_at((raw), (fn), (arg), (options), (result), GUARD_HERE)
GUARD_API guard_outcome guard_sqlite_transact_raw_at(sqlite3 *raw, guard_tx_fn *fn, void *arg,
                                                     const guard_sqlite_tx_options *options, guard_result *result,
                                                     const guard_place *place);

/* The connection of a transaction, NULL once it is closed. */
GUARD_API guard_sqlite *guard_sqlite_of(guard_tx *tx);

/*
 * Makes the table guard_marker for GUARD_SQLITE_MARKER_ROW, where it is missing; it holds one row for each connection that
 * ever committed with a marker. Not inside a transaction. Beginning with a marker and without the table panics.
 */
#define guard_sqlite_marker_install(db) guard_sqlite_marker_install_at((db), GUARD_HERE)
GUARD_API void guard_sqlite_marker_install_at(guard_sqlite *db, const guard_place *place);

/*
 * Resolves a transaction that is IN_DOUBT, on any connection to the same database outside of a transaction, also in another process
 * and after a crash: writes a fence, so that the commit cannot come back later, then says what the marker or probe says.
 * `token` is result.token; with a probe, options has it again. Returns COMMITTED or ROLLED_BACK, for good; or IN_DOUBT when
 * it could not be done within resolve_ms (*error, where it is not NULL, says why). A border: it does not panic, but for misuse.
 */
#define guard_sqlite_resolve(db, token, options, error) \
    guard_sqlite_resolve_at((db), (token), (options), (error), GUARD_HERE)
GUARD_API guard_outcome guard_sqlite_resolve_at(guard_sqlite *db, const char *token,
                                                const guard_sqlite_tx_options *options, guard_error *error,
                                                const guard_place *place);

/* ------------------------------------------------------------------------------------------ user functions -- */

/*
 * The program's function as an SQL function: it may panic. The statement then fails, and the panic is raised by the call
 * of this library that ran it; where the program ran the statement with the raw handle, the panic is noted (guard_note) and
 * SQLite gets its message. Results are set with sqlite3_result_... on `context`. `flags`: SQLITE_UTF8, SQLITE_DETERMINISTIC, ...
 *
 * pthread_exit(3) in it first lets SQLite return, and the statement fail: the thread then goes on to exit from the call of this library that ran
 * it, with its scopes run and no lock left (glibc 2.36 and later, not under ThreadSanitizer). Where the program ran the statement with the raw handle,
 * or gave SQLite the function itself, nobody can do so, and the handle's mutex stays locked for ever.
 *
 * It is there as long as the connection (or adoption) is. A function of the same name on an adopted handle is replaced and does not
 * come back.
 */
typedef void guard_sqlite_function_fn(sqlite3_context *context, int count, sqlite3_value **values, void *arg);
#define guard_sqlite_function(db, name, count, flags, fn, arg) \
    guard_sqlite_function_at((db), (name), (count), (flags), (fn), (arg), GUARD_HERE)
GUARD_API void guard_sqlite_function_at(guard_sqlite *db, const char *name, int count, int flags,
                                        guard_sqlite_function_fn *fn, void *arg, const guard_place *place);

/*
 * An aggregate: `step` for each row and `final` at the end have `state`, `size` bytes that are zero at first. After a panic neither
 * is called any more for that group, so the state owns nothing.
 */
typedef void guard_sqlite_step_fn(sqlite3_context *context, void *state, int count, sqlite3_value **values, void *arg);
typedef void guard_sqlite_final_fn(sqlite3_context *context, void *state, void *arg);
#define guard_sqlite_aggregate(db, name, count, flags, size, step, final, arg) \
    guard_sqlite_aggregate_at((db), (name), (count), (flags), (size), (step), (final), (arg), GUARD_HERE)
GUARD_API void guard_sqlite_aggregate_at(guard_sqlite *db, const char *name, int count, int flags, int size,
                                         guard_sqlite_step_fn *step, guard_sqlite_final_fn *final, void *arg,
                                         const guard_place *place);

/*
 * A collation. SQLite gives a comparison no way to fail: when it panics, the statement is interrupted, and the panic is raised after
 * it. In a transaction all of it is then taken back. Outside, a row may be in an index at the wrong place: REINDEX.
 */
typedef int guard_sqlite_compare_fn(void *arg, int a_length, const void *a, int b_length, const void *b);
#define guard_sqlite_collation(db, name, compare, arg) \
    guard_sqlite_collation_at((db), (name), (compare), (arg), GUARD_HERE)
GUARD_API void guard_sqlite_collation_at(guard_sqlite *db, const char *name, guard_sqlite_compare_fn *compare,
                                         void *arg, const guard_place *place);

/* ------------------------------------------------------------------------------------------ blobs, backup -- */

/* Opens one value for incremental reading and, with writable 1, writing (https://sqlite.org/c3ref/blob_open.html). */
#define guard_sqlite_blob_open(scope, db, table, column, rowid, writable) \
    guard_sqlite_blob_open_at((scope), (db), (table), (column), (rowid), (writable), GUARD_HERE)
GUARD_API guard_sqlite_blob *guard_sqlite_blob_open_at(guard_scope *scope, guard_sqlite *db, const char *table,
                                                       const char *column, int64_t rowid, int writable,
                                                       const guard_place *place);
GUARD_API int guard_sqlite_blob_size(guard_sqlite_blob *blob);

/* `length` bytes from `offset`; past the end, or once the row was changed otherwise (SQLITE_ABORT), they panic. */
#define guard_sqlite_blob_read(blob, data, length, offset) \
    guard_sqlite_blob_read_at((blob), (data), (length), (offset), GUARD_HERE)
#define guard_sqlite_blob_write(blob, data, length, offset) \
    guard_sqlite_blob_write_at((blob), (data), (length), (offset), GUARD_HERE)
GUARD_API void guard_sqlite_blob_read_at(guard_sqlite_blob *blob, void *data, int length, int offset,
                                         const guard_place *place);
GUARD_API void guard_sqlite_blob_write_at(guard_sqlite_blob *blob, const void *data, int length, int offset,
                                          const guard_place *place);

/* Closes it before its scope does; outside of a transaction this commits what was written, and panics when that fails. */
#define guard_sqlite_blob_close(blob) guard_sqlite_blob_close_at((blob), GUARD_HERE)
GUARD_API void guard_sqlite_blob_close_at(guard_sqlite_blob *blob, const guard_place *place);

/*
 * Copies database `from` (schema "main") over that of `to`, in steps. Without guard_sqlite_backup_finish the destination is
 * left as it was. The destination is in no transaction, and any use of it is misuse until the backup has ended. A transaction of `from` that writes
 * keeps a step from copying: it panics at once.
 */
#define guard_sqlite_backup_open(scope, to, from) guard_sqlite_backup_open_at((scope), (to), (from), GUARD_HERE)
GUARD_API guard_sqlite_backup *guard_sqlite_backup_open_at(guard_scope *scope, guard_sqlite *to, guard_sqlite *from,
                                                           const guard_place *place);

/*
 * Copies up to `pages` pages (-1: all). Returns 1 while there is more, 0 when all is copied. Waits for a busy database up to
 * busy_ms of `to`, then panics.
 */
#define guard_sqlite_backup_step(backup, pages) guard_sqlite_backup_step_at((backup), (pages), GUARD_HERE)
GUARD_API int guard_sqlite_backup_step_at(guard_sqlite_backup *backup, int pages, const guard_place *place);

/* Pages still to copy and pages in all, as of the latest step. */
GUARD_API int guard_sqlite_backup_remaining(guard_sqlite_backup *backup);
GUARD_API int guard_sqlite_backup_total(guard_sqlite_backup *backup);

/* Steps to the end, no more than deadline_ms (0 means 60,000, -1 for ever), and closes it; panics past it, with nothing changed. */
#define guard_sqlite_backup_finish(backup, deadline_ms) \
    guard_sqlite_backup_finish_at((backup), (deadline_ms), GUARD_HERE)
GUARD_API void guard_sqlite_backup_finish_at(guard_sqlite_backup *backup, int deadline_ms, const guard_place *place);

#ifdef __cplusplus
}
#endif

#endif
