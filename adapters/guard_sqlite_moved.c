/* SPDX-License-Identifier: MIT */
/*
 * Whether the files of a connection still have their names.
 *
 * SQLite keeps a file open that is deleted or replaced, and what is committed into it is lost with the last descriptor. With a rollback journal it
 * looks before it writes (SQLITE_READONLY_DBMOVED), in WAL mode never; nor for the WAL, whose deletion parts those who have it open from those who
 * come later. So COMMIT looks, in the first transaction of each second: a look is two or three system calls, and SQLite's 250 instructions. A
 * database in memory has no name to lose, and costs nothing.
 *
 * Not every name that cannot be found is a file that is gone: a program may have called chroot(2), or given up the rights for a folder, and SQLite works on.
 */
#include "guard_sqlite_internal.h"

#include <errno.h>
#include <stdio.h>
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

/* By the file's header (fileformat2.html, 1.3.3). PRAGMA journal_mode would tell too, but where it is interrupted it takes the transaction back. */
static int is_in_wal_mode(guard_sqlite *db, const char *schema)
{
    sqlite3_file *file = NULL;
    unsigned char version = 0;
    if (sqlite3_file_control(db->raw, schema, SQLITE_FCNTL_FILE_POINTER, &file) != SQLITE_OK || file == NULL ||
        file->pMethods == NULL) {
        return 0;
    }
    return file->pMethods->xRead(file, &version, 1, 18) == SQLITE_OK && version == 2;
}

/* A transaction that writes in WAL mode has made the WAL, and nobody but SQLite removes it, when nobody uses it. */
static int has_lost_wal(guard_sqlite *db, const char *schema, const char *path)
{
    struct stat file;
    return is_not_there(sqlite3_filename_wal(path)) && stat(path, &file) == 0 &&
           sqlite3_txn_state(db->raw, schema) == SQLITE_TXN_WRITE && is_in_wal_mode(db, schema);
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
