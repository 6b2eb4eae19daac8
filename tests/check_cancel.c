/* SPDX-License-Identifier: MIT */
/* check_cancel.c: work ends early when it is cancelled or late, at a checkpoint, and nowhere where that is masked. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_cancel.h>

#include "suite.h"
#include "trace.h"
#include "worker.h"

/* ------------------------------------------------------------------------------------------- checkpoints -- */

static void pass_a_checkpoint(void *arg)
{
    (void)arg;
    guard_checkpoint();
    guard_cancel_point();
    trace_add("passed");
}

START_TEST(a_checkpoint_passes_while_nobody_asks)
{
    guard_error error;
    ck_assert_int_eq(guard_run(pass_a_checkpoint, NULL, &error), 0);
    trace_expect("passed");
    ck_assert_int_eq(guard_cancelled(), 0);
    ck_assert_int_eq(guard_remaining_ms(-1), -1);
    ck_assert_int_eq(guard_remaining_ms(70), 70);
}
END_TEST

static void cancel_myself(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, trace_run, (void *)"defer");
    ck_assert_int_eq(guard_cancel_thread(pthread_self()), 1);
    guard_checkpoint();
    trace_add("not reached");
}

START_TEST(a_cancel_panics_at_the_next_checkpoint_and_is_sticky_until_cleared)
{
    guard_error error;
    ck_assert_int_eq(guard_run(cancel_myself, NULL, &error), ECANCELED);
    ck_assert_int_eq(error.domain, GUARD_CANCELLED);
    trace_expect("run defer");
    ck_assert_int_eq(guard_cancelled(), 1);
    ck_assert_int_eq(guard_run(pass_a_checkpoint, NULL, &error), ECANCELED);
    trace_expect("");
    guard_cancel_clear();
    ck_assert_int_eq(guard_cancelled(), 0);
    ck_assert_int_eq(guard_run(pass_a_checkpoint, NULL, &error), 0);
}
END_TEST

static void spin(void *arg)
{
    GUARD_AUTO(s);
    (void)s;
    worker_is_ready(arg);
    for (;;) {
        guard_checkpoint();
    }
}

START_TEST(another_thread_is_cancelled_at_its_checkpoint)
{
    worker w;
    worker_start(&w, spin);
    ck_assert_int_eq(guard_cancel_thread(w.thread), 1);
    worker_join(&w);
    ck_assert_int_eq(w.code, ECANCELED);
    ck_assert_int_eq(w.error.domain, GUARD_CANCELLED);
    ck_assert_int_eq(guard_cancelled(), 0);
}
END_TEST

static void wait_forever(void *arg)
{
    GUARD_AUTO(s);
    (void)s;
    worker_is_ready(arg);
    guard_wait_descriptor(-1, 0, -1);
}

START_TEST(a_wait_of_another_thread_ends_when_it_is_cancelled)
{
    worker w;
    worker_start(&w, wait_forever);
    ck_assert_int_eq(guard_cancel_thread(w.thread), 1);
    worker_join(&w);
    ck_assert_int_eq(w.code, ECANCELED);
}
END_TEST

static void *do_nothing(void *arg)
{
    return arg;
}

START_TEST(a_thread_that_never_used_the_library_cannot_be_cancelled)
{
    pthread_t thread;
    ck_assert_int_eq(pthread_create(&thread, NULL, do_nothing, NULL), 0);
    ck_assert_int_eq(guard_cancel_thread(thread), 0);
    pthread_join(thread, NULL);
}
END_TEST

/* --------------------------------------------------------------------------------------------- deadlines -- */

static void wait_past(void *arg)
{
    int64_t *ms = arg;
    GUARD_AUTO(s);
    guard_deadline(s, *ms);
    guard_wait_descriptor(-1, 0, -1);
}

START_TEST(a_deadline_ends_a_wait)
{
    guard_error error;
    int64_t ms = 20;
    int64_t begun = now_ms();
    ck_assert_int_eq(guard_run(wait_past, &ms, &error), ETIMEDOUT);
    ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
    ck_assert_int_ge(now_ms() - begun, 19);
    /* The scope is closed, and its deadline with it. */
    ck_assert_int_eq(guard_run(pass_a_checkpoint, NULL, &error), 0);
    ck_assert_int_eq(guard_remaining_ms(-1), -1);
}
END_TEST

static void nest_deadlines(void *arg)
{
    (void)arg;
    GUARD_AUTO(outer);
    guard_deadline(outer, 100000);
    {
        GUARD_AUTO(inner);
        guard_deadline(inner, 200000);
        ck_assert_int_le(guard_remaining_ms(-1), 100000);
        guard_deadline(inner, 5000);
        ck_assert_int_le(guard_remaining_ms(-1), 5000);
        ck_assert_int_gt(guard_remaining_ms(-1), 0);
        ck_assert_int_eq(guard_remaining_ms(7), 7);
        guard_deadline(inner, -1);
        ck_assert_int_gt(guard_remaining_ms(-1), 5000);
        guard_deadline(inner, 0);
        ck_assert_int_eq(guard_remaining_ms(-1), 0);
    }
    ck_assert_int_gt(guard_remaining_ms(-1), 5000);
    guard_checkpoint();
    guard_deadline(outer, 0);
    GUARD_AUTO(inherits);
    (void)inherits;
    guard_checkpoint();
}

START_TEST(a_deadline_is_inherited_inwards_and_the_nearest_counts)
{
    guard_error error;
    ck_assert_int_eq(guard_run(nest_deadlines, NULL, &error), ETIMEDOUT);
    ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
}
END_TEST

static void deadline_forms(void *arg)
{
    guard_scope *scope = arg;
    guard_deadline(scope, 10);
}

START_TEST(a_deadline_on_an_owner_or_before_now_is_misuse)
{
    guard_error error;
    guard_owner *owner = guard_owner_new();
    ck_assert_int_eq(guard_run(deadline_forms, guard_owner_scope(owner), &error), GUARD_MISUSE_SCOPE);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
    guard_owner_close(owner);
    int64_t ms = -2;
    ck_assert_int_eq(guard_run(wait_past, &ms, &error), GUARD_MISUSE_ARGUMENT);
}
END_TEST

/* ------------------------------------------------------------------------------------------------- masks -- */

static void checkpoint_in_a_defer(void *name)
{
    ck_assert_int_eq(guard_masked(), 1);
    ck_assert_int_eq(guard_cancel_descriptor(), -1);
    guard_checkpoint();
    guard_cancel_point();
    guard_sleep(0);
    ck_assert_int_eq(guard_run(pass_a_checkpoint, NULL, NULL), 0);
    trace_add("%s was masked", (const char *)name);
}

static void end_in_defers(void *arg)
{
    int how = *(int *)arg;
    GUARD_AUTO(s);
    guard_deadline(s, 0);
    guard_defer(s, checkpoint_in_a_defer, (void *)"two");
    guard_defer(s, checkpoint_in_a_defer, (void *)"one");
    if (how == 1) {
        guard_panic(5, "five");
    }
}

START_TEST(deferred_functions_are_masked_whether_their_scope_returns_or_panics)
{
    for (int how = 0; how < 2; how++) {
        ck_assert_int_eq(guard_cancel_thread(pthread_self()), 1);
        ck_assert_int_eq(guard_run(end_in_defers, &how, NULL), how == 1 ? 5 : 0);
        trace_expect("passed, one was masked, passed, two was masked");
        guard_cancel_clear();
    }
}
END_TEST

static void recover_then_checkpoint(guard_recovery *recovery, void *arg)
{
    (void)arg;
    guard_recover(recovery);
}

static void defer_after_a_recovery(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, checkpoint_in_a_defer, (void *)"after");
    guard_defer_recover(s, recover_then_checkpoint, NULL);
    guard_cancel_thread(pthread_self());
    guard_panic(1, "one");
}

START_TEST(what_runs_after_a_recovery_is_masked_too)
{
    ck_assert_int_eq(guard_run(defer_after_a_recovery, NULL, NULL), 0);
    trace_expect("passed, after was masked");
}
END_TEST

static void masked_work(void *arg)
{
    (void)arg;
    GUARD_AUTO(outer);
    guard_deadline(outer, 0);
    {
        GUARD_AUTO(s);
        guard_mask(s);
        GUARD_AUTO(inner);
        ck_assert_int_eq(guard_masked(), 1);
        ck_assert_int_eq(guard_remaining_ms(-1), -1);
        guard_checkpoint();
        /* A deadline that was set inside the mask counts. */
        guard_deadline(inner, 50000);
        ck_assert_int_gt(guard_remaining_ms(-1), 0);
        guard_checkpoint();
        ck_assert_int_eq(guard_cancelled(), 1);
        trace_add("masked");
    }
    ck_assert_int_eq(guard_masked(), 0);
    trace_add("unmasked");
    guard_checkpoint();
    trace_add("not reached");
}

START_TEST(a_mask_ends_with_its_scope_and_outer_deadlines_do_not_count_in_it)
{
    guard_error error;
    guard_cancel_thread(pthread_self());
    ck_assert_int_eq(guard_run(masked_work, NULL, &error), ECANCELED);
    trace_expect("masked, unmasked");
}
END_TEST

static void panic_out_of_a_mask(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_mask(s);
    guard_panic(3, "three");
}

START_TEST(a_panic_out_of_a_mask_ends_it)
{
    ck_assert_int_eq(guard_run(panic_out_of_a_mask, NULL, NULL), 3);
    ck_assert_int_eq(guard_masked(), 0);
    guard_cancel_thread(pthread_self());
    ck_assert_int_eq(guard_run(pass_a_checkpoint, NULL, NULL), ECANCELED);
}
END_TEST

static void unmask_early(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_mask(s);
    guard_checkpoint();
    guard_unmask(s);
    trace_add("unmasked");
    guard_checkpoint();
}

START_TEST(a_mask_can_end_early)
{
    guard_cancel_thread(pthread_self());
    ck_assert_int_eq(guard_run(unmask_early, NULL, NULL), ECANCELED);
    trace_expect("unmasked");
}
END_TEST

/* ------------------------------------------------------------------------------------------------- waits -- */

START_TEST(a_wait_returns_what_poll_found_or_0_at_its_own_end)
{
    int ends[2];
    ck_assert_int_eq(pipe(ends), 0);
    ck_assert_int_eq(guard_wait_descriptor(ends[0], POLLIN, 0), 0);
    int64_t begun = now_ms();
    ck_assert_int_eq(guard_wait_descriptor(ends[0], POLLIN, 15), 0);
    ck_assert_int_ge(now_ms() - begun, 14);
    ck_assert_int_eq(write(ends[1], "x", 1), 1);
    ck_assert_int_eq(guard_wait_descriptor(ends[0], POLLIN, -1), POLLIN);
    ck_assert_int_eq(guard_wait_descriptor(ends[1], POLLOUT, -1), POLLOUT);
    close(ends[0]);
    close(ends[1]);
}
END_TEST

START_TEST(the_descriptor_is_readable_from_a_cancel_to_its_clear)
{
    struct pollfd wake = {.fd = guard_cancel_descriptor(), .events = POLLIN};
    ck_assert_int_ge(wake.fd, 0);
    ck_assert_int_eq(poll(&wake, 1, 0), 0);
    guard_cancel_thread(pthread_self());
    guard_cancel_thread(pthread_self());
    ck_assert_int_eq(poll(&wake, 1, 0), 1);
    ck_assert_int_eq(guard_cancel_descriptor(), wake.fd);
    ck_assert_int_eq(poll(&wake, 1, 0), 1);
    guard_cancel_clear();
    ck_assert_int_eq(guard_cancel_descriptor(), wake.fd);
    ck_assert_int_eq(poll(&wake, 1, 0), 0);
}
END_TEST

/* ------------------------------------------------------------------------------------------- interrupts -- */

/* A foreign call that only another thread can stop. */
static void stop_the_call(void *arg)
{
    sem_post(arg);
}

static void call_until_stopped(void *arg)
{
    sem_t stopped;
    guard_interrupt interrupt;
    sem_init(&stopped, 0, 0);
    guard_interrupt_open(&interrupt, stop_the_call, &stopped);
    worker_is_ready(arg);
    while (sem_wait(&stopped) != 0) {
    }
    guard_interrupt_close(&interrupt);
    ck_assert_uint_ge(interrupt.called, 1);
    sem_destroy(&stopped);
    guard_checkpoint();
}

START_TEST(a_cancel_interrupts_a_foreign_call)
{
    worker w;
    worker_start(&w, call_until_stopped);
    guard_cancel_thread(w.thread);
    worker_join(&w);
    ck_assert_int_eq(w.code, ECANCELED);
}
END_TEST

static void call_with_a_deadline(void *arg)
{
    worker w = {.code = 0};
    GUARD_AUTO(s);
    guard_deadline(s, *(int *)arg);
    sem_init(&w.ready, 0, 0);
    call_until_stopped(&w);
}

START_TEST(a_deadline_interrupts_a_foreign_call)
{
    guard_error error;
    for (int ms = 30; ms >= 0; ms -= 10) {
        ck_assert_int_eq(guard_run(call_with_a_deadline, &ms, &error), ETIMEDOUT);
    }
}
END_TEST

static void count_the_call(void *arg)
{
    __atomic_fetch_add((unsigned *)arg, 1, __ATOMIC_SEQ_CST);
}

START_TEST(an_interrupt_is_repeated_until_it_is_closed_and_not_called_after)
{
    unsigned count = 0;
    guard_interrupt interrupt;
    guard_cancel_thread(pthread_self());
    guard_interrupt_open(&interrupt, count_the_call, &count);
    while (__atomic_load_n(&count, __ATOMIC_SEQ_CST) < 3) {
    }
    guard_interrupt_close(&interrupt);
    unsigned at_close = __atomic_load_n(&count, __ATOMIC_SEQ_CST);
    ck_assert_uint_eq(interrupt.called, at_close);
    guard_cancel_clear();
    guard_sleep(3 * GUARD_INTERRUPT_MS);
    ck_assert_uint_eq(__atomic_load_n(&count, __ATOMIC_SEQ_CST), at_close);
}
END_TEST

static void interrupt_in_a_mask(void *arg)
{
    unsigned *count = arg;
    guard_interrupt masked;
    guard_interrupt open;
    unsigned seen = 0;
    GUARD_AUTO(s);
    guard_cancel_thread(pthread_self());
    guard_interrupt_open(&open, count_the_call, &seen); /* shows that the watcher was here */
    guard_mask(s);
    guard_interrupt_open(&masked, count_the_call, count);
    while (__atomic_load_n(&seen, __ATOMIC_SEQ_CST) < 3) {
    }
    guard_interrupt_close(&masked);
    guard_interrupt_close(&open);
}

START_TEST(a_masked_foreign_call_is_not_interrupted)
{
    unsigned count = 0;
    ck_assert_int_eq(guard_run(interrupt_in_a_mask, &count, NULL), 0);
    ck_assert_uint_eq(count, 0);
}
END_TEST

/* --------------------------------------------------------------------------------------------- signals -- */

START_TEST(a_signal_cancels_at_the_next_checkpoint)
{
    guard_error error;
    guard_cancel_on_signal(SIGTERM, 0);
    ck_assert_int_eq(guard_cancel_signal(), 0);
    raise(SIGTERM);
    ck_assert_int_eq(guard_cancelled(), 1);
    ck_assert_int_eq(guard_cancel_signal(), SIGTERM);
    ck_assert_int_eq(guard_run(pass_a_checkpoint, NULL, &error), ECANCELED);
    ck_assert_int_eq(error.domain, GUARD_CANCELLED);
    ck_assert_ptr_nonnull(strstr(error.message, "SIGTERM"));
    /* Sticky; this thread's own cancel is another. */
    guard_cancel_clear();
    ck_assert_int_eq(guard_run(pass_a_checkpoint, NULL, &error), ECANCELED);
    guard_cancel_signal_clear();
    ck_assert_int_eq(guard_cancelled(), 0);
    ck_assert_int_eq(guard_run(pass_a_checkpoint, NULL, &error), 0);
    raise(SIGTERM);
    ck_assert_int_eq(guard_run(pass_a_checkpoint, NULL, &error), ECANCELED);
}
END_TEST

static void spin_through_the_grace(void *arg)
{
    int64_t *asked = arg;
    *asked = now_ms();
    raise(SIGINT);
    ck_assert_int_eq(guard_cancelled(), 1);
    for (;;) {
        guard_checkpoint();
    }
}

static void wait_through_the_grace(void *arg)
{
    int64_t *asked = arg;
    *asked = now_ms();
    raise(SIGINT);
    guard_checkpoint();
    guard_wait_descriptor(-1, 0, -1);
}

START_TEST(a_signal_is_visible_at_once_and_panics_after_its_grace)
{
    guard_fn *const ways[] = {spin_through_the_grace, wait_through_the_grace};
    guard_cancel_on_signal(SIGINT, 50);
    for (int i = 0; i < 2; i++) {
        int64_t asked = 0;
        ck_assert_int_eq(guard_run(ways[i], &asked, NULL), ECANCELED);
        ck_assert_int_ge(now_ms() - asked, 49); /* both are rounded down */
        guard_cancel_signal_clear();
    }
}
END_TEST

START_TEST(a_second_signal_ends_the_grace)
{
    guard_cancel_on_signal(SIGINT, -1);
    raise(SIGINT);
    ck_assert_int_eq(guard_cancelled(), 1);
    ck_assert_int_eq(guard_run(pass_a_checkpoint, NULL, NULL), 0);
    raise(SIGINT);
    ck_assert_int_eq(guard_run(pass_a_checkpoint, NULL, NULL), ECANCELED);
}
END_TEST

START_TEST(a_signal_cancels_every_thread_those_that_wait_work_or_start_later)
{
    worker waits;
    worker works;
    worker late;
    guard_cancel_on_signal(SIGTERM, 0);
    worker_start(&waits, wait_forever);
    worker_start(&works, spin);
    kill(getpid(), SIGTERM);
    worker_join(&waits);
    worker_join(&works);
    worker_start(&late, spin);
    worker_join(&late);
    ck_assert_int_eq(waits.code, ECANCELED);
    ck_assert_int_eq(works.code, ECANCELED);
    ck_assert_int_eq(late.code, ECANCELED);
}
END_TEST

static void *raise_in_another_thread(void *arg)
{
    raise(SIGTERM);
    return arg;
}

START_TEST(a_signal_that_another_thread_receives_ends_a_wait)
{
    worker w;
    pthread_t other;
    guard_cancel_on_signal(SIGTERM, 0);
    worker_start(&w, wait_forever);
    ck_assert_int_eq(pthread_create(&other, NULL, raise_in_another_thread, NULL), 0);
    worker_join(&w);
    pthread_join(other, NULL);
    ck_assert_int_eq(w.code, ECANCELED);
}
END_TEST

static void signal_arguments(void *arg)
{
    const int *arguments = arg;
    guard_cancel_on_signal(arguments[0], arguments[1]);
}

START_TEST(a_signal_that_cannot_be_caught_is_misuse)
{
    static const int wrong[][2] = {{SIGKILL, 0}, {0, 0},        {-1, 0},
                                   {10000, 0},   {SIGTERM, -2}, {SIGSEGV, 0}, /* which would come again and again */
                                   {SIGBUS, -1}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        guard_error error;
        ck_assert_int_eq(guard_run(signal_arguments, (void *)(uintptr_t)wrong[i], &error), GUARD_MISUSE_ARGUMENT);
        ck_assert_int_eq(error.domain, GUARD_MISUSE);
    }
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_checkpoint_passes_while_nobody_asks,
        a_cancel_panics_at_the_next_checkpoint_and_is_sticky_until_cleared,
        another_thread_is_cancelled_at_its_checkpoint,
        a_wait_of_another_thread_ends_when_it_is_cancelled,
        a_thread_that_never_used_the_library_cannot_be_cancelled,
        a_deadline_ends_a_wait,
        a_deadline_is_inherited_inwards_and_the_nearest_counts,
        a_deadline_on_an_owner_or_before_now_is_misuse,
        deferred_functions_are_masked_whether_their_scope_returns_or_panics,
        what_runs_after_a_recovery_is_masked_too,
        a_mask_ends_with_its_scope_and_outer_deadlines_do_not_count_in_it,
        a_panic_out_of_a_mask_ends_it,
        a_mask_can_end_early,
        a_wait_returns_what_poll_found_or_0_at_its_own_end,
        the_descriptor_is_readable_from_a_cancel_to_its_clear,
        a_cancel_interrupts_a_foreign_call,
        a_deadline_interrupts_a_foreign_call,
        an_interrupt_is_repeated_until_it_is_closed_and_not_called_after,
        a_masked_foreign_call_is_not_interrupted,
        a_signal_cancels_at_the_next_checkpoint,
        a_signal_is_visible_at_once_and_panics_after_its_grace,
        a_second_signal_ends_the_grace,
        a_signal_cancels_every_thread_those_that_wait_work_or_start_later,
        a_signal_that_another_thread_receives_ends_a_wait,
        a_signal_that_cannot_be_caught_is_misuse,
    };
    return suite_run("cancel", tests, sizeof tests / sizeof *tests);
}
