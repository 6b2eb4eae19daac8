/* SPDX-License-Identifier: MIT */
/*
 * A foreign key is checked when all rows of a COPY are in, and the error names its key but no row. So when one has failed the server is
 * asked, for each foreign key, which rows of the chunk have keys that are not there; which keys there are it is asked
 * once, when the first has failed. Where it cannot be asked so (a value is none of the key's type, or the role may not read the other
 * table) nobody is accused, and rows are found by halving.
 */
#include "pq_target.h"

#include <stdio.h>
#include <string.h>

#include <guard/guard_file.h>

/* ------------------------------------------------------------------------------------------------- the keys -- */

/* The server writes the questions: with its own names, types and quoting. */
static void read_keys(guard_tx *tx, void *arg)
{
    static const char sql[] =
        "SELECT format('SELECT n FROM unnest(%s) WITH ORDINALITY AS f(%s, n) WHERE %s AND NOT EXISTS (SELECT FROM %s p "
        "WHERE %s)', string_agg(format('$%s::text[]', i), ', ' ORDER BY i), string_agg(format('c%s', i), ', ' ORDER BY "
        "i), "
        "string_agg(format('c%s IS NOT NULL', i), ' AND ' ORDER BY i), k.confrelid::regclass, "
        "string_agg(format('p.%I = f.c%s::%s', r.attname, i, format_type(c.atttypid, c.atttypmod)), ' AND ' ORDER BY "
        "i)), "
        "k.oid FROM pg_constraint k CROSS JOIN LATERAL unnest(k.conkey, "
        "k.confkey) WITH ORDINALITY AS u(con, ref, i) JOIN pg_attribute c ON c.attrelid = k.conrelid AND c.attnum = "
        "con "
        "JOIN pg_attribute r ON r.attrelid = k.confrelid AND r.attnum = ref WHERE k.conrelid = $1::oid AND k.contype = "
        "'f' AND NOT k.condeferred AND k.confrelid <> k.conrelid AND k.confmatchtype = 's' GROUP BY k.oid, k.confrelid";
    pq_worker *w = arg;
    const load_target *target = w->target;
    guard_pq *pq = guard_pq_of(tx);
    GUARD_AUTO(s);
    PGresult *rows = pq_query(s, pq, sql, 1, &target->oid);
    size_t count = (size_t)PQntuples(rows);
    w->keys = guard_memory_allocate_array(w->scope, count + 1, sizeof *w->keys, NULL);
    for (size_t i = 0; i < count; i++) {
        pq_foreign_key *key = &w->keys[i];
        const char *oid = PQgetvalue(rows, (int)i, 1);
        PGresult *columns = pq_query(s, pq,
                                     "SELECT c.attname FROM pg_constraint k CROSS JOIN LATERAL unnest(k.conkey) WITH "
                                     "ORDINALITY AS u(con, i) JOIN pg_attribute c ON c.attrelid = k.conrelid AND "
                                     "c.attnum = con WHERE k.oid = $1::oid ORDER BY i",
                                     1, &oid);
        key->sql = guard_memory_copy(w->scope, PQgetvalue(rows, (int)i, 0), NULL);
        key->column_count = (size_t)PQntuples(columns);
        key->columns = guard_memory_allocate_array(w->scope, key->column_count, sizeof *key->columns, NULL);
        for (size_t c = 0; c < key->column_count; c++) {
            key->columns[c] = PLAN_SKIP - 1; /* a generated one: no field has it */
            for (size_t all = 0; all < target->column_count; all++) {
                if (strcmp(target->columns[all].name, PQgetvalue(columns, (int)c, 0)) == 0) {
                    key->columns[c] = all;
                }
            }
        }
    }
    w->key_count = count;
    w->keys_known = 1;
}

/* ------------------------------------------------------------------------------------------------- the rows -- */

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
    guard_result result;
    if (!w->keys_known && guard_tx_nested(tx, read_keys, w, &result) != GUARD_RELEASED &&
        !is_no_answer(&result.error)) {
        guard_panic_error(&result.error);
    }
    for (size_t i = 0; i < w->key_count; i++) {
        a.key = &w->keys[i];
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
