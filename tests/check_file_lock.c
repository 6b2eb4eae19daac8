/* SPDX-License-Identifier: MIT */
/*
 * check_file_lock.c: whole-file locks between scopes, threads and processes, and the lock beside a file.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard_cancel.h>
#include <guard/guard_file.h>

#include "fault_memory.h"
#include "file_faults.h"
#include "suite.h"
#include "task.h"

static guard_error error;

#define ck_assert_has(text, part) \
    ck_assert_msg(strstr((text), (part)) != NULL, "\"%s\" should contain \"%s\"", (text), (part))

static void scratch_begin(void)
{
    fault_memory_install();
    scratch_enter();
    file_put("data", "data");
}

/* Whether nobody holds a lock on the file: asked by a description of its own. */
static bool is_free(const char *path)
{
    int descriptor = open(path, O_RDWR | O_CLOEXEC);
    ck_assert_msg(descriptor >= 0, "%s: %s", path, strerror(errno));
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    ck_assert_int_eq(fcntl(descriptor, F_OFD_GETLK, &lock), 0);
    close(descriptor);
    return lock.l_type == F_UNLCK;
}

static const guard_file_lock_options at_once = {.no_wait = 1};

static void lock_data(void *options)
{
    GUARD_AUTO(s);
    int descriptor = guard_file_open_descriptor(s, "data", O_RDWR, 0, NULL);
    guard_file_lock(s, descriptor, options);
}

static void lock_beside(void *options)
{
    GUARD_AUTO(s);
    guard_file_lock_beside(s, "db", options);
}

/* ----------------------------------------------------------------------------------------- a process beside -- */

static pid_t other;
static int to_other[2];

/* Another process that holds the lock (beside "db", or on "data" if shared) until `other_end`, or is killed. */
static void other_begin(bool beside, int shared)
{
    int ready[2];
    char byte;
    ck_assert_int_eq(pipe2(to_other, O_CLOEXEC), 0);
    ck_assert_int_eq(pipe2(ready, O_CLOEXEC), 0);
    other = fork();
    ck_assert_int_ge(other, 0); /* kill(-1) would end everything on the machine */
    if (other == 0) {
        close(to_other[1]);
        close(ready[0]);
        GUARD_AUTO(s);
        const guard_file_lock_options options = {.shared = shared};
        if (beside) {
            guard_file_lock_beside(s, "db", &options);
        } else {
            guard_file_lock(s, guard_file_open_descriptor(s, "data", O_RDWR, 0, NULL), &options);
        }
        close(ready[1]);
        ssize_t end = read(to_other[0], &byte, 1);
        guard_scope_close(s);
        _exit(end != 0);
    }
    close(to_other[0]);
    close(ready[1]);
    ck_assert_int_eq(read(ready[0], &byte, 1), 0);
    close(ready[0]);
}

static void other_end(void)
{
    int status;
    close(to_other[1]);
    ck_assert_int_eq(waitpid(other, &status, 0), other);
    ck_assert_int_eq(status, 0);
}

static void other_kill(void)
{
    int status;
    kill(other, SIGKILL);
    ck_assert_int_eq(waitpid(other, &status, 0), other);
    close(to_other[1]);
}

/* --------------------------------------------------------------------------------------------------- tests -- */

static void panic_with_lock(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_file_lock_beside(s, "db", NULL);
    ck_assert(!is_free("db.guard-lock"));
    guard_panic(9, "with the lock");
}

START_TEST(a_lock_is_released_with_its_scope_also_in_a_panic)
{
    scratch_begin();
    ck_assert_int_eq(guard_run(panic_with_lock, NULL, &error), 9);
    ck_assert_int_eq(error.cause_count, 0);
    ck_assert(is_free("db.guard-lock"));
    ck_assert_int_eq(guard_run(lock_beside, (void *)&at_once, &error), 0);
    ck_assert_str_eq(directory_list("."), "data db.guard-lock");
    ck_assert_str_eq(file_get("db.guard-lock"), "");
}
END_TEST

static void release_lock_early(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_ticket ticket = guard_file_lock_beside(s, "db", NULL);
    guard_release(ticket);
    ck_assert(is_free("db.guard-lock"));
    ck_assert_int_eq(guard_pending(ticket), 0);
}

START_TEST(a_lock_is_released_early_by_its_ticket)
{
    scratch_begin();
    int before = descriptors_open();
    ck_assert_int_eq(guard_run(release_lock_early, NULL, &error), 0);
    ck_assert_int_eq(descriptors_open(), before);
}
END_TEST

START_TEST(the_second_one_is_told_who_holds_the_lock)
{
    scratch_begin();
    other_begin(true, 0);
    char holder[200], host[100];
    gethostname(host, sizeof host);
    snprintf(holder, sizeof holder, "/db.guard-lock\" is held by pid %ld on host %s", (long)other, host);
    ck_assert_int_eq(guard_run(lock_beside, (void *)&at_once, &error), EAGAIN);
    ck_assert_int_eq(error.domain, GUARD_LOCK);
    ck_assert_has(error.message, holder);
    ck_assert_str_eq(error.function, "lock_beside");
    other_end();
    ck_assert_int_eq(guard_run(lock_beside, (void *)&at_once, &error), 0);
}
END_TEST

START_TEST(a_wait_ends_at_its_deadline)
{
    scratch_begin();
    other_begin(true, 0);
    long long before = now_ms();
    ck_assert_int_eq(guard_run(lock_beside, &(guard_file_lock_options){.wait_ms = 120}, &error), ETIMEDOUT);
    long long waited = now_ms() - before;
    ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
    ck_assert_has(error.message, "is held by pid ");
    ck_assert_has(error.message, "waited 120 ms");
    ck_assert_msg(waited >= 120 && waited < 5000, "waited %lld ms", waited);
    other_end();
}
END_TEST

static void *end_other(void *arg)
{
    task_wait(getpid(), 'S'); /* the lock is waited for */
    other_end();
    return arg;
}

START_TEST(a_wait_ends_with_the_lock_when_that_is_released)
{
    scratch_begin();
    const guard_file_lock_options waits[] = {{.wait_ms = 0}, {.wait_ms = -1}, {.wait_ms = 30000}};
    for (int i = 0; i < 3; i++) {
        pthread_t thread;
        other_begin(true, 0);
        pthread_create(&thread, NULL, end_other, NULL);
        ck_assert_int_eq(guard_run(lock_beside, (void *)(uintptr_t)&waits[i], &error), 0);
        pthread_join(thread, NULL);
    }
}
END_TEST

START_TEST(a_lock_of_a_killed_process_is_free_and_its_name_is_replaced)
{
    scratch_begin();
    char left[100];
    other_begin(true, 0);
    other_kill();
    snprintf(left, sizeof left, "pid %ld on host", (long)other);
    ck_assert_has(file_get("db.guard-lock"), left);
    ck_assert_int_eq(guard_run(lock_beside, (void *)&at_once, &error), 0);
    ck_assert_str_eq(file_get("db.guard-lock"), "");
    /* A longer text than ours leaves nothing behind ours. */
    file_put("db.guard-lock", "pid 99999999999999999999 on host a.host.with.a.very.long.name.and.a.long.domain.too\n");
    other_begin(true, 0);
    ck_assert_msg(strchr(file_get("db.guard-lock"), '\n')[1] == '\0', "%s", file_get("db.guard-lock"));
    other_end();
}
END_TEST

START_TEST(text_that_is_no_holders_is_not_repeated)
{
    scratch_begin();
    other_begin(true, 0);
    int descriptor = open("db.guard-lock", O_WRONLY | O_TRUNC);
    ck_assert_int_eq(write(descriptor, "\033[31mred", 8), 8);
    ck_assert_int_eq(guard_run(lock_beside, (void *)&at_once, &error), EAGAIN);
    ck_assert_has(error.message, "is held by another process");
    ck_assert_int_eq(ftruncate(descriptor, 0), 0);
    ck_assert_int_eq(pwrite(descriptor, "pid \033[31m1\n", 11, 0), 11);
    ck_assert_int_eq(guard_run(lock_beside, (void *)&at_once, &error), EAGAIN);
    ck_assert_has(error.message, "is held by pid \\x1b[31m1");
    close(descriptor);
    other_end();
}
END_TEST

static void lock_twice_in_a_thread(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_file_lock_beside(s, "db", NULL);
    guard_file_lock_beside(s, "./db", &at_once);
}

START_TEST(two_scopes_of_one_process_exclude_each_other)
{
    scratch_begin();
    char own[64];
    snprintf(own, sizeof own, "is held by pid %ld ", (long)getpid());
    ck_assert_int_eq(guard_run(lock_twice_in_a_thread, NULL, &error), EAGAIN);
    ck_assert_has(error.message, own);
    ck_assert(is_free("db.guard-lock"));
}
END_TEST

START_TEST(shared_locks_exclude_only_exclusive_ones)
{
    scratch_begin();
    const guard_file_lock_options shared = {.no_wait = 1, .shared = 1};
    for (int beside = 0; beside < 2; beside++) {
        guard_fn *lock = beside ? lock_beside : lock_data;
        other_begin(beside, 1);
        ck_assert_int_eq(guard_run(lock, (void *)(uintptr_t)&shared, &error), 0);
        ck_assert_int_eq(guard_run(lock, (void *)(uintptr_t)&at_once, &error), EAGAIN);
        ck_assert_has(error.message, "is held by others, which share it");
        other_end();
        ck_assert_int_eq(guard_run(lock, (void *)(uintptr_t)&at_once, &error), 0);
        other_begin(beside, 0);
        ck_assert_int_eq(guard_run(lock, (void *)(uintptr_t)&shared, &error), EAGAIN);
        other_end();
    }
}
END_TEST

static void lock_then_close(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_ticket ticket;
    int descriptor = guard_file_open_descriptor(s, "data", O_RDWR, 0, &ticket);
    guard_ticket lock = guard_file_lock(s, descriptor, NULL);
    guard_release(ticket);
    ck_assert(!is_free("data"));
    guard_release(lock);
    ck_assert(is_free("data"));
}

static void lock_then_release(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    int descriptor = guard_file_open_descriptor(s, "data", O_RDWR, 0, NULL);
    guard_ticket lock = guard_file_lock(s, descriptor, NULL);
    guard_release(lock);
    ck_assert(is_free("data"));
}

static void lock_then_dismiss(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_ticket ticket;
    int descriptor = guard_file_open_descriptor(s, "data", O_RDWR, 0, &ticket);
    guard_dismiss(guard_file_lock(s, descriptor, NULL));
    ck_assert(!is_free("data"));
    guard_release(ticket);
    ck_assert(is_free("data"));
}

START_TEST(a_lock_holds_until_it_is_released_whatever_becomes_of_the_descriptor)
{
    scratch_begin();
    int before = descriptors_open();
    size_t blocks = fault_memory_blocks();
    ck_assert_int_eq(guard_run(lock_then_close, NULL, &error), 0);
    ck_assert_int_eq(guard_run(lock_then_release, NULL, &error), 0);
    ck_assert_int_eq(guard_run(lock_then_dismiss, NULL, &error), 0);
    ck_assert_int_eq(descriptors_open(), before);
    ck_assert_uint_le(fault_memory_blocks(), blocks + 1); /* the thread's own state */
}
END_TEST

static void lock_path(void *path)
{
    GUARD_AUTO(s);
    guard_file_lock_beside(s, path, &at_once);
}

START_TEST(the_lock_is_beside_the_file_at_the_end_of_all_links)
{
    scratch_begin();
    mkdir("a", 0755);
    mkdir("b", 0755);
    ck_assert_int_eq(symlink("../b/db", "a/link"), 0);
    ck_assert_int_eq(guard_run(lock_path, (void *)"a/link", &error), 0);
    ck_assert_str_eq(directory_list("a"), "link");
    ck_assert_str_eq(directory_list("b"), "db.guard-lock");
    file_put("b/db", "a database");
    ck_assert_int_eq(guard_run(lock_path, (void *)"b/../a/link", &error), 0);
    ck_assert_str_eq(directory_list("b"), "db db.guard-lock");
    ck_assert_str_eq(file_get("b/db"), "a database");
}
END_TEST

START_TEST(what_cannot_be_locked_is_named)
{
    scratch_begin();
    char name[300];
    mkdir("directory", 0755);
    mkdir("d.guard-lock", 0755);
    mkfifo("p.guard-lock", 0644);
    ck_assert_int_eq(symlink("data", "l.guard-lock"), 0);
    const struct {
        const char *path;
        int code;
    } refused[] = {{"no/such", ENOENT},
                   {"directory/", EISDIR},
                   {"data/x", ENOTDIR},
                   {"d", EISDIR},
                   {"p", EINVAL},
                   {"l", ELOOP},
                   {NULL, 0}};
    for (int i = 0; refused[i].path != NULL; i++) {
        int code = guard_run(lock_path, (void *)(uintptr_t)refused[i].path, &error);
        ck_assert_msg(code == refused[i].code, "%s: %s", refused[i].path, error.message);
        ck_assert_has(error.message, ".guard-lock\"");
    }
    memset(name, 'n', sizeof name);
    name[250] = '\0';
    ck_assert_int_eq(guard_run(lock_path, name, &error), ENAMETOOLONG);
    ck_assert_str_eq(directory_list("."), "d.guard-lock data directory l.guard-lock p.guard-lock");
}
END_TEST

static void lock_not_writable(void *options)
{
    GUARD_AUTO(s);
    guard_file_lock(s, guard_file_open_descriptor(s, "data", O_RDONLY, 0, NULL), options);
}

START_TEST(an_exclusive_lock_needs_a_descriptor_open_for_writing)
{
    scratch_begin();
    ck_assert_int_eq(guard_run(lock_not_writable, NULL, &error), EBADF);
    ck_assert_has(error.message, "cannot lock \"");
    ck_assert_has(error.message, "/data\"");
    ck_assert_int_eq(guard_run(lock_not_writable, &(guard_file_lock_options){.shared = 1}, &error), 0);
}
END_TEST

START_TEST(options_that_can_never_be_right_are_misuse)
{
    scratch_begin();
    const guard_file_lock_options wrong[] = {
        {.wait_ms = -2}, {.no_wait = 1, .wait_ms = 5}, {.reserved_int = 1}, {.reserved = {NULL, &error}}};
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(guard_run(lock_beside, (void *)(uintptr_t)&wrong[i], &error), GUARD_MISUSE_ARGUMENT);
        ck_assert_int_eq(error.domain, GUARD_MISUSE);
    }
    ck_assert_str_eq(directory_list("."), "data");
}
END_TEST

static void fork_with_lock(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_ticket ticket = guard_file_lock_beside(s, "db", NULL);
    pid_t child = fork();
    if (child == 0) {
        guard_release(ticket);
        _exit(0);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
    ck_assert(!is_free("db.guard-lock"));
    ck_assert_has(file_get("db.guard-lock"), "pid ");
}

START_TEST(a_forked_child_does_not_free_its_parents_lock)
{
    scratch_begin();
    ck_assert_int_eq(guard_run(fork_with_lock, NULL, &error), 0);
    ck_assert(is_free("db.guard-lock"));
}
END_TEST

static void release_beside_child(void *arg)
{
    (void)arg;
    int end[2];
    char byte;
    GUARD_AUTO(s);
    guard_ticket ticket = guard_file_lock_beside(s, "db", NULL);
    ck_assert_int_eq(pipe(end), 0);
    pid_t child = fork();
    if (child == 0) {
        close(end[1]);
        _exit(read(end[0], &byte, 1) != 0);
    }
    close(end[0]);
    guard_release(ticket);
    ck_assert(is_free("db.guard-lock"));
    close(end[1]);
    ck_assert_int_eq(waitpid(child, NULL, 0), child);
}

START_TEST(a_lock_is_released_although_a_forked_child_has_a_copy_of_it)
{
    scratch_begin();
    ck_assert_int_eq(guard_run(release_beside_child, NULL, &error), 0);
}
END_TEST

/* -------------------------------------------------------------------------------------------- cancellation -- */

static pthread_t waiter;

/* Cancels the waiter once it waits: when it has its description of the lock file open. */
static void *cancel_waiter(void *descriptors)
{
    while (descriptors_open() <= *(int *)descriptors) {
        sched_yield();
    }
    guard_cancel_thread(waiter);
    return NULL;
}

static void lock_with_deadline(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_deadline(s, 50);
    guard_file_lock_beside(s, "db", &(guard_file_lock_options){.wait_ms = -1});
}

START_TEST(a_wait_for_a_lock_ends_when_it_is_cancelled_or_late)
{
    pthread_t thread;
    scratch_begin();
    guard_run(lock_beside, NULL, NULL);
    other_begin(true, 0);
    int before = descriptors_open();
    size_t blocks = fault_memory_blocks();
    ck_assert_int_eq(guard_run(lock_with_deadline, NULL, &error), ETIMEDOUT);
    ck_assert_int_eq(error.domain, GUARD_TIMEOUT);
    waiter = pthread_self();
    ck_assert_int_eq(pthread_create(&thread, NULL, cancel_waiter, &before), 0);
    ck_assert_int_eq(guard_run(lock_beside, &(guard_file_lock_options){.wait_ms = -1}, &error), ECANCELED);
    pthread_join(thread, NULL);
    guard_cancel_clear();
    ck_assert_int_eq(error.domain, GUARD_CANCELLED);
    ck_assert_str_eq(error.function, "lock_beside");
    ck_assert_int_eq(descriptors_open(), before);
    ck_assert_uint_eq(fault_memory_blocks(), blocks);
    other_end();
}
END_TEST

static void *wait_for_ever(void *arg)
{
    GUARD_AUTO(s);
    guard_file_lock_beside(s, "db", &(guard_file_lock_options){.wait_ms = -1});
    return arg;
}

START_TEST(a_wait_for_a_lock_ends_when_its_thread_is_cancelled_by_the_system)
{
    pthread_t thread;
    void *result;
    scratch_begin();
    guard_run(lock_beside, NULL, NULL);
    other_begin(true, 0);
    int before = descriptors_open();
    ck_assert_int_eq(pthread_create(&thread, NULL, wait_for_ever, NULL), 0);
    while (descriptors_open() <= before) {
        sched_yield();
    }
    pthread_cancel(thread);
    pthread_join(thread, &result);
    ck_assert_ptr_eq(result, PTHREAD_CANCELED);
    ck_assert_int_eq(descriptors_open(), before);
    other_end();
}
END_TEST

/* A program of its own: this one, which the test starts again by exec with this in its environment. */
#define HOLD "GUARD_CHECK_FILE_LOCK_HOLD"

static void hold_until_end_of_input(void *path)
{
    char byte;
    GUARD_AUTO(s);
    guard_file_lock_beside(s, path, &at_once);
    guard_file_write(STDOUT_FILENO, "+", 1);
    guard_file_read(STDIN_FILENO, &byte, 1);
}

START_TEST(a_lock_is_held_against_another_program_and_not_inherited_by_it)
{
    int input[2], output[2], status;
    char byte;
    scratch_begin();
    GUARD_AUTO(s);
    /* Ours, on another file, must be closed by exec. */
    guard_ticket mine = guard_file_lock_beside(s, "mine", NULL);
    ck_assert_int_eq(pipe2(input, O_CLOEXEC), 0);
    ck_assert_int_eq(pipe2(output, O_CLOEXEC), 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(input[0], STDIN_FILENO);
        dup2(output[1], STDOUT_FILENO);
        char self[4096];
        ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
        self[length > 0 ? length : 0] = '\0';
        setenv(HOLD, "db", 1);
        execl(self, self, (char *)NULL);
        _exit(127);
    }
    close(input[0]);
    close(output[1]);
    ck_assert_int_eq(read(output[0], &byte, 1), 1);
    guard_release(mine);
    ck_assert(is_free("mine.guard-lock"));
    char holder[64];
    snprintf(holder, sizeof holder, "is held by pid %ld ", (long)child);
    ck_assert_int_eq(guard_run(lock_beside, (void *)&at_once, &error), EAGAIN);
    ck_assert_has(error.message, holder);
    close(input[1]);
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
    ck_assert_int_eq(guard_run(lock_beside, (void *)&at_once, &error), 0);
    close(output[0]);
}
END_TEST

enum { THREADS = 4, ROUNDS = 50 };
static int inside, most_inside;

static void count_inside(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_file_lock_beside(s, "db", &(guard_file_lock_options){.wait_ms = -1});
    int now = __atomic_add_fetch(&inside, 1, __ATOMIC_SEQ_CST);
    if (now > __atomic_load_n(&most_inside, __ATOMIC_SEQ_CST)) {
        __atomic_store_n(&most_inside, now, __ATOMIC_SEQ_CST);
    }
    __atomic_sub_fetch(&inside, 1, __ATOMIC_SEQ_CST);
}

static void *lock_often(void *failures)
{
    for (int i = 0; i < ROUNDS; i++) {
        if (guard_run(count_inside, NULL, NULL) != 0) {
            __atomic_add_fetch((int *)failures, 1, __ATOMIC_SEQ_CST);
        }
    }
    return NULL;
}

START_TEST(threads_exclude_each_other)
{
    pthread_t threads[THREADS];
    int failures = 0;
    scratch_begin();
    for (int i = 0; i < THREADS; i++) {
        pthread_create(&threads[i], NULL, lock_often, &failures);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    ck_assert_int_eq(failures, 0);
    ck_assert_int_eq(most_inside, 1);
}
END_TEST

int main(void)
{
    if (getenv(HOLD) != NULL) {
        return guard_run(hold_until_end_of_input, getenv(HOLD), NULL) != 0;
    }
    const TTest *const tests[] = {
        a_lock_is_released_with_its_scope_also_in_a_panic,
        a_lock_is_released_early_by_its_ticket,
        the_second_one_is_told_who_holds_the_lock,
        a_wait_ends_at_its_deadline,
        a_wait_ends_with_the_lock_when_that_is_released,
        a_lock_of_a_killed_process_is_free_and_its_name_is_replaced,
        text_that_is_no_holders_is_not_repeated,
        two_scopes_of_one_process_exclude_each_other,
        shared_locks_exclude_only_exclusive_ones,
        a_lock_holds_until_it_is_released_whatever_becomes_of_the_descriptor,
        the_lock_is_beside_the_file_at_the_end_of_all_links,
        what_cannot_be_locked_is_named,
        an_exclusive_lock_needs_a_descriptor_open_for_writing,
        options_that_can_never_be_right_are_misuse,
        a_forked_child_does_not_free_its_parents_lock,
        a_lock_is_released_although_a_forked_child_has_a_copy_of_it,
        a_wait_for_a_lock_ends_when_it_is_cancelled_or_late,
        a_wait_for_a_lock_ends_when_its_thread_is_cancelled_by_the_system,
        a_lock_is_held_against_another_program_and_not_inherited_by_it,
        threads_exclude_each_other,
    };
    return suite_run("file_lock", tests, sizeof tests / sizeof *tests);
}
