/* SPDX-License-Identifier: MIT */
/*
 * A file's way, by what the table's records know of its content and its path:
 *
 *     nothing                                  -> loaded from its start
 *     another, unfinished content of its path  -> refused (--forget)
 *     this content, unfinished                 -> loaded from where it stopped; refused with other options
 *     this content, complete                   -> nothing to do; with --again loaded from its start; refused with other options
 */
#include "load.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <guard/guard_file.h>

#include "clock.h"
#include "progress.h"
#include "rejects.h"
#include "stop.h"

typedef struct load_run {
    const load_options *options;
    const target_driver *driver;
    load_target *target;
    load_totals *totals;
    load_progress *progress;
    load_rejects *rejects;
    load_source *first; /* of the files, where it is open already */
    const char *meaning;
    int any_rejects;
} load_run;

/* ---------------------------------------------------------------------------------------------- one file -- */

static void show_hashing(void *arg, uint64_t done, uint64_t size)
{
    (void)size;
    progress_move(arg, done, 0);
}

static void publish(void *arg)
{
    load_run *run = arg;
    rejects_publish(run->rejects, run->driver, run->target);
}

static void refuse_other_options(const load_record *record, const char *name)
{
    if (record->complete) {
        guard_panic(EXIT_FAILED, "%s is already loaded, with other options (%s); --again loads it once more", name,
                    record->meaning);
    }
    guard_panic(EXIT_FAILED, "%s was begun with other options (%s); use these, or --forget, after which its rows stay",
                name, record->meaning);
}

static void begin_from_start(load_job *load, uint64_t runs)
{
    const load_source *source = load->source;
    load->record = (load_record){.digest = source_digest(source), .at = {0, 1}, .runs = runs};
    load->fresh = 1;
}

/* Finds out where to begin: 1, or 0 if there is nothing to do. */
static int begin(load_run *run, guard_scope *scope, load_job *load)
{
    const load_options *o = run->options;
    const char *name = source_name(load->source);
    load_record known;
    if (run->driver->find(run->target, scope, source_digest(load->source), &known)) {
        if (strcmp(known.meaning, run->meaning) != 0 && !(known.complete && o->again)) {
            refuse_other_options(&known, name);
        }
        load->record = known;
        if (known.complete && !o->again) {
            progress_say(run->progress,
                         "%s is already complete in table \"%s\": %" PRIu64 " rows loaded, %" PRIu64
                         " rejected (as %s)",
                         name, run->driver->table(run->target), known.loaded, known.rejected, known.name);
            return 0;
        }
        if (known.complete) {
            begin_from_start(load, known.runs + 1);
        } else {
            run->totals->resumed = 1;
            progress_say(run->progress, "%s goes on at line %" PRIu64, name, known.at.line);
        }
    } else if (run->driver->find_unfinished(run->target, scope, source_path(load->source), &known)) {
        if (strcmp(known.digest, source_digest(load->source)) == 0) {
            return begin(run, scope, load); /* another loader has begun it since */
        }
        guard_panic(EXIT_FAILED,
                    "%s has new content, and %" PRIu64 " rows of its former one were loaded, which is unfinished; "
                    "--forget drops that, its rows stay",
                    name, known.loaded);
    } else {
        begin_from_start(load, 1);
    }
    load->record.name = name;
    load->record.path = source_path(load->source);
    load->record.meaning = run->meaning;
    load->record.size = source_size(load->source);
    return 1;
}

/* Makes the reader and the plan, and puts the reader where the next batch begins. */
static void open_reader(load_run *run, guard_scope *scope, load_job *load)
{
    const load_options *o = run->options;
    const char *name = source_name(load->source);
    load->reader = reader_open(scope, source_read, load->source, o->delimiter, o->max_row);
    load_row header;
    if (!o->no_header && !reader_next(load->reader, &header)) {
        guard_panic(EXIT_FAILED, "%s has no header line", name);
    }
    size_t column_count = 0;
    const load_column *columns = run->driver->columns(run->target, &column_count);
    load->plan = plan_make(scope, o, name, o->no_header ? NULL : &header, columns, column_count);
    if (load->fresh) {
        load->record.at = reader_tell(load->reader);
    }
}

static void load_rows(load_run *run, guard_scope *scope, load_job *load)
{
    const char *name = source_name(load->source);
    double began = clock_seconds();
    uint64_t loaded = run->totals->loaded;
    uint64_t rejected = run->totals->rejected;
    open_reader(run, scope, load);
    run->driver->prepare(scope, run->target, load);
    progress_begin(run->progress, "loading", name, load->record.size, load->record.at.offset);
    while (!load->at_end) {
        run->driver->load_batch(run->target, load);
        if (!load->at_end) {
            stop_check();
        }
    }
    double seconds = clock_seconds() - began;
    loaded = run->totals->loaded - loaded;
    rejected = run->totals->rejected - rejected;
    progress_say(run->progress, "%s: %" PRIu64 " rows loaded, %" PRIu64 " rejected, %.2f s, %.0f rows/s", name, loaded,
                 rejected, seconds, (double)(loaded + rejected) / seconds);
}

static void load_file(load_run *run, size_t number)
{
    GUARD_AUTO(s);
    stop_check();
    run->totals->outcome = "rolled_back";
    load_source *source = number == 0 && run->first != NULL
                              ? run->first
                              : source_open(s, run->options->files[number], run->options->name);
    progress_begin(run->progress, "reading", source_name(source), source_size(source), 0);
    source_identify(source, show_hashing, run->progress);
    rejects_add(run->rejects, source_digest(source), source_name(source));
    load_job load = {.options = run->options,
                     .source = source,
                     .totals = run->totals,
                     .progress = run->progress,
                     .publish = publish,
                     .publish_arg = run};
    run->totals->files++;
    if (begin(run, s, &load)) {
        load_rows(run, s, &load);
    }
    run->any_rejects |= load.record.rejected > 0;
    run->totals->outcome = "committed";
}

/* --------------------------------------------------------------------------------------------- all files -- */

static void load_each(void *arg)
{
    load_run *run = arg;
    for (size_t i = 0; i < run->options->file_count; i++) {
        load_file(run, i);
    }
}

static int is_same_file(const char *a, const char *b)
{
    struct stat one;
    struct stat other;
    return stat(a, &one) == 0 && stat(b, &other) == 0 && one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

/* A file that is missing must be noticed before another one is loaded. Standard input is only read when its turn comes. */
static void check_files(const load_options *o)
{
    for (size_t i = 0; i < o->file_count; i++) {
        GUARD_AUTO(s);
        if (strcmp(o->files[i], "-") == 0) {
            continue;
        }
        /* Not even looked into: closing any descriptor of it would take SQLite's locks away. */
        if (is_same_file(o->files[i], o->database)) {
            guard_panic(EXIT_FAILED, "%s is the database of this load", o->files[i]);
        }
        source_open(s, o->files[i], NULL);
    }
}

/* The first file is hashed while the database is opened. */
static void open_first(load_run *run, guard_scope *scope)
{
    const char *file = run->options->files[0];
    if (strcmp(file, "-") != 0) {
        run->first = source_open(scope, file, NULL);
        source_identify_ahead(scope, run->first);
    }
}

/* The rejects replace what is at their path, which must be nothing of this load. */
static void check_rejects(const load_options *o)
{
    if (o->rejects == NULL) {
        return;
    }
    int taken = is_same_file(o->rejects, o->database) || (o->schema != NULL && is_same_file(o->rejects, o->schema));
    for (size_t i = 0; i < o->file_count; i++) {
        taken |= strcmp(o->files[i], "-") != 0 && is_same_file(o->rejects, o->files[i]);
    }
    if (taken) {
        guard_panic(EXIT_FAILED, "--rejects %s would overwrite a file of this load", o->rejects);
    }
}

int load_files(const load_options *options, const target_driver *driver, load_totals *totals)
{
    GUARD_AUTO(s);
    load_run run = {.options = options, .driver = driver, .totals = totals};
    run.meaning = options_meaning(s, options);
    run.progress = progress_open(s, options->quiet);
    check_files(options);
    check_rejects(options);
    run.rejects = rejects_open(s, options->rejects);
    open_first(&run, s);
    run.target = driver->open(s, options);
    /* The rejects are published also where loading failed, and the first error is the one that is told. */
    guard_error error;
    guard_error later;
    int code = guard_run(load_each, &run, &error);
    if (code == 0) {
        publish(&run);
    } else {
        if (guard_run(publish, &run, &later) != 0) {
            guard_error_attach(&error, &later, GUARD_ATTACHED);
        }
        guard_panic_error(&error);
    }
    return run.any_rejects ? EXIT_REJECTS : EXIT_LOADED;
}

/* ------------------------------------------------------------------------------------------------ forget -- */

static void forget(load_run *run, const load_record *record, const char *file)
{
    run->driver->forget(run->target, record->digest);
    progress_say(run->progress, "%s is forgotten; its %" PRIu64 " rows stay in table \"%s\"", file, record->loaded,
                 run->driver->table(run->target));
}

static void forget_file(load_run *run, const char *file)
{
    GUARD_AUTO(s);
    load_record known;
    int found = 0;
    int standard_input = strcmp(file, "-") == 0;
    const char *path = source_path_of(s, file, run->options->name);
    while (run->driver->find_unfinished(run->target, s, path, &known)) {
        forget(run, &known, standard_input ? run->options->name : file);
        found = 1;
    }
    /* Its content is known too where the file is there; standard input is not read for that. */
    if (!standard_input && access(file, F_OK) == 0) {
        load_source *source = source_open(s, file, NULL);
        progress_begin(run->progress, "reading", file, source_size(source), 0);
        source_identify(source, show_hashing, run->progress);
        if (run->driver->find(run->target, s, source_digest(source), &known)) {
            forget(run, &known, file);
            found = 1;
        }
    }
    if (!found) {
        progress_say(run->progress, "%s was not loaded into table \"%s\": there is nothing to forget", file,
                     run->driver->table(run->target));
    }
}

void load_forget(const load_options *options, const target_driver *driver)
{
    GUARD_AUTO(s);
    load_run run = {.options = options, .driver = driver};
    run.progress = progress_open(s, options->quiet);
    run.target = driver->open(s, options);
    for (size_t i = 0; i < options->file_count; i++) {
        forget_file(&run, options->files[i]);
    }
}
