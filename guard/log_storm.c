/* SPDX-License-Identifier: MIT */
/*
 * log_storm.c: how much is said of an event: all, a line, or only that it was.
 *
 *     a token of the site's lines and of all lines?  ──no──> STORM_COUNTED
 *         └─a token of the site's full records and of all?  ──no──> STORM_BRIEF
 *               └─> STORM_FULL
 *
 * Invariants
 *   - A bucket is one word, when it will be full again (as in service.c). A token that was taken for nothing, since the other bucket had none,
 *     is given back.
 *   - A site is never given up: its place is taken by one exchange of its key, its name is written after that by whoever took it, once. So its
 *     counts are exact; when the places are used up, the last one counts for all others.
 */
#include "log_internal.h"

#define SECOND 1000000000
#define BURST_LEAST 5
#define OTHERS (GUARD_LOG_SITES - 1)

static guard_storm_rate rate_of(uint32_t per_second)
{
    int64_t interval = SECOND / per_second;
    return (guard_storm_rate){interval, interval * (per_second > BURST_LEAST ? per_second : BURST_LEAST)};
}

void guard_storm_open(guard_storm *storm, const guard_log_options *options)
{
    memset(storm, 0, sizeof *storm);
    storm->site_full = rate_of(options->site_full);
    storm->site_lines = rate_of(options->site_lines);
    storm->all_full = rate_of(options->all_full);
    storm->all_lines = rate_of(options->all_lines);
    guard_storm_site *others = &storm->sites[OTHERS];
    guard_text_copy(others->file, sizeof others->file, "others");
    others->is_named = true;
}

void guard_storm_forget(guard_storm *storm)
{
    for (size_t i = 0; i < GUARD_LOG_SITES; i++) {
        atomic_store(&storm->sites[i].events, 0);
        atomic_store(&storm->sites[i].untold, 0);
    }
    atomic_store(&storm->has_untold, false);
}

/* FNV-1a, of the text that is kept, which may not have ended before. Never 0. */
static uint64_t site_key(const char *file, uint32_t line)
{
    uint64_t key = 0xcbf29ce484222325U ^ line;
    for (size_t i = 0; i < sizeof((guard_storm_site *)0)->file - 1 && file[i] != '\0'; i++) {
        key = (key ^ (unsigned char)file[i]) * 0x100000001b3U;
    }
    key ^= key >> 32;
    return key != 0 ? key : 1;
}

guard_storm_site *guard_storm_find(guard_storm *storm, const char *file, uint32_t line)
{
    uint64_t key = site_key(file, line);
    for (unsigned i = 0; i < OTHERS; i++) {
        guard_storm_site *site = &storm->sites[(key + i) % OTHERS];
        uint64_t found = atomic_load(&site->key);
        if (found == 0 && atomic_compare_exchange_strong(&site->key, &found, key)) {
            guard_text_copy(site->file, sizeof site->file, file);
            site->line = line;
            atomic_store(&site->is_named, true);
            return site;
        }
        if (found == key) {
            return site;
        }
    }
    return &storm->sites[OTHERS];
}

static bool take(_Atomic int64_t *bucket, guard_storm_rate rate, int64_t now)
{
    int64_t due = atomic_load(bucket);
    int64_t next;
    do {
        next = (due > now ? due : now) + rate.interval;
        if (next - now > rate.depth) {
            return false;
        }
    } while (!atomic_compare_exchange_weak(bucket, &due, next));
    return true;
}

/* A token of both, or of none. */
static bool take_both(_Atomic int64_t *one, guard_storm_rate one_rate, _Atomic int64_t *all, guard_storm_rate all_rate,
                      int64_t now)
{
    if (!take(one, one_rate, now)) {
        return false;
    }
    if (!take(all, all_rate, now)) {
        atomic_fetch_sub(one, one_rate.interval);
        return false;
    }
    return true;
}

guard_storm_verdict guard_storm_judge(guard_storm *storm, guard_storm_site *site, int64_t now)
{
    if (!take_both(&site->lines_due, storm->site_lines, &storm->lines_due, storm->all_lines, now)) {
        return STORM_COUNTED;
    }
    if (!take_both(&site->full_due, storm->site_full, &storm->full_due, storm->all_full, now)) {
        return STORM_BRIEF;
    }
    return STORM_FULL;
}
