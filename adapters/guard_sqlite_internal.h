/* SPDX-License-Identifier: MIT */
/* What the files of the SQLite adapter share; for nobody else. */
#ifndef GUARD_SQLITE_INTERNAL_H
#define GUARD_SQLITE_INTERNAL_H

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_dump.h>
#include <guard/guard_sqlite.h>
#include <guard/tx.h>

#include <pthread.h>
#include <sys/types.h>
#include <time.h>

#define SAVEPOINT_LEVELS 4 /* deeper ones are prepared each time */

/* The statements that end and begin, prepared once for a connection. */
typedef enum control {
    CONTROL_BEGIN, /* + mode */
    CONTROL_COMMIT = CONTROL_BEGIN + 3,
    CONTROL_ROLLBACK,
    CONTROL_MARKER,
    CONTROL_SAVEPOINT, /* + level - 1 */
    CONTROL_RELEASE = CONTROL_SAVEPOINT + SAVEPOINT_LEVELS,
    CONTROL_ROLLBACK_TO = CONTROL_RELEASE + SAVEPOINT_LEVELS,
    CONTROL_PROOF = CONTROL_ROLLBACK_TO + SAVEPOINT_LEVELS,
    CONTROL_PROVE,
    CONTROL_COUNT
} control;

/* guard_sqlite_proof.c: the savepoint that says whose an adopted handle's transaction is; what was found of it. */
typedef enum proof { PROOF_NONE, PROOF_SET, PROOF_MAYBE } proof;
typedef enum proved { PROVED_OURS, PROVED_OTHER, PROVED_NOTHING } proved;

/* One wait for another connection. The clock is first read when there is something to wait for. */
typedef struct busy_wait {
    int32_t limit_ms; /* -1 for ever */
    unsigned tries;
    int64_t started_ms;
} busy_wait;

typedef struct sql_function sql_function;

struct guard_sqlite {
    sqlite3 *raw; /* NULL once closed; the handles below then have no connection */
    guard_tx_session session;
    guard_ticket ticket;
    int adopted;
    int is_inherited;   /* the parent's, in a forked child */
    int is_destination; /* of a backup that has not ended: `backups` */
    guard_sqlite *next_inherited;
    dev_t device; /* of its main file; inode 0: it has none */
    ino_t inode;
    time_t looked;      /* in which second its files were looked for: guard_sqlite_should_look */
    int64_t since;      /* guard_dump_clock */
    char path[104];     /* of its main file, cut, for descriptions: SQLite moves its own when a database is attached */
    int raw_given;      /* the program has a handle of SQLite's own, and may step statements that we do not see */
    unsigned reading;   /* statements of ours that stand on a row */
    int watched;        /* a transaction is open, or the connection is poisoned: look before each statement */
    unsigned calls;     /* calls of ours that SQLite is in: a latched panic has somebody who raises it */
    unsigned inside;    /* functions of the program's that SQLite is in: a statement is in its middle */
    const void *thread; /* of the open transaction: guard_sqlite_thread_here */
    int32_t busy_ms;    /* never 0 */
    int waiting;        /* `wait` belongs to a BEGIN or COMMIT */
    busy_wait wait;
    guard_latch latch; /* of user functions */
    int exiting;       /* and it is no panic: the thread ends */
    sqlite3_stmt *control[CONTROL_COUNT];
    guard_sqlite_stmt *statements;
    guard_sqlite_blob *blobs;
    guard_sqlite_backup *backups;      /* into this one */
    guard_sqlite_backup *backups_from; /* out of it */
    sql_function *functions;
    /* The open transaction, or the latest one. */
    guard_sqlite_tx_options options;
    int has_options;         /* 0: they are all 0, the defaults */
    int rolled_back;         /* it is known that SQLite rolled it back */
    int committed_elsewhere; /* SQL that we did not see committed, or tried to, or may have (adopted handles) */
    int committing;          /* COMMIT is ours */
    proof proof;             /* adopted handles, in a transaction that is not within one of the program's */
    unsigned proof_number;   /* in the name of that savepoint */
    unsigned version;        /* what its files had as the transaction got its lock */
    int has_version;
    int has_first_error;
    guard_error first_error; /* of a statement in it, which the program may have swallowed */
    char marker_session[33]; /* empty until a marker is needed; a session left in doubt is retired */
    int64_t marker_sequence;
};

struct guard_sqlite_stmt {
    guard_sqlite *db; /* NULL once the connection is closed */
    sqlite3_stmt *raw;
    guard_sqlite_stmt *next;
    guard_sqlite_stmt *previous;
    guard_ticket ticket;
    const guard_place *place;
    int64_t since; /* guard_dump_clock */
    int running;   /* SQLite is in a step of it */
    int stepped;
    int ends; /* COMMIT, END or ROLLBACK: not inside a guarded transaction */
    int cut;  /* reset by us in the middle: its next step is its end, for to begin again would write again */
};

/* guard_sqlite_error.c: what SQLite says about `rc`, as it stands now. sql may be NULL. */
void guard_sqlite_describe_error(sqlite3 *raw, int rc, const char *sql, guard_error *error);
/* The same; and remembers it for the open transaction. */
void guard_sqlite_note_error(guard_sqlite *db, int rc, const char *sql, guard_error *error);
/* After one statement of ours has failed with rc: remembers where that was the end of the open transaction. */
void guard_sqlite_note_end(guard_sqlite *db, int rc);
void guard_sqlite_raise(guard_sqlite *db, int rc, const char *sql, const guard_place *place) GUARD_NORETURN;

/* guard_sqlite_call.c: every call in which SQLite may wait, or run the program's functions. */
int guard_sqlite_call_prepare(guard_sqlite *db, const char *sql, int64_t length, unsigned flags, sqlite3_stmt **stmt,
                              const char **tail);
int guard_sqlite_call_step(guard_sqlite *db, sqlite3_stmt *stmt);
int guard_sqlite_call_step_adopted(guard_sqlite *db, sqlite3_stmt *stmt);
/* The progress handler of an opened connection, each so many instructions of SQLite's machine: some 10 us. */
#define GUARD_SQLITE_PROGRESS 1000
int guard_sqlite_progress(void *db);
/* When a call ended early because its thread was cancelled or is late, that is what is raised, not SQLite's word for it. */
void guard_sqlite_raise_cancel(int rc, const guard_place *place);
int guard_sqlite_call_exec(guard_sqlite *db, const char *sql, guard_sqlite_row_fn *row, void *arg, char **message);
int guard_sqlite_call_backup(guard_sqlite *db, sqlite3_backup *backup, int pages);
int guard_sqlite_call_open(const char *path, sqlite3 **raw, int flags, const char *vfs);
int guard_sqlite_call_close(sqlite3 *raw);
void guard_sqlite_call_close_later(sqlite3 *raw); /* sqlite3_close_v2 */
int guard_sqlite_call_reset(sqlite3_stmt *stmt);
int guard_sqlite_call_finalize(sqlite3_stmt *stmt);
int guard_sqlite_call_blob_open(guard_sqlite *db, const char *table, const char *column, int64_t rowid, int writable,
                                sqlite3_blob **blob);
int guard_sqlite_call_blob_read(guard_sqlite *db, sqlite3_blob *blob, void *data, int length, int offset);
int guard_sqlite_call_blob_write(guard_sqlite *db, sqlite3_blob *blob, const void *data, int length, int offset);
int guard_sqlite_call_blob_close(sqlite3_blob *blob);
sqlite3_backup *guard_sqlite_call_backup_open(sqlite3 *to, sqlite3 *from);
int guard_sqlite_call_backup_finish(sqlite3_backup *backup);
/* Runs one statement that returns nothing: the result code, nothing raised. */
int guard_sqlite_call_sql(guard_sqlite *db, const char *sql);
int guard_sqlite_prepare_control(guard_sqlite *db, control which);
int guard_sqlite_call_control_slow(guard_sqlite *db, control which);
int guard_sqlite_control_failed(guard_sqlite *db, control which, int rc);

/* guard_sqlite_call_step; inline for what every transaction calls. */
static inline __attribute__((always_inline)) int guard_sqlite_step_any(guard_sqlite *db, sqlite3_stmt *stmt)
{
    if (GUARD_IMPL_UNLIKELY(db->adopted)) {
        return guard_sqlite_call_step_adopted(db, stmt);
    }
    db->calls++;
    int state = guard_foreign_open();
    int rc = sqlite3_step(stmt);
    guard_foreign_close(state);
    db->calls--;
    return rc;
}

/*
 * Prepares on first use and runs; the extended result code, SQLITE_OK when it is done. Then the statement is at its end, where it holds nothing, and
 * is reset by the next step (c3ref/step.html): within that call the connection's mutex is locked already. After a failure it is reset at once.
 */
static inline int guard_sqlite_call_control(guard_sqlite *db, control which)
{
    sqlite3_stmt *stmt = db->control[which];
    if (GUARD_IMPL_UNLIKELY(stmt == NULL)) {
        return guard_sqlite_call_control_slow(db, which);
    }
    int rc = guard_sqlite_step_any(db, stmt);
    return GUARD_IMPL_LIKELY(rc == SQLITE_DONE) ? SQLITE_OK : guard_sqlite_control_failed(db, which, rc);
}

/* guard_sqlite_busy.c */
int guard_sqlite_busy_handler(void *db, int count);
int guard_sqlite_is_busy(int rc);             /* another connection is in the way, and waiting helps */
int guard_sqlite_wait_again(busy_wait *wait); /* sleeps a little; 0 when the time is up */
int64_t guard_sqlite_now_ms(void);
/* A BEGIN or COMMIT that ended with rc: again while another connection is in the way, until db->wait is over. */
int guard_sqlite_control_again(guard_sqlite *db, control which, int rc);

/* call_control with waiting; -1 for ever. */
static inline int guard_sqlite_control_waiting(guard_sqlite *db, control which, int32_t limit_ms)
{
    db->wait = (busy_wait){.limit_ms = limit_ms};
    db->waiting = 1;
    int rc = guard_sqlite_call_control(db, which);
    if (GUARD_IMPL_UNLIKELY(rc != SQLITE_OK)) {
        rc = guard_sqlite_control_again(db, which, rc);
    }
    db->waiting = 0;
    return rc;
}

/* guard_sqlite_stmt.c */
int guard_sqlite_look(guard_sqlite *db, const guard_place *place);
int guard_sqlite_prepare_into(guard_sqlite_stmt *stmt, guard_sqlite *db, const char **sql, const guard_place *place);
/* 0, or its code with *error filled where only its end failed: what it wrote is not kept. */
int guard_sqlite_detach_stmt(guard_sqlite_stmt *stmt, guard_error *error);
/* Resets it where it is in its middle, and lets its next step be its end. */
void guard_sqlite_cut(guard_sqlite_stmt *stmt);
/* Ends the reading of every statement; of an adopted handle only ours. */
void guard_sqlite_reset_all(guard_sqlite *db);
void guard_sqlite_reset_raw(sqlite3 *raw);

/* Slow side of guard_sqlite_is_inherited: tells the misuse. */
void guard_sqlite_refuse_inherited(const guard_place *place);

/* 1 in a forked child for a connection of the parent's, after the misuse was told. */
static inline int guard_sqlite_is_inherited(const guard_sqlite *db, const guard_place *place)
{
    if (GUARD_IMPL_LIKELY(!db->is_inherited)) {
        return 0;
    }
    guard_sqlite_refuse_inherited(place);
    return 1;
}

/* Slow side of guard_sqlite_is_refused: tells the misuse. */
void guard_sqlite_refuse(const guard_sqlite *db, const guard_place *place);

/* The same; also where a backup into the connection has not ended, for SQLite takes no other use of it then. */
static inline int guard_sqlite_is_refused(const guard_sqlite *db, const guard_place *place)
{
    if (GUARD_IMPL_LIKELY(!(db->is_inherited | db->is_destination))) {
        return 0;
    }
    guard_sqlite_refuse(db, place);
    return 1;
}

extern __thread char guard_sqlite_here __attribute__((tls_model("initial-exec"), visibility("hidden")));

/* Tells threads apart. */
static inline const void *guard_sqlite_thread_here(void)
{
    return &guard_sqlite_here;
}

static inline int guard_sqlite_check_stmt(const guard_sqlite_stmt *stmt, const guard_place *place)
{
    if (GUARD_IMPL_UNLIKELY(stmt == NULL || stmt->db == NULL)) {
        guard_impl_misuse(place, stmt == NULL ? GUARD_MISUSE_ARGUMENT : GUARD_MISUSE_STATE,
                          stmt == NULL ? "the statement is NULL" : "the statement's connection is closed");
        return 0;
    }
    return 1;
}

/* 1: a statement may run now. In a guarded transaction that is asked of SQLite each time. */
static inline int guard_sqlite_may_run(guard_sqlite *db, const guard_place *place)
{
    guard_impl_checkpoint(place);
    if (!db->watched) {
        return 1;
    }
    if (GUARD_IMPL_LIKELY(db->session.tx != NULL && db->thread == guard_sqlite_thread_here() && !db->is_inherited &&
                          !db->rolled_back && !sqlite3_get_autocommit(db->raw))) {
        return 1;
    }
    return guard_sqlite_look(db, place);
}

/* guard_sqlite_tx.c */
extern const guard_tx_driver guard_sqlite_driver;
int guard_sqlite_reset_writers(guard_sqlite *db);

/* guard_sqlite_proof.c */
unsigned guard_sqlite_proof_number(void);
int guard_sqlite_prepare_proof(guard_sqlite *db, guard_error *error); /* 0, or its code with *error filled */
int guard_sqlite_set_proof(guard_sqlite *db);
void guard_sqlite_forget_proof(guard_sqlite *db); /* of a former transaction */
proved guard_sqlite_prove(guard_sqlite *db, int *rc);
proved guard_sqlite_prove_at_rollback(guard_sqlite *db);
void guard_sqlite_note_version(guard_sqlite *db);
/* Whether the transaction's beginning was committed behind us: committed_elsewhere. */
void guard_sqlite_look_for_commit(guard_sqlite *db);

/* The same, before what may fail and take the transaction of an adopted handle back; before COMMIT more is known than this. */
static inline void guard_sqlite_look_behind(guard_sqlite *db)
{
    if (db->has_version && !db->waiting && db->session.tx != NULL) {
        guard_sqlite_look_for_commit(db);
    }
}

/* guard_sqlite_moved.c */
void guard_sqlite_note_root(void);
int guard_sqlite_look_for_files(guard_sqlite *db, guard_error *error); /* 1 with *error filled: one has lost its name */

static inline int guard_sqlite_should_look(const guard_sqlite *db, time_t *second)
{
    struct timespec now;
    if (db->inode == 0) {
        return 0;
    }
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    *second = now.tv_sec;
    return now.tv_sec != db->looked;
}

/* guard_sqlite_doubt.c: what a failed COMMIT that left no transaction means; fills notes and token. */
guard_outcome guard_sqlite_judge_commit(guard_sqlite *db, int rc, int wrote, guard_result *result);
/* 1 after a rollback of which parts may be in a file all the same. */
int guard_sqlite_cannot_undo(guard_sqlite *db);
int guard_sqlite_prepare_marker(guard_sqlite *db, guard_error *error);
int guard_sqlite_write_marker(guard_sqlite *db);
/* guard_sqlite_resolve.c */
void guard_sqlite_make_token(const guard_sqlite *db, char token[GUARD_TOKEN_SIZE]);
guard_outcome guard_sqlite_resolve_now(guard_sqlite *db, const char *token, const guard_sqlite_tx_options *options,
                                       guard_error *error);

/* guard_sqlite_exit.c: guard_latch_run and guard_latch_raise; pthread_exit in fn is raised too. */
int guard_sqlite_border(guard_sqlite *db, guard_latch *latch, guard_fn *fn, void *arg);
void guard_sqlite_latch_raise(guard_sqlite *db, guard_latch *latch);

/* guard_sqlite_function.c, _blob.c, _backup.c: when the connection closes. */
void guard_sqlite_remove_functions(guard_sqlite *db);
void guard_sqlite_detach_blobs(guard_sqlite *db);
int guard_sqlite_end_writable_blobs(guard_sqlite *db);
void guard_sqlite_detach_backups(guard_sqlite *db);

#endif
