/* Routes: (node, transceiver) → hop address. The control plane writes.
 *
 * Open addressing with linear probing. A cleared row keeps its sequence, so
 * that probing walks over it; a row with sequence 0 was never written and ends
 * the walk. */
#include <errno.h>

#include "seqlock.h"

static struct ek_route_row *route_rows(const struct ek_region_header *region)
{
    return (struct ek_route_row *)(uintptr_t)(region + 1);
}

static uint32_t first_index(const struct ek_region_header *region, uint16_t node_id,
                            uint8_t worker)
{
    uint32_t key = (uint32_t)node_id << 8 | worker;
    return (key * 2654435761u >> 8) % region->row_count;
}

/* The half word behind the sequence. */
static uint32_t pack_name(uint16_t node_id, uint8_t worker, uint8_t valid)
{
    return (uint32_t)node_id | (uint32_t)worker << 16 | (uint32_t)valid << 24;
}

static void store_route(struct ek_route_row *row, const struct ek_route_row *route)
{
    uint32_t *name = (uint32_t *)(void *)row + 1;
    uint32_t odd = ek_seq_write_begin(&row->sequence);
    __atomic_store_n(name, pack_name(route->node_id, route->worker, route->valid),
                     __ATOMIC_RELAXED);
    ek_words_store(row->ip, route->ip, sizeof *row - offsetof(struct ek_route_row, ip));
    ek_seq_write_end(&row->sequence, odd);
}

enum ek_read ek_route_read(const struct ek_region_header *region, uint32_t index,
                           struct ek_route_row *route)
{
    const struct ek_route_row *row = route_rows(region) + index;
    const uint32_t *name = (const uint32_t *)(const void *)row + 1;
    for (int i = 0; i < EK_SEQLOCK_TRIES; i++) {
        uint32_t begin = ek_seq_read_begin(&row->sequence);
        if (begin & 1) {
            ek_seq_pause();
            continue;
        }
        uint32_t word = __atomic_load_n(name, __ATOMIC_RELAXED);
        ek_words_load(route->ip, row->ip, sizeof *row - offsetof(struct ek_route_row, ip));
        if (!ek_seq_read_valid(&row->sequence, begin))
            continue;
        route->sequence = begin;
        route->node_id = (uint16_t)word;
        route->worker = (uint8_t)(word >> 16);
        route->valid = (uint8_t)(word >> 24);
        return route->valid ? EK_READ_OK : EK_READ_EMPTY;
    }
    return EK_READ_BUSY;
}

/* The row's index, or -ENOENT. */
int64_t ek_route_find(const struct ek_region_header *region, uint16_t node_id, uint8_t worker,
                      struct ek_route_row *route)
{
    uint32_t index = first_index(region, node_id, worker);
    for (uint32_t i = 0; i < region->row_count; i++) {
        enum ek_read verdict = ek_route_read(region, index, route);
        if (verdict == EK_READ_EMPTY && route->sequence == 0)
            break;
        if (verdict == EK_READ_OK && route->node_id == node_id && route->worker == worker)
            return index;
        index = index + 1 == region->row_count ? 0 : index + 1;
    }
    return -ENOENT;
}

/* 0, or -ENOSPC. For the writer only; a row that a dead writer left odd is taken
 * over: its name cannot be trusted, and the writer sets all its routes anew. */
int ek_route_set(struct ek_region_header *region, uint16_t node_id, uint8_t worker,
                 const uint8_t *ip, uint16_t port)
{
    struct ek_route_row route = {.node_id = node_id, .worker = worker, .valid = 1, .port = port};
    memcpy(route.ip, ip, sizeof route.ip);
    struct ek_route_row found;
    int64_t index = ek_route_find(region, node_id, worker, &found);
    if (index < 0) {
        uint32_t probe = first_index(region, node_id, worker);
        for (uint32_t i = 0; i < region->row_count && index < 0; i++) {
            if (ek_route_read(region, probe, &found) != EK_READ_OK)
                index = probe;
            probe = probe + 1 == region->row_count ? 0 : probe + 1;
        }
    }
    if (index < 0)
        return -ENOSPC;
    store_route(route_rows(region) + index, &route);
    return 0;
}

int ek_route_clear(struct ek_region_header *region, uint16_t node_id, uint8_t worker)
{
    struct ek_route_row found;
    int64_t index = ek_route_find(region, node_id, worker, &found);
    if (index < 0)
        return -ENOENT;
    struct ek_route_row empty = {.valid = 0};
    store_route(route_rows(region) + index, &empty);
    return 0;
}
