/* SPDX-License-Identifier: MIT */
/*
 * routes.h: what the ledger answers to which request.
 */
#ifndef LEDGER_ROUTES_H
#define LEDGER_ROUTES_H

#include "http.h"
#include "options.h"
#include "store.h"

typedef struct ledger {
    const ledger_options *options;
    store *store;
} ledger;

/* An http_handler; arg is a ledger. */
void routes_handle(http_request *request, void *arg);

/* The page for people, made of page.html. */
extern const char page_html[];

#endif
