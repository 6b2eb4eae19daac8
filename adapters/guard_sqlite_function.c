/* SPDX-License-Identifier: MIT */
/*
 * The program's functions, aggregates and collations, called by SQLite: each is a border.
 *
 * A panic is latched in the connection; SQLite gets an error, and the call of ours that it is in raises the panic again. If SQLite
 * was called by the program itself (`calls` is 0), nobody would raise it: it is noted and dropped, as SQLite's error it has arrived.
 */
#include "guard_sqlite_internal.h"

#include <string.h>

struct sql_function {
    guard_sqlite *db; /* NULL once the connection's guard has ended */
    sql_function *next;
    sql_function *previous;
    guard_sqlite_function_fn *function;
    guard_sqlite_step_fn *step;
    guard_sqlite_final_fn *final;
    guard_sqlite_compare_fn *compare;
    void *arg;
    int size; /* of an aggregate's state */
    int count;
    char name[256]; /* SQLite's limit is 255 bytes (c3ref/create_function.html) */
};

typedef struct call {
    sql_function *function;
    sqlite3_context *context;
    void *state;
    int count;
    sqlite3_value **values;
} call;

/* ------------------------------------------------------------------------------------------------ borders */

static void drop_unclaimed(guard_sqlite *db)
{
    if (db->calls == 0) {
        guard_latch_drop(&db->latch, "a function panicked in a statement that the program ran with the raw handle");
    }
}

static void run_in_border(call *c, guard_fn *fn)
{
    guard_sqlite *db = c->function->db;
    if (db == NULL) {
        sqlite3_result_error(c->context, "the guard of this function has ended", -1);
        return;
    }
    db->inside++;
    int failed = guard_sqlite_border(db, &db->latch, fn, c);
    db->inside--;
    if (failed != 0) {
        sqlite3_result_error(c->context, db->latch.error.message, -1);
        drop_unclaimed(db);
    }
}

static void run_function(void *arg)
{
    call *c = arg;
    c->function->function(c->context, c->count, c->values, c->function->arg);
}

static void function_border(sqlite3_context *context, int count, sqlite3_value **values)
{
    call c = {sqlite3_user_data(context), context, NULL, count, values};
    run_in_border(&c, run_function);
}

static void run_step(void *arg)
{
    call *c = arg;
    c->function->step(c->context, c->state, c->count, c->values, c->function->arg);
}

static void step_border(sqlite3_context *context, int count, sqlite3_value **values)
{
    call c = {sqlite3_user_data(context), context, NULL, count, values};
    c.state = sqlite3_aggregate_context(context, c.function->size);
    if (c.state == NULL) {
        sqlite3_result_error_nomem(context);
        return;
    }
    run_in_border(&c, run_step);
}

static void run_final(void *arg)
{
    call *c = arg;
    c->function->final(c->context, c->state, c->function->arg);
}

static void final_border(sqlite3_context *context)
{
    call c = {sqlite3_user_data(context), context, NULL, 0, NULL};
    c.state = sqlite3_aggregate_context(context, c.function->size);
    if (c.state == NULL) {
        sqlite3_result_error_nomem(context);
        return;
    }
    run_in_border(&c, run_final);
}

typedef struct comparison {
    sql_function *function;
    int a_length;
    const void *a;
    int b_length;
    const void *b;
    int order;
} comparison;

static void run_compare(void *arg)
{
    comparison *c = arg;
    c->order = c->function->compare(c->function->arg, c->a_length, c->a, c->b_length, c->b);
}

static int compare_border(void *arg, int a_length, const void *a, int b_length, const void *b)
{
    sql_function *function = arg;
    comparison c = {function, a_length, a, b_length, b, 0};
    if (function->db != NULL && guard_sqlite_border(function->db, &function->db->latch, run_compare, &c) != 0) {
        sqlite3_interrupt(function->db->raw);
        drop_unclaimed(function->db);
        return 0;
    }
    return c.order;
}

/* ------------------------------------------------------------------------------------------- registration */

/* SQLite's destructor: the function was replaced, removed, or its connection closed. */
static void free_function(void *arg)
{
    sql_function *function = arg;
    if (function->db != NULL) {
        if (function->next != NULL) {
            function->next->previous = function->previous;
        }
        if (function->previous != NULL) {
            function->previous->next = function->next;
        } else {
            function->db->functions = function->next;
        }
    }
    guard_deallocate(function);
}

static sql_function *new_function(guard_sqlite *db, const char *name, int count, void *arg, const guard_place *place)
{
    if (db == NULL || name == NULL || strnlen(name, 256) > 255) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "a function needs a connection and a name of up to 255 bytes");
        return NULL;
    }
    sql_function *function = guard_allocate(sizeof(*function));
    memset(function, 0, sizeof(*function));
    function->db = db;
    function->arg = arg;
    function->count = count;
    strcpy(function->name, name);
    function->next = db->functions;
    if (function->next != NULL) {
        function->next->previous = function;
    }
    db->functions = function;
    return function;
}

void guard_sqlite_function_at(guard_sqlite *db, const char *name, int count, int flags, guard_sqlite_function_fn *fn,
                              void *arg, const guard_place *place)
{
    if (fn == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the function is NULL");
        return;
    }
    sql_function *function = new_function(db, name, count, arg, place);
    if (function == NULL) {
        return;
    }
    function->function = fn;
    /* When this fails SQLite has called the destructor (c3ref/create_function.html). */
    int rc = sqlite3_create_function_v2(db->raw, name, count, flags, function, function_border, NULL, NULL,
                                        free_function);
    if (rc != SQLITE_OK) {
        guard_sqlite_raise(db, rc, name, place);
    }
}

void guard_sqlite_aggregate_at(guard_sqlite *db, const char *name, int count, int flags, int size,
                               guard_sqlite_step_fn *step, guard_sqlite_final_fn *final, void *arg,
                               const guard_place *place)
{
    if (step == NULL || final == NULL || size <= 0) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "an aggregate needs step, final and a state");
        return;
    }
    sql_function *function = new_function(db, name, count, arg, place);
    if (function == NULL) {
        return;
    }
    function->step = step;
    function->final = final;
    function->size = size;
    int rc = sqlite3_create_function_v2(db->raw, name, count, flags, function, NULL, step_border, final_border,
                                        free_function);
    if (rc != SQLITE_OK) {
        guard_sqlite_raise(db, rc, name, place);
    }
}

void guard_sqlite_collation_at(guard_sqlite *db, const char *name, guard_sqlite_compare_fn *compare, void *arg,
                               const guard_place *place)
{
    if (compare == NULL) {
        guard_impl_misuse(place, GUARD_MISUSE_ARGUMENT, "the comparison is NULL");
        return;
    }
    sql_function *function = new_function(db, name, 0, arg, place);
    if (function == NULL) {
        return;
    }
    function->compare = compare;
    int rc = sqlite3_create_collation_v2(db->raw, name, SQLITE_UTF8, function, compare_border, free_function);
    if (rc != SQLITE_OK) {
        /* Unlike functions, a collation that could not be made is not destroyed (c3ref/create_collation.html). */
        free_function(function);
        guard_sqlite_raise(db, rc, name, place);
    }
}

/* Removing it calls its destructor, and SQLite goes on to read the name it was given: that is a copy. */
static int remove_function(sqlite3 *raw, const sql_function *function)
{
    char name[sizeof(function->name)];
    strcpy(name, function->name);
    if (function->compare != NULL) {
        return sqlite3_create_collation_v2(raw, name, SQLITE_UTF8, NULL, NULL, NULL);
    }
    return sqlite3_create_function_v2(raw, name, function->count, SQLITE_UTF8, NULL, NULL, NULL, NULL, NULL);
}

/* On a connection of our own its end destroys them. On an adopted one, what a statement of the program's still uses
 * stays, and says that its guard has ended. */
void guard_sqlite_remove_functions(guard_sqlite *db)
{
    while (db->functions != NULL) {
        sql_function *function = db->functions;
        int removed = db->adopted && remove_function(db->raw, function) == SQLITE_OK && db->functions != function;
        if (!removed) {
            db->functions = function->next;
            if (function->next != NULL) {
                function->next->previous = NULL;
            }
            function->db = NULL;
        }
    }
}
