/* SPDX-License-Identifier: MIT */
/* proxy_rig.c: plain sockets on both sides of the proxy. */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "proxy_rig.h"

enum {
    SERVER_PORT = 1, /* of the server's Unix socket, in its name only */
    PROXY_PORT = 5432,
};

const char rig_request[] = "SELECT 1";
const char rig_answer[] = "one row";

/* Made in the parent of the tests, which removes it also when one dies. */
static char folder[] = "/tmp/check-proxy.XXXXXX";

static socklen_t local_address(struct sockaddr_un *a, int port)
{
    memset(a, 0, sizeof *a);
    a->sun_family = AF_UNIX;
    snprintf(a->sun_path, sizeof a->sun_path, "%s/.s.PGSQL.%d", folder, port);
    return sizeof *a;
}

static socklen_t loopback_address(struct sockaddr_in *a, int port)
{
    memset(a, 0, sizeof *a);
    a->sin_family = AF_INET;
    a->sin_port = htons((uint16_t)port);
    a->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return sizeof *a;
}

static int listen_as_server(bool local, int *port)
{
    struct sockaddr_un un;
    struct sockaddr_in in;
    int s = socket(local ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t size = local ? local_address(&un, SERVER_PORT) : loopback_address(&in, 0);
    if (local) {
        unlink(un.sun_path);
    }
    ck_assert_int_eq(bind(s, local ? (struct sockaddr *)&un : (struct sockaddr *)&in, size), 0);
    ck_assert_int_eq(listen(s, 128), 0);
    *port = SERVER_PORT;
    if (!local) {
        ck_assert_int_eq(getsockname(s, (struct sockaddr *)&in, &size), 0);
        *port = ntohs(in.sin_port);
    }
    return s;
}

static void limit(int s)
{
    struct timeval t = {.tv_sec = RIG_LIMIT_MS / 1000};
    ck_assert_int_eq(setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t), 0);
    ck_assert_int_eq(setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t), 0);
}

/* A new client of the proxy; -1 with errno if it is refused. */
int rig_dial(const rig *r)
{
    struct sockaddr_un un;
    struct sockaddr_in in;
    int s = socket(r->local ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    limit(s);
    socklen_t size = r->local ? local_address(&un, wire_proxy_port(r->proxy))
                              : loopback_address(&in, wire_proxy_port(r->proxy));
    if (connect(s, r->local ? (struct sockaddr *)&un : (struct sockaddr *)&in, size) != 0) {
        int error = errno;
        close(s);
        errno = error;
        return -1;
    }
    return s;
}

static int answer_call(const rig *r)
{
    int s = accept(r->listener, NULL, NULL);
    ck_assert_msg(s >= 0, "the server is not called: %s", strerror(errno));
    limit(s);
    return s;
}

void rig_open(rig *r, bool local)
{
    int port;
    memset(r, 0, sizeof *r);
    r->local = local;
    r->listener = listen_as_server(local, &port);
    limit(r->listener);
    r->proxy = wire_proxy_open(local ? folder : "127.0.0.1", port, local ? folder : NULL);
    ck_assert_msg(r->proxy != NULL, "wire_proxy_open: %s", strerror(errno));
    r->client = r->server = -1;
}

void rig_connect(rig *r)
{
    r->client = rig_dial(r);
    ck_assert_msg(r->client >= 0, "cannot connect: %s", strerror(errno));
    r->server = answer_call(r);
    r->wire++;
    /* The server may be called before the proxy has taken note. */
    ck_assert(wire_proxy_wait(r->proxy, r->wire, WIRE_CONNECTED, 0, RIG_LIMIT_MS));
}

void rig_hang_up(rig *r)
{
    close(r->client);
    close(r->server);
}

void rig_close(rig *r)
{
    wire_proxy_close(r->proxy);
    rig_hang_up(r);
    close(r->listener);
}

void rig_close_end(int *end)
{
    close(*end);
    *end = dup(STDERR_FILENO);
}

/* ---- what either end sends and reads --------------------------------------------------------------------------- */

void rig_send(int s, const char *bytes, size_t size)
{
    ck_assert_int_eq(send(s, bytes, size, MSG_NOSIGNAL), (ssize_t)size);
}

void rig_expect(int s, const char *bytes, size_t size)
{
    char got[256];
    for (size_t have = 0; have < size;) {
        ssize_t n = recv(s, got + have, size - have, 0);
        ck_assert_msg(n > 0, "%zu bytes of %zu came, then %s", have, size, n == 0 ? "the end" : strerror(errno));
        have += (size_t)n;
    }
    ck_assert_mem_eq(got, bytes, size);
}

/* Reads to the end and says what kind of end it was; what came is counted. */
unsigned rig_read_to_end(int s, size_t *came)
{
    static char bytes[65536];
    ssize_t n;
    *came = 0;
    while ((n = recv(s, bytes, sizeof bytes, 0)) > 0) {
        *came += (size_t)n;
    }
    ck_assert_msg(n == 0 || errno == ECONNRESET, "after %zu bytes: %s", *came, strerror(errno));
    return n == 0 ? WIRE_FIN : WIRE_RST;
}

/* After exactly these bytes. A Unix socket may show an end that it was not asked for as a reset, and always a reset
 * as an end. */
void rig_expect_end(const rig *r, int s, const char *bytes, size_t size, unsigned how)
{
    size_t more;
    rig_expect(s, bytes, size);
    unsigned end = rig_read_to_end(s, &more);
    ck_assert_msg(more == 0, "%zu bytes and then %zu more", size, more);
    if (!r->local) {
        ck_assert_msg(end == (how & WIRE_RST), "the end is a %s", end == WIRE_RST ? "reset" : "FIN");
    }
}

void rig_expect_quiet(int s)
{
    struct pollfd p = {.fd = s, .events = POLLIN};
    ck_assert_msg(poll(&p, 1, RIG_QUIET_MS) == 0, "something came where nothing should");
}

void rig_serve(rig *r)
{
    rig_expect(r->server, rig_request, RIG_REQUEST);
    rig_send(r->server, rig_answer, RIG_ANSWER);
}

void rig_exchange(rig *r)
{
    rig_send(r->client, rig_request, RIG_REQUEST);
    rig_serve(r);
    rig_expect(r->client, rig_answer, RIG_ANSWER);
}

/* ---- the tests of one program ---------------------------------------------------------------------------------- */

bool rig_local(int i)
{
    return i / 2 != 0;
}

unsigned rig_how(int i)
{
    return i % 2 != 0 ? WIRE_RST : WIRE_FIN;
}

static void remove_folder(void)
{
    static const int ports[] = {SERVER_PORT, PROXY_PORT};
    for (int i = 0; i < 2; i++) {
        struct sockaddr_un un;
        local_address(&un, ports[i]);
        unlink(un.sun_path);
    }
    if (rmdir(folder) != 0) {
        perror(folder);
    }
}

int rig_run(const char *name, const suite_group *groups, size_t count)
{
    if (mkdtemp(folder) == NULL) {
        perror(folder);
        return EXIT_FAILURE;
    }
    int status = suite_run_groups(name, groups, count);
    remove_folder();
    return status;
}
