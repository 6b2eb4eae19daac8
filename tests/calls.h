/* SPDX-License-Identifier: MIT */
/* calls.h: calls of the library as functions that a border runs, a scope defers or a thread begins with. */
#ifndef TESTS_CALLS_H
#define TESTS_CALLS_H

void call_commit(void *tx);
void call_rollback(void *tx);
void call_owner_close(void *owner);
void call_exit_thread(void *unused);
void call_pthread_exit(void *unused);

#endif
