/* SPDX-License-Identifier: MIT */
/*
 * check_pq_tx.c: guarded transactions on PostgreSQL (behaviours 21 to 26), locks and prepared transactions.
 */
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "calls.h"
#include "pq_table.h"
#include "suite.h"

/* Statements that the server has seen: none may be sent where a call is refused. */
static int64_t statements_sent(guard_pq *pq)
{
    char sql[128];
    snprintf(sql, sizeof(sql), "SELECT extract(epoch FROM query_start) * 1000000 FROM pg_stat_activity WHERE pid = %d",
             server_pid(guard_pq_raw(pq)));
    return server_number(sql);
}

/* ------------------------------------------------------------------------------------------------------ 21 */

START_TEST(a_scope_left_without_commit_rolls_back)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    {
        GUARD_AUTO(inner);
        guard_pq_begin(inner, pq, NULL);
        pq_insert(pq, 1);
    }
    ck_assert_int_eq(pq_status(pq), PQTRANS_IDLE);
    ck_assert_int_eq(server_rows(1), 0);
}
END_TEST

static void insert_and_panic(void *pq)
{
    GUARD_AUTO(s);
    guard_pq_begin(s, pq, NULL);
    pq_insert(pq, 1);
    guard_panic(42, "no more");
}

START_TEST(a_panic_rolls_back_and_goes_on_with_the_same_value)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = pq_open(s);
    ck_assert_int_eq(guard_run(insert_and_panic, pq, &error), 42);
    ck_assert_str_eq(error.message, "no more");
    ck_assert_int_eq(pq_status(pq), PQTRANS_IDLE);
    ck_assert_int_eq(server_rows(1), 0);
}
END_TEST

START_TEST(a_commit_is_committed)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    pq_insert(pq, 1);
    guard_tx_commit(tx);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_COMMITTED);
    ck_assert_int_eq(server_rows(1), 1);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ 22 */

static void insert_twice(guard_tx *tx, void *arg)
{
    (void)arg;
    pq_insert(guard_pq_of(tx), 2);
    pq_insert(guard_pq_of(tx), 2);
}

START_TEST(an_inner_failure_is_handled_and_the_outer_rows_commit)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_pq *pq = pq_open(s);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    pq_insert(pq, 1);
    ck_assert_int_eq(guard_tx_nested(tx, insert_twice, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_str_eq(result.error.sqlstate, "23505");
    ck_assert_str_eq(result.error.constraint, "t_pkey");
    guard_tx_commit(tx);
    ck_assert_int_eq(server_rows(1), 1);
    ck_assert_int_eq(server_rows(2), 0);
}
END_TEST

START_TEST(an_outer_rollback_takes_back_what_was_committed_inside)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    ck_assert_int_eq(guard_tx_nested(tx, pq_insert_two, NULL, NULL), GUARD_RELEASED);
    guard_tx_rollback(tx);
    ck_assert_int_eq(server_rows(2), 0);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ 23 */

START_TEST(savepoints_may_have_hostile_names_and_repeat_them)
{
    GUARD_AUTO(s);
    static const char *const names[] = {"a\"; ROLLBACK; --",    "a\"; ROLLBACK; --", "'", "\\", "SELECT",
                                        "\xc3\xa4 \xe2\x82\xac"};
    char longest[64];
    guard_pq *pq = pq_open(s);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        guard_tx *inner = guard_tx_begin_savepoint(s, tx, names[i]);
        guard_tx *innermost = guard_tx_begin_savepoint(s, inner, names[i]);
        pq_insert(pq, 100);
        guard_tx_rollback(innermost);
        pq_insert(pq, (int)i);
        guard_tx_commit(inner);
    }
    memset(longest, '"', 63);
    longest[63] = '\0';
    guard_tx_rollback(guard_tx_begin_savepoint(s, tx, longest));
    guard_tx_commit(tx);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t"), sizeof(names) / sizeof(*names));
    ck_assert_int_eq(server_rows(100), 0);
}
END_TEST

START_TEST(a_rolled_back_savepoint_is_gone)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = pq_open(s);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    guard_tx_rollback(guard_tx_begin_nested(s, tx));
    ck_assert_int_ne(guard_run(pq_roll_back_to_first, pq, &error), 0);
    ck_assert_str_eq(error.sqlstate, "3B001");
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ 24 */

START_TEST(a_second_commit_is_misuse_and_sends_nothing)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = pq_open(s);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    pq_insert(pq, 1);
    guard_tx_commit(tx);
    int64_t sent = statements_sent(pq);
    ck_assert_int_ne(guard_run(call_commit, tx, &error), 0);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
    ck_assert_int_ne(guard_run(call_rollback, tx, &error), 0);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
    ck_assert_int_eq(statements_sent(pq), sent);
}
END_TEST

START_TEST(a_second_rollback_is_harmless_and_a_commit_after_it_is_misuse)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = pq_open(s);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    guard_tx_rollback(tx);
    int64_t sent = statements_sent(pq);
    guard_tx_rollback(tx);
    ck_assert_int_ne(guard_run(call_commit, tx, &error), 0);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
    ck_assert_int_eq(statements_sent(pq), sent);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ 25 */

START_TEST(in_the_callers_own_transaction_it_is_a_savepoint_and_that_stays_open)
{
    server_reset();
    PGconn *raw = server_connect("");
    PQclear(PQexec(raw, "BEGIN"));
    PQclear(PQexec(raw, "INSERT INTO t VALUES (1)"));
    guard_result result;
    ck_assert_int_eq(guard_pq_transact_raw(raw, pq_insert_two, NULL, NULL, &result), GUARD_RELEASED);
    ck_assert_int_eq(guard_pq_transact_raw(raw, insert_twice, NULL, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_str_eq(result.error.sqlstate, "23505");
    ck_assert_int_eq(PQtransactionStatus(raw), PQTRANS_INTRANS);
    ck_assert_int_eq(server_rows(2), 0);
    PQclear(PQexec(raw, "COMMIT"));
    ck_assert_int_eq(server_rows(1), 1);
    ck_assert_int_eq(server_rows(2), 1);
    PQfinish(raw);
}
END_TEST

START_TEST(a_durable_transaction_inside_the_callers_own_is_an_error)
{
    server_reset();
    PGconn *raw = server_connect("");
    PQclear(PQexec(raw, "BEGIN"));
    guard_result result;
    guard_pq_tx_options options = {.tx = {.durable = 1}};
    ck_assert_int_eq(guard_pq_transact_raw(raw, pq_insert_two, NULL, &options, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.code, GUARD_TX_NOT_OUTERMOST);
    ck_assert_int_eq(PQtransactionStatus(raw), PQTRANS_INTRANS);
    PQfinish(raw);
}
END_TEST

START_TEST(a_durable_transaction_waits_for_the_disk_where_the_session_does_not)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_pq_tx_options options = {.tx = {.durable = 1}};
    guard_pq_exec(NULL, pq, "SET synchronous_commit = off");
    guard_tx *tx = guard_pq_begin(s, pq, &options);
    PGresult *now = guard_pq_exec(s, pq, "SHOW synchronous_commit");
    ck_assert_str_eq(PQgetvalue(now, 0, 0), "on");
    guard_tx_commit(tx);
    now = guard_pq_exec(s, pq, "SHOW synchronous_commit");
    ck_assert_str_eq(PQgetvalue(now, 0, 0), "off");
}
END_TEST

/* An existing program's connection keeps its blocking mode and its own handlers. */
static int notices;

static void count_notice(void *arg, const PGresult *notice)
{
    (void)arg;
    (void)notice;
    notices++;
}

START_TEST(an_adopted_connection_is_left_as_it_was)
{
    server_reset();
    PGconn *raw = server_connect("");
    {
        GUARD_AUTO(s);
        guard_pq_marker_install(guard_pq_open(s, "", NULL), NULL);
    }
    PQsetNoticeReceiver(raw, count_notice, NULL);
    for (int i = 0; i < 3; i++) {
        GUARD_AUTO(s);
        guard_pq_options options = {.marker = GUARD_PQ_MARKER_ROW, .pooler = GUARD_PQ_POOLER_NONE};
        guard_pq *pq = guard_pq_adopt(s, raw, &options);
        guard_pq_begin(s, pq, NULL);
        pq_insert(pq, 1);
        guard_pq_exec(NULL, pq, "DO $$ BEGIN RAISE NOTICE 'heard'; END $$");
    }
    ck_assert_int_eq(notices, 3);
    ck_assert_int_eq(PQisnonblocking(raw), 0);
    ck_assert_int_eq(PQtransactionStatus(raw), PQTRANS_IDLE);
    PGresult *result = PQexec(raw, "SELECT count(*) FROM t");
    ck_assert_str_eq(PQgetvalue(result, 0, 0), "0");
    PQclear(result);
    result = PQexec(raw, "SELECT count(*) FROM pg_prepared_statements");
    ck_assert_str_eq(PQgetvalue(result, 0, 0), "0");
    PQclear(result);
    PQfinish(raw);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ 26 */

static int hooks;
static guard_pq *hook_pq;

static void first_hook(void *arg)
{
    (void)arg;
    ck_assert_int_eq(server_rows(1), 1);
    hooks = hooks * 10 + 1;
    guard_panic(7, "a hook fails");
}

static void second_hook(void *arg)
{
    (void)arg;
    hooks = hooks * 10 + 2;
    pq_insert(hook_pq, 3);
}

static void with_hooks(guard_tx *tx, void *arg)
{
    (void)arg;
    guard_tx_on_commit(tx, first_hook, NULL);
    guard_tx_on_commit(tx, second_hook, NULL);
    pq_insert(guard_pq_of(tx), 1);
}

START_TEST(hooks_run_in_order_after_the_commit_and_all_of_them)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_pq *pq = hook_pq = pq_open(s);
    ck_assert_int_eq(guard_pq_transact(pq, with_hooks, NULL, NULL, &result), GUARD_COMMITTED);
    ck_assert_int_eq(hooks, 12);
    ck_assert(result.has_hook_error);
    ck_assert_int_eq(result.hook_error.code, 7);
    ck_assert_int_eq(server_rows(3), 1);
}
END_TEST

START_TEST(isolation_and_access_are_those_asked_for_whatever_the_session_has)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_pq_exec(NULL, pq, "SET default_transaction_isolation = serializable; SET default_transaction_read_only = on");
    const guard_pq_tx_options options = {.isolation = GUARD_PQ_READ_COMMITTED, .flags = GUARD_PQ_READ_WRITE};
    guard_tx *tx = guard_pq_begin(s, pq, &options);
    ck_assert_str_eq(PQgetvalue(guard_pq_exec(s, pq, "SHOW transaction_isolation"), 0, 0), "read committed");
    pq_insert(pq, 1);
    guard_tx_commit(tx);
    ck_assert_int_eq(server_rows(1), 1);
    tx = guard_pq_begin(s, pq, NULL);
    ck_assert_str_eq(PQgetvalue(guard_pq_exec(s, pq, "SHOW transaction_isolation"), 0, 0), "serializable");
    ck_assert_str_eq(PQgetvalue(guard_pq_exec(s, pq, "SHOW transaction_read_only"), 0, 0), "on");
    guard_tx_commit(tx);
}
END_TEST

/* ---------------------------------------------------------------------------------------------- advisory locks */

static int64_t advisory_locks(void)
{
    return server_number("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted");
}

START_TEST(a_transactions_advisory_lock_ends_with_it)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_pq *other = guard_pq_open(s, "", NULL);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    guard_pq_lock(pq, -5, 0);
    guard_tx *rival = guard_pq_begin(s, other, NULL);
    ck_assert_int_eq(guard_pq_try_lock(other, -5), 0);
    guard_tx_rollback(tx);
    ck_assert_int_eq(guard_pq_try_lock(other, -5), 1);
    guard_tx_commit(rival);
    ck_assert_int_eq(advisory_locks(), 0);
}
END_TEST

static void lock_session(void *pq)
{
    GUARD_AUTO(s);
    guard_pq_lock_session(s, pq, 9, 200);
}

START_TEST(a_sessions_advisory_lock_is_released_by_its_scope_and_waited_for_within_its_deadline)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = pq_open(s);
    guard_pq *other = guard_pq_open(s, "", NULL);
    {
        GUARD_AUTO(inner);
        guard_pq_lock_session(inner, pq, 9, 0);
        ck_assert_int_eq(guard_pq_transact(pq, pq_insert_two, NULL, NULL, NULL), GUARD_COMMITTED);
        ck_assert_int_eq(advisory_locks(), 1);
        ck_assert_int_ne(guard_run(lock_session, other, &error), 0);
        ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
    }
    ck_assert_int_eq(advisory_locks(), 0);
    ck_assert_int_eq(guard_run(lock_session, other, &error), 0);
}
END_TEST

/* -------------------------------------------------------------------------------------------------- prepared */

START_TEST(a_prepared_transaction_is_listed_and_committed_or_rolled_back_by_name)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    for (int keep = 0; keep < 2; keep++) {
        guard_pq_tx_options options = {.prepare_as = "it's \\ one", .marker = keep ? GUARD_PQ_MARKER_ROW : 0};
        guard_result result;
        ck_assert_int_eq(guard_pq_transact(pq, pq_insert_two, NULL, &options, &result), GUARD_PREPARED);
        ck_assert_int_eq(server_rows(2), 0);
        PGresult *left = guard_pq_prepared_list(s, pq);
        ck_assert_int_eq(PQntuples(left), 1);
        ck_assert_str_eq(PQgetvalue(left, 0, 0), options.prepare_as);
        guard_pq *other = guard_pq_open(s, "", NULL);
        if (keep) {
            guard_pq_prepared_commit(other, options.prepare_as);
        } else {
            guard_pq_prepared_rollback(other, options.prepare_as);
        }
        ck_assert_int_eq(server_rows(2), keep);
        ck_assert_int_eq(PQntuples(guard_pq_prepared_list(s, pq)), 0);
    }
}
END_TEST

static void commit_unknown(void *pq)
{
    guard_pq_prepared_commit(pq, "nobody");
}

START_TEST(a_prepared_transaction_runs_no_hook_and_says_so)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_pq *pq = hook_pq = pq_open(s);
    const guard_pq_tx_options options = {.prepare_as = "with hooks"};
    ck_assert_int_eq(guard_pq_transact(pq, with_hooks, NULL, &options, &result), GUARD_PREPARED);
    ck_assert(result.notes & GUARD_NOTE_HOOKS_DROPPED);
    guard_pq_prepared_commit(pq, options.prepare_as);
    ck_assert_int_eq(hooks, 0);
    ck_assert_int_eq(server_rows(1), 1);
}
END_TEST

START_TEST(a_prepared_transaction_that_is_not_there_is_an_error)
{
    GUARD_AUTO(s);
    guard_error error;
    ck_assert_int_ne(guard_run(commit_unknown, pq_open(s), &error), 0);
    ck_assert_str_eq(error.sqlstate, "42704");
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ fork */

START_TEST(a_forked_child_neither_uses_nor_ends_its_parents_transaction)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = pq_open(s);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    pq_insert(pq, 1);
    pid_t child = fork();
    if (child == 0) {
        /* Using it is misuse; and leaving the scope, as a panic in the child would, tells the server nothing. */
        int used = guard_run(pq_roll_back_to_first, pq, &error);
        guard_pq_close(pq);
        _exit(used != 0 && error.domain == GUARD_MISUSE ? 0 : 1);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", (unsigned)status);
    pq_insert(pq, 2);
    guard_tx_commit(tx);
    ck_assert_int_eq(server_rows(1), 1);
    ck_assert_int_eq(server_rows(2), 1);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_scope_left_without_commit_rolls_back,
        a_panic_rolls_back_and_goes_on_with_the_same_value,
        a_commit_is_committed,
        an_inner_failure_is_handled_and_the_outer_rows_commit,
        an_outer_rollback_takes_back_what_was_committed_inside,
        savepoints_may_have_hostile_names_and_repeat_them,
        a_rolled_back_savepoint_is_gone,
        a_second_commit_is_misuse_and_sends_nothing,
        a_second_rollback_is_harmless_and_a_commit_after_it_is_misuse,
        in_the_callers_own_transaction_it_is_a_savepoint_and_that_stays_open,
        a_durable_transaction_inside_the_callers_own_is_an_error,
        a_durable_transaction_waits_for_the_disk_where_the_session_does_not,
        an_adopted_connection_is_left_as_it_was,
        hooks_run_in_order_after_the_commit_and_all_of_them,
        isolation_and_access_are_those_asked_for_whatever_the_session_has,
        a_transactions_advisory_lock_ends_with_it,
        a_sessions_advisory_lock_is_released_by_its_scope_and_waited_for_within_its_deadline,
        a_prepared_transaction_is_listed_and_committed_or_rolled_back_by_name,
        a_prepared_transaction_runs_no_hook_and_says_so,
        a_prepared_transaction_that_is_not_there_is_an_error,
        a_forked_child_neither_uses_nor_ends_its_parents_transaction,
    };
    return suite_run("pq_tx", tests, sizeof tests / sizeof *tests);
}
