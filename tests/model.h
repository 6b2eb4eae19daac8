/* SPDX-License-Identifier: MIT */
/* model.h: random programs, and what they must do by the contract of guard.h (see check_model.c). */
#ifndef TESTS_MODEL_H
#define TESTS_MODEL_H

#include <stdbool.h>
#include <stddef.h>

#include <guard/guard.h>

typedef enum model_op {
    OP_SCOPE,    /* GUARD_AUTO, its body is the children */
    OP_BLOCK,    /* GUARD_SCOPE */
    OP_EXPLICIT, /* guard_scope_open, guard_scope_close */
    OP_SINGLE,   /* GUARD_DEFER; where its function has a body (ACT_BODY), that is the last child */
    OP_BORDER,   /* guard_run */
    OP_TRY,      /* GUARD_TRY */
    OP_DEFER,    /* on the container that `choice` names */
    OP_OWNER,    /* a new owner, registered on that container */
    OP_PANIC,
    OP_RAISE_HELD,
    OP_FAIL, /* guard_fail */
    OP_RESERVE,
    OP_RELEASE, /* of the ticket that `choice` names */
    OP_DISMISS,
    OP_MOVE,
} model_op;

typedef enum model_form {
    FORM_PLAIN,
    FORM_ON_FAILURE,
    FORM_ON_SUCCESS,
    FORM_KIND,
    FORM_COPY,
    FORM_BIG_COPY,
    FORM_RECOVER, /* recovers, then runs the children */
    FORM_SEE,     /* looks, then runs the children */
} model_form;

/* What a deferred function does. */
typedef enum model_act { ACT_NOTE, ACT_FAIL, ACT_BODY } model_act;

#define MODEL_CHILDREN 5
#define MODEL_MOST 4096 /* tickets and owners of a run */

typedef struct model_node {
    model_op op;
    model_form form; /* OP_DEFER */
    model_act act;
    int id;
    unsigned choice;
    int count;
    const struct model_node *children[MODEL_CHILDREN];
} model_node;

typedef struct model_trace {
    size_t length;
    char text[1 << 18];
} model_trace;

void model_trace_clear(model_trace *trace);
void model_trace_add(model_trace *trace, const char *format, ...) GUARD_PRINTF(2, 3);

/* How many of the children are the node's own body: for OP_SINGLE the last may be its function's. */
int model_body_count(const model_node *node);

/* The program of a seed; valid until the next call. */
const model_node *model_program(unsigned long seed);

/* Whether the operation may be used on a ticket of this node: a recovering defer is not released, an owner is not moved or dismissed. */
bool model_allows(model_op op, const model_node *node);

/* Runs it by the model. */
void model_run(const model_node *program, model_trace *trace);

#endif
