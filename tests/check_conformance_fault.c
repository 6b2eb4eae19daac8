/* SPDX-License-Identifier: MIT */
/*
 * check_conformance_fault.c: Go's own tests in which the processor raises the panic, restated. Each names the file it is from; the list is
 * guard/CONFORMANCE.md.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <guard/guard_fault.h>
#include <guard/guard_trace.h>

#include "conform.h"
#include "faults.h"
#include "suite.h"

/* UBSan would find them first. */
#define UNCHECKED __attribute__((noinline, no_sanitize("undefined")))

static guard_error error;

static void want_panic(const char *name, guard_fn *fn, int signo)
{
    memset(&error, 0, sizeof error);
    ck_assert_msg(guard_run(fn, NULL, &error) != 0, "%s did not panic", name);
    ck_assert_msg(error.domain == GUARD_FAULT && error.code == signo, "%s: %s", name, error.message);
}

/* --------------------------------------------------------------------------------------------- divisions -- */

#ifdef __x86_64__

#define DIVISIONS(type)                                 \
    static volatile type type##_zero;                   \
    static volatile type type##_many = 100;             \
    static volatile type type##_out;                    \
    static UNCHECKED void type##_quotient(void *arg)    \
    {                                                   \
        (void)arg;                                      \
        type##_out = (type)(type##_many / type##_zero); \
    }                                                   \
    static UNCHECKED void type##_rest(void *arg)        \
    {                                                   \
        (void)arg;                                      \
        type##_out = (type)(type##_many % type##_zero); \
    }

DIVISIONS(int8_t)
DIVISIONS(int16_t)
DIVISIONS(int32_t)
DIVISIONS(int64_t)
DIVISIONS(uint8_t)
DIVISIONS(uint16_t)
DIVISIONS(uint32_t)
DIVISIONS(uint64_t)

/* zerodivide.go, and recover2.go test7; floating-point divisions have a result there as here. */
START_TEST(a_division_by_zero_of_each_integer_type_panics)
{
    static const struct {
        const char *name;
        guard_fn *fn;
    } tests[] = {{"int8 /", int8_t_quotient},     {"int8 %", int8_t_rest},         {"int16 /", int16_t_quotient},
                 {"int16 %", int16_t_rest},       {"int32 /", int32_t_quotient},   {"int32 %", int32_t_rest},
                 {"int64 /", int64_t_quotient},   {"int64 %", int64_t_rest},       {"uint8 /", uint8_t_quotient},
                 {"uint8 %", uint8_t_rest},       {"uint16 /", uint16_t_quotient}, {"uint16 %", uint16_t_rest},
                 {"uint32 /", uint32_t_quotient}, {"uint32 %", uint32_t_rest},     {"uint64 /", uint64_t_quotient},
                 {"uint64 %", uint64_t_rest}};
    ck_assert_int_eq(guard_faults_to_panics(), 0);
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        want_panic(tests[i].name, tests[i].fn, SIGFPE);
        ck_assert_msg(strstr(error.message, "integer division by zero") != NULL, "%s: %s", tests[i].name,
                      error.message);
    }
}
END_TEST

static volatile int issue1304_a = 1;

static UNCHECKED void issue1304(void *arg)
{
    (void)arg;
    issue1304_a = 2;
    int b = issue1304_a - issue1304_a;
    int c = 4;
    issue1304_a = c / b;
    issue1304_a = 3;
}

/* fixedbugs/issue1304.go */
START_TEST(what_comes_after_the_fault_has_not_happened)
{
    ck_assert_int_eq(guard_faults_to_panics(), 0);
    want_panic("4 / 0", issue1304, SIGFPE);
    ck_assert_int_eq(issue1304_a, 2);
}
END_TEST

static void look_around(guard_recovery *recovery, void *arg)
{
    ck_assert_uint_gt(guard_trace_here(arg), 5);
    guard_recover(recovery);
}

static void divide_and_look(void *arg)
{
    GUARD_AUTO(s);
    guard_defer_recover(s, look_around, arg);
    fault_divide_by_zero(NULL);
}

/* fixedbugs/issue10486.go */
START_TEST(the_stack_can_be_walked_in_a_deferred_function_after_a_fault)
{
    guard_trace trace;
    ck_assert_int_eq(guard_faults_to_panics(), 0);
    ck_assert_int_eq(guard_run(divide_and_look, &trace, NULL), 0);
}
END_TEST

#endif

/* ----------------------------------------------------------------------------------------------- pointers -- */

typedef struct big {
    int i;
    double j;
    const char *k;
    char x[128 << 20];
    int l;
} big;

static int *volatile intp;
static int (*volatile a10p)[10];
static big *volatile bigp;
static volatile int nine = 9;
static volatile double sink;

#define READ(name, what)                  \
    static UNCHECKED void name(void *arg) \
    {                                     \
        (void)arg;                        \
        sink = (double)(what);            \
    }

READ(read_int, *(volatile int *)intp)
READ(read_first, *(volatile int *)&(*a10p)[0])
READ(read_nth, *(volatile int *)&(*a10p)[nine])
READ(read_member, *(volatile int *)&bigp->i)
READ(read_double, *(volatile double *)&bigp->j)
READ(read_pointer, *(const char *volatile *)&bigp->k != NULL)
READ(read_element, *(volatile char *)&bigp->x[nine])
READ(read_far, *(volatile char *)&bigp->x[100 << 20])
READ(read_behind, *(volatile int *)&bigp->l)

/* nilptr2.go: what reads. The address of a member of nothing is a fault in Go, not in C. */
START_TEST(each_way_to_read_through_a_null_pointer_panics)
{
    static const struct {
        const char *name;
        guard_fn *fn;
    } tests[] = {{"*intp", read_int},         {"a10p[0]", read_first},       {"a10p[i]", read_nth},
                 {"bigp.i", read_member},     {"bigp.j", read_double},       {"bigp.k", read_pointer},
                 {"bigp.x[i]", read_element}, {"bigp.x[100<<20]", read_far}, {"bigp.l", read_behind}};
    ck_assert_int_eq(guard_faults_to_panics(), 0);
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        want_panic(tests[i].name, tests[i].fn, SIGSEGV);
    }
}
END_TEST

typedef struct copying {
    char *to;
    const char *from;
    size_t length;
    volatile size_t n; /* volatile is what C asks for what Go promises */
} copying;

static void copy_bytes(void *arg)
{
    copying *c = arg;
    for (size_t i = 0; i < c->length; i++) {
        c->to[i] = ((volatile const char *)c->from)[i];
        c->n++;
    }
}

/* recover4.go */
START_TEST(after_a_fault_in_a_copy_its_count_is_that_of_the_bytes_copied)
{
    enum { OFFSET = 5 };
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t size = 16 * page;
    char *data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
    ck_assert_ptr_ne(data, MAP_FAILED);
    ck_assert_int_eq(mprotect(data + size / 2, size / 4, PROT_NONE), 0);
    ck_assert_int_eq(guard_faults_to_panics(), 0);
    copying c = {.to = malloc(size), .from = data + OFFSET, .length = size - OFFSET};
    ck_assert_int_eq(guard_run(copy_bytes, &c, &error), SIGSEGV);
    ck_assert_msg(strstr(error.message, "(not allowed there)") != NULL, "%s", error.message);
    ck_assert_uint_eq(c.n, size / 2 - OFFSET);
    free(c.to);
    munmap(data, size);
}
END_TEST

static UNCHECKED void jump_deep(int n)
{
    static char no_code[64];
    volatile uintptr_t to = (uintptr_t)no_code;
    if (n > 0) {
        jump_deep(n - 1);
    }
    ((void (*)(void))to)();
    sink = n;
}

static void jump(void *arg)
{
    (void)arg;
    jump_deep(20);
}

/* fixedbugs/issue11656.go: a call of data, twenty calls deep; its caller is on the stack of the panic. */
START_TEST(a_call_of_what_is_no_code_is_its_callers_panic)
{
    guard_trace trace;
    ck_assert_int_eq(guard_faults_to_panics(), 0);
    guard_trace_capture(1);
    want_panic("jump", jump, SIGSEGV);
    ck_assert_uint_gt(guard_trace_of(&error, &trace), 20);
    for (int i = 0; i < 20; i++) {
        ck_assert_msg((uintptr_t)trace.frames[i] - (uintptr_t)jump_deep < 500, "frame %d is %p", i, trace.frames[i]);
    }
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
#ifdef __x86_64__
        a_division_by_zero_of_each_integer_type_panics,
        what_comes_after_the_fault_has_not_happened,
        the_stack_can_be_walked_in_a_deferred_function_after_a_fault,
#endif
        each_way_to_read_through_a_null_pointer_panics,
        after_a_fault_in_a_copy_its_count_is_that_of_the_bytes_copied,
        a_call_of_what_is_no_code_is_its_callers_panic,
    };
    return suite_run("conformance_fault", tests, sizeof tests / sizeof *tests);
}
