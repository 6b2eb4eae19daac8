/* SPDX-License-Identifier: MIT */
/*
 * target.h: the database that is loaded into.
 *
 * Beside the user's table the loader keeps some of its own there, so that rows, how far a file came, and its rejected rows are
 * committed together:
 *
 *     guard_load_file     a record for each file's content and table: how far it was loaded, with which options
 *     guard_load_reject   the rejected rows of each record
 *
 * and in PostgreSQL guard_load_chunk, the parts of a file that are loaded or are still to be.
 *
 * One driver for each kind of database.
 */
#ifndef LOAD_TARGET_H
#define LOAD_TARGET_H

#include <guard/guard.h>
#include <stddef.h>
#include <stdint.h>

#include "options.h"
#include "plan.h"
#include "reader.h"
#include "source.h"

/* A row of guard_load_file. Texts live as long as the scope they were read into. */
typedef struct load_record {
    const char *digest;
    const char *name;    /* of the file, as the user wrote it */
    const char *path;    /* source_path */
    const char *meaning; /* options_meaning */
    uint64_t size;
    load_position at; /* everything before it is committed */
    uint64_t loaded;
    uint64_t rejected;
    uint64_t runs; /* how often it was begun: --again */
    int complete;
    const char *updated; /* UTC, of the last batch */
} load_record;

/* A row that is not loaded. */
typedef struct load_reject {
    load_position at;
    const char *code;
    const char *reason;
    const char *raw;
    size_t raw_size;
} load_reject;

/* What a run has done; counts what is committed, but for `read`. */
typedef struct load_totals {
    uint64_t files;
    uint64_t read;
    uint64_t loaded;
    uint64_t rejected;
    uint64_t batches;
    int resumed;
    uint64_t workers;
    uint64_t retries;  /* transactions run again: a deadlock, a lost connection */
    uint64_t resolved; /* COMMITs whose answer was lost, found committed */
    const char *outcome; /* of what was tried last: "committed", "rolled_back" or "in_doubt" */
} load_totals;

/* One file on its way into the table. */
typedef struct load_job {
    const load_options *options;
    load_source *source;
    load_reader *reader;
    const load_plan *plan;
    load_record record; /* as it is committed */
    int fresh;     /* no batch of this round of the file is committed: the next one replaces its record and rejects */
    int at_end;    /* the record is complete */
    uint64_t rows; /* of this file in this run, committed, good and bad */
    load_totals *totals;
    struct load_progress *progress;
    /* Publishes the rejects that the transaction under way sees, which is then rolled back: --max-rejects. */
    void (*publish)(void *arg);
    void *publish_arg;
} load_job;

typedef struct load_target load_target;
typedef void target_record_fn(void *arg, const load_record *record);
typedef void target_reject_fn(void *arg, const load_reject *reject);

/* All of these panic when the database fails; the message names it. */
typedef struct target_driver {
    /*
     * For loading: takes the lock that keeps other loaders out, connects, makes the loader's tables, and the user's with
     * --schema. For the rest of the scope.
     */
    load_target *(*open)(guard_scope *scope, const load_options *options);

    /* For --status: changes nothing. NULL when there is no such database, or nothing was ever loaded into it. */
    load_target *(*open_to_read)(guard_scope *scope, const load_options *options);

    /* The table as the database spells it, and its columns that can be given values. */
    const char *(*table)(const load_target *target);
    const load_column *(*columns)(const load_target *target, size_t *count);

    /* The record of this content, or the unfinished one under this path: 1 with *record filled, or 0. */
    int (*find)(load_target *target, guard_scope *scope, const char *digest, load_record *record);
    int (*find_unfinished)(load_target *target, guard_scope *scope, const char *path, load_record *record);

    /* Calls fn for each record of the table, for each reject of a record in the order of its lines. */
    void (*each_record)(load_target *target, target_record_fn *fn, void *arg);
    void (*each_reject)(load_target *target, const char *digest, target_reject_fn *fn, void *arg);

    /* Gets ready to load rows by load->plan. For the rest of the scope. */
    void (*prepare)(guard_scope *scope, load_target *target, const load_job *load);

    /*
     * Loads rows from load->record.at on, at most a batch, in one transaction or a few, each of which also moves the record and
     * holds its rejects. What is committed is in load->record and load->totals, also when it panics.
     */
    void (*load_batch)(load_target *target, load_job *load);

    /* Drops a record and its rejects. */
    void (*forget)(load_target *target, const char *digest);
} target_driver;

extern const target_driver sqlite_driver;
extern const target_driver pq_driver; /* where guard-load is built with libpq */

#endif
