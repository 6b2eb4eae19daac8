/* SPDX-License-Identifier: MIT */
#include <sys/mman.h>

#include "calls.h"
#include "fault_memory.h"
#include "locks.h"
#include "suite.h"

void nothing(void *arg)
{
    (void)arg;
}

void on_thread(void *(*function)(void *), void *arg)
{
    pthread_t thread;
    ck_assert_int_eq(pthread_create(&thread, NULL, function, arg), 0);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
}

pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
sem_t semaphore;

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

const struct lock locks[LOCKS] = {
    {"mutex &mutex", take_mutex, try_mutex, mutex_is_free, mutex_block, mutex_block_end},
    {"read lock &rwlock", take_read, try_read, rwlock_is_free, rwlock_block, rwlock_block_end},
    {"write lock &rwlock", take_write, try_write, rwlock_is_free, rwlock_block, rwlock_block_end},
    {"semaphore &semaphore", take_semaphore, try_semaphore, semaphore_is_free, semaphore_block, semaphore_block_end},
};

const struct lock *current;

void lock_begin(const struct lock *lock)
{
    fault_memory_install();
    sem_init(&semaphore, 0, 1);
    current = lock;
    guard_run(nothing, NULL, NULL);
}

bool is_free(void)
{
    bool answer;
    on_thread(current->is_free, &answer);
    return answer;
}

void mutex_make(pthread_mutex_t *made, int type, int robust, int process_shared, int protocol)
{
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, type);
    pthread_mutexattr_setrobust(&attributes, robust);
    pthread_mutexattr_setpshared(&attributes, process_shared);
    pthread_mutexattr_setprotocol(&attributes, protocol);
    ck_assert_int_eq(pthread_mutex_init(made, &attributes), 0);
    pthread_mutexattr_destroy(&attributes);
}

typedef struct closing {
    guard_owner *owner;
    guard_error *error;
    int code;
} closing;

static void *close_owner_in_border(void *arg)
{
    closing *this = arg;
    this->code = guard_run(call_owner_close, this->owner, this->error);
    return NULL;
}

int close_elsewhere(guard_owner *owner, guard_error *error)
{
    closing this = {owner, error, 0};
    on_thread(close_owner_in_border, &this);
    return this.code;
}

/* -------------------------------------------------------------------------------------------- dead owners -- */

struct shared *shared;

void shared_begin(void)
{
    lock_begin(&locks[LOCK_MUTEX]);
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

void repair(void *at)
{
    struct shared *s = at;
    s->balance = 100;
    s->repairs++;
}

void repair_fails(void *at)
{
    (void)at;
    guard_panic(11, "cannot be mended");
}

const guard_mutex_options *repairing(guard_fn *fn)
{
    static guard_mutex_options options;
    options = (guard_mutex_options){.repair = fn, .repair_arg = shared};
    return &options;
}

void lock_shared(void *options)
{
    GUARD_AUTO(s);
    guard_mutex_lock(s, &shared->mutex, options);
    ck_assert_int_eq(shared->balance, 100);
}
