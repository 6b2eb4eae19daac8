/* SPDX-License-Identifier: MIT */
/*
 * The ledger in SQLite: one connection that writes and one that reads, each used by one thread at a time under its mutex.
 *
 *   closed --session_take--> open --a request killed it--> broken --session_take--> open
 *
 * - What a session has open belongs to its owner, which is closed as a whole: by session_take when it is broken, and with the store.
 * - db, the statements and broken are touched by the holder of lock only.
 */
#include <pthread.h>

#include <guard/guard_file.h>
#include <guard/guard_mutex.h>
#include <guard/guard_sqlite.h>

#include "json.h"
#include "store.h"

typedef struct session {
    pthread_mutex_t lock;
    const char *path;
    guard_owner *owner;
    guard_sqlite *db;
    guard_sqlite_stmt *insert;
    guard_sqlite_stmt *by_key;
    guard_sqlite_stmt *balance;
    guard_sqlite_stmt *change;
    int broken;
} session;

typedef struct sqlite_ledger {
    store base;
    session writer;
    session reader;
} sqlite_ledger;

static const char schema[] =
    "CREATE TABLE IF NOT EXISTS account(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,"
    " balance INTEGER NOT NULL CHECK (balance >= 0)) STRICT;"
    "CREATE TABLE IF NOT EXISTS transfer(id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE,"
    /* Deferred: the journal's row is written first, and an account that is missing is found by its balance. */
    " debtor INTEGER NOT NULL REFERENCES account DEFERRABLE INITIALLY DEFERRED,"
    " creditor INTEGER NOT NULL REFERENCES account DEFERRABLE INITIALLY DEFERRED,"
    " amount INTEGER NOT NULL CHECK (amount > 0)) STRICT;";

/* ---------------------------------------------------------------------------------------------- sessions -- */

static void session_end(void *arg)
{
    session *at = arg;
    guard_owner *owner = at->owner;
    at->owner = NULL;
    at->db = NULL;
    at->broken = 0;
    if (owner != NULL) {
        guard_owner_close(owner);
    }
}

static void session_begin(session *at)
{
    at->owner = guard_owner_new();
    guard_scope *scope = guard_owner_scope(at->owner);
    guard_sqlite *db = guard_sqlite_open(scope, at->path, &(guard_sqlite_options){.journal = GUARD_SQLITE_WAL});
    guard_sqlite_exec(db, schema);
    at->insert = guard_sqlite_prepare(scope, db,
                                      "INSERT INTO transfer(key, debtor, creditor, amount) VALUES (?1, ?2, ?3, ?4)"
                                      " ON CONFLICT (key) DO NOTHING");
    at->by_key = guard_sqlite_prepare(scope, db, "SELECT id, debtor, creditor, amount FROM transfer WHERE key = ?1");
    at->balance = guard_sqlite_prepare(scope, db, "SELECT balance FROM account WHERE id = ?1");
    at->change = guard_sqlite_prepare(scope, db, "UPDATE account SET balance = balance + ?2 WHERE id = ?1");
    at->db = db;
}

/* Takes the session for the scope. */
static guard_sqlite *session_take(guard_scope *scope, session *at)
{
    guard_mutex_lock(scope, &at->lock, NULL);
    if (at->broken || at->db == NULL) {
        session_end(at);
        session_begin(at);
    }
    return at->db;
}

static void seed(sqlite_ledger *ledger, uint64_t count)
{
    GUARD_AUTO(s);
    guard_sqlite *db = session_take(s, &ledger->writer);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    guard_sqlite_stmt *insert = guard_sqlite_prepare(s, db, "INSERT INTO account(name, balance) VALUES (?1, ?2)");
    if (guard_sqlite_query_int64(db, "SELECT count(*) FROM account", 0) == 0) {
        for (uint64_t i = 0; i < count; i++) {
            guard_sqlite_bind_text(insert, 1, store_seed_name(s, i), -1);
            guard_sqlite_bind_int64(insert, 2, STORE_SEED_CENTS);
            guard_sqlite_run(insert);
        }
    }
    guard_tx_commit(tx);
}

static store *open_store(guard_scope *scope, const ledger_options *options)
{
    sqlite_ledger *ledger = guard_memory_allocate_array(scope, 1, sizeof *ledger, NULL);
    ledger->base.driver = &sqlite_store;
    session *const sessions[] = {&ledger->reader, &ledger->writer};
    for (size_t i = 0; i < 2; i++) {
        sessions[i]->path = options->database;
        pthread_mutex_init(&sessions[i]->lock, NULL);
        guard_defer(scope, session_end, sessions[i]);
    }
    seed(ledger, options->seed);
    return &ledger->base;
}

/* ------------------------------------------------------------------------------------------ transactions -- */

static guard_outcome transact(store *base, store_fn *fn, void *arg, const char *key, guard_result *result)
{
    GUARD_AUTO(s);
    session *writer = &((sqlite_ledger *)base)->writer;
    guard_sqlite *db = session_take(s, writer);
    store_body b = {{.store = base, .session = writer}, fn, arg};
    const guard_sqlite_tx_options options = {
        .marker = GUARD_SQLITE_PROBE, .probe = "SELECT 1 FROM transfer WHERE key = ?1", .probe_key = key};
    return guard_sqlite_transact(db, store_run_body, &b, &options, result);
}

static int journal(store_work *work, transfer *t)
{
    session *at = work->session;
    guard_sqlite_bind_text(at->insert, 1, t->key, -1);
    guard_sqlite_bind_int64(at->insert, 2, t->from);
    guard_sqlite_bind_int64(at->insert, 3, t->to);
    guard_sqlite_bind_int64(at->insert, 4, t->amount);
    guard_sqlite_run(at->insert);
    if (guard_sqlite_changes(at->db) == 1) {
        t->id = guard_sqlite_last_rowid(at->db);
        return 1;
    }
    guard_sqlite_bind_text(at->by_key, 1, t->key, -1);
    if (!guard_sqlite_step(at->by_key)) {
        guard_panic(3, "the transfer %s is neither there nor can it be written", t->key);
    }
    t->id = guard_sqlite_column_int64(at->by_key, 0);
    t->from = guard_sqlite_column_int64(at->by_key, 1);
    t->to = guard_sqlite_column_int64(at->by_key, 2);
    t->amount = guard_sqlite_column_int64(at->by_key, 3);
    guard_sqlite_reset(at->by_key);
    return 0;
}

static int64_t balance(store_work *work, int64_t account)
{
    session *at = work->session;
    guard_sqlite_bind_int64(at->balance, 1, account);
    int64_t cents = guard_sqlite_step(at->balance) ? guard_sqlite_column_int64(at->balance, 0) : -1;
    guard_sqlite_reset(at->balance);
    return cents;
}

static void change(store_work *work, int64_t account, int64_t cents)
{
    session *at = work->session;
    guard_sqlite_bind_int64(at->change, 1, account);
    guard_sqlite_bind_int64(at->change, 2, cents);
    guard_sqlite_run(at->change);
}

static void kill_connection(store_work *work)
{
    session *at = work->session;
    at->broken = 1;
    guard_sqlite_close(at->db);
    guard_panic_in(GUARD_SQLITE, SQLITE_IOERR, "chaos: the connection to the database is gone");
}

/* ----------------------------------------------------------------------------------------------- reading -- */

static json_t *accounts(guard_scope *scope, store *base)
{
    GUARD_AUTO(s);
    guard_sqlite *db = session_take(s, &((sqlite_ledger *)base)->reader);
    guard_sqlite_stmt *rows = guard_sqlite_prepare(s, db, "SELECT id, name, balance FROM account ORDER BY id");
    json_t *list = json_own(scope, json_array());
    while (guard_sqlite_step(rows)) {
        store_list_account(list, guard_sqlite_column_int64(rows, 0), guard_sqlite_column_text(rows, 1),
                           guard_sqlite_column_int64(rows, 2));
    }
    return list;
}

static json_t *transfers(guard_scope *scope, store *base, int64_t before, int64_t limit)
{
    GUARD_AUTO(s);
    guard_sqlite *db = session_take(s, &((sqlite_ledger *)base)->reader);
    guard_sqlite_stmt *rows = guard_sqlite_prepare(s, db,
                                                   "SELECT id, debtor, creditor, amount, key FROM transfer"
                                                   " WHERE id < ?1 ORDER BY id DESC LIMIT ?2");
    guard_sqlite_bind_int64(rows, 1, before);
    guard_sqlite_bind_int64(rows, 2, limit);
    json_t *list = json_own(scope, json_array());
    while (guard_sqlite_step(rows)) {
        store_list_transfer(list, guard_sqlite_column_int64(rows, 0), guard_sqlite_column_int64(rows, 1),
                            guard_sqlite_column_int64(rows, 2), guard_sqlite_column_int64(rows, 3),
                            guard_sqlite_column_text(rows, 4));
    }
    return list;
}

const store_driver sqlite_store = {.open = open_store,
                                   .transact = transact,
                                   .journal = journal,
                                   .balance = balance,
                                   .change = change,
                                   .kill = kill_connection,
                                   .accounts = accounts,
                                   .transfers = transfers};
