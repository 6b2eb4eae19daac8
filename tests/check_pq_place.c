/* SPDX-License-Identifier: MIT */
/*
 * check_pq_place.c: that a row is not there is believed only where it would be: not of a marker table that was emptied or put back, nor
 * of another database or cluster, a standby that is behind, or a primary that was replaced.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "pq_table.h"
#include "suite.h"
#include "wire_proxy.h"

/* A transaction whose answer is lost while nobody can be asked. */
typedef struct lost {
    int id;
    int marker;
    bool done; /* COMMIT has reached the server */
    char key[16];
    guard_pq_tx_options options;
    guard_result result;
    wire_proxy *proxy;
    unsigned wire;
} lost;

static const int markers[] = {GUARD_PQ_MARKER_ROW, GUARD_PQ_MARKER_PROBE, GUARD_PQ_MARKER_STATUS};
/* How long is looked for what is to be found, also on a busy machine, and for what is not. */
enum { PATIENT_MS = 20000, BRIEF_MS = 500 };

#define MARKERS (sizeof markers / sizeof *markers)

static void write_and_lose(guard_tx *tx, void *arg)
{
    lost *l = arg;
    char sql[64];
    snprintf(sql, sizeof(sql), "INSERT INTO t VALUES (%d)", l->id);
    guard_pq_exec(NULL, guard_pq_of(tx), sql);
    wire_proxy_mark(l->proxy, l->wire);
    if (l->done) {
        /* The status marker asks for the number first, whose answer passes. */
        uint64_t number = 87 + (uint64_t)server_number("SELECT length(pg_current_xact_id()::text)") + 3;
        uint64_t n = l->marker == GUARD_PQ_MARKER_STATUS ? number : 0;
        wire_proxy_cut_after(l->proxy, l->wire, WIRE_TO_CLIENT, n, WIRE_RST | WIRE_DRAIN);
    } else {
        wire_proxy_cut_after(l->proxy, l->wire, WIRE_TO_SERVER, l->marker == GUARD_PQ_MARKER_STATUS ? 60 : 3, WIRE_RST);
    }
    wire_proxy_admit(l->proxy, WIRE_REFUSE);
}

/* Through a proxy to the server at `port` of the tests' socket folder. */
static void lose(lost *l, int port)
{
    GUARD_AUTO(s);
    snprintf(l->key, sizeof(l->key), "%d", l->id);
    l->options = (guard_pq_tx_options){.marker = l->marker, .resolve_ms = 50};
    if (l->marker == GUARD_PQ_MARKER_PROBE) {
        l->options.probe = "SELECT 1 FROM t WHERE id = $1::int";
        l->options.probe_key = l->key;
    }
    l->proxy = wire_proxy_open(getenv("GUARD_TEST_PG_SOCKET"), port, NULL);
    ck_assert_ptr_nonnull(l->proxy);
    guard_pq *pq = guard_pq_open(s, wire_proxy_conninfo(l->proxy), NULL);
    l->wire = wire_proxy_connections(l->proxy);
    guard_outcome told = guard_pq_transact(pq, write_and_lose, l, &l->options, &l->result);
    ck_assert_msg(told == GUARD_IN_DOUBT, "marker %d: %s", l->marker, guard_outcome_name(told));
    l->options.resolve_ms = PATIENT_MS;
    guard_pq_close(pq);
    wire_proxy_close(l->proxy);
}

static int main_port(void)
{
    return atoi(getenv("GUARD_TEST_PG_PORT"));
}

static guard_outcome look(const char *conninfo, const char *token, lost *l, guard_error *error)
{
    memset(error, 0, sizeof(*error));
    return guard_pq_resolve_from(conninfo, NULL, token, &l->options, error);
}

static void expect_place(guard_outcome told, const guard_error *error, const char *what)
{
    ck_assert_msg(told == GUARD_IN_DOUBT, "%s: \"%s\"", what, guard_outcome_name(told));
    ck_assert_msg(error->domain == GUARD_PQ && error->code == GUARD_PQ_PLACE, "%s: %s", what, error->message);
}

static void install(void)
{
    GUARD_AUTO(s);
    guard_pq_marker_install(guard_pq_open(s, "", NULL), NULL);
}

/* ------------------------------------------------------------------------------------------------ the table -- */

START_TEST(a_marker_table_that_was_emptied_or_put_back_proves_no_rollback)
{
    static const char *const harms[] = {
        "TRUNCATE guard_marker",
        "DELETE FROM guard_marker",
        "DROP TABLE guard_marker",
        /* From a copy that is older than the transaction. */
        "DELETE FROM guard_marker; INSERT INTO guard_marker SELECT * FROM copy",
        ("DROP TABLE guard_marker; ALTER TABLE copy RENAME TO guard_marker;"
         "ALTER TABLE guard_marker ADD PRIMARY KEY (session, seq)"),
    };
    for (size_t i = 0; i < sizeof harms / sizeof *harms; i++) {
        for (int installed = 0; installed < 2; installed++) {
            guard_error error;
            server_reset();
            server_run("DROP TABLE IF EXISTS copy; CREATE TABLE copy AS TABLE guard_marker");
            lost l = {.id = 1, .marker = GUARD_PQ_MARKER_ROW, .done = true};
            lose(&l, main_port());
            ck_assert_int_eq(server_rows(1), 1);
            server_run(harms[i]);
            if (installed) {
                install();
            }
            l.options.resolve_ms = installed ? PATIENT_MS : BRIEF_MS;
            guard_outcome told = look("", l.result.token, &l, &error);
            ck_assert_msg(told == GUARD_IN_DOUBT, "%s: \"%s\"", harms[i], guard_outcome_name(told));
            if (installed) {
                expect_place(told, &error, harms[i]);
                /* And no fence was left behind. */
                ck_assert_int_eq(server_number("SELECT count(*) FROM guard_marker WHERE made < 'infinity'"), 0);
            }
        }
    }
}
END_TEST

START_TEST(a_row_that_is_there_and_what_leaves_the_table_the_same_are_believed)
{
    static const char *const harmless[] = {
        "VACUUM FULL guard_marker", "VACUUM FREEZE guard_marker", "REINDEX TABLE guard_marker",
        "DELETE FROM guard_marker WHERE made < now() - interval '1 day'", "SELECT 1"};
    server_reset();
    for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++) {
        guard_error error;
        lost yes = {.id = 1 + 2 * (int)i, .marker = GUARD_PQ_MARKER_ROW, .done = true};
        lost no = {.id = 2 + 2 * (int)i, .marker = GUARD_PQ_MARKER_ROW};
        lose(&yes, main_port());
        lose(&no, main_port());
        server_run(harmless[i]);
        install();
        ck_assert_msg(look("", yes.result.token, &yes, &error) == GUARD_COMMITTED, "%s: %s", harmless[i],
                      error.message);
        ck_assert_msg(look("", no.result.token, &no, &error) == GUARD_ROLLED_BACK, "%s: %s", harmless[i],
                      error.message);
    }
    ck_assert_int_eq(server_number("SELECT count(*) FROM guard_marker WHERE made = 'infinity'"), 1);
}
END_TEST

START_TEST(a_marker_table_without_its_own_row_is_a_clear_panic_at_begin)
{
    GUARD_AUTO(s);
    guard_error error;
    server_reset();
    server_run("TRUNCATE guard_marker");
    guard_pq *pq = guard_pq_open(s, "", NULL);
    ck_assert_int_ne(guard_run(pq_begin_with_row, pq, &error), 0);
    ck_assert_int_eq(error.code, GUARD_PQ_MARKER);
    ck_assert_ptr_nonnull(strstr(error.message, "was emptied"));
    guard_pq_marker_install(pq, NULL);
    ck_assert_int_eq(guard_run(pq_begin_with_row, pq, &error), 0);
}
END_TEST

static void insert_and_lose(guard_tx *tx, void *arg)
{
    lost *l = arg;
    guard_pq_exec(NULL, guard_pq_of(tx), "INSERT INTO public.t VALUES (1)");
    wire_proxy_mark(l->proxy, l->wire);
    wire_proxy_cut_after(l->proxy, l->wire, WIRE_TO_CLIENT, 0, WIRE_RST | WIRE_DRAIN);
}

/* Two tables of that name; the resolver's connection has the search_path that the first one had. */
START_TEST(a_search_path_that_is_set_later_does_not_part_the_marker_from_its_resolver)
{
    GUARD_AUTO(s);
    server_reset();
    server_run("DROP SCHEMA IF EXISTS app CASCADE; CREATE SCHEMA app; CREATE TABLE app.guard_marker (LIKE guard_marker "
               "INCLUDING ALL)");
    lost l = {.proxy = server_proxy()};
    guard_pq_options options = {.marker = GUARD_PQ_MARKER_ROW, .marker_table = "guard_marker"};
    guard_pq *pq = guard_pq_open(s, wire_proxy_conninfo(l.proxy), &options);
    l.wire = wire_proxy_connections(l.proxy);
    ck_assert_int_eq(guard_pq_transact(pq, pq_do_nothing, NULL, NULL, NULL), GUARD_COMMITTED);
    guard_pq_exec(NULL, pq, "SET search_path = app");
    ck_assert_int_eq(guard_pq_transact(pq, insert_and_lose, &l, NULL, &l.result), GUARD_COMMITTED);
    ck_assert(l.result.notes & GUARD_NOTE_RESOLVED);
    ck_assert_int_eq(server_rows(1), 1);
    wire_proxy_close(l.proxy);
}
END_TEST

/* ---------------------------------------------------------------------------------- another database, another role -- */

START_TEST(another_database_of_the_cluster_proves_nothing)
{
    server_reset();
    server_run("DROP DATABASE IF EXISTS other");
    server_run("CREATE DATABASE other TEMPLATE template0");
    PGconn *other = server_connect("dbname=other");
    PQclear(PQexec(other, "CREATE TABLE t(id integer PRIMARY KEY, note text)"));
    PQfinish(other);
    GUARD_AUTO(s);
    guard_pq_marker_install(guard_pq_open(s, "dbname=other", NULL), NULL);
    for (size_t i = 0; i < MARKERS; i++) {
        guard_error error;
        lost l = {.id = 1 + (int)i, .marker = markers[i], .done = true};
        lose(&l, main_port());
        expect_place(look("dbname=other", l.result.token, &l, &error), &error, "the other database");
    }
}
END_TEST

/* The token says another cluster, as one of it would. */
/* A token as another cluster would have written it: its checksum is FNV-1a of all before it. */
static void write_checksum(char *token)
{
    unsigned sum = 2166136261U;
    char *at = token;
    for (; *at != '~'; at++) {
        sum = (sum ^ (unsigned char)*at) * 16777619U;
    }
    snprintf(at + 1, 9, "%08x", sum);
}

START_TEST(another_cluster_proves_nothing)
{
    server_reset();
    for (size_t i = 0; i < MARKERS; i++) {
        guard_error error;
        lost l = {.id = 1 + (int)i, .marker = markers[i], .done = true};
        lose(&l, main_port());
        char *digit = strchr(l.result.token, '@') + 1;
        *digit = *digit == '9' ? '1' : (char)(*digit + 1);
        write_checksum(l.result.token);
        expect_place(look("", l.result.token, &l, &error), &error, "the other cluster");
    }
}
END_TEST

START_TEST(a_role_that_reads_only_by_default_is_no_obstacle)
{
    guard_error error;
    server_reset();
    lost l = {.id = 1, .marker = GUARD_PQ_MARKER_ROW, .done = true};
    lose(&l, main_port());
    ck_assert_msg(look("options='-c default_transaction_read_only=on'", l.result.token, &l, &error) == GUARD_COMMITTED,
                  "%s", error.message);
}
END_TEST

/* ------------------------------------------------------------------------------------------------- garbled tokens -- */

static void expect_no_token(const char *token, lost *l)
{
    guard_error error;
    guard_outcome told = look("", token, l, &error);
    ck_assert_msg(told == GUARD_IN_DOUBT && error.code == GUARD_PQ_TOKEN, "\"%s\" for \"%s\": \"%s\"", token,
                  l->result.token, guard_outcome_name(told));
}

/* What is left of a token on a full disk is the number of another transaction. */
START_TEST(a_token_that_was_cut_off_or_garbled_where_it_was_kept_is_none)
{
    server_reset();
    for (size_t i = 0; i < MARKERS; i++) {
        char token[GUARD_TOKEN_SIZE];
        lost l = {.id = 1 + (int)i, .marker = markers[i], .done = true};
        lose(&l, main_port());
        l.options.resolve_ms = BRIEF_MS;
        for (size_t length = strlen(l.result.token); length-- > 0;) {
            snprintf(token, sizeof(token), "%.*s", (int)length, l.result.token);
            expect_no_token(token, &l);
        }
        for (size_t at = 0; at < strlen(l.result.token); at++) {
            snprintf(token, sizeof(token), "%s", l.result.token);
            token[at] = token[at] == '1' ? '2' : '1';
            expect_no_token(token, &l);
        }
    }
}
END_TEST

/* -------------------------------------------------------------------------------------- standby, former primary -- */

/* Of the standby in the tests' folder: no TCP, so that its port is only the name of its socket. */
#define STANDBY_PORT 1

static char folder[400];

/* Runs a command of the server's programs as the server's user. */
static void run_as_server(const char *command)
{
    char sql[1000];
    snprintf(sql, sizeof(sql), "COPY (SELECT 1) TO PROGRAM $c$ %s $c$", command);
    server_run(sql);
}

static void control_standby(const char *arguments)
{
    char text[2000];
    snprintf(text, sizeof(text), "-D '%s' -l '%s/log' %s", folder, folder, arguments);
    server_control(text);
}

static void remove_standby(void)
{
    char text[500];
    control_standby("-m immediate stop");
    snprintf(text, sizeof(text), "rm -rf '%s'", folder);
    run_as_server(text);
}

static PGconn *connect_standby(void)
{
    char text[40];
    snprintf(text, sizeof(text), "port=%d", STANDBY_PORT);
    return server_connect(text);
}

static void ask_standby(PGconn *conn, const char *sql)
{
    PGresult *result = PQexec(conn, sql);
    ck_assert_msg(PQresultStatus(result) == PGRES_TUPLES_OK || PQresultStatus(result) == PGRES_COMMAND_OK, "%s: %s",
                  sql, PQerrorMessage(conn));
    PQclear(result);
}

/* A standby that has everything up to now, and nothing from now on. */
static PGconn *make_standby_that_is_behind(void)
{
    char text[900];
    snprintf(folder, sizeof(folder), "%s/standby", getenv("GUARD_TEST_PG_SOCKET"));
    snprintf(text, sizeof(text), "pg_basebackup -h %s -p %d -U postgres -D %s -R -c fast -X stream -N",
             getenv("GUARD_TEST_PG_SOCKET"), main_port(), folder);
    run_as_server(text);
    snprintf(text, sizeof(text), "-o \"-c listen_addresses= -p %d -c restart_after_crash=off\" start", STANDBY_PORT);
    control_standby(text);
    PGconn *conn = connect_standby();
    /* What was written before has come. */
    int64_t there = 0;
    for (int i = 0; i < 1000 && there == 0; i++) {
        PGresult *rows = PQexec(conn, "SELECT count(*) FROM pg_class WHERE relname = 'guard_marker'");
        there = atoi(PQgetvalue(rows, 0, 0));
        PQclear(rows);
    }
    ask_standby(conn, "SELECT pg_wal_replay_pause()");
    for (int i = 0, paused = 0; i < 10000 && !paused; i++) {
        PGresult *rows = PQexec(conn, "SELECT pg_get_wal_replay_pause_state()");
        paused = strcmp(PQgetvalue(rows, 0, 0), "paused") == 0;
        PQclear(rows);
    }
    return conn;
}

/* As of an engine, or a role, that does not say where it is: then only that it is a standby is known. */
static void expect_nothing_without_a_place(const lost *l)
{
    GUARD_AUTO(s);
    char text[100];
    char token[GUARD_TOKEN_SIZE];
    guard_error error;
    guard_pq_tx_options options = l->options;
    options.resolve_ms = BRIEF_MS;
    snprintf(token, sizeof(token), "%.*s~", (int)strcspn(l->result.token, "@"), l->result.token);
    write_checksum(token);
    snprintf(text, sizeof(text), "user=app port=%d", STANDBY_PORT);
    guard_outcome told = guard_pq_resolve(guard_pq_open(s, text, NULL), token, &options, &error);
    ck_assert_msg(told == GUARD_IN_DOUBT, "marker %d, on the standby: \"%s\"", l->marker, guard_outcome_name(told));
}

/* The standby would give a probe's lock at once and find no row. */
static void expect_nothing_from_the_standby(lost *l)
{
    GUARD_AUTO(s);
    char text[100];
    guard_error error;
    snprintf(text, sizeof(text), "port=%d", STANDBY_PORT);
    guard_pq *standby = guard_pq_open(s, text, NULL);
    l->options.resolve_ms = BRIEF_MS;
    guard_outcome told = guard_pq_resolve(standby, l->result.token, &l->options, &error);
    ck_assert_msg(told == GUARD_IN_DOUBT, "marker %d, on the standby: \"%s\"", l->marker, guard_outcome_name(told));
    l->options.resolve_ms = l->marker == GUARD_PQ_MARKER_STATUS ? BRIEF_MS : PATIENT_MS;
    /* The list leads to the primary. */
    snprintf(text, sizeof(text), "host=%s,%s port=%d,%d", getenv("PGHOST"), getenv("PGHOST"), STANDBY_PORT,
             main_port());
    told = look(text, l->result.token, l, &error);
    ck_assert_msg(told == (l->marker == GUARD_PQ_MARKER_STATUS ? GUARD_IN_DOUBT : GUARD_COMMITTED),
                  "marker %d, by the list: \"%s\" (%s)", l->marker, guard_outcome_name(told), error.message);
}

/*
 * A session that was opened on the standby outlives its promotion. The server tells that in_hot_standby is over with its answer to the next
 * BEGIN only.
 */
typedef struct early {
    guard_owner *owner;
    guard_pq *pq;
    lost lost;
} early;

static void only_read(guard_tx *tx, void *arg)
{
    (void)arg;
    ck_assert_int_eq(guard_pq_query_int64(guard_pq_of(tx), "SELECT 1", 0), 1);
}

static early open_on_standby(void)
{
    early e = {.owner = guard_owner_new(), .lost = {.id = 30, .marker = GUARD_PQ_MARKER_ROW, .done = true}};
    e.lost.proxy = wire_proxy_open(getenv("GUARD_TEST_PG_SOCKET"), STANDBY_PORT, NULL);
    e.pq = guard_pq_open(guard_owner_scope(e.owner), wire_proxy_conninfo(e.lost.proxy), NULL);
    e.lost.wire = wire_proxy_connections(e.lost.proxy);
    e.lost.options = (guard_pq_tx_options){.marker = GUARD_PQ_MARKER_ROW, .resolve_ms = 50};
    ck_assert_int_eq(guard_pq_transact(e.pq, only_read, NULL, &e.lost.options, NULL), GUARD_COMMITTED);
    return e;
}

static void only_write(guard_tx *tx, void *arg)
{
    (void)arg;
    guard_pq_exec(NULL, guard_pq_of(tx), "INSERT INTO t VALUES (29)");
}

static void lose_after_promotion(early *e, const char *at_standby)
{
    guard_error error;
    ck_assert_int_eq(guard_pq_transact(e->pq, only_write, NULL, &e->lost.options, NULL), GUARD_COMMITTED);
    ck_assert_int_eq(
        guard_pq_query_int64(e->pq, "SELECT count(*) FROM guard_marker m JOIN t ON m.xmin = t.xmin WHERE id = 29", 0),
        1);
    ck_assert_int_eq(guard_pq_transact(e->pq, write_and_lose, &e->lost, &e->lost.options, &e->lost.result),
                     GUARD_IN_DOUBT);
    const char *token = e->lost.result.token;
    ck_assert_uint_eq(e->lost.result.notes & GUARD_NOTE_NO_ROW_WRITTEN, 0);
    ck_assert_msg(strncmp(token, "pq:row:", 7) == 0 && strstr(token, ".00000002+") != NULL, "the token is %s", token);
    e->lost.options.resolve_ms = BRIEF_MS;
    guard_outcome told = look("", token, &e->lost, &error);
    expect_place(told, &error, "the former primary, for a session that is older than the promotion");
    e->lost.options.resolve_ms = PATIENT_MS;
    ck_assert_msg(look(at_standby, token, &e->lost, &error) == GUARD_COMMITTED, "%s", error.message);
    guard_owner_close(e->owner);
    wire_proxy_close(e->lost.proxy);
}

/*
 * A transaction prepared on the former primary, which its successor never had: there its number is another one's. COMMIT PREPARED is
 * lost on its way to the former primary, and what can be asked then is the successor.
 */
static void give_numbers_until(int wanted)
{
    char sql[80];
    PGconn *promoted = connect_standby();
    snprintf(sql, sizeof(sql), "SELECT (pg_current_xact_id()::text::bigint > %d)::int", wanted);
    for (int more = 1; more;) {
        PGresult *rows = PQexec(promoted, sql);
        ck_assert_msg(PQntuples(rows) == 1, "%s", PQerrorMessage(promoted));
        more = strcmp(PQgetvalue(rows, 0, 0), "1") != 0;
        PQclear(rows);
    }
    PQfinish(promoted);
}

static void commit_prepared(void *arg)
{
    guard_pq_prepared_commit(arg, "gone");
}

static void commit_prepared_that_is_not_there(void *arg)
{
    guard_pq_prepared_commit(arg, "none");
}

static void lose_commit_prepared(void)
{
    GUARD_AUTO(s);
    char text[200];
    guard_error error;
    wire_proxy *proxy = server_proxy();
    server_run("BEGIN; INSERT INTO t VALUES (50); PREPARE TRANSACTION 'gone'");
    give_numbers_until((int)server_number("SELECT transaction::text FROM pg_prepared_xacts"));
    snprintf(text, sizeof(text), "host=%s,%s port=%d,%d", wire_proxy_host(proxy), getenv("GUARD_TEST_PG_SOCKET"),
             wire_proxy_port(proxy), STANDBY_PORT);
    guard_pq_options options = {.marker = GUARD_PQ_MARKER_STATUS, .resolve_ms = 2000};
    guard_pq *pq = guard_pq_open(s, text, &options);
    unsigned wire = wire_proxy_connections(proxy);
    ck_assert_int_eq(guard_pq_transact(pq, only_read, NULL, NULL, NULL), GUARD_COMMITTED);
    wire_proxy_mark(proxy, wire);
    ck_assert_int_ne(guard_run(commit_prepared_that_is_not_there, pq, &error), 0);
    ck_assert_str_eq(error.sqlstate, "42704");
    uint64_t request = 5 + strlen("COMMIT PREPARED E'gone'") + 1;
    uint64_t before = wire_proxy_look(proxy, wire).passed[WIRE_TO_SERVER] - request;
    wire_proxy_mark(proxy, wire);
    wire_proxy_cut_after(proxy, wire, WIRE_TO_SERVER, before + 3, WIRE_RST);
    wire_proxy_admit(proxy, WIRE_REFUSE);
    int code = guard_run(commit_prepared, pq, &error);
    ck_assert_msg(code != 0 && error.domain == GUARD_TX && error.code == GUARD_TX_IN_DOUBT, "told %s",
                  code == 0 ? "as done" : error.message);
    ck_assert_int_eq(server_number("SELECT count(*) FROM pg_prepared_xacts"), 1);
    server_run("ROLLBACK PREPARED 'gone'");
    wire_proxy_close(proxy);
}

START_TEST(a_standby_that_is_behind_and_a_primary_that_was_replaced_prove_nothing)
{
    char at_standby[100];
    guard_error error;
    server_reset();
    server_run("CREATE ROLE app LOGIN; GRANT SELECT ON t, guard_marker TO app; "
               "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC");
    PGconn *conn = make_standby_that_is_behind();
    early opened_early = open_on_standby();
    for (size_t i = 0; i < MARKERS; i++) {
        lost l = {.id = 1 + (int)i, .marker = markers[i], .done = true};
        lose(&l, main_port());
        ck_assert_int_eq(server_rows(l.id), 1);
        expect_nothing_from_the_standby(&l);
        expect_nothing_without_a_place(&l);
    }
    lost before = {.id = 10, .marker = GUARD_PQ_MARKER_ROW, .done = true};
    lose(&before, main_port());
    /* It is promoted without what it has not got, and the old primary does not know. */
    server_run("ALTER SYSTEM SET max_wal_senders = 0");
    server_control("-m fast restart");
    PQfinish(conn);
    control_standby("promote");
    snprintf(at_standby, sizeof(at_standby), "port=%d", STANDBY_PORT);
    lose_after_promotion(&opened_early, at_standby);
    lose_commit_prepared();
    for (size_t i = 0; i < MARKERS; i++) {
        lost l = {.id = 20 + (int)i, .marker = markers[i], .done = true};
        lose(&l, STANDBY_PORT);
        /* It is asked until the time is over, as it might be the primary yet. */
        l.options.resolve_ms = BRIEF_MS;
        guard_outcome told = look("", l.result.token, &l, &error);
        l.options.resolve_ms = PATIENT_MS;
        if (told == GUARD_IN_DOUBT && error.code != GUARD_PQ_PLACE) {
            told = look("", l.result.token, &l, &error);
        }
        expect_place(told, &error, "the former primary");
        if (l.marker != GUARD_PQ_MARKER_STATUS) {
            ck_assert_msg(look(at_standby, l.result.token, &l, &error) == GUARD_COMMITTED, "%s", error.message);
        }
    }
    /* What the new primary never had is lost, and that is said of a transaction of the old one. */
    PGconn *promoted = connect_standby();
    PGresult *rows = PQexec(promoted, "SELECT count(*) FROM t WHERE id = 10");
    bool kept = atoi(PQgetvalue(rows, 0, 0)) == 1;
    PQclear(rows);
    PQfinish(promoted);
    ck_assert_int_eq(look(at_standby, before.result.token, &before, &error),
                     kept ? GUARD_COMMITTED : GUARD_ROLLED_BACK);
    remove_standby();
    server_run("ALTER SYSTEM RESET max_wal_senders");
    server_control("-m fast restart");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_marker_table_that_was_emptied_or_put_back_proves_no_rollback,
        a_row_that_is_there_and_what_leaves_the_table_the_same_are_believed,
        a_marker_table_without_its_own_row_is_a_clear_panic_at_begin,
        a_search_path_that_is_set_later_does_not_part_the_marker_from_its_resolver,
        another_database_of_the_cluster_proves_nothing,
        another_cluster_proves_nothing,
        a_role_that_reads_only_by_default_is_no_obstacle,
        a_token_that_was_cut_off_or_garbled_where_it_was_kept_is_none,
        a_standby_that_is_behind_and_a_primary_that_was_replaced_prove_nothing,
    };
    return suite_run("pq_place", tests, sizeof tests / sizeof *tests);
}
