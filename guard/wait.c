/* SPDX-License-Identifier: MIT */
/* wait.c: waiting for a descriptor or for time, as a checkpoint from beginning to end. */
#include <errno.h>
#include <poll.h>
#include <time.h>

#include "internal.h"

bool guard_lock_within(pthread_mutex_t *lock, int64_t ms)
{
    static const struct timespec nap = {0, 1000000};
    int64_t end = guard_clock() + ms * 1000000;
    int code = pthread_mutex_trylock(lock);
    while (code != 0 && guard_clock() < end) {
        nanosleep(&nap, NULL);
        code = pthread_mutex_trylock(lock);
    }
    return code == 0;
}

/* The nearest of the wait's own end, the deadline, and the end of a signal's grace (which nobody may be there to wake us at). */
static int64_t wait_end(const guard_stack *stack, int64_t own_end)
{
    guard_limits limits = guard_limits_here(stack);
    int64_t end = own_end < limits.deadline ? own_end : limits.deadline;
    if (!limits.is_masked && guard_signal_is_pending() && guard_signal_due() < end) {
        end = guard_signal_due();
    }
    return end;
}

/*
 * pthread_cancel leaves in ppoll. AddressSanitizer clears what it has marked of the frames that an exception passes, but knows nothing of a
 * cancel, and would take the frames that come to lie there for them: so these two have no marks.
 */
#define WAIT_UNMARKED __attribute__((no_sanitize("address")))

/* Returns as ppoll does; `end` is in guard_clock. */
WAIT_UNMARKED static int wait_until(struct pollfd *fds, int64_t end)
{
    if (end == CLOCK_NEVER) {
        return ppoll(fds, 2, NULL, NULL);
    }
    int64_t left = end - guard_clock();
    struct timespec time = {0, 0};
    if (left > 0) {
        time.tv_sec = left / 1000000000;
        time.tv_nsec = left % 1000000000;
    }
    return ppoll(fds, 2, &time, NULL);
}

WAIT_UNMARKED int guard_impl_wait(int fd, int events, int64_t own_ms, const guard_place *place)
{
    if (own_ms < -1) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "a wait of %lld ms", (long long)own_ms);
        return 0;
    }
    guard_stack *stack = guard_stack_here();
    int64_t own_end = CLOCK_NEVER;
    if (own_ms >= 0) {
        int64_t now = guard_clock();
        own_end = own_ms < (CLOCK_NEVER - now) / 1000000 ? now + own_ms * 1000000 : CLOCK_NEVER;
    }
    for (;;) {
        guard_impl_cancel_point(place);
        struct pollfd fds[2] = {{.fd = fd, .events = (short)events},
                                {.fd = guard_cancel_descriptor(), .events = POLLIN}};
        int64_t end = wait_end(stack, own_end);
        if (fds[1].fd < 0 && !guard_masked()) { /* no descriptor left */
            int64_t slice = guard_clock() + GUARD_WAIT_SLICE_MS * 1000000;
            end = end < slice ? end : slice;
        }
        int count = wait_until(fds, end);
        if (count < 0 && errno != EINTR) {
            guard_impl_panic_os(place, "poll");
        }
        if (count > 0 && fds[0].revents != 0) {
            return fds[0].revents;
        }
        if (own_end != CLOCK_NEVER && guard_clock() >= own_end) {
            guard_impl_checkpoint(place);
            return 0;
        }
    }
}
