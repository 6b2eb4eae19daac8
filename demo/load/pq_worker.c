/* SPDX-License-Identifier: MIT */
/*
 * A worker's way, of which any number, in any number of processes, go it at the same time:
 *
 *                 a chunk is free
 *     CLAIM ---------------------------> LOAD it: rows, rejects and the chunk's row in one transaction --> CLAIM
 *       | none is free, or the one just loaded was the last that is known
 *       +--> the file is not cut to its end: CUT more chunks (one worker at a time: the file's row is locked) --> CLAIM
 *       +--> chunks are left, in the hands of others: WAIT until one of them is over --> CLAIM
 *       +--> every chunk is loaded: the file is COMPLETE
 *
 * Who has begun the file's round cuts first.
 *
 * What must hold: a chunk is claimed by the lock on its row, which is gone with its worker's transaction, however that ends;
 * done_by is set exactly when the chunk's rows are in the table.
 *
 * Into a table that refers to itself one chunk is loaded at a time, in the order of the file: its claim does not skip.
 */
#include "pq_target.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include <guard/guard_file.h>

#include "clock.h"
#include "progress.h"
#include "stop.h"

#define LOCK_WAITS "SET LOCAL lock_timeout = 500"
#define LOCK_WAITS_NO_MORE "SET LOCAL lock_timeout = 0"
#define LOCK_NOT_AVAILABLE "55P03"

typedef struct pq_team {
    load_target *target;
    load_job *load;
    pthread_mutex_t mutex; /* of what follows, and of load's totals, rows and record's counts */
    int failed;
    guard_error error; /* the first one */
    int in_doubt;
    pq_reject *given_up; /* malloc'ed */
    size_t given_up_count;
} pq_team;

/* ------------------------------------------------------------------------------------------------ rejects -- */

static int compare_rejects(const void *a, const void *b)
{
    const pq_reject *left = a;
    const pq_reject *right = b;
    return (left->at.line > right->at.line) - (left->at.line < right->at.line);
}

static void copy_raw(pq_worker *w, guard_scope *scope, pq_reject *reject)
{
    load_row row;
    load_position before = reader_tell(w->reader);
    reader_seek(w->reader, reject->at);
    if (!reader_next(w->reader, &row)) {
        guard_panic(EXIT_FAILED, "%s changed while it was being loaded", source_name(w->source));
    }
    char *raw = guard_memory_allocate(scope, row.raw_size + 1, NULL);
    reject->raw = memcpy(raw, row.raw, row.raw_size);
    reject->raw_size = row.raw_size;
    reader_seek(w->reader, before);
}

/* All in one block, for the thread that has the target: it outlives this worker's scopes. */
static void keep_rejects(pq_worker *w)
{
    pq_team *team = w->team;
    pq_rejects *rejects = &w->rejects;
    size_t size = rejects->count * sizeof *rejects->list;
    for (size_t i = 0; i < rejects->count; i++) {
        copy_raw(w, rejects->scope, &rejects->list[i]);
        size += strlen(rejects->list[i].reason) + 1 + rejects->list[i].raw_size;
    }
    qsort(rejects->list, rejects->count, sizeof *rejects->list, compare_rejects);
    pq_reject *kept = malloc(size);
    if (kept == NULL) {
        guard_panic_in(GUARD_MEMORY, ENOMEM, "no memory for the rejected rows");
    }
    char *text = (char *)(kept + rejects->count);
    for (size_t i = 0; i < rejects->count; i++) {
        const pq_reject *from = &rejects->list[i];
        size_t length = strlen(from->reason) + 1;
        kept[i] = *from;
        kept[i].reason = memcpy(text, from->reason, length);
        kept[i].raw = memcpy(text + length, from->raw, from->raw_size);
        text += length + from->raw_size;
    }
    pthread_mutex_lock(&team->mutex);
    int first = team->given_up == NULL;
    if (first) {
        team->given_up = kept;
        team->given_up_count = rejects->count;
    }
    pthread_mutex_unlock(&team->mutex);
    if (!first) {
        free(kept);
    }
}

void pq_worker_check_rejects(pq_worker *w, const char *code, const char *reason)
{
    uint64_t most = w->load->options->max_rejects;
    if (most == UINT64_MAX) {
        return;
    }
    pthread_mutex_lock(&w->team->mutex);
    uint64_t rejected = w->load->totals->rejected + w->rejects.count;
    pthread_mutex_unlock(&w->team->mutex);
    if (rejected >= (most > 0 ? most : 1)) {
        keep_rejects(w);
        guard_panic(EXIT_FAILED,
                    "%s: gave up after %" PRIu64 " rejected row%s (--max-rejects), the last one for: %s: %s",
                    source_name(w->source), rejected, rejected == 1 ? "" : "s", code, reason);
    }
}

static void put_text(guard_pq_copy *copy, const char *text)
{
    for (; *text != '\0'; text++) {
        const char *escaped = *text == '\\' ? "\\\\" : *text == '\n' ? "\\n" : *text == '\r' ? "\\r" : "\\t";
        if (strchr("\\\n\r\t", *text) != NULL) {
            guard_pq_copy_put(copy, escaped, 2);
        } else {
            guard_pq_copy_put(copy, text, 1);
        }
    }
}

static void put_bytes(guard_pq_copy *copy, const char *bytes, size_t size)
{
    char piece[512];
    size_t used = 0;
    guard_pq_copy_put(copy, "\\\\x", 3);
    for (size_t i = 0; i < size; i++) {
        used += (size_t)snprintf(piece + used, 3, "%02x", (unsigned char)bytes[i]);
        if (used > sizeof piece - 3 || i + 1 == size) {
            guard_pq_copy_put(copy, piece, used);
            used = 0;
        }
    }
}

/* The bytes of a rejected row are read once more, not kept: there may be many of them. */
static void save_rejects(pq_worker *w)
{
    if (w->rejects.count == 0) {
        return;
    }
    GUARD_AUTO(s);
    guard_pq_copy *copy = guard_pq_copy_in(s, w->link->pq,
                                           "COPY guard_load_reject (table_name, sha256, line, code, reason, row) FROM "
                                           "STDIN WITH (FORMAT text, ENCODING 'UTF8')");
    for (size_t i = 0; i < w->rejects.count; i++) {
        GUARD_AUTO(one);
        pq_reject reject = w->rejects.list[i];
        copy_raw(w, one, &reject);
        put_text(copy, w->target->table);
        const char *middle = guard_memory_format(one, NULL, "\t%s\t%" PRIu64 "\t%s\t", w->load->record.digest,
                                                 reject.at.line, reject.code);
        guard_pq_copy_put(copy, middle, strlen(middle));
        put_text(copy, reject.reason);
        guard_pq_copy_put(copy, "\t", 1);
        put_bytes(copy, reject.raw, reject.raw_size);
        guard_pq_copy_put(copy, "\n", 1);
    }
    guard_pq_copy_end(copy);
}

/* -------------------------------------------------------------------------------------------------- a chunk -- */

static int claim(pq_worker *w, guard_pq *pq)
{
    GUARD_AUTO(s);
    const char *values[] = {w->target->table, w->load->record.digest, pq_number(s, w->load->record.runs)};
    int in_order = w->target->refers_to_itself;
    if (in_order) {
        guard_pq_exec(NULL, pq, LOCK_WAITS);
    }
    PGresult *row = pq_query(s, pq,
                             in_order
                                 ? "SELECT number, begin_offset, begin_line, end_offset FROM guard_load_chunk WHERE "
                                   "table_name = $1 AND sha256 = $2 AND done_by IS NULL AND EXISTS (SELECT FROM "
                                   "guard_load_file f WHERE f.table_name = $1 AND f.sha256 = $2 AND f.runs = $3) "
                                   "ORDER BY number LIMIT 1 FOR UPDATE"
                                 : "SELECT number, begin_offset, begin_line, end_offset FROM guard_load_chunk WHERE "
                                   "table_name = $1 AND sha256 = $2 AND done_by IS NULL AND EXISTS (SELECT FROM "
                                   "guard_load_file f WHERE f.table_name = $1 AND f.sha256 = $2 AND f.runs = $3) "
                                   "ORDER BY number LIMIT 1 FOR UPDATE SKIP LOCKED",
                             3, values);
    if (in_order) {
        guard_pq_exec(NULL, pq, LOCK_WAITS_NO_MORE);
    }
    if (PQntuples(row) == 0) {
        return 0;
    }
    w->chunk.number = pq_value(row, 0, 0);
    w->chunk.at = (load_position){pq_value(row, 0, 1), pq_value(row, 0, 2)};
    w->chunk.end = pq_value(row, 0, 3);
    return 1;
}

static void put_plain(guard_tx *tx, void *arg)
{
    pq_worker *w = arg;
    w->checking = 0;
    pq_copy_rows(w, tx);
    w->checking = 1;
    pq_copy_check(w);
}

/*
 * Rows as they come; where one of them fails, the transaction is over, and the chunk is loaded once more with care: in savepoints, and where a
 * constraint that is checked late then fails, all over again with more.
 */
static void put_rows(pq_worker *w, guard_tx *tx)
{
    guard_result result;
    w->loaded = 0;
    pq_rows_begin(w);
    if (!pq_rows_read(w, 1) && w->chunk.count == 0) {
        return;
    }
    if (!w->is_careful) {
        put_plain(tx, w);
        return;
    }
    if (guard_tx_nested(tx, put_plain, w, &result) == GUARD_RELEASED) {
        return;
    }
    if (!w->checking || !pq_copy_is_row_fault(&result.error)) {
        guard_panic_error(&result.error);
    }
    w->rejects.count = w->chunk.malformed;
    w->loaded = 0;
    pq_deferred_rows(w, tx);
}

static void finish_chunk(pq_worker *w, guard_pq *pq)
{
    GUARD_AUTO(s);
    const char *values[] = {w->target->table,        w->load->record.digest,         pq_number(s, w->chunk.number),
                            pq_number(s, w->loaded), pq_number(s, w->rejects.count), w->token};
    pq_query(NULL, pq,
             "UPDATE guard_load_chunk SET rows_loaded = $4, rows_rejected = $5, done_by = $6, done = now() WHERE "
             "table_name = $1 AND sha256 = $2 AND number = $3",
             6, values);
}

static void load_chunk(guard_tx *tx, void *arg)
{
    pq_worker *w = arg;
    guard_pq *pq = guard_pq_of(tx);
    GUARD_AUTO(s);
    double began = clock_seconds();
    w->rejects = (pq_rejects){.scope = s};
    w->claimed = claim(w, pq);
    if (!w->claimed) {
        return;
    }
    pq_way_begin(w);
    put_rows(w, tx);
    save_rejects(w);
    finish_chunk(w, pq);
    source_check_unchanged(w->source);
    w->pace = (double)w->chunk.read / (clock_seconds() - began + 1e-6);
}

/* ------------------------------------------------------------------------------------------------ waiting -- */

/* Waits until the chunk that is next in the hands of another worker is over, but not for long. */
static void wait_for_others(guard_tx *tx, void *arg)
{
    pq_worker *w = arg;
    guard_pq *pq = guard_pq_of(tx);
    const char *values[] = {w->target->table, w->load->record.digest};
    guard_pq_exec(NULL, pq, LOCK_WAITS);
    pq_query(NULL, pq,
             "SELECT 1 FROM guard_load_chunk WHERE table_name = $1 AND sha256 = $2 AND done_by IS NULL ORDER BY number "
             "LIMIT 1 FOR UPDATE",
             2, values);
}

/* --------------------------------------------------------------------------------------------- one worker -- */

static void account(pq_worker *w)
{
    load_job *load = w->team->load;
    pthread_mutex_lock(&w->team->mutex);
    load->totals->read += w->chunk.read;
    load->totals->loaded += w->loaded;
    load->totals->rejected += w->rejects.count;
    load->totals->batches++;
    load->rows += w->chunk.read;
    load->record.loaded += w->loaded;
    load->record.rejected += w->rejects.count;
    uint64_t rows = load->rows;
    pthread_mutex_unlock(&w->team->mutex);
    if (w->leads) {
        progress_look(load->progress, w->chunk.end, rows);
    }
}

static int has_failed(pq_worker *w)
{
    pthread_mutex_lock(&w->team->mutex);
    int failed = w->team->failed;
    pthread_mutex_unlock(&w->team->mutex);
    return failed;
}

/* Panics with the error, unless it is only that a lock was not to be had in time. */
static void allow_waiting(pq_worker *w, guard_outcome outcome, const guard_result *result)
{
    if (outcome == GUARD_COMMITTED ||
        (outcome == GUARD_ROLLED_BACK && strcmp(result->error.sqlstate, LOCK_NOT_AVAILABLE) == 0)) {
        return;
    }
    if (outcome == GUARD_IN_DOUBT) {
        pthread_mutex_lock(&w->team->mutex);
        w->team->in_doubt = 1;
        pthread_mutex_unlock(&w->team->mutex);
        guard_panic(EXIT_FAILED,
                    "whether the last batch is committed is not known; the same command goes on from what is: %s",
                    result->error.message);
    }
    guard_panic_error(&result->error);
}

/* The chunk was rolled back for a row's fault, or for how its rows went in: it is to be loaded in another way. */
static int is_to_be_changed(pq_worker *w, guard_outcome outcome, const guard_result *result)
{
    if (outcome != GUARD_ROLLED_BACK || !w->claimed || w->is_careful) {
        return 0;
    }
    if (pq_copy_is_refused(&result->error)) {
        return pq_way_refuse(w);
    }
    w->is_careful = pq_copy_is_row_fault(&result->error);
    if (w->is_careful) {
        pq_copy_note_fault(w, &result->error);
    }
    return w->is_careful;
}

static void new_token(pq_worker *w)
{
    static __thread uint64_t session[2];
    if (w->tokens++ == 0 && getrandom(session, sizeof session, 0) != (ssize_t)sizeof session) {
        guard_panic_os("getrandom");
    }
    snprintf(w->token, sizeof w->token, "%016" PRIx64 "%08" PRIx64 "-%" PRIx64, session[0], session[1] & 0xFFFFFFFF,
             w->tokens);
}

static void work(pq_worker *w)
{
    guard_result result;
    if (w->begins) {
        stop_check();
        pq_link_run(w->link, pq_cut_advance, w);
    }
    while (!w->complete && !has_failed(w)) {
        stop_check();
        new_token(w);
        w->claimed = 0;
        guard_outcome outcome = pq_link_transact(
            w->link, load_chunk, w, "SELECT 1 FROM guard_load_chunk WHERE done_by = $1", w->token, &result);
        if (is_to_be_changed(w, outcome, &result)) {
            continue;
        }
        allow_waiting(w, outcome, &result);
        if (outcome == GUARD_COMMITTED && w->claimed) {
            w->is_careful = w->rejects.count > 0 || w->target->is_checked_late; /* where rows are bad, more will be */
            account(w);
            if (w->chunk.number != w->chunks_seen) {
                continue;
            }
        }
        if (outcome == GUARD_COMMITTED) {
            pq_link_run(w->link, pq_cut_advance, w);
        }
        if (w->waits && !w->claimed) { /* none was free: those that are left are in others' hands */
            outcome = pq_link_transact(w->link, wait_for_others, w, NULL, NULL, &result);
            allow_waiting(w, outcome, &result);
        }
    }
}

static void add_counts(void *arg)
{
    pq_worker *w = arg;
    load_totals *totals = w->team->load->totals;
    pthread_mutex_lock(&w->team->mutex);
    totals->retries += w->link->retries;
    totals->resolved += w->link->resolved;
    pthread_mutex_unlock(&w->team->mutex);
    w->link->retries = w->link->resolved = 0; /* the first worker's link lives on */
}

static void run_worker(void *arg)
{
    pq_worker *w = arg;
    const load_options *o = w->load->options;
    GUARD_AUTO(s);
    w->scope = s;
    w->source = source_share(s, w->load->source);
    w->reader = reader_open(s, source_read, w->source, o->delimiter, o->max_row);
    w->cutter = reader_open(s, source_peek, w->source, o->delimiter, o->max_row);
    w->link = w->leads ? w->target->link : pq_link_open_again(s, o->database, (double)o->retry_for);
    guard_defer(s, add_counts, w);
    work(w);
}

static void *start_worker(void *arg)
{
    pq_worker *w = arg;
    guard_error error;
    if (guard_run(run_worker, w, &error) != 0) {
        pthread_mutex_lock(&w->team->mutex);
        if (w->team->failed) {
            guard_error_attach(&w->team->error, &error, GUARD_ATTACHED);
        } else {
            w->team->error = error;
        }
        w->team->failed = 1;
        pthread_mutex_unlock(&w->team->mutex);
    }
    return NULL;
}

/* ---------------------------------------------------------------------------------------------- all workers -- */

typedef struct pq_thread {
    pthread_t thread;
    pq_worker worker;
} pq_thread;

static void join_thread(void *arg)
{
    pthread_join(((pq_thread *)arg)->thread, NULL);
}

/* Worker 0 is this thread, and has its connection. */
static void run_team(pq_team *team, size_t count, int begins)
{
    GUARD_AUTO(s);
    pq_thread *threads = guard_memory_allocate_array(s, count, sizeof *threads, NULL);
    for (size_t i = 0; i < count; i++) {
        threads[i].worker = (pq_worker){.team = team,
                                        .target = team->target,
                                        .load = team->load,
                                        .leads = i == 0,
                                        .begins = i == 0 && begins,
                                        .is_careful = team->target->is_checked_late};
    }
    for (size_t i = 1; i < count; i++) {
        guard_reserve(s, 1);
        int error = pthread_create(&threads[i].thread, NULL, start_worker, &threads[i].worker);
        if (error != 0) {
            pthread_mutex_lock(&team->mutex);
            team->failed = 1; /* those that run end after their chunk */
            pthread_mutex_unlock(&team->mutex);
            guard_panic_in(GUARD_OS, error, "worker %zu cannot be started: %s", i + 1, strerror(error));
        }
        guard_defer(s, join_thread, &threads[i]);
    }
    start_worker(&threads[0].worker);
}

static void keep_given_up(pq_team *team)
{
    if (team->given_up == NULL) {
        return;
    }
    load_target *target = team->target;
    guard_defer(target->scope, free, team->given_up);
    target->given_up = team->given_up;
    target->given_up_count = team->given_up_count;
    target->given_up_digest = guard_memory_copy(target->scope, team->load->record.digest, NULL);
}

void pq_worker_load(load_target *target, load_job *load)
{
    pq_team team = {.target = target, .load = load, .mutex = PTHREAD_MUTEX_INITIALIZER};
    int begins = load->fresh;
    if (begins) {
        pq_record_begin(target, &load->record);
        load->fresh = 0;
    }
    run_team(&team, target->refers_to_itself ? 1 : load->options->workers, begins);
    keep_given_up(&team);
    if (team.failed) {
        load->totals->outcome = team.in_doubt ? "in_doubt" : "rolled_back";
        guard_panic_error(&team.error);
    }
    load->at_end = 1;
    /* With what other loaders did. */
    GUARD_AUTO(s);
    load_record known;
    if (pq_record_find(target, s, load->record.digest, &known)) {
        load->record.loaded = known.loaded;
        load->record.rejected = known.rejected;
    }
}
