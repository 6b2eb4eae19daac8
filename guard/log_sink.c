/* SPDX-License-Identifier: MIT */
/*
 * log_sink.c: where lines go: descriptors, and functions of the program's.
 *
 *     taking ──it takes nothing for sink_ms──> stuck: passed over, but for a look whether it takes again ──it does──> taking
 *
 * Invariants
 *   - One thread writes at a time. It never waits longer than sink_ms for a descriptor: pipes and terminals are opened anew by way of /proc, so that
 *     O_NONBLOCK is the log's alone and not that of everybody who has the same file description; sockets are sent to without waiting.
 *   - What goes into a pipe at once has at most PIPE_BUF bytes: whole, or not at all (pipe(7)).
 *   - A line that was written half (a full disk) is torn: the next one begins with a newline.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "log_internal.h"

_Static_assert(GUARD_LOG_LINE <= PIPE_BUF, "a line goes into a pipe whole");

enum { SLICE_MS = 50, DYING_MS = 100, REFUSALS_MOST = 20 };

/* ----------------------------------------------------------------------------------------------- opening -- */

/* A file description of the log's own, where the kind of file allows that; else a duplicate. */
static int descriptor_duplicate(int descriptor, mode_t mode)
{
    if (S_ISFIFO(mode) || S_ISCHR(mode)) {
        char path[40];
        snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
        int own = guard_descriptor_raise(open(path, O_WRONLY | O_NONBLOCK | O_APPEND | O_CLOEXEC | O_NOCTTY));
        if (own >= 0) {
            return own;
        }
    }
    return fcntl(descriptor, F_DUPFD_CLOEXEC, 3);
}

void guard_sink_open_descriptor(guard_log_sink *sink, int descriptor)
{
    struct stat status = {.st_mode = 0};
    int state = guard_cancel_shut(); /* the log may be on no scope yet */
    int own = fstat(descriptor, &status) == 0 ? descriptor_duplicate(descriptor, status.st_mode) : -1;
    guard_cancel_restore(state);
    atomic_store(&sink->descriptor, own);
    sink->is_regular = S_ISREG(status.st_mode);
    sink->is_socket = S_ISSOCK(status.st_mode);
    sink->most = -1;
    sink->put = guard_sink_put_descriptor;
}

void guard_sink_close(guard_log_sink *sink)
{
    int descriptor = atomic_exchange(&sink->descriptor, -1);
    if (descriptor >= 0) {
        close(descriptor);
    }
    guard_deallocate(sink->path);
    sink->path = NULL;
}

guard_log_sink *guard_sink_next(guard_log *log)
{
    if (log == NULL) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "a sink for no log");
        return NULL;
    }
    unsigned count = atomic_load(&log->sink_count);
    if (count == LOG_SINKS) {
        guard_misuse(GUARD_MISUSE_STATE, "log %s has %d sinks already", log->name, LOG_SINKS);
        return NULL;
    }
    return &log->sinks[count];
}

void guard_sink_add(guard_log_sink *sink)
{
    atomic_fetch_add(&sink->log->sink_count, 1);
}

void guard_log_to_descriptor(guard_log *log, int descriptor)
{
    guard_log_sink *sink = guard_sink_next(log);
    if (sink == NULL) {
        return;
    }
    guard_sink_open_descriptor(sink, descriptor);
    if (atomic_load(&sink->descriptor) < 0) {
        guard_panic_os("log %s: descriptor %d", log->name, descriptor);
    }
    guard_sink_add(sink);
}

/* ----------------------------------------------------------------------------------------------- writing -- */

static int64_t patience_ms(const guard_log_sink *sink)
{
    if (sink->is_stuck) {
        return 0;
    }
    return sink->is_dying || atomic_load(&sink->log->is_stopping) ? DYING_MS : sink->log->options.sink_ms;
}

/* Whether it takes something now, or soon; it is stuck where it does not. In slices, since the log may be closed meanwhile. */
static bool sink_takes(guard_log_sink *sink)
{
    struct pollfd out = {.fd = atomic_load(&sink->descriptor), .events = POLLOUT};
    for (int64_t waited = 0; !sink->is_regular; waited += SLICE_MS) {
        int64_t left = patience_ms(sink) - waited;
        if (poll(&out, 1, (int)(left <= 0 ? 0 : left < SLICE_MS ? left : SLICE_MS)) > 0) {
            break; /* also by an error, which the write will tell */
        }
        if (left <= SLICE_MS) {
            sink->is_stuck = true;
            return false;
        }
    }
    sink->is_stuck = false;
    return true;
}

static ssize_t sink_write(const guard_log_sink *sink, const struct iovec *parts, int count)
{
    int descriptor = atomic_load(&sink->descriptor);
    if (sink->is_socket) {
        const struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)parts, .msg_iovlen = (size_t)count};
        return sendmsg(descriptor, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    return writev(descriptor, parts, count);
}

/* Takes off the parts what was written of them. Returns how many are whole; *is_half: some bytes of the next one were written, too. */
static int parts_advance(struct iovec *parts, int count, size_t written, bool *is_half)
{
    int whole = 0;
    while (whole < count && written >= parts[whole].iov_len) {
        written -= parts[whole++].iov_len;
    }
    *is_half = written > 0;
    if (written > 0) {
        parts[whole].iov_base = (char *)parts[whole].iov_base + written;
        parts[whole].iov_len -= written;
    }
    return whole;
}

/* Writes the parts; returns how many were written whole. */
static int parts_write(guard_log_sink *sink, struct iovec *parts, int count, bool *is_half)
{
    int done = 0;
    int refusals = 0;
    *is_half = false;
    while (done < count && sink_takes(sink)) {
        ssize_t written = sink_write(sink, parts + done, count - done);
        if (written < 0 && errno == EINTR) {
            continue;
        }
        if (written < 0 && errno == EAGAIN && refusals++ < REFUSALS_MOST) {
            poll(NULL, 0, 1); /* another writer was quicker, or a socket takes less than it says */
            continue;
        }
        if (written <= 0) {
            break;
        }
        sink->size += written;
        done += parts_advance(parts + done, count - done, (size_t)written, is_half);
    }
    return done;
}

/* How many of the lines go at once: into a pipe at most PIPE_BUF bytes, into a file what it may still have. */
static unsigned lines_that_fit(const guard_log_sink *sink, guard_log_slot *const *lines, unsigned count, size_t before)
{
    size_t most = sink->is_regular ? SIZE_MAX : PIPE_BUF;
    if (sink->is_regular && sink->most >= 0) {
        most = sink->most > sink->size ? (size_t)(sink->most - sink->size) : 0;
    }
    size_t bytes = before;
    unsigned fit = 0;
    while (fit < count && bytes + lines[fit]->length <= most) {
        bytes += lines[fit++]->length;
    }
    return fit;
}

/* Writes the lines, none of which may be empty, with a newline before them where one was torn. How many were written. */
static unsigned lines_write(guard_log_sink *sink, guard_log_slot *const *lines, unsigned count)
{
    static const char newline[] = "\n";
    struct iovec parts[LOG_BATCH + 1];
    unsigned first = sink->is_torn ? 1 : 0;
    bool is_half;
    parts[0] = (struct iovec){(void *)(uintptr_t)newline, 1};
    for (unsigned i = 0; i < count; i++) {
        parts[first + i] = (struct iovec){lines[i]->text, lines[i]->length};
    }
    unsigned written = (unsigned)parts_write(sink, parts, (int)(first + count), &is_half);
    sink->is_torn = written == 0 ? first != 0 || is_half : is_half;
    return written > first ? written - first : 0;
}

void guard_sink_put_descriptor(guard_log_sink *sink, guard_log_slot *const *lines, unsigned count, bool *is_lost)
{
    for (unsigned done = 0; done < count;) {
        size_t before = sink->is_torn ? 1 : 0;
        unsigned fit = atomic_load(&sink->descriptor) >= 0 ? lines_that_fit(sink, lines + done, count - done, before)
                                                           : 0;
        if (fit == 0 && !sink->is_dying && guard_sink_make_room(sink)) {
            continue;
        }
        if (fit == 0 && !sink->is_regular && before != 0 && atomic_load(&sink->descriptor) >= 0) {
            fit = 1; /* a line as long as can be, after a torn one */
        }
        unsigned written = fit > 0 ? lines_write(sink, lines + done, fit) : 0;
        done += written;
        if (written < fit || fit == 0) {
            is_lost[done++] = true;
        }
    }
}

/* --------------------------------------------------------------------------------------------- functions -- */

typedef struct callback {
    const guard_log_sink *sink;
    const guard_log_slot *line;
} callback;

static void callback_run(void *arg)
{
    const callback *this = arg;
    this->sink->fn(this->line->text, this->line->length, this->sink->arg);
}

static void put_callback(guard_log_sink *sink, guard_log_slot *const *lines, unsigned count, bool *is_lost)
{
    for (unsigned i = 0; i < count; i++) {
        callback this = {sink, lines[i]};
        is_lost[i] |= guard_run(callback_run, &this, NULL) != 0;
    }
}

void guard_log_to_callback(guard_log *log, guard_log_fn *fn, void *arg)
{
    guard_log_sink *sink = fn != NULL ? guard_sink_next(log) : NULL;
    if (fn == NULL) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "guard_log_to_callback without a function");
    }
    if (sink == NULL) {
        return;
    }
    sink->fn = fn;
    sink->arg = arg;
    sink->put = put_callback;
    guard_sink_add(sink);
}
