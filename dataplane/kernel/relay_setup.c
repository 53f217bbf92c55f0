/* Making and unmaking a relay: all the memory it will ever use. */
#include "relay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

/* The default slack of 50 µs would stretch a gather of 50 µs to twice that. */
#define TIMER_SLACK_NS 2000
/* The longest payload of a UDP datagram over IPv4. */
#define UDP_PAYLOAD_BYTES 65507

static int check_setup(const struct ek_relay_setup *setup)
{
    if (setup->udp_fd_count == 0 || setup->udp_fd_count > EK_RELAY_SOCKETS ||
        setup->hop_bytes > UDP_PAYLOAD_BYTES ||
        setup->hop_bytes < EK_HOP_HEADER_BYTES + EK_HOP_RECORD_BYTES + EK_MAX_DATAGRAM_BYTES ||
        setup->gather_us > 1000 || setup->index >= EK_MAX_RELAYS ||
        setup->routes->row_count == 0)
        return -EINVAL;
    return ek_flow_check(setup->flows);
}

static void aim_buffers(struct ek_relay *relay)
{
    for (uint32_t i = 0; i < EK_RELAY_BATCH; i++) {
        relay->rx_iovecs[i].iov_base = relay->rx_datagrams[i];
        relay->rx_iovecs[i].iov_len = EK_MAX_DATAGRAM_BYTES;
        struct msghdr *header = &relay->rx_headers[i].msg_hdr;
        header->msg_iov = relay->rx_iovecs + i;
        header->msg_iovlen = 1;
        header->msg_name = relay->rx_names + i;
        header->msg_namelen = sizeof relay->rx_names[i];
        header->msg_control = relay->rx_control[i];
        header->msg_controllen = EK_RELAY_CONTROL_BYTES;
    }
}

/* 0 or -errno. The flow table is this relay's from here on: rows that a
 * predecessor left half-written are freed, all others go on. */
int ek_relay_create(const struct ek_relay_setup *setup, struct ek_relay **out)
{
    int error = check_setup(setup);
    if (error)
        return error;
    int family = 0;
    socklen_t bytes = sizeof family;
    if (getsockopt(setup->hop_fd, SOL_SOCKET, SO_DOMAIN, &family, &bytes) != 0)
        return -errno;
    struct ek_relay *relay = aligned_alloc(EK_CACHE_LINE_BYTES, sizeof *relay);
    uint8_t *hop_datagrams = calloc(EK_RELAY_DESTINATIONS, setup->hop_bytes);
    if (!relay || !hop_datagrams) {
        free(relay);
        free(hop_datagrams);
        return -ENOMEM;
    }
    memset(relay, 0, sizeof *relay);
    memcpy(relay->udp_fds, setup->udp_fds, sizeof relay->udp_fds);
    relay->udp_fd_count = setup->udp_fd_count;
    relay->hop_fd = setup->hop_fd;
    relay->hop_family = family;
    relay->node_id = setup->node_id;
    relay->index = setup->index;
    relay->incarnation = setup->incarnation;
    relay->hop_bytes = setup->hop_bytes;
    relay->gather_ns = (uint64_t)setup->gather_us * 1000;
    relay->flows = setup->flows;
    relay->session_region = setup->sessions;
    relay->sessions = (const struct ek_session_row *)(const void *)(setup->sessions + 1);
    relay->routes = setup->routes;
    relay->worker_row = setup->worker_row;
    relay->keys = *setup->keys;
    relay->hop_datagrams = hop_datagrams;
    aim_buffers(relay);
    ek_flow_recover(relay->flows);
    prctl(PR_SET_TIMERSLACK, TIMER_SLACK_NS);
    *out = relay;
    return 0;
}

void ek_relay_destroy(struct ek_relay *relay)
{
    if (!relay)
        return;
    free(relay->hop_datagrams);
    memset(&relay->keys, 0, sizeof relay->keys);
    free(relay);
}
