/* What parses encodes to the same bytes again; every prefix of it is refused. */
#include "fuzz.h"

#define RECORD_LIMIT 64
#define BYTES_LIMIT 8192

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t again[BYTES_LIMIT];
    static struct ek_hop_record records[RECORD_LIMIT];
    struct ek_hop_header header;
    if (size > BYTES_LIMIT)
        return 0;
    int count = ek_hop_parse(data, size, &header, records, RECORD_LIMIT);
    REQUIRE(count == -1 || (count >= 1 && count <= RECORD_LIMIT));
    if (count < 0)
        return 0;
    size_t at = EK_HOP_HEADER_BYTES;
    ek_hop_encode_header(again, &header);
    for (int i = 0; i < count; i++)
        at += ek_hop_encode_record(again + at, records + i);
    REQUIRE(at == size && memcmp(again, data, size) == 0);
    REQUIRE(ek_hop_parse(data, size - 1, &header, records, RECORD_LIMIT) == -1);
    return 0;
}
