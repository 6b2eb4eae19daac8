/* SPDX-License-Identifier: MIT */
/*
 * wire_address: where the proxy listens and where its server is, a TCP port or one of PostgreSQL's Unix sockets.
 *
 * Private to wire_proxy.c.
 */
#ifndef TESTS_WIRE_ADDRESS_H
#define TESTS_WIRE_ADDRESS_H

#include <netinet/in.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/un.h>

typedef union {
    struct sockaddr any;
    struct sockaddr_in internet;
    struct sockaddr_un local;
} wire_address;

/* An IPv4 address in numbers, or the folder of a Unix socket; false with errno. */
bool wire_address_make(wire_address *a, const char *host, int port);

/* A connected, blocking socket, within 2 seconds, or -1 with errno. */
int wire_address_connect(const wire_address *a);

/* A socket that sends each piece as it comes. */
void wire_send_at_once(int socket);

typedef struct {
    wire_address address;
    int listening; /* -1: connections are refused */
    int keeper;    /* holds the port meanwhile; -1 on a Unix socket */
} wire_listener;

/* Listens in `folder`, or on a free port of 127.0.0.1 if it is NULL; false with errno.  Closed in either case. */
bool wire_listener_open(wire_listener *l, const char *folder);
int wire_listener_port(const wire_listener *l);
/* Closed to new connections and open again, in the same place. The second is false with errno if it cannot. */
void wire_listener_refuse(wire_listener *l);
bool wire_listener_admit(wire_listener *l);
/* Also one whose sockets are -1 because it was never opened. */
void wire_listener_close(wire_listener *l);

#endif
