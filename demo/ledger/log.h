/* SPDX-License-Identifier: MIT */
/*
 * log.h: the ledger's log, which is a guard_log, and its newest lines for the page.
 */
#ifndef LEDGER_LOG_H
#define LEDGER_LOG_H

#include <guard/guard_log.h>
#include <jansson.h>
#include <stdint.h>

enum { LOG_NEWEST = 12, LOG_REPORT_MS = 1000 };

/* Appends to the file from now on, for the scope; NULL is standard error. Before threads log. Returns what log_get does from then on. */
guard_log *log_open(guard_scope *scope, const char *path);
guard_log *log_get(void);

typedef struct log_figures {
    uint64_t written;
    uint64_t dropped; /* in a storm only counted, or the file would not take them */
} log_figures;

/* After what was logged before has been written, or could not be. */
log_figures log_read_figures(void);

/* The newest lines, the newest first, as texts. The scope's. */
json_t *log_newest(guard_scope *scope);

#endif
