/* SPDX-License-Identifier: MIT */
/*
 * check_fatal.c: what is done when a signal kills the process: the report, and how it dies.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard_cancel.h>
#include <guard/guard_fault.h>

#include "faults.h"
#include "suite.h"
#include "trace.h"

static void expect_text(const child_result *result, const char *text)
{
    ck_assert_msg(strstr(result->text, text) != NULL, "no \"%s\" in \"%s\"", text, result->text);
}

/* ------------------------------------------------------------------------------------------------ report -- */

enum { HOLDING = __LINE__ };

static void die_holding(void *arg)
{
    GUARD_AUTO(s);
    guard_fatal_signals();
    guard_defer(s, trace_run, "a");
    guard_defer_kind(s, &trace_kind, "b");
    GUARD_AUTO(t);
    guard_dismiss(guard_defer(t, trace_run, "dismissed"));
    guard_defer_recover(t, trace_see, "c");
    pthread_setname_np(pthread_self(), "bell\a");
    fault_read_far(arg);
}

START_TEST(the_report_names_the_fault_the_thread_and_what_it_holds_in_one_write)
{
    child_result result;
    char held[256];
    fault_run_child(die_holding, NULL, &result);
    child_expect_signal(&result, SIGSEGV);
    expect_text(&result, "guard: fatal: SIGSEGV, address 0x9c40 (nothing is mapped there), pc 0x");
    expect_text(&result, " (check_fatal+0x");
    expect_text(&result, ", thread ");
    expect_text(&result, " \"bell\\x07\"\n");
    /* Newest first; the dismissed one is not told. */
    snprintf(held, sizeof held,
             "\n\theld: recovering function at check_fatal.c:%d\n\theld: %s at check_fatal.c:%d\n"
             "\theld: function at check_fatal.c:%d\n",
             HOLDING + 10, trace_kind.name, HOLDING + 7, HOLDING + 6);
    expect_text(&result, held);
    ck_assert_msg(strstr(result.text, "no panic") == NULL, "%s", result.text);
    if (!FAULT_SANITIZED) {
        ck_assert_uint_eq(result.writes, 1);
    }
}
END_TEST

static void die_holding_much(void *arg)
{
    GUARD_AUTO(s);
    guard_fatal_signals();
    for (int i = 0; i < 1000; i++) {
        guard_defer(s, trace_run, "a");
    }
    fault_read_null(arg);
}

START_TEST(the_report_counts_what_it_does_not_name)
{
    child_result result;
    fault_run_child(die_holding_much, NULL, &result);
    child_expect_signal(&result, SIGSEGV);
    expect_text(&result, "\tand 984 more\n");
}
END_TEST

#if !FAULT_THREAD_SANITIZED
static void die_with_broken_list(void *arg)
{
    GUARD_AUTO(s);
    guard_fatal_signals();
    guard_defer(s, trace_run, "whole");
    guard_ticket ticket = guard_defer(s, trace_run, "broken");
    ticket.record->place = (const guard_place *)16;
    fault_read_null(arg);
}

START_TEST(what_cannot_be_read_does_not_change_how_it_dies)
{
    child_result result;
    fault_run_child(die_with_broken_list, NULL, &result);
    child_expect_signal(&result, SIGSEGV);
    expect_text(&result, "guard: fatal: SIGSEGV, address 0x0 ");
    expect_text(&result, "\twhat it holds could not be read\n");
}
END_TEST
#endif

static void die_by_abort(void *arg)
{
    GUARD_AUTO(s);
    (void)arg;
    guard_fatal_signals();
    guard_defer(s, trace_run, "a");
    abort();
}

START_TEST(abort_is_reported)
{
    child_result result;
    fault_run_child(die_by_abort, NULL, &result);
    child_expect_signal(&result, SIGABRT);
    expect_text(&result, "guard: fatal: SIGABRT, pc 0x");
    expect_text(&result, "\theld: function at check_fatal.c:");
}
END_TEST

/* gcc 12's ThreadSanitizer does not see that the report takes its lock (pthread_mutex_clocklock), and reports the unlock. */
#if !FAULT_THREAD_SANITIZED
static void die_by_panic(void *arg)
{
    (void)arg;
    guard_fatal_signals();
    guard_panic(1, "nobody recovers");
}

START_TEST(an_uncaught_panic_has_its_own_report_only)
{
    child_result result;
    fault_run_child(die_by_panic, NULL, &result);
    child_expect_signal(&result, SIGABRT);
    expect_text(&result, "panic: nobody recovers");
    ck_assert_msg(strstr(result.text, "fatal:") == NULL, "%s", result.text);
}
END_TEST
#endif

static void die_of_illegal(void *arg)
{
    (void)arg;
    guard_fatal_signals();
    raise(SIGILL);
    _exit(4);
}

START_TEST(a_signal_that_was_sent_ends_the_process_as_well)
{
    child_result result;
    fault_run_child(die_of_illegal, NULL, &result);
    child_expect_signal(&result, SIGILL);
    expect_text(&result, "guard: fatal: SIGILL, pc 0x");
}
END_TEST

static pthread_barrier_t together;

static void *die_together(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "a");
    pthread_barrier_wait(&together);
    fault_read_null(NULL);
    return arg;
}

static void die_in_threads(void *arg)
{
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    (void)arg;
    guard_fatal_signals();
    pthread_barrier_init(&together, NULL, THREADS);
    for (int i = 0; i < THREADS; i++) {
        pthread_create(&threads[i], NULL, die_together, NULL);
    }
    pthread_join(threads[0], NULL);
    pause();
}

START_TEST(of_threads_that_die_together_one_reports)
{
    child_result result;
    fault_run_child(die_in_threads, NULL, &result);
    child_expect_signal(&result, SIGSEGV);
    const char *first = strstr(result.text, "guard: fatal:");
    ck_assert_ptr_nonnull(first);
    ck_assert_msg(strstr(first + 1, "guard: fatal:") == NULL, "%s", result.text);
}
END_TEST

/* A pipe that is full and that nobody reads. */
static void die_at_full_pipe(void *arg)
{
    int ends[2];
    char bytes[4096] = {0};
    (void)arg;
    guard_fatal_signals();
    if (pipe2(ends, O_NONBLOCK) != 0) {
        _exit(3);
    }
    while (write(ends[1], bytes, sizeof bytes) > 0) {
    }
    fcntl(ends[1], F_SETFL, 0);
    dup2(ends[1], STDERR_FILENO);
    fault_read_null(NULL);
}

START_TEST(a_full_pipe_does_not_keep_it_from_dying)
{
    child_result result;
    fault_run_child(die_at_full_pipe, NULL, &result);
    child_expect_signal(&result, SIGSEGV);
}
END_TEST

static void die_in_watcher(void *arg)
{
    guard_interrupt interrupt;
    guard_fatal_signals();
    GUARD_AUTO(s);
    guard_deadline(s, 0);
    guard_interrupt_open(&interrupt, fault_read_null, arg);
    for (;;) {
        pause();
    }
}

START_TEST(a_fault_in_a_thread_of_the_librarys_own_is_reported)
{
    child_result result;
    fault_run_child(die_in_watcher, NULL, &result);
    child_expect_signal(&result, SIGSEGV);
    expect_text(&result, "guard: fatal: SIGSEGV, address 0x0 ");
}
END_TEST

static void overflow(void *arg)
{
    guard_fatal_signals();
    fault_overflow(arg);
}

START_TEST(a_stack_overflow_is_reported)
{
    child_result result;
    fault_run_child(overflow, NULL, &result);
    child_expect_signal(&result, SIGSEGV);
    expect_text(&result, "guard: fatal: SIGSEGV, address 0x");
}
END_TEST

/* ------------------------------------------------------------------------------------------- how it dies -- */

#if defined(__x86_64__) && !FAULT_SANITIZED

typedef struct stop {
    int signo;
    siginfo_t info;
    struct user_regs_struct registers;
} stop;

/* Goes on to the child's next stop; false when it is dead. */
static bool next_stop(pid_t child, int deliver, stop *at, int *status)
{
    ck_assert_int_eq(ptrace(PTRACE_CONT, child, NULL, (void *)(uintptr_t)deliver), 0);
    ck_assert_int_eq(waitpid(child, status, 0), child);
    if (!WIFSTOPPED(*status)) {
        return false;
    }
    at->signo = WSTOPSIG(*status);
    ck_assert_int_eq(ptrace(PTRACE_GETSIGINFO, child, NULL, &at->info), 0);
    ck_assert_int_eq(ptrace(PTRACE_GETREGS, child, NULL, &at->registers), 0);
    return true;
}

static void trace_child(guard_fn *body, pid_t *child)
{
    int status;
    *child = fork();
    ck_assert_int_ge(*child, 0);
    if (*child == 0) {
        guard_fatal_signals();
        freopen("/dev/null", "w", stderr);
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) {
            _exit(77);
        }
        raise(SIGSTOP);
        body(NULL);
        _exit(4);
    }
    ck_assert_int_eq(waitpid(*child, &status, 0), *child);
    ck_assert_msg(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP, "no trace: status %x", (unsigned)status);
}

/* What the kernel writes into a core file is what the second signal finds: after the handler, just before the end. */
static void expect_the_same_twice(guard_fn *body, int signo)
{
    pid_t child;
    int status;
    stop first;
    stop second;
    stop third;
    trace_child(body, &child);
    ck_assert(next_stop(child, 0, &first, &status));
    ck_assert_int_eq(first.signo, signo);
    ck_assert(next_stop(child, signo, &second, &status));
    ck_assert_int_eq(second.signo, signo);
    ck_assert_int_eq(second.info.si_code, first.info.si_code);
    ck_assert_ptr_eq(second.info.si_addr, first.info.si_addr);
    ck_assert_int_eq(second.info.si_value.sival_int, first.info.si_value.sival_int);
    /* At the same place in the same frame; the instruction of a fault has not been passed. */
    ck_assert_uint_eq(second.registers.rip, first.registers.rip);
    ck_assert_uint_eq(second.registers.rsp, first.registers.rsp);
    ck_assert_uint_eq(second.registers.rbp, first.registers.rbp);
    ck_assert_uint_eq(second.registers.rbx, first.registers.rbx);
    ck_assert(!next_stop(child, signo, &third, &status));
    ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == signo, "status %x", (unsigned)status);
}

static void queue_bus(void *arg)
{
    (void)arg;
    sigqueue(getpid(), SIGBUS, (union sigval){.sival_int = 4711});
}

START_TEST(the_fault_happens_again_with_its_own_address_and_registers)
{
    expect_the_same_twice(fault_read_far, SIGSEGV);
    expect_the_same_twice(fault_read_cut_file, SIGBUS);
    expect_the_same_twice(fault_divide_by_zero, SIGFPE);
    expect_the_same_twice(fault_call_null, SIGSEGV);
}
END_TEST

static void refused_fault(void *arg)
{
    if (guard_faults_to_panics() != 0) {
        _exit(3);
    }
    fault_call_null(arg);
}

START_TEST(a_fault_that_may_be_no_panic_happens_again_as_it_was)
{
    expect_the_same_twice(refused_fault, SIGSEGV);
}
END_TEST

START_TEST(a_signal_that_was_sent_is_sent_again_as_it_was)
{
    expect_the_same_twice(queue_bus, SIGBUS);
}
END_TEST

#endif

static void former_handler(int signo, siginfo_t *info, void *context)
{
    (void)context;
    static const char text[] = "former\n";
    if (signo == SIGSEGV && info->si_addr == (void *)40000 && write(STDERR_FILENO, text, sizeof text - 1) > 0) {
        _exit(7);
    }
    _exit(3);
}

static void die_with_former(void *arg)
{
    struct sigaction action = {.sa_sigaction = former_handler, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    guard_fatal_signals();
    fault_read_far(arg);
}

START_TEST(a_handler_that_was_there_before_has_the_last_word)
{
    child_result result;
    fault_run_child(die_with_former, NULL, &result);
    ck_assert_msg(WIFEXITED(result.status) && WEXITSTATUS(result.status) == 7, "status %x", (unsigned)result.status);
    const char *report = strstr(result.text, "guard: fatal: SIGSEGV");
    const char *former = strstr(result.text, "former\n");
    ck_assert_msg(report != NULL && former > report, "%s", result.text);
}
END_TEST

static void stay_ignored(void *arg)
{
    (void)arg;
    signal(SIGHUP, SIG_IGN);
    guard_fatal_on_signal(SIGHUP);
    raise(SIGHUP);
}

START_TEST(an_ignored_signal_stays_ignored)
{
    child_result result;
    fault_run_child(stay_ignored, NULL, &result);
    ck_assert_msg(WIFEXITED(result.status) && WEXITSTATUS(result.status) == 0, "status %x", (unsigned)result.status);
}
END_TEST

START_TEST(a_signal_that_cannot_be_caught_is_misuse)
{
    guard_error error;
    volatile int caught = 0;
    GUARD_TRY(&error)
    {
        guard_fatal_on_signal(SIGKILL);
    }
    GUARD_CATCH
    {
        caught = error.domain;
    }
    ck_assert_int_eq(caught, GUARD_MISUSE);
}
END_TEST

/* ---------------------------------------------------------------------------------------- alternate stacks -- */

static stack_t thread_stack;

static void *use_library(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "a");
    sigaltstack(NULL, &thread_stack);
    return arg;
}

#if !FAULT_SANITIZED
START_TEST(a_thread_has_an_alternate_stack_until_it_ends)
{
    pthread_t thread;
    unsigned char resident;
    guard_fatal_signals();
    ck_assert_int_eq(pthread_create(&thread, NULL, use_library, NULL), 0);
    pthread_join(thread, NULL);
    ck_assert_int_eq(thread_stack.ss_flags & SS_DISABLE, 0);
    ck_assert_uint_ge(thread_stack.ss_size, 64 * 1024);
    /* mincore(2) says ENOMEM where nothing is mapped. */
    ck_assert_int_eq(mincore(thread_stack.ss_sp, 1, &resident), -1);
    ck_assert_int_eq(errno, ENOMEM);
}
END_TEST
#endif

static void *bring_own_stack(void *arg)
{
    static char own[128 * 1024];
    const stack_t mine = {.ss_sp = own, .ss_size = sizeof own};
    sigaltstack(&mine, NULL);
    use_library(NULL);
    ck_assert_ptr_eq(thread_stack.ss_sp, own);
    const stack_t none = {.ss_flags = SS_DISABLE};
    sigaltstack(&none, NULL);
    return arg;
}

START_TEST(a_thread_that_has_an_alternate_stack_keeps_it)
{
    pthread_t thread;
    guard_fatal_signals();
    ck_assert_int_eq(pthread_create(&thread, NULL, bring_own_stack, NULL), 0);
    pthread_join(thread, NULL);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        the_report_names_the_fault_the_thread_and_what_it_holds_in_one_write,
        the_report_counts_what_it_does_not_name,
#if !FAULT_THREAD_SANITIZED
        what_cannot_be_read_does_not_change_how_it_dies,
        an_uncaught_panic_has_its_own_report_only,
#endif
        abort_is_reported,
        a_signal_that_was_sent_ends_the_process_as_well,
        of_threads_that_die_together_one_reports,
        a_full_pipe_does_not_keep_it_from_dying,
        a_fault_in_a_thread_of_the_librarys_own_is_reported,
        a_stack_overflow_is_reported,
#if defined(__x86_64__) && !FAULT_SANITIZED
        the_fault_happens_again_with_its_own_address_and_registers,
        a_fault_that_may_be_no_panic_happens_again_as_it_was,
        a_signal_that_was_sent_is_sent_again_as_it_was,
#endif
        a_handler_that_was_there_before_has_the_last_word,
        an_ignored_signal_stays_ignored,
        a_signal_that_cannot_be_caught_is_misuse,
#if !FAULT_SANITIZED
        a_thread_has_an_alternate_stack_until_it_ends,
#endif
        a_thread_that_has_an_alternate_stack_keeps_it,
    };
    return suite_run("fatal", tests, sizeof tests / sizeof *tests);
}
