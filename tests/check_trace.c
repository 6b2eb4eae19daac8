/* SPDX-License-Identifier: MIT */
/* check_trace.c: the stack on which a panic was raised, and the names of its frames. */
#include <errno.h>
#include <gnu/libc-version.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <guard/guard_group.h>
#include <guard/guard_trace.h>

#include "child.h"
#include "suite.h"

#define FRAME __attribute__((noinline))

static __thread volatile int steps; /* keeps a call from being the function's last, which would not return to it */

static FRAME void raise_here(void *arg)
{
    steps++;
    guard_panic(7, "%s", arg != NULL ? (const char *)arg : "");
}

static FRAME void outer_frame(void *arg)
{
    raise_here(arg);
    steps++;
}

static guard_error error;
static guard_trace trace;

static FRAME void caught(void)
{
    memset(&error, 0, sizeof error);
    ck_assert_int_eq(guard_run(outer_frame, "boom", &error), 7);
}

/* Frame `index` lies in fn, as far as an address tells: within the few instructions that these functions have. */
static void expect_in(unsigned index, void (*fn)(void *))
{
    ck_assert_uint_lt(index, trace.count);
    uintptr_t distance = (uintptr_t)trace.frames[index] - (uintptr_t)fn;
    ck_assert_msg(distance < 1024, "frame %u is %p, the function begins at %p", index, trace.frames[index],
                  (void *)(uintptr_t)fn);
}

START_TEST(a_caught_panic_is_not_traced_unless_that_is_switched_on)
{
    caught();
    ck_assert_uint_eq(error.trace, 0);
    ck_assert_uint_eq(guard_trace_of(&error, &trace), 0);
    ck_assert_uint_eq(trace.count, 0);
}
END_TEST

START_TEST(the_border_s_caller_reads_the_stack_from_the_raising_function_outwards)
{
    ck_assert_int_eq(guard_trace_capture(1), GUARD_TRACE_UNCAUGHT);
    caught();
    ck_assert_uint_gt(guard_trace_of(&error, &trace), 3);
    expect_in(0, raise_here);
    expect_in(1, outer_frame);
    ck_assert_uint_eq(trace.is_cut, 0);
    ck_assert_int_eq(guard_trace_capture(GUARD_TRACE_NEVER), 1);
    caught();
    ck_assert_uint_eq(guard_trace_of(&error, &trace), 0);
}
END_TEST

START_TEST(every_nth_panic_is_traced_where_that_is_asked_for)
{
    guard_trace_capture(4);
    for (int i = 1; i <= 12; i++) {
        caught();
        ck_assert_int_eq(guard_trace_of(&error, &trace) > 0, i % 4 == 0);
    }
}
END_TEST

/* -------------------------------------------------------------------------------- which panic a trace is of -- */

static void raise_another(void *arg)
{
    guard_panic(8, "%s", (const char *)arg);
}

/* More of them than a thread keeps. */
static void raise_and_catch_many(void *arg)
{
    (void)arg;
    for (int i = 0; i < 2 * GUARD_TRACE_KEPT; i++) {
        ck_assert_int_eq(guard_run(raise_another, "inner", NULL), 8);
    }
}

static FRAME void raise_over_deferred_ones(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, raise_and_catch_many, NULL);
    raise_here(arg);
    steps++;
}

START_TEST(what_deferred_functions_raise_and_catch_does_not_push_the_trace_out)
{
    guard_trace_capture(1);
    ck_assert_int_eq(guard_run(raise_over_deferred_ones, "first", &error), 7);
    ck_assert_uint_gt(guard_trace_of(&error, &trace), 3);
    expect_in(0, raise_here);
    expect_in(1, raise_over_deferred_ones);
}
END_TEST

static const guard_kind failing_kind = {.name = "failing", .release = raise_another};

static FRAME void raise_with_a_failing_cleanup(void *arg)
{
    GUARD_AUTO(s);
    guard_defer_kind(s, &failing_kind, "cleanup");
    raise_here(arg);
    steps++;
}

START_TEST(a_failing_cleanup_leaves_the_first_panic_s_trace)
{
    guard_trace_capture(1);
    ck_assert_int_eq(guard_run(raise_with_a_failing_cleanup, "first", &error), 7);
    ck_assert_int_eq(error.cause_count, 1);
    ck_assert_uint_gt(guard_trace_of(&error, &trace), 3);
    expect_in(0, raise_here);
}
END_TEST

static FRAME void replace(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, raise_another, arg);
    raise_here("older");
    steps++;
}

START_TEST(a_panic_that_replaced_another_has_the_stack_with_the_older_one_below_it)
{
    guard_trace_capture(1);
    ck_assert_int_eq(guard_run(replace, "newer", &error), 8);
    ck_assert_uint_gt(guard_trace_of(&error, &trace), 5);
    expect_in(0, raise_another);
    unsigned i = 1;
    while (i < trace.count && (uintptr_t)trace.frames[i] - (uintptr_t)raise_here >= 256) {
        i++;
    }
    ck_assert_msg(i < trace.count, "the older panic's function is not in it");
}
END_TEST

static FRAME void hold_one(void *arg)
{
    {
        GUARD_AUTO(s);
        guard_defer(s, raise_here, arg);
    }
    steps++;
    GUARD_AUTO(t); /* raises it */
    guard_defer(t, raise_another, "not reached");
}

START_TEST(a_held_panic_keeps_its_trace)
{
    guard_trace_capture(1);
    ck_assert_int_eq(guard_run(hold_one, "held", &error), 7);
    ck_assert_uint_gt(guard_trace_of(&error, &trace), 3);
    expect_in(0, raise_here);
}
END_TEST

static void raise_again(void *arg)
{
    guard_panic_error((const guard_error *)arg);
}

START_TEST(an_error_that_is_raised_again_keeps_its_first_trace)
{
    guard_error second;
    guard_trace_capture(1);
    caught();
    raise_and_catch_many(NULL);
    caught();
    ck_assert_int_eq(guard_run(raise_again, &error, &second), 7);
    ck_assert_uint_gt(guard_trace_of(&second, &trace), 3);
    expect_in(0, raise_here);
    ck_assert_uint_eq(second.trace, error.trace);
}
END_TEST

START_TEST(an_error_with_a_number_of_its_own_making_has_no_trace_and_gets_one_when_it_is_raised)
{
    guard_error made;
    guard_error_set(&made, GUARD_USER, 9, "made");
    made.trace = 0xDEAD0000;
    ck_assert_uint_eq(guard_trace_of(&made, &trace), 0);
    ck_assert_int_eq(guard_run(raise_again, &made, &error), 9);
    ck_assert_uint_eq(error.trace, 0);
    guard_trace_capture(1);
    ck_assert_int_eq(guard_run(raise_again, &made, &error), 9);
    ck_assert_uint_gt(guard_trace_of(&error, &trace), 1);
    expect_in(0, raise_again);
}
END_TEST

START_TEST(the_oldest_is_forgotten_first)
{
    guard_error errors[GUARD_TRACE_KEPT + 1];
    guard_trace_capture(1);
    for (int i = 0; i <= GUARD_TRACE_KEPT; i++) {
        ck_assert_int_eq(guard_run(outer_frame, "one", &errors[i]), 7);
    }
    ck_assert_uint_eq(guard_trace_of(&errors[0], &trace), 0);
    for (int i = 1; i <= GUARD_TRACE_KEPT; i++) {
        ck_assert_uint_gt(guard_trace_of(&errors[i], &trace), 3);
    }
}
END_TEST

static void read_it_while_it_runs(guard_recovery *recovery, void *arg)
{
    (void)arg;
    ck_assert_uint_gt(guard_trace_of(guard_recovery_error(recovery), &trace), 3);
    ck_assert_uint_gt(guard_trace_of(guard_panicking(), &trace), 3);
}

static void panic_below_a_reader(void *arg)
{
    GUARD_AUTO(s);
    guard_defer_recover(s, read_it_while_it_runs, NULL);
    raise_here(arg);
}

START_TEST(a_deferred_function_reads_the_trace_of_the_panic_that_runs_it)
{
    guard_trace_capture(1);
    ck_assert_int_eq(guard_run(panic_below_a_reader, "boom", &error), 7);
    expect_in(0, raise_here);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ threads -- */

typedef struct carried {
    guard_error error;
    guard_trace trace;
} carried;

static void *catch_in_a_thread(void *arg)
{
    carried *to = arg;
    ck_assert_int_eq(guard_run(outer_frame, "elsewhere", &to->error), 7);
    ck_assert_uint_gt(guard_trace_of(&to->error, &to->trace), 2);
    return NULL;
}

START_TEST(a_trace_is_the_thread_s_that_caught_the_panic_and_can_be_carried_to_another)
{
    pthread_t threads[4];
    carried all[4];
    guard_trace_capture(1);
    caught();
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, catch_in_a_thread, &all[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
        ck_assert_uint_eq(guard_trace_of(&all[i].error, &trace), 0);
    }
    guard_trace_keep(&all[2].error, &all[2].trace);
    ck_assert_uint_eq(guard_trace_of(&all[2].error, &trace), all[2].trace.count);
    expect_in(0, raise_here);
    ck_assert_uint_gt(guard_trace_of(&error, &trace), 3);
}
END_TEST

/* ------------------------------------------------------------------------------------------- deep stacks -- */

static FRAME int descend(int depth)
{
    if (depth > 0) {
        return descend(depth - 1) + steps;
    }
    if (steps >= 0) { /* always; the compiler takes an unconditional panic for an endless recursion */
        guard_panic_error(&error);
    }
    return 0;
}

static void go_deep(void *arg)
{
    steps += descend(*(int *)arg);
}

static FRAME void raise_constant(void *arg)
{
    (void)arg;
    steps++;
    guard_panic(7, "boom");
}

static FRAME void raise_system_error(void *arg)
{
    (void)arg;
    steps++;
    errno = 7;
    guard_panic_os("boom");
}

static FRAME void raise_error(void *arg)
{
    (void)arg;
    guard_error own = {.code = 7};
    steps++;
    guard_panic_error(&own);
}

static guard_fn *raiser;

static FRAME void dig(void *left)
{
    steps++;
    if (left == NULL) {
        raiser(NULL);
    } else {
        dig((char *)left - 1);
    }
    steps++;
}

/* Whatever lies between it and the walk; of a deep stack as many frames are kept. */
START_TEST(each_way_to_raise_a_panic_has_its_caller_first)
{
    guard_fn *const raisers[] = {raise_constant, raise_here, raise_system_error, raise_error};
    guard_trace_capture(1);
    for (unsigned i = 0; i < sizeof raisers / sizeof *raisers; i++) {
        raiser = raisers[i];
        const void *last = NULL;
        for (uintptr_t depth = 0; depth < 40; depth++) {
            ck_assert_int_eq(guard_run(dig, (void *)depth, &error), 7);
            ck_assert_uint_gt(guard_trace_of(&error, &trace), 2);
            expect_in(0, raiser);
            expect_in(1, dig);
            expect_in(depth + 1 < GUARD_TRACE_FRAMES ? (unsigned)depth + 1 : GUARD_TRACE_FRAMES - 1, dig);
            if (trace.is_cut) {
                ck_assert_uint_eq(trace.count, GUARD_TRACE_FRAMES);
            } else {
                last = last == NULL ? trace.frames[trace.count - 1] : last;
                ck_assert_ptr_eq(trace.frames[trace.count - 1], last);
            }
        }
        ck_assert_uint_eq(trace.is_cut, 1);
    }
}
END_TEST

START_TEST(a_deep_stack_is_cut_and_says_so)
{
    int depth = 5 * GUARD_TRACE_FRAMES;
    char text[GUARD_TRACE_TEXT];
    guard_trace_capture(1);
    guard_error_set(&error, GUARD_USER, 7, "deep");
    ck_assert_int_eq(guard_run(go_deep, &depth, &error), 7);
    ck_assert_uint_eq(guard_trace_of(&error, &trace), GUARD_TRACE_FRAMES);
    ck_assert_uint_eq(trace.is_cut, 1);
    size_t length = guard_trace_format(&trace, text, sizeof text);
    ck_assert_uint_eq(length, strlen(text));
    ck_assert_str_eq(text + length - 5, "\t...\n");
}
END_TEST

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MALLOC_IS_TAKEN
#endif
#endif
#else
#define MALLOC_IS_TAKEN
#endif

#ifdef MALLOC_IS_TAKEN /* a sanitizer has its own; then this is tested in the other builds */
static unsigned long mallocs;
#else
static __thread volatile unsigned long mallocs; /* each thread's own */
void *__libc_malloc(size_t size);               /* NOLINT: glibc's name */

void *malloc(size_t size)
{
    mallocs++;
    return __libc_malloc(size);
}
#endif

START_TEST(a_panic_that_is_traced_allocates_nothing_not_even_the_first)
{
    ck_assert_int_eq(guard_run(outer_frame, "before", NULL), 7);
    guard_trace_capture(1);
    unsigned long before = mallocs;
    for (int i = 0; i < 100; i++) {
        guard_run(outer_frame, "boom", &error);
    }
    unsigned long after = mallocs;
    ck_assert_uint_eq(after, before);
    ck_assert_uint_gt(guard_trace_of(&error, &trace), 3);
}
END_TEST

static unsigned long mallocs_before;

static void tell_mallocs(void *arg)
{
    (void)arg;
    if (mallocs != mallocs_before) {
        guard_note("it allocated");
    }
}

static size_t tell_object(const void *object, char *text, size_t size)
{
    (void)object;
    return (size_t)snprintf(text, size, "object");
}

static void let_object_go(void *object)
{
    (void)object;
}

static const guard_kind told_kind = {.name = "told", .release = let_object_go, .describe = tell_object};

static void panic_uncaught(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, tell_mallocs, NULL); /* runs last */
    guard_defer_kind(s, &told_kind, NULL);
    mallocs_before = mallocs;
    raise_here(arg);
}

START_TEST(an_uncaught_panic_allocates_nothing_until_its_scopes_have_run)
{
    static child_result result;
    child_run(panic_uncaught, "nobody", &result);
    child_expect_abort(&result);
    ck_assert_msg(strncmp(result.text, "panic: nobody [user 7]", 22) == 0, "it wrote: %s", result.text);
    ck_assert_ptr_nonnull(strstr(result.text, "raised by:\n\t"));
}
END_TEST

/* ------------------------------------------------------------------------------------------------- names -- */

START_TEST(a_frame_has_its_function_file_and_line_or_its_module_and_offset)
{
    guard_frame frame;
    char text[600];
    guard_trace_capture(1);
    caught();
    ck_assert_uint_gt(guard_trace_of(&error, &trace), 3);
    ck_assert_int_eq(guard_frame_find(trace.frames[0], &frame), 1);
    ck_assert_str_eq(frame.module, "check_trace");
    ck_assert_ptr_eq(frame.address, trace.frames[0]);
    ck_assert_uint_gt(frame.offset, 0);
    size_t length = guard_frame_format(&frame, text, sizeof text);
    ck_assert_uint_eq(length, strlen(text));
#ifdef GUARD_HAVE_LIBDW
    ck_assert_str_eq(frame.function, "raise_here");
    ck_assert_str_eq(frame.file, "check_trace.c");
    ck_assert_uint_eq(frame.line, error.line);
    ck_assert_ptr_nonnull(strstr(text, "raise_here at check_trace.c:"));
#else
    ck_assert_ptr_nonnull(strstr(text, "check_trace+0x"));
#endif
}
END_TEST

START_TEST(an_exported_function_has_its_name_without_debugging_information_too)
{
    guard_frame frame;
    ck_assert_int_eq(guard_frame_find((const void *)((uintptr_t)&gnu_get_libc_version + 1), &frame), 1);
    ck_assert_str_eq(frame.function, "gnu_get_libc_version");
    ck_assert_ptr_nonnull(strstr(frame.module, "libc"));
}
END_TEST

START_TEST(an_address_of_no_code_is_printed_as_a_number)
{
    guard_frame frame;
    char text[64];
    ck_assert_int_eq(guard_frame_find((const void *)16, &frame), 0);
    guard_frame_format(&frame, text, sizeof text);
    ck_assert_str_eq(text, "0x10");
    ck_assert_int_eq(guard_frame_find(NULL, &frame), 0);
}
END_TEST

START_TEST(names_are_escaped_and_texts_are_cut_at_their_room)
{
    guard_frame frame = {.line = 3, .function = "f\033[1m", .file = "x\n.c"};
    char text[64];
    char little[8];
    size_t length = guard_frame_format(&frame, text, sizeof text);
    ck_assert_str_eq(text, "f\\x1b[1m at x\\x0a.c:3");
    ck_assert_uint_eq(length, strlen(text));
    ck_assert_uint_eq(guard_frame_format(&frame, little, sizeof little), length);
    ck_assert_str_eq(little, "f\\x1b[1");
    ck_assert_uint_eq(guard_frame_format(&frame, NULL, 0), length);
    guard_trace_here(&trace);
    length = guard_trace_format(&trace, NULL, 0);
    ck_assert_uint_gt(length, 16);
    ck_assert_uint_eq(guard_trace_format(&trace, little, sizeof little), length);
    ck_assert_uint_eq(strlen(little), 7);
}
END_TEST

static void *name_frames(void *arg)
{
    guard_frame frame;
    for (int i = 0; i < 200; i++) {
        for (uint32_t f = 0; f < trace.count; f++) {
            ck_assert_int_eq(guard_frame_find(trace.frames[f], &frame), 1);
        }
    }
    return arg;
}

START_TEST(threads_name_frames_at_the_same_time)
{
    pthread_t threads[4];
    guard_trace_here(&trace);
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, name_frames, NULL), 0);
    }
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
    }
}
END_TEST

static guard_trace seen_by_the_member;
static int two = 2;

static void wait_for_it(void *group)
{
    guard_group_wait(group, NULL);
}

static void panic_in_a_member(void *arg)
{
    guard_panic(*(int *)arg, "a member");
}

static void panic_and_look(void *arg)
{
    guard_error own;
    guard_run(panic_in_a_member, arg, &own);
    guard_trace_of(&own, &seen_by_the_member);
    guard_panic_error(&own);
}

START_TEST(who_waits_has_the_trace_of_the_members_panic)
{
    guard_trace_capture(1);
    for (int raises = 0; raises < 2; raises++) {
        GUARD_AUTO(s);
        guard_group *group = guard_group_open(s, NULL);
        guard_group_spawn(group, panic_and_look, &two);
        if (raises) {
            ck_assert_int_eq(guard_run(wait_for_it, group, &error), 2);
        } else {
            ck_assert_int_eq(guard_group_wait(group, &error), 2);
        }
        ck_assert_uint_gt(guard_trace_of(&error, &trace), 0);
        ck_assert_uint_eq(trace.count, seen_by_the_member.count);
        ck_assert_int_eq(memcmp(trace.frames, seen_by_the_member.frames, trace.count * sizeof *trace.frames), 0);
    }
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        who_waits_has_the_trace_of_the_members_panic,
        a_caught_panic_is_not_traced_unless_that_is_switched_on,
        the_border_s_caller_reads_the_stack_from_the_raising_function_outwards,
        every_nth_panic_is_traced_where_that_is_asked_for,
        what_deferred_functions_raise_and_catch_does_not_push_the_trace_out,
        a_failing_cleanup_leaves_the_first_panic_s_trace,
        a_panic_that_replaced_another_has_the_stack_with_the_older_one_below_it,
        a_held_panic_keeps_its_trace,
        an_error_that_is_raised_again_keeps_its_first_trace,
        an_error_with_a_number_of_its_own_making_has_no_trace_and_gets_one_when_it_is_raised,
        the_oldest_is_forgotten_first,
        a_deferred_function_reads_the_trace_of_the_panic_that_runs_it,
        a_trace_is_the_thread_s_that_caught_the_panic_and_can_be_carried_to_another,
        each_way_to_raise_a_panic_has_its_caller_first,
        a_deep_stack_is_cut_and_says_so,
        a_panic_that_is_traced_allocates_nothing_not_even_the_first,
        an_uncaught_panic_allocates_nothing_until_its_scopes_have_run,
        a_frame_has_its_function_file_and_line_or_its_module_and_offset,
        an_exported_function_has_its_name_without_debugging_information_too,
        an_address_of_no_code_is_printed_as_a_number,
        names_are_escaped_and_texts_are_cut_at_their_room,
        threads_name_frames_at_the_same_time,
    };
    return suite_run("trace", tests, sizeof tests / sizeof *tests);
}
