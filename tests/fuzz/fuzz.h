/* What every target shares. A property that fails is a crash, so that libFuzzer
 * and the sanitizers report it alike. */
#ifndef EARSHOT_FUZZ_H
#define EARSHOT_FUZZ_H

#include <string.h>

#include "kernel.h"

#define REQUIRE(property) \
    do { \
        if (!(property)) \
            __builtin_trap(); \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
