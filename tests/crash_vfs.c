/* SPDX-License-Identifier: MIT */
/*
 * A disk remembers of each file what it has now, and the list of its changes (writes and truncations), each of which is
 *
 *     pending --sync--> durable
 *        '----sync that fails so--> uncertain, for good
 *
 * and of its folder the list of creations and deletions, each pending until the folder is synced. An image applies to empty files
 * what is durable, and of the rest what the seed draws.
 */
#include "crash_vfs.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sqlite3.h>

#define SECTOR 512 /* a write is torn between these */
#define BLOCK 4096 /* what SQLite's own VFS says of a disk */
#define FILES 512  /* in all of one run, deleted ones too */
#define ENTRIES 512
#define REGIONS 8
#define REGION 32768 /* of a WAL's index; SQLite asks for this size */

typedef enum fate { PENDING, DURABLE, UNCERTAIN } fate;

typedef struct change {
    unsigned char *data; /* NULL: a truncation to `offset` */
    sqlite3_int64 offset;
    int length;
    fate fate;
} change;

typedef struct content {
    char name[64];
    unsigned char *bytes;
    size_t size;
    size_t room;
    change *changes;
    size_t count;
    size_t change_room;
    void *regions[REGIONS];
} content;

typedef struct entry {
    const content *of; /* whose name */
    content *content;  /* NULL: the name is deleted */
    bool durable;
} entry;

typedef struct disk {
    sqlite3_vfs vfs;
    bool recorded;
    content contents[FILES];
    size_t content_count;
    entry entries[ENTRIES];
    size_t entry_count;
} disk;

typedef struct crash_file {
    sqlite3_file base;
    disk *disk;
    content *content;
    bool temporary;
    bool sync_folder; /* at its first sync */
} crash_file;

static disk live = {.recorded = true};
static disk image;

static struct {
    void (*fn)(void *arg);
    void *arg;
    bool inside;
} watch;

static struct {
    bool on;
    bool armed;
    bool hit;
    crash_fault fault;
    unsigned long nth;
    unsigned long count;
    char name[80];
} armed;

static unsigned long operations;

/* --------------------------------------------------------------------------------------------------- disks */

static void *grow(void *memory, size_t size)
{
    void *grown = realloc(memory, size);
    ck_assert_ptr_nonnull(grown);
    return grown;
}

static void resize(content *file, size_t size)
{
    if (size > file->room) {
        file->room = size * 2;
        file->bytes = grow(file->bytes, file->room);
    }
    if (size > file->size) {
        memset(file->bytes + file->size, 0, size - file->size);
    }
    file->size = size;
}

static void put(content *file, const void *data, size_t offset, size_t length)
{
    if (offset + length > file->size) {
        resize(file, offset + length);
    }
    if (length > 0) {
        memcpy(file->bytes + offset, data, length);
    }
}

static void clear_content(content *file)
{
    for (size_t i = 0; i < file->count; i++) {
        free(file->changes[i].data);
    }
    for (size_t i = 0; i < REGIONS; i++) {
        free(file->regions[i]);
    }
    free(file->changes);
    free(file->bytes);
    memset(file, 0, sizeof(*file));
}

static void clear_disk(disk *of)
{
    for (size_t i = 0; i < of->content_count; i++) {
        clear_content(&of->contents[i]);
    }
    of->content_count = 0;
    of->entry_count = 0;
}

static void note_entry(disk *on, const content *of, content *found)
{
    ck_assert_uint_lt(on->entry_count, ENTRIES);
    on->entries[on->entry_count++] = (entry){of, found, false};
}

static content *new_content(disk *on, const char *name)
{
    ck_assert_uint_lt(on->content_count, FILES);
    content *new = &on->contents[on->content_count++];
    snprintf(new->name, sizeof(new->name), "%s", name);
    note_entry(on, new, new);
    return new;
}

/* What the name was after the first `count` entries: the latest of them says whether it is there. */
static content *find_among(const disk *on, size_t count, const char *name)
{
    for (size_t i = count; i > 0; i--) {
        if (strcmp(on->entries[i - 1].of->name, name) == 0) {
            return on->entries[i - 1].content;
        }
    }
    return NULL;
}

static content *find_content(const disk *on, const char *name)
{
    return find_among(on, on->entry_count, name);
}

static void note_change(const crash_file *at, const void *data, sqlite3_int64 offset, int length)
{
    content *file = at->content;
    if (!at->disk->recorded || at->temporary) {
        return;
    }
    if (file->count == file->change_room) {
        file->change_room = file->change_room == 0 ? 64 : file->change_room * 2;
        file->changes = grow(file->changes, file->change_room * sizeof(change));
    }
    change *new = &file->changes[file->count++];
    *new = (change){.offset = offset, .length = length, .fate = PENDING};
    if (data != NULL) {
        new->data = grow(NULL, (size_t)length + 1);
        memcpy(new->data, data, (size_t)length);
    }
}

static void settle(content *file, fate now)
{
    for (size_t i = 0; i < file->count; i++) {
        if (file->changes[i].fate == PENDING) {
            file->changes[i].fate = now;
        }
    }
}

static void settle_folder(disk *on)
{
    for (size_t i = 0; i < on->entry_count; i++) {
        on->entries[i].durable = true;
    }
}

/* ------------------------------------------------------------------------------------------------- images */

/* xorshift: each seed its own draws, the same on every machine. */
static unsigned draw(unsigned *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

/* Each sector's part is there, or not, or garbage. */
static void tear(content *to, const change *c, unsigned *state)
{
    for (int at = 0; at < c->length;) {
        int length = SECTOR - (int)((c->offset + at) % SECTOR);
        length = length < c->length - at ? length : c->length - at;
        unsigned what = draw(state) % 3;
        if (what != 0) {
            put(to, c->data + at, (size_t)(c->offset + at), (size_t)length);
        }
        for (int i = 0; what == 2 && i < length; i++) {
            to->bytes[c->offset + at + i] = (unsigned char)draw(state);
        }
        at += length;
    }
}

static void apply(content *to, const change *c, unsigned *state, unsigned seed)
{
    unsigned what = c->fate == DURABLE || seed == 1 ? 0 : seed == 0 ? 1 : draw(state) % 3;
    if (what == 1) {
        return;
    }
    if (c->data == NULL) {
        resize(to, (size_t)c->offset);
    } else if (what == 0) {
        put(to, c->data, (size_t)c->offset, (size_t)c->length);
    } else {
        tear(to, c, state);
    }
}

void crash_vfs_image(unsigned seed)
{
    unsigned state = seed * 2654435761U + 88172645U;
    size_t durable = live.entry_count;
    clear_disk(&image);
    while (durable > 0 && !live.entries[durable - 1].durable) {
        durable--;
    }
    /* A journalling file system keeps the order of such changes: what is lost are the latest. */
    size_t count = seed == 0   ? durable
                   : seed == 1 ? live.entry_count
                               : durable + draw(&state) % (live.entry_count - durable + 1);
    for (size_t i = 0; i < count; i++) {
        const content *of = live.entries[i].content;
        if (of == NULL || find_among(&live, count, of->name) != of || find_content(&image, of->name) != NULL) {
            continue;
        }
        content *made = new_content(&image, of->name);
        for (size_t j = 0; j < of->count; j++) {
            apply(made, &of->changes[j], &state, seed);
        }
    }
}

/* ----------------------------------------------------------------------------------------------- watching */

void crash_vfs_watch(void (*fn)(void *arg), void *arg)
{
    watch.fn = fn;
    watch.arg = arg;
}

void crash_vfs_arm(crash_fault fault, unsigned long nth, bool on)
{
    memset(&armed, 0, sizeof(armed));
    armed.armed = true;
    armed.fault = fault;
    armed.nth = nth;
    armed.on = on;
}

void crash_vfs_disarm(void)
{
    armed.armed = false;
}

bool crash_vfs_was_hit(void)
{
    return armed.hit;
}

const char *crash_vfs_hit_name(void)
{
    return armed.name;
}

unsigned long crash_vfs_count(void)
{
    return operations;
}

void crash_vfs_reset(void)
{
    clear_disk(&live);
    clear_disk(&image);
    operations = 0;
    memset(&watch, 0, sizeof(watch));
    memset(&armed, 0, sizeof(armed));
    /* So that random() and the names of temporary files are the same in each run. */
    sqlite3_test_control(SQLITE_TESTCTRL_PRNG_SEED, 1, NULL);
}

/* Before each operation. Returns whether it is to fail. */
static bool fails(const disk *on, const char *verb, const char *name)
{
    if (!on->recorded) {
        return false;
    }
    operations++;
    if (watch.fn != NULL && !watch.inside) {
        watch.inside = true;
        watch.fn(watch.arg);
        watch.inside = false;
    }
    if (!armed.armed) {
        return false;
    }
    armed.count++;
    bool hit = armed.count == armed.nth || (armed.on && armed.count > armed.nth);
    if (hit && !armed.hit) {
        snprintf(armed.name, sizeof(armed.name), "%s %s", verb, name);
        armed.hit = true;
    }
    return hit;
}

static bool file_fails(const crash_file *file, const char *verb)
{
    return !file->temporary && fails(file->disk, verb, file->content->name);
}

/* -------------------------------------------------------------------------------------------------- files */

static int file_close(sqlite3_file *base)
{
    crash_file *file = (crash_file *)base;
    if (file->temporary) {
        clear_content(file->content);
        free(file->content);
    }
    return SQLITE_OK;
}

static int file_read(sqlite3_file *base, void *data, int length, sqlite3_int64 offset)
{
    const content *file = ((crash_file *)base)->content;
    size_t left = (size_t)offset < file->size ? file->size - (size_t)offset : 0;
    if (left >= (size_t)length) {
        memcpy(data, file->bytes + offset, (size_t)length);
        return SQLITE_OK;
    }
    memset(data, 0, (size_t)length);
    if (left > 0) {
        memcpy(data, file->bytes + offset, left);
    }
    return SQLITE_IOERR_SHORT_READ;
}

static int file_write(sqlite3_file *base, const void *data, int length, sqlite3_int64 offset)
{
    crash_file *file = (crash_file *)base;
    bool failing = file_fails(file, "write");
    if (failing && armed.fault != CRASH_FAULT_DONE) {
        return armed.fault == CRASH_FAULT_FULL ? SQLITE_FULL : SQLITE_IOERR_WRITE;
    }
    note_change(file, data, offset, length);
    put(file->content, data, (size_t)offset, (size_t)length);
    return failing ? SQLITE_IOERR_WRITE : SQLITE_OK;
}

static int file_truncate(sqlite3_file *base, sqlite3_int64 size)
{
    crash_file *file = (crash_file *)base;
    bool failing = file_fails(file, "truncate");
    if (failing && armed.fault != CRASH_FAULT_DONE) {
        return SQLITE_IOERR_TRUNCATE;
    }
    note_change(file, NULL, size, 0);
    resize(file->content, (size_t)size);
    return failing ? SQLITE_IOERR_TRUNCATE : SQLITE_OK;
}

static int file_sync(sqlite3_file *base, int flags)
{
    crash_file *file = (crash_file *)base;
    bool failing = file_fails(file, "sync");
    (void)flags;
    if (failing && armed.fault == CRASH_FAULT_CLEAN) {
        settle(file->content, UNCERTAIN);
    }
    if (failing && armed.fault != CRASH_FAULT_DONE) {
        return SQLITE_IOERR_FSYNC;
    }
    settle(file->content, DURABLE);
    if (file->sync_folder) {
        settle_folder(file->disk);
        file->sync_folder = false;
    }
    return failing ? SQLITE_IOERR_FSYNC : SQLITE_OK;
}

static int file_size(sqlite3_file *base, sqlite3_int64 *size)
{
    *size = (sqlite3_int64)((crash_file *)base)->content->size;
    return SQLITE_OK;
}

static int file_lock(sqlite3_file *base, int level)
{
    (void)base;
    (void)level;
    return SQLITE_OK;
}

static int file_check_lock(sqlite3_file *base, int *reserved)
{
    (void)base;
    *reserved = 0;
    return SQLITE_OK;
}

static int file_control(sqlite3_file *base, int operation, void *arg)
{
    (void)base;
    if (operation != SQLITE_FCNTL_POWERSAFE_OVERWRITE) {
        return SQLITE_NOTFOUND;
    }
    *(int *)arg = 1;
    return SQLITE_OK;
}

static int file_sector_size(sqlite3_file *base)
{
    (void)base;
    return BLOCK;
}

static int file_characteristics(sqlite3_file *base)
{
    (void)base;
    return SQLITE_IOCAP_POWERSAFE_OVERWRITE;
}

static int file_shm_map(sqlite3_file *base, int region, int size, int extend, void volatile **memory)
{
    content *file = ((crash_file *)base)->content;
    ck_assert(region < REGIONS && size == REGION);
    if (file->regions[region] == NULL && extend) {
        file->regions[region] = calloc(1, REGION);
        ck_assert_ptr_nonnull(file->regions[region]);
    }
    *memory = file->regions[region];
    return SQLITE_OK;
}

static int file_shm_lock(sqlite3_file *base, int offset, int count, int flags)
{
    (void)base;
    (void)offset;
    (void)count;
    (void)flags;
    return SQLITE_OK;
}

static void file_shm_barrier(sqlite3_file *base)
{
    (void)base;
}

static int file_shm_unmap(sqlite3_file *base, int remove)
{
    content *file = ((crash_file *)base)->content;
    for (size_t i = 0; remove && i < REGIONS; i++) {
        free(file->regions[i]);
        file->regions[i] = NULL;
    }
    return SQLITE_OK;
}

static const sqlite3_io_methods file_methods = {
    .iVersion = 2,
    .xClose = file_close,
    .xRead = file_read,
    .xWrite = file_write,
    .xTruncate = file_truncate,
    .xSync = file_sync,
    .xFileSize = file_size,
    .xLock = file_lock,
    .xUnlock = file_lock,
    .xCheckReservedLock = file_check_lock,
    .xFileControl = file_control,
    .xSectorSize = file_sector_size,
    .xDeviceCharacteristics = file_characteristics,
    .xShmMap = file_shm_map,
    .xShmLock = file_shm_lock,
    .xShmBarrier = file_shm_barrier,
    .xShmUnmap = file_shm_unmap,
};

/* ---------------------------------------------------------------------------------------------------- VFS */

static int open_temporary(crash_file *file)
{
    file->content = calloc(1, sizeof(content));
    ck_assert_ptr_nonnull(file->content);
    file->temporary = true;
    file->base.pMethods = &file_methods;
    return SQLITE_OK;
}

static int vfs_open(sqlite3_vfs *vfs, sqlite3_filename name, sqlite3_file *base, int flags, int *out_flags)
{
    crash_file *file = (crash_file *)base;
    *file = (crash_file){.disk = vfs->pAppData};
    if (name == NULL) {
        return open_temporary(file);
    }
    file->content = find_content(file->disk, name);
    if (file->content == NULL) {
        if (!(flags & SQLITE_OPEN_CREATE) || fails(file->disk, "open", name)) {
            return SQLITE_CANTOPEN;
        }
        file->content = new_content(file->disk, name);
    }
    /* As os_unix.c, UNIXFILE_DIRSYNC. */
    file->sync_folder = (flags & SQLITE_OPEN_CREATE) &&
                        (flags & (SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_SUPER_JOURNAL | SQLITE_OPEN_WAL));
    file->base.pMethods = &file_methods;
    if (out_flags != NULL) {
        *out_flags = flags;
    }
    return SQLITE_OK;
}

static int vfs_delete(sqlite3_vfs *vfs, const char *name, int sync_folder)
{
    disk *on = vfs->pAppData;
    const content *file = find_content(on, name);
    if (file == NULL) {
        return SQLITE_IOERR_DELETE_NOENT;
    }
    bool failing = fails(on, "delete", name);
    if (failing && armed.fault != CRASH_FAULT_DONE) {
        return SQLITE_IOERR_DELETE;
    }
    note_entry(on, file, NULL);
    if (sync_folder && !failing) {
        settle_folder(on);
    }
    return failing ? SQLITE_IOERR_DELETE : SQLITE_OK;
}

static int vfs_access(sqlite3_vfs *vfs, const char *name, int flags, int *result)
{
    const content *file = find_content(vfs->pAppData, name);
    *result = file != NULL && (flags != SQLITE_ACCESS_EXISTS || file->size > 0); /* as os_unix.c */
    return SQLITE_OK;
}

static int vfs_full_path(sqlite3_vfs *vfs, const char *name, int size, char *path)
{
    (void)vfs;
    snprintf(path, (size_t)size, "%s", name);
    return SQLITE_OK;
}

static void install(disk *of, const char *name)
{
    of->vfs = *sqlite3_vfs_find(NULL);
    of->vfs.zName = name;
    of->vfs.pNext = NULL;
    of->vfs.pAppData = of;
    of->vfs.szOsFile = sizeof(crash_file);
    of->vfs.xOpen = vfs_open;
    of->vfs.xDelete = vfs_delete;
    of->vfs.xAccess = vfs_access;
    of->vfs.xFullPathname = vfs_full_path;
    sqlite3_vfs_register(&of->vfs, 0);
}

void crash_vfs_install(void)
{
    install(&live, "crash");
    install(&image, "image");
}
