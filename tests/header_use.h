/* SPDX-License-Identifier: MIT */
/*
 * What check_headers compiles as C11 and as C++17: every macro of <guard/guard.h> is expanded in user's code, which a lone
 * header does not do. Only compiled, never run.
 */
#ifndef HEADER_USE_H
#define HEADER_USE_H

#include <guard/guard.h>

static void header_use_release(void *arg)
{
    (void)arg;
}

static void header_use_recover(guard_recovery *recovery, void *arg)
{
    (void)arg;
    (void)guard_recover(recovery);
}

extern void header_use(int which);

void header_use(int which)
{
    static const guard_kind kind = {"thing", header_use_release, NULL, NULL, GUARD_KIND_HEAP, NULL, {NULL, NULL}};
    guard_error error;

    GUARD_AUTO(outer);
    GUARD_SCOPE (inner) {
        GUARD_SCOPE (innermost) {
            guard_defer(innermost, header_use_release, &error);
        }
        guard_ticket ticket = guard_defer_copy(inner, header_use_release, &which, sizeof which);
        guard_dismiss(ticket);
        guard_defer_on(inner, GUARD_ON_FAILURE, header_use_release, NULL);
        guard_defer_kind(outer, &kind, &error);
        guard_defer_recover(outer, header_use_recover, NULL);
    }
#ifndef __cplusplus
    GUARD_TRY(&error)
    {
        guard_panic(1, "one");
    }
    GUARD_CATCH
    {
        guard_panic_error(&error);
    }
#endif
    switch (which) {
    case 0:
        guard_panic_in(GUARD_USER, 1, "number %d", which);
    case 1:
        guard_panic_os("no argument");
    default:
        guard_misuse(GUARD_MISUSE_ARGUMENT, "number %d", which);
    }
}

#endif
