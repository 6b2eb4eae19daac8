/* SPDX-License-Identifier: MIT */
/* misuse.c: the handlers of wrong use and of notes. */
#include <unistd.h>

#include "internal.h"

#define NOTE_MS 1000 /* that nobody reads standard error */

static guard_misuse_fn *misuse_handler;
static guard_note_fn *note_handler;

guard_misuse_fn *guard_misuse_handler(guard_misuse_fn *handler)
{
    guard_misuse_fn *former = misuse_handler;
    misuse_handler = handler;
    return former;
}

void guard_impl_misuse(const guard_place *place, int code, const char *format, ...)
{
    guard_error error;
    guard_error_open(&error, GUARD_MISUSE, code);
    guard_error_place(&error, place);
    va_list arguments;
    va_start(arguments, format);
    guard_error_message(&error, format, arguments);
    va_end(arguments);
    guard_misuse_tell(&error);
}

void guard_misuse_tell(const guard_error *error)
{
    if (misuse_handler == NULL) {
        guard_panic_error(error);
    }
    misuse_handler(error);
}

void guard_misuse_hold(guard_stack *stack, const guard_error *error)
{
    if (misuse_handler != NULL) {
        misuse_handler(error);
    } else if (stack->border == NULL) {
        guard_error copy;
        guard_error_copy(&copy, error);
        guard_raise(stack, &copy, NULL, NULL); /* uncaught, so it does not jump */
    } else {
        guard_error copy;
        guard_error_copy(&copy, error);
        guard_site_count(&copy, NULL);
        guard_hold(stack, &copy);
    }
}

guard_note_fn *guard_note_handler(guard_note_fn *handler)
{
    guard_note_fn *former = note_handler;
    note_handler = handler;
    return former;
}

void guard_note(const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (note_handler != NULL) {
        note_handler(text);
        return;
    }
    char escaped[4 * sizeof text]; /* \x1b for a character */
    char line[sizeof escaped + 16];
    guard_text_escape(escaped, sizeof escaped, text);
    int length = snprintf(line, sizeof line, "guard: note: %s\n", escaped);
    (void)guard_write_within(STDERR_FILENO, line, (size_t)length, NOTE_MS); /* there is nobody to tell */
}
