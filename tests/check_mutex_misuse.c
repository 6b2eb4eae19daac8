/* SPDX-License-Identifier: MIT */
/* check_mutex_misuse.c: locks that are not there. */
#include <errno.h>

#include <guard/guard_mutex.h>

#include "suite.h"

static pthread_mutex_t *no_mutex;
static pthread_rwlock_t *no_lock;
static sem_t *no_semaphore;
static pthread_cond_t *no_condition;

static int never(void *arg)
{
    (void)arg;
    return 0;
}

static void lock_nothing(void *arg)
{
    GUARD_AUTO(s);
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    guard_ticket ticket;
    switch (*(int *)arg) {
    case 0:
        guard_mutex_lock(s, no_mutex, NULL);
        break;
    case 1:
        guard_mutex_try_lock(s, no_mutex, NULL, &ticket);
        break;
    case 2:
        guard_rwlock_read(s, no_lock, 1);
        break;
    case 3:
        guard_rwlock_try_write(s, no_lock, &ticket);
        break;
    case 4:
        guard_semaphore_wait(s, no_semaphore, 1);
        break;
    case 5:
        guard_semaphore_try_wait(s, no_semaphore, &ticket);
        break;
    default:
        guard_mutex_wait(guard_mutex_lock(s, &mutex, NULL), no_condition, never, NULL, 1);
    }
}

START_TEST(a_lock_that_is_null_is_misuse)
{
    for (int which = 0; which < 7; which++) {
        guard_error error;
        ck_assert_int_ne(guard_run(lock_nothing, &which, &error), 0);
        ck_assert_int_eq(error.domain, GUARD_MISUSE);
        ck_assert_str_eq(error.file, "check_mutex_misuse.c");
    }
}
END_TEST

static void do_nothing(const guard_error *error)
{
    (void)error;
}

/* Else the code behind it would run as if it had the lock. */
START_TEST(also_with_a_handler_that_returns_it_is_not_taken_for_held)
{
    guard_misuse_handler(do_nothing);
    for (int which = 0; which < 6; which++) {
        guard_error error;
        ck_assert_int_eq(guard_run(lock_nothing, &which, &error), EINVAL);
        ck_assert_int_eq(error.domain, GUARD_LOCK);
    }
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_lock_that_is_null_is_misuse,
        also_with_a_handler_that_returns_it_is_not_taken_for_held,
    };
    return suite_run("mutex_misuse", tests, sizeof tests / sizeof *tests);
}
