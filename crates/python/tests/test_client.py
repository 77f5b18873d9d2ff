"""unisono.Client against a running coordinator, in both modes, and without one.

The coordinator and the registrar are those of the command `unisono`: UNISONO_BIN, or else target/release/unisono.
"""

import asyncio
import json
import os
import re
import struct
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import unisono
from rounds import forked

BIN = Path(os.environ.get("UNISONO_BIN", Path(__file__).parents[3] / "target/release/unisono"))
needs_command = pytest.mark.skipif(
    not BIN.exists() and "UNISONO_BIN" not in os.environ, reason="the command unisono is not built"
)
CONFIG = """
listen = "127.0.0.1:0"
state_dir = "state"
{keys}
[task]
name = "t"
rounds = 2
initial_model = "model.safetensors"
[round]
mode = "{mode}"
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
KEYS = 'registrar = "registrar/registrar.pub"\nroster = "roster.bin"\nkey = "coordinator.key"\n'
TOKEN = 'token = "token.key"\n'
RELEASE = '[release]\nmodel_id = "digits"\npublisher = "publisher.key"\nkey_encryption_key = "kek.key"\nvalid_days = 9\n'
POLICY = unisono.Policy(n_min=3, min_gamma=0.0, allow_semi_honest=True, min_interval_s=0)


def command(folder, *arguments):
    subprocess.run([BIN, *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=120)


def write_model(path, shapes):
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + np.zeros(end // 4, "<f4").tobytes())


def values_of(safetensors):
    (length,) = struct.unpack("<Q", safetensors[:8])
    return np.frombuffer(safetensors[8 + length :], "<f4")


def header_of(safetensors):
    (length,) = struct.unpack("<Q", safetensors[:8])
    return json.loads(safetensors[8 : 8 + length])


@contextmanager
def coordinator(folder, mode, shapes={"w": [2, 3]}):
    """A running coordinator's address. Its log, JSON lines, is in the folder."""
    write_model(folder / "model.safetensors", shapes)
    malicious = mode == "malicious"
    config = CONFIG.format(mode=mode, keys=KEYS if malicious else TOKEN) + (RELEASE if malicious else "")
    (folder / "coordinator.toml").write_text(config)
    log = folder / "log"
    environment = {**os.environ, "RUST_LOG": "info"}
    with (
        open(log, "w") as file,
        subprocess.Popen(
            [BIN, "--log-json", "coordinator", "--config", "coordinator.toml"],
            cwd=folder,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
        ) as running,
    ):
        try:
            until = time.monotonic() + 60
            while not (found := re.search(r"127\.0\.0\.1:[1-9]\d*", log.read_text())):
                assert running.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.05)
            yield f"http://{found[0]}"
        finally:
            running.kill()


def enrol(folder, count):
    """Keys of devices that the command's registrar enrolled, and the registrar's key."""
    for name in ("coordinator", "publisher"):
        command(folder, "keys", name, f"{name}.key")
    command(folder, "keys", "key-encryption-key", "kek.key")
    command(folder, "registrar", "init", "registrar")
    # Half of the devices make their keys with the command, half in Python: the files are the same.
    for i in range(count):
        if i % 2:
            command(folder, "client", "keys", f"{i}.key")
        else:
            keys = unisono.DeviceKeys.generate()
            (folder / f"{i}.key").write_text(keys.to_text())
            (folder / f"{i}.key.pub").write_text(keys.enrolment())
    command(folder, "registrar", "enrol", "registrar", *(f"{i}.key.pub" for i in range(count)))
    publish = ["--coordinator", "coordinator.key.pub", "--publisher", "publisher.key.pub", "--out", "roster.bin"]
    command(folder, "registrar", "publish", "registrar", *publish)
    registrar = unisono.read_public_key("registrar", (folder / "registrar/registrar.pub").read_text())
    roster = unisono.Roster.from_bytes((folder / "roster.bin").read_bytes(), registrar)
    keys = [unisono.DeviceKeys.from_text((folder / f"{i}.key").read_text()) for i in range(count)]
    assert roster.client_ids == sorted(key.client_id for key in keys)
    return keys, registrar


def run_all(clients):
    """Runs all clients, the last one by asyncio."""
    summaries = [None] * (len(clients) - 1)
    threads = [
        threading.Thread(target=lambda i=i: summaries.__setitem__(i, clients[i].run())) for i in range(len(summaries))
    ]
    for thread in threads:
        thread.start()
    summaries.append(asyncio.run(clients[-1].run_async()))
    for thread in threads:
        thread.join()
    return summaries


@needs_command
@pytest.mark.parametrize("mode", ["malicious", "semi-honest"])
def test_devices_with_trainers_in_python_train_a_model(tmp_path, mode):
    seen = []

    def trainer(device):
        def train(round_):
            assert round_.tensor("w").shape == (2, 3)
            with pytest.raises(KeyError):
                round_.tensor("b")
            seen.append((round_.number, float(round_.parameters[0])))
            return np.full(6, 0.1 * device, np.float32), 1.0

        return train

    keys, registrar = enrol(tmp_path, 4) if mode == "malicious" else (
        [unisono.DeviceKeys.generate() for _ in range(4)], None
    )
    token = None
    if mode == "semi-honest":
        command(tmp_path, "keys", "token", "token.key")
        token = (tmp_path / "token.key").read_text()
    with coordinator(tmp_path, mode) as endpoint:
        common = {"registrar_key": registrar, "token": token, "policy": POLICY}
        clients = [
            unisono.Client(endpoint, "t", keys[i], trainer(i), state_dir=tmp_path / f"device-{i}", **common)
            for i in range(4)
        ]
        assert run_all(clients) == [{"completed": 2, "missed": 0}] * 4
        assert sorted(number for number, _ in seen) == [1] * 4 + [2] * 4
        # The mean of 0, 0.1, 0.2 and 0.3.
        assert all(value == pytest.approx(0.15, abs=1e-3) for number, value in seen if number == 2)
        if mode == "semi-honest":
            with pytest.raises(unisono.Error, match="no release"):
                clients[0].open_release("digits")
            without = unisono.Client(endpoint, "t", keys[0], print, policy=POLICY)
            with pytest.raises(unisono.ClientError, match="token"):
                without.open_release("digits")
            wrong = unisono.Client(endpoint, "t", keys[0], print, policy=POLICY, token="0123456789abcdef" * 2)
            with pytest.raises(unisono.Error):
                wrong.open_release("digits")
            return
        # The task is finished: no base model is at hand.
        with pytest.raises(unisono.Error, match="base model"):
            clients[0].model(1)
        model, version = clients[1].open_release("digits")
        assert version >= 1
        np.testing.assert_allclose(values_of(model), 0.3, atol=2e-3)
        with pytest.raises(unisono.Error, match="raise max_payload"):
            clients[2].open_release("digits", max_payload=3)
        with pytest.raises(unisono.ConnectionError, match="no_such_release|no release"):
            clients[2].open_release("letters")
        stranger = unisono.Client(endpoint, "t", unisono.DeviceKeys.generate(), print, **common)
        with pytest.raises(unisono.ConnectionError, match="unknown_client|enrolled|roster"):
            stranger.open_release("digits")


class Tensor:
    """As those of PyTorch: no array, and made one by NumPy."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array if dtype is None else self.array.astype(dtype)


@needs_command
def test_named_arrays_of_a_trainer_are_put_in_order_and_others_are_refused(tmp_path):
    # Here the order by name is not that of a state dictionary.
    shapes = {"layer.10.bias": [2], "layer.10.weight": [2, 2], "layer.9.bias": [1], "scale": []}
    keys, registrar = enrol(tmp_path, 4)
    told = []

    def trainer(device):
        def train(round_):
            base = round_.tensors
            assert {name: list(array.shape) for name, array in base.items()} == shapes
            assert all(array.dtype == np.float32 for array in base.values())
            good = {
                "scale": np.array(0.5),
                "layer.9.bias": Tensor(np.float64([0.1])),
                "layer.10.weight": np.float32([[0.2, 0.3], [0.4, 0.5]]),
                "layer.10.bias": np.array([1, 0]),
            }
            for wrong in (
                {**good, "layer.9.bais": good["layer.9.bias"]},
                {name: array for name, array in good.items() if name != "scale"},
                {**good, "layer.10.weight": np.zeros(4, np.float32)},
                {**good, "layer.9.bias": np.array([1 + 2j])},
                {**good, "layer.10.bias": np.array([True, False])},
                {**good, "layer.9.bias": np.ma.masked_array([0.1], mask=[True])},
                {**good, 5: np.zeros(1)},
            ):
                with pytest.raises(unisono.ArrayError) as error:
                    round_.flatten(wrong)
                told.append(str(error.value))
            flat = round_.flatten(good)
            assert flat.dtype == np.float32
            np.testing.assert_allclose(flat, [1, 0, 0.2, 0.3, 0.4, 0.5, 0.1, 0.5], rtol=1e-6)
            nested = {
                "layer": {"9": {"bias": good["layer.9.bias"]}, "10": {"weight": good["layer.10.weight"], "bias": [1, 0]}},
                "scale": 0.5,
            }
            np.testing.assert_array_equal(round_.flatten(nested), flat)
            return (good, 1.0) if device % 2 else (flat, 1.0)

        return train

    with coordinator(tmp_path, "malicious", shapes) as endpoint:
        clients = [
            unisono.Client(endpoint, "t", keys[i], trainer(i), registrar_key=registrar, policy=POLICY) for i in range(4)
        ]
        assert run_all(clients) == [{"completed": 2, "missed": 0}] * 4
        model, _ = clients[0].open_release("digits")
    header = header_of(model)
    assert header["__metadata__"] == {"format": "pt"}
    np.testing.assert_allclose(values_of(model), [2, 0, 0.4, 0.6, 0.8, 1, 0.2, 1], atol=2e-3)
    for text, words in zip(
        told[:7],
        ['unknown are "layer.9.bais"', 'missing are "scale"', r"shape \[4\], the model's \[2, 2\]"]
        + ["complex128", "bool", "filled", "no text"],
        strict=True,
    ):
        assert re.search(words, text), text


@needs_command
def test_what_a_device_does_not_accept_or_train_is_an_exception(tmp_path):
    keys, registrar = enrol(tmp_path, 4)

    def broken(round_):
        raise LookupError("the data are gone")

    def wrong(round_):
        return np.zeros(6), 1.0

    with coordinator(tmp_path, "malicious") as endpoint:
        # The default policy asks for cohorts of at least 10; another registrar's roster counts for nothing.
        strict = unisono.Client(endpoint, "t", keys[0], broken, registrar_key=registrar)
        with pytest.raises(unisono.PolicyError, match="n_min"):
            strict.run_round()
        other = unisono.SigningKey.generate("registrar").verifying_key
        with pytest.raises(unisono.RosterError, match="does not verify"):
            unisono.Client(endpoint, "t", keys[0], broken, registrar_key=other, policy=POLICY).run_round()
        common = {"registrar_key": registrar, "policy": POLICY, "max_failures": 1}
        trainers = [broken, wrong, lambda round_: 5, lambda round_: (np.zeros(5, np.float32), 1.0)]
        found = [None] * 4

        def attempt(i):
            try:
                unisono.Client(endpoint, "t", keys[i], trainers[i], **common).run_round()
            except unisono.Error as error:
                found[i] = str(error)

        threads = [threading.Thread(target=attempt, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for text, words in zip(found, ["the data are gone", "float32", "weight", "5 elements|asks for 6"], strict=True):
        assert text and re.search(words, text), text


def test_a_coordinator_that_is_not_there_and_an_address_that_is_none_are_told_apart():
    keys = unisono.DeviceKeys.generate()
    with pytest.raises(unisono.ConnectionError, match="no address"):
        unisono.Client("not an address", "t", keys, lambda _: None)
    with pytest.raises(unisono.StateError, match="callable"):
        unisono.Client("http://127.0.0.1:9", "t", keys, None)
    for token, words in [("00112233", "128"), ("secret", "hexadecimal"), ("00" * 32, "same")]:
        with pytest.raises(unisono.KeyFileError, match=words):
            unisono.Client("http://127.0.0.1:9", "t", keys, lambda _: None, token=token)


def _in_child(client, queue):
    try:
        client.run_round()
        queue.put("answered")
    except unisono.StateError as error:
        queue.put(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_copy_of_a_client_is_refused():
    client = unisono.Client("http://127.0.0.1:9", "t", unisono.DeviceKeys.generate(), print)
    assert "another process" in forked(_in_child, client)


def _new_client_in_child(queue):
    try:
        unisono.Client("http://127.0.0.1:9", "t", unisono.DeviceKeys.generate(), print).run_round()
        queue.put("ran")
    except unisono.StateError as error:
        queue.put(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_client_in_a_forked_process_is_refused_when_one_ran_before_the_fork():
    client = unisono.Client("http://127.0.0.1:9", "t", unisono.DeviceKeys.generate(), print)
    with pytest.raises(unisono.ClientError, match="registrar"):
        client.open_release("digits")
    assert "spawn" in forked(_new_client_in_child)
