/* SPDX-License-Identifier: MIT */
/*
 * check_life_sqlite.c: cancellation, pthread_cancel, fork and faults while SQLite works (behaviour 50, and the cancellation of the core on
 * this adapter).
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_fault.h>
#include <guard/guard_process.h>
#include <guard/guard_sqlite.h>

#include "database.h"
#include "faults.h"
#include "suite.h"
#include "worker.h"

#define ENDLESS "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"

static const char *path;
static int is_adopted;

#ifdef WITH_ASAN
/* A forked child leaves its parent's connections as they are, by rule: to LeakSanitizer that is a leak. */
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}
#endif

static void close_raw(void *raw)
{
    sqlite3_close(raw);
}

static guard_sqlite *open_it(guard_scope *s)
{
    if (!is_adopted) {
        return guard_sqlite_open(s, path, NULL);
    }
    sqlite3 *raw = database_raw(path);
    guard_defer(s, close_raw, raw);
    return guard_sqlite_adopt(s, raw, NULL);
}

static void make_table(void)
{
    path = database_new("CREATE TABLE t(id INTEGER PRIMARY KEY)");
}

/* --------------------------------------------------------------------------------------------- cancellation -- */

static void query_with_a_deadline(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_sqlite *db = open_it(s);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1)");
    guard_deadline(s, 30);
    guard_sqlite_exec(db, ENDLESS);
    guard_tx_commit(tx);
}

START_TEST(a_deadline_ends_a_running_statement_and_its_transaction_is_rolled_back)
{
    for (is_adopted = 0; is_adopted < 2; is_adopted++) {
        make_table();
        expect_panic(query_with_a_deadline, NULL, GUARD_TIMEOUT, ETIMEDOUT);
        ck_assert_int_eq(database_number(path, "SELECT count(*) FROM t"), 0);
        sqlite3 *other = database_raw(path);
        database_exec(other, "INSERT INTO t VALUES (1)"); /* no lock is left */
        sqlite3_close(other);
    }
}
END_TEST

static void query_for_ever(void *arg)
{
    GUARD_AUTO(s);
    guard_sqlite *db = open_it(s);
    worker_is_ready(arg);
    guard_sqlite_exec(db, ENDLESS);
}

START_TEST(a_cancel_by_another_thread_ends_a_running_statement)
{
    for (is_adopted = 0; is_adopted < 2; is_adopted++) {
        worker w;
        make_table();
        worker_start(&w, query_for_ever);
        ck_assert_int_eq(guard_cancel_thread(w.thread), 1);
        worker_join(&w);
        ck_assert_int_eq(w.code, ECANCELED);
        ck_assert_int_eq(w.error.domain, GUARD_CANCELLED);
    }
}
END_TEST

static void wait_for_the_lock(void *arg)
{
    GUARD_AUTO(s);
    guard_sqlite *db = guard_sqlite_open(s, path, &(guard_sqlite_options){.busy_ms = -1});
    worker_is_ready(arg);
    guard_sqlite_begin(s, db, NULL);
}

START_TEST(a_cancel_ends_the_wait_for_a_lock)
{
    worker w;
    make_table();
    sqlite3 *other = database_raw(path);
    database_exec(other, "BEGIN IMMEDIATE");
    worker_start(&w, wait_for_the_lock);
    ck_assert_int_eq(guard_cancel_thread(w.thread), 1);
    worker_join(&w);
    ck_assert_int_eq(w.error.domain, GUARD_CANCELLED);
    database_exec(other, "COMMIT");
    sqlite3_close(other);
}
END_TEST

static void cancel_before_the_commit(void *arg)
{
    guard_outcome *outcome = arg;
    GUARD_AUTO(s);
    guard_sqlite *db = guard_sqlite_open(s, path, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1)");
    guard_cancel_thread(pthread_self());
    *outcome = guard_tx_outcome(tx);
    guard_tx_commit(tx);
}

START_TEST(a_cancel_is_looked_at_before_commit_is_sent)
{
    guard_outcome outcome;
    make_table();
    expect_panic(cancel_before_the_commit, &outcome, GUARD_CANCELLED, ECANCELED);
    ck_assert_int_eq(outcome, GUARD_OPEN);
    ck_assert_int_eq(database_number(path, "SELECT count(*) FROM t"), 0);
}
END_TEST

static int hook_was_masked;

static void cancel_in_a_hook(void *arg)
{
    guard_sqlite *db = arg;
    guard_cancel_thread(pthread_self());
    guard_checkpoint();
    hook_was_masked = guard_masked();
    guard_sqlite_exec(db, "INSERT INTO t VALUES (2)");
}

static void commit_with_a_hook(void *arg)
{
    guard_outcome *outcome = arg;
    GUARD_AUTO(s);
    guard_sqlite *db = guard_sqlite_open(s, path, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1)");
    guard_tx_on_commit(tx, cancel_in_a_hook, db);
    guard_tx_commit(tx);
    *outcome = guard_tx_outcome(tx);
    guard_checkpoint();
}

START_TEST(commit_and_its_hooks_are_masked)
{
    guard_outcome outcome;
    make_table();
    expect_panic(commit_with_a_hook, &outcome, GUARD_CANCELLED, ECANCELED);
    ck_assert_int_eq(outcome, GUARD_COMMITTED);
    ck_assert_int_eq(hook_was_masked, 1);
    ck_assert_int_eq(database_number(path, "SELECT count(*) FROM t"), 2);
}
END_TEST

/* -------------------------------------------------------------------------------------------- pthread_cancel -- */

static void insert_until_cancelled(void *arg)
{
    GUARD_AUTO(s);
    guard_sqlite *db = guard_sqlite_open(s, path, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    (void)tx;
    worker_is_ready(arg);
    for (;;) {
        guard_sqlite_exec(db, "INSERT INTO t(id) VALUES (NULL)");
        guard_cancel_point();
    }
}

/* Were it delivered inside SQLite, its locks would stay locked and the close below hang. */
START_TEST(pthread_cancel_waits_until_sqlite_has_returned_and_leaves_no_lock)
{
    for (int i = 0; i < 20; i++) {
        worker w;
        make_table();
        worker_start(&w, insert_until_cancelled);
        ck_assert_int_eq(pthread_cancel(w.thread), 0);
        ck_assert_ptr_eq(worker_join(&w), PTHREAD_CANCELED);
        sqlite3 *other = database_raw(path);
        database_exec(other, "INSERT INTO t VALUES (1)");
        ck_assert_int_eq(database_number_on(other, "SELECT count(*) FROM t"), 1);
        database_check(other);
        sqlite3_close(other);
    }
}
END_TEST

static sqlite3 *shared;

/* A call of the adapter's in which SQLite opens, reads, writes or closes files; the thread was cancelled before it, and nothing in between looks. */
typedef struct cancelled_call {
    worker w;
    void (*call)(struct cancelled_call *c, guard_scope *s);
    int returned;
    guard_sqlite *db;
    guard_sqlite_stmt *insert; /* stands on a row of its RETURNING */
    guard_sqlite_blob *blob;
    guard_sqlite *copy;
    guard_sqlite_backup *backup; /* has begun */
} cancelled_call;

static void call_open(cancelled_call *c, guard_scope *s)
{
    (void)c;
    guard_sqlite_open(s, path, NULL);
}

static void call_close(cancelled_call *c, guard_scope *s)
{
    (void)s;
    guard_sqlite_close(c->db);
}

static void call_reset(cancelled_call *c, guard_scope *s)
{
    (void)s;
    guard_sqlite_reset(c->insert);
}

static void call_stmt_close(cancelled_call *c, guard_scope *s)
{
    (void)s;
    guard_sqlite_stmt_close(c->insert);
}

static void call_blob_open(cancelled_call *c, guard_scope *s)
{
    guard_sqlite_blob_open(s, c->copy, "t", "data", 1, 0);
}

static void call_blob_read(cancelled_call *c, guard_scope *s)
{
    char data[60000];
    (void)s;
    guard_sqlite_blob_read(c->blob, data, sizeof data, 0);
}

static void call_blob_close(cancelled_call *c, guard_scope *s)
{
    (void)s;
    guard_sqlite_blob_close(c->blob);
}

static void call_backup_open(cancelled_call *c, guard_scope *s)
{
    guard_sqlite_backup_open(s, c->copy, c->db);
}

static void call_backup_end(cancelled_call *c, guard_scope *s)
{
    (void)s;
    guard_sqlite_close(c->copy);
}

static void prepare_call(cancelled_call *c, guard_scope *s)
{
    const guard_sqlite_options options = {.journal = GUARD_SQLITE_WAL};
    c->db = guard_sqlite_open(s, path, &options);
    guard_sqlite_exec(c->db, "PRAGMA cache_size = 1; DROP TABLE t; CREATE TABLE t(id INTEGER PRIMARY KEY, data);"
                             "INSERT INTO t VALUES (1, zeroblob(100000))");
    c->copy = guard_sqlite_open(s, c->call == call_blob_open ? path : database_beside("copy.db"), NULL);
    if (c->call == call_reset || c->call == call_stmt_close) {
        c->insert = guard_sqlite_prepare(s, c->db, "INSERT INTO t VALUES (2, 'x') RETURNING id");
        ck_assert(guard_sqlite_step(c->insert));
    } else if (c->call == call_blob_read || c->call == call_blob_close) {
        c->blob = guard_sqlite_blob_open(s, c->db, "t", "data", 1, 1);
        guard_sqlite_blob_write(c->blob, "x", 1, 0);
    } else if (c->call == call_backup_end) {
        c->backup = guard_sqlite_backup_open(s, c->copy, c->db);
        guard_sqlite_backup_step(c->backup, 1);
    }
}

static void call_cancelled(void *arg)
{
    cancelled_call *c = arg;
    GUARD_AUTO(s);
    prepare_call(c, s);
    worker_is_ready(&c->w);
    pthread_cancel(pthread_self());
    c->call(c, s);
    c->returned = 1;
}

START_TEST(pthread_cancel_waits_for_every_call_in_which_sqlite_uses_files)
{
    static void (*const calls[])(cancelled_call *, guard_scope *) = {
        call_open,      call_close,      call_reset,       call_stmt_close, call_blob_open,
        call_blob_read, call_blob_close, call_backup_open, call_backup_end};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        cancelled_call c = {.call = calls[i]};
        make_table();
        worker_start(&c.w, call_cancelled);
        worker_join(&c.w);
        ck_assert_msg(c.returned, "call %zu", i);
        sqlite3 *other = database_raw(path);
        database_exec(other, "INSERT INTO t(id) VALUES (3)");
        database_check(other);
        sqlite3_close(other);
    }
}
END_TEST

static void exit_in_a_function(sqlite3_context *context, int count, sqlite3_value **values, void *arg)
{
    (void)context;
    (void)count;
    (void)values;
    (void)arg;
    guard_exit_thread();
}

static void exit_inside_sqlite(void *arg)
{
    GUARD_AUTO(s);
    guard_sqlite *db = guard_sqlite_adopt(s, shared, NULL);
    guard_sqlite_function(db, "leave", 0, SQLITE_UTF8, exit_in_a_function, NULL);
    worker_is_ready(arg);
    guard_sqlite_exec(db, "SELECT leave()");
}

/* The adopted handle's mutex would be that of a thread that is gone, and the next thread to use the handle wait for ever. */
START_TEST(a_thread_cannot_exit_inside_sqlite)
{
    worker w;
    make_table();
    shared = database_raw(path);
    worker_start(&w, exit_inside_sqlite);
    worker_join(&w);
    ck_assert_int_eq(w.code, GUARD_MISUSE_STATE);
    ck_assert_int_eq(w.error.domain, GUARD_MISUSE);
    ck_assert_int_eq(sqlite3_mutex_try(sqlite3_db_mutex(shared)), SQLITE_OK);
    sqlite3_mutex_leave(sqlite3_db_mutex(shared));
    database_exec(shared, "INSERT INTO t VALUES (1)");
    sqlite3_close(shared);
}
END_TEST

/* ---------------------------------------------------------------------------------------------------- fork -- */

typedef struct inheritance {
    guard_sqlite *db;
    guard_tx *tx;
    guard_sqlite_stmt *row;      /* stands on one */
    guard_sqlite *idle;          /* in no transaction */
    guard_sqlite_backup *backup; /* of idle, has begun */
} inheritance;

static void use_it(void *arg)
{
    guard_sqlite_exec(((inheritance *)arg)->db, "INSERT INTO t VALUES (99)");
}

static void commit_it(void *arg)
{
    guard_tx_commit(((inheritance *)arg)->tx);
}

static void roll_it_back(void *arg)
{
    guard_tx_rollback(((inheritance *)arg)->tx);
}

static void begin_on_it(void *arg)
{
    GUARD_AUTO(s);
    guard_sqlite_begin(s, ((inheritance *)arg)->db, NULL);
}

static void reset_it(void *arg)
{
    guard_sqlite_reset(((inheritance *)arg)->row);
}

static void bind_it(void *arg)
{
    guard_sqlite_bind_int64(((inheritance *)arg)->row, 1, 1);
}

static void resolve_it(void *arg)
{
    guard_sqlite_resolve(((inheritance *)arg)->idle, "sqlite-marker 00 1", NULL, NULL);
}

static void back_it_up(void *arg)
{
    inheritance *held = arg;
    GUARD_AUTO(s);
    guard_sqlite_backup_open(s, guard_sqlite_open(s, ":memory:", NULL), held->idle);
}

static void step_the_backup(void *arg)
{
    guard_sqlite_backup_step(((inheritance *)arg)->backup, 1);
}

static void finish_the_backup(void *arg)
{
    guard_sqlite_backup_finish(((inheritance *)arg)->backup, 1);
}

static void open_the_file(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_sqlite_open(s, path, NULL);
}

static void open_an_attached_file(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_sqlite_open(s, database_beside("attached.db"), NULL);
}

static void do_as_the_child(const char *how, inheritance *held)
{
    guard_error error;
    static guard_fn *const refused[] = {use_it,        commit_it,       roll_it_back,      begin_on_it,
                                        open_the_file, reset_it,        bind_it,           resolve_it,
                                        back_it_up,    step_the_backup, finish_the_backup, open_an_attached_file};
    switch (how[0]) {
    case 'r': /* refused */
        for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
            if (guard_run(refused[i], held, &error) == 0 || error.domain != GUARD_MISUSE) {
                _exit(10 + (int)i);
            }
        }
        _exit(0);
    case 'c': /* closes */
        guard_sqlite_close(held->db);
        break;
    case 'p':
        guard_panic(1, "in the child");
    case 'x':
        exit(0);
    case 'f': /* forks again */
        if (fork() == 0) {
            guard_sqlite_close(held->db);
            exit(0);
        }
        while (wait(NULL) > 0) {
        }
        break;
    default:
        break;
    }
}

static void fork_in_a_transaction(void *arg)
{
    const char *how = arg;
    GUARD_AUTO(s);
    inheritance held = {.db = open_it(s)};
    held.tx = guard_sqlite_begin(s, held.db, NULL);
    guard_sqlite_exec(held.db, "INSERT INTO t VALUES (1)");
    held.row = guard_sqlite_prepare(s, held.db, "INSERT INTO t VALUES (3) RETURNING id + ?1");
    ck_assert(guard_sqlite_step(held.row));
    held.idle = guard_sqlite_open(s, database_beside("idle.db"), NULL);
    guard_sqlite_exec(held.idle, "CREATE TABLE IF NOT EXISTS a(b)");
    guard_sqlite_stmt *attach = guard_sqlite_prepare(s, held.idle, "ATTACH ?1 AS attached");
    guard_sqlite_bind_text(attach, 1, database_beside("attached.db"), -1);
    guard_sqlite_run(attach);
    guard_sqlite_exec(held.idle, "CREATE TABLE IF NOT EXISTS attached.a(b)");
    held.backup = guard_sqlite_backup_open(s, guard_sqlite_open(s, ":memory:", NULL), held.idle);
    ck_assert(guard_sqlite_backup_step(held.backup, 1));
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        do_as_the_child(how, &held);
        return;
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(status == 0, "the child that '%s' ended with %x", how, (unsigned)status);
    ck_assert_int_eq(guard_tx_outcome(held.tx), GUARD_OPEN);
    guard_sqlite_exec(held.db, "INSERT INTO t VALUES (2)");
    guard_sqlite_backup_finish(held.backup, 0);
    guard_tx_commit(held.tx);
}

START_TEST(the_parents_transaction_lives_on_whatever_its_child_does)
{
    static const char *const ways[] = {"refused", "closes", "panics", "xits", "forks", "returns"};
    pid_t parent = getpid();
    guard_process_init(GUARD_AT_EXIT);
    for (is_adopted = 0; is_adopted < 2; is_adopted++) {
        for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
            make_table();
            guard_error error;
            int code = guard_run(fork_in_a_transaction, (void *)(uintptr_t)ways[i], &error);
            if (getpid() != parent) {
                _exit(0);
            }
            ck_assert_msg(code == 0, "%s: %s", ways[i], error.message);
            ck_assert_int_eq(database_number(path, "SELECT count(*) FROM t"), 3);
        }
    }
}
END_TEST

/* ------------------------------------------------------------------------------------------------ faults -- */

static void fault_between(guard_tx *tx, void *arg)
{
    guard_sqlite_exec(guard_sqlite_of(tx), "INSERT INTO t VALUES (1)");
    fault_read_null(arg);
    guard_sqlite_exec(guard_sqlite_of(tx), "INSERT INTO t VALUES (2)");
}

START_TEST(a_fault_between_two_statements_rolls_back_and_the_connection_goes_on)
{
    guard_result result;
    make_table();
    ck_assert_int_eq(guard_faults_to_panics(), 0);
    for (is_adopted = 0; is_adopted < 2; is_adopted++) {
        GUARD_AUTO(s);
        guard_sqlite *db = open_it(s);
        ck_assert_int_eq(guard_sqlite_transact(db, fault_between, NULL, NULL, &result), GUARD_ROLLED_BACK);
        ck_assert_int_eq(result.error.domain, GUARD_FAULT);
        ck_assert_int_eq(result.error.code, SIGSEGV);
        ck_assert_int_eq(database_number(path, "SELECT count(*) FROM t"), 0);
        guard_sqlite_exec(db, "INSERT INTO t VALUES (3); DELETE FROM t");
    }
}
END_TEST

static void faulty_function(sqlite3_context *context, int count, sqlite3_value **values, void *arg)
{
    (void)context;
    (void)count;
    (void)values;
    fault_read_null(arg);
}

static void faulty_raw_function(sqlite3_context *context, int count, sqlite3_value **values)
{
    (void)count;
    (void)values;
    fault_read_null(NULL);
    sqlite3_result_int(context, 1);
}

static void call_function(void *db)
{
    guard_sqlite_exec(db, "SELECT faulty()");
}

static void call_raw_function(void *raw)
{
    sqlite3_exec(raw, "SELECT faulty()", NULL, NULL, NULL);
}

static void fault_in_function(void *arg)
{
    GUARD_AUTO(s);
    guard_sqlite *db = open_it(s);
    guard_sqlite_function(db, "faulty", 0, 0, faulty_function, NULL);
    if (guard_faults_to_panics() == 0) {
        guard_run(call_function, db, arg);
    }
}

static void fault_in_raw_function(void *arg)
{
    sqlite3 *raw = database_raw(path);
    sqlite3_create_function(raw, "faulty", 0, SQLITE_UTF8, NULL, faulty_raw_function, NULL, NULL);
    if (guard_faults_to_panics() == 0) {
        guard_run(call_raw_function, raw, arg);
    }
}

static void expect_fatal(guard_fn *fn, const char *why)
{
    child_result result;
    fault_run_child(fn, NULL, &result);
    child_expect_signal(&result, SIGSEGV);
    ck_assert_msg(strstr(result.text, why) != NULL, "no \"%s\" in \"%s\"", why, result.text);
}

START_TEST(a_fault_in_a_user_function_of_sqlite_is_fatal)
{
    make_table();
    for (is_adopted = 0; is_adopted < 2; is_adopted++) {
        expect_fatal(fault_in_function, "no panic: a call of another library is in progress");
    }
    expect_fatal(fault_in_raw_function, "no panic: between the fault and the border is a frame of libsqlite3.so");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_deadline_ends_a_running_statement_and_its_transaction_is_rolled_back,
        a_cancel_by_another_thread_ends_a_running_statement,
        a_cancel_ends_the_wait_for_a_lock,
        a_cancel_is_looked_at_before_commit_is_sent,
        commit_and_its_hooks_are_masked,
        pthread_cancel_waits_until_sqlite_has_returned_and_leaves_no_lock,
        pthread_cancel_waits_for_every_call_in_which_sqlite_uses_files,
        a_thread_cannot_exit_inside_sqlite,
        the_parents_transaction_lives_on_whatever_its_child_does,
        /* Memcheck counts the fault itself, and valgrind delivers it on a stack of its own making. */
        suite_unless_valgrind(a_fault_between_two_statements_rolls_back_and_the_connection_goes_on),
        suite_unless_valgrind(a_fault_in_a_user_function_of_sqlite_is_fatal),
    };
    return suite_run("life_sqlite", tests, sizeof tests / sizeof *tests);
}
