/* SPDX-License-Identifier: MIT */
#include "command_line.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <guard/guard.h>

void command_line_open_standard(void)
{
    int descriptor;
    do {
        descriptor = open("/dev/null", O_RDWR);
    } while (descriptor >= 0 && descriptor <= STDERR_FILENO);
    if (descriptor >= 0) {
        close(descriptor);
    }
}

void command_line_flush(void)
{
    if (fflush(stdout) != 0 || ferror(stdout)) {
        guard_panic_os("standard output cannot be written");
    }
}

uint64_t command_line_number(const char *option, const char *text, uint64_t least, uint64_t most)
{
    char *end = NULL;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    /* strtoull takes a sign and leading spaces. */
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || number < least || number > most) {
        guard_panic(EXIT_USAGE, "%s takes a number from %llu to %llu, not \"%s\"", option, (unsigned long long)least,
                    (unsigned long long)most, text);
    }
    return number;
}

/* As libpq tells a connection string from a database's name. */
static int is_postgres(const char *uri)
{
    return strncmp(uri, "postgresql://", 13) == 0 || strncmp(uri, "postgres://", 11) == 0 || strchr(uri, '=') != NULL;
}

const char *command_line_database(const char *uri, int *postgres)
{
    static const char scheme[] = "sqlite:";
    int is_sqlite = strncmp(uri, scheme, sizeof scheme - 1) == 0;
    *postgres = !is_sqlite && is_postgres(uri);
    if (*postgres) {
        return uri;
    }
    if (!is_sqlite) {
        /* Not more of it than its scheme: there may be a password behind. */
        guard_panic(EXIT_USAGE, "--db takes sqlite:PATH or postgresql://..., not \"%.*s\"", (int)strcspn(uri, ":"),
                    uri);
    }
    const char *path = uri + sizeof scheme - 1;
    if (*path == '\0') {
        guard_panic(EXIT_USAGE, "--db %s has no path", uri);
    }
    if (strcmp(path, ":memory:") == 0) {
        guard_panic(EXIT_USAGE, "--db %s would be gone when the program ends", uri);
    }
    /* Where SQLite is built so (Debian's is), it takes such a name for a URI, which may name a database in memory. */
    if (strncmp(path, "file:", 5) == 0) {
        guard_panic(EXIT_USAGE, "--db sqlite: takes a path, no URI; a file of this name is sqlite:./%s", path);
    }
    return path;
}
