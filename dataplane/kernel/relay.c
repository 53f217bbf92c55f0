/* A relay worker's loop: poll → receive → verdicts → flush, until Python has
 * something to do. */
#include "relay.h"

#include <errno.h>
#include <linux/sock_diag.h>
#include <poll.h>
#include <string.h>
#include <time.h>

/* How often the kernel's count of datagrams lost in the sockets is read. */
#define OVERFLOW_PERIOD_NS 50000000
/* A gather pays when it will bring at least so many datagrams. */
#define GATHER_WORTH 4
#define RATE_WINDOW_NS 2000000

static uint64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Losses that the kernel counted in the sockets, also while no worker lived:
 * the sockets outlive it, and the last count seen stands in the worker row. A
 * smaller count than that means new sockets. */
static void count_overflow(struct ek_relay *relay)
{
    if (relay->now_ns - relay->overflow_read_ns < OVERFLOW_PERIOD_NS)
        return;
    relay->overflow_read_ns = relay->now_ns;
    for (uint32_t i = 0; i < relay->udp_fd_count; i++) {
        uint32_t info[SK_MEMINFO_VARS];
        socklen_t bytes = sizeof info;
        if (getsockopt(relay->udp_fds[i], SOL_SOCKET, SO_MEMINFO, info, &bytes) != 0 ||
            bytes < sizeof info)
            continue;
        uint32_t *seen = relay->worker_row->socket_drops + i;
        uint32_t drops = info[SK_MEMINFO_DROPS];
        uint32_t before = __atomic_load_n(seen, __ATOMIC_RELAXED);
        relay->counts[EK_C_KERNEL_RX_OVERFLOW] += drops >= before ? drops - before : drops;
        __atomic_store_n(seen, drops, __ATOMIC_RELAXED);
    }
}

static void commit_counts(struct ek_relay *relay)
{
    for (uint32_t i = 0; i < EK_RELAY_COUNTERS; i++) {
        if (relay->counts[i]) {
            ek_worker_count(relay->worker_row, i, relay->counts[i]);
            relay->counts[i] = 0;
        }
    }
}

static void flush(struct ek_relay *relay)
{
    ek_relay_flush(relay);
    commit_counts(relay);
}

static void measure_rate(struct ek_relay *relay, uint32_t received)
{
    relay->received += received;
    relay->rate_count += received;
    uint64_t elapsed_ns = relay->now_ns - relay->rate_since_ns;
    if (elapsed_ns < RATE_WINDOW_NS)
        return;
    relay->gather_expected = (uint32_t)(relay->rate_count * relay->gather_ns / elapsed_ns);
    relay->rate_count = 0;
    relay->rate_since_ns = relay->now_ns;
}

/* Every socket may have something: try them without asking first. */
static void look_at_all(struct ek_relay *relay)
{
    relay->ready = (1u << relay->udp_fd_count) - 1;
    relay->looked_ns = relay->now_ns;
}

/* Under load a wake-up per datagram costs more than the datagram. So when enough
 * are on their way, let them come for a while and take them together, as network
 * cards moderate their interrupts (DESIGN section 4). Nothing is held meanwhile
 * but what arrives in it. 0: a signal came. */
static int gather(struct ek_relay *relay)
{
    struct timespec while_ns = {.tv_nsec = (long)relay->gather_ns};
    look_at_all(relay);
    return clock_nanosleep(CLOCK_MONOTONIC, 0, &while_ns, NULL) == 0;
}

/* 0: nothing came in time, or a signal did. */
static int wait_for_datagrams(struct ek_relay *relay, uint64_t deadline_ns)
{
    uint64_t now_ns = monotonic_ns();
    relay->now_ns = now_ns;
    count_overflow(relay);
    struct pollfd fds[EK_RELAY_SOCKETS];
    for (uint32_t i = 0; i < relay->udp_fd_count; i++)
        fds[i] = (struct pollfd){.fd = relay->udp_fds[i], .events = POLLIN};
    uint64_t left_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
    int timeout_ms = (int)((left_ns + 999999) / 1000000);
    int n = poll(fds, relay->udp_fd_count, timeout_ms);
    for (uint32_t i = 0; n > 0 && i < relay->udp_fd_count; i++)
        if (fds[i].revents)
            relay->ready |= 1u << i;
    return n > 0;
}

/* The queues are empty: wait in the way that the load asks for. A gather that
 * brought nothing is followed by a poll, and so ends with the load. */
static int rest(struct ek_relay *relay, uint64_t deadline_ns)
{
    uint32_t received = relay->received;
    relay->received = 0;
    if (received && relay->gather_expected >= GATHER_WORTH)
        return gather(relay);
    return wait_for_datagrams(relay, deadline_ns);
}

/* One batch from each socket that may have one. 1: some may have more. */
static int receive_round(struct ek_relay *relay)
{
    for (uint32_t i = 0; i < relay->udp_fd_count; i++) {
        if (!(relay->ready & 1u << i))
            continue;
        int n = ek_relay_receive(relay, i);
        if (n == -EBADF || n == -ENOTSOCK || n == -EFAULT || n == -EINVAL)
            return n;
        if (n < EK_RELAY_BATCH)
            relay->ready &= ~(1u << i);
        if (n > 0)
            measure_rate(relay, (uint32_t)n);
    }
    return relay->ready != 0;
}

/* Returns how many slow items there are: at once when the sockets are empty and
 * there is one, else after timeout_ms at the latest, however much comes in.
 * Items are good until the next poll. 0 also after a signal; -errno when a
 * socket is unusable. */
int ek_relay_poll(struct ek_relay *relay, int timeout_ms)
{
    relay->slow_count = 0;
    uint64_t deadline_ns = monotonic_ns() + (uint64_t)(timeout_ms > 0 ? timeout_ms : 0) * 1000000u;
    int go_on = 1;
    if (relay->ready)
        look_at_all(relay);
    else
        go_on = wait_for_datagrams(relay, deadline_ns);
    for (uint32_t round = 0; go_on; round++) {
        int more = receive_round(relay);
        if (more < 0) {
            flush(relay);
            return more;
        }
        if (!more) {
            flush(relay);
            go_on = !relay->slow_count && relay->now_ns < deadline_ns && rest(relay, deadline_ns);
            continue;
        }
        if (relay->now_ns - relay->looked_ns >= EK_RELAY_HOLD_NS) {
            flush(relay);
            look_at_all(relay);
        }
        go_on = relay->now_ns < deadline_ns &&
                !(relay->slow_count && round >= EK_RELAY_ROUNDS_BEFORE_SLOW);
    }
    ek_relay_flush(relay);
    count_overflow(relay);
    commit_counts(relay);
    return (int)relay->slow_count;
}

const struct ek_slow_item *ek_relay_slow_item(const struct ek_relay *relay, uint32_t i)
{
    return i < relay->slow_count ? relay->slow + i : NULL;
}

static struct ek_flow_row flow_of(const struct ek_slow_item *item, uint64_t now_ns)
{
    struct ek_flow_row flow = {
        .client_port = item->client.port,
        .transport = item->client.transport,
        .worker = item->ufrag.worker,
        .slot = item->ufrag.slot,
        .generation = item->ufrag.generation,
        .node_id = item->ufrag.node_id,
        .last_seen_ns = now_ns,
    };
    memcpy(flow.client_ip, item->client.ip, sizeof flow.client_ip);
    memcpy(flow.local_ip, item->local_ip, sizeof flow.local_ip);
    return flow;
}

/* For a slow item whose MESSAGE-INTEGRITY Python has verified. 1: forwarded.
 * 0: dropped, counted by the reason; the flow stands unless the call is gone. */
int ek_relay_install_and_forward(struct ek_relay *relay, const struct ek_slow_item *item)
{
    const struct ek_ufrag *ufrag = &item->ufrag;
    if (ek_relay_session_state(relay, ufrag->node_id, ufrag->slot, ufrag->generation) ==
        EK_SESSION_FREE) {
        ek_relay_end(relay, EK_C_DROP_STUN_STALE_GENERATION, 1);
        commit_counts(relay);
        return 0;
    }
    relay->now_ns = monotonic_ns();
    struct ek_flow_row flow = flow_of(item, relay->now_ns);
    enum ek_install installed = ek_flow_install(relay->flows, &flow);
    relay->counts[EK_C_FLOWS_INSTALLED]++;
    relay->counts[EK_C_FLOWS_EVICTED] += installed == EK_INSTALL_EVICTED;

    struct ek_hop_record record = {
        .payload = item->datagram,
        .payload_bytes = item->datagram_bytes,
        .slot = flow.slot,
        .generation = flow.generation,
        .client_port = flow.client_port,
        .node_id = flow.node_id,
        .flags = EK_HOP_STUN | EK_HOP_NEW_FLOW,
        .transport = flow.transport,
    };
    memcpy(record.client_ip, flow.client_ip, sizeof record.client_ip);
    memcpy(record.local_ip, flow.local_ip, sizeof record.local_ip);
    ek_relay_queue(relay, flow.worker, &record);
    ek_relay_flush(relay);
    int forwarded = relay->counts[EK_C_FORWARDED] != 0;
    commit_counts(relay);
    return forwarded;
}

/* A drop ends a slow item; any other counter just counts. */
void ek_relay_count(struct ek_relay *relay, uint32_t counter)
{
    if (counter >= EK_C_DROP_EMPTY && counter <= EK_C_DROP_HOP_SEND)
        ek_worker_count(relay->worker_row, EK_C_RX_DATAGRAMS, 1);
    ek_worker_count(relay->worker_row, counter, 1);
}
