/* SPDX-License-Identifier: MIT */
/*
 * Directories, mappings, memory and temporary files; what a forked child does with them, and streams and descriptors.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard_dump.h>
#include <guard/guard_file.h>

#include "file_faults.h"
#include "suite.h"

static guard_error error;

/* ------------------------------------------------------------------------------ directories and mappings -- */

static void count_entries(void *count)
{
    GUARD_AUTO(s);
    DIR *directory = guard_file_open_directory(s, ".", NULL);
    while (guard_file_read_directory(directory) != NULL) {
        ++*(int *)count;
    }
}

static void open_directory_of_file(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_file_open_directory(s, "one", NULL);
}

static void read_directory_badly(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    DIR *directory = guard_file_open_directory(s, ".", NULL);
    int null = open("/dev/null", O_RDONLY);
    dup2(null, dirfd(directory));
    close(null);
    guard_file_read_directory(directory);
}

START_TEST(a_directory_is_read_to_its_end_and_errors_are_told)
{
    scratch_enter_counted();
    file_put("one", "");
    file_put(".two", "");
    int count = 0;
    ck_assert_int_eq(guard_run(count_entries, &count, &error), 0);
    ck_assert_int_eq(count, 2);
    ck_assert_int_eq(guard_run(open_directory_of_file, NULL, &error), ENOTDIR);
    ck_assert_has(error.message, "\"one\"");
    ck_assert_int_eq(guard_run(read_directory_badly, NULL, &error), ENOTDIR);
    ck_assert_has(error.message, "/dev/null");
}
END_TEST

static const char *mapped;

static void map_data(void *size)
{
    GUARD_AUTO(s);
    mapped = guard_file_map(s, "data", size, NULL);
    ck_assert_ptr_nonnull(mapped);
    if (*(size_t *)size != 0) {
        ck_assert_int_eq(memcmp(mapped, "data", 4), 0);
    }
}

static void map_directory(void *arg)
{
    GUARD_AUTO(s);
    guard_file_map(s, ".", arg, NULL);
}

/* Whether the page is mapped: mincore(2) says ENOMEM where it is not. */
static bool is_mapped(const void *address)
{
    unsigned char residence;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return mincore((void *)((uintptr_t)address & ~(page - 1)), 1, &residence) == 0;
}

START_TEST(a_file_is_mapped_whole_and_unmapped_with_its_scope)
{
    scratch_enter_counted();
    size_t size = 9;
    file_put("data", "data");
    ck_assert_int_eq(guard_run(map_data, &size, &error), 0);
    ck_assert_uint_eq(size, 4);
    ck_assert(!is_mapped(mapped));
    file_put("data", "");
    ck_assert_int_eq(guard_run(map_data, &size, &error), 0);
    ck_assert_uint_eq(size, 0);
    ck_assert_int_eq(guard_run(map_directory, &size, &error), EISDIR);
}
END_TEST

static void map_shared(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    int descriptor = guard_file_open_descriptor(s, "data", O_RDWR, 0, NULL);
    guard_ticket ticket;
    char *text = guard_file_map_descriptor(s, descriptor, 0, 4, PROT_READ | PROT_WRITE, MAP_SHARED, &ticket);
    memcpy(text, "DATA", 4);
    guard_release(ticket);
    guard_file_map_descriptor(s, descriptor, 1, 4, PROT_READ, MAP_SHARED, NULL); /* no multiple of the page size */
}

START_TEST(a_shared_mapping_writes_the_file_and_a_wrong_one_is_told)
{
    scratch_enter_counted();
    file_put("data", "data");
    ck_assert_int_eq(guard_run(map_shared, NULL, &error), EINVAL);
    ck_assert_has(error.message, "cannot map ");
    ck_assert_has(error.message, "/data\"");
    ck_assert_str_eq(file_get("data"), "DATA");
}
END_TEST

/* ------------------------------------------------------------------------------------------------- memory -- */

static void use_memory(void *arg)
{
    GUARD_AUTO(s);
    guard_ticket ticket = {0};
    char *text = guard_memory_resize(s, NULL, 10, &ticket);
    strcpy(text, "123456789");
    for (size_t size = 10; size < 100000; size *= 3) {
        text = guard_memory_resize(s, text, size, &ticket);
        ck_assert_str_eq(text, "123456789");
    }
    int *zeros = guard_memory_allocate_array(s, 100, sizeof *zeros, NULL);
    for (int i = 0; i < 100; i++) {
        ck_assert_int_eq(zeros[i], 0);
    }
    ck_assert_ptr_nonnull(guard_memory_allocate(s, 0, NULL));
    ck_assert_str_eq(guard_memory_format(s, NULL, "%s-%d", guard_memory_copy(s, "a", NULL), 7), "a-7");
    if (arg == NULL) {
        guard_dismiss(ticket);
        free(text);
    } else {
        guard_memory_resize(s, text, PTRDIFF_MAX, &ticket);
    }
}

static void allocate_array_overflowing(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_memory_allocate_array(s, SIZE_MAX / 2, 3, NULL);
}

static void allocate_too_much(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_memory_allocate(s, PTRDIFF_MAX, NULL);
}

static void resize_stale(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_ticket ticket;
    void *memory = guard_memory_allocate(s, 10, &ticket);
    guard_release(ticket);
    guard_memory_resize(s, memory, 20, &ticket);
}

/* Sanitizers are to answer a malloc beyond all bounds as malloc does. */
const char *__asan_default_options(void) __attribute__((visibility("default")));
const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1";
}
const char *__tsan_default_options(void) __attribute__((visibility("default")));
const char *__tsan_default_options(void)
{
    return "allocator_may_return_null=1";
}

START_TEST(memory_is_freed_with_its_scope_and_grows_in_place_of_itself)
{
    ck_assert_int_eq(guard_run(use_memory, NULL, &error), 0);
    ck_assert_int_eq(guard_run(use_memory, &error, &error), ENOMEM);
    ck_assert_int_eq(error.domain, GUARD_MEMORY);
    ck_assert_int_eq(guard_run(allocate_array_overflowing, NULL, &error), ENOMEM);
    ck_assert_int_eq(guard_run(allocate_too_much, NULL, &error), ENOMEM);
    ck_assert_int_eq(guard_run(resize_stale, NULL, &error), GUARD_MISUSE_TICKET);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
}
END_TEST

/* ---------------------------------------------------------------------------------------- temporary files -- */

static void use_temporary(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    FILE *file = guard_file_temporary(s, ".", NULL);
    ck_assert_int_ge(fputs("scratch", file), 0);
    rewind(file);
    char text[8];
    ck_assert_str_eq(fgets(text, sizeof text, file), "scratch");
    ck_assert_str_eq(directory_list("."), "");
    ck_assert_int_eq(fcntl(fileno(file), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}

START_TEST(a_temporary_file_has_no_name)
{
    scratch_enter_counted();
    ck_assert_int_eq(guard_run(use_temporary, NULL, &error), 0);
    faults_refuse("O_TMPFILE", EOPNOTSUPP);
    ck_assert_int_eq(guard_run(use_temporary, NULL, &error), 0);
    ck_assert_str_eq(directory_list("."), "");
}
END_TEST

static void use_named(void *arg)
{
    GUARD_AUTO(s);
    const char *path;
    FILE *file = guard_file_temporary_named(s, ".", &path, NULL);
    fputs("named", file);
    fflush(file);
    struct stat status;
    ck_assert_int_eq(stat(path, &status), 0);
    ck_assert_int_eq(status.st_mode & 07777, 0600);
    ck_assert_int_eq(path[0], '/');
    ck_assert_str_eq(file_get(path), "named");
    if (arg != NULL) {
        ck_assert_int_eq(rename(path, arg), 0);
    }
}

static void use_named_in_moving_directory(void *arg)
{
    GUARD_AUTO(s);
    const char *path;
    guard_file_temporary_named(s, "before", &path, NULL);
    const char *directory = guard_file_temporary_directory(s, "before", NULL);
    ck_assert_int_eq(access(directory, W_OK), 0);
    ck_assert_int_eq(rename("before", "after"), 0);
    guard_panic(3, "%s", (const char *)arg);
}

START_TEST(a_named_temporary_file_is_unlinked_wherever_its_directory_is)
{
    scratch_enter_counted();
    ck_assert_int_eq(guard_run(use_named, NULL, &error), 0);
    ck_assert_str_eq(directory_list("."), "");
    /* Renamed by its user it is his. */
    ck_assert_int_eq(guard_run(use_named, (void *)"mine", &error), 0);
    ck_assert_str_eq(directory_list("."), "mine");
    mkdir("before", 0700);
    ck_assert_int_eq(guard_run(use_named_in_moving_directory, (void *)"panic", &error), 3);
    ck_assert_str_eq(directory_list("after"), "");
}
END_TEST

static void fill_directory(void *arg)
{
    GUARD_AUTO(s);
    const char *path = guard_file_temporary_directory(s, ".", NULL);
    struct stat status;
    ck_assert_int_eq(stat(path, &status), 0);
    ck_assert_int_eq(status.st_mode & 07777, 0700);
    ck_assert_int_eq(chdir(path), 0);
    ck_assert_int_eq(system("mkdir -p a/b/c d; touch a/b/c/file a/file d/.hidden; ln -s \"$OLDPWD\" a/away; "
                            "ln -s nowhere dangling; mkfifo pipe"),
                     0);
    ck_assert_int_eq(symlink(arg, "keep"), 0);
    ck_assert_int_eq(chdir(".."), 0);
}

START_TEST(a_temporary_directory_goes_with_all_in_it_but_what_its_links_lead_to)
{
    const char *top = scratch_enter();
    mkdir("kept", 0700);
    file_put("kept/file", "");
    char target[100];
    snprintf(target, sizeof target, "%s/kept", top);
    ck_assert_int_eq(guard_run(fill_directory, target, &error), 0);
    ck_assert_str_eq(directory_list("."), "kept");
    ck_assert_str_eq(directory_list("kept"), "file");
}
END_TEST

static void temporary_by_default(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    const char *path;
    guard_file_temporary_named(s, NULL, &path, NULL);
    ck_assert_msg(strncmp(path, getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp", 4) == 0, "%s", path);
}

static void temporary_nowhere(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_file_temporary_directory(s, "nowhere", NULL);
}

START_TEST(temporary_files_are_made_in_tmpdir)
{
    const char *top = scratch_enter();
    setenv("TMPDIR", top, 1);
    ck_assert_int_eq(guard_run(temporary_by_default, NULL, &error), 0);
    unsetenv("TMPDIR");
    ck_assert_int_eq(guard_run(temporary_by_default, NULL, &error), 0);
    ck_assert_int_eq(guard_run(temporary_nowhere, NULL, &error), ENOENT);
    ck_assert_has(error.message, "\"nowhere\"");
}
END_TEST

/* --------------------------------------------------------------------------------------------------- fork -- */

static void fork_with_all(void *arg)
{
    (void)arg;
    guard_ticket tickets[5];
    const char *path;
    char byte;
    GUARD_AUTO(s);
    FILE *out = guard_file_open(s, "out", "w", &tickets[0]);
    FILE *in = guard_file_open(s, "data", "r", &tickets[1]);
    guard_file_temporary_named(s, ".", &path, &tickets[2]);
    guard_file_temporary_directory(s, ".", &tickets[3]);
    guard_file_open_descriptor(s, "data", O_RDONLY, 0, &tickets[4]);
    fputs("once", out);
    ck_assert_int_eq(getc(in), 'd');
    pid_t child = fork();
    if (child == 0) {
        int before = descriptors_open();
        for (int i = 0; i < 5; i++) {
            guard_release(tickets[i]);
        }
        /* two streams, a stream and its directory, a directory, a descriptor */
        _exit(before - descriptors_open() == 6 ? 0 : 1);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
    ck_assert_str_eq(file_get("out"), "");
    ck_assert_int_eq(access(path, F_OK), 0);
    /* The offset is shared: the child must not have moved it to where its reader was. */
    ck_assert_int_eq(read(fileno(in), &byte, 1), 0);
    ck_assert_int_eq(getc(in), 'a');
}

START_TEST(a_forked_child_closes_its_copies_and_writes_moves_and_unlinks_nothing)
{
    scratch_enter_counted();
    file_put("data", "data");
    ck_assert_int_eq(guard_run(fork_with_all, NULL, &error), 0);
    ck_assert_str_eq(file_get("out"), "once");
    ck_assert_str_eq(directory_list("."), "data out");
}
END_TEST

static void describe_all(void *arg)
{
    (void)arg;
    char text[256];
    guard_ticket ticket;
    GUARD_AUTO(s);
    guard_file_open(s, "a\n.csv", "w", &ticket);
    ticket.record->action.kind->describe(ticket.record->arg, text, sizeof text);
    ck_assert_str_eq(text, "file \"a\\n.csv\"");
    int64_t age = guard_dump_clock() - ticket.record->action.kind->since(ticket.record->arg);
    ck_assert(age >= 0 && age < (int64_t)60 * 1000000000);
    guard_file_temporary_directory(s, ".", &ticket);
    ticket.record->action.kind->describe(ticket.record->arg, text, sizeof text);
    ck_assert_has(text, "temporary directory \"/");
    guard_memory_allocate(s, 1, &ticket);
    ticket.record->action.kind->describe(ticket.record->arg, text, sizeof text);
    ck_assert_has(text, "memory at 0x");
}

START_TEST(what_is_held_says_what_it_is)
{
    scratch_enter_counted();
    ck_assert_int_eq(guard_run(describe_all, NULL, &error), 0);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_directory_is_read_to_its_end_and_errors_are_told,
        a_file_is_mapped_whole_and_unmapped_with_its_scope,
        a_shared_mapping_writes_the_file_and_a_wrong_one_is_told,
        memory_is_freed_with_its_scope_and_grows_in_place_of_itself,
        a_temporary_file_has_no_name,
        a_named_temporary_file_is_unlinked_wherever_its_directory_is,
        a_temporary_directory_goes_with_all_in_it_but_what_its_links_lead_to,
        temporary_files_are_made_in_tmpdir,
        a_forked_child_closes_its_copies_and_writes_moves_and_unlinks_nothing,
        what_is_held_says_what_it_is,
    };
    return suite_run("file", tests, sizeof tests / sizeof *tests);
}
