/* SPDX-License-Identifier: MIT */
/* The floor of worker_sqlite.c: SQLite's own interface, each statement prepared once, each result code looked at. */
#include <sqlite3.h>
#include <stdio.h>

#include "bench.h"

static sqlite3 *db;

static void must(int rc, int expected)
{
    if (rc != expected) {
        bench_fail("%s", sqlite3_errmsg(db));
    }
}

static sqlite3_stmt *prepare(const char *sql)
{
    sqlite3_stmt *statement;
    must(sqlite3_prepare_v2(db, sql, -1, &statement, NULL), SQLITE_OK);
    return statement;
}

static void run(sqlite3_stmt *statement)
{
    must(sqlite3_step(statement), SQLITE_DONE);
    must(sqlite3_reset(statement), SQLITE_OK);
}

/* Each turn is begun and ended by these. */
static void turns(uint64_t count, const char *begin_sql, const char *end_sql)
{
    sqlite3_stmt *begin = prepare(begin_sql);
    sqlite3_stmt *insert = prepare("INSERT INTO entry (n) VALUES (?1)");
    sqlite3_stmt *end = prepare(end_sql);
    bench_begin();
    for (uint64_t i = 1; i <= count; i++) {
        run(begin);
        must(sqlite3_bind_int64(insert, 1, (sqlite3_int64)i), SQLITE_OK);
        run(insert);
        run(end);
    }
    bench_end();
    sqlite3_finalize(begin);
    sqlite3_finalize(insert);
    sqlite3_finalize(end);
}

static void database_open(const char *path)
{
    must(sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL), SQLITE_OK);
    sqlite3_busy_timeout(db, 5000);
    must(sqlite3_exec(db,
                      "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;"
                      "CREATE TABLE entry (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)",
                      NULL, NULL, NULL),
         SQLITE_OK);
}

static uint64_t database_close(void)
{
    sqlite3_stmt *sum = prepare("SELECT sum(n) FROM entry");
    must(sqlite3_step(sum), SQLITE_ROW);
    uint64_t check = (uint64_t)sqlite3_column_int64(sum, 0);
    sqlite3_finalize(sum);
    must(sqlite3_close(db), SQLITE_OK);
    return check;
}

static uint64_t tx_memory(uint64_t count)
{
    database_open(":memory:");
    turns(count, "BEGIN IMMEDIATE", "COMMIT");
    return database_close();
}

static uint64_t tx_disk(uint64_t count)
{
    char folder[256];
    char path[300];
    bench_folder_open(folder, sizeof folder);
    snprintf(path, sizeof path, "%s/entries.db", folder);
    database_open(path);
    turns(count, "BEGIN IMMEDIATE", "COMMIT");
    uint64_t check = database_close();
    bench_folder_close(folder);
    return check;
}

static uint64_t savepoint(uint64_t count)
{
    database_open(":memory:");
    must(sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    turns(count, "SAVEPOINT one", "RELEASE one");
    must(sqlite3_exec(db, "COMMIT", NULL, NULL, NULL), SQLITE_OK);
    return database_close();
}

int main(int argc, char **argv)
{
    static const bench_work works[] = {
        {"sqlite-tx-memory", tx_memory}, {"sqlite-tx-disk", tx_disk}, {"sqlite-savepoint", savepoint}, {NULL, NULL}};
    return bench_serve(argc, argv, works);
}
