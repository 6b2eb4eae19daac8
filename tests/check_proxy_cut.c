/* SPDX-License-Identifier: MIT */
/* The tests' own proxy cuts the wire: at every byte, in every manner, seen from both ends. */
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proxy_rig.h"

START_TEST(cut_to_server_lets_exactly_n_bytes_through)
{
    rig r;
    rig_open(&r, rig_local(_i));
    for (size_t n = 0;; n++) {
        rig_connect(&r);
        rig_exchange(&r);
        ck_assert(wire_proxy_mark(r.proxy, r.wire));
        ck_assert(wire_proxy_cut_after(r.proxy, r.wire, WIRE_TO_SERVER, n, rig_how(_i)));
        rig_send(r.client, rig_request, RIG_REQUEST);
        if (n > RIG_REQUEST) {
            rig_expect(r.server, rig_request, RIG_REQUEST);
            ck_assert(!wire_proxy_fired(r.proxy, r.wire, WIRE_TO_SERVER));
            break;
        }
        rig_expect_end(&r, r.server, rig_request, n, rig_how(_i));
        rig_expect_end(&r, r.client, "", 0, rig_how(_i));
        ck_assert(wire_proxy_fired(r.proxy, r.wire, WIRE_TO_SERVER));
        ck_assert_uint_eq(wire_proxy_look(r.proxy, r.wire).passed[WIRE_TO_SERVER], n);
        rig_hang_up(&r);
    }
    rig_close(&r);
}
END_TEST

START_TEST(cut_to_client_lets_the_request_and_exactly_n_bytes_of_the_answer_through)
{
    rig r;
    rig_open(&r, rig_local(_i));
    for (size_t n = 0;; n++) {
        char lost[64];
        rig_connect(&r);
        rig_exchange(&r);
        ck_assert(wire_proxy_mark(r.proxy, r.wire));
        ck_assert(wire_proxy_cut_after(r.proxy, r.wire, WIRE_TO_CLIENT, n, rig_how(_i)));
        rig_send(r.client, rig_request, RIG_REQUEST);
        rig_serve(&r);
        if (n > RIG_ANSWER) {
            rig_expect(r.client, rig_answer, RIG_ANSWER);
            ck_assert(!wire_proxy_fired(r.proxy, r.wire, WIRE_TO_CLIENT));
            break;
        }
        rig_expect_end(&r, r.client, rig_answer, n, rig_how(_i));
        rig_expect_end(&r, r.server, "", 0, rig_how(_i));
        ck_assert_uint_eq(wire_proxy_look(r.proxy, r.wire).passed[WIRE_TO_CLIENT], n);
        ck_assert_uint_eq(wire_proxy_withheld(r.proxy, r.wire, WIRE_TO_CLIENT, lost, sizeof lost), RIG_ANSWER - n);
        ck_assert_mem_eq(lost, rig_answer + n, RIG_ANSWER - n);
        rig_hang_up(&r);
    }
    rig_close(&r);
}
END_TEST

START_TEST(a_cut_does_not_touch_other_connections)
{
    rig r;
    rig_open(&r, false);
    rig_connect(&r);
    int first_client = r.client, first_server = r.server;
    rig_connect(&r);
    ck_assert(wire_proxy_cut_after(r.proxy, 1, WIRE_TO_SERVER, 3, WIRE_RST));
    rig_exchange(&r);
    rig_send(first_client, rig_request, RIG_REQUEST);
    rig_expect_end(&r, first_server, rig_request, 3, WIRE_RST);
    rig_exchange(&r);
    close(first_client);
    close(first_server);
    rig_close(&r);
}
END_TEST

START_TEST(a_connection_that_is_still_to_come_can_be_cut)
{
    rig r;
    rig_open(&r, false);
    rig_connect(&r);
    rig_hang_up(&r);
    ck_assert(wire_proxy_cut_after(r.proxy, 2, WIRE_TO_SERVER, 4, WIRE_FIN));
    rig_connect(&r);
    rig_send(r.client, rig_request, RIG_REQUEST);
    rig_expect_end(&r, r.server, rig_request, 4, WIRE_FIN);
    rig_close(&r);
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
    rig_open(&r, false);
    ck_assert_int_eq(setsockopt(r.listener, SOL_SOCKET, SO_RCVBUF, &room, sizeof room), 0);
    rig_connect(&r);
    ck_assert(wire_proxy_cut_after(r.proxy, r.wire, WIRE_TO_SERVER, CUT_AT, WIRE_RST));
    rig_send(r.client, bytes, sizeof bytes);
    pause_ms(RIG_QUIET_MS); /* a reset that is too early needs time to come */
    ck_assert_uint_eq(rig_read_to_end(r.server, &came), WIRE_RST);
    ck_assert_uint_eq(came, CUT_AT);
    ck_assert_uint_eq(rig_read_to_end(r.client, &came), WIRE_RST);
    rig_close(&r);
}
END_TEST

START_TEST(cut_at_once_ends_both_sides)
{
    rig r;
    rig_open(&r, rig_local(_i));
    rig_connect(&r);
    rig_send(r.client, rig_request, RIG_REQUEST);
    wire_proxy_cut(r.proxy, r.wire, rig_how(_i));
    /* What had been sent before the call has been passed on. */
    rig_expect_end(&r, r.server, rig_request, RIG_REQUEST, rig_how(_i));
    rig_expect_end(&r, r.client, "", 0, rig_how(_i));
    rig_close(&r);
}
END_TEST

START_TEST(drained_cut_to_server_brings_the_answer_to_what_the_server_got)
{
    rig r;
    rig_open(&r, rig_local(_i));
    rig_connect(&r);
    ck_assert(wire_proxy_cut_after(r.proxy, r.wire, WIRE_TO_SERVER, 6, rig_how(_i) | WIRE_DRAIN));
    rig_send(r.client, rig_request, RIG_REQUEST);
    rig_expect_end(&r, r.server, rig_request, 6, WIRE_FIN);
    rig_expect_quiet(r.client);
    rig_send(r.server, rig_answer, RIG_ANSWER);
    rig_close_end(&r.server);
    rig_expect_end(&r, r.client, rig_answer, RIG_ANSWER, rig_how(_i));
    rig_close(&r);
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
    while (poll(&p, 1, RIG_QUIET_MS) > 0 && (n = send(s, zeros, sizeof zeros, MSG_DONTWAIT | MSG_NOSIGNAL)) > 0) {
        sent += (size_t)n;
    }
    return sent;
}

START_TEST(drained_cut_to_client_brings_the_server_what_the_client_had_sent)
{
    rig r;
    size_t came, more;
    rig_open(&r, rig_local(_i / 2));
    bool drained = _i % 2 == 0;
    rig_connect(&r);
    size_t sent = fill(r.client);
    ck_assert(wire_proxy_cut_after(r.proxy, r.wire, WIRE_TO_CLIENT, 1, rig_how(_i / 2) | (drained ? WIRE_DRAIN : 0)));
    rig_send(r.server, rig_answer, RIG_ANSWER);
    rig_read_to_end(r.server, &came);
    if (drained) {
        ck_assert_uint_eq(came, sent);
    } else {
        ck_assert_uint_lt(came, sent);
    }
    rig_read_to_end(r.client, &more);
    ck_assert_uint_eq(more, 1);
    rig_close(&r);
}
END_TEST

START_TEST(a_server_that_is_not_told_hears_nothing_until_released)
{
    rig r;
    char said[64];
    rig_open(&r, rig_local(_i));
    rig_connect(&r);
    ck_assert(wire_proxy_cut_after(r.proxy, r.wire, WIRE_TO_SERVER, 6, rig_how(_i) | WIRE_KEEP_SERVER));
    rig_send(r.client, rig_request, RIG_REQUEST);
    rig_expect_end(&r, r.client, "", 0, rig_how(_i));
    rig_close_end(&r.client);
    rig_expect(r.server, rig_request, 6);
    rig_expect_quiet(r.server);
    rig_send(r.server, rig_answer, RIG_ANSWER);
    ck_assert(wire_proxy_wait(r.proxy, r.wire, WIRE_WITHHELD_TO_CLIENT, RIG_ANSWER, RIG_LIMIT_MS));
    ck_assert_uint_eq(wire_proxy_withheld(r.proxy, r.wire, WIRE_TO_CLIENT, said, sizeof said), RIG_ANSWER);
    ck_assert_mem_eq(said, rig_answer, RIG_ANSWER);
    ck_assert(!wire_proxy_look(r.proxy, r.wire).server_gone);
    wire_proxy_release(r.proxy, r.wire);
    rig_expect_end(&r, r.server, "", 0, rig_how(_i));
    rig_close(&r);
}
END_TEST

START_TEST(a_client_that_is_not_told_hears_nothing_until_cut)
{
    rig r;
    rig_open(&r, rig_local(_i));
    rig_connect(&r);
    ck_assert(wire_proxy_cut_after(r.proxy, r.wire, WIRE_TO_CLIENT, 0, rig_how(_i) | WIRE_KEEP_CLIENT));
    rig_send(r.client, rig_request, RIG_REQUEST);
    rig_serve(&r);
    rig_expect_end(&r, r.server, "", 0, rig_how(_i));
    rig_send(r.client, rig_request, RIG_REQUEST);
    rig_expect_quiet(r.client);
    wire_proxy_cut(r.proxy, r.wire, rig_how(_i));
    rig_expect_end(&r, r.client, "", 0, rig_how(_i));
    rig_close(&r);
}
END_TEST

START_TEST(a_forked_copy_of_the_sockets_does_not_keep_a_cut_connection)
{
    rig r;
    rig_open(&r, rig_local(_i));
    rig_connect(&r);
    int pipe_end[2];
    ck_assert_int_eq(pipe(pipe_end), 0);
    pid_t child = fork();
    if (child == 0) {
        char byte;
        close(pipe_end[1]);
        _exit(read(pipe_end[0], &byte, 1) == 0 ? 0 : 1);
    }
    close(pipe_end[0]);
    wire_proxy_cut(r.proxy, r.wire, rig_how(_i));
    rig_expect_end(&r, r.server, "", 0, rig_how(_i));
    rig_expect_end(&r, r.client, "", 0, rig_how(_i));
    close(pipe_end[1]);
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
    rig_close(&r);
}
END_TEST

int main(void)
{
    const TTest *const once[] = {
        a_cut_does_not_touch_other_connections,
        a_connection_that_is_still_to_come_can_be_cut,
        a_reset_waits_for_what_was_passed_on,
    };
    const TTest *const ends[] = {
        cut_to_server_lets_exactly_n_bytes_through,
        cut_to_client_lets_the_request_and_exactly_n_bytes_of_the_answer_through,
        cut_at_once_ends_both_sides,
        drained_cut_to_server_brings_the_answer_to_what_the_server_got,
        a_server_that_is_not_told_hears_nothing_until_released,
        a_client_that_is_not_told_hears_nothing_until_cut,
        a_forked_copy_of_the_sockets_does_not_keep_a_cut_connection,
    };
    const TTest *const eight[] = {
        drained_cut_to_client_brings_the_server_what_the_client_had_sent,
    };
    const suite_group groups[] = {
        {"once", 1, once, sizeof once / sizeof *once},
        {"TCP, Unix; FIN, RST", RIG_CASES, ends, sizeof ends / sizeof *ends},
        {"TCP, Unix; FIN, RST; drained, not", 2 * RIG_CASES, eight, sizeof eight / sizeof *eight},
    };
    return rig_run("proxy_cut", groups, sizeof groups / sizeof *groups);
}
