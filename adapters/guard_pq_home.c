/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_home.c: which server, database and history a transaction belongs to.
 *
 * That a row is not there proves a rollback only where the row would be. A list of hosts, a name that moved or a mistaken connection
 * text may lead whoever resolves to another cluster, to another database of it, to a standby that is behind, or to a former primary
 * that does not know yet that it was replaced. So a token says where its transaction ran:
 *
 *     SYSTEM.DATABASE.TIMELINE   pg_control_system().system_identifier, the database's oid, 8 hexadecimal digits
 *
 * A timeline only grows with each promotion: what is not there on a later one is lost to everybody, what is not there on an earlier
 * one may be on ours. An engine without these functions, or a role that may not call them, has no home, and then nothing is compared, but
 * a standby is known as one. A standby has no timeline of its own, and its sessions outlive its promotion: then they ask again.
 */
#include "guard_pq_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char home_sql[] =
    "SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()), (SELECT oid FROM pg_database "
    "WHERE datname = current_database()), CASE WHEN pg_is_in_recovery() THEN '' ELSE "
    "substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END, current_setting('synchronous_standby_names') <> ''";

/* The engine has no such function, or this role may not call it. */
static int is_unknown_there(const guard_error *error)
{
    return strncmp(error->sqlstate, "42", 2) == 0 || strncmp(error->sqlstate, "0A", 2) == 0;
}

/* Where it is not said. That it is a standby still has to be known: it gives the lock of a probe at once, and may be behind. */
static int read_standby(PGconn *conn, guard_pq_deadline deadline, guard_pq_home *home, guard_error *error)
{
    PGresult *result = NULL;
    int code = guard_pq_query_on(conn,
                                 "SELECT pg_is_in_recovery(), current_setting('synchronous_standby_names', true) <> ''",
                                 NULL, deadline, &result, error);
    if (code == 0 && PQntuples(result) == 1) {
        home->standby = strcmp(PQgetvalue(result, 0, 0), "t") == 0;
        home->synchronous = strcmp(PQgetvalue(result, 0, 1), "t") == 0;
    }
    PQclear(result);
    return code != 0 && is_unknown_there(error) ? 0 : code;
}

int guard_pq_home_read(PGconn *conn, guard_pq_deadline deadline, guard_pq_home *home, guard_error *error)
{
    PGresult *result = NULL;
    memset(home, 0, sizeof(*home));
    int code = guard_pq_query_on(conn, home_sql, NULL, deadline, &result, error);
    if (code == 0 && PQntuples(result) == 1) {
        home->standby = strcmp(PQgetvalue(result, 0, 0), "t") == 0;
        home->synchronous = strcmp(PQgetvalue(result, 0, 4), "t") == 0;
        snprintf(home->text, sizeof(home->text), "%.20s.%.10s.%.8s", PQgetvalue(result, 0, 1), PQgetvalue(result, 0, 2),
                 PQgetvalue(result, 0, 3));
    }
    PQclear(result);
    return code != 0 && is_unknown_there(error) ? read_standby(conn, deadline, home, error) : code;
}

static int is_promoted(guard_pq *pq)
{
    if (!pq->home.standby) {
        return 0; /* libpq searches a list for a parameter */
    }
    const char *standby = PQparameterStatus(pq->conn, "in_hot_standby");
    return standby == NULL || strcmp(standby, "on") != 0;
}

int guard_pq_home_check(guard_pq *pq, guard_error *error)
{
    if (pq->home_known && !is_promoted(pq)) {
        return 0;
    }
    int code = guard_pq_home_read(pq->conn, guard_pq_in(pq->options.statement_ms), &pq->home, error);
    pq->home_known = code == 0;
    return code;
}

int guard_pq_home_is_text(const char *text)
{
    size_t digits = strspn(text, "0123456789");
    if (text[0] == '\0') {
        return 1;
    }
    return digits > 0 && strspn(text + digits, ".0123456789ABCDEF") == strlen(text + digits) &&
           strlen(text) < GUARD_PQ_HOME_MAX && strchr(text, '.') != strrchr(text, '.');
}

guard_pq_place_verdict guard_pq_home_compare(const char *of_token, const guard_pq_home *found)
{
    if (of_token[0] == '\0' || found->text[0] == '\0') {
        return GUARD_PQ_PLACE_SAME;
    }
    size_t length = (size_t)(strrchr(of_token, '.') - of_token);
    if (strncmp(of_token, found->text, length + 1) != 0) {
        return GUARD_PQ_PLACE_OTHER;
    }
    unsigned long then = strtoul(of_token + length + 1, NULL, 16);
    unsigned long now = strtoul(found->text + length + 1, NULL, 16);
    return now < then ? GUARD_PQ_PLACE_OLDER : GUARD_PQ_PLACE_SAME;
}
