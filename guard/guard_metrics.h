/* SPDX-License-Identifier: MIT */
/*
 * guard_metrics.h: what the library and a program count, in the text format that Prometheus reads.
 *
 * PURPOSE
 *
 *   A service is watched by numbers: panics by the place they come from, transactions by how they ended, the state of a breaker. The
 *   library counts its own; adapters and programs add theirs to the same page.
 *
 * CALLING SEQUENCE
 *
 *     guard_metrics_write(STDOUT_FILENO);               // everything, now; or guard_metrics_text for an answer over HTTP
 *
 *     static const guard_metric orders = {.name = "shop_orders_total", .help = "Orders by kind.", .type = GUARD_METRIC_COUNTER};
 *     guard_counter express = guard_counter_open(&orders, &(guard_label){"kind", "express"}, 1);  // once, when the program starts
 *     ...
 *     guard_counter_add(express, 1);                    // in any thread, as often as you like
 *
 *   What is not counted but asked for (connections open now) is given by a collector: guard_metrics_collect.
 *
 * COUNTING
 *
 *   Each thread adds to numbers of its own, without a lock or an atomic instruction; reading sums them, those of ended threads included. A
 *   sum is exact for all that happened before the reading (a join, a lock), and each number by itself is never torn. A
 *   forked child begins at 0, and does not ask its parent's collectors, services, breakers and pools.
 *
 * ERRORS
 *
 *   A name or label that the format forbids is misuse (GUARD_MISUSE_ARGUMENT). Counting never fails: where there is no room for one more
 *   counter that is noted (guard_note), and what is added to it is dropped.
 *
 * FORMAT
 *
 *   https://prometheus.io/docs/instrumenting/exposition_formats/, text format 0.0.4: Content-Type "text/plain; version=0.0.4". guard/SERVICE.md
 *   lists the library's own metrics.
 */
#ifndef GUARD_METRICS_H
#define GUARD_METRICS_H

#include <guard/guard.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------- types -- */

typedef enum guard_metric_type {
    GUARD_METRIC_COUNTER = 1,  /* only grows; its name ends in _total */
    GUARD_METRIC_GAUGE = 2,    /* goes up and down */
    GUARD_METRIC_HISTOGRAM = 3 /* of times; its name ends in _seconds */
} guard_metric_type;

/* A family of numbers: a constant that is never freed. Two of one name are the same family, and must have the same type. */
typedef struct guard_metric {
    const char *name;    /* [a-zA-Z_:][a-zA-Z0-9_:]*, at most 96 bytes */
    const char *help;    /* one line of text */
    uint32_t type;       /* a guard_metric_type */
    uint32_t in_seconds; /* 1: values are nanoseconds, and written in seconds; a histogram's always are */
    const void *reserved[2];
} guard_metric;

/* Tells the numbers of a family apart. */
typedef struct guard_label {
    const char *name;  /* [a-zA-Z_][a-zA-Z0-9_]*, not beginning with __; not "le" */
    const char *value; /* any text; control characters and what is no UTF-8 are written as \xNN. NULL is "" */
} guard_label;

#define GUARD_LABELS_MOST 8   /* labels of one number */
#define GUARD_LABELS_SIZE 128 /* bytes of all labels of a counter, as they are written; what is longer is cut */
#define GUARD_METRICS_SLOTS \
    512 /* words of each thread, of which 370 are for adapters and programs; a histogram takes 20 */

/* --------------------------------------------------------------------------------------------- counting -- */

/* Values: copy them freely. A zeroed one counts nothing. */
typedef struct guard_counter {
    uint32_t slot;
} guard_counter;

typedef struct guard_gauge {
    uint32_t slot;
} guard_gauge;

typedef struct guard_histogram {
    uint32_t slot;
} guard_histogram;

/*
 * The number of this family with these labels, which begins at 0 and is there until the process ends; the same one again for the same
 * name and labels. `labels` may be NULL where count is 0; all is copied but *metric. Takes a lock, allocates nothing. Any thread.
 */
GUARD_API guard_counter guard_counter_open(const guard_metric *metric, const guard_label *labels, size_t count);
GUARD_API guard_gauge guard_gauge_open(const guard_metric *metric, const guard_label *labels, size_t count);
GUARD_API guard_histogram guard_histogram_open(const guard_metric *metric, const guard_label *labels, size_t count);

static inline void guard_counter_add(guard_counter counter, uint64_t count);

/* A gauge is the sum of what all threads added and took away. */
static inline void guard_gauge_add(guard_gauge gauge, int64_t change);

/* Counts a time. The buckets end at 10, 50, 100, 250 and 500 microseconds, 1 ms and so on (1, 2.5, 5) to 10 s. Below 0 is 0. */
GUARD_API void guard_histogram_observe(guard_histogram histogram, int64_t nanoseconds);

/* Nanoseconds of a clock that is never set, to take the difference of two. */
GUARD_API int64_t guard_metrics_clock(void);

/* -------------------------------------------------------------------------------------------- collectors -- */

typedef struct guard_metrics_page guard_metrics_page;

/*
 * Puts numbers on a page, by guard_metrics_put. It runs whenever somebody reads, in that thread, under the lock of all metrics: it must not
 * wait, fork, or call any other function of this header. A panic of it is noted, and what it put is left out.
 */
typedef void guard_collect_fn(guard_metrics_page *page, void *arg);

/*
 * Has fn(page, arg) asked until `scope` ends, and not while it ends: arg may be freed after that. Panics with GUARD_MEMORY. The ticket may be
 * released earlier.
 */
#define guard_metrics_collect(scope, fn, arg) guard_metrics_collect_at((scope), (fn), (arg), GUARD_HERE)
GUARD_API guard_ticket guard_metrics_collect_at(guard_scope *scope, guard_collect_fn *fn, void *arg,
                                                const guard_place *place);

/*
 * In a collector only: one number, a counter's or a gauge's. Numbers with the same name and labels are added up, so that two pools of one
 * name are one. Labels are copied, *metric is not.
 */
GUARD_API void guard_metrics_put(guard_metrics_page *page, const guard_metric *metric, const guard_label *labels,
                                 size_t count, int64_t value);

/* ----------------------------------------------------------------------------------------------- reading -- */

/*
 * Writes all metrics to descriptor fd, a file, pipe or socket, and returns how many bytes that were. No lock is held while it writes.
 * A descriptor that takes nothing for 10 s ends it by a panic with GUARD_TIMEOUT; it is a checkpoint meanwhile. An interrupted or
 * short write is gone on with; SIGPIPE is not raised. Panics with GUARD_OS, GUARD_MEMORY. Any thread, any number of them.
 */
GUARD_API size_t guard_metrics_write(int fd);

/* The same as a text, which is the scope's; its length goes to *size where that is not NULL. Panics with GUARD_MEMORY. */
GUARD_API char *guard_metrics_text(guard_scope *scope, size_t *size);

/* The sum of a counter or gauge now; of a histogram, how many were observed. Any thread. */
GUARD_API int64_t guard_counter_read(guard_counter counter);
GUARD_API int64_t guard_gauge_read(guard_gauge gauge);
GUARD_API int64_t guard_histogram_read(guard_histogram histogram);

/* ---------------------------------------------------------------------------------------- implementation -- */

/* The numbers of this thread, GUARD_METRICS_SLOTS of them; NULL before its first use of the library and after its end. */
extern GUARD_API __thread uint64_t *guard_impl_counts __attribute__((tls_model("initial-exec")));
GUARD_API void guard_impl_count_slow(uint32_t slot, uint64_t count);

/* Only this thread writes, others may read at the same time: the words are atomic, the addition need not be. */
static inline void guard_impl_count(uint32_t slot, uint64_t count)
{
    uint64_t *counts = guard_impl_counts;
    if (GUARD_IMPL_UNLIKELY(counts == NULL || slot >= GUARD_METRICS_SLOTS)) {
        guard_impl_count_slow(slot, count);
        return;
    }
    __atomic_store_n(&counts[slot], __atomic_load_n(&counts[slot], __ATOMIC_RELAXED) + count, __ATOMIC_RELAXED);
}

static inline void guard_counter_add(guard_counter counter, uint64_t count)
{
    guard_impl_count(counter.slot, count);
}

static inline void guard_gauge_add(guard_gauge gauge, int64_t change)
{
    guard_impl_count(gauge.slot, (uint64_t)change);
}

#ifdef __cplusplus
}
#endif

#endif
