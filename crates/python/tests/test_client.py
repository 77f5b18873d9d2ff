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
rounds = {rounds}
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


def write_model(path, shapes, types={}):
    """Zeros; where `types` has a tensor's name, of that type: one of safetensors and its size in bytes."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        dtype, size = types.get(name, ("F32", 4))
        start, end = end, end + size * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(end))


def values_of(safetensors):
    (length,) = struct.unpack("<Q", safetensors[:8])
    return np.frombuffer(safetensors[8 + length :], "<f4")


def header_of(safetensors):
    (length,) = struct.unpack("<Q", safetensors[:8])
    return json.loads(safetensors[8 : 8 + length])


@contextmanager
def coordinator(folder, mode, shapes={"w": [2, 3]}, types={}, rounds=2, more=""):
    """A running coordinator's address. Its log, JSON lines, is in the folder."""
    write_model(folder / "model.safetensors", shapes, types)
    malicious = mode == "malicious"
    config = CONFIG.format(rounds=rounds, mode=mode, keys=KEYS if malicious else TOKEN) + (RELEASE if malicious else "")
    (folder / "coordinator.toml").write_text(config + more)
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
            yield f"http{'s' if more else ''}://{found[0]}"
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
        assert run_all(clients) == [{"completed": 2, "missed": 0, "declined": 0}] * 4
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
        assert run_all(clients) == [{"completed": 2, "missed": 0, "declined": 0}] * 4
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
        common = {"registrar_key": registrar, "policy": POLICY, "max_failures": 0}
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


@needs_command
def test_half_precision_and_buffers_of_a_model_come_back_in_their_types(tmp_path):
    shapes = {"half": [2], "brain": [1], "count": [], "mask": [3], "single": [1]}
    types = {"half": ("F16", 2), "brain": ("BF16", 2), "count": ("I64", 8), "mask": ("BOOL", 1)}
    keys, registrar = enrol(tmp_path, 4)

    def trainer(round_):
        assert {name: array.dtype for name, array in round_.tensors.items()} == dict.fromkeys(
            ["brain", "half", "single"], np.float32
        )
        assert {name: (array.dtype.str, array.shape) for name, array in round_.buffers.items()} == {
            "count": ("<i8", ()), "mask": ("|b1", (3,))
        }
        return {"half": [0.5, -0.25], "brain": [0.5], "single": [0.125]}, 1.0

    with coordinator(tmp_path, "malicious", shapes, types) as endpoint:
        common = {"registrar_key": registrar, "policy": POLICY}
        clients = [unisono.Client(endpoint, "t", keys[i], trainer, **common) for i in range(4)]
        run_all(clients)
        model, _ = clients[0].open_release("digits")
    header = header_of(model)
    assert {name: header[name]["dtype"] for name in shapes} == {
        name: types.get(name, ("F32",))[0] for name in shapes
    }
    start, end = header["half"]["data_offsets"]
    data = model[8 + struct.unpack("<Q", model[:8])[0] :]
    np.testing.assert_allclose(np.frombuffer(data[start:end], "<f2"), [1, -0.5], atol=2e-3)


@needs_command
def test_a_client_that_declines_or_is_stopped_keeps_nobody_waiting(tmp_path, caplog):
    caplog.set_level("INFO", "unisono.client")
    keys, registrar = enrol(tmp_path, 4)
    common = {"registrar_key": registrar, "policy": POLICY}
    trained = []

    def trainer(round_):
        return np.zeros(6, np.float32), 1.0

    def slow(round_):
        trained.append(round_.number)
        time.sleep(0.3)
        return trainer(round_)

    with coordinator(tmp_path, "malicious", rounds=6) as endpoint:
        others = [unisono.Client(endpoint, "t", keys[i], trainer, **common) for i in range(3)]
        threads = [threading.Thread(target=client.run) for client in others]
        for thread in threads:
            thread.start()

        async def cancelled():
            client = unisono.Client(endpoint, "t", keys[3], slow, **common)
            task = asyncio.create_task(client.run_async())
            while not trained:
                await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # The round at hand goes on; the next call waits until its thread is over.
            return client

        client = asyncio.run(cancelled())
        # asyncio.run has joined no thread of ours; the client is free again when its round is over.
        began = len(trained)
        client.stop()
        assert client.run() == {"completed": 0, "missed": 0, "declined": 0}
        assert len(trained) == began == 1
        with pytest.raises(unisono.StateError, match="stopped"):
            client.run_round()
        del client

        offers = []
        picky = unisono.Client(
            endpoint, "t", keys[3], lambda round_: None, accepts=lambda params: offers.append(params.round_id) or len(offers) == 2, **common
        )
        assert picky.run_round() is False, "not accepted"
        assert picky.run_round() is False, "nothing to give"
        assert len(set(offers)) == 2
        rest = picky.run()
        assert rest["completed"] == rest["missed"] == 0
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    said = [record.getMessage() for record in caplog.records if record.name == "unisono.client"]
    for words in ["joined", "completed", "declined: the trainer returned None", "declined: the trainer does not accept it"]:
        assert any(words in text for text in said), words


def test_waiting_is_logged_and_ends_where_it_is_asked_to(caplog):
    keys = unisono.DeviceKeys.generate()
    policy = unisono.Policy(allow_semi_honest=True)
    client = unisono.Client("http://127.0.0.1:9", "t", keys, print, policy=policy, give_up_after=0.5)
    began = time.monotonic()
    with pytest.raises(unisono.ConnectionError, match="does not answer"):
        client.run()
    assert time.monotonic() - began < 30
    (first, *_) = [record for record in caplog.records if record.name == "unisono.client"]
    assert first.levelname == "WARNING" and "trying again" in first.getMessage()
    # Without an end it goes on until it is stopped, from another thread.
    patient = unisono.Client("http://127.0.0.1:9", "t", keys, print, policy=policy)
    for now in (False, True):
        waiting = unisono.Client("http://127.0.0.1:9", "t", keys, print, policy=policy) if now else patient
        result = []

        def run():
            try:
                result.append(waiting.run())
            except unisono.StateError as error:
                result.append(str(error))

        thread = threading.Thread(target=run)
        thread.start()
        time.sleep(0.3)
        waiting.stop(now=now)
        thread.join(20)
        assert not thread.is_alive()
        assert result == (["this client was stopped"] if now else [{"completed": 0, "missed": 0, "declined": 0}])
    for bad in (-1.0, float("nan")):
        with pytest.raises(unisono.ParamsError, match="give_up_after"):
            unisono.Client("http://127.0.0.1:9", "t", keys, print, give_up_after=bad)
    with pytest.raises(unisono.StateError, match="accepts is a int"):
        unisono.Client("http://127.0.0.1:9", "t", keys, print, accepts=5)


def test_many_clients_wait_at_a_time_in_one_loop():
    """More than the threads of a loop's executor: those of one cohort wait for each other."""

    async def all_at_once():
        policy = unisono.Policy(allow_semi_honest=True)
        keys = unisono.DeviceKeys.generate()
        clients = [unisono.Client("http://127.0.0.1:9", "t", keys, print, policy=policy) for _ in range(40)]
        tasks = [asyncio.create_task(client.run_async()) for client in clients]
        await asyncio.sleep(0.5)
        running = sum(thread.name.startswith("unisono") for thread in threading.enumerate())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return running

    assert asyncio.run(all_at_once()) == 40
    until = time.monotonic() + 20
    while any(thread.name.startswith("unisono") for thread in threading.enumerate()):
        assert time.monotonic() < until, "a thread outlives its call"
        time.sleep(0.05)


def openssl(folder, *arguments):
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


@needs_command
def test_devices_dial_by_tls_and_trust_the_authority_that_they_are_given(tmp_path):
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl(tmp_path, "req", "-x509", *key, "-days", "9", "-subj", "/CN=ours", "-keyout", "ca.key", "-out", "ca.pem")
    openssl(tmp_path, "req", *key, "-subj", "/CN=coordinator", "-keyout", "server.key", "-out", "server.csr")
    (tmp_path / "server.ext").write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n")
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "9", "-extfile", "server.ext"]
    openssl(tmp_path, "x509", "-req", "-in", "server.csr", *signed, "-out", "server.pem")
    (tmp_path / "server.key").chmod(0o600)
    keys, registrar = enrol(tmp_path, 4)

    def trainer(round_):
        return np.zeros(6, np.float32), 1.0

    tls = '\n[tls]\ncertificate = "server.pem"\nkey = "server.key"\n'
    authority = (tmp_path / "ca.pem").read_text()
    common = {"registrar_key": registrar, "policy": POLICY}
    with coordinator(tmp_path, "malicious", more=tls) as endpoint:
        with pytest.raises(unisono.ConnectionError, match="certificate"):
            # The public authorities know nothing of it.
            unisono.Client(endpoint, "t", keys[0], trainer, give_up_after=0.3, **common).run()
        with pytest.raises(unisono.ConnectionError):
            unisono.Client(endpoint.replace("https", "http"), "t", keys[0], trainer, give_up_after=0.3, **common).run()
        clients = [unisono.Client(endpoint, "t", keys[i], trainer, authority=authority, **common) for i in range(4)]
        assert [summary["completed"] for summary in run_all(clients)] == [2] * 4
    for wrong in ({"authority": "no PEM"}, {"certificate": ("no PEM", "no key")}):
        with pytest.raises(unisono.Error, match="certificate"):
            unisono.Client(endpoint, "t", keys[0], trainer, **wrong)


def test_a_coordinator_that_is_not_there_and_an_address_that_is_none_are_told_apart():
    keys = unisono.DeviceKeys.generate()
    with pytest.raises(unisono.ConnectionError, match="be dialled"):
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
