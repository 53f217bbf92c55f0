/* The part of flow_table.c that only the table's writer may call. */
#ifndef EARSHOT_FLOW_TABLE_H
#define EARSHOT_FLOW_TABLE_H

#include "kernel.h"

uint64_t ek_flow_hash(const struct ek_region_header *region, const struct ek_address *client);
void ek_flow_prefetch(const struct ek_region_header *region, uint64_t hash);
struct ek_flow_row *ek_flow_find(const struct ek_region_header *region,
                                 const struct ek_address *client, uint64_t hash);

#endif
