/* SPDX-License-Identifier: MIT */
#include <signal.h>
#include <sys/resource.h>

#include "faults.h"

typedef struct child_work {
    void (*fn)(void *arg);
    void *arg;
} child_work;

static void run_without_handlers(void *memory)
{
    static const int crashes[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    /* Where stacks are not limited, one that overflows takes all memory first. */
    static const struct rlimit eight_mib = {8 << 20, 8 << 20};
    const child_work *work = memory;
    setrlimit(RLIMIT_STACK, &eight_mib);
    for (unsigned i = 0; i < sizeof crashes / sizeof *crashes; i++) {
        signal(crashes[i], SIG_DFL);
    }
    work->fn(work->arg);
}

void fault_run_child(void (*fn)(void *arg), void *arg, child_result *result)
{
    child_work work = {fn, arg};
    child_run(run_without_handlers, &work, result);
}
