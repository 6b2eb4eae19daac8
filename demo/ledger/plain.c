/* SPDX-License-Identifier: MIT */
/*
 * guard-ledger-plain: the ledger's POST /transfers on SQLite without a guard on its way, to measure what guards cost (make soak).
 *
 * It does what guard-ledger does when nothing fails: the same HTTP side, statements, journal mode, syncs, and system calls for the receipt.
 * Each call is checked and undone by hand. No panic, no border, no deadline, no chaos, no PostgreSQL; an error is 500 and nothing is logged.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "http.h"
#include "options.h"
#include "service.h"
#include "store.h"

typedef struct plain {
    const char *receipts; /* the folder */
    pthread_mutex_t lock; /* of the connection */
    sqlite3 *db;
    sqlite3_stmt *begin, *commit, *rollback, *insert, *balance, *change;
} plain;

/* ------------------------------------------------------------------------------------------------ service -- */

/* What http.c and the others ask of service.h: no border here. */
int service_call(guard_fn *fn, void *arg, const char *what, service_failure *failure)
{
    (void)what;
    (void)failure;
    fn(arg);
    return 0;
}

static pthread_mutex_t answers_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t answers[6];

void service_answered(int status)
{
    pthread_mutex_lock(&answers_lock);
    answers[status / 100 < 6 ? status / 100 : 0]++;
    pthread_mutex_unlock(&answers_lock);
}

/* ----------------------------------------------------------------------------------------------- transfer -- */

static int run(sqlite3_stmt *statement)
{
    int rc = sqlite3_step(statement);
    sqlite3_reset(statement);
    return rc == SQLITE_DONE || rc == SQLITE_ROW ? 0 : -1;
}

static int64_t balance(plain *p, int64_t account)
{
    sqlite3_bind_int64(p->balance, 1, account);
    int64_t cents = sqlite3_step(p->balance) == SQLITE_ROW ? sqlite3_column_int64(p->balance, 0) : -1;
    sqlite3_reset(p->balance);
    return cents;
}

static int change(plain *p, int64_t account, int64_t cents)
{
    sqlite3_bind_int64(p->change, 1, account);
    sqlite3_bind_int64(p->change, 2, cents);
    return run(p->change);
}

static int journal(plain *p, transfer *t)
{
    sqlite3_bind_text(p->insert, 1, t->key, -1, SQLITE_TRANSIENT);
    sqlite3_bind_int64(p->insert, 2, t->from);
    sqlite3_bind_int64(p->insert, 3, t->to);
    sqlite3_bind_int64(p->insert, 4, t->amount);
    if (run(p->insert) != 0 || sqlite3_changes(p->db) != 1) {
        return -1;
    }
    t->id = sqlite3_last_insert_rowid(p->db);
    return 0;
}

/* A receipt that is being written: what guard_file_replace does, with the same system calls. */
typedef struct receipt {
    int folder;
    FILE *file;
    char name[64];
} receipt;

static void receipt_close(receipt *r)
{
    if (r->file != NULL) {
        fclose(r->file);
    }
    close(r->folder);
}

/* What is to be replaced is no link and, where it is there, a regular file. */
static int replaceable(const receipt *r)
{
    struct stat old;
    return fstatat(r->folder, r->name, &old, AT_SYMLINK_NOFOLLOW) == 0 ? S_ISREG(old.st_mode) : errno == ENOENT;
}

/* The new file has no name yet. */
static int receipt_open(const plain *p, const transfer *t, receipt *r)
{
    char target[64];
    char link[64];
    struct stat own;
    snprintf(r->name, sizeof r->name, "%" PRId64 ".json", t->id);
    r->file = NULL;
    r->folder = open(p->receipts, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (r->folder < 0) {
        return -1;
    }
    if (readlinkat(r->folder, r->name, target, sizeof target) >= 0 || !replaceable(r)) {
        receipt_close(r);
        return -1;
    }
    int descriptor = openat(r->folder, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    if (descriptor < 0 || access(link, F_OK) != 0 || fstat(descriptor, &own) != 0 ||
        (r->file = fdopen(descriptor, "w+")) == NULL) {
        if (descriptor >= 0) {
            close(descriptor);
        }
        receipt_close(r);
        return -1;
    }
    fprintf(r->file,
            "{\"transfer\":%" PRId64 ",\"from\":%" PRId64 ",\"to\":%" PRId64 ",\"amount\":%" PRId64
            ",\"key\":\"%s\"}\n",
            t->id, t->from, t->to, t->amount, t->key);
    return 0;
}

static int receipt_publish(receipt *r)
{
    char temporary[128];
    char link[64];
    uint64_t number;
    int failed = fflush(r->file) != 0 || !replaceable(r) || fsync(fileno(r->file)) != 0 ||
                 getrandom(&number, sizeof number, GRND_NONBLOCK) != sizeof number;
    if (!failed) {
        snprintf(temporary, sizeof temporary, ".%s.%016" PRIx64 ".tmp", r->name, number);
        snprintf(link, sizeof link, "/proc/self/fd/%d", fileno(r->file));
        failed = linkat(AT_FDCWD, link, r->folder, temporary, AT_SYMLINK_FOLLOW) != 0;
    }
    if (!failed) {
        failed = fclose(r->file) != 0 || renameat(r->folder, temporary, r->folder, r->name) != 0;
        r->file = NULL;
        if (failed) {
            unlinkat(r->folder, temporary, 0);
        }
    }
    failed = failed || fsync(r->folder) != 0;
    receipt_close(r);
    return failed ? -1 : 0;
}

static int make_locked(plain *p, transfer *t)
{
    receipt written;
    int receipt_is_open = 0;
    if (run(p->begin) != 0) {
        return -1;
    }
    if (journal(p, t) != 0) {
        goto failed;
    }
    int64_t low = balance(p, t->from < t->to ? t->from : t->to);
    int64_t high = balance(p, t->from < t->to ? t->to : t->from);
    int64_t from = t->from < t->to ? low : high;
    int64_t to = t->from < t->to ? high : low;
    if (from < t->amount || to < 0 || to > INT64_MAX - t->amount) {
        goto failed;
    }
    if (change(p, t->from, -t->amount) != 0 || change(p, t->to, t->amount) != 0) {
        goto failed;
    }
    receipt_is_open = receipt_open(p, t, &written) == 0;
    if (!receipt_is_open || run(p->commit) != 0) {
        goto failed;
    }
    return receipt_publish(&written);
failed:
    if (receipt_is_open) {
        receipt_close(&written);
    }
    run(p->rollback);
    return -1;
}

static int make(plain *p, transfer *t)
{
    pthread_mutex_lock(&p->lock);
    int failed = make_locked(p, t);
    pthread_mutex_unlock(&p->lock);
    return failed;
}

/* ---------------------------------------------------------------------------------------------- requests -- */

static int read_transfer(const http_request *r, transfer *t)
{
    const char *key = http_header(r, "Idempotency-Key");
    json_error_t error;
    json_t *body = json_loadb(r->body, r->size, JSON_REJECT_DUPLICATES, &error);
    if (key == NULL || body == NULL || strlen(key) >= sizeof t->key) {
        json_decref(body);
        return -1;
    }
    snprintf(t->key, sizeof t->key, "%s", key);
    t->from = json_integer_value(json_object_get(body, "from"));
    t->to = json_integer_value(json_object_get(body, "to"));
    t->amount = json_integer_value(json_object_get(body, "amount"));
    json_decref(body);
    return t->from < 1 || t->to < 1 || t->amount < 1 || t->from == t->to ? -1 : 0;
}

static void handle(http_request *r, void *arg)
{
    transfer t = {0};
    r->status = 500;
    if (strcmp(r->path, "/transfers") != 0 || read_transfer(r, &t) != 0 || make(arg, &t) != 0) {
        return;
    }
    json_t *json = json_pack("{sIsIsIsIss}", "transfer", (json_int_t)t.id, "from", (json_int_t)t.from, "to",
                             (json_int_t)t.to, "amount", (json_int_t)t.amount, "key", t.key);
    r->answer = json == NULL ? NULL : json_dumps(json, JSON_COMPACT);
    json_decref(json);
    r->answer_size = r->answer == NULL ? 0 : strlen(r->answer);
    r->status = 201;
}

/* --------------------------------------------------------------------------------------------- beginning -- */

static sqlite3_stmt *prepare(plain *p, const char *sql)
{
    sqlite3_stmt *statement = NULL;
    if (sqlite3_prepare_v3(p->db, sql, -1, SQLITE_PREPARE_PERSISTENT, &statement, NULL) != SQLITE_OK) {
        guard_panic(1, "%s", sqlite3_errmsg(p->db));
    }
    return statement;
}

/* The tables and accounts are there: guard-ledger made them. */
static void open_plain(plain *p, const ledger_options *o)
{
    p->receipts = o->receipts;
    if (sqlite3_open(o->database, &p->db) != SQLITE_OK ||
        sqlite3_exec(p->db, "PRAGMA foreign_keys = ON; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL", NULL,
                     NULL, NULL) != SQLITE_OK) {
        guard_panic(1, "%s", sqlite3_errmsg(p->db));
    }
    sqlite3_busy_timeout(p->db, 5000);
    p->begin = prepare(p, "BEGIN IMMEDIATE");
    p->commit = prepare(p, "COMMIT");
    p->rollback = prepare(p, "ROLLBACK");
    p->insert = prepare(p, "INSERT INTO transfer(key, debtor, creditor, amount) VALUES (?1, ?2, ?3, ?4)"
                           " ON CONFLICT (key) DO NOTHING");
    p->balance = prepare(p, "SELECT balance FROM account WHERE id = ?1");
    p->change = prepare(p, "UPDATE account SET balance = balance + ?2 WHERE id = ?1");
}

typedef struct arguments {
    int argc;
    char **argv;
} arguments;

static void serve(void *arg)
{
    const arguments *a = arg;
    GUARD_AUTO(s);
    sigset_t ends;
    int signal_number;
    plain p = {.lock = PTHREAD_MUTEX_INITIALIZER};
    const ledger_options *options = options_read(s, a->argc, a->argv);
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &ends, NULL);
    open_plain(&p, options);
    http_server *server = http_open(s, options, handle, &p);
    printf("guard-ledger-plain: http://%s:%u/\n", options->listen, http_port(server));
    fflush(stdout);
    sigwait(&ends, &signal_number);
}

int main(int argc, char **argv)
{
    arguments a = {argc, argv};
    guard_error error;
    signal(SIGPIPE, SIG_IGN);
    if (guard_run(serve, &a, &error) != 0) {
        fprintf(stderr, "guard-ledger-plain: %s\n", error.message);
        return EXIT_FAILED;
    }
    return EXIT_SERVED;
}
