/* SPDX-License-Identifier: MIT */
/*
 * symbol.c: the names of code addresses, for those who print a trace.
 *
 *     not opened --first address--> open: the modules of this process, read again when an address lies in none
 *               \--libdw fails, or another thread takes a second over it--> the dynamic linker's names
 *
 * Invariant: libdw's session is used under symbol_lock only, with pthread_cancel closed out, for it reads files. A forked child may have
 * inherited the lock taken; waiting for it ends.
 *
 * libdw's own way to debugging information that is not on this machine (debuginfod) asks the network, in a report of a dying
 * process even; so files are looked for by their build ID and here only.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <unistd.h>

#include "internal.h"

#include <guard/guard_trace.h>

/* -------------------------------------------------------------------------------------- the dynamic linker -- */

static bool linker_find(const void *address, guard_frame *frame)
{
    Dl_info info;
    struct link_map *map = NULL;
    void *place = (void *)((uintptr_t)address - 1); /* in the call; the return address may be the next function's */
    if (dladdr1(place, &info, (void **)&map, RTLD_DL_LINKMAP) == 0 || info.dli_fname == NULL) {
        return false;
    }
    frame->offset = (uintptr_t)place - (map != NULL ? (uintptr_t)map->l_addr : 0);
    guard_text_copy(frame->module, sizeof frame->module, guard_path_end(info.dli_fname));
    if (info.dli_sname != NULL) {
        guard_text_copy(frame->function, sizeof frame->function, info.dli_sname);
    }
    return true;
}

/* -------------------------------------------------------------------------------------------------- libdw -- */

#ifdef GUARD_HAVE_LIBDW
#include <elfutils/libdw.h>
#include <elfutils/libdwfl.h>

#define LOCK_MS 1000

static pthread_mutex_t symbol_lock = PTHREAD_MUTEX_INITIALIZER;
static Dwfl *symbol_session;

/* libdw opens files to be inherited, and keeps them. */
static int close_at_exec(int descriptor)
{
    if (descriptor >= 0) {
        (void)fcntl(descriptor, F_SETFD, FD_CLOEXEC);
    }
    return descriptor;
}

static int debuginfo_here(Dwfl_Module *module, void **data, const char *name, Dwarf_Addr base, const char *file,
                          const char *link_name, GElf_Word link_sum, char **found)
{
    return close_at_exec(dwfl_build_id_find_debuginfo(module, data, name, base, file, link_name, link_sum, found));
}

static int elf_here(Dwfl_Module *module, void **data, const char *name, Dwarf_Addr base, char **found, Elf **elf)
{
    return close_at_exec(dwfl_linux_proc_find_elf(module, data, name, base, found, elf));
}

static const Dwfl_Callbacks symbol_callbacks = {.find_elf = elf_here, .find_debuginfo = debuginfo_here};

static Dwfl_Module *module_of(Dwarf_Addr place)
{
    if (symbol_session == NULL) {
        symbol_session = dwfl_begin(&symbol_callbacks);
    }
    if (symbol_session == NULL) {
        return NULL;
    }
    Dwfl_Module *module = dwfl_addrmodule(symbol_session, place);
    if (module == NULL) {
        dwfl_report_begin(symbol_session);
        int failed = dwfl_linux_proc_report(symbol_session, getpid());
        failed |= dwfl_report_end(symbol_session, NULL, NULL);
        module = failed == 0 ? dwfl_addrmodule(symbol_session, place) : NULL;
    }
    return module;
}

static void frame_line(guard_frame *frame, const char *file, int line)
{
    if (file != NULL && line > 0) {
        guard_text_copy(frame->file, sizeof frame->file, guard_path_end(file));
        frame->line = (uint32_t)line;
    }
}

/* clang writes no .debug_aranges, which dwfl_module_getsrc goes by: then each unit is asked. */
static void find_line_by_units(Dwfl_Module *module, Dwarf_Addr place, guard_frame *frame)
{
    Dwarf_Addr bias;
    Dwarf_Die *unit = dwfl_module_nextcu(module, NULL, &bias);
    while (unit != NULL && dwarf_haspc(unit, place - bias) <= 0) {
        unit = dwfl_module_nextcu(module, unit, &bias);
    }
    Dwarf_Line *line = unit != NULL ? dwarf_getsrc_die(unit, place - bias) : NULL;
    int number = 0;
    if (line != NULL && dwarf_lineno(line, &number) == 0) {
        frame_line(frame, dwarf_linesrc(line, NULL, NULL), number);
    }
}

static void libdw_find_locked(Dwarf_Addr place, guard_frame *frame)
{
    Dwfl_Module *module = module_of(place);
    if (module == NULL) {
        return;
    }
    const char *function = dwfl_module_addrname(module, place);
    if (function != NULL) {
        guard_text_copy(frame->function, sizeof frame->function, function);
    }
    Dwfl_Line *line = dwfl_module_getsrc(module, place);
    int number = 0;
    if (line != NULL) {
        const char *file = dwfl_lineinfo(line, NULL, &number, NULL, NULL, NULL);
        frame_line(frame, file, number);
    } else {
        find_line_by_units(module, place, frame);
    }
}

static void libdw_find(const void *address, guard_frame *frame)
{
    int cancel;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
    if (guard_lock_within(&symbol_lock, LOCK_MS)) {
        libdw_find_locked((uintptr_t)address - 1, frame);
        pthread_mutex_unlock(&symbol_lock);
    }
    pthread_setcancelstate(cancel, NULL);
}

void guard_symbol_forget(void)
{
    if (pthread_mutex_trylock(&symbol_lock) == 0) {
        dwfl_end(symbol_session);
        symbol_session = NULL;
        pthread_mutex_unlock(&symbol_lock);
    }
}

/* So that a leak checker finds nothing. */
static __attribute__((destructor)) void symbol_end(void)
{
    guard_symbol_forget();
}
#else
void guard_symbol_forget(void)
{
}

static void libdw_find(const void *address, guard_frame *frame)
{
    (void)address;
    (void)frame;
}
#endif

int guard_frame_find(const void *address, guard_frame *frame)
{
    memset(frame, 0, sizeof *frame);
    frame->address = address;
    bool is_known = address != NULL && linker_find(address, frame);
    if (is_known) {
        libdw_find(address, frame);
    }
    return is_known;
}

/* ------------------------------------------------------------------------------------------------- printing -- */

size_t guard_frame_format(const guard_frame *frame, char *text, size_t size)
{
    char function[4 * sizeof frame->function]; /* \x1b for a character */
    char file[4 * sizeof frame->file];
    char module[4 * sizeof frame->module];
    int length;
    guard_text_escape(function, sizeof function, frame->function);
    guard_text_escape(file, sizeof file, frame->file);
    guard_text_escape(module, sizeof module, frame->module);
    if (file[0] != '\0') {
        length = snprintf(text, size, "%s at %s:%u", function[0] != '\0' ? function : "?", file, frame->line);
    } else if (module[0] != '\0') {
        length = snprintf(text, size, "%s%s%s+0x%llx", function, function[0] != '\0' ? " in " : "", module,
                          (unsigned long long)frame->offset);
    } else {
        length = snprintf(text, size, "%p", frame->address);
    }
    return length > 0 ? (size_t)length : 0;
}

size_t guard_trace_format(const guard_trace *trace, char *text, size_t size)
{
    char line[1024];
    size_t length = 0;
    if (size > 0) {
        text[0] = '\0';
    }
    for (uint32_t i = 0; i < trace->count && i < GUARD_TRACE_FRAMES; i++) {
        guard_frame frame;
        guard_frame_find(trace->frames[i], &frame);
        guard_frame_format(&frame, line, sizeof line);
        length += (size_t)snprintf(length < size ? text + length : NULL, length < size ? size - length : 0, "\t%s\n",
                                   line);
    }
    if (trace->is_cut) {
        length += (size_t)snprintf(length < size ? text + length : NULL, length < size ? size - length : 0, "\t...\n");
    }
    return length;
}
