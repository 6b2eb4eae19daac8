/* SPDX-License-Identifier: MIT */
/*
 * transfer.h: moves money from one account to another, whole or not at all, and once for each key.
 */
#ifndef LEDGER_TRANSFER_H
#define LEDGER_TRANSFER_H

#include <guard/guard.h>

#include "chaos.h"
#include "store.h"

/* Amounts beyond are a mistake of the client's. */
#define TRANSFER_MOST INT64_C(1000000000000000)

/*
 * Makes the transfer *t and fills its id. Returns 1; 0 where its key was used by the same transfer before, which is then not made again.
 * Refuses what cannot be: an account that is not there (404), too little money (409), a key that was used for another
 * transfer (422). Any other panic: nothing happened, but for GUARD_TX_IN_DOUBT, where asking again with the same key tells.
 */
int transfer_make(store *in, const char *receipts, transfer *t, chaos_kind chaos);

#endif
