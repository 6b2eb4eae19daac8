/* SPDX-License-Identifier: MIT */
/*
 * COPY takes all of its rows or none, and it names the bad row only where it fails on the row itself: not for a foreign key, which
 * is looked at when all rows are in. So rows go in by tries, each in a savepoint, of a window that follows what is found:
 *
 *     the try succeeds            the window doubles
 *     it fails, no row is named   the window halves
 *     it fails at a named row     the rows before it, then that row alone
 *     it fails at a foreign key   the server is asked once which rows have keys that lead nowhere; they come last, one by one
 *     it fails, one row           the row is rejected
 *
 * But a chunk is tried first without a savepoint: there were two, which cost two messages each. Where that fails, or has failed for the chunk before, it is loaded with care.
 *
 * A row is rejected for an error of its own only: what names it is a hint, and costs a good row nothing when it is wrong.
 * Each row is sent a few times at most, however many are bad.
 *
 * Measured, a chunk of 10,000 rows with a foreign key, evenly spread bad rows, one run each on a busy machine, seconds:
 *
 *     bad rows                               0     1     10    100   1000  5000
 *     no value of the type, row named       0.10  0.14  0.20  0.25  1.1   3.9
 *     the same, by halving alone            0.27  0.33  0.54  0.78  3.1   3.9
 *     foreign key, found by halving alone   0.14  0.20  0.49  0.95  5.4   6.0
 *
 * With the question for foreign keys, 231,083 flights, every 100th with a bad one, take 1.35 of the time of none (median of 8 pairs, taken in
 * turn). What one worker and two take beside psql's \copy is in BENCHMARKS.md.
 *
 * A staging table would have to tell apart in SQL what every type, constraint and trigger of the table refuses; PostgreSQL 15 has
 * nothing that asks a type without raising its error.
 */
#include "pq_target.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistr.h>

#include <guard/guard_file.h>

#include "clock.h"

/* Of rows, before they are sent. Reading 10,000 rows takes about 2 ms; the server had nothing to do meanwhile. */
#define PIECE_BYTES 32768
#define PIECE_BYTES_SMALL 4096 /* where rows are counted */

/* A row that the server took and did not keep. */
#define IGNORED_BY_TRIGGER "a trigger of the table ignored the row"
#define IGNORED_CODE 1

/* ------------------------------------------------------------------------------------------- what failed -- */

int pq_copy_is_row_fault(const guard_error *error)
{
    /* https://www.postgresql.org/docs/15/errcodes-appendix.html: of the data, of constraints, of views, of limits, of functions. */
    static const char *const classes[] = {"22", "23", "44", "54", "P0", "38", "39", "2F"};
    if (error->domain == GUARD_USER && error->code == IGNORED_CODE && strcmp(error->message, IGNORED_BY_TRIGGER) == 0) {
        return 1;
    }
    for (size_t i = 0; error->domain == GUARD_PQ && i < sizeof classes / sizeof *classes; i++) {
        if (strncmp(error->sqlstate, classes[i], 2) == 0) {
            return 1;
        }
    }
    return 0;
}

static const char *reject_code(const char *state)
{
    static const struct {
        const char *state;
        const char *code;
    } codes[] = {{"23502", "not_null"}, {"23503", "foreign_key"}, {"23505", "unique"},
                 {"23514", "check"},    {"23", "constraint"},     {"44", "check"},
                 {"22021", "encoding"}, {"22", "type"},           {"54", "too_long"}};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        if (strncmp(state, codes[i].state, strlen(codes[i].state)) == 0) {
            return codes[i].code;
        }
    }
    return "trigger";
}

void pq_copy_reject(pq_worker *w, size_t row, const guard_error *error)
{
    char reason[sizeof error->message + sizeof error->detail + 4];
    snprintf(reason, sizeof reason, "%s%s%s%s", error->message, *error->detail != '\0' ? " (" : "", error->detail,
             *error->detail != '\0' ? ")" : "");
    /* What was cut to fit may end within a character. */
    const uint8_t *bad = u8_check((const uint8_t *)reason, strlen(reason));
    if (bad != NULL) {
        reason[bad - (const uint8_t *)reason] = '\0';
    }
    pq_reject_add(w, w->chunk.places[row], reject_code(error->sqlstate), reason);
}

/* The row of the COPY, from 0, that the latest error's CONTEXT names, or -1. The text around it may be the row's own. */
static long named_row(guard_pq *pq, const char *relation)
{
    size_t length = strlen(relation);
    for (const char *line = guard_pq_error_context(pq); line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, "COPY ", 5) == 0 && strncmp(line + 5, relation, length) == 0 &&
            strncmp(line + 5 + length, ", line ", 7) == 0) {
            return strtol(line + 5 + length + 7, NULL, 10) - 1;
        }
    }
    return -1;
}

/* ------------------------------------------------------------------------------------------------- one try -- */

/* Rows that follow each other are sent as one. */
static void put_order(guard_pq_copy *copy, const pq_try *attempt)
{
    const pq_chunk *chunk = &attempt->worker->chunk;
    const size_t *order = attempt->order;
    for (size_t i = attempt->from; i < attempt->to;) {
        size_t first = order[i];
        size_t end = first;
        while (i < attempt->to && order[i] == end) {
            i++;
            end++;
        }
        guard_pq_copy_put(copy, chunk->text + chunk->begins[first], chunk->begins[end] - chunk->begins[first]);
    }
}

static int has_more(const pq_worker *w)
{
    return reader_tell(w->reader).offset < w->chunk.end;
}

/* What is read of the chunk and not sent, and more until it has `most` rows. The server takes the rows of one piece while the next one is read. */
static void put_part(guard_pq_copy *copy, pq_try *attempt, size_t most)
{
    pq_worker *w = attempt->worker;
    size_t piece = most < SIZE_MAX ? PIECE_BYTES_SMALL : PIECE_BYTES;
    size_t sent = w->chunk.begins[attempt->from];
    for (int more = 1; more || sent < w->chunk.text_size;) {
        size_t size = w->chunk.text_size;
        guard_pq_copy_put(copy, w->chunk.text + sent, size - sent);
        sent = size;
        more = more && w->chunk.count < most && pq_rows_read(w, piece);
    }
    attempt->to = w->chunk.count;
    if (!has_more(w)) {
        pq_cut_look_ahead(w); /* the server still has rows to take */
    }
}

static void put_copy(pq_try *attempt, size_t most)
{
    pq_worker *w = attempt->worker;
    GUARD_AUTO(s);
    guard_pq_copy *copy = guard_pq_copy_in(s, w->link->pq, pq_way_copy(w));
    w->copy_begin = attempt->from;
    if (attempt->order == NULL) {
        put_part(copy, attempt, most);
    } else {
        put_order(copy, attempt);
    }
    if ((size_t)guard_pq_copy_end(copy) != attempt->to - attempt->from) {
        guard_panic(IGNORED_CODE, "%s", IGNORED_BY_TRIGGER);
    }
}

/* The chunk's first rows both ways, where it is not known which is faster. */
static void put_both_ways(pq_try *attempt, size_t rows)
{
    for (int i = 0; i < 2 && (i == 0 || has_more(attempt->worker)); i++) {
        double began = clock_seconds();
        attempt->from = attempt->to;
        put_copy(attempt, attempt->from + rows);
        pq_way_measure(attempt->worker, attempt->to - attempt->from, clock_seconds() - began);
    }
}

static void put_rows(pq_try *attempt)
{
    size_t from = attempt->from;
    size_t rows = attempt->order == NULL ? pq_way_open(attempt->worker) : 0;
    if (rows > 0) {
        put_both_ways(attempt, rows);
        attempt->from = attempt->to;
    }
    if (rows == 0 || has_more(attempt->worker)) {
        put_copy(attempt, SIZE_MAX);
    }
    attempt->from = from;
}

void pq_copy_check(pq_worker *w)
{
    guard_pq_exec(NULL, w->link->pq, "SET CONSTRAINTS ALL IMMEDIATE");
}

static void run_try(guard_tx *tx, void *arg)
{
    pq_try *attempt = arg;
    (void)tx;
    attempt->checking = 0;
    put_rows(attempt);
    if (attempt->check) {
        attempt->checking = 1;
        pq_copy_check(attempt->worker);
        guard_pq_exec(NULL, attempt->worker->link->pq, "SET CONSTRAINTS ALL DEFERRED");
    }
}

int pq_copy_is_refused(const guard_error *error)
{
    return error->domain == GUARD_PQ &&
           (strncmp(error->sqlstate, "42", 2) == 0 || strncmp(error->sqlstate, "0A", 2) == 0);
}

static void take_all(pq_try *attempt)
{
    pq_rows_read(attempt->worker, SIZE_MAX);
    attempt->to = attempt->worker->chunk.count;
}

/* `row` of the try, from 0, or -1. */
static void set_hint(pq_try *attempt, long row)
{
    int is_known = row >= 0 && (size_t)row < attempt->to - attempt->from;
    attempt->hint = is_known ? attempt->from + (size_t)row : attempt->to;
}

int pq_copy_try(pq_try *attempt, guard_tx *tx)
{
    pq_worker *w = attempt->worker;
    if (!w->is_careful) {
        run_try(tx, attempt);
        return 1;
    }
    if (guard_tx_nested(tx, run_try, attempt, &attempt->result) == GUARD_RELEASED) {
        return 1;
    }
    if (!pq_copy_is_row_fault(&attempt->result.error)) {
        if (pq_copy_is_refused(&attempt->result.error) && pq_way_refuse(w)) {
            return pq_copy_try(attempt, tx);
        }
        guard_panic_error(&attempt->result.error);
    }
    if (attempt->order == NULL) {
        take_all(attempt);
    }
    set_hint(attempt, attempt->checking ? -1 : named_row(w->link->pq, w->target->relation));
    return 0;
}

void pq_copy_note_fault(pq_worker *w, const guard_error *error)
{
    w->fault_chunk = w->chunk.number;
    w->fault_row = named_row(w->link->pq, w->target->relation);
    w->fault_row += w->fault_row >= 0 ? (long)w->copy_begin : 0;
    w->fault = *error;
}

/* All rows of the chunk at once. 0 also where that is what failed, in the transaction before this one. */
static int try_all(pq_try *attempt, guard_tx *tx)
{
    pq_worker *w = attempt->worker;
    if (w->fault_chunk != w->chunk.number) {
        return pq_copy_try(attempt, tx);
    }
    w->fault_chunk = 0;
    attempt->result.error = w->fault;
    take_all(attempt);
    set_hint(attempt, w->fault_row);
    return 0;
}

/* ------------------------------------------------------------------------------------------------ all rows -- */

size_t *pq_copy_order(guard_scope *scope, const pq_worker *w)
{
    size_t *order = guard_memory_allocate_array(scope, w->chunk.count + 1, sizeof *order, NULL);
    for (size_t i = 0; i < w->chunk.count; i++) {
        order[i] = i;
    }
    return order;
}

/* Below it halving is as fast as the question. */
#define ACCUSE_ROWS 32

static int is_foreign_key(const guard_error *error)
{
    return strcmp(error->sqlstate, "23503") == 0;
}

void pq_copy_rows(pq_worker *w, guard_tx *tx)
{
    pq_try attempt = {.worker = w};
    if (try_all(&attempt, tx)) {
        w->loaded += attempt.to;
        return;
    }
    GUARD_AUTO(s);
    size_t count = w->chunk.count;
    size_t *order = pq_copy_order(s, w);
    size_t window = count;
    size_t named = count; /* this row was named */
    size_t last = count;  /* from here on they are accused */
    int asked = 0;
    attempt.order = order;
    for (int taken = 0; attempt.from < count; taken = pq_copy_try(&attempt, tx)) {
        if (taken) {
            w->loaded += attempt.to - attempt.from;
            attempt.from = attempt.to;
            window = attempt.from == last ? 1 : window < count ? window * 2 : window;
        } else if (attempt.to - attempt.from == 1) {
            pq_copy_reject(w, order[attempt.from], &attempt.result.error);
            attempt.from = attempt.to;
            window = attempt.from == last ? 1 : window;
        } else if (attempt.hint < attempt.to) {
            named = attempt.hint;
            window = named > attempt.from ? named - attempt.from : 1;
        } else if (!asked && is_foreign_key(&attempt.result.error) && attempt.to - attempt.from >= ACCUSE_ROWS) {
            asked = 1;
            last = count - pq_accuse(w, tx, order, attempt.from, count);
            window = last > attempt.from ? last - attempt.from : 1;
            named = count;
        } else {
            window = (attempt.to - attempt.from) / 2;
        }
        if (attempt.from == count) {
            break;
        }
        size_t end = attempt.from < last ? last : count;
        size_t rows = attempt.from == named ? 1 : window;
        attempt.to = attempt.from + (rows < end - attempt.from ? rows : end - attempt.from);
    }
}
