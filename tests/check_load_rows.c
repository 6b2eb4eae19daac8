/* SPDX-License-Identifier: MIT */
/* check_load_rows.c: a bad row never stops the load and never takes a good one with it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "load_program.h"
#include "random.h"

#define REJECTS "SELECT line, code, reason, CAST(row AS TEXT) FROM guard_load_reject ORDER BY line"

/* Loads f.csv into table t, which `schema` makes; expects these rows and these rejects (line|code|reason|row). */
static load_output expect_rows(const char *schema, const char *csv, const char *options, const char *rows,
                               const char *rejects)
{
    run_sql("t.db", schema);
    write_file("f.csv", csv);
    load_output output = load_run("--db sqlite:t.db --into t %s f.csv", options);
    load_expect(output, *rejects != '\0' ? 3 : 0);
    ck_assert_str_eq(query("t.db", "SELECT * FROM t ORDER BY rowid"), rows);
    ck_assert_str_eq(query("t.db", REJECTS), rejects);
    return output;
}

/* ------------------------------------------------------------------------------------ each kind of badness -- */

START_TEST(a_row_with_too_few_or_too_many_fields_is_rejected)
{
    expect_rows("CREATE TABLE t (a, b)", "a,b\n1,2\n3\n4,5,6\n7,8\n", "", "1|2\n7|8",
                "3|columns|1 field, not 2|3\n4|columns|3 fields, not 2|4,5,6");
}
END_TEST

START_TEST(a_value_of_another_type_is_rejected_from_a_typed_column)
{
    expect_rows("CREATE TABLE t (i INTEGER, r REAL, n NUMERIC)",
                "i,r,n\n1,2,3\nx,2,3\n1.5,2,3\n1,y,3\n1,2,z\n9223372036854775808,2,3\n1,inf,3\n1,0x10,3\n1e,2,3\n1-2,2,"
                "3\n1,1e999,3\n",
                "", "1|2.0|3",
                "3|type|column i: \"x\" is not an integer|x,2,3\n"
                "4|type|column i: \"1.5\" is not an integer|1.5,2,3\n"
                "5|type|column r: \"y\" is not a number|1,y,3\n"
                "6|type|column n: \"z\" is not a number|1,2,z\n"
                "7|type|column i: \"9223372036854775808\" is not an integer|9223372036854775808,2,3\n"
                "8|type|column r: \"inf\" is not a number|1,inf,3\n"
                "9|type|column r: \"0x10\" is not a number|1,0x10,3\n"
                "10|type|column i: \"1e\" is not an integer|1e,2,3\n"
                "11|type|column i: \"1-2\" is not an integer|1-2,2,3\n"
                "12|type|column r: \"1e999\" is not a number|1,1e999,3");
}
END_TEST

START_TEST(a_value_of_another_type_is_rejected_from_a_strict_table)
{
    expect_rows("CREATE TABLE t (i INT, b BLOB, x ANY) STRICT", "i,b,x\n1,ab,007\nz,ab,1\n", "", "1|ab|007",
                "3|type|column i: \"z\" is not an integer|z,ab,1");
}
END_TEST

START_TEST(a_text_as_a_rowid_is_rejected)
{
    expect_rows("CREATE TABLE t (id INTEGER PRIMARY KEY, b)", "id,b\n5,x\ny,x\n5,z\n,auto\n", "", "5|x\n6|auto",
                "3|type|column id: \"y\" is not an integer|y,x\n4|unique|UNIQUE constraint failed: t.id|5,z");
}
END_TEST

START_TEST(a_null_in_a_not_null_column_is_rejected)
{
    expect_rows("CREATE TABLE t (a NOT NULL, b)", "a,b\n1,\n,2\n\"\",3\n", "", "1|NULL\n|3",
                "3|not_null|NOT NULL constraint failed: t.a|,2");
}
END_TEST

START_TEST(a_row_that_fails_a_check_is_rejected)
{
    expect_rows("CREATE TABLE t (a INTEGER CHECK (a < 10), b CONSTRAINT short CHECK (length(b) < 3))",
                "a,b\n1,x\n10,x\n2,xxx\n", "", "1|x",
                "3|check|CHECK constraint failed: a < 10|10,x\n4|check|CHECK constraint failed: short|2,xxx");
}
END_TEST

START_TEST(a_row_without_its_parent_is_rejected_and_the_reason_names_the_key)
{
    expect_rows(
        "CREATE TABLE p (k TEXT PRIMARY KEY, m INTEGER, n INTEGER, UNIQUE (m, n));"
        "INSERT INTO p VALUES ('x', 1, 2);"
        "CREATE TABLE t (a INTEGER, k TEXT REFERENCES p, m INTEGER, n INTEGER, FOREIGN KEY (m, n) REFERENCES p (m, n))",
        "a,k,m,n\n1,x,1,2\n2,y,1,2\n3,x,1,3\n4,,,2\n", "", "1|x|1|2\n4|NULL|NULL|2",
        "3|foreign_key|FOREIGN KEY constraint failed: k \"y\" is not in p (k)|2,y,1,2\n"
        "4|foreign_key|FOREIGN KEY constraint failed: m, n \"1\", \"3\" is not in p (m, n)|3,x,1,3");
}
END_TEST

START_TEST(of_two_rows_with_one_key_the_first_is_loaded)
{
    expect_rows("CREATE TABLE t (a UNIQUE, b)", "a,b\n1,x\n1,y\n2,z\n", "", "1|x\n2|z",
                "3|unique|UNIQUE constraint failed: t.a|1,y");
}
END_TEST

START_TEST(a_conflict_clause_of_the_table_neither_replaces_nor_ignores_nor_rolls_back)
{
    expect_rows(
        "CREATE TABLE t (a UNIQUE ON CONFLICT REPLACE, b UNIQUE ON CONFLICT ROLLBACK, c NOT NULL ON CONFLICT IGNORE)",
        "a,b,c\n1,1,1\n1,2,1\n2,1,1\n3,3,\n4,4,4\n", "", "1|1|1\n4|4|4",
        "3|unique|UNIQUE constraint failed: t.a|1,2,1\n4|unique|UNIQUE constraint failed: t.b|2,1,1\n"
        "5|not_null|NOT NULL constraint failed: t.c|3,3,");
}
END_TEST

START_TEST(bytes_that_are_not_utf8_or_are_nul_are_rejected)
{
    run_sql("t.db", "CREATE TABLE t (a)");
    write_bytes("f.csv", "a\nx\n\xFFy\n\0z\nw\n", 12);
    load_expect(load_run("--db sqlite:t.db --into t --rejects r.csv f.csv"), 3);
    ck_assert_str_eq(query("t.db", "SELECT a FROM t"), "x\nw");
    ck_assert_str_eq(query("t.db", "SELECT line, code, hex(row) FROM guard_load_reject"),
                     "3|encoding|FF79\n4|nul|007A");
    FILE *file = fopen("r.csv", "r");
    char bytes[200];
    size_t size = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    static const char expected[] = "file,line,code,reason,row\n"
                                   "f.csv,3,encoding,byte 1 (0xFF) is not UTF-8,\xFFy\n"
                                   "f.csv,4,nul,byte 1 is NUL,\0z\n";
    ck_assert_uint_eq(size, sizeof expected - 1);
    ck_assert(memcmp(bytes, expected, size) == 0);
}
END_TEST

START_TEST(a_row_longer_than_max_row_is_rejected)
{
    expect_rows("CREATE TABLE t (a)", "a\n1234567890\n12345678901\n12\n", "--max-row 10", "1234567890\n12",
                "3|too_long|a line of 11 bytes, of which the first 10 (--max-row) are kept|1234567890");
}
END_TEST

START_TEST(malformed_quoting_costs_its_line_only)
{
    expect_rows("CREATE TABLE t (a, b)", "a,b\n1,x\"y\n2,\"x\"y\n3,\"x\n4,y\n5,\"z\"\n6,\"p\nq\"\n7,\"x\n8,y\n", "",
                "4|y\n5|z\n6|p\nq\n8|y",
                "2|malformed|field 2: a quote inside a field without quotes|1,x\"y\n"
                "3|malformed|field 2: text after the closing quote|2,\"x\"y\n"
                "4|malformed|field 2: text after the closing quote|3,\"x\n"
                "9|malformed|a quote is opened and never closed|7,\"x");
}
END_TEST

START_TEST(a_row_that_a_trigger_refuses_or_ignores_is_rejected)
{
    expect_rows("CREATE TABLE t (a INTEGER); CREATE TRIGGER g BEFORE INSERT ON t BEGIN"
                " SELECT CASE new.a WHEN 2 THEN RAISE(ABORT, 'no twos') WHEN 3 THEN RAISE(IGNORE)"
                " WHEN 5 THEN RAISE(FAIL, 'no fives') END; END",
                "a\n1\n2\n3\n4\n5\n6\n", "", "1\n4\n6",
                "3|trigger|no twos|2\n4|trigger|a trigger of the table ignored the row|3\n6|trigger|no fives|5");
}
END_TEST

START_TEST(a_row_whose_trigger_rolls_back_takes_no_other_with_it)
{
    static const char schema[] =
        "CREATE TABLE t (a INTEGER UNIQUE); CREATE TRIGGER g BEFORE INSERT ON t WHEN new.a % 4 = 0"
        " BEGIN SELECT RAISE(ROLLBACK, 'no fours'); END";
    expect_rows(
        schema, "a\n4\n1\n2\n2\n8\n12\n\n3\n16\n5\n", "--batch 3", "1\n2\n3\n5",
        "2|trigger|no fours|4\n5|unique|UNIQUE constraint failed: t.a|2\n6|trigger|no fours|8\n7|trigger|no fours|12\n"
        "10|trigger|no fours|16");
}
END_TEST

/* ------------------------------------------------------------------------------------------ fail at COMMIT -- */

#define TREE "CREATE TABLE t (id INTEGER PRIMARY KEY, up INTEGER REFERENCES t (id) DEFERRABLE INITIALLY DEFERRED)"

START_TEST(each_row_whose_trigger_rolls_back_has_its_own_reason)
{
    expect_rows("CREATE TABLE t (a INTEGER);"
                "CREATE TRIGGER g BEFORE INSERT ON t WHEN new.a = 2 BEGIN SELECT RAISE(ROLLBACK, 'no two'); END;"
                "CREATE TRIGGER h AFTER INSERT ON t WHEN new.a = 4 BEGIN SELECT RAISE(ROLLBACK, 'no four'); END",
                "a\n1\n2\n3\n4\n5\n", "", "1\n3\n5", "3|trigger|no two|2\n5|trigger|no four|4");
}
END_TEST

START_TEST(nothing_stays_of_a_row_whose_trigger_fails_or_ignores_behind_a_write)
{
    expect_rows("CREATE TABLE t (a INTEGER); CREATE TABLE log (a);"
                "CREATE TRIGGER g AFTER INSERT ON t WHEN new.a = 2 BEGIN INSERT INTO log VALUES (2);"
                " SELECT RAISE(FAIL, 'no two'); END;"
                "CREATE TRIGGER h BEFORE INSERT ON t WHEN new.a = 4 BEGIN INSERT INTO log VALUES (4);"
                " SELECT RAISE(IGNORE); END",
                "a\n1\n2\n3\n4\n5\n", "", "1\n3\n5",
                "3|trigger|no two|2\n5|trigger|a trigger of the table ignored the row|4");
    ck_assert_str_eq(query("t.db", "SELECT count(*) FROM log"), "0");
}
END_TEST

START_TEST(rows_that_only_fail_at_commit_are_found)
{
    expect_rows(TREE, "id,up\n1,\n2,1\n3,99\n4,1\n5,98\n6,4\n", "", "1|NULL\n2|1\n4|1\n6|4",
                "4|foreign_key|FOREIGN KEY constraint failed: up \"99\" is not in t (id)|3,99\n"
                "6|foreign_key|FOREIGN KEY constraint failed: up \"98\" is not in t (id)|5,98");
}
END_TEST

START_TEST(rows_that_wait_for_a_later_one_are_kept_when_another_fails_at_commit)
{
    /* 1 waits for 2 for 3 for 4; 5 and 6 for each other; 7, 8, 9 in a circle; 10 for itself; 12 waits for 11, which is bad. */
    expect_rows(TREE, "id,up\n1,2\n2,3\n3,4\n4,\n5,6\n6,5\n7,8\n8,9\n9,7\n10,10\n11,99\n12,11\n", "",
                "1|2\n2|3\n3|4\n4|NULL\n5|6\n6|5\n7|8\n8|9\n9|7\n10|10",
                "12|foreign_key|FOREIGN KEY constraint failed: up \"99\" is not in t (id)|11,99\n"
                "13|foreign_key|FOREIGN KEY constraint failed: up \"11\" is not in t (id)|12,11");
}
END_TEST

START_TEST(a_row_may_end_the_transaction_while_others_fail_at_commit)
{
    expect_rows(
        TREE "; CREATE TRIGGER g BEFORE INSERT ON t WHEN new.id % 4 = 0 BEGIN SELECT RAISE(ROLLBACK, 'no fours'); END",
        "id,up\n1,2\n2,\n3,99\n4,1\n5,6\n6,5\n7,98\n8,1\n9,1\n", "", "1|2\n2|NULL\n5|6\n6|5\n9|1",
        "4|foreign_key|FOREIGN KEY constraint failed: up \"99\" is not in t (id)|3,99\n5|trigger|no fours|4,1\n"
        "8|foreign_key|FOREIGN KEY constraint failed: up \"98\" is not in t (id)|7,98\n9|trigger|no fours|8,1");
}
END_TEST

START_TEST(a_batch_that_fails_at_commit_keeps_its_other_rejects)
{
    expect_rows(TREE, "id,up\n1,x\n1,\n1,1\n2,99\n3,1\n", "--batch 100", "1|NULL\n3|1",
                "2|type|column up: \"x\" is not an integer|1,x\n4|unique|UNIQUE constraint failed: t.id|1,1\n"
                "5|foreign_key|FOREIGN KEY constraint failed: up \"99\" is not in t (id)|2,99");
}
END_TEST

START_TEST(many_rows_that_fail_at_commit_are_found_in_every_batch)
{
    /* Without the index SQLite itself reads the whole table for each row while another row waits. */
    run_sql("t.db", TREE "; CREATE INDEX up ON t (up)");
    FILE *file = fopen("f.csv", "w");
    fputs("id,up\n", file);
    for (int i = 1; i <= 20000; i++) {
        /* Every tenth has no parent; the others wait for the next row that is no tenth, at the end of each hundred for none. */
        if (i % 10 == 0) {
            fprintf(file, "%d,%d\n", i, 1000000 + i);
        } else if (i % 100 == 99) {
            fprintf(file, "%d,\n", i);
        } else {
            fprintf(file, "%d,%d\n", i, i % 10 == 9 ? i + 2 : i + 1);
        }
    }
    fclose(file);
    load_output output = load_run("--db sqlite:t.db --into t --batch 1000 --json f.csv");
    load_expect(output, 3);
    ck_assert_int_eq(load_json(output, "rows_loaded"), 18000);
    ck_assert_int_eq(load_json(output, "rows_rejected"), 2000);
    ck_assert_str_eq(query("t.db", "SELECT count(*), sum(id % 10 = 0) FROM t"), "18000|0");
    ck_assert_str_eq(query("t.db", "SELECT count(*), sum((line - 1) % 10 = 0) FROM guard_load_reject"), "2000|2000");
    ck_assert_str_eq(query("t.db", "PRAGMA foreign_key_check"), "");
}
END_TEST

/* ----------------------------------------------------------------------------------------------- reporting -- */

START_TEST(the_rejects_file_has_every_bad_row_of_the_runs_files_as_it_stood)
{
    run_sql("t.db", "CREATE TABLE t (a INTEGER, b)");
    write_file("f.csv", "a,b\nx,\"1,2\"\n1,2\n 7x , \n\"p\nq\",3\n");
    write_file("g,h.csv", "a,b\n1\n");
    load_expect(load_run("--db sqlite:t.db --into t --rejects r.csv f.csv g,h.csv"), 3);
    static const char expected[] = "file,line,code,reason,row\n"
                                   "f.csv,2,type,\"column a: \"\"x\"\" is not an integer\",\"x,\"\"1,2\"\"\"\n"
                                   "f.csv,4,type,\"column a: \"\" 7x \"\" is not an integer\",\" 7x , \"\n"
                                   "f.csv,5,type,\"column a: \"\"p\nq\"\" is not an integer\",\"\"\"p\nq\"\",3\"\n"
                                   "\"g,h.csv\",2,columns,\"1 field, not 2\",1\n";
    ck_assert_str_eq(read_file("r.csv"), expected);
    /* Again, when there is nothing to load. */
    ck_assert_int_eq(unlink("r.csv"), 0);
    load_expect(load_run("--db sqlite:t.db --into t --rejects r.csv f.csv g,h.csv"), 3);
    ck_assert_str_eq(read_file("r.csv"), expected);
}
END_TEST

START_TEST(without_bad_rows_the_rejects_file_is_its_header)
{
    run_sql("t.db", "CREATE TABLE t (a)");
    write_file("f.csv", "a\n1\n");
    write_file("r.csv", "of the run before\n");
    load_expect(load_run("--db sqlite:t.db --into t --rejects r.csv f.csv"), 0);
    ck_assert_str_eq(read_file("r.csv"), "file,line,code,reason,row\n");
}
END_TEST

START_TEST(the_load_gives_up_at_max_rejects_with_nothing_half_done)
{
    run_sql("t.db", "CREATE TABLE t (a INTEGER)");
    write_file("f.csv", "a\n1\nx\n2\ny\n3\nz\n");
    load_output output = load_run("--db sqlite:t.db --into t --max-rejects 2 --rejects r.csv --json --quiet f.csv");
    load_expect_error(output, 1, "f.csv: gave up after 2 rejected rows (--max-rejects)");
    ck_assert_str_eq(load_json_text(output, "outcome"), "rolled_back");
    ck_assert_int_eq(load_json(output, "rows_loaded"), 0);
    ck_assert_str_eq(query("t.db", "SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM guard_load_file),"
                                   " (SELECT count(*) FROM guard_load_reject)"),
                     "0|0|0");
    /* What made it give up can be read all the same. */
    ck_assert_str_eq(read_file("r.csv"), "file,line,code,reason,row\n"
                                         "f.csv,3,type,\"column a: \"\"x\"\" is not an integer\",x\n"
                                         "f.csv,5,type,\"column a: \"\"y\"\" is not an integer\",y\n");
    /* Enough are allowed: no trace of the former try. */
    load_expect(load_run("--db sqlite:t.db --into t --max-rejects 4 f.csv"), 3);
    ck_assert_str_eq(query("t.db", "SELECT a FROM t"), "1\n2\n3");
}
END_TEST

START_TEST(batches_before_the_one_that_gave_up_stay_and_are_not_loaded_again)
{
    run_sql("t.db", "CREATE TABLE t (a INTEGER)");
    write_file("f.csv", "a\n1\nx\n2\ny\n3\n4\n");
    load_expect(load_run("--db sqlite:t.db --into t --batch 2 --max-rejects 2 f.csv"), 1);
    ck_assert_str_eq(query("t.db", "SELECT a FROM t"), "1");
    load_output output = load_run("--db sqlite:t.db --into t --batch 2 --json f.csv");
    load_expect(output, 3);
    ck_assert_int_eq(load_json(output, "resumed"), 1);
    ck_assert_str_eq(query("t.db", "SELECT a FROM t"), "1\n2\n3\n4");
    ck_assert_str_eq(query("t.db", "SELECT line FROM guard_load_reject"), "3\n5");
}
END_TEST

START_TEST(the_dirty_file_of_the_demonstration_has_each_kind_of_badness)
{
    const char *source = getenv("srcdir");
    load_expect(
        load_run(
            "--db sqlite:t.db --schema %s/demo/load/data/schema.sql --into airports %s/demo/load/data/airports.csv",
            source, source),
        0);
    load_expect(load_run("--db sqlite:t.db --into bookings --max-row 200 %s/demo/load/data/dirty.csv", source), 3);
    ck_assert_str_eq(query("t.db", "SELECT code FROM bookings"), "B001\nB014\nB016\nB018");
    ck_assert_str_eq(
        query("t.db", "SELECT line, code FROM guard_load_reject"),
        "3|columns\n4|columns\n5|type\n6|type\n7|not_null\n8|check\n9|foreign_key\n10|unique\n11|encoding\n12|nul\n"
        "13|malformed\n14|malformed\n15|malformed\n19|malformed\n21|too_long\n23|malformed");
}
END_TEST

/* ------------------------------------------------------------------------------------------------ property -- */

/* A file whose good rows and bad lines are known; the rows have numbers from 1 up. */
static void write_known_file(uint64_t *state, char *expected_rows, char *expected_lines)
{
    static const char *const bad[] = {"x,1", "1", "7,\"a", "7,a\"b", "7,\"a\"b", "7,\xC3", ",3", "-7,3", "7,1,2"};
    FILE *file = fopen("f.csv", "w");
    int line = 2;
    int bad_lines = 0;
    fputs("a,b\n", file);
    for (int number = 1, rows = 1 + (int)(random_next(state) % 40); number <= rows; number++) {
        if (random_next(state) % 3 == 0) {
            fprintf(file, "%s\n", bad[random_next(state) % (sizeof bad / sizeof *bad)]);
            expected_lines += sprintf(expected_lines, "%s%d", bad_lines++ > 0 ? "\n" : "", line);
            line++;
        }
        /* Each good row has a quote, so that an open one before it turns malformed here. */
        int tall = random_next(state) % 4 == 0;
        fprintf(file, "%d,\"%s\"\n", number, tall ? "t\nu" : "t");
        expected_rows += sprintf(expected_rows, "%s%d|%s", number > 1 ? "\n" : "", number, tall ? "t\nu" : "t");
        line += 1 + tall;
    }
    fclose(file);
}

START_TEST(of_random_files_every_good_row_is_loaded_and_every_bad_line_is_told)
{
    uint64_t state = 42;
    for (int round = 0; round < 20; round++) {
        char rows[4096] = "";
        char lines[4096] = "";
        unlink("t.db");
        unlink("t.db-wal");
        unlink("t.db-shm");
        run_sql("t.db", "CREATE TABLE t (a INTEGER NOT NULL CHECK (a > 0), b)");
        write_known_file(&state, rows, lines);
        load_expect(load_run("--db sqlite:t.db --into t --batch %u f.csv", 1 + random_next(&state) % 9),
                    lines[0] != '\0' ? 3 : 0);
        ck_assert_str_eq(query("t.db", "SELECT a, b FROM t ORDER BY rowid"), rows);
        ck_assert_str_eq(query("t.db", "SELECT line FROM guard_load_reject"), lines);
    }
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_row_with_too_few_or_too_many_fields_is_rejected,
        a_value_of_another_type_is_rejected_from_a_typed_column,
        a_value_of_another_type_is_rejected_from_a_strict_table,
        a_text_as_a_rowid_is_rejected,
        a_null_in_a_not_null_column_is_rejected,
        a_row_that_fails_a_check_is_rejected,
        a_row_without_its_parent_is_rejected_and_the_reason_names_the_key,
        of_two_rows_with_one_key_the_first_is_loaded,
        a_conflict_clause_of_the_table_neither_replaces_nor_ignores_nor_rolls_back,
        bytes_that_are_not_utf8_or_are_nul_are_rejected,
        a_row_longer_than_max_row_is_rejected,
        malformed_quoting_costs_its_line_only,
        a_row_that_a_trigger_refuses_or_ignores_is_rejected,
        a_row_whose_trigger_rolls_back_takes_no_other_with_it,
        each_row_whose_trigger_rolls_back_has_its_own_reason,
        nothing_stays_of_a_row_whose_trigger_fails_or_ignores_behind_a_write,
        rows_that_only_fail_at_commit_are_found,
        rows_that_wait_for_a_later_one_are_kept_when_another_fails_at_commit,
        a_row_may_end_the_transaction_while_others_fail_at_commit,
        a_batch_that_fails_at_commit_keeps_its_other_rejects,
        many_rows_that_fail_at_commit_are_found_in_every_batch,
        the_rejects_file_has_every_bad_row_of_the_runs_files_as_it_stood,
        without_bad_rows_the_rejects_file_is_its_header,
        the_load_gives_up_at_max_rejects_with_nothing_half_done,
        batches_before_the_one_that_gave_up_stay_and_are_not_loaded_again,
        the_dirty_file_of_the_demonstration_has_each_kind_of_badness,
        of_random_files_every_good_row_is_loaded_and_every_bad_line_is_told,
    };
    return load_suite_run("load rows", tests, sizeof tests / sizeof *tests, SCRATCH_IN_MEMORY);
}
