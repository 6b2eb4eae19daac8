/* SPDX-License-Identifier: MIT */
/*
 * Whether the transaction that is open on an adopted handle is still the one that the guard began.
 *
 * The raw handle may have been told COMMIT or ROLLBACK and then BEGIN. On an opened connection the hooks tell; those of an adopted handle are
 * the program's, and sqlite3_commit_hook does not give the old function back. So a savepoint is set behind BEGIN, under a name that no
 * other guard has. It goes with its transaction, whichever way that ends (lang_savepoint.html): where RELEASE finds none, ours is gone.
 *
 *   NONE --behind BEGIN--> SET --RELEASE: done, so it is ours------> NONE --COMMIT failed and left it open--> SET
 *                           |---RELEASE: no such one, so it is not-> NONE
 *                           |---RELEASE: SQLITE_BUSY, so it is ours-> SET     a statement that writes is in its middle
 *                           '---RELEASE: stopped, not known--------> MAYBE    it may be done all the same: only to find it proves anything
 *
 * Between the RELEASE and the COMMIT or ROLLBACK behind it, no code of the program's runs that could go behind us.
 *
 * A failed statement of ours may take back what is open, and with it the savepoint. Whether COMMIT came before is told by the pagers' data
 * versions (SQLITE_FCNTL_DATA_VERSION): while we hold a lock, nothing changes them but a COMMIT of this connection, and the rollback of a pager that
 * has failed. So they are looked at before each statement, and behind each function in it, for 210 instructions.
 */
#include "guard_sqlite_internal.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

unsigned guard_sqlite_proof_number(void)
{
    static atomic_uint latest;
    return atomic_fetch_add_explicit(&latest, 1, memory_order_relaxed) + 1;
}

void guard_sqlite_forget_proof(guard_sqlite *db)
{
    db->proof = PROOF_NONE;
    db->has_version = 0;
}

/*
 * Before BEGIN. No savepoint can be set while a statement that writes is in its middle, which is then in autocommit mode; and a transaction begun
 * there would take it in, and take back what is not its own.
 */
int guard_sqlite_prepare_proof(guard_sqlite *db, guard_error *error)
{
    guard_sqlite_forget_proof(db);
    int rc = guard_sqlite_prepare_control(db, CONTROL_PROOF);
    if (rc == SQLITE_OK) {
        rc = guard_sqlite_prepare_control(db, CONTROL_PROVE);
    }
    if (rc != SQLITE_OK) {
        guard_sqlite_describe_error(db->raw, rc, "SAVEPOINT", error);
        return rc;
    }
    if (sqlite3_txn_state(db->raw, NULL) == SQLITE_TXN_WRITE) {
        guard_error_set(error, GUARD_SQLITE, SQLITE_BUSY, "a statement of the handle that writes is in its middle");
        snprintf(error->hint, sizeof(error->hint), "run it to its end, or reset it, before a transaction is begun");
        return SQLITE_BUSY;
    }
    return 0;
}

/* Of all files but the temporary one. */
static unsigned data_versions(guard_sqlite *db)
{
    unsigned version = 0;
    sqlite3_file_control(db->raw, NULL, SQLITE_FCNTL_DATA_VERSION, &version);
    unsigned sum = version;
#if SQLITE_VERSION_NUMBER >= 3039000
    const char *name;
    for (int i = 2; (name = sqlite3_db_name(db->raw, i)) != NULL; i++) {
        version = 0;
        sqlite3_file_control(db->raw, name, SQLITE_FCNTL_DATA_VERSION, &version);
        sum += version;
    }
#endif
    return sum;
}

/* Nothing of ours is in the transaction before it has a lock; a DEFERRED one is begun without. */
void guard_sqlite_note_version(guard_sqlite *db)
{
    if (sqlite3_txn_state(db->raw, NULL) != SQLITE_TXN_NONE) {
        db->version = data_versions(db);
        db->has_version = 1;
    }
}

void guard_sqlite_look_for_commit(guard_sqlite *db)
{
    if (db->has_version && data_versions(db) != db->version) {
        db->committed_elsewhere = 1;
    }
}

int guard_sqlite_set_proof(guard_sqlite *db)
{
    int rc = guard_sqlite_call_control(db, CONTROL_PROOF);
    db->proof = rc == SQLITE_OK ? PROOF_SET : PROOF_NONE;
    if (rc == SQLITE_OK && !db->has_version) {
        guard_sqlite_note_version(db);
    }
    return rc;
}

/*
 * A progress handler of the program's is also asked behind the end of a statement, and its INTERRUPT hides the code (vdbe.c, vdbe_return), but not
 * the words of the error that was there before (tried).
 */
static int is_not_found(guard_sqlite *db, int rc)
{
    static const char words[] = "no such savepoint";
    return (rc == SQLITE_ERROR || rc == SQLITE_INTERRUPT) &&
           strncmp(sqlite3_errmsg(db->raw), words, sizeof(words) - 1) == 0;
}

proved guard_sqlite_prove(guard_sqlite *db, int *rc)
{
    *rc = guard_sqlite_call_control(db, CONTROL_PROVE);
    if (*rc == SQLITE_OK) {
        db->proof = PROOF_NONE;
    }
    if (*rc == SQLITE_OK || *rc == SQLITE_BUSY) { /* that is found out behind the look for it (vdbe.c, OP_Savepoint) */
        db->committed_elsewhere = 0; /* a file that an interrupted DEFERRED read later has another version too */
        return PROVED_OURS;
    }
    if (is_not_found(db, *rc) && db->proof == PROOF_SET) {
        /* Ours is gone, and part of it may be committed. What is open is the program's own. */
        db->proof = PROOF_NONE;
        db->rolled_back = 1;
        db->committed_elsewhere = 1;
        return PROVED_OTHER;
    }
    db->proof = *rc == SQLITE_INTERRUPT ? PROOF_MAYBE : db->proof;
    return PROVED_NOTHING;
}

/* An interrupt holds until no statement of the connection is running any more; see send_rollback. */
proved guard_sqlite_prove_at_rollback(guard_sqlite *db)
{
    int rc;
    proved found = guard_sqlite_prove(db, &rc);
    for (int tries = 0; found == PROVED_NOTHING && rc == SQLITE_INTERRUPT && tries < 3; tries++) {
        guard_sqlite_reset_all(db);
        found = guard_sqlite_prove(db, &rc);
    }
    if (found == PROVED_NOTHING) {
        db->committed_elsewhere = 1; /* perhaps */
    }
    return found;
}
