/* SPDX-License-Identifier: MIT */
/*
 * report.c: what is printed when nobody recovers, and how several threads and the end of the process get along with it.
 *
 *     a panic without a border --> begun: its defers run --> waits for its turn --> written --> handler, abort
 *                                   \--a foreign unwind (pthread_exit in a defer) passes--> given up
 *
 * Invariants: until its defers have run nothing is allocated; naming the frames allocates, which may fail and then leaves addresses. A
 * report is written as one piece, under report_lock. Who has written waits for those that have begun before it ends the process, and so does
 * exit(3) (Go's rules, for the same reason: the report is all that is left). Each wait ends.
 */
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

/* Defers and a report take milliseconds, a tenth of a second where debugging information is read first. */
#define TURN_MS 2000
#define EXIT_MS 10000 /* as long as a rollback may take by itself, and its resolution */
#define LOOK_MS 1

static guard_fatal_fn *fatal_handler;
void (*guard_at_death)(void);

static pthread_mutex_t report_lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t reports_begun;          /* threads that die of an uncaught panic */
static uint32_t reports_missing;        /* those of them that have not written yet */
static __thread bool report_is_own;     /* this thread is counted in reports_begun, */
static __thread bool report_is_missing; /* and in reports_missing */

guard_fatal_fn *guard_fatal_handler(guard_fatal_fn *handler)
{
    guard_fatal_fn *former = fatal_handler;
    fatal_handler = handler;
    return former;
}

/* ---------------------------------------------------------------------------------------------- its turn -- */

void guard_report_begin(void)
{
    if (!report_is_own) {
        report_is_own = true;
        report_is_missing = true;
        __atomic_fetch_add(&reports_begun, 1, __ATOMIC_SEQ_CST);
        __atomic_fetch_add(&reports_missing, 1, __ATOMIC_SEQ_CST);
    }
}

/* Once, although a fatal handler may panic itself. */
static void report_count_written(void)
{
    if (report_is_missing) {
        report_is_missing = false;
        __atomic_fetch_sub(&reports_missing, 1, __ATOMIC_SEQ_CST);
    }
}

void guard_report_give_up(void)
{
    if (report_is_own) {
        report_is_own = false;
        report_count_written();
        __atomic_fetch_sub(&reports_begun, 1, __ATOMIC_SEQ_CST);
    }
}

/* After fork, in the child: the other threads' panics are the parent's. */
void guard_report_forget(void)
{
    pthread_mutex_init(&report_lock, NULL);
    reports_begun = report_is_own ? 1 : 0;
    reports_missing = report_is_missing ? 1 : 0;
}

/* Waits until no more than `most` are counted, or the time is over. */
static void report_wait(const uint32_t *count, uint32_t most, int64_t ms)
{
    static const struct timespec nap = {0, LOOK_MS * 1000000};
    int64_t until = guard_clock() + ms * 1000000;
    while (__atomic_load_n(count, __ATOMIC_SEQ_CST) > most && guard_clock() < until) {
        nanosleep(&nap, NULL);
    }
}

/* exit(3), and so the return from main: not in the middle of another thread's last words. */
static __attribute__((destructor)) void report_end(void)
{
    uint32_t own = report_is_own ? 1 : 0;
    if (__atomic_load_n(&reports_begun, __ATOMIC_SEQ_CST) > own) {
        report_wait(&reports_begun, own, EXIT_MS);
    }
}

/* ----------------------------------------------------------------------------------------------- its text -- */

typedef struct report_text {
    char text[10240]; /* four times an error, for what is escaped, the stack and what ran */
    size_t length;
} report_text;

static void report_grow(report_text *report, size_t added)
{
    report->length += added;
    if (report->length >= sizeof report->text) {
        report->length = sizeof report->text - 1;
    }
}

static void report_add_stack(report_text *report, const guard_trace *trace)
{
    char name[16] = "";
    char escaped[4 * sizeof name];
    prctl(PR_GET_NAME, name);
    guard_text_escape(escaped, sizeof escaped, name);
    char *end = report->text + report->length;
    report_grow(report, (size_t)snprintf(end, sizeof report->text - report->length, "\nthread %d (%s), raised by:\n",
                                         (int)gettid(), escaped));
    end = report->text + report->length;
    report_grow(report, guard_trace_format(trace, end, sizeof report->text - report->length));
}

/* The error first: it is short, and what must not be cut. */
static void report_fill(report_text *report, const guard_error *error, const guard_trace *trace)
{
    guard_stack *stack = guard_stack_own;
    report->length = 0;
    report_grow(report, guard_error_format(error, report->text, sizeof report->text));
    if (trace->count > 0) {
        report_add_stack(report, trace);
    }
    if (stack != NULL && stack->panic != NULL && stack->panic->ran != NULL && stack->panic->ran->count > 0) {
        report_grow(report,
                    (size_t)snprintf(report->text + report->length, sizeof report->text - report->length, "\n"));
        report_grow(report, guard_ran_format(stack->panic->ran, report->text + report->length,
                                             sizeof report->text - report->length));
    }
}

void guard_report_uncaught(const guard_error *error)
{
    report_text report;
    guard_trace trace;
    int state = guard_cancel_shut(); /* a thread that dies of its panic takes the process along */
    guard_report_begin();
    if (guard_trace_of(error, &trace) == 0 && guard_trace_every >= 0) {
        /* Caught on the way here, as by guard_exit_thread: its own stack is better than none. */
        guard_trace_here(&trace);
    }
    bool is_mine = guard_lock_within(&report_lock, TURN_MS);
    report_fill(&report, error, &trace);
    (void)guard_write_within(STDERR_FILENO, report.text, report.length, TURN_MS);
    guard_symbol_forget();
    if (is_mine) {
        pthread_mutex_unlock(&report_lock);
    }
    report_count_written();
    report_wait(&reports_missing, 0, TURN_MS);
    if (guard_at_death != NULL) {
        guard_at_death();
    }
    guard_cancel_restore(state);
    if (fatal_handler != NULL) {
        fatal_handler(error, report.text);
    }
    guard_fatal_told();
    abort();
}
