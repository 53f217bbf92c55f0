/* Rows that one writer changes and anybody reads without waiting for it.
 *
 * The writer makes the row's sequence odd, stores the payload, and makes the
 * sequence even. A reader copies the payload between two loads of the same even
 * sequence. Under the C11 memory model that needs:
 *
 *   writer  sequence := odd (relaxed)          reader  s1 := sequence (acquire)
 *           fence (release)                            payload copied (relaxed)
 *           payload stored (relaxed)                   fence (acquire)
 *           sequence := even (release)                 s2 := sequence (relaxed)
 *
 * Without the release fence a payload store may become visible before the odd
 * sequence, and a reader takes a torn row for a whole one. Without the acquire
 * fence the second load of the sequence may be done before the copy. The
 * payload is copied in atomic words because both sides touch it at once: a
 * plain copy would be a data race, which C11 leaves undefined
 * (H.-J. Boehm, "Can seqlocks get along with programming language memory
 * models?", MSPC 2012). docs/models/seqlock.pml checks this.
 *
 * A writer may die at any store. It leaves the sequence odd; the next writer
 * of the row starts from the odd value, so readers wait, never believe. */
#ifndef EARSHOT_SEQLOCK_H
#define EARSHOT_SEQLOCK_H

#include <string.h>

#include "kernel.h"

/* A write takes well under a microsecond, a try about ten nanoseconds; what is
 * still odd after that many tries belongs to a writer that sleeps or is dead. */
#define EK_SEQLOCK_TRIES 256

static inline uint32_t ek_seq_write_begin(uint32_t *sequence)
{
    uint32_t odd = __atomic_load_n(sequence, __ATOMIC_RELAXED) | 1u;
    __atomic_store_n(sequence, odd, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    return odd;
}

static inline void ek_seq_write_end(uint32_t *sequence, uint32_t odd)
{
    __atomic_store_n(sequence, odd + 1, __ATOMIC_RELEASE);
}

/* Even: the copy may begin. */
static inline uint32_t ek_seq_read_begin(const uint32_t *sequence)
{
    return __atomic_load_n(sequence, __ATOMIC_ACQUIRE);
}

/* Nonzero: what was copied since begin is one whole write. */
static inline int ek_seq_read_valid(const uint32_t *sequence, uint32_t begin)
{
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return __atomic_load_n(sequence, __ATOMIC_RELAXED) == begin;
}

static inline void ek_seq_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* shared: 8-byte aligned shared memory; private: any memory of this process. */
static inline void ek_words_store(void *shared, const void *private, size_t bytes)
{
    uint64_t *to = shared;
    const uint8_t *from = private;
    for (size_t i = 0; i < bytes / 8; i++) {
        uint64_t word;
        memcpy(&word, from + 8 * i, 8);
        __atomic_store_n(to + i, word, __ATOMIC_RELAXED);
    }
}

static inline void ek_words_load(void *private, const void *shared, size_t bytes)
{
    const uint64_t *from = shared;
    uint8_t *to = private;
    for (size_t i = 0; i < bytes / 8; i++) {
        uint64_t word = __atomic_load_n(from + i, __ATOMIC_RELAXED);
        memcpy(to + 8 * i, &word, 8);
    }
}

#endif
