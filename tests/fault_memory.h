/* SPDX-License-Identifier: MIT */
/*
 * fault_memory.h: memory for guard_allocator that counts what is taken and fails on demand.
 *
 *     fault_memory_install();                          // before the process's first scope: at the start of a test
 *     for (unsigned long n = 1;; n++) {                // fail every allocation in turn
 *         fault_memory_fail_at(n);
 *         ... the scenario: it works, or fails as promised ...
 *         ck_assert_uint_eq(fault_memory_blocks(), before);   // and gives everything back
 *         if (!fault_memory_was_hit()) {
 *             break;                                   // n outran the count
 *         }
 *     }
 *
 * What is released is overwritten first, so that a use of it is seen without a sanitizer. Any thread may take and release; the faults
 * are set by one.
 */
#ifndef TESTS_FAULT_MEMORY_H
#define TESTS_FAULT_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

#include <guard/guard.h>

void fault_memory_install(void);

/* The nth allocation from now on fails, 1 is the next; 0: none. */
void fault_memory_fail_at(unsigned long n);

/* The nth and every later one. */
void fault_memory_fail_from(unsigned long n);

/* Whether an allocation was failed since the last of the two calls above. */
bool fault_memory_was_hit(void);

/* What is taken and not released; the bytes as malloc rounds them. */
size_t fault_memory_blocks(void);
size_t fault_memory_bytes(void);

/* Allocations since fault_memory_install, the failed ones too. */
unsigned long fault_memory_taken(void);

/*
 * Runs fn(arg) in a border again and again, and fails each of its allocations in turn, until it has as many as it wants: each other time it has to
 * end with ENOMEM, and to leave nothing behind. Returns how many allocations it has.
 */
unsigned long fault_memory_fail_each(guard_fn *fn, void *arg);

#endif
