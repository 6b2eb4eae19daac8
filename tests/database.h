/* SPDX-License-Identifier: MIT */
/*
 * database.h: SQLite files for tests, looked at with connections that know nothing of guards.
 *
 *     const char *path = database_new("CREATE TABLE t(id INTEGER PRIMARY KEY)");   // in a folder of its own
 *     ... work on it ...
 *     ck_assert_int_eq(database_number(path, "SELECT count(*) FROM t"), 1);
 *
 * Of its folders nothing is left (scratch.h).
 */
#ifndef TESTS_DATABASE_H
#define TESTS_DATABASE_H

#include <check.h>
#include <sqlite3.h>

#include <guard/guard.h>

/* A new file with the tables that `sql` makes; sql may be NULL. The text is the helper's. */
const char *database_new(const char *sql);

/* A path in the folder of the latest database_new. */
const char *database_beside(const char *name);

/* A raw connection of the test's own, without guards; fails the test when it cannot be opened. */
sqlite3 *database_raw(const char *path);
void database_exec(sqlite3 *raw, const char *sql);

/* The first column of the first row, read with a fresh connection. */
long long database_number(const char *path, const char *sql);
long long database_number_on(sqlite3 *raw, const char *sql);

/* Copies the file with its journal or WAL (not the index) as they are now, as a crash would leave them; returns the copy's path. */
const char *database_crash_copy(const char *path, int number);

/* "ok" from PRAGMA integrity_check, else the test fails. */
void database_check(sqlite3 *raw);

/* Runs fn(arg) in a border, and fails the test unless it panics with this domain and code. Returns the error, the helper's. */
const guard_error *expect_panic(guard_fn *fn, void *arg, int domain, int code);

#endif
