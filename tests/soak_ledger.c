/* SPDX-License-Identifier: MIT */
/*
 * make soak: a long time of transfers and chaos, and what guards cost. GUARD_SOAK_SECONDS is how long, 60 where it is not set.
 */
#include <curl/curl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#include "ledger_program.h"

enum { CLIENTS = 4, ROUNDS_PER_SECOND = 10 };

static int soak_seconds(void)
{
    const char *text = getenv("GUARD_SOAK_SECONDS");
    int seconds = text != NULL ? atoi(text) : 60;
    return seconds > 0 ? seconds : 60;
}

/* ------------------------------------------------------------------------------------------------ clients -- */

/* A connection that is kept, as the clients of a service keep theirs. */
typedef struct client {
    pthread_t thread;
    const char *address;
    int number;
    int chaos_each; /* one request in so many; 0: none; 1: all, and each a panic */
    uint64_t requests;
    uint64_t made;
    uint64_t failed; /* by chaos: 500 or 503 */
    uint64_t late;   /* 503: it waited for an account on which another one slept, until its own deadline */
    uint64_t surprises;
    unsigned seed;
    CURL *curl;
    atomic_int *go; /* 1: while it is, it asks */
} client;

static size_t drop(char *data, size_t size, size_t count, void *arg)
{
    (void)data;
    (void)arg;
    return size * count;
}

static void open_client(client *c)
{
    char url[128];
    snprintf(url, sizeof url, "%s/transfers", c->address);
    c->curl = curl_easy_init();
    ck_assert_ptr_nonnull(c->curl);
    curl_easy_setopt(c->curl, CURLOPT_URL, url);
    curl_easy_setopt(c->curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c->curl, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(c->curl, CURLOPT_TIMEOUT, 60L);
    curl_easy_setopt(c->curl, CURLOPT_WRITEFUNCTION, drop);
}

static void ask(client *c)
{
    static const char *const kinds[] = {"panic", "debit", "kill", "sleep", "null"};
    char body[128];
    char line[128];
    int from = rand_r(&c->seed) % 8;
    int to = (from + 1 + rand_r(&c->seed) % 7) % 8;
    int chaos = c->chaos_each > 0 && rand_r(&c->seed) % c->chaos_each == 0;
    snprintf(body, sizeof body, "{\"from\":%d,\"to\":%d,\"amount\":%d}", 1 + from, 1 + to, 1 + rand_r(&c->seed) % 9);
    snprintf(line, sizeof line, "Idempotency-Key: %d-%" PRIu64, c->number, c->requests);
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    headers = curl_slist_append(headers, line);
    if (chaos) {
        snprintf(line, sizeof line, "X-Chaos: %s", kinds[c->chaos_each > 1 ? rand_r(&c->seed) % 5 : 0]);
        headers = curl_slist_append(headers, line);
    }
    curl_easy_setopt(c->curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(c->curl, CURLOPT_POSTFIELDS, body);
    long status = 0;
    if (curl_easy_perform(c->curl) == CURLE_OK) {
        curl_easy_getinfo(c->curl, CURLINFO_RESPONSE_CODE, &status);
    }
    curl_slist_free_all(headers);
    c->requests++;
    if (status == 201 && !chaos) {
        c->made++;
    } else if ((status == 500 || status == 503) && chaos) {
        c->failed++;
    } else if (status == 503 && c->chaos_each > 0) {
        c->late++;
    } else if (status != 409) { /* an account may be empty */
        c->surprises++;
        fprintf(stderr, "a request with %s: %ld\n", chaos ? "chaos" : "no chaos", status);
    }
}

static void *ask_on(void *arg)
{
    client *c = arg;
    while (atomic_load(c->go)) {
        ask(c);
    }
    return NULL;
}

/* Lets all clients ask for so long; returns the transfers that were made. */
static uint64_t ask_for(client *clients, double seconds)
{
    atomic_int go = 1;
    uint64_t before = 0;
    uint64_t after = 0;
    for (int i = 0; i < CLIENTS; i++) {
        before += clients[i].made;
        clients[i].go = &go;
        ck_assert_int_eq(pthread_create(&clients[i].thread, NULL, ask_on, &clients[i]), 0);
    }
    struct timespec span = {.tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&span, NULL);
    atomic_store(&go, 0);
    for (int i = 0; i < CLIENTS; i++) {
        pthread_join(clients[i].thread, NULL);
        after += clients[i].made;
    }
    return after - before;
}

static void open_clients(client *clients, const char *address, int chaos_each, int first_number)
{
    for (int i = 0; i < CLIENTS; i++) {
        clients[i] = (client){
            .address = address, .number = first_number + i, .chaos_each = chaos_each, .seed = (unsigned)(i + 1)};
        open_client(&clients[i]);
    }
}

static void close_clients(client *clients)
{
    for (int i = 0; i < CLIENTS; i++) {
        curl_easy_cleanup(clients[i].curl);
    }
}

/* ---------------------------------------------------------------------------------------------- the soak -- */

typedef struct footprint {
    long resident_kib;
    size_t descriptors;
    size_t threads;
} footprint;

static footprint measure(const ledger_process *ledger)
{
    footprint f = {0};
    char path[64];
    char line[256];
    snprintf(path, sizeof path, "/proc/%d/status", (int)ledger->pid);
    FILE *file = fopen(path, "r");
    ck_assert_ptr_nonnull(file);
    while (fgets(line, sizeof line, file) != NULL) {
        sscanf(line, "VmRSS: %ld", &f.resident_kib);
    }
    fclose(file);
    snprintf(path, sizeof path, "/proc/%d/fd", (int)ledger->pid);
    f.descriptors = ledger_entries(path);
    snprintf(path, sizeof path, "/proc/%d/task", (int)ledger->pid);
    f.threads = ledger_entries(path);
    return f;
}

START_TEST(a_long_time_of_transfers_and_chaos_loses_nothing)
{
    int seconds = soak_seconds();
    ledger_process ledger = ledger_start((const char *const[]){"--request-ms", "1000", NULL});
    client clients[CLIENTS];
    footprint at[4];
    /* The first line with a stack reads the program's debugging information, once: some 11 MiB. */
    ck_assert_int_eq(ledger_transfer(&ledger, 1, 2, 500, NULL, "panic").status, 500);
    ck_assert(ledger_log_gets("\"stack\""));
    open_clients(clients, ledger.address, 100, 0);
    for (int i = 0; i < 4; i++) {
        ask_for(clients, seconds / 4.0);
        at[i] = measure(&ledger);
        printf("soak: after %d s %ld KiB, %zu descriptors, %zu threads\n", (i + 1) * seconds / 4, at[i].resident_kib,
               at[i].descriptors, at[i].threads);
    }
    close_clients(clients);
    uint64_t requests = 0, made = 0, failed = 0, late = 0, surprises = 0;
    for (int i = 0; i < CLIENTS; i++) {
        requests += clients[i].requests;
        made += clients[i].made;
        failed += clients[i].failed;
        late += clients[i].late;
        surprises += clients[i].surprises;
    }
    printf("soak: %" PRIu64 " requests, %" PRIu64 " transfers, %" PRIu64 " failed by chaos, %" PRIu64 " late\n",
           requests, made, failed, late);
    fflush(stdout);
    ck_assert_msg(surprises == 0, "%" PRIu64 " answers were not what was asked for", surprises);
    ck_assert_uint_gt(failed, 0);
    ck_assert_int_eq(ledger_total(&ledger), 800000);
    ck_assert_int_eq(ledger_expect_sound(&ledger), (int64_t)made);
    ck_assert_int_eq(ledger_metric(&ledger, "ledger_panics_total"), (int64_t)(failed + late) + 1);
    ck_assert_int_eq(ledger_metric(&ledger, "guard_service_calls_under_way{service=\"ledger\"}"), 1);
    /*
     * After the first quarter everything has been done once, but that a connection's thread gets the descriptor it is woken by when it
     * first has to wait.
     */
    ck_assert_uint_le(at[3].descriptors, at[0].descriptors + CLIENTS);
    ck_assert_uint_le(at[3].threads, at[0].threads + 1);
    ck_assert_msg(at[3].resident_kib <= at[0].resident_kib + at[0].resident_kib / 10 + 2048,
                  "%ld KiB have become %ld KiB", at[0].resident_kib, at[3].resident_kib);
    struct stat log;
    ck_assert_int_eq(stat("log", &log), 0);
    ck_assert_msg((uint64_t)log.st_size <= (failed + late + 1) * 4096, "the log has %lld bytes for %" PRIu64 " panics",
                  (long long)log.st_size, failed + late);
    ck_assert_int_eq(ledger_stop(&ledger, SIGTERM), 0);
}
END_TEST

/* As many panics as there can be, and nowhere to write of them. */
START_TEST(a_storm_of_panics_on_a_full_disk_loses_lines_only)
{
    ledger_process ledger = ledger_start((const char *const[]){"--log", "/dev/full", NULL});
    client clients[CLIENTS];
    open_clients(clients, ledger.address, 1, 0);
    ask_for(clients, soak_seconds() / 8.0); /* what it keeps for good, such as the log's queue, has been used once */
    footprint before = measure(&ledger);
    ask_for(clients, soak_seconds() * 3 / 8.0);
    footprint after = measure(&ledger);
    uint64_t failed = 0;
    uint64_t requests = 0;
    for (int i = 0; i < CLIENTS; i++) {
        failed += clients[i].failed;
        requests += clients[i].requests;
    }
    close_clients(clients);
    printf("soak: a storm of %" PRIu64 " panics, %ld KiB before, %ld KiB after\n", failed, before.resident_kib,
           after.resident_kib);
    fflush(stdout);
    ck_assert_uint_eq(failed, requests);
    ck_assert_int_eq(ledger_metric(&ledger, "ledger_panics_total"), (int64_t)failed);
    ck_assert_int_eq(ledger_metric(&ledger, "ledger_log_lines_total{fate=\"written\"}"), 0);
    ck_assert_int_eq(ledger_metric(&ledger, "ledger_log_lines_total{fate=\"dropped\"}"), (int64_t)failed);
    ck_assert_int_le(after.resident_kib, before.resident_kib + 4096);
    ck_assert_int_eq(ledger_expect_sound(&ledger), 0);
    ck_assert_int_eq(ledger_transfer(&ledger, 1, 2, 1, NULL, NULL).status, 201);
    ck_assert_int_eq(ledger_stop(&ledger, SIGTERM), 0);
}
END_TEST

/* ------------------------------------------------------------------------------------------------- speed -- */

#ifndef LEDGER_ON_PQ
static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/*
 * The two services in turn, many short rounds, each with its own database in the same folder; the one that begins changes. What
 * counts is the median of the ratios of neighbours, as the machine may be busy with something else for a while.
 */
START_TEST(guards_cost_no_more_than_a_twentieth)
{
    int pairs = soak_seconds() * ROUNDS_PER_SECOND / 2;
    double *ratios = calloc((size_t)pairs, sizeof *ratios);
    ck_assert_ptr_nonnull(ratios);
    ledger_process guarded = ledger_start(NULL);
    /* guard-ledger makes the tables and the accounts of the other one too. */
    ledger_process maker = ledger_start((const char *const[]){"--db", "sqlite:plain.db", "--receipts", "plain", NULL});
    ck_assert_int_eq(ledger_stop(&maker, SIGTERM), 0);
    ledger_process plain = ledger_start_program(
        "guard-ledger-plain", (const char *const[]){"--db", "sqlite:plain.db", "--receipts", "plain", NULL});
    client with[CLIENTS], without[CLIENTS];
    open_clients(with, guarded.address, 0, 0);
    open_clients(without, plain.address, 0, 0);
    ask_for(with, 0.5);
    ask_for(without, 0.5);
    double began = now();
    uint64_t with_sum = 0, without_sum = 0;
    for (int i = 0; i < pairs; i++) {
        uint64_t first = ask_for(i % 2 == 0 ? with : without, 1.0 / ROUNDS_PER_SECOND);
        uint64_t second = ask_for(i % 2 == 0 ? without : with, 1.0 / ROUNDS_PER_SECOND);
        uint64_t guarded_count = i % 2 == 0 ? first : second;
        uint64_t plain_count = i % 2 == 0 ? second : first;
        with_sum += guarded_count;
        without_sum += plain_count;
        ratios[i] = plain_count > 0 ? (double)guarded_count / (double)plain_count : 0;
    }
    double took = (now() - began) / 2;
    qsort(ratios, (size_t)pairs, sizeof *ratios, by_size);
    double median = ratios[pairs / 2];
    printf(
        "soak: %.0f transfers/s with guards, %.0f without; of %d pairs the median ratio is %.3f, quartiles %.3f %.3f\n",
        (double)with_sum / took, (double)without_sum / took, pairs, median, ratios[pairs / 4], ratios[pairs * 3 / 4]);
    fflush(stdout);
    uint64_t surprises = 0;
    for (int i = 0; i < CLIENTS; i++) {
        surprises += with[i].surprises + without[i].surprises;
    }
    close_clients(with);
    close_clients(without);
    free(ratios);
    ck_assert_int_eq(ledger_stop(&plain, SIGTERM), 0);
    ck_assert_int_eq(ledger_stop(&guarded, SIGTERM), 0);
    ck_assert_uint_eq(surprises, 0);
    ck_assert_msg(median >= 0.95, "with guards it does %.3f of what it does without", median);
}
END_TEST
#endif

int main(void)
{
    const TTest *const tests[] = {
        a_long_time_of_transfers_and_chaos_loses_nothing,
        a_storm_of_panics_on_a_full_disk_loses_lines_only,
#ifndef LEDGER_ON_PQ
        guards_cost_no_more_than_a_twentieth,
#endif
    };
    return ledger_suite_run("soak", tests, sizeof tests / sizeof *tests);
}
