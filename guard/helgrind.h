/* SPDX-License-Identifier: MIT */
/*
 * helgrind.h: what valgrind's helgrind is told, since it takes an atomic for any other access and learns no order from it, and does not know
 * that a forked child has one thread. A few instructions without effect where the program does not run under it; nothing where valgrind's
 * header was not there at the build. Private.
 */
#ifndef GUARD_HELGRIND_H
#define GUARD_HELGRIND_H

#if defined(__has_include)
#if __has_include(<valgrind/helgrind.h>)
#include <valgrind/helgrind.h>
#endif
#endif

#ifdef VALGRIND_HG_CLEAN_MEMORY
/* What threads did before HELGRIND_BEFORE of an object comes before what a thread does after HELGRIND_AFTER of it. */
#define HELGRIND_BEFORE(object) ANNOTATE_HAPPENS_BEFORE(object)
#define HELGRIND_AFTER(object) ANNOTATE_HAPPENS_AFTER(object)
/* The memory is this thread's alone from now on. */
#define HELGRIND_TAKE(memory, size) VALGRIND_HG_CLEAN_MEMORY(memory, size)
/* The memory has atomics, and what they order: ThreadSanitizer looks after it. */
#define HELGRIND_IGNORE(memory, size) VALGRIND_HG_DISABLE_CHECKING(memory, size)
#else
#define HELGRIND_BEFORE(object) ((void)(object))
#define HELGRIND_AFTER(object) ((void)(object))
#define HELGRIND_TAKE(memory, size) ((void)(memory))
#define HELGRIND_IGNORE(memory, size) ((void)(memory))
#endif

#endif
