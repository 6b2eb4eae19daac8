/* SPDX-License-Identifier: MIT */
/*
 * A line is written by one write, so that lines never mix. In a second no more than LOG_LINES_PER_SECOND are: a storm is counted, not
 * written, and the first line of a later second is preceded by one that says how many there were.
 *
 * All that is static is touched under `lock`.
 */
#include "log.h"

#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <guard/guard_file.h>

#include "json.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int descriptor = STDERR_FILENO;
static log_figures figures;
static char ring[LOG_NEWEST][LOG_LINE];
static uint64_t kept;    /* lines that were ever in the ring */
static time_t second;    /* of the newest line */
static unsigned lines;   /* in that second */
static uint64_t skipped; /* since the latest line: nobody has been told of them */

void log_open(guard_scope *scope, const char *path)
{
    if (path != NULL) {
        descriptor = guard_file_open_descriptor(scope, path, O_WRONLY | O_CREAT | O_APPEND, 0666, NULL);
    }
}

static void put(const char *text, size_t size)
{
    if (write(descriptor, text, size) == (ssize_t)size) {
        figures.written++;
    } else {
        figures.dropped++;
    }
}

/* Where the file does not take it either, it is told later. */
static void tell_skipped(void)
{
    char text[96];
    int size = snprintf(text, sizeof text,
                        "{\"severity\":\"warning\",\"message\":\"%" PRIu64 " lines were left out\"}\n", skipped);
    if (write(descriptor, text, (size_t)size) == size) {
        skipped = 0;
    }
}

/* 1 where a line may be written now; before anything is formatted for it. */
static int admit(time_t now)
{
    pthread_mutex_lock(&lock);
    if (now != second) {
        second = now;
        lines = 0;
        if (skipped > 0) {
            tell_skipped();
        }
    }
    int admitted = lines < LOG_LINES_PER_SECOND;
    if (admitted) {
        lines++;
    } else {
        figures.dropped++;
        skipped++;
    }
    pthread_mutex_unlock(&lock);
    return admitted;
}

/* For free(3); NULL without memory. ASCII, so that it may be cut anywhere. */
static char *format_line(time_t now, const char *severity, const char *id, const char *what, const guard_error *error)
{
    struct tm parts;
    char when[32];
    char chain[256];
    gmtime_r(&now, &parts);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &parts);
    guard_error_format(error, chain, sizeof chain);
    json_t *line = json_pack("{ssssssssssssss*ss}", "time", when, "severity", severity, "id", id, "what", what,
                             "domain", guard_domain_name(error->domain), "message", error->message, "sqlstate",
                             error->sqlstate[0] != '\0' ? error->sqlstate : NULL, "chain", chain);
    char *text = line == NULL ? NULL : json_dumps(line, JSON_COMPACT | JSON_ENSURE_ASCII);
    json_decref(line);
    return text;
}

void log_error(const char *severity, const char *id, const char *what, const guard_error *error)
{
    time_t now = time(NULL);
    if (!admit(now)) {
        return;
    }
    char *text = format_line(now, severity, id, what, error);
    size_t size = text == NULL ? 0 : strlen(text);
    pthread_mutex_lock(&lock);
    if (size == 0 || size >= LOG_LINE) {
        figures.dropped++;
    } else {
        memcpy(ring[kept % LOG_NEWEST], text, size + 1);
        kept++;
        text[size] = '\n'; /* in the place of the NUL: put takes a length */
        put(text, size + 1);
    }
    pthread_mutex_unlock(&lock);
    free(text);
}

log_figures log_read_figures(void)
{
    pthread_mutex_lock(&lock);
    log_figures copy = figures;
    pthread_mutex_unlock(&lock);
    return copy;
}

static void unlock(void *arg)
{
    pthread_mutex_unlock(arg);
}

json_t *log_newest(guard_scope *scope)
{
    GUARD_AUTO(s);
    json_t *newest = json_own(scope, json_array());
    pthread_mutex_lock(&lock);
    guard_defer(s, unlock, &lock);
    for (uint64_t i = 0; i < LOG_NEWEST && i < kept; i++) {
        json_append(newest, json_string(ring[(kept - 1 - i) % LOG_NEWEST]));
    }
    return newest;
}
