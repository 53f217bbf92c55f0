/* The kernel's interface: what binding.py may call. Like layout.h this text is
 * read by cffi and by the compiler, so it holds only what both accept.
 *
 * Functions that can fail return a negative errno or one of the enums below.
 * Pointers to shared rows point into a mapped region. Nothing here blocks but
 * ek_relay_poll. */

enum ek_peek {
    EK_PEEK_OK = 0,
    EK_PEEK_MALFORMED = 1,
    EK_PEEK_NOT_REQUEST = 2,
    EK_PEEK_NO_USERNAME = 3,
    EK_PEEK_FOREIGN_UFRAG = 4
};

/* What a bounded read of a seqlock row came to. */
enum ek_read {
    EK_READ_OK = 0,
    EK_READ_EMPTY = 1,        /* nothing in the row */
    EK_READ_BUSY = 2          /* being written, or left odd by a dead writer */
};

enum ek_install {
    EK_INSTALL_NEW = 0,
    EK_INSTALL_MOVED = 1,     /* the address was known: now of this session */
    EK_INSTALL_EVICTED = 2    /* new, in the place of the bucket's oldest */
};

struct ek_ufrag {
    uint16_t node_id;
    uint8_t worker;
    uint8_t key_id;
    uint32_t slot;
    uint32_t generation;
};

/* The cluster's MAC keys by key id. Bit i of present: key i may be used. */
struct ek_key_ring {
    uint32_t present;
    uint32_t reserved;
    uint8_t key[16][16];
};

struct ek_hop_header {
    uint16_t count;
    uint16_t source;                   /* relay index */
    uint32_t incarnation;              /* of the relay */
    uint64_t record_index;             /* of the first record */
    uint64_t t_recv_ns;
    uint64_t reserved;
};

struct ek_hop_record {
    const uint8_t *payload;
    uint32_t payload_bytes;
    uint32_t slot;
    uint32_t generation;
    uint16_t client_port;
    uint16_t node_id;
    uint8_t client_ip[16];
    uint8_t local_ip[16];
    uint8_t flags;
    uint8_t transport;
    uint8_t reserved[6];
};

/* A STUN request that Python must judge. */
struct ek_slow_item {
    struct ek_address client;
    uint8_t local_ip[16];
    struct ek_ufrag ufrag;
    uint32_t socket_index;
    uint32_t datagram_bytes;
    char ufrag_text[24];
    uint8_t datagram[2048];
};

struct ek_relay_setup {
    int32_t udp_fds[4];
    uint32_t udp_fd_count;
    int32_t hop_fd;                    /* UDP, not connected */
    struct ek_region_header *flows;
    const struct ek_region_header *sessions;
    const struct ek_region_header *routes;
    struct ek_worker_row *worker_row;
    const struct ek_key_ring *keys;
    uint16_t node_id;
    uint16_t index;
    uint32_t incarnation;
    uint32_t hop_bytes;                /* longest hop datagram */
    uint32_t gather_us;                /* longest wait for company under load */
};

struct ek_relay;

/* demux.c */
enum ek_demux ek_demux(const uint8_t *datagram, size_t bytes);

/* siphash.c */
uint64_t ek_siphash24(const uint8_t *key, const uint8_t *data, size_t bytes);

/* stun_peek.c */
enum ek_peek ek_stun_peek(const uint8_t *datagram, size_t bytes, const struct ek_key_ring *keys,
                          struct ek_ufrag *ufrag, size_t *ufrag_offset);

/* region.c */
void ek_region_init(struct ek_region_header *region, uint32_t kind, uint32_t row_count,
                    uint32_t row_bytes, const uint8_t *boot_id, uint32_t owner_index);
uint64_t ek_region_magic(const struct ek_region_header *region);

/* session_table.c */
uint64_t ek_session_ident(const struct ek_session_row *row);
enum ek_read ek_session_read(const struct ek_session_row *row, uint64_t *ident,
                             struct ek_session_config *config, uint8_t *options);
void ek_session_publish(struct ek_session_row *row, uint64_t ident,
                        const struct ek_session_config *config, const uint8_t *options);
void ek_session_set_state(struct ek_session_row *row, uint32_t state, uint32_t end_reason,
                          uint64_t now_ns);
void ek_session_free(struct ek_session_row *row);
int ek_session_recover(struct ek_session_row *row);

/* status_table.c */
void ek_status_publish(struct ek_status_row *row, const struct ek_status *status);
enum ek_read ek_status_read(const struct ek_status_row *row, struct ek_status *status);

/* route_table.c */
int ek_route_set(struct ek_region_header *region, uint16_t node_id, uint8_t worker,
                 const uint8_t *ip, uint16_t port);
int ek_route_clear(struct ek_region_header *region, uint16_t node_id, uint8_t worker);
int64_t ek_route_find(const struct ek_region_header *region, uint16_t node_id, uint8_t worker,
                      struct ek_route_row *route);
enum ek_read ek_route_read(const struct ek_region_header *region, uint32_t index,
                           struct ek_route_row *route);

/* worker_table.c */
void ek_worker_open(struct ek_worker_row *row, uint32_t kind, uint32_t index, uint32_t pid,
                    uint32_t incarnation, uint64_t started_unix_ns);
void ek_worker_heartbeat(struct ek_worker_row *row, uint64_t now_ns, uint32_t load,
                         uint64_t cpu_ns);
enum ek_read ek_worker_read(const struct ek_worker_row *row, struct ek_worker_row *copy);
void ek_worker_count(struct ek_worker_row *row, uint32_t counter, uint64_t n);

/* flow_table.c */
int ek_flow_check(const struct ek_region_header *region);
uint32_t ek_flow_recover(struct ek_region_header *region);
enum ek_install ek_flow_install(struct ek_region_header *region, const struct ek_flow_row *flow);
enum ek_read ek_flow_lookup(const struct ek_region_header *region,
                            const struct ek_address *client, struct ek_flow_row *flow);
enum ek_read ek_flow_read(const struct ek_region_header *region, uint32_t index,
                          struct ek_flow_row *flow);
uint32_t ek_flow_count_live(const struct ek_region_header *region, uint64_t since_ns);

/* hop.c */
void ek_hop_encode_header(uint8_t *at, const struct ek_hop_header *header);
size_t ek_hop_encode_record(uint8_t *at, const struct ek_hop_record *record);
int ek_hop_parse(const uint8_t *datagram, size_t bytes, struct ek_hop_header *header,
                 struct ek_hop_record *records, size_t record_limit);

/* relay_setup.c */
int ek_relay_create(const struct ek_relay_setup *setup, struct ek_relay **relay);
void ek_relay_destroy(struct ek_relay *relay);

/* relay.c */
int ek_relay_poll(struct ek_relay *relay, int timeout_ms);
const struct ek_slow_item *ek_relay_slow_item(const struct ek_relay *relay, uint32_t i);
int ek_relay_install_and_forward(struct ek_relay *relay, const struct ek_slow_item *item);
void ek_relay_count(struct ek_relay *relay, uint32_t counter);

/* pidfd.c */
int ek_pidfd_getfd(int pidfd, int fd);
