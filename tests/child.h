/* SPDX-License-Identifier: MIT */
/* child.h: runs a function in a process of its own, for what ends a process: what it wrote to standard error, and how it ended. */
#ifndef TESTS_CHILD_H
#define TESTS_CHILD_H

#include <stddef.h>

typedef struct child_result {
    int status;       /* as waitpid gives it */
    size_t writes;    /* messages that arrived on standard error, each of one write */
    char text[16384]; /* all of them */
} child_result;

/* The child exits with 0 if fn returns. It leaves no core file. */
void child_run(void (*fn)(void *arg), void *arg, child_result *result);

/* Fails the test unless the child died of this signal; of abort(). */
void child_expect_signal(const child_result *result, int signo);
void child_expect_abort(const child_result *result);

#endif
