/* SPDX-License-Identifier: MIT */
#include "sqlite_table.h"

const char *path;
guard_sqlite *db;
sqlite3 *other;

void table_open(guard_scope *s, const char *sql, const guard_sqlite_options *options)
{
    path = database_new(sql);
    db = guard_sqlite_open(s, path, options);
}

void table_open_beside_other(guard_scope *s, const guard_sqlite_options *options)
{
    table_open(s, TABLE, options);
    other = database_raw(path);
}

void table_insert(int id)
{
    GUARD_AUTO(s);
    guard_sqlite_stmt *stmt = guard_sqlite_prepare(s, db, "INSERT INTO t VALUES (?1)");
    guard_sqlite_bind_int64(stmt, 1, id);
    guard_sqlite_run(stmt);
}

void table_exec(void *sql)
{
    guard_sqlite_exec(db, sql);
}

void table_begin(void *options)
{
    GUARD_AUTO(s);
    guard_sqlite_begin(s, db, options);
}

void table_insert_one(guard_tx *tx, void *arg)
{
    (void)tx;
    (void)arg;
    table_insert(1);
}

void table_insert_two(guard_tx *tx, void *arg)
{
    (void)tx;
    (void)arg;
    table_insert(2);
}

void table_insert_twice(guard_tx *tx, void *runs)
{
    (void)tx;
    ++*(int *)runs;
    guard_sqlite_exec(db, "INSERT INTO t VALUES (1), (1)");
}
