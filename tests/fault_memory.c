/* SPDX-License-Identifier: MIT */
/* fault_memory.c: what a block holds is asked of malloc, so that a leak checker finds the pointers it expects. */
#include <check.h>
#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <guard/guard.h>

#include "fault_memory.h"

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
    void *memory = malloc(size);
    if (memory != NULL) {
        blocks++;
        bytes += malloc_usable_size(memory);
    }
    return memory;
}

static void fault_memory_give(void *memory)
{
    size_t size = malloc_usable_size(memory);
    blocks--;
    bytes -= size;
    memset(memory, 0xA5, size);
    __asm__ volatile("" : : "r"(memory) : "memory"); /* or it is optimised away */
    free(memory);
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

unsigned long fault_memory_fail_each(guard_fn *fn, void *arg)
{
    size_t before = fault_memory_blocks();
    for (unsigned long n = 1;; n++) {
        guard_error error = {.code = 0};
        fault_memory_fail_at(n);
        int code = guard_run(fn, arg, &error);
        bool was_hit = fault_memory_was_hit();
        fault_memory_fail_at(0);
        ck_assert_msg(code == (was_hit ? ENOMEM : 0), "allocation %lu: code %d, %s", n, code, error.message);
        ck_assert_uint_eq(fault_memory_blocks(), before);
        if (!was_hit) {
            return n - 1;
        }
    }
}
