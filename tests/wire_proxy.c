/* SPDX-License-Identifier: MIT */
/*
 * The proxy: its listening socket, its thread, and the calls of the tests.
 *
 *      opened ---- wire_proxy_close ----> stopping ---- the thread has ended ----> freed
 *
 * What must hold:
 * - One lock guards all. The thread holds it but while it polls and while it connects to the server, so that a call
 *   sees, and changes, a state between two turns: a fault is armed before or after a byte, never in its middle.
 * - Only the thread uses, opens and closes sockets. A call that needs it (release, cut, admit) leaves a request,
 *   wakes it, and waits until it is done.
 * - No allocation after wire_proxy_open: all wires are part of the proxy, and one that is over is used again, the
 *   oldest first.
 */
#include "wire_proxy.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "suite.h"
#include "wire.h"
#include "wire_address.h"

enum {
    WIRES = 128,
    ANSWER_MS = 30000,
};

typedef enum {
    REQUEST_NONE,
    REQUEST_RELEASE,
    REQUEST_CUT,
    REQUEST_ADMIT,
} request_kind;

struct wire_proxy {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t turned; /* after each turn of the thread */
    int wake;              /* an eventfd */
    bool stopping;

    request_kind request;
    unsigned request_wire, request_how;
    wire_admission admission;

    wire_address server;
    wire_listener here;
    char host[sizeof((struct sockaddr_un *)0)->sun_path];
    char conninfo[256];

    unsigned connections;
    wire wires[WIRES];
};

_Noreturn static void give_up(const char *what)
{
    fprintf(stderr, "wire_proxy: %s\n", what);
    abort();
}

/* ---- wires ----------------------------------------------------------------------------------------------------- */

static wire *find_wire(wire_proxy *p, unsigned number)
{
    for (int i = 0; number != 0 && i < WIRES; i++) {
        if (p->wires[i].number == number) {
            return &p->wires[i];
        }
    }
    return NULL;
}

/* Finds it, or makes it one that is to come. NULL if 128 are open or expected. */
static wire *get_wire(wire_proxy *p, unsigned number)
{
    wire *w = find_wire(p, number);
    if (w != NULL) {
        return w;
    }
    for (int i = 0; i < WIRES; i++) {
        wire *free_one = &p->wires[i];
        if ((free_one->number == 0 || !wire_is_open(free_one)) && (w == NULL || free_one->number < w->number)) {
            w = free_one;
        }
    }
    if (w != NULL) {
        wire_expect(w, number);
    }
    return w;
}

/* A turn without an event: what a call has changed takes effect. */
static void turn_wire(wire *w)
{
    static const struct pollfd nothing[2];
    wire_turn(w, nothing);
}

static void take_connection(wire_proxy *p)
{
    bool silent = p->admission == WIRE_SILENT;
    int listener = p->here.listening;
    pthread_mutex_unlock(&p->lock);
    int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    int server = client >= 0 ? wire_address_connect(&p->server) : -1;
    pthread_mutex_lock(&p->lock);
    if (client < 0) {
        return;
    }
    wire_send_at_once(client);
    wire *w = get_wire(p, ++p->connections);
    if (w == NULL) {
        give_up("more than 128 connections at a time");
    }
    wire_connect(w, client, server, silent);
    turn_wire(w);
}

/* ---- the thread ------------------------------------------------------------------------------------------------ */

static void serve_request(wire_proxy *p)
{
    wire *w = find_wire(p, p->request_wire);
    switch (p->request) {
    case REQUEST_RELEASE:
        if (w != NULL) {
            wire_release(w);
            turn_wire(w);
        }
        break;
    case REQUEST_CUT:
        if (w != NULL) {
            wire_cut(w, p->request_how);
            turn_wire(w);
        }
        break;
    case REQUEST_ADMIT:
        if (p->admission == WIRE_REFUSE) {
            wire_listener_refuse(&p->here);
        } else if (!wire_listener_admit(&p->here)) {
            give_up("cannot listen again");
        }
        break;
    case REQUEST_NONE:
        break;
    }
    p->request = REQUEST_NONE;
}

/* The first two entries are the wake-up and the listener, then two for each wire. */
enum {
    ENTRY_WAKE,
    ENTRY_LISTENER,
    ENTRY_WIRES,
    ENTRIES = ENTRY_WIRES + 2 * WIRES,
};

static int gather(const wire_proxy *p, struct pollfd entries[ENTRIES])
{
    int timeout = -1;
    entries[ENTRY_WAKE] = (struct pollfd){.fd = p->wake, .events = POLLIN};
    entries[ENTRY_LISTENER] = (struct pollfd){.fd = p->here.listening, .events = POLLIN};
    for (int i = 0; i < WIRES; i++) {
        int wait = wire_poll(&p->wires[i], &entries[ENTRY_WIRES + 2 * i]);
        if (wait >= 0 && (timeout < 0 || wait < timeout)) {
            timeout = wait;
        }
    }
    return timeout;
}

static void turn(wire_proxy *p, const struct pollfd entries[ENTRIES])
{
    uint64_t woken;
    if (entries[ENTRY_WAKE].revents != 0 && read(p->wake, &woken, sizeof woken) < 0 && errno != EAGAIN) {
        give_up("cannot read its eventfd");
    }
    /* What has come is passed on before a request changes what becomes of the next. */
    for (int i = 0; i < WIRES; i++) {
        wire_turn(&p->wires[i], &entries[ENTRY_WIRES + 2 * i]);
    }
    if (p->request != REQUEST_NONE) {
        serve_request(p);
    }
    if (entries[ENTRY_LISTENER].revents != 0 && p->here.listening >= 0) {
        take_connection(p);
    }
}

/* It waits without a deadline for what wakes it; wire_proxy_close does. */
static void *run(void *argument)
{
    wire_proxy *p = argument;
    struct pollfd entries[ENTRIES];
    pthread_mutex_lock(&p->lock);
    while (!p->stopping) {
        int timeout = gather(p, entries);
        pthread_mutex_unlock(&p->lock);
        if (poll(entries, ENTRIES, timeout) < 0 && errno != EINTR) {
            give_up("cannot poll");
        }
        pthread_mutex_lock(&p->lock);
        turn(p, entries);
        pthread_cond_broadcast(&p->turned);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static void wake(const wire_proxy *p)
{
    uint64_t one = 1;
    if (write(p->wake, &one, sizeof one) != sizeof one) {
        give_up("cannot wake its thread");
    }
}

/* Waits, with the lock held, for one more turn; false past the deadline. */
static bool await_turn(wire_proxy *p, int64_t deadline)
{
    struct timespec at = {.tv_sec = deadline / 1000, .tv_nsec = deadline % 1000 * 1000000};
    return pthread_cond_timedwait(&p->turned, &p->lock, &at) == 0;
}

static void ask(wire_proxy *p, request_kind request, unsigned number, unsigned how)
{
    int64_t deadline = now_ms() + ANSWER_MS;
    pthread_mutex_lock(&p->lock);
    /* Another thread's request may be under way. */
    while (p->request != REQUEST_NONE) {
        if (!await_turn(p, deadline)) {
            give_up("no answer within 30 seconds");
        }
    }
    p->request = request;
    p->request_wire = number;
    p->request_how = how;
    if (request == REQUEST_ADMIT) {
        p->admission = (wire_admission)how;
    }
    wake(p);
    do {
        if (!await_turn(p, deadline)) {
            give_up("no answer within 30 seconds");
        }
    } while (p->request != REQUEST_NONE);
    pthread_mutex_unlock(&p->lock);
}

/* ---- opening and closing --------------------------------------------------------------------------------------- */

static bool start_thread(wire_proxy *p)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&p->thread, NULL, run, p);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return error == 0;
}

static void free_proxy(wire_proxy *p)
{
    for (int i = 0; i < WIRES; i++) {
        wire_close(&p->wires[i]);
    }
    wire_listener_close(&p->here);
    if (p->wake >= 0) {
        close(p->wake);
    }
    pthread_cond_destroy(&p->turned);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

/* All of it that cannot fail; large, but zeroed pages that nobody touches are not there. */
static wire_proxy *new_proxy(void)
{
    wire_proxy *p = calloc(1, sizeof *p);
    if (p == NULL) {
        return NULL;
    }
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&p->turned, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&p->lock, NULL);
    p->wake = -1;
    p->here = (wire_listener){.listening = -1, .keeper = -1};
    for (int i = 0; i < WIRES; i++) {
        wire_expect(&p->wires[i], 0);
    }
    return p;
}

static bool open_proxy(wire_proxy *p, const char *host, int port, const char *folder)
{
    p->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (p->wake < 0 || !wire_address_make(&p->server, host, port) || !wire_listener_open(&p->here, folder)) {
        return false;
    }
    snprintf(p->host, sizeof p->host, "%s", folder != NULL ? folder : "127.0.0.1");
    snprintf(p->conninfo, sizeof p->conninfo, "host='%s' port=%d", p->host, wire_listener_port(&p->here));
    return start_thread(p);
}

wire_proxy *wire_proxy_open(const char *host, int port, const char *folder)
{
    wire_proxy *p = new_proxy();
    if (p != NULL && !open_proxy(p, host, port, folder)) {
        int error = errno;
        free_proxy(p);
        errno = error;
        return NULL;
    }
    return p;
}

void wire_proxy_close(wire_proxy *p)
{
    if (p == NULL) {
        return;
    }
    pthread_mutex_lock(&p->lock);
    p->stopping = true;
    pthread_mutex_unlock(&p->lock);
    wake(p);
    pthread_join(p->thread, NULL);
    free_proxy(p);
}

const char *wire_proxy_host(const wire_proxy *p)
{
    return p->host;
}

int wire_proxy_port(const wire_proxy *p)
{
    return wire_listener_port(&p->here);
}

const char *wire_proxy_conninfo(const wire_proxy *p)
{
    return p->conninfo;
}

void wire_proxy_admit(wire_proxy *p, wire_admission admission)
{
    ask(p, REQUEST_ADMIT, 0, admission);
}

/* ---- looking --------------------------------------------------------------------------------------------------- */

unsigned wire_proxy_connections(wire_proxy *p)
{
    pthread_mutex_lock(&p->lock);
    unsigned connections = p->connections;
    pthread_mutex_unlock(&p->lock);
    return connections;
}

static wire_view view(wire_proxy *p, unsigned number)
{
    const wire *w = find_wire(p, number);
    if (w == NULL) {
        bool was = number != 0 && number <= p->connections;
        return (wire_view){.connected = was, .client_gone = was, .server_gone = was};
    }
    wire_view v = {
        .connected = w->connected,
        .client_gone = wire_gone(w, WIRE_CLIENT),
        .server_gone = wire_gone(w, WIRE_SERVER),
    };
    for (int d = WIRE_TO_SERVER; d <= WIRE_TO_CLIENT; d++) {
        v.fired[d] = w->flow[d].fired;
        v.passed[d] = w->flow[d].passed;
        v.withheld[d] = wire_withheld(w, (wire_direction)d);
    }
    return v;
}

wire_view wire_proxy_look(wire_proxy *p, unsigned number)
{
    pthread_mutex_lock(&p->lock);
    wire_view v = view(p, number);
    pthread_mutex_unlock(&p->lock);
    return v;
}

bool wire_proxy_fired(wire_proxy *p, unsigned number, wire_direction direction)
{
    return wire_proxy_look(p, number).fired[direction];
}

static bool holds(const wire_view *v, wire_event event, uint64_t n)
{
    switch (event) {
    case WIRE_CONNECTED:
        return v->connected;
    case WIRE_CLIENT_GONE:
        return v->client_gone;
    case WIRE_SERVER_GONE:
        return v->server_gone;
    case WIRE_FIRED:
        return v->fired[WIRE_TO_SERVER] || v->fired[WIRE_TO_CLIENT];
    case WIRE_PASSED_TO_SERVER:
        return v->passed[WIRE_TO_SERVER] >= n;
    case WIRE_PASSED_TO_CLIENT:
        return v->passed[WIRE_TO_CLIENT] >= n;
    case WIRE_WITHHELD_TO_SERVER:
        return v->withheld[WIRE_TO_SERVER] >= n;
    case WIRE_WITHHELD_TO_CLIENT:
        return v->withheld[WIRE_TO_CLIENT] >= n;
    }
    give_up("no such event");
}

bool wire_proxy_wait(wire_proxy *p, unsigned number, wire_event event, uint64_t n, int ms)
{
    int64_t deadline = now_ms() + ms;
    bool in_time = true;
    pthread_mutex_lock(&p->lock);
    wire_view v = view(p, number);
    while (!holds(&v, event, n) && in_time) {
        in_time = await_turn(p, deadline);
        v = view(p, number);
    }
    pthread_mutex_unlock(&p->lock);
    return holds(&v, event, n);
}

size_t wire_proxy_withheld(wire_proxy *p, unsigned number, wire_direction direction, void *bytes, size_t size)
{
    size_t have = 0;
    pthread_mutex_lock(&p->lock);
    const wire *w = find_wire(p, number);
    if (w != NULL) {
        have = wire_withheld(w, direction);
        have = have < size ? have : size;
        memcpy(bytes, w->flow[direction].bytes + w->flow[direction].first, have);
    }
    pthread_mutex_unlock(&p->lock);
    return have;
}

/* ---- faults ---------------------------------------------------------------------------------------------------- */

/* With the lock held; NULL if it has ended. */
static wire *open_wire(wire_proxy *p, unsigned number)
{
    if (number == 0) {
        give_up("there is no connection 0");
    }
    wire *w = number > p->connections ? get_wire(p, number) : find_wire(p, number);
    return w != NULL && wire_is_open(w) ? w : NULL;
}

static bool arm(wire_proxy *p, unsigned number, wire_direction direction, wire_fault fault)
{
    pthread_mutex_lock(&p->lock);
    wire *w = open_wire(p, number);
    if (w != NULL) {
        wire_arm(w, direction, fault);
    }
    pthread_mutex_unlock(&p->lock);
    return w != NULL;
}

bool wire_proxy_mark(wire_proxy *p, unsigned number)
{
    pthread_mutex_lock(&p->lock);
    wire *w = open_wire(p, number);
    if (w != NULL) {
        wire_mark(w);
    }
    pthread_mutex_unlock(&p->lock);
    return w != NULL;
}

bool wire_proxy_cut_after(wire_proxy *p, unsigned number, wire_direction direction, uint64_t n, unsigned how)
{
    return arm(p, number, direction, (wire_fault){.kind = FAULT_CUT, .after = n, .how = how});
}

bool wire_proxy_stop_after(wire_proxy *p, unsigned number, wire_direction direction, uint64_t n)
{
    return arm(p, number, direction, (wire_fault){.kind = FAULT_STOP, .after = n});
}

bool wire_proxy_delay_after(wire_proxy *p, unsigned number, wire_direction direction, uint64_t n, int ms)
{
    return arm(p, number, direction, (wire_fault){.kind = FAULT_DELAY, .after = n, .ms = ms});
}

bool wire_proxy_hold_after(wire_proxy *p, unsigned number, uint64_t n, uint64_t count, unsigned how)
{
    return arm(p, number, WIRE_TO_SERVER, (wire_fault){.kind = FAULT_HOLD, .after = n, .count = count, .how = how});
}

void wire_proxy_release(wire_proxy *p, unsigned number)
{
    ask(p, REQUEST_RELEASE, number, 0);
}

void wire_proxy_cut(wire_proxy *p, unsigned number, unsigned how)
{
    ask(p, REQUEST_CUT, number, how);
}
