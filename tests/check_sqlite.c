/* SPDX-License-Identifier: MIT */
/*
 * check_sqlite.c: connections, and what is opened on them, belong to their scopes, end with them, and say clearly what failed (behaviour 45).
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_sqlite.h>
#include <guard/tx.h>

#include "sqlite_table.h"
#include "suite.h"

#define NAMES "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT UNIQUE)"

static void open_path(void *name)
{
    GUARD_AUTO(s);
    guard_sqlite_open(s, name, NULL);
}

/* ------------------------------------------------------------------------------------------- connections */

START_TEST(a_database_that_cannot_be_opened_is_named_and_leaves_nothing)
{
    database_new(NULL);
    const char *missing = database_beside("no-such-folder/x.db");
    expect_panic(open_path, (void *)missing, GUARD_SQLITE, SQLITE_CANTOPEN); /* SQLite's own first use of memory */
    sqlite3_int64 before = sqlite3_memory_used();
    const guard_error *error = expect_panic(open_path, (void *)missing, GUARD_SQLITE, SQLITE_CANTOPEN);
    ck_assert_msg(strstr(error->message, "no-such-folder/x.db: unable to open database file: No such file") != NULL,
                  "%s", error->message);
    ck_assert_str_eq(error->file, "check_sqlite.c");
    ck_assert_str_eq(error->function, "open_path");
    ck_assert_int_eq(sqlite3_memory_used(), before);
}
END_TEST

static void open_in_working_directory(void *name)
{
    GUARD_AUTO(s);
    guard_sqlite_exec(guard_sqlite_open(s, name, NULL), "CREATE TABLE t (x)");
}

/* Debian's SQLite takes such a name for a URI, and what is committed there was gone with the connection. */
START_TEST(a_name_that_looks_like_a_uri_is_a_file_and_an_empty_one_is_misuse)
{
    database_new(NULL);
    const char *folder = database_beside(".");
    static char uri[] = "file:lost?mode=memory";
    ck_assert_int_eq(chdir(folder), 0);
    ck_assert_int_eq(guard_run(open_in_working_directory, uri, NULL), 0);
    ck_assert_int_eq(access(uri, F_OK), 0);
    expect_panic(open_in_working_directory, (void *)"", GUARD_MISUSE, GUARD_MISUSE_ARGUMENT);
}
END_TEST

START_TEST(a_file_that_is_no_database_is_refused_at_open)
{
    database_new(NULL);
    const char *name = database_beside("text");
    FILE *file = fopen(name, "w");
    for (int i = 0; i < 1000; i++) {
        fputs("this is not a database ", file);
    }
    fclose(file);
    const guard_error *error = expect_panic(open_path, (void *)name, GUARD_SQLITE, SQLITE_NOTADB);
    ck_assert_msg(strstr(error->message, "file is not a database") != NULL, "%s", error->message);
}
END_TEST

static void open_existing(void *name)
{
    GUARD_AUTO(s);
    const guard_sqlite_options options = {.flags = GUARD_SQLITE_EXISTING | GUARD_SQLITE_ONE_THREAD};
    guard_sqlite *opened = guard_sqlite_open(s, name, &options);
    ck_assert_ptr_null(sqlite3_db_mutex(guard_sqlite_raw(opened)));
    guard_sqlite_exec(opened, "INSERT INTO t VALUES (1, 'a')");
}

START_TEST(a_file_that_has_to_be_there_is_not_made)
{
    path = database_new(NAMES);
    ck_assert_int_eq(guard_run(open_existing, (void *)path, NULL), 0);
    ck_assert_int_eq(database_number(path, COUNT), 1);
    const char *missing = database_beside("missing.db");
    expect_panic(open_existing, (void *)missing, GUARD_SQLITE, SQLITE_CANTOPEN);
    ck_assert_int_ne(access(missing, F_OK), 0);
}
END_TEST

START_TEST(the_defaults_check_foreign_keys_and_sync_fully)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    ck_assert_int_eq(guard_sqlite_query_int64(db, "PRAGMA foreign_keys", -1), 1);
    ck_assert_int_eq(guard_sqlite_query_int64(db, "PRAGMA synchronous", -1), 3);
    ck_assert_int_eq(guard_sqlite_query_int64(db, "SELECT id FROM t", -7), -7);
}
END_TEST

START_TEST(options_are_obeyed)
{
    GUARD_AUTO(s);
    path = database_new(NAMES);
    const guard_sqlite_options wal = {
        .journal = GUARD_SQLITE_WAL, .synchronous = GUARD_SQLITE_SYNC_NORMAL, .flags = GUARD_SQLITE_NO_FOREIGN_KEYS};
    guard_sqlite *first = guard_sqlite_open(s, path, &wal);
    ck_assert_int_eq(guard_sqlite_query_int64(first, "PRAGMA foreign_keys", -1), 0);
    ck_assert_int_eq(guard_sqlite_query_int64(first, "PRAGMA synchronous", -1), 1);
    ck_assert_int_eq(guard_sqlite_query_int64(first, "SELECT journal_mode = 'wal' FROM pragma_journal_mode", -1), 1);
    const guard_sqlite_options memory = {.journal = GUARD_SQLITE_WAL};
    guard_sqlite *second = guard_sqlite_open(s, ":memory:", &memory);
    guard_sqlite_exec(second, NAMES);
    const guard_sqlite_options read_only = {.flags = GUARD_SQLITE_READ_ONLY};
    db = guard_sqlite_open(s, path, &read_only);
    expect_panic(table_exec, (void *)"INSERT INTO t VALUES (1, 'a')", GUARD_SQLITE, SQLITE_READONLY);
}
END_TEST

static void open_with(void *options)
{
    GUARD_AUTO(s);
    guard_sqlite_open(s, ":memory:", options);
}

START_TEST(a_reserved_word_or_an_unknown_value_is_misuse)
{
    guard_sqlite_options reserved = {.reserved = {0, 1}};
    guard_sqlite_options journal = {.journal = 5};
    guard_sqlite_options flags = {.flags = 32};
    expect_panic(open_with, &reserved, GUARD_MISUSE, GUARD_MISUSE_ARGUMENT);
    expect_panic(open_with, &journal, GUARD_MISUSE, GUARD_MISUSE_ARGUMENT);
    expect_panic(open_with, &flags, GUARD_MISUSE, GUARD_MISUSE_ARGUMENT);
}
END_TEST

/* Nobody holds a lock: a connection that does not wait can take the strongest one. */
static void check_unlocked(void)
{
    sqlite3 *raw = database_raw(path);
    sqlite3_busy_timeout(raw, 0);
    database_exec(raw, "BEGIN EXCLUSIVE; INSERT INTO t VALUES (77, 'unlocked'); ROLLBACK");
    sqlite3_close(raw);
}

START_TEST(closing_with_everything_open_rolls_back_and_leaves_no_lock)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    guard_sqlite_exec(
        db, "CREATE TABLE b(data BLOB); INSERT INTO b VALUES (zeroblob(10)); INSERT INTO t VALUES (1, 'a'), (2, 'b')");
    guard_sqlite *copy = guard_sqlite_open(s, database_beside("copy.db"), NULL);
    sqlite3_stmt *raw = NULL;
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_tx *nested = guard_tx_begin_nested(s, tx);
    guard_sqlite_stmt *stmt = guard_sqlite_prepare(s, db, "SELECT id FROM t");
    guard_sqlite_blob *blob = guard_sqlite_blob_open(s, db, "b", "data", 1, 1);
    guard_sqlite_backup *backup = guard_sqlite_backup_open(s, copy, db);
    ck_assert(guard_sqlite_step(stmt));
    sqlite3_prepare_v2(guard_sqlite_raw(db), "SELECT name FROM t", -1, &raw, NULL);
    ck_assert_int_eq(sqlite3_step(raw), SQLITE_ROW);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (3, 'c')");
    guard_sqlite_close(db);
    check_unlocked();
    ck_assert_int_eq(database_number(path, COUNT), 2);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
    ck_assert_int_eq(guard_tx_outcome(nested), GUARD_ROLLED_BACK);
    ck_assert_ptr_null(guard_sqlite_stmt_raw(stmt));
    (void)blob;
    (void)backup;
}
END_TEST

typedef struct closing {
    int nested; /* close in a savepoint's border */
    int panic;
} closing;

static void close_in_body(guard_tx *tx, void *arg)
{
    const closing *how = arg;
    guard_sqlite_exec(db, "INSERT INTO t DEFAULT VALUES");
    if (how->nested) {
        closing inner = {.panic = how->panic};
        ck_assert_int_eq(guard_tx_nested(tx, close_in_body, &inner, NULL), GUARD_ROLLED_BACK);
        return;
    }
    guard_sqlite_close(db);
    if (how->panic) {
        guard_panic(3, "closed");
    }
}

START_TEST(a_connection_that_its_transactions_body_closes_is_a_rollback)
{
    static const closing ways[] = {{0, 0}, {0, 1}, {1, 0}, {1, 1}};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        GUARD_AUTO(s);
        guard_result result;
        table_open(s, NAMES, NULL);
        guard_outcome outcome = guard_sqlite_transact(db, close_in_body, (void *)&ways[i], NULL, &result);
        ck_assert_msg(outcome == GUARD_ROLLED_BACK, "way %zu: %s %s", i, guard_outcome_name(outcome),
                      result.has_error ? result.error.message : "");
        ck_assert_uint_eq(result.attempts, 1);
        ck_assert_uint_eq(result.has_error, ways[i].panic && !ways[i].nested);
        check_unlocked();
        ck_assert_int_eq(database_number(path, COUNT), 0);
    }
}
END_TEST

static int hooks_ran;

static void close_in_a_hook(void *arg)
{
    (void)arg;
    hooks_ran++;
    guard_sqlite_close(db);
}

static void count_hook(void *arg)
{
    (void)arg;
    hooks_ran++;
}

static void panic_with_hooks(guard_tx *tx, void *arg)
{
    (void)arg;
    guard_tx_on_rollback(tx, count_hook, NULL);
    guard_tx_on_rollback(tx, close_in_a_hook, NULL); /* the newest runs first */
    guard_panic(1, "undone");
}

static void panic_in_a_nested_one(guard_tx *tx, void *arg)
{
    GUARD_AUTO(s);
    guard_tx_on_rollback(tx, count_hook, NULL);
    panic_with_hooks(guard_tx_begin_nested(s, tx), arg);
}

static void panic_over_a_nested_one(guard_tx *tx, void *scope)
{
    guard_tx_on_rollback(tx, count_hook, NULL);
    panic_with_hooks(guard_tx_begin_nested(scope, tx), NULL);
}

START_TEST(a_connection_that_a_hook_of_a_rollback_closes_is_closed_once)
{
    static guard_tx_fn *const bodies[] = {panic_with_hooks, panic_in_a_nested_one, panic_over_a_nested_one};
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        GUARD_AUTO(s);
        guard_result result;
        table_open(s, NAMES, NULL);
        hooks_ran = 0;
        ck_assert_int_eq(guard_sqlite_transact(db, bodies[i], s, NULL, &result), GUARD_ROLLED_BACK);
        ck_assert_str_eq(result.error.message, "undone");
        ck_assert_int_eq(hooks_ran, i == 0 ? 2 : 3);
        ck_assert(!result.has_hook_error);
    }
}
END_TEST

static void step_it(void *stmt)
{
    guard_sqlite_step(stmt);
}

START_TEST(a_statement_of_a_closed_connection_is_misuse)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    guard_sqlite_stmt *stmt = guard_sqlite_prepare(s, db, COUNT);
    guard_sqlite_close(db);
    expect_panic(step_it, stmt, GUARD_MISUSE, GUARD_MISUSE_STATE);
}
END_TEST

static void leave_everything_open(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    db = guard_sqlite_open(s, path, NULL);
    guard_sqlite_begin(s, db, NULL);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1, 'a')");
    guard_sqlite_stmt *stmt = guard_sqlite_prepare(s, db, "SELECT id FROM t");
    guard_sqlite_step(stmt);
    guard_panic(3, "out");
}

START_TEST(a_panic_closes_everything_in_order_and_leaves_no_lock)
{
    path = database_new(NAMES);
    const guard_error *error = expect_panic(leave_everything_open, NULL, GUARD_USER, 3);
    ck_assert_uint_eq(error->cause_count, 0);
    check_unlocked();
    ck_assert_int_eq(database_number(path, COUNT), 0);
}
END_TEST

static void close_it(void *connection)
{
    guard_sqlite_close(connection);
}

START_TEST(a_raw_blob_of_the_programs_is_told_at_the_close_and_leaves_no_lock)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    sqlite3_blob *blob = NULL;
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1, 'abc')");
    guard_sqlite_begin(s, db, NULL);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (2, 'x')");
    ck_assert_int_eq(sqlite3_blob_open(guard_sqlite_raw(db), "main", "t", "name", 1, 0, &blob), SQLITE_OK);
    const guard_error *error = expect_panic(close_it, db, GUARD_SQLITE, SQLITE_BUSY);
    ck_assert_msg(strstr(error->message, "unfinalized statements") != NULL, "%s", error->message);
    sqlite3_blob_close(blob);
    check_unlocked();
    ck_assert_int_eq(database_number(path, COUNT), 1);
}
END_TEST

static int refuse_waiting(void *count, int tries)
{
    (void)tries;
    ++*(int *)count;
    return 0;
}

static int allow_commit(void *count)
{
    ++*(int *)count;
    return 0;
}

START_TEST(an_adopted_handle_is_left_as_it_was)
{
    path = database_new(NAMES);
    sqlite3 *raw = database_raw(path);
    int busy = 0;
    int commits = 0;
    sqlite3_busy_handler(raw, refuse_waiting, &busy);
    sqlite3_commit_hook(raw, allow_commit, &commits);
    {
        GUARD_AUTO(s);
        const guard_sqlite_options options = {.busy_ms = 20};
        db = guard_sqlite_adopt(s, raw, &options);
        guard_tx *tx = guard_sqlite_begin(s, db, NULL);
        guard_tx *nested = guard_tx_begin_nested(s, tx);
        guard_sqlite_exec(db, "INSERT INTO t VALUES (1, 'a')");
        guard_tx_commit(nested);
        guard_tx_commit(tx);
        guard_sqlite_stmt *stmt = guard_sqlite_prepare(s, db, "SELECT id FROM t");
        ck_assert(guard_sqlite_step(stmt));
        guard_sqlite_begin(s, db, NULL);
        guard_sqlite_exec(db, "INSERT INTO t VALUES (2, 'b')");
    }
    ck_assert_int_eq(commits, 1);
    ck_assert_ptr_null(sqlite3_next_stmt(raw, NULL));
    ck_assert(sqlite3_get_autocommit(raw));
    ck_assert_int_eq(database_number_on(raw, "PRAGMA foreign_keys"), 0);
    ck_assert_int_eq(database_number_on(raw, "PRAGMA synchronous"), 0);
    other = database_raw(path);
    database_exec(other, "BEGIN EXCLUSIVE");
    ck_assert_int_eq(sqlite3_exec(raw, "INSERT INTO t VALUES (3, 'c')", NULL, NULL, NULL), SQLITE_BUSY);
    ck_assert_int_gt(busy, 0);
    sqlite3_close(other);
    ck_assert_ptr_eq(sqlite3_commit_hook(raw, NULL, NULL), &commits);
    ck_assert_int_eq(sqlite3_close(raw), SQLITE_OK);
    ck_assert_int_eq(database_number(path, COUNT), 1);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ nothing */

static int told;

static void count_misuse(const guard_error *error)
{
    ck_assert_int_eq(error->domain, GUARD_MISUSE);
    told++;
}

/* After a misuse that a handler let pass, a program goes on with the NULL that it was given, or with what a close has left. */
START_TEST(what_is_not_there_is_misuse_in_every_call_and_never_a_crash)
{
    GUARD_AUTO(s);
    int length = 7;
    table_open(s, NAMES, NULL);
    guard_sqlite_stmt *closed = guard_sqlite_prepare(s, db, "SELECT 1");
    ck_assert(guard_sqlite_step(closed));
    guard_sqlite_close(db);
    guard_misuse_handler(count_misuse);
    guard_sqlite_stmt *const stmts[] = {NULL, closed};
    for (size_t i = 0; i < 2; i++) {
        ck_assert_int_eq(guard_sqlite_step(stmts[i]), 0);
        guard_sqlite_run(stmts[i]);
        guard_sqlite_bind_int64(stmts[i], 1, 1);
        ck_assert_int_eq(guard_sqlite_column_count(stmts[i]), 0);
        ck_assert_int_eq(guard_sqlite_column_type(stmts[i], 0), SQLITE_NULL);
        ck_assert_int_eq(guard_sqlite_column_int64(stmts[i], 0), 0);
        ck_assert(guard_sqlite_column_double(stmts[i], 0) == 0);
        ck_assert_ptr_null(guard_sqlite_column_text(stmts[i], 0));
        ck_assert_ptr_null(guard_sqlite_column_blob(stmts[i], 0, &length));
        ck_assert_int_eq(length, 0);
        guard_sqlite_reset(stmts[i]);
    }
    ck_assert_int_eq(told, 18);
    ck_assert_ptr_null(guard_sqlite_stmt_raw(NULL));
    guard_sqlite_stmt_close(NULL);
    ck_assert_ptr_null(guard_sqlite_raw(NULL));
    guard_sqlite_interrupt(NULL);
    ck_assert_int_eq(guard_sqlite_changes(NULL), 0);
    ck_assert_int_eq(guard_sqlite_last_rowid(NULL), 0);
    guard_sqlite_close(NULL);
    guard_sqlite_exec(NULL, "SELECT 1");
    ck_assert_int_eq(told, 26);
    ck_assert_int_eq(guard_sqlite_blob_size(NULL), 0);
    guard_sqlite_blob_read(NULL, &length, 1, 0);
    guard_sqlite_blob_close(NULL);
    ck_assert_int_eq(guard_sqlite_backup_remaining(NULL), 0);
    ck_assert_int_eq(guard_sqlite_backup_total(NULL), 0);
    ck_assert_int_eq(guard_sqlite_backup_step(NULL, 1), 0);
    ck_assert_int_eq(told, 32);
    ck_assert_ptr_null(guard_sqlite_begin(s, NULL, NULL));
    ck_assert_ptr_null(guard_sqlite_of(NULL));
    ck_assert_int_eq(guard_tx_outcome(NULL), GUARD_OPEN);
    ck_assert_int_eq(guard_tx_result(NULL)->outcome, GUARD_OPEN);
    guard_tx_commit(NULL);
    guard_tx_rollback(NULL);
    guard_tx_settle(NULL, GUARD_COMMITTED);
    ck_assert_ptr_null(guard_tx_begin_nested(s, NULL));
    ck_assert_int_eq(told, 40);
    guard_misuse_handler(NULL);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_database_that_cannot_be_opened_is_named_and_leaves_nothing,
        a_name_that_looks_like_a_uri_is_a_file_and_an_empty_one_is_misuse,
        a_file_that_is_no_database_is_refused_at_open,
        a_file_that_has_to_be_there_is_not_made,
        the_defaults_check_foreign_keys_and_sync_fully,
        options_are_obeyed,
        a_reserved_word_or_an_unknown_value_is_misuse,
        closing_with_everything_open_rolls_back_and_leaves_no_lock,
        a_connection_that_its_transactions_body_closes_is_a_rollback,
        a_connection_that_a_hook_of_a_rollback_closes_is_closed_once,
        a_statement_of_a_closed_connection_is_misuse,
        a_panic_closes_everything_in_order_and_leaves_no_lock,
        a_raw_blob_of_the_programs_is_told_at_the_close_and_leaves_no_lock,
        an_adopted_handle_is_left_as_it_was,
        what_is_not_there_is_misuse_in_every_call_and_never_a_crash,
    };
    return suite_run("sqlite", tests, sizeof tests / sizeof *tests);
}
