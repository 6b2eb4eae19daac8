/* SPDX-License-Identifier: MIT */
/*
 * guard_file_temporary.c: temporary files and directories.
 *
 *     made --release--> closed, unlinked        made --child--> its copies closed, nothing unlinked
 *
 * What is unlinked is a name in a directory that is held open, so that it is ours wherever that directory was moved. It is registered for
 * fatal signals as long as that is open.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guard_file_internal.h"

typedef struct file_temporary {
    file_origin origin;
    file_location location; /* the directory it was made in, and its name there */
    FILE *stream;           /* NULL for a directory */
    int temporary;          /* what a fatal signal is to remove, see guard_temporary_register */
    char path[];            /* absolute */
} file_temporary;

static const char *temporary_directory(const char *directory)
{
    if (directory == NULL) {
        directory = secure_getenv("TMPDIR");
    }
    return directory == NULL || directory[0] == '\0' ? "/tmp" : directory;
}

static void temporary_panic(const guard_place *place, const char *what, const char *path, int error)
{
    file_name name;
    errno = error;
    guard_impl_panic_os(place, "cannot %s %s", what, guard_impl_file_quote(&name, path));
}

/* ------------------------------------------------------------------------------------------ without a name -- */

/* Also in a forked child. */
static void unnamed_release(void *object)
{
    file_held *held = object;
    guard_impl_file_discard_stream(held->is.stream); /* nobody could read it any more */
    guard_deallocate(held);
}

static size_t unnamed_describe(const void *object, char *text, size_t size)
{
    const file_held *held = object;
    return guard_impl_file_describe("temporary file in", held->path, text, size);
}

static const guard_kind unnamed_kind = {.name = "temporary file",
                                        .release = unnamed_release,
                                        .child = unnamed_release,
                                        .describe = unnamed_describe,
                                        .since = guard_impl_file_since,
                                        .action = "close",
                                        .flags = GUARD_KIND_HEAP,
                                        .dismiss = guard_deallocate};

/* Its descriptor, or -1 with errno. */
static int unnamed_create(const file_location *location)
{
    int descriptor = guard_impl_file_create_unnamed(location->directory, 0600);
    if (descriptor >= 0 || !guard_impl_file_no_unnamed(errno)) {
        return descriptor;
    }
    char name[256];
    int temporary;
    descriptor = guard_impl_file_create(location->directory, "guard", ".guard-tmp", 0600, name, &temporary);
    if (descriptor >= 0 && unlinkat(location->directory, name, 0) != 0) {
        int error = errno;
        close(descriptor);
        errno = error;
        descriptor = -1;
    }
    guard_temporary_forget(temporary);
    return descriptor;
}

/* A stream on the descriptor, which is closed where there is no memory for one. */
static FILE *descriptor_stream(int descriptor)
{
    FILE *stream = descriptor >= 0 ? fdopen(descriptor, "w+") : NULL;
    if (stream == NULL && descriptor >= 0) {
        int error = errno;
        close(descriptor);
        errno = error;
    }
    return stream;
}

FILE *guard_impl_file_temporary(guard_scope *scope, const char *directory, guard_ticket *ticket,
                                const guard_place *place)
{
    file_location location;
    file_held *held = guard_impl_file_hold(scope, temporary_directory(directory), place);
    int state = guard_foreign_open();
    int error = guard_impl_file_open_location(AT_FDCWD, held->path, &location);
    if (error == 0) {
        held->is.stream = descriptor_stream(unnamed_create(&location));
        error = held->is.stream == NULL ? errno : 0;
        close(location.directory);
    }
    guard_foreign_close(state);
    if (error != 0) {
        errno = error;
        guard_impl_file_fail(held, "make a temporary file in");
    }
    FILE *stream = held->is.stream;
    guard_impl_file_register(scope, &unnamed_kind, held, ticket, place);
    return stream;
}

/* --------------------------------------------------------------------------------------------- with a name -- */

/* Opens the directory; what is made in it, and its path, come afterwards. */
static file_temporary *temporary_new(guard_scope *scope, const char *directory, const guard_place *place)
{
    directory = temporary_directory(directory);
    guard_impl_cancel_point(place);
    guard_impl_reserve(scope, 1, place);
    char *absolute = realpath(directory, NULL);
    if (absolute == NULL) {
        temporary_panic(place, "make a temporary file in", directory, errno);
    }
    /* The path's memory must not be lost to a panic of guard_allocate. */
    guard_scope inner;
    guard_scope_open(&inner);
    guard_impl_defer(&inner, free, absolute, place);
    file_temporary *made = guard_allocate(sizeof *made + strlen(absolute) + 1 + sizeof made->location.name);
    strcpy(made->path, absolute);
    guard_scope_close(&inner);

    guard_impl_file_origin(&made->origin, place);
    made->stream = NULL;
    made->temporary = 0;
    int state = guard_foreign_open();
    int error = guard_impl_file_open_location(AT_FDCWD, made->path, &made->location);
    guard_foreign_close(state);
    if (error != 0) {
        guard_deallocate(made);
        temporary_panic(place, "make a temporary file in", directory, error);
    }
    return made;
}

/* Nothing was made: gives all back and panics. */
static void temporary_fail(file_temporary *made, const char *directory, int error)
{
    const guard_place *place = made->origin.place;
    guard_temporary_forget(made->temporary);
    guard_impl_file_close(made->location.directory);
    guard_deallocate(made);
    temporary_panic(place, "make a temporary file in", temporary_directory(directory), error);
}

static void temporary_path(file_temporary *made)
{
    size_t length = strlen(made->path);
    if (length != 1) { /* not the root */
        made->path[length++] = '/';
    }
    strcpy(made->path + length, made->location.name);
}

/* Closes and frees; panics with the first error of all that was to be done. */
static void temporary_end(file_temporary *made, const char *what, int error)
{
    guard_temporary_forget(made->temporary);
    int close_error = guard_impl_file_close(made->location.directory);
    if (error == 0 && close_error == 0) {
        guard_deallocate(made);
        return;
    }
    file_name name;
    guard_impl_file_quote(&name, made->path);
    const guard_place *place = made->origin.place;
    guard_deallocate(made);
    errno = error != 0 ? error : close_error;
    guard_impl_panic_os(place, "cannot %s %s", error != 0 ? what : "close the directory of", name.text);
}

static void named_release(void *object)
{
    file_temporary *made = object;
    guard_impl_file_discard_stream(made->stream); /* nobody is to read it any more */
    int error = unlinkat(made->location.directory, made->location.name, 0) != 0 && errno != ENOENT ? errno : 0;
    temporary_end(made, "remove the temporary file", error);
}

static void temporary_child(void *object)
{
    file_temporary *made = object;
    if (made->stream != NULL) {
        guard_impl_file_discard_stream(made->stream);
    }
    guard_temporary_forget(made->temporary);
    close(made->location.directory);
    guard_deallocate(made);
}

/* The caller keeps the file; its name and path are not needed to close the stream. */
static void named_dismiss(void *object)
{
    file_temporary *made = object;
    guard_temporary_forget(made->temporary);
    guard_impl_file_close(made->location.directory);
    guard_deallocate(made);
}

static size_t named_describe(const void *object, char *text, size_t size)
{
    const file_temporary *made = object;
    return guard_impl_file_describe("temporary file", made->path, text, size);
}

static const guard_kind named_kind = {.name = "temporary file",
                                      .release = named_release,
                                      .child = temporary_child,
                                      .describe = named_describe,
                                      .since = guard_impl_file_since,
                                      .action = "remove",
                                      .flags = GUARD_KIND_HEAP,
                                      .dismiss = named_dismiss};

/* 0 or errno, nothing is made then. */
static int named_create(file_temporary *made)
{
    int state = guard_foreign_open(), error = 0;
    int directory = made->location.directory;
    int descriptor = guard_impl_file_create(directory, "guard", ".guard-tmp", 0600, made->location.name,
                                            &made->temporary);
    made->stream = descriptor_stream(descriptor);
    if (made->stream == NULL) {
        error = errno;
        if (descriptor >= 0) {
            unlinkat(directory, made->location.name, 0);
        }
    }
    guard_foreign_close(state);
    return error;
}

FILE *guard_impl_file_temporary_named(guard_scope *scope, const char *directory, const char **path,
                                      guard_ticket *ticket, const guard_place *place)
{
    if (!guard_impl_file_has(path, "a temporary file without a place for its path", place)) {
        return NULL;
    }
    file_temporary *made = temporary_new(scope, directory, place);
    int error = named_create(made);
    if (error != 0) {
        temporary_fail(made, directory, error);
    }
    temporary_path(made);
    *path = made->path;
    FILE *stream = made->stream;
    guard_impl_file_register(scope, &named_kind, made, ticket, place);
    return stream;
}

/* --------------------------------------------------------------------------------------------- directories -- */

static int tree_remove(int directory, const char *name);

/* Removes all that is in an open directory, as far as it goes; 0 or the first errno. Closes it. */
static int entries_remove(int descriptor)
{
    DIR *directory = fdopendir(descriptor);
    if (directory == NULL) {
        int error = errno;
        close(descriptor);
        return error;
    }
    int first = 0;
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(directory);
        if (entry == NULL) {
            first = first != 0 ? first : errno;
            break;
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            int error = tree_remove(dirfd(directory), entry->d_name);
            first = first != 0 ? first : error;
        }
    }
    closedir(directory);
    return first;
}

/* A directory with all that is in it, or anything else; 0 or the first errno. What is gone already is no error. */
static int tree_remove(int directory, const char *name)
{
    if (unlinkat(directory, name, 0) == 0 || errno == ENOENT) {
        return 0;
    }
    /* Linux says EISDIR for a directory, POSIX allows EPERM (unlink(2)). */
    int not_a_file = errno;
    if (not_a_file != EISDIR && not_a_file != EPERM) {
        return not_a_file;
    }
    /* Where it is empty that needs no descriptor, of which there may be none left. */
    if (unlinkat(directory, name, AT_REMOVEDIR) == 0 || errno == ENOENT) {
        return 0;
    }
    if (errno != ENOTEMPTY && errno != EEXIST) {
        return errno == ENOTDIR ? not_a_file : errno;
    }
    int descriptor = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (descriptor < 0) {
        return errno;
    }
    int error = entries_remove(descriptor);
    if (unlinkat(directory, name, AT_REMOVEDIR) != 0 && errno != ENOENT && error == 0) {
        error = errno;
    }
    return error;
}

static void directory_release(void *object)
{
    file_temporary *made = object;
    int state = guard_foreign_open();
    int error = tree_remove(made->location.directory, made->location.name);
    guard_foreign_close(state);
    temporary_end(made, "remove the temporary directory", error);
}

static size_t directory_describe(const void *object, char *text, size_t size)
{
    const file_temporary *made = object;
    return guard_impl_file_describe("temporary directory", made->path, text, size);
}

static const guard_kind directory_kind = {.name = "temporary directory",
                                          .release = directory_release,
                                          .child = temporary_child,
                                          .describe = directory_describe,
                                          .since = guard_impl_file_since,
                                          .action = "remove",
                                          .flags = GUARD_KIND_HEAP,
                                          .dismiss = named_dismiss};

const char *guard_impl_file_temporary_directory(guard_scope *scope, const char *directory, guard_ticket *ticket,
                                                const guard_place *place)
{
    enum { TRIES = 100 };
    file_temporary *made = temporary_new(scope, directory, place);
    int failed = -1;
    for (int i = 0; i < TRIES && failed != 0; i++) {
        guard_impl_file_random_name("guard", ".guard-tmp", made->location.name);
        made->temporary = guard_temporary_register(made->location.directory, made->location.name, AT_REMOVEDIR);
        failed = mkdirat(made->location.directory, made->location.name, 0700);
        if (failed != 0) {
            guard_temporary_forget(made->temporary);
            made->temporary = 0;
            if (errno != EEXIST) {
                break;
            }
        }
    }
    if (failed != 0) {
        temporary_fail(made, directory, errno);
    }
    temporary_path(made);
    const char *path = made->path;
    guard_impl_file_register(scope, &directory_kind, made, ticket, place);
    return path;
}
