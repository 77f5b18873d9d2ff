"""What can't be right is refused with a Python exception that says what to change; the interpreter goes on."""

import numpy as np
import pytest
import unisono
from rounds import World

HUGE = 2**62


@pytest.fixture(scope="module")
def at_masking():
    """A round in which device 0 is asked for its update of 10 elements, and what it is shown."""
    world = World(8)
    server = world.open(dimension=10, quantiser=unisono.Quantiser(max_weight=2.0))
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
    assert client.phase == "shared"


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
    assert unisono.quantise(update, 1.0, unisono.Quantiser(), 20).size == 11


@pytest.mark.parametrize("name", ["dimension", "n_min", "n_max"])
@pytest.mark.parametrize("value", [-1, 2**80, 2.5, "10", None, float("nan")])
def test_a_count_that_is_none_is_refused_with_its_name(name, value):
    settings = {"dimension": 10, "n_min": 5, "n_max": 8, name: value}
    with pytest.raises(unisono.ParamsError, match=f"{name} is"):
        unisono.RoundParams(quantiser=unisono.Quantiser(), mode="semi-honest", **settings)


@pytest.mark.parametrize("dimension", [0, 2**33, HUGE, 2**64 - 1])
def test_a_dimension_that_no_round_has_is_refused(dimension):
    with pytest.raises(unisono.ParamsError, match="dimension"):
        unisono.RoundParams(dimension=dimension, n_min=5, n_max=8, quantiser=unisono.Quantiser(), mode="semi-honest")


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
        unisono.dequantise(np.zeros(6, np.uint32), unisono.Quantiser(), 20, HUGE, 4)
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


def test_what_a_callable_returns_is_checked():
    for result in (None, 5, (np.zeros(10, np.float32),), (np.zeros(10, np.float32), "heavy")):
        with pytest.raises(unisono.ArrayError, match="is needed"):
            unisono.simulate(clients=5, dim=10, updates=lambda *_, result=result: result)
    bad = np.zeros(10, np.float32)
    bad[3] = np.nan
    with pytest.raises(unisono.EncodingError, match="element 3"):
        unisono.simulate(clients=5, dim=10, updates=lambda *_: (bad, 1.0))
    with pytest.raises(unisono.EncodingError, match="max_weight = 1"):
        unisono.simulate(clients=5, dim=10, updates=lambda *_: (np.zeros(10, np.float32), 2.0))
