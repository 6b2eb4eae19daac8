/* SPDX-License-Identifier: MIT */
/*
 * wire_proxy: a wire between a client and a server that breaks where a test wants it to.
 *
 * A proxy of the tests' own, in the test's process, on a thread of its own.  It passes bytes on blindly, so that it
 * serves PostgreSQL's protocol, TLS and GSS negotiation and cancel requests alike (each of which is a connection,
 * with a number). Faults are exact to the byte, in either direction.
 *
 * Calling sequence
 *
 *      wire_proxy *proxy = wire_proxy_open(getenv("GUARD_TEST_PG_SOCKET"), atoi(getenv("GUARD_TEST_PG_PORT")), NULL);
 *      bool fired = true;
 *      for (uint64_t n = 0; fired; n++) {                                  // until n outruns the exchange
 *          PGconn *connection = PQconnectdb(wire_proxy_conninfo(proxy));   // and BEGIN, INSERT...
 *          unsigned wire = wire_proxy_connections(proxy);                  // the newest connection's number
 *          wire_proxy_mark(proxy, wire);                                   // bytes count from here
 *          wire_proxy_cut_after(proxy, wire, WIRE_TO_SERVER, n, WIRE_RST);
 *          ...COMMIT, and compare what it says with what is in the table...
 *          fired = wire_proxy_fired(proxy, wire, WIRE_TO_SERVER);
 *      }
 *      wire_proxy_close(proxy);
 *
 * When a fault takes place.  "After n" means: as soon as byte n since the mark has been passed on, or, for n = 0,
 * when the first byte comes and before it is passed on.  So n from 0 to the length of the exchange are all the places
 * at which it can break, and the fault of a greater n does not fire.  A fault fires once and is then gone; each
 * connection has at most one fault in each direction, a later one replaces it.  Other connections, the resolver's for
 * instance, are not touched.
 *
 * What "passed on" means.  The receiver's kernel has the bytes, and the receiver can read them even if a reset
 * follows (Linux keeps them readable).  Before a reset the proxy waits until its own kernel has sent all of them, for
 * 10 seconds at most.
 *
 * Errors.  wire_proxy_open returns NULL with errno; a wrong argument or a proxy that does not answer within 30
 * seconds ends the program with a line on stderr: it is the test that is wrong.  A connection number that is not
 * known any more (the proxy remembers the last 128 connections) is one of a connection that has ended.
 *
 * Threads.  Any thread may call any function but wire_proxy_close, and returns after its effect.  None waits for the
 * client or for the server but wire_proxy_wait.  The proxy allocates no memory after it was opened, so that a test
 * may fail allocations meanwhile.  It blocks all signals on its thread.  A forked child must not use it.
 */
#ifndef TESTS_WIRE_PROXY_H
#define TESTS_WIRE_PROXY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct wire_proxy wire_proxy;

/* The way the bytes take. */
typedef enum {
    WIRE_TO_SERVER,
    WIRE_TO_CLIENT,
} wire_direction;

/* How a connection ends: WIRE_FIN or WIRE_RST, and what else holds. */
enum {
    /* An orderly end: either side reads what was passed on, then the end of the stream.  What it still sends is
     * dropped. */
    WIRE_FIN = 0,
    /* A reset: either side reads what was passed on, then ECONNRESET.  A Unix socket knows no reset: there, it is
     * closed. */
    WIRE_RST = 1,
    /* The other direction first.  Cut WIRE_TO_SERVER: the server reads the end of the stream after byte n, and its
     * answers still reach the client until it closes; then the client's side ends.  Cut WIRE_TO_CLIENT: what the
     * client has sent by then still reaches the server; then both sides end.  Without it both sides end at once: what
     * the proxy was not yet given is lost. */
    WIRE_DRAIN = 2,
    /* One side is not told: its connection stays open and silent, as when a machine is gone, until
     * wire_proxy_release() or wire_proxy_cut() ends it.  A server that is not told keeps the transaction and its
     * locks. */
    WIRE_KEEP_CLIENT = 4,
    WIRE_KEEP_SERVER = 8,
};

/* What becomes of a new connection. */
typedef enum {
    WIRE_ADMIT,  /* it is passed on to the server; if that refuses it, it is reset */
    WIRE_REFUSE, /* ECONNREFUSED, as if nobody listened */
    WIRE_SILENT, /* accepted and nothing more, as by a machine that hangs, until wire_proxy_release() */
} wire_admission;

/* What the proxy knows of one connection. */
typedef struct {
    bool connected;   /* it has been accepted */
    bool client_gone; /* its side has closed or was reset; after WIRE_FIN it is gone when it closes in turn */
    bool server_gone; /* likewise */
    /* By direction: its fault has taken place since the mark; the bytes passed on since the mark; the bytes that came
     * and were not passed on, as far as the proxy keeps them (32 KiB). */
    bool fired[2];
    uint64_t passed[2];
    uint64_t withheld[2];
} wire_view;

/* What wire_proxy_wait waits for. */
typedef enum {
    WIRE_CONNECTED,
    WIRE_CLIENT_GONE,
    WIRE_SERVER_GONE,
    WIRE_FIRED,              /* a fault, in either direction */
    WIRE_PASSED_TO_SERVER,   /* at least n bytes since the mark */
    WIRE_PASSED_TO_CLIENT,   /* at least n bytes since the mark */
    WIRE_WITHHELD_TO_SERVER, /* at least n bytes */
    WIRE_WITHHELD_TO_CLIENT, /* at least n bytes */
} wire_event;

/* ---- opening --------------------------------------------------------------------------------------------------- */

/*
 * Opens a proxy to the server at `host` and `port`: an IPv4 address in numbers, or, with a '/' at its beginning, the
 * folder of a PostgreSQL Unix socket.  It listens on a free port of 127.0.0.1, or, with `folder`, on the Unix socket
 * that libpq looks for in that folder.  The server itself is not asked until a client comes.  NULL with errno if it
 * cannot be opened.
 */
wire_proxy *wire_proxy_open(const char *host, int port, const char *folder);

/* Where it listens: what libpq takes as host and port, and both as a conninfo string.  The proxy's memory. */
const char *wire_proxy_host(const wire_proxy *proxy);
int wire_proxy_port(const wire_proxy *proxy);
const char *wire_proxy_conninfo(const wire_proxy *proxy);

/* From now on, new connections are treated so.  Those that exist go on. */
void wire_proxy_admit(wire_proxy *proxy, wire_admission admission);

/* ---- looking --------------------------------------------------------------------------------------------------- */

/* How many connections came so far.  They are numbered from 1, so that this is the newest one's number. */
unsigned wire_proxy_connections(wire_proxy *proxy);

wire_view wire_proxy_look(wire_proxy *proxy, unsigned wire);

/* Whether this connection's fault in this direction has taken place since the mark. */
bool wire_proxy_fired(wire_proxy *proxy, unsigned wire, wire_direction direction);

/* Waits until it is so, for `ms` milliseconds at most; false if it still is not. `n` is for the events that count
 * bytes. */
bool wire_proxy_wait(wire_proxy *proxy, unsigned wire, wire_event event, uint64_t n, int ms);

/* Copies up to `size` of the bytes that came in this direction and were not passed on: a held request, or the answer
 * that the client did not live to read.  Returns how many. */
size_t wire_proxy_withheld(wire_proxy *proxy, unsigned wire, wire_direction direction, void *bytes, size_t size);

/* ---- faults ---------------------------------------------------------------------------------------------------- */

/*
 * Each takes a connection that is open, or one that is still to come, by the number that it will have
 * (wire_proxy_connections() + 1 is the next one), and returns false if it has ended.
 */

/* Counts from here: both counters are 0, faults that have not fired are forgotten.  What has been stopped or held
 * stays so. */
bool wire_proxy_mark(wire_proxy *proxy, unsigned wire);

/* The connection ends after byte n of this direction.  `how`: WIRE_FIN or WIRE_RST, with WIRE_DRAIN or WIRE_KEEP_… */
bool wire_proxy_cut_after(wire_proxy *proxy, unsigned wire, wire_direction direction, uint64_t n, unsigned how);

/* After byte n of this direction nothing is read from its sender and nothing passed on, not even its end, until
 * wire_proxy_release().  The other direction goes on: stop both for a wire that is dead both ways. */
bool wire_proxy_stop_after(wire_proxy *proxy, unsigned wire, wire_direction direction, uint64_t n);

/* Likewise, but goes on by itself after `ms` milliseconds. */
bool wire_proxy_delay_after(wire_proxy *proxy, unsigned wire, wire_direction direction, uint64_t n, int ms);

/*
 * After byte n to the server, what the client sends is kept by the proxy, 32 KiB at most, to arrive late:
 * wire_proxy_release() hands it over, and the end of the stream behind it if the client is gone.  As soon as `count`
 * bytes are kept, and whatever else the client has sent by then, the client's side ends (WIRE_FIN or WIRE_RST); with
 * a count of 0 it stays open.  The server's answer to what arrives late is kept for wire_proxy_withheld() if the
 * client is gone.
 */
bool wire_proxy_hold_after(wire_proxy *proxy, unsigned wire, uint64_t n, uint64_t count, unsigned how);

/* ---- at once --------------------------------------------------------------------------------------------------- */

/* Goes on with what was stopped, held, silent or not told. */
void wire_proxy_release(wire_proxy *proxy, unsigned wire);

/* Ends the connection now, if it is open.  `how` as above; WIRE_DRAIN does not apply. */
void wire_proxy_cut(wire_proxy *proxy, unsigned wire, unsigned how);

/* Resets what is open and frees the proxy.  NULL is allowed. */
void wire_proxy_close(wire_proxy *proxy);

#endif
