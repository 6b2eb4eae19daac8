/* SPDX-License-Identifier: MIT */
/*
 * fault_vfs.h: an SQLite VFS, "fault", that counts what is asked of SQLite's own one and fails on demand.
 *
 *     fault_vfs_install();
 *     options.vfs = "fault";
 *     for (unsigned long n = 1;; n++) {
 *         ... a fresh database ...
 *         fault_vfs_arm(FAULT_ALL, FAULT_ERROR, n, false);
 *         ... the scenario ...
 *         fault_vfs_disarm();
 *         ... what it told is what a look at the file tells ...
 *         if (!fault_vfs_was_hit()) {
 *             break;                                   // n outran the count
 *         }
 *     }
 *
 * Sync is counted and may fail, but does not reach the disk: the tests look at files as the process left them, and so they are fast.
 * One thread at a time.
 */
#ifndef TESTS_FAULT_VFS_H
#define TESTS_FAULT_VFS_H

#include <stdbool.h>

typedef enum fault_operation {
    FAULT_READ = 1,
    FAULT_WRITE = 2,
    FAULT_SYNC = 4,
    FAULT_TRUNCATE = 8,
    FAULT_LOCK = 16, /* not unlocking: SQLite does not look at what that returns */
    FAULT_SHM = 32,
    FAULT_DELETE = 64,
    FAULT_OPEN = 128,
    FAULT_ALL = 255
} fault_operation;

typedef enum fault_way {
    FAULT_ERROR,  /* SQLITE_IOERR_..., nothing is done */
    FAULT_DONE,   /* SQLITE_IOERR_..., though it is done: the worst kind */
    FAULT_TORN,   /* a write is done by half; else as FAULT_ERROR */
    FAULT_FULL,   /* writes: SQLITE_FULL */
    FAULT_MEMORY, /* SQLITE_IOERR_NOMEM */
    FAULT_SHORT,  /* reads: SQLITE_IOERR_SHORT_READ, the buffer zeroed */
    FAULT_KILL    /* SIGKILL before it is done */
} fault_way;

/* Registers the VFS; the default one stays the default. */
void fault_vfs_install(void);

/* The nth of these operations from now on fails, 1 is the next; with `on`, every later one too. */
void fault_vfs_arm(unsigned operations, fault_way way, unsigned long nth, bool on);
void fault_vfs_disarm(void);

/* Whether an operation was failed since the latest fault_vfs_arm; what it was. */
bool fault_vfs_was_hit(void);
const char *fault_vfs_hit_name(void);

/* Operations counted since then. */
unsigned long fault_vfs_count(void);

#endif
