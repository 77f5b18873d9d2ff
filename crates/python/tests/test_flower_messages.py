"""The Flower plug-in in the Message API: `@app.train` functions, and strategies with `start`, beside the same without it."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr")
pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import flower_message_api
import unisono
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg
from local_grid import LocalGrid
from unisono.flower import SecureGrid, provision, unisono_mod

#: Metric and weight of each client.
LOSSES, EXAMPLES = [0.5, 2.0, 1.25, 3.0, 0.0, 1.0, 0.75, 4.0], [10, 20, 30, 40, 50, 60, 70, 80]
START = {"layer.weight": np.zeros((2, 3), np.float32), "layer.bias": np.ones(3, np.float32), "steps": np.array([5], np.int64)}


def update(partition, arrays, config):
    """Another update for each client; the arrays in another order than they came in."""
    rng = np.random.default_rng(partition)
    moved = {name: arrays[name] + rng.uniform(-0.4, 0.4, arrays[name].shape).astype(np.float32) for name in ("layer.bias", "layer.weight")}
    return {**moved, "steps": arrays["steps"] + partition}, {"train_loss": LOSSES[partition], "secret": 7.0}


class World:
    """Clients with an app whose training is `update(partition, arrays, config)`; they keep their state from run to run."""

    def __init__(self, folder, clients=5, update=update, *, secure=True, action=None, mods=(), **settings):
        self.folder = provision(folder, clients) if secure else None
        self.clients, self.configs, self.kinds = clients, [], []
        own = [unisono_mod(self.folder, **settings)] if secure else []
        app = ClientApp(mods=[*mods, *own])

        def train(message, context):
            partition = context.node_config["partition-id"]
            (config,) = [dict(record) for record in message.content.config_records.values()]
            arrays = {name: array.numpy() for name, array in message.content["arrays"].items()}
            self.configs.append(config)
            self.kinds.append({name: array.dtype.kind for name, array in arrays.items()})
            arrays, metrics = update(partition, arrays, config)
            arrays = ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})
            metrics = MetricRecord({"num-examples": EXAMPLES[partition], **metrics})
            return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

        app.train(*([action] if action else []))(train)

        @app.evaluate()
        def evaluate(message, context):
            assert list(message.content) == ["arrays", "config"]
            metrics = MetricRecord({"num-examples": 1, "accuracy": float(context.node_config["partition-id"])})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)

        self.grid = LocalGrid(app, clients)

    def run(self, strategy=FedAvg, rounds=1, start=START, *, config=None, **settings):
        """The strategy's result, and the report."""
        grid = SecureGrid(self.grid, **{"clip": 0.5, "provisioning": self.folder, **settings}) if self.folder else self.grid
        sampled = {"min_train_nodes": self.clients, "min_evaluate_nodes": self.clients, "min_available_nodes": self.clients}
        result = strategy(**sampled).start(
            grid=grid,
            initial_arrays=ArrayRecord({name: Array(array) for name, array in start.items()}),
            num_rounds=rounds,
            train_config=ConfigRecord(config or {}),
        )
        return result, grid.report if self.folder else None


def numpy(result):
    return {name: array.numpy() for name, array in (result.arrays or {}).items()}


def vanishing(dropped):
    def train(partition, arrays, config):
        if partition < dropped:
            raise RuntimeError("this device lost its connection")
        return update(partition, arrays, config)

    return train


@pytest.mark.parametrize("strategy", [FedAvg, FedAdam])
@pytest.mark.parametrize(("clients", "dropped"), [(3, 0), (5, 1), (8, 2)])
def test_a_strategy_gets_what_it_gets_without_secure_aggregation(tmp_path, strategy, clients, dropped):
    plain, _ = World(tmp_path, clients, vanishing(dropped), secure=False).run(strategy)
    secure, report = World(tmp_path, clients, vanishing(dropped)).run(strategy, bits=20)
    assert (report["round"], report["clients"], report["survivors"]) == (1, clients, clients - dropped)
    assert report["total_weight"] == pytest.approx(sum(EXAMPLES[dropped:clients]), rel=1e-3)
    assert 0 < report["error_bound"] < 1e-3
    # An Adam step of a mean that is off by `error` is off by at most its slope times that: eta_norm (1 - beta_1) / tau.
    slope = 1.0 if strategy is FedAvg else 0.1 * np.sqrt(1 - 0.99**2) / (1 - 0.9**2) * (1 - 0.9) / 1e-3
    ours, theirs = numpy(secure), numpy(plain)
    assert list(ours) == list(START) and set(theirs) == set(START)
    for name in ("layer.weight", "layer.bias"):
        assert ours[name].shape == theirs[name].shape and ours[name].dtype == theirs[name].dtype
        assert np.abs(ours[name] - theirs[name]).max() <= slope * report["error_bound"] + 1e-6
        assert np.abs(theirs[name] - START[name]).max() > 0.02
    # Both evaluate the same clients in the clear.
    assert dict(secure.evaluate_metrics_clientapp[1]) == pytest.approx(dict(plain.evaluate_metrics_clientapp[1]))


def test_in_flowers_own_engine_the_example_learns_as_it_does_without_secure_aggregation():
    pytest.importorskip("ray")
    plain = flower_message_api.run(plain=True, rounds=2)
    secure = flower_message_api.run(rounds=2, engine="ray", bits=20)
    assert secure["report"]["survivors"] == 4 and secure["accuracy"] > 0.7
    for ours, theirs in zip(secure["arrays"], plain["arrays"], strict=True):
        # The second round starts where the first ended.
        assert np.abs(ours - theirs).max() < 10 * secure["report"]["error_bound"]
    for ours, theirs in zip(secure["train"], plain["train"], strict=True):
        assert ours == {"train_loss": pytest.approx(theirs["train_loss"], abs=1e-3)}
    assert [set(metrics) for metrics in secure["evaluate"]] == [{"accuracy"}] * 2


def test_the_strategys_configuration_reaches_the_clients(tmp_path):
    world = World(tmp_path)
    world.run(rounds=2, config={"lr": 0.25})
    assert world.configs == [{"lr": 0.25, "server-round": 1}] * 5 + [{"lr": 0.25, "server-round": 2}] * 5


def test_declared_metrics_are_the_plain_weighted_mean_and_others_stay_on_the_device(tmp_path):
    plain, _ = World(tmp_path, secure=False).run()
    world = World(tmp_path, metrics=["train_loss"])
    seen = []
    inner = world.grid.send_and_receive
    world.grid.send_and_receive = lambda messages, **kw: seen.extend(found := list(inner(messages, **kw))) or found
    secure, report = world.run(metrics={"train_loss": (0.0, 5.0)}, bits=20)
    theirs = plain.train_metrics_clientapp[1]
    assert set(theirs) == {"train_loss", "secret"}
    # A step of the quantiser, weighted by the smallest client, bounds each client's error.
    assert dict(secure.train_metrics_clientapp[1]) == {"train_loss": pytest.approx(theirs["train_loss"], abs=1e-3)}
    assert report["metrics"] == dict(secure.train_metrics_clientapp[1])
    training = [reply for reply in seen if reply.metadata.message_type == "train"]
    assert len(training) == 5 * 5 and all(list(reply.content) == ["unisono.message"] for reply in training)
    allowed = {"message", "upload", "seconds"}
    assert all(set(reply.content["unisono.message"]) <= allowed for reply in training)


@pytest.mark.parametrize(
    ("server", "device", "words"),
    [
        ({"train_loss": (0.0, 5.0)}, [], r"asks for the training metrics ['train_loss']; this device lets it learn the mean of []"),
        ({"train_loss": (0.0, 5.0)}, ["secret"], r"the mean of ['secret']"),
        ({}, ["train_loss"], "asks for the training metrics []"),
        ({"accuracy": (0.0, 1.0)}, ["accuracy"], 'must have "accuracy" for its mean over the clients, which it lacks'),
    ],
)
def test_a_metric_that_only_one_side_declares_is_refused_by_the_device(tmp_path, flower_log, server, device, words):
    result, report = World(tmp_path, metrics=device).run(metrics=server)
    assert report == {} and not numpy(result) and not result.train_metrics_clientapp
    assert words in errors(flower_log)[0]


def errors(flower_log):
    return [text for level, text in flower_log if level >= logging.ERROR]


def changed(change):
    def train(partition, arrays, config):
        arrays, metrics = update(partition, arrays, config)
        if partition == 0:
            change(arrays, metrics)
        return arrays, metrics

    return train


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda arrays, _: arrays.pop("layer.bias"), "did not return array layer.bias; it returned layer.weight, steps"),
        (lambda arrays, _: arrays.update({"head": np.zeros(1)}), "returned array head, which it was not sent"),
        (lambda arrays, _: arrays.update({"layer.bias": np.zeros(4)}), "array layer.bias in other shapes than it was sent: [4], not [3]"),
        (lambda arrays, _: arrays.update({"layer.bias": np.zeros(3, complex) + 1j}), "array layer.bias is complex128"),
        (lambda _, metrics: metrics.update({"num-examples": [1, 2]}), 'must have "num-examples" as the weight'),
        (lambda _, metrics: metrics.update({"num-examples": 5000}), "max_weight = 1000"),
    ],
)
def test_what_one_client_returns_wrong_is_named_and_the_others_have_a_sum(tmp_path, flower_log, change, words):
    result, report = World(tmp_path, update=changed(change)).run()
    assert report["survivors"] == 4 and set(numpy(result)) == set(START)
    told = [text for level, text in flower_log if level >= logging.WARN]
    assert any("1 of 5 clients did not go on in phase mask" in text and words in text for text in told), told


@pytest.mark.parametrize("action", [None, "local_epochs"])
def test_a_plain_training_message_is_refused_by_the_mod(tmp_path, action):
    world = World(tmp_path, action=action)
    kind = f"train.{action}" if action else "train"
    content = RecordDict({"arrays": ArrayRecord({"x": Array(np.zeros(1))}), "config": ConfigRecord({})})
    (reply,) = world.grid.send_and_receive([Message(content, dst_node_id=2, message_type=kind)])
    assert reply.has_error() and "takes part in secure aggregation only" in reply.error.reason and not world.configs


def test_a_named_train_function_takes_part(tmp_path):
    world = World(tmp_path, action="local_epochs")
    grid = SecureGrid(world.grid, clip=0.5, provisioning=world.folder)
    content = RecordDict({"arrays": ArrayRecord({n: Array(a) for n, a in START.items()}), "config": ConfigRecord({})})

    def messages():
        return [Message(content, dst_node_id=n, message_type="train.local_epochs") for n in world.grid.get_node_ids()]

    (reply,) = grid.send_and_receive(messages())
    assert reply.content["metrics"]["num-examples"] == pytest.approx(150, abs=1) and len(world.configs) == 5
    assert list(content) == ["arrays", "config"]
    with pytest.raises(unisono.ParamsError, match="send_and_receive"):
        grid.push_messages(messages())
    with pytest.raises(unisono.ParamsError, match="one training message a node"):
        grid.send_and_receive(messages() + messages())
    other = RecordDict({"arrays": ArrayRecord({"x": Array(np.zeros(1))}), "config": ConfigRecord({})})
    with pytest.raises(unisono.ParamsError, match="different arrays"):
        grid.send_and_receive([*messages()[:-1], Message(other, dst_node_id=6, message_type="train.local_epochs")])
    two = RecordDict({"a": content["arrays"], "b": content["arrays"]})
    with pytest.raises(unisono.ParamsError, match='one ArrayRecord.*it has "a", "b"'):
        grid.send_and_receive([Message(two, dst_node_id=2, message_type="train")])
    old = RecordDict({"fitins.parameters": content["arrays"]})
    with pytest.raises(unisono.ParamsError, match="fit_workflow=UnisonoWorkflow"):
        grid.send_and_receive([Message(old, dst_node_id=2, message_type="train")])
    with pytest.raises(unisono.EncodingError, match="exclude names array 1; there are 3: layer.weight, layer.bias, steps"):
        SecureGrid(world.grid, clip=0.5, provisioning=world.folder, exclude=[1]).send_and_receive(messages())


def test_an_array_is_left_out_by_its_name(tmp_path):
    result, report = World(tmp_path, update=changed(lambda arrays, _: arrays["layer.bias"].fill(np.nan))).run(exclude=["layer.bias"])
    assert report["survivors"] == 5 and numpy(result)["layer.bias"].tolist() == [1, 1, 1]


def test_arrays_have_clips_of_their_own(tmp_path):
    start = {"bn.var": np.zeros(3, np.float32), "steps": np.array(0), "w": np.zeros(4, np.float32)}

    def train(partition, arrays, config):
        return {**arrays, "bn.var": arrays["bn.var"] + 40, "steps": arrays["steps"] + 7, "w": arrays["w"] + np.float32(0.01)}, {}

    world = World(tmp_path, update=train)
    result, report = world.run(start=start, clip=0.02, clips={"bn.var": 50.0, "steps": 8.0})
    assert report["cut"] == 0.0
    np.testing.assert_allclose(numpy(result)["bn.var"], 40, atol=0.1)
    assert numpy(result)["steps"] == 7
    # The small array is rounded by steps of its own clip.
    np.testing.assert_allclose(numpy(result)["w"], 0.01, atol=4e-5)
    # One clip for all cuts the two.
    _, report = World(tmp_path / "one", update=train).run(start=start, clip=0.02)
    assert report["cut"] == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(unisono.EncodingError, match="clips names array bn; there are 3: bn.var, steps, w"):
        world.run(start=start, clip=0.02, clips={"bn": 1.0})
    with pytest.raises(unisono.ParamsError, match="one clip"):
        world.run(clip=0.02, clips={"w": 1.0}, noise_multiplier=1.0, l2_clip=1.0)
    with pytest.raises(unisono.EncodingError, match="clips"):
        world.run(clip=0.02, clips={"w": -1.0})


def test_integers_and_booleans_keep_their_types_from_round_to_round(tmp_path):
    start = {"w": np.zeros(2, np.float32), "mask": np.array([True, False]), "steps": np.array(2**40, np.int64)}

    def train(partition, arrays, config):
        return {**arrays, "w": arrays["w"] + np.float32(0.1), "steps": arrays["steps"] + 0}, {}

    world = World(tmp_path, update=train)
    result, report = world.run(rounds=3, start=start)
    assert report["round"] == 3 and world.kinds == [{"w": "f", "mask": "b", "steps": "i"}] * 15
    assert numpy(result)["mask"].tolist() == [1, 0] and numpy(result)["steps"] == 2**40
    assert np.abs(numpy(result)["w"] - 0.3).max() <= 3 * report["error_bound"] + 1e-6


def test_a_round_without_a_sum_leaves_the_arrays_and_the_run_goes_on(tmp_path, flower_log):
    def train(partition, arrays, config):
        if config["server-round"] == 1 and partition < 3:
            raise RuntimeError("no data today")
        return update(partition, arrays, config)

    world = World(tmp_path, update=train)
    result, report = world.run(rounds=2)
    assert list(result.train_metrics_clientapp) == [2] and report["round"] == 2 and set(numpy(result)) == set(START)
    (told,) = errors(flower_log)
    assert "ended without a sum" in told and "3 x" in told and "no data today" in told


def test_a_second_run_goes_on_above_the_rounds_of_the_devices(tmp_path, flower_log):
    world = World(tmp_path)
    for _ in range(2):
        _, report = world.run(rounds=2)
        assert (report["round"], report["survivors"]) == (2, 5)
    assert sum("going on above" in text for _, text in flower_log) == 1 and not errors(flower_log)


def test_a_private_round_reports_what_it_reveals(tmp_path):
    start = {"w": np.zeros(300, np.float32)}
    world = World(tmp_path, update=lambda p, arrays, _: ({"w": arrays["w"] + np.float32(0.1)}, {"train_loss": 1.0}), metrics=["train_loss"])
    grid = SecureGrid(world.grid, clip=1.0, l2_clip=4.0, noise_multiplier=0.5, provisioning=world.folder)
    epsilons = []
    for _ in range(2):
        content = RecordDict({"arrays": ArrayRecord({n: Array(a) for n, a in start.items()}), "config": ConfigRecord({})})
        (reply,) = grid.send_and_receive([Message(content, n, "train") for n in world.grid.get_node_ids()])
        epsilons.append((grid.report["epsilon"], grid.report["total_epsilon"]))
    # All clients count alike, whatever their examples.
    assert dict(reply.content["metrics"]) == {"num-examples": pytest.approx(5)}
    assert grid.report["noise_deviation"] / 2 < np.std(reply.content["arrays"]["w"].numpy()) < 2 * grid.report["noise_deviation"]
    (first, alone), (second, both) = epsilons
    assert 0 < first == second == alone < both == grid.accountant.epsilon(1e-5)
    # A server that is started again goes on with what it has kept, and says no less than was spent.
    kept = unisono.Accountant.from_json(grid.accountant.to_json())
    again = SecureGrid(world.grid, clip=1.0, l2_clip=4.0, noise_multiplier=0.5, provisioning=world.folder, accountant=kept)
    again.send_and_receive([Message(content, n, "train") for n in world.grid.get_node_ids()])
    assert again.report["total_epsilon"] > both > again.report["epsilon"]


def test_a_device_with_a_smaller_epsilon_refuses_the_round(tmp_path, flower_log):
    world = World(tmp_path, policy=unisono.Policy(min_interval_s=0, max_epsilon=0.5))
    result, report = world.run(l2_clip=1.0, noise_multiplier=0.5)
    assert report == {} and not numpy(result) and "(set by `privacy.max_epsilon`)" in errors(flower_log)[0]
    _, report = world.run(l2_clip=1.0, noise_multiplier=50.0)
    assert report["survivors"] == 5 and report["epsilon"] <= 0.5


def test_a_rotated_round_holds_a_large_element_under_a_small_clip(tmp_path):
    def spike(partition, arrays, config):
        arrays["w"][5] += 8.0
        return arrays, {}

    start = {"w": np.zeros(4096, np.float32)}
    result, report = World(tmp_path, update=spike).run(start=start, rotate=True)
    assert abs(numpy(result)["w"][5] - 8.0) < 0.05 and report["cut"] is None and report["survivors"] == 5


@pytest.mark.parametrize("key", ["samples", "num-examples"])
def test_semi_honest_rounds_need_no_keys_and_the_device_names_its_weight(flower_log, key):
    app = ClientApp()

    @app.train(mods=[unisono_mod(weight_key=key)])
    def train(message, context):
        arrays = ArrayRecord({"w": Array(message.content["arrays"]["w"].numpy() + np.float32(0.1))})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"samples": 3})}), reply_to=message)

    grid = SecureGrid(LocalGrid(app, 5), clip=1.0, mode="semi-honest", weight_key="samples")
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=5, min_available_nodes=5, weighted_by_key="samples")
    start = ArrayRecord({"w": Array(np.zeros(4, np.float32))})
    result = strategy.start(grid=grid, initial_arrays=start, num_rounds=1)
    if key == "samples":
        assert grid.report["total_weight"] == pytest.approx(15, abs=0.2)
        assert np.abs(numpy(result)["w"] - 0.1).max() <= grid.report["error_bound"] < 0.02
    else:
        assert grid.report == {} and not numpy(result) and 'must have "num-examples" as the weight' in errors(flower_log)[0]
