/* SPDX-License-Identifier: MIT */
/*
 * leave.c: the automatic close of a scope, by the cleanup attribute.
 *
 * It runs on return as well as while something else unwinds the stack (pthread_cancel, a C++ exception), and cannot tell which. So
 * a panic of a deferred function must not jump out of it: it is held, the deferred function is made to return
 * here, the rest runs, and the next call of the library raises the panic.
 *
 *                       fn returned
 *      /----------------------------------------------\
 *      v                                               |
 *   loop: next record --> fn(arg) --panics--> guard_raise: runs the scopes fn opened, holds the error,
 *      |                   ^                               guard_leave_resume --> (as if fn had returned) --> loop
 *      v no more           \-- leave_held: the rest runs in the name of the held panic
 *   closed
 *
 * Making fn return needs the registers that this frame had at the call. A setjmp at every close would have them; it cost 6.5 ns on top
 * of a scope with one defer that takes 4 ns more than the direct call (gcc 12 -O2, EPYC, minimum of 15 runs of 3 million; _setjmp and
 * __builtin_setjmp alike). So on x86-64 they are looked up only when a panic happens, by the unwinder, in the call frame information that
 * both compilers emit for every function by default. Where fn was compiled without it (-fno-asynchronous-unwind-tables) the frame is not
 * found and the panic goes straight to its border. Elsewhere, and under ThreadSanitizer, which must see every jump,
 * the close calls setjmp.
 *
 * A scope with one record, plain or a kind, is closed in its own function (guard_impl_leave in guard_inline.h): then the frame is that of the function the
 * scope lies in. That frame calls through guard_impl_call, and the one here hides fn from the compiler (LEAVE_CALLS): were fn's body inlined, or fn
 * known not to return, there would be no call in that frame to return from.
 *
 * Invariant: the innermost scope that is LEAVING is run by the innermost live frame of guard_impl_leave_run, or by the frame it lies
 * in, whichever is the inner one.
 */
#include <unwind.h>

#include "internal.h"

#if IS_THREAD_SANITIZED || !defined(__x86_64__) || defined(GUARD_LEAVE_BY_SETJMP)
#define LEAVE_BY_SETJMP 1
#endif

/*
 * Runs a scope's records in the name of the held panic, until there are none or it is recovered: recovering defers see it. The panic
 * lies in this frame meanwhile, so that borders inside the deferred functions have the place of held panics to themselves.
 */
static void leave_held(void *memory)
{
    guard_scope *scope = memory;
    guard_stack *stack = guard_stack_own;
    guard_error error;
    guard_unhold(stack, &error);
    scope->flags |= SCOPE_FAILED;
    guard_recovery panic = {
        .prev = stack->panic, .error = &error, .border = stack->border, .target = scope, .scope = scope};
    stack->panic = &panic;
    while (scope->head != NULL && !panic.recovered) {
        guard_record_run(stack, scope, &panic, true);
        if (stack->held == HELD_WAITING && !panic.recovered) {
            guard_error later;
            guard_unhold(stack, &later);
            guard_error_attach(&error, &later, GUARD_ATTACHED);
        }
    }
    stack->panic = panic.prev;
    if (!panic.recovered) {
        guard_hold(stack, &error);
    }
}

static void leave_record(void *memory)
{
    guard_scope *scope = memory;
    guard_record_run(guard_stack_own, scope, NULL, scope->flags & SCOPE_FAILED);
}

/*
 * One place calls everything that may panic, and it is in the loop: a compiler that moves unlikely calls into a part of their own
 * (.cold) would move the frame out of the function that leave_look knows.
 */
typedef struct leave_state {
    guard_stack *stack;
    guard_scope *scope;
    uint32_t count;
    uint32_t others; /* of count, those that were not run, or are counted where they are */
} leave_state;

/*
 * The end of the loop, also when a foreign unwind (pthread_cancel) out of a deferred function passes it: then the rest runs in a frame of
 * its own, as any close does.
 */
static inline __attribute__((always_inline)) void leave_end(const leave_state *state)
{
    guard_stack *stack = state->stack;
    guard_scope *scope = state->scope;
    guard_word_add(&stack->hot.ran,
                   state->count - state->others); /* once for all: an addition in the loop showed (loop-defer) */
    if (GUARD_IMPL_UNLIKELY(scope->head != NULL || stack->hot.top != scope)) {
        guard_impl_leave_run(scope);
        return;
    }
    stack->hot.top = scope->outer;
    scope->stack = NULL;
    guard_pool_freed(&stack->pool, state->count);
}

/* What a record that is already free again runs with: its copied bytes, or its recovering function. */
typedef union leave_room {
    _Alignas(16) char bytes[GUARD_COPY_INLINE];
    uint64_t words[GUARD_COPY_INLINE / sizeof(uint64_t)];
    struct {
        guard_recover_fn *fn;
        void *arg;
    } recover;
} leave_room;

static void leave_recover(void *memory)
{
    const leave_room *room = memory;
    room->recover.fn(NULL, room->recover.arg);
}

static inline __attribute__((always_inline)) void leave_give(guard_stack *stack, guard_impl_record *record)
{
    record->generation++;
    record->next = stack->hot.free;
    stack->hot.free = record;
}

/* Takes the first record off and gives it back. */
static inline __attribute__((always_inline)) void leave_take(guard_stack *stack, guard_scope *scope,
                                                             guard_impl_record *record)
{
    scope->head = record->next;
    __atomic_signal_fence(__ATOMIC_RELEASE);
    leave_give(stack, record);
}

/*
 * By words, as most of the bytes were written a moment ago: a wider load would wait until those stores have left the processor's queue. Volatile, or
 * the compiler makes wider ones.
 */
typedef uint64_t __attribute__((may_alias)) leave_word;

static inline __attribute__((always_inline)) void leave_copy(uint64_t *to, const volatile leave_word *from)
{
    _Static_assert(GUARD_COPY_INLINE == 5 * sizeof *to, "five words");
    to[0] = from[0];
    to[1] = from[1];
    to[2] = from[2];
    to[3] = from[3];
    to[4] = from[4];
}

/* The same for a copy or a recovering defer, which is due, and nothing panics. Returns what is to be called with `room`. */
static inline __attribute__((always_inline)) guard_fn *leave_take_special(guard_stack *stack, guard_scope *scope,
                                                                          leave_room *room)
{
    guard_impl_record *record = scope->head;
    if (record->flags == GUARD_IMPL_COPY) {
        guard_fn *fn = record->action.fn;
        guard_impl_record *bytes = record->arg;
        leave_copy(room->words, record->arg);
        GUARD_IMPL_PROBE_DEFER(fn, room->bytes, record->place);
        leave_take(stack, scope, record);
        leave_give(stack, bytes); /* on top, where the next copy takes its bytes from */
        return fn;
    }
    if (record->flags == GUARD_IMPL_WORD) {
        guard_fn *fn = record->action.fn;
        room->words[0] = (uintptr_t)record->arg;
        GUARD_IMPL_PROBE_DEFER(fn, room->bytes, record->place);
        leave_take(stack, scope, record);
        return fn;
    }
    room->recover.fn = record->action.recover;
    room->recover.arg = record->arg;
    GUARD_IMPL_PROBE_DEFER(room->recover.fn, room->recover.arg, record->place);
    leave_take(stack, scope, record);
    return leave_recover;
}

static inline __attribute__((always_inline)) void leave_loop(guard_stack *stack, guard_scope *scope)
{
    leave_room room;
    leave_state state __attribute__((cleanup(leave_end))) = {stack, scope, 0, 0};
    guard_single_list(scope);
    scope->flags |= SCOPE_LEAVING;
    for (guard_impl_record *record; (record = scope->head) != NULL;) {
        uint32_t flags = record->flags;
        guard_fn *fn = record->action.fn;
        void *arg = record->arg;
        state.count++;
        if (GUARD_IMPL_UNLIKELY(stack->held == HELD_WAITING)) {
            state.others++;
            fn = leave_held;
            arg = scope;
        } else if (GUARD_IMPL_LIKELY(flags == 0) || GUARD_IMPL_LIKELY(flags == GUARD_IMPL_KIND)) {
            if (flags != 0) {
                fn = record->action.kind->release;
            }
            leave_take(stack, scope, record);
            GUARD_IMPL_PROBE_DEFER(fn, arg, record->place);
        } else if ((flags & ~GUARD_IMPL_WHEN) == 0) {
            leave_take(stack, scope, record);
            if (GUARD_IMPL_UNLIKELY(!guard_record_is_due(flags, scope->flags & SCOPE_FAILED))) {
                state.others++;
                continue;
            }
            GUARD_IMPL_PROBE_DEFER(fn, arg, record->place);
        } else if (flags == GUARD_IMPL_WORD || flags == GUARD_IMPL_COPY || flags == GUARD_IMPL_RECOVER) {
            fn = leave_take_special(stack, scope, &room);
            arg = &room;
        } else {
            state.others++;
            fn = leave_record;
            arg = scope;
        }
        __asm__("" : "+r"(fn)); /* no compiler knows what is called, see LEAVE_CALLS */
        fn(arg);
    }
}

/*
 * Hands the records of scopes that were left open in this frame to `scope`. Returns how many scopes that were, without those whose close a
 * foreign unwind out of a deferred function has cut.
 */
static int leave_adopt(guard_stack *stack, guard_scope *scope, const void *frame)
{
    int count = 0;
    guard_scope *inner = stack->hot.top;
    for (; inner != scope && (uintptr_t)inner > (uintptr_t)frame && !guard_scope_is_owner(inner);
         inner = inner->outer) {
        guard_single_list(inner);
        guard_impl_record **tail = &inner->head;
        for (; *tail != NULL; tail = &(*tail)->next) {
            (*tail)->scope = scope;
        }
        *tail = scope->head;
        scope->head = inner->head;
        scope->dead += inner->dead;
        if (guard_scope_reserved(inner) > 0) {
            guard_scope_count(scope);
            scope->reserved += inner->reserved;
        }
        inner->stack = NULL;
        count += !(inner->flags & SCOPE_LEAVING);
    }
    stack->hot.top = scope;
    return count;
}

/*
 * A scope that was jumped into holds what the frame held before, which may be this very stack's address. An open one is on the list, unless
 * the list is broken by a scope that was passed and written over, which then lies in a frame that this one called, and is not read here.
 */
static bool leave_is_open(const guard_stack *stack, const guard_scope *scope)
{
    const guard_scope *top = stack->hot.top;
    return scope->stack == &stack->hot && top != NULL &&
           ((uintptr_t)top < (uintptr_t)scope || guard_scope_is_open(stack, scope));
}

/* Returns false where there is nothing that could be closed. */
static __attribute__((noinline)) bool leave_mend(guard_stack *stack, guard_scope *scope, const void *frame)
{
    if (stack == NULL || (scope->stack == NULL && (scope->flags & SCOPE_UNWINDING))) {
        return false; /* a panic or the thread's exit has closed it, and a foreign unwind passes the frame afterwards */
    }
    bool open = leave_is_open(stack, scope);
    if (open && leave_adopt(stack, scope, frame) == 0) {
        /* The scopes inside it lie in frames that are gone. Where they had nothing to run, nothing is lost. */
        int lost = guard_orphans_below(stack, frame);
        if (lost == 0) {
            return true;
        }
        if (lost > 0 && stack->border == NULL) {
            guard_note(
                "%d deferred functions wait for the end of their thread: their scopes were left without unwinding",
                lost);
            return true;
        }
    }
    guard_error error;
    guard_error_set(&error, GUARD_MISUSE, GUARD_MISUSE_SCOPE,
                    open ? "a scope ended while a scope inside it was open"
                         : "a scope ended that is not open here: closed before, or jumped into past its opening");
    guard_misuse_hold(stack, &error);
    return open;
}

#ifndef LEAVE_BY_SETJMP

/*
 * Where a panic comes back to. No profile of what it calls is taken, for with one a compiler would make a direct call, or the body, of what is called
 * most (gcc and clang, -fprofile-use). Aligned, so that its loop, in the first 256 bytes, lies in one page whatever comes before it in the library: where
 * a page ended in the loop, each turn took a tenth longer.
 */
#define LEAVE_CALLS __attribute__((noinline, no_profile_instrument_function, aligned(256)))

LEAVE_CALLS void guard_impl_leave_run(guard_scope *scope)
{
    guard_stack *stack = guard_stack_own;
    if (GUARD_IMPL_UNLIKELY(stack == NULL || stack->hot.top != scope) &&
        !leave_mend(stack, scope, __builtin_frame_address(0))) {
        return;
    }
    leave_loop(stack, scope);
}

/* The function's own address: that of the exported name may be a PLT entry of the program. */
extern __typeof__(guard_impl_leave_run) leave_run_here
    __attribute__((alias("guard_impl_leave_run"), visibility("hidden")));

/* The registers that the System V ABI for x86-64 lets a callee keep, and where it returns to. */
typedef struct leave_registers {
    uintptr_t rbx, rbp, r12, r13, r14, r15, rsp, rip;
} leave_registers;

typedef struct leave_search {
    const guard_scope *scope;
    leave_registers registers; /* of the frame looked at last */
    bool found;
} leave_search;

/* In an unwinder's callback the context is that of the caller after the call: CFA is its stack pointer. DWARF numbers of the ABI, fig. 3.36. */
static void leave_note_registers(struct _Unwind_Context *context, leave_registers *registers)
{
    registers->rbx = _Unwind_GetGR(context, 3);
    registers->rbp = _Unwind_GetGR(context, 6);
    registers->r12 = _Unwind_GetGR(context, 12);
    registers->r13 = _Unwind_GetGR(context, 13);
    registers->r14 = _Unwind_GetGR(context, 14);
    registers->r15 = _Unwind_GetGR(context, 15);
    registers->rsp = _Unwind_GetCFA(context);
    registers->rip = _Unwind_GetIP(context);
}

/*
 * The frame is the innermost of guard_impl_leave_run, or where the scope's only record was run inline, the one that the scope lies in.
 * The latter is known one frame later, whose stack pointer is beyond the scope.
 */
static _Unwind_Reason_Code leave_look(struct _Unwind_Context *context, void *memory)
{
    leave_search *search = memory;
    if (search->registers.rip != 0 && _Unwind_GetCFA(context) > (uintptr_t)search->scope) {
        search->found = true;
        return _URC_NORMAL_STOP;
    }
    leave_note_registers(context, &search->registers);
    search->found = _Unwind_GetRegionStart(context) == (uintptr_t)leave_run_here;
    return search->found ? _URC_NORMAL_STOP : _URC_NO_REASON;
}

void guard_leave_resume(guard_stack *stack, const guard_scope *scope)
{
    (void)stack;
    leave_search search = {.scope = scope};
    _Unwind_Backtrace(leave_look, &search);
    if (!search.found) {
        return;
    }
    leave_registers registers = search.registers;
    guard_before_jump();
    __asm__ volatile("movq 56(%0), %%rcx\n\t" /* before the stack pointer moves above the struct */
                     "movq 0(%0), %%rbx\n\t"
                     "movq 8(%0), %%rbp\n\t"
                     "movq 16(%0), %%r12\n\t"
                     "movq 24(%0), %%r13\n\t"
                     "movq 32(%0), %%r14\n\t"
                     "movq 40(%0), %%r15\n\t"
                     "movq 48(%0), %%rsp\n\t"
                     "notrack jmp *%%rcx"
                     :
                     : "a"(&registers)
                     : "memory");
    __builtin_unreachable();
}

#else

typedef struct leave_frame {
    struct leave_frame *outer;
    const guard_scope *scope;
    jmp_buf env;
} leave_frame;

static void leave_frame_end(leave_frame *frame)
{
    guard_stack_own->leaving = frame->outer;
}

/* Apart from setjmp, so that its locals live on over a jump. */
static __attribute__((noinline)) void leave_loop_here(guard_stack *stack, guard_scope *scope)
{
    leave_loop(stack, scope);
}

void guard_impl_leave_run(guard_scope *scope)
{
    guard_stack *stack = guard_stack_own;
    if (GUARD_IMPL_UNLIKELY(stack == NULL || stack->hot.top != scope) &&
        !leave_mend(stack, scope, __builtin_frame_address(0))) {
        return;
    }
    leave_frame frame __attribute__((cleanup(leave_frame_end)));
    frame.outer = stack->leaving;
    frame.scope = scope;
    stack->leaving = &frame;
    (void)_setjmp(frame.env);
    leave_loop_here(stack, scope);
}

void guard_leave_resume(guard_stack *stack, const guard_scope *scope)
{
    leave_frame *frame = stack->leaving;
    if (frame == NULL || frame->scope != scope) {
        return; /* run inline by code that was built for the other form */
    }
    guard_before_jump();
    longjmp(frame->env, 1);
}

#endif
