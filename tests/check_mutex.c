/* SPDX-License-Identifier: MIT */
/*
 * check_mutex.c: mutexes, conditions, read-write locks and semaphores are given back, waited for no longer than
 * asked, and repaired when their owner died (behaviour 49).
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <guard/guard_cancel.h>
#include <guard/guard_dump.h>
#include <guard/guard_mutex.h>

#include "fault_memory.h"
#include "suite.h"

static guard_error error;

/* Two tests unlock a mutex behind its guard, which is not to end them. Pthreads tell of a wrong unlock of ours. */
const char *__tsan_default_options(void) __attribute__((visibility("default")));
const char *__tsan_default_options(void)
{
    return "report_mutex_bugs=0";
}

#define ck_assert_has(text, part) \
    ck_assert_msg(strstr((text), (part)) != NULL, "\"%s\" should contain \"%s\"", (text), (part))

static void nothing(void *arg)
{
    (void)arg;
}

/* Runs a function on a thread of its own, to its end. */
static void on_thread(void *(*function)(void *), void *arg)
{
    pthread_t thread;
    ck_assert_int_eq(pthread_create(&thread, NULL, function, arg), 0);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
}

/* ------------------------------------------------------------------------------------------- every lock -- */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static sem_t semaphore;

static void take_mutex(guard_scope *scope, int wait_ms, guard_ticket *ticket)
{
    *ticket = guard_mutex_lock(scope, &mutex, &(guard_mutex_options){.wait_ms = wait_ms});
}

static int try_mutex(guard_scope *scope, guard_ticket *ticket)
{
    return guard_mutex_try_lock(scope, &mutex, NULL, ticket);
}

static void take_read(guard_scope *scope, int wait_ms, guard_ticket *ticket)
{
    *ticket = guard_rwlock_read(scope, &rwlock, wait_ms);
}

static int try_read(guard_scope *scope, guard_ticket *ticket)
{
    return guard_rwlock_try_read(scope, &rwlock, ticket);
}

static void take_write(guard_scope *scope, int wait_ms, guard_ticket *ticket)
{
    *ticket = guard_rwlock_write(scope, &rwlock, wait_ms);
}

static int try_write(guard_scope *scope, guard_ticket *ticket)
{
    return guard_rwlock_try_write(scope, &rwlock, ticket);
}

static void take_semaphore(guard_scope *scope, int wait_ms, guard_ticket *ticket)
{
    *ticket = guard_semaphore_wait(scope, &semaphore, wait_ms);
}

static int try_semaphore(guard_scope *scope, guard_ticket *ticket)
{
    return guard_semaphore_try_wait(scope, &semaphore, ticket);
}

/* Whether the lock is free, by plain pthread calls on another thread; mutexes know their owner. */
static void *mutex_is_free(void *is_free)
{
    *(bool *)is_free = pthread_mutex_trylock(&mutex) == 0 && pthread_mutex_unlock(&mutex) == 0;
    return NULL;
}

static void *rwlock_is_free(void *is_free)
{
    *(bool *)is_free = pthread_rwlock_trywrlock(&rwlock) == 0 && pthread_rwlock_unlock(&rwlock) == 0;
    return NULL;
}

static void *semaphore_is_free(void *is_free)
{
    *(bool *)is_free = sem_trywait(&semaphore) == 0 && sem_post(&semaphore) == 0;
    return NULL;
}

/* Keeps the lock from anyone else, until `block_end`. */
static void mutex_block(void)
{
    pthread_mutex_lock(&mutex);
}

static void mutex_block_end(void)
{
    pthread_mutex_unlock(&mutex);
}

static void rwlock_block(void)
{
    pthread_rwlock_wrlock(&rwlock);
}

static void rwlock_block_end(void)
{
    pthread_rwlock_unlock(&rwlock);
}

static void semaphore_block(void)
{
    sem_wait(&semaphore);
}

static void semaphore_block_end(void)
{
    sem_post(&semaphore);
}

static const struct lock {
    const char *name;
    void (*take)(guard_scope *scope, int wait_ms, guard_ticket *ticket);
    int (*try_take)(guard_scope *scope, guard_ticket *ticket);
    void *(*is_free)(void *is_free);
    void (*block)(void);
    void (*block_end)(void);
} locks[] = {
    {"mutex &mutex", take_mutex, try_mutex, mutex_is_free, mutex_block, mutex_block_end},
    {"read lock &rwlock", take_read, try_read, rwlock_is_free, rwlock_block, rwlock_block_end},
    {"write lock &rwlock", take_write, try_write, rwlock_is_free, rwlock_block, rwlock_block_end},
    {"semaphore &semaphore", take_semaphore, try_semaphore, semaphore_is_free, semaphore_block, semaphore_block_end},
};
#define LOCKS ((int)(sizeof locks / sizeof locks[0]))

static const struct lock *current;

static void lock_begin(const struct lock *lock)
{
    fault_memory_install();
    sem_init(&semaphore, 0, 1);
    current = lock;
    guard_run(nothing, NULL, NULL);
}

static bool is_free(void)
{
    bool answer;
    on_thread(current->is_free, &answer);
    return answer;
}

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
        ck_assert_str_eq(error.file, "check_mutex.c");
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
        nanosleep(&(struct timespec){.tv_nsec = 120000000}, NULL); /* into its second slice */
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
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL); /* either way it ends; as a rule, in its third slice */
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

/* ----------------------------------------------------------------------------------------- kinds of mutex -- */

static void mutex_make(pthread_mutex_t *made, int type, int robust, int shared, int protocol)
{
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, type);
    pthread_mutexattr_setrobust(&attributes, robust);
    pthread_mutexattr_setpshared(&attributes, shared);
    pthread_mutexattr_setprotocol(&attributes, protocol);
    ck_assert_int_eq(pthread_mutex_init(made, &attributes), 0);
    pthread_mutexattr_destroy(&attributes);
}

static void lock_twice(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    const guard_mutex_options options = {.wait_ms = 50};
    guard_mutex_lock(s, &mutex, &options);
    guard_mutex_lock(s, &mutex, &options);
    guard_panic(8, "twice");
}

static void lock_then_try(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_mutex_lock(s, &mutex, NULL);
    ck_assert_int_eq(guard_mutex_try_lock(s, &mutex, NULL, NULL), 0);
}

START_TEST(a_second_lock_of_the_same_thread_ends_by_the_type_of_the_mutex)
{
    lock_begin(&locks[0]);
    mutex_make(&mutex, PTHREAD_MUTEX_RECURSIVE, 0, 0, 0);
    ck_assert_int_eq(guard_run(lock_twice, NULL, &error), 8);
    ck_assert(is_free());
    mutex_make(&mutex, PTHREAD_MUTEX_ERRORCHECK, 0, 0, 0);
    ck_assert_int_eq(guard_run(lock_then_try, NULL, &error), 0);
    ck_assert(is_free());
    ck_assert_int_eq(guard_run(lock_twice, NULL, &error), EDEADLK);
    ck_assert_int_eq(error.domain, GUARD_LOCK);
    ck_assert_has(error.message, "mutex &mutex is held by this thread already");
    ck_assert(is_free());
    mutex_make(&mutex, PTHREAD_MUTEX_NORMAL, 0, 0, 0);
    ck_assert_int_eq(guard_run(lock_twice, NULL, &error), ETIMEDOUT);
    ck_assert(is_free());
}
END_TEST

START_TEST(a_priority_inheriting_mutex_has_a_deadline_too)
{
    int code;
    lock_begin(&locks[0]);
    mutex_make(&mutex, PTHREAD_MUTEX_NORMAL, 0, 0, PTHREAD_PRIO_INHERIT);
    current->block();
    wait_ms = 50;
    on_thread(take_on_thread, &code);
    ck_assert_int_eq(code, ETIMEDOUT);
    current->block_end();
    on_thread(take_on_thread, &code);
    ck_assert_int_eq(code, 0);
    ck_assert(is_free());
}
END_TEST

static void unlock_behind(void *panics)
{
    GUARD_AUTO(s);
    guard_ticket ticket = guard_mutex_lock(s, &mutex, NULL);
    pthread_mutex_unlock(&mutex);
    if (panics != NULL) {
        guard_panic(9, "first");
    }
    guard_release(ticket);
}

START_TEST(a_mutex_unlocked_behind_its_guard_is_misuse)
{
    lock_begin(&locks[0]);
    mutex_make(&mutex, PTHREAD_MUTEX_ERRORCHECK, 0, 0, 0);
    ck_assert_int_eq(guard_run(unlock_behind, NULL, &error), GUARD_MISUSE_STATE);
    ck_assert_has(error.message, "mutex &mutex");
    ck_assert_str_eq(error.function, "unlock_behind");
    ck_assert_int_eq(guard_run(unlock_behind, &error, &error), 9);
    ck_assert_int_eq(error.cause_count, 1);
    ck_assert_int_eq(error.causes[0].relation, GUARD_ATTACHED);
    ck_assert_int_eq(error.causes[0].domain, GUARD_MISUSE);
}
END_TEST

static void close_owner(void *owner)
{
    guard_owner_close(owner);
}

static void *close_owner_on_thread(void *owner)
{
    int *code = malloc(sizeof *code);
    *code = guard_run(close_owner, owner, &error);
    return code;
}

START_TEST(a_mutex_is_not_unlocked_by_another_thread)
{
    lock_begin(&locks[0]);
    pthread_t thread;
    void *code;
    size_t blocks = fault_memory_blocks();
    guard_owner *owner = guard_owner_new();
    guard_mutex_lock(guard_owner_scope(owner), &mutex, NULL);
    ck_assert_int_eq(pthread_create(&thread, NULL, close_owner_on_thread, owner), 0);
    pthread_join(thread, &code);
    ck_assert_int_eq(*(int *)code, GUARD_MISUSE_THREAD);
    free(code);
    ck_assert_has(error.message, "mutex &mutex was taken by another thread");
    ck_assert(!is_free());
    pthread_mutex_unlock(&mutex);
    ck_assert_uint_eq(fault_memory_blocks(), blocks);
}
END_TEST

START_TEST(a_semaphore_is_given_back_by_any_thread)
{
    lock_begin(&locks[3]);
    pthread_t thread;
    void *code;
    guard_owner *owner = guard_owner_new();
    guard_semaphore_wait(guard_owner_scope(owner), &semaphore, 0);
    ck_assert_int_eq(pthread_create(&thread, NULL, close_owner_on_thread, owner), 0);
    pthread_join(thread, &code);
    ck_assert_int_eq(*(int *)code, 0);
    free(code);
    ck_assert(is_free());
}
END_TEST

static void options_wrong(void *options)
{
    GUARD_AUTO(s);
    guard_mutex_lock(s, &mutex, options);
}

static void options_wrong_try(void *options)
{
    GUARD_AUTO(s);
    guard_mutex_try_lock(s, &mutex, options, NULL);
}

static int misuses;

static void count_misuse(const guard_error *misuse)
{
    (void)misuse;
    misuses++;
}

START_TEST(reserved_words_and_a_try_with_a_wait_are_misuse_and_take_nothing)
{
    lock_begin(&locks[0]);
    ck_assert_int_eq(guard_run(options_wrong, &(guard_mutex_options){.reserved_int = 1}, &error),
                     GUARD_MISUSE_ARGUMENT);
    ck_assert_int_eq(guard_run(options_wrong, &(guard_mutex_options){.reserved = {&error}}, &error),
                     GUARD_MISUSE_ARGUMENT);
    ck_assert_int_eq(guard_run(options_wrong_try, &(guard_mutex_options){.wait_ms = 1}, &error), GUARD_MISUSE_ARGUMENT);
    guard_misuse_handler(count_misuse);
    ck_assert_int_eq(guard_run(options_wrong, &(guard_mutex_options){.reserved_int = 1}, &error), 0);
    ck_assert_int_eq(misuses, 1);
    ck_assert(is_free());
}
END_TEST

/* --------------------------------------------------------------------------------------------- conditions -- */

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
    lock_begin(&locks[0]);
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
        pthread_cond_broadcast(&condition); /* for nothing */
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
    lock_begin(&locks[0]);
    ck_assert_int_eq(guard_run(wait_in_vain, NULL, &error), 0);
    ck_assert(is_free());
}
END_TEST

START_TEST(a_panic_of_the_predicate_gives_the_lock_back)
{
    lock_begin(&locks[0]);
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
    lock_begin(&locks[0]);
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
    lock_begin(&locks[0]);
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
    lock_begin(&locks[0]);
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

/* In memory that a process beside shares. */
static struct shared {
    pthread_mutex_t mutex;
    pthread_mutex_t plain; /* shared, too, but nothing else */
    pthread_cond_t condition;
    int balance; /* 100, but while it is changed */
    int repairs;
    int waiting;
} * shared;

static void shared_begin(void)
{
    lock_begin(&locks[0]);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(shared, MAP_FAILED);
    mutex_make(&shared->mutex, PTHREAD_MUTEX_NORMAL, PTHREAD_MUTEX_ROBUST, PTHREAD_PROCESS_SHARED, 0);
    mutex_make(&shared->plain, PTHREAD_MUTEX_NORMAL, 0, PTHREAD_PROCESS_SHARED, 0);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_cond_init(&shared->condition, &attributes);
    pthread_condattr_destroy(&attributes);
    shared->balance = 100;
}

/* A process that dies by SIGKILL with the mutex held and the balance wrong. */
static void shared_spoil(void)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        pthread_mutex_lock(&shared->mutex);
        shared->balance = 40;
        pthread_cond_broadcast(&shared->condition);
        kill(getpid(), SIGKILL);
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFSIGNALED(status));
}

static void repair(void *at)
{
    struct shared *s = at;
    s->balance = 100;
    s->repairs++;
}

static void repair_fails(void *at)
{
    (void)at;
    guard_panic(11, "cannot be mended");
}

static const guard_mutex_options *repairing(guard_fn *fn)
{
    static guard_mutex_options options;
    options = (guard_mutex_options){.repair = fn, .repair_arg = shared};
    return &options;
}

static void lock_shared(void *options)
{
    GUARD_AUTO(s);
    guard_mutex_lock(s, &shared->mutex, options);
    ck_assert_int_eq(shared->balance, 100);
}

static void try_lock_shared(void *options)
{
    GUARD_AUTO(s);
    ck_assert_int_eq(guard_mutex_try_lock(s, &shared->mutex, options, NULL), 1);
    ck_assert_int_eq(shared->balance, 100);
}

START_TEST(a_mutex_whose_owner_died_is_repaired_once_and_consistent)
{
    shared_begin();
    guard_fn *const ways[] = {lock_shared, try_lock_shared};
    for (int i = 0; i < 2; i++) {
        shared_spoil();
        ck_assert_int_eq(guard_run(ways[i], (void *)(uintptr_t)repairing(repair), &error), 0);
        ck_assert_int_eq(shared->repairs, i + 1);
        ck_assert_int_eq(guard_run(ways[i], NULL, &error), 0); /* needs none */
    }
}
END_TEST

START_TEST(a_mutex_whose_repair_fails_is_lost_for_all_and_held_by_none)
{
    shared_begin();
    size_t blocks = fault_memory_blocks();
    shared_spoil();
    ck_assert_int_eq(guard_run(lock_shared, (void *)(uintptr_t)repairing(repair_fails), &error), 11);
    ck_assert_str_eq(error.message, "cannot be mended");
    ck_assert_int_eq(error.cause_count, 0);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(guard_run(i ? try_lock_shared : lock_shared, (void *)(uintptr_t)repairing(repair), &error),
                         ENOTRECOVERABLE);
        ck_assert_int_eq(error.domain, GUARD_LOCK);
        ck_assert_has(error.message, "mutex &shared->mutex is beyond repair");
    }
    ck_assert_uint_eq(fault_memory_blocks(), blocks);
}
END_TEST

START_TEST(a_mutex_whose_owner_died_is_lost_where_nobody_repairs)
{
    shared_begin();
    shared_spoil();
    ck_assert_int_eq(guard_run(lock_shared, NULL, &error), EOWNERDEAD);
    ck_assert_int_eq(error.domain, GUARD_LOCK);
    ck_assert_has(error.message, "&shared->mutex died and there is no repair");
    ck_assert_int_eq(guard_run(lock_shared, NULL, &error), ENOTRECOVERABLE);
}
END_TEST

static void *die_with_lock(void *arg)
{
    pthread_mutex_lock(&shared->mutex);
    shared->balance = 1;
    return arg;
}

START_TEST(a_mutex_whose_owner_thread_ended_is_repaired)
{
    shared_begin();
    on_thread(die_with_lock, NULL);
    ck_assert_int_eq(guard_run(lock_shared, (void *)(uintptr_t)repairing(repair), &error), 0);
    ck_assert_int_eq(shared->repairs, 1);
}
END_TEST

START_TEST(a_waiter_takes_over_when_the_owner_dies)
{
    shared_begin();
    int ready[2];
    char byte;
    ck_assert_int_eq(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        pthread_mutex_lock(&shared->mutex);
        shared->balance = 40;
        close(ready[0]);
        close(ready[1]);
        nanosleep(&(struct timespec){.tv_nsec = 150000000}, NULL); /* until the other waits */
        kill(getpid(), SIGKILL);
    }
    close(ready[1]);
    ck_assert_int_eq(read(ready[0], &byte, 1), 0);
    ck_assert_int_eq(guard_run(lock_shared, (void *)(uintptr_t)repairing(repair), &error), 0);
    ck_assert_int_eq(shared->repairs, 1);
    ck_assert_int_eq(waitpid(child, NULL, 0), child);
}
END_TEST

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

/* --------------------------------------------------------------------------------------------------- fork -- */

static void fork_with_locks(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    pthread_mutex_t recursive;
    mutex_make(&recursive, PTHREAD_MUTEX_RECURSIVE, 0, 0, 0);
    guard_ticket plain = guard_mutex_lock(s, &mutex, NULL);
    guard_ticket robust = guard_mutex_lock(s, &shared->mutex, NULL);
    guard_ticket common = guard_mutex_lock(s, &shared->plain, NULL);
    guard_ticket other = guard_mutex_lock(s, &recursive, NULL);
    guard_ticket read = guard_rwlock_read(s, &rwlock, 0);
    guard_ticket taken = guard_semaphore_wait(s, &semaphore, 0);
    pid_t child = fork();
    if (child == 0) {
        guard_release(plain);
        guard_release(robust);
        guard_release(common);
        guard_release(other);
        guard_release(read);
        guard_release(taken);
        /* the plain one is free, the others are not */
        _exit(pthread_mutex_trylock(&mutex) == 0 && pthread_mutex_trylock(&shared->mutex) == EBUSY &&
                      pthread_mutex_trylock(&recursive) == EBUSY && pthread_rwlock_trywrlock(&rwlock) == EBUSY &&
                      sem_trywait(&semaphore) != 0
                  ? 0
                  : 1);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
    ck_assert_int_eq(pthread_mutex_trylock(&shared->mutex), EBUSY);
    ck_assert_int_eq(pthread_mutex_trylock(&shared->plain), EBUSY);
}

START_TEST(a_forked_child_unlocks_its_copy_of_a_plain_mutex_and_nothing_of_its_parents)
{
    shared_begin();
    ck_assert_int_eq(guard_run(fork_with_locks, NULL, &error), 0);
    ck_assert(is_free());
    ck_assert_int_eq(pthread_mutex_trylock(&shared->mutex), 0);
    pthread_mutex_unlock(&shared->mutex);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ torture -- */

enum { THREADS = 8, ROUNDS = 400 };

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
        guard_mutex_wait(ticket, &condition, value_is_set, NULL, 1);
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
    value = 1;
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

int main(void)
{
    Suite *suite = suite_create("mutex");
    TCase *each = tcase_create("each lock"), *plain = tcase_create("mutexes");
    tcase_set_timeout(each, SUITE_SECONDS);
    tcase_set_timeout(plain, SUITE_SECONDS);
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
    const TTest *const tests[] = {
        a_second_lock_of_the_same_thread_ends_by_the_type_of_the_mutex,
        a_priority_inheriting_mutex_has_a_deadline_too,
        a_mutex_unlocked_behind_its_guard_is_misuse,
        a_mutex_is_not_unlocked_by_another_thread,
        a_semaphore_is_given_back_by_any_thread,
        reserved_words_and_a_try_with_a_wait_are_misuse_and_take_nothing,
        a_condition_wait_ends_when_it_is_ready_with_the_lock_held,
        a_condition_wait_ends_at_its_deadline_with_the_lock_held_whatever_wakes_it,
        a_panic_of_the_predicate_gives_the_lock_back,
        a_condition_wait_that_is_late_gives_the_lock_back,
        a_condition_wait_whose_thread_is_cancelled_gives_the_lock_back,
        a_condition_wait_without_its_mutex_is_misuse,
        a_mutex_whose_owner_died_is_repaired_once_and_consistent,
        a_mutex_whose_repair_fails_is_lost_for_all_and_held_by_none,
        a_mutex_whose_owner_died_is_lost_where_nobody_repairs,
        a_mutex_whose_owner_thread_ended_is_repaired,
        a_waiter_takes_over_when_the_owner_dies,
        a_mutex_that_comes_back_from_a_wait_with_a_dead_owner_is_repaired,
        a_mutex_that_is_lost_in_a_wait_is_not_held_after_the_panic,
        a_forked_child_unlocks_its_copy_of_a_plain_mutex_and_nothing_of_its_parents,
        many_threads_exclude_each_other_through_panics,
    };
    for (size_t i = 0; i < sizeof for_each / sizeof *for_each; i++) {
        tcase_add_loop_test(each, for_each[i], 0, LOCKS);
    }
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        tcase_add_test(plain, tests[i]);
    }
    suite_add_tcase(suite, each);
    suite_add_tcase(suite, plain);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
