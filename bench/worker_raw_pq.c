/* SPDX-License-Identifier: MIT */
/* The floor of worker_pq.c: libpq by itself, the insert prepared, each result looked at. It has no marker. */
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"

static PGconn *connection;

static PGresult *must(PGresult *result, ExecStatusType expected)
{
    if (PQresultStatus(result) != expected) {
        bench_fail("%s", PQerrorMessage(connection));
    }
    return result;
}

static void command(const char *sql)
{
    PQclear(must(PQexec(connection, sql), PGRES_COMMAND_OK));
}

static void insert_one(uint64_t i)
{
    char number[24];
    const char *values[] = {number};
    snprintf(number, sizeof number, "%llu", (unsigned long long)i);
    PQclear(must(PQexecPrepared(connection, "insert", 1, values, NULL, NULL, 0), PGRES_COMMAND_OK));
}

static void transactions(uint64_t first, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        command("BEGIN");
        insert_one(first + i);
        command("COMMIT");
    }
}

static uint64_t pq_tx(uint64_t count)
{
    if (getenv("PGHOST") == NULL) {
        bench_skip("no server: PGHOST is not set");
    }
    connection = PQconnectdb("");
    if (PQstatus(connection) != CONNECTION_OK) {
        bench_fail("%s", PQerrorMessage(connection));
    }
    bench_place(PQbackendPID(connection));
    command("SET client_min_messages = warning");
    command("DROP TABLE IF EXISTS entry_raw");
    command("CREATE TABLE entry_raw (n bigint NOT NULL)");
    PQclear(must(PQprepare(connection, "insert", "INSERT INTO entry_raw VALUES ($1)", 0, NULL), PGRES_COMMAND_OK));
    transactions(0, 1);
    bench_begin();
    transactions(1, count);
    bench_end();
    PGresult *sum = must(PQexec(connection, "SELECT sum(n)::bigint FROM entry_raw"), PGRES_TUPLES_OK);
    uint64_t check = strtoull(PQgetvalue(sum, 0, 0), NULL, 10);
    PQclear(sum);
    PQfinish(connection);
    return check;
}

int main(int argc, char **argv)
{
    static const bench_work works[] = {{"pq-tx", pq_tx}, {NULL, NULL}};
    return bench_serve(argc, argv, works);
}
