/* SPDX-License-Identifier: MIT */
/*
 * trace.c: the stack on which a panic was raised, as return addresses.
 *
 *     raised --trace due--> in the frame that raises it --caught, or held--> kept: one of the thread's last GUARD_TRACE_KEPT
 *                              \--uncaught--> read by the report, from there        \--raised again--> in that frame again
 *
 * Invariants: the error of a traced panic carries the trace's number, which is never 0; the number alone finds the trace, in the frames of
 * the running panics and among those that the thread keeps. A running panic's trace lies in its own frame, so that what its deferred
 * functions raise and catch cannot push it out. Nothing here allocates but guard_trace_capture.
 *
 * The unwinder is libgcc's, which is linked for leave.c anyway, walks without allocating, and needs no warming up. libunwind's
 * unw_backtrace is several times as fast (it remembers how to leave each function) and is used once it is loaded. It is loaded by dlopen with
 * RTLD_LOCAL, not linked: it exports the whole of _Unwind_*, and a program in whose search order it came before libgcc_s would unwind
 * pthread_cancel and C++ exceptions half by the one and half by the other.
 */
#include <dlfcn.h>
#include <unwind.h>

#include "internal.h"

#include <guard/guard_trace.h>

/*
 * ThreadSanitizer's part in a thread ends before libunwind's, whose mutex it intercepts: with both, a thread dies as it ends (gcc 12,
 * libunwind 1.6).
 */
#if IS_THREAD_SANITIZED
#undef GUARD_HAVE_LIBUNWIND
#endif

#define NUMBERS 1024U /* that a thread takes at a time */

int guard_trace_every;
guard_walk_fn *guard_trace_walk;
static uint32_t trace_numbers;

/* ----------------------------------------------------------------------------------------------- walking -- */

typedef struct walking {
    guard_walked *walked;
    uint32_t count;
} walking;

static _Unwind_Reason_Code walk_one(struct _Unwind_Context *context, void *memory)
{
    walking *to = memory;
    uintptr_t address = _Unwind_GetIP(context);
    if (address == 0) {
        return _URC_END_OF_STACK; /* below main and a thread's first function */
    }
    to->walked->all[to->count++] = (const void *)address;
    return to->count < GUARD_WALK_MOST ? _URC_NO_REASON : _URC_END_OF_STACK;
}

/* Without the empty ones at its end; where there is nothing, libgcc's. */
static __attribute__((noinline)) uint32_t walked_mend(guard_walked *walked, int count)
{
    walking walk = {walked, count > 0 ? (uint32_t)count : 0};
    while (walk.count > 0 && walked->all[walk.count - 1] == NULL) {
        walk.count--;
    }
    if (walk.count == 0) {
        _Unwind_Backtrace(walk_one, &walk);
    }
    return walk.count;
}

/* Moves what lies outwards of the frame that called from `from`, that one included, to the second place; everything where it is not found. */
static __attribute__((noinline)) uint32_t walked_move(guard_walked *walked, uint32_t count, const void *from)
{
    uint32_t first = 0;
    while (first < count && walked->all[first] != from) {
        first++;
    }
    first = first == count ? 0 : first;
    uint32_t left = count - first;
    memmove(walked->all + 1, walked->all + first, (left < GUARD_WALK_MOST ? left : left - 1) * sizeof *walked->all);
    return left + 1;
}

/* Makes a trace of the first `count` frames where they lie. Mostly the raiser's is the second. `count` is what guard_trace_walk returned, or 0. */
static inline __attribute__((always_inline)) void walked_take(guard_walked *walked, int count, const void *from)
{
    uint32_t found = (uint32_t)count;
    if (GUARD_IMPL_UNLIKELY(count <= 0 || walked->all[count - 1] == NULL)) {
        found = walked_mend(walked, count);
    }
    if (GUARD_IMPL_UNLIKELY(found < 2 || walked->all[1] != from)) {
        found = walked_move(walked, found, from);
    }
    found--;
    bool is_cut = found > GUARD_TRACE_FRAMES;
    walked->trace.count = is_cut ? GUARD_TRACE_FRAMES : found;
    walked->trace.is_cut = is_cut;
}

/* By pairs, not by memcpy: its wide loads wait for the frames that were just stored one by one. */
static void trace_copy(guard_trace *to, const guard_trace *from)
{
    uint32_t count = from->count <= GUARD_TRACE_FRAMES ? from->count : GUARD_TRACE_FRAMES;
    uint32_t i = 0;
    to->count = count;
    to->is_cut = from->is_cut;
    for (; i + 1 < count; i += 2) {
        memcpy(&to->frames[i], &from->frames[i], 2 * sizeof *to->frames);
    }
    if (i < count) {
        to->frames[i] = from->frames[i];
    }
}

unsigned guard_trace_here(guard_trace *trace)
{
    guard_walked walked;
    walked_take(&walked, guard_trace_frames(&walked), __builtin_return_address(0));
    trace_copy(trace, &walked.trace);
    return trace->count;
}

/* ---------------------------------------------------------------------------------------------- capturing -- */

static void walk_load(void)
{
#ifdef GUARD_HAVE_LIBUNWIND
    if (__atomic_load_n(&guard_trace_walk, __ATOMIC_ACQUIRE) == NULL) {
        void *library = dlopen(GUARD_HAVE_LIBUNWIND, RTLD_NOW | RTLD_LOCAL);
        guard_walk_fn *fast = library != NULL ? (guard_walk_fn *)(uintptr_t)dlsym(library, "unw_backtrace") : NULL;
        if (fast != NULL) {
            void *frames[4];
            (void)fast(frames, 4); /* its first call sets itself up */
            __atomic_store_n(&guard_trace_walk, fast, __ATOMIC_RELEASE);
        }
    }
#endif
}

int guard_trace_capture(int every)
{
    if (every > 0) {
        walk_load();
    }
    return __atomic_exchange_n(&guard_trace_every, every, __ATOMIC_SEQ_CST);
}

static bool trace_is_due(guard_thread *thread, const guard_recovery *panic)
{
    int every = __atomic_load_n(&guard_trace_every, __ATOMIC_RELAXED);
    if (every <= 0 || panic->border == NULL) {
        return every >= 0 && panic->border == NULL;
    }
    if (++thread->trace_turn < (uint32_t)every) {
        return false;
    }
    thread->trace_turn = 0;
    return true;
}

/* Unlike every other thread's; the same again after 2^32 traces, of which a thread keeps the last few. */
static uint32_t trace_number(guard_thread *thread)
{
    if (thread->trace_number % NUMBERS == 0) {
        thread->trace_number = __atomic_fetch_add(&trace_numbers, NUMBERS, __ATOMIC_RELAXED) + 1;
        return thread->trace_number;
    }
    return ++thread->trace_number;
}

/* An error that was raised before has the trace that it had then. */
static __attribute__((noinline)) bool trace_begin_again(guard_recovery *panic, guard_trace *trace)
{
    if (guard_trace_of(panic->error, trace) > 0) {
        panic->trace = trace;
        return false;
    }
    panic->error->trace = 0;
    return trace_is_due(guard_thread_own, panic);
}

bool guard_trace_begin(guard_recovery *panic, guard_trace *trace)
{
    if (GUARD_IMPL_UNLIKELY(panic->error->trace != 0)) {
        return trace_begin_again(panic, trace);
    }
    return trace_is_due(guard_thread_own, panic);
}

void guard_trace_end(guard_recovery *panic, guard_walked *walked, int count, const void *from)
{
    walked_take(walked, count, from);
    panic->error->trace = trace_number(guard_thread_own);
    panic->trace = &walked->trace;
}

/* ----------------------------------------------------------------------------------------------- keeping -- */

void guard_trace_store(const guard_trace *trace, uint32_t number)
{
    guard_thread *thread = guard_thread_own;
    guard_kept_trace *kept = &thread->traces[thread->trace_next];
    thread->trace_next = (thread->trace_next + 1) % GUARD_TRACE_KEPT;
    kept->number = number;
    trace_copy(&kept->trace, trace);
}

void guard_trace_keep(guard_error *error, const guard_trace *trace)
{
    guard_thread *thread = guard_thread_own;
    if (thread == NULL || trace->count == 0) {
        return;
    }
    error->trace = trace_number(thread);
    guard_trace_store(trace, error->trace);
}

static const guard_trace *trace_find(uint32_t number)
{
    const guard_thread *thread = guard_thread_own;
    if (number == 0 || thread == NULL) {
        return NULL;
    }
    for (const guard_recovery *panic = guard_stack_own->panic; panic != NULL; panic = panic->prev) {
        if (panic->trace != NULL && panic->error->trace == number) {
            return panic->trace;
        }
    }
    for (uint32_t i = 0; i < GUARD_TRACE_KEPT; i++) {
        if (thread->traces[i].number == number) {
            return &thread->traces[i].trace;
        }
    }
    return NULL;
}

unsigned guard_trace_of(const guard_error *error, guard_trace *trace)
{
    const guard_trace *found = trace_find(error->trace);
    trace->count = 0;
    trace->is_cut = 0;
    if (found != NULL) {
        trace_copy(trace, found);
    }
    return trace->count;
}
