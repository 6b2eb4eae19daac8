/* SPDX-License-Identifier: MIT */
/*
 * Guarded transactions: handles, the tree of a connection, and their ends.
 *
 *                 begin, savepoint
 *     (no handle) -----------------> linked, OPEN
 *                                      |  commit agreed by the database, or rolled back
 *                                      |----------------------------------------------> off the tree, ended
 *                                      |  the database ended it behind our back
 *                                      '--------------> linked, ended --(rollback, commit, scope closes)--> off the tree
 *
 * Invariants
 *   - session->tx is the innermost linked handle, `parent` leads to the root; only the innermost can be ended.
 *   - result.outcome leaves OPEN only after the driver asked the database, and never changes again but for IN_DOUBT.
 *   - "linked, ended" keeps session->tx set, so that an adapter refuses statements that would run on their own.
 *   - A handle lives until its scope's record has run: session->handles has them all, so that closing the connection first
 *     leaves no handle that points into it.
 */
#include "tx_internal.h"

#include <stdio.h>
#include <string.h>

/* -------------------------------------------------------------------------------------------------- begin */

static void name_savepoint(guard_tx *tx, const char *name)
{
    tx->savepoint.name = tx->name;
    tx->savepoint.named = name != NULL;
    if (name == NULL) {
        /* A handle that is used again mostly has its name already. */
        if (tx->generated != tx->savepoint.level) {
            snprintf(tx->name, sizeof(tx->name), "guard_%u", tx->savepoint.level);
            tx->generated = tx->savepoint.level;
        }
        return;
    }
    /* Both databases quote an identifier in double quotes and double those inside. */
    char *to = tx->name;
    *to++ = '"';
    for (const char *from = name; *from != '\0'; from++) {
        if (*from == '"') {
            *to++ = '"';
        }
        *to++ = *from;
    }
    *to++ = '"';
    *to = '\0';
    tx->generated = 0;
}

/*
 * A handle that is registered before its BEGIN or SAVEPOINT, so that registering cannot fail behind that; until it is linked its release
 * only frees it. NULL after misuse of the scope.
 */
static inline __attribute__((always_inline)) guard_tx *take_registered(guard_scope *scope, guard_tx_session *session,
                                                                       guard_ticket *ticket, const guard_place *place)
{
    guard_tx *tx = guard_tx_take(session, place);
    tx->since = guard_dump_clock();
    *ticket = guard_impl_defer_kind(scope, &guard_tx_kind, tx, place);
    return GUARD_IMPL_LIKELY(ticket->record != NULL) ? tx : NULL;
}

static void GUARD_NORETURN fail_begin(guard_tx *tx, const guard_error *error, guard_ticket ticket)
{
    const guard_place *place = tx->place;
    guard_dismiss(ticket);
    guard_tx_free(tx);
    guard_impl_checkpoint(place); /* it was cancelled: that is why */
    guard_impl_panic_error(place, error);
    __builtin_unreachable();
}

/* Makes a handle's BEGIN or SAVEPOINT true, or gives the handle back and panics. */
static inline __attribute__((always_inline)) void begin_or_panic(guard_tx *tx, int code, const guard_error *error,
                                                                 guard_tx *parent, guard_ticket ticket)
{
    if (GUARD_IMPL_UNLIKELY(code != 0)) {
        fail_begin(tx, error, ticket);
    }
    guard_tx_link(tx, parent);
    TX_PROBE(tx_begin, tx);
}

static int begin_savepoint(guard_tx *tx, unsigned level, const char *name, guard_error *error)
{
    guard_tx_session *session = tx->session;
    tx->savepoint.level = level;
    tx->savepoint.in_foreign = session->in_foreign;
    name_savepoint(tx, name);
    return session->driver->savepoint(session->connection, &tx->savepoint, error);
}

static void GUARD_NORETURN refuse_durable(const guard_place *place)
{
    guard_impl_panic(place, GUARD_TX, GUARD_TX_NOT_OUTERMOST,
                     "a durable transaction was asked for inside another one, whose end would decide over it");
    __builtin_unreachable();
}

guard_tx *guard_tx_open_savepoint(guard_scope *scope, guard_tx *parent, const char *name, int kept,
                                  const guard_place *place)
{
    guard_tx_session *session = parent->session;
    guard_error error;
    guard_raise_held();
    /* A lost connection is for the driver to tell: its error says that the connection, not the program, failed. */
    if (parent->result.outcome != GUARD_OPEN || session->driver->status(session->connection) == GUARD_TX_IDLE) {
        guard_tx_refuse(session, place);
    }
    guard_ticket ticket;
    guard_tx *tx = take_registered(scope, session, &ticket, place);
    if (GUARD_IMPL_UNLIKELY(tx == NULL)) {
        return NULL;
    }
    int code = begin_savepoint(tx, parent->savepoint.level + 1, name, &error);
    begin_or_panic(tx, code, &error, parent, ticket);
    tx->kept = (uint8_t)kept;
    return tx;
}

/* On a connection whose transaction is open: a savepoint in it. */
static guard_tx *open_inside(guard_scope *scope, guard_tx_session *session, int durable, int kept,
                             const guard_place *place)
{
    if (!guard_tx_check_thread(session->tx, place)) {
        return NULL;
    }
    if (durable) {
        refuse_durable(place);
    }
    return guard_tx_open_savepoint(scope, session->tx, NULL, kept, place);
}

/* Inline, once for each form: this is the way of every transaction. */
static inline __attribute__((always_inline)) guard_tx *open_any(guard_scope *scope, guard_tx_session *session,
                                                                const guard_tx_options *options,
                                                                const void *driver_options, int kept,
                                                                const guard_place *place)
{
    guard_error error;
    int code;
    int durable = options != NULL && options->durable;
    if (GUARD_IMPL_UNLIKELY(session->tx != NULL)) {
        return open_inside(scope, session, durable, kept, place);
    }
    guard_raise_held();
    guard_impl_cancel_point(place);
    if (GUARD_IMPL_UNLIKELY(session->poison.code != 0)) {
        guard_tx_raise_poisoned(session, place);
    }
    guard_tx_status status = session->driver->status(session->connection);
    session->in_foreign = status == GUARD_TX_ACTIVE || status == GUARD_TX_ABORTED;
    if (GUARD_IMPL_UNLIKELY(session->in_foreign && durable)) {
        refuse_durable(place);
    }
    guard_ticket ticket;
    guard_tx *tx = take_registered(scope, session, &ticket, place);
    if (GUARD_IMPL_UNLIKELY(tx == NULL)) {
        return NULL;
    }
    if (GUARD_IMPL_UNLIKELY(session->in_foreign)) {
        code = begin_savepoint(tx, 1, NULL, &error);
    } else {
        tx->savepoint.level = 0;
        code = session->driver->begin(session->connection, driver_options, &error);
    }
    begin_or_panic(tx, code, &error, NULL, ticket);
    tx->kept = (uint8_t)kept;
    return tx;
}

guard_tx *guard_tx_open(guard_scope *scope, guard_tx_session *session, const guard_tx_options *options,
                        const void *driver_options, int kept, const guard_place *place)
{
    return open_any(scope, session, options, driver_options, kept, place);
}

guard_tx *guard_tx_begin(guard_scope *scope, guard_tx_session *session, const guard_tx_options *options,
                         const void *driver_options, const guard_place *place)
{
    if (!guard_tx_check_options(options, place)) {
        return NULL;
    }
    return open_any(scope, session, options, driver_options, 0, place);
}

guard_tx *guard_tx_begin_nested_at(guard_scope *scope, guard_tx *tx, const char *name, const guard_place *place)
{
    if (!guard_tx_check_thread(tx, place)) {
        return NULL;
    }
    if (!tx->linked) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "nesting in a transaction that has ended (%s)",
                          guard_outcome_name(tx->result.outcome));
        return NULL;
    }
    if (name != NULL && (name[0] == '\0' || strnlen(name, GUARD_TX_NAME_MAX + 1) > GUARD_TX_NAME_MAX)) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "a savepoint's name has 1 to %d bytes", GUARD_TX_NAME_MAX);
        return NULL;
    }
    if (!guard_tx_check_innermost(tx, "nesting", place)) {
        return NULL;
    }
    return guard_tx_open_savepoint(scope, tx, name, 0, place);
}

/* ---------------------------------------------------------------------------------------------------- end */

/*
 * The database has no transaction any more (or is gone), though nobody told us: asks the driver how it ended. That is the
 * fate of every handle of the tree; they stay linked until their owners have seen it.
 */
static void learn_fate(guard_tx_session *session)
{
    guard_tx *root = guard_tx_root(session->tx);
    guard_outcome outcome = session->driver->commit(session->connection, &root->result);
    if (outcome == GUARD_OPEN) {
        return;
    }
    if (root->result.has_error) {
        guard_tx_set_place(&root->result.error, root->place);
    }
    for (guard_tx *tx = session->tx; tx != NULL; tx = tx->parent) {
        tx->result.outcome = outcome == GUARD_COMMITTED && tx->savepoint.level > 0 ? GUARD_RELEASED : outcome;
        if (root->result.has_error && !tx->result.has_error) {
            tx->result.error = root->result.error;
            tx->result.has_error = 1;
        }
    }
}

static int is_gone(const guard_tx_session *session)
{
    guard_tx_status status = session->driver->status(session->connection);
    return status == GUARD_TX_IDLE || status == GUARD_TX_LOST;
}

guard_outcome guard_tx_outcome(guard_tx *tx)
{
    if (GUARD_IMPL_UNLIKELY(tx == NULL)) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "the transaction is NULL");
        return GUARD_OPEN;
    }
    if (tx->result.outcome == GUARD_OPEN && tx->linked && is_gone(tx->session)) {
        learn_fate(tx->session);
    }
    return tx->result.outcome;
}

const guard_result *guard_tx_result(guard_tx *tx)
{
    static const guard_result none;
    guard_tx_outcome(tx);
    return tx != NULL ? &tx->result : &none;
}

/* Rolls the whole tree back. Returns 0, or 1 with *error filled and the session poisoned. */
static int roll_back_root(guard_tx_session *session, guard_error *error)
{
    guard_tx *root = guard_tx_root(session->tx);
    guard_result told;
    told.has_error = 0;
    told.notes = 0;
    told.token[0] = '\0';
    TX_PROBE(tx_rollback, root);
    int64_t begun = guard_metrics_clock();
    guard_outcome outcome = session->driver->rollback(session->connection, &told);
    guard_tx_count_rollback(session, begun);
    if (outcome == GUARD_OPEN) {
        /* Not told and not known: only the connection's end will decide. */
        outcome = GUARD_IN_DOUBT;
    }
    for (guard_tx *tx = session->tx; tx != NULL; tx = tx->parent) {
        tx->result.outcome = outcome;
        tx->result.notes |= told.notes;
    }
    memcpy(root->result.token, told.token, sizeof(told.token));
    if (!told.has_error) {
        return 0;
    }
    guard_tx_set_place(&told.error, root->place);
    root->result.notes |= GUARD_NOTE_POISONED;
    guard_tx_add_error(&root->result, &told.error);
    guard_tx_poison(session, &told.error);
    *error = told.error;
    return 1;
}

/* Why those around it were rolled back too, for who commits them. */
static void tell_outer(guard_tx *tx, const guard_error *error)
{
    for (guard_tx *outer = tx->parent; outer != NULL; outer = outer->parent) {
        outer->result.notes |= GUARD_NOTE_POISONED;
        if (!outer->result.has_error) {
            guard_tx_add_error(&outer->result, error);
        }
    }
}

/*
 * Rolls back to the savepoint. When that fails its changes are still there, and the outer transaction must not commit
 * them: all of it is rolled back. In the caller's own transaction, which is not ours to end, the session is poisoned.
 */
static int roll_back_part(guard_tx *tx, guard_error *error)
{
    guard_tx_session *session = tx->session;
    TX_PROBE(tx_rollback, tx);
    if (session->driver->rollback_to(session->connection, &tx->savepoint, error) == 0) {
        tx->result.outcome = GUARD_ROLLED_BACK;
        return 0;
    }
    guard_tx_set_place(error, tx->place);
    guard_tx_poison(session, error);
    tx->result.notes |= GUARD_NOTE_POISONED;
    guard_tx_add_error(&tx->result, error);
    if (is_gone(session)) {
        learn_fate(session);
    } else if (session->in_foreign) {
        tx->result.outcome = GUARD_IN_DOUBT;
    } else {
        guard_error later;
        if (roll_back_root(session, &later)) {
            guard_error_attach(error, &later, GUARD_ATTACHED);
        }
        tell_outer(tx, error);
    }
    return 1;
}

/* Takes the innermost transaction back and off the tree, and runs its hooks. Returns 0, or 1 with *error filled. */
static int undo(guard_tx *tx, guard_error *error)
{
    int failed = 0;
    GUARD_AUTO(mask);
    guard_mask(mask);
    if (tx->result.outcome == GUARD_OPEN && is_gone(tx->session)) {
        learn_fate(tx->session);
    }
    if (tx->result.outcome == GUARD_OPEN) {
        failed = tx->savepoint.level == 0 ? roll_back_root(tx->session, error) : roll_back_part(tx, error);
    }
    guard_tx_unlink(tx);
    guard_tx_hooks_run(tx);
    return failed;
}

/*
 * Takes back everything from the innermost up to tx. The first failure is kept, the others attached. A hook that closes the connection has done
 * the rest by that.
 */
static int undo_up_to(guard_tx *tx, guard_error *error)
{
    guard_tx_session *session = tx->session;
    int failed = 0;
    int last;
    do {
        guard_error later;
        guard_tx *inner = session->tx;
        last = inner == tx;
        if (undo(inner, failed ? &later : error)) {
            if (failed) {
                guard_error_attach(error, &later, GUARD_ATTACHED);
            }
            failed = 1;
        }
    } while (!last && tx->session != NULL);
    return failed;
}

/* Apart, for its frame. */
static __attribute__((noinline)) void release_open(guard_tx *tx)
{
    const guard_place *place = tx->place;
    guard_error error;
    int failed = undo_up_to(tx, &error);
    tx->scoped = 0; /* not before: a hook that closes the connection leaves the handle to us */
    if (!tx->kept) {
        guard_tx_free(tx);
    }
    if (failed) {
        guard_impl_panic_error(place, &error);
    }
}

/* The scope closes. No check of the thread: an owner may have carried the handle, and it must not stay open. */
void guard_tx_release_handle(void *object)
{
    guard_tx *tx = object;
    if (GUARD_IMPL_UNLIKELY(tx->linked)) {
        release_open(tx);
        return;
    }
    tx->scoped = 0;
    if (!tx->kept) {
        guard_tx_free(tx);
    }
}

void guard_tx_session_close(guard_tx_session *session)
{
    guard_error error;
    int failed = 0;
    if (session->tx != NULL) {
        failed = undo_up_to(guard_tx_root(session->tx), &error);
    }
    for (guard_tx *next, *tx = session->handles; tx != NULL; tx = next) {
        next = tx->next;
        tx->session = NULL;
        if (!tx->scoped && tx->kept) {
            /* A border that a foreign unwind has passed will not come to free it. */
            guard_tx_free(tx);
        }
    }
    session->handles = NULL;
    for (guard_tx *next, *tx = session->spare; tx != NULL; tx = next) {
        next = tx->next;
        guard_deallocate(tx);
    }
    session->spare = NULL;
    session->spares = 0;
    if (failed) {
        guard_panic_error(&error);
    }
}

/* ------------------------------------------------------------------------------------- commit and rollback */

static void GUARD_NORETURN raise_result(const guard_tx *tx, const guard_place *place)
{
    guard_error error;
    if (tx->result.has_error) {
        error = tx->result.error;
    } else {
        int in_doubt = tx->result.outcome == GUARD_IN_DOUBT;
        guard_error_set(&error, GUARD_TX, in_doubt ? GUARD_TX_IN_DOUBT : GUARD_TX_ROLLED_BACK,
                        "the transaction was not committed: %s", guard_outcome_name(tx->result.outcome));
    }
    guard_impl_panic_error(place, &error);
    __builtin_unreachable();
}

static int is_kept(guard_outcome outcome)
{
    return outcome == GUARD_COMMITTED || outcome == GUARD_PREPARED || outcome == GUARD_RELEASED;
}

static void commit_root(guard_tx *tx, const guard_place *place)
{
    guard_tx_session *session = tx->session;
    tx->result.has_error = 0;
    TX_PROBE(tx_commit, tx);
    int64_t begun = guard_metrics_clock();
    guard_outcome outcome = session->driver->commit(session->connection, &tx->result);
    if (GUARD_IMPL_LIKELY(session->counts != NULL)) {
        guard_histogram_observe(session->counts->commit, guard_metrics_clock() - begun);
    }
    if (GUARD_IMPL_UNLIKELY(tx->result.has_error)) {
        guard_tx_set_place(&tx->result.error, place);
    }
    tx->result.outcome = outcome;
    if (GUARD_IMPL_LIKELY(outcome != GUARD_OPEN)) {
        guard_tx_unlink(tx);
        guard_tx_hooks_run(tx);
    }
    if (GUARD_IMPL_UNLIKELY(!is_kept(outcome))) {
        raise_result(tx, place);
    }
}

static void commit_part(guard_tx *tx, const guard_place *place)
{
    guard_tx_session *session = tx->session;
    guard_tx *parent = tx->parent;
    guard_error error;
    TX_PROBE(tx_commit, tx);
    if (is_gone(session)) {
        learn_fate(session);
    } else if (session->driver->release(session->connection, &tx->savepoint, &error) == 0) {
        tx->result.outcome = GUARD_RELEASED;
    } else {
        tx->result.has_error = 0;
        guard_tx_set_place(&error, place);
        guard_tx_add_error(&tx->result, &error);
        guard_tx_outcome(tx); /* the failure may have ended all of it */
    }
    if (tx->result.outcome == GUARD_OPEN) {
        raise_result(tx, place);
    }
    guard_tx_unlink(tx);
    if (tx->result.outcome == GUARD_RELEASED) {
        guard_tx_hooks_move(tx, parent);
        return;
    }
    guard_tx_hooks_run(tx);
    raise_result(tx, place);
}

void guard_tx_commit_at(guard_tx *tx, const guard_place *place)
{
    if (!guard_tx_check_thread(tx, place)) {
        return;
    }
    if (GUARD_IMPL_UNLIKELY(!tx->linked)) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "commit of a transaction that has ended (%s)",
                          guard_outcome_name(tx->result.outcome));
        return;
    }
    if (!guard_tx_check_innermost(tx, "commit", place)) {
        return;
    }
    guard_raise_held();
    guard_impl_cancel_point(place); /* nothing is sent yet; from here on only the adapter's own deadlines count */
    GUARD_AUTO(mask);
    guard_impl_mask(mask);
    if (GUARD_IMPL_UNLIKELY(tx->result.outcome != GUARD_OPEN)) {
        guard_tx_unlink(tx);
        guard_tx_hooks_run(tx);
        raise_result(tx, place);
    } else if (tx->savepoint.level == 0) {
        commit_root(tx, place);
    } else {
        commit_part(tx, place);
    }
}

void guard_tx_rollback_at(guard_tx *tx, const guard_place *place)
{
    guard_error error;
    if (!guard_tx_check_thread(tx, place)) {
        return;
    }
    if (!tx->linked) {
        if (tx->result.outcome != GUARD_ROLLED_BACK) {
            guard_impl_misuse(place, GUARD_MISUSE_STATE, "rollback of a transaction that has ended (%s)",
                              guard_outcome_name(tx->result.outcome));
        }
        return;
    }
    if (!guard_tx_check_innermost(tx, "rollback", place)) {
        return;
    }
    if (undo(tx, &error)) {
        guard_impl_panic_error(place, &error);
    }
    if (tx->result.outcome != GUARD_ROLLED_BACK) {
        raise_result(tx, place);
    }
}

void guard_tx_settle(guard_tx *tx, guard_outcome outcome)
{
    if (tx == NULL || tx->result.outcome != GUARD_IN_DOUBT ||
        (outcome != GUARD_COMMITTED && outcome != GUARD_ROLLED_BACK)) {
        guard_misuse(GUARD_MISUSE_STATE, "only a transaction in doubt is settled, as committed or rolled back");
        return;
    }
    tx->result.outcome = outcome;
    tx->result.notes |= GUARD_NOTE_RESOLVED;
    guard_tx_count_resolved(tx);
    GUARD_AUTO(mask);
    guard_mask(mask);
    guard_tx_hooks_run(tx);
}
