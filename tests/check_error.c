/* SPDX-License-Identifier: MIT */
/* check_error.c: errors as flat values: their size, their texts, their chains, their print. */
#include <errno.h>
#include <string.h>

#include <guard/guard.h>

#include "suite.h"

static guard_error error;

START_TEST(an_error_is_flat_and_at_most_1_kib)
{
    ck_assert_uint_le(sizeof(guard_error), 1024);
    guard_error copy;
    guard_error_set(&error, GUARD_OS, ENOENT, "no %s", "file");
    copy = error;
    memset(&error, 0, sizeof error);
    ck_assert_str_eq(copy.message, "no file");
}
END_TEST

START_TEST(setting_an_error_clears_all_that_was_in_it)
{
    memset(&error, 'x', sizeof error);
    errno = EIO;
    guard_error_set(&error, 1234, 0, "plain");
    ck_assert_int_eq(error.domain, 1234);
    ck_assert_int_eq(error.code, -1);
    ck_assert_int_eq(error.os_error, EIO);
    ck_assert_uint_eq(error.line, 0);
    ck_assert_uint_eq(error.cause_count, 0);
    ck_assert_uint_eq(error.cause_more, 0);
    ck_assert_str_eq(error.message, "plain");
    ck_assert_str_eq(error.sqlstate, "");
    ck_assert_str_eq(error.file, "");
    ck_assert_str_eq(error.function, "");
    ck_assert_str_eq(error.detail, "");
    ck_assert_str_eq(error.hint, "");
    ck_assert_str_eq(error.constraint, "");
}
END_TEST

START_TEST(a_message_is_one_line_without_a_newline_at_its_end)
{
    guard_error_set(&error, 0, 1, "%s", "FATAL:  the server says\n");
    ck_assert_str_eq(error.message, "FATAL:  the server says");
    guard_error_set(&error, 0, 1, "constant\n\n");
    ck_assert_str_eq(error.message, "constant");
    guard_error_set(&error, 0, 1, "%s", "");
    ck_assert_str_eq(error.message, "");
}
END_TEST

/* A character of 1 to 4 bytes at every place around the end of the message. */
START_TEST(a_long_message_is_cut_at_a_character_of_utf_8)
{
    static const char *const characters[] = {"a", "\303\244", "\342\202\254", "\360\237\230\200"};
    for (size_t character = 0; character < 4; character++) {
        size_t width = strlen(characters[character]);
        for (size_t before = sizeof error.message - 8; before < sizeof error.message + 4; before++) {
            char text[400];
            memset(text, 'x', before);
            strcpy(text + before, characters[character]);
            strcat(text, "tail of the text");
            guard_error_set(&error, 0, 1, "%s", text);
            size_t length = strlen(error.message);
            ck_assert_uint_lt(length, sizeof error.message);
            ck_assert_int_eq(strncmp(error.message, text, length), 0);
            if (before + width >= sizeof error.message && before < sizeof error.message) {
                ck_assert_uint_eq(length, before); /* the character did not fit, so none of it is there */
            } else {
                ck_assert_uint_eq(length, sizeof error.message - 1);
            }
        }
    }
}
END_TEST

static void raise_at_a_long_path(void *arg)
{
    guard_impl_panic(arg, GUARD_USER, 1, "x");
}

START_TEST(a_place_keeps_the_last_part_of_its_path)
{
    static const guard_place place = {
        .file = "/a/very/long/folder/and/the_name_of_a_file_that_does_not_fit_into_its_field.c",
        .function = "a_function_with_a_name_that_does_not_fit_either",
        .line = 77};
    ck_assert_int_eq(guard_run(raise_at_a_long_path, (void *)(uintptr_t)&place, &error), 1);
    ck_assert_str_eq(error.file, "the_name_of_a_file_that_does_not_fit_into_its_f");
    ck_assert_str_eq(error.function, "a_function_with_a_name_that_does_not_fi");
    ck_assert_uint_eq(error.line, 77);
}
END_TEST

/* --------------------------------------------------------------------------------------- chains -- */

static guard_error make(int code, const char *message)
{
    guard_error made;
    guard_error_set(&made, GUARD_SQLITE, code, "%s", message);
    strcpy(made.sqlstate, "23505");
    strcpy(made.file, "a_file_with_a_name_longer_than_a_cause_keeps.c");
    made.line = (uint32_t)code;
    return made;
}

START_TEST(an_attached_error_keeps_its_short_form_and_the_causes_of_its_own)
{
    guard_error later = make(2, "a message that is too long for the fifty-five bytes that a cause keeps of it");
    guard_error third = make(3, "third");
    error = make(1, "first");
    guard_error_attach(&later, &third, GUARD_CAUSE);
    guard_error_attach(&error, &later, GUARD_ATTACHED);
    ck_assert_uint_eq(error.cause_count, 2);
    const guard_cause *cause = &error.causes[0];
    ck_assert_int_eq(cause->domain, GUARD_SQLITE);
    ck_assert_int_eq(cause->code, 2);
    ck_assert_uint_eq(cause->line, 2);
    ck_assert_int_eq(cause->relation, GUARD_ATTACHED);
    ck_assert_str_eq(cause->sqlstate, "23505");
    ck_assert_str_eq(cause->file, "a_file_with_a_name_longer_t");
    ck_assert_str_eq(cause->message, "a message that is too long for the fifty-five bytes tha");
    ck_assert_int_eq(error.causes[1].code, 3);
    ck_assert_int_eq(error.causes[1].relation, GUARD_CAUSE);
}
END_TEST

START_TEST(what_does_not_fit_is_counted_up_to_255)
{
    guard_error later = make(2, "later");
    error = make(1, "first");
    for (unsigned i = 0; i < 5; i++) {
        guard_error_attach(&error, &later, GUARD_ATTACHED);
    }
    ck_assert_uint_eq(error.cause_count, GUARD_CAUSES);
    ck_assert_uint_eq(error.cause_more, 2);
    guard_error twice = make(3, "twice");
    guard_error_attach(&twice, &error, GUARD_CAUSE); /* 1 + 3 + 2 more */
    ck_assert_uint_eq(twice.cause_count, GUARD_CAUSES);
    ck_assert_uint_eq(twice.cause_more, 3);
    for (unsigned i = 0; i < 300; i++) {
        guard_error_attach(&twice, &error, GUARD_ATTACHED);
    }
    ck_assert_uint_eq(twice.cause_more, 255);
}
END_TEST

static void raise_garbage(void *arg)
{
    guard_panic_error(arg);
}

START_TEST(an_error_full_of_garbage_is_carried_without_reading_beyond_it)
{
    guard_error garbage;
    memset(&garbage, 0xFF, sizeof garbage);
    ck_assert_int_eq(guard_run(raise_garbage, &garbage, &error), -1);
    ck_assert_uint_lt(strlen(error.message), sizeof error.message);
    ck_assert_uint_le(error.cause_count, GUARD_CAUSES);
    char text[8192];
    ck_assert_uint_lt(guard_error_format(&error, text, sizeof text), sizeof text);
    guard_error first = make(1, "first");
    guard_error_attach(&first, &garbage, GUARD_CAUSE);
    ck_assert_uint_eq(first.cause_count, GUARD_CAUSES);
}
END_TEST

/* ---------------------------------------------------------------------------------------- print -- */

static void expect_print(const char *expected)
{
    char text[4096];
    size_t length = guard_error_format(&error, text, sizeof text);
    ck_assert_str_eq(text, expected);
    ck_assert_uint_eq(length, strlen(text));
}

START_TEST(an_error_prints_as_one_line)
{
    guard_error_set(&error, GUARD_USER, 42, "it broke");
    expect_print("panic: it broke [user 42]\n");
    strcpy(error.file, "a.c");
    error.line = 7;
    expect_print("panic: it broke [user 42] at a.c:7\n");
    error.domain = GUARD_PQ;
    strcpy(error.sqlstate, "40001");
    expect_print("panic: it broke [pq 42 40001] at a.c:7\n");
}
END_TEST

START_TEST(the_oldest_panic_prints_first_then_the_newest_then_what_hangs_on_it)
{
    guard_error oldest = make(1, "first panic");
    guard_error recovered = make(2, "second panic");
    guard_error cleanup = make(4, "cleanup");
    guard_error cause = make(5, "the reason");
    strcpy(oldest.file, "a.c");
    strcpy(recovered.file, "a.c");
    strcpy(cleanup.file, "a.c");
    guard_error_set(&error, GUARD_USER, 3, "third panic");
    guard_error_attach(&error, &recovered, GUARD_RECOVERED);
    guard_error_attach(&error, &oldest, GUARD_REPLACED);
    guard_error_attach(&error, &cleanup, GUARD_ATTACHED);
    guard_error_attach(&error, &cause, GUARD_CAUSE);
    expect_print("panic: first panic [sqlite 1 23505] at a.c:1\n"
                 "\tpanic: second panic [sqlite 2 23505] at a.c:2 [recovered]\n"
                 "\tpanic: third panic [user 3]\n"
                 "\tthen failed: cleanup [sqlite 4 23505] at a.c:4\n"
                 "\tand 1 more\n");
    guard_error_set(&error, GUARD_USER, 3, "broken");
    strcpy(cause.file, "");
    cause.sqlstate[0] = '\0';
    guard_error_attach(&error, &cause, GUARD_CAUSE);
    expect_print("panic: broken [user 3]\n\tcaused by: the reason [sqlite 5]\n");
}
END_TEST

START_TEST(what_a_terminal_would_obey_is_escaped_and_text_is_not)
{
    guard_error_set(&error, 0, 1, "%s", "esc \033[31m tab \t line \n del \177 c1 \302\233 end");
    expect_print("panic: esc \\x1b[31m tab \\x09 line \\x0a del \\x7f c1 \\xc2\\x9b end [user 1]\n");
    guard_error_set(&error, 0, 1, "%s", "\303\244 \342\202\254 \360\237\230\200 \302\240");
    expect_print("panic: \303\244 \342\202\254 \360\237\230\200 \302\240 [user 1]\n");
    /* No UTF-8: a lone continuation, an overlong slash, a surrogate, beyond U+10FFFF, a sequence that ends early. */
    guard_error_set(&error, 0, 1, "%s", "\233 \300\257 \340\200\257 \355\240\200 \364\220\200\200 \377 \342\202");
    expect_print(
        "panic: \\x9b \\xc0\\xaf \\xe0\\x80\\xaf \\xed\\xa0\\x80 \\xf4\\x90\\x80\\x80 \\xff \\xe2\\x82 [user 1]\n");
}
END_TEST

START_TEST(a_print_that_does_not_fit_is_cut_and_says_how_long_it_is)
{
    char whole[200];
    guard_error_set(&error, 0, 1, "a message");
    size_t length = guard_error_format(&error, whole, sizeof whole);
    for (size_t size = 0; size <= length + 2; size++) {
        char text[200];
        memset(text, '#', sizeof text);
        ck_assert_uint_eq(guard_error_format(&error, text, size), length);
        size_t kept = size == 0 ? 0 : size <= length ? size - 1 : length;
        ck_assert_mem_eq(text, whole, kept);
        if (size > 0) {
            ck_assert_int_eq(text[kept], '\0');
        }
        ck_assert_int_eq(text[size], '#');
    }
}
END_TEST

START_TEST(every_domain_has_its_name)
{
    static const char *const names[] = {"user",  "misuse", "memory", "os", "timeout", "cancelled",
                                        "fault", "lock",   "sqlite", "pq", "tx",      "refused"};
    for (int domain = GUARD_USER; domain <= GUARD_REFUSED; domain++) {
        ck_assert_str_eq(guard_domain_name(domain), names[domain]);
    }
    ck_assert_str_eq(guard_domain_name(GUARD_DOMAIN_FIRST_FREE), "user");
    ck_assert_str_eq(guard_domain_name(-1), "user");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        an_error_is_flat_and_at_most_1_kib,
        setting_an_error_clears_all_that_was_in_it,
        a_message_is_one_line_without_a_newline_at_its_end,
        a_long_message_is_cut_at_a_character_of_utf_8,
        a_place_keeps_the_last_part_of_its_path,
        an_attached_error_keeps_its_short_form_and_the_causes_of_its_own,
        what_does_not_fit_is_counted_up_to_255,
        an_error_full_of_garbage_is_carried_without_reading_beyond_it,
        an_error_prints_as_one_line,
        the_oldest_panic_prints_first_then_the_newest_then_what_hangs_on_it,
        what_a_terminal_would_obey_is_escaped_and_text_is_not,
        a_print_that_does_not_fit_is_cut_and_says_how_long_it_is,
        every_domain_has_its_name,
    };
    return suite_run("error", tests, sizeof tests / sizeof *tests);
}
