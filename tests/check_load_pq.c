/* SPDX-License-Identifier: MIT */
/*
 * check_load_pq.c: guard-load on PostgreSQL: each good row exactly once, each bad one with its reason, whatever is killed, cut or
 * restarted meanwhile, with one worker, several, and several processes.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "load_program.h"
#include "random.h"
#include "server.h"
#include "wire_proxy.h"

#define DB "--db postgresql:/// "

/* ------------------------------------------------------------------------------------------------- helpers -- */

static void make_table(const char *sql)
{
    server_run("DROP TABLE IF EXISTS t, parent, guard_load_file, guard_load_chunk, guard_load_reject CASCADE");
    server_run(sql);
}

/* The table's rows are exactly these of the file, each once: a is its line less 1, every 100th is bad. */
static void write_numbers(const char *name, int rows)
{
    FILE *file = fopen(name, "w");
    ck_assert_ptr_nonnull(file);
    fputs("a,b\n", file);
    for (int i = 1; i <= rows; i++) {
        fprintf(file, i % 100 == 0 ? "bad%d,\"x\ny\"\n" : "%d,x\n", i);
    }
    ck_assert_int_eq(fclose(file), 0);
}

static void check_numbers(int rows)
{
    ck_assert_int_eq(server_number("SELECT count(*) FROM t"), rows - rows / 100);
    ck_assert_int_eq(server_number("SELECT count(DISTINCT a) FROM t"), rows - rows / 100);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t WHERE a % 100 = 0"), 0);
    ck_assert_int_eq(server_number("SELECT max(a) FROM t"), rows % 100 == 0 ? rows - 1 : rows);
    ck_assert_int_eq(server_number("SELECT count(*) FROM guard_load_reject"), rows / 100);
    ck_assert_int_eq(server_number("SELECT complete::int FROM guard_load_file"), 1);
    ck_assert_int_eq(server_number("SELECT sum(rows_loaded) FROM guard_load_chunk"), rows - rows / 100);
    ck_assert_int_eq(server_number("SELECT sum(rows_rejected) FROM guard_load_chunk"), rows / 100);
    ck_assert_int_eq(server_number("SELECT count(*) FROM guard_load_chunk WHERE done_by IS NULL"), 0);
}

/* ------------------------------------------------------------------------------------------------- one row -- */

START_TEST(each_kind_of_bad_row_is_rejected_with_its_reason_and_takes_no_good_one_along)
{
    make_table("CREATE TABLE parent(p int PRIMARY KEY); INSERT INTO parent VALUES (1);"
               "CREATE TABLE t(a int PRIMARY KEY, b text NOT NULL, c int REFERENCES parent, d int CHECK (d < 10),"
               " e int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)");
    static const char text[] = "a,b,c,d,e\n"
                               "1,good,1,1,1\n"
                               "x,type,1,1,1\n"
                               "3,,1,1,1\n"
                               "4,check,1,11,1\n"
                               "5,foreign,7,1,1\n"
                               "6,deferred,1,1,8\n"
                               "1,unique,1,1,1\n"
                               "8,few,1\n"
                               "9,mal\"formed,1,1,1\n"
                               "10,nul\0,1,1,1\n"
                               "11,latin\xE9,1,1,1\n"
                               "12,\"good,\t\\N \"\"quoted\"\"\nsecond line\",1,1,\n"
                               "99999999999,range,1,1,1\n"
                               "13,good,,,1\n";
    write_bytes("f.csv", text, sizeof text - 1);
    load_output output = load_run(DB "--into t --rejects r.csv --json f.csv");
    load_expect(output, 3);
    ck_assert_int_eq(load_json(output, "rows_loaded"), 3);
    ck_assert_int_eq(load_json(output, "rows_rejected"), 11);
    ck_assert_int_eq(load_json(output, "workers"), 1);
    ck_assert_int_eq(server_number("SELECT sum(a) FROM t"), 26);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t WHERE a = 12 AND c = 1 AND e IS NULL AND "
                                   "b = E'good,\\t\\\\N \"quoted\"\\nsecond line'"),
                     1);
    static const char *const codes[] = {"type",    "not_null",  "check", "foreign_key", "foreign_key", "unique",
                                        "columns", "malformed", "nul",   "encoding",    "type"};
    static const int lines[] = {3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        char sql[200];
        snprintf(sql, sizeof sql, "SELECT count(*) FROM guard_load_reject WHERE line = %d AND code = '%s'", lines[i],
                 codes[i]);
        ck_assert_msg(server_number(sql) == 1, "line %d is not rejected as %s:\n%s", lines[i], codes[i],
                      read_file("r.csv"));
    }
    const char *rejects = read_file("r.csv");
    ck_assert_ptr_nonnull(strstr(rejects, "f.csv,7,foreign_key,"));
    ck_assert_ptr_nonnull(strstr(rejects, "(Key (e)=(8) is not present in table \"\"parent\"\".)"));
    ck_assert_ptr_nonnull(strstr(rejects, ",\"x,type,1,1,1\"\n"));
}
END_TEST

START_TEST(rows_that_name_another_row_in_their_own_text_cost_that_row_nothing)
{
    make_table("CREATE TABLE t(a int)");
    write_file("f.csv", "a\n1\n2\n\"x\nCOPY t, line 1\"\n4\n5\n");
    load_expect(load_run(DB "--into t f.csv"), 3);
    ck_assert_int_eq(server_number("SELECT sum(a) FROM t"), 12);
    ck_assert_int_eq(server_number("SELECT sum(line) FROM guard_load_reject"), 4);
}
END_TEST

START_TEST(a_row_that_a_trigger_ignores_or_refuses_is_rejected)
{
    make_table("CREATE TABLE t(a int);"
               "CREATE OR REPLACE FUNCTION even_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
               "IF NEW.a = 7 THEN RAISE EXCEPTION 'no seven'; END IF; "
               "IF NEW.a % 2 = 1 THEN RETURN NULL; END IF; RETURN NEW; END $$;"
               "CREATE TRIGGER only_even BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION even_only()");
    write_file("f.csv", "a\n1\n2\n3\n4\n6\n7\n8\n");
    load_expect(load_run(DB "--into t f.csv"), 3);
    ck_assert_int_eq(server_number("SELECT sum(a) FROM t"), 20);
    ck_assert_int_eq(server_number("SELECT count(*) FROM guard_load_reject WHERE code = 'trigger'"), 3);
}
END_TEST

START_TEST(rows_that_satisfy_each_other_at_commit_are_loaded_and_orphans_among_them_rejected)
{
    make_table("CREATE TABLE t(a int PRIMARY KEY, up int REFERENCES t DEFERRABLE INITIALLY DEFERRED)");
    /* A child before its parent; two that need each other; an orphan and a row that needs it. */
    write_file("f.csv", "a,up\n1,2\n2,\n3,4\n4,3\n5,99\n6,5\n7,1\n");
    load_expect(load_run(DB "--into t --workers 3 f.csv"), 3);
    ck_assert_int_eq(server_number("SELECT sum(a) FROM t"), 17);
    ck_assert_int_eq(server_number("SELECT sum(line) FROM guard_load_reject WHERE code = 'foreign_key'"), 6 + 7);
}
END_TEST

/* Rows 3 and 4 need each other and are duplicates of each other late; nothing is wrong with the others. */
START_TEST(an_error_that_only_rows_together_have_costs_no_good_row)
{
    make_table("CREATE TABLE t(a int PRIMARY KEY, up int REFERENCES t DEFERRABLE INITIALLY DEFERRED, k int UNIQUE "
               "DEFERRABLE INITIALLY DEFERRED)");
    write_file("f.csv", "a,up,k\n1,2,1\n2,1,2\n3,4,9\n4,3,9\n5,6,5\n6,5,6\n7,99,7\n");
    load_expect(load_run(DB "--into t f.csv"), 3);
    ck_assert_int_eq(server_number("SELECT sum(a) FROM t"), 1 + 2 + 5 + 6);
    ck_assert_int_eq(server_number("SELECT sum(line) FROM guard_load_reject"), 4 + 5 + 8);
}
END_TEST

/* Each document's sum must be 0 at the end, and the error's text has the sum. */
START_TEST(a_late_check_over_several_rows_rejects_only_those_of_what_is_wrong)
{
    make_table(
        "CREATE TABLE t(a int PRIMARY KEY, doc int, amount int);"
        "CREATE OR REPLACE FUNCTION balanced() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE s int; BEGIN "
        "SELECT sum(amount) INTO s FROM t WHERE doc = NEW.doc; IF s <> 0 THEN RAISE EXCEPTION "
        "'document % has %', NEW.doc, s; END IF; RETURN NULL; END $$;"
        "CREATE CONSTRAINT TRIGGER balanced AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE "
        "FUNCTION balanced()");
    write_file("f.csv", "a,doc,amount\n1,1,5\n2,7,150\n3,2,8\n4,1,-5\n5,7,-100\n6,2,-3\n7,2,-5\n8,7,3\n9,3,0\n");
    load_expect(load_run(DB "--into t f.csv"), 3);
    ck_assert_int_eq(server_number("SELECT sum(a) FROM t"), 1 + 3 + 4 + 6 + 7 + 9);
    ck_assert_int_eq(server_number("SELECT sum(line) FROM guard_load_reject"), 3 + 6 + 9);
}
END_TEST

/* The first is an orphan and has the key of the second, which the third needs and which needs the third. */
START_TEST(a_bad_row_does_not_keep_out_a_good_one_that_it_conflicts_with)
{
    make_table("CREATE TABLE t(a int PRIMARY KEY, up int REFERENCES t DEFERRABLE INITIALLY DEFERRED)");
    write_file("f.csv", "a,up\n1,99\n1,2\n2,1\n");
    load_expect(load_run(DB "--into t f.csv"), 3);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t WHERE (a, up) IN ((1, 2), (2, 1))"), 2);
    ck_assert_int_eq(server_number("SELECT sum(line) FROM guard_load_reject"), 2);
}
END_TEST

/* Bad and good ones of every shape that a key can have; the server is asked for them all at once. */
START_TEST(foreign_keys_of_several_columns_and_odd_texts_are_told_apart)
{
    make_table(
        "CREATE TABLE parent(p text, q int, PRIMARY KEY (p, q)); INSERT INTO parent SELECT v, 1 FROM "
        "unnest(ARRAY['plain', E'tab\\t', E'back\\\\slash', 'quo\"te', 'comma,{}', E'line\\nend', 'NULL', '']) v;"
        "CREATE TABLE t(a int, \"P p\" text, q int, FOREIGN KEY (\"P p\", q) REFERENCES parent)");
    static const char *const keys[] = {"plain",        "tab\t",         "back\\slash", "\"quo\"\"te\"",
                                       "\"comma,{}\"", "\"line\nend\"", "NULL",        "\"\""};
    FILE *file = fopen("f.csv", "w");
    fputs("a,\"P p\",q\n", file);
    for (int i = 0; i < 800; i++) {
        if (i % 20 == 7) {
            fprintf(file, "%d,%s,2\n", i, keys[i / 20 % 8]);
        } else if (i % 20 == 9) {
            fprintf(file, "%d,x%d,1\n", i, i);
        } else if (i % 20 == 11) {
            fprintf(file, "%d,,%d\n", i, i);
        } else {
            fprintf(file, "%d,%s,1\n", i, keys[i % 8]);
        }
    }
    fclose(file);
    load_expect(load_run(DB "--into t f.csv"), 3);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t"), 720);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t WHERE a % 20 IN (7, 9)"), 0);
    ck_assert_int_eq(server_number("SELECT count(*) FROM guard_load_reject WHERE code = 'foreign_key'"), 80);
}
END_TEST

/* The server refuses the first pieces of the chunk while the last ones are still to be read. */
START_TEST(what_is_bad_early_or_late_in_a_long_chunk_costs_no_other_row)
{
    make_table("CREATE TABLE t(a int PRIMARY KEY, b text)");
    FILE *file = fopen("f.csv", "w");
    fputs("a,b\n", file);
    for (int i = 1; i <= 20000; i++) {
        fprintf(file, i == 3 || i == 19999 ? "bad%d,x\n" : i == 2 || i == 19998 ? "%d\n" : "%d,some text\n", i);
    }
    fclose(file);
    load_output output = load_run(DB "--into t --batch 20000 --json f.csv");
    load_expect(output, 3);
    ck_assert_int_eq(load_json(output, "rows_loaded"), 19996);
    ck_assert_int_eq(load_json(output, "rows_rejected"), 4);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t"), 19996);
    ck_assert_int_eq(server_number("SELECT sum(line) FROM guard_load_reject WHERE code = 'columns'"), 3 + 19999);
    ck_assert_int_eq(server_number("SELECT sum(line) FROM guard_load_reject WHERE code = 'type'"), 4 + 20000);
}
END_TEST

START_TEST(many_bad_rows_are_affordable)
{
    make_table("CREATE TABLE parent(p int PRIMARY KEY); INSERT INTO parent VALUES (0);"
               "CREATE TABLE t(a int, b int REFERENCES parent)");
    FILE *file = fopen("f.csv", "w");
    fputs("a,b\n", file);
    for (int i = 0; i < 2000; i++) {
        fprintf(file, i % 4 == 1 ? "x,0\n" : "%d,%d\n", i, i % 4 == 3);
    }
    fclose(file);
    load_expect(load_run(DB "--into t f.csv"), 3);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t"), 1000);
    ck_assert_int_eq(server_number("SELECT count(*) FROM guard_load_reject WHERE code = 'type'"), 500);
    ck_assert_int_eq(server_number("SELECT count(*) FROM guard_load_reject WHERE code = 'foreign_key'"), 500);
}
END_TEST

/* ---------------------------------------------------------------------------------------------- which file -- */

START_TEST(a_complete_file_is_not_loaded_again_unless_it_is_asked_for)
{
    make_table("CREATE TABLE t(a int, b text)");
    write_numbers("f.csv", 1000);
    write_numbers("renamed.csv", 1000);
    load_expect(load_run(DB "--into t --batch 100 f.csv"), 3);
    load_output output = load_run(DB "--into T --batch 100 --json renamed.csv");
    load_expect(output, 3);
    ck_assert_int_eq(load_json(output, "rows_loaded"), 0);
    check_numbers(1000);
    load_expect_error(load_run(DB "--into t --null nil f.csv"), 1, "with other options");
    load_expect(load_run(DB "--into public.t --again --workers 2 f.csv"), 3);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t"), 2 * 990);
    ck_assert_int_eq(server_number("SELECT count(*) FROM guard_load_reject"), 10);
    output = load_run(DB "--into t --status --json");
    load_expect(output, 0);
    ck_assert_ptr_nonnull(strstr(output.out, "\"rows_loaded\":990,\"rows_rejected\":10,\"complete\":true,\"runs\":2"));
}
END_TEST

START_TEST(new_content_under_an_unfinished_name_is_refused_until_it_is_forgotten)
{
    make_table("CREATE TABLE t(a int, b text)");
    write_numbers("f.csv", 1000);
    load_output output = load_run(DB "--into t --batch 50 --max-rejects 5 --rejects r.csv --json f.csv");
    load_expect(output, 1);
    ck_assert_ptr_nonnull(
        strstr(output.err, "f.csv: gave up after 5 rejected rows (--max-rejects), the last one for: type"));
    ck_assert_str_eq(load_json_text(output, "outcome"), "rolled_back");
    /* With those of the batch that was rolled back. */
    const char *rejects = read_file("r.csv");
    ck_assert_ptr_nonnull(strstr(rejects, "\"bad400,\"\"x\ny\"\"\""));
    ck_assert_ptr_nonnull(strstr(rejects, "\"bad500,\"\"x\ny\"\"\""));
    ck_assert_int_eq(server_number("SELECT max(a) FROM t"), 450);
    ck_assert_int_eq(server_number("SELECT count(*) FROM guard_load_reject"), 4);
    write_file("f.csv", "a,b\n5000,x\n");
    load_expect_error(load_run(DB "--into t --quiet f.csv"), 1, "f.csv has new content");
    load_expect(load_run(DB "--into t --forget f.csv"), 0);
    load_expect(load_run(DB "--into t f.csv"), 0);
    ck_assert_int_eq(server_number("SELECT max(a) FROM t"), 5000);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t"), 446 + 1);
}
END_TEST

START_TEST(what_cannot_be_done_is_said_in_one_line_without_a_password)
{
    make_table("CREATE TABLE t(a int)");
    write_file("f.csv", "a,b\n1,2\n");
    load_expect_error(load_run(DB "--into t --quiet f.csv"), 1, "has no column \"b\"");
    load_expect_error(load_run(DB "--into missing --quiet f.csv"), 1, "has no table \"missing\"");
    load_expect_error(load_run(DB "--into pg_stat_activity --quiet f.csv"), 1, "is not a table");
    load_expect_error(load_run("--db sqlite:x.db --workers 2 --into t f.csv"), 2, "--workers is for PostgreSQL");
    load_expect_error(load_run("--db mysql://u:secret@h/d --into t f.csv"), 2, "\"mysql\"");
    make_table("CREATE TABLE t(a int); CREATE ROLE plain LOGIN; GRANT ALL ON t TO plain");
    write_file("one.csv", "a\n1\n");
    load_expect_error(load_run("--db user=plain --into t --quiet one.csv"), 1,
                      "permission denied for schema public (the role needs CREATE");
    load_output output = load_run("--db postgresql://u:secret@127.0.0.1:1/d --into t --quiet f.csv");
    load_expect(output, 1);
    ck_assert_ptr_null(strstr(output.err, "secret"));
    output = load_run("--db 'host=127.0.0.1 port=%s user=postgres dbname=postgres password=secret' --into t --quiet "
                      "f.csv",
                      getenv("GUARD_TEST_PG_PORT"));
    load_expect(output, 1);
    ck_assert_ptr_null(strstr(output.err, "secret"));
    ck_assert_int_eq(server_number("SELECT count(*) FROM t"), 0);
}
END_TEST

START_TEST(the_schema_is_run_once_where_the_table_is_missing)
{
    make_table("SELECT 1");
    write_file("s.sql", "CREATE TABLE t(a int); CREATE TABLE parent(p int);");
    write_file("f.csv", "a\n1\n2\n");
    load_expect(load_run(DB "--schema s.sql --into t f.csv"), 0);
    ck_assert_int_eq(server_number("SELECT sum(a) FROM t"), 3);
    write_file("s.sql", "CREATE TABLE other(a int); CREATE nonsense");
    load_expect_error(load_run(DB "--schema s.sql --into t2 --quiet f.csv"), 1, "s.sql: ");
    ck_assert_int_eq(server_number("SELECT (to_regclass('other') IS NULL)::int"), 1);
}
END_TEST

START_TEST(an_empty_file_is_complete_at_once)
{
    make_table("CREATE TABLE t(a int)");
    write_file("f.csv", "a\n");
    load_expect(load_run(DB "--into t --workers 2 f.csv"), 0);
    ck_assert_int_eq(server_number("SELECT complete::int FROM guard_load_file"), 1);
}
END_TEST

START_TEST(what_is_appended_while_the_database_is_opened_is_loaded)
{
    make_table("CREATE TABLE t(a int)");
    write_file("f.csv", "a\n1\n");
    PGconn *other = server_connect("");
    PQclear(PQexec(other, "SELECT pg_advisory_lock(hashtext('guard-load schema'))"));
    pid_t loader = load_start(DB "--into t f.csv");
    server_wait("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'guard-load' AND wait_event_type = "
                "'Lock'",
                1);
    write_file("f.csv", "a\n1\n2\n");
    PQfinish(other);
    load_expect(load_wait(loader), 0);
    ck_assert_int_eq(server_number("SELECT sum(a) FROM t"), 3);
    load_expect(load_run(DB "--into t f.csv"), 0); /* known by the content that it has now */
    ck_assert_int_eq(server_number("SELECT sum(a) FROM t"), 3);
}
END_TEST

/* ----------------------------------------------------------------------------------------------- workers -- */

static int64_t batches_of(const char *table, const char *options)
{
    make_table(table);
    load_output output = load_run(DB "--into t --json --quiet %s f.csv", options);
    load_expect(output, 0);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t"), 100000);
    return load_json(output, "batches");
}

/* 10,000 rows take a second nowhere. */
START_TEST(batches_become_large_unless_rows_are_checked_late_or_a_size_is_asked_for)
{
    FILE *file = fopen("f.csv", "w");
    fputs("a\n", file);
    for (int i = 0; i < 100000; i++) {
        fprintf(file, "%d\n", i);
    }
    fclose(file);
    ck_assert_int_lt(batches_of("CREATE TABLE t(a int)", ""), 10);
    ck_assert_int_eq(batches_of("CREATE TABLE t(a int)", "--batch 30000"), 4);
    ck_assert_int_eq(batches_of("CREATE TABLE t(a int UNIQUE DEFERRABLE INITIALLY DEFERRED)", ""), 10);
    ck_assert_int_eq(batches_of("CREATE TABLE t(a int PRIMARY KEY, up int REFERENCES t)", ""), 10);
}
END_TEST

/* The first 10,000 take three seconds. */
START_TEST(batches_become_small_where_rows_are_slow)
{
    make_table("CREATE TABLE t(a int);"
               "CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
               "IF NEW.a = 10000 THEN PERFORM pg_sleep(3); END IF; RETURN NEW; END $$;"
               "CREATE TRIGGER slow BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION slow()");
    FILE *file = fopen("f.csv", "w");
    fputs("a\n", file);
    for (int i = 1; i <= 20000; i++) {
        fprintf(file, "%d\n", i);
    }
    fclose(file);
    load_output output = load_run(DB "--into t --json --quiet f.csv");
    load_expect(output, 0);
    ck_assert_int_gt(load_json(output, "batches"), 2);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t"), 20000);
}
END_TEST

START_TEST(workers_share_a_file)
{
    make_table("CREATE TABLE t(a int, b text)");
    write_numbers("f.csv", 20000);
    load_output output = load_run(DB "--into t --batch 200 --workers 4 --rejects r.csv --json f.csv");
    load_expect(output, 3);
    check_numbers(20000);
    ck_assert_int_eq(load_json(output, "workers"), 4);
    ck_assert_int_eq(load_json(output, "rows_read"), 20000);
    ck_assert_int_eq(load_json(output, "batches"), 100);
    /* Each worker's tokens begin with its own session. */
    ck_assert_int_gt(server_number("SELECT count(DISTINCT split_part(done_by, '-', 1)) FROM guard_load_chunk"), 1);
    int lines = 0;
    for (const char *at = read_file("r.csv"); (at = strstr(at, "f.csv,")) != NULL; at++) {
        lines++;
    }
    ck_assert_int_eq(lines, 200);
}
END_TEST

static int count_rejects(const char *name)
{
    int rejects = 0;
    for (const char *at = read_file(name); (at = strstr(at, ",\"bad")) != NULL; at++) {
        rejects++;
    }
    return rejects;
}

static long count_in_log(const char *text)
{
    long count = 0;
    const char *log = read_file(getenv("GUARD_TEST_PG_LOG"));
    for (const char *at = log; (at = strstr(at, text)) != NULL; at++) {
        count++;
    }
    return count;
}

START_TEST(each_worker_has_one_connection)
{
    static const char authorized[] = "application_name=guard-load";
    make_table("CREATE TABLE t(a int, b text)");
    write_numbers("f.csv", 2000);
    server_run("ALTER SYSTEM SET log_connections = on");
    server_control("reload");
    for (long workers = 1; workers <= 3; workers += 2) {
        long before = count_in_log(authorized);
        load_expect(load_run(DB "--into t --again --batch 200 --workers %ld f.csv", workers), 3);
        ck_assert_int_eq(count_in_log(authorized) - before, workers);
    }
    server_run("ALTER SYSTEM RESET log_connections");
    server_control("reload");
}
END_TEST

/* As on two machines: neither the name nor the folder is the same, only the content. */
START_TEST(loaders_with_copies_of_the_file_share_it_and_the_last_to_end_knows_all_rejects)
{
    make_table("CREATE TABLE t(a int, b text)");
    write_numbers("one.csv", 20000);
    ck_assert_int_eq(mkdir("there", 0700), 0);
    write_numbers("there/two.csv", 20000);
    PGconn *other = server_connect("");
    PQclear(PQexec(other, "BEGIN; LOCK TABLE t"));
    pid_t one = load_start(DB "--into t --batch 200 --rejects one.out --json --quiet one.csv");
    pid_t two = load_start(DB "--into t --batch 200 --rejects two.out --json --quiet there/two.csv");
    server_wait("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'guard-load' AND wait_event_type = "
                "'Lock'",
                2);
    PQfinish(other);
    load_output a = load_wait(one);
    load_output b = load_wait(two);
    load_expect(a, 3);
    load_expect(b, 3);
    check_numbers(20000);
    ck_assert_int_gt(load_json(a, "rows_loaded"), 0);
    ck_assert_int_gt(load_json(b, "rows_loaded"), 0);
    ck_assert_int_eq(load_json(a, "rows_loaded") + load_json(b, "rows_loaded"), 19800);
    ck_assert_int_eq(load_json(a, "rows_rejected") + load_json(b, "rows_rejected"), 200);
    int known_to_one = count_rejects("one.out");
    int known_to_two = count_rejects("two.out");
    ck_assert_msg(known_to_one == 200 || known_to_two == 200, "%d and %d of 200 rejects", known_to_one, known_to_two);
}
END_TEST

START_TEST(of_duplicates_in_two_chunks_one_is_loaded_and_the_other_rejected)
{
    make_table("CREATE TABLE t(a int PRIMARY KEY, b text)");
    FILE *file = fopen("f.csv", "w");
    fputs("a,b\n", file);
    for (int i = 0; i < 2000; i++) {
        fprintf(file, "%d,x\n", i % 1000);
    }
    fclose(file);
    load_expect(load_run(DB "--into t --batch 100 --workers 3 f.csv"), 3);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t"), 1000);
    ck_assert_int_eq(server_number("SELECT count(*) FROM guard_load_reject WHERE code = 'unique'"), 1000);
    ck_assert_int_eq(server_number("SELECT count(DISTINCT (line - 2) % 1000) FROM guard_load_reject"), 1000);
}
END_TEST

START_TEST(a_table_that_refers_to_itself_is_loaded_in_the_order_of_the_file)
{
    make_table("CREATE TABLE t(a int PRIMARY KEY, up int REFERENCES t)");
    FILE *file = fopen("f.csv", "w");
    fputs("a,up\n0,\n", file);
    for (int i = 1; i < 2000; i++) {
        fprintf(file, "%d,%d\n", i, i - 1);
    }
    fclose(file);
    pid_t other = load_start(DB "--into t --batch 50 --workers 4 f.csv");
    load_expect(load_run(DB "--into t --batch 50 --workers 4 f.csv"), 0);
    load_expect(load_wait(other), 0);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t"), 2000);
}
END_TEST

START_TEST(a_chunk_that_a_deadlock_took_is_loaded_again)
{
    make_table("CREATE TABLE t(a int PRIMARY KEY, b text)");
    write_file("f.csv", "a,b\n1,x\n2,x\n");
    PGconn *other = server_connect("");
    /* The loader is to find the deadlock. */
    PQclear(PQexec(other, "SET deadlock_timeout = '1min'; BEGIN; INSERT INTO t VALUES (2, 'other')"));
    pid_t loader = load_start(DB "--into t --json f.csv");
    server_wait("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'guard-load' AND wait_event_type = "
                "'Lock'",
                1);
    ck_assert_int_eq(PQsendQuery(other, "INSERT INTO t VALUES (1, 'other')"), 1);
    PQclear(PQgetResult(other));
    PQfinish(other); /* its rows are taken back */
    load_output output = load_wait(loader);
    load_expect(output, 0);
    ck_assert_int_ge(load_json(output, "retries"), 1);
    ck_assert_int_eq(server_number("SELECT count(*) FROM t WHERE b = 'x'"), 2);
}
END_TEST

/* -------------------------------------------------------------------------------- killed, cut, restarted -- */

#define PROCESSES 3

static void start_process(pid_t *process, int workers)
{
    *process = load_start(DB "--into t --batch 50 --workers %d --rejects r%d.csv --quiet f.csv", workers, workers);
}

/* Waits for the processes, some of which are killed and begun again before; each ends with 3. */
static void load_among_killers(uint64_t *state, int kills)
{
    pid_t processes[PROCESSES];
    for (int i = 0; i < PROCESSES; i++) {
        start_process(&processes[i], 1 + i % 2);
    }
    for (int i = 0; i < kills; i++) {
        /* Time itself: what is killed now is to be hit at any moment of its work. */
        pause_ms(1 + (int)(random_next(state) % 30));
        int victim = (int)(random_next(state) % PROCESSES);
        if (random_next(state) % 2 == 0) {
            server_run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'guard-load' "
                       "ORDER BY random() LIMIT 2");
            continue;
        }
        kill(processes[victim], SIGKILL);
        load_output output = load_wait(processes[victim]);
        if (output.status != -SIGKILL) {
            load_expect(output, 3); /* it had ended before */
        }
        start_process(&processes[victim], 1 + victim % 2);
    }
    for (int i = 0; i < PROCESSES; i++) {
        load_output output = load_wait(processes[i]);
        load_expect(output, 3);
    }
}

START_TEST(processes_and_backends_killed_at_random_leave_each_row_exactly_once)
{
    uint64_t state = (uint64_t)time(NULL) + (uint64_t)getpid();
    write_numbers("f.csv", 6000);
    for (int round = 0; round < 10; round++) {
        uint64_t seed = state;
        make_table("CREATE TABLE t(a int, b text)");
        load_expect(load_run(DB "--into t --status"), 0);
        load_among_killers(&state, 16);
        ck_assert_msg(server_number("SELECT count(*) FROM t") == 5940, "round %d, seed %llu: %lld rows", round,
                      (unsigned long long)seed, (long long)server_number("SELECT count(*) FROM t"));
        check_numbers(6000);
        ck_assert_ptr_nonnull(strstr(read_file("r1.csv"), "\"bad6000,"));
    }
}
END_TEST

START_TEST(a_wire_cut_anywhere_is_made_anew_and_no_row_lost_or_loaded_twice)
{
    write_numbers("f.csv", 100);
    int64_t retries = 0;
    for (int direction = 0; direction < 2; direction++) {
        int fired = 1;
        /* The first bytes are those of connecting, which is not tried for long. */
        for (uint64_t n = 200; fired; n += 251) {
            make_table("CREATE TABLE t(a int, b text)");
            wire_proxy *proxy = server_proxy();
            wire_direction way = direction == 0 ? WIRE_TO_SERVER : WIRE_TO_CLIENT;
            wire_proxy_cut_after(proxy, 1, way, n, WIRE_RST | (n % 2 ? WIRE_DRAIN : 0));
            load_output output = load_run("--db 'host=%s port=%d' --into t --batch 50 --json --quiet f.csv",
                                          wire_proxy_host(proxy), wire_proxy_port(proxy));
            fired = wire_proxy_fired(proxy, 1, way);
            wire_proxy_close(proxy);
            ck_assert_msg(output.status == 3, "cut at byte %d: %d, %s", (int)n, output.status, output.err);
            check_numbers(100);
            ck_assert_int_eq(load_json(output, "rows_loaded"), 99);
            retries += load_json(output, "retries");
        }
    }
    ck_assert_int_gt(retries, 0);
}
END_TEST

START_TEST(a_commit_whose_answer_is_lost_is_found_by_its_chunk_and_not_repeated)
{
    make_table("CREATE TABLE t(a int, b text)");
    write_numbers("f.csv", 100);
    wire_proxy *proxy = server_proxy();
    PGconn *other = server_connect("");
    PQclear(PQexec(other, "BEGIN; LOCK TABLE t"));
    pid_t loader = load_start("--db 'host=%s port=%d' --into t --json --quiet f.csv", wire_proxy_host(proxy),
                              wire_proxy_port(proxy));
    server_wait("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'guard-load' AND wait_event_type = "
                "'Lock'",
                1);
    server_wait_for_nobody();
    PQfinish(other);
    server_wait(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'guard-load' AND wait_event = 'SyncRep'", 1);
    wire_proxy_cut(proxy, 1, WIRE_RST);
    server_run("ALTER SYSTEM RESET synchronous_standby_names");
    server_run("SELECT pg_reload_conf()");
    load_output output = load_wait(loader);
    wire_proxy_close(proxy);
    load_expect(output, 3);
    check_numbers(100);
    ck_assert_int_eq(load_json(output, "resolved"), 1);
    ck_assert_int_eq(load_json(output, "rows_loaded"), 99);
}
END_TEST

START_TEST(a_server_that_restarts_within_retry_for_is_waited_for)
{
    make_table("CREATE TABLE t(a int, b text)");
    write_numbers("f.csv", 20000);
    pid_t loader = load_start(DB "--into t --batch 50 --workers 2 --json --quiet f.csv");
    server_wait("SELECT (to_regclass('guard_load_file') IS NOT NULL)::int", 1);
    server_wait("SELECT (coalesce(max(chunks), 0) > 0)::int FROM guard_load_file", 1);
    server_control("-m immediate stop");
    server_control("start");
    load_output output = load_wait(loader);
    load_expect(output, 3);
    check_numbers(20000);
    ck_assert_int_gt(load_json(output, "retries"), 0);
}
END_TEST

START_TEST(a_server_that_stays_away_longer_fails_the_load_which_goes_on_later)
{
    make_table("CREATE TABLE t(a int, b text)");
    write_numbers("f.csv", 20000);
    load_expect(load_run(DB "--into t --status"), 0);
    pid_t loader = load_start(DB "--into t --batch 50 --retry-for 1 --quiet f.csv");
    server_wait("SELECT (to_regclass('guard_load_file') IS NOT NULL)::int", 1);
    server_wait("SELECT (coalesce(max(chunks), 0) > 0)::int FROM guard_load_file", 1);
    server_control("-m immediate stop");
    load_output output = load_wait(loader);
    server_control("start");
    load_expect(output, 1);
    output = load_run(DB "--into t --batch 50 --json --quiet f.csv");
    load_expect(output, 3);
    ck_assert_int_eq(load_json(output, "resumed"), 1);
    check_numbers(20000);
}
END_TEST

START_TEST(a_signal_ends_it_after_whole_chunks_and_the_same_command_goes_on)
{
    make_table("CREATE TABLE t(a int, b text)");
    write_numbers("f.csv", 40000);
    pid_t loader = load_start(DB "--into t --batch 50 --workers 2 --quiet f.csv");
    server_wait("SELECT (to_regclass('guard_load_file') IS NOT NULL)::int", 1);
    server_wait("SELECT (coalesce(max(chunks), 0) > 0)::int FROM guard_load_file", 1);
    kill(loader, SIGTERM);
    load_output output = load_wait(loader);
    load_expect(output, 143);
    load_expect(load_run(DB "--into t --quiet f.csv"), 3);
    check_numbers(40000);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        each_kind_of_bad_row_is_rejected_with_its_reason_and_takes_no_good_one_along,
        rows_that_name_another_row_in_their_own_text_cost_that_row_nothing,
        a_row_that_a_trigger_ignores_or_refuses_is_rejected,
        rows_that_satisfy_each_other_at_commit_are_loaded_and_orphans_among_them_rejected,
        an_error_that_only_rows_together_have_costs_no_good_row,
        a_late_check_over_several_rows_rejects_only_those_of_what_is_wrong,
        a_bad_row_does_not_keep_out_a_good_one_that_it_conflicts_with,
        foreign_keys_of_several_columns_and_odd_texts_are_told_apart,
        what_is_bad_early_or_late_in_a_long_chunk_costs_no_other_row,
        many_bad_rows_are_affordable,
        a_complete_file_is_not_loaded_again_unless_it_is_asked_for,
        new_content_under_an_unfinished_name_is_refused_until_it_is_forgotten,
        what_cannot_be_done_is_said_in_one_line_without_a_password,
        the_schema_is_run_once_where_the_table_is_missing,
        an_empty_file_is_complete_at_once,
        what_is_appended_while_the_database_is_opened_is_loaded,
        batches_become_large_unless_rows_are_checked_late_or_a_size_is_asked_for,
        batches_become_small_where_rows_are_slow,
        workers_share_a_file,
        each_worker_has_one_connection,
        loaders_with_copies_of_the_file_share_it_and_the_last_to_end_knows_all_rejects,
        of_duplicates_in_two_chunks_one_is_loaded_and_the_other_rejected,
        a_table_that_refers_to_itself_is_loaded_in_the_order_of_the_file,
        a_chunk_that_a_deadlock_took_is_loaded_again,
        a_wire_cut_anywhere_is_made_anew_and_no_row_lost_or_loaded_twice,
        a_commit_whose_answer_is_lost_is_found_by_its_chunk_and_not_repeated,
        a_server_that_restarts_within_retry_for_is_waited_for,
        a_server_that_stays_away_longer_fails_the_load_which_goes_on_later,
        a_signal_ends_it_after_whole_chunks_and_the_same_command_goes_on,
        processes_and_backends_killed_at_random_leave_each_row_exactly_once,
    };
    return load_suite_run("load_pq", tests, sizeof tests / sizeof *tests, SCRATCH_IN_MEMORY);
}
