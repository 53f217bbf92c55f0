/* The little of STUN that routing needs: from a Binding request to the session
 * that its USERNAME names, and proof that we minted that name.
 *
 * What is not looked at here (MESSAGE-INTEGRITY, FINGERPRINT, everything behind
 * USERNAME) is judged by the slow path or by the transceiver. Nothing is
 * believed of a request that peek accepts but where it wants to go. */
#include <string.h>

#include "kernel.h"

/* RFC 8489 section 5 */
#define HEADER_BYTES 20
#define BINDING_REQUEST 0x0001
#define MAGIC_COOKIE 0x2112A442u

/* RFC 8489 section 18.3 */
#define ATTRIBUTE_USERNAME 0x0006
#define ATTRIBUTE_MESSAGE_INTEGRITY 0x0008
#define ATTRIBUTE_MESSAGE_INTEGRITY_SHA256 0x001C
#define ATTRIBUTE_HEADER_BYTES 4

/* The signed part of a ufrag; the MAC follows. */
#define UFRAG_SIGNED_BYTES 10
#define UFRAG_MAC_BYTES 8

struct cursor {
    const uint8_t *at;
    const uint8_t *end;
};

static size_t bytes_left(const struct cursor *cursor)
{
    return (size_t)(cursor->end - cursor->at);
}

static uint16_t load_u16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static uint32_t load_u32(const uint8_t *at)
{
    return (uint32_t)load_u16(at) << 16 | load_u16(at + 2);
}

static uint32_t load_u24(const uint8_t *at)
{
    return (uint32_t)at[0] << 16 | load_u16(at + 1);
}

/* RFC 8489 sections 5 and 14: two zero bits, a length that is a multiple of
 * four and, over UDP, reaches to the datagram's end. */
static enum ek_peek check_header(const uint8_t *datagram, size_t bytes)
{
    if (bytes < HEADER_BYTES || (datagram[0] & 0xC0) != 0)
        return EK_PEEK_MALFORMED;
    uint16_t length = load_u16(datagram + 2);
    if ((length & 3) != 0 || length != bytes - HEADER_BYTES ||
        load_u32(datagram + 4) != MAGIC_COOKIE)
        return EK_PEEK_MALFORMED;
    return load_u16(datagram) == BINDING_REQUEST ? EK_PEEK_OK : EK_PEEK_NOT_REQUEST;
}

/* Sets value to the first USERNAME. What stands behind MESSAGE-INTEGRITY does
 * not count (RFC 8489 section 14.5). */
static enum ek_peek find_username(struct cursor cursor, struct cursor *value)
{
    while (bytes_left(&cursor) >= ATTRIBUTE_HEADER_BYTES) {
        uint16_t type = load_u16(cursor.at);
        size_t length = load_u16(cursor.at + 2);
        size_t padded = (length + 3) & ~(size_t)3;
        cursor.at += ATTRIBUTE_HEADER_BYTES;
        if (padded > bytes_left(&cursor))
            return EK_PEEK_MALFORMED;
        if (type == ATTRIBUTE_USERNAME) {
            value->at = cursor.at;
            value->end = cursor.at + length;
            return EK_PEEK_OK;
        }
        if (type == ATTRIBUTE_MESSAGE_INTEGRITY || type == ATTRIBUTE_MESSAGE_INTEGRITY_SHA256)
            break;
        cursor.at += padded;
    }
    return EK_PEEK_NO_USERNAME;
}

/* 0..63, or 64 for a character outside the alphabet (RFC 4648 section 4, which
 * is exactly the ice-char of RFC 8839 section 5.4). */
static uint32_t base64_value(uint8_t character)
{
    if (character >= 'A' && character <= 'Z')
        return (uint32_t)character - 'A';
    if (character >= 'a' && character <= 'z')
        return (uint32_t)character - 'a' + 26;
    if (character >= '0' && character <= '9')
        return (uint32_t)character - '0' + 52;
    if (character == '+')
        return 62;
    return character == '/' ? 63 : 64;
}

/* 24 characters to 18 bytes; 0 when one is no base64. */
static int decode_base64(const uint8_t *text, uint8_t *bytes)
{
    for (size_t i = 0; i < EK_UFRAG_CHARS / 4; i++) {
        uint32_t quad = 0;
        for (size_t j = 0; j < 4; j++) {
            uint32_t value = base64_value(text[4 * i + j]);
            if (value > 63)
                return 0;
            quad = quad << 6 | value;
        }
        bytes[3 * i] = (uint8_t)(quad >> 16);
        bytes[3 * i + 1] = (uint8_t)(quad >> 8);
        bytes[3 * i + 2] = (uint8_t)quad;
    }
    return 1;
}

/* Takes the same time wherever the first difference stands, so that a forger
 * cannot learn a MAC byte by byte. */
static int macs_equal(const uint8_t *mac, uint64_t expected)
{
    uint8_t difference = 0;
    for (size_t i = 0; i < UFRAG_MAC_BYTES; i++)
        difference |= (uint8_t)(mac[i] ^ (uint8_t)(expected >> (8 * i)));
    return difference == 0;
}

static int parse_ufrag(const uint8_t *text, const struct ek_key_ring *keys,
                       struct ek_ufrag *ufrag)
{
    uint8_t bytes[EK_UFRAG_BYTES];
    if (!decode_base64(text, bytes) || bytes[0] >> 4 != EK_UFRAG_VERSION)
        return 0;
    uint8_t key_id = bytes[0] & 0x0F;
    if (!(keys->present >> key_id & 1))
        return 0;
    uint64_t mac = ek_siphash24(keys->key[key_id], bytes, UFRAG_SIGNED_BYTES);
    if (!macs_equal(bytes + UFRAG_SIGNED_BYTES, mac))
        return 0;
    ufrag->key_id = key_id;
    ufrag->node_id = load_u16(bytes + 1);
    ufrag->worker = bytes[3];
    ufrag->slot = load_u24(bytes + 4);
    ufrag->generation = load_u24(bytes + 7);
    return 1;
}

/* On EK_PEEK_OK, ufrag says where the request wants to go and its text stands at
 * ufrag_offset. RFC 8445 section 7.2.2: USERNAME is "<ours>:<theirs>". */
enum ek_peek ek_stun_peek(const uint8_t *datagram, size_t bytes, const struct ek_key_ring *keys,
                          struct ek_ufrag *ufrag, size_t *ufrag_offset)
{
    enum ek_peek verdict = check_header(datagram, bytes);
    if (verdict != EK_PEEK_OK)
        return verdict;
    struct cursor attributes = {datagram + HEADER_BYTES, datagram + bytes};
    struct cursor username = {NULL, NULL};
    verdict = find_username(attributes, &username);
    if (verdict != EK_PEEK_OK)
        return verdict;
    if (bytes_left(&username) <= EK_UFRAG_CHARS || username.at[EK_UFRAG_CHARS] != ':' ||
        !parse_ufrag(username.at, keys, ufrag))
        return EK_PEEK_FOREIGN_UFRAG;
    *ufrag_offset = (size_t)(username.at - datagram);
    return EK_PEEK_OK;
}
