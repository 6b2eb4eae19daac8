/* SPDX-License-Identifier: MIT */
/*
 * check_sqlite_busy.c: transactions that others are in the way of: waiting, snapshots, reruns (behaviours 40 and 41).
 */
#include <pthread.h>
#include <sched.h>

#include <guard/guard.h>
#include <guard/guard_sqlite.h>
#include <guard/tx.h>

#include "sqlite_table.h"
#include "suite.h"

/* ---------------------------------------------------------------------- 40 */

START_TEST(busy_at_begin_waits_to_the_deadline_and_says_what_to_do)
{
    GUARD_AUTO(s);
    guard_sqlite_tx_options options = {.busy_ms = 60};
    table_open_beside_other(s, NULL);
    database_exec(other, "BEGIN IMMEDIATE");
    int64_t started = now_ms();
    const guard_error *error = expect_panic(table_begin, &options, GUARD_SQLITE, SQLITE_BUSY);
    ck_assert_int_ge(now_ms() - started, 60);
    ck_assert_str_eq(error->message, "database is locked");
    ck_assert_str_eq(error->hint, "another connection held it for 60 ms: raise busy_ms, or end it");
    ck_assert_str_eq(error->file, "sqlite_table.c"); /* of the call */
    database_exec(other, "COMMIT");
    ck_assert_int_eq(guard_sqlite_transact(db, table_insert_one, NULL, &options, NULL), GUARD_COMMITTED);
    sqlite3_close(other);
}
END_TEST

START_TEST(busy_at_begin_on_an_adopted_handle_waits_as_long)
{
    GUARD_AUTO(s);
    table_open_beside_other(s, NULL);
    sqlite3 *raw = database_raw(path);
    sqlite3_busy_timeout(raw, 0);
    const guard_sqlite_options options = {.busy_ms = 60};
    db = guard_sqlite_adopt(s, raw, &options);
    database_exec(other, "BEGIN IMMEDIATE");
    int64_t started = now_ms();
    expect_panic(table_begin, NULL, GUARD_SQLITE, SQLITE_BUSY);
    ck_assert_int_ge(now_ms() - started, 60);
    started = now_ms();
    expect_panic(table_exec, (void *)"INSERT INTO t VALUES (1)", GUARD_SQLITE, SQLITE_BUSY);
    ck_assert_int_ge(now_ms() - started, 60);
    guard_sqlite_close(db);
    sqlite3_close(raw);
    sqlite3_close(other);
}
END_TEST

static void open_in_wal_mode(void *arg)
{
    GUARD_AUTO(s);
    guard_sqlite_open(s, path, &(guard_sqlite_options){.journal = GUARD_SQLITE_WAL, .busy_ms = *(int *)arg});
}

static void *commit_when_asked_for(void *arg)
{
    sched_yield();
    database_exec(other, "COMMIT");
    return arg;
}

/* SQLite does not call the busy handler there: two processes that made a database at the same time, and one failed at once. */
START_TEST(opening_in_wal_mode_waits_for_who_writes)
{
    GUARD_AUTO(s);
    int ms = 60;
    guard_error error;
    table_open_beside_other(s, NULL);
    guard_sqlite_close(db);
    database_exec(other, "BEGIN IMMEDIATE; INSERT INTO t VALUES (1)");
    int64_t started = now_ms();
    ck_assert_int_eq(guard_run(open_in_wal_mode, &ms, &error) & 0xff, SQLITE_BUSY);
    ck_assert_int_ge(now_ms() - started, 60);
    pthread_t thread;
    ck_assert_int_eq(pthread_create(&thread, NULL, commit_when_asked_for, NULL), 0);
    ms = 10000;
    int code = guard_run(open_in_wal_mode, &ms, &error);
    ck_assert_msg(code == 0, "%s", error.message);
    pthread_join(thread, NULL);
    sqlite3_close(other);
}
END_TEST

START_TEST(an_exclusive_transaction_keeps_readers_away_and_an_immediate_one_does_not)
{
    static const int modes[] = {GUARD_SQLITE_EXCLUSIVE, GUARD_SQLITE_IMMEDIATE};
    GUARD_AUTO(s);
    table_open_beside_other(s, NULL);
    sqlite3_busy_timeout(other, 0);
    for (int i = 0; i < 2; i++) {
        GUARD_AUTO(inner);
        guard_sqlite_begin(inner, db, &(guard_sqlite_tx_options){.mode = modes[i]});
        ck_assert_int_eq(sqlite3_exec(other, COUNT, NULL, NULL, NULL), i == 0 ? SQLITE_BUSY : SQLITE_OK);
    }
    sqlite3_close(other);
}
END_TEST

START_TEST(an_upgrade_from_reading_to_writing_against_a_writer_fails_at_once)
{
    GUARD_AUTO(s);
    const guard_sqlite_tx_options deferred = {.mode = GUARD_SQLITE_DEFERRED};
    table_open_beside_other(s, &(guard_sqlite_options){.busy_ms = 60000});
    guard_tx *tx = guard_sqlite_begin(s, db, &deferred);
    ck_assert_int_eq(guard_sqlite_query_int64(db, COUNT, -1), 0);
    database_exec(other, "BEGIN IMMEDIATE; INSERT INTO t VALUES (9)");
    /* In rollback-journal mode the other one waits for us to stop reading: its COMMIT takes PENDING. */
    sqlite3_busy_timeout(other, 0);
    ck_assert_int_eq(sqlite3_exec(other, "COMMIT", NULL, NULL, NULL), SQLITE_BUSY);
    int64_t started = now_ms();
    expect_panic(table_exec, (void *)"INSERT INTO t VALUES (1)", GUARD_SQLITE, SQLITE_BUSY);
    ck_assert_int_lt(now_ms() - started, 20000);
    guard_tx_rollback(tx);
    database_exec(other, "COMMIT");
    sqlite3_close(other);
}
END_TEST

typedef struct snapshot {
    int writes; /* how often the other one writes in between */
    int runs;
    int nested;
} snapshot;

static void write_row(guard_tx *tx, void *arg)
{
    (void)tx;
    (void)arg;
    guard_sqlite_exec(db, "INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t");
}

static void read_then_write(guard_tx *tx, void *arg)
{
    snapshot *test = arg;
    GUARD_AUTO(s);
    guard_sqlite_stmt *count = guard_sqlite_prepare(s, db, COUNT);
    guard_sqlite_step(count);
    if (test->runs++ < test->writes) {
        database_exec(other, "INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t");
    }
    guard_sqlite_reset(count);
    if (test->nested) {
        guard_result result;
        guard_tx_nested(tx, write_row, NULL, &result);
    } else {
        write_row(tx, NULL);
    }
}

static const guard_sqlite_options wal = {.journal = GUARD_SQLITE_WAL};

START_TEST(a_stale_snapshot_reruns_the_whole_body)
{
    GUARD_AUTO(s);
    const guard_sqlite_tx_options deferred = {.mode = GUARD_SQLITE_DEFERRED};
    snapshot test = {.writes = 2};
    guard_result result;
    table_open_beside_other(s, &wal);
    ck_assert_int_eq(guard_sqlite_transact(db, read_then_write, &test, &deferred, &result), GUARD_COMMITTED);
    ck_assert_uint_eq(result.attempts, 3);
    ck_assert_int_eq(test.runs, 3);
    ck_assert(!result.has_error);
    ck_assert_int_eq(database_number(path, COUNT), 3);
    sqlite3_close(other);
}
END_TEST

START_TEST(a_stale_snapshot_in_a_nested_part_reruns_from_the_outermost)
{
    GUARD_AUTO(s);
    const guard_sqlite_tx_options deferred = {.mode = GUARD_SQLITE_DEFERRED};
    snapshot test = {.writes = 1, .nested = 1};
    guard_result result;
    table_open_beside_other(s, &wal);
    ck_assert_int_eq(guard_sqlite_transact(db, read_then_write, &test, &deferred, &result), GUARD_COMMITTED);
    ck_assert_uint_eq(result.attempts, 2);
    ck_assert_int_eq(database_number(path, COUNT), 2);
    sqlite3_close(other);
}
END_TEST

START_TEST(reruns_are_counted_and_end)
{
    GUARD_AUTO(s);
    const guard_sqlite_tx_options deferred = {.mode = GUARD_SQLITE_DEFERRED, .tx = {.attempts = 2}};
    snapshot test = {.writes = 100};
    guard_result result;
    table_open_beside_other(s, &wal);
    ck_assert_int_eq(guard_sqlite_transact(db, read_then_write, &test, &deferred, &result), GUARD_ROLLED_BACK);
    ck_assert_uint_eq(result.attempts, 2);
    ck_assert_int_eq(result.error.code, SQLITE_BUSY_SNAPSHOT);
    ck_assert_int_eq(database_number(path, COUNT), 2);
    sqlite3_close(other);
}
END_TEST

START_TEST(no_other_error_reruns_the_body)
{
    GUARD_AUTO(s);
    int runs = 0;
    table_open_beside_other(s, NULL);
    ck_assert_int_eq(guard_sqlite_transact(db, table_insert_twice, &runs, NULL, NULL), GUARD_ROLLED_BACK);
    ck_assert_int_eq(runs, 1);
    sqlite3_close(other);
}
END_TEST

START_TEST(a_locked_table_in_a_shared_cache_is_waited_for)
{
    GUARD_AUTO(s);
    const guard_sqlite_options shared = {.flags = GUARD_SQLITE_URI, .busy_ms = 60};
    const char *uri = "file:guard?mode=memory&cache=shared";
    guard_sqlite *writer = guard_sqlite_open(s, uri, &shared);
    guard_sqlite_exec(writer, TABLE);
    db = guard_sqlite_open(s, uri, &shared);
    guard_tx *tx = guard_sqlite_begin(s, writer, NULL);
    guard_sqlite_exec(writer, "INSERT INTO t VALUES (1)");
    int64_t started = now_ms();
    const guard_error *error = expect_panic(table_begin, NULL, GUARD_SQLITE, SQLITE_LOCKED_SHAREDCACHE);
    ck_assert_int_ge(now_ms() - started, 60);
    ck_assert_msg(error->hint[0] != '\0', "no hint");
    guard_tx_commit(tx);
    ck_assert_int_eq(guard_sqlite_query_int64(db, COUNT, -1), 1);
}
END_TEST

/* ---------------------------------------------------------------------- 41 */

START_TEST(busy_at_commit_keeps_the_transaction_until_the_deadline_then_rolls_back)
{
    GUARD_AUTO(s);
    const guard_sqlite_tx_options options = {.commit_ms = 60};
    sqlite3_stmt *reader;
    guard_result result;
    table_open_beside_other(s, NULL);
    database_exec(other, "INSERT INTO t VALUES (8), (9)");
    sqlite3_prepare_v2(other, "SELECT id FROM t", -1, &reader, NULL);
    ck_assert_int_eq(sqlite3_step(reader), SQLITE_ROW);
    int64_t started = now_ms();
    ck_assert_int_eq(guard_sqlite_transact(db, table_insert_one, NULL, &options, &result), GUARD_ROLLED_BACK);
    ck_assert_int_ge(now_ms() - started, 60);
    ck_assert_int_eq(result.error.code, SQLITE_BUSY);
    ck_assert_str_eq(result.error.hint, "other connections used it for 60 ms: raise commit_ms");
    ck_assert(sqlite3_get_autocommit(guard_sqlite_raw(db)));
    sqlite3_finalize(reader);
    ck_assert_int_eq(database_number(path, COUNT), 2);
    sqlite3_close(other);
}
END_TEST

static sqlite3 *third;

/* Ends its reading as soon as the writer's COMMIT waits: then PENDING keeps new readers out. */
static void *end_reading(void *reader)
{
    while (sqlite3_exec(third, COUNT, NULL, NULL, NULL) != SQLITE_BUSY) {
        sched_yield();
    }
    sqlite3_finalize(reader);
    return NULL;
}

START_TEST(a_commit_that_waits_for_a_reader_commits_when_that_is_done)
{
    GUARD_AUTO(s);
    sqlite3_stmt *reader;
    guard_result result;
    pthread_t thread;
    table_open_beside_other(s, NULL);
    database_exec(other, "INSERT INTO t VALUES (8), (9)");
    sqlite3_prepare_v2(other, "SELECT id FROM t", -1, &reader, NULL);
    ck_assert_int_eq(sqlite3_step(reader), SQLITE_ROW);
    third = database_raw(path);
    sqlite3_busy_timeout(third, 0);
    ck_assert_int_eq(pthread_create(&thread, NULL, end_reading, reader), 0);
    guard_outcome outcome = guard_sqlite_transact(db, table_insert_one, NULL, NULL, &result);
    ck_assert_msg(outcome == GUARD_COMMITTED, "%s: %s", guard_outcome_name(outcome), result.error.message);
    pthread_join(thread, NULL);
    ck_assert_int_eq(database_number(path, COUNT), 3);
    sqlite3_close(third);
    sqlite3_close(other);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ contention */

#define CLERKS 4
#define TRANSFERS 40

typedef struct transfer {
    guard_sqlite *bank;
    int from;
    int to;
} transfer;

/* Reads first: in a DEFERRED transaction its snapshot is often stale when it writes. */
static void move_money(guard_tx *tx, void *arg)
{
    (void)tx;
    transfer *order = arg;
    GUARD_AUTO(s);
    guard_sqlite_stmt *read = guard_sqlite_prepare(s, order->bank, "SELECT money FROM account WHERE id = ?1");
    guard_sqlite_bind_int64(read, 1, order->from);
    ck_assert(guard_sqlite_step(read));
    int64_t money = guard_sqlite_column_int64(read, 0);
    guard_sqlite_reset(read);
    if (money < 10) {
        guard_panic(10, "account %d is empty", order->from);
    }
    /* The amount is computed from what was read: a lost update would change the sum. */
    guard_sqlite_stmt *write = guard_sqlite_prepare(s, order->bank, "UPDATE account SET money = ?2 WHERE id = ?1");
    guard_sqlite_bind_int64(write, 1, order->from);
    guard_sqlite_bind_int64(write, 2, money - 10);
    guard_sqlite_run(write);
    write = guard_sqlite_prepare(s, order->bank, "UPDATE account SET money = money + 10 WHERE id = ?1");
    guard_sqlite_bind_int64(write, 1, order->to);
    guard_sqlite_run(write);
    guard_sqlite_exec(order->bank, "INSERT INTO journal VALUES (NULL)");
}

typedef struct clerk {
    pthread_t thread;
    int mode;
    int number;
    long committed;
    long others;
    guard_error error;
} clerk;

static void run_clerk(void *arg)
{
    clerk *c = arg;
    const guard_sqlite_options open_options = {.synchronous = GUARD_SQLITE_SYNC_OFF};
    const guard_sqlite_tx_options options = {.mode = c->mode, .tx = {.attempts = -1, .retry_ms = -1}};
    GUARD_AUTO(s);
    transfer order = {.bank = guard_sqlite_open(s, path, &open_options)};
    for (int i = 0; i < TRANSFERS; i++) {
        guard_result result;
        order.from = (c->number + i) % 5;
        order.to = (c->number + 3 * i + 1) % 5;
        guard_outcome outcome = guard_sqlite_transact(order.bank, move_money, &order, &options, &result);
        if (outcome == GUARD_COMMITTED) {
            c->committed++;
        } else if (outcome != GUARD_ROLLED_BACK ||
                   (result.error.code != 10 && (result.error.code & 0xff) != SQLITE_BUSY)) {
            guard_panic_error(&result.error);
        } else {
            c->others++;
        }
    }
}

static void *start_clerk(void *arg)
{
    clerk *c = arg;
    if (guard_run(run_clerk, c, &c->error) == 0) {
        c->error.code = 0;
    }
    return NULL;
}

static void check_bank(int mode)
{
    clerk clerks[CLERKS];
    long committed = 0;
    path = database_new(
        "CREATE TABLE account(id INTEGER PRIMARY KEY, money INTEGER); CREATE TABLE journal(id INTEGER PRIMARY KEY);"
        "INSERT INTO account VALUES (0, 100), (1, 100), (2, 100), (3, 100), (4, 100); PRAGMA journal_mode = WAL");
    for (int i = 0; i < CLERKS; i++) {
        clerks[i] = (clerk){.mode = mode, .number = i};
        ck_assert_int_eq(pthread_create(&clerks[i].thread, NULL, start_clerk, &clerks[i]), 0);
    }
    for (int i = 0; i < CLERKS; i++) {
        pthread_join(clerks[i].thread, NULL);
        ck_assert_msg(clerks[i].error.code == 0, "%s", clerks[i].error.message);
        ck_assert_int_eq(clerks[i].committed + clerks[i].others, TRANSFERS);
        committed += clerks[i].committed;
    }
    ck_assert_int_eq(database_number(path, "SELECT sum(money) FROM account"), 500);
    ck_assert_int_eq(database_number(path, "SELECT count(*) FROM journal"), committed);
    ck_assert_int_gt(committed, 0);
}

START_TEST(threads_that_transfer_at_once_lose_no_money_and_are_told_the_truth)
{
    check_bank(GUARD_SQLITE_IMMEDIATE);
}
END_TEST

START_TEST(stale_snapshots_among_threads_are_rerun_until_they_commit)
{
    check_bank(GUARD_SQLITE_DEFERRED);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        busy_at_begin_waits_to_the_deadline_and_says_what_to_do,
        busy_at_begin_on_an_adopted_handle_waits_as_long,
        opening_in_wal_mode_waits_for_who_writes,
        an_exclusive_transaction_keeps_readers_away_and_an_immediate_one_does_not,
        an_upgrade_from_reading_to_writing_against_a_writer_fails_at_once,
        a_stale_snapshot_reruns_the_whole_body,
        a_stale_snapshot_in_a_nested_part_reruns_from_the_outermost,
        reruns_are_counted_and_end,
        no_other_error_reruns_the_body,
        a_locked_table_in_a_shared_cache_is_waited_for,
        busy_at_commit_keeps_the_transaction_until_the_deadline_then_rolls_back,
        a_commit_that_waits_for_a_reader_commits_when_that_is_done,
        threads_that_transfer_at_once_lose_no_money_and_are_told_the_truth,
        stale_snapshots_among_threads_are_rerun_until_they_commit,
    };
    return suite_run("sqlite_busy", tests, sizeof tests / sizeof *tests);
}
