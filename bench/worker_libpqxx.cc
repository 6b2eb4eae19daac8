/* SPDX-License-Identifier: MIT */
/* libpqxx: work, and robusttransaction, which also finds out what became of a commit whose answer is lost. */
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <pqxx/pqxx>

#include "bench.h"

namespace
{

template <typename transaction>
void transactions(pqxx::connection &connection, std::uint64_t first, std::uint64_t count)
{
    for (std::uint64_t i = 0; i < count; i++) {
        transaction tx(connection);
        tx.exec_prepared("insert", first + i);
        tx.commit();
    }
}

template <typename transaction> std::uint64_t run(std::uint64_t count)
{
    pqxx::connection connection;
    bench_place(connection.backendpid());
    {
        pqxx::work setup(connection);
        setup.exec("SET client_min_messages = warning; DROP TABLE IF EXISTS entry_libpqxx;"
                   "CREATE TABLE entry_libpqxx (n bigint NOT NULL)");
        setup.commit();
    }
    connection.prepare("insert", "INSERT INTO entry_libpqxx VALUES ($1)");
    transactions<transaction>(connection, 0, 1); // robusttransaction's first one on a connection makes its table
    bench_begin();
    transactions<transaction>(connection, 1, count);
    bench_end();
    pqxx::work reader(connection);
    return reader.exec1("SELECT sum(n)::bigint FROM entry_libpqxx")[0].template as<std::uint64_t>();
}

template <typename transaction> std::uint64_t checked(std::uint64_t count)
{
    if (std::getenv("PGHOST") == nullptr) {
        bench_skip("no server: PGHOST is not set");
    }
    try {
        return run<transaction>(count);
    } catch (const std::exception &error) {
        bench_fail("%s", error.what());
    }
}

const bench_work works[] = {
    {"pq-tx", checked<pqxx::work>}, {"pq-tx-marker", checked<pqxx::robusttransaction<>>}, {nullptr, nullptr}};

} // namespace

int main(int argc, char **argv)
{
    return bench_serve(argc, argv, works);
}
