/* SPDX-License-Identifier: MIT */
/*
 * check_exit_thread.c: guard_exit_thread runs the scopes of its thread on top of the frames, which pthread_exit unwinds afterwards: what these
 * still close lies in memory that was given back. The allocator of these tests writes over what is
 * given back, and sees whether somebody else does.
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_breaker.h>
#include <guard/guard_cancel.h>
#include <guard/guard_log.h>
#include <guard/guard_process.h>
#include <guard/guard_service.h>

#include "calls.h"
#include "child.h"
#include "suite.h"
#include "task.h"

#ifdef WITH_ASAN
/* Once the main thread is gone, what only its frames pointed at, Check's memory, is a leak to LeakSanitizer. */
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}
#endif

typedef struct block {
    struct block *next;
    size_t size;
    _Alignas(16) unsigned char memory[];
} block;

static atomic_int blocks;
static block *given; /* by one thread at a time */

static void *take(size_t size)
{
    block *new = malloc(sizeof *new + size);
    new->size = size;
    atomic_fetch_add(&blocks, 1);
    return new->memory;
}

/* It is kept, to see whether somebody writes into it. */
static void give(void *memory)
{
    if (memory != NULL) {
        block *old = (block *)(void *)((unsigned char *)memory - offsetof(block, memory));
        atomic_fetch_sub(&blocks, 1);
        memset(memory, 0xdd, old->size);
        old->next = given;
        given = old;
    }
}

static void expect_unused(void)
{
    while (given != NULL) {
        block *old = given;
        for (size_t i = 0; i < old->size; i++) {
            ck_assert_msg(old->memory[i] == 0xdd, "byte %zu of a block of %zu was written after it was given back", i,
                          old->size);
        }
        given = old->next;
        free(old);
    }
}

static int runs;

static void count(void *arg)
{
    runs += *(int *)arg;
}

static int one = 1;
static int ten = 10;

static void expect_in_thread(void *(*fn)(void *))
{
    pthread_t thread;
    guard_allocator(take, give);
    ck_assert_int_eq(pthread_create(&thread, NULL, fn, NULL), 0);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    ck_assert_int_eq(atomic_load(&blocks), 0);
    expect_unused();
}

static void *close_owner(void *arg)
{
    GUARD_AUTO(s);
    guard_owner *owner = guard_owner_new();
    guard_defer(s, count, &ten);
    guard_defer(guard_owner_scope(owner), count, &one);
    guard_defer(guard_owner_scope(owner), call_exit_thread, NULL);
    guard_defer(guard_owner_scope(owner), count, &one);
    guard_owner_close(owner);
    return arg;
}

START_TEST(a_thread_that_exits_in_a_function_of_an_owner_runs_the_rest_once)
{
    expect_in_thread(close_owner);
    ck_assert_int_eq(runs, 12);
}
END_TEST

static void *release_owner(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, count, &ten);
    {
        GUARD_AUTO(inner);
        guard_owner *owner = guard_owner_new();
        guard_defer_kind(inner, &guard_owner_kind, owner);
        guard_defer(guard_owner_scope(owner), count, &one);
        guard_defer(guard_owner_scope(owner), call_exit_thread, NULL);
    }
    return arg;
}

START_TEST(so_does_one_that_exits_while_a_scope_closes_its_owner)
{
    expect_in_thread(release_owner);
    ck_assert_int_eq(runs, 11);
}
END_TEST

static void *call_services(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, count, &ten);
    guard_service *service = guard_service_open(s, "test", NULL);
    guard_service_call(service, call_exit_thread, NULL, NULL);
    return arg;
}

START_TEST(a_call_may_exit_the_thread_whose_scope_has_its_service)
{
    expect_in_thread(call_services);
    ck_assert_int_eq(runs, 10);
}
END_TEST

static void *call_breakers(void *arg)
{
    GUARD_AUTO(s);
    const guard_breaker_options options = {.calls = 1};
    guard_defer(s, count, &ten);
    guard_breaker *breaker = guard_breaker_open(s, "test", &options);
    guard_breaker_call(breaker, call_exit_thread, NULL, NULL);
    return arg;
}

START_TEST(or_its_breaker)
{
    expect_in_thread(call_breakers);
    ck_assert_int_eq(runs, 10);
}
END_TEST

/* ------------------------------------------------------------------------------------------ the main thread -- */

#ifndef WITH_TSAN
static int two = 2;

static void *outlive_main(void *arg)
{
    task_wait(getpid(), 'Z');
    guard_log_write(arg, GUARD_LOG_NOTICE, "last");
    return NULL;
}

static void tell_end(void)
{
    static const char text[] = "exit";
    ck_assert_int_eq((int)write(STDERR_FILENO, text, sizeof text - 1), (int)sizeof text - 1);
}

static void leave_main(void *arg)
{
    pthread_t thread;
    guard_log *log = guard_log_open(guard_owner_scope(guard_owner_new()), "test", NULL);
    alarm(30);
    atexit(tell_end);
    if (arg != &two) {
        guard_cancel_on_signal(SIGTERM, 0);
    }
    pthread_create(&thread, NULL, outlive_main, log);
    pthread_detach(thread);
    if (arg != NULL) {
        guard_exit_thread();
    }
    pthread_exit(NULL);
}

static void expect_end(void *arg)
{
    child_result result;
    child_run(leave_main, arg, &result);
    ck_assert_msg(WIFEXITED(result.status) && WEXITSTATUS(result.status) == 0, "status %x", (unsigned)result.status);
    ck_assert_msg(strstr(result.text, "last") != NULL && strstr(result.text, "exit") != NULL, "\"%s\"", result.text);
}
#endif

/* The library's own threads do not: not the one that watches for signals, which would take SIGTERM, too, nor that of a log. */
START_TEST(a_process_whose_main_thread_has_exited_ends_with_the_programs_last_thread)
{
#ifndef WITH_TSAN /* which has a thread of its own, that does not end either */
    expect_end(&one);
    expect_end(&two); /* only the log has a thread */
    expect_end(NULL);
#endif
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_thread_that_exits_in_a_function_of_an_owner_runs_the_rest_once,
        so_does_one_that_exits_while_a_scope_closes_its_owner,
        a_call_may_exit_the_thread_whose_scope_has_its_service,
        or_its_breaker,
        a_process_whose_main_thread_has_exited_ends_with_the_programs_last_thread,
    };
    return suite_run("exit_thread", tests, sizeof tests / sizeof *tests);
}
