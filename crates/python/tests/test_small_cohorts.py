"""Small cohorts with the defaults: three, five and ten clients have a sum, with as many drop-outs as rule R7 allows."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import unisono
from rounds import World

#: Clients, and drop-outs that a malicious round of them tolerates.
COHORTS = [(3, 0), (5, 1), (10, 1), (10, 3)]



@pytest.mark.parametrize("mode", ["malicious", "semi-honest"])
@pytest.mark.parametrize(("clients", "dropped"), COHORTS)
def test_a_simulation_with_the_defaults_has_a_sum(clients, dropped, mode):
    result = unisono.simulate(clients, 10, mode=mode)
    assert result.rounds[0]["exact_sum"] and result.rounds[0]["survivors"] == clients
    # As many as vanish are expected.
    result = unisono.simulate(clients, 10, mode=mode, dropout=(dropped + 0.01) / clients if dropped else 0.0, seed=1)
    assert result.rounds[0]["exact_sum"] and result.rounds[0]["survivors"] == clients - dropped


def by_hand(clients, dropped, mode):
    """A round of one's own where everything that has a default has it; only semi-honest mode must be allowed."""
    world = World(clients)
    malicious = mode == "malicious"
    roster = world.roster if malicious else None
    params = unisono.RoundParams(
        dimension=10, n_max=clients, quantiser=unisono.Quantiser(clip=1.0), mode=mode, roster=roster
    )
    server = unisono.ServerRound(params, coordinator_key=world.coordinator if malicious else None, roster=roster)
    devices = [
        unisono.ClientRound(
            server.offer(),
            keys,
            record=unisono.MemoryRecord(),
            registrar_key=world.registrar.verifying_key if malicious else None,
            policy=None if malicious else unisono.Policy(allow_semi_honest=True),
        )
        for keys in world.keys
    ]
    for device in devices:
        server.absorb(device.message())
    while (outcome := server.close()) is None:
        if server.phase == "mask":
            devices = devices[dropped:]
        for keys, device in zip(world.keys[clients - len(devices) :], devices, strict=True):
            view = server.view(keys.client_id)
            if server.phase == "mask":
                server.absorb(device.receive(view, update=np.full(10, 0.5, np.float32)))
                server.absorb_upload(keys.client_id, device.upload())
            else:
                server.absorb(device.receive(view))
    assert all(device.done and device.awaits is None and device.erase_at is None for device in devices)
    return outcome


@pytest.mark.parametrize("mode", ["malicious", "semi-honest"])
@pytest.mark.parametrize(("clients", "dropped"), COHORTS)
def test_a_round_of_ones_own_with_the_defaults_has_a_sum(clients, dropped, mode):
    outcome = by_hand(clients, dropped, mode)
    assert len(outcome.survivors) == clients - dropped
    aggregate = outcome.decode()
    assert np.abs(aggregate.mean - 0.5).max() <= aggregate.error_bound + 1e-6


@pytest.mark.parametrize("clients", [3, 5, 10])
def test_one_drop_out_more_ends_the_round_without_a_sum(clients):
    tolerated = unisono.find_degree(clients).tolerated_drop_outs
    with pytest.raises(unisono.AbortError):
        by_hand(clients, tolerated + 1, "malicious")


@pytest.fixture(scope="module")
def flower():
    pytest.importorskip("flwr")
    pytest.importorskip("sklearn")
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    import flower_two_lines

    return flower_two_lines


@pytest.mark.parametrize("mode", ["malicious", "semi-honest"])
@pytest.mark.parametrize(("clients", "dropped"), COHORTS)
def test_flower_with_the_two_documented_lines_has_a_sum_in_every_round(flower, clients, dropped, mode):
    parameters, report = flower.run(clients, dropped, mode=mode, rounds=2)
    assert (report["round"], report["survivors"]) == (2, clients - dropped)
    # Each round adds a tenth to every parameter.
    assert np.abs(parameters[0] - 0.2).max() <= 2 * report["error_bound"] + 1e-6


def test_a_small_sample_of_a_large_roster_is_refused_with_what_to_set(flower, flower_log):
    parameters, report = flower.run(30, 0, sampled=5)
    (reason,) = [text for level, text in flower_log if level >= logging.ERROR]
    assert report == {} and not parameters[0].any()
    assert "5 clients were sampled" in reason and "roster of 30 refuse sums below 10" in reason
    assert "set n_min=4 here" in reason and "Policy(n_min=4, min_interval_s=0)" in reason
    # What it says to set, set.
    policy = unisono.Policy(n_min=4, min_interval_s=0)
    parameters, report = flower.run(30, 0, sampled=5, policy=policy, n_min=4)
    assert report["survivors"] == 5


def test_every_default_fits_every_other():
    policy = unisono.Policy()
    for n in range(3, 1001):
        n_min = unisono.default_n_min(n)
        # The device's default takes what the coordinator's default proposes, if all of the roster are asked.
        wanted = policy.smallest_sum(n)
        assert 3 <= wanted <= min(10, n_min) and (wanted == 10 or n < 16), n
        # Two honest inputs, and sizes for every cohort that the round may have.
        colluders = max(-(-n // 20), 1)
        assert n_min - colluders >= 2, n
        found, smallest = unisono.find_degree(n), unisono.find_degree(n_min)
        assert found.quorum <= n and smallest.quorum <= n_min
        # One drop-out from five on; a tenth of the cohort, or what the graph tolerates, are no reason to stop.
        spared = n - n_min
        assert spared >= (1 if n >= 5 else 0), n
        if n <= 32:
            assert found.tolerated_drop_outs == spared or n_min == colluders + 2 or spared > n // 10, n
        else:
            assert spared >= n // 10, n
        if n % 50 == 0 or n <= 40:
            params = unisono.RoundParams(
                dimension=10, n_max=n, quantiser=unisono.Quantiser(clip=1.0), mode="semi-honest"
            )
            assert params.n_min == unisono.default_n_min(n, mode="semi-honest") >= 3


def test_the_limits_of_a_policy_have_ranges_and_names():
    for name, value in (("n_min", 2), ("min_honest", 1), ("min_colluders", 0)):
        with pytest.raises(unisono.ParamsError, match=f"{name} is {value}; a whole number from"):
            unisono.Policy(**{name: value})
    assert unisono.Policy(n_min=5).smallest_sum(3) == 5
    # A tenth of colluders: a sum of ten of a hundred has one, of which the others can't be told.
    world = World(12)

    def join(record=None, now=100, params={}, **policy):
        settings = {"dimension": 10, "n_max": 12, "quantiser": unisono.Quantiser(clip=1.0), "roster": world.roster}
        offered = unisono.RoundParams(**settings, **params)
        server = unisono.ServerRound(offered, coordinator_key=world.coordinator, roster=world.roster)
        return unisono.ClientRound(
            server.offer(),
            world.keys[0],
            record=record or unisono.MemoryRecord(),
            registrar_key=world.registrar.verifying_key,
            policy=unisono.Policy(**policy),
            now=now,
        )

    assert join().awaits == "share"
    for setting, policy, params in (
        ("n_min", {"n_min": 12}, {}),
        ("min_gamma", {}, {"gamma": 0.01}),
        ("max_delta", {}, {"delta": 0.33}),
        ("min_colluders", {"min_colluders": 2}, {}),
        ("min_honest", {"min_honest": 10}, {}),
    ):
        with pytest.raises(unisono.PolicyError, match=rf"\(set by `{setting}`\)"):
            join(**policy, params=params)
    assert join(min_colluders=2, params={"min_colluders": 2}).awaits == "share"
    record = unisono.MemoryRecord()
    entry = (
        '{"round":4,"cohort":"' + "07" * 32 + '","masked_for":null,"survivors":null,"rounds":3,"last_at":95,'
        '"unprotected":3,"account":""}'
    ).encode()
    assert record.replace("python", None, entry)
    for setting, policy in (("min_interval_s", {}), ("max_rounds", {"max_rounds": 3, "min_interval_s": 0})):
        with pytest.raises(unisono.PolicyError, match=rf"\(set by `{setting}`\)"):
            join(record, params={"round": 5}, **policy)
    assert join(record, params={"round": 5}, min_interval_s=5, max_rounds=4).awaits == "share"


def test_a_round_is_forgotten_at_its_deadline():
    world = World(3)
    params = unisono.RoundParams(
        dimension=10, n_max=3, quantiser=unisono.Quantiser(clip=1.0), roster=world.roster, deadline_s=10.0
    )
    server = unisono.ServerRound(params, coordinator_key=world.coordinator, roster=world.roster)
    clients = [world.join(server, i) for i in range(3)]
    assert clients[0].erase_at is None
    for client in clients:
        server.absorb(client.message())
    server.close()
    now = 2**31
    for keys, client in zip(world.keys, clients, strict=True):
        server.absorb(client.receive(server.view(keys.client_id), now=now))
        # Twice the four phases that are left, and a minute.
        assert client.erase_at == now + 2 * 40 + 60
    server.close()
    view, update = server.view(world.keys[0].client_id), np.zeros(10, np.float32)
    with pytest.raises(unisono.ClientError, match="the round is over for it"):
        clients[0].receive(view, update=update, now=now + 141)
    assert clients[0].awaits is None and not clients[0].done
    clients[1].erase()
    for client in clients[:2]:
        for call in (client.message, client.save, lambda client=client: client.receive(view)):
            with pytest.raises(unisono.StateError, match="erased"):
                call()
    with pytest.raises(unisono.ParamsError, match="deadline_s is 0"):
        unisono.RoundParams(dimension=10, n_max=3, quantiser=unisono.Quantiser(clip=1.0), roster=world.roster, deadline_s=0)
