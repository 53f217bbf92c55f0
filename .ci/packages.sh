#!/usr/bin/env bash
# Installs the Debian packages that a purpose needs and that are missing:
#   packages.sh run     compiler and Python headers, for the C kernel
#   packages.sh test    browsers, a speech synthesiser, Node and Go for the examples
#   packages.sh fuzz    clang with libFuzzer
# As root or with password-less sudo it installs; otherwise it says what to type.
set -euo pipefail

purpose=${1:?purpose: run, test or fuzz}
python=${PYTHON:-python3}
missing=()

need_command() { # COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}

case "$purpose" in
run)
    need_command "${CC:-gcc}" gcc
    echo '#include <stdlib.h>' | "${CC:-gcc}" -E - >/dev/null 2>&1 || missing+=(libc6-dev)
    need_command "$python" python3
    if command -v "$python" >/dev/null 2>&1; then
        "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
        "$python" -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
            missing+=(python3-dev)
    fi
    ;;
test)
    need_command chromium chromium
    need_command firefox-esr firefox-esr
    need_command espeak-ng espeak-ng
    need_command node nodejs
    need_command go golang-go
    need_command spin spin
    ;;
fuzz)
    need_command clang-14 clang-14
    [ -e /usr/lib/llvm-14/lib/clang/14.0.6/lib/linux/libclang_rt.fuzzer-x86_64.a ] ||
        ls /usr/lib/llvm-14/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a >/dev/null 2>&1 ||
        missing+=(libclang-rt-14-dev)
    ;;
*)
    echo "packages.sh: unknown purpose '$purpose': run, test or fuzz" >&2
    exit 2
    ;;
esac

[ ${#missing[@]} -eq 0 ] && exit 0

install="apt-get install -y --no-install-recommends ${missing[*]}"
if ! command -v apt-get >/dev/null 2>&1; then
    echo "earshot: for '$purpose' this machine lacks: ${missing[*]} (Debian's names)." >&2
    echo "         No apt-get here: install them with this system's package manager and run make again." >&2
    exit 1
fi
if [ "$(id -u)" -eq 0 ]; then
    as_root=()
elif sudo -n true 2>/dev/null; then
    as_root=(sudo)
else
    echo "earshot: for '$purpose' this machine lacks: ${missing[*]}" >&2
    echo "         Not root and sudo asks for a password. Please run:" >&2
    echo "           sudo apt-get update && sudo $install" >&2
    exit 1
fi
echo "installing for '$purpose': ${missing[*]}"
log=$(mktemp)
if ! { "${as_root[@]}" apt-get update && DEBIAN_FRONTEND=noninteractive "${as_root[@]}" $install; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "earshot: could not install ${missing[*]}; the output of apt-get stands above, whole in $log" >&2
    exit 1
fi
rm -f "$log"
