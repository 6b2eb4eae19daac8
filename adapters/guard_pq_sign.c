/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_sign.c: is the transaction that is open still the one that was begun?
 *
 * ROLLBACK AND CHAIN begins another one in its place, and is answered as ROLLBACK TO a savepoint is: the tag ROLLBACK, and in a transaction. Of
 * what the guard sends itself the text is known. Of what the program sends by libpq it is not; so where the program has the connection a
 * transaction bears a sign, a setting of its own: ROLLBACK TO a savepoint that came later leaves it, the transaction's end takes it along.
 *
 * (Where the program gets the connection behind a savepoint, a ROLLBACK TO that is older takes the sign too; one of ours sets it again.)
 *
 *     BEGIN and the sign --ROLLBACK after a savepoint--> asked at COMMIT --it is there--> the same transaction
 *                                                            \---it is not, or there was none---> all is rolled back
 *
 * Rolled back is true of either: of what AND CHAIN has taken back, and of what the guard itself does. (RESET ALL takes the sign, too.)
 */
#include "guard_pq_internal.h"

#include <string.h>

/* AND CHAIN is as old as that. */
enum { SERVER_WITH_CHAIN = 120000 };

const char *guard_pq_sign_sql(guard_pq *pq)
{
    return PQserverVersion(pq->conn) >= SERVER_WITH_CHAIN ? GUARD_PQ_SIGN_SQL : NULL;
}

/* What failed here the next call finds too. */
void guard_pq_sign_now(guard_pq *pq)
{
    guard_error ignored;
    guard_pq_call call;
    if (pq->session.tx == NULL || pq->session.in_foreign || pq->flight != NULL || pq->pid != guard_pq_process() ||
        guard_pq_status(pq) != GUARD_TX_ACTIVE || PQtransactionStatus(pq->conn) != PQTRANS_INTRANS ||
        guard_pq_sign_sql(pq) == NULL || (pq->t.ended != GUARD_OPEN && pq->t.may_chain)) {
        return; /* the last: it may be another transaction's already */
    }
    GUARD_AUTO(mask);
    guard_mask(mask); /* a cancelled statement would abort the transaction */
    guard_pq_call_begin(pq, &call);
    int was_set = pq->t.was_set;
    pq->t.ended = GUARD_OPEN; /* all up to here was sent by us */
    pq->t.sign_inside = pq->t.savepoints;
    pq->t.has_sign = guard_pq_query(pq, GUARD_PQ_SIGN_SQL, pq->options.statement_ms, NULL, &ignored) == 0;
    pq->t.was_set = was_set;
    guard_pq_call_end(pq, &call);
}

static int is_there(guard_pq *pq, int *found, guard_error *error)
{
    PGresult *rows = NULL;
    int code = guard_pq_query(pq, "SELECT current_setting('guard.transaction', true)", pq->t.commit_ms, &rows, error);
    *found = code == 0 && PQntuples(rows) == 1 && strcmp(PQgetvalue(rows, 0, 0), "open") == 0;
    PQclear(rows);
    return code;
}

int guard_pq_sign_check(guard_pq *pq, guard_error *error)
{
    int found = 0;
    if ((!pq->watched && !pq->t.may_chain) || guard_pq_sign_sql(pq) == NULL) {
        pq->t.ended = GUARD_OPEN; /* all of it was sent by us, and none of it was AND CHAIN */
        return 0;
    }
    int code = pq->t.has_sign ? is_there(pq, &found, error) : 0;
    if (found) {
        pq->t.ended = GUARD_OPEN;
    } else if (code == 0) {
        guard_error_set(error, GUARD_TX, GUARD_TX_ROLLED_BACK,
                        pq->t.has_sign
                            ? "rolled back by ROLLBACK AND CHAIN of the program's own, and what came after it too"
                            : "rolled back, since a ROLLBACK after a savepoint may have been ROLLBACK AND CHAIN");
    }
    return found ? 0 : error->code;
}
