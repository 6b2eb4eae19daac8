/* SPDX-License-Identifier: MIT */
/*
 * guard_file_held.c: names for messages, and what all held things of the file adapter have in common.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio_ext.h>
#include <string.h>
#include <unistd.h>

#include "guard_file_internal.h"

/* ------------------------------------------------------------------------------------------------- names -- */

/* Writes one byte of a path as it is to be read; returns how many characters that took (at most 4). */
static size_t byte_escape(unsigned char byte, char *to)
{
    static const char digits[] = "0123456789abcdef";
    if (byte == '"' || byte == '\\') {
        to[0] = '\\';
        to[1] = (char)byte;
        return 2;
    }
    if (byte == '\n' || byte == '\t') {
        to[0] = '\\';
        to[1] = byte == '\n' ? 'n' : 't';
        return 2;
    }
    if (byte < 0x20 || byte == 0x7f) {
        to[0] = '\\';
        to[1] = 'x';
        to[2] = digits[byte >> 4];
        to[3] = digits[byte & 15];
        return 4;
    }
    to[0] = (char)byte;
    return 1;
}

static bool byte_continues(char byte)
{
    return ((unsigned char)byte & 0xc0) == 0x80;
}

const char *guard_impl_file_quote(file_name *name, const char *path)
{
    enum { HEAD = 40, TAIL = 110 };
    static const char gap[] = "...";
    char whole[4 * 160];
    size_t length = strlen(path);
    size_t used = 0;
    /* What is cut is the middle: the end tells files apart, the beginning where they are. */
    for (size_t at = 0; at < length && used < sizeof whole - 4; at++) {
        used += byte_escape((unsigned char)path[at], whole + used);
    }
    char *to = name->text;
    *to++ = '"';
    if (used <= HEAD + TAIL + sizeof gap && used < sizeof whole - 4) {
        memcpy(to, whole, used);
        to += used;
    } else {
        size_t head = HEAD;
        while (head > 0 && byte_continues(whole[head])) {
            head--;
        }
        memcpy(to, whole, head);
        to += head;
        memcpy(to, gap, sizeof gap - 1);
        to += sizeof gap - 1;
        /* The tail again from the end of the path, as many bytes of it as fit when escaped. */
        char escaped[4];
        size_t from = length, room = TAIL;
        for (size_t need; from > 0 && (need = byte_escape((unsigned char)path[from - 1], escaped)) <= room; from--) {
            room -= need;
        }
        while (from < length && byte_continues(path[from])) {
            from++;
        }
        for (; from < length; from++) {
            to += byte_escape((unsigned char)path[from], to);
        }
    }
    *to++ = '"';
    *to = '\0';
    return name->text;
}

const char *guard_impl_file_descriptor_name(file_name *name, int descriptor)
{
    char link[40], target[4096];
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, target, sizeof target - 1);
    errno = saved;
    if (length <= 0) {
        snprintf(name->text, sizeof name->text, "descriptor %d", descriptor);
        return name->text;
    }
    target[length] = '\0';
    return guard_impl_file_quote(name, target);
}

/* ------------------------------------------------------------------------------------------ held objects -- */

void guard_impl_file_origin(file_origin *origin, const guard_place *place)
{
    origin->place = place;
    origin->since = guard_dump_clock();
}

int64_t guard_impl_file_since(const void *object)
{
    return ((const file_origin *)object)->since;
}

bool guard_impl_file_has(const void *argument, const char *what, const guard_place *place)
{
    if (argument == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "%s", what);
    }
    return argument != NULL;
}

size_t guard_impl_file_describe(const char *what, const char *path, char *text, size_t size)
{
    file_name name;
    int length = snprintf(text, size, "%s %s", what, guard_impl_file_quote(&name, path));
    return length < 0 ? 0 : (size_t)length;
}

file_held *guard_impl_file_hold(guard_scope *scope, const char *path, const guard_place *place)
{
    if (path == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "a file without a path");
        guard_impl_panic(place, GUARD_OS, EFAULT, "a file without a path cannot be opened");
    }
    guard_impl_cancel_point(place);
    guard_impl_reserve(scope, 1, place);
    size_t length = strlen(path) + 1;
    file_held *held = guard_allocate(sizeof *held + length);
    guard_impl_file_origin(&held->origin, place);
    memcpy(held->path, path, length);
    return held;
}

void guard_impl_file_fail(file_held *held, const char *what)
{
    int error = errno;
    file_name name;
    const guard_place *place = held->origin.place;
    guard_impl_file_quote(&name, held->path);
    guard_deallocate(held);
    errno = error;
    guard_impl_panic_os(place, "cannot %s %s", what, name.text);
}

void guard_impl_file_register(guard_scope *scope, const guard_kind *kind, void *object, guard_ticket *ticket,
                              const guard_place *place)
{
    guard_ticket registered = guard_impl_defer_kind(scope, kind, object, place);
    if (ticket != NULL) {
        *ticket = registered;
    }
}

int guard_impl_file_raise(int descriptor)
{
    if (descriptor < 0 || descriptor > STDERR_FILENO) {
        return descriptor;
    }
    int raised = fcntl(descriptor, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    int error = errno;
    close(descriptor);
    errno = error;
    return raised;
}

int guard_impl_file_close(int descriptor)
{
    int state = guard_foreign_open();
    int error = close(descriptor) == 0 || errno == EINTR ? 0 : errno;
    guard_foreign_close(state);
    return error;
}

int guard_impl_file_close_stream(FILE *stream)
{
    /* fclose succeeds when its own last write does, whatever was lost before. */
    bool lost = ferror(stream) != 0;
    int state = guard_foreign_open();
    int error = fclose(stream) == 0 || errno == EINTR ? 0 : errno;
    guard_foreign_close(state);
    return error == 0 && lost ? EIO : error;
}

void guard_impl_file_discard_stream(FILE *stream)
{
    int state = guard_foreign_open();
    __fpurge(stream);
    fclose(stream);
    guard_foreign_close(state);
}
