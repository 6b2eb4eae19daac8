/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "faults.h"

/* UBSan would find them first. */
#define UNCHECKED __attribute__((no_sanitize("undefined")))

static char *volatile fault_nothing;
static volatile int fault_sink;

UNCHECKED void fault_read_null(void *arg)
{
    (void)arg;
    fault_sink = *(volatile char *)fault_nothing;
}

UNCHECKED void fault_write_null(void *arg)
{
    (void)arg;
    *(volatile char *)fault_nothing = 1;
}

UNCHECKED void fault_read_far(void *arg)
{
    (void)arg;
    fault_sink = ((volatile char *)fault_nothing)[40000];
}

UNCHECKED void fault_call_null(void *arg)
{
    void (*volatile fn)(void *) = NULL;
    fn(arg);
    fault_sink = 1; /* the call is no jump */
}

void fault_write_constant(void *arg)
{
    static const char constant[] = "constant";
    const char *volatile at = constant;
    (void)arg;
    *(volatile char *)(size_t)at = 'C';
}

void fault_read_cut_file(void *arg)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    FILE *file = tmpfile();
    (void)arg;
    if (file == NULL || ftruncate(fileno(file), (off_t)page) != 0) {
        abort();
    }
    volatile char *map = mmap(NULL, page, PROT_READ, MAP_SHARED, fileno(file), 0);
    if (map == MAP_FAILED || ftruncate(fileno(file), 0) != 0) {
        abort();
    }
    fclose(file);
    fault_sink = map[1];
}

UNCHECKED void fault_in_libc(void *arg)
{
    void *(*volatile copy)(void *, const void *, size_t) = memcpy;
    char buffer[64];
    (void)arg;
    copy(buffer, fault_nothing, sizeof buffer);
    fault_sink = buffer[0];
}

static int overflow(volatile char *outer)
{
    volatile char here[512];
    here[0] = outer[0];
    return here[0] != 0 ? overflow(here) + here[0] : 0;
}

void fault_overflow(void *arg)
{
    volatile char here[1] = {1};
    (void)arg;
    fault_sink = overflow(here);
}

#ifdef __x86_64__
UNCHECKED void fault_divide_by_zero(void *arg)
{
    volatile int zero = 0;
    volatile int many = 1000; /* gcc makes comparisons of 1 / zero */
    (void)arg;
    fault_sink = many / zero;
}

UNCHECKED void fault_read_noncanonical(void *arg)
{
    const char *volatile at = (const char *)0x8000000000000000U;
    (void)arg;
    fault_sink = *(const volatile char *)at;
}
#endif
