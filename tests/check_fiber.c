/* SPDX-License-Identifier: MIT */
/* check_fiber.c: fibers with stacks of their own, and owners that carry resources across the callbacks and threads of an event loop. */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <ucontext.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_process.h>

#include "suite.h"
#include "trace.h"

/* --------------------------------------------------------------------------------------------------- fibers -- */

#define FIBER_BYTES (256 * 1024)

/* ThreadSanitizer is told of each switch; these are there only with it. */
extern void *__tsan_get_current_fiber(void) __attribute__((weak, visibility("default")));
extern void *__tsan_create_fiber(unsigned flags) __attribute__((weak, visibility("default")));
extern void __tsan_destroy_fiber(void *fiber) __attribute__((weak, visibility("default")));
extern void __tsan_switch_to_fiber(void *fiber, unsigned flags) __attribute__((weak, visibility("default")));

typedef struct fiber {
    ucontext_t context;
    ucontext_t caller;
    guard_stack *stack;
    char *memory;
    guard_fn *work;
    int code;
    bool is_over;
    void *sanitized;
    void *sanitized_caller;
} fiber;

static void tell_sanitizer(void *to)
{
    if (__tsan_switch_to_fiber != NULL) {
        __tsan_switch_to_fiber(to, 0);
    }
}

static fiber *running;

static void fiber_main(void)
{
    fiber *f = running;
    f->code = guard_run(f->work, f, NULL);
    f->is_over = true;
    guard_stack_swap(NULL);
    tell_sanitizer(f->sanitized_caller);
    setcontext(&f->caller);
}

static void fiber_open(fiber *f, guard_fn *work)
{
    memset(f, 0, sizeof *f);
    f->work = work;
    f->memory = malloc(FIBER_BYTES);
    ck_assert_ptr_nonnull(f->memory);
    f->stack = guard_stack_new();
    f->sanitized = __tsan_create_fiber != NULL ? __tsan_create_fiber(0) : NULL;
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->memory;
    f->context.uc_stack.ss_size = FIBER_BYTES;
    makecontext(&f->context, fiber_main, 0);
}

static void fiber_resume(fiber *f)
{
    running = f;
    ck_assert_ptr_null(guard_stack_swap(f->stack));
    f->sanitized_caller = __tsan_get_current_fiber != NULL ? __tsan_get_current_fiber() : NULL;
    tell_sanitizer(f->sanitized);
    swapcontext(&f->caller, &f->context);
}

static void fiber_yield(fiber *f)
{
    ck_assert_ptr_eq(guard_stack_swap(NULL), f->stack);
    tell_sanitizer(f->sanitized_caller);
    swapcontext(&f->context, &f->caller);
}

static void fiber_close(fiber *f)
{
    guard_stack_free(f->stack);
    free(f->memory);
    if (__tsan_destroy_fiber != NULL) {
        __tsan_destroy_fiber(f->sanitized);
    }
}

static void two_steps(void *arg)
{
    fiber *f = arg;
    GUARD_AUTO(s);
    guard_defer(s, trace_run, (void *)"outer");
    fiber_yield(f);
    GUARD_AUTO(inner);
    guard_defer(inner, trace_run, (void *)"inner");
    fiber_yield(f);
}

START_TEST(fibers_that_take_turns_run_their_own_scopes)
{
    fiber a;
    fiber b;
    fiber_open(&a, two_steps);
    fiber_open(&b, two_steps);
    {
        GUARD_AUTO(s);
        guard_defer(s, trace_run, (void *)"main");
        fiber_resume(&a);
        fiber_resume(&b);
        fiber_resume(&a);
        trace_expect("");
        fiber_resume(&a);
        trace_expect("run inner, run outer");
        ck_assert(a.is_over);
    }
    trace_expect("run main");
    fiber_resume(&b);
    fiber_resume(&b);
    trace_expect("run inner, run outer");
    fiber_close(&a);
    fiber_close(&b);
}
END_TEST

static void step_and_panic(void *arg)
{
    fiber *f = arg;
    GUARD_AUTO(s);
    guard_defer(s, trace_run, (void *)"fiber");
    fiber_yield(f);
    guard_panic(6, "six");
}

START_TEST(a_panic_in_a_fiber_is_contained_by_the_fibers_border)
{
    fiber f;
    GUARD_AUTO(s);
    guard_defer(s, trace_run, (void *)"main");
    fiber_open(&f, step_and_panic);
    fiber_resume(&f);
    fiber_resume(&f);
    ck_assert(f.is_over);
    ck_assert_int_eq(f.code, 6);
    trace_expect("run fiber");
    fiber_close(&f);
}
END_TEST

static void deadline_in_a_fiber(void *arg)
{
    fiber *f = arg;
    GUARD_AUTO(s);
    guard_deadline(s, 0);
    fiber_yield(f);
    guard_checkpoint();
}

START_TEST(a_deadline_goes_with_its_fiber)
{
    fiber f;
    fiber_open(&f, deadline_in_a_fiber);
    fiber_resume(&f);
    ck_assert_int_eq(guard_remaining_ms(-1), -1);
    guard_checkpoint();
    guard_checkpoint();
    fiber_resume(&f);
    ck_assert_int_eq(f.code, ETIMEDOUT);
    fiber_close(&f);
}
END_TEST

static char note[512];

static void take_note(const char *text)
{
    strncpy(note, text, sizeof note - 1);
}

static void hold_and_wait(void *arg)
{
    fiber *f = arg;
    GUARD_AUTO(s);
    guard_defer_kind(s, &trace_kind, (void *)"kind");
    guard_defer(s, trace_run, (void *)"function");
    fiber_yield(f);
}

START_TEST(a_fiber_that_is_thrown_away_is_released_or_reported)
{
    fiber f;
    guard_note_handler(take_note);
    fiber_open(&f, hold_and_wait);
    fiber_resume(&f);
    fiber_close(&f);
    trace_expect("release kind");
    ck_assert_ptr_nonnull(strstr(note, "1 deferred function was not run"));
}
END_TEST

static void *resume_elsewhere(void *arg)
{
    fiber_resume(arg);
    return strdup(trace_text());
}

START_TEST(a_fiber_goes_on_in_another_thread)
{
    fiber f;
    pthread_t thread;
    void *text;
    fiber_open(&f, step_and_panic);
    fiber_resume(&f);
    ck_assert_int_eq(pthread_create(&thread, NULL, resume_elsewhere, &f), 0);
    ck_assert_int_eq(pthread_join(thread, &text), 0);
    ck_assert_int_eq(f.code, 6);
    ck_assert_str_eq(text, "run fiber");
    free(text);
    fiber_close(&f);
}
END_TEST

static void take_misuse(const guard_error *error)
{
    (void)error;
    trace_add("misuse");
}

static void misuse_a_stack(void *arg)
{
    guard_stack *stack = arg;
    guard_stack_swap(stack);
    guard_scope s;
    guard_scope_open(&s);
    guard_scope_close(&s);
    guard_stack *used = guard_stack_swap(NULL);
    ck_assert_ptr_eq(used, stack);
    guard_stack_swap(stack);
    guard_stack_free(stack);
}

START_TEST(freeing_a_stack_that_is_in_use_is_misuse)
{
    guard_stack *stack = guard_stack_new();
    /* The misuse is raised on the fiber's stack, where there is no border: so it has a handler here. */
    guard_misuse_handler(take_misuse);
    misuse_a_stack(stack);
    trace_expect("misuse");
    guard_stack_swap(NULL);
    guard_stack_free(stack);
    guard_stack_free(NULL);
}
END_TEST

/* --------------------------------------------------------------------------------------------- event loops -- */

/*
 * A connection of an event loop: its resources live from the callback that accepts it to the one that sees its end, in whatever threads
 * these run. Each callback is a border; when it panics, only its own connection ends.
 */
typedef struct client {
    int descriptor;
    guard_owner *owner;
    char bytes[16];
    size_t length;
} client;

static void close_descriptor(void *arg)
{
    client *c = arg;
    close(c->descriptor);
    trace_add("close");
}

static void client_open(client *c, int loop, int descriptor)
{
    *c = (client){.descriptor = descriptor, .owner = guard_owner_new()};
    guard_defer(guard_owner_scope(c->owner), close_descriptor, c);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    ck_assert_int_eq(epoll_ctl(loop, EPOLL_CTL_ADD, descriptor, &event), 0);
}

/* Guarded code of one callback: temporary things on a scope of its own, what stays on the owner. */
static void client_read(void *arg)
{
    client *c = arg;
    GUARD_AUTO(s);
    guard_defer(s, trace_run, (void *)"callback");
    ssize_t got = read(c->descriptor, c->bytes + c->length, sizeof c->bytes - c->length);
    if (got < 0) {
        guard_panic_os("read");
    }
    if (got == 0) {
        guard_panic_in(GUARD_USER, ECONNRESET, "the other side has closed");
    }
    if (memchr(c->bytes + c->length, '!', (size_t)got) != NULL) {
        guard_panic(7, "a request that cannot be served");
    }
    c->length += (size_t)got;
    guard_defer(guard_owner_scope(c->owner), trace_run, (void *)"request");
}

/* One turn of the loop: whatever happens in a callback ends at most its own client. */
static void *loop_turn(void *arg)
{
    struct epoll_event event;
    if (epoll_wait(*(int *)arg, &event, 1, -1) == 1) {
        client *c = event.data.ptr;
        guard_error error;
        if (guard_run(client_read, c, &error) != 0) {
            trace_add("%s", error.message);
            guard_owner_close(c->owner);
            c->owner = NULL;
        }
    }
    return strdup(trace_text());
}

START_TEST(an_owner_carries_resources_across_the_callbacks_and_threads_of_an_event_loop)
{
    int loop = epoll_create1(EPOLL_CLOEXEC);
    int good[2];
    int bad[2];
    client a;
    client b;
    ck_assert_int_eq(pipe(good) | pipe(bad), 0);
    client_open(&a, loop, good[0]);
    client_open(&b, loop, bad[0]);

    ck_assert_int_eq(write(good[1], "one", 3), 3);
    free(loop_turn(&loop));
    trace_expect("run callback");
    ck_assert_int_eq(write(bad[1], "!", 1), 1);
    free(loop_turn(&loop));
    trace_expect("run callback, a request that cannot be served, close");
    ck_assert_ptr_null(b.owner);
    ck_assert_ptr_nonnull(a.owner);

    /* The last turn is another thread's: it closes what this one opened. */
    pthread_t thread;
    void *text;
    close(good[1]);
    ck_assert_int_eq(pthread_create(&thread, NULL, loop_turn, &loop), 0);
    ck_assert_int_eq(pthread_join(thread, &text), 0);
    ck_assert_str_eq(text, "run callback, the other side has closed, run request, close");
    free(text);
    ck_assert_ptr_null(a.owner);
    close(bad[1]);
    close(loop);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        fibers_that_take_turns_run_their_own_scopes,
        a_panic_in_a_fiber_is_contained_by_the_fibers_border,
        a_deadline_goes_with_its_fiber,
        a_fiber_that_is_thrown_away_is_released_or_reported,
        a_fiber_goes_on_in_another_thread,
        freeing_a_stack_that_is_in_use_is_misuse,
        an_owner_carries_resources_across_the_callbacks_and_threads_of_an_event_loop,
    };
    return suite_run("fiber", tests, sizeof tests / sizeof *tests);
}
