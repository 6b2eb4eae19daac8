/* SPDX-License-Identifier: MIT */
/*
 * check_pq_commit.c: the outcome told is the outcome found (behaviours 31 to 34), with a wire that breaks at every byte, a COMMIT that
 * arrives late, and a server that crashes, hangs or is away.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_pq.h>

#include "calls.h"
#include "server.h"
#include "suite.h"
#include "wire_proxy.h"

#define WAIT_MS 60000

static wire_proxy *proxy;

static void open_proxy(void)
{
    server_reset();
    proxy = server_proxy();
}

/* ------------------------------------------------------------------------------------------- one transaction */

/* Which row is written, what happens just before COMMIT, and how it ended. */
typedef struct work {
    guard_pq *pq;
    int id;
    void (*before_commit)(struct work *work);
    wire_direction direction;
    uint64_t n;
    unsigned how;
    unsigned wire;
    int runs;
    int pid;
    int64_t xid;
    guard_result result;
} work;

static void write_row(guard_tx *tx, void *arg)
{
    work *w = arg;
    char sql[64];
    w->runs++;
    snprintf(sql, sizeof(sql), "INSERT INTO t VALUES (%d)", w->id);
    guard_pq_exec(NULL, guard_pq_of(tx), sql);
    w->pid = (int)guard_pq_query_int64(guard_pq_of(tx), "SELECT pg_backend_pid()", 0);
    w->xid = guard_pq_query_int64(guard_pq_of(tx), "SELECT pg_current_xact_id()", 0);
    if (w->before_commit != NULL) {
        w->before_commit(w);
    }
}

/* The connection goes through the proxy. */
static guard_outcome run_work(guard_scope *s, work *w, const guard_pq_tx_options *options)
{
    if (w->pq == NULL) {
        w->pq = guard_pq_open(s, wire_proxy_conninfo(proxy), NULL);
    }
    w->wire = wire_proxy_connections(proxy);
    return guard_pq_transact(w->pq, write_row, w, options, &w->result);
}

/* The probe of these tests: the row itself. */
static guard_pq_tx_options options_for(int marker, char key[16], int id)
{
    guard_pq_tx_options options = {.marker = marker};
    snprintf(key, 16, "%d", id);
    if (marker == GUARD_PQ_MARKER_PROBE) {
        options.probe = "SELECT 1 FROM t WHERE id = $1::int";
        options.probe_key = key;
    }
    return options;
}

static void check_told(const work *w, int may_doubt, const char *what)
{
    server_wait_settled();
    int64_t rows = server_rows(w->id);
    guard_outcome told = w->result.outcome;
    int true_told = (told == GUARD_COMMITTED && rows == 1) || (told == GUARD_ROLLED_BACK && rows == 0) ||
                    (told == GUARD_IN_DOUBT && may_doubt);
    ck_assert_msg(true_told, "%s, byte %d: told \"%s\" (%s), found %d rows", what, (int)w->n, guard_outcome_name(told),
                  w->result.has_error ? w->result.error.message : "no error", (int)rows);
    ck_assert_msg(w->runs == 1, "%s, byte %d: the body ran %d times", what, (int)w->n, w->runs);
}

/* ------------------------------------------------------------------------------------------------------ 31 */

static void cut_the_wire(work *w)
{
    wire_proxy_mark(proxy, w->wire);
    wire_proxy_cut_after(proxy, w->wire, w->direction, w->n, w->how);
}

/* Every byte of one direction; returns how many there were. */
static int cut_everywhere(int marker, wire_direction direction, unsigned how, int first_id, int outcomes[4])
{
    int fired = 1;
    int places = 0;
    for (uint64_t n = 0; fired; n++) {
        GUARD_AUTO(s);
        char key[16];
        work w = {.id = first_id + (int)n, .before_commit = cut_the_wire, .direction = direction, .n = n, .how = how};
        guard_pq_tx_options options = options_for(marker, key, w.id);
        run_work(s, &w, &options);
        fired = wire_proxy_fired(proxy, w.wire, direction);
        places += fired;
        outcomes[w.result.outcome]++;
        check_told(&w, marker == GUARD_PQ_MARKER_NONE || marker == GUARD_PQ_MARKER_STATUS,
                   direction == WIRE_TO_SERVER ? "cut to the server" : "cut to the client");
        ck_assert_msg(fired || w.result.outcome == GUARD_COMMITTED, "nothing was cut, and it is \"%s\"",
                      guard_outcome_name(w.result.outcome));
    }
    return places;
}

static void cut_both_ways(int marker, int least_bytes)
{
    int outcomes[4] = {0};
    open_proxy();
    int to_server = cut_everywhere(marker, WIRE_TO_SERVER, WIRE_RST, 1000, outcomes);
    int to_client = cut_everywhere(marker, WIRE_TO_CLIENT, WIRE_RST, 2000, outcomes);
    cut_everywhere(marker, WIRE_TO_CLIENT, WIRE_FIN | WIRE_DRAIN, 3000, outcomes);
    ck_assert_msg(to_server >= least_bytes && to_client >= 10, "%d bytes to the server, %d to the client", to_server,
                  to_client);
    ck_assert_int_gt(outcomes[GUARD_COMMITTED], 3); /* also some whose answer was lost */
    wire_proxy_close(proxy);
}

START_TEST(the_wire_is_cut_at_every_byte_of_a_commit_without_a_marker)
{
    cut_both_ways(GUARD_PQ_MARKER_NONE, 10);
}
END_TEST

START_TEST(the_wire_is_cut_at_every_byte_of_a_commit_with_the_servers_status)
{
    cut_both_ways(GUARD_PQ_MARKER_STATUS, 40);
}
END_TEST

START_TEST(the_wire_is_cut_at_every_byte_of_a_commit_with_a_probe)
{
    cut_both_ways(GUARD_PQ_MARKER_PROBE, 10);
}
END_TEST

START_TEST(the_wire_is_cut_at_every_byte_of_a_commit_with_a_marker_row)
{
    cut_both_ways(GUARD_PQ_MARKER_ROW, 80);
}
END_TEST

/* The COMMIT stays in the proxy, and the client is cut off. */
static void hold_the_commit(work *w)
{
    wire_proxy_mark(proxy, w->wire);
    wire_proxy_hold_after(proxy, w->wire, 0, 1, WIRE_RST);
}

START_TEST(a_commit_that_arrives_after_its_transaction_was_resolved_fails)
{
    GUARD_AUTO(s);
    char answer[4096];
    work w = {.id = 1, .before_commit = hold_the_commit};
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW};
    open_proxy();
    ck_assert_int_eq(run_work(s, &w, &options), GUARD_ROLLED_BACK);
    ck_assert(w.result.notes & GUARD_NOTE_RESOLVED);
    ck_assert_int_eq(server_rows(1), 0);
    wire_proxy_release(proxy, w.wire);
    ck_assert(wire_proxy_wait(proxy, w.wire, WIRE_SERVER_GONE, 0, WAIT_MS));
    size_t length = wire_proxy_withheld(proxy, w.wire, WIRE_TO_CLIENT, answer, sizeof(answer));
    ck_assert_ptr_nonnull(memmem(answer, length, "C23505", 7));
    server_wait_settled();
    ck_assert_int_eq(server_rows(1), 0);
    wire_proxy_close(proxy);
}
END_TEST

/* The resolver's own wire breaks too, everywhere and both ways, while the COMMIT is late: what it has told stays true when that arrives. */
static void cut_the_resolver(wire_direction direction, unsigned how, int first_id, int outcomes[GUARD_RELEASED + 1])
{
    bool fired = true;
    uint64_t last = 0; /* bytes of a whole one; connecting is most of them */
    for (uint64_t n = 100000; fired; n += n + 90 < last ? 61 : 2) {
        GUARD_AUTO(s);
        work w = {.id = first_id + (int)n, .n = n, .before_commit = hold_the_commit};
        guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW};
        w.pq = guard_pq_open(s, wire_proxy_conninfo(proxy), NULL);
        unsigned resolver = wire_proxy_connections(proxy) + 1;
        wire_proxy_cut_after(proxy, resolver, direction, n, how);
        guard_outcome told = run_work(s, &w, &options);
        fired = wire_proxy_fired(proxy, resolver, direction);
        outcomes[told]++;
        if (last == 0) {
            last = wire_proxy_look(proxy, resolver).passed[direction];
            n = 0;
            fired = true;
        }
        wire_proxy_release(proxy, w.wire);
        ck_assert(wire_proxy_wait(proxy, w.wire, WIRE_SERVER_GONE, 0, WAIT_MS));
        check_told(&w, 0, direction == WIRE_TO_SERVER ? "resolver cut to the server" : "resolver cut to the client");
    }
}

START_TEST(the_resolvers_own_request_is_cut_off_and_a_late_commit_still_fails)
{
    int outcomes[GUARD_RELEASED + 1] = {0};
    open_proxy();
    cut_the_resolver(WIRE_TO_SERVER, WIRE_RST, 10000, outcomes);
    ck_assert_int_gt(outcomes[GUARD_ROLLED_BACK], 20);
    wire_proxy_close(proxy);
}
END_TEST

START_TEST(the_resolvers_own_answer_is_cut_off_and_a_late_commit_still_fails)
{
    int outcomes[GUARD_RELEASED + 1] = {0};
    open_proxy();
    cut_the_resolver(WIRE_TO_CLIENT, WIRE_RST | WIRE_DRAIN, 20000, outcomes);
    ck_assert_int_gt(outcomes[GUARD_ROLLED_BACK], 20);
    wire_proxy_close(proxy);
}
END_TEST

START_TEST(with_a_probe_a_late_commit_is_waited_for_and_then_known)
{
    GUARD_AUTO(s);
    char key[16];
    work w = {.id = 1, .before_commit = hold_the_commit};
    open_proxy();
    guard_pq_tx_options options = options_for(GUARD_PQ_MARKER_PROBE, key, 1);
    options.resolve_ms = 300;
    ck_assert_int_eq(run_work(s, &w, &options), GUARD_IN_DOUBT);
    wire_proxy_release(proxy, w.wire);
    guard_error error;
    options.resolve_ms = 0;
    ck_assert_msg(guard_pq_resolve(w.pq, w.result.token, &options, &error) == GUARD_COMMITTED, "%s", error.message);
    ck_assert_int_eq(server_rows(1), 1);
    wire_proxy_close(proxy);
}
END_TEST

/* -------------------------------------------------------------------------------------------- another thread */

/* What happens to the server while the main thread waits for the answer to COMMIT. */
typedef struct meanwhile {
    void (*what)(work *w);
    work *w;
    pthread_t thread;
} meanwhile;

static void *run_meanwhile(void *arg)
{
    meanwhile *m = arg;
    m->what(m->w);
    return NULL;
}

static void begin_meanwhile(meanwhile *m, work *w, void (*what)(work *))
{
    m->what = what;
    m->w = w;
    ck_assert_int_eq(pthread_create(&m->thread, NULL, run_meanwhile, m), 0);
}

/* ------------------------------------------------------------------------------------------------------ 32 */

/* The WAL of a transaction that is not committed stays in memory, so that a crash loses its number. */
static void keep_wal_in_memory(void)
{
    server_run("ALTER SYSTEM SET wal_writer_delay = '10s'");
    server_run("ALTER SYSTEM SET bgwriter_delay = '10s'");
    server_control("-m fast restart");
}

/* The query for the transaction's number, which with the status marker goes before COMMIT. */
#define XID_QUERY_BYTES (1 + 4 + (int)sizeof("SELECT pg_current_xact_id_if_assigned()"))

static void stop_before_commit(work *w)
{
    wire_proxy_mark(proxy, w->wire);
    wire_proxy_stop_after(proxy, w->wire, WIRE_TO_SERVER, w->n);
    wire_proxy_admit(proxy, WIRE_REFUSE);
}

/* The server crashes while COMMIT is on its way; then another client gets the lost transaction's number and commits. */
static void crash_and_take_the_xid(work *w)
{
    ck_assert(wire_proxy_wait(proxy, w->wire, WIRE_FIRED, 0, WAIT_MS));
    server_control("-m immediate stop");
    server_control("start");
    for (int64_t xid = 0; xid < w->xid;) {
        PGconn *conn = server_connect("");
        PGresult *rows = PQexec(conn,
                                "INSERT INTO t VALUES (100 + (random() * 1e8)::int) RETURNING pg_current_xact_id()");
        ck_assert_msg(PQntuples(rows) == 1, "%s", PQerrorMessage(conn));
        xid = strtoll(PQgetvalue(rows, 0, 0), NULL, 10);
        PQclear(rows);
        PQfinish(conn);
        ck_assert_msg(xid <= w->xid, "the server has not lost transaction %lld: the next is %lld", (long long)w->xid,
                      (long long)xid);
    }
    wire_proxy_admit(proxy, WIRE_ADMIT);
}

static void crash_at_commit(int marker, work *w)
{
    meanwhile m;
    GUARD_AUTO(s);
    guard_pq_tx_options options = {.marker = marker, .resolve_ms = 20000};
    open_proxy();
    keep_wal_in_memory();
    server_run("CHECKPOINT");
    w->pq = guard_pq_open(s, wire_proxy_conninfo(proxy), NULL);
    w->wire = wire_proxy_connections(proxy);
    begin_meanwhile(&m, w, crash_and_take_the_xid);
    run_work(s, w, &options);
    pthread_join(m.thread, NULL);
    ck_assert_int_eq(server_rows(w->id), 0);
    wire_proxy_close(proxy);
}

START_TEST(a_number_that_a_crashed_server_hands_out_again_is_no_proof_of_commit)
{
    work w = {.id = 1, .before_commit = stop_before_commit, .n = XID_QUERY_BYTES + 1};
    crash_at_commit(GUARD_PQ_MARKER_STATUS, &w);
    ck_assert_int_eq(w.result.outcome, GUARD_IN_DOUBT);
    ck_assert(w.result.notes & GUARD_NOTE_STATUS_ONLY);
}
END_TEST

START_TEST(a_marker_row_is_not_fooled_by_a_number_that_was_handed_out_again)
{
    work w = {.id = 1, .before_commit = stop_before_commit};
    crash_at_commit(GUARD_PQ_MARKER_ROW, &w);
    ck_assert_int_eq(w.result.outcome, GUARD_ROLLED_BACK);
    ck_assert(w.result.notes & GUARD_NOTE_RESOLVED);
}
END_TEST

/* The COMMIT is done, its answer lost, and nobody can connect. */
static void lose_the_answer_and_the_server(work *w)
{
    wire_proxy_mark(proxy, w->wire);
    wire_proxy_cut_after(proxy, w->wire, WIRE_TO_CLIENT, 0, WIRE_RST | WIRE_DRAIN);
    wire_proxy_admit(proxy, WIRE_REFUSE);
}

static void leave_in_doubt(guard_scope *s, work *w, guard_pq_tx_options *options)
{
    *w = (work){.id = 1, .before_commit = lose_the_answer_and_the_server};
    open_proxy();
    ck_assert_int_eq(run_work(s, w, options), GUARD_IN_DOUBT);
}

static int resolve_elsewhere(const char *conninfo, const char *token)
{
    pid_t child = fork();
    if (child == 0) {
        _exit((int)guard_pq_resolve_from(conninfo, NULL, token, NULL, NULL));
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status));
    return WEXITSTATUS(status);
}

START_TEST(a_server_that_is_away_leaves_it_in_doubt_and_another_process_resolves_it)
{
    GUARD_AUTO(s);
    work w;
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW, .resolve_ms = 200};
    leave_in_doubt(s, &w, &options);
    ck_assert_int_eq(w.runs, 1);
    ck_assert_uint_eq(w.result.attempts, 1);
    ck_assert_int_eq(w.result.error.domain, GUARD_TX);
    ck_assert_int_eq(w.result.error.code, GUARD_TX_IN_DOUBT);
    ck_assert_int_eq(resolve_elsewhere("connect_timeout=5", w.result.token), GUARD_COMMITTED);
    ck_assert_int_eq(resolve_elsewhere("connect_timeout=5", w.result.token), GUARD_COMMITTED);
    ck_assert_int_eq(server_rows(1), 1);
    wire_proxy_close(proxy);
}
END_TEST

static void count_call(void *count)
{
    ++*(int *)count;
}

START_TEST(resolving_on_a_cancelled_thread_does_not_go_on_to_its_deadline)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW, .resolve_ms = 200};
    work w;
    leave_in_doubt(s, &w, &options);
    options.resolve_ms = -1;
    ck_assert_int_eq(guard_cancel_thread(pthread_self()), 1);
    ck_assert_int_eq(guard_pq_resolve_from(wire_proxy_conninfo(proxy), NULL, w.result.token, &options, &error),
                     GUARD_IN_DOUBT);
    ck_assert_msg(error.domain == GUARD_CANCELLED, "%s", error.message);
    guard_cancel_clear();
    ck_assert_int_eq(guard_pq_resolve_from("", NULL, w.result.token, &options, &error), GUARD_COMMITTED);
    wire_proxy_close(proxy);
}
END_TEST

START_TEST(resolving_that_finds_the_table_locked_keeps_its_connection_and_says_so)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW, .resolve_ms = 50};
    work w;
    leave_in_doubt(s, &w, &options);
    PGconn *other = server_connect("");
    PQclear(PQexec(other, "BEGIN; LOCK TABLE guard_marker IN SHARE MODE"));
    options.resolve_ms = 900;
    guard_pq *pq = guard_pq_open(s, "", NULL);
    ck_assert_int_eq(guard_pq_resolve(pq, w.result.token, &options, &error), GUARD_IN_DOUBT);
    ck_assert_msg(strcmp(error.sqlstate, "55P03") == 0, "%s", error.message);
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT 1", 0), 1);
    PQfinish(other);
    ck_assert_int_eq(guard_pq_resolve(pq, w.result.token, NULL, &error), GUARD_COMMITTED);
    wire_proxy_close(proxy);
}
END_TEST

START_TEST(resolving_over_a_silent_connection_says_that_no_answer_came)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW, .resolve_ms = 200};
    work w;
    leave_in_doubt(s, &w, &options);
    wire_proxy_admit(proxy, WIRE_ADMIT);
    guard_pq *pq = guard_pq_open(s, wire_proxy_conninfo(proxy), NULL);
    wire_proxy_stop_after(proxy, wire_proxy_connections(proxy), WIRE_TO_SERVER, 0);
    ck_assert_int_eq(guard_pq_resolve(pq, w.result.token, &options, &error), GUARD_IN_DOUBT);
    ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
    ck_assert_ptr_null(strstr(error.message, " 0 ms"));
    wire_proxy_close(proxy);
}
END_TEST

START_TEST(hooks_of_a_transaction_in_doubt_run_when_its_handle_is_resolved)
{
    GUARD_AUTO(s);
    int calls = 0;
    guard_error error;
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW, .resolve_ms = 200};
    open_proxy();
    work w = {.pq = guard_pq_open(s, wire_proxy_conninfo(proxy), NULL), .id = 1};
    w.wire = wire_proxy_connections(proxy);
    guard_tx *tx = guard_pq_begin(s, w.pq, &options);
    write_row(tx, &w);
    guard_tx_on_commit(tx, count_call, &calls);
    lose_the_answer_and_the_server(&w);
    ck_assert_int_ne(guard_run(call_commit, tx, &error), 0);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_IN_DOUBT);
    ck_assert_int_eq(calls, 0);
    wire_proxy_admit(proxy, WIRE_ADMIT);
    ck_assert_int_eq(guard_pq_resolve_tx(tx, NULL, &error), GUARD_COMMITTED);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_COMMITTED);
    ck_assert_int_eq(calls, 1);
    wire_proxy_close(proxy);
}
END_TEST

START_TEST(a_session_that_was_in_doubt_gets_another_id)
{
    GUARD_AUTO(s);
    open_proxy();
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW};
    work w = {.id = 1, .before_commit = cut_the_wire, .direction = WIRE_TO_CLIENT, .how = WIRE_RST | WIRE_DRAIN};
    ck_assert_int_eq(run_work(s, &w, &options), GUARD_COMMITTED);
    guard_pq_close(w.pq);
    ck_assert_int_eq(server_number("SELECT count(*) FROM guard_marker"), 2); /* stays, for whoever resolves it again */
    work other = {.id = 2};
    ck_assert_int_eq(run_work(s, &other, &options), GUARD_COMMITTED);
    ck_assert_int_eq(server_number("SELECT count(DISTINCT session) FROM guard_marker"), 3);
    guard_pq_close(other.pq);
    ck_assert_int_eq(server_number("SELECT count(*) FROM guard_marker"), 2); /* an orderly close takes its row back */
    wire_proxy_close(proxy);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ 33 */

static void only_notify(guard_tx *tx, void *arg)
{
    work *w = arg;
    guard_pq_exec(NULL, guard_pq_of(tx), "NOTIFY somebody");
    cut_the_wire(w);
}

static void only_read(guard_tx *tx, void *arg)
{
    work *w = arg;
    guard_pq_exec(NULL, guard_pq_of(tx), "SELECT count(*) FROM t");
    cut_the_wire(w);
}

static void check_note(guard_tx_fn *body, const guard_pq_tx_options *options, int expected)
{
    GUARD_AUTO(s);
    open_proxy();
    work w = {.direction = WIRE_TO_SERVER, .n = 1, .how = WIRE_RST};
    if (options->marker == GUARD_PQ_MARKER_STATUS) {
        w.n += XID_QUERY_BYTES;
    }
    w.pq = guard_pq_open(s, wire_proxy_conninfo(proxy), NULL);
    w.wire = wire_proxy_connections(proxy);
    ck_assert_int_eq(guard_pq_transact(w.pq, body, &w, options, &w.result), GUARD_IN_DOUBT);
    ck_assert_int_eq((w.result.notes & GUARD_NOTE_NO_ROW_WRITTEN) != 0, expected);
    wire_proxy_close(proxy);
}

START_TEST(a_lost_commit_without_a_number_is_in_doubt_but_no_row_was_written)
{
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_STATUS};
    check_note(only_notify, &options, 1);
}
END_TEST

/* From 16 on the server refuses to write large objects in it. */
static int server_refuses_large_objects(void)
{
    return server_number("SELECT (current_setting('server_version_num')::int >= 160000)::int") == 1;
}

START_TEST(a_lost_commit_of_a_read_only_transaction_wrote_no_marker_and_says_that_no_row_was_written_where_that_is_sure)
{
    static const int markers[] = {GUARD_PQ_MARKER_NONE, GUARD_PQ_MARKER_ROW, GUARD_PQ_MARKER_STATUS};
    for (size_t i = 0; i < sizeof markers / sizeof *markers; i++) {
        guard_pq_tx_options options = {.marker = markers[i], .flags = GUARD_PQ_READ_ONLY};
        check_note(only_read, &options, markers[i] == GUARD_PQ_MARKER_STATUS || server_refuses_large_objects());
        ck_assert_int_eq(server_number("SELECT count(*) FROM guard_marker"), 1); /* the table's own */
    }
}
END_TEST

static void write_large_object(guard_tx *tx, void *arg)
{
    work *w = arg;
    guard_pq_exec(NULL, guard_pq_of(tx), "SELECT lo_create(4242)");
    w->n = 0;
    w->direction = WIRE_TO_CLIENT;
    w->how = WIRE_FIN | WIRE_DRAIN;
    cut_the_wire(w);
}

static void only_make_large_object(guard_tx *tx, void *arg)
{
    guard_pq_exec(NULL, guard_pq_of(tx), "SELECT lo_create(4243)");
    cut_the_wire(arg);
}

START_TEST(a_lost_commit_of_a_large_object_in_a_read_only_transaction_does_not_say_that_no_row_was_written)
{
    static const int markers[] = {GUARD_PQ_MARKER_NONE, GUARD_PQ_MARKER_ROW};
    for (size_t i = 0; i < sizeof markers / sizeof *markers && !server_refuses_large_objects(); i++) {
        guard_pq_tx_options options = {.marker = markers[i], .flags = GUARD_PQ_READ_ONLY};
        server_run("SELECT lo_unlink(oid) FROM pg_largeobject_metadata WHERE oid = 4242");
        check_note(write_large_object, &options, 0);
        server_wait("SELECT count(*) FROM pg_largeobject_metadata WHERE oid = 4242", 1);
    }
}
END_TEST

START_TEST(a_lost_commit_of_a_read_only_transaction_with_a_number_has_its_status_looked_up)
{
    GUARD_AUTO(s);
    if (server_refuses_large_objects()) {
        return;
    }
    open_proxy();
    work w = {.direction = WIRE_TO_SERVER, .n = XID_QUERY_BYTES + 1, .how = WIRE_RST};
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_STATUS, .flags = GUARD_PQ_READ_ONLY};
    w.pq = guard_pq_open(s, wire_proxy_conninfo(proxy), NULL);
    w.wire = wire_proxy_connections(proxy);
    ck_assert_int_eq(guard_pq_transact(w.pq, only_make_large_object, &w, &options, &w.result), GUARD_ROLLED_BACK);
    ck_assert(w.result.notes & GUARD_NOTE_RESOLVED);
    ck_assert_int_eq(server_number("SELECT count(*) FROM pg_largeobject_metadata WHERE oid = 4243"), 0);
    wire_proxy_close(proxy);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ 34 */

static void wait_for_no_one_any_more(void)
{
    server_run("ALTER SYSTEM RESET synchronous_standby_names");
    server_run("SELECT pg_reload_conf()");
}

static void end_backend(work *w, const char *by)
{
    char sql[160];
    server_wait("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'", 1);
    snprintf(sql, sizeof(sql), "SELECT %s(pid)::int FROM pg_stat_activity WHERE wait_event = 'SyncRep'", by);
    (void)w;
    ck_assert_int_eq(server_number(sql), 1);
}

static void terminate_it(work *w)
{
    end_backend(w, "pg_terminate_backend");
}

static void cancel_it(work *w)
{
    end_backend(w, "pg_cancel_backend");
}

static void kill_it(work *w)
{
    int64_t life = server_life();
    server_wait("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'", 1);
    server_signal(w->pid, SIGKILL);
    server_wait_recovered(life);
}

static void commit_that_hangs(work *w, void (*what)(work *))
{
    GUARD_AUTO(s);
    meanwhile m;
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW};
    server_reset();
    server_wait_for_nobody();
    w->pq = guard_pq_open(s, "", NULL);
    begin_meanwhile(&m, w, what);
    guard_pq_transact(w->pq, write_row, w, &options, &w->result);
    pthread_join(m.thread, NULL);
    wait_for_no_one_any_more();
}

START_TEST(a_backend_that_is_terminated_while_commit_waits_is_resolved_and_resolving_does_not_hang)
{
    work w = {.id = 1};
    commit_that_hangs(&w, terminate_it);
    ck_assert_int_eq(w.result.outcome, GUARD_COMMITTED);
    ck_assert(w.result.notes & GUARD_NOTE_RESOLVED);
    ck_assert_int_eq(server_rows(1), 1);
}
END_TEST

START_TEST(a_backend_that_is_killed_while_commit_waits_is_resolved)
{
    work w = {.id = 1};
    commit_that_hangs(&w, kill_it);
    ck_assert_int_eq(w.result.outcome, GUARD_COMMITTED);
    ck_assert(w.result.notes & GUARD_NOTE_RESOLVED);
    ck_assert_int_eq(server_rows(1), 1);
}
END_TEST

START_TEST(a_commit_whose_wait_for_a_standby_is_cancelled_is_committed_on_this_server_only)
{
    work w = {.id = 1};
    commit_that_hangs(&w, cancel_it);
    ck_assert_int_eq(w.result.outcome, GUARD_COMMITTED);
    ck_assert(w.result.notes & GUARD_NOTE_LOCAL_ONLY);
    ck_assert_int_eq(server_rows(1), 1);
}
END_TEST

static void kill_now(work *w)
{
    ck_assert(wire_proxy_wait(proxy, w->wire, WIRE_FIRED, 0, WAIT_MS));
    int64_t life = server_life();
    server_signal(w->pid, SIGKILL);
    wire_proxy_admit(proxy, WIRE_ADMIT);
    server_wait_recovered(life);
}

START_TEST(a_backend_that_is_killed_before_commit_arrives_is_resolved)
{
    GUARD_AUTO(s);
    meanwhile m;
    work w = {.id = 1, .before_commit = stop_before_commit};
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW};
    open_proxy();
    w.pq = guard_pq_open(s, wire_proxy_conninfo(proxy), NULL);
    w.wire = wire_proxy_connections(proxy);
    begin_meanwhile(&m, &w, kill_now);
    ck_assert_int_eq(run_work(s, &w, &options), GUARD_ROLLED_BACK);
    pthread_join(m.thread, NULL);
    ck_assert_int_eq(server_rows(1), 0);
    wire_proxy_close(proxy);
}
END_TEST

START_TEST(a_commit_that_is_not_answered_in_time_is_resolved_when_its_transaction_ends)
{
    GUARD_AUTO(s);
    guard_error error;
    work w = {.id = 1};
    guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW, .commit_ms = 200, .resolve_ms = 200};
    server_reset();
    server_wait_for_nobody();
    w.pq = guard_pq_open(s, "", NULL);
    ck_assert_int_eq(guard_pq_transact(w.pq, write_row, &w, &options, &w.result), GUARD_IN_DOUBT);
    wait_for_no_one_any_more();
    ck_assert_msg(guard_pq_resolve(w.pq, w.result.token, NULL, &error) == GUARD_COMMITTED, "%s", error.message);
    ck_assert_int_eq(server_rows(1), 1);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------------ */

START_TEST(a_token_that_is_not_one_is_refused_and_nothing_is_asked)
{
    GUARD_AUTO(s);
    guard_error error;
    static const char *const tokens[] = {"", "pq:row:", "pq:row:x'; DROP TABLE t; --", "pq:status:1; SELECT 1",
                                         "pq:probe:-1"};
    server_reset();
    guard_pq *pq = guard_pq_open(s, "", NULL);
    for (size_t i = 0; i < sizeof(tokens) / sizeof(*tokens); i++) {
        ck_assert_int_eq(guard_pq_resolve(pq, tokens[i], NULL, &error), GUARD_IN_DOUBT);
        ck_assert_int_eq(error.code, GUARD_PQ_TOKEN);
    }
    ck_assert_int_eq(server_number("SELECT count(*) FROM t"), 0);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        the_wire_is_cut_at_every_byte_of_a_commit_without_a_marker,
        the_wire_is_cut_at_every_byte_of_a_commit_with_the_servers_status,
        the_wire_is_cut_at_every_byte_of_a_commit_with_a_probe,
        the_wire_is_cut_at_every_byte_of_a_commit_with_a_marker_row,
        a_commit_that_arrives_after_its_transaction_was_resolved_fails,
        the_resolvers_own_request_is_cut_off_and_a_late_commit_still_fails,
        the_resolvers_own_answer_is_cut_off_and_a_late_commit_still_fails,
        with_a_probe_a_late_commit_is_waited_for_and_then_known,
        a_number_that_a_crashed_server_hands_out_again_is_no_proof_of_commit,
        a_marker_row_is_not_fooled_by_a_number_that_was_handed_out_again,
        a_server_that_is_away_leaves_it_in_doubt_and_another_process_resolves_it,
        resolving_on_a_cancelled_thread_does_not_go_on_to_its_deadline,
        resolving_that_finds_the_table_locked_keeps_its_connection_and_says_so,
        resolving_over_a_silent_connection_says_that_no_answer_came,
        hooks_of_a_transaction_in_doubt_run_when_its_handle_is_resolved,
        a_session_that_was_in_doubt_gets_another_id,
        a_lost_commit_without_a_number_is_in_doubt_but_no_row_was_written,
        a_lost_commit_of_a_read_only_transaction_wrote_no_marker_and_says_that_no_row_was_written_where_that_is_sure,
        a_lost_commit_of_a_large_object_in_a_read_only_transaction_does_not_say_that_no_row_was_written,
        a_lost_commit_of_a_read_only_transaction_with_a_number_has_its_status_looked_up,
        a_backend_that_is_terminated_while_commit_waits_is_resolved_and_resolving_does_not_hang,
        a_backend_that_is_killed_while_commit_waits_is_resolved,
        a_commit_whose_wait_for_a_standby_is_cancelled_is_committed_on_this_server_only,
        a_backend_that_is_killed_before_commit_arrives_is_resolved,
        a_commit_that_is_not_answered_in_time_is_resolved_when_its_transaction_ends,
        a_token_that_is_not_one_is_refused_and_nothing_is_asked,
    };
    return suite_run("pq_commit", tests, sizeof tests / sizeof *tests);
}
