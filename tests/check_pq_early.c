/* SPDX-License-Identifier: MIT */
/*
 * check_pq_early.c: what a connection has given is taken back when it is closed or given back before the scope of that, and a connection that two
 * guards are around is seen by both.
 */
#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_pq.h>

#include "server.h"
#include "suite.h"

#define HELD "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"

/* ------------------------------------------------------------------------------------------------ session locks -- */

START_TEST(a_session_lock_ends_with_its_connection_though_its_scope_is_open)
{
    PGconn *raw = server_connect("");
    {
        GUARD_AUTO(s);
        guard_pq *pq = guard_pq_open(s, "", NULL);
        guard_pq *adopted = guard_pq_adopt(s, raw, NULL);
        guard_pq_lock_session(s, pq, 1, 0);
        guard_pq_lock_session(s, adopted, 2, 0);
        guard_pq_lock_session(s, adopted, 3, 0);
        ck_assert_int_eq(server_number(HELD), 3);
        guard_pq_close(pq);
        guard_pq_close(adopted);
        server_wait(HELD, 0);
    }
    ck_assert_int_eq(server_number(HELD), 0);
    PQfinish(raw);
}
END_TEST

START_TEST(a_pools_connection_that_is_given_back_early_holds_no_lock_and_no_transaction)
{
    GUARD_AUTO(s);
    server_reset();
    guard_pq_pool_options options = {.max = 1};
    guard_pq_pool *pool = guard_pq_pool_open(s, "", &options);
    GUARD_AUTO(outer);
    guard_pq *pq = guard_pq_pool_take(outer, pool, 0);
    guard_pq_lock_session(outer, pq, 1, 0);
    guard_tx *tx = guard_pq_begin(outer, pq, NULL);
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (1)");
    guard_tx_commit(tx);
    guard_pq_close(pq);
    ck_assert_int_eq(server_number(HELD), 0);
    ck_assert_ptr_null(guard_pq_of(tx));
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_COMMITTED);
    guard_pq_pool_stats stats;
    guard_pq_pool_stats_read(pool, &stats);
    ck_assert_uint_eq(stats.idle, 1);
    ck_assert_uint_eq(stats.rolled_back, 0);
}
END_TEST

START_TEST(a_session_lock_that_is_dismissed_does_not_come_back_with_a_pools_connection)
{
    GUARD_AUTO(s);
    guard_pq_pool_options options = {.max = 1};
    guard_pq_pool *pool = guard_pq_pool_open(s, "", &options);
    {
        GUARD_AUTO(inner);
        guard_dismiss(guard_pq_lock_session(inner, guard_pq_pool_take(inner, pool, 0), 1, 0));
    }
    server_wait(HELD, 0);
}
END_TEST

typedef struct waiter {
    guard_pq_pool *pool;
    guard_error error;
    int code;
} waiter;

static void wait_for_lock(void *arg)
{
    const waiter *w = arg;
    GUARD_AUTO(s);
    guard_pq_lock_session(s, guard_pq_pool_take(s, w->pool, 0), 7, -1);
}

static void *wait_in_thread(void *arg)
{
    waiter *w = arg;
    w->code = guard_run(wait_for_lock, w, &w->error);
    return NULL;
}

/* The lock may have been had in the moment of the cancel: then the session has it, whatever the statement says. */
START_TEST(a_wait_for_a_session_lock_that_is_cancelled_leaves_no_session_that_may_have_it)
{
    GUARD_AUTO(s);
    guard_pq_pool_options options = {.max = 1};
    static const char waiting[] = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    waiter w = {.pool = guard_pq_pool_open(s, "", &options)};
    guard_pq *holder = guard_pq_open(s, "", NULL);
    guard_pq_lock_session(s, holder, 7, 0);
    for (int by_server = 0; by_server < 2; by_server++) {
        pthread_t thread;
        guard_pq_pool_stats stats;
        ck_assert_int_eq(pthread_create(&thread, NULL, wait_in_thread, &w), 0);
        server_wait(waiting, 1);
        if (by_server) {
            server_run("SELECT pg_cancel_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted");
        } else {
            guard_cancel_thread(thread);
        }
        pthread_join(thread, NULL);
        ck_assert_int_ne(w.code, 0);
        guard_pq_pool_stats_read(w.pool, &stats);
        ck_assert_msg(stats.discarded == 1 + (unsigned)by_server, "%u discarded (%s)", (unsigned)stats.discarded,
                      w.error.message);
    }
}
END_TEST

/* --------------------------------------------------------------------------------------------- two guards, one wire -- */

static void insert_two(guard_tx *tx, void *arg)
{
    (void)tx;
    PQclear(PQexec(arg, "INSERT INTO t VALUES (2)"));
}

/* A function of the program that guards its part of the work, as its caller does. */
static void call_another_that_guards(PGconn *raw)
{
    guard_result result;
    ck_assert_int_eq(guard_pq_transact_raw(raw, insert_two, raw, NULL, &result), GUARD_RELEASED);
}

static int runs;

static void swallow_after_another(guard_tx *tx, void *arg)
{
    (void)tx;
    runs++;
    call_another_that_guards(arg);
    PQclear(PQexec(arg, "DO $$ BEGIN RAISE 'try again' USING ERRCODE = '40001'; END $$"));
}

START_TEST(an_error_that_is_swallowed_after_another_guard_has_ended_is_still_known)
{
    guard_result result;
    PGconn *raw = server_connect("");
    server_reset();
    guard_pq_tx_options options = {.tx.attempts = 3};
    ck_assert_int_eq(guard_pq_transact_raw(raw, swallow_after_another, raw, &options, &result), GUARD_ROLLED_BACK);
    ck_assert_str_eq(result.error.sqlstate, "40001");
    ck_assert_int_eq(runs, 3);
    PQfinish(raw);
}
END_TEST

static void end_after_another(guard_tx *tx, void *arg)
{
    (void)tx;
    PQclear(PQexec(arg, "INSERT INTO t VALUES (1)"));
    call_another_that_guards(arg);
    PQclear(PQexec(arg, "COMMIT AND CHAIN"));
    PQclear(PQexec(arg, "INSERT INTO t VALUES (3)"));
}

START_TEST(an_end_by_sql_after_another_guard_has_ended_is_still_seen)
{
    guard_result result;
    PGconn *raw = server_connect("");
    server_reset();
    ck_assert_int_eq(guard_pq_transact_raw(raw, end_after_another, raw, NULL, &result), GUARD_COMMITTED);
    ck_assert(result.notes & GUARD_NOTE_ENDED_ELSEWHERE);
    PQfinish(raw);
    server_wait("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'", 0);
    ck_assert_int_eq(server_rows(1), 1);
    ck_assert_int_eq(server_rows(3), 0);
}
END_TEST

START_TEST(guards_of_one_connection_may_end_in_any_order)
{
    PGconn *raw = server_connect("");
    server_reset();
    {
        GUARD_AUTO(s);
        guard_pq *guards[3];
        for (int i = 0; i < 3; i++) {
            guards[i] = guard_pq_adopt(s, raw, NULL);
        }
        guard_tx *tx = guard_pq_begin(s, guards[2], NULL);
        guard_pq_close(guards[1]);
        guard_pq_close(guards[0]);
        PQclear(PQexec(raw, "INSERT INTO t VALUES (1)"));
        PQclear(PQexec(raw, "COMMIT"));
        ck_assert_int_eq(guard_tx_outcome(tx), GUARD_COMMITTED);
        guard_pq *more = guard_pq_adopt(s, raw, NULL);
        PQfinish(raw);
        ck_assert_ptr_null(guard_pq_raw(guards[2]));
        ck_assert_ptr_null(guard_pq_raw(more));
    }
    ck_assert_int_eq(server_rows(1), 1);
}
END_TEST

/* ---------------------------------------------------------------------------------- hooks with transactions of their own -- */

#define TRY_AGAIN "DO $$ BEGIN RAISE 'try again' USING ERRCODE = '40001'; END $$"

static void swallow_and_fail(guard_tx *tx, void *arg)
{
    (void)arg;
    PQclear(PQexec(guard_pq_raw(guard_pq_of(tx)), TRY_AGAIN));
    guard_panic(1, "in vain");
}

static void only_read(guard_tx *tx, void *arg)
{
    (void)arg;
    guard_pq_exec(NULL, guard_pq_of(tx), "SELECT 1");
}

static void fail_in_hook(void *arg)
{
    guard_pq_tx_options once = {.tx.attempts = 1};
    guard_pq_transact(arg, swallow_and_fail, NULL, &once, NULL);
}

static void read_in_hook(void *arg)
{
    guard_pq_transact(arg, only_read, NULL, NULL, NULL);
}

static void fail_for_good(guard_tx *tx, void *arg)
{
    runs++;
    guard_tx_on_rollback(tx, fail_in_hook, arg);
    guard_panic(7, "no money");
}

static void fail_for_now(guard_tx *tx, void *arg)
{
    runs++;
    guard_tx_on_rollback(tx, read_in_hook, arg);
    swallow_and_fail(tx, arg);
}

START_TEST(whether_a_body_runs_again_is_not_decided_by_its_hooks)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_pq_tx_options options = {.tx.attempts = 3};
    guard_pq *pq = guard_pq_open(s, "", NULL);
    ck_assert_int_eq(guard_pq_transact(pq, fail_for_good, pq, &options, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(runs, 1);
    ck_assert_int_eq(result.error.code, 7);
    runs = 0;
    ck_assert_int_eq(guard_pq_transact(pq, fail_for_now, pq, &options, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(runs, 3);
}
END_TEST

/* ----------------------------------------------------------------------------------------- other connections -- */

static void adopt(void *arg)
{
    GUARD_AUTO(s);
    guard_pq_adopt(s, arg, NULL);
}

START_TEST(a_connection_that_could_not_be_made_is_not_adopted_and_libpqs_reason_is_told)
{
    guard_error error;
    guard_result result;
    PGconn *raw = PQconnectdb("host=/there/is/none");
    ck_assert_int_ne(guard_run(adopt, raw, &error), 0);
    ck_assert_msg(error.domain == GUARD_PQ && error.code == GUARD_PQ_CONNECTION, "%s", error.message);
    ck_assert_ptr_nonnull(strstr(error.message, "/there/is/none"));
    ck_assert_int_eq(guard_pq_transact_raw(raw, insert_two, raw, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.domain, GUARD_PQ);
    PQfinish(raw);
}
END_TEST

static void sleep_long(void *arg)
{
    guard_pq_exec(NULL, arg, "SELECT pg_sleep(60)");
}

START_TEST(a_statement_of_a_connection_that_was_reset_is_cancelled_in_its_new_session)
{
    GUARD_AUTO(s);
    guard_error error;
    PGconn *raw = server_connect("");
    guard_pq_options options = {.statement_ms = 100, .rollback_ms = 10000};
    guard_pq *pq = guard_pq_adopt(s, raw, &options);
    for (int i = 0; i < 2; i++) {
        PQreset(raw);
        ck_assert_int_ne(guard_run(sleep_long, pq, &error), 0);
        ck_assert_msg(PQtransactionStatus(raw) == PQTRANS_IDLE, "%s %s", error.message, error.detail);
    }
    guard_pq_close(pq);
    PQfinish(raw);
}
END_TEST

static void shout(void *arg)
{
    guard_pq_exec(NULL, arg, "SELECT pg_temp.shout()");
}

START_TEST(a_long_message_in_another_encoding_is_told)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = guard_pq_open(s, "client_encoding=latin1", NULL);
    guard_pq_exec(NULL, pq,
                  "CREATE FUNCTION pg_temp.shout() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION "
                  "'%', repeat(chr(164), 3000); END $$");
    ck_assert_int_ne(guard_run(shout, pq, &error), 0);
    ck_assert_str_eq(error.sqlstate, "P0001");
    ck_assert_uint_gt(strlen(error.message), 100);
}
END_TEST

/* -------------------------------------------------------------------------------------------------------- a child -- */

START_TEST(a_forked_child_does_not_cancel_its_parents_statement)
{
    GUARD_AUTO(s);
    guard_pq *pq = guard_pq_open(s, "", NULL);
    PGconn *raw = guard_pq_raw(pq);
    ck_assert_int_eq(PQsendQuery(raw, "SELECT pg_sleep(0.1)"), 1);
    pid_t child = fork();
    if (child == 0) {
        _exit(guard_pq_cancel(pq, 5000));
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x: it told the server", (unsigned)status);
    PGresult *slept = PQgetResult(raw);
    ck_assert_msg(PQresultStatus(slept) == PGRES_TUPLES_OK, "%s", PQresultErrorMessage(slept));
    PQclear(slept);
    ck_assert_ptr_null(PQgetResult(raw));
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_session_lock_ends_with_its_connection_though_its_scope_is_open,
        a_pools_connection_that_is_given_back_early_holds_no_lock_and_no_transaction,
        a_session_lock_that_is_dismissed_does_not_come_back_with_a_pools_connection,
        a_wait_for_a_session_lock_that_is_cancelled_leaves_no_session_that_may_have_it,
        an_error_that_is_swallowed_after_another_guard_has_ended_is_still_known,
        an_end_by_sql_after_another_guard_has_ended_is_still_seen,
        guards_of_one_connection_may_end_in_any_order,
        whether_a_body_runs_again_is_not_decided_by_its_hooks,
        a_connection_that_could_not_be_made_is_not_adopted_and_libpqs_reason_is_told,
        a_statement_of_a_connection_that_was_reset_is_cancelled_in_its_new_session,
        a_long_message_in_another_encoding_is_told,
        a_forked_child_does_not_cancel_its_parents_statement,
    };
    return suite_run("pq_early", tests, sizeof tests / sizeof *tests);
}
