/* SPDX-License-Identifier: MIT */
/*
 * check_sqlite_stmt.c: statements: values go in and come out, and what fails says clearly what and where (behaviour 45).
 */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include <guard/guard.h>
#include <guard/guard_sqlite.h>

#include "sqlite_table.h"
#include "suite.h"

#define NAMES "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT UNIQUE)"

static void step_it(void *stmt)
{
    guard_sqlite_step(stmt);
}

START_TEST(an_error_says_what_where_and_which_constraint)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1, 'a')");
    const guard_error *error = expect_panic(table_exec, (void *)"INSERT INTO t\nVALUES (2, 'a')", GUARD_SQLITE,
                                            SQLITE_CONSTRAINT_UNIQUE);
    ck_assert_str_eq(error->message, "UNIQUE constraint failed: t.name");
    ck_assert_str_eq(error->constraint, "t.name");
    ck_assert_str_eq(error->detail, "INSERT INTO t VALUES (2, 'a')");
    ck_assert_str_eq(error->file, "sqlite_table.c"); /* of the call */
    ck_assert_str_eq(error->function, "table_exec");
    ck_assert_uint_gt(error->line, 0);
    error = expect_panic(table_exec, (void *)"SELECT * FROM missing", GUARD_SQLITE, SQLITE_ERROR);
    ck_assert_str_eq(error->message, "no such table: missing");
}
END_TEST

static void spoil_message(void *arg)
{
    (void)arg;
    sqlite3_exec(guard_sqlite_raw(db), "this is no SQL", NULL, NULL, NULL);
}

static void fail_with_defer(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, spoil_message, NULL);
    guard_sqlite_exec(db, "SELECT * FROM missing");
}

START_TEST(the_message_is_saved_before_any_defer_runs)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    const guard_error *error = expect_panic(fail_with_defer, NULL, GUARD_SQLITE, SQLITE_ERROR);
    ck_assert_str_eq(error->message, "no such table: missing");
}
END_TEST

START_TEST(values_go_in_and_come_out)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    int length = 0;
    guard_sqlite_stmt *stmt = guard_sqlite_prepare(s, db, "SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 -- and a comment\n ; ");
    guard_sqlite_bind_int64(stmt, 1, INT64_MIN);
    guard_sqlite_bind_double(stmt, 2, 0.5);
    guard_sqlite_bind_text(stmt, 3, "text\0more", 9);
    guard_sqlite_bind_blob(stmt, 4, "\0\1\2", 3);
    guard_sqlite_bind_null(stmt, 5);
    guard_sqlite_bind_text(stmt, 6, NULL, -1);
    guard_sqlite_bind_static_text(stmt, 7, "static text", 6);
    ck_assert(guard_sqlite_step(stmt));
    ck_assert_int_eq(guard_sqlite_column_count(stmt), 7);
    ck_assert(guard_sqlite_column_int64(stmt, 0) == INT64_MIN);
    ck_assert(guard_sqlite_column_double(stmt, 1) == 0.5);
    ck_assert_mem_eq(guard_sqlite_column_text(stmt, 2), "text\0more", 9);
    ck_assert_mem_eq(guard_sqlite_column_blob(stmt, 3, &length), "\0\1\2", 3);
    ck_assert_int_eq(length, 3);
    ck_assert_int_eq(guard_sqlite_column_type(stmt, 4), SQLITE_NULL);
    ck_assert_ptr_null(guard_sqlite_column_text(stmt, 5));
    ck_assert_str_eq(guard_sqlite_column_text(stmt, 6), "static");
    /* Binding a statement that was stepped starts it again; its other bindings stay. */
    guard_sqlite_bind_int64(stmt, 1, 5);
    ck_assert(guard_sqlite_step(stmt));
    ck_assert_int_eq(guard_sqlite_column_int64(stmt, 0), 5);
    ck_assert_str_eq(guard_sqlite_column_text(stmt, 2), "text");
    ck_assert(!guard_sqlite_step(stmt));
}
END_TEST

static void bind_outside(void *stmt)
{
    guard_sqlite_bind_int64(stmt, 3, 1);
}

START_TEST(a_parameter_that_is_not_there_panics)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    expect_panic(bind_outside, guard_sqlite_prepare(s, db, "SELECT ?1"), GUARD_SQLITE, SQLITE_RANGE);
}
END_TEST

static int column;

static void read_column(void *stmt)
{
    guard_sqlite_column_int64(stmt, column);
}

static void bind_a_wrong_length(void *stmt)
{
    guard_sqlite_bind_text(stmt, 1, "text", -7);
}

static void prepare_nothing(void *of)
{
    GUARD_AUTO(s);
    guard_sqlite_prepare(s, of, " -- nothing");
}

/* SQLite has 0 for them, which is in no table. */
START_TEST(a_column_that_is_not_there_is_misuse_and_so_is_a_length_that_is_none)
{
    GUARD_AUTO(s);
    db = guard_sqlite_open(s, ":memory:", NULL);
    guard_sqlite_stmt *stmt = guard_sqlite_prepare(s, db, "SELECT ?1, 2");
    const guard_error *error = expect_panic(read_column, stmt, GUARD_MISUSE, GUARD_MISUSE_STATE);
    ck_assert_str_eq(error->message, "column 0 is read where there is no row");
    ck_assert_str_eq(error->function, "read_column");
    expect_panic(bind_a_wrong_length, stmt, GUARD_MISUSE, GUARD_MISUSE_ARGUMENT);
    ck_assert_int_eq(guard_sqlite_step(stmt), 1);
    ck_assert_int_eq(guard_sqlite_column_int64(stmt, 1), 2);
    for (column = -1; column <= 2; column += 3) {
        expect_panic(read_column, stmt, GUARD_MISUSE, GUARD_MISUSE_ARGUMENT);
    }
    ck_assert_int_eq(guard_sqlite_step(stmt), 0);
    column = 0;
    expect_panic(read_column, stmt, GUARD_MISUSE, GUARD_MISUSE_STATE);
    error = expect_panic(prepare_nothing, db, GUARD_MISUSE, GUARD_MISUSE_ARGUMENT);
    ck_assert_str_eq(error->message, "there is no statement in it:  -- nothing");
}
END_TEST

static void prepare_it(void *sql)
{
    GUARD_AUTO(s);
    guard_sqlite_prepare(s, db, sql);
}

START_TEST(two_statements_or_none_are_misuse_to_prepare)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    expect_panic(prepare_it, (void *)"SELECT 1; SELECT 2", GUARD_MISUSE, GUARD_MISUSE_ARGUMENT);
    expect_panic(prepare_it, (void *)" -- nothing", GUARD_MISUSE, GUARD_MISUSE_ARGUMENT);
    expect_panic(prepare_it, NULL, GUARD_MISUSE, GUARD_MISUSE_ARGUMENT);
    expect_panic(prepare_it, (void *)"SELECT", GUARD_SQLITE, SQLITE_ERROR);
    ck_assert_ptr_null(sqlite3_next_stmt(guard_sqlite_raw(db), NULL));
}
END_TEST

START_TEST(a_statement_that_failed_can_be_run_again)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    guard_sqlite_stmt *stmt = guard_sqlite_prepare(s, db, "INSERT INTO t VALUES (?1, ?1)");
    guard_sqlite_bind_int64(stmt, 1, 1);
    guard_sqlite_run(stmt);
    expect_panic(step_it, stmt, GUARD_SQLITE, SQLITE_CONSTRAINT_PRIMARYKEY);
    guard_sqlite_bind_int64(stmt, 1, 2);
    guard_sqlite_run(stmt);
    ck_assert_int_eq(guard_sqlite_changes(db), 1);
    ck_assert_int_eq(guard_sqlite_last_rowid(db), 2);
    ck_assert_int_eq(database_number(path, COUNT), 2);
}
END_TEST

START_TEST(exec_runs_all_statements_up_to_the_first_that_fails)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    guard_sqlite_exec(db, "");
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1, 'a'); SELECT * FROM t; ; INSERT INTO t VALUES (2, 'b') -- end");
    expect_panic(table_exec,
                 (void *)"INSERT INTO t VALUES (3, 'c'); INSERT INTO t VALUES (3, 'd'); INSERT INTO t VALUES (4, 'e')",
                 GUARD_SQLITE, SQLITE_CONSTRAINT_PRIMARYKEY);
    ck_assert_int_eq(database_number(path, COUNT), 3);
    ck_assert_ptr_null(sqlite3_next_stmt(guard_sqlite_raw(db), NULL));
}
END_TEST

START_TEST(a_statement_closed_early_is_gone)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    guard_sqlite_stmt *stmt = guard_sqlite_prepare(s, db, COUNT);
    ck_assert(guard_sqlite_step(stmt));
    guard_sqlite_stmt_close(stmt);
    ck_assert_ptr_null(sqlite3_next_stmt(guard_sqlite_raw(db), NULL));
}
END_TEST

static void *interrupt_it(void *arg)
{
    (void)arg;
    guard_sqlite_interrupt(db);
    return NULL;
}

static int interrupt_once(void *thread)
{
    if (*(pthread_t *)thread == 0) {
        pthread_create(thread, NULL, interrupt_it, NULL);
        pthread_join(*(pthread_t *)thread, NULL);
    }
    return 0;
}

START_TEST(another_thread_can_interrupt)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    pthread_t thread = 0;
    sqlite3_progress_handler(guard_sqlite_raw(db), 1000, interrupt_once, &thread);
    expect_panic(table_exec,
                 (void *)"WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c",
                 GUARD_SQLITE, SQLITE_INTERRUPT);
}
END_TEST

/* SQLite's words are "attempt to write a readonly database" for all of these. */
START_TEST(a_file_that_cannot_be_written_says_why)
{
    GUARD_AUTO(s);
    const guard_sqlite_options read_only = {.flags = GUARD_SQLITE_READ_ONLY};
    table_open(s, NAMES, NULL);
    guard_sqlite *moved = db;
    db = guard_sqlite_open(s, path, &read_only);
    const guard_error *error = expect_panic(table_exec, (void *)"INSERT INTO t VALUES (1, 'a')", GUARD_SQLITE,
                                            SQLITE_READONLY);
    ck_assert_str_eq(error->hint, "it was opened for reading, or the file may not be written");
    db = moved;
    guard_sqlite_query_int64(db, "SELECT count(*) FROM t", -1);
    ck_assert_int_eq(rename(path, database_beside("elsewhere.db")), 0);
    error = expect_panic(table_exec, (void *)"INSERT INTO t VALUES (1, 'a')", GUARD_SQLITE, SQLITE_READONLY_DBMOVED);
    ck_assert_msg(strstr(error->hint, "moved, replaced or deleted") != NULL, "%s", error->hint);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        an_error_says_what_where_and_which_constraint,
        the_message_is_saved_before_any_defer_runs,
        values_go_in_and_come_out,
        a_parameter_that_is_not_there_panics,
        a_column_that_is_not_there_is_misuse_and_so_is_a_length_that_is_none,
        two_statements_or_none_are_misuse_to_prepare,
        a_statement_that_failed_can_be_run_again,
        exec_runs_all_statements_up_to_the_first_that_fails,
        a_statement_closed_early_is_gone,
        another_thread_can_interrupt,
        a_file_that_cannot_be_written_says_why,
    };
    return suite_run("sqlite_stmt", tests, sizeof tests / sizeof *tests);
}
