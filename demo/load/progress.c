/* SPDX-License-Identifier: MIT */
#include "progress.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <guard/guard_file.h>

#include "clock.h"

#define BAR_SECONDS 0.1  /* between two drawings of the bar */
#define LINE_SECONDS 5.0 /* between two plain lines */
#define LOOK_EVERY 256   /* rows between two looks at the clock */

struct load_progress {
    int quiet;
    int terminal;
    int shown; /* columns of the bar that is on the terminal */
    const char *what;
    const char *name;
    uint64_t size;
    uint64_t began_at;
    double began;
    double next;
    unsigned calls;
};

static void clear(void *arg)
{
    progress_clear(arg);
}

load_progress *progress_open(guard_scope *scope, int quiet)
{
    load_progress *p = guard_memory_allocate_array(scope, 1, sizeof *p, NULL);
    p->quiet = quiet;
    p->terminal = isatty(STDERR_FILENO);
    guard_defer(scope, clear, p);
    return p;
}

void progress_clear(load_progress *p)
{
    if (p->shown > 0) {
        fprintf(stderr, "\r%*s\r", p->shown, "");
        p->shown = 0;
    }
}

static int terminal_width(void)
{
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 40 ? size.ws_col : 80;
}

static void format_left(char *text, size_t size, double seconds)
{
    unsigned long long whole = (unsigned long long)(seconds + 0.5);
    if (whole >= 3600) {
        snprintf(text, size, "%llu:%02llu:%02llu left", whole / 3600, whole / 60 % 60, whole % 60);
    } else {
        snprintf(text, size, "%llu:%02llu left", whole / 60, whole % 60);
    }
}

static void draw(load_progress *p, uint64_t offset, uint64_t rows, double seconds)
{
    double part = p->size > 0 ? (double)offset / (double)p->size : 1.0;
    double speed = seconds > 0 ? (double)(offset - p->began_at) / seconds : 0;
    char left[40] = "";
    if (speed > 0) {
        format_left(left, sizeof left, (double)(p->size - offset) / speed);
    }
    char numbers[120];
    int used = rows > 0 ? snprintf(numbers, sizeof numbers, " %3.0f%%  %" PRIu64 " rows  %.0f rows/s  %s", part * 100,
                                   rows, (double)rows / seconds, left)
                        : snprintf(numbers, sizeof numbers, " %3.0f%%  %s", part * 100, left);
    if (!p->terminal) {
        fprintf(stderr, "%s %s%s\n", p->what, p->name, numbers);
        return;
    }
    char bar[41];
    int room = terminal_width() - used - (int)strlen(p->what) - (int)strlen(p->name) - 5;
    int length = room > (int)sizeof bar - 1 ? (int)sizeof bar - 1 : room;
    int full = (int)(part * length);
    for (int i = 0; i < length; i++) {
        bar[i] = i < full ? '#' : '.';
    }
    progress_clear(p);
    if (length >= 5) {
        p->shown = fprintf(stderr, "%s %s [%.*s]%s", p->what, p->name, length, bar, numbers);
    } else {
        p->shown = fprintf(stderr, "%s%s", p->what, numbers);
    }
}

void progress_begin(load_progress *p, const char *what, const char *name, uint64_t size, uint64_t offset)
{
    p->what = what;
    p->name = name;
    p->size = size;
    p->began_at = offset;
    p->began = clock_seconds();
    p->next = p->began + (p->terminal ? BAR_SECONDS : LINE_SECONDS);
    p->calls = 0;
    /* At once, for the first rows may have to wait for a lock. */
    if (p->terminal && !p->quiet) {
        draw(p, offset < size ? offset : size, 0, 0);
    }
}

void progress_move(load_progress *p, uint64_t offset, uint64_t rows)
{
    if (p->quiet || p->calls++ % LOOK_EVERY != 0) {
        return;
    }
    progress_look(p, offset, rows);
}

void progress_look(load_progress *p, uint64_t offset, uint64_t rows)
{
    if (p->quiet) {
        return;
    }
    double time = clock_seconds();
    if (time >= p->next) {
        p->next = time + (p->terminal ? BAR_SECONDS : LINE_SECONDS);
        draw(p, offset < p->size ? offset : p->size, rows, time - p->began);
    }
}

void progress_say(load_progress *p, const char *format, ...)
{
    if (p->quiet) {
        return;
    }
    progress_clear(p);
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
}
