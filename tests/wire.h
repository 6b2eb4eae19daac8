/* SPDX-License-Identifier: MIT */
/*
 * wire: one connection through wire_proxy: two sockets, a flow of bytes each way, and the faults that await them.
 *
 * Private to wire_proxy.c, which owns the thread and the lock: every function here is called with the lock held, and
 * those that use the sockets on the proxy's thread.  None of them blocks, but for a reset that waits for bytes to
 * leave (wire.c).
 */
#ifndef TESTS_WIRE_H
#define TESTS_WIRE_H

#include <poll.h>
#include <stdint.h>

#include "wire_proxy.h"

enum {
    WIRE_CAPACITY = 32 * 1024,
};

/* The two ends.  The flow of direction d runs from end d to end 1 - d. */
enum {
    WIRE_CLIENT,
    WIRE_SERVER,
};

typedef enum {
    FLOW_FLOWING,
    FLOW_STOPPED,    /* neither read nor passed on */
    FLOW_HOLDING,    /* read and kept */
    FLOW_SWALLOWING, /* read and not passed on any more */
    FLOW_ENDED,
} wire_flow_state;

typedef enum {
    FAULT_NONE,
    FAULT_CUT,
    FAULT_STOP,
    FAULT_DELAY,
    FAULT_HOLD,
} wire_fault_kind;

typedef struct {
    wire_fault_kind kind;
    uint64_t after; /* bytes since the mark */
    unsigned how;   /* CUT, HOLD: WIRE_FIN, WIRE_RST, ... */
    uint64_t count; /* HOLD: the client's side ends when so many bytes are kept; 0: it does not */
    int ms;         /* DELAY */
} wire_fault;

typedef struct {
    wire_flow_state state;
    wire_fault fault; /* what awaits this flow */
    wire_fault held;  /* the fault by which it is HOLDING */
    bool fired;
    bool source_over; /* nothing more of the source is to be passed on: it has ended or was cut off */
    unsigned over_by; /* WIRE_FIN or WIRE_RST: how the sink is to learn it */
    uint64_t passed;
    int64_t resume_at;  /* milliseconds, the end of a DELAY; 0: none */
    size_t first, last; /* what was read and not passed on: bytes[first] up to bytes[last - 1] */
    unsigned char bytes[WIRE_CAPACITY];
} wire_flow;

typedef struct {
    unsigned number; /* 0: never used */
    bool connected;
    bool over;         /* both sockets are closed */
    bool draining;     /* a cut waits for what the client had sent */
    unsigned cut_how;  /* of that cut */
    int socket[2];     /* -1: closed */
    bool finished[2];  /* the end of the stream has been sent to this end */
    bool peer_over[2]; /* this end's own end of the stream, or its reset, has been read */
    wire_flow flow[2];
} wire;

/* Makes it a connection that is still to come. */
void wire_expect(wire *w, unsigned number);
/* The sockets are non-blocking, and the wire's from here on; a server's of -1 is one that could not be reached. */
void wire_connect(wire *w, int client, int server, bool silent);

bool wire_is_open(const wire *w);
bool wire_gone(const wire *w, int end);
size_t wire_withheld(const wire *w, wire_direction direction);

void wire_mark(wire *w);
void wire_arm(wire *w, wire_direction direction, wire_fault fault);
void wire_release(wire *w);
void wire_cut(wire *w, unsigned how);
/* Resets what is open, without waiting for anything. */
void wire_close(wire *w);

/* What to poll for, one entry for each end, and the milliseconds until wire_turn() has something to do, -1 for none. */
int wire_poll(const wire *w, struct pollfd entries[2]);
/* Does what can be done now. */
void wire_turn(wire *w, const struct pollfd entries[2]);

#endif
