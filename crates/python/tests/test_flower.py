"""The Flower plug-in in Flower's own simulation engine: real rounds over Ray, with drop-outs."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr")
pytest.importorskip("ray")
pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import flower_digits
import unisono
from unisono.flower import UnisonoWorkflow, provision, unisono_mod

CLIENTS = 8


@pytest.fixture(scope="module")
def plain():
    return {dropped: flower_digits.run("plain", CLIENTS, dropped=dropped) for dropped in (0, 2)}


@pytest.mark.parametrize(("mode", "dropped"), [("malicious", 0), ("malicious", 2), ("semi-honest", 2)])
def test_the_aggregate_is_that_of_plain_fedavg_up_to_quantisation(plain, mode, dropped):
    secure = flower_digits.run("unisono", CLIENTS, dropped=dropped, mode=mode, bits=20)
    report = secure["report"]
    assert (report["clients"], report["survivors"]) == (CLIENTS, CLIENTS - dropped)
    assert 0 < report["error_bound"] < 1e-3
    for ours, theirs in zip(secure["parameters"], plain[dropped]["parameters"], strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert np.abs(ours - theirs).max() <= report["error_bound"] + 1e-6
    assert secure["accuracy"] == pytest.approx(plain[dropped]["accuracy"], abs=0.01)


def test_a_round_with_too_many_drop_outs_leaves_the_parameters_as_they_are():
    secure = flower_digits.run("unisono", CLIENTS, dropped=5)
    assert secure["report"] == {}
    assert all(not array.any() for array in secure["parameters"])


def test_provisioning_is_checked(tmp_path):
    with pytest.raises(ValueError, match="provision"):
        UnisonoWorkflow()
    with pytest.raises(ValueError, match="at least 3"):
        provision(tmp_path, 2)
    folder = provision(tmp_path / "keys", 3)
    assert (folder / "device-2.key").stat().st_mode & 0o077 == 0
    (folder / "registrar.pub").write_bytes(unisono.SigningKey.generate("registrar").verifying_key)
    with pytest.raises(unisono.RosterError):
        UnisonoWorkflow(provisioning=folder)
    assert callable(unisono_mod(folder))
