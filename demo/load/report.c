/* SPDX-License-Identifier: MIT */
#include "report.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistr.h>

#include <guard/guard_file.h>

static void release_json(void *json)
{
    json_decref(json);
}

/* Values that jansson could not make are NULL, which it notices where they are put into another. */
static json_t *checked(json_t *json)
{
    if (json == NULL) {
        guard_panic_in(GUARD_MEMORY, ENOMEM, "no memory for JSON");
    }
    return json;
}

/* A file's name may be any bytes, JSON holds UTF-8 only: other bytes become U+FFFD. */
static json_t *json_name(guard_scope *scope, const char *name)
{
    size_t size = strlen(name);
    char *text = guard_memory_allocate(scope, 3 * size + 1, NULL);
    size_t used = 0;
    while (size > 0) {
        int length = u8_mblen((const uint8_t *)name, size);
        if (length > 0) {
            memcpy(text + used, name, (size_t)length);
            used += (size_t)length;
        } else {
            memcpy(text + used, "\xEF\xBF\xBD", 3);
            used += 3;
            length = 1;
        }
        name += length;
        size -= (size_t)length;
    }
    return json_stringn(text, used);
}

static void print_json(json_t *json)
{
    if (json_dumpf(json, stdout, JSON_COMPACT) != 0 || fputc('\n', stdout) == EOF) {
        guard_panic_os("standard output cannot be written");
    }
    command_line_flush();
}

void report_totals(const load_totals *t, double seconds)
{
    GUARD_AUTO(s);
    json_t *json = checked(json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:b, s:I, s:I, s:I, s:f, s:s}", "files", (json_int_t)t->files, "rows_read",
        (json_int_t)t->read, "rows_loaded", (json_int_t)t->loaded, "rows_rejected", (json_int_t)t->rejected, "batches",
        (json_int_t)t->batches, "resumed", t->resumed, "workers", (json_int_t)t->workers, "retries",
        (json_int_t)t->retries, "resolved", (json_int_t)t->resolved, "seconds", seconds, "outcome", t->outcome));
    guard_defer(s, release_json, json);
    print_json(json);
}

/* ------------------------------------------------------------------------------------------------ status -- */

typedef struct load_status {
    const load_options *options;
    json_t *files; /* NULL: as text */
    size_t shown;
} load_status;

/* Whether the user asked for this one. */
static int is_wanted(const load_options *o, const load_record *record)
{
    GUARD_AUTO(s);
    int wanted = o->file_count == 0;
    for (size_t i = 0; i < o->file_count && !wanted; i++) {
        wanted = strcmp(source_path_of(s, o->files[i], o->name), record->path) == 0;
    }
    return wanted;
}

static void print_record(const load_record *r)
{
    char how_far[80] = "complete";
    if (!r->complete) {
        snprintf(how_far, sizeof how_far, "stopped before line %" PRIu64 " (%.1f %%)", r->at.line,
                 r->size > 0 ? 100.0 * (double)r->at.offset / (double)r->size : 0.0);
    }
    printf("%s: %s, %" PRIu64 " rows loaded, %" PRIu64
           " rejected, %s UTC\n    path %s\n    sha256 %s\n    options %s\n",
           r->name, how_far, r->loaded, r->rejected, r->updated, r->path, r->digest, r->meaning);
}

static void show_record(void *arg, const load_record *r)
{
    load_status *status = arg;
    if (!is_wanted(status->options, r)) {
        return;
    }
    status->shown++;
    if (status->files == NULL) {
        print_record(r);
        return;
    }
    GUARD_AUTO(s);
    json_t *file = json_pack("{s:o, s:o, s:s, s:o, s:I, s:I, s:I, s:I, s:I, s:b, s:I, s:s}", "name",
                             json_name(s, r->name), "path", json_name(s, r->path), "sha256", r->digest, "options",
                             json_name(s, r->meaning), "size", (json_int_t)r->size, "offset", (json_int_t)r->at.offset,
                             "line", (json_int_t)r->at.line, "rows_loaded", (json_int_t)r->loaded, "rows_rejected",
                             (json_int_t)r->rejected, "complete", r->complete, "runs", (json_int_t)r->runs, "updated",
                             r->updated);
    if (json_array_append_new(status->files, file) != 0) {
        guard_panic_in(GUARD_MEMORY, ENOMEM, "no memory for JSON");
    }
}

void report_status(const load_options *o, const target_driver *driver, load_target *target)
{
    GUARD_AUTO(s);
    load_status status = {o, NULL, 0};
    const char *table = target != NULL ? driver->table(target) : o->table;
    json_t *json = NULL;
    if (o->json) {
        json = checked(json_pack("{s:o, s:[]}", "table", json_name(s, table), "files"));
        guard_defer(s, release_json, json);
        status.files = json_object_get(json, "files");
    }
    if (target != NULL) {
        driver->each_record(target, show_record, &status);
    }
    if (json != NULL) {
        print_json(json);
    } else if (status.shown == 0) {
        printf("nothing was loaded into table \"%s\"\n", table);
    }
    command_line_flush();
}
