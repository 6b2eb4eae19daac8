/* SPDX-License-Identifier: MIT */
/*
 * check_load_pq_bouncer.c: guard-load through PgBouncer in transaction mode: no state of a session is needed between transactions. The
 * program starts itself again under tests/with-pgbouncer.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "load_program.h"
#include "server.h"

START_TEST(workers_load_each_row_once_through_a_transaction_pooler)
{
    server_run("DROP TABLE IF EXISTS t, guard_load_file, guard_load_chunk, guard_load_reject;"
               "CREATE TABLE t(a int PRIMARY KEY, b text)");
    FILE *file = fopen("f.csv", "w");
    ck_assert_ptr_nonnull(file);
    fputs("a,b\n", file);
    for (int i = 0; i < 2000; i++) {
        fprintf(file, i % 100 == 99 ? "bad%d,x\n" : "%d,x\n", i);
    }
    ck_assert_int_eq(fclose(file), 0);
    load_output output = load_run("--db 'host=%s port=%s' --into t --batch 50 --workers 3 --json f.csv",
                                  getenv("GUARD_TEST_PGBOUNCER_SOCKET"), getenv("GUARD_TEST_PGBOUNCER_PORT"));
    load_expect(output, 3);
    ck_assert_int_eq(load_json(output, "rows_loaded"), 1980);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t"), 1980);
    ck_assert_int_eq(server_number("SELECT count(*) FROM guard_load_reject"), 20);
    load_expect(load_run("--db 'host=%s port=%s' --into t --status", getenv("GUARD_TEST_PGBOUNCER_SOCKET"),
                         getenv("GUARD_TEST_PGBOUNCER_PORT")),
                0);
}
END_TEST

int main(int argc, char **argv)
{
    const TTest *const tests[] = {workers_load_each_row_once_through_a_transaction_pooler};
    if (getenv("GUARD_TEST_PGBOUNCER_PORT") == NULL) {
        char script[512];
        snprintf(script, sizeof script, "%s/tests/with-pgbouncer", getenv("srcdir") != NULL ? getenv("srcdir") : ".");
        (void)argc;
        execl(script, script, argv[0], (char *)NULL);
        perror(script);
        return 99;
    }
    return load_suite_run("load_pq_bouncer", tests, sizeof tests / sizeof *tests, SCRATCH_IN_MEMORY);
}
