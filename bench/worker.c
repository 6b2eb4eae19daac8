/* SPDX-License-Identifier: MIT */
/*
 * worker.c: a worker's process, see bench.h for what it is asked.
 *
 *     open --ask--> answering --answer--> open ... --end of the scope--> its input ends, SIGTERM, waited for
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guard/guard_file.h>

#include "compare.h"

/* The slowest request is a load by the slowest loader. */
#define ANSWER_MS (10 * 60 * 1000)

struct bench_worker {
    pid_t pid; /* 0: not started */
    FILE *requests;
    FILE *answers;
    const char *name;
};

bool bench_worker_exists(const char *folder, const char *program)
{
    GUARD_AUTO(s);
    return access(guard_memory_format(s, NULL, "%s/%s", folder, program), X_OK) == 0;
}

/* ---------------------------------------------------------------------------------------------- processes -- */

/* A stream to (mode "w") or from (mode "r") a process that is still to be started; *theirs is its end, which is closed when s ends. */
static FILE *process_pipe(guard_scope *scope, const char *mode, guard_scope *s, int *theirs)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) {
        guard_panic_os("cannot make a pipe");
    }
    int ours = mode[0] == 'w';
    *theirs = guard_file_adopt_descriptor(s, ends[!ours], "a worker's end of a pipe", NULL);
    FILE *stream = fdopen(ends[ours], mode);
    if (stream == NULL) {
        close(ends[ours]);
        guard_panic_os("no memory for a stream");
    }
    return guard_file_adopt(scope, stream, "a pipe to a worker", NULL);
}

/* Descriptors that are not negative become the process's. Returns its number. */
static pid_t process_start(char *const *arguments, int input, int output, int error)
{
    posix_spawn_file_actions_t actions;
    pid_t pid;
    posix_spawn_file_actions_init(&actions);
    int failed = 0;
    const int wanted[3] = {input, output, error};
    for (int i = 0; i < 3 && failed == 0; i++) {
        failed = wanted[i] >= 0 ? posix_spawn_file_actions_adddup2(&actions, wanted[i], i) : 0;
    }
    failed = failed == 0 ? posix_spawnp(&pid, arguments[0], &actions, NULL, arguments, environ) : failed;
    posix_spawn_file_actions_destroy(&actions);
    if (failed != 0) {
        guard_panic_in(GUARD_OS, failed, "cannot start %s: %s", arguments[0], strerror(failed));
    }
    return pid;
}

static int process_wait(pid_t pid)
{
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
}

static void worker_end(void *memory)
{
    bench_worker *worker = memory;
    if (worker->pid != 0) {
        kill(worker->pid, SIGTERM); /* at rest it would see the end of its input; after a panic it may be at work */
        process_wait(worker->pid);
    }
}

/* ---------------------------------------------------------------------------------------------- questions -- */

bench_worker *bench_worker_open(guard_scope *scope, const char *folder, const char *program)
{
    GUARD_AUTO(s);
    int input;
    int output;
    bench_worker *worker = guard_memory_allocate(scope, sizeof *worker, NULL);
    char *arguments[] = {guard_memory_format(scope, NULL, "%s/%s", folder, program), NULL};
    *worker = (bench_worker){.name = program};
    worker->requests = process_pipe(scope, "w", s, &input);
    worker->answers = process_pipe(scope, "r", s, &output);
    guard_defer(scope, worker_end, worker);
    worker->pid = process_start(arguments, input, output, -1);
    return worker;
}

static void worker_read(bench_worker *worker, char *line, int size)
{
    struct pollfd wait = {.fd = fileno(worker->answers), .events = POLLIN};
    int ready;
    while ((ready = poll(&wait, 1, ANSWER_MS)) < 0 && errno == EINTR) {
    }
    if (ready == 0) {
        guard_panic_in(GUARD_TIMEOUT, ETIMEDOUT, "%s does not answer", worker->name);
    }
    if (fgets(line, size, worker->answers) == NULL) {
        guard_panic(1, "%s ended without an answer", worker->name);
    }
    line[strcspn(line, "\n")] = '\0';
}

bool bench_worker_ask(bench_worker *worker, const char *work, uint64_t count, bench_answer *answer, char *reason,
                      size_t size)
{
    char line[256];
    if (fprintf(worker->requests, "%s %" PRIu64 "\n", work, count) < 0 || fflush(worker->requests) != 0) {
        clearerr(worker->requests); /* it has ended, and its answer says why */
    }
    worker_read(worker, line, sizeof line);
    if (strncmp(line, "skip ", 5) == 0) {
        snprintf(reason, size, "%s", line + 5);
        return false;
    }
    if (sscanf(line, "%" SCNd64 " %" SCNu64, &answer->nanoseconds, &answer->check) != 2) {
        guard_panic(1, "%s %s: %s", worker->name, work, line);
    }
    return true;
}

/* --------------------------------------------------------------------------------------------- callgrind -- */

static void close_stream(void *stream)
{
    fclose(stream);
}

/* callgrind tells its sum in a line "==PID== Collected : NUMBER". */
static double instructions_of(const char *program, const char *work, uint64_t count)
{
    GUARD_AUTO(s);
    char line[512];
    double collected = 0;
    FILE *report = tmpfile();
    if (report == NULL) {
        guard_panic_os("no temporary file");
    }
    guard_defer(s, close_stream, report);
    int nowhere = guard_file_open_descriptor(s, "/dev/null", O_WRONLY, 0, NULL);
    char *arguments[] = {(char *)"valgrind",
                         (char *)"--tool=callgrind",
                         (char *)"--callgrind-out-file=/dev/null",
                         (char *)"--trace-children=no",
                         guard_memory_copy(s, program, NULL),
                         guard_memory_copy(s, work, NULL),
                         guard_memory_format(s, NULL, "%" PRIu64, count),
                         NULL};
    if (process_wait(process_start(arguments, -1, nowhere, fileno(report))) != 0) {
        return 0;
    }
    rewind(report);
    while (fgets(line, sizeof line, report) != NULL) {
        const char *found = strstr(line, "Collected : ");
        if (found != NULL) {
            collected = strtod(found + strlen("Collected : "), NULL);
        }
    }
    return collected;
}

double bench_worker_instructions(const char *folder, const bench_side *side, const char *work, uint64_t count)
{
    GUARD_AUTO(s);
    const char *program = guard_memory_format(s, NULL, "%s/%s", folder, side->program);
    double once = instructions_of(program, work, count);
    double twice = instructions_of(program, work, 2 * count);
    return once > 0 && twice > once ? (twice - once) / (double)count : 0;
}
