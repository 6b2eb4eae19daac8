/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_resolve.c: finding out how a transaction ended whose COMMIT was not answered.
 *
 * What makes each answer true:
 *   place    It is looked for where the transaction ran (guard_pq_home.c) and, with a marker row, in the same table, not in one that was
 *            emptied, restored or made anew since (guard_pq_marks.c). Else nothing is said, but for a row that is there.
 *   row      The same key is inserted, as a fence. The server makes that wait for a transaction that has inserted it and not ended.
 *            Then either the row of that transaction is there: committed. Or the fence is: it was rolled back, or its COMMIT
 *            message has not arrived, and when it does its own INSERT fails on the key. Not so where something may have kept the row
 *            out: a rule or trigger that is there now, or came since the session looked (while the fence is put in none can come).
 *   probe    The transaction holds an advisory lock from its BEGIN on. Whoever gets the lock knows that it is over (a server that
 *            restarted has neither), so that what the probe reads then is final.
 *   status   pg_xact_status says "aborted": so it is, whether of this transaction or of a later one with its number, as then this
 *            one was lost in a crash. "committed" may be said of the later one.
 *
 * The resolver's own COMMIT must not wait for standbys (synchronous_commit = local): the lost one may hang there. It runs on a
 * primary: a standby knows nothing of what its primary is doing, and would give the lock of a probe at once.
 */
#include "guard_pq_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ------------------------------------------------------------------------------------------------ tokens -- */

/*
 *     pq:none | pq:status:XID | pq:row:SESSION:SEQ | pq:probe:LOCK   what to look for, then each at most once
 *     @SYSTEM.DATABASE.TIMELINE                                     where, see guard_pq_home.c
 *     +ID                                                           in which marker table, see guard_pq_marks.c; then c where it had no trigger
 *     /XID                                                          the number of one that was to be prepared
 *     ~CHECKSUM                                                     of all before it, always: FNV-1a, 8 hexadecimal digits
 *
 * What is left of a token that was cut off where it was kept would be one of another transaction, and without a place.
 */
typedef enum token_kind { TOKEN_BAD, TOKEN_NONE, TOKEN_STATUS, TOKEN_ROW, TOKEN_PROBE } token_kind;

typedef struct token {
    token_kind kind;
    char id[37];
    char number[24]; /* seq, xid or lock */
    char home[GUARD_PQ_HOME_MAX];
    char table_id[GUARD_PQ_TABLE_ID_MAX];
    int bare;
    char xid[24];
} token;

static uint32_t checksum(const char *text, size_t length)
{
    uint32_t sum = 2166136261U;
    for (size_t i = 0; i < length; i++) {
        sum = (sum ^ (unsigned char)text[i]) * 16777619U;
    }
    return sum;
}

void guard_pq_token_write(const guard_pq *pq, const char *xid, char text[GUARD_TOKEN_SIZE])
{
    int marker = pq->t.marker == GUARD_PQ_MARKER_NONE && xid[0] != '\0' ? GUARD_PQ_MARKER_STATUS : pq->t.marker;
    int row = marker == GUARD_PQ_MARKER_ROW;
    int prepares = pq->t.prepare_as != NULL && xid[0] != '\0';
    int length;
    if (row) {
        length = snprintf(text, GUARD_TOKEN_SIZE, "pq:row:%s:%" PRIu64, pq->marks.id, pq->marks.seq);
    } else if (marker == GUARD_PQ_MARKER_PROBE) {
        length = snprintf(text, GUARD_TOKEN_SIZE, "pq:probe:%" PRIu64, pq->t.lock);
    } else if (marker == GUARD_PQ_MARKER_STATUS && xid[0] != '\0') {
        length = snprintf(text, GUARD_TOKEN_SIZE, "pq:status:%s", xid);
    } else {
        length = snprintf(text, GUARD_TOKEN_SIZE, "pq:none");
    }
    length += snprintf(text + length, GUARD_TOKEN_SIZE - (size_t)length, "%s%s%s%s%s%s%s",
                       pq->home.text[0] != '\0' ? "@" : "", pq->home.text, row ? "+" : "",
                       row ? pq->marks.table_id : "", row && pq->marks.bare ? "c" : "", prepares ? "/" : "",
                       prepares ? xid : "");
    snprintf(text + length, GUARD_TOKEN_SIZE - (size_t)length, "~%08" PRIx32, checksum(text, (size_t)length));
}

static int is_number(const char *text)
{
    size_t digits = strspn(text, "0123456789");
    return digits > 0 && digits <= 20 && text[digits] == '\0';
}

/* SEQ.XMIN, or nothing. */
static int is_table_id(const char *text)
{
    size_t digits = strspn(text, "0123456789");
    return text[0] == '\0' ||
           (digits > 0 && text[digits] == '.' && is_number(text + digits + 1) && strlen(text) < GUARD_PQ_TABLE_ID_MAX);
}

/* Takes what follows `mark` off the text: 1, or 0 when it is too long. */
static int cut_off(char *text, char mark, char *to, size_t size)
{
    char *at = strchr(text, mark);
    to[0] = '\0';
    if (at == NULL) {
        return 1;
    }
    *at = '\0';
    return (size_t)snprintf(to, size, "%s", at + 1) < size;
}

/* Takes a letter off the text's end: 1 when it was there. */
static int cut_last(char *text, char letter)
{
    size_t length = strlen(text);
    if (length == 0 || text[length - 1] != letter) {
        return 0;
    }
    text[length - 1] = '\0';
    return 1;
}

/* Takes the checksum off: 1 when it is right. */
static int is_whole(char *text)
{
    char wanted[9];
    char *at = strrchr(text, '~');
    if (at == NULL) {
        return 0;
    }
    *at = '\0';
    snprintf(wanted, sizeof(wanted), "%08" PRIx32, checksum(text, (size_t)(at - text)));
    return strcmp(at + 1, wanted) == 0;
}

/* It goes into SQL: nothing but hexadecimal digits, dashes, points and numbers is taken. */
static token read_token(const char *from)
{
    token t = {.kind = TOKEN_BAD};
    char text[GUARD_TOKEN_SIZE];
    if ((size_t)snprintf(text, sizeof(text), "%s", from) >= sizeof(text) || !is_whole(text) ||
        !cut_off(text, '/', t.xid, sizeof(t.xid)) || !cut_off(text, '+', t.table_id, sizeof(t.table_id)) ||
        !cut_off(text, '@', t.home, sizeof(t.home))) {
        return t;
    }
    t.bare = cut_last(t.table_id, 'c');
    if (!guard_pq_home_is_text(t.home) || !is_table_id(t.table_id) || (t.xid[0] != '\0' && !is_number(t.xid))) {
        return t;
    }
    if (strcmp(text, "pq:none") == 0) {
        t.kind = TOKEN_NONE;
    } else if (strncmp(text, "pq:status:", 10) == 0 && is_number(text + 10)) {
        t.kind = TOKEN_STATUS;
        memcpy(t.number, text + 10, strlen(text + 10));
    } else if (strncmp(text, "pq:probe:", 9) == 0 && is_number(text + 9)) {
        t.kind = TOKEN_PROBE;
        memcpy(t.number, text + 9, strlen(text + 9));
    } else if (strncmp(text, "pq:row:", 7) == 0 && strspn(text + 7, "0123456789abcdef-") == 36 && text[43] == ':' &&
               is_number(text + 44)) {
        t.kind = TOKEN_ROW;
        memcpy(t.id, text + 7, 36);
        memcpy(t.number, text + 44, strlen(text + 44));
    }
    return t;
}

/* ------------------------------------------------------------------------------------------- one try each -- */

/* How a try ended; the outcome is known, or it is worth another one, or none. */
typedef enum verdict { VERDICT_KNOWN, VERDICT_AGAIN, VERDICT_NEVER } verdict;

typedef struct attempt {
    PGconn *conn;
    guard_pq_doubt *doubt;
    token t;
    guard_pq_deadline deadline;
    guard_pq_home home;
    guard_outcome outcome;
} attempt;

/* Milliseconds for lock_timeout: a half of what is left, so that there is time to say so. 0 would be for ever. */
static int lock_ms(const attempt *a, int most)
{
    int left = guard_pq_left(a->deadline);
    return left < 0 || left / 2 > most ? most : left / 2 + 1;
}

/* After a failure: is it the moment, or the thing? The connection is put at rest where that is possible. */
static verdict failed(attempt *a)
{
    guard_error ignored;
    const char *state = a->doubt->error.sqlstate;
    if (PQstatus(a->conn) == CONNECTION_OK && PQtransactionStatus(a->conn) == PQTRANS_INERROR) {
        guard_pq_query_on(a->conn, "ROLLBACK", NULL, a->deadline, NULL, &ignored);
    }
    if (state[0] == '\0' || strncmp(state, "08", 2) == 0 || strncmp(state, "57", 2) == 0 ||
        strncmp(state, "53", 2) == 0 || strcmp(state, "55P03") == 0 || strncmp(state, "40", 2) == 0 ||
        strcmp(state, "25006") == 0) {
        return VERDICT_AGAIN;
    }
    return VERDICT_NEVER;
}

/* Whether the standbys have what is committed here cannot be read. */
static verdict known(attempt *a, guard_outcome outcome)
{
    a->outcome = outcome;
    a->doubt->notes |= GUARD_NOTE_RESOLVED;
    a->doubt->notes |= outcome == GUARD_COMMITTED && a->home.synchronous ? GUARD_NOTE_LOCAL_ONLY : 0;
    return VERDICT_KNOWN;
}

/* Under its name and with its number: another one of this name would have made ours fail. */
static int is_prepared(attempt *a)
{
    char sql[200];
    PGresult *result = NULL;
    guard_error ignored;
    if (a->doubt->prepare_as == NULL || a->t.xid[0] == '\0') {
        return 0;
    }
    snprintf(sql, sizeof(sql),
             "SELECT 1 FROM pg_prepared_xacts WHERE database = current_database() AND gid = $1 AND transaction = "
             "'%" PRIu32 "'::xid",
             (uint32_t)strtoull(a->t.xid, NULL, 10));
    guard_pq_query_on(a->conn, sql, &a->doubt->prepare_as, a->deadline, &result, &ignored);
    int found = PQntuples(result) > 0;
    PQclear(result);
    return found;
}

/* Is this where the transaction ran? VERDICT_KNOWN: yes. */
static verdict look_at_place(attempt *a)
{
    guard_error *error = &a->doubt->error;
    if (guard_pq_home_read(a->conn, a->deadline, &a->home, error) != 0) {
        return failed(a);
    }
    if (a->home.standby) {
        guard_error_set(error, GUARD_PQ, GUARD_PQ_PLACE, "the server is a standby, which may be behind");
        return VERDICT_AGAIN;
    }
    if (a->t.home[0] != '\0' && a->home.text[0] == '\0') {
        guard_error_set(error, GUARD_PQ, GUARD_PQ_PLACE, "the server does not say which one it is");
        return VERDICT_NEVER;
    }
    switch (guard_pq_home_compare(a->t.home, &a->home)) {
    case GUARD_PQ_PLACE_OTHER:
        guard_error_set(error, GUARD_PQ, GUARD_PQ_PLACE,
                        "this is not the server and database that the transaction ran on (%s, not %s)", a->home.text,
                        a->t.home);
        return VERDICT_NEVER;
    case GUARD_PQ_PLACE_OLDER:
        guard_error_set(error, GUARD_PQ, GUARD_PQ_PLACE,
                        "the server was replaced: its timeline is older than the transaction's (%s, not %s)",
                        a->home.text, a->t.home);
        return VERDICT_AGAIN;
    default:
        return VERDICT_KNOWN;
    }
}

/*
 * The fence keeps COMMIT out all the same, unless that is what the trigger lets pass. One that nobody may rely on has the earliest of all times, for
 * whoever asks later: then the trigger may be gone, and the server may have forgotten it.
 */
static verdict try_row(attempt *a)
{
    char sql[3 * GUARD_PQ_SQL_MAX];
    PGresult *result = NULL;
    const char *table = a->doubt->table;
    if (is_prepared(a)) {
        return known(a, GUARD_PREPARED);
    }
    /* Fenced only in the transaction's own table: in another one a fence keeps nobody out. */
    char is_own[GUARD_PQ_SQL_MAX / 2];
    snprintf(is_own, sizeof(is_own), GUARD_PQ_TABLE_ID_SQL " AND seq::text || '.' || xmin::text = '%s'", table,
             a->t.table_id);
    snprintf(sql, sizeof(sql),
             "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL synchronous_commit = local; "
             "SET LOCAL lock_timeout = %d; "
             "INSERT INTO %s (session, seq, fenced, made) SELECT '%s', %s, true, CASE WHEN " GUARD_PQ_KEEPS_OUT_SQL
             " OR (%s AND " GUARD_PQ_HAD_TRIGGERS_SQL ") THEN '-infinity' ELSE now() END WHERE EXISTS (%s) "
             "ON CONFLICT (session, seq) DO NOTHING; "
             "SELECT fenced, made = '-infinity' FROM %s WHERE session = '%s' AND seq = %s; COMMIT",
             lock_ms(a, 1000), table, a->t.id, a->t.number, table, a->t.bare ? "true" : "false", table, is_own, table,
             a->t.id, a->t.number);
    int code = guard_pq_query_on(a->conn, sql, NULL, a->deadline, &result, &a->doubt->error);
    int rows = PQntuples(result);
    int fenced = rows == 1 && strcmp(PQgetvalue(result, 0, 0), "t") == 0;
    int unsure = rows == 1 && strcmp(PQgetvalue(result, 0, 1), "t") == 0;
    PQclear(result);
    if (rows == 1 && !fenced) {
        return known(a, GUARD_COMMITTED); /* the old transaction's row, whatever becomes of ours */
    }
    if (code == 0 && rows == 0) {
        guard_error_set(&a->doubt->error, GUARD_PQ, GUARD_PQ_PLACE,
                        "the marker table %s was emptied, restored or made anew since the transaction", table);
        return VERDICT_NEVER;
    }
    if (code == 0 && fenced && unsure) {
        guard_error_set(&a->doubt->error, GUARD_PQ, GUARD_PQ_MARKER,
                        "the marker table %s has, or had, a rule or a trigger that may have kept the row out", table);
        return VERDICT_NEVER;
    }
    return code == 0 && fenced && PQtransactionStatus(a->conn) == PQTRANS_IDLE ? known(a, GUARD_ROLLED_BACK)
                                                                               : failed(a);
}

static verdict try_probe(attempt *a)
{
    char sql[GUARD_PQ_SQL_MAX];
    PGresult *result = NULL;
    guard_error ignored;
    guard_pq_doubt *doubt = a->doubt;
    if (doubt->probe == NULL) {
        guard_error_set(&doubt->error, GUARD_PQ, GUARD_PQ_TOKEN,
                        "the transaction has a probe: it is needed to resolve it");
        return VERDICT_NEVER;
    }
    if (is_prepared(a)) {
        return known(a, GUARD_PREPARED);
    }
    snprintf(sql, sizeof(sql),
             "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = %d; "
             "SELECT pg_advisory_xact_lock(%" PRId64 ")",
             lock_ms(a, 1000), (int64_t)strtoull(a->t.number, NULL, 10));
    int code = guard_pq_query_on(a->conn, sql, NULL, a->deadline, NULL, &doubt->error);
    if (code == 0) {
        code = guard_pq_query_on(a->conn, doubt->probe, doubt->probe_key != NULL ? &doubt->probe_key : NULL,
                                 a->deadline, &result, &doubt->error);
    }
    int found = PQntuples(result) > 0;
    int answered = code == 0 && result != NULL;
    PQclear(result);
    if (!answered) {
        if (code == 0) {
            guard_error_set(&doubt->error, GUARD_PQ, GUARD_PQ_TOKEN, "the probe is not a query that returns rows");
            guard_pq_query_on(a->conn, "ROLLBACK", NULL, a->deadline, NULL, &ignored);
            return VERDICT_NEVER;
        }
        return failed(a);
    }
    guard_pq_query_on(a->conn, "ROLLBACK", NULL, a->deadline, NULL, &ignored);
    return known(a, found ? GUARD_COMMITTED : GUARD_ROLLED_BACK);
}

static verdict try_status(attempt *a)
{
    char sql[GUARD_PQ_SQL_MAX];
    PGresult *result = NULL;
    guard_pq_doubt *doubt = a->doubt;
    if (is_prepared(a)) {
        return known(a, GUARD_PREPARED);
    }
    snprintf(sql, sizeof(sql), "SELECT pg_xact_status('%s'::xid8)", a->t.number);
    int code = guard_pq_query_on(a->conn, sql, NULL, a->deadline, &result, &doubt->error);
    char status[16];
    guard_pq_text(status, sizeof(status), PQntuples(result) == 1 ? PQgetvalue(result, 0, 0) : "");
    PQclear(result);
    if (code != 0) {
        return failed(a);
    }
    if (strcmp(status, "aborted") == 0) {
        return known(a, GUARD_ROLLED_BACK);
    }
    guard_error_set(&doubt->error, GUARD_PQ, GUARD_PQ_TOKEN, "the server's status of transaction %s is \"%s\"",
                    a->t.number, status[0] != '\0' ? status : "forgotten");
    if (strcmp(status, "committed") == 0) {
        doubt->notes |= GUARD_NOTE_STATUS_ONLY;
        return VERDICT_NEVER;
    }
    return strcmp(status, "in progress") == 0 ? VERDICT_AGAIN : VERDICT_NEVER;
}

static verdict try_once(attempt *a)
{
    if (a->t.kind != TOKEN_BAD && a->conn != NULL) {
        verdict place = look_at_place(a);
        if (place != VERDICT_KNOWN) {
            return place;
        }
    }
    switch (a->t.kind) {
    case TOKEN_ROW:
        return try_row(a);
    case TOKEN_PROBE:
        return try_probe(a);
    case TOKEN_STATUS:
        return try_status(a);
    case TOKEN_NONE:
        guard_error_set(&a->doubt->error, GUARD_PQ, GUARD_PQ_TOKEN,
                        "the transaction has no marker by which it could be found");
        return VERDICT_NEVER;
    default:
        guard_error_set(&a->doubt->error, GUARD_PQ, GUARD_PQ_TOKEN, "not the token of a PostgreSQL transaction");
        return VERDICT_NEVER;
    }
}

/* ------------------------------------------------------------------------------------------ until it is known -- */

static void pause_before_retry(guard_pq_deadline deadline, int *ms)
{
    int left = guard_pq_left(deadline);
    int pause = left >= 0 && left < *ms ? left : *ms;
    struct timespec time = {.tv_sec = pause / 1000, .tv_nsec = (long)(pause % 1000) * 1000000};
    nanosleep(&time, NULL);
    *ms = *ms < 200 ? *ms * 2 : *ms;
}

/* A role whose transactions are read-only by default is no obstacle: "read-write" would refuse it. */
static const char *primary(void)
{
    return PQlibVersion() >= 140000 ? "primary" : "read-write";
}

guard_outcome guard_pq_doubt_resolve(guard_pq_doubt *doubt, guard_pq_keywords *keywords, PGconn *conn,
                                     guard_pq_deadline deadline)
{
    attempt a = {.doubt = doubt, .t = read_token(doubt->token), .deadline = deadline, .outcome = GUARD_IN_DOUBT};
    int pause = 10;
    verdict v = VERDICT_AGAIN;
    PGconn *own = NULL;
    a.conn = NULL;
    if (a.t.kind == TOKEN_BAD || a.t.kind == TOKEN_NONE) {
        try_once(&a); /* only to say why */
        return GUARD_IN_DOUBT;
    }
    while (v == VERDICT_AGAIN) {
        a.conn = conn;
        conn = NULL; /* once: if that did not do, it may be the connection */
        if (a.conn == NULL) {
            guard_pq_keywords_set(keywords, "target_session_attrs", primary());
            guard_error error;
            guard_pq_keywords copy = *keywords; /* connecting takes hosts off the lists */
            a.conn = own = guard_pq_connect(&copy, deadline, &error);
            if (own == NULL && (doubt->error.code == 0 || guard_pq_left(deadline) != 0)) {
                doubt->error = error; /* that the deadline then passes says less than why it was needed */
            }
        }
        if (a.conn != NULL) {
            guard_error before = doubt->error;
            v = try_once(&a);
            if (v == VERDICT_AGAIN && before.code != 0 && doubt->error.domain == GUARD_TIMEOUT) {
                doubt->error = before; /* likewise */
            }
        }
        if (v == VERDICT_NEVER && own == NULL) {
            v = VERDICT_AGAIN; /* it may be the caller's connection: another role, another place */
        }
        PQfinish(own);
        own = NULL;
        if (v == VERDICT_AGAIN) {
            /* Whoever asks may be cancelled, or late; not so at COMMIT, which is masked. */
            if (guard_checkpoint_error(&doubt->error) != 0 || guard_pq_left(deadline) == 0) {
                break;
            }
            pause_before_retry(deadline, &pause);
        }
    }
    return a.outcome;
}

/* ------------------------------------------------------------------------------------------------ public -- */

static guard_outcome resolve(guard_pq_doubt *doubt, guard_pq_keywords *keywords, PGconn *conn, int32_t ms,
                             guard_error *error)
{
    int state;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    guard_outcome outcome = guard_pq_doubt_resolve(doubt, keywords, conn, guard_pq_in(ms));
    pthread_setcancelstate(state, NULL);
    if (error != NULL && outcome == GUARD_IN_DOUBT) {
        *error = doubt->error;
    }
    return outcome;
}

static void set_doubt(guard_pq_doubt *doubt, const char *text, const guard_pq_tx_options *options)
{
    memset(doubt, 0, sizeof(*doubt));
    doubt->token = text;
    if (options != NULL) {
        doubt->probe = options->probe;
        doubt->probe_key = options->probe_key;
        doubt->prepare_as = options->prepare_as;
    }
}

guard_outcome guard_pq_resolve_at(guard_pq *pq, const char *text, const guard_pq_tx_options *options,
                                  guard_error *error, const guard_place *place)
{
    guard_pq_doubt doubt;
    guard_pq_keywords keywords;
    guard_pq_call call;
    if (pq == NULL || text == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "resolving needs a connection and a token");
        return GUARD_IN_DOUBT;
    }
    if (pq->pid != guard_pq_process()) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "the connection belongs to the parent process");
        return GUARD_IN_DOUBT;
    }
    set_doubt(&doubt, text, options);
    doubt.table = pq->table;
    if (pq->conn == NULL || guard_pq_keywords_of(&keywords, pq->conn, &doubt.error) != 0) {
        if (error != NULL) {
            guard_pq_error_gone(error);
        }
        return GUARD_IN_DOUBT;
    }
    int32_t ms = guard_pq_or(options != NULL ? options->resolve_ms : 0, pq->options.resolve_ms);
    guard_pq_call_begin(pq, &call);
    int usable = pq->flight == NULL && !guard_pq_is_dead(pq) && PQtransactionStatus(pq->conn) == PQTRANS_IDLE &&
                 pq->session.tx == NULL;
    guard_outcome outcome = resolve(&doubt, &keywords, usable ? pq->conn : NULL, ms, error);
    /* A try that its deadline has cut short leaves the connection busy. */
    if (usable && PQtransactionStatus(pq->conn) != PQTRANS_IDLE) {
        guard_pq_cut(pq);
    }
    guard_pq_call_end(pq, &call);
    guard_pq_keywords_close(&keywords);
    return outcome;
}

guard_outcome guard_pq_resolve_from_at(const char *conninfo, const char *marker_table, const char *text,
                                       const guard_pq_tx_options *options, guard_error *error, const guard_place *place)
{
    guard_pq_doubt doubt;
    guard_pq_keywords keywords;
    if (conninfo == NULL || text == NULL || (marker_table != NULL && !guard_pq_table_is_plain(marker_table))) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "resolving needs a connection text, a token and a plain table");
        return GUARD_IN_DOUBT;
    }
    set_doubt(&doubt, text, options);
    doubt.table = marker_table != NULL ? marker_table : "public.guard_marker";
    guard_outcome outcome = GUARD_IN_DOUBT;
    if (guard_pq_keywords_parse(&keywords, conninfo, &doubt.error) == 0) {
        outcome = resolve(&doubt, &keywords, NULL, guard_pq_or(options != NULL ? options->resolve_ms : 0, 10000),
                          error);
    } else if (error != NULL) {
        *error = doubt.error;
    }
    guard_pq_keywords_close(&keywords);
    return outcome;
}

guard_outcome guard_pq_resolve_tx_at(guard_tx *tx, const guard_pq_tx_options *options, guard_error *error,
                                     const guard_place *place)
{
    if (guard_tx_outcome(tx) != GUARD_IN_DOUBT) {
        return guard_tx_outcome(tx);
    }
    guard_outcome outcome = guard_pq_resolve_at(guard_pq_of(tx), guard_tx_result(tx)->token, options, error, place);
    if (outcome == GUARD_COMMITTED || outcome == GUARD_ROLLED_BACK) {
        guard_tx_settle(tx, outcome);
    }
    return outcome;
}
