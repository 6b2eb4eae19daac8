/* SPDX-License-Identifier: MIT */
/*
 * guard_file_replace.c: atomic replacement of a file.
 *
 *     begin            the new file: without a name (O_TMPFILE), else `.NAME.XXXXXXXXXXXXXXXX.guard-tmp`
 *       OPEN           written by the caller
 *     commit           flush, owner and mode, fsync | a name if it has none | close | rename | fsync of the directory
 *       PUBLISHED      from the rename on, whatever fails afterwards
 *     rollback, release, or any step of commit before the rename that fails
 *       ROLLED_BACK    closed, the name unlinked
 *
 * Invariants: `named` is true exactly while the directory may have the temporary name. `stream` is not NULL
 * exactly while OPEN, and the directory is open as long. While `named`, a fatal signal removes the name. The target's name is only
 * ever touched by one rename (or link) of a file that is complete and on the disk. Closing comes before the rename, because some file
 * systems (NFS) tell a failed write only there.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <guard/guard_context.h>
#include <guard/guard_process.h>

#include "guard_file_internal.h"

typedef enum replace_state { OPEN, PUBLISHED, ROLLED_BACK } replace_state;

struct guard_file_replace {
    file_origin origin;
    unsigned process; /* guard_fork_count where it was begun: it is that process's to end */
    replace_state state;
    file_location target; /* the directory, and the name to be replaced */
    bool named;
    int temporary_id; /* what a fatal signal is to remove: the temporary name while it is there, else 0 */
    bool existed;     /* `old` is the target's at the beginning */
    char temporary[256];
    guard_file_replace_options options;
    struct stat old;
    FILE *stream;
    int whole;    /* -1, or the new file once more: to sync its file system where the directory may not be read */
    dev_t device; /* of the new file: tells whether the name is ours */
    ino_t inode;
    file_name name;
};

/* ------------------------------------------------------------------------------------------------- steps -- */

/* Each returns 0 or errno. */

/* What there is to be replaced: a regular file or nothing. */
static int replace_look(guard_file_replace *replace)
{
    struct stat now;
    if (fstatat(replace->target.directory, replace->target.name, &now, AT_SYMLINK_NOFOLLOW) != 0) {
        return errno == ENOENT ? 0 : errno;
    }
    if (!S_ISREG(now.st_mode)) {
        return S_ISDIR(now.st_mode) ? EISDIR : S_ISLNK(now.st_mode) ? ELOOP : EINVAL;
    }
    replace->existed = true;
    replace->old = now;
    return replace->options.exclusive ? EEXIST : 0;
}

/* The link by which a file without a name gets one: open(2), O_TMPFILE. */
static void descriptor_link(int descriptor, char link[40])
{
    snprintf(link, 40, "/proc/self/fd/%d", descriptor);
}

/* Its descriptor; or -1 with errno, which is EOPNOTSUPP, too, where it could not get a name because there is no
 * /proc. */
static int replace_create_unnamed(const guard_file_replace *replace, mode_t mode)
{
    char link[40];
    int descriptor = guard_impl_file_create_unnamed(replace->target.directory, mode);
    if (descriptor >= 0) {
        descriptor_link(descriptor, link);
        if (access(link, F_OK) != 0) {
            close(descriptor);
            errno = EOPNOTSUPP;
            descriptor = -1;
        }
    }
    return descriptor;
}

static int replace_create(guard_file_replace *replace)
{
    /* A new file gets its mode from the kernel, which knows umask and default ACL; anything else none but us
     * reads until commit. */
    mode_t mode = replace->existed || replace->options.mode != 0 ? 0600 : 0666;
    int descriptor = replace_create_unnamed(replace, mode);
    if (descriptor < 0 && guard_impl_file_no_unnamed(errno)) {
        descriptor = guard_impl_file_create(replace->target.directory, replace->target.name, ".guard-tmp", mode,
                                            replace->temporary, &replace->temporary_id);
        replace->named = descriptor >= 0;
    }
    if (descriptor < 0) {
        return errno;
    }
    struct stat status;
    if (fstat(descriptor, &status) != 0 || (replace->stream = fdopen(descriptor, "w+")) == NULL) {
        int error = errno;
        close(descriptor);
        return error;
    }
    replace->device = status.st_dev;
    replace->inode = status.st_ino;
    return 0;
}

/* The rule for modes, see the header. */
static int replace_mode(const guard_file_replace *replace)
{
    int descriptor = fileno(replace->stream);
    mode_t mode = replace->options.mode & 07777;
    bool owner = true, group = true;
    if (replace->existed) {
        if (fchown(descriptor, replace->old.st_uid, replace->old.st_gid) != 0) {
            struct stat own;
            group = fchown(descriptor, (uid_t)-1, replace->old.st_gid) == 0;
            owner = fstat(descriptor, &own) == 0 && own.st_uid == replace->old.st_uid;
        }
        mode = mode != 0 ? mode : replace->old.st_mode & 07777;
        if (!group) {
            mode &= ~(mode_t)070 | (mode & 07) << 3;
        }
        if (!owner || !group) {
            mode &= ~(mode_t)(S_ISUID | S_ISGID);
        }
    }
    if (!replace->existed && replace->options.mode == 0) {
        return 0;
    }
    return fchmod(descriptor, mode) == 0 ? 0 : errno;
}

/* Why a write that nobody looked at failed: stdio forgets errno. The file is given up, so that one more write
 * to it does no harm. */
static int replace_lost(const guard_file_replace *replace)
{
    static const char block[4096];
    struct stat status;
    int descriptor = fileno(replace->stream);
    if (fstat(descriptor, &status) != 0 || pwrite(descriptor, block, sizeof block, status.st_size) < 0) {
        return errno;
    }
    return EIO;
}

/* All that was written is the file's, or an error. */
static int replace_flush(const guard_file_replace *replace)
{
    if (fflush(replace->stream) != 0) {
        return errno;
    }
    return ferror(replace->stream) ? replace_lost(replace) : 0;
}

/* All that is the file's, its mode too, is on the disk, or an error. */
static int replace_sync(const guard_file_replace *replace)
{
    int failed;
    do {
        failed = fsync(fileno(replace->stream));
    } while (failed != 0 && errno == EINTR);
    return failed == 0 ? 0 : errno;
}

/* The temporary name is not there, or not ours to remove. */
static void replace_forget(guard_file_replace *replace)
{
    guard_temporary_forget(replace->temporary_id);
    replace->temporary_id = 0;
}

/* Gives a file without a name one; link(2) cannot replace, so the target's own name takes a rename of it. */
static int replace_name(guard_file_replace *replace)
{
    enum { TRIES = 100 };
    char link[40];
    descriptor_link(fileno(replace->stream), link);
    for (int i = 0; i < TRIES && !replace->named; i++) {
        guard_impl_file_random_name(replace->target.name, ".guard-tmp", replace->temporary);
        replace->temporary_id = guard_temporary_register(replace->target.directory, replace->temporary, 0);
        replace->named = true; /* before: a link that is made and answered with an error is ours, too */
        if (linkat(AT_FDCWD, link, replace->target.directory, replace->temporary, AT_SYMLINK_FOLLOW) != 0) {
            replace->named = errno != EEXIST;
            if (errno != EEXIST) {
                return errno;
            }
            replace_forget(replace);
        }
    }
    return replace->named ? 0 : EEXIST;
}

static bool replace_is_there(const guard_file_replace *replace)
{
    struct stat now;
    return fstatat(replace->target.directory, replace->target.name, &now, AT_SYMLINK_NOFOLLOW) == 0 &&
           now.st_dev == replace->device && now.st_ino == replace->inode;
}

static int replace_rename(guard_file_replace *replace)
{
    int directory = replace->target.directory;
    const char *from = replace->temporary, *to = replace->target.name;
    int failed;
    if (!replace->options.exclusive) {
        failed = renameat(directory, from, directory, to);
    } else {
        failed = renameat2(directory, from, directory, to, RENAME_NOREPLACE);
        if (failed != 0 && (errno == EINVAL || errno == ENOSYS)) {
            /* The file system does not know the flag; a link refuses an existing name just as well, and leaves
             * the other to unlink. */
            if (linkat(directory, from, directory, to, 0) == 0) {
                return 0;
            }
        }
    }
    int error = failed == 0 ? 0 : errno;
    /* A server may do it and lose the answer: what the name has is the truth. */
    if (error != 0 && !replace_is_there(replace)) {
        return error;
    }
    replace->named = error != 0; /* then it may be there or not */
    return 0;
}

static int replace_sync_directory(const guard_file_replace *replace)
{
    int failed, directory = replace->target.directory;
    if (!replace->target.readable) {
        failed = syncfs(replace->whole);
    } else {
        do {
            failed = fsync(directory);
        } while (failed != 0 && errno == EINTR);
        if (failed != 0 && errno == EINVAL) { /* a file system that knows it of files only */
            failed = syncfs(directory);
        }
    }
    return failed == 0 ? 0 : errno;
}

/* Removes the temporary name if it is there and closes the directory; 0 or the first errno. */
static int replace_tidy(guard_file_replace *replace)
{
    int error = 0;
    if (replace->named && unlinkat(replace->target.directory, replace->temporary, 0) != 0 && errno != ENOENT) {
        error = errno;
    }
    replace->named = false;
    replace_forget(replace);
    if (replace->whole >= 0) {
        close(replace->whole);
    }
    int close_error = guard_impl_file_close(replace->target.directory);
    return error != 0 ? error : close_error;
}

/* Gives up the new file; 0 or the first errno. */
static int replace_abandon(guard_file_replace *replace)
{
    int state = guard_foreign_open();
    if (replace->stream != NULL) {
        guard_impl_file_discard_stream(replace->stream);
        replace->stream = NULL;
    }
    replace->state = ROLLED_BACK;
    int error = replace_tidy(replace);
    guard_foreign_close(state);
    guard_context_undone("replacement of %s: given up", replace->name.text);
    return error;
}

/* -------------------------------------------------------------------------------------------------- kind -- */

static void replace_release(void *object)
{
    guard_file_replace *replace = object;
    int error = replace->state == OPEN ? replace_abandon(replace) : 0;
    file_name name = replace->name;
    const guard_place *place = replace->origin.place;
    guard_deallocate(replace);
    if (error != 0) {
        errno = error;
        guard_impl_panic_os(place, "cannot remove the new file for %s", name.text);
    }
}

static void replace_child(void *object)
{
    guard_file_replace *replace = object;
    if (replace->state == OPEN) {
        guard_impl_file_discard_stream(replace->stream);
        replace_forget(replace);
        close(replace->target.directory);
    }
    guard_deallocate(replace);
}

static size_t replace_describe(const void *object, char *text, size_t size)
{
    static const char *const states[] = {"new content for", "published", "given up"};
    const guard_file_replace *replace = object;
    int length = snprintf(text, size, "%s %s", states[replace->state], replace->name.text);
    return length < 0 ? 0 : (size_t)length;
}

/* FIXED: its handle is not a ticket, so nobody could move it knowingly. */
static const guard_kind replace_kind = {.name = "file replacement",
                                        .release = replace_release,
                                        .child = replace_child,
                                        .describe = replace_describe,
                                        .since = guard_impl_file_since,
                                        .action = "give up",
                                        .flags = GUARD_KIND_HEAP | GUARD_KIND_FIXED};

/* ------------------------------------------------------------------------------------------------ public -- */

/* Misuse where they can never be right; false then. */
static bool options_are_right(const guard_file_replace_options *options, const guard_place *place)
{
    bool reserved = options->reserved_int != 0;
    for (size_t i = 0; i < sizeof options->reserved / sizeof options->reserved[0]; i++) {
        reserved = reserved || options->reserved[i] != NULL;
    }
    if (reserved || (options->mode & ~(mode_t)07777) != 0) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "guard_file_replace_options that can never be right");
        return false;
    }
    return true;
}

/* Looks, and makes the new file; 0 or errno, nothing is left then. */
static int replace_open(guard_file_replace *replace, const char *path)
{
    int error = guard_impl_file_locate(path, !replace->options.refuse_link, &replace->target);
    if (error != 0) {
        return error;
    }
    error = replace_look(replace);
    if (error == 0) {
        error = replace_create(replace);
    }
    if (error != 0) {
        replace_abandon(replace);
    }
    return error;
}

guard_file_replace *guard_impl_file_replace_begin(guard_scope *scope, const char *path,
                                                  const guard_file_replace_options *options, const guard_place *place)
{
    static const guard_file_replace_options defaults;
    options = options != NULL ? options : &defaults;
    if (!options_are_right(options, place) || !guard_impl_file_has(path, "a replacement without a path", place)) {
        return NULL;
    }
    guard_impl_cancel_point(place);
    guard_impl_reserve(scope, 1, place);
    guard_file_replace *replace = guard_allocate(sizeof *replace);
    memset(replace, 0, sizeof *replace);
    guard_impl_file_origin(&replace->origin, place);
    guard_impl_file_quote(&replace->name, path);
    replace->options = *options;
    replace->whole = -1;
    replace->process = guard_fork_count();
    int state = guard_foreign_open();
    int error = replace_open(replace, path);
    guard_foreign_close(state);
    if (error != 0) {
        file_name name = replace->name;
        guard_deallocate(replace);
        errno = error;
        guard_impl_panic_os(place, "cannot replace %s%s", name.text,
                            error == EINVAL ? ", which is no regular file" : "");
    }
    guard_impl_file_register(scope, &replace_kind, replace, NULL, place);
    return replace;
}

FILE *guard_file_replace_stream(const guard_file_replace *replace)
{
    if (replace == NULL) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "the stream of no replacement");
        return NULL;
    }
    return replace->stream;
}

int guard_file_replace_published(const guard_file_replace *replace)
{
    if (replace == NULL) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "asking whether no replacement is published");
        return 0;
    }
    return replace->state == PUBLISHED;
}

/* Everything up to the rename; 0 or errno and what could not be done. */
static int replace_publish(guard_file_replace *replace, const char **what)
{
    int error;
    *what = "write the new content of";
    if ((error = replace_flush(replace)) != 0) {
        return error;
    }
    /* The target's mode may have changed meanwhile, or the file come or gone. After writing, which clears
     * set-ID bits. */
    *what = "set the mode of";
    if ((error = replace_look(replace)) != 0 || (error = replace_mode(replace)) != 0) {
        return error;
    }
    *what = "write the new content of";
    if ((error = replace_sync(replace)) != 0) {
        return error;
    }
    *what = "publish";
    if ((error = replace_name(replace)) != 0) {
        return error;
    }
    if (!replace->target.readable) {
        replace->whole = fcntl(fileno(replace->stream), F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
        if (replace->whole < 0) {
            return errno;
        }
    }
    *what = "write the new content of";
    FILE *stream = replace->stream;
    replace->stream = NULL;
    if ((error = guard_impl_file_close_stream(stream)) != 0) {
        return error;
    }
    *what = "publish";
    return replace_rename(replace);
}

/* Misuse with none, and in a forked child, whose parent goes on with it; false then. */
static bool replace_is_own(const guard_file_replace *replace, const guard_place *place)
{
    if (!guard_impl_file_has(replace, "ending no replacement", place)) {
        return false;
    }
    if (replace->process == guard_fork_count()) {
        return true;
    }
    guard_impl_misuse(place, GUARD_MISUSE_STATE, "the replacement of %s is the parent process's", replace->name.text);
    return false;
}

void guard_impl_file_replace_commit(guard_file_replace *replace, const guard_place *place)
{
    const char *what;
    if (!replace_is_own(replace, place)) {
        return;
    }
    if (replace->state != OPEN) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "commit of a replacement of %s that was %s", replace->name.text,
                          replace->state == PUBLISHED ? "published" : "rolled back");
        return;
    }
    guard_raise_held();
    guard_impl_cancel_point(place);
    /* From here on it is done whole or not at all. */
    int state = guard_foreign_open();
    int error = replace_publish(replace, &what);
    if (error == 0) {
        replace->state = PUBLISHED;
        error = replace_sync_directory(replace);
        what = "a power cut may undo it";
    }
    bool published = replace->state == PUBLISHED;
    int tidy_error = published ? replace_tidy(replace) : replace_abandon(replace);
    if (published && error == 0 && tidy_error != 0) {
        what = "its temporary file may be left";
        error = tidy_error;
    }
    guard_foreign_close(state);
    if (error == 0) {
        return;
    }
    errno = error;
    if (published) {
        guard_impl_panic_os(place, "published %s, but %s", replace->name.text, what);
    }
    guard_impl_panic_os(place, "cannot %s %s%s", what, replace->name.text,
                        tidy_error != 0 ? " nor remove its temporary file" : "");
}

void guard_impl_file_replace_rollback(guard_file_replace *replace, const guard_place *place)
{
    if (!replace_is_own(replace, place)) {
        return;
    }
    if (replace->state == PUBLISHED) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "rollback of a replacement of %s that was published",
                          replace->name.text);
        return;
    }
    int error = replace->state == OPEN ? replace_abandon(replace) : 0;
    if (error != 0) {
        errno = error;
        guard_impl_panic_os(place, "cannot remove the new file for %s", replace->name.text);
    }
}
