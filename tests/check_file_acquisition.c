/* SPDX-License-Identifier: MIT */
/*
 * Everything that guard_file.h acquires, with everything after it failing, and every allocation, descriptor and system call of it.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <guard/guard_cancel.h>
#include <guard/guard_file.h>

#include "fault_memory.h"
#include "file_faults.h"
#include "suite.h"

static guard_error error;

/* Each acquires one thing on the scope it is given; "data" is a file of four bytes, "." may be written. */
static void acquire_stream(void *scope)
{
    guard_file_open(scope, "data", "r+", NULL);
}

static void acquire_descriptor(void *scope)
{
    guard_file_open_descriptor(scope, "data", O_RDONLY, 0, NULL);
}

static void acquire_adopted_stream(void *scope)
{
    FILE *stream = fopen("data", "re");
    if (stream == NULL) {
        guard_panic_os("cannot open data");
    }
    guard_file_adopt(scope, stream, "adopted", NULL);
}

static void acquire_adopted_descriptor(void *scope)
{
    int descriptor = open("data", O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
        guard_panic_os("cannot open data");
    }
    guard_file_adopt_descriptor(scope, descriptor, "adopted", NULL);
}

static void acquire_directory(void *scope)
{
    guard_file_open_directory(scope, ".", NULL);
}

static void acquire_map(void *scope)
{
    size_t size;
    guard_file_map(scope, "data", &size, NULL);
}

static void acquire_memory(void *scope)
{
    guard_memory_allocate(scope, 100, NULL);
}

static void acquire_memory_array(void *scope)
{
    guard_memory_allocate_array(scope, 10, 10, NULL);
}

static void acquire_memory_copy(void *scope)
{
    guard_memory_copy(scope, "text", NULL);
}

static void acquire_memory_format(void *scope)
{
    guard_memory_format(scope, NULL, "%d", 1);
}

static void acquire_memory_resize(void *scope)
{
    guard_ticket ticket;
    void *memory = guard_memory_allocate(scope, 100, &ticket);
    guard_memory_resize(scope, memory, 100000, &ticket);
}

static void acquire_temporary(void *scope)
{
    guard_file_temporary(scope, ".", NULL);
}

static void acquire_temporary_named(void *scope)
{
    const char *path;
    guard_file_temporary_named(scope, ".", &path, NULL);
}

static void acquire_temporary_directory(void *scope)
{
    guard_file_temporary_directory(scope, ".", NULL);
}

static void acquire_lock(void *scope)
{
    int descriptor = guard_file_open_descriptor(scope, "data", O_RDWR, 0, NULL);
    guard_file_lock(scope, descriptor, NULL);
}

static void acquire_lock_beside(void *scope)
{
    guard_file_lock_beside(scope, "locked", NULL);
}

static void acquire_replacement(void *scope)
{
    guard_file_replace_begin(scope, "data", NULL);
}

static const struct acquisition {
    const char *name;
    guard_fn *acquire;
} acquisitions[] = {
    {"stream", acquire_stream},
    {"descriptor", acquire_descriptor},
    {"adopted stream", acquire_adopted_stream},
    {"adopted descriptor", acquire_adopted_descriptor},
    {"directory", acquire_directory},
    {"map", acquire_map},
    {"memory", acquire_memory},
    {"memory array", acquire_memory_array},
    {"memory copy", acquire_memory_copy},
    {"memory format", acquire_memory_format},
    {"memory resize", acquire_memory_resize},
    {"temporary", acquire_temporary},
    {"temporary named", acquire_temporary_named},
    {"temporary directory", acquire_temporary_directory},
    {"lock", acquire_lock},
    {"lock beside", acquire_lock_beside},
    {"replacement", acquire_replacement},
};
#define ACQUISITIONS ((int)(sizeof acquisitions / sizeof acquisitions[0]))

static const struct acquisition *current;
static int registrations_before; /* so that the record itself is what finds no memory */
static bool acquired, fails_afterwards;

static void nothing(void *arg)
{
    (void)arg;
}

/* The numbers of the descriptors that exec would leave open. */
static unsigned long long inheritable(void)
{
    unsigned long long set = 0;
    for (int i = 0; i < 64; i++) {
        int flags = fcntl(i, F_GETFD);
        set |= flags >= 0 && !(flags & FD_CLOEXEC) ? 1ULL << i : 0;
    }
    return set;
}

static void acquire_in_scope(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    for (int i = 0; i < registrations_before; i++) {
        guard_defer(s, nothing, NULL);
    }
    unsigned long long before = inheritable();
    current->acquire(s);
    acquired = true;
    ck_assert_msg(inheritable() == before, "%s is inherited by exec", current->name);
    if (fails_afterwards) {
        guard_panic(77, "afterwards");
    }
}

static int descriptors_before;
static size_t blocks_before;

/* Chooses the acquisition, and notes how things are when all that the library keeps for good is there. */
static void acquisition_begin(const struct acquisition *acquisition)
{
    scratch_enter_counted();
    file_put("data", "data");
    current = acquisition;
    registrations_before = 64; /* all that a thread has without an allocation */
    ck_assert_int_eq(guard_run(acquire_in_scope, NULL, &error), 0);
    registrations_before = 0;
    unlink("locked.guard-lock");
    descriptors_before = descriptors_open();
    blocks_before = fault_memory_blocks();
}

/* The directory is as it was, but for lock files, which stay by design. */
static void ck_assert_as_before(const char *when)
{
    ck_assert_msg(descriptors_open() == descriptors_before, "%s, %s: %d descriptors are open, %d were", current->name,
                  when, descriptors_open(), descriptors_before);
    ck_assert_msg(fault_memory_blocks() == blocks_before, "%s, %s: %zu blocks are taken, %zu were", current->name, when,
                  fault_memory_blocks(), blocks_before);
    unlink("locked.guard-lock");
    ck_assert_msg(strcmp(directory_list("."), "data") == 0, "%s, %s: left %s", current->name, when,
                  directory_list("."));
    ck_assert_str_eq(file_get("data"), "data");
}

START_TEST(everything_acquired_is_given_back_when_all_after_it_fails)
{
    acquisition_begin(&acquisitions[_i]);
    fails_afterwards = true;
    ck_assert_int_eq(guard_run(acquire_in_scope, NULL, &error), 77);
    ck_assert(acquired);
    ck_assert_int_eq(error.cause_count, 0);
    ck_assert_as_before("afterwards");
}
END_TEST

/* Fails every allocation in turn; how many there were. */
static int fail_each_allocation(void)
{
    for (int n = 1;; n++) {
        acquired = false;
        fault_memory_fail_at((unsigned long)n);
        int code = guard_run(acquire_in_scope, NULL, &error);
        bool hit = fault_memory_was_hit();
        fault_memory_fail_at(0);
        ck_assert_as_before("out of memory");
        if (!hit) {
            ck_assert_msg(code == 0 && acquired, "%s: %s", current->name, error.message);
            return n - 1;
        }
        ck_assert_msg(code == ENOMEM && error.domain == GUARD_MEMORY && !acquired, "%s, allocation %d: code %d, %s",
                      current->name, n, code, error.message);
    }
}

START_TEST(an_acquisition_without_memory_at_any_allocation_leaves_nothing)
{
    acquisition_begin(&acquisitions[_i]);
    /* Plain memory is malloc's own and needs no object beside it. */
    bool has_object = strncmp(current->name, "memory", 6) != 0;
    ck_assert_int_eq(fail_each_allocation() > 0, has_object);
}
END_TEST

/* In a process whose thread has no room for another registration. */
START_TEST(an_acquisition_without_memory_for_its_registration_leaves_nothing)
{
    scratch_enter_counted();
    file_put("data", "data");
    current = &acquisitions[_i];
    guard_run(nothing, NULL, NULL);
    descriptors_before = descriptors_open();
    blocks_before = fault_memory_blocks();
    registrations_before = 64;
    fault_memory_fail_at(1);
    ck_assert_int_eq(guard_run(acquire_in_scope, NULL, &error), ENOMEM);
    ck_assert(fault_memory_was_hit() && !acquired);
    ck_assert_as_before("no room to register");
}
END_TEST

START_TEST(an_acquisition_without_descriptors_leaves_nothing)
{
    acquisition_begin(&acquisitions[_i]);
    if (suite_under_valgrind()) {
        return; /* it lets the kernel create the file, and refuses the descriptor afterwards */
    }
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    int next = open("/dev/null", O_RDONLY);
    close(next);
    for (int extra = 0; extra < 20; extra++) {
        acquired = false;
        setrlimit(RLIMIT_NOFILE, &(struct rlimit){(rlim_t)(next + extra), limit.rlim_max});
        int code = guard_run(acquire_in_scope, NULL, &error);
        setrlimit(RLIMIT_NOFILE, &limit);
        ck_assert_as_before("afterwards");
        if (code == 0) {
            ck_assert(acquired);
            return;
        }
        ck_assert_msg(code == EMFILE && error.domain == GUARD_OS, "%s: %s", current->name, error.message);
    }
    ck_abort_msg("%s needs more than 20 descriptors", current->name);
}
END_TEST

START_TEST(an_acquisition_with_any_system_call_failing_leaves_nothing)
{
    acquisition_begin(&acquisitions[_i]);
    int tried = 0;
    for (int n = 1;; n++) {
        acquired = false;
        faults_arm(n, EIO);
        int code = guard_run(acquire_in_scope, NULL, &error);
        faults_disarm();
        if (!faults_struck()) {
            ck_assert_msg(code == 0, "%s: %s", current->name, error.message);
            break;
        }
        tried++;
        if (strcmp(faults_where(), "unlinkat") == 0) { /* nothing can take that file away */
            ck_assert_int_eq(code, EIO);
            ck_assert_int_eq(system("rm -rf .guard.*.guard-tmp"), 0);
        }
        ck_assert_as_before(faults_where());
        ck_assert_msg(code == 0 || error.code == EIO, "%s: %s failing is told as %s", current->name, faults_where(),
                      error.message);
    }
    /* fopen and opendir make their calls inside libc, memory makes none. */
    bool direct = strstr(current->name, "descriptor") != NULL || strstr(current->name, "temporary") != NULL ||
                  strstr(current->name, "lock") != NULL || strcmp(current->name, "replacement") == 0;
    ck_assert_msg(tried > 0 || !direct, "%s: no call was tried", current->name);
}
END_TEST

START_TEST(an_acquisition_of_a_cancelled_thread_is_not_made)
{
    acquisition_begin(&acquisitions[_i]);
    acquired = false;
    guard_cancel_thread(pthread_self());
    int code = guard_run(acquire_in_scope, NULL, &error);
    guard_cancel_clear();
    /* Taking memory takes no time. */
    bool is_checkpoint = strncmp(current->name, "memory", 6) != 0;
    ck_assert_int_eq(code, is_checkpoint ? ECANCELED : 0);
    ck_assert(acquired != is_checkpoint);
    ck_assert_as_before("cancelled");
}
END_TEST

int main(void)
{
    const TTest *const each[] = {
        everything_acquired_is_given_back_when_all_after_it_fails,
        an_acquisition_without_memory_at_any_allocation_leaves_nothing,
        an_acquisition_without_memory_for_its_registration_leaves_nothing,
        an_acquisition_without_descriptors_leaves_nothing,
        an_acquisition_with_any_system_call_failing_leaves_nothing,
        an_acquisition_of_a_cancelled_thread_is_not_made,
    };
    const suite_group group = {"each acquisition", ACQUISITIONS, each, sizeof each / sizeof *each};
    return suite_run_groups("file_acquisition", &group, 1);
}
