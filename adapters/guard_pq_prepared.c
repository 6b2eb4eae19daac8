/* SPDX-License-Identifier: MIT */
/* guard_pq_prepared.c: the second phase of transactions that were prepared. */
#include "guard_pq_internal.h"

#include <stdio.h>
#include <string.h>

static void end_prepared(guard_pq *pq, const char *verb, const char *name, const guard_place *place)
{
    char literal[416];
    char sql[480];
    guard_error error;
    guard_pq_call call;
    guard_pq_enter(pq, NULL, place);
    if (name == NULL || strnlen(name, 200) == 200 || !guard_pq_literal(literal, sizeof(literal), name)) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "a prepared transaction's name has less than 200 bytes");
        return;
    }
    if (pq->conn != NULL && PQtransactionStatus(pq->conn) == PQTRANS_INTRANS) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "%s inside a transaction", verb);
        return;
    }
    snprintf(sql, sizeof(sql), "%s %s", verb, literal);
    guard_pq_call_begin(pq, &call);
    int dead = guard_pq_is_dead(pq);
    int code = guard_pq_query(pq, sql, pq->options.commit_ms, NULL, &error);
    guard_pq_call_end(pq, &call);
    if (code == 0) {
        return;
    }
    if (!dead && guard_pq_status(pq) == GUARD_TX_LOST) {
        guard_error cause = error;
        guard_error_set(&error, GUARD_TX, GUARD_TX_IN_DOUBT, "the answer to %s was lost", verb);
        guard_pq_text(error.hint, sizeof(error.hint), "It is done if it is no longer in guard_pq_prepared_list.");
        guard_error_attach(&error, &cause, GUARD_CAUSE);
    }
    guard_impl_panic_error(place, &error);
}

void guard_pq_prepared_commit_at(guard_pq *pq, const char *name, const guard_place *place)
{
    end_prepared(pq, "COMMIT PREPARED", name, place);
}

void guard_pq_prepared_rollback_at(guard_pq *pq, const char *name, const guard_place *place)
{
    end_prepared(pq, "ROLLBACK PREPARED", name, place);
}

PGresult *guard_pq_prepared_list_at(guard_scope *scope, guard_pq *pq, const guard_place *place)
{
    return guard_pq_exec_at(scope, pq,
                            "SELECT gid AS name, owner, extract(epoch FROM now() - prepared)::bigint AS seconds "
                            "FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared",
                            place);
}
