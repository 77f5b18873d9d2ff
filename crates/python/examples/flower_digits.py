"""A Flower app on the digits data, with three ways to aggregate: plain, Flower's SecAgg+ and unisono.

    python flower_digits.py --aggregation unisono --clients 12 --rounds 3 --drop 2
    python flower_digits.py --aggregation all --engine local       # a table of the three
    python flower_digits.py --aggregation all --engine local --clients 5 20 100 --rounds 10 --drop 1 2 10

Two lines differ between the three: the client's mod and the server's fit workflow. Each client trains softmax regression on
its own part of the data (a Dirichlet split, so unevenly); the last `--drop` clients vanish in the middle of every round.
"""

import argparse
import functools
import json
import tempfile
import time

import numpy as np
from flwr.app import Context, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_PARAMS_RECORD
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from local_grid import LocalGrid
from sklearn.datasets import load_digits
from unisono import find_degree
from unisono.flower import UnisonoWorkflow, provision, unisono_mod

# Above any element of an update here: what is clipped is not averaged as it was.
CLIP = 2.0


@functools.cache
def partition(clients, alpha=1.0):
    """Training data by client (Dirichlet over the classes), and the test data."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    rng = np.random.default_rng(7)
    order = rng.permutation(len(labels))
    images, labels = images[order], labels[order]
    test, images = (images[:400], labels[:400]), images[400:]
    labels = labels[400:]
    parts = [[] for _ in range(clients)]
    for digit in range(10):
        places = np.flatnonzero(labels == digit)
        cuts = (np.cumsum(rng.dirichlet([alpha] * clients))[:-1] * len(places)).astype(int)
        for part, chunk in zip(parts, np.split(places, cuts)):
            part.extend(chunk)
    # Nobody is left without data.
    return [(images[p or [0]], labels[p or [0]]) for p in parts], test


def train(weights, bias, images, labels, steps=20, rate=0.5):
    """Some steps of full-batch gradient descent on the softmax loss."""
    targets = np.eye(10, dtype=np.float32)[labels]
    for _ in range(steps):
        logits = images @ weights + bias
        logits -= logits.max(axis=1, keepdims=True)
        probabilities = np.exp(logits)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        error = (probabilities - targets) / len(labels)
        weights = weights - rate * images.T @ error
        bias = bias - rate * error.sum(axis=0)
    return weights.astype(np.float32), bias.astype(np.float32)


def loss(weights, bias, images, labels):
    """The mean softmax loss."""
    logits = images @ weights + bias
    top = logits.max(axis=1)
    total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return float((total - logits[np.arange(len(labels)), labels]).mean())


class DigitsClient(NumPyClient):
    """One device; it vanishes after training when it is told to."""

    def __init__(self, partition_id, clients, dropped, extra):
        parts, _ = partition(clients)
        self.images, self.labels = parts[partition_id]
        self.vanishes = partition_id >= clients - dropped
        self.partition_id, self.extra = partition_id, extra

    def fit(self, parameters, config):
        if self.vanishes:
            raise RuntimeError("this device lost its connection")
        weights, bias = train(*parameters[:2], self.images, self.labels)
        rest = [(np.sin(np.arange(self.extra) + self.partition_id) * CLIP).astype(np.float32)] if self.extra else []
        return [weights, bias, *rest], len(self.labels), {}


def accuracy(parameters, test):
    images, labels = test
    return float(((images @ parameters[0] + parameters[1]).argmax(axis=1) == labels).mean())


def run(aggregation, clients, rounds=1, dropped=0, extra=0, mode="malicious", bits=16, engine="ray"):
    """Runs the app in Flower's simulation engine (`ray`), or one client after the other in this process (`local`).

    `extra` untrained parameters make the vector longer.
    """
    folder = provision(tempfile.mkdtemp(), clients) if aggregation == "unisono" and mode == "malicious" else None
    if aggregation == "unisono":
        mods = [unisono_mod(folder)]
        secure = UnisonoWorkflow(
            provisioning=folder, mode=mode, clip=CLIP, bits=bits, delta=0.25, rounding="deterministic"
        )
    elif aggregation == "secaggplus":
        # As many neighbours as unisono finds under the same assumptions about the server.
        found = find_degree(clients, delta=0.25, mode="semi-honest")
        mods, secure = [secaggplus_mod], SecAggPlusWorkflow(found.degree + 1, found.threshold)
    else:
        mods, secure = [], None

    def client_fn(context):
        return DigitsClient(int(context.node_config["partition-id"]), clients, dropped, extra).to_client()

    start = [np.zeros((64, 10), np.float32), np.zeros(10, np.float32)]
    start += [np.zeros(extra, np.float32)] if extra else []
    strategy = FedAvg(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=clients,
        min_available_clients=clients,
        initial_parameters=ndarrays_to_parameters(start),
    )
    result = {}

    def serve(grid, context):
        legacy = LegacyContext(context=context, config=ServerConfig(num_rounds=rounds), strategy=strategy)
        before = time.perf_counter()
        (DefaultWorkflow(fit_workflow=secure) if secure else DefaultWorkflow())(grid, legacy)
        result["seconds"] = time.perf_counter() - before
        record = legacy.state.array_records[MAIN_PARAMS_RECORD]
        result["parameters"] = [array.numpy() for array in record.values()]

    app = ClientApp(client_fn=client_fn, mods=mods)
    if engine == "local":
        context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
        grid = LocalGrid(app, clients)
        serve(grid, context)
        result["bytes_up"] = grid.bytes_up
    else:
        server = ServerApp()
        server.main()(serve)
        resources = {"init_args": {"num_cpus": 2}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
        run_simulation(server_app=server, client_app=app, num_supernodes=clients, backend_config=resources)
    result["accuracy"] = accuracy(result["parameters"], partition(clients)[1])
    result["report"] = getattr(secure, "report", None)
    return result


def table(settings, engine):
    """The three ways one after the other: accuracy after the last round, seconds and bytes of one round."""
    clients, rounds, dropped, _, mode = settings
    print(f"{clients} clients, of which {dropped} vanish in each of {rounds} rounds; engine {engine}\n")
    print("| | accuracy | a round, s | up, bytes a client and round | parameters from plain |\n|---|---:|---:|---:|---:|")
    plain = None
    for way in ("plain", "secaggplus", "unisono"):
        found = run(way, *settings, engine=engine)
        plain = plain or found
        title = {"plain": "plain FedAvg", "secaggplus": "SecAgg+", "unisono": f"unisono, {mode}"}[way]
        up = f"{found['bytes_up'] / clients / rounds:,.0f}" if "bytes_up" in found else "not counted"
        off = max(float(np.abs(a - b).max()) for a, b in zip(found["parameters"], plain["parameters"], strict=True))
        print(f"| {title} | {found['accuracy']:.4f} | {found['seconds'] / rounds:.2f} | {up} | {off:.1e} |", flush=True)
        if abs(found["accuracy"] - plain["accuracy"]) > 0.02:
            raise RuntimeError(f"{way} does not learn what plain aggregation does")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aggregation", choices=["plain", "secaggplus", "unisono", "all"], default="unisono")
    parser.add_argument("--mode", choices=["malicious", "semi-honest"], default="malicious")
    parser.add_argument("--clients", type=int, nargs="+", default=[12])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--drop", type=int, nargs="+", default=[0], help="clients that vanish, for each of --clients")
    parser.add_argument("--extra", type=int, default=0, help="untrained parameters that make the vector longer")
    parser.add_argument("--engine", choices=["ray", "local"], default="ray")
    a = parser.parse_args()
    for clients, drop in zip(a.clients, a.drop, strict=True):
        settings = clients, a.rounds, drop, a.extra, a.mode
        if a.aggregation == "all":
            table(settings, a.engine)
            continue
        result = run(a.aggregation, *settings, engine=a.engine)
        del result["parameters"]
        print(json.dumps({"aggregation": a.aggregation, "clients": clients, "drop": drop, "extra": a.extra, **result}))
