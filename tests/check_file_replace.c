/* SPDX-License-Identifier: MIT */
/*
 * Atomic replacement: before the commit the old content, after it the new; modes, links, names that are taken, directories.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard_file.h>

#include "file_faults.h"
#include "replacing.h"
#include "suite.h"

static guard_error error;

/* ------------------------------------------------------------------------------------------------ writing -- */

static void watch_commit(void *arg)
{
    GUARD_AUTO(s);
    guard_file_replace *replace = guard_file_replace_begin(s, arg, NULL);
    fputs("new content", guard_file_replace_stream(replace));
    fflush(guard_file_replace_stream(replace));
    ck_assert_str_eq(file_get(arg), "old");
    guard_file_replace_commit(replace);
    ck_assert_str_eq(file_get(arg), "new content");
    ck_assert_ptr_null(guard_file_replace_stream(replace));
    ck_assert_int_eq(guard_file_replace_published(replace), 1);
}

START_TEST(before_commit_the_old_content_is_there_and_after_it_the_new)
{
    replacing_begin(_i);
    int before = descriptors_open();
    file_put("target", "old");
    ck_assert_int_eq(guard_run(watch_commit, (void *)"target", &error), 0);
    ck_assert_str_eq(file_get("target"), "new content");
    ck_assert_str_eq(directory_list("."), "target");
    ck_assert_int_eq(replace_file("made", NULL, &error), 0);
    ck_assert_str_eq(file_get("made"), "new content");
    ck_assert_int_eq(descriptors_open(), before);
}
END_TEST

START_TEST(without_a_commit_nothing_is_left_of_the_new_file)
{
    replacing_begin(_i);
    int before = descriptors_open();
    file_put("target", "old");
    for (ending e = ROLLBACK; e <= PANIC; e++) {
        writing w = {.path = "target", .ending = e};
        ck_assert_int_eq(guard_run(write_plainly, &w, &error), e == PANIC ? 5 : 0);
        ck_assert_int_eq(guard_run(write_new, &w, &error), 0);
        ck_assert(!w.published);
        ck_assert_str_eq(file_get("target"), "old");
        ck_assert_str_eq(directory_list("."), "target");
        ck_assert_int_eq(descriptors_open(), before);
    }
}
END_TEST

static void commit_twice(void *arg)
{
    GUARD_AUTO(s);
    guard_file_replace *replace = guard_file_replace_begin(s, "target", NULL);
    guard_file_replace_commit(replace);
    if (arg != NULL) {
        guard_file_replace_rollback(replace);
    } else {
        guard_file_replace_commit(replace);
    }
}

static void commit_after_rollback(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_file_replace *replace = guard_file_replace_begin(s, "target", NULL);
    guard_file_replace_rollback(replace);
    guard_file_replace_commit(replace);
}

static void begin_with_reserved(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_file_replace_begin(s, "target", &(guard_file_replace_options){.reserved_int = 1});
}

START_TEST(a_second_end_and_reserved_words_are_misuse)
{
    replacing_begin(_i);
    ck_assert_int_eq(guard_run(commit_twice, NULL, &error), GUARD_MISUSE_STATE);
    ck_assert_int_eq(error.domain, GUARD_MISUSE);
    ck_assert_has(error.message, "\"target\"");
    ck_assert_int_eq(guard_run(commit_twice, &error, &error), GUARD_MISUSE_STATE);
    ck_assert_str_eq(file_get("target"), "");
    unlink("target");
    ck_assert_int_eq(guard_run(commit_after_rollback, NULL, &error), GUARD_MISUSE_STATE);
    ck_assert_str_eq(directory_list("."), "");
    ck_assert_int_eq(guard_run(begin_with_reserved, NULL, &error), GUARD_MISUSE_ARGUMENT);
    ck_assert_str_eq(directory_list("."), "");
}
END_TEST

/* ------------------------------------------------------------------------------------------ rule for modes -- */

START_TEST(a_new_file_gets_the_mode_that_the_umask_leaves)
{
    replacing_begin(_i);
    umask(027);
    ck_assert_int_eq(replace_file("target", NULL, &error), 0);
    ck_assert_int_eq(mode_of("target"), 0640);
}
END_TEST

START_TEST(an_existing_files_mode_is_kept_unless_another_is_asked_for)
{
    replacing_begin(_i);
    file_put("target", "old");
    const mode_t modes[] = {0600, 0644, 0444, 0755, 0666, 06755, 0};
    for (int i = 0; modes[i] != 0; i++) {
        chmod("target", modes[i]);
        ck_assert_int_eq(replace_file("target", NULL, &error), 0);
        ck_assert_int_eq(mode_of("target"), modes[i]);
    }
    umask(077);
    ck_assert_int_eq(replace_file("target", &(guard_file_replace_options){.mode = 0664}, &error), 0);
    ck_assert_int_eq(mode_of("target"), 0664);
    ck_assert_int_eq(replace_file("made", &(guard_file_replace_options){.mode = 0604}, &error), 0);
    ck_assert_int_eq(mode_of("made"), 0604);
    ck_assert_int_eq(replace_file("made", &(guard_file_replace_options){.mode = 0100644}, &error),
                     GUARD_MISUSE_ARGUMENT);
}
END_TEST

static void begin_then_change(void *arg)
{
    GUARD_AUTO(s);
    guard_file_replace *replace = guard_file_replace_begin(s, "target", NULL);
    ck_assert_int_eq(system(arg), 0);
    guard_file_replace_commit(replace);
}

START_TEST(the_mode_is_that_of_the_file_at_the_moment_it_is_replaced)
{
    replacing_begin(_i);
    file_put("target", "old");
    ck_assert_int_eq(guard_run(begin_then_change, (void *)"chmod 600 target", &error), 0);
    ck_assert_int_eq(mode_of("target"), 0600);
    ck_assert_int_eq(guard_run(begin_then_change, (void *)"rm target", &error), 0);
    ck_assert_int_eq(mode_of("target"), 0600);
    unlink("target");
    ck_assert_int_eq(guard_run(begin_then_change, (void *)"touch target; chmod 604 target", &error), 0);
    ck_assert_int_eq(mode_of("target"), 0604);
    unlink("target");
    ck_assert_int_eq(guard_run(begin_then_change, (void *)"mkdir target", &error), EISDIR);
    ck_assert_str_eq(directory_list("."), "target");
}
END_TEST

START_TEST(owner_and_group_are_kept_where_that_is_allowed)
{
    if (geteuid() != 0) {
        return; /* only root may give files away */
    }
    replacing_begin(_i);
    file_put("target", "old");
    ck_assert_int_eq(chown("target", 1234, 4321), 0);
    chmod("target", 06775);
    ck_assert_int_eq(replace_file("target", NULL, &error), 0);
    struct stat status;
    stat("target", &status);
    ck_assert_uint_eq(status.st_uid, 1234);
    ck_assert_uint_eq(status.st_gid, 4321);
    ck_assert_int_eq(status.st_mode & 07777, 06775);

    /* As another user who may write the directory: not owner, not group, so no set-ID bits, and no more for the
     * new group than for all. */
    chmod(".", 0777);
    pid_t child = fork();
    if (child == 0) {
        _exit(setgid(555) != 0 || setuid(555) != 0 || replace_file("target", NULL, &error) != 0);
    }
    int result;
    ck_assert_int_eq(waitpid(child, &result, 0), child);
    ck_assert_int_eq(result, 0);
    stat("target", &status);
    ck_assert_uint_eq(status.st_uid, 555);
    ck_assert_uint_eq(status.st_gid, 555);
    ck_assert_int_eq(status.st_mode & 07777, 0755);
    ck_assert_str_eq(file_get("target"), "new content");
}
END_TEST

/* ------------------------------------------------------------------------------------------ rule for links -- */

START_TEST(a_symbolic_link_is_followed_and_the_file_at_its_end_replaced)
{
    replacing_begin(_i);
    mkdir("a", 0755);
    mkdir("b", 0755);
    file_put("b/file", "old");
    ck_assert_int_eq(symlink("../b/middle", "a/link"), 0);
    ck_assert_int_eq(symlink("file", "b/middle"), 0);
    ck_assert_int_eq(replace_file("a/link", NULL, &error), 0);
    ck_assert_str_eq(file_get("b/file"), "new content");
    ck_assert_str_eq(directory_list("a"), "link");
    ck_assert_str_eq(directory_list("b"), "file middle");
    struct stat status;
    lstat("a/link", &status);
    ck_assert(S_ISLNK(status.st_mode));
    lstat("b/middle", &status);
    ck_assert(S_ISLNK(status.st_mode));
    /* One that dangles is where the file is made, as open(2) does. */
    unlink("b/file");
    ck_assert_int_eq(replace_file("a/link", NULL, &error), 0);
    ck_assert_str_eq(file_get("b/file"), "new content");
}
END_TEST

START_TEST(a_symbolic_link_is_refused_where_that_is_asked_for)
{
    replacing_begin(_i);
    file_put("file", "old");
    ck_assert_int_eq(symlink("file", "link"), 0);
    const guard_file_replace_options refuse = {.refuse_link = 1};
    ck_assert_int_eq(replace_file("link", &refuse, &error), ELOOP);
    ck_assert_has(error.message, "cannot replace \"link\"");
    ck_assert_str_eq(file_get("file"), "old");
    ck_assert_int_eq(replace_file("file", &refuse, &error), 0);
    ck_assert_int_eq(symlink("loop", "loop"), 0);
    ck_assert_int_eq(replace_file("loop", NULL, &error), ELOOP);
    ck_assert_str_eq(directory_list("."), "file link loop");
}
END_TEST

START_TEST(what_is_no_regular_file_is_refused_by_name)
{
    replacing_begin(_i);
    mkdir("directory", 0755);
    mkfifo("pipe", 0644);
    const struct {
        const char *path;
        int code;
    } refused[] = {{"directory", EISDIR}, {"directory/", EISDIR},
                   {".", EISDIR},         {"directory/..", EISDIR},
                   {"pipe", EINVAL},      {"/dev/null", EINVAL},
                   {"no/such", ENOENT},   {"pipe/x", ENOTDIR},
                   {"", ENOENT},          {NULL, 0}};
    for (int i = 0; refused[i].path != NULL; i++) {
        ck_assert_msg(replace_file(refused[i].path, NULL, &error) == refused[i].code, "%s: %s", refused[i].path,
                      error.message);
        char quoted[64];
        snprintf(quoted, sizeof quoted, "\"%s\"", refused[i].path);
        ck_assert_has(error.message, quoted);
        ck_assert_int_eq(strstr(error.message, "no regular file") != NULL, refused[i].code == EINVAL);
    }
    char name[300];
    memset(name, 'n', sizeof name);
    name[255] = '\0'; /* the longest there is */
    ck_assert_int_eq(replace_file(name, NULL, &error), 0);
    ck_assert_str_eq(file_get(name), "new content");
    unlink(name);
    name[255] = 'n';
    name[256] = '\0';
    ck_assert_int_eq(replace_file(name, NULL, &error), ENAMETOOLONG);
    ck_assert_str_eq(directory_list("."), "directory pipe");
}
END_TEST

/* ----------------------------------------------------------------------------------------------- exclusive -- */

START_TEST(an_exclusive_one_never_replaces_a_file)
{
    replacing_begin(_i);
    const guard_file_replace_options exclusive = {.exclusive = 1};
    ck_assert_int_eq(replace_file("target", &exclusive, &error), 0);
    ck_assert_int_eq(replace_file("target", &exclusive, &error), EEXIST);
    unlink("target");
    ck_assert_int_eq(replace_file("target", &exclusive, &error), 0);
    ck_assert_str_eq(directory_list("."), "target");
    unlink("target");
    /* A file system that does not know RENAME_NOREPLACE. */
    faults_refuse("renameat2", EINVAL);
    ck_assert_int_eq(replace_file("target", &exclusive, &error), 0);
    ck_assert_str_eq(file_get("target"), "new content");
    ck_assert_str_eq(directory_list("."), "target");
}
END_TEST

static void begin_exclusive_then_lose(void *arg)
{
    GUARD_AUTO(s);
    guard_file_replace *replace = guard_file_replace_begin(s, "target", &(guard_file_replace_options){.exclusive = 1});
    file_put("target", "another's");
    /* Also where the look just before the rename did not see it. */
    if (arg != NULL) {
        faults_refuse("fstatat", ENOENT);
    }
    guard_file_replace_commit(replace);
}

START_TEST(an_exclusive_one_notices_a_file_made_meanwhile)
{
    replacing_begin(_i);
    ck_assert_int_eq(guard_run(begin_exclusive_then_lose, NULL, &error), EEXIST);
    ck_assert_str_eq(file_get("target"), "another's");
    unlink("target");
    ck_assert_int_eq(guard_run(begin_exclusive_then_lose, &error, &error), EEXIST);
    ck_assert_str_eq(file_get("target"), "another's");
    ck_assert_str_eq(directory_list("."), "target");
}
END_TEST

/* --------------------------------------------------------------------------------------------- directories -- */

static void begin_then_move(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_file_replace *replace = guard_file_replace_begin(s, "before/target", NULL);
    fputs("new content", guard_file_replace_stream(replace));
    ck_assert_int_eq(rename("before", "after"), 0);
    mkdir("before", 0755);
    file_put("before/target", "unrelated");
    guard_file_replace_commit(replace);
}

START_TEST(the_directory_may_be_renamed_meanwhile)
{
    replacing_begin(_i);
    mkdir("before", 0755);
    ck_assert_int_eq(guard_run(begin_then_move, NULL, &error), 0);
    ck_assert_str_eq(file_get("after/target"), "new content");
    ck_assert_str_eq(file_get("before/target"), "unrelated");
    ck_assert_str_eq(directory_list("after"), "target");
    ck_assert_str_eq(directory_list("before"), "target");
}
END_TEST

/* A user that is not root, to whom permissions mean something; exits with what the check says. */
static void as_nobody(void (*check)(void))
{
    pid_t child = fork();
    if (child == 0) {
        if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0)) {
            _exit(2);
        }
        check();
        _exit(0);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(status == 0, "status %d", status);
}

static void write_in_readonly(void)
{
    int code = replace_file("readonly/target", NULL, &error);
    _exit(code == EACCES && error.domain == GUARD_OS && strstr(error.message, "readonly/target") != NULL ? 0 : 3);
}

static void write_in_unlistable(void)
{
    /* No fsync without O_RDONLY: the file system is synced instead. */
    if (replace_file("unlistable/target", NULL, &error) != 0) {
        _exit(4);
    }
    faults_refuse("syncfs", EIO);
    int code = replace_file("unlistable/target", NULL, &error);
    _exit(code == EIO && strstr(error.message, "published") != NULL ? 0 : 5);
}

START_TEST(a_directory_that_may_not_be_written_is_noticed_at_the_beginning)
{
    replacing_begin(_i);
    chmod(".", 0755);
    mkdir("readonly", 0755);
    chmod("readonly", 0555);
    as_nobody(write_in_readonly);
    ck_assert_str_eq(directory_list("readonly"), "");
    chmod("readonly", 0755);
}
END_TEST

START_TEST(a_directory_that_may_not_be_listed_is_good_enough)
{
    replacing_begin(_i);
    chmod(".", 0755);
    mkdir("unlistable", 0777);
    chmod("unlistable", 0333);
    as_nobody(write_in_unlistable);
    chmod("unlistable", 0777);
    ck_assert_str_eq(file_get("unlistable/target"), "new content");
    ck_assert_str_eq(directory_list("unlistable"), "target");
}
END_TEST

int main(void)
{
    const TTest *const both[] = {
        before_commit_the_old_content_is_there_and_after_it_the_new,
        without_a_commit_nothing_is_left_of_the_new_file,
        a_second_end_and_reserved_words_are_misuse,
        a_new_file_gets_the_mode_that_the_umask_leaves,
        an_existing_files_mode_is_kept_unless_another_is_asked_for,
        the_mode_is_that_of_the_file_at_the_moment_it_is_replaced,
        owner_and_group_are_kept_where_that_is_allowed,
        a_symbolic_link_is_followed_and_the_file_at_its_end_replaced,
        a_symbolic_link_is_refused_where_that_is_asked_for,
        what_is_no_regular_file_is_refused_by_name,
        an_exclusive_one_never_replaces_a_file,
        an_exclusive_one_notices_a_file_made_meanwhile,
        the_directory_may_be_renamed_meanwhile,
        a_directory_that_may_not_be_written_is_noticed_at_the_beginning,
        a_directory_that_may_not_be_listed_is_good_enough,
    };
    /* 0: the new file has no name until it is published; 1: the file system has no such files. */
    const suite_group group = {"without a name, with one", 2, both, sizeof both / sizeof *both};
    return suite_run_groups("file_replace", &group, 1);
}
