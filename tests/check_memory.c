/* SPDX-License-Identifier: MIT */
/*
 * check_memory.c: what happens when there is no memory (behaviour 20): what was to be registered is released at once, then comes the
 * panic, and nothing leaks; what was reserved is there; what was taken is given back.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include <guard/guard.h>

#include "child.h"
#include "fault_memory.h"
#include "suite.h"
#include "trace.h"

static guard_error error;

/* ------------------------------------------------------------------------------------------- forms -- */

typedef struct form {
    const char *name;
    void (*defer)(guard_scope *scope);
    const char *refused; /* what runs when it cannot be registered */
} form;

static void defer_plain(guard_scope *scope)
{
    guard_defer(scope, trace_run, "x");
}

static void defer_always(guard_scope *scope)
{
    guard_defer_on(scope, GUARD_ALWAYS, trace_run, "x");
}

static void defer_on_failure(guard_scope *scope)
{
    guard_defer_on(scope, GUARD_ON_FAILURE, trace_run, "x");
}

static void defer_on_success(guard_scope *scope)
{
    guard_defer_on(scope, GUARD_ON_SUCCESS, trace_run, "x");
}

static void defer_kind(guard_scope *scope)
{
    guard_defer_kind(scope, &trace_kind, "x");
}

static void defer_copy(guard_scope *scope)
{
    const char *name = "x";
    guard_defer_copy(scope, trace_run_copy, &name, sizeof name);
}

static void defer_copy_of_words(guard_scope *scope)
{
    const char *names[3] = {"x"};
    guard_defer_copy(scope, trace_run_copy, names, sizeof names);
}

static void defer_big_copy(guard_scope *scope)
{
    const char *names[10] = {"x"};
    guard_defer_copy(scope, trace_run_copy, names, sizeof names);
}

static void defer_recover(guard_scope *scope)
{
    guard_defer_recover(scope, trace_recover, "x");
}

static void defer_failing(guard_scope *scope)
{
    guard_defer(scope, trace_fail, "x");
}

static const form forms[] = {
    {"guard_defer", defer_plain, "run x"},
    {"guard_defer_on always", defer_always, "run x"},
    {"guard_defer_on failure", defer_on_failure, "run x"},
    {"guard_defer_on success", defer_on_success, ""},
    {"guard_defer_kind", defer_kind, "release x"},
    {"guard_defer_copy of a word", defer_copy, "run x"},
    {"guard_defer_copy of words", defer_copy_of_words, "run x"},
    {"guard_defer_copy, allocated", defer_big_copy, "run x"},
    {"guard_defer_recover", defer_recover, ""},
    {"guard_defer of what fails", defer_failing, "fail x"},
};
#define FORM_COUNT (sizeof forms / sizeof *forms)

static void do_nothing(void *arg)
{
    (void)arg;
}

typedef struct attempt {
    const form *form;
    unsigned free_records; /* left in the pool */
} attempt;

static unsigned count_free(void)
{
    unsigned count = 0;
    for (const guard_impl_record *record = guard_impl_stack->free; record != NULL; record = record->next) {
        count++;
    }
    return count;
}

/* Registers on `scope` until only `count` free records are left to the thread. */
static void leave_free(guard_scope *scope, unsigned count)
{
    for (unsigned found = count_free(); found > count; found--) {
        guard_defer(scope, do_nothing, NULL);
    }
}

static void register_without_memory(void *arg)
{
    const attempt *this = arg;
    GUARD_AUTO(s);
    leave_free(s, this->free_records);
    fault_memory_fail_from(1);
    this->form->defer(s);
    trace_add("registered");
}

static void expect_refused(int code, const form *refused)
{
    ck_assert_int_eq(code, ENOMEM);
    ck_assert_int_eq(error.domain, GUARD_MEMORY);
    ck_assert_str_eq(error.file, "check_memory.c");
    if (strcmp(refused->refused, "fail x") == 0) {
        ck_assert_uint_eq(error.cause_count, 1);
        ck_assert_int_eq(error.causes[0].relation, GUARD_ATTACHED);
        ck_assert_str_eq(error.causes[0].message, "x");
    } else {
        ck_assert_uint_eq(error.cause_count, 0);
    }
    ck_assert_msg(strcmp(trace_text(), refused->refused) == 0, "%s: \"%s\"", refused->name, trace_text());
    trace_clear();
}

START_TEST(a_registration_without_memory_releases_at_once_and_panics)
{
    fault_memory_install();
    for (unsigned i = 0; i < FORM_COUNT; i++) {
        attempt this = {.form = &forms[i]};
        int code = guard_run(register_without_memory, &this, &error);
        fault_memory_fail_at(0);
        expect_refused(code, this.form);
    }
    ck_assert_uint_eq(fault_memory_blocks(), 1); /* the thread's stack */
}
END_TEST

START_TEST(a_copy_without_memory_for_its_bytes_releases_at_once_and_panics)
{
    fault_memory_install();
    for (unsigned i = 0; i < FORM_COUNT; i++) {
        if (forms[i].defer != defer_copy_of_words && forms[i].defer != defer_big_copy) {
            continue;
        }
        attempt this = {.form = &forms[i], .free_records = 1};
        int code = guard_run(register_without_memory, &this, &error);
        fault_memory_fail_at(0);
        expect_refused(code, this.form);
    }
    ck_assert_uint_eq(fault_memory_blocks(), 1);
}
END_TEST

static void register_on_an_owner_without_memory(void *arg)
{
    const attempt *this = arg;
    GUARD_AUTO(s);
    guard_owner *owner = guard_owner_new();
    guard_defer_kind(s, &guard_owner_kind, owner);
    fault_memory_fail_from(1);
    this->form->defer(guard_owner_scope(owner));
    trace_add("registered");
}

START_TEST(a_registration_on_an_owner_without_memory_releases_at_once_and_panics)
{
    fault_memory_install();
    for (unsigned i = 0; i < FORM_COUNT; i++) {
        attempt this = {.form = &forms[i]};
        int code = guard_run(register_on_an_owner_without_memory, &this, &error);
        fault_memory_fail_at(0);
        expect_refused(code, this.form);
    }
    ck_assert_uint_eq(fault_memory_blocks(), 1);
}
END_TEST

/* ------------------------------------------------------------------------------------ first use -- */

static void *use_in_a_new_thread(void *arg)
{
    (void)arg;
    static guard_error first;
    fault_memory_fail_at(1);
    ck_assert_int_eq(guard_run(do_nothing, NULL, &first), ENOMEM);
    ck_assert_int_eq(first.domain, GUARD_MEMORY);
    ck_assert_str_eq(first.message, "out of memory for the thread's guard stack");
    ck_assert(fault_memory_was_hit());
    ck_assert_int_eq(guard_run(trace_run, "a", &first), 0); /* now there is memory */
    ck_assert_str_eq(trace_text(), "run a");
    return NULL;
}

START_TEST(a_border_reports_that_there_is_no_memory_for_the_threads_stack)
{
    fault_memory_install();
    pthread_t thread;
    ck_assert_int_eq(pthread_create(&thread, NULL, use_in_a_new_thread, NULL), 0);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    ck_assert_uint_eq(fault_memory_blocks(), 0); /* given back at the thread's end */
}
END_TEST

static void open_without_memory(void *arg)
{
    (void)arg;
    fault_memory_install();
    fault_memory_fail_from(1);
    GUARD_AUTO(s);
    guard_defer(s, do_nothing, NULL);
}

START_TEST(a_first_scope_without_memory_is_an_uncaught_panic)
{
    child_result result;
    child_run(open_without_memory, NULL, &result);
    child_expect_abort(&result);
    ck_assert_ptr_nonnull(strstr(result.text, "panic: out of memory for the thread's guard stack [memory 12] at "));
}
END_TEST

static void release_aloud(void *arg)
{
    guard_note("released %s", (const char *)arg);
}

static void *register_in_a_new_thread(void *owner)
{
    fault_memory_fail_from(1);
    guard_defer(guard_owner_scope(owner), release_aloud, "x");
    return NULL;
}

static void register_without_a_stack(void *arg)
{
    (void)arg;
    fault_memory_install();
    pthread_t thread;
    if (pthread_create(&thread, NULL, register_in_a_new_thread, guard_owner_new()) == 0) {
        pthread_join(thread, NULL);
    }
}

START_TEST(a_registration_in_a_thread_that_cannot_have_a_stack_releases_first)
{
    child_result result;
    child_run(register_without_a_stack, NULL, &result);
    child_expect_abort(&result);
    ck_assert_ptr_nonnull(strstr(result.text, "released x"));
    ck_assert_ptr_nonnull(strstr(result.text, "panic: out of memory for the thread's guard stack"));
}
END_TEST

START_TEST(guard_allocate_panics_and_never_returns_null)
{
    fault_memory_install();
    void *memory = guard_allocate(0);
    ck_assert_ptr_nonnull(memory);
    guard_deallocate(memory);
    guard_deallocate(NULL);
    ck_assert_uint_eq(fault_memory_blocks(), 0);
}
END_TEST

/* -------------------------------------------------------------------------------- every allocation -- */

static int live; /* resources acquired and not released */

static void release_one(void *arg)
{
    (void)arg;
    live--;
}

static void release_copy(void *copy)
{
    ck_assert_str_eq(copy, "a copy longer than what fits into a record, so it is allocated");
    live--;
}

static const guard_kind one = {.name = "one", .release = release_one};

static void take_one(guard_scope *scope)
{
    live++;
    guard_defer_kind(scope, &one, NULL);
}

static void take_copy(guard_scope *scope)
{
    static const char text[] = "a copy longer than what fits into a record, so it is allocated";
    live++;
    guard_defer_copy(scope, release_copy, text, sizeof text);
}

static void rich_inner(void *scope)
{
    GUARD_AUTO(s);
    for (int i = 0; i < 1500; i++) {
        take_one(s);
    }
    take_one(scope);
    take_copy(s);
}

static void rich_scenario(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_owner *owner = guard_owner_new();
    guard_defer_kind(s, &guard_owner_kind, owner);
    guard_reserve(s, 200);
    guard_reserve(guard_owner_scope(owner), 3);
    take_one(guard_owner_scope(owner));
    take_copy(guard_owner_scope(owner));
    live++;
    guard_ticket kept = guard_move(guard_defer(s, release_one, NULL), guard_owner_scope(owner));
    guard_error inner;
    if (guard_run(rich_inner, guard_owner_scope(owner), &inner) != 0) {
        guard_panic_error(&inner);
    }
    guard_release(kept);
    take_copy(s);
    guard_owner *second = guard_owner_new();
    guard_defer_kind(guard_owner_scope(owner), &guard_owner_kind, second);
    take_copy(guard_owner_scope(second));
}

START_TEST(each_allocation_of_a_rich_scenario_fails_in_turn_and_nothing_leaks)
{
    fault_memory_install();
    ck_assert_int_eq(guard_run(do_nothing, NULL, NULL), 0);
    size_t before = fault_memory_blocks();
    unsigned long n = 0;
    do {
        n++;
        live = 0;
        fault_memory_fail_at(n);
        int code = guard_run(rich_scenario, NULL, &error);
        ck_assert_int_eq(code, fault_memory_was_hit() ? ENOMEM : 0);
        ck_assert_msg(live == 0, "allocation %lu failed: %d resources were not released", n, live);
        /* What is kept for later does not grow. */
        ck_assert_uint_le(fault_memory_blocks(), before + 2);
    } while (fault_memory_was_hit());
    ck_assert_uint_gt(n, 8);
}
END_TEST

START_TEST(all_allocations_from_each_place_on_fail_and_nothing_leaks)
{
    fault_memory_install();
    ck_assert_int_eq(guard_run(do_nothing, NULL, NULL), 0);
    unsigned long n = 0;
    do {
        n++;
        live = 0;
        fault_memory_fail_from(n);
        int code = guard_run(rich_scenario, NULL, &error);
        ck_assert_int_eq(code, fault_memory_was_hit() ? ENOMEM : 0);
        ck_assert_int_eq(live, 0);
    } while (fault_memory_was_hit());
}
END_TEST

/* ------------------------------------------------------------------------------------ reserving -- */

static void register_greedily(void *scope)
{
    for (;;) {
        guard_defer((guard_scope *)scope, do_nothing, NULL);
    }
}

static void reserve_then_register(void *arg)
{
    const attempt *this = arg;
    GUARD_AUTO(s);
    leave_free(s, 0);
    guard_reserve(s, 2);
    fault_memory_fail_from(1);
    GUARD_AUTO(inner);
    ck_assert_int_eq(guard_run(register_greedily, inner, NULL), ENOMEM);
    this->form->defer(s);
    trace_add("registered");
}

START_TEST(a_reserved_registration_cannot_fail)
{
    fault_memory_install();
    for (unsigned i = 0; i < FORM_COUNT; i++) {
        if (forms[i].defer == defer_big_copy || forms[i].defer == defer_failing) {
            continue;
        }
        attempt this = {.form = &forms[i]};
        ck_assert_int_eq(guard_run(reserve_then_register, &this, &error), 0);
        fault_memory_fail_at(0);
        ck_assert_int_eq(strncmp(trace_text(), "registered", 10), 0);
        trace_clear();
    }
}
END_TEST

static void reserve_and_let_others_register(void *arg)
{
    const unsigned *count = arg;
    GUARD_AUTO(outer);
    GUARD_AUTO(s);
    guard_reserve(s, *count);
    guard_reserve(outer, *count);
    fault_memory_fail_from(1);
    GUARD_AUTO(inner);
    /* The records stay with `outer`, which is to live longer. */
    ck_assert_int_eq(guard_run(register_greedily, outer, NULL), ENOMEM);
    ck_assert_int_eq(guard_run(register_greedily, inner, NULL), ENOMEM);
    for (unsigned i = 0; i < *count; i++) {
        guard_defer(s, trace_run, i == 0 ? "first" : i == *count - 1 ? "last" : "");
    }
    trace_add("registered %u", *count);
    ck_assert_int_eq(guard_run(register_greedily, s, &error), ENOMEM);
    guard_panic(1, "end");
}

START_TEST(what_one_scope_reserved_no_other_scope_takes)
{
    fault_memory_install();
    for (unsigned count = 1; count <= 3; count++) {
        ck_assert_int_eq(guard_run(reserve_and_let_others_register, &count, &error), 1);
        fault_memory_fail_at(0);
        char expected[64];
        snprintf(expected, sizeof expected, "registered %u", count);
        ck_assert_int_eq(strncmp(trace_text(), expected, strlen(expected)), 0);
        trace_clear();
    }
}
END_TEST

static void fill_and_trim(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    for (int i = 0; i < 20000; i++) {
        guard_defer(s, do_nothing, NULL);
    }
}

static void reserve_over_a_trim(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_reserve(s, 5000);
    fill_and_trim(NULL);
    fault_memory_fail_from(1);
    for (int i = 0; i < 5000; i++) {
        guard_defer(s, do_nothing, NULL);
    }
}

START_TEST(what_is_reserved_survives_that_other_memory_is_given_back)
{
    fault_memory_install();
    ck_assert_int_eq(guard_run(reserve_over_a_trim, NULL, &error), 0);
    fault_memory_fail_at(0);
}
END_TEST

static void reserve_too_much(void *arg)
{
    const size_t *count = arg;
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "a");
    guard_reserve(s, *count);
}

START_TEST(reserving_more_than_there_is_panics_before_anything_is_acquired)
{
    fault_memory_install();
    size_t count = 10000;
    fault_memory_fail_at(5);
    ck_assert_int_eq(guard_run(reserve_too_much, &count, &error), ENOMEM);
    trace_expect("run a");
    ck_assert_str_eq(error.message, "out of memory for 10000 registrations");
    count = SIZE_MAX;
    ck_assert_int_eq(guard_run(reserve_too_much, &count, &error), ENOMEM);
}
END_TEST

START_TEST(what_was_reserved_and_not_used_is_given_back)
{
    fault_memory_install();
    ck_assert_int_eq(guard_run(do_nothing, NULL, NULL), 0);
    size_t before = fault_memory_blocks();
    for (int i = 0; i < 10000; i++) {
        GUARD_AUTO(s);
        guard_reserve(s, 3);
    }
    ck_assert_uint_eq(fault_memory_blocks(), before);
    GUARD_SCOPE (s) {
        guard_reserve(s, 50000);
    }
    fill_and_trim(NULL);
    fill_and_trim(NULL);
    ck_assert_uint_le(fault_memory_blocks(), before + 1);
}
END_TEST

/* ------------------------------------------------------------------------------------ much memory -- */

static unsigned long counted;

static void count_down(void *arg)
{
    ck_assert_uint_eq((uintptr_t)arg, counted);
    counted--;
}

START_TEST(a_hundred_thousand_defers_in_one_scope_run_in_order_and_give_their_memory_back)
{
    fault_memory_install();
    ck_assert_int_eq(guard_run(do_nothing, NULL, NULL), 0);
    size_t blocks = fault_memory_blocks();
    size_t bytes = fault_memory_bytes();
    for (int turn = 0; turn < 3; turn++) {
        {
            GUARD_AUTO(s);
            for (counted = 1; counted <= 100000; counted++) {
                guard_defer(s, count_down, (void *)counted);
            }
            counted--;
            ck_assert_uint_le(fault_memory_bytes() - bytes, 100000 * 48 + 48 * 1024);
        }
        ck_assert_uint_eq(counted, 0);
        ck_assert_uint_le(fault_memory_blocks(), blocks + 1); /* one chunk is kept as a spare */
    }
    unsigned long taken = fault_memory_taken();
    fill_and_trim(NULL);
    ck_assert_uint_le(fault_memory_taken() - taken, 20);
}
END_TEST

#define DEEP 60U
#define WIDE 1024U /* registrations of one scope: as many as a chunk has */

static guard_ticket wide[DEEP][WIDE];
static unsigned released;

static void count_up(void *arg)
{
    (void)arg;
    released++;
}

/* The newest of each scope in turn, so that neighbours in the free list lie in different chunks. */
static void release_half_across_scopes(void)
{
    for (unsigned i = WIDE; i-- > WIDE / 2;) {
        for (unsigned depth = 0; depth < DEEP; depth++) {
            guard_release(wide[depth][i]);
        }
    }
}

static void open_wide_scopes(guard_scope *outer, unsigned depth)
{
    if (depth == DEEP) {
        guard_defer(outer, count_up, NULL); /* lives on in a chunk of its own */
        release_half_across_scopes();
        return;
    }
    GUARD_AUTO(s);
    for (unsigned i = 0; i < WIDE; i++) {
        wide[depth][i] = guard_defer(s, count_up, NULL);
    }
    open_wide_scopes(outer, depth + 1);
}

START_TEST(records_released_across_many_chunks_give_their_memory_back_and_none_is_lost)
{
    fault_memory_install();
    GUARD_AUTO(outer);
    unsigned first = count_free();
    size_t blocks = fault_memory_blocks();
    open_wide_scopes(outer, 0);
    ck_assert_uint_eq(released, DEEP * WIDE);
    ck_assert_uint_eq(fault_memory_blocks(), blocks + 2); /* a spare chunk, and that of the one that lives on */
    /* Both are whole but for the one; or the spare is the newest chunk, of which 64 records were needed. */
    unsigned count = count_free();
    ck_assert_msg(count == first + 2 * WIDE - 1 || count == first + WIDE + 64 - 1, "%u free records", count);
}
END_TEST

START_TEST(a_million_defers_on_an_owner_take_linear_time)
{
    fault_memory_install();
    guard_owner *owner = guard_owner_new();
    for (int i = 0; i < 1000000; i++) {
        guard_defer(guard_owner_scope(owner), do_nothing, NULL); /* were it quadratic, the test would not end */
    }
    guard_owner_close(owner);
    ck_assert_uint_eq(fault_memory_blocks(), 1);
}
END_TEST

START_TEST(a_loop_just_beyond_the_first_records_does_not_allocate_at_each_turn)
{
    fault_memory_install();
    fill_and_trim(NULL);
    GUARD_AUTO(s);
    leave_free(s, 10);
    unsigned long taken = fault_memory_taken();
    for (int turn = 0; turn < 1000; turn++) {
        GUARD_AUTO(inner);
        for (int i = 0; i < 30; i++) {
            guard_defer(inner, do_nothing, NULL);
        }
    }
    ck_assert_uint_le(fault_memory_taken() - taken, 1);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_registration_without_memory_releases_at_once_and_panics,
        a_copy_without_memory_for_its_bytes_releases_at_once_and_panics,
        a_registration_on_an_owner_without_memory_releases_at_once_and_panics,
        a_border_reports_that_there_is_no_memory_for_the_threads_stack,
        a_first_scope_without_memory_is_an_uncaught_panic,
        a_registration_in_a_thread_that_cannot_have_a_stack_releases_first,
        guard_allocate_panics_and_never_returns_null,
        each_allocation_of_a_rich_scenario_fails_in_turn_and_nothing_leaks,
        all_allocations_from_each_place_on_fail_and_nothing_leaks,
        a_reserved_registration_cannot_fail,
        what_one_scope_reserved_no_other_scope_takes,
        what_is_reserved_survives_that_other_memory_is_given_back,
        reserving_more_than_there_is_panics_before_anything_is_acquired,
        what_was_reserved_and_not_used_is_given_back,
        a_hundred_thousand_defers_in_one_scope_run_in_order_and_give_their_memory_back,
        records_released_across_many_chunks_give_their_memory_back_and_none_is_lost,
        a_million_defers_on_an_owner_take_linear_time,
        a_loop_just_beyond_the_first_records_does_not_allocate_at_each_turn,
    };
    return suite_run("memory", tests, sizeof tests / sizeof *tests);
}
