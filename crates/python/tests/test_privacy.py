"""Differential privacy in a round of one's own: the noise, what it promises, and who refuses."""

import copy
import json
import pickle

import numpy as np
import pytest
import unisono
from rounds import World, play


@pytest.fixture(scope="module")
def world():
    return World(8)


QUANTISER = unisono.Quantiser(clip=0.5, bits=12, l2_clip=1.0)
DIMENSION = 400


def params(**settings):
    common = {"dimension": DIMENSION, "n_min": 6, "n_max": 8, "gamma": 0.0, "mode": "semi-honest"}
    return unisono.RoundParams(**{"quantiser": QUANTISER, "noise_multiplier": 1.0, **common, **settings})


def test_a_round_has_the_noise_that_it_promises(world):
    server = world.open(dimension=DIMENSION, quantiser=QUANTISER, n_min=6, noise_multiplier=1.0)
    updates = [np.full(DIMENSION, 0.01, np.float32)] * 8
    with pytest.raises(unisono.EncodingError, match="max_weight = 1"):
        play(world, server, updates, [0.5] * 8)
    server = world.open(dimension=DIMENSION, quantiser=QUANTISER, n_min=6, noise_multiplier=1.0, round=2)
    aggregate = play(world, server, updates, [1.0] * 8).decode()
    assert aggregate.noise_deviation > 0.0
    off = (aggregate.mean - 0.01).std()
    assert 0.8 * aggregate.noise_deviation < off < 1.2 * aggregate.noise_deviation + aggregate.error_bound


def test_less_noise_spends_more_and_rounds_add_up():
    epsilons = [params(noise_multiplier=noise).epsilon() for noise in (4.0, 1.0, 0.5)]
    assert 0.0 < epsilons[0] < epsilons[1] < epsilons[2]
    assert params(noise_multiplier=None).epsilon() is None
    one = params()
    accountant = unisono.Accountant()
    assert accountant.epsilon() == 0.0
    accountant.add(one)
    assert accountant.epsilon() == pytest.approx(one.epsilon())
    accountant.add(one, rounds=9)
    # Ten rounds cost less than ten times one.
    assert one.epsilon() < accountant.epsilon() < 10 * one.epsilon()
    assert accountant.epsilon(1e-3) < accountant.epsilon(1e-9)
    larger = unisono.Accountant()
    larger.add(one, survivors=8, cohort=8)
    assert larger.epsilon() < one.epsilon()
    simulated = unisono.simulate(
        8, DIMENSION, mode="semi-honest", quantiser=QUANTISER, gamma=0.0, n_min=6, delta=0.2, noise_multiplier=1.0
    )
    assert simulated.settings["privacy"]["epsilon"] == pytest.approx(one.epsilon())
    assert simulated.rounds[0]["privacy"]["epsilon"] == pytest.approx(larger.epsilon())


def test_a_device_refuses_a_round_that_promises_too_little(world):
    limit = params().epsilon()

    def join(noise, **policy):
        policy = unisono.Policy(n_min=3, min_gamma=0.0, allow_semi_honest=True, **policy)
        offer = unisono.ServerRound(params(noise_multiplier=noise)).offer()
        return unisono.ClientRound(offer, world.keys[0], record=unisono.MemoryRecord(), policy=policy)

    assert join(1.0, max_epsilon=limit * 1.01).awaits == "share"
    assert join(None).awaits == "share"
    with pytest.raises(unisono.PolicyError, match="epsilon"):
        join(1.0, max_epsilon=limit * 0.99)
    with pytest.raises(unisono.PolicyError, match="epsilon"):
        join(1.0, max_epsilon=limit * 1.01, privacy_delta=1e-9)
    with pytest.raises(unisono.PolicyError, match="absent"):
        join(None, max_epsilon=100.0)


def test_a_device_counts_what_its_rounds_of_a_task_have_cost(world):
    settings = {"dimension": DIMENSION, "quantiser": QUANTISER, "n_min": 6, "noise_multiplier": 1.0, "delta": 0.2}
    one = world.open(**settings)
    records = [unisono.MemoryRecord() for _ in world.keys]
    account = unisono.Accountant()
    account.add(params(delta=0.2), rounds=2)
    # Two rounds fit, a third one does not.
    policy = unisono.Policy(n_min=3, min_gamma=0.0, min_interval_s=0, max_total_epsilon=account.epsilon() * 1.001)
    updates = [np.zeros(DIMENSION, np.float32)] * 8
    play(world, one, updates, [1.0] * 8, policy=policy, records=records)
    play(world, world.open(**settings, round=2), updates, [1.0] * 8, policy=policy, records=records, restart=True)
    with pytest.raises(unisono.PolicyError, match="max_total_epsilon"):
        world.join(world.open(**settings, round=3), 0, records[0], policy)
    noted = json.loads(records[0].entry("python"))
    assert (noted["rounds"], noted["unprotected"]) == (2, 0)
    kept = unisono.Accountant.from_bytes(bytes.fromhex(noted["account"]))
    assert kept.epsilon() == pytest.approx(account.epsilon())
    assert kept.to_bytes() == bytes.fromhex(noted["account"])
    with pytest.raises(unisono.PolicyError, match="absent"):
        world.join(world.open(dimension=10, quantiser=QUANTISER, round=3), 0, records[0], policy)
    # A round without noise can't be made good.
    bare = unisono.MemoryRecord()
    fresh = [bare, *(unisono.MemoryRecord() for _ in range(7))]
    play(world, world.open(dimension=10, quantiser=QUANTISER), [np.zeros(10, np.float32)] * 8, [1.0] * 8, records=fresh)
    with pytest.raises(unisono.PolicyError, match="max_total_epsilon"):
        limits = {"n_min": 3, "min_gamma": 0.0, "min_interval_s": 0, "max_total_epsilon": 1e9}
        world.join(world.open(**settings, round=2), 0, bare, unisono.Policy(**limits))
    for spoilt in (b"", account.to_bytes()[:-1], b"\xff" * len(account.to_bytes())):
        with pytest.raises(unisono.ParamsError, match="to_bytes"):
            unisono.Accountant.from_bytes(spoilt)


def test_an_account_is_kept_by_pickle_and_as_json():
    account = unisono.Accountant()
    account.add(params(), rounds=7)
    for kept in (pickle.loads(pickle.dumps(account)), copy.deepcopy(account), unisono.Accountant.from_json(account.to_json())):
        assert kept.to_bytes() == account.to_bytes() and kept.epsilon() == account.epsilon() > 0.0
    assert json.loads(account.to_json())["unisono_accountant"] == 1
    # Nothing that is not an account is taken for one that has spent less.
    text = account.to_json()
    for spoilt in ("", "{}", "[]", "5", text[:-20], text.replace("1,", "2,"), '{"unisono_accountant": 1, "spent": "zz"}', '{"spent": 3}', text.replace("1,", '"1",')):
        with pytest.raises(unisono.ParamsError, match="to_json|to_bytes"):
            unisono.Accountant.from_json(spoilt)


def test_noise_that_can_not_be_is_refused_with_advice():
    for noise in (0.0, -1.0, float("nan"), float("inf"), "loud"):
        with pytest.raises(unisono.ParamsError, match="noise_multiplier is"):
            params(noise_multiplier=noise)
    with pytest.raises(unisono.EncodingError, match="l2_clip"):
        params(quantiser=unisono.Quantiser(clip=0.5))
    with pytest.raises(unisono.EncodingError, match="metrics"):
        params(quantiser=unisono.Quantiser(clip=0.5, l2_clip=1.0, metrics=[(0.0, 1.0)]))
    # By names that a caller has set.
    with pytest.raises(unisono.Error, match="less noise .noise_multiplier., or give fewer bits or a larger clip"):
        params(noise_multiplier=1e30)
    with pytest.raises(unisono.EncodingError, match="`bits` is 32; 1 to 24|`bits` is 32; allowed is 1 to 24"):
        params(quantiser=unisono.Quantiser(clip=0.5, bits=32, l2_clip=1.0))
    for call in (params().epsilon, unisono.Accountant().epsilon):
        for delta in (0.0, 1.0, float("nan")):
            with pytest.raises(unisono.ParamsError, match="privacy_delta is"):
                call(delta)
    accountant = unisono.Accountant()
    with pytest.raises(unisono.ParamsError, match="noise_multiplier="):
        accountant.add(params(noise_multiplier=None))
    for counts in ({"survivors": 9}, {"survivors": 5}, {"cohort": 9}, {"survivors": 8, "cohort": 7}):
        with pytest.raises(unisono.ParamsError, match="survivors of a cohort"):
            accountant.add(params(), **counts)
    assert accountant.epsilon() == 0.0
