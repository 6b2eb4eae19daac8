/* SPDX-License-Identifier: MIT */
/*
 * options.h: the command line of the ledger.
 */
#ifndef LEDGER_OPTIONS_H
#define LEDGER_OPTIONS_H

#include <guard/guard.h>
#include <stdint.h>

#include "../command_line.h"

enum { EXIT_SERVED = 0, EXIT_FAILED = 1 }; /* and EXIT_USAGE */

typedef enum ledger_action { ACTION_SERVE, ACTION_HELP, ACTION_VERSION } ledger_action;

typedef struct ledger_options {
    ledger_action action;
    const char *database; /* a path; of PostgreSQL, what libpq takes */
    int postgres;
    const char *listen;   /* an address in numbers */
    uint64_t port;        /* 0: one that is free */
    const char *receipts; /* the folder */
    const char *log;      /* NULL: standard error */
    uint64_t seed;        /* accounts to make where there are none */
    uint64_t request_ms;  /* the deadline of a request */
    uint64_t client_ms;   /* for a client to send a request, and to take the answer */
    uint64_t drain_ms;    /* after SIGTERM */
    int chaos;
} ledger_options;

/*
 * Reads the command line; the memory of what it returns is the scope's. Panics with code EXIT_USAGE and one line that names
 * what is wrong.
 */
ledger_options *options_read(guard_scope *scope, int argc, char **argv);

/* The text of --help. */
extern const char options_help[];

#endif
