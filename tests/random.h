/* SPDX-License-Identifier: MIT */
/* random.h: numbers drawn for a campaign: the same sequence for the same seed everywhere, so that what failed can be run again. */
#ifndef TESTS_RANDOM_H
#define TESTS_RANDOM_H

#include <stdint.h>

/* The next one, below 2^31; the seed is what *state begins with. */
unsigned random_next(uint64_t *state);

#endif
