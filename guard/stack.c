/* SPDX-License-Identifier: MIT */
/*
 * stack.c: the state of a thread, and the stacks of fibers: made at first use, freed when the thread ends.
 *
 *     (none) --first use--> empty --open/defer--> in use --last close--> empty --thread ends--> freed
 *                                                   \--thread ends: its frames are gone, see orphan.c--> freed
 *
 * Invariants: guard_stack_own is the stack this thread uses: its own, or that of the fiber it runs. guard_impl_stack equals it but while
 * a panic is held: then it is NULL, which sends every inline call to its slow path, where the held panic is raised.
 * Every stack is on the list of all stacks from its making to its end.
 */
#include <errno.h>
#include <stdatomic.h>
#include <unistd.h>

#include "internal.h"

__thread guard_impl_stack_t *guard_impl_stack __attribute__((tls_model("initial-exec")));
__thread guard_stack *guard_stack_own;
__thread guard_thread *guard_thread_own;
__thread uint32_t guard_impl_attention __attribute__((tls_model("initial-exec")));
__thread uint32_t guard_impl_foreign __attribute__((tls_model("initial-exec")));

pthread_mutex_t guard_life_lock = PTHREAD_MUTEX_INITIALIZER;
guard_thread *guard_threads;
guard_stack *guard_stacks;

static pthread_once_t stack_once = PTHREAD_ONCE_INIT;
static pthread_key_t stack_key;
static int stack_key_error;

/* ----------------------------------------------------------------------------------------------- stacks -- */

void guard_stack_open(guard_stack *stack)
{
    stack->hot.top = NULL;
    stack->hot.ran = 0;
    stack->border = NULL;
    stack->panic = NULL;
    stack->leaving = NULL;
    stack->held = HELD_NONE;
    stack->is_swapped = false;
    stack->is_unwound = false;
    stack->context = NULL;
    memset(&stack->orphans, 0, sizeof stack->orphans);
    stack->orphans.stack = &stack->hot;
    guard_pool_open(&stack->pool, &stack->hot.free, stack->records, POOL_FIRST);
    pthread_mutex_lock(&guard_life_lock);
    stack->next = guard_stacks;
    stack->at = &guard_stacks;
    if (stack->next != NULL) {
        stack->next->at = &stack->next;
    }
    guard_stacks = stack;
    pthread_mutex_unlock(&guard_life_lock);
}

static void stack_unlist(guard_stack *stack)
{
    pthread_mutex_lock(&guard_life_lock);
    guard_ran_end(stack);
    *stack->at = stack->next;
    if (stack->next != NULL) {
        stack->next->at = stack->at;
    }
    pthread_mutex_unlock(&guard_life_lock);
}

void guard_stack_use(guard_stack *stack)
{
    guard_stack_own = stack;
    guard_impl_stack = stack->held == HELD_WAITING ? NULL : &stack->hot;
    if (stack->held == HELD_WAITING) {
        guard_attention_set(&guard_impl_attention, ATTENTION_HELD);
    } else {
        guard_attention_clear(&guard_impl_attention, ATTENTION_HELD);
    }
    /* Its scopes may have deadlines; the next checkpoint looks. */
    guard_attention_set(&guard_impl_attention, ATTENTION_DEADLINE);
}

void guard_stack_end_held(guard_stack *stack)
{
    const guard_error *held = &stack->held_error;
    if (stack->held == HELD_WAITING && held->domain == GUARD_MISUSE && held->code == GUARD_MISUSE_SCOPE) {
        guard_error error;
        guard_unhold(stack, &error);
        guard_note("%s", error.message);
    }
    guard_raise_held();
}

void guard_stack_close(guard_stack *stack)
{
    stack->border = NULL;
    stack->panic = NULL;
    stack->leaving = NULL;
    bool is_in_use = stack->hot.top != NULL || stack->orphans.head != NULL;
    stack->hot.top = NULL;
    guard_stack_end_held(stack);
    if (is_in_use) {
        guard_before_jump(); /* the frames that were passed did not unpoison themselves */
        guard_orphans_collect(stack, 0, UINTPTR_MAX);
        guard_orphans_release(stack);
    }
    stack_unlist(stack);
    guard_pool_close(&stack->pool);
    guard_deallocate(stack->context);
}

/* ---------------------------------------------------------------------------------------------- threads -- */

static void thread_list(guard_thread *thread)
{
    static uint64_t serial;
    pthread_mutex_lock(&guard_life_lock);
    thread->serial = ++serial;
    thread->next = guard_threads;
    thread->at = &guard_threads;
    if (thread->next != NULL) {
        thread->next->at = &thread->next;
    }
    guard_threads = thread;
    if (guard_signal_is_pending()) {
        guard_attention_set(thread->attention, ATTENTION_SIGNAL);
    }
    guard_signal_watch();
    pthread_mutex_unlock(&guard_life_lock);
}

static void thread_unlist(guard_thread *thread)
{
    guard_impl_counts = NULL;
    pthread_mutex_lock(&guard_life_lock);
    guard_counts_end(thread);
    *thread->at = thread->next;
    if (thread->next != NULL) {
        thread->next->at = thread->at;
    }
    pthread_mutex_unlock(&guard_life_lock);
}

/* The destructor of the thread's key. */
static void thread_close(void *memory)
{
    guard_thread *thread = memory;
    thread->stack.is_unwound = false;
    guard_stack_use(&thread->stack);
    guard_stack_close(&thread->stack);
    thread_unlist(thread);
    if (thread->wake >= 0) {
        close(thread->wake);
    }
    if (thread->tid == getpid()) {
        guard_watch_main_ended();
    }
    pthread_mutex_destroy(&thread->lock);
    guard_alternate_close(thread);
    guard_stack_own = NULL;
    guard_impl_stack = NULL;
    guard_thread_own = NULL;
    guard_impl_attention = 0;
    guard_deallocate(thread);
}

static void stack_key_make(void)
{
    stack_key_error = pthread_key_create(&stack_key, thread_close);
    if (stack_key_error == 0) {
        stack_key_error = guard_fork_prepare();
    }
}

/* ThreadSanitizer's runtime has it, which a program that is built for it brings along. */
extern void __tsan_init(void) __attribute__((weak));

/*
 * ThreadSanitizer keeps a list of the frames of each thread, which a jump that it does not see leaves full of frames that are gone: it dies after
 * many panics.
 */
static void tell_of_sanitizer(void)
{
    static atomic_bool is_told;
    if (!IS_THREAD_SANITIZED && __tsan_init != NULL && !atomic_exchange(&is_told, true)) {
        guard_note("the program is built for ThreadSanitizer and libguard is not: use one that was configured with "
                   "--enable-sanitize=thread");
    }
}

guard_stack *guard_stack_make(void)
{
    if (guard_stack_own != NULL) {
        return guard_stack_own;
    }
    pthread_once(&stack_once, stack_key_make);
    guard_thread *thread = guard_memory_take(sizeof *thread);
    if (thread == NULL) {
        return NULL;
    }
    /* Without a key (PTHREAD_KEYS_MAX are in use) the state would leak at the thread's end: refuse, as for memory. */
    if (stack_key_error != 0 || pthread_setspecific(stack_key, thread) != 0) {
        guard_deallocate(thread);
        return NULL;
    }
    guard_stack_open(&thread->stack);
    thread->id = pthread_self();
    thread->tid = gettid();
    thread->attention = &guard_impl_attention;
    thread->wake = -1;
    thread->is_woken = false;
    thread->interrupts = NULL;
    thread->trace_number = 0;
    thread->trace_turn = 0;
    thread->trace_next = 0;
    for (uint32_t i = 0; i < GUARD_TRACE_KEPT; i++) {
        thread->traces[i].number = 0;
    }
    thread->alternate = NULL;
    thread->stack_low = thread->stack_high = 0;
    for (uint32_t i = 0; i < SITE_MEMOS; i++) {
        thread->memos[i].place = SITE_NONE;
    }
    memset(thread->counts, 0, sizeof thread->counts);
    pthread_mutex_init(&thread->lock, NULL);
    thread_list(thread);
    guard_thread_own = thread;
    guard_impl_counts = thread->counts;
    guard_stack_own = &thread->stack;
    guard_impl_stack = &thread->stack.hot;
    guard_alternate_open(thread);
    tell_of_sanitizer();
    return guard_stack_own;
}

guard_stack *guard_stack_here_first(void)
{
    guard_stack *stack = guard_stack_make();
    if (stack == NULL) {
        guard_panic_in(GUARD_MEMORY, ENOMEM, "out of memory for the thread's guard stack");
    }
    return stack;
}

/* ----------------------------------------------------------------------------------------------- fibers -- */

guard_stack *guard_stack_new(void)
{
    guard_stack_here();
    guard_raise_held();
    guard_stack *stack = guard_allocate(sizeof *stack);
    guard_stack_open(stack);
    return stack;
}

guard_stack *guard_stack_swap(guard_stack *stack)
{
    guard_stack *former = guard_stack_here();
    guard_stack *own = &guard_thread_own->stack;
    guard_stack *next = stack != NULL ? stack : own;
    if (next != own && next != former && next->is_swapped) {
        guard_misuse(GUARD_MISUSE_STATE, "guard_stack_swap to a stack that another thread uses");
        return former == own ? NULL : former;
    }
    former->is_swapped = false;
    next->is_swapped = next != own;
    guard_stack_use(next);
    return former == own ? NULL : former;
}

void guard_stack_free(guard_stack *stack)
{
    if (stack == NULL) {
        return;
    }
    if (stack->is_swapped || stack == guard_stack_here()) {
        guard_misuse(GUARD_MISUSE_STATE, "guard_stack_free of a stack that is in use");
        return;
    }
    guard_stack *former = guard_stack_own;
    guard_stack_use(stack);
    guard_stack_close(stack);
    guard_stack_use(former);
    guard_deallocate(stack);
}
