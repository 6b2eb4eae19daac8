/* SPDX-License-Identifier: MIT */
/*
 * file_faults.c: see file_faults.h.
 */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <guard/guard.h>

#include "fault_memory.h"
#include "file_faults.h"

/* ------------------------------------------------------------------------------------------------- calls -- */

static bool armed, struck;
static int at, calls, fault;
static const char *where = "nothing", *refused, *lost;
static int refused_error, lost_error;
static char trace[4096];

void faults_arm(int nth, int error)
{
    at = nth;
    fault = error;
    calls = 0;
    struck = false;
    armed = true;
    trace[0] = '\0';
}

const char *faults_trace(void)
{
    return trace;
}

int faults_disarm(void)
{
    armed = false;
    return calls;
}

bool faults_struck(void)
{
    return struck;
}

const char *faults_where(void)
{
    return where;
}

void faults_refuse(const char *call, int error)
{
    refused = call;
    refused_error = error;
}

void faults_lose(const char *call, int error)
{
    lost = call;
    lost_error = error;
}

/* Whether this call is to fail; errno is set then. */
static bool call_fails(const char *name)
{
    if (refused != NULL && strcmp(refused, name) == 0) {
        errno = refused_error;
        return true;
    }
    if (!armed) {
        return false;
    }
    snprintf(trace + strlen(trace), sizeof trace - strlen(trace), "%s%s", calls != 0 ? " " : "", name);
    if (++calls != at) {
        return false;
    }
    if (fault == FAULT_KILL || fault == FAULT_TERMINATE) {
        kill(getpid(), fault == FAULT_KILL ? SIGKILL : SIGTERM);
        for (;;) {
            pause();
        }
    }
    struck = true;
    where = name;
    errno = fault;
    return true;
}

static int call_done(const char *name, long result)
{
    if (lost != NULL && strcmp(lost, name) == 0) {
        lost = NULL;
        errno = lost_error;
        return -1;
    }
    return (int)result;
}

/* The library must find these: the tests are built with hidden visibility, too. */
#pragma GCC visibility push(default)

#define CALL(name, ...) (call_fails(#name) ? -1 : call_done(#name, syscall(__VA_ARGS__)))

int openat(int directory, const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    if ((flags & O_TMPFILE) == O_TMPFILE && refused != NULL && strcmp(refused, "O_TMPFILE") == 0) {
        errno = refused_error;
        return -1;
    }
    return CALL(openat, SYS_openat, directory, path, flags, mode);
}

int close(int descriptor)
{
    bool fails = call_fails("close");
    int error = errno;
    long result = syscall(SYS_close, descriptor);
    if (fails) {
        errno = error;
        return -1;
    }
    return (int)result;
}

int fsync(int descriptor)
{
    return CALL(fsync, SYS_fsync, descriptor);
}

int syncfs(int descriptor)
{
    return CALL(syncfs, SYS_syncfs, descriptor);
}

int fchmod(int descriptor, mode_t mode)
{
    return CALL(fchmod, SYS_fchmod, descriptor, mode);
}

int fchown(int descriptor, uid_t user, gid_t group)
{
    return CALL(fchown, SYS_fchown, descriptor, user, group);
}

int linkat(int from_directory, const char *from, int to_directory, const char *to, int flags)
{
    return CALL(linkat, SYS_linkat, from_directory, from, to_directory, to, flags);
}

int renameat(int from_directory, const char *from, int to_directory, const char *to)
{
    return CALL(renameat, SYS_renameat2, from_directory, from, to_directory, to, 0);
}

int renameat2(int from_directory, const char *from, int to_directory, const char *to, unsigned flags)
{
    return CALL(renameat2, SYS_renameat2, from_directory, from, to_directory, to, flags);
}

int unlinkat(int directory, const char *path, int flags)
{
    return CALL(unlinkat, SYS_unlinkat, directory, path, flags);
}

int mkdirat(int directory, const char *path, mode_t mode)
{
    return CALL(mkdirat, SYS_mkdirat, directory, path, mode);
}

int fstatat(int directory, const char *restrict path, struct stat *restrict status, int flags)
{
    return CALL(fstatat, SYS_newfstatat, directory, path, status, flags);
}

ssize_t readlinkat(int directory, const char *restrict path, char *restrict to, size_t size)
{
    return CALL(readlinkat, SYS_readlinkat, directory, path, to, size);
}

int access(const char *path, int mode)
{
    return CALL(access, SYS_faccessat, AT_FDCWD, path, mode);
}

#pragma GCC visibility pop

/* ------------------------------------------------------------------------------------------------- looks -- */

int descriptors_open(void)
{
    DIR *directory = opendir("/proc/self/fd");
    ck_assert_msg(directory != NULL, "/proc/self/fd: %s", strerror(errno));
    int count = -1; /* the directory's own */
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        count += entry->d_name[0] != '.';
    }
    closedir(directory);
    return count;
}

void scratch_enter_counted(void)
{
    fault_memory_install();
    scratch_enter();
}

void file_put(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    ck_assert_msg(file != NULL, "%s: %s", path, strerror(errno));
    ck_assert_int_ge(fputs(text, file), 0);
    ck_assert_int_eq(fclose(file), 0);
}

const char *file_get(const char *path)
{
    static char text[65536];
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        return "(none)";
    }
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    fclose(file);
    return text;
}

const char *directory_list(const char *path)
{
    static char names[4096];
    struct dirent **entries;
    int count = scandir(path, &entries, NULL, alphasort);
    ck_assert_msg(count >= 0, "%s: %s", path, strerror(errno));
    names[0] = '\0';
    for (int i = 0; i < count; i++) {
        if (strcmp(entries[i]->d_name, ".") != 0 && strcmp(entries[i]->d_name, "..") != 0) {
            snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", names[0] != '\0' ? " " : "",
                     entries[i]->d_name);
        }
        free(entries[i]);
    }
    free(entries);
    return names;
}
