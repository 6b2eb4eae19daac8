/* SPDX-License-Identifier: MIT */
/* flights.csv into PostgreSQL, with foreign keys and checks: by guard-load, by psql's \copy, by pgloader. The server is the one that libpq finds by itself. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include <guard/guard_file.h>
#include <guard/guard_pq.h>

#include "bench.h"
#include "load.h"

/* Everything lies in a schema of its own, so that a server with other tables keeps them. */
#define SCHEMA "libguard_bench_load"

/*
 * A server of the tests' own is started anew before each load. Where the kernel puts the memory of its processes, the same for all of one start,
 * decides how fast they are: seen for one COPY of 231,083 rows 1.8 to 2.7 s of its process's time, and without such chance (setarch
 * -R) the same four times within 7 %. So a round meets it as it comes, and the median of many stands for none.
 */
static void server_restart(void)
{
    const char *control = getenv("GUARD_TEST_PG_CTL");
    if (control != NULL) {
        const char *restart[] = {control, "-m", "fast", "restart", NULL};
        bench_load_process(restart, 0);
    }
}

/* The tables, with the airports in them. What others have written is on the disk by then, and not flushed in the time that is measured. */
static void tables_make(guard_scope *s, const bench_load *load)
{
    const char *make[] = {
        "psql",
        "-XqAt",
        "-v",
        "ON_ERROR_STOP=1",
        "-c",
        "SET client_min_messages = warning",
        "-c",
        "DROP SCHEMA IF EXISTS " SCHEMA " CASCADE",
        "-c",
        "CREATE SCHEMA " SCHEMA,
        "-f",
        guard_memory_format(s, NULL, "%s/schema-postgres.sql", load->data),
        "-c",
        guard_memory_format(s, NULL, "\\copy airports FROM '%s/airports.csv' WITH (FORMAT csv, HEADER)", load->data),
        "-c",
        "CHECKPOINT",
        NULL};
    server_restart();
    bench_load_process(make, 0);
}

static void tables_check(const bench_load *load)
{
    GUARD_AUTO(s);
    guard_pq *pq = guard_pq_open(s, "", NULL);
    int64_t has_rejects = guard_pq_query_int64(pq, "SELECT count(to_regclass('guard_load_reject'))", 0);
    int64_t rejects = has_rejects ? guard_pq_query_int64(pq, "SELECT count(*) FROM guard_load_reject", -1) : 0;
    bench_load_check(load, guard_pq_query_int64(pq, "SELECT count(*) FROM flights", -1),
                     guard_pq_query_int64(pq, "SELECT sum(distance)::bigint FROM flights", -1), rejects);
}

static void by_guard(guard_scope *s, const bench_load *load, const char *workers)
{
    const char *arguments[] = {load->loader, "--quiet",   "--db",  "postgresql:///", "--into",
                               "flights",    "--workers", workers, load->file,       NULL};
    tables_make(s, load);
    bench_load_timed(arguments, load->bad > 0 ? 3 : 0);
    tables_check(load);
}

static void by_guard_1(guard_scope *scope, const bench_load *load)
{
    by_guard(scope, load, "1");
}

static void by_guard_2(guard_scope *scope, const bench_load *load)
{
    by_guard(scope, load, "2");
}

static void by_copy(guard_scope *s, const bench_load *load)
{
    const char *arguments[] = {
        "psql", "-Xq", "-c",
        guard_memory_format(s, NULL, "\\copy flights FROM '%s' WITH (FORMAT csv, HEADER)", load->file), NULL};
    tables_make(s, load);
    bench_load_timed(arguments, 0);
    tables_check(load);
}

/* pgloader takes its work from a file, and knows no PGOPTIONS. */
static void by_pgloader(guard_scope *s, const bench_load *load)
{
    const char *path = guard_memory_format(s, NULL, "%s/flights.load", load->folder);
    const char *host = getenv("PGHOST");
    const char *const variables[] = {getenv("PGUSER"), getenv("PGPORT"), getenv("PGDATABASE")};
    if (host[0] != '/' || variables[0] == NULL || variables[1] == NULL || variables[2] == NULL) {
        bench_skip("only for a server of tests/with-postgres");
    }
    {
        GUARD_AUTO(file);
        FILE *command = guard_file_open(file, path, "w", NULL);
        fprintf(command,
                "LOAD CSV FROM '%s' (date, delay, distance, origin, destination)\n"
                "INTO postgresql://%s@unix:%s:%s/%s\n"
                "TARGET TABLE " SCHEMA ".flights (date, delay, distance, origin, destination)\n"
                "WITH skip header = 1, fields terminated by ',';\n",
                load->file, variables[0], host, variables[1], variables[2]);
    }
    const char *root = guard_memory_format(s, NULL, "--root-dir=%s/log", load->folder);
    const char *arguments[] = {"pgloader", root, path, NULL};
    tables_make(s, load);
    bench_load_timed(arguments, 0);
    tables_check(load);
}

static uint64_t serve(bench_load_job job)
{
    if (getenv("PGHOST") == NULL) {
        bench_skip("no server: PGHOST is not set");
    }
    setenv("PGOPTIONS", "-c search_path=" SCHEMA, 1);
    return bench_load_serve(&job);
}

static uint64_t load_1(uint64_t count)
{
    return serve((bench_load_job){.run = by_guard_1, .count = count});
}

static uint64_t load_2(uint64_t count)
{
    return serve((bench_load_job){.run = by_guard_2, .count = count});
}

static uint64_t load_bad(uint64_t count)
{
    return serve((bench_load_job){.run = by_guard_1, .count = count, .is_bad = 1});
}

static uint64_t copy(uint64_t count)
{
    return serve((bench_load_job){.run = by_copy, .count = count});
}

static uint64_t pgloader(uint64_t count)
{
    return serve((bench_load_job){.run = by_pgloader, .count = count});
}

int main(int argc, char **argv)
{
    static const bench_work works[] = {{"load-pq-1", load_1}, {"load-pq-2", load_2},  {"load-bad-pq", load_bad},
                                       {"psql-copy", copy},   {"pgloader", pgloader}, {NULL, NULL}};
    return bench_serve(argc, argv, works);
}
