/* SPDX-License-Identifier: MIT */
/*
 * dependency.h: what the ledger cannot work without, each behind a breaker of its own: the database, and the folder of the receipts.
 */
#ifndef LEDGER_DEPENDENCY_H
#define LEDGER_DEPENDENCY_H

#include <guard/guard.h>
#include <guard/guard_breaker.h>
#include <jansson.h>

typedef enum dependency { DEPENDENCY_DATABASE, DEPENDENCY_RECEIPTS, DEPENDENCIES } dependency;

/* For the scope, which outlives all calls. */
void dependency_open(guard_scope *scope);

/* Runs fn(arg), or panics with GUARD_REFUSED while that has kept failing. A panic of fn goes on. */
void dependency_call(dependency which, guard_fn *fn, void *arg);

/* Until the one that is refused longest is tried again. */
int64_t dependency_retry_ms(void);

/* [{"name", "state", "refused", "retry_ms"}], for the page. The scope's. */
json_t *dependency_status(guard_scope *scope);

#endif
