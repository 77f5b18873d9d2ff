#!/usr/bin/env bash
# The wheel to publish for Linux: linked against glibc 2.17 by Zig, so it has the tag manylinux2014. maturin checks the tag. Needs
# `pip install 'maturin[zig]>=1.9,<2'`; takes no longer than `maturin build`, which links against the glibc of this machine.
#
#     crates/python/manylinux.sh [FOLDER]         # target/wheels, unless told
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-../../target/wheels}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf '#!/bin/sh\nexec maturin zig cc -- -target %s-linux-gnu.2.17 "$@"\n' "$(uname -m)" > "$work/linker"
chmod +x "$work/linker"
maturin build --release --locked --compatibility manylinux2014 --out "$out" -- -C linker="$work/linker"
