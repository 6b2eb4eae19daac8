/* SPDX-License-Identifier: MIT */
/*
 * A foreign key is checked when all rows of a COPY are in, and the error names its key but no row. So when one has failed the server is
 * asked, for each foreign key, which rows of the chunk have keys that are not there. Where it cannot be asked so (a value is none of
 * the key's type, or the role may not read the other table) nobody is accused, and rows are found by halving.
 */
#include "pq_target.h"

#include <stdio.h>
#include <string.h>

#include <guard/guard_file.h>

typedef struct accusation {
    pq_worker *worker;
    const pq_foreign_key *key;
    const size_t *order;
    size_t from;
    size_t to;
    char *accused; /* of each row of the chunk */
} accusation;

/* The place of a column among the fields of a row as COPY takes them, or PLAN_SKIP where the file has none for it. */
static size_t field_of(const pq_worker *w, size_t column)
{
    const load_plan *plan = w->load->plan;
    size_t place = 0;
    for (size_t field = 0; field < plan->field_count; field++) {
        if (plan->columns[field] == column) {
            return place;
        }
        place += plan->columns[field] != PLAN_SKIP;
    }
    return PLAN_SKIP;
}

/* A field as COPY takes it, as an element of an array; returns behind what was written. */
static char *write_element(char *to, const char *field, const char *end)
{
    if (end - field == 2 && field[0] == '\\' && field[1] == 'N') {
        memcpy(to, "NULL", 4);
        return to + 4;
    }
    *to++ = '"';
    for (; field < end; field++) {
        char c = *field;
        if (c == '\\') {
            field++;
            c = (char)(*field == 'n' ? '\n' : *field == 'r' ? '\r' : *field == 't' ? '\t' : *field);
        }
        if (c == '"' || c == '\\') {
            *to++ = '\\';
        }
        *to++ = c;
    }
    *to++ = '"';
    return to;
}

static const char *write_array(guard_scope *scope, const accusation *a, size_t place)
{
    const pq_chunk *chunk = &a->worker->chunk;
    /* Each byte twice at most, and for each row quotes and what separates it, or NULL. */
    char *array = guard_memory_allocate(scope, 2 * chunk->text_size + 6 * (a->to - a->from) + 3, NULL);
    char *to = array;
    *to++ = '{';
    for (size_t i = a->from; i < a->to; i++) {
        const char *field = chunk->text + chunk->begins[a->order[i]];
        for (size_t skip = 0; skip < place; skip++) {
            field = strchr(field, '\t') + 1; /* those within a field are escaped */
        }
        if (i > a->from) {
            *to++ = ',';
        }
        to = write_element(to, field, field + strcspn(field, "\t\n"));
    }
    *to++ = '}';
    *to = '\0';
    return array;
}

static void ask(guard_tx *tx, void *arg)
{
    const accusation *a = arg;
    GUARD_AUTO(s);
    const char **values = guard_memory_allocate_array(s, a->key->column_count, sizeof *values, NULL);
    for (size_t i = 0; i < a->key->column_count; i++) {
        size_t place = field_of(a->worker, a->key->columns[i]);
        if (place == PLAN_SKIP) {
            return;
        }
        values[i] = write_array(s, a, place);
    }
    PGresult *rows = pq_query(s, guard_pq_of(tx), a->key->sql, (int)a->key->column_count, values);
    for (int i = 0; i < PQntuples(rows); i++) {
        a->accused[a->order[a->from + pq_value(rows, i, 0) - 1]] = 1;
    }
}

/* The question was not possible, which says nothing about the rows. */
static int is_no_answer(const guard_error *error)
{
    return pq_copy_is_row_fault(error) || (error->domain == GUARD_PQ && strncmp(error->sqlstate, "42", 2) == 0);
}

size_t pq_accuse(pq_worker *w, guard_tx *tx, size_t *order, size_t from, size_t to)
{
    GUARD_AUTO(s);
    accusation a = {.worker = w, .order = order, .from = from, .to = to};
    a.accused = guard_memory_allocate_array(s, w->chunk.count, 1, NULL);
    w->chunk.text[w->chunk.text_size] = '\0';
    for (size_t i = 0; i < w->target->key_count; i++) {
        guard_result result;
        a.key = &w->target->keys[i];
        if (guard_tx_nested(tx, ask, &a, &result) != GUARD_RELEASED && !is_no_answer(&result.error)) {
            guard_panic_error(&result.error);
        }
    }
    size_t *sorted = guard_memory_allocate_array(s, to - from, sizeof *sorted, NULL);
    size_t count = 0;
    for (int accused = 0; accused < 2; accused++) {
        for (size_t i = from; i < to; i++) {
            if (a.accused[order[i]] == accused) {
                sorted[count++] = order[i];
            }
        }
    }
    memcpy(order + from, sorted, count * sizeof *sorted);
    size_t guilty = 0;
    for (size_t i = from; i < to; i++) {
        guilty += a.accused[order[i]] != 0;
    }
    return guilty;
}
