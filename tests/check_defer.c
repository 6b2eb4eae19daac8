/* SPDX-License-Identifier: MIT */
/* check_defer.c: what is registered runs when its scope ends, in the promised order, once (behaviours 1, 2, 3, 5, 8, 12, 20). */
#include <stdlib.h>
#include <string.h>

#include <guard/guard.h>

#include "suite.h"
#include "trace.h"

/* Go: test/defer.go */
START_TEST(ten_defers_in_a_loop_run_newest_first)
{
    static const char *const digits[] = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"};
    {
        GUARD_AUTO(s);
        for (int i = 0; i < 10; i++) {
            guard_defer(s, trace_run, (void *)(uintptr_t)digits[i]);
        }
        ck_assert_str_eq(trace_text(), "");
    }
    trace_expect("run 9, run 8, run 7, run 6, run 5, run 4, run 3, run 2, run 1, run 0");
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        ten_defers_in_a_loop_run_newest_first,
    };
    return suite_run("defer", tests, sizeof tests / sizeof *tests);
}
