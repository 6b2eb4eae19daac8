/* SPDX-License-Identifier: MIT */
/*
 * Backups: a copy in steps, whole or not at all. sqlite3_backup_finish before the last page rolls the destination back
 * (c3ref/backup_finish.html), so every way out but `finish` leaves it as it was.
 */
#include "guard_sqlite_internal.h"

#include <errno.h>
#include <stdio.h>

#define FINISH_MS 60000
#define STEP_PAGES 256

struct guard_sqlite_backup {
    guard_sqlite *to; /* NULL once closed */
    guard_sqlite *from;
    sqlite3_backup *raw;
    guard_sqlite_backup *next;      /* in to->backups */
    guard_sqlite_backup *next_from; /* in from->backups_from */
    guard_ticket ticket;
    int64_t since; /* guard_dump_clock */
};

static int detach_backup(guard_sqlite_backup *backup)
{
    if (backup->to == NULL) {
        return SQLITE_OK;
    }
    guard_sqlite_backup **link = &backup->to->backups;
    while (*link != backup) {
        link = &(*link)->next;
    }
    *link = backup->next;
    link = &backup->from->backups_from;
    while (*link != backup) {
        link = &(*link)->next_from;
    }
    *link = backup->next_from;
    backup->to->is_destination = 0;
    backup->to = NULL;
    int rc = guard_sqlite_call_backup_finish(backup->raw);
    backup->raw = NULL;
    return rc;
}

static void release_backup(void *object)
{
    guard_sqlite_backup *backup = object;
    detach_backup(backup); /* repeats the code of the last step, which was raised there */
    guard_deallocate(backup);
}

static int64_t backup_since(const void *object)
{
    return ((const guard_sqlite_backup *)object)->since;
}

static const guard_kind backup_kind = {.name = "sqlite backup",
                                       .release = release_backup,
                                       .flags = GUARD_KIND_HEAP,
                                       .since = backup_since,
                                       .action = "end"};

guard_sqlite_backup *guard_sqlite_backup_open_at(guard_scope *scope, guard_sqlite *to, guard_sqlite *from,
                                                 const guard_place *place)
{
    if (to == NULL || from == NULL || to == from) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "a backup needs two connections");
        return NULL;
    }
    if (guard_sqlite_is_refused(to, place) || guard_sqlite_is_refused(from, place)) {
        return NULL;
    }
    if (to->session.tx != NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_STATE, "the destination of a backup is in a transaction");
        return NULL;
    }
    guard_reserve(scope, 1);
    guard_sqlite_backup *backup = guard_allocate(sizeof(*backup));
    backup->since = guard_dump_clock();
    backup->raw = guard_sqlite_call_backup_open(to->raw, from->raw);
    if (backup->raw == NULL) {
        guard_deallocate(backup);
        guard_sqlite_raise(to, sqlite3_extended_errcode(to->raw), "backup", place);
    }
    backup->to = to;
    backup->from = from;
    backup->next = to->backups;
    to->backups = backup;
    to->is_destination = 1;
    to->watched = 1;
    backup->next_from = from->backups_from;
    from->backups_from = backup;
    backup->ticket = guard_impl_defer_kind(scope, &backup_kind, backup, place);
    return backup;
}

static int check_backup(const guard_sqlite_backup *backup, const guard_place *place)
{
    if (backup == NULL || backup->to == NULL) {
        guard_impl_misuse(place, backup == NULL ? GUARD_MISUSE_ARGUMENT : GUARD_MISUSE_STATE,
                          backup == NULL ? "the backup is NULL" : "the backup is closed");
        return 0;
    }
    return !guard_sqlite_is_inherited(backup->to, place) && !guard_sqlite_is_inherited(backup->from, place);
}

/* Another connection is in the way, which may end. */
static int may_wait(const guard_sqlite_backup *backup, int rc)
{
    return (guard_sqlite_is_busy(rc) || (rc & 0xff) == SQLITE_LOCKED) &&
           sqlite3_txn_state(backup->from->raw, "main") != SQLITE_TXN_WRITE;
}

/* 1: there is more, 0: all is copied. `limit` is shared by the steps of a finish. */
static int step_waiting(guard_sqlite_backup *backup, int pages, busy_wait *wait, const guard_place *place)
{
    int rc;
    do {
        rc = guard_sqlite_call_backup(backup->to, backup->raw, pages);
        if (rc == SQLITE_OK || rc == SQLITE_DONE) {
            return rc == SQLITE_OK;
        }
    } while (may_wait(backup, rc) && guard_sqlite_wait_again(wait));
    guard_error error;
    guard_sqlite_raise_cancel(rc, place);
    guard_sqlite_describe_error(NULL, rc, "backup", &error);
    if (sqlite3_txn_state(backup->from->raw, "main") == SQLITE_TXN_WRITE) {
        snprintf(error.hint, sizeof(error.hint),
                 "the connection that is copied is in a transaction that writes: end it first");
    }
    guard_impl_panic_error(place, &error);
    __builtin_unreachable();
}

int guard_sqlite_backup_step_at(guard_sqlite_backup *backup, int pages, const guard_place *place)
{
    if (!check_backup(backup, place)) {
        return 0;
    }
    busy_wait wait = {.limit_ms = backup->to->busy_ms};
    return step_waiting(backup, pages, &wait, place);
}

int guard_sqlite_backup_remaining(guard_sqlite_backup *backup)
{
    return check_backup(backup, GUARD_HERE) ? sqlite3_backup_remaining(backup->raw) : 0;
}

int guard_sqlite_backup_total(guard_sqlite_backup *backup)
{
    return check_backup(backup, GUARD_HERE) ? sqlite3_backup_pagecount(backup->raw) : 0;
}

void guard_sqlite_backup_finish_at(guard_sqlite_backup *backup, int deadline_ms, const guard_place *place)
{
    if (!check_backup(backup, place)) {
        return;
    }
    int32_t limit_ms = deadline_ms == 0 ? FINISH_MS : deadline_ms;
    int64_t started_ms = guard_sqlite_now_ms();
    busy_wait wait = {.limit_ms = limit_ms};
    while (step_waiting(backup, STEP_PAGES, &wait, place)) {
        if (limit_ms >= 0 && guard_sqlite_now_ms() - started_ms >= limit_ms) {
            guard_impl_panic(place, GUARD_TIMEOUT, ETIMEDOUT,
                             "the backup took longer than %d ms; %d of %d pages are missing", (int)limit_ms,
                             guard_sqlite_backup_remaining(backup), guard_sqlite_backup_total(backup));
        }
    }
    guard_release(backup->ticket);
}

void guard_sqlite_detach_backups(guard_sqlite *db)
{
    while (db->backups != NULL) {
        detach_backup(db->backups);
    }
    while (db->backups_from != NULL) {
        detach_backup(db->backups_from);
    }
}
