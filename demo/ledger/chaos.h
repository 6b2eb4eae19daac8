/* SPDX-License-Identifier: MIT */
/*
 * chaos.h: faults that a request may ask for (--chaos), to see that the ledger outlives them.
 */
#ifndef LEDGER_CHAOS_H
#define LEDGER_CHAOS_H

typedef enum chaos_kind {
    CHAOS_NONE,
    CHAOS_PANIC, /* panics before anything was begun */
    CHAOS_DEBIT, /* panics between debit and credit */
    CHAOS_SLEEP, /* sleeps between debit and credit, until the request's deadline or the end of the service */
    CHAOS_KILL,  /* loses the connection to the database between debit and credit */
    CHAOS_NULL   /* writes to where NULL points, between debit and credit */
} chaos_kind;

/* The names of those that can be done here; ends with NULL. */
extern const char *chaos_names[];

/* Once, before requests come: whether guard_faults_to_panics has done it. */
void chaos_open(int faults_are_panics);

/* The kind of this name; refuses (400) another, and (501) one that cannot be done here. */
chaos_kind chaos_read(const char *name);

/* Does it, where it is one of these; the rest is the transaction's. */
void chaos_before(chaos_kind kind);
void chaos_after_debit(chaos_kind kind);

#endif
