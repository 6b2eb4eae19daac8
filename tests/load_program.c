/* SPDX-License-Identifier: MIT */
#include "load_program.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORDS 64

static char program[4096];

/* What is returned lives until the test ends; the list keeps it in sight of the leak checker. */
typedef struct kept {
    struct kept *next;
    void *memory;
} kept;
static kept *first_kept;

static void *keep(void *memory)
{
    kept *entry = malloc(sizeof *entry);
    ck_assert_ptr_nonnull(entry);
    *entry = (kept){first_kept, memory};
    first_kept = entry;
    return memory;
}

/* ------------------------------------------------------------------------------------------------- folder -- */

static scratch_disk folder_disk;

static void begin_test(void)
{
    const char *build = getenv("builddir");
    snprintf(program, sizeof program, "%s/demo/guard-load", build != NULL ? build : ".");
    if (access(program, X_OK) != 0) {
        ck_abort_msg("%s: %s; run by make check, or with builddir set", program, strerror(errno));
    }
    scratch_enter_on(folder_disk);
}

int load_suite_run(const char *name, const TTest *const *tests, size_t count, scratch_disk disk)
{
    folder_disk = disk;
    return suite_run_after(name, tests, count, begin_test);
}

/* ------------------------------------------------------------------------------------------------ running -- */

/* Cuts the text into words; returns their number. */
static size_t split(char *text, char **words)
{
    size_t count = 0;
    words[count++] = program;
    for (char *at = text; *(at += strspn(at, " ")) != '\0';) {
        int quoted = *at == '\'';
        at += quoted;
        ck_assert_uint_lt(count, WORDS - 1);
        words[count++] = at;
        at += strcspn(at, quoted ? "'" : " ");
        if (*at != '\0') {
            *at++ = '\0';
        }
    }
    words[count] = NULL;
    return count;
}

/* Output goes to files of the process's own: several may run at the same time. */
static const char *name_output(char *name, size_t size, const char *stream, pid_t process)
{
    snprintf(name, size, "%s.%d", stream, (int)process);
    return name;
}

static void redirect(const char *file, int flags, int descriptor)
{
    int opened = open(file, flags, 0666);
    if (opened < 0 || dup2(opened, descriptor) < 0) {
        _exit(126);
    }
}

__attribute__((format(printf, 2, 0))) static pid_t start(const char *input, const char *format, va_list arguments)
{
    char text[8192];
    char *words[WORDS];
    ck_assert_int_lt(vsnprintf(text, sizeof text, format, arguments), (int)sizeof text);
    split(text, words);
    /* Between fork and exec the child still has Check's handlers, which kill the test. */
    sigset_t stop;
    sigset_t before;
    sigemptyset(&stop);
    sigaddset(&stop, SIGINT);
    sigaddset(&stop, SIGTERM);
    sigprocmask(SIG_BLOCK, &stop, &before);
    pid_t process = fork();
    ck_assert_int_ge(process, 0);
    if (process == 0) {
        signal(SIGINT, SIG_DFL);
        signal(SIGTERM, SIG_DFL);
        sigprocmask(SIG_SETMASK, &before, NULL);
        redirect(input, O_RDONLY, 0);
        char name[64];
        redirect(name_output(name, sizeof name, "out", getpid()), O_WRONLY | O_CREAT | O_TRUNC, 1);
        redirect(name_output(name, sizeof name, "err", getpid()), O_WRONLY | O_CREAT | O_TRUNC, 2);
        execv(program, words);
        _exit(127);
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
    return process;
}

pid_t load_start(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    pid_t process = start("/dev/null", format, arguments);
    va_end(arguments);
    return process;
}

/* What it said; nothing where it was killed before it could. */
static const char *read_output(const char *stream, pid_t process)
{
    char name[64];
    name_output(name, sizeof name, stream, process);
    return access(name, F_OK) == 0 ? read_file(name) : "";
}

load_output load_wait(pid_t process)
{
    int status = 0;
    ck_assert_int_eq(waitpid(process, &status, 0), process);
    return (load_output){WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status), read_output("out", process),
                         read_output("err", process)};
}

load_output load_run(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    pid_t process = start("/dev/null", format, arguments);
    va_end(arguments);
    return load_wait(process);
}

load_output load_run_input(const char *input, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    pid_t process = start(input, format, arguments);
    va_end(arguments);
    return load_wait(process);
}

void load_expect(load_output output, int status)
{
    ck_assert_msg(output.status == status, "exit status %d instead of %d; it said:\n%s%s", output.status, status,
                  output.out, output.err);
}

void load_expect_error(load_output output, int status, const char *part)
{
    load_expect(output, status);
    ck_assert_msg(strstr(output.err, part) != NULL, "it said \"%s\" instead of \"%s\"", output.err, part);
    const char *line = strstr(output.err, "guard-load: ");
    ck_assert_msg(line != NULL, "no line of the program: %s", output.err);
    ck_assert_msg(strchr(line, '\n') == line + strlen(line) - 1, "more than one line: %s", output.err);
}

static json_t *read_json(load_output output)
{
    json_error_t error;
    json_t *json = json_loads(output.out, JSON_REJECT_DUPLICATES, &error);
    ck_assert_msg(json != NULL, "no JSON on standard output (%s): %s%s", error.text, output.out, output.err);
    return keep(json);
}

int64_t load_json(load_output output, const char *key)
{
    const json_t *value = json_object_get(read_json(output), key);
    ck_assert_msg(value != NULL, "no key %s in %s", key, output.out);
    return json_is_boolean(value) ? json_is_true(value) : json_integer_value(value);
}

const char *load_json_text(load_output output, const char *key)
{
    const char *value = json_string_value(json_object_get(read_json(output), key));
    ck_assert_msg(value != NULL, "no text %s in %s", key, output.out);
    return value;
}

/* -------------------------------------------------------------------------------------------------- files -- */

void write_bytes(const char *name, const void *bytes, size_t size)
{
    FILE *file = fopen(name, "w");
    ck_assert_msg(file != NULL, "%s: %s", name, strerror(errno));
    ck_assert_uint_eq(fwrite(bytes, 1, size, file), size);
    ck_assert_int_eq(fclose(file), 0);
}

void write_file(const char *name, const char *text)
{
    write_bytes(name, text, strlen(text));
}

const char *read_file(const char *name)
{
    FILE *file = fopen(name, "r");
    ck_assert_msg(file != NULL, "%s: %s", name, strerror(errno));
    char *text = NULL;
    size_t size = 0;
    if (getdelim(&text, &size, EOF, file) < 0) {
        free(text);
        text = strdup("");
    }
    fclose(file);
    return keep(text);
}

/* ---------------------------------------------------------------------------------------------- databases -- */

static sqlite3 *open_database(const char *database)
{
    sqlite3 *db = NULL;
    ck_assert_msg(sqlite3_open(database, &db) == SQLITE_OK, "%s: %s", database, sqlite3_errmsg(db));
    sqlite3_busy_timeout(db, 10000);
    return db;
}

const char *query(const char *database, const char *sql)
{
    sqlite3 *db = open_database(database);
    sqlite3_stmt *statement = NULL;
    ck_assert_msg(sqlite3_prepare_v2(db, sql, -1, &statement, NULL) == SQLITE_OK, "%s: %s", sql, sqlite3_errmsg(db));
    char *text = NULL;
    size_t size = 0;
    FILE *rows = open_memstream(&text, &size);
    int result;
    for (int row = 0; (result = sqlite3_step(statement)) == SQLITE_ROW; row++) {
        fputs(row > 0 ? "\n" : "", rows);
        for (int i = 0; i < sqlite3_column_count(statement); i++) {
            const unsigned char *value = sqlite3_column_text(statement, i);
            fprintf(rows, "%s%s", i > 0 ? "|" : "", value == NULL ? "NULL" : (const char *)value);
        }
    }
    ck_assert_msg(result == SQLITE_DONE, "%s: %s", sql, sqlite3_errmsg(db));
    fclose(rows);
    sqlite3_finalize(statement);
    sqlite3_close(db);
    return keep(text);
}

int64_t query_int64(const char *database, const char *sql)
{
    return strtoll(query(database, sql), NULL, 10);
}

void run_sql(const char *database, const char *sql)
{
    sqlite3 *db = open_database(database);
    char *error = NULL;
    ck_assert_msg(sqlite3_exec(db, sql, NULL, NULL, &error) == SQLITE_OK, "%s: %s", sql, error);
    sqlite3_close(db);
}
