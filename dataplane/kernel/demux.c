/* RFC 7983 section 7: which protocol a datagram speaks, by its first byte.
 *
 *   0..3     STUN
 *   20..63   DTLS
 *   128..191 RTP and RTCP
 *
 * ZRTP (16..19) and TURN channels (64..79) are none of ours. */
#include "kernel.h"

enum ek_demux ek_demux(const uint8_t *datagram, size_t bytes)
{
    if (bytes == 0)
        return EK_DEMUX_NONE;
    uint8_t first = datagram[0];
    if ((first & 0xC0) == 0x80)
        return EK_DEMUX_RTP;
    if (first <= 3)
        return EK_DEMUX_STUN;
    if (first >= 20 && first <= 63)
        return EK_DEMUX_DTLS;
    return EK_DEMUX_NONE;
}
