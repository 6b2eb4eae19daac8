/* SPDX-License-Identifier: MIT */
/* load.c: the file that is loaded, and the loaders' processes, see load.h. */
#include "load.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard_file.h>

#include "bench.h"

#define BAD_EACH 100U

/* ------------------------------------------------------------------------------------------------ the file -- */

/* Writes one row, spoiled in one of four ways: each is refused by another rule of the table. */
static void write_bad(FILE *file, uint64_t number, char *const *field)
{
    switch (number / BAD_EACH % 4) {
    case 0: /* no such airport */
        fprintf(file, "%s,%s,%s,%s,ZZZZ\n", field[0], field[1], field[2], field[3]);
        break;
    case 1: /* CHECK (origin <> destination) */
        fprintf(file, "%s,%s,%s,%s,%s\n", field[0], field[1], field[2], field[3], field[3]);
        break;
    case 2: /* not an integer */
        fprintf(file, "%s,late,%s,%s,%s\n", field[0], field[2], field[3], field[4]);
        break;
    default: /* NOT NULL */
        fprintf(file, "%s,%s,%s,,%s\n", field[0], field[1], field[2], field[4]);
        break;
    }
}

/* No field of this file is in quotes. */
static void write_row(FILE *file, bench_load *load, char *line, uint64_t number, int is_bad)
{
    char *field[5];
    char *rest = line;
    for (int i = 0; i < 5; i++) {
        field[i] = strsep(&rest, ",\n");
        if (field[i] == NULL) {
            guard_panic(1, "line %" PRIu64 " of flights.csv is no flight", number + 1);
        }
    }
    int64_t distance = strtoll(field[2], NULL, 10);
    if (is_bad && number % BAD_EACH == 0) {
        write_bad(file, number, field);
        load->bad++;
        load->bad_distance += distance;
    } else {
        fprintf(file, "%s,%s,%s,%s,%s\n", field[0], field[1], field[2], field[3], field[4]);
        load->good++;
        load->distance += distance;
    }
}

static void make_file(bench_load *load, uint64_t rows, int is_bad)
{
    GUARD_AUTO(s);
    char line[200];
    FILE *from = guard_file_open(s, guard_memory_format(s, NULL, "%s/flights.csv", load->data), "r", NULL);
    FILE *to = guard_file_open(s, load->file, "w", NULL);
    if (fgets(line, sizeof line, from) == NULL || fputs(line, to) < 0) {
        guard_panic(1, "flights.csv has no header");
    }
    for (uint64_t number = 1; number <= rows && fgets(line, sizeof line, from) != NULL; number++) {
        write_row(to, load, line, number, is_bad);
    }
    if (load->good + load->bad != rows) {
        guard_panic(1, "flights.csv has %" PRIu64 " rows, not %" PRIu64, load->good + load->bad, rows);
    }
}

/* --------------------------------------------------------------------------------------------- processes -- */

static int process_run(const char *const *arguments, int output)
{
    posix_spawn_file_actions_t actions;
    pid_t pid;
    int status = 0;
    posix_spawn_file_actions_init(&actions);
    int failed = posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    for (int i = 1; i <= 2 && failed == 0; i++) {
        failed = posix_spawn_file_actions_adddup2(&actions, output, i);
    }
    failed = failed == 0 ? posix_spawnp(&pid, arguments[0], &actions, NULL, (char *const *)arguments, environ) : failed;
    posix_spawn_file_actions_destroy(&actions);
    if (failed != 0) {
        guard_panic_in(GUARD_OS, failed, "cannot start %s: %s", arguments[0], strerror(failed));
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void process_check(const char *program, FILE *output, int status, int expected)
{
    char line[300];
    char last[300] = "";
    if (status == expected) {
        return;
    }
    rewind(output);
    while (fgets(line, sizeof line, output) != NULL) {
        if (line[0] != '\n') {
            strcpy(last, line);
        }
    }
    guard_panic(1, "%s ended with %d: %s", program, status, last);
}

void bench_load_process(const char *const *arguments, int expected)
{
    GUARD_AUTO(s);
    FILE *output = guard_file_temporary(s, NULL, NULL);
    process_check(arguments[0], output, process_run(arguments, fileno(output)), expected);
}

void bench_load_timed(const char *const *arguments, int expected)
{
    GUARD_AUTO(s);
    FILE *output = guard_file_temporary(s, NULL, NULL);
    bench_begin();
    int status = process_run(arguments, fileno(output));
    bench_end();
    process_check(arguments[0], output, status, expected);
}

/* ------------------------------------------------------------------------------------------------ requests -- */

typedef struct request {
    const bench_load_job *job;
    uint64_t check;
    int is_missing; /* the panic says what is not there */
} request;

static const char *folder_of(request *mine, const char *variable)
{
    const char *folder = getenv(variable);
    if (folder == NULL) {
        mine->is_missing = 1;
        guard_panic(1, "%s is not set; run by make bench", variable);
    }
    return folder;
}

static void request_run(void *memory)
{
    GUARD_AUTO(s);
    request *mine = memory;
    const char *temporary = getenv("TMPDIR");
    bench_load load = {.data = guard_memory_format(s, NULL, "%s/demo/load/data", folder_of(mine, "srcdir")),
                       .loader = guard_memory_format(s, NULL, "%s/demo/guard-load", folder_of(mine, "builddir"))};
    /* /var/tmp is on a disk where /tmp may be in memory. */
    load.folder = guard_file_temporary_directory(s, temporary != NULL ? temporary : "/var/tmp", NULL);
    load.file = guard_memory_format(s, NULL, "%s/flights.csv", load.folder);
    make_file(&load, mine->job->count, mine->job->is_bad);
    mine->job->run(s, &load);
    mine->check = (uint64_t)(load.distance + load.bad_distance);
}

uint64_t bench_load_serve(const bench_load_job *job)
{
    request mine = {.job = job};
    guard_error error;
    if (guard_run(request_run, &mine, &error) != 0) {
        if (mine.is_missing || (error.domain == GUARD_OS && error.code == ENOENT)) {
            bench_skip("%s", error.message);
        }
        bench_fail("%s", error.message);
    }
    return mine.check;
}

void bench_load_check(const bench_load *load, int64_t rows, int64_t distance, int64_t rejects)
{
    if (rows != (int64_t)load->good || distance != load->distance || rejects != (int64_t)load->bad) {
        guard_panic(
            1, "%" PRId64 " rows, distance %" PRId64 ", %" PRId64 " rejects, not %" PRIu64 ", %" PRId64 ", %" PRIu64,
            rows, distance, rejects, load->good, load->distance, load->bad);
    }
}
