/* SPDX-License-Identifier: MIT */
/*
 * run.c: borders, which contain panics.
 *
 *     open --> LINKED --body returned--> UNLINKED                       guard_run returns 0
 *                |  \---panic landed---> CAUGHT (unlinked by it)        guard_run returns its code
 *                |  \---recovered------> RECOVERED (unlinked by it)     guard_run returns 0
 *                \---foreign unwind or return out of GUARD_TRY--> UNLINKED, by the cleanup attribute
 *
 * Invariant: stack->border is the innermost LINKED border, and its frame is live.
 *
 * guard_run is written twice: in assembly for x86-64, and in C with setjmp for the rest. What a setjmp stores in its buffer, the former has in
 * its frame anyway: the registers that a callee must keep. A function that returns has kept them, so that they are read only when a panic lands.
 */
#include <errno.h>
#include <unwind.h>

#include "internal.h"

/* The code is set when a panic lands. */
static inline void border_link(guard_stack *stack, guard_impl_border *border, guard_error *out)
{
    border->outer = stack->border;
    border->scope = stack->hot.top;
    border->panic = stack->panic;
    border->out = out;
    border->state = GUARD_IMPL_LINKED;
    stack->border = border;
}

guard_impl_border *guard_impl_border_open(guard_impl_border *border, guard_error *out)
{
    guard_stack *stack = guard_stack_here();
    guard_raise_held();
    border_link(stack, border, out);
    return border;
}

/* The body ended with a scope open or a panic held. Such a scope lies in a frame that is gone: its records cannot be trusted. */
static __attribute__((noinline)) void border_mend(guard_stack *stack, guard_impl_border *border)
{
    if (stack->hot.top != border->scope) {
        stack->hot.top = border->scope;
        guard_orphans_below(stack, __builtin_frame_address(0));
        guard_misuse(GUARD_MISUSE_SCOPE,
                     "a scope was still open when the function that opened it had returned to its border");
    }
    guard_raise_held();
}

static inline void border_unlink(guard_stack *stack, guard_impl_border *border)
{
    if (GUARD_IMPL_UNLIKELY(stack->hot.top != border->scope || stack->held == HELD_WAITING)) {
        border_mend(stack, border);
    }
    stack->border = border->outer;
}

guard_impl_border *guard_impl_border_end(guard_impl_border *border)
{
    if (border->state == GUARD_IMPL_LINKED) {
        border_unlink(guard_stack_own, border);
        border->state = GUARD_IMPL_UNLINKED;
    }
    return NULL;
}

/*
 * A foreign unwind (or a return, from GUARD_TRY) passes the border. Scopes that it passed without running them are no longer on the list,
 * for the next panic must not run them: their frames, which lie below `frame`, are gone. What was registered on them is reported at the latest by
 * the thread's end.
 */
static __attribute__((noinline)) void border_pass(guard_impl_border *border, const void *frame)
{
    guard_stack *stack = guard_stack_own;
    stack->border = border->outer;
    stack->panic = border->panic;
    border->state = GUARD_IMPL_UNLINKED;
    if (stack->hot.top != border->scope) {
        stack->hot.top = border->scope;
        guard_orphans_below(stack, frame);
    }
    if (stack->border == NULL) {
        guard_stack_end_held(stack); /* nobody is left who could return it: it is uncaught here */
    }
}

static inline void border_leave(guard_impl_border *border)
{
    if (GUARD_IMPL_UNLIKELY(border->state == GUARD_IMPL_LINKED)) {
        border_pass(border, __builtin_frame_address(0));
    }
}

void guard_impl_border_leave(guard_impl_border *border)
{
    border_leave(border);
}

/* --------------------------------------------------------------------------------------------------- guard_run -- */

static int run_without_memory(guard_error *out)
{
    if (out != NULL) {
        guard_error_set(out, GUARD_MEMORY, ENOMEM, "out of memory for the thread's guard stack");
    }
    return ENOMEM;
}

/* Where guard_run finds no function, or no stack that it may use. */
__attribute__((used, visibility("hidden"))) int guard_run_first(guard_fn *fn, void *arg, guard_error *out);
int guard_run_first(guard_fn *fn, void *arg, guard_error *out)
{
    if (fn == NULL) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "guard_run without a function");
        return 0;
    }
    if (guard_stack_make() == NULL) {
        return run_without_memory(out);
    }
    guard_raise_held();
    return guard_run(fn, arg, out);
}

#if RUN_IS_BARE

/* What the assembly below knows of the structures, and of a frame of its own. */
#define STACK_BORDER "64"
#define STACK_PANIC "72"
#define STACK_HELD "88"
#define LINKED_BARE "4"
_Static_assert(offsetof(guard_stack, hot.top) == 0 && offsetof(guard_stack, border) == 64 &&
                   offsetof(guard_stack, panic) == 72 && offsetof(guard_stack, held) == 88 && HELD_WAITING == 1 &&
                   sizeof(guard_held) == 4,
               "what guard_run knows of a stack");
_Static_assert(offsetof(guard_impl_border, outer) == 0 && offsetof(guard_impl_border, scope) == 8 &&
                   offsetof(guard_impl_border, panic) == 16 && offsetof(guard_impl_border, out) == 24 &&
                   offsetof(guard_impl_border, state) == 32 && offsetof(guard_impl_border, code) == 36 &&
                   GUARD_IMPL_LINKED_BARE == 4,
               "what guard_run knows of a border");

/* The body ended with a scope open or a panic held. */
__attribute__((used, visibility("hidden"))) void guard_run_mend(guard_stack *stack, guard_impl_border *border);
void guard_run_mend(guard_stack *stack, guard_impl_border *border)
{
    border_mend(stack, border);
}

/* Where the two calls of guard_run return to. */
extern const char guard_run_called[] __attribute__((visibility("hidden")));
extern const char guard_run_mended[] __attribute__((visibility("hidden")));

/*
 * An unwinder asks here what is to be done when a foreign unwind passes guard_run: what border_leave does in C, for which nothing in the frame need
 * be run. The CFA it gives is the stack pointer of the frame, where the border lies; not elsewhere than at a call.
 */
__attribute__((used, visibility("hidden"))) _Unwind_Reason_Code
guard_run_personality(int version, _Unwind_Action actions, _Unwind_Exception_Class class,
                      struct _Unwind_Exception *exception, struct _Unwind_Context *context);
_Unwind_Reason_Code guard_run_personality(int version, _Unwind_Action actions, _Unwind_Exception_Class class,
                                          struct _Unwind_Exception *exception, struct _Unwind_Context *context)
{
    (void)version;
    (void)class;
    (void)exception;
    uintptr_t at = _Unwind_GetIP(context);
    if ((actions & _UA_CLEANUP_PHASE) && (at == (uintptr_t)guard_run_called || at == (uintptr_t)guard_run_mended)) {
        guard_impl_border *border = (guard_impl_border *)_Unwind_GetCFA(context);
        border_pass(border, border);
    }
    return _URC_CONTINUE_UNWIND;
}

/* No compiler may copy it (there is one guard_run_land) or count in it. Aligned as leave.c aligns its loop. */
#ifdef __clang__
#define BARE __attribute__((naked, noinline, no_profile_instrument_function, aligned(128)))
#else
#define BARE __attribute__((naked, noipa, no_profile_instrument_function, aligned(128)))
#endif

/*
 * The frame, downwards from the return address: the six registers that a callee must keep, then the border, from its last word to its first. The
 * stack is kept in %rbx. A panic jumps to guard_run_land with the border in %rdi and what guard_run returns in %eax. It goes on by a jump: a `ret`
 * would always be foretold wrongly, for the processor expects the returns of the frames that the panic left.
 */
BARE int guard_run(guard_fn *fn __attribute__((unused)), void *arg __attribute__((unused)),
                   guard_error *out __attribute__((unused)))
{
    __asm__(
        ".cfi_personality 0x1b, guard_run_personality\n\t" /* relative to its place, 4 bytes */
        "movq guard_impl_stack@gottpoff(%rip), %rax\n\t"
        "movq %fs:(%rax), %rax\n\t" /* guard_impl_stack, whose address is its guard_stack's: hot is its first member */
        "testq %rdi, %rdi\n\t"
        "je guard_run_first\n\t"
        "testq %rax, %rax\n\t"
        "je guard_run_first\n\t"
        "pushq %rbp\n\t"
        ".cfi_def_cfa_offset 16\n\t"
        ".cfi_offset %rbp, -16\n\t"
        "pushq %r15\n\t"
        ".cfi_def_cfa_offset 24\n\t"
        ".cfi_offset %r15, -24\n\t"
        "pushq %r14\n\t"
        ".cfi_def_cfa_offset 32\n\t"
        ".cfi_offset %r14, -32\n\t"
        "pushq %r13\n\t"
        ".cfi_def_cfa_offset 40\n\t"
        ".cfi_offset %r13, -40\n\t"
        "pushq %r12\n\t"
        ".cfi_def_cfa_offset 48\n\t"
        ".cfi_offset %r12, -48\n\t"
        "pushq %rbx\n\t"
        ".cfi_def_cfa_offset 56\n\t"
        ".cfi_offset %rbx, -56\n\t"
        "pushq $" LINKED_BARE "\n\t" /* state and code */
        ".cfi_def_cfa_offset 64\n\t"
        "pushq %rdx\n\t" /* out */
        ".cfi_def_cfa_offset 72\n\t"
        "pushq " STACK_PANIC "(%rax)\n\t"
        ".cfi_def_cfa_offset 80\n\t"
        "pushq (%rax)\n\t" /* scope */
        ".cfi_def_cfa_offset 88\n\t"
        "pushq " STACK_BORDER "(%rax)\n\t" /* outer */
        ".cfi_def_cfa_offset 96\n\t"
        "movq %rsp, " STACK_BORDER "(%rax)\n\t"
        "movq %rax, %rbx\n\t"
        "movq %rdi, %rcx\n\t"
        "movq %rsi, %rdi\n\t"
        "call *%rcx\n\t"
        ".globl guard_run_called\n\t"
        ".hidden guard_run_called\n"
        "guard_run_called:\n\t"
        "movq 8(%rsp), %rax\n\t"
        "cmpq %rax, (%rbx)\n\t"
        "jne 2f\n\t"
        "cmpl $1, " STACK_HELD "(%rbx)\n\t"
        "je 2f\n"
        "1:\n\t"
        "movq (%rsp), %rax\n\t"
        "movq %rax, " STACK_BORDER "(%rbx)\n\t"
        "xorl %eax, %eax\n\t"
        "movq 40(%rsp), %rbx\n\t" /* the others are what they were */
        ".cfi_remember_state\n\t"
        ".cfi_restore %rbx\n\t"
        "addq $88, %rsp\n\t"
        ".cfi_def_cfa_offset 8\n\t"
        ".cfi_restore %rbp\n\t"
        ".cfi_restore %r15\n\t"
        ".cfi_restore %r14\n\t"
        ".cfi_restore %r13\n\t"
        ".cfi_restore %r12\n\t"
        "ret\n"
        "2:\n\t"
        ".cfi_restore_state\n\t"
        "movq %rbx, %rdi\n\t"
        "movq %rsp, %rsi\n\t"
        "call guard_run_mend\n\t"
        ".globl guard_run_mended\n\t"
        ".hidden guard_run_mended\n"
        "guard_run_mended:\n\t"
        "jmp 1b\n\t"
        ".globl guard_run_land\n\t"
        ".hidden guard_run_land\n"
        "guard_run_land:\n\t"
        ".cfi_def_cfa %rdi, 96\n\t"
        "leaq 40(%rdi), %rsp\n\t"
        "popq %rbx\n\t"
        "popq %r12\n\t"
        "popq %r13\n\t"
        "popq %r14\n\t"
        "popq %r15\n\t"
        "popq %rbp\n\t"
        "popq %rcx\n\t"
        "jmp *%rcx");
}

#else

/* The border of guard_run: NULL once it is unlinked, which the compiler knows, so that what a foreign unwind needs costs a return nothing. */
static inline void run_leave(guard_impl_border **linked)
{
    if (*linked != NULL) {
        border_leave(*linked);
    }
}

/* setjmp is called in this function, not in one that this calls: after a jump the processor foretells no return rightly. */
int guard_run(guard_fn *fn, void *arg, guard_error *out)
{
    guard_stack *stack = (guard_stack *)(void *)guard_impl_stack; /* hot is its first member */
    if (GUARD_IMPL_UNLIKELY(fn == NULL || stack == NULL)) {
        return guard_run_first(fn, arg, out);
    }
    guard_impl_border border;
    guard_impl_border *linked __attribute__((cleanup(run_leave))) = &border;
    border_link(stack, &border, out);
    if (_setjmp(border.env) == 0) {
        fn(arg);
        border_unlink(stack, &border);
        linked = NULL;
        return 0;
    }
    linked = NULL; /* by the panic, see panic_land_border */
    return border.code;
}

#endif
