/* SPDX-License-Identifier: MIT */
/* SQLiteCpp: a Transaction or Savepoint object for each turn, the insert prepared once. */
#include <SQLiteCpp/SQLiteCpp.h>
#include <SQLiteCpp/Savepoint.h>
#include <cstdint>
#include <exception>
#include <string>

#include "bench.h"

namespace
{

void insert_one(SQLite::Statement &insert, std::uint64_t i)
{
    insert.bind(1, static_cast<std::int64_t>(i));
    insert.exec();
    insert.reset();
}

void transactions(SQLite::Database &db, SQLite::Statement &insert, std::uint64_t count)
{
    for (std::uint64_t i = 1; i <= count; i++) {
        SQLite::Transaction tx(db, SQLite::TransactionBehavior::IMMEDIATE);
        insert_one(insert, i);
        tx.commit();
    }
}

void savepoints(SQLite::Database &db, SQLite::Statement &insert, std::uint64_t count)
{
    for (std::uint64_t i = 1; i <= count; i++) {
        SQLite::Savepoint one(db, "one");
        insert_one(insert, i);
        one.release();
    }
}

std::uint64_t run(const std::string &path, std::uint64_t count, bool is_nested)
{
    SQLite::Database db(path, SQLite::OPEN_READWRITE | SQLite::OPEN_CREATE, 5000);
    db.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;"
            "CREATE TABLE entry (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)");
    SQLite::Statement insert(db, "INSERT INTO entry (n) VALUES (?1)");
    if (is_nested) {
        SQLite::Transaction outer(db, SQLite::TransactionBehavior::IMMEDIATE);
        bench_begin();
        savepoints(db, insert, count);
        bench_end();
        outer.commit();
    } else {
        bench_begin();
        transactions(db, insert, count);
        bench_end();
    }
    return static_cast<std::uint64_t>(db.execAndGet("SELECT sum(n) FROM entry").getInt64());
}

std::uint64_t checked(const std::string &path, std::uint64_t count, bool is_nested)
{
    try {
        return run(path, count, is_nested);
    } catch (const std::exception &error) {
        bench_fail("%s", error.what());
    }
}

std::uint64_t tx_memory(std::uint64_t count)
{
    return checked(":memory:", count, false);
}

std::uint64_t tx_disk(std::uint64_t count)
{
    char folder[256];
    bench_folder_open(folder, sizeof folder);
    std::uint64_t check = checked(std::string(folder) + "/entries.db", count, false);
    bench_folder_close(folder);
    return check;
}

std::uint64_t savepoint(std::uint64_t count)
{
    return checked(":memory:", count, true);
}

const bench_work works[] = {
    {"sqlite-tx-memory", tx_memory}, {"sqlite-tx-disk", tx_disk}, {"sqlite-savepoint", savepoint}, {nullptr, nullptr}};

} // namespace

int main(int argc, char **argv)
{
    return bench_serve(argc, argv, works);
}
