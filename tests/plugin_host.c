/* SPDX-License-Identifier: MIT */
/* plugin_host.c: loads tests/plugin.c, calls it, unloads it, and only then ends what it has left: the host of tests/check_plugin. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include <guard/guard.h>
#include <guard/guard_dump.h>

typedef void plugin_fn(guard_scope *scope);

static plugin_fn *find(void *plugin, const char *name)
{
    plugin_fn *found;
    *(void **)&found = dlsym(plugin, name);
    return found;
}

static void use(void *name)
{
    GUARD_AUTO(s);
    void *plugin = dlopen("./plugin.so", RTLD_NOW);
    if (plugin == NULL) {
        guard_panic(100, "%s", dlerror());
    }
    find(plugin, name)(s);
    dlclose(plugin);
    printf("unloaded\n");
    fflush(stdout);
    guard_dump(1);
}

int main(int count, char **arguments)
{
    guard_error error;
    if (count != 2) {
        return 2;
    }
    int code = guard_run(use, arguments[1], &error);
    printf("code %d%s%s\n", code, code != 0 ? ": " : "", code != 0 ? error.message : "");
    return 0;
}
