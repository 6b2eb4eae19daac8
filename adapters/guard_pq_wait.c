/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_wait.c: waiting for an answer, at the price of a wait without a deadline.
 *
 * A poll with a timeout starts and stops a timer of the kernel's and looks up each descriptor anew: 0.9 us more than one of the
 * socket alone that waits for ever, three times in a transaction. So a thread keeps a set (epoll(7)) with what can end its wait, and waits in it
 * without a timeout:
 *
 *     the socket of the connection that it waits for last, the thread's cancel descriptor, a timer
 *
 *     no set --first wait--> made --a wait for another connection--> its socket is exchanged --the thread ends--> closed
 *                              '--an event of none of the three (a socket that was closed here, and lives on in a child)--> made anew
 *
 * Only the socket's event is believed. Whatever else ends the wait leads to guard_pq_poll, which asks the clock and the checkpoint.
 *
 * Invariants
 *   - The timer fires no later than the deadline of any wait in the set. It may fire earlier: it is left as it is while deadlines only
 *     grow, so that it is set once in a statement's time limit and not once in a wait.
 *   - Where the thread has anything asked of it (a deadline of a scope, a cancel) the set is not used. What is asked during a wait
 *     wakes it: guard_cancel_thread sets the attention before it wakes.
 *   - A forked child shares the sets of its parent: it leaves them alone, their descriptors too, which end with exec.
 */
#include "guard_pq_internal.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { EVENT_TIMER = 1, EVENT_CANCEL = 2, EVENTS = 3 };

typedef struct wait_set {
    uint64_t wire; /* the connection whose socket is in the set, 0: none */
    pid_t pid;     /* whose set this is; 0: there is none */
    int epoll;     /* -1: it could not be made, or the thread ends */
    int timer;
    int socket;
    guard_pq_deadline fires; /* the timer; GUARD_PQ_NEVER: it has, or was not set */
} wait_set;

static __thread wait_set own __attribute__((tls_model("initial-exec")));
static pthread_key_t key; /* so that a thread's end closes its set */
static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static int key_failed;

uint64_t guard_pq_wire_new(void)
{
    static uint64_t latest = EVENT_CANCEL;
    return __atomic_add_fetch(&latest, 1, __ATOMIC_RELAXED);
}

/* ------------------------------------------------------------------------------------------------ the set -- */

static void set_drop(void)
{
    if (own.pid == guard_pq_process() && own.epoll >= 0) {
        close(own.epoll);
        close(own.timer);
    }
    own = (wait_set){.epoll = -1};
}

/* What is released by destructors that run later waits without a set. */
static void thread_ends(void *set)
{
    (void)set;
    set_drop();
    own.pid = guard_pq_process();
}

static void key_make(void)
{
    key_failed = pthread_key_create(&key, thread_ends);
}

static int add(int descriptor, uint64_t name)
{
    struct epoll_event event = {.events = EPOLLIN, .data = {.u64 = name}};
    return descriptor >= 0 && epoll_ctl(own.epoll, EPOLL_CTL_ADD, descriptor, &event) == 0;
}

/* 1: the thread has a set of this process's. */
static int set_make(void)
{
    int cancel = guard_cancel_descriptor();
    if (cancel < 0) {
        return 0; /* masked: the next wait may not be */
    }
    pthread_once(&key_once, key_make);
    own = (wait_set){.pid = guard_pq_process(), .fires = GUARD_PQ_NEVER};
    own.epoll = epoll_create1(EPOLL_CLOEXEC);
    own.timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (key_failed || pthread_setspecific(key, &own) != 0 || !add(own.timer, EVENT_TIMER) ||
        !add(cancel, EVENT_CANCEL)) {
        set_drop();
        own.pid = guard_pq_process(); /* not tried again */
        return 0;
    }
    return 1;
}

static __attribute__((noinline)) int set_join(const guard_pq *pq)
{
    int socket = PQsocket(pq->conn);
    if (own.pid != guard_pq_process() && !set_make()) {
        return 0;
    }
    if (own.epoll < 0) {
        return 0;
    }
    if (own.wire != 0) {
        own.wire = 0;
        /*
         * It fails where the socket was closed, which takes it out of the set. Its number may be another's by then, also of one that another
         * thread is closing: the kernel looks for number and file, and does not find them here. Past libc, since ThreadSanitizer,
         * which knows descriptors by their numbers only, takes that for a race.
         */
        syscall(SYS_epoll_ctl, own.epoll, EPOLL_CTL_DEL, own.socket, NULL);
    }
    if (!add(socket, pq->wire)) {
        return 0;
    }
    own.socket = socket;
    own.wire = pq->wire;
    return 1;
}

static __attribute__((noinline)) int timer_set(guard_pq_deadline deadline)
{
    struct itimerspec at = {
        .it_value = {.tv_sec = (time_t)(deadline / 1000), .tv_nsec = (long)(deadline % 1000) * 1000000}};
    if (timerfd_settime(own.timer, TFD_TIMER_ABSTIME, &at, NULL) != 0) {
        return 0;
    }
    own.fires = deadline;
    return 1;
}

static int is_joined(const guard_pq *pq)
{
    /* libpq closes its socket when it gives a connection up. */
    return own.wire == pq->wire && own.socket == PQsocket(pq->conn) && own.pid == guard_pq_process();
}

/* --------------------------------------------------------------------------------------------------- waits -- */

/* 1 when the socket is among the events. */
static int judge(const guard_pq *pq, const struct epoll_event *events, int count)
{
    int found = 0;
    for (int i = 0; i < count; i++) {
        uint64_t name = events[i].data.u64;
        if (name == pq->wire) {
            found = 1;
        } else if (name == EVENT_TIMER) {
            own.fires = GUARD_PQ_NEVER;
        } else if (name != EVENT_CANCEL) {
            set_drop();
        }
    }
    return found;
}

int guard_pq_wait(guard_pq *pq, guard_pq_deadline deadline)
{
    struct epoll_event events[EVENTS];
    if (__atomic_load_n(&guard_impl_attention, __ATOMIC_RELAXED) == 0 && (is_joined(pq) || set_join(pq)) &&
        (GUARD_IMPL_LIKELY(deadline >= own.fires) || timer_set(deadline)) &&
        judge(pq, events, epoll_wait(own.epoll, events, EVENTS, -1))) {
        return 1;
    }
    return guard_pq_poll(pq->conn, POLLIN, deadline);
}

int guard_pq_is_quiet(const guard_pq *pq)
{
    struct epoll_event events[EVENTS];
    return is_joined(pq) && epoll_wait(own.epoll, events, EVENTS, 0) == 0;
}
