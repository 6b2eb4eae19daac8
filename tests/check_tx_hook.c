/* SPDX-License-Identifier: MIT */
/*
 * check_tx_hook.c: hooks run when the outcome is fixed, all of them and in order, and change nothing of it (behaviour 26), on SQLite.
 */
#include <guard/guard.h>
#include <guard/guard_sqlite.h>
#include <guard/tx.h>

#include "sqlite_table.h"
#include "suite.h"
#include "trace.h"

static void trace_outcome(void *tx)
{
    trace_add("%s", guard_outcome_name(guard_tx_outcome(tx)));
}

static void panic_now(void *text)
{
    trace_add("panic %s", (const char *)text);
    guard_panic(9, "%s", (const char *)text);
}

START_TEST(on_commit_hooks_run_in_order_after_the_outermost_commit)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_tx_on_commit(tx, trace_run, (void *)"1");
    guard_tx *nested = guard_tx_begin_nested(s, tx);
    guard_tx_on_commit(nested, trace_run, (void *)"2");
    guard_tx_commit(nested);
    trace_expect("");
    guard_tx_on_commit(tx, trace_run, (void *)"3");
    guard_tx_on_commit(tx, trace_outcome, tx);
    guard_tx_on_rollback(tx, trace_run, (void *)"never");
    guard_tx_commit(tx);
    trace_expect("run 1, run 2, run 3, committed");
}
END_TEST

START_TEST(the_hooks_of_a_rolled_back_part_run_on_rollback_only)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_tx_on_commit(tx, trace_run, (void *)"outer");
    guard_tx_on_rollback(tx, trace_run, (void *)"never");
    guard_tx *nested = guard_tx_begin_nested(s, tx);
    guard_tx_on_commit(nested, trace_run, (void *)"never");
    guard_tx_on_rollback(nested, trace_run, (void *)"first");
    guard_tx_on_rollback(nested, trace_run, (void *)"second");
    guard_tx_rollback(nested);
    trace_expect("run second, run first");
    guard_tx_commit(tx);
    trace_expect("run outer");
}
END_TEST

START_TEST(the_hooks_of_a_released_part_follow_its_parent_into_rollback)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    {
        GUARD_AUTO(inner);
        guard_tx *tx = guard_sqlite_begin(inner, db, NULL);
        guard_tx *nested = guard_tx_begin_nested(inner, tx);
        guard_tx_on_commit(nested, trace_run, (void *)"never");
        guard_tx_on_rollback(nested, trace_run, (void *)"undo");
        guard_tx_commit(nested);
        trace_expect("");
    }
    trace_expect("run undo");
}
END_TEST

static void body_with_bad_hooks(guard_tx *tx, void *arg)
{
    (void)arg;
    table_insert(1);
    guard_tx_on_commit(tx, trace_run, (void *)"before");
    guard_tx_on_commit(tx, panic_now, (void *)"first");
    guard_tx_on_commit(tx, panic_now, (void *)"second");
    guard_tx_on_commit(tx, trace_run, (void *)"after");
}

START_TEST(a_hook_that_panics_changes_no_outcome_and_stops_no_other)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    guard_result result;
    ck_assert_int_eq(guard_sqlite_transact(db, body_with_bad_hooks, NULL, NULL, &result), GUARD_COMMITTED);
    trace_expect("run before, panic first, panic second, run after");
    ck_assert(!result.has_error);
    ck_assert(result.has_hook_error);
    ck_assert_str_eq(result.hook_error.message, "first");
    ck_assert_uint_eq(result.hook_error.cause_count, 1);
    ck_assert_str_eq(result.hook_error.causes[0].message, "second");
    ck_assert_int_eq(database_number(path, COUNT), 1);
}
END_TEST

static void note_trace(const char *text)
{
    trace_add("note %s", text);
}

START_TEST(a_hook_that_panics_in_the_scope_form_is_noted)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    guard_note_handler(note_trace);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_tx_on_commit(tx, panic_now, (void *)"hook");
    guard_tx_commit(tx);
    trace_expect("panic hook, note a hook of a transaction that is committed failed: hook");
    ck_assert(guard_tx_result(tx)->has_hook_error);
}
END_TEST

static void transact_again(void *arg)
{
    ck_assert_int_eq(guard_sqlite_transact(db, table_insert_two, arg, NULL, NULL), GUARD_COMMITTED);
}

START_TEST(a_hook_may_begin_a_new_transaction)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, NULL);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    table_insert(1);
    guard_tx_on_commit(tx, transact_again, NULL);
    guard_tx_commit(tx);
    ck_assert_int_eq(database_number(path, COUNT), 2);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        on_commit_hooks_run_in_order_after_the_outermost_commit,
        the_hooks_of_a_rolled_back_part_run_on_rollback_only,
        the_hooks_of_a_released_part_follow_its_parent_into_rollback,
        a_hook_that_panics_changes_no_outcome_and_stops_no_other,
        a_hook_that_panics_in_the_scope_form_is_noted,
        a_hook_may_begin_a_new_transaction,
    };
    return suite_run("tx_hook", tests, sizeof tests / sizeof *tests);
}
