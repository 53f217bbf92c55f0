/* Session rows: the control plane writes, everybody reads.
 *
 * ident is stored inside the row's odd window, after the configuration, so a
 * reader of ident alone (the packet path) never sees a generation whose
 * configuration is not there, and a reader of the row gets both of one write.
 *
 * A writer may die at any store. ek_session_recover then tells an untouched
 * configuration from a half-written one by its generation: publish sets that to
 * 0 before it touches anything else, and to its value after everything else. */
#include "seqlock.h"

#define GENERATION_WORD (offsetof(struct ek_session_config, generation) / 8)
#define CLOSED_WORD (offsetof(struct ek_session_config, closed_ns) / 8)
#define END_REASON_WORD (offsetof(struct ek_session_config, end_reason) / 8)
#define END_REASON_BYTE (offsetof(struct ek_session_config, end_reason) % 8)
#define CONFIG_WORDS (sizeof(struct ek_session_config) / 8)

#define IDENT_STATE_SHIFT 56
#define IDENT_STATE_MASK ((uint64_t)0xFF << IDENT_STATE_SHIFT)

_Static_assert(sizeof(struct ek_session_config) % 8 == 0, "copied in words");
_Static_assert(EK_OPTIONS_BYTES % 8 == 0, "copied in words");

static size_t options_bytes(const struct ek_session_config *config)
{
    uint32_t bytes = config->options_bytes;
    return bytes < EK_OPTIONS_BYTES ? bytes : EK_OPTIONS_BYTES;
}

uint64_t ek_session_ident(const struct ek_session_row *row)
{
    return __atomic_load_n(&row->ident, __ATOMIC_ACQUIRE);
}

/* options must hold EK_OPTIONS_BYTES; options_bytes of them are meant. */
enum ek_read ek_session_read(const struct ek_session_row *row, uint64_t *ident,
                             struct ek_session_config *config, uint8_t *options)
{
    for (int i = 0; i < EK_SEQLOCK_TRIES; i++) {
        uint32_t begin = ek_seq_read_begin(&row->sequence);
        if (begin & 1) {
            ek_seq_pause();
            continue;
        }
        *ident = __atomic_load_n(&row->ident, __ATOMIC_RELAXED);
        ek_words_load(config, &row->config, sizeof *config);
        ek_words_load(options, row->options, (options_bytes(config) + 7) & ~(size_t)7);
        if (ek_seq_read_valid(&row->sequence, begin))
            return *ident >> IDENT_STATE_SHIFT == EK_SESSION_FREE ? EK_READ_EMPTY : EK_READ_OK;
    }
    return EK_READ_BUSY;
}

/* The last, partial word of the options is padded with zeros. */
static void store_options(struct ek_session_row *row, const uint8_t *options, size_t bytes)
{
    size_t whole = bytes & ~(size_t)7;
    ek_words_store(row->options, options, whole);
    if (whole < bytes) {
        uint64_t last = 0;
        memcpy(&last, options + whole, bytes - whole);
        ek_words_store(row->options + whole, &last, 8);
    }
}

void ek_session_publish(struct ek_session_row *row, uint64_t ident,
                        const struct ek_session_config *config, const uint8_t *options)
{
    uint64_t words[CONFIG_WORDS];
    memcpy(words, config, sizeof words);
    uint64_t *shared = (uint64_t *)(void *)&row->config;

    uint32_t odd = ek_seq_write_begin(&row->sequence);
    __atomic_store_n(shared + GENERATION_WORD, 0, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    for (size_t i = 0; i < CONFIG_WORDS; i++)
        if (i != GENERATION_WORD)
            __atomic_store_n(shared + i, words[i], __ATOMIC_RELAXED);
    store_options(row, options, options_bytes(config));
    __atomic_store_n(shared + GENERATION_WORD, words[GENERATION_WORD], __ATOMIC_RELEASE);
    __atomic_store_n(&row->ident, ident, __ATOMIC_RELEASE);
    ek_seq_write_end(&row->sequence, odd);
}

/* Only the two words that say how the call ended change: a writer that dies in
 * here leaves a configuration that is still good. */
void ek_session_set_state(struct ek_session_row *row, uint32_t state, uint32_t end_reason,
                          uint64_t now_ns)
{
    uint64_t *shared = (uint64_t *)(void *)&row->config;
    uint8_t bytes[8];
    ek_words_load(bytes, shared + END_REASON_WORD, sizeof bytes);
    bytes[END_REASON_BYTE] = (uint8_t)end_reason;
    uint64_t ident = __atomic_load_n(&row->ident, __ATOMIC_RELAXED);
    ident = (ident & ~IDENT_STATE_MASK) | (uint64_t)state << IDENT_STATE_SHIFT;

    uint32_t odd = ek_seq_write_begin(&row->sequence);
    ek_words_store(shared + END_REASON_WORD, bytes, sizeof bytes);
    __atomic_store_n(shared + CLOSED_WORD, now_ns, __ATOMIC_RELAXED);
    __atomic_store_n(&row->ident, ident, __ATOMIC_RELEASE);
    ek_seq_write_end(&row->sequence, odd);
}

/* The generation stays in ident, so that the next allocation moves on from it. */
void ek_session_free(struct ek_session_row *row)
{
    uint64_t ident = __atomic_load_n(&row->ident, __ATOMIC_RELAXED);
    __atomic_store_n(&row->ident, ident & ~IDENT_STATE_MASK, __ATOMIC_RELEASE);
}

/* For the new writer after the old one's death. 1: the row had been left odd.
 * A row that was being published is free afterwards; one whose state was being
 * set keeps its old state or has the new one. */
int ek_session_recover(struct ek_session_row *row)
{
    uint32_t sequence = __atomic_load_n(&row->sequence, __ATOMIC_RELAXED);
    if (!(sequence & 1))
        return 0;
    struct ek_session_config config;
    ek_words_load(&config, &row->config, sizeof config);
    uint64_t ident = __atomic_load_n(&row->ident, __ATOMIC_RELAXED);
    if (config.generation != (ident & EK_GENERATION_MASK))
        ek_session_free(row);
    ek_seq_write_end(&row->sequence, sequence);
    return 1;
}
