/* SPDX-License-Identifier: MIT */
/* check_pq_silent.c: a server that falls silent at any moment of connecting, lending or closing holds nobody past a deadline. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_pq.h>

#include "server.h"
#include "suite.h"
#include "wire_proxy.h"

static wire_proxy *proxy;

static void open_proxy(void)
{
    proxy = server_proxy();
}

/* --------------------------------------------------------------------------------------------------- connecting -- */

static void open_within_300_ms(void *arg)
{
    GUARD_AUTO(s);
    guard_pq_options options = {.connect_ms = 300};
    (void)arg;
    guard_pq_open(s, wire_proxy_conninfo(proxy), &options);
}

START_TEST(connecting_waits_no_longer_than_its_deadline_wherever_the_server_falls_silent)
{
    guard_error error;
    uint64_t length;
    open_proxy();
    {
        GUARD_AUTO(s);
        guard_pq_open(s, wire_proxy_conninfo(proxy), NULL);
        length = wire_proxy_look(proxy, 1).passed[WIRE_TO_CLIENT];
    }
    for (uint64_t n = 0; n < length; n = n + length / 8 < length - 1 || n == length - 1 ? n + length / 8 : length - 1) {
        unsigned wire = wire_proxy_connections(proxy) + 1;
        wire_proxy_stop_after(proxy, wire, WIRE_TO_CLIENT, n);
        int64_t begun = now_ms();
        ck_assert_msg(guard_run(open_within_300_ms, NULL, &error) != 0, "silent after byte %d: opened", (int)n);
        ck_assert_msg(error.domain == GUARD_TIMEOUT, "silent after byte %d: %s", (int)n, error.message);
        /* A rollback's 5 s are not among it. */
        ck_assert_msg(now_ms() - begun < 4500, "silent after byte %d: %d ms", (int)n, (int)(now_ms() - begun));
        wire_proxy_cut(proxy, wire, WIRE_RST);
    }
    wire_proxy_close(proxy);
}
END_TEST

static void open_for_ever(void *arg)
{
    GUARD_AUTO(s);
    guard_pq_options options = {.connect_ms = -1};
    (void)arg;
    guard_pq_open(s, wire_proxy_conninfo(proxy), &options);
}

static void take_for_ever(void *arg)
{
    GUARD_AUTO(s);
    guard_pq_pool_options options = {.connection = {.connect_ms = -1}, .take_ms = -1};
    (void)arg;
    guard_pq_pool_take(s, guard_pq_pool_open(s, wire_proxy_conninfo(proxy), &options), 0);
}

typedef struct canceller {
    pthread_t thread;
    unsigned connections; /* before */
} canceller;

static void *cancel_when_connecting(void *arg)
{
    const canceller *c = arg;
    while (wire_proxy_connections(proxy) == c->connections) {
        pause_ms(1);
    }
    guard_cancel_thread(c->thread);
    return NULL;
}

START_TEST(connecting_that_is_cancelled_says_so_and_not_that_the_server_was_slow)
{
    guard_fn *const bodies[] = {open_for_ever, take_for_ever};
    open_proxy();
    wire_proxy_admit(proxy, WIRE_SILENT);
    for (size_t i = 0; i < 2; i++) {
        guard_error error;
        pthread_t thread;
        canceller c = {pthread_self(), wire_proxy_connections(proxy)};
        ck_assert_int_eq(pthread_create(&thread, NULL, cancel_when_connecting, &c), 0);
        ck_assert_int_ne(guard_run(bodies[i], NULL, &error), 0);
        pthread_join(thread, NULL);
        guard_cancel_clear();
        ck_assert_msg(error.domain == GUARD_CANCELLED, "%s", error.message);
    }
    wire_proxy_close(proxy);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------- a pool -- */

typedef struct taker {
    guard_pq_pool *pool;
    int32_t ms;
    int code;
    guard_error error;
} taker;

static void take(void *arg)
{
    const taker *t = arg;
    GUARD_AUTO(s);
    guard_pq_pool_take(s, t->pool, t->ms);
}

static void *take_in_thread(void *arg)
{
    taker *t = arg;
    t->code = guard_run(take, t, &t->error);
    return NULL;
}

START_TEST(a_take_that_waited_in_vain_says_why_no_connection_could_be_made)
{
    GUARD_AUTO(s);
    pthread_t thread;
    open_proxy();
    guard_pq_pool_options options = {.max = 1};
    guard_pq_pool *pool = guard_pq_pool_open(s, wire_proxy_conninfo(proxy), &options);
    taker first = {.pool = pool, .ms = 2000};
    taker second = {.pool = pool, .ms = 100};
    wire_proxy_admit(proxy, WIRE_REFUSE);
    take_in_thread(&first);
    ck_assert_int_eq(first.error.domain, GUARD_PQ);
    wire_proxy_admit(proxy, WIRE_SILENT);
    unsigned wire = wire_proxy_connections(proxy) + 1;
    ck_assert_int_eq(pthread_create(&thread, NULL, take_in_thread, &first), 0);
    ck_assert(wire_proxy_wait(proxy, wire, WIRE_CONNECTED, 0, 10000));
    take_in_thread(&second);
    ck_assert_int_eq(second.error.domain, GUARD_TIMEOUT);
    ck_assert_uint_eq(second.error.cause_count, 1);
    ck_assert_int_eq(second.error.causes[0].domain, GUARD_PQ);
    ck_assert_int_eq(second.error.causes[0].code, GUARD_PQ_CONNECTION);
    pthread_join(thread, NULL);
    wire_proxy_admit(proxy, WIRE_ADMIT);
    {
        GUARD_AUTO(inner);
        guard_pq_pool_take(inner, pool, 0);
        take_in_thread(&second);
        ck_assert_int_eq(second.error.domain, GUARD_TIMEOUT);
        ck_assert_uint_eq(second.error.cause_count, 0); /* they can be made again */
    }
    wire_proxy_close(proxy);
}
END_TEST

START_TEST(a_pool_is_closed_while_its_keeper_connects_for_ever)
{
    open_proxy();
    wire_proxy_admit(proxy, WIRE_SILENT);
    {
        GUARD_AUTO(s);
        guard_pq_pool_options options = {.min = 1, .connection.connect_ms = -1};
        guard_pq_pool_open(s, wire_proxy_conninfo(proxy), &options);
        ck_assert(wire_proxy_wait(proxy, 1, WIRE_CONNECTED, 0, 10000));
    }
    wire_proxy_close(proxy);
}
END_TEST

static void write_row(guard_tx *tx, void *arg)
{
    char sql[60];
    snprintf(sql, sizeof(sql), "INSERT INTO t VALUES (%d)", *(int *)arg);
    guard_pq_exec(NULL, guard_pq_of(tx), sql);
}

/* Each has a marker row to take back. */
START_TEST(closing_many_connections_of_a_silent_server_takes_as_long_as_closing_one)
{
    enum { CONNECTIONS = 4, ROLLBACK_MS = 2000 };
    int64_t begun;
    server_reset();
    open_proxy();
    {
        GUARD_AUTO(s);
        guard_pq_pool_options options = {.max = CONNECTIONS,
                                         .connection = {.rollback_ms = ROLLBACK_MS, .marker = GUARD_PQ_MARKER_ROW}};
        guard_pq_pool *pool = guard_pq_pool_open(s, wire_proxy_conninfo(proxy), &options);
        {
            GUARD_AUTO(inner);
            for (int i = 0; i < CONNECTIONS; i++) {
                guard_pq *pq = guard_pq_pool_take(inner, pool, 0);
                ck_assert_int_eq(guard_pq_transact(pq, write_row, &i, NULL, NULL), GUARD_COMMITTED);
            }
        }
        for (unsigned wire = 1; wire <= wire_proxy_connections(proxy); wire++) {
            wire_proxy_mark(proxy, wire);
            wire_proxy_stop_after(proxy, wire, WIRE_TO_CLIENT, 0);
        }
        begun = now_ms();
    }
    ck_assert_int_lt(now_ms() - begun, 3 * ROLLBACK_MS);
    wire_proxy_close(proxy);
}
END_TEST

/* ---------------------------------------------------------------------------------------------------- statements -- */

static void send_a_large_statement(void *arg)
{
    static char sql[40000000];
    memset(sql, ' ', sizeof(sql) - 10);
    memcpy(sql, "SELECT 1", 8);
    guard_pq_exec(NULL, arg, sql);
}

/* Whatever mode the program has left libpq's connection in. */
START_TEST(a_connection_that_was_set_to_blocking_blocks_no_statement_past_its_deadline)
{
    GUARD_AUTO(s);
    guard_error error;
    open_proxy();
    guard_pq_options options = {.statement_ms = 200, .rollback_ms = 200};
    guard_pq *pq = guard_pq_open(s, wire_proxy_conninfo(proxy), &options);
    ck_assert_int_eq(PQsetnonblocking(guard_pq_raw(pq), 0), 0);
    wire_proxy_stop_after(proxy, 1, WIRE_TO_SERVER, 0);
    ck_assert_int_ne(guard_run(send_a_large_statement, pq, &error), 0);
    ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
    wire_proxy_close(proxy);
}
END_TEST

static void roll_back_a_copy_that_nobody_takes(void *raw)
{
    static const char bytes[65536];
    GUARD_AUTO(s);
    guard_pq_options options = {.rollback_ms = 300};
    guard_tx *tx = guard_pq_begin(s, guard_pq_adopt(s, raw, &options), NULL);
    PQclear(PQexec(raw, "COPY t FROM STDIN"));
    wire_proxy_stop_after(proxy, 1, WIRE_TO_SERVER, 0);
    while (send(PQsocket(raw), bytes, sizeof(bytes), MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {
        /* The socket takes no more. */
    }
    ck_assert_int_eq(PQputCopyData(raw, "1\t\\N\n", 5), 1); /* stays in libpq's buffer */
    guard_tx_rollback(tx);
}

START_TEST(a_blocking_connection_that_has_something_to_send_holds_no_rollback_past_its_deadline)
{
    guard_error error;
    open_proxy();
    server_reset();
    PGconn *raw = server_connect(wire_proxy_conninfo(proxy));
    ck_assert_int_ne(guard_run(roll_back_a_copy_that_nobody_takes, raw, &error), 0);
    ck_assert_msg(error.domain == GUARD_TX && error.code == GUARD_TX_ROLLBACK, "%s", error.message);
    PQfinish(raw);
    wire_proxy_close(proxy);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        connecting_waits_no_longer_than_its_deadline_wherever_the_server_falls_silent,
        connecting_that_is_cancelled_says_so_and_not_that_the_server_was_slow,
        a_take_that_waited_in_vain_says_why_no_connection_could_be_made,
        a_pool_is_closed_while_its_keeper_connects_for_ever,
        closing_many_connections_of_a_silent_server_takes_as_long_as_closing_one,
        a_connection_that_was_set_to_blocking_blocks_no_statement_past_its_deadline,
        a_blocking_connection_that_has_something_to_send_holds_no_rollback_past_its_deadline,
    };
    return suite_run("pq_silent", tests, sizeof tests / sizeof *tests);
}
