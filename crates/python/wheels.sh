#!/usr/bin/env bash
# Installs a wheel as those do who have no Rust, with each Python from 3.10 to 3.13 that is here: into a fresh environment, from wheels
# only, with no other program on the path. Plays a simulation and the tests that need NumPy alone, and with the last one the first
# ten minutes of docs/python.md.
#
#     crates/python/wheels.sh target/wheels/unisono-*.whl
set -euo pipefail
[ $# = 1 ] && [ -f "$1" ] || { echo "usage: $0 WHEEL" >&2; exit 2; }
wheel=$(realpath "$1")
cd "$(dirname "$0")"
here=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r tests examples "$work"
mkdir "$work/docs"
cp ../../docs/python.md "$work/docs"

# The interpreter of this version: on the path, or pyenv's. A shim may be there and have nothing behind it.
interpreter() {
    local candidate
    for candidate in "$(command -v "python$1" || true)" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        if [ -x "$candidate" ] && "$candidate" -c "import sys, ensurepip, venv; assert sys.version_info[:2] == tuple(map(int, '$1'.split('.')))" 2>/dev/null
        then
            echo "$candidate"
            return
        fi
    done
}

tested=() missing=()
for version in 3.10 3.11 3.12 3.13; do
    python=$(interpreter "$version")
    if [ -z "$python" ]; then
        missing+=("$version")
        continue
    fi
    printf '\n== %s: %s\n' "$version" "$(basename "$wheel")"
    env=$work/$version
    "$python" -m venv "$env"
    # No compiler, no cargo: what is not in the wheels is not there.
    alone() { (cd "$work" && env -u PYTHONPATH PATH="$env/bin" "$env/bin/python" "$@"); }
    alone -m pip --disable-pip-version-check --quiet install --only-binary :all: "$wheel" 'pytest>=8'
    alone -c 'import unisono; assert unisono.simulate(10, 100).rounds[0]["exact_sum"]; print("unisono", unisono.__version__)'
    alone -m pytest -q -p no:cacheprovider tests/test_import.py tests/test_rounds.py tests/test_primitives.py tests/test_repetition.py
    tested+=("$version")
done
if [ ${#tested[@]} != 0 ]; then
    printf '\n== the first ten minutes, with %s\n' "${tested[-1]}"
    alone -m pip --disable-pip-version-check --quiet install --only-binary :all: 'scikit-learn>=1.5'
    alone -m pytest -q -p no:cacheprovider tests/test_transcript.py
fi
printf '\nthe wheel works with Python %s\n' "${tested[*]:-none}"
[ ${#missing[@]} = 0 ] || echo "not found here, so not tested: Python ${missing[*]}"
[ ${#tested[@]} != 0 ] || { echo "no Python from 3.10 to 3.13 works here: install one" >&2; exit 1; }
