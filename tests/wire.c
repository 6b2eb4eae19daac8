/* SPDX-License-Identifier: MIT */
/*
 * One connection through the proxy.
 *
 * States of a flow (there are two, one each way):
 *
 *      FLOWING ---- STOP, DELAY ----> STOPPED ---- release, end of the delay ----> FLOWING
 *         |  \----- HOLD -----------> HOLDING ---- release ----------------------> FLOWING
 *         |----- CUT, the sink is lost ----> SWALLOWING (from any state) ---- the source is over ----> ENDED
 *         `----- the source is over and all has been passed on: the sink is told ----------------> ENDED
 *
 * What must hold:
 * - A flow reads only when it has passed on what it read before, so that the order of bytes and faults is that of the
 *   bytes alone.
 * - passed never exceeds fault.after while a fault is armed: a send is bounded by it.
 * - An end that was cut off (source_over, but its own close has not been seen) is read and dropped, since closing a
 *   TCP socket with unread bytes sends a reset where an orderly end was asked for.
 * - A socket whose events nobody wants is not polled at all: poll() reports a hang-up whether asked or not, and the
 *   thread would spin.
 * - A descriptor is closed on the proxy's thread only.
 */
#include "wire.h"

#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "suite.h"

enum {
    UNSENT_MS = 10000,
};

/* ---- ending a socket ------------------------------------------------------------------------------------------- */

/* What this kernel has not yet sent; what the peer has and has not yet acknowledged is not among it.  A Unix socket
 * has none. */
static bool has_unsent(int socket)
{
    struct tcp_info info;
    socklen_t size = sizeof info;
    memset(&info, 0, sizeof info);
    return getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 && info.tcpi_notsent_bytes > 0;
}

/* A reset overtakes what is unsent, which is what a peer that reads nothing has no room for.  No event tells, hence
 * the look each millisecond; a connection that is lost ends it. */
static void let_unsent_leave(int socket)
{
    int64_t deadline = now_ms() + UNSENT_MS;
    struct pollfd lost = {.fd = socket};
    while (has_unsent(socket) && now_ms() < deadline && poll(&lost, 1, 1) == 0) {
    }
}

/* Neither close() with a zero linger nor plain close() does it: a test may have forked, and its child's copy of the
 * descriptor keeps the connection. Disconnecting resets the connection itself; on a Unix socket it fails, and
 * shutdown() ends it. */
static void close_end(wire *w, int end)
{
    if (w->socket[end] >= 0) {
        struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
        if (connect(w->socket[end], &nowhere, sizeof nowhere) != 0) {
            shutdown(w->socket[end], SHUT_RDWR);
        }
        close(w->socket[end]);
        w->socket[end] = -1;
    }
}

/* Tells an end that the connection is over. */
static void end_of(wire *w, int end, unsigned how)
{
    if (w->socket[end] < 0) {
        return;
    }
    if (how & WIRE_RST) {
        let_unsent_leave(w->socket[end]);
        close_end(w, end);
        w->flow[end].source_over = true;
        w->flow[end].over_by = WIRE_RST;
    } else if (!w->finished[end]) {
        shutdown(w->socket[end], SHUT_WR);
        w->finished[end] = true;
    }
}

/* What is kept from here on may fill the whole buffer. */
static void keep(wire_flow *f, wire_flow_state state)
{
    memmove(f->bytes, f->bytes + f->first, f->last - f->first);
    f->last -= f->first;
    f->first = 0;
    f->state = state;
}

static void swallow(wire_flow *f)
{
    keep(f, FLOW_SWALLOWING);
    f->fault.kind = FAULT_NONE;
    f->resume_at = 0;
}

static void cut_now(wire *w, unsigned how)
{
    static const unsigned untold[2] = {[WIRE_CLIENT] = WIRE_KEEP_CLIENT, [WIRE_SERVER] = WIRE_KEEP_SERVER};
    for (int end = WIRE_CLIENT; end <= WIRE_SERVER; end++) {
        wire_flow *to = &w->flow[1 - end];
        if (how & untold[end]) {
            /* It is told when the wire is released. */
            swallow(to);
            to->state = FLOW_STOPPED;
            to->first = to->last = 0;
            to->source_over = true;
            to->over_by = how & WIRE_RST;
        } else {
            end_of(w, end, how & WIRE_RST);
            swallow(to);
        }
    }
    w->draining = false;
}

/* ---- faults ---------------------------------------------------------------------------------------------------- */

static void cut(wire *w, wire_direction direction, unsigned how)
{
    if (!(how & WIRE_DRAIN)) {
        cut_now(w, how);
    } else if (direction == WIRE_TO_SERVER) {
        end_of(w, WIRE_SERVER, WIRE_FIN);
        swallow(&w->flow[WIRE_TO_SERVER]);
        w->flow[WIRE_TO_CLIENT].over_by = how & WIRE_RST;
    } else {
        w->flow[WIRE_TO_CLIENT].state = FLOW_STOPPED;
        w->draining = true;
        w->cut_how = how;
    }
}

static void fire(wire *w, wire_direction direction)
{
    wire_flow *f = &w->flow[direction];
    wire_fault fault = f->fault;
    f->fault.kind = FAULT_NONE;
    f->fired = true;
    switch (fault.kind) {
    case FAULT_CUT:
        cut(w, direction, fault.how);
        break;
    case FAULT_DELAY:
        f->resume_at = now_ms() + fault.ms;
        f->state = FLOW_STOPPED;
        break;
    case FAULT_STOP:
        f->state = FLOW_STOPPED;
        break;
    case FAULT_HOLD:
        f->held = fault;
        keep(f, FLOW_HOLDING);
        break;
    case FAULT_NONE:
        break;
    }
}

/* ---- the flow of bytes ----------------------------------------------------------------------------------------- */

static bool wants_input(const wire *w, wire_direction direction)
{
    const wire_flow *f = &w->flow[direction];
    if (w->socket[direction] < 0 || w->peer_over[direction] || !w->connected) {
        return false;
    }
    if (f->source_over) {
        return true;
    }
    switch (f->state) {
    case FLOW_FLOWING:
        return f->first == f->last;
    case FLOW_HOLDING:
        return f->last < WIRE_CAPACITY;
    case FLOW_SWALLOWING:
        return true;
    case FLOW_STOPPED:
    case FLOW_ENDED:
        break;
    }
    return false;
}

static bool wants_output(const wire *w, wire_direction direction)
{
    const wire_flow *f = &w->flow[direction];
    return f->state == FLOW_FLOWING && f->first < f->last && w->socket[1 - direction] >= 0;
}

/* Reads once; false if there was nothing to read now, or nothing more ever. */
static bool take_in(wire *w, wire_direction direction)
{
    wire_flow *f = &w->flow[direction];
    unsigned char dropped[4096];
    bool wanted = !f->source_over && f->last < WIRE_CAPACITY;
    void *to = wanted ? f->bytes + f->last : dropped;
    ssize_t n = recv(w->socket[direction], to, wanted ? WIRE_CAPACITY - f->last : sizeof dropped, MSG_DONTWAIT);
    if (n > 0) {
        f->last += wanted ? (size_t)n : 0;
        return true;
    }
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return false;
    }
    w->peer_over[direction] = true;
    if (!f->source_over) {
        f->source_over = true;
        /* A drained cut has said how already. */
        f->over_by |= n == 0 ? WIRE_FIN : WIRE_RST;
    }
    return false;
}

/* The sink does not take it any more; what it sent before stays to be passed on. */
static void lose_sink(wire *w, wire_direction direction)
{
    int sink = 1 - (int)direction;
    end_of(w, sink, WIRE_RST);
    swallow(&w->flow[direction]);
}

static void send_once(wire *w, wire_direction direction, bool *blocked)
{
    wire_flow *f = &w->flow[direction];
    size_t size = f->last - f->first;
    if (f->fault.kind != FAULT_NONE) {
        if (f->fault.after <= f->passed) {
            fire(w, direction);
            return;
        }
        if (f->fault.after - f->passed < size) {
            size = (size_t)(f->fault.after - f->passed);
        }
    }
    ssize_t n = send(w->socket[1 - direction], f->bytes + f->first, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0) {
        *blocked = errno == EAGAIN || errno == EINTR;
        if (!*blocked) {
            lose_sink(w, direction);
        }
        return;
    }
    f->first += (size_t)n;
    f->passed += (uint64_t)n;
    if (f->fault.kind != FAULT_NONE && f->fault.after == f->passed) {
        fire(w, direction);
    }
}

static void pass_on(wire *w, wire_direction direction)
{
    wire_flow *f = &w->flow[direction];
    bool blocked = false;
    while (f->state == FLOW_FLOWING && f->first < f->last && !blocked) {
        send_once(w, direction, &blocked);
    }
    if (f->state == FLOW_FLOWING && f->first == f->last) {
        f->first = f->last = 0;
        if (f->source_over) {
            end_of(w, 1 - (int)direction, f->over_by);
            f->state = FLOW_ENDED;
        }
    } else if (f->state == FLOW_SWALLOWING && f->source_over) {
        f->state = FLOW_ENDED;
    }
}

/* HOLD with a count: the client's side ends when so much is kept, and what else it has sent by then. */
static void end_client_of_held(wire *w)
{
    wire_flow *f = &w->flow[WIRE_TO_SERVER];
    if (f->state != FLOW_HOLDING || f->held.count == 0 || f->last - f->first < f->held.count || f->source_over) {
        return;
    }
    while (wants_input(w, WIRE_TO_SERVER) && take_in(w, WIRE_TO_SERVER)) {
    }
    end_of(w, WIRE_CLIENT, f->held.how & WIRE_RST);
    f->source_over = true;
    swallow(&w->flow[WIRE_TO_CLIENT]);
}

/* The cut that waits for what the client has sent; it goes on waiting while the server does not take it. */
static void drain(wire *w)
{
    wire_flow *f = &w->flow[WIRE_TO_SERVER];
    do {
        pass_on(w, WIRE_TO_SERVER);
        if (wants_output(w, WIRE_TO_SERVER)) {
            return;
        }
    } while (f->state == FLOW_FLOWING && wants_input(w, WIRE_TO_SERVER) && take_in(w, WIRE_TO_SERVER));
    cut_now(w, w->cut_how);
}

static void close_when_over(wire *w)
{
    for (int end = WIRE_CLIENT; end <= WIRE_SERVER; end++) {
        if (w->flow[end].state != FLOW_ENDED || (w->socket[end] >= 0 && !w->peer_over[end])) {
            return;
        }
    }
    close_end(w, WIRE_CLIENT);
    close_end(w, WIRE_SERVER);
    w->over = true;
}

/* ---- what the proxy calls -------------------------------------------------------------------------------------- */

void wire_expect(wire *w, unsigned number)
{
    /* Not the bytes: the two buffers are what makes a wire large. */
    for (int d = WIRE_TO_SERVER; d <= WIRE_TO_CLIENT; d++) {
        memset(&w->flow[d], 0, offsetof(wire_flow, bytes));
    }
    memset(w, 0, offsetof(wire, flow));
    w->number = number;
    w->socket[WIRE_CLIENT] = w->socket[WIRE_SERVER] = -1;
}

void wire_connect(wire *w, int client, int server, bool silent)
{
    w->connected = true;
    w->socket[WIRE_CLIENT] = client;
    w->socket[WIRE_SERVER] = server;
    if (server < 0) {
        w->flow[WIRE_TO_CLIENT].source_over = true;
        w->flow[WIRE_TO_CLIENT].over_by = WIRE_RST;
        swallow(&w->flow[WIRE_TO_SERVER]);
    } else if (silent) {
        w->flow[WIRE_TO_SERVER].state = w->flow[WIRE_TO_CLIENT].state = FLOW_STOPPED;
    }
}

bool wire_is_open(const wire *w)
{
    return !w->over;
}

bool wire_gone(const wire *w, int end)
{
    return w->connected && (w->socket[end] < 0 || w->peer_over[end]);
}

size_t wire_withheld(const wire *w, wire_direction direction)
{
    return w->flow[direction].last - w->flow[direction].first;
}

void wire_mark(wire *w)
{
    for (int d = WIRE_TO_SERVER; d <= WIRE_TO_CLIENT; d++) {
        w->flow[d].passed = 0;
        w->flow[d].fired = false;
        w->flow[d].fault.kind = FAULT_NONE;
    }
}

void wire_arm(wire *w, wire_direction direction, wire_fault fault)
{
    w->flow[direction].fault = fault;
    w->flow[direction].fired = false;
}

void wire_release(wire *w)
{
    if (w->draining) {
        return;
    }
    for (int d = WIRE_TO_SERVER; d <= WIRE_TO_CLIENT; d++) {
        wire_flow *f = &w->flow[d];
        if (f->state == FLOW_STOPPED || f->state == FLOW_HOLDING) {
            /* Late bytes are followed by an orderly end: a reset might keep the server from answering them. */
            f->over_by = f->state == FLOW_HOLDING ? WIRE_FIN : f->over_by;
            f->state = FLOW_FLOWING;
            f->resume_at = 0;
        }
    }
}

void wire_cut(wire *w, unsigned how)
{
    if (w->connected && !w->over) {
        cut_now(w, how & ~(unsigned)WIRE_DRAIN);
    }
}

void wire_close(wire *w)
{
    close_end(w, WIRE_CLIENT);
    close_end(w, WIRE_SERVER);
}

int wire_poll(const wire *w, struct pollfd entries[2])
{
    int64_t left = -1;
    for (int end = WIRE_CLIENT; end <= WIRE_SERVER; end++) {
        wire_direction from = (wire_direction)end, to = (wire_direction)(1 - end);
        short events = (short)((wants_input(w, from) ? POLLIN : 0) | (wants_output(w, to) ? POLLOUT : 0));
        entries[end] = (struct pollfd){.fd = events != 0 ? w->socket[end] : -1, .events = events};
        int64_t resume_at = w->flow[end].resume_at;
        if (resume_at != 0) {
            int64_t wait = resume_at > now_ms() ? resume_at - now_ms() : 0;
            left = left < 0 || wait < left ? wait : left;
        }
    }
    return (int)left;
}

void wire_turn(wire *w, const struct pollfd entries[2])
{
    for (int d = WIRE_TO_SERVER; d <= WIRE_TO_CLIENT; d++) {
        wire_flow *f = &w->flow[d];
        if (f->resume_at != 0 && f->resume_at <= now_ms()) {
            f->resume_at = 0;
            f->state = FLOW_FLOWING;
        }
        /* Asked for again: what was polled for may have been changed by a call since. */
        if ((entries[d].revents & ~POLLOUT) != 0 && wants_input(w, (wire_direction)d)) {
            take_in(w, (wire_direction)d);
        }
        pass_on(w, (wire_direction)d);
    }
    end_client_of_held(w);
    if (w->draining) {
        drain(w);
    }
    /* The end of one flow may be the end of the other. */
    pass_on(w, WIRE_TO_SERVER);
    pass_on(w, WIRE_TO_CLIENT);
    close_when_over(w);
}
