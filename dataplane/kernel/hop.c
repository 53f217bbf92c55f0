/* Hop datagrams: a header, then count records, each with its own header and
 * payload and no padding. Big-endian. dataplane/proto/hop.py is the oracle.
 *
 *   header  0 magic u16    2 version u8  3 flags u8    4 count u16    6 source u16
 *           8 incarnation u32           12 reserved u32
 *          16 record_index u64          24 t_recv_ns u64
 *   record  0 length u16   2 flags u8    3 transport u8
 *           4 client_port u16            6 node_id u16
 *           8 client_ip 16              24 local_ip 16
 *          40 slot u32                  44 generation u32             48 payload */
#include <string.h>

#include "kernel.h"

static void store_u16(uint8_t *at, uint16_t value)
{
    value = __builtin_bswap16(value);
    memcpy(at, &value, sizeof value);
}

static void store_u32(uint8_t *at, uint32_t value)
{
    value = __builtin_bswap32(value);
    memcpy(at, &value, sizeof value);
}

static void store_u64(uint8_t *at, uint64_t value)
{
    value = __builtin_bswap64(value);
    memcpy(at, &value, sizeof value);
}

static uint16_t load_u16(const uint8_t *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return __builtin_bswap16(value);
}

static uint32_t load_u32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return __builtin_bswap32(value);
}

static uint64_t load_u64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return __builtin_bswap64(value);
}

/* Writes EK_HOP_HEADER_BYTES. */
void ek_hop_encode_header(uint8_t *at, const struct ek_hop_header *header)
{
    store_u16(at, EK_HOP_MAGIC);
    at[2] = EK_HOP_VERSION;
    at[3] = 0;
    store_u16(at + 4, header->count);
    store_u16(at + 6, header->source);
    store_u32(at + 8, header->incarnation);
    store_u32(at + 12, 0);
    store_u64(at + 16, header->record_index);
    store_u64(at + 24, header->t_recv_ns);
}

/* Writes EK_HOP_RECORD_BYTES and the payload (at most 65,535 bytes); returns how
 * many bytes that was. The caller has made room. */
size_t ek_hop_encode_record(uint8_t *at, const struct ek_hop_record *record)
{
    store_u16(at, (uint16_t)record->payload_bytes);
    at[2] = record->flags;
    at[3] = record->transport;
    store_u16(at + 4, record->client_port);
    store_u16(at + 6, record->node_id);
    memcpy(at + 8, record->client_ip, 16);
    memcpy(at + 24, record->local_ip, 16);
    store_u32(at + 40, record->slot);
    store_u32(at + 44, record->generation);
    memcpy(at + EK_HOP_RECORD_BYTES, record->payload, record->payload_bytes);
    return EK_HOP_RECORD_BYTES + record->payload_bytes;
}

static void parse_record(const uint8_t *at, struct ek_hop_record *record)
{
    record->payload = at + EK_HOP_RECORD_BYTES;
    record->payload_bytes = load_u16(at);
    record->flags = at[2];
    record->transport = at[3];
    record->client_port = load_u16(at + 4);
    record->node_id = load_u16(at + 6);
    memcpy(record->client_ip, at + 8, 16);
    memcpy(record->local_ip, at + 24, 16);
    record->slot = load_u32(at + 40);
    record->generation = load_u32(at + 44);
}

static int parse_header(const uint8_t *at, size_t bytes, struct ek_hop_header *header)
{
    if (bytes < EK_HOP_HEADER_BYTES || load_u16(at) != EK_HOP_MAGIC ||
        at[2] != EK_HOP_VERSION || at[3] != 0 || load_u32(at + 12) != 0)
        return 0;
    header->count = load_u16(at + 4);
    header->source = load_u16(at + 6);
    header->incarnation = load_u32(at + 8);
    header->record_index = load_u64(at + 16);
    header->t_recv_ns = load_u64(at + 24);
    header->reserved = 0;
    return header->count != 0;
}

/* One class each, and only a STUN request can have made a flow. */
static int is_flags(uint8_t flags)
{
    return flags == EK_HOP_STUN || flags == EK_HOP_DTLS || flags == EK_HOP_RTP ||
           flags == (EK_HOP_STUN | EK_HOP_NEW_FLOW);
}

static int is_record(const struct ek_hop_record *record)
{
    return record->payload_bytes >= 1 && record->payload_bytes <= EK_MAX_DATAGRAM_BYTES &&
           is_flags(record->flags) &&
           (record->transport == EK_TRANSPORT_UDP || record->transport == EK_TRANSPORT_TCP) &&
           record->slot <= EK_GENERATION_MASK && record->generation <= EK_GENERATION_MASK;
}

/* How many records, or -1: malformed, or more than record_limit. The whole
 * datagram is good or nothing of it; payloads point into it. */
int ek_hop_parse(const uint8_t *datagram, size_t bytes, struct ek_hop_header *header,
                 struct ek_hop_record *records, size_t record_limit)
{
    if (!parse_header(datagram, bytes, header) || header->count > record_limit)
        return -1;

    const uint8_t *at = datagram + EK_HOP_HEADER_BYTES;
    const uint8_t *end = datagram + bytes;
    for (uint32_t i = 0; i < header->count; i++) {
        if ((size_t)(end - at) < EK_HOP_RECORD_BYTES)
            return -1;
        parse_record(at, records + i);
        if (!is_record(records + i) ||
            (size_t)(end - at) - EK_HOP_RECORD_BYTES < records[i].payload_bytes)
            return -1;
        at += EK_HOP_RECORD_BYTES + records[i].payload_bytes;
    }
    return at == end ? header->count : -1;
}
