/* SPDX-License-Identifier: MIT */
/* guard_pq_error.c: errors of the server and of libpq as guard_error, without secrets. */
#include "guard_pq_internal.h"

#include <errno.h>
#include <string.h>

/* Copies as much as fits, in one line, cut at a character of UTF-8. */
void guard_pq_text(char *to, size_t size, const char *from)
{
    size_t length = 0;
    for (; from != NULL && *from != '\0' && length + 1 < size; from++) {
        char c = *from == '\n' || *from == '\t' || *from == '\r' ? ' ' : *from;
        if (c == ' ' && (length == 0 || to[length - 1] == ' ')) {
            continue;
        }
        to[length++] = c;
    }
    if (from != NULL && *from != '\0') {
        size_t tail = 0; /* the bytes of a character that follow its first one: 3 at most, where it is UTF-8 */
        while (tail < 3 && tail < length && ((unsigned char)to[length - 1 - tail] & 0xC0U) == 0x80U) {
            tail++;
        }
        if (tail < length && (unsigned char)to[length - 1 - tail] >= 0xC0U) {
            length -= tail + 1;
        }
    }
    while (length > 0 && to[length - 1] == ' ') {
        length--;
    }
    to[length] = '\0';
}

/* libpq and the server have no reason to repeat the password; but what they say is not ours to promise. */
static void strike_password(PGconn *conn, char *text)
{
    const char *password = conn != NULL ? PQpass(conn) : NULL;
    size_t length = password != NULL ? strlen(password) : 0;
    if (length == 0) {
        return;
    }
    for (char *at = text; (at = strstr(at, password)) != NULL; at += length) {
        memset(at, '*', length);
    }
}

int guard_pq_error_result(PGconn *conn, const PGresult *result, guard_error *error)
{
    int lost = conn == NULL || PQstatus(conn) == CONNECTION_BAD;
    const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);
    const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
    if (message == NULL) {
        message = PQresultErrorMessage(result);
    }
    if (message[0] == '\0' && conn != NULL) {
        message = PQerrorMessage(conn);
    }
    guard_error_set(error, GUARD_PQ,
                    lost               ? GUARD_PQ_CONNECTION
                    : sqlstate != NULL ? GUARD_PQ_SERVER
                                       : GUARD_PQ_CLIENT,
                    "%s", "");
    guard_pq_text(error->sqlstate, sizeof(error->sqlstate), sqlstate);
    guard_pq_text(error->message, sizeof(error->message), message);
    guard_pq_text(error->detail, sizeof(error->detail), PQresultErrorField(result, PG_DIAG_MESSAGE_DETAIL));
    guard_pq_text(error->hint, sizeof(error->hint), PQresultErrorField(result, PG_DIAG_MESSAGE_HINT));
    guard_pq_text(error->constraint, sizeof(error->constraint), PQresultErrorField(result, PG_DIAG_CONSTRAINT_NAME));
    strike_password(conn, error->message);
    strike_password(conn, error->detail);
    return error->code;
}

int guard_pq_error_conn(PGconn *conn, guard_error *error, const char *doing)
{
    int lost = conn == NULL || PQstatus(conn) == CONNECTION_BAD;
    char message[sizeof(error->message)];
    guard_pq_text(message, sizeof(message), conn != NULL ? PQerrorMessage(conn) : "the program has closed it");
    strike_password(conn, message);
    if (message[0] == '\0') {
        guard_pq_text(message, sizeof(message), "libpq gives no reason");
    }
    guard_error_set(error, GUARD_PQ, lost ? GUARD_PQ_CONNECTION : GUARD_PQ_CLIENT, "%s: %s", doing, message);
    return error->code;
}

int guard_pq_error_timeout(guard_error *error, const char *what, int32_t ms)
{
    if (guard_checkpoint_error(error) != 0) {
        return error->code; /* it was not the wait's own deadline */
    }
    if (ms > 0) {
        guard_error_set(error, GUARD_TIMEOUT, ETIMEDOUT, "%s took longer than %d ms", what, (int)ms);
    } else {
        guard_error_set(error, GUARD_TIMEOUT, ETIMEDOUT, "%s did not come in time", what);
    }
    return error->code;
}

int guard_pq_error_gone(guard_error *error)
{
    guard_error_set(error, GUARD_PQ, GUARD_PQ_CONNECTION, "the connection to the server is lost");
    return error->code;
}

int guard_pq_is_retryable(const char *sqlstate)
{
    return strcmp(sqlstate, "40001") == 0 || strcmp(sqlstate, "40P01") == 0;
}
