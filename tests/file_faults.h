/* SPDX-License-Identifier: MIT */
/*
 * file_faults.h: system calls that fail, or kill the process, at the Nth one; and what the file
 * tests look at.
 *
 * The calls are defined in the test program itself, so that they come before those of libc, also for the
 * library under test. What is not failed goes to the kernel.
 */
#ifndef TESTS_FILE_FAULTS_H
#define TESTS_FILE_FAULTS_H

#include <stdbool.h>
#include <stddef.h>

#include "scratch.h"

#define FAULT_KILL (-1)      /* instead of an errno: SIGKILL to the own process just before the call */
#define FAULT_TERMINATE (-2) /* SIGTERM likewise, which must end it */

/* From now on the Nth call (from 1) of openat, close, fsync, syncfs, fchmod, fchown, linkat, renameat,
 * renameat2, unlinkat, fstatat, readlinkat, mkdirat and access fails so. 0: they are only counted. A failing
 * close does close. */
void faults_arm(int nth, int error);
/* Stops, and tells how many calls there were. */
int faults_disarm(void);
bool faults_struck(void);
/* The names of the calls since faults_arm, one space between. */
const char *faults_trace(void);
/* The name of the call that failed. */
const char *faults_where(void);

/* Only that call fails, always, from now on; NULL: none. "O_TMPFILE" is openat with that flag. */
void faults_refuse(const char *call, int error);
/* Only that call is made and then reported as failed, once: an answer that was lost. */
void faults_lose(const char *call, int error);

/* How many descriptors are open. */
int descriptors_open(void);

/* scratch_enter; and what the library allocates from now on is counted, and fails where it is told to (fault_memory.h). */
void scratch_enter_counted(void);

/* Whole small files, without the library. */
void file_put(const char *path, const char *text);
/* The content, or "(none)"; valid until the next call. */
const char *file_get(const char *path);
/* The names in a directory but `.` and `..`, sorted, one space between; valid until the next call. */
const char *directory_list(const char *path);

#endif
