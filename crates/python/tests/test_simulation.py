"""unisono.simulate: reproducible, exact, and refusing what can't be simulated."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import unisono


@pytest.mark.parametrize("mode", ["malicious", "semi-honest"])
def test_one_seed_gives_one_result_and_the_sums_are_exact(mode):
    once, again, other = (
        unisono.simulate(clients=20, dim=500, dropout=0.1, mode=mode, seed=seed, rounds=2) for seed in (5, 5, 6)
    )
    assert [played["exact_sum"] for played in once.rounds] == [True, True]
    assert [played["survivors"] for played in once.rounds] == [18, 18]
    hashes = [[played["sum_hash"] for played in result.rounds] for result in (once, again, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    np.testing.assert_array_equal(once.means[0], again.means[0])
    assert once.means[0].dtype == np.float32 and once.means[0].shape == (500,)


def test_shared_checks_change_no_sum_and_are_told():
    alone, shared = (unisono.simulate(clients=20, dim=50, seed=4, share_checks=share) for share in (False, True))
    assert [result.settings["shared_checks"] for result in (alone, shared)] == [False, True]
    assert alone.rounds[0]["sum_hash"] == shared.rounds[0]["sum_hash"]


def test_columns_have_one_row_for_each_phase():
    columns = unisono.simulate(clients=10, dim=50, seed=1, rounds=2).to_dict()
    assert {len(column) for column in columns.values()} == {10}
    assert columns["phase"][:5] == ["advertise", "share", "mask", "confirm", "unmask"]
    arrays = unisono.simulate(clients=10, dim=50, seed=1).arrays()
    assert arrays["bytes_up_mean"].min() > 0 and arrays["answered"].tolist() == [10] * 5


def test_updates_come_from_a_callable_and_means_go_to_one():
    rng = np.random.default_rng(2)
    values = rng.uniform(-1, 1, (12, 40)).astype(np.float32)
    means = []
    result = unisono.simulate(
        clients=12,
        dim=40,
        quantiser=unisono.Quantiser(clip=1.0, bits=20, max_weight=12.0),
        updates=lambda client, _: (values[client], float(client + 1)),
        round_finished=lambda number, mean: means.append((number, mean)),
    )
    expected = np.average(values, axis=0, weights=np.arange(1, 13))
    assert np.abs(result.means[0] - expected).max() <= result.rounds[0]["error_bound"] + 1e-6
    assert means[0][0] == 1
    np.testing.assert_array_equal(means[0][1], result.means[0])


def test_what_a_callable_raises_comes_out():
    settings = {"clients": 5, "dim": 10, "quantiser": unisono.Quantiser(clip=1.0)}

    def broken(client, number):
        if number == 2:
            raise LookupError(f"no data for {client}")
        return np.zeros(10, np.float32), 1.0

    with pytest.raises(LookupError, match="no data") as caught:
        unisono.simulate(**settings, rounds=3, updates=broken)
    assert len(caught.value.partial.rounds) == 1 and caught.value.partial.interrupted
    with pytest.raises(unisono.ArrayError, match="float32"):
        unisono.simulate(**settings, updates=lambda *_: (np.zeros(10), 1.0))
    with pytest.raises(unisono.ArrayError, match="9 elements"):
        unisono.simulate(**settings, updates=lambda *_: (np.zeros(9, np.float32), 1.0))


def test_metrics_of_a_callable_are_averaged():
    result = unisono.simulate(
        clients=6,
        dim=10,
        rounds=2,
        quantiser=unisono.Quantiser(clip=1.0, metrics=[(0.0, 1.0), (0.0, 10.0)]),
        updates=lambda client, number: (np.zeros(10, np.float32), 1.0, [0.5, float(client)]),
    )
    assert [played["survivors"] for played in result.rounds] == [6, 6]
    assert result.metrics == [pytest.approx([0.5, 2.5], abs=1e-3)] * 2
    assert not result.interrupted


def test_progress_is_told_by_phase_and_what_it_raises_comes_out():
    seen = []
    result = unisono.simulate(clients=8, dim=10, rounds=2, progress=lambda *turn: seen.append(turn))
    phases = ["advertise", "share", "mask", "confirm", "unmask"]
    assert [turn for turn in seen if turn[2] == 8] == [(number, phase, 8, 8) for number in (1, 2) for phase in phases]
    assert (1, "advertise", 0, 8) in seen and len(result.rounds) == 2

    def stop(number, phase, done, clients):
        if (number, phase) == (2, "mask"):
            raise EOFError

    with pytest.raises(EOFError) as caught:
        unisono.simulate(clients=8, dim=10, rounds=3, progress=stop)
    assert [played["round"] for played in caught.value.partial.rounds] == [1]


def test_a_deadline_leaves_the_slow_behind():
    result = unisono.simulate(clients=8, dim=10, deadline=1e-9)
    assert result.means == [None] and result.metrics == [None] and result.rounds[0]["abort"]
    with pytest.raises(unisono.ParamsError, match="deadline"):
        unisono.simulate(clients=8, dim=10, deadline=0.0)


@pytest.fixture
def interruptible():
    """A shell that runs the tests in the background has SIGINT ignored; then Python would hear nothing of it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_leaves_the_rounds_that_were_finished(interruptible):
    def interrupt(number, mean):
        if number == 2:
            # The way Ctrl-C comes: the process gets the signal, the main thread learns of it.
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        unisono.simulate(clients=8, dim=1000, rounds=2000, round_finished=interrupt)
    partial = caught.value.partial
    assert partial.interrupted and 2 <= len(partial.rounds) < 1000
    assert len(partial.means) == len(partial.metrics) == len(partial.rounds)
    assert len(partial.arrays()["phase"]) == 5 * len(partial.rounds) and "rounds=" in repr(partial)


def progress_of_another_thread(call):
    """How often another thread had its turn while `call` ran in this one."""
    turns, done = 0, threading.Event()

    def count():
        nonlocal turns
        while not done.is_set():
            turns += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        before = turns
        call()
        return turns - before
    finally:
        done.set()
        thread.join()


def test_other_threads_go_on_during_heavy_calls():
    vector = np.zeros(1 << 20, np.uint32)
    seeds = [bytes([i]) * 32 for i in range(200)]
    assert progress_of_another_thread(lambda: unisono.mask(vector, 20, add=seeds)) > 5
    assert progress_of_another_thread(lambda: unisono.simulate(clients=20, dim=20_000, rounds=3)) > 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clients": 0}, "clients"),
        ({"dim": 0}, "dimension"),
        ({"rounds": 0}, "rounds"),
        ({"dropout": 1.0}, "below 1"),
        ({"dropout": float("nan")}, "allowed|fraction"),
        ({"dropout": "often"}, "allowed"),
        ({"clients": 10, "gamma": 0.4, "delta": 0.5}, "feasible would be"),
        ({"mode": "naive"}, "semi-honest"),
    ],
)
def test_what_can_not_be_simulated_is_refused_with_advice(settings, words):
    with pytest.raises(unisono.ParamsError, match=words):
        unisono.simulate(**{"clients": 10, "dim": 10, **settings})


def test_noise_is_told_with_its_epsilon_and_is_in_the_mean():
    quantiser = unisono.Quantiser(bits=12, clip=0.5, l2_clip=1.0)
    quiet = unisono.simulate(20, 400, mode="semi-honest", quantiser=quantiser, seed=3)
    noisy = unisono.simulate(20, 400, mode="semi-honest", quantiser=quantiser, seed=3, noise_multiplier=1.0, rounds=2)
    assert "privacy" not in quiet.rounds[0]
    first, second = (entry["privacy"] for entry in noisy.rounds)
    assert 1.0 < first["epsilon"] == first["total_epsilon"] < second["total_epsilon"]
    difference = noisy.means[0] - quiet.means[0]
    assert 0.5 * first["noise_deviation"] < difference.std() < 2.0 * first["noise_deviation"]
    with pytest.raises(unisono.EncodingError, match="max_weight"):
        unisono.simulate(
            20,
            400,
            quantiser=quantiser,
            noise_multiplier=1.0,
            updates=lambda *_: (np.zeros(400, np.float32), 0.5),
        )
    with pytest.raises(unisono.Error, match="l2_clip"):
        unisono.simulate(20, 400, quantiser=unisono.Quantiser(clip=1.0), noise_multiplier=1.0)
