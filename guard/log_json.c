/* SPDX-License-Identifier: MIT */
/*
 * log_json.c: JSON into a buffer of fixed size.
 *
 * Not a library's: jansson and its like build a tree first, of allocated memory, and this runs where a thread has just panicked, perhaps for
 * want of memory, or in the handler of a fatal signal. It writes what RFC 8259 allows and no more: objects, arrays, texts, whole numbers.
 *
 * Invariants
 *   - What is written is valid when it is closed: a member is written whole or not at all, and its buffer always has ROOM for what
 *     closes it.
 *   - Texts are valid UTF-8 whatever they were: a byte that belongs to no character becomes U+FFFD. Control characters (C1 and DEL
 *     too: a terminal obeys them) are escaped.
 */
#include "log_internal.h"

/* For three brackets, the mark of a cut, the end of the line and the NUL. */
enum { ROOM = 24 };
static const char cut_mark[] = ",\"cut\":true";

static void json_put(guard_json *to, const char *text, size_t length)
{
    if (to->length + length > to->size) {
        to->is_full = true;
        return;
    }
    memcpy(to->text + to->length, text, length);
    to->length += length;
}

void guard_json_open(guard_json *to, char *text, size_t size)
{
    *to = (guard_json){.text = text, .size = size - ROOM};
    json_put(to, "{", 1);
}

static void put_escape(guard_json *to, unsigned code)
{
    static const char digits[] = "0123456789abcdef";
    char text[6] = {'\\', 'u', '0', '0', digits[code >> 4 & 15], digits[code & 15]};
    json_put(to, text, sizeof text);
}

/* One character from *at on, which moves behind it. */
static void put_character(guard_json *to, const unsigned char **at)
{
    const unsigned char *c = *at;
    size_t length = guard_text_character(c);
    if (length > 0) {
        if (*c == '"' || *c == '\\') {
            json_put(to, (const char[2]){'\\', (char)*c}, 2);
        } else {
            json_put(to, (const char *)c, length);
        }
    } else if (*c < 0x80) {
        put_escape(to, *c);
        length = 1;
    } else if (*c == 0xC2 && c[1] >= 0x80 && c[1] < 0xA0) {
        put_escape(to, c[1]);
        length = 2;
    } else {
        json_put(to, "\xEF\xBF\xBD", 3);
        length = 1;
    }
    *at = c + length;
}

/* A quoted text of at most `most` bytes between its quotes; cut at a character. */
static void put_text(guard_json *to, const char *text, size_t most)
{
    const unsigned char *at = (const unsigned char *)text;
    json_put(to, "\"", 1);
    size_t end = to->length + most;
    while (*at != '\0' && !to->is_full) {
        size_t before = to->length;
        put_character(to, &at);
        if (to->length > end) {
            to->length = before;
            break;
        }
    }
    json_put(to, "\"", 1);
}

static void put_number(guard_json *to, int64_t number)
{
    char text[24];
    size_t at = sizeof text;
    uint64_t rest = number < 0 ? -(uint64_t)number : (uint64_t)number;
    do {
        text[--at] = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest != 0);
    if (number < 0) {
        text[--at] = '-';
    }
    json_put(to, text + at, sizeof text - at);
}

/* A comma where something is before it. */
static void put_separator(guard_json *to)
{
    char last = to->length > 0 ? to->text[to->length - 1] : '{';
    if (last != '{' && last != '[') {
        json_put(to, ",", 1);
    }
}

static void put_key(guard_json *to, const char *key)
{
    put_separator(to);
    if (key != NULL) {
        put_text(to, key, 6 * GUARD_CONTEXT_KEY_SIZE);
        json_put(to, ":", 1);
    }
}

/* What was begun at `start` is whole, or is taken back. */
static void end_member(guard_json *to, size_t start)
{
    if (to->is_full) {
        to->length = start;
        to->is_full = false;
        to->is_cut = true;
    }
}

void guard_json_text(guard_json *to, const char *key, const char *text, size_t most)
{
    size_t start = to->length;
    put_key(to, key);
    put_text(to, text, most);
    end_member(to, start);
}

void guard_json_number(guard_json *to, const char *key, int64_t number)
{
    size_t start = to->length;
    put_key(to, key);
    put_number(to, number);
    end_member(to, start);
}

/* An object or array begins: `bracket` is { or [. Of these at most three are open at a time, one in the other. */
bool guard_json_begin(guard_json *to, const char *key, char bracket)
{
    size_t start = to->length;
    put_key(to, key);
    json_put(to, &bracket, 1);
    bool is_begun = !to->is_full;
    end_member(to, start);
    return is_begun;
}

/* The room that was left out for it is used. */
void guard_json_end(guard_json *to, char bracket)
{
    to->text[to->length++] = bracket;
}

size_t guard_json_close(guard_json *to)
{
    if (to->is_cut) {
        memcpy(to->text + to->length, cut_mark, sizeof cut_mark - 1);
        to->length += sizeof cut_mark - 1;
    }
    to->text[to->length++] = '}';
    to->text[to->length++] = '\n';
    to->text[to->length] = '\0';
    return to->length;
}

void guard_json_reopen(guard_json *to, char *text, size_t size, size_t length)
{
    size_t mark = sizeof cut_mark - 1;
    *to = (guard_json){.text = text, .size = size - ROOM, .length = length - 2};
    if (to->length > mark && memcmp(text + to->length - mark, cut_mark, mark) == 0) {
        to->length -= mark;
        to->is_cut = true;
    }
}
