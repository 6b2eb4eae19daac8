/* SPDX-License-Identifier: MIT */
/*
 * The border around each request, which is guard_service_call, and what is counted of them.
 */
#include "service.h"

#include <inttypes.h>
#include <pthread.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include <guard/guard_context.h>
#include <guard/guard_service.h>

#include "http.h"
#include "json.h"
#include "log.h"
#include "refusal.h"

static guard_service *service;
static uint64_t first_id;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all that follows */
static uint64_t panics;
static uint64_t answers[6]; /* by the first digit of the status */
static uint64_t outcomes[GUARD_RELEASED + 1];

/* ------------------------------------------------------------------------------------------------ border -- */

/* A refusal is the request's fault, not the service's. */
static guard_severity severity_of(const guard_error *error)
{
    return error->domain == LEDGER_REFUSAL ? GUARD_LOG_NOTHING : GUARD_LOG_BY_ERROR;
}

void service_open(guard_scope *scope, const ledger_options *options, guard_log *log)
{
    const guard_service_options limits = {
        .calls = HTTP_CONNECTIONS, .deadline_ms = (int32_t)options->request_ms, .log = log, .severity = severity_of};
    if (getrandom(&first_id, sizeof first_id, GRND_NONBLOCK) != sizeof first_id) {
        first_id = (uint64_t)time(NULL);
    }
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
    if (failure->error.domain == LEDGER_REFUSAL) {
        failure->id[0] = '\0';
    } else {
        pthread_mutex_lock(&lock);
        panics++;
        pthread_mutex_unlock(&lock);
    }
    return failure->status;
}

/* ---------------------------------------------------------------------------------------------- counters -- */

void service_answered(int status)
{
    pthread_mutex_lock(&lock);
    answers[status / 100 < 6 ? status / 100 : 0]++;
    pthread_mutex_unlock(&lock);
}

void service_count(guard_outcome outcome)
{
    pthread_mutex_lock(&lock);
    outcomes[outcome]++;
    pthread_mutex_unlock(&lock);
}

json_t *service_status(guard_scope *scope)
{
    GUARD_AUTO(s);
    json_t *newest = log_newest(s);
    log_figures log = log_read_figures();
    pthread_mutex_lock(&lock);
    json_t *status = json_pack("{s{sIsIsI}sIs{sIsIsO}}", "transfers", "committed",
                               (json_int_t)outcomes[GUARD_COMMITTED], "rolled_back",
                               (json_int_t)outcomes[GUARD_ROLLED_BACK], "in_doubt",
                               (json_int_t)outcomes[GUARD_IN_DOUBT], "panics", (json_int_t)panics, "log", "written",
                               (json_int_t)log.written, "dropped", (json_int_t)log.dropped, "lines", newest);
    pthread_mutex_unlock(&lock);
    return json_own(scope, status);
}

void service_metrics(FILE *out)
{
    log_figures log = log_read_figures();
    guard_service_figures calls;
    guard_service_read(service, &calls);
    pthread_mutex_lock(&lock);
    fprintf(out,
            "# HELP ledger_panics_total Requests that ended by a panic.\n# TYPE ledger_panics_total counter\n"
            "ledger_panics_total %" PRIu64 "\n"
            "# HELP ledger_requests_under_way Requests inside the border now.\n# TYPE ledger_requests_under_way gauge\n"
            "ledger_requests_under_way %" PRIu64 "\n"
            "# HELP ledger_log_lines_total Lines of the log.\n# TYPE ledger_log_lines_total counter\n"
            "ledger_log_lines_total{fate=\"written\"} %" PRIu64 "\nledger_log_lines_total{fate=\"dropped\"} %" PRIu64
            "\n"
            "# HELP ledger_transfers_total Transactions of transfers.\n# TYPE ledger_transfers_total counter\n",
            panics, calls.under_way, log.written, log.dropped);
    static const guard_outcome shown[] = {GUARD_COMMITTED, GUARD_ROLLED_BACK, GUARD_IN_DOUBT};
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) {
        fprintf(out, "ledger_transfers_total{outcome=\"%s\"} %" PRIu64 "\n", guard_outcome_name(shown[i]),
                outcomes[shown[i]]);
    }
    fputs("# HELP ledger_answers_total Answers by class of status.\n# TYPE ledger_answers_total counter\n", out);
    for (int i = 2; i < 6; i++) {
        fprintf(out, "ledger_answers_total{status=\"%dxx\"} %" PRIu64 "\n", i, answers[i]);
    }
    pthread_mutex_unlock(&lock);
}
