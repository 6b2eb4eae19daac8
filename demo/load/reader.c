/* SPDX-License-Identifier: MIT */
/*
 * A row's way through the reader:
 *
 *              line complete          line complete, row complete
 *     SEARCH ----------------> FEED ------------------------------> row, sound or with a bad byte
 *       |  ^                   |  |
 *       |  | blank line        |  +-- line complete, quote open --> FEED the next line
 *       |  +-------------------+  |
 *       |                         +-- not CSV, past max_row, end of file --> its first line, malformed
 *       +-- line past max_row --> the line's first max_row bytes, too long
 *
 * What must hold between two calls: `next` is the buffer's index of position `at`; libcsv is between two rows; the bytes from
 * `next` to `end` are the file's from at.offset on.
 */
#include "reader.h"

#include <csv.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistr.h>

#include <guard/guard_file.h>

struct load_reader {
    reader_read_fn *read;
    void *read_arg;
    size_t max_row;

    char *buffer;
    size_t capacity; /* max_row, its line end, and a chunk */
    size_t next;
    size_t end;
    load_position at;

    struct csv_parser parser;
    int row_ended; /* libcsv saw the row's end */
    load_field *fields;
    size_t count;
    char *text; /* the fields' bytes; libcsv uses its own buffer again for each field */
    size_t text_size;
};

/* ---------------------------------------------------------------------------------------------- libcsv -- */

/*
 * Called by libcsv, so it must not panic, and cannot fail: a field of n bytes with its terminator took at least n + 1
 * bytes of the row, and `text` is as long as the longest row.
 */
static void take_field(void *text, size_t size, void *arg)
{
    load_reader *r = arg;
    if (r->count < READER_FIELDS) {
        char *copy = r->text + r->text_size;
        if (text != NULL) {
            memcpy(copy, text, size);
        }
        copy[size] = '\0';
        r->fields[r->count].text = text == NULL ? NULL : copy;
        r->fields[r->count].size = size;
        r->text_size += size + 1;
    }
    r->count++;
}

static void take_row_end(int terminator, void *arg)
{
    load_reader *r = arg;
    (void)terminator;
    r->row_ended = 1;
}

/* libcsv trims what it takes for spaces. */
static int no_space(unsigned char c)
{
    (void)c;
    return 0;
}

/* Without CSV_STRICT_FINI this only brings the parser back between two rows; it cannot fail. */
static void forget_row(load_reader *r)
{
    csv_fini(&r->parser, NULL, NULL, NULL);
    r->row_ended = 0;
    r->count = 0;
    r->text_size = 0;
}

static void free_parser(void *arg)
{
    load_reader *r = arg;
    csv_free(&r->parser);
}

load_reader *reader_open(guard_scope *scope, reader_read_fn *read, void *arg, char delimiter, size_t max_row)
{
    load_reader *r = guard_memory_allocate_array(scope, 1, sizeof *r, NULL);
    csv_init(&r->parser, CSV_STRICT | CSV_EMPTY_IS_NULL);
    guard_defer(scope, free_parser, r);
    csv_set_delim(&r->parser, (unsigned char)delimiter);
    csv_set_space_func(&r->parser, no_space);
    csv_set_blk_size(&r->parser, 64 * 1024);
    r->read = read;
    r->read_arg = arg;
    r->max_row = max_row;
    r->at.line = 1;
    /* All at once, so that nothing can fail in the middle of a row; pages that no row needs are never touched. */
    r->capacity = max_row + 2 + READER_CHUNK;
    r->buffer = guard_memory_allocate(scope, r->capacity, NULL);
    r->text = guard_memory_allocate(scope, max_row + 2, NULL);
    r->fields = guard_memory_allocate(scope, READER_FIELDS * sizeof *r->fields, NULL);
    return r;
}

/* ----------------------------------------------------------------------------------------------- lines -- */

/* Reads one more chunk; keeps the bytes from `next` on. Returns 0 at the end of the file. */
static int fill(load_reader *r)
{
    if (r->capacity - r->end < READER_CHUNK) {
        memmove(r->buffer, r->buffer + r->next, r->end - r->next);
        r->end -= r->next;
        r->next = 0;
    }
    uint64_t offset = r->at.offset + (r->end - r->next);
    size_t size = r->read(r->read_arg, offset, r->buffer + r->end, READER_CHUNK);
    r->end += size;
    return size > 0;
}

typedef enum { LINE_WHOLE, LINE_LAST, LINE_LONG, LINE_NONE } line_kind;

/*
 * The physical line that begins `from` bytes after `next`, of a row of which these `from` bytes are a part: *size is
 * its length with its line end. LINE_LAST: it has none. LINE_LONG: the row has more than max_row bytes with it.
 */
static line_kind find_line(load_reader *r, size_t from, size_t *size)
{
    size_t seen = from;
    for (;;) {
        const char *begin = r->buffer + r->next + from;
        size_t have = r->end - r->next;
        const char *lf = memchr(r->buffer + r->next + seen, '\n', have - seen);
        if (lf != NULL) {
            *size = (size_t)(lf + 1 - begin);
            size_t without_end = from + *size - 1;
            without_end -= without_end > from && lf[-1] == '\r';
            return without_end > r->max_row ? LINE_LONG : LINE_WHOLE;
        }
        /* One byte more than the row may have can still be the CR of its line end. */
        if (have > r->max_row + 1) {
            *size = have - from;
            return LINE_LONG;
        }
        seen = have;
        if (!fill(r)) {
            *size = have - from;
            if (*size == 0) {
                return LINE_NONE;
            }
            return have - (r->buffer[r->next + have - 1] == '\r') > r->max_row ? LINE_LONG : LINE_LAST;
        }
    }
}

/* The length of a line without its line end. */
static size_t content_size(const char *line, size_t size)
{
    size -= size > 0 && line[size - 1] == '\n';
    size -= size > 0 && line[size - 1] == '\r';
    return size;
}

static void step_over(load_reader *r, size_t size, uint64_t lines)
{
    r->next += size;
    r->at.offset += size;
    r->at.line += lines;
}

/* Goes to the line after one that may be longer than the buffer. Returns that line's length without its line end. */
static uint64_t step_over_long_line(load_reader *r)
{
    uint64_t length = 0;
    char last = 0;
    for (;;) {
        char *begin = r->buffer + r->next;
        size_t have = r->end - r->next;
        char *lf = memchr(begin, '\n', have);
        size_t part = lf != NULL ? (size_t)(lf - begin) : have;
        if (part > 0) {
            last = begin[part - 1];
        }
        length += part;
        step_over(r, part + (lf != NULL), 0);
        if (lf != NULL || !fill(r)) {
            r->at.line++;
            return length - (last == '\r');
        }
    }
}

/* ------------------------------------------------------------------------------------------------ rows -- */

static int malformed(load_row *row, const char *reason)
{
    row->fault = ROW_MALFORMED;
    snprintf(row->reason, sizeof row->reason, "%s", reason);
    return 0;
}

/* Gives libcsv a piece of a line: 1, or 0 with the fault in *row. */
static int feed_piece(load_reader *r, load_row *row, const char *piece, size_t size)
{
    size_t taken = csv_parse(&r->parser, piece, size, take_field, take_row_end, r);
    if (taken == size) {
        return 1;
    }
    if (csv_error(&r->parser) != CSV_EPARSE) {
        guard_panic_in(GUARD_MEMORY, ENOMEM, "libcsv: %s", csv_strerror(csv_error(&r->parser)));
    }
    row->fault = ROW_MALFORMED;
    snprintf(row->reason, sizeof row->reason, "field %zu: %s", r->count + 1,
             piece[taken] == '"' ? "a quote inside a field without quotes" : "text after the closing quote");
    return 0;
}

/* Gives libcsv a line of a row, which may be its first: 1, or 0 with the fault in *row. */
static int feed_line(load_reader *r, load_row *row, const char *line, size_t size, int first)
{
    const char *end = line + content_size(line, size);
    const char *piece = line;
    for (const char *cr; (cr = memchr(piece, '\r', (size_t)(end - piece))) != NULL; piece = cr + 1) {
        /* libcsv ends a row at a CR that is not in quotes, and skips one before the first field. */
        if (!feed_piece(r, row, piece, (size_t)(cr + 1 - piece))) {
            return 0;
        }
        if (r->row_ended || (first && cr == line)) {
            return malformed(row, "a carriage return outside quotes");
        }
    }
    if (!feed_piece(r, row, piece, (size_t)(line + size - piece))) {
        return 0;
    }
    return line[size - 1] == '\n' || feed_piece(r, row, "\n", 1);
}

/*
 * Feeds the lines of the row at `next` until it is complete: 1 with *size its bytes and *lines its lines, or 0 with the fault
 * in *row.
 */
static int feed_row(load_reader *r, load_row *row, size_t *size, uint64_t *lines)
{
    *lines = 1;
    int sound = feed_line(r, row, r->buffer + r->next, *size, 1);
    while (sound && !r->row_ended) {
        size_t line_size = 0;
        switch (find_line(r, *size, &line_size)) {
        case LINE_NONE:
            return malformed(row, "a quote is opened and never closed");
        case LINE_LONG:
            return malformed(row, "a quote is opened and not closed within the longest row (--max-row)");
        case LINE_WHOLE:
        case LINE_LAST:
            sound = feed_line(r, row, r->buffer + r->next + *size, line_size, 0);
            *size += line_size;
            *lines += 1;
            break;
        }
    }
    return sound;
}

static void check_bytes(load_row *row)
{
    const char *nul = memchr(row->raw, '\0', row->raw_size);
    if (nul != NULL) {
        row->fault = ROW_NUL;
        snprintf(row->reason, sizeof row->reason, "byte %zu is NUL", (size_t)(nul - row->raw) + 1);
        return;
    }
    const uint8_t *bad = u8_check((const uint8_t *)row->raw, row->raw_size);
    if (bad != NULL) {
        row->fault = ROW_ENCODING;
        snprintf(row->reason, sizeof row->reason, "byte %zu (0x%02X) is not UTF-8",
                 (size_t)(bad - (const uint8_t *)row->raw) + 1, *bad);
    }
}

static void take_long_line(load_reader *r, load_row *row)
{
    /* The bytes that are kept lie before those that are stepped over, and filling would move them. */
    memcpy(r->text, r->buffer + r->next, r->max_row);
    row->raw = r->text;
    row->raw_size = r->max_row;
    uint64_t length = step_over_long_line(r);
    row->fault = ROW_TOO_LONG;
    snprintf(row->reason, sizeof row->reason,
             "a line of %" PRIu64 " bytes, of which the first %zu (--max-row) are kept", length, r->max_row);
}

static void take_row(load_reader *r, load_row *row, size_t line_size)
{
    size_t size = line_size;
    uint64_t lines;
    int sound = feed_row(r, row, &size, &lines);
    if (!sound) {
        size = line_size;
        lines = 1;
    }
    row->raw = r->buffer + r->next;
    row->raw_size = content_size(row->raw, size);
    if (sound) {
        row->fields = r->fields;
        row->count = r->count;
        check_bytes(row);
    }
    step_over(r, size, lines);
}

static void skip_byte_order_mark(load_reader *r)
{
    while (r->end - r->next < 3 && fill(r)) {
    }
    if (r->end - r->next >= 3 && memcmp(r->buffer + r->next, "\xEF\xBB\xBF", 3) == 0) {
        step_over(r, 3, 0);
    }
}

int reader_next(load_reader *r, load_row *row)
{
    if (r->at.offset == 0) {
        skip_byte_order_mark(r);
    }
    forget_row(r);
    for (;;) {
        size_t size = 0;
        line_kind kind = find_line(r, 0, &size);
        if (kind == LINE_NONE) {
            return 0;
        }
        if (kind == LINE_LONG || content_size(r->buffer + r->next, size) > 0) {
            memset(row, 0, offsetof(struct load_row, reason) + 1);
            row->at = r->at;
            if (kind == LINE_LONG) {
                take_long_line(r, row);
            } else {
                take_row(r, row, size);
            }
            return 1;
        }
        step_over(r, size, 1);
    }
}

int reader_skip(load_reader *r)
{
    if (r->at.offset == 0) {
        skip_byte_order_mark(r);
    }
    for (;;) {
        size_t size = 0;
        line_kind kind = find_line(r, 0, &size);
        if (kind == LINE_NONE) {
            return 0;
        }
        if (kind == LINE_LONG || memchr(r->buffer + r->next, '"', size) != NULL) {
            load_row row;
            return reader_next(r, &row);
        }
        int blank = content_size(r->buffer + r->next, size) == 0;
        step_over(r, size, 1);
        if (!blank) {
            return 1;
        }
    }
}

load_position reader_tell(const load_reader *r)
{
    return r->at;
}

void reader_seek(load_reader *r, load_position at)
{
    uint64_t begin = r->at.offset - r->next;
    if (at.offset >= begin && at.offset <= begin + r->end) {
        r->next = (size_t)(at.offset - begin);
    } else {
        r->next = 0;
        r->end = 0;
    }
    r->at = at;
}
