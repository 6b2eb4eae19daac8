/* SPDX-License-Identifier: MIT */
/*
 * guard_file_location.c: from a path to an open directory and a name in it, and new names there.
 *
 * A name looked up in an open directory stays right when a directory above it is renamed or replaced; a path
 * does not.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guard_file_internal.h"

#define LINKS_MOST 40 /* as the kernel: path_resolution(7) */

static int directory_open(int base, const char *path, int access)
{
    int descriptor;
    do {
        descriptor = openat(base, path, access | O_DIRECTORY | O_CLOEXEC);
    } while (descriptor < 0 && errno == EINTR);
    return descriptor;
}

int guard_impl_file_open_location(int base, const char *path, file_location *location)
{
    location->readable = true;
    location->directory = directory_open(base, path, O_RDONLY);
    if (location->directory < 0 && errno == EACCES) {
        /* A directory that may be written and searched but not listed is as good, but fsync(2) refuses O_PATH. */
        location->readable = false;
        location->directory = directory_open(base, path, O_PATH);
    }
    return location->directory < 0 ? errno : 0;
}

/* One step: opens the directory part of `path`, seen from `base`, and keeps its last component. */
static int location_step(int base, const char *path, file_location *location)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash != NULL ? slash + 1 : path;
    size_t length = strlen(name);
    if (path[0] == '\0') {
        return ENOENT;
    }
    if (length == 0 || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        return EISDIR;
    }
    if (length >= sizeof location->name) {
        return ENAMETOOLONG;
    }
    char part[4096];
    size_t part_length = slash == NULL ? 0 : slash == path ? 1 : (size_t)(slash - path);
    if (part_length >= sizeof part) {
        return ENAMETOOLONG;
    }
    memcpy(part, path, part_length);
    memcpy(part + part_length, "", 1);
    int error = guard_impl_file_open_location(base, part_length != 0 ? part : ".", location);
    if (error == 0) {
        memcpy(location->name, name, length + 1);
    }
    return error;
}

int guard_impl_file_locate(const char *path, bool follow, file_location *location)
{
    int error = location_step(AT_FDCWD, path, location);
    for (int links = 0; error == 0; links++) {
        char target[4096];
        ssize_t length = readlinkat(location->directory, location->name, target, sizeof target - 1);
        if (length < 0 && (errno == EINVAL || errno == ENOENT)) {
            return 0; /* no link, or nothing yet */
        }
        file_location from = *location;
        if (length < 0) {
            error = errno;
        } else if (!follow || links == LINKS_MOST) {
            error = ELOOP;
        } else {
            target[length] = '\0';
            error = location_step(from.directory, target, location);
        }
        close(from.directory);
    }
    return error;
}

void guard_impl_file_random_name(const char *prefix, const char *suffix, char name[256])
{
    enum { PREFIX_MOST = 200 };
    unsigned long long number = 0;
    if (getrandom(&number, sizeof number, GRND_NONBLOCK) != (ssize_t)sizeof number) {
        /* Early at boot: the name is only guessable then, and O_EXCL still keeps it ours. */
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        number = (unsigned long long)now.tv_nsec << 32 ^ (unsigned long long)now.tv_sec ^ (unsigned long long)getpid();
    }
    snprintf(name, 256, ".%.*s.%016llx%s", PREFIX_MOST, prefix, number, suffix);
}

int guard_impl_file_create(int directory, const char *prefix, const char *suffix, mode_t mode, char name[256],
                           int *temporary)
{
    enum { TRIES = 100 };
    for (int i = 0; i < TRIES; i++) {
        guard_impl_file_random_name(prefix, suffix, name);
        *temporary = guard_temporary_register(directory, name,
                                              0); /* before it is there: a signal may come in between */
        int descriptor = openat(directory, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
        if (descriptor >= 0) {
            int raised = guard_impl_file_raise(descriptor);
            if (raised >= 0) {
                return raised;
            }
            int error = errno;
            unlinkat(directory, name, 0);
            errno = error;
        }
        guard_temporary_forget(*temporary);
        *temporary = 0;
        if (errno != EEXIST && errno != EINTR) {
            break;
        }
    }
    return -1;
}

int guard_impl_file_create_unnamed(int directory, mode_t mode)
{
    int descriptor;
    do {
        descriptor = openat(directory, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, mode);
    } while (descriptor < 0 && errno == EINTR);
    return guard_impl_file_raise(descriptor);
}

bool guard_impl_file_no_unnamed(int error)
{
    /* open(2): EOPNOTSUPP from the file system, EISDIR or EINVAL from kernels and servers that do not know the flag. */
    return error == EOPNOTSUPP || error == EISDIR || error == EINVAL;
}
