/* SPDX-License-Identifier: MIT */
/*
 * watch.c: the library's one thread of its own. It wakes threads that wait when a signal cancels the process, and calls the
 * functions of guard_interrupt while their threads are in foreign calls.
 *
 *     not there --guard_cancel_on_signal, guard_interrupt_open with something to watch--> running --exit--> over
 *         ^------------------------------------ fork, in the child ------------------------/
 *
 * Each round it looks at everything under the life lock and then sleeps until the nearest thing is due or it is poked. Invariant: between
 * rounds watch_next is when it will look again by itself; who registers something earlier, under the life lock, pokes it. It
 * never uses scopes, and so has no stack.
 */
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "helgrind.h"
#include "internal.h"

#define ALONE_LOOK_MS 100

static int watch_descriptor =
    -1; /* eventfd; never closed while the process lives, for a signal handler may write to it */
static pthread_t watch_thread_id;
static bool watch_is_running;
static uint32_t watch_is_over; /* the process exits */
static int64_t watch_next = CLOCK_NEVER;
static uint32_t watch_main_is_over; /* the main thread has ended, and the process has not */
static uint32_t own_threads;        /* of the library, see guard_own_threads_add */

void guard_watch_poke(void)
{
    int descriptor = __atomic_load_n(&watch_descriptor, __ATOMIC_SEQ_CST);
    if (descriptor >= 0) {
        (void)guard_wake_write(descriptor); /* false: it has been poked 2^64 - 2 times already */
    }
}

/* ------------------------------------------------------------------------------------------- its rounds -- */

static void next_lower(int64_t *next, int64_t time)
{
    if (time < *next) {
        *next = time;
    }
}

static void watch_one(guard_thread *thread, int64_t now, int64_t *next)
{
    bool is_cancelled = __atomic_load_n(thread->attention, __ATOMIC_SEQ_CST) & ATTENTION_CANCEL;
    if (guard_signal_is_pending()) {
        guard_attention_set(thread->attention, ATTENTION_SIGNAL);
        if (now >= guard_signal_due()) {
            is_cancelled = true;
            guard_thread_wake(thread);
        }
    }
    pthread_mutex_lock(&thread->lock);
    for (guard_interrupt *interrupt = thread->interrupts; interrupt != NULL; interrupt = interrupt->outer) {
        if ((is_cancelled && interrupt->cancel) || now >= interrupt->due) {
            interrupt->fn(interrupt->arg);
            interrupt->called++;
            next_lower(next, now + GUARD_INTERRUPT_MS * 1000000);
        } else {
            next_lower(next, interrupt->due);
        }
    }
    pthread_mutex_unlock(&thread->lock);
}

static int64_t watch_round(void)
{
    int64_t next = CLOCK_NEVER;
    pthread_mutex_lock(&guard_life_lock);
    int64_t now = guard_clock();
    if (guard_signal_is_pending() && now < guard_signal_due()) {
        next = guard_signal_due();
    }
    for (guard_thread *thread = guard_threads; thread != NULL; thread = thread->next) {
        watch_one(thread, now, &next);
    }
    watch_next = next;
    pthread_mutex_unlock(&guard_life_lock);
    return next;
}

static void watch_sleep(int64_t until)
{
    struct pollfd poked = {.fd = watch_descriptor, .events = POLLIN};
    int64_t left = until == CLOCK_NEVER ? 0 : until - guard_clock();
    struct timespec time = {0, 0};
    if (left > 0) {
        time.tv_sec = left / 1000000000;
        time.tv_nsec = left % 1000000000;
    }
    if (ppoll(&poked, 1, until == CLOCK_NEVER ? NULL : &time, NULL) > 0) {
        (void)guard_wake_take(watch_descriptor);
    }
}

/*
 * A process whose main thread has ended by pthread_exit ends with its last thread. That would be this one: so it ends the process, as libc would,
 * when nobody is left but the library's own and the main thread, which the kernel lists to the end.
 */
static bool watch_is_alone(void)
{
    uint32_t count = 0;
    DIR *tasks = opendir("/proc/self/task");
    if (tasks == NULL) {
        return false;
    }
    for (const struct dirent *task; (task = readdir(tasks)) != NULL;) {
        count += task->d_name[0] != '.';
    }
    closedir(tasks);
    return count <= __atomic_load_n(&own_threads, __ATOMIC_SEQ_CST) + 1;
}

void guard_own_threads_add(int count)
{
    __atomic_fetch_add(&own_threads, (uint32_t)count, __ATOMIC_SEQ_CST);
}

static void *watch_main(void *arg)
{
    while (!__atomic_load_n(&watch_is_over, __ATOMIC_SEQ_CST)) {
        int64_t next = watch_round();
        if (__atomic_load_n(&watch_main_is_over, __ATOMIC_SEQ_CST)) {
            if (watch_is_alone()) {
                exit(EXIT_SUCCESS);
            }
            next_lower(&next, guard_clock() + ALONE_LOOK_MS * (int64_t)1000000);
        }
        watch_sleep(next);
        guard_dump_look();
    }
    return arg;
}

/* ------------------------------------------------------------------------------------- its life, and fork -- */

/* Its signals stay blocked, but for those of faults: a handler of the program's must not run on a thread it does not know. */
static int watch_create(void)
{
    sigset_t all;
    sigset_t former;
    guard_fatal_fill(&all);
    pthread_sigmask(SIG_SETMASK, &all, &former);
    int code = pthread_create(&watch_thread_id, NULL, watch_main, NULL);
    pthread_sigmask(SIG_SETMASK, &former, NULL);
    return code;
}

/* At exit, so that a leak checker sees no thread's memory in use. What asks for it from now on is told that there is none. */
static __attribute__((destructor)) void watch_end(void)
{
    __atomic_store_n(&watch_is_over, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_lock(&guard_life_lock);
    bool was_running = watch_is_running;
    watch_is_running = false;
    pthread_mutex_unlock(&guard_life_lock);
    if (was_running && !pthread_equal(watch_thread_id, pthread_self())) {
        guard_watch_poke();
        pthread_join(watch_thread_id, NULL);
    }
}

int guard_watch_start(void)
{
    if (watch_is_running) {
        return 0;
    }
    if (__atomic_load_n(&watch_is_over, __ATOMIC_SEQ_CST)) {
        return ESHUTDOWN;
    }
    if (watch_descriptor < 0) {
        int descriptor = guard_descriptor_raise(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        if (descriptor < 0) {
            return errno;
        }
        __atomic_store_n(&watch_descriptor, descriptor, __ATOMIC_SEQ_CST);
    }
    int code = watch_create();
    watch_is_running = code == 0;
    guard_own_threads_add(code == 0);
    return code;
}

/* Where a log's thread is all that is left, nobody else would end the process. */
void guard_watch_main_ended(void)
{
    __atomic_store_n(&watch_main_is_over, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&own_threads, __ATOMIC_SEQ_CST) > 0) {
        pthread_mutex_lock(&guard_life_lock);
        guard_watch_start();
        pthread_mutex_unlock(&guard_life_lock);
    }
    guard_watch_poke();
}

/* The descriptor is shared with the parent, whose watcher must not be poked. */
void guard_watch_forget(void)
{
    int descriptor = __atomic_exchange_n(&watch_descriptor, -1, __ATOMIC_SEQ_CST);
    if (descriptor >= 0) {
        close(descriptor);
    }
    watch_is_running = false;
    watch_next = CLOCK_NEVER;
    HELGRIND_TAKE(&watch_main_is_over,
                  sizeof watch_main_is_over); /* the watcher, which reads them, is not in the child */
    HELGRIND_TAKE(&own_threads, sizeof own_threads);
    watch_main_is_over = 0;
    own_threads = 0;
}

/* ------------------------------------------------------------------------------------------- interrupts -- */

void guard_thread_interrupt(guard_thread *thread)
{
    pthread_mutex_lock(&thread->lock);
    if (thread->interrupts != NULL) {
        if (guard_watch_start() == 0) {
            guard_watch_poke();
        } else { /* no thread to be had: at least once, from here. A fault of one is not to be a panic, under the lock. */
            guard_impl_foreign++;
            for (guard_interrupt *interrupt = thread->interrupts; interrupt != NULL; interrupt = interrupt->outer) {
                interrupt->fn(interrupt->arg);
                interrupt->called++;
            }
            guard_impl_foreign--;
        }
    }
    pthread_mutex_unlock(&thread->lock);
}

static int interrupt_watch(const guard_interrupt *interrupt, bool may_be_cancelled)
{
    pthread_mutex_lock(&guard_life_lock);
    int code = guard_watch_start();
    if (code == 0 && (may_be_cancelled || interrupt->due < watch_next)) {
        guard_watch_poke();
    }
    pthread_mutex_unlock(&guard_life_lock);
    return code;
}

void guard_interrupt_open(guard_interrupt *interrupt, guard_fn *fn, void *arg)
{
    guard_limits limits = guard_limits_here(guard_stack_here());
    guard_thread *thread = guard_thread_own;
    guard_raise_held();
    interrupt->fn = fn;
    interrupt->arg = arg;
    interrupt->due = limits.deadline;
    interrupt->cancel = !limits.is_masked;
    interrupt->called = 0;
    pthread_mutex_lock(&thread->lock);
    interrupt->outer = thread->interrupts;
    thread->interrupts = interrupt;
    pthread_mutex_unlock(&thread->lock);
    /* After it was linked: who cancels from now on finds it. */
    uint32_t attention = __atomic_load_n(&guard_impl_attention, __ATOMIC_SEQ_CST);
    bool may_be_cancelled = interrupt->cancel && (attention & (ATTENTION_CANCEL | ATTENTION_SIGNAL));
    if (may_be_cancelled || interrupt->due != CLOCK_NEVER) {
        int code = interrupt_watch(interrupt, may_be_cancelled);
        if (code != 0) {
            guard_interrupt_close(interrupt);
            errno = code;
            guard_panic_os("no thread to interrupt a call with");
        }
    }
}

void guard_interrupt_close(guard_interrupt *interrupt)
{
    guard_thread *thread = guard_thread_own;
    pthread_mutex_lock(&thread->lock);
    guard_interrupt **at = &thread->interrupts;
    while (*at != NULL && *at != interrupt) {
        at = &(*at)->outer;
    }
    if (*at != NULL) {
        *at = interrupt->outer;
    }
    pthread_mutex_unlock(&thread->lock);
}
