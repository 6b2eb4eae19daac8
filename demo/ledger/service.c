/* SPDX-License-Identifier: MIT */
/*
 * The border, its log and its counters.
 *
 * - A line of the log is written by one write, so that lines never mix; at most LINES_PER_SECOND are, the rest is counted.
 * - A log that cannot be written is counted and fails nothing.
 * - The newest lines are kept in a ring for the page.
 */
#include "service.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include <guard/guard_cancel.h>
#include <guard/guard_file.h>

#include "json.h"
#include "refusal.h"

enum { LINES_PER_SECOND = 100, RING = 12, LINE_SIZE = 2048, SQLITE_BUSY_CODE = 5, SQLITE_LOCKED_CODE = 6 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all that follows */
static int log_descriptor = STDERR_FILENO;
static char ring[RING][LINE_SIZE];
static uint64_t lines;  /* ever kept */
static time_t second;   /* of the newest line */
static int this_second; /* lines in it */
static uint64_t written;
static uint64_t dropped;
static uint64_t panics;
static int under_way;       /* calls */
static uint64_t answers[6]; /* by the first digit of the status */
static uint64_t outcomes[GUARD_RELEASED + 1];

/* --------------------------------------------------------------------------------------------------- log -- */

void service_open(guard_scope *scope, const char *log)
{
    if (log != NULL) {
        log_descriptor = guard_file_open_descriptor(scope, log, O_WRONLY | O_CREAT | O_APPEND, 0666, NULL);
    }
}

static void keep_line(const char *text, size_t size, time_t now)
{
    pthread_mutex_lock(&lock);
    snprintf(ring[lines++ % RING], LINE_SIZE, "%.*s", (int)size - 1, text);
    this_second = now == second ? this_second + 1 : 1;
    second = now;
    if (this_second <= LINES_PER_SECOND && write(log_descriptor, text, size) == (ssize_t)size) {
        written++;
    } else {
        dropped++;
    }
    pthread_mutex_unlock(&lock);
}

static void log_error(const char *severity, const char *id, const char *what, const guard_error *error)
{
    struct timespec now;
    struct tm parts;
    char when[32];
    char chain[512];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &parts);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &parts);
    guard_error_format(error, chain, sizeof chain);
    json_t *line = json_pack("{ssssssssssssss*ss}", "time", when, "severity", severity, "id", id, "what", what,
                             "domain", guard_domain_name(error->domain), "message", error->message, "sqlstate",
                             error->sqlstate[0] != '\0' ? error->sqlstate : NULL, "chain", chain);
    char *text = line == NULL ? NULL : json_dumps(line, JSON_COMPACT | JSON_ENSURE_ASCII);
    json_decref(line);
    size_t size = text == NULL ? 0 : strlen(text);
    if (size == 0) {
        pthread_mutex_lock(&lock);
        dropped++;
        pthread_mutex_unlock(&lock);
    } else {
        text[size] = '\n'; /* in the place of the NUL: keep_line takes a length */
        keep_line(text, size + 1, now.tv_sec);
    }
    free(text);
}

void service_note(const char *what, const guard_error *error)
{
    log_error("warning", "", what, error);
}

/* ------------------------------------------------------------------------------------------------ border -- */

typedef struct call {
    guard_fn *fn;
    void *arg;
    int64_t deadline_ms;
} call;

static void run_call(void *arg)
{
    const call *c = arg;
    GUARD_AUTO(s);
    guard_deadline(s, c->deadline_ms);
    guard_checkpoint();
    c->fn(c->arg);
}

static int passing_sqlstate(const char *sqlstate)
{
    /* The connection, the server's resources, its operator. */
    return strncmp(sqlstate, "08", 2) == 0 || strncmp(sqlstate, "53", 2) == 0 || strncmp(sqlstate, "57", 2) == 0;
}

/* 503 is for what may go well when it is tried again, 500 for the rest. */
static int status_of(const guard_error *error)
{
    switch (error->domain) {
    case LEDGER_REFUSAL:
        return error->code;
    case GUARD_TIMEOUT:
    case GUARD_CANCELLED:
    case GUARD_MEMORY:
    case GUARD_REFUSED:
        return 503;
    case GUARD_TX:
        return error->code == GUARD_TX_IN_DOUBT ? 503 : 500;
    case GUARD_SQLITE:
        return (error->code & 0xff) == SQLITE_BUSY_CODE || (error->code & 0xff) == SQLITE_LOCKED_CODE ? 503 : 500;
    case GUARD_PQ:
        return error->sqlstate[0] == '\0' || passing_sqlstate(error->sqlstate) ? 503 : 500;
    default:
        return 500;
    }
}

static void make_id(char *id, size_t size)
{
    static _Atomic uint64_t count;
    uint64_t number;
    if (getrandom(&number, sizeof number, GRND_NONBLOCK) != sizeof number) {
        number = ++count;
    }
    snprintf(id, size, "%016" PRIx64, number);
}

static void count_under_way(int by)
{
    pthread_mutex_lock(&lock);
    under_way += by;
    pthread_mutex_unlock(&lock);
}

int service_call(guard_fn *fn, void *arg, const char *what, int64_t deadline_ms, service_failure *failure)
{
    call c = {fn, arg, deadline_ms};
    count_under_way(1);
    int code = guard_run(run_call, &c, &failure->error);
    count_under_way(-1);
    if (code == 0) {
        return 0;
    }
    failure->id[0] = '\0';
    failure->status = status_of(&failure->error);
    if (failure->error.domain != LEDGER_REFUSAL) {
        make_id(failure->id, sizeof failure->id);
        pthread_mutex_lock(&lock);
        panics++;
        pthread_mutex_unlock(&lock);
        log_error("error", failure->id, what, &failure->error);
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

static void unlock(void *arg)
{
    pthread_mutex_unlock(arg);
}

json_t *service_status(guard_scope *scope)
{
    GUARD_AUTO(s);
    pthread_mutex_lock(&lock);
    guard_defer(s, unlock, &lock);
    json_t *newest = json_own(s, json_array());
    for (uint64_t i = 0; i < RING && i < lines; i++) {
        json_append(newest, json_string(ring[(lines - 1 - i) % RING]));
    }
    return json_own(scope,
                    json_pack("{s{sIsIsI}sIs{sIsIsO}}", "transfers", "committed", (json_int_t)outcomes[GUARD_COMMITTED],
                              "rolled_back", (json_int_t)outcomes[GUARD_ROLLED_BACK], "in_doubt",
                              (json_int_t)outcomes[GUARD_IN_DOUBT], "panics", (json_int_t)panics, "log", "written",
                              (json_int_t)written, "dropped", (json_int_t)dropped, "lines", newest));
}

void service_metrics(FILE *out)
{
    pthread_mutex_lock(&lock);
    fprintf(out,
            "# HELP ledger_panics_total Requests that ended by a panic.\n# TYPE ledger_panics_total counter\n"
            "ledger_panics_total %" PRIu64 "\n"
            "# HELP ledger_requests_under_way Requests inside the border now.\n# TYPE ledger_requests_under_way gauge\n"
            "ledger_requests_under_way %d\n"
            "# HELP ledger_log_lines_total Lines of the log.\n# TYPE ledger_log_lines_total counter\n"
            "ledger_log_lines_total{fate=\"written\"} %" PRIu64 "\nledger_log_lines_total{fate=\"dropped\"} %" PRIu64
            "\n"
            "# HELP ledger_transfers_total Transactions of transfers.\n# TYPE ledger_transfers_total counter\n",
            panics, under_way, written, dropped);
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
