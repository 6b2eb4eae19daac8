/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_prepared.c: the second phase of transactions that were prepared.
 *
 *     its number is read --> asked for --answered--------------------------------------> done, or the server's error
 *                              '--lost or late--> on new connections, until resolve_ms has passed:
 *                                   listed under its name and number --> asked for once more
 *                                   not listed --> pg_xact_status of its number: done, or the opposite was done by somebody
 *                                   neither can be found out --> in doubt
 *
 * The status is proof here, as it is not for a plain COMMIT: the number of a prepared transaction has been on disk before it was
 * acknowledged, so that no crash makes the server hand it out again. A standby that was promoted without it does: on a later timeline
 * "committed" may be said of another transaction. ("aborted", of whichever, says that ours is not committed there.)
 */
#include "guard_pq_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct second_phase {
    const char *verb;
    const char *done; /* what pg_xact_status says of it afterwards */
    const char *name;
    char sql[480];
    char home[GUARD_PQ_HOME_MAX];
    uint64_t number; /* 0: it was not listed */
    guard_error error;
} second_phase;

/* ----------------------------------------------------------------------------------------- one connection -- */

/* The whole number of what is listed under the name; 0 where nothing is. 0, or the error's code. */
static int read_number(PGconn *conn, second_phase *p, guard_pq_deadline deadline, uint64_t *number)
{
    PGresult *rows = NULL;
    int code = guard_pq_query_on(conn,
                                 "SELECT transaction::text, pg_snapshot_xmax(pg_current_snapshot())::text FROM "
                                 "pg_prepared_xacts WHERE database = current_database() AND gid = $1",
                                 &p->name, deadline, &rows, &p->error);
    *number = 0;
    if (code == 0 && PQntuples(rows) == 1) {
        uint64_t low = strtoull(PQgetvalue(rows, 0, 0), NULL, 10);
        uint64_t next = strtoull(PQgetvalue(rows, 0, 1), NULL, 10);
        /* A number has 32 bits here, and lies within 2^31 of the next one, on either side: what is prepared is not completed. */
        *number = next + (uint64_t)(int64_t)(int32_t)((uint32_t)low - (uint32_t)next);
    }
    PQclear(rows);
    return code;
}

typedef enum found { FOUND_DONE, FOUND_OPPOSITE, FOUND_AGAIN, FOUND_NOTHING } found;

static found read_status(PGconn *conn, second_phase *p, guard_pq_deadline deadline)
{
    char sql[80];
    PGresult *rows = NULL;
    snprintf(sql, sizeof(sql), "SELECT pg_xact_status('%" PRIu64 "'::xid8)", p->number);
    int code = guard_pq_query_on(conn, sql, NULL, deadline, &rows, &p->error);
    const char *status = code == 0 && PQntuples(rows) == 1 ? PQgetvalue(rows, 0, 0) : "";
    found f = code != 0                            ? FOUND_AGAIN
              : strcmp(status, p->done) == 0       ? FOUND_DONE
              : strcmp(status, "in progress") == 0 ? FOUND_AGAIN
              : status[0] == '\0' /* forgotten */  ? FOUND_NOTHING
                                                   : FOUND_OPPOSITE;
    PQclear(rows);
    return f;
}

static found look(PGconn *conn, second_phase *p, guard_pq_deadline deadline)
{
    guard_pq_home home;
    uint64_t number;
    if (guard_pq_home_read(conn, deadline, &home, &p->error) != 0) {
        return FOUND_AGAIN;
    }
    if (home.standby || guard_pq_home_compare(p->home, &home) != GUARD_PQ_PLACE_SAME) {
        guard_error_set(&p->error, GUARD_PQ, GUARD_PQ_PLACE,
                        "this is a standby, an older history or another database than that of the transaction");
        return FOUND_AGAIN;
    }
    if (read_number(conn, p, deadline, &number) != 0) {
        return FOUND_AGAIN;
    }
    if (number != p->number) {
        found f = read_status(conn, p, deadline);
        int is_committed = f == (strcmp(p->done, "committed") == 0 ? FOUND_DONE : FOUND_OPPOSITE);
        if (is_committed && strcmp(p->home, home.text) != 0) {
            guard_error_set(&p->error, GUARD_PQ, GUARD_PQ_PLACE,
                            "the server was replaced: its transaction %" PRIu64 " may be another one", p->number);
            return FOUND_NOTHING;
        }
        return f;
    }
    /* Where the first one arrives yet, one of the two finds nothing, and that is asked next. */
    return guard_pq_query_on(conn, p->sql, NULL, deadline, NULL, &p->error) == 0 ? FOUND_DONE : FOUND_AGAIN;
}

/* ------------------------------------------------------------------------------------------------ resolving -- */

static found resolve(guard_pq *pq, second_phase *p)
{
    guard_pq_keywords keywords;
    guard_pq_deadline deadline = guard_pq_in(pq->options.resolve_ms);
    found f = FOUND_AGAIN;
    if (pq->conn == NULL || guard_pq_keywords_of(&keywords, pq->conn, &p->error) != 0) {
        return FOUND_NOTHING;
    }
    while (f == FOUND_AGAIN) {
        guard_pq_keywords copy = keywords;
        PGconn *conn = guard_pq_connect(&copy, deadline, &p->error);
        f = conn != NULL ? look(conn, p, deadline) : FOUND_AGAIN;
        PQfinish(conn);
        if (f == FOUND_AGAIN) {
            if (guard_pq_left(deadline) == 0) {
                break;
            }
            nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
        }
    }
    guard_pq_keywords_close(&keywords);
    return f;
}

/* The server's word that it was not done; anything else leaves it open. */
static int is_answered(guard_pq *pq, const guard_error *error)
{
    return guard_pq_status(pq) != GUARD_TX_LOST && error->domain == GUARD_PQ && error->sqlstate[0] != '\0' &&
           strncmp(error->sqlstate, "08", 2) != 0;
}

/* 0, or the error's code with p->error filled. */
static int settle(guard_pq *pq, second_phase *p)
{
    guard_error cause = p->error;
    found f = p->number != 0 ? resolve(pq, p) : FOUND_NOTHING;
    if (f == FOUND_DONE) {
        return 0;
    }
    guard_error last = p->error;
    if (f == FOUND_OPPOSITE) {
        guard_error_set(&p->error, GUARD_TX, GUARD_TX_ROLLED_BACK,
                        "the answer to %s was lost, and somebody has done the opposite", p->verb);
    } else {
        guard_error_set(&p->error, GUARD_TX, GUARD_TX_IN_DOUBT, "the answer to %s was lost", p->verb);
        guard_pq_text(p->error.hint, sizeof(p->error.hint), "While guard_pq_prepared_list has it, it is not done.");
    }
    guard_error_attach(&p->error, &cause, GUARD_CAUSE);
    if (f != FOUND_OPPOSITE && last.code != 0) {
        guard_error_attach(&p->error, &last, GUARD_ATTACHED);
    }
    return p->error.code;
}

static int run(guard_pq *pq, second_phase *p)
{
    if (guard_pq_is_dead(pq)) {
        return guard_pq_error_gone(&p->error);
    }
    guard_pq_deadline deadline = guard_pq_in(pq->options.commit_ms);
    int code = guard_pq_home_check(pq, &p->error);
    code = code != 0 ? code : read_number(pq->conn, p, deadline, &p->number);
    if (code != 0) {
        if (PQtransactionStatus(pq->conn) == PQTRANS_ACTIVE) {
            guard_pq_cut(pq);
        }
        return code; /* nothing was asked for yet */
    }
    memcpy(p->home, pq->home.text, sizeof(p->home));
    GUARD_AUTO(mask);
    guard_mask(mask); /* as COMMIT: once it is asked for, only commit_ms and resolve_ms count */
    code = guard_pq_query(pq, p->sql, pq->options.commit_ms, NULL, &p->error);
    return code == 0 || is_answered(pq, &p->error) ? code : settle(pq, p);
}

/* ------------------------------------------------------------------------------------------------ public -- */

static void end_prepared(guard_pq *pq, const char *verb, const char *done, const char *name, const guard_place *place)
{
    char literal[GUARD_PQ_NAME_LITERAL_MAX];
    guard_pq_call call;
    second_phase p = {.verb = verb, .done = done, .name = name};
    guard_pq_enter(pq, NULL, place);
    if (name == NULL || strnlen(name, 200) == 200) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "a prepared transaction's name has less than 200 bytes");
        return;
    }
    if (pq->conn != NULL && PQtransactionStatus(pq->conn) == PQTRANS_INTRANS) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "%s inside a transaction", verb);
        return;
    }
    guard_pq_call_begin(pq, &call);
    int code = pq->conn == NULL ? guard_pq_error_gone(&p.error)
                                : guard_pq_literal(pq->conn, literal, sizeof(literal), name, &p.error);
    if (code == 0) {
        snprintf(p.sql, sizeof(p.sql), "%s %s", verb, literal);
        code = run(pq, &p);
    }
    guard_pq_call_end(pq, &call);
    if (code != 0) {
        guard_impl_panic_error(place, &p.error);
    }
}

void guard_pq_prepared_commit_at(guard_pq *pq, const char *name, const guard_place *place)
{
    end_prepared(pq, "COMMIT PREPARED", "committed", name, place);
}

void guard_pq_prepared_rollback_at(guard_pq *pq, const char *name, const guard_place *place)
{
    end_prepared(pq, "ROLLBACK PREPARED", "aborted", name, place);
}

PGresult *guard_pq_prepared_list_at(guard_scope *scope, guard_pq *pq, const guard_place *place)
{
    return guard_pq_exec_at(scope, pq,
                            "SELECT gid AS name, owner, extract(epoch FROM now() - prepared)::bigint AS seconds "
                            "FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared",
                            place);
}
