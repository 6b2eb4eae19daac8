/* SPDX-License-Identifier: MIT */
/*
 * The ledger in PostgreSQL, over a pool of connections.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include <guard/guard_file.h>
#include <guard/guard_pq.h>

#include "json.h"
#include "store.h"

typedef struct pq_ledger {
    store base;
    guard_pq_pool *pool;
} pq_ledger;

static const char schema[] =
    /* Two ledgers that begin together on a new database make the tables once. */
    "SELECT pg_advisory_xact_lock(7310868);"
    "CREATE TABLE IF NOT EXISTS account(id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE,"
    " balance bigint NOT NULL CHECK (balance >= 0));"
    "CREATE TABLE IF NOT EXISTS transfer(id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key text NOT NULL UNIQUE,"
    " debtor bigint NOT NULL REFERENCES account DEFERRABLE INITIALLY DEFERRED,"
    " creditor bigint NOT NULL REFERENCES account DEFERRABLE INITIALLY DEFERRED,"
    " amount bigint NOT NULL CHECK (amount > 0));";

typedef struct number {
    char text[24];
} number;

static number number_of(int64_t value)
{
    number n;
    snprintf(n.text, sizeof n.text, "%" PRId64, value);
    return n;
}

static int64_t cell(const PGresult *rows, int row, int column)
{
    return strtoll(PQgetvalue(rows, row, column), NULL, 10);
}

static PGresult *ask(guard_scope *scope, guard_pq *pq, const char *sql, int count, const char *const *values)
{
    const guard_pq_params params = {.count = count, .values = values};
    return guard_pq_exec_params(scope, pq, sql, &params);
}

static void prepare_database(guard_pq_pool *pool, uint64_t count)
{
    GUARD_AUTO(s);
    guard_pq *pq = guard_pq_pool_take(s, pool, 0);
    guard_tx *tx = guard_pq_begin(s, pq, NULL);
    guard_pq_exec(NULL, pq, "SET LOCAL client_min_messages = warning");
    guard_pq_exec(NULL, pq, schema);
    if (guard_pq_query_int64(pq, "SELECT count(*) FROM account", 0) == 0) {
        number cents = number_of(STORE_SEED_CENTS);
        for (uint64_t i = 0; i < count; i++) {
            const char *values[] = {store_seed_name(s, i), cents.text};
            ask(NULL, pq, "INSERT INTO account(name, balance) VALUES ($1, $2)", 2, values);
        }
    }
    guard_tx_commit(tx);
}

static store *open_store(guard_scope *scope, const ledger_options *options)
{
    pq_ledger *ledger = guard_memory_allocate_array(scope, 1, sizeof *ledger, NULL);
    ledger->base.driver = &pq_store;
    ledger->pool = guard_pq_pool_open(scope, options->database, &(guard_pq_pool_options){.name = "ledger"});
    prepare_database(ledger->pool, options->seed);
    return &ledger->base;
}

/* ------------------------------------------------------------------------------------------ transactions -- */

static guard_outcome transact(store *base, store_fn *fn, void *arg, const char *key, guard_result *result)
{
    GUARD_AUTO(s);
    guard_pq *pq = guard_pq_pool_take(s, ((pq_ledger *)base)->pool, 0);
    store_body b = {{.store = base, .session = pq}, fn, arg};
    const guard_pq_tx_options options = {
        .marker = GUARD_PQ_MARKER_PROBE, .probe = "SELECT 1 FROM transfer WHERE key = $1", .probe_key = key};
    return guard_pq_transact(pq, store_run_body, &b, &options, result);
}

static int journal(store_work *work, transfer *t)
{
    GUARD_AUTO(s);
    number from = number_of(t->from);
    number to = number_of(t->to);
    number amount = number_of(t->amount);
    const char *values[] = {t->key, from.text, to.text, amount.text};
    /* Waits for another transaction that wrote this key: then there is a row, or there never was. */
    PGresult *rows = ask(s, work->session,
                         "INSERT INTO transfer(key, debtor, creditor, amount) VALUES ($1, $2, $3, $4)"
                         " ON CONFLICT (key) DO NOTHING RETURNING id",
                         4, values);
    if (PQntuples(rows) == 1) {
        t->id = cell(rows, 0, 0);
        return 1;
    }
    rows = ask(s, work->session, "SELECT id, debtor, creditor, amount FROM transfer WHERE key = $1", 1, values);
    if (PQntuples(rows) != 1) {
        guard_panic(3, "the transfer %s is neither there nor can it be written", t->key);
    }
    t->id = cell(rows, 0, 0);
    t->from = cell(rows, 0, 1);
    t->to = cell(rows, 0, 2);
    t->amount = cell(rows, 0, 3);
    return 0;
}

static int64_t balance(store_work *work, int64_t account)
{
    GUARD_AUTO(s);
    number id = number_of(account);
    PGresult *rows = ask(s, work->session, "SELECT balance FROM account WHERE id = $1 FOR UPDATE", 1,
                         (const char *[]){id.text});
    return PQntuples(rows) == 1 ? cell(rows, 0, 0) : -1;
}

static void change(store_work *work, int64_t account, int64_t cents)
{
    number id = number_of(account);
    number by = number_of(cents);
    ask(NULL, work->session, "UPDATE account SET balance = balance + $2 WHERE id = $1", 2,
        (const char *[]){id.text, by.text});
}

static void kill_connection(store_work *work)
{
    guard_pq_exec(NULL, work->session, "SELECT pg_terminate_backend(pg_backend_pid())");
    guard_panic(4, "chaos: the connection to the database is gone");
}

/* ----------------------------------------------------------------------------------------------- reading -- */

static json_t *accounts(guard_scope *scope, store *base)
{
    GUARD_AUTO(s);
    guard_pq *pq = guard_pq_pool_take(s, ((pq_ledger *)base)->pool, 0);
    PGresult *rows = guard_pq_exec(s, pq, "SELECT id, name, balance FROM account ORDER BY id");
    json_t *list = json_own(scope, json_array());
    for (int i = 0; i < PQntuples(rows); i++) {
        store_list_account(list, cell(rows, i, 0), PQgetvalue(rows, i, 1), cell(rows, i, 2));
    }
    return list;
}

static json_t *transfers(guard_scope *scope, store *base, int64_t before, int64_t limit)
{
    GUARD_AUTO(s);
    guard_pq *pq = guard_pq_pool_take(s, ((pq_ledger *)base)->pool, 0);
    number oldest = number_of(before);
    number most = number_of(limit);
    PGresult *rows = ask(s, pq,
                         "SELECT id, debtor, creditor, amount, key FROM transfer WHERE id < $1"
                         " ORDER BY id DESC LIMIT $2",
                         2, (const char *[]){oldest.text, most.text});
    json_t *list = json_own(scope, json_array());
    for (int i = 0; i < PQntuples(rows); i++) {
        store_list_transfer(list, cell(rows, i, 0), cell(rows, i, 1), cell(rows, i, 2), cell(rows, i, 3),
                            PQgetvalue(rows, i, 4));
    }
    return list;
}

const store_driver pq_store = {.open = open_store,
                               .transact = transact,
                               .journal = journal,
                               .balance = balance,
                               .change = change,
                               .kill = kill_connection,
                               .accounts = accounts,
                               .transfers = transfers};
