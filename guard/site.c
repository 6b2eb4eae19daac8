/* SPDX-License-Identifier: MIT */
/*
 * site.c: panics by domain and by the place they come from.
 *
 *     slot: empty --claimed by its key--> named --its text is there--> readable
 *
 * A table for the whole process, in which only empty slots change: nobody locks, and no panic allocates. Once it is full, a panic from a new
 * place is counted as one from "other", by its domain. What is counted is in the thread's own words, at the slot's number; the thread
 * remembers the slots of the places that it saw last, so that a panic costs one comparison and one addition.
 *
 * Invariants: a key never changes once it is set, and there are no two slots of one key. Two places with one file name and line are one.
 */
#include <stdatomic.h>

#include "internal.h"

typedef struct site {
    _Atomic uint64_t key; /* 0: empty */
    atomic_bool is_readable;
    int32_t domain;
    char place[64]; /* file:line */
} site;

static site sites[COUNT_SITES];

static const guard_metric panics = {.name = "guard_panics_total",
                                    .help = "Panics by domain and by the place they were raised at.",
                                    .type = GUARD_METRIC_COUNTER};

static uint32_t domain_index(int32_t domain)
{
    return (uint32_t)domain < COUNT_DOMAINS ? (uint32_t)domain : GUARD_USER;
}

/* FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv/): two of 126 places collide in 64 bits once in 10^15 programs. */
static uint64_t key_of(uint32_t domain, const char *file, uint32_t line)
{
    uint64_t key = 0xcbf29ce484222325U;
    for (; *file != '\0'; file++) {
        key = (key ^ (unsigned char)*file) * 0x100000001b3U;
    }
    key = (key ^ line) * 0x100000001b3U;
    key = (key ^ domain) * 0x100000001b3U;
    return key != 0 ? key : 1;
}

static void site_name(site *this, uint32_t domain, const char *file, uint32_t line)
{
    char escaped[sizeof this->place - 12];
    guard_text_escape(escaped, sizeof escaped, file);
    this->domain = (int32_t)domain;
    snprintf(this->place, sizeof this->place, "%s:%u", escaped, line);
    atomic_store_explicit(&this->is_readable, true, memory_order_release);
}

static uint32_t site_slot(uint32_t domain, const char *file, uint32_t line)
{
    uint64_t key = key_of(domain, file, line);
    for (uint32_t tried = 0; tried < COUNT_SITES; tried++) {
        uint32_t i = (uint32_t)((key + tried) % COUNT_SITES);
        uint64_t found = atomic_load_explicit(&sites[i].key, memory_order_acquire);
        if (found == 0 && atomic_compare_exchange_strong(&sites[i].key, &found, key)) {
            site_name(&sites[i], domain, file, line);
            return COUNT_SITE + i;
        }
        if (found == key) {
            return COUNT_SITE + i;
        }
    }
    return COUNT_OTHER + domain;
}

uint32_t guard_site_find(guard_thread *thread, const guard_error *error, const guard_place *place)
{
    uint32_t domain = domain_index(error->domain);
    if (place == NULL && (error->flags & GUARD_ERROR_COUNTED)) {
        return error->flags & GUARD_ERROR_REPANICKED ? COUNT_AGAIN : COUNT_NONE; /* else the same panic goes on */
    }
    if (place == NULL) {
        return site_slot(domain, error->file[0] != '\0' ? error->file : "unknown", error->line);
    }
    guard_error named;
    guard_error_place(&named, place);
    guard_site_memo *memo = guard_site_memo_of(thread, place);
    uint32_t slot = site_slot(domain, named.file, place->line);
    *memo = (guard_site_memo){.place = place, .line = place->line, .domain = error->domain, .slot = slot};
    return slot;
}

void guard_sites_put(guard_metrics_page *page, const uint64_t *sums)
{
    for (uint32_t i = 0; i < COUNT_SITES; i++) {
        uint64_t count = sums[COUNT_SITE + i];
        /* Its name is there a moment after it was counted first. */
        if (count != 0 && atomic_load_explicit(&sites[i].is_readable, memory_order_acquire)) {
            const guard_label labels[] = {{"domain", guard_domain_name(sites[i].domain)}, {"site", sites[i].place}};
            guard_metrics_put(page, &panics, labels, 2, (int64_t)count);
        }
    }
    for (uint32_t domain = 0; domain < COUNT_DOMAINS; domain++) {
        if (sums[COUNT_OTHER + domain] != 0) {
            const guard_label labels[] = {{"domain", guard_domain_name((int)domain)}, {"site", "other"}};
            guard_metrics_put(page, &panics, labels, 2, (int64_t)sums[COUNT_OTHER + domain]);
        }
    }
}
