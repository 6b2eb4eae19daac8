/* SPDX-License-Identifier: MIT */
/*
 * check_pq_marker.c: the marker table: who makes it, who may use it, and which rows are in it.
 */
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

/* Its row would not be there, and the resolver would take that for a rollback. */
START_TEST(a_marker_table_that_may_keep_a_row_out_is_a_clear_panic_at_begin)
{
    static const char *const traps[] = {
        "CREATE OR REPLACE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.fenced THEN RETURN NEW; END IF; RETURN NULL; END $$;"
        "CREATE TRIGGER keep_out BEFORE INSERT ON guard_marker FOR EACH ROW EXECUTE FUNCTION keep_out()",
        "CREATE RULE keep_out AS ON INSERT TO guard_marker WHERE NOT NEW.fenced DO INSTEAD NOTHING"};
    GUARD_AUTO(s);
    guard_error error;
    for (size_t i = 0; i < sizeof traps / sizeof *traps; i++) {
        server_reset();
        server_run(traps[i]);
        ck_assert_int_ne(guard_run(pq_begin_with_row, guard_pq_open(s, "", NULL), &error), 0);
        ck_assert_int_eq(error.code, GUARD_PQ_MARKER);
        ck_assert_ptr_nonnull(strstr(error.message, "public.guard_marker has a rule or a BEFORE INSERT trigger"));
    }
    /* What comes behind the row keeps nothing out. */
    server_reset();
    server_run("CREATE TRIGGER look AFTER INSERT ON guard_marker FOR EACH ROW EXECUTE FUNCTION keep_out()");
    ck_assert_int_eq(guard_run(pq_begin_with_row, guard_pq_open(s, "", NULL), &error), 0);
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

/* -------------------------------------------------------------------------------- COMMIT in the marker's message -- */

static const guard_pq_tx_options with_row = {.marker = GUARD_PQ_MARKER_ROW};

static void insert_twice(guard_tx *tx, void *arg)
{
    (void)arg;
    guard_pq_exec(NULL, guard_pq_of(tx), "INSERT INTO late VALUES (1), (1)");
}

/* It leaves libpq 15 in the mode of single rows. */
static void read_a_stream(guard_tx *tx, void *arg)
{
    GUARD_AUTO(s);
    insert_next(tx, arg);
    guard_pq_stream *stream = guard_pq_stream_open(s, guard_pq_of(tx), "SELECT generate_series(1, 9)", NULL);
    while (guard_pq_stream_next(stream) != NULL) {
    }
}

/* At rest, out of pipeline mode, and the next statement gets its own answer. */
static void check_rest(guard_pq *pq, int number)
{
    char sql[32];
    snprintf(sql, sizeof(sql), "SELECT %d", number);
    ck_assert_int_eq(guard_pq_query_int64(pq, sql, -1), number);
    ck_assert_int_eq(PQpipelineStatus(guard_pq_raw(pq)), PQ_PIPELINE_OFF);
    ck_assert_int_eq(PQtransactionStatus(guard_pq_raw(pq)), PQTRANS_IDLE);
}

START_TEST(a_connection_is_at_rest_after_a_commit_with_a_marker_whichever_way_that_ended)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_pq *pq = pq_open(s);
    server_run("DROP TABLE IF EXISTS late; CREATE TABLE late (id integer UNIQUE DEFERRABLE INITIALLY DEFERRED)");
    ck_assert_int_eq(guard_pq_transact(pq, insert_next, NULL, &with_row, &result), GUARD_COMMITTED);
    check_rest(pq, 1);
    ck_assert_int_eq(guard_pq_transact(pq, read_a_stream, NULL, &with_row, &result), GUARD_COMMITTED);
    check_rest(pq, 2);
    ck_assert_int_eq(guard_pq_transact(pq, insert_twice, NULL, &with_row, &result), GUARD_ROLLED_BACK);
    ck_assert_str_eq(result.error.sqlstate, "23505");
    ck_assert_str_eq(result.error.constraint, "late_id_key");
    check_rest(pq, 3);
    guard_pq_exec(NULL, pq, "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$");
    guard_pq_tx_options once = {.marker = GUARD_PQ_MARKER_ROW, .tx.attempts = 1};
    ck_assert_int_eq(guard_pq_transact(pq, insert_next, NULL, &once, &result), GUARD_ROLLED_BACK);
    ck_assert_str_eq(result.error.sqlstate, "26000");
    check_rest(pq, 4);
    ck_assert_int_eq(guard_pq_transact(pq, insert_next, NULL, &once, &result), GUARD_COMMITTED);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t"), 3);
    ck_assert_int_eq(server_number("SELECT count(*) FROM late"), 0);
}
END_TEST

/* Another statement of that name is no COMMIT, whatever it answers. */
START_TEST(a_commit_whose_prepared_statement_was_taken_away_is_told_as_it_ended)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_pq_tx_options once = {.marker = GUARD_PQ_MARKER_ROW, .tx.attempts = 1};
    guard_pq *pq = pq_open(s);
    ck_assert_int_eq(guard_pq_transact(pq, insert_next, NULL, &once, &result), GUARD_COMMITTED);
    guard_pq_exec(NULL, pq, "DO $$ BEGIN EXECUTE 'DEALLOCATE guard_marker_commit'; END $$");
    ck_assert_int_eq(guard_pq_transact(pq, insert_next, NULL, &once, &result), GUARD_ROLLED_BACK);
    ck_assert_str_eq(result.error.sqlstate, "26000");
    check_rest(pq, 1);
    ck_assert_int_eq(guard_pq_transact(pq, insert_next, NULL, &once, &result), GUARD_COMMITTED);
    pq = guard_pq_open(s, "", NULL);
    ck_assert_int_eq(guard_pq_transact(pq, insert_next, NULL, &once, &result), GUARD_COMMITTED);
    guard_pq_exec(NULL, pq, "DO $$ BEGIN EXECUTE 'DEALLOCATE guard_marker_commit'; END $$");
    guard_pq_prepare(pq, "guard_marker_commit", "SELECT 1", NULL);
    ck_assert_int_eq(guard_pq_transact(pq, insert_next, NULL, &once, &result), GUARD_ROLLED_BACK);
    ck_assert(result.notes & GUARD_NOTE_RESOLVED);
    ck_assert_int_eq(server_rows(next_id), 0);
    /* The name is the program's from the beginning. */
    pq = guard_pq_open(s, "", NULL);
    guard_pq_prepare(pq, "guard_marker_commit", "SELECT 1", NULL);
    ck_assert_int_eq(guard_pq_transact(pq, insert_next, NULL, &once, &result), GUARD_COMMITTED);
    check_rest(pq, 2);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t"), 4);
}
END_TEST

static void commit_then_lock_the_table(void *arg)
{
    PGconn **both = arg; /* the program's; whose lock it is */
    GUARD_AUTO(s);
    guard_pq *pq = guard_pq_adopt(s, both[0], NULL);
    ck_assert_int_eq(guard_pq_transact(pq, insert_next, NULL, &with_row, NULL), GUARD_COMMITTED);
    PQclear(PQexec(both[1], "BEGIN; LOCK TABLE guard_marker IN SHARE MODE"));
}

START_TEST(an_adopted_connection_outlives_a_close_that_finds_the_marker_table_locked)
{
    guard_error error;
    server_reset();
    PGconn *both[2] = {server_connect(""), server_connect("")};
    ck_assert_msg(guard_run(commit_then_lock_the_table, both, &error) == 0, "%s", error.message);
    PGresult *rows = PQexec(both[0], "SELECT 1");
    ck_assert_msg(PQresultStatus(rows) == PGRES_TUPLES_OK, "%s", PQerrorMessage(both[0]));
    PQclear(rows);
    ck_assert_int_eq(PQtransactionStatus(both[0]), PQTRANS_IDLE);
    PQfinish(both[1]);
    PQfinish(both[0]);
}
END_TEST

typedef struct silence {
    wire_proxy *proxy;
    uint64_t after; /* bytes of the answer to COMMIT; 0: none of it is withheld */
} silence;

static void insert_and_silence(guard_tx *tx, void *arg)
{
    const silence *a = arg;
    insert_next(tx, NULL);
    wire_proxy_mark(a->proxy, 1);
    if (a->after > 0) {
        wire_proxy_stop_after(a->proxy, 1, WIRE_TO_CLIENT, a->after);
    }
}

/* ReadyForQuery is the last 6 bytes. */
static void check_silence_behind_the_tag(const guard_pq_tx_options *patient)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_pq_tx_options options = {.marker = patient->marker, .commit_ms = 300};
    silence a = {server_proxy(), 0};
    server_reset();
    guard_pq *pq = guard_pq_open(s, wire_proxy_conninfo(a.proxy), NULL);
    ck_assert_int_eq(guard_pq_transact(pq, insert_and_silence, &a, patient, &result), GUARD_COMMITTED);
    a.after = wire_proxy_look(a.proxy, 1).passed[WIRE_TO_CLIENT] - 6;
    ck_assert_int_eq(guard_pq_transact(pq, insert_and_silence, &a, &options, &result), GUARD_COMMITTED);
    ck_assert_uint_eq(result.notes, 0); /* nobody had to be asked */
    ck_assert_uint_eq(wire_proxy_connections(a.proxy), 1);
    ck_assert_int_eq(server_rows(next_id), 1);
    /* Nobody gets the rest of that answer for one of his own. */
    ck_assert_int_eq(guard_pq_transact(pq, pq_insert_two, NULL, patient, &result), GUARD_ROLLED_BACK);
    ck_assert_msg(result.error.code == GUARD_PQ_CONNECTION, "%s", result.error.message);
    wire_proxy_close(a.proxy);
}

START_TEST(a_commit_is_told_by_its_tag_though_what_follows_never_comes)
{
    static const guard_pq_tx_options without;
    check_silence_behind_the_tag(&with_row);
    check_silence_behind_the_tag(&without);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_missing_marker_table_is_a_clear_panic_at_begin,
        a_marker_table_that_may_keep_a_row_out_is_a_clear_panic_at_begin,
        an_ordinary_role_uses_the_marker_table_that_was_granted_to_it,
        a_session_keeps_one_marker_row_and_takes_it_back_at_its_end,
        a_program_that_takes_the_markers_statements_away_commits_all_the_same,
        a_prepared_transaction_with_a_marker_does_not_block_the_next_of_its_session,
        a_connection_is_at_rest_after_a_commit_with_a_marker_whichever_way_that_ended,
        a_commit_whose_prepared_statement_was_taken_away_is_told_as_it_ended,
        an_adopted_connection_outlives_a_close_that_finds_the_marker_table_locked,
        a_commit_is_told_by_its_tag_though_what_follows_never_comes,
    };
    return suite_run("pq_marker", tests, sizeof tests / sizeof *tests);
}
