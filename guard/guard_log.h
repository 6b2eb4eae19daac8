/* SPDX-License-Identifier: MIT */
/*
 * guard_log.h: the panic log: one JSON object a line, written by a thread of its own, bounded in everything.
 *
 * PURPOSE
 *
 *   A service says of each panic what happened, where, to whom and what was taken back, and a thousand panics in a second neither fill the
 *   disk nor hold anybody up: the log says less of each, in the end only how many there were, and all of it again when they have ceased.
 *
 * CALLING SEQUENCE
 *
 *     guard_log *log = guard_log_open(s, "ledger", NULL);
 *     guard_log_to_file(log, "/var/log/ledger.log", 0);
 *     guard_service_options options = {.log = log};        // guard_service_call and breakers log by themselves
 *     ...
 *     guard_log_write(log, GUARD_LOG_NOTICE, "listening on port %d", port);
 *     guard_log_error(log, GUARD_LOG_WARNING, &error);      // what a border of one's own has returned
 *
 *   Where a log is given no sink, its lines go to standard error. guard/SERVICE.md has a table of the fields of a line.
 *
 * WHO WAITS
 *
 *   Whoever logs formats its line into a queue of fixed size, without a lock and without allocating, and goes on; where the queue is full
 *   the line is counted and dropped. A thread of the log's writes. A slow pipe or a full disk holds up that thread only; what it could not
 *   write is counted, and told in a line when it can write again.
 *
 * STORMS
 *
 *   A site is a place in the source that panics, or writes lines. Each has two token buckets, and so has the log as a whole: one for lines, one for
 *   full records. A panic for which both full ones have a token is a full record; where only the lines' have one, it is a short line
 *   (no chain, stack or undone); else it is counted, and a line each report_ms says "412 more of transfer.c:57 in 5 s". The buckets fill by
 *   themselves. 127 sites are told apart, those that come later are one, "others". Every count is exact, whatever is dropped.
 *
 * MODES
 *
 *   GUARD_LOG_IMMEDIATE: each line is written as soon as the log's thread is awake. GUARD_LOG_BATCHED: when flush_bytes are waiting, or a
 *   line for flush_ms. GUARD_LOG_ON_PANIC: when a line of severity error or worse comes, or half of the queue is full. All of them: when the log
 *   is closed, at guard_log_flush, at exit(3), when nobody recovers a panic, and at a fatal signal where guard_fatal_signals was called; a
 *   handler of the program's calls guard_log_flush_in_signal.
 *
 * PROCESSES
 *
 *   A forked child has the sinks, an empty queue and figures that begin at 0: what its parent had not written yet is its parent's. It
 *   starts a thread of its own when it enters a guard_service_call or a flush of this log; until then its lines wait. SIGKILL and _exit(2)
 *   lose what waits.
 *
 * THREADS
 *
 *   Any number of threads may log at a time. Sinks are added before they do. The log must outlive what uses it. At most
 *   16 logs are open at a time.
 */
#ifndef GUARD_LOG_H
#define GUARD_LOG_H

#include <guard/guard.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The words of syslog(3), whose numbers they are. Zero is the default where an option takes one: what the kind of error says. */
typedef enum guard_severity {
    GUARD_LOG_BY_ERROR =
        0, /* GUARD_FAULT and GUARD_MISUSE are critical, GUARD_CANCELLED, GUARD_TIMEOUT and GUARD_REFUSED warnings, else errors */
    GUARD_LOG_CRITICAL = 2,
    GUARD_LOG_ERROR = 3,
    GUARD_LOG_WARNING = 4,
    GUARD_LOG_NOTICE = 5,
    GUARD_LOG_INFO = 6,
    GUARD_LOG_NOTHING = -1 /* it is not logged, nor counted */
} guard_severity;

/* Says how severe an error is. Any thread; must neither panic nor wait. */
typedef guard_severity guard_severity_fn(const guard_error *error);

typedef enum guard_log_mode { GUARD_LOG_IMMEDIATE = 0, GUARD_LOG_BATCHED = 1, GUARD_LOG_ON_PANIC = 2 } guard_log_mode;

#define GUARD_LOG_LINE \
    4096 /* bytes of a line at most, the newline included: PIPE_BUF, so that lines in a pipe never mix */

typedef struct guard_log_options {
    guard_log_mode mode;
    uint32_t flush_bytes; /* batched; 0: 1,024 */
    int32_t flush_ms;     /* batched; 0: 5,000 */
    uint32_t queue_lines; /* of GUARD_LOG_LINE bytes, rounded up to a power of two, at most 65,536; 0: 256 */
    uint32_t
        site_full; /* of a site, full records in a second; 0: 1. Of each of these four at least 5 may come at once */
    uint32_t site_lines; /* of a site, lines in a second; 0: 10 */
    uint32_t all_full;   /* of the log, full records in a second; 0: 20 */
    uint32_t all_lines;  /* of the log, lines in a second; 0: 100 */
    int32_t report_ms;   /* how often the log tells what it only counted, at least 10; 0: 5,000 */
    int32_t sink_ms;     /* how long a sink may take nothing before it is passed over until it does; 0: 1,000 */
    int32_t close_ms;    /* how long the close, and exit(3), wait for what is queued; 0: 2,000 */
    uint64_t reserved[4];
} guard_log_options;

typedef struct guard_log guard_log;

/*
 * Opens a log on `scope`, whose end closes it, and starts its thread. `name` is the "service" of its lines, copied, at most 31 bytes; options may be
 * NULL. Panics with GUARD_MEMORY, with GUARD_OS where there is no thread or descriptor to be had, and with GUARD_MISUSE on options out
 * of their range and a 17th log; NULL only where the misuse handler returned.
 */
#define guard_log_open(scope, name, ...) guard_log_open_at((scope), (name), (__VA_ARGS__), GUARD_HERE)
GUARD_API guard_log *guard_log_open_at(guard_scope *scope, const char *name, const guard_log_options *options,
                                       const guard_place *place);

/* -------------------------------------------------------------------------------------------------- sinks -- */

/*
 * Each adds a sink, up to four; every line goes to all of them. They panic with GUARD_OS. Misuse: a fifth one.
 *
 * A descriptor: the log keeps a duplicate. A pipe or a terminal that nobody reads is passed over after sink_ms, and a pipe without a reader
 * raises no SIGPIPE.
 */
GUARD_API void guard_log_to_descriptor(guard_log *log, int descriptor);

/*
 * Appends to a file, made with mode 0640. Where it has been moved or removed (logrotate), it is opened anew at its path; that is looked at
 * before each batch of lines, at most once in a second, and at once after guard_log_reopen. Before a line that would make it longer than `bytes_most`
 * (0: 64 MiB; -1: no bound, for logrotate) it is moved to PATH.1, in the place of an older one, so that there are never more than twice as many
 * bytes. Where it cannot be moved, lines are counted as lost until it can. A line that the disk took half is ended by a newline before the next.
 */
GUARD_API void guard_log_to_file(guard_log *log, const char *path, int64_t bytes_most);

/* syslog(3), with the identity and facility of the program's openlog(3). It cannot say that it lost a line. */
GUARD_API void guard_log_to_syslog(guard_log *log);

/*
 * The systemd journal: MESSAGE is the line, with PRIORITY, SYSLOG_IDENTIFIER, CODE_FILE and CODE_LINE. libsystemd is loaded here, and not
 * linked; where it was not there when the library was configured, or is not there now, panics with GUARD_OS, ENOSYS.
 */
GUARD_API void guard_log_to_journal(guard_log *log);

/* Calls fn for each line, which ends with a newline that `length` counts and a NUL that it does not, in the log's thread. A panic of fn
 * is contained, and the line counts as lost. fn must not log. */
typedef void guard_log_fn(const char *line, size_t length, void *arg);
GUARD_API void guard_log_to_callback(guard_log *log, guard_log_fn *fn, void *arg);

/* Makes the log open its files anew. Any thread; async-signal-safe, for a handler of SIGHUP. */
GUARD_API void guard_log_reopen(guard_log *log);

/* -------------------------------------------------------------------------------------------------- lines -- */

/*
 * Logs an error, with its place as the site, and this thread's context. Any thread, also in deferred functions; never panics, waits or
 * allocates. `log` NULL, GUARD_LOG_NOTHING: nothing.
 */
GUARD_API void guard_log_error(guard_log *log, guard_severity severity, const guard_error *error);

/* Logs a line, as printf, with the place of the call as its site. As guard_log_error. GUARD_LOG_BY_ERROR is GUARD_LOG_NOTICE here. */
#define guard_log_write(log, severity, ...) guard_impl_log_write(GUARD_HERE, (log), (severity), __VA_ARGS__)
GUARD_API void guard_impl_log_write(const guard_place *place, guard_log *log, guard_severity severity,
                                    const char *format, ...) GUARD_PRINTF(4, 5);

/*
 * Has what is queued written, and what was only counted told, and waits for it, at most `ms` (-1: for ever). Returns 1, or 0 where that was not
 * enough. Any thread but the log's own, which is a callback's: there it returns 0.
 */
GUARD_API int guard_log_flush(guard_log *log, int64_t ms);

/*
 * Writes what waits in every log's queue to its descriptors and files by write(2), for the handler of a fatal signal: it is
 * async-signal-safe, and done with each log within half a second. Where the log's thread was writing, its lines may be there twice.
 * Syslog, the journal and callbacks get nothing. The process is to end after it.
 */
GUARD_API void guard_log_flush_in_signal(void);

/* ------------------------------------------------------------------------------------------------ figures -- */

/*
 * Of what was logged since the log was opened. events = full + brief + counted. full + brief = dropped + waiting + written + lost.
 */
typedef struct guard_log_figures {
    uint64_t events;  /* panics and lines that were to be logged */
    uint64_t full;    /* full records */
    uint64_t brief;   /* short lines */
    uint64_t counted; /* in a storm, neither */
    uint64_t dropped; /* the queue was full */
    uint64_t waiting; /* in the queue now */
    uint64_t written; /* taken by every sink */
    uint64_t lost;    /* that a sink did not take */
    uint64_t told;    /* lines of the log's own, of what was counted, dropped and lost, that were written */
    uint64_t reserved[3];
} guard_log_figures;

/* Fills *figures. Exact once nobody logs and the queue is empty; before that, each by itself. Any thread. */
GUARD_API void guard_log_read(const guard_log *log, guard_log_figures *figures);

/* Of one site, the first 0; the last is "others". */
typedef struct guard_log_site {
    char file[48];
    uint32_t line;
    uint32_t reserved;
    uint64_t events;
    uint64_t untold; /* counted or dropped, and not told yet */
} guard_log_site;

#define GUARD_LOG_SITES 128

/* Fills *site with the site of this number, 0 to GUARD_LOG_SITES - 1. Returns 1, or 0 where there is none: others may still follow. Any thread. */
GUARD_API int guard_log_read_site(const guard_log *log, unsigned number, guard_log_site *site);

#ifdef __cplusplus
}
#endif

#endif
