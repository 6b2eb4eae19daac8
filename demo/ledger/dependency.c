/* SPDX-License-Identifier: MIT */
#include "dependency.h"

#include <guard/tx.h>

#include "json.h"
#include "log.h"

/* Half of five calls within 10 s open it, for 3 s: so few that it can be seen by hand. */
enum { CALLS = 5, OPEN_MS = 3000 };

static const char *const names[DEPENDENCIES] = {"database", "receipts"};
static guard_breaker *breakers[DEPENDENCIES];

/* A fault or a full disk for receipts, in the middle of a transaction, says nothing of the database. */
static guard_verdict judge_database(const guard_error *error)
{
    if (error->domain == GUARD_TX && error->code == GUARD_TX_IN_DOUBT) {
        return GUARD_VERDICT_FAILED;
    }
    return error->domain == GUARD_OS || error->domain == GUARD_FAULT ? GUARD_VERDICT_NONE : guard_breaker_judge(error);
}

void dependency_open(guard_scope *scope)
{
    guard_breaker_options options = {.calls = CALLS, .open_ms = OPEN_MS, .judge = judge_database, .log = log_get()};
    breakers[DEPENDENCY_DATABASE] = guard_breaker_open(scope, names[DEPENDENCY_DATABASE], &options);
    options.judge = NULL;
    breakers[DEPENDENCY_RECEIPTS] = guard_breaker_open(scope, names[DEPENDENCY_RECEIPTS], &options);
}

void dependency_call(dependency which, guard_fn *fn, void *arg)
{
    guard_error error;
    if (guard_breaker_call(breakers[which], fn, arg, &error) != 0) {
        guard_panic_error(&error);
    }
}

int64_t dependency_retry_ms(void)
{
    int64_t longest = 0;
    for (int i = 0; i < DEPENDENCIES; i++) {
        int64_t ms = guard_breaker_retry_ms(breakers[i]);
        longest = ms > longest ? ms : longest;
    }
    return longest;
}

json_t *dependency_status(guard_scope *scope)
{
    static const char *const states[] = {"closed", "open", "half-open"};
    json_t *list = json_own(scope, json_array());
    for (int i = 0; i < DEPENDENCIES; i++) {
        guard_breaker_figures figures;
        guard_breaker_read(breakers[i], &figures);
        json_append(list, json_pack("{sssssIsI}", "name", names[i], "state", states[figures.state], "refused",
                                    (json_int_t)figures.refused, "retry_ms",
                                    (json_int_t)guard_breaker_retry_ms(breakers[i])));
    }
    return list;
}
