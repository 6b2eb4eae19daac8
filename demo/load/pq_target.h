/* SPDX-License-Identifier: MIT */
/*
 * pq_target.h: what the parts of the PostgreSQL driver share.
 *
 *     pq_target.c    the schema, the table and its columns
 *     pq_link.c      a connection that is made anew when it is lost
 *     pq_record.c    the loader's own three tables
 *     pq_rows.c      a chunk's rows, as COPY takes them
 *     pq_copy.c      rows into the table, and which of them it refuses
 *     pq_accuse.c    the rows whose foreign keys lead nowhere, by one question
 *     pq_deferred.c  the same where a constraint is checked late
 *     pq_way.c       whether rows go in together or one by one
 *     pq_cut.c       the file cut into chunks, and told complete
 *     pq_worker.c    chunks claimed, loaded and committed, by one worker or several
 */
#ifndef LOAD_PQ_TARGET_H
#define LOAD_PQ_TARGET_H

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "target.h"

/* ------------------------------------------------------------------------------------------------- the link -- */

typedef struct pq_link {
    guard_scope *scope;
    const char *conninfo;
    double retry_for;     /* seconds */
    guard_pq *pq;         /* NULL while it is lost */
    uint64_t connections; /* made so far */
    uint64_t retries;     /* transactions run again */
    uint64_t resolved;
} pq_link;

/* Connects, for the scope. Panics where that cannot be at once. */
pq_link *pq_link_open(guard_scope *scope, const char *conninfo, double retry_for);

/* One more to a server that was there already: tries for retry_for seconds. */
pq_link *pq_link_open_again(guard_scope *scope, const char *conninfo, double retry_for);

/*
 * Runs fn(tx, arg) in a transaction until it is committed, or rolled back by something else than a connection that is lost
 * or a deadlock. A lost connection is made anew for retry_for seconds. With a probe a lost answer to COMMIT is resolved;
 * without one the body must bear to be run once more after it was committed.
 */
guard_outcome pq_link_transact(pq_link *link, guard_tx_fn *fn, void *arg, const char *probe, const char *probe_key,
                               guard_result *result);

/* The same for a body that must commit: panics with its error. */
void pq_link_run(pq_link *link, guard_tx_fn *fn, void *arg);

/* -------------------------------------------------------------------------------------------------- target -- */

typedef struct pq_reject {
    load_position at;
    const char *code;
    const char *reason;
    const char *raw; /* of those that are given up */
    size_t raw_size;
} pq_reject;

typedef struct pq_rejects {
    guard_scope *scope; /* of the list and its texts */
    guard_ticket ticket;
    pq_reject *list;
    size_t count;
    size_t room;
} pq_rejects;

/* A foreign key that is checked at once, into another table. */
typedef struct pq_foreign_key {
    const char
        *sql; /* the rows whose keys are not there: an array for each column in, the numbers of rows out, from 1 */
    size_t *columns; /* of the table */
    size_t column_count;
} pq_foreign_key;

struct load_target {
    const load_options *options;
    pq_link *link;
    const char *table;    /* schema.table */
    const char *quoted;   /* as SQL */
    const char *relation; /* without its schema, as COPY's CONTEXT has it */
    const char *oid;
    load_column *columns;
    size_t column_count;
    const char **column_names; /* as SQL */
    int server_version;        /* as libpq has it */
    int refers_to_itself;
    int has_foreign_key;
    int is_checked_late; /* by one constraint at least, at the end of the transaction */

    /* For the file that is being loaded. */
    const char *copy;
    const char *copy_singly; /* see pq_way.c */
    guard_scope *scope;
    const char
        *given_up_digest; /* --max-rejects: the rejects of the chunk that was rolled back, in the order of lines */
    pq_reject *given_up;
    size_t given_up_count;
};

/* ------------------------------------------------------------------------------------- the loader's tables -- */

/* 1 when the database has them. */
int pq_record_exist(load_target *target);

/* Makes them where they are missing, in a transaction that is open. */
void pq_record_install(guard_pq *pq);

/* Part of target_driver. */
int pq_record_find(load_target *target, guard_scope *scope, const char *digest, load_record *record);
int pq_record_find_unfinished(load_target *target, guard_scope *scope, const char *path, load_record *record);
void pq_record_each(load_target *target, target_record_fn *fn, void *arg);
void pq_reject_each(load_target *target, const char *digest, target_reject_fn *fn, void *arg);
void pq_record_forget(load_target *target, const char *digest);

/* Begins a round of the file, unless another worker has. */
void pq_record_begin(load_target *target, const load_record *record);

/* `number` as a parameter; the text is the scope's. */
const char *pq_number(guard_scope *scope, uint64_t number);

/* Runs SQL with text parameters. */
PGresult *pq_query(guard_scope *scope, guard_pq *pq, const char *sql, int count, const char *const *values);

uint64_t pq_value(const PGresult *result, int row, int column);

/* -------------------------------------------------------------------------------------------------- chunks -- */

/* A chunk of the file and its rows. */
typedef struct pq_chunk {
    uint64_t number;
    load_position at;
    uint64_t end; /* offset */
    uint64_t read;
    size_t malformed; /* rejected when they were read, of those that are read */

    char *text; /* the sound rows as COPY's text format */
    size_t text_size;
    size_t text_room;
    guard_ticket text_ticket;
    size_t *begins; /* of each row in text, and of the end */
    load_position *places;
    size_t count;
    size_t room;
    guard_ticket begins_ticket;
    guard_ticket places_ticket;
} pq_chunk;

#define PQ_CUT_CHUNKS 16 /* at a time, at most */

/* Chunks that follow each other in the file. */
typedef struct pq_cuts {
    load_position begin;
    load_position ends[PQ_CUT_CHUNKS];
    size_t count;
    uint64_t most_rows; /* in one of them */
    int at_end;         /* of the file */
} pq_cuts;

typedef struct pq_way {
    int singly; /* the COPY at hand: rows go in one by one */
    int is_settled;
    int refused;    /* the server does not take rows so */
    double rows[2]; /* in a second, by `singly` */
    uint64_t connection;
} pq_way;

/* What loads chunks, one in each thread. */
typedef struct pq_worker {
    struct pq_team *team;
    guard_scope *scope;
    load_target *target;  /* shared: read only */
    const load_job *load; /* shared: read only */
    pq_link *link;
    load_source *source;
    load_reader *reader; /* of rows that are loaded */
    load_reader *cutter; /* of where they end */
    int leads;           /* in the thread of the target, on its connection; moves the progress bar */
    int begins;          /* it has begun this round of the file */
    pq_chunk chunk;
    pq_rejects rejects; /* of the try under way */
    uint64_t loaded;    /* in the try under way */
    double pace;        /* rows in a second, of the last chunk; 0: there was none */
    pq_way way;
    uint64_t chunks_seen;
    int cut_to_end; /* these are all of the file */
    pq_cuts ahead;  /* what was found and may not be told yet */
    pq_foreign_key *keys;
    size_t key_count;
    int keys_known;
    char token[40];
    uint64_t tokens;
    int is_careful;       /* rows go in in savepoints */
    size_t copy_begin;    /* the first row of the latest COPY */
    uint64_t fault_chunk; /* its rows failed all together, in a transaction that is over; 0: none */
    long fault_row;       /* the one that the server named, or -1 */
    guard_error fault;
    int claimed;
    int checking; /* the rows are in, and constraints are checked late */
    int complete;
    int waits; /* other workers have the chunks that are left */
} pq_worker;

/* Goes to the beginning of the chunk's rows. */
void pq_rows_begin(pq_worker *worker);

/*
 * Reads rows of the chunk until `size` bytes of text are added; those that are no rows of the plan are rejected. 1 while there are more,
 * 0 when all are read.
 */
int pq_rows_read(pq_worker *worker, size_t size);

void pq_reject_add(pq_worker *worker, load_position at, const char *code, const char *reason);

/* Puts the chunk's rows into the table, in the transaction, also those that are still to be read; those that it refuses are rejected. */
void pq_copy_rows(pq_worker *worker, guard_tx *tx);

/* The same where rows are checked late. */
void pq_deferred_rows(pq_worker *worker, guard_tx *tx);

/* One try to put rows `from` up to `to` of an order of rows into the table. */
typedef struct pq_try {
    pq_worker *worker;
    const size_t *order; /* NULL: all rows of the chunk as they are read; `to` is set then, also where the try fails */
    size_t from;
    size_t to;
    int check;    /* also the constraints that are checked late */
    int checking; /* it failed there */
    size_t hint;  /* the one that the server named, in the order; `to` for none */
    guard_result result;
} pq_try;

/* 1, or 0 with nothing done. Panics where it is not a row's fault, and whatever it is where the worker is not careful. */
int pq_copy_try(pq_try *attempt, guard_tx *tx);

/* The order of the file. */
size_t *pq_copy_order(guard_scope *scope, const pq_worker *worker);

/*
 * Sorts order[from] up to order[to]: those whose foreign keys are there, then those whose keys are not. Returns how many the latter
 * are. It is a hint: a trigger may change keys.
 */
size_t pq_accuse(pq_worker *worker, guard_tx *tx, size_t *order, size_t from, size_t to);

/* Checks the constraints that are checked late. */
void pq_copy_check(pq_worker *worker);

/* 1 if the error is a row's fault. */
int pq_copy_is_row_fault(const guard_error *error);

/* Keeps what the chunk's rows failed for, so that it is not tried once more. */
void pq_copy_note_fault(pq_worker *worker, const guard_error *error);

/* 1 if it is the statement's: its syntax, a privilege, or what it names. */
int pq_copy_is_refused(const guard_error *error);

/* Rejects a row for what the server said. */
void pq_copy_reject(pq_worker *worker, size_t row, const guard_error *error);

/* ------------------------------------------------------------------------------------------------ the way -- */

/* Chooses how the chunk's rows go in, as far as it is known. */
void pq_way_begin(pq_worker *worker);

/* Where it is to be found out: the rows of each of two COPYs that pq_way_measure is to be told of, with the next two of pq_way_copy; else 0. */
size_t pq_way_open(pq_worker *worker);
void pq_way_measure(pq_worker *worker, size_t rows, double seconds);

/* The COPY at hand. */
const char *pq_way_copy(const pq_worker *worker);

/* 1 when rows went in one by one, which they do not from now on: what failed is to be tried once more. */
int pq_way_refuse(pq_worker *worker);

/* ------------------------------------------------------------------------------------------------- cutting -- */

/* Finds what may be cut next, when all rows of the chunk are sent; nothing unless the chunk is the last one that is known. */
void pq_cut_look_ahead(pq_worker *worker);

/* What is to be done when the worker knows of no chunk that is free: cuts more of the file, or finds it complete, or that others are at work. */
void pq_cut_advance(guard_tx *tx, void *worker);

/* -------------------------------------------------------------------------------------------------- workers -- */

/* Panics when --max-rejects is reached, and keeps the rejects of the chunk, which is then rolled back. */
void pq_worker_check_rejects(pq_worker *worker, const char *code, const char *reason);

void pq_worker_load(load_target *target, load_job *load);

#endif
