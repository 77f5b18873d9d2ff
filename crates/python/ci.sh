#!/bin/sh
# Builds the wheel of the Python package, installs it into a fresh environment and runs its tests and its first example.
#
#   crates/python/ci.sh              without Flower: about a minute after the Rust build
#   crates/python/ci.sh --flower     with Flower's simulation engine too (a large download, and two minutes more)
#
# PYTHON names the interpreter (3.10 or newer); the environment is in target/python-ci.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
env="$root/target/python-ci"
extras="test,examples"
if [ "${1:-}" = "--flower" ]; then
    extras="$extras,flower"
    export FLWR_TELEMETRY_ENABLED=0 RAY_USAGE_STATS_ENABLED=0
fi
rm -rf "$env"
"${PYTHON:-python3}" -m venv "$env"
"$env/bin/pip" install --quiet --disable-pip-version-check maturin
rm -rf "$root/target/wheels"
(cd "$here" && "$env/bin/maturin" build --release --locked --quiet --out "$root/target/wheels")
wheel=$(ls "$root"/target/wheels/unisono-*.whl)
"$env/bin/pip" install --quiet --disable-pip-version-check "$wheel[$extras]"
cd "$here"
"$env/bin/python" -m pytest -q tests
"$env/bin/python" examples/first_steps.py
