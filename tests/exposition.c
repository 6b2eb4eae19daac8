/* SPDX-License-Identifier: MIT */
#include "exposition.h"

#include <check.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <guard/guard_metrics.h>

#define SERIES_MOST 16384
#define LINE_MOST 2048

/* What was read of the present family and histogram, and every series so far. */
typedef struct reading {
    char family[128];
    char type[16];
    bool has_help_only;
    char *families[SERIES_MOST];
    unsigned family_count;
    char *series[SERIES_MOST];
    unsigned series_count;
    char histogram[LINE_MOST]; /* the labels of its buckets, without le */
    double bound;
    double bucket;
    bool is_whole; /* +Inf was there */
    bool is_in_histogram;
} reading;

static bool begins(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

/* The length of a name at the beginning of text. */
static size_t name_length(const char *text, bool has_colons)
{
    size_t length = 0;
    for (;; length++) {
        char c = text[length];
        bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (has_colons && c == ':');
        if (!is_letter && !(length > 0 && c >= '0' && c <= '9')) {
            return length;
        }
    }
}

static void check_utf8(const char *text)
{
    const unsigned char *at = (const unsigned char *)text;
    while (*at != '\0') {
        int more = *at < 0x80                  ? 0
                   : *at >= 0xC2 && *at < 0xE0 ? 1
                   : (*at & 0xF0) == 0xE0      ? 2
                   : *at >= 0xF0 && *at < 0xF5 ? 3
                                               : -1;
        ck_assert_msg(more >= 0, "no UTF-8: %.60s", (const char *)at);
        for (at++; more > 0; more--, at++) {
            ck_assert_msg((*at & 0xC0) == 0x80, "no UTF-8");
        }
    }
}

/* ------------------------------------------------------------------------------------------------- families -- */

static void end_histogram(reading *r)
{
    if (r->is_in_histogram) {
        ck_assert_msg(r->is_whole, "%s{%s}: no bucket of +Inf", r->family, r->histogram);
    }
    r->is_in_histogram = false;
}

static void read_family(reading *r, const char *line)
{
    char name[128];
    bool is_help = begins(line, "# HELP ");
    ck_assert_msg(is_help || begins(line, "# TYPE "), "a comment: %s", line);
    size_t length = name_length(line + 7, true);
    ck_assert_msg(length > 0 && length < sizeof name && line[7 + length] == ' ', "%s", line);
    snprintf(name, sizeof name, "%.*s", (int)length, line + 7);
    const char *rest = line + 7 + length + 1;
    if (is_help) {
        for (const char *at = rest; *at != '\0'; at++) {
            if (*at == '\\') {
                at++;
                ck_assert_msg(*at == '\\' || *at == 'n', "%s", line);
            }
        }
        ck_assert_msg(!r->has_help_only, "HELP without TYPE before %s", line);
        r->has_help_only = true;
    } else {
        ck_assert_msg(strcmp(rest, "counter") == 0 || strcmp(rest, "gauge") == 0 || strcmp(rest, "histogram") == 0,
                      "%s", line);
        ck_assert_msg(!r->has_help_only || strcmp(name, r->family) == 0, "HELP of another family before %s", line);
        r->has_help_only = false;
        snprintf(r->type, sizeof r->type, "%s", rest);
        for (unsigned i = 0; i < r->family_count; i++) {
            ck_assert_msg(strcmp(r->families[i], name) != 0, "%s is there twice", name);
        }
        ck_assert_uint_lt(r->family_count, SERIES_MOST);
        r->families[r->family_count++] = strdup(name);
    }
    end_histogram(r);
    snprintf(r->family, sizeof r->family, "%s", name);
}

/* -------------------------------------------------------------------------------------------------- numbers -- */

/* Reads {a="b",c="d"} at *at, copies the labels but le to `labels`, and le to `bound`. */
static void read_labels(const char **at, char *labels, char *bound, const char *line)
{
    const char *text = *at;
    ck_assert_msg(text[1] != '}', "no labels in braces: %s", line);
    do {
        const char *label = ++text;
        size_t length = name_length(text, false);
        ck_assert_msg(length > 0, "a label's name: %s", line);
        text += length;
        ck_assert_msg(begins(text, "=\""), "%s", line);
        text += 2;
        const char *value = text;
        for (; *text != '"'; text++) {
            ck_assert_msg(*text != '\0', "a label without an end: %s", line);
            if (*text == '\\') {
                text++;
                ck_assert_msg(*text == '\\' || *text == '"' || *text == 'n', "a label's escape: %s", line);
            }
        }
        if (length == 2 && begins(label, "le")) {
            snprintf(bound, 64, "%.*s", (int)(text - value), value);
        } else {
            snprintf(labels + strlen(labels), LINE_MOST - strlen(labels), "%.*s,", (int)(text + 1 - label), label);
        }
        text++;
    } while (*text == ',');
    ck_assert_msg(*text == '}', "%s", line);
    *at = text + 1;
}

static void check_histogram(reading *r, const char *suffix, const char *labels, const char *bound, double value,
                            const char *line)
{
    if (strcmp(suffix, "_bucket") == 0) {
        if (!r->is_in_histogram || strcmp(r->histogram, labels) != 0) {
            end_histogram(r);
            r->is_in_histogram = true;
            r->is_whole = false;
            r->bound = -1;
            r->bucket = 0;
            snprintf(r->histogram, sizeof r->histogram, "%s", labels);
        }
        ck_assert_msg(bound[0] != '\0' && !r->is_whole, "%s", line);
        double limit = strcmp(bound, "+Inf") == 0 ? 1e300 : atof(bound);
        ck_assert_msg(limit > r->bound, "bounds that do not grow: %s", line);
        ck_assert_msg(value >= r->bucket, "buckets that do not grow: %s", line);
        r->bound = limit;
        r->bucket = value;
        r->is_whole = limit > 1e299;
        return;
    }
    ck_assert_msg(strcmp(suffix, "_sum") == 0 || strcmp(suffix, "_count") == 0, "%s", line);
    ck_assert_msg(r->is_in_histogram && r->is_whole && strcmp(labels, r->histogram) == 0, "not after its buckets: %s",
                  line);
    ck_assert_msg(strcmp(suffix, "_count") != 0 || value == r->bucket, "the count is not that of +Inf: %s", line);
}

static void read_number(reading *r, const char *line)
{
    char labels[LINE_MOST] = "";
    char bound[64] = "";
    char suffix[16] = "";
    ck_assert_msg(r->family[0] != '\0' && !r->has_help_only && begins(line, r->family), "no TYPE before %s", line);
    size_t length = name_length(line, true);
    ck_assert_uint_gt(length, 0);
    snprintf(suffix, sizeof suffix, "%.*s", (int)(length - strlen(r->family)), line + strlen(r->family));
    const char *at = line + length;
    if (*at == '{') {
        read_labels(&at, labels, bound, line);
    }
    ck_assert_msg(*at == ' ', "%s", line);
    for (unsigned i = 0; i < r->series_count; i++) {
        ck_assert_msg(strncmp(r->series[i], line, (size_t)(at - line)) != 0 || r->series[i][at - line] != '\0',
                      "it is there twice: %s", line);
    }
    ck_assert_uint_lt(r->series_count, SERIES_MOST);
    r->series[r->series_count++] = strndup(line, (size_t)(at - line));
    ck_assert_msg(strspn(at + 1, "0123456789.-") == strlen(at + 1) && at[1] != '\0', "a value: %s", line);
    char *end;
    double value = strtod(at + 1, &end);
    ck_assert_msg(*end == '\0', "%s", line);
    ck_assert_msg(value >= 0 || strcmp(r->type, "gauge") == 0, "below 0: %s", line);
    if (strcmp(r->type, "histogram") == 0) {
        check_histogram(r, suffix, labels, bound, value, line);
    } else {
        ck_assert_msg(suffix[0] == '\0' && bound[0] == '\0', "another family's: %s", line);
    }
}

unsigned exposition_check(const char *text)
{
    reading *r = calloc(1, sizeof *r);
    ck_assert_ptr_nonnull(r);
    check_utf8(text);
    size_t size = strlen(text);
    ck_assert_msg(size > 0 && text[size - 1] == '\n', "the last line has no end");
    while (*text != '\0') {
        char line[LINE_MOST];
        size_t length = strcspn(text, "\n");
        ck_assert_uint_lt(length, sizeof line);
        ck_assert_msg(length > 0, "an empty line");
        snprintf(line, sizeof line, "%.*s", (int)length, text);
        if (line[0] == '#') {
            read_family(r, line);
        } else {
            read_number(r, line);
        }
        text += length + 1;
    }
    end_histogram(r);
    unsigned count = r->series_count;
    while (r->series_count > 0) {
        free(r->series[--r->series_count]);
    }
    while (r->family_count > 0) {
        free(r->families[--r->family_count]);
    }
    free(r);
    return count;
}

/* The value's text, or NULL. */
static const char *find(const char *text, const char *number)
{
    size_t length = strlen(number);
    for (const char *line = text; *line != '\0'; line = strchr(line, '\n') + 1) {
        if (strncmp(line, number, length) == 0 && line[length] == ' ') {
            return line + length + 1;
        }
    }
    return NULL;
}

const char *exposition_read(guard_scope *s)
{
    size_t size;
    const char *text = guard_metrics_text(s, &size);
    ck_assert_uint_eq(size, strlen(text));
    exposition_check(text);
    return text;
}

int exposition_has(const char *text, const char *number)
{
    return find(text, number) != NULL;
}

int64_t exposition_value(const char *text, const char *number)
{
    const char *value = find(text, number);
    char *end;
    ck_assert_msg(value != NULL, "there is no %s in\n%s", number, text);
    int64_t result = strtoll(value, &end, 10);
    ck_assert_msg(*end == '\n', "%s is no integer: %.40s", number, value);
    return result;
}

int64_t exposition_sum(const char *text, const char *name)
{
    size_t length = strlen(name);
    int64_t sum = 0;
    for (const char *line = text; *line != '\0'; line = strchr(line, '\n') + 1) {
        if (strncmp(line, name, length) == 0 && (line[length] == ' ' || line[length] == '{')) {
            const char *end = strchr(line, '\n');
            while (end[-1] != ' ') {
                end--;
            }
            sum += strtoll(end, NULL, 10);
        }
    }
    return sum;
}
