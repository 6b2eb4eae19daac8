/* SPDX-License-Identifier: MIT */
/*
 * metrics_page.c: a reading: what all have put on the page, written as text.
 *
 *     empty --guard_metrics_gather, under the lock--> samples --sorted, duplicates added up--> text --> written, no lock held
 *
 * Invariants: a page is bounded (PAGE_SAMPLES), and what is beyond is counted. Every line is one that the format's grammar allows, no number
 * is there twice, and those of a family are together (https://prometheus.io/docs/instrumenting/exposition_formats/). Numbers are written
 * without printf's locale.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>

#include "internal.h"

#define PAGE_SAMPLES 10000U /* about 1 MiB of text */
#define NAME_MOST 96U
#define LABELS_PUT 512U /* a collector's number may have more labels than a counter */
#define SECOND 1000000000
#define WRITE_MS 10000

typedef struct sample {
    const guard_metric *metric;
    char *labels;    /* as they are written, without braces */
    uint64_t *slots; /* of a histogram */
    int64_t value;
} sample;

struct guard_metrics_page {
    sample *samples;
    size_t count;
    size_t size;      /* of samples */
    uint64_t dropped; /* samples beyond the bound */
    bool is_without_memory;
};

/* --------------------------------------------------------------------------------------------- labels -- */

static bool is_name(const char *text, const char *more)
{
    size_t length = strnlen(text, NAME_MOST + 1);
    bool is_good = length > 0 && length <= NAME_MOST && (text[0] < '0' || text[0] > '9');
    for (size_t i = 0; i < length && is_good; i++) {
        char c = text[i];
        is_good = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
                  (more[0] != '\0' && c == more[0]);
    }
    return is_good;
}

static bool ends_in(const char *text, const char *end)
{
    size_t length = strlen(text);
    size_t end_length = strlen(end);
    return length > end_length && strcmp(text + length - end_length, end) == 0;
}

static const char *labels_objection(const guard_label *labels, size_t count)
{
    if (count > GUARD_LABELS_MOST || (count > 0 && labels == NULL)) {
        return "too many labels, or none where there should be";
    }
    for (size_t i = 0; i < count; i++) {
        if (labels[i].name == NULL || !is_name(labels[i].name, "") || strncmp(labels[i].name, "__", 2) == 0 ||
            strcmp(labels[i].name, "le") == 0) {
            return "a label's name that may not be";
        }
        for (size_t j = 0; j < i; j++) {
            if (strcmp(labels[i].name, labels[j].name) == 0) {
                return "the same label twice";
            }
        }
    }
    return NULL;
}

const char *guard_metric_objection(const guard_metric *metric, const guard_label *labels, size_t count)
{
    if (metric == NULL || metric->name == NULL || !is_name(metric->name, ":")) {
        return "a name that may not be";
    }
    if (metric->type < GUARD_METRIC_COUNTER || metric->type > GUARD_METRIC_HISTOGRAM || metric->in_seconds > 1 ||
        metric->reserved[0] != NULL || metric->reserved[1] != NULL) {
        return "a type that is none, or a reserved word that is not 0";
    }
    if (metric->type == GUARD_METRIC_COUNTER && !ends_in(metric->name, "_total")) {
        return "a counter's name that does not end in _total";
    }
    if (metric->type == GUARD_METRIC_HISTOGRAM && !ends_in(metric->name, "_seconds")) {
        return "a histogram's name that does not end in _seconds";
    }
    return labels_objection(labels, count);
}

/* Backslashes and quotes are escaped here, control characters and what is no UTF-8 were before, so that there is no newline. */
static size_t value_format(char *to, const char *text)
{
    size_t length = 0;
    for (; *text != '\0'; text++) {
        if (*text == '\\' || *text == '"') {
            to[length++] = '\\';
        }
        to[length++] = *text;
    }
    to[length] = '\0';
    return length;
}

void guard_labels_format(char *text, size_t size, const guard_label *labels, size_t count)
{
    size_t length = 0;
    text[0] = '\0';
    for (size_t i = 0; i < count; i++) {
        char value[64];
        char escaped[4 * sizeof value];
        char written[2 * sizeof escaped];
        guard_text_copy(value, sizeof value, labels[i].value != NULL ? labels[i].value : "");
        guard_text_escape(escaped, sizeof escaped, value);
        size_t needed = strlen(labels[i].name) + value_format(written, escaped) + sizeof ",=\"\"";
        if (length + needed > size) {
            return;
        }
        length += (size_t)snprintf(text + length, size - length, "%s%s=\"%s\"", i > 0 ? "," : "", labels[i].name,
                                   written);
    }
}

/* -------------------------------------------------------------------------------------------- putting -- */

/* NULL where the page is full, or there is no memory. */
static sample *page_add(guard_metrics_page *page, const guard_metric *metric, const char *labels)
{
    if (page->count == PAGE_SAMPLES) {
        page->dropped++;
        return NULL;
    }
    if (page->count == page->size) {
        size_t size = page->size > 0 ? 2 * page->size : 64;
        sample *samples = guard_memory_take(size * sizeof *samples);
        if (samples == NULL) {
            page->is_without_memory = true;
            return NULL;
        }
        if (page->count > 0) {
            memcpy(samples, page->samples, page->count * sizeof *samples);
        }
        guard_deallocate(page->samples);
        page->samples = samples;
        page->size = size;
    }
    char *copy = guard_memory_take(strlen(labels) + 1);
    if (copy == NULL) {
        page->is_without_memory = true;
        return NULL;
    }
    strcpy(copy, labels);
    sample *new = &page->samples[page->count++];
    *new = (sample){.metric = metric, .labels = copy};
    return new;
}

void guard_page_put_text(guard_metrics_page *page, const guard_metric *metric, const char *labels, int64_t value)
{
    sample *new = page_add(page, metric, labels);
    if (new != NULL) {
        new->value = value;
    }
}

void guard_page_put_histogram(guard_metrics_page *page, const guard_metric *metric, const char *labels,
                              const uint64_t *slots)
{
    uint64_t *copy = guard_memory_take(HISTOGRAM_SLOTS * sizeof *copy);
    sample *new = copy != NULL ? page_add(page, metric, labels) : NULL;
    if (new == NULL) {
        page->is_without_memory = page->is_without_memory || copy == NULL;
        guard_deallocate(copy);
        return;
    }
    memcpy(copy, slots, HISTOGRAM_SLOTS * sizeof *copy);
    new->slots = copy;
}

void guard_metrics_put(guard_metrics_page *page, const guard_metric *metric, const guard_label *labels, size_t count,
                       int64_t value)
{
    char text[LABELS_PUT];
    const char *objection = guard_metric_objection(metric, labels, count);
    if (objection == NULL && metric->type == GUARD_METRIC_HISTOGRAM) {
        objection = "the type of a histogram, which guard_histogram_open counts";
    }
    if (objection != NULL) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "a metric with %s", objection);
        return;
    }
    guard_labels_format(text, sizeof text, labels, count);
    guard_page_put_text(page, metric, text, value);
}

size_t guard_page_mark(const guard_metrics_page *page)
{
    return page->count;
}

void guard_page_cut(guard_metrics_page *page, size_t mark)
{
    while (page->count > mark) {
        sample *last = &page->samples[--page->count];
        guard_deallocate(last->labels);
        guard_deallocate(last->slots);
    }
}

/* ------------------------------------------------------------------------------------------- ordering -- */

static int by_name(const void *a, const void *b)
{
    const sample *x = a;
    const sample *y = b;
    int order = strcmp(x->metric->name, y->metric->name);
    return order != 0 ? order : strcmp(x->labels, y->labels);
}

/* Whether b is another value of a; or b cannot be shown beside a, for it has another type. */
static bool is_same(const sample *a, const sample *b)
{
    return by_name(a, b) == 0 || (strcmp(a->metric->name, b->metric->name) == 0 && a->metric->type != b->metric->type);
}

static void page_merge(guard_metrics_page *page)
{
    qsort(page->samples, page->count, sizeof *page->samples, by_name);
    size_t kept = 0;
    for (size_t i = 0; i < page->count; i++) {
        sample *last = kept > 0 ? &page->samples[kept - 1] : NULL;
        sample *this = &page->samples[i];
        if (last == NULL || !is_same(last, this)) {
            page->samples[kept++] = *this;
            continue;
        }
        if (last->metric->type == this->metric->type && this->slots == NULL) {
            last->value = (int64_t)((uint64_t)last->value + (uint64_t)this->value);
        } else {
            page->dropped++;
        }
        guard_deallocate(this->labels);
        guard_deallocate(this->slots);
    }
    page->count = kept;
}

/* ----------------------------------------------------------------------------------------------- text -- */

typedef struct writing {
    char *text; /* NULL: only measured */
    size_t length;
} writing;

static void put_text(writing *to, const char *text)
{
    size_t length = strlen(text);
    if (to->text != NULL) {
        memcpy(to->text + to->length, text, length);
    }
    to->length += length;
}

static void put_help(writing *to, const char *text)
{
    for (; *text != '\0'; text++) {
        const char one[] = {*text, '\0'};
        put_text(to, *text == '\\' ? "\\\\" : *text == '\n' ? "\\n" : one);
    }
}

static void put_value(writing *to, int64_t value, bool in_seconds)
{
    char text[48];
    uint64_t size = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    if (in_seconds) {
        snprintf(text, sizeof text, "%s%" PRIu64 ".%09" PRIu64, value < 0 ? "-" : "", size / SECOND, size % SECOND);
        for (char *end = text + strlen(text) - 1; *end == '0' || *end == '.'; end--) {
            bool is_point = *end == '.';
            *end = '\0';
            if (is_point) {
                break;
            }
        }
    } else {
        snprintf(text, sizeof text, "%" PRId64, value);
    }
    put_text(to, text);
}

static void put_line(writing *to, const char *name, const char *suffix, const char *labels, const int64_t *bound,
                     bool is_bucket, int64_t value, bool in_seconds)
{
    put_text(to, name);
    put_text(to, suffix);
    if (labels[0] != '\0' || is_bucket) {
        put_text(to, "{");
        put_text(to, labels);
        if (is_bucket) {
            put_text(to, labels[0] != '\0' ? ",le=\"" : "le=\"");
            if (bound != NULL) {
                put_value(to, *bound, true);
            } else {
                put_text(to, "+Inf");
            }
            put_text(to, "\"");
        }
        put_text(to, "}");
    }
    put_text(to, " ");
    put_value(to, value, in_seconds);
    put_text(to, "\n");
}

static void put_histogram(writing *to, const sample *this)
{
    const char *name = this->metric->name;
    int64_t count = 0;
    for (uint32_t i = 0; i <= HISTOGRAM_BOUNDS; i++) {
        count += (int64_t)this->slots[i];
        put_line(to, name, "_bucket", this->labels, i < HISTOGRAM_BOUNDS ? &guard_histogram_bounds[i] : NULL, true,
                 count, false);
    }
    put_line(to, name, "_sum", this->labels, NULL, false, (int64_t)this->slots[HISTOGRAM_BOUNDS + 1], true);
    put_line(to, name, "_count", this->labels, NULL, false, count, false);
}

static void put_family(writing *to, const guard_metric *metric)
{
    static const char *const types[] = {"untyped", "counter", "gauge", "histogram"};
    if (metric->help != NULL) {
        put_text(to, "# HELP ");
        put_text(to, metric->name);
        put_text(to, " ");
        put_help(to, metric->help);
        put_text(to, "\n");
    }
    put_text(to, "# TYPE ");
    put_text(to, metric->name);
    put_text(to, " ");
    put_text(to, types[metric->type]);
    put_text(to, "\n");
}

static size_t page_write(const guard_metrics_page *page, char *text)
{
    writing to = {text, 0};
    const char *family = "";
    for (size_t i = 0; i < page->count; i++) {
        const sample *this = &page->samples[i];
        if (strcmp(this->metric->name, family) != 0) {
            family = this->metric->name;
            put_family(&to, this->metric);
        }
        if (this->slots != NULL) {
            put_histogram(&to, this);
        } else {
            put_line(&to, family, "", this->labels, NULL, false, this->value, this->metric->in_seconds != 0);
        }
    }
    return to.length;
}

/* -------------------------------------------------------------------------------------------- reading -- */

static void page_close(void *arg)
{
    guard_metrics_page *page = arg;
    guard_page_cut(page, 0);
    guard_deallocate(page->samples);
}

static void page_tell_dropped(guard_metrics_page *page)
{
    static const guard_metric dropped = {
        .name = "guard_metrics_dropped",
        .help = "Numbers that this page lacks: there were too many, or two types of one name.",
        .type = GUARD_METRIC_GAUGE};
    if (page->dropped > 0) {
        guard_page_cut(page, PAGE_SAMPLES - 1);
        guard_page_put_text(page, &dropped, "", (int64_t)page->dropped);
        qsort(page->samples, page->count, sizeof *page->samples, by_name);
    }
}

char *guard_metrics_text(guard_scope *scope, size_t *size)
{
    GUARD_AUTO(s);
    guard_metrics_page page = {0};
    guard_defer(s, page_close, &page);
    guard_metrics_gather(&page);
    page_merge(&page);
    page_tell_dropped(&page);
    if (page.is_without_memory) {
        guard_panic_in(GUARD_MEMORY, ENOMEM, "out of memory for the metrics");
    }
    size_t length = page_write(&page, NULL);
    guard_reserve(scope, 1);
    char *text = guard_allocate(length + 1);
    guard_defer(scope, guard_deallocate, text);
    page_write(&page, text);
    text[length] = '\0';
    if (size != NULL) {
        *size = length;
    }
    return text;
}

size_t guard_metrics_write(int fd)
{
    GUARD_AUTO(s);
    size_t size;
    if (fd < 0) { /* which poll(2) passes over */
        errno = EBADF;
        guard_panic_os("cannot write the metrics");
    }
    const char *text = guard_metrics_text(s, &size);
    for (size_t written = 0; written < size;) {
        if (guard_wait_descriptor(fd, POLLOUT, WRITE_MS) == 0) {
            guard_panic_in(GUARD_TIMEOUT, ETIMEDOUT, "nobody took the metrics for %d ms", WRITE_MS);
        }
        ssize_t more = guard_write_quietly(fd, text + written, size - written);
        if (more < 0 && errno != EINTR && errno != EAGAIN) {
            guard_panic_os("cannot write the metrics");
        }
        written += more > 0 ? (size_t)more : 0;
    }
    return size;
}
