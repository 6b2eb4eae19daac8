/* SPDX-License-Identifier: MIT */
/*
 * guard-ledger: accounts and transfers over HTTP, to see what libguard does for a service.
 *
 * SIGTERM and SIGINT drain it: no new requests; those under way have --drain-ms to end, are then cancelled by their next checkpoint and
 * rolled back.
 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_fault.h>
#include <guard/guard_trace.h>

#include "chaos.h"
#include "http.h"
#include "log.h"
#include "options.h"
#include "receipt.h"
#include "routes.h"
#include "service.h"

/* After the requests were cancelled: what they have to roll back. */
enum { ROLLBACK_MS = 5000 };

/* How often it is looked for clients that are late. */
enum { TEND_MS = 250 };

typedef struct ledger_program {
    int argc;
    char **argv;
} ledger_program;

static const store_driver *driver_of(const ledger_options *options)
{
    if (!options->postgres) {
        return &sqlite_store;
    }
#ifdef LEDGER_WITH_PQ
    return &pq_store;
#else
    guard_panic(EXIT_USAGE, "this guard-ledger is built without PostgreSQL");
#endif
}

/* Only the thread that waits for them takes these signals; *before is the mask to wait with. */
static void hold_signals(sigset_t *before)
{
    sigset_t held;
    sigemptyset(&held);
    sigaddset(&held, SIGTERM);
    sigaddset(&held, SIGINT);
    pthread_sigmask(SIG_BLOCK, &held, before);
}

/* logrotate's signal. */
static void reopen_log(int signo)
{
    (void)signo;
    guard_log_reopen(log_get());
}

static void ignore_hangup(void *arg)
{
    (void)arg;
    signal(SIGHUP, SIG_IGN);
}

static void serve(const ledger_options *options)
{
    GUARD_AUTO(s);
    sigset_t waiting;
    /* A bug in one request ends that request; one that must end the service says what died, and leaves no temporary file. */
    guard_fatal_signals();
    chaos_open(guard_faults_to_panics() == 0);
    hold_signals(&waiting);
    guard_log *log = log_open(s, options->log);
    signal(SIGHUP, reopen_log);
    guard_defer(s, ignore_hangup, NULL); /* before the log is gone */
    service_open(s, options, log);
    ledger l = {options, driver_of(options)->open(s, options)};
    receipt_mend_all(options->receipts, l.store);
    guard_cancel_on_signal(SIGTERM, (int)options->drain_ms);
    guard_cancel_on_signal(SIGINT, (int)options->drain_ms);
    http_server *server = http_open(s, options, routes_handle, &l);
    int six = strchr(options->listen, ':') != NULL;
    printf("guard-ledger: http://%s%s%s:%u/\n", six ? "[" : "", options->listen, six ? "]" : "", http_port(server));
    fflush(stdout);
    const struct timespec pause = {.tv_nsec = TEND_MS * 1000000L};
    while (guard_cancel_signal() == 0) {
        ppoll(NULL, 0, &pause, &waiting);
        http_tend(server);
    }
    http_drain(server, (int64_t)options->drain_ms + ROLLBACK_MS);
}

static void run(void *arg)
{
    ledger_program *program = arg;
    GUARD_AUTO(s);
    const ledger_options *options = options_read(s, program->argc, program->argv);
    switch (options->action) {
    case ACTION_HELP:
        fputs(options_help, stdout);
        command_line_flush();
        break;
    case ACTION_VERSION:
        printf("guard-ledger (libguard) %d.%d.%d\n", GUARD_VERSION_MAJOR, GUARD_VERSION_MINOR, GUARD_VERSION_PATCH);
        command_line_flush();
        break;
    case ACTION_SERVE:
        serve(options);
        break;
    }
}

int main(int argc, char **argv)
{
    command_line_open_standard();
    signal(SIGPIPE, SIG_IGN);
    guard_trace_capture(1); /* the log's lines have stacks */
    ledger_program program = {argc, argv};
    guard_error error;
    if (guard_run(run, &program, &error) == 0) {
        return EXIT_SERVED;
    }
    int usage = error.domain == GUARD_USER && error.code == EXIT_USAGE;
    fprintf(stderr, "guard-ledger: %s%s\n", error.message, usage ? " (see guard-ledger --help)" : "");
    return usage ? EXIT_USAGE : EXIT_FAILED;
}
