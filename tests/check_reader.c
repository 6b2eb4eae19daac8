/* SPDX-License-Identifier: MIT */
/*
 * The loader's reader: the rows of a CSV file, bad ones as their first line alone.
 *
 * Each text is read in pieces of every size from 1 byte up, since what a row is must not depend on where a read ends.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <guard/guard.h>

#include "../demo/load/reader.h"
#include "random.h"
#include "suite.h"

typedef struct test_input {
    const char *text;
    size_t size;
    size_t piece; /* bytes a read gives at most */
} test_input;

static size_t read_input(void *arg, uint64_t offset, char *buffer, size_t size)
{
    const test_input *in = arg;
    if (offset >= in->size) {
        return 0;
    }
    size_t left = in->size - (size_t)offset;
    size_t give = left < size ? left : size;
    give = give < in->piece ? give : in->piece;
    memcpy(buffer, in->text + offset, give);
    return give;
}

typedef struct test_dump {
    char text[4096];
    size_t used;
} test_dump;

static void add(test_dump *d, const char *format, ...) GUARD_PRINTF(2, 3);

static void add(test_dump *d, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    d->used += (size_t)vsnprintf(d->text + d->used, sizeof d->text - d->used, format, arguments);
    va_end(arguments);
    ck_assert_uint_lt(d->used, sizeof d->text);
}

static void add_bytes(test_dump *d, const char *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if ((unsigned char)bytes[i] < ' ') {
            add(d, "\\x%02X", (unsigned char)bytes[i]);
        } else {
            add(d, "%c", bytes[i]);
        }
    }
}

static void add_row(test_dump *d, const load_row *row)
{
    static const char *const faults[] = {"", "malformed", "too long", "nul", "encoding"};
    add(d, "%" PRIu64 " ", row->at.line);
    if (row->fault != ROW_SOUND) {
        add(d, "%s {", faults[row->fault]);
        add_bytes(d, row->raw, row->raw_size);
        add(d, "} %s", row->reason);
    }
    for (size_t i = 0; row->fault == ROW_SOUND && i < row->count; i++) {
        add(d, "[");
        if (row->fields[i].text == NULL) {
            add(d, "NULL");
        } else {
            add_bytes(d, row->fields[i].text, row->fields[i].size);
        }
        add(d, "]");
    }
    add(d, "\n");
}

typedef struct test_reading {
    test_input in;
    char delimiter;
    size_t max_row;
    test_dump out;
} test_reading;

static void read_all(void *arg)
{
    test_reading *reading = arg;
    GUARD_AUTO(s);
    load_reader *reader = reader_open(s, read_input, &reading->in, reading->delimiter, reading->max_row);
    for (load_row row; reader_next(reader, &row);) {
        add_row(&reading->out, &row);
    }
}

static void expect_options(const char *text, size_t size, char delimiter, size_t max_row, const char *expected)
{
    for (size_t piece = 1; piece <= size + 1; piece++) {
        test_reading reading = {.in = {text, size, piece}, .delimiter = delimiter, .max_row = max_row};
        guard_error error;
        ck_assert_msg(guard_run(read_all, &reading, &error) == 0, "panic: %s", error.message);
        ck_assert_msg(strcmp(reading.out.text, expected) == 0, "in pieces of %zu:\n%s\ninstead of:\n%s", piece,
                      reading.out.text, expected);
    }
}

static void expect(const char *text, const char *expected)
{
    expect_options(text, strlen(text), ',', 1000, expected);
}

/* ------------------------------------------------------------------------------------------------ sound rows -- */

START_TEST(rows_have_the_number_of_their_first_line)
{
    expect("a,b\n1,2\n3,4\n", "1 [a][b]\n2 [1][2]\n3 [3][4]\n");
}
END_TEST

START_TEST(the_last_line_may_lack_its_end)
{
    expect("a,b\n1,2", "1 [a][b]\n2 [1][2]\n");
    expect("a,\"b\"", "1 [a][b]\n");
    expect("a,", "1 [a][NULL]\n");
}
END_TEST

START_TEST(an_empty_file_has_no_rows)
{
    expect("", "");
    expect("\n\r\n\n", "");
    expect("\xEF\xBB\xBF", "");
}
END_TEST

START_TEST(crlf_ends_a_line_and_is_kept_inside_quotes)
{
    expect("a,b\r\n1,\"x\r\ny\"\r\n3,4\r\n", "1 [a][b]\n2 [1][x\\x0D\\x0Ay]\n4 [3][4]\n");
    expect("1,2\r", "1 [1][2]\n");
}
END_TEST

START_TEST(blank_lines_are_skipped_and_counted)
{
    expect("\na\n\n\r\nb\n", "2 [a]\n5 [b]\n");
}
END_TEST

START_TEST(a_blank_line_inside_quotes_is_data)
{
    expect("\"a\n\nb\"\nc\n", "1 [a\\x0A\\x0Ab]\n4 [c]\n");
}
END_TEST

START_TEST(no_space_is_trimmed)
{
    expect(" a , b\t,\" c \"\n   \n", "1 [ a ][ b\\x09][ c ]\n2 [   ]\n");
}
END_TEST

START_TEST(a_byte_order_mark_is_removed_at_the_start_only)
{
    expect("\xEF\xBB\xBF"
           "a,b\n\xEF\xBB\xBF"
           "c\n",
           "1 [a][b]\n2 [\xEF\xBB\xBF"
           "c]\n");
    expect("\xEF\xBB\xBF"
           "\"a\"\n",
           "1 [a]\n");
    expect("\xEF\xBB", "1 encoding {\xEF\xBB} byte 1 (0xEF) is not UTF-8\n");
}
END_TEST

START_TEST(an_empty_field_is_null_and_empty_quotes_are_a_text)
{
    expect(",\"\",x\n", "1 [NULL][][x]\n");
}
END_TEST

START_TEST(quotes_hold_delimiters_quotes_and_line_ends)
{
    expect("\"a,\"\"b\"\"\",\"1\n2\n3\",c\nd\n", "1 [a,\"b\"][1\\x0A2\\x0A3][c]\n4 [d]\n");
}
END_TEST

START_TEST(another_delimiter_separates_and_a_comma_is_data)
{
    expect_options("a;b,c;d\n", 8, ';', 100, "1 [a][b,c][d]\n");
    expect_options("a\tb c\t\n", 7, '\t', 100, "1 [a][b c][NULL]\n");
    expect_options("a b  c\n", 7, ' ', 100, "1 [a][b][NULL][c]\n");
}
END_TEST

START_TEST(utf8_is_passed_on)
{
    expect("Z\xC3\xBCrich,\xF0\x9F\x9B\xAB\n", "1 [Z\xC3\xBCrich][\xF0\x9F\x9B\xAB]\n");
}
END_TEST

/* -------------------------------------------------------------------------------------------------- bad rows -- */

START_TEST(a_stray_quote_costs_its_line_only)
{
    expect("1,a\"b\n2,\"c\"d\n3,e\n", "1 malformed {1,a\"b} field 2: a quote inside a field without quotes\n"
                                      "2 malformed {2,\"c\"d} field 2: text after the closing quote\n"
                                      "3 [3][e]\n");
}
END_TEST

START_TEST(a_quote_that_is_never_closed_costs_its_line_only)
{
    expect("1,\"a\n2,b\n3,c", "1 malformed {1,\"a} a quote is opened and never closed\n2 [2][b]\n3 [3][c]\n");
    expect("1,\"a", "1 malformed {1,\"a} a quote is opened and never closed\n");
    expect("\"", "1 malformed {\"} a quote is opened and never closed\n");
}
END_TEST

START_TEST(a_row_that_turns_malformed_on_a_later_line_costs_its_first_line_only)
{
    expect("1,\"a\n2,b\n3,\"c\"\n4,d\n", "1 malformed {1,\"a} field 2: text after the closing quote\n"
                                         "2 [2][b]\n3 [3][c]\n4 [4][d]\n");
}
END_TEST

START_TEST(a_row_open_past_the_longest_row_costs_its_first_line_only)
{
    expect_options("\"abc\nd\ne\nf\ng\n", 13, ',', 8,
                   "1 malformed {\"abc} a quote is opened and not closed within the longest row (--max-row)\n"
                   "2 [d]\n3 [e]\n4 [f]\n5 [g]\n");
}
END_TEST

START_TEST(a_row_of_exactly_the_longest_is_kept_and_one_byte_more_is_not)
{
    expect_options("12345678\n12345678\r\n12345678", 27, ',', 8, "1 [12345678]\n2 [12345678]\n3 [12345678]\n");
    expect_options("123456789\nx\n", 12, ',', 8,
                   "1 too long {12345678} a line of 9 bytes, of which the first 8 (--max-row) are kept\n2 [x]\n");
    expect_options("12345678\r\r\n123456789", 20, ',', 8,
                   "1 too long {12345678} a line of 9 bytes, of which the first 8 (--max-row) are kept\n"
                   "2 too long {12345678} a line of 9 bytes, of which the first 8 (--max-row) are kept\n");
    expect_options("\"12\n4567\"\n\"12\n45678\"\nx\n", 23, ',', 9,
                   "1 [12\\x0A4567]\n"
                   "3 malformed {\"12} a quote is opened and not closed within the longest row (--max-row)\n"
                   "4 malformed {45678\"} field 1: a quote inside a field without quotes\n5 [x]\n");
}
END_TEST

START_TEST(a_carriage_return_outside_quotes_is_malformed)
{
    expect("a\rb,c\n\rx\na,\rb\n\"a\"\r,b\n1,\"p\rq\"\n2\n",
           "1 malformed {a\\x0Db,c} a carriage return outside quotes\n"
           "2 malformed {\\x0Dx} a carriage return outside quotes\n"
           "3 malformed {a,\\x0Db} a carriage return outside quotes\n"
           "4 malformed {\"a\"\\x0D,b} a carriage return outside quotes\n"
           "5 [1][p\\x0Dq]\n6 [2]\n");
}
END_TEST

START_TEST(a_nul_byte_is_told_with_its_place)
{
    expect_options("a,\0b\nc\n\"x\n\0\"\nd\n", 15, ',', 100,
                   "1 nul {a,\\x00b} byte 3 is NUL\n2 [c]\n3 nul {\"x\\x0A\\x00\"} byte 4 is NUL\n5 [d]\n");
}
END_TEST

START_TEST(bytes_that_are_not_utf8_are_told_with_their_place)
{
    expect("ok,\xE9t\xE9\n\xC0\x80\n\xED\xA0\x80\n\xF4\x90\x80\x80\nx\n",
           "1 encoding {ok,\xE9t\xE9} byte 4 (0xE9) is not UTF-8\n"
           "2 encoding {\xC0\x80} byte 1 (0xC0) is not UTF-8\n"
           "3 encoding {\xED\xA0\x80} byte 1 (0xED) is not UTF-8\n"
           "4 encoding {\xF4\x90\x80\x80} byte 1 (0xF4) is not UTF-8\n5 [x]\n");
}
END_TEST

/* ------------------------------------------------------------------------------------------- any file at all -- */

static size_t random_file(uint64_t *state, char *text, size_t most)
{
    static const char *const parts[] = {",",  ",",    "\n", "\n", "\"", "\"",       "\"\"",
                                        "\r", "\r\n", "a",  "bc", " ",  "\xC3\xA9", "\xE9"};
    size_t size = 0;
    for (unsigned count = random_next(state) % 60; count > 0; count--) {
        const char *part = parts[random_next(state) % (sizeof parts / sizeof *parts)];
        size_t length = strlen(part);
        if (size + length <= most) {
            memcpy(text + size, part, length);
            size += length;
        }
    }
    return size;
}

static uint64_t count_lines(const char *text, size_t size)
{
    uint64_t lines = 0;
    for (size_t i = 0; i < size; i++) {
        lines += text[i] == '\n';
    }
    return lines;
}

/*
 * What must hold of any file: each row lies where it says, on the line it says, rows do not overlap, and only line ends lie
 * between them; a reader that begins at a row gives the same rest, and one that skips rows ends each where it ends.
 */
static void read_any(void *arg)
{
    test_reading *reading = arg;
    GUARD_AUTO(s);
    const char *text = reading->in.text;
    load_reader *reader = reader_open(s, read_input, &reading->in, ',', reading->max_row);
    struct load_reader *again = reader_open(s, read_input, &reading->in, ',', reading->max_row);
    load_reader *skipper = reader_open(s, read_input, &reading->in, ',', reading->max_row);
    uint64_t end = 0;
    for (load_row row; reader_next(reader, &row);) {
        ck_assert(reader_skip(skipper));
        ck_assert_uint_eq(reader_tell(skipper).offset, reader_tell(reader).offset);
        ck_assert_uint_eq(reader_tell(skipper).line, reader_tell(reader).line);
        ck_assert_uint_ge(row.at.offset, end);
        for (uint64_t i = end; i < row.at.offset; i++) {
            ck_assert_msg(text[i] == '\n' || text[i] == '\r', "byte %" PRIu64 " is in no row", i);
        }
        ck_assert_msg(memcmp(row.raw, text + row.at.offset, row.raw_size) == 0, "the raw row is not what stood there");
        ck_assert_uint_eq(row.at.line, 1 + count_lines(text, (size_t)row.at.offset));
        end = reader_tell(reader).offset;
        ck_assert_uint_ge(end, row.at.offset + row.raw_size);
        test_dump first = {.used = 0};
        test_dump second = {.used = 0};
        add_row(&first, &row);
        reader_seek(again, row.at);
        struct load_row other;
        ck_assert(reader_next(again, &other));
        add_row(&second, &other);
        ck_assert_str_eq(first.text, second.text);
        ck_assert_uint_eq(reader_tell(again).offset, end);
        ck_assert_uint_eq(reader_tell(again).line, reader_tell(reader).line);
    }
    ck_assert(!reader_skip(skipper));
    for (uint64_t i = end; i < reading->in.size; i++) {
        ck_assert_msg(text[i] == '\n' || text[i] == '\r', "byte %" PRIu64 " is in no row", i);
    }
}

START_TEST(no_byte_of_any_file_is_lost_and_reading_goes_on_from_any_row)
{
    uint64_t state = 1;
    for (int round = 0; round < 3000; round++) {
        char text[200];
        size_t size = random_file(&state, text, sizeof text);
        test_reading reading = {.in = {text, size, 1 + random_next(&state) % 50},
                                .max_row = 1 + random_next(&state) % 100};
        guard_error error;
        ck_assert_msg(guard_run(read_any, &reading, &error) == 0, "round %d: %s", round, error.message);
    }
}
END_TEST

/* Fields of any text, written as CSV, come back, whatever bad lines lie between the rows. */
typedef struct test_truth {
    char text[8192];
    size_t size;
    uint64_t lines;
    char expected[16384];
    size_t used;
} test_truth;

static void put(test_truth *t, const char *bytes, size_t size)
{
    memcpy(t->text + t->size, bytes, size);
    t->size += size;
    t->lines += count_lines(bytes, size);
}

static void tell(test_truth *t, const char *format, ...) GUARD_PRINTF(2, 3);

static void tell(test_truth *t, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    t->used += (size_t)vsnprintf(t->expected + t->used, sizeof t->expected - t->used, format, arguments);
    va_end(arguments);
}

static void put_field(test_truth *t, uint64_t *state)
{
    static const char letters[] = "ab ,\"\n\rc";
    put(t, "\"", 1);
    tell(t, "[");
    for (unsigned count = random_next(state) % 8; count > 0; count--) {
        char c = letters[random_next(state) % (sizeof letters - 1)];
        put(t, &c, 1);
        if (c == '"') {
            put(t, &c, 1);
        }
        tell(t, (unsigned char)c < 0x20 ? "\\x%02X" : "%c", c);
    }
    put(t, "\"", 1);
    tell(t, "]");
}

static void put_row(test_truth *t, uint64_t *state)
{
    tell(t, "%" PRIu64 " ", t->lines + 1);
    unsigned count = 1 + random_next(state) % 4;
    for (unsigned i = 0; i < count; i++) {
        put_field(t, state);
        put(t, ",", 1);
    }
    put(t, "x\n", 2);
    tell(t, "[x]\n");
}

static void put_bad_line(test_truth *t, uint64_t *state)
{
    static const char *const bad[][2] = {
        {"a\"b", "malformed {a\"b} field 1: a quote inside a field without quotes"},
        {"\"a\"b", "malformed {\"a\"b} field 1: text after the closing quote"},
        {"a\rb", "malformed {a\\x0Db} a carriage return outside quotes"},
        {"\xFF", "encoding {\xFF} byte 1 (0xFF) is not UTF-8"},
    };
    unsigned kind = random_next(state) % (sizeof bad / sizeof *bad);
    tell(t, "%" PRIu64 " %s\n", t->lines + 1, bad[kind][1]);
    put(t, bad[kind][0], strlen(bad[kind][0]));
    put(t, "\n", 1);
}

START_TEST(fields_of_any_text_come_back_whatever_bad_lines_lie_between)
{
    uint64_t state = 7;
    for (int round = 0; round < 500; round++) {
        static test_truth t;
        memset(&t, 0, sizeof t);
        for (unsigned count = random_next(&state) % 30; count > 0; count--) {
            if (random_next(&state) % 4 == 0) {
                put_bad_line(&t, &state);
            } else {
                put_row(&t, &state);
            }
        }
        static test_reading reading;
        memset(&reading, 0, sizeof reading);
        reading.in = (test_input){t.text, t.size, 1 + random_next(&state) % 300};
        reading.delimiter = ',';
        reading.max_row = 1000;
        guard_error error;
        ck_assert_msg(guard_run(read_all, &reading, &error) == 0, "round %d: %s", round, error.message);
        ck_assert_str_eq(reading.out.text, t.expected);
    }
}
END_TEST

/* ------------------------------------------------------------------------------------------------ large ones -- */

START_TEST(a_line_far_longer_than_the_longest_row_is_passed_without_being_held)
{
    size_t size = 3 * 1000 * 1000;
    char *text = malloc(size);
    memset(text, 'x', size);
    memcpy(text, "a\n", 2);
    memcpy(text + size - 3, "\nb\n", 3);
    expect_options("", 0, ',', 10, "");
    test_reading reading = {.in = {text, size, 100000}, .delimiter = ',', .max_row = 10};
    guard_error error;
    ck_assert_msg(guard_run(read_all, &reading, &error) == 0, "panic: %s", error.message);
    ck_assert_str_eq(reading.out.text, "1 [a]\n2 too long {xxxxxxxxxx} a line of 2999995 bytes, of which the first 10 "
                                       "(--max-row) are kept\n3 [b]\n");
    free(text);
}
END_TEST

static void count_fields(void *arg)
{
    test_reading *reading = arg;
    GUARD_AUTO(s);
    load_reader *reader = reader_open(s, read_input, &reading->in, ',', reading->max_row);
    load_row row;
    ck_assert(reader_next(reader, &row));
    ck_assert_uint_eq(row.count, reading->in.size);
    ck_assert_int_eq(row.fault, ROW_SOUND);
    ck_assert_ptr_null(row.fields[READER_FIELDS - 1].text);
    ck_assert(!reader_next(reader, &row));
}

START_TEST(more_fields_than_a_table_can_have_are_counted)
{
    size_t size = 1000 * 1000;
    char *text = malloc(size);
    memset(text, ',', size);
    text[size - 1] = '\n';
    test_reading reading = {.in = {text, size, size}, .max_row = size};
    guard_error error;
    ck_assert_msg(guard_run(count_fields, &reading, &error) == 0, "panic: %s", error.message);
    free(text);
}
END_TEST

static void fail_after(void *arg)
{
    guard_panic(5, "the disk is gone at %zu", *(size_t *)arg);
}

static size_t read_failing(void *arg, uint64_t offset, char *buffer, size_t size)
{
    test_input *in = arg;
    size_t given = read_input(in, offset, buffer, size);
    if (given == 0) {
        fail_after(&in->size);
    }
    return given;
}

static void read_to_failure(void *arg)
{
    test_reading *reading = arg;
    GUARD_AUTO(s);
    load_reader *reader = reader_open(s, read_failing, &reading->in, ',', 100);
    for (load_row row; reader_next(reader, &row);) {
        add_row(&reading->out, &row);
    }
}

START_TEST(a_read_that_fails_panics_through_the_reader)
{
    test_reading reading = {.in = {"a\nb", 3, 2}};
    guard_error error;
    ck_assert_int_eq(guard_run(read_to_failure, &reading, &error), 5);
    ck_assert_str_eq(error.message, "the disk is gone at 3");
    ck_assert_str_eq(reading.out.text, "1 [a]\n");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        rows_have_the_number_of_their_first_line,
        the_last_line_may_lack_its_end,
        an_empty_file_has_no_rows,
        crlf_ends_a_line_and_is_kept_inside_quotes,
        blank_lines_are_skipped_and_counted,
        a_blank_line_inside_quotes_is_data,
        no_space_is_trimmed,
        a_byte_order_mark_is_removed_at_the_start_only,
        an_empty_field_is_null_and_empty_quotes_are_a_text,
        quotes_hold_delimiters_quotes_and_line_ends,
        another_delimiter_separates_and_a_comma_is_data,
        utf8_is_passed_on,
        a_stray_quote_costs_its_line_only,
        a_quote_that_is_never_closed_costs_its_line_only,
        a_row_that_turns_malformed_on_a_later_line_costs_its_first_line_only,
        a_row_open_past_the_longest_row_costs_its_first_line_only,
        a_row_of_exactly_the_longest_is_kept_and_one_byte_more_is_not,
        a_carriage_return_outside_quotes_is_malformed,
        a_nul_byte_is_told_with_its_place,
        bytes_that_are_not_utf8_are_told_with_their_place,
        no_byte_of_any_file_is_lost_and_reading_goes_on_from_any_row,
        fields_of_any_text_come_back_whatever_bad_lines_lie_between,
        a_line_far_longer_than_the_longest_row_is_passed_without_being_held,
        more_fields_than_a_table_can_have_are_counted,
        a_read_that_fails_panics_through_the_reader,
    };
    return suite_run("reader", tests, sizeof tests / sizeof *tests);
}
