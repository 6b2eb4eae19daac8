/* SPDX-License-Identifier: MIT */
#include "rejects.h"

#include <csv.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <guard/guard_file.h>

typedef struct load_part {
    char digest[SOURCE_DIGEST + 1];
    const char *name;
} load_part;

struct load_rejects {
    guard_scope *scope;
    guard_file_replace *file;
    int published;
    load_part *parts;
    size_t part_count;
    guard_ticket parts_ticket;
};

typedef struct load_writing {
    FILE *stream;
    const char *name;
} load_writing;

load_rejects *rejects_open(guard_scope *scope, const char *path)
{
    if (path == NULL) {
        return NULL;
    }
    load_rejects *r = guard_memory_allocate_array(scope, 1, sizeof *r, NULL);
    r->scope = scope;
    r->file = guard_file_replace_begin(scope, path, NULL);
    return r;
}

void rejects_add(load_rejects *r, const char *digest, const char *name)
{
    if (r == NULL) {
        return;
    }
    for (size_t i = 0; i < r->part_count; i++) {
        if (strcmp(r->parts[i].digest, digest) == 0) {
            return;
        }
    }
    r->parts = guard_memory_resize(r->scope, r->parts, (r->part_count + 1) * sizeof *r->parts, &r->parts_ticket);
    load_part *part = &r->parts[r->part_count++];
    memcpy(part->digest, digest, sizeof part->digest);
    part->name = name;
}

/* As CSV: in quotes only where it must be. */
static void write_field(FILE *stream, const char *text, size_t size)
{
    int plain = size > 0 && text[0] != ' ' && text[size - 1] != ' ';
    for (size_t i = 0; plain && i < size; i++) {
        plain = text[i] != ',' && text[i] != '"' && text[i] != '\n' && text[i] != '\r';
    }
    /* A stream that failed says so when it is published. */
    if (plain) {
        fwrite(text, 1, size, stream);
    } else {
        csv_fwrite(stream, text, size);
    }
}

static void write_reject(void *arg, const load_reject *reject)
{
    const load_writing *w = arg;
    write_field(w->stream, w->name, strlen(w->name));
    fprintf(w->stream, ",%" PRIu64 ",", reject->at.line);
    write_field(w->stream, reject->code, strlen(reject->code));
    fputc(',', w->stream);
    write_field(w->stream, reject->reason, strlen(reject->reason));
    fputc(',', w->stream);
    write_field(w->stream, reject->raw, reject->raw_size);
    fputc('\n', w->stream);
}

void rejects_publish(load_rejects *r, const target_driver *driver, load_target *target)
{
    if (r == NULL || r->published) {
        return;
    }
    r->published = 1;
    load_writing w = {guard_file_replace_stream(r->file), NULL};
    fputs("file,line,code,reason,row\n", w.stream);
    for (size_t i = 0; i < r->part_count; i++) {
        w.name = r->parts[i].name;
        driver->each_reject(target, r->parts[i].digest, write_reject, &w);
    }
    guard_file_replace_commit(r->file);
}
