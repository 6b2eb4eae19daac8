/* SPDX-License-Identifier: MIT */
/*
 * What runs after a transaction: on_commit and on_rollback.
 *
 * A handle has one list, in the order of registration. It is run when the outcome is fixed, moved to the parent's end when the
 * handle is released, kept while it is in doubt, else dropped. A hook is taken off and freed before it runs.
 */
#include "tx_internal.h"

static void add_hook(guard_tx *tx, guard_fn *fn, void *arg, guard_outcome when, const guard_place *place)
{
    if (!guard_tx_check_thread(tx, place)) {
        return;
    }
    if (fn == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the hook is NULL");
        return;
    }
    if (!tx->linked) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "a hook for a transaction that has ended (%s)",
                          guard_outcome_name(tx->result.outcome));
        return;
    }
    guard_tx_hook *hook = guard_allocate(sizeof(*hook));
    *hook = (guard_tx_hook){.fn = fn, .arg = arg, .when = when};
    if (tx->last_hook != NULL) {
        tx->last_hook->next = hook;
    } else {
        tx->first_hook = hook;
    }
    tx->last_hook = hook;
}

void guard_tx_on_commit_at(guard_tx *tx, guard_fn *fn, void *arg, const guard_place *place)
{
    if (tx != NULL && tx->linked && tx->session->in_foreign) {
        guard_impl_panic(place, GUARD_TX, GUARD_TX_NOT_OUTERMOST,
                         "on_commit inside a transaction that no guard began: nobody would tell of its commit");
    }
    add_hook(tx, fn, arg, GUARD_COMMITTED, place);
}

void guard_tx_on_rollback_at(guard_tx *tx, guard_fn *fn, void *arg, const guard_place *place)
{
    add_hook(tx, fn, arg, GUARD_ROLLED_BACK, place);
}

static void reverse_hooks(guard_tx *tx)
{
    guard_tx_hook *reversed = NULL;
    for (guard_tx_hook *next, *hook = tx->first_hook; hook != NULL; hook = next) {
        next = hook->next;
        hook->next = reversed;
        reversed = hook;
    }
    tx->first_hook = reversed;
}

static void keep_hook_error(guard_result *result, const guard_error *error)
{
    if (result->has_hook_error) {
        guard_error_attach(&result->hook_error, error, GUARD_ATTACHED);
    } else {
        result->hook_error = *error;
        result->has_hook_error = 1;
    }
}

static void run_list(guard_tx *tx, guard_outcome outcome)
{
    while (tx->first_hook != NULL) {
        guard_tx_hook hook = *tx->first_hook;
        guard_error error;
        guard_deallocate(tx->first_hook);
        tx->first_hook = hook.next;
        if (hook.when == outcome && guard_run(hook.fn, hook.arg, &error) != 0) {
            keep_hook_error(&tx->result, &error);
        }
    }
    tx->last_hook = NULL;
    if (tx->result.has_hook_error && !tx->kept) {
        /* In the scope form nobody is handed the result. */
        guard_note("a hook of a transaction that is %s failed: %s", guard_outcome_name(outcome),
                   tx->result.hook_error.message);
    }
}

/* A hook may run transactions on the connection, whose errors say nothing of this one, and do away with what was remembered of it. */
static void run_rolled_back(guard_tx *tx)
{
    static const guard_error none;
    guard_tx_session *session = tx->savepoint.level == 0 ? tx->session : NULL;
    if (session != NULL) {
        tx->rerun = session->driver->retryable(session->connection, &none) != 0;
    }
    reverse_hooks(tx);
    run_list(tx, GUARD_ROLLED_BACK);
    session = session != NULL ? tx->session : NULL; /* a hook may have closed the connection */
    if (session != NULL && session->driver->forget != NULL) {
        session->driver->forget(session->connection);
    }
}

void guard_tx_hooks_end(guard_tx *tx)
{
    switch (tx->result.outcome) {
    case GUARD_ROLLED_BACK:
        run_rolled_back(tx);
        break;
    case GUARD_COMMITTED:
        run_list(tx, GUARD_COMMITTED);
        break;
    case GUARD_IN_DOUBT:
        break; /* until guard_tx_settle, or the end of the handle */
    default:
        guard_tx_hooks_drop(tx);
    }
}

void guard_tx_hooks_move(guard_tx *tx, guard_tx *parent)
{
    if (tx->first_hook == NULL) {
        return;
    }
    if (parent == NULL) {
        /* Released into the caller's own transaction, whose end nobody tells us. */
        guard_tx_hooks_drop(tx);
        return;
    }
    if (parent->last_hook != NULL) {
        parent->last_hook->next = tx->first_hook;
    } else {
        parent->first_hook = tx->first_hook;
    }
    parent->last_hook = tx->last_hook;
    tx->first_hook = NULL;
    tx->last_hook = NULL;
}

void guard_tx_hooks_drop(guard_tx *tx)
{
    tx->result.notes |= GUARD_NOTE_HOOKS_DROPPED;
    while (tx->first_hook != NULL) {
        guard_tx_hook *hook = tx->first_hook;
        tx->first_hook = hook->next;
        guard_deallocate(hook);
    }
    tx->last_hook = NULL;
}
