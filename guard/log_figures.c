/* SPDX-License-Identifier: MIT */
/* log_figures.c: what a log has counted: for the program, and for the page of metrics. */
#include "log_internal.h"

void guard_log_read(const guard_log *log, guard_log_figures *figures)
{
    memset(figures, 0, sizeof *figures);
    if (log == NULL) {
        return;
    }
    figures->events = atomic_load(&log->events);
    figures->full = atomic_load(&log->full);
    figures->brief = atomic_load(&log->brief);
    figures->counted = atomic_load(&log->counted);
    figures->dropped = atomic_load(&log->dropped);
    figures->written = atomic_load(&log->written);
    figures->lost = atomic_load(&log->lost);
    figures->told = atomic_load(&log->told);
    uint64_t head = atomic_load(&log->queue.head);
    figures->waiting = atomic_load(&log->queue.tail) - head;
}

int guard_log_read_site(const guard_log *log, unsigned number, guard_log_site *site)
{
    memset(site, 0, sizeof *site);
    if (log == NULL || number >= GUARD_LOG_SITES || !atomic_load(&log->storm.sites[number].is_named)) {
        return 0;
    }
    const guard_storm_site *from = &log->storm.sites[number];
    memcpy(site->file, from->file, sizeof site->file);
    site->line = from->line;
    site->events = atomic_load(&from->events);
    site->untold = atomic_load(&from->untold);
    return 1;
}

typedef struct figure {
    const char *name;
    uint64_t count;
} figure;

static void put_figures(guard_metrics_page *page, const guard_metric *metric, const guard_log *log, const char *label,
                        const figure *figures, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const guard_label labels[] = {{"log", log->name}, {label, figures[i].name}};
        guard_metrics_put(page, metric, labels, 2, (int64_t)figures[i].count);
    }
}

void guard_log_collect(guard_metrics_page *page, void *arg)
{
    static const guard_metric events = {
        .name = "guard_log_events_total",
        .help = "Panics and lines given to a log: full records, short lines, or counted.",
        .type = GUARD_METRIC_COUNTER};
    static const guard_metric lines = {
        .name = "guard_log_lines_total",
        .help =
            "Full records and short lines: written, lost to a sink that did not take them, or dropped at a full queue.",
        .type = GUARD_METRIC_COUNTER};
    static const guard_metric waiting = {
        .name = "guard_log_lines_waiting", .help = "Lines in the queue of a log now.", .type = GUARD_METRIC_GAUGE};
    const guard_log *log = arg;
    guard_log_figures figures;
    guard_log_read(log, &figures);
    const figure forms[] = {{"full", figures.full}, {"brief", figures.brief}, {"counted", figures.counted}};
    const figure fates[] = {{"written", figures.written}, {"lost", figures.lost}, {"dropped", figures.dropped}};
    put_figures(page, &events, log, "form", forms, sizeof forms / sizeof *forms);
    put_figures(page, &lines, log, "fate", fates, sizeof fates / sizeof *fates);
    guard_metrics_put(page, &waiting, &(guard_label){"log", log->name}, 1, (int64_t)figures.waiting);
}
