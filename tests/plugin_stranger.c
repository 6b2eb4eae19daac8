/* SPDX-License-Identifier: MIT */
/* plugin_stranger.c: the same of a host that is not linked with the library: the plugin brings it along. */
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static void *use(void *unused)
{
    void *plugin = dlopen("./plugin.so", RTLD_NOW);
    if (plugin == NULL) {
        puts(dlerror());
        return NULL;
    }
    void (*alone)(void);
    *(void **)&alone = dlsym(plugin, "plugin_alone");
    alone();
    dlclose(plugin);
    return unused; /* and with the thread goes what the library has of it */
}

int main(void)
{
    pthread_t thread;
    int status = -1;
    int there = 1;
    void *returned = NULL;
    for (int i = 0; i < 2; i++) {
        pthread_create(&thread, NULL, use, &there);
        pthread_join(thread, &returned);
    }
    raise(SIGUSR1); /* its handler is the library's */
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        _exit(3);
    }
    waitpid(child, &status, 0);
    printf("child %d\n", WEXITSTATUS(status));
    return returned == &there ? 0 : 1;
}
