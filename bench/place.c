/* SPDX-License-Identifier: MIT */
/*
 * place.c: a client and its server on one processor.
 *
 * The two take turns and never run at once. On two processors each turn wakes the other one up, which takes 40 or 140 µs by where the
 * scheduler had put them, in any round (medians of pq-tx between 0.33 and 1.8 of raw); on one it is a change of process.
 */
#include <sched.h>

#include "bench.h"

/* Where it may not be done (another user's server) they stay where they are. */
void bench_place(int server)
{
    cpu_set_t all;
    cpu_set_t one;
    if (sched_getaffinity(0, sizeof all, &all) != 0) {
        return;
    }
    int first = 0;
    while (!CPU_ISSET(first, &all)) {
        first++;
    }
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    if (sched_setaffinity(server, sizeof one, &one) == 0) {
        sched_setaffinity(0, sizeof one, &one);
    }
}
