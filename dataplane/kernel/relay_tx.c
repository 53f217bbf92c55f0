/* Out of the relay: records gather in one hop datagram per transceiver, and all
 * begun datagrams leave in one sendmmsg. */
#include "relay.h"

#include <errno.h>
#include <string.h>

static void set_address(struct ek_relay *relay, struct ek_relay_destination *destination,
                        const struct ek_route_row *route)
{
    memset(&destination->address, 0, sizeof destination->address);
    if (relay->hop_family == AF_INET) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(route->port)};
        memcpy(&address.sin_addr, route->ip + 12, 4);
        memcpy(&destination->address, &address, sizeof address);
        destination->address_bytes = sizeof address;
        return;
    }
    destination->address.sin6_family = AF_INET6;
    destination->address.sin6_port = htons(route->port);
    memcpy(&destination->address.sin6_addr, route->ip, 16);
    destination->address_bytes = sizeof destination->address;
}

/* Once per hop datagram: a route may change between two. 0: there is none. */
static int resolve(struct ek_relay *relay, struct ek_relay_destination *destination)
{
    struct ek_route_row route;
    if (ek_route_read(relay->routes, destination->route_index, &route) != EK_READ_OK ||
        route.node_id != destination->node_id || route.worker != destination->worker) {
        int64_t index = ek_route_find(relay->routes, destination->node_id, destination->worker,
                                      &route);
        if (index < 0)
            return 0;
        destination->route_index = (uint32_t)index;
    }
    set_address(relay, destination, &route);
    return 1;
}

/* NULL when more transceivers are in use than the relay has room for. */
static struct ek_relay_destination *find_destination(struct ek_relay *relay, uint16_t node_id,
                                                     uint8_t worker)
{
    const uint32_t mask = EK_RELAY_DESTINATIONS * 4 - 1;
    uint32_t probe = (((uint32_t)node_id << 8 | worker) * 2654435761u >> 16) & mask;
    while (relay->destination_of[probe]) {
        struct ek_relay_destination *destination =
            relay->destinations + relay->destination_of[probe] - 1;
        if (destination->node_id == node_id && destination->worker == worker)
            return destination;
        probe = (probe + 1) & mask;
    }
    if (relay->destination_count == EK_RELAY_DESTINATIONS)
        return NULL;
    struct ek_relay_destination *destination = relay->destinations + relay->destination_count;
    destination->datagram =
        relay->hop_datagrams + (size_t)relay->destination_count * relay->hop_bytes;
    destination->node_id = node_id;
    destination->worker = worker;
    relay->destination_of[probe] = (uint16_t)++relay->destination_count;
    return destination;
}

/* The record ends here as forwarded or dropped, now or in the flush. */
void ek_relay_queue(struct ek_relay *relay, uint8_t worker, const struct ek_hop_record *record)
{
    struct ek_relay_destination *destination =
        find_destination(relay, record->node_id, worker);
    if (!destination) {
        ek_relay_end(relay, EK_C_DROP_NO_ROUTE, 1);
        return;
    }
    if (destination->bytes + EK_HOP_RECORD_BYTES + record->payload_bytes > relay->hop_bytes)
        ek_relay_flush(relay);
    if (destination->bytes == 0) {
        if (!resolve(relay, destination)) {
            ek_relay_end(relay, EK_C_DROP_NO_ROUTE, 1);
            return;
        }
        destination->bytes = EK_HOP_HEADER_BYTES;
        destination->record_count = 0;
        destination->t_recv_ns = relay->now_ns;
        relay->open[relay->open_count++] = (uint16_t)(destination - relay->destinations);
    }
    destination->bytes +=
        (uint32_t)ek_hop_encode_record(destination->datagram + destination->bytes, record);
    destination->record_count++;
}

static void close_datagram(struct ek_relay *relay, struct ek_relay_destination *destination,
                           uint32_t i)
{
    struct ek_hop_header header = {
        .count = (uint16_t)destination->record_count,
        .source = relay->index,
        .incarnation = relay->incarnation,
        .record_index = destination->record_index,
        .t_recv_ns = destination->t_recv_ns,
    };
    ek_hop_encode_header(destination->datagram, &header);
    destination->record_index += destination->record_count;
    relay->tx_iovecs[i].iov_base = destination->datagram;
    relay->tx_iovecs[i].iov_len = destination->bytes;
    relay->tx_headers[i].msg_hdr = (struct msghdr){
        .msg_name = &destination->address,
        .msg_namelen = destination->address_bytes,
        .msg_iov = relay->tx_iovecs + i,
        .msg_iovlen = 1,
    };
    destination->bytes = 0;
}

static void end_datagrams(struct ek_relay *relay, uint32_t from, uint32_t to, uint32_t counter)
{
    for (uint32_t i = from; i < to; i++)
        ek_relay_end(relay, counter, relay->destinations[relay->open[i]].record_count);
}

/* sendmmsg stops at the first datagram that it cannot send. That one is lost
 * (real-time media is not worth a second try) and the rest go on. */
void ek_relay_flush(struct ek_relay *relay)
{
    uint32_t count = relay->open_count;
    for (uint32_t i = 0; i < count; i++)
        close_datagram(relay, relay->destinations + relay->open[i], i);
    for (uint32_t sent = 0; sent < count;) {
        int n = sendmmsg(relay->hop_fd, relay->tx_headers + sent, count - sent, MSG_DONTWAIT);
        if (n > 0) {
            relay->counts[EK_C_HOP_TX_DATAGRAMS] += (uint32_t)n;
            end_datagrams(relay, sent, sent + (uint32_t)n, EK_C_FORWARDED);
            sent += (uint32_t)n;
        } else if (n == 0 || errno != EINTR) {
            end_datagrams(relay, sent, sent + 1, EK_C_DROP_HOP_SEND);
            sent++;
        }
    }
    relay->open_count = 0;
}
