/* SPDX-License-Identifier: MIT */
#include "sqlite_target.h"

#include <stdio.h>
#include <string.h>

#include <guard/guard_file.h>

#define SHOWN 60 /* bytes of a value in a reason */

void sqlite_row_prepare(guard_scope *scope, load_target *target, const load_plan *plan)
{
    GUARD_AUTO(s);
    target->parameter_count = 0;
    target->parameters = guard_memory_allocate_array(scope, plan->field_count, sizeof *target->parameters, NULL);
    const char *names = "";
    const char *values = "";
    for (size_t field = 0; field < plan->field_count; field++) {
        if (plan->columns[field] == PLAN_SKIP) {
            continue;
        }
        const load_column *column = &target->columns[plan->columns[field]];
        sqlite_parameter *parameter = &target->parameters[target->parameter_count++];
        *parameter = (sqlite_parameter){field, sqlite_value_type(column->type), column->name};
        const char *comma = target->parameter_count > 1 ? ", " : "";
        names = guard_memory_format(s, NULL, "%s%s%s", names, comma, sqlite_identifier(s, column->name));
        values = guard_memory_format(s, NULL, "%s%s?", values, comma);
    }
    /* OR ABORT takes back this row only, whatever ON CONFLICT clause the table's constraints have. */
    target->insert = guard_sqlite_prepare(scope, target->db,
                                          guard_memory_format(s, NULL, "INSERT OR ABORT INTO %s (%s) VALUES (%s)",
                                                              sqlite_identifier(s, target->table), names, values));
    target->foreign_keys = sqlite_foreign_keys_open(scope, target);
}

/* ------------------------------------------------------------------------------------------------ binding -- */

int sqlite_row_is_null(const load_target *target, const load_field *field)
{
    const char *null_text = target->options->null_text;
    return *null_text == '\0' ? field->text == NULL : field->text != NULL && strcmp(field->text, null_text) == 0;
}

GUARD_NORETURN static void panic_database(load_target *target)
{
    guard_panic_in(GUARD_SQLITE, sqlite3_extended_errcode(target->raw), "%s", sqlite3_errmsg(target->raw));
}

int sqlite_row_bind(load_target *target, guard_sqlite_stmt *statement, int number, const sqlite_parameter *parameter,
                    const load_row *row)
{
    sqlite3_stmt *raw = guard_sqlite_stmt_raw(statement);
    load_field field = row->fields[parameter->field];
    int result;
    if (sqlite_row_is_null(target, &field)) {
        result = sqlite3_bind_null(raw, number);
    } else {
        if (field.text == NULL) {
            field.text = "";
        }
        if (!sqlite_value_bind(raw, number, parameter->type, &field, &result)) {
            return 0;
        }
    }
    if (result != SQLITE_OK) {
        panic_database(target);
    }
    return 1;
}

/* Not more of a value than a person needs, and whole characters of it. */
static int shown_size(const load_field *field)
{
    size_t size = field->size;
    if (size > SHOWN) {
        size = SHOWN;
        while (size > 0 && ((unsigned char)field->text[size] & 0xC0) == 0x80) {
            size--;
        }
    }
    return (int)size;
}

static int bind_row(load_target *target, const load_row *row, sqlite_verdict *verdict)
{
    for (size_t i = 0; i < target->parameter_count; i++) {
        const sqlite_parameter *parameter = &target->parameters[i];
        if (!sqlite_row_bind(target, target->insert, (int)i + 1, parameter, row)) {
            const load_field *field = &row->fields[parameter->field];
            int shown = field->text == NULL ? 0 : shown_size(field);
            verdict->code = "type";
            snprintf(verdict->reason, sizeof verdict->reason, "column %s: \"%.*s\"%s is not %s", parameter->column,
                     shown, field->text == NULL ? "" : field->text, (size_t)shown < field->size ? "..." : "",
                     sqlite_value_noun(parameter->type));
            return 0;
        }
    }
    return 1;
}

/* ---------------------------------------------------------------------------------------------- inserting -- */

static const char *constraint_code(int result)
{
    switch (result) {
    case SQLITE_CONSTRAINT_NOTNULL:
        return "not_null";
    case SQLITE_CONSTRAINT_CHECK:
        return "check";
    case SQLITE_CONSTRAINT_FOREIGNKEY:
        return "foreign_key";
    case SQLITE_CONSTRAINT_UNIQUE:
    case SQLITE_CONSTRAINT_PRIMARYKEY:
    case SQLITE_CONSTRAINT_ROWID:
        return "unique";
    case SQLITE_CONSTRAINT_DATATYPE:
    case SQLITE_MISMATCH: /* not an integer for the rowid */
        return "type";
    case SQLITE_CONSTRAINT_TRIGGER:
        return "trigger";
    case SQLITE_TOOBIG:
        return "too_long";
    default:
        return (result & 0xFF) == SQLITE_CONSTRAINT ? "constraint" : NULL;
    }
}

/* After a step that failed: 0 with the verdict if it was the row's fault, else a panic. */
static int judge(load_target *target, const load_row *row, sqlite_verdict *verdict)
{
    int result = sqlite3_extended_errcode(target->raw);
    verdict->code = constraint_code(result);
    if (verdict->code == NULL) {
        panic_database(target);
    }
    snprintf(verdict->reason, sizeof verdict->reason, "%s", sqlite3_errmsg(target->raw));
    sqlite3_reset(guard_sqlite_stmt_raw(target->insert));
    if (result == SQLITE_CONSTRAINT_FOREIGNKEY) {
        sqlite_foreign_keys_explain(target->foreign_keys, row, verdict->reason, sizeof verdict->reason);
    }
    return 0;
}

/* The codes of what the reader finds, in the order of row_fault. */
static const char *const fault_codes[] = {NULL, "malformed", "too_long", "nul", "encoding"};

int sqlite_row_insert(load_target *target, const load_plan *plan, const load_row *row, sqlite_verdict *verdict)
{
    if (row->fault != ROW_SOUND) {
        verdict->code = fault_codes[row->fault];
        snprintf(verdict->reason, sizeof verdict->reason, "%s", row->reason);
        return 0;
    }
    if (row->count != plan->field_count) {
        verdict->code = "columns";
        snprintf(verdict->reason, sizeof verdict->reason, "%zu field%s, not %zu", row->count,
                 row->count == 1 ? "" : "s", plan->field_count);
        return 0;
    }
    if (!bind_row(target, row, verdict)) {
        return 0;
    }
    sqlite3_stmt *insert = guard_sqlite_stmt_raw(target->insert);
    if (sqlite3_step(insert) != SQLITE_DONE) {
        return judge(target, row, verdict);
    }
    sqlite3_reset(insert);
    if (sqlite3_changes(target->raw) == 0) {
        verdict->code = "trigger";
        snprintf(verdict->reason, sizeof verdict->reason, "a trigger of the table ignored the row");
        return 0;
    }
    return 1;
}
