/* SPDX-License-Identifier: MIT */
/*
 * guard_file_lock.c: locks on whole files, and the lock beside a file that names its holder.
 *
 *     unlocked --F_OFD_SETLK--> locked --(holder's text emptied) F_UNLCK, close--> unlocked
 *                                  \--child--> close: F_UNLCK in a child would free the parent's lock
 *
 * Every lock has a descriptor of its own (a duplicate, where the caller gave one): it stays whatever the caller
 * closes.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guard_file_internal.h"

#define SUFFIX ".guard-lock"

typedef struct file_lock {
    file_origin origin;
    int descriptor;
    bool beside; /* the descriptor was opened here */
    bool holder; /* the file has this process's text */
    file_name name;
} file_lock;

/* ----------------------------------------------------------------------------------------------- waiting -- */

static int lock_set(int descriptor, short type)
{
    struct flock whole = {.l_type = type, .l_whence = SEEK_SET};
    int failed;
    do {
        failed = fcntl(descriptor, F_OFD_SETLK, &whole);
    } while (failed != 0 && errno == EINTR);
    return failed == 0 ? 0 : errno;
}

static long long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static void lock_discard(void *object)
{
    file_lock *lock = object;
    guard_impl_file_close(lock->descriptor);
    guard_deallocate(lock);
}

/*
 * The one place where this adapter waits. Returns 0, EAGAIN or EACCES when the deadline passed, or another
 * errno. *lock is on a scope of its own meanwhile: a checkpoint may panic.
 */
static int lock_wait(file_lock *lock, short type, const guard_file_lock_options *options)
{
    int error = lock_set(lock->descriptor, type);
    if ((error != EAGAIN && error != EACCES) || options->no_wait) {
        return error;
    }
    GUARD_AUTO(waiting);
    guard_ticket ticket = guard_impl_defer(waiting, lock_discard, lock, lock->origin.place);
    long long wait_ms = options->wait_ms != 0 ? options->wait_ms : GUARD_FILE_LOCK_WAIT_MS;
    long long until = now_ms() + wait_ms;
    for (long long pause_ms = 1; error == EAGAIN || error == EACCES; pause_ms *= 2) {
        long long left = until - now_ms();
        if (wait_ms >= 0 && left <= 0) {
            break;
        }
        guard_impl_cancel_point(lock->origin.place);
        pause_ms = pause_ms < GUARD_WAIT_SLICE_MS ? pause_ms : GUARD_WAIT_SLICE_MS;
        long long slice = guard_remaining_ms(wait_ms >= 0 && left < pause_ms ? left : pause_ms);
        nanosleep(&(struct timespec){.tv_nsec = slice * 1000000L}, NULL);
        error = lock_set(lock->descriptor, type);
    }
    guard_dismiss(ticket);
    return error;
}

/* ------------------------------------------------------------------------------------------------ holder -- */

/* Writes who holds the lock, over what an earlier holder left. 0 or errno. */
static int holder_write(int descriptor)
{
    char host[65] = "", text[128];
    if (gethostname(host, sizeof host - 1) != 0) {
        strcpy(host, "?");
    }
    int length = snprintf(text, sizeof text, "pid %ld on host %s\n", (long)getpid(), host);
    for (ssize_t done = 0, put; done < length; done += put) {
        put = pwrite(descriptor, text + done, (size_t)(length - done), done);
        if (put < 0 && errno != EINTR) {
            return errno;
        }
        put = put < 0 ? 0 : put;
    }
    /* After writing, not before: a reader sees a holder at any time. */
    return ftruncate(descriptor, length) == 0 ? 0 : errno;
}

/* What a holder wrote, fit for a message; a default where there is nothing. Who shares a lock writes nothing: the text is of one that was killed. Of
 * a file that is not the lock's own nothing is told. */
static void holder_read(const file_lock *lock, file_name *holder)
{
    char text[128];
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    bool is_shared = fcntl(lock->descriptor, F_OFD_GETLK, &whole) == 0 && whole.l_type == F_RDLCK;
    ssize_t length = lock->beside && !is_shared ? pread(lock->descriptor, text, sizeof text - 1, 0) : 0;
    text[length > 0 ? length : 0] = '\0';
    text[strcspn(text, "\n")] = '\0';
    if (strncmp(text, "pid ", 4) != 0) {
        strcpy(holder->text, is_shared ? "others, which share it" : "another process");
        return;
    }
    guard_impl_file_quote(holder, text);
    size_t quoted = strlen(holder->text);
    memmove(holder->text, holder->text + 1, quoted - 2);
    holder->text[quoted - 2] = '\0';
}

/* ------------------------------------------------------------------------------------------------- locks -- */

static void lock_release(void *object)
{
    file_lock *lock = object;
    const char *what = "empty";
    int error = lock->holder && ftruncate(lock->descriptor, 0) != 0 ? errno : 0;
    int unlock_error = lock_set(lock->descriptor, F_UNLCK);
    if (error == 0 && unlock_error != 0) {
        what = "unlock";
        error = unlock_error;
    }
    int close_error = guard_impl_file_close(lock->descriptor);
    if (error == 0 && close_error != 0) {
        what = "close";
        error = close_error;
    }
    file_lock copy = *lock;
    guard_deallocate(lock);
    if (error != 0) {
        errno = error;
        guard_impl_panic_os(copy.origin.place, "cannot %s %s", what, copy.name.text);
    }
}

static void lock_child(void *object)
{
    file_lock *lock = object;
    close(lock->descriptor);
    guard_deallocate(lock);
}

/* The caller's own descriptor keeps the lock; where there is none, ours does, until the process ends. */
static void lock_dismiss(void *object)
{
    file_lock *lock = object;
    if (!lock->beside) {
        guard_impl_file_close(lock->descriptor);
    }
    guard_deallocate(lock);
}

static size_t lock_describe(const void *object, char *text, size_t size)
{
    const file_lock *lock = object;
    int length = snprintf(text, size, "lock on %s", lock->name.text);
    return length < 0 ? 0 : (size_t)length;
}

static const guard_kind lock_kind = {.name = "file lock",
                                     .release = lock_release,
                                     .child = lock_child,
                                     .describe = lock_describe,
                                     .since = guard_impl_file_since,
                                     .action = "unlock",
                                     .flags = GUARD_KIND_HEAP,
                                     .dismiss = lock_dismiss};

static const guard_file_lock_options defaults;

/* Misuse where they can never be right; false then. */
static bool options_are_right(const guard_file_lock_options *options, const guard_place *place)
{
    bool reserved = options->reserved_int != 0;
    for (size_t i = 0; i < sizeof options->reserved / sizeof options->reserved[0]; i++) {
        reserved = reserved || options->reserved[i] != NULL;
    }
    if (reserved || options->wait_ms < -1 || (options->no_wait && options->wait_ms != 0)) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "guard_file_lock_options that can never be right");
        return false;
    }
    return true;
}

static file_lock *lock_new(guard_scope *scope, const guard_place *place)
{
    guard_impl_cancel_point(place);
    guard_impl_reserve(scope, 1, place);
    file_lock *lock = guard_allocate(sizeof *lock);
    guard_impl_file_origin(&lock->origin, place);
    lock->beside = false;
    lock->holder = false;
    return lock;
}

/* Gives back what is not locked and panics. */
static void lock_fail(file_lock *lock, const char *what, int error)
{
    file_lock copy = *lock;
    if (lock->descriptor >= 0) {
        guard_impl_file_close(lock->descriptor);
    }
    guard_deallocate(lock);
    errno = error;
    guard_impl_panic_os(copy.origin.place, "cannot %s %s", what, copy.name.text);
}

/* Another one has it: says who and panics. */
static void lock_denied(file_lock *lock, const guard_file_lock_options *options)
{
    file_lock copy = *lock;
    file_name holder;
    int state = guard_foreign_open();
    holder_read(lock, &holder);
    guard_foreign_close(state);
    lock_discard(lock);
    if (options->no_wait) {
        guard_impl_panic(copy.origin.place, GUARD_LOCK, EAGAIN, "%s is held by %s", copy.name.text, holder.text);
    }
    guard_impl_panic(copy.origin.place, GUARD_TIMEOUT, ETIMEDOUT, "%s is held by %s, waited %d ms", copy.name.text,
                     holder.text, options->wait_ms != 0 ? options->wait_ms : GUARD_FILE_LOCK_WAIT_MS);
}

/* Locks the descriptor that is in *lock; or gives all back and panics. */
static void lock_take(file_lock *lock, const guard_file_lock_options *options)
{
    int error = lock_wait(lock, options->shared ? F_RDLCK : F_WRLCK, options);
    if (error == EAGAIN || error == EACCES) {
        lock_denied(lock, options);
    }
    if (error != 0) {
        lock_fail(lock, "lock", error);
    }
}

guard_ticket guard_impl_file_lock(guard_scope *scope, int descriptor, const guard_file_lock_options *options,
                                  const guard_place *place)
{
    guard_ticket ticket;
    options = options != NULL ? options : &defaults;
    if (!options_are_right(options, place)) {
        return (guard_ticket){NULL, 0, 0};
    }
    file_lock *lock = lock_new(scope, place);
    guard_impl_file_descriptor_name(&lock->name, descriptor);
    lock->descriptor = fcntl(descriptor, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    if (lock->descriptor < 0) {
        lock_fail(lock, "lock", errno);
    }
    lock_take(lock, options);
    guard_impl_file_register(scope, &lock_kind, lock, &ticket, place);
    return ticket;
}

/* Opens the lock file beside `path`; 0 or errno. Fills the name as far as it is known. */
static int beside_open(file_lock *lock, const char *path, bool shared)
{
    file_location location;
    file_name resolved;
    char shown[4096];
    snprintf(shown, sizeof shown, "%s%s", path, SUFFIX);
    guard_impl_file_quote(&lock->name, shown);
    lock->descriptor = -1;
    lock->beside = true;
    int error = guard_impl_file_locate(path, true, &location);
    if (error != 0) {
        return error;
    }
    if (strlen(location.name) + sizeof SUFFIX > sizeof location.name) {
        close(location.directory);
        return ENAMETOOLONG;
    }
    strcat(location.name, SUFFIX);
    int flags = (shared ? O_RDONLY : O_RDWR) | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    do {
        lock->descriptor = openat(location.directory, location.name, flags, 0666);
    } while (lock->descriptor < 0 && errno == EINTR);
    lock->descriptor = guard_impl_file_raise(lock->descriptor);
    error = lock->descriptor < 0 ? errno : 0;
    close(location.directory);
    struct stat status;
    if (error == 0 && fstat(lock->descriptor, &status) != 0) {
        error = errno;
    } else if (error == 0 && !S_ISREG(status.st_mode)) {
        error = EINVAL;
    }
    if (error == 0 && guard_impl_file_descriptor_name(&resolved, lock->descriptor)[0] == '"') {
        lock->name = resolved; /* the path with all links followed */
    }
    return error;
}

guard_ticket guard_impl_file_lock_beside(guard_scope *scope, const char *path, const guard_file_lock_options *options,
                                         const guard_place *place)
{
    guard_ticket ticket;
    options = options != NULL ? options : &defaults;
    if (!options_are_right(options, place) || !guard_impl_file_has(path, "a lock without a path", place)) {
        return (guard_ticket){NULL, 0, 0};
    }
    file_lock *lock = lock_new(scope, place);
    int state = guard_foreign_open();
    int error = beside_open(lock, path, options->shared);
    guard_foreign_close(state);
    if (error != 0) {
        lock_fail(lock, "open", error);
    }
    lock_take(lock, options);
    if (!options->shared) {
        lock->holder = true;
        state = guard_foreign_open();
        error = holder_write(lock->descriptor);
        guard_foreign_close(state);
        if (error != 0) {
            lock_set(lock->descriptor, F_UNLCK);
            lock_fail(lock, "write", error);
        }
    }
    guard_impl_file_register(scope, &lock_kind, lock, &ticket, place);
    return ticket;
}
