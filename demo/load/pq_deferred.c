/* SPDX-License-Identifier: MIT */
/*
 * A constraint that is checked late, by the end of the chunk's transaction, failed: rows go in again, and each try checks it. A single
 * row that fails there may wait for another one of the chunk, so it is set aside until
 *
 *     it can be put in by itself, because its parent is in by now
 *     all that are left can be put in together: they refer to each other
 *     or, put in together, the server says of it what it said of it alone: then it is rejected, and the others go on
 */
#include "pq_target.h"

#include <string.h>

#include <guard/guard_file.h>

typedef struct pq_suspect {
    size_t row;
    guard_error error; /* of the row alone */
} pq_suspect;

typedef struct pq_suspects {
    pq_worker *worker;
    pq_suspect *list;
    size_t count;
    size_t room;
    guard_ticket ticket;
    int checking; /* putting them in together failed at the check */
    size_t row;   /* else at this one */
} pq_suspects;

static void add_suspect(guard_scope *scope, pq_suspects *all, size_t row, const guard_error *error)
{
    if (all->count == all->room) {
        all->room = all->room * 2 + 16;
        all->list = guard_memory_resize(scope, all->list, all->room * sizeof *all->list, &all->ticket);
    }
    all->list[all->count++] = (pq_suspect){row, *error};
}

static void drop_suspect(pq_suspects *all, size_t i)
{
    all->count--;
    memmove(all->list + i, all->list + i + 1, (all->count - i) * sizeof *all->list);
}

static void reject_suspect(pq_suspects *all, size_t i)
{
    pq_copy_reject(all->worker, all->list[i].row, &all->list[i].error);
    drop_suspect(all, i);
}

static void put_apart(guard_scope *scope, pq_suspects *all, guard_tx *tx)
{
    pq_worker *w = all->worker;
    pq_try attempt = {.worker = w, .check = 1};
    size_t window = w->chunk.count;
    while (attempt.from < w->chunk.count) {
        size_t left = w->chunk.count - attempt.from;
        attempt.to = attempt.from + (window < left ? window : left);
        if (pq_copy_try(&attempt, tx)) {
            w->loaded += attempt.to - attempt.from;
            attempt.from = attempt.to;
            window *= 2;
        } else if (attempt.to - attempt.from > 1) {
            window = (attempt.to - attempt.from) / 2;
        } else {
            if (attempt.checking) {
                add_suspect(scope, all, attempt.from, &attempt.result.error);
            } else {
                pq_copy_reject(w, attempt.from, &attempt.result.error);
            }
            attempt.from = attempt.to;
        }
    }
}

/* Takes those that can be put in by now, the last one first: a row mostly waits for one behind it. Returns whether there was one. */
static int put_ready(pq_suspects *all, guard_tx *tx)
{
    int taken = 0;
    for (size_t i = all->count; i > 0; i--) {
        size_t row = all->list[i - 1].row;
        pq_try attempt = {.worker = all->worker, .from = row, .to = row + 1, .check = 1};
        if (pq_copy_try(&attempt, tx)) {
            all->worker->loaded++;
            drop_suspect(all, i - 1);
            taken = 1;
        } else {
            all->list[i - 1].error = attempt.result.error;
        }
    }
    return taken;
}

static void put_together(guard_tx *tx, void *arg)
{
    pq_suspects *all = arg;
    (void)tx;
    all->checking = 0;
    for (size_t i = 0; i < all->count; i++) {
        all->row = all->list[i].row;
        pq_copy_put(all->worker, all->row, all->row + 1);
    }
    all->checking = 1;
    pq_copy_check(all->worker);
    guard_pq_exec(NULL, all->worker->link->pq, "SET CONSTRAINTS ALL DEFERRED");
}

static int is_accused(const pq_suspects *all, const pq_suspect *suspect, const guard_error *error)
{
    if (!all->checking) {
        return suspect->row == all->row;
    }
    return strcmp(suspect->error.constraint, error->constraint) == 0 &&
           strcmp(suspect->error.message, error->message) == 0 && strcmp(suspect->error.detail, error->detail) == 0;
}

/* Takes them together, or rejects some. Where the server says of none of them what it said of it alone, all are rejected. */
static void sieve(pq_suspects *all, guard_tx *tx)
{
    guard_result result;
    if (guard_tx_nested(tx, put_together, all, &result) == GUARD_RELEASED) {
        all->worker->loaded += all->count;
        all->count = 0;
        return;
    }
    if (!pq_copy_is_row_fault(&result.error)) {
        guard_panic_error(&result.error);
    }
    size_t before = all->count;
    for (size_t i = all->count; i > 0; i--) {
        if (is_accused(all, &all->list[i - 1], &result.error)) {
            reject_suspect(all, i - 1);
        }
    }
    while (all->count == before && all->count > 0) {
        reject_suspect(all, --before);
    }
}

void pq_deferred_rows(pq_worker *w, guard_tx *tx)
{
    GUARD_AUTO(s);
    pq_suspects all = {.worker = w};
    put_apart(s, &all, tx);
    while (all.count > 0) {
        while (put_ready(&all, tx)) {
        }
        if (all.count > 0) {
            sieve(&all, tx);
        }
    }
}
