/* SPDX-License-Identifier: MIT */
/*
 * sqlite_value.h: a field as a value of its column's type.
 *
 * SQLite stores "abc" in an INTEGER column unless the table is STRICT. The loader holds every table to STRICT's rule: what
 * the column's affinity turns into its type without loss goes in as that, anything else is rejected
 * (https://www.sqlite.org/datatype3.html, 3.1; https://www.sqlite.org/stricttables.html).
 */
#ifndef LOAD_SQLITE_VALUE_H
#define LOAD_SQLITE_VALUE_H

#include <sqlite3.h>

#include "reader.h"

typedef enum value_type {
    VALUE_ANY,     /* no type, or one that says nothing of numbers (DATE, BOOLEAN, ANY): SQLite's own rule */
    VALUE_TEXT,    /* CHAR, CLOB, TEXT */
    VALUE_BLOB,    /* BLOB: the bytes as they are */
    VALUE_INTEGER, /* INT */
    VALUE_REAL,    /* REAL, FLOA, DOUB */
    VALUE_NUMBER   /* NUMERIC, DECIMAL */
} value_type;

/* The type by a column's declaration. */
value_type sqlite_value_type(const char *declared);

/* "an integer", "a number": what a field of this type must be. */
const char *sqlite_value_noun(value_type type);

/*
 * Binds the field, whose text must live until the statement is reset: 1, or 0 if it is no value of the type. *result is
 * SQLite's result code.
 */
int sqlite_value_bind(sqlite3_stmt *statement, int parameter, value_type type, const load_field *field, int *result);

#endif
