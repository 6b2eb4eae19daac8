/* SPDX-License-Identifier: MIT */
/*
 * A file is cut into chunks a few at a time, by whoever has the lock on its row, and is complete when all of them are loaded.
 *
 * Where rows end is found by a scan that reads no fields, with a reader of its own: what it reads is not hashed, and the other one stays
 * where it is. While the server has rows of the last known chunk before it, the scan for those behind it is made ahead, so that the
 * server need not wait for it; it is used if nobody else has cut meanwhile.
 */
#include "pq_target.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define CHUNK_BYTES (8 * 1024 * 1024) /* of the file at most, but for the last row: it is held in memory */

/*
 * Rows in a chunk, without --batch: as many as CHUNK_SECONDS take by the pace of the last one, which is also what a kill loses. Large ones are
 * better: a COPY has a cost of its own, some 2 ms of the server's, also within one transaction, and between two chunks the server has nothing to
 * do for 2 to 3 ms. The server's processor time for 231,083 flights by rows in a transaction, least of
 * 6 in one session, ms: 2,563 (10,000), 2,537 (20,000), 2,520 (30,000), 2,513 (50,000), 2,509 (all). With one bad row in a hundred, the
 * loader's: 1 (10,000), 0.92 (50,000), 0.94 (100,000), 0.91 (all). A COPY of those flights takes
 * the server 2 to 3 ms beside what its rows take, so that two chunks (10,000, the rest) are better than four by 100,000.
 *
 * Several workers begin with large ones, each half of a worker's even share of what is left, and end together with small ones. Two with
 * the flights take as long as with 10,000 each: 0.92 in 7 pairs, 1.02 in 12.
 *
 * Where rows are checked late, bad ones are found by trying suspects with each other, which takes the square of their number: 100,000 rows
 * with 100 orphans took 2.3 and 2.4 s by 10,000, 2.6 and 2.8 by 50,000. Into a table that refers to itself bad rows are found by halving.
 * There, and as long as no chunk was loaded, there are CHUNK_ROWS.
 */
#define CHUNK_SECONDS 2.0
#define CHUNK_ROWS 10000
#define CHUNK_ROWS_MOST 250000
#define CHUNK_ROWS_SHARED 2500 /* at least, of several workers */
#define CHUNK_ROWS_SLOW 100    /* at least */

/* One column of the chunks that are cut, as an array of SQL's. */
typedef struct cut_column {
    char text[PQ_CUT_CHUNKS * 21 + 2];
    size_t used;
} cut_column;

static void cut_column_add(cut_column *column, uint64_t value)
{
    column->used += (size_t)snprintf(column->text + column->used, sizeof column->text - column->used, "%c%" PRIu64,
                                     column->used == 0 ? '{' : ',', value);
}

static const char *cut_column_end(cut_column *column)
{
    memcpy(column->text + column->used, column->used == 0 ? "{}" : "}", column->used == 0 ? 3 : 2);
    return column->text;
}

/* What a chunk has: at least as many rows, then as many bytes, and never more rows than most. */
typedef struct chunk_limit {
    uint64_t least;
    uint64_t bytes;
    uint64_t most;
} chunk_limit;

/* So many rows as a transaction of CHUNK_SECONDS takes, by what the last chunk took. */
static uint64_t rows_by_pace(const pq_worker *w, double pace)
{
    double rows = pace * CHUNK_SECONDS;
    if (pace == 0 || w->target->refers_to_itself || w->target->is_checked_late) {
        return CHUNK_ROWS;
    }
    return rows > CHUNK_ROWS_MOST ? CHUNK_ROWS_MOST : rows < CHUNK_ROWS_SLOW ? CHUNK_ROWS_SLOW : (uint64_t)rows;
}

static chunk_limit limit_of(const pq_worker *w, uint64_t begin, double pace)
{
    const load_options *o = w->load->options;
    uint64_t left = source_size(w->source) > begin ? source_size(w->source) - begin : 0;
    uint64_t rows = o->batch != 0 ? o->batch : rows_by_pace(w, pace);
    if (o->batch != 0 || o->workers == 1 || rows <= CHUNK_ROWS_SHARED) {
        return (chunk_limit){rows, 0, rows};
    }
    return (chunk_limit){CHUNK_ROWS_SHARED, left / (2 * o->workers), rows};
}

/* Moves the cutter to the end of a chunk and returns its rows, 0 at the end of the file. */
static uint64_t cut_chunk(pq_worker *w, double pace)
{
    uint64_t begin = reader_tell(w->cutter).offset;
    chunk_limit limit = limit_of(w, begin, pace);
    uint64_t rows = 0;
    uint64_t bytes = 0;
    while (rows < limit.most && bytes < CHUNK_BYTES && (rows < limit.least || bytes < limit.bytes) &&
           reader_skip(w->cutter)) {
        rows++;
        bytes = reader_tell(w->cutter).offset - begin;
    }
    return rows;
}

/* Finds up to `most` chunks behind `begin`, or fewer where these are large. */
static void scan(pq_worker *w, load_position begin, uint64_t most, double pace)
{
    pq_cuts cuts = {.begin = begin};
    load_position end = begin;
    reader_seek(w->cutter, begin);
    while (cuts.count < most && !cuts.at_end && end.offset - begin.offset < CHUNK_BYTES) {
        uint64_t rows = cut_chunk(w, pace);
        if (rows > 0) {
            end = reader_tell(w->cutter);
            cuts.most_rows = rows > cuts.most_rows ? rows : cuts.most_rows;
            cuts.ends[cuts.count++] = end;
            cuts.at_end = end.offset >= source_size(w->source);
        } else {
            cuts.at_end = 1;
        }
    }
    w->ahead = cuts;
}

/* What the first chunk takes is known when it is over: till then the next one is cut as if rows were fast. */
void pq_cut_look_ahead(pq_worker *w)
{
    load_position end = reader_tell(w->reader);
    if (w->chunk.number == w->chunks_seen && !w->cut_to_end && w->ahead.begin.offset != end.offset) {
        int is_guess = w->pace == 0 && w->load->options->batch == 0;
        scan(w, end, is_guess ? 1 : PQ_CUT_CHUNKS, is_guess ? CHUNK_ROWS_MOST / CHUNK_SECONDS : w->pace);
    }
}

/* What was found ahead fits, unless rows turned out to be slower. */
static int is_ahead(const pq_worker *w, load_position begin)
{
    uint64_t most = limit_of(w, begin.offset, w->pace).most;
    return w->ahead.begin.offset == begin.offset && w->ahead.begin.line == begin.line &&
           w->ahead.most_rows <= most + most / 4;
}

/* One chunk for each worker where nothing was found ahead: the server waits for the scan. */
static void cut(pq_worker *w, guard_pq *pq, const PGresult *file)
{
    GUARD_AUTO(s);
    cut_column number = {.used = 0};
    cut_column begin_offset = {.used = 0};
    cut_column begin_line = {.used = 0};
    cut_column end_offset = {.used = 0};
    uint64_t chunks = w->chunks_seen;
    uint64_t workers = w->load->options->workers;
    load_position begin = {pq_value(file, 0, 0), pq_value(file, 0, 1)};
    if (!is_ahead(w, begin)) {
        scan(w, begin, workers < PQ_CUT_CHUNKS ? workers : PQ_CUT_CHUNKS, w->pace);
    }
    for (size_t i = 0; i < w->ahead.count; i++) {
        cut_column_add(&number, ++chunks);
        cut_column_add(&begin_offset, begin.offset);
        cut_column_add(&begin_line, begin.line);
        begin = w->ahead.ends[i];
        cut_column_add(&end_offset, begin.offset);
    }
    source_check_unchanged(w->source);
    const char *cuts[] = {w->target->table,
                          w->load->record.digest,
                          cut_column_end(&number),
                          cut_column_end(&begin_offset),
                          cut_column_end(&begin_line),
                          cut_column_end(&end_offset)};
    pq_query(NULL, pq,
             "INSERT INTO guard_load_chunk (table_name, sha256, number, begin_offset, begin_line, end_offset) SELECT "
             "$1, $2, c.* FROM unnest($3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[]) c",
             6, cuts);
    const char *values[] = {w->target->table,         w->load->record.digest, pq_number(s, begin.offset),
                            pq_number(s, begin.line), pq_number(s, chunks),   w->ahead.at_end ? "true" : "false"};
    pq_query(NULL, pq,
             "UPDATE guard_load_file SET cut_offset = $3, cut_line = $4, chunks = $5, cut = $6, updated = now() WHERE "
             "table_name = $1 AND sha256 = $2",
             6, values);
    w->chunks_seen = chunks;
    w->cut_to_end = w->ahead.at_end;
}

/* --------------------------------------------------------------------------------------------- completing -- */

static void complete(pq_worker *w, guard_pq *pq)
{
    const char *values[] = {w->target->table, w->load->record.digest};
    GUARD_AUTO(s);
    PGresult *left = pq_query(s, pq,
                              "SELECT 1 FROM guard_load_chunk WHERE table_name = $1 AND sha256 = $2 AND done_by IS "
                              "NULL LIMIT 1",
                              2, values);
    w->waits = PQntuples(left) > 0;
    if (w->waits) {
        return;
    }
    source_check_unchanged(w->source);
    source_check_content(w->source);
    pq_query(NULL, pq,
             "UPDATE guard_load_file SET complete = true, updated = now() WHERE table_name = $1 AND sha256 = $2", 2,
             values);
    w->complete = 1;
}

void pq_cut_advance(guard_tx *tx, void *arg)
{
    pq_worker *w = arg;
    guard_pq *pq = guard_pq_of(tx);
    GUARD_AUTO(s);
    w->waits = w->complete = 0;
    const char *values[] = {w->target->table, w->load->record.digest, pq_number(s, w->load->record.runs)};
    PGresult *file = pq_query(s, pq,
                              "SELECT cut_offset, cut_line, chunks, cut::int, complete::int FROM guard_load_file WHERE "
                              "table_name = $1 AND sha256 = $2 AND runs = $3 FOR UPDATE",
                              3, values);
    if (PQntuples(file) == 0) {
        guard_panic(EXIT_FAILED, "%s was forgotten, or begun once more, by another loader", source_name(w->source));
    }
    uint64_t chunks = pq_value(file, 0, 2);
    w->cut_to_end = pq_value(file, 0, 3) != 0;
    if (pq_value(file, 0, 4)) {
        w->complete = 1;
    } else if (chunks != w->chunks_seen) {
        w->chunks_seen = chunks; /* another worker has cut some meanwhile */
    } else if (w->cut_to_end) {
        complete(w, pq);
    } else {
        cut(w, pq, file);
    }
}
