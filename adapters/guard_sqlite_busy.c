/* SPDX-License-Identifier: MIT */
/*
 * Waiting for other connections, with one deadline for one BEGIN, COMMIT or statement.
 *
 * An opened connection has the busy handler below. SQLite does not call it for SQLITE_BUSY_SNAPSHOT, nor where two
 * would wait for each other; and an adopted connection has its own or none. So BEGIN and COMMIT are also tried again here, under the
 * same deadline.
 */
#include "guard_sqlite_internal.h"

#include <time.h>

int64_t guard_sqlite_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int guard_sqlite_wait_again(busy_wait *wait)
{
    /* As sqlite3_busy_timeout: short at first, since most locks are held for a moment. */
    static const unsigned char delays[] = {1, 2, 5, 10, 15, 20, 25, 25, 25, 50, 50, 100};
    int64_t delay = delays[wait->tries < sizeof(delays) ? wait->tries : sizeof(delays) - 1];
    if (wait->tries++ == 0) {
        wait->started_ms = guard_sqlite_now_ms();
    }
    if (wait->limit_ms >= 0) {
        int64_t left = wait->limit_ms - (guard_sqlite_now_ms() - wait->started_ms);
        if (left <= 0) {
            return 0;
        }
        delay = delay < left ? delay : left;
    }
    struct timespec pause = {.tv_sec = 0, .tv_nsec = (long)delay * 1000000};
    nanosleep(&pause, NULL);
    return guard_checkpoint_error(NULL) == 0;
}

int guard_sqlite_busy_handler(void *arg, int count)
{
    guard_sqlite *db = arg;
    if (count == 0 && !db->waiting) {
        db->wait = (busy_wait){.limit_ms = db->busy_ms};
    }
    return guard_sqlite_wait_again(&db->wait);
}

int guard_sqlite_is_busy(int rc)
{
    return ((rc & 0xff) == SQLITE_BUSY && rc != SQLITE_BUSY_SNAPSHOT) || rc == SQLITE_LOCKED_SHAREDCACHE;
}

int guard_sqlite_control_again(guard_sqlite *db, control which, int rc)
{
    while (guard_sqlite_is_busy(rc)) {
        /* COMMIT is also refused, at once, while a statement of this connection is in the middle of writing. */
        int writers = which == CONTROL_COMMIT ? guard_sqlite_reset_writers(db) : 0;
        if (writers < 0 || (writers == 0 && !guard_sqlite_wait_again(&db->wait))) {
            break;
        }
        rc = guard_sqlite_call_control(db, which);
    }
    return rc;
}
