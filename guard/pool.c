/* SPDX-License-Identifier: MIT */
/*
 * pool.c: records for registrations, without malloc in steady state.
 *
 *     first records (in the thread's state or the owner)        chunk -> chunk -> ...
 *               \______________________ one free list ______________________/
 *
 * Invariants: a record never moves. It is in the free list or linked in one scope (or carries the bytes of a small
 * copy). Its generation only grows while its memory lives, and the generations of a new chunk begin beyond those of every chunk
 * given back, so a ticket never fits a record that it does not name. A ticket's record is looked for in the pool
 * before it is read, since its chunk may be gone.
 *
 * Of the newest chunk only the records up to `count` were ever free. The rest of its memory is untouched; the next ones become free when
 * no other is. A chunk behind the newest has all of its records.
 *
 * Giving memory back: a trim walks all free records, so it runs only after as many were freed as half the pool holds,
 * which keeps it linear. It keeps one spare chunk: a loop that goes just beyond the first records does not allocate at each turn.
 */
#include "internal.h"

/* Puts records that were never used in front of the free ones. */
static void pool_link(guard_pool *pool, guard_impl_record *records, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        records[i].next = &records[i + 1];
        records[i].generation = pool->generation;
        records[i].flags = 0;
    }
    records[count - 1].next = *pool->free;
    *pool->free = records;
}

void guard_pool_open(guard_pool *pool, guard_impl_record **free_list, guard_impl_record *first, uint32_t count)
{
    *pool = (guard_pool){.free = free_list, .first = first, .first_count = count, .generation = 1};
    *free_list = NULL;
    if (count > 0) {
        pool_link(pool, first, count);
    }
}

void guard_pool_close(guard_pool *pool)
{
    while (pool->chunks != NULL) {
        guard_chunk *chunk = pool->chunks;
        pool->chunks = chunk->next;
        guard_deallocate(chunk);
    }
    *pool->free = NULL;
}

static guard_chunk *pool_add_chunk(guard_pool *pool)
{
    guard_chunk *chunk = guard_memory_take(sizeof *chunk);
    if (chunk != NULL) {
        chunk->next = pool->chunks;
        chunk->count = 0;
        pool->chunks = chunk;
        pool->chunk_count++;
    }
    return chunk;
}

bool guard_pool_grow(guard_pool *pool)
{
    guard_chunk *chunk = pool->chunks;
    if (chunk == NULL || chunk->count == POOL_CHUNK) {
        chunk = pool_add_chunk(pool);
        if (chunk == NULL) {
            return false;
        }
    }
    pool_link(pool, chunk->records + chunk->count, POOL_STEP);
    chunk->count += POOL_STEP;
    return true;
}

static bool pool_among(const guard_impl_record *records, uint32_t count, const guard_impl_record *record)
{
    uintptr_t offset = (uintptr_t)record - (uintptr_t)records;
    return offset < count * sizeof *records && offset % sizeof *records == 0;
}

bool guard_pool_holds(const guard_pool *pool, const guard_impl_record *record)
{
    if (pool_among(pool->first, pool->first_count, record)) {
        return true;
    }
    for (const guard_chunk *chunk = pool->chunks; chunk != NULL; chunk = chunk->next) {
        if (pool_among(chunk->records, chunk->count, record)) {
            return true;
        }
    }
    return false;
}

/* ------------------------------------------------------------------------------------------- giving back -- */

static guard_free_list *list_open(guard_free_list *list)
{
    *list = (guard_free_list){.tail = &list->head};
    return list;
}

/* A record's memory: a chunk, or the first records. */
typedef struct pool_range {
    const guard_impl_record *records;
    uint32_t count;
    guard_free_list *list;
} pool_range;

/* Where a free record lies. Each chunk that is looked at for it is a step. */
static pool_range pool_range_of(guard_pool *pool, const guard_impl_record *record, guard_free_list *first,
                                uint64_t *steps)
{
    for (guard_chunk *chunk = pool->chunks; chunk != NULL; chunk = chunk->next, ++*steps) {
        if (pool_among(chunk->records, POOL_CHUNK, record)) {
            return (pool_range){chunk->records, POOL_CHUNK, &chunk->list};
        }
    }
    return (pool_range){pool->first, pool->first_count, first};
}

/* Appends the records from `record` on that lie in the range, which are mostly many. Returns the first that does not. */
static guard_impl_record *list_add_run(const pool_range *range, guard_impl_record *record)
{
    guard_free_list *list = range->list;
    uintptr_t size = range->count * sizeof *record;
    *list->tail = record;
    guard_impl_record **tail;
    uint32_t generation = list->generation;
    uint32_t count = list->count;
    do {
        generation = record->generation > generation ? record->generation : generation;
        count++;
        tail = &record->next;
        record = *tail;
    } while ((uintptr_t)record - (uintptr_t)range->records < size);
    list->tail = tail;
    list->generation = generation;
    list->count = count;
    return record;
}

/*
 * Hands each free record to the list of its chunk. Scopes give their records back in order, so that the free list runs through one chunk after
 * another. Where it does not, because tickets were released in another order, looking for chunks would not be linear: then it
 * returns what is left of the free list.
 */
static guard_impl_record *pool_sort(guard_pool *pool, guard_free_list *first)
{
    uint64_t steps = 0;
    uint64_t most = (uint64_t)pool->chunk_count * POOL_CHUNK;
    guard_impl_record *record = *pool->free;
    while (record != NULL && steps < most) {
        pool_range range = pool_range_of(pool, record, first, &steps);
        record = list_add_run(&range, record);
    }
    return record;
}

static void list_add_marked(guard_free_list *list, guard_impl_record *records, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (records[i].flags == RECORD_FREE) {
            records[i].flags = 0;
            records[i].next = NULL;
            list_add_run(&(pool_range){&records[i], 1, list}, &records[i]);
        }
    }
}

/* Does the same in any order: each record of the rest is touched twice. */
static void pool_sort_by_marks(guard_pool *pool, guard_free_list *first, guard_impl_record *rest)
{
    for (; rest != NULL; rest = rest->next) {
        rest->flags = RECORD_FREE;
    }
    for (guard_chunk *chunk = pool->chunks; chunk != NULL; chunk = chunk->next) {
        list_add_marked(&chunk->list, chunk->records, chunk->count);
    }
    list_add_marked(first, pool->first, pool->first_count);
}

static void chunk_give_back(guard_pool *pool, guard_chunk *chunk)
{
    if (chunk->list.generation >= pool->generation) {
        pool->generation = chunk->list.generation + 1;
    }
    pool->chunk_count--;
    guard_deallocate(chunk);
}

static void pool_put_front(guard_pool *pool, guard_free_list *list)
{
    *list->tail = *pool->free;
    *pool->free = list->head;
}

void guard_pool_trim(guard_pool *pool)
{
    guard_free_list first;
    list_open(&first);
    for (guard_chunk *chunk = pool->chunks; chunk != NULL; chunk = chunk->next) {
        list_open(&chunk->list);
    }
    guard_impl_record *rest = pool_sort(pool, &first);
    if (rest != NULL) {
        pool_sort_by_marks(pool, &first, rest);
    }
    *pool->free = NULL;
    bool spare = false;
    for (guard_chunk **at = &pool->chunks; *at != NULL;) {
        guard_chunk *chunk = *at;
        bool is_free = chunk->list.count == chunk->count;
        if (is_free && spare) {
            *at = chunk->next;
            chunk_give_back(pool, chunk);
            continue;
        }
        spare = spare || is_free;
        pool_put_front(pool, &chunk->list);
        at = &chunk->next;
    }
    pool_put_front(pool, &first);
    pool->freed = 0;
}
