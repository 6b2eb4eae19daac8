/* SPDX-License-Identifier: MIT */
#include "fault_vfs.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <sqlite3.h>

typedef struct fault_file {
    sqlite3_file base;
    char kind; /* 'd'atabase, 'j'ournal, 'w'al, 'o'ther */
    sqlite3_file *real;
} fault_file;

static sqlite3_vfs fault_vfs;
static sqlite3_vfs *real_vfs;

static struct {
    unsigned operations;
    fault_way way;
    unsigned long nth;
    bool on;
    bool hit;
    unsigned long count;
    char name[32];
} armed;

void fault_vfs_arm(unsigned operations, fault_way way, unsigned long nth, bool on)
{
    memset(&armed, 0, sizeof(armed));
    armed.operations = operations;
    armed.way = way;
    armed.nth = nth;
    armed.on = on;
}

void fault_vfs_disarm(void)
{
    armed.operations = 0;
}

bool fault_vfs_was_hit(void)
{
    return armed.hit;
}

const char *fault_vfs_hit_name(void)
{
    return armed.name;
}

unsigned long fault_vfs_count(void)
{
    return armed.count;
}

/* Whether this operation is to fail. */
static bool fails(fault_operation operation, char kind)
{
    static const char *const names[] = {"read", "write", "sync", "truncate", "lock", "shm", "delete", "open"};
    unsigned bit = 0;
    if (!(armed.operations & operation)) {
        return false;
    }
    armed.count++;
    if (armed.count != armed.nth && !(armed.on && armed.count > armed.nth)) {
        return false;
    }
    if (armed.way == FAULT_KILL) {
        kill(getpid(), SIGKILL);
    }
    while ((operation >> bit) > 1) {
        bit++;
    }
    if (!armed.hit) {
        snprintf(armed.name, sizeof(armed.name), "%s %c", names[bit], kind);
    }
    armed.hit = true;
    return true;
}

static int code_of(int code)
{
    return armed.way == FAULT_MEMORY ? SQLITE_IOERR_NOMEM : code;
}

/* Runs `call` where the operation is really done, and returns what is to be told. */
#define THROUGH(operation, code, call)       \
    do {                                     \
        if (!fails(operation, file->kind)) { \
            return call;                     \
        }                                    \
        if (armed.way == FAULT_DONE) {       \
            call;                            \
        }                                    \
        return code_of(code);                \
    } while (0)

static sqlite3_file *real_of(sqlite3_file *base)
{
    return ((fault_file *)base)->real;
}

static int file_close(sqlite3_file *base)
{
    sqlite3_file *real = real_of(base);
    return real->pMethods != NULL ? real->pMethods->xClose(real) : SQLITE_OK;
}

static int file_read(sqlite3_file *base, void *data, int length, sqlite3_int64 offset)
{
    fault_file *file = (fault_file *)base;
    if (fails(FAULT_READ, file->kind)) {
        if (armed.way == FAULT_SHORT) {
            memset(data, 0, (size_t)length);
            return SQLITE_IOERR_SHORT_READ;
        }
        return code_of(SQLITE_IOERR_READ);
    }
    return file->real->pMethods->xRead(file->real, data, length, offset);
}

static int file_write(sqlite3_file *base, const void *data, int length, sqlite3_int64 offset)
{
    fault_file *file = (fault_file *)base;
    sqlite3_file *real = file->real;
    if (!fails(FAULT_WRITE, file->kind)) {
        return real->pMethods->xWrite(real, data, length, offset);
    }
    if (armed.way == FAULT_DONE || armed.way == FAULT_TORN) {
        real->pMethods->xWrite(real, data, armed.way == FAULT_DONE ? length : length / 2, offset);
    }
    return armed.way == FAULT_FULL ? SQLITE_FULL : code_of(SQLITE_IOERR_WRITE);
}

static int file_truncate(sqlite3_file *base, sqlite3_int64 size)
{
    fault_file *file = (fault_file *)base;
    THROUGH(FAULT_TRUNCATE, SQLITE_IOERR_TRUNCATE, file->real->pMethods->xTruncate(file->real, size));
}

static int file_sync(sqlite3_file *base, int flags)
{
    fault_file *file = (fault_file *)base;
    (void)flags;
    return fails(FAULT_SYNC, file->kind) ? code_of(SQLITE_IOERR_FSYNC) : SQLITE_OK;
}

static int file_size(sqlite3_file *base, sqlite3_int64 *size)
{
    return real_of(base)->pMethods->xFileSize(real_of(base), size);
}

static int file_lock(sqlite3_file *base, int level)
{
    fault_file *file = (fault_file *)base;
    THROUGH(FAULT_LOCK, SQLITE_IOERR_LOCK, file->real->pMethods->xLock(file->real, level));
}

static int file_unlock(sqlite3_file *base, int level)
{
    return real_of(base)->pMethods->xUnlock(real_of(base), level);
}

static int file_check_lock(sqlite3_file *base, int *reserved)
{
    return real_of(base)->pMethods->xCheckReservedLock(real_of(base), reserved);
}

static int file_control(sqlite3_file *base, int operation, void *arg)
{
    return real_of(base)->pMethods->xFileControl(real_of(base), operation, arg);
}

static int file_sector_size(sqlite3_file *base)
{
    return real_of(base)->pMethods->xSectorSize(real_of(base));
}

static int file_characteristics(sqlite3_file *base)
{
    return real_of(base)->pMethods->xDeviceCharacteristics(real_of(base));
}

static int file_shm_map(sqlite3_file *base, int page, int size, int extend, void volatile **memory)
{
    fault_file *file = (fault_file *)base;
    if (fails(FAULT_SHM, file->kind)) {
        *memory = NULL;
        return code_of(SQLITE_IOERR_SHMMAP);
    }
    return file->real->pMethods->xShmMap(file->real, page, size, extend, memory);
}

static int file_shm_lock(sqlite3_file *base, int offset, int count, int flags)
{
    fault_file *file = (fault_file *)base;
    if (flags & SQLITE_SHM_UNLOCK) {
        return file->real->pMethods->xShmLock(file->real, offset, count, flags);
    }
    if (fails(FAULT_SHM, file->kind)) {
        return code_of(SQLITE_IOERR_SHMLOCK);
    }
    return file->real->pMethods->xShmLock(file->real, offset, count, flags);
}

static void file_shm_barrier(sqlite3_file *base)
{
    real_of(base)->pMethods->xShmBarrier(real_of(base));
}

static int file_shm_unmap(sqlite3_file *base, int remove)
{
    return real_of(base)->pMethods->xShmUnmap(real_of(base), remove);
}

static const sqlite3_io_methods file_methods = {
    .iVersion = 2, /* no memory mapping: it would pass by */
    .xClose = file_close,
    .xRead = file_read,
    .xWrite = file_write,
    .xTruncate = file_truncate,
    .xSync = file_sync,
    .xFileSize = file_size,
    .xLock = file_lock,
    .xUnlock = file_unlock,
    .xCheckReservedLock = file_check_lock,
    .xFileControl = file_control,
    .xSectorSize = file_sector_size,
    .xDeviceCharacteristics = file_characteristics,
    .xShmMap = file_shm_map,
    .xShmLock = file_shm_lock,
    .xShmBarrier = file_shm_barrier,
    .xShmUnmap = file_shm_unmap,
};

static int vfs_open(sqlite3_vfs *vfs, sqlite3_filename name, sqlite3_file *base, int flags, int *out_flags)
{
    fault_file *file = (fault_file *)base;
    (void)vfs;
    file->base.pMethods = NULL;
    file->real = (sqlite3_file *)(file + 1);
    file->kind = flags & SQLITE_OPEN_MAIN_DB        ? 'd'
                 : flags & SQLITE_OPEN_MAIN_JOURNAL ? 'j'
                 : flags & SQLITE_OPEN_WAL          ? 'w'
                                                    : 'o';
    if (fails(FAULT_OPEN, file->kind)) {
        return armed.way == FAULT_MEMORY ? SQLITE_NOMEM : SQLITE_CANTOPEN;
    }
    int rc = real_vfs->xOpen(real_vfs, name, file->real, flags, out_flags);
    if (file->real->pMethods != NULL) {
        file->base.pMethods = &file_methods;
    }
    return rc;
}

static int vfs_delete(sqlite3_vfs *vfs, const char *name, int sync_directory)
{
    static const fault_file journal = {.kind = 'j'};
    const fault_file *file = &journal;
    (void)vfs;
    (void)sync_directory;
    THROUGH(FAULT_DELETE, SQLITE_IOERR_DELETE, real_vfs->xDelete(real_vfs, name, 0));
}

void fault_vfs_install(void)
{
    real_vfs = sqlite3_vfs_find(NULL);
    fault_vfs = *real_vfs;
    fault_vfs.zName = "fault";
    fault_vfs.pNext = NULL;
    fault_vfs.szOsFile = real_vfs->szOsFile + (int)sizeof(fault_file);
    fault_vfs.xOpen = vfs_open;
    fault_vfs.xDelete = vfs_delete;
    sqlite3_vfs_register(&fault_vfs, 0);
}
