/* SPDX-License-Identifier: MIT */
#include "ledger_program.h"

#include <curl/curl.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "scratch.h"
#ifdef LEDGER_ON_PQ
#include "server.h"
#endif

enum { ACCOUNTS = 8, SEEDED = 100000 };

static char programs[4096]; /* their folder */

/* ------------------------------------------------------------------------------------------------- folder -- */

static void begin_test(void)
{
    const char *build = getenv("builddir");
    snprintf(programs, sizeof programs, "%s/demo", build != NULL ? build : ".");
    if (access(programs, X_OK) != 0) {
        ck_abort_msg("%s: %s; run by make check, or with builddir set", programs, strerror(errno));
    }
    curl_global_init(CURL_GLOBAL_DEFAULT);
    atexit(curl_global_cleanup);
    scratch_enter_on(SCRATCH_ON_DISK);
#ifdef LEDGER_ON_PQ
    server_run("SET client_min_messages = warning; DROP TABLE IF EXISTS transfer, account");
#endif
}

int ledger_suite_run(const char *name, const TTest *const *tests, size_t count)
{
    return suite_run_after(name, tests, count, begin_test);
}

/* ------------------------------------------------------------------------------------------------ process -- */

static void run_program(const char *name, int chaos, const char *const *more, int out)
{
    char program[sizeof programs + 64];
    snprintf(program, sizeof program, "%s/%s", programs, name);
    const char *words[32] = {program,
                             "--port",
                             "0",
                             "--seed",
                             "8",
                             "--log",
                             "log",
                             "--receipts",
                             "receipts",
                             "--db",
#ifdef LEDGER_ON_PQ
                             "postgresql:///",
#else
                             "sqlite:ledger.db",
#endif
                             chaos ? "--chaos" : "--seed=8"};
    size_t count = 12;
    for (size_t i = 0; more != NULL && more[i] != NULL && count < 31; i++) {
        words[count++] = more[i];
    }
    words[count] = NULL;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGTERM, SIG_DFL);
    signal(SIGINT, SIG_DFL);
    dup2(out, STDOUT_FILENO);
    execv(program, (char **)words);
    _exit(127);
}

/* Its pid, and what it says at first; "" when it ended without a word. */
static pid_t launch(const char *name, int chaos, const char *const *more, char *line, int size)
{
    int ends[2];
    ck_assert_int_eq(pipe2(ends, O_CLOEXEC), 0);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        run_program(name, chaos, more, ends[1]);
    }
    close(ends[1]);
    FILE *out = fdopen(ends[0], "r");
    if (fgets(line, size, out) == NULL) {
        line[0] = '\0';
    }
    fclose(out);
    return pid;
}

static ledger_process start(const char *name, int chaos, const char *const *more)
{
    char line[128];
    ledger_process ledger = {.pid = launch(name, chaos, more, line, sizeof line)};
    const char *address = strstr(line, "http://");
    ck_assert_msg(address != NULL, "it did not say its address but: %s", line);
    snprintf(ledger.address, sizeof ledger.address, "%.*s", (int)strcspn(address, "\n") - 1, address);
    return ledger;
}

int ledger_refuses(const char *const *more)
{
    char line[128];
    ledger_process ledger = {.pid = launch("guard-ledger", 1, more, line, sizeof line)};
    ck_assert_msg(line[0] == '\0', "it serves: %s", line);
    return ledger_wait(&ledger);
}

ledger_process ledger_start(const char *const *more)
{
    return start("guard-ledger", 1, more);
}

ledger_process ledger_start_program(const char *name, const char *const *more)
{
    return start(name, 0, more);
}

int ledger_stop(ledger_process *ledger, int signal)
{
    ck_assert_int_eq(kill(ledger->pid, signal), 0);
    return ledger_wait(ledger);
}

int ledger_wait(ledger_process *ledger)
{
    int status = 0;
    ck_assert_int_eq(waitpid(ledger->pid, &status, 0), ledger->pid);
    ledger->pid = 0;
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

/* -------------------------------------------------------------------------------------------------- asking -- */

static size_t take_body(char *data, size_t size, size_t count, void *arg)
{
    ledger_answer *answer = arg;
    size_t used = strlen(answer->text);
    size_t room = sizeof answer->text - 1 - used;
    size_t taken = size * count < room ? size * count : room;
    memcpy(answer->text + used, data, taken);
    answer->text[used + taken] = '\0';
    return size * count;
}

static size_t take_header(char *data, size_t size, size_t count, void *arg)
{
    ledger_answer *answer = arg;
    static const char wanted[] = "Idempotent-Replay: true";
    static const char retry[] = "Retry-After: ";
    answer->replayed |= size * count >= sizeof wanted - 1 && strncasecmp(data, wanted, sizeof wanted - 1) == 0;
    if (size * count >= sizeof retry && strncasecmp(data, retry, sizeof retry - 1) == 0) {
        answer->retry_s = data[sizeof retry - 1] - '0'; /* of one digit */
    }
    return size * count;
}

static struct curl_slist *add_header(struct curl_slist *list, const char *name, const char *value)
{
    char line[512];
    if (value == NULL) {
        return list;
    }
    snprintf(line, sizeof line, "%s: %s", name, value);
    return curl_slist_append(list, line);
}

static ledger_answer ask(const ledger_process *ledger, const char *method, const char *path, struct curl_slist *headers,
                         const char *body)
{
    ledger_answer answer = {0};
    char url[8192];
    long status = 0;
    snprintf(url, sizeof url, "%s%s", ledger->address, path);
    CURL *curl = curl_easy_init();
    ck_assert_ptr_nonnull(curl);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(curl, CURLOPT_TIMEOUT, 60L);
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, take_header);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, &answer);
    if (body != NULL) {
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
    }
    if (curl_easy_perform(curl) == CURLE_OK) {
        curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    }
    answer.status = (int)status;
    curl_easy_cleanup(curl);
    curl_slist_free_all(headers);
    return answer;
}

ledger_answer ledger_ask(const ledger_process *ledger, const char *method, const char *path, const char *key,
                         const char *chaos, const char *body)
{
    struct curl_slist *headers = add_header(NULL, "Content-Type", "application/json");
    headers = add_header(headers, "Idempotency-Key", key);
    headers = add_header(headers, "X-Chaos", chaos);
    return ask(ledger, method, path, headers, body);
}

ledger_answer ledger_ask_as(const ledger_process *ledger, const char *type, const char *body)
{
    return ask(ledger, "POST", "/transfers", add_header(NULL, "Content-Type", type), body);
}

ledger_answer ledger_transfer(const ledger_process *ledger, int from, int to, int cents, const char *key,
                              const char *chaos)
{
    char body[128];
    snprintf(body, sizeof body, "{\"from\": %d, \"to\": %d, \"amount\": %d}", from, to, cents);
    return ledger_ask(ledger, "POST", "/transfers", key, chaos, body);
}

/* ------------------------------------------------------------------------------------------------- reading -- */

static json_t *parse(const char *text)
{
    json_error_t error;
    json_t *json = json_loads(text, 0, &error);
    ck_assert_msg(json != NULL, "no JSON (%s): %s", error.text, text);
    return json;
}

int64_t ledger_number(const char *text, const char *path)
{
    json_t *json = parse(text);
    char names[128];
    snprintf(names, sizeof names, "%s", path);
    const json_t *at = json;
    char *rest = names;
    for (char *name; (name = strsep(&rest, ".")) != NULL;) {
        at = json_object_get(at, name);
    }
    ck_assert_msg(json_is_integer(at), "no integer %s in %s", path, text);
    int64_t number = json_integer_value(at);
    json_decref(json);
    return number;
}

void ledger_text(const char *text, const char *key, char *to, size_t size)
{
    json_t *json = parse(text);
    const char *value = json_string_value(json_object_get(json, key));
    ck_assert_msg(value != NULL, "no text %s in %s", key, text);
    snprintf(to, size, "%s", value);
    json_decref(json);
}

static json_t *get(const ledger_process *ledger, const char *path)
{
    ledger_answer answer = ledger_ask(ledger, "GET", path, NULL, NULL, NULL);
    ck_assert_msg(answer.status == 200, "GET %s: %d %s", path, answer.status, answer.text);
    return parse(answer.text);
}

static int64_t member(const json_t *row, const char *key)
{
    return json_integer_value(json_object_get(row, key));
}

static void read_balances(const ledger_process *ledger, int64_t balances[ACCOUNTS + 1])
{
    json_t *list = get(ledger, "/accounts");
    ck_assert_uint_eq(json_array_size(list), ACCOUNTS);
    size_t index;
    const json_t *row;
    json_array_foreach(list, index, row)
    {
        int64_t id = member(row, "id");
        ck_assert_int_ge(id, 1);
        ck_assert_int_le(id, ACCOUNTS);
        balances[id] = member(row, "balance");
        ck_assert_int_ge(balances[id], 0);
    }
    json_decref(list);
}

int64_t ledger_balance(const ledger_process *ledger, int account)
{
    int64_t balances[ACCOUNTS + 1];
    read_balances(ledger, balances);
    return balances[account];
}

int64_t ledger_total(const ledger_process *ledger)
{
    int64_t balances[ACCOUNTS + 1];
    int64_t total = 0;
    read_balances(ledger, balances);
    for (int i = 1; i <= ACCOUNTS; i++) {
        total += balances[i];
    }
    return total;
}

int64_t ledger_metric(const ledger_process *ledger, const char *name)
{
    ledger_answer answer = ledger_ask(ledger, "GET", "/metrics", NULL, NULL, NULL);
    ck_assert_int_eq(answer.status, 200);
    size_t size = strlen(name);
    for (const char *line = answer.text; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, name, size) == 0 && line[size] == ' ') {
            return strtoll(line + size, NULL, 10);
        }
    }
    ck_abort_msg("no %s in: %s", name, answer.text);
}

void ledger_wait_metric(const ledger_process *ledger, const char *name, int64_t value)
{
    int64_t found = -1;
    for (int tries = 0; tries < 15000; tries++) {
        found = ledger_metric(ledger, name);
        if (found == value) {
            return;
        }
        pause_ms(2);
    }
    ck_abort_msg("%s is %" PRId64 ", not %" PRId64, name, found, value);
}

/* --------------------------------------------------------------------------------------------- soundness -- */

static void expect_receipt(const json_t *transfer)
{
    char name[64];
    char text[512] = "";
    snprintf(name, sizeof name, "receipts/%" PRId64 ".json", member(transfer, "id"));
    FILE *file = fopen(name, "r");
    ck_assert_msg(file != NULL, "%s: %s", name, strerror(errno));
    ck_assert_ptr_nonnull(fgets(text, sizeof text, file));
    fclose(file);
    static const char *const keys[] = {"from", "to", "amount"};
    ck_assert_int_eq(ledger_number(text, "transfer"), member(transfer, "id"));
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        ck_assert_msg(ledger_number(text, keys[i]) == member(transfer, keys[i]), "%s: %s", name, text);
    }
}

int64_t ledger_expect_sound(const ledger_process *ledger)
{
    int64_t balances[ACCOUNTS + 1];
    int64_t explained[ACCOUNTS + 1] = {0};
    read_balances(ledger, balances);
    size_t count = 0;
    size_t found;
    int64_t before = INT64_MAX;
    do {
        char path[64];
        snprintf(path, sizeof path, "/transfers?limit=100&before=%" PRId64, before);
        json_t *list = get(ledger, path);
        size_t index;
        const json_t *row;
        found = json_array_size(list);
        json_array_foreach(list, index, row)
        {
            explained[member(row, "from")] -= member(row, "amount");
            explained[member(row, "to")] += member(row, "amount");
            expect_receipt(row);
            before = member(row, "id");
        }
        count += found;
        json_decref(list);
    } while (found > 0);
    for (int i = 1; i <= ACCOUNTS; i++) {
        ck_assert_msg(balances[i] == SEEDED + explained[i], "account %d has %" PRId64 ", the journal says %" PRId64, i,
                      balances[i], SEEDED + explained[i]);
    }
    ck_assert_uint_eq(ledger_entries("receipts"), count);
    return (int64_t)count;
}

size_t ledger_entries(const char *name)
{
    DIR *entries = opendir(name);
    ck_assert_msg(entries != NULL, "%s: %s", name, strerror(errno));
    size_t count = 0;
    for (const struct dirent *entry; (entry = readdir(entries)) != NULL;) {
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    }
    closedir(entries);
    return count;
}

int ledger_log_has(const char *text)
{
    FILE *file = fopen("log", "r");
    ck_assert_ptr_nonnull(file);
    char line[8192];
    int found = 0;
    while (!found && fgets(line, sizeof line, file) != NULL) {
        found = strstr(line, text) != NULL;
    }
    fclose(file);
    return found;
}

int ledger_log_gets(const char *text)
{
    for (int i = 0; i < 3000 && !ledger_log_has(text); i++) {
        pause_ms(10);
    }
    return ledger_log_has(text);
}
