/* SPDX-License-Identifier: MIT */
#include "small_disk.h"

#include <check.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void write_map(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    if (file != NULL) {
        fputs(text, file);
        fclose(file);
    }
}

/* A mount namespace of this process: as root, else as root of a user namespace. Returns 0, or -1 with errno. */
static int enter_namespace(void)
{
    if (unshare(CLONE_NEWNS) != 0) {
        unsigned user = getuid();
        unsigned group = getgid();
        if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) {
            return -1;
        }
        char map[64];
        write_map("/proc/self/setgroups", "deny");
        snprintf(map, sizeof map, "0 %u 1", user);
        write_map("/proc/self/uid_map", map);
        snprintf(map, sizeof map, "0 %u 1", group);
        write_map("/proc/self/gid_map", map);
    }
    return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
}

int small_disk_is_allowed(void)
{
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        _exit(enter_namespace() != 0 || mount("none", "/mnt", "tmpfs", 0, "size=64k") != 0);
    }
    return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void small_disk_mount(const char *options)
{
    ck_assert_int_eq(mkdir("small", 0777), 0);
    ck_assert_msg(enter_namespace() == 0, "%s", strerror(errno));
    ck_assert_msg(mount("none", "small", "tmpfs", 0, options) == 0, "%s", strerror(errno));
}

void small_disk_remount(unsigned long flags, const char *options)
{
    ck_assert_msg(mount(NULL, "small", NULL, MS_REMOUNT | flags, options) == 0, "%s", strerror(errno));
}
