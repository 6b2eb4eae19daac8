/* SPDX-License-Identifier: MIT */
#include "server.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "suite.h"

/* How long a server may take to start or to recover, and how often it may end a connection of ours meanwhile. */
#define READY_SECONDS 60
#define TRIES 5
/* What is waited for by a query. */
#define WAIT_MS 60000

/* Only a server that starts or recovers from a crash is waited for: one that refuses for another reason answers a ping. */
static void wait_until_ready(const char *conninfo)
{
    time_t deadline = time(NULL) + READY_SECONDS;
    PGPing answer;
    while ((answer = PQping(conninfo)) != PQPING_OK) {
        ck_assert_msg(time(NULL) < deadline, "the server is not ready after %d s: PQping is %d", READY_SECONDS,
                      (int)answer);
        pause_ms(1);
    }
}

PGconn *server_connect(const char *conninfo)
{
    PGconn *conn = PQconnectdb(conninfo);
    for (int tries = 1; PQstatus(conn) != CONNECTION_OK && tries < TRIES; tries++) {
        PQfinish(conn);
        wait_until_ready(conninfo);
        conn = PQconnectdb(conninfo);
    }
    ck_assert_msg(PQstatus(conn) == CONNECTION_OK, "%s", PQerrorMessage(conn));
    return conn;
}

static void be_silent(void *arg, const char *message)
{
    (void)arg;
    (void)message;
}

/* Kept for the test's process; the server may have been restarted since the last question, or be about to. */
static PGresult *ask(const char *sql)
{
    static PGconn *conn;
    PGresult *result = NULL;
    for (int tries = 0; tries < TRIES; tries++) {
        if (conn == NULL) {
            conn = server_connect("");
            PQsetNoticeProcessor(conn, be_silent, NULL);
        }
        PQclear(result);
        result = PQexec(conn, sql);
        /* libpq 15 calls a connection good on which sending has failed; but only a server gives an SQLSTATE. */
        if (PQresultStatus(result) != PGRES_FATAL_ERROR ||
            (PQresultErrorField(result, PG_DIAG_SQLSTATE) != NULL && PQstatus(conn) == CONNECTION_OK)) {
            break;
        }
        PQfinish(conn);
        conn = NULL;
    }
    ExecStatusType status = PQresultStatus(result);
    ck_assert_msg(status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK, "%s: %s", sql, PQresultErrorMessage(result));
    return result;
}

void server_run(const char *sql)
{
    PQclear(ask(sql));
}

int64_t server_number(const char *sql)
{
    PGresult *result = ask(sql);
    int64_t number = -1;
    if (PQntuples(result) > 0 && !PQgetisnull(result, 0, 0)) {
        number = strtoll(PQgetvalue(result, 0, 0), NULL, 10);
    }
    PQclear(result);
    return number;
}

void server_wait(const char *sql, int64_t wanted)
{
    int64_t end = now_ms() + WAIT_MS;
    for (int64_t found; (found = server_number(sql)) != wanted; pause_ms(1)) {
        ck_assert_msg(now_ms() < end, "%s is %lld, not %lld", sql, (long long)found, (long long)wanted);
    }
}

void server_wait_settled(void)
{
    server_wait("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND "
                "pid <> pg_backend_pid() AND (backend_xid IS NOT NULL OR state = 'active')",
                0);
}

wire_proxy *server_proxy(void)
{
    wire_proxy *proxy = wire_proxy_open(getenv("GUARD_TEST_PG_SOCKET"), atoi(getenv("GUARD_TEST_PG_PORT")), NULL);
    ck_assert_ptr_nonnull(proxy);
    return proxy;
}

/* A test that failed may have left the server waiting for a standby that is not there. */
void server_reset(void)
{
    server_run(
        "SET LOCAL synchronous_commit = local;"
        "DROP TABLE IF EXISTS t, public.guard_marker;"
        "CREATE TABLE t(id integer PRIMARY KEY, note text);"
        "CREATE TABLE public.guard_marker(session uuid NOT NULL, seq bigint NOT NULL, fenced boolean NOT NULL DEFAULT "
        "false, made timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (session, seq));"
        "INSERT INTO guard_marker VALUES ('00000000-0000-0000-0000-000000000000', 4000000000, true, 'infinity')");
}

int64_t server_rows(int id)
{
    char sql[64];
    snprintf(sql, sizeof(sql), "SELECT count(*) FROM t WHERE id = %d", id);
    return server_number(sql);
}

void server_control(const char *arguments)
{
    char command[512];
    snprintf(command, sizeof(command), "'%s' %s >/dev/null 2>&1 </dev/null", getenv("GUARD_TEST_PG_CTL"), arguments);
    int status = system(command);
    ck_assert_msg(status == 0, "%s: %d", command, status);
}

int server_pid(PGconn *conn)
{
    return PQbackendPID(conn);
}

/* The checkpointer is one of the processes that the first process replaces when a backend was killed. */
int64_t server_life(void)
{
    return server_number("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'");
}

void server_wait_recovered(int64_t life)
{
    char sql[120];
    snprintf(sql, sizeof(sql),
             "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'checkpointer' AND pid <> %lld",
             (long long)life);
    server_wait(sql, 1);
}

int server_postmaster(void)
{
    char path[512];
    int pid = 0;
    snprintf(path, sizeof(path), "%s/postmaster.pid", getenv("GUARD_TEST_PG_DIR"));
    FILE *file = fopen(path, "r");
    ck_assert_msg(file != NULL && fscanf(file, "%d", &pid) == 1, "%s", path);
    fclose(file);
    return pid;
}

void server_signal(int pid, int number)
{
    ck_assert_msg(kill(pid, number) == 0, "signal %d to %d", number, pid);
}

/* Commits once; 1 if the commit waits for the standby, and then it is ended. */
static int a_commit_hangs(void)
{
    PGconn *conn = server_connect("");
    char waiting[120], end[80];
    int hangs = 0;
    snprintf(waiting, sizeof(waiting),
             "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND pid = %d", server_pid(conn));
    snprintf(end, sizeof(end), "SELECT pg_terminate_backend(%d, 60000)::int", server_pid(conn));
    ck_assert(PQsendQuery(conn, "SELECT pg_logical_emit_message(true, 'test', 'a record to commit')"));
    while (PQconsumeInput(conn) && PQisBusy(conn) && !hangs) {
        hangs = server_number(waiting) == 1;
    }
    ck_assert_int_eq(server_number(end), 1);
    PQfinish(conn);
    return hangs;
}

/* A commit waits from when the checkpointer has read the setting, which only a commit can tell. */
void server_wait_for_nobody(void)
{
    server_run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    server_run("SELECT pg_reload_conf()");
    while (!a_commit_hangs()) {
    }
}
