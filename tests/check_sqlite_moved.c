/* SPDX-License-Identifier: MIT */
/*
 * check_sqlite_moved.c: a database file that loses its name while it is open: what nobody else would see is not told as committed.
 */
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_sqlite.h>
#include <guard/tx.h>

#include "calls.h"
#include "scratch.h"
#include "sqlite_table.h"
#include "suite.h"

static const guard_sqlite_options wal = {.journal = GUARD_SQLITE_WAL, .synchronous = GUARD_SQLITE_SYNC_OFF};

static void insert_row(guard_tx *tx, void *arg)
{
    (void)tx;
    (void)arg;
    guard_sqlite_exec(db, "INSERT INTO t VALUES (NULL)");
}

static void lose_name(int way)
{
    char elsewhere[300];
    snprintf(elsewhere, sizeof(elsewhere), "%s", database_beside("elsewhere.db"));
    if (way == 2) { /* replaced by another database */
        sqlite3 *raw = database_raw(elsewhere);
        database_exec(raw, TABLE);
        sqlite3_close(raw);
        ck_assert_int_eq(rename(elsewhere, path), 0);
        return;
    }
    ck_assert_int_eq(way == 0 ? unlink(path) : rename(path, elsewhere), 0);
}

/* Commits until it cannot: COMMIT looks once in a second. */
static void expect_found_out(guard_result *result)
{
    int64_t begun = now_ms();
    guard_outcome outcome = GUARD_COMMITTED;
    while (outcome == GUARD_COMMITTED && now_ms() - begun < 10000) {
        pause_ms(20);
        outcome = guard_sqlite_transact(db, insert_row, NULL, NULL, result);
    }
    ck_assert_msg(outcome == GUARD_ROLLED_BACK, "%s", guard_outcome_name(outcome));
    ck_assert_int_eq(result->error.code, SQLITE_READONLY_DBMOVED);
    ck_assert_str_ne(result->error.hint, "");
}

START_TEST(a_file_that_has_lost_its_name_takes_no_commit)
{
    for (int i = 0; i < 6; i++) {
        GUARD_AUTO(s);
        guard_result result;
        table_open(s, TABLE, i < 3 ? &wal : NULL);
        sqlite3 *raw = NULL;
        if (i == 4) {
            raw = database_raw(path);
            db = guard_sqlite_adopt(s, raw, NULL);
        }
        ck_assert_int_eq(guard_sqlite_transact(db, insert_row, NULL, NULL, &result), GUARD_COMMITTED);
        lose_name(i % 3);
        expect_found_out(&result);
        /* It does not come back by itself. */
        ck_assert_int_eq(guard_sqlite_transact(db, insert_row, NULL, NULL, &result), GUARD_ROLLED_BACK);
        guard_sqlite_close(db);
        sqlite3_close(raw);
    }
}
END_TEST

START_TEST(a_file_that_goes_in_the_middle_of_a_transaction_is_missed_at_its_commit)
{
    GUARD_AUTO(s);
    guard_error error;
    table_open(s, TABLE, &wal);
    guard_tx *tx = guard_sqlite_begin(s, db, NULL);
    table_insert(1);
    lose_name(0); /* no COMMIT has looked before: this one does */
    ck_assert_int_eq(guard_run(call_commit, tx, &error), SQLITE_READONLY_DBMOVED);
    ck_assert_has(error.message, path);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_OPEN);
    guard_tx_rollback(tx);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
}
END_TEST

START_TEST(a_wal_that_is_deleted_takes_no_commit_and_loses_none)
{
    guard_result result;
    GUARD_SCOPE (s) {
        char beside[300];
        table_open(s, TABLE, &wal);
        for (int i = 0; i < 3; i++) {
            ck_assert_int_eq(guard_sqlite_transact(db, insert_row, NULL, NULL, &result), GUARD_COMMITTED);
        }
        snprintf(beside, sizeof(beside), "%s-wal", path);
        ck_assert_int_eq(unlink(beside), 0);
        expect_found_out(&result);
        ck_assert_has(result.error.message, "WAL of database main");
    }
    /* Nobody else came meanwhile, so that the last close has copied it back. */
    ck_assert_int_ge(database_number(path, COUNT), 3);
}
END_TEST

START_TEST(an_attached_file_that_has_lost_its_name_takes_no_commit)
{
    GUARD_AUTO(s);
    guard_result result;
    table_open(s, TABLE, &wal);
    char sql[320];
    snprintf(sql, sizeof(sql), "ATTACH '%s' AS beside; CREATE TABLE beside.u(x)", database_beside("beside.db"));
    guard_sqlite_exec(db, sql);
    ck_assert_int_eq(unlink(database_beside("beside.db")), 0);
    expect_found_out(&result);
    ck_assert_has(result.error.message, "database beside");
}
END_TEST

/* In a process of its own: 77 where it may not be tried. */
static int commit_in_another_root(void)
{
    GUARD_AUTO(s);
    table_open(s, TABLE, &wal);
    const char *jail = scratch_folder(SCRATCH_IN_MEMORY);
    if ((chroot(jail) != 0 && (unshare(CLONE_NEWUSER) != 0 || chroot(jail) != 0)) || chdir("/") != 0) {
        return 77;
    }
    int64_t begun = now_ms();
    while (now_ms() - begun < 1100) { /* for the time itself: in one of these seconds it looks */
        pause_ms(50);
        guard_result result;
        if (guard_sqlite_transact(db, insert_row, NULL, NULL, &result) != GUARD_COMMITTED) {
            fprintf(stderr, "%s\n", result.error.message);
            return 1;
        }
    }
    return 0;
}

/* WAL and its index are open, so that SQLite needs no name. */
START_TEST(a_file_out_of_sight_behind_a_chroot_is_not_taken_for_gone)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        _exit(commit_in_another_root());
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) {
        puts("chroot is not allowed here");
        return;
    }
    ck_assert_int_eq(WEXITSTATUS(status), 0);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_file_that_has_lost_its_name_takes_no_commit,
        a_file_that_goes_in_the_middle_of_a_transaction_is_missed_at_its_commit,
        a_wal_that_is_deleted_takes_no_commit_and_loses_none,
        an_attached_file_that_has_lost_its_name_takes_no_commit,
        a_file_out_of_sight_behind_a_chroot_is_not_taken_for_gone,
    };
    return suite_run("sqlite_moved", tests, sizeof tests / sizeof *tests);
}
