/* SPDX-License-Identifier: MIT */
#include "task.h"

#include <check.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "suite.h"

/* Reads the first line of a file; "" where there is none. */
static void read_line(const char *path, char *line, int size)
{
    FILE *file = fopen(path, "r");
    if (file == NULL || fgets(line, size, file) == NULL) {
        line[0] = '\0';
    }
    if (file != NULL) {
        fclose(file);
    }
}

char task_state(pid_t task)
{
    char path[32];
    char line[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)task);
    read_line(path, line, sizeof line);
    const char *name_end = strrchr(line, ')'); /* the name may have anything in it */
    return name_end != NULL && name_end[1] == ' ' ? name_end[2] : '\0';
}

void task_wait(pid_t task, char state)
{
    while (task_state(task) != state) {
        pause_ms(1);
    }
}

pid_t task_named(const char *name)
{
    pid_t found = 0;
    DIR *tasks = opendir("/proc/self/task");
    ck_assert_ptr_nonnull(tasks);
    for (struct dirent *entry; found == 0 && (entry = readdir(tasks)) != NULL;) {
        char path[300];
        char line[64];
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", entry->d_name);
        read_line(path, line, sizeof line);
        line[strcspn(line, "\n")] = '\0';
        found = strcmp(line, name) == 0 ? (pid_t)atoi(entry->d_name) : 0;
    }
    closedir(tasks);
    ck_assert_msg(found != 0, "there is no thread %s", name);
    return found;
}
