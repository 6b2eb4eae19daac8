/* SPDX-License-Identifier: MIT */
/*
 * signal.c: a signal that cancels the process.
 *
 *     none --signal--> asked, in its grace --grace over, or a second signal--> due --guard_cancel_signal_clear--> none
 *
 * The handler only writes three words, marks its own thread and pokes the watcher, which marks and wakes the other threads.
 * Invariant: signal_number is written last, so that who reads it finds signal_due filled in.
 */
#include <errno.h>
#include <signal.h>

#include "internal.h"

static int signal_number;                /* what cancelled the process; 0: nothing */
static uint32_t signal_count;            /* how often since the last clear */
static int64_t signal_due = CLOCK_NEVER; /* in guard_clock */
static int32_t signal_grace[NSIG];       /* ms */
static bool signal_is_installed;

static void due_lower(int64_t due)
{
    int64_t former = __atomic_load_n(&signal_due, __ATOMIC_SEQ_CST);
    while (due < former &&
           !__atomic_compare_exchange_n(&signal_due, &former, due, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
}

static void signal_handle(int signo)
{
    int saved = errno;
    int64_t grace = __atomic_load_n(&signal_grace[signo], __ATOMIC_SEQ_CST);
    bool is_first = __atomic_fetch_add(&signal_count, 1, __ATOMIC_SEQ_CST) == 0;
    if (!is_first || grace >= 0) {
        due_lower(guard_clock() + (is_first ? grace * 1000000 : 0));
    }
    int none = 0;
    __atomic_compare_exchange_n(&signal_number, &none, signo, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    guard_attention_set(&guard_impl_attention, ATTENTION_SIGNAL);
    guard_watch_poke();
    errno = saved;
}

bool guard_signal_is_pending(void)
{
    return __atomic_load_n(&signal_number, __ATOMIC_SEQ_CST) != 0;
}

int64_t guard_signal_due(void)
{
    return __atomic_load_n(&signal_due, __ATOMIC_SEQ_CST);
}

int guard_cancel_signal(void)
{
    return __atomic_load_n(&signal_number, __ATOMIC_SEQ_CST);
}

void guard_signal_forget(void)
{
    __atomic_store_n(&signal_number, 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&signal_due, CLOCK_NEVER, __ATOMIC_SEQ_CST);
    __atomic_store_n(&signal_count, 0, __ATOMIC_SEQ_CST);
}

void guard_signal_watch(void)
{
    if (__atomic_load_n(&signal_is_installed, __ATOMIC_SEQ_CST)) {
        /* Where no thread can be started, a signal that another thread receives ends this one's wait late: when it would end by itself. */
        (void)guard_watch_start();
    }
}

void guard_cancel_signal_clear(void)
{
    guard_signal_forget();
}

void guard_cancel_on_signal(int signo, int grace_ms)
{
    if (signo <= 0 || signo >= NSIG) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "guard_cancel_on_signal: there is no signal %d", signo);
        return;
    }
    if (signo == SIGSEGV || signo == SIGBUS || signo == SIGFPE || signo == SIGILL) {
        guard_misuse(GUARD_MISUSE_ARGUMENT,
                     "guard_cancel_on_signal: signal %d is of a fault, which comes again when its handler has returned",
                     signo);
        return;
    }
    if (grace_ms < -1) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "guard_cancel_on_signal with a grace of %d ms", grace_ms);
        return;
    }
    guard_stack_here();
    guard_raise_held();
    pthread_mutex_lock(&guard_life_lock);
    int code = guard_watch_start();
    pthread_mutex_unlock(&guard_life_lock);
    if (code != 0) {
        errno = code;
        guard_panic_os("no thread to wake others at a signal");
    }
    __atomic_store_n(&signal_grace[signo], grace_ms, __ATOMIC_SEQ_CST);
    __atomic_store_n(&signal_is_installed, true, __ATOMIC_SEQ_CST);
    struct sigaction action = {.sa_handler = signal_handle};
    sigemptyset(&action.sa_mask);
    if (sigaction(signo, &action, NULL) != 0) {
        if (errno == EINVAL) {
            guard_misuse(GUARD_MISUSE_ARGUMENT, "guard_cancel_on_signal: signal %d cannot be caught", signo);
            return;
        }
        guard_panic_os("sigaction(%d)", signo);
    }
}
