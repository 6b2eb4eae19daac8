/* SPDX-License-Identifier: MIT */
/*
 * bench.h: what the workers in C and C++ share. A worker is a program that does the work of some rows in one way: ours, or a peer's.
 *
 * It reads requests "WORK COUNT" from standard input, one in a line, and answers each with "NANOSECONDS CHECK": the time that COUNT turns of
 * the work took by the monotonic clock, and a sum over what was done, by which the comparison sees that both did the same. An answer
 * "skip REASON" says that the work cannot be done here, "error REASON" that it went wrong; the worker ends after either.
 * "WORK@2 COUNT" has two threads do it, each its half. With arguments, "worker WORK COUNT", it serves this one request: so
 * instructions are counted, and a profiler sees nothing else.
 */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Does `count` turns and returns the check. */
typedef uint64_t bench_fn(uint64_t count);

typedef struct bench_work {
    const char *name;
    bench_fn *run;
} bench_work;

/* Answers requests for these works until standard input ends; the list ends with a NULL name. Returns main's result. */
int bench_serve(int argc, char **argv, const bench_work *works);

/* Inside a bench_fn: the time begins and ends here, not with the function. Not in one that is asked for with threads. */
void bench_begin(void);
void bench_end(void);

__attribute__((noreturn, format(printf, 1, 2))) void bench_skip(const char *format, ...);
__attribute__((noreturn, format(printf, 1, 2))) void bench_fail(const char *format, ...);

/* What deferred functions and destructors do: adds 1 to the uint64_t. It is in a file of its own, so that no compiler inlines it. */
void bench_add(void *sum);

/* place.c: puts this process and the server's process of its connection on one processor. */
void bench_place(int server);

/* folder.c: makes an empty folder on a disk; removes it with its files. */
void bench_folder_open(char *path, size_t size);
void bench_folder_close(const char *path);

#ifdef __cplusplus
}
#endif

#endif
