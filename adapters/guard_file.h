/* SPDX-License-Identifier: MIT */
/*
 * guard_file.h: files, directories, mappings, memory, temporary files, whole-file locks and atomic replacement, each
 * given back when its scope ends.
 *
 * PURPOSE
 *
 *   Whatever is opened here is registered on a scope. However the scope is left, it is closed, unlocked or taken away
 *   again, and a close that fails is told instead of lost.
 *
 * CALLING SEQUENCE
 *
 *     GUARD_AUTO(s);
 *     FILE *in = guard_file_open(s, "in.csv", "r", NULL);   // closed when s ends
 *
 *     guard_ticket out_ticket;
 *     FILE *out = guard_file_open(s, "out.csv", "w", &out_ticket);
 *     ...
 *     guard_release(out_ticket);                            // closed now; panics if anything written was lost
 *
 *     guard_file_replace *page = guard_file_replace_begin(s, "index.html", NULL);
 *     fputs("...", guard_file_replace_stream(page));
 *     guard_file_replace_commit(page);                      // the new content is there, whole; else the old
 *
 *   One rule for closing early: a function that returns a plain C thing (FILE *, descriptor, DIR *, address)
 *   takes as its last argument (before a format) `guard_ticket *ticket`, NULL where nobody asks; a function
 *   whose only product is the registration (a lock) returns the ticket. With a ticket, guard_release closes now
 *   and panics at once if that fails, guard_dismiss makes the thing the caller's own, guard_move hands it to
 *   another scope. Never fclose or close what a scope owns. Only guard_file_replace is an object with verbs of
 *   its own.
 *
 * ERRORS
 *
 *   A path, stream or place for a result that is NULL, or a descriptor below 0 that is to be adopted, is misuse.
 *   All failures panic: domain GUARD_OS with errno as code; GUARD_MEMORY; GUARD_TIMEOUT and GUARD_LOCK for
 *   locks; GUARD_MISUSE. The message names the culprit, its control characters escaped, its middle cut out
 *   beyond 160 bytes. The place is the caller's; for a failing close it is where the thing was opened. A close
 *   that fails while another panic runs is attached to that one.
 *
 *   A stream that had an error its user did not look at (ferror) fails when it is closed, with EIO: what was
 *   read or written is not whole. clearerr() says that it was dealt with.
 *
 * THREADS AND PROCESSES
 *
 *   Every function may be called by any thread, for a scope of that thread. All descriptors opened here are
 *   close-on-exec and, but for directories, above 2: where a program was started with its standard streams closed, what others write there does not
 *   end up in a file. All calls that open, read, write, sync, lock, begin or commit are checkpoints
 *   (guard_cancel.h), and waits for a lock and in guard_file_read end by one; opening, closing and publishing
 *   are not cut short, not by pthread_cancel(3) either.
 *
 *   In a forked child inherited things are not released: the child closes its copies of the descriptors, writes
 *   out nothing that was buffered at the fork, unlinks nothing, unlocks nothing, and keeps memory and mappings.
 *   While a child holds such a copy, so is a lock of a parent that was killed. Ending the parent's replacement
 *   is misuse.
 *
 * NEVER
 *
 *   open, map or lock an SQLite database file with this: closing any descriptor of it drops SQLite's locks of this
 *   process (https://www.sqlite.org/howtocorrupt.html, 2.2). guard_file_lock_beside is the lock for a database.
 *
 *   Linux 3.17 and glibc 2.28 or later.
 */
#ifndef GUARD_GUARD_FILE_H
#define GUARD_GUARD_FILE_H

#include <dirent.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/types.h>

#include <guard/guard.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ----------------------------------------------------------------------------------------------- streams -- */

/* FILE *guard_file_open(guard_scope *, const char *path, const char *mode, guard_ticket *ticket):
 * fopen(3) with its modes. A directory is refused (EISDIR), which fopen opens for reading and then fails to read. */
#define guard_file_open(scope, path, mode, ticket) guard_impl_file_open((scope), (path), (mode), (ticket), GUARD_HERE)

/* FILE *guard_file_adopt(guard_scope *, FILE *stream, const char *name, guard_ticket *ticket):
 * registers a stream the caller opened (fdopen, fmemopen); `name` is for messages and copied. It is closed with
 * fclose, also when it cannot be registered; so no popen streams. Returns it. */
#define guard_file_adopt(scope, stream, name, ticket) \
    guard_impl_file_adopt((scope), (stream), (name), (ticket), GUARD_HERE)

/* void guard_file_sync(FILE *stream): what was written is on the disk: fflush(3), then fsync(2). Panics
 * GUARD_OS, also for an error that the stream had before. */
#define guard_file_sync(stream) guard_impl_file_sync((stream), GUARD_HERE)

/* ------------------------------------------------------------------------------------------- descriptors -- */

/* int guard_file_open_descriptor(guard_scope *, const char *path, int flags, mode_t mode, guard_ticket *ticket):
 * open(2) with O_CLOEXEC; `mode` as there, 0 where nothing is created. */
#define guard_file_open_descriptor(scope, path, flags, mode, ticket) \
    guard_impl_file_open_descriptor((scope), GUARD_FILE_HERE, (path), (flags), (mode), (ticket), GUARD_HERE)

/* The same relative to an open directory: openat(2). */
#define guard_file_open_descriptor_at(scope, directory, path, flags, mode, ticket) \
    guard_impl_file_open_descriptor((scope), (directory), (path), (flags), (mode), (ticket), GUARD_HERE)
#define GUARD_FILE_HERE (-100) /* AT_FDCWD: relative to the working directory */

/* int guard_file_adopt_descriptor(guard_scope *, int descriptor, const char *name, guard_ticket *ticket):
 * registers a descriptor of the caller's (socket, pipe), which is closed also when it cannot be registered.
 * Returns it. */
#define guard_file_adopt_descriptor(scope, descriptor, name, ticket) \
    guard_impl_file_adopt_descriptor((scope), (descriptor), (name), (ticket), GUARD_HERE)

/* size_t guard_file_read(int descriptor, void *data, size_t size):
 * read(2) until `size` bytes are there or the end is: the number of bytes, less than `size` only at the end. */
#define guard_file_read(descriptor, data, size) guard_impl_file_read((descriptor), (data), (size), GUARD_HERE)

/* void guard_file_write(int descriptor, const void *data, size_t size): write(2) until all is written. Where the descriptor
 * does not block (O_NONBLOCK) room is waited for, until a cancel or a deadline comes. */
#define guard_file_write(descriptor, data, size) guard_impl_file_write((descriptor), (data), (size), GUARD_HERE)

/* ------------------------------------------------------------------------------ directories and mappings -- */

/* DIR *guard_file_open_directory(guard_scope *, const char *path, guard_ticket *ticket): opendir(3). */
#define guard_file_open_directory(scope, path, ticket) \
    guard_impl_file_open_directory((scope), (path), (ticket), GUARD_HERE)

/* struct dirent *guard_file_read_directory(DIR *): the next entry, `.` and `..` left out, NULL at the end;
 * readdir(3), whose errors panic. The entry is the directory's until its next call. */
#define guard_file_read_directory(directory) guard_impl_file_read_directory((directory), GUARD_HERE)

/* const void *guard_file_map(guard_scope *, const char *path, size_t *size, guard_ticket *ticket):
 * the whole regular file, read only, and its size. An empty file gives a valid address that must not be read. A
 * file that is cut short while it is mapped raises SIGBUS at the reader: mmap(2). */
#define guard_file_map(scope, path, size, ticket) guard_impl_file_map((scope), (path), (size), (ticket), GUARD_HERE)

/* void *guard_file_map_descriptor(guard_scope *, int descriptor, off_t offset, size_t size, int protection, int
 * flags, guard_ticket *ticket): mmap(2). Closing tells of no write-back error: msync(2) before that where it
 * matters. */
#define guard_file_map_descriptor(scope, descriptor, offset, size, protection, flags, ticket) \
    guard_impl_file_map_descriptor((scope), (descriptor), (offset), (size), (protection), (flags), (ticket), GUARD_HERE)

/* ------------------------------------------------------------------------------------------------ memory -- */

/*
 * Memory from malloc(3), freed when the scope ends; dismissed, it is the caller's to free(). Panics
 * GUARD_MEMORY. A size of 0 gives an address of its own.
 */

/* void *guard_memory_allocate(guard_scope *, size_t size, guard_ticket *ticket): as malloc, not cleared. */
#define guard_memory_allocate(scope, size, ticket) guard_impl_memory_allocate((scope), (size), (ticket), GUARD_HERE)

/* void *guard_memory_allocate_array(guard_scope *, size_t count, size_t size, guard_ticket *ticket): as calloc,
 * zeroed. */
#define guard_memory_allocate_array(scope, count, size, ticket) \
    guard_impl_memory_allocate_array((scope), (count), (size), (ticket), GUARD_HERE)

/* void *guard_memory_resize(guard_scope *, void *memory, size_t size, guard_ticket *ticket):
 * as realloc. *ticket is that of `memory` (another's is misuse) and becomes that of the result, which is the newest registration of
 * `scope`; with memory NULL it is filled only. When it panics, memory and ticket are what they were. */
#define guard_memory_resize(scope, memory, size, ticket) \
    guard_impl_memory_resize((scope), (memory), (size), (ticket), GUARD_HERE)

/* char *guard_memory_copy(guard_scope *, const char *text, guard_ticket *ticket): as strdup. */
#define guard_memory_copy(scope, text, ticket) guard_impl_memory_copy((scope), (text), (ticket), GUARD_HERE)

/* char *guard_memory_format(guard_scope *, guard_ticket *ticket, const char *format, ...): as asprintf. */
#define guard_memory_format(scope, ticket, ...) guard_impl_memory_format((scope), (ticket), GUARD_HERE, __VA_ARGS__)

/* ---------------------------------------------------------------------------------------- temporary files -- */

/*
 * `directory` NULL is $TMPDIR (not in a set-user-ID program), else /tmp. The directory is held open: what is
 * removed is removed from it even if it was renamed meanwhile. Modes are 0600 and 0700. With guard_fatal_signals
 * (guard_fault.h) a fatal signal removes named ones too, and a directory if it is empty.
 */

/* FILE *guard_file_temporary(guard_scope *, const char *directory, guard_ticket *ticket):
 * a file without a name, open for update ("w+"), gone with its stream, also after SIGKILL (on file systems
 * without O_TMPFILE it has a name for a moment). */
#define guard_file_temporary(scope, directory, ticket) \
    guard_impl_file_temporary((scope), (directory), (ticket), GUARD_HERE)

/* FILE *guard_file_temporary_named(guard_scope *, const char *directory, const char **path, guard_ticket *ticket):
 * the same with a name, whose absolute path is *path until it is closed; closing unlinks it, which is no error
 * if that was done already. */
#define guard_file_temporary_named(scope, directory, path, ticket) \
    guard_impl_file_temporary_named((scope), (directory), (path), (ticket), GUARD_HERE)

/* const char *guard_file_temporary_directory(guard_scope *, const char *directory, guard_ticket *ticket):
 * a new directory's absolute path, valid until it is removed with all that is in it; symbolic links in it are
 * not followed. */
#define guard_file_temporary_directory(scope, directory, ticket) \
    guard_impl_file_temporary_directory((scope), (directory), (ticket), GUARD_HERE)

/* ------------------------------------------------------------------------------------------------- locks -- */

/*
 * Advisory locks on whole files, owned by an open file description (fcntl(2), "Open file description locks"),
 * so that two threads of a process exclude each other too. They are polled, 1 ms at first and then less often,
 * up to every 50 ms: the kernel's blocking form has no deadline but a signal's, and signals are the program's.
 * So a waiter may be overtaken. Released by unlocking, then closing, by the owner only. When the process dies
 * the kernel releases them.
 *
 * Past the deadline: GUARD_TIMEOUT, ETIMEDOUT; with no_wait: GUARD_LOCK, EAGAIN.
 */
#define GUARD_FILE_LOCK_WAIT_MS 10000

typedef struct guard_file_lock_options {
    int wait_ms; /* milliseconds; 0: GUARD_FILE_LOCK_WAIT_MS; -1: for ever */
    int no_wait; /* 1: panic at once where it would have to wait; wait_ms must be 0 */
    int shared;  /* 0: exclusive; 1: shared with other shared ones */
    int reserved_int;
    const void *reserved[4]; /* NULL */
} guard_file_lock_options;

/* guard_ticket guard_file_lock(guard_scope *, int descriptor, const guard_file_lock_options *options):
 * locks the file that is open there (for writing; for reading if shared). The lock holds until it is released,
 * even if the descriptor is closed before that, and there is one for each time the file was opened: locking it
 * again converts it. Dismissed, it is the caller's, who ends it by closing the descriptor. options NULL: all
 * zero. */
#define guard_file_lock(scope, descriptor, ...) guard_impl_file_lock((scope), (descriptor), (__VA_ARGS__), GUARD_HERE)

/* guard_ticket guard_file_lock_beside(guard_scope *, const char *path, const guard_file_lock_options *options):
 * locks `<path>.guard-lock`, made if need be (0666 less the umask) and never unlinked, where `path` is first
 * followed through all symbolic links; nothing at `path` itself is opened, nor need it exist. A file with
 * several hard links has several locks. An exclusive holder writes its process id and host into the lock file,
 * and one that waits in vain has them in its message: `"/var/db/x.db.guard-lock" is held by pid 4711 on host
 * alpha`, or `held by others, which share it`. The text is empty while nobody holds it, but may be an earlier holder's after a kill, for the instant
 * before the next has written its own. */
#define guard_file_lock_beside(scope, path, ...) guard_impl_file_lock_beside((scope), (path), (__VA_ARGS__), GUARD_HERE)

/* ------------------------------------------------------------------------------------- atomic replacement -- */

/*
 * Replaces the content of a file in one step: a new file is written in the same directory, brought to the disk,
 * and renamed over the old one. A reader, and a machine after a power cut, sees the whole old or the whole new
 * content.
 *
 *     open --commit--> published            the name has the new content
 *     open --commit panics--> gone          nothing was published, but for one case, see there
 *     open --rollback, end of the scope--> gone
 *
 * Until it is published the new file has no name where the file system can do that (O_TMPFILE, with /proc), so
 * that nothing is left of a killed program; elsewhere, and for the moment of publishing, it is
 * `.NAME.XXXXXXXXXXXXXXXX.guard-tmp`, which a fatal signal removes (guard_fault.h).
 *
 * The rule for links: symbolic links at `path` are followed and the file at their end is replaced (or made,
 * where the last one dangles); with refuse_link one at the end of `path` is refused (ELOOP). Other hard links
 * of the old file keep the old content.
 *
 * The rule for modes: a new file gets 0666 less the umask (and the directory's default ACL). An existing one
 * keeps its permission bits, and owner and group where this process may set them. Where the group cannot be
 * kept, the group gets no more than all others have; where owner or group cannot, set-user-ID and set-group-ID
 * are dropped. ACLs and extended attributes of the old file are not kept. `mode` overrides the bits. What
 * counts is the directory's permission: a read-only file is replaced too.
 *
 * The directory is held open from the beginning: it may be renamed meanwhile. Only regular files are replaced:
 * EISDIR for a directory, EINVAL for a device or a pipe.
 */
typedef struct guard_file_replace guard_file_replace; /* opaque; lives until its scope ends */

typedef struct guard_file_replace_options {
    mode_t mode;     /* 0: the rule above; else the permission bits, whatever the umask */
    int exclusive;   /* 1: there must not be such a file, at the beginning and when it is published (EEXIST) */
    int refuse_link; /* 1: a symbolic link at the end of the path is refused */
    int reserved_int;
    const void *reserved[4]; /* NULL */
} guard_file_replace_options;

/* guard_file_replace *guard_file_replace_begin(guard_scope *, const char *path, const
 * guard_file_replace_options *options):
 * makes the new file, empty: a directory that cannot be written is noticed here. options NULL: all zero. */
#define guard_file_replace_begin(scope, path, ...) \
    guard_impl_file_replace_begin((scope), (path), (__VA_ARGS__), GUARD_HERE)

/* The stream for the new content, open for update; its descriptor is fileno() of it. It belongs to the
 * replacement, which closes it; NULL after commit and rollback. */
GUARD_API FILE *guard_file_replace_stream(const guard_file_replace *replace);

/* void guard_file_replace_commit(guard_file_replace *):
 * flushes, syncs, closes and publishes; a checkpoint only before that. If it panics nothing was published and
 * the new file is gone; except when what comes after publishing failed, the sync of the directory: then the
 * message begins with "published" and guard_file_replace_published tells 1. A second commit, or one after
 * rollback, is misuse. A panic that an automatic close held back is raised instead of publishing. */
#define guard_file_replace_commit(replace) guard_impl_file_replace_commit((replace), GUARD_HERE)

/* void guard_file_replace_rollback(guard_file_replace *):
 * gives up the new file. Harmless after a rollback; misuse after a commit. */
#define guard_file_replace_rollback(replace) guard_impl_file_replace_rollback((replace), GUARD_HERE)

/* 1 once the new content is published, else 0. */
GUARD_API int guard_file_replace_published(const guard_file_replace *replace);

/* ---------------------------------------------------------------------------------------- implementation -- */

/* What the macros above call, with the place of the call; part of the ABI and not for direct use. */
GUARD_API FILE *guard_impl_file_open(guard_scope *scope, const char *path, const char *mode, guard_ticket *ticket,
                                     const guard_place *place);
GUARD_API FILE *guard_impl_file_adopt(guard_scope *scope, FILE *stream, const char *name, guard_ticket *ticket,
                                      const guard_place *place);
GUARD_API void guard_impl_file_sync(FILE *stream, const guard_place *place);
GUARD_API int guard_impl_file_open_descriptor(guard_scope *scope, int directory, const char *path, int flags,
                                              mode_t mode, guard_ticket *ticket, const guard_place *place);
GUARD_API int guard_impl_file_adopt_descriptor(guard_scope *scope, int descriptor, const char *name,
                                               guard_ticket *ticket, const guard_place *place);
GUARD_API size_t guard_impl_file_read(int descriptor, void *data, size_t size, const guard_place *place);
GUARD_API void guard_impl_file_write(int descriptor, const void *data, size_t size, const guard_place *place);
GUARD_API DIR *guard_impl_file_open_directory(guard_scope *scope, const char *path, guard_ticket *ticket,
                                              const guard_place *place);
GUARD_API struct dirent *guard_impl_file_read_directory(DIR *directory, const guard_place *place);
GUARD_API const void *guard_impl_file_map(guard_scope *scope, const char *path, size_t *size, guard_ticket *ticket,
                                          const guard_place *place);
GUARD_API void *guard_impl_file_map_descriptor(guard_scope *scope, int descriptor, off_t offset, size_t size,
                                               int protection, int flags, guard_ticket *ticket,
                                               const guard_place *place);
GUARD_API void *guard_impl_memory_allocate(guard_scope *scope, size_t size, guard_ticket *ticket,
                                           const guard_place *place);
GUARD_API void *guard_impl_memory_allocate_array(guard_scope *scope, size_t count, size_t size, guard_ticket *ticket,
                                                 const guard_place *place);
GUARD_API void *guard_impl_memory_resize(guard_scope *scope, void *memory, size_t size, guard_ticket *ticket,
                                         const guard_place *place);
GUARD_API char *guard_impl_memory_copy(guard_scope *scope, const char *text, guard_ticket *ticket,
                                       const guard_place *place);
GUARD_API char *guard_impl_memory_format(guard_scope *scope, guard_ticket *ticket, const guard_place *place,
                                         const char *format, ...) GUARD_PRINTF(4, 5);
GUARD_API FILE *guard_impl_file_temporary(guard_scope *scope, const char *directory, guard_ticket *ticket,
                                          const guard_place *place);
GUARD_API FILE *guard_impl_file_temporary_named(guard_scope *scope, const char *directory, const char **path,
                                                guard_ticket *ticket, const guard_place *place);
GUARD_API const char *guard_impl_file_temporary_directory(guard_scope *scope, const char *directory,
                                                          guard_ticket *ticket, const guard_place *place);
GUARD_API guard_ticket guard_impl_file_lock(guard_scope *scope, int descriptor, const guard_file_lock_options *options,
                                            const guard_place *place);
GUARD_API guard_ticket guard_impl_file_lock_beside(guard_scope *scope, const char *path,
                                                   const guard_file_lock_options *options, const guard_place *place);
GUARD_API guard_file_replace *guard_impl_file_replace_begin(guard_scope *scope, const char *path,
                                                            const guard_file_replace_options *options,
                                                            const guard_place *place);
GUARD_API void guard_impl_file_replace_commit(guard_file_replace *replace, const guard_place *place);
GUARD_API void guard_impl_file_replace_rollback(guard_file_replace *replace, const guard_place *place);

#ifdef __cplusplus
}
#endif

#endif
