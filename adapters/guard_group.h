/* SPDX-License-Identifier: MIT */
/*
 * guard_group.h: threads that are started together and end together; Go's errgroup for C.
 *
 * PURPOSE
 *
 *   The members of a group work for one scope. A panic in one is contained there and handed to whoever waits; the others are told
 *   to cancel. The scope is not left before all members have ended, so none outlives what it uses.
 *
 * CALLING SEQUENCE
 *
 *     GUARD_AUTO(s);
 *     guard_group *group = guard_group_open(s, NULL);
 *     for (size_t i = 0; i < count; i++) {
 *         guard_group_spawn(group, load_part, &parts[i]);
 *     }
 *     guard_group_wait(group, NULL);          // raises the first panic of a member
 *
 * ERRORS
 *
 *   The first panic of a member is the group's; those of others are attached to it as causes. Members that end because the
 *   group was cancelled (domain GUARD_CANCELLED, after it) are not failures and are not attached. A member's guard_exit_thread
 *   is an ordinary end; one that is ended by pthread_cancel counts as failed, with domain GUARD_CANCELLED.
 *
 * ENDING
 *
 *   Leaving the scope waits for all members, without a limit. When a panic leaves it they are cancelled first. A group whose
 *   error nobody has seen raises it then. A member must be able to end: it calls guard_checkpoint or waits in the library's ways.
 *
 * CANCELLATION
 *
 *   Each member runs under the deadline that was the nearest where it was spawned. When the thread that waits or spawns is cancelled
 *   or late, the members are cancelled, and its own panic goes on after they have ended.
 *
 * CONTEXT
 *
 *   Each member begins with a copy of the context (guard_context.h) of the thread that spawned it, as it was then.
 *
 * THREADS
 *
 *   guard_group_cancel may be called by any thread while the group is open, all else by the thread that opened it. Members
 *   have groups of their own if they need some.
 */
#ifndef GUARD_GROUP_H
#define GUARD_GROUP_H

#include <guard/guard.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct guard_group guard_group;

/* Zero is the default. Words that are not known must be 0, else it is misuse. */
typedef struct guard_group_options {
    int32_t limit; /* how many members may run at a time: guard_group_spawn waits for one to end; 0 or -1: no limit */
    uint32_t reserved[7];
} guard_group_options;

/*
 * Opens a group that ends with `scope`; options may be NULL. The group is the library's and gone when the scope is. Panics with
 * GUARD_MEMORY; misuse for options that are out of range. NULL only where the misuse handler returned.
 */
#define guard_group_open(scope, ...) guard_group_open_at((scope), (__VA_ARGS__), GUARD_HERE)
GUARD_API guard_group *guard_group_open_at(guard_scope *scope, const guard_group_options *options,
                                           const guard_place *place);

/*
 * Starts a thread that runs fn(arg) as guarded code, with a border around it. Where a limit is set it waits for its turn first, as a
 * checkpoint does. Once the group is cancelled (by a member's panic too) nothing is started any more: returns 0, else 1. Panics with
 * GUARD_OS when no thread can be had, GUARD_MEMORY, and with what ends the wait; nothing is started then.
 */
GUARD_API int guard_group_spawn(guard_group *group, guard_fn *fn, void *arg);

/* Tells the members that run to cancel, and starts no others. Sticky. A member's GUARD_CANCELLED is not a failure then. */
GUARD_API void guard_group_cancel(guard_group *group);

/*
 * Waits until every member has ended. Returns 0 when none failed. Else raises the group's error, or where `error` is not NULL fills it and
 * returns its code: a border. When the waiting thread is cancelled or late, its own panic is raised after all have ended,
 * the group's error attached to it. The trace of the member's panic (guard_trace.h) is the waiting thread's then. After a wait the group is as
 * new: it may be used again, and a cancel of it is forgotten.
 */
GUARD_API int guard_group_wait(guard_group *group, guard_error *error);

#ifdef __cplusplus
}
#endif

#endif
