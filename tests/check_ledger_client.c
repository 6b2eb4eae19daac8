/* SPDX-License-Identifier: MIT */
/* guard-ledger and clients that are slow, or send what is no request. */
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ledger_program.h"

enum { CONNECTIONS = 128 /* as many as the ledger has */ };

static int connect_to(const ledger_process *ledger)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    address.sin_port = htons((uint16_t)strtoul(strrchr(ledger->address, ':') + 1, NULL, 10));
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static bool put(int fd, const char *text)
{
    return send(fd, text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text);
}

/* All that comes until the other side ends it, or for 10 s nothing. */
static const char *get_all(int fd)
{
    static char text[65536];
    size_t size = 0;
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    while (size < sizeof text - 1 && poll(&readable, 1, 10000) > 0) {
        ssize_t got = recv(fd, text + size, sizeof text - 1 - size, 0);
        if (got <= 0) {
            break;
        }
        size += (size_t)got;
    }
    text[size] = '\0';
    close(fd);
    return text;
}

/* Sends a byte on each connection that is still there. Returns how many are. */
static int trickle(int *fds)
{
    int alive = 0;
    for (int i = 0; i < CONNECTIONS; i++) {
        if (fds[i] >= 0 && !put(fds[i], "x")) {
            close(fds[i]);
            fds[i] = -1;
        }
        alive += fds[i] >= 0;
    }
    return alive;
}

static void expect_others_are_served(const ledger_process *ledger, const char *beginning)
{
    int fds[CONNECTIONS];
    for (int i = 0; i < CONNECTIONS; i++) {
        fds[i] = connect_to(ledger);
        ck_assert(put(fds[i], beginning));
    }
    while (trickle(fds) > 0) { /* without an end to it they are there until the test's time is over */
        poll(NULL, 0, 20);
    }
    while (ledger_ask(ledger, "GET", "/accounts", NULL, NULL, NULL).status !=
           200) { /* the last of them may be being closed */
        poll(NULL, 0, 20);
    }
}

START_TEST(clients_that_send_a_byte_now_and_then_do_not_keep_others_out)
{
    ledger_process ledger = ledger_start((const char *const[]){"--client-ms", "500", NULL});
    expect_others_are_served(&ledger, "GET /accounts HTTP/1.1\r\nHost: x\r\nX: ");
    expect_others_are_served(&ledger, "POST /transfers HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n");
    ck_assert_int_eq(ledger_expect_sound(&ledger), 0);
    ck_assert_int_eq(ledger_stop(&ledger, SIGTERM), 0);
}
END_TEST

START_TEST(a_request_that_lasts_longer_than_a_client_may_is_answered)
{
    ledger_process ledger = ledger_start((const char *const[]){"--client-ms", "300", "--request-ms", "1500", NULL});
    ledger_answer answer = ledger_transfer(&ledger, 1, 2, 1, NULL, "sleep");
    ck_assert_msg(answer.status == 503, "%d %s", answer.status, answer.text);
}
END_TEST

START_TEST(a_body_that_is_announced_as_too_long_is_refused_before_it_is_sent)
{
    ledger_process ledger = ledger_start(NULL);
    int fd = connect_to(&ledger);
    ck_assert(
        put(fd, "POST /transfers HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"));
    const char *text = get_all(fd);
    ck_assert_msg(strncmp(text, "HTTP/1.1 413 ", 13) == 0, "%s", text);
    ck_assert_msg(strstr(text, "the body is longer than 4096 bytes") != NULL, "%s", text);
}
END_TEST

/* What is no request is answered with 400 or the like or with the end of the connection; the next client finds nothing changed. */
START_TEST(what_is_no_request_harms_nobody)
{
    static const char *const garbage[] = {
        "\1\2\3\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "POST /transfers HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n{}",
        "POST /transfers HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        "POST /transfers HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{",
        "POST /transfers HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
    };
    ledger_process ledger = ledger_start((const char *const[]){"--client-ms", "500", NULL});
    for (size_t i = 0; i < sizeof garbage / sizeof *garbage; i++) {
        int fd = connect_to(&ledger);
        ck_assert(put(fd, garbage[i]));
        const char *text = get_all(fd);
        ck_assert_msg(text[0] == '\0' || strstr(text, "HTTP/1.1 4") == text || strstr(text, "HTTP/1.1 5") == text,
                      "%s%s", garbage[i], text);
    }
    ck_assert_int_eq(ledger_expect_sound(&ledger), 0);
    ck_assert_int_eq(ledger_transfer(&ledger, 1, 2, 1, NULL, NULL).status, 201);
    ck_assert_int_eq(ledger_stop(&ledger, SIGTERM), 0);
}
END_TEST

START_TEST(requests_that_are_sent_together_are_answered_in_order)
{
    static const char one[] =
        "POST /transfers HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 28\r\n\r\n"
        "{\"from\":1,\"to\":2,\"amount\":1}";
    char many[4096] = "";
    ledger_process ledger = ledger_start(NULL);
    for (int i = 0; i < 10; i++) {
        strcat(many, one);
    }
    strcat(many, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    int fd = connect_to(&ledger);
    ck_assert(put(fd, many));
    int created = 0;
    const char *at = get_all(fd);
    for (; (at = strstr(at, "HTTP/1.1 ")) != NULL && strncmp(at, "HTTP/1.1 201", 12) == 0; at++) {
        created++;
    }
    ck_assert_int_eq(created, 10);
    ck_assert(at != NULL && strncmp(at, "HTTP/1.1 200", 12) == 0);
    ck_assert_int_eq(ledger_expect_sound(&ledger), 10);
}
END_TEST

START_TEST(receipts_that_are_no_folder_are_refused_at_the_start)
{
    int file = open("file", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    ck_assert_int_ge(file, 0);
    close(file);
    ck_assert_int_eq(ledger_refuses((const char *const[]){"--receipts", "file", NULL}), 1);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        clients_that_send_a_byte_now_and_then_do_not_keep_others_out,
        a_request_that_lasts_longer_than_a_client_may_is_answered,
        a_body_that_is_announced_as_too_long_is_refused_before_it_is_sent,
        what_is_no_request_harms_nobody,
        requests_that_are_sent_together_are_answered_in_order,
        receipts_that_are_no_folder_are_refused_at_the_start,
    };
    return ledger_suite_run("ledger_client", tests, sizeof tests / sizeof *tests);
}
