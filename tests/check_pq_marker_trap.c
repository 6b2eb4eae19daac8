/* SPDX-License-Identifier: MIT */
/*
 * check_pq_marker_trap.c: a marker table on which somebody puts a trigger or a rule that keeps rows out, while a session uses it. The outcome told is
 * never that of the row that is missing.
 */
#include <stdbool.h>
#include <string.h>

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "pq_table.h"
#include "server.h"
#include "suite.h"
#include "wire_proxy.h"

static const char keep_out[] = "CREATE OR REPLACE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                               "IF NEW.fenced THEN RETURN NEW; END IF; RETURN NULL; END $$";

/* They let a resolver's fence in. */
static const struct {
    const char *put, *drop;
} traps[] = {
    {"CREATE TRIGGER keep_out BEFORE INSERT ON guard_marker FOR EACH ROW EXECUTE FUNCTION keep_out()",
     "DROP TRIGGER keep_out ON guard_marker"},
    {"CREATE RULE keep_out AS ON INSERT TO guard_marker WHERE NOT NEW.fenced DO INSTEAD NOTHING",
     "DROP RULE keep_out ON guard_marker"},
};
enum { TRAPS = sizeof traps / sizeof *traps };

typedef struct session {
    wire_proxy *proxy;
    guard_pq *pq;
    unsigned wire;
    const char *trap;  /* put before COMMIT */
    uint64_t answered; /* bytes of its answer that come through, before it is cut */
    bool cut;
} session;

static const guard_pq_tx_options with_row = {.marker = GUARD_PQ_MARKER_ROW, .resolve_ms = 5000};

static void write_and_spring(guard_tx *tx, void *arg)
{
    session *m = arg;
    guard_pq_exec(NULL, guard_pq_of(tx), "INSERT INTO t VALUES (1)");
    if (m->trap != NULL) {
        server_run(m->trap);
    }
    if (m->cut) {
        wire_proxy_mark(m->proxy, m->wire);
        wire_proxy_cut_after(m->proxy, m->wire, WIRE_TO_CLIENT, m->answered, WIRE_FIN | WIRE_DRAIN);
    }
}

/* The session has committed `before` transactions with a marker row. */
static void open_session(guard_scope *s, session *m, bool adopted, int before)
{
    server_reset();
    server_run(keep_out);
    PGconn *raw = NULL;
    if (adopted) {
        raw = PQconnectdb(wire_proxy_conninfo(m->proxy));
        guard_defer(s, (guard_fn *)PQfinish, raw);
    }
    m->pq = raw != NULL ? guard_pq_adopt(s, raw, NULL) : guard_pq_open(s, wire_proxy_conninfo(m->proxy), NULL);
    m->wire = wire_proxy_connections(m->proxy);
    for (int i = 0; i < before; i++) {
        ck_assert_int_eq(guard_pq_transact(m->pq, pq_do_nothing, NULL, &with_row, NULL), GUARD_COMMITTED);
    }
}

START_TEST(a_row_that_a_trap_has_kept_out_proves_no_rollback)
{
    session m = {.proxy = server_proxy(), .cut = true};
    for (size_t i = 0; i < TRAPS; i++) {
        for (int way = 0; way < 4; way++) {
            GUARD_AUTO(s);
            guard_result result;
            open_session(s, &m, way % 2, way / 2);
            m.trap = traps[i].put;
            guard_outcome told = guard_pq_transact(m.pq, write_and_spring, &m, &with_row, &result);
            server_wait_settled();
            int rows = (int)server_rows(1);
            ck_assert_msg(told == GUARD_IN_DOUBT || (told == GUARD_ROLLED_BACK && rows == 0), "trap %zu: %s, %d rows",
                          i, guard_outcome_name(told), rows);
            ck_assert_msg(i > 0 || rows == 1, "the trigger has kept the transaction out");
            if (told == GUARD_IN_DOUBT) {
                ck_assert_uint_eq(result.error.cause_count, 1);
                ck_assert_int_eq(result.error.causes[0].code, GUARD_PQ_MARKER);
            }
        }
    }
    wire_proxy_close(m.proxy);
}
END_TEST

/* Nobody could look while it was there. */
START_TEST(a_trap_that_was_dropped_before_anybody_looked_proves_no_rollback)
{
    session m = {.proxy = server_proxy(), .cut = true};
    for (int looks = 0; looks < 2; looks++) {
        GUARD_AUTO(s);
        guard_result result;
        guard_error error;
        guard_pq_tx_options options = {.marker = GUARD_PQ_MARKER_ROW, .resolve_ms = looks ? 5000 : 1};
        open_session(s, &m, 0, 1);
        m.trap = traps[0].put;
        if (!looks) {
            wire_proxy_admit(m.proxy, WIRE_REFUSE);
        }
        ck_assert_int_eq(guard_pq_transact(m.pq, write_and_spring, &m, &options, &result), GUARD_IN_DOUBT);
        wire_proxy_admit(m.proxy, WIRE_ADMIT);
        server_wait_settled();
        ck_assert_int_eq(server_rows(1), 1);
        server_run(traps[0].drop);
        if (looks) {
            server_run("VACUUM guard_marker"); /* forgets that there was one; whoever looked has left word */
        }
        guard_outcome found = guard_pq_resolve_from("", NULL, result.token, NULL, &error);
        ck_assert_msg(found == GUARD_IN_DOUBT, "looks %d: %s", looks, guard_outcome_name(found));
        ck_assert_int_eq(error.code, GUARD_PQ_MARKER);
    }
    wire_proxy_close(m.proxy);
}
END_TEST

static void begin_with_row(void *pq)
{
    GUARD_AUTO(s);
    guard_pq_begin(s, pq, &with_row);
}

START_TEST(a_session_whose_row_was_kept_out_says_so_at_its_next_begin)
{
    session m = {.proxy = server_proxy()};
    for (int adopted = 0; adopted < 2; adopted++) {
        GUARD_AUTO(s);
        guard_error error;
        open_session(s, &m, adopted, 1);
        m.trap = traps[0].put;
        ck_assert_int_eq(guard_pq_transact(m.pq, write_and_spring, &m, &with_row, NULL), GUARD_COMMITTED);
        ck_assert_int_eq(server_rows(1), 1);
        ck_assert_int_ne(guard_run(begin_with_row, m.pq, &error), 0);
        ck_assert_msg(error.domain == GUARD_PQ && error.code == GUARD_PQ_MARKER, "%s", error.message);
        server_run(traps[0].drop);
        server_run("DELETE FROM t");
        m.trap = NULL;
        ck_assert_int_eq(guard_pq_transact(m.pq, write_and_spring, &m, &with_row, NULL), GUARD_COMMITTED);
    }
    wire_proxy_close(m.proxy);
}
END_TEST

/* Cut at every byte of the answer: where the marker's part of it was read, and COMMIT's not. */
START_TEST(a_marker_that_is_known_to_be_kept_out_is_not_looked_for)
{
    session m = {.proxy = server_proxy(), .cut = true};
    int without = 0;
    for (bool fired = true; fired; m.answered++) {
        GUARD_AUTO(s);
        guard_result result;
        open_session(s, &m, m.answered % 2, 0);
        m.trap = traps[0].put;
        guard_outcome told = guard_pq_transact(m.pq, write_and_spring, &m, &with_row, &result);
        fired = wire_proxy_fired(m.proxy, m.wire, WIRE_TO_CLIENT);
        server_wait_settled();
        ck_assert_int_eq(server_rows(1), 1);
        ck_assert_msg(told == GUARD_IN_DOUBT || told == GUARD_COMMITTED, "%s", guard_outcome_name(told));
        without += told == GUARD_IN_DOUBT && strncmp(result.token, "pq:none", 7) == 0;
    }
    ck_assert_int_gt(without, 0);
    wire_proxy_close(m.proxy);
}
END_TEST

START_TEST(a_trigger_behind_the_row_is_no_trap)
{
    GUARD_AUTO(s);
    guard_result result;
    session m = {.proxy = server_proxy(), .cut = true};
    server_reset();
    server_run(keep_out);
    server_run("CREATE TRIGGER look AFTER INSERT ON guard_marker FOR EACH ROW EXECUTE FUNCTION keep_out()");
    m.pq = guard_pq_open(s, wire_proxy_conninfo(m.proxy), NULL);
    m.wire = wire_proxy_connections(m.proxy);
    ck_assert_int_eq(guard_pq_transact(m.pq, write_and_spring, &m, &with_row, &result), GUARD_COMMITTED);
    ck_assert(result.notes & GUARD_NOTE_RESOLVED);
    wire_proxy_close(m.proxy);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_row_that_a_trap_has_kept_out_proves_no_rollback,
        a_trap_that_was_dropped_before_anybody_looked_proves_no_rollback,
        a_session_whose_row_was_kept_out_says_so_at_its_next_begin,
        a_marker_that_is_known_to_be_kept_out_is_not_looked_for,
        a_trigger_behind_the_row_is_no_trap,
    };
    return suite_run("pq_marker_trap", tests, sizeof tests / sizeof *tests);
}
