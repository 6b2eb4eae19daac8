/* SPDX-License-Identifier: MIT */
/*
 * source.h: a file to load, and its identity: the SHA-256 of its content.
 *
 * The content is read twice: source_identify hashes it, then the reader takes it with source_read, which hashes what it
 * gives out. So a file that changes meanwhile is noticed: by its size or time before each COMMIT (source_check_unchanged), and at the
 * end by its content (source_check_content), also where its times tell nothing.
 *
 * Standard input that is not a file is copied to a temporary file without a name first.
 */
#ifndef LOAD_SOURCE_H
#define LOAD_SOURCE_H

#include <guard/guard.h>
#include <stddef.h>
#include <stdint.h>

#define SOURCE_DIGEST 64 /* hexadecimal digits */

typedef struct load_source load_source;

/*
 * Opens a regular file, or standard input for "-", whose name is then `name`. It belongs to the scope. Panics where that
 * cannot be, naming the file.
 */
load_source *source_open(guard_scope *scope, const char *file, const char *name);

/* Called now and then with how much of how much is done. */
typedef void source_progress_fn(void *arg, uint64_t done, uint64_t size);

/*
 * Begins to hash the content of a regular file in a thread of its own, which ends when source_identify is called, and goes on from there, or
 * with the scope. Where no thread can be had nothing is hashed ahead.
 */
void source_identify_ahead(guard_scope *scope, load_source *source);

/* Hashes the content. Panics with GUARD_CANCELLED on a stop signal. */
void source_identify(load_source *source, source_progress_fn *progress, void *arg);

/* The same open file, once identified, for another thread: its content is hashed anew. Belongs to the scope; must not outlive `source`. */
load_source *source_share(guard_scope *scope, const load_source *source);

/* As the user named it. */
const char *source_name(const load_source *source);

/* Where it lies: an absolute path without symbolic links, "stdin:NAME" for standard input. */
const char *source_path(const load_source *source);

/* The path that source_path gives for a file that need not exist any more; memory is the scope's. */
const char *source_path_of(guard_scope *scope, const char *file, const char *name);

/* SOURCE_DIGEST lower-case hexadecimal digits; after source_identify. */
const char *source_digest(const load_source *source);

/* In bytes. */
uint64_t source_size(const load_source *source);

/* A reader_read_fn; `arg` is the source. */
size_t source_read(void *arg, uint64_t offset, char *buffer, size_t size);

/* The same for a look at where rows end: what is loaded is read by source_read, which hashes it. */
size_t source_peek(void *arg, uint64_t offset, char *buffer, size_t size);

/* Panics when its size or modification time is another than when it was hashed. */
void source_check_unchanged(const load_source *source);

/* Hashes what source_read has not, and panics when the content is not the one that was identified. */
void source_check_content(load_source *source);

#endif
