/* SPDX-License-Identifier: MIT */
/*
 * trace.h: a resource that writes down what happens to it, so that a test compares the order of everything with one text, as the fake
 * resource of PostgreSQL's test_resowner does.
 *
 *     guard_defer(s, trace_run, "file");
 *     guard_defer_kind(s, &trace_kind, "lock");
 *     ...
 *     trace_expect("release lock, run file");
 *
 * The names are constant texts. Each thread has a trace of its own.
 */
#ifndef TESTS_TRACE_H
#define TESTS_TRACE_H

#include <check.h>

#include <guard/guard.h>

/* Empties the trace. */
void trace_clear(void);

/* Adds an entry. */
void trace_add(const char *format, ...) GUARD_PRINTF(1, 2);

/* The entries, with ", " between. */
const char *trace_text(void);

/* Compares them and empties the trace. */
#define trace_expect(text)                    \
    do {                                      \
        ck_assert_str_eq(trace_text(), text); \
        trace_clear();                        \
    } while (0)

/* A deferred function: adds "run NAME". */
void trace_run(void *name);

/* The same for guard_defer_copy: the copy is of a pointer to the name. */
void trace_run_copy(void *copy);

/* A deferred function that adds "fail NAME" and panics with code TRACE_FAILED and the name as the message. */
void trace_fail(void *name);
#define TRACE_FAILED 77

/* Leaves such a panic held: it is that of a scope that is closed here. */
void trace_hold(const char *name);

/* Adds "release NAME", "dismiss NAME". */
extern const guard_kind trace_kind;

/* Adds "fail NAME" and panics like trace_fail. */
extern const guard_kind trace_failing_kind;

/* Adds "release NAME"; guard_move refuses it. */
extern const guard_kind trace_fixed_kind;

/* A recovering defer: adds "recover NAME from MESSAGE" and recovers, or "NAME sees nothing". */
void trace_recover(guard_recovery *recovery, void *name);

/* Adds "NAME sees MESSAGE" and does not recover, or "NAME sees nothing". */
void trace_see(guard_recovery *recovery, void *name);

#endif
