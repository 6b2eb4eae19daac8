/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_scan.c: what a text of SQL may do.
 *
 * Whether it may end the transaction by itself: one of its statements begins with COMMIT, END or PREPARE TRANSACTION, or with EXECUTE where
 * one of these was prepared. It is asked only when the answer to the text was lost, so that the library does not know what the server did.
 *
 * Whether it only reads and writes rows, by its first word: then it may share BEGIN's message.
 *
 * Quoted text, comments and dollar-quoted bodies are passed over as the server does
 * (https://www.postgresql.org/docs/15/sql-syntax-lexical.html), as END is an ordinary word in them.
 */
#include "guard_pq_internal.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

/* Behind the closing quote, or the end of the text. */
static const char *skip_quoted(const char *at, char quote, int backslashes)
{
    for (at++; *at != '\0'; at++) {
        if (*at == '\\' && backslashes && at[1] != '\0') {
            at++;
        } else if (*at == quote) {
            return at + 1; /* a doubled quote opens the next text at once */
        }
    }
    return at;
}

/* Where text of the same kind goes on after the closing quote: behind blanks with a line's end and comments among them. Else NULL. */
static const char *continuation(const char *at)
{
    int lines = 0;
    for (;; at++) {
        if (at[0] == '-' && at[1] == '-') {
            at += strcspn(at, "\n\r");
        }
        lines |= *at == '\n' || *at == '\r';
        if (*at == '\0' || !isspace((unsigned char)*at)) {
            return *at == '\'' && lines ? at : NULL;
        }
    }
}

/* E'...': backslashes escape in it, and in what continues it, which has no E. */
static const char *skip_escaped(const char *at)
{
    const char *end = skip_quoted(at, '\'', 1);
    while ((at = continuation(end)) != NULL) {
        end = skip_quoted(at, '\'', 1);
    }
    return end;
}

static const char *skip_comment(const char *at)
{
    int depth = 0;
    do {
        if (at[0] == '/' && at[1] == '*') {
            depth++;
            at += 2;
        } else if (at[0] == '*' && at[1] == '/') {
            depth--;
            at += 2;
        } else {
            at++;
        }
    } while (depth > 0 && *at != '\0');
    return at;
}

/* $tag$ ... $tag$, or one character where it is something else, such as the parameter $1. */
static const char *skip_dollar(const char *at)
{
    const char *end = at + 1;
    while (isalnum((unsigned char)*end) || *end == '_' || (unsigned char)*end >= 0x80) {
        end++;
    }
    if (*end != '$' || isdigit((unsigned char)at[1])) {
        return at + 1;
    }
    size_t length = (size_t)(end + 1 - at);
    for (const char *close = end + 1; (close = strchr(close, '$')) != NULL; close++) {
        if (strncmp(close, at, length) == 0) {
            return close + length;
        }
    }
    return at + strlen(at);
}

static size_t word_length(const char *at)
{
    size_t length = 0;
    while (isalnum((unsigned char)at[length]) || at[length] == '_' || at[length] == '$' ||
           (unsigned char)at[length] >= 0x80) {
        length++;
    }
    return length;
}

static int is_word(const char *at, size_t length, const char *word)
{
    return length == strlen(word) && strncasecmp(at, word, length) == 0;
}

/* PREPARE name AS is taken for PREPARE TRANSACTION: a transaction too many is then in doubt, never one too few. */
static int begins_an_end(const char *at, size_t length, int execute)
{
    return is_word(at, length, "commit") || is_word(at, length, "end") || is_word(at, length, "prepare") ||
           (execute && is_word(at, length, "execute"));
}

int guard_pq_sql_may_end(const char *sql, int backslashes, int one_statement, int execute)
{
    int first = 1; /* nothing of the statement has been seen yet */
    while (*sql != '\0' && (first || !one_statement)) {
        size_t length = word_length(sql);
        if (*sql == '$') {
            sql = skip_dollar(sql);
        } else if (length > 0) {
            if (first && begins_an_end(sql, length, execute)) {
                return 1;
            }
            first = 0;
            int escapes = length == 1 && (*sql == 'e' || *sql == 'E') && sql[1] == '\'';
            sql = escapes ? skip_escaped(sql + 1) : sql + length;
        } else if (*sql == '\'') {
            sql = skip_quoted(sql, '\'', backslashes);
        } else if (*sql == '"') {
            sql = skip_quoted(sql, '"', 0);
        } else if (sql[0] == '-' && sql[1] == '-') {
            sql += strcspn(sql, "\n\r");
        } else if (sql[0] == '/' && sql[1] == '*') {
            sql = skip_comment(sql);
        } else {
            first = *sql == ';' || (first && isspace((unsigned char)*sql));
            sql++;
        }
    }
    return 0;
}

int guard_pq_sql_is_of_rows(const char *sql)
{
    static const char *const words[] = {"select", "insert", "update", "delete", "merge", "with", "values"};
    for (;;) {
        if (sql[0] == '-' && sql[1] == '-') {
            sql += strcspn(sql, "\n\r");
        } else if (sql[0] == '/' && sql[1] == '*') {
            sql = skip_comment(sql);
        } else if (isspace((unsigned char)*sql)) {
            sql++;
        } else {
            break;
        }
    }
    size_t length = word_length(sql);
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (is_word(sql, length, words[i])) {
            return 1;
        }
    }
    return 0;
}
