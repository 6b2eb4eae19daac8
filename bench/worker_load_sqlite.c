/* SPDX-License-Identifier: MIT */
/* flights.csv into SQLite, with foreign keys and checks: by guard-load, and by the .import of SQLite's own shell. */
#include <guard/guard_file.h>
#include <guard/guard_sqlite.h>

#include "bench.h"
#include "load.h"

/* A database of its own with the tables, the airports in it; the journal is SQLite's default (guard-load changes that to WAL itself). */
static const char *database_make(guard_scope *scope, const bench_load *load)
{
    GUARD_AUTO(s);
    const char *path = guard_memory_format(scope, NULL, "%s/flights.db", load->folder);
    const char *arguments[] = {
        "sqlite3",
        "-bail",
        path,
        guard_memory_format(s, NULL, ".read %s/schema.sql", load->data),
        guard_memory_format(s, NULL, ".import --csv --skip 1 %s/airports.csv airports", load->data),
        NULL};
    bench_load_process(arguments, 0);
    return path;
}

static void database_check(const char *path, const bench_load *load)
{
    GUARD_AUTO(s);
    guard_sqlite *db = guard_sqlite_open(s, path, NULL);
    int64_t has_rejects = guard_sqlite_query_int64(
        db, "SELECT count(*) FROM sqlite_schema WHERE name = 'guard_load_reject'", 0);
    int64_t rejects = has_rejects ? guard_sqlite_query_int64(db, "SELECT count(*) FROM guard_load_reject", -1) : 0;
    bench_load_check(load, guard_sqlite_query_int64(db, "SELECT count(*) FROM flights", -1),
                     guard_sqlite_query_int64(db, "SELECT sum(distance) FROM flights", -1), rejects);
}

static void by_guard(guard_scope *scope, const bench_load *load)
{
    const char *path = database_make(scope, load);
    const char *arguments[] = {load->loader, "--quiet", "--db",     guard_memory_format(scope, NULL, "sqlite:%s", path),
                               "--into",     "flights", load->file, NULL};
    bench_load_timed(arguments, load->bad > 0 ? 3 : 0);
    database_check(path, load);
}

static void by_import(guard_scope *scope, const bench_load *load)
{
    const char *path = database_make(scope, load);
    const char *arguments[] = {"sqlite3",
                               "-bail",
                               path,
                               "PRAGMA foreign_keys = ON",
                               guard_memory_format(scope, NULL, ".import --csv --skip 1 %s flights", load->file),
                               NULL};
    bench_load_timed(arguments, 0);
    database_check(path, load);
}

static uint64_t load_good(uint64_t count)
{
    return bench_load_serve(&(bench_load_job){.run = by_guard, .count = count});
}

static uint64_t load_bad(uint64_t count)
{
    return bench_load_serve(&(bench_load_job){.run = by_guard, .count = count, .is_bad = 1});
}

static uint64_t import(uint64_t count)
{
    return bench_load_serve(&(bench_load_job){.run = by_import, .count = count});
}

int main(int argc, char **argv)
{
    static const bench_work works[] = {
        {"load-sqlite", load_good}, {"load-bad-sqlite", load_bad}, {"sqlite3-import", import}, {NULL, NULL}};
    return bench_serve(argc, argv, works);
}
