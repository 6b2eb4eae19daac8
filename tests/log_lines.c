/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log_lines.h"

enum { LINES = 4096 };

const guard_log_options log_lines_everything = {
    .site_full = 1000000, .site_lines = 1000000, .all_full = 1000000, .all_lines = 1000000, .report_ms = 60000};

void log_lines_flush(guard_log *log)
{
    ck_assert_int_eq(guard_log_flush(log, 60000), 1);
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all that follows: the log's thread collects */
static json_t *lines[LINES];
static size_t count;
static uint64_t more;
static uint64_t events;
static bool only_counts;

static void forget(void)
{
    for (size_t i = 0; i < count && i < LINES; i++) {
        json_decref(lines[i]);
        lines[i] = NULL;
    }
    count = 0;
    more = 0;
    events = 0;
    only_counts = false;
}

static void take(const char *line, size_t length)
{
    json_error_t error;
    if (length > GUARD_LOG_LINE || length < 2 || line[length - 1] != '\n' || memchr(line, '\n', length - 1) != NULL) {
        ck_abort_msg("a line of %zu bytes: %.*s", length, (int)length, line);
    }
    json_t *parsed = json_loadb(line, length, JSON_REJECT_DUPLICATES, &error);
    if (parsed == NULL) {
        ck_abort_msg("%s at %d: %s", error.text, error.position, line);
    }
    json_t *counted = json_object_get(parsed, "more");
    pthread_mutex_lock(&lock);
    if (counted != NULL) {
        /* Lines that were lost are told without a place; they were events before. */
        more += json_object_get(parsed, "file") != NULL ? (uint64_t)json_integer_value(counted) : 0;
    } else {
        events++;
    }
    if (only_counts || count >= LINES) {
        json_decref(parsed);
    } else {
        lines[count] = parsed;
    }
    count++;
    pthread_mutex_unlock(&lock);
}

static void on_line(const char *line, size_t length, void *arg)
{
    (void)arg;
    if (line[length] != '\0') {
        ck_abort_msg("the line does not end");
    }
    take(line, length);
}

void log_lines_collect(guard_log *log)
{
    forget();
    guard_log_to_callback(log, on_line, NULL);
}

void log_lines_read(const char *path)
{
    char *line = NULL;
    size_t size = 0;
    forget();
    FILE *file = fopen(path, "r");
    ck_assert_msg(file != NULL, "%s cannot be read", path);
    for (ssize_t length; (length = getline(&line, &size, file)) > 0;) {
        take(line, (size_t)length);
    }
    free(line);
    fclose(file);
}

size_t log_lines_count(void)
{
    pthread_mutex_lock(&lock);
    size_t now = count;
    pthread_mutex_unlock(&lock);
    return now;
}

const json_t *log_lines_at(size_t i)
{
    pthread_mutex_lock(&lock);
    const json_t *line = i < count && i < LINES ? lines[i] : NULL;
    pthread_mutex_unlock(&lock);
    ck_assert_msg(line != NULL, "there is no line %zu", i);
    return line;
}

const char *log_lines_text(size_t i, const char *key)
{
    static char text[GUARD_LOG_LINE];
    const json_t *member = json_object_get(log_lines_at(i), key);
    text[0] = '\0';
    if (json_is_string(member)) {
        snprintf(text, sizeof text, "%s", json_string_value(member));
    } else if (member != NULL) {
        size_t length = json_dumpb(member, text, sizeof text - 1, JSON_COMPACT | JSON_ENCODE_ANY);
        ck_assert_uint_lt(length, sizeof text);
        text[length] = '\0';
    }
    return text;
}

uint64_t log_lines_more(void)
{
    pthread_mutex_lock(&lock);
    uint64_t sum = more;
    pthread_mutex_unlock(&lock);
    return sum;
}

uint64_t log_lines_events(void)
{
    pthread_mutex_lock(&lock);
    uint64_t sum = events;
    pthread_mutex_unlock(&lock);
    return sum;
}

void log_lines_only_count(void)
{
    pthread_mutex_lock(&lock);
    forget();
    only_counts = true;
    pthread_mutex_unlock(&lock);
}
