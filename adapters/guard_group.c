/* SPDX-License-Identifier: MIT */
/*
 * guard_group.c: threads that are started together and end together.
 *
 *     a member:   (spawned) --its thread has a guard stack--> running --returned, panicked, exited--> ended --joined--> freed
 *     the group:  open --a member panics, guard_group_cancel, the waiter is cancelled--> cancelled --guard_group_wait--> open
 *                   \--its scope ends: all are waited for--> freed
 *
 * Invariants, under `lock`: `running` counts the members that are not ended. A member is in `members` from before its thread is created until it
 * was joined, by the group's own thread only. A member that finds the group cancelled when it starts cancels itself; one that
 * started before is found in `members` by who cancels. So none is missed.
 */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_context.h>
#include <guard/guard_dump.h>
#include <guard/guard_group.h>
#include <guard/guard_process.h>
#include <guard/guard_trace.h>

typedef struct group_member {
    struct group_member *next;
    guard_group *group;
    guard_fn *fn;
    void *arg;
    pthread_t thread;
    guard_context *context; /* of its opener, when it was spawned */
    int64_t until;          /* its deadline in ms of CLOCK_MONOTONIC; -1: none */
    bool is_live;           /* can be cancelled */
    bool has_ended;
} group_member;

struct guard_group {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* a member has ended */
    group_member *members;
    uint32_t running;
    uint32_t limit; /* 0: none */
    bool is_cancelled;
    bool has_error;
    int64_t since;  /* guard_dump_clock */
    unsigned forks; /* of the process whose members they are */
    guard_error error;
    guard_trace trace; /* of error, for the thread that waits */
};

static int64_t clock_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ---------------------------------------------------------------------------------------------- cancelling -- */

/* Under the lock. */
static void group_cancel(guard_group *group)
{
    group->is_cancelled = true;
    for (group_member *member = group->members; member != NULL; member = member->next) {
        if (member->is_live) {
            guard_cancel_thread(member->thread);
        }
    }
}

void guard_group_cancel(guard_group *group)
{
    if (group == NULL) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "guard_group_cancel without a group");
        return;
    }
    pthread_mutex_lock(&group->lock);
    group_cancel(group);
    pthread_mutex_unlock(&group->lock);
}

/* Under the lock, in the thread that the error was caught in. */
static void group_fail(guard_group *group, const guard_error *error)
{
    if (group->is_cancelled && error->domain == GUARD_CANCELLED) {
        return; /* it does what it was told */
    }
    if (group->has_error) {
        guard_error_attach(&group->error, error, GUARD_ATTACHED);
    } else {
        group->error = *error;
        guard_trace_of(error, &group->trace);
        group->has_error = true;
    }
    group_cancel(group);
}

/* ------------------------------------------------------------------------------------------------ members -- */

/* However the thread ends. */
static void member_end(void *arg)
{
    group_member *member = arg;
    guard_group *group = member->group;
    pthread_mutex_lock(&group->lock);
    member->is_live = false;
    member->has_ended = true;
    group->running--;
    pthread_cond_broadcast(&group->changed);
    pthread_mutex_unlock(&group->lock);
}

static group_member *member_new(guard_group *group, guard_fn *fn, void *arg, int64_t until)
{
    GUARD_AUTO(s);
    group_member *member = guard_allocate(sizeof *member);
    guard_ticket ticket = guard_defer(s, guard_deallocate, member);
    *member = (group_member){.group = group, .fn = fn, .arg = arg, .until = until, .context = guard_context_copy()};
    guard_dismiss(ticket);
    return member;
}

static void member_free(group_member *member)
{
    guard_context_free(member->context);
    guard_deallocate(member);
}

static void member_work(void *arg)
{
    group_member *member = arg;
    guard_group *group = member->group;
    GUARD_AUTO(s);
    pthread_mutex_lock(&group->lock);
    member->is_live = true; /* its thread has a guard stack now */
    bool is_cancelled = group->is_cancelled;
    pthread_mutex_unlock(&group->lock);
    if (is_cancelled) {
        guard_cancel_thread(pthread_self());
    }
    if (member->until >= 0) {
        int64_t left = member->until - clock_ms();
        guard_deadline(s, left > 0 ? left : 0);
    }
    guard_context_enter(s, member->context);
    member->fn(member->arg);
}

static void *member_main(void *arg)
{
    group_member *member = arg;
    guard_error error;
    pthread_cleanup_push(member_end, member);
    if (guard_run(member_work, member, &error) != 0) {
        pthread_mutex_lock(&member->group->lock);
        group_fail(member->group, &error);
        pthread_mutex_unlock(&member->group->lock);
    }
    pthread_cleanup_pop(1);
    return NULL;
}

static void member_join(guard_group *group, group_member *member)
{
    void *result = NULL;
    pthread_join(member->thread, &result); /* it has ended but for what its thread does last */
    if (result == PTHREAD_CANCELED) {
        guard_error error;
        guard_error_set(&error, GUARD_CANCELLED, ECANCELED, "a member was ended by pthread_cancel");
        pthread_mutex_lock(&group->lock);
        group_fail(group, &error);
        pthread_mutex_unlock(&group->lock);
    }
    member_free(member);
}

/* Joins the members that have ended. */
static void group_reap(guard_group *group)
{
    pthread_mutex_lock(&group->lock);
    for (group_member **at = &group->members; *at != NULL;) {
        group_member *member = *at;
        if (!member->has_ended) {
            at = &member->next;
            continue;
        }
        *at = member->next;
        pthread_mutex_unlock(&group->lock);
        member_join(group, member);
        pthread_mutex_lock(&group->lock);
        at = &group->members;
    }
    pthread_mutex_unlock(&group->lock);
}

/* ------------------------------------------------------------------------------------------------- waiting -- */

/* Waits until at most `most` members run, or a slice of time has passed (-1: for ever). Returns whether they are that few. */
static bool group_wait_slice(guard_group *group, uint32_t most, int ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (ms > 0 ? ms : 0) * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    int state = guard_foreign_open(); /* a cancel in the wait would leave with the lock held */
    int code = 0;
    pthread_mutex_lock(&group->lock);
    while (group->running > most && code == 0) {
        code = ms < 0 ? pthread_cond_wait(&group->changed, &group->lock)
                      : pthread_cond_timedwait(&group->changed, &group->lock, &until);
    }
    bool is_few = group->running <= most;
    pthread_mutex_unlock(&group->lock);
    guard_foreign_close(state);
    return is_few;
}

typedef struct group_turn {
    guard_group *group;
    uint32_t most;
} group_turn;

/* Guarded code: panics when this thread is cancelled or late. */
static void group_wait_turn(void *arg)
{
    const group_turn *turn = arg;
    guard_cancel_point();
    while (!group_wait_slice(turn->group, turn->most, GUARD_WAIT_SLICE_MS)) {
        guard_cancel_point();
    }
}

/*
 * Waits until at most `most` run. Returns 0, or the code of the cancel or timeout that has come to this thread meanwhile, which was passed
 * on to the members.
 */
static int group_wait_few(guard_group *group, uint32_t most, guard_error *error)
{
    group_turn turn = {group, most};
    int code = guard_run(group_wait_turn, &turn, error);
    if (code != 0) {
        guard_group_cancel(group);
    }
    return code;
}

/* All have ended and are joined: takes the group's error out of it, and makes it as new. */
static bool group_finish(guard_group *group, guard_error *error)
{
    group_wait_slice(group, 0, -1);
    group_reap(group);
    pthread_mutex_lock(&group->lock);
    bool has_error = group->has_error;
    if (has_error) {
        *error = group->error;
        guard_trace_keep(error, &group->trace);
    }
    group->has_error = false;
    group->is_cancelled = false;
    pthread_mutex_unlock(&group->lock);
    return has_error;
}

/* Its place is the member's, or none: that of a fault is not known, and here is not where it was. */
static void GUARD_NORETURN group_raise(const guard_error *error)
{
    guard_impl_panic_error(NULL, error);
}

/* A forked child has the group's memory, not its members. */
static bool group_is_ours(const guard_group *group)
{
    if (group == NULL) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "a group that is NULL");
        return false;
    }
    if (group->forks == guard_fork_count()) {
        return true;
    }
    guard_misuse(GUARD_MISUSE_STATE, "a group was used in a forked child of the process that opened it");
    return false;
}

int guard_group_wait(guard_group *group, guard_error *error)
{
    guard_error own;
    guard_error members;
    guard_raise_held();
    if (!group_is_ours(group)) {
        return 0;
    }
    int code = group_wait_few(group, 0, &own);
    bool has_error = group_finish(group, &members);
    if (code != 0) {
        if (has_error) {
            guard_error_attach(&own, &members, GUARD_ATTACHED);
        }
        guard_panic_error(&own);
    }
    if (has_error && error == NULL) {
        group_raise(&members);
    }
    if (has_error) {
        *error = members;
    }
    return has_error ? members.code : 0;
}

/* ------------------------------------------------------------------------------------------ open and close -- */

static void group_free(guard_group *group)
{
    pthread_cond_destroy(&group->changed);
    pthread_mutex_destroy(&group->lock);
    guard_deallocate(group);
}

static void group_release(void *object)
{
    guard_group *group = object;
    guard_error error;
    if (guard_panicking() != NULL) {
        guard_group_cancel(group);
    }
    bool has_error = group_finish(group, &error);
    group_free(group);
    if (has_error) {
        group_raise(&error);
    }
}

static int64_t group_since(const void *object)
{
    return ((const guard_group *)object)->since;
}

/* In a forked child: the members did not come along; their memory, and the lock that one may have held, stay as they are. */
static const guard_kind group_kind = {.name = "group",
                                      .release = group_release,
                                      .flags = GUARD_KIND_HEAP | GUARD_KIND_FIXED,
                                      .since = group_since,
                                      .action = "wait for"};

guard_group *guard_group_open_at(guard_scope *scope, const guard_group_options *options, const guard_place *place)
{
    static const guard_group_options none;
    if (options == NULL) {
        options = &none;
    }
    if (options->limit < -1 || memcmp(options->reserved, none.reserved, sizeof none.reserved) != 0) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "guard_group_open with options that are out of range");
        options = &none;
    }
    guard_impl_reserve(scope, 1, place);
    guard_group *group = guard_allocate(sizeof *group);
    memset(group, 0, sizeof *group);
    group->forks = guard_fork_count();
    group->since = guard_dump_clock();
    group->limit = options->limit > 0 ? (uint32_t)options->limit : 0;
    pthread_mutex_init(&group->lock, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&group->changed, &clock);
    pthread_condattr_destroy(&clock);
    guard_ticket ticket = guard_impl_defer_kind(scope, &group_kind, group, place);
    return ticket.record != NULL ? group : NULL;
}

static int64_t spawn_deadline(void)
{
    int64_t left = guard_remaining_ms(-1);
    return left < 0 ? -1 : clock_ms() + left;
}

/* Links it before its thread exists, so that whoever cancels from now on finds it. Returns false if the group was cancelled. */
static bool member_link(group_member *member)
{
    guard_group *group = member->group;
    pthread_mutex_lock(&group->lock);
    bool may_start = !group->is_cancelled;
    if (may_start) {
        member->next = group->members;
        group->members = member;
        group->running++;
    }
    pthread_mutex_unlock(&group->lock);
    return may_start;
}

static void member_unlink(group_member *member)
{
    guard_group *group = member->group;
    pthread_mutex_lock(&group->lock);
    group->running--;
    group_member **at = &group->members;
    while (*at != member) {
        at = &(*at)->next;
    }
    *at = member->next;
    pthread_mutex_unlock(&group->lock);
}

int guard_group_spawn(guard_group *group, guard_fn *fn, void *arg)
{
    guard_error error;
    guard_checkpoint();
    if (fn == NULL) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "guard_group_spawn without a function");
        return 0;
    }
    if (!group_is_ours(group)) {
        return 0;
    }
    if (group->limit > 0 && group_wait_few(group, group->limit - 1, &error) != 0) {
        guard_panic_error(&error);
    }
    group_reap(group);
    group_member *member = member_new(group, fn, arg, spawn_deadline());
    if (!member_link(member)) {
        member_free(member);
        return 0;
    }
    /* The member uses its id only after its creator has the lock again. */
    pthread_mutex_lock(&group->lock);
    int code = pthread_create(&member->thread, NULL, member_main, member);
    pthread_mutex_unlock(&group->lock);
    if (code != 0) {
        member_unlink(member);
        member_free(member);
        errno = code;
        guard_panic_os("no thread for a member of the group");
    }
    return 1;
}
