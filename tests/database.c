/* SPDX-License-Identifier: MIT */
#include "database.h"

#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "scratch.h"

static const char *folder; /* of the latest */

const char *database_beside(const char *name)
{
    static char paths[8][256];
    static unsigned next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof(paths[0]), "%s/%s", folder, name);
    return path;
}

const char *database_new(const char *sql)
{
    static char path[256];
    folder = scratch_folder(SCRATCH_ON_DISK);
    snprintf(path, sizeof(path), "%s/test.db", folder);
    if (sql != NULL) {
        sqlite3 *raw = database_raw(path);
        database_exec(raw, sql);
        sqlite3_close(raw);
    }
    return path;
}

sqlite3 *database_raw(const char *path)
{
    sqlite3 *raw = NULL;
    int rc = sqlite3_open(path, &raw);
    ck_assert_msg(rc == SQLITE_OK, "%s: %s", path, sqlite3_errmsg(raw));
    sqlite3_busy_timeout(raw, 5000);
    /* The tests look at what is in the files, not at what is on the disk. */
    database_exec(raw, "PRAGMA synchronous = OFF");
    return raw;
}

void database_exec(sqlite3 *raw, const char *sql)
{
    int rc = sqlite3_exec(raw, sql, NULL, NULL, NULL);
    ck_assert_msg(rc == SQLITE_OK, "%s: %s", sql, sqlite3_errmsg(raw));
}

long long database_number_on(sqlite3 *raw, const char *sql)
{
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(raw, sql, -1, &stmt, NULL);
    ck_assert_msg(rc == SQLITE_OK, "%s: %s", sql, sqlite3_errmsg(raw));
    rc = sqlite3_step(stmt);
    ck_assert_msg(rc == SQLITE_ROW, "%s: %s", sql, sqlite3_errmsg(raw));
    long long number = sqlite3_column_int64(stmt, 0);
    sqlite3_finalize(stmt);
    return number;
}

long long database_number(const char *path, const char *sql)
{
    sqlite3 *raw = database_raw(path);
    long long number = database_number_on(raw, sql);
    sqlite3_close(raw);
    return number;
}

void database_check(sqlite3 *raw)
{
    sqlite3_stmt *stmt = NULL;
    ck_assert_int_eq(sqlite3_prepare_v2(raw, "PRAGMA integrity_check", -1, &stmt, NULL), SQLITE_OK);
    ck_assert_int_eq(sqlite3_step(stmt), SQLITE_ROW);
    ck_assert_str_eq((const char *)sqlite3_column_text(stmt, 0), "ok");
    sqlite3_finalize(stmt);
}

static void copy_file(const char *from, const char *to)
{
    char buffer[65536];
    size_t count;
    FILE *in = fopen(from, "rb");
    unlink(to);
    if (in == NULL) {
        return;
    }
    FILE *out = fopen(to, "wb");
    ck_assert_ptr_nonnull(out);
    while ((count = fread(buffer, 1, sizeof(buffer), in)) > 0) {
        ck_assert_uint_eq(fwrite(buffer, 1, count, out), count);
    }
    fclose(out);
    fclose(in);
}

const char *database_crash_copy(const char *path, int number)
{
    static const char *const parts[] = {"", "-journal", "-wal"};
    static char copy[256];
    int status;
    snprintf(copy, sizeof(copy), "%s.crash%d", path, number);
    /* In a process of its own: closing a descriptor of the file here would drop the locks of SQLite's. */
    pid_t child = fork();
    if (child != 0) {
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        ck_assert_int_eq(status, 0);
        return copy;
    }
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        char from[272];
        char to[272];
        snprintf(from, sizeof(from), "%s%s", path, parts[i]);
        snprintf(to, sizeof(to), "%s%s", copy, parts[i]);
        copy_file(from, to);
    }
    _exit(0);
}

const guard_error *expect_panic(guard_fn *fn, void *arg, int domain, int code)
{
    static __thread guard_error error;
    int told = guard_run(fn, arg, &error);
    ck_assert_msg(told != 0, "it did not panic");
    ck_assert_msg(error.domain == domain && error.code == code, "%s %d: %s", guard_domain_name(error.domain),
                  error.code, error.message);
    return &error;
}
