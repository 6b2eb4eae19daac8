/* SPDX-License-Identifier: MIT */
/*
 * log.h: one JSON object a line, bounded in size and number.
 *
 * Any thread may call these. Logging fails nothing: a line that cannot be written is counted.
 */
#ifndef LEDGER_LOG_H
#define LEDGER_LOG_H

#include <guard/guard.h>
#include <jansson.h>
#include <stdint.h>

enum { LOG_LINES_PER_SECOND = 100, LOG_LINE = 2048, LOG_NEWEST = 12 };

/* Appends to the file from now on, which is the scope's; NULL is standard error. Before threads log. */
void log_open(guard_scope *scope, const char *path);

/* `id` names the line to the client; `what` is what was done. Never panics. */
void log_error(const char *severity, const char *id, const char *what, const guard_error *error);

typedef struct log_figures {
    uint64_t written;
    uint64_t dropped; /* too many in a second, or the file would not take them */
} log_figures;

log_figures log_read_figures(void);

/* The newest lines, the newest first, as texts. The scope's. */
json_t *log_newest(guard_scope *scope);

#endif
