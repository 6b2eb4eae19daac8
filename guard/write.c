/* SPDX-License-Identifier: MIT */
/*
 * write.c: what the library writes and reads for itself: reports, notes, answers, and the wakes of its descriptors. It must harm nobody: it raises no
 * SIGPIPE, waits for nobody for ever, and is no cancellation point of pthread_cancel(3), which write(2), read(2) and poll(2) are: a thread that
 * is to be cancelled would leave there, with a lock held, a wake that it alone was to write, or in place of dying of its panic.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

/* What poll(2) calls writable takes so many bytes at once without blocking (pipe(7)). A file never blocks, and takes all in one piece. */
static size_t write_most(int fd, size_t size)
{
    struct stat status;
    bool is_file = size > PIPE_BUF && fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
    return size <= PIPE_BUF || is_file ? size : PIPE_BUF;
}

/* SIGPIPE is held back and, where this call raised it, taken. */
static ssize_t write_masked(int fd, const char *text, size_t size)
{
    sigset_t pipe_signal;
    sigset_t pending;
    sigset_t before;
    sigemptyset(&pipe_signal);
    sigaddset(&pipe_signal, SIGPIPE);
    sigpending(&pending);
    pthread_sigmask(SIG_BLOCK, &pipe_signal, &before);
    ssize_t sent = write(fd, text, size);
    int error = errno;
    if (sent < 0 && error == EPIPE && !sigismember(&pending, SIGPIPE)) {
        const struct timespec now = {0, 0};
        sigtimedwait(&pipe_signal, NULL, &now);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return sent;
}

ssize_t guard_write_quietly(int fd, const char *text, size_t size)
{
    int state = guard_cancel_shut();
    ssize_t sent = send(fd, text, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == ENOTSOCK) {
        sent = write_masked(fd, text, write_most(fd, size));
    }
    guard_cancel_restore(state);
    return sent;
}

int guard_write_within(int fd, const char *text, size_t size, int ms)
{
    int code = fd < 0 ? EBADF : 0; /* poll(2) passes over such a one */
    int state = guard_cancel_shut();
    int64_t until = guard_clock() + ms * (int64_t)1000000;
    while (size > 0 && code == 0) {
        struct pollfd room = {.fd = fd, .events = POLLOUT};
        int64_t left = until - guard_clock();
        int ready = poll(&room, 1, left > 0 ? (int)((left + 999999) / 1000000) : 0);
        ssize_t written = ready > 0 ? guard_write_quietly(fd, text, size) : -1;
        if (written > 0) {
            text += written;
            size -= (size_t)written;
            until = guard_clock() + ms * (int64_t)1000000;
        } else if (ready == 0 || (written < 0 && errno == EAGAIN && left <= 0)) {
            code = ETIMEDOUT;
        } else if (written < 0 && errno != EINTR && errno != EAGAIN) {
            code = errno;
        }
    }
    guard_cancel_restore(state);
    return code;
}

int guard_descriptor_raise(int descriptor)
{
    if (descriptor < 0 || descriptor > STDERR_FILENO) {
        return descriptor;
    }
    int state = guard_cancel_shut();
    int raised = fcntl(descriptor, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    int error = errno;
    close(descriptor);
    errno = error;
    guard_cancel_restore(state);
    return raised;
}

bool guard_wake_write(int descriptor)
{
    uint64_t one = 1;
    int state = guard_cancel_shut();
    ssize_t written = write(descriptor, &one, sizeof one);
    guard_cancel_restore(state);
    return written == sizeof one;
}

bool guard_wake_take(int descriptor)
{
    uint64_t count;
    int state = guard_cancel_shut();
    ssize_t got = read(descriptor, &count, sizeof count);
    guard_cancel_restore(state);
    return got == sizeof count;
}
