"""unisono.Client against a running coordinator, and without one.

The coordinator is the example `serve` of the crate `unisono-coordinator`; UNISONO_SERVE names the executable.
"""

import asyncio
import json
import os
import struct
import subprocess
import threading

import numpy as np
import pytest
import unisono

SERVE = os.environ.get("UNISONO_SERVE")
CONFIG = """
listen = "127.0.0.1:0"
state_dir = "state"
[task]
name = "t"
rounds = 2
initial_model = "model.safetensors"
[round]
mode = "semi-honest"
n_min = 3
n_max = 4
gamma = 0.0
delta = 0.25
[quantiser]
bits = 16
clip = 1.0
max_weight = 10.0
[optimizer]
kind = "fedavg"
"""


def write_model(path):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + np.zeros(6, "<f4").tobytes())


def test_a_coordinator_that_is_not_there_and_an_address_that_is_none_are_told_apart():
    keys = unisono.DeviceKeys.generate()
    with pytest.raises(unisono.ConnectionError, match="no address"):
        unisono.Client("not an address", "t", keys, lambda _: None)
    with pytest.raises(unisono.StateError, match="callable"):
        unisono.Client("http://127.0.0.1:9", "t", keys, None)


@pytest.mark.skipif(SERVE is None, reason="UNISONO_SERVE names no coordinator")
def test_devices_with_trainers_in_python_train_a_model(tmp_path):
    write_model(tmp_path / "model.safetensors")
    (tmp_path / "coordinator.toml").write_text(CONFIG)
    seen = []

    def trainer(device):
        def train(round_):
            assert round_.tensor("w").shape == (2, 3)
            with pytest.raises(KeyError):
                round_.tensor("b")
            seen.append((round_.number, float(round_.parameters[0])))
            return np.full(6, 0.1 * device, np.float32), 1.0

        return train

    with subprocess.Popen([SERVE, tmp_path / "coordinator.toml"], stdout=subprocess.PIPE, text=True) as coordinator:
        try:
            endpoint = coordinator.stdout.readline().strip()
            policy = unisono.Policy(n_min=3, min_gamma=0.0, allow_semi_honest=True)
            clients = [
                unisono.Client(endpoint, "t", unisono.DeviceKeys.generate(), trainer(i), policy=policy, state_dir=tmp_path / str(i))
                for i in range(4)
            ]
            summaries = [None] * 3
            threads = [
                threading.Thread(target=lambda i=i: summaries.__setitem__(i, clients[i].run())) for i in range(3)
            ]
            for thread in threads:
                thread.start()
            summaries.append(asyncio.run(clients[3].run_async()))
            for thread in threads:
                thread.join()
        finally:
            coordinator.kill()
    assert summaries == [{"completed": 2, "missed": 0}] * 4
    assert sorted(number for number, _ in seen) == [1] * 4 + [2] * 4
    # The mean of 0, 0.1, 0.2 and 0.3.
    assert all(value == pytest.approx(0.15, abs=1e-3) for number, value in seen if number == 2)
