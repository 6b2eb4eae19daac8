/* SPDX-License-Identifier: MIT */
/*
 * check_pq_memory.c: no memory, in the library, in libpq and in what libpq calls, at every single allocation.
 *
 * The allocator of the whole program is this file's, so that libpq's allocations fail too. A sanitizer has an allocator of its own: then
 * these tests are left out.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include <guard/guard.h>
#include <guard/guard_pq.h>

#include "pq_table.h"
#include "suite.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define OWN_ALLOCATOR 0
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OWN_ALLOCATOR 0
#endif
#ifndef OWN_ALLOCATOR
#define OWN_ALLOCATOR 1
#endif

#if OWN_ALLOCATOR

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *memory, size_t size);

/* The allocation that fails: 1 is the next, 0 or less is none. Only this thread's count. */
static __thread long countdown;
static __thread int hit;

static int fails(void)
{
    if (countdown > 0 && --countdown == 0) {
        hit = 1;
        errno = ENOMEM;
        return 1;
    }
    return 0;
}

__attribute__((visibility("default"))) void *malloc(size_t size)
{
    return fails() ? NULL : __libc_malloc(size);
}

__attribute__((visibility("default"))) void *calloc(size_t count, size_t size)
{
    return fails() ? NULL : __libc_calloc(count, size);
}

__attribute__((visibility("default"))) void *realloc(void *memory, size_t size)
{
    return fails() ? NULL : __libc_realloc(memory, size);
}

static void fail_at(long n)
{
    countdown = n;
    hit = 0;
}

/* --------------------------------------------------------------------------------------------------- COMMIT */

typedef struct work {
    guard_pq *pq;
    int id;
    long n;
    int marker;
    guard_result result;
} work;

static void insert_then_fail(guard_tx *tx, void *arg)
{
    work *w = arg;
    char sql[64];
    snprintf(sql, sizeof(sql), "INSERT INTO t VALUES (%d)", w->id);
    guard_pq_exec(NULL, guard_pq_of(tx), sql);
    fail_at(w->n);
}

static void check_told(const work *w)
{
    server_wait("SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()", 0);
    int64_t rows = server_rows(w->id);
    guard_outcome told = w->result.outcome;
    int may_doubt = w->marker == GUARD_PQ_MARKER_NONE;
    ck_assert_msg((told == GUARD_COMMITTED && rows == 1) || (told == GUARD_ROLLED_BACK && rows == 0) ||
                      (told == GUARD_IN_DOUBT && may_doubt),
                  "allocation %ld: told \"%s\" (%s), found %d rows", w->n, guard_outcome_name(told),
                  w->result.has_error ? w->result.error.message : "no error", (int)rows);
}

/* With the raw connection given away libpq copies its list of event procedures for each result. */
static void fail_everywhere_at_commit(int marker, int gives_raw, int least)
{
    int outcomes[4] = {0};
    int more = 1;
    server_reset();
    for (long n = 1; more; n++) {
        GUARD_AUTO(s);
        work w = {.pq = guard_pq_open(s, "", NULL), .id = (int)n, .n = n, .marker = marker};
        guard_pq_tx_options options = {.marker = marker};
        if (gives_raw) {
            ck_assert_ptr_nonnull(guard_pq_raw(w.pq));
        }
        guard_pq_transact(w.pq, insert_then_fail, &w, &options, &w.result);
        more = hit;
        fail_at(0);
        outcomes[w.result.outcome]++;
        check_told(&w);
        ck_assert_msg(n > least || more, "only %ld allocations", n);
    }
    ck_assert_int_gt(outcomes[GUARD_COMMITTED], 0);
}

START_TEST(the_outcome_told_is_true_whichever_allocation_of_commit_fails)
{
    fail_everywhere_at_commit(GUARD_PQ_MARKER_ROW, 1, 5);
    fail_everywhere_at_commit(GUARD_PQ_MARKER_NONE, 1, 2);
    fail_everywhere_at_commit(GUARD_PQ_MARKER_ROW, 0, 3);
    fail_everywhere_at_commit(GUARD_PQ_MARKER_NONE, 0, 1);
}
END_TEST

/* -------------------------------------------------------------------------- BEGIN with the first statement, COMMIT */

static void insert_first(guard_tx *tx, void *arg)
{
    pq_insert_params(guard_pq_of(tx), ((const work *)arg)->id);
}

static void fail_everywhere_in_all_of_it(const guard_pq_tx_options *options, long least)
{
    int outcomes[4] = {0};
    int more = 1;
    server_reset();
    for (long n = 1; more; n++) {
        GUARD_AUTO(s);
        work w = {.pq = guard_pq_open(s, "", NULL), .id = (int)n, .n = n, .marker = options->marker};
        if (w.marker == GUARD_PQ_MARKER_ROW) {
            work before = {.pq = w.pq, .id = 1000000 + (int)n}; /* asks for the marker's table */
            ck_assert_int_eq(guard_pq_transact(w.pq, insert_first, &before, options, NULL), GUARD_COMMITTED);
        }
        fail_at(n);
        guard_pq_transact(w.pq, insert_first, &w, options, &w.result);
        more = hit;
        fail_at(0);
        outcomes[w.result.outcome]++;
        check_told(&w);
        ck_assert_msg(n > least || more, "only %ld allocations", n);
        ck_assert_msg(more || w.result.outcome == GUARD_COMMITTED, "without a fault: %s", w.result.error.message);
    }
    ck_assert_int_gt(outcomes[GUARD_ROLLED_BACK], 3);
}

START_TEST(the_outcome_told_is_true_whichever_allocation_fails_where_begin_goes_with_the_first_statement)
{
    fail_everywhere_in_all_of_it(
        &(guard_pq_tx_options){.flags = GUARD_PQ_BEGIN_WITH_FIRST, .marker = GUARD_PQ_MARKER_NONE}, 10);
    fail_everywhere_in_all_of_it(&(guard_pq_tx_options){.flags = GUARD_PQ_BEGIN_WITH_FIRST,
                                                        .marker = GUARD_PQ_MARKER_ROW,
                                                        .isolation = GUARD_PQ_SERIALIZABLE,
                                                        .tx.durable = 1},
                                 8);
}
END_TEST

/* -------------------------------------------------------------------------------------------------- everything */

static void use_all(void *arg)
{
    GUARD_AUTO(s);
    const char *values[] = {"1"};
    guard_pq_params params = {.count = 1, .values = values};
    const char *row;
    long n = *(long *)arg;
    /* libpq waits for more where it has no memory for the beginning of a COPY: only the deadline ends that. */
    guard_pq_options options = {.statement_ms = n > 0 ? 200 : 20000, .rollback_ms = n > 0 ? 2000 : 20000};
    guard_pq_pool_options pool_options = {.connection = options};
    fail_at(n);
    guard_pq *pq = guard_pq_open(s, "", &options);
    guard_pq_exec_params(s, pq, "SELECT $1::int", &params);
    guard_pq_prepare(pq, "p", "SELECT $1::int", &params);
    guard_pq_exec_prepared(s, pq, "p", &params);
    guard_pq_copy *copy = guard_pq_copy_out(s, pq, "COPY (SELECT 1) TO STDOUT");
    guard_pq_copy_get(copy, &row);
    guard_pq_copy_close(copy);
    copy = guard_pq_copy_in(s, pq, "COPY t FROM STDIN");
    guard_pq_copy_put(copy, "999999\tx\n", 9);
    guard_pq_copy_close(copy);
    guard_pq_stream *stream = guard_pq_stream_open(s, pq, "SELECT generate_series(1, 3)", NULL);
    guard_pq_stream_next(stream);
    guard_pq_stream_close(stream);
    guard_pq_pipeline *pipeline = guard_pq_pipeline_open(s, pq);
    guard_pq_pipeline_send(pipeline, "SELECT $1::int", &params);
    guard_pq_pipeline_end(pipeline);
    guard_pq_pool *pool = guard_pq_pool_open(s, "", &pool_options);
    guard_pq_close(guard_pq_pool_take(s, pool, 0));
}

START_TEST(whichever_allocation_fails_it_is_an_error_and_the_next_try_works)
{
    int more = 1;
    int failed = 0;
    guard_error error;
    server_reset();
    for (long n = 1; more; n++) {
        int code = guard_run(use_all, &n, &error);
        more = hit;
        fail_at(0);
        failed += code != 0;
        ck_assert_msg(more || code == 0 || error.domain == GUARD_TIMEOUT, "without a fault: %s", error.message);
        ck_assert_int_eq(server_rows(999999), 0);
    }
    ck_assert_int_gt(failed, 20);
    long none = 0;
    ck_assert_msg(guard_run(use_all, &none, &error) == 0, "without a fault: %s", error.message);
    server_wait("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'", 1);
}
END_TEST

#endif

int main(void)
{
#if OWN_ALLOCATOR
    const TTest *const tests[] = {
        the_outcome_told_is_true_whichever_allocation_of_commit_fails,
        the_outcome_told_is_true_whichever_allocation_fails_where_begin_goes_with_the_first_statement,
        whichever_allocation_fails_it_is_an_error_and_the_next_try_works,
    };
    return suite_run("pq_memory", tests, sizeof tests / sizeof *tests);
#else
    puts("the sanitizer has an allocator of its own");
    return 77;
#endif
}
