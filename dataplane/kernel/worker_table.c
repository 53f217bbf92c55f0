/* Worker rows: who runs, and what it counted. Each process writes its own row.
 *
 * The part that names the process changes only when a process starts and is
 * under the sequence. Counters and heartbeat are single words. */
#include "seqlock.h"

void ek_worker_open(struct ek_worker_row *row, uint32_t kind, uint32_t index, uint32_t pid,
                    uint32_t incarnation, uint64_t started_unix_ns)
{
    uint32_t odd = ek_seq_write_begin(&row->sequence);
    __atomic_store_n(&row->kind, kind, __ATOMIC_RELAXED);
    __atomic_store_n(&row->index, index, __ATOMIC_RELAXED);
    __atomic_store_n(&row->pid, pid, __ATOMIC_RELAXED);
    __atomic_store_n(&row->incarnation, incarnation, __ATOMIC_RELAXED);
    __atomic_store_n(&row->started_unix_ns, started_unix_ns, __ATOMIC_RELAXED);
    ek_seq_write_end(&row->sequence, odd);
}

void ek_worker_heartbeat(struct ek_worker_row *row, uint64_t now_ns, uint32_t load,
                         uint64_t cpu_ns)
{
    __atomic_store_n(&row->load, load, __ATOMIC_RELAXED);
    __atomic_store_n(&row->cpu_ns, cpu_ns, __ATOMIC_RELAXED);
    __atomic_store_n(&row->heartbeat_ns, now_ns, __ATOMIC_RELAXED);
}

enum ek_read ek_worker_read(const struct ek_worker_row *row, struct ek_worker_row *copy)
{
    for (int i = 0; i < EK_SEQLOCK_TRIES; i++) {
        uint32_t begin = ek_seq_read_begin(&row->sequence);
        if (begin & 1) {
            ek_seq_pause();
            continue;
        }
        copy->kind = __atomic_load_n(&row->kind, __ATOMIC_RELAXED);
        copy->index = __atomic_load_n(&row->index, __ATOMIC_RELAXED);
        copy->pid = __atomic_load_n(&row->pid, __ATOMIC_RELAXED);
        copy->incarnation = __atomic_load_n(&row->incarnation, __ATOMIC_RELAXED);
        copy->started_unix_ns = __atomic_load_n(&row->started_unix_ns, __ATOMIC_RELAXED);
        if (!ek_seq_read_valid(&row->sequence, begin))
            continue;
        copy->sequence = begin;
        copy->load = __atomic_load_n(&row->load, __ATOMIC_RELAXED);
        copy->heartbeat_ns = __atomic_load_n(&row->heartbeat_ns, __ATOMIC_RELAXED);
        copy->cpu_ns = __atomic_load_n(&row->cpu_ns, __ATOMIC_RELAXED);
        ek_words_load(copy->counters, row->counters, sizeof copy->counters);
        return copy->kind == EK_WORKER_NONE ? EK_READ_EMPTY : EK_READ_OK;
    }
    return EK_READ_BUSY;
}

/* One writer, so a load and a store do; no locked instruction. */
void ek_worker_count(struct ek_worker_row *row, uint32_t counter, uint64_t n)
{
    if (counter >= EK_COUNTER_SLOTS)
        return;
    uint64_t *at = row->counters + counter;
    __atomic_store_n(at, __atomic_load_n(at, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
}
