/* SPDX-License-Identifier: MIT */
#include "source.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <nettle/base16.h>
#include <nettle/sha2.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <guard/guard_file.h>

#include "options.h"
#include "stop.h"

#define CHUNK (256 * 1024)

struct load_source {
    const char *name;
    const char *path;
    int descriptor;
    struct stat seen; /* before it was hashed */
    char digest[SOURCE_DIGEST + 1];
    /* The hash of the first `hashed` bytes; after source_identify the second time. */
    struct sha256_ctx hash;
    uint64_t hashed;
    /* While a thread hashes ahead, `hash`, `hashed` and `chunk` are its. */
    pthread_t thread;
    guard_ticket thread_ends;
    int is_ahead;
    atomic_int is_enough;
    char *chunk;
};

/* ------------------------------------------------------------------------------------------------ opening -- */

/* Copies standard input. A signal ends the wait for it. */
static int spool(guard_scope *scope, load_source *source)
{
    FILE *copy = guard_file_temporary(scope, NULL, NULL);
    for (;;) {
        ssize_t got = read(STDIN_FILENO, source->chunk, CHUNK);
        stop_check();
        if (got == 0) {
            return fileno(copy);
        }
        if (got < 0 && errno != EINTR) {
            guard_panic_os("%s: standard input cannot be read", source->name);
        }
        if (got > 0) {
            guard_file_write(fileno(copy), source->chunk, (size_t)got);
        }
    }
}

static void open_standard_input(guard_scope *scope, load_source *source)
{
    struct stat seen;
    if (fstat(STDIN_FILENO, &seen) != 0) {
        guard_panic_os("%s: standard input cannot be read", source->name);
    }
    if (S_ISDIR(seen.st_mode)) {
        guard_panic(EXIT_FAILED, "%s: standard input is a directory", source->name);
    }
    /* A file at its start is as good as one that is named. */
    int direct = S_ISREG(seen.st_mode) && lseek(STDIN_FILENO, 0, SEEK_CUR) == 0;
    source->descriptor = direct ? STDIN_FILENO : spool(scope, source);
}

static void open_file(guard_scope *scope, load_source *source)
{
    /* O_NONBLOCK: a pipe without a writer must be refused, not waited for. */
    source->descriptor = guard_file_open_descriptor(scope, source->name, O_RDONLY | O_NONBLOCK, 0, NULL);
    struct stat seen;
    if (fstat(source->descriptor, &seen) != 0) {
        guard_panic_os("%s", source->name);
    }
    if (S_ISDIR(seen.st_mode)) {
        guard_panic(EXIT_FAILED, "%s is a directory", source->name);
    }
    if (!S_ISREG(seen.st_mode)) {
        guard_panic(EXIT_FAILED, "%s is not a regular file; a pipe is loaded as - with --name", source->name);
    }
}

const char *source_path_of(guard_scope *scope, const char *file, const char *name)
{
    if (strcmp(file, "-") == 0) {
        return guard_memory_format(scope, NULL, "stdin:%s", name);
    }
    guard_reserve(scope, 1);
    char *path = realpath(file, NULL);
    if (path != NULL) {
        guard_defer(scope, free, path);
        return path;
    }
    if (*file == '/') {
        return guard_memory_copy(scope, file, NULL);
    }
    char here[PATH_MAX];
    return guard_memory_format(scope, NULL, "%s/%s", getcwd(here, sizeof here) != NULL ? here : ".", file);
}

load_source *source_open(guard_scope *scope, const char *file, const char *name)
{
    int standard_input = strcmp(file, "-") == 0;
    load_source *source = guard_memory_allocate_array(scope, 1, sizeof *source, NULL);
    source->name = standard_input ? name : file;
    source->chunk = guard_memory_allocate(scope, CHUNK, NULL);
    if (standard_input) {
        open_standard_input(scope, source);
    } else {
        open_file(scope, source);
    }
    source->path = source_path_of(scope, file, name);
    sha256_init(&source->hash);
    if (fstat(source->descriptor, &source->seen) != 0) {
        guard_panic_os("%s", source->name);
    }
    return source;
}

/* ----------------------------------------------------------------------------------------------- reading -- */

static size_t read_at(const load_source *source, uint64_t offset, char *buffer, size_t size)
{
    for (;;) {
        ssize_t got = pread(source->descriptor, buffer, size, (off_t)offset);
        if (got >= 0) {
            return (size_t)got;
        }
        if (errno != EINTR) {
            guard_panic_os("%s cannot be read", source->name);
        }
    }
}

static int is_changed(const load_source *source, const struct stat *now)
{
    return now->st_size != source->seen.st_size || now->st_mtim.tv_sec != source->seen.st_mtim.tv_sec ||
           now->st_mtim.tv_nsec != source->seen.st_mtim.tv_nsec;
}

static void end_hash(struct sha256_ctx *hash, char *digest)
{
    uint8_t bytes[SHA256_DIGEST_SIZE];
    sha256_digest(hash, sizeof bytes, bytes);
    base16_encode_update(digest, sizeof bytes, bytes);
    digest[SOURCE_DIGEST] = '\0';
}

/* An error ends it, and is met again by whoever goes on from there. */
static void *hash_ahead(void *arg)
{
    load_source *source = arg;
    ssize_t got = 1;
    while (got > 0 && !atomic_load_explicit(&source->is_enough, memory_order_relaxed)) {
        got = pread(source->descriptor, source->chunk, CHUNK, (off_t)source->hashed);
        if (got > 0) {
            sha256_update(&source->hash, (size_t)got, (const uint8_t *)source->chunk);
            source->hashed += (uint64_t)got;
        }
    }
    return NULL;
}

static void end_hash_ahead(void *arg)
{
    load_source *source = arg;
    atomic_store_explicit(&source->is_enough, 1, memory_order_relaxed);
    pthread_join(source->thread, NULL);
}

void source_identify_ahead(guard_scope *scope, load_source *source)
{
    guard_reserve(scope, 1);
    if (pthread_create(&source->thread, NULL, hash_ahead, source) == 0) {
        source->thread_ends = guard_defer(scope, end_hash_ahead, source);
        source->is_ahead = 1;
    }
}

/* What was hashed counts unless the file has changed since: opening the database may have taken long. */
static void take_over(load_source *source)
{
    struct stat now;
    source->is_ahead = 0;
    guard_release(source->thread_ends);
    if (fstat(source->descriptor, &now) == 0 && is_changed(source, &now)) {
        source->seen = now;
        source->hashed = 0;
        sha256_init(&source->hash);
    }
}

void source_identify(load_source *source, source_progress_fn *progress, void *arg)
{
    if (source->is_ahead) {
        take_over(source);
    }
    for (size_t got; (got = read_at(source, source->hashed, source->chunk, CHUNK)) > 0;) {
        stop_check();
        sha256_update(&source->hash, got, (const uint8_t *)source->chunk);
        progress(arg, source->hashed, source_size(source));
        source->hashed += got;
    }
    end_hash(&source->hash, source->digest);
    sha256_init(&source->hash);
    source->hashed = 0;
    source_check_unchanged(source);
}

load_source *source_share(guard_scope *scope, const load_source *source)
{
    load_source *shared = guard_memory_allocate_array(scope, 1, sizeof *shared, NULL);
    *shared = *source;
    shared->chunk = guard_memory_allocate(scope, CHUNK, NULL);
    sha256_init(&shared->hash);
    shared->hashed = 0;
    return shared;
}

/* Hashes what lies before `offset` and was not given out: what an earlier run loaded. */
static void hash_up_to(load_source *source, uint64_t offset)
{
    while (source->hashed < offset) {
        stop_check();
        uint64_t left = offset - source->hashed;
        size_t got = read_at(source, source->hashed, source->chunk, left < CHUNK ? (size_t)left : CHUNK);
        if (got == 0) {
            return; /* cut short: the hash will tell */
        }
        sha256_update(&source->hash, got, (const uint8_t *)source->chunk);
        source->hashed += got;
    }
}

size_t source_read(void *arg, uint64_t offset, char *buffer, size_t size)
{
    load_source *source = arg;
    hash_up_to(source, offset);
    size_t got = read_at(source, offset, buffer, size);
    if (offset <= source->hashed && offset + got > source->hashed) {
        size_t known = (size_t)(source->hashed - offset);
        sha256_update(&source->hash, got - known, (const uint8_t *)buffer + known);
        source->hashed = offset + got;
    }
    return got;
}

size_t source_peek(void *arg, uint64_t offset, char *buffer, size_t size)
{
    return read_at(arg, offset, buffer, size);
}

/* ------------------------------------------------------------------------------------------------ asking -- */

static void refuse_changed(const load_source *source)
{
    guard_panic(EXIT_FAILED, "%s changed while it was being loaded; the batch under way was not loaded", source->name);
}

void source_check_unchanged(const load_source *source)
{
    struct stat now;
    if (fstat(source->descriptor, &now) != 0) {
        guard_panic_os("%s", source->name);
    }
    if (is_changed(source, &now)) {
        refuse_changed(source);
    }
}

void source_check_content(load_source *source)
{
    hash_up_to(source, source_size(source));
    /* Of a copy: the last batch may be tried more than once. */
    struct sha256_ctx hash = source->hash;
    char digest[SOURCE_DIGEST + 1];
    end_hash(&hash, digest);
    if (strcmp(digest, source->digest) != 0) {
        refuse_changed(source);
    }
}

const char *source_name(const load_source *source)
{
    return source->name;
}

const char *source_path(const load_source *source)
{
    return source->path;
}

const char *source_digest(const load_source *source)
{
    return source->digest;
}

uint64_t source_size(const load_source *source)
{
    return (uint64_t)source->seen.st_size;
}
