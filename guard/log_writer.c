/* SPDX-License-Identifier: MIT */
/*
 * log_writer.c: the thread that writes a log's lines, and those who write in its place: a flush where there is no thread, an exit, a fatal
 * signal.
 *
 *     writing ──nothing is due──> asleep ──a line, a count, a flush, a reopening, the end; or a time is due──> writing ──is_stopping──> ended
 *
 * Invariants
 *   - Whoever pops lines holds `is_writing`; only a fatal signal that cannot get it goes on without.
 *   - A sleeper is woken by whoever takes `is_asleep` from it, by one write to its eventfd. It looks for work once more after it has set it:
 *     so what came before that is seen, and what comes after it wakes.
 *   - The thread takes no signal, so that no handler of the program's runs on it and a dead pipe is an error and nothing else.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "log_internal.h"

#define MILLISECOND 1000000
#define LOGS 16

static guard_log *_Atomic logs[LOGS];

/* --------------------------------------------------------------------------------------------- writing -- */

static guard_log_sink *sinks_of(guard_log *log, unsigned *count)
{
    *count = atomic_load(&log->sink_count);
    if (*count > 0) {
        return log->sinks;
    }
    *count = 1;
    return &log->fallback;
}

/* Gives the lines to every sink; is_lost[i] where one of them did not take line i. */
static void put_all(guard_log *log, guard_log_slot *const *lines, unsigned count, bool *is_lost)
{
    unsigned sink_count;
    guard_log_sink *sinks = sinks_of(log, &sink_count);
    memset(is_lost, 0, count * sizeof *is_lost);
    for (unsigned i = 0; i < sink_count; i++) {
        sinks[i].put(&sinks[i], lines, count, is_lost);
    }
}

void guard_log_drain(guard_log *log)
{
    guard_log_slot *lines[LOG_BATCH];
    bool is_lost[LOG_BATCH];
    unsigned sink_count;
    guard_log_sink *sinks = sinks_of(log, &sink_count);
    bool is_reopening = atomic_exchange(&log->is_reopening, false);
    for (unsigned i = 0; i < sink_count; i++) {
        if (is_reopening) {
            sinks[i].looked = -1;
        }
        guard_sink_look(&sinks[i]);
    }
    for (unsigned count; (count = guard_queue_peek(&log->queue, lines, LOG_BATCH)) > 0;) {
        uint64_t lost = 0;
        uint64_t bytes = 0;
        for (unsigned i = 0; i < count; i++) {
            if (lines[i]->trace.count > 0) {
                guard_log_format_stack(lines[i]);
            }
        }
        put_all(log, lines, count, is_lost);
        for (unsigned i = 0; i < count; i++) {
            lost += is_lost[i];
            bytes += lines[i]->queued;
        }
        guard_queue_pop(&log->queue, count);
        atomic_fetch_sub(&log->waiting, bytes);
        atomic_fetch_add(&log->written, count - lost);
        if (lost > 0) {
            atomic_fetch_add(&log->lost, lost);
            atomic_fetch_add(&log->lost_untold, lost);
            atomic_store(&log->storm.has_untold, true);
        }
    }
}

static bool tell(guard_log *log, const char *message, const char *file, uint32_t line, uint64_t more)
{
    bool is_lost = false;
    guard_log_slot *slot = &log->own;
    slot->length = (uint32_t)guard_log_format_told(log, message, file, line, more, slot->text);
    slot->severity = GUARD_LOG_WARNING;
    slot->line = line;
    guard_text_copy(slot->file, sizeof slot->file, file);
    put_all(log, &slot, 1, &is_lost);
    atomic_fetch_add(&log->told, !is_lost);
    return !is_lost;
}

/* "412 more of transfer.c:57 in 5 s" */
static bool tell_site(guard_log *log, const guard_storm_site *site, uint64_t count, int64_t ms)
{
    char message[160];
    char place[80];
    if (site->line != 0) {
        snprintf(place, sizeof place, "%s:%u", site->file, site->line);
    } else {
        snprintf(place, sizeof place, "%s", site->file[0] != '\0' ? site->file : "no place");
    }
    snprintf(message, sizeof message, "%llu more of %s in %lld %s", (unsigned long long)count, place,
             (long long)(ms >= 1000 ? (ms + 500) / 1000 : ms), ms >= 1000 ? "s" : "ms");
    return tell(log, message, site->file, site->line, count);
}

/* What could not be told is told the next time. `since` is when the first of it was counted. */
void guard_log_tell(guard_log *log, int64_t since)
{
    int64_t ms = (guard_clock() - since + MILLISECOND / 2) / MILLISECOND;
    bool is_told = true;
    atomic_store(&log->storm.has_untold, false);
    for (size_t i = 0; is_told && i < GUARD_LOG_SITES; i++) {
        guard_storm_site *site = &log->storm.sites[i];
        uint64_t count = atomic_load(&site->is_named) ? atomic_exchange(&site->untold, 0) : 0;
        if (count > 0 && !tell_site(log, site, count, ms)) {
            atomic_fetch_add(&site->untold, count);
            is_told = false;
        }
    }
    uint64_t lost = is_told ? atomic_exchange(&log->lost_untold, 0) : 0;
    if (lost > 0) {
        char message[80];
        snprintf(message, sizeof message, "%llu lines could not be written", (unsigned long long)lost);
        if (!tell(log, message, "", 0, lost)) {
            atomic_fetch_add(&log->lost_untold, lost);
            is_told = false;
        }
    }
    if (!is_told) {
        atomic_store(&log->storm.has_untold, true);
    }
}

/* ---------------------------------------------------------------------------------------------- the thread -- */

typedef struct writer {
    int64_t waiting_since; /* when lines were first seen to wait; CLOCK_NEVER: none do */
    int64_t untold_since;
} writer;

void guard_log_wake(guard_log *log)
{
    if (atomic_load(&log->is_asleep) && atomic_exchange(&log->is_asleep, false)) {
        int error = errno;
        (void)guard_wake_write(
            atomic_load(&log->wake)); /* false only where the count is at its end, and then it is readable */
        errno = error;
    }
}

static bool is_asked(guard_log *log)
{
    return atomic_load(&log->is_stopping) || atomic_load(&log->is_reopening) ||
           atomic_load(&log->flush_asked) != log->flush_done;
}

/* When lines are to be written, for all that is known: in the past, where it is now. */
static int64_t lines_due(guard_log *log, writer *w, int64_t now)
{
    if (atomic_load(&log->waiting) == 0) {
        w->waiting_since = CLOCK_NEVER;
        return CLOCK_NEVER;
    }
    w->waiting_since = w->waiting_since == CLOCK_NEVER ? now : w->waiting_since;
    if (log->options.mode == GUARD_LOG_BATCHED) {
        bool is_much = atomic_load(&log->waiting) >= log->options.flush_bytes;
        return is_much ? now : w->waiting_since + (int64_t)log->options.flush_ms * MILLISECOND;
    }
    return log->options.mode == GUARD_LOG_IMMEDIATE || atomic_load(&log->is_urgent) ? now : CLOCK_NEVER;
}

static int64_t untold_due(guard_log *log, writer *w, int64_t now)
{
    if (!atomic_load(&log->storm.has_untold)) {
        w->untold_since = CLOCK_NEVER;
        return CLOCK_NEVER;
    }
    w->untold_since = w->untold_since == CLOCK_NEVER ? now : w->untold_since;
    return w->untold_since + (int64_t)log->options.report_ms * MILLISECOND;
}

static int64_t earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static void writer_sleep(guard_log *log, writer *w)
{
    atomic_store(&log->is_asleep, true);
    int64_t now = guard_clock();
    int64_t due = earlier(lines_due(log, w, now), untold_due(log, w, now));
    if (!is_asked(log) && due > now) {
        int64_t ms = due == CLOCK_NEVER ? -1 : (due - now + MILLISECOND - 1) / MILLISECOND;
        struct pollfd wake = {.fd = atomic_load(&log->wake), .events = POLLIN};
        poll(&wake, 1, (int)earlier(ms, 3600000));
    }
    atomic_store(&log->is_asleep, false);
    (void)guard_wake_take(atomic_load(&log->wake)); /* nothing where nobody woke us */
}

/* Nobody else writes while this thread lives, but who is dying. */
static void writer_take(guard_log *log)
{
    while (atomic_exchange(&log->is_writing, true)) {
        poll(NULL, 0, 1);
    }
}

/* `is_all`: also what is not due. */
static void writer_write(guard_log *log, writer *w, bool is_all)
{
    int64_t now = guard_clock();
    if (is_all || lines_due(log, w, now) <= now) {
        uint64_t before = atomic_load(&log->queue.head);
        atomic_store(&log->is_urgent, false);
        guard_log_drain(log);
        w->waiting_since = CLOCK_NEVER;
        if (atomic_load(&log->queue.head) == before && atomic_load(&log->waiting) > 0) {
            poll(NULL, 0, 1); /* the line at the head is still being filled */
        }
    }
    if (is_all ? atomic_load(&log->storm.has_untold) : untold_due(log, w, now) <= now) {
        guard_log_tell(log, w->untold_since == CLOCK_NEVER ? now : w->untold_since);
        w->untold_since = CLOCK_NEVER;
    }
}

/* Everything that was asked for before `asked` was read is done. */
static void writer_tell_done(guard_log *log, uint32_t asked, bool has_ended)
{
    pthread_mutex_lock(&log->lock);
    log->flush_done = asked;
    log->has_ended = has_ended;
    pthread_cond_broadcast(&log->changed);
    pthread_mutex_unlock(&log->lock);
}

static void *writer_main(void *arg)
{
    guard_log *log = arg;
    writer w = {CLOCK_NEVER, CLOCK_NEVER};
    pthread_setname_np(pthread_self(), "guard-log");
    for (;;) {
        bool is_last = atomic_load(&log->is_stopping);
        uint32_t asked = atomic_load(&log->flush_asked);
        writer_take(log);
        writer_write(log, &w, is_asked(log));
        atomic_store(&log->is_writing, false);
        if (asked != log->flush_done || is_last) {
            writer_tell_done(log, asked, is_last);
        }
        if (is_last) {
            return NULL;
        }
        writer_sleep(log, &w);
    }
}

static int thread_start(guard_log *log)
{
    sigset_t all;
    sigset_t before;
    int wake = guard_descriptor_raise(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (wake < 0) {
        return errno;
    }
    atomic_store(&log->wake, wake);
    log->has_ended = false;
    guard_fatal_fill(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&log->thread, NULL, writer_main, log);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0) {
        atomic_store(&log->wake, -1);
        close(wake);
    }
    atomic_store(&log->has_thread, code == 0);
    guard_own_threads_add(code == 0);
    return code;
}

int guard_log_start(guard_log *log)
{
    int code = 0;
    int state = guard_foreign_open();
    pthread_mutex_lock(&log->lock);
    if (!atomic_load(&log->has_thread)) {
        code = thread_start(log);
    }
    pthread_mutex_unlock(&log->lock);
    guard_foreign_close(state);
    return code;
}

/* ----------------------------------------------------------------------------------------- flush and stop -- */

static struct timespec time_after(int64_t ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += (long)(ms % 1000) * MILLISECOND;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    return until;
}

/* What a write may raise: a dead pipe, a file beyond RLIMIT_FSIZE. */
static sigset_t write_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    sigaddset(&set, SIGXFSZ);
    return set;
}

/* In the thread's place, where there is none. A signal that this raises is taken back; one that was there before stays. */
static void write_here(guard_log *log)
{
    static const struct timespec now = {0, 0};
    sigset_t raised = write_signals();
    sigset_t before;
    sigset_t pending;
    int state = guard_cancel_shut();
    pthread_sigmask(SIG_BLOCK, &raised, &before);
    sigpending(&pending);
    if (!atomic_exchange(&log->is_writing, true)) {
        writer w = {CLOCK_NEVER, CLOCK_NEVER};
        writer_write(log, &w, true);
        atomic_store(&log->is_writing, false);
    }
    while (!sigismember(&pending, SIGPIPE) && !sigismember(&pending, SIGXFSZ) &&
           sigtimedwait(&raised, NULL, &now) > 0) {
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    guard_cancel_restore(state);
}

int guard_log_flush(guard_log *log, int64_t ms)
{
    if (log == NULL) {
        return 1;
    }
    guard_log_attend(log);
    if (!atomic_load(&log->has_thread)) {
        write_here(log);
        return atomic_load(&log->waiting) == 0;
    }
    if (pthread_equal(log->thread, pthread_self())) {
        return 0;
    }
    struct timespec until = time_after(ms > 0 ? ms : 0);
    uint32_t ticket = atomic_fetch_add(&log->flush_asked, 1) + 1;
    guard_log_wake(log);
    int code = 0;
    int state = guard_foreign_open(); /* a cancel in the wait would leave with the lock held */
    pthread_mutex_lock(&log->lock);
    while ((int32_t)(log->flush_done - ticket) < 0 && code == 0) {
        code = ms < 0 ? pthread_cond_wait(&log->changed, &log->lock)
                      : pthread_cond_timedwait(&log->changed, &log->lock, &until);
    }
    int is_done = (int32_t)(log->flush_done - ticket) >= 0;
    pthread_mutex_unlock(&log->lock);
    guard_foreign_close(state);
    return is_done;
}

bool guard_log_stop(guard_log *log)
{
    if (!atomic_load(&log->has_thread)) {
        write_here(log);
        return true;
    }
    struct timespec until = time_after(log->options.close_ms);
    guard_own_threads_add(-1); /* before it may end: the watcher must not take one of the program's for it */
    atomic_store(&log->is_stopping, true);
    guard_log_wake(log);
    int code = 0;
    int state = guard_foreign_open();
    pthread_mutex_lock(&log->lock);
    while (!log->has_ended && code == 0) {
        code = pthread_cond_timedwait(&log->changed, &log->lock, &until);
    }
    bool has_ended = log->has_ended;
    pthread_mutex_unlock(&log->lock);
    if (has_ended) {
        pthread_join(log->thread, NULL);
        close(atomic_load(&log->wake));
    } else {
        pthread_detach(log->thread);
    }
    guard_foreign_close(state);
    return has_ended;
}

void guard_log_reopen(guard_log *log)
{
    if (log != NULL) {
        atomic_store(&log->is_reopening, true);
        guard_log_wake(log);
    }
}

/* --------------------------------------------------------------------------------------- the process ends -- */

static void flush_at_exit(void)
{
    for (size_t i = 0; i < LOGS; i++) {
        guard_log *log = atomic_load(&logs[i]);
        if (log != NULL) {
            guard_log_flush(log, log->options.close_ms);
        }
    }
}

void guard_log_make_lock(guard_log *log)
{
    pthread_condattr_t attributes;
    pthread_mutex_init(&log->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&log->changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

static void forget_in_child(void)
{
    for (size_t i = 0; i < LOGS; i++) {
        guard_log *log = atomic_load(&logs[i]);
        if (log == NULL) {
            continue;
        }
        if (atomic_load(&log->has_thread)) {
            close(atomic_load(&log->wake)); /* it is the parent's too: what wakes the parent must not wake the child */
        }
        atomic_store(&log->wake, -1);
        atomic_store(&log->has_thread, false);
        atomic_store(&log->is_writing, false);
        atomic_store(&log->is_asleep, false);
        atomic_store(&log->is_stopping, false);
        guard_queue_clear(&log->queue);
        atomic_store(&log->waiting, 0);
        _Atomic uint64_t *counts[] = {&log->events,  &log->full, &log->brief, &log->counted,    &log->dropped,
                                      &log->written, &log->lost, &log->told,  &log->lost_untold};
        for (size_t n = 0; n < sizeof counts / sizeof *counts; n++) {
            atomic_store(counts[n], 0);
        }
        guard_storm_forget(&log->storm);
        log->flush_done = atomic_load(&log->flush_asked);
        guard_log_make_lock(log);
    }
}

static void register_ends(void)
{
    pthread_atfork(NULL, NULL, forget_in_child); /* without memory for it a child must not log, which is said nowhere */
    atexit(flush_at_exit);
    guard_at_death = guard_log_flush_in_signal;
}

bool guard_log_enlist(guard_log *log)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_ends);
    for (size_t i = 0; i < LOGS; i++) {
        guard_log *none = NULL;
        if (atomic_compare_exchange_strong(&logs[i], &none, log)) {
            return true;
        }
    }
    return false;
}

void guard_log_delist(guard_log *log)
{
    for (size_t i = 0; i < LOGS; i++) {
        guard_log *found = log;
        atomic_compare_exchange_strong(&logs[i], &found, NULL);
    }
}

/* ----------------------------------------------------------------------------------------- a fatal signal -- */

enum { DYING_WAITS_MS = 100 };

static void write_dying(guard_log *log)
{
    for (int i = 0; atomic_exchange(&log->is_writing, true) && i < DYING_WAITS_MS; i++) {
        poll(NULL, 0, 1); /* the writer writes, or is the thread that dies */
    }
    unsigned sink_count;
    guard_log_sink *sinks = sinks_of(log, &sink_count);
    guard_log_slot *lines[LOG_BATCH];
    bool is_lost[LOG_BATCH];
    uint64_t rest = log->queue.mask + 1; /* others go on logging */
    for (unsigned count; rest > 0 && (count = guard_queue_peek(&log->queue, lines, LOG_BATCH)) > 0;) {
        rest -= count < rest ? count : rest;
        for (unsigned i = 0; i < sink_count; i++) {
            if (atomic_load(&sinks[i].descriptor) >= 0) {
                sinks[i].is_dying = true;
                guard_sink_put_descriptor(&sinks[i], lines, count, is_lost);
            }
        }
        guard_queue_pop(&log->queue, count);
    }
    atomic_store(&log->is_writing, false);
}

void guard_log_flush_in_signal(void)
{
    int error = errno;
    int state = guard_cancel_shut();
    sigset_t raised = write_signals();
    pthread_sigmask(SIG_BLOCK, &raised, NULL); /* so that it dies of the signal that it dies of */
    for (size_t i = 0; i < LOGS; i++) {
        guard_log *log = atomic_load(&logs[i]);
        if (log != NULL) {
            write_dying(log);
        }
    }
    guard_cancel_restore(state);
    errno = error;
}
