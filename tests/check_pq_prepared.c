/* SPDX-License-Identifier: MIT */
/*
 * check_pq_prepared.c: both phases of a prepared transaction on a wire that breaks at every byte: what is told is what the server lists in
 * pg_prepared_xacts and has in the table.
 */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_pq.h>

#include "server.h"
#include "suite.h"
#include "wire_proxy.h"

#define NAME "it's \\ a name"
#define NAME_SQL "E'it''s \\\\ a name'"
#define WAIT_MS 60000

static wire_proxy *proxy;

static void open_proxy(void)
{
    server_reset();
    proxy = server_proxy();
}

static int64_t listed(void)
{
    return server_number("SELECT count(*) FROM pg_prepared_xacts");
}

/* Where and how the wire breaks. */
typedef struct cut {
    wire_direction direction;
    uint64_t n;
    unsigned how;
    unsigned wire;
} cut;

static void arm(cut *c)
{
    wire_proxy_mark(proxy, c->wire);
    wire_proxy_cut_after(proxy, c->wire, c->direction, c->n, c->how);
}

static const struct {
    wire_direction direction;
    unsigned how;
} ways[] = {
    {WIRE_TO_SERVER, WIRE_RST},
    {WIRE_TO_CLIENT, WIRE_RST},
    {WIRE_TO_CLIENT, WIRE_FIN | WIRE_DRAIN},
};
#define WAYS (sizeof ways / sizeof *ways)

/* -------------------------------------------------------------------------------------------- the first phase -- */

/* In the middle of the answer to PREPARE TRANSACTION: before it comes that to the question for the number. */
static uint64_t within_the_answer(void)
{
    return 75 + (uint64_t)server_number("SELECT length(pg_current_xact_id()::text)") + 3;
}

typedef struct body {
    cut *cut; /* NULL: the wire is whole */
    int id;
} body;

static void write_row(guard_tx *tx, void *arg)
{
    body *b = arg;
    char sql[64];
    snprintf(sql, sizeof(sql), "INSERT INTO t VALUES (%d)", b->id);
    guard_pq_exec(NULL, guard_pq_of(tx), sql);
    if (b->cut != NULL) {
        arm(b->cut);
    }
}

static guard_pq_tx_options options_for(int marker, char key[16], int id)
{
    guard_pq_tx_options options = {.marker = marker, .prepare_as = NAME};
    snprintf(key, 16, "%d", id);
    if (marker == GUARD_PQ_MARKER_PROBE) {
        options.probe = "SELECT 1 FROM t WHERE id = $1::int";
        options.probe_key = key;
    }
    return options;
}

static guard_outcome prepare_once(int marker, cut *c, int id, guard_result *result)
{
    GUARD_AUTO(s);
    char key[16];
    guard_pq_tx_options options = options_for(marker, key, id);
    body b = {c, id};
    guard_pq *pq = guard_pq_open(s, c != NULL ? wire_proxy_conninfo(proxy) : "", NULL);
    if (c != NULL) {
        c->wire = wire_proxy_connections(proxy);
    }
    return guard_pq_transact(pq, write_row, &b, &options, result);
}

/* Returns how many bytes there were. */
/* The request itself, and where to begin: the question for the number goes before it, and a marker row's statements. */
#define REQUEST (1 + 4 + strlen("PREPARE TRANSACTION " NAME_SQL) + 1)

static void count_bytes(int marker, uint64_t bytes[2])
{
    guard_result result;
    cut c = {.direction = WIRE_TO_SERVER, .n = 1000000};
    ck_assert_int_eq(prepare_once(marker, &c, 1, &result), GUARD_PREPARED);
    wire_view view = wire_proxy_look(proxy, c.wire);
    bytes[WIRE_TO_SERVER] = view.passed[WIRE_TO_SERVER] - 5; /* the connection's end */
    bytes[WIRE_TO_CLIENT] = view.passed[WIRE_TO_CLIENT];
    server_run("ROLLBACK PREPARED " NAME_SQL);
}

/* Every byte of the request and of the answer; of what goes before them every seventh. */
static int cut_preparing(int marker, size_t way, int first_id, int outcomes[GUARD_RELEASED + 1])
{
    int places = 0;
    bool fired = true;
    uint64_t bytes[2];
    count_bytes(marker, bytes);
    uint64_t begin = ways[way].direction == WIRE_TO_SERVER ? bytes[WIRE_TO_SERVER] - REQUEST
                                                           : bytes[WIRE_TO_CLIENT] - 31;
    for (uint64_t n = 0; fired; n += n < begin ? 7 : 1) {
        guard_result result;
        cut c = {.direction = ways[way].direction, .n = n, .how = ways[way].how};
        int id = first_id + (int)n;
        guard_outcome told = prepare_once(marker, &c, id, &result);
        fired = wire_proxy_fired(proxy, c.wire, c.direction);
        places += fired;
        outcomes[told]++;
        server_wait_settled();
        int64_t found = listed();
        ck_assert_msg((told == GUARD_PREPARED && found == 1) || (told == GUARD_ROLLED_BACK && found == 0),
                      "marker %d, way %zu, byte %d: told \"%s\" (%s), %d listed", marker, way, (int)n,
                      guard_outcome_name(told), result.has_error ? result.error.message : "no error", (int)found);
        if (found == 1) {
            server_run("COMMIT PREPARED " NAME_SQL);
        }
        ck_assert_int_eq(server_rows(id), found);
    }
    return places;
}

static void prepare_everywhere(int marker)
{
    int outcomes[GUARD_RELEASED + 1] = {0};
    open_proxy();
    for (size_t way = 0; way < WAYS; way++) {
        ck_assert_int_ge(cut_preparing(marker, way, 1000 * (int)(way + 1), outcomes), 20);
    }
    ck_assert_int_gt(outcomes[GUARD_PREPARED], 3);
    ck_assert_int_gt(outcomes[GUARD_ROLLED_BACK], 20);
    wire_proxy_close(proxy);
}

START_TEST(the_wire_is_cut_at_every_byte_of_a_prepare_without_a_marker)
{
    prepare_everywhere(GUARD_PQ_MARKER_NONE);
}
END_TEST

START_TEST(the_wire_is_cut_at_every_byte_of_a_prepare_with_a_marker_row)
{
    prepare_everywhere(GUARD_PQ_MARKER_ROW);
}
END_TEST

START_TEST(the_wire_is_cut_at_every_byte_of_a_prepare_with_a_probe)
{
    prepare_everywhere(GUARD_PQ_MARKER_PROBE);
}
END_TEST

/* The name is taken, so that ours fails; the answer that says so is lost. */
START_TEST(another_transaction_of_the_same_name_is_not_taken_for_ours)
{
    static const int markers[] = {GUARD_PQ_MARKER_NONE, GUARD_PQ_MARKER_STATUS, GUARD_PQ_MARKER_ROW,
                                  GUARD_PQ_MARKER_PROBE};
    open_proxy();
    server_run("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION " NAME_SQL);
    for (size_t i = 0; i < sizeof markers / sizeof *markers; i++) {
        guard_result result;
        cut c = {.direction = WIRE_TO_CLIENT, .n = within_the_answer(), .how = WIRE_FIN | WIRE_DRAIN};
        ck_assert_int_eq(prepare_once(markers[i], &c, 2, &result), GUARD_ROLLED_BACK);
        ck_assert(wire_proxy_fired(proxy, c.wire, WIRE_TO_CLIENT));
        ck_assert_int_eq(listed(), 1);
        ck_assert_int_eq(server_rows(2), 0);
    }
    server_run("ROLLBACK PREPARED " NAME_SQL);
    wire_proxy_close(proxy);
}
END_TEST

/* Told in doubt, as the server is away, and found later by the token and the name; another process needs no more. */
START_TEST(a_prepare_in_doubt_is_found_later_listed_and_after_its_second_phase)
{
    GUARD_AUTO(s);
    static const int markers[] = {GUARD_PQ_MARKER_ROW, GUARD_PQ_MARKER_PROBE};
    open_proxy();
    for (size_t i = 0; i < 4; i++) {
        char key[16];
        guard_result result;
        guard_error error;
        int id = 1 + (int)i;
        guard_pq_tx_options options = options_for(markers[i % 2], key, id);
        options.resolve_ms = 100;
        guard_pq *pq = guard_pq_open(s, wire_proxy_conninfo(proxy), NULL);
        cut c = {.direction = WIRE_TO_CLIENT, .n = within_the_answer(), .how = WIRE_RST | WIRE_DRAIN};
        c.wire = wire_proxy_connections(proxy);
        wire_proxy_admit(proxy, WIRE_REFUSE);
        body b = {&c, id};
        ck_assert_int_eq(guard_pq_transact(pq, write_row, &b, &options, &result), GUARD_IN_DOUBT);
        wire_proxy_admit(proxy, WIRE_ADMIT);
        options.resolve_ms = 20000;
        ck_assert_int_eq(guard_pq_resolve_from("", NULL, result.token, &options, &error), GUARD_PREPARED);
        server_run(i < 2 ? "COMMIT PREPARED " NAME_SQL : "ROLLBACK PREPARED " NAME_SQL);
        ck_assert_int_eq(guard_pq_resolve_from("", NULL, result.token, &options, &error),
                         i < 2 ? GUARD_COMMITTED : GUARD_ROLLED_BACK);
        ck_assert_int_eq(server_rows(id), i < 2);
    }
    wire_proxy_close(proxy);
}
END_TEST

/* ------------------------------------------------------------------------------------------- the second phase -- */

typedef struct second {
    guard_pq *pq;
    bool commits;
} second;

static void end_it(void *arg)
{
    second *p = arg;
    if (p->commits) {
        guard_pq_prepared_commit(p->pq, NAME);
    } else {
        guard_pq_prepared_rollback(p->pq, NAME);
    }
}

/* What is read before the request is sent: there a lost wire is a plain error, and nothing was done. */
static int cut_second_phase(bool commits, size_t way, int first_id, uint64_t begin, int *failures)
{
    int places = 0;
    bool fired = true;
    /* What is read before is some 500 bytes each way. */
    for (uint64_t n = 0; fired; n += n < begin ? 41 : 1) {
        GUARD_AUTO(s);
        guard_result result;
        guard_error error;
        int id = first_id + (int)n;
        ck_assert_int_eq(prepare_once(GUARD_PQ_MARKER_NONE, NULL, id, &result), GUARD_PREPARED);
        second p = {guard_pq_open(s, wire_proxy_conninfo(proxy), NULL), commits};
        cut c = {.direction = ways[way].direction, .n = n, .how = ways[way].how};
        c.wire = wire_proxy_connections(proxy);
        arm(&c);
        int code = guard_run(end_it, &p, &error);
        fired = wire_proxy_fired(proxy, c.wire, c.direction);
        places += fired;
        *failures += code != 0;
        server_wait_settled();
        ck_assert_msg((code == 0) == (listed() == 0), "way %zu, byte %d: %s, %d listed", way, (int)n,
                      code == 0 ? "done" : error.message, (int)listed());
        ck_assert_msg(code == 0 || error.domain == GUARD_PQ, "way %zu, byte %d: %s", way, (int)n, error.message);
        if (code != 0) {
            server_run(commits ? "COMMIT PREPARED " NAME_SQL : "ROLLBACK PREPARED " NAME_SQL);
        }
        ck_assert_int_eq(server_rows(id), commits);
    }
    return places;
}

/* Where the request and its answer begin. */
static void find_request(bool commits, uint64_t begin[2])
{
    GUARD_AUTO(s);
    guard_result result;
    ck_assert_int_eq(prepare_once(GUARD_PQ_MARKER_NONE, NULL, 1, &result), GUARD_PREPARED);
    second p = {guard_pq_open(s, wire_proxy_conninfo(proxy), NULL), commits};
    unsigned wire = wire_proxy_connections(proxy);
    wire_proxy_mark(proxy, wire);
    end_it(&p);
    wire_view view = wire_proxy_look(proxy, wire);
    begin[WIRE_TO_SERVER] = view.passed[WIRE_TO_SERVER] - (1 + 4 + strlen("ROLLBACK PREPARED " NAME_SQL) + 1);
    begin[WIRE_TO_CLIENT] = view.passed[WIRE_TO_CLIENT] - 30;
    server_run("DELETE FROM t");
}

static void second_phase_everywhere(bool commits)
{
    uint64_t begin[2];
    open_proxy();
    find_request(commits, begin);
    for (size_t way = 0; way < WAYS; way++) {
        int failures = 0;
        int places = cut_second_phase(commits, way, 1000 * (int)(way + 1), begin[ways[way].direction], &failures);
        ck_assert_int_gt(failures, 3);           /* before it was asked for */
        ck_assert_int_gt(places - failures, 10); /* afterwards */
    }
    wire_proxy_close(proxy);
}

START_TEST(the_wire_is_cut_at_every_byte_of_a_commit_prepared)
{
    second_phase_everywhere(true);
}
END_TEST

START_TEST(the_wire_is_cut_at_every_byte_of_a_rollback_prepared)
{
    second_phase_everywhere(false);
}
END_TEST

static void prepare_whole(int id)
{
    guard_result result;
    ck_assert_int_eq(prepare_once(GUARD_PQ_MARKER_NONE, NULL, id, &result), GUARD_PREPARED);
}

/* Prepares row 3, and holds what asks for its second phase, once that is sent, in the proxy. */
static unsigned hold_the_request(second *p)
{
    unsigned wire = wire_proxy_connections(proxy);
    prepare_whole(1);
    end_it(p); /* asks where it is, once */
    prepare_whole(2);
    wire_proxy_mark(proxy, wire);
    end_it(p);
    uint64_t passed = wire_proxy_look(proxy, wire).passed[WIRE_TO_SERVER];
    uint64_t request = 1 + 4 + strlen(p->commits ? "COMMIT PREPARED " : "ROLLBACK PREPARED ") + strlen(NAME_SQL) + 1;
    prepare_whole(3);
    wire_proxy_mark(proxy, wire);
    wire_proxy_hold_after(proxy, wire, passed - request, 1, WIRE_RST);
    return wire;
}

START_TEST(a_commit_prepared_that_arrives_late_does_no_harm)
{
    GUARD_AUTO(s);
    char answer[4096];
    open_proxy();
    second p = {guard_pq_open(s, wire_proxy_conninfo(proxy), NULL), true};
    unsigned wire = hold_the_request(&p);
    end_it(&p);
    ck_assert_int_eq(server_rows(3), 1);
    wire_proxy_release(proxy, wire);
    ck_assert(wire_proxy_wait(proxy, wire, WIRE_SERVER_GONE, 0, WAIT_MS));
    size_t length = wire_proxy_withheld(proxy, wire, WIRE_TO_CLIENT, answer, sizeof(answer));
    ck_assert_ptr_nonnull(memmem(answer, length, "C42704", 6));
    wire_proxy_close(proxy);
}
END_TEST

static void *do_the_opposite(void *arg)
{
    ck_assert(wire_proxy_wait(proxy, *(unsigned *)arg, WIRE_WITHHELD_TO_SERVER, 1, WAIT_MS));
    server_run("ROLLBACK PREPARED " NAME_SQL);
    wire_proxy_admit(proxy, WIRE_ADMIT);
    return NULL;
}

START_TEST(the_opposite_that_somebody_else_did_meanwhile_is_told)
{
    GUARD_AUTO(s);
    guard_error error;
    pthread_t thread;
    open_proxy();
    second p = {guard_pq_open(s, wire_proxy_conninfo(proxy), NULL), true};
    unsigned wire = hold_the_request(&p);
    wire_proxy_admit(proxy, WIRE_REFUSE);
    ck_assert_int_eq(pthread_create(&thread, NULL, do_the_opposite, &wire), 0);
    ck_assert_int_ne(guard_run(end_it, &p, &error), 0);
    pthread_join(thread, NULL);
    ck_assert_int_eq(error.domain, GUARD_TX);
    ck_assert_msg(error.code == GUARD_TX_ROLLED_BACK, "%s", error.message);
    ck_assert_int_eq(server_rows(3), 0);
    wire_proxy_close(proxy);
}
END_TEST

typedef struct canceller {
    pthread_t thread;
    uint64_t request; /* where it ends, on its way to the server */
} canceller;

static void *cancel_when_asked_for(void *arg)
{
    const canceller *c = arg;
    ck_assert(wire_proxy_wait(proxy, 1, WIRE_PASSED_TO_SERVER, c->request, WAIT_MS));
    guard_cancel_thread(c->thread);
    return NULL;
}

START_TEST(a_thread_that_is_cancelled_in_the_second_phase_still_finds_out_how_it_ended)
{
    GUARD_AUTO(s);
    pthread_t thread;
    guard_error error = {0};
    open_proxy();
    guard_pq_options options = {.commit_ms = 1000, .rollback_ms = 300};
    second p = {guard_pq_open(s, wire_proxy_conninfo(proxy), &options), true};
    prepare_whole(1);
    end_it(&p); /* asks where it is, once */
    prepare_whole(2);
    wire_proxy_mark(proxy, 1);
    end_it(&p);
    wire_view view = wire_proxy_look(proxy, 1);
    canceller c = {pthread_self(), view.passed[WIRE_TO_SERVER]};
    prepare_whole(3);
    wire_proxy_mark(proxy, 1);
    wire_proxy_stop_after(proxy, 1, WIRE_TO_CLIENT,
                          view.passed[WIRE_TO_CLIENT] - (1 + 4 + sizeof("COMMIT PREPARED") + 6));
    ck_assert_int_eq(pthread_create(&thread, NULL, cancel_when_asked_for, &c), 0);
    ck_assert_msg(guard_run(end_it, &p, &error) == 0, "%s", error.message);
    pthread_join(thread, NULL);
    guard_cancel_clear();
    ck_assert_int_eq(server_rows(3), 1);
    wire_proxy_close(proxy);
}
END_TEST

START_TEST(a_server_that_is_away_leaves_the_second_phase_in_doubt)
{
    GUARD_AUTO(s);
    guard_error error;
    open_proxy();
    guard_pq_options options = {.resolve_ms = 200};
    second p = {guard_pq_open(s, wire_proxy_conninfo(proxy), &options), true};
    hold_the_request(&p);
    wire_proxy_admit(proxy, WIRE_REFUSE);
    ck_assert_int_ne(guard_run(end_it, &p, &error), 0);
    ck_assert_int_eq(error.domain, GUARD_TX);
    ck_assert_msg(error.code == GUARD_TX_IN_DOUBT, "%s", error.message);
    ck_assert_int_eq(listed(), 1);
    server_run("ROLLBACK PREPARED " NAME_SQL);
    wire_proxy_close(proxy);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        the_wire_is_cut_at_every_byte_of_a_prepare_without_a_marker,
        the_wire_is_cut_at_every_byte_of_a_prepare_with_a_marker_row,
        the_wire_is_cut_at_every_byte_of_a_prepare_with_a_probe,
        another_transaction_of_the_same_name_is_not_taken_for_ours,
        a_prepare_in_doubt_is_found_later_listed_and_after_its_second_phase,
        the_wire_is_cut_at_every_byte_of_a_commit_prepared,
        the_wire_is_cut_at_every_byte_of_a_rollback_prepared,
        a_commit_prepared_that_arrives_late_does_no_harm,
        the_opposite_that_somebody_else_did_meanwhile_is_told,
        a_thread_that_is_cancelled_in_the_second_phase_still_finds_out_how_it_ended,
        a_server_that_is_away_leaves_the_second_phase_in_doubt,
    };
    return suite_run("pq_prepared", tests, sizeof tests / sizeof *tests);
}
