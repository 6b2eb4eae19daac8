/* SPDX-License-Identifier: MIT */
/*
 * compare.h: the parts of the program that runs the workers in turn.
 *
 *   rows.c      what is compared with what, and what is to be reached
 *   worker.c    a worker's process, and the questions to it
 *   measure.c   counts, rounds, ratios
 *   results.c   the table, results.json, the picture's data
 *   compare.c   the program
 */
#ifndef BENCH_COMPARE_H
#define BENCH_COMPARE_H

#include <stdbool.h>
#include <stdint.h>

#include <guard/guard.h>

/* ------------------------------------------------------------------------------------------------- rows -- */

/* Who does a row's work: a program in the bench folder of the build, and the work's name there (NULL: the row's). */
typedef struct bench_side {
    const char *program;
    const char *work;
} bench_side;

typedef struct bench_row {
    const char *row;
    const char *peer;
    const char *of;   /* which of several comparisons of the same row and peer this is; NULL: there is but one */
    double target;    /* the ratio to reach; 0: none, the peer is a floor or shown for orientation */
    double target_ns; /* a time to reach, where there is no ratio to; 0: none */
    bench_side us;
    bench_side them;
    bool in_instructions; /* the target is about instructions, not time */
    bool is_counted;      /* they are counted too */
    uint64_t count;       /* turns in a request that is no check; 0: as many as take about 10 ms */
    unsigned rounds;      /* 0: the default */
    unsigned round_ms;    /* what both sides take in a round, about; 0: the default */
} bench_row;

/* Ends with a NULL row. */
extern const bench_row bench_rows[];

/* ---------------------------------------------------------------------------------------------- workers -- */

typedef struct bench_answer {
    int64_t nanoseconds;
    uint64_t check;
} bench_answer;

typedef struct bench_worker bench_worker;

/* Starts the program, which ends with the scope; panics. `folder` is where the workers are. */
bench_worker *bench_worker_open(guard_scope *scope, const char *folder, const char *program);

/* Asks for `count` turns; panics where the answer is an error. False: the work cannot be done here, `reason` says why. */
bool bench_worker_ask(bench_worker *worker, const char *work, uint64_t count, bench_answer *answer, char *reason,
                      size_t size);

/* True if the program was built. */
bool bench_worker_exists(const char *folder, const char *program);

/* Instructions of one turn, by callgrind: the difference between 2 * count and count turns. 0: there is no valgrind. */
double bench_worker_instructions(const char *folder, const bench_side *side, const char *work, uint64_t count);

/* --------------------------------------------------------------------------------------------- measuring -- */

typedef struct bench_result {
    const bench_row *row;
    char skipped[200]; /* why there is no result; empty: there is one */
    char failed[200];  /* what went wrong; empty: nothing */
    double us_ns;      /* of a turn, medians */
    double peer_ns;
    double us_instructions; /* of a turn; 0: not counted */
    double peer_instructions;
    double ratio; /* of what the target is about */
    double ratio_min;
    double ratio_max;
    unsigned rounds;
    bool ok; /* the target is reached, or there is none */
} bench_result;

typedef struct bench_settings {
    const char *folder; /* of the workers */
    unsigned rounds;
    bool is_check; /* a few turns only, to see that everything works */
} bench_settings;

/* Never panics: what goes wrong is in the result. */
void bench_measure(const bench_row *row, const bench_settings *settings, bench_result *result);

/* ---------------------------------------------------------------------------------------------- results -- */

/* In a check nothing is said of times. */
void bench_print_head(const bench_settings *settings);
void bench_print(const bench_settings *settings, const bench_result *result);

/* Writes results.json and ratios.dat, which the picture is made from, into the folder; both are whole or not there. Panics. */
void bench_publish(const char *folder, const bench_result *results, size_t count);

#endif
