/* One relay worker's loop, shared by relay.c, relay_rx.c and relay_tx.c.
 * Everything is allocated when the relay is made; nothing per packet. */
#ifndef EARSHOT_RELAY_H
#define EARSHOT_RELAY_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <netinet/in.h>
#include <sys/socket.h>

#include "flow_table.h"
#include "kernel.h"

/* Datagrams per recvmmsg: past 64 the system call's share no longer shrinks. */
#define EK_RELAY_BATCH 64
#define EK_RELAY_SOCKETS 4
/* Transceivers that one relay serves: this node's and other nodes'. */
#define EK_RELAY_DESTINATIONS 256
/* Requests for Python per poll. One costs it about 0.1 ms, so a flood of forged
 * checks takes a few milliseconds at most; a client repeats a dropped check. */
#define EK_RELAY_SLOW_ITEMS 32
/* From one receive buffer to the next: an odd number of cache lines, or the heads
 * of all of them would share a few of the cache's sets. */
#define EK_RELAY_STRIDE_BYTES (EK_MAX_DATAGRAM_BYTES + EK_CACHE_LINE_BYTES)
/* Room for both cmsgs that the sockets may be set to send, with slack. */
#define EK_RELAY_CONTROL_BYTES 128
/* Batches in a row before Python gets its slow items though more is queued. */
#define EK_RELAY_ROUNDS_BEFORE_SLOW 16
/* While one socket pours: a record waits no longer for others, nor do the other
 * sockets wait to be looked at. */
#define EK_RELAY_HOLD_NS 500000
#define EK_RELAY_COUNTERS 32

/* The hop datagram being filled for one transceiver. */
struct ek_relay_destination {
    uint16_t node_id;
    uint8_t worker;
    uint8_t address_bytes;
    uint32_t bytes;                    /* 0: none begun */
    uint32_t record_count;
    uint32_t route_index;
    uint64_t record_index;             /* of the next record ever */
    uint64_t t_recv_ns;
    struct sockaddr_in6 address;
    uint8_t *datagram;
};

struct ek_rx {
    const uint8_t *datagram;
    uint32_t bytes;
    uint32_t class;                    /* enum ek_demux */
    uint64_t hash;
    struct ek_flow_row *flow;
    struct ek_address client;
    uint8_t local_ip[16];
};

struct ek_relay {
    int udp_fds[EK_RELAY_SOCKETS];
    uint32_t udp_fd_count;
    uint32_t ready;                    /* bit per socket that may have more */
    int hop_fd;
    int hop_family;
    uint16_t node_id;
    uint16_t index;
    uint32_t incarnation;
    uint32_t hop_bytes;
    uint64_t gather_ns;
    struct ek_region_header *flows;
    const struct ek_region_header *session_region;
    const struct ek_session_row *sessions;
    const struct ek_region_header *routes;
    struct ek_worker_row *worker_row;
    struct ek_key_ring keys;

    uint64_t now_ns;                   /* of the batch in hand */
    uint64_t looked_ns;                /* when all sockets were last looked at */
    uint32_t received;                 /* datagrams since the last rest */
    uint32_t reserved;
    uint64_t rate_since_ns;
    uint32_t rate_count;
    uint32_t gather_expected;          /* datagrams per gather_ns, lately */
    uint64_t overflow_read_ns;
    uint32_t overflow_seen[EK_RELAY_SOCKETS];
    uint64_t counts[EK_RELAY_COUNTERS];
    uint32_t slow_count;
    uint32_t open_count;               /* destinations with a datagram begun */
    uint32_t destination_count;
    uint16_t open[EK_RELAY_DESTINATIONS];
    uint16_t destination_of[EK_RELAY_DESTINATIONS * 4]; /* hash → index + 1 */
    struct ek_relay_destination destinations[EK_RELAY_DESTINATIONS];

    struct mmsghdr rx_headers[EK_RELAY_BATCH];
    struct iovec rx_iovecs[EK_RELAY_BATCH];
    struct sockaddr_in6 rx_names[EK_RELAY_BATCH];
    struct ek_rx rx[EK_RELAY_BATCH];
    struct mmsghdr tx_headers[EK_RELAY_DESTINATIONS];
    struct iovec tx_iovecs[EK_RELAY_DESTINATIONS];
    _Alignas(EK_CACHE_LINE_BYTES) uint8_t rx_control[EK_RELAY_BATCH][EK_RELAY_CONTROL_BYTES];
    _Alignas(EK_CACHE_LINE_BYTES) uint8_t rx_datagrams[EK_RELAY_BATCH][EK_RELAY_STRIDE_BYTES];
    struct ek_slow_item slow[EK_RELAY_SLOW_ITEMS];
    uint8_t *hop_datagrams;            /* destinations' datagrams, touched when used */
};

/* A datagram's end: counted here as received and as that. */
static inline void ek_relay_end(struct ek_relay *relay, uint32_t counter, uint32_t n)
{
    relay->counts[EK_C_RX_DATAGRAMS] += n;
    relay->counts[counter] += n;
}

/* relay_rx.c: one recvmmsg and its verdicts. How many datagrams, or -errno. */
int ek_relay_receive(struct ek_relay *relay, uint32_t socket);
/* The state of the session that a flow or ufrag names, or EK_SESSION_FREE when
 * that session is no more. Sessions of other nodes count as OFFERED. */
uint32_t ek_relay_session_state(const struct ek_relay *relay, uint16_t node_id, uint32_t slot,
                                uint32_t generation);

/* relay_tx.c */
void ek_relay_queue(struct ek_relay *relay, uint8_t worker, const struct ek_hop_record *record);
void ek_relay_flush(struct ek_relay *relay);

#endif
