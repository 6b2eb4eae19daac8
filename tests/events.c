/* SPDX-License-Identifier: MIT */
#include "events.h"

#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static int events[2] = {-1, -1};

void events_open(void)
{
    ck_assert_int_eq(pipe2(events, O_CLOEXEC | O_NONBLOCK), 0);
}

void event_add(const char *what, const char *name)
{
    char text[100];
    int length = snprintf(text, sizeof text, "%s %s,", what, name);
    ck_assert_int_eq(write(events[1], text, (size_t)length), length);
}

void event_run(void *name)
{
    event_add("run", name);
}

const char *events_read(void)
{
    static char text[2000];
    ssize_t got = read(events[0], text, sizeof text - 1);
    text[got > 0 ? got - 1 : 0] = '\0';
    return text;
}

void events_expect(const char *expected)
{
    ck_assert_str_eq(events_read(), expected);
}

int events_in_child(guard_fn *fn, void *arg)
{
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        fn(arg);
        _exit(0);
    }
    int status;
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    return status;
}
