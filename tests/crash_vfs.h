/* SPDX-License-Identifier: MIT */
/*
 * crash_vfs.h: an SQLite VFS in memory, "crash", that can show at any moment what a power cut would leave on the disk.
 *
 *     crash_vfs_install();
 *     crash_vfs_watch(power_cut, &run);        // called before each write, sync, truncation, creation and deletion
 *     options.vfs = "crash";
 *     ... work on a database that is made with this VFS ...
 *
 *     static void power_cut(void *arg)
 *     {
 *         crash_vfs_image(seed);               // the files as they may be found, each seed another draw
 *         ... open them by the same names with the VFS "image": what was told up to here must hold there ...
 *     }
 *
 * What the disk promises, as SQLite takes it (https://sqlite.org/atomiccommit.html, 2): what was written before a sync that
 * succeeded is there. Of what was written later each write is there, or not, or in part, or as garbage, in any order, but nothing
 * outside of it changes (powersafe overwrite). A file that was made or deleted is so once its folder was synced, which
 * SQLite does with the first sync of a new journal or WAL and where it asks for it at a deletion; before, the latest such changes may
 * be lost.
 *
 * When a sync fails, what it was for may stay uncertain for ever, also past a later sync that succeeds: the kernel takes the
 * pages for clean (https://wiki.postgresql.org/wiki/Fsync_Errors).
 *
 * There are no locks: one connection at a time to a file, and one thread.
 */
#ifndef TESTS_CRASH_VFS_H
#define TESTS_CRASH_VFS_H

#include <stdbool.h>

typedef enum crash_fault {
    CRASH_FAULT_ERROR, /* SQLITE_IOERR_..., nothing is done; a sync may be repeated */
    CRASH_FAULT_DONE,  /* SQLITE_IOERR_..., though it is done */
    CRASH_FAULT_FULL,  /* SQLITE_FULL for a write; else as ERROR */
    CRASH_FAULT_CLEAN  /* a sync: what was written is uncertain for ever; else as ERROR */
} crash_fault;

/* Registers both; the default VFS stays the default. */
void crash_vfs_install(void);

/* Forgets all files, the fault and the watch. No connection may be open. */
void crash_vfs_reset(void);

/* fn(arg) is called before each operation that changes the disk. NULL ends it. */
void crash_vfs_watch(void (*fn)(void *arg), void *arg);

/* The nth operation that changes the disk from now on fails, 1 is the next; with `on`, every later one too. */
void crash_vfs_arm(crash_fault fault, unsigned long nth, bool on);
void crash_vfs_disarm(void);

/* Whether an operation was failed since crash_vfs_arm; what the first one was, as "sync main.db-wal". */
bool crash_vfs_was_hit(void);
const char *crash_vfs_hit_name(void);

/* The number of operations since crash_vfs_reset. */
unsigned long crash_vfs_count(void);

/*
 * Puts the files as a power cut now may leave them in place of what the VFS "image" has; no connection to it may be open. The same
 * seed draws the same; seed 0 draws that nothing survives that need not, seed 1 that all does.
 */
void crash_vfs_image(unsigned seed);

#endif
