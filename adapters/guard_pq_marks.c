/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_marks.c: the marker table, and a session's rows in it.
 *
 *     no id --begin--> (id, 0) --COMMIT acknowledged or rolled back--> (id, seq + 1)
 *       ^                 \----in doubt: the id is retired, its rows stay for the resolver----.
 *       '-------------------------------------------------------------------------------------'
 *
 * Invariants
 *   - A key (id, seq) is in one COMMIT message only, ever: so a row under it is either that transaction's or a resolver's fence.
 *   - What is prepared has the present id in it: a new one is not prepared again.
 *   - The table has one row of nobody's, by which it is known again.
 *   - Rows of a session are deleted by its own later COMMIT or at its orderly close, never once one of them is in doubt.
 *   - The transaction of `kept` deleted the row before its own. So the next one deletes that of `kept`, which is the only one there can be,
 *     by its key: nothing walks over what the session has deleted and nobody has vacuumed.
 *
 * Both are one statement, which the server begins and ends once. It, with the session's id in it, and COMMIT are prepared on connections of the library's own that have a server
 * session to themselves (no pooler), for planning it costs more than running it, and then go in a pipeline; an adopted connection
 * keeps nothing of ours. A program that takes one away (DISCARD ALL, DEALLOCATE) is noticed by the tag, or, where a function did it, by the COMMIT that fails; they
 * are not made again.
 */
#include "guard_pq_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define PUT "guard_marker_put"
#define COMMIT "guard_marker_commit"
/* %s: the table, the session, the row of it that goes; the table, the session, the row that comes. */
#define PUT_SQL                                                        \
    "WITH former AS (DELETE FROM %s WHERE session = %s AND seq = %s) " \
    "INSERT INTO %s (session, seq) VALUES (%s, %s)"

int guard_pq_table_is_plain(const char *name)
{
    int dots = 0;
    int start = 1;
    size_t length = 0;
    for (; name[length] != '\0'; length++) {
        char c = name[length];
        int letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
        if (c == '.') {
            dots++;
        }
        if (c == '.' ? start || dots > 1 : !letter && (start || c < '0' || c > '9')) {
            return 0;
        }
        start = c == '.';
    }
    return !start && length < GUARD_PQ_TABLE_MAX;
}

int guard_pq_random(void *bytes, size_t size)
{
    return getrandom(bytes, size, 0) == (ssize_t)size;
}

/* ----------------------------------------------------------------------------------------- the table's own -- */

/*
 * One row of the table is nobody's: it says which table this is. A table that was emptied, restored or made anew has another one or
 * none, and that a transaction's row is not in it proves nothing. Its seq is random, and its xmin changes when it is put back from a
 * copy; made is infinite, so that whoever deletes old rows leaves it.
 */
/* table_id is "" where there is none. */
static int read_table_id(guard_pq *pq, guard_error *error)
{
    char sql[GUARD_PQ_SQL_MAX];
    PGresult *result = NULL;
    snprintf(sql, sizeof(sql), GUARD_PQ_TABLE_ID_SQL, pq->table);
    int code = guard_pq_query(pq, sql, pq->options.statement_ms, &result, error);
    snprintf(pq->marks.table_id, sizeof(pq->marks.table_id), "%s",
             code == 0 && PQntuples(result) == 1 ? PQgetvalue(result, 0, 0) : "");
    PQclear(result);
    return code;
}

/* ----------------------------------------------------------------------------------------------- a session -- */

static int take_id(guard_pq_session *marks, guard_error *error)
{
    unsigned char b[16];
    if (!guard_pq_random(b, sizeof(b))) {
        guard_error_set(error, GUARD_OS, errno, "no random bytes for a session's id");
        return error->code;
    }
    b[6] = (unsigned char)((b[6] & 0x0fU) | 0x40U); /* RFC 4122, version 4 */
    b[8] = (unsigned char)((b[8] & 0x3fU) | 0x80U);
    snprintf(marks->id, sizeof(marks->id), "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0],
             b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
    marks->seq = 0;
    marks->kept = 0;
    marks->rows = 0;
    marks->two_phase = 0;
    marks->prepared = 0; /* it has the session's id in it */
    return 0;
}

int guard_pq_marks_begin(guard_pq *pq, guard_error *error)
{
    return pq->marks.id[0] != '\0' ? 0 : take_id(&pq->marks, error);
}

/* Where it fails (a name is taken, say) both are sent as text. */
static void prepare(guard_pq *pq)
{
    char sql[GUARD_PQ_SQL_MAX];
    guard_error ignored;
    if (pq->adopted || pq->pooler != GUARD_PQ_POOLER_NONE) {
        return;
    }
    char id[sizeof(pq->marks.id) + 2];
    snprintf(id, sizeof(id), "'%s'", pq->marks.id);
    snprintf(sql, sizeof(sql), "PREPARE " PUT " (bigint, bigint) AS " PUT_SQL, pq->table, id, "$1", pq->table, id,
             "$2");
    /* COMMIT cannot be prepared by SQL. */
    pq->marks.prepared = guard_pq_query(pq, sql, pq->options.statement_ms, NULL, &ignored) == 0 &&
                         PQsendPrepare(pq->conn, COMMIT, "COMMIT", 0, NULL) &&
                         guard_pq_collect(pq, pq->options.statement_ms, NULL, &ignored) == 0;
}

void guard_pq_marks_watch(guard_pq *pq, const char *tag)
{
    if (tag[0] == 'D' && pq->marks.prepared &&
        (strncmp(tag, "DEALLOCATE", 10) == 0 || strcmp(tag, "DISCARD ALL") == 0)) {
        pq->marks.prepared = 0;
    }
}

int guard_pq_marks_check(guard_pq *pq, guard_error *error)
{
    char sql[2 * GUARD_PQ_SQL_MAX];
    PGresult *result = NULL;
    if (pq->marks.checked) {
        return 0;
    }
    snprintf(
        sql, sizeof(sql),
        "SELECT to_regclass('%s') IS NOT NULL, coalesce((SELECT bool_and(has_table_privilege(to_regclass('%s'), p)) "
        "FROM unnest(ARRAY['SELECT', 'INSERT', 'DELETE']) p), false), (SELECT format('%%I.%%I', nspname, relname) FROM "
        "pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = "
        "to_regclass('%s')), " GUARD_PQ_KEEPS_OUT_SQL ", " GUARD_PQ_HAD_TRIGGERS_SQL,
        pq->table, pq->table, pq->table, pq->table, pq->table);
    int code = guard_pq_query(pq, sql, pq->options.statement_ms, &result, error);
    if (code != 0) {
        return code;
    }
    int there = strcmp(PQgetvalue(result, 0, 0), "t") == 0;
    int usable = strcmp(PQgetvalue(result, 0, 1), "t") == 0;
    int keeps_out = strcmp(PQgetvalue(result, 0, 3), "t") == 0;
    pq->marks.bare = strcmp(PQgetvalue(result, 0, 4), "f") == 0;
    /* By its whole name from now on: a search_path that is set later must not lead to another one than the resolver's. */
    if (usable && strlen(PQgetvalue(result, 0, 2)) < sizeof(pq->table)) {
        memcpy(pq->table, PQgetvalue(result, 0, 2), strlen(PQgetvalue(result, 0, 2)) + 1);
    }
    PQclear(result);
    if (!usable) {
        guard_error_set(error, GUARD_PQ, GUARD_PQ_MARKER,
                        there ? "the marker table %s may not be used by this role"
                              : "the marker table %s does not exist",
                        pq->table);
        guard_pq_text(error->hint, sizeof(error->hint),
                      there ? "GRANT SELECT, INSERT, DELETE ON it." : "guard_pq_marker_install makes it.");
        return error->code;
    }
    if (keeps_out) {
        guard_error_set(error, GUARD_PQ, GUARD_PQ_MARKER,
                        "the marker table %s has a rule or a BEFORE INSERT trigger, or is no table", pq->table);
        guard_pq_text(error->hint, sizeof(error->hint), "Drop it: outcomes are told by the rows that it may keep out.");
        return error->code;
    }
    code = read_table_id(pq, error);
    if (code == 0 && pq->marks.table_id[0] == '\0') {
        guard_error_set(error, GUARD_PQ, GUARD_PQ_MARKER, "the marker table %s was emptied", pq->table);
        guard_pq_text(error->hint, sizeof(error->hint), "guard_pq_marker_install puts its first row back.");
        code = error->code;
    }
    pq->marks.checked = code == 0;
    code = code != 0 ? code : guard_pq_marks_begin(pq, error);
    if (code == 0 && !pq->marks.prepared) {
        prepare(pq);
    }
    return code;
}

/* As text, into 21 bytes. Not by printf, which would be a tenth of all that the client does in a transaction. */
static void put_number(char *to, uint64_t number)
{
    char digits[20];
    size_t first = sizeof(digits);
    do {
        digits[--first] = (char)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    memcpy(to, digits + first, sizeof(digits) - first);
    to[sizeof(digits) - first] = '\0';
}

int guard_pq_marks_send_commit(guard_pq *pq)
{
    guard_pq_session *m = &pq->marks;
    char kept[21];
    char seq[21];
    const char *values[] = {kept, seq};
    m->seq++;
    m->rows = 1;
    put_number(kept, m->kept);
    put_number(seq, m->seq);
    return guard_pq_message_open(pq) && PQsendQueryPrepared(pq->conn, PUT, 2, values, NULL, NULL, 0) &&
           PQsendQueryPrepared(pq->conn, COMMIT, 0, NULL, NULL, NULL, 0) && guard_pq_message_send(pq, 2);
}

int guard_pq_marks_sql(guard_pq *pq, char *sql, size_t size)
{
    guard_pq_session *m = &pq->marks;
    char id[sizeof(m->id) + 2];
    char kept[24];
    char seq[24];
    m->seq++;
    m->rows = 1;
    snprintf(id, sizeof(id), "'%s'", m->id);
    snprintf(kept, sizeof(kept), "%" PRIu64, m->kept);
    snprintf(seq, sizeof(seq), "%" PRIu64, m->seq);
    return snprintf(sql, size, PUT_SQL "; ", pq->table, id, kept, pq->table, id, seq);
}

/*
 * Also where it was prepared: its row is not seen before COMMIT PREPARED, and the row that it deletes must not be waited for by the
 * next transaction of the session.
 */
void guard_pq_marks_done(guard_pq *pq)
{
    pq->marks.kept = pq->marks.seq;
    pq->marks.two_phase |= pq->t.prepare_as != NULL;
}

void guard_pq_marks_failed(guard_pq *pq, const char *sqlstate)
{
    if (pq->marks.prepared && strcmp(sqlstate, "26000") == 0) {
        pq->marks.prepared = 0;
        pq->t.retry = 1; /* by text it goes */
    }
    if (strncmp(sqlstate, "42", 2) == 0 || strncmp(sqlstate, "0A", 2) == 0) {
        pq->marks.checked = 0; /* the table is gone, may not be used any more, or has a rule: the next BEGIN says so */
    }
}

void guard_pq_marks_kept_out(guard_pq *pq)
{
    pq->marks.checked = 0;
}

/* How long a row is waited for: a lock of the whole table's is no reason to hold its session up, or to give an adopted connection up. */
enum { LOCK_MS = 500 };

static int lock_ms(guard_pq_deadline deadline)
{
    int left = guard_pq_left(deadline);
    return left < 0 || left / 2 > LOCK_MS ? LOCK_MS : left / 2 + 1;
}

static void delete_rows(guard_pq *pq, int lock_timeout, uint64_t first, guard_pq_deadline deadline)
{
    char sql[GUARD_PQ_SQL_MAX];
    guard_error ignored;
    snprintf(sql, sizeof(sql),
             "BEGIN; SET LOCAL synchronous_commit = off; SET LOCAL lock_timeout = %d; "
             "DELETE FROM %s WHERE session = '%s' AND seq >= %" PRIu64 "; COMMIT",
             lock_timeout, pq->table, pq->marks.id, first);
    guard_pq_query_on(pq->conn, sql, NULL, deadline, NULL, &ignored);
    if (PQtransactionStatus(pq->conn) != PQTRANS_IDLE) {
        guard_pq_roll_back(pq, "ROLLBACK", deadline, &ignored);
    }
}

void guard_pq_marks_close(guard_pq *pq, guard_pq_deadline deadline)
{
    guard_pq_session *m = &pq->marks;
    if (!m->rows || m->id[0] == '\0' || pq->conn == NULL || pq->cut || pq->session.poison.code != 0 ||
        PQtransactionStatus(pq->conn) != PQTRANS_IDLE || guard_pq_is_dead(pq)) {
        return;
    }
    /*
     * Nobody waits for this row's end, so neither do we for the disk. What is before `kept` is there only where a PREPARE TRANSACTION
     * is to delete it, which is not waited for.
     */
    delete_rows(pq, lock_ms(deadline), m->kept, deadline);
    if (m->two_phase && !pq->cut) {
        delete_rows(pq, 1, 0, deadline); /* what was before one that is over meanwhile */
    }
    m->rows = 0;
}

/* ------------------------------------------------------------------------------------------------ install -- */

/*
 * Two that install at once: CREATE TABLE IF NOT EXISTS and GRANT fail on each other's catalogue rows. In front of a statement, in its
 * message, so that both are one transaction. The number is "guardmrk".
 */
#define ONE_AT_A_TIME "SELECT pg_advisory_xact_lock(7455559024046598763); "

static int is_there(guard_pq *pq, const guard_place *place)
{
    char sql[GUARD_PQ_SQL_MAX];
    snprintf(sql, sizeof(sql), "SELECT (to_regclass('%s') IS NOT NULL)::int", pq->table);
    return guard_pq_query_int64_at(pq, sql, 0, place) != 0;
}

/* Locked only where the row is missing: a COMMIT that hangs would hold it up. */
static void install_table_id(guard_pq *pq, const guard_place *place)
{
    char sql[GUARD_PQ_SQL_MAX];
    uint64_t id;
    guard_error error;
    snprintf(sql, sizeof(sql), "SELECT count(*) FROM %s WHERE session = '" GUARD_PQ_NOBODY "'", pq->table);
    if (guard_pq_query_int64_at(pq, sql, 0, place) > 0) {
        return;
    }
    if (!guard_pq_random(&id, sizeof(id))) {
        guard_error_set(&error, GUARD_OS, errno, "no random bytes for the marker table's id");
        guard_impl_panic_error(place, &error);
    }
    snprintf(sql, sizeof(sql),
             ONE_AT_A_TIME
             "LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE; INSERT INTO %s (session, seq, fenced, made) SELECT "
             "'" GUARD_PQ_NOBODY "', %" PRIu64
             ", true, 'infinity' WHERE NOT EXISTS (SELECT FROM %s WHERE session = '" GUARD_PQ_NOBODY "')",
             pq->table, pq->table, id >> 2, pq->table);
    guard_pq_exec_at(NULL, pq, sql, place);
}

/* "quoted", for a role's name; 0 when it does not fit. */
static int quote_identifier(char *to, size_t size, const char *name)
{
    size_t length = 0;
    for (const char *from = name; length + 4 < size; from++) {
        if (from == name) {
            to[length++] = '"';
        }
        if (*from == '"') {
            to[length++] = '"';
        }
        to[length++] = *from == '\0' ? '"' : *from;
        if (*from == '\0') {
            to[length] = '\0';
            return 1;
        }
    }
    return 0;
}

/* The role also has to get into the table's schema. */
static void grant_schema(guard_pq *pq, const char *role, const char *literal, const guard_place *place)
{
    char sql[GUARD_PQ_SQL_MAX];
    GUARD_AUTO(s);
    snprintf(sql, sizeof(sql),
             "SELECT quote_ident(nspname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = "
             "to_regclass('%s') AND NOT has_schema_privilege(%s, n.oid, 'USAGE')",
             pq->table, literal);
    PGresult *rows = guard_pq_exec_at(s, pq, sql, place);
    if (PQntuples(rows) == 1) {
        snprintf(sql, sizeof(sql), ONE_AT_A_TIME "GRANT USAGE ON SCHEMA %s TO %s", PQgetvalue(rows, 0, 0), role);
        guard_pq_exec_at(NULL, pq, sql, place);
    }
}

/* The server only warns of a GRANT that has granted nothing, as to whoever does not own the table. */
static void check_grants(guard_pq *pq, const char *role, const char *literal, const guard_place *place)
{
    char sql[GUARD_PQ_SQL_MAX];
    snprintf(
        sql, sizeof(sql),
        "SELECT coalesce((SELECT has_table_privilege(%s, oid, 'SELECT') AND has_table_privilege(%s, oid, 'INSERT') "
        "AND has_table_privilege(%s, oid, 'DELETE') AND has_schema_privilege(%s, relnamespace, 'USAGE') FROM "
        "pg_class WHERE oid = to_regclass('%s')), false)::int",
        literal, literal, literal, literal, pq->table);
    if (guard_pq_query_int64_at(pq, sql, 0, place) == 0) {
        guard_impl_panic(place, GUARD_PQ, GUARD_PQ_MARKER,
                         "the marker table %s could not be granted to %s: its owner has to do that", pq->table, role);
    }
}

static void grant_to(guard_pq *pq, const char *role, const char *literal, const guard_place *place)
{
    char sql[GUARD_PQ_SQL_MAX];
    snprintf(sql, sizeof(sql), ONE_AT_A_TIME "GRANT SELECT, INSERT, DELETE ON %s TO %s", pq->table, role);
    guard_pq_exec_at(NULL, pq, sql, place);
    grant_schema(pq, role, literal, place);
    check_grants(pq, role, literal, place);
}

void guard_pq_marker_install_at(guard_pq *pq, const char *role, const guard_place *place)
{
    char sql[GUARD_PQ_SQL_MAX];
    char quoted[160];
    guard_error error;
    char literal[160];
    guard_pq_enter(pq, NULL, place);
    if (pq->conn != NULL && PQtransactionStatus(pq->conn) != PQTRANS_IDLE) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "guard_pq_marker_install inside a transaction");
        return;
    }
    if (role != NULL && !quote_identifier(quoted, sizeof(quoted), role)) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the role's name is too long");
        return;
    }
    if (role != NULL && pq->conn != NULL && guard_pq_literal(pq->conn, literal, sizeof(literal), role, &error) != 0) {
        guard_impl_panic_error(place, &error);
    }
    if (!is_there(pq, place)) {
        snprintf(sql, sizeof(sql),
                 ONE_AT_A_TIME
                 "CREATE TABLE IF NOT EXISTS %s (session uuid NOT NULL, seq bigint NOT NULL, fenced boolean NOT NULL "
                 "DEFAULT false, made timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (session, seq))",
                 pq->table);
        guard_pq_exec_at(NULL, pq, sql, place);
    }
    install_table_id(pq, place);
    if (role != NULL) {
        grant_to(pq, quoted, literal, place);
    }
}
