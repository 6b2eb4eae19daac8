/* SPDX-License-Identifier: MIT */
/* trace.c: one text for each thread. A test that writes more than fits fails. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "trace.h"

static __thread char trace[4096];
static __thread size_t trace_length;

void trace_clear(void)
{
    trace_length = 0;
    trace[0] = '\0';
}

void trace_add(const char *format, ...)
{
    char entry[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(entry, sizeof entry, format, arguments);
    va_end(arguments);
    int added = snprintf(trace + trace_length, sizeof trace - trace_length, "%s%s", trace_length > 0 ? ", " : "",
                         entry);
    trace_length += (size_t)added;
    ck_assert_uint_lt(trace_length, sizeof trace);
}

const char *trace_text(void)
{
    return trace;
}

void trace_run(void *name)
{
    trace_add("run %s", (const char *)name);
}

void trace_run_copy(void *copy)
{
    const char *name;
    memcpy(&name, copy, sizeof name);
    trace_add("run %s", name);
}

void trace_fail(void *name)
{
    trace_add("fail %s", (const char *)name);
    guard_panic(TRACE_FAILED, "%s", (const char *)name);
}

void trace_hold(const char *name)
{
    GUARD_AUTO(s);
    guard_defer(s, trace_fail, (void *)(uintptr_t)name);
}

static void trace_release(void *name)
{
    trace_add("release %s", (const char *)name);
}

static void trace_dismiss(void *name)
{
    trace_add("dismiss %s", (const char *)name);
}

const guard_kind trace_kind = {
    .name = "trace", .release = trace_release, .flags = GUARD_KIND_HEAP, .dismiss = trace_dismiss};
const guard_kind trace_failing_kind = {.name = "failing trace", .release = trace_fail, .flags = GUARD_KIND_HEAP};
const guard_kind trace_fixed_kind = {
    .name = "fixed trace", .release = trace_release, .flags = GUARD_KIND_HEAP | GUARD_KIND_FIXED};

void trace_see(guard_recovery *recovery, void *name)
{
    const guard_error *error = guard_recovery_error(recovery);
    trace_add("%s sees %s", (const char *)name, error != NULL ? error->message : "nothing");
}

void trace_recover(guard_recovery *recovery, void *name)
{
    const guard_error *error = guard_recovery_error(recovery);
    if (guard_recover(recovery)) {
        trace_add("recover %s from %s", (const char *)name, error->message);
    } else {
        trace_add("%s sees nothing", (const char *)name);
    }
}
