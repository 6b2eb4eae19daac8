/* SPDX-License-Identifier: MIT */
/*
 * locks.h: the locks of the mutex adapter, each by the same calls; and a mutex whose owners die.
 */
#ifndef TESTS_LOCKS_H
#define TESTS_LOCKS_H

#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>

#include <guard/guard_mutex.h>

extern pthread_mutex_t mutex;
extern pthread_rwlock_t rwlock;
extern sem_t semaphore;

struct lock {
    const char *name; /* as messages have it */
    void (*take)(guard_scope *scope, int wait_ms, guard_ticket *ticket);
    int (*try_take)(guard_scope *scope, guard_ticket *ticket);
    void *(*is_free)(void *is_free);
    /* Keeps the lock from anyone else, until `block_end`. */
    void (*block)(void);
    void (*block_end)(void);
};

enum { LOCK_MUTEX, LOCK_READ, LOCK_WRITE, LOCK_SEMAPHORE, LOCKS };
extern const struct lock locks[LOCKS];

/* The lock of the test, from lock_begin on. */
extern const struct lock *current;
void lock_begin(const struct lock *lock);

/* Whether the current lock is free, by plain pthread calls on another thread; mutexes know their owner. */
bool is_free(void);

void mutex_make(pthread_mutex_t *made, int type, int robust, int process_shared, int protocol);

/* Does nothing, as what is run or deferred. */
void nothing(void *arg);

/* Runs a function on a thread of its own, to its end. */
void on_thread(void *(*function)(void *), void *arg);

/* Closes it on another thread. Returns what a border there returned. */
int close_elsewhere(guard_owner *owner, guard_error *error);

/* ---- dead owners ---- */

/* In memory that a process beside shares. */
struct shared {
    pthread_mutex_t mutex; /* robust */
    pthread_mutex_t plain; /* shared, too, but nothing else */
    pthread_cond_t condition;
    int balance; /* 100, but while it is changed */
    int repairs;
    int waiting;
};
extern struct shared *shared;

void shared_begin(void);

/* Options with this repair of *shared. */
const guard_mutex_options *repairing(guard_fn *fn);
void repair(void *at);       /* which mends it */
void repair_fails(void *at); /* which panics, 11 */

/* Locks it, with guard_mutex_options or NULL, and finds the balance right. */
void lock_shared(void *options);

#endif
