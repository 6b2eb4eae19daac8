/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_begin.c: BEGIN, as a message of its own or in that of the transaction's first statement.
 *
 *     begin --sent, answered--> BEGUN
 *       |                         ^
 *       '--WITH_FIRST--> UNSENT --+--the first statement, one of rows: in one message with it--> SENT --the tag BEGIN--> BEGUN
 *                          |      |                                                               |--refused, and idle--> UNBEGUN
 *                          |      '--anything else: a message of its own, waited for--> SENT -----'
 *                          '--commit or rollback--> ended, and nothing was sent
 *
 * Invariants
 *   - UNSENT is a state of an open handle whose connection only the guard's own calls use: the program has not got the raw one.
 *     Each of these calls begins first (guard_pq_enter), or with its statement (guard_pq_statement.c).
 *   - What shares BEGIN's message neither ends the transaction nor turns the wire over to a COPY.
 *   - UNBEGUN: the server is idle and has run nothing. Nothing is sent any more, and the outcome is ROLLED_BACK.
 */
#include "guard_pq_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

void guard_pq_transaction_clear(guard_pq *pq)
{
    guard_pq_transaction *t = &pq->t;
    t->has_error = 0;
    t->retry = 0;
    t->ended = GUARD_OPEN;
    t->begin = GUARD_PQ_BEGUN;
    t->over = t->was_set = t->savepoints = t->may_be_over = t->may_chain = t->has_sign = t->sign_inside =
        t->numberless = t->warned = 0;
    t->unwarned = pq->adopted;
}

/* ----------------------------------------------------------------------------------------------- read only -- */

/*
 * A server that is no standby never becomes one while its sessions live, so it is not asked again: the parameters are a list that libpq
 * searches. Behind a pooler, or where that is not known, the next transaction may be another server's.
 */
static int is_standby(guard_pq *pq)
{
    if (pq->primary) {
        return 0;
    }
    const char *standby = PQparameterStatus(pq->conn, "in_hot_standby");
    pq->primary = standby != NULL && strcmp(standby, "off") == 0 && pq->pooler == GUARD_PQ_POOLER_NONE;
    return standby != NULL && strcmp(standby, "on") == 0;
}

/* The server says on its own whether writing is possible (GUC_REPORT, from 14 on). */
static int is_read_only(guard_pq *pq, uint32_t flags)
{
    if (flags & (GUARD_PQ_READ_ONLY | GUARD_PQ_READ_WRITE)) {
        return (flags & GUARD_PQ_READ_ONLY) != 0;
    }
    const char *read_only = PQparameterStatus(pq->conn, "default_transaction_read_only");
    return (read_only != NULL && strcmp(read_only, "on") == 0) || is_standby(pq);
}

/* ------------------------------------------------------------------------------------------------- options -- */

static const guard_pq_tx_options no_options;

void guard_pq_transaction_set(guard_pq *pq, const guard_pq_tx_options *o)
{
    guard_pq_transaction *t = &pq->t;
    o = o != NULL ? o : &no_options;
    guard_pq_transaction_clear(pq);
    t->commit_ms = guard_pq_or(o->commit_ms, pq->options.commit_ms);
    t->resolve_ms = guard_pq_or(o->resolve_ms, pq->options.resolve_ms);
    t->rollback_ms = guard_pq_or(o->rollback_ms, pq->options.rollback_ms);
    t->isolation = o->isolation;
    t->flags = o->flags;
    t->durable = o->tx.durable;
    t->read_only = is_read_only(pq, o->flags);
    t->prepare_as = o->prepare_as;
    t->probe = o->probe;
    t->probe_key = o->probe_key;
    t->marker = guard_pq_or(o->marker, o->probe != NULL ? GUARD_PQ_MARKER_PROBE : pq->options.marker);
    t->wanted = t->marker;
    if (t->read_only) {
        t->marker = GUARD_PQ_MARKER_NONE;
    }
}

/* Better now than at COMMIT. */
static __attribute__((noinline)) int check_name(guard_pq *pq, guard_error *error)
{
    char name[GUARD_PQ_NAME_LITERAL_MAX];
    return guard_pq_name_literal(pq, name, error);
}

/* What has to be there before BEGIN, so that COMMIT can be resolved. */
static int begin_marker(guard_pq *pq, guard_error *error)
{
    int code = 0;
    if (pq->t.wanted != GUARD_PQ_MARKER_NONE || pq->t.prepare_as != NULL) {
        code = guard_pq_home_check(pq, error);
    }
    if (code == 0 && pq->t.marker == GUARD_PQ_MARKER_ROW) {
        code = guard_pq_marks_check(pq, error);
        code = code != 0 ? code : guard_pq_marks_begin(pq, error);
    } else if (code == 0 && pq->t.wanted == GUARD_PQ_MARKER_PROBE &&
               !guard_pq_random(&pq->t.lock, sizeof(pq->t.lock))) {
        guard_error_set(error, GUARD_OS, errno, "no random bytes for the lock of a probe");
        code = error->code;
    }
    return code;
}

/* ---------------------------------------------------------------------------------------------------- text -- */

/* BEGIN and what belongs to it. */
typedef struct beginning {
    unsigned count;
    const char *statements[4];
    char begin[80];
    char lock[64];
} beginning;

static const char *begin_sql(const guard_pq_transaction *t, char *sql, size_t size)
{
    static const char *const levels[] = {"", " ISOLATION LEVEL READ COMMITTED", " ISOLATION LEVEL REPEATABLE READ",
                                         " ISOLATION LEVEL SERIALIZABLE"};
    if ((t->isolation | (int)(t->flags & ~GUARD_PQ_BEGIN_WITH_FIRST)) == 0) {
        return "BEGIN";
    }
    snprintf(sql, size, "BEGIN%s%s%s", levels[t->isolation],
             t->flags & GUARD_PQ_READ_ONLY    ? " READ ONLY"
             : t->flags & GUARD_PQ_READ_WRITE ? " READ WRITE"
                                              : "",
             t->flags & GUARD_PQ_DEFERRABLE ? " DEFERRABLE" : "");
    return sql;
}

static void compose(guard_pq *pq, beginning *b)
{
    guard_pq_transaction *t = &pq->t;
    b->count = 0;
    b->statements[b->count++] = begin_sql(t, b->begin, sizeof(b->begin));
    if (GUARD_IMPL_UNLIKELY(pq->watched) && (b->statements[b->count] = guard_pq_sign_sql(pq)) != NULL) {
        b->count++;
        t->has_sign = 1;
    }
    if (t->durable) {
        b->statements[b->count++] = "SELECT set_config('synchronous_commit', 'on', true) "
                                    "WHERE current_setting('synchronous_commit') = 'off'";
    }
    if (t->marker == GUARD_PQ_MARKER_PROBE) {
        snprintf(b->lock, sizeof(b->lock), "SELECT pg_advisory_xact_lock(%lld)", (long long)t->lock);
        b->statements[b->count++] = b->lock;
    }
}

/* ------------------------------------------------------------------------------------------ by itself, waited for -- */

/* By our own BEGIN it was not set; but a standby that was promoted says so with its answer, so that what we knew was of before. */
static void look_at_promotion(guard_pq *pq)
{
    pq->t.was_set |= pq->t.read_only && !is_read_only(pq, pq->t.flags);
}

static int send_alone(guard_pq *pq, guard_error *error)
{
    char text[GUARD_PQ_SQL_MAX];
    beginning b;
    compose(pq, &b);
    size_t length = 0;
    for (unsigned i = 0; b.count > 1 && i < b.count; i++) {
        size_t more = strlen(b.statements[i]);
        memcpy(text + length, b.statements[i], more + 1);
        length += more;
        memcpy(text + length, "; ", sizeof("; "));
        length += 2;
    }
    int code = guard_pq_query(pq, b.count > 1 ? text : b.statements[0], pq->options.statement_ms, NULL, error);
    look_at_promotion(pq);
    if (code != 0 && PQtransactionStatus(pq->conn) != PQTRANS_IDLE) {
        guard_error later;
        guard_pq_roll_back(pq, "ROLLBACK", guard_pq_in(pq->t.rollback_ms), &later);
    }
    return code;
}

static int begin(guard_pq *pq, const guard_pq_tx_options *o, guard_error *error)
{
    /* That it has died since is for BEGIN to find out: nothing is lost with it. */
    if (guard_pq_status(pq) == GUARD_TX_LOST) {
        return guard_pq_error_gone(error);
    }
    guard_pq_transaction_set(pq, o);
    int code = GUARD_IMPL_UNLIKELY(pq->t.prepare_as != NULL) ? check_name(pq, error) : 0;
    code = code != 0 ? code : begin_marker(pq, error);
    if (code != 0) {
        return code;
    }
    /* Who has the raw connection may run something at any moment. */
    if ((pq->t.flags & GUARD_PQ_BEGIN_WITH_FIRST) && !pq->watched) {
        pq->t.begin = GUARD_PQ_UNSENT;
        return 0;
    }
    return send_alone(pq, error);
}

int guard_pq_begin_driver(void *connection, const void *options, guard_error *error)
{
    guard_pq *pq = connection;
    guard_pq_call call;
    guard_pq_call_begin(pq, &call);
    int code = begin(pq, options, error);
    guard_pq_call_end(pq, &call);
    return code;
}

/* --------------------------------------------------------------------------------------------------- later -- */

/* The server has begun nothing, or has taken it back. */
static void remember_unbegun(guard_pq *pq, const guard_error *error)
{
    pq->t.begin = GUARD_PQ_UNBEGUN;
    pq->t.ended = GUARD_OPEN;
    pq->t.over = 0;
    pq->t.error = *error;
    pq->t.has_error = 1;
}

int guard_pq_begin_now(guard_pq *pq, guard_error *error)
{
    pq->t.begin = GUARD_PQ_SENT;
    int code = send_alone(pq, error);
    pq->t.begin = GUARD_PQ_BEGUN;
    if (code != 0) {
        remember_unbegun(pq, error);
    }
    return code;
}

void guard_pq_begin_or_panic(guard_pq *pq, const guard_place *place)
{
    guard_error error;
    guard_pq_call call;
    guard_pq_call_begin(pq, &call);
    int code = guard_pq_begin_now(pq, &error);
    guard_pq_call_end(pq, &call);
    if (code != 0) {
        guard_impl_panic_error(place, &error);
    }
}

int guard_pq_begin_open(guard_pq *pq, unsigned *statements)
{
    beginning b;
    compose(pq, &b);
    pq->t.begin = GUARD_PQ_SENT;
    *statements = b.count;
    if (!guard_pq_message_open(pq)) {
        return 0;
    }
    for (unsigned i = 0; i < b.count; i++) {
        if (!PQsendQueryParams(pq->conn, b.statements[i], 0, NULL, NULL, NULL, NULL, 0)) {
            return 0;
        }
    }
    return 1;
}

void guard_pq_begin_settle(guard_pq *pq, int code, const guard_error *error)
{
    int refused = code != 0 && pq->t.begin == GUARD_PQ_SENT && guard_pq_status(pq) == GUARD_TX_IDLE;
    pq->t.begin = GUARD_PQ_BEGUN;
    look_at_promotion(pq);
    if (refused) {
        remember_unbegun(pq, error);
    }
}
