/* SPDX-License-Identifier: MIT */
/*
 *   client:  waited for --client_serve--> served --client_wait--> waited for --too long--> shut --client_end--> gone
 *
 * A client is in the list as long as its socket is open: under the lock it can be shut and is no other's.
 */
#include "client.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

struct client {
    client *next;
    client **at; /* what points to it */
    int socket;
    int64_t due; /* INT64_MAX: it is served, or shut */
};

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

client *client_begin(client_list *list, int socket)
{
    client *c = malloc(sizeof *c);
    if (c == NULL) {
        return NULL;
    }
    pthread_mutex_lock(&list->lock);
    *c = (client){.next = list->first, .at = &list->first, .socket = socket, .due = now_ms() + list->wait_ms};
    if (c->next != NULL) {
        c->next->at = &c->next;
    }
    list->first = c;
    pthread_mutex_unlock(&list->lock);
    return c;
}

static void set_due(client_list *list, client *c, int64_t due)
{
    if (c != NULL) {
        pthread_mutex_lock(&list->lock);
        c->due = due;
        pthread_mutex_unlock(&list->lock);
    }
}

void client_serve(client_list *list, client *c)
{
    set_due(list, c, INT64_MAX);
}

void client_wait(client_list *list, client *c)
{
    set_due(list, c, now_ms() + list->wait_ms);
}

void client_end(client_list *list, client *c)
{
    if (c != NULL) {
        pthread_mutex_lock(&list->lock);
        *c->at = c->next;
        if (c->next != NULL) {
            c->next->at = c->at;
        }
        pthread_mutex_unlock(&list->lock);
        free(c);
    }
}

void client_shut_late(client_list *list)
{
    int64_t now = now_ms();
    pthread_mutex_lock(&list->lock);
    for (client *c = list->first; c != NULL; c = c->next) {
        if (c->due <= now) {
            shutdown(c->socket, SHUT_RDWR);
            c->due = INT64_MAX;
        }
    }
    pthread_mutex_unlock(&list->lock);
}
