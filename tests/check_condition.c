/* SPDX-License-Identifier: MIT */
/*
 * check_condition.c: a wait for a condition ends with the mutex held, or says that it is not; at its deadline, when it is cancelled, and when
 * an owner of the mutex died meanwhile (behaviour 49).
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard_cancel.h>

#include "locks.h"
#include "suite.h"

static guard_error error;

/* A test unlocks a mutex behind its guard, which is not to end them. Pthreads tell of a wrong unlock of ours. */
const char *__tsan_default_options(void) __attribute__((visibility("default")));
const char *__tsan_default_options(void)
{
    return "report_mutex_bugs=0";
}

static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static int value;

static int value_is_set(void *arg)
{
    (void)arg;
    return value;
}

static int ready_panics(void *arg)
{
    (void)arg;
    guard_panic(10, "in the predicate");
}

static void *set_value(void *arg)
{
    pthread_mutex_lock(&mutex); /* not before the waiter waits */
    value = 1;
    pthread_cond_signal(&condition);
    pthread_mutex_unlock(&mutex);
    return arg;
}

static void wait_for_value(void *arg)
{
    pthread_t thread;
    GUARD_AUTO(s);
    guard_ticket lock = guard_mutex_lock(s, &mutex, NULL);
    ck_assert_int_eq(pthread_create(&thread, NULL, set_value, NULL), 0);
    ck_assert_int_eq(guard_mutex_wait(lock, &condition, value_is_set, NULL, (int)(intptr_t)arg), 1);
    ck_assert_int_eq(value, 1);
    ck_assert(!is_free());
    ck_assert_int_eq(guard_mutex_wait(lock, &condition, value_is_set, NULL, 0), 1); /* at once */
    pthread_join(thread, NULL);
    guard_release(lock);
    ck_assert(is_free());
}

START_TEST(a_condition_wait_ends_when_it_is_ready_with_the_lock_held)
{
    lock_begin(&locks[LOCK_MUTEX]);
    const intptr_t waits[] = {-1, 0, 60000};
    for (int i = 0; i < 3; i++) {
        value = 0;
        ck_assert_int_eq(guard_run(wait_for_value, (void *)waits[i], &error), 0);
    }
}
END_TEST

static void *wake_often(void *stop)
{
    while (!__atomic_load_n((int *)stop, __ATOMIC_SEQ_CST)) {
        /* With the lock, or helgrind has doubts; not waiting for it, for it is held by who waits for this thread. */
        if (pthread_mutex_trylock(&mutex) == 0) {
            pthread_cond_broadcast(&condition); /* for nothing */
            pthread_mutex_unlock(&mutex);
        }
        sched_yield();
    }
    return NULL;
}

static void wait_in_vain(void *arg)
{
    int stop = 0;
    pthread_t thread;
    GUARD_AUTO(s);
    guard_ticket lock = guard_mutex_lock(s, &mutex, NULL);
    ck_assert_int_eq(pthread_create(&thread, NULL, wake_often, &stop), 0);
    long long before = now_ms();
    int woken = guard_mutex_wait(lock, &condition, value_is_set, NULL, 130);
    long long waited = now_ms() - before;
    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    pthread_join(thread, NULL);
    ck_assert_int_eq(woken, 0);
    ck_assert_msg(waited >= 130 && waited < 5000, "waited %lld ms", waited);
    ck_assert(!is_free());
    if (arg != NULL) {
        guard_mutex_wait(lock, &condition, ready_panics, NULL, 0);
    }
}

START_TEST(a_condition_wait_ends_at_its_deadline_with_the_lock_held_whatever_wakes_it)
{
    lock_begin(&locks[LOCK_MUTEX]);
    ck_assert_int_eq(guard_run(wait_in_vain, NULL, &error), 0);
    ck_assert(is_free());
}
END_TEST

START_TEST(a_panic_of_the_predicate_gives_the_lock_back)
{
    lock_begin(&locks[LOCK_MUTEX]);
    ck_assert_int_eq(guard_run(wait_in_vain, &error, &error), 10);
    ck_assert(is_free());
}
END_TEST

static void wait_until_late(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_deadline(s, 40);
    guard_ticket lock = guard_mutex_lock(s, &mutex, NULL);
    guard_mutex_wait(lock, &condition, value_is_set, NULL, -1);
}

START_TEST(a_condition_wait_that_is_late_gives_the_lock_back)
{
    lock_begin(&locks[LOCK_MUTEX]);
    ck_assert_int_eq(guard_run(wait_until_late, NULL, &error), ETIMEDOUT);
    ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
    ck_assert(is_free());
}
END_TEST

static void wait_without_end(void *arg)
{
    GUARD_AUTO(s);
    guard_ticket lock = guard_mutex_lock(s, &mutex, NULL);
    *(int *)arg = 1;
    guard_mutex_wait(lock, &condition, value_is_set, NULL, -1);
}

static void *wait_until_cancelled_by_the_system(void *waiting)
{
    wait_without_end(waiting);
    return NULL;
}

START_TEST(a_condition_wait_whose_thread_is_cancelled_gives_the_lock_back)
{
    pthread_t thread;
    void *result;
    int waiting = 0;
    lock_begin(&locks[LOCK_MUTEX]);
    ck_assert_int_eq(pthread_create(&thread, NULL, wait_until_cancelled_by_the_system, &waiting), 0);
    for (int begun = 0; !begun; sched_yield()) {
        pthread_mutex_lock(&mutex);
        begun = waiting; /* and it waits, or the mutex would be its */
        pthread_mutex_unlock(&mutex);
    }
    pthread_cancel(thread);
    pthread_join(thread, &result);
    ck_assert_ptr_eq(result, PTHREAD_CANCELED);
    ck_assert(is_free());
}
END_TEST

static void wait_wrongly(void *which)
{
    GUARD_AUTO(s);
    guard_ticket ticket = guard_mutex_lock(s, &mutex, NULL);
    switch ((intptr_t)which) {
    case 0:
        guard_release(ticket);
        break;
    case 1:
        ticket = guard_rwlock_read(s, &rwlock, 0);
        break;
    case 2:
        ticket = guard_defer(s, nothing, NULL);
        break;
    case 3:
        ticket = (guard_ticket){0};
        break;
    case 4:
        guard_mutex_wait(ticket, &condition, NULL, NULL, 1);
        return;
    case 5:
        guard_mutex_wait(ticket, &condition, value_is_set, NULL, -7);
        return;
    case 6:
        pthread_mutex_unlock(&mutex);
    }
    guard_mutex_wait(ticket, &condition, value_is_set, NULL, 1);
}

START_TEST(a_condition_wait_without_its_mutex_is_misuse)
{
    lock_begin(&locks[LOCK_MUTEX]);
    mutex_make(&mutex, PTHREAD_MUTEX_ERRORCHECK, 0, 0, 0); /* which notices the last */
    for (intptr_t which = 0; which < 7; which++) {
        int code = guard_run(wait_wrongly, (void *)which, &error);
        ck_assert_msg(code != 0 && error.domain == GUARD_MISUSE, "case %ld: %d", (long)which, code);
        ck_assert_int_eq(error.cause_count, 0);
        ck_assert(is_free());
    }
}
END_TEST

/* -------------------------------------------------------------------------------------------- dead owners -- */

static int balance_is_100_again(void *waiting)
{
    *(int *)waiting = 1; /* with the mutex held: who sees it finds the waiter waiting */
    return shared->repairs > 0 && shared->balance == 100;
}

/* Dies with the mutex held as soon as the other process waits. */
static pid_t shared_spoil_waiter(void)
{
    pid_t child = fork();
    if (child == 0) {
        for (;;) {
            pthread_mutex_lock(&shared->mutex);
            if (shared->waiting) {
                shared->balance = 40;
                pthread_cond_broadcast(&shared->condition);
                kill(getpid(), SIGKILL);
            }
            pthread_mutex_unlock(&shared->mutex);
            sched_yield();
        }
    }
    return child;
}

static void wait_for_dead(void *options)
{
    GUARD_AUTO(s);
    guard_ticket lock = guard_mutex_lock(s, &shared->mutex, options);
    pid_t child = shared_spoil_waiter();
    int answer = guard_mutex_wait(lock, &shared->condition, balance_is_100_again, &shared->waiting, 20000);
    ck_assert_int_eq(answer, 1);
    ck_assert_int_eq(shared->repairs, 1);
    ck_assert_int_eq(pthread_mutex_trylock(&shared->mutex), EBUSY); /* held */
    ck_assert_int_eq(waitpid(child, NULL, 0), child);
}

START_TEST(a_mutex_that_comes_back_from_a_wait_with_a_dead_owner_is_repaired)
{
    shared_begin();
    ck_assert_int_eq(guard_run(wait_for_dead, (void *)(uintptr_t)repairing(repair), &error), 0);
    ck_assert_int_eq(guard_run(lock_shared, NULL, &error), 0);
}
END_TEST

static void wait_again_after_loss(void *options)
{
    GUARD_AUTO(s);
    guard_error inner;
    guard_ticket lock = guard_mutex_lock(s, &shared->mutex, options);
    pid_t child = shared_spoil_waiter();
    GUARD_TRY(&inner)
    {
        guard_mutex_wait(lock, &shared->condition, balance_is_100_again, &shared->waiting, 20000);
        ck_abort_msg("the mutex came back from a dead owner without a repair");
    }
    GUARD_CATCH
    {
        ck_assert_int_eq(waitpid(child, NULL, 0), child);
    }
    /* The scope is still open: the lock must be gone already, and its release must not unlock another's. */
    ck_assert_int_eq(pthread_mutex_trylock(&shared->mutex), ENOTRECOVERABLE);
    error = inner;
    guard_mutex_wait(lock, &shared->condition, balance_is_100_again, &shared->waiting, 1);
}

START_TEST(a_mutex_that_is_lost_in_a_wait_is_not_held_after_the_panic)
{
    shared_begin();
    guard_error again;
    ck_assert_int_eq(guard_run(wait_again_after_loss, (void *)(uintptr_t)repairing(repair_fails), &again),
                     GUARD_MISUSE_STATE);
    ck_assert_int_eq(again.cause_count, 0);
    ck_assert_int_eq(error.code, 11);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_condition_wait_ends_when_it_is_ready_with_the_lock_held,
        a_condition_wait_ends_at_its_deadline_with_the_lock_held_whatever_wakes_it,
        a_panic_of_the_predicate_gives_the_lock_back,
        a_condition_wait_that_is_late_gives_the_lock_back,
        /* Helgrind learns from its wrapper of the wait that the mutex is held again, which a cancel jumps over. */
        suite_unless_helgrind(a_condition_wait_whose_thread_is_cancelled_gives_the_lock_back),
        /* It reports the wait with a mutex that was unlocked, as it should. */
        suite_unless_helgrind(a_condition_wait_without_its_mutex_is_misuse),
        /* It takes EOWNERDEAD for a failure. */
        suite_unless_helgrind(a_mutex_that_comes_back_from_a_wait_with_a_dead_owner_is_repaired),
        suite_unless_helgrind(a_mutex_that_is_lost_in_a_wait_is_not_held_after_the_panic),
    };
    return suite_run("condition", tests, sizeof tests / sizeof *tests);
}
