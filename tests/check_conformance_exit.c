/* SPDX-License-Identifier: MIT */
/*
 * check_conformance_exit.c: Go's tests of Goexit, restated, but for those in check_unwind.c: guard/CONFORMANCE.md has where each stands.
 */
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_process.h>

#include "calls.h"
#include "child.h"
#include "conform.h"
#include "suite.h"

#ifdef WITH_ASAN
/* Once the main thread is gone, what only its frames pointed at, Check's memory, is a leak to LeakSanitizer. */
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}
#endif

static child_result child;

static void increment(void *number)
{
    ++*(int *)number;
}

static void recover_and_exit(guard_recovery *recovery, void *arg)
{
    ck_assert_int_eq(guard_recover(recovery), 1);
    *(int *)arg += 1;
    guard_exit_thread();
}

static void panic_then_exit(void *count)
{
    GUARD_AUTO(s);
    guard_defer(s, increment, count);
    guard_defer_recover(s, recover_and_exit, count);
    raise_code(as_arg(1));
}

static void *panic_then_exit_thread(void *count)
{
    guard_run(panic_then_exit, count, NULL);
    *(int *)count += 1000;
    return count;
}

/* fixedbugs/issue8158.go */
START_TEST(a_recovering_function_may_exit_its_thread_again_and_again)
{
    int count = 0;
    for (int i = 1; i <= 20; i++) {
        pthread_t thread;
        void *end = &count;
        ck_assert_int_eq(pthread_create(&thread, NULL, panic_then_exit_thread, &count), 0);
        ck_assert_int_eq(pthread_join(thread, &end), 0);
        ck_assert_ptr_null(end);
        ck_assert_int_eq(count, 2 * i);
    }
}
END_TEST

/* Through a pointer, or gcc warns of an infinite recursion: it does not know that the deepest call never returns. */
static void exit_below(void *depth);
static guard_fn *volatile next_frame = exit_below;

static void exit_below(void *depth)
{
    volatile char frame[1024];
    frame[0] = 1;
    if ((intptr_t)depth == 0) {
        guard_exit_thread();
    }
    next_frame(as_arg((int)(intptr_t)depth - 1));
    (void)frame[0];
}

static void *exit_from_deep_frames(void *arg)
{
    exit_below(as_arg(20));
    return arg;
}

/* fixedbugs/issue11256.go */
START_TEST(a_hundred_threads_exit_from_deep_frames)
{
    for (int i = 0; i < 100; i++) {
        pthread_t thread;
        void *end = &thread;
        ck_assert_int_eq(pthread_create(&thread, NULL, exit_from_deep_frames, &child), 0);
        ck_assert_int_eq(pthread_join(thread, &end), 0);
        ck_assert_ptr_null(end);
    }
}
END_TEST

static int ends[2];

static void send_zero(void *arg)
{
    char zero = 0;
    (void)arg;
    ck_assert_int_eq(write(ends[1], &zero, 1), 1);
}

static void *end_the_process(void *arg)
{
    char code = 1;
    if (read(ends[0], &code, 1) != 1) {
        _exit(9);
    }
    _exit(code);
    return arg;
}

static void exit_the_main_thread(void *arg)
{
    pthread_t thread;
    if (pipe(ends) != 0 || pthread_create(&thread, NULL, end_the_process, arg) != 0) {
        _exit(8);
    }
    GUARD_AUTO(s);
    guard_defer(s, send_zero, NULL);
    guard_exit_thread();
}

/* fixedbugs/issue5963.go */
START_TEST(the_main_thread_may_exit_and_another_ends_the_process)
{
    child_run(exit_the_main_thread, NULL, &child);
    ck_assert_msg(WIFEXITED(child.status) && WEXITSTATUS(child.status) == 0, "status %x", (unsigned)child.status);
    ck_assert_str_eq(child.text, "");
}
END_TEST

/* Under ThreadSanitizer a process whose main thread has exited does not end: its own thread lives on. */
#ifndef WITH_TSAN
static void exit_in_a_panic(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_defer(s, call_exit_thread, NULL);
    raise_code(as_arg(1));
}

/* TestGoexitCrash, TestGoexitDeadlock, TestGoexitInPanic: Go finds that nothing can run any more; a process without threads has ended. */
START_TEST(the_process_ends_with_0_when_its_last_thread_exits)
{
    child_run(call_exit_thread, NULL, &child);
    ck_assert_msg(WIFEXITED(child.status) && WEXITSTATUS(child.status) == 0, "status %x", (unsigned)child.status);
    child_run(exit_in_a_panic, NULL, &child);
    ck_assert_msg(WIFEXITED(child.status) && WEXITSTATUS(child.status) == 0, "status %x", (unsigned)child.status);
    ck_assert_str_eq(child.text, "");
}
END_TEST
#endif

int main(void)
{
    const TTest *const tests[] = {
        a_recovering_function_may_exit_its_thread_again_and_again,
        a_hundred_threads_exit_from_deep_frames,
        /* Where the main thread is gone, what only its frames pointed at (Check's memory) counts as lost, and glibc's of a thread that lives. */
        suite_unless_memcheck(the_main_thread_may_exit_and_another_ends_the_process),
#ifndef WITH_TSAN
        suite_unless_memcheck(the_process_ends_with_0_when_its_last_thread_exits),
#endif
    };
    return suite_run("conformance_exit", tests, sizeof tests / sizeof *tests);
}
