/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_watch.c: what passes by on a connection, of the guard's and of the program's own use of it.
 *
 * Results tell how a transaction stands: the error that aborted it, an end that was not ours, a mode that was set. What is lost tells nothing; then
 * it counts what was on the wire:
 *
 *     at rest --a call of the guard's begins--> ours only --lost--> as its own text may have ended it (guard_pq_scan.c), else rolled back
 *        |                                         \---answered--> at rest
 *        '--the program uses it--> something of the program's --answered--> at rest
 *                                                             \--lost--> it may have been COMMIT: nobody knows
 *
 * libpq says which of the two it is when a call of ours begins: it sends nothing while an answer is missing, and calls the connection bad where one was
 * lost. Afterwards, or once the program has closed or reset it, it says nothing more.
 *
 * Invariants
 *   - The event procedure's instance data is the newest guard_pq around the connection, `outer` leads to the others (a function that
 *     adopts it may be called in the transaction of one that has): each sees every result, raw ones too, and knows of a loss what the others know.
 *   - There is no event procedure while the program does not have the raw connection: libpq copies its list for each result. All
 *     results are our own then, and pass guard_pq_get_result.
 *   - pq->lost: it was seen in a call of ours that the connection is lost, and pq->outside is of that moment for good.
 */
#include "guard_pq_internal.h"

#include <libpq-events.h>
#include <string.h>

/* ----------------------------------------------------------------------------------------------- results -- */

static int is_begin(const char *tag)
{
    return strcmp(tag, "BEGIN") == 0 || strcmp(tag, "START TRANSACTION") == 0;
}

/*
 * BEGIN inside a transaction sets its mode, as SET does, and the server warns; after the tag ROLLBACK without a warning it was ROLLBACK and no
 * ROLLBACK TO. Where we do not get the warnings, nobody knows.
 */
static void watch_begin(guard_pq_transaction *t)
{
    if (t->begin == GUARD_PQ_SENT) {
        t->begin = GUARD_PQ_BEGUN; /* our own */
        return;
    }
    if (!t->warned && t->ended != GUARD_OPEN) {
        t->ended = t->unwarned && !t->over ? GUARD_OPEN : t->ended;
        t->over = 1;
    }
    t->warned = 0;
    t->was_set = 1;
}

/* It is the transaction's, but for a ROLLBACK before it that may have ended that, and begun another one. */
static void watch_end(guard_pq_transaction *t, guard_outcome outcome)
{
    t->ended = t->ended == GUARD_OPEN ? outcome : GUARD_OPEN;
    t->over = 1;
}

/*
 * ROLLBACK TO has the tag ROLLBACK too, but needs a savepoint. Without one it was ROLLBACK, perhaps with AND CHAIN. With one the text tells
 * (guard_pq_statement.c), or the server is asked at COMMIT (guard_pq_sign.c). The first end is the transaction's, whatever the program then begins.
 */
static void watch_tag(guard_pq_transaction *t, const char *tag)
{
    /* Of INSERT, UPDATE, DELETE and most others the first letter is enough. */
    if (strchr("BCPRS", tag[0]) == NULL || t->over) {
        return;
    }
    if (strcmp(tag, "COMMIT") == 0) {
        watch_end(t, GUARD_COMMITTED);
    } else if (strcmp(tag, "PREPARE TRANSACTION") == 0) {
        watch_end(t, GUARD_PREPARED);
    } else if (strcmp(tag, "ROLLBACK") == 0 && t->ended == GUARD_OPEN) {
        t->ended = GUARD_ROLLED_BACK;
        t->over = !t->savepoints;
    } else if (strcmp(tag, "SAVEPOINT") == 0) {
        t->savepoints = 1;
    } else if (is_begin(tag)) {
        watch_begin(t);
    } else if (strcmp(tag, "SET") == 0 || strcmp(tag, "RESET") == 0) {
        t->was_set = 1;
    }
}

/* Every result of a transaction's statements, also of those that the program runs with libpq itself. */
static void watch_result(guard_pq *pq, const PGresult *result)
{
    guard_pq_transaction *t = &pq->t;
    const char *text;
    switch (PQresultStatus(result)) {
    case PGRES_FATAL_ERROR:
        text = PQresultErrorField(result, PG_DIAG_SQLSTATE);
        if (text != NULL && strcmp(text, "25P02") != 0) {
            guard_pq_error_result(pq->conn, result, &t->error);
            t->has_error = 1;
        }
        break;
    case PGRES_COMMAND_OK:
        watch_tag(t, PQcmdStatus((PGresult *)(uintptr_t)result));
        break;
    default:
        break;
    }
}

/* Another session, perhaps on another server. Libpq tells of it only when it is there: what the former one was at nobody can ask then. */
static void watch_reset(guard_pq *pq)
{
    pq->wire = guard_pq_wire_new();
    pq->primary = 0;
    pq->marks.prepared = 0;
    pq->t.ended = pq->lost && !guard_pq_may_be_over(pq) ? GUARD_ROLLED_BACK : GUARD_OPEN;
    pq->t.over = 1;
    if (!pq->cut) {
        pq->lost = pq->outside = 0;
    }
    pq->marks.id[0] = '\0';
    pq->marks.checked = pq->home_known = pq->prepared_end = pq->prepared_chain = 0;
    guard_pq_canceller_renew(pq->canceller, pq->conn);
}

static void watch(guard_pq *pq, PGresult *result)
{
    if (pq->marks.prepared && PQresultStatus(result) == PGRES_COMMAND_OK) {
        guard_pq_marks_watch(pq, PQcmdStatus(result));
    }
    if (pq->session.tx != NULL) {
        watch_result(pq, result);
    }
    if (pq->pool != NULL && PQresultStatus(result) == PGRES_COMMAND_OK) {
        const char *tag = PQcmdStatus(result);
        pq->unset |= strcmp(tag, "RESET") == 0 || strcmp(tag, "DISCARD ALL") == 0;
    }
}

PGresult *guard_pq_get_result(guard_pq *pq)
{
    pq->seen = NULL;
    PGresult *result = PQgetResult(pq->conn);
    if (result != NULL && pq->seen != result) {
        watch(pq, result);
    }
    return result;
}

static int on_event(PGEventId id, void *info, void *pass)
{
    (void)pass;
    if (id == PGEVT_RESULTCREATE) {
        const PGEventResultCreate *event = info;
        for (guard_pq *pq = PQinstanceData(event->conn, on_event); pq != NULL; pq = pq->outer) {
            watch(pq, event->result);
            pq->seen = event->result;
        }
    } else if (id == PGEVT_CONNRESET) {
        for (guard_pq *pq = PQinstanceData(((PGEventConnReset *)info)->conn, on_event); pq != NULL; pq = pq->outer) {
            watch_reset(pq);
        }
    } else if (id == PGEVT_CONNDESTROY) {
        for (guard_pq *pq = PQinstanceData(((PGEventConnDestroy *)info)->conn, on_event); pq != NULL; pq = pq->outer) {
            pq->conn = NULL;
        }
    }
    return 1;
}

/* ---------------------------------------------------------------------------------------------- the wire -- */

static int is_lost(const guard_pq *pq)
{
    return pq->conn == NULL || pq->cut || PQstatus(pq->conn) == CONNECTION_BAD;
}

/* libpq takes rows: the server waits for them, whatever is to come behind. Of no row at all it takes none. */
static int is_copying_in(PGconn *conn)
{
    return PQputCopyData(conn, NULL, 0) == 1;
}

/* A flight of ours has the wire to itself: the header asks for that. */
void guard_pq_watch_wire(guard_pq *pq)
{
    if (!pq->lost && !pq->cut) {
        pq->outside = is_lost(pq) || (pq->flight == NULL && PQtransactionStatus(pq->conn) == PQTRANS_ACTIVE &&
                                      !is_copying_in(pq->conn));
    }
}

void guard_pq_watch_loss(guard_pq *pq)
{
    if (pq->lost || !is_lost(pq)) {
        return;
    }
    guard_pq *newest = pq->conn != NULL && pq->watched ? PQinstanceData(pq->conn, on_event) : pq;
    for (guard_pq *each = newest; each != NULL; each = pq->conn != NULL ? each->outer : NULL) {
        each->lost = 1;
        each->outside = pq->outside;
        each->t.may_be_over |= pq->t.may_be_over;
    }
}

/*
 * A COMMIT that was cancelled while it waited for a standby is answered with a warning and then the tag COMMIT. The server's function
 * has the same name in every language. And what libpq takes for a notice while nothing is asked may be the server's last words, which
 * come before the end of the stream does. libpq's own receiver takes no argument.
 */
void guard_pq_watch_notice(void *arg, const PGresult *notice)
{
    guard_pq *pq = arg;
    const char *function = PQresultErrorField(notice, PG_DIAG_SOURCE_FUNCTION);
    const char *severity = PQresultErrorField(notice, PG_DIAG_SEVERITY_NONLOCALIZED);
    const char *sqlstate = PQresultErrorField(notice, PG_DIAG_SQLSTATE);
    if (sqlstate != NULL && strcmp(sqlstate, "25001") == 0) {
        for (guard_pq *each = pq->watched ? PQinstanceData(pq->conn, on_event) : pq; each != NULL; each = each->outer) {
            each->t.warned = 1;
        }
    }
    if (function != NULL && strcmp(function, "SyncRepWaitForLSN") == 0) {
        pq->local_only = 1;
    }
    if (severity != NULL && (strcmp(severity, "FATAL") == 0 || strcmp(severity, "PANIC") == 0)) {
        pq->cut = 1;
        pq->outside = 0; /* libpq was at rest, or it would be a result */
        guard_pq_watch_loss(pq);
    }
    pq->receiver(NULL, notice);
}

/* An adopted connection may have the procedure from an earlier adoption. */
int guard_pq_watch_begin(guard_pq *pq)
{
    pq->outer = PQinstanceData(pq->conn, on_event);
    pq->watched = PQsetInstanceData(pq->conn, on_event, pq) ||
                  (PQregisterEventProc(pq->conn, on_event, "libguard", NULL) &&
                   PQsetInstanceData(pq->conn, on_event, pq));
    guard_pq_watch_loss(pq); /* what was lost up to here was ours */
    return pq->watched;
}

/* Two guards around one connection may end in any order. */
void guard_pq_watch_end(guard_pq *pq)
{
    guard_pq *inner = PQinstanceData(pq->conn, on_event);
    if (inner == pq) {
        PQsetInstanceData(pq->conn, on_event, pq->outer);
        return;
    }
    while (inner != NULL && inner->outer != pq) {
        inner = inner->outer;
    }
    if (inner != NULL) {
        inner->outer = pq->outer;
    }
}
