/* SPDX-License-Identifier: MIT */
/*
 * Whether the files of a connection still have their names.
 *
 * SQLite keeps a file open that is deleted or replaced, and what is committed into it is lost with the last descriptor. With a rollback journal it
 * looks before it writes (SQLITE_READONLY_DBMOVED), in WAL mode never; nor for the WAL, whose deletion parts those who have it open from those who
 * come later. So COMMIT looks, in the first transaction of each second: a look is a system call,
 * and SQLite's 250 instructions. A file in memory has no name to lose, and costs nothing.
 *
 * Not every name that cannot be found is a file that is gone: a program may have called chroot(2), or given up the rights for a folder, and SQLite works on.
 */
#include "guard_sqlite_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static struct stat root; /* as the first connection had it; later ones are the more lenient behind a chroot */

static void note_root(void)
{
    if (stat("/", &root) != 0) {
        root.st_ino = 0;
    }
}

void guard_sqlite_note_root(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, note_root);
}

static int is_same_root(void)
{
    struct stat here;
    return stat("/", &here) == 0 && here.st_dev == root.st_dev && here.st_ino == root.st_ino;
}

static int is_not_there(const char *path)
{
    struct stat file;
    return stat(path, &file) != 0 && (errno == ENOENT || errno == ENOTDIR) && is_same_root();
}

/* SQLite compares the name with what it has open (os_unix.c, fileHasMoved), and takes any failure for a no. */
static int is_moved(guard_sqlite *db, const char *schema, const char *path)
{
    struct stat file;
    int moved = 0;
    if (sqlite3_file_control(db->raw, schema, SQLITE_FCNTL_HAS_MOVED, &moved) != SQLITE_OK || !moved) {
        return 0;
    }
    return stat(path, &file) == 0 || is_not_there(path);
}

/* In a transaction that writes in WAL mode its file is there (wal.c makes it when it is first read), and nobody but SQLite, when nobody uses it, removes it. */
static int has_lost_wal(guard_sqlite *db, const char *schema, const char *path)
{
    struct stat file;
    char mode[16];
    if (!is_not_there(sqlite3_filename_wal(path)) || stat(path, &file) != 0 ||
        sqlite3_txn_state(db->raw, schema) != SQLITE_TXN_WRITE) {
        return 0;
    }
    guard_sqlite_read_setting(db, schema, "journal_mode", mode, sizeof(mode));
    return strcmp(mode, "wal") == 0;
}

/* What of the database has lost its name, NULL: nothing. */
static const char *find_lost(guard_sqlite *db, const char *schema)
{
    const char *path = sqlite3_db_filename(db->raw, schema);
    if (path == NULL || path[0] == '\0') {
        return NULL;
    }
    return is_moved(db, schema, path) ? "file" : has_lost_wal(db, schema, path) ? "WAL" : NULL;
}

int guard_sqlite_look_for_files(guard_sqlite *db, guard_error *error)
{
    const char *schema = "main";
    const char *lost = find_lost(db, schema);
#if SQLITE_VERSION_NUMBER >= 3039000
    for (int i = 2; lost == NULL && (schema = sqlite3_db_name(db->raw, i)) != NULL; i++) {
        lost = find_lost(db, schema);
    }
#endif
    if (lost == NULL) {
        return 0;
    }
    guard_error_set(error, GUARD_SQLITE, SQLITE_READONLY_DBMOVED,
                    "the %s of database %.60s was deleted, moved or replaced while it was open: %.120s", lost, schema,
                    sqlite3_db_filename(db->raw, schema));
    snprintf(error->hint, sizeof(error->hint), "nobody else would see what is committed: open it again");
    return 1;
}
