/* SPDX-License-Identifier: MIT */
/*
 * proxy_rig.h: a client, the proxy and a server, all in one test and over plain sockets, TCP or Unix.
 *
 *     rig r;
 *     rig_open(&r, local);             // a listening server, and a proxy in front of it
 *     rig_connect(&r);                 // r.client and r.server, connected through connection r.wire
 *     rig_exchange(&r);                // a request and its answer
 *     rig_close(&r);
 *
 * Whatever is not as it should be fails the test; whatever must happen has 20 seconds to.
 */
#ifndef TESTS_PROXY_RIG_H
#define TESTS_PROXY_RIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "suite.h"
#include "wire_proxy.h"

enum {
    RIG_LIMIT_MS = 20000, /* for what must happen */
    RIG_QUIET_MS = 30,    /* for what must not */
};

extern const char rig_request[];
extern const char rig_answer[];
enum {
    RIG_REQUEST = sizeof "SELECT 1" - 1,
    RIG_ANSWER = sizeof "one row" - 1,
};

typedef struct {
    bool local;   /* Unix sockets */
    int listener; /* the server's */
    wire_proxy *proxy;
    unsigned wire; /* the newest connection */
    int client, server;
} rig;

void rig_open(rig *r, bool local);

/* A new client and the server's end of it; those before are the test's to close. */
void rig_connect(rig *r);

/* The client's part of it: a socket, or -1 with errno. */
int rig_dial(const rig *r);

/* Closes both ends. */
void rig_hang_up(rig *r);

/* Closes one end, in its place comes a descriptor that may be closed once more. */
void rig_close_end(int *end);

void rig_close(rig *r);

/* ---- what either end sends and reads --------------------------------------------------------------------------- */

void rig_send(int end, const char *bytes, size_t size);

/* Exactly these bytes come. */
void rig_expect(int end, const char *bytes, size_t size);

/* Nothing comes, not even an end. */
void rig_expect_quiet(int end);

/* Exactly these bytes come, then this kind of end (WIRE_FIN or WIRE_RST), which only TCP can tell from the other. */
void rig_expect_end(const rig *r, int end, const char *bytes, size_t size, unsigned how);

/* Reads to the end: counts what came, and returns the kind of end. */
unsigned rig_read_to_end(int end, size_t *came);

/* The server takes the request and answers. */
void rig_serve(rig *r);

/* The client sends the request, and gets the answer. */
void rig_exchange(rig *r);

/* ---- the tests of one program ---------------------------------------------------------------------------------- */

/* Loop tests over rig_local and rig_how: TCP with FIN and with RST, Unix sockets with FIN and with RST. */
enum {
    RIG_CASES = 4,
};
bool rig_local(int i);
unsigned rig_how(int i);

/* suite_run_groups; makes and removes the folder of the Unix sockets. */
int rig_run(const char *name, const suite_group *groups, size_t count);

#endif
