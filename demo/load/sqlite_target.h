/* SPDX-License-Identifier: MIT */
/*
 * sqlite_target.h: what the parts of the SQLite driver share.
 *
 *     sqlite_target.c        the connection, the schema, the table's columns
 *     sqlite_record.c        the loader's own two tables
 *     sqlite_row.c           one row: bound, inserted, or rejected with a reason
 *     sqlite_foreign_key.c   which foreign key a row violates
 *     sqlite_batch.c         rows into transactions
 *     sqlite_value.c         a field as a value of its column's type
 */
#ifndef LOAD_SQLITE_TARGET_H
#define LOAD_SQLITE_TARGET_H

#include <sqlite3.h>

#include <guard/guard.h>
#include <guard/guard_sqlite.h>

#include "sqlite_value.h"
#include "target.h"

/* A parameter of the INSERT. */
typedef struct sqlite_parameter {
    size_t field; /* of the row */
    value_type type;
    const char *column;
} sqlite_parameter;

typedef struct sqlite_foreign_keys sqlite_foreign_keys;

struct load_target {
    const load_options *options;
    guard_sqlite *db;
    sqlite3 *raw;
    const char *table;
    load_column *columns;
    size_t column_count;

    /* For the file that is being loaded. */
    guard_sqlite_stmt *insert;
    sqlite_parameter *parameters;
    size_t parameter_count;
    sqlite_foreign_keys *foreign_keys;
    guard_sqlite_stmt *save_record;
    guard_sqlite_stmt *save_reject;
    guard_sqlite_stmt *drop_rejects;
};

/* `name` as an SQL identifier; memory is the scope's. */
const char *sqlite_identifier(guard_scope *scope, const char *name);

/* Goes on with *error, its message beginning with `what`. */
GUARD_NORETURN void sqlite_panic_about(const char *what, const guard_error *error);

/* ------------------------------------------------------------------------------------- the loader's tables -- */

/* 1 when the database has them. */
int sqlite_record_exist(load_target *target);
void sqlite_record_install(load_target *target);

/* Part of target_driver. */
int sqlite_record_find(load_target *target, guard_scope *scope, const char *digest, load_record *record);
int sqlite_record_find_unfinished(load_target *target, guard_scope *scope, const char *path, load_record *record);
void sqlite_record_each(load_target *target, target_record_fn *fn, void *arg);
void sqlite_reject_each(load_target *target, const char *digest, target_reject_fn *fn, void *arg);
void sqlite_record_forget(load_target *target, const char *digest);

/* For the file's transactions, after sqlite_record_prepare. */
void sqlite_record_prepare(guard_scope *scope, load_target *target);
void sqlite_record_save(load_target *target, const load_record *record);
void sqlite_reject_save(load_target *target, const char *digest, const load_reject *reject);
void sqlite_reject_drop(load_target *target, const char *digest);

/* A SELECT that finds a row exactly when the transaction that saves this record is committed; ?1 is the digest. */
const char *sqlite_record_probe(guard_scope *scope, const load_target *target, const load_record *record);

/* ------------------------------------------------------------------------------------------------ one row -- */

typedef struct sqlite_verdict {
    const char *code;
    char reason[300];
} sqlite_verdict;

void sqlite_row_prepare(guard_scope *scope, load_target *target, const load_plan *plan);

/* Inserts the row: 1, or 0 with the verdict. Panics where that is not the row's fault. The row may have ended the transaction. */
int sqlite_row_insert(load_target *target, const load_plan *plan, const load_row *row, sqlite_verdict *verdict);

/* The field is NULL by --null. */
int sqlite_row_is_null(const load_target *target, const load_field *field);

/* Binds the row's value of a column's parameter: 1, or 0 if it is no value of the type. */
int sqlite_row_bind(load_target *target, guard_sqlite_stmt *statement, int number, const sqlite_parameter *parameter,
                    const load_row *row);

/* For the scope; they are read when the first row violates one. */
sqlite_foreign_keys *sqlite_foreign_keys_open(guard_scope *scope, load_target *target);

/* Whether the row violates a foreign key whose columns are loaded. */
int sqlite_foreign_keys_violated(sqlite_foreign_keys *keys, const load_row *row);

/* Writes which foreign key the row violates, or leaves the reason as it is. */
void sqlite_foreign_keys_explain(sqlite_foreign_keys *keys, const load_row *row, char *reason, size_t size);

/* ------------------------------------------------------------------------------------------------ batches -- */

void sqlite_batch_load(load_target *target, load_job *load);

#endif
