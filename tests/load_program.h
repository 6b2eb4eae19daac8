/* SPDX-License-Identifier: MIT */
/*
 * load_program.h: guard-load run as a user runs it, in a folder of the test's own, and a look at what it left behind.
 *
 * All of these fail the test where they cannot do their work. Texts they return live until the test ends.
 */
#ifndef TESTS_LOAD_PROGRAM_H
#define TESTS_LOAD_PROGRAM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "scratch.h"
#include "suite.h"

/* suite_run for tests that begin in an empty folder each. */
int load_suite_run(const char *name, const TTest *const *tests, size_t count, scratch_disk disk);

typedef struct load_output {
    int status; /* exit status, or -SIGNAL */
    const char *out;
    const char *err;
} load_output;

/* Runs guard-load with these words (separated by blanks; 'in quotes' for one with blanks) to its end. */
load_output load_run(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The same with a file as standard input. */
load_output load_run_input(const char *input, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Starts it, its output in files of its own; the process to wait for. */
pid_t load_start(const char *format, ...) __attribute__((format(printf, 1, 2)));
load_output load_wait(pid_t process);

/* Fails unless the exit status is this; says what the program said. */
void load_expect(load_output output, int status);

/* Fails unless standard error has this text, in one line of its own. */
void load_expect_error(load_output output, int status, const char *part);

/* An integer or text of the JSON object on standard output. */
int64_t load_json(load_output output, const char *key);
const char *load_json_text(load_output output, const char *key);

void write_file(const char *name, const char *text);
void write_bytes(const char *name, const void *bytes, size_t size);
const char *read_file(const char *name);

/* Rows of `SELECT`, their values separated by '|', each row by a newline but for the last. */
const char *query(const char *database, const char *sql);
int64_t query_int64(const char *database, const char *sql);

/* Runs SQL on a database, which is made if need be. */
void run_sql(const char *database, const char *sql);

#endif
