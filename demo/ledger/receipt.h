/* SPDX-License-Identifier: MIT */
/*
 * receipt.h: a file for each committed transfer, and for no other.
 *
 * A receipt is published by the commit itself. What a kill between the two leaves out is made up for when the service starts, and when the
 * transfer is asked for again: the journal says what is to be there.
 */
#ifndef LEDGER_RECEIPT_H
#define LEDGER_RECEIPT_H

#include <guard/guard.h>
#include <guard/guard_file.h>

#include "store.h"

/* Writes the receipt; guard_file_replace_commit publishes it, and it is gone with the scope if nobody does. */
guard_file_replace *receipt_begin(guard_scope *scope, const char *folder, const transfer *t);

/* Publishes the receipt of a committed transfer where it is missing. */
void receipt_mend(const char *folder, const transfer *t);

/* The same for all transfers; makes the folder where it is missing. */
void receipt_mend_all(const char *folder, store *from);

#endif
