/* SPDX-License-Identifier: MIT */
#include "schema.h"

#include <string.h>

#include <guard/guard_file.h>

const char *schema_read(guard_scope *scope, const char *file)
{
    GUARD_AUTO(s);
    size_t size = 0;
    const char *text = guard_file_map(s, file, &size, NULL);
    char *sql = guard_memory_allocate_array(scope, size + 1, 1, NULL);
    return size == 0 ? sql : memcpy(sql, text, size);
}
