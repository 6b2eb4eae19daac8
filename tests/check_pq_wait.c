/* SPDX-License-Identifier: MIT */
/*
 * check_pq_wait.c: what can end a wait for an answer, and that nothing else does: a timer that is older than the wait, another
 * connection of the same thread, a socket that was closed here and lives on in a child, a thread without descriptors.
 */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "server.h"
#include "suite.h"

static int64_t one_after(guard_pq *pq, const char *seconds)
{
    GUARD_AUTO(s);
    const char *values[] = {seconds};
    guard_pq_params params = {.count = 1, .values = values};
    guard_pq_exec_params(s, pq, "SELECT pg_sleep($1::float8)", &params);
    return guard_pq_query_int64(pq, "SELECT 1", -1);
}

static void sleep_long(void *pq)
{
    one_after(pq, "100");
}

START_TEST(a_wait_has_its_own_time_limit_whatever_the_one_before_it_had)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = guard_pq_open(s, "", NULL);
    guard_pq_statement_ms(pq, 200);
    ck_assert_int_eq(guard_run(sleep_long, pq, &error), ETIMEDOUT);
    ck_assert_str_eq(error.sqlstate, "57014");
    guard_pq_query_int64(pq, "SELECT 1", -1); /* sets the timer, which passes in the next wait */
    guard_pq_statement_ms(pq, 50000);
    ck_assert_int_eq(one_after(pq, "0.5"), 1);
    guard_pq_statement_ms(pq, -1);
    ck_assert_int_eq(one_after(pq, "0.1"), 1);
    guard_pq_statement_ms(pq, 100);
    ck_assert_int_eq(guard_run(sleep_long, pq, &error), ETIMEDOUT);
}
END_TEST

START_TEST(connections_of_one_thread_are_waited_for_in_turn)
{
    GUARD_AUTO(s);
    guard_pq *many[3];
    for (int i = 0; i < 3; i++) {
        many[i] = guard_pq_open(s, "", NULL);
    }
    for (int i = 0; i < 9; i++) {
        ck_assert_int_eq(one_after(many[i % 3], "0.01"), 1);
    }
    guard_pq_close(many[1]);
    many[1] = guard_pq_open(s, "", NULL); /* its socket has the number of the one before */
    for (int i = 0; i < 9; i++) {
        ck_assert_int_eq(one_after(many[i % 3], "0.01"), 1);
    }
}
END_TEST

/* The kernel tells its set of a socket until the last copy is closed. */
START_TEST(a_socket_that_lives_on_in_a_child_does_not_disturb_the_next)
{
    GUARD_AUTO(s);
    int ends[2];
    ck_assert_int_eq(pipe(ends), 0);
    guard_pq *first = guard_pq_open(s, "", NULL);
    ck_assert_int_eq(one_after(first, "0"), 1);
    pid_t child = _Fork(); /* no handler takes its copy away */
    if (child == 0) {
        char byte;
        close(ends[1]);
        _exit(read(ends[0], &byte, 1) == 0 ? 0 : 1);
    }
    int pid = PQbackendPID(guard_pq_raw(first));
    guard_pq_close(first);
    GUARD_AUTO(t);
    guard_pq *second = guard_pq_open(t, "", NULL);
    char sql[100];
    snprintf(sql, sizeof sql, "SELECT count(*) FROM pg_stat_activity WHERE pid = %d", pid);
    server_wait(sql, 0); /* the server has closed its end: there is something to tell */
    ck_assert_int_eq(one_after(second, "0.05"), 1);
    ck_assert_int_eq(one_after(second, "0.05"), 1);
    close(ends[1]);
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
}
END_TEST

static void query(void *pq)
{
    guard_pq_query_int64(pq, "SELECT 1", -1);
}

/* Without a handler of pthread_atfork. */
START_TEST(any_forked_child_is_refused_the_parents_connection_and_has_waits_of_its_own)
{
    GUARD_AUTO(s);
    guard_pq *pq = guard_pq_open(s, "", NULL);
    ck_assert_int_eq(one_after(pq, "0"), 1);
    pid_t child = _Fork();
    if (child == 0) {
        guard_error error;
        int code = guard_run(query, pq, &error);
        if (code == 0 || error.domain != GUARD_MISUSE) {
            _exit(1);
        }
        GUARD_AUTO(t);
        guard_pq *own = guard_pq_open(t, "", NULL);
        _exit(one_after(own, "0.2") == 1 ? 0 : 2);
    }
    int status;
    for (int i = 0; i < 10; i++) {
        ck_assert_int_eq(one_after(pq, "0.03"), 1); /* while the child waits */
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
}
END_TEST

static void *work_query(void *pq)
{
    return (void *)(intptr_t)one_after(pq, "0.05");
}

static void query_in_thread(guard_pq *pq)
{
    pthread_t thread;
    void *result;
    ck_assert_int_eq(pthread_create(&thread, NULL, work_query, pq), 0);
    ck_assert_int_eq(pthread_join(thread, &result), 0);
    ck_assert_int_eq((int)(intptr_t)result, 1);
}

START_TEST(a_thread_without_descriptors_waits_all_the_same)
{
    GUARD_AUTO(s);
    guard_pq *pq = guard_pq_open(s, "", NULL);
    query_in_thread(pq);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    int next = dup(0);
    close(next);
    for (int extra = 0; extra < 4; extra++) {
        setrlimit(RLIMIT_NOFILE, &(struct rlimit){(rlim_t)(next + extra), limit.rlim_max});
        query_in_thread(pq);
    }
    setrlimit(RLIMIT_NOFILE, &limit);
}
END_TEST

static int descriptors(void)
{
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    ck_assert_ptr_nonnull(folder);
    while (readdir(folder) != NULL) {
        count++;
    }
    closedir(folder);
    return count;
}

START_TEST(a_threads_end_closes_what_it_waited_with)
{
    GUARD_AUTO(s);
    guard_pq *pq = guard_pq_open(s, "", NULL);
    query_in_thread(pq);
    int before = descriptors();
    for (int i = 0; i < 5; i++) {
        query_in_thread(pq);
    }
    ck_assert_int_eq(descriptors(), before);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_wait_has_its_own_time_limit_whatever_the_one_before_it_had,
        connections_of_one_thread_are_waited_for_in_turn,
        a_socket_that_lives_on_in_a_child_does_not_disturb_the_next,
        any_forked_child_is_refused_the_parents_connection_and_has_waits_of_its_own,
        a_thread_without_descriptors_waits_all_the_same,
        a_threads_end_closes_what_it_waited_with,
    };
    return suite_run("pq_wait", tests, sizeof tests / sizeof *tests);
}
