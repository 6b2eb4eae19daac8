/* SPDX-License-Identifier: MIT */
/*
 * server.h: the PostgreSQL server of tests/with-postgres, as the tests of libguard-pq see it from outside: over a plain libpq connection
 * of their own, so that the answer is what another program would find.
 */
#ifndef TESTS_SERVER_H
#define TESTS_SERVER_H

#include <libpq-fe.h>
#include <stdint.h>

#include "wire_proxy.h"

/* Runs SQL; fails the test when it fails. */
void server_run(const char *sql);

/* The one value of a query as a number; -1 for NULL or no row. */
int64_t server_number(const char *sql);

/* Waits until the query's number is the wanted one; fails the test after a minute. */
void server_wait(const char *sql, int64_t wanted);

/* Waits until nobody but us is in a transaction that has written, or runs a statement: what is in the tables now stays so. */
void server_wait_settled(void);

/* Table t(id integer primary key, note text), empty, and the marker table, with the one row that is its own. */
void server_reset(void);

/* Rows of t with this id. */
int64_t server_rows(int id);

/* A connection of the program's own, for which a server that starts or recovers is waited; fails the test where there is none. */
PGconn *server_connect(const char *conninfo);

/* A proxy before the server, for the test to close; fails the test where it cannot be made. */
wire_proxy *server_proxy(void);

/* pg_ctl of the server, for instance "-m immediate stop". */
void server_control(const char *arguments);

/* The process that serves a connection. */
int server_pid(PGconn *conn);

/*
 * A backend that is killed takes every other with it, a moment later: whoever kills one waits for the server to be back, or
 * the next to connect is refused.
 *
 *     int64_t life = server_life();
 *     server_signal(pid, SIGKILL);
 *     server_wait_recovered(life);
 */
int64_t server_life(void);
void server_wait_recovered(int64_t life);

/* From here on a COMMIT waits for a standby that there is not, until synchronous_standby_names is set otherwise. */
void server_wait_for_nobody(void);

/* The server's first process. */
int server_postmaster(void);

/* Sends a signal to a process of the server, also where that belongs to another user. */
void server_signal(int pid, int signal);

#endif
