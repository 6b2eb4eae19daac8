/* SPDX-License-Identifier: MIT */
/*
 * service.c: the border around requests, and its limits.
 *
 *     guard_service_call ──> admitted ──> under way ──> returned | failed
 *                       └──> refused, by calls or by rate
 *
 * Invariants
 *   - under_way is raised before the limit is looked at and lowered by whoever raised it, whatever ends the call: never above the limit for
 *     longer than a refusal takes, and 0 when nobody calls.
 *   - The scope of a service may end with a call under way: guard_exit_thread in the call runs that scope before its frames are left. Then
 *     under_way has CLOSED too, and the last call frees the service.
 *   - `due` is when the bucket of calls will be full again. A call that is admitted puts it off by `interval`; one that would put it further
 *     from now than `depth` is refused and changes nothing (the generic cell rate algorithm: a token bucket in one word).
 */
#include <stdatomic.h>

#include "log_internal.h"

#include <guard/guard_service.h>

#define SECOND 1000000000
#define MILLISECOND 1000000
#define RATE_MOST 1000000U /* an interval is at least 1,000 ns, so that dividing rounds it by 0.1 % at most */
#define DEADLINE_DEFAULT 30000
#define CLOSED (UINT64_C(1) << 62)

struct guard_service {
    char name[32];
    uint32_t calls;      /* 0: any number */
    int32_t deadline_ms; /* -1: none */
    guard_log *log;      /* NULL: none */
    guard_severity_fn *severity;
    int64_t interval; /* nanoseconds for each call; 0: any number */
    int64_t depth;    /* interval times burst */
    _Atomic int64_t due;
    atomic_uint_fast64_t under_way;
    atomic_uint_fast64_t returned;
    atomic_uint_fast64_t failed;
    atomic_uint_fast64_t refused_calls;
    atomic_uint_fast64_t refused_rate;
    guard_collector collector;
};

static size_t service_describe(const void *object, char *text, size_t size)
{
    const guard_service *service = object;
    return (size_t)snprintf(text, size, "service %s", service->name);
}

static void service_free(void *arg)
{
    guard_service *service = arg;
    guard_collector_close(&service->collector);
    if (atomic_fetch_or(&service->under_way, CLOSED) == 0) {
        guard_deallocate(service);
    }
}

/* One of the calls under way has ended. */
static void call_leave(guard_service *service)
{
    if (atomic_fetch_sub(&service->under_way, 1) == (CLOSED | 1)) {
        guard_deallocate(service);
    }
}

static const guard_kind service_kind = {
    .name = "service", .release = service_free, .describe = service_describe, .flags = GUARD_KIND_HEAP};

static void service_collect(guard_metrics_page *page, void *arg)
{
    static const guard_metric calls = {
        .name = "guard_service_calls_total",
        .help =
            "Calls of guard_service_call by service and result: returned, failed by a panic, or refused by a limit.",
        .type = GUARD_METRIC_COUNTER};
    static const guard_metric under_way = {.name = "guard_service_calls_under_way",
                                           .help = "Calls of guard_service_call that are running now.",
                                           .type = GUARD_METRIC_GAUGE};
    const guard_service *service = arg;
    guard_service_figures figures;
    guard_service_read(service, &figures);
    const struct {
        const char *result;
        uint64_t count;
    } results[] = {{"returned", figures.returned},
                   {"failed", figures.failed},
                   {"refused_calls", figures.refused_calls},
                   {"refused_rate", figures.refused_rate}};
    for (size_t i = 0; i < sizeof results / sizeof *results; i++) {
        const guard_label labels[] = {{"service", service->name}, {"result", results[i].result}};
        guard_metrics_put(page, &calls, labels, 2, (int64_t)results[i].count);
    }
    guard_metrics_put(page, &under_way, &(guard_label){"service", service->name}, 1, (int64_t)figures.under_way);
}

static const char *options_objection(const guard_service_options *options)
{
    if (options->per_second > RATE_MOST) {
        return "more than 1,000,000 calls per second";
    }
    if (options->burst != 0 && options->per_second == 0) {
        return "a burst of an unlimited rate";
    }
    if (options->deadline_ms < -1) {
        return "a deadline below -1";
    }
    for (size_t i = 0; i < sizeof options->reserved / sizeof *options->reserved; i++) {
        if (options->reserved[i] != 0) {
            return "a reserved word that is not 0";
        }
    }
    return NULL;
}

static void service_fill(guard_service *service, const char *name, const guard_service_options *options)
{
    memset(service, 0, sizeof *service);
    guard_text_copy(service->name, sizeof service->name, name);
    service->calls = options->calls;
    service->deadline_ms = options->deadline_ms != 0 ? options->deadline_ms : DEADLINE_DEFAULT;
    service->log = options->log;
    service->severity = options->severity;
    if (options->per_second != 0) {
        service->interval = SECOND / options->per_second;
        service->depth = service->interval * (options->burst != 0 ? options->burst : options->per_second);
    }
}

guard_service *guard_service_open_at(guard_scope *scope, const char *name, const guard_service_options *options,
                                     const guard_place *place)
{
    static const guard_service_options none;
    options = options != NULL ? options : &none;
    const char *objection = name == NULL ? "no name" : options_objection(options);
    if (objection != NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "guard_service_open with %s", objection);
        return NULL;
    }
    guard_impl_reserve(scope, 1, place);
    guard_service *service = guard_allocate(sizeof *service);
    service_fill(service, name, options);
    guard_collector_open(&service->collector, service_collect, service);
    guard_ticket ticket = guard_impl_defer_kind(scope, &service_kind, service, place);
    return ticket.record != NULL ? service : NULL;
}

/* ------------------------------------------------------------------------------------------------ limits -- */

static bool rate_admits(guard_service *service)
{
    if (service->interval == 0) {
        return true;
    }
    int64_t now = guard_clock();
    int64_t due = atomic_load(&service->due);
    int64_t next;
    do {
        next = (due > now ? due : now) + service->interval;
        if (next - now > service->depth) {
            return false;
        }
    } while (!atomic_compare_exchange_weak(&service->due, &due, next));
    return true;
}

int64_t guard_service_retry_ms(const guard_service *service)
{
    if (service == NULL || service->interval == 0) {
        return 0;
    }
    int64_t wait = atomic_load(&service->due) + service->interval - service->depth - guard_clock();
    return wait > 0 ? (wait + MILLISECOND - 1) / MILLISECOND : 0;
}

static int refuse(guard_service *service, guard_refusal why, guard_error *error)
{
    bool is_rate = why == GUARD_REFUSED_RATE;
    atomic_fetch_add(is_rate ? &service->refused_rate : &service->refused_calls, 1);
    if (error != NULL) {
        guard_error_set(error, GUARD_REFUSED, why,
                        is_rate ? "service %s has had its calls for now" : "service %s has all its calls under way",
                        service->name);
    }
    return why;
}

/* 0, or the refusal's code. Of the two limits the calls come first: a call that they refuse takes nothing from the rate. */
static int admit(guard_service *service, guard_error *error)
{
    uint64_t before = atomic_fetch_add(&service->under_way, 1);
    bool is_full = service->calls != 0 && before >= service->calls;
    if (!is_full && rate_admits(service)) {
        return 0;
    }
    atomic_fetch_sub(&service->under_way, 1);
    return refuse(service, is_full ? GUARD_REFUSED_CALLS : GUARD_REFUSED_RATE, error);
}

/* -------------------------------------------------------------------------------------------------- call -- */

typedef struct call {
    guard_service *service;
    guard_fn *fn;
    void *arg;
    guard_context_mark context; /* where there is a log */
} call;

static void call_run(void *arg)
{
    const call *this = arg;
    GUARD_AUTO(s);
    if (this->service->deadline_ms != -1) {
        guard_deadline(s, this->service->deadline_ms);
    }
    this->fn(this->arg);
}

static void call_begin(call *this)
{
    if (this->service->log != NULL) {
        guard_log_attend(this->service->log);
        this->context = guard_context_begin();
    }
}

static void call_log(const call *this, const guard_error *error)
{
    const guard_service *service = this->service;
    if (service->log != NULL) {
        guard_severity severity = service->severity != NULL ? service->severity(error) : GUARD_LOG_BY_ERROR;
        guard_log_put_error(service->log, service->name, severity, error);
    }
}

/* Whatever ends the call: also a foreign unwind (pthread_cancel, a C++ exception), which counts as a failure. */
static void call_end(call *const *ended)
{
    if (*ended != NULL) {
        atomic_fetch_add(&(*ended)->service->failed, 1);
        call_leave((*ended)->service);
        guard_context_end((*ended)->context);
    }
}

int guard_service_call(guard_service *service, guard_fn *fn, void *arg, guard_error *error)
{
    if (service == NULL || fn == NULL) {
        const char *what = service == NULL ? "guard_service_call without a service"
                                           : "guard_service_call without a function";
        guard_misuse(GUARD_MISUSE_ARGUMENT, "%s", what);
        if (error != NULL) {
            guard_error_set(error, GUARD_MISUSE, GUARD_MISUSE_ARGUMENT, "%s", what);
        }
        return GUARD_MISUSE_ARGUMENT;
    }
    guard_raise_held(); /* else guard_run would, past the end of a call that was admitted */
    int code = admit(service, error);
    if (code != 0) {
        return code;
    }
    guard_error own;
    call this = {.service = service, .fn = fn, .arg = arg};
    call_begin(&this);
    call *ending __attribute__((cleanup(call_end))) = &this;
    error = error == NULL && service->log != NULL ? &own : error;
    code = guard_run(call_run, &this, error);
    if (code == 0) {
        ending = NULL;
        atomic_fetch_add(&service->returned, 1);
        call_leave(service);
        guard_context_end(this.context);
    } else {
        call_log(&this, error);
    }
    return code;
}

void guard_service_read(const guard_service *service, guard_service_figures *figures)
{
    memset(figures, 0, sizeof *figures);
    if (service == NULL) {
        return;
    }
    figures->returned = atomic_load(&service->returned);
    figures->failed = atomic_load(&service->failed);
    figures->under_way = atomic_load(&service->under_way) & ~CLOSED;
    figures->refused_calls = atomic_load(&service->refused_calls);
    figures->refused_rate = atomic_load(&service->refused_rate);
}

/* ------------------------------------------------------------------------------------------------ answer -- */

/* The core knows no database: these are SQLite's primary codes (https://www.sqlite.org/rescode.html) and GUARD_PQ_CONNECTION. */
enum { PRIMARY_BUSY = 5, PRIMARY_LOCKED = 6, PQ_CONNECTION = 2 };

static guard_answer answer_sqlite(int code)
{
    int primary = code & 0xff;
    return primary == PRIMARY_BUSY || primary == PRIMARY_LOCKED ? GUARD_ANSWER_BUSY : GUARD_ANSWER_FAILED;
}

/* PostgreSQL 15, appendix A: connection exceptions, transaction rollback, insufficient resources, operator intervention. */
static guard_answer answer_sqlstate(const char *sqlstate)
{
    static const char classes[][3] = {"08", "40", "53", "57"};
    if (strcmp(sqlstate, "57014") == 0) { /* query_canceled */
        return GUARD_ANSWER_CANCELLED;
    }
    if (strcmp(sqlstate, "55P03") == 0) { /* lock_not_available */
        return GUARD_ANSWER_BUSY;
    }
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++) {
        if (strncmp(sqlstate, classes[i], 2) == 0) {
            return GUARD_ANSWER_BUSY;
        }
    }
    return GUARD_ANSWER_FAILED;
}

guard_answer guard_service_answer(const guard_error *error)
{
    if (error == NULL || error->code == 0) {
        return GUARD_ANSWER_DONE;
    }
    switch (error->domain) {
    case GUARD_REFUSED:
        return GUARD_ANSWER_REFUSED;
    case GUARD_CANCELLED:
    case GUARD_TIMEOUT:
        return GUARD_ANSWER_CANCELLED;
    case GUARD_MEMORY:
        return GUARD_ANSWER_BUSY;
    case GUARD_FAULT:
        return GUARD_ANSWER_FAULT;
    case GUARD_MISUSE:
        return GUARD_ANSWER_BUG;
    case GUARD_SQLITE:
        return answer_sqlite(error->code);
    case GUARD_PQ:
        return error->code == PQ_CONNECTION ? GUARD_ANSWER_BUSY : answer_sqlstate(error->sqlstate);
    default:
        return GUARD_ANSWER_FAILED;
    }
}
