/* SPDX-License-Identifier: MIT */
/*
 * guard_pq.h: guarded PostgreSQL connections, results and transactions whose outcome is always true, and a pool.
 *
 * PURPOSE
 *
 *   A connection, a result, a COPY, a stream of rows, a pipeline, a lock and a transaction each belong to a scope and end with it,
 *   whatever the way out is and whatever is in flight, in bounded time. A call that cannot do its work panics with the
 *   server's own error. How a transaction ended is always known and true, see tx.h: also when the answer to COMMIT is lost.
 *
 * CALLING SEQUENCE
 *
 *     static void transfer(guard_tx *tx, void *arg)
 *     {
 *         const char *values[] = {"100", "alice"};
 *         guard_pq_params params = {.count = 2, .values = values};
 *         guard_pq_exec_params(NULL, guard_pq_of(tx), "UPDATE account SET money = money - $1 WHERE name = $2", &params);
 *         ...
 *     }
 *
 *     guard_pq *pq = guard_pq_open(s, "host=db1,db2 dbname=ledger target_session_attrs=read-write", NULL);
 *     guard_outcome outcome = guard_pq_transact(pq, transfer, NULL, NULL, &result);    // the border form
 *
 *     guard_tx *tx = guard_pq_begin(s, pq, NULL);                                      // or the scope form
 *     PGresult *rows = guard_pq_exec(s, pq, "SELECT name, money FROM account");
 *     guard_tx_commit(tx);
 *
 *   A program with a PGconn of its own uses guard_pq_adopt, or guard_pq_transact_raw for one transaction. The connection is left
 *   as it was: its notice processor, its blocking mode and its settings are not touched. (libpq cannot take an event procedure off
 *   again: ours stays, inert.)
 *
 * ERRORS
 *
 *   Domain GUARD_PQ, code a guard_pq_code; sqlstate, message, detail, hint and constraint as the server gave them. A
 *   deadline that passed is domain GUARD_TIMEOUT. No text of this library holds a password: connections are described from
 *   PQconninfo without the fields that libpq marks as secret, and the password is struck out of libpq's own messages.
 *
 *   The first error of a transaction is remembered even where the program swallows it, also on the raw PGconn (libpq-events): a
 *   COMMIT that the server answers with ROLLBACK is ROLLED_BACK with that error, not with 25P02.
 *
 *   End transactions by tx.h only. COMMIT, ROLLBACK AND CHAIN and the like in SQL of the program's own are seen by their answers: the
 *   outcome is that of the first, with GUARD_NOTE_ENDED_ELSEWHERE, and what was opened after it is not touched. When such an answer is lost the
 *   outcome is IN_DOUBT, unless a probe finds it; and so it is on an adopted connection where BEGIN follows ROLLBACK, or ROLLBACK TO, after a
 *   savepoint. Of what the program sends by libpq itself nobody knows the text: where that was not answered when the connection was lost, or the
 *   program has closed (PQfinish) or reset it in the transaction, it may have been COMMIT. ROLLBACK AND CHAIN after a savepoint, which is
 *   answered as ROLLBACK TO is, is told by the text, or by a setting that the transaction bears where the program has the connection: COMMIT
 *   then takes back what came after it too. After a ROLLBACK of libpq's that may have been one, a COMMIT of libpq's is in doubt. Where the setting
 *   is missing (RESET ALL, or the connection was first asked for while the transaction was aborted) any ROLLBACK TO of libpq's leads to
 *   ROLLED_BACK. One of them cannot be seen: with client_min_messages above warning, a BEGIN that begins nothing, after ROLLBACK TO by libpq
 *   itself or in the same text (taken for one after ROLLBACK).
 *
 * COMMIT
 *
 *   COMMITTED    the server answered COMMIT with the tag COMMIT.
 *   ROLLED_BACK  it answered with an error or the tag ROLLBACK; or the connection was dead before COMMIT was sent, with nothing on it that
 *                may have been one; or it was resolved to that.
 *   The answer is lost (the wire, the server or the memory failed, or commit_ms passed): the outcome is found on a new
 *   connection within resolve_ms, or is IN_DOUBT and found later by guard_pq_resolve. What can be found depends on the marker:
 *
 *     marker   more round trips* more rows                        a lost answer becomes
 *     NONE     none              none                             IN_DOUBT for good
 *     STATUS   1, before COMMIT  none                             ROLLED_BACK, or IN_DOUBT with GUARD_NOTE_STATUS_ONLY; see below
 *     ROW      none              1 inserted, 1 deleted for each   COMMITTED or ROLLED_BACK
 *                                COMMIT; 1 stays per connection
 *     PROBE    none              none (an advisory lock)          COMMITTED or ROLLED_BACK
 *
 *   * All but NONE ask once for each connection which server, database and timeline it is, and ROW for the table. A token says so, and
 *   nothing but a row that is there is believed elsewhere: not on another cluster or database, a standby, a primary that was replaced,
 *   nor from a marker table that was emptied, restored or made anew. (A copy of the whole cluster that took part in writing, on
 *   the same timeline, cannot be told from it.) Then it stays IN_DOUBT with GUARD_PQ_PLACE.
 *
 *   STATUS asks pg_xact_status. "aborted" is proof. "committed" is not: after a crash the server hands the number of a lost
 *   transaction to another one (https://www.postgresql.org/docs/15/functions-info.html#FUNCTIONS-PG-SNAPSHOT).
 *   ROW writes (session, seq) into a table in the same message as COMMIT. The resolver writes the same key: it waits for the old
 *   transaction, then finds its row or has fenced it, so that a COMMIT that arrives later fails on the key. On a connection that the
 *   library opened, with no pooler between, its statement and COMMIT are prepared once, as guard_marker_put and guard_marker_commit, and go in one
 *   message of the extended protocol. A program that takes them away (DEALLOCATE, DISCARD ALL) only makes COMMIT slower; where a function of the
 *   server does it, unseen, the next COMMIT is ROLLED_BACK with 26000, and the border form runs the body again.
 *   A rule or a BEFORE INSERT trigger on that table could keep the row out: BEGIN panics with GUARD_PQ_MARKER, and where one comes later, the session's
 *   next BEGIN after a COMMIT whose row it has kept out panics so. A row that is not there proves no rollback while there is one, or where there has been
 *   one since the session began; the server keeps that in mind until the table is vacuumed. (Not seen: one that was put there, dropped and vacuumed
 *   away between COMMIT and the first try to resolve it, or comes between that and a COMMIT which arrives late.)
 *   PROBE runs a query of the caller's, which finds a row exactly when the transaction was committed, once the transaction is
 *   known to be over: it holds an advisory lock from its BEGIN on, which the resolver takes first. It is asked in a new session, of which only the
 *   client's encoding is set as in this one: what it names is to be found there too, whatever search_path, role or time zone is set here.
 *   READ ONLY transactions write no marker; their lost answer is IN_DOUBT, with GUARD_NOTE_NO_ROW_WRITTEN on a standby and from PostgreSQL 16 on.
 *   A primary before that takes large objects in them (lo_put and the like): the note is told only with STATUS, which asks for the transaction's
 *   number. With STATUS the note is that of any transaction that has none. A NOTIFY may have been sent, and another server may have rows (a
 *   foreign table, dblink). One that was made READ WRITE by SET TRANSACTION is seen as that.
 *
 *   A resolved COMMITTED has GUARD_NOTE_LOCAL_ONLY where the server has synchronous_standby_names: what they have is not known.
 *
 *   A transaction in doubt is never run again.
 *
 * ROLLBACK
 *
 *   Takes at most rollback_ms: a COPY is ended, a pipeline synced and drained, a stream or a running query cancelled and drained. Past
 *   that the socket is shut, so that the server rolls back by itself; the outcome is ROLLED_BACK and the connection poisoned.
 *
 * THREADS
 *
 *   A connection is used by one thread at a time. guard_pq_cancel may be called by any thread while the connection is open. A pool
 *   is used by any number of threads. After fork a child has no connection: using the parent's is misuse and sends nothing.
 *   A thread that has waited for a server keeps two descriptors until its end (epoll(7), timerfd_create(2)); without them it polls.
 *
 * LIMITS
 *
 *   Host names are looked up by libpq, which waits as long as the resolver library does; give hostaddr to avoid that.
 */
#ifndef GUARD_PQ_H
#define GUARD_PQ_H

#include <guard/guard.h>
#include <guard/tx.h>
#include <libpq-fe.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct guard_pq guard_pq;
typedef struct guard_pq_copy guard_pq_copy;
typedef struct guard_pq_stream guard_pq_stream;
typedef struct guard_pq_pipeline guard_pq_pipeline;
typedef struct guard_pq_pool guard_pq_pool;

/* The codes of domain GUARD_PQ. */
typedef enum guard_pq_code {
    GUARD_PQ_SERVER =
        1, /* the server's error; sqlstate says which (https://www.postgresql.org/docs/15/errcodes-appendix.html) */
    GUARD_PQ_CONNECTION = 2, /* the connection could not be made, or is lost */
    GUARD_PQ_CLIENT = 3,     /* libpq itself could not do it */
    GUARD_PQ_BUSY = 4,       /* a COPY, a stream, a pipeline or a query is not at its end */
    GUARD_PQ_ANSWER = 5,     /* an answer that the call cannot take, such as that of a COPY to guard_pq_exec */
    GUARD_PQ_POOLER = 6,     /* refused behind a pooler that gives each transaction another server connection */
    GUARD_PQ_MARKER = 7,     /* the marker table is missing, may not be used or may keep a row out */
    GUARD_PQ_TOKEN = 8,      /* not a token of guard_result, or a probe is needed to resolve it */
    GUARD_PQ_PLACE =
        9 /* resolving: another server, database or marker table than the transaction's, or an older history */
} guard_pq_code;

/* ----------------------------------------------------------------------------------------------- connections -- */

/* How a lost answer to COMMIT is resolved; see COMMIT above. */
typedef enum guard_pq_marker {
    GUARD_PQ_MARKER_NONE = -1,   /* not at all */
    GUARD_PQ_MARKER_DEFAULT = 0, /* of a connection: NONE; of a transaction: the connection's */
    GUARD_PQ_MARKER_STATUS = 1,
    GUARD_PQ_MARKER_ROW = 2,
    GUARD_PQ_MARKER_PROBE = 3 /* of a transaction only, with guard_pq_tx_options.probe */
} guard_pq_marker;

/* What stands between us and the server. */
typedef enum guard_pq_pooler {
    GUARD_PQ_POOLER_ASK = 0,        /* found out: behind a pooler PQbackendPID is not pg_backend_pid() */
    GUARD_PQ_POOLER_NONE = 1,       /* nothing, or a pooler in session mode */
    GUARD_PQ_POOLER_TRANSACTION = 2 /* a pooler in transaction mode */
} guard_pq_pooler;

/*
 * Times are in milliseconds; 0 means the default, -1 for ever.
 */
typedef struct guard_pq_options {
    int32_t connect_ms;   /* all of connecting, over all hosts; 0 means 10,000 */
    int32_t statement_ms; /* one statement, or one wait for a row; 0 means 30,000. Past it the statement is cancelled */
    int32_t commit_ms;    /* the answer to COMMIT; 0 means 30,000 */
    int32_t resolve_ms;   /* finding a lost answer; 0 means 10,000 */
    int32_t rollback_ms;  /* getting out of whatever is in flight; 0 means 5,000 */
    int32_t marker;       /* a guard_pq_marker but PROBE */
    int32_t pooler;       /* a guard_pq_pooler */

    /*
     * Set in the server on connections opened here, where it knows these settings and nobody has set them, and nothing stands between:
     * client_connection_check_interval, so that a server notices in a long query that we are gone, 0 means 2,000; and
     * idle_in_transaction_session_timeout, so that it ends a transaction whose client is silent, 0 means 600,000. -1: not set.
     */
    int32_t check_ms;
    int32_t idle_ms;
    int32_t zero; /* 0 */
    const char *
        marker_table; /* table or schema.table, plain identifiers; NULL means public.guard_marker. Copied; looked up once */
    uint32_t reserved[8];
} guard_pq_options;

/*
 * Connects, for the scope. conninfo is what PQconnectdb takes, a list of hosts and target_session_attrs included, of which a host
 * that does not answer has its share of connect_ms; options NULL is all defaults. Panics with the reason, and leaves nothing open.
 */
#define guard_pq_open(scope, conninfo, ...) guard_pq_open_at((scope), (conninfo), (__VA_ARGS__), GUARD_HERE)
GUARD_API guard_pq *guard_pq_open_at(guard_scope *scope, const char *conninfo, const guard_pq_options *options,
                                     const guard_place *place);

/*
 * Guards a connection that stays the caller's, until the scope closes: what was begun through the guard is then ended, and the
 * connection is as it was. If the program closes it before (PQfinish), the guard knows, and an open transaction is in doubt. Several
 * guards may be around one connection, as where a function that guards its part is called inside another's transaction: a
 * transaction of the newer one is a savepoint of the older one's, and each sees all that is run.
 */
#define guard_pq_adopt(scope, raw, ...) guard_pq_adopt_at((scope), (raw), (__VA_ARGS__), GUARD_HERE)
GUARD_API guard_pq *guard_pq_adopt_at(guard_scope *scope, PGconn *raw, const guard_pq_options *options,
                                      const guard_place *place);

/*
 * Ends the guard before its scope does: rolls back what is open, then closes the connection, unless it was adopted, or gives it
 * back to its pool. The pointer is invalid afterwards. Panics when the rollback failed, after everything else is done.
 */
GUARD_API void guard_pq_close(guard_pq *pq);

/*
 * libpq's connection, for what this header does not cover. It stays the guard's (or, adopted, the caller's). NULL once it is gone. One
 * that was opened here is in non-blocking mode: PQputCopyData and PQputCopyEnd may then return 0 (PQsetnonblocking).
 * From then on libpq tells the guard of each result (libpq-events), which makes each some 400 instructions dearer, and each transaction begins
 * with SET LOCAL guard.transaction, 1,900 more; in one that is open the first call waits for that, no longer than statement_ms. A statement of a
 * transaction that is lost on it is in doubt, see ERRORS: guard_pq_exec has none of that. Panics with
 * GUARD_MEMORY, where a BEGIN that was still to be sent (GUARD_PQ_BEGIN_WITH_FIRST) fails, and with GUARD_TX_OVER where it has failed: what
 * the program ran would run on its own.
 */
GUARD_API PGconn *guard_pq_raw(guard_pq *pq);

/* The connection of a transaction, NULL once it is closed. */
GUARD_API guard_pq *guard_pq_of(guard_tx *tx);

/* Writes the connection as "key='value' ..." without secrets, as snprintf does. "" when it has no memory. */
GUARD_API size_t guard_pq_conninfo(guard_pq *pq, char *text, size_t size);

/* Sets statement_ms from now on, and returns the former one. */
GUARD_API int32_t guard_pq_statement_ms(guard_pq *pq, int32_t ms);

/*
 * Asks the server to cancel the running statement, waiting no longer than `ms` (0 means 2,000). Returns 1 when the server was told,
 * else 0. The statement's own call says what came of it. Any thread, while the connection is open; never panics.
 */
GUARD_API int guard_pq_cancel(guard_pq *pq, int32_t ms);

/* ------------------------------------------------------------------------------------------------ statements -- */

/*
 * These return a result that belongs to the scope (do not PQclear it), or NULL when the scope is NULL: then the result
 * is dropped at once. They panic with the server's error; past statement_ms the statement is cancelled and they panic with
 * GUARD_TIMEOUT. While a guarded transaction is over by the server's doing they panic with GUARD_TX_OVER; while a COPY, a stream or a
 * pipeline is open with GUARD_PQ_BUSY.
 */

/* The simple protocol: `sql` may hold several statements, of which the last one's result is returned (PQexec). */
#define guard_pq_exec(scope, pq, sql) guard_pq_exec_at((scope), (pq), (sql), GUARD_HERE)
GUARD_API PGresult *guard_pq_exec_at(guard_scope *scope, guard_pq *pq, const char *sql, const guard_place *place);

/* The arguments of PQexecParams, which says what they mean. All but count and values may be left 0; NULL is no parameters. */
typedef struct guard_pq_params {
    int count;
    int binary_result; /* 1: the columns come in binary */
    const char *const *values;
    const Oid *types;
    const int *lengths;
    const int *formats;
} guard_pq_params;

#define guard_pq_exec_params(scope, pq, sql, ...) \
    guard_pq_exec_params_at((scope), (pq), (sql), (__VA_ARGS__), GUARD_HERE)
GUARD_API PGresult *guard_pq_exec_params_at(guard_scope *scope, guard_pq *pq, const char *sql,
                                            const guard_pq_params *params, const guard_place *place);

/* Prepares a statement under a name that lives as long as the server's connection does. Of params only count and types matter. */
#define guard_pq_prepare(pq, name, sql, ...) guard_pq_prepare_at((pq), (name), (sql), (__VA_ARGS__), GUARD_HERE)
GUARD_API void guard_pq_prepare_at(guard_pq *pq, const char *name, const char *sql, const guard_pq_params *params,
                                   const guard_place *place);
#define guard_pq_exec_prepared(scope, pq, name, ...) \
    guard_pq_exec_prepared_at((scope), (pq), (name), (__VA_ARGS__), GUARD_HERE)
GUARD_API PGresult *guard_pq_exec_prepared_at(guard_scope *scope, guard_pq *pq, const char *name,
                                              const guard_pq_params *params, const guard_place *place);

/* The first column of the first row as an integer; `missing` when there is no row or it is NULL. Panics when it is no integer. */
#define guard_pq_query_int64(pq, sql, missing) guard_pq_query_int64_at((pq), (sql), (missing), GUARD_HERE)
GUARD_API int64_t guard_pq_query_int64_at(guard_pq *pq, const char *sql, int64_t missing, const guard_place *place);

/* Rows that the latest statement changed, returned or copied (PQcmdTuples); 0 where it has no such number. */
GUARD_API int64_t guard_pq_changes(guard_pq *pq);

/* The CONTEXT of the latest error on the connection, such as "COPY flight, line 17"; "" for none. The connection's. */
GUARD_API const char *guard_pq_error_context(guard_pq *pq);

/* Gives the scope a result of raw libpq: it is cleared with it, and at once when it cannot be registered. Returns it. */
#define guard_pq_own(scope, result) guard_pq_own_at((scope), (result), GUARD_HERE)
GUARD_API PGresult *guard_pq_own_at(guard_scope *scope, PGresult *result, const guard_place *place);

/* ------------------------------------------------------------------------------------------------------ COPY -- */

/*
 * COPY ... FROM STDIN and COPY ... TO STDOUT. One at a time, and nothing else on the connection meanwhile. A COPY IN whose scope closes
 * before guard_pq_copy_end is given up: the server takes its rows back. A COPY OUT that is not read to its end is cancelled.
 */
#define guard_pq_copy_in(scope, pq, sql) guard_pq_copy_in_at((scope), (pq), (sql), GUARD_HERE)
#define guard_pq_copy_out(scope, pq, sql) guard_pq_copy_out_at((scope), (pq), (sql), GUARD_HERE)
GUARD_API guard_pq_copy *guard_pq_copy_in_at(guard_scope *scope, guard_pq *pq, const char *sql,
                                             const guard_place *place);
GUARD_API guard_pq_copy *guard_pq_copy_out_at(guard_scope *scope, guard_pq *pq, const char *sql,
                                              const guard_place *place);

/*
 * Sends bytes; they need not be whole rows. Waits for the server no longer than statement_ms each. Panics with the server's error as
 * soon as libpq has it, mostly later than the row it is about: guard_pq_copy_end has it at last.
 */
#define guard_pq_copy_put(copy, data, size) guard_pq_copy_put_at((copy), (data), (size), GUARD_HERE)
GUARD_API void guard_pq_copy_put_at(guard_pq_copy *copy, const void *data, size_t size, const guard_place *place);

/* The next row's bytes and their number; 0 at the end. They are the library's until the next call. */
#define guard_pq_copy_get(copy, data) guard_pq_copy_get_at((copy), (data), GUARD_HERE)
GUARD_API size_t guard_pq_copy_get_at(guard_pq_copy *copy, const char **data, const guard_place *place);

/* Ends it and returns the number of rows; the handle is then gone. A COPY OUT not read to its end: misuse. */
#define guard_pq_copy_end(copy) guard_pq_copy_end_at((copy), GUARD_HERE)
GUARD_API int64_t guard_pq_copy_end_at(guard_pq_copy *copy, const guard_place *place);

/* Gives it up before its scope does; the handle is then gone. */
GUARD_API void guard_pq_copy_close(guard_pq_copy *copy);

/* --------------------------------------------------------------------------------------------------- streams -- */

/*
 * One statement whose rows come one by one (PQsetSingleRowMode), so that a large result needs no memory. Nothing else on the
 * connection until its end. Left early it is cancelled and drained.
 */
#define guard_pq_stream_open(scope, pq, sql, ...) \
    guard_pq_stream_open_at((scope), (pq), (sql), (__VA_ARGS__), GUARD_HERE)
GUARD_API guard_pq_stream *guard_pq_stream_open_at(guard_scope *scope, guard_pq *pq, const char *sql,
                                                   const guard_pq_params *params, const guard_place *place);

/* The next row, as a result of one row; NULL at the end. It is the stream's until the next call. Panics with the server's error. */
#define guard_pq_stream_next(stream) guard_pq_stream_next_at((stream), GUARD_HERE)
GUARD_API PGresult *guard_pq_stream_next_at(guard_pq_stream *stream, const guard_place *place);

/* Ends it before its scope does; the handle is then gone. */
GUARD_API void guard_pq_stream_close(guard_pq_stream *stream);

/* -------------------------------------------------------------------------------------------------- pipelines -- */

/*
 * Statements sent without waiting for the answers (https://www.postgresql.org/docs/15/libpq-pipeline-mode.html). Nothing else on the
 * connection meanwhile. Send any number, then read their answers in the same order. Where one fails, its guard_pq_pipeline_next panics, and the server skips the rest up to the
 * next sync. Outside a transaction all between two syncs is one transaction. Left early it is synced and drained.
 */
#define guard_pq_pipeline_open(scope, pq) guard_pq_pipeline_open_at((scope), (pq), GUARD_HERE)
GUARD_API guard_pq_pipeline *guard_pq_pipeline_open_at(guard_scope *scope, guard_pq *pq, const guard_place *place);

#define guard_pq_pipeline_send(pipeline, sql, ...) \
    guard_pq_pipeline_send_at((pipeline), (sql), (__VA_ARGS__), GUARD_HERE)
GUARD_API void guard_pq_pipeline_send_at(guard_pq_pipeline *pipeline, const char *sql, const guard_pq_params *params,
                                         const guard_place *place);
#define guard_pq_pipeline_send_prepared(pipeline, name, ...) \
    guard_pq_pipeline_send_prepared_at((pipeline), (name), (__VA_ARGS__), GUARD_HERE)
GUARD_API void guard_pq_pipeline_send_prepared_at(guard_pq_pipeline *pipeline, const char *name,
                                                  const guard_pq_params *params, const guard_place *place);

/* Marks a point up to which the server works off everything; guard_pq_pipeline_next passes over it. */
#define guard_pq_pipeline_sync(pipeline) guard_pq_pipeline_sync_at((pipeline), GUARD_HERE)
GUARD_API void guard_pq_pipeline_sync_at(guard_pq_pipeline *pipeline, const guard_place *place);

/*
 * The answer to the oldest statement that has none yet, owned by the scope (dropped where it is NULL, and then 1 statement's answer
 * is still awaited and NULL returned). Syncs by itself where the statement was not followed by a sync. Misuse when there is none.
 * Panics with the statement's error; for one that was skipped after another's error with that other error.
 */
#define guard_pq_pipeline_next(scope, pipeline) guard_pq_pipeline_next_at((scope), (pipeline), GUARD_HERE)
GUARD_API PGresult *guard_pq_pipeline_next_at(guard_scope *scope, guard_pq_pipeline *pipeline,
                                              const guard_place *place);

/* How many statements wait for their answers. */
GUARD_API uint32_t guard_pq_pipeline_pending(const guard_pq_pipeline *pipeline);

/* Reads all answers, panics with the first error among them, and ends the pipeline; the handle is then gone, also after a panic. */
#define guard_pq_pipeline_end(pipeline) guard_pq_pipeline_end_at((pipeline), GUARD_HERE)
GUARD_API void guard_pq_pipeline_end_at(guard_pq_pipeline *pipeline, const guard_place *place);

/* Ends it before its scope does, errors and all; the handle is then gone. */
GUARD_API void guard_pq_pipeline_close(guard_pq_pipeline *pipeline);

/* ----------------------------------------------------------------------------------------------- transactions -- */

/* guard_pq_tx_options.isolation (https://www.postgresql.org/docs/15/transaction-iso.html) */
typedef enum guard_pq_isolation {
    GUARD_PQ_ISOLATION_DEFAULT = 0, /* the session's default_transaction_isolation */
    GUARD_PQ_READ_COMMITTED = 1,
    GUARD_PQ_REPEATABLE_READ = 2,
    GUARD_PQ_SERIALIZABLE = 3
} guard_pq_isolation;

/* guard_pq_tx_options.flags */
#define GUARD_PQ_READ_ONLY 1U
#define GUARD_PQ_READ_WRITE 2U
#define GUARD_PQ_DEFERRABLE 4U
#define GUARD_PQ_BEGIN_WITH_FIRST 8U /* BEGIN travels with the first statement: a round trip less, see guard_pq_begin */

typedef struct guard_pq_tx_options {
    guard_tx_options tx; /* attempts, retry_ms; durable: also waits for the disk where synchronous_commit is off */
    int32_t isolation;
    uint32_t flags;
    int32_t marker;    /* a guard_pq_marker; PROBE needs probe */
    int32_t commit_ms; /* these three: 0 means the connection's */
    int32_t resolve_ms;
    int32_t rollback_ms;
    /* Texts, which must live until the transaction ended. */
    const char *probe;      /* a SELECT that finds a row exactly when this transaction is committed */
    const char *probe_key;  /* its $1; NULL: it has no parameter */
    const char *prepare_as; /* PREPARE TRANSACTION under this name, not COMMIT; below 200 bytes of its encoding */
    uint32_t reserved[8];
} guard_pq_tx_options;

/*
 * Begins a transaction for the scope, see tx.h. Inside one that is already open on the connection it is a savepoint; inside one that
 * was begun with SQL too, and that one is left open. Panics when BEGIN fails, with GUARD_PQ_MARKER when the marker table is missing, or has a
 * rule or a BEFORE INSERT trigger, which could keep the row out.
 *
 * With GUARD_PQ_BEGIN_WITH_FIRST nothing is sent yet: BEGIN goes in one message with the first statement (a pipeline with one sync), where
 * that is guard_pq_exec_params or guard_pq_exec_prepared. So a transaction of one statement waits for the server twice instead of three times, at
 * the price of 2,300 instructions of the client: 34 us instead of 44 on the server's own machine, a network's round trip less elsewhere. The
 * server skips the statement where BEGIN fails: it never runs outside of the transaction. What is different:
 *   - A BEGIN that fails, or finds the connection dead, makes the first statement panic, with the same error; the outcome is ROLLED_BACK.
 *   - statement_ms is for both together. The transaction's now() is that of its first statement. Where libpq has no memory for the two, the
 *     connection is given up.
 *   - A transaction that ran nothing sends nothing: it is COMMITTED, hooks and all, also where the server is gone and nobody knows yet;
 *     with prepare_as all of it is sent.
 * Anything else that uses the connection first (guard_pq_exec, COPY, a stream, a pipeline, a savepoint, preparing, a lock, guard_pq_raw)
 * sends BEGIN by itself and waits for it, and so does a statement that does not begin with SELECT, INSERT, UPDATE, DELETE, MERGE, WITH or VALUES,
 * and, once guard_pq_prepare was given one that does not, every prepared one. On a connection that is adopted, or whose raw connection the program
 * has asked for, BEGIN is sent at once, as without the flag.
 */
#define guard_pq_begin(scope, pq, ...) guard_pq_begin_at((scope), (pq), (__VA_ARGS__), GUARD_HERE)
GUARD_API guard_tx *guard_pq_begin_at(guard_scope *scope, guard_pq *pq, const guard_pq_tx_options *options,
                                      const guard_place *place);

/*
 * The border form: runs fn(tx, arg) in a transaction, and all of it again after 40001 and 40P01, also where the program swallowed
 * them; see guard_tx_transact in tx.h for what it returns. result may be NULL.
 */
#define guard_pq_transact(pq, fn, arg, options, result) \
    guard_pq_transact_at((pq), (fn), (arg), (options), (result), GUARD_HERE)
GUARD_API guard_outcome guard_pq_transact_at(guard_pq *pq, guard_tx_fn *fn, void *arg,
                                             const guard_pq_tx_options *options, guard_result *result,
                                             const guard_place *place);

/* The same on a raw connection, which is adopted meanwhile. Never panics: also a failure to adopt is in the result. */
#define guard_pq_transact_raw(raw, fn, arg, options, result) \
    guard_pq_transact_raw_at((raw), (fn), (arg), (options), (result), GUARD_HERE)
GUARD_API guard_outcome guard_pq_transact_raw_at(PGconn *raw, guard_tx_fn *fn, void *arg,
                                                 const guard_pq_tx_options *options, guard_result *result,
                                                 const guard_place *place);

/* ------------------------------------------------------------------------------------------ marker, resolving -- */

/*
 * Makes the marker table of the connection's options where it is missing, and grants its use to `role` (NULL: to nobody), its schema's
 * included. Run it once, as a role that may create tables in its schema. Not inside a transaction. Panics with GUARD_PQ_MARKER where the
 * role then has not got what it needs, as the server only warns of a GRANT by who may not grant.
 *
 * A session that closes in order takes its row back; one that was killed, or that finds the table locked for half a second, leaves one
 * row, and so does each transaction that was in doubt. Rows may be deleted when no token older than them is still to be resolved; they
 * have a time. One row, whose time is infinite, says which table this is: without it BEGIN panics with GUARD_PQ_MARKER until this function
 * has put one back.
 */
#define guard_pq_marker_install(pq, role) guard_pq_marker_install_at((pq), (role), GUARD_HERE)
GUARD_API void guard_pq_marker_install_at(guard_pq *pq, const char *role, const guard_place *place);

/*
 * Resolves a transaction that is IN_DOUBT by its guard_result.token, also in another process and after a crash of either side. Uses
 * the connection where it is idle, else a new one made like it. Of the options (NULL: defaults) resolve_ms counts, and for a
 * transaction with a probe the probe and its key.
 *
 * Returns COMMITTED or ROLLED_BACK, for good, or PREPARED; or IN_DOUBT when it could not be found out within
 * resolve_ms or at all, or the thread is cancelled or late (guard_cancel.h): *error, where it is not NULL, then says why. A border: it
 * does not panic, but for misuse.
 */
#define guard_pq_resolve(pq, token, options, error) guard_pq_resolve_at((pq), (token), (options), (error), GUARD_HERE)
GUARD_API guard_outcome guard_pq_resolve_at(guard_pq *pq, const char *token, const guard_pq_tx_options *options,
                                            guard_error *error, const guard_place *place);

/* The same with a connection of its own, made from conninfo within resolve_ms. marker_table NULL is the default. */
#define guard_pq_resolve_from(conninfo, marker_table, token, options, error) \
    guard_pq_resolve_from_at((conninfo), (marker_table), (token), (options), (error), GUARD_HERE)
GUARD_API guard_outcome guard_pq_resolve_from_at(const char *conninfo, const char *marker_table, const char *token,
                                                 const guard_pq_tx_options *options, guard_error *error,
                                                 const guard_place *place);

/* The same for a handle whose scope is still open: settles it (guard_tx_settle), so that its hooks run. */
#define guard_pq_resolve_tx(tx, options, error) guard_pq_resolve_tx_at((tx), (options), (error), GUARD_HERE)
GUARD_API guard_outcome guard_pq_resolve_tx_at(guard_tx *tx, const guard_pq_tx_options *options, guard_error *error,
                                               const guard_place *place);

/* ---------------------------------------------------------------------------------------------- advisory locks -- */

/*
 * Takes an advisory lock (https://www.postgresql.org/docs/15/explicit-locking.html#ADVISORY-LOCKS) that the open transaction holds
 * to its end. Waits no longer than `wait_ms` (0 means statement_ms, -1 for ever): then it panics with GUARD_TIMEOUT and the
 * transaction can only be rolled back. guard_pq_try_lock does not wait: 1 when it has the lock, else 0. Misuse without a transaction.
 */
#define guard_pq_lock(pq, key, wait_ms) guard_pq_lock_at((pq), (key), (wait_ms), GUARD_HERE)
GUARD_API void guard_pq_lock_at(guard_pq *pq, int64_t key, int32_t wait_ms, const guard_place *place);
#define guard_pq_try_lock(pq, key) guard_pq_try_lock_at((pq), (key), GUARD_HERE)
GUARD_API int guard_pq_try_lock_at(guard_pq *pq, int64_t key, const guard_place *place);

/*
 * The same for the session: released when the scope closes, over any number of transactions. Misuse inside a transaction. Refused
 * (GUARD_PQ_POOLER) behind a pooler, where the next statement may run in another session: see guard_pq_options.pooler. When
 * the lock cannot be released, the panic says so, and the connection is closed, or not given back to its pool, at its end. A
 * connection that is closed or given back before that scope closes has released it. Its ticket dismissed, the lock is the session's until
 * that ends, and a pool does not lend that again.
 */
#define guard_pq_lock_session(scope, pq, key, wait_ms) \
    guard_pq_lock_session_at((scope), (pq), (key), (wait_ms), GUARD_HERE)
GUARD_API guard_ticket guard_pq_lock_session_at(guard_scope *scope, guard_pq *pq, int64_t key, int32_t wait_ms,
                                                const guard_place *place);

/* ------------------------------------------------------------------------------------------ prepared transactions -- */

/*
 * A transaction begun with prepare_as ends PREPARED: the server keeps it, also over a crash, until one of these, on any connection to
 * the database. Not inside a transaction. They panic with 42704 where there is none of that name. They cost a round trip more than
 * the statement: the transaction's number is read first. When the answer is lost or late they find out on new connections, within
 * resolve_ms, and ask once more where it is still listed: then they return, or panic with GUARD_TX_ROLLED_BACK when somebody has done
 * the opposite, or with GUARD_TX_IN_DOUBT, as where a server that was promoted meanwhile may never have had it. Use a name once: a
 * request that is late in the network goes by the name alone.
 * A prepared transaction that is forgotten holds its locks for ever: list them when the program starts.
 */
#define guard_pq_prepared_commit(pq, name) guard_pq_prepared_commit_at((pq), (name), GUARD_HERE)
#define guard_pq_prepared_rollback(pq, name) guard_pq_prepared_rollback_at((pq), (name), GUARD_HERE)
GUARD_API void guard_pq_prepared_commit_at(guard_pq *pq, const char *name, const guard_place *place);
GUARD_API void guard_pq_prepared_rollback_at(guard_pq *pq, const char *name, const guard_place *place);

/* Those of this database, the oldest first: columns name, owner, seconds (their age). */
#define guard_pq_prepared_list(scope, pq) guard_pq_prepared_list_at((scope), (pq), GUARD_HERE)
GUARD_API PGresult *guard_pq_prepared_list_at(guard_scope *scope, guard_pq *pq, const guard_place *place);

/* ------------------------------------------------------------------------------------------------------- pool -- */

typedef struct guard_pq_pool_options {
    guard_pq_options connection;
    uint32_t max;    /* connections at most; 0 means 10 */
    uint32_t min;    /* kept open when idle, and opened ahead; 0 means none */
    int32_t take_ms; /* waiting for one; 0 means 10,000, -1 for ever */
    int32_t life_ms; /* closed, when idle, this long after it was opened; 0 means 3,600,000, -1 never */
    const char *
        reset; /* run when one is given back, such as "DISCARD ALL", at the cost of a round trip; NULL: nothing. Copied.
                  RESET and DISCARD ALL cost another one: check_ms and idle_ms are set again */
    const char *name; /* in the metrics, at most 31 bytes; NULL: "postgresql". Pools of one name are added up. Copied */
    uint32_t reserved[6];
} guard_pq_pool_options;

typedef struct guard_pq_pool_stats {
    uint32_t open;        /* connections now, idle ones included */
    uint32_t idle;        /* now */
    uint32_t taken;       /* now */
    uint32_t waiting;     /* threads that wait for one now */
    uint64_t takes;       /* served */
    uint64_t waits;       /* takes that had to wait */
    uint64_t timeouts;    /* takes that got none */
    uint64_t opened;      /* connections made */
    uint64_t failures;    /* connections that could not be made */
    uint64_t rolled_back; /* given back with a transaction open */
    uint64_t discarded;   /* given back and not kept: active, dead, poisoned, reset or unlock failed */
    uint64_t expired;     /* found dead or too old while idle */
    uint64_t reserved[4];
} guard_pq_pool_stats;

/*
 * Opens a pool for the scope; conninfo is checked, connections are made when they are needed (min of them at once, in the background).
 * Its scope must outlive what is taken from it. Closing it closes the idle connections; those still taken are closed when they
 * are given back, and then its memory is freed.
 */
#define guard_pq_pool_open(scope, conninfo, ...) guard_pq_pool_open_at((scope), (conninfo), (__VA_ARGS__), GUARD_HERE)
GUARD_API guard_pq_pool *guard_pq_pool_open_at(guard_scope *scope, const char *conninfo,
                                               const guard_pq_pool_options *options, const guard_place *place);

/*
 * Takes a connection for the scope, which gives it back; guard_pq_close does so earlier. Whoever waits longest is served first. An
 * idle one that has died is replaced. Waits no longer than wait_ms (0 means take_ms): then panics with GUARD_TIMEOUT, with
 * the reason why no connection could be made as its cause, where there is one. Any thread.
 *
 * Given back, a connection is kept as it is when it is idle; a transaction left open is rolled back; an active, dead or
 * poisoned one is discarded. What a session has set (SET, LISTEN, temporary tables) stays unless `reset` clears it.
 */
#define guard_pq_pool_take(scope, pool, wait_ms) guard_pq_pool_take_at((scope), (pool), (wait_ms), GUARD_HERE)
GUARD_API guard_pq *guard_pq_pool_take_at(guard_scope *scope, guard_pq_pool *pool, int32_t wait_ms,
                                          const guard_place *place);

/* What it has done since it was opened, and has at the moment. Any thread. */
GUARD_API void guard_pq_pool_stats_read(guard_pq_pool *pool, guard_pq_pool_stats *stats);

#ifdef __cplusplus
}
#endif

#endif
