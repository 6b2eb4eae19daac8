/* SPDX-License-Identifier: MIT */
#include "replacing.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <guard/guard.h>

#include "file_faults.h"
#include "suite.h"

void write_new(void *arg)
{
    writing *w = arg;
    w->published = false;
    GUARD_AUTO(s);
    guard_file_replace *replace = guard_file_replace_begin(s, w->path, &w->options);
    /* Tells the truth even where commit panics: it runs before the replacement is freed. */
    GUARD_TRY(NULL)
    {
        fputs("new content", guard_file_replace_stream(replace));
        switch (w->ending) {
        case COMMIT:
            guard_file_replace_commit(replace);
            break;
        case ROLLBACK:
            guard_file_replace_rollback(replace);
            guard_file_replace_rollback(replace); /* harmless */
            break;
        case LEAVE:
            break;
        case PANIC:
            guard_panic(5, "before the commit");
        }
        w->published = guard_file_replace_published(replace);
        return;
    }
    GUARD_CATCH
    {
        w->published = guard_file_replace_published(replace);
    }
    if (!w->published) {
        guard_file_replace_rollback(replace); /* harmless */
    }
}

void write_plainly(void *arg)
{
    writing *w = arg;
    GUARD_AUTO(s);
    guard_file_replace *replace = guard_file_replace_begin(s, w->path, &w->options);
    fputs("new content", guard_file_replace_stream(replace));
    if (w->ending == PANIC) {
        guard_panic(5, "before the commit");
    }
    if (w->ending == COMMIT) {
        guard_file_replace_commit(replace);
    }
}

int replace_file(const char *path, const guard_file_replace_options *options, guard_error *error)
{
    writing w = {.path = path};
    if (options != NULL) {
        w.options = *options;
    }
    memset(error, 0, sizeof *error);
    return guard_run(write_plainly, &w, error);
}

mode_t mode_of(const char *path)
{
    struct stat status;
    ck_assert_int_eq(stat(path, &status), 0);
    return status.st_mode & 07777;
}

void replacing_begin(int named)
{
    scratch_enter_counted();
    umask(022);
    if (named) {
        faults_refuse("O_TMPFILE", EOPNOTSUPP);
    }
}
