/* SPDX-License-Identifier: MIT */
/* small_disk.h: a tmpfs of the test's own, in a mount namespace that nobody else sees. */
#ifndef TESTS_SMALL_DISK_H
#define TESTS_SMALL_DISK_H

/* Whether a process may have one here; where not, a program is skipped. */
int small_disk_is_allowed(void);

/* Mounts it as ./small, for this process; options as in "size=64k". */
void small_disk_mount(const char *options);

/* Other options from now on: "size=20m", or with MS_RDONLY. */
void small_disk_remount(unsigned long flags, const char *options);

#endif
