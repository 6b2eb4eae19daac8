/* SPDX-License-Identifier: MIT */
/*
 * pthread_exit in a function of the program's that SQLite has called.
 *
 * Its unwinding would pass SQLite's frames, which give nothing back: the handle's mutex would stay locked by a thread that is gone. So the border around the function
 * stops it, SQLite ends its statement with an error, and the call of ours that it is in lets the thread go on to exit.
 *
 *   function --pthread_exit--> scopes of the function run --> border: exiting --SQLite returns--> statement reset --> the thread exits, with its value
 *
 * How a frame stops the unwinding is glibc's: it is what pthread_cleanup_push is to code without -fexceptions (pthread.h), whose handler
 * runs in its frame and then has the unwinding go on. Only that other frames of ours lie between is new. Where the program itself has called SQLite (`calls`
 * is 0) nobody would go on, and nothing is stopped. Without glibc, and under ThreadSanitizer, which must see every jump, neither.
 */
#include "guard_sqlite_internal.h"

#if defined(__SANITIZE_THREAD__)
#define IS_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define IS_TSAN 1
#endif
#endif

#if defined(__GLIBC__) && !defined(IS_TSAN)
#define IS_STOPPED __GLIBC_PREREQ(2, 36) /* tried */
#else
#define IS_STOPPED 0
#endif

#if IS_STOPPED

/* Part of glibc's ABI; its header declares them to code without -fexceptions only. */
extern void __pthread_register_cancel(__pthread_unwind_buf_t *buffer);
extern void __pthread_unregister_cancel(__pthread_unwind_buf_t *buffer);
extern void __pthread_unwind_next(__pthread_unwind_buf_t *buffer) GUARD_NORETURN;
#ifdef __clang__
extern int __sigsetjmp(struct __jmp_buf_tag environment[1], int save_mask) __attribute__((nothrow, returns_twice));
#endif

typedef struct border {
    guard_sqlite *db;
    guard_latch *latch;
    uint32_t foreign; /* what was open; what the function opened is passed */
    unsigned calls;
    unsigned inside;
} border;

static void land(const border *at)
{
    at->db->calls = at->calls;
    at->db->inside = at->inside;
    guard_impl_foreign = at->foreign;
    at->db->exiting = 1;
    guard_error_set(&at->latch->error, GUARD_SQLITE, SQLITE_ABORT, "the thread ends");
    at->latch->code = SQLITE_ABORT;
}

/* Apart: what the jump may have changed is in the caller's frame. */
static __attribute__((noinline)) int run_and_stop(const border *at, guard_fn *fn, void *arg)
{
    __pthread_unwind_buf_t buffer;
    if (__sigsetjmp_cancel(buffer.__cancel_jmp_buf, 0) != 0) {
        __pthread_unregister_cancel(&buffer);
        land(at);
        return SQLITE_ABORT;
    }
    __pthread_register_cancel(&buffer);
    int failed = guard_latch_run(at->latch, fn, arg);
    __pthread_unregister_cancel(&buffer);
    return failed;
}

static int run_border(guard_sqlite *db, guard_latch *latch, guard_fn *fn, void *arg)
{
    if (db->calls == 0 || latch->code != 0) {
        return guard_latch_run(latch, fn, arg);
    }
    const border at = {db, latch, guard_impl_foreign, db->calls, db->inside};
    return run_and_stop(&at, fn, arg);
}

static void go_on(guard_sqlite *db)
{
    __pthread_unwind_buf_t buffer;
    db->exiting = 0;
    __pthread_register_cancel(&buffer); /* so that the next one is the one that was there */
    __pthread_unwind_next(&buffer);
}

#else

static int run_border(guard_sqlite *db, guard_latch *latch, guard_fn *fn, void *arg)
{
    (void)db;
    return guard_latch_run(latch, fn, arg);
}

static void go_on(guard_sqlite *db)
{
    (void)db;
}

#endif

int guard_sqlite_border(guard_sqlite *db, guard_latch *latch, guard_fn *fn, void *arg)
{
    int failed = run_border(db, latch, fn, arg);
    guard_sqlite_look_behind(db); /* the rest of the statement may take back what this has begun */
    return failed;
}

void guard_sqlite_latch_raise(guard_sqlite *db, guard_latch *latch)
{
    if (db->exiting) {
        latch->code = 0;
        go_on(db);
    }
    guard_latch_raise(latch);
}
