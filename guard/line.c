/* SPDX-License-Identifier: MIT */
/* line.c: text that a signal handler builds: no allocation, no locale, no lock. What does not fit is cut. */
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <signal.h>

#include "internal.h"

void guard_line_text(guard_line *line, const char *text)
{
    while (*text != '\0' && line->length + 1 < line->size) {
        line->text[line->length++] = *text++;
    }
    line->text[line->length] = '\0';
}

void guard_line_escaped(guard_line *line, const char *text)
{
    size_t room = line->size - line->length;
    size_t length = guard_text_escape(line->text + line->length, room, text);
    line->length += length < room ? length : room - 1;
}

static void line_digits(guard_line *line, uint64_t number, unsigned base)
{
    static const char digits[] = "0123456789abcdef";
    char text[24];
    char *at = text + sizeof text - 1;
    *at = '\0';
    do {
        *--at = digits[number % base];
        number /= base;
    } while (number != 0);
    guard_line_text(line, at);
}

void guard_line_number(guard_line *line, uint64_t number)
{
    line_digits(line, number, 10);
}

void guard_line_hex(guard_line *line, uint64_t number)
{
    guard_line_text(line, "0x");
    line_digits(line, number, 16);
}

void guard_line_signal(guard_line *line, int signo)
{
    const char *name = sigabbrev_np(signo);
    if (name != NULL) {
        guard_line_text(line, "SIG");
        guard_line_text(line, name);
    } else {
        guard_line_text(line, "signal ");
        guard_line_number(line, (uint64_t)signo);
    }
}

/* -------------------------------------------------------------------------------------------- modules -- */

bool guard_module_find(uintptr_t address, guard_module *module)
{
#ifdef DLFO_EH_SEGMENT_TYPE
    struct dl_find_object found;
    if (_dl_find_object((void *)address, &found) == 0) {
        module->start = (uintptr_t)found.dlfo_map_start;
        module->base = found.dlfo_link_map->l_addr;
        module->path = found.dlfo_link_map->l_name;
        return true;
    }
#endif
    (void)address;
    (void)module;
    return false;
}

const char *guard_module_name(const guard_module *module)
{
    const char *path = module->path == NULL || module->path[0] == '\0' ? program_invocation_short_name : module->path;
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

void guard_line_place(guard_line *line, uintptr_t pc)
{
    guard_module module;
    if (!guard_module_find(pc, &module)) {
        guard_line_hex(line, pc);
        return;
    }
    guard_line_escaped(line, guard_module_name(&module));
    guard_line_text(line, "+");
    guard_line_hex(line, pc - module.base);
}

/* What happened and where, as far as the kernel says. */
void guard_line_fault(guard_line *line, int signo, int code, uintptr_t address)
{
    const char *why = NULL;
    if (signo == SIGFPE) {
        guard_line_text(line, code == FPE_INTDIV   ? "integer division by zero, or its result is too large"
                              : code == FPE_INTOVF ? "integer overflow"
                                                   : "a floating-point exception");
        return;
    }
    if (signo == SIGSEGV) {
        why = code == SEGV_MAPERR   ? "nothing is mapped there"
              : code == SEGV_ACCERR ? "not allowed there"
              : code == SI_KERNEL   ? NULL
                                    : "protected";
    } else if (signo == SIGBUS) {
        why = code == BUS_ADRALN ? "not aligned" : code == BUS_ADRERR ? "past the end of what is mapped" : "bad memory";
    }
    if (signo == SIGSEGV && code == SI_KERNEL) {
        guard_line_text(line, "an address that cannot be"); /* non-canonical: the processor does not say which */
        return;
    }
    guard_line_text(line, "address ");
    guard_line_hex(line, address);
    if (why != NULL) {
        guard_line_text(line, " (");
        guard_line_text(line, why);
        guard_line_text(line, ")");
    }
}
