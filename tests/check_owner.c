/* SPDX-License-Identifier: MIT */
/* check_owner.c: a scope on the heap, closed by whoever holds it, in any thread, also in a panic. */
#include <pthread.h>

#include <guard/guard.h>

#include "calls.h"
#include "fault_memory.h"
#include "suite.h"
#include "trace.h"

static guard_error error;

START_TEST(an_owner_runs_its_defers_newest_first_when_it_is_closed)
{
    fault_memory_install();
    guard_owner *owner = guard_owner_new();
    guard_scope *s = guard_owner_scope(owner);
    const char *name = "copy";
    guard_defer(s, trace_run, "a");
    guard_defer_kind(s, &trace_kind, "b");
    guard_defer_copy(s, trace_run_copy, &name, sizeof name);
    guard_defer_on(s, GUARD_ON_FAILURE, trace_run, "failure");
    guard_defer_on(s, GUARD_ON_SUCCESS, trace_run, "success");
    guard_owner_close(owner);
    trace_expect("run success, run copy, release b, run a");
    ck_assert_uint_eq(fault_memory_blocks(), 1); /* the thread's stack */
}
END_TEST

START_TEST(a_failed_owner_runs_its_on_failure_defers)
{
    guard_owner *owner = guard_owner_new();
    guard_defer_on(guard_owner_scope(owner), GUARD_ON_FAILURE, trace_run, "failure");
    guard_defer_on(guard_owner_scope(owner), GUARD_ON_SUCCESS, trace_run, "success");
    guard_fail(guard_owner_scope(owner));
    guard_owner_close(owner);
    trace_expect("run failure");
}
END_TEST

static guard_owner *kept;

static void fill_an_owner(void *arg)
{
    (void)arg;
    kept = guard_owner_new();
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "scope");
    guard_defer(guard_owner_scope(kept), trace_run, "owner");
    guard_panic(1, "gone");
}

START_TEST(an_owner_outlives_the_scopes_and_panics_of_its_maker)
{
    ck_assert_int_eq(guard_run(fill_an_owner, NULL, NULL), 1);
    trace_expect("run scope");
    guard_owner_close(kept);
    trace_expect("run owner");
}
END_TEST

static void register_an_owner(void *panics)
{
    GUARD_AUTO(s);
    guard_owner *owner = guard_owner_new();
    guard_defer(s, trace_run, "earlier");
    guard_defer_kind(s, &guard_owner_kind, owner);
    guard_defer(s, trace_run, "later");
    guard_defer_kind(guard_owner_scope(owner), &trace_kind, "in the owner");
    if (panics != NULL) {
        guard_panic(1, "P");
    }
}

START_TEST(an_owner_registered_on_a_scope_ends_with_it)
{
    fault_memory_install();
    ck_assert_int_eq(guard_run(register_an_owner, NULL, NULL), 0);
    trace_expect("run later, release in the owner, run earlier");
    ck_assert_int_eq(guard_run(register_an_owner, "panics", NULL), 1);
    trace_expect("run later, release in the owner, run earlier");
    ck_assert_uint_eq(fault_memory_blocks(), 1);
}
END_TEST

/* -------------------------------------------------------------------------------------- failures -- */

static void close_what_fails(void *arg)
{
    guard_owner *owner = guard_owner_new();
    guard_defer(guard_owner_scope(owner), trace_run, "rest");
    guard_defer(guard_owner_scope(owner), trace_fail, arg);
    guard_owner_close(owner);
    trace_add("not reached");
}

START_TEST(a_panic_of_an_owners_defer_goes_on_after_the_rest_ran_and_the_owner_is_freed)
{
    fault_memory_install();
    ck_assert_int_eq(guard_run(close_what_fails, "x", &error), TRACE_FAILED);
    trace_expect("fail x, run rest");
    ck_assert_uint_eq(fault_memory_blocks(), 1);
}
END_TEST

static guard_owner *failing_owner(const char *name)
{
    guard_owner *owner = guard_owner_new();
    guard_defer(guard_owner_scope(owner), trace_run, (void *)(uintptr_t)name);
    guard_defer_kind(guard_owner_scope(owner), &trace_failing_kind, (void *)(uintptr_t)name);
    return owner;
}

static void nest_failing_owners(void *panics)
{
    guard_owner *outer = failing_owner("outer");
    guard_owner *inner = failing_owner("inner");
    guard_owner *innermost = failing_owner("innermost");
    guard_defer_kind(guard_owner_scope(inner), &guard_owner_kind, innermost);
    guard_defer_kind(guard_owner_scope(outer), &guard_owner_kind, inner);
    GUARD_AUTO(s);
    guard_defer(s, trace_run, "scope");
    guard_defer_kind(s, &guard_owner_kind, outer);
    if (panics != NULL) {
        guard_panic(1, "P");
    }
}

START_TEST(owners_that_close_owners_in_a_panic_fail_and_free_all)
{
    static const char all[] = "fail innermost, run innermost, fail inner, run inner, fail outer, run outer, run scope";
    fault_memory_install();
    ck_assert_int_eq(guard_run(nest_failing_owners, "panics", &error), 1);
    trace_expect(all);
    ck_assert_str_eq(error.message, "P");
    ck_assert_uint_eq(error.cause_count, 3);
    ck_assert_int_eq(error.causes[0].relation, GUARD_ATTACHED);
    ck_assert_str_eq(error.causes[0].message, "innermost");
    ck_assert_uint_eq(fault_memory_blocks(), 1);
    ck_assert_int_eq(guard_run(nest_failing_owners, NULL, &error), TRACE_FAILED);
    trace_expect(all);
    ck_assert_str_eq(error.message, "innermost");
    ck_assert_uint_eq(fault_memory_blocks(), 1);
}
END_TEST

static void recover_in_the_owner(void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_owner *owner = guard_owner_new();
    guard_defer_kind(s, &guard_owner_kind, owner);
    guard_defer_recover(guard_owner_scope(owner), trace_recover, "owner's");
    guard_panic(1, "P");
}

START_TEST(an_owners_recovering_defer_sees_only_panics_of_its_own_close)
{
    ck_assert_int_eq(guard_run(recover_in_the_owner, NULL, &error), 1);
    trace_expect("owner's sees nothing");
    guard_owner *owner = guard_owner_new();
    guard_defer_recover(guard_owner_scope(owner), trace_recover, "owner's");
    guard_defer(guard_owner_scope(owner), trace_fail, "x");
    ck_assert_int_eq(guard_run(call_owner_close, owner, &error), 0);
    trace_expect("fail x, recover owner's from x");
}
END_TEST

/* --------------------------------------------------------------------------------------- threads -- */

static void *close_in_this_thread(void *owner)
{
    guard_scope *s = guard_owner_scope(owner);
    guard_defer(s, trace_run, "from the second thread");
    guard_owner_close(owner);
    ck_assert_str_eq(trace_text(), "run from the second thread, run copy, release from the first thread");
    return NULL;
}

START_TEST(an_owner_is_handed_from_thread_to_thread)
{
    fault_memory_install();
    const char *name = "copy";
    GUARD_AUTO(s);
    guard_owner *owner = guard_owner_new();
    guard_defer_kind(guard_owner_scope(owner), &trace_kind, "from the first thread");
    guard_ticket ticket = guard_defer_copy(s, trace_run_copy, &name, sizeof name);
    guard_move(ticket, guard_owner_scope(owner));
    pthread_t thread;
    ck_assert_int_eq(pthread_create(&thread, NULL, close_in_this_thread, owner), 0);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    ck_assert_str_eq(trace_text(), "");
    ck_assert_uint_eq(fault_memory_blocks(), 1);
}
END_TEST

static void *use_tickets_in_this_thread(void *arg)
{
    guard_ticket *tickets = arg;
    ck_assert_int_eq(guard_run(trace_run, "make a stack", NULL), 0);
    guard_release(tickets[0]);
    guard_dismiss(tickets[1]);
    ck_assert_int_eq(guard_pending(tickets[0]), 0);
    ck_assert_int_eq(guard_pending(tickets[2]), 1);
    ck_assert_str_eq(trace_text(), "run make a stack, run a");
    return NULL;
}

START_TEST(an_owners_tickets_are_whose_that_holds_the_owner)
{
    guard_owner *owner = guard_owner_new();
    guard_ticket tickets[3] = {
        guard_defer(guard_owner_scope(owner), trace_run, "a"),
        guard_defer(guard_owner_scope(owner), trace_run, "b"),
        guard_defer(guard_owner_scope(owner), trace_run, "c"),
    };
    pthread_t thread;
    ck_assert_int_eq(pthread_create(&thread, NULL, use_tickets_in_this_thread, tickets), 0);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    ck_assert_int_eq(guard_pending(tickets[1]), 0);
    guard_owner_close(owner);
    trace_expect("run c");
}
END_TEST

static void register_on_none(void *arg)
{
    (void)arg;
    guard_defer_on(guard_owner_scope(NULL), GUARD_ON_SUCCESS, trace_run, "a");
}

START_TEST(no_owner_has_no_scope_and_nothing_to_close)
{
    guard_error said;
    guard_owner_close(NULL);
    ck_assert_ptr_null(guard_owner_scope(NULL));
    ck_assert_int_eq(guard_run(register_on_none, NULL, &said), GUARD_MISUSE_SCOPE);
    ck_assert_int_eq(said.domain, GUARD_MISUSE);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        an_owner_runs_its_defers_newest_first_when_it_is_closed,
        a_failed_owner_runs_its_on_failure_defers,
        an_owner_outlives_the_scopes_and_panics_of_its_maker,
        an_owner_registered_on_a_scope_ends_with_it,
        a_panic_of_an_owners_defer_goes_on_after_the_rest_ran_and_the_owner_is_freed,
        owners_that_close_owners_in_a_panic_fail_and_free_all,
        an_owners_recovering_defer_sees_only_panics_of_its_own_close,
        an_owner_is_handed_from_thread_to_thread,
        an_owners_tickets_are_whose_that_holds_the_owner,
        no_owner_has_no_scope_and_nothing_to_close,
    };
    return suite_run("owner", tests, sizeof tests / sizeof *tests);
}
