/* SPDX-License-Identifier: MIT */
/* results.c: what a run found, for people and for programs. */
#include <jansson.h>
#include <stdio.h>

#include <guard/guard_file.h>

#include "compare.h"

/* --------------------------------------------------------------------------------------------- the table -- */

void bench_print_head(const bench_settings *settings)
{
    if (settings->is_check) {
        return;
    }
    printf("%-26s %-9s %12s %12s %8s %17s %7s\n", "row", "peer", "us, ns", "peer, ns", "ratio", "(min .. max)",
           "target");
}

static void print_target(const bench_result *result)
{
    if (result->row->target > 0) {
        printf(" %7.3g %s\n", result->row->target, result->ok ? "" : " behind");
    } else if (result->row->target_ns > 0) {
        printf(" %4g ns %s\n", result->row->target_ns, result->ok ? "" : " behind");
    } else {
        printf(" %7s\n", "-");
    }
}

void bench_print(const bench_settings *settings, const bench_result *result)
{
    const bench_row *row = result->row;
    char name[64];
    snprintf(name, sizeof name, "%s%s%s", row->row, row->of != NULL ? " " : "", row->of != NULL ? row->of : "");
    printf("%-26s %-9s", name, row->peer);
    if (result->failed[0] != '\0') {
        printf(" FAILED: %s\n", result->failed);
        return;
    }
    if (result->skipped[0] != '\0') {
        printf(" skipped: %s\n", result->skipped);
        return;
    }
    if (settings->is_check) {
        printf(" works\n");
        return;
    }
    printf(" %12.4g %12.4g %8.3g", result->us_ns, result->peer_ns, result->ratio);
    if (row->in_instructions && result->us_instructions > 0) {
        printf(" %17s", "in instructions");
    } else {
        printf("  (%6.3g .. %6.3g)", result->ratio_min, result->ratio_max);
    }
    print_target(result);
}

/* ------------------------------------------------------------------------------------------------- files -- */

static void release_json(void *value)
{
    json_decref(value);
}

static void set_new(json_t *object, const char *key, json_t *value)
{
    if (json_object_set_new(object, key, value) != 0) { /* refuses NULL: no memory, or not a finite number */
        guard_panic(1, "results.json: no value for %s", key);
    }
}

static json_t *result_object(const bench_result *result)
{
    const bench_row *row = result->row;
    json_t *object = json_object();
    set_new(object, "row", json_string(row->row));
    if (row->of != NULL) {
        set_new(object, "of", json_string(row->of));
    }
    set_new(object, "us_ns", json_real(result->us_ns));
    set_new(object, "peer", json_string(row->peer));
    set_new(object, "peer_ns", json_real(result->peer_ns));
    set_new(object, "measure", json_string(row->in_instructions ? "instructions" : "time"));
    if (result->us_instructions > 0 && result->peer_instructions > 0) {
        set_new(object, "us_instructions", json_real(result->us_instructions));
        set_new(object, "peer_instructions", json_real(result->peer_instructions));
    }
    set_new(object, "ratio", json_real(result->ratio));
    set_new(object, "ratio_min", json_real(result->ratio_min));
    set_new(object, "ratio_max", json_real(result->ratio_max));
    set_new(object, "rounds", json_integer(result->rounds));
    set_new(object, "target", row->target > 0 ? json_real(row->target) : json_null());
    if (row->target_ns > 0) {
        set_new(object, "target_ns", json_real(row->target_ns));
    }
    set_new(object, "ok", json_boolean(result->ok));
    return object;
}

/* Only what was measured; what was skipped is said on the terminal. */
static bool is_measured(const bench_result *result)
{
    return result->skipped[0] == '\0' && result->failed[0] == '\0';
}

static void publish_json(const char *folder, const bench_result *results, size_t count)
{
    GUARD_AUTO(s);
    json_t *list = json_array();
    guard_defer(s, release_json, list);
    for (size_t i = 0; i < count; i++) {
        if (is_measured(&results[i]) && json_array_append_new(list, result_object(&results[i])) != 0) {
            guard_panic(1, "no memory for the results");
        }
    }
    guard_file_replace *file = guard_file_replace_begin(s, guard_memory_format(s, NULL, "%s/results.json", folder),
                                                        NULL);
    if (json_dumpf(list, guard_file_replace_stream(file), JSON_INDENT(1) | JSON_REAL_PRECISION(6)) != 0) {
        guard_panic_os("results.json cannot be written");
    }
    fputc('\n', guard_file_replace_stream(file));
    guard_file_replace_commit(file);
}

/* A line for each: name, ratio, least, greatest, target (0: none). For ratios.gp. */
static void publish_data(const char *folder, const bench_result *results, size_t count)
{
    GUARD_AUTO(s);
    guard_file_replace *file = guard_file_replace_begin(s, guard_memory_format(s, NULL, "%s/ratios.dat", folder), NULL);
    FILE *data = guard_file_replace_stream(file);
    for (size_t i = 0; i < count; i++) {
        const bench_row *row = results[i].row;
        if (is_measured(&results[i])) {
            fprintf(data, "\"%s%s%s / %s\" %g %g %g %g\n", row->row, row->of != NULL ? " " : "",
                    row->of != NULL ? row->of : "", row->peer, results[i].ratio, results[i].ratio_min,
                    results[i].ratio_max, row->target);
        }
    }
    guard_file_replace_commit(file);
}

void bench_publish(const char *folder, const bench_result *results, size_t count)
{
    publish_json(folder, results, count);
    publish_data(folder, results, count);
}
