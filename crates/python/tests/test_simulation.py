"""unisono.simulate: reproducible, exact, and refusing what can't be simulated."""

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
        quantiser=unisono.Quantiser(bits=20, max_weight=12.0),
        updates=lambda client, _: (values[client], float(client + 1)),
        round_finished=lambda number, mean: means.append((number, mean)),
    )
    expected = np.average(values, axis=0, weights=np.arange(1, 13))
    assert np.abs(result.means[0] - expected).max() <= result.rounds[0]["error_bound"] + 1e-6
    assert means[0][0] == 1
    np.testing.assert_array_equal(means[0][1], result.means[0])


def test_what_a_callable_raises_comes_out():
    def broken(client, number):
        raise LookupError(f"no data for {client}")

    with pytest.raises(LookupError, match="no data"):
        unisono.simulate(clients=5, dim=10, updates=broken)
    with pytest.raises(unisono.ArrayError, match="float32"):
        unisono.simulate(clients=5, dim=10, updates=lambda *_: (np.zeros(10), 1.0))
    with pytest.raises(unisono.ArrayError, match="9 elements"):
        unisono.simulate(clients=5, dim=10, updates=lambda *_: (np.zeros(9, np.float32), 1.0))


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
    with pytest.raises(unisono.Error, match="l2_clip"):
        unisono.simulate(20, 400, quantiser=unisono.Quantiser(), noise_multiplier=1.0)
