/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_commit.c: COMMIT, and what its answer, or the lack of one, means.
 *
 *     open --in flight--------------------------------------------------------> OPEN: refused, nothing sent
 *      |  \--BEGIN refused with the first statement (guard_pq_begin.c)---------> ROLLED_BACK: nothing was run
 *      |  \--BEGIN still to be sent, so that nothing was run-------------------> COMMITTED: nothing sent (PREPARED: all of it)
 *      |  \--aborted, or known to be dead-------------------------------------> ROLLED_BACK: COMMIT is not sent
 *      '--COMMIT sent--tag COMMIT---------------------------------------------> COMMITTED, whatever comes after it
 *                    |--tag ROLLBACK, or an ERROR and the server is there-----> ROLLED_BACK
 *                    '--anything else: lost, late, no memory--> shut, resolve-> COMMITTED, ROLLED_BACK or IN_DOUBT
 *
 * The marker's statement travels in COMMIT's own message: as text, or, where it is prepared, in a pipeline with one sync (guard_pq_message.c).
 * In an open transaction such a message is no block of its own, and the server stops at the first statement that fails, before COMMIT. Then the
 * transaction is aborted and still open, and rolled back. A deferred constraint fails in COMMIT itself, and the server is idle afterwards: no
 * ROLLBACK then. How it is, the server says at the message's end; where that is not read, the state is not known.
 *
 * PQsendQuery and PQgetResult, and a pipeline too, give the answer as soon as its tag has arrived; PQexec waits for what follows it, and would
 * lose it with the wire.
 */
#include "guard_pq_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static guard_outcome rolled_back(guard_result *result, const guard_error *error)
{
    result->error = *error;
    result->has_error = 1;
    return GUARD_ROLLED_BACK;
}

/* By an error that the program swallowed; it is told with its own SQLSTATE. */
static guard_outcome swallowed(guard_pq *pq, guard_result *result)
{
    guard_error error;
    if (!pq->t.has_error) {
        guard_error_set(&error, GUARD_TX, GUARD_TX_ROLLED_BACK,
                        "the server rolled the transaction back instead of committing it");
        return rolled_back(result, &error);
    }
    error = pq->t.error;
    error.domain = GUARD_TX;
    error.code = GUARD_TX_ROLLED_BACK;
    snprintf(error.message, sizeof(error.message), "rolled back, since an earlier statement had failed: %.240s",
             pq->t.error.message);
    guard_error_attach(&error, &pq->t.error, GUARD_CAUSE);
    return rolled_back(result, &error);
}

/* ROLLBACK of what the server keeps open though it cannot be committed. A failure of it is attached, and not told as poison. */
static void take_back(guard_pq *pq)
{
    guard_error ignored;
    memset(&ignored, 0, sizeof(ignored));
    guard_pq_roll_back(pq, "ROLLBACK", guard_pq_in(pq->t.rollback_ms), &ignored);
}

/* ------------------------------------------------------------------------------------------------ asking -- */

typedef struct answer {
    int tag;       /* a guard_outcome: COMMITTED, ROLLED_BACK, PREPARED; OPEN for none */
    int has_error; /* the first */
    int refused;   /* the error is one of the server's that a COMMIT does not survive */
    int kept_out;  /* the marker's row was not put in */
    guard_error error;
} answer;

/*
 * An ERROR says that the statement was not done. FATAL and PANIC end the session, at any moment, also after the commit. Class 08 is a
 * pooler's word for having lost the server.
 */
static int is_refusal(const PGresult *result)
{
    const char *severity = PQresultErrorField(result, PG_DIAG_SEVERITY_NONLOCALIZED);
    const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);
    return severity != NULL && strcmp(severity, "ERROR") == 0 && sqlstate != NULL && strncmp(sqlstate, "08", 2) != 0;
}

static void read_one(guard_pq *pq, PGresult *result, answer *a)
{
    const char *tag;
    switch (PQresultStatus(result)) {
    case PGRES_COMMAND_OK:
        tag = PQcmdStatus(result);
        if (tag[0] == 'I') {
            a->kept_out = strcmp(tag, "INSERT 0 1") != 0;
            break;
        }
        a->tag = strcmp(tag, "COMMIT") == 0                ? GUARD_COMMITTED
                 : strcmp(tag, "PREPARE TRANSACTION") == 0 ? GUARD_PREPARED
                 : strcmp(tag, "ROLLBACK") == 0            ? GUARD_ROLLED_BACK
                                                           : a->tag;
        break;
    case PGRES_TUPLES_OK:
    case PGRES_EMPTY_QUERY:
        break;
    default:
        if (!a->has_error) {
            guard_pq_error_result(pq->conn, result, &a->error);
            a->has_error = 1;
            a->refused = is_refusal(result);
        }
        break;
    }
}

/* `name` is that of PREPARE TRANSACTION, as a literal, and is not looked at where there is none. */
static const char *commit_sql(guard_pq *pq, const char *name, char *sql, size_t size)
{
    int length = pq->t.marker == GUARD_PQ_MARKER_ROW ? guard_pq_marks_sql(pq, sql, size) : 0;
    if (pq->t.prepare_as == NULL && length == 0) {
        return "COMMIT";
    }
    if (pq->t.prepare_as == NULL) {
        memcpy(sql + length, "COMMIT", sizeof("COMMIT"));
        return sql;
    }
    snprintf(sql + length, size - (size_t)length, "PREPARE TRANSACTION %s", name);
    return sql;
}

static int send_commit(guard_pq *pq, const char *name)
{
    char sql[GUARD_PQ_SQL_MAX + 512];
    if (pq->t.marker == GUARD_PQ_MARKER_ROW && pq->marks.prepared && pq->t.prepare_as == NULL) {
        return guard_pq_marks_send_commit(pq);
    }
    return PQsendQuery(pq->conn, commit_sql(pq, name, sql, sizeof(sql)));
}

/*
 * Past the deadline. Where COMMIT's tag was read all the same, what follows it is not waited for, and nobody gets it for an answer of his
 * own, nor a connection on which libpq sends nothing any more.
 */
static void give_up(guard_pq *pq, answer *a)
{
    if (!a->has_error) {
        guard_pq_error_timeout(&a->error, "the answer to COMMIT", pq->t.commit_ms);
        a->has_error = 1;
    }
    a->refused = 0;
    guard_pq_cut(pq);
}

static void ask(guard_pq *pq, const char *name, answer *a)
{
    guard_pq_deadline deadline = guard_pq_in(pq->t.commit_ms);
    PGresult *result;
    a->tag = GUARD_OPEN;
    a->has_error = 0;
    a->refused = a->kept_out = 0;
    memset(a->error.sqlstate, 0, sizeof(a->error.sqlstate));
    pq->local_only = 0;
    if (!send_commit(pq, name)) {
        guard_pq_error_conn(pq->conn, &a->error, "sending COMMIT");
        a->has_error = 1;
        return;
    }
    for (;;) {
        if (!guard_pq_next(pq, deadline, &result)) {
            give_up(pq, a);
            return;
        }
        if (result == NULL) {
            return;
        }
        read_one(pq, result, a);
        PQclear(result);
    }
}

/* ------------------------------------------------------------------------------------------------ doubt -- */

static guard_outcome resolve(guard_pq *pq, const char *token, guard_result *result, guard_error *why)
{
    guard_pq_keywords keywords;
    guard_pq_doubt doubt = {.token = token,
                            .table = pq->table,
                            .probe = pq->t.probe,
                            .probe_key = pq->t.probe_key,
                            .prepare_as = pq->t.prepare_as};
    guard_outcome outcome = GUARD_IN_DOUBT;
    GUARD_AUTO(mask);
    guard_mask(mask); /* guard_tx_outcome asks too, and no later call would find it */
    memset(&doubt.error, 0, sizeof(doubt.error));
    if (pq->conn != NULL && guard_pq_keywords_of(&keywords, pq->conn, &doubt.error) == 0) {
        outcome = guard_pq_doubt_resolve(&doubt, &keywords, NULL, guard_pq_in(pq->t.resolve_ms));
        guard_pq_keywords_close(&keywords);
    }
    result->notes |= doubt.notes;
    *why = doubt.error;
    return outcome;
}

/*
 * Of a read-only transaction. Up to version 15 the server takes large objects in it, but for a standby's, which can write nothing. (Rows of a
 * temporary table, which it takes too, are lost with the session, whatever the outcome.)
 */
static int refuses_rows(guard_pq *pq)
{
    /* PQserverVersion has none for a connection that is lost. */
    const char *version = pq->conn != NULL ? PQparameterStatus(pq->conn, "server_version") : NULL;
    const char *standby = pq->conn != NULL ? PQparameterStatus(pq->conn, "in_hot_standby") : NULL;
    return (version != NULL && strtol(version, NULL, 10) >= 16) || (standby != NULL && strcmp(standby, "on") == 0);
}

/*
 * The answer is lost. Nothing more is to come over this wire, and the session's id is not used again: its rows are the
 * resolver's from here on.
 */
static guard_outcome in_doubt(guard_pq *pq, const guard_error *cause, const char *xid, guard_result *result)
{
    char token[GUARD_TOKEN_SIZE];
    guard_error why;
    guard_error *error = &result->error;
    guard_pq_cut(pq);
    guard_pq_token_write(pq, xid, token);
    if (pq->t.numberless || (pq->t.read_only && refuses_rows(pq))) {
        result->notes |= GUARD_NOTE_NO_ROW_WRITTEN;
    }
    guard_outcome outcome = resolve(pq, token, result, &why);
    if (pq->t.marker == GUARD_PQ_MARKER_ROW) {
        pq->marks.id[0] = '\0';
        pq->marks.rows = 0;
    }
    if (outcome == GUARD_COMMITTED || outcome == GUARD_PREPARED) {
        return outcome;
    }
    guard_error_set(error, GUARD_TX, outcome == GUARD_ROLLED_BACK ? GUARD_TX_ROLLED_BACK : GUARD_TX_IN_DOUBT,
                    "%s: %.200s",
                    outcome == GUARD_ROLLED_BACK ? "rolled back, as was found after the answer to COMMIT was lost"
                                                 : "the answer to COMMIT was lost",
                    cause->message);
    memcpy(error->sqlstate, cause->sqlstate, sizeof(error->sqlstate));
    if (outcome == GUARD_IN_DOUBT) {
        memcpy(result->token, token, sizeof(token));
        if (why.code != 0) {
            guard_error_attach(error, &why, GUARD_ATTACHED);
        }
    }
    result->has_error = 1;
    return outcome;
}

guard_outcome guard_pq_in_doubt(guard_pq *pq, const char *why, guard_result *result)
{
    guard_error cause;
    guard_error_set(&cause, GUARD_PQ, GUARD_PQ_CONNECTION, "%s", why);
    return in_doubt(pq, &cause, "", result);
}

/* ------------------------------------------------------------------------------------------------ commit -- */

/*
 * Whether it is read-only was known at BEGIN. SET TRANSACTION READ WRITE, as the first statement, changes that (functions cannot, as
 * they have a snapshot), and then there are rows that somebody may have to find again. 0, or the error's code.
 */
static int look_at_mode(guard_pq *pq, guard_error *error)
{
    char sql[80];
    PGresult *rows = NULL;
    if (!pq->t.read_only || !pq->t.was_set) {
        return 0;
    }
    int code = guard_pq_query(pq, "SHOW transaction_read_only", pq->t.commit_ms, &rows, error);
    int writes = code == 0 && PQntuples(rows) == 1 && strcmp(PQgetvalue(rows, 0, 0), "off") == 0;
    PQclear(rows);
    if (!writes) {
        return code;
    }
    pq->t.read_only = 0;
    pq->t.marker = pq->t.wanted;
    if (pq->t.marker != GUARD_PQ_MARKER_NONE && (code = guard_pq_home_check(pq, error)) != 0) {
        return code;
    }
    if (pq->t.marker == GUARD_PQ_MARKER_ROW) {
        code = guard_pq_marks_check(pq, error);
        code = code != 0 ? code : guard_pq_marks_begin(pq, error);
    } else if (pq->t.marker == GUARD_PQ_MARKER_PROBE) {
        snprintf(sql, sizeof(sql), "SELECT pg_advisory_xact_lock(%lld)", (long long)pq->t.lock);
        code = guard_pq_query(pq, sql, pq->t.commit_ms, NULL, error);
    }
    return code;
}

/* 0, or the error's code: then the transaction is not to be committed. */
static int read_xid(guard_pq *pq, char *xid, size_t size, guard_error *error)
{
    PGresult *rows = NULL;
    xid[0] = '\0';
    int prepares = pq->t.prepare_as != NULL;
    int writes_all_the_same = pq->t.read_only && pq->t.wanted == GUARD_PQ_MARKER_STATUS && !refuses_rows(pq);
    if (pq->t.marker != GUARD_PQ_MARKER_STATUS && !prepares && !writes_all_the_same) {
        return 0;
    }
    int code = guard_pq_query(pq, prepares ? "SELECT pg_current_xact_id()" : "SELECT pg_current_xact_id_if_assigned()",
                              pq->t.commit_ms, &rows, error);
    if (code == 0 && PQntuples(rows) == 1) {
        snprintf(xid, size, "%s", PQgetvalue(rows, 0, 0));
        pq->t.numberless = xid[0] == '\0';
        pq->t.marker = writes_all_the_same && !pq->t.numberless ? pq->t.wanted : pq->t.marker;
    }
    PQclear(rows);
    return code;
}

static guard_outcome judge(guard_pq *pq, const answer *a, const char *xid, guard_result *result)
{
    if (a->tag == GUARD_COMMITTED || a->tag == GUARD_PREPARED) {
        if (pq->t.marker == GUARD_PQ_MARKER_ROW) {
            guard_pq_marks_done(pq);
        }
        if (GUARD_IMPL_UNLIKELY(a->kept_out)) {
            guard_pq_marks_kept_out(pq);
        }
        result->notes |= pq->local_only ? GUARD_NOTE_LOCAL_ONLY : 0;
        return (guard_outcome)a->tag;
    }
    int there = pq->conn != NULL && PQstatus(pq->conn) == CONNECTION_OK;
    PGTransactionStatusType status = there ? PQtransactionStatus(pq->conn) : PQTRANS_UNKNOWN;
    if (a->tag == GUARD_ROLLED_BACK) {
        return swallowed(pq, result);
    }
    if (a->has_error && a->refused && (status == PQTRANS_IDLE || status == PQTRANS_INERROR)) {
        if (status == PQTRANS_INERROR) {
            take_back(pq);
        }
        if (pq->t.marker == GUARD_PQ_MARKER_ROW) {
            guard_pq_marks_failed(pq, a->error.sqlstate);
        }
        return rolled_back(result, &a->error);
    }
    if (a->kept_out) {
        pq->t.marker = GUARD_PQ_MARKER_NONE; /* there is nothing to look for */
    }
    guard_error none;
    guard_error_set(&none, GUARD_PQ, GUARD_PQ_CLIENT, "libpq gave none");
    return in_doubt(pq, a->has_error ? &a->error : &none, xid, result);
}

static guard_outcome commit_open(guard_pq *pq, guard_result *result)
{
    char xid[24];
    char name[GUARD_PQ_NAME_LITERAL_MAX];
    answer a;
    if (look_at_mode(pq, &a.error) != 0 ||
        (pq->t.prepare_as != NULL && guard_pq_name_literal(pq, name, &a.error) != 0) ||
        read_xid(pq, xid, sizeof(xid), &a.error) != 0) {
        take_back(pq);
        return rolled_back(result, &a.error);
    }
    ask(pq, name, &a);
    return judge(pq, &a, xid, result);
}

/* Nothing was sent, and nothing will be. */
static guard_outcome refuse(guard_result *result)
{
    guard_error_set(&result->error, GUARD_PQ, GUARD_PQ_BUSY,
                    "a COPY, a stream, a pipeline or a query is not at its end: end it, then commit");
    result->has_error = 1;
    return GUARD_OPEN;
}

static guard_outcome died_before(guard_pq *pq, guard_result *result)
{
    guard_error error;
    guard_error_set(&error, GUARD_PQ, GUARD_PQ_CONNECTION,
                    "the connection was lost before COMMIT was sent: the server rolls back");
    if (pq->t.has_error) {
        guard_error_attach(&error, &pq->t.error, GUARD_CAUSE);
    }
    guard_pq_cut(pq);
    return rolled_back(result, &error);
}

/* A transaction in which nothing was run. PREPARE TRANSACTION leaves something all the same. */
static guard_outcome commit_unsent(guard_pq *pq, guard_result *result)
{
    guard_error error;
    if (pq->t.prepare_as == NULL) {
        return GUARD_COMMITTED;
    }
    return guard_pq_begin_now(pq, &error) == 0 ? commit_open(pq, result) : rolled_back(result, &error);
}

static guard_outcome commit(guard_pq *pq, guard_result *result)
{
    switch (guard_pq_status(pq)) {
    case GUARD_TX_LOST:
        return pq->t.over                 ? guard_pq_told_elsewhere(pq, result)
               : guard_pq_may_be_over(pq) ? guard_pq_lost_elsewhere(pq, result)
                                          : died_before(pq, result);
    case GUARD_TX_IDLE:
        return pq->t.begin == GUARD_PQ_UNBEGUN ? rolled_back(result, &pq->t.error)
                                               : guard_pq_told_elsewhere(pq, result);
    default:
        break;
    }
    if (pq->flight != NULL || PQtransactionStatus(pq->conn) == PQTRANS_ACTIVE ||
        PQpipelineStatus(pq->conn) != PQ_PIPELINE_OFF) {
        return refuse(result);
    }
    if (guard_pq_is_dead(pq)) {
        return guard_pq_may_be_over(pq) ? guard_pq_lost_elsewhere(pq, result) : died_before(pq, result);
    }
    if (PQtransactionStatus(pq->conn) == PQTRANS_INERROR) {
        take_back(pq);
        return swallowed(pq, result);
    }
    if (guard_pq_is_unsent(pq)) {
        return commit_unsent(pq, result);
    }
    guard_error error;
    if (GUARD_IMPL_UNLIKELY(pq->t.ended != GUARD_OPEN) && guard_pq_sign_check(pq, &error) != 0) {
        take_back(pq);
        result->notes |= GUARD_NOTE_ENDED_ELSEWHERE;
        return rolled_back(result, &error);
    }
    return commit_open(pq, result);
}

guard_outcome guard_pq_commit(void *connection, guard_result *result)
{
    guard_pq *pq = connection;
    guard_pq_call call;
    guard_pq_call_begin(pq, &call);
    guard_outcome outcome = commit(pq, result);
    guard_pq_call_end(pq, &call);
    return outcome;
}
