/* SPDX-License-Identifier: MIT */
/*
 * store.h: what the ledger asks of a database.
 *
 * A store is used by any number of threads. All of it is guarded code: what cannot be done panics.
 */
#ifndef LEDGER_STORE_H
#define LEDGER_STORE_H

#include <guard/guard.h>
#include <guard/tx.h>
#include <jansson.h>
#include <stdint.h>

#include "options.h"

enum { TRANSFER_KEY_SIZE = 65, TRANSFER_LIST = 1000 };

/* Amounts are cents. */
typedef struct transfer {
    int64_t id; /* the database's; 0 until it is journalled */
    int64_t from;
    int64_t to;
    int64_t amount;
    char key[TRANSFER_KEY_SIZE]; /* the idempotency key: there is one transfer with it at most */
} transfer;

typedef struct store store;

/* One attempt of a transaction, to be handed to the functions of the driver. */
typedef struct store_work {
    store *store;
    guard_tx *tx;
    void *session; /* the driver's */
} store_work;

typedef void store_fn(store_work *work, void *arg);

typedef struct store_driver {
    /* Opens the database for the scope, makes the tables where they are missing and, with --seed, accounts where there are none. */
    store *(*open)(guard_scope *scope, const ledger_options *options);

    /*
     * Runs fn in a transaction: a border. When the answer to COMMIT is lost, a transfer with this key proves that it happened.
     * Panics when there is no connection to be had.
     */
    guard_outcome (*transact)(store *in, store_fn *fn, void *arg, const char *key, guard_result *result);

    /* Writes the journal's row and fills id: 1. Where there is one with this key, fills *t with that: 0. */
    int (*journal)(store_work *work, transfer *t);

    /* The balance of an account, which nobody else changes until the transaction ends. -1: there is no such account. */
    int64_t (*balance)(store_work *work, int64_t account);
    void (*change)(store_work *work, int64_t account, int64_t cents);

    /* Loses the connection, and panics. */
    void (*kill)(store_work *work);

    /* [{"id", "name", "balance"}]; [{"id", "from", "to", "amount", "key"}], the newest first, older than `before`. */
    json_t *(*accounts)(guard_scope *scope, store *in);
    json_t *(*transfers)(guard_scope *scope, store *in, int64_t before, int64_t limit);
} store_driver;

/* A driver's store begins with this. */
struct store {
    const store_driver *driver;
};

extern const store_driver sqlite_store;
#ifdef LEDGER_WITH_PQ
extern const store_driver pq_store;
#endif

/* For a driver's transact: with this as the transaction's body, fn gets its work. */
typedef struct store_body {
    store_work work;
    store_fn *fn;
    void *arg;
} store_body;
void store_run_body(guard_tx *tx, void *body);

/* For a driver's accounts and transfers: append one. They copy the text. */
void store_list_account(json_t *list, int64_t id, const char *name, int64_t balance);
void store_list_transfer(json_t *list, int64_t id, int64_t from, int64_t to, int64_t amount, const char *key);

/* The name of the n-th account that --seed makes, counted from 0. Memory is the scope's. */
const char *store_seed_name(guard_scope *scope, uint64_t n);
enum { STORE_SEED_CENTS = 100000 };

#endif
