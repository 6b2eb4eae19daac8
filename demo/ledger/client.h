/* SPDX-License-Identifier: MIT */
/*
 * client.h: how long the service waits for a client: to send a request, and to take the answer.
 *
 * libmicrohttpd knows only of a client that is silent. One that sends a byte now and then would keep its connection for ever, and a few of them
 * all connections. Each wait has an end here: the socket is shut then, which libmicrohttpd takes as the client's own end.
 */
#ifndef LEDGER_CLIENT_H
#define LEDGER_CLIENT_H

#include <pthread.h>
#include <stdint.h>

typedef struct client client;

typedef struct client_list {
    pthread_mutex_t lock;
    client *first;
    int64_t wait_ms;
} client_list;

/* A connection begins, and a wait with it; NULL without memory: it is then waited for as libmicrohttpd does. Any thread. */
client *client_begin(client_list *list, int socket);

/* The service works for the client: there is no wait. NULL is no client; so it is for the other two. */
void client_serve(client_list *list, client *c);

/* The client's turn: to take the answer, or to send the next request. */
void client_wait(client_list *list, client *c);

/* The connection is gone; before its socket is closed, whose number may be another's after that. */
void client_end(client_list *list, client *c);

/* Shuts the sockets of those that were waited for long enough. */
void client_shut_late(client_list *list);

#endif
