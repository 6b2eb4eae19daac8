/* SPDX-License-Identifier: MIT */
/*
 * check_pq_encoding.c: text in the client's encodings whose characters have a backslash, or another byte that means something in SQL, as their
 * second byte.
 */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "server.h"
#include "suite.h"
#include "wire_proxy.h"

/* A character whose second byte is 0x5c, and what it is in the server's UTF-8. */
static const struct {
    const char *encoding, *client, *server;
} characters[] = {
    {"SJIS", "\x95\x5c", "\xe8\xa1\xa8"},
    {"BIG5", "\xa5\x5c", "\xe5\x8a\x9f"},
    {"GBK", "\x81\x5c", "\xe4\xb9\x97"},
    {"GB18030", "\x81\x5c", "\xe4\xb9\x97"},
    {"SHIFT_JIS_2004", "\x95\x5c", "\xe8\xa1\xa8"},
};
enum { CHARACTERS = sizeof characters / sizeof *characters };

static void set_encoding(guard_pq *pq, const char *encoding)
{
    char sql[64];
    snprintf(sql, sizeof(sql), "SET client_encoding = '%s'", encoding);
    guard_pq_exec(NULL, pq, sql);
}

static void insert_one(guard_tx *tx, void *arg)
{
    (void)arg;
    guard_pq_exec(NULL, guard_pq_of(tx), "INSERT INTO t VALUES (1)");
}

static int64_t listed(const char *name)
{
    char sql[200];
    snprintf(sql, sizeof(sql), "SELECT count(*) FROM pg_prepared_xacts WHERE gid = '%s'", name);
    return server_number(sql);
}

START_TEST(a_prepared_transaction_has_the_name_that_it_was_given)
{
    for (size_t i = 0; i < CHARACTERS; i++) {
        for (int escapes = 0; escapes < 2; escapes++) {
            GUARD_AUTO(s);
            char name[32];
            char on_server[32];
            guard_result result;
            server_reset();
            guard_pq *pq = guard_pq_open(s, escapes ? "options='-c standard_conforming_strings=off'" : "", NULL);
            set_encoding(pq, characters[i].encoding);
            snprintf(name, sizeof(name), "it's %s", characters[i].client);
            snprintf(on_server, sizeof(on_server), "it''s %s", characters[i].server);
            guard_pq_tx_options options = {.prepare_as = name};
            guard_outcome told = guard_pq_transact(pq, insert_one, NULL, &options, &result);
            ck_assert_msg(told == GUARD_PREPARED, "%s: %s, %s", characters[i].encoding, guard_outcome_name(told),
                          result.error.message);
            ck_assert_int_eq(listed(on_server), 1);
            guard_pq_prepared_commit(pq, name);
            ck_assert_int_eq(listed(on_server), 0);
            ck_assert_int_eq(server_rows(1), 1);
        }
    }
}
END_TEST

static void begin_as(void *arg)
{
    GUARD_AUTO(s);
    const guard_pq_tx_options options = {.prepare_as = ((void **)arg)[1]};
    guard_pq_begin(s, ((void **)arg)[0], &options);
}

static void commit_as(void *arg)
{
    guard_pq_prepared_commit(((void **)arg)[0], ((void **)arg)[1]);
}

START_TEST(a_name_that_is_no_text_of_the_encoding_is_refused_at_begin)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_fn *const calls[] = {begin_as, commit_as};
    server_reset();
    guard_pq *pq = guard_pq_open(s, "client_encoding=SJIS", NULL);
    for (size_t i = 0; i < 2; i++) {
        ck_assert_int_ne(guard_run(calls[i], (void *[]){pq, (void *)"cut off \x95"}, &error), 0);
        ck_assert_int_eq(error.domain, GUARD_PQ);
        ck_assert_int_eq(error.code, GUARD_PQ_CLIENT);
    }
    ck_assert_int_eq(guard_pq_transact(pq, insert_one, NULL, NULL, NULL), GUARD_COMMITTED);
}
END_TEST

START_TEST(a_role_of_such_a_name_is_granted_the_marker_table)
{
    GUARD_AUTO(s);
    server_reset();
    server_run("DROP ROLE IF EXISTS \"\xe8\xa1\xa8\"; CREATE ROLE \"\xe8\xa1\xa8\"");
    guard_pq *pq = guard_pq_open(s, "client_encoding=SJIS", NULL);
    guard_pq_marker_install(pq, "\x95\x5c");
    ck_assert_int_eq(server_number("SELECT has_table_privilege('\xe8\xa1\xa8', 'guard_marker', 'INSERT')::int"), 1);
    server_run("DROP OWNED BY \"\xe8\xa1\xa8\"; DROP ROLE \"\xe8\xa1\xa8\"");
}
END_TEST

/* ------------------------------------------------------------------------------------------------- what is lost -- */

typedef struct lost {
    wire_proxy *proxy;
    unsigned wire;
    const char *encoding;
    const char *sql;
} lost;

static void run_and_lose(guard_tx *tx, void *arg)
{
    lost *l = arg;
    wire_proxy_mark(l->proxy, l->wire);
    wire_proxy_cut_after(l->proxy, l->wire, WIRE_TO_CLIENT, 0, WIRE_FIN | WIRE_DRAIN);
    guard_pq_exec(NULL, guard_pq_of(tx), l->sql);
}

static guard_outcome lose(lost *l, const char *sql)
{
    GUARD_AUTO(s);
    server_run("DELETE FROM t");
    guard_pq *pq = guard_pq_open(s, wire_proxy_conninfo(l->proxy), NULL);
    l->wire = wire_proxy_connections(l->proxy);
    l->sql = sql;
    set_encoding(pq, l->encoding);
    guard_outcome told = guard_pq_transact(pq, run_and_lose, l, NULL, NULL);
    server_wait_settled();
    return told;
}

START_TEST(a_lost_commit_behind_such_a_text_is_in_doubt)
{
    lost l = {.proxy = server_proxy()};
    server_reset();
    for (size_t i = 0; i < CHARACTERS; i++) {
        char sql[100];
        l.encoding = characters[i].encoding;
        snprintf(sql, sizeof(sql), "INSERT INTO t VALUES (1, E'%s'); COMMIT", characters[i].client);
        guard_outcome told = lose(&l, sql);
        ck_assert_msg(told == GUARD_IN_DOUBT, "%s: %s", l.encoding, guard_outcome_name(told));
        ck_assert_int_eq(server_rows(1), 1);
        snprintf(sql, sizeof(sql), "INSERT INTO t VALUES (1, E'%s\\'; COMMIT')", characters[i].client);
        told = lose(&l, sql);
        ck_assert_msg(told == GUARD_ROLLED_BACK, "%s: %s", l.encoding, guard_outcome_name(told));
        ck_assert_int_eq(server_rows(1), 0);
    }
    wire_proxy_close(l.proxy);
}
END_TEST

static void write_and_lose(guard_tx *tx, void *arg)
{
    lost *l = arg;
    guard_pq_exec(NULL, guard_pq_of(tx), l->sql);
    wire_proxy_mark(l->proxy, l->wire);
    wire_proxy_cut_after(l->proxy, l->wire, WIRE_TO_CLIENT, 0, WIRE_FIN | WIRE_DRAIN);
}

/* As its key means something else in the encoding that the connection began with. */
START_TEST(a_probe_is_asked_in_the_encoding_that_the_program_has_set)
{
    lost l = {.proxy = server_proxy()};
    for (int raw = 0; raw < 2; raw++) {
        GUARD_AUTO(s);
        char conninfo[200];
        guard_result result;
        server_reset();
        snprintf(conninfo, sizeof(conninfo), "%s client_encoding=LATIN1", wire_proxy_conninfo(l.proxy));
        guard_pq *pq = guard_pq_open(s, conninfo, NULL);
        l.wire = wire_proxy_connections(l.proxy);
        l.sql = "INSERT INTO t VALUES (1, 'Zo\xc3\xab')";
        if (raw) {
            ck_assert_int_eq(PQsetClientEncoding(guard_pq_raw(pq), "UTF8"), 0);
        } else {
            set_encoding(pq, "UTF8");
        }
        guard_pq_tx_options options = {.probe = "SELECT 1 FROM t WHERE note = $1", .probe_key = "Zo\xc3\xab"};
        guard_outcome told = guard_pq_transact(pq, write_and_lose, &l, &options, &result);
        ck_assert_msg(told == GUARD_COMMITTED, "%s: %s", guard_outcome_name(told), result.error.message);
        ck_assert_int_eq(server_rows(1), 1);
    }
    wire_proxy_close(l.proxy);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_prepared_transaction_has_the_name_that_it_was_given,
        a_name_that_is_no_text_of_the_encoding_is_refused_at_begin,
        a_role_of_such_a_name_is_granted_the_marker_table,
        a_lost_commit_behind_such_a_text_is_in_doubt,
        a_probe_is_asked_in_the_encoding_that_the_program_has_set,
    };
    return suite_run("pq_encoding", tests, sizeof tests / sizeof *tests);
}
