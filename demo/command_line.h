/* SPDX-License-Identifier: MIT */
/*
 * command_line.h: what the command lines of the programs have in common. What cannot be taken is a panic with code EXIT_USAGE and one line that
 * names the option, without a password.
 */
#ifndef DEMO_COMMAND_LINE_H
#define DEMO_COMMAND_LINE_H

#include <stdint.h>

enum { EXIT_USAGE = 2 };

/* A descriptor of 0 to 2 that is closed would be given to a file that is opened, and what is said would be written into it. First of all. */
void command_line_open_standard(void);

/* Brings what was printed to standard output out of this process; panics with GUARD_OS where any of it was lost. */
void command_line_flush(void);

/* The number that this option was given. */
uint64_t command_line_number(const char *option, const char *text, uint64_t least, uint64_t most);

/* What --db was given: the path of an SQLite file, or, with *postgres, what libpq takes; a part of the text. */
const char *command_line_database(const char *uri, int *postgres);

#endif
