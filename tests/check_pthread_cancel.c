/* SPDX-License-Identifier: MIT */
/*
 * check_pthread_cancel.c: a pthread_cancel(3) that is pending ends a thread at its next cancellation point, and write(2), poll(2) and nanosleep(2)
 * are such points. None of those that the library makes for itself may be one: it would leave with a lock held, a wake that is never written, or a
 * report that is never told.
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <guard/guard_cancel.h>
#include <guard/guard_dump.h>
#include <guard/guard_fault.h>
#include <guard/guard_log.h>
#include <guard/guard_metrics.h>
#include <guard/guard_process.h>

#include "child.h"
#include "suite.h"
#include "task.h"

static atomic_bool is_waiting;
static atomic_bool has_returned;

static void *waiter(void *arg)
{
    guard_error error;
    (void)guard_cancel_descriptor();
    atomic_store(&is_waiting, true);
    ck_assert_int_ne(guard_run(arg, NULL, &error), 0);
    ck_assert_int_eq(error.domain, GUARD_CANCELLED);
    return NULL;
}

static void sleep_long(void *arg)
{
    (void)arg;
    guard_sleep(600000);
}

static void wait_until(const atomic_bool *flag)
{
    while (!atomic_load(flag)) {
        pause_ms(1);
    }
}

/* Runs fn in a thread with a cancel pending, up to its end, and expects that fn has returned. */
static void run_with_cancel_pending(void *(*fn)(void *), void *arg)
{
    pthread_t thread;
    void *result;
    struct timespec until;
    atomic_store(&has_returned, false);
    ck_assert_int_eq(pthread_create(&thread, NULL, fn, arg), 0);
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 20;
    ck_assert_int_eq(pthread_timedjoin_np(thread, &result, &until), 0);
    ck_assert_msg(atomic_load(&has_returned), "the library's own work was a cancellation point");
    ck_assert_ptr_eq(result, PTHREAD_CANCELED);
}

static void ask_oneself(void)
{
    guard_run(sleep_long, NULL, NULL); /* after guard_cancel_thread of oneself: returns at once */
}

/* ------------------------------------------------------------------------------------------ other threads -- */

static void *cancel_other(void *arg)
{
    guard_stack_free(guard_stack_new()); /* the library knows this thread */
    pthread_cancel(pthread_self());
    atomic_store(&has_returned,
                 guard_cancel_thread(*(pthread_t *)arg) == 1); /* no ck_assert: it is a cancellation point */
    pthread_testcancel();
    return NULL;
}

START_TEST(who_cancels_another_thread_is_not_cancelled_under_the_lock)
{
    pthread_t other;
    ck_assert_int_eq(pthread_create(&other, NULL, waiter, sleep_long), 0);
    wait_until(&is_waiting);
    run_with_cancel_pending(cancel_other, &other);
    ck_assert_int_eq(pthread_join(other, NULL), 0);
}
END_TEST

static void *wake_and_settle(void *arg)
{
    (void)arg;
    ck_assert_int_ge(guard_cancel_descriptor(), 0);
    guard_cancel_thread(pthread_self());
    ask_oneself();
    guard_cancel_clear();
    pthread_cancel(pthread_self());
    bool is_there = guard_cancel_descriptor() >= 0; /* takes the wake of the former cancel back, by read(2) */
    guard_cancel_thread(pthread_self());
    atomic_store(&has_returned, is_there);
    pthread_testcancel();
    return NULL;
}

START_TEST(a_descriptor_is_settled_with_a_cancel_pending)
{
    run_with_cancel_pending(wake_and_settle, NULL);
    ck_assert_int_eq(guard_cancel_thread(pthread_self()), 1); /* nobody has left with the lock */
}
END_TEST

/* ---------------------------------------------------------------------------------------------- handlers -- */

/* A handler's write is a cancellation point wherever its signal comes: here, inside of a function that is none. */
static void *poke_oneself(void *arg)
{
    const int *signo = arg;
    guard_stack_free(guard_stack_new());
    pthread_cancel(pthread_self());
    pthread_kill(pthread_self(), *signo);
    atomic_store(&has_returned, true);
    pthread_testcancel();
    return NULL;
}

START_TEST(a_signal_that_cancels_the_process_cancels_no_thread_in_its_handler)
{
    static int signo = SIGTERM; /* not in this frame: helgrind does not know that pthread_timedjoin_np joins */
    guard_cancel_on_signal(SIGTERM, -1);
    run_with_cancel_pending(poke_oneself, &signo);
    ck_assert_int_eq(guard_cancel_signal(), SIGTERM);
}
END_TEST

static atomic_bool is_dumped;

static void *be_dumped(void *arg)
{
    (void)arg;
    guard_stack_free(guard_stack_new());
    pthread_cancel(pthread_self());
    atomic_store(&is_waiting, true);
    while (!atomic_load(&is_dumped)) {
    }
    atomic_store(&has_returned, true);
    pthread_testcancel();
    return NULL;
}

static void *dump_others(void *arg)
{
    int *ends = arg;
    wait_until(&is_waiting);
    ck_assert_int_eq(guard_dump(ends[1]), 0);
    atomic_store(&is_dumped, true);
    return NULL;
}

START_TEST(a_thread_that_is_asked_what_it_holds_is_not_cancelled_in_its_handler)
{
    int ends[2];
    pthread_t dumper;
    ck_assert_int_eq(pipe(ends), 0);
    ck_assert_int_eq(pthread_create(&dumper, NULL, dump_others, ends), 0);
    run_with_cancel_pending(be_dumped, NULL);
    ck_assert_int_eq(pthread_join(dumper, NULL), 0);
}
END_TEST

static void *fault(void *arg)
{
    pthread_cancel(pthread_self());
    raise(*(const int *)arg);
    return NULL;
}

static void die_of_signal(void *arg)
{
    pthread_t thread;
    guard_fatal_signals();
    pthread_create(&thread, NULL, fault, arg);
    pthread_join(thread, NULL);
}

START_TEST(a_fatal_signal_is_fatal_with_a_cancel_pending)
{
    child_result result;
    int signo = SIGILL;
    child_run(die_of_signal, &signo, &result);
    child_expect_signal(&result, SIGILL);
    ck_assert_ptr_nonnull(strstr(result.text, "guard: fatal: SIGILL"));
}
END_TEST

/* ------------------------------------------------------------------------------------------------- reports -- */

static void *panic_uncaught(void *arg)
{
    (void)arg;
    pthread_cancel(pthread_self());
    guard_panic(7, "nobody recovers");
    return NULL;
}

static void die_of_panic(void *arg)
{
    pthread_t thread;
    pthread_create(&thread, NULL, panic_uncaught, arg);
    pthread_join(thread, NULL);
}

START_TEST(an_uncaught_panic_is_reported_with_a_cancel_pending)
{
    child_result result;
    child_run(die_of_panic, NULL, &result);
    child_expect_abort(&result);
    ck_assert_ptr_nonnull(strstr(result.text, "nobody recovers"));
}
END_TEST

static void *note_something(void *arg)
{
    pthread_cancel(pthread_self());
    guard_note("%s", (const char *)arg);
    atomic_store(&has_returned, true);
    pthread_testcancel();
    return NULL;
}

START_TEST(a_note_is_no_cancellation_point)
{
    run_with_cancel_pending(note_something, "of a thread that is to be cancelled");
}
END_TEST

/* ---------------------------------------------------------------------------------------------------- log -- */

static void *log_something(void *arg)
{
    guard_log *log = arg;
    guard_log_write(log, GUARD_LOG_INFO, "first");
    guard_log_flush(log, 1000);
    task_wait(task_named("guard-log"), 'S');
    pthread_cancel(pthread_self());
    guard_log_write(log, GUARD_LOG_INFO, "last");
    atomic_store(&has_returned, true);
    pthread_testcancel();
    return NULL;
}

/* Whoever wakes the log's thread has taken that upon itself: a cancel in between and nobody ever would. */
START_TEST(a_log_is_woken_by_a_thread_that_is_to_be_cancelled)
{
    GUARD_AUTO(s);
    int ends[2];
    guard_log_options options = {.site_lines = 1000000, .all_lines = 1000000, .close_ms = 500};
    ck_assert_int_eq(pipe(ends), 0);
    guard_log *log = guard_log_open(s, "test", &options);
    guard_log_to_descriptor(log, ends[1]);
    run_with_cancel_pending(log_something, log);
    ck_assert_int_eq(guard_log_flush(log, 5000), 1);
    guard_log_figures figures;
    guard_log_read(log, &figures);
    ck_assert_uint_eq(figures.written, 2);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ metrics -- */

static void collect_slowly(guard_metrics_page *page, void *arg)
{
    (void)page;
    (void)arg;
    pthread_testcancel(); /* as printf(3) and many others */
}

static void *read_metrics(void *arg)
{
    GUARD_AUTO(s);
    (void)arg;
    guard_stack_free(guard_stack_new());
    pthread_cancel(pthread_self());
    atomic_store(&has_returned, guard_metrics_text(s, NULL) != NULL);
    pthread_testcancel();
    return NULL;
}

START_TEST(a_reading_of_metrics_is_not_cancelled_in_a_collector)
{
    GUARD_AUTO(s);
    guard_metrics_collect(s, collect_slowly, NULL);
    run_with_cancel_pending(read_metrics, NULL);
    ck_assert_ptr_nonnull(guard_metrics_text(s, NULL)); /* the lock was given back */
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        who_cancels_another_thread_is_not_cancelled_under_the_lock,
        a_descriptor_is_settled_with_a_cancel_pending,
        a_signal_that_cancels_the_process_cancels_no_thread_in_its_handler,
        a_thread_that_is_asked_what_it_holds_is_not_cancelled_in_its_handler,
        a_fatal_signal_is_fatal_with_a_cancel_pending,
        an_uncaught_panic_is_reported_with_a_cancel_pending,
        a_note_is_no_cancellation_point,
        a_log_is_woken_by_a_thread_that_is_to_be_cancelled,
        a_reading_of_metrics_is_not_cancelled_in_a_collector,
    };
    return suite_run("pthread_cancel", tests, sizeof tests / sizeof *tests);
}
