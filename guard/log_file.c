/* SPDX-License-Identifier: MIT */
/*
 * log_file.c: a log in a file with a path: opened anew where somebody has moved it, and moved away where it has become too long.
 *
 *     open ──another file, or none, is at the path (logrotate), or guard_log_reopen──> opened anew; where that fails, the old one goes on
 *       └──the next line would make it longer than it may be──> moved to PATH.1 ──> opened anew
 *
 * Rotating was chosen over stopping: a service that panics for a week must show the panics of today. The newest `most` bytes are always there.
 *
 * Invariants
 *   - Only whoever writes touches a file. A line is in the old file or in the new one, whole.
 *   - A file is moved only while it is the one at its path: of several processes with the same path one moves it, and the others find
 *     another file there.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log_internal.h"

#define SECOND 1000000000
#define MOST_DEFAULT ((int64_t)64 << 20)

/* O_NONBLOCK is for a FIFO, which without a reader is an error then; a file knows nothing of it. */
static int path_open(const char *path)
{
    int state = guard_cancel_shut(); /* its caller has allocated the path */
    int flags = O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
    int descriptor = guard_descriptor_raise(open(path, flags, 0640));
    guard_cancel_restore(state);
    return descriptor;
}

/* Takes the open file; the former one is closed. */
static void sink_take(guard_log_sink *sink, int descriptor)
{
    struct stat status = {.st_mode = 0};
    fstat(descriptor, &status);
    int former = atomic_exchange(&sink->descriptor, descriptor);
    sink->is_regular = S_ISREG(status.st_mode);
    sink->is_socket = false;
    sink->size = status.st_size;
    sink->is_torn = false;
    if (former >= 0) {
        close(former);
    }
}

/* Whether what is open lies at the path. */
static bool is_at_path(const guard_log_sink *sink)
{
    struct stat at_path;
    struct stat own;
    return stat(sink->path, &at_path) == 0 && fstat(atomic_load(&sink->descriptor), &own) == 0 &&
           at_path.st_dev == own.st_dev && at_path.st_ino == own.st_ino;
}

static bool sink_reopen(guard_log_sink *sink)
{
    int descriptor = path_open(sink->path);
    if (descriptor < 0) {
        return false;
    }
    sink_take(sink, descriptor);
    return true;
}

void guard_sink_look(guard_log_sink *sink)
{
    int64_t now = guard_clock();
    bool is_asked = sink->looked < 0;
    if (sink->path == NULL || (!is_asked && now - sink->looked < SECOND && atomic_load(&sink->descriptor) >= 0)) {
        return;
    }
    sink->looked = now;
    if (is_asked || !is_at_path(sink)) {
        sink_reopen(sink);
        return;
    }
    struct stat status;
    if (fstat(atomic_load(&sink->descriptor), &status) == 0) {
        sink->size = status.st_size; /* others may append, or have emptied it (logrotate's copytruncate) */
    }
}

/* For a line that does not fit: true where it was made to, or may be now. */
bool guard_sink_make_room(guard_log_sink *sink)
{
    if (sink->path == NULL) {
        return false;
    }
    if (atomic_load(&sink->descriptor) < 0 || !is_at_path(sink)) {
        return sink_reopen(sink);
    }
    if (!sink->is_regular || sink->size == 0) {
        return false;
    }
    char old[4096];
    if (snprintf(old, sizeof old, "%s.1", sink->path) >= (int)sizeof old || rename(sink->path, old) != 0) {
        return false;
    }
    if (!sink_reopen(sink)) {
        close(atomic_exchange(&sink->descriptor,
                              -1)); /* what was moved away must not grow: lines are lost until there is a new one */
        return false;
    }
    return true;
}

void guard_log_to_file(guard_log *log, const char *path, int64_t bytes_most)
{
    if (path == NULL || bytes_most < -1 || (bytes_most > 0 && bytes_most < GUARD_LOG_LINE)) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "guard_log_to_file %s",
                     path == NULL ? "without a path" : "with less than a line");
        return;
    }
    guard_log_sink *sink = guard_sink_next(log);
    if (sink == NULL) {
        return;
    }
    size_t size = strlen(path) + 1;
    char *copy = guard_allocate(size);
    int descriptor = path_open(path);
    if (descriptor < 0) {
        int code = errno;
        guard_deallocate(copy);
        errno = code;
        guard_panic_os("log %s: %s", log->name, path);
    }
    memcpy(copy, path, size);
    sink->path = copy;
    sink->most = bytes_most != 0 ? bytes_most : MOST_DEFAULT;
    sink->put = guard_sink_put_descriptor;
    sink->looked = guard_clock();
    sink_take(sink, descriptor);
    guard_sink_add(sink);
}
