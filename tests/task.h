/* SPDX-License-Identifier: MIT */
/* task.h: what the kernel says of a thread, for tests that wait until one is asleep or has ended. */
#ifndef TESTS_TASK_H
#define TESTS_TASK_H

#include <sys/types.h>

/* As proc_pid_stat(5) has it: 'S' asleep, 'Z' ended but the first of its process. `task` is a thread's number, that of a process its first thread's. */
char task_state(pid_t task);

/* Waits until it is in this state. */
void task_wait(pid_t task, char state);

/* This process's thread of that name (pthread_setname_np); fails the test where there is none. */
pid_t task_named(const char *name);

#endif
