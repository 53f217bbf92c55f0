/* The input is a list of installs, two bytes each: a client, and how long ago it
 * spoke. A model that is a plain array must agree with the table. */
#include <stdlib.h>

#include "fuzz.h"

#define ROWS 16
#define CLIENTS 64

static struct ek_address client_of(uint8_t number)
{
    struct ek_address client = {.port = number, .transport = EK_TRANSPORT_UDP};
    return client;
}

static void install(struct ek_region_header *region, uint32_t *session_of, const uint8_t *step,
                    uint32_t session)
{
    uint8_t number = step[0] % CLIENTS;
    struct ek_flow_row flow = {
        .client_port = number,
        .transport = EK_TRANSPORT_UDP,
        .slot = session,
        .last_seen_ns = step[1],
    };
    struct ek_flow_row found;
    struct ek_address client = client_of(number);
    int known = ek_flow_lookup(region, &client, &found) == EK_READ_OK;
    REQUIRE(!known || found.slot == session_of[number]);
    enum ek_install installed = ek_flow_install(region, &flow);
    REQUIRE((installed == EK_INSTALL_MOVED) == known);
    session_of[number] = session;
    REQUIRE(ek_flow_lookup(region, &client, &found) == EK_READ_OK && found.slot == session);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t boot_id[16] = "a fixed boot id";
    size_t bytes = sizeof(struct ek_region_header) + ROWS * sizeof(struct ek_flow_row);
    struct ek_region_header *region = aligned_alloc(EK_CACHE_LINE_BYTES, bytes);
    REQUIRE(region);
    memset(region, 0, bytes);
    ek_region_init(region, EK_REGION_FLOWS, ROWS, sizeof(struct ek_flow_row), boot_id, 0);
    REQUIRE(ek_flow_check(region) == 0);

    uint32_t session_of[CLIENTS] = {0};
    for (size_t i = 0; i + 2 <= size; i += 2)
        install(region, session_of, data + i, (uint32_t)i + 1);
    uint32_t live = 0;
    for (uint8_t number = 0; number < CLIENTS; number++) {
        struct ek_address client = client_of(number);
        struct ek_flow_row found;
        if (ek_flow_lookup(region, &client, &found) == EK_READ_OK) {
            REQUIRE(found.slot == session_of[number]);
            live++;
        }
    }
    REQUIRE(live <= ROWS && live <= size / 2);
    free(region);
    return 0;
}
