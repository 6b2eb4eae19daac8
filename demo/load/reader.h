/* SPDX-License-Identifier: MIT */
/*
 * reader.h: the rows of a CSV file, each with the physical line it began on.
 *
 * The framing is ours, the parsing libcsv's: it is fed one physical line at a time, in strict mode, and told after each
 * whether the row is complete. So a stray quote costs one line: a row that stays open past `max_row` bytes or the end of the
 * file, or turns malformed on a later line, is reported as its first line alone, and reading goes on with the next line.
 *
 * A physical line ends with LF or CRLF; the last one may lack it. A carriage return elsewhere is part of a quoted field
 * or makes the row malformed. Blank lines are skipped, a UTF-8 byte order mark at the start of the file is too, and no space is
 * trimmed. Memory is three times max_row (libcsv holds a field of its own) and 0.8 MB at most, whatever the file holds.
 */
#ifndef LOAD_READER_H
#define LOAD_READER_H

#include <guard/guard.h>
#include <stddef.h>
#include <stdint.h>

#define READER_CHUNK (256 * 1024) /* bytes read at a time: they stay in a second-level cache */
#define READER_FIELDS 32767       /* fields kept of a row; more are counted. SQLite's greatest number of columns */

/* Up to `size` bytes of the file from `offset` on; 0 at the end. Panics where reading fails. */
typedef size_t reader_read_fn(void *arg, uint64_t offset, char *buffer, size_t size);

/* Between two rows: where the next one is searched for. */
typedef struct load_position {
    uint64_t offset; /* bytes before it */
    uint64_t line;   /* number of its physical line, from 1 */
} load_position;

typedef struct load_field {
    const char *text; /* terminated; NULL for an empty field without quotes */
    size_t size;
} load_field;

typedef enum row_fault {
    ROW_SOUND = 0,
    ROW_MALFORMED, /* quotes or line ends that are not CSV */
    ROW_TOO_LONG,  /* more than max_row bytes */
    ROW_NUL,       /* a NUL byte */
    ROW_ENCODING   /* not UTF-8 */
} row_fault;

/* Valid until the next call on the reader. */
typedef struct load_row {
    load_position at;
    const char *raw; /* the row as it stood, without its last line end; the first max_row bytes of a longer one */
    size_t raw_size;
    const load_field *fields; /* of a sound row */
    size_t count;             /* its fields, also those above READER_FIELDS */
    row_fault fault;
    char reason[120]; /* why it is not sound */
} load_row;

typedef struct load_reader load_reader;

/*
 * A reader that takes the file from read(arg, ...), beginning at the file's start. It belongs to the scope. max_row: 1 to 1,000,000,000.
 */
load_reader *reader_open(guard_scope *scope, reader_read_fn *read, void *arg, char delimiter, size_t max_row);

/* The next row, sound or not: 1, or 0 at the end of the file. */
int reader_next(load_reader *reader, load_row *row);

/* Steps over the row that reader_next would give: 1, or 0 at the end of the file. A line without a quote is a row, sound or not. */
int reader_skip(load_reader *reader);

/* Where the next call begins to search. */
load_position reader_tell(const load_reader *reader);

/* Goes on from a position that reader_tell gave for the same file, in this process or an earlier one. */
void reader_seek(load_reader *reader, load_position at);

#endif
