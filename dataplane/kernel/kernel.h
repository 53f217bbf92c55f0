/* What every kernel source includes: the layout, the interface, and proof
 * that the compiler lays the structs out as other processes expect them. */
#ifndef EARSHOT_KERNEL_H
#define EARSHOT_KERNEL_H

#include <stddef.h>
#include <stdint.h>

/* Here and not among build.py's flags, see there. */
#pragma GCC diagnostic error "-Wpedantic"

#include "layout.h"

#include "api.h"

#define EK_SIZE(type, bytes) \
    _Static_assert(sizeof(struct type) == (bytes), "size of " #type)
#define EK_AT(type, field, offset) \
    _Static_assert(offsetof(struct type, field) == (offset), #type "." #field)

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "shared memory is little-endian");
_Static_assert(sizeof(void *) == 8, "64-bit only");

EK_SIZE(ek_region_header, 64);
EK_AT(ek_region_header, magic, 0);
EK_AT(ek_region_header, layout_version, 8);
EK_AT(ek_region_header, kind, 12);
EK_AT(ek_region_header, boot_id, 16);
EK_AT(ek_region_header, row_count, 32);
EK_AT(ek_region_header, row_bytes, 36);
EK_AT(ek_region_header, owner_index, 40);

EK_SIZE(ek_session_config, 504);
EK_AT(ek_session_config, remote_fingerprint, 40);
EK_AT(ek_session_config, created_unix_ns, 104);
EK_AT(ek_session_config, closed_ns, 128);
EK_AT(ek_session_config, generation, 136);
EK_AT(ek_session_config, options_bytes, 152);
EK_AT(ek_session_config, sctp_port, 156);
EK_AT(ek_session_config, fingerprint_algorithm, 160);
EK_AT(ek_session_config, end_reason, 169);
EK_AT(ek_session_config, nack, 171);
EK_AT(ek_session_config, ptime_ms, 172);
EK_AT(ek_session_config, mid, 176);
EK_AT(ek_session_config, remote_ufrag, 240);
EK_AT(ek_session_config, reserved1, 497);

EK_SIZE(ek_session_row, 16384);
EK_AT(ek_session_row, ident, 0);
EK_AT(ek_session_row, sequence, 8);
EK_AT(ek_session_row, config, 64);
EK_AT(ek_session_row, options, 568);
EK_AT(ek_session_row, reserved2, 15928);

EK_SIZE(ek_address, 24);
EK_AT(ek_address, port, 16);
EK_AT(ek_address, transport, 18);

EK_SIZE(ek_status, 360);
EK_AT(ek_status, state, 8);
EK_AT(ek_status, client, 16);
EK_AT(ek_status, local, 40);
EK_AT(ek_status, first_stun_ns, 64);
EK_AT(ek_status, packets_received, 136);
EK_AT(ek_status, jitter_us, 232);
EK_AT(ek_status, detail, 264);

EK_SIZE(ek_status_row, 512);
EK_AT(ek_status_row, sequence, 0);
EK_AT(ek_status_row, status, 16);
EK_AT(ek_status_row, reserved2, 376);

EK_SIZE(ek_flow_row, 64);
EK_AT(ek_flow_row, sequence, 0);
EK_AT(ek_flow_row, client_port, 4);
EK_AT(ek_flow_row, transport, 6);
EK_AT(ek_flow_row, worker, 7);
EK_AT(ek_flow_row, client_ip, 8);
EK_AT(ek_flow_row, local_ip, 24);
EK_AT(ek_flow_row, slot, 40);
EK_AT(ek_flow_row, generation, 44);
EK_AT(ek_flow_row, node_id, 48);
EK_AT(ek_flow_row, last_seen_ns, 56);

EK_SIZE(ek_route_row, 32);
EK_AT(ek_route_row, sequence, 0);
EK_AT(ek_route_row, node_id, 4);
EK_AT(ek_route_row, worker, 6);
EK_AT(ek_route_row, valid, 7);
EK_AT(ek_route_row, ip, 8);
EK_AT(ek_route_row, port, 24);

EK_SIZE(ek_worker_row, 832);
EK_AT(ek_worker_row, sequence, 0);
EK_AT(ek_worker_row, kind, 4);
EK_AT(ek_worker_row, index, 8);
EK_AT(ek_worker_row, pid, 12);
EK_AT(ek_worker_row, incarnation, 16);
EK_AT(ek_worker_row, load, 20);
EK_AT(ek_worker_row, started_unix_ns, 24);
EK_AT(ek_worker_row, heartbeat_ns, 32);
EK_AT(ek_worker_row, cpu_ns, 40);
EK_AT(ek_worker_row, socket_drops, 48);
EK_AT(ek_worker_row, counters, 64);

EK_SIZE(ek_hop_header, 32);
EK_SIZE(ek_hop_record, 64);
EK_SIZE(ek_ufrag, 12);
EK_SIZE(ek_key_ring, 264);

#endif
