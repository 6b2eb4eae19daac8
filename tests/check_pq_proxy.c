/* SPDX-License-Identifier: MIT */
/* The tests' own proxy between libpq and a real server: what is passed on, cut and held is what the server did or did
 * not get. */
#include <libpq-fe.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "suite.h"
#include "wire_proxy.h"

enum {
    LIMIT_MS = 20000,
    QUIET_MS = 30,
};

/* ---- a server, and connections to it and through the proxy ----------------------------------------------------- */

static PGconn *connect_by(const char *conninfo)
{
    PGconn *c = PQconnectdb(conninfo);
    ck_assert_msg(PQstatus(c) == CONNECTION_OK, "%s", PQerrorMessage(c));
    return c;
}

/* By the environment that with-postgres made: past the proxy. */
static PGconn *connect_directly(void)
{
    return connect_by("");
}

/* Over TCP, in front of the server's Unix socket, or with i = 1 in front of its TCP port. */
static wire_proxy *open_proxy(int i)
{
    const char *host = i == 0 ? getenv("GUARD_TEST_PG_SOCKET") : "127.0.0.1";
    wire_proxy *p = wire_proxy_open(host, atoi(getenv("GUARD_TEST_PG_PORT")), NULL);
    ck_assert_ptr_nonnull(p);
    return p;
}

static void run(PGconn *c, const char *sql)
{
    PGresult *r = PQexec(c, sql);
    ck_assert_msg(PQresultStatus(r) == PGRES_COMMAND_OK, "%s: %s", sql, PQerrorMessage(c));
    PQclear(r);
}

static int number(PGconn *c, const char *sql)
{
    PGresult *r = PQexec(c, sql);
    ck_assert_msg(PQresultStatus(r) == PGRES_TUPLES_OK, "%s: %s", sql, PQerrorMessage(c));
    int n = atoi(PQgetvalue(r, 0, 0));
    PQclear(r);
    return n;
}

/* Each test has its table, and the connection past the proxy that looks at it. */
static PGconn *with_table(void)
{
    PGconn *direct = connect_directly();
    run(direct, "DROP TABLE IF EXISTS proxied; CREATE TABLE proxied (n int)");
    return direct;
}

static int rows(PGconn *direct)
{
    return number(direct, "SELECT count(*) FROM proxied");
}

/* Until a backend is as `condition` says.  The server tells nobody, so it is asked again and again; each time is a
 * round trip. */
static void await_backend(PGconn *direct, int backend, int count, const char *condition)
{
    char sql[200];
    snprintf(sql, sizeof sql, "SELECT count(*) FROM pg_stat_activity WHERE pid = %d AND %s", backend, condition);
    for (int i = 0; number(direct, sql) != count; i++) {
        ck_assert_msg(i < 100000, "not %d: %s", count, sql);
    }
}

static void await_end_of(PGconn *direct, int backend)
{
    await_backend(direct, backend, 0, "true");
}

static PGconn *begin_insert(wire_proxy *p, unsigned *wire)
{
    PGconn *c = connect_by(wire_proxy_conninfo(p));
    *wire = wire_proxy_connections(p);
    run(c, "BEGIN; INSERT INTO proxied VALUES (1)");
    ck_assert(wire_proxy_mark(p, *wire));
    return c;
}

static ExecStatusType commit(PGconn *c)
{
    PGresult *r = PQexec(c, "COMMIT");
    ExecStatusType status = PQresultStatus(r);
    PQclear(r);
    return status;
}

enum {
    COMMIT_BYTES = 1 + 4 + sizeof "COMMIT",                 /* Query */
    ANSWER_BYTES = (1 + 4 + sizeof "COMMIT") + (1 + 4 + 1), /* CommandComplete, ReadyForQuery */
};

/* ---- the tests ------------------------------------------------------------------------------------------------- */

START_TEST(libpq_works_through_it)
{
    wire_proxy *p = open_proxy(_i);
    PGconn *c = connect_by(wire_proxy_conninfo(p));
    ck_assert_int_eq(number(c, "SELECT length(repeat('x', 1000000))"), 1000000);
    PGresult *r = PQexec(c, "SELECT repeat('x', 1000000)");
    ck_assert_int_eq(PQgetlength(r, 0, 0), 1000000);
    PQclear(r);
    PQfinish(c);
    ck_assert(wire_proxy_wait(p, wire_proxy_connections(p), WIRE_SERVER_GONE, 0, LIMIT_MS));
    wire_proxy_close(p);
}
END_TEST

START_TEST(a_cancel_request_is_a_further_connection)
{
    char message[256];
    wire_proxy *p = open_proxy(_i);
    PGconn *c = connect_by(wire_proxy_conninfo(p));
    unsigned before = wire_proxy_connections(p);
    ck_assert(PQsendQuery(c, "SELECT pg_sleep(60)"));
    /* A cancel request that comes before the query has no effect. */
    PGconn *direct = connect_directly();
    await_backend(direct, PQbackendPID(c), 1, "wait_event = 'PgSleep'");
    PQfinish(direct);
    PGcancel *cancel = PQgetCancel(c);
    ck_assert_msg(PQcancel(cancel, message, sizeof message), "%s", message);
    PQfreeCancel(cancel);
    PGresult *r = PQgetResult(c);
    ck_assert_str_eq(PQresultErrorField(r, PG_DIAG_SQLSTATE), "57014");
    PQclear(r);
    ck_assert_uint_eq(wire_proxy_connections(p), before + 1);
    PQfinish(c);
    wire_proxy_close(p);
}
END_TEST

START_TEST(a_commit_cut_at_any_byte_is_done_only_when_its_last_byte_has_passed)
{
    static const unsigned ways[] = {WIRE_FIN, WIRE_RST, WIRE_FIN | WIRE_DRAIN, WIRE_RST | WIRE_DRAIN};
    PGconn *direct = with_table();
    wire_proxy *p = open_proxy(_i / 4);
    bool drained = (ways[_i % 4] & WIRE_DRAIN) != 0;
    bool fired = true;
    uint64_t n;
    for (n = 0; fired; n++) {
        unsigned wire;
        PGconn *c = begin_insert(p, &wire);
        int backend = PQbackendPID(c), before = rows(direct);
        ck_assert(wire_proxy_cut_after(p, wire, WIRE_TO_SERVER, n, ways[_i % 4]));
        ExecStatusType status = commit(c);
        fired = wire_proxy_fired(p, wire, WIRE_TO_SERVER);
        PQfinish(c);
        await_end_of(direct, backend);
        ck_assert_msg(rows(direct) - before == (n >= COMMIT_BYTES), "cut after %d bytes of %d", (int)n, COMMIT_BYTES);
        /* Cut after its last byte, it is done, and the answer comes only if it is waited for. */
        bool told = !fired || (drained && n == COMMIT_BYTES);
        ck_assert_msg((status == PGRES_COMMAND_OK) == told, "cut after %d bytes of %d", (int)n, COMMIT_BYTES);
    }
    ck_assert_uint_eq(n - 1, COMMIT_BYTES + 1);
    PQfinish(direct);
    wire_proxy_close(p);
}
END_TEST

START_TEST(a_commit_whose_answer_is_cut_at_any_byte_is_done)
{
    PGconn *direct = with_table();
    wire_proxy *p = open_proxy(_i / 2);
    bool fired = true;
    uint64_t n;
    for (n = 0; fired; n++) {
        unsigned wire;
        PGconn *c = begin_insert(p, &wire);
        int backend = PQbackendPID(c), before = rows(direct);
        ck_assert(wire_proxy_cut_after(p, wire, WIRE_TO_CLIENT, n, _i % 2 != 0 ? WIRE_RST : WIRE_FIN));
        ExecStatusType status = commit(c);
        fired = wire_proxy_fired(p, wire, WIRE_TO_CLIENT);
        PQfinish(c);
        await_end_of(direct, backend);
        ck_assert_int_eq(rows(direct) - before, 1);
        ck_assert_msg((status == PGRES_COMMAND_OK) == (n >= ANSWER_BYTES), "cut after %d bytes of %d", (int)n,
                      ANSWER_BYTES);
    }
    ck_assert_uint_eq(n - 1, ANSWER_BYTES + 1);
    PQfinish(direct);
    wire_proxy_close(p);
}
END_TEST

START_TEST(a_commit_that_is_held_arrives_late)
{
    unsigned wire;
    char answer[64] = "";
    PGconn *direct = with_table();
    wire_proxy *p = open_proxy(_i);
    PGconn *c = begin_insert(p, &wire);
    int backend = PQbackendPID(c);
    ck_assert(wire_proxy_hold_after(p, wire, 0, COMMIT_BYTES, WIRE_RST));
    ck_assert_int_ne(commit(c), PGRES_COMMAND_OK);
    PQfinish(c);
    ck_assert_int_eq(rows(direct), 0);
    wire_proxy_release(p, wire);
    ck_assert(wire_proxy_wait(p, wire, WIRE_SERVER_GONE, 0, LIMIT_MS));
    ck_assert_uint_eq(wire_proxy_withheld(p, wire, WIRE_TO_CLIENT, answer, sizeof answer), ANSWER_BYTES);
    ck_assert_str_eq(answer + 5, "COMMIT");
    await_end_of(direct, backend);
    ck_assert_int_eq(rows(direct), 1);
    PQfinish(direct);
    wire_proxy_close(p);
}
END_TEST

START_TEST(a_server_that_is_not_told_keeps_the_transaction)
{
    unsigned wire;
    char sql[100];
    PGconn *direct = with_table();
    wire_proxy *p = open_proxy(_i);
    PGconn *c = begin_insert(p, &wire);
    int backend = PQbackendPID(c);
    ck_assert(wire_proxy_cut_after(p, wire, WIRE_TO_SERVER, 5, WIRE_RST | WIRE_KEEP_SERVER));
    ck_assert_int_ne(commit(c), PGRES_COMMAND_OK);
    PQfinish(c);
    snprintf(sql, sizeof sql, "SELECT count(*) FROM pg_locks WHERE pid = %d AND relation = 'proxied'::regclass",
             backend);
    ck_assert_int_eq(number(direct, sql), 1);
    wire_proxy_cut(p, wire, WIRE_RST);
    await_end_of(direct, backend);
    ck_assert_int_eq(rows(direct), 0);
    PQfinish(direct);
    wire_proxy_close(p);
}
END_TEST

START_TEST(a_stopped_answer_is_a_server_that_hangs)
{
    wire_proxy *p = open_proxy(_i);
    PGconn *c = connect_by(wire_proxy_conninfo(p));
    unsigned wire = wire_proxy_connections(p);
    ck_assert(wire_proxy_mark(p, wire));
    ck_assert(wire_proxy_stop_after(p, wire, WIRE_TO_CLIENT, 0));
    ck_assert(PQsendQuery(c, "SELECT 7"));
    ck_assert(wire_proxy_wait(p, wire, WIRE_FIRED, 0, LIMIT_MS));
    struct pollfd answer = {.fd = PQsocket(c), .events = POLLIN};
    ck_assert_int_eq(poll(&answer, 1, QUIET_MS), 0);
    wire_proxy_release(p, wire);
    PGresult *r = PQgetResult(c);
    ck_assert_str_eq(PQgetvalue(r, 0, 0), "7");
    PQclear(r);
    PQfinish(c);
    wire_proxy_close(p);
}
END_TEST

START_TEST(a_proxy_that_refuses_is_a_server_that_is_away)
{
    wire_proxy *p = open_proxy(_i);
    wire_proxy_admit(p, WIRE_REFUSE);
    PGconn *c = PQconnectdb(wire_proxy_conninfo(p));
    ck_assert_int_eq(PQstatus(c), CONNECTION_BAD);
    ck_assert_msg(strstr(PQerrorMessage(c), "Connection refused") != NULL, "%s", PQerrorMessage(c));
    wire_proxy_admit(p, WIRE_ADMIT);
    PQreset(c);
    ck_assert_int_eq(PQstatus(c), CONNECTION_OK);
    PQfinish(c);
    wire_proxy_close(p);
}
END_TEST

int main(void)
{
    if (getenv("GUARD_TEST_PG_SOCKET") == NULL) {
        fprintf(stderr, "no server; run by tests/with-postgres\n");
        return 77;
    }
    const TTest *const both[] = {
        libpq_works_through_it,
        a_cancel_request_is_a_further_connection,
        a_commit_that_is_held_arrives_late,
        a_server_that_is_not_told_keeps_the_transaction,
        a_stopped_answer_is_a_server_that_hangs,
        a_proxy_that_refuses_is_a_server_that_is_away,
    };
    const TTest *const four[] = {
        a_commit_whose_answer_is_cut_at_any_byte_is_done,
    };
    const TTest *const eight[] = {
        a_commit_cut_at_any_byte_is_done_only_when_its_last_byte_has_passed,
    };
    const suite_group groups[] = {
        {"TCP, Unix", 2, both, sizeof both / sizeof *both},
        {"TCP, Unix; FIN, RST", 4, four, sizeof four / sizeof *four},
        {"TCP, Unix; FIN, RST; drained, not", 8, eight, sizeof eight / sizeof *eight},
    };
    return suite_run_groups("pq_proxy", groups, sizeof groups / sizeof *groups);
}
