/* SPDX-License-Identifier: MIT */
/*
 * model.c: the contract of guard.h as plain code.
 *
 * A body returns how it ended. PANIC carries an error outwards; UNWIND is a recovered panic on its way to its border, or to the
 * deferred function in which it was recovered. A panic that an automatic close raised waits in `held`.
 */
#include <check.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "model.h"

/* ----------------------------------------------------------------------------------------- trace -- */

void model_trace_clear(model_trace *trace)
{
    trace->length = 0;
    trace->text[0] = '\0';
}

void model_trace_add(model_trace *trace, const char *format, ...)
{
    size_t room = sizeof trace->text - trace->length;
    va_list arguments;
    va_start(arguments, format);
    size_t added = (size_t)vsnprintf(trace->text + trace->length, room, format, arguments);
    va_end(arguments);
    ck_assert_uint_lt(added + 2, room);
    strcpy(trace->text + trace->length + added, "; ");
    trace->length += added + 2;
}

/* -------------------------------------------------------------------------------------- programs -- */

#define NODE_MOST 400
#define DEPTH_MOST 6

static model_node nodes[NODE_MOST + 2 + 2 * MODEL_CHILDREN]; /* random ones, and the fixed ones around them */
static int node_count;
static unsigned long long state;

/* xorshift64*, Vigna 2016. */
static unsigned random_below(unsigned limit)
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (unsigned)((state * 2685821657736338717ULL) >> 33) % limit;
}

static model_op random_op(int depth)
{
    static const model_op inner[] = {
        OP_SCOPE, OP_SCOPE,      OP_BLOCK,   OP_EXPLICIT, OP_SINGLE,  OP_SINGLE, OP_BORDER, OP_TRY,
        OP_DEFER, OP_DEFER,      OP_DEFER,   OP_DEFER,    OP_DEFER,   OP_OWNER,  OP_PANIC,  OP_PANIC,
        OP_FAIL,  OP_RAISE_HELD, OP_RESERVE, OP_RELEASE,  OP_DISMISS, OP_MOVE,
    };
    static const model_op leaves[] = {OP_DEFER, OP_DEFER,   OP_PANIC,   OP_RAISE_HELD,
                                      OP_FAIL,  OP_RELEASE, OP_DISMISS, OP_MOVE};
    return depth < DEPTH_MOST ? inner[random_below(sizeof inner / sizeof *inner)]
                              : leaves[random_below(sizeof leaves / sizeof *leaves)];
}

static const model_node *random_node(int depth);

static void random_children(model_node *node, int depth)
{
    int wanted = depth < DEPTH_MOST ? 1 + (int)random_below(MODEL_CHILDREN) : 0;
    node->count = 0;
    while (node->count < wanted && node_count < NODE_MOST) {
        node->children[node->count++] = random_node(depth + 1);
    }
}

static const model_node *random_node(int depth)
{
    model_node *node = &nodes[node_count++];
    node->id = node_count;
    node->op = random_op(depth);
    node->form = (model_form)random_below(FORM_SEE + 1);
    node->act = (model_act)random_below(ACT_BODY + 1);
    node->choice = random_below(1000);
    if (node->op == OP_SINGLE) {
        node->form = FORM_PLAIN;
    }
    node->count = 0;
    bool has_body = node->op <= OP_TRY ||
                    (node->op == OP_DEFER && (node->form >= FORM_RECOVER || node->act == ACT_BODY));
    if (has_body) {
        random_children(node, depth);
    }
    return node;
}

int model_body_count(const model_node *node)
{
    return node->op == OP_SINGLE && node->act == ACT_BODY && node->count > 0 ? node->count - 1 : node->count;
}

static model_node *fixed_node(model_op op, model_node *parent)
{
    model_node *node = &nodes[node_count++];
    *node = (model_node){.op = op, .id = node_count};
    if (parent != NULL) {
        parent->children[parent->count++] = node;
    }
    return node;
}

const model_node *model_program(unsigned long seed)
{
    state = seed * 0x9E3779B97F4A7C15ULL + 1;
    node_count = 0;
    /* A scope with some borders in it, so that a panic does not end the program. */
    model_node *program = fixed_node(OP_SCOPE, NULL);
    model_node *scope = fixed_node(OP_SCOPE, program);
    while (scope->count < MODEL_CHILDREN) {
        model_node *border = fixed_node(random_below(2) != 0 ? OP_BORDER : OP_TRY, scope);
        random_children(fixed_node(OP_SCOPE, border), 0);
    }
    return program;
}

bool model_allows(model_op op, const model_node *node)
{
    if (op == OP_RELEASE) {
        return node->op == OP_OWNER || node->form < FORM_RECOVER;
    }
    return node->op != OP_OWNER;
}

/* ----------------------------------------------------------------------------------------- state -- */

typedef enum status { NORMAL, PANIC, UNWIND } status;

typedef struct error {
    int code;
    int count;
    int more;
    struct {
        int relation;
        int code;
    } causes[GUARD_CAUSES];
} error;

typedef struct container container;

typedef struct record {
    const model_node *node;
    container *owner; /* OP_OWNER: what it closes */
    container *at;    /* NULL: run, dismissed or released */
} record;

struct container {
    record *records[MODEL_MOST];
    int count;
    bool failed;
    bool is_owner;
    bool is_closing;
    bool is_single; /* has no name: nothing is registered on it */
};

#define CONTAINERS 512

static model_trace *trace;
static container containers[CONTAINERS];
static int container_count;
static container *open_scopes[CONTAINERS];
static int open_count;
static record records[MODEL_MOST];
static int record_count;
static record singles[CONTAINERS]; /* by their container; they have no ticket */
static int codes;
static bool is_held;
static error held;

static status run_body(const model_node *node, error *e);
static status run_function(const model_node *node, error *e);

static void attach(error *to, const error *later, guard_relation relation)
{
    int known = later->count;
    for (int i = -1; i < known; i++) {
        if (to->count == GUARD_CAUSES) {
            to->more++;
            continue;
        }
        to->causes[to->count].relation = i < 0 ? (int)relation : later->causes[i].relation;
        to->causes[to->count].code = i < 0 ? later->code : later->causes[i].code;
        to->count++;
    }
    to->more += later->more;
    to->more = to->more < 255 ? to->more : 255;
}

static void hold(const error *e)
{
    held = *e;
    is_held = true;
}

static bool take_held(error *e)
{
    bool was = is_held;
    if (was) {
        *e = held;
        is_held = false;
    }
    return was;
}

static container *container_new(bool is_owner)
{
    ck_assert_int_lt(container_count, CONTAINERS);
    container *made = &containers[container_count++];
    made->count = 0;
    made->failed = false;
    made->is_owner = is_owner;
    made->is_closing = false;
    made->is_single = false;
    return made;
}

static container *container_of(unsigned choice)
{
    unsigned living = 0;
    unsigned named = 0;
    for (int i = 0; i < container_count; i++) {
        living += containers[i].is_owner && !containers[i].is_closing;
    }
    for (int i = 0; i < open_count; i++) {
        named += !open_scopes[i]->is_single;
    }
    choice %= named + living;
    for (int i = open_count - 1; choice < named && i >= 0; i--) {
        if (!open_scopes[i]->is_single && choice-- == 0) {
            return open_scopes[i];
        }
    }
    choice -= named;
    for (int i = 0;; i++) {
        if (containers[i].is_owner && !containers[i].is_closing && choice-- == 0) {
            return &containers[i];
        }
    }
}

static void put(container *at, record *r)
{
    r->at = at;
    at->records[at->count++] = r;
}

static void take_off(record *r)
{
    container *at = r->at;
    int i = 0;
    while (at->records[i] != r) {
        i++;
    }
    memmove(&at->records[i], &at->records[i + 1], (size_t)(--at->count - i) * sizeof at->records[0]);
    r->at = NULL;
}

/* --------------------------------------------------------------------------------------- running -- */

static status run_panic(const model_node *node, error *e)
{
    model_trace_add(trace, "fail %d", node->id);
    *e = (error){.code = ++codes};
    error older;
    if (take_held(&older)) {
        attach(e, &older, GUARD_REPLACED);
    }
    return PANIC;
}

static status close_explicit(container *scope, error *e);

static status run_owner_close(container *owner, error *e)
{
    owner->is_closing = true;
    model_trace_add(trace, "close owner");
    open_scopes[open_count++] = owner;
    status end = close_explicit(owner, e);
    if (end == NORMAL) {
        model_trace_add(trace, "closed owner");
    }
    return end;
}

/* What the registration does when it runs; `panic` is what a recovering one sees. */
static status run_record(const record *r, const error *panic, bool *recovered, error *e)
{
    const model_node *node = r->node;
    if (node->op == OP_OWNER) {
        return run_owner_close(r->owner, e);
    }
    if (node->form >= FORM_RECOVER) {
        model_trace_add(trace, "%s %d: %d", node->form == FORM_RECOVER ? "recover" : "see", node->id,
                        panic != NULL ? panic->code : 0);
        *recovered = panic != NULL && node->form == FORM_RECOVER;
        status end = run_body(node, e);
        if (end == NORMAL) {
            model_trace_add(trace, "end %d", node->id);
        }
        return end;
    }
    if (node->act == ACT_NOTE) {
        model_trace_add(trace, "note %d", node->id);
        return NORMAL;
    }
    if (node->act == ACT_FAIL) {
        return run_panic(node, e);
    }
    model_trace_add(trace, "begin %d", node->id);
    status end = run_function(node, e);
    if (end == NORMAL) {
        model_trace_add(trace, "end %d", node->id);
    }
    return end;
}

static bool is_kind(const record *r)
{
    return r->node->op == OP_OWNER || r->node->form == FORM_KIND;
}

/* The newest registration that is due, off its scope; NULL when none is left. */
static record *take_newest(container *scope, bool failed)
{
    while (scope->count > 0) {
        record *r = scope->records[scope->count - 1];
        take_off(r);
        bool is_defer = r->node->op == OP_DEFER;
        if (!(is_defer && r->node->form == FORM_ON_FAILURE && !failed) &&
            !(is_defer && r->node->form == FORM_ON_SUCCESS && failed)) {
            return r;
        }
    }
    return NULL;
}

/* A registration that `running` runs panicked with `newer`: which of them goes on, in *running. */
static void meet(const record *r, bool recovered, error *running, const error *newer)
{
    if (!recovered && is_kind(r)) {
        attach(running, newer, GUARD_ATTACHED);
        return;
    }
    error merged = *newer;
    attach(&merged, running, recovered ? GUARD_RECOVERED : GUARD_REPLACED);
    *running = merged;
}

/* --------------------------------------------------------------------------------------- closing -- */

/* A panic, or a recovered one, leaves the scope. */
static status close_unwinding(container *scope, status end, error *e)
{
    record *r;
    while ((r = take_newest(scope, true)) != NULL) {
        bool recovered = false;
        error newer;
        status inner = run_record(r, end == PANIC ? e : NULL, &recovered, &newer);
        if (end == PANIC && inner == PANIC) {
            meet(r, recovered, e, &newer);
        } else if (inner == PANIC) {
            *e = newer;
            end = PANIC;
        } else if (end == PANIC && !recovered) {
            error cleanup;
            if (take_held(&cleanup)) {
                attach(e, &cleanup, GUARD_ATTACHED);
            }
        } else {
            end = take_held(e) ? PANIC : UNWIND;
        }
    }
    open_count--;
    return end;
}

/* The end of GUARD_AUTO: what panics is held, and the rest runs in its name. */
static status close_automatic(container *scope)
{
    error running;
    bool is_running = false;
    for (;;) {
        if (!is_running && take_held(&running)) {
            is_running = true;
        }
        if (is_running && scope->count > 0) {
            scope->failed = true;
        }
        record *r = take_newest(scope, scope->failed);
        if (r == NULL) {
            break;
        }
        bool recovered = false;
        error newer;
        status inner = run_record(r, is_running ? &running : NULL, &recovered, &newer);
        if (inner == PANIC && is_running) {
            meet(r, recovered, &running, &newer);
        } else if (inner == PANIC) {
            running = newer;
            is_running = true;
        } else if (recovered) {
            is_running = false;
        } else if (is_running && take_held(&newer)) {
            attach(&running, &newer, GUARD_ATTACHED);
        }
    }
    if (is_running) {
        hold(&running);
    }
    open_count--;
    return NORMAL;
}

static status close_explicit(container *scope, error *e)
{
    for (;;) {
        if (take_held(e)) {
            return close_unwinding(scope, PANIC, e);
        }
        record *r = take_newest(scope, scope->failed);
        if (r == NULL) {
            break;
        }
        bool recovered = false;
        status inner = run_record(r, NULL, &recovered, e);
        if (inner != NORMAL) {
            return close_unwinding(scope, inner, e);
        }
    }
    open_count--;
    return NORMAL;
}

/* ------------------------------------------------------------------------------------ operations -- */

static status run_scope(const model_node *node, error *e)
{
    container *scope = container_new(false);
    open_scopes[open_count++] = scope;
    if (node->op == OP_SINGLE) {
        record *r = &singles[scope - containers];
        *r = (record){.node = node};
        put(scope, r);
        scope->is_single = true;
    }
    status end = run_body(node, e);
    if (end != NORMAL) {
        return close_unwinding(scope, end, e);
    }
    return node->op == OP_EXPLICIT ? close_explicit(scope, e) : close_automatic(scope);
}

static void run_border(const model_node *node)
{
    error e;
    status end = run_body(node, &e);
    if (end == NORMAL && take_held(&e)) {
        end = PANIC;
    }
    model_trace_add(trace, "border: %d", end == PANIC ? e.code : 0);
    for (int i = 0; end == PANIC && i < e.count; i++) {
        model_trace_add(trace, "cause %d %d", e.causes[i].relation, e.causes[i].code);
    }
    if (end == PANIC && e.more != 0) {
        model_trace_add(trace, "more %d", e.more);
    }
}

/* While a panic is held nothing is registered: what would be runs now, in a border. */
static void run_refused(const model_node *node, error *e)
{
    if (node->form == FORM_ON_SUCCESS || node->form >= FORM_RECOVER) {
        return;
    }
    record now = {.node = node};
    bool recovered = false;
    error later;
    status end = run_record(&now, NULL, &recovered, &later);
    if (end == PANIC || (end == NORMAL && take_held(&later))) {
        attach(e, &later, GUARD_ATTACHED);
    }
}

static record *record_new(const model_node *node, container *at)
{
    ck_assert_int_lt(record_count, MODEL_MOST);
    record *r = &records[record_count++];
    *r = (record){.node = node};
    put(at, r);
    return r;
}

static status run_ticket(const model_node *node, error *e)
{
    record *chosen = record_count > 0 ? &records[node->choice % (unsigned)record_count] : NULL;
    bool pending = chosen != NULL && chosen->at != NULL && !(chosen->at->is_owner && chosen->at->is_closing);
    model_trace_add(trace, "ticket %d %s", node->id, pending ? "pending" : "gone");
    if (!pending || !model_allows(node->op, chosen->node)) {
        return NORMAL;
    }
    if (take_held(e)) {
        return PANIC;
    }
    container *target = node->op == OP_MOVE ? container_of(node->choice) : NULL;
    take_off(chosen);
    if (node->op == OP_MOVE) {
        put(target, chosen);
    }
    if (node->op != OP_RELEASE) {
        return NORMAL;
    }
    bool recovered = false;
    status end = run_record(chosen, NULL, &recovered, e);
    return end == NORMAL && take_held(e) ? PANIC : end;
}

static status run_op(const model_node *node, error *e)
{
    if (node->op == OP_PANIC) {
        return run_panic(node, e);
    }
    if (node->op >= OP_RELEASE) {
        return run_ticket(node, e);
    }
    if (node->op != OP_SINGLE && take_held(e)) {
        if (node->op == OP_DEFER) {
            run_refused(node, e);
        }
        return PANIC;
    }
    switch (node->op) {
    case OP_SCOPE:
    case OP_BLOCK:
    case OP_EXPLICIT:
    case OP_SINGLE:
        return run_scope(node, e);
    case OP_BORDER:
    case OP_TRY:
        run_border(node);
        break;
    case OP_DEFER:
        record_new(node, container_of(node->choice));
        break;
    case OP_OWNER: {
        container *at = container_of(node->choice);
        record_new(node, at)->owner = container_new(true);
        break;
    }
    case OP_FAIL:
        container_of(node->choice)->failed = true;
        break;
    default:
        break;
    }
    return NORMAL;
}

static status run_children(const model_node *node, int from, int to, error *e)
{
    for (int i = from; i < to; i++) {
        status end = run_op(node->children[i], e);
        if (end != NORMAL) {
            return end;
        }
    }
    return NORMAL;
}

static status run_body(const model_node *node, error *e)
{
    return run_children(node, 0, model_body_count(node), e);
}

/* The body of a deferred function. */
static status run_function(const model_node *node, error *e)
{
    return run_children(node, node->op == OP_SINGLE ? model_body_count(node) : 0, node->count, e);
}

void model_run(const model_node *program, model_trace *to)
{
    trace = to;
    model_trace_clear(trace);
    container_count = open_count = record_count = codes = 0;
    is_held = false;
    run_border(program);
    ck_assert_int_eq(open_count, 0);
    ck_assert(!is_held);
}
