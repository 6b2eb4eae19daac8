/* SPDX-License-Identifier: MIT */
/*
 * log_foreign.c: lines to the system's own logs: syslog(3) and the systemd journal.
 *
 * libsystemd is loaded where a program asks for the journal: who does not, neither links nor loads it.
 */
#include <errno.h>
#include <sys/uio.h>
#include <syslog.h>

#include "log_internal.h"

static void put_syslog(guard_log_sink *sink, guard_log_slot *const *lines, unsigned count, bool *is_lost)
{
    (void)sink;
    (void)is_lost;
    for (unsigned i = 0; i < count; i++) {
        syslog((int)lines[i]->severity, "%.*s", (int)lines[i]->length - 1, lines[i]->text);
    }
}

void guard_log_to_syslog(guard_log *log)
{
    guard_log_sink *sink = guard_sink_next(log);
    if (sink != NULL) {
        sink->put = put_syslog;
        guard_sink_add(sink);
    }
}

/* ------------------------------------------------------------------------------------------------ journal -- */

#if __has_include(<systemd/sd-journal.h>)
#include <dlfcn.h>
#include <systemd/sd-journal.h>

typedef int journal_fn(const struct iovec *fields, int count); /* sd_journal_sendv(3) */

/* "NAME=text"; what follows a newline the journal would take for another field. */
static struct iovec field_text(char *to, size_t size, const char *name, const char *text)
{
    int length = snprintf(to, size, "%s=%.*s", name, (int)strcspn(text, "\n"), text);
    return (struct iovec){to, (size_t)length < size ? (size_t)length : size - 1};
}

static struct iovec field_number(char *to, size_t size, const char *name, unsigned number)
{
    return (struct iovec){to, (size_t)snprintf(to, size, "%s=%u", name, number)};
}

/* 0 or -errno. */
static int journal_send(const guard_log_sink *sink, const guard_log_slot *line)
{
    char message[sizeof "MESSAGE=" + GUARD_LOG_LINE];
    char priority[32];
    char identifier[64];
    char file[64];
    char number[32];
    const struct iovec parts[] = {field_text(message, sizeof message, "MESSAGE", line->text), /* without its newline */
                                  field_number(priority, sizeof priority, "PRIORITY", (unsigned)line->severity),
                                  field_text(identifier, sizeof identifier, "SYSLOG_IDENTIFIER", sink->log->name),
                                  field_text(file, sizeof file, "CODE_FILE", line->file),
                                  field_number(number, sizeof number, "CODE_LINE", line->line)};
    journal_fn *send;
    memcpy(&send, &sink->arg, sizeof send); /* ISO C has no other way from a void * to a function */
    return send(parts, sizeof parts / sizeof *parts);
}

static void put_journal(guard_log_sink *sink, guard_log_slot *const *lines, unsigned count, bool *is_lost)
{
    for (unsigned i = 0; i < count; i++) {
        is_lost[i] |= journal_send(sink, lines[i]) != 0;
    }
}

/* The versioned name: that of the library which this was configured with. */
static void *journal_load(void)
{
    void *library = dlopen("libsystemd.so.0", RTLD_NOW | RTLD_LOCAL);
    return library != NULL ? dlsym(library, "sd_journal_sendv") : NULL;
}
#else
static void put_journal(guard_log_sink *sink, guard_log_slot *const *lines, unsigned count, bool *is_lost)
{
    (void)sink;
    (void)lines;
    (void)count;
    (void)is_lost;
}

static void *journal_load(void)
{
    return NULL;
}
#endif

void guard_log_to_journal(guard_log *log)
{
    guard_log_sink *sink = guard_sink_next(log);
    if (sink == NULL) {
        return;
    }
    sink->arg = journal_load();
    if (sink->arg == NULL) {
        errno = ENOSYS;
        guard_panic_os("log %s: the journal needs libsystemd", log->name);
    }
    sink->put = put_journal;
    guard_sink_add(sink);
}
