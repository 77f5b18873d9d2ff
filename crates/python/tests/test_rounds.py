"""Rounds through the sans-IO classes: exact sums, drop-outs, refusals, threads and forks."""

import json
import os
import threading

import numpy as np
import pytest
import unisono
from rounds import World, forked, play


@pytest.fixture(scope="module")
def world():
    return World(8)


def inputs(world, dimension, seed=0):
    rng = np.random.default_rng(seed)
    updates = [rng.uniform(-1, 1, dimension).astype(np.float32) for _ in world.keys]
    return updates, [float(w) for w in rng.integers(1, 10, len(updates))]


@pytest.mark.parametrize("mode", ["malicious", "semi-honest"])
@pytest.mark.parametrize("restart", [False, True])
def test_a_round_with_drop_outs_gives_the_exact_sum_of_the_survivors(world, mode, restart):
    quantiser = unisono.Quantiser(bits=16, clip=1.0, max_weight=10.0, rounding="deterministic")
    server = world.open(mode, dimension=1000, quantiser=quantiser)
    updates, weights = inputs(world, 1000)
    outcome = play(world, server, updates, weights, dropped={2, 5}, restart=restart)
    alive = [i for i in range(8) if i not in {2, 5}]
    assert outcome.survivors == sorted(world.keys[i].client_id for i in alive)
    bits = unisono.modulus_bits(16, 8)
    expected = sum(unisono.quantise(updates[i], weights[i], quantiser, bits).astype(np.uint64) for i in alive)
    np.testing.assert_array_equal(outcome.sum.astype(np.uint64), expected)
    aggregate = outcome.decode()
    mean = np.average([updates[i] for i in alive], axis=0, weights=[weights[i] for i in alive])
    assert np.abs(aggregate.mean - mean).max() <= aggregate.error_bound + 1e-6
    assert aggregate.total_weight == pytest.approx(sum(weights[i] for i in alive), abs=1e-2)


def test_too_many_drop_outs_end_the_round_with_an_abort(world):
    server = world.open(dimension=10, quantiser=unisono.Quantiser(clip=1.0), n_min=6)
    updates, weights = inputs(world, 10)
    with pytest.raises(unisono.AbortError, match="the round needs 6") as caught:
        play(world, server, updates, [1.0] * 8, dropped={0, 1, 2})
    assert (caught.value.code, caught.value.suspects) == ("too_few", [])
    with pytest.raises(unisono.StateError, match="over"):
        server.offer()


def test_a_suspended_client_is_refused_and_the_round_is_without_it(world):
    server = world.open(dimension=10, quantiser=unisono.Quantiser(clip=1.0))
    cheat = world.keys[0].client_id
    server.suspend(cheat, 0, 5)
    with pytest.raises(unisono.RefusalError, match="suspended up to round 5") as caught:
        server.absorb(world.join(server, 0).message())
    assert (caught.value.code, caught.value.client_id) == ("suspended", cheat)
    assert server.absorb(world.join(server, 1).message())
    with pytest.raises(unisono.RefusalError, match="16 bytes"):
        server.suspend(b"short", 0, 5)


def test_a_spent_round_is_not_joined_again(world):
    server = world.open(dimension=10, quantiser=unisono.Quantiser(clip=1.0))
    record = unisono.MemoryRecord()
    entry = {"round": 1, "cohort": "07" * 32, "masked_for": None, "survivors": None, "rounds": 0, "last_at": 0, "unprotected": 0, "account": ""}
    assert record.replace("python", None, json.dumps(entry).encode())
    with pytest.raises(unisono.RecordError, match="round 1 of task \"python\" is closed"):
        world.join(server, 0, record)


def test_a_record_that_fails_keeps_the_device_from_joining(world):
    class Broken(unisono.MemoryRecord):
        def entry(self, task):
            raise OSError("disk gone")

    server = world.open(dimension=10, quantiser=unisono.Quantiser(clip=1.0))
    with pytest.raises(unisono.RecordError, match="disk gone"):
        world.join(server, 0, Broken())


def test_a_policy_refuses_what_the_device_did_not_agree_to(world):
    server = world.open("semi-honest", dimension=10, quantiser=unisono.Quantiser(clip=1.0))
    with pytest.raises(unisono.PolicyError, match="allow_semi_honest"):
        unisono.ClientRound(server.offer(), world.keys[0], record=unisono.MemoryRecord())


def test_messages_that_do_not_belong_are_refused_and_named(world):
    server = world.open(dimension=10, quantiser=unisono.Quantiser(clip=1.0))
    client = world.join(server, 0)
    for garbage in (b"", b"\xff" * 40, client.message()[:-3]):
        with pytest.raises(unisono.RefusalError):
            server.absorb(garbage)
    stranger = World(3)
    with pytest.raises(unisono.RosterError, match="roster head does not verify"):
        stranger.join(server, 0)
    with pytest.raises(unisono.RefusalError, match="16 bytes"):
        server.view(b"short")
    with pytest.raises(unisono.ClientError):
        client.receive(b"\xff\xff")
    with pytest.raises(unisono.StateError, match="no upload"):
        client.upload()
    server.absorb(client.message())
    other = world.open(dimension=11, quantiser=unisono.Quantiser(clip=1.0))
    with pytest.raises(unisono.RefusalError) as caught:
        other.absorb(client.message())
    assert caught.value.code == "other_round" and caught.value.phase == "advertise"
    assert caught.value.client_id == world.keys[0].client_id


def test_an_update_that_does_not_fit_is_refused_and_the_device_may_try_again(world):
    server = world.open(dimension=10, quantiser=unisono.Quantiser(clip=1.0, max_weight=2.0))
    clients = [world.join(server, i) for i in range(8)]
    for client in clients:
        server.absorb(client.message())
    server.close()
    for keys, client in zip(world.keys, clients):
        server.absorb(client.receive(server.view(keys.client_id)))
    server.close()
    client, view = clients[0], server.view(world.keys[0].client_id)
    good = np.zeros(10, np.float32)
    bad = good.copy()
    bad[3] = np.nan
    with pytest.raises(unisono.EncodingError, match="element 3"):
        client.receive(view, update=bad)
    with pytest.raises(unisono.EncodingError, match="asks for 10"):
        client.receive(view, update=np.zeros(9, np.float32))
    with pytest.raises(unisono.EncodingError, match="max_weight = 2"):
        client.receive(view, update=good, weight=3.0)
    with pytest.raises(unisono.ArrayError, match="float32"):
        client.receive(view, update=np.zeros(10))
    with pytest.raises(unisono.StateError, match="update="):
        client.receive(view)
    good.flags.writeable = False
    assert client.receive(view, update=good) == client.message()
    assert client.awaits == "confirm" and not client.done


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"n_min": 0, "n_max": 0}, unisono.ParamsError, "n_min"),
        ({"n_min": 8, "gamma": 0.4, "delta": 0.5}, unisono.ParamsError, "feasible would be"),
        ({"delta": float("nan")}, unisono.ParamsError, "delta"),
        ({"dimension": 0}, unisono.ParamsError, "dimension"),
        ({"modulus_bits": 9}, unisono.ParamsError, "overflow"),
        ({"mode": "trusting"}, unisono.ParamsError, "semi-honest"),
        ({"task": ""}, unisono.ParamsError, "task"),
    ],
)
def test_parameters_that_no_round_can_run_with_are_refused_with_advice(world, settings, error, words):
    with pytest.raises(error, match=words):
        world.open(**{"dimension": 10, "quantiser": unisono.Quantiser(clip=1.0), **settings})


def test_malicious_mode_without_a_roster_is_refused():
    with pytest.raises(unisono.RosterError, match="roster="):
        unisono.RoundParams(dimension=10, n_min=3, n_max=8, quantiser=unisono.Quantiser(clip=1.0))


def test_threads_take_one_step_once(world):
    server = world.open(dimension=10, quantiser=unisono.Quantiser(clip=1.0))
    message = world.join(server, 0).message()
    news = []
    threads = [threading.Thread(target=lambda: news.append(server.absorb(message))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(news) == [False] * 7 + [True]


def _whole_round_in_child(queue):
    world = World(4)
    quantiser = unisono.Quantiser(clip=1.0)
    server = world.open(dimension=50_000, quantiser=quantiser)
    outcome = play(world, server, [np.zeros(50_000, np.float32)] * 4, [1.0] * 4)
    queue.put((len(outcome.survivors), unisono.random_secret()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_plays_rounds_of_its_own(world):
    server = world.open(dimension=50_000, quantiser=unisono.Quantiser(clip=1.0, max_weight=10.0))
    updates, weights = inputs(world, 50_000)
    play(world, server, updates, weights)
    unisono.simulate(clients=5, dim=100)
    survivors, secret = forked(_whole_round_in_child)
    assert survivors == 4
    assert secret != unisono.random_secret(), "parent and child must not draw the same randomness"


def _in_child(client, queue):
    try:
        client.message()
        queue.put("answered")
    except unisono.StateError as error:
        queue.put(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_copy_of_a_round_is_refused(world):
    server = world.open(dimension=10, quantiser=unisono.Quantiser(clip=1.0))
    client = world.join(server, 0)
    assert "another process" in forked(_in_child, client)
    assert client.message()


def test_a_saved_state_of_another_device_or_cut_short_is_refused(world):
    server = world.open(dimension=10, quantiser=unisono.Quantiser(clip=1.0))
    saved = world.join(server, 0).save()
    common = {"record": unisono.MemoryRecord(), "registrar_key": world.registrar.verifying_key}
    assert unisono.ClientRound.resume(saved, server.offer(), world.keys[0], **common).awaits == "share"
    with pytest.raises(unisono.ClientError, match="another round or device"):
        unisono.ClientRound.resume(saved, server.offer(), world.keys[1], **common)
    with pytest.raises(unisono.Error):
        unisono.ClientRound.resume(saved[:50], server.offer(), world.keys[0], **common)


def test_a_state_saved_earlier_does_not_share_again(world):
    server = world.open(dimension=10, quantiser=unisono.Quantiser(clip=1.0))
    records = [unisono.MemoryRecord() for _ in world.keys]
    clients = [world.join(server, i, record) for i, record in enumerate(records)]
    for client in clients:
        server.absorb(client.message())
    assert server.close() is None
    saved, offer, view = clients[0].save(), server.offer(), server.view(world.keys[0].client_id)
    clients[0].receive(view)
    common = {"record": records[0], "registrar_key": world.registrar.verifying_key}
    earlier = unisono.ClientRound.resume(saved, offer, world.keys[0], **common)
    with pytest.raises(unisono.RecordError, match="shared"):
        earlier.receive(view)


def test_a_device_may_demand_a_publishers_word_on_the_base_model():
    world, publisher = World(4), unisono.SigningKey.generate("publisher")
    world.roster = unisono.Roster.publish(
        [keys.enrolment() for keys in world.keys],
        world.registrar,
        epoch=1,
        coordinators=[world.coordinator.verifying_key],
        publishers=[publisher.verifying_key],
    )
    strict = unisono.Policy(n_min=3, signed_base_model=True)
    server = world.open(dimension=10, quantiser=unisono.Quantiser(clip=1.0), gamma=0.05, model_version=3, model_hash=b"h" * 32)
    for key, words in ((None, "no publisher"), (unisono.SigningKey.generate("publisher"), "not of a publisher")):
        if key is not None:
            server.sign_base_model(key)
        with pytest.raises(unisono.PolicyError, match=f"{words}.*set by `signed_base_model`"):
            world.join(server, 0, policy=strict)
    server.sign_base_model(publisher)
    assert world.join(server, 0, policy=strict).awaits == "share"
    with pytest.raises(unisono.KeyFileError):
        server.sign_base_model(world.coordinator)
