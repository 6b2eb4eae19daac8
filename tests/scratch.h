/* SPDX-License-Identifier: MIT */
/*
 * scratch.h: folders of a test's own, of which nothing is left however it ends.
 *
 * A test removes its folders when its process ends; those of a test that fails or is killed are removed by the program that ran it, and those
 * of a program that is killed by tests/as-tap. What a forked child makes is its parent's.
 */
#ifndef TESTS_SCRATCH_H
#define TESTS_SCRATCH_H

/*
 * In memory (where /dev/shm has room): thousands of fsync on a busy disk take minutes. On the disk: where the disk is what is tested. Either
 * is in $TMPDIR where that is set.
 */
typedef enum scratch_disk { SCRATCH_IN_MEMORY, SCRATCH_ON_DISK } scratch_disk;

/* A new empty folder; its path, which is valid to the end of the process. */
const char *scratch_folder(scratch_disk disk);

/* The same, and the working directory of this process from now on. */
const char *scratch_enter_on(scratch_disk disk);
const char *scratch_enter(void); /* in memory */

#endif
