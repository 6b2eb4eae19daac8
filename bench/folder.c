/* SPDX-License-Identifier: MIT */
/* folder.c: a folder on a disk for the files of one request. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"

/* /var/tmp is on a disk where /tmp may be in memory. */
void bench_folder_open(char *path, size_t size)
{
    const char *parent = getenv("TMPDIR");
    snprintf(path, size, "%s/libguard-bench-XXXXXX", parent != NULL ? parent : "/var/tmp");
    if (mkdtemp(path) == NULL) {
        bench_fail("cannot make %s: %s", path, strerror(errno));
    }
}

void bench_folder_close(const char *path)
{
    DIR *folder = opendir(path);
    if (folder == NULL) {
        return;
    }
    struct dirent *entry;
    while ((entry = readdir(folder)) != NULL) {
        (void)unlinkat(dirfd(folder), entry->d_name, 0); /* `.` and `..` refuse */
    }
    closedir(folder);
    (void)rmdir(path);
}
