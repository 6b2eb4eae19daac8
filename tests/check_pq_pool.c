/* SPDX-License-Identifier: MIT */
/* check_pq_pool.c: the pool never hands out a dirty connection, and nobody waits past his deadline (behaviour 38). */
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_metrics.h>
#include <guard/guard_pq.h>

#include "exposition.h"
#include "server.h"
#include "suite.h"

static guard_pq_pool *pool;

static void open_pool(guard_scope *s, uint32_t max)
{
    guard_pq_pool_options options = {.max = max};
    server_reset();
    pool = guard_pq_pool_open(s, "", &options);
}

static guard_pq_pool_stats stats(void)
{
    guard_pq_pool_stats found;
    guard_pq_pool_stats_read(pool, &found);
    return found;
}

static int used_socket;

/* Takes a connection, does something to it, gives it back; returns the process that served it. */
static int use(void (*what)(guard_scope *s, guard_pq *pq))
{
    GUARD_AUTO(s);
    guard_pq *pq = guard_pq_pool_take(s, pool, 0);
    int pid = server_pid(guard_pq_raw(pq));
    used_socket = PQsocket(guard_pq_raw(pq));
    if (what != NULL) {
        what(s, pq);
    }
    return pid;
}

static void check_clean(guard_scope *s, guard_pq *pq)
{
    (void)s;
    ck_assert_int_eq(PQtransactionStatus(guard_pq_raw(pq)), PQTRANS_IDLE);
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT 1", 0), 1);
    ck_assert_int_eq(server_rows(1), 0);
}

/* ------------------------------------------------------------------------------------------------------------ */

START_TEST(an_idle_connection_is_used_again_as_it_is)
{
    GUARD_AUTO(s);
    open_pool(s, 2);
    int first = use(NULL);
    ck_assert_int_eq(use(check_clean), first);
    ck_assert_uint_eq(stats().opened, 1);
    ck_assert_uint_eq(stats().takes, 2);
    ck_assert_uint_eq(stats().idle, 1);
    ck_assert_uint_eq(stats().taken, 0);
}
END_TEST

static void write_a_row(guard_tx *tx, void *arg)
{
    (void)tx;
    GUARD_AUTO(s);
    guard_pq_exec(s, arg, "CREATE TEMPORARY TABLE t(a int)");
}

START_TEST(a_pool_is_in_the_metrics_by_its_name_while_it_lives)
{
    GUARD_AUTO(s);
    {
        GUARD_AUTO(inner);
        const guard_pq_pool_options options = {.max = 3, .name = "bank"};
        pool = guard_pq_pool_open(inner, "", &options);
        use(NULL);
        guard_pq *pq = guard_pq_pool_take(inner, pool, 0);
        guard_pq_transact(pq, write_a_row, pq, NULL, NULL);
        const char *text = exposition_read(s);
        ck_assert_int_eq(exposition_value(text, "guard_pool_connections{pool=\"bank\",state=\"taken\"}"), 1);
        ck_assert_int_eq(exposition_value(text, "guard_pool_connections{pool=\"bank\",state=\"idle\"}"), 0);
        ck_assert_int_eq(exposition_value(text, "guard_pool_events_total{pool=\"bank\",event=\"take\"}"), 2);
        ck_assert_int_eq(exposition_value(text, "guard_pool_events_total{pool=\"bank\",event=\"opened\"}"), 1);
        ck_assert_int_eq(exposition_value(text, "guard_pool_waiting{pool=\"bank\"}"), 0);
        ck_assert_int_eq(
            exposition_value(text, "guard_transactions_total{database=\"postgresql\",outcome=\"committed\"}"), 1);
        ck_assert_int_eq(exposition_value(text, "guard_transaction_commit_seconds_count{database=\"postgresql\"}"), 1);
    }
    ck_assert_ptr_null(strstr(guard_metrics_text(s, NULL), "guard_pool"));
}
END_TEST

static void leave_open(guard_scope *s, guard_pq *pq)
{
    (void)s;
    PQclear(PQexec(guard_pq_raw(pq), "BEGIN; INSERT INTO t VALUES (1)"));
}

static void leave_failed(guard_scope *s, guard_pq *pq)
{
    leave_open(s, pq);
    PQclear(PQexec(guard_pq_raw(pq), "SELECT 1/0"));
}

static void leave_guarded_open(guard_scope *s, guard_pq *pq)
{
    (void)s;
    guard_owner *owner = guard_owner_new(); /* outlives the connection's scope */
    guard_pq_begin(guard_owner_scope(owner), pq, NULL);
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (1)");
}

START_TEST(an_open_or_failed_transaction_is_rolled_back_and_the_connection_used_again)
{
    static void (*const leave[])(guard_scope *, guard_pq *) = {leave_open, leave_failed, leave_guarded_open};
    for (unsigned i = 0; i < 3; i++) {
        GUARD_AUTO(s);
        open_pool(s, 1);
        int first = use(leave[i]);
        ck_assert_int_eq(use(check_clean), first);
        ck_assert_uint_eq(stats().rolled_back, 1);
        ck_assert_uint_eq(stats().discarded, 0);
    }
}
END_TEST

static void leave_active(guard_scope *s, guard_pq *pq)
{
    (void)s;
    ck_assert(PQsendQuery(guard_pq_raw(pq), "SELECT pg_sleep(60)"));
}

static void leave_copy(guard_scope *s, guard_pq *pq)
{
    (void)s;
    PQclear(PQexec(guard_pq_raw(pq), "COPY t FROM STDIN"));
}

static void leave_pipeline(guard_scope *s, guard_pq *pq)
{
    (void)s;
    ck_assert(PQenterPipelineMode(guard_pq_raw(pq)));
}

static void leave_dead(guard_scope *s, guard_pq *pq)
{
    (void)s;
    char sql[80];
    snprintf(sql, sizeof(sql), "SELECT pg_terminate_backend(%d)::int", server_pid(guard_pq_raw(pq)));
    server_number(sql);
    PGresult *result = PQexec(guard_pq_raw(pq), "SELECT 1");
    ck_assert_int_eq(PQresultStatus(result), PGRES_FATAL_ERROR);
    PQclear(result);
}

START_TEST(an_active_or_dead_connection_is_discarded_and_replaced)
{
    static void (*const leave[])(guard_scope *, guard_pq *) = {leave_active, leave_copy, leave_pipeline, leave_dead};
    for (unsigned i = 0; i < 4; i++) {
        GUARD_AUTO(s);
        open_pool(s, 1);
        int64_t begun = now_ms();
        int first = use(leave[i]);
        ck_assert_int_ne(use(check_clean), first);
        ck_assert_int_lt(now_ms() - begun, 30000); /* pg_sleep(60) was not waited for */
        ck_assert_uint_eq(stats().discarded + stats().expired, 1);
        ck_assert_uint_eq(stats().open, 1);
    }
}
END_TEST

START_TEST(a_connection_that_died_while_idle_is_replaced)
{
    GUARD_AUTO(s);
    char sql[80];
    open_pool(s, 1);
    int first = use(NULL);
    snprintf(sql, sizeof(sql), "SELECT pg_terminate_backend(%d)::int", first);
    server_number(sql);
    struct pollfd ended = {.fd = used_socket, .events = POLLRDHUP};
    ck_assert_int_eq(poll(&ended, 1, 60000), 1);
    ck_assert_int_ne(use(check_clean), first);
    ck_assert_uint_eq(stats().expired, 1);
}
END_TEST

static void unlock_behind_its_back(guard_scope *s, guard_pq *pq)
{
    guard_pq_lock_session(s, pq, 3, 0);
    guard_pq_exec(NULL, pq, "SET client_min_messages = error; SELECT pg_advisory_unlock(3)");
}

static void use_and_fail_to_unlock(void *arg)
{
    (void)arg;
    use(unlock_behind_its_back);
}

START_TEST(a_failed_advisory_unlock_discards_the_connection)
{
    GUARD_AUTO(s);
    guard_error error;
    open_pool(s, 1);
    ck_assert_int_ne(guard_run(use_and_fail_to_unlock, NULL, &error), 0);
    ck_assert_int_eq(error.domain, GUARD_LOCK);
    ck_assert_uint_eq(stats().discarded, 1);
    use(check_clean);
}
END_TEST

START_TEST(a_reset_statement_is_run_at_return_and_its_failure_discards)
{
    GUARD_AUTO(s);
    server_reset();
    guard_pq_pool_options options = {.max = 1, .reset = "DISCARD ALL"};
    pool = guard_pq_pool_open(s, "", &options);
    {
        GUARD_AUTO(inner);
        guard_pq *pq = guard_pq_pool_take(inner, pool, 0);
        guard_pq_exec(NULL, pq, "CREATE TEMP TABLE mine(i int); SET work_mem = '1MB'");
    }
    {
        GUARD_AUTO(inner);
        guard_pq *pq = guard_pq_pool_take(inner, pool, 0);
        ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT (to_regclass('mine') IS NULL)::int", 0), 1);
    }
    ck_assert_uint_eq(stats().opened, 1);
    /* It has not taken away what the library has set. */
    {
        GUARD_AUTO(inner);
        guard_pq *pq = guard_pq_pool_take(inner, pool, 0);
        PGresult *rows = guard_pq_exec(inner, pq, "SHOW idle_in_transaction_session_timeout");
        ck_assert_str_eq(PQgetvalue(rows, 0, 0), "10min");
    }
    options.reset = "SELECT 1/0";
    pool = guard_pq_pool_open(s, "", &options);
    use(NULL);
    ck_assert_uint_eq(stats().discarded, 1);
    ck_assert_uint_eq(stats().open, 0);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ deadlines */

static void take_in_100_ms(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_pq_pool_take(s, pool, 100);
}

START_TEST(a_take_waits_no_longer_than_its_deadline)
{
    GUARD_AUTO(s);
    guard_error error;
    open_pool(s, 1);
    guard_pq_pool_take(s, pool, 0);
    int64_t begun = now_ms();
    ck_assert_int_ne(guard_run(take_in_100_ms, NULL, &error), 0);
    ck_assert_int_ge(now_ms() - begun, 95);
    ck_assert_int_lt(now_ms() - begun, 20000);
    ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
    ck_assert_uint_eq(stats().timeouts, 1);
    ck_assert_uint_eq(stats().waiting, 0);
}
END_TEST

static void take_in_60_s(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_pq_pool_take(s, pool, 60000);
}

START_TEST(a_server_that_refuses_is_told_at_once_and_leaves_no_slot_taken)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq_pool_options options = {.max = 1};
    pool = guard_pq_pool_open(s, "dbname=there_is_none password=hidden-from-all", &options);
    for (int i = 0; i < 3; i++) {
        int64_t begun = now_ms();
        ck_assert_int_ne(guard_run(take_in_60_s, NULL, &error), 0);
        ck_assert_int_lt(now_ms() - begun, 30000);
        ck_assert_msg(error.domain == GUARD_PQ && error.code == GUARD_PQ_CONNECTION, "%s", error.message);
        ck_assert_ptr_nonnull(strstr(error.message, "there_is_none"));
    }
    ck_assert_uint_eq(stats().open, 0);
    ck_assert_uint_eq(stats().failures, 3);
}
END_TEST

START_TEST(a_pool_with_a_minimum_opens_ahead_and_replaces_in_the_background)
{
    GUARD_AUTO(s);
    server_reset();
    guard_pq_pool_options options = {.max = 4, .min = 2, .connection = {.connect_ms = 30000}};
    pool = guard_pq_pool_open(s, "application_name=kept", &options);
    server_wait("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'kept'", 2);
    while (stats().idle < 2) { /* the server has a session before the pool has its connection */
        pause_ms(5);
    }
    use(leave_active);
    while (stats().opened < 3 || stats().open < 2) {
        pause_ms(5);
    }
    ck_assert_uint_eq(stats().opened, 3);
}
END_TEST

/* -------------------------------------------------------------------------------------------------- fairness */

static atomic_int arrived;
static int order[3];

static void *take_in_turn(void *arg)
{
    GUARD_AUTO(s);
    guard_pq_pool_take(s, pool, 0);
    order[atomic_fetch_add(&arrived, 1)] = *(int *)arg;
    return NULL;
}

START_TEST(whoever_waits_longest_is_served_first)
{
    GUARD_AUTO(s);
    pthread_t threads[3];
    int ids[3] = {1, 2, 3};
    open_pool(s, 1);
    guard_pq *pq = guard_pq_pool_take(s, pool, 0);
    for (unsigned i = 0; i < 3; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, take_in_turn, &ids[i]), 0);
        while (stats().waiting != i + 1) {
            pause_ms(1);
        }
    }
    guard_pq_close(pq);
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        ck_assert_int_eq(order[i], i + 1);
    }
    ck_assert_uint_eq(stats().opened, 1);
}
END_TEST

static void *take_and_work(void *arg)
{
    (void)arg;
    for (int i = 0; i < 200; i++) {
        GUARD_AUTO(s);
        guard_pq *pq = guard_pq_pool_take(s, pool, 0);
        if (i % 20 == 0) {
            leave_open(s, pq);
        } else if (i % 33 == 0) {
            leave_active(s, pq);
        } else {
            guard_pq_query_int64(pq, "SELECT 1", 0);
        }
    }
    return NULL;
}

START_TEST(many_threads_share_few_connections_and_none_is_lost)
{
    GUARD_AUTO(s);
    pthread_t threads[8];
    open_pool(s, 3);
    for (int i = 0; i < 8; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, take_and_work, NULL), 0);
    }
    for (int i = 0; i < 8; i++) {
        pthread_join(threads[i], NULL);
    }
    guard_pq_pool_stats found = stats();
    ck_assert_uint_eq(found.takes, 8 * 200);
    ck_assert_uint_eq(found.taken, 0);
    ck_assert_uint_eq(found.waiting, 0);
    ck_assert_uint_le(found.open, 3);
    ck_assert_uint_eq(found.idle, found.open);
    ck_assert_uint_eq(found.opened, found.open + found.discarded + found.expired);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ life */

START_TEST(a_closed_pool_leaves_no_connection_behind)
{
    server_reset();
    {
        GUARD_AUTO(s);
        guard_pq_pool_options options = {.max = 3};
        pool = guard_pq_pool_open(s, "application_name=pooled", &options);
        GUARD_AUTO(inner);
        guard_pq_pool_take(inner, pool, 0);
        guard_pq_pool_take(inner, pool, 0);
        ck_assert_int_eq(server_number("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pooled'"), 2);
    }
    server_wait("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pooled'", 0);
}
END_TEST

static void take_in_child(void *arg)
{
    (void)arg;
    use(NULL);
}

START_TEST(a_forked_child_cannot_take_and_does_not_disturb_its_parents_connections)
{
    GUARD_AUTO(s);
    guard_error error;
    open_pool(s, 1);
    int first = use(NULL);
    pid_t child = fork();
    if (child == 0) {
        int taken = guard_run(take_in_child, NULL, &error);
        guard_scope_close(s);
        _exit(taken != 0 && error.domain == GUARD_MISUSE ? 0 : 1);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", (unsigned)status);
    ck_assert_int_eq(use(check_clean), first);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        an_idle_connection_is_used_again_as_it_is,
        a_pool_is_in_the_metrics_by_its_name_while_it_lives,
        an_open_or_failed_transaction_is_rolled_back_and_the_connection_used_again,
        an_active_or_dead_connection_is_discarded_and_replaced,
        a_connection_that_died_while_idle_is_replaced,
        a_failed_advisory_unlock_discards_the_connection,
        a_reset_statement_is_run_at_return_and_its_failure_discards,
        a_take_waits_no_longer_than_its_deadline,
        a_server_that_refuses_is_told_at_once_and_leaves_no_slot_taken,
        a_pool_with_a_minimum_opens_ahead_and_replaces_in_the_background,
        whoever_waits_longest_is_served_first,
        many_threads_share_few_connections_and_none_is_lost,
        a_closed_pool_leaves_no_connection_behind,
        a_forked_child_cannot_take_and_does_not_disturb_its_parents_connections,
    };
    return suite_run("pq_pool", tests, sizeof tests / sizeof *tests);
}
