/* SPDX-License-Identifier: MIT */
/*
 * check_pq_bank.c: a bank whose wires break and whose backends are killed all the while. The sum of all accounts never changes, every
 * transfer that was told COMMITTED is there, and every one that was told ROLLED_BACK is not.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "server.h"
#include "suite.h"
#include "wire_proxy.h"

#define THREADS 8
#define ACCOUNTS 20
#define MONEY 1000
#define TRANSFERS_MAX 20000
#define CAMPAIGN_MS 12000

static wire_proxy *proxy;
static atomic_int over;
/* What was tried so far: a slow machine goes on until it is enough. */
static atomic_int commits, losses, connects;

typedef struct clerk {
    pthread_t thread;
    unsigned seed;
    guard_pq *pq;
    int marker;
    int with_first; /* BEGIN goes with the first statement */
    int first_id;
    int count; /* transfers tried */
    int connections;
    int reruns;
    int resolved;
    uint8_t told[TRANSFERS_MAX]; /* a guard_outcome for each */
    char token[8][GUARD_TOKEN_SIZE];
    int doubts[8];
    int doubt_count;
} clerk;

/* ---------------------------------------------------------------------------------------------------- clerks */

/* With parameters, though none: so it may share BEGIN's message. */
static int money_of(guard_pq *pq, const char *sql)
{
    GUARD_AUTO(s);
    return atoi(PQgetvalue(guard_pq_exec_params(s, pq, sql, NULL), 0, 0));
}

static void transfer(guard_tx *tx, void *arg)
{
    clerk *c = arg;
    guard_pq *pq = guard_pq_of(tx);
    char sql[200];
    int from = (int)(rand_r(&c->seed) % ACCOUNTS);
    int to = (from + 1 + (int)(rand_r(&c->seed) % (ACCOUNTS - 1))) % ACCOUNTS;
    int amount = 1 + (int)(rand_r(&c->seed) % 50);
    snprintf(sql, sizeof(sql), "SELECT money FROM account WHERE id = %d", from);
    if (money_of(pq, sql) < amount) {
        amount = 0;
    }
    snprintf(sql, sizeof(sql), "UPDATE account SET money = money - %d WHERE id = %d", amount, from);
    guard_pq_exec(NULL, pq, sql);
    snprintf(sql, sizeof(sql), "UPDATE account SET money = money + %d WHERE id = %d", amount, to);
    guard_pq_exec(NULL, pq, sql);
    snprintf(sql, sizeof(sql), "INSERT INTO transfer VALUES (%d)", c->first_id + c->count);
    guard_pq_exec(NULL, pq, sql);
}

static void note_doubt(clerk *c, const guard_result *result)
{
    if (c->doubt_count < 8) {
        c->doubts[c->doubt_count] = c->count;
        snprintf(c->token[c->doubt_count++], GUARD_TOKEN_SIZE, "%s", result->token);
    }
}

static int is_lost(const guard_error *error)
{
    return (error->domain == GUARD_PQ && error->code == GUARD_PQ_CONNECTION) ||
           (error->domain == GUARD_TX && error->code == GUARD_TX_POISONED);
}

/* Until the connection is lost; then a new one is made. */
static void work(void *arg)
{
    clerk *c = arg;
    GUARD_AUTO(s);
    guard_pq_options connection = {.statement_ms = 5000, .commit_ms = 5000, .connect_ms = 5000};
    guard_pq_tx_options options = {.isolation = GUARD_PQ_SERIALIZABLE,
                                   .marker = c->marker,
                                   .flags = c->with_first ? GUARD_PQ_BEGIN_WITH_FIRST : 0};
    c->pq = guard_pq_open(s, wire_proxy_conninfo(proxy), &connection);
    c->connections++;
    atomic_fetch_add(&connects, 1);
    /* Who has the raw connection has BEGIN sent at once. */
    while (!atomic_load(&over) && (c->with_first || PQstatus(guard_pq_raw(c->pq)) == CONNECTION_OK) &&
           c->count < TRANSFERS_MAX) {
        guard_result result;
        guard_outcome outcome = guard_pq_transact(c->pq, transfer, c, &options, &result);
        c->told[c->count] = (uint8_t)outcome;
        c->reruns += (int)result.attempts - 1;
        c->resolved += (result.notes & GUARD_NOTE_RESOLVED) != 0;
        atomic_fetch_add(&commits, outcome == GUARD_COMMITTED);
        atomic_fetch_add(&losses, (result.notes & GUARD_NOTE_RESOLVED) != 0);
        if (outcome == GUARD_IN_DOUBT) {
            note_doubt(c, &result);
        }
        c->count++;
        if (outcome != GUARD_COMMITTED && is_lost(&result.error)) {
            break;
        }
    }
}

static void *run_clerk(void *arg)
{
    clerk *c = arg;
    guard_error error;
    while (!atomic_load(&over)) {
        guard_run(work, c, &error);
    }
    return NULL;
}

/* ----------------------------------------------------------------------------------------------------- faults */

static void break_something(unsigned *seed)
{
    unsigned newest = wire_proxy_connections(proxy);
    unsigned wire = newest > THREADS ? newest - rand_r(seed) % THREADS : newest + 1;
    wire_direction direction = rand_r(seed) % 2 == 0 ? WIRE_TO_SERVER : WIRE_TO_CLIENT;
    uint64_t n = rand_r(seed) % 600;
    switch (rand_r(seed) % 5) {
    case 0:
        server_number(
            "SELECT pg_terminate_backend(pid)::int FROM pg_stat_activity WHERE backend_type = 'client backend' AND "
            "pid <> pg_backend_pid() ORDER BY random() LIMIT 1");
        break;
    case 1:
        wire_proxy_delay_after(proxy, wire, direction, n, 20);
        break;
    default:
        wire_proxy_mark(proxy, wire);
        wire_proxy_cut_after(proxy, wire, direction, n, rand_r(seed) % 2 == 0 ? WIRE_RST : WIRE_FIN | WIRE_DRAIN);
        break;
    }
}

static bool is_enough(void)
{
    return atomic_load(&commits) > 100 && atomic_load(&connects) > 2 * THREADS && atomic_load(&losses) > 0;
}

/* ------------------------------------------------------------------------------------------------------ audit */

static int is_there(int id)
{
    char sql[80];
    snprintf(sql, sizeof(sql), "SELECT count(*) FROM transfer WHERE id = %d", id);
    return (int)server_number(sql);
}

/* One question for each outcome and clerk: how many of the transfers that were told so are there. */
static int count_there(const clerk *c, guard_outcome outcome, int *told)
{
    size_t size = (size_t)c->count * 12 + 200;
    char *sql = malloc(size);
    size_t length = (size_t)snprintf(sql, size, "SELECT count(*) FROM transfer WHERE id IN (-1");
    *told = 0;
    for (int i = 0; i < c->count; i++) {
        if (c->told[i] == outcome) {
            ++*told;
            length += (size_t)snprintf(sql + length, size - length, ",%d", c->first_id + i);
        }
    }
    snprintf(sql + length, size - length, ")");
    int there = (int)server_number(sql);
    free(sql);
    return there;
}

static void settle_doubts(clerk *c)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = guard_pq_open(s, "", NULL);
    for (int i = 0; i < c->doubt_count; i++) {
        guard_outcome outcome = guard_pq_resolve(pq, c->token[i], NULL, &error);
        ck_assert_msg(outcome == GUARD_COMMITTED || outcome == GUARD_ROLLED_BACK, "still in doubt: %s", error.message);
        ck_assert_int_eq(is_there(c->first_id + c->doubts[i]), outcome == GUARD_COMMITTED);
    }
}

static void audit(clerk *clerks)
{
    int committed = 0;
    int rolled_back = 0;
    int doubts = 0;
    int reruns = 0;
    int resolved = 0;
    int connections = 0;
    server_wait("SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()", 0);
    for (int i = 0; i < THREADS; i++) {
        clerk *c = &clerks[i];
        int told;
        int there = count_there(c, GUARD_COMMITTED, &told);
        ck_assert_msg(there == told, "clerk %d was told of %d commits, %d are there", i, told, there);
        committed += told;
        there = count_there(c, GUARD_ROLLED_BACK, &told);
        ck_assert_msg(there == 0, "clerk %d was told of %d rollbacks, %d are there", i, told, there);
        rolled_back += told;
        count_there(c, GUARD_IN_DOUBT, &told);
        doubts += told;
        ck_assert_msg(committed + rolled_back + doubts > 0 && c->count > 0, "clerk %d did nothing", i);
        settle_doubts(c);
        reruns += c->reruns;
        resolved += c->resolved;
        connections += c->connections;
    }
    ck_assert_int_eq(server_number("SELECT sum(money) FROM account"), ACCOUNTS * MONEY);
    printf("%d committed, %d rolled back, %d in doubt and settled later; %d lost answers found, %d reruns, %d "
           "connections\n",
           committed, rolled_back, doubts, resolved, reruns, connections);
}

START_TEST(the_sum_never_changes_and_every_transfer_told_is_there_or_not_as_told)
{
    static clerk clerks[THREADS];
    unsigned seed = (unsigned)time(NULL);
    char sql[200];
    printf("seed %u\n", seed);
    server_reset();
    server_run("DROP TABLE IF EXISTS account, transfer; CREATE TABLE account(id integer PRIMARY KEY, money integer "
               "CHECK (money "
               ">= 0)); CREATE TABLE transfer(id integer PRIMARY KEY)");
    snprintf(sql, sizeof(sql), "INSERT INTO account SELECT i, %d FROM generate_series(0, %d) i", MONEY, ACCOUNTS - 1);
    server_run(sql);
    proxy = server_proxy();
    for (int i = 0; i < THREADS; i++) {
        clerks[i].seed = seed + (unsigned)i + 1;
        clerks[i].marker = GUARD_PQ_MARKER_ROW;
        clerks[i].with_first = i % 2;
        clerks[i].first_id = i * TRANSFERS_MAX;
        ck_assert_int_eq(pthread_create(&clerks[i].thread, NULL, run_clerk, &clerks[i]), 0);
    }
    for (int64_t end = now_ms() + CAMPAIGN_MS; now_ms() < end || !is_enough();) {
        pause_ms(10);
        break_something(&seed);
    }
    atomic_store(&over, 1);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(clerks[i].thread, NULL);
    }
    wire_proxy_close(proxy);
    audit(clerks);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        the_sum_never_changes_and_every_transfer_told_is_there_or_not_as_told,
    };
    return suite_run("pq_bank", tests, sizeof tests / sizeof *tests);
}
