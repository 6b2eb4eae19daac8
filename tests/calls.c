/* SPDX-License-Identifier: MIT */
#include "calls.h"

#include <pthread.h>

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

void call_owner_close(void *owner)
{
    guard_owner_close(owner);
}

void call_exit_thread(void *unused)
{
    (void)unused;
    guard_exit_thread();
}

void call_pthread_exit(void *unused)
{
    (void)unused;
    pthread_exit(NULL);
}
