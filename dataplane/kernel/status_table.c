/* Status rows: the transceiver that owns the call writes, everybody reads. */
#include "seqlock.h"

_Static_assert(sizeof(struct ek_status) % 8 == 0, "copied in words");

void ek_status_publish(struct ek_status_row *row, const struct ek_status *status)
{
    uint32_t odd = ek_seq_write_begin(&row->sequence);
    ek_words_store(&row->status, status, sizeof *status);
    ek_seq_write_end(&row->sequence, odd);
}

/* A row that was cleared or never written reads as EK_READ_EMPTY. */
enum ek_read ek_status_read(const struct ek_status_row *row, struct ek_status *status)
{
    for (int i = 0; i < EK_SEQLOCK_TRIES; i++) {
        uint32_t begin = ek_seq_read_begin(&row->sequence);
        if (begin & 1) {
            ek_seq_pause();
            continue;
        }
        ek_words_load(status, &row->status, sizeof *status);
        if (ek_seq_read_valid(&row->sequence, begin))
            return status->state == EK_CALL_NONE ? EK_READ_EMPTY : EK_READ_OK;
    }
    return EK_READ_BUSY;
}
