"""The Flower plug-in: whole rounds in this process, and some in Flower's own simulation engine, over Ray, with drop-outs."""

import dataclasses
import logging
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr")
pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import flower_digits
import flower_two_lines
import unisono
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.client import NumPyClient
from unisono.flower import Settings, UnisonoWorkflow, provision, unisono_mod
from unisono.flower._compat import check_version
from unisono.flower._settings import SettingsArguments

CLIENTS = 8
#: Whether the tests run with an installed wheel, which has metadata.
INSTALLED = any(found.name == "unisono" for found in metadata.distributions())


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


def test_too_few_sampled_clients_end_the_round_and_not_the_run(flower_log):
    secure = flower_digits.run("unisono", 2, rounds=2, mode="semi-honest", engine="local")
    reasons = [text for level, text in flower_log if level >= logging.ERROR]
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


class Given(NumPyClient):
    def __init__(self, partition, fit):
        self.partition, self.train = partition, fit

    def fit(self, parameters, config):
        arrays, examples, *metrics = self.train(self.partition, parameters)
        return arrays, examples, metrics[0] if metrics else {}


def one_round(flower_log, start, fit, *, clients=5, strategy={}, **settings):
    """A round whose clients return what `fit(partition, parameters)` gives: the parameters after it, the report, and the log."""
    flower_log.clear()
    parameters, report = flower_two_lines.play(
        lambda partition: Given(partition, fit), start, clients, strategy=strategy, **settings
    )
    return parameters, report, [text for level, text in flower_log if level >= logging.WARN]


def test_buffers_that_nobody_changes_stay_and_the_others_are_averaged(flower_log):
    start = [
        np.ones(2, np.float32),
        np.tril(np.ones((3, 3), bool)),
        np.float32([-np.inf, 0]),
        np.array([2**53 + 1], np.int64),
        np.array([1 + 2j]),
    ]

    def fit(partition, arrays):
        return [arrays[0] + np.float32(0.1), arrays[1], arrays[2], arrays[3], arrays[4]], 10

    parameters, report, logged = one_round(flower_log, start, fit)
    assert np.abs(parameters[0] - 1.1).max() < 1e-3 and report["survivors"] == 5 and report["cut"] < 1e-4
    for i in (1, 3, 4):
        assert parameters[i].dtype == start[i].dtype and parameters[i].tobytes() == start[i].tobytes()
    assert parameters[2][0] == -np.inf and not logged


def test_what_can_not_be_averaged_is_named_to_the_server_and_can_be_left_out(flower_log):
    start = [np.ones(2, np.float32), np.array([True, False])]

    def fit(partition, arrays):
        return [arrays[0] + np.float32(0.1), ~arrays[1]], 10

    parameters, report, logged = one_round(flower_log, start, fit)
    assert report == {} and "5 of 5 clients did not go on in phase mask" in logged[0] and "array 1 is bool" in logged[0]
    assert "ended without a sum" in logged[-1] and "5 x" in logged[-1] and "exclude=[1]" in logged[-1]
    parameters, report, _ = one_round(flower_log, start, fit, exclude=[1])
    assert report["survivors"] == 5 and parameters[1].tolist() == [True, False] and parameters[0][0] > 1.05
    with pytest.raises(unisono.EncodingError, match="exclude names array 2"):
        one_round(flower_log, start, fit, exclude=[2])


def test_the_share_that_the_clip_cuts_is_learned_and_told(flower_log):
    start = [np.ones(4, np.float32), np.full(4, 600, np.float32)]

    def fit(partition, arrays):
        return [arrays[0] + np.float32(0.01), arrays[1] + np.float32(50)], 900

    parameters, report, logged = one_round(flower_log, start, fit)
    assert report["cut"] == pytest.approx(0.5, abs=1e-3) and report["error_bound"] < 1e-2
    assert sum("100 % of array 1 lies beyond its clip" in text for text in logged) == 5
    assert "50 % of the elements" in logged[-1] and "exclude" in logged[-1]
    parameters, report, logged = one_round(flower_log, start, fit, exclude=[1])
    assert report["cut"] < 1e-4 and parameters[1].tolist() == start[1].tolist() and not logged


def test_reasons_of_drop_outs_are_counted_in_the_log(flower_log):
    start = [np.ones(2, np.float32)]

    def fit(partition, arrays):
        if partition == 0:
            raise ValueError("no data today")
        return [arrays[0] + np.float32(0.1)], 4000 if partition == 1 else 10

    _, report, logged = one_round(flower_log, start, fit, clients=10)
    assert report["survivors"] == 8
    told = [text for text in logged if "1 of 10 clients did not go on in phase mask" in text]
    assert len(told) == 2 and any("no data today" in text for text in told)
    assert any("the weight is 4000" in text and "max_weight = 1000" in text for text in told)


def test_a_run_that_is_started_again_goes_on_above_the_rounds_of_the_devices(flower_log):
    start = [np.zeros(4, np.float32)]
    kept = {}
    for again in range(3):
        parameters, report = flower_two_lines.play(
            lambda _: flower_two_lines.Device(False), start, 5, rounds=2, kept=kept
        )
        assert (report["round"], report["survivors"]) == (2, 5)
        assert np.abs(parameters[0] - 0.2).max() < 1e-2
    assert sum("going on above" in text for _, text in flower_log) == 2
    assert [level for level, _ in flower_log if level >= logging.ERROR] == []


def test_one_liar_about_its_rounds_moves_the_run_no_further_than_devices_follow():
    """Of three clients all are needed, so one that says to be ahead is believed, by a bounded step."""
    lie = ConfigRecord({"last_round": 2**63 - 1})

    def lying(msg, context, call_next):
        if context.node_config["partition-id"] == 0 and not context.state.config_records.get("lied"):
            context.state.config_records["lied"] = ConfigRecord({"yes": 1})
            return Message(RecordDict({"unisono.message": lie}), reply_to=msg)
        return call_next(msg, context)

    start, kept = [np.zeros(4, np.float32)], {}
    _, report = flower_two_lines.play(
        lambda _: flower_two_lines.Device(False), start, 3, rounds=2, kept=kept, mods=[lying]
    )
    assert (report["round"], report["survivors"]) == (2, 3)
    # The next run goes on from there.
    _, report = flower_two_lines.play(lambda _: flower_two_lines.Device(False), start, 3, kept=kept)
    assert report["survivors"] == 3


def test_an_aggregation_of_metrics_is_refused_before_the_first_round(flower_log):
    strategy = {"fit_metrics_aggregation_fn": lambda results: {"loss": sum(m["loss"] for _, m in results)}}
    with pytest.raises(unisono.ParamsError, match=r"fit_metrics_aggregation_fn.*metrics=\{"):
        one_round(flower_log, [np.ones(2, np.float32)], lambda _, arrays: (arrays, 10), strategy=strategy)


#: A metric of each of five clients, and its weight.
LOSSES, EXAMPLES = [0.5, 2.0, 1.25, 3.0, 0.0], [10, 20, 30, 40, 50]


def with_loss(partition, arrays):
    metrics = {"loss": LOSSES[partition], "secret": 7.0}
    return [arrays[0] + np.float32(0.1)], EXAMPLES[partition], metrics


def test_declared_metrics_give_their_weighted_mean_to_the_report_and_the_history(flower_log):
    kept = {}
    settings = {"metrics": {"loss": (0.0, 4.0)}, "declared": ["loss"], "bits": 20, "kept": kept}
    _, report, _ = one_round(flower_log, [np.ones(2, np.float32)], with_loss, **settings)
    mean = np.average(LOSSES, weights=EXAMPLES)
    assert report["survivors"] == 5 and report["metrics"] == {"loss": pytest.approx(mean, abs=1e-3)}
    assert report["cut"] < 1e-4 and report["total_weight"] == pytest.approx(150, abs=0.1)
    assert kept["history"].metrics_distributed_fit == {"loss": [(1, pytest.approx(mean, abs=1e-3))]}


def test_an_aggregation_of_metrics_sees_the_one_result(flower_log):
    seen = []
    strategy = {"fit_metrics_aggregation_fn": lambda results: seen.append(results) or {"mean": results[0][1]["loss"]}}
    kept = {}
    settings = {"metrics": {"loss": (0.0, 4.0)}, "declared": ["loss"], "strategy": strategy, "kept": kept}
    one_round(flower_log, [np.ones(2, np.float32)], with_loss, **settings)
    ((total, metrics),) = seen[0]
    assert total == 150 and metrics == {"loss": pytest.approx(np.average(LOSSES, weights=EXAMPLES), abs=1e-2)}
    assert kept["history"].metrics_distributed_fit == {"mean": [(1, metrics["loss"])]}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"noise_multiplier": 1.0}, "noise_multiplier needs l2_clip"),
        ({"noise_multiplier": -1.0, "l2_clip": 1.0}, "noise_multiplier is -1"),
        ({"noise_multiplier": 1.0, "l2_clip": 1.0, "metrics": {"loss": (0.0, 1.0)}}, "metrics is .'loss'.; a round with noise"),
        ({"noise_multiplier": 1.0, "l2_clip": 1.0, "max_weight": 5.0}, "max_weight is 5"),
        ({"privacy_delta": 1.0}, "privacy_delta is 1"),
        ({"l2_clip": -1.0}, "l2_clip"),
        ({"metrics": ["loss"]}, "names with bounds are needed"),
        ({"metrics": {"loss": (1.0, 0.0)}}, "metric"),
        ({"metrics": {"unisono.cut": (0.0, 1.0)}}, "take another name"),
        ({"min_colluders": 0}, "min_colluders is 0"),
        ({"rotate": True, "bits": 30}, "bits"),
    ],
)
def test_settings_of_privacy_metrics_and_rotation_are_refused_at_once(settings, words):
    with pytest.raises((unisono.ParamsError, unisono.EncodingError), match=words):
        UnisonoWorkflow(**{"mode": "semi-honest", "clip": 1.0, **settings})


def test_the_types_of_the_settings_name_each_of_them():
    made = [field.name for field in dataclasses.fields(Settings) if field.init]
    assert list(SettingsArguments.__annotations__) == made


def test_a_private_round_has_noise_equal_weights_and_an_account(flower_log):
    settings = {"noise_multiplier": 1.0, "l2_clip": 1.0, "clip": 1.0, "rounds": 2}
    parameters, report, _ = one_round(flower_log, [np.zeros(400, np.float32)], with_loss, **settings)
    # Each update has a norm of 2 and is scaled to 1.
    assert abs(parameters[0].mean() - 0.1) < 0.1 and report["total_weight"] == pytest.approx(5)
    assert report["noise_deviation"] > 0.0 and parameters[0].std() > report["noise_deviation"] / 2
    assert 0.0 < report["epsilon"] < report["total_epsilon"] and report["cut"] is None and report["metrics"] == {}


@pytest.mark.parametrize("limit", ["max_epsilon", "max_total_epsilon"])
def test_a_device_with_a_smaller_epsilon_refuses_the_round(flower_log, limit):
    policy = unisono.Policy(min_interval_s=0, **{limit: 0.01})
    settings = {"noise_multiplier": 1.0, "l2_clip": 1.0, "clip": 1.0, "policy": policy}
    parameters, report, logged = one_round(flower_log, [np.zeros(4, np.float32)], with_loss, **settings)
    assert report == {} and not parameters[0].any() and "the limit is 0.01" in logged[-1] and "(set by `privacy.max_" in logged[-1]


def test_a_rotated_round_holds_a_large_element_under_a_small_clip(flower_log):
    def spike(partition, arrays):
        moved = arrays[0].copy()
        moved[5] += 8.0
        return [moved], 900

    start = [np.zeros(4096, np.float32)]
    plain, report, _ = one_round(flower_log, start, spike, clip=0.5)
    assert plain[0][5] < 0.6 and report["cut"] > 0
    rotated, report, _ = one_round(flower_log, start, spike, clip=0.5, rotate=True)
    assert abs(rotated[0][5] - 8.0) < 0.05 and report["cut"] is None
    assert np.abs(np.delete(rotated[0], 5)).max() <= report["error_bound"]


@pytest.mark.parametrize(
    ("installed", "found"),
    [(None, "flwr is not installed"), ("1.21.0", "flwr 1.21.0 is installed"), ("1.43.0", "flwr 1.43.0"), ("2.0", "flwr 2.0"), ("x", "flwr x")],
)
def test_an_unsupported_version_of_flower_is_named_with_what_to_install(installed, found):
    with pytest.raises(ImportError, match="needs flwr>=1.22,<1.43; ") as raised:
        check_version(installed)
    assert found in str(raised.value) and "pip install 'flwr[simulation]>=1.22,<1.43'" in str(raised.value)


def test_the_supported_versions_are_those_of_the_extra():
    for installed in ("1.22.0", "1.30.0", "1.42.1", "1.42.0.dev20260101"):
        check_version(installed)
    extra = [text for text in metadata.requires("unisono") or [] if text.startswith("flwr")] if INSTALLED else []
    assert all("<1.43" in text and ">=1.22" in text for text in extra) and len(extra) == INSTALLED


def test_without_flower_the_import_says_what_to_install():
    hide = "import sys, importlib.metadata as m\n"
    hide += "def none(name): raise m.PackageNotFoundError(name)\nm.version = none\nimport unisono.flower"
    run = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "ImportError: unisono.flower needs flwr>=1.22,<1.43; flwr is not installed" in run.stderr
