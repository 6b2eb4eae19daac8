/* SPDX-License-Identifier: MIT */
#include "routes.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>

#include <guard/guard_cancel.h>

#include "chaos.h"
#include "json.h"
#include "refusal.h"
#include "service.h"
#include "transfer.h"

static void answer(http_request *r, int status, const json_t *json)
{
    r->answer = json_text(json);
    r->answer_size = strlen(r->answer);
    r->status = status;
}

/* ----------------------------------------------------------------------------------------- POST /transfers -- */

static json_t *read_body(guard_scope *scope, const http_request *r)
{
    /* A form of another site could post text, but not this type, without asking first. */
    const char *type = http_header(r, "Content-Type");
    if (type == NULL || strncasecmp(type, "application/json", strlen("application/json")) != 0) {
        refuse(415, "the body is to be application/json");
    }
    json_error_t error;
    json_t *json = json_loadb(r->body, r->size, JSON_REJECT_DUPLICATES, &error);
    if (json == NULL) {
        refuse(400, "no JSON: %.100s", error.text);
    }
    json_own(scope, json);
    if (!json_is_object(json)) {
        refuse(400, "the body is to be a JSON object");
    }
    return json;
}

static int64_t read_integer(const json_t *json, const char *key, int64_t most)
{
    const json_t *value = json_object_get(json, key);
    if (!json_is_integer(value) || json_integer_value(value) < 1 || json_integer_value(value) > most) {
        refuse(400, "\"%s\" is to be an integer from 1 to %" PRId64, key, most);
    }
    return json_integer_value(value);
}

static void read_key(const http_request *r, transfer *t)
{
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-";
    const char *key = http_header(r, "Idempotency-Key");
    if (key == NULL) {
        uint64_t number[2];
        if (getrandom(number, sizeof number, 0) != sizeof number) {
            guard_panic_os("no random number");
        }
        snprintf(t->key, sizeof t->key, "ledger-%016" PRIx64 "%016" PRIx64, number[0], number[1]);
        return;
    }
    size_t size = strlen(key);
    if (size == 0 || size >= sizeof t->key || strspn(key, allowed) != size) {
        refuse(400, "an Idempotency-Key has 1 to %zu letters, digits, and any of . _ : -", sizeof t->key - 1);
    }
    memcpy(t->key, key, size + 1);
}

static chaos_kind read_chaos(const http_request *r, const ledger *l)
{
    const char *name = http_header(r, "X-Chaos");
    if (name == NULL) {
        return CHAOS_NONE;
    }
    if (!l->options->chaos) {
        refuse(403, "X-Chaos needs --chaos");
    }
    if (!r->local) {
        refuse(403, "X-Chaos is for requests from this machine");
    }
    return chaos_read(name);
}

static json_t *transfer_json(guard_scope *scope, const transfer *t)
{
    return json_own(scope, json_pack("{sIsIsIsIss}", "transfer", (json_int_t)t->id, "from", (json_int_t)t->from, "to",
                                     (json_int_t)t->to, "amount", (json_int_t)t->amount, "key", t->key));
}

static void post_transfer(http_request *r, const ledger *l)
{
    GUARD_AUTO(s);
    chaos_kind chaos = read_chaos(r, l);
    transfer t = {0};
    read_key(r, &t);
    const json_t *body = read_body(s, r);
    t.from = read_integer(body, "from", INT64_MAX);
    t.to = read_integer(body, "to", INT64_MAX);
    t.amount = read_integer(body, "amount", TRANSFER_MOST);
    if (t.from == t.to) {
        refuse(422, "\"from\" and \"to\" are the same account");
    }
    chaos_before(chaos);
    r->replayed = !transfer_make(l->store, l->options->receipts, &t, chaos);
    /* It is committed: the answer is not to be given up for a deadline that passed meanwhile. */
    guard_mask(s);
    answer(r, 201, transfer_json(s, &t));
}

/* ------------------------------------------------------------------------------------------------ reading -- */

static int64_t read_parameter(const http_request *r, const char *name, int64_t most, int64_t missing)
{
    const char *text = http_parameter(r, name);
    if (text == NULL) {
        return missing;
    }
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || number < 1 || number > most) {
        refuse(400, "%s is to be an integer from 1 to %" PRId64, name, most);
    }
    return number;
}

static void get_accounts(http_request *r, const ledger *l)
{
    GUARD_AUTO(s);
    answer(r, 200, l->store->driver->accounts(s, l->store));
}

static void get_transfers(http_request *r, const ledger *l)
{
    GUARD_AUTO(s);
    int64_t before = read_parameter(r, "before", INT64_MAX, INT64_MAX);
    int64_t limit = read_parameter(r, "limit", TRANSFER_LIST, 100);
    answer(r, 200, l->store->driver->transfers(s, l->store, before, limit));
}

/* Whether it can answer at all: the database is asked. */
static void get_health(http_request *r, const ledger *l)
{
    GUARD_AUTO(s);
    l->store->driver->transfers(s, l->store, INT64_MAX, 1);
    answer(r, 200, json_own(s, json_pack("{ss}", "status", "ok")));
}

typedef struct reading {
    guard_scope *scope;
    store *store;
    json_t *accounts;
} reading;

static void read_accounts(void *arg)
{
    reading *r = arg;
    r->accounts = r->store->driver->accounts(r->scope, r->store);
}

static void add_accounts(json_t *status, const json_t *accounts)
{
    int64_t total = 0;
    size_t index;
    const json_t *account;
    json_array_foreach(accounts, index, account)
    {
        total += json_integer_value(json_object_get(account, "balance"));
    }
    json_set(status, "total", json_integer(total));
    json_set(status, "accounts", json_incref((json_t *)(uintptr_t)accounts));
}

/* Without a database it still says how it is: then without "accounts" and "total". */
static void get_status(http_request *r, const ledger *l)
{
    GUARD_AUTO(s);
    reading asked = {.scope = s, .store = l->store};
    guard_error error;
    int failed = guard_run(read_accounts, &asked, &error);
    json_t *status = service_status(s);
    if (!failed) {
        add_accounts(status, asked.accounts);
    }
    json_t *kinds = json_own(s, json_array());
    for (size_t i = 0; l->options->chaos && r->local && chaos_names[i] != NULL; i++) {
        json_append(kinds, json_string(chaos_names[i]));
    }
    json_set(status, "chaos", json_incref(kinds));
    json_set(status, "database", json_string(l->options->postgres ? "PostgreSQL" : "SQLite"));
    answer(r, 200, status);
}

static void get_metrics(http_request *r, const ledger *l)
{
    (void)l;
    GUARD_AUTO(s);
    const char *text = service_metrics(s, &r->answer_size);
    r->answer = malloc(r->answer_size + 1);
    if (r->answer == NULL) {
        guard_panic_os("no memory for the metrics");
    }
    memcpy(r->answer, text, r->answer_size + 1);
    r->status = 200;
    r->type = "text/plain; version=0.0.4; charset=utf-8";
}

static void get_page(http_request *r, const ledger *l)
{
    (void)l;
    r->answer = strdup(page_html);
    if (r->answer == NULL) {
        guard_panic_os("no memory for the page");
    }
    r->answer_size = strlen(r->answer);
    r->status = 200;
    r->type = "text/html; charset=utf-8";
}

/* ----------------------------------------------------------------------------------------------- dispatch -- */

typedef struct route {
    const char *path;
    void (*get)(http_request *r, const ledger *l);
    void (*post)(http_request *r, const ledger *l);
} route;

static const route routes[] = {
    {"/", get_page, NULL},         {"/accounts", get_accounts, NULL}, {"/transfers", get_transfers, post_transfer},
    {"/status", get_status, NULL}, {"/metrics", get_metrics, NULL},   {"/healthz", get_health, NULL}};

void routes_handle(http_request *r, void *arg)
{
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        if (strcmp(r->path, routes[i].path) != 0) {
            continue;
        }
        int get = strcmp(r->method, "GET") == 0 || strcmp(r->method, "HEAD") == 0;
        void (*handler)(http_request *, const ledger *) = get                              ? routes[i].get
                                                          : strcmp(r->method, "POST") == 0 ? routes[i].post
                                                                                           : NULL;
        if (handler == NULL) {
            r->allow = routes[i].post != NULL ? "GET, HEAD, POST" : "GET, HEAD";
            refuse(405, "%s takes %s", r->path, r->allow);
        }
        handler(r, arg);
        return;
    }
    refuse(404, "there is nothing at this path");
}
