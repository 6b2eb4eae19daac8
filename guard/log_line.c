/* SPDX-License-Identifier: MIT */
/*
 * log_line.c: a line of the log, whose fields SERVICE.md describes. The most important come first: what does not fit is left out from the end,
 * and then the line says "cut". Nothing here allocates, locks or waits, for a thread that panicked runs it, and what tells the counts also
 * the handler of a fatal signal.
 */
#include <time.h>

#include "log_internal.h"

/* Bytes of a text at most, as they are written. */
enum { MOST_NAME = 96, MOST_MESSAGE = 640, MOST_CAUSE = 128, MOST_NOTE = 192, MOST_VALUE = 192 };

/* ------------------------------------------------------------------------------------------------- fields -- */

static void put_digits(char *to, int64_t number, int count)
{
    for (int i = count; i-- > 0; number /= 10) {
        to[i] = (char)('0' + number % 10);
    }
}

/*
 * RFC 3339, in UTC, with milliseconds. Not by gmtime_r(3), which takes a lock and at its first call reads the zone's file into allocated
 * memory. The date of a day number: the era of 400 years that begins on March 1st, and the day in it.
 */
static void put_time(guard_json *to)
{
    struct timespec now;
    char text[] = "0000-00-00T00:00:00.000Z";
    clock_gettime(CLOCK_REALTIME, &now);
    int64_t days = now.tv_sec / 86400 + 719468;
    int64_t seconds = now.tv_sec % 86400;
    int64_t era = days / 146097;
    int64_t day = days % 146097;
    int64_t year = (day - day / 1460 + day / 36524 - day / 146096) / 365;
    int64_t of_year = day - (365 * year + year / 4 - year / 100);
    int64_t month = (5 * of_year + 2) / 153;
    put_digits(text, era * 400 + year + (month >= 10), 4);
    put_digits(text + 5, month < 10 ? month + 3 : month - 9, 2);
    put_digits(text + 8, of_year - (153 * month + 2) / 5 + 1, 2);
    put_digits(text + 11, seconds / 3600, 2);
    put_digits(text + 14, seconds / 60 % 60, 2);
    put_digits(text + 17, seconds % 60, 2);
    put_digits(text + 20, now.tv_nsec / 1000000, 3);
    guard_json_text(to, "time", text, sizeof text);
}

static const char *severity_name(guard_severity severity)
{
    static const char *const names[] = {"critical", "error", "warning", "notice", "info"};
    return names[severity - GUARD_LOG_CRITICAL];
}

static void put_head(guard_json *to, const guard_log *log, const char *service, guard_severity severity)
{
    put_time(to);
    guard_json_text(to, "service", service != NULL ? service : log->name, MOST_NAME);
    guard_json_text(to, "severity", severity_name(severity), MOST_NAME);
}

static void put_text_known(guard_json *to, const char *key, const char *text, size_t most)
{
    if (text[0] != '\0') {
        guard_json_text(to, key, text, most);
    }
}

static void put_place(guard_json *to, const char *file, uint32_t line)
{
    if (file[0] != '\0') {
        guard_json_text(to, "file", file, MOST_NAME);
        guard_json_number(to, "line", line);
    }
}

static void put_kind(guard_json *to, int domain, int code, const char *sqlstate)
{
    guard_json_text(to, "domain", guard_domain_name(domain), MOST_NAME);
    if (domain >= GUARD_DOMAIN_FIRST_FREE) {
        guard_json_number(to, "domain_number", domain);
    }
    guard_json_number(to, "code", code);
    put_text_known(to, "sqlstate", sqlstate, MOST_NAME);
}

static void put_chain(guard_json *to, const guard_error *error)
{
    static const char *const relations[] = {"cause", "cause", "replaced", "recovered", "attached"};
    unsigned count = error->cause_count <= GUARD_CAUSES ? error->cause_count : GUARD_CAUSES;
    if (count == 0 || !guard_json_begin(to, "chain", '[')) {
        return;
    }
    for (unsigned i = 0; i < count; i++) {
        const guard_cause *cause = &error->causes[i];
        if (!guard_json_begin(to, NULL, '{')) {
            break;
        }
        guard_json_text(to, "relation", relations[cause->relation <= GUARD_ATTACHED ? cause->relation : 0], MOST_NAME);
        put_kind(to, cause->domain, cause->code, cause->sqlstate);
        guard_json_text(to, "message", cause->message, MOST_CAUSE);
        put_place(to, cause->file, cause->line);
        guard_json_end(to, '}');
    }
    guard_json_end(to, ']');
    if (error->cause_more > 0) {
        guard_json_number(to, "chain_more", error->cause_more);
    }
}

static void put_context(guard_json *to, const guard_error *error)
{
    const guard_context_value *list[GUARD_CONTEXT_VALUES];
    unsigned count = guard_context_list(error, list);
    const char *trace = NULL;
    for (unsigned i = 0; i < count; i++) {
        if (strcmp(list[i]->key, "traceparent") == 0) {
            trace = list[i]->value;
            guard_json_text(to, "traceparent", trace, MOST_NAME);
        }
    }
    if (count == (trace != NULL) || !guard_json_begin(to, "context", '{')) {
        return;
    }
    for (unsigned i = 0; i < count; i++) {
        if (list[i]->value != trace) {
            guard_json_text(to, list[i]->key, list[i]->value, MOST_VALUE);
        }
    }
    guard_json_end(to, '}');
}

static void put_undone(guard_json *to)
{
    const guard_context_state *state = guard_stack_own != NULL ? guard_stack_own->context : NULL;
    if (state == NULL || state->undone_count == state->undone_base || state->undone_base >= CONTEXT_UNDONE ||
        !guard_json_begin(to, "undone", '[')) {
        return;
    }
    for (uint32_t i = state->undone_base; i < state->undone_count && i < CONTEXT_UNDONE; i++) {
        guard_json_text(to, NULL, state->undone[i], MOST_NOTE);
    }
    guard_json_end(to, ']');
    if (state->undone_count > CONTEXT_UNDONE) {
        guard_json_number(to, "undone_more", state->undone_count - CONTEXT_UNDONE);
    }
}

/* -------------------------------------------------------------------------------------------------- lines -- */

size_t guard_log_format(const guard_log *log, const guard_log_event *event, bool is_full, char text[GUARD_LOG_LINE + 1])
{
    guard_json to;
    const guard_error *error = event->error;
    guard_json_open(&to, text, GUARD_LOG_LINE + 1);
    put_head(&to, log, event->service, event->severity);
    if (error != NULL) {
        put_kind(&to, error->domain, error->code, error->sqlstate);
    }
    guard_json_text(&to, "message", event->message, MOST_MESSAGE);
    put_place(&to, event->file, event->line);
    if (error != NULL) {
        put_text_known(&to, "function", error->function, MOST_NAME);
    }
    if (is_full && error != NULL) {
        put_undone(&to);
    }
    put_context(&to, error);
    if (is_full && error != NULL) {
        put_chain(&to, error);
    }
    return guard_json_close(&to);
}

/*
 * "stack", the innermost frame first. It is put together apart, and takes the place of the line by one copy: whoever dies meanwhile writes one of
 * the two.
 */
void guard_log_format_stack(guard_log_slot *slot)
{
    char text[GUARD_LOG_LINE + 1];
    char name[192];
    guard_json to;
    guard_frame frame;
    memcpy(text, slot->text, slot->length);
    guard_json_reopen(&to, text, sizeof text, slot->length);
    if (slot->trace.count > 0 && guard_json_begin(&to, "stack", '[')) {
        for (uint32_t i = 0; i < slot->trace.count && !to.is_cut; i++) {
            guard_frame_find(slot->trace.frames[i], &frame);
            guard_frame_format(&frame, name, sizeof name);
            guard_json_text(&to, NULL, name, MOST_NOTE);
        }
        guard_json_end(&to, ']');
        size_t length = guard_json_close(&to);
        memcpy(slot->text, text, length + 1);
        slot->length = (uint32_t)length;
    }
    slot->trace.count = 0;
}

size_t guard_log_format_told(const guard_log *log, const char *message, const char *file, uint32_t line, uint64_t more,
                             char text[GUARD_LOG_LINE + 1])
{
    guard_json to;
    guard_json_open(&to, text, GUARD_LOG_LINE + 1);
    put_head(&to, log, NULL, GUARD_LOG_WARNING);
    guard_json_text(&to, "message", message, MOST_MESSAGE);
    put_place(&to, file, line);
    guard_json_number(&to, "more", (int64_t)more);
    return guard_json_close(&to);
}
