/* SPDX-License-Identifier: MIT */
#include "stop.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>

#include <guard/guard.h>

static volatile sig_atomic_t stop_signal;

static void note_signal(int number)
{
    if (stop_signal == 0) {
        stop_signal = number;
    }
}

void stop_on_signals(void)
{
    /* Without SA_RESTART: a read of standard input must end. */
    struct sigaction action = {.sa_handler = note_signal};
    static const int numbers[] = {SIGINT, SIGTERM};
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        struct sigaction before;
        if (sigaction(numbers[i], NULL, &before) != 0 ||
            (before.sa_handler != SIG_IGN && sigaction(numbers[i], &action, NULL) != 0)) {
            guard_panic_os("signal %d cannot be handled", numbers[i]);
        }
    }
}

int stop_requested(void)
{
    return stop_signal;
}

void stop_check(void)
{
    if (stop_signal != 0) {
        guard_panic_in(GUARD_CANCELLED, ECANCELED, "stopped by signal %d", (int)stop_signal);
    }
}
