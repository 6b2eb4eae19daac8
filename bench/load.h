/* SPDX-License-Identifier: MIT */
/*
 * load.h: what the loaders' workers share. A turn is a row of demo/load/data/flights.csv, whose first rows are put into a file of the
 * request's own. What is timed is the whole process of a loader, from its start to its end, into a table that is empty; the table
 * is then asked whether it holds what the file held.
 */
#ifndef BENCH_LOAD_H
#define BENCH_LOAD_H

#include <stdint.h>

#include <guard/guard.h>

typedef struct bench_load {
    const char *folder;   /* of this request, gone with it */
    const char *data;     /* demo/load/data */
    const char *loader;   /* guard-load */
    const char *file;     /* the CSV file: flights.csv in `folder` */
    uint64_t good;        /* rows in it that the table takes */
    uint64_t bad;         /* rows that it does not: one in a hundred, or none */
    int64_t distance;     /* the sum of that column over the good rows */
    int64_t bad_distance; /* over the bad ones */
} bench_load;

/* What a request's function does with the file; the check is left in *check. */
typedef struct bench_load_job {
    void (*run)(guard_scope *scope, const bench_load *load);
    uint64_t count;
    int is_bad;
} bench_load_job;

/* Makes the file, runs job->run, and returns the check: the sum of the distances. Answers skip or error where it must. */
uint64_t bench_load_serve(const bench_load_job *job);

/* Runs a program to its end, without a terminal; panics with the last line that it wrote when its exit status is not `expected`. */
void bench_load_process(const char *const *arguments, int expected);

/* The same, timed. Answers skip where the program is not installed. */
void bench_load_timed(const char *const *arguments, int expected);

/* Panics unless the table holds this. */
void bench_load_check(const bench_load *load, int64_t rows, int64_t distance, int64_t rejects);

#endif
