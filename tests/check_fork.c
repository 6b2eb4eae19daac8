/* SPDX-License-Identifier: MIT */
/* check_fork.c: what a forked child does with what it inherits, and what exit runs (behaviour 50, the core's part). */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_process.h>

#include "child.h"
#include "suite.h"

/* ThreadSanitizer refuses threads in the child of a process that has some; its own counts. */
extern const char *__tsan_default_options(void) __attribute__((visibility("default")));

const char *__tsan_default_options(void)
{
    return "die_after_fork=0";
}

/* What happens in any process of a test goes through one pipe, in order. */
static int events[2] = {-1, -1};

static void event(const char *what, const char *name)
{
    char text[100];
    int length = snprintf(text, sizeof text, "%s %s,", what, name);
    ck_assert_int_eq(write(events[1], text, (size_t)length), length);
}

static void events_open(void)
{
    ck_assert_int_eq(pipe2(events, O_CLOEXEC | O_NONBLOCK), 0);
}

static void events_expect(const char *expected)
{
    char text[2000];
    ssize_t got = read(events[0], text, sizeof text - 1);
    text[got > 0 ? got - 1 : 0] = '\0';
    ck_assert_str_eq(text, expected);
}

static void run(void *name)
{
    event("run", name);
}

static void release(void *name)
{
    event("release", name);
}

static void child_rule(void *name)
{
    event("child", name);
}

static void at_fork(void *name)
{
    event("at fork", name);
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
    guard_defer(s, run, (void *)"function");
    guard_defer_copy(s, run, "copy", 5);
    static const char text[] = "a copy that is too long to be kept in a record of the pool";
    guard_defer_copy(s, run, text, sizeof text);
    guard_defer_kind(s, &ruleless, (void *)"ruleless");
    guard_defer_kind(s, &kind, (void *)"kind");
}

#define HELD                                                                                                     \
    "release kind,release ruleless,run a copy that is too long to be kept in a record of the pool,run copy,run " \
    "function"

/* Forks, runs fn in the child, and returns the child's status when it has ended. */
static int in_child(guard_fn *fn, void *arg)
{
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        fn(arg);
        _exit(0);
    }
    int status;
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    return status;
}

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
        guard_defer(s, run, (void *)"the child's own");
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
    event("the parent", "lives");
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
        guard_ticket tickets[] = {guard_defer_kind(s, &kind, (void *)"one"), guard_defer(s, run, (void *)"two"),
                                  guard_defer_copy(s, run, "three", 6), guard_defer_kind(s, &kind, (void *)"four")};
        ck_assert_int_eq(in_child(release_inherited, tickets), 0);
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
    event("recover", guard_recover(recovery) ? "panic" : "nothing");
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
    event("in the", "child");
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
        ck_assert_int_eq(in_child(note_the_child, NULL), 0);
        char text[500];
        ssize_t got = read(events[0], text, sizeof text - 1);
        ck_assert_int_gt(got, 0);
        text[got] = '\0';
        ck_assert_ptr_nonnull(strstr(text, "at fork mine,"));
        ck_assert_ptr_nonnull(strstr(text, "at fork thread's,"));
        ck_assert_ptr_nonnull(strstr(text, "at fork owner's,"));
        ck_assert_ptr_nonnull(strstr(text, "at fork fiber's,"));
        ck_assert_ptr_null(strstr(text, "kind"));
        ck_assert_ptr_nonnull(strstr(text, "in the child,"));
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
    guard_defer(guard_owner_scope(owner), run, (void *)"the child's own");
    guard_owner_close(owner);
}

START_TEST(a_child_that_closes_an_inherited_owner_applies_the_child_rules)
{
    events_open();
    guard_owner *owner = guard_owner_new();
    hold(guard_owner_scope(owner));
    ck_assert_int_eq(in_child(close_the_owner, owner), 0);
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
    ck_assert_int_eq(in_child(adopt, &s), 0);
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
    ck_assert_int_eq(in_child(cancel_in_the_child, NULL), 0);
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
    ck_assert_int_eq(in_child(signal_in_the_child, NULL), 0);
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

/* ----------------------------------------------------------------------------------------------- exit -- */

static void exit_inside(void *arg)
{
    event("exit in", arg);
    exit(3);
}

static void panic_with(void *arg)
{
    guard_panic(7, "%s", (const char *)arg);
}

static void exit_with_scopes(void *arg)
{
    (void)arg;
    GUARD_AUTO(outer);
    guard_defer(outer, run, (void *)"1");
    guard_defer(outer, exit_inside, (void *)"defer");
    GUARD_AUTO(s);
    guard_defer(s, run, (void *)"2");
    guard_defer_on(s, GUARD_ON_SUCCESS, run, (void *)"success");
    exit(2);
}

static void exit_in_a_border(void *arg)
{
    guard_run(exit_with_scopes, arg, NULL);
}

static void init_and_exit(void *arg)
{
    guard_process_init(GUARD_AT_EXIT);
    guard_process_init(GUARD_AT_EXIT);
    exit_in_a_border(arg);
}

START_TEST(exit_runs_nothing_unless_asked)
{
    events_open();
    ck_assert_int_eq(WEXITSTATUS(in_child(exit_in_a_border, NULL)), 2);
    events_expect("");
}
END_TEST

START_TEST(exit_runs_the_threads_scopes_once_and_a_second_exit_inside_does_not_loop)
{
    events_open();
    ck_assert_int_eq(WEXITSTATUS(in_child(init_and_exit, NULL)), 3);
    events_expect("run 2,exit in defer,run 1");
}
END_TEST

static void exit_with_a_panic(void *arg)
{
    (void)arg;
    guard_process_init(GUARD_AT_EXIT);
    GUARD_AUTO(s);
    guard_defer(s, run, (void *)"1");
    guard_defer(s, panic_with, (void *)"failed at exit");
    exit(0);
}

static void exit_with_a_panic_in_a_border(void *arg)
{
    guard_run(exit_with_a_panic, arg, NULL);
}

START_TEST(a_panic_at_exit_is_fatal_after_the_rest_has_run)
{
    events_open();
    child_result result;
    child_run(exit_with_a_panic_in_a_border, NULL, &result);
    child_expect_abort(&result);
    ck_assert_ptr_nonnull(strstr(result.text, "failed at exit"));
    events_expect("run 1");
}
END_TEST

static void underscore_exit(void *arg)
{
    (void)arg;
    guard_process_init(GUARD_AT_EXIT);
    GUARD_AUTO(s);
    guard_defer(s, run, (void *)"1");
    _exit(4);
}

START_TEST(underscore_exit_runs_nothing)
{
    events_open();
    ck_assert_int_eq(WEXITSTATUS(in_child(underscore_exit, NULL)), 4);
    events_expect("");
}
END_TEST

static void init_with(void *arg)
{
    guard_process_init(*(unsigned *)arg);
}

START_TEST(unknown_flags_of_guard_process_init_are_misuse)
{
    guard_error error;
    unsigned flags = 0x8000;
    ck_assert_int_eq(guard_run(init_with, &flags, &error), GUARD_MISUSE_ARGUMENT);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
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
        exit_runs_nothing_unless_asked,
        exit_runs_the_threads_scopes_once_and_a_second_exit_inside_does_not_loop,
        a_panic_at_exit_is_fatal_after_the_rest_has_run,
        underscore_exit_runs_nothing,
        unknown_flags_of_guard_process_init_are_misuse,
    };
    return suite_run("fork", tests, sizeof tests / sizeof *tests);
}
