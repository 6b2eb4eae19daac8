/* SPDX-License-Identifier: MIT */
/* check_cxx.cc: C++ exceptions through scopes and borders, in C++17 with every header of the core. */
#include <cstring>
#include <stdexcept>
#include <string>

#include <guard/guard.h>
#include <guard/guard_cancel.h>
#include <guard/guard_process.h>

extern "C" {
#include "suite.h"
#include "trace.h"
}

namespace
{

struct Object {
    explicit Object(const char *text) : name(text)
    {
    }
    Object(const Object &) = delete;
    Object &operator=(const Object &) = delete;
    ~Object()
    {
        trace_add("destroy %s", name);
    }
    const char *name;
};

void *text(const char *name)
{
    return const_cast<char *>(name);
}

void throw_through_scopes()
{
    GUARD_AUTO(outer);
    guard_defer(outer, trace_run, text("1"));
    Object object("2");
    GUARD_SCOPE (s) {
        guard_defer(s, trace_run, text("3"));
        guard_defer_kind(s, &trace_kind, text("4"));
        Object inner("5");
        throw std::runtime_error("thrown");
    }
}

extern "C" void throw_out(void *)
{
    throw_through_scopes();
}

extern "C" void panic_inside(void *)
{
    GUARD_AUTO(s);
    guard_defer(s, trace_run, text("panicked"));
    guard_panic(5, "five");
}

extern "C" void panic_in_a_defer(void *)
{
    trace_add("fails");
    guard_panic(9, "nine");
}

} // namespace

START_TEST(an_exception_runs_the_scopes_it_passes_among_the_destructors)
{
    std::string message;
    try {
        throw_through_scopes();
    } catch (const std::exception &e) {
        message = e.what();
    }
    ck_assert_str_eq(message.c_str(), "thrown");
    trace_expect("destroy 5, release 4, run 3, destroy 2, run 1");
}
END_TEST

START_TEST(an_exception_passes_guard_run_and_the_border_is_gone)
{
    GUARD_AUTO(s);
    guard_defer(s, trace_run, text("still here"));
    bool caught = false;
    try {
        guard_run(throw_out, nullptr, nullptr);
    } catch (const std::exception &) {
        caught = true;
    }
    ck_assert(caught);
    trace_expect("destroy 5, release 4, run 3, destroy 2, run 1");
    guard_error error;
    ck_assert_int_eq(guard_run(panic_inside, nullptr, &error), 5);
    trace_expect("run panicked");
}
END_TEST

/* Were the inner border still there, the panic would jump into its frame, which is gone. */
START_TEST(a_panic_after_an_exception_passed_guard_run_reaches_the_border_outside)
{
    guard_error error;
    auto body = +[](void *) {
        GUARD_AUTO(s);
        guard_defer(s, trace_run, text("0"));
        try {
            guard_run(throw_out, nullptr, nullptr);
        } catch (const std::exception &) {
            trace_add("caught");
        }
        guard_panic(6, "six");
    };
    ck_assert_int_eq(guard_run(body, nullptr, &error), 6);
    trace_expect("destroy 5, release 4, run 3, destroy 2, run 1, caught, run 0");
}
END_TEST

START_TEST(an_exception_passes_guard_run_with_a_panic_held)
{
    guard_error error;
    auto inner = +[](void *) {
        GUARD_AUTO(s);
        guard_defer(s, panic_in_a_defer, nullptr);
        throw std::runtime_error("thrown");
    };
    auto body = +[](void *arg) {
        try {
            guard_run(reinterpret_cast<guard_fn *>(arg), nullptr, nullptr);
        } catch (const std::exception &) {
            trace_add("caught");
        }
    };
    ck_assert_int_eq(guard_run(body, reinterpret_cast<void *>(+inner), &error), 9);
    trace_expect("fails, caught");
}
END_TEST

/* It comes when the body has returned, from another call of guard_run's than that of the body. */
START_TEST(an_exception_of_the_misuse_handler_passes_guard_run)
{
    guard_error error;
    auto body = +[](void *) {
        static guard_scope left_open;
        try {
            guard_run(
                +[](void *) { guard_scope_open(&left_open); }, nullptr, nullptr);
        } catch (const std::exception &) {
            trace_add("caught");
        }
        guard_panic(6, "six");
    };
    guard_misuse_fn *former = guard_misuse_handler(+[](const guard_error *) { throw std::runtime_error("misuse"); });
    ck_assert_int_eq(guard_run(body, nullptr, &error), 6);
    guard_misuse_handler(former);
    trace_expect("caught");
}
END_TEST

START_TEST(an_exception_does_not_lose_a_defer_that_panics_meanwhile)
{
    guard_error error;
    auto body = +[](void *) {
        try {
            GUARD_AUTO(s);
            guard_defer(s, trace_run, text("1"));
            guard_defer(s, panic_in_a_defer, nullptr);
            throw std::runtime_error("thrown");
        } catch (const std::exception &) {
            trace_add("caught");
        }
    };
    ck_assert_int_eq(guard_run(body, nullptr, &error), 9);
    trace_expect("fails, run 1, caught");
}
END_TEST

START_TEST(an_exception_runs_a_guard_defer_and_one_out_of_it_goes_on)
{
    auto thrower = +[](void *) { throw std::runtime_error("from a defer"); };
    std::string what;
    try {
        GUARD_DEFER(trace_run, text("outer"));
        try {
            GUARD_DEFER(trace_run, text("inner"));
            throw std::runtime_error("thrown");
        } catch (const std::exception &) {
            trace_add("caught");
        }
        GUARD_DEFER(thrower, nullptr);
    } catch (const std::exception &e) {
        what = e.what();
    }
    ck_assert_str_eq(what.c_str(), "from a defer");
    trace_expect("run inner, caught, run outer");
    /* The stack is whole. */
    GUARD_DEFER(trace_run, text("last"));
    ck_assert_int_eq(guard_run(panic_inside, nullptr, nullptr), 5);
    trace_expect("run panicked");
}
END_TEST

START_TEST(a_panic_is_contained_inside_an_exceptions_handler)
{
    try {
        throw_through_scopes();
    } catch (const std::exception &e) {
        trace_clear();
        ck_assert_int_eq(guard_run(panic_inside, nullptr, nullptr), 5);
        trace_expect("run panicked");
        ck_assert_str_eq(e.what(), "thrown");
    }
}
END_TEST

START_TEST(an_exception_out_of_a_deferred_function_runs_the_rest)
{
    auto thrower = +[](void *) { throw std::runtime_error("from a defer"); };
    bool caught = false;
    try {
        GUARD_AUTO(outer);
        guard_defer(outer, trace_run, text("outer"));
        {
            guard_scope s;
            guard_scope_open(&s);
            guard_defer(&s, trace_run, text("1"));
            guard_defer(&s, thrower, nullptr);
            guard_scope_close(&s);
        }
    } catch (const std::exception &) {
        caught = true;
    }
    ck_assert(caught);
    trace_expect("run 1, run outer");
    ck_assert_int_eq(guard_run(panic_inside, nullptr, nullptr), 5);
}
END_TEST

START_TEST(a_deadline_and_a_mask_end_with_a_scope_that_an_exception_leaves)
{
    try {
        GUARD_AUTO(s);
        guard_deadline(s, 0);
        guard_mask(s);
        throw 1;
    } catch (int) {
    }
    guard_checkpoint();
    ck_assert_int_eq(guard_masked(), 0);
    ck_assert_int_eq(guard_remaining_ms(-1), -1);
}
END_TEST

int main()
{
    const TTest *const tests[] = {
        an_exception_runs_the_scopes_it_passes_among_the_destructors,
        an_exception_passes_guard_run_and_the_border_is_gone,
        a_panic_after_an_exception_passed_guard_run_reaches_the_border_outside,
        an_exception_passes_guard_run_with_a_panic_held,
        an_exception_of_the_misuse_handler_passes_guard_run,
        an_exception_does_not_lose_a_defer_that_panics_meanwhile,
        a_panic_is_contained_inside_an_exceptions_handler,
        an_exception_out_of_a_deferred_function_runs_the_rest,
        an_exception_runs_a_guard_defer_and_one_out_of_it_goes_on,
        a_deadline_and_a_mask_end_with_a_scope_that_an_exception_leaves,
    };
    return suite_run("cxx", tests, sizeof tests / sizeof *tests);
}
