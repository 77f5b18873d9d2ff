"""What can't be right is refused with a Python exception that says what to change; the interpreter goes on."""

import threading

import numpy as np
import pytest
import unisono
from rounds import World

HUGE = 2**62


@pytest.fixture(scope="module")
def at_masking():
    """A round in which device 0 is asked for its update of 10 elements, and what it is shown."""
    world = World(8)
    server = world.open(dimension=10, quantiser=unisono.Quantiser(clip=1.0, max_weight=2.0))
    clients = [world.join(server, i) for i in range(8)]
    for client in clients:
        server.absorb(client.message())
    server.close()
    for keys, client in zip(world.keys, clients, strict=True):
        server.absorb(client.receive(server.view(keys.client_id)))
    server.close()
    return clients[0], server.view(world.keys[0].client_id)


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ([0.0] * 10, "numpy.asarray"),
        (np.zeros(10, np.float64), r"astype\(numpy.float32\)"),
        (np.zeros(10, np.int32), "float32"),
        (np.zeros(10, np.float16), "float32"),
        (np.zeros(10, ">f4"), "float32"),
        (np.zeros(10, object), "float32"),
        (np.zeros((2, 5), np.float32), "ravel"),
        (np.float32(1.0), "numpy.asarray"),
        (np.zeros((), np.float32), "ravel"),
        (np.zeros(20, np.float32)[::2], "ascontiguousarray"),
        (np.zeros(10, np.float32)[::-1], "ascontiguousarray"),
        (np.frombuffer(b"\0" * 41, np.uint8)[1:].view("<f4"), "copy"),
    ],
)
def test_an_update_of_another_kind_is_refused_with_what_to_call(at_masking, update, words):
    client, view = at_masking
    with pytest.raises(unisono.ArrayError, match=words):
        client.receive(view, update=update)
    assert client.awaits == "mask"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_element_that_is_no_number_is_named(at_masking, bad):
    client, view = at_masking
    update = np.zeros(10, np.float32)
    update[7] = bad
    with pytest.raises(unisono.EncodingError, match="element 7"):
        client.receive(view, update=update)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 2.5])
def test_a_weight_out_of_range_is_refused_with_the_range(at_masking, weight):
    client, view = at_masking
    with pytest.raises(unisono.EncodingError, match="weight"):
        client.receive(view, update=np.zeros(10, np.float32), weight=weight)


def test_a_read_only_update_is_taken_and_a_read_only_vector_is_not_masked():
    vector = np.zeros(10, np.uint32)
    vector.flags.writeable = False
    with pytest.raises(unisono.ArrayError, match="copy"):
        unisono.mask(vector, 20, add=[b"s" * 32])
    update = np.zeros(10, np.float32)
    update.flags.writeable = False
    assert unisono.quantise(update, 1.0, unisono.Quantiser(clip=1.0), 20).size == 11


@pytest.mark.parametrize("name", ["dimension", "n_min", "n_max"])
@pytest.mark.parametrize("value", [-1, 2**80, 2.5, "10", None, float("nan")])
def test_a_count_that_is_none_is_refused_with_its_name(name, value):
    if (name, value) == ("n_min", None):
        pytest.skip("None is the default")
    settings = {"dimension": 10, "n_min": 5, "n_max": 8, name: value}
    with pytest.raises(unisono.ParamsError, match=f"{name} is"):
        unisono.RoundParams(quantiser=unisono.Quantiser(clip=1.0), mode="semi-honest", **settings)


@pytest.mark.parametrize("dimension", [0, 2**33, HUGE, 2**64 - 1])
def test_a_dimension_that_no_round_has_is_refused(dimension):
    with pytest.raises(unisono.ParamsError, match="dimension"):
        unisono.RoundParams(dimension=dimension, n_min=5, n_max=8, quantiser=unisono.Quantiser(clip=1.0), mode="semi-honest")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clients": 0}, "clients"),
        ({"clients": -5}, "clients is -5"),
        ({"clients": 2**40}, "clients"),
        ({"clients": 10.5}, "clients is 10.5"),
        ({"dim": 0}, "dimension"),
        ({"dim": -1}, "dim is -1"),
        ({"dim": HUGE}, "dimension"),
        ({"rounds": -1}, "rounds is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"dropout": -0.1}, "dropout|fraction|allowed"),
        ({"dropout": 0.9}, "feasible would be|drop"),
        ({"dropout": 0.45, "delta": 0.05}, "drop|delta|sum"),
    ],
)
def test_a_simulation_that_can_not_be_is_refused_with_advice(settings, words):
    settings = {"clients": 10, "dim": 10, **settings}
    if settings.get("delta"):
        # More vanish than was assumed: the round ends without a sum and says so.
        result = unisono.simulate(**settings)
        assert result.means == [None] and result.rounds[0]["exact_sum"] in (False, None)
        return
    with pytest.raises(unisono.ParamsError, match=words):
        unisono.simulate(**settings)


def test_sizes_beyond_memory_are_refused_before_they_are_allocated():
    with pytest.raises(unisono.CryptoError, match="packed vector"):
        unisono.unpack(b"\0" * 10, 20, HUGE)
    with pytest.raises(unisono.EncodingError):
        unisono.dequantise(np.zeros(6, np.uint32), unisono.Quantiser(clip=1.0), 20, HUGE, 4)
    with pytest.raises((unisono.CryptoError, MemoryError)):
        unisono.split_secret(unisono.random_secret(), HUGE, [1, 2, 3])
    with pytest.raises(unisono.CryptoError):
        unisono.rebuild_secret([(1, unisono.random_secret())], HUGE)


def test_counts_of_the_helpers_are_checked():
    for call in (
        lambda: unisono.find_degree(-1),
        lambda: unisono.modulus_bits(-1, 5),
        lambda: unisono.modulus_bits(16, "many"),
    ):
        with pytest.raises(unisono.ParamsError, match="whole number"):
            call()


def negative():
    """Calls with a number below 0, by the name of the argument."""
    quantiser = unisono.Quantiser(clip=1.0)
    params = unisono.RoundParams(dimension=10, n_min=5, n_max=8, quantiser=quantiser, mode="semi-honest")
    server = unisono.ServerRound(params)
    vector, device, client = np.zeros(8, np.uint32), unisono.DeviceKeys.generate(), b"c" * 16
    publisher = unisono.SigningKey.generate("publisher")
    registrar = unisono.SigningKey.generate("registrar")
    release, key = unisono.seal(b"model", publisher, model_id="m", version=1)
    granted = unisono.grant(release, key, publisher, client_id=client, release_key=device.release_key)
    common = {"dimension": 10, "n_min": 5, "n_max": 8, "quantiser": quantiser, "mode": "semi-honest"}
    secret = unisono.random_secret()
    record = unisono.MemoryRecord()
    yield "n_min", lambda: unisono.simulate(5, 10, n_min=-1)
    yield "threads", lambda: unisono.simulate(5, 10, threads=-1)
    yield "bits", lambda: unisono.Quantiser(clip=1.0, bits=-1)
    yield "n_min", lambda: unisono.Policy(n_min=-1)
    for name in ("min_honest", "min_colluders", "max_rounds", "max_round_s"):
        yield name, lambda name=name: unisono.Policy(**{name: -1})
    yield "devices", lambda: unisono.Policy().smallest_sum(-1)
    yield "min_colluders", lambda: unisono.find_degree(5, min_colluders=-1)
    yield "clients", lambda: unisono.default_n_min(-1)
    yield "epoch", lambda: record.see_roster_epoch(-1)
    for name in ("max_dimension", "min_roster_epoch", "min_model_version", "min_interval_s"):
        yield name, lambda name=name: unisono.Policy(**{name: -1})
    for name in ("round", "min_colluders", "model_version", "modulus_bits", "chunk_elements", "now"):
        yield name, lambda name=name: unisono.RoundParams(**common, **{name: -1})
    yield "n", lambda: params.topology(-1)
    for name in ("survivors", "cohort", "rounds"):
        yield name, lambda name=name: unisono.Accountant().add(params, **{name: -1})
    for name in ("dimension", "clients"):
        settings = {"dimension": 7, "clients": 3, name: -1}
        yield name, lambda settings=settings: unisono.dequantise(vector, quantiser, 20, **settings)
    yield "modulus_bits", lambda: unisono.quantise(np.zeros(7, np.float32), 1.0, quantiser, -1)
    yield "modulus_bits", lambda: unisono.unmask(vector, -1)
    yield "modulus_bits", lambda: unisono.pack(vector, -1)
    yield "modulus_bits", lambda: unisono.ring_dtype(-1)
    yield "length", lambda: unisono.unpack(b"", 20, -1)
    yield "threshold", lambda: unisono.split_secret(secret, -1, [1, 2, 3])
    yield "abscissas", lambda: unisono.split_secret(secret, 2, [1, -2, 3])
    yield "threshold", lambda: unisono.rebuild_secret([(1, secret)], -1)
    yield "shares", lambda: unisono.rebuild_secret([(-1, secret)], 1)
    for name in ("version", "not_after", "roster_epoch", "now"):
        settings = {"version": 1, name: -1}
        yield name, lambda settings=settings: unisono.seal(b"", publisher, model_id="m", **settings)
    yield "roster_epoch", lambda: unisono.grant(
        release, key, publisher, client_id=client, release_key=device.release_key, roster_epoch=-1
    )
    yield "min_roster_epoch", lambda: granted.open(release, device, [], min_roster_epoch=-1)
    for name in ("seen", "min_roster_epoch", "max_payload", "now"):
        yield name, lambda name=name: release.open(key, [], **{name: -1})
    for name in ("epoch", "not_before", "not_after", "issued_at", "valid_until"):
        settings = {"epoch": 1, name: -1}
        yield name, lambda settings=settings: unisono.Roster.publish([], registrar, coordinators=[], **settings)
    yield "now", lambda: server.absorb(b"", now=-1)
    for name in ("since", "until"):
        settings = {"since": 1, "until": 2, name: -1}
        yield name, lambda settings=settings: server.suspend(client, **settings)
    yield "now", lambda: unisono.ClientRound(server.offer(), device, record=record, now=-1)
    yield "max_failures", lambda: unisono.Client("http://localhost:1", "t", device, print, max_failures=-1)


def test_a_number_below_zero_is_refused_by_name_everywhere():
    for name, call in negative():
        with pytest.raises(unisono.ParamsError, match=f"^{name} is -[12]; a whole number from 0"):
            call()


def test_bytes_of_another_length_are_refused_by_name_and_not_shown():
    publisher = unisono.SigningKey.generate("publisher")
    update, quantiser = np.zeros(7, np.float32), unisono.Quantiser(clip=1.0)
    for name, call in (
        ("seed", lambda: unisono.random_secret(seed=b"hidden")),
        ("seed", lambda: unisono.SigningKey.generate("publisher", seed=b"hidden")),
        ("seed", lambda: unisono.DeviceKeys.generate(seed=b"hidden")),
        ("seed", lambda: unisono.DecapsulationKey.generate(b"hidden")),
        ("seed", lambda: unisono.quantise(update, 1.0, quantiser, 20, seed=b"hidden")),
        ("seed", lambda: unisono.encapsulate(unisono.DecapsulationKey.generate().encapsulation_key, seed=b"hidden")),
        ("secret", lambda: unisono.split_secret(b"hidden", 2, [1, 2, 3])),
        ("shares", lambda: unisono.rebuild_secret([(1, b"hidden")], 1)),
        ("previous", lambda: unisono.seal(b"", publisher, model_id="m", version=1, previous=b"hidden")),
        (
            "model_hash",
            lambda: unisono.RoundParams(
                dimension=1, n_min=3, n_max=3, quantiser=quantiser, mode="semi-honest", model_hash=b"hidden"
            ),
        ),
    ):
        with pytest.raises(unisono.CryptoError, match=f"^{name} is a bytes of length 6; 32 bytes") as caught:
            call()
        assert "hidden" not in str(caught.value)
    with pytest.raises(unisono.CryptoError, match="seed is a str of length 32"):
        unisono.random_secret(seed="s" * 32)


@pytest.mark.parametrize("name", ["min_gamma", "max_delta", "privacy_delta", "max_epsilon", "max_total_epsilon"])
@pytest.mark.parametrize("value", [float("nan"), -0.1, float("-inf"), "all", 10**400])
def test_a_policy_has_no_limit_that_nothing_or_everything_meets(name, value):
    with pytest.raises(unisono.ParamsError, match=f"{name} is"):
        unisono.Policy(**{name: value})


def test_what_a_callable_returns_is_checked():
    def simulate(result, **settings):
        quantiser = unisono.Quantiser(clip=1.0, **settings)
        return unisono.simulate(clients=5, dim=10, quantiser=quantiser, updates=lambda *_: result)

    zeros = np.zeros(10, np.float32)
    for result in (None, 5, (zeros,), (zeros, "heavy"), (zeros, 1.0, "good"), (zeros, 1.0, [0.1], 4)):
        with pytest.raises(unisono.ArrayError, match="is needed"):
            simulate(result)
    bad = zeros.copy()
    bad[3] = np.nan
    with pytest.raises(unisono.EncodingError, match="element 3"):
        simulate((bad, 1.0))
    with pytest.raises(unisono.EncodingError, match="max_weight = 1"):
        simulate((zeros, 2.0))
    # Metrics that the quantiser has no interval for, or too few of them: the round would have no answers.
    with pytest.raises(unisono.ParamsError, match="returned 0 metrics.* intervals for 1"):
        simulate((zeros, 1.0), metrics=[(0.0, 1.0)])
    with pytest.raises(unisono.ParamsError, match="returned 2 metrics.* intervals for 1"):
        simulate((zeros, 1.0, [0.5, 0.5]), metrics=[(0.0, 1.0)])
    with pytest.raises(unisono.EncodingError, match="element 0 of the list of metrics is NaN"):
        simulate((zeros, 1.0, [float("nan")]), metrics=[(0.0, 1.0)])


def test_updates_without_a_clip_are_not_clipped_by_a_guess():
    with pytest.raises(unisono.ParamsError, match="quantiser=.*clip"):
        unisono.simulate(clients=5, dim=10, updates=lambda *_: (np.zeros(10, np.float32), 1.0))


def test_an_array_that_another_thread_changes_spoils_no_other_element():
    values = np.arange(1, 200_001, dtype=np.uint64)
    ends = threading.Event()

    def change():
        while not ends.is_set():
            values[0] = np.uint64(2**64 - 1)
            values[0] = 1

    thread = threading.Thread(target=change)
    thread.start()
    packed = 0
    try:
        for _ in range(60):
            try:
                vector = unisono.unpack(unisono.pack(values, 40), 40, len(values))
            except unisono.CryptoError:
                continue
            packed += 1
            assert vector[0] == 1
            assert (vector[1:] == values[1:]).all()
    finally:
        ends.set()
        thread.join()
    assert packed > 0


def test_a_masked_array_is_refused_wherever_an_array_is_taken(at_masking):
    client, view = at_masking
    masked = np.ma.masked_array(np.zeros(10, np.float32), mask=[False, True] * 5)
    for call in (
        lambda: client.receive(view, update=masked),
        lambda: unisono.quantise(masked, 1.0, unisono.Quantiser(clip=1.0), 20),
        lambda: unisono.mask(np.ma.masked_array(np.zeros(10, np.uint32)), 20, add=[b"s" * 32]),
    ):
        with pytest.raises(unisono.ArrayError, match="filled"):
            call()
