/* SPDX-License-Identifier: MIT */
/*
 * check_model.c: random programs of scopes, owners, borders, defers, panics and recoveries do what a simple model of the contract does.
 *
 * A program is a tree that is made from a seed. tests/model.c runs it by the contract's words, in a way of its own: statuses are returned,
 * nothing jumps. This file runs it by the library. Both write a trace, and the traces must be the same.
 * GUARD_MODEL_SEED=N runs only that seed and prints its program and its trace.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <guard/guard.h>

#include "fault_memory.h"
#include "model.h"
#include "suite.h"

/* ------------------------------------------------------------------------------------ the library -- */

typedef struct library_owner {
    guard_owner *owner;
    bool closing;
} library_owner;

typedef struct library_ticket {
    guard_ticket ticket;
    const model_node *node;
    int owner; /* index of the owner that it is registered on, -1: a scope */
} library_ticket;

static model_trace trace;
static int codes;
static const guard_impl_stack_t *hot;
static const guard_scope *base;
static library_owner owners[MODEL_MOST];
static int owner_count;
static library_ticket tickets[MODEL_MOST];
static int ticket_count;

static void library_body(const model_node *node);
static void library_function(const model_node *node);

GUARD_NORETURN static void library_fail(const model_node *node)
{
    model_trace_add(&trace, "fail %d", node->id);
    codes++;
    guard_panic(codes, "%d", codes);
}

static void library_run(const model_node *node)
{
    switch (node->act) {
    case ACT_NOTE:
        model_trace_add(&trace, "note %d", node->id);
        break;
    case ACT_FAIL:
        library_fail(node);
    default:
        model_trace_add(&trace, "begin %d", node->id);
        library_function(node);
        model_trace_add(&trace, "end %d", node->id);
    }
}

static void library_deferred(void *node)
{
    library_run(node);
}

static void library_deferred_copy(void *copy)
{
    library_run(*(const model_node **)copy);
}

static const guard_kind library_kind = {.name = "node", .release = library_deferred};

static void library_recover(guard_recovery *recovery, void *arg)
{
    const model_node *node = arg;
    const guard_error *error = guard_recovery_error(recovery);
    model_trace_add(&trace, "%s %d: %d", node->form == FORM_RECOVER ? "recover" : "see", node->id,
                    error != NULL ? error->code : 0);
    if (node->form == FORM_RECOVER) {
        guard_recover(recovery);
    }
    library_body(node);
    model_trace_add(&trace, "end %d", node->id);
}

static void library_owner_release(void *owner)
{
    library_owner *this = owner;
    this->closing = true;
    model_trace_add(&trace, "close owner");
    guard_owner_close(this->owner);
    model_trace_add(&trace, "closed owner");
}

static const guard_kind library_owner_kind = {.name = "owner", .release = library_owner_release};

/*
 * The scopes of GUARD_DEFER, which have no name: the last ones opened. The stack grows downwards, so that what lies at or below a scope that is
 * opened now is gone.
 */
static const guard_scope *singles[MODEL_MOST];
static int single_count;

static void library_opened(void)
{
    while (single_count > 0 && (uintptr_t)singles[single_count - 1] <= (uintptr_t)hot->top) {
        single_count--;
    }
}

static bool library_is_single(const guard_scope *scope)
{
    for (int i = 0; i < single_count; i++) {
        if (singles[i] == scope) {
            return true;
        }
    }
    return false;
}

/* The next one from `scope` on that has a name. */
static const guard_scope *library_named(const guard_scope *scope)
{
    while (scope != base && library_is_single(scope)) {
        scope = scope->outer;
    }
    return scope;
}

/* Open scopes from the innermost outwards (an owner that is being closed is one), then the owners that are not being closed. */
static guard_scope *library_container(unsigned choice, int *owner)
{
    unsigned scopes = 0;
    unsigned living = 0;
    const guard_scope *scope;
    for (scope = library_named(hot->top); scope != base; scope = library_named(scope->outer)) {
        scopes++;
    }
    for (int i = 0; i < owner_count; i++) {
        living += !owners[i].closing;
    }
    *owner = -1;
    choice %= scopes + living;
    if (choice < scopes) {
        for (scope = library_named(hot->top); choice > 0; choice--) {
            scope = library_named(scope->outer);
        }
        for (int i = 0; i < owner_count; i++) {
            if (owners[i].closing && scope == (const guard_scope *)owners[i].owner) {
                *owner = i;
            }
        }
        return (guard_scope *)(uintptr_t)scope;
    }
    choice -= scopes;
    for (int i = 0;; i++) {
        if (!owners[i].closing && choice-- == 0) {
            *owner = i;
            return guard_owner_scope(owners[i].owner);
        }
    }
}

static void library_defer(const model_node *node)
{
    int owner;
    void *arg = (void *)(uintptr_t)node;
    const model_node *copied[10] = {node};
    guard_scope *scope = library_container(node->choice, &owner);
    guard_ticket ticket;
    switch (node->form) {
    case FORM_KIND:
        ticket = guard_defer_kind(scope, &library_kind, arg);
        break;
    case FORM_COPY:
        ticket = guard_defer_copy(scope, library_deferred_copy, copied, sizeof *copied * (1 + node->choice % 3));
        break;
    case FORM_BIG_COPY:
        ticket = guard_defer_copy(scope, library_deferred_copy, copied, sizeof copied);
        break;
    case FORM_RECOVER:
    case FORM_SEE:
        ticket = guard_defer_recover(scope, library_recover, arg);
        break;
    case FORM_ON_FAILURE:
        ticket = guard_defer_on(scope, GUARD_ON_FAILURE, library_deferred, arg);
        break;
    case FORM_ON_SUCCESS:
        ticket = guard_defer_on(scope, GUARD_ON_SUCCESS, library_deferred, arg);
        break;
    default:
        ticket = guard_defer(scope, library_deferred, arg);
    }
    tickets[ticket_count++] = (library_ticket){ticket, node, owner};
}

static void library_new_owner(const model_node *node)
{
    int owner;
    guard_scope *scope = library_container(node->choice, &owner);
    library_owner *made = &owners[owner_count];
    made->owner = guard_owner_new();
    made->closing = false;
    owner_count++;
    tickets[ticket_count].ticket = guard_defer_kind(scope, &library_owner_kind, made);
    tickets[ticket_count].node = node;
    tickets[ticket_count].owner = owner;
    ticket_count++;
}

/* The ticket that the node chose, if it is pending; the model must agree. */
static library_ticket *library_ticket_of(const model_node *node)
{
    if (ticket_count == 0) {
        return NULL;
    }
    library_ticket *chosen = &tickets[node->choice % (unsigned)ticket_count];
    if (chosen->owner >= 0 && owners[chosen->owner].closing) {
        return NULL; /* must not be used any more */
    }
    return guard_pending(chosen->ticket) ? chosen : NULL;
}

static void library_use_ticket(const model_node *node)
{
    library_ticket *chosen = library_ticket_of(node);
    model_trace_add(&trace, "ticket %d %s", node->id, chosen != NULL ? "pending" : "gone");
    if (chosen == NULL || !model_allows(node->op, chosen->node)) {
        return;
    }
    if (node->op == OP_RELEASE) {
        guard_release(chosen->ticket);
    } else if (node->op == OP_DISMISS) {
        guard_dismiss(chosen->ticket);
    } else {
        int owner;
        guard_scope *scope = library_container(node->choice, &owner);
        chosen->ticket = guard_move(chosen->ticket, scope);
        chosen->owner = owner;
    }
}

static void library_scope(const model_node *node)
{
    GUARD_AUTO(s);
    (void)s;
    library_opened();
    library_body(node);
}

static void library_single(const model_node *node)
{
    GUARD_DEFER(library_deferred, (void *)(uintptr_t)node);
    library_opened();
    singles[single_count++] = hot->top;
    library_body(node);
}

static void library_block(const model_node *node)
{
    GUARD_SCOPE (s) {
        library_opened();
        library_body(node);
    }
}

static void library_explicit(const model_node *node)
{
    guard_scope s;
    guard_scope_open(&s);
    library_opened();
    library_body(node);
    guard_scope_close(&s);
}

static void library_border_body(void *node)
{
    library_body(node);
}

static void library_border_end(int code, const guard_error *error)
{
    model_trace_add(&trace, "border: %d", code);
    for (int i = 0; code != 0 && i < error->cause_count; i++) {
        model_trace_add(&trace, "cause %d %d", error->causes[i].relation, error->causes[i].code);
    }
    if (code != 0 && error->cause_more != 0) {
        model_trace_add(&trace, "more %d", error->cause_more);
    }
}

static void library_try(const model_node *node)
{
    guard_error error;
    GUARD_TRY(&error)
    {
        library_body(node);
        error.code = 0;
    }
    GUARD_CATCH
    {
        library_border_end(error.code, &error);
        return;
    }
    library_border_end(0, &error);
}

static void library_op(const model_node *node)
{
    guard_error error;
    int owner;
    switch (node->op) {
    case OP_SCOPE:
        library_scope(node);
        break;
    case OP_BLOCK:
        library_block(node);
        break;
    case OP_EXPLICIT:
        library_explicit(node);
        break;
    case OP_SINGLE:
        library_single(node);
        break;
    case OP_BORDER:
        library_border_end(guard_run(library_border_body, (void *)(uintptr_t)node, &error), &error);
        break;
    case OP_TRY:
        library_try(node);
        break;
    case OP_DEFER:
        library_defer(node);
        break;
    case OP_OWNER:
        library_new_owner(node);
        break;
    case OP_PANIC:
        library_fail(node);
        break;
    case OP_RAISE_HELD:
        guard_raise_held();
        break;
    case OP_FAIL:
        guard_fail(library_container(node->choice, &owner));
        break;
    case OP_RESERVE:
        guard_reserve(library_container(node->choice, &owner), node->choice % 5);
        break;
    default:
        library_use_ticket(node);
    }
}

static void library_body(const model_node *node)
{
    for (int i = 0; i < model_body_count(node); i++) {
        library_op(node->children[i]);
    }
}

/* The body of a deferred function. */
static void library_function(const model_node *node)
{
    for (int i = node->op == OP_SINGLE ? model_body_count(node) : 0; i < node->count; i++) {
        library_op(node->children[i]);
    }
}

static void library_program(const model_node *program)
{
    model_trace_clear(&trace);
    codes = owner_count = ticket_count = single_count = 0;
    hot = guard_impl_stack;
    base = hot->top;
    guard_error error;
    library_border_end(guard_run(library_border_body, (void *)(uintptr_t)program, &error), &error);
    ck_assert_ptr_eq(hot->top, base);
    ck_assert_ptr_null(guard_panicking());
}

/* ----------------------------------------------------------------------------------------- seeds -- */

static void print_program(const model_node *node, int depth)
{
    static const char *const ops[] = {
        "GUARD_AUTO", "GUARD_SCOPE", "guard_scope_open", "GUARD_DEFER", "guard_run", "GUARD_TRY", "defer", "owner",
        "panic",      "raise held",  "guard_fail",       "reserve",     "release",   "dismiss",   "move"};
    static const char *const forms[] = {"plain", "on failure", "on success", "kind",
                                        "copy",  "big copy",   "recover",    "see"};
    static const char *const acts[] = {"notes", "fails", "body"};
    printf("%*s%d: %s", 4 * depth, "", node->id, ops[node->op]);
    if (node->op == OP_DEFER) {
        printf(" %s, %s", forms[node->form], node->form >= FORM_RECOVER ? acts[ACT_BODY] : acts[node->act]);
    }
    printf(" (choice %u)\n", node->choice);
    for (int i = 0; i < node->count; i++) {
        print_program(node->children[i], depth + 1);
    }
}

static void compare(unsigned long seed, bool print)
{
    static model_trace expected;
    const model_node *program = model_program(seed);
    model_run(program, &expected);
    if (print) {
        print_program(program, 0);
        printf("%s\n", expected.text);
        fflush(stdout);
    }
    library_program(program);
    if (strcmp(trace.text, expected.text) != 0) {
        size_t same = 0;
        while (trace.text[same] == expected.text[same]) {
            same++;
        }
        ck_abort_msg("GUARD_MODEL_SEED=%lu: from character %zu on, the library did \"%.300s\", not \"%.300s\"", seed,
                     same, trace.text + same, expected.text + same);
    }
}

#define SEEDS 5000

START_TEST(random_programs_do_what_the_model_of_the_contract_does)
{
    fault_memory_install();
    GUARD_AUTO(outside);
    guard_defer(outside, free, NULL);
    const char *only = getenv("GUARD_MODEL_SEED");
    if (only != NULL) {
        compare(strtoul(only, NULL, 10), true);
        return;
    }
    for (unsigned long seed = 1; seed <= SEEDS; seed++) {
        compare(seed, false);
    }
    /* All owners and copies were given back; a chunk may be kept as a spare. */
    ck_assert_uint_le(fault_memory_blocks(), 2);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        random_programs_do_what_the_model_of_the_contract_does,
    };
    return suite_run("model", tests, sizeof tests / sizeof *tests);
}
