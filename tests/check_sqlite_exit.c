/* SPDX-License-Identifier: MIT */
/*
 * check_sqlite_exit.c: pthread_exit in what SQLite has called: SQLite returns first, so that nothing of its own stays locked (behaviours 46, 51).
 */
#include <pthread.h>
#include <stdio.h>

#include <guard/guard.h>
#include <guard/guard_sqlite.h>

#include "sqlite_table.h"
#include "suite.h"

/* A thread that ends in SQLite: in a function, an aggregate's step, a collation, a row's callback, or in a function of a statement within a function. */
typedef struct ending {
    sqlite3 *raw; /* NULL: opened by the thread */
    int way;
    int end; /* it was not cut short */
} ending;

static int passed; /* scopes of functions */

static void count_scope(void *unused)
{
    (void)unused;
    passed++;
}

static void end_here(sqlite3_context *context, int count, sqlite3_value **values, void *arg)
{
    (void)context;
    (void)count;
    (void)values;
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, count_scope, NULL);
    pthread_exit((void *)"exited");
}

static void end_in_step(sqlite3_context *context, void *state, int count, sqlite3_value **values, void *arg)
{
    (void)state;
    end_here(context, count, values, arg);
}

static void finish(sqlite3_context *context, void *state, void *arg)
{
    (void)state;
    (void)arg;
    sqlite3_result_int(context, 1);
}

static int end_in_comparison(void *arg, int a_length, const void *a, int b_length, const void *b)
{
    (void)a_length;
    (void)a;
    (void)b_length;
    (void)b;
    end_here(NULL, 0, NULL, arg);
    return 0;
}

static int end_in_row(void *arg, int columns, char **texts, char **names)
{
    (void)columns;
    (void)texts;
    (void)names;
    end_here(NULL, 0, NULL, arg);
    return 0;
}

static void end_further_in(sqlite3_context *context, int count, sqlite3_value **values, void *arg)
{
    (void)count;
    (void)values;
    (void)arg;
    sqlite3_result_int64(context, guard_sqlite_query_int64(db, "SELECT leave()", 0));
}

static void *end_inside_sqlite(void *arg)
{
    static const char *const ways[] = {"INSERT INTO t SELECT id + leave() FROM t",
                                       "INSERT INTO t SELECT leave_step(id) FROM t",
                                       "SELECT id FROM t ORDER BY CAST(id AS TEXT) COLLATE leaving", "SELECT id FROM t",
                                       "INSERT INTO t SELECT id + leave_within() FROM t"};
    ending *e = arg;
    GUARD_AUTO(s);
    db = e->raw != NULL ? guard_sqlite_adopt(s, e->raw, NULL) : guard_sqlite_open(s, path, NULL);
    guard_sqlite_function(db, "leave", 0, SQLITE_UTF8, end_here, NULL);
    guard_sqlite_function(db, "leave_within", 0, SQLITE_UTF8, end_further_in, NULL);
    guard_sqlite_aggregate(db, "leave_step", 1, SQLITE_UTF8, 8, end_in_step, finish, NULL);
    guard_sqlite_collation(db, "leaving", end_in_comparison, NULL);
    guard_sqlite_begin(s, db, NULL);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1), (2)");
    if (e->way == 3) {
        guard_sqlite_exec_rows(db, ways[e->way], end_in_row, NULL);
    } else {
        guard_sqlite_exec(db, ways[e->way]);
    }
    e->end = 1;
    return NULL;
}

START_TEST(a_thread_that_ends_inside_sqlite_leaves_no_lock_and_no_transaction)
{
    for (int i = 0; i < 10; i++) {
        path = database_new(TABLE);
        sqlite3 *raw = i < 5 ? database_raw(path) : NULL;
        ending e = {.raw = raw, .way = i % 5};
        pthread_t thread;
        void *returned = NULL;
        ck_assert_int_eq(pthread_create(&thread, NULL, end_inside_sqlite, &e), 0);
        ck_assert_int_eq(pthread_join(thread, &returned), 0);
        ck_assert_int_eq(e.end, 0);
        ck_assert_str_eq(returned, "exited");
#ifdef __EXCEPTIONS
        ck_assert_int_eq(passed, i + 1);
#endif
        if (raw != NULL) {
            ck_assert(sqlite3_mutex_try(sqlite3_db_mutex(raw)) == SQLITE_OK);
            sqlite3_mutex_leave(sqlite3_db_mutex(raw));
            ck_assert(sqlite3_get_autocommit(raw));
            database_exec(raw, "INSERT INTO t VALUES (3)");
            ck_assert_int_eq(sqlite3_close(raw), SQLITE_OK);
        }
        other = database_raw(path);
        database_exec(other, "INSERT INTO t VALUES (4)"); /* no lock is left */
        sqlite3_close(other);
        ck_assert_int_eq(database_number(path, "SELECT min(id) FROM t"), raw != NULL ? 3 : 4);
    }
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {a_thread_that_ends_inside_sqlite_leaves_no_lock_and_no_transaction};
#ifdef WITH_TSAN
    puts("ThreadSanitizer must see every jump, so that nothing is stopped");
    return 77;
#endif
    return suite_run("sqlite_exit", tests, sizeof tests / sizeof *tests);
}
