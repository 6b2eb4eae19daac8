/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_advisory.c: advisory locks.
 *
 * A session's lock belongs to the server's connection. Behind a pooler in transaction mode that is another one for each transaction:
 * the lock would be taken on one and released on another, and stay with whoever comes next. Such a pooler shows in that the number
 * it has given to us (PQbackendPID) is not that of the process that answers.
 *
 *     held, in pq->locks --its scope closes: unlocked--> freed
 *            \--------------the connection is closed or given back first: unlocked--> over (lock->pq is NULL) --its scope closes--> freed
 */
#include "guard_pq_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int in_transaction(guard_pq *pq, const guard_place *place)
{
    if (pq->conn != NULL && PQtransactionStatus(pq->conn) == PQTRANS_IDLE) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "a transaction's advisory lock outside of a transaction");
        return 0;
    }
    return 1;
}

/* Runs it with a deadline of its own. */
static int query_within(guard_pq *pq, const char *sql, int32_t ms, PGresult **result, guard_error *error)
{
    guard_pq_call call;
    guard_pq_call_begin(pq, &call);
    int code = guard_pq_query(pq, sql, guard_pq_or(ms, pq->options.statement_ms), result, error);
    guard_pq_call_end(pq, &call);
    return code;
}

void guard_pq_lock_at(guard_pq *pq, int64_t key, int32_t wait_ms, const guard_place *place)
{
    char sql[80];
    guard_error error;
    guard_pq_enter(pq, NULL, place);
    if (!in_transaction(pq, place)) {
        return;
    }
    snprintf(sql, sizeof(sql), "SELECT pg_advisory_xact_lock(%" PRId64 ")", key);
    if (query_within(pq, sql, wait_ms, NULL, &error) != 0) {
        guard_impl_panic_error(place, &error);
    }
}

int guard_pq_try_lock_at(guard_pq *pq, int64_t key, const guard_place *place)
{
    char sql[80];
    guard_error error;
    PGresult *result = NULL;
    guard_pq_enter(pq, NULL, place);
    if (!in_transaction(pq, place)) {
        return 0;
    }
    snprintf(sql, sizeof(sql), "SELECT pg_try_advisory_xact_lock(%" PRId64 ")", key);
    if (query_within(pq, sql, 0, &result, &error) != 0) {
        guard_impl_panic_error(place, &error);
    }
    int locked = strcmp(PQgetvalue(result, 0, 0), "t") == 0;
    PQclear(result);
    return locked;
}

/* ------------------------------------------------------------------------------------------------ session -- */

typedef struct guard_pq_session_lock {
    guard_pq *pq; /* NULL once it is over */
    struct guard_pq_session_lock *next;
    int64_t key;
    int64_t since; /* guard_dump_clock */
} session_lock;

static void unlink_lock(session_lock *lock)
{
    session_lock **at = &lock->pq->locks;
    while (*at != lock) {
        at = &(*at)->next;
    }
    *at = lock->next;
    lock->pq = NULL;
}

/* 0; else the lock may still be held. */
static int unlock(const session_lock *lock, guard_error *error)
{
    char sql[80];
    PGresult *result = NULL;
    guard_pq *pq = lock->pq;
    if (guard_pq_status(pq) == GUARD_TX_LOST) {
        return 0; /* the session is gone, and its locks with it */
    }
    snprintf(sql, sizeof(sql), "SELECT pg_advisory_unlock(%" PRId64 ")", lock->key);
    int code = query_within(pq, sql, pq->options.rollback_ms, &result, error);
    if (code == 0 && strcmp(PQgetvalue(result, 0, 0), "t") != 0) {
        guard_error_set(error, GUARD_LOCK, GUARD_PQ_ANSWER, "the advisory lock %" PRId64 " was not held any more",
                        lock->key);
        code = error->code;
    }
    PQclear(result);
    pq->discard |= code != 0;
    return code;
}

int guard_pq_locks_release(guard_pq *pq, guard_error *error)
{
    int code = 0;
    while (pq->locks != NULL) {
        session_lock *lock = pq->locks;
        guard_error later;
        int failed = unlock(lock, code == 0 ? error : &later);
        code = code != 0 ? code : failed;
        unlink_lock(lock);
    }
    return code;
}

static void release_lock(void *object)
{
    session_lock *lock = object;
    guard_error error;
    int code = 0;
    if (lock->pq != NULL && !guard_pq_disown_in_child(lock->pq)) {
        code = unlock(lock, &error);
        unlink_lock(lock);
    }
    guard_deallocate(lock);
    if (code != 0) {
        guard_panic_error(&error);
    }
}

/* Nobody unlocks it any more, so it may be held as long as the session lives. */
static void dismiss_lock(void *object)
{
    session_lock *lock = object;
    if (lock->pq != NULL && lock->pq->pid == getpid()) {
        lock->pq->discard = 1;
        unlink_lock(lock);
    }
    guard_deallocate(lock);
}

static size_t describe_lock(const void *object, char *text, size_t size)
{
    int length = snprintf(text, size, "PostgreSQL advisory lock %" PRId64, ((const session_lock *)object)->key);
    return length < 0 ? 0 : (size_t)length;
}

static int64_t lock_since(const void *object)
{
    return ((const session_lock *)object)->since;
}

static const guard_kind session_lock_kind = {
    .name = "PostgreSQL advisory lock",
    .release = release_lock,
    .child = guard_deallocate,
    .dismiss = dismiss_lock,
    .describe = describe_lock,
    .since = lock_since,
    .action = "unlock",
    .flags = GUARD_KIND_HEAP | GUARD_KIND_FIXED,
};

static void refuse_behind_pooler(guard_pq *pq, const guard_place *place)
{
    char sql[80];
    if (pq->pooler == GUARD_PQ_POOLER_ASK) {
        snprintf(sql, sizeof(sql), "SELECT (pg_backend_pid() = %d)::int", PQbackendPID(pq->conn));
        int alone = guard_pq_query_int64_at(pq, sql, 0, place) == 1;
        pq->pooler = alone ? GUARD_PQ_POOLER_NONE : GUARD_PQ_POOLER_TRANSACTION;
    }
    if (pq->pooler == GUARD_PQ_POOLER_TRANSACTION) {
        guard_error error;
        guard_error_set(
            &error, GUARD_PQ, GUARD_PQ_POOLER,
            "a session's advisory lock is refused behind a pooler: each transaction may run in another session");
        guard_pq_text(error.hint, sizeof(error.hint), "guard_pq_lock; or options.pooler where it pools sessions.");
        guard_impl_panic_error(place, &error);
    }
}

guard_ticket guard_pq_lock_session_at(guard_scope *scope, guard_pq *pq, int64_t key, int32_t wait_ms,
                                      const guard_place *place)
{
    char sql[80];
    guard_error error;
    guard_ticket none = {NULL, 0, 0};
    guard_pq_enter(pq, NULL, place);
    if (pq->conn != NULL && PQtransactionStatus(pq->conn) != PQTRANS_IDLE && guard_pq_status(pq) != GUARD_TX_LOST) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "a session's advisory lock inside a transaction");
        return none;
    }
    guard_reserve(scope, 1);
    if (guard_pq_status(pq) != GUARD_TX_LOST) {
        refuse_behind_pooler(pq, place);
    }
    session_lock *lock = guard_allocate(sizeof(*lock));
    lock->pq = pq;
    lock->key = key;
    lock->since = guard_dump_clock();
    snprintf(sql, sizeof(sql), "SELECT pg_advisory_lock(%" PRId64 ")", key);
    if (query_within(pq, sql, wait_ms, NULL, &error) != 0) {
        /* It may have been had in the moment of a cancel, whoever sent that, and no rollback takes it back. */
        pq->discard |= error.sqlstate[0] == '\0' || strcmp(error.sqlstate, "57014") == 0;
        guard_deallocate(lock);
        guard_impl_panic_error(place, &error);
    }
    lock->next = pq->locks;
    pq->locks = lock;
    return guard_impl_defer_kind(scope, &session_lock_kind, lock, place);
}
