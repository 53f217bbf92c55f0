/* The header that every shared segment starts with. */
#include <string.h>

#include "kernel.h"

/* The magic goes in last: who sees it, sees the rest. */
void ek_region_init(struct ek_region_header *region, uint32_t kind, uint32_t row_count,
                    uint32_t row_bytes, const uint8_t *boot_id, uint32_t owner_index)
{
    region->layout_version = EK_LAYOUT_VERSION;
    region->kind = kind;
    memcpy(region->boot_id, boot_id, sizeof region->boot_id);
    region->row_count = row_count;
    region->row_bytes = row_bytes;
    region->owner_index = owner_index;
    __atomic_store_n(&region->magic, (uint64_t)EK_MAGIC, __ATOMIC_RELEASE);
}

uint64_t ek_region_magic(const struct ek_region_header *region)
{
    return __atomic_load_n(&region->magic, __ATOMIC_ACQUIRE);
}
