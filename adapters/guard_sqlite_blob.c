/* SPDX-License-Identifier: MIT */
/* Incremental reading and writing of one value. A handle is open until its scope, its close or its connection's end. */
#include "guard_sqlite_internal.h"

struct guard_sqlite_blob {
    guard_sqlite *db; /* NULL once closed */
    sqlite3_blob *raw;
    guard_sqlite_blob *next;
    guard_sqlite_blob *previous;
    guard_ticket ticket;
    const guard_place *place;
    int64_t since; /* guard_dump_clock */
    int writable;
    int told; /* the code of the latest failure, which sqlite3_blob_close repeats */
};

/* Returns what sqlite3_blob_close does: outside of a transaction it commits, and that may fail. */
static int detach_blob(guard_sqlite_blob *blob)
{
    guard_sqlite *db = blob->db;
    if (db == NULL) {
        return SQLITE_OK;
    }
    if (blob->next != NULL) {
        blob->next->previous = blob->previous;
    }
    if (blob->previous != NULL) {
        blob->previous->next = blob->next;
    } else {
        db->blobs = blob->next;
    }
    blob->db = NULL;
    int rc = guard_sqlite_call_blob_close(blob->raw);
    blob->raw = NULL;
    return rc;
}

static void close_blob(guard_sqlite_blob *blob, const guard_place *place)
{
    guard_sqlite *db = blob->db;
    int told = blob->told;
    int rc = detach_blob(blob);
    guard_deallocate(blob);
    if (rc != SQLITE_OK && rc != told) {
        guard_sqlite_raise(db, rc, "blob", place);
    }
}

static void release_blob(void *object)
{
    guard_sqlite_blob *blob = object;
    close_blob(blob, blob->place);
}

static int64_t blob_since(const void *object)
{
    return ((const guard_sqlite_blob *)object)->since;
}

static const guard_kind blob_kind = {
    .name = "sqlite blob", .release = release_blob, .flags = GUARD_KIND_HEAP, .since = blob_since, .action = "close"};

guard_sqlite_blob *guard_sqlite_blob_open_at(guard_scope *scope, guard_sqlite *db, const char *table,
                                             const char *column, int64_t rowid, int writable, const guard_place *place)
{
    if (db == NULL || table == NULL || column == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "a blob needs a connection, a table and a column");
        return NULL;
    }
    if (!guard_sqlite_may_run(db, place)) {
        return NULL;
    }
    guard_reserve(scope, 1);
    guard_sqlite_blob *blob = guard_allocate(sizeof(*blob));
    int rc = guard_sqlite_call_blob_open(db, table, column, rowid, writable, &blob->raw);
    if (rc != SQLITE_OK) {
        guard_deallocate(blob);
        guard_sqlite_raise(db, rc, table, place);
    }
    blob->db = db;
    blob->place = place;
    blob->since = guard_dump_clock();
    blob->told = SQLITE_OK;
    blob->writable = writable;
    blob->previous = NULL;
    blob->next = db->blobs;
    if (blob->next != NULL) {
        blob->next->previous = blob;
    }
    db->blobs = blob;
    blob->ticket = guard_impl_defer_kind(scope, &blob_kind, blob, place);
    return blob;
}

static int check_blob(const guard_sqlite_blob *blob, const guard_place *place)
{
    if (blob == NULL || blob->db == NULL) {
        guard_impl_misuse(place, blob == NULL ? GUARD_MISUSE_ARGUMENT : GUARD_MISUSE_STATE,
                          blob == NULL ? "the blob is NULL"
                                       : "the blob is closed: its connection was, or a COMMIT came");
        return 0;
    }
    return guard_sqlite_may_run(blob->db, place);
}

static void check_access(guard_sqlite_blob *blob, int rc, const guard_place *place)
{
    if (rc != SQLITE_OK) {
        blob->told = rc;
        guard_sqlite_raise(blob->db, rc, "blob", place);
    }
}

int guard_sqlite_blob_size(guard_sqlite_blob *blob)
{
    if (blob == NULL) {
        guard_misuse(GUARD_MISUSE_ARGUMENT, "the blob is NULL");
        return 0;
    }
    return sqlite3_blob_bytes(blob->raw); /* 0 for a closed one */
}

void guard_sqlite_blob_read_at(guard_sqlite_blob *blob, void *data, int length, int offset, const guard_place *place)
{
    if (check_blob(blob, place)) {
        check_access(blob, guard_sqlite_call_blob_read(blob->db, blob->raw, data, length, offset), place);
    }
}

void guard_sqlite_blob_write_at(guard_sqlite_blob *blob, const void *data, int length, int offset,
                                const guard_place *place)
{
    if (check_blob(blob, place)) {
        check_access(blob, guard_sqlite_call_blob_write(blob->db, blob->raw, data, length, offset), place);
    }
}

void guard_sqlite_blob_close_at(guard_sqlite_blob *blob, const guard_place *place)
{
    if (blob == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the blob is NULL");
        return;
    }
    blob->place = place;
    guard_release(blob->ticket);
}

/* For SQLite one is a statement in the middle of writing, which no COMMIT waits for. Returns how many there were. */
int guard_sqlite_end_writable_blobs(guard_sqlite *db)
{
    int count = 0;
    for (guard_sqlite_blob *next, *blob = db->blobs; blob != NULL; blob = next) {
        next = blob->next;
        if (blob->writable) {
            detach_blob(blob);
            count++;
        }
    }
    return count;
}

/* The connection closes: its transaction was rolled back already. */
void guard_sqlite_detach_blobs(guard_sqlite *db)
{
    while (db->blobs != NULL) {
        detach_blob(db->blobs);
    }
}
