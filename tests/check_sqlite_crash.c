/* SPDX-License-Identifier: MIT */
/*
 * check_sqlite_crash.c: power goes out here, at each place where the disk changes: what was told as committed is there, what was told
 * as rolled back is not, and nothing is there by half (behaviours 44, 47). The same with a disk that fails before the power does.
 */
#include <stdio.h>

#include <guard/guard.h>
#include <guard/guard_sqlite.h>
#include <guard/tx.h>

#include "crash_vfs.h"
#include "database.h"
#include "suite.h"

#define TRANSACTIONS 5
#define ROWS 5         /* of each transaction */
#define TAKEN_BACK 100 /* + number: the rows of its savepoint that is taken back */
#define MONEY 1000

/* What one campaign varies. */
typedef struct campaign {
    const char *setup; /* SQL for the connection, before anything else */
    guard_sqlite_options open;
    int marker;
    bool may_lose; /* the latest commits may be lost, in order */
    bool two_files;
    unsigned seeds; /* draws for each place */
    int first;      /* with a disk that fails: the transaction in which it does, and the last one */
    int last;
} campaign;

/* What was told to the program up to now. */
typedef struct course {
    const campaign *c;
    guard_sqlite *db;
    bool is_set_up;
    guard_outcome told[TRANSACTIONS + 1];
    unsigned long place; /* of the fault, 0: none */
} course;

static unsigned long doubts;
static unsigned long settled[2]; /* committed, rolled back */

/* ---------------------------------------------------------------------------------------------- the program */

static void insert_rows(guard_sqlite *db, int number, int size)
{
    GUARD_AUTO(s);
    guard_sqlite_stmt *insert = guard_sqlite_prepare(s, db, "INSERT INTO t VALUES (?1, ?2, randomblob(?3))");
    for (int i = 0; i < ROWS; i++) {
        guard_sqlite_bind_int64(insert, 1, number);
        guard_sqlite_bind_int64(insert, 2, i);
        guard_sqlite_bind_int64(insert, 3, size);
        guard_sqlite_run(insert);
    }
}

static void transfer(guard_sqlite *db, int number)
{
    char sql[160];
    snprintf(sql, sizeof(sql),
             "UPDATE account SET money = money - %d WHERE id = 1; UPDATE account SET money = money + %d WHERE id = 2",
             number, number);
    guard_sqlite_exec(db, sql);
}

static void take_part_back(guard_tx *tx, void *arg)
{
    insert_rows(guard_sqlite_of(tx), TAKEN_BACK + *(int *)arg, 400);
    guard_tx_rollback(tx);
}

/* Transaction 3 fails of itself; 4 is larger than the cache, so that pages are written before COMMIT. */
static void run_body(guard_tx *tx, void *arg)
{
    int number = *(int *)arg;
    guard_sqlite *db = guard_sqlite_of(tx);
    insert_rows(db, number, number == 4 ? 9000 : 700);
    transfer(db, number);
    if (number == 2) {
        guard_tx_nested(tx, take_part_back, arg, NULL);
        guard_sqlite_exec(db, "UPDATE t SET data = zeroblob(500) WHERE tx = 1");
    }
    if (number == 5) {
        guard_sqlite_exec(db, "UPDATE t SET data = randomblob(800) WHERE tx < 5");
    }
    if (number == 3) {
        guard_panic(1, "this one is taken back");
    }
}

static void set_up(guard_sqlite *db, bool two_files)
{
    guard_sqlite_exec(db, "CREATE TABLE t(tx INTEGER, n INTEGER, data BLOB, PRIMARY KEY (tx, n));"
                          "CREATE INDEX by_data ON t(data);");
    guard_sqlite_marker_install(db);
    if (two_files) {
        guard_sqlite_exec(db, "CREATE TABLE other.account(id INTEGER PRIMARY KEY, money INTEGER)");
    } else {
        guard_sqlite_exec(db, "CREATE TABLE account(id INTEGER PRIMARY KEY, money INTEGER)");
    }
    guard_sqlite_exec(db, "INSERT INTO account VALUES (1, 1000), (2, 0)");
}

/* -------------------------------------------------------------------------------------------- after the cut */

static void compare(const course *run, sqlite3 *raw, unsigned seed)
{
    char sql[80];
    int moved = 0;
    bool lost = false;
    for (int i = 1; i <= TRANSACTIONS; i++) {
        snprintf(sql, sizeof(sql), "SELECT count(*) FROM t WHERE tx = %d", i);
        long long rows = database_number_on(raw, sql);
        ck_assert_msg(rows == 0 || rows == ROWS, "%s: transaction %d by half: %lld", run->c->setup, i, rows);
        bool missing = run->told[i] == GUARD_COMMITTED && rows == 0;
        ck_assert_msg(!missing || run->c->may_lose,
                      "%s, fault %lu (%s), operation %lu, seed %u: transaction %d was told %s", run->c->setup,
                      run->place, crash_vfs_hit_name(), crash_vfs_count(), seed, i, "committed and is lost");
        ck_assert_msg(run->told[i] != GUARD_ROLLED_BACK || rows == 0,
                      "%s, fault %lu (%s), operation %lu, seed %u: transaction %d was told rolled back and is there",
                      run->c->setup, run->place, crash_vfs_hit_name(), crash_vfs_count(), seed, i);
        ck_assert_msg(!lost || rows == 0, "transaction %d is there and an earlier one lost", i);
        lost |= missing;
        moved += rows != 0 ? i : 0;
    }
    ck_assert_int_eq(database_number_on(raw, "SELECT count(*) FROM t WHERE tx > 5"), 0);
    ck_assert_int_eq(database_number_on(raw, "SELECT sum(money) FROM account"), MONEY);
    ck_assert_int_eq(database_number_on(raw, "SELECT money FROM account WHERE id = 2"), moved);
}

static sqlite3 *open_image(course *run, unsigned seed)
{
    sqlite3 *raw = NULL;
    crash_vfs_image(seed);
    ck_assert_int_eq(sqlite3_open_v2("main.db", &raw, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, "image"), SQLITE_OK);
    if (run->c->two_files) {
        database_exec(raw, "ATTACH 'other.db' AS other");
    }
    return raw;
}

static void check_whole(const course *run, sqlite3 *raw, unsigned seed)
{
    long long whole = database_number_on(raw, "SELECT integrity_check = 'ok' FROM pragma_integrity_check LIMIT 1");
    ck_assert_msg(whole, "%s, fault %lu (%s), operation %lu, seed %u: the database is damaged", run->c->setup,
                  run->place, crash_vfs_hit_name(), crash_vfs_count(), seed);
}

static void look(course *run, unsigned seed)
{
    sqlite3 *raw = open_image(run, seed);
    check_whole(run, raw, seed);
    if (run->is_set_up) {
        compare(run, raw, seed);
    }
    sqlite3_close(raw);
}

/* The two ends, and draws that differ from place to place. */
static unsigned seed_of(const course *run, unsigned i)
{
    return i < 2 ? i : (unsigned)(crash_vfs_count() * 31 + run->place * 1009) + i;
}

/* Before the disk fails it is as in a run in which it does not. */
static void power_cut(void *arg)
{
    course *run = arg;
    if (run->place > 0 && (!crash_vfs_was_hit() || (crash_vfs_count() + run->place) % 8 != 0)) {
        return; /* one in eight: with so many places of the fault each has its turn */
    }
    unsigned first = run->place > 0 ? (unsigned)run->place % 4 : 0;
    for (unsigned i = 0; i < run->c->seeds; i++) {
        look(run, seed_of(run, first + i));
    }
}

/* ---------------------------------------------------------------------------------------------------- runs */

typedef struct asked {
    const char *token;
    guard_outcome answers[2];
} asked;

static void ask_twice(void *arg)
{
    const guard_sqlite_options options = {.vfs = "image"};
    asked *a = arg;
    GUARD_AUTO(s);
    guard_sqlite *db = guard_sqlite_open(s, "main.db", &options);
    a->answers[0] = guard_sqlite_resolve(db, a->token, NULL, NULL);
    a->answers[1] = guard_sqlite_resolve(db, a->token, NULL, NULL);
}

/* In doubt, and then the power goes: on what is left, asking tells what is there, and the same again. */
static void ask_after_the_cut(course *run, int number, const char *token)
{
    for (unsigned i = 0; i < 4; i++) {
        guard_error error;
        asked a = {.token = token};
        sqlite3_close(open_image(run, seed_of(run, i)));
        ck_assert_msg(guard_run(ask_twice, &a, &error) == 0, "%s", error.message);
        ck_assert_int_eq(a.answers[0], a.answers[1]);
        ck_assert(a.answers[0] == GUARD_COMMITTED || a.answers[0] == GUARD_ROLLED_BACK);
        settled[a.answers[0] == GUARD_ROLLED_BACK]++;
        run->told[number] = a.answers[0];
        sqlite3 *raw = NULL;
        ck_assert_int_eq(sqlite3_open_v2("main.db", &raw, SQLITE_OPEN_READWRITE, "image"), SQLITE_OK);
        check_whole(run, raw, i);
        compare(run, raw, i);
        sqlite3_close(raw);
    }
    run->told[number] = GUARD_IN_DOUBT;
}

static void settle(course *run, int number, const guard_result *result)
{
    guard_error error;
    doubts++;
    if (result->token[0] == '\0') {
        return;
    }
    ask_after_the_cut(run, number, result->token);
    guard_outcome outcome = guard_sqlite_resolve(run->db, result->token, NULL, &error);
    ck_assert_msg(outcome == GUARD_COMMITTED || outcome == GUARD_ROLLED_BACK, "%s", error.message);
    run->told[number] = outcome;
    power_cut(run);
}

static void run_transaction(course *run, int number)
{
    const guard_sqlite_tx_options options = {.marker = run->c->marker, .resolve_ms = 5, .tx = {.attempts = 1}};
    guard_result result;
    guard_outcome outcome = guard_sqlite_transact(run->db, run_body, &number, &options, &result);
    crash_vfs_disarm();
    run->told[number] = outcome;
    if (outcome == GUARD_IN_DOUBT) {
        settle(run, number, &result);
    }
    power_cut(run);
}

static guard_sqlite *open_files(guard_scope *s, const campaign *c)
{
    guard_sqlite_options options = c->open;
    options.vfs = "crash";
    options.busy_ms = 50;
    guard_sqlite *db = guard_sqlite_open(s, "main.db", &options);
    guard_sqlite_exec(db, "PRAGMA cache_size = 4");
    guard_sqlite_exec(db, c->setup);
    if (c->two_files) {
        guard_sqlite_exec(db, "ATTACH 'other.db' AS other; PRAGMA other.synchronous = EXTRA");
    }
    return db;
}

/* The transactions; with `place` the disk fails there in one of them. Returns whether it got there. */
static bool run_course(const campaign *c, crash_fault fault, bool on, unsigned long place)
{
    course run = {.c = c, .place = place};
    crash_vfs_reset();
    GUARD_SCOPE (s) {
        run.db = open_files(s, c);
        crash_vfs_watch(power_cut, &run);
        set_up(run.db, c->two_files);
        if (c->may_lose) {
            guard_sqlite_exec(run.db, "PRAGMA wal_checkpoint");
        }
        run.is_set_up = true;
        for (int i = 1; i <= (place > 0 ? c->last : TRANSACTIONS); i++) {
            if (place > 0 && i == c->first) {
                crash_vfs_arm(fault, place, on);
            }
            run_transaction(&run, i);
            ck_assert(crash_vfs_was_hit() || (run.told[i] == GUARD_COMMITTED) == (i != 3));
        }
    }
    power_cut(&run);
    return crash_vfs_was_hit();
}

static void cut_everywhere(const campaign *c)
{
    crash_vfs_install();
    run_course(c, CRASH_FAULT_ERROR, false, 0);
}

/*
 * The disk fails at each place of a transaction, for once and from there to its end, and then the power at each place of what follows.
 */
static void fail_and_cut_everywhere(const campaign *c, crash_fault fault)
{
    crash_vfs_install();
    for (int on = 0; on <= 1; on++) {
        unsigned long place = 1;
        while (run_course(c, fault, on, place)) {
            place++;
        }
        ck_assert_uint_gt(place, 5); /* it was outrun by the count */
    }
}

START_TEST(a_power_cut_anywhere_in_wal_mode_keeps_what_was_told)
{
    const campaign c = {.setup = "PRAGMA wal_autocheckpoint = 8", .open.journal = GUARD_SQLITE_WAL, .seeds = 6};
    cut_everywhere(&c);
}
END_TEST

START_TEST(a_power_cut_anywhere_with_a_deleted_journal_keeps_what_was_told)
{
    const campaign c = {.setup = "", .open.journal = GUARD_SQLITE_DELETE, .seeds = 6};
    cut_everywhere(&c);
}
END_TEST

START_TEST(a_power_cut_anywhere_with_a_truncated_journal_keeps_what_was_told)
{
    const campaign c = {.setup = "", .open.journal = GUARD_SQLITE_TRUNCATE, .seeds = 6};
    cut_everywhere(&c);
}
END_TEST

START_TEST(a_power_cut_anywhere_with_a_kept_journal_keeps_what_was_told)
{
    const campaign c = {.setup = "", .open.journal = GUARD_SQLITE_PERSIST, .seeds = 6};
    cut_everywhere(&c);
}
END_TEST

START_TEST(a_power_cut_anywhere_in_exclusive_locking_mode_keeps_what_was_told)
{
    const campaign wal = {.setup = "PRAGMA locking_mode = EXCLUSIVE", .open.journal = GUARD_SQLITE_WAL, .seeds = 4};
    const campaign journal = {
        .setup = "PRAGMA locking_mode = EXCLUSIVE", .open.journal = GUARD_SQLITE_DELETE, .seeds = 4};
    cut_everywhere(&wal);
    cut_everywhere(&journal);
}
END_TEST

START_TEST(a_power_cut_anywhere_keeps_two_files_with_journals_together)
{
    /* An attached file has SQLite's own FULL. */
    const campaign c = {.setup = "", .open.journal = GUARD_SQLITE_DELETE, .two_files = true, .seeds = 6};
    cut_everywhere(&c);
}
END_TEST

START_TEST(a_power_cut_with_less_syncing_loses_the_latest_commits_whole_and_revives_nothing)
{
    const campaign c = {.setup = "PRAGMA wal_autocheckpoint = 8",
                        .open = {.journal = GUARD_SQLITE_WAL, .synchronous = GUARD_SQLITE_SYNC_NORMAL},
                        .may_lose = true,
                        .seeds = 6};
    cut_everywhere(&c);
}
END_TEST

/* Transaction 1 is small; 4 writes pages before COMMIT, and a checkpoint follows. */
static void fail_small_and_large(campaign c, crash_fault fault)
{
    c.first = 1;
    c.last = 2;
    fail_and_cut_everywhere(&c, fault);
    c.first = 4;
    c.last = 5;
    fail_and_cut_everywhere(&c, fault);
}

START_TEST(a_failing_disk_and_a_power_cut_in_wal_mode_leave_what_was_told)
{
    const campaign c = {.setup = "", .open.journal = GUARD_SQLITE_WAL, .seeds = 1};
    fail_small_and_large(c, CRASH_FAULT_ERROR);
    ck_assert_uint_gt(doubts, 0);
}
END_TEST

START_TEST(a_failing_disk_and_a_power_cut_in_wal_mode_are_resolved_for_good)
{
    const campaign c = {.setup = "PRAGMA wal_autocheckpoint = 20",
                        .open.journal = GUARD_SQLITE_WAL,
                        .marker = GUARD_SQLITE_MARKER_ROW,
                        .seeds = 1};
    fail_small_and_large(c, CRASH_FAULT_ERROR);
    ck_assert_uint_gt(doubts, 0);
    ck_assert_uint_gt(settled[0], 0);
    ck_assert_uint_gt(settled[1], 0);
}
END_TEST

START_TEST(a_lying_disk_and_a_power_cut_in_wal_mode_are_resolved_for_good)
{
    campaign c = {.setup = "",
                  .open.journal = GUARD_SQLITE_WAL,
                  .marker = GUARD_SQLITE_MARKER_ROW,
                  .seeds = 2,
                  .first = 1,
                  .last = 2};
    fail_and_cut_everywhere(&c, CRASH_FAULT_DONE);
    fail_and_cut_everywhere(&c, CRASH_FAULT_CLEAN);
    ck_assert_uint_gt(settled[0], 0);
    ck_assert_uint_gt(settled[1], 0);
}
END_TEST

/*
 * Not with a truncated or kept journal: where the sync fails that ends one, SQLite begins the next journal over it, and a power
 * cut in the middle of that finds a mixture of both, which is not for us to mend.
 */
START_TEST(a_failing_disk_and_a_power_cut_with_a_deleted_journal_are_resolved_for_good)
{
    const campaign c = {
        .setup = "", .open.journal = GUARD_SQLITE_DELETE, .marker = GUARD_SQLITE_MARKER_ROW, .seeds = 1};
    fail_small_and_large(c, CRASH_FAULT_ERROR);
    fail_small_and_large(c, CRASH_FAULT_DONE);
    ck_assert_uint_gt(doubts, 0);
}
END_TEST

START_TEST(a_full_disk_and_a_power_cut_leave_what_was_told)
{
    const campaign wal = {.setup = "", .open.journal = GUARD_SQLITE_WAL, .seeds = 1};
    const campaign journal = {.setup = "", .open.journal = GUARD_SQLITE_DELETE, .seeds = 1};
    fail_small_and_large(wal, CRASH_FAULT_FULL);
    fail_small_and_large(journal, CRASH_FAULT_FULL);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_power_cut_anywhere_in_wal_mode_keeps_what_was_told,
        a_power_cut_anywhere_with_a_deleted_journal_keeps_what_was_told,
        a_power_cut_anywhere_with_a_truncated_journal_keeps_what_was_told,
        a_power_cut_anywhere_with_a_kept_journal_keeps_what_was_told,
        a_power_cut_anywhere_in_exclusive_locking_mode_keeps_what_was_told,
        a_power_cut_anywhere_keeps_two_files_with_journals_together,
        a_power_cut_with_less_syncing_loses_the_latest_commits_whole_and_revives_nothing,
        a_failing_disk_and_a_power_cut_in_wal_mode_leave_what_was_told,
        a_failing_disk_and_a_power_cut_in_wal_mode_are_resolved_for_good,
        a_lying_disk_and_a_power_cut_in_wal_mode_are_resolved_for_good,
        a_failing_disk_and_a_power_cut_with_a_deleted_journal_are_resolved_for_good,
        a_full_disk_and_a_power_cut_leave_what_was_told,
    };
    return suite_run("sqlite_crash", tests, sizeof tests / sizeof *tests);
}
