/* SPDX-License-Identifier: MIT */
/*
 * A batch is one transaction: rows, their rejects, and the file's record moved behind them. SQLite takes a row that violates a
 * constraint back by itself, so a bad row costs no more than its reject. Three things need the batch to be tried again, from the
 * reader's position before it:
 *
 *     a constraint fails at COMMIT (a deferred foreign key)   tried row by row, each in a savepoint
 *     a row fails, but something of it stays (a trigger that
 *     RAISEs FAIL, or IGNORE after it has written)             the same
 *     a row ends the transaction (a trigger's ROLLBACK)       tried up to that row; then that row alone, as a reject
 */
#include "sqlite_target.h"

#include <inttypes.h>
#include <string.h>

#include <guard/guard_file.h>

#include "progress.h"
#include "stop.h"

#define BATCH_ROWS 10000 /* without --batch */

/* One try. */
typedef struct batch {
    load_target *target;
    load_job *load;
    uint64_t limit;         /* rows */
    int by_row;             /* look after each row whether a deferred constraint is violated */
    int poisoned;           /* the first row is known to end the transaction */
    sqlite_verdict poison;  /* of that row */
    sqlite_verdict verdict; /* of the row that was rejected last */

    guard_tx *tx;
    uint64_t read;
    uint64_t loaded;
    uint64_t rejected;
    load_position next;
    int at_end;
    int ended_by_row; /* the row that was read last ended the transaction, and the verdict is its */
    int half_left;    /* something of the row that was read last and rejected is still there */
    int committing;   /* the rows are done */

    /* By row: rows that wait for another one, which may follow. */
    load_position *suspects;
    size_t suspect_count;
    guard_ticket suspects_ticket;
    guard_scope *scope;
} batch;

/* ------------------------------------------------------------------------------------------------- rejects -- */

static void check_max_rejects(batch *b)
{
    const load_options *o = b->load->options;
    uint64_t rejected = b->load->totals->rejected + b->rejected;
    if (rejected >= (o->max_rejects > 0 ? o->max_rejects : 1)) {
        b->load->publish(b->load->publish_arg);
        guard_panic(
            EXIT_FAILED, "%s: gave up after %" PRIu64 " rejected row%s (--max-rejects), the last one for: %s: %s",
            source_name(b->load->source), rejected, rejected == 1 ? "" : "s", b->verdict.code, b->verdict.reason);
    }
}

static void reject_row(batch *b, const load_row *row)
{
    load_reject reject = {row->at, b->verdict.code, b->verdict.reason, row->raw, row->raw_size};
    sqlite_reject_save(b->target, b->load->record.digest, &reject);
    b->rejected++;
    if (b->load->options->max_rejects != UINT64_MAX) {
        check_max_rejects(b);
    }
}

/* ---------------------------------------------------------------------------------------------------- rows -- */

/* The row was rejected, and took the transaction with it: leaves the try. */
GUARD_NORETURN static void leave_ended(batch *b)
{
    b->ended_by_row = 1;
    guard_panic(EXIT_FAILED, "a row ended the transaction: %s", b->verdict.reason);
}

/* By row there is a savepoint that takes the rest of it back too. */
GUARD_NORETURN static void leave_half_left(batch *b)
{
    b->half_left = 1;
    guard_panic(EXIT_FAILED, "a row was rejected by half: %s", b->verdict.reason);
}

/* Inserts the row: 1, or 0 with the verdict. */
static int insert_row(batch *b, const load_row *row)
{
    if (b->poisoned && b->read == 1) {
        b->verdict = b->poison;
        return 0;
    }
    int changes = sqlite3_total_changes(b->target->raw);
    int inserted = sqlite_row_insert(b->target, b->load->plan, row, &b->verdict);
    if (!inserted && sqlite3_get_autocommit(b->target->raw)) {
        leave_ended(b);
    }
    if (!inserted && !b->by_row && sqlite3_total_changes(b->target->raw) != changes) {
        leave_half_left(b);
    }
    return inserted;
}

static void take_row(batch *b, const load_row *row)
{
    if (insert_row(b, row)) {
        b->loaded++;
    } else {
        reject_row(b, row);
    }
}

/* ------------------------------------------------------------------------------------------- row by row -- */

static int is_deferred_violated(batch *b)
{
    int violated = 0;
    int highest = 0;
    sqlite3_db_status(b->target->raw, SQLITE_DBSTATUS_DEFERRED_FKS, &violated, &highest, 0);
    return violated != 0;
}

typedef enum { PUT_LOADED, PUT_REJECTED, PUT_WAITS } put_result;

/* Inserts the row unless that violates a deferred constraint. */
static put_result put_row(batch *b, const load_row *row)
{
    GUARD_AUTO(s);
    guard_tx *savepoint = guard_tx_begin_nested(s, b->tx);
    if (!insert_row(b, row)) {
        guard_tx_rollback(savepoint);
        return PUT_REJECTED;
    }
    if (is_deferred_violated(b)) {
        guard_tx_rollback(savepoint);
        return PUT_WAITS;
    }
    guard_tx_commit(savepoint);
    return PUT_LOADED;
}

static void take_row_alone(batch *b, const load_row *row)
{
    switch (put_row(b, row)) {
    case PUT_LOADED:
        b->loaded++;
        break;
    case PUT_REJECTED:
        reject_row(b, row);
        break;
    case PUT_WAITS:
        b->suspects = guard_memory_resize(b->scope, b->suspects, (b->suspect_count + 1) * sizeof *b->suspects,
                                          &b->suspects_ticket);
        b->suspects[b->suspect_count++] = row->at;
        break;
    }
}

static void read_suspect(batch *b, size_t i, load_row *row)
{
    reader_seek(b->load->reader, b->suspects[i]);
    if (!reader_next(b->load->reader, row)) {
        guard_panic(EXIT_FAILED, "%s changed while it was being loaded", source_name(b->load->source));
    }
}

static void drop_suspect(batch *b, size_t i)
{
    b->suspect_count--;
    memmove(b->suspects + i, b->suspects + i + 1, (b->suspect_count - i) * sizeof *b->suspects);
}

/*
 * Takes the suspects whose parents are in by now, the last one first: a row mostly waits for one behind it. Returns whether
 * there was one.
 */
static int take_ready_suspects(batch *b)
{
    int taken = 0;
    for (size_t i = b->suspect_count; i > 0; i--) {
        load_row row;
        read_suspect(b, i - 1, &row);
        put_result result = put_row(b, &row);
        if (result == PUT_WAITS) {
            continue;
        }
        if (result == PUT_LOADED) {
            b->loaded++;
        } else {
            reject_row(b, &row);
        }
        drop_suspect(b, i - 1);
        taken = 1;
    }
    return taken;
}

/* Rejects the suspect and takes it off. */
static void reject_suspect(batch *b, size_t i, const load_row *row)
{
    b->verdict.code = "foreign_key";
    strcpy(b->verdict.reason, "FOREIGN KEY constraint failed at COMMIT");
    sqlite_foreign_keys_explain(b->target->foreign_keys, row, b->verdict.reason, sizeof b->verdict.reason);
    reject_row(b, row);
    drop_suspect(b, i);
}

/* Inserts all suspects: rows that refer to each other satisfy each other then. Returns whether every one of them is. */
static int insert_suspects(batch *b)
{
    for (size_t i = 0; i < b->suspect_count; i++) {
        load_row row;
        read_suspect(b, i, &row);
        if (!insert_row(b, &row)) {
            return 0;
        }
    }
    return !is_deferred_violated(b);
}

/* With all suspects inserted: writes the positions of those whose parents are nowhere to the front. Returns their number. */
static size_t find_orphans(batch *b, size_t *orphans)
{
    size_t count = 0;
    for (size_t i = 0; i < b->suspect_count; i++) {
        load_row row;
        read_suspect(b, i, &row);
        if (sqlite_foreign_keys_violated(b->target->foreign_keys, &row)) {
            orphans[count++] = i;
        }
    }
    return count;
}

/*
 * Takes the suspects together, or finds those that cannot be taken, and rejects them; then the others are no worse than
 * before. Where the keys do not tell which (a trigger violates one, say), all are rejected.
 */
static void sieve_suspects(batch *b)
{
    GUARD_AUTO(s);
    size_t *orphans = guard_memory_allocate_array(s, b->suspect_count, sizeof *orphans, NULL);
    guard_tx *savepoint = guard_tx_begin_nested(s, b->tx);
    if (insert_suspects(b)) {
        guard_tx_commit(savepoint);
        b->loaded += b->suspect_count;
        b->suspect_count = 0;
        return;
    }
    size_t count = find_orphans(b, orphans);
    guard_tx_rollback(savepoint);
    if (count == 0) {
        for (count = 0; count < b->suspect_count; count++) {
            orphans[count] = count;
        }
    }
    while (count > 0) {
        load_row row;
        read_suspect(b, orphans[--count], &row);
        reject_suspect(b, orphans[count], &row);
    }
}

static void settle_suspects(batch *b)
{
    while (take_ready_suspects(b)) {
    }
    while (b->suspect_count > 0) {
        sieve_suspects(b);
    }
}

/* ------------------------------------------------------------------------------------------- transactions -- */

static void read_rows(batch *b)
{
    load_job *load = b->load;
    load_row row;
    while (b->read < b->limit && !stop_requested()) {
        if (!reader_next(load->reader, &row)) {
            b->at_end = 1;
            break;
        }
        b->read++;
        if (b->by_row) {
            take_row_alone(b, &row);
        } else {
            take_row(b, &row);
        }
        progress_move(load->progress, row.at.offset, load->rows + b->read);
    }
    b->next = reader_tell(load->reader);
    /* So that a file whose last row fills a batch needs no empty one. */
    if (!b->at_end && !stop_requested()) {
        b->at_end = !reader_next(load->reader, &row);
    }
}

static load_record moved_record(const batch *b)
{
    load_record record = b->load->record;
    record.at = b->next;
    record.loaded += b->loaded;
    record.rejected += b->rejected;
    record.complete = b->at_end;
    return record;
}

static void run_batch(guard_tx *tx, void *arg)
{
    batch *b = arg;
    load_job *load = b->load;
    GUARD_AUTO(s);
    b->tx = tx;
    b->scope = s;
    reader_seek(load->reader, load->record.at);
    if (load->fresh) {
        sqlite_reject_drop(b->target, load->record.digest);
    }
    read_rows(b);
    settle_suspects(b);
    if (b->read == 0 && !b->at_end) {
        stop_check();
    }
    load_record record = moved_record(b);
    sqlite_record_save(b->target, &record);
    source_check_unchanged(load->source);
    if (b->at_end) {
        source_check_content(load->source);
    }
    b->committing = 1;
}

/* One try of the batch, from its beginning. Returns its outcome, in doubt resolved where that is possible. */
static guard_outcome try_batch(batch *b, guard_result *result)
{
    GUARD_AUTO(s);
    /* The record tells whether a COMMIT whose answer was lost took place. */
    guard_sqlite_tx_options options = {.tx = {.attempts = 1, .durable = 1},
                                       .marker = GUARD_SQLITE_PROBE,
                                       .probe = sqlite_record_probe(s, b->target, &b->load->record),
                                       .probe_key = b->load->record.digest};
    b->read = b->loaded = b->rejected = 0;
    b->at_end = b->ended_by_row = b->half_left = b->committing = 0;
    b->suspects = NULL;
    b->suspect_count = 0;
    return guard_sqlite_transact(b->target->db, run_batch, b, &options, result);
}

/* Prepares another try of a batch that failed: 1, or 0 if that would not help. */
static int mend(batch *b, const guard_result *result)
{
    if (b->ended_by_row && b->read == 1) {
        b->poisoned = 1;
        b->poison = b->verdict;
        return 1;
    }
    if (b->ended_by_row) {
        b->limit = b->read - 1;
        return 1;
    }
    if (b->half_left) {
        b->by_row = 1;
        return 1;
    }
    int constraint = result->error.domain == GUARD_SQLITE && (result->error.code & 0xFF) == SQLITE_CONSTRAINT;
    if (b->committing && constraint && !b->by_row) {
        b->by_row = 1;
        return 1;
    }
    return 0;
}

void sqlite_batch_load(load_target *target, load_job *load)
{
    batch b = {.target = target, .load = load, .limit = load->options->batch != 0 ? load->options->batch : BATCH_ROWS};
    load_totals *totals = load->totals;
    const char *before = totals->outcome;
    guard_result result;
    guard_outcome outcome;
    do {
        totals->outcome = "rolled_back";
        outcome = try_batch(&b, &result);
    } while (outcome == GUARD_ROLLED_BACK && mend(&b, &result));
    totals->read += b.read;
    if (outcome != GUARD_COMMITTED) {
        if (outcome == GUARD_IN_DOUBT) {
            totals->outcome = "in_doubt";
            sqlite_panic_about(
                "whether the last batch is committed is not known; the same command goes on from what is",
                &result.error);
        }
        if (b.read == 0 && result.error.domain == GUARD_CANCELLED) {
            totals->outcome = before; /* stopped before it had a row: there is no such batch */
        }
        guard_panic_error(&result.error);
    }
    totals->outcome = "committed";
    load->record = moved_record(&b);
    load->fresh = 0;
    load->at_end = b.at_end;
    totals->loaded += b.loaded;
    totals->rejected += b.rejected;
    totals->batches++;
    load->rows += b.read;
}
