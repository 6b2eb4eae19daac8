/* SPDX-License-Identifier: MIT */
/*
 * A constraint that is checked late, by the end of the chunk's transaction, failed: rows go in again, and each try checks it. A single
 * row that fails there may wait for another one of the chunk, so it is a suspect until
 *
 *     it can be put in by itself, because its parent is in by now
 *     it can be put in together with other suspects: they refer to each other
 *     or no such company is found: then it is rejected
 *
 * Company is found by rounds. All suspects are put in together; where that fails, one of them at least is set aside, and the rest is tried:
 *
 *     COPY names a row                                  that row: it conflicts with another suspect
 *     the error is what a suspect has alone             that suspect; it is rejected at once when nobody was set aside before
 *     neither: an error that only the company has       the last of a smallest company that still has it
 *
 * A round that takes rows gives those that it set aside another chance. One that takes nothing and rejects nothing is done once more
 * with the first that it set aside at the head, since what that conflicts with may be what is bad; when that has been tried, it is
 * rejected. So the rounds come to an end.
 */
#include "pq_target.h"

#include <string.h>

#include <guard/guard_file.h>

typedef struct pq_suspect {
    size_t row;
    int aside;
    int preferred;     /* it has been the first of a round since rows were last taken */
    guard_error error; /* of the row alone */
} pq_suspect;

typedef struct pq_suspects {
    pq_worker *worker;
    guard_tx *tx;
    pq_suspect *list;
    size_t count;
    size_t room;
    guard_ticket ticket;
} pq_suspects;

static void add_suspect(guard_scope *scope, pq_suspects *all, size_t row, const guard_error *error)
{
    if (all->count == all->room) {
        all->room = all->room * 2 + 16;
        all->list = guard_memory_resize(scope, all->list, all->room * sizeof *all->list, &all->ticket);
    }
    all->list[all->count++] = (pq_suspect){.row = row, .error = *error};
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

static void put_apart(guard_scope *scope, pq_suspects *all)
{
    pq_worker *w = all->worker;
    GUARD_AUTO(s);
    pq_try attempt = {.worker = w, .order = pq_copy_order(s, w), .check = 1};
    size_t window = w->chunk.count;
    while (attempt.from < w->chunk.count) {
        size_t left = w->chunk.count - attempt.from;
        attempt.to = attempt.from + (window < left ? window : left);
        if (pq_copy_try(&attempt, all->tx)) {
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
static int put_ready(pq_suspects *all)
{
    int taken = 0;
    for (size_t i = all->count; i > 0; i--) {
        pq_try attempt = {.worker = all->worker, .order = &all->list[i - 1].row, .to = 1, .check = 1};
        if (pq_copy_try(&attempt, all->tx)) {
            all->worker->loaded++;
            drop_suspect(all, i - 1);
            taken = 1;
        } else {
            all->list[i - 1].error = attempt.result.error;
        }
    }
    return taken;
}

/* ---------------------------------------------------------------------------------------------- a round -- */

/* Suspects that are tried together, as places in the list. */
typedef struct company {
    size_t *places;
    size_t count;
} company;

static company those_not_aside(guard_scope *scope, const pq_suspects *all)
{
    company c = {.places = guard_memory_allocate_array(scope, all->count + 1, sizeof *c.places, NULL)};
    for (size_t i = 0; i < all->count; i++) {
        if (!all->list[i].aside) {
            c.places[c.count++] = i;
        }
    }
    return c;
}

/* 1 and they are in the table, and no suspects any more; else 0 with attempt->result, ->checking and ->hint. */
static int put_together(pq_suspects *all, const company *c, pq_try *attempt)
{
    GUARD_AUTO(s);
    size_t *rows = guard_memory_allocate_array(s, c->count + 1, sizeof *rows, NULL);
    for (size_t i = 0; i < c->count; i++) {
        rows[i] = all->list[c->places[i]].row;
    }
    *attempt = (pq_try){.worker = all->worker, .order = rows, .to = c->count, .check = 1};
    int done = pq_copy_try(attempt, all->tx);
    attempt->order = NULL;
    if (done) {
        all->worker->loaded += c->count;
        for (size_t i = c->count; i > 0; i--) {
            drop_suspect(all, c->places[i - 1]);
        }
    }
    return done;
}

static int is_same_error(const guard_error *a, const guard_error *b)
{
    return strcmp(a->sqlstate, b->sqlstate) == 0 && strcmp(a->constraint, b->constraint) == 0 &&
           strcmp(a->message, b->message) == 0 && strcmp(a->detail, b->detail) == 0;
}

/*
 * Leaves out of the company whatever it has the same error without. 1 when some of it could be put in on the way. What stays is the
 * smallest in the sense that it has another error, or none, without any one of its rows.
 */
static int narrow(pq_suspects *all, company *c, const guard_error *error)
{
    GUARD_AUTO(s);
    company less = {.places = guard_memory_allocate_array(s, c->count, sizeof *less.places, NULL)};
    for (size_t step = (c->count + 1) / 2; step > 0; step = step > 1 ? (step + 1) / 2 : 0) {
        for (size_t from = 0; from < c->count && c->count > 1;) {
            size_t to = from + step < c->count ? from + step : c->count;
            less.count = 0;
            for (size_t i = 0; i < c->count; i++) {
                if (i < from || i >= to) {
                    less.places[less.count++] = c->places[i];
                }
            }
            pq_try attempt;
            if (less.count > 0 && put_together(all, &less, &attempt)) {
                return 1;
            }
            if (less.count > 0 && is_same_error(&attempt.result.error, error)) {
                memcpy(c->places, less.places, less.count * sizeof *less.places);
                c->count = less.count;
            } else {
                from = to;
            }
        }
    }
    return 0;
}

/* Sets aside, or rejects where `certain`, those that have this error alone too. Returns how many there were. */
static size_t take_accused(pq_suspects *all, const company *c, const guard_error *error, int certain)
{
    size_t accused = 0;
    for (size_t i = c->count; i > 0; i--) {
        size_t place = c->places[i - 1];
        if (is_same_error(&all->list[place].error, error)) {
            accused++;
            all->list[place].aside = 1;
            if (certain) {
                reject_suspect(all, place);
            }
        }
    }
    return accused;
}

/* Nothing came of the round: the suspect is preferred in the next one, or rejected if it has been. */
static void turn(pq_suspects *all, size_t i)
{
    pq_suspect suspect = all->list[i];
    if (suspect.preferred) {
        reject_suspect(all, i);
        return;
    }
    suspect.preferred = 1;
    memmove(all->list + 1, all->list, i * sizeof *all->list);
    all->list[0] = suspect;
}

/* Returns 1 when rows were taken. */
static int run_round(pq_suspects *all)
{
    size_t before = all->count;
    size_t first = before; /* set aside */
    for (size_t i = 0; i < all->count; i++) {
        all->list[i].aside = 0;
    }
    for (;;) {
        GUARD_AUTO(s);
        pq_try attempt;
        company c = those_not_aside(s, all);
        if (c.count == 0) {
            break;
        }
        if (put_together(all, &c, &attempt)) {
            return 1;
        }
        size_t place = c.places[c.count - 1];
        if (!attempt.checking && attempt.hint < c.count) {
            place = c.places[attempt.hint];
        } else if (attempt.checking &&
                   take_accused(all, &c, &attempt.result.error, first == before && c.count == all->count) > 0) {
            continue;
        } else if (narrow(all, &c, &attempt.result.error)) {
            return 1;
        } else {
            place = c.places[c.count - 1];
        }
        all->list[place].aside = 1;
        first = first == before ? place : first;
    }
    if (all->count == before) {
        turn(all, first < before ? first : 0);
    }
    return 0;
}

void pq_deferred_rows(pq_worker *w, guard_tx *tx)
{
    GUARD_AUTO(s);
    pq_suspects all = {.worker = w, .tx = tx};
    put_apart(s, &all);
    int taken = 1;
    while (all.count > 0) {
        while (taken && put_ready(&all)) {
        }
        for (size_t i = 0; taken && i < all.count; i++) {
            all.list[i].preferred = 0;
        }
        taken = all.count > 0 && run_round(&all);
    }
}
