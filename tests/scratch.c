/* SPDX-License-Identifier: MIT */
/* scratch.c: the name of a folder says whose it is: guard-test-RUNNER-OWNER-XXXXXX. */
#include "scratch.h"

#include <check.h>
#include <errno.h>
#include <ftw.h>
#include <glob.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { ROOM = 32 * 1024 * 1024, PATH_SIZE = 256 };

typedef struct folder {
    struct folder *older;
    char path[2 * PATH_SIZE + 64];
} folder;

static pid_t runner; /* the program's first process, of which the tests' are forked */
static pid_t owner;  /* the first of them that made a folder */

static int has_room(const char *path)
{
    struct statvfs room;
    return path != NULL && access(path, W_OK) == 0 && statvfs(path, &room) == 0 &&
           (uint64_t)room.f_bavail * room.f_frsize > ROOM;
}

/* tests/as-tap names folders that it removes itself. */
static const char *top_of(scratch_disk disk)
{
    const char *top = getenv("TMPDIR");
    if (disk == SCRATCH_IN_MEMORY && has_room(getenv("GUARD_TEST_MEMORY"))) {
        top = getenv("GUARD_TEST_MEMORY");
    } else if (disk == SCRATCH_IN_MEMORY && top == NULL && has_room("/dev/shm")) {
        top = "/dev/shm";
    } else if (getenv("GUARD_TEST_FOLDER") != NULL) {
        top = getenv("GUARD_TEST_FOLDER");
    }
    return top != NULL ? top : "/tmp";
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
    (void)status;
    (void)kind;
    (void)walk;
    return remove(path);
}

/* In the places as they were when this began: a test may have set TMPDIR. */
static char tops[2][PATH_SIZE];

static void remove_like(const char *name)
{
    for (int disk = SCRATCH_IN_MEMORY; disk <= SCRATCH_ON_DISK; disk++) {
        char pattern[2 * PATH_SIZE + 64];
        glob_t found;
        snprintf(pattern, sizeof pattern, "%s/%s", tops[disk], name);
        if (glob(pattern, 0, NULL, &found) == 0) {
            for (size_t i = 0; i < found.gl_pathc; i++) {
                nftw(found.gl_pathv[i], remove_entry, 16, FTW_DEPTH | FTW_PHYS);
            }
            globfree(&found);
        }
    }
}

static void sweep(void)
{
    char name[64];
    if (getpid() == runner) {
        snprintf(name, sizeof name, "guard-test-%d-*", (int)runner);
        remove_like(name);
    } else if (getpid() == owner) {
        snprintf(name, sizeof name, "guard-test-%d-%d-*", (int)runner, (int)owner);
        remove_like(name);
    }
}

__attribute__((constructor)) static void note_runner(void)
{
    runner = getpid();
    for (int disk = SCRATCH_IN_MEMORY; disk <= SCRATCH_ON_DISK; disk++) {
        snprintf(tops[disk], sizeof tops[disk], "%s", top_of((scratch_disk)disk));
    }
    atexit(sweep);
}

const char *scratch_folder(scratch_disk disk)
{
    static folder *newest; /* keeps them in sight of the leak checker */
    folder *f = malloc(sizeof *f);
    ck_assert_ptr_nonnull(f);
    f->older = newest;
    newest = f;
    owner = owner != 0 ? owner : getpid();
    snprintf(f->path, sizeof f->path, "%s/guard-test-%d-%d-XXXXXX", tops[disk], (int)runner, (int)owner);
    ck_assert_msg(mkdtemp(f->path) != NULL, "%s: %s", f->path, strerror(errno));
    return f->path;
}

const char *scratch_enter_on(scratch_disk disk)
{
    const char *path = scratch_folder(disk);
    ck_assert_msg(chdir(path) == 0, "%s: %s", path, strerror(errno));
    return path;
}

const char *scratch_enter(void)
{
    return scratch_enter_on(SCRATCH_IN_MEMORY);
}
