/* SPDX-License-Identifier: MIT */
#include "sqlite_value.h"

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static int contains(const char *text, const char *part)
{
    return strcasestr(text, part) != NULL;
}

value_type sqlite_value_type(const char *declared)
{
    /* The order is that of SQLite's rules: CHARINT is an integer. */
    if (contains(declared, "INT")) {
        return VALUE_INTEGER;
    }
    if (contains(declared, "CHAR") || contains(declared, "CLOB") || contains(declared, "TEXT")) {
        return VALUE_TEXT;
    }
    if (contains(declared, "BLOB")) {
        return VALUE_BLOB;
    }
    if (contains(declared, "REAL") || contains(declared, "FLOA") || contains(declared, "DOUB")) {
        return VALUE_REAL;
    }
    if (contains(declared, "NUM") || contains(declared, "DEC")) {
        return VALUE_NUMBER;
    }
    return VALUE_ANY;
}

const char *sqlite_value_noun(value_type type)
{
    return type == VALUE_INTEGER ? "an integer" : "a number";
}

/* Up to 18 digits with a sign: what almost every integer is. */
static int read_short_integer(const char *text, size_t size, int64_t *value)
{
    size_t i = size > 0 && (text[0] == '-' || text[0] == '+');
    if (i == size || size - i > 18) {
        return 0;
    }
    int64_t number = 0;
    for (; i < size; i++) {
        unsigned digit = (unsigned)text[i] - '0';
        if (digit > 9) {
            return 0;
        }
        number = number * 10 + (int64_t)digit;
    }
    *value = text[0] == '-' ? -number : number;
    return 1;
}

/* A decimal number, between blanks as in SQLite; strtod takes more: inf, nan, hexadecimal. */
static int read_real(const char *text, size_t size, double *value)
{
    static const char blanks[] = " \t\n\v\f\r";
    char *end = NULL;
    if (strspn(text, "0123456789+-.eE \t\n\v\f\r") != size) {
        return 0;
    }
    *value = strtod(text, &end);
    return end != text && end[strspn(end, blanks)] == '\0' && isfinite(*value);
}

/* 12.0 and 1e3 are integers, and so are 19 digits that fit. */
static int read_integer(const char *text, size_t size, int64_t *value)
{
    char *end = NULL;
    double real;
    if (read_short_integer(text, size, value)) {
        return 1;
    }
    if (!read_real(text, size, &real)) {
        return 0;
    }
    if (strpbrk(text, ".eE") == NULL) {
        errno = 0;
        *value = strtoll(text, &end, 10);
        return errno == 0;
    }
    /* Up to here every integer is a double of its own. */
    if (fabs(real) > 9007199254740992.0 || real != (double)(int64_t)real) {
        return 0;
    }
    *value = (int64_t)real;
    return 1;
}

int sqlite_value_bind(sqlite3_stmt *statement, int parameter, value_type type, const load_field *field, int *result)
{
    const char *text = field->text;
    int64_t integer;
    double real;
    switch (type) {
    case VALUE_INTEGER:
        if (!read_integer(text, field->size, &integer)) {
            return 0;
        }
        *result = sqlite3_bind_int64(statement, parameter, integer);
        return 1;
    case VALUE_REAL:
    case VALUE_NUMBER:
        if (type == VALUE_NUMBER && read_integer(text, field->size, &integer)) {
            *result = sqlite3_bind_int64(statement, parameter, integer);
            return 1;
        }
        if (!read_real(text, field->size, &real)) {
            return 0;
        }
        *result = sqlite3_bind_double(statement, parameter, real);
        return 1;
    case VALUE_BLOB:
        *result = sqlite3_bind_blob64(statement, parameter, text, field->size, SQLITE_STATIC);
        return 1;
    case VALUE_TEXT:
    case VALUE_ANY:
        break;
    }
    *result = sqlite3_bind_text64(statement, parameter, text, field->size, SQLITE_STATIC, SQLITE_UTF8);
    return 1;
}
