/* SPDX-License-Identifier: MIT */
/*
 * fatal.c: what is done when a signal kills the process.
 *
 *   signal --> handler --fault.c: a panic--> the thread goes on
 *                 |
 *                 v
 *              report --> the log's lines --> temporary files removed --> former disposition back --> handler returns
 *                                                          a fault happens again, at the same instruction, in the same registers
 *                                                          a signal that was sent is sent again, with the same siginfo
 *
 * The handler has every signal masked but those of faults: one inside the handler is caught by it (guard_fatal_try), where it reads what
 * may be broken, or else is fatal without another report. It uses async-signal-safe functions, and of the library what only reads.
 *
 * Invariants: one thread reports at a time, others that die meanwhile wait for it, not for ever. A signal's former disposition is
 * known before its handler is there.
 */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

/* The unwinder needs some 8 KiB, the report 6 KiB; what the kernel saves of the processor is added (up to 11 KiB with AMX). Touched only at a signal. */
#define ALTERNATE_SIZE ((size_t)64 * 1024)
#define FATAL_REPORT_SIZE 6144
/* How many registrations the report names, how many it counts. */
#define FATAL_HELD_MOST 16U
#define FATAL_HELD_COUNTED 100000U
/* How long a report waits for a full pipe, and a second thread for the first one's report. */
#define FATAL_WAIT_MS 2000

static uint32_t fatal_is_on;              /* threads get alternate stacks */
static uint32_t fatal_is_told;            /* SIGABRT comes after a report */
static pid_t fatal_thread;                /* who reports; 0: nobody */
static uint32_t fatal_is_installed[NSIG]; /* under the life lock */
static struct sigaction fatal_former[NSIG];

/* Of this thread, while its handler runs. */
static __thread bool fatal_is_running __attribute__((tls_model("initial-exec")));
static __thread jmp_buf *volatile fatal_way_out __attribute__((tls_model("initial-exec")));

void guard_fatal_told(void)
{
    __atomic_store_n(&fatal_is_told, 1, __ATOMIC_RELEASE);
}

void guard_fatal_forget(void)
{
    fatal_thread = 0;
    fatal_is_told = 0;
}

#if IS_THREAD_SANITIZED

/* ThreadSanitizer forgets the setjmps of a thread's own stack at one on another stack. */
bool guard_fatal_try(guard_fn *fn, void *arg)
{
    fn(arg);
    return true;
}

#else

bool guard_fatal_try(guard_fn *fn, void *arg)
{
    jmp_buf *volatile former = fatal_way_out;
    jmp_buf here;
    if (_setjmp(here) != 0) {
        fatal_way_out = former;
        return false;
    }
    fatal_way_out = &here;
    fn(arg);
    fatal_way_out = former;
    return true;
}

#endif

/* ------------------------------------------------------------------------------------------------- report -- */

/* A terminal or pipe that nobody reads must not keep the process from dying: below PIPE_BUF bytes do not block once poll says so (pipe(7)). */
static void fatal_write(const char *text, size_t length)
{
    while (length > 0) {
        struct pollfd error = {.fd = STDERR_FILENO, .events = POLLOUT};
        if (poll(&error, 1, FATAL_WAIT_MS) <= 0) {
            return;
        }
        ssize_t written = write(STDERR_FILENO, text, length < 4096 ? length : 4096);
        if (written < 0 && errno == EINTR) {
            continue;
        }
        if (written <= 0) {
            return;
        }
        text += written;
        length -= (size_t)written;
    }
}

static bool signal_is_crash(int signo)
{
    return signo == SIGSEGV || signo == SIGBUS || signo == SIGFPE || signo == SIGILL || signo == SIGABRT;
}

/* Raised by an instruction, which raises it again when the handler returns. */
static bool signal_repeats(int signo, const siginfo_t *info)
{
    return info->si_code > 0 && signo != SIGABRT && signal_is_crash(signo) &&
           !(signo == SIGBUS && info->si_code == BUS_MCEERR_AO);
}

static void report_signal(guard_line *line, int signo, const siginfo_t *info, const void *context)
{
    guard_line_text(line, "guard: fatal: ");
    guard_line_signal(line, signo);
    if (info->si_code > 0) {
        guard_line_text(line, ", ");
        if (signo == SIGILL) {
            guard_line_text(line, "an illegal instruction");
        } else {
            guard_line_fault(line, signo, info->si_code, (uintptr_t)info->si_addr);
        }
    } else if (info->si_pid != getpid()) {
        guard_line_text(line, ", sent by process ");
        guard_line_number(line, (uint64_t)info->si_pid);
    }
    uintptr_t pc = guard_fault_pc(context);
    guard_module module;
    guard_line_text(line, ", pc ");
    guard_line_hex(line, pc);
    if (guard_module_find(pc, &module)) {
        guard_line_text(line, " (");
        guard_line_place(line, pc);
        guard_line_text(line, ")");
    }
    char name[17] = "";
    prctl(PR_GET_NAME, name);
    guard_line_text(line, ", thread ");
    guard_line_number(line, (uint64_t)gettid());
    guard_line_text(line, " \"");
    guard_line_escaped(line, name);
    guard_line_text(line, "\"\n");
}

static void report_refusal(guard_line *line, const guard_fault_refusal *refusal)
{
    guard_line_text(line, "\tno panic: ");
    guard_line_text(line, refusal->why);
    if (refusal->pc != 0) {
        guard_line_place(line, refusal->pc);
    }
    guard_line_text(line, "\n");
}

static void report_record(guard_line *line, const guard_impl_record *record)
{
    const char *slash = strrchr(record->place->file, '/');
    guard_line_text(line, "\theld: ");
    if (record->flags & GUARD_IMPL_KIND) {
        guard_line_escaped(line, record->action.kind->name);
    } else {
        guard_line_text(line, record->flags & GUARD_IMPL_RECOVER ? "recovering function" : "function");
    }
    guard_line_text(line, " at ");
    guard_line_escaped(line, slash != NULL ? slash + 1 : record->place->file);
    guard_line_text(line, ":");
    guard_line_number(line, record->place->line);
    guard_line_text(line, "\n");
}

/* The list may be broken, which is perhaps why the process dies: each line is whole before the next is begun. */
static void report_held(void *memory)
{
    guard_line *line = memory;
    const guard_stack *stack = guard_stack_own;
    uint32_t count = 0;
    if (stack == NULL) {
        return;
    }
    for (guard_walk walk = guard_walk_open(stack); walk.scope != NULL; guard_walk_next(stack, &walk)) {
        guard_impl_record room;
        const guard_impl_record *record = guard_scope_first(walk.scope, &room);
        for (; record != NULL && count < FATAL_HELD_COUNTED; record = record->next) {
            if (record->flags & (GUARD_IMPL_DEAD | GUARD_IMPL_RESERVED)) {
                continue;
            }
            if (count++ < FATAL_HELD_MOST) {
                report_record(line, record);
            }
        }
    }
    if (count > FATAL_HELD_MOST) {
        guard_line_text(line, "\tand ");
        guard_line_number(line, count - FATAL_HELD_MOST);
        guard_line_text(line, " more\n");
    }
}

static void fatal_report(int signo, const siginfo_t *info, const void *context, const guard_fault_refusal *refusal)
{
    char text[FATAL_REPORT_SIZE];
    guard_line line = {text, sizeof text, 0};
    report_signal(&line, signo, info, context);
    if (refusal->why != NULL) {
        report_refusal(&line, refusal);
    }
    if (!guard_fatal_try(report_held, &line)) {
        guard_line_text(&line, "\twhat it holds could not be read\n");
    }
    fatal_write(text, line.length);
}

/* ------------------------------------------------------------------------------------------------- dying -- */

/* Waits while another thread reports; true for this thread's turn, false when that took too long. */
static bool fatal_turn(void)
{
    pid_t own = gettid();
    for (int waited = 0; waited < FATAL_WAIT_MS; waited += 10) {
        pid_t nobody = 0;
        if (__atomic_compare_exchange_n(&fatal_thread, &nobody, own, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
            return true;
        }
        struct timespec pause = {.tv_nsec = 10000000};
        nanosleep(&pause, NULL);
    }
    return false;
}

/* Lets the signal do what it would have done. */
static void fatal_again(int signo, const siginfo_t *info)
{
    sigaction(signo, &fatal_former[signo], NULL);
    if (!signal_repeats(signo, info)) {
        /* Pending until the handler returns, which gives the mask back; a process may send itself any siginfo (rt_sigqueueinfo(2)). */
        siginfo_t copy = *info;
        sigset_t only;
        sigemptyset(&only);
        sigaddset(&only, signo);
        pthread_sigmask(SIG_BLOCK, &only, NULL);
        syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), signo, &copy);
    }
}

static void fatal_log(void *arg)
{
    (void)arg;
    guard_at_death();
}

static void fatal_die(int signo, const siginfo_t *info, const void *context, const guard_fault_refusal *refusal)
{
    bool is_ignored = info->si_code <= 0 && fatal_former[signo].sa_handler == SIG_IGN;
    if (!is_ignored) {
        bool is_turn = fatal_turn();
        bool is_told = signo == SIGABRT && __atomic_load_n(&fatal_is_told, __ATOMIC_ACQUIRE);
        if (is_turn && signal_is_crash(signo) && !is_told) {
            fatal_report(signo, info, context, refusal);
        }
        if (is_turn && guard_at_death != NULL) {
            (void)guard_fatal_try(fatal_log, NULL); /* where that is broken, too, there are no lines */
        }
        guard_temporaries_remove();
        fatal_again(signo, info);
        /* A handler that was there before may go on: then the next fault is another's turn. Otherwise this process is gone in a moment. */
        if (is_turn && fatal_former[signo].sa_handler != SIG_DFL) {
            __atomic_store_n(&fatal_thread, 0, __ATOMIC_RELEASE);
        }
    }
}

static void fatal_handle(int signo, siginfo_t *info, void *context)
{
    int saved = errno;
    int state = guard_cancel_shut(); /* else this thread would be cancelled in here, and the process live on */
    guard_fault_refusal refusal = {NULL, 0};
    jmp_buf *way_out = fatal_way_out;
    if (way_out != NULL && (info->si_code > 0 || signo == SIGABRT)) {
        longjmp(*way_out, 1); /* on the same stack, with the same signals masked */
    }
    if (fatal_is_running) {
        fatal_again(signo, info);
        guard_cancel_restore(state);
        return;
    }
    fatal_is_running = true;
    if (!signal_is_crash(signo) || !guard_fault_redirect(signo, info, context, &refusal)) {
        fatal_die(signo, info, context, &refusal);
    }
    fatal_is_running = false;
    guard_cancel_restore(state);
    errno = saved;
}

void guard_fatal_fill(sigset_t *set)
{
    sigfillset(set);
    for (int i = 1; i < NSIG; i++) {
        if (signal_is_crash(i)) {
            sigdelset(set, i);
        }
    }
}

void guard_fatal_install(int signo)
{
    struct sigaction action = {.sa_sigaction = fatal_handle, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    guard_fatal_fill(&action.sa_mask);
    pthread_mutex_lock(&guard_life_lock);
    int failed = 0;
    bool is_wanted = !fatal_is_installed[signo];
    if (is_wanted) {
        failed = sigaction(signo, NULL, &fatal_former[signo]);
        is_wanted = failed == 0 && (signal_is_crash(signo) || fatal_former[signo].sa_handler != SIG_IGN);
    }
    if (is_wanted) {
        failed = sigaction(signo, &action, NULL);
        fatal_is_installed[signo] = failed == 0;
    }
    pthread_mutex_unlock(&guard_life_lock);
    if (failed != 0) {
        guard_panic_os("sigaction(%d)", signo);
    }
}

/* ----------------------------------------------------------------------------------------- alternate stacks -- */

/* 0 or errno. */
static int alternate_make(guard_thread *thread)
{
    stack_t now;
    if (thread->alternate != NULL || sigaltstack(NULL, &now) != 0 || !(now.ss_flags & SS_DISABLE)) {
        return 0;
    }
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    long least = sysconf(_SC_MINSIGSTKSZ);
    size_t size = ALTERNATE_SIZE + ((least > 0 ? (size_t)least : 0) + page - 1) / page * page;
    char *memory = mmap(NULL, page + size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        return errno;
    }
    stack_t own = {.ss_sp = memory + page, .ss_size = size};
    /* Below it a page that nobody may touch. */
    if (mprotect(memory + page, size, PROT_READ | PROT_WRITE) != 0 || sigaltstack(&own, NULL) != 0) {
        int error = errno;
        munmap(memory, page + size);
        return error;
    }
    thread->alternate = memory;
    thread->alternate_size = page + size;
    return 0;
}

void guard_alternate_open(guard_thread *thread)
{
    if (__atomic_load_n(&fatal_is_on, __ATOMIC_ACQUIRE)) {
        /* Without one, a stack overflow of this thread dies without a report. */
        (void)alternate_make(thread);
        (void)guard_thread_bounds(&thread->stack_low, &thread->stack_high);
    }
}

void guard_alternate_lose(guard_thread *thread)
{
    if (thread->alternate != NULL) {
        munmap(thread->alternate, thread->alternate_size);
        thread->alternate = NULL;
    }
}

void guard_alternate_close(guard_thread *thread)
{
    stack_t now;
    const stack_t none = {.ss_flags = SS_DISABLE};
    if (thread->alternate == NULL || sigaltstack(NULL, &now) != 0) {
        return;
    }
    uintptr_t offset = (uintptr_t)now.ss_sp - (uintptr_t)thread->alternate;
    bool is_ours = !(now.ss_flags & SS_DISABLE) && offset < thread->alternate_size;
    if (is_ours && sigaltstack(&none, NULL) != 0) {
        return; /* the thread ends inside a handler: it is lost */
    }
    guard_alternate_lose(thread);
}

void guard_fatal_prepare(void)
{
    guard_thread *thread = guard_thread_own;
    __atomic_store_n(&fatal_is_on, 1, __ATOMIC_RELEASE);
    int error = alternate_make(thread);
    if (error == 0 && !guard_thread_bounds(&thread->stack_low, &thread->stack_high)) {
        error = EAGAIN;
    }
    if (error != 0) {
        errno = error;
        guard_panic_os("no alternate stack for fatal signals");
    }
}

/* ------------------------------------------------------------------------------------------------ public -- */

void guard_fatal_signals(void)
{
    static const int crashes[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    guard_stack_here();
    guard_raise_held();
    guard_fatal_prepare();
    for (size_t i = 0; i < sizeof crashes / sizeof *crashes; i++) {
        guard_fatal_install(crashes[i]);
    }
}

void guard_fatal_on_signal(int signo)
{
    guard_stack_here();
    guard_raise_held();
    if (signo <= 0 || signo >= NSIG || signo == SIGKILL || signo == SIGSTOP) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "guard_fatal_on_signal: signal %d cannot be caught", signo);
        return;
    }
    guard_fatal_prepare();
    guard_fatal_install(signo);
}
