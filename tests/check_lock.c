/* SPDX-License-Identifier: MIT */
/*
 * check_lock.c: mutexes, read-write locks and semaphores, each by the same calls: they are given back whatever happens, and waited for no
 * longer than asked (behaviour 49). check_mutex.c and check_condition.c have what is peculiar to mutexes.
 */
#include <errno.h>
#include <sched.h>
#include <stdint.h>

#include <guard/guard_cancel.h>
#include <guard/guard_dump.h>

#include "fault_memory.h"
#include "locks.h"
#include "suite.h"

static guard_error error;

static void take_and_panic(void *arg)
{
    (void)arg;
    guard_ticket ticket;
    GUARD_AUTO(s);
    current->take(s, 0, &ticket);
    ck_assert(!is_free());
    guard_panic(7, "with the lock");
}

START_TEST(a_lock_is_never_held_after_a_panic)
{
    lock_begin(&locks[_i]);
    size_t blocks = fault_memory_blocks();
    ck_assert_int_eq(guard_run(take_and_panic, NULL, &error), 7);
    ck_assert_int_eq(error.cause_count, 0);
    ck_assert(is_free());
    ck_assert_uint_eq(fault_memory_blocks(), blocks);
}
END_TEST

static void take_and_release(void *arg)
{
    (void)arg;
    guard_ticket ticket;
    GUARD_AUTO(s);
    for (int i = 0; i < 3; i++) {
        current->take(s, 0, &ticket);
        ck_assert(!is_free());
        guard_release(ticket);
        ck_assert(is_free());
        ck_assert_int_eq(current->try_take(s, &ticket), 1);
        ck_assert(!is_free());
        guard_release(ticket);
        ck_assert(is_free());
    }
    ck_assert_int_eq(current->try_take(s, NULL), 1);
    guard_release(ticket); /* stale */
}

START_TEST(a_lock_is_given_back_early_and_only_once)
{
    lock_begin(&locks[_i]);
    ck_assert_int_eq(guard_run(take_and_release, NULL, &error), GUARD_MISUSE_TICKET);
    ck_assert(is_free());
}
END_TEST

static void take_and_dismiss(void *arg)
{
    (void)arg;
    guard_ticket ticket;
    GUARD_AUTO(s);
    current->take(s, 0, &ticket);
    guard_dismiss(ticket);
}

START_TEST(a_dismissed_lock_stays_the_callers)
{
    lock_begin(&locks[_i]);
    size_t blocks = fault_memory_blocks();
    ck_assert_int_eq(guard_run(take_and_dismiss, NULL, &error), 0);
    ck_assert(!is_free());
    current->block_end();
    ck_assert(is_free());
    ck_assert_uint_eq(fault_memory_blocks(), blocks);
}
END_TEST

static int wait_ms;

static void take_with_deadline(void *arg)
{
    guard_ticket ticket;
    GUARD_AUTO(s);
    for (int i = 0; i < (int)(intptr_t)arg; i++) {
        guard_defer(s, nothing, NULL);
    }
    current->take(s, wait_ms, &ticket);
}

static void *take_on_thread(void *code)
{
    *(int *)code = guard_run(take_with_deadline, NULL, &error);
    return NULL;
}

START_TEST(a_wait_ends_at_its_deadline_with_the_name_of_the_lock)
{
    lock_begin(&locks[_i]);
    const int waits[] = {1, 30, 150, 0};
    current->block();
    for (int i = 0; waits[i] != 0; i++) {
        int code;
        wait_ms = waits[i];
        long long before = now_ms();
        on_thread(take_on_thread, &code);
        long long waited = now_ms() - before;
        ck_assert_int_eq(code, ETIMEDOUT);
        ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
        ck_assert_has(error.message, current->name);
        ck_assert_str_eq(error.file, "locks.c");
        ck_assert_msg(waited >= waits[i] && waited < waits[i] + 5000, "waited %lld ms for %d", waited, waits[i]);
    }
    current->block_end();
    ck_assert(is_free());
}
END_TEST

START_TEST(a_wait_ends_with_the_lock_when_that_is_free)
{
    lock_begin(&locks[_i]);
    const int waits[] = {-1, 0, 60000};
    for (int i = 0; i < 3; i++) {
        pthread_t thread;
        int code;
        wait_ms = waits[i];
        current->block();
        ck_assert_int_eq(pthread_create(&thread, NULL, take_on_thread, &code), 0);
        pause_ms(120); /* into its second slice */
        current->block_end();
        pthread_join(thread, NULL);
        ck_assert_msg(code == 0, "wait %d: %s", waits[i], error.message);
        ck_assert(is_free());
    }
}
END_TEST

static void *try_on_thread(void *answer)
{
    GUARD_AUTO(s);
    guard_ticket ticket = {0};
    *(int *)answer = current->try_take(s, &ticket);
    guard_release(ticket);
    return NULL;
}

static void take_until_deadline(void *arg)
{
    GUARD_AUTO(s);
    guard_deadline(s, 40);
    take_with_deadline(arg);
}

static void *take_late(void *code)
{
    *(int *)code = guard_run(take_until_deadline, NULL, &error);
    return NULL;
}

START_TEST(a_wait_ends_when_it_is_cancelled_or_late)
{
    int code;
    pthread_t thread;
    lock_begin(&locks[_i]);
    size_t blocks = fault_memory_blocks();
    current->block();
    wait_ms = -1;
    on_thread(take_late, &code);
    ck_assert_int_eq(code, ETIMEDOUT);
    ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
    ck_assert_int_eq(pthread_create(&thread, NULL, take_on_thread, &code), 0);
    pause_ms(50); /* either way it ends; as a rule, in its third slice */
    while (!guard_cancel_thread(thread)) {
        sched_yield(); /* it has not used the library yet */
    }
    pthread_join(thread, NULL);
    ck_assert_int_eq(code, ECANCELED);
    ck_assert_int_eq(error.domain, GUARD_CANCELLED);
    ck_assert_uint_eq(fault_memory_blocks(), blocks);
    current->block_end();
    ck_assert(is_free());
}
END_TEST

START_TEST(a_try_does_not_wait)
{
    int answer = 1;
    lock_begin(&locks[_i]);
    current->block();
    on_thread(try_on_thread, &answer);
    ck_assert_int_eq(answer, 0);
    current->block_end();
    on_thread(try_on_thread, &answer);
    ck_assert_int_eq(answer, 1);
    ck_assert(is_free());
}
END_TEST

static void try_once(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    ck_assert_int_eq(current->try_take(s, NULL), 1);
}

START_TEST(without_memory_no_lock_is_taken)
{
    lock_begin(&locks[_i]);
    for (int full = 0; full < 2; full++) {
        int failed = 0;
        size_t blocks = fault_memory_blocks();
        for (unsigned long n = 1;; n++) {
            fault_memory_fail_at(n);
            /* the second time, the thread has no room for the registration */
            int code = guard_run(take_with_deadline, (void *)(intptr_t)(full ? 64 : 0), &error);
            bool hit = fault_memory_was_hit();
            fault_memory_fail_at(0);
            ck_assert(is_free());
            if (!hit) {
                ck_assert_int_eq(code, 0);
                break;
            }
            failed++;
            ck_assert_int_eq(code, ENOMEM);
            ck_assert_int_eq(error.domain, GUARD_MEMORY);
            ck_assert_uint_le(fault_memory_blocks(), blocks + (size_t)full); /* the room that was made is kept */
        }
        ck_assert_int_eq(failed, full ? 2 : 1);
    }
    fault_memory_fail_at(1);
    ck_assert_int_eq(guard_run(try_once, NULL, &error), ENOMEM);
    ck_assert(is_free());
}
END_TEST

START_TEST(a_wait_that_can_never_be_right_is_misuse)
{
    lock_begin(&locks[_i]);
    wait_ms = -2;
    ck_assert_int_eq(guard_run(take_with_deadline, NULL, &error), GUARD_MISUSE_ARGUMENT);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
    ck_assert(is_free());
}
END_TEST

static void describe(void *arg)
{
    (void)arg;
    char text[100];
    guard_ticket ticket;
    GUARD_AUTO(s);
    current->take(s, 0, &ticket);
    ticket.record->action.kind->describe(ticket.record->arg, text, sizeof text);
    ck_assert_has(text, current->name);
    const guard_kind *kind = ticket.record->action.kind;
    int64_t age = guard_dump_clock() - kind->since(ticket.record->arg);
    ck_assert(age >= 0 && age < (int64_t)60 * 1000000000);
    ck_assert_int_gt(ticket.record->place->line, 1);
}

START_TEST(a_held_lock_says_which_it_is)
{
    lock_begin(&locks[_i]);
    ck_assert_int_eq(guard_run(describe, NULL, &error), 0);
}
END_TEST

START_TEST(a_semaphore_is_given_back_by_any_thread)
{
    lock_begin(&locks[LOCK_SEMAPHORE]);
    guard_owner *owner = guard_owner_new();
    guard_semaphore_wait(guard_owner_scope(owner), &semaphore, 0);
    ck_assert_int_eq(close_elsewhere(owner, &error), 0);
    ck_assert(is_free());
}
END_TEST

/* ------------------------------------------------------------------------------------------------ torture -- */

enum { THREADS = 8, ROUNDS = 400 };

static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;

static int at_once(void *arg)
{
    (void)arg;
    return 1;
}

/* No atomics: the locks alone keep these right, which ThreadSanitizer checks. */
static long under_mutex, under_rwlock, under_semaphore;

static void work_under_locks(void *round)
{
    int i = *(int *)round;
    guard_ticket ticket;
    GUARD_AUTO(s);
    GUARD_SCOPE (inner) {
        guard_ticket lock = guard_mutex_lock(inner, &mutex, i % 2 ? &(guard_mutex_options){.wait_ms = -1} : NULL);
        under_mutex++;
        if (i % 3 == 0) {
            guard_release(lock);
        }
        pthread_cond_signal(&condition);
    }
    guard_rwlock_write(s, &rwlock, 0);
    under_rwlock++;
    guard_semaphore_wait(s, &semaphore, -1);
    under_semaphore++;
    if (i % 5 == 0) {
        guard_panic(12, "with two locks");
    }
    if (guard_mutex_try_lock(s, &mutex, NULL, &ticket)) {
        under_mutex++;
        under_mutex--;
        guard_mutex_wait(ticket, &condition, at_once, NULL, 1);
    }
}

static void *torture(void *failures)
{
    for (int i = 0; i < ROUNDS; i++) {
        int code = guard_run(work_under_locks, &i, NULL);
        if (code != (i % 5 == 0 ? 12 : 0)) {
            __atomic_add_fetch((int *)failures, 1, __ATOMIC_SEQ_CST);
        }
    }
    return NULL;
}

START_TEST(many_threads_exclude_each_other_through_panics)
{
    pthread_t threads[THREADS];
    int failures = 0;
    for (int i = 0; i < LOCKS; i++) {
        lock_begin(&locks[i]);
    }
    for (int i = 0; i < THREADS; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, torture, &failures), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    ck_assert_int_eq(failures, 0);
    ck_assert_int_eq(under_mutex, THREADS * ROUNDS);
    ck_assert_int_eq(under_rwlock, THREADS * ROUNDS);
    ck_assert_int_eq(under_semaphore, THREADS * ROUNDS);
    for (int i = 0; i < LOCKS; i++) {
        current = &locks[i];
        ck_assert(is_free());
    }
}
END_TEST

int main(void)
{
    const TTest *const for_each[] = {
        a_lock_is_never_held_after_a_panic,
        a_lock_is_given_back_early_and_only_once,
        a_dismissed_lock_stays_the_callers,
        a_wait_ends_at_its_deadline_with_the_name_of_the_lock,
        a_wait_ends_with_the_lock_when_that_is_free,
        a_wait_ends_when_it_is_cancelled_or_late,
        a_try_does_not_wait,
        without_memory_no_lock_is_taken,
        a_wait_that_can_never_be_right_is_misuse,
        a_held_lock_says_which_it_is,
    };
    const TTest *const once[] = {
        a_semaphore_is_given_back_by_any_thread,
        many_threads_exclude_each_other_through_panics,
    };
    const suite_group groups[] = {
        {"each lock", LOCKS, for_each, sizeof for_each / sizeof *for_each},
        {"some locks", 1, once, sizeof once / sizeof *once},
    };
    return suite_run_groups("lock", groups, sizeof groups / sizeof *groups);
}
