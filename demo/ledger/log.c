/* SPDX-License-Identifier: MIT */
/* The ring is filled by the log's own thread, and read by those of the page. */
#include "log.h"

#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "json.h"

static guard_log *ledger_log;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the ring */
static char ring[LOG_NEWEST][GUARD_LOG_LINE];
static uint64_t kept; /* lines that were ever in it */

static void keep(const char *line, size_t length, void *arg)
{
    (void)arg;
    pthread_mutex_lock(&lock);
    char *slot = ring[kept % LOG_NEWEST];
    memcpy(slot, line, length - 1);
    slot[length - 1] = '\0'; /* in the place of the newline */
    kept++;
    pthread_mutex_unlock(&lock);
}

guard_log *log_open(guard_scope *scope, const char *path)
{
    const guard_log_options options = {.report_ms = LOG_REPORT_MS};
    ledger_log = guard_log_open(scope, "ledger", &options);
    if (path != NULL) {
        guard_log_to_file(ledger_log, path, 0);
    } else {
        guard_log_to_descriptor(ledger_log, STDERR_FILENO);
    }
    guard_log_to_callback(ledger_log, keep, NULL);
    return ledger_log;
}

guard_log *log_get(void)
{
    return ledger_log;
}

log_figures log_read_figures(void)
{
    guard_log_figures figures;
    guard_log_read(ledger_log, &figures);
    for (int i = 0; figures.waiting > 0 && i < 1000; i++) {
        poll(NULL, 0, 1);
        guard_log_read(ledger_log, &figures);
    }
    return (log_figures){figures.written, figures.counted + figures.dropped + figures.lost};
}

static void unlock(void *arg)
{
    pthread_mutex_unlock(arg);
}

json_t *log_newest(guard_scope *scope)
{
    GUARD_AUTO(s);
    json_t *newest = json_own(scope, json_array());
    pthread_mutex_lock(&lock);
    guard_defer(s, unlock, &lock);
    for (uint64_t i = 0; i < LOG_NEWEST && i < kept; i++) {
        json_append(newest, json_string(ring[(kept - 1 - i) % LOG_NEWEST]));
    }
    return newest;
}
