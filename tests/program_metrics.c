/* SPDX-License-Identifier: MIT */
#include "program_metrics.h"

const guard_metric apple_counter = {.name = "apples_total", .help = "Apples.", .type = GUARD_METRIC_COUNTER};
const guard_metric level_gauge = {.name = "level", .help = "A level.", .type = GUARD_METRIC_GAUGE};
const guard_metric time_histogram = {.name = "times_seconds", .help = "Times.", .type = GUARD_METRIC_HISTOGRAM};

int asked;

void collect(guard_metrics_page *page, void *name)
{
    asked++;
    guard_metrics_put(page, &level_gauge, &(guard_label){"of", name}, 1, asked);
    guard_metrics_put(page, &apple_counter, &(guard_label){"kind", "collected"}, 1, 3);
}
