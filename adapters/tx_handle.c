/* SPDX-License-Identifier: MIT */
/*
 * The handles of transactions: where they live, what they know of each other, and the checks that every call begins with.
 *
 * A handle is in session->handles from the first until its scope's record has run (and, in a border form, its result was
 * read); then in session->spare, or freed. A handle whose connection was closed first has no session and is freed.
 */
#include "tx_internal.h"

#include <stdio.h>
#include <string.h>

__thread char guard_tx_here[64];

static size_t describe_handle(const void *object, char *text, size_t size);

static int64_t handle_since(const void *object)
{
    return ((const guard_tx *)object)->since;
}

/* The release of a transaction does not follow a ticket: it needs its thread and its connection. */
const guard_kind guard_tx_kind = {
    .name = "transaction",
    .release = guard_tx_release_handle,
    .describe = describe_handle,
    .since = handle_since,
    .action = "roll back",
    .flags = GUARD_KIND_HEAP | GUARD_KIND_FIXED,
};

const char *const guard_tx_outcome_names[GUARD_RELEASED + 1] = {"open",     "committed", "rolled back",
                                                                "in doubt", "prepared",  "released"};

const char *guard_outcome_name(guard_outcome outcome)
{
    return (unsigned)outcome <= GUARD_RELEASED ? guard_tx_outcome_names[outcome] : "unknown";
}

/* ------------------------------------------------------------------------------------------------- errors */

void guard_tx_set_place(guard_error *error, const guard_place *place)
{
    if (error->file[0] != '\0' || place == NULL) {
        return;
    }
    const char *slash = strrchr(place->file, '/');
    snprintf(error->file, sizeof(error->file), "%s", slash != NULL ? slash + 1 : place->file);
    snprintf(error->function, sizeof(error->function), "%s", place->function);
    error->line = place->line;
}

/* Keeps the first error; what comes later is attached to it. */
void guard_tx_add_error(guard_result *result, const guard_error *error)
{
    if (result->has_error) {
        guard_error_attach(&result->error, error, GUARD_ATTACHED);
    } else {
        result->error = *error;
        result->has_error = 1;
    }
}

/* ------------------------------------------------------------------------------------------------ handles */

/* Where the session has no spare one. */
guard_tx *guard_tx_take_new(void)
{
    guard_tx *tx = guard_allocate(sizeof(*tx));
    tx->generated = 0;
    return tx;
}

/* A handle with hooks, without a session, or not the newest; or its session has spare ones enough. */
void guard_tx_free_slow(guard_tx *tx)
{
    guard_tx_session *session = tx->session;
    if (tx->first_hook != NULL) {
        guard_tx_hooks_drop(tx);
    }
    if (session == NULL) {
        guard_deallocate(tx);
        return;
    }
    if (tx->next != NULL) {
        tx->next->previous = tx->previous;
    }
    if (tx->previous != NULL) {
        tx->previous->next = tx->next;
    } else {
        session->handles = tx->next;
    }
    if (session->spares == GUARD_TX_SPARES) {
        guard_deallocate(tx);
        return;
    }
    tx->next = session->spare;
    session->spare = tx;
    session->spares++;
}

guard_tx *guard_tx_root(guard_tx *tx)
{
    while (tx->parent != NULL) {
        tx = tx->parent;
    }
    return tx;
}

/* For the panic log: what a panic took back, or left in doubt. */
void guard_tx_tell_undone(const guard_tx *tx)
{
    if (tx->place == NULL || !guard_context_in_call()) {
        return;
    }
    const guard_tx_driver *driver = tx->session->driver;
    char connection[64];
    snprintf(connection, sizeof connection, "%s", driver->name);
    if (driver->describe != NULL) {
        driver->describe(tx->session->connection, connection, sizeof connection);
    }
    const char *slash = strrchr(tx->place->file, '/');
    guard_context_undone("%s on %s begun at %s:%u: %s", tx->savepoint.level == 0 ? "transaction" : "savepoint",
                         connection, slash != NULL ? slash + 1 : tx->place->file, tx->place->line,
                         guard_outcome_name(tx->result.outcome));
}

static size_t describe_handle(const void *object, char *text, size_t size)
{
    const guard_tx *tx = object;
    char connection[128] = "a closed connection";
    if (tx->session != NULL) {
        const guard_tx_driver *driver = tx->session->driver;
        snprintf(connection, sizeof(connection), "%s", driver->name);
        if (driver->describe != NULL) {
            driver->describe(tx->session->connection, connection, sizeof(connection));
        }
    }
    int length = snprintf(text, size, "%s on %s, %s", tx->savepoint.level == 0 ? "transaction" : "savepoint",
                          connection, guard_outcome_name(tx->result.outcome));
    return length < 0 ? 0 : (size_t)length;
}

/* ----------------------------------------------------------------------------------------------- sessions */

void guard_tx_session_open(guard_tx_session *session, const guard_tx_driver *driver, void *connection)
{
    memset(session, 0, sizeof(*session));
    session->driver = driver;
    session->connection = connection;
    session->counts = guard_tx_counts_of(driver);
}

void guard_tx_poison(guard_tx_session *session, const guard_error *error)
{
    if (session->poison.code == 0) {
        session->poison = *error;
    }
}

void GUARD_NORETURN guard_tx_raise_poisoned(const guard_tx_session *session, const guard_place *place)
{
    guard_error error;
    guard_error_set(&error, GUARD_TX, GUARD_TX_POISONED,
                    "the %s connection is not usable: an earlier rollback on it failed", session->driver->name);
    guard_error_attach(&error, &session->poison, GUARD_CAUSE);
    guard_impl_panic_error(place, &error);
    __builtin_unreachable();
}

void guard_tx_refuse(guard_tx_session *session, const guard_place *place)
{
    guard_error error;
    guard_outcome outcome = guard_tx_outcome(session->tx);
    const guard_result *result = &guard_tx_root(session->tx)->result;
    guard_error_set(&error, GUARD_TX, GUARD_TX_OVER,
                    "the database has ended the transaction (%s): this statement would run outside of it",
                    guard_outcome_name(outcome));
    if (result->has_error) {
        guard_error_attach(&error, &result->error, GUARD_CAUSE);
    }
    guard_impl_panic_error(place, &error);
    __builtin_unreachable();
}

void *guard_tx_connection(guard_tx *tx)
{
    guard_tx_session *session = guard_tx_session_of(tx);
    return session != NULL ? session->connection : NULL;
}

guard_tx_session *guard_tx_session_of(guard_tx *tx)
{
    if (GUARD_IMPL_UNLIKELY(tx == NULL)) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "the transaction is NULL");
        return NULL;
    }
    return tx->session;
}

/* ------------------------------------------------------------------------------------------------- checks */

int guard_tx_refuse_thread(const guard_tx *tx, const guard_place *place)
{
    if (tx == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the transaction is NULL");
    } else {
        guard_impl_misuse(place, GUARD_MISUSE_THREAD,
                          "the transaction begun at %s:%u belongs to another thread or process", tx->place->file,
                          tx->place->line);
    }
    return 0;
}

int guard_tx_check_given(const guard_tx_options *options, const guard_place *place)
{
    uint32_t reserved = 0;
    for (size_t i = 0; i < sizeof(options->reserved) / sizeof(options->reserved[0]); i++) {
        reserved |= options->reserved[i];
    }
    if (reserved != 0 || options->attempts < -1 || options->retry_ms < -1 || (options->durable & ~1) != 0) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "transaction options out of range (reserved words must be 0)");
        return 0;
    }
    return 1;
}

int guard_tx_refuse_order(const guard_tx *tx, const char *verb, const guard_place *place)
{
    const guard_place *inner = tx->session->tx->place;
    guard_impl_misuse(place, GUARD_MISUSE_STATE, "%s while the nested transaction begun at %s:%u is still open", verb,
                      inner->file, inner->line);
    return 0;
}
