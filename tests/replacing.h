/* SPDX-License-Identifier: MIT */
/* replacing.h: one file is replaced, in the ways that the tests of atomic replacement have in common. */
#ifndef TESTS_REPLACING_H
#define TESTS_REPLACING_H

#include <stdbool.h>
#include <sys/stat.h>

#include <guard/guard_file.h>

typedef enum ending { COMMIT, ROLLBACK, LEAVE, PANIC } ending;

typedef struct writing {
    const char *path;
    guard_file_replace_options options;
    ending ending;
    bool published;
} writing;

/* Writes "new content", and says in `published` what became of it. */
void write_new(void *writing);

/* The same without a border inside, for the error as the user sees it. */
void write_plainly(void *writing);

/* write_plainly with a commit, in a border: its code. */
int replace_file(const char *path, const guard_file_replace_options *options, guard_error *error);

mode_t mode_of(const char *path);

/* In a scratch folder, with O_TMPFILE or without. */
void replacing_begin(int named);

#endif
