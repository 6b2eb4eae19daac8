/* SPDX-License-Identifier: MIT */
/*
 * refusal.h: how guarded code refuses a request that is at fault itself.
 *
 * A refusal is a panic like any other, so that whatever was begun is taken back on its way out; its code is the HTTP status: 4xx, or
 * 503 while the service is ending.
 * The border answers it with its message, and neither logs it nor counts it as a failure of the service.
 */
#ifndef LEDGER_REFUSAL_H
#define LEDGER_REFUSAL_H

#include <guard/guard.h>

enum { LEDGER_REFUSAL = GUARD_DOMAIN_FIRST_FREE };

#define refuse(status, ...) guard_panic_in(LEDGER_REFUSAL, (status), __VA_ARGS__)

#endif
