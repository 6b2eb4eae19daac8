/* SPDX-License-Identifier: MIT */
/*
 * tx.h: guarded transactions, the part that all databases share.
 *
 * PURPOSE
 *
 *   A guarded transaction always ends, and the program always knows how. Leaving its scope without a commit rolls it
 *   back, whatever the way out is. Its outcome is not an error code: "COMMIT failed" can mean that it was rolled back,
 *   that it is still open, or that nobody knows yet, and these are different values that are always true.
 *
 * CALLING SEQUENCE
 *
 *   The scope form, for guarded code. An adapter begins; from there on everything is in this header:
 *
 *     GUARD_AUTO(s);
 *     guard_tx *tx = guard_sqlite_begin(s, db, NULL);
 *     ... work that panics when it fails ...
 *     guard_tx_commit(tx);                        // returns only if the transaction is committed
 *
 *   The border form, for a program that wants an answer and no panic. It begins, calls the body, commits, and runs the
 *   whole body again where only that helps (a serialization failure, a deadlock, SQLite's BUSY_SNAPSHOT):
 *
 *     guard_result result;
 *     if (guard_sqlite_transact(db, transfer, &order, NULL, &result) != GUARD_COMMITTED) {
 *         fprintf(stderr, "%s: %s\n", guard_outcome_name(result.outcome), result.error.message);
 *     }
 *
 *   Parts of a transaction are savepoints: guard_tx_begin_nested (scope form), guard_tx_nested (border form).
 *
 * OUTCOMES
 *
 *   OPEN -> COMMITTED | ROLLED_BACK | IN_DOUBT | PREPARED            the outermost one
 *   OPEN -> RELEASED | ROLLED_BACK                                   a nested one; RELEASED shares its parent's fate
 *   IN_DOUBT -> COMMITTED | ROLLED_BACK                              when it is resolved
 *
 *   An outcome changes only after the database agreed. When a commit fails and the database keeps the transaction
 *   (a deferred constraint), it stays OPEN: it may be mended and committed again, or it is rolled back in the end.
 *
 * ERRORS
 *
 *   A failing call panics with the database's own error (domain GUARD_SQLITE, GUARD_PQ), or with domain GUARD_TX and a
 *   guard_tx_code where the transaction did not end as asked. Ending twice, committing after a rollback, ending a
 *   parent before its nested one, using a handle on another thread: misuse (GUARD_MISUSE), and nothing is sent.
 *   A rollback that fails poisons the connection: its first error is kept, and nothing more is begun on it.
 *
 * THREADS
 *
 *   A transaction belongs to the thread that began it, and a connection has one tree of transactions at a time.
 *   Beginning on a connection whose transaction is open begins a nested one.
 *
 * The last part, "for authors of adapters", is what a database's adapter implements.
 */
#ifndef GUARD_TX_H
#define GUARD_TX_H

#include <guard/guard.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------- types -- */

typedef enum guard_outcome {
    GUARD_OPEN = 0,        /* not ended */
    GUARD_COMMITTED = 1,   /* acknowledged under the configured durability */
    GUARD_ROLLED_BACK = 2, /* nothing of it is kept, also not after a crash */
    GUARD_IN_DOUBT = 3,    /* COMMIT was asked for and its answer is lost; see the adapter's resolve */
    GUARD_PREPARED = 4,    /* kept by the database, to be committed or rolled back by name */
    GUARD_RELEASED = 5     /* a nested one: it is part of its parent now */
} guard_outcome;

/* "open", "committed", "rolled back", "in doubt", "prepared", "released". Constant text. Any thread. */
GUARD_API const char *guard_outcome_name(guard_outcome outcome);

/* The codes of domain GUARD_TX. */
typedef enum guard_tx_code {
    GUARD_TX_ROLLED_BACK = 1,   /* a commit found the transaction rolled back; the error says by what */
    GUARD_TX_IN_DOUBT = 2,      /* a commit's answer is lost */
    GUARD_TX_OVER = 3,          /* the database ended the transaction: a statement on its own is refused */
    GUARD_TX_NOT_OUTERMOST = 4, /* asked for what only an outermost transaction can give: durable, on_commit */
    GUARD_TX_POISONED = 5,      /* an earlier rollback on this connection failed */
    GUARD_TX_ROLLBACK = 6       /* a rollback failed */
} guard_tx_code;

/* What is worth knowing beside the outcome: bits of guard_result.notes. */
typedef enum guard_tx_note {
    GUARD_NOTE_NO_ROW_WRITTEN = 1,   /* whatever the outcome, no row is lost; a NOTIFY or a SET may be */
    GUARD_NOTE_READER_LEFT_OPEN = 2, /* it ended; a SELECT that was not read to its end still holds its snapshot */
    GUARD_NOTE_RESOLVED = 4,         /* the answer was lost, and the outcome was found by reading the marker or probe */
    GUARD_NOTE_STATUS_ONLY = 8,      /* the server's status says "committed"; without a marker that is no proof */
    GUARD_NOTE_HOOKS_DROPPED = 16,   /* it ended in doubt or prepared: its hooks were not run */
    GUARD_NOTE_ENDED_ELSEWHERE = 32, /* someone ended it with SQL of their own */
    GUARD_NOTE_MANY_FILES = 64,      /* several WAL files: each is committed or not by itself */
    GUARD_NOTE_POISONED = 128,       /* its rollback failed; the connection is not to be used again */
    GUARD_NOTE_LOCAL_ONLY = 256      /* committed on this server; the standbys that it should wait for may not have it */
} guard_tx_note;

#define GUARD_TOKEN_SIZE 192

/*
 * How a transaction ended. The caller of a border form allocates it, nothing in it needs to be set or freed; copy it freely.
 * error and hook_error are only to be read when has_error and has_hook_error say so.
 */
typedef struct guard_result {
    guard_outcome outcome;
    uint32_t notes;    /* guard_tx_note bits */
    uint32_t attempts; /* how often the body was run, or the transaction was tried to begin */
    uint8_t has_error;
    uint8_t has_hook_error;
    uint16_t reserved;
    uint32_t more_reserved[4];
    char token[GUARD_TOKEN_SIZE]; /* IN_DOUBT: what the adapter's resolve takes, also in another process; else empty */
    guard_error error;            /* the first error; what failed after it is attached as causes */
    guard_error hook_error;       /* the first panic of a hook, the others attached */
} guard_result;

typedef struct guard_tx guard_tx;

/* The body of a border form: works and returns to have it committed, panics (or rolls back) to have it undone. */
typedef void guard_tx_fn(guard_tx *tx, void *arg);

/*
 * What every adapter's options begin with. Zero is the default.
 */
typedef struct guard_tx_options {
    int32_t attempts; /* border form: how often the body may run; 0 means 5, -1 without limit, 1 never again */
    int32_t retry_ms; /* border form: no rerun is begun later than this; 0 means 10,000, -1 without limit */
    int32_t durable;  /* 1: must be outermost; inside another transaction it panics, GUARD_TX_NOT_OUTERMOST */
    uint32_t reserved[5];
} guard_tx_options;

/* ------------------------------------------------------------------------------------------------ ending -- */

/*
 * Commits; a nested one is released into its parent. Returns only when the outcome is COMMITTED, PREPARED (if that was
 * asked of the adapter) or RELEASED, after the hooks ran. Else it panics, and guard_tx_outcome says what happened: ROLLED_BACK,
 * IN_DOUBT, or OPEN where the database kept the transaction so that it can be mended.
 *
 * A panic that an automatic close held back (guard_raise_held) is raised first: nothing is committed after a failed cleanup.
 * Misuse, with nothing sent: a second commit, a commit after a rollback, a nested transaction still open.
 */
#define guard_tx_commit(tx) guard_tx_commit_at((tx), GUARD_HERE)
GUARD_API void guard_tx_commit_at(guard_tx *tx, const guard_place *place);

/*
 * Rolls back; a nested one takes back what was done since it began (ROLLBACK TO, then RELEASE). A second rollback is
 * harmless. Misuse after a commit, and while a nested transaction is still open. Panics when the database could not be told:
 * then the connection is poisoned.
 */
#define guard_tx_rollback(tx) guard_tx_rollback_at((tx), GUARD_HERE)
GUARD_API void guard_tx_rollback_at(guard_tx *tx, const guard_place *place);

/*
 * The outcome. While the transaction seems open the database is asked: when it was ended behind the guard's back (a full disk, an
 * interrupt, INSERT OR ROLLBACK) this says so. Any time until the scope closes; the thread that began it.
 */
GUARD_API guard_outcome guard_tx_outcome(guard_tx *tx);

/* The outcome with everything about it. The library's, valid until the transaction's scope closes. */
GUARD_API const guard_result *guard_tx_result(guard_tx *tx);

/* ---------------------------------------------------------------------------------------------- savepoints -- */

/*
 * Begins a part of the innermost open transaction, a savepoint with a generated name, owned by `scope`: leaving that scope
 * without a commit takes back this part only. Misuse unless tx is the innermost open one of its connection.
 *
 * The names guard_1, guard_2 and so on are the library's own: a savepoint that the program makes inside under the same name as this one, and
 * leaves there, is what a rollback of this one would find.
 */
#define guard_tx_begin_nested(scope, tx) guard_tx_begin_nested_at((scope), (tx), NULL, GUARD_HERE)

/*
 * The same under a name of your own, which may hold any character and may repeat an outer one: it is quoted. 1 to 63 bytes
 * (PostgreSQL cuts longer ones), else misuse.
 */
#define guard_tx_begin_savepoint(scope, tx, name) guard_tx_begin_nested_at((scope), (tx), (name), GUARD_HERE)
GUARD_API guard_tx *guard_tx_begin_nested_at(guard_scope *scope, guard_tx *tx, const char *name,
                                             const guard_place *place);

/*
 * The border form: runs fn(nested, arg) in a savepoint, commits it when fn returns and contains its panic. Returns RELEASED or
 * ROLLED_BACK and fills *result where it is not NULL. An error that only a rerun of the whole transaction can mend
 * is not contained: it panics on, after the savepoint was rolled back.
 */
#define guard_tx_nested(tx, fn, arg, result) guard_tx_nested_at((tx), (fn), (arg), (result), GUARD_HERE)
GUARD_API guard_outcome guard_tx_nested_at(guard_tx *tx, guard_tx_fn *fn, void *arg, guard_result *result,
                                           const guard_place *place);

/* ------------------------------------------------------------------------------------------------- hooks -- */

/*
 * Runs fn(arg) after the outermost transaction is committed, in the order of these calls, when the outcome is
 * already fixed. All of them run; the first panic of one goes to result.hook_error (in the scope form it is
 * also given to guard_note). A hook may begin a new transaction on the connection.
 *
 * The hooks of a nested transaction move to its parent when it is released and are dropped when it is rolled back.
 * If the outcome is IN_DOUBT, none runs until the handle is resolved, and none at all once its scope is closed; PREPARED runs none
 * (GUARD_NOTE_HOOKS_DROPPED).
 * Inside a transaction of the caller's own (begun by SQL, not by a guard) nobody would know of its commit:
 * panics with GUARD_TX_NOT_OUTERMOST. Panics with GUARD_MEMORY. Misuse once the transaction has ended.
 */
#define guard_tx_on_commit(tx, fn, arg) guard_tx_on_commit_at((tx), (fn), (arg), GUARD_HERE)
GUARD_API void guard_tx_on_commit_at(guard_tx *tx, guard_fn *fn, void *arg, const guard_place *place);

/*
 * Runs fn(arg) after this transaction, or an outer one it was released into, is rolled back, the newest first. Inside a
 * transaction of the caller's own it runs when this part is rolled back, and is dropped when it is released.
 */
#define guard_tx_on_rollback(tx, fn, arg) guard_tx_on_rollback_at((tx), (fn), (arg), GUARD_HERE)
GUARD_API void guard_tx_on_rollback_at(guard_tx *tx, guard_fn *fn, void *arg, const guard_place *place);

/* ----------------------------------------------------------------------------------- for authors of adapters -- */

/*
 * An adapter embeds one guard_tx_session in each of its connections and implements a guard_tx_driver. This file's code then owns
 * handles, nesting, hooks, reruns, states and misuse; the driver only talks to the database, and tells the truth.
 *
 * The driver's functions never panic and never jump: they return, and fill the error or the result. An error they fill has a
 * domain, a code that is not 0, and a message; its place is filled in by the caller of theirs. They are called by
 * the thread of the transaction only. `connection` is what guard_tx_session_open was given; options of the
 * transaction (deadlines, marker) are given to begin, and kept in the connection until the tree has ended.
 *
 * Each tree sees: begin, any number of savepoint / release / rollback_to, then commit or rollback until one of them returns
 * another outcome than GUARD_OPEN. A tree inside a caller's own transaction sees savepoint instead of begin, and ends
 * by release or rollback_to at level 1.
 */

/* What the database says about the connection's transaction. */
typedef enum guard_tx_status {
    GUARD_TX_IDLE = 0,    /* none is open */
    GUARD_TX_ACTIVE = 1,  /* one is open and works */
    GUARD_TX_ABORTED = 2, /* one is open, and only a rollback (or rollback to a savepoint) is possible */
    GUARD_TX_LOST = 3     /* the connection is known to be dead: it can only be rolled back */
} guard_tx_status;

typedef struct guard_tx_savepoint {
    unsigned level;   /* 1 for the outermost savepoint of the tree; a name may repeat at the same level */
    int in_foreign;   /* 1: level 1 is the root of a tree inside the caller's own transaction */
    const char *name; /* as it goes into SQL, quoted where needed: guard_LEVEL, or the user's */
    int named;        /* 1: the user's name */
} guard_tx_savepoint;

typedef struct guard_tx_driver {
    const char *name; /* "sqlite", "pq": in messages */

    /* Asks the database (sqlite3_get_autocommit, PQtransactionStatus), never a flag of the driver's own. Sends nothing. */
    guard_tx_status (*status)(void *connection);

    /*
     * Begins the outermost transaction; `options` is what the adapter's begin was given. 0, or the error's code with *error filled
     * and nothing open.
     */
    int (*begin)(void *connection, const void *options, guard_error *error);

    /*
     * Commits, within the driver's own deadlines, resolution included. It asks the database first: where there is no
     * transaction any more, or the connection is dead, it sends nothing and only tells how the transaction ended; it is
     * also called for that alone, when status says IDLE or LOST. Returns the outcome, which must be true:
     *   COMMITTED, PREPARED   acknowledged
     *   ROLLED_BACK           proved; result->error says why (the first swallowed error, where that was the reason)
     *   IN_DOUBT              result->error says why, result->token names it for a later resolve
     *   OPEN                  the database keeps the transaction and it can be mended; result->error says why
     * It sets has_error with error, and adds notes; it touches nothing else of *result.
     */
    guard_outcome (*commit)(void *connection, guard_result *result);

    /*
     * Rolls back within the driver's deadline, whatever is in flight. Returns ROLLED_BACK when that is certain (also because the
     * connection was cut so that the server does it), IN_DOUBT when it is not. An error (has_error) beside it means
     * that the connection is not to be used again: it is poisoned.
     */
    guard_outcome (*rollback)(void *connection, guard_result *result);

    /* 0, or the error's code with *error filled. rollback_to rolls back to the savepoint and releases it. */
    int (*savepoint)(void *connection, const guard_tx_savepoint *savepoint, guard_error *error);
    int (*release)(void *connection, const guard_tx_savepoint *savepoint, guard_error *error);
    int (*rollback_to)(void *connection, const guard_tx_savepoint *savepoint, guard_error *error);

    /*
     * 1 when only running the whole body again can help, and it may: by the error, or by an earlier one of this transaction that
     * the driver remembers. Called while the tree is still as the error left it or after it was rolled back, with an outcome that is
     * ROLLED_BACK, never after IN_DOUBT.
     */
    int (*retryable)(void *connection, const guard_error *error);

    /* Writes what the connection is ("ledger.db") as snprintf does, without secrets; may be NULL. */
    size_t (*describe)(const void *connection, char *text, size_t size);

    /*
     * Forgets the errors that retryable remembers. Called when hooks have run behind a rollback, as they may have run transactions of
     * their own; may be NULL where it remembers none.
     */
    void (*forget)(void *connection);

    const void *reserved[3]; /* NULL */
} guard_tx_driver;

/* Embedded in the adapter's connection. The fields are this file's code's; an adapter may read tx, poison.code and in_foreign. */
typedef struct guard_tx_session {
    const guard_tx_driver *driver;
    void *connection;
    guard_tx *tx;    /* the innermost open one; NULL when there is none */
    guard_tx *spare; /* handles that wait to be used again: a transaction allocates nothing in steady state */
    int in_foreign;  /* 1: the tree is a savepoint of the caller's own transaction */
    uint32_t spares;
    const void *thread; /* of the tree */
    guard_tx *handles;  /* all whose scopes are open */
    const struct guard_tx_counts *counts; /* the driver's, see guard_metrics.h */
    void *reserved[1];                    /* NULL */
    guard_error poison; /* code 0: healthy */
} guard_tx_session;

/* The driver must outlive the session. Allocates nothing. */
GUARD_API void guard_tx_session_open(guard_tx_session *session, const guard_tx_driver *driver, void *connection);

/*
 * To be called before the connection is closed: rolls back what is open, frees what is spare. Handles whose scopes are still
 * open stay valid, ended. Panics when the rollback failed, after everything else is done.
 */
GUARD_API void guard_tx_session_close(guard_tx_session *session);

/*
 * The adapter's scope form. Begins on the session: BEGIN, or a savepoint where the database says that a transaction is open.
 * Registers the handle on `scope`; its memory is given back when that closes. `driver_options` goes to driver->begin. Panics with
 * what begin says, GUARD_TX_POISONED, GUARD_TX_NOT_OUTERMOST, GUARD_MEMORY.
 */
GUARD_API guard_tx *guard_tx_begin(guard_scope *scope, guard_tx_session *session, const guard_tx_options *options,
                                   const void *driver_options, const guard_place *place);

/*
 * The adapter's border form, reruns included. `result` may be NULL. Where the session has an open transaction it is
 * guard_tx_nested, and panics where that does. Inside a transaction of the caller's own it is a savepoint: RELEASED instead of
 * COMMITTED, no reruns. Else it panics only for misuse. Returns result->outcome. A begin that failed is ROLLED_BACK, with the error.
 */
GUARD_API guard_outcome guard_tx_transact(guard_tx_session *session, guard_tx_fn *fn, void *arg,
                                          const guard_tx_options *options, const void *driver_options,
                                          guard_result *result, const guard_place *place);

/* What the adapter gave to guard_tx_session_open; NULL once the session is closed. */
GUARD_API void *guard_tx_connection(guard_tx *tx);
GUARD_API guard_tx_session *guard_tx_session_of(guard_tx *tx);

/*
 * Before each statement, where session->tx is not NULL and the database says GUARD_TX_IDLE: panics with GUARD_TX_OVER, so that
 * nothing is autocommitted by a program that believes to be in a transaction.
 */
GUARD_API void guard_tx_refuse(guard_tx_session *session, const guard_place *place) GUARD_NORETURN;

/*
 * Settles an IN_DOUBT handle after the adapter has resolved it: COMMITTED or ROLLED_BACK, anything else is misuse. Its hooks run.
 */
GUARD_API void guard_tx_settle(guard_tx *tx, guard_outcome outcome);

/* Poisons the session; the first error is kept. guard_tx_session.poison.code tells. Sends nothing. */
GUARD_API void guard_tx_poison(guard_tx_session *session, const guard_error *error);

/* Sleeps before attempt number `attempt` + 1 (1: the first rerun): 1 ms doubled up to 128 ms, of which a random half is kept. */
GUARD_API void guard_tx_backoff(unsigned attempt);

#ifdef __cplusplus
}
#endif

#endif
