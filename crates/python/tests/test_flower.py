"""The Flower plug-in: whole rounds in this process, and some in Flower's own simulation engine, over Ray, with drop-outs."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr")
pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import flower_digits
import unisono
from unisono.flower import UnisonoWorkflow, provision, unisono_mod

CLIENTS = 8


@pytest.fixture(scope="module")
def plain():
    return {dropped: flower_digits.run("plain", CLIENTS, dropped=dropped, engine="local") for dropped in (0, 2)}


def assert_same(secure, plain, dropped):
    report = secure["report"]
    assert (report["clients"], report["survivors"]) == (CLIENTS, CLIENTS - dropped)
    assert 0 < report["error_bound"] < 1e-3
    for ours, theirs in zip(secure["parameters"], plain["parameters"], strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert np.abs(ours - theirs).max() <= report["error_bound"] + 1e-6
    assert secure["accuracy"] == pytest.approx(plain["accuracy"], abs=0.01)


@pytest.mark.parametrize("mode", ["malicious", "semi-honest"])
@pytest.mark.parametrize("dropped", [0, 2])
def test_the_aggregate_is_that_of_plain_fedavg_up_to_quantisation(plain, mode, dropped):
    secure = flower_digits.run("unisono", CLIENTS, dropped=dropped, mode=mode, bits=20, engine="local")
    assert_same(secure, plain[dropped], dropped)


def test_in_flowers_own_engine_the_aggregate_is_the_same(plain):
    pytest.importorskip("ray")
    secure = flower_digits.run("unisono", CLIENTS, dropped=2, bits=20, engine="ray")
    assert_same(secure, plain[2], 2)


def test_rounds_follow_each_other_and_the_model_learns():
    secure = flower_digits.run("unisono", CLIENTS, rounds=3, dropped=1, engine="local")
    assert secure["report"]["round"] == 3 and secure["accuracy"] > 0.85


def test_a_round_with_too_many_drop_outs_leaves_the_parameters_as_they_are():
    secure = flower_digits.run("unisono", CLIENTS, dropped=5, engine="local")
    assert secure["report"] == {}
    assert all(not array.any() for array in secure["parameters"])


def test_the_difference_of_parameters_is_one_float32_vector():
    from unisono.flower import _difference

    before = [np.float32([[1, 2], [3, 4]]), np.array(7, np.int64), np.zeros(2)]
    after = [np.float32([[2, 2], [3, 5]]), np.array(9, np.int64), np.array([0.25, -1.0])]
    update = _difference(after, before)
    assert update.dtype == np.float32 and update.tolist() == [1, 0, 0, 1, 2, 0.25, -1]
    with pytest.raises(unisono.EncodingError, match="shapes"):
        _difference(after[:2], before)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "x"}, "mode is 'x'"),
        ({"gamma": 2}, "gamma is 2"),
        ({"delta": float("nan")}, "delta is nan"),
        ({"n_min": 0}, "n_min is 0"),
        ({"task": ""}, "task is ''"),
        ({"timeout": -1}, "timeout is -1"),
        ({"clip": 0.0}, "clip"),
        ({"bits": 40}, "bits"),
        ({"bits": -1}, "bits is -1"),
        ({"max_weight": float("nan")}, "max_weight"),
        ({"rounding": "up"}, "rounding"),
    ],
)
def test_settings_that_no_round_could_have_are_refused_at_once(settings, words):
    with pytest.raises((unisono.ParamsError, unisono.EncodingError), match=words):
        UnisonoWorkflow(**{"mode": "semi-honest", "clip": 1.0, **settings})


def test_too_few_sampled_clients_end_the_round_and_not_the_run(monkeypatch):
    logged = []
    monkeypatch.setattr(unisono.flower, "log", lambda level, text, *values: logged.append((level, text % values)))
    secure = flower_digits.run("unisono", 2, rounds=2, mode="semi-honest", engine="local")
    reasons = [text for level, text in logged if level >= logging.ERROR]
    assert len(reasons) == 2 and all("ended without a sum" in text and "a cohort of 2 is too small" in text for text in reasons)
    assert secure["report"] == {} and all(not array.any() for array in secure["parameters"])


@pytest.mark.parametrize("aggregation", ["plain", "secaggplus", "unisono"])
def test_the_three_ways_of_the_example_learn(aggregation):
    found = flower_digits.run(aggregation, CLIENTS, rounds=2, engine="local")
    assert found["accuracy"] > 0.8 and found["bytes_up"] > 0


def test_provisioning_is_checked(tmp_path):
    with pytest.raises(TypeError, match="clip"):
        UnisonoWorkflow(mode="semi-honest")
    with pytest.raises(unisono.ParamsError, match="provision"):
        UnisonoWorkflow(clip=1.0)
    with pytest.raises(unisono.ParamsError, match="at least 3"):
        provision(tmp_path, 2)
    folder = provision(tmp_path / "keys", 3)
    assert (folder / "device-2.key").stat().st_mode & 0o077 == 0
    (folder / "registrar.pub").write_text(unisono.SigningKey.generate("registrar").public_text())
    with pytest.raises(unisono.RosterError):
        UnisonoWorkflow(clip=1.0, provisioning=folder)
    (folder / "registrar.pub").write_text(unisono.SigningKey.generate("coordinator").public_text())
    with pytest.raises(unisono.KeyFileError):
        UnisonoWorkflow(clip=1.0, provisioning=folder)
    assert callable(unisono_mod(folder))
