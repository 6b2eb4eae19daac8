/* SPDX-License-Identifier: MIT */
/*
 * guard_file_map.c: mappings of files.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guard_file_internal.h"

typedef struct file_map {
    file_origin origin;
    void *address;
    size_t size; /* 0: the empty file, nothing is mapped */
    file_name name;
} file_map;

static void map_release(void *object)
{
    file_map *map = object;
    int failed = map->size != 0 ? munmap(map->address, map->size) : 0;
    if (failed != 0) {
        file_map copy = *map;
        int error = errno;
        guard_deallocate(map);
        errno = error;
        guard_impl_panic_os(copy.origin.place, "cannot unmap %s", copy.name.text);
    }
    guard_deallocate(map);
}

static size_t map_describe(const void *object, char *text, size_t size)
{
    const file_map *map = object;
    int length = snprintf(text, size, "mapping of %s, %zu bytes", map->name.text, map->size);
    return length < 0 ? 0 : (size_t)length;
}

/* A child keeps its mapping: it is memory of its own. */
static const guard_kind map_kind = {.name = "mapping",
                                    .release = map_release,
                                    .describe = map_describe,
                                    .since = guard_impl_file_since,
                                    .action = "unmap",
                                    .flags = GUARD_KIND_HEAP,
                                    .dismiss = guard_deallocate};

/* What is not mapped yet; its place and one registration are there. */
static file_map *map_new(guard_scope *scope, const guard_place *place)
{
    guard_impl_cancel_point(place);
    guard_impl_reserve(scope, 1, place);
    file_map *map = guard_allocate(sizeof *map);
    guard_impl_file_origin(&map->origin, place);
    map->address = NULL;
    map->size = 0;
    return map;
}

static void map_fail(file_map *map, const char *what)
{
    file_name name = map->name;
    const guard_place *place = map->origin.place;
    int error = errno;
    guard_deallocate(map);
    errno = error;
    guard_impl_panic_os(place, "cannot %s %s", what, name.text);
}

void *guard_impl_file_map_descriptor(guard_scope *scope, int descriptor, off_t offset, size_t size, int protection,
                                     int flags, guard_ticket *ticket, const guard_place *place)
{
    file_map *map = map_new(scope, place);
    guard_impl_file_descriptor_name(&map->name, descriptor);
    void *address = mmap(NULL, size, protection, flags, descriptor, offset);
    if (address == MAP_FAILED) {
        map_fail(map, "map");
    }
    map->address = address;
    map->size = size;
    guard_impl_file_register(scope, &map_kind, map, ticket, place);
    return address;
}

/* Maps the whole file; 0 or errno. */
static int map_whole(file_map *map, int descriptor)
{
    struct stat status;
    if (fstat(descriptor, &status) != 0) {
        return errno;
    }
    if (!S_ISREG(status.st_mode)) {
        return S_ISDIR(status.st_mode) ? EISDIR : ENODEV;
    }
    if ((uintmax_t)status.st_size > SIZE_MAX) {
        return EFBIG;
    }
    if (status.st_size == 0) {
        map->address = map; /* mmap knows no empty mapping */
        return 0;
    }
    void *address = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (address == MAP_FAILED) {
        return errno;
    }
    map->address = address;
    map->size = (size_t)status.st_size;
    return 0;
}

/* The same for a path: the descriptor is not needed once the file is mapped. */
static int map_path(file_map *map, const char *path)
{
    int descriptor, state = guard_foreign_open();
    do {
        descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    } while (descriptor < 0 && errno == EINTR);
    int error = descriptor < 0 ? errno : map_whole(map, descriptor);
    if (descriptor >= 0) {
        close(descriptor); /* read only: it can lose nothing */
    }
    guard_foreign_close(state);
    return error;
}

const void *guard_impl_file_map(guard_scope *scope, const char *path, size_t *size, guard_ticket *ticket,
                                const guard_place *place)
{
    if (!guard_impl_file_has(path, "a mapping without a path", place) ||
        !guard_impl_file_has(size, "a mapping without a place for its size", place)) {
        return NULL;
    }
    file_map *map = map_new(scope, place);
    guard_impl_file_quote(&map->name, path);
    int error = map_path(map, path);
    if (error != 0) {
        errno = error;
        map_fail(map, "map");
    }
    const void *address = map->address;
    *size = map->size;
    guard_impl_file_register(scope, &map_kind, map, ticket, place);
    return address;
}
