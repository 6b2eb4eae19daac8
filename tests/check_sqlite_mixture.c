/* SPDX-License-Identifier: MIT */
/*
 * check_sqlite_mixture.c: guards and raw SQL on one handle, in every order that a seed draws: what each guard is told at its end holds
 * for the rows that went through it (behaviours 21, 22, 24, 44).
 */
#include <stdio.h>
#include <string.h>

#include <guard/guard.h>
#include <guard/guard_sqlite.h>
#include <guard/tx.h>

#include "crash_vfs.h"
#include "database.h"
#include "suite.h"

#define LEVELS 4
#define STEPS 14
#define ROWS 64

typedef enum belief { UNKNOWN, THERE, NOT_THERE } belief;

typedef struct mixture {
    guard_scope *scope;
    guard_sqlite *db;
    guard_tx *tx[LEVELS];
    int depth;
    int mode;
    unsigned state;
    int rows;
    int owner[ROWS]; /* the level that has the row */
    belief beliefs[ROWS];
    char story[1024];
} mixture;

static unsigned long told[6];

static unsigned draw(mixture *m, unsigned count)
{
    m->state ^= m->state << 13;
    m->state ^= m->state >> 17;
    m->state ^= m->state << 5;
    return m->state % count;
}

static void tell(mixture *m, const char *what)
{
    size_t used = strlen(m->story);
    snprintf(m->story + used, sizeof(m->story) - used, "%s; ", what);
}

/* ------------------------------------------------------------------------------------------------- steps */

static void begin(void *arg)
{
    mixture *m = arg;
    m->tx[m->depth] = guard_sqlite_begin(m->scope, m->db, &(guard_sqlite_tx_options){.mode = m->mode});
    m->depth++;
}

static void commit(void *arg)
{
    mixture *m = arg;
    guard_tx_commit(m->tx[m->depth - 1]);
}

static void roll_back(void *arg)
{
    mixture *m = arg;
    guard_tx_rollback(m->tx[m->depth - 1]);
}

static void insert(void *arg)
{
    mixture *m = arg;
    char sql[64];
    snprintf(sql, sizeof(sql), "INSERT INTO t VALUES (%d)", m->rows);
    guard_sqlite_exec(m->db, sql);
    m->owner[m->rows] = m->depth - 1;
    m->beliefs[m->rows] = UNKNOWN;
    m->rows++;
}

static void insert_or_rollback(void *arg)
{
    mixture *m = arg;
    guard_sqlite_exec(m->db, "INSERT OR ROLLBACK INTO t VALUES (1000)");
}

static void go_behind(mixture *m)
{
    static const char *const ways[] = {"COMMIT",
                                       "ROLLBACK",
                                       "INSERT OR ROLLBACK INTO t VALUES (1000)",
                                       "INSERT INTO other VALUES (1)",
                                       "SAVEPOINT mine; INSERT INTO other VALUES (2); ROLLBACK TO mine; RELEASE mine",
                                       "BEGIN",
                                       "BEGIN; INSERT INTO other VALUES (3)",
                                       "ROLLBACK; BEGIN",
                                       "COMMIT; BEGIN"};
    const char *sql = ways[draw(m, sizeof(ways) / sizeof(ways[0]))];
    tell(m, sql);
    sqlite3_exec(guard_sqlite_raw(m->db), sql, NULL, NULL, NULL);
}

/* The innermost guard has ended: what it was told is believed of its rows. */
static void believe(mixture *m, guard_outcome outcome)
{
    int level = m->depth - 1;
    told[outcome]++;
    tell(m, guard_outcome_name(outcome));
    for (int i = 0; i < m->rows; i++) {
        if (m->owner[i] != level || m->beliefs[i] != UNKNOWN) {
            continue;
        }
        if (outcome == GUARD_RELEASED) {
            m->owner[i] = level - 1;
        } else if (outcome == GUARD_COMMITTED) {
            m->beliefs[i] = THERE;
        } else if (outcome == GUARD_ROLLED_BACK) {
            m->beliefs[i] = NOT_THERE;
        } else {
            m->owner[i] = -1; /* in doubt, for good */
        }
    }
    m->depth--;
}

static void end(mixture *m, guard_fn *fn, const char *name)
{
    guard_error error;
    tell(m, name);
    guard_run(fn, m, &error);
    guard_outcome outcome = guard_tx_outcome(m->tx[m->depth - 1]);
    if (outcome == GUARD_OPEN) {
        guard_run(roll_back, m, &error);
        outcome = guard_tx_outcome(m->tx[m->depth - 1]);
    } else if (fn == commit) {
        /* Ended behind its back and still the innermost: its owner takes it off. */
        guard_run(roll_back, m, &error);
    }
    believe(m, outcome);
}

static void do_step(mixture *m)
{
    guard_error error;
    unsigned what = draw(m, 12);
    if (what < 4) {
        tell(m, "insert");
        guard_run(insert, m, &error);
    } else if (what == 4 && m->depth < LEVELS) {
        tell(m, "begin");
        guard_run(begin, m, &error);
    } else if (what == 5 || what == 6) {
        end(m, commit, "commit");
    } else if (what == 7) {
        end(m, roll_back, "rollback");
    } else if (what == 8 && draw(m, 3) == 0) {
        tell(m, "insert or rollback");
        guard_run(insert_or_rollback, m, &error);
    } else if (what == 9) {
        go_behind(m);
    }
}

/* ------------------------------------------------------------------------------------------------- a run */

static sqlite3 *open_raw(void)
{
    sqlite3 *raw = NULL;
    ck_assert_int_eq(sqlite3_open_v2("main.db", &raw, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, "crash"), SQLITE_OK);
    sqlite3_extended_result_codes(raw, 1);
    return raw;
}

static void compare(const mixture *m, unsigned seed)
{
    char sql[64];
    sqlite3 *raw = open_raw();
    database_check(raw);
    for (int i = 0; i < m->rows; i++) {
        snprintf(sql, sizeof(sql), "SELECT count(*) FROM t WHERE id = %d", i);
        long long found = database_number_on(raw, sql);
        ck_assert_msg(m->beliefs[i] == UNKNOWN || found == (m->beliefs[i] == THERE),
                      "seed %u: row %d was told %s and is %s: %s", seed, i,
                      m->beliefs[i] == THERE ? "committed" : "rolled back", found ? "there" : "not there", m->story);
    }
    sqlite3_close(raw);
}

/* `inside`: the guards are within a transaction that the program has begun. */
static void mix(unsigned seed, bool adopted, bool inside)
{
    const guard_sqlite_options options = {.vfs = "crash", .busy_ms = 1};
    guard_error error;
    mixture m = {.state = seed * 2654435761U + 12345, .mode = (int)(seed % 3)};
    crash_vfs_reset();
    sqlite3 *raw = open_raw();
    database_exec(raw, "CREATE TABLE t(id INTEGER PRIMARY KEY); CREATE TABLE other(x); INSERT INTO t VALUES (1000)");
    if (!adopted) {
        sqlite3_close(raw);
    }
    GUARD_SCOPE (s) {
        m.scope = s;
        m.db = adopted ? guard_sqlite_adopt(s, raw, &options) : guard_sqlite_open(s, "main.db", &options);
        if (inside) {
            database_exec(guard_sqlite_raw(m.db), "BEGIN");
        }
        guard_run(begin, &m, &error);
        for (int i = 0; i < STEPS && m.depth > 0; i++) {
            do_step(&m);
        }
        while (m.depth > 0) {
            end(&m, draw(&m, 2) ? commit : roll_back, "at the end");
        }
        guard_sqlite_close(m.db);
    }
    if (adopted) {
        /* What is open now is the program's own, and whatever becomes of that changes nothing of what was told. */
        sqlite3_exec(raw, draw(&m, 2) ? "COMMIT" : "ROLLBACK", NULL, NULL, NULL);
        sqlite3_close(raw);
    }
    compare(&m, seed);
}

START_TEST(a_mixture_of_guards_and_raw_sql_is_never_told_wrong)
{
    crash_vfs_install();
    for (unsigned seed = 1; seed <= 4000; seed++) {
        mix(seed, false, seed % 4 == 0);
    }
    ck_assert_uint_gt(told[GUARD_COMMITTED], 100);
    ck_assert_uint_gt(told[GUARD_ROLLED_BACK], 100);
    ck_assert_uint_gt(told[GUARD_RELEASED], 100);
}
END_TEST

START_TEST(a_mixture_on_an_adopted_handle_is_never_told_wrong)
{
    crash_vfs_install();
    for (unsigned seed = 1; seed <= 4000; seed++) {
        mix(seed, true, seed % 4 == 0);
    }
    ck_assert_uint_gt(told[GUARD_COMMITTED], 100);
    ck_assert_uint_gt(told[GUARD_IN_DOUBT], 100);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_mixture_of_guards_and_raw_sql_is_never_told_wrong,
        a_mixture_on_an_adopted_handle_is_never_told_wrong,
    };
    return suite_run("sqlite_mixture", tests, sizeof tests / sizeof *tests);
}
