/* SPDX-License-Identifier: MIT */
/* report.c: what is printed when nobody recovers, in one write, without allocating. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "internal.h"

static guard_fatal_fn *fatal_handler;

guard_fatal_fn *guard_fatal_handler(guard_fatal_fn *handler)
{
    guard_fatal_fn *former = fatal_handler;
    fatal_handler = handler;
    return former;
}

static void report_write(const char *text, size_t length)
{
    while (length > 0) {
        ssize_t written = write(STDERR_FILENO, text, length);
        if (written < 0 && errno == EINTR) {
            continue;
        }
        if (written <= 0) {
            return;
        }
        text += written;
        length -= (size_t)written;
    }
}

void guard_report_uncaught(const guard_error *error)
{
    char text[6144]; /* escaped, a character may need four: 4 * 1 KiB, and the words between */
    size_t length = guard_error_format(error, text, sizeof text);
    if (length >= sizeof text) {
        length = sizeof text - 1;
    }
    report_write(text, length);
    if (fatal_handler != NULL) {
        fatal_handler(error, text);
    }
    abort();
}
