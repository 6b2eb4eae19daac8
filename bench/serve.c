/* SPDX-License-Identifier: MIT */
/* serve.c: the workers' side of the protocol, see bench.h. */
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "bench.h"

static int64_t begun;
static int64_t ended; /* 0: still running */

static int64_t clock_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

void bench_begin(void)
{
    begun = clock_now();
}

void bench_end(void)
{
    ended = clock_now();
}

__attribute__((format(printf, 2, 0))) static void answer(const char *word, const char *format, va_list arguments)
{
    char reason[200];
    vsnprintf(reason, sizeof reason, format, arguments);
    for (char *at = reason; *at != '\0'; at++) {
        if (*at == '\n') {
            *at = ' '; /* an answer is one line */
        }
    }
    printf("%s %s\n", word, reason);
}

void bench_skip(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    answer("skip", format, arguments);
    va_end(arguments);
    exit(0);
}

void bench_fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    answer("error", format, arguments);
    va_end(arguments);
    exit(1);
}

/* -------------------------------------------------------------------------------------------- threads -- */

#define THREADS_MOST 16U

typedef struct hand {
    bench_fn *run;
    uint64_t count;
    uint64_t check;
    int64_t nanoseconds;
    pthread_barrier_t *ready;
    pthread_t id;
} hand;

static int64_t clock_of_thread(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static long times_waited(void)
{
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nvcsw;
}

/*
 * The time of a thread that waited for nothing (a lock, say) is what it ran: what it stood aside for other programs says nothing about
 * the work. One that did wait is timed by the clock on the wall.
 */
static void *hand_work(void *memory)
{
    hand *mine = memory;
    mine->run(1); /* what a thread makes at its first use is there before the time begins */
    pthread_barrier_wait(mine->ready);
    long waited = times_waited();
    int64_t wall = clock_now();
    int64_t ran = clock_of_thread();
    mine->check = mine->run(mine->count);
    ran = clock_of_thread() - ran;
    wall = clock_now() - wall;
    mine->nanoseconds = times_waited() == waited ? ran : wall;
    return NULL;
}

/* The time is that of the slowest. */
static uint64_t run_in_threads(bench_fn *run, uint64_t count, unsigned threads)
{
    hand hands[THREADS_MOST];
    pthread_barrier_t ready;
    uint64_t check = 0;
    pthread_barrier_init(&ready, NULL, threads);
    for (unsigned i = 0; i < threads; i++) {
        uint64_t share = count / threads + (i < count % threads);
        hands[i] = (hand){.run = run, .count = share, .ready = &ready};
        int error = pthread_create(&hands[i].id, NULL, hand_work, &hands[i]);
        if (error != 0) {
            bench_fail("pthread_create: %s", strerror(error));
        }
    }
    begun = 0;
    ended = 0;
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(hands[i].id, NULL);
        check += hands[i].check;
        ended = hands[i].nanoseconds > ended ? hands[i].nanoseconds : ended;
    }
    pthread_barrier_destroy(&ready);
    return check;
}

/* ------------------------------------------------------------------------------------------- requests -- */

static void serve_request(const bench_work *works, char *name, uint64_t count)
{
    char *at = strchr(name, '@');
    unsigned threads = at != NULL ? (unsigned)strtoul(at + 1, NULL, 10) : 0;
    if (at != NULL) {
        *at = '\0';
    }
    const bench_work *work = works;
    while (work->name != NULL && strcmp(work->name, name) != 0) {
        work++;
    }
    if (work->name == NULL || threads > THREADS_MOST) {
        bench_fail("this worker cannot do %s", name);
    }
    ended = 0;
    bench_begin();
    uint64_t check = threads > 0 ? run_in_threads(work->run, count, threads) : work->run(count);
    if (ended == 0) {
        bench_end();
    }
    printf("%" PRId64 " %" PRIu64 "\n", ended - begun, check);
    fflush(stdout);
}

int bench_serve(int argc, char **argv, const bench_work *works)
{
    char name[64];
    uint64_t count;
    if (argc == 3) {
        serve_request(works, argv[1], strtoull(argv[2], NULL, 10));
        return 0;
    }
    while (scanf("%63s %" SCNu64, name, &count) == 2) {
        serve_request(works, name, count);
    }
    return 0;
}
