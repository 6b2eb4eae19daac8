/* SPDX-License-Identifier: MIT */
/*
 * fault_panics.c: faults are panics however the core and its user are compiled; tests/check_compilers builds it in many ways. Exits with 0,
 * or says what it found.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <guard/guard_fault.h>

#include "faults.c"

#define EXPECT(condition)                                                     \
    do {                                                                      \
        if (!(condition)) {                                                   \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, (#condition)); \
            exit(1);                                                          \
        }                                                                     \
    } while (0)

static guard_error error;
static volatile int ran;

static void count(void *arg)
{
    ran += *(int *)arg;
}

typedef struct work {
    guard_fn *fault;
    int one;
    int ten;
} work;

static void fault_among_scopes(void *arg)
{
    work *w = arg;
    GUARD_AUTO(s);
    guard_defer(s, count, &w->one);
    GUARD_SCOPE (t) {
        guard_defer(t, count, &w->ten);
        w->fault(NULL);
    }
    ran += 1000;
}

static volatile int seed = 7;

/* The frame that closes keeps what it had in registers, whichever function faulted on its behalf. */
static __attribute__((noinline)) int close_with_fault(guard_fn *fault, int count_of)
{
    static int one = 1;
    int a = seed * 3, b = seed * 5, c = seed * 7, d = seed * 11, e = seed * 13;
    {
        GUARD_AUTO(s);
        if (count_of > 1) {
            guard_defer(s, count, &one);
        }
        guard_defer(s, fault, NULL);
    }
    return a + b + c + d + e;
}

static void close_one(void *arg)
{
    work *w = arg;
    w->one = close_with_fault(w->fault, 1);
}

static void close_two(void *arg)
{
    work *w = arg;
    w->one = close_with_fault(w->fault, 2);
}

static void try_fault(guard_fn *fault, int signo)
{
    work w = {fault, 1, 10};
    ran = 0;
    EXPECT(guard_run(fault_among_scopes, &w, &error) == signo);
    EXPECT(error.domain == GUARD_FAULT);
    EXPECT(ran == 11);
    for (int i = 0; i < 2; i++) {
        memset(&error, 0, sizeof error);
        EXPECT(guard_run(i == 0 ? close_one : close_two, &w, &error) == signo);
        EXPECT(error.domain == GUARD_FAULT);
        EXPECT(w.one == 7 * (3 + 5 + 7 + 11 + 13));
    }
}

int main(void)
{
    int code = guard_faults_to_panics();
    if (code != 0) {
        fprintf(stderr, "guard_faults_to_panics: %s\n", strerror(code));
        return 77;
    }
    for (int i = 0; i < 100; i++) {
        try_fault(fault_read_null, SIGSEGV);
        try_fault(fault_write_null, SIGSEGV);
        try_fault(fault_call_null, SIGSEGV);
        try_fault(fault_write_constant, SIGSEGV);
        try_fault(fault_read_cut_file, SIGBUS);
#ifdef __x86_64__
        try_fault(fault_divide_by_zero, SIGFPE);
        try_fault(fault_read_noncanonical, SIGSEGV);
#endif
    }
    return 0;
}
