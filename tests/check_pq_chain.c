/* SPDX-License-Identifier: MIT */
/*
 * check_pq_chain.c: ROLLBACK AND CHAIN, whose answer is that of ROLLBACK TO a savepoint, is told from it however either is sent; and of several ends in
 * one transaction the first is told.
 */
#include <stdio.h>

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "pq_sending.h"
#include "server.h"
#include "suite.h"

typedef struct script {
    const char *statements[6];
    pq_sending way;
} script;

static void run_script(guard_tx *tx, void *arg)
{
    const script *p = arg;
    for (size_t i = 0; p->statements[i] != NULL; i++) {
        pq_send(guard_pq_of(tx), p->statements[i], p->way, i);
    }
}

static guard_outcome transact_script(script *p, guard_tx_fn *body, guard_result *result)
{
    GUARD_AUTO(s);
    PGconn *raw = p->way == PQ_BY_LIBPQ_ADOPTED ? server_connect("") : NULL;
    guard_pq *pq = raw != NULL ? guard_pq_adopt(s, raw, NULL) : guard_pq_open(s, "", NULL);
    if (p->way == PQ_BY_LIBPQ) {
        guard_pq_raw(pq);
    }
    server_run("DELETE FROM t");
    guard_outcome told = guard_pq_transact(pq, body, p, NULL, result);
    guard_pq_close(pq);
    PQfinish(raw);
    server_wait_settled();
    return told;
}

#define ONE "INSERT INTO t VALUES (1)"
#define TWO "INSERT INTO t VALUES (2)"

START_TEST(rollback_and_chain_after_a_savepoint_is_rolled_back_however_it_is_sent)
{
    static const char *const ends[] = {"ROLLBACK AND CHAIN", "abort transaction and chain",
                                       "ROLLBACK /* to a */ WORK -- to a\n AND /* NO */ CHAIN"};
    server_reset();
    for (size_t i = 0; i < 3; i++) {
        for (int way = 0; way < PQ_SENDINGS; way++) {
            guard_result result;
            script p = {{ONE, "SAVEPOINT a", ends[i], TWO}, (pq_sending)way};
            guard_outcome told = transact_script(&p, run_script, &result);
            ck_assert_msg(told == GUARD_ROLLED_BACK, "way %d: %s", way, guard_outcome_name(told));
            ck_assert_msg(result.notes & GUARD_NOTE_ENDED_ELSEWHERE, "way %d", way);
            ck_assert_int_eq(server_rows(1) + server_rows(2), 0);
        }
    }
}
END_TEST

START_TEST(rollback_to_a_savepoint_keeps_the_transaction_however_it_is_sent)
{
    static const char *const backs[] = {"ROLLBACK TO a", "ROLLBACK TO SAVEPOINT \"and chain\" -- AND CHAIN"};
    server_reset();
    for (size_t i = 0; i < 2; i++) {
        for (int way = 0; way < PQ_SENDINGS; way++) {
            guard_result result;
            script p = {{ONE, "SAVEPOINT a", "SAVEPOINT \"and chain\"", TWO, backs[i]}, (pq_sending)way};
            guard_outcome told = transact_script(&p, run_script, &result);
            ck_assert_msg(told == GUARD_COMMITTED, "way %d: %s, %s", way, guard_outcome_name(told),
                          result.error.message);
            ck_assert_uint_eq(result.notes, 0);
            ck_assert_int_eq(server_rows(1), 1);
            ck_assert_int_eq(server_rows(2), 0);
        }
    }
}
END_TEST

/* Of the program's later transactions. */
START_TEST(an_end_after_the_first_one_is_not_the_transactions)
{
    static const struct {
        script script;
        guard_outcome outcome;
    } cases[] = {
        {{{ONE, "ROLLBACK", "COMMIT"}, PQ_BY_LIBPQ}, GUARD_ROLLED_BACK},
        {{{ONE, "ROLLBACK AND CHAIN", "COMMIT"}, PQ_BY_LIBPQ_ADOPTED}, GUARD_ROLLED_BACK},
        {{{ONE, "ROLLBACK AND CHAIN", TWO, "COMMIT"}, PQ_BY_LIBPQ}, GUARD_ROLLED_BACK},
        {{{ONE, "COMMIT AND CHAIN", "ROLLBACK"}, PQ_BY_LIBPQ}, GUARD_COMMITTED},
        {{{ONE, "SAVEPOINT a", "ROLLBACK", "BEGIN", "COMMIT"}, PQ_BY_LIBPQ}, GUARD_ROLLED_BACK},
        {{{ONE, "SAVEPOINT a", "ROLLBACK AND CHAIN", "COMMIT"}, PQ_BY_LIBPQ}, GUARD_IN_DOUBT},
        {{{ONE, "SAVEPOINT a", "ROLLBACK TO a", "COMMIT"}, PQ_BY_LIBPQ}, GUARD_IN_DOUBT},
        {{{ONE, "SAVEPOINT a", "ROLLBACK", "BEGIN", "ROLLBACK"}, PQ_BY_LIBPQ_ADOPTED}, GUARD_IN_DOUBT},
        {{{ONE "; SAVEPOINT a", "SELECT 1/0", "COMMIT AND CHAIN"}, PQ_BY_LIBPQ}, GUARD_ROLLED_BACK},
    };
    server_reset();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        guard_result result;
        script p = cases[i].script;
        guard_outcome told = transact_script(&p, run_script, &result);
        ck_assert_msg(told == cases[i].outcome, "case %zu: %s", i, guard_outcome_name(told));
        ck_assert(result.notes & GUARD_NOTE_ENDED_ELSEWHERE);
        ck_assert(told != GUARD_ROLLED_BACK || server_rows(1) == 0);
    }
}
END_TEST

static void divide_by_zero(void *pq)
{
    guard_pq_exec(NULL, pq, "SELECT 1/0");
}

static void fail_and_chain(guard_tx *tx, void *arg)
{
    guard_error error;
    const script *p = arg;
    guard_pq_exec(NULL, guard_pq_of(tx), ONE "; SAVEPOINT a");
    ck_assert_int_ne(guard_run(divide_by_zero, guard_pq_of(tx), &error), 0);
    pq_send(guard_pq_of(tx), "COMMIT AND CHAIN", p->way, 0);
}

/* It is answered as ROLLBACK TO a is. */
START_TEST(commit_and_chain_of_an_aborted_transaction_is_rolled_back_however_it_is_sent)
{
    server_reset();
    for (int way = 0; way < PQ_SENDINGS; way++) {
        guard_result result;
        script p = {.way = (pq_sending)way};
        guard_outcome told = transact_script(&p, fail_and_chain, &result);
        ck_assert_msg(told == GUARD_ROLLED_BACK, "way %d: %s", way, guard_outcome_name(told));
        ck_assert_int_eq(server_rows(1), 0);
    }
}
END_TEST

/* One text of several statements, and a sign that the program takes away. */
START_TEST(a_rollback_that_cannot_be_told_is_rolled_back)
{
    static const script scripts[] = {
        {{ONE, "SAVEPOINT a; ROLLBACK TO a; ROLLBACK AND CHAIN; " TWO}, PQ_BY_EXEC},
        {{ONE, "SAVEPOINT a; ROLLBACK TO a; ROLLBACK AND CHAIN; " TWO}, PQ_BY_LIBPQ},
        {{ONE, "SAVEPOINT a; ROLLBACK AND NO CHAIN"}, PQ_BY_EXEC},
        {{ONE, "SAVEPOINT a; ROLLBACK AND NO CHAIN"}, PQ_BY_LIBPQ},
        {{ONE, "SAVEPOINT a; ROLLBACK TO a", "RESET ALL", TWO}, PQ_BY_LIBPQ},
    };
    server_reset();
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++) {
        guard_result result;
        script p = scripts[i];
        guard_outcome told = transact_script(&p, run_script, &result);
        ck_assert_msg(told == GUARD_ROLLED_BACK, "script %zu: %s", i, guard_outcome_name(told));
        ck_assert_int_eq(server_rows(1) + server_rows(2), 0);
    }
}
END_TEST

/* Too late for a sign. */
static void chain_before_the_program_has_the_connection(guard_tx *tx, void *arg)
{
    run_script(tx, arg);
    guard_pq_raw(guard_pq_of(tx));
}

START_TEST(a_connection_that_is_asked_for_behind_rollback_and_chain_does_not_hide_it)
{
    server_reset();
    for (int way = 0; way < PQ_SENDINGS; way++) {
        guard_result result;
        script p = {{ONE, "SAVEPOINT a", "ROLLBACK AND CHAIN"}, (pq_sending)way};
        guard_outcome told = transact_script(&p, chain_before_the_program_has_the_connection, &result);
        ck_assert_msg(told == GUARD_ROLLED_BACK, "way %d: %s", way, guard_outcome_name(told));
    }
}
END_TEST

static void chain_before_a_nested_one(guard_tx *tx, void *arg)
{
    run_script(tx, arg);
    GUARD_AUTO(s);
    guard_tx *nested = guard_tx_begin_nested(s, tx);
    guard_pq_exec(NULL, guard_pq_of(tx), TWO);
    guard_tx_rollback(nested);
}

static void chain_in_a_nested_one(guard_tx *tx, void *arg)
{
    GUARD_AUTO(s);
    guard_tx *nested = guard_tx_begin_nested(s, tx);
    run_script(tx, arg);
    guard_tx_commit(nested);
}

START_TEST(rollback_and_chain_around_a_nested_transaction_is_rolled_back)
{
    static guard_tx_fn *const bodies[] = {chain_before_a_nested_one, chain_in_a_nested_one};
    server_reset();
    for (size_t i = 0; i < 2; i++) {
        for (int way = PQ_BY_LIBPQ; way < PQ_SENDINGS; way++) {
            guard_result result;
            script p = {{ONE, "SAVEPOINT a", "ROLLBACK AND CHAIN"}, (pq_sending)way};
            guard_outcome told = transact_script(&p, bodies[i], &result);
            ck_assert_msg(told == GUARD_ROLLED_BACK, "body %zu: %s", i, guard_outcome_name(told));
            ck_assert_int_eq(server_rows(1) + server_rows(2), 0);
        }
    }
}
END_TEST

/* The program has the connection from the nested one's body on, so that its rollback takes the sign along. */
static void roll_back_nested_first(guard_tx *tx, void *arg)
{
    GUARD_AUTO(s);
    guard_tx *nested = guard_tx_begin_nested(s, tx);
    PQclear(PQexec(guard_pq_raw(guard_pq_of(tx)), TWO));
    guard_tx_rollback(nested);
    run_script(tx, arg);
}

START_TEST(rollback_to_a_savepoint_keeps_a_transaction_whose_nested_one_had_the_connection_first)
{
    guard_result result;
    server_reset();
    script p = {{ONE, "SAVEPOINT a", "ROLLBACK TO a"}, PQ_BY_LIBPQ_LATE};
    guard_outcome told = transact_script(&p, roll_back_nested_first, &result);
    ck_assert_msg(told == GUARD_COMMITTED, "%s, %s", guard_outcome_name(told), result.error.message);
    ck_assert_int_eq(server_rows(1), 1);
    ck_assert_int_eq(server_rows(2), 0);
}
END_TEST

/* As its first statement, and a round trip less: read-only is not asked for at COMMIT. */
START_TEST(the_mode_of_a_transaction_can_be_set_where_the_program_has_the_connection)
{
    server_reset();
    for (int way = PQ_BY_LIBPQ; way < PQ_SENDINGS; way++) {
        guard_result result;
        script p = {{"SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", ONE}, (pq_sending)way};
        ck_assert_int_eq(transact_script(&p, run_script, &result), GUARD_COMMITTED);
        ck_assert_int_eq(server_rows(1), 1);
    }
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        rollback_and_chain_after_a_savepoint_is_rolled_back_however_it_is_sent,
        rollback_to_a_savepoint_keeps_the_transaction_however_it_is_sent,
        an_end_after_the_first_one_is_not_the_transactions,
        commit_and_chain_of_an_aborted_transaction_is_rolled_back_however_it_is_sent,
        a_rollback_that_cannot_be_told_is_rolled_back,
        a_connection_that_is_asked_for_behind_rollback_and_chain_does_not_hide_it,
        rollback_and_chain_around_a_nested_transaction_is_rolled_back,
        rollback_to_a_savepoint_keeps_a_transaction_whose_nested_one_had_the_connection_first,
        the_mode_of_a_transaction_can_be_set_where_the_program_has_the_connection,
    };
    return suite_run("pq_chain", tests, sizeof tests / sizeof *tests);
}
