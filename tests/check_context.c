/* SPDX-License-Identifier: MIT */
/* check_context.c: a thread's context is restored by its scopes and bounded, and a traceparent is read as the W3C has it. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_context.h>
#include <guard/guard_group.h>
#include <guard/guard_process.h>

#include "fault_memory.h"
#include "suite.h"

static const char *value_of(const char *key)
{
    const char *value = guard_context_get(key);
    return value != NULL ? value : "(none)";
}

START_TEST(a_value_is_there_until_its_scope_ends)
{
    ck_assert_str_eq(value_of("user"), "(none)");
    GUARD_SCOPE (s) {
        ck_assert_int_eq(guard_context_set(s, "user", "alice"), 1);
        ck_assert_str_eq(value_of("user"), "alice");
        ck_assert_str_eq(value_of("order"), "(none)");
    }
    ck_assert_str_eq(value_of("user"), "(none)");
}
END_TEST

START_TEST(an_inner_value_hides_the_outer_one_and_gives_it_back)
{
    GUARD_AUTO(outer);
    guard_context_set(outer, "user", "alice");
    GUARD_SCOPE (inner) {
        guard_context_set(inner, "user", "bob");
        guard_context_set(outer, "order", "7"); /* set later, lives longer */
        ck_assert_str_eq(value_of("user"), "bob");
    }
    ck_assert_str_eq(value_of("user"), "alice");
    ck_assert_str_eq(value_of("order"), "7");
    GUARD_SCOPE (inner) {
        guard_context_set(inner, "user", NULL);
        ck_assert_str_eq(value_of("user"), "(none)");
    }
    ck_assert_str_eq(value_of("user"), "alice");
}
END_TEST

static void set_and_panic(void *arg)
{
    GUARD_AUTO(s);
    guard_context_set(s, "user", arg);
    guard_panic(1, "with %s", value_of("user"));
}

START_TEST(a_panic_restores_it_like_any_other_end)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_context_set(s, "user", "alice");
    for (int i = 0; i < 3 * GUARD_CONTEXT_VALUES; i++) { /* what panics leave behind fills nothing up */
        ck_assert_int_eq(guard_run(set_and_panic, "bob", &error), 1);
        ck_assert_str_eq(error.message, "with bob");
        ck_assert_str_eq(value_of("user"), "alice");
    }
}
END_TEST

START_TEST(there_are_so_many_and_no_more)
{
    char key[8];
    GUARD_SCOPE (s) {
        for (int i = 0; i < GUARD_CONTEXT_VALUES; i++) {
            snprintf(key, sizeof key, "k%d", i);
            ck_assert_int_eq(guard_context_set(s, key, key), 1);
        }
        ck_assert_int_eq(guard_context_set(s, "more", "x"), 0);
        ck_assert_str_eq(value_of("more"), "(none)");
        ck_assert_str_eq(value_of("k0"), "k0");
    }
    GUARD_AUTO(s);
    ck_assert_int_eq(guard_context_set(s, "more", "x"), 1);
}
END_TEST

START_TEST(a_long_value_is_cut_at_a_character)
{
    GUARD_AUTO(s);
    char value[200];
    memset(value, 'x', sizeof value);
    value[sizeof value - 1] = '\0';
    memcpy(value + GUARD_CONTEXT_VALUE_SIZE - 3, "\xE2\x82\xAC", 3); /* of which two bytes would fit */
    guard_context_set(s, "long", value);
    ck_assert_uint_eq(strlen(value_of("long")), GUARD_CONTEXT_VALUE_SIZE - 3);
}
END_TEST

static guard_misuse_code seen;

static void on_misuse(const guard_error *error)
{
    seen = (guard_misuse_code)error->code;
}

START_TEST(wrong_use_is_told_and_sets_nothing)
{
    GUARD_AUTO(s);
    guard_owner *owner = guard_owner_new();
    guard_misuse_handler(on_misuse);
    ck_assert_int_eq(guard_context_set(s, NULL, "x"), 0);
    ck_assert_int_eq(seen, GUARD_MISUSE_ARGUMENT);
    seen = 0;
    ck_assert_int_eq(guard_context_set(s, "", "x"), 0);
    ck_assert_int_eq(seen, GUARD_MISUSE_ARGUMENT);
    seen = 0;
    ck_assert_int_eq(guard_context_set(guard_owner_scope(owner), "k", "x"), 0);
    ck_assert_int_eq(seen, GUARD_MISUSE_ARGUMENT);
    seen = 0;
    ck_assert_int_eq(guard_context_set(NULL, "k", "x"), 0);
    ck_assert_int_eq(seen, GUARD_MISUSE_ARGUMENT);
    guard_scope closed;
    guard_scope_open(&closed);
    guard_scope_close(&closed);
    seen = 0;
    ck_assert_int_eq(guard_context_set(&closed, "k", "x"), 0);
    ck_assert_int_eq(seen, GUARD_MISUSE_SCOPE);
    ck_assert_str_eq(value_of("k"), "(none)");
    guard_owner_close(owner);
}
END_TEST

static void set_one(void *arg)
{
    GUARD_AUTO(s);
    guard_context_set(s, "user", arg);
}

START_TEST(without_memory_nothing_is_set_and_nothing_lost)
{
    guard_error error;
    fault_memory_install();
    int code = 1;
    for (unsigned long n = 1; code != 0; n++) {
        fault_memory_fail_at(n);
        code = guard_run(set_one, "alice", &error);
        fault_memory_fail_at(0);
        ck_assert_str_eq(value_of("user"), "(none)");
    }
}
END_TEST

static void *in_a_thread(void *arg)
{
    *(int *)arg = guard_context_get("user") == NULL;
    return NULL;
}

START_TEST(each_thread_and_each_fiber_has_its_own)
{
    GUARD_AUTO(s);
    pthread_t thread;
    int is_empty = 0;
    guard_context_set(s, "user", "alice");
    ck_assert_int_eq(pthread_create(&thread, NULL, in_a_thread, &is_empty), 0);
    pthread_join(thread, NULL);
    ck_assert_int_eq(is_empty, 1);
    guard_stack *fiber = guard_stack_new();
    guard_stack_swap(fiber);
    ck_assert_str_eq(value_of("user"), "(none)");
    GUARD_SCOPE (inside) {
        guard_context_set(inside, "user", "carol");
    }
    guard_stack_swap(NULL);
    ck_assert_str_eq(value_of("user"), "alice");
    guard_stack_free(fiber);
}
END_TEST

static void look_in_member(void *arg)
{
    snprintf(arg, 32, "%s of %s", value_of("order"), value_of("user"));
}

START_TEST(the_members_of_a_group_begin_with_a_copy)
{
    char found[2][32];
    GUARD_AUTO(s);
    guard_context_set(s, "user", "alice");
    guard_group *group = guard_group_open(s, NULL);
    for (int i = 0; i < 2; i++) {
        GUARD_AUTO(each);
        guard_context_set(each, "order", i == 0 ? "first" : "second");
        guard_group_spawn(group, look_in_member, found[i]);
    }
    guard_group_wait(group, NULL);
    ck_assert_str_eq(found[0], "first of alice");
    ck_assert_str_eq(found[1], "second of alice");
    ck_assert_str_eq(value_of("order"), "(none)");
}
END_TEST

START_TEST(a_copy_can_be_entered_anywhere)
{
    ck_assert_ptr_null(guard_context_copy());
    guard_context *copy = NULL;
    GUARD_SCOPE (s) {
        guard_context_set(s, "user", "alice");
        guard_context_set(s, "user", "bob");
        guard_context_set(s, "order", "7");
        copy = guard_context_copy();
    }
    ck_assert_str_eq(value_of("user"), "(none)");
    GUARD_SCOPE (s) {
        guard_context_enter(s, copy);
        guard_context_enter(s, NULL);
        ck_assert_str_eq(value_of("user"), "bob");
        ck_assert_str_eq(value_of("order"), "7");
    }
    guard_context_free(copy);
}
END_TEST

START_TEST(a_forked_child_goes_on_and_restores_too)
{
    int status = -1;
    GUARD_SCOPE (s) {
        guard_context_set(s, "user", "alice");
        if (fork() == 0) {
            int is_there = guard_context_get("user") != NULL;
            guard_scope_close(s);
            _exit(is_there && guard_context_get("user") == NULL ? 0 : 1);
        }
        ck_assert_int_gt(wait(&status), 0);
    }
    ck_assert_int_eq(status, 0);
}
END_TEST

/* -------------------------------------------------------------------------------------------------- trace -- */

#define ID "4bf92f3577b34da6a3ce929d0e0e4736"
#define PARENT "00f067aa0ba902b7"

START_TEST(a_valid_traceparent_is_read)
{
    guard_traceparent trace;
    char text[GUARD_TRACEPARENT_SIZE];
    ck_assert_int_eq(guard_traceparent_read("00-" ID "-" PARENT "-01", &trace), 1);
    ck_assert_str_eq(trace.trace_id, ID);
    ck_assert_str_eq(trace.parent_id, PARENT);
    ck_assert_uint_eq(trace.flags, 1);
    guard_traceparent_write(&trace, text);
    ck_assert_str_eq(text, "00-" ID "-" PARENT "-01");
    ck_assert_int_eq(guard_traceparent_read("00-" ID "-" PARENT "-ff", &trace), 1);
    ck_assert_uint_eq(trace.flags, 0xff);
}
END_TEST

/* Section 3.2.4: of a version that is not known, what 00 has. */
START_TEST(a_later_version_is_read_as_far_as_it_is_known)
{
    guard_traceparent trace;
    ck_assert_int_eq(guard_traceparent_read("cc-" ID "-" PARENT "-03", &trace), 1);
    ck_assert_uint_eq(trace.flags, 1);
    ck_assert_int_eq(guard_traceparent_read("cc-" ID "-" PARENT "-01-what-the-future-holds", &trace), 1);
    ck_assert_int_eq(guard_traceparent_read("cc-" ID "-" PARENT "-01.what", &trace), 0);
}
END_TEST

START_TEST(what_is_no_traceparent_is_refused)
{
    static const char *const wrong[] = {
        "",
        "00",
        "00-" ID "-" PARENT,
        "00-" ID "-" PARENT "-",
        "00-" ID "-" PARENT "-0",
        "00-" ID "-" PARENT "-01-more",
        "00-" ID "-" PARENT "-01-",
        "00-" ID "-" PARENT "-0g",
        "ff-" ID "-" PARENT "-01",
        "0-" ID "-" PARENT "-011",
        "xx-" ID "-" PARENT "-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-" PARENT "-01",
        "00-" ID "-00F067AA0BA902B7-01",
        "00-00000000000000000000000000000000-" PARENT "-01",
        "00-" ID "-0000000000000000-01",
        "00_" ID "-" PARENT "-01",
        "00-" ID "_" PARENT "-01",
        "00-" ID "-" PARENT "_01",
        " 00-" ID "-" PARENT "-01",
        "00-" ID "-" PARENT "-01 ",
        "00-4bf92f3577b34da6a3ce929d0e0e473\xC3-" PARENT "-01",
    };
    guard_traceparent trace;
    GUARD_AUTO(s);
    ck_assert_int_eq(guard_traceparent_read(NULL, &trace), 0);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        memset(&trace, 'x', sizeof trace);
        ck_assert_msg(!guard_traceparent_read(wrong[i], &trace), "\"%s\" was taken", wrong[i]);
        ck_assert_str_eq(trace.trace_id, "");
        ck_assert_int_eq(guard_context_traceparent(s, wrong[i]), 0);
        ck_assert_str_eq(value_of("traceparent"), "(none)");
    }
}
END_TEST

START_TEST(every_prefix_of_a_header_is_read_within_its_bounds)
{
    static const char whole[] = "cc-" ID "-" PARENT "-01-more";
    guard_traceparent trace;
    for (size_t length = 0; length < sizeof whole; length++) {
        char *copy = strndup(whole, length); /* ASan sees a byte too many */
        int expected = length == 55 || length > 55;
        ck_assert_msg(guard_traceparent_read(copy, &trace) == expected, "%s", copy);
        free(copy);
    }
}
END_TEST

START_TEST(a_trace_is_part_of_the_context)
{
    GUARD_SCOPE (s) {
        ck_assert_int_eq(guard_context_traceparent(s, "cc-" ID "-" PARENT "-03-more"), 1);
        ck_assert_str_eq(value_of("traceparent"), "00-" ID "-" PARENT "-01");
    }
    ck_assert_str_eq(value_of("traceparent"), "(none)");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_value_is_there_until_its_scope_ends,
        an_inner_value_hides_the_outer_one_and_gives_it_back,
        a_panic_restores_it_like_any_other_end,
        there_are_so_many_and_no_more,
        a_long_value_is_cut_at_a_character,
        wrong_use_is_told_and_sets_nothing,
        without_memory_nothing_is_set_and_nothing_lost,
        each_thread_and_each_fiber_has_its_own,
        the_members_of_a_group_begin_with_a_copy,
        a_copy_can_be_entered_anywhere,
        a_forked_child_goes_on_and_restores_too,
        a_valid_traceparent_is_read,
        a_later_version_is_read_as_far_as_it_is_known,
        what_is_no_traceparent_is_refused,
        every_prefix_of_a_header_is_read_within_its_bounds,
        a_trace_is_part_of_the_context,
    };
    return suite_run("context", tests, sizeof tests / sizeof *tests);
}
