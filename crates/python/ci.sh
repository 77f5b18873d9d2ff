#!/usr/bin/env bash
# Builds the wheel of the Python package, installs it with Flower into a fresh environment, and runs everything there: the types,
# the tests (some against the command `unisono`, some in Flower's simulation engine) and the examples.
#
# PYTHON names the interpreter (3.10 or newer), UNISONO_BIN the command where it is built already; the environment is in
# target/python-ci.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
here=$root/crates/python
env=$root/target/python-ci
python=${PYTHON:-python3}
export FLWR_TELEMETRY_ENABLED=0 RAY_USAGE_STATS_ENABLED=0
step() { printf '\n== %s\n' "$*"; "$@"; }

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    step apt-get update -qq
    step apt-get install -qq -y python3 python3-venv
fi
rm -rf "$env" target/wheels
step "$python" -m venv "$env"
PATH=$env/bin:$PATH
pip() { "$env/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
step pip install 'maturin>=1.9,<2'
(cd "$here" && step maturin build --release --locked --out "$root/target/wheels")
wheel=$(ls target/wheels/unisono-*-abi3-*.whl)
step pip install "$wheel[test,examples,notebooks,flower]"
if [ -z "${UNISONO_BIN:-}" ]; then
    step cargo build --release --locked --bin unisono
    export UNISONO_BIN=${CARGO_TARGET_DIR:-$root/target}/release/unisono
fi

# What the README says, in an environment of its own. What the wheel was made of is compiled already, so this takes seconds.
step "$python" -m venv "$env/plain"
step env CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$root/target}" \
    "$env/plain/bin/python" -m pip --disable-pip-version-check --quiet install "$here"
(cd "$env" && step plain/bin/python -c 'import unisono; assert unisono.simulate(10, 100).rounds[0]["exact_sum"]')

# Away from the sources, so that the installed package is what is checked.
cd "$env"
step mypy --strict --cache-dir "$env/mypy" -p unisono
step stubtest --allowlist "$here/stubtest.allow" unisono
cp -r "$here/tests" "$here/examples" "$here/notebooks.py" .
mkdir -p docs
cp "$root/docs/python.md" docs
step python -m pytest -q -p no:cacheprovider tests
UNISONO_QUICK=1 step python notebooks.py
step python examples/learning.py --quick
step python examples/sklearn_trainer.py --rounds 6
step python examples/flower_two_lines.py --clients 5 --drop 1
step python examples/flower_message_api.py --clients 5 --rounds 2 --drop 1
step python examples/flower_digits.py --aggregation all --engine local --clients 8 --rounds 2 --drop 1
step python examples/flower_compare.py --clients 10 --dim 20000 --repeat 1

# As those install it who have no Rust, with every Python that is here.
step "$here/wheels.sh" "$root/$wheel"
