/* SPDX-License-Identifier: MIT */
/*
 * check_pq_begin.c: GUARD_PQ_BEGIN_WITH_FIRST: BEGIN goes with the first statement, and nothing runs outside of the transaction for that.
 */
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "pq_table.h"
#include "suite.h"

/* libpq sends with this one. Each is a round trip, as an answer is waited for. */
static int sends;

__attribute__((visibility("default"))) ssize_t send(int descriptor, const void *bytes, size_t size, int flags)
{
    __atomic_add_fetch(&sends, 1, __ATOMIC_RELAXED);
    return syscall(SYS_sendto, descriptor, bytes, size, flags, NULL, 0);
}

static const guard_pq_tx_options with_first = {.flags = GUARD_PQ_BEGIN_WITH_FIRST};
static const guard_pq_tx_options alone;

/* Sessions that are in a transaction as the server sees it. */
#define IN_TRANSACTION \
    "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()"

/* ------------------------------------------------------------------------------------------------ round trips -- */

static int sends_of_an_insert(guard_pq *pq, const guard_pq_tx_options *options, int id)
{
    GUARD_AUTO(s);
    int before = sends;
    guard_tx *tx = guard_pq_begin(s, pq, options);
    pq_insert_params(pq, id);
    guard_tx_commit(tx);
    return sends - before;
}

START_TEST(a_transaction_of_one_statement_needs_two_round_trips)
{
    GUARD_AUTO(s);
    guard_pq_tx_options marked = {.flags = GUARD_PQ_BEGIN_WITH_FIRST, .marker = GUARD_PQ_MARKER_ROW};
    guard_pq *pq = pq_open(s);
    ck_assert_int_eq(sends_of_an_insert(pq, &alone, 1), 3);
    ck_assert_int_eq(sends_of_an_insert(pq, &with_first, 2), 2);
    sends_of_an_insert(pq, &marked, 3); /* the first asks for the marker's table */
    ck_assert_int_eq(sends_of_an_insert(pq, &marked, 4), 2);
    guard_pq_prepare(pq, "insert", "/* t */ INSERT INTO t VALUES (5) -- and nothing else", NULL);
    int before = sends;
    guard_tx *tx = guard_pq_begin(s, pq, &with_first);
    ck_assert_int_eq(sends, before);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_OPEN);
    ck_assert_int_eq(server_number(IN_TRANSACTION), 0);
    before = sends; /* those of the server's were counted too */
    guard_pq_exec_prepared(NULL, pq, "insert", NULL);
    ck_assert_int_eq(guard_pq_changes(pq), 1);
    ck_assert_int_eq(sends - before, 1);
    ck_assert_int_eq(server_number(IN_TRANSACTION), 1);
    ck_assert_int_eq(server_rows(5), 0);
    guard_tx_commit(tx);
    ck_assert_int_eq(server_number("SELECT sum(id) FROM t"), 1 + 2 + 3 + 4 + 5);
}
END_TEST

static const char *text_of(guard_pq *pq, const char *sql)
{
    static char text[100];
    GUARD_AUTO(s);
    snprintf(text, sizeof(text), "%s", PQgetvalue(guard_pq_exec_params(s, pq, sql, NULL), 0, 0));
    return text;
}

#define MODE                                                                                                     \
    "SELECT concat_ws(' ', current_setting('transaction_isolation'), current_setting('transaction_read_only'), " \
    "current_setting('transaction_deferrable'), current_setting('synchronous_commit'), (SELECT count(*) FROM "   \
    "pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()))"

START_TEST(what_was_asked_of_the_transaction_is_in_force_for_its_first_statement)
{
    GUARD_AUTO(s);
    static const struct {
        guard_pq_tx_options options;
        const char *mode;
    } cases[] = {
        {{.isolation = GUARD_PQ_SERIALIZABLE, .flags = GUARD_PQ_READ_ONLY | GUARD_PQ_DEFERRABLE},
         "serializable on on off 0"},
        {{.isolation = GUARD_PQ_REPEATABLE_READ, .flags = GUARD_PQ_READ_WRITE}, "repeatable read off off off 0"},
        {{.tx.durable = 1}, "read committed off off on 0"},
        {{.tx.durable = 1, .probe = "SELECT 1 FROM t"}, "read committed off off on 1"},
        {{.probe = "SELECT 1 FROM t"}, "read committed off off off 1"},
    };
    guard_pq *pq = pq_open(s);
    guard_pq_exec(NULL, pq, "SET synchronous_commit = off");
    sends_of_an_insert(pq, &(guard_pq_tx_options){.probe = "SELECT 1 FROM t"}, 1); /* asks where it is */
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        for (int first = 0; first < 2; first++) {
            GUARD_AUTO(turn);
            guard_pq_tx_options options = cases[i].options;
            options.flags |= first ? GUARD_PQ_BEGIN_WITH_FIRST : 0;
            guard_tx *tx = guard_pq_begin(turn, pq, &options);
            int before = sends;
            ck_assert_str_eq(text_of(pq, MODE), cases[i].mode);
            ck_assert_int_eq(sends - before, 1);
            guard_tx_commit(tx);
        }
    }
}
END_TEST

/* A stream before it leaves libpq 15 in the mode of single rows. */
START_TEST(the_first_statements_rows_come_as_one_result)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    guard_pq_stream *stream = guard_pq_stream_open(s, pq, "SELECT generate_series(1, 9)", NULL);
    while (guard_pq_stream_next(stream) != NULL) {
    }
    guard_pq_stream_close(stream);
    guard_tx *tx = guard_pq_begin(s, pq, &with_first);
    PGresult *rows = guard_pq_exec_params(s, pq, "SELECT generate_series(1, 7)", NULL);
    ck_assert_int_eq(PQresultStatus(rows), PGRES_TUPLES_OK);
    ck_assert_int_eq(PQntuples(rows), 7);
    ck_assert_int_eq(guard_pq_changes(pq), 7);
    guard_tx_commit(tx);
}
END_TEST

/* More than the sockets take, either way: libpq sends a part of it before the sync is queued. */
START_TEST(a_large_first_statement_and_its_large_answer_go_through)
{
    enum { SIZE = 8 << 20 };
    GUARD_AUTO(s);
    char *text = guard_allocate(SIZE + 1);
    const char *values[] = {text};
    guard_pq_params params = {.count = 1, .values = values};
    guard_pq *pq = pq_open(s);
    memset(text, 'x', SIZE);
    text[SIZE] = '\0';
    guard_tx *tx = guard_pq_begin(s, pq, &with_first);
    PGresult *rows = guard_pq_exec_params(s, pq, "SELECT $1::text", &params);
    ck_assert_int_eq(PQgetlength(rows, 0, 0), SIZE);
    ck_assert_int_eq(server_number(IN_TRANSACTION), 1);
    guard_tx_commit(tx);
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT 1", 0), 1);
    guard_deallocate(text);
}
END_TEST

/* -------------------------------------------------------------------------------------- whatever comes first -- */

static void first_exec(guard_scope *s, guard_pq *pq)
{
    (void)s;
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (1)");
}

static void first_number(guard_scope *s, guard_pq *pq)
{
    (void)s;
    guard_pq_query_int64(pq, "INSERT INTO t VALUES (1) RETURNING id", 0);
}

static void first_params(guard_scope *s, guard_pq *pq)
{
    (void)s;
    pq_insert_params(pq, 1);
}

static void first_params_of_no_rows(guard_scope *s, guard_pq *pq)
{
    (void)s;
    guard_pq_exec_params(NULL, pq, "LOCK TABLE t IN SHARE MODE", NULL);
}

static void first_prepare(guard_scope *s, guard_pq *pq)
{
    (void)s;
    guard_pq_prepare(pq, "insert", "INSERT INTO t VALUES (1)", NULL);
    guard_pq_exec_prepared(NULL, pq, "insert", NULL);
}

static void first_copy_in(guard_scope *s, guard_pq *pq)
{
    guard_pq_copy *copy = guard_pq_copy_in(s, pq, "COPY t (id) FROM STDIN");
    guard_pq_copy_put(copy, "1\n", 2);
    guard_pq_copy_end(copy);
}

static void first_copy_out(guard_scope *s, guard_pq *pq)
{
    const char *row;
    guard_pq_copy *copy = guard_pq_copy_out(s, pq, "COPY (SELECT 1) TO STDOUT");
    while (guard_pq_copy_get(copy, &row) > 0) {
    }
    guard_pq_copy_end(copy);
}

static void first_stream(guard_scope *s, guard_pq *pq)
{
    guard_pq_stream *stream = guard_pq_stream_open(s, pq, "INSERT INTO t VALUES (1) RETURNING id", NULL);
    while (guard_pq_stream_next(stream) != NULL) {
    }
    guard_pq_stream_close(stream);
}

static void first_pipeline(guard_scope *s, guard_pq *pq)
{
    guard_pq_pipeline *pipeline = guard_pq_pipeline_open(s, pq);
    guard_pq_pipeline_send(pipeline, "INSERT INTO t VALUES (1)", NULL);
    guard_pq_pipeline_end(pipeline);
}

static void first_nested(guard_scope *s, guard_pq *pq)
{
    guard_tx *inner = guard_pq_begin(s, pq, &with_first);
    pq_insert_params(pq, 1);
    guard_tx_commit(inner);
    ck_assert_int_eq(guard_tx_outcome(inner), GUARD_RELEASED);
}

static void first_lock(guard_scope *s, guard_pq *pq)
{
    (void)s;
    guard_pq_lock(pq, 7, 0);
}

static void first_try_lock(guard_scope *s, guard_pq *pq)
{
    (void)s;
    ck_assert_int_eq(guard_pq_try_lock(pq, 7), 1);
}

static void first_list(guard_scope *s, guard_pq *pq)
{
    guard_pq_prepared_list(s, pq);
}

static void first_raw(guard_scope *s, guard_pq *pq)
{
    (void)s;
    PGresult *result = PQexec(guard_pq_raw(pq), "INSERT INTO t VALUES (1)");
    ck_assert_int_eq(PQresultStatus(result), PGRES_COMMAND_OK);
    PQclear(result);
}

static void (*const first_uses[])(guard_scope *s, guard_pq *pq) = {
    first_exec,     first_number,  first_params,   first_params_of_no_rows,
    first_prepare,  first_copy_in, first_copy_out, first_stream,
    first_pipeline, first_nested,  first_lock,     first_try_lock,
    first_list,     first_raw,
};

START_TEST(whatever_uses_the_connection_first_is_in_the_transaction)
{
    for (size_t i = 0; i < sizeof(first_uses) / sizeof(*first_uses); i++) {
        GUARD_AUTO(s);
        guard_pq *pq = pq_open(s);
        guard_tx *tx = guard_pq_begin(s, pq, &with_first);
        first_uses[i](s, pq);
        ck_assert_msg(server_number(IN_TRANSACTION) == 1, "use %d is not in a transaction", (int)i);
        ck_assert_int_eq(server_rows(1), 0);
        guard_tx_rollback(tx);
        ck_assert_int_eq(server_number(IN_TRANSACTION), 0);
        ck_assert_int_eq(server_rows(1), 0);
        guard_pq_close(pq);
    }
}
END_TEST

START_TEST(begin_is_sent_at_once_where_the_program_has_the_raw_connection)
{
    GUARD_AUTO(s);
    guard_pq *pq = pq_open(s);
    PGconn *own = server_connect("");
    guard_pq *adopted = guard_pq_adopt(s, own, NULL);
    PGconn *raw = guard_pq_raw(pq);
    for (int i = 0; i < 2; i++) {
        GUARD_AUTO(turn);
        guard_tx *tx = guard_pq_begin(turn, i == 0 ? pq : adopted, &with_first);
        ck_assert_int_eq(PQtransactionStatus(i == 0 ? raw : own), PQTRANS_INTRANS);
        PQclear(PQexec(i == 0 ? raw : own, "INSERT INTO t VALUES (1)"));
        guard_tx_rollback(tx);
    }
    ck_assert_int_eq(server_rows(1), 0);
    guard_pq_close(adopted);
    PQfinish(own);
}
END_TEST

static void copy_by_name(void *pq)
{
    guard_pq_exec_prepared(NULL, pq, "copy", NULL);
}

/* As without the flag: it is refused, and the connection lives. */
START_TEST(a_copy_that_was_prepared_does_not_share_begins_message)
{
    GUARD_AUTO(s);
    guard_error error;
    guard_pq *pq = pq_open(s);
    guard_pq_prepare(pq, "copy", "COPY t FROM STDIN", NULL);
    guard_tx *tx = guard_pq_begin(s, pq, &with_first);
    ck_assert_int_ne(guard_run(copy_by_name, pq, &error), 0);
    ck_assert_int_eq(error.code, GUARD_PQ_ANSWER);
    guard_tx_rollback(tx);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
    ck_assert_int_eq(guard_pq_query_int64(pq, "SELECT 1", 0), 1);
}
END_TEST

/* ---------------------------------------------------------------------------------------------- nothing is run -- */

static int hooks;

static void count_hook(void *pq)
{
    hooks++;
    guard_pq_exec(NULL, pq, "INSERT INTO t VALUES (1)"); /* its own transaction */
}

START_TEST(a_transaction_that_ran_nothing_sends_nothing_and_is_told_as_it_was_ended)
{
    GUARD_AUTO(s);
    guard_result result;
    guard_pq *pq = pq_open(s);
    guard_pq_tx_options options = {.flags = GUARD_PQ_BEGIN_WITH_FIRST, .tx.durable = 1};
    int before = sends;
    ck_assert_int_eq(guard_pq_transact(pq, pq_do_nothing, NULL, &options, &result), GUARD_COMMITTED);
    ck_assert_uint_eq(result.notes, 0);
    {
        GUARD_AUTO(turn);
        guard_pq_begin(turn, pq, &with_first); /* left open */
    }
    guard_tx *tx = guard_pq_begin(s, pq, &with_first);
    guard_tx_on_rollback(tx, count_hook, pq);
    ck_assert_int_eq(sends, before);
    guard_tx_rollback(tx);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_ROLLED_BACK);
    ck_assert_uint_eq(guard_tx_result(tx)->notes, 0);
    ck_assert_int_eq(hooks, 1);
    ck_assert_int_eq(server_rows(1), 1);
    server_run("DELETE FROM t");
    tx = guard_pq_begin(s, pq, &with_first);
    guard_tx_on_commit(tx, count_hook, pq);
    guard_tx_commit(tx);
    ck_assert_int_eq(guard_tx_outcome(tx), GUARD_COMMITTED);
    ck_assert_int_eq(hooks, 2);
    ck_assert_int_eq(server_rows(1), 1);
    ck_assert_int_eq(pq_status(pq), PQTRANS_IDLE);
}
END_TEST

START_TEST(a_transaction_that_ran_nothing_is_prepared_all_the_same)
{
    GUARD_AUTO(s);
    guard_pq_tx_options options = {.flags = GUARD_PQ_BEGIN_WITH_FIRST, .prepare_as = "nothing"};
    guard_pq *pq = pq_open(s);
    ck_assert_int_eq(guard_pq_transact(pq, pq_do_nothing, NULL, &options, NULL), GUARD_PREPARED);
    ck_assert_int_eq(server_number("SELECT count(*) FROM pg_prepared_xacts WHERE gid = 'nothing'"), 1);
    guard_pq_prepared_rollback(pq, "nothing");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_transaction_of_one_statement_needs_two_round_trips,
        what_was_asked_of_the_transaction_is_in_force_for_its_first_statement,
        the_first_statements_rows_come_as_one_result,
        a_large_first_statement_and_its_large_answer_go_through,
        whatever_uses_the_connection_first_is_in_the_transaction,
        begin_is_sent_at_once_where_the_program_has_the_raw_connection,
        a_copy_that_was_prepared_does_not_share_begins_message,
        a_transaction_that_ran_nothing_sends_nothing_and_is_told_as_it_was_ended,
        a_transaction_that_ran_nothing_is_prepared_all_the_same,
    };
    return suite_run("pq_begin", tests, sizeof tests / sizeof *tests);
}
