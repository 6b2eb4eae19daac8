/* SPDX-License-Identifier: MIT */
/*
 * guard_load_file says how far the file is cut into chunks, guard_load_chunk which of them are loaded: a chunk's row is locked
 * while its rows are loaded, and committed with them. Its done_by is unique, so that a lost COMMIT is found by it; the same index finds
 * the chunks that are free, whose done_by is NULL.
 *
 * The first load waits for them to be made: a chunk's texts have a greatest length, so that PostgreSQL makes no table for long ones beside it.
 */
#include "pq_target.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <guard/guard_file.h>

const char *pq_number(guard_scope *scope, uint64_t number)
{
    return guard_memory_format(scope, NULL, "%" PRIu64, number);
}

PGresult *pq_query(guard_scope *scope, guard_pq *pq, const char *sql, int count, const char *const *values)
{
    guard_pq_params params = {.count = count, .values = values};
    return guard_pq_exec_params(scope, pq, sql, &params);
}

uint64_t pq_value(const PGresult *result, int row, int column)
{
    return strtoull(PQgetvalue(result, row, column), NULL, 10);
}

/* ---------------------------------------------------------------------------------------------- the tables -- */

/* By pg_class, so that the server notices what was made while we waited for a lock: to_regclass alone does not (tried). */
static int tables_exist(guard_pq *pq)
{
    return guard_pq_query_int64(pq,
                                "SELECT count(*) FROM pg_class WHERE relname IN ('guard_load_file', "
                                "'guard_load_chunk', 'guard_load_reject') AND pg_table_is_visible(oid)",
                                0) == 3;
}

static void look_for_tables(guard_tx *tx, void *arg)
{
    *(int *)arg = tables_exist(guard_pq_of(tx));
}

int pq_record_exist(load_target *target)
{
    int exist = 0;
    pq_link_run(target->link, look_for_tables, &exist);
    return exist;
}

void pq_record_install(guard_pq *pq)
{
    if (tables_exist(pq)) {
        return;
    }
    guard_pq_exec(NULL, pq, "SELECT pg_advisory_xact_lock(hashtext('guard-load schema'))");
    if (tables_exist(pq)) {
        return;
    }
    guard_pq_exec(NULL, pq,
                  "CREATE TABLE guard_load_file ("
                  " table_name text NOT NULL,"
                  " sha256 text NOT NULL,"
                  " name text NOT NULL,"
                  " path text NOT NULL,"
                  " options text NOT NULL,"
                  " size bigint NOT NULL,"
                  " runs bigint NOT NULL,"
                  " cut_offset bigint NOT NULL,"
                  " cut_line bigint NOT NULL,"
                  " chunks bigint NOT NULL,"
                  " cut boolean NOT NULL,"
                  " complete boolean NOT NULL,"
                  " updated timestamptz NOT NULL,"
                  " PRIMARY KEY (table_name, sha256));"
                  "CREATE TABLE guard_load_chunk ("
                  " table_name varchar(255) NOT NULL,"
                  " sha256 varchar(64) NOT NULL,"
                  " number bigint NOT NULL,"
                  " begin_offset bigint NOT NULL,"
                  " begin_line bigint NOT NULL,"
                  " end_offset bigint NOT NULL,"
                  " rows_loaded bigint,"
                  " rows_rejected bigint,"
                  " done_by varchar(40) UNIQUE,"
                  " done timestamptz,"
                  " PRIMARY KEY (table_name, sha256, number));"
                  "CREATE TABLE guard_load_reject ("
                  " table_name text NOT NULL,"
                  " sha256 text NOT NULL,"
                  " line bigint NOT NULL,"
                  " code text NOT NULL,"
                  " reason text NOT NULL,"
                  " row bytea NOT NULL,"
                  " PRIMARY KEY (table_name, sha256, line))");
}

/* ----------------------------------------------------------------------------------------------- reading -- */

#define RECORD_SELECT                                                                                               \
    "SELECT f.sha256, f.name, f.path, f.options, f.size, coalesce(w.at_offset, f.cut_offset), coalesce(w.at_line, " \
    "f.cut_line), coalesce(c.loaded, 0), coalesce(c.rejected, 0), f.runs, f.complete::int, to_char(greatest("       \
    "f.updated, c.done) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') FROM guard_load_file f LEFT JOIN LATERAL "     \
    "(SELECT sum(rows_loaded)::bigint AS loaded, sum(rows_rejected)::bigint AS rejected, max(done) AS done FROM "   \
    "guard_load_chunk k WHERE k.table_name = f.table_name AND k.sha256 = f.sha256) c ON true LEFT JOIN LATERAL "    \
    "(SELECT min(begin_offset) AS at_offset, min(begin_line) AS at_line FROM guard_load_chunk k WHERE "             \
    "k.table_name = f.table_name AND k.sha256 = f.sha256 AND done_by IS NULL) w ON true WHERE f.table_name = $1 "

typedef struct record_search {
    load_target *target;
    guard_scope *scope;
    const char *sql;
    const char *value; /* $2; NULL: none */
    load_record *records;
    size_t count;
} record_search;

static void read_record(guard_scope *scope, const PGresult *rows, int row, load_record *record)
{
    record->digest = guard_memory_copy(scope, PQgetvalue(rows, row, 0), NULL);
    record->name = guard_memory_copy(scope, PQgetvalue(rows, row, 1), NULL);
    record->path = guard_memory_copy(scope, PQgetvalue(rows, row, 2), NULL);
    record->meaning = guard_memory_copy(scope, PQgetvalue(rows, row, 3), NULL);
    record->size = pq_value(rows, row, 4);
    record->at.offset = pq_value(rows, row, 5);
    record->at.line = pq_value(rows, row, 6);
    record->loaded = pq_value(rows, row, 7);
    record->rejected = pq_value(rows, row, 8);
    record->runs = pq_value(rows, row, 9);
    record->complete = pq_value(rows, row, 10) != 0;
    record->updated = guard_memory_copy(scope, PQgetvalue(rows, row, 11), NULL);
}

static void search_records(guard_tx *tx, void *arg)
{
    record_search *search = arg;
    const char *values[] = {search->target->table, search->value};
    GUARD_AUTO(s);
    PGresult *rows = pq_query(s, guard_pq_of(tx), search->sql, search->value != NULL ? 2 : 1, values);
    search->count = (size_t)PQntuples(rows);
    search->records = guard_memory_allocate_array(search->scope, search->count + 1, sizeof *search->records, NULL);
    for (size_t i = 0; i < search->count; i++) {
        read_record(search->scope, rows, (int)i, &search->records[i]);
    }
}

static int find(load_target *target, guard_scope *scope, const char *sql, const char *value, load_record *record)
{
    record_search search = {.target = target, .scope = scope, .sql = sql, .value = value};
    pq_link_run(target->link, search_records, &search);
    if (search.count > 0) {
        *record = search.records[0];
    }
    return search.count > 0;
}

int pq_record_find(load_target *target, guard_scope *scope, const char *digest, load_record *record)
{
    return find(target, scope, RECORD_SELECT "AND f.sha256 = $2", digest, record);
}

int pq_record_find_unfinished(load_target *target, guard_scope *scope, const char *path, load_record *record)
{
    return find(target, scope, RECORD_SELECT "AND f.path = $2 AND NOT f.complete", path, record);
}

void pq_record_each(load_target *target, target_record_fn *fn, void *arg)
{
    GUARD_AUTO(s);
    record_search search = {.target = target, .scope = s, .sql = RECORD_SELECT "ORDER BY 12, f.name"};
    pq_link_run(target->link, search_records, &search);
    for (size_t i = 0; i < search.count; i++) {
        fn(arg, &search.records[i]);
    }
}

/* Gives out the rejects of the chunk that was given up which stand before `line`. */
static size_t give_up_before(const load_target *target, const char *digest, size_t next, uint64_t line,
                             target_reject_fn *fn, void *arg)
{
    if (target->given_up_digest == NULL || strcmp(target->given_up_digest, digest) != 0) {
        return 0;
    }
    for (; next < target->given_up_count && target->given_up[next].at.line < line; next++) {
        const pq_reject *r = &target->given_up[next];
        fn(arg, &(load_reject){r->at, r->code, r->reason, r->raw, r->raw_size});
    }
    return next;
}

/* So many at a time, each of which may have --max-row bytes. */
#define REJECT_PAGE "64"

typedef struct reject_page {
    const load_target *target;
    const char *digest;
    guard_scope *scope;
    uint64_t after; /* line */
    PGresult *rows;
} reject_page;

static void read_page(guard_tx *tx, void *arg)
{
    reject_page *page = arg;
    GUARD_AUTO(s);
    const char *values[] = {page->target->table, page->digest, pq_number(s, page->after)};
    guard_pq_params params = {.count = 3, .values = values, .binary_result = 1};
    page->rows = guard_pq_exec_params(page->scope, guard_pq_of(tx),
                                      "SELECT line::text, code, reason, row FROM guard_load_reject WHERE table_name = "
                                      "$1 AND sha256 = $2 AND guard_load_reject.line > $3 ORDER BY "
                                      "guard_load_reject.line LIMIT " REJECT_PAGE,
                                      &params);
}

/* By pages, each of which is read again if the connection is lost meanwhile: fn cannot be called twice for a row. */
void pq_reject_each(load_target *target, const char *digest, target_reject_fn *fn, void *arg)
{
    reject_page page = {.target = target, .digest = digest};
    size_t given_up = 0;
    int count;
    do {
        GUARD_AUTO(s);
        page.scope = s;
        pq_link_run(target->link, read_page, &page);
        count = PQntuples(page.rows);
        for (int i = 0; i < count; i++) {
            load_reject reject = {.at = {.line = pq_value(page.rows, i, 0)},
                                  .code = PQgetvalue(page.rows, i, 1),
                                  .reason = PQgetvalue(page.rows, i, 2),
                                  .raw = PQgetvalue(page.rows, i, 3),
                                  .raw_size = (size_t)PQgetlength(page.rows, i, 3)};
            given_up = give_up_before(target, digest, given_up, reject.at.line, fn, arg);
            fn(arg, &reject);
            page.after = reject.at.line;
        }
    } while (count > 0);
    give_up_before(target, digest, given_up, UINT64_MAX, fn, arg);
}

/* ----------------------------------------------------------------------------------------------- writing -- */

typedef struct record_change {
    const load_target *target;
    const load_record *record;
    const char *digest;
} record_change;

static void drop(const record_change *change, guard_pq *pq, const char *sql)
{
    const char *values[] = {change->target->table, change->digest};
    pq_query(NULL, pq, sql, 2, values);
}

static void begin_round(guard_tx *tx, void *arg)
{
    const record_change *change = arg;
    const load_record *r = change->record;
    guard_pq *pq = guard_pq_of(tx);
    GUARD_AUTO(s);
    const char *values[] = {change->target->table,
                            r->digest,
                            r->name,
                            r->path,
                            r->meaning,
                            pq_number(s, r->size),
                            pq_number(s, r->runs),
                            pq_number(s, r->at.offset),
                            pq_number(s, r->at.line)};
    /* Nothing is changed where another worker has begun this round already. */
    PGresult *begun = pq_query(s, pq,
                               "INSERT INTO guard_load_file AS f VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, "
                               "false, false, now()) ON CONFLICT (table_name, sha256) DO UPDATE SET name = $3, path = "
                               "$4, options = $5, size = $6, runs = $7, cut_offset = $8, cut_line = $9, chunks = 0, "
                               "cut = false, complete = false, updated = now() WHERE f.runs < $7 RETURNING 1",
                               9, values);
    if (PQntuples(begun) == 1) {
        drop(change, pq, "DELETE FROM guard_load_chunk WHERE table_name = $1 AND sha256 = $2");
        drop(change, pq, "DELETE FROM guard_load_reject WHERE table_name = $1 AND sha256 = $2");
        return;
    }
    PGresult *same = pq_query(s, pq,
                              "SELECT 1 FROM guard_load_file WHERE table_name = $1 AND sha256 = $2 AND options = $3", 3,
                              (const char *const[]){values[0], values[1], values[4]});
    if (PQntuples(same) == 0) {
        guard_panic(EXIT_FAILED, "%s was begun with other options by another loader", r->name);
    }
}

void pq_record_begin(load_target *target, const load_record *record)
{
    record_change change = {target, record, record->digest};
    pq_link_run(target->link, begin_round, &change);
}

static void forget(guard_tx *tx, void *arg)
{
    const record_change *change = arg;
    guard_pq *pq = guard_pq_of(tx);
    drop(change, pq, "DELETE FROM guard_load_file WHERE table_name = $1 AND sha256 = $2");
    drop(change, pq, "DELETE FROM guard_load_chunk WHERE table_name = $1 AND sha256 = $2");
    drop(change, pq, "DELETE FROM guard_load_reject WHERE table_name = $1 AND sha256 = $2");
}

void pq_record_forget(load_target *target, const char *digest)
{
    record_change change = {target, NULL, digest};
    pq_link_run(target->link, forget, &change);
}
