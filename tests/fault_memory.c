/* SPDX-License-Identifier: MIT */
/* fault_memory.c: each block carries its size in front, so that bytes can be counted and overwritten at release. */
#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <guard/guard.h>

#include "fault_memory.h"

typedef struct block {
    size_t size;
    size_t mark;
} block;

#define BLOCK_TAKEN ((size_t)0x6b636f6c62)

static atomic_ulong taken;
static atomic_size_t blocks;
static atomic_size_t bytes;
static atomic_ulong fail_first; /* 0 and 0: none, for numbers begin at 1 */
static atomic_ulong fail_last;
static atomic_bool hit;

static void *fault_memory_take(size_t size)
{
    unsigned long number = atomic_fetch_add(&taken, 1) + 1;
    if (number >= fail_first && number <= fail_last) {
        hit = true;
        return NULL;
    }
    block *at = malloc(sizeof *at + size);
    if (at == NULL) {
        return NULL;
    }
    at->size = size;
    at->mark = BLOCK_TAKEN;
    blocks++;
    bytes += size;
    return at + 1;
}

static void fault_memory_give(void *memory)
{
    block *at = (block *)memory - 1;
    if (at->mark != BLOCK_TAKEN) {
        abort(); /* released twice, or never taken here */
    }
    blocks--;
    bytes -= at->size;
    memset(at, 0xA5, sizeof *at + at->size);
    free(at);
}

void fault_memory_install(void)
{
    guard_allocator(fault_memory_take, fault_memory_give);
}

static void fault_memory_fail(unsigned long first, unsigned long last)
{
    hit = false;
    fail_first = first;
    fail_last = last;
}

void fault_memory_fail_at(unsigned long n)
{
    unsigned long number = n != 0 ? taken + n : 0;
    fault_memory_fail(number, number);
}

void fault_memory_fail_from(unsigned long n)
{
    fault_memory_fail(taken + n, ULONG_MAX);
}

bool fault_memory_was_hit(void)
{
    return hit;
}

size_t fault_memory_blocks(void)
{
    return blocks;
}

size_t fault_memory_bytes(void)
{
    return bytes;
}

unsigned long fault_memory_taken(void)
{
    return taken;
}
