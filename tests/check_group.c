/* SPDX-License-Identifier: MIT */
/* check_group.c: threads that are started together end together (behaviour 51, and Go's errgroup). */
#include <errno.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_group.h>
#include <guard/guard_process.h>

#include "fault_memory.h"
#include "suite.h"
#include "trace.h"

static int count;
static int most;
static int now;

static void add_one(void *arg)
{
    __atomic_fetch_add(&count, *(int *)arg, __ATOMIC_SEQ_CST);
}

static void wait_until_cancelled(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, add_one, arg);
    guard_wait_descriptor(-1, 0, -1);
}

static void panic_at_once(void *arg)
{
    guard_panic(*(int *)arg, "member %d", *(int *)arg);
}

static int one = 1;
static int two = 2;

static void spawn_and_wait(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_group *group = guard_group_open(s, NULL);
    for (int i = 0; i < 20; i++) {
        ck_assert_int_eq(guard_group_spawn(group, add_one, &one), 1);
    }
    guard_error error;
    ck_assert_int_eq(guard_group_wait(group, &error), 0);
    ck_assert_int_eq(count, 20);
    /* It is as new. */
    guard_group_spawn(group, add_one, &two);
    guard_group_wait(group, NULL);
    ck_assert_int_eq(count, 22);
}

START_TEST(wait_returns_when_all_members_have_ended)
{
    ck_assert_int_eq(guard_run(spawn_and_wait, NULL, NULL), 0);
}
END_TEST

static void spawn_and_leave(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, trace_run, (void *)"after the members");
    guard_group *group = guard_group_open(s, NULL);
    for (int i = 0; i < 10; i++) {
        guard_group_spawn(group, add_one, &one);
    }
}

START_TEST(leaving_the_scope_waits_for_all_members)
{
    ck_assert_int_eq(guard_run(spawn_and_leave, NULL, NULL), 0);
    ck_assert_int_eq(count, 10);
    trace_expect("run after the members");
}
END_TEST

static void one_panics(void *arg)
{
    guard_error *error = arg;
    GUARD_AUTO(s);
    guard_group *group = guard_group_open(s, NULL);
    for (int i = 0; i < 3; i++) {
        guard_group_spawn(group, wait_until_cancelled, &one);
    }
    guard_group_spawn(group, panic_at_once, &two);
    int code = guard_group_wait(group, error);
    trace_add("wait returned %d", code);
}

START_TEST(a_panic_in_a_member_cancels_the_others_and_wait_returns_it)
{
    guard_error error;
    ck_assert_int_eq(guard_run(one_panics, &error, NULL), 0);
    trace_expect("wait returned 2");
    ck_assert_str_eq(error.message, "member 2");
    ck_assert_int_eq(error.domain, GUARD_USER);
    ck_assert_int_eq(error.cause_count, 0); /* that the others were cancelled is no failure */
    ck_assert_int_eq(count, 3);
}
END_TEST

START_TEST(a_panic_in_a_member_is_raised_by_wait)
{
    guard_error error;
    ck_assert_int_eq(guard_run(one_panics, NULL, &error), 2);
    ck_assert_str_eq(error.message, "member 2");
    trace_expect("");
    ck_assert_int_eq(count, 3);
}
END_TEST

/* Both fail although the group is cancelled: the second while it is being cancelled. */
static void fail_when_cancelled(void *arg)
{
    guard_error error;
    ck_assert_int_eq(guard_run(wait_until_cancelled, arg, &error), ECANCELED);
    guard_cancel_clear();
    guard_panic(8, "a cleanup failed");
}

static void two_panic(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_group *group = guard_group_open(s, NULL);
    guard_group_spawn(group, fail_when_cancelled, &one);
    guard_group_spawn(group, panic_at_once, &two);
    guard_group_wait(group, NULL);
}

START_TEST(the_failures_of_other_members_are_attached_to_the_first)
{
    guard_error error;
    ck_assert_int_eq(guard_run(two_panic, NULL, &error), 2);
    ck_assert_int_eq(error.cause_count, 1);
    ck_assert_int_eq(error.causes[0].code, 8);
    ck_assert_int_eq(error.causes[0].relation, GUARD_ATTACHED);
}
END_TEST

static void leave_unseen(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_group *group = guard_group_open(s, NULL);
    guard_group_spawn(group, panic_at_once, &two);
}

START_TEST(a_members_panic_that_nobody_waited_for_is_raised_when_the_scope_ends)
{
    guard_error error;
    ck_assert_int_eq(guard_run(leave_unseen, NULL, &error), 2);
    ck_assert_str_eq(error.message, "member 2");
}
END_TEST

static void leave_by_a_panic(void *arg)
{
    GUARD_AUTO(s);
    guard_group *group = guard_group_open(s, NULL);
    guard_group_spawn(group, wait_until_cancelled, &one);
    if (arg != NULL) {
        guard_group_spawn(group, fail_when_cancelled, &one);
    }
    guard_panic(5, "five");
}

START_TEST(a_panic_that_leaves_the_scope_cancels_the_members_and_waits)
{
    guard_error error;
    ck_assert_int_eq(guard_run(leave_by_a_panic, NULL, &error), 5);
    ck_assert_int_eq(error.cause_count, 0);
    ck_assert_int_eq(count, 1);
    ck_assert_int_eq(guard_run(leave_by_a_panic, &one, &error), 5);
    ck_assert_int_eq(error.cause_count, 1);
    ck_assert_int_eq(error.causes[0].code, 8);
    ck_assert_int_eq(count, 3);
}
END_TEST

static void count_running(void *arg)
{
    int running = __atomic_add_fetch(&now, 1, __ATOMIC_SEQ_CST);
    int seen = __atomic_load_n(&most, __ATOMIC_SEQ_CST);
    (void)arg;
    while (running > seen &&
           !__atomic_compare_exchange_n(&most, &seen, running, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
    guard_sleep(1);
    __atomic_fetch_sub(&now, 1, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&count, 1, __ATOMIC_SEQ_CST);
}

static void spawn_with_a_limit(void *arg)
{
    guard_group_options options = {.limit = *(int *)arg};
    GUARD_AUTO(s);
    guard_group *group = guard_group_open(s, &options);
    for (int i = 0; i < 30; i++) {
        guard_group_spawn(group, count_running, NULL);
    }
    guard_group_wait(group, NULL);
}

START_TEST(no_more_members_run_than_the_limit)
{
    int limit = 3;
    ck_assert_int_eq(guard_run(spawn_with_a_limit, &limit, NULL), 0);
    ck_assert_int_eq(count, 30);
    ck_assert_int_le(most, 3);
    limit = 1;
    most = 0;
    ck_assert_int_eq(guard_run(spawn_with_a_limit, &limit, NULL), 0);
    ck_assert_int_eq(most, 1);
}
END_TEST

static void spawn_after_a_cancel(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_group *group = guard_group_open(s, NULL);
    guard_group_spawn(group, wait_until_cancelled, &one);
    guard_group_cancel(group);
    ck_assert_int_eq(guard_group_spawn(group, add_one, &one), 0);
    guard_error error;
    ck_assert_int_eq(guard_group_wait(group, &error), 0);
    ck_assert_int_eq(guard_group_spawn(group, add_one, &one), 1);
}

START_TEST(a_cancelled_group_starts_nothing_until_it_was_waited_for)
{
    ck_assert_int_eq(guard_run(spawn_after_a_cancel, NULL, NULL), 0);
    ck_assert_int_eq(count, 2);
}
END_TEST

static void wait_with_a_deadline(void *arg)
{
    int how = *(int *)arg;
    GUARD_AUTO(outer);
    guard_group_options options = {.limit = how == 2 ? 1 : 0};
    guard_group *group = guard_group_open(outer, &options);
    guard_group_spawn(group, wait_until_cancelled, &one);
    GUARD_AUTO(s);
    guard_deadline(s, 20);
    if (how == 2) {
        guard_group_spawn(group, add_one, &one);
    }
    guard_group_wait(group, NULL);
}

START_TEST(a_deadline_of_the_waiter_cancels_the_members_and_is_raised_after_them)
{
    guard_error error;
    for (int how = 1; how <= 2; how++) {
        count = 0;
        ck_assert_int_eq(guard_run(wait_with_a_deadline, &how, &error), ETIMEDOUT);
        ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
        ck_assert_int_eq(count, 1);
    }
}
END_TEST

static void inherit_a_deadline(void *arg)
{
    GUARD_AUTO(s);
    guard_group *group = guard_group_open(s, NULL);
    {
        GUARD_AUTO(spawning);
        guard_deadline(spawning, 500); /* it is not to pass before the member is there */
        guard_group_spawn(group, wait_until_cancelled, &one);
    }
    guard_group_wait(group, arg);
}

START_TEST(a_member_runs_under_the_deadline_of_where_it_was_spawned)
{
    guard_error error = {.code = 0};
    ck_assert_int_eq(guard_run(inherit_a_deadline, &error, NULL), 0);
    ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
}
END_TEST

static void exit_the_thread(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, add_one, arg);
    guard_exit_thread();
}

static void cancel_the_thread(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, add_one, arg);
    pthread_cancel(pthread_self());
    pthread_testcancel();
}

static void end_in_other_ways(void *arg)
{
    GUARD_AUTO(s);
    guard_group *group = guard_group_open(s, NULL);
    guard_group_spawn(group, exit_the_thread, &one);
    ck_assert_int_eq(guard_group_wait(group, arg), 0);
    guard_group_spawn(group, cancel_the_thread, &one);
    ck_assert_int_eq(guard_group_wait(group, arg), ECANCELED);
}

static void raise_what_has_no_place(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_group *group = guard_group_open(s, NULL);
    guard_group_spawn(group, cancel_the_thread, &one);
    guard_group_wait(group, NULL);
}

/* Such as a fault's: a line of the library's would be read as the place. */
START_TEST(an_error_without_a_place_gets_none_on_its_way)
{
    guard_error error;
    ck_assert_int_eq(guard_run(raise_what_has_no_place, NULL, &error), ECANCELED);
    ck_assert_str_eq(error.file, "");
    ck_assert_uint_eq(error.line, 0);
}
END_TEST

START_TEST(a_member_that_exits_has_ended_and_one_that_is_cancelled_has_failed)
{
    guard_error error;
    ck_assert_int_eq(guard_run(end_in_other_ways, &error, NULL), 0);
    ck_assert_int_eq(count, 2);
    ck_assert_int_eq(error.domain, GUARD_CANCELLED);
}
END_TEST

static void spawn_deeper(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_group *group = guard_group_open(s, NULL);
    guard_group_spawn(group, wait_until_cancelled, &one);
    guard_group_spawn(group, wait_until_cancelled, &one);
    guard_group_wait(group, NULL);
}

static void groups_in_groups(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_group *group = guard_group_open(s, NULL);
    guard_group_spawn(group, spawn_deeper, NULL);
    guard_group_spawn(group, spawn_deeper, NULL);
    guard_group_spawn(group, panic_at_once, &two);
    guard_group_wait(group, NULL);
}

START_TEST(a_cancel_reaches_the_groups_of_members)
{
    guard_error error;
    ck_assert_int_eq(guard_run(groups_in_groups, NULL, &error), 2);
    ck_assert_int_eq(error.cause_count, 0);
}
END_TEST

static void misuse_options(void *arg)
{
    GUARD_AUTO(s);
    guard_group_open(s, arg);
}

static void spawn_nothing(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_group_spawn(guard_group_open(s, NULL), NULL, NULL);
}

START_TEST(options_out_of_range_and_a_member_without_a_function_are_misuse)
{
    guard_error error;
    guard_group_options options = {.limit = -2};
    ck_assert_int_eq(guard_run(misuse_options, &options, &error), GUARD_MISUSE_ARGUMENT);
    options = (guard_group_options){.reserved = {0, 0, 0, 0, 0, 0, 1}};
    ck_assert_int_eq(guard_run(misuse_options, &options, &error), GUARD_MISUSE_ARGUMENT);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
    ck_assert_int_eq(guard_run(spawn_nothing, NULL, &error), GUARD_MISUSE_ARGUMENT);
}
END_TEST

static void spawn_in_none(void *arg)
{
    (void)arg;
    guard_group_spawn(NULL, wait_until_cancelled, &one);
}

static void wait_for_none(void *arg)
{
    (void)arg;
    guard_group_wait(NULL, NULL);
}

static void cancel_none(void *arg)
{
    (void)arg;
    guard_group_cancel(NULL);
}

static void ignore_misuse(const guard_error *error)
{
    (void)error;
}

START_TEST(a_group_that_is_not_there_is_misuse)
{
    guard_error error;
    ck_assert_int_eq(guard_run(spawn_in_none, NULL, &error), GUARD_MISUSE_ARGUMENT);
    ck_assert_int_eq(guard_run(wait_for_none, NULL, &error), GUARD_MISUSE_ARGUMENT);
    ck_assert_int_eq(guard_run(cancel_none, NULL, &error), GUARD_MISUSE_ARGUMENT);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
    guard_misuse_handler(ignore_misuse);
    guard_group *group = guard_group_open(NULL, NULL);
    ck_assert_ptr_null(group);
    ck_assert_int_eq(guard_group_spawn(group, wait_until_cancelled, &one), 0);
    ck_assert_int_eq(guard_group_wait(group, NULL), 0);
    guard_group_cancel(group);
}
END_TEST

static void use_in_a_child(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_group *group = guard_group_open(s, NULL);
    guard_group_spawn(group, wait_until_cancelled, &one);
    pid_t child = fork();
    if (child == 0) {
        guard_group_wait(group, NULL);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    guard_group_cancel(group);
    ck_assert_int_eq(WEXITSTATUS(status), GUARD_MISUSE_STATE);
}

START_TEST(a_forked_child_cannot_wait_for_members_it_does_not_have)
{
    pid_t self = getpid();
    int code = guard_run(use_in_a_child, NULL, NULL);
    if (getpid() != self) {
        _exit(code);
    }
    ck_assert_int_eq(code, 0);
}
END_TEST

/* Each allocation in turn, in members too. */
START_TEST(without_memory_no_member_is_lost_and_nothing_leaks)
{
    fault_memory_install();
    ck_assert_int_eq(guard_run(spawn_and_leave, NULL, NULL), 0);
    trace_clear();
    size_t before = fault_memory_blocks();
    for (unsigned long n = 1;; n++) {
        guard_error error;
        fault_memory_fail_at(n);
        int code = guard_run(spawn_and_leave, NULL, &error);
        ck_assert_uint_eq(fault_memory_blocks(), before);
        if (!fault_memory_was_hit()) {
            ck_assert_int_eq(code, 0);
            break;
        }
        ck_assert_int_eq(code, ENOMEM);
        ck_assert_int_eq(error.domain, GUARD_MEMORY);
        trace_expect("run after the members");
    }
}
END_TEST

static void spawn_without_threads(void *arg)
{
    const pthread_attr_t *impossible = arg;
    GUARD_AUTO(s);
    guard_group *group = guard_group_open(s, NULL);
    guard_group_spawn(group, add_one, &one);
    ck_assert_int_eq(pthread_setattr_default_np(impossible), 0);
    guard_group_spawn(group, add_one, &one);
}

START_TEST(a_member_that_cannot_be_started_is_a_panic_and_the_others_are_waited_for)
{
    guard_error error;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    ck_assert_int_eq(pthread_attr_setstacksize(&attributes, (size_t)1 << 46), 0); /* no thread has a stack of 64 TiB */
    int code = guard_run(spawn_without_threads, &attributes, &error);
    ck_assert_msg(code == EAGAIN || code == EINVAL, "%d: %s", code,
                  error.message); /* valgrind's allocator says EINVAL */
    ck_assert_int_eq(error.domain, GUARD_OS);
    ck_assert_int_eq(count, 1);
    pthread_attr_destroy(&attributes);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        wait_returns_when_all_members_have_ended,
        leaving_the_scope_waits_for_all_members,
        a_panic_in_a_member_cancels_the_others_and_wait_returns_it,
        a_panic_in_a_member_is_raised_by_wait,
        the_failures_of_other_members_are_attached_to_the_first,
        a_members_panic_that_nobody_waited_for_is_raised_when_the_scope_ends,
        a_panic_that_leaves_the_scope_cancels_the_members_and_waits,
        no_more_members_run_than_the_limit,
        a_cancelled_group_starts_nothing_until_it_was_waited_for,
        a_deadline_of_the_waiter_cancels_the_members_and_is_raised_after_them,
        a_member_runs_under_the_deadline_of_where_it_was_spawned,
        a_member_that_exits_has_ended_and_one_that_is_cancelled_has_failed,
        an_error_without_a_place_gets_none_on_its_way,
        a_cancel_reaches_the_groups_of_members,
        options_out_of_range_and_a_member_without_a_function_are_misuse,
        a_group_that_is_not_there_is_misuse,
        a_forked_child_cannot_wait_for_members_it_does_not_have,
        without_memory_no_member_is_lost_and_nothing_leaks,
        /* Helgrind reports each pthread_create that fails, as this one has to. */
        suite_unless_helgrind(a_member_that_cannot_be_started_is_a_panic_and_the_others_are_waited_for),
    };
    return suite_run("group", tests, sizeof tests / sizeof *tests);
}
