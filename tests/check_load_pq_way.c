/* SPDX-License-Identifier: MIT */
/*
 * check_load_pq_way.c: guard-load into a table with foreign keys, where it tries whether rows go in faster one by one: what is loaded and
 * rejected is the same, and the faster way is kept; rows are not sent more often than need be.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load_program.h"
#include "server.h"

#define LOGGED "postgresql:///?options=-c%20log_statement%3Dall"
/* A third of a chunk's rows are tried in one way, a third in the other. */
#define BATCH 4000

/* A table with a foreign key, that has a sleep of half a second before row `slow`. */
static void make_table(int slow)
{
    char sql[1000];
    server_run("DROP TABLE IF EXISTS t, parent, guard_load_file, guard_load_chunk, guard_load_reject CASCADE");
    server_run("CREATE TABLE parent(p int PRIMARY KEY); INSERT INTO parent VALUES (1);"
               "CREATE TABLE t(a int NOT NULL CHECK (a > 0), c int REFERENCES parent)");
    snprintf(sql, sizeof sql,
             "CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
             "IF NEW.a = %d THEN PERFORM pg_sleep(0.5); END IF; RETURN NEW; END $$;"
             "CREATE TRIGGER slow BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION slow()",
             slow);
    server_run(sql);
}

static void write_rows(int rows)
{
    FILE *file = fopen("f.csv", "w");
    ck_assert_ptr_nonnull(file);
    fputs("a,c\n", file);
    for (int i = 1; i <= rows; i++) {
        fprintf(file, "%d,1\n", i);
    }
    ck_assert_int_eq(fclose(file), 0);
}

/* Lines of the server's log that have both. */
static long count_in_log(const char *first, const char *second)
{
    long lines = 0;
    const char *at = read_file(getenv("GUARD_TEST_PG_LOG"));
    while ((at = strstr(at, first)) != NULL) {
        size_t length = strcspn(at, "\n");
        lines += memmem(at, length, second, strlen(second)) != NULL;
        at += length;
    }
    return lines;
}

static long count_singly(void)
{
    return count_in_log("LOG:  statement: COPY ", "WHERE pg_catalog.random() IS NOT NULL");
}

/* Of the COPYs into t, those whose rows go in one by one. */
static long loaded_singly(const char *options, int rows)
{
    long before = count_singly();
    load_expect(load_run("--db %s --into t --quiet %s f.csv", LOGGED, options), 0);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t"), rows);
    ck_assert_int_eq(server_number("SELECT count(DISTINCT a) FROM t"), rows);
    return count_singly() - before;
}

START_TEST(rows_go_in_one_by_one_where_that_was_faster)
{
    make_table(2300); /* in the second third */
    write_rows(5 * BATCH);
    ck_assert_int_eq(loaded_singly("--batch 4000", 5 * BATCH), 6); /* two in the first */
    ck_assert_int_eq(server_number("SELECT count(*) FROM guard_load_chunk"), 5);
}
END_TEST

START_TEST(rows_go_in_together_where_one_by_one_was_slower)
{
    make_table(1);
    write_rows(5 * BATCH);
    ck_assert_int_eq(loaded_singly("--batch 4000", 5 * BATCH), 1);
}
END_TEST

START_TEST(chunks_too_small_to_tell_are_not_tried)
{
    make_table(0);
    write_rows(5 * BATCH);
    ck_assert_int_eq(loaded_singly("--batch 1000", 5 * BATCH), 0);
}
END_TEST

START_TEST(it_is_not_tried_without_foreign_keys_or_where_they_are_checked_late)
{
    write_rows(2 * BATCH);
    make_table(1);
    server_run("ALTER TABLE t DROP CONSTRAINT t_c_fkey");
    ck_assert_int_eq(loaded_singly("--batch 4000", 2 * BATCH), 0);
    make_table(1);
    server_run("ALTER TABLE t ALTER CONSTRAINT t_c_fkey DEFERRABLE INITIALLY DEFERRED");
    ck_assert_int_eq(loaded_singly("--batch 4000", 2 * BATCH), 0);
}
END_TEST

/* What was measured is of the connection that is gone. */
START_TEST(a_connection_made_anew_measures_anew)
{
    make_table(1);
    server_run("DROP SEQUENCE IF EXISTS once; CREATE SEQUENCE once;"
               "CREATE OR REPLACE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
               "IF NEW.a = 10000 AND nextval('once') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; "
               "IF NEW.a = 8100 THEN PERFORM pg_sleep(0.5); END IF; RETURN NEW; END $$;"
               "CREATE TRIGGER die BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION die()");
    write_rows(3 * BATCH);
    /* In the first chunk, and in the third, which was cut short and begun once more; in both, one by one is slower. */
    ck_assert_int_eq(loaded_singly("--batch 4000", 3 * BATCH), 2);
}
END_TEST

START_TEST(a_server_that_refuses_it_is_asked_once_and_every_row_is_loaded)
{
    make_table(1);
    if (server_number("SELECT 1 FROM pg_roles WHERE rolname = 'loader'") == 1) {
        server_run("DROP OWNED BY loader; DROP ROLE loader");
    }
    server_run("CREATE ROLE loader LOGIN; GRANT ALL ON SCHEMA public TO loader; GRANT ALL ON t, parent TO loader;"
               "REVOKE EXECUTE ON FUNCTION pg_catalog.random() FROM PUBLIC");
    write_rows(5 * BATCH);
    long before = count_in_log("ERROR:", "permission denied for function random");
    load_output output = load_run("--db 'postgresql:///?user=loader' --into t --batch 4000 --json --quiet f.csv");
    server_run("GRANT EXECUTE ON FUNCTION pg_catalog.random() TO PUBLIC");
    load_expect(output, 0);
    ck_assert_int_eq(load_json(output, "rows_loaded"), 5 * BATCH);
    ck_assert_int_eq(load_json(output, "retries"), 0);
    ck_assert_int_eq(server_number("SELECT count(DISTINCT a) FROM t"), 5 * BATCH);
    ck_assert_int_eq(count_in_log("ERROR:", "permission denied for function random") - before, 1);
}
END_TEST

/* One by one: with bad rows it is not found out what is faster. */
START_TEST(each_bad_row_is_rejected_and_takes_no_good_one_along)
{
    make_table(0);
    write_rows(1000);
    FILE *file = fopen("f.csv", "a");
    ck_assert_ptr_nonnull(file);
    for (int i = 1001; i <= 5000; i++) {
        static const char *const before[] = {"", "x", "-", ""};
        static const char *const behind[] = {"7", "1", "1", "1,1"};
        int kind = i / 100 % 5;
        if (i % 100 != 0) {
            fprintf(file, "%d,1\n", i);
        } else if (kind == 4) {
            fputs(",1\n", file);
        } else {
            fprintf(file, "%s%d,%s\n", before[kind], i, behind[kind]);
        }
    }
    ck_assert_int_eq(fclose(file), 0);
    long before = count_singly();
    load_output output = load_run("--db %s --into t --batch 3000 --json --quiet f.csv", LOGGED);
    load_expect(output, 3);
    ck_assert_int_gt(count_singly() - before, 3);
    ck_assert_int_eq(load_json(output, "rows_loaded"), 5000 - 40);
    ck_assert_int_eq(load_json(output, "rows_rejected"), 40);
    ck_assert_int_eq(server_number("SELECT count(DISTINCT a) FROM t"), 5000 - 40);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t WHERE a > 1000 AND a % 100 = 0"), 0);
    static const char *const codes[] = {"foreign_key", "type", "check", "columns", "not_null"};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        char sql[200];
        snprintf(sql, sizeof sql,
                 "SELECT count(*) FROM guard_load_reject WHERE code = '%s' AND (line - 1) / 100 %% 5 = %zu", codes[i],
                 i);
        ck_assert_msg(server_number(sql) == 8, "%s: %ld rows", codes[i], (long)server_number(sql));
    }
}
END_TEST

static long count_copies(void)
{
    return count_in_log("LOG:  statement: COPY ", "\"t\"");
}

static void load_with(const char *bad, int before, int behind)
{
    make_table(0);
    write_rows(before);
    FILE *file = fopen("f.csv", "a");
    ck_assert_ptr_nonnull(file);
    fputs(bad, file);
    for (int i = 1; i <= behind; i++) {
        fprintf(file, "%d,1\n", before + i);
    }
    ck_assert_int_eq(fclose(file), 0);
    load_expect(load_run("--db %s --into t --quiet f.csv", LOGGED), 3);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t"), before + behind);
}

/* All of them, the good ones, the bad one. */
START_TEST(rows_that_failed_together_are_not_tried_together_once_more)
{
    long before = count_copies();
    load_with("1001,7\n", 1000, 0);
    ck_assert_int_eq(count_copies() - before, 3);
}
END_TEST

/* Those of the one way, those of the other, which fail; then those before the bad one, the bad one, those behind it. */
START_TEST(a_row_that_was_named_in_the_second_way_is_known)
{
    long before = count_copies();
    load_with("bad,1\n", 6000, 3500);
    ck_assert_int_eq(count_copies() - before, 5);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        rows_go_in_one_by_one_where_that_was_faster,
        rows_go_in_together_where_one_by_one_was_slower,
        chunks_too_small_to_tell_are_not_tried,
        it_is_not_tried_without_foreign_keys_or_where_they_are_checked_late,
        a_connection_made_anew_measures_anew,
        a_server_that_refuses_it_is_asked_once_and_every_row_is_loaded,
        each_bad_row_is_rejected_and_takes_no_good_one_along,
        rows_that_failed_together_are_not_tried_together_once_more,
        a_row_that_was_named_in_the_second_way_is_known,
    };
    return load_suite_run("load_pq_way", tests, sizeof tests / sizeof *tests, SCRATCH_IN_MEMORY);
}
