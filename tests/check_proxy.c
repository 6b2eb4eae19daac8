/* SPDX-License-Identifier: MIT */
/* The tests' own proxy: what it passes on, how it treats new connections, and that threads may use it. */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proxy_rig.h"

enum {
    LARGE = 3 * 1000000, /* more than the buffers of the sockets and the proxy hold */
};

/* ---- passing on ------------------------------------------------------------------------------------------------ */

START_TEST(bytes_pass_both_ways_and_are_counted_from_the_mark)
{
    rig r;
    rig_open(&r, _i != 0);
    rig_connect(&r);
    rig_exchange(&r);
    ck_assert_uint_eq(wire_proxy_look(r.proxy, r.wire).passed[WIRE_TO_SERVER], RIG_REQUEST);
    ck_assert_uint_eq(wire_proxy_look(r.proxy, r.wire).passed[WIRE_TO_CLIENT], RIG_ANSWER);
    ck_assert(wire_proxy_mark(r.proxy, r.wire));
    ck_assert_uint_eq(wire_proxy_look(r.proxy, r.wire).passed[WIRE_TO_SERVER], 0);
    rig_exchange(&r);
    rig_exchange(&r);
    ck_assert_uint_eq(wire_proxy_look(r.proxy, r.wire).passed[WIRE_TO_SERVER], 2 * RIG_REQUEST);
    ck_assert_uint_eq(wire_proxy_look(r.proxy, r.wire).passed[WIRE_TO_CLIENT], 2 * RIG_ANSWER);
    ck_assert_uint_eq(wire_proxy_connections(r.proxy), 1);
    rig_close(&r);
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
    rig_open(&r, _i / 2 != 0);
    rig_connect(&r);
    bool to_server = _i % 2 == 0;
    sender s = {.socket = to_server ? r.client : r.server};
    pthread_create(&thread, NULL, send_large, &s);
    ck_assert_uint_eq(receive_large(to_server ? r.server : r.client, LARGE), LARGE);
    pthread_join(thread, NULL);
    rig_close(&r);
}
END_TEST

START_TEST(an_end_of_stream_passes_and_the_answer_still_comes)
{
    rig r;
    rig_open(&r, _i != 0);
    rig_connect(&r);
    rig_send(r.client, rig_request, RIG_REQUEST);
    shutdown(r.client, SHUT_WR);
    rig_expect_end(&r, r.server, rig_request, RIG_REQUEST, WIRE_FIN);
    rig_send(r.server, rig_answer, RIG_ANSWER);
    close(r.server);
    rig_expect_end(&r, r.client, rig_answer, RIG_ANSWER, WIRE_FIN);
    rig_close(&r);
}
END_TEST

START_TEST(a_reset_passes)
{
    rig r;
    struct linger at_once = {.l_onoff = 1};
    rig_open(&r, false);
    for (int end = 0; end < 2; end++) {
        rig_connect(&r);
        rig_exchange(&r);
        int *reset = end == 0 ? &r.client : &r.server;
        setsockopt(*reset, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
        close(*reset);
        *reset = dup(2);
        rig_expect_end(&r, end == 0 ? r.server : r.client, "", 0, WIRE_RST);
        ck_assert(wire_proxy_wait(r.proxy, r.wire, WIRE_CLIENT_GONE, 0, RIG_LIMIT_MS));
        ck_assert(wire_proxy_wait(r.proxy, r.wire, WIRE_SERVER_GONE, 0, RIG_LIMIT_MS));
        rig_hang_up(&r);
    }
    rig_close(&r);
}
END_TEST

START_TEST(connections_are_numbered_and_many_may_follow_each_other)
{
    rig r;
    rig_open(&r, true);
    for (unsigned i = 1; i <= 300; i++) {
        rig_connect(&r);
        rig_exchange(&r);
        ck_assert_uint_eq(wire_proxy_connections(r.proxy), i);
        rig_hang_up(&r);
    }
    /* Forgotten, and ended. */
    ck_assert(wire_proxy_look(r.proxy, 1).connected);
    ck_assert(wire_proxy_look(r.proxy, 1).client_gone);
    ck_assert(!wire_proxy_mark(r.proxy, 1));
    ck_assert(!wire_proxy_look(r.proxy, 301).connected);
    rig_close(&r);
}
END_TEST

/* ---- new connections ------------------------------------------------------------------------------------------- */

START_TEST(refused_is_econnrefused_and_those_that_exist_go_on)
{
    rig r;
    rig_open(&r, _i != 0);
    rig_connect(&r);
    for (int round = 0; round < 3; round++) {
        wire_proxy_admit(r.proxy, WIRE_REFUSE);
        ck_assert_int_eq(rig_dial(&r), -1);
        ck_assert_int_eq(errno, ECONNREFUSED);
        rig_exchange(&r);
        wire_proxy_admit(r.proxy, WIRE_ADMIT);
        rig_hang_up(&r);
        rig_connect(&r);
        rig_exchange(&r);
    }
    rig_close(&r);
}
END_TEST

START_TEST(a_silent_proxy_accepts_and_says_nothing_until_released)
{
    rig r;
    rig_open(&r, _i != 0);
    wire_proxy_admit(r.proxy, WIRE_SILENT);
    rig_connect(&r);
    rig_send(r.client, rig_request, RIG_REQUEST);
    rig_send(r.server, rig_answer, RIG_ANSWER);
    rig_expect_quiet(r.server);
    rig_expect_quiet(r.client);
    wire_proxy_release(r.proxy, r.wire);
    rig_expect(r.server, rig_request, RIG_REQUEST);
    rig_expect(r.client, rig_answer, RIG_ANSWER);
    rig_close(&r);
}
END_TEST

START_TEST(without_a_server_the_client_is_reset)
{
    rig r;
    size_t came;
    rig_open(&r, false);
    rig_close_end(&r.listener);
    r.client = rig_dial(&r);
    ck_assert_int_ge(r.client, 0);
    ck_assert_uint_eq(rig_read_to_end(r.client, &came), WIRE_RST);
    ck_assert_uint_eq(came, 0);
    ck_assert(wire_proxy_wait(r.proxy, 1, WIRE_SERVER_GONE, 0, RIG_LIMIT_MS));
    rig_close(&r);
}
END_TEST

START_TEST(waiting_for_what_does_not_come_ends_at_its_limit)
{
    rig r;
    rig_open(&r, false);
    rig_connect(&r);
    int64_t began = now_ms();
    ck_assert(!wire_proxy_wait(r.proxy, r.wire, WIRE_PASSED_TO_SERVER, 1, 50));
    ck_assert_int_ge(now_ms() - began, 50);
    ck_assert(!wire_proxy_wait(r.proxy, 2, WIRE_CONNECTED, 0, 0));
    rig_close(&r);
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

/* ---- threads --------------------------------------------------------------------------------------------------- */

/* What a connection sends comes back. */
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
        char got[RIG_REQUEST];
        int s = rig_dial(r);
        if (s < 0) {
            continue;
        }
        for (int i = 0; i < 10; i++) {
            if (send(s, rig_request, RIG_REQUEST, MSG_NOSIGNAL) != RIG_REQUEST ||
                recv(s, got, RIG_REQUEST, MSG_WAITALL) != RIG_REQUEST) {
                break;
            }
            if (memcmp(got, rig_request, RIG_REQUEST) != 0) {
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
    rig_open(&r, _i != 0);
    pthread_create(&server, NULL, echo, &r.listener);
    for (int i = 0; i < CALLERS; i++) {
        pthread_create(&callers[i], NULL, call_often, &r);
    }
    /* Each connection meets a fault of another kind at another byte, or none. */
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
    rig_close(&r);
}
END_TEST

int main(void)
{
    const TTest *const once[] = {
        a_reset_passes,
        connections_are_numbered_and_many_may_follow_each_other,
        without_a_server_the_client_is_reset,
        waiting_for_what_does_not_come_ends_at_its_limit,
        a_proxy_that_cannot_be_opened_is_null_with_errno,
    };
    const TTest *const both[] = {
        bytes_pass_both_ways_and_are_counted_from_the_mark, an_end_of_stream_passes_and_the_answer_still_comes,
        refused_is_econnrefused_and_those_that_exist_go_on, a_silent_proxy_accepts_and_says_nothing_until_released,
        threads_may_use_it_while_its_wires_are_cut,
    };
    const TTest *const ways[] = {
        large_amounts_pass_unchanged,
    };
    const suite_group groups[] = {
        {"once", 1, once, sizeof once / sizeof *once},
        {"TCP, Unix", 2, both, sizeof both / sizeof *both},
        {"TCP, Unix; either way", 4, ways, sizeof ways / sizeof *ways},
    };
    return rig_run("proxy", groups, sizeof groups / sizeof *groups);
}
