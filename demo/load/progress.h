/* SPDX-License-Identifier: MIT */
/*
 * progress.h: what a person sees while it loads, on standard error: a bar that is drawn again on a terminal, plain lines
 * elsewhere, nothing with --quiet.
 */
#ifndef LOAD_PROGRESS_H
#define LOAD_PROGRESS_H

#include <guard/guard.h>
#include <stdint.h>

typedef struct load_progress load_progress;

/* For the rest of the scope, whose end takes the bar away. */
load_progress *progress_open(guard_scope *scope, int quiet);

/* A file begins: its name, which must live until it ends, its size, and where in it. */
void progress_begin(load_progress *progress, const char *what, const char *name, uint64_t size, uint64_t offset);

/* It came to `offset`, with so many rows since progress_begin. Cheap enough to be called for every row. */
void progress_move(load_progress *progress, uint64_t offset, uint64_t rows);

/* The same for many rows at once: always looks at the clock. */
void progress_look(load_progress *progress, uint64_t offset, uint64_t rows);

/* A line of its own. Takes the bar away first. */
void progress_say(load_progress *progress, const char *format, ...) GUARD_PRINTF(2, 3);

/* Takes the bar away. */
void progress_clear(load_progress *progress);

#endif
