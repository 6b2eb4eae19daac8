/* SPDX-License-Identifier: MIT */
/*
 * guard_file_stream.c: streams and descriptors.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guard_file_internal.h"

_Static_assert(GUARD_FILE_HERE == AT_FDCWD, "guard_file.h says it without fcntl.h");

static void held_forget(void *object)
{
    guard_deallocate(object);
}

/* ----------------------------------------------------------------------------------------------- streams -- */

static void stream_release(void *object)
{
    file_held *held = object;
    int error = guard_impl_file_close_stream(held->is.stream);
    if (error != 0) {
        errno = error;
        guard_impl_file_fail(held, error == EIO ? "read or write all of" : "close");
    }
    guard_deallocate(held);
}

static void stream_child(void *object)
{
    file_held *held = object;
    guard_impl_file_discard_stream(held->is.stream);
    guard_deallocate(held);
}

static size_t stream_describe(const void *object, char *text, size_t size)
{
    const file_held *held = object;
    return guard_impl_file_describe("file", held->path, text, size);
}

static const guard_kind stream_kind = {.name = "file",
                                       .release = stream_release,
                                       .child = stream_child,
                                       .describe = stream_describe,
                                       .since = guard_impl_file_since,
                                       .action = "close",
                                       .flags = GUARD_KIND_HEAP,
                                       .dismiss = held_forget};

/* The same file on a descriptor that is no standard stream's; but where the mode names a character set, which fdopen does not know. */
static FILE *stream_raise(FILE *stream, const char *mode)
{
    if (fileno(stream) > STDERR_FILENO || strchr(mode, ',') != NULL) {
        return stream;
    }
    int descriptor = fcntl(fileno(stream), F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    int error = errno;
    fclose(stream); /* nothing was written to it */
    stream = descriptor >= 0 ? fdopen(descriptor, mode) : NULL;
    if (descriptor >= 0 && stream == NULL) {
        error = errno;
        close(descriptor);
    }
    errno = error;
    return stream;
}

static FILE *stream_open(const char *path, const char *mode)
{
    /* fopen reads at most six characters after the first, and all it knows fit in. */
    char with_cloexec[64];
    int length = snprintf(with_cloexec, sizeof with_cloexec, "%.1se%s", mode, mode + 1);
    if (strchr("rwa", mode[0]) == NULL || length >= (int)sizeof with_cloexec) {
        errno = EINVAL;
        return NULL;
    }
    FILE *stream;
    do {
        stream = fopen(path, with_cloexec);
    } while (stream == NULL && errno == EINTR);
    stream = stream != NULL ? stream_raise(stream, with_cloexec) : NULL;
    if (stream == NULL) {
        return NULL;
    }
    struct stat status;
    int error = fstat(fileno(stream), &status) != 0 ? errno : S_ISDIR(status.st_mode) ? EISDIR : 0;
    if (error != 0) {
        fclose(stream);
        errno = error;
        return NULL;
    }
    return stream;
}

FILE *guard_impl_file_open(guard_scope *scope, const char *path, const char *mode, guard_ticket *ticket,
                           const guard_place *place)
{
    file_held *held = guard_impl_file_hold(scope, path, place);
    int state = guard_foreign_open();
    held->is.stream = mode == NULL || mode[0] == '\0' ? (errno = EINVAL, NULL) : stream_open(path, mode);
    guard_foreign_close(state);
    if (held->is.stream == NULL) {
        guard_impl_file_fail(held, "open");
    }
    FILE *stream = held->is.stream;
    guard_impl_file_register(scope, &stream_kind, held, ticket, place);
    return stream;
}

static void stream_close_unregistered(void *stream)
{
    fclose(stream);
}

FILE *guard_impl_file_adopt(guard_scope *scope, FILE *stream, const char *name, guard_ticket *ticket,
                            const guard_place *place)
{
    if (!guard_impl_file_has(stream, "adopting no stream: was the call that opened it looked at?", place)) {
        return NULL;
    }
    /* The stream is the scope's before anything can fail: until its object is made, a plain defer closes it. */
    guard_ticket meanwhile = guard_impl_defer(scope, stream_close_unregistered, stream, place);
    file_held *held = guard_impl_file_hold(scope, name, place);
    held->is.stream = stream;
    guard_dismiss(meanwhile);
    guard_impl_file_register(scope, &stream_kind, held, ticket, place);
    return stream;
}

/* 0 or errno. */
static int stream_sync(FILE *stream)
{
    if (fflush(stream) != 0) {
        return errno;
    }
    if (ferror(stream)) {
        return EIO;
    }
    int failed;
    do {
        failed = fsync(fileno(stream));
    } while (failed != 0 && errno == EINTR);
    return failed == 0 ? 0 : errno;
}

void guard_impl_file_sync(FILE *stream, const guard_place *place)
{
    if (!guard_impl_file_has(stream, "bringing no stream to the disk", place)) {
        return;
    }
    guard_impl_cancel_point(place);
    int state = guard_foreign_open();
    int error = stream_sync(stream);
    guard_foreign_close(state);
    if (error != 0) {
        file_name name;
        guard_impl_file_descriptor_name(&name, fileno(stream));
        errno = error;
        guard_impl_panic_os(place, "cannot bring %s to the disk", name.text);
    }
}

/* ------------------------------------------------------------------------------------------- descriptors -- */

static void descriptor_release(void *object)
{
    file_held *held = object;
    int error = guard_impl_file_close(held->is.descriptor);
    if (error != 0) {
        errno = error;
        guard_impl_file_fail(held, "close");
    }
    guard_deallocate(held);
}

static void descriptor_child(void *object)
{
    file_held *held = object;
    guard_impl_file_close(held->is.descriptor);
    guard_deallocate(held);
}

static size_t descriptor_describe(const void *object, char *text, size_t size)
{
    const file_held *held = object;
    return guard_impl_file_describe("descriptor", held->path, text, size);
}

static const guard_kind descriptor_kind = {.name = "descriptor",
                                           .release = descriptor_release,
                                           .child = descriptor_child,
                                           .describe = descriptor_describe,
                                           .since = guard_impl_file_since,
                                           .action = "close",
                                           .flags = GUARD_KIND_HEAP,
                                           .dismiss = held_forget};

int guard_impl_file_open_descriptor(guard_scope *scope, int directory, const char *path, int flags, mode_t mode,
                                    guard_ticket *ticket, const guard_place *place)
{
    file_held *held = guard_impl_file_hold(scope, path, place);
    int descriptor, state = guard_foreign_open();
    do {
        descriptor = openat(directory, path, flags | O_CLOEXEC, mode);
    } while (descriptor < 0 && errno == EINTR);
    descriptor = guard_impl_file_raise(descriptor);
    guard_foreign_close(state);
    if (descriptor < 0) {
        guard_impl_file_fail(held, "open");
    }
    held->is.descriptor = descriptor;
    guard_impl_file_register(scope, &descriptor_kind, held, ticket, place);
    return descriptor;
}

static void descriptor_close_unregistered(void *descriptor)
{
    close((int)(intptr_t)descriptor);
}

int guard_impl_file_adopt_descriptor(guard_scope *scope, int descriptor, const char *name, guard_ticket *ticket,
                                     const guard_place *place)
{
    if (descriptor < 0) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT,
                          "adopting descriptor %d: was the call that opened it looked at?", descriptor);
        return -1;
    }
    guard_ticket meanwhile = guard_impl_defer(scope, descriptor_close_unregistered, (void *)(intptr_t)descriptor,
                                              place);
    file_held *held = guard_impl_file_hold(scope, name, place);
    held->is.descriptor = descriptor;
    guard_dismiss(meanwhile);
    guard_impl_file_register(scope, &descriptor_kind, held, ticket, place);
    return descriptor;
}

size_t guard_impl_file_read(int descriptor, void *data, size_t size, const guard_place *place)
{
    size_t done = 0;
    struct stat status;
    /* What may not be there yet is waited for where a cancel ends the wait. */
    bool waits = fstat(descriptor, &status) == 0 && !S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode);
    while (done < size) {
        if (waits) {
            guard_impl_wait(descriptor, POLLIN, -1, place);
        } else {
            guard_impl_cancel_point(place);
        }
        ssize_t got = read(descriptor, (char *)data + done, size - done);
        if (got == 0) {
            break;
        }
        if (got > 0) {
            done += (size_t)got;
        } else if (errno != EINTR && (errno != EAGAIN || !waits)) { /* another reader was quicker */
            file_name name;
            guard_impl_panic_os(place, "cannot read %s", guard_impl_file_descriptor_name(&name, descriptor));
        }
    }
    return done;
}

void guard_impl_file_write(int descriptor, const void *data, size_t size, const guard_place *place)
{
    size_t done = 0;
    while (done < size) {
        guard_impl_cancel_point(place);
        ssize_t put = write(descriptor, (const char *)data + done, size - done);
        if (put >= 0) {
            done += (size_t)put;
        } else if (errno == EAGAIN) { /* whoever shares a terminal or pipe may have set O_NONBLOCK */
            guard_impl_wait(descriptor, POLLOUT, -1, place);
        } else if (errno != EINTR) {
            file_name name;
            guard_impl_panic_os(place, "cannot write %s", guard_impl_file_descriptor_name(&name, descriptor));
        }
    }
}
