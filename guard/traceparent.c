/* SPDX-License-Identifier: MIT */
/* traceparent.c: the header by which requests name the trace that they are part of (W3C Trace Context, section 3.2). */
#include "internal.h"

#include <guard/guard_context.h>

enum { AT_TRACE_ID = 3, AT_PARENT_ID = 36, AT_FLAGS = 53, AT_END = 55 };

/* The value of a digit, 16 where it is none. Upper case is none: section 3.2.2. */
static unsigned digit(char c)
{
    return c >= '0' && c <= '9' ? (unsigned)(c - '0') : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10 : 16;
}

/* `size` - 1 digits, not all of them 0. */
static bool read_id(const char *from, char *to, size_t size)
{
    bool has_bits = false;
    for (size_t i = 0; i < size - 1; i++) {
        unsigned value = digit(from[i]);
        if (value > 15) {
            return false;
        }
        has_bits |= value != 0;
        to[i] = from[i];
    }
    to[size - 1] = '\0';
    return has_bits;
}

/* -1 where it is none. */
static int read_byte(const char *from)
{
    unsigned high = digit(from[0]);
    unsigned low = high > 15 ? 16 : digit(from[1]);
    return low > 15 ? -1 : (int)(high * 16 + low);
}

/* `text` has at least AT_END characters. */
static bool read_all(const char *text, guard_traceparent *trace)
{
    int version = read_byte(text);
    int flags = read_byte(text + AT_FLAGS);
    char after = text[AT_END];
    if (version < 0 || version == 0xff || flags < 0 || (version == 0 ? after != '\0' : after != '\0' && after != '-')) {
        return false;
    }
    trace->flags = (uint8_t)(version == 0 ? flags : flags & 1);
    return text[AT_TRACE_ID - 1] == '-' && text[AT_PARENT_ID - 1] == '-' && text[AT_FLAGS - 1] == '-' &&
           read_id(text + AT_TRACE_ID, trace->trace_id, sizeof trace->trace_id) &&
           read_id(text + AT_PARENT_ID, trace->parent_id, sizeof trace->parent_id);
}

int guard_traceparent_read(const char *traceparent, guard_traceparent *trace)
{
    if (traceparent != NULL && strnlen(traceparent, AT_END) == AT_END && read_all(traceparent, trace)) {
        return 1;
    }
    memset(trace, 0, sizeof *trace);
    return 0;
}

void guard_traceparent_write(const guard_traceparent *trace, char text[GUARD_TRACEPARENT_SIZE])
{
    snprintf(text, GUARD_TRACEPARENT_SIZE, "00-%.32s-%.16s-%02x", trace->trace_id, trace->parent_id, trace->flags);
}

int guard_context_traceparent(guard_scope *scope, const char *traceparent)
{
    guard_traceparent trace;
    char text[GUARD_TRACEPARENT_SIZE];
    if (!guard_traceparent_read(traceparent, &trace)) {
        return 0;
    }
    guard_traceparent_write(&trace, text);
    return guard_context_set(scope, "traceparent", text);
}
