/* Runs a target without libFuzzer: every seed as it is, every prefix of it, and
 * ROUNDS mutations of it from a fixed seed, so that a run can be repeated. Each
 * input stands flush against unmapped pages, first at its end, then at its
 * start: one byte read outside is a fault, with or without a sanitizer.
 *
 *   driver ROUNDS FILE... */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "fuzz.h"

#define PAGE_BYTES 4096
#define SEED_BYTES PAGE_BYTES

static uint64_t random_state = 20261122;

static uint32_t next_random(uint32_t below)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % below;
}

/* SEED_BYTES that can be read, with an unmapped page on either side. */
static uint8_t *map_between_holes(void)
{
    uint8_t *pages = mmap(NULL, SEED_BYTES + 2 * PAGE_BYTES, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(pages != MAP_FAILED);
    REQUIRE(mprotect(pages + PAGE_BYTES, SEED_BYTES, PROT_READ | PROT_WRITE) == 0);
    return pages + PAGE_BYTES;
}

static void run(const uint8_t *data, size_t size)
{
    static uint8_t *between;
    if (!between)
        between = map_between_holes();
    memcpy(between + SEED_BYTES - size, data, size);
    LLVMFuzzerTestOneInput(between + SEED_BYTES - size, size);
    memcpy(between, data, size);
    LLVMFuzzerTestOneInput(between, size);
}

static size_t mutate(uint8_t *data, size_t size)
{
    static const uint8_t telling[] = {0x00, 0x01, 0x7F, 0x80, 0xFF, 0x06, 0x08};
    for (uint32_t n = 1 + next_random(4); n > 0; n--) {
        uint32_t at = next_random((uint32_t)size + 1);
        switch (next_random(5)) {
        case 0:
            if (at < size)
                data[at] ^= (uint8_t)(1u << next_random(8));
            break;
        case 1:
            if (at < size)
                data[at] = telling[next_random(sizeof telling)];
            break;
        case 2:
            size = at;
            break;
        case 3:
            if (size < SEED_BYTES) {
                memmove(data + at + 1, data + at, size - at);
                data[at] = (uint8_t)next_random(256);
                size++;
            }
            break;
        default:
            if (at < size)
                memmove(data + at, data + next_random(at + 1), size - at);
            break;
        }
    }
    return size;
}

int main(int argc, char **argv)
{
    static uint8_t seed[SEED_BYTES];
    static uint8_t data[SEED_BYTES];
    unsigned long runs = 0;
    for (int i = 2; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        REQUIRE(file);
        size_t size = fread(seed, 1, sizeof seed, file);
        fclose(file);
        for (size_t length = 0; length <= size; length++, runs++)
            run(seed, length);
        for (int round = 0; round < atoi(argv[1]); round++, runs++) {
            memcpy(data, seed, size);
            run(data, mutate(data, size));
        }
    }
    printf("%lu\n", runs);
    return 0;
}
