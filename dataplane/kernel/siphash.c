/* SipHash-2-4 (Aumasson and Bernstein, 2012), 64-bit result. */
#include <string.h>

#include "kernel.h"

static inline uint64_t rotate_left(uint64_t word, unsigned bits)
{
    return (word << bits) | (word >> (64 - bits));
}

/* kernel.h asserts that we are little-endian too. */
static inline uint64_t load_little_endian(const uint8_t *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

struct state {
    uint64_t v0, v1, v2, v3;
};

static inline void sip_round(struct state *v)
{
    v->v0 += v->v1;
    v->v2 += v->v3;
    v->v1 = rotate_left(v->v1, 13) ^ v->v0;
    v->v3 = rotate_left(v->v3, 16) ^ v->v2;
    v->v0 = rotate_left(v->v0, 32);
    v->v2 += v->v1;
    v->v0 += v->v3;
    v->v1 = rotate_left(v->v1, 17) ^ v->v2;
    v->v3 = rotate_left(v->v3, 21) ^ v->v0;
    v->v2 = rotate_left(v->v2, 32);
}

static inline void compress(struct state *v, uint64_t word)
{
    v->v3 ^= word;
    sip_round(v);
    sip_round(v);
    v->v0 ^= word;
}

uint64_t ek_siphash24(const uint8_t *key, const uint8_t *data, size_t bytes)
{
    uint64_t k0 = load_little_endian(key);
    uint64_t k1 = load_little_endian(key + 8);
    struct state v = {
        k0 ^ 0x736f6d6570736575,
        k1 ^ 0x646f72616e646f6d,
        k0 ^ 0x6c7967656e657261,
        k1 ^ 0x7465646279746573,
    };
    size_t whole = bytes & ~(size_t)7;
    for (size_t at = 0; at < whole; at += 8)
        compress(&v, load_little_endian(data + at));
    uint64_t last = (uint64_t)bytes << 56;
    for (size_t i = whole; i < bytes; i++)
        last |= (uint64_t)data[i] << (8 * (i & 7));
    compress(&v, last);
    v.v2 ^= 0xFF;
    for (int i = 0; i < 4; i++)
        sip_round(&v);
    return v.v0 ^ v.v1 ^ v.v2 ^ v.v3;
}
