/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_internal.h: what the files of the PostgreSQL adapter share; nothing else includes it. All of it is hidden.
 *
 * Two layers. The public functions (_at) check, register and panic. Everything below them returns 0, or an error's code with
 * *error filled, and never panics: that is also what tx.h asks of a driver. Only this layer calls libpq, always between
 * guard_pq_call_begin and _end and always with a deadline.
 */
#ifndef GUARD_PQ_INTERNAL_H
#define GUARD_PQ_INTERNAL_H

#include <guard/guard_cancel.h>
#include <guard/guard_dump.h>
#include <guard/guard_pq.h>

#include <pthread.h>
#include <sys/types.h>

#define GUARD_PQ_TABLE_MAX 128
#define GUARD_PQ_TABLE_ID_MAX 32

/* The row of the marker table that says which table it is; %s: the table. */
#define GUARD_PQ_NOBODY "00000000-0000-0000-0000-000000000000"
#define GUARD_PQ_TABLE_ID_SQL "SELECT seq::text || '.' || xmin::text FROM %s WHERE session = '" GUARD_PQ_NOBODY "'"
/*
 * Which rows reach it is for a rule to say, or a trigger in front of an INSERT: where the transaction's own does not, and the resolver's fence
 * does, a commit would be told as rolled back. The server keeps in mind that there was a trigger, until the table is vacuumed. %s: the table.
 */
#define GUARD_PQ_KEEPS_OUT_SQL                                                                           \
    "coalesce((SELECT relkind NOT IN ('r', 'p') OR relhasrules OR EXISTS (SELECT FROM pg_trigger WHERE " \
    "tgrelid = c.oid AND tgtype & 7 = 7) FROM pg_class c WHERE oid = to_regclass('%s')), false)"
#define GUARD_PQ_HAD_TRIGGERS_SQL "coalesce((SELECT relhastriggers FROM pg_class WHERE oid = to_regclass('%s')), true)"
#define GUARD_PQ_SQL_MAX 1024 /* the library's own statements; checked where a name of the caller's goes in */

/* ------------------------------------------------------------------------------------------------- time -- */

/* A point of CLOCK_MONOTONIC in milliseconds; INT64_MAX is never. */
typedef int64_t guard_pq_deadline;
#define GUARD_PQ_NEVER INT64_MAX

int64_t guard_pq_now(void);
guard_pq_deadline guard_pq_in(int32_t ms);
guard_pq_deadline guard_pq_sooner(guard_pq_deadline a, guard_pq_deadline b);
/* Milliseconds that are left, for poll: 0 once it has passed, -1 for never. */
int guard_pq_left(guard_pq_deadline deadline);
static inline int32_t guard_pq_or(int32_t value, int32_t otherwise)
{
    return value != 0 ? value : otherwise;
}

/* --------------------------------------------------------------------------------------------- process -- */

/* The kernel empties it in a child; NULL until it is made. */
extern pid_t *guard_pq_process_page;
pid_t guard_pq_process_ask(void);

/* getpid, mostly without the system call. */
static inline pid_t guard_pq_process(void)
{
    const pid_t *page = __atomic_load_n(&guard_pq_process_page, __ATOMIC_ACQUIRE);
    pid_t pid = page != NULL ? __atomic_load_n(page, __ATOMIC_RELAXED) : 0;
    return GUARD_IMPL_LIKELY(pid != 0) ? pid : guard_pq_process_ask();
}

/* ------------------------------------------------------------------------------------------------ cancel -- */

typedef struct guard_pq_canceller guard_pq_canceller;

/* NULL when there is no memory. */
guard_pq_canceller *guard_pq_canceller_open(PGconn *conn);
void guard_pq_canceller_close(guard_pq_canceller *canceller);
/* The connection has another session now. */
void guard_pq_canceller_renew(guard_pq_canceller *canceller, PGconn *conn);
/* 1 when the server has been told by the deadline, else 0. Any thread. */
int guard_pq_canceller_send(guard_pq_canceller *canceller, guard_pq_deadline deadline);

/* ------------------------------------------------------------------------------------------- connections -- */

/* What is on the wire besides single statements; the beginning of guard_pq_copy, guard_pq_stream, guard_pq_pipeline. */
typedef enum guard_pq_flight_kind {
    GUARD_PQ_FLIGHT_COPY_IN,
    GUARD_PQ_FLIGHT_COPY_OUT,
    GUARD_PQ_FLIGHT_STREAM,
    GUARD_PQ_FLIGHT_PIPELINE
} guard_pq_flight_kind;

typedef struct guard_pq_flight {
    guard_pq *pq; /* NULL once it is over, whoever ended it */
    guard_pq_flight_kind kind;
    guard_ticket ticket;
    int64_t since; /* guard_dump_clock */
} guard_pq_flight;

/* Whether the transaction under way was begun, see guard_pq_begin.c. */
typedef enum guard_pq_begin_state {
    GUARD_PQ_BEGUN,  /* or none is under way */
    GUARD_PQ_UNSENT, /* BEGIN goes with what is sent next */
    GUARD_PQ_SENT,   /* its answer was not read yet */
    GUARD_PQ_UNBEGUN /* it was refused */
} guard_pq_begin_state;

/* The transaction under way, from begin (or the first savepoint in a caller's own) to its end. */
typedef struct guard_pq_transaction {
    int32_t commit_ms, resolve_ms, rollback_ms;
    int marker; /* the one in force: NONE, STATUS, ROW or PROBE */
    int read_only;
    int32_t isolation, durable;
    uint32_t flags;
    guard_pq_begin_state begin;
    const char *probe, *probe_key, *prepare_as;
    uint64_t lock;   /* PROBE: the advisory lock's key */
    int wanted;      /* the marker that was asked for, also where read_only made it NONE */
    int numberless;  /* asked at COMMIT: it has no number, so that it has written no row */
    int was_set;     /* a SET has been seen: read_only may not be so any more */
    int savepoints;  /* one may be open */
    int may_be_over; /* SQL was sent that may end it, and its answer is lost or not read yet */
    int may_chain;   /* ROLLBACK AND CHAIN was sent, or something of that name */
    int has_sign;    /* guard_pq_sign.c */
    int sign_inside; /* it was set behind a savepoint */
    int warned;      /* the next BEGIN began nothing: there was a transaction */
    int unwarned;    /* the program has the connection's notices, so that this is not known */
    int has_error;   /* error is the latest that was not 25P02: what aborted the transaction, if it is aborted */
    int retry;       /* it was aborted by an error that running it again can help */
    int ended;       /* a guard_outcome but OPEN: somebody ended it with SQL of their own */
    int over; /* ended is certain: what may be open now is not ours. Else it is ROLLED_BACK, or it was ROLLBACK TO */
    guard_error error;
} guard_pq_transaction;

/* Where a transaction runs, see guard_pq_home.c; text is "" where that cannot be asked. */
#define GUARD_PQ_HOME_MAX 44
typedef struct guard_pq_home {
    char text[GUARD_PQ_HOME_MAX];
    int standby;
    int synchronous; /* its commits are to wait for standbys */
} guard_pq_home;

/* The session of marker rows: (id, seq) is the key of the transaction that commits next. */
typedef struct guard_pq_session {
    char id[37];   /* a UUID; "" before its first use, and again once one of its transactions is in doubt */
    int checked;   /* the table is there and may be used */
    int rows;      /* a row of it may be in the table */
    int prepared;  /* the server has its statement prepared */
    int two_phase; /* one of its transactions was prepared */
    uint64_t seq;
    uint64_t kept; /* no row before it is in the table, but for what a PREPARE TRANSACTION has still to decide */
    int bare;      /* the table had no trigger at all when it was checked */
    char table_id[GUARD_PQ_TABLE_ID_MAX]; /* of the table that was checked */
} guard_pq_session;

struct guard_pq {
    PGconn *conn; /* NULL once the program has closed an adopted one */
    guard_tx_session session;
    guard_pq_options options;
    char table[GUARD_PQ_TABLE_MAX];
    pid_t pid;     /* the process whose connection this is */
    uint64_t wire; /* its socket's name, in this process never another's: guard_pq_wire_new */
    uint8_t adopted;
    uint8_t blocking;          /* to be put back into the blocking mode that the program had it in */
    uint8_t cut;               /* we have shut its socket, or the server has said that it will: dead */
    uint8_t discard;           /* not to go back to a pool: a session lock may still be held */
    uint8_t pooler;            /* GUARD_PQ_POOLER_ASK until it is known */
    uint8_t primary;           /* its server is no standby */
    uint8_t unset;             /* of a pool's: the settings that we made may be gone */
    uint8_t local_only;        /* the server gave up waiting for its standbys */
    uint8_t message;           /* guard_pq_message.c: of the one on the wire; 0: there is none */
    uint8_t watched;           /* libpq tells on_event of every result: the program has the raw connection */
    uint8_t lost;              /* seen in a call of ours, see guard_pq_watch.c */
    uint8_t outside;           /* the program may have had something on the wire when the latest call of ours began */
    const PGresult *seen;      /* the latest that it told of */
    int64_t since;             /* guard_dump_clock; of a pool's: when it was taken */
    PQnoticeReceiver receiver; /* libpq's own, behind ours; only where we opened the connection */
    guard_ticket ticket;
    guard_pq *outer; /* another guard, around the same connection before this one */
    guard_pq_flight *flight;
    guard_pq_canceller *canceller;
    struct guard_pq_session_lock *locks; /* whose scopes are open */
    guard_pq_transaction t;
    guard_pq_session marks;
    guard_pq_home home;
    int home_known;
    int prepared_end;   /* a prepared statement may end a transaction */
    int prepared_chain; /* one may be ROLLBACK AND CHAIN */
    int prepared_else;  /* a prepared statement is none of rows, see guard_pq_sql_is_of_rows */
    int64_t changes;
    char context[256]; /* of the latest error */
    /* of a pool */
    guard_pq_pool *pool;
    guard_pq *next;
    int64_t opened_ms;
};

extern const guard_kind guard_pq_kind;
extern const guard_tx_driver guard_pq_driver;

/* 0, or misuse and 1. */
int guard_pq_options_check(const guard_pq_options *options, const guard_place *place);
/* A connection without a scope, or NULL with *error filled. Never panics. */
guard_pq *guard_pq_make(const char *conninfo, const guard_pq_options *options, guard_error *error);
/* What is asked and set first; 0, or the error's code: it has not got through. */
int guard_pq_introduce(guard_pq *pq, guard_pq_deadline deadline, guard_error *error);
guard_pq *guard_pq_make_around(PGconn *raw, const guard_pq_options *options, guard_error *error);
/* Frees it; does nothing else to an adopted connection. */
void guard_pq_free(guard_pq *pq);
/* Rolls back what the guard has open. 0, or 1 with *error filled. */
int guard_pq_end_session(guard_pq *pq, guard_error *error);
/* In a forked child: its copy of the socket leads nowhere from now on. 1 in a child, 0 in the process that opened it. */
int guard_pq_disown_in_child(guard_pq *pq);

/*
 * What every public call that talks to the server begins with; panics. `flight` is the one that may be under way, or NULL. Afterwards BEGIN
 * was sent; guard_pq_check leaves that to the caller.
 */
void guard_pq_check(guard_pq *pq, const guard_pq_flight *flight, const guard_place *place);
void guard_pq_enter(guard_pq *pq, const guard_pq_flight *flight, const guard_place *place);

/* Around all use of libpq: no thread cancellation inside libpq, and no call of it that waits by itself. */
typedef struct guard_pq_call {
    int cancel_state;
} guard_pq_call;
void guard_pq_call_begin(guard_pq *pq, guard_pq_call *call);
void guard_pq_call_end(guard_pq *pq, guard_pq_call *call);

/* Where a function has no place of the program's: 1, or misuse and 0. */
static inline int guard_pq_is_given(const void *thing)
{
    if (GUARD_IMPL_UNLIKELY(thing == NULL)) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "NULL is no connection, and nothing that is opened on one");
        return 0;
    }
    return 1;
}

/* ------------------------------------------------------------------------------------------------- watch -- */

/* libpq tells the guard of every result from now on: 1, or 0 when there is no memory. */
int guard_pq_watch_begin(guard_pq *pq);
/* Two guards around one connection may end in any order. */
void guard_pq_watch_end(guard_pq *pq);
/* libpq's notices (PQnoticeReceiver), of a connection that we opened. */
void guard_pq_watch_notice(void *pq, const PGresult *notice);
/* As a call of ours begins, and as it ends: whether the program may have something on the wire, and if that was lost. */
void guard_pq_watch_wire(guard_pq *pq);
void guard_pq_watch_loss(guard_pq *pq);

/* ----------------------------------------------------------------------------------------------- connect -- */

#define GUARD_PQ_KEYWORDS_MAX 64
typedef struct guard_pq_keywords {
    const char *names[GUARD_PQ_KEYWORDS_MAX + 1];
    const char *values[GUARD_PQ_KEYWORDS_MAX + 1];
    int count;
    PQconninfoOption *options; /* what values points into */
} guard_pq_keywords;

/* The parts of a conninfo text (without the environment's), or of a connection (with them). To be closed. 0, or the error's code. */
int guard_pq_keywords_parse(guard_pq_keywords *keywords, const char *conninfo, guard_error *error);
int guard_pq_keywords_of(guard_pq_keywords *keywords, PGconn *conn, guard_error *error);
/* The number of the client's encoding, also of a connection that is lost; -1: not known. */
int guard_pq_encoding(PGconn *conn);
void guard_pq_keywords_set(guard_pq_keywords *keywords, const char *name, const char *value);
void guard_pq_keywords_close(guard_pq_keywords *keywords);

/* NULL with *error filled; else connected, in non-blocking mode. */
PGconn *guard_pq_connect(guard_pq_keywords *keywords, guard_pq_deadline deadline, guard_error *error);

/* ------------------------------------------------------------------------------------------------ errors -- */

void guard_pq_text(char *to, size_t size, const char *from);
/* The error of a result, or, where it has none, of the connection. Returns the code. */
int guard_pq_error_result(PGconn *conn, const PGresult *result, guard_error *error);
/* PQerrorMessage, with what was being done before it. Returns the code. */
int guard_pq_error_conn(PGconn *conn, guard_error *error, const char *doing);
/* `ms` 0: the time was a part of another's. */
int guard_pq_error_timeout(guard_error *error, const char *what, int32_t ms);
int guard_pq_error_gone(guard_error *error);
/* 40001 or 40P01. */
int guard_pq_is_retryable(const char *sqlstate);

/* -------------------------------------------------------------------------------------------------- wire -- */

/* Waits until PQgetResult will not block (or the connection has failed, which it then says): 1; 0 past the deadline. */
int guard_pq_await(PGconn *conn, guard_pq_deadline deadline);
/* The same for less, outside of a pipeline. */
int guard_pq_await_answer(guard_pq *pq, guard_pq_deadline deadline);
/* Waits until one of the events of poll happens on the socket: 1; 0 past the deadline. */
int guard_pq_poll(PGconn *conn, short events, guard_pq_deadline deadline);
/* Sends all that libpq has buffered, reading meanwhile: 1; 0 past the deadline. A failure is seen by the next call. */
int guard_pq_flush(PGconn *conn, guard_pq_deadline deadline);

/* Nothing can come any more and the server will notice. */
void guard_pq_cut(guard_pq *pq);
/* 1 when the connection is known to be dead, which costs a poll without waiting. */
int guard_pq_is_dead(guard_pq *pq);

/* guard_pq_wait.c: poll for POLLIN on the connection's socket, for less where the same thread has waited for it before. */
int guard_pq_wait(guard_pq *pq, guard_pq_deadline deadline);
/* 1 when nothing has come on the socket, not even its end; 0 when something may have. */
int guard_pq_is_quiet(const guard_pq *pq);
uint64_t guard_pq_wire_new(void);

/*
 * Ends whatever is in flight on the connection, the caller's own raw use included: 1 when it is at rest; 0 when it is dead or the
 * deadline has passed. Cancels what is still running. The flight is over afterwards.
 */
int guard_pq_quiesce(guard_pq *pq, guard_pq_deadline deadline);

/* --------------------------------------------------------------------------------------------- statements -- */

/*
 * Reads the answers to what was sent up to its end. *kept, where it is not NULL, becomes the last one (the caller clears it). Past
 * the deadline the statement is cancelled and drained within rollback_ms, or the connection cut.
 */
int guard_pq_collect(guard_pq *pq, int32_t ms, PGresult **kept, guard_error *error);
/* Sends a simple query and collects. */
int guard_pq_query(guard_pq *pq, const char *sql, int32_t ms, PGresult **kept, guard_error *error);
/* The same on a connection that is nobody's yet: past the deadline it is left as it is. `probe_key` not NULL: as $1. */
int guard_pq_query_on(PGconn *conn, const char *sql, const char *const *key, guard_pq_deadline deadline,
                      PGresult **kept, guard_error *error);
/* The same in a transaction of the connection. */
int guard_pq_query_of(guard_pq *pq, const char *sql, guard_pq_deadline deadline, guard_error *error);
/* PQgetResult. What the result says of the transaction under way is remembered; all results of a guard's own statements pass here. */
PGresult *guard_pq_get_result(guard_pq *pq);
void guard_pq_count_changes(guard_pq *pq, const PGresult *result);
/* How quoted text is written on a connection. */
typedef struct guard_pq_spelling {
    int backslashes; /* they escape in plain quoted text, too */
    int encoding;    /* guard_pq_encoding: a character's second byte may be a backslash */
} guard_pq_spelling;
/*
 * 1 when a statement of the text may end the transaction. `one_statement`: the text is
 * one, or nothing that the server takes, so that its first word is enough. `execute`: EXECUTE may run what ends it.
 */
int guard_pq_sql_may_end(const char *sql, const guard_pq_spelling *spelling, int one_statement, int execute);
/* 1 when the text is one of the statements that read and write rows and nothing else: no COPY, no end of a transaction. */
int guard_pq_sql_is_of_rows(const char *sql);
/* 1 when a statement of the text is ROLLBACK AND CHAIN, or COMMIT AND CHAIN, which in an aborted transaction is the same. */
int guard_pq_sql_chains(const char *sql, const guard_pq_spelling *spelling, int one_statement);
/* Something was sent whose answers come one by one; sql NULL: a prepared statement. */
void guard_pq_remember_sent(guard_pq *pq, const char *sql, int one_statement);
extern const guard_kind guard_pq_result_kind;

/* ----------------------------------------------------------------------------------------------- messages -- */

/*
 * Several statements in one message: open, PQsendQueryParams and the like, send. Each gives 1, or 0 as libpq does: then what was queued
 * cannot be taken back, and the caller cuts the connection. The transaction's state is known when all has been read.
 */
int guard_pq_message_open(guard_pq *pq);
int guard_pq_message_send(guard_pq *pq, unsigned statements);
/*
 * The next result of what was sent, a message or a statement, NULL at its end: 1; 0 past the deadline. A statement that the server has skipped
 * gives none.
 */
int guard_pq_next(guard_pq *pq, guard_pq_deadline deadline, PGresult **result);

/* ------------------------------------------------------------------------------------------------ flights -- */

/* Makes it the connection's, and registers it on the scope, for which one record was reserved. */
void guard_pq_flight_begin(guard_scope *scope, guard_pq_flight *flight, guard_pq *pq, guard_pq_flight_kind kind,
                           const guard_kind *record, const guard_place *place);
/* Of their kinds. */
int64_t guard_pq_flight_since(const void *object);
void guard_pq_flight_over(guard_pq_flight *flight);
/* For a release, with a copy of the flight, whose memory is gone: ends it in bounded time; panics when the connection had to be cut. */
void guard_pq_flight_abandon(const guard_pq_flight *flight, const char *what);

/* --------------------------------------------------------------------------------------- marker, resolving -- */

/* 1 when the text is an identifier, or two with a dot between. */
int guard_pq_table_is_plain(const char *name);
int guard_pq_random(void *bytes, size_t size);
/* The table is there and may be used; asked once for each connection. */
int guard_pq_marks_check(guard_pq *pq, guard_error *error);
/* Gives the session an id. */
int guard_pq_marks_begin(guard_pq *pq, guard_error *error);
/* The statement before COMMIT, as text; returns its length. */
int guard_pq_marks_sql(guard_pq *pq, char *sql, size_t size);
/* Sends the prepared one, and COMMIT, in one message: 1, or 0 as libpq does. */
int guard_pq_marks_send_commit(guard_pq *pq);
/* The transaction with this marker was committed or prepared. */
void guard_pq_marks_done(guard_pq *pq);
/* The row of a transaction was not put in: the next BEGIN looks at the table again, and says why. */
void guard_pq_marks_kept_out(guard_pq *pq);
/* COMMIT with this marker was refused. */
void guard_pq_marks_failed(guard_pq *pq, const char *sqlstate);
/* A command of anybody's was done on the connection: whether it took the prepared statements away. */
void guard_pq_marks_watch(guard_pq *pq, const char *tag);
/* Takes the session's row back, where the connection is idle. */
void guard_pq_marks_close(guard_pq *pq, guard_pq_deadline deadline);

/* 0, or the error's code. What cannot be asked leaves home->text empty. */
int guard_pq_home_read(PGconn *conn, guard_pq_deadline deadline, guard_pq_home *home, guard_error *error);
/* The connection's own, asked once. */
int guard_pq_home_check(guard_pq *pq, guard_error *error);
/* 1 when a token may have this as its home. */
int guard_pq_home_is_text(const char *text);
typedef enum guard_pq_place_verdict {
    GUARD_PQ_PLACE_SAME, /* or not known */
    GUARD_PQ_PLACE_OTHER,
    GUARD_PQ_PLACE_OLDER
} guard_pq_place_verdict;
guard_pq_place_verdict guard_pq_home_compare(const char *of_token, const guard_pq_home *found);

/* Writes the token of the transaction under way; xid is its number where it is known, else "". */
void guard_pq_token_write(const guard_pq *pq, const char *xid, char token[GUARD_TOKEN_SIZE]);

typedef struct guard_pq_doubt {
    const char *token;
    const char *table;
    const char *probe, *probe_key, *prepare_as;
    uint32_t notes;    /* out */
    guard_error error; /* out: why it is still IN_DOUBT */
} guard_pq_doubt;

/* Tries until it is known or the deadline has passed, making connections from the keywords; first on `conn` where it is not NULL. */
guard_outcome guard_pq_doubt_resolve(guard_pq_doubt *doubt, guard_pq_keywords *keywords, PGconn *conn,
                                     guard_pq_deadline deadline);

/* ---------------------------------------------------------------------------------------------------- driver -- */

guard_tx_status guard_pq_status(void *connection);
guard_outcome guard_pq_commit(void *connection, guard_result *result);
guard_outcome guard_pq_rollback(void *connection, guard_result *result);
/* ROLLBACK until the server has agreed, in bounded time: 1; else 0 with the connection cut and *error filled. */
int guard_pq_roll_back(guard_pq *pq, const char *sql, guard_pq_deadline deadline, guard_error *error);
/* The answer to what may have committed is lost: cut, and resolved as far as the marker goes. `why` for the error. */
guard_outcome guard_pq_in_doubt(guard_pq *pq, const char *why, guard_result *result);
/* The connection was lost with SQL on it that may have ended the transaction: resolved by a probe, else IN_DOUBT. */
guard_outcome guard_pq_lost_elsewhere(guard_pq *pq, guard_result *result);
/* Of a connection that is lost: what was on it may have ended the transaction. */
static inline int guard_pq_may_be_over(const guard_pq *pq)
{
    return pq->t.may_be_over || pq->outside;
}
/* How a transaction that is not there any more has ended. */
guard_outcome guard_pq_told_elsewhere(guard_pq *pq, guard_result *result);
#define GUARD_PQ_SIGN_SQL "SET LOCAL guard.transaction = 'open'"
/* After the answer of a ROLLBACK that may have been ROLLBACK TO: 0 where the transaction is still ours, else an error's code. */
int guard_pq_sign_check(guard_pq *pq, guard_error *error);
/* What is sent with BEGIN where the program has the connection, NULL where it has not. */
const char *guard_pq_sign_sql(guard_pq *pq);
/* The program is about to get the connection, in the middle of a transaction. */
void guard_pq_sign_now(guard_pq *pq);
/* Forgets what was remembered of a transaction. */
void guard_pq_transaction_clear(guard_pq *pq);
/* The same, and then remembers the options (NULL: defaults). */
void guard_pq_transaction_set(guard_pq *pq, const guard_pq_tx_options *options);

/* ----------------------------------------------------------------------------------------------------- begin -- */

int guard_pq_begin_driver(void *connection, const void *options, guard_error *error);
/* BEGIN is still to be sent, and what is sent next must not go without it. */
static inline int guard_pq_is_unsent(const guard_pq *pq)
{
    return GUARD_IMPL_UNLIKELY(pq->t.begin == GUARD_PQ_UNSENT) && pq->session.tx != NULL;
}
/* Sends it and waits: 0, or the error's code, and the transaction is UNBEGUN, or the connection lost. */
int guard_pq_begin_now(guard_pq *pq, guard_error *error);
void guard_pq_begin_or_panic(guard_pq *pq, const guard_place *place);
/* Opens a message with it, *statements long: 1, or 0 as guard_pq_message_open. The message's answer read, settle is told how it was. */
int guard_pq_begin_open(guard_pq *pq, unsigned *statements);
void guard_pq_begin_settle(guard_pq *pq, int code, const guard_error *error);

/* 'text', for SQL: 0, or the error's code where it is no text of the connection's encoding, or does not fit. */
int guard_pq_literal(PGconn *conn, char *to, size_t size, const char *text, guard_error *error);
/* That of the name under which the transaction under way is to be prepared. */
#define GUARD_PQ_NAME_LITERAL_MAX 416 /* 199 bytes, each doubled */
int guard_pq_name_literal(guard_pq *pq, char literal[GUARD_PQ_NAME_LITERAL_MAX], guard_error *error);

/* ---------------------------------------------------------------------------------------------- advisory locks -- */

/*
 * Releases the session's locks whose scopes are still open, before the connection is closed, given back or its caller's again. 0, or
 * the first error's code: then one may still be held.
 */
int guard_pq_locks_release(guard_pq *pq, guard_error *error);

/* ------------------------------------------------------------------------------------------------------ pool -- */

void guard_pq_pool_give(guard_pq_pool *pool, guard_pq *pq);

#endif
