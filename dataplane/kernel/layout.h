/* The only description of Earshot's shared memory and of the kernel's enums.
 *
 * cffi reads this text as it stands, and so does the compiler, so the file
 * holds nothing but what both accept: integer macros, enums and plain structs
 * with explicit padding. kernel.h asserts every size and offset.
 *
 * Every region is one POSIX shared-memory segment that starts with an
 * ek_region_header, followed by row_count rows of row_bytes each. Who writes:
 *
 *   region    one row per            writer
 *   sessions  call slot              the control plane
 *   status    call slot              the transceiver that owns the call
 *   flows     client address         the relay worker of that index
 *   routes    (node, transceiver)    the control plane
 *   workers   process                that process
 *
 * Addresses are 16 bytes; IPv4 is mapped (::ffff:a.b.c.d). Ports are in host
 * order. Times are CLOCK_MONOTONIC nanoseconds (one clock for the machine)
 * unless the name says unix.
 */

#define EK_MAGIC 0x544F485352414531
#define EK_LAYOUT_VERSION 1
#define EK_CACHE_LINE_BYTES 64

#define EK_MAX_RELAYS 64
#define EK_MAX_TRANSCEIVERS 64
#define EK_WORKER_ROWS 130
#define EK_WORKER_ROW_TRANSCEIVER_0 64
#define EK_WORKER_ROW_CONTROL_PLANE 128
#define EK_WORKER_ROW_SUPERVISOR 129

#define EK_FLOW_WAYS 8
#define EK_GENERATION_MASK 0xFFFFFF
#define EK_COUNTER_SLOTS 96

#define EK_CALL_ID_BYTES 40
#define EK_REMOTE_UFRAG_BYTES 257
#define EK_OPTIONS_BYTES 15360

#define EK_UFRAG_CHARS 24
#define EK_UFRAG_BYTES 18
#define EK_UFRAG_VERSION 1

/* The largest datagram a client may send us; what is longer is dropped. */
#define EK_MAX_DATAGRAM_BYTES 2048

/* Hop datagram: header, then count records (DESIGN section 4). Big-endian. */
#define EK_HOP_MAGIC 0x4548
#define EK_HOP_VERSION 1
#define EK_HOP_HEADER_BYTES 32
#define EK_HOP_RECORD_BYTES 48

/* No payload type, header extension or backend. */
#define EK_NONE 255

enum ek_region_kind {
    EK_REGION_SESSIONS = 1,
    EK_REGION_STATUS = 2,
    EK_REGION_FLOWS = 3,
    EK_REGION_ROUTES = 4,
    EK_REGION_WORKERS = 5
};

enum ek_worker_kind {
    EK_WORKER_NONE = 0,
    EK_WORKER_RELAY = 1,
    EK_WORKER_TRANSCEIVER = 2,
    EK_WORKER_CONTROL_PLANE = 3,
    EK_WORKER_SUPERVISOR = 4
};

/* What the control plane says of a slot. */
enum ek_session_state {
    EK_SESSION_FREE = 0,
    EK_SESSION_OFFERED = 1,   /* live: answered, and until it ends */
    EK_SESSION_CLOSING = 2,   /* hang-up asked; the transceiver is to end it */
    EK_SESSION_ENDED = 3      /* tombstone: late checks are answered 403 */
};

/* What the transceiver says of a call. */
enum ek_call_state {
    EK_CALL_NONE = 0,
    EK_CALL_ICE = 1,          /* a STUN check was authenticated */
    EK_CALL_DTLS = 2,         /* the handshake has begun */
    EK_CALL_CONNECTED = 3,    /* SRTP keys are in use */
    EK_CALL_ENDED = 4
};

enum ek_end_reason {
    EK_END_NONE = 0,
    EK_END_HANGUP = 1,              /* POST .../hangup */
    EK_END_CLIENT_CLOSED = 2,       /* DTLS close_notify */
    EK_END_CONSENT_EXPIRED = 3,     /* 30 s without a valid check */
    EK_END_DTLS_FAILED = 4,         /* handshake failed or wrong fingerprint */
    EK_END_DTLS_TIMEOUT = 5,
    EK_END_BACKEND_STOPPED = 6,     /* the backend sent STOP */
    EK_END_NEVER_CONNECTED = 7,     /* no STUN check came in time */
    EK_END_TRANSCEIVER_DIED = 8,
    EK_END_SHUTDOWN = 9,            /* the node stops */
    EK_END_TIME_LIMIT = 10,
    EK_END_INTERNAL_ERROR = 11
};

enum ek_backend_state {
    EK_BACKEND_NONE = 0,
    EK_BACKEND_CONNECTING = 1,
    EK_BACKEND_STARTED = 2,         /* START sent, READY awaited */
    EK_BACKEND_READY = 3,
    EK_BACKEND_UNAVAILABLE = 4,     /* nobody listens; tried again */
    EK_BACKEND_REFUSED = 5,         /* it answered what we cannot serve */
    EK_BACKEND_LOST = 6             /* it died; tried again */
};

enum ek_transport {
    EK_TRANSPORT_NONE = 0,
    EK_TRANSPORT_UDP = 1,
    EK_TRANSPORT_TCP = 2
};

enum ek_fingerprint_algorithm {
    EK_FINGERPRINT_SHA256 = 1,
    EK_FINGERPRINT_SHA384 = 2,
    EK_FINGERPRINT_SHA512 = 3
};

enum ek_codec {
    EK_CODEC_OPUS = 1,
    EK_CODEC_PCMU = 2,
    EK_CODEC_PCMA = 3
};

/* Record flags on the hop. */
enum ek_hop_flags {
    EK_HOP_STUN = 1,
    EK_HOP_DTLS = 2,
    EK_HOP_RTP = 4,
    EK_HOP_NEW_FLOW = 8       /* the relay verified MESSAGE-INTEGRITY itself */
};

/* RFC 7983 section 7, by the first byte. */
enum ek_demux {
    EK_DEMUX_NONE = 0,
    EK_DEMUX_STUN = 1,        /* 0..3 */
    EK_DEMUX_DTLS = 2,        /* 20..63 */
    EK_DEMUX_RTP = 3          /* 128..191, RTCP included */
};

/* Every counter and every drop, named once: metrics, tests and the admin API
 * use these names in lower case without the prefix. A datagram that a relay
 * received ends in exactly one of FORWARDED and the relay's DROP_*.
 * A record that a transceiver received ends in exactly one of RECORDS_HANDLED
 * and the transceiver's DROP_*. */
enum ek_counter {
    /* relay */
    EK_C_RX_DATAGRAMS = 0,
    EK_C_RX_BYTES = 1,
    EK_C_FORWARDED = 2,
    EK_C_HOP_TX_DATAGRAMS = 3,
    EK_C_SLOW_PATH = 4,
    EK_C_FLOWS_INSTALLED = 5,
    EK_C_FLOWS_EVICTED = 6,
    EK_C_RX_BATCHES = 7,
    EK_C_DROP_EMPTY = 8,
    EK_C_DROP_OVERSIZE = 9,
    EK_C_DROP_DEMUX = 10,
    EK_C_DROP_STUN_MALFORMED = 11,
    EK_C_DROP_STUN_NOT_REQUEST = 12,
    EK_C_DROP_STUN_NO_USERNAME = 13,
    EK_C_DROP_STUN_FOREIGN_UFRAG = 14,
    EK_C_DROP_STUN_STALE_GENERATION = 15,
    EK_C_DROP_STUN_BAD_INTEGRITY = 16,
    EK_C_DROP_UNKNOWN_FLOW = 17,
    EK_C_DROP_STALE_FLOW = 18,
    EK_C_DROP_NO_ROUTE = 19,
    EK_C_DROP_SLOW_PATH_FULL = 20,
    EK_C_DROP_HOP_SEND = 21,
    EK_C_KERNEL_RX_OVERFLOW = 22,     /* lost in the public socket, not in RX_DATAGRAMS */

    /* transceiver */
    EK_C_HOP_RX_DATAGRAMS = 32,
    EK_C_HOP_RX_RECORDS = 33,
    EK_C_HOP_RECORDS_LOST = 34,       /* gaps in the relays' record index */
    EK_C_DROP_HOP_MALFORMED = 35,     /* whole hop datagrams */
    EK_C_RECORDS_HANDLED = 36,
    EK_C_DROP_RECORD_NO_SESSION = 37,
    EK_C_DROP_RECORD_STALE_GENERATION = 38,
    EK_C_DROP_RECORD_UNVERIFIED_ADDRESS = 39,
    EK_C_DROP_SESSION_STUN_MALFORMED = 40,
    EK_C_DROP_SESSION_STUN_BAD_INTEGRITY = 41,
    EK_C_DROP_SESSION_STUN_BAD_USERNAME = 42,
    EK_C_DROP_DTLS_MALFORMED = 43,
    EK_C_DROP_DTLS_LIMIT = 44,
    EK_C_DROP_SRTP_NO_KEYS = 45,
    EK_C_DROP_SRTP_AUTH = 46,
    EK_C_DROP_SRTP_REPLAY = 47,
    EK_C_DROP_RTP_MALFORMED = 48,
    EK_C_DROP_RTP_PAYLOAD_TYPE = 49,
    EK_C_DROP_RTP_SSRC = 50,
    EK_C_DROP_RTP_LATE = 51,
    EK_C_DROP_RTP_DUPLICATE = 52,
    EK_C_DROP_RTCP_MALFORMED = 53,
    EK_C_TX_DATAGRAMS = 54,
    EK_C_TX_BYTES = 55,
    EK_C_TX_ERRORS = 56,
    EK_C_CALLS_STARTED = 57,
    EK_C_CALLS_ENDED = 58,
    EK_C_STUN_REFUSED = 59,           /* 403 to a check of an ended call */
    EK_C_PLAYOUT_FRAMES = 60,
    EK_C_PLAYOUT_LATE = 61,           /* sent more than 5 ms after the deadline */
    EK_C_BACKEND_CONNECTS = 62,
    EK_C_BACKEND_AUDIO_DROPPED = 63,  /* frames dropped towards a stalled backend */
    EK_C_BACKEND_BAD_FRAME = 64,
    EK_C_DROP_OPUS_INVALID = 65,
    EK_C_KERNEL_HOP_OVERFLOW = 66,
    EK_C_DROP_SCTP = 67,              /* packets inside DTLS, and texts nobody took */
    EK_C_DROP_RECORD_INTERNAL_ERROR = 68,
    EK_C_DROP_SESSION_STUN_REPLAY = 69,   /* a check seen before, from elsewhere */

    /* control plane */
    EK_C_OFFERS = 80,
    EK_C_OFFERS_REFUSED = 81,
    EK_C_CALLS_HANGUP = 82
};

struct ek_region_header {
    uint64_t magic;
    uint32_t layout_version;
    uint32_t kind;
    uint8_t boot_id[16];
    uint32_t row_count;
    uint32_t row_bytes;
    uint32_t owner_index;
    uint32_t reserved[5];
};

/* What the control plane agreed with the client. Read and written whole,
 * under the row's sequence. */
struct ek_session_config {
    char call_id[40];                  /* "rtc_..." NUL padded */
    uint8_t remote_fingerprint[64];
    uint64_t created_unix_ns;
    uint64_t offer_deadline_ns;        /* first check must come before */
    uint64_t end_deadline_ns;          /* 0: no limit on the call's length */
    uint64_t closed_ns;                /* when CLOSING or ENDED was set */
    uint32_t generation;
    uint32_t local_ssrc;
    uint32_t remote_ssrc;              /* 0: not announced */
    uint32_t sctp_max_message_bytes;
    uint32_t options_bytes;            /* length of the session options, JSON */
    uint16_t sctp_port;                /* 0: no data channel */
    uint16_t backend_id;               /* index in the configuration */
    uint8_t fingerprint_algorithm;
    uint8_t codec;
    uint8_t audio_payload_type;
    uint8_t red_payload_type;          /* EK_NONE: not agreed */
    uint8_t dtmf_payload_type;         /* EK_NONE: not agreed */
    uint8_t audio_level_ext_id;        /* EK_NONE: not agreed */
    uint8_t mid_ext_id;                /* EK_NONE: not agreed */
    uint8_t client_sends;              /* direction of the audio m-line */
    uint8_t client_receives;
    uint8_t end_reason;
    uint8_t dtls_active;               /* 1: we are the DTLS client */
    uint8_t nack;                      /* 1: generic NACK agreed */
    uint16_t ptime_ms;
    uint16_t reserved0;
    char mid[64];                      /* of the audio m-line, NUL padded */
    char remote_ufrag[257];            /* NUL terminated */
    uint8_t reserved1[7];
};

/* ident is one atomic word, the only field the packet path reads:
 * state << 56 | worker << 48 | previous generation << 24 | generation. */
struct ek_session_row {
    uint64_t ident;
    uint32_t sequence;
    uint32_t reserved0;
    uint8_t reserved1[48];
    struct ek_session_config config;
    uint8_t options[15360];
    uint8_t reserved2[456];
};

struct ek_address {
    uint8_t ip[16];
    uint16_t port;
    uint8_t transport;
    uint8_t reserved[5];
};

struct ek_status {
    uint32_t generation;
    uint32_t incarnation;              /* of the transceiver that owns the call */
    uint8_t state;                     /* ek_call_state */
    uint8_t end_reason;
    uint8_t backend_state;
    uint8_t worker;
    uint16_t srtp_profile;             /* RFC 5764/7714 number; 0 before */
    uint16_t relay;                    /* the relay the last check came through */
    struct ek_address client;
    struct ek_address local;
    uint64_t first_stun_ns;
    uint64_t dtls_started_ns;
    uint64_t connected_ns;
    uint64_t first_audio_in_ns;
    uint64_t first_audio_out_ns;
    uint64_t backend_ready_ns;
    uint64_t last_activity_ns;
    uint64_t last_consent_ns;
    uint64_t ended_ns;
    uint64_t packets_received;
    uint64_t bytes_received;
    uint64_t packets_sent;
    uint64_t bytes_sent;
    uint64_t packets_expected;
    uint64_t packets_lost;             /* never arrived */
    uint64_t packets_repaired;         /* lost, then heard all the same */
    uint64_t packets_late;
    uint64_t packets_duplicate;
    uint64_t samples_concealed;        /* at 48 kHz */
    uint64_t audio_dropped_frames;     /* towards a stalled backend */
    uint64_t drops;                    /* everything else this call threw away */
    uint32_t jitter_us;
    uint32_t rtt_us;                   /* 0: not known yet */
    uint32_t playout_queue_ms;
    uint32_t playout_delay_us;         /* last frame's lateness against its deadline */
    uint32_t uplink_delay_us;          /* receive at the relay to PCM at the backend */
    uint32_t remote_packets_lost;      /* what the client reports of our stream */
    uint32_t remote_jitter_us;
    uint32_t remote_fraction_lost;     /* of 256 */
    char detail[96];                   /* why, in words; NUL padded */
};

struct ek_status_row {
    uint32_t sequence;
    uint32_t reserved0;
    uint64_t reserved1;
    struct ek_status status;
    uint8_t reserved2[136];
};

/* One cache line. sequence is odd while the row is being written;
 * transport EK_TRANSPORT_NONE marks a free row. */
struct ek_flow_row {
    uint32_t sequence;
    uint16_t client_port;
    uint8_t transport;
    uint8_t worker;
    uint8_t client_ip[16];
    uint8_t local_ip[16];
    uint32_t slot;
    uint32_t generation;
    uint16_t node_id;
    uint16_t reserved0;
    uint32_t reserved1;
    uint64_t last_seen_ns;
};

struct ek_route_row {
    uint32_t sequence;
    uint16_t node_id;
    uint8_t worker;
    uint8_t valid;
    uint8_t ip[16];
    uint16_t port;
    uint16_t reserved0;
    uint32_t reserved1;
};

struct ek_worker_row {
    uint32_t sequence;
    uint32_t kind;                     /* ek_worker_kind; NONE: never started */
    uint32_t index;
    uint32_t pid;
    uint32_t incarnation;
    uint32_t load;                     /* calls or flows it holds */
    uint64_t started_unix_ns;
    uint64_t heartbeat_ns;
    uint64_t cpu_ns;
    uint32_t socket_drops[4];          /* a relay's: the kernel's count, last seen */
    uint64_t counters[96];
};
