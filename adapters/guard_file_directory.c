/* SPDX-License-Identifier: MIT */
/*
 * guard_file_directory.c: directories to read.
 */
#include <errno.h>
#include <string.h>

#include "guard_file_internal.h"

static void directory_release(void *object)
{
    file_held *held = object;
    int state = guard_foreign_open();
    int failed = closedir(held->is.directory);
    guard_foreign_close(state);
    if (failed != 0 && errno != EINTR) {
        guard_impl_file_fail(held, "close");
    }
    guard_deallocate(held);
}

static void directory_child(void *object)
{
    file_held *held = object;
    closedir(held->is.directory);
    guard_deallocate(held);
}

static size_t directory_describe(const void *object, char *text, size_t size)
{
    const file_held *held = object;
    return guard_impl_file_describe("directory", held->path, text, size);
}

static const guard_kind directory_kind = {.name = "directory",
                                          .release = directory_release,
                                          .child = directory_child,
                                          .describe = directory_describe,
                                          .since = guard_impl_file_since,
                                          .action = "close",
                                          .flags = GUARD_KIND_HEAP,
                                          .dismiss = guard_deallocate};

DIR *guard_impl_file_open_directory(guard_scope *scope, const char *path, guard_ticket *ticket,
                                    const guard_place *place)
{
    file_held *held = guard_impl_file_hold(scope, path, place);
    DIR *directory;
    int state = guard_foreign_open();
    do {
        directory = opendir(path); /* close-on-exec by itself */
    } while (directory == NULL && errno == EINTR);
    guard_foreign_close(state);
    if (directory == NULL) {
        guard_impl_file_fail(held, "open");
    }
    held->is.directory = directory;
    guard_impl_file_register(scope, &directory_kind, held, ticket, place);
    return directory;
}

struct dirent *guard_impl_file_read_directory(DIR *directory, const guard_place *place)
{
    struct dirent *entry;
    if (!guard_impl_file_has(directory, "reading no directory", place)) {
        return NULL;
    }
    guard_impl_cancel_point(place);
    do {
        errno = 0;
        entry = readdir(directory);
    } while (entry != NULL && (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0));
    if (entry == NULL && errno != 0) {
        file_name name;
        guard_impl_panic_os(place, "cannot read %s", guard_impl_file_descriptor_name(&name, dirfd(directory)));
    }
    return entry;
}
