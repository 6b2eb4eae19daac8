/* SPDX-License-Identifier: MIT */
/* The tests' own proxy stops and delays the wire, and delivers late. */

#include "proxy_rig.h"

START_TEST(a_stopped_direction_passes_nothing_until_released)
{
    rig r;
    rig_open(&r, _i != 0);
    rig_connect(&r);
    ck_assert(wire_proxy_stop_after(r.proxy, r.wire, WIRE_TO_CLIENT, 3));
    rig_send(r.client, rig_request, RIG_REQUEST);
    rig_serve(&r);
    rig_expect(r.client, rig_answer, 3);
    rig_expect_quiet(r.client);
    ck_assert(wire_proxy_fired(r.proxy, r.wire, WIRE_TO_CLIENT));
    /* The other one goes on, and the server's end is not told. */
    rig_send(r.client, rig_request, RIG_REQUEST);
    rig_expect(r.server, rig_request, RIG_REQUEST);
    rig_close_end(&r.server);
    rig_expect_quiet(r.client);
    wire_proxy_release(r.proxy, r.wire);
    rig_expect_end(&r, r.client, rig_answer + 3, RIG_ANSWER - 3, WIRE_FIN);
    rig_close(&r);
}
END_TEST

START_TEST(stopped_both_ways_it_is_a_dead_wire)
{
    rig r;
    rig_open(&r, false);
    rig_connect(&r);
    ck_assert(wire_proxy_stop_after(r.proxy, r.wire, WIRE_TO_SERVER, 0));
    ck_assert(wire_proxy_stop_after(r.proxy, r.wire, WIRE_TO_CLIENT, 0));
    rig_send(r.client, rig_request, RIG_REQUEST);
    rig_send(r.server, rig_answer, RIG_ANSWER);
    rig_expect_quiet(r.client);
    rig_expect_quiet(r.server);
    wire_view v = wire_proxy_look(r.proxy, r.wire);
    ck_assert(v.fired[WIRE_TO_SERVER] && v.fired[WIRE_TO_CLIENT]);
    ck_assert(v.passed[WIRE_TO_SERVER] == 0 && v.passed[WIRE_TO_CLIENT] == 0);
    wire_proxy_release(r.proxy, r.wire);
    rig_expect(r.client, rig_answer, RIG_ANSWER);
    rig_expect(r.server, rig_request, RIG_REQUEST);
    rig_close(&r);
}
END_TEST

START_TEST(a_delayed_direction_goes_on_by_itself)
{
    rig r;
    rig_open(&r, false);
    rig_connect(&r);
    ck_assert(wire_proxy_delay_after(r.proxy, r.wire, WIRE_TO_SERVER, 3, 100));
    int64_t began = now_ms();
    rig_send(r.client, rig_request, RIG_REQUEST);
    rig_expect(r.server, rig_request, 3);
    rig_expect(r.server, rig_request + 3, RIG_REQUEST - 3);
    ck_assert_int_ge(now_ms() - began, 100);
    rig_exchange(&r);
    rig_close(&r);
}
END_TEST

START_TEST(held_bytes_arrive_late_after_the_client_was_cut_off)
{
    rig r;
    char said[64];
    rig_open(&r, rig_local(_i));
    for (size_t n = 0; n < RIG_REQUEST; n++) {
        rig_connect(&r);
        rig_exchange(&r);
        ck_assert(wire_proxy_mark(r.proxy, r.wire));
        ck_assert(wire_proxy_hold_after(r.proxy, r.wire, n, RIG_REQUEST - n, rig_how(_i)));
        rig_send(r.client, rig_request, RIG_REQUEST);
        rig_expect_end(&r, r.client, "", 0, rig_how(_i));
        rig_close_end(&r.client);
        rig_expect(r.server, rig_request, n);
        rig_expect_quiet(r.server);
        ck_assert_uint_eq(wire_proxy_look(r.proxy, r.wire).withheld[WIRE_TO_SERVER], RIG_REQUEST - n);
        wire_proxy_release(r.proxy, r.wire);
        rig_expect_end(&r, r.server, rig_request + n, RIG_REQUEST - n, WIRE_FIN);
        rig_send(r.server, rig_answer, RIG_ANSWER);
        rig_close_end(&r.server);
        ck_assert(wire_proxy_wait(r.proxy, r.wire, WIRE_SERVER_GONE, 0, RIG_LIMIT_MS));
        ck_assert_uint_eq(wire_proxy_withheld(r.proxy, r.wire, WIRE_TO_CLIENT, said, sizeof said), RIG_ANSWER);
        ck_assert_mem_eq(said, rig_answer, RIG_ANSWER);
        rig_hang_up(&r);
    }
    rig_close(&r);
}
END_TEST

START_TEST(held_bytes_of_a_client_that_stays_go_on_as_if_nothing_was)
{
    rig r;
    rig_open(&r, _i != 0);
    rig_connect(&r);
    ck_assert(wire_proxy_hold_after(r.proxy, r.wire, 2, 0, WIRE_FIN));
    rig_send(r.client, rig_request, RIG_REQUEST);
    ck_assert(wire_proxy_wait(r.proxy, r.wire, WIRE_WITHHELD_TO_SERVER, RIG_REQUEST - 2, RIG_LIMIT_MS));
    rig_expect(r.server, rig_request, 2);
    rig_expect_quiet(r.server);
    rig_expect_quiet(r.client);
    wire_proxy_release(r.proxy, r.wire);
    rig_expect(r.server, rig_request + 2, RIG_REQUEST - 2);
    rig_exchange(&r);
    rig_close(&r);
}
END_TEST

START_TEST(held_bytes_of_a_client_that_went_by_itself_arrive_late)
{
    rig r;
    rig_open(&r, _i != 0);
    rig_connect(&r);
    ck_assert(wire_proxy_hold_after(r.proxy, r.wire, 0, 0, WIRE_FIN));
    rig_send(r.client, rig_request, RIG_REQUEST);
    rig_close_end(&r.client);
    ck_assert(wire_proxy_wait(r.proxy, r.wire, WIRE_CLIENT_GONE, 0, RIG_LIMIT_MS));
    rig_expect_quiet(r.server);
    wire_proxy_release(r.proxy, r.wire);
    rig_expect_end(&r, r.server, rig_request, RIG_REQUEST, WIRE_FIN);
    rig_close(&r);
}
END_TEST

START_TEST(a_mark_forgets_faults_that_have_not_fired)
{
    rig r;
    rig_open(&r, false);
    rig_connect(&r);
    ck_assert(wire_proxy_cut_after(r.proxy, r.wire, WIRE_TO_SERVER, RIG_REQUEST + 1, WIRE_RST));
    ck_assert(wire_proxy_cut_after(r.proxy, r.wire, WIRE_TO_CLIENT, RIG_ANSWER + 1, WIRE_RST));
    rig_exchange(&r);
    ck_assert(wire_proxy_mark(r.proxy, r.wire));
    rig_exchange(&r);
    rig_exchange(&r);
    rig_close(&r);
}
END_TEST

int main(void)
{
    const TTest *const once[] = {
        stopped_both_ways_it_is_a_dead_wire,
        a_delayed_direction_goes_on_by_itself,
        a_mark_forgets_faults_that_have_not_fired,
    };
    const TTest *const both[] = {
        a_stopped_direction_passes_nothing_until_released,
        held_bytes_of_a_client_that_stays_go_on_as_if_nothing_was,
        held_bytes_of_a_client_that_went_by_itself_arrive_late,
    };
    const TTest *const ends[] = {
        held_bytes_arrive_late_after_the_client_was_cut_off,
    };
    const suite_group groups[] = {
        {"once", 1, once, sizeof once / sizeof *once},
        {"TCP, Unix", 2, both, sizeof both / sizeof *both},
        {"TCP, Unix; FIN, RST", RIG_CASES, ends, sizeof ends / sizeof *ends},
    };
    return rig_run("proxy_late", groups, sizeof groups / sizeof *groups);
}
