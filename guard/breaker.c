/* SPDX-License-Identifier: MIT */
/*
 * breaker.c: whether a dependency is called; the states are drawn in guard_breaker.h.
 *
 * Invariants
 *   - Everything but the options is touched under `lock`, under which nothing waits and no function of the program's runs.
 *   - `epoch` grows with each change of state. A call settles only in the epoch in which it was admitted: a slow call of the closed time
 *     neither closes nor opens what has been decided since.
 *   - Half-open: `admitted` calls are under way or were well, at most `probes`.
 */
#include "log_internal.h"

#include <guard/guard_breaker.h>

#define MILLISECOND 1000000
#define SLOTS 10

static const char *const state_names[] = {"closed", "open", "half-open"}; /* by guard_breaker_state */

typedef struct slot {
    int64_t number; /* which tenth of a window since the clock began */
    uint64_t calls;
    uint64_t failures;
} slot;

struct guard_breaker {
    char name[32];
    guard_breaker_options options; /* none of them 0 */
    pthread_mutex_t lock;
    guard_breaker_figures figures;
    uint64_t epoch;
    uint64_t under_way; /* calls */
    bool is_closed; /* its scope has ended, the last call frees it: guard_exit_thread in a call runs the scope first */
    int64_t until;  /* open: when it ends */
    uint32_t admitted; /* half-open */
    uint32_t well;     /* half-open: of those admitted */
    slot slots[SLOTS]; /* closed */
    guard_collector collector;
};

/* ----------------------------------------------------------------------------------------------- opening -- */

static size_t breaker_describe(const void *object, char *text, size_t size)
{
    const guard_breaker *breaker = object;
    return (size_t)snprintf(text, size, "breaker %s", breaker->name);
}

static void breaker_free(guard_breaker *breaker)
{
    pthread_mutex_destroy(&breaker->lock);
    guard_deallocate(breaker);
}

static void breaker_close(void *arg)
{
    guard_breaker *breaker = arg;
    guard_collector_close(&breaker->collector);
    pthread_mutex_lock(&breaker->lock);
    breaker->is_closed = true;
    bool is_last = breaker->under_way == 0;
    pthread_mutex_unlock(&breaker->lock);
    if (is_last) {
        breaker_free(breaker);
    }
}

static const guard_kind breaker_kind = {
    .name = "breaker", .release = breaker_close, .describe = breaker_describe, .flags = GUARD_KIND_HEAP};

static void breaker_collect(guard_metrics_page *page, void *arg)
{
    static const guard_metric state = {.name = "guard_breaker_state",
                                       .help = "1 for the state that a breaker is in, 0 for the others.",
                                       .type = GUARD_METRIC_GAUGE};
    static const guard_metric calls = {
        .name = "guard_breaker_calls_total",
        .help =
            "Calls of guard_breaker_call by breaker and what they said of the dependency, or that they were refused.",
        .type = GUARD_METRIC_COUNTER};
    static const guard_metric opened = {
        .name = "guard_breaker_opened_total", .help = "How often a breaker was opened.", .type = GUARD_METRIC_COUNTER};
    guard_breaker *breaker = arg;
    guard_breaker_figures figures;
    guard_breaker_read(breaker, &figures);
    for (size_t i = 0; i < sizeof state_names / sizeof *state_names; i++) {
        const guard_label labels[] = {{"breaker", breaker->name}, {"state", state_names[i]}};
        guard_metrics_put(page, &state, labels, 2, (size_t)figures.state == i);
    }
    const struct {
        const char *result;
        uint64_t count;
    } results[] = {{"well", figures.well},
                   {"failed", figures.failed},
                   {"uncounted", figures.uncounted},
                   {"refused", figures.refused}};
    for (size_t i = 0; i < sizeof results / sizeof *results; i++) {
        const guard_label labels[] = {{"breaker", breaker->name}, {"result", results[i].result}};
        guard_metrics_put(page, &calls, labels, 2, (int64_t)results[i].count);
    }
    guard_metrics_put(page, &opened, &(guard_label){"breaker", breaker->name}, 1, (int64_t)figures.opened);
}

static const char *options_objection(const guard_breaker_options *options)
{
    if (options->failure_percent > 100) {
        return "more than 100 percent";
    }
    if (options->window_ms < 0 || (options->window_ms > 0 && options->window_ms < SLOTS) || options->open_ms < 0) {
        return "a time out of its range";
    }
    for (size_t i = 0; i < sizeof options->reserved / sizeof *options->reserved; i++) {
        if (options->reserved[i] != 0) {
            return "a reserved word that is not 0";
        }
    }
    return NULL;
}

static void breaker_fill(guard_breaker *breaker, const char *name, const guard_breaker_options *options)
{
    memset(breaker, 0, sizeof *breaker);
    guard_text_copy(breaker->name, sizeof breaker->name, name);
    breaker->options.failure_percent = options->failure_percent != 0 ? options->failure_percent : 50;
    breaker->options.calls = options->calls != 0 ? options->calls : 20;
    breaker->options.window_ms = options->window_ms != 0 ? options->window_ms : 10000;
    breaker->options.open_ms = options->open_ms != 0 ? options->open_ms : 5000;
    breaker->options.probes = options->probes != 0 ? options->probes : 1;
    breaker->options.log = options->log;
    breaker->options.judge = options->judge != NULL ? options->judge : guard_breaker_judge;
    pthread_mutex_init(&breaker->lock, NULL); /* without attributes it cannot fail, pthread_mutex_init(3) */
}

guard_breaker *guard_breaker_open_at(guard_scope *scope, const char *name, const guard_breaker_options *options,
                                     const guard_place *place)
{
    static const guard_breaker_options none;
    options = options != NULL ? options : &none;
    const char *objection = name == NULL ? "no name" : options_objection(options);
    if (objection != NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "guard_breaker_open with %s", objection);
        return NULL;
    }
    guard_impl_reserve(scope, 1, place);
    guard_breaker *breaker = guard_allocate(sizeof *breaker);
    breaker_fill(breaker, name, options);
    guard_collector_open(&breaker->collector, breaker_collect, breaker);
    guard_ticket ticket = guard_impl_defer_kind(scope, &breaker_kind, breaker, place);
    return ticket.record != NULL ? breaker : NULL;
}

/* ------------------------------------------------------------------------------------------------ states -- */

/* Under the lock; the caller tells it after. */
static void breaker_enter(guard_breaker *breaker, guard_breaker_state state)
{
    breaker->figures.state = state;
    breaker->epoch++;
    breaker->admitted = 0;
    breaker->well = 0;
    if (state == GUARD_BREAKER_OPEN) {
        breaker->figures.opened++;
        breaker->until = guard_clock() + (int64_t)breaker->options.open_ms * MILLISECOND;
    } else if (state == GUARD_BREAKER_CLOSED) {
        memset(breaker->slots, 0, sizeof breaker->slots);
    }
}

/* Without the lock: the note handler is the program's, and writing may not be held up by it. */
static void breaker_tell(const guard_breaker *breaker, guard_breaker_state state)
{
    if (breaker->options.log != NULL) {
        guard_log_write(breaker->options.log, state == GUARD_BREAKER_OPEN ? GUARD_LOG_WARNING : GUARD_LOG_NOTICE,
                        "breaker %s is %s", breaker->name, state_names[state]);
    } else {
        guard_note("breaker %s is %s", breaker->name, state_names[state]);
    }
}

/* Counts a call of the closed state; whether the window is now such that it must open. */
static bool window_count(guard_breaker *breaker, bool has_failed)
{
    int64_t number = guard_clock() / ((int64_t)breaker->options.window_ms * MILLISECOND / SLOTS);
    slot *now = &breaker->slots[number % SLOTS];
    if (now->number != number) {
        *now = (slot){number, 0, 0};
    }
    now->calls++;
    now->failures += has_failed;
    uint64_t calls = 0;
    uint64_t failures = 0;
    for (size_t i = 0; i < SLOTS; i++) {
        if (breaker->slots[i].number > number - SLOTS) {
            calls += breaker->slots[i].calls;
            failures += breaker->slots[i].failures;
        }
    }
    return has_failed && calls >= breaker->options.calls && failures * 100 >= calls * breaker->options.failure_percent;
}

/* Whether the call may be made; *epoch is then its epoch. */
static bool breaker_admit(guard_breaker *breaker, uint64_t *epoch)
{
    bool is_new = false;
    pthread_mutex_lock(&breaker->lock);
    if (breaker->figures.state == GUARD_BREAKER_OPEN && guard_clock() >= breaker->until) {
        breaker_enter(breaker, GUARD_BREAKER_HALF_OPEN);
        is_new = true;
    }
    bool is_admitted = breaker->figures.state == GUARD_BREAKER_CLOSED;
    if (breaker->figures.state == GUARD_BREAKER_HALF_OPEN && breaker->admitted < breaker->options.probes) {
        breaker->admitted++;
        is_admitted = true;
    }
    breaker->figures.refused += !is_admitted;
    breaker->under_way += is_admitted;
    *epoch = breaker->epoch;
    pthread_mutex_unlock(&breaker->lock);
    if (is_new) {
        breaker_tell(breaker, GUARD_BREAKER_HALF_OPEN);
    }
    return is_admitted;
}

/* Under the lock: what the verdict of a call of this epoch makes of the state. */
static guard_breaker_state breaker_next(guard_breaker *breaker, guard_verdict verdict)
{
    guard_breaker_state state = breaker->figures.state;
    if (state == GUARD_BREAKER_HALF_OPEN) {
        if (verdict == GUARD_VERDICT_FAILED) {
            return GUARD_BREAKER_OPEN;
        }
        if (verdict == GUARD_VERDICT_NONE) {
            breaker->admitted--; /* another call may try */
            return state;
        }
        return ++breaker->well == breaker->options.probes ? GUARD_BREAKER_CLOSED : state;
    }
    if (verdict == GUARD_VERDICT_NONE) {
        return state;
    }
    return window_count(breaker, verdict == GUARD_VERDICT_FAILED) ? GUARD_BREAKER_OPEN : state;
}

static void breaker_settle(guard_breaker *breaker, uint64_t epoch, guard_verdict verdict)
{
    pthread_mutex_lock(&breaker->lock);
    breaker->figures.well += verdict == GUARD_VERDICT_WELL;
    breaker->figures.failed += verdict == GUARD_VERDICT_FAILED;
    breaker->figures.uncounted += verdict == GUARD_VERDICT_NONE;
    guard_breaker_state before = breaker->figures.state;
    guard_breaker_state after = before;
    if (epoch == breaker->epoch) {
        after = breaker_next(breaker, verdict);
        if (after != before) {
            breaker_enter(breaker, after);
        }
    }
    bool is_closed = breaker->is_closed;
    bool is_last = --breaker->under_way == 0 && is_closed;
    pthread_mutex_unlock(&breaker->lock);
    if (is_last) {
        breaker_free(breaker);
    } else if (after != before && !is_closed) { /* its log may be closed, too */
        breaker_tell(breaker, after);
    }
}

/* -------------------------------------------------------------------------------------------------- call -- */

typedef struct call {
    guard_breaker *breaker; /* NULL: settled */
    uint64_t epoch;
} call;

/* A foreign unwind (pthread_cancel, a C++ exception) came through. */
static void call_abandon(call *this)
{
    if (this->breaker != NULL) {
        breaker_settle(this->breaker, this->epoch, GUARD_VERDICT_FAILED);
    }
}

static int call_run(guard_breaker *breaker, uint64_t epoch, guard_fn *fn, void *arg, guard_error *error)
{
    call this __attribute__((cleanup(call_abandon))) = {breaker, epoch};
    int code = guard_run(fn, arg, error);
    guard_verdict verdict = code == 0 ? GUARD_VERDICT_WELL : breaker->options.judge(error);
    this.breaker = NULL;
    breaker_settle(breaker, epoch, verdict);
    return code;
}

int guard_breaker_call(guard_breaker *breaker, guard_fn *fn, void *arg, guard_error *error)
{
    guard_error own;
    error = error != NULL ? error : &own;
    if (breaker == NULL || fn == NULL) {
        const char *what = breaker == NULL ? "without a breaker" : "without a function";
        guard_misuse(GUARD_MISUSE_ARGUMENT, "guard_breaker_call %s", what);
        guard_error_set(error, GUARD_MISUSE, GUARD_MISUSE_ARGUMENT, "guard_breaker_call %s", what);
        return GUARD_MISUSE_ARGUMENT;
    }
    guard_raise_held(); /* else guard_run would, and the call that was admitted would never be settled */
    uint64_t epoch;
    if (!breaker_admit(breaker, &epoch)) {
        guard_error_set(error, GUARD_REFUSED, GUARD_REFUSED_BREAKER, "breaker %s is open", breaker->name);
        return GUARD_REFUSED_BREAKER;
    }
    return call_run(breaker, epoch, fn, arg, error);
}

int64_t guard_breaker_retry_ms(guard_breaker *breaker)
{
    if (breaker == NULL) {
        return 0;
    }
    pthread_mutex_lock(&breaker->lock);
    int64_t wait = breaker->figures.state == GUARD_BREAKER_OPEN ? breaker->until - guard_clock() : 0;
    pthread_mutex_unlock(&breaker->lock);
    return wait > 0 ? (wait + MILLISECOND - 1) / MILLISECOND : 0;
}

void guard_breaker_read(guard_breaker *breaker, guard_breaker_figures *figures)
{
    if (breaker == NULL) {
        memset(figures, 0, sizeof *figures);
        return;
    }
    pthread_mutex_lock(&breaker->lock);
    *figures = breaker->figures;
    pthread_mutex_unlock(&breaker->lock);
}

/* SQLite's primary codes (https://www.sqlite.org/rescode.html); the core does not know SQLite. */
enum { PRIMARY_IOERR = 10, PRIMARY_CORRUPT = 11, PRIMARY_FULL = 13, PRIMARY_CANTOPEN = 14 };

guard_verdict guard_breaker_judge(const guard_error *error)
{
    int primary = error->domain == GUARD_SQLITE ? error->code & 0xff : 0;
    if (primary == PRIMARY_IOERR || primary == PRIMARY_CORRUPT || primary == PRIMARY_FULL ||
        primary == PRIMARY_CANTOPEN || error->domain == GUARD_OS || error->domain == GUARD_LOCK ||
        error->domain == GUARD_TIMEOUT) {
        return GUARD_VERDICT_FAILED;
    }
    switch (guard_service_answer(error)) {
    case GUARD_ANSWER_BUSY:
    case GUARD_ANSWER_FAULT:
        return GUARD_VERDICT_FAILED;
    case GUARD_ANSWER_CANCELLED:
    case GUARD_ANSWER_REFUSED:
        return GUARD_VERDICT_NONE;
    default:
        return GUARD_VERDICT_WELL;
    }
}
