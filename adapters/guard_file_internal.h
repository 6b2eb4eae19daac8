/* SPDX-License-Identifier: MIT */
/*
 * guard_file_internal.h: what the parts of the file adapter share; hidden, not installed.
 */
#ifndef GUARD_FILE_INTERNAL_H
#define GUARD_FILE_INTERNAL_H

#include <stdbool.h>
#include <time.h>

#include <guard/guard_cancel.h>
#include <guard/guard_fault.h>
#include <guard/guard_dump.h>
#include <guard/guard_file.h>

/* ------------------------------------------------------------------------------------------------- names -- */

/* A path fit for a message of guard_error (300 bytes): quoted, control characters escaped, its middle cut out
 * beyond 160 bytes. */
typedef struct file_name {
    char text[176];
} file_name;

const char *guard_impl_file_quote(file_name *name, const char *path);

/* False, and misuse, where an argument is missing that the call cannot do without. */
bool guard_impl_file_has(const void *argument, const char *what, const guard_place *place);

/* What /proc says is open there, else "descriptor 7". For messages only. */
const char *guard_impl_file_descriptor_name(file_name *name, int descriptor);

/* ------------------------------------------------------------------------------------------ held objects -- */

/* Begins every object of this adapter: where and when it was acquired. */
typedef struct file_origin {
    const guard_place *place;
    int64_t since; /* guard_dump_clock */
} file_origin;

void guard_impl_file_origin(file_origin *origin, const guard_place *place);

/* As snprintf: `WHAT "path"`. */
size_t guard_impl_file_describe(const char *what, const char *path, char *text, size_t size);
/* Of every object of this adapter, as a kind's. */
int64_t guard_impl_file_since(const void *object);

/* One open thing and its path. Allocated before it is opened, so that nothing can fail between opening and
 * registering. */
typedef struct file_held {
    file_origin origin;
    union {
        FILE *stream;
        DIR *directory;
        int descriptor;
    } is;
    char path[];
} file_held;

/* Reserves one registration on `scope`, too. Panics GUARD_MEMORY; misuse where path is NULL. */
file_held *guard_impl_file_hold(guard_scope *scope, const char *path, const guard_place *place);

/* Gives the object back and panics GUARD_OS with errno as it is: "cannot WHAT "path"". */
GUARD_NORETURN void guard_impl_file_fail(file_held *held, const char *what);

/* Registers the object and fills *ticket where that is not NULL. */
void guard_impl_file_register(guard_scope *scope, const guard_kind *kind, void *object, guard_ticket *ticket,
                              const guard_place *place);

/* The descriptor, or a duplicate where it is one of the standard streams' numbers, which were closed: what others write there is not to end up in a
 * file. -1 with errno where it cannot be had; it is closed then. */
int guard_impl_file_raise(int descriptor);

/* Closes a descriptor for good whatever close(2) says: on Linux it is gone, also after EINTR. Returns 0 or errno. */
int guard_impl_file_close(int descriptor);

/* Closes a stream: 0, or errno; EIO where an earlier error of it was not looked at. */
int guard_impl_file_close_stream(FILE *stream);

/* In a forked child: frees the stream without writing what was buffered or moving the offset it shares with its
 * parent. */
void guard_impl_file_discard_stream(FILE *stream);

/* ------------------------------------------------------------------------------------------- directories -- */

/* Where a path leads: the directory, open, and the last name in it. */
typedef struct file_location {
    int directory;  /* open for reading, or O_PATH where the directory may not be read */
    bool readable;  /* the former */
    char name[256]; /* NAME_MAX and its end */
} file_location;

/*
 * Follows `path` to the directory that holds its last component and, where `follow`, all symbolic links there,
 * as long as there are any. The last component need not exist. Returns 0 or errno (EISDIR where it is a
 * directory's: `a/`, `.`; ELOOP for a link that is not followed); nothing is open then.
 */
int guard_impl_file_locate(const char *path, bool follow, file_location *location);

/* Opens a directory as a location has it. Returns 0 or errno. */
int guard_impl_file_open_location(int base, const char *path, file_location *location);

/* Creates a file under a name nobody has, `.PREFIX.<16 hex digits>SUFFIX`, for update, which a fatal signal removes until *temporary
 * is forgotten (guard_temporary_forget), before the directory is closed. Returns the descriptor, or -1 with errno. */
int guard_impl_file_create(int directory, const char *prefix, const char *suffix, mode_t mode, char name[256],
                           int *temporary);

/* Only the name, which nobody has guessed. */
void guard_impl_file_random_name(const char *prefix, const char *suffix, char name[256]);

/* Opens a file without a name in the directory, for update; -1 with errno where the file system has none
 * (guard_impl_file_no_unnamed(errno)). */
int guard_impl_file_create_unnamed(int directory, mode_t mode);
bool guard_impl_file_no_unnamed(int error);

#endif
