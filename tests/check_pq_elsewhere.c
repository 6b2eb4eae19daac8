/* SPDX-License-Identifier: MIT */
/*
 * check_pq_elsewhere.c: the outcome told is true also where the program's own SQL meddles with the transaction: ends it, begins another,
 * changes its mode, or is cancelled while it commits.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_pq.h>

#include "server.h"
#include "suite.h"
#include "wire_proxy.h"

static wire_proxy *proxy;

static void open_proxy(void)
{
    server_reset();
    proxy = server_proxy();
}

/* Statements one after the other, each on its own; the answer to the last one may get lost. */
typedef struct script {
    const char *statements[4];
    bool raw;  /* by PQexec */
    bool lost; /* the last one's answer */
    unsigned wire;
} script;

static void run_script(guard_tx *tx, void *arg)
{
    script *p = arg;
    guard_pq *pq = guard_pq_of(tx);
    for (size_t i = 0; p->statements[i] != NULL; i++) {
        if (p->lost && p->statements[i + 1] == NULL) {
            wire_proxy_mark(proxy, p->wire);
            wire_proxy_cut_after(proxy, p->wire, WIRE_TO_CLIENT, 0, WIRE_FIN | WIRE_DRAIN);
        }
        if (p->raw) {
            PQclear(PQexec(guard_pq_raw(pq), p->statements[i]));
        } else {
            guard_pq_exec(NULL, pq, p->statements[i]);
        }
    }
}

static guard_outcome transact_script(script *p, const guard_pq_tx_options *options, guard_result *result)
{
    GUARD_AUTO(s);
    guard_pq *pq = guard_pq_open(s, p->lost ? wire_proxy_conninfo(proxy) : "", NULL);
    p->wire = proxy != NULL ? wire_proxy_connections(proxy) : 0;
    return guard_pq_transact(pq, run_script, p, options, result);
}

/* ----------------------------------------------------------------------------------------------- it is ended -- */

START_TEST(an_end_in_sql_of_the_programs_own_is_told_as_it_was)
{
    static const struct {
        script script;
        guard_outcome outcome;
        int kept; /* row 1 */
    } cases[] = {
        {{{"INSERT INTO t VALUES (1)", "COMMIT AND CHAIN"}, .raw = false}, GUARD_COMMITTED, 1},
        {{{"INSERT INTO t VALUES (1); COMMIT; BEGIN; INSERT INTO t VALUES (2)"}, .raw = false}, GUARD_COMMITTED, 1},
        {{{"INSERT INTO t VALUES (1)", "ROLLBACK AND CHAIN", "INSERT INTO t VALUES (2)"}, .raw = true},
         GUARD_ROLLED_BACK,
         0},
        {{{"INSERT INTO t VALUES (1)", "ROLLBACK; BEGIN; INSERT INTO t VALUES (2)"}, .raw = true},
         GUARD_ROLLED_BACK,
         0},
        {{{"INSERT INTO t VALUES (1); SAVEPOINT a", "ROLLBACK; START TRANSACTION", "INSERT INTO t VALUES (2)"},
          .raw = true},
         GUARD_ROLLED_BACK,
         0},
        {{{"INSERT INTO t VALUES (1)", "COMMIT; SELECT 1/0"}, .raw = false}, GUARD_COMMITTED, 1},
        {{{"INSERT INTO t VALUES (1)", "PREPARE TRANSACTION 'of the program'"}, .raw = false}, GUARD_PREPARED, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int marker = 0; marker < 2; marker++) {
            guard_result result;
            script p = cases[i].script;
            guard_pq_tx_options options = {.marker = marker == 0 ? GUARD_PQ_MARKER_NONE : GUARD_PQ_MARKER_ROW};
            server_reset();
            guard_outcome told = transact_script(&p, &options, &result);
            ck_assert_msg(told == cases[i].outcome, "case %zu: %s", i, guard_outcome_name(told));
            ck_assert_msg(result.notes & GUARD_NOTE_ENDED_ELSEWHERE, "case %zu: no note", i);
            server_wait_settled();
            ck_assert_msg(server_rows(1) == cases[i].kept, "case %zu: %d rows", i, (int)server_rows(1));
            if (told == GUARD_PREPARED) {
                server_run("ROLLBACK PREPARED 'of the program'");
            }
        }
    }
}
END_TEST

START_TEST(savepoints_of_the_programs_own_do_not_end_it)
{
    guard_result result;
    script p = {{"INSERT INTO t VALUES (1)", "SAVEPOINT a; INSERT INTO t VALUES (2); ROLLBACK TO a", "SELECT 1"},
                .raw = true};
    server_reset();
    ck_assert_int_eq(transact_script(&p, NULL, &result), GUARD_COMMITTED);
    ck_assert_uint_eq(result.notes & GUARD_NOTE_ENDED_ELSEWHERE, 0);
    ck_assert_int_eq(server_rows(1), 1);
    ck_assert_int_eq(server_rows(2), 0);
}
END_TEST

/* BEGIN inside a transaction begins nothing, also behind ROLLBACK TO, whose tag is that of ROLLBACK. */
START_TEST(a_begin_that_began_nothing_does_not_end_it)
{
    for (int raw = 0; raw < 2; raw++) {
        guard_result result;
        script p = {{"INSERT INTO t VALUES (1); SAVEPOINT a", "ROLLBACK TO a", "BEGIN"}, .raw = raw == 1};
        server_reset();
        ck_assert_int_eq(transact_script(&p, NULL, &result), GUARD_COMMITTED);
        ck_assert_uint_eq(result.notes & GUARD_NOTE_ENDED_ELSEWHERE, 0);
        ck_assert_int_eq(server_rows(1), 1);
    }
}
END_TEST

/* The program has the notices of its own connection, and only they tell the two apart. */
START_TEST(a_begin_after_either_rollback_on_an_adopted_connection_is_never_told_wrong)
{
    static const char *const rollbacks[] = {"ROLLBACK TO a", "ROLLBACK"};
    for (size_t i = 0; i < 2; i++) {
        guard_result result;
        script p = {{"INSERT INTO t VALUES (1); SAVEPOINT a", rollbacks[i], "BEGIN"}, .raw = true};
        server_reset();
        PGconn *raw = server_connect("options='-c client_min_messages=error'");
        ck_assert_int_eq(guard_pq_transact_raw(raw, run_script, &p, NULL, &result), GUARD_IN_DOUBT);
        ck_assert(result.notes & GUARD_NOTE_ENDED_ELSEWHERE);
        PQfinish(raw);
    }
}
END_TEST

START_TEST(a_procedure_that_commits_fails_inside_it)
{
    static const char *const calls[] = {"CALL ends()", "DO $$ BEGIN INSERT INTO t VALUES (2); COMMIT; END $$"};
    server_reset();
    server_run(
        "CREATE OR REPLACE PROCEDURE ends() LANGUAGE plpgsql AS $$ BEGIN INSERT INTO t VALUES (2); COMMIT; END $$");
    for (size_t i = 0; i < 2; i++) {
        guard_result result;
        script p = {{"INSERT INTO t VALUES (1)", calls[i]}, .raw = i == 0};
        ck_assert_int_eq(transact_script(&p, NULL, &result), GUARD_ROLLED_BACK);
        ck_assert_str_eq(result.error.sqlstate, "2D000");
        ck_assert_int_eq(server_rows(1) + server_rows(2), 0);
    }
}
END_TEST

/* The server has done it, and nobody has read how. */
START_TEST(lost_sql_that_may_have_ended_it_is_never_told_wrong)
{
    static const struct {
        const char *sql;
        guard_outcome outcome;
    } cases[] = {
        {"INSERT INTO t VALUES (1); COMMIT", GUARD_IN_DOUBT},
        {"INSERT INTO t VALUES (1);\n-- done\n/* yes /* really */ */ eNd;", GUARD_IN_DOUBT},
        {"INSERT INTO t VALUES (1); -- a line of an old Macintosh\rCOMMIT", GUARD_IN_DOUBT},
        {"INSERT INTO t VALUES (1, E'\\'; x'); COMMIT", GUARD_IN_DOUBT},
        {"INSERT INTO t VALUES (1, 'back\\'); COMMIT --'", GUARD_IN_DOUBT},
        {"INSERT INTO t VALUES (1, E'a' -- and\n '\\' goes on'); COMMIT", GUARD_IN_DOUBT},
        {"INSERT INTO t VALUES (1, $a$ $b$ $a$); COMMIT", GUARD_IN_DOUBT},
        {"INSERT INTO t VALUES (1); PREPARE TRANSACTION 'of the program'", GUARD_IN_DOUBT},
        {"INSERT INTO t VALUES (1, CASE WHEN true THEN 'x' END)", GUARD_ROLLED_BACK},
        {"INSERT INTO t VALUES (1, '; commit')", GUARD_ROLLED_BACK},
        {"INSERT INTO t VALUES (1, E'a'\n'\\'; commit')", GUARD_ROLLED_BACK},
        {"INSERT INTO t VALUES (1) /* ; commit */ -- ; commit", GUARD_ROLLED_BACK},
        {"DO $do$ BEGIN INSERT INTO t VALUES (1); END $do$; SELECT 1 AS \"; commit\"", GUARD_ROLLED_BACK},
        {"INSERT INTO t VALUES (1); SELECT 2 AS committed", GUARD_ROLLED_BACK},
        {"INSERT INTO t VALUES (1); ROLLBACK", GUARD_ROLLED_BACK},
    };
    open_proxy();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        guard_result result;
        script p = {{cases[i].sql}, .lost = true};
        guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW};
        server_run("DELETE FROM t");
        guard_outcome told = transact_script(&p, &options, &result);
        ck_assert_msg(told == cases[i].outcome, "%s: %s", cases[i].sql, guard_outcome_name(told));
        server_wait_settled();
        ck_assert_msg(told == GUARD_IN_DOUBT || server_rows(1) == 0, "%s: the row is there", cases[i].sql);
        ck_assert_msg(told != GUARD_IN_DOUBT || (result.notes & GUARD_NOTE_ENDED_ELSEWHERE), "%s", cases[i].sql);
        if (strstr(cases[i].sql, "PREPARE") != NULL) {
            server_run("ROLLBACK PREPARED 'of the program'");
        }
    }
    wire_proxy_close(proxy);
}
END_TEST

START_TEST(a_probe_finds_what_lost_sql_of_the_programs_own_has_committed)
{
    static const char *const texts[] = {"INSERT INTO t VALUES (1); COMMIT", "INSERT INTO t VALUES (1); ROLLBACK"};
    open_proxy();
    for (size_t i = 0; i < 2; i++) {
        guard_result result;
        script p = {{texts[i]}, .lost = true};
        guard_pq_tx_options options = {.probe = "SELECT 1 FROM t WHERE id = 1"};
        server_run("DELETE FROM t");
        ck_assert_int_eq(transact_script(&p, &options, &result), i == 0 ? GUARD_COMMITTED : GUARD_ROLLED_BACK);
        ck_assert_int_eq(server_rows(1), i == 0);
    }
    wire_proxy_close(proxy);
}
END_TEST

static void lose_a_commit(void *arg)
{
    run_script(*(guard_tx **)arg, ((void **)arg)[1]);
}

/* It is asked once only. */
START_TEST(a_cancelled_thread_that_asks_for_the_outcome_is_told_what_the_probe_finds)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq_tx_options options = {.probe = "SELECT 1 FROM t WHERE id = 1"};
    open_proxy();
    guard_pq *pq = guard_pq_open(s, wire_proxy_conninfo(proxy), NULL);
    script p = {{"INSERT INTO t VALUES (1); COMMIT"}, .lost = true, .wire = 1};
    guard_tx *tx = guard_pq_begin(s, pq, &options);
    ck_assert_int_ne(guard_run(lose_a_commit, (void *[]){tx, &p}, &error), 0);
    ck_assert_int_eq(guard_cancel_thread(pthread_self()), 1);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_COMMITTED);
    guard_cancel_clear();
    wire_proxy_close(proxy);
}
END_TEST

/* COMMIT by a prepared statement, and by a pipeline. */
static void commit_prepared_statement(guard_tx *tx, void *arg)
{
    script *p = arg;
    guard_pq *pq = guard_pq_of(tx);
    guard_pq_prepare(pq, "finish", " /* at last */ COMMIT", NULL);
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (1)");
    wire_proxy_mark(proxy, p->wire);
    wire_proxy_cut_after(proxy, p->wire, WIRE_TO_CLIENT, 0, WIRE_FIN | WIRE_DRAIN);
    guard_pq_exec_prepared(NULL, pq, "finish", NULL);
}

static void commit_in_pipeline(guard_tx *tx, void *arg)
{
    script *p = arg;
    GUARD_AUTO(s);
    guard_pq_pipeline *pipeline = guard_pq_pipeline_open(s, guard_pq_of(tx));
    guard_pq_pipeline_send(pipeline, "INSERT INTO t VALUES (1)", NULL);
    guard_pq_pipeline_send(pipeline, "COMMIT", NULL);
    wire_proxy_mark(proxy, p->wire);
    wire_proxy_cut_after(proxy, p->wire, WIRE_TO_CLIENT, 0, WIRE_FIN | WIRE_DRAIN);
    guard_pq_pipeline_end(pipeline);
}

static void lose_the_answer(const script *p)
{
    wire_proxy_mark(proxy, p->wire);
    wire_proxy_cut_after(proxy, p->wire, WIRE_TO_CLIENT, 0, WIRE_FIN | WIRE_DRAIN);
}

static void commit_by_execute(guard_tx *tx, void *arg)
{
    guard_pq *pq = guard_pq_of(tx);
    guard_pq_prepare(pq, "finish", "COMMIT", NULL);
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (1)");
    lose_the_answer(arg);
    guard_pq_exec(NULL, pq, "EXECUTE finish");
}

static void commit_in_stream(guard_tx *tx, void *arg)
{
    GUARD_AUTO(s);
    guard_pq *pq = guard_pq_of(tx);
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (1)");
    lose_the_answer(arg);
    guard_pq_stream_next(guard_pq_stream_open(s, pq, "COMMIT", NULL));
}

static void commit_instead_of_copy(guard_tx *tx, void *arg)
{
    GUARD_AUTO(s);
    guard_pq *pq = guard_pq_of(tx);
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (1)");
    lose_the_answer(arg);
    guard_pq_copy_in(s, pq, "COMMIT");
}

static void commit_behind_copy(guard_tx *tx, void *arg)
{
    GUARD_AUTO(s);
    guard_pq_copy *copy = guard_pq_copy_in(s, guard_pq_of(tx), "COPY t FROM STDIN; COMMIT");
    guard_pq_copy_put(copy, "1\t\\N\n", 5);
    lose_the_answer(arg);
    guard_pq_copy_end(copy);
}

static void prepare_commit(void *pq)
{
    guard_pq_prepare(pq, "finish", "COMMIT", NULL);
}

static void commit_by_what_was_prepared(guard_tx *tx, void *arg)
{
    guard_pq_exec(NULL, guard_pq_of(tx), "INSERT INTO t VALUES (1)");
    lose_the_answer(arg);
    guard_pq_exec_prepared(NULL, guard_pq_of(tx), "finish", NULL);
}

/* The server has prepared it, and was told too late to leave it. */
START_TEST(a_lost_commit_that_was_prepared_too_late_is_in_doubt)
{
    GUARD_AUTO(s);
    guard_error error;
    script p = {.lost = true, .wire = 1};
    open_proxy();
    guard_pq_options options = {.statement_ms = 100, .rollback_ms = 20000};
    guard_pq *pq = guard_pq_open(s, wire_proxy_conninfo(proxy), &options);
    wire_proxy_mark(proxy, 1);
    wire_proxy_delay_after(proxy, 1, WIRE_TO_CLIENT, 0, 400);
    ck_assert_int_ne(guard_run(prepare_commit, pq, &error), 0);
    ck_assert_msg(error.domain == GUARD_TIMEOUT, "%s", error.message);
    wire_proxy_mark(proxy, 1);
    guard_pq_statement_ms(pq, 20000);
    guard_outcome told = guard_pq_transact(pq, commit_by_what_was_prepared, &p, NULL, NULL);
    server_wait_settled();
    ck_assert_int_eq(server_rows(1), 1);
    ck_assert_msg(told == GUARD_IN_DOUBT, "%s", guard_outcome_name(told));
    wire_proxy_close(proxy);
}
END_TEST

START_TEST(a_lost_commit_is_in_doubt_however_the_program_has_sent_it)
{
    guard_tx_fn *const bodies[] = {commit_prepared_statement, commit_by_execute,      commit_in_pipeline,
                                   commit_in_stream,          commit_instead_of_copy, commit_behind_copy};
    open_proxy();
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        GUARD_AUTO(s);
        guard_result result;
        script p = {.lost = true};
        server_run("DELETE FROM t");
        guard_pq *pq = guard_pq_open(s, wire_proxy_conninfo(proxy), NULL);
        p.wire = wire_proxy_connections(proxy);
        guard_outcome told = guard_pq_transact(pq, bodies[i], &p, NULL, &result);
        ck_assert_msg(told == GUARD_IN_DOUBT, "body %zu: %s", i, guard_outcome_name(told));
        ck_assert(result.notes & GUARD_NOTE_ENDED_ELSEWHERE);
        server_wait_settled();
        ck_assert_int_eq(server_rows(1), 1);
    }
    wire_proxy_close(proxy);
}
END_TEST

/* -------------------------------------------------------------------------------------------- its mode is set -- */

static void write_in_spite(guard_tx *tx, void *arg)
{
    script *p = arg;
    guard_pq *pq = guard_pq_of(tx);
    guard_pq_exec(NULL, pq, "SET TRANSACTION READ WRITE");
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (1)");
    wire_proxy_mark(proxy, p->wire);
    wire_proxy_cut_after(proxy, p->wire, WIRE_TO_CLIENT, 120, WIRE_FIN | WIRE_DRAIN); /* of COMMIT, or before it */
}

START_TEST(a_read_only_transaction_that_was_made_to_write_is_seen_as_that)
{
    static const int markers[] = {GUARD_PQ_MARKER_NONE, GUARD_PQ_MARKER_STATUS, GUARD_PQ_MARKER_ROW,
                                  GUARD_PQ_MARKER_PROBE};
    open_proxy();
    for (size_t i = 0; i < sizeof markers / sizeof *markers; i++) {
        for (int by_default = 0; by_default < 2; by_default++) {
            GUARD_AUTO(s);
            guard_result result;
            script p = {.lost = true};
            server_run("DELETE FROM t");
            guard_pq *pq = guard_pq_open(s, wire_proxy_conninfo(proxy), NULL);
            p.wire = wire_proxy_connections(proxy);
            if (by_default) {
                guard_pq_exec(NULL, pq, "SET default_transaction_read_only = on");
            }
            guard_pq_tx_options options = {.marker = markers[i], .flags = by_default ? 0 : GUARD_PQ_READ_ONLY};
            if (markers[i] == GUARD_PQ_MARKER_PROBE) {
                options.probe = "SELECT 1 FROM t WHERE id = 1";
            }
            guard_outcome told = guard_pq_transact(pq, write_in_spite, &p, &options, &result);
            ck_assert_uint_eq(result.notes & GUARD_NOTE_NO_ROW_WRITTEN, 0);
            server_wait_settled();
            int64_t rows = server_rows(1);
            ck_assert_msg((told == GUARD_COMMITTED && rows == 1) || (told == GUARD_ROLLED_BACK && rows == 0) ||
                              (told == GUARD_IN_DOUBT && i < 2),
                          "marker %d: %s, %d rows", markers[i], guard_outcome_name(told), (int)rows);
        }
    }
    wire_proxy_close(proxy);
}
END_TEST

START_TEST(a_transaction_that_was_made_read_only_cannot_leave_its_marker_and_says_so)
{
    guard_result result;
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW};
    script p = {{"INSERT INTO t VALUES (1)", "SET TRANSACTION READ ONLY"}, .raw = false};
    server_reset();
    ck_assert_int_eq(transact_script(&p, &options, &result), GUARD_ROLLED_BACK);
    ck_assert_str_eq(result.error.sqlstate, "25006");
    ck_assert_int_eq(server_rows(1), 0);
}
END_TEST

/* --------------------------------------------------------------------------------------- cancels and timeouts -- */

typedef struct canceller {
    guard_pq *pq;
    atomic_int stop;
} canceller;

static void *cancel_all_the_time(void *arg)
{
    canceller *c = arg;
    while (!atomic_load(&c->stop)) {
        guard_pq_cancel(c->pq, 1000);
    }
    return NULL;
}

static void insert_numbered(guard_tx *tx, void *arg)
{
    char sql[64];
    snprintf(sql, sizeof(sql), "INSERT INTO t VALUES (%d)", *(int *)arg);
    guard_pq_exec(NULL, guard_pq_of(tx), sql);
}

START_TEST(a_cancel_at_any_moment_of_a_commit_leaves_the_outcome_true)
{
    GUARD_AUTO(s);
    pthread_t thread;
    int outcomes[GUARD_RELEASED + 1] = {0};
    server_reset();
    /* COMMIT's own work takes long enough to be hit. */
    server_run(
        "CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.001); "
        "RETURN NULL; END $$; CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR "
        "EACH ROW EXECUTE FUNCTION slow()");
    canceller c = {.pq = guard_pq_open(s, "", NULL)};
    ck_assert_int_eq(pthread_create(&thread, NULL, cancel_all_the_time, &c), 0);
    for (int id = 1; id <= 300; id++) {
        guard_result result;
        guard_pq_tx_options options = {.tx.attempts = 1,
                                       .marker = id % 2 == 0 ? GUARD_PQ_MARKER_ROW : GUARD_PQ_MARKER_NONE};
        guard_outcome told = guard_pq_transact(c.pq, insert_numbered, &id, &options, &result);
        outcomes[told]++;
        ck_assert_msg(server_rows(id) == (told == GUARD_COMMITTED), "row %d: told \"%s\" (%s)", id,
                      guard_outcome_name(told), result.has_error ? result.error.message : "no error");
    }
    atomic_store(&c.stop, 1);
    pthread_join(thread, NULL);
    ck_assert_int_gt(outcomes[GUARD_COMMITTED], 0);
    ck_assert_int_gt(outcomes[GUARD_ROLLED_BACK], 0);
}
END_TEST

static void idle_too_long(guard_tx *tx, void *arg)
{
    (void)arg;
    guard_pq *pq = guard_pq_of(tx);
    char gone[100];
    snprintf(gone, sizeof(gone), "SELECT count(*) FROM pg_stat_activity WHERE pid = %d",
             PQbackendPID(guard_pq_raw(pq)));
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (1); SET idle_in_transaction_session_timeout = 10");
    server_wait(gone, 0);
}

START_TEST(a_session_that_the_server_ended_for_idling_is_rolled_back)
{
    GUARD_AUTO(s);
    guard_result result;
    server_reset();
    guard_pq *pq = guard_pq_open(s, "", NULL);
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW};
    ck_assert_int_eq(guard_pq_transact(pq, idle_too_long, NULL, &options, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.code, GUARD_PQ_CONNECTION);
    ck_assert_int_eq(server_rows(1), 0);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        an_end_in_sql_of_the_programs_own_is_told_as_it_was,
        savepoints_of_the_programs_own_do_not_end_it,
        a_begin_that_began_nothing_does_not_end_it,
        a_begin_after_either_rollback_on_an_adopted_connection_is_never_told_wrong,
        a_procedure_that_commits_fails_inside_it,
        lost_sql_that_may_have_ended_it_is_never_told_wrong,
        a_probe_finds_what_lost_sql_of_the_programs_own_has_committed,
        a_cancelled_thread_that_asks_for_the_outcome_is_told_what_the_probe_finds,
        a_lost_commit_that_was_prepared_too_late_is_in_doubt,
        a_lost_commit_is_in_doubt_however_the_program_has_sent_it,
        a_read_only_transaction_that_was_made_to_write_is_seen_as_that,
        a_transaction_that_was_made_read_only_cannot_leave_its_marker_and_says_so,
        a_cancel_at_any_moment_of_a_commit_leaves_the_outcome_true,
        a_session_that_the_server_ended_for_idling_is_rolled_back,
    };
    return suite_run("pq_elsewhere", tests, sizeof tests / sizeof *tests);
}
