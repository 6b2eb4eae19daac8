/* SPDX-License-Identifier: MIT */
/*
 * check_mutex.c: what is peculiar to mutexes: their types, their owners, the repair of what a dead owner left, and forks (behaviour 49).
 */
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fault_memory.h"
#include "locks.h"
#include "suite.h"
#include "task.h"

static guard_error error;

/* A test unlocks a mutex behind its guard, which is not to end them. Pthreads tell of a wrong unlock of ours. */
const char *__tsan_default_options(void) __attribute__((visibility("default")));
const char *__tsan_default_options(void)
{
    return "report_mutex_bugs=0";
}

/* ----------------------------------------------------------------------------------------- kinds of mutex -- */

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
    lock_begin(&locks[LOCK_MUTEX]);
    mutex_make(&mutex, PTHREAD_MUTEX_RECURSIVE, 0, 0, 0);
    ck_assert_int_eq(guard_run(lock_twice, NULL, &error), 8);
    ck_assert(is_free());
    mutex_make(&mutex, PTHREAD_MUTEX_NORMAL, 0, 0, 0);
    ck_assert_int_eq(guard_run(lock_twice, NULL, &error), ETIMEDOUT);
    ck_assert(is_free());
}
END_TEST

START_TEST(a_second_lock_of_an_error_checking_mutex_says_who_holds_it)
{
    lock_begin(&locks[LOCK_MUTEX]);
    mutex_make(&mutex, PTHREAD_MUTEX_ERRORCHECK, 0, 0, 0);
    ck_assert_int_eq(guard_run(lock_then_try, NULL, &error), 0);
    ck_assert(is_free());
    ck_assert_int_eq(guard_run(lock_twice, NULL, &error), EDEADLK);
    ck_assert_int_eq(error.domain, GUARD_LOCK);
    ck_assert_has(error.message, "mutex &mutex is held by this thread already");
    ck_assert(is_free());
}
END_TEST

static void lock_for_50_ms(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_mutex_lock(s, &mutex, &(guard_mutex_options){.wait_ms = 50});
}

static void *lock_on_thread(void *code)
{
    *(int *)code = guard_run(lock_for_50_ms, NULL, &error);
    return NULL;
}

START_TEST(a_priority_inheriting_mutex_has_a_deadline_too)
{
    int code;
    lock_begin(&locks[LOCK_MUTEX]);
    mutex_make(&mutex, PTHREAD_MUTEX_NORMAL, 0, 0, PTHREAD_PRIO_INHERIT);
    current->block();
    on_thread(lock_on_thread, &code);
    ck_assert_int_eq(code, ETIMEDOUT);
    current->block_end();
    on_thread(lock_on_thread, &code);
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
    lock_begin(&locks[LOCK_MUTEX]);
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

START_TEST(a_mutex_is_not_unlocked_by_another_thread)
{
    lock_begin(&locks[LOCK_MUTEX]);
    size_t blocks = fault_memory_blocks();
    guard_owner *owner = guard_owner_new();
    guard_mutex_lock(guard_owner_scope(owner), &mutex, NULL);
    ck_assert_int_eq(close_elsewhere(owner, &error), GUARD_MISUSE_THREAD);
    ck_assert_has(error.message, "mutex &mutex was taken by another thread");
    ck_assert(!is_free());
    pthread_mutex_unlock(&mutex);
    ck_assert_uint_eq(fault_memory_blocks(), blocks);
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
    lock_begin(&locks[LOCK_MUTEX]);
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

/* -------------------------------------------------------------------------------------------- dead owners -- */

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
        task_wait(getppid(), 'S'); /* for the mutex: the pipe's end has woken it */
        kill(getpid(), SIGKILL);
    }
    close(ready[1]);
    ck_assert_int_eq(read(ready[0], &byte, 1), 0);
    ck_assert_int_eq(guard_run(lock_shared, (void *)(uintptr_t)repairing(repair), &error), 0);
    ck_assert_int_eq(shared->repairs, 1);
    ck_assert_int_eq(waitpid(child, NULL, 0), child);
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

int main(void)
{
    const TTest *const tests[] = {
        a_second_lock_of_the_same_thread_ends_by_the_type_of_the_mutex,
        a_priority_inheriting_mutex_has_a_deadline_too,
        a_mutex_is_not_unlocked_by_another_thread,
        reserved_words_and_a_try_with_a_wait_are_misuse_and_take_nothing,
        /* Helgrind reports what is done wrong here on purpose: a lock and an unlock that fail, and children that end with locks. */
        suite_unless_helgrind(a_second_lock_of_an_error_checking_mutex_says_who_holds_it),
        suite_unless_helgrind(a_mutex_unlocked_behind_its_guard_is_misuse),
        suite_unless_helgrind(a_forked_child_unlocks_its_copy_of_a_plain_mutex_and_nothing_of_its_parents),
        /* Helgrind 3.19 takes a lock that says EOWNERDEAD for one that failed (its lame_strerror has no word for it), so for free. */
        suite_unless_helgrind(a_mutex_whose_owner_died_is_repaired_once_and_consistent),
        suite_unless_helgrind(a_mutex_whose_repair_fails_is_lost_for_all_and_held_by_none),
        suite_unless_helgrind(a_mutex_whose_owner_died_is_lost_where_nobody_repairs),
        suite_unless_helgrind(a_mutex_whose_owner_thread_ended_is_repaired),
        suite_unless_helgrind(a_waiter_takes_over_when_the_owner_dies),
    };
    return suite_run("mutex", tests, sizeof tests / sizeof *tests);
}
