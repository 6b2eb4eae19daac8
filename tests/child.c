/* SPDX-License-Identifier: MIT */
/* child.c: standard error is a socket that keeps the bounds of each write. */
#include <check.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "child.h"

static void child_body(void (*fn)(void *arg), void *arg, int error)
{
    static const struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    signal(SIGABRT, SIG_DFL);
    dup2(error, STDERR_FILENO);
    fn(arg);
    _exit(0);
}

void child_run(void (*fn)(void *arg), void *arg, child_result *result)
{
    int ends[2];
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        child_body(fn, arg, ends[1]);
    }
    close(ends[1]);
    result->writes = 0;
    size_t length = 0;
    for (;;) {
        ssize_t got = read(ends[0], result->text + length, sizeof result->text - 1 - length);
        if (got <= 0) {
            break;
        }
        length += (size_t)got;
        result->writes++;
    }
    result->text[length] = '\0';
    close(ends[0]);
    ck_assert_int_eq(waitpid(child, &result->status, 0), child);
}

void child_expect_signal(const child_result *result, int signo)
{
    ck_assert_msg(WIFSIGNALED(result->status) && WTERMSIG(result->status) == signo,
                  "no death of signal %d: status %x, it wrote \"%s\"", signo, (unsigned)result->status, result->text);
}

void child_expect_abort(const child_result *result)
{
    child_expect_signal(result, SIGABRT);
}
