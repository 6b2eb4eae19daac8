/* SPDX-License-Identifier: MIT */
/*
 * dump.c: who holds what.
 *
 *   guard_dump, under dump_lock                          a thread that is asked
 *     for each thread, under the life lock:
 *         pthread_sigqueue(thread, value: a cookie) ---->  dump_handle: walks its own scopes
 *         reads the pipe until the thread's last     <----    a message for each registration, and a last one
 *         message, or 200 ms are over
 *     names functions, writes to the caller's fd
 *
 *   a signal of the user's --> dump_handle: no cookie --> dump_asked, pokes the watcher --> a thread of its own: guard_dump
 *
 * Why like this: a thread's lists are changed by plain stores, and what they name is released by its owner at any time. Nobody else can read
 * them soundly without slowing the owner down. The thread itself can, between any two of its instructions: each change of a list is one
 * store behind a signal fence, and what is on a list is whole. The only memory that both sides use is what the kernel carries: the
 * pipe. So there is no race to be judged by a sanitizer.
 *
 * Invariants: the pipe lives as long as the process and is its own (a forked child makes another), so that a late answer is written into no
 * descriptor of the program's; it carries the number of the dump that asked, and is passed over when that is over. A message is less than
 * PIPE_BUF, so it arrives whole. The writing end never blocks: what does not fit is lost, and the thread did not answer.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#include <guard/guard_dump.h>

typedef enum message_what { MESSAGE_RECORD, MESSAGE_LAST } message_what;

/* Addresses of constant data are not followed by the reader: what it is to print is in the message. */
typedef struct dump_message {
    uint32_t dump;
    int32_t tid;
    uint32_t what;  /* a message_what */
    uint32_t line;  /* MESSAGE_LAST: how many registrations there are */
    const void *fn; /* NULL: a kind */
    int64_t since;  /* 0: not known */
    char file[48];  /* MESSAGE_LAST: the thread's name */
    char text[160];
} dump_message;

_Static_assert(sizeof(dump_message) <= PIPE_BUF, "a message arrives whole");
_Static_assert((GUARD_DUMP_RECORDS + 1) * sizeof(dump_message) <= 65536 / 2, "a thread's answer fits into a pipe");

static pthread_mutex_t dump_lock = PTHREAD_MUTEX_INITIALIZER; /* one dump at a time; all below is changed under it */
static int dump_pipe[2] = {-1, -1};
static uint32_t dump_number;
static int dump_signal; /* 0: no handler is installed yet */
static int dump_fd = -1;
static uint32_t dump_asked; /* by the user's signal */
static const char dump_cookie;

int64_t guard_dump_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* ------------------------------------------------------------------------- in the thread that is asked -- */

static void answer_send(const dump_message *message)
{
    ssize_t written = write(__atomic_load_n(&dump_pipe[1], __ATOMIC_SEQ_CST), message, sizeof *message);
    (void)written; /* no room: the thread counts as not answering */
}

static void answer_record(dump_message *message, const guard_impl_record *record)
{
    message->what = MESSAGE_RECORD;
    message->line = record->place->line;
    message->fn = NULL;
    message->since = 0;
    const char *slash = strrchr(record->place->file, '/');
    guard_text_copy(message->file, sizeof message->file, slash != NULL ? slash + 1 : record->place->file);
    if (record->flags & GUARD_IMPL_KIND) {
        const guard_kind *kind = record->action.kind;
        guard_kind_describe(kind, record->arg, message->text, sizeof message->text);
        message->since = kind->since != NULL ? kind->since(record->arg) : 0;
    } else {
        message->text[0] = '\0';
        message->fn = (const void *)(uintptr_t)record->action.fn;
    }
    answer_send(message);
}

static uint32_t answer_stack(const guard_stack *stack, uint32_t count, dump_message *message)
{
    const uint32_t hidden = GUARD_IMPL_DEAD | GUARD_IMPL_RESERVED | GUARD_IMPL_INERT | GUARD_IMPL_INHERITED;
    for (guard_walk walk = guard_walk_open(stack); walk.scope != NULL; guard_walk_next(stack, &walk)) {
        guard_impl_record room;
        const guard_impl_record *record = guard_scope_first(walk.scope, &room);
        for (; record != NULL; record = record->next) {
            if ((record->flags & hidden) == 0 && count++ < GUARD_DUMP_RECORDS) {
                answer_record(message, record);
            }
        }
    }
    return count;
}

/* The thread's own stack is shown too while it runs a fiber. */
static void dump_answer(void)
{
    dump_message message = {.dump = __atomic_load_n(&dump_number, __ATOMIC_SEQ_CST), .tid = gettid()};
    uint32_t count = 0;
    if (guard_stack_own != NULL && guard_thread_own != NULL) {
        count = answer_stack(guard_stack_own, count, &message);
        if (guard_stack_own != &guard_thread_own->stack) {
            count = answer_stack(&guard_thread_own->stack, count, &message);
        }
    }
    message.what = MESSAGE_LAST;
    message.line = count;
    memset(message.file, 0, sizeof message.file);
    prctl(PR_GET_NAME, message.file);
    answer_send(&message);
}

static void dump_handle(int signo, siginfo_t *info, void *context)
{
    int saved = errno;
    int state = guard_cancel_shut(); /* the code that was interrupted may be anywhere */
    (void)signo;
    (void)context;
    if (info->si_code == SI_QUEUE && info->si_pid == getpid() && info->si_value.sival_ptr == &dump_cookie) {
        dump_answer();
    } else {
        __atomic_store_n(&dump_asked, 1, __ATOMIC_SEQ_CST);
        guard_watch_poke();
    }
    guard_cancel_restore(state);
    errno = saved;
}

/* ----------------------------------------------------------------------------------------------- writing -- */

/* Text on its way to fd: in pieces that do not block once there is room. */
typedef struct dump_writer {
    int fd;
    int error;
    size_t length;
    char text[PIPE_BUF];
} dump_writer;

static void writer_flush(dump_writer *to)
{
    const char *text = to->text;
    while (to->length > 0 && to->error == 0) {
        struct pollfd room = {.fd = to->fd, .events = POLLOUT};
        int ready = poll(&room, 1, GUARD_DUMP_WRITE_MS);
        ssize_t written = ready > 0 ? guard_write_quietly(to->fd, text, to->length) : -1;
        if (ready == 0) {
            to->error = ETIMEDOUT;
        } else if (written < 0 && errno != EINTR && errno != EAGAIN) {
            to->error = errno;
        } else if (written > 0) {
            text += written;
            to->length -= (size_t)written;
        }
    }
    to->length = 0;
}

static GUARD_PRINTF(2, 3) void writer_print(dump_writer *to, const char *format, ...)
{
    char text[1280];
    va_list arguments;
    va_start(arguments, format);
    int made = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    size_t length = made < 0 ? 0 : (size_t)made < sizeof text ? (size_t)made : sizeof text - 1;
    if (to->length + length > sizeof to->text) {
        writer_flush(to);
    }
    memcpy(to->text + to->length, text, length);
    to->length += length;
}

static void print_record(dump_writer *to, const dump_message *message)
{
    char text[4 * sizeof message->text];
    char file[4 * sizeof message->file];
    guard_text_escape(file, sizeof file, message->file);
    if (message->fn != NULL) {
        guard_frame frame;
        bool is_named = guard_frame_find((const char *)message->fn + 1, &frame) && frame.function[0] != '\0';
        guard_text_escape(text, sizeof text, is_named ? frame.function : "a function");
    } else {
        guard_text_escape(text, sizeof text, message->text);
    }
    if (message->since != 0) {
        int64_t age = guard_dump_clock() - message->since;
        writer_print(to, "\t%s; for %.3f s, since %s:%u\n", text, age > 0 ? (double)age / 1e9 : 0.0, file,
                     message->line);
    } else {
        writer_print(to, "\t%s, registered at %s:%u\n", text, file, message->line);
    }
}

/* --------------------------------------------------------------------------------------------- collecting -- */

typedef struct dump_thread {
    int32_t tid;
    uint64_t serial;
    bool is_titled; /* its first line is written */
} dump_thread;

static void print_title(dump_writer *to, dump_thread *thread, const char *rest)
{
    if (!thread->is_titled) {
        char path[64];
        char name[20] = "";
        char escaped[4 * sizeof name];
        snprintf(path, sizeof path, "/proc/self/task/%d/comm", (int)thread->tid);
        int file = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t got = file >= 0 ? read(file, name, sizeof name - 1) : 0;
        name[got > 0 ? got - 1 : 0] = '\0'; /* it ends with a newline */
        if (file >= 0) {
            close(file);
        }
        guard_text_escape(escaped, sizeof escaped, name);
        writer_print(to, "thread %d (%s):%s\n", (int)thread->tid, escaped, rest);
        thread->is_titled = true;
    } else if (rest[0] != '\0') {
        writer_print(to, "\t%s\n", rest);
    }
}

/* False: there is none until then. */
static bool pipe_read(dump_message *message, int64_t until)
{
    for (;;) {
        ssize_t got = read(dump_pipe[0], message, sizeof *message);
        if (got == (ssize_t)sizeof *message) {
            return true;
        }
        int64_t left = until - guard_clock();
        if (left <= 0) {
            return false;
        }
        struct pollfd poked = {.fd = dump_pipe[0], .events = POLLIN};
        poll(&poked, 1, (int)((left + 999999) / 1000000));
    }
}

/* Prints a thread's answer. */
static void collect(dump_writer *to, dump_thread *thread, int64_t until)
{
    dump_message message;
    char rest[64];
    while (pipe_read(&message, until)) {
        if (message.dump != dump_number || message.tid != thread->tid) {
            continue; /* an answer that came too late */
        }
        if (message.what == MESSAGE_RECORD) {
            print_title(to, thread, "");
            print_record(to, &message);
        } else if (message.line == 0) {
            print_title(to, thread, " nothing");
            return;
        } else {
            if (message.line > GUARD_DUMP_RECORDS) {
                snprintf(rest, sizeof rest, "and %u more", message.line - GUARD_DUMP_RECORDS);
                print_title(to, thread, rest);
            }
            return;
        }
    }
    snprintf(rest, sizeof rest, "%sit has not answered within %d ms", thread->is_titled ? "" : " ",
             GUARD_DUMP_ANSWER_MS);
    print_title(to, thread, rest);
}

/* Under the life lock. The oldest thread younger than *last; NULL: there is none. */
static guard_thread *thread_after(uint64_t last)
{
    guard_thread *next = NULL;
    for (guard_thread *thread = guard_threads; thread != NULL; thread = thread->next) {
        if (thread->serial > last && (next == NULL || thread->serial < next->serial)) {
            next = thread;
        }
    }
    return next;
}

/* Asks the next thread. 0: it was asked; -1: there is none left; else errno. A thread that is listed has not ended: it needs the life lock for that. */
static int ask_next(dump_thread *asked, bool is_asked)
{
    union sigval cookie = {.sival_ptr = (void *)(uintptr_t)&dump_cookie};
    int code = -1;
    pthread_mutex_lock(&guard_life_lock);
    guard_thread *thread = thread_after(asked->serial);
    if (thread != NULL) {
        *asked = (dump_thread){.tid = thread->tid, .serial = thread->serial};
        code = thread == guard_thread_own ? 0 : !is_asked ? EBUSY : pthread_sigqueue(thread->id, dump_signal, cookie);
    }
    pthread_mutex_unlock(&guard_life_lock);
    return code;
}

static void dump_threads(dump_writer *to, bool may_ask)
{
    int64_t end = guard_clock() + GUARD_DUMP_WHOLE_MS * (int64_t)1000000;
    dump_thread thread = {.serial = 0};
    for (;;) {
        int64_t now = guard_clock();
        int code = ask_next(&thread, may_ask && now < end);
        if (code == -1) {
            return;
        }
        if (code != 0) {
            print_title(to, &thread, may_ask && now < end ? " it cannot be asked" : " it was not asked");
            continue;
        }
        if (guard_thread_own != NULL && thread.serial == guard_thread_own->serial) {
            dump_answer();
        }
        collect(to, &thread, now + GUARD_DUMP_ANSWER_MS * (int64_t)1000000);
    }
}

static void dump_rest(dump_writer *to)
{
    uint32_t owners = 0;
    uint32_t fibers = 0;
    pthread_mutex_lock(&guard_life_lock);
    for (const guard_owner *owner = guard_owners; owner != NULL; owner = owner->next) {
        owners++;
    }
    for (const guard_stack *stack = guard_stacks; stack != NULL; stack = stack->next) {
        fibers++;
    }
    for (const guard_thread *thread = guard_threads; thread != NULL; thread = thread->next) {
        fibers--; /* its own stack */
    }
    pthread_mutex_unlock(&guard_life_lock);
    if (owners > 0) {
        writer_print(to, "%u owner%s: what %s not shown\n", owners, owners == 1 ? "" : "s",
                     owners == 1 ? "it holds is" : "they hold is");
    }
    if (fibers > 0) {
        writer_print(to, "%u fiber%s: shown only while a thread runs %s\n", fibers, fibers == 1 ? "" : "s",
                     fibers == 1 ? "it" : "one");
    }
}

/* ---------------------------------------------------------------------------------------------- the dump -- */

/* Under dump_lock. */
static int pipe_make(void)
{
    int ends[2];
    if (dump_pipe[0] >= 0) {
        return 0;
    }
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
        return errno;
    }
    ends[0] = guard_descriptor_raise(ends[0]);
    int code = ends[0] < 0 ? errno : 0;
    ends[1] = guard_descriptor_raise(ends[1]);
    code = ends[1] < 0 && code == 0 ? errno : code;
    if (code != 0) {
        for (int i = 0; i < 2; i++) {
            if (ends[i] >= 0) {
                close(ends[i]);
            }
        }
        return code;
    }
    dump_pipe[0] = ends[0];
    __atomic_store_n(&dump_pipe[1], ends[1], __ATOMIC_SEQ_CST);
    return 0;
}

static int handler_install(int signo)
{
    struct sigaction action = {.sa_sigaction = dump_handle, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    return sigaction(signo, &action, NULL) == 0 ? 0 : errno;
}

/* The default signal, unless the program uses it. */
static int handler_make(void)
{
    struct sigaction present;
    if (dump_signal != 0) {
        return 0;
    }
    if (sigaction(SIGURG, NULL, &present) != 0) {
        return errno;
    }
    if ((present.sa_flags & SA_SIGINFO) || (present.sa_handler != SIG_DFL && present.sa_handler != SIG_IGN)) {
        return EBUSY;
    }
    int code = handler_install(SIGURG);
    dump_signal = code == 0 ? SIGURG : 0;
    return code;
}

static bool dump_take_turn(void)
{
    return guard_lock_within(&dump_lock, 2 * GUARD_DUMP_WHOLE_MS);
}

static int dump_locked(int fd)
{
    dump_writer to;
    int code = pipe_make();
    if (code != 0) {
        return code;
    }
    int may_not_ask = handler_make();
    to.fd = fd;
    to.error = 0;
    to.length = 0;
    __atomic_add_fetch(&dump_number, 1, __ATOMIC_SEQ_CST);
    writer_print(&to, "guard: what process %d holds\n", (int)getpid());
    dump_threads(&to, may_not_ask == 0);
    dump_rest(&to);
    writer_flush(&to);
    guard_symbol_forget();
    return to.error != 0 ? to.error : may_not_ask;
}

int guard_dump(int fd)
{
    int code = ETIMEDOUT;
    if (fd < 0) {
        return EBADF; /* poll would pass it over, and wait */
    }
    int state = guard_cancel_shut();
    if (dump_take_turn()) {
        code = dump_locked(fd);
        pthread_mutex_unlock(&dump_lock);
    }
    guard_cancel_restore(state);
    return code;
}

/* ---------------------------------------------------------------------------------------------- on a signal -- */

static void *dump_thread_main(void *arg)
{
    guard_dump(__atomic_load_n(&dump_fd, __ATOMIC_SEQ_CST));
    return arg;
}

/* By the watcher, outside of all locks: a dump may take seconds, and the watcher has others to wake. */
void guard_dump_look(void)
{
    pthread_attr_t attributes;
    pthread_t thread;
    if (__atomic_exchange_n(&dump_asked, 0, __ATOMIC_SEQ_CST) == 0 || pthread_attr_init(&attributes) != 0) {
        return;
    }
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    int code = pthread_create(&thread, &attributes, dump_thread_main,
                              NULL); /* signals are blocked here, so there too */
    pthread_attr_destroy(&attributes);
    if (code != 0) {
        dump_thread_main(NULL);
    }
}

/* After fork, in the child: its answers must not go into the parent's pipe. */
void guard_dump_forget(void)
{
    for (int i = 0; i < 2; i++) {
        if (dump_pipe[i] >= 0) {
            close(dump_pipe[i]);
        }
        dump_pipe[i] = -1;
    }
    dump_asked = 0;
    pthread_mutex_init(&dump_lock, NULL);
}

static int signal_switch(int signo, int fd)
{
    if (!dump_take_turn()) {
        return ETIMEDOUT;
    }
    __atomic_store_n(&dump_fd, fd, __ATOMIC_SEQ_CST);
    int code = handler_install(signo);
    if (code == 0) {
        dump_signal = signo;
        pthread_mutex_lock(&guard_life_lock);
        code = guard_watch_start();
        pthread_mutex_unlock(&guard_life_lock);
    }
    pthread_mutex_unlock(&dump_lock);
    return code;
}

void guard_dump_on_signal(int signo, int fd)
{
    if (signo <= 0 || signo >= NSIG || signo == SIGKILL || signo == SIGSTOP) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "guard_dump_on_signal: signal %d cannot be caught", signo);
        return;
    }
    if (signo == SIGSEGV || signo == SIGBUS || signo == SIGFPE || signo == SIGILL) {
        guard_misuse(GUARD_MISUSE_ARGUMENT,
                     "guard_dump_on_signal: signal %d is of a fault, which comes again when its handler has returned",
                     signo);
        return;
    }
    int code = signal_switch(signo, fd);
    if (code != 0) {
        errno = code;
        guard_panic_os("signal %d cannot be made to dump", signo);
    }
}
