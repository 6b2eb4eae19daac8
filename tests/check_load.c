/* SPDX-License-Identifier: MIT */
/* check_load.c: guard-load loads, says what it did, and refuses what it cannot do with one line that names the culprit. */
#include <pty.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard_file.h>

#include "load_program.h"

#define TABLE "CREATE TABLE t (a INTEGER NOT NULL, b TEXT, c REAL)"
#define ALL "SELECT a, b, c FROM t ORDER BY rowid"

static const char *data_file(const char *name)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/demo/load/data/%s", getenv("srcdir"), name);
    return path;
}

/* ------------------------------------------------------------------------------------------------- loading -- */

START_TEST(rows_go_to_the_columns_that_the_header_names)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "b,A\nx,1\ny,2\n");
    load_expect(load_run("--db sqlite:t.db --into t f.csv"), 0);
    ck_assert_str_eq(query("t.db", ALL), "1|x|NULL\n2|y|NULL");
}
END_TEST

START_TEST(the_schema_is_run_when_the_table_is_missing_and_only_then)
{
    write_file("s.sql", TABLE "; CREATE TABLE other (x);");
    write_file("f.csv", "a\n1\n");
    write_file("g.csv", "a\n2\n");
    load_expect(load_run("--db sqlite:t.db --schema s.sql --into t f.csv"), 0);
    load_expect(load_run("--db sqlite:t.db --schema s.sql --into t g.csv"), 0);
    ck_assert_str_eq(query("t.db", "SELECT a FROM t"), "1\n2");
    ck_assert_str_eq(query("t.db", "SELECT count(*) FROM other"), "0");
}
END_TEST

START_TEST(the_database_is_guard_load_db_unless_named)
{
    run_sql("guard-load.db", TABLE);
    write_file("f.csv", "a\n1\n");
    load_expect(load_run("--into t f.csv"), 0);
    ck_assert_str_eq(query("guard-load.db", "SELECT a FROM t"), "1");
}
END_TEST

START_TEST(json_tells_what_the_run_did)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "a\n1\nx\n3\n4\n5\n");
    write_file("g.csv", "a\n6\n");
    load_output output = load_run("--db sqlite:t.db --into t --batch 2 --json --quiet f.csv g.csv");
    load_expect(output, 3);
    ck_assert_str_eq(output.err, "");
    ck_assert_int_eq(load_json(output, "files"), 2);
    ck_assert_int_eq(load_json(output, "rows_read"), 6);
    ck_assert_int_eq(load_json(output, "rows_loaded"), 5);
    ck_assert_int_eq(load_json(output, "rows_rejected"), 1);
    ck_assert_int_eq(load_json(output, "batches"), 4);
    ck_assert_int_eq(load_json(output, "resumed"), 0);
    ck_assert_str_eq(load_json_text(output, "outcome"), "committed");
    ck_assert_ptr_nonnull(strstr(output.out, "\"seconds\":"));
    ck_assert_msg(strchr(output.out, '\n') == output.out + strlen(output.out) - 1, "not one line: %s", output.out);
}
END_TEST

START_TEST(the_flights_come_out_as_they_are_in_the_file)
{
    char schema[4096];
    strcpy(schema, data_file("schema.sql"));
    load_expect(load_run("--db sqlite:t.db --schema %s --into airports %s", schema, data_file("airports.csv")), 0);
    load_output output = load_run("--db sqlite:t.db --into flights --json %s", data_file("flights.csv"));
    load_expect(output, 0);
    ck_assert_int_eq(load_json(output, "rows_loaded"), 231083);
    ck_assert_int_eq(load_json(output, "batches"), 24);
    ck_assert_int_eq(query_int64("t.db", "SELECT count(*) FROM airports"), 3376);
    /* The table, written as CSV again, is the file. */
    const char *rows = query("t.db", "SELECT printf('%08d,%d,%d,%s,%s', date, delay, distance, origin, destination)"
                                     " FROM flights ORDER BY rowid");
    const char *file = read_file(data_file("flights.csv"));
    const char *body = strchr(file, '\n') + 1;
    ck_assert_uint_eq(strlen(rows) + 1, strlen(body));
    ck_assert(memcmp(rows, body, strlen(rows)) == 0);
    ck_assert_str_eq(query("t.db", "PRAGMA integrity_check"), "ok");
    ck_assert_str_eq(query("t.db", "PRAGMA foreign_key_check"), "");
    ck_assert_str_eq(query("t.db", "PRAGMA journal_mode"), "wal");
}
END_TEST

START_TEST(fields_become_values_of_the_columns_types)
{
    run_sql("t.db", "CREATE TABLE t (i INT, r DOUBLE, n DECIMAL(5,2), s VARCHAR(3), b BLOB, d DATE, x)");
    write_file("f.csv", "i,r,n,s,b,d,x\n"
                        "007,1.5,2.50,007,ab,2001-01-02,12\n"
                        "-9223372036854775808,1e3,3,x,,,\n"
                        " 5 ,-.5,+4.,\"\",\"\",\"\",\"\"\n"
                        "12.0,1,1e2,1e2,12,5,z\n");
    load_expect(load_run("--db sqlite:t.db --into t f.csv"), 0);
    ck_assert_str_eq(
        query("t.db", "SELECT *, typeof(i), typeof(r), typeof(n), typeof(s), typeof(b), typeof(d), typeof(x) FROM t"),
        "7|1.5|2.5|007|ab|2001-01-02|12|integer|real|real|text|blob|text|text\n"
        "-9223372036854775808|1000.0|3|x|NULL|NULL|NULL|integer|real|integer|text|null|null|null\n"
        "5|-0.5|4|||||integer|real|integer|text|blob|text|text\n"
        "12|1.0|100|1e2|12|5|z|integer|real|integer|text|blob|integer|text");
}
END_TEST

START_TEST(null_is_the_empty_field_or_the_text_of_the_option)
{
    run_sql("t.db", "CREATE TABLE t (a, b)");
    write_file("f.csv", "a,b\n,\"\"\nNA,1\n");
    write_file("g.csv", "a,b\n,\"\"\nNA,2\n");
    load_expect(load_run("--db sqlite:t.db --into t f.csv"), 0);
    load_expect(load_run("--db sqlite:t.db --into t --null NA g.csv"), 0);
    ck_assert_str_eq(query("t.db", "SELECT a, b FROM t"), "NULL|\nNA|1\n|\nNULL|2");
}
END_TEST

START_TEST(without_a_header_fields_go_to_the_columns_in_order)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "1,x,0.5\n2,y,\n");
    load_expect(load_run("--db sqlite:t.db --into t --no-header f.csv"), 0);
    ck_assert_str_eq(query("t.db", ALL), "1|x|0.5\n2|y|NULL");
}
END_TEST

START_TEST(map_renames_and_leaves_out)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "id,junk,b\n1,?,x\n");
    write_file("g.csv", "x,?,2\n");
    load_expect(load_run("--db sqlite:t.db --into t --map id=a,junk= f.csv"), 0);
    load_expect(load_run("--db sqlite:t.db --into t --no-header --map 1=b,2= --map 3=a g.csv"), 0);
    ck_assert_str_eq(query("t.db", "SELECT a, b FROM t"), "1|x\n2|x");
}
END_TEST

START_TEST(a_delimiter_of_the_users_choice_separates)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "a;b\n1;x,y\n");
    write_file("g.csv", "a\tb\n2\tz\n");
    load_expect(load_run("--db sqlite:t.db --into t --delimiter ; f.csv"), 0);
    load_expect(load_run("--db sqlite:t.db --into t --delimiter \\t g.csv"), 0);
    ck_assert_str_eq(query("t.db", "SELECT a, b FROM t"), "1|x,y\n2|z");
}
END_TEST

START_TEST(names_with_quotes_and_blanks_are_names)
{
    run_sql("t.db", "CREATE TABLE \"odd \"\"name\" (\"a b\" INTEGER, \"c\"\"d\" TEXT)");
    write_file("odd file.csv", "a b,\"c\"\"d\"\n1,x\n");
    load_expect(load_run("--db sqlite:t.db --into 'odd \"name' 'odd file.csv'"), 0);
    ck_assert_str_eq(query("t.db", "SELECT * FROM \"odd \"\"name\""), "1|x");
}
END_TEST

START_TEST(generated_columns_take_no_field)
{
    run_sql("t.db", "CREATE TABLE t (a INTEGER, twice AS (a * 2), b TEXT)");
    write_file("f.csv", "4,x\n");
    load_expect(load_run("--db sqlite:t.db --into t --no-header f.csv"), 0);
    ck_assert_str_eq(query("t.db", "SELECT * FROM t"), "4|8|x");
    write_file("g.csv", "twice\n4\n");
    load_expect_error(load_run("--db sqlite:t.db --into t g.csv"), 1, "no column \"twice\"");
}
END_TEST

START_TEST(a_header_without_rows_is_loaded_and_complete)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "a,b\n");
    load_output output = load_run("--db sqlite:t.db --into t --json f.csv");
    load_expect(output, 0);
    ck_assert_int_eq(load_json(output, "rows_read"), 0);
    ck_assert_str_eq(query("t.db", "SELECT complete FROM guard_load_file"), "1");
    write_file("g.csv", "");
    load_expect(load_run("--db sqlite:t.db --into t --no-header g.csv"), 0);
}
END_TEST

START_TEST(a_file_whose_last_row_fills_a_batch_needs_no_empty_one)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "a\n1\n2\n3\n4\n\n");
    load_output output = load_run("--db sqlite:t.db --into t --batch 2 --json f.csv");
    load_expect(output, 0);
    ck_assert_int_eq(load_json(output, "batches"), 2);
    ck_assert_int_eq(load_json(output, "rows_loaded"), 4);
}
END_TEST

START_TEST(progress_is_plain_lines_where_there_is_no_terminal)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "a\n1\n");
    load_output output = load_run("--db sqlite:t.db --into t f.csv");
    load_expect(output, 0);
    ck_assert_str_eq(output.out, "");
    ck_assert_ptr_nonnull(strstr(output.err, "f.csv: 1 rows loaded, 0 rejected"));
    ck_assert_ptr_null(strchr(output.err, '\r'));
}
END_TEST

static char shown[1 << 16];

/* Reads the terminal into `shown` until it has the text, or to its end where that is NULL. */
static void read_terminal(int terminal, const char *text)
{
    size_t used = strlen(shown);
    while (text == NULL || strstr(shown, text) == NULL) {
        ssize_t got = read(terminal, shown + used, sizeof shown - 1 - used);
        if (got <= 0) {
            break;
        }
        used += (size_t)got;
        shown[used] = '\0';
    }
    ck_assert_msg(text == NULL || strstr(shown, text) != NULL, "no \"%s\" in: %s", text, shown);
}

/* Another writer keeps the loader at its first row until the bar's next drawing is due: so it is drawn with a rate at any speed. */
START_TEST(a_terminal_shows_a_bar_with_rate_and_time_left)
{
    run_sql("t.db", TABLE);
    write_file("first.csv", "a\n1\n");
    load_expect(load_run("--db sqlite:t.db --into t first.csv"), 0);
    write_file("f.csv", "a,b\n\n1,x\n2,y\n3,z\n"); /* behind the empty line, the first row is a move */
    sqlite3 *writer = NULL;
    ck_assert_int_eq(sqlite3_open("t.db", &writer), SQLITE_OK);
    ck_assert_int_eq(sqlite3_exec(writer, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    int terminal = -1;
    struct winsize size = {.ws_row = 24, .ws_col = 100};
    pid_t process = forkpty(&terminal, NULL, NULL, &size);
    ck_assert_int_ge(process, 0);
    if (process == 0) {
        char program[4096];
        snprintf(program, sizeof program, "%s/demo/guard-load", getenv("builddir"));
        execl(program, program, "--db", "sqlite:t.db", "--into", "t", "f.csv", (char *)NULL);
        _exit(127);
    }
    read_terminal(terminal, "loading f.csv [");
    pause_ms(110); /* time itself: it is drawn ten times a second at the most */
    ck_assert_int_eq(sqlite3_exec(writer, "ROLLBACK", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(writer);
    read_terminal(terminal, NULL);
    int status = 0;
    ck_assert_int_eq(waitpid(process, &status, 0), process);
    ck_assert_int_eq(WEXITSTATUS(status), 0);
    ck_assert_ptr_nonnull(strstr(shown, "f.csv: 3 rows loaded"));
    char *rate = strstr(shown, " rows/s  ");
    ck_assert_msg(rate != NULL, "no rate in: %s", shown);
    ck_assert_ptr_nonnull(strstr(rate, " left"));
    rate[strcspn(rate, "\r")] = '\0';
    const char *bar = strrchr(shown, '\r');
    ck_assert_msg(bar != NULL && strncmp(bar, "\rloading f.csv [#", 17) == 0, "the bar is: %s", bar);
    ck_assert_msg(strlen(bar) <= 100, "a bar wider than the terminal: %s", bar);
}
END_TEST

START_TEST(status_tells_files_how_far_and_rejects)
{
    run_sql("t.db", TABLE);
    load_output output = load_run("--db sqlite:t.db --into t --status");
    load_expect(output, 0);
    ck_assert_str_eq(output.out, "nothing was loaded into table \"t\"\n");
    write_file("f.csv", "a\n1\nx\n");
    write_file("g.csv", "a\n2\n");
    load_expect(load_run("--db sqlite:t.db --into t f.csv g.csv"), 3);
    output = load_run("--db sqlite:t.db --into T --status");
    load_expect(output, 0);
    ck_assert_ptr_nonnull(strstr(output.out, "f.csv: complete, 1 rows loaded, 1 rejected"));
    ck_assert_ptr_nonnull(strstr(output.out, "g.csv: complete, 1 rows loaded, 0 rejected"));
    output = load_run("--db sqlite:t.db --into t --status g.csv");
    ck_assert_ptr_null(strstr(output.out, "f.csv"));
    output = load_run("--db sqlite:t.db --into t --status --json");
    load_expect(output, 0);
    ck_assert_str_eq(load_json_text(output, "table"), "t");
    ck_assert_ptr_nonnull(strstr(output.out, "\"rows_loaded\":1,\"rows_rejected\":1,\"complete\":true"));
}
END_TEST

START_TEST(a_file_name_that_is_not_utf8_is_loaded_and_shown)
{
    run_sql("t.db", TABLE);
    write_file("\xE9t\xE9.csv", "a\n1\n");
    load_expect(load_run("--db sqlite:t.db --into t \xE9t\xE9.csv"), 0);
    load_output output = load_run("--db sqlite:t.db --into t --status --json");
    load_expect(output, 0);
    ck_assert_ptr_nonnull(strstr(output.out, "\"\xEF\xBF\xBDt\xEF\xBF\xBD.csv\""));
}
END_TEST

/* ---------------------------------------------------------------------------------------------- wrong usage -- */

START_TEST(wrong_usage_is_told_with_status_2)
{
    static const char *const wrong[][2] = {
        {"--into t --frobnicate f.csv", "--frobnicate"},
        {"--into t -x f.csv", "-x"},
        {"f.csv", "--into"},
        {"--into t", "no FILE"},
        {"--into t --batch 0 f.csv", "--batch"},
        {"--into t --batch 1k f.csv", "\"1k\""},
        {"--into t --batch -1 f.csv", "\"-1\""},
        {"--into t --batch 99999999999999999999 f.csv", "--batch"},
        {"--into t --max-rejects many f.csv", "\"many\""},
        {"--into t --max-row 0 f.csv", "--max-row"},
        {"--into t --delimiter ab f.csv", "\"ab\""},
        {"--into t --delimiter \" f.csv", "--delimiter"},
        {"--into t --map a f.csv", "--map"},
        {"--into t --map =a f.csv", "--map"},
        {"--db mysql:x --into t f.csv", "\"mysql\""},
        {"--db x.db --into t f.csv", "x.db"},
        {"--db sqlite: --into t f.csv", "sqlite:"},
        {"--db sqlite::memory: --into t f.csv", ":memory:"},
        {"--db sqlite:file:x?mode=memory --into t f.csv", "sqlite:./file:x?mode=memory"},
        {"--into t -", "--name"},
        {"--into t - - --name x", "twice"},
        {"--into t --name x f.csv", "--name"},
        {"--into t --status --forget f.csv", "--forget"},
        {"--into t f.csv --batch", "--batch"},
    };
    write_file("f.csv", "a\n1\n");
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        load_expect_error(load_run("%s", wrong[i][0]), 2, wrong[i][1]);
    }
    ck_assert_int_ne(access("guard-load.db", F_OK), 0);
}
END_TEST

START_TEST(help_and_version_go_to_standard_output)
{
    load_output output = load_run("--help");
    load_expect(output, 0);
    ck_assert_ptr_nonnull(strstr(output.out, "--max-rejects N"));
    output = load_run("--version");
    load_expect(output, 0);
    ck_assert_ptr_nonnull(strstr(output.out, "guard-load"));
}
END_TEST

/* ------------------------------------------------------------------------------------------------- refusals -- */

/* The table is as it was, and nothing is known of any file. */
static void expect_nothing_done(void)
{
    ck_assert_int_eq(query_int64("t.db", "SELECT count(*) FROM t"), 0);
    ck_assert_int_eq(query_int64("t.db", "SELECT count(*) FROM sqlite_schema WHERE name = 'guard_load_file'") &&
                         query_int64("t.db", "SELECT count(*) FROM guard_load_file"),
                     0);
}

START_TEST(a_file_that_is_missing_is_named_before_another_is_loaded)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "a\n1\n");
    load_output output = load_run("--db sqlite:t.db --into t --quiet --json f.csv gone.csv");
    load_expect_error(output, 1, "gone.csv");
    ck_assert_str_eq(load_json_text(output, "outcome"), "rolled_back");
    expect_nothing_done();
}
END_TEST

START_TEST(a_directory_or_a_pipe_for_a_file_is_refused)
{
    run_sql("t.db", TABLE);
    ck_assert_int_eq(mkdir("dir", 0777), 0);
    ck_assert_int_eq(mkfifo("pipe", 0666), 0);
    load_expect_error(load_run("--db sqlite:t.db --into t dir"), 1, "dir is a directory");
    load_expect_error(load_run("--db sqlite:t.db --into t pipe"), 1, "pipe is not a regular file");
    expect_nothing_done();
}
END_TEST

START_TEST(a_file_without_a_header_line_is_refused)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "");
    write_file("g.csv", "\n\n");
    write_file("h.csv", "a,\"b\n");
    load_expect_error(load_run("--db sqlite:t.db --into t f.csv"), 1, "f.csv has no header line");
    load_expect_error(load_run("--db sqlite:t.db --into t g.csv"), 1, "g.csv has no header line");
    load_expect_error(load_run("--db sqlite:t.db --into t h.csv"), 1, "h.csv: its header line cannot be read");
    expect_nothing_done();
}
END_TEST

START_TEST(a_column_that_the_table_lacks_is_named)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "a,colour\n1,red\n");
    load_expect_error(load_run("--db sqlite:t.db --into t f.csv"), 1, "table \"t\" has no column \"colour\"");
    load_expect_error(load_run("--db sqlite:t.db --into t --map colour=color f.csv"), 1,
                      "has no column \"color\" (--map)");
    load_expect_error(load_run("--db sqlite:t.db --into t --map tone=b f.csv"), 1, "no column \"tone\" (--map)");
    load_expect_error(load_run("--db sqlite:t.db --into t --map colour=a f.csv"), 1,
                      "two of its columns go to column \"a\"");
    load_expect_error(load_run("--db sqlite:t.db --into t --map a=,colour= f.csv"), 1, "leaves out all");
    load_expect_error(load_run("--db sqlite:t.db --into t --no-header --map 1=a,3=b f.csv"), 1, "2 is missing");
    expect_nothing_done();
}
END_TEST

START_TEST(a_table_or_database_that_is_missing_is_named_and_not_made)
{
    write_file("f.csv", "a\n1\n");
    load_expect_error(load_run("--db sqlite:t.db --into t f.csv"), 1, "no database t.db (--schema FILE.sql makes it");
    ck_assert_int_ne(access("t.db", F_OK), 0);
    run_sql("t.db", "CREATE TABLE x (a); CREATE VIEW v AS SELECT * FROM x");
    load_expect_error(load_run("--db sqlite:t.db --into t f.csv"), 1, "no table \"t\"");
    load_expect_error(load_run("--db sqlite:t.db --into v f.csv"), 1, "\"v\" is a view");
    load_expect_error(load_run("--db sqlite:no/such/folder/t.db --schema f.csv --into t f.csv"), 1, "no/such/folder");
    load_expect_error(load_run("--db sqlite:gone.db --into t --status"), 1, "gone.db");
}
END_TEST

START_TEST(a_schema_that_fails_is_named_and_taken_back)
{
    write_file("f.csv", "a\n1\n");
    write_file("bad.sql", "CREATE TABLE t (a);\nCREATE TABEL u (b);");
    write_file("other.sql", "CREATE TABLE other (a)");
    load_expect_error(load_run("--db sqlite:t.db --schema bad.sql --into t f.csv"), 1, "bad.sql: near \"TABEL\"");
    load_expect_error(load_run("--db sqlite:t.db --schema other.sql --into t f.csv"), 1,
                      "other.sql: it does not create table \"t\"");
    load_expect_error(load_run("--db sqlite:t.db --schema gone.sql --into t f.csv"), 1, "gone.sql");
    ck_assert_str_eq(query("t.db", "SELECT count(*) FROM sqlite_schema"), "0");
}
END_TEST

START_TEST(a_file_that_is_no_database_is_named)
{
    write_file("f.csv", "a\n1\n");
    write_file("t.db", "This is a letter to my grandmother, who does not care much for databases, and it is longer "
                       "than a page header is.");
    load_expect_error(load_run("--db sqlite:t.db --into t f.csv"), 1, "t.db");
}
END_TEST

START_TEST(a_rejects_file_that_cannot_be_written_is_seen_before_loading)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "a\n1\n");
    load_expect_error(load_run("--db sqlite:t.db --into t --rejects no/such/r.csv f.csv"), 1, "no/such/r.csv");
    ck_assert_int_eq(mkdir("dir", 0777), 0);
    load_expect_error(load_run("--db sqlite:t.db --into t --rejects dir f.csv"), 1, "dir");
    load_expect_error(load_run("--db sqlite:t.db --into t --rejects /proc/r.csv f.csv"), 1, "/proc/r.csv");
    expect_nothing_done();
}
END_TEST

/* Opened and closed beside SQLite it would lose its locks. */
START_TEST(the_database_is_no_file_to_load)
{
    write_file("f.csv", "a\n1\n");
    run_sql("t.db", TABLE);
    ck_assert_int_eq(symlink("t.db", "link.csv"), 0);
    load_expect_error(load_run("--db sqlite:t.db --into t f.csv t.db"), 1, "t.db is the database of this load");
    load_expect_error(load_run("--db sqlite:t.db --into t link.csv"), 1, "link.csv is the database of this load");
    expect_nothing_done();
}
END_TEST

START_TEST(the_rejects_never_overwrite_a_file_of_the_load)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "a\n1\n");
    write_file("s.sql", "CREATE TABLE u (a)");
    ck_assert_int_eq(link("f.csv", "same.csv"), 0);
    load_expect_error(load_run("--db sqlite:t.db --into t --rejects f.csv f.csv"), 1,
                      "--rejects f.csv would overwrite");
    load_expect_error(load_run("--db sqlite:t.db --into t --rejects same.csv f.csv"), 1, "would overwrite");
    load_expect_error(load_run("--db sqlite:t.db --into t --rejects t.db f.csv"), 1, "would overwrite");
    load_expect_error(load_run("--db sqlite:t.db --schema s.sql --into u --rejects s.sql f.csv"), 1, "would overwrite");
    ck_assert_str_eq(read_file("f.csv"), "a\n1\n");
    expect_nothing_done();
}
END_TEST

START_TEST(what_is_said_never_goes_into_a_file_that_took_a_closed_descriptor)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "a\n1\nx\n");
    char command[8192];
    snprintf(command, sizeof command,
             "%s/demo/guard-load --db sqlite:t.db --into t --rejects r.csv --json f.csv <&- >&- 2>&-",
             getenv("builddir"));
    int status = system(command);
    ck_assert_int_eq(WEXITSTATUS(status), 3);
    ck_assert_str_eq(read_file("r.csv"), "file,line,code,reason,row\n"
                                         "f.csv,3,type,\"column a: \"\"x\"\" is not an integer\",x\n");
    ck_assert_str_eq(query("t.db", "SELECT a FROM t"), "1");
}
END_TEST

static void expect_output_lost(const char *words)
{
    char command[8192];
    snprintf(command, sizeof command, "%s/demo/guard-load %s > /dev/full 2> err", getenv("builddir"), words);
    int status = system(command);
    ck_assert_int_eq(WEXITSTATUS(status), 1);
    ck_assert_ptr_nonnull(strstr(read_file("err"), "standard output cannot be written"));
}

START_TEST(output_that_cannot_be_written_fails_the_run_after_loading)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "a\n1\n");
    expect_output_lost("--db sqlite:t.db --into t --json f.csv");
    ck_assert_str_eq(query("t.db", "SELECT a FROM t"), "1");
    expect_output_lost("--db sqlite:t.db --into t --status");
    expect_output_lost("--help");
    expect_output_lost("--version");
}
END_TEST

/* ---------------------------------------------------------------------------------------------- two loaders -- */

START_TEST(a_second_loader_says_who_holds_the_database)
{
    run_sql("t.db", TABLE);
    write_file("f.csv", "a\n1\n");
    ck_assert_int_eq(symlink("t.db", "same.db"), 0);
    char holder[64];
    snprintf(holder, sizeof holder, "t.db.guard-lock\" is held by pid %ld on host ", (long)getpid());
    {
        GUARD_AUTO(s);
        guard_file_lock_beside(s, "t.db", NULL);
        load_expect_error(load_run("--db sqlite:t.db --into t f.csv"), 1, holder);
        load_expect_error(load_run("--db sqlite:same.db --into t f.csv"), 1, holder);
        ck_assert_int_eq(query_int64("t.db", "SELECT count(*) FROM t"), 0);
    }
    load_expect(load_run("--db sqlite:t.db --into t f.csv"), 0);
    ck_assert_str_eq(query("t.db", "SELECT a FROM t"), "1");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        rows_go_to_the_columns_that_the_header_names,
        the_schema_is_run_when_the_table_is_missing_and_only_then,
        the_database_is_guard_load_db_unless_named,
        json_tells_what_the_run_did,
        the_flights_come_out_as_they_are_in_the_file,
        fields_become_values_of_the_columns_types,
        null_is_the_empty_field_or_the_text_of_the_option,
        without_a_header_fields_go_to_the_columns_in_order,
        map_renames_and_leaves_out,
        a_delimiter_of_the_users_choice_separates,
        names_with_quotes_and_blanks_are_names,
        generated_columns_take_no_field,
        a_header_without_rows_is_loaded_and_complete,
        a_file_whose_last_row_fills_a_batch_needs_no_empty_one,
        progress_is_plain_lines_where_there_is_no_terminal,
        a_terminal_shows_a_bar_with_rate_and_time_left,
        status_tells_files_how_far_and_rejects,
        a_file_name_that_is_not_utf8_is_loaded_and_shown,
        wrong_usage_is_told_with_status_2,
        help_and_version_go_to_standard_output,
        a_file_that_is_missing_is_named_before_another_is_loaded,
        a_directory_or_a_pipe_for_a_file_is_refused,
        a_file_without_a_header_line_is_refused,
        a_column_that_the_table_lacks_is_named,
        a_table_or_database_that_is_missing_is_named_and_not_made,
        a_schema_that_fails_is_named_and_taken_back,
        a_file_that_is_no_database_is_named,
        a_rejects_file_that_cannot_be_written_is_seen_before_loading,
        the_database_is_no_file_to_load,
        the_rejects_never_overwrite_a_file_of_the_load,
        what_is_said_never_goes_into_a_file_that_took_a_closed_descriptor,
        output_that_cannot_be_written_fails_the_run_after_loading,
        a_second_loader_says_who_holds_the_database,
    };
    return load_suite_run("load", tests, sizeof tests / sizeof *tests, SCRATCH_IN_MEMORY);
}
