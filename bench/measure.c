/* SPDX-License-Identifier: MIT */
/*
 * measure.c: one row. Both sides are asked in turn for the same number of turns, who is first changing from round to round, so that
 * what else the machine does meets both. The result is the median of the ratios of the rounds.
 */
#include <stdio.h>
#include <stdlib.h>

#include <guard/guard_file.h>

#include "compare.h"

/* What both sides of a round take together. Long enough that the clock and the pipes do not count, short enough that many rounds fit. */
#define ROUND_MS 20
#define ROUNDS_DEFAULT 31U
#define ROUNDS_MOST 1001U
/* callgrind is some fifty times slower, but needs no long time: it counts. */
#define INSTRUCTIONS_COUNT 200U
/*
 * Both sides are started so many times in a row. Where the kernel puts a process's stack and heap is the same for all its rounds: in one start of
 * some twenty scope-defer took 6.7 ns and not 3.3, in each of 31 rounds.
 */
#define STARTS 4U

typedef struct pair {
    const bench_row *row;
    const char *folder;
    guard_owner *workers;
    bench_worker *us;
    bench_worker *them;
    bench_result *result;
} pair;

typedef struct task {
    const bench_row *row;
    const bench_settings *settings;
    bench_result *result;
} task;

static const char *work_of(const bench_row *row, const bench_side *side)
{
    return side->work != NULL ? side->work : row->row;
}

static int compare_numbers(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts them. */
static double median(double *numbers, unsigned count)
{
    qsort(numbers, count, sizeof *numbers, compare_numbers);
    return (numbers[(count - 1) / 2] + numbers[count / 2]) / 2;
}

static void pair_end(void *memory)
{
    pair *both = memory;
    guard_owner *workers = both->workers;
    both->workers = NULL;
    if (workers != NULL) {
        guard_owner_close(workers);
    }
}

/* Anew, where they run. */
static void pair_start(pair *both)
{
    pair_end(both);
    both->workers = guard_owner_new();
    guard_scope *s = guard_owner_scope(both->workers);
    both->us = bench_worker_open(s, both->folder, both->row->us.program);
    both->them = bench_worker_open(s, both->folder, both->row->them.program);
}

/* False: one of them cannot do it here. */
static bool pair_ask(const pair *both, uint64_t count, bool they_first, bench_answer *us, bench_answer *them)
{
    const bench_row *row = both->row;
    bench_result *result = both->result;
    for (int i = 0; i < 2; i++) {
        bool them_now = (i == 0) == they_first;
        bench_worker *worker = them_now ? both->them : both->us;
        const char *work = work_of(row, them_now ? &row->them : &row->us);
        if (!bench_worker_ask(worker, work, count, them_now ? them : us, result->skipped, sizeof result->skipped)) {
            return false;
        }
    }
    if (us->check != them->check) {
        guard_panic(1, "they did not do the same work: check sums %llu and %llu", (unsigned long long)us->check,
                    (unsigned long long)them->check);
    }
    return true;
}

/* So many turns that a round takes about as long as it should. 0: skipped. */
static uint64_t calibrate(const pair *both)
{
    double wanted = 1e6 * (both->row->round_ms > 0 ? both->row->round_ms : ROUND_MS);
    uint64_t count = 1;
    for (;;) {
        bench_answer us;
        bench_answer them;
        if (!pair_ask(both, count, false, &us, &them)) {
            return 0;
        }
        double taken = (double)(us.nanoseconds + them.nanoseconds) + 1;
        if (taken >= wanted / 2) {
            return count;
        }
        double factor = wanted / taken;
        count = (uint64_t)((double)count * (factor < 10 ? factor : 10)) + 1;
    }
}

/* With a few turns before the time: what a process does for the first time is dear. A loader is a process of its own in each round anyway. */
static void pair_start_again(pair *both, uint64_t count)
{
    bench_answer us;
    bench_answer them;
    if (both->row->count == 0) {
        pair_start(both);
        pair_ask(both, count / 10 + 1, false, &us, &them);
    }
}

static void measure_rounds(pair *both, uint64_t count, unsigned rounds)
{
    GUARD_AUTO(s);
    bench_result *result = both->result;
    double *ours = guard_memory_allocate_array(s, rounds, sizeof *ours, NULL);
    double *theirs = guard_memory_allocate_array(s, rounds, sizeof *theirs, NULL);
    double *ratios = guard_memory_allocate_array(s, rounds, sizeof *ratios, NULL);
    for (unsigned i = 0; i < rounds; i++) {
        bench_answer us;
        bench_answer them;
        if (i > 0 && i % ((rounds + STARTS - 1) / STARTS) == 0) {
            pair_start_again(both, count);
        }
        if (!pair_ask(both, count, i % 2 == 1, &us, &them)) {
            return;
        }
        ours[i] = (double)us.nanoseconds / (double)count;
        theirs[i] = (double)them.nanoseconds / (double)count;
        ratios[i] = (double)us.nanoseconds / (double)(them.nanoseconds > 0 ? them.nanoseconds : 1);
    }
    result->rounds = rounds;
    result->us_ns = median(ours, rounds);
    result->peer_ns = median(theirs, rounds);
    result->ratio = median(ratios, rounds);
    result->ratio_min = ratios[0];
    result->ratio_max = ratios[rounds - 1];
}

/* Instructions do not vary, so their ratio has no spread. */
static void measure_instructions(const task *mine)
{
    const bench_row *row = mine->row;
    const char *folder = mine->settings->folder;
    bench_result *result = mine->result;
    result->us_instructions = bench_worker_instructions(folder, &row->us, work_of(row, &row->us), INSTRUCTIONS_COUNT);
    result->peer_instructions = bench_worker_instructions(folder, &row->them, work_of(row, &row->them),
                                                          INSTRUCTIONS_COUNT);
    bool is_known = result->us_instructions > 0 && result->peer_instructions > 0;
    if (!is_known && row->in_instructions) {
        snprintf(result->skipped, sizeof result->skipped, "instructions need valgrind");
    }
    if (!is_known || !row->in_instructions) {
        return;
    }
    result->ratio = result->us_instructions / result->peer_instructions;
    result->ratio_min = result->ratio;
    result->ratio_max = result->ratio;
}

static unsigned rounds_of(const task *mine)
{
    if (mine->settings->is_check) {
        return 1;
    }
    unsigned rounds = mine->settings->rounds > 0 ? mine->settings->rounds
                      : mine->row->rounds > 0    ? mine->row->rounds
                                                 : ROUNDS_DEFAULT;
    return rounds < ROUNDS_MOST ? rounds : ROUNDS_MOST;
}

/* A row with a count of its own loads so many rows of a file; in a check the first few hundred, among them bad ones. */
static uint64_t count_of_check(const bench_row *row)
{
    return row->count > 0 ? 300 : 3;
}

static void measure(void *memory)
{
    const task *mine = memory;
    const bench_row *row = mine->row;
    pair both = {.row = row, .folder = mine->settings->folder, .result = mine->result};
    GUARD_DEFER(pair_end, &both);
    pair_start(&both);
    uint64_t count = mine->settings->is_check ? count_of_check(row) : row->count > 0 ? row->count : calibrate(&both);
    if (count > 0) {
        measure_rounds(&both, count, rounds_of(mine));
    }
    if ((row->in_instructions || row->is_counted) && !mine->settings->is_check && mine->result->skipped[0] == '\0') {
        measure_instructions(mine);
    }
}

static bool side_is_missing(const task *mine, const bench_side *side)
{
    if (bench_worker_exists(mine->settings->folder, side->program)) {
        return false;
    }
    snprintf(mine->result->skipped, sizeof mine->result->skipped, "%s was not built", side->program);
    return true;
}

void bench_measure(const bench_row *row, const bench_settings *settings, bench_result *result)
{
    task mine = {row, settings, result};
    guard_error error;
    *result = (bench_result){.row = row};
    if (side_is_missing(&mine, &row->us) || side_is_missing(&mine, &row->them)) {
        return;
    }
    if (guard_run(measure, &mine, &error) != 0) {
        snprintf(result->failed, sizeof result->failed, "%.*s", (int)sizeof result->failed - 1, error.message);
        return;
    }
    result->ok = result->skipped[0] == '\0' && (row->target <= 0 || result->ratio <= row->target) &&
                 (row->target_ns <= 0 || result->us_ns <= row->target_ns);
}
