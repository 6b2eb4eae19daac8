/* SPDX-License-Identifier: MIT */
#include "options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <guard/guard_file.h>

const char options_help[] =
    "Usage: guard-load [--db URI] --into TABLE [OPTION...] FILE.csv...\n"
    "Loads CSV files into a database table, each good row exactly once, also when it is killed and run again.\n"
    "\n"
    "  --db URI           sqlite:PATH (default: sqlite:guard-load.db), or for PostgreSQL postgresql://... or\n"
    "                     'host=... dbname=...', as psql takes it\n"
    "  --into TABLE       the table\n"
    "  --schema FILE.sql  run first, in a transaction of its own, when TABLE does not exist\n"
    "  --batch N          rows in one transaction, which is what a kill loses at most (default: 10000; PostgreSQL: as\n"
    "                     many as take two seconds, up to 250000)\n"
    "  --rejects FILE     write the rejected rows as CSV: file, line, code, reason, the row as it stood\n"
    "  --max-rejects N    give up after N rejected rows, the batch under way is rolled back (default: never)\n"
    "  --delimiter C      between fields: one ASCII character, or \\t (default: a comma)\n"
    "  --no-header        the first line is a row; fields go to the table's columns in order\n"
    "  --map A=B,...      the CSV's column A goes to the table's column B; A= leaves A out.\n"
    "                     With --no-header A is the field's number, and every field is named\n"
    "  --null TEXT        a field that is NULL (default: the empty field; \"\" in quotes is an empty text)\n"
    "  --max-row BYTES    longest row (default: 1048576)\n"
    "  --workers N        PostgreSQL: load with so many connections at a time (default: 1)\n"
    "  --retry-for S      PostgreSQL: seconds for which a lost connection is made anew (default: 30)\n"
    "  --again            load a file that is already complete once more\n"
    "  --forget           forget how far the files came, so that they load from the start; their rows stay\n"
    "  --status           say what was loaded into TABLE, from which file, how far, how many rejects\n"
    "  --name NAME        the name of standard input, which is the file -\n"
    "  --json             one JSON object at the end on standard output\n"
    "  --quiet            no progress\n"
    "  --help, --version\n"
    "\n"
    "Exit status: 0 all rows loaded, 3 loaded with rejects, 1 failed, 2 wrong usage, 130 or 143 stopped by SIGINT or\n"
    "SIGTERM. A run that did not end with 0 or 3 is continued by the same command.\n";

enum {
    OPTION_DB = 256,
    OPTION_INTO,
    OPTION_SCHEMA,
    OPTION_BATCH,
    OPTION_REJECTS,
    OPTION_MAX_REJECTS,
    OPTION_DELIMITER,
    OPTION_NO_HEADER,
    OPTION_MAP,
    OPTION_NULL,
    OPTION_MAX_ROW,
    OPTION_WORKERS,
    OPTION_RETRY_FOR,
    OPTION_AGAIN,
    OPTION_FORGET,
    OPTION_STATUS,
    OPTION_NAME,
    OPTION_JSON,
    OPTION_QUIET,
    OPTION_HELP,
    OPTION_VERSION
};

static const struct option long_options[] = {{"db", required_argument, NULL, OPTION_DB},
                                             {"into", required_argument, NULL, OPTION_INTO},
                                             {"schema", required_argument, NULL, OPTION_SCHEMA},
                                             {"batch", required_argument, NULL, OPTION_BATCH},
                                             {"rejects", required_argument, NULL, OPTION_REJECTS},
                                             {"max-rejects", required_argument, NULL, OPTION_MAX_REJECTS},
                                             {"delimiter", required_argument, NULL, OPTION_DELIMITER},
                                             {"no-header", no_argument, NULL, OPTION_NO_HEADER},
                                             {"map", required_argument, NULL, OPTION_MAP},
                                             {"null", required_argument, NULL, OPTION_NULL},
                                             {"max-row", required_argument, NULL, OPTION_MAX_ROW},
                                             {"workers", required_argument, NULL, OPTION_WORKERS},
                                             {"retry-for", required_argument, NULL, OPTION_RETRY_FOR},
                                             {"again", no_argument, NULL, OPTION_AGAIN},
                                             {"forget", no_argument, NULL, OPTION_FORGET},
                                             {"status", no_argument, NULL, OPTION_STATUS},
                                             {"name", required_argument, NULL, OPTION_NAME},
                                             {"json", no_argument, NULL, OPTION_JSON},
                                             {"quiet", no_argument, NULL, OPTION_QUIET},
                                             {"help", no_argument, NULL, OPTION_HELP},
                                             {"version", no_argument, NULL, OPTION_VERSION},
                                             {NULL, 0, NULL, 0}};

static char read_delimiter(const char *text)
{
    if (strcmp(text, "\\t") == 0) {
        return '\t';
    }
    unsigned char c = (unsigned char)text[0];
    /* A byte of a longer UTF-8 character, or one that is part of CSV itself, cannot separate fields. */
    if (c == '\0' || text[1] != '\0' || c >= 0x80 || c == '"' || c == '\n' || c == '\r') {
        guard_panic(EXIT_USAGE, "--delimiter takes one ASCII character that is no quote and no line end, not \"%s\"",
                    text);
    }
    return (char)c;
}

/* Adds NAME=COLUMN,... to the map. */
static void read_map(guard_scope *scope, load_options *o, const char *argument)
{
    char *text = guard_memory_copy(scope, argument, NULL);
    for (char *rest = text, *part; (part = strsep(&rest, ",")) != NULL;) {
        char *equals = strchr(part, '=');
        if (equals == NULL || equals == part) {
            guard_panic(EXIT_USAGE, "--map takes CSVNAME=COLUMN,..., not \"%s\"", argument);
        }
        *equals = '\0';
        o->map = guard_memory_resize(scope, o->map, (o->map_count + 1) * sizeof *o->map, &o->map_ticket);
        o->map[o->map_count].name = part;
        o->map[o->map_count].column = equals + 1;
        o->map_count++;
    }
}

static void set_action(load_options *o, load_action wanted, const char *name)
{
    if (o->action != ACTION_LOAD && o->action != wanted) {
        guard_panic(EXIT_USAGE, "%s does not go with the other options", name);
    }
    o->action = wanted;
}

static void take_option(guard_scope *scope, load_options *o, int option, char **argv)
{
    switch (option) {
    case OPTION_DB:
        o->database = command_line_database(optarg, &o->postgres);
        break;
    case OPTION_INTO:
        o->table = optarg;
        break;
    case OPTION_SCHEMA:
        o->schema = optarg;
        break;
    case OPTION_BATCH:
        o->batch = command_line_number("--batch", optarg, 1, 1000000000);
        break;
    case OPTION_REJECTS:
        o->rejects = optarg;
        break;
    case OPTION_MAX_REJECTS:
        o->max_rejects = command_line_number("--max-rejects", optarg, 0, UINT64_MAX - 1);
        break;
    case OPTION_DELIMITER:
        o->delimiter = read_delimiter(optarg);
        break;
    case OPTION_NO_HEADER:
        o->no_header = 1;
        break;
    case OPTION_MAP:
        read_map(scope, o, optarg);
        break;
    case OPTION_NULL:
        o->null_text = optarg;
        break;
    case OPTION_MAX_ROW:
        o->max_row = (size_t)command_line_number("--max-row", optarg, 1, 1000000000);
        break;
    case OPTION_WORKERS:
        o->workers = command_line_number("--workers", optarg, 1, 64);
        break;
    case OPTION_RETRY_FOR:
        o->retry_for = command_line_number("--retry-for", optarg, 0, 1000000);
        break;
    case OPTION_AGAIN:
        o->again = 1;
        break;
    case OPTION_FORGET:
        set_action(o, ACTION_FORGET, "--forget");
        break;
    case OPTION_STATUS:
        set_action(o, ACTION_STATUS, "--status");
        break;
    case OPTION_NAME:
        o->name = optarg;
        break;
    case OPTION_JSON:
        o->json = 1;
        break;
    case OPTION_QUIET:
        o->quiet = 1;
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

/* What an option alone cannot tell. */
static void check_together(const load_options *o)
{
    if (o->table == NULL || *o->table == '\0') {
        guard_panic(EXIT_USAGE, "--into TABLE is missing");
    }
    if (o->file_count == 0 && o->action != ACTION_STATUS) {
        guard_panic(EXIT_USAGE, "no FILE is named");
    }
    if (o->workers > 1 && !o->postgres) {
        guard_panic(EXIT_USAGE, "--workers is for PostgreSQL: SQLite has one writer at a time");
    }
    size_t dashes = 0;
    for (size_t i = 0; i < o->file_count; i++) {
        dashes += strcmp(o->files[i], "-") == 0;
    }
    if (dashes > 1) {
        guard_panic(EXIT_USAGE, "standard input (-) is named twice");
    }
    if (dashes == 1 && (o->name == NULL || *o->name == '\0')) {
        guard_panic(EXIT_USAGE, "standard input (-) needs --name NAME");
    }
    if (dashes == 0 && o->name != NULL) {
        guard_panic(EXIT_USAGE, "--name is for standard input (-), which is not named");
    }
}

load_options *options_read(guard_scope *scope, int argc, char **argv)
{
    load_options *o = guard_memory_allocate_array(scope, 1, sizeof *o, NULL);
    o->database = "guard-load.db";
    o->null_text = "";
    o->max_rejects = UINT64_MAX;
    o->workers = 1;
    o->retry_for = 30;
    o->max_row = 1024 * 1024;
    o->delimiter = ',';
    opterr = 0;
    for (int option; o->action != ACTION_HELP && o->action != ACTION_VERSION &&
                     (option = getopt_long(argc, argv, ":", long_options, NULL)) != -1;) {
        take_option(scope, o, option, argv);
    }
    if (o->action == ACTION_HELP || o->action == ACTION_VERSION) {
        return o;
    }
    o->files = argv + optind;
    o->file_count = (size_t)(argc - optind);
    check_together(o);
    return o;
}

const char *options_meaning(guard_scope *scope, const load_options *o)
{
    /* Spelled as on the command line: the text is also shown to people. */
    char *text = guard_memory_format(scope, NULL, "--delimiter %s%s --max-row %zu --null '%s'",
                                     o->delimiter == '\t' ? "\\t" : (char[]){o->delimiter, '\0'},
                                     o->no_header ? " --no-header" : "", o->max_row, o->null_text);
    for (size_t i = 0; i < o->map_count; i++) {
        text = guard_memory_format(scope, NULL, "%s%s%s=%s", text, i == 0 ? " --map " : ",", o->map[i].name,
                                   o->map[i].column);
    }
    return text;
}
