/* SPDX-License-Identifier: MIT */
#include "receipt.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "json.h"

static const char *receipt_path(guard_scope *scope, const char *folder, const transfer *t)
{
    return guard_memory_format(scope, NULL, "%s/%" PRId64 ".json", folder, t->id);
}

guard_file_replace *receipt_begin(guard_scope *scope, const char *folder, const transfer *t)
{
    guard_file_replace *receipt = guard_file_replace_begin(scope, receipt_path(scope, folder, t), NULL);
    /* A failure to write is sticky in the stream and found by the commit. The key has no character that JSON escapes. */
    fprintf(guard_file_replace_stream(receipt),
            "{\"transfer\":%" PRId64 ",\"from\":%" PRId64 ",\"to\":%" PRId64 ",\"amount\":%" PRId64
            ",\"key\":\"%s\"}\n",
            t->id, t->from, t->to, t->amount, t->key);
    return receipt;
}

void receipt_mend(const char *folder, const transfer *t)
{
    GUARD_AUTO(s);
    if (access(receipt_path(s, folder, t), F_OK) != 0) {
        guard_file_replace_commit(receipt_begin(s, folder, t));
    }
}

static int64_t member(const json_t *row, const char *key)
{
    return json_integer_value(json_object_get(row, key));
}

/* Returns the id of the oldest of these, 0 where there are no more. */
static int64_t mend_list(const char *folder, store *from, int64_t before)
{
    GUARD_AUTO(s);
    const json_t *list = from->driver->transfers(s, from, before, TRANSFER_LIST);
    size_t index;
    const json_t *row;
    int64_t oldest = 0;
    json_array_foreach(list, index, row)
    {
        transfer t = {.id = member(row, "id"),
                      .from = member(row, "from"),
                      .to = member(row, "to"),
                      .amount = member(row, "amount")};
        snprintf(t.key, sizeof t.key, "%s", json_string_value(json_object_get(row, "key")));
        receipt_mend(folder, &t);
        oldest = t.id;
    }
    return oldest;
}

void receipt_mend_all(const char *folder, store *from)
{
    if (mkdir(folder, 0777) != 0 && errno != EEXIST) {
        guard_panic_os("%s cannot be made", folder);
    }
    GUARD_AUTO(s);
    guard_file_open_directory(s, folder, NULL); /* it may be something else */
    int64_t before = INT64_MAX;
    do {
        before = mend_list(folder, from, before);
    } while (before != 0);
}
