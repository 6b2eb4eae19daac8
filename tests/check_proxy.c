/* SPDX-License-Identifier: MIT */
/* The tests' own proxy: each of its faults, seen from both ends through plain sockets, over TCP and over Unix sockets. */
#include <arpa/inet.h>
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "suite.h"
#include "wire_proxy.h"

enum {
    SERVER_PORT = 1,     /* of the server's Unix socket, in its name only */
    LIMIT_MS = 5000,     /* for what must happen */
    QUIET_MS = 30,       /* for what must not */
    LARGE = 3 * 1000000, /* more than the buffers of the sockets and the proxy hold */
};

static const char request[] = "SELECT 1";
static const char answer[] = "one row";
enum {
    REQUEST = sizeof request - 1,
    ANSWER = sizeof answer - 1,
};

/* ---- a client, the proxy, and a server ------------------------------------------------------------------------------------- */

/* Made in the parent of the tests, which removes it also when one dies. */
static char folder[] = "/tmp/check-proxy.XXXXXX";

static void remove_folder(void)
{
    char path[sizeof folder + 32];
    for (int port = SERVER_PORT; port <= 5432; port += 5432 - SERVER_PORT) {
        snprintf(path, sizeof path, "%s/.s.PGSQL.%d", folder, port);
        unlink(path);
    }
    if (rmdir(folder) != 0) {
        perror(folder);
    }
}

typedef struct {
    bool local;
    int listener; /* the server's */
    wire_proxy *proxy;
    unsigned wire; /* the newest connection */
    int client, server;
} rig;

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
    struct timeval t = {.tv_sec = LIMIT_MS / 1000};
    ck_assert_int_eq(setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t), 0);
    ck_assert_int_eq(setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t), 0);
}

/* A new client of the proxy; -1 with errno if it is refused. */
static int dial(const rig *r)
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

static void open_proxy(rig *r, bool local)
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

static void connect_both(rig *r)
{
    r->client = dial(r);
    ck_assert_msg(r->client >= 0, "cannot connect: %s", strerror(errno));
    r->server = answer_call(r);
    r->wire++;
    /* The server may be called before the proxy has taken note. */
    ck_assert(wire_proxy_wait(r->proxy, r->wire, WIRE_CONNECTED, 0, LIMIT_MS));
}

static void hang_up(rig *r)
{
    close(r->client);
    close(r->server);
}

static void close_all(rig *r)
{
    wire_proxy_close(r->proxy);
    hang_up(r);
    close(r->listener);
}

/* ---- what either end sends and reads --------------------------------------------------------------------------------------- */

static void put(int s, const char *bytes, size_t size)
{
    ck_assert_int_eq(send(s, bytes, size, MSG_NOSIGNAL), (ssize_t)size);
}

static void expect(int s, const char *bytes, size_t size)
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
static unsigned read_to_end(int s, size_t *came)
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

/* After exactly these bytes. A Unix socket may show an end that it was not asked for as a reset, and always a reset as an end. */
static void expect_end(const rig *r, int s, const char *bytes, size_t size, unsigned how)
{
    size_t more;
    expect(s, bytes, size);
    unsigned end = read_to_end(s, &more);
    ck_assert_msg(more == 0, "%zu bytes and then %zu more", size, more);
    if (!r->local) {
        ck_assert_msg(end == (how & WIRE_RST), "the end is a %s", end == WIRE_RST ? "reset" : "FIN");
    }
}

static void expect_quiet(int s)
{
    struct pollfd p = {.fd = s, .events = POLLIN};
    ck_assert_msg(poll(&p, 1, QUIET_MS) == 0, "something came where nothing should");
}

static void serve(rig *r)
{
    expect(r->server, request, REQUEST);
    put(r->server, answer, ANSWER);
}

static void exchange(rig *r)
{
    put(r->client, request, REQUEST);
    serve(r);
    expect(r->client, answer, ANSWER);
}

/* The four cases of many tests: TCP with FIN and RST, Unix with FIN and RST. */
static bool case_is_local(int i)
{
    return i / 2 != 0;
}

static unsigned case_how(int i)
{
    return i % 2 != 0 ? WIRE_RST : WIRE_FIN;
}

/* ---- passing on ------------------------------------------------------------------------------------------------------------- */

START_TEST(bytes_pass_both_ways_and_are_counted_from_the_mark)
{
    rig r;
    open_proxy(&r, _i != 0);
    connect_both(&r);
    exchange(&r);
    ck_assert_uint_eq(wire_proxy_look(r.proxy, r.wire).passed[WIRE_TO_SERVER], REQUEST);
    ck_assert_uint_eq(wire_proxy_look(r.proxy, r.wire).passed[WIRE_TO_CLIENT], ANSWER);
    ck_assert(wire_proxy_mark(r.proxy, r.wire));
    ck_assert_uint_eq(wire_proxy_look(r.proxy, r.wire).passed[WIRE_TO_SERVER], 0);
    exchange(&r);
    exchange(&r);
    ck_assert_uint_eq(wire_proxy_look(r.proxy, r.wire).passed[WIRE_TO_SERVER], 2 * REQUEST);
    ck_assert_uint_eq(wire_proxy_look(r.proxy, r.wire).passed[WIRE_TO_CLIENT], 2 * ANSWER);
    ck_assert_uint_eq(wire_proxy_connections(r.proxy), 1);
    close_all(&r);
}
END_TEST

typedef struct {
    int socket;
    size_t sent;
} sender;

/* Byte n is n modulo 251, which no power of two of a buffer's size divides. */
static void *send_large(void *argument)
{
    sender *s = argument;
    static unsigned char pattern[251 * 64];
    for (size_t i = 0; i < sizeof pattern; i++) {
        pattern[i] = (unsigned char)(i % 251);
    }
    for (s->sent = 0; s->sent < LARGE;) {
        size_t at = s->sent % 251, size = sizeof pattern - at;
        ssize_t n = send(s->socket, pattern + at, size < LARGE - s->sent ? size : LARGE - s->sent, MSG_NOSIGNAL);
        if (n <= 0) {
            break;
        }
        s->sent += (size_t)n;
    }
    return NULL;
}

static size_t receive_large(int socket, size_t limit_bytes)
{
    unsigned char bytes[20000];
    size_t came = 0;
    ssize_t n;
    while (came < limit_bytes && (n = recv(socket, bytes, sizeof bytes, 0)) > 0) {
        ssize_t i = 0;
        while (i < n && bytes[i] == (came + (size_t)i) % 251) {
            i++;
        }
        ck_assert_msg(i == n, "byte %zu is wrong", came + (size_t)i);
        came += (size_t)n;
    }
    return came;
}

START_TEST(large_amounts_pass_unchanged)
{
    rig r;
    pthread_t thread;
    open_proxy(&r, _i / 2 != 0);
    connect_both(&r);
    bool to_server = _i % 2 == 0;
    sender s = {.socket = to_server ? r.client : r.server};
    pthread_create(&thread, NULL, send_large, &s);
    ck_assert_uint_eq(receive_large(to_server ? r.server : r.client, LARGE), LARGE);
    pthread_join(thread, NULL);
    close_all(&r);
}
END_TEST

START_TEST(an_end_of_stream_passes_and_the_answer_still_comes)
{
    rig r;
    open_proxy(&r, _i != 0);
    connect_both(&r);
    put(r.client, request, REQUEST);
    shutdown(r.client, SHUT_WR);
    expect_end(&r, r.server, request, REQUEST, WIRE_FIN);
    put(r.server, answer, ANSWER);
    close(r.server);
    expect_end(&r, r.client, answer, ANSWER, WIRE_FIN);
    close_all(&r);
}
END_TEST

START_TEST(a_reset_passes)
{
    rig r;
    struct linger at_once = {.l_onoff = 1};
    open_proxy(&r, false);
    for (int end = 0; end < 2; end++) {
        connect_both(&r);
        exchange(&r);
        int *reset = end == 0 ? &r.client : &r.server;
        setsockopt(*reset, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
        close(*reset);
        *reset = dup(2);
        expect_end(&r, end == 0 ? r.server : r.client, "", 0, WIRE_RST);
        ck_assert(wire_proxy_wait(r.proxy, r.wire, WIRE_CLIENT_GONE, 0, LIMIT_MS));
        ck_assert(wire_proxy_wait(r.proxy, r.wire, WIRE_SERVER_GONE, 0, LIMIT_MS));
        hang_up(&r);
    }
    close_all(&r);
}
END_TEST

START_TEST(connections_are_numbered_and_many_may_follow_each_other)
{
    rig r;
    open_proxy(&r, true);
    for (unsigned i = 1; i <= 300; i++) {
        connect_both(&r);
        exchange(&r);
        ck_assert_uint_eq(wire_proxy_connections(r.proxy), i);
        hang_up(&r);
    }
    /* Forgotten, and ended. */
    ck_assert(wire_proxy_look(r.proxy, 1).connected);
    ck_assert(wire_proxy_look(r.proxy, 1).client_gone);
    ck_assert(!wire_proxy_mark(r.proxy, 1));
    ck_assert(!wire_proxy_look(r.proxy, 301).connected);
    close_all(&r);
}
END_TEST

/* ---- cuts ------------------------------------------------------------------------------------------------------------------- */

START_TEST(cut_to_server_lets_exactly_n_bytes_through)
{
    rig r;
    open_proxy(&r, case_is_local(_i));
    for (size_t n = 0;; n++) {
        connect_both(&r);
        exchange(&r);
        ck_assert(wire_proxy_mark(r.proxy, r.wire));
        ck_assert(wire_proxy_cut_after(r.proxy, r.wire, WIRE_TO_SERVER, n, case_how(_i)));
        put(r.client, request, REQUEST);
        if (n > REQUEST) {
            expect(r.server, request, REQUEST);
            ck_assert(!wire_proxy_fired(r.proxy, r.wire, WIRE_TO_SERVER));
            break;
        }
        expect_end(&r, r.server, request, n, case_how(_i));
        expect_end(&r, r.client, "", 0, case_how(_i));
        ck_assert(wire_proxy_fired(r.proxy, r.wire, WIRE_TO_SERVER));
        ck_assert_uint_eq(wire_proxy_look(r.proxy, r.wire).passed[WIRE_TO_SERVER], n);
        hang_up(&r);
    }
    close_all(&r);
}
END_TEST

START_TEST(cut_to_client_lets_the_request_and_exactly_n_bytes_of_the_answer_through)
{
    rig r;
    open_proxy(&r, case_is_local(_i));
    for (size_t n = 0;; n++) {
        char lost[64];
        connect_both(&r);
        exchange(&r);
        ck_assert(wire_proxy_mark(r.proxy, r.wire));
        ck_assert(wire_proxy_cut_after(r.proxy, r.wire, WIRE_TO_CLIENT, n, case_how(_i)));
        put(r.client, request, REQUEST);
        serve(&r);
        if (n > ANSWER) {
            expect(r.client, answer, ANSWER);
            ck_assert(!wire_proxy_fired(r.proxy, r.wire, WIRE_TO_CLIENT));
            break;
        }
        expect_end(&r, r.client, answer, n, case_how(_i));
        expect_end(&r, r.server, "", 0, case_how(_i));
        ck_assert_uint_eq(wire_proxy_look(r.proxy, r.wire).passed[WIRE_TO_CLIENT], n);
        ck_assert_uint_eq(wire_proxy_withheld(r.proxy, r.wire, WIRE_TO_CLIENT, lost, sizeof lost), ANSWER - n);
        ck_assert_mem_eq(lost, answer + n, ANSWER - n);
        hang_up(&r);
    }
    close_all(&r);
}
END_TEST

START_TEST(a_cut_does_not_touch_other_connections)
{
    rig r;
    open_proxy(&r, false);
    connect_both(&r);
    int first_client = r.client, first_server = r.server;
    connect_both(&r);
    ck_assert(wire_proxy_cut_after(r.proxy, 1, WIRE_TO_SERVER, 3, WIRE_RST));
    exchange(&r);
    put(first_client, request, REQUEST);
    expect_end(&r, first_server, request, 3, WIRE_RST);
    exchange(&r);
    close(first_client);
    close(first_server);
    close_all(&r);
}
END_TEST

START_TEST(a_connection_that_is_still_to_come_can_be_cut)
{
    rig r;
    open_proxy(&r, false);
    connect_both(&r);
    hang_up(&r);
    ck_assert(wire_proxy_cut_after(r.proxy, 2, WIRE_TO_SERVER, 4, WIRE_FIN));
    connect_both(&r);
    put(r.client, request, REQUEST);
    expect_end(&r, r.server, request, 4, WIRE_FIN);
    close_all(&r);
}
END_TEST

START_TEST(a_reset_waits_for_what_was_passed_on)
{
    /* To a server with room for little, which reads only after a reset would have overtaken the rest. */
    enum {
        CUT_AT = 100000,
    };
    static char bytes[CUT_AT + 1];
    rig r;
    int room = 4096;
    size_t came;
    open_proxy(&r, false);
    ck_assert_int_eq(setsockopt(r.listener, SOL_SOCKET, SO_RCVBUF, &room, sizeof room), 0);
    connect_both(&r);
    ck_assert(wire_proxy_cut_after(r.proxy, r.wire, WIRE_TO_SERVER, CUT_AT, WIRE_RST));
    put(r.client, bytes, sizeof bytes);
    poll(NULL, 0, QUIET_MS);
    ck_assert_uint_eq(read_to_end(r.server, &came), WIRE_RST);
    ck_assert_uint_eq(came, CUT_AT);
    ck_assert_uint_eq(read_to_end(r.client, &came), WIRE_RST);
    close_all(&r);
}
END_TEST

START_TEST(cut_at_once_ends_both_sides)
{
    rig r;
    open_proxy(&r, case_is_local(_i));
    connect_both(&r);
    put(r.client, request, REQUEST);
    wire_proxy_cut(r.proxy, r.wire, case_how(_i));
    /* What had been sent before the call has been passed on. */
    expect_end(&r, r.server, request, REQUEST, case_how(_i));
    expect_end(&r, r.client, "", 0, case_how(_i));
    close_all(&r);
}
END_TEST

START_TEST(drained_cut_to_server_brings_the_answer_to_what_the_server_got)
{
    rig r;
    open_proxy(&r, case_is_local(_i));
    connect_both(&r);
    ck_assert(wire_proxy_cut_after(r.proxy, r.wire, WIRE_TO_SERVER, 6, case_how(_i) | WIRE_DRAIN));
    put(r.client, request, REQUEST);
    expect_end(&r, r.server, request, 6, WIRE_FIN);
    expect_quiet(r.client);
    put(r.server, answer, ANSWER);
    close(r.server);
    r.server = dup(2);
    expect_end(&r, r.client, answer, ANSWER, case_how(_i));
    close_all(&r);
}
END_TEST

/* Sends until nobody takes any more: the server reads nothing. */
static size_t fill(int s)
{
    static char zeros[65536];
    size_t sent = 0;
    ssize_t n;
    struct pollfd p = {.fd = s, .events = POLLOUT};
    /* What the proxy has read meanwhile makes room again. */
    while (poll(&p, 1, QUIET_MS) > 0 && (n = send(s, zeros, sizeof zeros, MSG_DONTWAIT | MSG_NOSIGNAL)) > 0) {
        sent += (size_t)n;
    }
    return sent;
}

START_TEST(drained_cut_to_client_brings_the_server_what_the_client_had_sent)
{
    rig r;
    size_t came, more;
    open_proxy(&r, case_is_local(_i / 2));
    bool drained = _i % 2 == 0;
    connect_both(&r);
    size_t sent = fill(r.client);
    ck_assert(wire_proxy_cut_after(r.proxy, r.wire, WIRE_TO_CLIENT, 1, case_how(_i / 2) | (drained ? WIRE_DRAIN : 0)));
    put(r.server, answer, ANSWER);
    read_to_end(r.server, &came);
    if (drained) {
        ck_assert_uint_eq(came, sent);
    } else {
        ck_assert_uint_lt(came, sent);
    }
    read_to_end(r.client, &more);
    ck_assert_uint_eq(more, 1);
    close_all(&r);
}
END_TEST

START_TEST(a_server_that_is_not_told_hears_nothing_until_released)
{
    rig r;
    char said[64];
    open_proxy(&r, case_is_local(_i));
    connect_both(&r);
    ck_assert(wire_proxy_cut_after(r.proxy, r.wire, WIRE_TO_SERVER, 6, case_how(_i) | WIRE_KEEP_SERVER));
    put(r.client, request, REQUEST);
    expect_end(&r, r.client, "", 0, case_how(_i));
    close(r.client);
    r.client = dup(2);
    expect(r.server, request, 6);
    expect_quiet(r.server);
    put(r.server, answer, ANSWER);
    ck_assert(wire_proxy_wait(r.proxy, r.wire, WIRE_WITHHELD_TO_CLIENT, ANSWER, LIMIT_MS));
    ck_assert_uint_eq(wire_proxy_withheld(r.proxy, r.wire, WIRE_TO_CLIENT, said, sizeof said), ANSWER);
    ck_assert_mem_eq(said, answer, ANSWER);
    ck_assert(!wire_proxy_look(r.proxy, r.wire).server_gone);
    wire_proxy_release(r.proxy, r.wire);
    expect_end(&r, r.server, "", 0, case_how(_i));
    close_all(&r);
}
END_TEST

START_TEST(a_client_that_is_not_told_hears_nothing_until_cut)
{
    rig r;
    open_proxy(&r, case_is_local(_i));
    connect_both(&r);
    ck_assert(wire_proxy_cut_after(r.proxy, r.wire, WIRE_TO_CLIENT, 0, case_how(_i) | WIRE_KEEP_CLIENT));
    put(r.client, request, REQUEST);
    serve(&r);
    expect_end(&r, r.server, "", 0, case_how(_i));
    put(r.client, request, REQUEST);
    expect_quiet(r.client);
    wire_proxy_cut(r.proxy, r.wire, case_how(_i));
    expect_end(&r, r.client, "", 0, case_how(_i));
    close_all(&r);
}
END_TEST

START_TEST(a_forked_copy_of_the_sockets_does_not_keep_a_cut_connection)
{
    rig r;
    open_proxy(&r, case_is_local(_i));
    connect_both(&r);
    int pipe_end[2];
    ck_assert_int_eq(pipe(pipe_end), 0);
    pid_t child = fork();
    if (child == 0) {
        char byte;
        close(pipe_end[1]);
        _exit(read(pipe_end[0], &byte, 1) == 0 ? 0 : 1);
    }
    close(pipe_end[0]);
    wire_proxy_cut(r.proxy, r.wire, case_how(_i));
    expect_end(&r, r.server, "", 0, case_how(_i));
    expect_end(&r, r.client, "", 0, case_how(_i));
    close(pipe_end[1]);
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
    close_all(&r);
}
END_TEST

/* ---- stops, delays, late bytes --------------------------------------------------------------------------------------------- */

START_TEST(a_stopped_direction_passes_nothing_until_released)
{
    rig r;
    open_proxy(&r, _i != 0);
    connect_both(&r);
    ck_assert(wire_proxy_stop_after(r.proxy, r.wire, WIRE_TO_CLIENT, 3));
    put(r.client, request, REQUEST);
    serve(&r);
    expect(r.client, answer, 3);
    expect_quiet(r.client);
    ck_assert(wire_proxy_fired(r.proxy, r.wire, WIRE_TO_CLIENT));
    /* The other one goes on, and the server's end is not told. */
    put(r.client, request, REQUEST);
    expect(r.server, request, REQUEST);
    close(r.server);
    r.server = dup(2);
    expect_quiet(r.client);
    wire_proxy_release(r.proxy, r.wire);
    expect_end(&r, r.client, answer + 3, ANSWER - 3, WIRE_FIN);
    close_all(&r);
}
END_TEST

START_TEST(stopped_both_ways_it_is_a_dead_wire)
{
    rig r;
    open_proxy(&r, false);
    connect_both(&r);
    ck_assert(wire_proxy_stop_after(r.proxy, r.wire, WIRE_TO_SERVER, 0));
    ck_assert(wire_proxy_stop_after(r.proxy, r.wire, WIRE_TO_CLIENT, 0));
    put(r.client, request, REQUEST);
    put(r.server, answer, ANSWER);
    expect_quiet(r.client);
    expect_quiet(r.server);
    wire_view v = wire_proxy_look(r.proxy, r.wire);
    ck_assert(v.fired[WIRE_TO_SERVER] && v.fired[WIRE_TO_CLIENT]);
    ck_assert(v.passed[WIRE_TO_SERVER] == 0 && v.passed[WIRE_TO_CLIENT] == 0);
    wire_proxy_release(r.proxy, r.wire);
    expect(r.client, answer, ANSWER);
    expect(r.server, request, REQUEST);
    close_all(&r);
}
END_TEST

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

START_TEST(a_delayed_direction_goes_on_by_itself)
{
    rig r;
    open_proxy(&r, false);
    connect_both(&r);
    ck_assert(wire_proxy_delay_after(r.proxy, r.wire, WIRE_TO_SERVER, 3, 100));
    int64_t began = now_ms();
    put(r.client, request, REQUEST);
    expect(r.server, request, 3);
    ck_assert_int_lt(now_ms() - began, 100);
    expect(r.server, request + 3, REQUEST - 3);
    ck_assert_int_ge(now_ms() - began, 100);
    exchange(&r);
    close_all(&r);
}
END_TEST

START_TEST(held_bytes_arrive_late_after_the_client_was_cut_off)
{
    rig r;
    char said[64];
    open_proxy(&r, case_is_local(_i));
    for (size_t n = 0; n < REQUEST; n++) {
        connect_both(&r);
        exchange(&r);
        ck_assert(wire_proxy_mark(r.proxy, r.wire));
        ck_assert(wire_proxy_hold_after(r.proxy, r.wire, n, REQUEST - n, case_how(_i)));
        put(r.client, request, REQUEST);
        expect_end(&r, r.client, "", 0, case_how(_i));
        close(r.client);
        r.client = dup(2);
        expect(r.server, request, n);
        expect_quiet(r.server);
        ck_assert_uint_eq(wire_proxy_look(r.proxy, r.wire).withheld[WIRE_TO_SERVER], REQUEST - n);
        wire_proxy_release(r.proxy, r.wire);
        expect_end(&r, r.server, request + n, REQUEST - n, WIRE_FIN);
        put(r.server, answer, ANSWER);
        close(r.server);
        r.server = dup(2);
        ck_assert(wire_proxy_wait(r.proxy, r.wire, WIRE_SERVER_GONE, 0, LIMIT_MS));
        ck_assert_uint_eq(wire_proxy_withheld(r.proxy, r.wire, WIRE_TO_CLIENT, said, sizeof said), ANSWER);
        ck_assert_mem_eq(said, answer, ANSWER);
        hang_up(&r);
    }
    close_all(&r);
}
END_TEST

START_TEST(held_bytes_of_a_client_that_stays_go_on_as_if_nothing_was)
{
    rig r;
    open_proxy(&r, _i != 0);
    connect_both(&r);
    ck_assert(wire_proxy_hold_after(r.proxy, r.wire, 2, 0, WIRE_FIN));
    put(r.client, request, REQUEST);
    ck_assert(wire_proxy_wait(r.proxy, r.wire, WIRE_WITHHELD_TO_SERVER, REQUEST - 2, LIMIT_MS));
    expect(r.server, request, 2);
    expect_quiet(r.server);
    expect_quiet(r.client);
    wire_proxy_release(r.proxy, r.wire);
    expect(r.server, request + 2, REQUEST - 2);
    exchange(&r);
    close_all(&r);
}
END_TEST

START_TEST(held_bytes_of_a_client_that_went_by_itself_arrive_late)
{
    rig r;
    open_proxy(&r, _i != 0);
    connect_both(&r);
    ck_assert(wire_proxy_hold_after(r.proxy, r.wire, 0, 0, WIRE_FIN));
    put(r.client, request, REQUEST);
    close(r.client);
    r.client = dup(2);
    ck_assert(wire_proxy_wait(r.proxy, r.wire, WIRE_CLIENT_GONE, 0, LIMIT_MS));
    expect_quiet(r.server);
    wire_proxy_release(r.proxy, r.wire);
    expect_end(&r, r.server, request, REQUEST, WIRE_FIN);
    close_all(&r);
}
END_TEST

START_TEST(a_mark_forgets_faults_that_have_not_fired)
{
    rig r;
    open_proxy(&r, false);
    connect_both(&r);
    ck_assert(wire_proxy_cut_after(r.proxy, r.wire, WIRE_TO_SERVER, REQUEST + 1, WIRE_RST));
    ck_assert(wire_proxy_cut_after(r.proxy, r.wire, WIRE_TO_CLIENT, ANSWER + 1, WIRE_RST));
    exchange(&r);
    ck_assert(wire_proxy_mark(r.proxy, r.wire));
    exchange(&r);
    exchange(&r);
    close_all(&r);
}
END_TEST

/* ---- new connections ------------------------------------------------------------------------------------------------------- */

START_TEST(refused_is_econnrefused_and_those_that_exist_go_on)
{
    rig r;
    open_proxy(&r, _i != 0);
    connect_both(&r);
    for (int round = 0; round < 3; round++) {
        wire_proxy_admit(r.proxy, WIRE_REFUSE);
        ck_assert_int_eq(dial(&r), -1);
        ck_assert_int_eq(errno, ECONNREFUSED);
        exchange(&r);
        wire_proxy_admit(r.proxy, WIRE_ADMIT);
        hang_up(&r);
        connect_both(&r);
        exchange(&r);
    }
    close_all(&r);
}
END_TEST

START_TEST(a_silent_proxy_accepts_and_says_nothing_until_released)
{
    rig r;
    open_proxy(&r, _i != 0);
    wire_proxy_admit(r.proxy, WIRE_SILENT);
    connect_both(&r);
    put(r.client, request, REQUEST);
    put(r.server, answer, ANSWER);
    expect_quiet(r.server);
    expect_quiet(r.client);
    wire_proxy_release(r.proxy, r.wire);
    expect(r.server, request, REQUEST);
    expect(r.client, answer, ANSWER);
    close_all(&r);
}
END_TEST

START_TEST(without_a_server_the_client_is_reset)
{
    rig r;
    size_t came;
    open_proxy(&r, false);
    close(r.listener);
    r.listener = dup(2);
    r.client = dial(&r);
    ck_assert_int_ge(r.client, 0);
    ck_assert_uint_eq(read_to_end(r.client, &came), WIRE_RST);
    ck_assert_uint_eq(came, 0);
    ck_assert(wire_proxy_wait(r.proxy, 1, WIRE_SERVER_GONE, 0, LIMIT_MS));
    close_all(&r);
}
END_TEST

START_TEST(waiting_for_what_does_not_come_ends_at_its_limit)
{
    rig r;
    open_proxy(&r, false);
    connect_both(&r);
    int64_t began = now_ms();
    ck_assert(!wire_proxy_wait(r.proxy, r.wire, WIRE_PASSED_TO_SERVER, 1, 50));
    ck_assert_int_ge(now_ms() - began, 50);
    ck_assert(!wire_proxy_wait(r.proxy, 2, WIRE_CONNECTED, 0, 0));
    close_all(&r);
}
END_TEST

START_TEST(a_proxy_that_cannot_be_opened_is_null_with_errno)
{
    char long_folder[200];
    ck_assert_ptr_null(wire_proxy_open("localhost", 1, NULL));
    ck_assert_int_eq(errno, EINVAL);
    memset(long_folder, 'x', sizeof long_folder - 1);
    long_folder[0] = '/';
    long_folder[sizeof long_folder - 1] = '\0';
    ck_assert_ptr_null(wire_proxy_open("127.0.0.1", 1, long_folder));
    ck_assert_int_eq(errno, ENAMETOOLONG);
    ck_assert_ptr_null(wire_proxy_open("127.0.0.1", 1, "/nowhere"));
    ck_assert_int_eq(errno, ENOENT);
    wire_proxy_close(NULL);
}
END_TEST

/* ---- threads ---------------------------------------------------------------------------------------------------------------- */

/* Echoes what each connection sends, one after the other, until told to stop by the listener's end. */
static void *echo_connection(void *argument)
{
    int s = (int)(intptr_t)argument;
    char bytes[1024];
    ssize_t n;
    while ((n = recv(s, bytes, sizeof bytes, 0)) > 0 && send(s, bytes, (size_t)n, MSG_NOSIGNAL) == n) {
    }
    close(s);
    return NULL;
}

static void *echo(void *argument)
{
    int s;
    while ((s = accept(*(int *)argument, NULL, NULL)) >= 0) {
        pthread_t thread;
        limit(s);
        pthread_create(&thread, NULL, echo_connection, (void *)(intptr_t)s);
        pthread_detach(thread);
    }
    return NULL;
}

/* Calls again and again, and finds its own bytes or an end. */
static void *call_often(void *argument)
{
    const rig *r = argument;
    for (int call = 0; call < 50; call++) {
        char got[REQUEST];
        int s = dial(r);
        if (s < 0) {
            continue;
        }
        for (int i = 0; i < 10; i++) {
            if (send(s, request, REQUEST, MSG_NOSIGNAL) != REQUEST || recv(s, got, REQUEST, MSG_WAITALL) != REQUEST) {
                break;
            }
            if (memcmp(got, request, REQUEST) != 0) {
                return argument;
            }
        }
        close(s);
    }
    return NULL;
}

START_TEST(threads_may_use_it_while_its_wires_are_cut)
{
    enum {
        CALLERS = 8,
    };
    rig r;
    pthread_t server, callers[CALLERS];
    open_proxy(&r, _i != 0);
    pthread_create(&server, NULL, echo, &r.listener);
    for (int i = 0; i < CALLERS; i++) {
        pthread_create(&callers[i], NULL, call_often, &r);
    }
    /* Each connection is cut once, in turn somewhere else, or is allowed to end. */
    unsigned wire = 0;
    while (wire_proxy_wait(r.proxy, ++wire, WIRE_CONNECTED, 0, 200)) {
        switch (wire % 5) {
        case 0:
            wire_proxy_cut(r.proxy, wire, WIRE_RST);
            break;
        case 1:
            wire_proxy_cut_after(r.proxy, wire, WIRE_TO_CLIENT, wire % 60, WIRE_RST | WIRE_DRAIN);
            break;
        case 2:
            wire_proxy_delay_after(r.proxy, wire, WIRE_TO_SERVER, wire % 60, 1);
            break;
        case 3:
            wire_proxy_cut_after(r.proxy, wire, WIRE_TO_SERVER, wire % 60, WIRE_FIN);
            break;
        default:
            wire_proxy_mark(r.proxy, wire);
        }
    }
    for (int i = 0; i < CALLERS; i++) {
        void *wrong;
        pthread_join(callers[i], &wrong);
        ck_assert_ptr_null(wrong);
    }
    ck_assert_uint_eq(wire_proxy_connections(r.proxy), CALLERS * 50);
    shutdown(r.listener, SHUT_RDWR);
    pthread_join(server, NULL);
    close_all(&r);
}
END_TEST

/* ---- the suite -------------------------------------------------------------------------------------------------------------- */

static void add(Suite *suite, const char *group, const TTest *const tests[], int count, int loops)
{
    TCase *tcase = tcase_create(group);
    tcase_set_timeout(tcase, SUITE_SECONDS);
    for (int i = 0; i < count; i++) {
        tcase_add_loop_test(tcase, tests[i], 0, loops);
    }
    suite_add_tcase(suite, tcase);
}

#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

int main(void)
{
    /* For TCP and for Unix sockets. */
    const TTest *const both[] = {
        bytes_pass_both_ways_and_are_counted_from_the_mark,
        an_end_of_stream_passes_and_the_answer_still_comes,
        a_stopped_direction_passes_nothing_until_released,
        held_bytes_of_a_client_that_stays_go_on_as_if_nothing_was,
        held_bytes_of_a_client_that_went_by_itself_arrive_late,
        refused_is_econnrefused_and_those_that_exist_go_on,
        a_silent_proxy_accepts_and_says_nothing_until_released,
        threads_may_use_it_while_its_wires_are_cut,
    };
    /* And for FIN and RST. */
    const TTest *const four[] = {
        large_amounts_pass_unchanged,
        cut_to_server_lets_exactly_n_bytes_through,
        cut_to_client_lets_the_request_and_exactly_n_bytes_of_the_answer_through,
        cut_at_once_ends_both_sides,
        drained_cut_to_server_brings_the_answer_to_what_the_server_got,
        a_server_that_is_not_told_hears_nothing_until_released,
        a_client_that_is_not_told_hears_nothing_until_cut,
        a_forked_copy_of_the_sockets_does_not_keep_a_cut_connection,
        held_bytes_arrive_late_after_the_client_was_cut_off,
    };
    const TTest *const eight[] = {
        drained_cut_to_client_brings_the_server_what_the_client_had_sent,
    };
    const TTest *const once[] = {
        a_reset_passes,
        connections_are_numbered_and_many_may_follow_each_other,
        a_cut_does_not_touch_other_connections,
        a_connection_that_is_still_to_come_can_be_cut,
        a_reset_waits_for_what_was_passed_on,
        stopped_both_ways_it_is_a_dead_wire,
        a_delayed_direction_goes_on_by_itself,
        a_mark_forgets_faults_that_have_not_fired,
        without_a_server_the_client_is_reset,
        waiting_for_what_does_not_come_ends_at_its_limit,
        a_proxy_that_cannot_be_opened_is_null_with_errno,
    };
    Suite *suite = suite_create("proxy");
    add(suite, "tcp, unix", both, COUNT(both), 2);
    add(suite, "tcp, unix; fin, rst", four, COUNT(four), 4);
    add(suite, "tcp, unix; fin, rst; drained, not", eight, COUNT(eight), 8);
    add(suite, "once", once, COUNT(once), 1);
    if (mkdtemp(folder) == NULL) {
        perror(folder);
        return EXIT_FAILURE;
    }
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    remove_folder();
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
