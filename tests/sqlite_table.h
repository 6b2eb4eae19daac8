/* SPDX-License-Identifier: MIT */
/*
 * sqlite_table.h: table t of a new SQLite file, which the test works on through a guard, and somebody else without.
 *
 *     GUARD_AUTO(s);
 *     table_open(s, TABLE, NULL);
 *     guard_tx *tx = guard_sqlite_begin(s, db, NULL);
 *     table_insert(1);
 */
#ifndef TESTS_SQLITE_TABLE_H
#define TESTS_SQLITE_TABLE_H

#include <guard/guard.h>
#include <guard/guard_sqlite.h>
#include <guard/tx.h>

#include "database.h"

#define TABLE "CREATE TABLE t(id INTEGER PRIMARY KEY)"
#define COUNT "SELECT count(*) FROM t"

/* What the test works on; it may set them itself. */
extern const char *path;
extern guard_sqlite *db;
extern sqlite3 *other; /* somebody else's connection, which the test closes */

/* Sets path and db: a new file with what this SQL makes, open for the scope. */
void table_open(guard_scope *s, const char *sql, const guard_sqlite_options *options);

/* The same with TABLE, and sets other. */
void table_open_beside_other(guard_scope *s, const guard_sqlite_options *options);

void table_insert(int id);

/* As what a border runs: SQL; a transaction with these options, which is left at once. */
void table_exec(void *sql);
void table_begin(void *options);

/* As the body of a transaction: row 1, row 2; a statement that fails as a whole, and is counted in *(int *)runs. */
void table_insert_one(guard_tx *tx, void *arg);
void table_insert_two(guard_tx *tx, void *arg);
void table_insert_twice(guard_tx *tx, void *runs);

#endif
