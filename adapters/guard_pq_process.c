/* SPDX-License-Identifier: MIT */
/*
 * guard_pq_process.c: the process's number without a system call.
 *
 *     no page --first use--> page: the number --a fork--> in the child 0 --next use--> the child's number
 *
 * The kernel itself empties the page in a child (MADV_WIPEONFORK, madvise(2)), so that a fork is seen also where no handler of
 * pthread_atfork runs. Where there is no such page getpid is asked each time.
 */
#include "guard_pq_internal.h"

#include <sys/mman.h>
#include <unistd.h>

/* Valgrind's helgrind takes an atomic for any other access, and so the number for a race. */
#if defined(__has_include)
#if __has_include(<valgrind/helgrind.h>)
#include <valgrind/helgrind.h>
#endif
#endif

pid_t *guard_pq_process_page;

static pid_t *page_make(void)
{
    size_t size = (size_t)sysconf(_SC_PAGESIZE);
    void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
        return NULL;
    }
#ifdef VALGRIND_HG_DISABLE_CHECKING
    VALGRIND_HG_DISABLE_CHECKING(&guard_pq_process_page, sizeof guard_pq_process_page);
    VALGRIND_HG_DISABLE_CHECKING(page, size);
#endif
    pid_t *none = NULL;
    if (madvise(page, size, MADV_WIPEONFORK) != 0 ||
        !__atomic_compare_exchange_n(&guard_pq_process_page, &none, page, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        munmap(page, size); /* another thread was first, or an old kernel */
        return none;
    }
    return page;
}

pid_t guard_pq_process_ask(void)
{
    pid_t *page = __atomic_load_n(&guard_pq_process_page, __ATOMIC_ACQUIRE);
    page = page != NULL ? page : page_make();
    pid_t pid = getpid();
    if (page != NULL) {
        __atomic_store_n(page, pid, __ATOMIC_RELAXED);
    }
    return pid;
}
