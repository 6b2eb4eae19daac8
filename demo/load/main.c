/* SPDX-License-Identifier: MIT */
/*
 * guard-load: loads CSV files into a database table, each good row exactly once.
 *
 * Everything below main is guarded code: what cannot be done panics, and the border here turns that into one line and
 * an exit status.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include <guard/guard.h>

#include "clock.h"
#include "load.h"
#include "options.h"
#include "report.h"
#include "stop.h"

typedef struct load_program {
    int argc;
    char **argv;
    int status; /* of a run that did not panic */
    int json;   /* the totals are to be printed */
    double began;
    const char *database; /* SQLite, once the command line is read */
    load_totals totals;
} load_program;

static const target_driver *postgres_driver(void)
{
#ifdef LOAD_WITH_PQ
    return &pq_driver;
#else
    guard_panic(EXIT_USAGE, "this guard-load is built without PostgreSQL");
#endif
}

static void show_status(const load_options *options, const target_driver *driver)
{
    GUARD_AUTO(s);
    report_status(options, driver, driver->open_to_read(s, options));
}

static void run(void *arg)
{
    load_program *program = arg;
    GUARD_AUTO(s);
    const load_options *options = options_read(s, program->argc, program->argv);
    const target_driver *driver = options->postgres ? postgres_driver() : &sqlite_driver;
    program->database = options->postgres ? NULL : options->database; /* a conninfo may hold a password */
    switch (options->action) {
    case ACTION_HELP:
        fputs(options_help, stdout);
        command_line_flush();
        break;
    case ACTION_VERSION:
        printf("guard-load (libguard) %d.%d.%d\n", GUARD_VERSION_MAJOR, GUARD_VERSION_MINOR, GUARD_VERSION_PATCH);
        command_line_flush();
        break;
    case ACTION_STATUS:
        show_status(options, driver);
        break;
    case ACTION_FORGET:
        program->json = options->json;
        load_forget(options, driver);
        program->totals.outcome = "committed";
        break;
    case ACTION_LOAD:
        program->json = options->json;
        program->totals.workers = options->workers;
        stop_on_signals();
        program->status = load_files(options, driver, &program->totals);
        break;
    }
}

/* The exit status, after the one line that says what failed. */
static int explain(const load_program *program, const guard_error *error)
{
    if (error->domain == GUARD_CANCELLED && stop_requested() != 0) {
        fprintf(stderr, "guard-load: %s; the same command goes on from there\n", error->message);
        return 128 + stop_requested();
    }
    if (error->domain == GUARD_USER && error->code == EXIT_USAGE) {
        fprintf(stderr, "guard-load: %s (see guard-load --help)\n", error->message);
        return EXIT_USAGE;
    }
    int by_database = program->database != NULL && (error->domain == GUARD_SQLITE || error->domain == GUARD_TX);
    if (by_database && strstr(error->message, program->database) == NULL) {
        fprintf(stderr, "guard-load: database %s: %s\n", program->database, error->message);
    } else {
        fprintf(stderr, "guard-load: %s\n", error->message);
    }
    return EXIT_FAILED;
}

static void print_totals(void *arg)
{
    const load_program *program = arg;
    report_totals(&program->totals, clock_seconds() - program->began);
}

int main(int argc, char **argv)
{
    command_line_open_standard();
    load_program program = {.argc = argc, .argv = argv, .began = clock_seconds(), .totals = {.outcome = "rolled_back"}};
    guard_error error;
    /* A reader of the progress that goes away must not end the load. */
    signal(SIGPIPE, SIG_IGN);
    int status = guard_run(run, &program, &error) == 0 ? program.status : explain(&program, &error);
    if (program.json && guard_run(print_totals, &program, &error) != 0) {
        status = explain(&program, &error);
    }
    return status;
}
