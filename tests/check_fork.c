/* SPDX-License-Identifier: MIT */
/* check_fork.c: what a forked child does with what it inherits (behaviour 50, the core's part). */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_process.h>

#include "events.h"
#include "suite.h"

/* ThreadSanitizer refuses threads in the child of a process that has some; its own counts. */
extern const char *__tsan_default_options(void) __attribute__((visibility("default")));

const char *__tsan_default_options(void)
{
    return "die_after_fork=0";
}

static void release(void *name)
{
    event_add("release", name);
}

static void child_rule(void *name)
{
    event_add("child", name);
}

static void at_fork(void *name)
{
    event_add("at fork", name);
}

static const guard_kind kind = {.name = "kind", .release = release, .child = child_rule, .flags = GUARD_KIND_HEAP};
#ifdef WITH_ASAN
/* A forked child keeps its parent's memory, by rule: to LeakSanitizer that is a leak. */
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}
#endif

static const guard_kind ruleless = {.name = "kind without a rule", .release = release, .flags = GUARD_KIND_HEAP};
static const guard_kind connection = {
    .name = "connection", .release = release, .child = at_fork, .flags = GUARD_KIND_HEAP | GUARD_KIND_AT_FORK};

static void hold(guard_scope *s)
{
    guard_defer(s, event_run, (void *)"function");
    guard_defer_copy(s, event_run, "copy", 5);
    static const char text[] = "a copy that is too long to be kept in a record of the pool";
    guard_defer_copy(s, event_run, text, sizeof text);
    guard_defer_kind(s, &ruleless, (void *)"ruleless");
    guard_defer_kind(s, &kind, (void *)"kind");
}

#define HELD                                                                                                     \
    "release kind,release ruleless,run a copy that is too long to be kept in a record of the pool,run copy,run " \
    "function"

/* ------------------------------------------------------------------------------------------------ leaving -- */

/* The child returns through the parent's scope, here by a panic or by a return, and then ends. */
static void fork_and_leave(void *arg)
{
    const char *how = arg;
    GUARD_AUTO(s);
    hold(s);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        guard_defer(s, event_run, (void *)"the child's own");
        if (strcmp(how, "panic") == 0) {
            guard_panic(1, "one");
        } else if (strcmp(how, "exit thread") == 0) {
            guard_exit_thread();
        } else if (strcmp(how, "exit") == 0) {
            exit(0);
        }
        return;
    }
    int status;
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
    event_add("the parent", "lives");
}

static void leave_in_the_child(const char *how)
{
    pid_t parent = getpid();
    (void)guard_run(fork_and_leave, (void *)(uintptr_t)how, NULL);
    if (getpid() != parent) {
        _exit(0);
    }
    events_expect("run the child's own,child kind,the parent lives," HELD);
}

START_TEST(a_child_that_returns_or_panics_applies_the_child_rules_and_the_parent_lives_on)
{
    events_open();
    leave_in_the_child("return");
    leave_in_the_child("panic");
}
END_TEST

START_TEST(a_child_that_exits_applies_the_child_rules_where_exit_runs_scopes)
{
    events_open();
    guard_process_init(GUARD_AT_EXIT);
    leave_in_the_child("exit");
}
END_TEST

/* Under ThreadSanitizer a process whose main thread has exited does not end: its own thread lives on. */
#ifndef WITH_TSAN
START_TEST(a_child_whose_thread_exits_applies_the_child_rules)
{
    events_open();
    leave_in_the_child("exit thread");
}
END_TEST
#endif

static void release_inherited(void *arg)
{
    const guard_ticket *tickets = arg;
    guard_release(tickets[0]);
    guard_release(tickets[1]);
    guard_release(tickets[2]);
    guard_dismiss(tickets[3]);
}

START_TEST(releasing_an_inherited_ticket_applies_the_child_rule)
{
    events_open();
    {
        GUARD_AUTO(s);
        guard_ticket tickets[] = {guard_defer_kind(s, &kind, (void *)"one"), guard_defer(s, event_run, (void *)"two"),
                                  guard_defer_copy(s, event_run, "three", 6),
                                  guard_defer_kind(s, &kind, (void *)"four")};
        ck_assert_int_eq(events_in_child(release_inherited, tickets), 0);
        events_expect("child one");
    }
    events_expect("release four,run three,run two,release one");
}
END_TEST

static void fork_again(void *arg)
{
    guard_scope *s = arg;
    guard_defer_kind(s, &kind, (void *)"child's");
    ck_assert_uint_eq(guard_fork_count(), 1);
    pid_t pid = fork();
    if (pid == 0) {
        ck_assert_uint_eq(guard_fork_count(), 2);
        return; /* to _exit, after the scope: see below */
    }
    int status;
    waitpid(pid, &status, 0);
}

static void fork_twice_and_leave(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_kind(s, &kind, (void *)"parent's");
    pid_t pid = fork();
    if (pid == 0) {
        fork_again(s);
        return;
    }
    int status;
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
}

START_TEST(a_child_of_a_child_inherits_what_the_child_made)
{
    pid_t parent = getpid();
    events_open();
    ck_assert_uint_eq(guard_fork_count(), 0);
    guard_run(fork_twice_and_leave, NULL, NULL);
    if (getpid() != parent) {
        _exit(0);
    }
    events_expect("child child's,child parent's,release child's,child parent's,release parent's");
}
END_TEST

static void recover(guard_recovery *recovery, void *arg)
{
    (void)arg;
    event_add("recover", guard_recover(recovery) ? "panic" : "nothing");
}

static void fork_and_recover(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer_recover(s, recover, NULL);
    pid_t pid = fork();
    if (pid == 0) {
        guard_panic(1, "one");
    }
    int status;
    waitpid(pid, &status, 0);
}

START_TEST(an_inherited_recovering_defer_still_recovers)
{
    pid_t parent = getpid();
    events_open();
    int code = guard_run(fork_and_recover, NULL, NULL);
    if (getpid() != parent) {
        _exit(code);
    }
    events_expect("recover panic,recover nothing");
}
END_TEST

/* --------------------------------------------------------------------------------------------- at the fork -- */

static void note_the_child(void *arg)
{
    (void)arg;
    event_add("in the", "child");
}

typedef struct helper {
    sem_t ready;
    sem_t over;
} helper;

static void *hold_in_a_thread(void *arg)
{
    helper *h = arg;
    GUARD_AUTO(s);
    guard_defer_kind(s, &connection, (void *)"thread's");
    guard_defer_kind(s, &kind, (void *)"thread's kind");
    sem_post(&h->ready);
    while (sem_wait(&h->over) != 0) {
    }
    return NULL;
}

START_TEST(kinds_that_ask_for_it_have_their_rule_in_fork_whoever_holds_them)
{
    helper h;
    pthread_t thread;
    events_open();
    sem_init(&h.ready, 0, 0);
    sem_init(&h.over, 0, 0);
    ck_assert_int_eq(pthread_create(&thread, NULL, hold_in_a_thread, &h), 0);
    while (sem_wait(&h.ready) != 0) {
    }
    guard_owner *owner = guard_owner_new();
    guard_defer_kind(guard_owner_scope(owner), &connection, (void *)"owner's");
    guard_stack *fiber = guard_stack_new();
    guard_stack_swap(fiber);
    guard_scope in_fiber;
    guard_scope_open(&in_fiber);
    guard_defer_kind(&in_fiber, &connection, (void *)"fiber's");
    guard_stack_swap(NULL);
    {
        GUARD_AUTO(s);
        guard_defer_kind(s, &connection, (void *)"mine");
        ck_assert_int_eq(events_in_child(note_the_child, NULL), 0);
        const char *text = events_read();
        ck_assert_ptr_nonnull(strstr(text, "at fork mine"));
        ck_assert_ptr_nonnull(strstr(text, "at fork thread's"));
        ck_assert_ptr_nonnull(strstr(text, "at fork owner's"));
        ck_assert_ptr_nonnull(strstr(text, "at fork fiber's"));
        ck_assert_ptr_null(strstr(text, "kind"));
        ck_assert_ptr_nonnull(strstr(text, "in the child"));
    }
    events_expect("release mine");
    sem_post(&h.over);
    pthread_join(thread, NULL);
    events_expect("release thread's kind,release thread's");
    guard_owner_close(owner);
    guard_stack_swap(fiber);
    guard_scope_close(&in_fiber);
    guard_stack_swap(NULL);
    guard_stack_free(fiber);
    events_expect("release owner's,release fiber's");
}
END_TEST

static void close_the_owner(void *arg)
{
    guard_owner *owner = arg;
    guard_defer(guard_owner_scope(owner), event_run, (void *)"the child's own");
    guard_owner_close(owner);
}

START_TEST(a_child_that_closes_an_inherited_owner_applies_the_child_rules)
{
    events_open();
    guard_owner *owner = guard_owner_new();
    hold(guard_owner_scope(owner));
    ck_assert_int_eq(events_in_child(close_the_owner, owner), 0);
    events_expect("run the child's own,child kind");
    guard_owner_close(owner);
    events_expect(HELD);
}
END_TEST

static void adopt(void *arg)
{
    guard_scope *s = arg;
    guard_child_adopt(s);
    guard_scope_close(s);
}

START_TEST(a_child_that_adopts_runs_all_as_its_own_but_what_was_done_in_fork)
{
    guard_scope s;
    events_open();
    guard_scope_open(&s);
    hold(&s);
    guard_defer_kind(&s, &connection, (void *)"connection");
    ck_assert_int_eq(events_in_child(adopt, &s), 0);
    events_expect("at fork connection," HELD);
    guard_scope_close(&s);
    events_expect("release connection," HELD);
}
END_TEST

/* ----------------------------------------------------------------------------------------- after the fork -- */

static void *cancel_the_main_thread(void *arg)
{
    guard_cancel_thread(*(pthread_t *)arg);
    return NULL;
}

static void wait_until_cancelled(void *arg)
{
    (void)arg;
    guard_wait_descriptor(-1, 0, -1);
}

static void cancel_in_the_child(void *arg)
{
    pthread_t self = pthread_self();
    pthread_t thread;
    (void)arg;
    ck_assert_int_eq(guard_cancelled(), 0);
    pthread_create(&thread, NULL, cancel_the_main_thread, &self);
    int code = guard_run(wait_until_cancelled, NULL, NULL);
    pthread_join(thread, NULL);
    _exit(code == ECANCELED ? 0 : 1);
}

START_TEST(a_cancel_of_the_parent_is_not_the_childs_and_the_childs_not_the_parents)
{
    ck_assert_int_ge(guard_cancel_descriptor(), 0);
    guard_cancel_thread(pthread_self());
    ck_assert_int_eq(events_in_child(cancel_in_the_child, NULL), 0);
    ck_assert_int_eq(guard_cancelled(), 1);
    guard_cancel_clear();
    struct pollfd wake = {.fd = guard_cancel_descriptor(), .events = POLLIN};
    ck_assert_int_eq(poll(&wake, 1, 0), 0);
}
END_TEST

/* In the child of a process with threads, ThreadSanitizer takes signals and never hands them on. */
#ifndef WITH_TSAN
static void *raise_the_signal(void *arg)
{
    raise(SIGTERM);
    return arg;
}

static void wait_for_the_signal(void *arg)
{
    pthread_t thread;
    (void)arg;
    ck_assert_int_ge(guard_cancel_descriptor(), 0);
    ck_assert_int_eq(pthread_create(&thread, NULL, raise_the_signal, NULL), 0);
    guard_wait_descriptor(-1, 0, -1);
}

static void signal_in_the_child(void *arg)
{
    (void)arg;
    _exit(guard_run(wait_for_the_signal, NULL, NULL) == ECANCELED ? 0 : 1);
}

START_TEST(a_child_is_cancelled_by_its_own_signal_and_not_by_the_parents)
{
    guard_cancel_on_signal(SIGTERM, 0);
    raise(SIGTERM);
    ck_assert_int_eq(events_in_child(signal_in_the_child, NULL), 0);
}
END_TEST
#endif

static void spawn(void)
{
    char *const words[] = {(char *)(uintptr_t) "true", NULL};
    pid_t pid;
    int status;
    ck_assert_int_eq(posix_spawnp(&pid, "true", NULL, NULL, words, environ), 0);
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
}

static void exec_in_a_vfork(void)
{
#ifndef WITH_TSAN /* it makes a fork of it */
    int status;
    pid_t pid = vfork();
    if (pid == 0) {
        execlp("true", "true", (char *)NULL);
        _exit(127);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
#endif
}

START_TEST(posix_spawn_and_vfork_run_no_rule)
{
    events_open();
    {
        GUARD_AUTO(s);
        guard_defer_kind(s, &kind, (void *)"kind");
        guard_defer_kind(s, &connection, (void *)"connection");
        spawn();
        exec_in_a_vfork();
        events_expect("");
        ck_assert_uint_eq(guard_fork_count(), 0);
    }
    events_expect("release connection,release kind");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_child_that_returns_or_panics_applies_the_child_rules_and_the_parent_lives_on,
        a_child_that_exits_applies_the_child_rules_where_exit_runs_scopes,
#ifndef WITH_TSAN
        /* What only main's frames pointed at, Check's memory, counts as lost once that thread is gone. */
        suite_unless_memcheck(a_child_whose_thread_exits_applies_the_child_rules),
#endif
        releasing_an_inherited_ticket_applies_the_child_rule,
        a_child_of_a_child_inherits_what_the_child_made,
        an_inherited_recovering_defer_still_recovers,
        kinds_that_ask_for_it_have_their_rule_in_fork_whoever_holds_them,
        a_child_that_closes_an_inherited_owner_applies_the_child_rules,
        a_child_that_adopts_runs_all_as_its_own_but_what_was_done_in_fork,
        a_cancel_of_the_parent_is_not_the_childs_and_the_childs_not_the_parents,
#ifndef WITH_TSAN
        /* The child ends while its watcher lives, and glibc's memory of a thread counts as possibly lost. */
        suite_unless_memcheck(a_child_is_cancelled_by_its_own_signal_and_not_by_the_parents),
#endif
        posix_spawn_and_vfork_run_no_rule,
    };
    return suite_run("fork", tests, sizeof tests / sizeof *tests);
}
