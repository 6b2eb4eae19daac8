/* SPDX-License-Identifier: MIT */
#include "transfer.h"

#include <inttypes.h>

#include <guard/guard_context.h>

#include "dependency.h"
#include "log.h"
#include "receipt.h"
#include "refusal.h"
#include "service.h"

typedef struct attempt {
    store *in;
    guard_scope *scope; /* of the whole transfer: outlives the transaction, as its hook needs the receipt */
    const char *receipts;
    transfer wanted;
    transfer made;
    chaos_kind chaos;
    guard_file_replace *receipt;
    int replayed;
    guard_result result;
} attempt;

static void publish(void *arg)
{
    guard_file_replace_commit(arg);
}

static int64_t known_balance(store_work *work, int64_t account)
{
    int64_t cents = work->store->driver->balance(work, account);
    if (cents < 0) {
        refuse(404, "there is no account %" PRId64, account);
    }
    return cents;
}

/* In the order of their ids, so that two transfers never wait for each other. */
static void check_money(store_work *work, const transfer *t)
{
    int64_t low = known_balance(work, t->from < t->to ? t->from : t->to);
    int64_t high = known_balance(work, t->from < t->to ? t->to : t->from);
    int64_t from = t->from < t->to ? low : high;
    int64_t to = t->from < t->to ? high : low;
    if (from < t->amount) {
        refuse(409, "account %" PRId64 " has less than that", t->from);
    }
    if (to > INT64_MAX - t->amount) {
        refuse(422, "account %" PRId64 " cannot hold that much", t->to);
    }
}

static void check_replay(const transfer *made, const transfer *wanted)
{
    if (made->from != wanted->from || made->to != wanted->to || made->amount != wanted->amount) {
        refuse(422, "this Idempotency-Key was used for another transfer");
    }
}

static void begin_receipt(void *arg)
{
    attempt *a = arg;
    a->receipt = receipt_begin(a->scope, a->receipts, &a->made);
}

static void move_money(store_work *work, void *arg)
{
    attempt *a = arg;
    const store_driver *driver = work->store->driver;
    a->made = a->wanted;
    if (a->receipt != NULL) { /* of an attempt before */
        guard_file_replace_rollback(a->receipt);
    }
    a->replayed = !driver->journal(work, &a->made);
    if (a->replayed) {
        check_replay(&a->made, &a->wanted);
        return;
    }
    check_money(work, &a->made);
    driver->change(work, a->made.from, -a->made.amount);
    chaos_after_debit(a->chaos);
    if (a->chaos == CHAOS_KILL) {
        driver->kill(work);
    }
    driver->change(work, a->made.to, a->made.amount);
    dependency_call(DEPENDENCY_RECEIPTS, begin_receipt, a);
    guard_tx_on_commit(work->tx, publish, a->receipt);
}

static void ask_database(void *arg)
{
    attempt *a = arg;
    guard_outcome outcome = a->in->driver->transact(a->in, move_money, a, a->wanted.key, &a->result);
    service_count(outcome);
    if (outcome == GUARD_IN_DOUBT) {
        guard_panic_in(GUARD_TX, GUARD_TX_IN_DOUBT,
                       "the answer of the database is lost: ask again with the same key (%s)",
                       a->result.has_error ? a->result.error.message : "");
    }
    if (outcome != GUARD_COMMITTED) {
        guard_panic_error(&a->result.error);
    }
}

int transfer_make(store *in, const char *receipts, transfer *t, chaos_kind chaos)
{
    GUARD_AUTO(s);
    attempt a = {.in = in, .scope = s, .receipts = receipts, .wanted = *t, .chaos = chaos};
    dependency_call(DEPENDENCY_DATABASE, ask_database, &a);
    if (a.result.has_hook_error) {
        guard_context_set(s, "note", "the transfer is made; its receipt will be when the service starts");
        guard_log_error(log_get(), GUARD_LOG_WARNING, &a.result.hook_error);
    }
    *t = a.made;
    if (a.replayed) {
        receipt_mend(receipts, t);
    }
    return !a.replayed;
}
