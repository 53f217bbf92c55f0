/* Any bytes get a verdict; what peek takes is whole, and cutting its end off
 * makes it malformed. Seeds are signed under these keys (make_corpus.py). */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ek_key_ring keys = {.present = 1u << 0 | 1u << 7};
    for (unsigned i = 0; i < 16; i++)
        keys.key[0][i] = keys.key[7][i] = (uint8_t)i;

    struct ek_ufrag ufrag;
    size_t offset = 0;
    enum ek_demux class = ek_demux(data, size);
    enum ek_peek verdict = ek_stun_peek(data, size, &keys, &ufrag, &offset);
    REQUIRE((unsigned)verdict <= EK_PEEK_FOREIGN_UFRAG);
    if (verdict != EK_PEEK_OK)
        return 0;
    REQUIRE(class == EK_DEMUX_STUN);
    REQUIRE(offset >= 24 && offset + EK_UFRAG_CHARS < size);
    REQUIRE(data[offset + EK_UFRAG_CHARS] == ':');
    REQUIRE(keys.present >> ufrag.key_id & 1);
    REQUIRE(ufrag.slot <= EK_GENERATION_MASK && ufrag.generation <= EK_GENERATION_MASK);
    REQUIRE(ek_stun_peek(data, size - 4, &keys, &ufrag, &offset) == EK_PEEK_MALFORMED);
    return 0;
}
