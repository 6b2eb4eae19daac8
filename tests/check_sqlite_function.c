/* SPDX-License-Identifier: MIT */
/*
 * check_sqlite_function.c: a panic of the program's never crosses SQLite's frames: user functions, aggregates, collations and
 * sqlite3_exec callbacks are borders (behaviour 46). Blobs and backups.
 */
#include <pthread.h>
#include <string.h>

#include <guard/guard.h>
#include <guard/guard_sqlite.h>
#include <guard/tx.h>

#include "sqlite_table.h"
#include "suite.h"
#include "trace.h"

#define NAMES "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT); INSERT INTO t VALUES (1, 'b'), (2, 'a'), (3, 'c')"

/* Nothing is pending in the connection, and others can write. */
static void check_free(void)
{
    sqlite3 *raw = database_raw(path);
    sqlite3_busy_timeout(raw, 0);
    for (sqlite3_stmt *stmt = NULL; (stmt = sqlite3_next_stmt(guard_sqlite_raw(db), stmt)) != NULL;) {
        ck_assert_msg(!sqlite3_stmt_busy(stmt), "%s", sqlite3_sql(stmt));
    }
    ck_assert_int_eq(sqlite3_txn_state(guard_sqlite_raw(db), NULL), SQLITE_TXN_NONE);
    database_exec(raw, "BEGIN EXCLUSIVE; ROLLBACK");
    sqlite3_close(raw);
}

/* ---------------------------------------------------------------------- 46 */

static void twice(sqlite3_context *context, int count, sqlite3_value **values, void *arg)
{
    (void)count;
    if (sqlite3_value_int(values[0]) == 2) {
        trace_add("panic");
        guard_panic(46, "%s does not double 2", (const char *)arg);
    }
    sqlite3_result_int(context, 2 * sqlite3_value_int(values[0]));
}

START_TEST(a_panic_in_a_user_function_is_raised_after_sqlite_returned)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    guard_sqlite_function(db, "twice", 1, SQLITE_UTF8, twice, (void *)"twice");
    ck_assert_int_eq(guard_sqlite_query_int64(db, "SELECT twice(21)", 0), 42);
    const guard_error *error = expect_panic(table_exec, (void *)"SELECT twice(id) FROM t", GUARD_USER, 46);
    ck_assert_str_eq(error->message, "twice does not double 2");
    ck_assert_str_eq(error->function, "twice");
    check_free();
    expect_panic(table_exec, (void *)"UPDATE t SET id = twice(id) + 10", GUARD_USER, 46);
    ck_assert_int_eq(database_number(path, "SELECT max(id) FROM t"), 3);
    check_free();
    trace_expect("panic, panic");
}
END_TEST

START_TEST(a_panic_in_a_user_function_rolls_a_transaction_back)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    guard_sqlite_function(db, "twice", 1, SQLITE_UTF8, twice, (void *)"twice");
    guard_sqlite_exec(db, "CREATE TABLE log(id)");
    guard_error error;
    GUARD_TRY(&error)
    {
        GUARD_AUTO(inner);
        guard_tx *tx = guard_sqlite_begin(inner, db, NULL);
        guard_sqlite_exec(db, "INSERT INTO log VALUES (1)");
        guard_sqlite_exec(db, "INSERT INTO log SELECT twice(id) FROM t");
        guard_tx_commit(tx);
    }
    ck_assert_int_eq(error.code, 46);
    ck_assert_int_eq(database_number(path, "SELECT count(*) FROM log"), 0);
    check_free();
}
END_TEST

static void note_trace(const char *text)
{
    trace_add("note %s", text);
}

START_TEST(a_panic_in_a_statement_of_the_raw_handle_is_noted_and_dropped)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    guard_note_handler(note_trace);
    guard_sqlite_function(db, "twice", 1, SQLITE_UTF8, twice, (void *)"twice");
    int rc = sqlite3_exec(guard_sqlite_raw(db), "SELECT twice(2)", NULL, NULL, NULL);
    ck_assert_int_eq(rc, SQLITE_ERROR);
    ck_assert_str_eq(sqlite3_errmsg(guard_sqlite_raw(db)), "twice does not double 2");
    ck_assert_msg(strstr(trace_text(), "panic, note ") == trace_text() &&
                      strstr(trace_text(), "twice does not double 2") != NULL,
                  "%s", trace_text());
    trace_clear();
    /* It is not raised by somebody else's call. */
    ck_assert_int_eq(guard_sqlite_query_int64(db, "SELECT twice(4)", 0), 8);
}
END_TEST

/* A function that works on the connection it is called from, and handles a panic there. */
static void count_and_catch(sqlite3_context *context, int count, sqlite3_value **values, void *arg)
{
    (void)count;
    (void)values;
    (void)arg;
    guard_error error;
    int told = guard_run(table_exec, (void *)"SELECT twice(2)", &error);
    sqlite3_result_int64(context, told * 100 + guard_sqlite_query_int64(db, COUNT, -1));
}

START_TEST(a_function_may_use_the_connection_and_handle_a_panic_of_its_own)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    guard_sqlite_function(db, "twice", 1, SQLITE_UTF8, twice, (void *)"twice");
    guard_sqlite_function(db, "inside", 0, SQLITE_UTF8, count_and_catch, NULL);
    ck_assert_int_eq(guard_sqlite_query_int64(db, "SELECT inside()", 0), 4603);
    check_free();
}
END_TEST

typedef struct sum {
    long long total;
} sum;

static void sum_step(sqlite3_context *context, void *state, int count, sqlite3_value **values, void *arg)
{
    (void)context;
    (void)count;
    (void)arg;
    ((sum *)state)->total += sqlite3_value_int64(values[0]);
    if (sqlite3_value_int(values[0]) == 99) {
        guard_panic(9, "99 is too much");
    }
}

static void sum_final(sqlite3_context *context, void *state, void *arg)
{
    (void)arg;
    trace_add("final");
    sqlite3_result_int64(context, ((sum *)state)->total);
}

START_TEST(a_panic_in_an_aggregate_is_raised_and_its_final_is_not_run)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    guard_sqlite_aggregate(db, "my_sum", 1, SQLITE_UTF8, sizeof(sum), sum_step, sum_final, NULL);
    ck_assert_int_eq(guard_sqlite_query_int64(db, "SELECT my_sum(id) FROM t", 0), 6);
    ck_assert_int_eq(guard_sqlite_query_int64(db, "SELECT my_sum(id) FROM t WHERE id > 5", -1), 0);
    trace_expect("final, final");
    guard_sqlite_exec(db, "INSERT INTO t VALUES (99, 'z')");
    expect_panic(table_exec, (void *)"SELECT my_sum(id) FROM t", GUARD_USER, 9);
    trace_expect("");
    check_free();
}
END_TEST

static int compare_or_panic(void *arg, int a_length, const void *a, int b_length, const void *b)
{
    int length = a_length < b_length ? a_length : b_length;
    if (*(int *)arg) {
        guard_panic(8, "no order");
    }
    int order = memcmp(a, b, (size_t)length);
    return order != 0 ? order : a_length - b_length;
}

START_TEST(a_panic_in_a_collation_is_raised_and_its_transaction_taken_back)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    int fail = 0;
    guard_error error;
    guard_sqlite_collation(db, "mine", compare_or_panic, &fail);
    guard_sqlite_exec(db, "CREATE INDEX by_name ON t(name COLLATE mine)");
    ck_assert_int_eq(guard_sqlite_query_int64(db, "SELECT id FROM t ORDER BY name COLLATE mine LIMIT 1", 0), 2);
    fail = 1;
    expect_panic(table_exec, (void *)"SELECT id FROM t ORDER BY name COLLATE mine, id DESC", GUARD_USER, 8);
    GUARD_TRY(&error)
    {
        GUARD_AUTO(inner);
        guard_tx *tx = guard_sqlite_begin(inner, db, NULL);
        guard_sqlite_exec(db, "INSERT INTO t VALUES (4, 'ab')");
        guard_tx_commit(tx);
        ck_abort_msg("no panic");
    }
    ck_assert_int_eq(error.code, 8);
    fail = 0;
    ck_assert_int_eq(guard_sqlite_query_int64(db, COUNT, 0), 3);
    guard_sqlite_exec(db, "REINDEX");
    check_free();
}
END_TEST

static int row_or_panic(void *arg, int columns, char **texts, char **names)
{
    (void)columns;
    trace_add("%s %s", names[0], texts[0]);
    if (strcmp(texts[0], arg) == 0) {
        guard_panic(3, "not %s", texts[0]);
    }
    return 0;
}

static void exec_rows(void *bad)
{
    guard_sqlite_exec_rows(db, "SELECT id FROM t ORDER BY id", row_or_panic, bad);
}

static int stop_at_two(void *arg, int columns, char **texts, char **names)
{
    (void)columns;
    (void)names;
    ++*(int *)arg;
    return strcmp(texts[0], "2") == 0 ? 77 : 0;
}

START_TEST(a_panic_in_an_exec_callback_is_raised_and_leaks_no_statement)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    const guard_error *error = expect_panic(exec_rows, (void *)"2", GUARD_USER, 3);
    ck_assert_str_eq(error->message, "not 2");
    trace_expect("id 1, id 2");
    check_free();
    ck_assert_ptr_null(sqlite3_next_stmt(guard_sqlite_raw(db), NULL));
    exec_rows((void *)"none");
    trace_expect("id 1, id 2, id 3");
    int rows = 0;
    ck_assert_int_eq(guard_sqlite_exec_rows(db, "SELECT id FROM t ORDER BY id", stop_at_two, &rows), 77);
    ck_assert_int_eq(rows, 2);
    check_free();
}
END_TEST

static void *write_elsewhere(void *raw)
{
    database_exec(raw, "INSERT INTO t VALUES (50, 'other')");
    return NULL;
}

START_TEST(after_a_panic_in_a_function_other_threads_go_on)
{
    GUARD_AUTO(s);
    pthread_t thread;
    table_open(s, NAMES, NULL);
    guard_sqlite_function(db, "twice", 1, SQLITE_UTF8, twice, (void *)"twice");
    expect_panic(table_exec, (void *)"SELECT twice(id) FROM t", GUARD_USER, 46);
    /* The same connection: its mutex is not held. Another one: no lock is. */
    ck_assert_int_eq(pthread_create(&thread, NULL, write_elsewhere, guard_sqlite_raw(db)), 0);
    pthread_join(thread, NULL);
    ck_assert_int_eq(database_number(path, COUNT), 4);
}
END_TEST

START_TEST(functions_of_an_adopted_handle_end_with_the_guard)
{
    path = database_new(NAMES);
    sqlite3 *raw = database_raw(path);
    sqlite3_stmt *stmt;
    {
        GUARD_AUTO(s);
        db = guard_sqlite_adopt(s, raw, NULL);
        guard_sqlite_function(db, "twice", 1, SQLITE_UTF8, twice, (void *)"twice");
        guard_sqlite_collation(db, "mine", compare_or_panic, &(int){0});
        ck_assert_int_eq(database_number_on(raw, "SELECT twice(4)"), 8);
    }
    ck_assert_int_eq(sqlite3_exec(raw, "SELECT twice(4)", NULL, NULL, NULL), SQLITE_ERROR);
    ck_assert_str_eq(sqlite3_errmsg(raw), "no such function: twice");
    {
        GUARD_AUTO(s);
        db = guard_sqlite_adopt(s, raw, NULL);
        guard_sqlite_function(db, "twice", 1, SQLITE_UTF8, twice, (void *)"twice");
        ck_assert_int_eq(sqlite3_prepare_v2(raw, "SELECT twice(id + 3) FROM t", -1, &stmt, NULL), SQLITE_OK);
        ck_assert_int_eq(sqlite3_step(stmt), SQLITE_ROW);
    }
    /* A statement of the program's still runs: its next call says that the guard has ended. */
    ck_assert_int_eq(sqlite3_step(stmt), SQLITE_ERROR);
    ck_assert_str_eq(sqlite3_errmsg(raw), "the guard of this function has ended");
    sqlite3_finalize(stmt);
    ck_assert_int_eq(sqlite3_close(raw), SQLITE_OK);
}
END_TEST

static void add_bad_function(void *arg)
{
    (void)arg;
    guard_sqlite_function(db, "f", 1000, SQLITE_UTF8, twice, NULL);
}

START_TEST(a_function_that_sqlite_refuses_panics_and_leaks_nothing)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    expect_panic(add_bad_function, NULL, GUARD_SQLITE, SQLITE_MISUSE);
    guard_sqlite_function(db, "twice", 1, SQLITE_UTF8, twice, (void *)"first");
    guard_sqlite_function(db, "twice", 1, SQLITE_UTF8, twice, (void *)"second");
    const guard_error *error = expect_panic(table_exec, (void *)"SELECT twice(2)", GUARD_USER, 46);
    ck_assert_str_eq(error->message, "second does not double 2");
}
END_TEST

static guard_sqlite_stmt *running;

static void close_something(sqlite3_context *context, int count, sqlite3_value **values, void *arg)
{
    (void)context;
    (void)count;
    (void)arg;
    if (sqlite3_value_int(values[0]) == 1) {
        guard_sqlite_close(db);
    } else {
        guard_sqlite_stmt_close(running);
    }
}

static void step_running(void *arg)
{
    (void)arg;
    guard_sqlite_step(running);
}

START_TEST(closing_what_called_a_function_inside_it_is_misuse)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    guard_sqlite_function(db, "closing", 1, SQLITE_UTF8, close_something, NULL);
    running = guard_sqlite_prepare(s, db, "SELECT closing(?1)");
    for (int what = 1; what <= 2; what++) {
        guard_sqlite_bind_int64(running, 1, what);
        expect_panic(step_running, NULL, GUARD_MISUSE, GUARD_MISUSE_STATE);
    }
    guard_sqlite_stmt_close(running);
    ck_assert_int_eq(guard_sqlite_query_int64(db, COUNT, 0), 3);
    /* Also in a statement of the raw handle. */
    ck_assert_int_eq(sqlite3_exec(guard_sqlite_raw(db), "SELECT closing(1)", NULL, NULL, NULL), SQLITE_ERROR);
    ck_assert_int_eq(guard_sqlite_query_int64(db, COUNT, 0), 3);
}
END_TEST

static void use_running(sqlite3_context *context, int count, sqlite3_value **values, void *arg)
{
    (void)context;
    (void)count;
    (void)arg;
    switch (sqlite3_value_int(values[0])) {
    case 1:
        guard_sqlite_reset(running);
        break;
    case 2:
        guard_sqlite_step(running);
        break;
    case 3:
        guard_sqlite_bind_int64(running, 1, 0);
        break;
    default:
        break;
    }
}

/* SQLite would go on in a statement that was taken away under its feet. */
START_TEST(using_the_statement_that_called_a_function_inside_it_is_misuse)
{
    for (int i = 1; i <= 3; i++) {
        GUARD_AUTO(s);
        table_open(s, NAMES, NULL);
        guard_sqlite_function(db, "use_running", 1, SQLITE_UTF8, use_running, NULL);
        /* On a row already, and not yet. */
        running = guard_sqlite_prepare(s, db, "WITH x(n) AS (VALUES (0), (?1)) SELECT use_running(n) FROM x");
        guard_sqlite_bind_int64(running, 1, i);
        ck_assert(guard_sqlite_step(running));
        expect_panic(step_running, NULL, GUARD_MISUSE, GUARD_MISUSE_STATE);
        running = guard_sqlite_prepare(s, db, "SELECT use_running(?1)");
        guard_sqlite_bind_int64(running, 1, i);
        expect_panic(step_running, NULL, GUARD_MISUSE, GUARD_MISUSE_STATE);
        guard_sqlite_bind_int64(running, 1, 0);
        ck_assert(guard_sqlite_step(running)); /* nothing of it stays */
    }
}
END_TEST

static void close_outer(sqlite3_context *context, int count, sqlite3_value **values, void *arg)
{
    (void)context;
    (void)count;
    (void)values;
    (void)arg;
    guard_sqlite_stmt_close(running);
}

START_TEST(a_function_may_close_a_statement_that_only_stands_on_a_row)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    guard_sqlite_function(db, "close_outer", 0, SQLITE_UTF8, close_outer, NULL);
    running = guard_sqlite_prepare(s, db, "VALUES (1), (2)");
    ck_assert(guard_sqlite_step(running));
    guard_sqlite_exec(db, "SELECT close_outer()");
}
END_TEST

/* ------------------------------------------------------------------------------------------------- blobs */

static void read_past_the_end(void *blob)
{
    char data[8];
    guard_sqlite_blob_read(blob, data, sizeof(data), 6);
}

static void write_it(void *blob)
{
    guard_sqlite_blob_write(blob, "xy", 2, 0);
}

static void open_blob(void *writable)
{
    GUARD_AUTO(s);
    guard_sqlite_blob_open(s, db, "b", "data", 7, writable != NULL);
}

START_TEST(a_blob_is_read_and_written_in_place_and_ends_with_its_scope)
{
    GUARD_AUTO(s);
    char data[11] = "";
    table_open(s, NAMES, NULL);
    guard_sqlite_exec(db, "CREATE TABLE b(data BLOB); INSERT INTO b VALUES (x'30313233343536373839')");
    {
        GUARD_AUTO(inner);
        guard_sqlite_blob *blob = guard_sqlite_blob_open(inner, db, "b", "data", 1, 1);
        ck_assert_int_eq(guard_sqlite_blob_size(blob), 10);
        guard_sqlite_blob_write(blob, "ABC", 3, 4);
        guard_sqlite_blob_read(blob, data, 10, 0);
        ck_assert_str_eq(data, "0123ABC789");
        expect_panic(read_past_the_end, blob, GUARD_SQLITE, SQLITE_ERROR);
    }
    check_free();
    ck_assert_int_eq(database_number(path, "SELECT data = x'30313233414243373839' FROM b"), 1);
    guard_sqlite_blob *blob = guard_sqlite_blob_open(s, db, "b", "data", 1, 0);
    expect_panic(write_it, blob, GUARD_SQLITE, SQLITE_READONLY);
    guard_sqlite_blob_close(blob);
    const guard_error *error = expect_panic(open_blob, NULL, GUARD_SQLITE, SQLITE_ERROR);
    ck_assert_str_eq(error->message, "no such rowid: 7");
    check_free();
}
END_TEST

START_TEST(what_a_blob_wrote_is_taken_back_with_its_transaction)
{
    GUARD_AUTO(s);
    table_open(s, NAMES, NULL);
    guard_sqlite_exec(db, "CREATE TABLE b(data BLOB); INSERT INTO b VALUES (zeroblob(4))");
    {
        GUARD_AUTO(inner);
        guard_sqlite_begin(inner, db, NULL);
        guard_sqlite_blob *blob = guard_sqlite_blob_open(inner, db, "b", "data", 1, 1);
        write_it(blob);
    }
    ck_assert_int_eq(database_number(path, "SELECT data = zeroblob(4) FROM b"), 1);
    check_free();
}
END_TEST

/* ------------------------------------------------------------------------------------------------ backup */

static guard_sqlite *fill_source(guard_scope *s)
{
    table_open(s, NAMES, NULL);
    guard_sqlite_exec(
        db, "CREATE TABLE big(data BLOB); INSERT INTO big SELECT zeroblob(3000) FROM t, t AS u, t AS v, t AS w");
    sqlite3 *raw = database_raw(database_beside("copy.db"));
    database_exec(raw, "CREATE TABLE old(x); INSERT INTO old VALUES (1)");
    sqlite3_close(raw);
    return guard_sqlite_open(s, database_beside("copy.db"), &(guard_sqlite_options){.busy_ms = 50});
}

START_TEST(a_backup_copies_all_in_steps)
{
    GUARD_AUTO(s);
    guard_sqlite *copy = fill_source(s);
    int steps = 0;
    guard_sqlite_backup *backup = guard_sqlite_backup_open(s, copy, db);
    while (guard_sqlite_backup_step(backup, 10)) {
        ck_assert_int_gt(guard_sqlite_backup_remaining(backup), 0);
        steps++;
    }
    ck_assert_int_gt(steps, 3);
    ck_assert_int_gt(guard_sqlite_backup_total(backup), 40);
    guard_sqlite_backup_finish(backup, 0);
    ck_assert_int_eq(database_number(database_beside("copy.db"), "SELECT count(*) FROM big"), 81);
}
END_TEST

START_TEST(a_backup_left_half_way_changes_nothing)
{
    GUARD_AUTO(s);
    guard_sqlite *copy = fill_source(s);
    {
        GUARD_AUTO(inner);
        guard_sqlite_backup *backup = guard_sqlite_backup_open(inner, copy, db);
        ck_assert(guard_sqlite_backup_step(backup, 10));
    }
    ck_assert_int_eq(database_number(database_beside("copy.db"), "SELECT x FROM old"), 1);
    /* Also when the source goes first. */
    guard_sqlite_backup *backup = guard_sqlite_backup_open(s, copy, db);
    ck_assert(guard_sqlite_backup_step(backup, 10));
    guard_sqlite_close(db);
    ck_assert_int_eq(database_number(database_beside("copy.db"), "SELECT x FROM old"), 1);
}
END_TEST

static void finish_it(void *backup)
{
    guard_sqlite_backup_finish(backup, 30);
}

START_TEST(a_backup_of_a_busy_database_waits_to_the_deadline)
{
    GUARD_AUTO(s);
    guard_sqlite *copy = fill_source(s);
    other = database_raw(path);
    database_exec(other, "BEGIN EXCLUSIVE");
    guard_sqlite_backup *backup = guard_sqlite_backup_open(s, copy, db);
    expect_panic(finish_it, backup, GUARD_SQLITE, SQLITE_BUSY);
    database_exec(other, "COMMIT");
    guard_sqlite_backup_finish(backup, 0);
    sqlite3_close(other);
    ck_assert_int_eq(database_number(database_beside("copy.db"), "SELECT count(*) FROM big"), 81);
}
END_TEST

static void begin_on(void *connection)
{
    GUARD_AUTO(s);
    guard_sqlite_begin(s, connection, NULL);
}

static void write_to(void *connection)
{
    guard_sqlite_exec(connection, "INSERT INTO old VALUES (2)");
}

static void copy_again_to(void *connection)
{
    GUARD_AUTO(s);
    guard_sqlite_backup_open(s, connection, db);
}

/* SQLite asks the program for that, and crashes at the end of the backup (c3ref/backup_finish.html; tried). */
START_TEST(using_the_destination_of_a_backup_is_misuse_until_it_has_ended)
{
    GUARD_AUTO(s);
    guard_sqlite *copy = fill_source(s);
    guard_sqlite_stmt *prepared = guard_sqlite_prepare(s, copy, "INSERT INTO old VALUES (3)");
    guard_sqlite_backup *backup = guard_sqlite_backup_open(s, copy, db);
    ck_assert(guard_sqlite_backup_step(backup, 1));
    running = prepared;
    for (int twice = 0; twice < 2; twice++) {
        expect_panic(write_to, copy, GUARD_MISUSE, GUARD_MISUSE_STATE);
        expect_panic(step_running, NULL, GUARD_MISUSE, GUARD_MISUSE_STATE);
        expect_panic(begin_on, copy, GUARD_MISUSE, GUARD_MISUSE_STATE);
        expect_panic(copy_again_to, copy, GUARD_MISUSE, GUARD_MISUSE_STATE);
    }
    guard_sqlite_backup_finish(backup, 0);
    ck_assert_int_eq(guard_sqlite_query_int64(copy, "SELECT count(*) FROM big", -1), 81);
    {
        GUARD_AUTO(inner);
        ck_assert(guard_sqlite_backup_step(guard_sqlite_backup_open(inner, copy, db), 1));
    }
    guard_sqlite_exec(copy, "DELETE FROM big");
    begin_on(copy);
}
END_TEST

static void finish_in_time(void *backup)
{
    guard_sqlite_backup_finish(backup, 60000);
}

START_TEST(a_backup_does_not_wait_for_its_own_threads_transaction)
{
    GUARD_AUTO(s);
    guard_sqlite *copy = fill_source(s);
    guard_sqlite_backup *backup = guard_sqlite_backup_open(s, copy, db);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_sqlite_exec(db, "DELETE FROM big");
    int64_t started = now_ms();
    const guard_error *error = expect_panic(finish_in_time, backup, GUARD_SQLITE, SQLITE_BUSY);
    ck_assert_int_lt(now_ms() - started, 30000);
    ck_assert_str_eq(error->hint, "the connection that is copied is in a transaction that writes: end it first");
    guard_tx_rollback(tx);
    guard_sqlite_backup_finish(backup, 0);
    ck_assert_int_eq(guard_sqlite_query_int64(copy, "SELECT count(*) FROM big", -1), 81);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_panic_in_a_user_function_is_raised_after_sqlite_returned,
        a_panic_in_a_user_function_rolls_a_transaction_back,
        a_panic_in_a_statement_of_the_raw_handle_is_noted_and_dropped,
        a_function_may_use_the_connection_and_handle_a_panic_of_its_own,
        a_panic_in_an_aggregate_is_raised_and_its_final_is_not_run,
        a_panic_in_a_collation_is_raised_and_its_transaction_taken_back,
        a_panic_in_an_exec_callback_is_raised_and_leaks_no_statement,
        after_a_panic_in_a_function_other_threads_go_on,
        functions_of_an_adopted_handle_end_with_the_guard,
        a_function_that_sqlite_refuses_panics_and_leaks_nothing,
        closing_what_called_a_function_inside_it_is_misuse,
        using_the_statement_that_called_a_function_inside_it_is_misuse,
        a_function_may_close_a_statement_that_only_stands_on_a_row,
        a_blob_is_read_and_written_in_place_and_ends_with_its_scope,
        what_a_blob_wrote_is_taken_back_with_its_transaction,
        a_backup_copies_all_in_steps,
        a_backup_left_half_way_changes_nothing,
        a_backup_of_a_busy_database_waits_to_the_deadline,
        using_the_destination_of_a_backup_is_misuse_until_it_has_ended,
        a_backup_does_not_wait_for_its_own_threads_transaction,
    };
    return suite_run("sqlite_function", tests, sizeof tests / sizeof *tests);
}
