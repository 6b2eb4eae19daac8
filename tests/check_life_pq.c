/* SPDX-License-Identifier: MIT */
/*
 * check_life_pq.c: cancellation, pthread_cancel, fork and faults while PostgreSQL works (behaviour 50, and the cancellation of the core on
 * this adapter).
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_fault.h>
#include <guard/guard_pq.h>
#include <guard/guard_process.h>

#include "faults.h"
#include "server.h"
#include "suite.h"
#include "worker.h"

static int idle_backends(void)
{
    return (int)server_number(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(100)%' AND state = 'active'"
        " AND pid <> pg_backend_pid()");
}

static void sleep_with_a_deadline(void *arg)
{
    guard_pq *pq = arg;
    GUARD_AUTO(s);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (1)");
    guard_deadline(s, 50);
    guard_pq_exec(NULL, pq, "SELECT pg_sleep(100)");
    guard_tx_commit(tx);
}

START_TEST(a_deadline_cancels_a_running_query_and_the_connection_is_good_afterwards)
{
    guard_error error;
    GUARD_AUTO(s);
    server_reset();
    guard_pq *pq = guard_pq_open(s, "", NULL);
    ck_assert_int_eq(guard_run(sleep_with_a_deadline, pq, &error), ETIMEDOUT);
    ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
    ck_assert_int_eq(idle_backends(), 0);
    ck_assert_int_eq(PQtransactionStatus(guard_pq_raw(pq)), PQTRANS_IDLE);
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (2)");
    ck_assert_int_eq((int)server_number("SELECT count(*) FROM t"), 1);
}
END_TEST

static void sleep_in_a_transaction(void *arg)
{
    GUARD_AUTO(s);
    guard_pq *pq = guard_pq_open(s, "", NULL);
    guard_pq_begin(s, pq, NULL);
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (1)");
    worker_is_ready(arg);
    guard_pq_exec(NULL, pq, "SELECT pg_sleep(100)");
}

START_TEST(a_cancel_by_another_thread_ends_a_running_query)
{
    worker w;
    server_reset();
    worker_start(&w, sleep_in_a_transaction);
    ck_assert_int_eq(guard_cancel_thread(w.thread), 1);
    worker_join(&w);
    ck_assert_int_eq(w.code, ECANCELED);
    ck_assert_int_eq(w.error.domain, GUARD_CANCELLED);
    ck_assert_int_eq(idle_backends(), 0);
    ck_assert_int_eq((int)server_number("SELECT count(*) FROM t"), 0);
}
END_TEST

static void insert_until_cancelled(void *arg)
{
    GUARD_AUTO(s);
    guard_pq *pq = guard_pq_open(s, "", NULL);
    guard_pq_begin(s, pq, NULL);
    worker_is_ready(arg);
    for (;;) {
        guard_pq_exec(NULL, pq, "INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t");
        guard_cancel_point();
    }
}

START_TEST(pthread_cancel_waits_until_libpq_has_returned_and_the_transaction_is_rolled_back)
{
    server_reset();
    for (int i = 0; i < 5; i++) {
        worker w;
        worker_start(&w, insert_until_cancelled);
        ck_assert_int_eq(pthread_cancel(w.thread), 0);
        ck_assert_ptr_eq(worker_join(&w), PTHREAD_CANCELED);
        ck_assert_int_eq((int)server_number("SELECT count(*) FROM t"), 0);
    }
}
END_TEST

static void take_one(void *pool)
{
    GUARD_AUTO(s);
    guard_deadline(s, 30);
    guard_pq_pool_take(s, pool, -1);
}

START_TEST(a_deadline_ends_the_wait_for_a_pools_connection)
{
    guard_error error;
    GUARD_AUTO(s);
    guard_pq_pool *pool = guard_pq_pool_open(s, "", &(guard_pq_pool_options){.max = 1});
    guard_pq_pool_take(s, pool, -1);
    ck_assert_int_eq(guard_run(take_one, pool, &error), ETIMEDOUT);
    ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
}
END_TEST

/* ---------------------------------------------------------------------------------------------------- fork -- */

static void use_it(void *pq)
{
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (99)");
}

static void do_as_the_child(const char *how, guard_pq *pq)
{
    guard_error error;
    struct stat socket;
    if (fstat(PQsocket(guard_pq_raw(pq)), &socket) != 0 || !S_ISCHR(socket.st_mode)) {
        _exit(20); /* it is not /dev/null already */
    }
    switch (how[0]) {
    case 'u': /* uses */
        _exit(guard_run(use_it, pq, &error) != 0 && error.domain == GUARD_MISUSE ? 0 : 10);
    case 'c': /* closes */
        guard_pq_close(pq);
        break;
    case 'p':
        guard_panic(1, "in the child");
    case 'x':
        exit(0);
    case 'o': { /* opens a connection of its own, and forks again */
        GUARD_AUTO(s);
        guard_pq *own = guard_pq_open(s, "", NULL);
        guard_pq_exec(NULL, own, "SELECT 1");
        if (fork() == 0) {
            guard_pq_close(pq);
            exit(0);
        }
        while (wait(NULL) > 0) {
        }
        break;
    }
    default:
        break;
    }
}

static void fork_in_a_transaction(void *arg)
{
    const char *how = arg;
    GUARD_AUTO(s);
    server_reset();
    guard_pq *pq = guard_pq_open(s, "", NULL);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (1)");
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        do_as_the_child(how, pq);
        return;
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(status == 0, "the child that '%s' ended with %x", how, (unsigned)status);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_OPEN);
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (2)");
    guard_tx_commit(tx);
}

START_TEST(the_parents_transaction_lives_on_whatever_its_child_does)
{
    static const char *const ways[] = {"uses", "closes", "panics", "xits", "opens", "returns"};
    pid_t parent = getpid();
    guard_process_init(GUARD_AT_EXIT);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        guard_error error;
        int code = guard_run(fork_in_a_transaction, (void *)(uintptr_t)ways[i], &error);
        if (getpid() != parent) {
            _exit(0);
        }
        ck_assert_msg(code == 0, "%s: %s", ways[i], error.message);
        ck_assert_int_eq((int)server_number("SELECT count(*) FROM t"), 2);
    }
}
END_TEST

/* ------------------------------------------------------------------------------------------------ faults -- */

static void fault_between(guard_tx *tx, void *arg)
{
    guard_pq_exec(NULL, guard_pq_of(tx), "INSERT INTO t VALUES (1)");
    fault_read_null(arg);
    guard_pq_exec(NULL, guard_pq_of(tx), "INSERT INTO t VALUES (2)");
}

START_TEST(a_fault_between_two_statements_rolls_back_and_the_connection_goes_on)
{
    guard_result result;
    GUARD_AUTO(s);
    server_reset();
    ck_assert_int_eq(guard_faults_to_panics(), 0);
    guard_pq *pq = guard_pq_open(s, "", NULL);
    ck_assert_int_eq(guard_pq_transact(pq, fault_between, NULL, NULL, &result), GUARD_ROLLED_BACK);
    ck_assert_int_eq(result.error.domain, GUARD_FAULT);
    ck_assert_int_eq(result.error.code, SIGSEGV);
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (3)");
    ck_assert_int_eq((int)server_number("SELECT count(*) FROM t"), 1);
}
END_TEST

static void receive_notice(void *arg, const PGresult *result)
{
    (void)result;
    fault_read_null(arg);
}

static void raise_notice(void *arg)
{
    PQclear(PQexec(arg, "DO $$ BEGIN RAISE NOTICE 'look'; END $$"));
}

static void raise_guarded_notice(void *arg)
{
    guard_pq_exec(NULL, arg, "DO $$ BEGIN RAISE NOTICE 'look'; END $$");
}

static void fault_in_libpq(void *arg)
{
    GUARD_AUTO(s);
    PGconn *raw = server_connect("");
    PQsetNoticeReceiver(raw, receive_notice, NULL);
    if (guard_faults_to_panics() != 0) {
        return;
    }
    if (arg == NULL) {
        guard_run(raise_notice, raw, NULL);
    } else {
        guard_run(raise_guarded_notice, guard_pq_adopt(s, raw, NULL), NULL);
    }
}

START_TEST(a_fault_during_a_call_of_libpq_is_fatal)
{
    static char guarded[] = "guarded";
    for (int i = 0; i < 2; i++) {
        child_result result;
        fault_run_child(fault_in_libpq, i == 0 ? NULL : guarded, &result);
        child_expect_signal(&result, SIGSEGV);
        ck_assert_msg(strstr(result.text, "no panic: between the fault and the border is a frame of libpq.so") != NULL,
                      "%s", result.text);
    }
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_deadline_cancels_a_running_query_and_the_connection_is_good_afterwards,
        a_cancel_by_another_thread_ends_a_running_query,
        pthread_cancel_waits_until_libpq_has_returned_and_the_transaction_is_rolled_back,
        a_deadline_ends_the_wait_for_a_pools_connection,
        the_parents_transaction_lives_on_whatever_its_child_does,
        /* Memcheck counts the fault itself, and valgrind delivers it on a stack of its own making. */
        suite_unless_valgrind(a_fault_between_two_statements_rolls_back_and_the_connection_goes_on),
        suite_unless_valgrind(a_fault_during_a_call_of_libpq_is_fatal),
    };
    return suite_run("life_pq", tests, sizeof tests / sizeof *tests);
}
