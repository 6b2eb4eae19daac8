/* SPDX-License-Identifier: MIT */
/*
 * panic.c: a running panic.
 *
 *   guard_raise --> target: what it must not jump over, the innermost automatic close or border
 *       |
 *       v
 *   unwind: run the records of the scopes up to the target, on top of the live stack; a recovering defer may end the panic
 *       |
 *       |   meet: on its way it comes to the scope whose deferred function raised it, where an older panic is running
 *       |       it was recovered before that      --> the deferred function is cut short, and the older one goes on
 *       |       the older one runs a kind         --> this one is attached to it, and the older one goes on
 *       |       otherwise                         --> this one replaces it and keeps it as a cause
 *       v
 *   land: the target is a border   --> its error is filled in, longjmp
 *         a LEAVING scope          --> the panic is held, guard_leave_resume
 *         nothing (no border)      --> report, abort
 *
 * Invariants: the error of a running panic lies in a frame that is live until the jump. stack->panic is the innermost running panic that
 * is not recovered; the scopes that its deferred function opened lie inside panic->scope. Nothing here allocates.
 */
#include <errno.h>

#include "internal.h"

#ifdef GUARD_WITH_PROBES
unsigned short guard_defer_semaphore __attribute__((section(".probes")));
unsigned short guard_panic_semaphore __attribute__((section(".probes")));
unsigned short guard_recover_semaphore __attribute__((section(".probes")));
#endif

/* The innermost place that must not be jumped over: an automatic close, or the border. Without a border everything runs. */
static const void *panic_target(const guard_stack *stack)
{
    if (stack->border == NULL) {
        return NULL;
    }
    guard_walk walk = guard_walk_open(stack);
    for (; walk.scope != NULL && walk.scope != stack->border->scope; guard_walk_next(stack, &walk)) {
        if (walk.scope->flags & SCOPE_LEAVING) {
            return walk.scope;
        }
    }
    return stack->border;
}

/*
 * What an error is raised with that has no text but a message: its place, and that the other texts are empty, is written when somebody may read
 * them (panic_complete), or into a border's copy alone. GUARD_IMPL_STORED: gcc 12 joins the code and errno in a vector first, on which both wait.
 */
static inline __attribute__((always_inline)) void error_begin(guard_error *error, int domain, int code)
{
    error->domain = domain;
    error->code = code != 0 ? code : -1;
    GUARD_IMPL_STORED(error->code);
    error->os_error = errno;
    GUARD_IMPL_STORED(error->os_error);
    error->trace = 0;
    error->cause_count = 0;
    error->cause_more = 0;
    error->flags = 0;
    error->reserved = 0;
}

static void error_complete(guard_error *error, const guard_place *place, size_t message_size)
{
    if (message_size != 0) {
        error->sqlstate[0] = '\0';
        error->detail[0] = '\0';
        error->hint[0] = '\0';
        error->constraint[0] = '\0';
    }
    guard_error_place(error, place);
}

static void panic_complete(guard_recovery *panic)
{
    if (panic->place != NULL) {
        error_complete(panic->error, panic->place, panic->message_size);
        panic->place = NULL;
    }
}

/* What an automatic close inside a deferred function held back failed after the panic that runs the function. */
static __attribute__((noinline)) void panic_take_held(guard_stack *stack, guard_recovery *panic,
                                                      guard_relation relation)
{
    guard_error held;
    guard_unhold(stack, &held);
    guard_error_attach(panic->error, &held, relation);
}

static const guard_scope *panic_end(const guard_recovery *panic)
{
    if (panic->target == NULL) {
        return NULL;
    }
    return panic->target == panic->border ? panic->border->scope : panic->target;
}

/*
 * A foreign jump passed scopes, and one of them has been written over: the list ends there. The live ones beyond it are found by their
 * records, see orphan.c; what remains inside `end` after them is on scopes that are gone.
 */
static __attribute__((noinline)) bool panic_mend(guard_stack *stack, const guard_scope *inner, const guard_scope *end)
{
    uintptr_t low = inner != NULL ? (uintptr_t)inner : (uintptr_t)__builtin_frame_address(0);
    uintptr_t high = end != NULL ? (uintptr_t)end : UINTPTR_MAX;
    guard_scope *next = guard_orphans_beyond(stack, low, high);
    if (next != NULL) {
        stack->hot.top = next;
        return true;
    }
    stack->hot.top = (guard_scope *)(uintptr_t)end;
    guard_orphans_collect(stack, 0, high);
    return false;
}

/* After a deferred function: what it left behind. */
static inline __attribute__((always_inline)) void panic_settle(guard_stack *stack, guard_recovery *panic)
{
    if (GUARD_IMPL_UNLIKELY(panic->recovered)) {
        stack->panic = panic->prev;
        guard_raise_held(); /* a new panic, from here on */
    } else if (GUARD_IMPL_UNLIKELY(stack->held == HELD_WAITING)) {
        panic_take_held(stack, panic, GUARD_ATTACHED);
    }
}

/* The function of a GUARD_DEFER, which is never on a list that way; nor does anything come to be on its scope's meanwhile. */
static inline __attribute__((always_inline)) void panic_run_single(guard_stack *stack, guard_recovery *panic,
                                                                   guard_scope *scope, bool is_noted)
{
    const guard_impl_record *record = guard_single_of(scope);
    guard_fn *fn = record->action.fn;
    scope->flags = (scope->flags & ~SCOPE_SINGLE) | SCOPE_CLOSING | SCOPE_UNWINDING;
    if (fn == NULL || record->place == NULL) {
        return; /* its frame was written over in part */
    }
    if (is_noted) {
        guard_impl_record shown = {.action = record->action, .arg = record->arg, .place = record->place};
        guard_ran_note(panic->ran, &shown);
    }
    GUARD_IMPL_PROBE_DEFER(fn, record->arg, record->place);
    guard_word_add(&stack->hot.ran, 1);
    fn(record->arg);
}

/*
 * Runs the records of the scopes inside `end` in the name of the panic, and once it is recovered, in nobody's. `is_noted` is constant where this
 * is inlined: a panic that is caught pays nothing for the list that another's report has.
 */
static inline __attribute__((always_inline)) void panic_run_scopes(guard_stack *stack, guard_recovery *panic,
                                                                   const guard_scope *end, bool is_noted)
{
    const guard_scope *inner = NULL;
    while (stack->hot.top != end) {
        guard_scope *scope = stack->hot.top;
        if (GUARD_IMPL_UNLIKELY(!guard_scope_can_run(stack, scope))) {
            if (!panic_mend(stack, inner, end)) {
                return;
            }
            continue;
        }
        uint32_t count = 0;
        inner = scope;
        panic->scope = scope;
        if (scope->flags & SCOPE_SINGLE) {
            panic_run_single(stack, panic, scope, is_noted);
            panic_settle(stack, panic);
        }
        guard_impl_record **free_list = guard_scope_pool(stack, scope)->free;
        scope->flags |= SCOPE_CLOSING | SCOPE_UNWINDING;
        for (guard_impl_record *record; (record = scope->head) != NULL; count++) {
            if (is_noted) {
                guard_ran_note(panic->ran, record);
            }
            if (GUARD_IMPL_LIKELY(record->flags == 0)) {
                guard_record_run_plain(stack, scope, record, free_list);
            } else {
                guard_record_run_other(stack, scope, panic->recovered ? NULL : panic, true);
            }
            panic_settle(stack, panic);
        }
        guard_scope_end(stack, scope, count);
    }
}

static __attribute__((noinline)) void panic_run_noted(guard_stack *stack, guard_recovery *panic, const guard_scope *end)
{
    panic_run_scopes(stack, panic, end, true);
}

static void panic_run(guard_stack *stack, guard_recovery *panic, const guard_scope *end)
{
    if (GUARD_IMPL_UNLIKELY(panic->ran != NULL)) {
        panic_run_noted(stack, panic, end);
    } else {
        panic_run_scopes(stack, panic, end, false);
    }
}

/* Recovered and raised again as it was: it is no cause of itself, or each level would double its chain. */
static bool panic_is_repeated(const guard_recovery *panic, const guard_recovery *older)
{
    const guard_error *a = panic->error;
    const guard_error *b = older->error;
    return older->recovered && a->domain == b->domain && a->code == b->code && a->line == b->line &&
           strcmp(a->file, b->file) == 0 && strcmp(a->message, b->message) == 0;
}

/* A panic arrives at the scope whose deferred function raised it, which an older one runs. Returns the one that goes on. */
static guard_recovery *panic_meet(guard_stack *stack, guard_recovery *panic, guard_recovery *older)
{
    if (!panic->recovered) {
        panic_complete(panic);
        panic_complete(older);
        if (older->recovered || !older->in_kind) {
            if (panic_is_repeated(panic, older)) {
                panic->error->flags |= GUARD_ERROR_REPANICKED;
            } else {
                guard_error_attach(panic->error, older->error, older->recovered ? GUARD_RECOVERED : GUARD_REPLACED);
            }
            panic->prev = older->prev;
            return panic;
        }
        guard_error_attach(older->error, panic->error, GUARD_ATTACHED);
    }
    older->in_kind = false;
    older->recovering = false;
    stack->panic = older->recovered ? older->prev : older;
    return older;
}

/* Returns the panic that arrives at the target. */
static guard_recovery *panic_unwind(guard_stack *stack, guard_recovery *panic)
{
    for (;;) {
        guard_recovery *older = panic->prev;
        bool meets = older != NULL && older->target == panic->target;
        panic_run(stack, panic, meets ? older->scope : panic_end(panic)); /* the only call, so that it is inline */
        if (!meets) {
            return panic;
        }
        panic = panic_meet(stack, panic, older);
    }
}

/* To guard_run, see run.c. */
GUARD_NORETURN static inline void border_jump_bare(guard_impl_border *border)
{
#if RUN_IS_BARE
    __asm__ volatile("jmp guard_run_land" : : "D"(border), "a"(border->code) : "memory");
#else
    (void)border; /* not reached: no border is bare */
#endif
    __builtin_unreachable();
}

GUARD_NORETURN static void panic_land_border(guard_stack *stack, guard_recovery *panic)
{
    guard_impl_border *border = panic->border;
    bool is_bare = border->state == GUARD_IMPL_LINKED_BARE;
    stack->border = border->outer;
    stack->panic = border->panic;
    if (panic->recovered) {
        border->code = 0;
        border->state = GUARD_IMPL_RECOVERED;
    } else {
        border->code = panic->error->code;
        border->state = GUARD_IMPL_CAUGHT;
        guard_word_add(&guard_thread_own->counts[COUNT_CONTAINED], 1);
        PROBE_RECOVER(panic->error, "border");
        if (border->out != NULL) {
            if (GUARD_IMPL_LIKELY(panic->message_size != 0 && panic->place != NULL)) {
                guard_error_copy_message(border->out, panic->error, panic->message_size, panic->place);
            } else {
                panic_complete(panic);
                guard_error_copy(border->out, panic->error);
            }
            border->out->flags |= GUARD_ERROR_CAUGHT;
        }
        if (GUARD_IMPL_UNLIKELY(panic->trace != NULL)) {
            guard_trace_store(panic->trace, panic->error->trace);
        }
        errno = panic->error->os_error;
    }
    guard_before_jump();
    if (is_bare) {
        border_jump_bare(border);
    }
    longjmp(border->env, border->state);
}

/* A foreign unwind out of a deferred function passes the panic that runs it: nothing must refer to its frame any more. */
static void panic_pass(guard_recovery *panic)
{
    guard_stack *stack = guard_stack_own;
    if (stack->panic == panic) {
        stack->panic = panic->prev;
    }
}

/* Aligned, so that its loop lies as it does whatever comes before it in the library: panic-10x10 412 to 442 ns by that alone. */
__attribute__((aligned(64))) GUARD_NORETURN void guard_panic_go(guard_stack *stack, guard_recovery *panic)
{
    for (;;) {
        panic->target = panic_target(stack);
        stack->panic = panic->recovered ? panic->prev : panic;
        panic = panic_unwind(stack, panic);
        if (panic->target == NULL) {
            panic_complete(panic);
            guard_report_uncaught(panic->error);
        }
        if (panic->target == panic->border) {
            panic_land_border(stack, panic);
        }
        stack->panic = panic->prev;
        if (!panic->recovered) {
            panic_complete(panic);
            guard_hold(stack, panic->error);
            if (panic->trace != NULL) {
                guard_trace_store(panic->trace, panic->error->trace);
            }
        }
        guard_leave_resume(stack, panic->target);
        /* The frame was not found, see leave.c: the panic goes on to the border from here. */
        if (!panic->recovered) {
            guard_unhold(stack, panic->error);
        }
        stack->hot.top->flags &= ~SCOPE_LEAVING;
    }
}

static void uncaught_pass(guard_ran *ran)
{
    (void)ran;
    guard_report_give_up();
}

/* The trace lies in the frame that this is inlined into, which is alive as long as the panic. */
static inline __attribute__((always_inline)) void panic_trace(guard_recovery *panic, guard_walked *walked,
                                                              const void *from)
{
    if (guard_trace_begin(panic, &walked->trace)) {
        guard_trace_end(panic, walked, guard_trace_frames(walked), from);
    }
}

/* The outermost panic of this thread that no border encloses: those that its deferred functions raise add to its list of what ran. */
GUARD_NORETURN static __attribute__((noinline)) void panic_go_uncaught(guard_stack *stack, guard_recovery *panic,
                                                                       const void *from)
{
    guard_ran ran __attribute__((cleanup(uncaught_pass)));
    ran.count = 0;
    panic->ran = &ran;
    guard_walked walked;
    guard_report_begin();
    panic_trace(panic, &walked, from);
    guard_panic_go(stack, panic);
}

/* Inline: each frame that lies inside the raiser's is walked by a trace, which takes about 90 instructions for it. */
GUARD_NORETURN static inline __attribute__((always_inline)) void
panic_raise(guard_stack *stack, guard_error *error, const guard_place *place, const void *from, size_t message_size)
{
    guard_recovery here __attribute__((cleanup(panic_pass))) = {
        .prev = stack->panic, .error = error, .place = place, .border = stack->border, .message_size = message_size};
    guard_walked walked;
    if (GUARD_IMPL_UNLIKELY(stack->held == HELD_WAITING)) {
        panic_take_held(stack, &here, GUARD_REPLACED);
    }
    if (guard_trace_is_wanted(stack, error)) {
        if (stack->border == NULL) {
            here.ran = here.prev != NULL ? here.prev->ran : NULL;
            if (here.ran == NULL) {
                panic_go_uncaught(stack, &here, from);
            }
        }
        panic_trace(&here, &walked, from);
    }
    guard_panic_go(stack, &here);
}

GUARD_NORETURN void guard_raise(guard_stack *stack, guard_error *error, const guard_place *place, const void *from)
{
    panic_raise(stack, error, place, from, 0);
}

GUARD_NORETURN void guard_raise_recovered(guard_stack *stack)
{
    guard_recovery here
        __attribute__((cleanup(panic_pass))) = {.prev = stack->panic, .border = stack->border, .recovered = true};
    guard_panic_go(stack, &here);
}

/* --------------------------------------------------------------------------------------- held panics -- */

void guard_hold(guard_stack *stack, const guard_error *error)
{
    if (stack->held == HELD_WAITING) {
        guard_error_attach(&stack->held_error, error, GUARD_ATTACHED);
        return;
    }
    guard_error_copy(&stack->held_error, error);
    stack->held = HELD_WAITING;
    guard_impl_stack = NULL;
    guard_attention_set(&guard_impl_attention, ATTENTION_HELD);
}

void guard_unhold(guard_stack *stack, guard_error *error)
{
    guard_error_copy(error, &stack->held_error);
    stack->held = HELD_NONE;
    guard_impl_stack = &stack->hot;
    guard_attention_clear(&guard_impl_attention, ATTENTION_HELD);
}

void guard_impl_raise_held(void)
{
    guard_stack *stack = guard_stack_own;
    if (GUARD_IMPL_UNLIKELY(stack != NULL && stack->held == HELD_WAITING)) {
        guard_error error;
        guard_unhold(stack, &error);
        guard_raise(stack, &error, NULL, __builtin_return_address(0));
    }
}

/* -------------------------------------------------------------------------------------------- raising -- */

/* Without memory for a stack nothing can have been registered and no border opened. */
static __attribute__((noinline)) guard_stack *panic_stack_first(guard_error *error, const guard_place *place,
                                                                size_t message_size)
{
    guard_stack *stack = guard_stack_make();
    if (stack == NULL) {
        if (place != NULL) {
            error_complete(error, place, message_size);
        }
        guard_report_uncaught(error);
    }
    return stack;
}

static inline __attribute__((always_inline)) guard_stack *panic_begin(guard_error *error, const guard_place *place,
                                                                      size_t message_size)
{
    guard_stack *stack = guard_stack_own;
    if (GUARD_IMPL_UNLIKELY(stack == NULL)) {
        stack = panic_stack_first(error, place, message_size);
    }
    guard_site_count(error, place);
    PROBE_PANIC(error, place);
    return stack;
}

void guard_impl_panic(const guard_place *place, int domain, int code, const char *format, ...)
{
    guard_error error;
    error_begin(&error, domain, code);
    va_list arguments;
    va_start(arguments, format);
    size_t size = guard_error_message(&error, format, arguments);
    va_end(arguments);
    panic_raise(panic_begin(&error, place, size), &error, place, __builtin_return_address(0), size);
}

/* For a text of one line that fits and has no conversion. */
void guard_impl_panic_text(const guard_place *place, int domain, int code, const char *text, size_t size)
{
    guard_error error;
    error_begin(&error, domain, code);
    guard_error_text(&error, text, size);
    panic_raise(panic_begin(&error, place, size), &error, place, __builtin_return_address(0), size);
}

void guard_impl_panic_os(const guard_place *place, const char *format, ...)
{
    guard_error error;
    guard_error_open(&error, GUARD_OS, errno);
    va_list arguments;
    va_start(arguments, format);
    guard_error_message(&error, format, arguments);
    va_end(arguments);
    size_t length = strlen(error.message);
    char text[96];
    snprintf(text, sizeof text, ": %s",
             strerrordesc_np(error.os_error) != NULL ? strerrordesc_np(error.os_error) : "unknown error");
    guard_text_copy(error.message + length, sizeof error.message - length, text);
    guard_raise(panic_begin(&error, place, 0), &error, place, __builtin_return_address(0));
}

void guard_impl_panic_error(const guard_place *place, const guard_error *error)
{
    guard_error copy;
    guard_error_copy(&copy, error);
    if (copy.code == 0) {
        copy.code = -1;
    }
    if (copy.flags & GUARD_ERROR_CAUGHT) {
        copy.flags = (uint8_t)((copy.flags & ~GUARD_ERROR_CAUGHT) | GUARD_ERROR_REPANICKED);
    }
    place = copy.file[0] == '\0' ? place : NULL;
    guard_raise(panic_begin(&copy, place, 0), &copy, place, __builtin_return_address(0));
}

void guard_raise_on(const guard_error *error)
{
    guard_error copy;
    guard_error_copy(&copy, error);
    copy.flags &= (uint8_t)~GUARD_ERROR_CAUGHT;
    guard_raise(guard_stack_here(), &copy, NULL, __builtin_return_address(0));
}

/* ----------------------------------------------------------------------------------------- recovering -- */

int guard_recover(guard_recovery *recovery)
{
    guard_stack *stack = guard_stack_own;
    if (recovery == NULL || stack == NULL || stack->panic != recovery || !recovery->recovering || recovery->recovered) {
        return 0;
    }
    if (recovery->border == NULL) {
        guard_misuse(GUARD_MISUSE_RECOVER, "guard_recover where no border encloses the scope");
        return 0;
    }
    recovery->recovered = true;
    guard_word_add(&guard_thread_own->counts[COUNT_RECOVERED], 1);
    PROBE_RECOVER(recovery->error, "defer");
    return 1;
}

const guard_error *guard_recovery_error(const guard_recovery *recovery)
{
    const guard_stack *stack = guard_stack_own;
    if (recovery == NULL || stack == NULL || stack->panic == NULL) {
        return NULL;
    }
    panic_complete((guard_recovery *)(uintptr_t)recovery);
    return recovery->error;
}

const guard_error *guard_panicking(void)
{
    const guard_stack *stack = guard_stack_own;
    guard_recovery *panic = stack != NULL ? stack->panic : NULL;
    if (panic == NULL || panic->recovered || stack->border != panic->border) {
        return NULL;
    }
    guard_walk walk = guard_walk_open(stack);
    for (; walk.scope != NULL && walk.scope != panic->scope; guard_walk_next(stack, &walk)) {
        if (walk.scope->flags & (SCOPE_LEAVING | SCOPE_CLOSING)) {
            return NULL; /* a scope of the deferred function, which ends normally */
        }
    }
    panic_complete(panic);
    return panic->error;
}
