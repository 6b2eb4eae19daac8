/* SPDX-License-Identifier: MIT */
/* guard_pq_statement.c: statements and their results. */
#include "guard_pq_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void clear_result(void *result)
{
    PQclear(result);
}

const guard_kind guard_pq_result_kind = {
    .name = "PostgreSQL result",
    .release = clear_result,
    .action = "clear",
    .child = clear_result,
    .flags = GUARD_KIND_HEAP,
};

/* ------------------------------------------------------------------------------------------------ answers -- */

static void keep_context(guard_pq *pq, const PGresult *result)
{
    guard_pq_text(pq->context, sizeof(pq->context), PQresultErrorField(result, PG_DIAG_CONTEXT));
}

void guard_pq_count_changes(guard_pq *pq, const PGresult *result)
{
    const char *tag = result != NULL ? PQcmdStatus((PGresult *)(uintptr_t)result) : "";
    uint64_t place = 1;
    uint64_t count = 0;
    /* A tag that counts ends with its number. PQcmdTuples compares the tag with each that does. */
    for (const char *at = tag + strlen(tag); at > tag && at[-1] >= '0' && at[-1] <= '9'; at--) {
        count += (uint64_t)(at[-1] - '0') * place;
        place *= 10;
    }
    pq->changes = (int64_t)count;
}

/* The statement took too long: it is taken back or the connection is given up. */
static int give_up(guard_pq *pq, int32_t ms, guard_error *error)
{
    int code = guard_pq_error_timeout(error, "the statement", ms);
    if (guard_pq_quiesce(pq, guard_pq_in(pq->options.rollback_ms))) {
        guard_pq_text(error->sqlstate, sizeof(error->sqlstate), "57014");
        guard_pq_text(error->detail, sizeof(error->detail), "It was cancelled.");
    } else {
        guard_pq_cut(pq);
        guard_pq_text(error->detail, sizeof(error->detail),
                      "The server did not react to being asked to cancel it; the connection is given up.");
    }
    return code;
}

/* One result: 0 when it is good, else the error's code. */
static int judge(guard_pq *pq, PGresult *result, guard_error *error)
{
    switch (PQresultStatus(result)) {
    case PGRES_COMMAND_OK:
    case PGRES_TUPLES_OK:
    case PGRES_EMPTY_QUERY:
    case PGRES_SINGLE_TUPLE:
        return 0;
    case PGRES_COPY_IN:
    case PGRES_COPY_OUT:
    case PGRES_COPY_BOTH:
        guard_error_set(error, GUARD_PQ, GUARD_PQ_ANSWER,
                        "the statement is a COPY from or to the client: use guard_pq_copy_in or guard_pq_copy_out");
        return error->code;
    default:
        keep_context(pq, result);
        return guard_pq_error_result(pq->conn, result, error);
    }
}

int guard_pq_collect(guard_pq *pq, int32_t ms, PGresult **kept, guard_error *error)
{
    guard_pq_deadline deadline = guard_pq_in(ms);
    PGresult *last = NULL;
    int code = 0;
    for (;;) {
        PGresult *result;
        if (!guard_pq_next(pq, deadline, &result)) {
            code = give_up(pq, ms, error);
            break;
        }
        if (result == NULL) {
            break;
        }
        PQclear(last);
        last = result;
        guard_error later;
        int failed = judge(pq, result, code == 0 ? error : &later);
        code = code != 0 ? code : failed;
        if (failed == GUARD_PQ_ANSWER && !guard_pq_quiesce(pq, guard_pq_in(pq->options.rollback_ms))) {
            guard_pq_cut(pq);
            break;
        }
    }
    if (code == 0 && (last == NULL || pq->cut || PQstatus(pq->conn) == CONNECTION_BAD)) {
        /* libpq had nothing to give, or not all: it is the connection, or memory, or the answer is of something else. */
        code = guard_pq_error_conn(pq->conn, error, "reading the answer");
        guard_pq_cut(pq);
    }
    /* libpq 15 calls a connection good on which sending has failed, until somebody reads from it. */
    if (code != 0 && error->sqlstate[0] == '\0' && error->domain == GUARD_PQ && guard_pq_is_dead(pq)) {
        error->code = code = GUARD_PQ_CONNECTION;
    }
    guard_pq_count_changes(pq, code == 0 ? last : NULL);
    if (code != 0 || kept == NULL) {
        PQclear(last);
        last = NULL;
    }
    if (kept != NULL) {
        *kept = last;
    }
    return code;
}

int guard_pq_query(guard_pq *pq, const char *sql, int32_t ms, PGresult **kept, guard_error *error)
{
    if (pq->conn == NULL || pq->cut) {
        return guard_pq_error_gone(error);
    }
    if (!PQsendQuery(pq->conn, sql)) {
        return guard_pq_error_conn(pq->conn, error, "sending a statement");
    }
    return guard_pq_collect(pq, ms, kept, error);
}

/* The server has said that it waits for the next statement. A wire that broke may end the results without an error among them (seen). */
static int is_at_rest(PGconn *conn)
{
    PGTransactionStatusType status = PQtransactionStatus(conn);
    return PQstatus(conn) == CONNECTION_OK && status != PQTRANS_ACTIVE && status != PQTRANS_UNKNOWN;
}

/* pq may be NULL. */
static int query_on(PGconn *conn, guard_pq *pq, const char *sql, const char *const *key, guard_pq_deadline deadline,
                    PGresult **kept, guard_error *error)
{
    int code = 0;
    int results = 0;
    int sent = key != NULL ? PQsendQueryParams(conn, sql, 1, NULL, key, NULL, NULL, 0) : PQsendQuery(conn, sql);
    if (kept != NULL) {
        *kept = NULL;
    }
    if (!sent) {
        return guard_pq_error_conn(conn, error, "sending a statement");
    }
    for (;;) {
        if (!guard_pq_await(conn, deadline)) {
            return guard_pq_error_timeout(error, "the server's answer", 0);
        }
        PGresult *result = pq != NULL ? guard_pq_get_result(pq) : PQgetResult(conn);
        if (result == NULL) {
            if (code == 0 && (results == 0 || !is_at_rest(conn))) {
                code = guard_pq_error_conn(conn, error, "reading the answer");
                if (pq != NULL) {
                    guard_pq_cut(pq);
                }
            }
            return code;
        }
        results++;
        ExecStatusType status = PQresultStatus(result);
        if (status == PGRES_TUPLES_OK && kept != NULL) {
            PQclear(*kept);
            *kept = result;
            continue;
        }
        if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK && code == 0) {
            code = guard_pq_error_result(conn, result, error);
        }
        PQclear(result);
    }
}

int guard_pq_query_on(PGconn *conn, const char *sql, const char *const *key, guard_pq_deadline deadline,
                      PGresult **kept, guard_error *error)
{
    return query_on(conn, NULL, sql, key, deadline, kept, error);
}

int guard_pq_query_of(guard_pq *pq, const char *sql, guard_pq_deadline deadline, guard_error *error)
{
    return query_on(pq->conn, pq, sql, NULL, deadline, NULL, error);
}

/* ------------------------------------------------------------------------------------------------ public -- */

/* sql alone: the simple protocol. With params: the extended one. A name with sql prepares, a name alone runs what was prepared. */
typedef struct request {
    const char *sql;
    const char *name;
    const guard_pq_params *params;
} request;

static const guard_pq_params no_params;

static int send_request(guard_pq *pq, const request *r)
{
    const guard_pq_params *p = r->params;
    if (r->name == NULL && p == NULL) {
        return PQsendQuery(pq->conn, r->sql);
    }
    if (r->name == NULL) {
        return PQsendQueryParams(pq->conn, r->sql, p->count, p->types, p->values, p->lengths, p->formats,
                                 p->binary_result);
    }
    if (r->sql == NULL) {
        return PQsendQueryPrepared(pq->conn, r->name, p->count, p->values, p->lengths, p->formats, p->binary_result);
    }
    return PQsendPrepare(pq->conn, r->name, r->sql, p->count, p->types);
}

static guard_pq_spelling spelling_of(guard_pq *pq)
{
    const char *standard = PQparameterStatus(pq->conn, "standard_conforming_strings");
    guard_pq_spelling spelling = {standard != NULL && strcmp(standard, "off") == 0, guard_pq_encoding(pq->conn)};
    return spelling;
}

static int may_end(guard_pq *pq, const char *sql, int one_statement)
{
    guard_pq_spelling spelling = spelling_of(pq);
    return guard_pq_sql_may_end(sql, &spelling, one_statement, pq->prepared_end);
}

static int chains(guard_pq *pq, const char *sql, int one_statement)
{
    guard_pq_spelling spelling = spelling_of(pq);
    return guard_pq_sql_chains(sql, &spelling, one_statement);
}

void guard_pq_remember_sent(guard_pq *pq, const char *sql, int one_statement)
{
    pq->t.may_be_over |= sql != NULL ? may_end(pq, sql, one_statement) : pq->prepared_end;
    pq->t.may_chain |= sql != NULL ? chains(pq, sql, one_statement) : pq->prepared_chain;
}

/* The answer is lost: remembers whether the request may have ended the transaction, be it of another guard around the connection. */
static void remember_lost(guard_pq *pq, const request *r)
{
    if (pq->t.begin != GUARD_PQ_UNBEGUN && pq->conn != NULL && guard_pq_status(pq) == GUARD_TX_LOST) {
        pq->t.may_be_over |= r->sql != NULL ? may_end(pq, r->sql, r->params != NULL) : pq->prepared_end;
    }
}

/* Its answer was ROLLBACK, and there is a transaction and may be a savepoint: the text tells what it was. */
static void judge_rollback(guard_pq *pq, const request *r)
{
    guard_pq_transaction *t = &pq->t;
    if (t->ended != GUARD_ROLLED_BACK || t->over || PQtransactionStatus(pq->conn) != PQTRANS_INTRANS) {
        return;
    }
    if (r->sql == NULL && pq->prepared_chain) {
        t->may_chain = 1; /* this one, or another */
    } else if (r->sql != NULL && chains(pq, r->sql, r->params != NULL)) {
        t->over = 1;
    } else {
        t->ended = GUARD_OPEN;
    }
}

static int run_alone(guard_pq *pq, const request *r, PGresult **result, guard_error *error)
{
    return send_request(pq, r) ? guard_pq_collect(pq, pq->options.statement_ms, result, error)
                               : guard_pq_error_conn(pq->conn, error, "sending a statement");
}

/* What libpq refuses by itself, so that this leaves nothing half queued behind BEGIN. */
static int is_sendable(const guard_pq_params *p)
{
    int lengths = p->formats == NULL || p->lengths != NULL;
    for (int i = 0; i < p->count && !lengths; i++) {
        if (p->formats[i] != 0 && p->values != NULL && p->values[i] != NULL) {
            return 0;
        }
    }
    return p->count >= 0 && p->count <= 65535;
}

static int may_share(const guard_pq *pq, const request *r)
{
    if (r->params == NULL || !is_sendable(r->params)) {
        return 0;
    }
    return r->name == NULL  ? guard_pq_sql_is_of_rows(r->sql)
           : r->sql == NULL ? !pq->prepared_else && !pq->prepared_end
                            : 0;
}

/* The first of a transaction whose BEGIN is not sent yet. */
static int run_first(guard_pq *pq, const request *r, PGresult **result, guard_error *error)
{
    unsigned before;
    int code;
    if (!may_share(pq, r)) {
        code = guard_pq_begin_now(pq, error);
        return code != 0 ? code : run_alone(pq, r, result, error);
    }
    if (guard_pq_begin_open(pq, &before) && send_request(pq, r) && guard_pq_message_send(pq, before + 1)) {
        code = guard_pq_collect(pq, pq->options.statement_ms, result, error);
    } else {
        code = guard_pq_error_conn(pq->conn, error, "sending BEGIN and a statement");
        guard_pq_cut(pq);
    }
    guard_pq_begin_settle(pq, code, error);
    return code;
}

static void remember_prepared(guard_pq *pq, const char *sql)
{
    pq->prepared_end |= may_end(pq, sql, 1);
    pq->prepared_chain |= chains(pq, sql, 1);
    pq->prepared_else |= !guard_pq_sql_is_of_rows(sql);
}

/* 0, or the error's code; *result only where it is wanted. */
static int run(guard_pq *pq, const request *r, PGresult **result, guard_error *error)
{
    guard_pq_call call;
    if (pq->conn == NULL || pq->cut) {
        return guard_pq_error_gone(error);
    }
    guard_pq_call_begin(pq, &call);
    pq->context[0] = '\0';
    int ended = pq->t.ended;
    int code = guard_pq_is_unsent(pq) ? run_first(pq, r, result, error) : run_alone(pq, r, result, error);
    if (code != 0) {
        remember_lost(pq, r);
    } else if (GUARD_IMPL_UNLIKELY(pq->t.ended != ended)) {
        judge_rollback(pq, r);
    }
    /* What was late may have been done all the same; and the server's refusal costs nothing but a round trip later on. */
    if (r->name != NULL && r->sql != NULL) {
        remember_prepared(pq, r->sql);
    }
    guard_pq_call_end(pq, &call);
    return code;
}

static PGresult *run_or_panic(guard_scope *scope, guard_pq *pq, const request *r, const guard_place *place)
{
    guard_error error;
    PGresult *result = NULL;
    guard_pq_check(pq, NULL, place);
    if (r->sql == NULL && r->name == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the statement is NULL");
        return NULL;
    }
    if (scope != NULL) {
        guard_reserve(scope, 1);
    }
    if (run(pq, r, scope != NULL ? &result : NULL, &error) != 0) {
        guard_impl_panic_error(place, &error);
    }
    if (result != NULL) {
        guard_impl_defer_kind(scope, &guard_pq_result_kind, result, place);
    }
    return result;
}

PGresult *guard_pq_exec_at(guard_scope *scope, guard_pq *pq, const char *sql, const guard_place *place)
{
    request r = {.sql = sql};
    return run_or_panic(scope, pq, &r, place);
}

PGresult *guard_pq_exec_params_at(guard_scope *scope, guard_pq *pq, const char *sql, const guard_pq_params *params,
                                  const guard_place *place)
{
    request r = {.sql = sql, .params = params != NULL ? params : &no_params};
    return run_or_panic(scope, pq, &r, place);
}

void guard_pq_prepare_at(guard_pq *pq, const char *name, const char *sql, const guard_pq_params *params,
                         const guard_place *place)
{
    request r = {.sql = name != NULL ? sql : NULL,
                 .name = sql != NULL ? name : NULL,
                 .params = params != NULL ? params : &no_params};
    run_or_panic(NULL, pq, &r, place);
}

PGresult *guard_pq_exec_prepared_at(guard_scope *scope, guard_pq *pq, const char *name, const guard_pq_params *params,
                                    const guard_place *place)
{
    request r = {.name = name, .params = params != NULL ? params : &no_params};
    return run_or_panic(scope, pq, &r, place);
}

int64_t guard_pq_query_int64_at(guard_pq *pq, const char *sql, int64_t missing, const guard_place *place)
{
    GUARD_AUTO(s);
    PGresult *result = guard_pq_exec_at(s, pq, sql, place);
    if (PQntuples(result) == 0 || PQnfields(result) == 0 || PQgetisnull(result, 0, 0)) {
        return missing;
    }
    char *end;
    const char *text = PQgetvalue(result, 0, 0);
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0') {
        guard_impl_panic(place, GUARD_PQ, GUARD_PQ_ANSWER, "the answer is not an integer: %.40s", text);
    }
    return value;
}

PGresult *guard_pq_own_at(guard_scope *scope, PGresult *result, const guard_place *place)
{
    if (result == NULL) {
        guard_impl_panic(place, GUARD_PQ, GUARD_PQ_CLIENT, "libpq gave no result");
    }
    guard_impl_defer_kind(scope, &guard_pq_result_kind, result, place);
    return result;
}
