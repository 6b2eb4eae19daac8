/* SPDX-License-Identifier: MIT */
/* wire_address.c: the sockets by which the proxy is reached and reaches its server. */
#include "wire_address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
    CONNECT_S = 2,
    FOLDER_PORT = 5432,
};

bool wire_address_make(wire_address *a, const char *host, int port)
{
    memset(a, 0, sizeof *a);
    if (host[0] == '/') {
        a->local.sun_family = AF_UNIX;
        int size = snprintf(a->local.sun_path, sizeof a->local.sun_path, "%s/.s.PGSQL.%d", host, port);
        if (size < 0 || (size_t)size >= sizeof a->local.sun_path) {
            errno = ENAMETOOLONG;
            return false;
        }
        return true;
    }
    a->internet.sin_family = AF_INET;
    a->internet.sin_port = htons((uint16_t)port);
    if (inet_pton(AF_INET, host, &a->internet.sin_addr) != 1) {
        errno = EINVAL;
        return false;
    }
    return true;
}

static socklen_t size_of(const wire_address *a)
{
    return a->any.sa_family == AF_UNIX ? sizeof a->local : sizeof a->internet;
}

static int new_socket(const wire_address *a)
{
    return socket(a->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static int fail(int socket)
{
    int error = errno;
    if (socket >= 0) {
        close(socket);
    }
    errno = error;
    return -1;
}

/* Nagle would keep a small piece back until the one before it is acknowledged, which a kernel may put off for 40 ms:
 * a wire that is cut byte by byte would take that long for each. A Unix socket refuses the option and needs none. */
void wire_send_at_once(int socket)
{
    int on = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

int wire_address_connect(const wire_address *a)
{
    /* It is connect()'s limit too. */
    struct timeval limit = {.tv_sec = CONNECT_S};
    int s = new_socket(a);
    if (s < 0 || setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) != 0 ||
        connect(s, &a->any, size_of(a)) != 0) {
        return fail(s);
    }
    wire_send_at_once(s);
    return s;
}

/* ---- listening ------------------------------------------------------------------------------------------------- */

/* Bound but not listening, it keeps the port while connections are refused. Bound without SO_REUSEADDR, the kernel
 * chose a port that nobody has; with it from then on, the listening socket may have the same. */
static int keep_port(wire_address *a)
{
    int on = 1;
    socklen_t size = size_of(a);
    int s = new_socket(a);
    if (s < 0 || bind(s, &a->any, size) != 0 || setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        getsockname(s, &a->any, &size) != 0) {
        return fail(s);
    }
    return s;
}

static int start_listening(const wire_address *a)
{
    int on = 1;
    int s = new_socket(a);
    if (a->any.sa_family == AF_UNIX) {
        unlink(a->local.sun_path);
    }
    if (s < 0 || setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 || bind(s, &a->any, size_of(a)) != 0 ||
        listen(s, SOMAXCONN) != 0) {
        return fail(s);
    }
    return s;
}

bool wire_listener_open(wire_listener *l, const char *folder)
{
    l->listening = l->keeper = -1;
    if (!wire_address_make(&l->address, folder != NULL ? folder : "127.0.0.1", folder != NULL ? FOLDER_PORT : 0)) {
        return false;
    }
    if (folder == NULL) {
        l->keeper = keep_port(&l->address);
        if (l->keeper < 0) {
            return false;
        }
    }
    return wire_listener_admit(l);
}

int wire_listener_port(const wire_listener *l)
{
    return l->address.any.sa_family == AF_UNIX ? FOLDER_PORT : ntohs(l->address.internet.sin_port);
}

void wire_listener_refuse(wire_listener *l)
{
    if (l->listening >= 0) {
        /* The connections that wait in its queue are reset with it. */
        close(l->listening);
        l->listening = -1;
    }
}

bool wire_listener_admit(wire_listener *l)
{
    if (l->listening < 0) {
        l->listening = start_listening(&l->address);
    }
    return l->listening >= 0;
}

void wire_listener_close(wire_listener *l)
{
    wire_listener_refuse(l);
    if (l->keeper >= 0) {
        close(l->keeper);
    } else if (l->address.any.sa_family == AF_UNIX) {
        unlink(l->address.local.sun_path);
    }
}
