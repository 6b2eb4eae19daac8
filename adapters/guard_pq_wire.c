/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_wire.c: waiting with a deadline, and getting out of whatever is on the wire.
 *
 * libpq's own waits (PQexec, PQgetResult on a busy connection, a blocking PQflush) have no deadline: none of them is called before
 * poll has said that it will not wait.
 */
#include "guard_pq_internal.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

int64_t guard_pq_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

guard_pq_deadline guard_pq_in(int32_t ms)
{
    return ms < 0 ? GUARD_PQ_NEVER : guard_pq_now() + ms;
}

guard_pq_deadline guard_pq_sooner(guard_pq_deadline a, guard_pq_deadline b)
{
    return a < b ? a : b;
}

int guard_pq_left(guard_pq_deadline deadline)
{
    if (deadline == GUARD_PQ_NEVER) {
        return -1;
    }
    int64_t left = deadline - guard_pq_now();
    return left <= 0 ? 0 : left > INT32_MAX ? INT32_MAX : (int)left;
}

/* The wait is also over, as past the deadline, when the thread is cancelled or late; see guard_pq_error_timeout. */
int guard_pq_poll(PGconn *conn, short events, guard_pq_deadline deadline)
{
    struct pollfd entries[2] = {{.fd = PQsocket(conn), .events = events}, {.fd = -1, .events = POLLIN}};
    if (entries[0].fd < 0) {
        return 1; /* it has failed: libpq says so */
    }
    for (;;) {
        int64_t left = guard_remaining_ms(guard_pq_left(deadline));
        entries[1].fd = guard_cancel_descriptor();
        if (entries[1].fd < 0 && !guard_masked() && (left < 0 || left > GUARD_WAIT_SLICE_MS)) {
            left = GUARD_WAIT_SLICE_MS; /* there is no descriptor left */
        }
        int ready = poll(entries, 2, (int)(left > INT32_MAX ? INT32_MAX : left));
        if (entries[0].revents != 0 || (ready < 0 && errno != EINTR)) {
            return 1;
        }
        if (guard_checkpoint_error(NULL) != 0 || (ready == 0 && guard_pq_left(deadline) == 0)) {
            return 0;
        }
    }
}

int guard_pq_await(PGconn *conn, guard_pq_deadline deadline)
{
    for (;;) {
        /* A failing flush is kept by libpq until the server's last words have been read. */
        int unsent = PQflush(conn) == 1;
        if (!PQisBusy(conn) || PQstatus(conn) == CONNECTION_BAD) {
            return 1;
        }
        /* TLS may have bytes that poll does not see. */
        if (PQsslInUse(conn) && (!PQconsumeInput(conn) || !PQisBusy(conn))) {
            return 1;
        }
        if (!guard_pq_poll(conn, (short)(POLLIN | (unsent ? POLLOUT : 0)), deadline)) {
            return 0;
        }
        if (!PQconsumeInput(conn)) {
            return 1;
        }
    }
}

/*
 * Where the server has answered, nothing is left to send: it has all by then, or these are its last words. That is not so in a pipeline of the
 * program's; of a message (guard_pq_message.c) what is left is sent before the next answer is waited for.
 */
int guard_pq_await_answer(guard_pq *pq, guard_pq_deadline deadline)
{
    PGconn *conn = pq->conn;
    while (PQisBusy(conn)) {
        if (PQflush(conn) == 1) {
            return guard_pq_await(conn, deadline);
        }
        if (PQstatus(conn) == CONNECTION_BAD || (PQsslInUse(conn) && (!PQconsumeInput(conn) || !PQisBusy(conn)))) {
            return 1;
        }
        if (!guard_pq_wait(pq, deadline)) {
            return 0;
        }
        if (!PQconsumeInput(conn)) {
            return 1;
        }
    }
    return 1;
}

int guard_pq_flush(PGconn *conn, guard_pq_deadline deadline)
{
    while (PQflush(conn) == 1) {
        /* A server whose answers nobody reads stops reading. */
        if (!guard_pq_poll(conn, POLLIN | POLLOUT, deadline)) {
            return 0;
        }
        if (!PQconsumeInput(conn)) {
            return 1;
        }
    }
    return 1;
}

void guard_pq_cut(guard_pq *pq)
{
    pq->cut = 1;
    pq->message = 0;
    if (pq->conn == NULL || PQsocket(pq->conn) < 0) {
        return;
    }
    shutdown(PQsocket(pq->conn), SHUT_RDWR);
}

int guard_pq_is_dead(guard_pq *pq)
{
    if (pq->conn == NULL || pq->cut || PQstatus(pq->conn) == CONNECTION_BAD) {
        return 1;
    }
    if (guard_pq_is_quiet(pq)) {
        return 0;
    }
    struct pollfd entry = {.fd = PQsocket(pq->conn), .events = POLLIN};
    /* The end of the stream can lie behind a notice or the server's last words, in a second read. */
    for (int reads = 0; reads < 8 && poll(&entry, 1, 0) > 0; reads++) {
        if (!PQconsumeInput(pq->conn)) {
            return 1;
        }
        PQisBusy(pq->conn); /* parses what was read */
    }
    return pq->cut || PQstatus(pq->conn) == CONNECTION_BAD;
}

/* ---------------------------------------------------------------------------------------------- quiescing -- */

/* Rows of a COPY OUT, of which the cancelled server still sends some. 1 when they are over, 0 past the deadline. */
static int drop_copy_out(PGconn *conn, guard_pq_deadline deadline)
{
    for (;;) {
        char *row = NULL;
        int length = PQgetCopyData(conn, &row, 1);
        PQfreemem(row);
        if (length < 0) {
            return 1;
        }
        if (length == 0) {
            if (!guard_pq_poll(conn, POLLIN, deadline)) {
                return 0;
            }
            if (!PQconsumeInput(conn)) {
                return 1;
            }
        }
    }
}

#define COPY_GIVEN_UP "given up by the client"

static int end_copy_in(PGconn *conn, guard_pq_deadline deadline)
{
    int sent;
    while ((sent = PQputCopyEnd(conn, COPY_GIVEN_UP)) == 0) {
        if (!guard_pq_poll(conn, POLLIN | POLLOUT, deadline) || !PQconsumeInput(conn)) {
            return 0;
        }
    }
    return sent == 1 && guard_pq_flush(conn, deadline);
}

/* The first pause before a cancel is sent again, doubled after each. */
enum { FIRST_PAUSE_MS = 50, LAST_PAUSE_MS = 1000 };

static void cancel_once(guard_pq *pq, int *cancelled, guard_pq_deadline deadline)
{
    if (!*cancelled) {
        *cancelled = 1;
        guard_pq_canceller_send(pq->canceller, deadline);
    }
}

/*
 * A cancel takes another way to the server than the statement does: one that comes first finds the server idle and is lost. It is
 * sent again while no answer comes.
 */
static int await_cancelling(guard_pq *pq, int *cancelled, guard_pq_deadline deadline)
{
    int pause = FIRST_PAUSE_MS;
    while (PQisBusy(pq->conn)) {
        cancel_once(pq, cancelled, deadline);
        if (guard_pq_await(pq->conn, guard_pq_sooner(guard_pq_in(pause), deadline))) {
            return 1;
        }
        if (guard_pq_left(deadline) == 0) {
            return 0;
        }
        *cancelled = 0;
        pause = pause * 2 < LAST_PAUSE_MS ? pause * 2 : LAST_PAUSE_MS;
    }
    return guard_pq_await(pq->conn, deadline);
}

typedef struct draining {
    int cancelled;
    int ended_copy; /* a COPY IN */
    int took_end;   /* the server says that this is what it failed for */
} draining;

/* The CopyFail of end_copy_in was read. */
static int is_given_up(const PGresult *result)
{
    const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);
    const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
    return sqlstate != NULL && strcmp(sqlstate, "57014") == 0 && message != NULL &&
           strstr(message, COPY_GIVEN_UP) != NULL;
}

/* One step of draining: 1 to go on, 0 when nothing is left, -1 past the deadline. */
static int drain_step(guard_pq *pq, draining *d, guard_pq_deadline deadline)
{
    PGconn *conn = pq->conn;
    if (!await_cancelling(pq, &d->cancelled, deadline)) {
        return -1;
    }
    PGresult *result = guard_pq_get_result(pq);
    ExecStatusType status = PQresultStatus(result);
    int more = result != NULL;
    d->took_end |= is_given_up(result);
    /* The server's errors have one. libpq's own word is that the answer is lost, though libpq 15 may call the connection good. */
    int lost = status == PGRES_FATAL_ERROR && more && PQresultErrorField(result, PG_DIAG_SQLSTATE) == NULL;
    PQclear(result);
    if (lost) {
        return -1;
    }
    switch (more ? status : PGRES_EMPTY_QUERY) {
    case PGRES_COPY_IN:
        d->ended_copy = 1;
        d->cancelled = 1; /* not at once: this ends it, where the server reads */
        return end_copy_in(conn, deadline) ? 1 : -1;
    case PGRES_COPY_OUT:
        cancel_once(pq, &d->cancelled, deadline);
        return drop_copy_out(conn, deadline) ? 1 : -1;
    case PGRES_COPY_BOTH:
        return -1; /* replication: there is no orderly way out from here */
    default:
        return more;
    }
}

/*
 * Whether the next answer is the next question's. A COPY IN by the extended protocol has a Sync behind it, and another one behind its end. A
 * server that is copying ignores the former; one that fails before it has read that far answers both, and each question from then on would have
 * the answer of the one before. Every question has a result, be it an error; that answer has none.
 */
static int is_in_step(guard_pq *pq, guard_pq_deadline deadline)
{
    int results = 0;
    if (!PQsendQuery(pq->conn, "SELECT 1")) {
        return 0;
    }
    for (;;) {
        if (!guard_pq_await(pq->conn, deadline)) {
            return 0;
        }
        PGresult *result = PQgetResult(pq->conn);
        if (result == NULL) {
            return results > 0;
        }
        results++;
        PQclear(result);
    }
}

static int drain(guard_pq *pq, guard_pq_deadline deadline)
{
    draining d = {0, 0, 0};
    int step;
    do {
        step = PQstatus(pq->conn) == CONNECTION_BAD ? -1 : drain_step(pq, &d, deadline);
    } while (step > 0);
    if (PQstatus(pq->conn) == CONNECTION_BAD) {
        step = -1; /* a wire that broke may end the results without an error among them */
    }
    pq->outside &= step != 0; /* it was answered */
    if (step == 0 && d.ended_copy && !d.took_end && !is_in_step(pq, deadline)) {
        guard_pq_cut(pq); /* it looks at rest to whoever asks next */
        step = -1;
    }
    return step == 0;
}

/*
 * A pipeline: everything up to a sync of ours. How many syncs of the program's own are before it is not known, so libpq is asked
 * after each result whether the pipeline can be left. NULL only separates the statements.
 */
static int drain_pipeline(guard_pq *pq, guard_pq_deadline deadline)
{
    PGconn *conn = pq->conn;
    int cancelled = 0;
    if (PQexitPipelineMode(conn)) {
        return 1;
    }
    if (!PQpipelineSync(conn)) {
        return 0;
    }
    while (PQstatus(conn) != CONNECTION_BAD) {
        if (!await_cancelling(pq, &cancelled, deadline)) {
            return 0;
        }
        PGresult *result = guard_pq_get_result(pq);
        int left = (result == NULL || PQresultStatus(result) == PGRES_PIPELINE_SYNC) && PQexitPipelineMode(conn);
        PQclear(result);
        if (left) {
            return 1;
        }
    }
    return 0;
}

int guard_pq_quiesce(guard_pq *pq, guard_pq_deadline deadline)
{
    GUARD_AUTO(mask);
    guard_mask(mask);
    pq->message = 0;
    if (pq->flight != NULL) {
        guard_pq_flight_over(pq->flight);
    }
    if (pq->conn == NULL || pq->cut || PQstatus(pq->conn) == CONNECTION_BAD) {
        return 0;
    }
    if (PQpipelineStatus(pq->conn) != PQ_PIPELINE_OFF && !drain_pipeline(pq, deadline)) {
        return 0;
    }
    if (PQstatus(pq->conn) == CONNECTION_BAD) {
        return 0;
    }
    pq->outside &= PQtransactionStatus(pq->conn) == PQTRANS_ACTIVE; /* a pipeline was answered */
    return PQtransactionStatus(pq->conn) != PQTRANS_ACTIVE || drain(pq, deadline);
}
