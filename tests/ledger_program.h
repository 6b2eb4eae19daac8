/* SPDX-License-Identifier: MIT */
/*
 * ledger_program.h: guard-ledger run as a user runs it, in a folder of the test's own, and asked over HTTP.
 *
 * All of these fail the test where they cannot do their work. With LEDGER_ON_PQ the database is that of tests/with-postgres, whose
 * tables are dropped before each test, else SQLite.
 */
#ifndef TESTS_LEDGER_PROGRAM_H
#define TESTS_LEDGER_PROGRAM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "suite.h"

/* Each test begins in an empty folder, which is removed, and with no ledger running. */
int ledger_suite_run(const char *name, const TTest *const *tests, size_t count);

typedef struct ledger_process {
    pid_t pid;
    char address[64]; /* http://127.0.0.1:PORT */
} ledger_process;

/*
 * Starts it with 8 accounts of 100000, --chaos and these words more (NULL ends them), its log in the file "log" and its receipts in "receipts";
 * returns when it listens. It does not outlive the test.
 */
ledger_process ledger_start(const char *const *more);

/* The same without --chaos: guard-ledger, or another program of demo/ that has its options. */
ledger_process ledger_start_program(const char *name, const char *const *more);

/* Starts it where it is to refuse: its exit status, which it says nothing before. Fails the test where it serves. */
int ledger_refuses(const char *const *more);

/* Sends the signal and waits: the exit status, or -SIGNAL. */
int ledger_stop(ledger_process *ledger, int signal);

/* The same without a signal: it ends by itself. */
int ledger_wait(ledger_process *ledger);

typedef struct ledger_answer {
    int status;   /* 0: no answer */
    int replayed; /* it has the header */
    int retry_s;  /* its Retry-After; 0: none */
    char text[65536];
} ledger_answer;

/* Asks; key, chaos and body may be NULL. Any thread. */
ledger_answer ledger_ask(const ledger_process *ledger, const char *method, const char *path, const char *key,
                         const char *chaos, const char *body);

/* The same with a Content-Type of the caller's. */
ledger_answer ledger_ask_as(const ledger_process *ledger, const char *type, const char *body);

/* Transfers so many cents, with the default key when key is NULL. */
ledger_answer ledger_transfer(const ledger_process *ledger, int from, int to, int cents, const char *key,
                              const char *chaos);

/* An integer member, at any depth of one, of a JSON object: "total", "transfers.committed". */
int64_t ledger_number(const char *json, const char *path);

/* A text member; fails the test where it is none. Copied into `text`. */
void ledger_text(const char *json, const char *key, char *text, size_t size);

/* The balance of an account; the sum of all. */
int64_t ledger_balance(const ledger_process *ledger, int account);
int64_t ledger_total(const ledger_process *ledger);

/* A figure of /metrics. */
int64_t ledger_metric(const ledger_process *ledger, const char *name);

/* Waits until the figure is this; fails the test after half a minute. */
void ledger_wait_metric(const ledger_process *ledger, const char *name, int64_t value);

/* Fails unless the journal explains every balance and each transfer has its receipt, and no other is there. Returns the transfers. */
int64_t ledger_expect_sound(const ledger_process *ledger);

/* Entries of a folder but . and .. */
size_t ledger_entries(const char *folder);

/* 1 where the log has this text. */
int ledger_log_has(const char *text);

/* The same, but waits for it: a thread of the service's writes the log. 0 after half a minute. */
int ledger_log_gets(const char *text);

#endif
