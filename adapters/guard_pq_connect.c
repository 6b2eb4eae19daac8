/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_connect.c: connecting with a deadline, over several hosts.
 *
 * PQconnectPoll knows no time: a host that takes the connection and is silent would hold it for ever, and libpq's connect_timeout
 * counts only where libpq itself waits. So each host has an equal share of what is left; when its share has passed, connecting is
 * begun anew with the hosts behind it.
 */
#include "guard_pq_internal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------ keywords -- */

static int take_options(guard_pq_keywords *keywords, PQconninfoOption *options, guard_error *error)
{
    keywords->count = 0;
    keywords->options = options;
    if (options == NULL) {
        guard_error_set(error, GUARD_MEMORY, ENOMEM, "out of memory for the connection's parameters");
        return error->code;
    }
    for (PQconninfoOption *o = options; o->keyword != NULL; o++) {
        if (o->val != NULL && o->val[0] != '\0' && keywords->count < GUARD_PQ_KEYWORDS_MAX) {
            keywords->names[keywords->count] = o->keyword;
            keywords->values[keywords->count++] = o->val;
        }
    }
    keywords->names[keywords->count] = NULL;
    keywords->values[keywords->count] = NULL;
    return 0;
}

static const char **value_of(guard_pq_keywords *keywords, const char *name)
{
    for (int i = 0; i < keywords->count; i++) {
        if (strcmp(keywords->names[i], name) == 0) {
            return &keywords->values[i];
        }
    }
    return NULL;
}

/* Hosts that libpq would take from the environment are named, so that those which were tried can be left out. */
static void add_environment(guard_pq_keywords *keywords)
{
    static const char *const lists[][2] = {{"host", "PGHOST"}, {"hostaddr", "PGHOSTADDR"}, {"port", "PGPORT"}};
    if (value_of(keywords, "service") != NULL || getenv("PGSERVICE") != NULL || value_of(keywords, "host") != NULL ||
        value_of(keywords, "hostaddr") != NULL) {
        return;
    }
    for (int i = 0; i < 3; i++) {
        const char *value = getenv(lists[i][1]);
        if (value != NULL && value[0] != '\0' && value_of(keywords, lists[i][0]) == NULL) {
            guard_pq_keywords_set(keywords, lists[i][0], value);
        }
    }
}

int guard_pq_keywords_parse(guard_pq_keywords *keywords, const char *conninfo, guard_error *error)
{
    char *why = NULL;
    PQconninfoOption *options = PQconninfoParse(conninfo, &why);
    if (options == NULL) {
        /* libpq's reason repeats parts of the text, and a misplaced quote makes the password one of them. */
        int known = why != NULL;
        PQfreemem(why);
        guard_error_set(error, known ? GUARD_PQ : GUARD_MEMORY, known ? GUARD_PQ_CONNECTION : ENOMEM,
                        known ? "the connection text is not valid (it is not shown: it may hold a password)"
                              : "out of memory for the connection text");
        keywords->options = NULL;
        keywords->count = 0;
        return error->code;
    }
    int code = take_options(keywords, options, error);
    if (code == 0) {
        add_environment(keywords);
    }
    return code;
}

void guard_pq_keywords_set(guard_pq_keywords *keywords, const char *name, const char *value)
{
    int i = 0;
    while (i < keywords->count && strcmp(keywords->names[i], name) != 0) {
        i++;
    }
    if (i == GUARD_PQ_KEYWORDS_MAX) {
        return;
    }
    keywords->names[i] = name;
    keywords->values[i] = value;
    if (i == keywords->count) {
        keywords->count++;
        keywords->names[keywords->count] = NULL;
        keywords->values[keywords->count] = NULL;
    }
}

/* PQclientEncoding has none for a connection that is lost. */
int guard_pq_encoding(PGconn *conn)
{
    const char *name = PQparameterStatus(conn, "client_encoding");
    return name != NULL ? pg_char_to_encoding(name) : -1;
}

/* With the encoding that the program has set since: names, keys and probes are written in it. */
int guard_pq_keywords_of(guard_pq_keywords *keywords, PGconn *conn, guard_error *error)
{
    int code = take_options(keywords, PQconninfo(conn), error);
    int encoding = guard_pq_encoding(conn);
    if (code == 0 && encoding >= 0) {
        guard_pq_keywords_set(keywords, "client_encoding", pg_encoding_to_char(encoding));
    }
    return code;
}

void guard_pq_keywords_close(guard_pq_keywords *keywords)
{
    PQconninfoFree(keywords->options);
    keywords->options = NULL;
    keywords->count = 0;
}

/* ------------------------------------------------------------------------------------------------ hosts -- */

static int list_length(const char *list)
{
    int length = 1;
    for (; list != NULL && *list != '\0'; list++) {
        length += *list == ',';
    }
    return length;
}

/* The list without its first entry; a list of one is for all hosts. */
static void drop_first(const char **list)
{
    const char *comma = list != NULL ? strchr(*list, ',') : NULL;
    if (comma != NULL) {
        *list = comma + 1;
    }
}

typedef struct hosts {
    int count; /* in the lists now; 1 where we do not share the time out */
    int seen;  /* libpq is at this one, from 1 */
    char host[256];
    char port[16];
    guard_pq_deadline share_ends;
} hosts;

/* Two rounds over the hosts, or in another order than the list's: left to libpq. */
static int keeps_order(guard_pq_keywords *keywords)
{
    const char **attributes = value_of(keywords, "target_session_attrs");
    const char **balance = value_of(keywords, "load_balance_hosts");
    return (attributes == NULL || strcmp(*attributes, "prefer-standby") != 0) &&
           (balance == NULL || strcmp(*balance, "disable") == 0);
}

static void hosts_count(hosts *h, guard_pq_keywords *keywords)
{
    const char **list = value_of(keywords, "hostaddr");
    if (list == NULL) {
        list = value_of(keywords, "host");
    }
    h->count = list != NULL && keeps_order(keywords) ? list_length(*list) : 1;
}

static void hosts_watch(hosts *h, PGconn *conn, guard_pq_deadline deadline)
{
    const char *host = PQhost(conn) != NULL ? PQhost(conn) : "";
    const char *port = PQport(conn) != NULL ? PQport(conn) : "";
    if (h->seen > 0 && strncmp(h->host, host, sizeof(h->host) - 1) == 0 &&
        strncmp(h->port, port, sizeof(h->port) - 1) == 0) {
        return;
    }
    guard_pq_text(h->host, sizeof(h->host), host);
    guard_pq_text(h->port, sizeof(h->port), port);
    h->seen++;
    int left = h->count - h->seen + 1;
    h->share_ends = left > 1 && deadline != GUARD_PQ_NEVER ? guard_pq_now() + guard_pq_left(deadline) / left : deadline;
}

/* ---------------------------------------------------------------------------------------------- connecting -- */

/* PGRES_POLLING_OK, _FAILED, or _READING when the host's share or all of the time has passed. */
static PostgresPollingStatusType poll_hosts(PGconn *conn, hosts *h, guard_pq_deadline deadline)
{
    PostgresPollingStatusType next = PGRES_POLLING_WRITING;
    while (next == PGRES_POLLING_READING || next == PGRES_POLLING_WRITING) {
        hosts_watch(h, conn, deadline);
        if (!guard_pq_poll(conn, next == PGRES_POLLING_READING ? POLLIN : POLLOUT, h->share_ends)) {
            return PGRES_POLLING_READING;
        }
        next = PQconnectPoll(conn);
    }
    return next;
}

/* Takes the hosts that were tried off the lists; 0 when there is none behind them. */
static int skip_hosts(guard_pq_keywords *keywords, const hosts *h)
{
    if (h->seen >= h->count) {
        return 0;
    }
    for (int i = 0; i < h->seen; i++) {
        drop_first(value_of(keywords, "host"));
        drop_first(value_of(keywords, "hostaddr"));
        drop_first(value_of(keywords, "port"));
    }
    return 1;
}

static PGconn *connect_once(guard_pq_keywords *keywords, guard_pq_deadline deadline, guard_error *error, int *again)
{
    hosts h = {0};
    PGconn *conn = PQconnectStartParams(keywords->names, keywords->values, 0);
    *again = 0;
    if (conn == NULL) {
        guard_error_set(error, GUARD_MEMORY, ENOMEM, "out of memory for a connection");
        return NULL;
    }
    if (PQstatus(conn) == CONNECTION_BAD) {
        guard_pq_error_conn(conn, error, "connecting");
        PQfinish(conn);
        return NULL;
    }
    hosts_count(&h, keywords);
    switch (poll_hosts(conn, &h, deadline)) {
    case PGRES_POLLING_OK:
        PQsetnonblocking(conn, 1);
        return conn;
    case PGRES_POLLING_FAILED:
        guard_pq_error_conn(conn, error, "connecting");
        break;
    default:
        if (guard_checkpoint_error(error) == 0) {
            guard_error_set(error, GUARD_TIMEOUT, ETIMEDOUT, "connecting to %s, port %s, took too long", h.host,
                            h.port);
            *again = skip_hosts(keywords, &h);
        }
        break;
    }
    PQfinish(conn);
    return NULL;
}

PGconn *guard_pq_connect(guard_pq_keywords *keywords, guard_pq_deadline deadline, guard_error *error)
{
    int again;
    PGconn *conn;
    guard_error first;
    int failed = 0;
    do {
        conn = connect_once(keywords, deadline, error, &again);
        if (conn == NULL && !failed) {
            first = *error;
            failed = 1;
        } else if (conn == NULL) {
            guard_error_attach(&first, error, GUARD_ATTACHED);
        }
    } while (conn == NULL && again && guard_pq_left(deadline) != 0);
    if (conn == NULL) {
        *error = first;
    }
    return conn;
}

/* ------------------------------------------------------------------------------------------------ telling -- */

/* As libpq marks them: "*" is a password, "D" is for libpq's own debugging. */
size_t guard_pq_conninfo(guard_pq *pq, char *text, size_t size)
{
    size_t length = 0;
    PQconninfoOption *options = guard_pq_is_given(pq) && pq->conn != NULL ? PQconninfo(pq->conn) : NULL;
    if (size > 0) {
        text[0] = '\0';
    }
    for (PQconninfoOption *o = options; o != NULL && o->keyword != NULL; o++) {
        if (o->val == NULL || o->val[0] == '\0' || o->dispchar[0] != '\0') {
            continue;
        }
        int n = snprintf(length < size ? text + length : NULL, length < size ? size - length : 0, "%s%s='",
                         length > 0 ? " " : "", o->keyword);
        length += n > 0 ? (size_t)n : 0;
        for (const char *from = o->val;; from++) {
            char c = *from == '\0' ? '\'' : *from;
            if (*from == '\'' || *from == '\\') {
                if (length + 1 < size) {
                    text[length] = '\\';
                }
                length++;
            }
            if (length + 1 < size) {
                text[length] = c;
            }
            length++;
            if (*from == '\0') {
                break;
            }
        }
        if (size > 0) {
            text[length < size ? length : size - 1] = '\0';
        }
    }
    PQconninfoFree(options);
    return length;
}
