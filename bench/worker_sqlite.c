/* SPDX-License-Identifier: MIT */
/* Guarded transactions and savepoints of one insert on SQLite. The check is the sum of what is in the table afterwards. */
#include <stdio.h>

#include <guard/guard_sqlite.h>

#include "bench.h"

typedef struct job {
    const char *path;
    uint64_t count;
    uint64_t check;
    int is_nested; /* each turn is a savepoint in one transaction */
} job;

static void insert_one(guard_sqlite_stmt *insert, uint64_t i)
{
    guard_sqlite_bind_int64(insert, 1, (int64_t)i);
    guard_sqlite_run(insert);
}

static void transactions(guard_sqlite *db, guard_sqlite_stmt *insert, uint64_t count)
{
    for (uint64_t i = 1; i <= count; i++) {
        GUARD_AUTO(s);
        guard_tx *tx = guard_sqlite_begin(s, db, NULL);
        insert_one(insert, i);
        guard_tx_commit(tx);
    }
}

static void savepoints(guard_tx *outer, guard_sqlite_stmt *insert, uint64_t count)
{
    for (uint64_t i = 1; i <= count; i++) {
        GUARD_AUTO(s);
        guard_tx *tx = guard_tx_begin_nested(s, outer);
        insert_one(insert, i);
        guard_tx_commit(tx);
    }
}

static void job_run(void *memory)
{
    GUARD_AUTO(s);
    job *mine = memory;
    guard_sqlite *db = guard_sqlite_open(s, mine->path, &(guard_sqlite_options){.journal = GUARD_SQLITE_WAL});
    guard_sqlite_exec(db, "CREATE TABLE entry (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)");
    guard_sqlite_stmt *insert = guard_sqlite_prepare(s, db, "INSERT INTO entry (n) VALUES (?1)");
    guard_tx *outer = mine->is_nested ? guard_sqlite_begin(s, db, NULL) : NULL;
    bench_begin();
    if (outer != NULL) {
        savepoints(outer, insert, mine->count);
    } else {
        transactions(db, insert, mine->count);
    }
    bench_end();
    if (outer != NULL) {
        guard_tx_commit(outer);
    }
    mine->check = (uint64_t)guard_sqlite_query_int64(db, "SELECT sum(n) FROM entry", -1);
}

static uint64_t job_check(job mine)
{
    guard_error error;
    if (guard_run(job_run, &mine, &error) != 0) {
        bench_fail("%s", error.message);
    }
    return mine.check;
}

static uint64_t tx_memory(uint64_t count)
{
    return job_check((job){.path = ":memory:", .count = count});
}

static uint64_t tx_disk(uint64_t count)
{
    char folder[256];
    char path[300];
    bench_folder_open(folder, sizeof folder);
    snprintf(path, sizeof path, "%s/entries.db", folder);
    uint64_t check = job_check((job){.path = path, .count = count});
    bench_folder_close(folder);
    return check;
}

static uint64_t savepoint(uint64_t count)
{
    return job_check((job){.path = ":memory:", .count = count, .is_nested = 1});
}

int main(int argc, char **argv)
{
    static const bench_work works[] = {
        {"sqlite-tx-memory", tx_memory}, {"sqlite-tx-disk", tx_disk}, {"sqlite-savepoint", savepoint}, {NULL, NULL}};
    return bench_serve(argc, argv, works);
}
