/* SPDX-License-Identifier: MIT */
/*
 * check_pq_marker.c: the marker table: who makes it, who may use it, and which rows are in it.
 */
#include <stdio.h>
#include <string.h>

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "pq_table.h"
#include "suite.h"

START_TEST(a_missing_marker_table_is_a_clear_panic_at_begin)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = pq_open(s);
    server_run("DROP TABLE guard_marker");
    ck_assert_int_ne(guard_run(pq_begin_with_row, pq, &error), 0);
    ck_assert_int_eq(error.domain, GUARD_PQ);
    ck_assert_int_eq(error.code, GUARD_PQ_MARKER);
    ck_assert_ptr_nonnull(strstr(error.message, "public.guard_marker does not exist"));
    guard_pq_marker_install(pq, NULL);
    ck_assert_int_eq(guard_run(pq_begin_with_row, pq, &error), 0);
}
END_TEST

START_TEST(an_ordinary_role_uses_the_marker_table_that_was_granted_to_it)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_result result;
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW};
    guard_pq *owner = pq_open(s);
    server_run("DROP TABLE guard_marker; DROP ROLE IF EXISTS \"plain \"\"role\"; CREATE ROLE \"plain \"\"role\" LOGIN; "
               "GRANT INSERT ON t TO \"plain \"\"role\"");
    guard_pq *pq = guard_pq_open(s, "user='plain \"role'", NULL);
    guard_pq_marker_install(owner, NULL);
    ck_assert_int_ne(guard_run(pq_begin_with_row, pq, &error), 0);
    ck_assert_int_eq(error.code, GUARD_PQ_MARKER);
    ck_assert_ptr_nonnull(strstr(error.message, "may not be used"));
    guard_pq_marker_install(owner, "plain \"role");
    ck_assert_int_eq(guard_pq_transact(pq, pq_insert_two, NULL, &options, &result), GUARD_COMMITTED);
    guard_pq_close(pq);
    server_run("DROP OWNED BY \"plain \"\"role\"; DROP ROLE \"plain \"\"role\"");
}
END_TEST

static int next_id;

static void insert_next(guard_tx *tx, void *arg)
{
    (void)arg;
    pq_insert(guard_pq_of(tx), ++next_id);
}

START_TEST(a_session_keeps_one_marker_row_and_takes_it_back_at_its_end)
{
    GUARD_AUTO(s);
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW};
    guard_pq *pq = pq_open(s);
    for (int i = 0; i < 5; i++) {
        ck_assert_int_eq(guard_pq_transact(pq, insert_next, NULL, &options, NULL), GUARD_COMMITTED);
        ck_assert_int_eq(server_number("SELECT count(*) FROM guard_marker"), 2); /* and the table's own */
    }
    guard_pq_close(pq);
    ck_assert_int_eq(server_number("SELECT count(*) FROM guard_marker"), 1);
}
END_TEST

static void deallocate_and_insert(guard_tx *tx, void *arg)
{
    insert_next(tx, arg);
    PQclear(PQexec(guard_pq_raw(guard_pq_of(tx)), "DEALLOCATE ALL"));
}

static void commit_with_marker(guard_pq *pq, guard_tx_fn *body)
{
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW};
    guard_result result;
    ck_assert_msg(guard_pq_transact(pq, body, NULL, &options, &result) == GUARD_COMMITTED, "%s", result.error.message);
    ck_assert_int_eq(server_number("SELECT count(*) FROM guard_marker WHERE made < 'infinity'"), 1);
}

START_TEST(a_program_that_takes_the_markers_statements_away_commits_all_the_same)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    commit_with_marker(pq, insert_next);
    guard_pq_exec(NULL, pq, "DISCARD ALL");
    commit_with_marker(pq, insert_next);
    pq = pq_open(s);
    server_run("DELETE FROM guard_marker WHERE made < 'infinity'");
    commit_with_marker(pq, deallocate_and_insert);
    commit_with_marker(pq, insert_next);
    /* Their names may be the program's own. */
    pq = pq_open(s);
    server_run("DELETE FROM guard_marker WHERE made < 'infinity'");
    guard_pq_exec(NULL, pq, "PREPARE guard_marker_put (uuid, bigint) AS SELECT $1, $2");
    commit_with_marker(pq, insert_next);
    commit_with_marker(pq, insert_next);
}
END_TEST

START_TEST(a_prepared_transaction_with_a_marker_does_not_block_the_next_of_its_session)
{
    GUARD_AUTO(s);
    guard_pq_tx_options prepare = {.prepare_as = "later", .marker = GUARD_PQ_MARKER_ROW};
    guard_pq_tx_options next = {.marker = GUARD_PQ_MARKER_ROW, .commit_ms = 20000};
    guard_result result;
    guard_pq *pq = pq_open(s);
    ck_assert_int_eq(guard_pq_transact(pq, insert_next, NULL, &next, NULL), GUARD_COMMITTED);
    ck_assert_int_eq(guard_pq_transact(pq, insert_next, NULL, &prepare, NULL), GUARD_PREPARED);
    guard_pq_exec(NULL, pq, "SET lock_timeout = 1000"); /* what would wait for it fails */
    ck_assert_int_eq(guard_pq_transact(pq, insert_next, NULL, &next, &result), GUARD_COMMITTED);
    guard_pq *other = guard_pq_open(s, "", NULL);
    guard_pq_prepared_commit(other, prepare.prepare_as);
    ck_assert_int_eq(server_number("SELECT count(*) FROM guard_marker WHERE seq IN (1, 3)"), 1);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_missing_marker_table_is_a_clear_panic_at_begin,
        an_ordinary_role_uses_the_marker_table_that_was_granted_to_it,
        a_session_keeps_one_marker_row_and_takes_it_back_at_its_end,
        a_program_that_takes_the_markers_statements_away_commits_all_the_same,
        a_prepared_transaction_with_a_marker_does_not_block_the_next_of_its_session,
    };
    return suite_run("pq_marker", tests, sizeof tests / sizeof *tests);
}
