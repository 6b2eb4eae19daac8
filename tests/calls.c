/* SPDX-License-Identifier: MIT */
#include "calls.h"

#include <guard/guard.h>
#include <guard/guard_process.h>
#include <guard/tx.h>

void call_commit(void *tx)
{
    guard_tx_commit(tx);
}

void call_rollback(void *tx)
{
    guard_tx_rollback(tx);
}

void call_exit_thread(void *unused)
{
    (void)unused;
    guard_exit_thread();
}
