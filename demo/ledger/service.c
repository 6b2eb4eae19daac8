/* SPDX-License-Identifier: MIT */
/*
 * The border around each request, which is guard_service_call, and what is counted of them.
 */
#include "service.h"

#include <inttypes.h>
#include <pthread.h>
#include <sys/random.h>
#include <time.h>

#include <guard/guard_context.h>
#include <guard/guard_metrics.h>
#include <guard/guard_service.h>

#include "dependency.h"
#include "http.h"
#include "json.h"
#include "log.h"
#include "refusal.h"

static guard_service *service;
static uint64_t first_id;

static guard_counter panics;
static guard_counter answers[6]; /* by the first digit of the status */
static guard_counter outcomes[GUARD_RELEASED + 1];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the line below */
static log_figures last_log;                             /* when the metrics were asked for */

/* ------------------------------------------------------------------------------------------------ border -- */

/* A refusal is the request's fault, not the service's. */
static guard_severity severity_of(const guard_error *error)
{
    return error->domain == LEDGER_REFUSAL ? GUARD_LOG_NOTHING : GUARD_LOG_BY_ERROR;
}

static void collect_log(guard_metrics_page *page, void *arg)
{
    static const guard_metric lines = {
        .name = "ledger_log_lines_total",
        .help = "Panics and lines for the log: written, or in a storm only counted, or nobody took them.",
        .type = GUARD_METRIC_COUNTER};
    (void)arg;
    pthread_mutex_lock(&lock);
    log_figures log = last_log;
    pthread_mutex_unlock(&lock);
    guard_metrics_put(page, &lines, &(guard_label){"fate", "written"}, 1, (int64_t)log.written);
    guard_metrics_put(page, &lines, &(guard_label){"fate", "dropped"}, 1, (int64_t)log.dropped);
}

static void open_counters(guard_scope *scope)
{
    static const guard_metric panicked = {.name = "ledger_panics_total",
                                          .help = "Requests that ended by a panic, refusals apart.",
                                          .type = GUARD_METRIC_COUNTER};
    static const guard_metric transfers = {.name = "ledger_transfers_total",
                                           .help = "Transactions of transfers by how they ended.",
                                           .type = GUARD_METRIC_COUNTER};
    static const guard_metric answered = {
        .name = "ledger_answers_total", .help = "Answers by class of status.", .type = GUARD_METRIC_COUNTER};
    static const char *const classes[] = {NULL, NULL, "2xx", "3xx", "4xx", "5xx"};
    panics = guard_counter_open(&panicked, NULL, 0);
    outcomes[GUARD_COMMITTED] = guard_counter_open(&transfers, &(guard_label){"outcome", "committed"}, 1);
    outcomes[GUARD_ROLLED_BACK] = guard_counter_open(&transfers, &(guard_label){"outcome", "rolled_back"}, 1);
    outcomes[GUARD_IN_DOUBT] = guard_counter_open(&transfers, &(guard_label){"outcome", "in_doubt"}, 1);
    for (int i = 2; i < 6; i++) {
        answers[i] = guard_counter_open(&answered, &(guard_label){"status", classes[i]}, 1);
    }
    guard_metrics_collect(scope, collect_log, NULL);
}

void service_open(guard_scope *scope, const ledger_options *options, guard_log *log)
{
    const guard_service_options limits = {
        .calls = HTTP_CONNECTIONS, .deadline_ms = (int32_t)options->request_ms, .log = log, .severity = severity_of};
    if (getrandom(&first_id, sizeof first_id, GRND_NONBLOCK) != sizeof first_id) {
        first_id = (uint64_t)time(NULL);
    }
    open_counters(scope);
    dependency_open(scope);
    service = guard_service_open(scope, "ledger", &limits);
}

/* 503 is for what may go well when it is tried again, 500 for the rest. */
static int status_of(const guard_error *error)
{
    if (error->domain == LEDGER_REFUSAL) {
        return error->code;
    }
    if (error->domain == GUARD_TX && error->code == GUARD_TX_IN_DOUBT) {
        return 503; /* the idempotency key makes it safe to ask again */
    }
    switch (guard_service_answer(error)) {
    case GUARD_ANSWER_REFUSED:
    case GUARD_ANSWER_CANCELLED:
    case GUARD_ANSWER_BUSY:
        return 503;
    default:
        return 500;
    }
}

/* Each another one, in no order that is seen (splitmix64). */
static void make_id(char *id, size_t size)
{
    static _Atomic uint64_t count;
    uint64_t number = first_id + ++count * 0x9e3779b97f4a7c15U;
    number = (number ^ (number >> 30)) * 0xbf58476d1ce4e5b9U;
    number = (number ^ (number >> 27)) * 0x94d049bb133111ebU;
    snprintf(id, size, "%016" PRIx64, number ^ (number >> 31));
}

typedef struct call {
    guard_fn *fn;
    void *arg;
    const char *what;
    const char *id;
} call;

/* The line of its panic has what is set here. */
static void run_call(void *arg)
{
    const call *this = arg;
    GUARD_AUTO(s);
    guard_context_set(s, "id", this->id);
    guard_context_set(s, "what", this->what);
    this->fn(this->arg);
}

int service_call(guard_fn *fn, void *arg, const char *what, service_failure *failure)
{
    call this = {fn, arg, what, failure->id};
    make_id(failure->id, sizeof failure->id);
    if (guard_service_call(service, run_call, &this, &failure->error) == 0) {
        return 0;
    }
    failure->status = status_of(&failure->error);
    failure->retry_s = 0;
    if (failure->error.domain == LEDGER_REFUSAL) {
        failure->id[0] = '\0';
    } else if (failure->error.domain == GUARD_REFUSED) {
        int64_t ms = dependency_retry_ms();
        failure->retry_s = (int)((ms > 0 ? ms + 999 : 1000) / 1000);
    } else {
        guard_counter_add(panics, 1);
    }
    return failure->status;
}

/* ---------------------------------------------------------------------------------------------- counters -- */

void service_answered(int status)
{
    guard_counter_add(answers[status / 100 < 6 ? status / 100 : 0], 1);
}

void service_count(guard_outcome outcome)
{
    guard_counter_add(outcomes[outcome], 1);
}

json_t *service_status(guard_scope *scope)
{
    GUARD_AUTO(s);
    json_t *newest = log_newest(s);
    json_t *breakers = dependency_status(s);
    log_figures log = log_read_figures();
    return json_own(scope, json_pack("{s{sIsIsI}sIs{sIsIsO}sO}", "transfers", "committed",
                                     (json_int_t)guard_counter_read(outcomes[GUARD_COMMITTED]), "rolled_back",
                                     (json_int_t)guard_counter_read(outcomes[GUARD_ROLLED_BACK]), "in_doubt",
                                     (json_int_t)guard_counter_read(outcomes[GUARD_IN_DOUBT]), "panics",
                                     (json_int_t)guard_counter_read(panics), "log", "written", (json_int_t)log.written,
                                     "dropped", (json_int_t)log.dropped, "lines", newest, "breakers", breakers));
}

char *service_metrics(guard_scope *scope, size_t *size)
{
    log_figures log = log_read_figures();
    pthread_mutex_lock(&lock);
    last_log = log;
    pthread_mutex_unlock(&lock);
    return guard_metrics_text(scope, size);
}
