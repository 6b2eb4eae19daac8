/* SPDX-License-Identifier: MIT */
#include "random.h"

/* Knuth's MMIX; its upper bits are the good ones. */
unsigned random_next(uint64_t *state)
{
    *state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (unsigned)(*state >> 33);
}
