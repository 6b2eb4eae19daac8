/* SPDX-License-Identifier: MIT */
/*
 * check_sqlite_memory.c: every allocation fails in turn, SQLite's and the library's own; the outcome told is the outcome found, and
 * everything is given back.
 */
#include <guard/guard.h>
#include <guard/guard_sqlite.h>
#include <guard/tx.h>

#include "database.h"
#include "fault_memory.h"
#include "suite.h"

#define TABLE "CREATE TABLE t(id INTEGER PRIMARY KEY, data BLOB)"
#define COUNT "SELECT count(*) FROM t"

/* ------------------------------------------------------------------------------------ SQLite's allocations */

static sqlite3_mem_methods real;
static unsigned long fail_at; /* 0: none */
static unsigned long count;
static bool stay; /* and every later one */
static bool hit;

static bool fails(void)
{
    count++;
    if (fail_at == 0 || (count != fail_at && !(stay && count > fail_at))) {
        return false;
    }
    hit = true;
    return true;
}

static void *take(int size)
{
    return fails() ? NULL : real.xMalloc(size);
}

static void *resize(void *memory, int size)
{
    return fails() ? NULL : real.xRealloc(memory, size);
}

/* Before SQLite's first use in the process. */
static void install(void)
{
    sqlite3_config(SQLITE_CONFIG_GETMALLOC, &real);
    sqlite3_mem_methods failing = real;
    failing.xMalloc = take;
    failing.xRealloc = resize;
    ck_assert_int_eq(sqlite3_config(SQLITE_CONFIG_MALLOC, &failing), SQLITE_OK);
    ck_assert_int_eq(sqlite3_initialize(), SQLITE_OK);
}

static void arm(unsigned long n, bool on)
{
    count = 0;
    fail_at = n;
    stay = on;
    hit = false;
}

/* ------------------------------------------------------------------------------------------- the scenario */

typedef struct scenario {
    const char *path;
    int marker;
    bool adopts;
    bool replaces;
    guard_outcome outcome;
    guard_result result;
} scenario;

static void hook(void *arg)
{
    (void)arg;
}

static void insert_rows(guard_tx *tx, void *arg)
{
    (void)arg;
    GUARD_AUTO(s);
    guard_tx_on_commit(tx, hook, NULL);
    guard_tx *nested = guard_tx_begin_nested(s, tx);
    guard_sqlite_stmt *stmt = guard_sqlite_prepare(s, guard_sqlite_of(tx), "INSERT INTO t VALUES (?1, zeroblob(2000))");
    for (int i = 0; i < 3; i++) {
        guard_sqlite_bind_int64(stmt, 1, i);
        guard_sqlite_run(stmt);
    }
    guard_tx_commit(nested);
}

static void open_and_transact(void *arg)
{
    scenario *run = arg;
    const guard_sqlite_tx_options options = {.marker = run->marker, .resolve_ms = 5};
    GUARD_AUTO(s);
    guard_sqlite *db = guard_sqlite_open(s, run->path, NULL);
    guard_sqlite_exec(db, "PRAGMA synchronous = OFF");
    run->outcome = guard_sqlite_transact(db, insert_rows, NULL, &options, &run->result);
}

static void insert_and_replace(guard_tx *tx, void *raw)
{
    insert_rows(tx, NULL);
    sqlite3_exec(raw, "COMMIT; BEGIN", NULL, NULL, NULL);
}

/* On a handle of the program's, which ends the transaction behind the guard's back and begins another. */
static void adopt_and_transact(void *arg)
{
    scenario *run = arg;
    sqlite3 *raw = NULL;
    if (sqlite3_open(run->path, &raw) == SQLITE_OK &&
        sqlite3_exec(raw, "PRAGMA synchronous = OFF", NULL, NULL, NULL) == SQLITE_OK) {
        run->outcome = guard_sqlite_transact_raw(raw, run->replaces ? insert_and_replace : insert_rows, raw, NULL,
                                                 &run->result);
    }
    sqlite3_close(raw);
}

static void look(const scenario *run, unsigned long n)
{
    long long rows = database_number(run->path, COUNT);
    ck_assert_msg(rows == 0 || rows == 3, "n %lu: half a transaction, %lld rows", n, rows);
    ck_assert_msg(run->outcome == GUARD_IN_DOUBT || (run->outcome == GUARD_COMMITTED) == (rows == 3),
                  "n %lu: told %s, %lld rows", n, guard_outcome_name(run->outcome), rows);
    sqlite3 *raw = database_raw(run->path);
    database_check(raw);
    database_exec(raw, "DELETE FROM t");
    sqlite3_close(raw);
}

static const char *new_file(const char *journal)
{
    const char *path = database_new(TABLE);
    sqlite3 *raw = database_raw(path);
    char *sql = sqlite3_mprintf("PRAGMA journal_mode = %s", journal);
    database_exec(raw, sql);
    sqlite3_free(sql);
    database_exec(raw, "CREATE TABLE guard_marker(session TEXT PRIMARY KEY, seq INTEGER NOT NULL, "
                       "fenced INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID");
    sqlite3_close(raw);
    return path;
}

/* Returns how many allocations there were. */
static unsigned long fail_each_of(scenario run, bool on)
{
    guard_error error;
    sqlite3_int64 used = sqlite3_memory_used();
    for (unsigned long n = 1;; n++) {
        run.outcome = GUARD_OPEN;
        arm(n, on);
        int told = guard_run(run.adopts ? adopt_and_transact : open_and_transact, &run, &error);
        bool was_hit = hit;
        arm(0, false);
        ck_assert_msg(told == 0 || (error.domain == GUARD_SQLITE && (error.code & 0xff) != 0), "n %lu: %s %d: %s", n,
                      guard_domain_name(error.domain), error.code, error.message);
        if ((told != 0 || run.adopts) && run.outcome == GUARD_OPEN) {
            run.outcome = GUARD_ROLLED_BACK; /* it could not be opened */
        }
        look(&run, n);
        ck_assert_msg(sqlite3_memory_used() == used, "n %lu: %lld bytes of SQLite's are left", n,
                      (long long)(sqlite3_memory_used() - used));
        if (!was_hit) {
            ck_assert_int_eq(run.outcome, run.replaces ? GUARD_IN_DOUBT : GUARD_COMMITTED);
            return n - 1;
        }
    }
}

static unsigned long fail_each(const char *journal, int marker, bool on)
{
    return fail_each_of((scenario){.path = new_file(journal), .marker = marker}, on);
}

START_TEST(any_failing_allocation_of_sqlite_leaves_a_true_outcome_with_a_journal)
{
    install();
    ck_assert_uint_gt(fail_each("delete", GUARD_SQLITE_MARKER_OFF, false), 30);
}
END_TEST

START_TEST(any_failing_allocation_of_sqlite_leaves_a_true_outcome_in_wal_mode)
{
    install();
    ck_assert_uint_gt(fail_each("wal", GUARD_SQLITE_MARKER_ROW, false), 30);
}
END_TEST

START_TEST(memory_that_stays_away_leaves_a_true_outcome_with_a_journal)
{
    install();
    ck_assert_uint_gt(fail_each("delete", GUARD_SQLITE_MARKER_ROW, true), 30);
}
END_TEST

START_TEST(memory_that_stays_away_leaves_a_true_outcome_in_wal_mode)
{
    install();
    ck_assert_uint_gt(fail_each("wal", GUARD_SQLITE_MARKER_OFF, true), 30);
}
END_TEST

START_TEST(any_failing_allocation_leaves_a_true_outcome_on_an_adopted_handle)
{
    install();
    for (int i = 0; i < 8; i++) {
        scenario run = {.path = new_file(i & 1 ? "wal" : "delete"), .adopts = true, .replaces = (i & 2) != 0};
        ck_assert_uint_gt(fail_each_of(run, (i & 4) != 0), 30);
    }
}
END_TEST

/* ----------------------------------------------------------------------------------- the library's allocations */

START_TEST(any_failing_allocation_of_the_library_leaves_a_true_outcome_and_gives_all_back)
{
    fault_memory_install();
    scenario run = {.path = new_file("delete")};
    guard_error error;
    guard_run(open_and_transact, &run, NULL); /* what the thread keeps is taken */
    look(&run, 0);
    size_t blocks = fault_memory_blocks();
    sqlite3_int64 used = sqlite3_memory_used();
    for (unsigned long n = 1;; n++) {
        run.outcome = GUARD_ROLLED_BACK;
        fault_memory_fail_at(n);
        int told = guard_run(open_and_transact, &run, &error);
        bool was_hit = fault_memory_was_hit();
        fault_memory_fail_at(0);
        ck_assert_msg(told == 0 || error.domain == GUARD_MEMORY, "n %lu: %s", n, error.message);
        look(&run, n);
        ck_assert_uint_eq(fault_memory_blocks(), blocks);
        ck_assert_int_eq(sqlite3_memory_used(), used);
        if (!was_hit) {
            ck_assert_int_eq(run.outcome, GUARD_COMMITTED);
            ck_assert_uint_gt(n, 4);
            break;
        }
    }
}
END_TEST

START_TEST(a_transaction_allocates_nothing_of_the_librarys_once_warm)
{
    fault_memory_install();
    const char *path = new_file("delete");
    GUARD_AUTO(s);
    guard_sqlite *db = guard_sqlite_open(s, path, NULL);
    for (int i = 0; i < 3; i++) {
        unsigned long taken = fault_memory_taken();
        {
            GUARD_AUTO(inner);
            guard_tx *tx = guard_sqlite_begin(inner, db, NULL);
            guard_tx *nested = guard_tx_begin_nested(inner, tx);
            guard_sqlite_exec(db, "INSERT INTO t VALUES (NULL, NULL)");
            guard_tx_commit(nested);
            guard_tx_commit(tx);
        }
        ck_assert_msg(i == 0 || fault_memory_taken() == taken, "%lu allocations", fault_memory_taken() - taken);
    }
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        any_failing_allocation_of_sqlite_leaves_a_true_outcome_with_a_journal,
        any_failing_allocation_of_sqlite_leaves_a_true_outcome_in_wal_mode,
        memory_that_stays_away_leaves_a_true_outcome_with_a_journal,
        memory_that_stays_away_leaves_a_true_outcome_in_wal_mode,
        any_failing_allocation_leaves_a_true_outcome_on_an_adopted_handle,
        any_failing_allocation_of_the_library_leaves_a_true_outcome_and_gives_all_back,
        a_transaction_allocates_nothing_of_the_librarys_once_warm,
    };
    return suite_run("sqlite_memory", tests, sizeof tests / sizeof *tests);
}
