/* SPDX-License-Identifier: MIT */
/*
 * guard_sqlite_column.c: the columns of the row that a statement stands on.
 *
 * SQLite answers NULL or 0 where there is no row, or none of that number: a value that is in no table. Here it is misuse.
 */
#include "guard_sqlite_internal.h"

static int may_read(const guard_sqlite_stmt *stmt, int index, const guard_place *place)
{
    if (!guard_sqlite_check_stmt(stmt, place)) {
        return 0;
    }
    int count = sqlite3_data_count(stmt->raw); /* 0 where there is no row */
    if (GUARD_IMPL_UNLIKELY(index < 0 || index >= count)) {
        if (count == 0) {
            guard_impl_misuse(place, GUARD_MISUSE_STATE, "column %d is read where there is no row", index);
        } else {
            guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "column %d is read of a row with %d", index, count);
        }
        return 0;
    }
    return 1;
}

int guard_sqlite_column_count_at(guard_sqlite_stmt *stmt, const guard_place *place)
{
    return guard_sqlite_check_stmt(stmt, place) ? sqlite3_column_count(stmt->raw) : 0;
}

int guard_sqlite_column_type_at(guard_sqlite_stmt *stmt, int index, const guard_place *place)
{
    return may_read(stmt, index, place) ? sqlite3_column_type(stmt->raw, index) : SQLITE_NULL;
}

int64_t guard_sqlite_column_int64_at(guard_sqlite_stmt *stmt, int index, const guard_place *place)
{
    return may_read(stmt, index, place) ? sqlite3_column_int64(stmt->raw, index) : 0;
}

double guard_sqlite_column_double_at(guard_sqlite_stmt *stmt, int index, const guard_place *place)
{
    return may_read(stmt, index, place) ? sqlite3_column_double(stmt->raw, index) : 0;
}

/* NULL is an SQL NULL, an empty blob, or no memory for the conversion: only the error code tells the last. */
static void check_value(guard_sqlite_stmt *stmt, const void *value, const guard_place *place)
{
    if (value == NULL && (sqlite3_errcode(stmt->db->raw) & 0xff) == SQLITE_NOMEM) {
        guard_sqlite_raise(stmt->db, SQLITE_NOMEM, sqlite3_sql(stmt->raw), place);
    }
}

const char *guard_sqlite_column_text_at(guard_sqlite_stmt *stmt, int index, const guard_place *place)
{
    if (!may_read(stmt, index, place)) {
        return NULL;
    }
    const char *text = (const char *)sqlite3_column_text(stmt->raw, index);
    check_value(stmt, text, place);
    return text;
}

const void *guard_sqlite_column_blob_at(guard_sqlite_stmt *stmt, int index, int *length, const guard_place *place)
{
    if (length != NULL) {
        *length = 0;
    }
    if (!may_read(stmt, index, place)) {
        return NULL;
    }
    const void *data = sqlite3_column_blob(stmt->raw, index);
    check_value(stmt, data, place);
    if (length != NULL) {
        *length = sqlite3_column_bytes(stmt->raw, index);
    }
    return data;
}
