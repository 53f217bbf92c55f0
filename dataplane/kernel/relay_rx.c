/* Into the relay: one recvmmsg, then a verdict on each datagram. Three passes
 * over the batch, so that the memory one pass will need is on its way while the
 * one before it works: classify and hash; find the flow; judge. */
#include "relay.h"

#include <errno.h>
#include <string.h>
#include <time.h>

static const uint32_t peek_counter[] = {
    [EK_PEEK_OK] = EK_C_SLOW_PATH,
    [EK_PEEK_MALFORMED] = EK_C_DROP_STUN_MALFORMED,
    [EK_PEEK_NOT_REQUEST] = EK_C_DROP_STUN_NOT_REQUEST,
    [EK_PEEK_NO_USERNAME] = EK_C_DROP_STUN_NO_USERNAME,
    [EK_PEEK_FOREIGN_UFRAG] = EK_C_DROP_STUN_FOREIGN_UFRAG,
};

static const uint8_t hop_flag[] = {
    [EK_DEMUX_STUN] = EK_HOP_STUN,
    [EK_DEMUX_DTLS] = EK_HOP_DTLS,
    [EK_DEMUX_RTP] = EK_HOP_RTP,
};

/* ::ffff:a.b.c.d */
static void map_ipv4(uint8_t *ip, const void *four_bytes)
{
    memset(ip, 0, 10);
    ip[10] = 0xFF;
    ip[11] = 0xFF;
    memcpy(ip + 12, four_bytes, 4);
}

static int set_client(struct ek_address *client, const struct sockaddr_in6 *name)
{
    memset(client, 0, sizeof *client);
    client->transport = EK_TRANSPORT_UDP;
    client->port = ntohs(name->sin6_port); /* at the same place in sockaddr_in */
    if (name->sin6_family == AF_INET6) {
        memcpy(client->ip, &name->sin6_addr, 16);
        return 1;
    }
    struct sockaddr_in name4;
    memcpy(&name4, name, sizeof name4);
    map_ipv4(client->ip, &name4.sin_addr);
    return name->sin6_family == AF_INET;
}

/* The address that the client sent to; zeros when the socket does not tell. */
static void set_local_ip(uint8_t *local_ip, struct msghdr *header)
{
    memset(local_ip, 0, 16);
    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(header); cmsg; cmsg = CMSG_NXTHDR(header, cmsg)) {
        if (cmsg->cmsg_level == IPPROTO_IP && cmsg->cmsg_type == IP_PKTINFO)
            map_ipv4(local_ip, CMSG_DATA(cmsg) + offsetof(struct in_pktinfo, ipi_addr));
        else if (cmsg->cmsg_level == IPPROTO_IPV6 && cmsg->cmsg_type == IPV6_PKTINFO)
            memcpy(local_ip, CMSG_DATA(cmsg) + offsetof(struct in6_pktinfo, ipi6_addr), 16);
        else
            continue;
        return;
    }
}

/* 0: the datagram ends here, counted. */
static int classify(struct ek_relay *relay, uint32_t i, struct ek_rx *rx)
{
    struct mmsghdr *header = relay->rx_headers + i;
    rx->datagram = relay->rx_datagrams[i];
    rx->bytes = header->msg_len;
    relay->counts[EK_C_RX_BYTES] += rx->bytes;
    if (rx->bytes == 0) {
        ek_relay_end(relay, EK_C_DROP_EMPTY, 1);
        return 0;
    }
    if (header->msg_hdr.msg_flags & MSG_TRUNC) {
        ek_relay_end(relay, EK_C_DROP_OVERSIZE, 1);
        return 0;
    }
    rx->class = ek_demux(rx->datagram, rx->bytes);
    if (rx->class == EK_DEMUX_NONE || !set_client(&rx->client, relay->rx_names + i)) {
        ek_relay_end(relay, EK_C_DROP_DEMUX, 1);
        return 0;
    }
    rx->hash = ek_flow_hash(relay->flows, &rx->client);
    ek_flow_prefetch(relay->flows, rx->hash);
    set_local_ip(rx->local_ip, &header->msg_hdr);
    return 1;
}

static void find_flow(struct ek_relay *relay, struct ek_rx *rx)
{
    rx->flow = ek_flow_find(relay->flows, &rx->client, rx->hash);
    if (rx->flow && rx->flow->slot < relay->session_region->row_count)
        __builtin_prefetch(&relay->sessions[rx->flow->slot].ident);
}

uint32_t ek_relay_session_state(const struct ek_relay *relay, uint16_t node_id, uint32_t slot,
                                uint32_t generation)
{
    if (node_id != relay->node_id)
        return EK_SESSION_OFFERED;
    if (slot >= relay->session_region->row_count)
        return EK_SESSION_FREE;
    uint64_t ident = ek_session_ident(relay->sessions + slot);
    uint32_t current = (uint32_t)ident & EK_GENERATION_MASK;
    uint32_t previous = (uint32_t)(ident >> 24) & EK_GENERATION_MASK;
    if (generation == 0 || (generation != current && generation != previous))
        return EK_SESSION_FREE;
    return (uint32_t)(ident >> 56);
}

static void forward(struct ek_relay *relay, struct ek_rx *rx)
{
    struct ek_flow_row *flow = rx->flow;
    __atomic_store_n(&flow->last_seen_ns, relay->now_ns, __ATOMIC_RELAXED);
    struct ek_hop_record record = {
        .payload = rx->datagram,
        .payload_bytes = rx->bytes,
        .slot = flow->slot,
        .generation = flow->generation,
        .client_port = rx->client.port,
        .node_id = flow->node_id,
        .flags = hop_flag[rx->class],
        .transport = rx->client.transport,
    };
    memcpy(record.client_ip, rx->client.ip, 16);
    memcpy(record.local_ip, rx->local_ip, 16);
    ek_relay_queue(relay, flow->worker, &record);
}

static void hand_to_python(struct ek_relay *relay, const struct ek_rx *rx, uint32_t socket,
                           const struct ek_ufrag *ufrag, size_t ufrag_offset)
{
    if (relay->slow_count == EK_RELAY_SLOW_ITEMS) {
        ek_relay_end(relay, EK_C_DROP_SLOW_PATH_FULL, 1);
        return;
    }
    struct ek_slow_item *item = relay->slow + relay->slow_count++;
    item->client = rx->client;
    item->ufrag = *ufrag;
    item->socket_index = socket;
    item->datagram_bytes = rx->bytes;
    memcpy(item->local_ip, rx->local_ip, sizeof item->local_ip);
    memcpy(item->ufrag_text, rx->datagram + ufrag_offset, sizeof item->ufrag_text);
    memcpy(item->datagram, rx->datagram, rx->bytes);
    relay->counts[EK_C_SLOW_PATH]++;
}

/* A check of the flow's own session goes the fast way; one that would make or
 * move a flow needs its MESSAGE-INTEGRITY verified first. */
static void judge_stun(struct ek_relay *relay, struct ek_rx *rx, uint32_t socket)
{
    struct ek_ufrag ufrag;
    size_t ufrag_offset;
    enum ek_peek verdict =
        ek_stun_peek(rx->datagram, rx->bytes, &relay->keys, &ufrag, &ufrag_offset);
    if (verdict != EK_PEEK_OK) {
        ek_relay_end(relay, peek_counter[verdict], 1);
        return;
    }
    if (ek_relay_session_state(relay, ufrag.node_id, ufrag.slot, ufrag.generation) ==
        EK_SESSION_FREE) {
        ek_relay_end(relay, EK_C_DROP_STUN_STALE_GENERATION, 1);
        return;
    }
    const struct ek_flow_row *flow = rx->flow;
    if (flow && flow->slot == ufrag.slot && flow->generation == ufrag.generation &&
        flow->node_id == ufrag.node_id && flow->worker == ufrag.worker)
        forward(relay, rx);
    else
        hand_to_python(relay, rx, socket, &ufrag, ufrag_offset);
}

static void judge(struct ek_relay *relay, struct ek_rx *rx, uint32_t socket)
{
    if (rx->class == EK_DEMUX_STUN) {
        judge_stun(relay, rx, socket);
        return;
    }
    if (!rx->flow) {
        ek_relay_end(relay, EK_C_DROP_UNKNOWN_FLOW, 1);
        return;
    }
    uint32_t state = ek_relay_session_state(relay, rx->flow->node_id, rx->flow->slot,
                                            rx->flow->generation);
    if (state == EK_SESSION_OFFERED || state == EK_SESSION_CLOSING)
        forward(relay, rx);
    else
        ek_relay_end(relay, EK_C_DROP_STALE_FLOW, 1);
}

int ek_relay_receive(struct ek_relay *relay, uint32_t socket)
{
    int n = recvmmsg(relay->udp_fds[socket], relay->rx_headers, EK_RELAY_BATCH, MSG_DONTWAIT,
                     NULL);
    if (n <= 0)
        return n < 0 ? -errno : 0;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    relay->now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    relay->counts[EK_C_RX_BATCHES]++;

    struct ek_rx *end = relay->rx;
    for (uint32_t i = 0; i < (uint32_t)n; i++)
        end += classify(relay, i, end);
    for (struct ek_rx *rx = relay->rx; rx < end; rx++)
        find_flow(relay, rx);
    for (struct ek_rx *rx = relay->rx; rx < end; rx++)
        judge(relay, rx, socket);

    for (uint32_t i = 0; i < (uint32_t)n; i++) {
        struct msghdr *header = &relay->rx_headers[i].msg_hdr;
        header->msg_namelen = sizeof relay->rx_names[i];
        header->msg_controllen = EK_RELAY_CONTROL_BYTES;
        header->msg_flags = 0;
    }
    return n;
}
