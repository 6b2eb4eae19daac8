/* SPDX-License-Identifier: MIT */
/*
 *   request: gathered --handler, in the border--> answered --sent or given up--> gone
 *   server:  open --http_drain--> draining --end of the scope--> closed
 *
 * - under_way counts the requests from their first byte to the last one of their answer; a server that drains waits for it.
 * - libmicrohttpd's frames are never crossed by a panic: on_request calls guarded code by service_call only.
 */
#include "http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <guard/guard_cancel.h>
#include <guard/guard_file.h>
#include <guard/guard_mutex.h>

#include "client.h"
#include "json.h"
#include "refusal.h"
#include "service.h"

struct http_server {
    struct MHD_Daemon *daemon;
    http_handler *handler;
    void *arg;
    pthread_mutex_t lock; /* of the two below */
    pthread_cond_t changed;
    int under_way;
    int draining;
    client_list clients;
};

const char *http_header(const http_request *request, const char *name)
{
    return MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND, name);
}

const char *http_parameter(const http_request *request, const char *name)
{
    return MHD_lookup_connection_value(request->connection, MHD_GET_ARGUMENT_KIND, name);
}

static client *client_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info == NULL ? NULL : info->socket_context;
}

static int comes_from_here(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const struct sockaddr *address = info == NULL ? NULL : info->client_addr;
    if (address == NULL) {
        return 0;
    }
    if (address->sa_family == AF_INET) {
        return ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr) >> 24 == 127;
    }
    return address->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)address)->sin6_addr);
}

/* ----------------------------------------------------------------------------------------------- answers -- */

typedef struct handling {
    http_server *server;
    http_request *request;
} handling;

static void handle(void *arg)
{
    const handling *h = arg;
    http_request *r = h->request;
    if (r->late) {
        refuse(503, "the service is ending");
    }
    if (strlen(r->path) > HTTP_PATH) {
        refuse(414, "the path is longer than %d bytes", HTTP_PATH);
    }
    if (r->too_large) {
        refuse(413, "the body is longer than %d bytes", HTTP_BODY);
    }
    h->server->handler(r, h->server->arg);
}

/* {"error": ..., "id": ...}: the id is the log's. Without memory the answer is the status alone. */
static void answer_failure(http_request *r, const service_failure *failure)
{
    /* What went wrong inside is for the log; a client is told only how its own request was wrong. */
    const char *text = failure->error.domain == LEDGER_REFUSAL ? failure->error.message
                       : failure->status == 503                ? "not now: try again with the same Idempotency-Key"
                                                               : "failed; nothing was changed";
    free(r->answer);
    json_t *json = json_pack("{ssss*}", "error", text, "id", failure->id[0] != '\0' ? failure->id : NULL);
    r->answer = json == NULL ? NULL : json_dumps(json, JSON_COMPACT);
    json_decref(json);
    r->answer_size = r->answer == NULL ? 0 : strlen(r->answer);
    r->status = failure->status;
    r->retry_s = failure->retry_s;
    r->type = "application/json";
}

static enum MHD_Result send_answer(http_server *server, http_request *r)
{
    /* An empty answer may not be NULL. */
    struct MHD_Response *response = r->answer == NULL
                                        ? MHD_create_response_from_buffer(0, (void *)"", MHD_RESPMEM_PERSISTENT)
                                        : MHD_create_response_from_buffer(r->answer_size, r->answer,
                                                                          MHD_RESPMEM_MUST_FREE);
    if (response == NULL) {
        return MHD_NO;
    }
    r->answer = NULL;
    MHD_add_response_header(response, "Content-Type", r->type);
    MHD_add_response_header(response, "Cache-Control", "no-store");
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(response, "Content-Security-Policy",
                            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
                            "connect-src 'self'; img-src data:; frame-ancestors 'none'");
    if (r->allow != NULL) {
        MHD_add_response_header(response, "Allow", r->allow);
    }
    if (r->retry_s > 0) {
        char seconds[16];
        snprintf(seconds, sizeof seconds, "%d", r->retry_s);
        MHD_add_response_header(response, "Retry-After", seconds);
    }
    if (r->replayed) {
        MHD_add_response_header(response, "Idempotent-Replay", "true");
    }
    pthread_mutex_lock(&server->lock);
    int draining = server->draining;
    pthread_mutex_unlock(&server->lock);
    if (draining) {
        MHD_add_response_header(response, "Connection", "close");
    }
    client_wait(&server->clients, client_of(r->connection));
    enum MHD_Result queued = MHD_queue_response(r->connection, (unsigned)r->status, response);
    MHD_destroy_response(response);
    service_answered(r->status);
    return queued;
}

/* ---------------------------------------------------------------------------------------------- requests -- */

static http_request *request_begin(http_server *server, struct MHD_Connection *connection)
{
    http_request *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return NULL;
    }
    r->connection = connection;
    r->type = "application/json";
    r->local = comes_from_here(connection);
    const char *length = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Content-Length");
    r->declared = length == NULL ? 0 : strtoull(length, NULL, 10);
    pthread_mutex_lock(&server->lock);
    server->under_way++;
    r->late = server->draining;
    pthread_mutex_unlock(&server->lock);
    return r;
}

static void request_end(void *arg, struct MHD_Connection *connection, void **state,
                        enum MHD_RequestTerminationCode code)
{
    (void)connection;
    (void)code;
    http_server *server = arg;
    http_request *r = *state;
    *state = NULL;
    if (r == NULL) {
        return;
    }
    free(r->answer);
    free(r);
    pthread_mutex_lock(&server->lock);
    server->under_way--;
    pthread_cond_signal(&server->changed);
    pthread_mutex_unlock(&server->lock);
}

/* More than that is not worth reading, even for an answer that the client sees in any case. */
enum { HTTP_BODY_READ = 16 * HTTP_BODY };

/* 0 when it is not worth reading. */
static int gather(http_request *r, const char *data, size_t size)
{
    r->too_large |= size > sizeof r->body - r->size;
    if (!r->too_large) {
        memcpy(r->body + r->size, data, size);
    }
    r->size += size;
    return r->size <= HTTP_BODY_READ;
}

/* For the log, which takes no more than printable ASCII from a client. */
static void describe(const http_request *r, char *text, size_t size)
{
    snprintf(text, size, "%.8s %.50s", r->method, r->path);
    for (char *c = text; *c != '\0'; c++) {
        *c = *c >= ' ' && *c <= '~' ? *c : '?';
    }
}

static enum MHD_Result on_request(void *arg, struct MHD_Connection *connection, const char *path, const char *method,
                                  const char *version, const char *data, size_t *size, void **state)
{
    (void)version;
    http_server *server = arg;
    http_request *r = *state;
    if (r == NULL) {
        *state = r = request_begin(server, connection);
        if (r == NULL) {
            return MHD_NO;
        }
        if (r->declared <= HTTP_BODY_READ) {
            client_wait(&server->clients, client_of(connection)); /* for the body */
            return MHD_YES;
        }
        r->too_large = 1; /* answered unread, then libmicrohttpd closes the connection */
    }
    if (*size > 0) {
        int worth_reading = gather(r, data, *size);
        *size = 0;
        return worth_reading ? MHD_YES : MHD_NO;
    }
    client_serve(&server->clients, client_of(connection));
    r->method = method;
    r->path = path;
    char what[64];
    describe(r, what, sizeof what);
    handling h = {server, r};
    service_failure failure;
    if (service_call(handle, &h, what, &failure) != 0) {
        answer_failure(r, &failure);
    }
    return send_answer(server, r);
}

static void on_connection(void *arg, struct MHD_Connection *connection, void **context,
                          enum MHD_ConnectionNotificationCode code)
{
    http_server *server = arg;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        *context = client_begin(&server->clients,
                                MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd);
    } else {
        client_end(&server->clients, *context);
    }
}

/* ------------------------------------------------------------------------------------------------ server -- */

static void stop(void *arg)
{
    http_server *server = arg;
    MHD_stop_daemon(server->daemon);
}

static void read_address(const ledger_options *o, struct sockaddr_storage *address, int *six)
{
    struct sockaddr_in *four_address = (struct sockaddr_in *)address;
    struct sockaddr_in6 *six_address = (struct sockaddr_in6 *)address;
    memset(address, 0, sizeof *address);
    *six = 0;
    if (inet_pton(AF_INET, o->listen, &four_address->sin_addr) == 1) {
        four_address->sin_family = AF_INET;
        four_address->sin_port = htons((uint16_t)o->port);
    } else if (inet_pton(AF_INET6, o->listen, &six_address->sin6_addr) == 1) {
        six_address->sin6_family = AF_INET6;
        six_address->sin6_port = htons((uint16_t)o->port);
        *six = 1;
    } else {
        guard_panic(EXIT_USAGE, "--listen takes an address in numbers, not \"%s\"", o->listen);
    }
}

http_server *http_open(guard_scope *scope, const ledger_options *options, http_handler *handler, void *arg)
{
    http_server *server = guard_memory_allocate_array(scope, 1, sizeof *server, NULL);
    *server = (http_server){.handler = handler,
                            .arg = arg,
                            .lock = PTHREAD_MUTEX_INITIALIZER,
                            .changed = PTHREAD_COND_INITIALIZER,
                            .clients = {PTHREAD_MUTEX_INITIALIZER, NULL, (int64_t)options->client_ms}};
    struct sockaddr_storage address;
    int six;
    read_address(options, &address, &six);
    guard_reserve(scope, 1);
    errno = 0;
    server->daemon = MHD_start_daemon(MHD_USE_THREAD_PER_CONNECTION | MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL |
                                          MHD_USE_ITC | (six ? MHD_USE_IPv6 : 0),
                                      (uint16_t)options->port, NULL, NULL, on_request, server, MHD_OPTION_SOCK_ADDR,
                                      (struct sockaddr *)&address, MHD_OPTION_NOTIFY_COMPLETED, request_end, server,
                                      MHD_OPTION_NOTIFY_CONNECTION, on_connection, server, MHD_OPTION_CONNECTION_LIMIT,
                                      (unsigned)HTTP_CONNECTIONS, MHD_OPTION_CONNECTION_TIMEOUT,
                                      (unsigned)((options->client_ms + 999) / 1000), MHD_OPTION_CONNECTION_MEMORY_LIMIT,
                                      (size_t)32768, MHD_OPTION_END);
    if (server->daemon == NULL) {
        guard_panic_os("cannot listen on %s port %u", options->listen, (unsigned)options->port);
    }
    guard_defer(scope, stop, server);
    return server;
}

uint16_t http_port(const http_server *server)
{
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(server->daemon, MHD_DAEMON_INFO_BIND_PORT);
    return info == NULL ? 0 : info->port;
}

static int nothing_under_way(void *arg)
{
    const http_server *server = arg;
    return server->under_way == 0;
}

void http_tend(http_server *server)
{
    client_shut_late(&server->clients);
}

void http_drain(http_server *server, int64_t ms)
{
    GUARD_AUTO(s);
    /* The signal that ends the service also cancels this thread when the requests' time is over; not this wait. */
    guard_mask(s);
    int listener = MHD_quiesce_daemon(server->daemon);
    if (listener >= 0) {
        close(listener);
    }
    guard_ticket lock = guard_mutex_lock(s, &server->lock, NULL);
    server->draining = 1;
    guard_mutex_wait(lock, &server->changed, nothing_under_way, server, (int)ms);
}
