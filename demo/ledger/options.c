/* SPDX-License-Identifier: MIT */
#include "options.h"

#include <getopt.h>
#include <stdlib.h>

#include <guard/guard_file.h>

const char options_help[] =
    "Usage: guard-ledger [OPTION...]\n"
    "Accounts and transfers over HTTP. A transfer happens whole or not at all, whatever happens to the request.\n"
    "\n"
    "  --db URI          sqlite:PATH (default: sqlite:ledger.db), or for PostgreSQL postgresql://... or\n"
    "                    'host=... dbname=...', as psql takes it\n"
    "  --listen ADDRESS  in numbers (default: 127.0.0.1, so that only this machine can ask)\n"
    "  --port N          0 takes a free one (default: 8080)\n"
    "  --receipts DIR    where each committed transfer leaves a receipt (default: ledger-receipts)\n"
    "  --log FILE        one JSON object a line is appended (default: standard error)\n"
    "  --seed N          make N accounts with 1000.00 each, where there are none\n"
    "  --request-ms N    a request that takes longer is rolled back (default: 2000)\n"
    "  --client-ms N     a client that takes longer to send a request, or to take the answer, is cut off (default: "
    "30000)\n"
    "  --drain-ms N      after SIGTERM, requests under way are rolled back when so much time passed (default: 5000)\n"
    "  --chaos           requests from this machine may ask for a fault, by the header X-Chaos:\n"
    "                    panic, null, debit, sleep or kill\n"
    "  --help, --version\n"
    "\n"
    "POST /transfers {\"from\": 1, \"to\": 2, \"amount\": 1250}, in cents; with an Idempotency-Key it happens once.\n"
    "GET /accounts, /transfers, /status, /metrics, /healthz; GET / is a page for people.\n"
    "Exit status: 0 ended by SIGTERM or SIGINT, 1 failed, 2 wrong usage.\n";

enum {
    OPTION_DB = 256,
    OPTION_LISTEN,
    OPTION_PORT,
    OPTION_RECEIPTS,
    OPTION_LOG,
    OPTION_SEED,
    OPTION_REQUEST_MS,
    OPTION_CLIENT_MS,
    OPTION_DRAIN_MS,
    OPTION_CHAOS,
    OPTION_HELP,
    OPTION_VERSION
};

static const struct option long_options[] = {{"db", required_argument, NULL, OPTION_DB},
                                             {"listen", required_argument, NULL, OPTION_LISTEN},
                                             {"port", required_argument, NULL, OPTION_PORT},
                                             {"receipts", required_argument, NULL, OPTION_RECEIPTS},
                                             {"log", required_argument, NULL, OPTION_LOG},
                                             {"seed", required_argument, NULL, OPTION_SEED},
                                             {"request-ms", required_argument, NULL, OPTION_REQUEST_MS},
                                             {"client-ms", required_argument, NULL, OPTION_CLIENT_MS},
                                             {"drain-ms", required_argument, NULL, OPTION_DRAIN_MS},
                                             {"chaos", no_argument, NULL, OPTION_CHAOS},
                                             {"help", no_argument, NULL, OPTION_HELP},
                                             {"version", no_argument, NULL, OPTION_VERSION},
                                             {NULL, 0, NULL, 0}};

static void take_option(ledger_options *o, int option, char **argv)
{
    switch (option) {
    case OPTION_DB:
        o->database = command_line_database(optarg, &o->postgres);
        break;
    case OPTION_LISTEN:
        o->listen = optarg;
        break;
    case OPTION_PORT:
        o->port = command_line_number("--port", optarg, 0, 65535);
        break;
    case OPTION_RECEIPTS:
        o->receipts = optarg;
        break;
    case OPTION_LOG:
        o->log = optarg;
        break;
    case OPTION_SEED:
        o->seed = command_line_number("--seed", optarg, 1, 10000);
        break;
    case OPTION_REQUEST_MS:
        o->request_ms = command_line_number("--request-ms", optarg, 1, 3600000);
        break;
    case OPTION_CLIENT_MS:
        o->client_ms = command_line_number("--client-ms", optarg, 1, 3600000);
        break;
    case OPTION_DRAIN_MS:
        o->drain_ms = command_line_number("--drain-ms", optarg, 1, 3600000);
        break;
    case OPTION_CHAOS:
        o->chaos = 1;
        break;
    case OPTION_HELP:
        o->action = ACTION_HELP;
        break;
    case OPTION_VERSION:
        o->action = ACTION_VERSION;
        break;
    case ':':
        guard_panic(EXIT_USAGE, "%s needs a value", argv[optind - 1]);
    default:
        guard_panic(EXIT_USAGE, "unknown option %s", argv[optind - 1]);
    }
}

ledger_options *options_read(guard_scope *scope, int argc, char **argv)
{
    ledger_options *o = guard_memory_allocate_array(scope, 1, sizeof *o, NULL);
    o->database = "ledger.db";
    o->listen = "127.0.0.1";
    o->port = 8080;
    o->receipts = "ledger-receipts";
    o->request_ms = 2000;
    o->client_ms = 30000;
    o->drain_ms = 5000;
    opterr = 0;
    for (int option; o->action == ACTION_SERVE && (option = getopt_long(argc, argv, ":", long_options, NULL)) != -1;) {
        take_option(o, option, argv);
    }
    if (o->action == ACTION_SERVE && optind < argc) {
        guard_panic(EXIT_USAGE, "%s is no option", argv[optind]);
    }
    return o;
}
