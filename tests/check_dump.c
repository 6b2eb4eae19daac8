/* SPDX-License-Identifier: MIT */
/* check_dump.c: who holds what, told by each thread itself. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard_breaker.h>
#include <guard/guard_dump.h>
#include <guard/guard_group.h>
#include <guard/guard_log.h>
#include <guard/guard_metrics.h>
#include <guard/guard_mutex.h>
#include <guard/guard_process.h>
#include <guard/guard_service.h>

#include "suite.h"

static char text[65536];

/* What a dump writes; its code is *code. */
static void dump_with(int *code)
{
    int file = memfd_create("dump", MFD_CLOEXEC);
    ck_assert_int_ge(file, 0);
    *code = guard_dump(file);
    ssize_t got = pread(file, text, sizeof text - 1, 0);
    ck_assert_int_gt(got, 0);
    text[got] = '\0';
    close(file);
}

static void dump(void)
{
    int code;
    dump_with(&code);
    ck_assert_int_eq(code, 0);
}

/* On a busy machine even a thread that could answer may not get to it within 200 ms. */
static bool is_late(void)
{
    return strstr(text, "it has not answered") != NULL;
}

static void dump_with_answers(void)
{
    int tries = 0;
    do {
        dump();
    } while (is_late() && ++tries < 20);
    ck_assert_msg(!is_late(), "not once in %d dumps did all answer: %s", tries, text);
}

static void expect(const char *what)
{
    ck_assert_msg(strstr(text, what) != NULL, "\"%s\" is not in it: %s", what, text);
}

static void expect_not(const char *what)
{
    ck_assert_msg(strstr(text, what) == NULL, "\"%s\" is in it: %s", what, text);
}

static void let_go(void *object)
{
    (void)object;
}

typedef struct thing {
    int64_t since;
    const char *name;
} thing;

static size_t tell(const void *object, char *to, size_t size)
{
    return (size_t)snprintf(to, size, "the %s", ((const thing *)object)->name);
}

static int64_t tell_since(const void *object)
{
    return ((const thing *)object)->since;
}

static size_t tell_failing(const void *object, char *to, size_t size)
{
    (void)object;
    snprintf(to, size, "half");
    guard_panic(9, "no words");
}

static const guard_kind told = {.name = "told", .release = let_go, .describe = tell, .since = tell_since};
static const guard_kind named = {.name = "named", .release = let_go};
static const guard_kind speechless = {.name = "speechless", .release = let_go, .describe = tell_failing};

START_TEST(the_caller_s_own_registrations_are_shown_the_newest_first_with_place_and_age)
{
    pthread_setname_np(pthread_self(), "tester");
    thing boat = {guard_dump_clock() - 2 * (int64_t)1000000000, "boat\033[1m"};
    GUARD_AUTO(outer);
    guard_defer_kind(outer, &told, &boat);
    guard_defer(outer, let_go, NULL);
    {
        GUARD_AUTO(s);
        guard_defer_kind(s, &named, NULL);
        guard_dismiss(guard_defer_kind(s, &told, &boat));
        guard_reserve(s, 5);
        dump();
    }
    expect("guard: what process ");
    char title[64];
    snprintf(title, sizeof title, "\nthread %d (tester):\n\tnamed, registered at check_dump.c:", (int)gettid());
    expect(title);
    expect("\tthe boat\\x1b[1m; for ");
    expect_not("for 0.");
    expect_not("for 1.");
    expect(" s, since check_dump.c:");
#ifdef GUARD_HAVE_LIBDW
    expect("\tlet_go, registered at check_dump.c:");
#else
    expect("\ta function, registered at check_dump.c:");
#endif
    const char *inner = strstr(text, "\tnamed");
    const char *older = strstr(text, "\tthe boat");
    ck_assert(inner < older);
    ck_assert_ptr_null(strstr(older + 2, "the boat"));
}
END_TEST

static void collect_nothing(guard_metrics_page *page, void *arg)
{
    (void)page;
    (void)arg;
}

/* Not by a line of the library, which is the same for all of them. */
START_TEST(what_the_library_opens_is_shown_with_the_line_that_asked_for_it)
{
    GUARD_AUTO(s);
    guard_group_open(s, NULL);
    guard_service_open(s, "ledger", NULL);
    guard_breaker_open(s, "database", NULL);
    guard_metrics_collect(s, collect_nothing, NULL);
    guard_log_open(s, "events", NULL);
    dump();
    const char *own = strstr(text, "\tlog events");
    ck_assert_msg(own != NULL, "no log in it: %s", text);
    int places = 0;
    for (const char *at = own; (at = strstr(at, "check_dump.c:")) != NULL; at++) {
        places++;
    }
    ck_assert_msg(places == 5, "%d places of the caller's in it: %s", places, text);
}
END_TEST

START_TEST(a_dump_to_no_descriptor_says_so_at_once)
{
    ck_assert_int_eq(guard_dump(-1), EBADF);
}
END_TEST

static void *use_and_dump(void *arg)
{
    {
        GUARD_AUTO(s);
        guard_defer(s, let_go, NULL);
    }
    dump();
    return arg;
}

static void *only_dump(void *arg)
{
    dump();
    return arg;
}

START_TEST(threads_that_hold_nothing_say_so_and_one_without_a_stack_can_dump)
{
    pthread_t thread;
    char title[64];
    pthread_setname_np(pthread_self(), "tester");
    GUARD_AUTO(s);
    guard_defer_kind(s, &named, NULL);
    ck_assert_int_eq(pthread_create(&thread, NULL, use_and_dump, NULL), 0);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    expect(" (tester): nothing\n");
    expect("\tnamed, registered at ");
    ck_assert_int_eq(pthread_create(&thread, NULL, only_dump, NULL), 0);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    expect_not("nothing");
    snprintf(title, sizeof title, "thread %d (tester):\n\tnamed", (int)getpid());
    expect(title);
}
END_TEST

/* ------------------------------------------------------------------------------------------ other threads -- */

static sem_t holds;
static sem_t may_go;
static int wire[2];
static pthread_mutex_t accounts = PTHREAD_MUTEX_INITIALIZER;

static void *hold_and_wait(void *arg)
{
    pthread_setname_np(pthread_self(), "waits");
    GUARD_AUTO(s);
    guard_mutex_lock(s, &accounts, NULL);
    guard_defer_kind(s, &told, arg);
    sem_post(&holds);
    while (sem_wait(&may_go) != 0) {
        ck_assert_int_eq(errno, EINTR);
    }
    return NULL;
}

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define LATE_SIGNALS 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define LATE_SIGNALS 1 /* ThreadSanitizer keeps a signal until read(2) returns, though not until poll(2) does */
#endif

static void wait_readable(int from)
{
#ifdef LATE_SIGNALS
    struct pollfd readable = {.fd = from, .events = POLLIN};
    while (poll(&readable, 1, -1) < 0) {
        ck_assert_int_eq(errno, EINTR);
    }
#else
    (void)from;
#endif
}

/* In a foreign call that SA_RESTART goes on with. */
static void *hold_and_read(void *arg)
{
    char byte = 0;
    pthread_setname_np(pthread_self(), "reads");
    GUARD_AUTO(s);
    guard_defer_kind(s, &told, arg);
    sem_post(&holds);
    wait_readable(wire[0]);
    ck_assert_int_eq(read(wire[0], &byte, 1), 1);
    ck_assert_int_eq(byte, 'x');
    return NULL;
}

static void start(pthread_t *thread, void *(*body)(void *), void *arg)
{
    ck_assert_int_eq(pthread_create(thread, NULL, body, arg), 0);
    while (sem_wait(&holds) != 0) {
    }
}

START_TEST(threads_that_are_stuck_in_foreign_calls_are_shown_and_go_on)
{
    pthread_t waits;
    pthread_t reads;
    thing first = {guard_dump_clock(), "first thing"};
    thing second = {guard_dump_clock(), "second thing"};
    sem_init(&holds, 0, 0);
    sem_init(&may_go, 0, 0);
    ck_assert_int_eq(pipe(wire), 0);
    start(&waits, hold_and_wait, &first);
    start(&reads, hold_and_read, &second);
    for (int i = 0; i < 20; i++) {
        dump_with_answers();
        expect(" (waits):\n\tthe first thing; for ");
        expect("\tmutex &accounts; for ");
        expect(" s, since check_dump.c:");
        expect(" (reads):\n\tthe second thing; for ");
    }
    sem_post(&may_go);
    ck_assert_int_eq(write(wire[1], "x", 1), 1);
    ck_assert_int_eq(pthread_join(waits, NULL), 0);
    ck_assert_int_eq(pthread_join(reads, NULL), 0);
}
END_TEST

static void *hold_blocked(void *arg)
{
    sigset_t all;
    sigset_t former;
    pthread_setname_np(pthread_self(), "deaf");
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &former);
    GUARD_AUTO(s);
    guard_defer_kind(s, &told, arg);
    sem_post(&holds);
    sem_wait(&may_go);
    pthread_sigmask(SIG_SETMASK, &former, NULL); /* the late answer goes out here */
    sem_post(&holds);
    while (sem_wait(&may_go) != 0) {
    }
    return NULL;
}

START_TEST(a_thread_that_blocks_signals_is_named_and_its_late_answer_is_passed_over)
{
    pthread_t deaf;
    thing mine = {guard_dump_clock(), "own thing"};
    thing other = {guard_dump_clock(), "other thing"};
    sem_init(&holds, 0, 0);
    sem_init(&may_go, 0, 0);
    GUARD_AUTO(s);
    guard_defer_kind(s, &told, &mine);
    start(&deaf, hold_blocked, &other);
    dump();
    expect(" (deaf): it has not answered within 200 ms\n");
    expect("\tthe own thing");
    expect_not("other");
    sem_post(&may_go);
    while (sem_wait(&holds) != 0) {
    }
    dump_with_answers();
    expect(" (deaf):\n\tthe other thing");
    ck_assert_ptr_null(strstr(strstr(text, "the other thing") + 1, "the other thing"));
    sem_post(&may_go);
    ck_assert_int_eq(pthread_join(deaf, NULL), 0);
}
END_TEST

static uint32_t is_over;

static void count_up(void *arg)
{
    ++*(unsigned long *)arg;
}

static void busy_turn(unsigned long *count, thing *mine)
{
    GUARD_AUTO(s);
    guard_defer(s, count_up, count);
    guard_ticket ticket = guard_defer_kind(s, &told, mine);
    guard_defer_copy(s, let_go, mine, sizeof *mine);
    guard_scope inner;
    guard_scope_open(&inner);
    for (int i = 0; i < 100; i++) {
        guard_defer(&inner, let_go, NULL);
    }
    guard_release(ticket);
    guard_scope_close(&inner);
}

static void busy_panic(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, count_up, arg);
    guard_panic(3, "busy");
}

static void *be_busy(void *arg)
{
    thing mine = {guard_dump_clock(), "busy thing"};
    unsigned long count = 0;
    unsigned long turns = 0;
    (void)arg;
    for (; !__atomic_load_n(&is_over, __ATOMIC_SEQ_CST); turns++) {
        guard_error error;
        errno = 77;
        busy_turn(&count, &mine);
        ck_assert_int_eq(guard_run(busy_panic, &count, &error), 3);
        errno = 78;
        for (volatile int i = 0; i < 100; i++) {
        }
        ck_assert_int_eq(errno, 78);
        if (turns == 0) {
            sem_post(&holds);
        }
    }
    ck_assert_uint_eq(count, 2 * turns);
    return NULL;
}

START_TEST(threads_that_register_and_panic_all_the_time_are_shown_whole)
{
    pthread_t threads[3];
    sem_init(&holds, 0, 0);
    for (int i = 0; i < 3; i++) {
        start(&threads[i], be_busy, NULL);
    }
    for (int i = 0; i < 100; i++) {
        dump();
        for (const char *line = strchr(text, '\n') + 1; *line != '\0'; line = strchr(line, '\n') + 1) {
            bool is_known = strncmp(line, "thread ", 7) == 0 || strncmp(line, "\tthe busy thing; for ", 21) == 0 ||
                            strncmp(line, "\tand ", 5) == 0 || strncmp(line, "\tcount_up, ", 11) == 0 ||
                            strncmp(line, "\tlet_go, ", 9) == 0 || strncmp(line, "\ta function, ", 13) == 0;
            ck_assert_msg(is_known, "this line: %s", line);
        }
    }
    __atomic_store_n(&is_over, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
    }
}
END_TEST

static void *come_and_go(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, let_go, arg);
    return NULL;
}

static void *start_threads(void *arg)
{
    while (!__atomic_load_n(&is_over, __ATOMIC_SEQ_CST)) {
        pthread_t thread;
        ck_assert_int_eq(pthread_create(&thread, NULL, come_and_go, arg), 0);
        ck_assert_int_eq(pthread_join(thread, NULL), 0);
    }
    return NULL;
}

START_TEST(threads_that_begin_and_end_meanwhile_do_no_harm)
{
    pthread_t threads[2];
    GUARD_AUTO(
        s); /* helgrind knows nothing of pthread_once, by which two threads would begin to use the library at the same time */
    guard_defer(s, let_go, NULL);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, start_threads, NULL), 0);
    }
    for (int i = 0; i < 100; i++) {
        dump();
    }
    __atomic_store_n(&is_over, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
    }
}
END_TEST

/* ------------------------------------------------------------------------------------------------ records -- */

START_TEST(a_description_that_fails_is_replaced_by_the_kind_s_name)
{
    GUARD_AUTO(s);
    guard_defer_kind(s, &speechless, NULL);
    dump();
    expect("\tspeechless that cannot be described, registered at check_dump.c:");
    expect_not("half");
    expect_not("no words");
}
END_TEST

START_TEST(more_than_a_few_are_counted)
{
    GUARD_AUTO(s);
    for (int i = 0; i < GUARD_DUMP_RECORDS + 5; i++) {
        guard_defer_kind(s, &named, NULL);
    }
    dump();
    expect("\tand 5 more\n");
    int count = 0;
    for (const char *at = text; (at = strstr(at, "\tnamed,")) != NULL; at++) {
        count++;
    }
    ck_assert_int_eq(count, GUARD_DUMP_RECORDS);
}
END_TEST

static void dump_in_a_defer(void *arg)
{
    (void)arg;
    dump();
}

static void panic_and_dump(void *object)
{
    GUARD_AUTO(s);
    guard_defer_kind(s, &told, object);
    guard_defer(s, dump_in_a_defer, NULL);
    guard_defer_kind(s, &named, NULL);
    guard_panic(4, "dump me");
}

START_TEST(in_a_panic_what_has_run_is_gone_and_the_rest_is_shown)
{
    thing rest = {guard_dump_clock(), "rest"};
    guard_error error;
    ck_assert_int_eq(guard_run(panic_and_dump, &rest, &error), 4);
    expect("\tthe rest; for ");
    expect_not("named");
    expect_not("dump_in_a_defer");
    ck_assert_str_eq(error.message, "dump me");
}
END_TEST

START_TEST(a_fiber_s_registrations_are_shown_with_its_thread_s_and_owners_are_counted)
{
    guard_owner *owner = guard_owner_new();
    guard_stack *fiber = guard_stack_new();
    thing mine = {guard_dump_clock(), "thread's"};
    thing its = {guard_dump_clock(), "fiber's"};
    guard_scope fibers;
    GUARD_AUTO(s);
    guard_defer_kind(s, &told, &mine);
    guard_defer_kind(s, &guard_owner_kind, owner);
    guard_defer_kind(guard_owner_scope(owner), &named, NULL);
    guard_stack_swap(fiber);
    guard_scope_open(&fibers);
    guard_defer_kind(&fibers, &told, &its);
    dump();
    expect("\tthe fiber's; for ");
    expect("\tthe thread's; for ");
    expect("\towner, registered at ");
    expect("1 owner: what it holds is not shown\n");
    expect("1 fiber: shown only while a thread runs it\n");
    expect_not("named");
    guard_scope_close(&fibers);
    guard_stack_swap(NULL);
    guard_stack_free(fiber);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ signals -- */

/* What arrives on the pipe until it has `end`. */
static void read_until(int from, const char *end)
{
    size_t length = 0;
    text[0] = '\0';
    while (strstr(text, end) == NULL) {
        wait_readable(from);
        ssize_t got = read(from, text + length, sizeof text - 1 - length);
        ck_assert_int_gt(got, 0);
        length += (size_t)got;
        text[length] = '\0';
    }
}

START_TEST(a_signal_of_the_program_s_choice_dumps_again_and_again)
{
    pthread_t waits;
    thing first = {guard_dump_clock(), "first thing"};
    int ends[2];
    sem_init(&holds, 0, 0);
    sem_init(&may_go, 0, 0);
    ck_assert_int_eq(pipe(ends), 0);
    guard_dump_on_signal(SIGUSR1, ends[1]);
    start(&waits, hold_and_wait, &first);
    for (int i = 0; i < 3; i++) {
        GUARD_AUTO(s);
        guard_owner *owner = guard_owner_new(); /* its line is the last */
        guard_defer_kind(s, &guard_owner_kind, owner);
        int tries = 0;
        do {
            ck_assert_int_eq(kill(getpid(), SIGUSR1), 0);
            read_until(ends[0], "1 owner: what it holds is not shown\n");
        } while (is_late() && ++tries < 20);
        expect(" (waits):\n\tthe first thing; for ");
    }
    sem_post(&may_go);
    ck_assert_int_eq(pthread_join(waits, NULL), 0);
}
END_TEST

static void handle(int signo)
{
    (void)signo;
}

START_TEST(a_handler_of_the_program_s_is_not_replaced_without_being_asked)
{
    pthread_t waits;
    thing first = {guard_dump_clock(), "first thing"};
    thing mine = {guard_dump_clock(), "own thing"};
    int code;
    sem_init(&holds, 0, 0);
    sem_init(&may_go, 0, 0);
    signal(SIGURG, handle);
    GUARD_AUTO(s);
    guard_defer_kind(s, &told, &mine);
    start(&waits, hold_and_wait, &first);
    dump_with(&code);
    ck_assert_int_eq(code, EBUSY);
    expect(" (waits): it was not asked\n");
    expect("\tthe own thing");
    ck_assert(signal(SIGURG, SIG_DFL) == handle);
    guard_dump_on_signal(SIGUSR2, STDERR_FILENO);
    dump_with_answers();
    expect("\tthe first thing");
    ck_assert(signal(SIGURG, SIG_DFL) == SIG_DFL);
    sem_post(&may_go);
    ck_assert_int_eq(pthread_join(waits, NULL), 0);
}
END_TEST

static void dump_on(void *signo)
{
    guard_dump_on_signal(*(int *)signo, STDERR_FILENO);
}

START_TEST(a_signal_that_cannot_be_caught_is_misuse)
{
    int wrong[] = {0, -1, SIGKILL, SIGSTOP, 1000, SIGSEGV, SIGFPE};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        guard_error error;
        ck_assert_int_eq(guard_run(dump_on, &wrong[i], &error), GUARD_MISUSE_ARGUMENT);
        ck_assert_int_eq(error.domain, GUARD_MISUSE);
    }
}
END_TEST

START_TEST(where_nobody_reads_the_dump_gives_up)
{
    int ends[2];
    ck_assert_int_eq(pipe(ends), 0);
    ck_assert_int_eq(fcntl(ends[1], F_SETFL, O_NONBLOCK), 0);
    while (write(ends[1], text, sizeof text) > 0) {
    }
    while (write(ends[1], text, 1) > 0) {
    }
    ck_assert_int_eq(fcntl(ends[1], F_SETFL, 0), 0);
    ck_assert_int_eq(guard_dump(ends[1]), ETIMEDOUT);
    ck_assert_int_eq(guard_dump(-1), EBADF);
    dump();
}
END_TEST

START_TEST(a_forked_child_dumps_its_own)
{
    thing mine = {guard_dump_clock(), "parent's"};
    GUARD_AUTO(s);
    guard_defer_kind(s, &told, &mine);
    dump();
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        GUARD_AUTO(own);
        guard_defer_kind(own, &named, NULL);
        dump();
        expect("\tnamed, registered at ");
        expect_not("parent's");
        if (strstr(text, "\tnamed, ") != NULL) {
            execl("/bin/true", "true",
                  (char *)NULL); /* not _exit: helgrind takes a lock that fork has made anew for a held one */
        }
        _exit(1);
    }
    int status;
    for (int i = 0; i < 10; i++) {
        dump();
        expect("\tthe parent's; for ");
        expect_not("named");
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        the_caller_s_own_registrations_are_shown_the_newest_first_with_place_and_age,
        what_the_library_opens_is_shown_with_the_line_that_asked_for_it,
        a_dump_to_no_descriptor_says_so_at_once,
        threads_that_hold_nothing_say_so_and_one_without_a_stack_can_dump,
        threads_that_are_stuck_in_foreign_calls_are_shown_and_go_on,
        a_thread_that_blocks_signals_is_named_and_its_late_answer_is_passed_over,
        threads_that_register_and_panic_all_the_time_are_shown_whole,
        threads_that_begin_and_end_meanwhile_do_no_harm,
        a_description_that_fails_is_replaced_by_the_kind_s_name,
        more_than_a_few_are_counted,
        in_a_panic_what_has_run_is_gone_and_the_rest_is_shown,
        a_fiber_s_registrations_are_shown_with_its_thread_s_and_owners_are_counted,
        a_signal_of_the_program_s_choice_dumps_again_and_again,
        a_handler_of_the_program_s_is_not_replaced_without_being_asked,
        a_signal_that_cannot_be_caught_is_misuse,
        where_nobody_reads_the_dump_gives_up,
        a_forked_child_dumps_its_own,
    };
    return suite_run("dump", tests, sizeof tests / sizeof *tests);
}
