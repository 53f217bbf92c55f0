/* Readers against a busy writer that is killed at random points.
 *
 *   torture MODE KILLS SEED      MODE: sessions, status, flows or routes
 *
 * Processes share one region. A writer writes as fast as it can, each write a
 * pattern that tells a whole row from a torn one. Two readers read and check as
 * fast as they can. The parent kills the writer with SIGKILL after a random
 * time, mends the rows as a successor does, checks every row itself, and starts
 * the next writer. Prints what was seen; exits 1 with a reason at any fault. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kernel.h"

#define ROWS 16
#define READERS 2
#define ROUTE_NODE 7

static struct ek_region_header *region;

struct tally {
    uint64_t writes;
    uint64_t reads;
    uint64_t busy;
    uint64_t torn;
    uint64_t odd;
};
static struct tally *tally;

static uint64_t random_state;

static uint32_t next_random(uint32_t below)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % below;
}

static int all_bytes(const void *memory, size_t bytes, uint8_t value)
{
    const uint8_t *at = memory;
    for (size_t i = 0; i < bytes; i++)
        if (at[i] != value)
            return 0;
    return 1;
}

/* --- sessions: every byte of the row is the generation's low byte, but the
 * generation, the length of the options, and what set_state sets */

static struct ek_session_row *session_row(uint32_t slot)
{
    return (struct ek_session_row *)(void *)(region + 1) + slot;
}

static void write_session(uint32_t slot)
{
    static uint8_t options[EK_OPTIONS_BYTES];
    struct ek_session_row *row = session_row(slot);
    uint32_t choice = next_random(8);
    uint64_t ident = ek_session_ident(row);
    uint32_t generation = (uint32_t)ident & EK_GENERATION_MASK;
    if (choice == 0) {
        ek_session_free(row);
        return;
    }
    if (choice <= 3 && ident >> 56 != EK_SESSION_FREE) {
        uint32_t reason = 1 + next_random(200);
        ek_session_set_state(row, EK_SESSION_ENDED, reason, (uint64_t)generation << 8 | reason);
        return;
    }
    generation = generation % EK_GENERATION_MASK + 1;
    struct ek_session_config config;
    memset(&config, (uint8_t)generation, sizeof config);
    config.generation = generation;
    config.closed_ns = 0;
    config.end_reason = 0;
    config.options_bytes = choice == 7 ? EK_OPTIONS_BYTES : next_random(300);
    memset(options, (uint8_t)generation, config.options_bytes);
    ek_session_publish(row, (uint64_t)EK_SESSION_OFFERED << 56 | generation, &config, options);
}

static enum ek_read read_session(uint32_t slot, int *whole)
{
    static uint8_t options[EK_OPTIONS_BYTES];
    struct ek_session_config config;
    uint64_t ident;
    enum ek_read verdict = ek_session_read(session_row(slot), &ident, &config, options);
    if (verdict != EK_READ_OK)
        return verdict;
    uint32_t generation = (uint32_t)ident & EK_GENERATION_MASK;
    uint8_t fill = (uint8_t)generation;
    int ended = ident >> 56 == EK_SESSION_ENDED;
    *whole = config.generation == generation && all_bytes(config.call_id, 40, fill) &&
             all_bytes(config.remote_fingerprint, 64, fill) &&
             all_bytes(&config.mid, 64, fill) && all_bytes(config.remote_ufrag, 257, fill) &&
             all_bytes(options, config.options_bytes, fill) &&
             (ended ? config.closed_ns == ((uint64_t)generation << 8 | config.end_reason)
                    : config.closed_ns == 0 && config.end_reason == 0);
    return verdict;
}

static int mend_session(uint32_t slot)
{
    return ek_session_recover(session_row(slot));
}

/* --- status: every byte but the state is the same */

static struct ek_status_row *status_row(uint32_t slot)
{
    return (struct ek_status_row *)(void *)(region + 1) + slot;
}

static void write_status(uint32_t slot)
{
    struct ek_status status;
    memset(&status, (int)next_random(256), sizeof status);
    status.state = 1;
    ek_status_publish(status_row(slot), &status);
}

static enum ek_read read_status(uint32_t slot, int *whole)
{
    struct ek_status status;
    enum ek_read verdict = ek_status_read(status_row(slot), &status);
    status.state = status.end_reason;
    *whole = all_bytes(&status, sizeof status, status.end_reason);
    return verdict;
}

/* The next call in the slot clears the row. */
static int mend_status(uint32_t slot)
{
    int odd = (int)(status_row(slot)->sequence & 1);
    if (odd)
        write_status(slot);
    return odd;
}

/* --- flows: two buckets and many more clients, so rows are fought over */

static void write_flow(uint32_t slot)
{
    uint32_t value = slot << 8 | next_random(200);
    struct ek_flow_row flow;
    memset(&flow, (uint8_t)value, sizeof flow);
    flow.client_port = (uint16_t)(1 + next_random(64));
    flow.transport = EK_TRANSPORT_UDP;
    flow.last_seen_ns = 1 + next_random(1000);
    memset(flow.client_ip, 0, sizeof flow.client_ip);
    ek_flow_install(region, &flow);
}

static enum ek_read read_flow(uint32_t slot, int *whole)
{
    struct ek_flow_row flow;
    enum ek_read verdict = ek_flow_read(region, slot, &flow);
    if (verdict == EK_READ_OK)
        *whole = all_bytes(flow.local_ip, 16, flow.worker) &&
                 all_bytes(&flow.slot, 4, flow.worker) &&
                 all_bytes(&flow.generation, 4, flow.worker) &&
                 all_bytes(&flow.node_id, 2, flow.worker) &&
                 all_bytes(flow.client_ip, 16, 0) && flow.client_port >= 1 &&
                 flow.client_port <= 64;
    return verdict;
}

static int mend_flow(uint32_t slot)
{
    return slot == 0 ? (int)ek_flow_recover(region) : 0;
}

/* --- routes: set and cleared; port, ip and worker belong together */

static void write_route(uint32_t slot)
{
    uint8_t ip[16];
    memset(ip, (int)slot, sizeof ip);
    if (next_random(4) == 0)
        ek_route_clear(region, ROUTE_NODE, (uint8_t)slot);
    else
        ek_route_set(region, ROUTE_NODE, (uint8_t)slot, ip, (uint16_t)(slot | slot << 8));
}

static enum ek_read read_route(uint32_t slot, int *whole)
{
    struct ek_route_row route;
    if (ek_route_find(region, ROUTE_NODE, (uint8_t)slot, &route) < 0)
        return EK_READ_EMPTY;
    *whole = all_bytes(route.ip, 16, (uint8_t)slot) && route.port == (slot | slot << 8);
    return EK_READ_OK;
}

/* As a new control plane does: it sets all its routes anew. */
static int mend_route(uint32_t slot)
{
    const struct ek_route_row *row = (const struct ek_route_row *)(const void *)(region + 1);
    int odd = slot == 0 ? 0 : (int)(row[slot].sequence & 1);
    uint8_t ip[16];
    memset(ip, (int)slot, sizeof ip);
    ek_route_set(region, ROUTE_NODE, (uint8_t)slot, ip, (uint16_t)(slot | slot << 8));
    return odd;
}

struct mode {
    const char *name;
    uint32_t kind;
    uint32_t row_bytes;
    void (*write)(uint32_t slot);
    enum ek_read (*read)(uint32_t slot, int *whole);
    int (*mend)(uint32_t slot);
};

static const struct mode modes[] = {
    {"sessions", EK_REGION_SESSIONS, sizeof(struct ek_session_row), write_session, read_session,
     mend_session},
    {"status", EK_REGION_STATUS, sizeof(struct ek_status_row), write_status, read_status,
     mend_status},
    {"flows", EK_REGION_FLOWS, sizeof(struct ek_flow_row), write_flow, read_flow, mend_flow},
    {"routes", EK_REGION_ROUTES, sizeof(struct ek_route_row), write_route, read_route,
     mend_route},
};

static pid_t start(void)
{
    pid_t pid = fork();
    if (pid < 0) {
        perror("fork");
        exit(1);
    }
    if (pid == 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    return pid;
}

static pid_t start_writer(const struct mode *mode, uint64_t seed)
{
    pid_t pid = start();
    if (pid)
        return pid;
    random_state = seed;
    for (;;) {
        mode->write(next_random(ROWS));
        tally[0].writes++;
    }
}

static pid_t start_reader(const struct mode *mode, struct tally *mine, uint64_t seed)
{
    pid_t pid = start();
    if (pid)
        return pid;
    random_state = seed;
    for (;;) {
        int whole = 1;
        enum ek_read verdict = mode->read(next_random(ROWS), &whole);
        mine->busy += verdict == EK_READ_BUSY;
        mine->torn += verdict == EK_READ_OK && !whole;
        mine->reads += verdict == EK_READ_OK;
    }
}

static void stop(pid_t pid)
{
    kill(pid, SIGKILL);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        continue;
}

/* What a successor finds after it has mended: nothing torn, nothing stuck. */
static int check_rows(const struct mode *mode)
{
    for (uint32_t slot = 0; slot < ROWS; slot++)
        tally[0].odd += (uint64_t)mode->mend(slot);
    for (uint32_t slot = 0; slot < ROWS; slot++) {
        int whole = 1;
        enum ek_read verdict = mode->read(slot, &whole);
        if (verdict == EK_READ_BUSY || (verdict == EK_READ_OK && !whole)) {
            fprintf(stderr, "row %u after recovery: %s\n", slot, whole ? "stuck" : "torn");
            return 0;
        }
    }
    return 1;
}

int main(int argc, char **argv)
{
    const struct mode *mode = NULL;
    for (size_t i = 0; argc == 4 && i < sizeof modes / sizeof *modes; i++)
        if (strcmp(modes[i].name, argv[1]) == 0)
            mode = modes + i;
    if (!mode)
        return 2;
    int kills = atoi(argv[2]);
    uint64_t seed = strtoull(argv[3], NULL, 10);
    size_t bytes = sizeof *region + (size_t)ROWS * mode->row_bytes;
    region = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    tally = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    static const uint8_t boot_id[16] = "torture";
    ek_region_init(region, mode->kind, ROWS, mode->row_bytes, boot_id, 0);

    pid_t readers[READERS];
    for (int i = 0; i < READERS; i++)
        readers[i] = start_reader(mode, tally + 1 + i, seed + (uint64_t)i);
    int good = 1;
    random_state = seed;
    for (int i = 0; i < kills && good; i++) {
        pid_t writer = start_writer(mode, seed + 100 + (uint64_t)i);
        usleep(200 + next_random(8000));
        stop(writer);
        good = check_rows(mode);
    }
    struct tally sum = tally[0];
    for (int i = 0; i < READERS; i++) {
        stop(readers[i]);
        sum.reads += tally[1 + i].reads;
        sum.busy += tally[1 + i].busy;
        sum.torn += tally[1 + i].torn;
        good = good && tally[1 + i].reads > 0;
    }
    printf("{\"writes\": %lu, \"reads\": %lu, \"busy\": %lu, \"torn\": %lu, \"odd\": %lu}\n",
           sum.writes, sum.reads, sum.busy, sum.torn, sum.odd);
    return good && sum.torn == 0 ? 0 : 1;
}
