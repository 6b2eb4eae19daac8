/* SPDX-License-Identifier: MIT */
/*
 * What check_headers compiles as C11 and as C++17: every macro of the headers that are always there is expanded
 * in user's code, which a lone header does not do. Only compiled, never run.
 */
#ifndef HEADER_USE_H
#define HEADER_USE_H

#include <guard/guard.h>
#include <guard/guard_file.h>
#include <guard/guard_mutex.h>

static void header_use_release(void *arg)
{
    (void)arg;
}

static void header_use_recover(guard_recovery *recovery, void *arg)
{
    (void)arg;
    (void)guard_recover(recovery);
}

static int header_use_ready(void *arg)
{
    return arg != NULL;
}

extern void header_use_file(guard_scope *scope, size_t size, guard_ticket *ticket);

void header_use_file(guard_scope *scope, size_t size, guard_ticket *ticket)
{
    const char *path;
    FILE *stream = guard_file_open(scope, "a", "r", ticket);
    int descriptor = guard_file_open_descriptor(scope, "a", 0, 0, ticket);
    DIR *directory = guard_file_open_directory(scope, "a", ticket);
    guard_file_replace *replace = guard_file_replace_begin(scope, "a", NULL);

    guard_file_sync(guard_file_adopt(scope, stream, "a", ticket));
    guard_file_open_descriptor_at(scope, descriptor, "a", 0, 0, ticket);
    guard_file_adopt_descriptor(scope, descriptor, "a", ticket);
    guard_file_write(descriptor, "a", guard_file_read(descriptor, guard_memory_allocate(scope, size, ticket), size));
    guard_memory_copy(scope, guard_file_read_directory(directory)->d_name, ticket);
    guard_file_map(scope, "a", &size, ticket);
    guard_file_map_descriptor(scope, descriptor, 0, size, 0, 0, ticket);
    guard_memory_resize(scope, guard_memory_allocate_array(scope, size, size, ticket), size, ticket);
    guard_memory_format(scope, ticket, "%s", "a");
    guard_file_temporary(scope, NULL, ticket);
    guard_file_temporary_named(scope, NULL, &path, ticket);
    guard_file_temporary_directory(scope, NULL, ticket);
    guard_release(guard_file_lock(scope, descriptor, NULL));
    guard_release(guard_file_lock_beside(scope, "a", NULL));
    guard_file_replace_rollback(replace);
    guard_file_replace_commit(replace);
}

extern void header_use_mutex(guard_scope *scope, pthread_mutex_t *mutex, pthread_cond_t *condition, sem_t *semaphore);

void header_use_mutex(guard_scope *scope, pthread_mutex_t *mutex, pthread_cond_t *condition, sem_t *semaphore)
{
    guard_ticket ticket = guard_mutex_lock(scope, mutex, NULL);
    if (guard_mutex_wait(ticket, condition, header_use_ready, NULL, 0) ||
        guard_mutex_try_lock(scope, mutex, NULL, &ticket) || guard_semaphore_try_wait(scope, semaphore, &ticket)) {
        guard_semaphore_wait(scope, semaphore, -1);
    }
#ifdef PTHREAD_RWLOCK_INITIALIZER
    static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
    guard_rwlock_read(scope, &lock, 0);
    guard_rwlock_write(scope, &lock, 0);
    if (guard_rwlock_try_read(scope, &lock, NULL) || guard_rwlock_try_write(scope, &lock, NULL)) {
        guard_release(ticket);
    }
#endif
}

extern void header_use(int which);

void header_use(int which)
{
    static const guard_kind kind = {"thing", header_use_release, NULL, NULL, GUARD_KIND_HEAP, NULL, NULL,
                                    NULL,    {NULL, NULL}};
    guard_error error;

    GUARD_DEFER(header_use_release, &which);
    GUARD_AUTO(outer);
    GUARD_SCOPE (inner) {
        GUARD_SCOPE (innermost) {
            guard_defer(innermost, header_use_release, &error);
        }
        guard_ticket ticket = guard_defer_copy(inner, header_use_release, &which, sizeof which);
        guard_dismiss(ticket);
        guard_defer_on(inner, GUARD_ON_FAILURE, header_use_release, NULL);
        guard_defer_kind(outer, &kind, &error);
        guard_defer_recover(outer, header_use_recover, NULL);
    }
#ifndef __cplusplus
    GUARD_TRY(&error)
    {
        guard_panic(1, "one");
    }
    GUARD_CATCH
    {
        guard_panic_error(&error);
    }
#endif
    switch (which) {
    case 0:
        guard_panic_in(GUARD_USER, 1, "number %d", which);
    case 1:
        guard_panic_os("no argument");
    default:
        guard_misuse(GUARD_MISUSE_ARGUMENT, "number %d", which);
    }
}

#ifndef __cplusplus
/* Options are written in the call, commas and all. */
extern void header_use_options(guard_scope *scope, int descriptor, pthread_mutex_t *mutex);

void header_use_options(guard_scope *scope, int descriptor, pthread_mutex_t *mutex)
{
    guard_file_lock(scope, descriptor, &(guard_file_lock_options){.wait_ms = 100, .shared = 1});
    guard_file_lock_beside(scope, "a", &(guard_file_lock_options){.wait_ms = 100, .shared = 1});
    guard_file_replace_begin(scope, "a", &(guard_file_replace_options){.mode = 0600, .exclusive = 1});
    guard_mutex_lock(scope, mutex, &(guard_mutex_options){.wait_ms = 100, .repair = NULL});
}
#endif

#endif
