/* SPDX-License-Identifier: MIT */
/* error.c: errors as flat values: filling, copying, chaining, printing. None of it allocates. */
#include <errno.h>

#include "internal.h"

/* ------------------------------------------------------------------------------------------------ text -- */

/* At least one byte, mostly few: by moves that overlap, where a call of memcpy, or gcc's loop in its place, takes twice as long. */
static inline __attribute__((always_inline)) void text_move(char *to, const char *from, size_t size)
{
    if (GUARD_IMPL_UNLIKELY(size > 48)) {
        memcpy(to, from, size);
    } else if (size >= 16) {
        memcpy(to, from, 16);
        if (size > 32) {
            memcpy(to + 16, from + 16, 16);
        }
        memcpy(to + size - 16, from + size - 16, 16);
    } else if (size >= 8) {
        memcpy(to, from, 8);
        memcpy(to + size - 8, from + size - 8, 8);
    } else if (size >= 4) {
        memcpy(to, from, 4);
        memcpy(to + size - 4, from + size - 4, 4);
    } else {
        to[0] = from[0];
        to[size / 2] = from[size / 2];
        to[size - 1] = from[size - 1];
    }
}

size_t guard_text_copy(char *to, size_t size, const char *from)
{
    size_t length = strnlen(from, size);
    if (length >= size) {
        length = size - 1;
        while (length > 0 && ((unsigned char)from[length] & 0xC0) == 0x80) {
            length--; /* not into the middle of a UTF-8 sequence */
        }
    }
    memcpy(to, from, length);
    to[length] = '\0';
    return length;
}

/* ---------------------------------------------------------------------------------------------- filling -- */

static __attribute__((noinline)) void error_place_counted(guard_error *error, const guard_place *place)
{
    guard_text_copy(error->file, sizeof error->file, guard_path_end(place->file));
    guard_text_copy(error->function, sizeof error->function, place->function);
}

static inline __attribute__((always_inline)) void error_put_place(guard_error *error, const guard_place *place)
{
    error->line = place->line;
    if (GUARD_IMPL_LIKELY(place->name_length != 0 && place->name_length < sizeof error->file &&
                          place->function_length != 0 && place->function_length < sizeof error->function)) {
        text_move(error->file, place->file + place->name_at, place->name_length + 1U);
        text_move(error->function, place->function, place->function_length + 1U);
    } else {
        error_place_counted(error, place);
    }
}

void guard_error_place(guard_error *error, const guard_place *place)
{
    error_put_place(error, place);
}

void guard_error_open(guard_error *error, int domain, int code)
{
    error->domain = domain;
    error->code = code != 0 ? code : -1;
    error->os_error = errno;
    error->line = 0;
    error->trace = 0;
    error->cause_count = 0;
    error->cause_more = 0;
    error->flags = 0;
    error->reserved = 0;
    error->sqlstate[0] = '\0';
    error->file[0] = '\0';
    error->function[0] = '\0';
    error->message[0] = '\0';
    error->detail[0] = '\0';
    error->hint[0] = '\0';
    error->constraint[0] = '\0';
}

/* Apart, so that a message without a conversion needs no room for the text. */
static __attribute__((noinline)) size_t error_message_print(guard_error *error, const char *format, va_list arguments)
    GUARD_PRINTF(2, 0);
static size_t error_message_print(guard_error *error, const char *format, va_list arguments)
{
    char text[1024]; /* longer than a message, so that the cut is made at a character */
    vsnprintf(text, sizeof text, format, arguments);
    size_t end = strnlen(text, sizeof text);
    while (end > 0 && text[end - 1] == '\n') {
        text[--end] = '\0'; /* a message is one line; those of libpq end with a newline */
    }
    return guard_text_copy(error->message, sizeof error->message, text) + 1;
}

void guard_error_text(guard_error *error, const char *text, size_t size)
{
    text_move(error->message, text, size);
}

/* Most messages are constant: without a conversion they are copied, which costs a tenth of vsnprintf. */
size_t guard_error_message(guard_error *error, const char *format, va_list arguments)
{
    const char *conversion = strchrnul(format, '%');
    size_t length = (size_t)(conversion - format);
    if (*conversion == '\0' && length < sizeof error->message && (length == 0 || format[length - 1] != '\n')) {
        text_move(error->message, format, length + 1);
        return length + 1;
    }
    return error_message_print(error, format, arguments);
}

void guard_error_set(guard_error *error, int domain, int code, const char *format, ...)
{
    guard_error_open(error, domain, code);
    va_list arguments;
    va_start(arguments, format);
    guard_error_message(error, format, arguments);
    va_end(arguments);
}

static void text_copy_known(char *to, size_t size, const char *from)
{
    if (from[0] != '\0') {
        guard_text_copy(to, size, from);
    }
}

/* An error that a program filled in may say more than there can be. */
static uint8_t error_causes(const guard_error *error)
{
    return error->cause_count <= GUARD_CAUSES ? error->cause_count : GUARD_CAUSES;
}

static void cause_end_texts(guard_cause *cause)
{
    cause->sqlstate[sizeof cause->sqlstate - 1] = '\0';
    cause->file[sizeof cause->file - 1] = '\0';
    cause->message[sizeof cause->message - 1] = '\0';
}

/* What lies behind the texts is cleared, not copied: no bytes of a dead frame travel with an error. */
static inline __attribute__((always_inline)) void error_clear(guard_error *to)
{
    /* The size is hidden, so that libc's memset is called: `rep stos`, which gcc puts here for a known size, takes twice as long. */
    size_t size = sizeof *to;
    __asm__("" : "+r"(size));
    memset(to, 0, size);
}

static inline __attribute__((always_inline)) void error_copy_causes(guard_error *to, const guard_error *from)
{
    to->cause_count = error_causes(from);
    if (to->cause_count > 0) {
        memcpy(to->causes, from->causes, to->cause_count * sizeof *from->causes);
    }
    for (unsigned i = 0; i < to->cause_count; i++) {
        cause_end_texts(&to->causes[i]);
    }
}

void guard_error_copy(guard_error *to, const guard_error *from)
{
    if (to == from) {
        return;
    }
    error_clear(to);
    memcpy(to, from, offsetof(guard_error, sqlstate));
    text_copy_known(to->sqlstate, sizeof to->sqlstate, from->sqlstate);
    text_copy_known(to->file, sizeof to->file, from->file);
    text_copy_known(to->function, sizeof to->function, from->function);
    text_copy_known(to->message, sizeof to->message, from->message);
    text_copy_known(to->detail, sizeof to->detail, from->detail);
    text_copy_known(to->hint, sizeof to->hint, from->hint);
    text_copy_known(to->constraint, sizeof to->constraint, from->constraint);
    error_copy_causes(to, from);
}

/* The place after the message: copied before, it would be waited for. */
void guard_error_copy_message(guard_error *to, const guard_error *from, size_t message_size, const guard_place *place)
{
    error_clear(to);
    memcpy(to, from, offsetof(guard_error, sqlstate));
    text_move(to->message, from->message, message_size);
    if (GUARD_IMPL_UNLIKELY(from->cause_count > 0)) {
        error_copy_causes(to, from);
    }
    error_put_place(to, place);
}

/* --------------------------------------------------------------------------------------------- chaining -- */

static void error_count_more(guard_error *error, unsigned count)
{
    count += error->cause_more;
    error->cause_more = (uint8_t)(count < UINT8_MAX ? count : UINT8_MAX);
}

static guard_cause *error_cause_next(guard_error *error)
{
    if (error->cause_count >= GUARD_CAUSES) {
        error_count_more(error, 1);
        return NULL;
    }
    guard_cause *cause = &error->causes[error->cause_count++];
    memset(cause, 0, sizeof *cause);
    return cause;
}

void guard_error_attach(guard_error *error, const guard_error *later, guard_relation relation)
{
    guard_cause *cause = error_cause_next(error);
    if (cause != NULL) {
        cause->domain = later->domain;
        cause->code = later->code;
        cause->line = later->line;
        cause->relation = (uint8_t)relation;
        cause->flags = later->flags & GUARD_ERROR_REPANICKED;
        guard_text_copy(cause->sqlstate, sizeof cause->sqlstate, later->sqlstate);
        guard_text_copy(cause->file, sizeof cause->file, later->file);
        guard_text_copy(cause->message, sizeof cause->message, later->message);
    }
    for (unsigned i = 0; i < error_causes(later); i++) {
        guard_cause *next = error_cause_next(error);
        if (next != NULL) {
            *next = later->causes[i];
            cause_end_texts(next);
        }
    }
    error_count_more(error, later->cause_more);
}

/* --------------------------------------------------------------------------------------------- printing -- */

const char *guard_domain_name(int domain)
{
    static const char *const names[] = {"user",  "misuse", "memory", "os", "timeout", "cancelled",
                                        "fault", "lock",   "sqlite", "pq", "tx",      "refused"};
    return domain >= 0 && (size_t)domain < sizeof names / sizeof *names ? names[domain] : "user";
}

typedef struct writer {
    char *text;
    size_t size;
    size_t length;
} writer;

static void writer_put(writer *to, char c)
{
    if (to->length + 1 < to->size) {
        to->text[to->length] = c;
    }
    to->length++;
}

static void writer_text(writer *to, const char *text)
{
    while (*text != '\0') {
        writer_put(to, *text++);
    }
}

static bool byte_continues(unsigned char byte)
{
    return (byte & 0xC0) == 0x80;
}

/* RFC 3629; U+0080 to U+009F are controls, too. */
size_t guard_text_character(const unsigned char *at)
{
    unsigned char first = at[0];
    if (first < 0x80) {
        return first >= 0x20 && first != 0x7F ? 1 : 0;
    }
    if (first < 0xC2 || first > 0xF4 || !byte_continues(at[1])) {
        return 0;
    }
    if (first < 0xE0) {
        return first == 0xC2 && at[1] < 0xA0 ? 0 : 2;
    }
    bool overlong = (first == 0xE0 && at[1] < 0xA0) || (first == 0xF0 && at[1] < 0x90);
    bool beyond = (first == 0xED && at[1] >= 0xA0) || (first == 0xF4 && at[1] >= 0x90);
    if (overlong || beyond || !byte_continues(at[2])) {
        return 0;
    }
    return first < 0xF0 ? 3 : byte_continues(at[3]) ? 4 : 0;
}

/* A message may come from a server or a user: a terminal must not obey it. */
static void writer_escaped(writer *to, const char *text)
{
    static const char digits[] = "0123456789abcdef";
    const unsigned char *at = (const unsigned char *)text;
    while (*at != '\0') {
        size_t length = guard_text_character(at);
        if (length == 0) {
            writer_text(to, "\\x");
            writer_put(to, digits[*at >> 4]);
            writer_put(to, digits[*at & 15]);
            at++;
        }
        for (; length > 0; length--) {
            writer_put(to, (char)*at++);
        }
    }
}

size_t guard_text_escape(char *to, size_t size, const char *text)
{
    writer out = {to, size, 0};
    writer_escaped(&out, text);
    to[out.length < size ? out.length : size - 1] = '\0';
    return out.length;
}

static void writer_number(writer *to, long number)
{
    char text[24];
    snprintf(text, sizeof text, "%ld", number);
    writer_text(to, text);
}

static void writer_line(writer *to, const char *label, int domain, int code, const char *sqlstate, const char *message,
                        const char *file, uint32_t line, const char *end)
{
    writer_text(to, label);
    writer_escaped(to, message);
    writer_text(to, " [");
    writer_text(to, guard_domain_name(domain));
    writer_put(to, ' ');
    writer_number(to, code);
    if (sqlstate[0] != '\0') {
        writer_put(to, ' ');
        writer_escaped(to, sqlstate);
    }
    writer_put(to, ']');
    if (file[0] != '\0') {
        writer_text(to, " at ");
        writer_escaped(to, file);
        writer_put(to, ':');
        writer_number(to, (long)line);
    }
    writer_text(to, end);
    writer_put(to, '\n');
}

static bool cause_is_older(const guard_cause *cause)
{
    return cause->relation == GUARD_REPLACED || cause->relation == GUARD_RECOVERED;
}

static const char repanicked[] = " [recovered, repanicked]";

static void writer_cause(writer *to, const guard_cause *cause, const char *label)
{
    writer_line(to, label, cause->domain, cause->code, cause->sqlstate, cause->message, cause->file, cause->line,
                cause->flags & GUARD_ERROR_REPANICKED ? repanicked
                                                      : (cause->relation == GUARD_RECOVERED ? " [recovered]" : ""));
}

/* The panics that were replaced come first, the oldest at the top, as Go prints them; then the error, then what hangs on it. */
size_t guard_error_format(const guard_error *error, char *text, size_t size)
{
    writer to = {text, size, 0};
    const char *label = "panic: ";
    for (unsigned i = error_causes(error); i-- > 0;) {
        if (cause_is_older(&error->causes[i])) {
            writer_cause(&to, &error->causes[i], label);
            label = "\tpanic: ";
        }
    }
    writer_line(&to, label, error->domain, error->code, error->sqlstate, error->message, error->file, error->line,
                error->flags & GUARD_ERROR_REPANICKED ? repanicked : "");
    for (unsigned i = 0; i < error_causes(error); i++) {
        if (!cause_is_older(&error->causes[i])) {
            writer_cause(&to, &error->causes[i],
                         error->causes[i].relation == GUARD_CAUSE ? "\tcaused by: " : "\tthen failed: ");
        }
    }
    if (error->cause_more > 0) {
        writer_text(&to, "\tand ");
        writer_number(&to, error->cause_more);
        writer_text(&to, " more\n");
    }
    if (size > 0) {
        text[to.length < size ? to.length : size - 1] = '\0';
    }
    return to.length;
}
