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
 * Giving memory back: a trim walks all records, so it runs only after as many were freed as half the pool holds,
 * which keeps it linear. It keeps one spare chunk: a loop that goes just beyond the first records does not allocate at each turn.
 */
#include "internal.h"

static void pool_link(guard_pool *pool, guard_impl_record *records, uint32_t count)
{
    for (uint32_t i = count; i-- > 0;) {
        records[i].next = *pool->free;
        *pool->free = &records[i];
    }
}

static void pool_number(guard_impl_record *records, uint32_t count, uint32_t generation)
{
    for (uint32_t i = 0; i < count; i++) {
        records[i].generation = generation;
    }
}

void guard_pool_open(guard_pool *pool, guard_impl_record **free_list, guard_impl_record *first, uint32_t count)
{
    *pool = (guard_pool){.free = free_list, .first = first, .first_count = count, .generation = 1};
    *free_list = NULL;
    pool_number(first, count, pool->generation);
    pool_link(pool, first, count);
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

bool guard_pool_grow(guard_pool *pool)
{
    guard_chunk *chunk = guard_memory_take(sizeof *chunk);
    if (chunk == NULL) {
        return false;
    }
    chunk->next = pool->chunks;
    pool->chunks = chunk;
    pool->chunk_count++;
    pool_number(chunk->records, POOL_CHUNK, pool->generation);
    pool_link(pool, chunk->records, POOL_CHUNK);
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
        if (pool_among(chunk->records, POOL_CHUNK, record)) {
            return true;
        }
    }
    return false;
}

static bool chunk_is_free(const guard_chunk *chunk)
{
    for (uint32_t i = 0; i < POOL_CHUNK; i++) {
        if (chunk->records[i].flags != RECORD_FREE) {
            return false;
        }
    }
    return true;
}

static void chunk_give_back(guard_pool *pool, guard_chunk *chunk)
{
    for (uint32_t i = 0; i < POOL_CHUNK; i++) {
        if (chunk->records[i].generation >= pool->generation) {
            pool->generation = chunk->records[i].generation + 1;
        }
    }
    pool->chunk_count--;
    guard_deallocate(chunk);
}

static void pool_relink_free(guard_pool *pool, guard_impl_record *records, uint32_t count)
{
    for (uint32_t i = count; i-- > 0;) {
        if (records[i].flags == RECORD_FREE) {
            records[i].flags = 0;
            records[i].next = *pool->free;
            *pool->free = &records[i];
        }
    }
}

void guard_pool_trim(guard_pool *pool)
{
    for (guard_impl_record *record = *pool->free; record != NULL; record = record->next) {
        record->flags = RECORD_FREE;
    }
    *pool->free = NULL;
    bool spare = false;
    for (guard_chunk **at = &pool->chunks; *at != NULL;) {
        guard_chunk *chunk = *at;
        bool is_free = chunk_is_free(chunk);
        if (is_free && spare) {
            *at = chunk->next;
            chunk_give_back(pool, chunk);
            continue;
        }
        spare = spare || is_free;
        pool_relink_free(pool, chunk->records, POOL_CHUNK);
        at = &chunk->next;
    }
    pool_relink_free(pool, pool->first, pool->first_count);
    pool->freed = 0;
}
