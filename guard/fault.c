/* SPDX-License-Identifier: MIT */
/*
 * fault.c: a fault of the program's own code as a panic.
 *
 *   instruction faults --> handler (alternate stack): may it be a panic? --no--> fatal.c
 *                             | yes: a frame as the kernel makes it is laid on the thread's own stack, below the red zone,
 *                             v      and the interrupted context is pointed at it
 *                          handler returns: the kernel restores signal mask and alternate stack --> fault_land, on the own stack
 *                             |
 *                             v
 *                          guard_raise: an ordinary panic, whose frames lie on top of those of the fault
 *
 * The frame is that of a signal handler, so that whoever unwinds from the panic outwards (leave.c, pthread_cancel, a debugger) finds the
 * faulting function with all its registers, as it does in a signal handler: by the call frame information of its return address, or by the
 * two instructions there (libgcc's linux-unwind.h; libunwind and gdb do the same). fault_land never returns to them.
 *
 * Whether it may be a panic is asked in the handler, of the frames from the fault to the border, by _Unwind_Backtrace. That takes no lock
 * where libgcc finds modules by _dl_find_object, which is async-signal-safe (glibc 2.35, gcc 12; Debian 12's libgcc_s imports it); what it
 * initialises once is warmed up at the switching on. Where another libgcc takes the loader's lock, the thread that faulted does not hold
 * it: it would be in the loader's code, which is refused before the walk. A walk over a stack that was written over may itself fault: it runs
 * inside guard_fatal_try, and then the first fault is fatal.
 *
 * Invariant: nothing of the thread or the library is changed before the answer is yes.
 */
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <link.h>
#include <signal.h>
#include <ucontext.h>
#include <unwind.h>

#include "internal.h"

/* The least that must be left of the stack below the fault: a panic, its deferred functions, and their logging. */
#define FAULT_ROOM ((uintptr_t)32 * 1024)
/* How far below the end of a stack a frame may reach that overflows it. */
#define FAULT_BEYOND ((uintptr_t)1024 * 1024)

#if defined(DLFO_EH_SEGMENT_TYPE) && (defined(__x86_64__) || defined(__aarch64__)) && defined(__LP64__)
#define FAULT_IS_KNOWN 1
#else
#define FAULT_IS_KNOWN 0
#endif

static uint32_t fault_is_on;

/* ------------------------------------------------------------------------------------------ the processor -- */

#if FAULT_IS_KNOWN

typedef struct fault_facts {
    int signo;
    int code;
    uintptr_t address;
    uintptr_t pc;
} fault_facts;

/* The instructions of the kernel's return from a signal handler, by which unwinders and debuggers know its frame. The nop in front is
 * what they look up as the call that returns there, and must not belong to another function. */
extern const char guard_fault_return[] __attribute__((visibility("hidden")));

#ifdef __x86_64__

/* DWARF's register is found `at` bytes from the stack pointer, where the kernel's struct ucontext has it: DW_CFA_expression, DW_OP_breg7. */
#define SAVED(dwarf, at) ".cfi_escape 0x10, " #dwarf ", 3, 0x77, (" #at " & 0x7f) + 0x80, " #at " >> 7\n"

/* As glibc's __restore_rt: the CFA is the interrupted stack pointer, DW_CFA_def_cfa_expression (DW_OP_breg7, DW_OP_deref). */
__asm__(".text\n"
        ".balign 16\n"
        ".cfi_startproc simple\n"
        ".cfi_signal_frame\n"
        ".cfi_escape 0x0f, 4, 0x77, (160 & 0x7f) + 0x80, 160 >> 7, 0x06\n" /* CFA */
        SAVED(0, 144)                                                      /* rax */
        SAVED(1, 136)                                                      /* rdx */
        SAVED(2, 152)                                                      /* rcx */
        SAVED(3, 128)                                                      /* rbx */
        SAVED(4, 112)                                                      /* rsi */
        SAVED(5, 104)                                                      /* rdi */
        SAVED(6, 120)                                                      /* rbp */
        SAVED(7, 160)                                                      /* rsp */
        SAVED(8, 40)                                                       /* r8 */
        SAVED(9, 48)                                                       /* r9 */
        SAVED(10, 56)                                                      /* r10 */
        SAVED(11, 64)                                                      /* r11 */
        SAVED(12, 72)                                                      /* r12 */
        SAVED(13, 80)                                                      /* r13 */
        SAVED(14, 88)                                                      /* r14 */
        SAVED(15, 96)                                                      /* r15 */
        SAVED(16, 168)                                                     /* rip */
        "nop\n"
        ".globl guard_fault_return\n"
        ".hidden guard_fault_return\n"
        ".type guard_fault_return, @function\n"
        "guard_fault_return:\n"
        ".byte 0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00\n" /* mov $__NR_rt_sigreturn, %rax */
        ".byte 0x0f, 0x05\n"                               /* syscall */
        ".size guard_fault_return, 9\n"
        ".cfi_endproc\n");

_Static_assert(offsetof(ucontext_t, uc_mcontext.gregs[REG_R8]) == 40, "the offsets above");
_Static_assert(offsetof(ucontext_t, uc_mcontext.gregs[REG_RSP]) == 160, "the offsets above");
_Static_assert(offsetof(ucontext_t, uc_mcontext.gregs[REG_RIP]) == 168, "the offsets above");

#define FAULT_RED_ZONE 128
/* What the kernel's struct ucontext has; that of glibc goes on. */
#define FAULT_CONTEXT (offsetof(ucontext_t, uc_sigmask) + sizeof(uint64_t))

/* struct rt_sigframe of the kernel: at entry the stack pointer is at the return address, as after a call. */
typedef struct fault_frame {
    const void *returns_to;
    char context[FAULT_CONTEXT];
    fault_facts facts;
} fault_frame;

static inline uintptr_t context_pc(const ucontext_t *context)
{
    return (uintptr_t)context->uc_mcontext.gregs[REG_RIP];
}

static inline uintptr_t context_sp(const ucontext_t *context)
{
    return (uintptr_t)context->uc_mcontext.gregs[REG_RSP];
}

/* The instruction was fetched after a call to nowhere: back to the call. The return address is its end, so the call is before. */
static void context_undo_call(ucontext_t *context)
{
    uintptr_t sp = context_sp(context);
    context->uc_mcontext.gregs[REG_RIP] = (greg_t)(*(const uintptr_t *)sp - 1);
    context->uc_mcontext.gregs[REG_RSP] = (greg_t)(sp + sizeof(uintptr_t));
}

static fault_frame *frame_place(uintptr_t sp)
{
    return (fault_frame *)(((sp - FAULT_RED_ZONE - sizeof(fault_frame)) & ~(uintptr_t)15) - 8);
}

static void frame_fill(fault_frame *frame, const ucontext_t *context)
{
    frame->returns_to = guard_fault_return;
    memcpy(frame->context, context, sizeof frame->context);
}

static void context_enter(ucontext_t *context, void (*land)(fault_frame *), fault_frame *frame)
{
    const greg_t direction = 0x400; /* clear at each function's entry */
    context->uc_mcontext.gregs[REG_RIP] = (greg_t)land;
    context->uc_mcontext.gregs[REG_RSP] = (greg_t)frame;
    context->uc_mcontext.gregs[REG_RDI] = (greg_t)frame;
    context->uc_mcontext.gregs[REG_EFL] &= ~direction;
}

#else

__asm__(".text\n"
        ".balign 16\n"
        "nop\n"
        ".globl guard_fault_return\n"
        ".hidden guard_fault_return\n"
        ".type guard_fault_return, %function\n"
        "guard_fault_return:\n"
        "mov x8, #139\n" /* __NR_rt_sigreturn */
        "svc #0\n"
        ".size guard_fault_return, 8\n");

#define FAULT_RED_ZONE 0
#define FAULT_CONTEXT (offsetof(ucontext_t, uc_mcontext.__reserved) + 16) /* and the end of its list of extensions */

/* struct rt_sigframe of the kernel. */
typedef struct fault_frame {
    siginfo_t info;
    char context[FAULT_CONTEXT] __attribute__((aligned(16)));
    fault_facts facts;
} fault_frame;

static inline uintptr_t context_pc(const ucontext_t *context)
{
    return (uintptr_t)context->uc_mcontext.pc;
}

static inline uintptr_t context_sp(const ucontext_t *context)
{
    return (uintptr_t)context->uc_mcontext.sp;
}

static void context_undo_call(ucontext_t *context)
{
    context->uc_mcontext.pc = context->uc_mcontext.regs[30] - 4;
}

static fault_frame *frame_place(uintptr_t sp)
{
    return (fault_frame *)((sp - sizeof(fault_frame)) & ~(uintptr_t)15);
}

static void frame_fill(fault_frame *frame, const ucontext_t *context)
{
    memset(frame, 0, sizeof *frame);
    memcpy(frame->context, context, offsetof(ucontext_t, uc_mcontext.__reserved));
}

static void context_enter(ucontext_t *context, void (*land)(fault_frame *), fault_frame *frame)
{
    context->uc_mcontext.pc = (uintptr_t)land;
    context->uc_mcontext.sp = (uintptr_t)frame;
    context->uc_mcontext.regs[0] = (uintptr_t)frame;
    context->uc_mcontext.regs[30] = (uintptr_t)guard_fault_return;
}

#endif

/* -------------------------------------------------------------------------------------------- own modules -- */

#define FAULT_MODULES 32

/* The beginnings of the modules that are the program's own; 0: none. Written once each. */
static uintptr_t fault_modules[FAULT_MODULES];
static uintptr_t fault_core; /* libguard's own module; the main program's where it is linked statically */

typedef enum fault_owner { FOREIGN, LIBRARY, PROGRAM } fault_owner;

static bool module_is_named(uintptr_t start)
{
    for (int i = 0; i < FAULT_MODULES; i++) {
        uintptr_t own = __atomic_load_n(&fault_modules[i], __ATOMIC_ACQUIRE);
        if (own == start || own == 0) {
            return own != 0;
        }
    }
    return false;
}

static bool name_begins(const char *name, const char *with)
{
    return strncmp(name, with, strlen(with)) == 0;
}

static fault_owner fault_owner_of(uintptr_t pc)
{
    guard_module module;
    if (!guard_module_find(pc, &module)) {
        return FOREIGN; /* code that was made while the program runs, or none at all */
    }
    if (module_is_named(module.start)) {
        return PROGRAM;
    }
    const char *name = guard_module_name(&module);
    bool is_ours = module.start == fault_core || name_begins(name, "libguard-sqlite.so") ||
                   name_begins(name, "libguard-pq.so");
    return is_ours ? LIBRARY : FOREIGN;
}

static bool module_add(uintptr_t start)
{
    for (int i = 0; i < FAULT_MODULES; i++) {
        uintptr_t none = 0;
        if (__atomic_compare_exchange_n(&fault_modules[i], &none, start, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE) ||
            none == start) {
            return true;
        }
    }
    return false;
}

/* ------------------------------------------------------------------------------------------------ landing -- */

/* The first code on the thread's own stack. An ordinary function in an ordinary state: the program's own code was interrupted, no lock of
 * libc is held. */
static void fault_land(fault_frame *frame)
{
    const fault_facts *facts = &frame->facts;
    char text[sizeof((guard_error *)0)->message];
    char detail[sizeof((guard_error *)0)->detail];
    guard_line line = {text, sizeof text, 0};
    guard_error error;
    guard_error_open(&error, GUARD_FAULT, facts->signo);
    guard_line_signal(&line, facts->signo);
    guard_line_text(&line, facts->signo == SIGFPE ? ": " : ", ");
    guard_line_fault(&line, facts->signo, facts->code, facts->address);
    guard_line_text(&line, ", pc ");
    guard_line_place(&line, facts->pc);
    guard_text_copy(error.message, sizeof error.message, text);
    line = (guard_line){detail, sizeof detail, 0};
    guard_line_text(&line, "address ");
    guard_line_hex(&line, facts->address);
    guard_line_text(&line, ", pc ");
    guard_line_hex(&line, facts->pc);
    guard_text_copy(error.detail, sizeof error.detail, detail);
    guard_raise(guard_stack_own, &error, NULL, (const void *)facts->pc);
}

/* --------------------------------------------------------------------------------------------- the question -- */

typedef struct fault_walk {
    uintptr_t pc; /* of the fault */
    uintptr_t border;
    uintptr_t last;
    bool is_begun;
    bool is_over; /* the frame that the border lies in was reached, all before it may be left */
    guard_fault_refusal *refusal;
} fault_walk;

/* In an unwinder's callback the CFA of a context is the stack pointer that its frame had at the call (leave.c). So a frame ends where the
 * next one's begins, and the border lies in the last frame whose beginning is not beyond it. */
static _Unwind_Reason_Code walk_look(struct _Unwind_Context *context, void *memory)
{
    fault_walk *walk = memory;
    int is_exact = 0;
    uintptr_t ip = _Unwind_GetIPInfo(context, &is_exact);
    uintptr_t begin = _Unwind_GetCFA(context);
    if (!walk->is_begun) { /* the handler's own frames; on aarch64 the CFA is here where the kernel has saved the registers */
        walk->is_begun = is_exact && ip == walk->pc;
        return _URC_NO_REASON;
    }
    if (begin > walk->border) {
        walk->is_over = true;
        return _URC_NORMAL_STOP;
    }
    if (begin <= walk->last) {
        return _URC_NORMAL_STOP; /* no stack of ours looks so */
    }
    walk->last = begin;
    ip -= !is_exact;
    if (fault_owner_of(ip) == FOREIGN) {
        *walk->refusal = (guard_fault_refusal){"between the fault and the border is a frame of ", ip};
        return _URC_NORMAL_STOP;
    }
    return _URC_NO_REASON;
}

typedef struct fault_question {
    int signo;
    const siginfo_t *info;
    ucontext_t *context;
    guard_fault_refusal *refusal;
    fault_frame *frame; /* the answer */
} fault_question;

static bool fault_refuse(fault_question *question, const char *why)
{
    question->refusal->why = why;
    return false;
}

/* Whether an instruction of the thread raised it, at which it stands. */
static bool fault_is_synchronous(fault_question *question)
{
    int code = question->info->si_code;
    if (code <= 0) {
        return fault_refuse(question, "the signal was sent");
    }
    if (question->signo == SIGFPE && code != FPE_INTDIV) {
        return fault_refuse(question, "only that of an integer division can be one");
    }
    if (question->signo == SIGBUS && code != BUS_ADRALN && code != BUS_ADRERR) {
        return fault_refuse(question, "the memory is bad");
    }
    if (question->signo == SIGSEGV && code != SEGV_MAPERR && code != SEGV_ACCERR && code != SI_KERNEL) {
        return fault_refuse(question, "the memory is protected in another way");
    }
    return true;
}

static bool fault_is_on_stack(fault_question *question)
{
    const guard_thread *thread = guard_thread_own;
    uintptr_t low = thread->stack_low;
    uintptr_t high = thread->stack_high;
    uintptr_t sp = context_sp(question->context);
    uintptr_t address = (uintptr_t)question->info->si_addr;
    uintptr_t room = (high - low) / 4 < FAULT_ROOM ? (high - low) / 4 : FAULT_ROOM;
    if (high == 0) {
        return fault_refuse(question, "this thread used the library before guard_faults_to_panics");
    }
    if (question->signo == SIGSEGV && address < low + room && address >= low - FAULT_BEYOND && sp < low + room &&
        sp >= low - FAULT_BEYOND) {
        return fault_refuse(question, "the stack has overflowed");
    }
    if (sp < low || sp >= high) {
        return fault_refuse(question, "it was on another stack than the thread's own");
    }
    if (sp < low + room) {
        return fault_refuse(question, "there is too little left of the stack");
    }
    return true;
}

static bool fault_is_in_own_code(fault_question *question)
{
    uintptr_t pc = context_pc(question->context);
    switch (fault_owner_of(pc)) {
    case PROGRAM:
        return true;
    case LIBRARY:
        return fault_refuse(question, "it was in libguard itself");
    default:
        *question->refusal = (guard_fault_refusal){"it was in ", pc};
        return false;
    }
}

static bool fault_walk_out(fault_question *question, uintptr_t border)
{
    fault_walk walk = {.pc = context_pc(question->context),
                       .border = border,
                       .last = context_sp(question->context) - 1, /* a leaf of aarch64 has no frame */
                       .refusal = question->refusal};
    question->refusal->why = "its frames could not be followed to the border";
    _Unwind_Backtrace(walk_look, &walk);
    return walk.is_over;
}

static void fault_ask(void *memory)
{
    fault_question *question = memory;
    const guard_stack *stack = guard_stack_own;
    if (!fault_is_synchronous(question)) {
        return;
    }
    if (stack == NULL || guard_thread_own == NULL) {
        fault_refuse(question, "there is no border");
        return;
    }
    if (!fault_is_on_stack(question)) {
        return;
    }
    uintptr_t border = (uintptr_t)stack->border;
    if (border == 0) {
        fault_refuse(question, "there is no border");
        return;
    }
    if (border < context_sp(question->context) || border >= guard_thread_own->stack_high) {
        fault_refuse(question, "the border is on another stack");
        return;
    }
    if (guard_impl_foreign != 0) {
        fault_refuse(question, "a call of another library is in progress");
        return;
    }
    if (!fault_is_in_own_code(question) || !fault_walk_out(question, border)) {
        return;
    }
    fault_frame *frame = frame_place(context_sp(question->context));
    frame_fill(frame, question->context);
    question->frame = frame;
}

/* A call of NULL, or of another address that is no code, has gone there already: it is the caller's fault. */
static bool fault_is_call(const fault_question *question)
{
    uintptr_t pc = context_pc(question->context);
    guard_module module;
    if (question->signo != SIGSEGV || question->info->si_code <= 0) {
        return false;
    }
    return question->info->si_code == SI_KERNEL ? !guard_module_find(pc, &module)
                                                : (uintptr_t)question->info->si_addr == pc;
}

static void fault_undo_call(void *memory)
{
    context_undo_call(memory);
}

bool guard_fault_redirect(int signo, const siginfo_t *info, void *memory, guard_fault_refusal *refusal)
{
    ucontext_t *context = memory;
    fault_question question = {.signo = signo, .info = info, .context = context, .refusal = refusal};
    if (!__atomic_load_n(&fault_is_on, __ATOMIC_ACQUIRE)) {
        return false;
    }
    mcontext_t former = context->uc_mcontext;
    if (fault_is_call(&question)) {
        (void)guard_fatal_try(fault_undo_call, context);
    }
    refusal->why = "its frames could not be read";
    if (!guard_fatal_try(fault_ask, &question) || question.frame == NULL) {
        context->uc_mcontext = former; /* the core file is to have the fault as it was */
        return false;
    }
    question.frame->facts = (fault_facts){
        .signo = signo, .code = info->si_code, .address = (uintptr_t)info->si_addr, .pc = context_pc(context)};
    context_enter(context, fault_land, question.frame);
    return true;
}

uintptr_t guard_fault_pc(const void *context)
{
    return context_pc(context);
}

/* ----------------------------------------------------------------------------------------------- public -- */

static _Unwind_Reason_Code warm_look(struct _Unwind_Context *context, void *memory)
{
    (void)context;
    (void)memory;
    return _URC_NO_REASON;
}

/* The main program comes first. A static one has no interpreter. */
static int main_look(struct dl_phdr_info *info, size_t size, void *memory)
{
    uintptr_t *start = memory;
    (void)size;
    uintptr_t lowest = UINTPTR_MAX;
    bool is_dynamic = false;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        is_dynamic = is_dynamic || part->p_type == PT_INTERP;
        if (part->p_type == PT_LOAD && part->p_flags & PF_X && info->dlpi_addr + part->p_vaddr < lowest) {
            lowest = info->dlpi_addr + part->p_vaddr;
        }
    }
    *start = is_dynamic ? lowest : 0;
    return 1;
}

int guard_faults_to_panics(void)
{
    guard_stack_here();
    guard_raise_held();
    uintptr_t code = 0;
    guard_module module;
    dl_iterate_phdr(main_look, &code);
    if (code == 0 || !guard_module_find(code, &module)) {
        return ENOTSUP;
    }
    module_add(module.start);
    if (!guard_module_find((uintptr_t)guard_fault_return, &module)) {
        return ENOTSUP;
    }
    fault_core = module.start;
    _Unwind_Backtrace(warm_look, NULL);
    guard_fatal_prepare();
    __atomic_store_n(&fault_is_on, 1, __ATOMIC_RELEASE);
    guard_fatal_install(SIGSEGV);
    guard_fatal_install(SIGBUS);
    guard_fatal_install(SIGFPE);
    return 0;
}

void guard_fault_module(const void *code)
{
    guard_module module;
    if (!guard_module_find((uintptr_t)code, &module)) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "guard_fault_module(%p): there is no module", code);
    } else if (!module_add(module.start)) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "guard_fault_module: more than %d modules", FAULT_MODULES);
    }
}

#else

bool guard_fault_redirect(int signo, const siginfo_t *info, void *context, guard_fault_refusal *refusal)
{
    (void)signo;
    (void)info;
    (void)context;
    (void)refusal;
    return false;
}

uintptr_t guard_fault_pc(const void *context)
{
    (void)context;
    return 0;
}

int guard_faults_to_panics(void)
{
    return ENOSYS;
}

void guard_fault_module(const void *code)
{
    (void)code;
}

#endif
