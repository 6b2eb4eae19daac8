/* SPDX-License-Identifier: MIT */
/* task.h: what the kernel says of a thread, for tests that wait until one is asleep or has ended. */
#ifndef TESTS_TASK_H
#define TESTS_TASK_H

#include <sys/types.h>

/* As proc_pid_stat(5) has it: 'S' is asleep, 'Z' has ended and was the process's first. A process's number is that of its first thread. */
char task_state(pid_t task);

/* Waits until it is in this state. */
void task_wait(pid_t task, char state);

/* This process's thread of that name (pthread_setname_np); fails the test where there is none. */
pid_t task_named(const char *name);

#endif
