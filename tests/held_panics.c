/* SPDX-License-Identifier: MIT */
/*
 * held_panics.c: panics in automatic closes, for check_compilers, which builds it together with the core in many ways.
 *
 * What a deferred function of an automatic close raises must come back to that close whatever the optimiser made of the frames, and the
 * rest of the scope must run. Each case writes what happened into a trace; exit status 1 names the cases that differ.
 * With the argument "border" the program was built without call frame information: then the panic goes on to its border at once.
 */
#include <stdio.h>
#include <string.h>

#include <guard/guard.h>

static char trace[256];
static volatile int never; /* the optimiser must not know that it stays 0 */

static void note(void *name)
{
    strcat(trace, name);
}

/* The compiler can see that it never returns. */
static void fail_always(void *name)
{
    strcat(trace, name);
    guard_panic(7, "%s", (const char *)name);
}

static void fail_now(void *name)
{
    if (never == 0) {
        guard_panic(7, "%s", (const char *)name);
    }
}

/* A panic from deeper, in the middle of work that must not be taken up again. */
static void fail_in_the_middle(void *name)
{
    strcat(trace, name);
    fail_now(name);
    strcat(trace, "WRONG");
}

static void fail_by_tail_call(void *name)
{
    fail_always(name);
}

static void release_badly(void *name)
{
    fail_in_the_middle(name);
}

static const guard_kind bad_kind = {.name = "bad", .release = release_badly};

static void fail_copy(void *copy)
{
    fail_in_the_middle(*(char **)copy);
}

static void recover(guard_recovery *recovery, void *name)
{
    strcat(trace, recovery != NULL ? name : "-");
    (void)guard_recover(recovery);
}

static void see(guard_recovery *recovery, void *name)
{
    strcat(trace, recovery != NULL ? name : "-");
}

/* A block that is left at once: nothing stands between the registration and the close. */
static void one_that_never_returns(void *arg)
{
    (void)arg;
    {
        GUARD_AUTO(s);
        guard_defer(s, fail_always, "a");
    }
    note("b");
}

static void one_in_the_middle(void *arg)
{
    (void)arg;
    for (int i = 0; i < 1; i++) {
        GUARD_AUTO(s);
        guard_defer(s, fail_in_the_middle, "a");
    }
    note("b");
}

static void one_in_the_block_form(void *arg)
{
    (void)arg;
    GUARD_SCOPE (s) {
        guard_defer(s, fail_by_tail_call, "a");
    }
    note("b");
}

/* The registers that a callee keeps must be as they were. */
static void one_between_locals(void *arg)
{
    (void)arg;
    int a = never + 1, b = never + 2, c = never + 3, d = never + 4, e = never + 5, f = never + 6, g = never + 7;
    for (int i = 0; i < 2; i++) {
        {
            GUARD_AUTO(s);
            guard_defer(s, i == 0 ? note : fail_in_the_middle, "a");
        }
        a += i, b += i, c += i, d += i, e += i, f += i, g += i;
    }
    if (a + b + c + d + e + f + g != 28 + 7) {
        note("LOCALS");
    }
    note("b");
}

static void one_of_a_kind(void *arg)
{
    (void)arg;
    {
        GUARD_AUTO(s);
        guard_defer_kind(s, &bad_kind, "a");
    }
    note("b");
}

static void one_copy(void *arg)
{
    const char *name = "a";
    (void)arg;
    {
        GUARD_AUTO(s);
        guard_defer_copy(s, fail_copy, &name, sizeof name);
    }
    note("b");
}

static void many(void *arg)
{
    (void)arg;
    {
        GUARD_AUTO(s);
        guard_defer(s, note, "d");
        guard_defer_on(s, GUARD_ON_SUCCESS, note, "WRONG");
        guard_defer_on(s, GUARD_ON_FAILURE, note, "c");
        guard_defer(s, fail_always, "b");
        guard_defer(s, note, "a");
    }
    note("e");
}

static void all_fail(void *arg)
{
    (void)arg;
    {
        GUARD_AUTO(s);
        guard_defer(s, fail_in_the_middle, "d");
        guard_defer_kind(s, &bad_kind, "c");
        guard_defer(s, fail_by_tail_call, "b");
        guard_defer_kind(s, &bad_kind, "a");
    }
    note("e");
}

static void nested(void *arg)
{
    (void)arg;
    {
        GUARD_AUTO(outer);
        guard_defer(outer, fail_in_the_middle, "d");
        guard_defer(outer, note, "c");
        {
            GUARD_AUTO(inner);
            guard_defer(inner, fail_in_the_middle, "b");
            guard_defer(inner, note, "a");
        }
    }
    note("e");
}

static void deferred_scope(void *arg)
{
    (void)arg;
    strcat(trace, "a");
    {
        GUARD_AUTO(s);
        guard_defer(s, fail_in_the_middle, "b");
    }
    strcat(trace, "c");
}

static void held_in_a_deferred_function(void *arg)
{
    (void)arg;
    {
        GUARD_AUTO(s);
        guard_defer(s, note, "d");
        guard_defer(s, deferred_scope, NULL);
    }
    note("e");
}

static void recovered(void *arg)
{
    (void)arg;
    {
        GUARD_AUTO(s);
        guard_defer_recover(s, see, "WRONG");
        guard_defer(s, note, "d");
        guard_defer_recover(s, recover, "c");
        guard_defer(s, fail_in_the_middle, "b");
        guard_defer(s, note, "a");
    }
    note("e");
    GUARD_AUTO(next); /* nothing is held any more */
    note("f");
}

static const struct {
    const char *name;
    guard_fn *body;
    const char *trace;        /* what must have happened */
    const char *border_trace; /* where the frame cannot be found */
    int code;
} cases[] = {
    {"one that never returns", one_that_never_returns, "ab", "a", 7},
    {"one in the middle of its work", one_in_the_middle, "ab", "a", 7},
    {"one in the block form", one_in_the_block_form, "ab", "a", 7},
    {"one between locals", one_between_locals, "aab", "aa", 7},
    {"one of a kind", one_of_a_kind, "ab", "a", 7},
    {"one copy", one_copy, "ab", "a", 7},
    {"many", many, "abcde", "abcd", 7},
    {"all fail", all_fail, "abcde", "abcd", 7},
    {"nested", nested, "abcde", "abcd", 7},
    {"held in a deferred function", held_in_a_deferred_function, "abcde", "abd", 7},
    {"recovered", recovered, "abcd-ef", "abcd-", 0},
};

int main(int argc, char **argv)
{
    int border = argc > 1 && strcmp(argv[1], "border") == 0;
    int failed = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *expected = border ? cases[i].border_trace : cases[i].trace;
        guard_error error;
        trace[0] = '\0';
        int code = guard_run(cases[i].body, NULL, &error);
        if (code != cases[i].code || strcmp(trace, expected) != 0) {
            printf("%s: code %d and \"%s\", not %d and \"%s\"\n", cases[i].name, code, trace, cases[i].code, expected);
            failed = 1;
        }
    }
    return failed;
}
