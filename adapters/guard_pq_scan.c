/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_scan.c: what a text of SQL may do.
 *
 * Whether it may end the transaction by itself: one of its statements begins with COMMIT, END or PREPARE TRANSACTION, or with EXECUTE where
 * one of these was prepared. It is asked only when the answer to the text was lost, so that the library does not know what the server did.
 *
 * Whether it is ROLLBACK AND CHAIN, whose answer is that of ROLLBACK TO, as that of COMMIT AND CHAIN in an aborted transaction is: asked only when such an answer was read, or is not read yet.
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

/* Bytes of a character; of one that the text's end cuts off, those that are there. */
static size_t width(const char *at, int encoding)
{
    int bytes = (unsigned char)*at >= 0x80 ? PQmblen(at, encoding) : 1;
    return bytes > 1 ? strnlen(at, (size_t)bytes) : 1;
}

/* Behind the closing quote, or the end of the text. */
static const char *skip_quoted(const char *at, char quote, int backslashes, int encoding)
{
    for (at++; *at != '\0'; at += width(at, encoding)) {
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
static const char *skip_escaped(const char *at, int encoding)
{
    const char *end = skip_quoted(at, '\'', 1, encoding);
    while ((at = continuation(end)) != NULL) {
        end = skip_quoted(at, '\'', 1, encoding);
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

/* A walk over the words of a text that are not quoted. */
typedef struct walk {
    const char *at;
    const guard_pq_spelling *spelling;
    int fresh;        /* nothing of the statement has been seen yet */
    int begins;       /* the word is its statement's first */
    const char *word; /* and its length */
    size_t length;
} walk;

/* 1 when there is another one. */
static int next_word(walk *w)
{
    const char *at = w->at;
    while (*at != '\0') {
        size_t length = word_length(at);
        if (*at == '$') {
            at = skip_dollar(at);
        } else if (length > 0) {
            int escapes = length == 1 && (*at == 'e' || *at == 'E') && at[1] == '\'';
            w->begins = w->fresh;
            w->fresh = 0;
            w->word = at;
            w->length = length;
            w->at = escapes ? skip_escaped(at + 1, w->spelling->encoding) : at + length;
            return 1;
        } else if (*at == '\'') {
            at = skip_quoted(at, '\'', w->spelling->backslashes, w->spelling->encoding);
        } else if (*at == '"') {
            at = skip_quoted(at, '"', 0, w->spelling->encoding);
        } else if (at[0] == '-' && at[1] == '-') {
            at += strcspn(at, "\n\r");
        } else if (at[0] == '/' && at[1] == '*') {
            at = skip_comment(at);
        } else {
            w->fresh = *at == ';' || (w->fresh && isspace((unsigned char)*at));
            at++;
        }
    }
    return 0;
}

/* PREPARE name AS is taken for PREPARE TRANSACTION: a transaction too many is then in doubt, never one too few. */
static int begins_an_end(const walk *w, int execute)
{
    return is_word(w->word, w->length, "commit") || is_word(w->word, w->length, "end") ||
           is_word(w->word, w->length, "prepare") || (execute && is_word(w->word, w->length, "execute"));
}

int guard_pq_sql_may_end(const char *sql, const guard_pq_spelling *spelling, int one_statement, int execute)
{
    walk w = {.at = sql, .spelling = spelling, .fresh = 1};
    while (next_word(&w)) {
        if (w.begins && begins_an_end(&w, execute)) {
            return 1;
        }
        if (one_statement) {
            return 0;
        }
    }
    return 0;
}

int guard_pq_sql_chains(const char *sql, const guard_pq_spelling *spelling, int one_statement)
{
    walk w = {.at = sql, .spelling = spelling, .fresh = 1};
    int ends = 0;
    int after_and = 0;
    while (next_word(&w)) {
        if (w.begins) {
            ends = is_word(w.word, w.length, "rollback") || is_word(w.word, w.length, "abort") ||
                   is_word(w.word, w.length, "commit") || is_word(w.word, w.length, "end");
        } else if (ends && after_and && is_word(w.word, w.length, "chain")) {
            return 1;
        }
        if (one_statement && !ends) {
            return 0;
        }
        after_and = is_word(w.word, w.length, "and");
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
