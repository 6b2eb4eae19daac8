/* SPDX-License-Identifier: MIT */
/*
 * http.h: the HTTP side, on libmicrohttpd: a request is gathered, handed to a handler inside the border, and answered.
 *
 * Each connection has a thread of its own, so that a request that waits keeps nobody else waiting.
 */
#ifndef LEDGER_HTTP_H
#define LEDGER_HTTP_H

#include <guard/guard.h>
#include <stddef.h>
#include <stdint.h>

#include "options.h"

enum { HTTP_BODY = 4096, HTTP_PATH = 256, HTTP_CONNECTIONS = 128 };

struct MHD_Connection;

typedef struct http_request {
    struct MHD_Connection *connection;
    const char *method;
    const char *path;
    char body[HTTP_BODY];
    size_t size;
    unsigned long long declared; /* its Content-Length */
    int too_large;
    int local; /* 1: it comes from this machine */
    int late;  /* 1: it began when the server was draining, on a connection that was there */

    /* What is answered; `answer` is for free(3). */
    int status;
    const char *type;
    const char *allow; /* of 405 */
    int retry_s;       /* of 503; 0: none */
    int replayed;
    char *answer;
    size_t answer_size;
} http_request;

/* Guarded code: fills the answer, or panics. */
typedef void http_handler(http_request *request, void *arg);

typedef struct http_server http_server;

/* A header and a query parameter of the request, NULL where there is none. The request's. */
const char *http_header(const http_request *request, const char *name);
const char *http_parameter(const http_request *request, const char *name);

/* Listens, for the scope. */
http_server *http_open(guard_scope *scope, const ledger_options *options, http_handler *handler, void *arg);
uint16_t http_port(const http_server *server);

/* Ends connections whose client keeps the service waiting for too long. To be called now and then. */
void http_tend(http_server *server);

/* No new requests; waits for those under way, no longer than `ms`. */
void http_drain(http_server *server, int64_t ms);

#endif
