"""unisono beside Flower's own SecAgg+: one app, one machine, one run of this script.

    python flower_compare.py                      # 20 clients, 1e5 and 1e6 elements, with and without drop-outs
    python flower_compare.py --quick

Each line is one round in Flower's simulation engine. `seconds` is the whole round as the server sees it, Ray's start
(measured on the plain round) included; accuracy is that of the digits model after the round. SecAgg+ runs with full
sharing and a threshold of half the clients, unisono with gamma = 0.05 and delta = 0.25.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

APP = Path(__file__).with_name("flower_digits.py")


def measure(aggregation, clients, extra, drop, mode):
    command = [sys.executable, str(APP), "--aggregation", aggregation, "--mode", mode, "--rounds", "1"]
    command += ["--clients", str(clients), "--extra", str(extra), "--drop", str(drop)]
    # A process of its own for each: Ray is started afresh.
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"{' '.join(command)} gave no result:\n{done.stderr[-2000:]}")
    return json.loads(lines[-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    print("| aggregation | mode | elements | drop-outs | seconds | accuracy | MB up | MB down |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for extra in [100_000] if arguments.quick else [100_000, 1_000_000]:
        for drop in (0, 2):
            for aggregation, mode in [
                ("plain", "-"),
                ("secaggplus", "semi-honest"),
                ("unisono", "semi-honest"),
                ("unisono", "malicious"),
            ]:
                found = measure(aggregation, arguments.clients, extra, drop, mode if mode != "-" else "malicious")
                report = found["report"] or {}
                up, down = (sum(report.get(key, {}).values()) / 1e6 for key in ("bytes_up", "bytes_down"))
                sizes = f"{up:.2f} | {down:.2f}" if report else "- | -"
                print(
                    f"| {aggregation} | {mode} | {extra + 650} | {drop} | {found['seconds']:.1f} "
                    f"| {found['accuracy']:.4f} | {sizes} |",
                    flush=True,
                )
