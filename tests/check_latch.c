/* SPDX-License-Identifier: MIT */
/* check_latch.c: a panic is carried over the frames of another library, here the C library's qsort_r. */
#include <stdlib.h>
#include <string.h>

#include <guard/guard.h>

#include "suite.h"
#include "trace.h"

static guard_error error;
static char notes[600];

static void keep_note(const char *text)
{
    strncat(notes, text, sizeof notes - 1 - strlen(notes));
}

typedef struct comparison {
    const int *a;
    const int *b;
    int result;
    int bad; /* the number that makes it panic */
} comparison;

static int compared;
static int bad_number;

static void compare_numbers(void *arg)
{
    comparison *this = arg;
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "defer");
    compared++;
    if (*this->a == this->bad || *this->b == this->bad) {
        guard_panic(*this->a, "cannot compare %d with %d", *this->a, *this->b);
    }
    this->result = (*this->a > *this->b) - (*this->a < *this->b);
}

static int compare(const void *a, const void *b, void *latch)
{
    comparison this = {a, b, 0, bad_number};
    if (guard_latch_run(latch, compare_numbers, &this) != 0) {
        return 0;
    }
    return this.result;
}

static void sort(void *numbers)
{
    guard_latch latch;
    guard_latch_open(&latch);
    qsort_r(numbers, 8, sizeof(int), compare, &latch);
    trace_clear();
    trace_add("qsort_r returned");
    guard_latch_raise(&latch);
    trace_add("sorted");
}

START_TEST(callbacks_that_do_not_panic_leave_the_latch_empty)
{
    int numbers[] = {5, 3, 8, 1, 4, 7, 2, 6};
    ck_assert_int_eq(guard_run(sort, numbers, NULL), 0);
    trace_expect("qsort_r returned, sorted");
    for (int i = 0; i < 8; i++) {
        ck_assert_int_eq(numbers[i], i + 1);
    }
}
END_TEST

START_TEST(a_panic_in_a_callback_is_raised_after_the_library_returned)
{
    int numbers[] = {5, 3, 8, 1, 4, 7, 2, 6};
    bad_number = 8;
    compared = 0;
    ck_assert_int_ne(guard_run(sort, numbers, &error), 0);
    trace_expect("qsort_r returned");
    ck_assert_int_eq(strncmp(error.message, "cannot compare ", 15), 0);
    ck_assert_str_eq(error.function, "compare_numbers");
    ck_assert_uint_eq(error.cause_count, 0);
    int until_the_panic = compared;
    ck_assert_int_lt(until_the_panic, 8);
    bad_number = 0;
}
END_TEST

static void raise_latched(void *latch)
{
    guard_latch_raise(latch);
}

static void latch_twice(void *arg)
{
    guard_latch latch;
    guard_latch_open(&latch);
    ck_assert_int_eq(guard_latch_run(&latch, trace_run, "before"), 0);
    ck_assert_int_eq(guard_latch_run(&latch, trace_fail, arg), TRACE_FAILED);
    ck_assert_int_eq(guard_latch_run(&latch, trace_run, "not run"), TRACE_FAILED);
    trace_expect("run before, fail first");
    ck_assert_int_eq(guard_run(raise_latched, &latch, &error), TRACE_FAILED);
    guard_latch_raise(&latch); /* it is empty again */
    ck_assert_int_eq(guard_latch_run(&latch, trace_run, "again"), 0);
}

START_TEST(once_a_panic_is_latched_no_more_work_is_done_until_it_is_raised)
{
    ck_assert_int_eq(guard_run(latch_twice, "first", NULL), 0);
    trace_expect("run again");
}
END_TEST

START_TEST(a_latch_that_nobody_may_raise_is_noted_and_dropped)
{
    guard_latch latch;
    guard_note_handler(keep_note);
    guard_latch_open(&latch);
    guard_latch_drop(&latch, "empty");
    ck_assert_str_eq(notes, "");
    ck_assert_int_eq(guard_latch_run(&latch, trace_fail, "lost"), TRACE_FAILED);
    guard_latch_drop(&latch, "the call was not ours");
    ck_assert_str_eq(notes, "a panic in a callback was dropped (the call was not ours): lost");
    guard_latch_raise(&latch);
    guard_note_handler(NULL);
}
END_TEST

static void hold(void *message)
{
    GUARD_AUTO(s);
    guard_defer(s, trace_fail, message);
}

static int compare_while_held(const void *a, const void *b, void *latch)
{
    (void)a;
    (void)b;
    if (trace_text()[0] == '\0') { /* at the first comparison: a sanitizer's qsort_r compares once more */
        hold("held in the callback");
    }
    (void)guard_latch_run(latch, trace_run, "not run");
    return 0;
}

static void sort_while_held(void *arg)
{
    (void)arg;
    int numbers[] = {2, 1};
    guard_latch latch;
    guard_latch_open(&latch);
    qsort_r(numbers, 2, sizeof(int), compare_while_held, &latch);
    trace_add("qsort_r returned");
    guard_latch_raise(&latch);
}

START_TEST(a_held_panic_is_latched_and_not_raised_over_the_librarys_frames)
{
    ck_assert_int_eq(guard_run(sort_while_held, NULL, &error), TRACE_FAILED);
    trace_expect("fail held in the callback, qsort_r returned");
    ck_assert_str_eq(error.message, "held in the callback");
}
END_TEST

static void latch_nothing(void *latch)
{
    ck_assert_int_eq(guard_latch_run(latch, NULL, NULL), GUARD_MISUSE_ARGUMENT);
}

START_TEST(misuse_of_a_latch_is_latched_too)
{
    guard_latch latch;
    guard_latch_open(&latch);
    ck_assert_int_eq(guard_run(latch_nothing, &latch, NULL), 0);
    ck_assert_int_eq(latch.error.domain, GUARD_MISUSE);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        callbacks_that_do_not_panic_leave_the_latch_empty,
        a_panic_in_a_callback_is_raised_after_the_library_returned,
        once_a_panic_is_latched_no_more_work_is_done_until_it_is_raised,
        a_latch_that_nobody_may_raise_is_noted_and_dropped,
        a_held_panic_is_latched_and_not_raised_over_the_librarys_frames,
        misuse_of_a_latch_is_latched_too,
    };
    return suite_run("latch", tests, sizeof tests / sizeof *tests);
}
