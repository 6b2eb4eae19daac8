/* SPDX-License-Identifier: MIT */
/* RAII and throw. */
#include <cstdint>

#include "bench.h"

#define NOINLINE __attribute__((noinline))

namespace
{

class adder
{
  public:
    explicit adder(std::uint64_t *to) : sum(to)
    {
    }
    ~adder()
    {
        bench_add(sum);
    }
    adder(const adder &) = delete;
    adder &operator=(const adder &) = delete;

  private:
    std::uint64_t *sum;
};

struct boom {
    int code;
};

NOINLINE void scope_defer_turn(std::uint64_t *sum)
{
    adder one(sum);
}

std::uint64_t scope_defer(std::uint64_t count)
{
    std::uint64_t sum = 0;
    for (std::uint64_t i = 0; i < count; i++) {
        scope_defer_turn(&sum);
    }
    return sum;
}

NOINLINE void scope_ten_turn(std::uint64_t *sum)
{
    adder a(sum), b(sum), c(sum), d(sum), e(sum), f(sum), g(sum), h(sum), i(sum), j(sum);
}

std::uint64_t scope_ten(std::uint64_t count)
{
    std::uint64_t sum = 0;
    for (std::uint64_t i = 0; i < count; i++) {
        scope_ten_turn(&sum);
    }
    return sum;
}

NOINLINE void panic_1_body(std::uint64_t *sum)
{
    adder one(sum);
    throw boom{7};
}

std::uint64_t panic_1(std::uint64_t count)
{
    std::uint64_t sum = 0;
    for (std::uint64_t i = 0; i < count; i++) {
        try {
            panic_1_body(&sum);
        } catch (const boom &error) {
            sum += static_cast<std::uint64_t>(error.code);
        }
    }
    return sum;
}

NOINLINE void panic_10x10_frame(std::uint64_t *sum, int depth)
{
    adder a(sum), b(sum), c(sum), d(sum), e(sum), f(sum), g(sum), h(sum), i(sum), j(sum);
    if (depth == 1) {
        throw boom{7};
    }
    panic_10x10_frame(sum, depth - 1);
}

std::uint64_t panic_10x10(std::uint64_t count)
{
    std::uint64_t sum = 0;
    for (std::uint64_t i = 0; i < count; i++) {
        try {
            panic_10x10_frame(&sum, 10);
        } catch (const boom &error) {
            sum += static_cast<std::uint64_t>(error.code);
        }
    }
    return sum;
}

const bench_work works[] = {
    {"scope-defer", scope_defer}, {"scope-ten", scope_ten}, {"panic-1", panic_1},
    {"panic-10x10", panic_10x10}, {nullptr, nullptr},
};

} // namespace

int main(int argc, char **argv)
{
    return bench_serve(argc, argv, works);
}
