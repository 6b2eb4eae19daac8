/* SPDX-License-Identifier: MIT */
/*
 * log.c: opening and closing a log, and what becomes of an event on its thread.
 *
 *     guard_log_put ──judged: full, brief──> a slot is claimed ──> formatted ──> published ──> the writer is woken, where the mode says so
 *          │                                        └──none is free──> dropped ─┐
 *          └──────────judged: counted───────────────────────────────────────────┴──> the site's `untold`, which the writer tells
 *
 * Invariants
 *   - An event is in exactly one of full, brief and counted; a full or brief one in exactly one of dropped, waiting, written and lost.
 *   - Nothing on this way allocates, locks or waits; errno is as it was.
 */
#include <errno.h>
#include <unistd.h>

#include "helgrind.h"
#include "log_internal.h"

/* ----------------------------------------------------------------------------------------------- opening -- */

enum { QUEUE_MOST = 65536, RATE_MOST = 1000000 };

static const char *options_objection(const guard_log_options *o)
{
    if ((unsigned)o->mode > GUARD_LOG_ON_PANIC) {
        return "a mode that there is not";
    }
    if (o->queue_lines > QUEUE_MOST) {
        return "a queue of more than 65,536 lines";
    }
    if (o->site_full > RATE_MOST || o->site_lines > RATE_MOST || o->all_full > RATE_MOST || o->all_lines > RATE_MOST) {
        return "more than 1,000,000 lines in a second";
    }
    if (o->flush_ms < 0 || o->sink_ms < 0 || o->close_ms < 0 || (o->report_ms != 0 && o->report_ms < 10)) {
        return "a time out of its range";
    }
    for (size_t i = 0; i < sizeof o->reserved / sizeof *o->reserved; i++) {
        if (o->reserved[i] != 0) {
            return "a reserved word that is not 0";
        }
    }
    return NULL;
}

static uint32_t or_default(uint32_t value, uint32_t otherwise)
{
    return value != 0 ? value : otherwise;
}

static guard_log_options options_fill(const guard_log_options *o)
{
    guard_log_options filled = {.mode = o->mode};
    filled.flush_bytes = or_default(o->flush_bytes, 1024);
    filled.flush_ms = (int32_t)or_default((uint32_t)o->flush_ms, 5000);
    filled.queue_lines = 1;
    while (filled.queue_lines < or_default(o->queue_lines, 256)) {
        filled.queue_lines *= 2;
    }
    filled.site_full = or_default(o->site_full, 1);
    filled.site_lines = or_default(o->site_lines, 10);
    filled.all_full = or_default(o->all_full, 20);
    filled.all_lines = or_default(o->all_lines, 100);
    filled.report_ms = (int32_t)or_default((uint32_t)o->report_ms, 5000);
    filled.sink_ms = (int32_t)or_default((uint32_t)o->sink_ms, 1000);
    filled.close_ms = (int32_t)or_default((uint32_t)o->close_ms, 2000);
    return filled;
}

static void log_free(guard_log *log)
{
    for (unsigned i = 0; i < atomic_load(&log->sink_count); i++) {
        guard_sink_close(&log->sinks[i]);
    }
    guard_sink_close(&log->fallback);
    pthread_mutex_destroy(&log->lock);
    pthread_cond_destroy(&log->changed);
    guard_deallocate(log->queue.slots);
    guard_deallocate(log);
}

static void log_close(void *arg)
{
    guard_log *log = arg;
    int state = guard_cancel_shut();
    guard_collector_close(&log->collector);
    guard_log_delist(log);
    bool is_stopped = guard_log_stop(log);
    if (is_stopped) {
        log_free(log);
    }
    guard_cancel_restore(state);
    if (!is_stopped) {
        guard_note("log %s: its thread hangs in a write, so that the log is left as it is", log->name);
    }
}

static size_t log_describe(const void *object, char *text, size_t size)
{
    const guard_log *log = object;
    return (size_t)snprintf(text, size, "log %s", log->name);
}

/* A forked child closes its own copy: its queue is its own. */
static const guard_kind log_kind = {
    .name = "log", .release = log_close, .child = log_close, .describe = log_describe, .flags = GUARD_KIND_HEAP};

/* All but its thread. */
static void log_fill(guard_log *log, const char *name, const guard_log_options *options, guard_log_slot *slots)
{
    memset(log, 0, sizeof *log);
    guard_text_copy(log->name, sizeof log->name, name);
    log->options = *options;
    guard_storm_open(&log->storm, options);
    log->queue.slots = slots;
    log->queue.mask = options->queue_lines - 1;
    guard_queue_clear(&log->queue);
    for (size_t i = 0; i < LOG_SINKS; i++) {
        log->sinks[i].log = log;
        log->sinks[i].descriptor = -1;
    }
    log->fallback.log = log;
    guard_sink_open_descriptor(&log->fallback, STDERR_FILENO);
    log->wake = -1;
    guard_log_make_lock(log);
    HELGRIND_IGNORE(log, sizeof *log);
    HELGRIND_IGNORE(slots, options->queue_lines * sizeof *slots);
}

static guard_log *log_new(const char *name, const guard_log_options *options)
{
    GUARD_AUTO(s);
    guard_log_slot *slots = guard_allocate(options->queue_lines * sizeof *slots);
    guard_ticket ticket = guard_defer(s, guard_deallocate, slots);
    guard_log *log = guard_allocate(sizeof *log);
    guard_dismiss(ticket);
    log_fill(log, name, options, slots);
    return log;
}

guard_log *guard_log_open_at(guard_scope *scope, const char *name, const guard_log_options *options,
                             const guard_place *place)
{
    static const guard_log_options none;
    options = options != NULL ? options : &none;
    const char *objection = name == NULL ? "no name" : options_objection(options);
    if (objection != NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "guard_log_open with %s", objection);
        return NULL;
    }
    guard_impl_reserve(scope, 1, place);
    guard_log_options filled = options_fill(options);
    guard_log *log = log_new(name, &filled);
    if (!guard_log_enlist(log)) {
        log_free(log);
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "guard_log_open of a 17th log");
        return NULL;
    }
    int code = guard_log_start(log);
    if (code != 0) {
        guard_log_delist(log);
        log_free(log);
        errno = code;
        guard_impl_panic_os(place, "a thread for log %s", name);
    }
    guard_collector_open(&log->collector, guard_log_collect, log);
    guard_ticket ticket = guard_impl_defer_kind(scope, &log_kind, log, place);
    return ticket.record != NULL ? log : NULL;
}

/* ------------------------------------------------------------------------------------------------ events -- */

static void count_untold(guard_log *log, guard_storm_site *site)
{
    atomic_fetch_add(&site->untold, 1);
    if (!atomic_load(&log->storm.has_untold) && !atomic_exchange(&log->storm.has_untold, true)) {
        guard_log_wake(log);
    }
}

/* A line of `length` bytes is published; `before` were waiting. */
static void wake_for(guard_log *log, guard_severity severity, uint64_t before, size_t length)
{
    bool is_due = true;
    if (log->options.mode == GUARD_LOG_BATCHED) {
        /* The first one starts the clock. */
        is_due = before == 0 || (before < log->options.flush_bytes && before + length >= log->options.flush_bytes);
    } else if (log->options.mode == GUARD_LOG_ON_PANIC) {
        uint64_t lines = atomic_load(&log->queue.tail) - atomic_load(&log->queue.head);
        is_due = severity <= GUARD_LOG_ERROR || lines > log->queue.mask / 2;
        if (is_due) {
            atomic_store(&log->is_urgent, true);
        }
    }
    if (is_due) {
        guard_log_wake(log);
    }
}

/* An error of the program's may be filled in anyhow: it is read before a slot is claimed, into one whose texts all end. */
static void event_fill(guard_log_event *event, guard_error *copy)
{
    if (event->error != NULL) {
        guard_error_copy(copy, event->error);
        event->error = copy;
        event->message = copy->message;
        event->file = copy->file;
    }
}

/* False where there is no room. */
static bool log_line(guard_log *log, guard_log_event event, bool is_full)
{
    uint64_t at;
    guard_error copy;
    event_fill(&event, &copy);
    guard_log_slot *slot = guard_queue_claim(&log->queue, &at);
    if (slot == NULL) {
        return false;
    }
    slot->length = (uint32_t)guard_log_format(log, &event, is_full, slot->text);
    slot->queued = slot->length;
    slot->trace.count = 0;
    if (is_full && event.error != NULL) {
        guard_trace_of(event.error, &slot->trace);
    }
    slot->severity = event.severity;
    slot->line = event.line;
    guard_text_copy(slot->file, sizeof slot->file, event.file);
    uint32_t length = slot->length;
    uint64_t before = atomic_fetch_add(&log->waiting, length);
    guard_queue_publish(slot, at);
    wake_for(log, event.severity, before, length);
    return true;
}

void guard_log_put(guard_log *log, const guard_log_event *event)
{
    int error = errno;
    guard_storm_site *site = guard_storm_find(&log->storm, event->file, event->line);
    guard_storm_verdict verdict = guard_storm_judge(&log->storm, site, guard_clock());
    atomic_fetch_add(&log->events, 1);
    atomic_fetch_add(&site->events, 1);
    atomic_fetch_add(verdict == STORM_FULL ? &log->full : verdict == STORM_BRIEF ? &log->brief : &log->counted, 1);
    if (verdict == STORM_COUNTED) {
        count_untold(log, site);
    } else if (!log_line(log, *event, verdict == STORM_FULL)) {
        atomic_fetch_add(&log->dropped, 1);
        count_untold(log, site);
    }
    errno = error;
}

static guard_severity severity_of(const guard_error *error)
{
    switch (error->domain) {
    case GUARD_FAULT:
    case GUARD_MISUSE:
        return GUARD_LOG_CRITICAL;
    case GUARD_CANCELLED:
    case GUARD_TIMEOUT:
    case GUARD_REFUSED:
        return GUARD_LOG_WARNING;
    default:
        return GUARD_LOG_ERROR;
    }
}

/* Below 0 nothing is logged; a number that is no severity is the nearest. */
static guard_severity severity_within(guard_severity severity)
{
    return severity < GUARD_LOG_CRITICAL ? GUARD_LOG_CRITICAL : severity > GUARD_LOG_INFO ? GUARD_LOG_INFO : severity;
}

void guard_log_put_error(guard_log *log, const char *service, guard_severity severity, const guard_error *error)
{
    if (log == NULL || error == NULL || (int)severity < 0) {
        return;
    }
    severity = severity == GUARD_LOG_BY_ERROR ? severity_of(error) : severity_within(severity);
    const guard_log_event event = {severity, service, error, NULL, error->file, error->line};
    guard_log_put(log, &event);
}

void guard_log_error(guard_log *log, guard_severity severity, const guard_error *error)
{
    guard_log_put_error(log, NULL, severity, error);
}

void guard_impl_log_write(const guard_place *place, guard_log *log, guard_severity severity, const char *format, ...)
{
    if (log == NULL || (int)severity < 0) {
        return;
    }
    int code = errno;
    char message[640];
    guard_error here; /* its file is the last part of the path */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    guard_error_open(&here, GUARD_USER, 0);
    guard_error_place(&here, place);
    severity = severity == GUARD_LOG_BY_ERROR ? GUARD_LOG_NOTICE : severity_within(severity);
    const guard_log_event event = {severity, NULL, NULL, message, here.file, here.line};
    guard_log_put(log, &event);
    errno = code;
}
