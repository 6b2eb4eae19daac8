/* SPDX-License-Identifier: MIT */
/*
 * options.h: the command line of guard-load.
 */
#ifndef LOAD_OPTIONS_H
#define LOAD_OPTIONS_H

#include <guard/guard.h>
#include <stddef.h>
#include <stdint.h>

#include "../command_line.h"

/* Exit codes, beside EXIT_USAGE; a signal's is 128 and its number. */
enum {
    EXIT_LOADED = 0,
    EXIT_FAILED = 1,
    EXIT_REJECTS = 3 /* loaded, but not every row */
};

/* --map: the CSV column `name` goes to the table's column `column`; an empty column: it is not loaded. */
typedef struct load_mapping {
    const char *name;
    const char *column;
} load_mapping;

typedef enum load_action { ACTION_LOAD, ACTION_STATUS, ACTION_FORGET, ACTION_HELP, ACTION_VERSION } load_action;

typedef struct load_options {
    load_action action;
    const char *database; /* a path; of PostgreSQL, what libpq takes */
    int postgres;
    uint64_t workers;
    uint64_t retry_for; /* seconds */
    const char *table;
    const char *schema;  /* NULL: none */
    const char *rejects; /* NULL: none */
    const char *name;    /* of standard input; NULL: none */
    const char *null_text;
    uint64_t batch;       /* rows; 0: as the database likes it */
    uint64_t max_rejects; /* UINT64_MAX: never gives up */
    size_t max_row;
    char delimiter;
    int no_header;
    int again;
    int json;
    int quiet;
    load_mapping *map;
    size_t map_count;
    guard_ticket map_ticket;
    char **files;
    size_t file_count;
} load_options;

/*
 * Reads the command line; the memory of what it returns is the scope's. Panics with code EXIT_USAGE and one line that names
 * what is wrong.
 */
load_options *options_read(guard_scope *scope, int argc, char **argv);

/*
 * The options that change what the rows of a file mean, as text: an unfinished file goes on with the same ones only. Memory is the
 * scope's.
 */
const char *options_meaning(guard_scope *scope, const load_options *options);

/* The text of --help. */
extern const char options_help[];

#endif
