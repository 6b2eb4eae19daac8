/* SPDX-License-Identifier: MIT */
/* check_ticket.c: one registration is dismissed, released or moved before its scope ends, and is stale afterwards (check_misuse). */
#include <string.h>

#include <guard/guard.h>

#include "fault_memory.h"
#include "suite.h"
#include "trace.h"

static guard_error error;

START_TEST(a_dismissed_registration_does_not_run)
{
    {
        GUARD_AUTO(s);
        guard_defer(s, trace_run, "a");
        guard_ticket b = guard_defer(s, trace_run, "b");
        guard_defer(s, trace_run, "c");
        ck_assert_int_eq(guard_pending(b), 1);
        guard_dismiss(b);
        ck_assert_int_eq(guard_pending(b), 0);
    }
    trace_expect("run c, run a");
}
END_TEST

START_TEST(a_dismissed_kind_frees_what_it_keeps_about_the_resource)
{
    {
        GUARD_AUTO(s);
        guard_ticket lock = guard_defer_kind(s, &trace_kind, "lock");
        guard_defer(s, trace_run, "a");
        guard_dismiss(lock);
        trace_expect("dismiss lock");
    }
    trace_expect("run a");
}
END_TEST

START_TEST(a_released_registration_runs_now_and_never_again)
{
    {
        GUARD_AUTO(s);
        guard_ticket tickets[4];
        const char *name = "copy";
        char big[100] = "big";
        tickets[0] = guard_defer(s, trace_run, "plain");
        tickets[1] = guard_defer_kind(s, &trace_kind, "kind");
        tickets[2] = guard_defer_copy(s, trace_run_copy, &name, sizeof name);
        tickets[3] = guard_defer_copy(s, trace_run, big, sizeof big);
        for (int i = 0; i < 4; i++) {
            guard_release(tickets[i]);
            ck_assert_int_eq(guard_pending(tickets[i]), 0);
        }
        trace_expect("run plain, release kind, run copy, run big");
    }
    trace_expect("");
}
END_TEST

START_TEST(release_does_not_ask_how_the_scope_ends)
{
    {
        GUARD_AUTO(s);
        guard_release(guard_defer_on(s, GUARD_ON_FAILURE, trace_run, "failure"));
        guard_release(guard_defer_on(s, GUARD_ON_SUCCESS, trace_run, "success"));
        trace_expect("run failure, run success");
    }
    trace_expect("");
}
END_TEST

START_TEST(an_empty_ticket_names_nothing)
{
    GUARD_AUTO(s);
    guard_ticket empty = {NULL, 0, 0};
    guard_dismiss(empty);
    guard_release(empty);
    guard_ticket moved = guard_move(empty, s);
    ck_assert_ptr_null(moved.record);
    ck_assert_int_eq(guard_pending(empty), 0);
}
END_TEST

static void fail_big(void *copy)
{
    trace_fail(copy);
}

static void release_what_fails(void *heap)
{
    char big[100] = "x";
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "rest");
    guard_ticket bad = heap != NULL ? guard_defer_copy(s, fail_big, big, sizeof big) : guard_defer(s, trace_fail, "x");
    guard_release(bad);
    trace_add("not reached");
}

START_TEST(a_panic_of_what_is_released_goes_on_at_once_and_its_memory_is_freed)
{
    fault_memory_install();
    ck_assert_int_eq(guard_run(release_what_fails, NULL, &error), TRACE_FAILED);
    trace_expect("fail x, run rest");
    size_t blocks = fault_memory_blocks();
    ck_assert_int_eq(guard_run(release_what_fails, "heap", &error), TRACE_FAILED);
    trace_expect("fail x, run rest");
    ck_assert_str_eq(error.function, "trace_fail");
    ck_assert_uint_eq(fault_memory_blocks(), blocks);
}
END_TEST

static void hold_one(void *arg)
{
    GUARD_AUTO(s);
    guard_defer(s, trace_fail, arg);
}

static void release_what_holds(void *arg)
{
    GUARD_AUTO(s);
    guard_release(guard_defer(s, hold_one, arg));
    trace_add("not reached");
}

START_TEST(a_panic_that_a_released_function_left_held_is_raised_by_the_release)
{
    ck_assert_int_eq(guard_run(release_what_holds, "x", &error), TRACE_FAILED);
    trace_expect("fail x");
}
END_TEST

static guard_ticket own_ticket;

static void look_at_own_ticket(void *arg)
{
    trace_add("%s pending %d", (const char *)arg, guard_pending(own_ticket));
}

START_TEST(a_registration_is_off_before_it_runs)
{
    {
        GUARD_AUTO(s);
        own_ticket = guard_defer(s, look_at_own_ticket, "at the end");
    }
    trace_expect("at the end pending 0");
    GUARD_AUTO(s);
    own_ticket = guard_defer(s, look_at_own_ticket, "released");
    guard_release(own_ticket);
    trace_expect("released pending 0");
}
END_TEST

/* ---------------------------------------------------------------------------------------- objects -- */

START_TEST(a_ticket_leads_to_the_object_of_its_kind)
{
    GUARD_AUTO(s);
    static char name[] = "object";
    guard_ticket ticket = guard_defer_kind(s, &trace_kind, name);
    ck_assert_ptr_eq(guard_ticket_object(ticket, &trace_kind), name);
    guard_dismiss(ticket);
}
END_TEST

/* ---------------------------------------------------------------------------------------- moving -- */

START_TEST(a_moved_registration_is_the_newest_of_its_new_scope)
{
    {
        GUARD_AUTO(outer);
        guard_defer(outer, trace_run, "outer");
        {
            GUARD_AUTO(inner);
            guard_ticket a = guard_defer(inner, trace_run, "a");
            guard_defer(inner, trace_run, "b");
            guard_ticket moved = guard_move(a, outer);
            ck_assert_int_eq(guard_pending(a), 0);
            ck_assert_int_eq(guard_pending(moved), 1);
            moved = guard_move(moved, outer); /* to where it is: the newest again */
            ck_assert_int_eq(guard_pending(moved), 1);
        }
        trace_expect("run b");
    }
    trace_expect("run a, run outer");
}
END_TEST

typedef struct moving {
    const char *name;
    guard_ticket (*defer)(guard_scope *scope);
    const char *runs;
} moving;

static guard_ticket defer_plain(guard_scope *scope)
{
    return guard_defer(scope, trace_run, "x");
}

static guard_ticket defer_failure(guard_scope *scope)
{
    return guard_defer_on(scope, GUARD_ON_FAILURE, trace_run, "x");
}

static guard_ticket defer_success(guard_scope *scope)
{
    return guard_defer_on(scope, GUARD_ON_SUCCESS, trace_run, "x");
}

static guard_ticket defer_kind(guard_scope *scope)
{
    return guard_defer_kind(scope, &trace_kind, "x");
}

static guard_ticket defer_copy(guard_scope *scope)
{
    const char *name = "x";
    return guard_defer_copy(scope, trace_run_copy, &name, sizeof name);
}

static guard_ticket defer_copy_of_words(guard_scope *scope)
{
    const char *names[3] = {"x"};
    return guard_defer_copy(scope, trace_run_copy, names, sizeof names);
}

static guard_ticket defer_big_copy(guard_scope *scope)
{
    const char *names[20] = {"x"};
    return guard_defer_copy(scope, trace_run_copy, names, sizeof names);
}

static guard_ticket defer_recover(guard_scope *scope)
{
    return guard_defer_recover(scope, trace_see, "x");
}

static const moving moved_forms[] = {
    {"plain", defer_plain, "run x"},         {"failure", defer_failure, ""},
    {"success", defer_success, "run x"},     {"kind", defer_kind, "release x"},
    {"copy of a word", defer_copy, "run x"}, {"copy of words", defer_copy_of_words, "run x"},
    {"big", defer_big_copy, "run x"},        {"recover", defer_recover, "x sees nothing"},
};

START_TEST(each_kind_of_registration_moves_between_scopes_and_owners_and_back)
{
    fault_memory_install();
    for (size_t i = 0; i < sizeof moved_forms / sizeof *moved_forms; i++) {
        const moving *form = &moved_forms[i];
        guard_owner *first = guard_owner_new();
        guard_owner *second = guard_owner_new();
        {
            GUARD_AUTO(outer);
            {
                GUARD_AUTO(inner);
                guard_ticket ticket = form->defer(inner);
                ticket = guard_move(ticket, guard_owner_scope(first));
                ticket = guard_move(ticket, guard_owner_scope(second));
                ticket = guard_move(ticket, inner);
                ticket = guard_move(ticket, guard_owner_scope(first));
                ticket = guard_move(ticket, outer);
                ck_assert_int_eq(guard_pending(ticket), 1);
            }
            guard_owner_close(first);
            guard_owner_close(second);
            ck_assert_str_eq(trace_text(), "");
        }
        ck_assert_msg(strcmp(trace_text(), form->runs) == 0, "%s: \"%s\"", form->name, trace_text());
        trace_clear();
    }
    ck_assert_uint_eq(fault_memory_blocks(), 1);
}
END_TEST

static void move_without_memory(void *arg)
{
    const moving *form = arg;
    guard_owner *owner = guard_owner_new();
    GUARD_AUTO(s);
    guard_defer_kind(s, &guard_owner_kind, owner);
    guard_ticket ticket = form->defer(s);
    own_ticket = ticket;
    fault_memory_fail_from(1);
    guard_move(ticket, guard_owner_scope(owner));
    trace_add("moved");
}

START_TEST(a_move_without_memory_panics_before_anything_changed)
{
    fault_memory_install();
    for (size_t i = 0; i < sizeof moved_forms / sizeof *moved_forms; i++) {
        moving form = moved_forms[i];
        ck_assert_int_ne(guard_run(move_without_memory, &form, &error), 0);
        fault_memory_fail_at(0);
        ck_assert_int_eq(error.domain, GUARD_MEMORY);
        const char *runs = form.defer == defer_failure   ? "run x"
                           : form.defer == defer_success ? ""
                           : form.defer == defer_recover ? "x sees out of memory for 2 registrations"
                                                         : form.runs;
        ck_assert_msg(strcmp(trace_text(), runs) == 0, "%s: \"%s\"", form.name, trace_text());
        trace_clear();
    }
    ck_assert_uint_eq(fault_memory_blocks(), 1);
}
END_TEST

/* ------------------------------------------------------------------------------------ long lives -- */

static unsigned long runs;

static void count_run(void *arg)
{
    (void)arg;
    runs++;
}

static void oldest_first(guard_scope *scope, guard_ticket *ring, size_t size, unsigned long turns)
{
    for (unsigned long i = 0; i < turns; i++) {
        guard_ticket *at = &ring[i % size];
        guard_release(*at);
        *at = guard_defer(scope, count_run, NULL);
    }
}

START_TEST(a_scope_that_lives_long_does_not_grow_when_the_oldest_is_always_released)
{
    fault_memory_install();
    static guard_ticket ring[100];
    GUARD_AUTO(s);
    oldest_first(s, ring, 100, 10000);
    size_t bytes = fault_memory_bytes();
    oldest_first(s, ring, 100, 1000000); /* were a release to walk the list, the test would not end */
    ck_assert_uint_eq(fault_memory_bytes(), bytes);
    ck_assert_uint_eq(runs, 1010000 - 100);
}
END_TEST

START_TEST(an_owner_that_lives_long_does_not_grow_when_the_oldest_is_always_released)
{
    fault_memory_install();
    static guard_ticket ring[1000];
    guard_owner *owner = guard_owner_new();
    oldest_first(guard_owner_scope(owner), ring, 1000, 10000);
    size_t bytes = fault_memory_bytes();
    oldest_first(guard_owner_scope(owner), ring, 1000, 1000000);
    ck_assert_uint_eq(fault_memory_bytes(), bytes);
    guard_owner_close(owner);
    ck_assert_uint_eq(runs, 1010000);
    ck_assert_uint_eq(fault_memory_blocks(), 1);
}
END_TEST

START_TEST(dismissing_ten_thousand_in_any_order_leaves_the_others_in_theirs)
{
    enum { COUNT = 10000 };
    static guard_ticket tickets[COUNT];
    runs = 0;
    {
        GUARD_AUTO(s);
        for (int i = 0; i < COUNT; i++) {
            tickets[i] = guard_defer(s, count_run, NULL);
        }
        for (unsigned i = 0, at = 0; i < COUNT; i++, at = (at + 7919) % COUNT) {
            if (at % 10 != 0) {
                guard_dismiss(tickets[at]);
            }
        }
        for (int i = 0; i < COUNT; i++) {
            ck_assert_int_eq(guard_pending(tickets[i]), i % 10 == 0);
        }
    }
    ck_assert_uint_eq(runs, COUNT / 10);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_dismissed_registration_does_not_run,
        a_dismissed_kind_frees_what_it_keeps_about_the_resource,
        a_released_registration_runs_now_and_never_again,
        release_does_not_ask_how_the_scope_ends,
        an_empty_ticket_names_nothing,
        a_panic_of_what_is_released_goes_on_at_once_and_its_memory_is_freed,
        a_panic_that_a_released_function_left_held_is_raised_by_the_release,
        a_registration_is_off_before_it_runs,
        a_ticket_leads_to_the_object_of_its_kind,
        a_moved_registration_is_the_newest_of_its_new_scope,
        each_kind_of_registration_moves_between_scopes_and_owners_and_back,
        a_move_without_memory_panics_before_anything_changed,
        a_scope_that_lives_long_does_not_grow_when_the_oldest_is_always_released,
        an_owner_that_lives_long_does_not_grow_when_the_oldest_is_always_released,
        dismissing_ten_thousand_in_any_order_leaves_the_others_in_theirs,
    };
    return suite_run("ticket", tests, sizeof tests / sizeof *tests);
}
