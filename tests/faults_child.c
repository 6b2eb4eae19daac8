/* SPDX-License-Identifier: MIT */
#include <signal.h>

#include "faults.h"

typedef struct child_work {
    void (*fn)(void *arg);
    void *arg;
} child_work;

static void run_without_handlers(void *memory)
{
    static const int crashes[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    const child_work *work = memory;
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
