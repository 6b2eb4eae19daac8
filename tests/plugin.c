/* SPDX-License-Identifier: MIT */
/* plugin.c: what tests/check_plugin loads: a shared object that uses the library, built by the flags of guard-sqlite.pc. */
#include <signal.h>
#include <stdio.h>

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_sqlite.h>

void plugin_register(guard_scope *scope);
void plugin_begin(guard_scope *scope);
void plugin_panic(guard_scope *scope);
void plugin_contain(guard_scope *scope);
void plugin_alone(void);

static void say(void *text)
{
    printf("%s\n", (const char *)text);
}

void plugin_register(guard_scope *scope)
{
    guard_defer(scope, say, (void *)"the plugin's function ran");
}

/* An open transaction: its handle and its connection name places in the plugin. */
void plugin_begin(guard_scope *scope)
{
    guard_sqlite *db = guard_sqlite_open(scope, ":memory:", NULL);
    guard_sqlite_exec(db, "CREATE TABLE t(a)");
    guard_sqlite_begin(scope, db, NULL);
}

void plugin_panic(guard_scope *scope)
{
    guard_defer(scope, say, (void *)"the plugin's function ran in its panic");
    guard_panic(7, "the plugin panics");
}

static void fail(void *unused)
{
    (void)unused;
    guard_panic(5, "inside");
}

void plugin_contain(guard_scope *scope)
{
    guard_error error;
    (void)scope;
    printf("contained %d\n", guard_run(fail, NULL, &error));
}

/* For a host that knows nothing of the library: it has a thread of its own from then on, handlers, and what this thread has of it. */
void plugin_alone(void)
{
    guard_cancel_on_signal(SIGUSR1, 0);
    GUARD_AUTO(s);
    plugin_register(s);
    plugin_contain(s);
}
