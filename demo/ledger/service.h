/* SPDX-License-Identifier: MIT */
/*
 * service.h: the border around each request, and what is counted.
 */
#ifndef LEDGER_SERVICE_H
#define LEDGER_SERVICE_H

#include <guard/guard.h>
#include <guard/guard_log.h>
#include <guard/tx.h>
#include <jansson.h>

#include "options.h"

/* How a call ended that did not return. */
typedef struct service_failure {
    int status;  /* of HTTP */
    int retry_s; /* when to try again; 0: nobody knows */
    char id[17]; /* names the line of the log; "" for a refusal, which has none */
    guard_error error;
} service_failure;

/* For the scope, which outlives all calls. */
void service_open(guard_scope *scope, const ledger_options *options, guard_log *log);

/*
 * Runs fn(arg) with the deadline of a request: 0, or not with *failure filled. A panic is logged and counted, and the thread
 * goes on. `what` is for the log. Any thread.
 */
int service_call(guard_fn *fn, void *arg, const char *what, service_failure *failure);

/* Counts an answer, a transaction. Any thread. */
void service_answered(int status);
void service_count(guard_outcome outcome);

/* What was counted, and the newest lines of the log: for the page. The scope's. */
json_t *service_status(guard_scope *scope);

/*
 * All metrics, the library's among them, in the Prometheus text format, once what was logged before is written. The scope's.
 */
char *service_metrics(guard_scope *scope, size_t *size);

#endif
