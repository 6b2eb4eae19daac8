/* SPDX-License-Identifier: MIT */
/* check_thread.c: each thread has a stack of its own; only owners travel (behaviour 51). Run under ThreadSanitizer, it finds what they share. */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>

#include <guard/guard.h>

#include "fault_memory.h"
#include "suite.h"
#include "trace.h"

#define THREADS 8
#define TURNS 300

static void one_turn(void *arg)
{
    const int *turn = arg;
    const char *name = "copy";
    GUARD_AUTO(s);
    guard_defer_recover(s, *turn % 3 == 0 ? trace_recover : trace_see, "r");
    guard_defer_copy(s, trace_run_copy, &name, sizeof name);
    guard_owner *owner = guard_owner_new();
    guard_defer_kind(s, &guard_owner_kind, owner);
    guard_reserve(guard_owner_scope(owner), 2);
    guard_defer_kind(guard_owner_scope(owner), &trace_kind, "owned");
    guard_ticket released = guard_defer(s, trace_run, "released");
    for (int i = 0; i < 200; i++) { /* beyond the first records, so that chunks come and go */
        guard_dismiss(guard_defer(s, trace_run, "dismissed"));
        guard_defer_on(s, GUARD_ON_SUCCESS, trace_run, "never");
    }
    guard_release(released);
    if (*turn % 2 == 0) {
        trace_hold("held");
    }
    guard_panic(5, "turn");
}

static void *take_turns(void *arg)
{
    (void)arg;
    for (int turn = 0; turn < TURNS; turn++) {
        guard_error error;
        int code = guard_run(one_turn, &turn, &error);
        ck_assert_int_eq(code, turn % 3 == 0 ? 0 : 5);
        ck_assert_uint_eq(code != 0 ? error.cause_count : 0, turn % 3 != 0 && turn % 2 == 0);
        const char *held = turn % 2 == 0 ? "fail held, " : "";
        char expected[200];
        snprintf(expected, sizeof expected, "run released, %srelease owned, run copy, %s", held,
                 turn % 3 == 0 ? "recover r from turn" : "r sees turn");
        trace_expect(expected);
    }
    return NULL;
}

START_TEST(eight_threads_use_their_own_stacks_at_once)
{
    fault_memory_install();
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, take_turns, NULL), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
    }
    ck_assert_uint_eq(fault_memory_blocks(), 0);
}
END_TEST

/* ---------------------------------------------------------------------------------------- handing over -- */

typedef struct desk {
    pthread_mutex_t lock;
    guard_owner *owner;
    int hands;           /* how often somebody looked */
    unsigned long added; /* belongs to whom the owner belongs */
} desk;

static unsigned long runs;

static void count_run(void *arg)
{
    (void)arg;
    runs++;
}

/* Takes the owner, adds to it, releases what the one before had added, and lays it back. */
static void *handle(void *arg)
{
    desk *this = arg;
    bool last = false;
    while (!last) {
        pthread_mutex_lock(&this->lock);
        guard_owner *owner = this->owner;
        this->owner = NULL;
        last = this->hands++ >= 1000;
        pthread_mutex_unlock(&this->lock);
        if (owner != NULL) {
            guard_ticket first = guard_defer(guard_owner_scope(owner), trace_run, "first");
            guard_defer(guard_owner_scope(owner), count_run, NULL);
            this->added++;
            guard_release(first);
            trace_expect("run first");
            pthread_mutex_lock(&this->lock);
            this->owner = owner;
            pthread_mutex_unlock(&this->lock);
        }
    }
    return NULL;
}

START_TEST(an_owner_goes_from_hand_to_hand_among_threads)
{
    fault_memory_install();
    desk this = {.lock = PTHREAD_MUTEX_INITIALIZER, .owner = guard_owner_new()};
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, handle, &this), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
    }
    ck_assert_ptr_nonnull(this.owner);
    ck_assert_uint_gt(this.added, 0);
    guard_owner_close(this.owner);
    ck_assert_uint_eq(runs, this.added);
}
END_TEST

static void *panic_in_a_thread(void *arg)
{
    return (void *)(uintptr_t)guard_run(trace_fail, arg, NULL);
}

START_TEST(a_panic_in_one_thread_leaves_the_scopes_of_another_alone)
{
    {
        GUARD_AUTO(s);
        guard_defer(s, trace_run, "mine");
        pthread_t thread;
        void *code;
        ck_assert_int_eq(pthread_create(&thread, NULL, panic_in_a_thread, "theirs"), 0);
        ck_assert_int_eq(pthread_join(thread, &code), 0);
        ck_assert_int_eq((int)(uintptr_t)code, TRACE_FAILED);
        ck_assert_str_eq(trace_text(), "");
    }
    trace_expect("run mine");
}
END_TEST

START_TEST(a_threads_memory_is_given_back_at_its_end)
{
    fault_memory_install();
    for (int i = 0; i < 100; i++) {
        pthread_t thread;
        ck_assert_int_eq(pthread_create(&thread, NULL, panic_in_a_thread, "x"), 0);
        ck_assert_int_eq(pthread_join(thread, NULL), 0);
    }
    ck_assert_uint_eq(fault_memory_blocks(), 0);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        eight_threads_use_their_own_stacks_at_once,
        an_owner_goes_from_hand_to_hand_among_threads,
        a_panic_in_one_thread_leaves_the_scopes_of_another_alone,
        a_threads_memory_is_given_back_at_its_end,
    };
    return suite_run("thread", tests, sizeof tests / sizeof *tests);
}
