/* SPDX-License-Identifier: MIT */
/*
 * compare.c: runs the rows of rows.c, all or those whose names are given.
 *
 *     compare [--check] [--rounds N] [--folder WORKERS] [ROW...]
 *
 * Exit status: 0 when each row was measured or skipped, whatever the ratios; 1 when one went wrong; 2 for wrong use.
 */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compare.h"

#define ROWS_MOST 256U

typedef struct run {
    bench_settings settings;
    char **wanted; /* ends with NULL; none: all */
    bench_result results[ROWS_MOST];
    size_t count;
    bool is_broken;
} run;

static bool is_wanted(const run *all, const bench_row *row)
{
    char **name = all->wanted;
    while (*name != NULL && strcmp(*name, row->row) != 0) {
        name++;
    }
    return *name != NULL || all->wanted[0] == NULL;
}

static void run_rows(void *memory)
{
    run *all = memory;
    unsigned behind = 0;
    bench_print_head(&all->settings);
    for (const bench_row *row = bench_rows; row->row != NULL && all->count < ROWS_MOST; row++) {
        if (is_wanted(all, row)) {
            bench_result *result = &all->results[all->count++];
            bench_measure(row, &all->settings, result);
            bench_print(&all->settings, result);
            fflush(stdout);
            all->is_broken = all->is_broken || result->failed[0] != '\0';
            behind += result->skipped[0] == '\0' && result->failed[0] == '\0' && !result->ok;
        }
    }
    if (all->count == 0) {
        guard_panic(2, "there is no such row");
    }
    bench_publish(all->settings.folder, all->results, all->count);
    if (!all->settings.is_check) {
        printf("%u behind their target; %s/results.json has the numbers\n", behind, all->settings.folder);
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"check", no_argument, NULL, 'c'},
                                            {"rounds", required_argument, NULL, 'r'},
                                            {"folder", required_argument, NULL, 'f'},
                                            {NULL, 0, NULL, 0}};
    static run all = {.settings = {.folder = "bench"}};
    guard_error error;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'c':
            all.settings.is_check = true;
            break;
        case 'r':
            all.settings.rounds = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'f':
            all.settings.folder = optarg;
            break;
        default:
            fprintf(stderr, "usage: compare [--check] [--rounds N] [--folder WORKERS] [ROW...]\n");
            return 2;
        }
    }
    all.wanted = argv + optind;
    signal(SIGPIPE, SIG_IGN); /* a worker that has ended is noticed by its missing answer */
    int code = guard_run(run_rows, &all, &error);
    if (code != 0) {
        fprintf(stderr, "compare: %s\n", error.message);
        return code == 2 ? 2 : 1;
    }
    return all.is_broken ? 1 : 0;
}
