/* SPDX-License-Identifier: MIT */
#include "pq_target.h"

#include <stdio.h>
#include <string.h>

#include <guard/guard_file.h>

#include "progress.h"

void pq_reject_add(pq_worker *w, load_position at, const char *code, const char *reason)
{
    pq_rejects *rejects = &w->rejects;
    if (rejects->count == rejects->room) {
        rejects->room = rejects->room > 0 ? rejects->room * 2 : 64;
        rejects->list = guard_memory_resize(rejects->scope, rejects->list, rejects->room * sizeof *rejects->list,
                                            &rejects->ticket);
    }
    const char *text = guard_memory_copy(rejects->scope, reason, NULL);
    rejects->list[rejects->count++] = (pq_reject){.at = at, .code = code, .reason = text};
    pq_worker_check_rejects(w, code, text);
}

static void make_room(pq_worker *w, size_t size)
{
    pq_chunk *chunk = &w->chunk;
    if (chunk->text_room - chunk->text_size <= size) { /* and a NUL */
        chunk->text_room = chunk->text_room * 2 + size;
        chunk->text = guard_memory_resize(w->scope, chunk->text, chunk->text_room, &chunk->text_ticket);
    }
    if (chunk->count + 2 > chunk->room) {
        chunk->room = chunk->room * 2 + 1024;
        chunk->begins = guard_memory_resize(w->scope, chunk->begins, chunk->room * sizeof *chunk->begins,
                                            &chunk->begins_ticket);
        chunk->places = guard_memory_resize(w->scope, chunk->places, chunk->room * sizeof *chunk->places,
                                            &chunk->places_ticket);
    }
}

/* The byte that stands for `c` behind a backslash, or 0 (https://www.postgresql.org/docs/15/sql-copy.html, text format). */
static char escape_of(char c)
{
    switch (c) {
    case '\\':
        return '\\';
    case '\n':
        return 'n';
    case '\r':
        return 'r';
    case '\t':
        return 't';
    default:
        return 0;
    }
}

static char *write_field(char *to, const load_field *field, const char *null_text)
{
    int null = *null_text == '\0' ? field->text == NULL : field->text != NULL && strcmp(field->text, null_text) == 0;
    if (null) {
        *to++ = '\\';
        *to++ = 'N';
        return to;
    }
    for (size_t i = 0; i < field->size; i++) {
        char escape = escape_of(field->text[i]);
        if (escape != 0) {
            *to++ = '\\';
        }
        *to++ = escape != 0 ? escape : field->text[i];
    }
    return to;
}

static void add_row(pq_worker *w, const load_row *row)
{
    const load_plan *plan = w->load->plan;
    /* Each byte at most twice, and for each field a NULL and what separates it. */
    make_room(w, 2 * row->raw_size + 3 * row->count + 1);
    pq_chunk *chunk = &w->chunk;
    char *to = chunk->text + chunk->text_size;
    int first = 1;
    for (size_t i = 0; i < row->count; i++) {
        if (plan->columns[i] != PLAN_SKIP) {
            if (!first) {
                *to++ = '\t';
            }
            first = 0;
            to = write_field(to, &row->fields[i], w->load->options->null_text);
        }
    }
    *to++ = '\n';
    chunk->places[chunk->count++] = row->at;
    chunk->text_size = (size_t)(to - chunk->text);
    chunk->begins[chunk->count] = chunk->text_size;
}

/* The codes of what the reader finds, in the order of row_fault. */
static const char *const fault_codes[] = {NULL, "malformed", "too_long", "nul", "encoding"};

static void take_row(pq_worker *w, const load_row *row)
{
    size_t wanted = w->load->plan->field_count;
    if (row->fault != ROW_SOUND) {
        pq_reject_add(w, row->at, fault_codes[row->fault], row->reason);
    } else if (row->count != wanted) {
        char reason[100];
        snprintf(reason, sizeof reason, "%zu field%s, not %zu", row->count, row->count == 1 ? "" : "s", wanted);
        pq_reject_add(w, row->at, "columns", reason);
    } else {
        add_row(w, row);
    }
}

void pq_rows_begin(pq_worker *w)
{
    pq_chunk *chunk = &w->chunk;
    chunk->read = chunk->count = chunk->text_size = 0;
    make_room(w, 0);
    chunk->begins[0] = 0;
    reader_seek(w->reader, chunk->at);
}

int pq_rows_read(pq_worker *w, size_t size)
{
    pq_chunk *chunk = &w->chunk;
    size_t before = chunk->text_size;
    load_row row;
    while (reader_tell(w->reader).offset < chunk->end) {
        if (chunk->text_size - before >= size) {
            return 1;
        }
        if (!reader_next(w->reader, &row)) {
            break;
        }
        chunk->read++;
        take_row(w, &row);
    }
    if (reader_tell(w->reader).offset != chunk->end) {
        guard_panic(EXIT_FAILED, "%s changed while it was being loaded", source_name(w->source));
    }
    chunk->malformed = w->rejects.count;
    return 0;
}
