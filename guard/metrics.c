/* SPDX-License-Identifier: MIT */
/*
 * metrics.c: counters, gauges and histograms, and who else is asked.
 *
 *     guard_counter_open --> a slot --add--> the thread's own word --thread ends--> ended[slot]
 *                                     \--no thread's words here--> ended[slot], by an atomic addition
 *     reading: ended[slot] and the words of all threads, summed under the life lock
 *
 * Invariants
 *   - A slot belongs to one number for the life of the process, or to nobody. Only its thread writes a thread's words; they are whole at
 *     every moment. A thread's words are added to `ended` and the thread is off the list in one step under the life lock, so that no reading
 *     finds them twice or not at all.
 *   - `lock` is taken before the life lock and before any lock of a collector's; no function runs under it but those of collectors.
 */
#include <stdatomic.h>

#include "internal.h"

typedef struct entry {
    const guard_metric *metric;
    uint32_t slot;
    char labels[GUARD_LABELS_SIZE];
} entry;

__thread uint64_t *guard_impl_counts __attribute__((tls_model("initial-exec")));

static _Atomic uint64_t ended[GUARD_METRICS_SLOTS];
static _Atomic uint64_t ended_ran;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all that follows */
static entry entries[GUARD_METRICS_SLOTS - COUNT_FIRST_FREE];
static uint32_t entry_count;
static uint32_t next_slot = COUNT_FIRST_FREE;
static bool is_full_told;
static guard_collector *collectors;

const int64_t guard_histogram_bounds[HISTOGRAM_BOUNDS] = {
    10000,    50000,    100000,    250000,    500000,    1000000,    2500000,    5000000,    10000000,
    25000000, 50000000, 100000000, 250000000, 500000000, 1000000000, 2500000000, 5000000000, 10000000000,
};

/* -------------------------------------------------------------------------------------------- opening -- */

/* The slot of this number: known, new, or COUNT_NONE where there is no room. Under the lock. */
static uint32_t slot_of(const guard_metric *metric, const char *labels, uint32_t width)
{
    for (uint32_t i = 0; i < entry_count; i++) {
        if (strcmp(entries[i].labels, labels) == 0 && strcmp(entries[i].metric->name, metric->name) == 0) {
            return entries[i].metric->type == metric->type ? entries[i].slot : COUNT_NONE;
        }
    }
    if (next_slot + width > GUARD_METRICS_SLOTS) {
        return COUNT_NONE;
    }
    entry *new = &entries[entry_count++];
    new->metric = metric;
    new->slot = next_slot;
    guard_text_copy(new->labels, sizeof new->labels, labels);
    next_slot += width;
    return new->slot;
}

static uint32_t number_open(const guard_metric *metric, guard_metric_type type, const guard_label *labels, size_t count)
{
    char text[GUARD_LABELS_SIZE];
    const char *objection = guard_metric_objection(metric, labels, count);
    if (objection == NULL && metric->type != (uint32_t)type) {
        objection = "another type than the call's";
    }
    if (objection != NULL) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "a metric with %s", objection);
        return COUNT_NONE;
    }
    guard_labels_format(text, sizeof text, labels, count);
    pthread_mutex_lock(&lock);
    uint32_t slot = slot_of(metric, text, type == GUARD_METRIC_HISTOGRAM ? HISTOGRAM_SLOTS : 1);
    bool is_told = slot != COUNT_NONE || is_full_told;
    is_full_told = is_full_told || slot == COUNT_NONE;
    pthread_mutex_unlock(&lock);
    if (!is_told) {
        guard_note("no room for the metric %s{%s}: it counts nothing", metric->name, text);
    }
    return slot;
}

guard_counter guard_counter_open(const guard_metric *metric, const guard_label *labels, size_t count)
{
    return (guard_counter){number_open(metric, GUARD_METRIC_COUNTER, labels, count)};
}

guard_gauge guard_gauge_open(const guard_metric *metric, const guard_label *labels, size_t count)
{
    return (guard_gauge){number_open(metric, GUARD_METRIC_GAUGE, labels, count)};
}

guard_histogram guard_histogram_open(const guard_metric *metric, const guard_label *labels, size_t count)
{
    return (guard_histogram){number_open(metric, GUARD_METRIC_HISTOGRAM, labels, count)};
}

/* ------------------------------------------------------------------------------------------- counting -- */

/* Before the thread's first use of the library, after its state was freed, or without memory for it. */
void guard_impl_count_slow(uint32_t slot, uint64_t count)
{
    if (slot < GUARD_METRICS_SLOTS) {
        atomic_fetch_add_explicit(&ended[slot], count, memory_order_relaxed);
    }
}

void guard_histogram_observe(guard_histogram histogram, int64_t nanoseconds)
{
    uint32_t bucket = 0;
    if (histogram.slot == COUNT_NONE) {
        return;
    }
    while (bucket < HISTOGRAM_BOUNDS && nanoseconds > guard_histogram_bounds[bucket]) {
        bucket++;
    }
    guard_impl_count(histogram.slot + bucket, 1);
    guard_impl_count(histogram.slot + HISTOGRAM_BOUNDS + 1, nanoseconds > 0 ? (uint64_t)nanoseconds : 0);
}

int64_t guard_metrics_clock(void)
{
    return guard_clock();
}

void guard_counts_end(const guard_thread *thread)
{
    for (uint32_t i = 0; i < GUARD_METRICS_SLOTS; i++) {
        atomic_fetch_add_explicit(&ended[i], thread->counts[i], memory_order_relaxed);
    }
}

void guard_ran_end(const guard_stack *stack)
{
    atomic_fetch_add_explicit(&ended_ran, stack->hot.ran, memory_order_relaxed);
}

uint64_t guard_counts_sum(uint64_t *sums)
{
    pthread_mutex_lock(&guard_life_lock);
    for (uint32_t i = 0; i < GUARD_METRICS_SLOTS; i++) {
        sums[i] = atomic_load_explicit(&ended[i], memory_order_relaxed);
    }
    for (guard_thread *thread = guard_threads; thread != NULL; thread = thread->next) {
        for (uint32_t i = 0; i < GUARD_METRICS_SLOTS; i++) {
            sums[i] += __atomic_load_n(&thread->counts[i], __ATOMIC_RELAXED);
        }
    }
    uint64_t ran = atomic_load_explicit(&ended_ran, memory_order_relaxed);
    for (guard_stack *stack = guard_stacks; stack != NULL; stack = stack->next) {
        ran += __atomic_load_n(&stack->hot.ran, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&guard_life_lock);
    return ran;
}

static uint64_t slot_read(uint32_t slot)
{
    if (slot >= GUARD_METRICS_SLOTS) {
        return 0;
    }
    pthread_mutex_lock(&guard_life_lock);
    uint64_t sum = atomic_load_explicit(&ended[slot], memory_order_relaxed);
    for (guard_thread *thread = guard_threads; thread != NULL; thread = thread->next) {
        sum += __atomic_load_n(&thread->counts[slot], __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&guard_life_lock);
    return sum;
}

int64_t guard_counter_read(guard_counter counter)
{
    return counter.slot != COUNT_NONE ? (int64_t)slot_read(counter.slot) : 0;
}

int64_t guard_gauge_read(guard_gauge gauge)
{
    return gauge.slot != COUNT_NONE ? (int64_t)slot_read(gauge.slot) : 0;
}

int64_t guard_histogram_read(guard_histogram histogram)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; histogram.slot != COUNT_NONE && i <= HISTOGRAM_BOUNDS; i++) {
        sum += slot_read(histogram.slot + i);
    }
    return (int64_t)sum;
}

/* ----------------------------------------------------------------------------------------------- fork -- */

void guard_metrics_before_fork(void)
{
    pthread_mutex_lock(&lock);
}

void guard_metrics_after_fork(bool is_child)
{
    if (!is_child) {
        pthread_mutex_unlock(&lock);
        return;
    }
    for (uint32_t i = 0; i < GUARD_METRICS_SLOTS; i++) {
        ended[i] = 0;
    }
    ended_ran = 0;
    for (guard_stack *stack = guard_stacks; stack != NULL; stack = stack->next) {
        stack->hot.ran = 0;
    }
    if (guard_thread_own != NULL) {
        memset(guard_thread_own->counts, 0, sizeof guard_thread_own->counts);
    }
    /* What they would ask may have been locked by a thread that the child does not have. */
    for (guard_collector *next, *collector = collectors; collector != NULL; collector = next) {
        next = collector->next;
        collector->at = NULL;
    }
    collectors = NULL;
    pthread_mutex_unlock(&lock);
}

/* ----------------------------------------------------------------------------------------- collectors -- */

void guard_collector_open(guard_collector *collector, guard_collect_fn *fn, void *arg)
{
    collector->fn = fn;
    collector->arg = arg;
    pthread_mutex_lock(&lock);
    collector->next = collectors;
    collector->at = &collectors;
    if (collector->next != NULL) {
        collector->next->at = &collector->next;
    }
    collectors = collector;
    pthread_mutex_unlock(&lock);
}

void guard_collector_close(guard_collector *collector)
{
    pthread_mutex_lock(&lock);
    if (collector->at != NULL) {
        *collector->at = collector->next;
        if (collector->next != NULL) {
            collector->next->at = collector->at;
        }
    }
    pthread_mutex_unlock(&lock);
}

static void collector_free(void *arg)
{
    guard_collector_close(arg);
    guard_deallocate(arg);
}

static const guard_kind collector_kind = {
    .name = "collector of metrics", .release = collector_free, .child = collector_free, .flags = GUARD_KIND_HEAP};

guard_ticket guard_metrics_collect_at(guard_scope *scope, guard_collect_fn *fn, void *arg, const guard_place *place)
{
    if (fn == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "guard_metrics_collect without a function");
        return (guard_ticket){NULL, 0, 0};
    }
    guard_impl_reserve(scope, 1, place);
    guard_collector *collector = guard_allocate(sizeof *collector);
    guard_collector_open(collector, fn, arg);
    return guard_impl_defer_kind(scope, &collector_kind, collector, place);
}

/* -------------------------------------------------------------------------------------------- reading -- */

static void core_put(guard_metrics_page *page, const uint64_t *sums, uint64_t ran)
{
    static const guard_metric defers = {.name = "guard_defers_run_total",
                                        .help = "Deferred functions and releases that were run.",
                                        .type = GUARD_METRIC_COUNTER};
    static const guard_metric recoveries = {
        .name = "guard_recoveries_total",
        .help = "Panics that ended at a border, which returned them, or in a deferred function, which recovered them.",
        .type = GUARD_METRIC_COUNTER};
    static const guard_metric again = {.name = "guard_panics_raised_again_total",
                                       .help = "Errors that a border had returned and that were raised again.",
                                       .type = GUARD_METRIC_COUNTER};
    guard_metrics_put(page, &defers, NULL, 0, (int64_t)ran);
    guard_metrics_put(page, &again, NULL, 0, (int64_t)sums[COUNT_AGAIN]);
    guard_metrics_put(page, &recoveries, &(guard_label){"by", "border"}, 1, (int64_t)sums[COUNT_CONTAINED]);
    guard_metrics_put(page, &recoveries, &(guard_label){"by", "defer"}, 1, (int64_t)sums[COUNT_RECOVERED]);
    guard_sites_put(page, sums);
}

static void entries_put(guard_metrics_page *page, const uint64_t *sums)
{
    for (uint32_t i = 0; i < entry_count; i++) {
        const entry *this = &entries[i];
        if (this->metric->type == GUARD_METRIC_HISTOGRAM) {
            guard_page_put_histogram(page, this->metric, this->labels, &sums[this->slot]);
        } else {
            guard_page_put_text(page, this->metric, this->labels, (int64_t)sums[this->slot]);
        }
    }
}

typedef struct asking {
    const guard_collector *collector;
    guard_metrics_page *page;
} asking;

static void ask(void *arg)
{
    const asking *this = arg;
    this->collector->fn(this->page, this->collector->arg);
}

/* Under the lock. Returns how many of them panicked; *first is filled then. */
static uint32_t collectors_ask(guard_metrics_page *page, guard_error *first)
{
    uint32_t failed = 0;
    for (const guard_collector *collector = collectors; collector != NULL; collector = collector->next) {
        guard_error error;
        asking this = {collector, page};
        size_t mark = guard_page_mark(page);
        if (guard_run(ask, &this, failed == 0 ? first : &error) != 0) {
            guard_page_cut(page, mark);
            failed++;
        }
    }
    return failed;
}

/* A cancel, of either kind, is for the one who reads and not for those who are asked. What is noted is noted without the lock: by a program's function. */
void guard_metrics_gather(guard_metrics_page *page)
{
    uint64_t sums[GUARD_METRICS_SLOTS];
    guard_error first;
    GUARD_AUTO(s);
    guard_mask(s);
    int state = guard_cancel_shut();
    pthread_mutex_lock(&lock);
    uint64_t ran = guard_counts_sum(sums);
    core_put(page, sums, ran);
    entries_put(page, sums);
    uint32_t failed = collectors_ask(page, &first);
    pthread_mutex_unlock(&lock);
    guard_cancel_restore(state);
    if (failed > 0) {
        guard_note("%u collector%s of metrics failed: %s", failed, failed == 1 ? "" : "s, the first", first.message);
    }
}
