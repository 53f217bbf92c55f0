/* One relay's flows: client address → session.
 *
 * Buckets of EK_FLOW_WAYS rows, one cache line each. SipHash under the boot id
 * says in which bucket and from which way on to look, so nobody outside can aim
 * at a bucket; the full address is compared before a row is believed. A full
 * bucket gives up the row that was silent longest: a talking client refreshes
 * its row every 20 ms.
 *
 * A row with sequence 0 was never written and ends a walk; one that recovery
 * freed has a sequence and does not.
 *
 * The relay of that index is the only writer and reads its own rows plainly.
 * Other processes read through the sequence. last_seen_ns stands outside it. */
#include <errno.h>

#include "flow_table.h"
#include "seqlock.h"

#define WAY_SHIFT 61 /* the hash's top bits; the low ones choose the bucket */
_Static_assert(1u << (64 - WAY_SHIFT) == EK_FLOW_WAYS, "way from hash");

/* ip, port and transport: the bytes of ek_address that name a client. */
#define CLIENT_NAME_BYTES 19

static struct ek_flow_row *flow_rows(const struct ek_region_header *region)
{
    return (struct ek_flow_row *)(uintptr_t)(region + 1);
}

static struct ek_flow_row *bucket_of(const struct ek_region_header *region, uint64_t hash)
{
    uint32_t buckets = region->row_count / EK_FLOW_WAYS;
    return flow_rows(region) + (hash & (buckets - 1)) * EK_FLOW_WAYS;
}

uint64_t ek_flow_hash(const struct ek_region_header *region, const struct ek_address *client)
{
    return ek_siphash24(region->boot_id, client->ip, CLIENT_NAME_BYTES);
}

void ek_flow_prefetch(const struct ek_region_header *region, uint64_t hash)
{
    __builtin_prefetch(bucket_of(region, hash) + (hash >> WAY_SHIFT), 1);
}

static int is_client(const struct ek_flow_row *row, const struct ek_address *client)
{
    return row->client_port == client->port && row->transport == client->transport &&
           memcmp(row->client_ip, client->ip, sizeof client->ip) == 0;
}

struct ek_flow_row *ek_flow_find(const struct ek_region_header *region,
                                 const struct ek_address *client, uint64_t hash)
{
    struct ek_flow_row *bucket = bucket_of(region, hash);
    uint32_t way = (uint32_t)(hash >> WAY_SHIFT);
    for (uint32_t i = 0; i < EK_FLOW_WAYS; i++) {
        struct ek_flow_row *row = bucket + ((way + i) & (EK_FLOW_WAYS - 1));
        if (is_client(row, client))
            return row;
        if (row->sequence == 0)
            break;
    }
    return NULL;
}

static void store_flow(struct ek_flow_row *row, const struct ek_flow_row *flow)
{
    uint32_t name = (uint32_t)flow->client_port | (uint32_t)flow->transport << 16 |
                    (uint32_t)flow->worker << 24;
    uint32_t odd = ek_seq_write_begin(&row->sequence);
    __atomic_store_n((uint32_t *)(void *)row + 1, name, __ATOMIC_RELAXED);
    ek_words_store(row->client_ip, flow->client_ip,
                   sizeof *row - offsetof(struct ek_flow_row, client_ip));
    ek_seq_write_end(&row->sequence, odd);
}

static enum ek_read read_flow(const struct ek_flow_row *row, struct ek_flow_row *flow)
{
    for (int i = 0; i < EK_SEQLOCK_TRIES; i++) {
        uint32_t begin = ek_seq_read_begin(&row->sequence);
        if (begin & 1) {
            ek_seq_pause();
            continue;
        }
        uint32_t name = __atomic_load_n((const uint32_t *)(const void *)row + 1,
                                        __ATOMIC_RELAXED);
        ek_words_load(flow->client_ip, row->client_ip,
                      sizeof *row - offsetof(struct ek_flow_row, client_ip));
        if (!ek_seq_read_valid(&row->sequence, begin))
            continue;
        flow->sequence = begin;
        flow->client_port = (uint16_t)name;
        flow->transport = (uint8_t)(name >> 16);
        flow->worker = (uint8_t)(name >> 24);
        return flow->transport == EK_TRANSPORT_NONE ? EK_READ_EMPTY : EK_READ_OK;
    }
    return EK_READ_BUSY;
}

/* 0, or -EINVAL: the row count is no power of two, or holds no bucket. */
int ek_flow_check(const struct ek_region_header *region)
{
    uint32_t rows = region->row_count;
    return rows >= EK_FLOW_WAYS && (rows & (rows - 1)) == 0 ? 0 : -EINVAL;
}

/* For the new writer: frees rows that a dead one left half-written. Their
 * clients come back with the next STUN check. Returns how many. */
uint32_t ek_flow_recover(struct ek_region_header *region)
{
    static const struct ek_flow_row none = {.transport = EK_TRANSPORT_NONE};
    uint32_t recovered = 0;
    for (uint32_t i = 0; i < region->row_count; i++) {
        struct ek_flow_row *row = flow_rows(region) + i;
        if (__atomic_load_n(&row->sequence, __ATOMIC_RELAXED) & 1) {
            store_flow(row, &none);
            recovered++;
        }
    }
    return recovered;
}

enum ek_install ek_flow_install(struct ek_region_header *region, const struct ek_flow_row *flow)
{
    struct ek_address client = {.port = flow->client_port, .transport = flow->transport};
    memcpy(client.ip, flow->client_ip, sizeof client.ip);
    uint64_t hash = ek_flow_hash(region, &client);
    struct ek_flow_row *row = ek_flow_find(region, &client, hash);
    if (row) {
        store_flow(row, flow);
        return EK_INSTALL_MOVED;
    }
    struct ek_flow_row *bucket = bucket_of(region, hash);
    uint32_t way = (uint32_t)(hash >> WAY_SHIFT);
    struct ek_flow_row *oldest = bucket + way;
    for (uint32_t i = 0; i < EK_FLOW_WAYS; i++) {
        row = bucket + ((way + i) & (EK_FLOW_WAYS - 1));
        if (row->transport == EK_TRANSPORT_NONE) {
            store_flow(row, flow);
            return EK_INSTALL_NEW;
        }
        if (row->last_seen_ns < oldest->last_seen_ns)
            oldest = row;
    }
    store_flow(oldest, flow);
    return EK_INSTALL_EVICTED;
}

enum ek_read ek_flow_read(const struct ek_region_header *region, uint32_t index,
                          struct ek_flow_row *flow)
{
    return read_flow(flow_rows(region) + index, flow);
}

/* For any process. A row being written counts as not found. */
enum ek_read ek_flow_lookup(const struct ek_region_header *region,
                            const struct ek_address *client, struct ek_flow_row *flow)
{
    uint64_t hash = ek_flow_hash(region, client);
    const struct ek_flow_row *bucket = bucket_of(region, hash);
    uint32_t way = (uint32_t)(hash >> WAY_SHIFT);
    for (uint32_t i = 0; i < EK_FLOW_WAYS; i++) {
        enum ek_read verdict = read_flow(bucket + ((way + i) & (EK_FLOW_WAYS - 1)), flow);
        if (verdict == EK_READ_OK && is_client(flow, client))
            return EK_READ_OK;
        if (verdict == EK_READ_EMPTY && flow->sequence == 0)
            break;
    }
    return EK_READ_EMPTY;
}

/* How many clients were heard of at or after since_ns. */
uint32_t ek_flow_count_live(const struct ek_region_header *region, uint64_t since_ns)
{
    uint32_t live = 0;
    for (uint32_t i = 0; i < region->row_count; i++) {
        const struct ek_flow_row *row = flow_rows(region) + i;
        uint64_t last_seen_ns = __atomic_load_n(&row->last_seen_ns, __ATOMIC_RELAXED);
        live += last_seen_ns != 0 && last_seen_ns >= since_ns;
    }
    return live;
}
