/* SPDX-License-Identifier: MIT */
/*
 * check_unwind.c: threads end by pthread_exit, pthread_cancel and guard_exit_thread, and code is left by longjmp (behaviours 19, 51).
 *
 * It is built twice: with -fexceptions, where a foreign unwind runs the scopes it passes, and as check_unwind_plain with
 * -fno-exceptions, where what is passed is released or reported when the thread ends. LEAVES says which.
 */
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_process.h>

#include "calls.h"
#include "child.h"
#include "fault_memory.h"
#include "suite.h"

#ifdef __EXCEPTIONS
#define LEAVES(run, left) (run)
#else
#define LEAVES(run, left) (left)
#endif

/* What happened, in the threads of a test, one after the other. */
static char events[2048];

static void event(const char *what, const char *name)
{
    size_t length = strlen(events);
    snprintf(events + length, sizeof events - length, "%s%s %s", length > 0 ? ", " : "", what, name);
}

static void events_expect(const char *text)
{
    ck_assert_str_eq(events, text);
    events[0] = '\0';
}

static void run(void *name)
{
    event("run", name);
}

static void release(void *name)
{
    event("release", name);
}

static const guard_kind heap_kind = {.name = "heap kind", .release = release, .flags = GUARD_KIND_HEAP};
static const guard_kind frame_kind = {.name = "frame kind", .release = release};

/* The note without its file names and lines, which are not what is tested. */
static unsigned notes;
static char note[512];

static void take_note(const char *text)
{
    notes++;
    snprintf(note, sizeof note, "%s", text);
}

typedef struct ending {
    guard_fn *work;
    sem_t ready;
} ending;

static void *ending_main(void *arg)
{
    ending *e = arg;
    e->work(e);
    return "returned";
}

/* Runs the work in a thread of its own, cancels it once it is ready, and returns how it ended. */
static void *end_thread(guard_fn *work, int cancel)
{
    ending e = {.work = work};
    pthread_t thread;
    void *result;
    guard_note_handler(take_note);
    sem_init(&e.ready, 0, 0);
    ck_assert_int_eq(pthread_create(&thread, NULL, ending_main, &e), 0);
    if (cancel) {
        while (sem_wait(&e.ready) != 0) {
        }
        ck_assert_int_eq(pthread_cancel(thread), 0);
    }
    ck_assert_int_eq(pthread_join(thread, &result), 0);
    sem_destroy(&e.ready);
    return result;
}

/* A cancellation point that lasts until the cancel. */
static void wait_for_the_cancel(ending *e)
{
    sem_post(&e->ready);
    for (;;) {
        pause();
    }
}

/* ------------------------------------------------------------------------------ pthread_exit and _cancel -- */

static void hold(guard_scope *s, const char *one, const char *two, const char *three)
{
    guard_defer_kind(s, &heap_kind, (void *)(uintptr_t)one);
    guard_defer(s, run, (void *)(uintptr_t)two);
    guard_defer_kind(s, &heap_kind, (void *)(uintptr_t)three);
}

static __attribute__((noinline)) void inner_exit(void)
{
    GUARD_AUTO(s);
    hold(s, "4", "5", "6");
    guard_defer_kind(s, &frame_kind, (void *)"7");
    pthread_exit((void *)"exited");
}

static void outer_exit(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    hold(s, "1", "2", "3");
    inner_exit();
}

START_TEST(pthread_exit_runs_or_releases_what_it_passes_newest_first)
{
    ck_assert_str_eq(end_thread(outer_exit, 0), "exited");
    events_expect(LEAVES("release 7, release 6, run 5, release 4, release 3, run 2, release 1",
                         "release 6, release 4, release 3, release 1"));
    ck_assert_uint_eq(notes, LEAVES(0, 1));
#ifndef __EXCEPTIONS
    ck_assert_ptr_nonnull(strstr(note, "3 deferred functions were not run"));
    ck_assert_ptr_nonnull(strstr(note, "frame kind at check_unwind.c:"));
    ck_assert_ptr_nonnull(strstr(note, "function at check_unwind.c:"));
#endif
}
END_TEST

static __attribute__((noinline)) void inner_cancel(ending *e)
{
    GUARD_AUTO(s);
    hold(s, "4", "5", "6");
    wait_for_the_cancel(e);
}

static void outer_cancel(void *arg)
{
    GUARD_AUTO(s);
    hold(s, "1", "2", "3");
    inner_cancel(arg);
}

START_TEST(pthread_cancel_runs_or_releases_what_it_passes_newest_first)
{
    ck_assert_ptr_eq(end_thread(outer_cancel, 1), PTHREAD_CANCELED);
    events_expect(LEAVES("release 6, run 5, release 4, release 3, run 2, release 1",
                         "release 6, release 4, release 3, release 1"));
    ck_assert_uint_eq(notes, LEAVES(0, 1));
}
END_TEST

static void cancel_in_a_border(void *arg)
{
    GUARD_AUTO(s);
    hold(s, "1", "2", "3");
    guard_error error;
    guard_run(outer_cancel, arg, &error);
    event("not", "reached");
}

START_TEST(a_cancel_passes_guard_run)
{
    ck_assert_ptr_eq(end_thread(cancel_in_a_border, 1), PTHREAD_CANCELED);
    events_expect(LEAVES("release 6, run 5, release 4, release 3, run 2, release 1, release 3, run 2, release 1",
                         "release 6, release 4, release 3, release 1, release 3, release 1"));
}
END_TEST

/* The frame outside has cleanup in either build, those of the library's own functions that call back. */
static void cancel_in_a_wait(void *arg)
{
    ending *e = arg;
    GUARD_AUTO(s);
    hold(s, "1", "2", "3");
    sem_post(&e->ready);
    guard_wait_descriptor(-1, 0, -1);
}

START_TEST(a_wait_of_the_library_is_a_cancellation_point)
{
    ck_assert_ptr_eq(end_thread(cancel_in_a_wait, 1), PTHREAD_CANCELED);
    events_expect(LEAVES("release 3, run 2, release 1", "release 3, release 1"));
}
END_TEST

static void spin_at_cancel_points(void *arg)
{
    ending *e = arg;
    GUARD_AUTO(s);
    hold(s, "1", "2", "3");
    sem_post(&e->ready);
    for (;;) {
        int state = guard_foreign_open();
        pthread_testcancel(); /* closed out */
        guard_foreign_close(state);
        guard_cancel_point();
    }
}

START_TEST(a_foreign_call_closes_a_cancel_out_and_a_cancel_point_delivers_it)
{
    ck_assert_ptr_eq(end_thread(spin_at_cancel_points, 1), PTHREAD_CANCELED);
    events_expect(LEAVES("release 3, run 2, release 1", "release 3, release 1"));
}
END_TEST

/* A deferred function is cut by the cancel; what is registered before it still runs, once. */
static void wait_in_a_defer(void *arg)
{
    event("cut", "here");
    wait_for_the_cancel(arg);
}

static void return_into_a_cancel(void *arg)
{
    GUARD_AUTO(outer);
    guard_defer_kind(outer, &heap_kind, (void *)"0");
    {
        GUARD_AUTO(s);
        hold(s, "1", "2", "3");
        guard_defer(s, wait_in_a_defer, arg);
    }
    event("not", "reached");
}

static void return_into_a_cancel_with_one(void *arg)
{
    GUARD_AUTO(outer);
    guard_defer_kind(outer, &heap_kind, (void *)"0");
    {
        GUARD_AUTO(s);
        guard_defer(s, wait_in_a_defer, arg);
    }
    event("not", "reached");
}

static void close_into_a_cancel(void *arg)
{
    GUARD_AUTO(outer);
    guard_defer_kind(outer, &heap_kind, (void *)"0");
    guard_scope s;
    guard_scope_open(&s);
    hold(&s, "1", "2", "3");
    guard_defer(&s, wait_in_a_defer, arg);
    guard_scope_close(&s);
    event("not", "reached");
}

static void close_an_owner_into_a_cancel(void *arg)
{
    GUARD_AUTO(outer);
    guard_defer_kind(outer, &heap_kind, (void *)"0");
    guard_owner *owner = guard_owner_new();
    hold(guard_owner_scope(owner), "1", "2", "3");
    guard_defer(guard_owner_scope(owner), wait_in_a_defer, arg);
    guard_owner_close(owner);
    event("not", "reached");
}

/* The library's own frames always unwind: the rest of a scope whose close was cut runs in either build. */
START_TEST(a_cancel_inside_a_deferred_function_does_not_lose_the_rest)
{
    guard_fn *const whole[] = {return_into_a_cancel, close_into_a_cancel, close_an_owner_into_a_cancel};
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) {
        ck_assert_ptr_eq(end_thread(whole[i], 1), PTHREAD_CANCELED);
        events_expect("cut here, release 3, run 2, release 1, release 0");
    }
    ck_assert_ptr_eq(end_thread(return_into_a_cancel_with_one, 1), PTHREAD_CANCELED);
    events_expect("cut here, release 0");
    ck_assert_uint_eq(notes, 0);
}
END_TEST

/* AddressSanitizer stops in its own bookkeeping of a stack that a forced unwind leaves in the middle of a panic (asan_thread.cpp). */
#ifndef WITH_ASAN
static void panic_into_a_cancel(void *arg)
{
    GUARD_AUTO(s);
    hold(s, "1", "2", "3");
    guard_defer(s, wait_in_a_defer, arg);
    GUARD_AUTO(ended_before);
    guard_defer(ended_before, run, (void *)"first");
    guard_panic(1, "one");
}

static void panic_into_a_cancel_in_a_border(void *arg)
{
    GUARD_AUTO(s);
    guard_defer_kind(s, &heap_kind, (void *)"0");
    guard_run(panic_into_a_cancel, arg, NULL);
    event("not", "reached");
}

START_TEST(a_cancel_inside_a_panic_passes_it_and_runs_the_rest_once)
{
    ck_assert_ptr_eq(end_thread(panic_into_a_cancel_in_a_border, 1), PTHREAD_CANCELED);
    events_expect(LEAVES("run first, cut here, release 3, run 2, release 1, release 0",
                         "run first, cut here, release 3, release 1, release 0"));
    ck_assert_uint_eq(notes, LEAVES(0, 1));
}
END_TEST
#endif

static void panic_in_a_release(void *name)
{
    event("fail", name);
    guard_panic(9, "the release failed");
}

#ifndef __EXCEPTIONS
static const guard_kind failing_kind = {
    .name = "failing kind", .release = panic_in_a_release, .flags = GUARD_KIND_HEAP};

static void exit_with_a_failing_release(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_kind(s, &heap_kind, (void *)"1");
    guard_defer_kind(s, &failing_kind, (void *)"2");
    pthread_exit((void *)"exited");
}

START_TEST(a_release_that_fails_at_the_threads_end_is_noted_and_the_rest_is_released)
{
    ck_assert_str_eq(end_thread(exit_with_a_failing_release, 0), "exited");
    events_expect("fail 2, release 1");
    ck_assert_uint_eq(notes, 1);
    ck_assert_ptr_nonnull(strstr(note, "the release failed"));
}
END_TEST
#else
static void exit_with_a_failing_defer(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, run, (void *)"1");
    guard_defer(s, panic_in_a_release, (void *)"2");
    pthread_exit((void *)"exited");
}

static void child_cancelled_with_a_panic(void *arg)
{
    (void)arg;
    end_thread(exit_with_a_failing_defer, 0);
}

START_TEST(a_panic_in_a_thread_that_exits_is_uncaught)
{
    child_result result;
    child_run(child_cancelled_with_a_panic, NULL, &result);
    child_expect_abort(&result);
    ck_assert_ptr_nonnull(strstr(result.text, "the release failed"));
}
END_TEST
#endif

static void exit_with_copies(void *arg)
{
    char large[200] = "large";
    (void)arg;
    GUARD_AUTO(s);
    guard_reserve(s, 3);
    for (int i = 0; i < 70; i++) {
        guard_defer_copy(s, run, "copy", 5);
        guard_defer_copy(s, run, large, sizeof large);
    }
    guard_dismiss(guard_defer(s, run, NULL));
    guard_ticket dead = guard_defer(s, run, NULL);
    guard_defer_kind(s, &heap_kind, (void *)"kind");
    guard_dismiss(dead);
    for (int i = 0; i < 1500; i++) {
        GUARD_AUTO(inner);
        guard_defer_kind(inner, &heap_kind, (void *)"inner");
    }
    events[0] = '\0';
    pthread_exit((void *)"exited");
}

START_TEST(a_thread_that_exits_gives_its_memory_back)
{
    fault_memory_install();
    guard_run(run, (void *)"main", NULL); /* makes this thread's own state */
    events[0] = '\0';
    size_t before = fault_memory_blocks();
    ck_assert_str_eq(end_thread(exit_with_copies, 0), "exited");
    ck_assert_uint_eq(fault_memory_blocks(), before);
    ck_assert_uint_eq(notes, LEAVES(0, 1));
}
END_TEST

/* --------------------------------------------------------------------------------------- guard_exit_thread -- */

static void see_no_panic(guard_recovery *recovery, void *arg)
{
    (void)arg;
    event(recovery == NULL && guard_panicking() == NULL ? "sees" : "recovers", "nothing");
}

static void inner_goexit(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, run, (void *)"2");
    guard_defer_on(s, GUARD_ON_SUCCESS, run, (void *)"success");
    guard_defer_on(s, GUARD_ON_FAILURE, run, (void *)"failure");
    guard_exit_thread();
}

static void outer_goexit(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, run, (void *)"1");
    guard_defer_recover(s, see_no_panic, NULL);
    guard_run(inner_goexit, NULL, NULL);
    event("not", "reached");
}

/* Go: runtime TestGoexitDefer */
START_TEST(guard_exit_thread_runs_all_defers_over_borders_and_recovers_nothing)
{
    ck_assert_ptr_null(end_thread(outer_goexit, 0));
    events_expect("run failure, run 2, sees nothing, run 1");
    ck_assert_uint_eq(notes, 0);
}
END_TEST

static void fail_hello(void *arg)
{
    (void)arg;
    guard_panic(1, "hello");
}

static void goexit_then_panic(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, run, (void *)"1");
    guard_defer(s, fail_hello, NULL);
    guard_exit_thread();
}

static void goexit_then_panic_in_a_border(void *arg)
{
    guard_run(goexit_then_panic, arg, NULL);
}

static void child_panics_after_exit(void *arg)
{
    (void)arg;
    end_thread(goexit_then_panic_in_a_border, 0);
}

/* Go: runtime PanicAfterGoexit */
START_TEST(a_panic_after_guard_exit_thread_is_fatal)
{
    child_result result;
    child_run(child_panics_after_exit, NULL, &result);
    child_expect_abort(&result);
    ck_assert_ptr_nonnull(strstr(result.text, "panic: hello"));
}
END_TEST

static void recover_it(guard_recovery *recovery, void *arg)
{
    (void)arg;
    event("recover", recovery != NULL ? guard_recovery_error(recovery)->message : "nothing");
    guard_recover(recovery);
}

static void goexit_panic_recover(void *arg)
{
    (void)arg;
    GUARD_AUTO(outer);
    guard_defer(outer, run, (void *)"last");
    GUARD_AUTO(s);
    guard_defer_recover(s, recover_it, NULL);
    guard_defer(s, fail_hello, NULL);
    guard_exit_thread();
}

static void recover_around(void *arg)
{
    guard_run(goexit_panic_recover, arg, NULL);
    event("not", "reached");
}

/* Go: runtime RecoverBeforePanicAfterGoexit */
START_TEST(recovering_a_panic_does_not_undo_guard_exit_thread)
{
    ck_assert_ptr_null(end_thread(recover_around, 0));
    events_expect("recover hello, run last");
}
END_TEST

static void contain_hello(void *arg)
{
    event("contained", guard_run(fail_hello, arg, NULL) == 1 ? "hello" : "nothing");
}

static void goexit_with_a_border_in_a_defer(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, run, (void *)"last");
    guard_defer(s, contain_hello, NULL);
    guard_exit_thread();
}

/* Go: runtime RecoveredPanicAfterGoexit */
START_TEST(a_panic_contained_in_a_defer_does_not_undo_guard_exit_thread)
{
    ck_assert_ptr_null(end_thread(goexit_with_a_border_in_a_defer, 0));
    events_expect("contained hello, run last");
}
END_TEST

static void exit_in_defers(void *arg)
{
    int how = *(const char *)arg;
    GUARD_AUTO(outer);
    guard_defer(outer, run, (void *)"1");
    guard_defer(outer, call_exit_thread, NULL);
    {
        GUARD_AUTO(s);
        guard_defer(s, run, (void *)"2");
        guard_defer(s, call_exit_thread, NULL);
        if (how == 'p') {
            guard_panic(1, "one");
        }
    }
    event("not", "reached");
}

static void exit_in_defers_of_a_return(void *arg)
{
    (void)arg;
    guard_run(exit_in_defers, (void *)"r", NULL);
}

static void exit_in_defers_of_a_panic(void *arg)
{
    (void)arg;
    guard_run(exit_in_defers, (void *)"p", NULL);
}

START_TEST(guard_exit_thread_inside_deferred_functions_runs_the_rest_once)
{
    ck_assert_ptr_null(end_thread(exit_in_defers_of_a_return, 0));
    events_expect("run 2, run 1");
    ck_assert_ptr_null(end_thread(exit_in_defers_of_a_panic, 0));
    events_expect("run 2, run 1");
}
END_TEST

START_TEST(guard_exit_thread_in_a_thread_without_scopes_just_ends_it)
{
    ck_assert_ptr_null(end_thread(call_exit_thread, 0));
    events_expect("");
}
END_TEST

/* ---------------------------------------------------------------------------------------- other threads -- */

static void panic_alone(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, run, (void *)"the other's");
    guard_panic(1, "one");
}

static void panic_contained(void *arg)
{
    guard_run(panic_alone, arg, NULL);
}

START_TEST(a_panic_in_one_thread_does_not_touch_anothers_stack)
{
    {
        GUARD_AUTO(s);
        guard_defer(s, run, (void *)"mine");
        ck_assert_str_eq(end_thread(panic_contained, 0), "returned");
        events_expect("run the other's");
    }
    events_expect("run mine");
}
END_TEST

/* --------------------------------------------------------------------------------------------- foreign jumps -- */

static jmp_buf far;

static __attribute__((noinline)) void jump_out(guard_ticket *ticket)
{
    GUARD_AUTO(s);
    guard_defer(s, run, (void *)"jumped over");
    *ticket = guard_defer_kind(s, &heap_kind, (void *)"kind");
    longjmp(far, 1);
}

static void jump_over_a_scope(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, run, (void *)"outer");
    if (setjmp(far) == 0) {
        jump_out(arg);
    }
    event("back", "here");
}

static void jump_and_go_on(void *arg)
{
    ending *e = arg;
    guard_ticket ticket;
    guard_error error;
    (void)e;
    ck_assert_int_eq(guard_run(jump_over_a_scope, &ticket, &error), GUARD_MISUSE_SCOPE);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
    events_expect("back here, run outer");
    /* Still registered: it can be released by hand. */
    ck_assert_int_eq(guard_pending(ticket), 1);
    guard_release(ticket);
    ck_assert_int_eq(guard_pending(ticket), 0);
    events_expect("release kind");
    ck_assert_int_eq(guard_run(jump_over_a_scope, &ticket, &error), GUARD_MISUSE_SCOPE);
}

START_TEST(a_scope_that_a_longjmp_passed_is_reported_and_not_run)
{
    ck_assert_str_eq(end_thread(jump_and_go_on, 0), "returned");
    /* At the thread's end: the kind of the second jump, and a note about the two functions. */
    events_expect("back here, run outer, release kind");
    ck_assert_uint_eq(notes, 1);
    ck_assert_ptr_nonnull(strstr(note, "2 deferred functions were not run"));
}
END_TEST

static void jump_without_a_border(void *arg)
{
    guard_ticket ticket;
    (void)arg;
    jump_over_a_scope(&ticket);
    event("went", "on");
}

START_TEST(a_longjmp_over_a_scope_without_a_border_is_noted)
{
    ck_assert_str_eq(end_thread(jump_without_a_border, 0), "returned");
    events_expect("back here, run outer, went on, release kind");
    ck_assert_uint_ge(notes, 1);
}
END_TEST

static __attribute__((noinline)) void panic_deepest(void)
{
    GUARD_AUTO(s);
    guard_defer(s, run, (void *)"deeper");
    guard_panic(4, "four");
}

/* Its frame lies over that of the scope that was jumped over. */
static __attribute__((noinline)) void panic_deeper(void)
{
    volatile char room[512];
    GUARD_AUTO(s);
    for (size_t i = 0; i < sizeof room; i++) {
        room[i] = 0x55;
    }
    guard_defer(s, run, (void *)"deeper");
    panic_deepest();
}

static void jump_then_panic(void *arg)
{
    guard_ticket ticket;
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, run, (void *)"outer");
    if (setjmp(far) == 0) {
        jump_out(&ticket);
    }
    panic_deeper();
}

START_TEST(a_panic_after_a_longjmp_over_a_scope_reaches_its_border)
{
    guard_error error;
    guard_note_handler(take_note);
    ck_assert_int_eq(guard_run(jump_then_panic, NULL, &error), 4);
    ck_assert_ptr_nonnull(strstr(events, "run deeper, run deeper"));
    /* The thread's stack is whole afterwards. */
    events[0] = '\0';
    ck_assert_int_eq(guard_run(panic_alone, NULL, &error), 1);
    events_expect("run the other's");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        pthread_exit_runs_or_releases_what_it_passes_newest_first,
        pthread_cancel_runs_or_releases_what_it_passes_newest_first,
        a_cancel_passes_guard_run,
        a_wait_of_the_library_is_a_cancellation_point,
        a_foreign_call_closes_a_cancel_out_and_a_cancel_point_delivers_it,
        a_cancel_inside_a_deferred_function_does_not_lose_the_rest,
#ifndef WITH_ASAN
        a_cancel_inside_a_panic_passes_it_and_runs_the_rest_once,
#endif
#ifndef __EXCEPTIONS
        a_release_that_fails_at_the_threads_end_is_noted_and_the_rest_is_released,
#else
        a_panic_in_a_thread_that_exits_is_uncaught,
#endif
        a_thread_that_exits_gives_its_memory_back,
        guard_exit_thread_runs_all_defers_over_borders_and_recovers_nothing,
        a_panic_after_guard_exit_thread_is_fatal,
        recovering_a_panic_does_not_undo_guard_exit_thread,
        a_panic_contained_in_a_defer_does_not_undo_guard_exit_thread,
        guard_exit_thread_inside_deferred_functions_runs_the_rest_once,
        guard_exit_thread_in_a_thread_without_scopes_just_ends_it,
        a_panic_in_one_thread_does_not_touch_anothers_stack,
        a_scope_that_a_longjmp_passed_is_reported_and_not_run,
        a_longjmp_over_a_scope_without_a_border_is_noted,
        a_panic_after_a_longjmp_over_a_scope_reaches_its_border,
    };
    return suite_run(LEAVES("unwind", "unwind_plain"), tests, sizeof tests / sizeof *tests);
}
