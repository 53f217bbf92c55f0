#!/bin/sh
# Fuzz the kernel's parsers with libFuzzer under ASan and UBSan.
#
#   tests/fuzz/run.sh SECONDS     of each target; new inputs are kept in
#                                 build/fuzz, a crash is left there too and
#                                 belongs into tests/fuzz/corpus once mended
set -eu
seconds=${1:?usage: tests/fuzz/run.sh SECONDS}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
kernel=$root/dataplane/kernel
out=$root/build/fuzz
clang=${CLANG:-$(command -v clang-14 || command -v clang)} ||
    { echo "fuzzing needs clang and its compiler-rt (Debian: clang-14 libclang-rt-14-dev)" >&2; exit 1; }

mkdir -p "$out"
rm -f "$out"/crash-*
for target in stun_peek hop flow_table; do
    mkdir -p "$out/$target"
    "$clang" -std=c11 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
        "-I$kernel" "-I$here" -o "$out/fuzz_$target" "$here/fuzz_$target.c" \
        "$kernel/demux.c" "$kernel/stun_peek.c" "$kernel/siphash.c" "$kernel/hop.c" \
        "$kernel/flow_table.c" "$kernel/region.c"
    echo "== $target"
    (cd "$out" && "./fuzz_$target" "-max_total_time=$seconds" -max_len=2048 -timeout=5 \
        -print_final_stats=1 "-artifact_prefix=$out/crash-$target-" \
        "$out/$target" "$here/corpus/$target" 2>&1 |
        grep -E 'ERROR|SUMMARY|number_of_executed_units|cov: .* DONE' || true)
done
if ls "$out"/crash-* >/dev/null 2>&1; then
    echo "crashes:" && ls "$out"/crash-* && exit 1
fi
