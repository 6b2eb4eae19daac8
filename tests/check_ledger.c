/* SPDX-License-Identifier: MIT */
/* guard-ledger as its clients see it, on SQLite; compiled with LEDGER_ON_PQ, on PostgreSQL. */
#include <curl/curl.h>
#include <glob.h>
#include <ifaddrs.h>
#include <inttypes.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "exposition.h"
#include "ledger_program.h"
#ifdef LEDGER_ON_PQ
#include "server.h"
#include "wire_proxy.h"
#endif

enum { TOTAL = 800000 };

/* ---------------------------------------------------------------------------------------------- transfers -- */

START_TEST(a_transfer_moves_the_money_and_leaves_a_receipt)
{
    ledger_process ledger = ledger_start(NULL);
    ledger_answer answer = ledger_transfer(&ledger, 1, 2, 1250, "first", NULL);
    ck_assert_msg(answer.status == 201, "%d %s", answer.status, answer.text);
    ck_assert_int_eq(ledger_number(answer.text, "amount"), 1250);
    ck_assert_int_eq(ledger_balance(&ledger, 1), 98750);
    ck_assert_int_eq(ledger_balance(&ledger, 2), 101250);
    ck_assert_int_eq(ledger_expect_sound(&ledger), 1);
    ck_assert_int_eq(ledger_stop(&ledger, SIGTERM), 0);
}
END_TEST

START_TEST(a_key_is_one_transfer_with_one_answer)
{
    ledger_process ledger = ledger_start(NULL);
    ledger_answer first = ledger_transfer(&ledger, 1, 2, 1250, "key", NULL);
    ledger_answer second = ledger_transfer(&ledger, 1, 2, 1250, "key", NULL);
    ck_assert_int_eq(first.status, 201);
    ck_assert_int_eq(second.status, 201);
    ck_assert_int_eq(first.replayed, 0);
    ck_assert_int_eq(second.replayed, 1);
    ck_assert_str_eq(first.text, second.text);
    ck_assert_int_eq(ledger_transfer(&ledger, 1, 2, 1251, "key", NULL).status, 422);
    ck_assert_int_eq(ledger_balance(&ledger, 1), 98750);
    /* What failed did not use its key up. */
    ck_assert_int_eq(ledger_transfer(&ledger, 1, 2, 1, "other", "debit").status, 500);
    second = ledger_transfer(&ledger, 1, 2, 1, "other", NULL);
    ck_assert_int_eq(second.status, 201);
    ck_assert_int_eq(second.replayed, 0);
    ck_assert_int_eq(ledger_expect_sound(&ledger), 2);
    /* Also after a restart. */
    ck_assert_int_eq(ledger_stop(&ledger, SIGTERM), 0);
    ledger = ledger_start(NULL);
    second = ledger_transfer(&ledger, 1, 2, 1250, "key", NULL);
    ck_assert_str_eq(first.text, second.text);
    ck_assert_int_eq(second.replayed, 1);
    ck_assert_int_eq(ledger_expect_sound(&ledger), 2);
}
END_TEST

START_TEST(what_cannot_be_is_refused_and_changes_nothing)
{
    static const struct {
        const char *method, *path, *key, *body;
        int status;
    } cases[] = {
        {"POST", "/transfers", NULL, "{\"from\":1,\"to\":99,\"amount\":1}", 404},
        {"POST", "/transfers", NULL, "{\"from\":99,\"to\":1,\"amount\":1}", 404},
        {"POST", "/transfers", NULL, "{\"from\":1,\"to\":2,\"amount\":100001}", 409},
        {"POST", "/transfers", NULL, "{\"from\":1,\"to\":1,\"amount\":1}", 422},
        {"POST", "/transfers", NULL, "{\"from\":1,\"to\":2,\"amount\":0}", 400},
        {"POST", "/transfers", NULL, "{\"from\":1,\"to\":2,\"amount\":-5}", 400},
        {"POST", "/transfers", NULL, "{\"from\":1,\"to\":2,\"amount\":1.5}", 400},
        {"POST", "/transfers", NULL, "{\"from\":1,\"to\":2,\"amount\":\"1\"}", 400},
        {"POST", "/transfers", NULL, "{\"from\":1,\"to\":2,\"amount\":9223372036854775807}", 400},
        {"POST", "/transfers", NULL, "{\"from\":1,\"to\":2,\"amount\":9223372036854775808}", 400},
        {"POST", "/transfers", NULL, "{\"from\":1,\"to\":2}", 400},
        {"POST", "/transfers", NULL, "{\"from\":1,\"to\":2,\"amount\":1,\"amount\":2}", 400},
        {"POST", "/transfers", NULL, "[1,2,3]", 400},
        {"POST", "/transfers", NULL, "{", 400},
        {"POST", "/transfers", NULL, "\xff\xfe", 400},
        {"POST", "/transfers", NULL, "", 400},
        {"POST", "/transfers", "has a blank", "{\"from\":1,\"to\":2,\"amount\":1}", 400},
        {"POST", "/transfers", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
         "{\"from\":1,\"to\":2,\"amount\":1}", 400},
        {"PUT", "/transfers", NULL, "{}", 405},
        {"DELETE", "/accounts", NULL, NULL, 405},
        {"POST", "/metrics", NULL, "{}", 405},
        {"GET", "/nowhere", NULL, NULL, 404},
        {"GET", "/transfers?limit=0", NULL, NULL, 400},
        {"GET", "/transfers?limit=1x", NULL, NULL, 400},
        {"GET", "/transfers?before=99999999999999999999", NULL, NULL, 400},
    };
    ledger_process ledger = ledger_start(NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ledger_answer answer = ledger_ask(&ledger, cases[i].method, cases[i].path, cases[i].key, NULL, cases[i].body);
        char text[512];
        ck_assert_msg(answer.status == cases[i].status, "%s %s %s: %d instead of %d, %s", cases[i].method,
                      cases[i].path, cases[i].body != NULL ? cases[i].body : "", answer.status, cases[i].status,
                      answer.text);
        ledger_text(answer.text, "error", text, sizeof text);
    }
    ck_assert_int_eq(ledger_ask_as(&ledger, "text/plain", "{\"from\":1,\"to\":2,\"amount\":1}").status, 415);
    ck_assert_int_eq(ledger_total(&ledger), TOTAL);
    ck_assert_int_eq(ledger_expect_sound(&ledger), 0);
    /* They are the clients' faults: none is a panic of the service. */
    ck_assert_int_eq(ledger_metric(&ledger, "ledger_panics_total"), 0);
}
END_TEST

START_TEST(what_is_too_long_is_refused)
{
    ledger_process ledger = ledger_start(NULL);
    static char body[3 * 4096];
    static char path[400];
    memset(body, ' ', sizeof body - 1);
    memset(path, 'a', sizeof path - 1);
    path[0] = '/';
    ck_assert_int_eq(ledger_ask(&ledger, "POST", "/transfers", NULL, NULL, body).status, 413);
    ck_assert_int_eq(ledger_ask(&ledger, "GET", path, NULL, NULL, NULL).status, 414);
    ck_assert_int_eq(ledger_transfer(&ledger, 1, 2, 1, NULL, NULL).status, 201);
}
END_TEST

/* ------------------------------------------------------------------------------------------------- chaos -- */

static void expect_chaos(const ledger_process *ledger, const char *kind)
{
    char id[64];
    int64_t panics = ledger_metric(ledger, "ledger_panics_total");
    ledger_answer answer = ledger_transfer(ledger, 1, 2, 500, kind, kind);
    ck_assert_msg(answer.status == 500 || answer.status == 503, "%s: %d %s", kind, answer.status, answer.text);
    ledger_text(answer.text, "id", id, sizeof id);
    ck_assert_msg(ledger_log_gets(id), "%s: the log does not have %s", kind, id);
    ck_assert_msg(ledger_balance(ledger, 1) == 100000, "%s changed the account", kind);
    ck_assert_msg(ledger_metric(ledger, "ledger_panics_total") == panics + 1, "%s is not counted", kind);
    answer = ledger_transfer(ledger, 2, 1, 1, NULL, NULL);
    ck_assert_msg(answer.status == 201, "after %s: %d %s", kind, answer.status, answer.text);
    answer = ledger_transfer(ledger, 1, 2, 1, NULL, NULL);
    ck_assert_msg(answer.status == 201, "after %s: %d %s", kind, answer.status, answer.text);
}

START_TEST(every_chaos_is_answered_and_logged_and_changes_nothing)
{
    static const char *const kinds[] = {"panic", "debit", "sleep", "kill", "null"};
    /* What the sleeper takes; the others are done long before, also on a busy disk. */
    ledger_process ledger = ledger_start((const char *const[]){"--request-ms", "2000", NULL});
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        expect_chaos(&ledger, kinds[i]);
    }
    ck_assert_int_eq(ledger_transfer(&ledger, 1, 2, 1, NULL, "earthquake").status, 400);
    ck_assert(ledger_log_has("SIGSEGV, address 0x0"));
    ck_assert_int_eq(ledger_expect_sound(&ledger), 10);
    ck_assert_int_eq(ledger_stop(&ledger, SIGTERM), 0);
}
END_TEST

static void expect_made_again(const ledger_process *ledger)
{
    time_t end = time(NULL) + 20;
    while (ledger_transfer(ledger, 1, 2, 1, NULL, NULL).status != 201) {
        ck_assert_msg(time(NULL) < end, "nothing is made 20 s after the dependency is well again");
        pause_ms(50);
    }
}

/* What fails again and again is refused at once, with a time to come again; and it is found out that it is well again. */
START_TEST(a_breaker_refuses_transfers_while_the_connection_is_lost_each_time)
{
    ledger_process ledger = ledger_start(NULL);
    for (int i = 0; i < 5; i++) {
        ck_assert_int_ge(ledger_transfer(&ledger, 1, 2, 500, NULL, "kill").status, 500);
    }
    ck_assert_int_eq(ledger_metric(&ledger, "guard_breaker_state{breaker=\"database\",state=\"open\"}"), 1);
    ck_assert(ledger_log_gets("breaker database is open"));
    int64_t panics = ledger_metric(&ledger, "ledger_panics_total");
    ledger_answer refused = ledger_transfer(&ledger, 1, 2, 500, NULL, NULL);
    ck_assert_msg(refused.status == 503, "%d %s", refused.status, refused.text);
    ck_assert_int_ge(refused.retry_s, 1);
    ck_assert_int_le(refused.retry_s, 3);
    ck_assert_int_eq(ledger_metric(&ledger, "ledger_panics_total"), panics);                /* a refusal is none */
    ck_assert_int_eq(ledger_ask(&ledger, "GET", "/healthz", NULL, NULL, NULL).status, 200); /* the database is asked */
    expect_made_again(&ledger);
    ck_assert_int_eq(ledger_metric(&ledger, "guard_breaker_state{breaker=\"database\",state=\"closed\"}"), 1);
    ck_assert_int_eq(ledger_expect_sound(&ledger), 1);
    ck_assert_int_eq(ledger_stop(&ledger, SIGTERM), 0);
}
END_TEST

START_TEST(a_breaker_refuses_transfers_while_no_receipt_can_be_written)
{
    ledger_process ledger = ledger_start(NULL);
    ck_assert_int_eq(rename("receipts", "elsewhere"), 0);
    for (int i = 0; i < 5; i++) {
        ck_assert_int_eq(ledger_transfer(&ledger, 1, 2, 500, NULL, NULL).status, 500);
    }
    ck_assert_int_eq(ledger_metric(&ledger, "guard_breaker_state{breaker=\"receipts\",state=\"open\"}"), 1);
    ck_assert_int_eq(ledger_metric(&ledger, "guard_breaker_state{breaker=\"database\",state=\"closed\"}"), 1);
    ck_assert_int_eq(ledger_transfer(&ledger, 1, 2, 500, NULL, NULL).status, 503);
    ck_assert_int_eq(ledger_balance(&ledger, 1), 100000);
    ck_assert_int_eq(rename("elsewhere", "receipts"), 0);
    expect_made_again(&ledger);
    ck_assert_int_eq(ledger_expect_sound(&ledger), 1);
    ck_assert_int_eq(ledger_stop(&ledger, SIGTERM), 0);
}
END_TEST

START_TEST(the_metrics_are_in_the_text_format_and_agree_with_each_other)
{
    ledger_process ledger = ledger_start(NULL);
    ledger_transfer(&ledger, 1, 2, 500, "once", NULL);
    ledger_transfer(&ledger, 1, 2, 500, NULL, "debit");
    ledger_transfer(&ledger, 1, 99, 500, NULL, NULL);
    ledger_answer page = ledger_ask(&ledger, "GET", "/metrics", NULL, NULL, NULL);
    exposition_check(page.text);
#ifdef LEDGER_ON_PQ
#define DATABASE "database=\"postgresql\""
#else
#define DATABASE "database=\"sqlite\""
#endif
    ck_assert_int_eq(exposition_value(page.text, "ledger_transfers_total{outcome=\"committed\"}"), 1);
    ck_assert_int_eq(exposition_value(page.text, "ledger_transfers_total{outcome=\"rolled_back\"}"), 2);
    ck_assert_int_eq(exposition_value(page.text, "guard_transactions_total{" DATABASE ",outcome=\"rolled_back\"}"), 2);
    ck_assert_int_eq(exposition_value(page.text, "ledger_panics_total"), 1);
    ck_assert_int_eq(exposition_value(page.text, "ledger_answers_total{status=\"2xx\"}"), 1);
    ck_assert_int_eq(exposition_value(page.text, "ledger_answers_total{status=\"4xx\"}"), 1);
    ck_assert_int_eq(exposition_value(page.text, "ledger_answers_total{status=\"5xx\"}"), 1);
    ck_assert_int_ge(exposition_sum(page.text, "guard_panics_total"), 2);
    ck_assert_int_eq(exposition_value(page.text, "guard_service_calls_total{service=\"ledger\",result=\"failed\"}"), 2);
}
END_TEST

START_TEST(chaos_is_refused_where_it_is_not_switched_on)
{
    ledger_process ledger = ledger_start_program("guard-ledger", NULL);
    ck_assert_int_eq(ledger_transfer(&ledger, 1, 2, 500, NULL, "debit").status, 403);
    ck_assert_int_eq(ledger_metric(&ledger, "ledger_panics_total"), 0);
    ck_assert_int_eq(ledger_expect_sound(&ledger), 0);
}
END_TEST

/* An address of this machine that is not a loopback one; 0 where it has none. */
static int find_address(char *text, size_t size)
{
    struct ifaddrs *all = NULL;
    int found = 0;
    ck_assert_int_eq(getifaddrs(&all), 0);
    for (const struct ifaddrs *at = all; at != NULL && !found; at = at->ifa_next) {
        found = at->ifa_addr != NULL && at->ifa_addr->sa_family == AF_INET && !(at->ifa_flags & IFF_LOOPBACK) &&
                getnameinfo(at->ifa_addr, sizeof(struct sockaddr_in), text, (socklen_t)size, NULL, 0, NI_NUMERICHOST) ==
                    0;
    }
    freeifaddrs(all);
    return found;
}

START_TEST(chaos_is_refused_to_requests_from_elsewhere)
{
    char address[16];
    if (!find_address(address, sizeof address)) {
        puts("# this machine has a loopback address only");
        return;
    }
    ledger_process ledger = ledger_start((const char *const[]){"--listen", "0.0.0.0", NULL});
    const char *port = strrchr(ledger.address, ':');
    ledger_process here = ledger;
    ledger_process there = ledger;
    snprintf(here.address, sizeof here.address, "http://127.0.0.1%s", port);
    snprintf(there.address, sizeof there.address, "http://%s%s", address, port);
    ck_assert_int_eq(ledger_transfer(&there, 1, 2, 500, NULL, "debit").status, 403);
    ck_assert_ptr_nonnull(strstr(ledger_ask(&there, "GET", "/status", NULL, NULL, NULL).text, "\"chaos\":[]"));
    ck_assert_int_eq(ledger_transfer(&there, 1, 2, 500, NULL, NULL).status, 201);
    ck_assert_int_eq(ledger_transfer(&here, 1, 2, 500, NULL, "debit").status, 500);
    ck_assert_int_eq(ledger_expect_sound(&here), 1);
    ck_assert_int_eq(ledger_stop(&ledger, SIGTERM), 0);
}
END_TEST

START_TEST(a_full_disk_under_the_log_loses_lines_only)
{
    ledger_process ledger = ledger_start((const char *const[]){"--log", "/dev/full", NULL});
    for (int i = 0; i < 200; i++) {
        ck_assert_int_eq(ledger_transfer(&ledger, 1, 2, 500, NULL, "debit").status, 500);
    }
    ck_assert_int_eq(ledger_metric(&ledger, "ledger_panics_total"), 200);
    ck_assert_int_eq(ledger_metric(&ledger, "ledger_log_lines_total{fate=\"written\"}"), 0);
    ck_assert_int_eq(ledger_metric(&ledger, "ledger_log_lines_total{fate=\"dropped\"}"), 200);
    ck_assert_int_eq(ledger_transfer(&ledger, 1, 2, 500, NULL, NULL).status, 201);
    ck_assert_int_eq(ledger_expect_sound(&ledger), 1);
    ck_assert_int_eq(ledger_stop(&ledger, SIGTERM), 0);
}
END_TEST

START_TEST(a_line_of_the_log_has_what_was_rolled_back_and_by_whom)
{
    ledger_process ledger = ledger_start(NULL);
    ck_assert_int_eq(ledger_transfer(&ledger, 1, 2, 500, NULL, "debit").status, 500);
    ck_assert(ledger_log_gets("\"undone\":[\"transaction on "));
    ck_assert(ledger_log_gets(": rolled back\"],\"context\":{\"id\":\""));
    ck_assert(ledger_log_gets("\"what\":\"POST /transfers\"}"));
    ck_assert(ledger_log_gets("\"stack\":[\""));
    ck_assert_int_eq(ledger_stop(&ledger, SIGTERM), 0);
}
END_TEST

/* As logrotate does: the file is moved, then SIGHUP. */
START_TEST(a_log_that_was_moved_is_opened_anew_at_sighup)
{
    ledger_process ledger = ledger_start(NULL);
    ck_assert_int_eq(rename("log", "log.old"), 0);
    ck_assert_int_eq(kill(ledger.pid, SIGHUP), 0);
    while (access("log", F_OK) != 0) {
        pause_ms(1);
    }
    ck_assert_int_eq(ledger_transfer(&ledger, 1, 2, 500, NULL, "panic").status, 500);
    ck_assert(ledger_log_gets("chaos: a panic in the request"));
    ck_assert_int_eq(ledger_stop(&ledger, SIGTERM), 0);
}
END_TEST

/* A storm: more panics in a second than lines. What is left out is said. */
START_TEST(a_storm_is_counted_and_not_written)
{
    ledger_process ledger = ledger_start(NULL);
    int64_t asked = 0;
    while (!ledger_log_has(" more of chaos.c:")) {
        for (int i = 0; i < 300; i++) {
            ck_assert_int_eq(ledger_transfer(&ledger, 1, 2, 500, NULL, "panic").status, 500);
        }
        asked += 300;
    }
    int64_t written = ledger_metric(&ledger, "ledger_log_lines_total{fate=\"written\"}");
    int64_t dropped = ledger_metric(&ledger, "ledger_log_lines_total{fate=\"dropped\"}");
    ck_assert_int_eq(ledger_metric(&ledger, "ledger_panics_total"), asked);
    ck_assert_int_eq(written + dropped, asked);
    ck_assert_int_gt(dropped, 0);
}
END_TEST

START_TEST(every_page_answers)
{
    static const char *const paths[] = {"/", "/accounts", "/transfers", "/status", "/metrics", "/healthz"};
    ledger_process ledger = ledger_start(NULL);
    ledger_transfer(&ledger, 1, 2, 1, NULL, "panic");
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        ledger_answer answer = ledger_ask(&ledger, "GET", paths[i], NULL, NULL, NULL);
        ck_assert_msg(answer.status == 200 && answer.text[0] != '\0', "%s: %d", paths[i], answer.status);
    }
    ledger_answer status = ledger_ask(&ledger, "GET", "/status", NULL, NULL, NULL);
    ck_assert_int_eq(ledger_number(status.text, "total"), TOTAL);
    ck_assert_int_eq(ledger_number(status.text, "panics"), 1);
    ck_assert_int_eq(ledger_number(status.text, "log.written"), 1);
}
END_TEST

/* -------------------------------------------------------------------------------------------------- load -- */

typedef struct client {
    pthread_t thread;
    const ledger_process *ledger;
    int number;
    int requests;
    int made;      /* 201 */
    int failed;    /* 500 or 503, as asked for */
    int surprises; /* anything else */
    int last;      /* the key of the latest 201 */
} client;

/* Both ways between all accounts; every tenth request is chaos. */
static void *transfer_much(void *arg)
{
    static const char *const kinds[] = {"panic", "debit", "kill", "null"};
    client *c = arg;
    for (int i = 0; i < c->requests; i++) {
        char key[64];
        snprintf(key, sizeof key, "%d-%d", c->number, i);
        const char *chaos = i % 10 == 9 ? kinds[i / 10 % 4] : NULL;
        int from = 1 + (c->number + i) % 8;
        int to = 1 + (c->number + i + 1 + i % 7) % 8;
        ledger_answer answer = ledger_transfer(c->ledger, from, to, 1 + i, key, chaos);
        if (answer.status == 201 && chaos == NULL) {
            c->made++;
            c->last = i;
        } else if ((answer.status == 500 || answer.status == 503) && chaos != NULL) {
            c->failed++;
        } else if (answer.status == 0) {
            break; /* the ledger is gone */
        } else {
            c->surprises++;
            fprintf(stderr, "%s: %d %s\n", key, answer.status, answer.text);
        }
    }
    return NULL;
}

static size_t descriptors(const ledger_process *ledger)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd", (int)ledger->pid);
    return ledger_entries(path);
}

static size_t threads(const ledger_process *ledger)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task", (int)ledger->pid);
    return ledger_entries(path);
}

enum { CLIENTS = 6, REQUESTS = 40 };

static void start_clients(client *clients, const ledger_process *ledger, int requests)
{
    for (int i = 0; i < CLIENTS; i++) {
        clients[i] = (client){.ledger = ledger, .number = i, .requests = requests, .last = -1};
        ck_assert_int_eq(pthread_create(&clients[i].thread, NULL, transfer_much, &clients[i]), 0);
    }
}

/* Connections end a moment after their answers. */
static void wait_until_few(size_t (*count)(const ledger_process *), const ledger_process *ledger, size_t most,
                           const char *what)
{
    size_t found = 0;
    for (int tries = 0; tries < 6000; tries++) {
        found = count(ledger);
        if (found <= most) {
            return;
        }
        pause_ms(5);
    }
    ck_abort_msg("%zu %s, %zu before", found, what, most);
}

START_TEST(under_load_and_chaos_no_money_and_nothing_else_is_lost)
{
    ledger_process ledger = ledger_start((const char *const[]){"--request-ms", "30000", NULL});
    client clients[CLIENTS];
    /* What it keeps for good, such as the pool's connections, is there after a first load. */
    start_clients(clients, &ledger, REQUESTS);
    int made = 0;
    for (int i = 0; i < CLIENTS; i++) {
        pthread_join(clients[i].thread, NULL);
        ck_assert_int_eq(clients[i].surprises, 0);
        made += clients[i].made;
        ck_assert_int_eq(clients[i].failed, REQUESTS / 10);
    }
    ck_assert_int_eq(made, CLIENTS * REQUESTS * 9 / 10);
    ck_assert_int_eq(ledger_expect_sound(&ledger), made);
    ck_assert_int_eq(ledger_total(&ledger), TOTAL);
    /* 10 of a pool, and what a quiet ledger has: no request left anything. */
    wait_until_few(descriptors, &ledger, 40, "descriptors");
    wait_until_few(threads, &ledger, 8, "threads");
#ifdef LEDGER_ON_PQ
    ledger_wait_metric(&ledger, "guard_pool_connections{pool=\"ledger\",state=\"taken\"}", 0);
    ck_assert_int_eq(server_number("SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
                                   " WHERE c.relname IN ('account', 'transfer')"),
                     0);
#endif
    ck_assert_int_eq(ledger_stop(&ledger, SIGTERM), 0);
}
END_TEST

/* ------------------------------------------------------------------------------------------------- ending -- */

static void *sleep_in_transaction(void *arg)
{
    client *c = arg;
    ledger_answer answer = ledger_transfer(c->ledger, 1, 2, 500, "asleep", "sleep");
    c->made = answer.status;
    return NULL;
}

/* A client whose request is asleep in its transaction. */
static void start_sleeper(client *c, const ledger_process *ledger)
{
    *c = (client){.ledger = ledger};
    ck_assert_int_eq(pthread_create(&c->thread, NULL, sleep_in_transaction, c), 0);
    /* The request for the metrics is one itself. */
    ledger_wait_metric(ledger, "guard_service_calls_under_way{service=\"ledger\"}", 2);
}

START_TEST(sigterm_cancels_a_request_at_the_deadline_and_rolls_it_back)
{
    ledger_process ledger = ledger_start((const char *const[]){"--request-ms", "60000", "--drain-ms", "200", NULL});
    client c;
    start_sleeper(&c, &ledger);
    ledger_process copy = ledger;
    ck_assert_int_eq(ledger_stop(&copy, SIGTERM), 0);
    pthread_join(c.thread, NULL);
    ck_assert_msg(c.made == 503, "the request was answered with %d", c.made);
    ck_assert_msg(ledger_log_gets("\"domain\":\"cancelled\""), "the log does not have it");
    ledger = ledger_start(NULL);
    ck_assert_int_eq(ledger_expect_sound(&ledger), 0);
}
END_TEST

static size_t drop(char *data, size_t size, size_t count, void *arg)
{
    (void)data;
    (void)arg;
    return size * count;
}

static long get_again(CURL *curl)
{
    long status = 0;
    if (curl_easy_perform(curl) == CURLE_OK) {
        curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    }
    return status;
}

START_TEST(a_ledger_that_drains_takes_no_new_requests)
{
    ledger_process ledger = ledger_start((const char *const[]){"--request-ms", "60000", "--drain-ms", "3000", NULL});
    char url[128];
    snprintf(url, sizeof url, "%s/healthz", ledger.address);
    CURL *kept = curl_easy_init();
    curl_easy_setopt(kept, CURLOPT_URL, url);
    curl_easy_setopt(kept, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(kept, CURLOPT_WRITEFUNCTION, drop);
    ck_assert_int_eq(get_again(kept), 200);
    client c;
    start_sleeper(&c, &ledger);
    ck_assert_int_eq(kill(ledger.pid, SIGTERM), 0);
    while (ledger_ask(&ledger, "GET", "/healthz", NULL, NULL, NULL).status == 200) {
    }
    ck_assert_int_eq(get_again(kept), 503); /* on the connection that was there */
    curl_easy_cleanup(kept);
    pthread_join(c.thread, NULL);
    ck_assert_int_eq(c.made, 503);
    ck_assert_int_eq(ledger_wait(&ledger), 0);
}
END_TEST

START_TEST(sigterm_lets_requests_end)
{
    ledger_process ledger = ledger_start((const char *const[]){"--request-ms", "2000", "--drain-ms", "30000", NULL});
    client c;
    start_sleeper(&c, &ledger);
    ledger_process copy = ledger;
    /* It ends when the request has, by its own deadline: long before the 30 s. */
    ck_assert_int_eq(ledger_stop(&copy, SIGTERM), 0);
    pthread_join(c.thread, NULL);
    ck_assert_int_eq(c.made, 503);
    ck_assert_msg(ledger_log_gets("\"domain\":\"timeout\""), "the log does not have it");
}
END_TEST

/* A receipt has a temporary name between two system calls, which a process that is killed there leaves. */
static void remove_temporary_names(void)
{
    glob_t found;
    if (glob("receipts/.*.guard-tmp", 0, NULL, &found) == 0) {
        for (size_t i = 0; i < found.gl_pathc; i++) {
            ck_assert_int_eq(unlink(found.gl_pathv[i]), 0);
        }
        globfree(&found);
    }
}

START_TEST(sigkill_loses_no_transfer_that_was_answered)
{
    ledger_process ledger = ledger_start((const char *const[]){"--request-ms", "30000", NULL});
    client clients[CLIENTS];
    start_clients(clients, &ledger, 100000);
    while (ledger_metric(&ledger, "ledger_transfers_total{outcome=\"committed\"}") < 100) {
        pause_ms(5);
    }
    ledger_process copy = ledger;
    ck_assert_int_eq(ledger_stop(&copy, SIGKILL), -SIGKILL);
    for (int i = 0; i < CLIENTS; i++) {
        pthread_join(clients[i].thread, NULL);
        ck_assert_int_eq(clients[i].surprises, 0);
    }
    remove_temporary_names();
#ifdef LEDGER_ON_PQ
    /* What its sessions were sent last may still be under way; the next ledger looks for receipts once. */
    server_wait(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()", 0);
#endif
    ledger = ledger_start(NULL);
    int made = 0;
    for (int i = 0; i < CLIENTS; i++) {
        int last = clients[i].last;
        char key[64];
        snprintf(key, sizeof key, "%d-%d", i, last);
        if (last >= 0) {
            ledger_answer again = ledger_transfer(&ledger, 1 + (i + last) % 8, 1 + (i + last + 1 + last % 7) % 8,
                                                  1 + last, key, NULL);
            ck_assert_msg(again.status == 201 && again.replayed, "%s: %d %s", key, again.status, again.text);
        }
        made += clients[i].made;
    }
    int64_t found = ledger_expect_sound(&ledger);
    ck_assert_msg(found >= made && found <= made + CLIENTS, "%" PRId64 " transfers, %d were answered", found, made);
    ck_assert_int_eq(ledger_total(&ledger), TOTAL);
}
END_TEST

/* --------------------------------------------------------------------------------------------------- wire -- */

#ifdef LEDGER_ON_PQ
/*
 * The wire to the database breaks after byte n of a transfer. Whatever is answered, the same key afterwards is one transfer: 201 was true,
 * and where the answer was another the client may ask again. Returns 0 when n outran the exchange.
 */
static int break_wire(const ledger_process *ledger, wire_proxy *proxy, wire_direction direction, unsigned n,
                      int *resolved)
{
    char key[64];
    snprintf(key, sizeof key, "wire-%d-%u", (int)direction, n);
    /* The pool has its connection, the newest one, when this is answered. */
    ck_assert_int_eq(ledger_transfer(ledger, 2, 1, 1, NULL, NULL).status, 201);
    unsigned wire = wire_proxy_connections(proxy);
    wire_proxy_mark(proxy, wire);
    wire_proxy_cut_after(proxy, wire, direction, n, WIRE_RST);
    ledger_answer first = ledger_transfer(ledger, 1, 2, 1, key, NULL);
    int fired = wire_proxy_fired(proxy, wire, direction);
    wire_proxy_mark(proxy, wire); /* forgets what has not fired */
    ledger_answer again = ledger_transfer(ledger, 1, 2, 1, key, NULL);
    ck_assert_msg(first.status == 201 || first.status == 500 || first.status == 503, "%s: %d %s", key, first.status,
                  first.text);
    ck_assert_msg(again.status == 201, "%s again: %d %s", key, again.status, again.text);
    if (first.status == 201) {
        ck_assert_msg(again.replayed, "%s was answered with 201 and had not happened", key);
        ck_assert_str_eq(first.text, again.text);
        *resolved += fired;
    }
    return fired;
}

START_TEST(a_wire_that_breaks_anywhere_makes_no_transfer_twice_and_loses_none)
{
    wire_proxy *proxy = server_proxy();
    ledger_process ledger = ledger_start(
        (const char *const[]){"--db", wire_proxy_conninfo(proxy), "--request-ms", "30000", NULL});
    int64_t keys = 0;
    int resolved = 0;
    for (int direction = WIRE_TO_SERVER; direction <= WIRE_TO_CLIENT; direction++) {
        unsigned n = 0;
        do {
            keys++;
            n += 29;
        } while (break_wire(&ledger, proxy, (wire_direction)direction, n - 29, &resolved));
        ck_assert_msg(n > 300, "the exchange had only %u bytes", n);
    }
    ck_assert_msg(resolved > 0, "no answer to COMMIT was lost and found");
    ck_assert_int_eq(ledger_expect_sound(&ledger), 2 * keys);
    ck_assert_int_eq(ledger_balance(&ledger, 1), 100000);
    ck_assert_int_eq(ledger_stop(&ledger, SIGTERM), 0);
    wire_proxy_close(proxy);
}
END_TEST
#endif

int main(void)
{
    const TTest *const tests[] = {
        a_transfer_moves_the_money_and_leaves_a_receipt,
        a_key_is_one_transfer_with_one_answer,
        what_cannot_be_is_refused_and_changes_nothing,
        what_is_too_long_is_refused,
        a_breaker_refuses_transfers_while_the_connection_is_lost_each_time,
        a_breaker_refuses_transfers_while_no_receipt_can_be_written,
        the_metrics_are_in_the_text_format_and_agree_with_each_other,
        every_chaos_is_answered_and_logged_and_changes_nothing,
        chaos_is_refused_where_it_is_not_switched_on,
        a_line_of_the_log_has_what_was_rolled_back_and_by_whom,
        a_log_that_was_moved_is_opened_anew_at_sighup,
        chaos_is_refused_to_requests_from_elsewhere,
        a_full_disk_under_the_log_loses_lines_only,
        a_storm_is_counted_and_not_written,
        every_page_answers,
        under_load_and_chaos_no_money_and_nothing_else_is_lost,
        sigterm_cancels_a_request_at_the_deadline_and_rolls_it_back,
        a_ledger_that_drains_takes_no_new_requests,
        sigterm_lets_requests_end,
        sigkill_loses_no_transfer_that_was_answered,
#ifdef LEDGER_ON_PQ
        a_wire_that_breaks_anywhere_makes_no_transfer_twice_and_loses_none,
#endif
    };
    return ledger_suite_run("ledger", tests, sizeof tests / sizeof *tests);
}
