/* SPDX-License-Identifier: MIT */
/*
 * guard_pq.c: connections.
 *
 *     open:  connecting -----------> at rest <--------------------------------> in use (flight, transaction)
 *     adopt: the program's own ----/    |                                              |
 *                                       |--scope closes: flight ended, rolled back ----'--> closed, or the program's again
 *                                       '--cut: past a deadline, or an answer was lost; dead from here on
 *     in a forked child: nothing is sent; its copy of the socket is /dev/null
 *
 * Invariants
 *   - conn is NULL only when the program closed an adopted connection behind the guard's back.
 *   - flight is what is on the wire besides single statements; there is one at most.
 *   - A connection that the program does not have is in non-blocking mode all the time.
 */
#include "guard_pq_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ------------------------------------------------------------------------------------------------ making -- */

int guard_pq_options_check(const guard_pq_options *o, const guard_place *place)
{
    uint32_t reserved = 0;
    if (o == NULL) {
        return 0;
    }
    for (size_t i = 0; i < sizeof(o->reserved) / sizeof(o->reserved[0]); i++) {
        reserved |= o->reserved[i];
    }
    if (reserved != 0 || o->zero != 0 || o->connect_ms < -1 || o->statement_ms < -1 || o->commit_ms < -1 ||
        o->resolve_ms < -1 || o->rollback_ms < -1 || o->check_ms < -1 || o->idle_ms < -1 ||
        o->marker < GUARD_PQ_MARKER_NONE || o->marker > GUARD_PQ_MARKER_ROW || o->pooler < GUARD_PQ_POOLER_ASK ||
        o->pooler > GUARD_PQ_POOLER_TRANSACTION) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "connection options out of range (reserved words must be 0)");
        return 1;
    }
    if (o->marker_table != NULL && !guard_pq_table_is_plain(o->marker_table)) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "marker_table is not a plain table or schema.table");
        return 1;
    }
    return 0;
}

static void set_options(guard_pq *pq, const guard_pq_options *options)
{
    guard_pq_options *o = &pq->options;
    if (options != NULL) {
        *o = *options;
    }
    o->connect_ms = guard_pq_or(o->connect_ms, 10000);
    o->statement_ms = guard_pq_or(o->statement_ms, 30000);
    o->commit_ms = guard_pq_or(o->commit_ms, 30000);
    o->resolve_ms = guard_pq_or(o->resolve_ms, 10000);
    o->rollback_ms = guard_pq_or(o->rollback_ms, 5000);
    o->check_ms = guard_pq_or(o->check_ms, 2000);
    o->idle_ms = guard_pq_or(o->idle_ms, 600000);
    o->marker = o->marker == GUARD_PQ_MARKER_DEFAULT ? GUARD_PQ_MARKER_NONE : o->marker;
    snprintf(pq->table, sizeof(pq->table), "%s", o->marker_table != NULL ? o->marker_table : "public.guard_marker");
    o->marker_table = pq->table;
    pq->pooler = (uint8_t)o->pooler;
}

/* 0; else the error's code, and *conn is still the caller's. */
static int wrap(guard_pq **made, PGconn *conn, int adopted, const guard_pq_options *options, guard_error *error)
{
    guard_pq *pq = calloc(1, sizeof(*pq));
    if (pq != NULL) {
        pq->conn = conn;
        pq->adopted = (uint8_t)adopted;
        pq->pid = guard_pq_process();
        pq->wire = guard_pq_wire_new();
        set_options(pq, options);
        guard_tx_session_open(&pq->session, &guard_pq_driver, pq);
        pq->canceller = guard_pq_canceller_open(conn);
    }
    if (pq != NULL && pq->canceller == NULL && PQstatus(conn) != CONNECTION_OK) {
        free(pq);
        return guard_pq_error_conn(conn, error, "adopting a connection that is not open");
    }
    if (pq == NULL || pq->canceller == NULL || (adopted && !guard_pq_watch_begin(pq))) {
        guard_pq_canceller_close(pq != NULL ? pq->canceller : NULL);
        free(pq);
        guard_error_set(error, GUARD_MEMORY, ENOMEM, "out of memory for a connection's guard");
        return error->code;
    }
    *made = pq;
    return 0;
}

/*
 * One round trip: are we alone with the server, and if so, the two settings that end what we left behind, unless somebody has set
 * them. Behind a pooler they would stay with a connection that is others' too. An engine without pg_settings answers with
 * an error, which changes nothing.
 */
int guard_pq_introduce(guard_pq *pq, guard_pq_deadline deadline, guard_error *error)
{
    char sql[GUARD_PQ_SQL_MAX];
    PGresult *result = NULL;
    const guard_pq_options *o = &pq->options;
    int pid = PQbackendPID(pq->conn);
    snprintf(sql, sizeof(sql),
             "SELECT pg_backend_pid() = %d, CASE WHEN pg_backend_pid() = %d THEN (SELECT count(set_config(name, "
             "CASE name WHEN 'client_connection_check_interval' THEN '%d' ELSE '%d' END, false)) FROM pg_settings "
             "WHERE source = 'default' AND (name = 'client_connection_check_interval' AND %d >= 0 "
             "OR name = 'idle_in_transaction_session_timeout' AND %d >= 0)) END",
             pid, pid, (int)o->check_ms, (int)o->idle_ms, (int)o->check_ms, (int)o->idle_ms);
    pq->unset = 0;
    int code = guard_pq_query_on(pq->conn, sql, NULL, deadline, &result, error);
    if (code == 0 && PQntuples(result) == 1 && pq->pooler == GUARD_PQ_POOLER_ASK) {
        int alone = strcmp(PQgetvalue(result, 0, 0), "t") == 0;
        pq->pooler = alone ? GUARD_PQ_POOLER_NONE : GUARD_PQ_POOLER_TRANSACTION;
    }
    PQclear(result);
    if (code == 0 || PQtransactionStatus(pq->conn) == PQTRANS_IDLE) {
        return 0;
    }
    if (error->domain == GUARD_TIMEOUT) {
        guard_error_set(error, GUARD_TIMEOUT, ETIMEDOUT, "connecting to %s, port %s, took too long", PQhost(pq->conn),
                        PQport(pq->conn));
    }
    return error->code;
}

guard_pq *guard_pq_make(const char *conninfo, const guard_pq_options *options, guard_error *error)
{
    guard_pq_keywords keywords;
    guard_pq *pq = NULL;
    guard_pq_deadline deadline = guard_pq_in(options != NULL && options->connect_ms != 0 ? options->connect_ms : 10000);
    if (guard_pq_keywords_parse(&keywords, conninfo, error) == 0) {
        PGconn *conn = guard_pq_connect(&keywords, deadline, error);
        if (conn != NULL && wrap(&pq, conn, 0, options, error) != 0) {
            PQfinish(conn);
        }
    }
    guard_pq_keywords_close(&keywords);
    if (pq != NULL) {
        pq->opened_ms = guard_pq_now();
        pq->receiver = PQsetNoticeReceiver(pq->conn, guard_pq_watch_notice, pq);
        if (guard_pq_introduce(pq, deadline, error) != 0) {
            guard_pq_free(pq);
            pq = NULL;
        }
    }
    return pq;
}

guard_pq *guard_pq_make_around(PGconn *raw, const guard_pq_options *options, guard_error *error)
{
    guard_pq *pq = NULL;
    wrap(&pq, raw, 1, options, error);
    return pq;
}

void guard_pq_free(guard_pq *pq)
{
    if (pq->conn != NULL) {
        guard_pq_watch_end(pq);
        if (!pq->adopted) {
            PQfinish(pq->conn);
        }
    }
    guard_pq_canceller_close(pq->canceller);
    free(pq);
}

/* ------------------------------------------------------------------------------------------------- calls -- */

/*
 * libpq sends what it has buffered (of a COPY of the program's own) before it leaves its blocking mode, and waits for that as long as it takes. A socket
 * that poll calls writable has room for it.
 */
static __attribute__((noinline)) void set_nonblocking(guard_pq *pq)
{
    GUARD_AUTO(mask);
    guard_mask(mask);
    pq->blocking = 1;
    if (PQtransactionStatus(pq->conn) == PQTRANS_ACTIVE &&
        !guard_pq_poll(pq->conn, POLLOUT, guard_pq_in(pq->options.rollback_ms))) {
        guard_pq_cut(pq);
    }
    PQsetnonblocking(pq->conn, 1);
}

static __attribute__((noinline)) void begin_watched(guard_pq *pq)
{
    guard_pq_watch_wire(pq);
    if (pq->conn != NULL && !PQisnonblocking(pq->conn)) {
        set_nonblocking(pq);
    }
}

static __attribute__((noinline)) void end_watched(guard_pq *pq)
{
    guard_pq_watch_loss(pq);
    /* Not possible while something is unsent; then the next call sees to it. */
    if (pq->blocking && pq->conn != NULL && PQsetnonblocking(pq->conn, 0) == 0) {
        pq->blocking = 0;
    }
}

void guard_pq_call_begin(guard_pq *pq, guard_pq_call *call)
{
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &call->cancel_state);
    if (GUARD_IMPL_UNLIKELY(pq->watched)) {
        begin_watched(pq);
    }
}

void guard_pq_call_end(guard_pq *pq, guard_pq_call *call)
{
    if (GUARD_IMPL_UNLIKELY(pq->watched)) {
        end_watched(pq);
    }
    pthread_setcancelstate(call->cancel_state, NULL);
}

int guard_pq_disown_in_child(guard_pq *pq)
{
    if (GUARD_IMPL_LIKELY(pq->pid == guard_pq_process())) {
        return 0;
    }
    /* Never closed: the number would be used again, and libpq would write to what has it. */
    int socket = pq->conn != NULL ? PQsocket(pq->conn) : -1;
    int null = socket >= 0 ? open("/dev/null", O_RDWR | O_CLOEXEC) : -1;
    if (null >= 0) {
        dup3(null, socket, O_CLOEXEC);
        close(null);
    }
    return 1;
}

void guard_pq_check(guard_pq *pq, const guard_pq_flight *flight, const guard_place *place)
{
    guard_raise_held();
    if (GUARD_IMPL_UNLIKELY(pq == NULL)) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the connection is NULL, or what was opened on it has ended");
        guard_impl_panic(place, GUARD_MISUSE, GUARD_MISUSE_ARGUMENT, "no connection");
    }
    if (GUARD_IMPL_UNLIKELY(pq->pid != guard_pq_process())) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "the connection belongs to the parent process");
        guard_impl_panic(place, GUARD_MISUSE, GUARD_MISUSE_STATE, "no connection");
    }
    if (pq->session.tx != NULL) {
        guard_tx_status status = guard_pq_status(pq);
        if (GUARD_IMPL_UNLIKELY(status == GUARD_TX_IDLE)) {
            guard_tx_refuse(&pq->session, place);
        }
    }
    if (GUARD_IMPL_UNLIKELY(pq->flight != flight)) {
        static const char *const kinds[] = {"COPY IN", "COPY OUT", "stream", "pipeline"};
        guard_impl_panic(place, GUARD_PQ, GUARD_PQ_BUSY, "a %s is open on the connection",
                         pq->flight != NULL ? kinds[pq->flight->kind] : "pipeline of another kind");
    }
    guard_impl_checkpoint(place);
}

void guard_pq_enter(guard_pq *pq, const guard_pq_flight *flight, const guard_place *place)
{
    guard_pq_check(pq, flight, place);
    if (guard_pq_is_unsent(pq)) {
        guard_pq_begin_or_panic(pq, place);
    }
}

/* ------------------------------------------------------------------------------------------------ opening -- */

static guard_pq *give_to(guard_scope *scope, guard_pq *pq, const guard_error *error, const guard_place *place)
{
    if (pq == NULL) {
        guard_impl_panic_error(place, error);
    }
    pq->since = guard_dump_clock();
    pq->ticket = guard_impl_defer_kind(scope, &guard_pq_kind, pq, place);
    return pq;
}

guard_pq *guard_pq_open_at(guard_scope *scope, const char *conninfo, const guard_pq_options *options,
                           const guard_place *place)
{
    guard_error error;
    int state;
    if (conninfo == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the connection text is NULL");
        return NULL;
    }
    if (guard_pq_options_check(options, place)) {
        return NULL;
    }
    guard_raise_held();
    guard_reserve(scope, 1);
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    guard_pq *pq = guard_pq_make(conninfo, options, &error);
    pthread_setcancelstate(state, NULL);
    return give_to(scope, pq, &error, place);
}

guard_pq *guard_pq_adopt_at(guard_scope *scope, PGconn *raw, const guard_pq_options *options, const guard_place *place)
{
    guard_error error;
    if (raw == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the connection is NULL");
        return NULL;
    }
    if (guard_pq_options_check(options, place)) {
        return NULL;
    }
    guard_raise_held();
    guard_reserve(scope, 1);
    return give_to(scope, guard_pq_make_around(raw, options, &error), &error, place);
}

/* ------------------------------------------------------------------------------------------------ closing -- */

static void close_session(void *arg)
{
    guard_tx_session_close(arg);
}

int guard_pq_end_session(guard_pq *pq, guard_error *error)
{
    guard_pq_call call;
    guard_pq_call_begin(pq, &call);
    if (pq->flight != NULL) {
        guard_pq_quiesce(pq, guard_pq_in(pq->options.rollback_ms));
    }
    guard_pq_call_end(pq, &call);
    return guard_run(close_session, &pq->session, error) != 0;
}

static void release_connection(void *object)
{
    guard_pq *pq = object;
    guard_error error;
    guard_pq_call call;
    if (pq->flight != NULL && pq->pid != guard_pq_process()) {
        guard_pq_flight_over(pq->flight);
    }
    if (guard_pq_disown_in_child(pq)) {
        return; /* its memory stays: whatever libpq does to free it may be said to the server */
    }
    if (pq->pool != NULL) {
        guard_pq_pool_give(pq->pool, pq);
        return;
    }
    int failed = guard_pq_end_session(pq, &error);
    guard_error unlocked;
    if (guard_pq_locks_release(pq, &unlocked) != 0 && pq->adopted && !failed) {
        error = unlocked; /* where the session ends, its locks do */
        failed = 1;
    }
    guard_pq_call_begin(pq, &call);
    guard_pq_marks_close(pq, guard_pq_in(pq->options.rollback_ms));
    guard_pq_call_end(pq, &call);
    guard_pq_free(pq);
    if (failed) {
        guard_panic_error(&error);
    }
}

/* In fork: a child that lives long would keep the socket open, and the server would not see its client die. */
static void disown(void *object)
{
    guard_pq_disown_in_child(object);
}

static int64_t connection_since(const void *object)
{
    return ((const guard_pq *)object)->since;
}

static size_t describe(const void *object, char *text, size_t size)
{
    return guard_pq_driver.describe(object, text, size);
}

const guard_kind guard_pq_kind = {
    .name = "PostgreSQL connection",
    .release = release_connection,
    .child = disown,
    .describe = describe,
    .since = connection_since,
    .action = "close",
    .flags = GUARD_KIND_HEAP | GUARD_KIND_FIXED | GUARD_KIND_AT_FORK,
};

void guard_pq_close(guard_pq *pq)
{
    if (guard_pq_is_given(pq)) {
        guard_release(pq->ticket);
    }
}

/* ------------------------------------------------------------------------------------------------- asking -- */

PGconn *guard_pq_raw(guard_pq *pq)
{
    if (!guard_pq_is_given(pq)) {
        return NULL;
    }
    /* What the program runs on it from now on is in the transaction, and not on its own. */
    if (guard_pq_is_unsent(pq) && pq->pid == guard_pq_process()) {
        guard_pq_begin_or_panic(pq, GUARD_HERE);
    }
    if (pq->session.tx != NULL && pq->t.begin == GUARD_PQ_UNBEGUN && pq->pid == guard_pq_process()) {
        guard_tx_refuse(&pq->session, GUARD_HERE);
    }
    if (pq->conn != NULL && !pq->watched) {
        if (!guard_pq_watch_begin(pq)) {
            guard_panic_in(GUARD_MEMORY, ENOMEM,
                           "out of memory for looking after the program's own use of a connection");
        }
        guard_pq_sign_now(pq);
    }
    return pq->conn;
}

guard_pq *guard_pq_of(guard_tx *tx)
{
    return guard_tx_connection(tx);
}

int32_t guard_pq_statement_ms(guard_pq *pq, int32_t ms)
{
    if (!guard_pq_is_given(pq)) {
        return 0;
    }
    int32_t former = pq->options.statement_ms;
    pq->options.statement_ms = guard_pq_or(ms, 30000);
    return former;
}

int64_t guard_pq_changes(guard_pq *pq)
{
    return guard_pq_is_given(pq) ? pq->changes : 0;
}

const char *guard_pq_error_context(guard_pq *pq)
{
    return guard_pq_is_given(pq) ? pq->context : "";
}
