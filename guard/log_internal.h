/* SPDX-License-Identifier: MIT */
/* log_internal.h: what the log's own files share, and the calls by which services and breakers log. */
#ifndef GUARD_LOG_INTERNAL_H
#define GUARD_LOG_INTERNAL_H

#include <stdatomic.h>

#include "internal.h"

#include <guard/guard_log.h>
#include <guard/guard_trace.h>

/* log_json.c: an object that is written into a text of fixed size. */
typedef struct guard_json {
    char *text;
    size_t size; /* what members may use of it */
    size_t length;
    bool is_full; /* the member that is being written does not fit */
    bool is_cut;  /* one did not */
} guard_json;

void guard_json_open(guard_json *to, char *text, size_t size);
/* Members; `key` is NULL in an array. Of a text at most `most` bytes as they are written. What does not fit is left out. */
void guard_json_text(guard_json *to, const char *key, const char *text, size_t most);
void guard_json_number(guard_json *to, const char *key, int64_t number);
bool guard_json_begin(guard_json *to, const char *key, char bracket);
void guard_json_end(guard_json *to, char bracket);
/* Ends the object and the line; its length, the newline included. */
size_t guard_json_close(guard_json *to);
/* Goes on with an object that was closed. */
void guard_json_reopen(guard_json *to, char *text, size_t size, size_t length);

/* log_storm.c: how much is said of an event. */
typedef enum guard_storm_verdict { STORM_FULL, STORM_BRIEF, STORM_COUNTED } guard_storm_verdict;

typedef struct guard_storm_rate {
    int64_t interval; /* nanoseconds for each */
    int64_t depth;    /* as many at once */
} guard_storm_rate;

typedef struct guard_storm_site {
    _Atomic uint64_t key; /* 0: free */
    atomic_bool is_named; /* file and line are there */
    char file[48];
    uint32_t line;
    _Atomic int64_t full_due;
    _Atomic int64_t lines_due;
    _Atomic uint64_t events;
    _Atomic uint64_t untold;
} guard_storm_site;

typedef struct guard_storm {
    guard_storm_rate site_full, site_lines, all_full, all_lines;
    _Atomic int64_t full_due;
    _Atomic int64_t lines_due;
    atomic_bool has_untold; /* of any site, or lines that were lost */
    guard_storm_site sites[GUARD_LOG_SITES];
} guard_storm;

void guard_storm_open(guard_storm *storm, const guard_log_options *options);
/* All counts are 0 again: a forked child's are its own. */
void guard_storm_forget(guard_storm *storm);
guard_storm_site *guard_storm_find(guard_storm *storm, const char *file, uint32_t line);
guard_storm_verdict guard_storm_judge(guard_storm *storm, guard_storm_site *site, int64_t now);

/* log_queue.c: lines from many threads to one. */
typedef struct guard_log_slot {
    _Atomic uint64_t sequence;
    uint32_t length;
    uint32_t queued; /* its length when it was published: what `waiting` has of it */
    uint32_t line;   /* and file: the site */
    guard_severity severity;
    char file[48];
    guard_trace trace; /* count 0: none, or it is in the text */
    char text[GUARD_LOG_LINE + 1];
} guard_log_slot;

typedef struct guard_log_queue {
    guard_log_slot *slots;
    uint64_t mask;
    _Atomic uint64_t tail; /* the next that is claimed */
    _Atomic uint64_t head; /* the next that is written; changed by whoever writes */
} guard_log_queue;

/* NULL where it is full. Between the two nothing may be waited for. */
guard_log_slot *guard_queue_claim(guard_log_queue *queue, uint64_t *at);
void guard_queue_publish(guard_log_slot *slot, uint64_t at);
/* Up to `most` that are published, from the head on. */
unsigned guard_queue_peek(const guard_log_queue *queue, guard_log_slot **slots, unsigned most);
/* The first `count` of them are written. */
void guard_queue_pop(guard_log_queue *queue, unsigned count);
void guard_queue_clear(guard_log_queue *queue);

/* log_sink.c, log_file.c, log_foreign.c: where lines go. */
#define LOG_SINKS 4
#define LOG_BATCH 32U

typedef struct guard_log_sink guard_log_sink;
struct guard_log_sink {
    /* Writes the lines; marks those of which it cannot say that they were written. Only one thread at a time. */
    void (*put)(guard_log_sink *sink, guard_log_slot *const *lines, unsigned count, bool *is_lost);
    guard_log *log;
    _Atomic int descriptor; /* -1: none */
    bool is_regular;        /* a file: it never waits */
    bool is_socket;
    bool is_stuck;  /* it took nothing for sink_ms */
    bool is_torn;   /* a line was written half */
    bool is_dying;  /* the process ends by a signal */
    char *path;     /* of a file; allocated */
    int64_t most;   /* bytes of a file; -1: no bound */
    int64_t size;   /* it has now */
    int64_t looked; /* when its path was looked at */
    guard_log_fn *fn;
    void *arg; /* of a callback; what was loaded for the journal */
};

void guard_sink_open_descriptor(guard_log_sink *sink, int descriptor);
void guard_sink_put_descriptor(guard_log_sink *sink, guard_log_slot *const *lines, unsigned count, bool *is_lost);
void guard_sink_close(guard_log_sink *sink);
/* Takes the next free sink of the log; NULL where misuse was told. It counts once it is given to guard_sink_add. */
guard_log_sink *guard_sink_next(guard_log *log);
void guard_sink_add(guard_log_sink *sink);
/* Before a file's lines are written: opens it anew where that is due. */
void guard_sink_look(guard_log_sink *sink);
/* The next line does not fit: moves the file away, or opens it again. True where it may fit now. */
bool guard_sink_make_room(guard_log_sink *sink);

/* log_writer.c: the thread that writes, and whoever writes in its place. */
struct guard_log {
    char name[32];
    guard_log_options options; /* none of them 0 */
    guard_storm storm;
    guard_log_queue queue;
    _Atomic uint64_t events, full, brief, counted, dropped, written, lost, told;
    _Atomic uint64_t lost_untold;
    _Atomic uint64_t waiting; /* bytes in the queue */
    guard_log_sink sinks[LOG_SINKS];
    guard_log_sink fallback; /* standard error, while there are no others */
    _Atomic unsigned sink_count;
    pthread_t thread;
    atomic_bool has_thread;
    atomic_bool is_writing; /* somebody pops */
    atomic_bool is_asleep;
    atomic_bool is_urgent; /* what waits is to be written now */
    atomic_bool is_stopping;
    atomic_bool is_reopening;
    _Atomic int wake; /* eventfd; -1: none */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* flushed, has_ended */
    _Atomic uint32_t flush_asked;
    uint32_t flush_done; /* under lock */
    bool has_ended;      /* under lock */
    guard_collector collector;
    guard_log_slot own; /* a line of the log's own; whoever writes */
};

/* Makes `lock` and `changed`, of a new log or of one that a fork has copied. */
void guard_log_make_lock(guard_log *log);
/* Starts the thread where there is none; 0 or errno. */
int guard_log_start(guard_log *log);
/* A call of a service begins: a forked child starts its thread here. */
static inline void guard_log_attend(guard_log *log)
{
    if (GUARD_IMPL_UNLIKELY(!atomic_load_explicit(&log->has_thread, memory_order_relaxed))) {
        guard_log_start(log);
    }
}
/* A line is published, or something was counted. Async-signal-safe. */
void guard_log_wake(guard_log *log);
/* Writes what is queued, and tells what was counted. By one thread at a time: `is_writing` is taken before. */
void guard_log_drain(guard_log *log);
void guard_log_tell(guard_log *log, int64_t since);
/* Of those that are open: for fork, exit and a fatal signal. False: there are 16. */
bool guard_log_enlist(guard_log *log);
void guard_log_delist(guard_log *log);
/* Stops the thread; false where it does not end in time: then it and the log are left as they are. */
bool guard_log_stop(guard_log *log);

/* log_figures.c: puts the figures on the page of metrics. */
void guard_log_collect(guard_metrics_page *page, void *arg);

/* log_line.c: one line. `service` NULL: the log's name. */
typedef struct guard_log_event {
    guard_severity severity;
    const char *service;
    const guard_error *error; /* NULL: a line of text */
    const char *message;
    const char *file; /* of at most 47 bytes, with or without its end */
    uint32_t line;
} guard_log_event;

size_t guard_log_format(const guard_log *log, const guard_log_event *event, bool is_full,
                        char text[GUARD_LOG_LINE + 1]);
/* Names the frames of its stack into the line: by whoever writes, since that reads files and allocates. */
void guard_log_format_stack(guard_log_slot *slot);
size_t guard_log_format_told(const guard_log *log, const char *message, const char *file, uint32_t line, uint64_t more,
                             char text[GUARD_LOG_LINE + 1]);
/* What becomes of an event. */
void guard_log_put(guard_log *log, const guard_log_event *event);
/* guard_log_error in the name of a service. */
void guard_log_put_error(guard_log *log, const char *service, guard_severity severity, const guard_error *error);

#endif
