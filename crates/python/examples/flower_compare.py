"""unisono beside Flower's own SecAgg+: the same app, the same degree k, interleaved rounds, one run of this script.

    python flower_compare.py                               # 20 clients, 10^6 elements, in this process
    python flower_compare.py --engine ray                  # the same rounds in Flower's simulation engine
    python flower_compare.py --clients 5 20 100 --dim 100000 1000000 --drop 1 2 10      # a table for each size, in one run

Both run with as many neighbours k and the threshold t that unisono finds for the mode and the assumed drop-outs: SecAgg+ with
`num_shares` = k + 1. Both quantise to 22 bits, SecAgg+'s default. Rounds of all ways follow each other, `--repeat` times, after one that warms up.

- *client* is what a client's mod takes in the round in which it masks 10^6 elements and the others' shares arrive, without
  training: CPU time over all threads, median over clients and rounds; *all steps* is the sum over the round.
- *server* is CPU time of the workflow outside of the grid; *round* wall-clock time of the whole round, training included.
- *up*, *down* are bytes a client in the messages' records; the parameters that go down are not counted.
- *error* is the largest difference to the plain weighted mean.

The machine's other work shows in *round* most; look at the rows of one table, not at two tables.
"""

import argparse
import statistics
import tempfile
import time
from types import SimpleNamespace

import numpy as np
import unisono
from flwr.app import ArrayRecord, ConfigRecord, Context, MessageType, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.default_workflows import default_fit_workflow
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from local_grid import LocalGrid
from unisono.flower import UnisonoWorkflow, provision, unisono_mod

TIMES = "times"


def update_of(partition, dim):
    """A client's update, and its number of examples."""
    values = np.random.default_rng(partition).standard_normal(dim, dtype=np.float32)
    return np.clip(values * np.float32(0.2), -1, 1), 10 + partition % 7


class Device(NumPyClient):
    """Adds a fixed update to the parameters; the last `drop` clients vanish instead."""

    def __init__(self, partition, clients):
        self.partition, self.clients = partition, clients

    def fit(self, parameters, config):
        if self.partition >= self.clients - config["drop"]:
            raise RuntimeError("this device lost its connection")
        update, examples = update_of(self.partition, parameters[0].size)
        return [parameters[0] + update], examples, {}


class Timed:
    """Picks the mod that the server's message is for, and reports the times that it takes without training."""

    def __init__(self, malicious, semi_honest):
        self.malicious, self.semi_honest = malicious, semi_honest

    def __call__(self, message, context, call_next):
        if message.metadata.message_type != MessageType.TRAIN:
            return call_next(message, context)
        training = [0.0, 0.0]

        def train(message, context):
            before = time.perf_counter(), time.process_time()
            try:
                return call_next(message, context)
            finally:
                training[:] = [time.perf_counter() - before[0], time.process_time() - before[1]]

        records = message.content.config_records
        # The two modes are two devices, as far as state goes.
        mode = records.pop("mode")["mode"] if "mode" in records else None
        before = time.perf_counter(), time.process_time()
        if RECORD_KEY_CONFIGS in records:
            reply = secaggplus_mod(message, context, train)
        elif mode is not None:
            state = context.state.config_records
            state["unisono.state"] = state.get(mode, ConfigRecord({}))
            mod = self.malicious if mode == "malicious" else self.semi_honest
            reply = mod(message, context, train)
            state[mode] = state["unisono.state"]
        else:
            reply = train(message, context)
        wall, cpu = time.perf_counter() - before[0] - training[0], time.process_time() - before[1] - training[1]
        reply.content[TIMES] = ConfigRecord({"wall": wall, "cpu": cpu, "masked": training[0] > 0})
        return reply


class Meter:
    """A grid that counts what goes through it, and how long that takes."""

    def __init__(self, grid, mode):
        self.grid, self.mode = grid, mode
        self.cpu, self.steps, self.masking, self.up, self.down = 0.0, [], [], 0, 0

    def __getattr__(self, name):
        return getattr(self.grid, name)

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        self.down += sum(size(message.content) for message in messages)
        if self.mode:
            for message in messages:
                message.content["mode"] = ConfigRecord({"mode": self.mode})
        before = time.process_time()
        replies = list(self.grid.send_and_receive(messages, timeout=timeout))
        self.cpu += time.process_time() - before
        for reply in replies:
            if reply.has_content():
                times = reply.content.pop(TIMES)
                self.steps.append(times["cpu"])
                if times["masked"]:
                    self.masking.append(times["cpu"])
                self.up += size(reply.content)
        return replies


def size(content):
    """Bytes in the configuration records: all that the protocols send."""

    def length(value):
        if isinstance(value, list):
            return sum(map(length, value))
        return len(value) if isinstance(value, bytes | str) else 8

    return sum(length(value) for record in content.config_records.values() for value in record.values())


class Rounds:
    """The fit workflow of all rounds: each is that of one way, and starts from the same parameters."""

    def __init__(self, plan, clients, dim, folder):
        self.plan, self.clients, self.dim, self.folder = plan, clients, dim, folder
        self.rows = []

    def workflow(self, way):
        name, mode, drop, delta = way
        if name == "plain":
            return default_fit_workflow
        found = topology(self.clients, delta, mode)
        if name == "SecAgg+":
            return SecAggPlusWorkflow(found.degree + 1, found.threshold)
        return UnisonoWorkflow(
            provisioning=self.folder if mode == "malicious" else None,
            mode=mode,
            clip=1.0,
            bits=22,
            delta=delta,
            task=mode,
            n_min=self.clients - max(drop, 1),
        )

    def __call__(self, grid, context):
        number = context.state.config_records[MAIN_CONFIGS_RECORD]["current_round"]
        way = name, mode, drop, _ = self.plan[number - 1]
        context.state.array_records[MAIN_PARAMS_RECORD] = ArrayRecord([np.zeros(self.dim, np.float32)])
        meter = Meter(grid, mode if name == "unisono" else None)
        workflow = self.workflow(way)
        before = time.perf_counter(), time.process_time()
        workflow(meter, context)
        wall, cpu = time.perf_counter() - before[0], time.process_time() - before[1]
        record = context.state.array_records[MAIN_PARAMS_RECORD]
        (got,) = [array.numpy() for array in record.values()]
        alive = [update_of(i, self.dim) for i in range(self.clients - drop)]
        mean = np.average([update for update, _ in alive], axis=0, weights=[weight for _, weight in alive])
        error = float(np.abs(got - mean).max())
        if error > 0.01:
            raise RuntimeError(f"{way} gave another mean: {error}")
        masking = statistics.median(meter.masking) if meter.masking else 0.0
        steps, server = sum(meter.steps) / self.clients, cpu - meter.cpu
        self.rows.append((way, wall, masking, steps, server, meter.up / self.clients, meter.down / self.clients, error))


def topology(clients, delta, mode):
    return unisono.find_degree(clients, gamma=0.05, delta=delta, mode=mode)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[20])
    parser.add_argument("--dim", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--drop", type=int, nargs="+", help="clients that vanish, for each of --clients; default none, and a tenth")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    a = parser.parse_args()
    if a.drop is not None and len(a.drop) != len(a.clients):
        parser.error("--drop needs one number for each of --clients")
    for i, clients in enumerate(a.clients):
        drops = [0, clients // 10] if a.drop is None else [a.drop[i]]
        for dim in a.dim:
            compare(SimpleNamespace(clients=clients, dim=dim, repeat=a.repeat, engine=a.engine), drops)


def compare(a, drops):
    """Rounds of all ways at one size, and their table."""
    folder = provision(tempfile.mkdtemp(), a.clients)
    # The assumed drop-outs leave some room above those that happen.
    deltas = {drop: max(0.05, 1.5 * drop / a.clients) for drop in drops}
    pairs = [(mode, d, delta) for d, delta in deltas.items() for mode in ("malicious", "semi-honest")]
    ways = [("plain", "-", d, delta) for d, delta in deltas.items()]
    ways += [(name, *pair) for pair in pairs for name in ("SecAgg+", "unisono")]
    plan = [ways[0]]
    for i in range(a.repeat):
        plan += ways[i % len(ways) :] + ways[: i % len(ways)]
    policies = [unisono.Policy(n_min=3, min_gamma=0.0, allow_semi_honest=semi, min_interval_s=0) for semi in (False, True)]
    timed = Timed(unisono_mod(folder, policy=policies[0]), unisono_mod(policy=policies[1]))
    clients = a.clients

    def client_fn(context):
        return Device(int(context.node_config["partition-id"]), clients).to_client()

    rounds = Rounds(plan, a.clients, a.dim, folder)
    strategy = FedAvg(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=a.clients,
        min_available_clients=a.clients,
        initial_parameters=ndarrays_to_parameters([np.zeros(a.dim, np.float32)]),
        on_fit_config_fn=lambda number: {"drop": plan[number - 1][2]},
    )

    def serve(grid, context):
        legacy = LegacyContext(context=context, config=ServerConfig(num_rounds=len(plan)), strategy=strategy)
        DefaultWorkflow(fit_workflow=rounds)(grid, legacy)

    app = ClientApp(client_fn=client_fn, mods=[timed])
    if a.engine == "local":
        context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
        serve(LocalGrid(app, a.clients), context)
    else:
        server = ServerApp()
        server.main()(serve)
        resources = {"init_args": {"num_cpus": 2}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
        run_simulation(server_app=server, client_app=app, num_supernodes=a.clients, backend_config=resources)
    report(rounds.rows[1:], ways, a)


def report(rows, ways, a):
    where = "in one process" if a.engine == "local" else "in Flower's simulation engine"
    print(f"\n{a.clients} clients, {a.dim} elements, {a.repeat} rounds each, {where}\n")
    print("| | k/t | drop-outs | client, masking, ms | client, all steps, ms | server, ms | round, s | up, MB | down, MB | error |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for way in ways:
        name, mode, drop, delta = way
        found = [row[1:] for row in rows if row[0] == way]
        wall, masking, steps, server, up, down, error = (statistics.median(column) for column in zip(*found))
        fastest = min(row[0] for row in found)
        title = name if name == "plain" else f"{name}, {mode}" if name == "unisono" else f"{name} at the k of {mode}"
        degree = "-" if name == "plain" else f"{(t := topology(a.clients, delta, mode)).degree}/{t.threshold}"
        print(
            f"| {title} | {degree} | {drop} | {masking * 1e3:.1f} | {steps * 1e3:.1f} | {server * 1e3:.0f} "
            f"| {wall:.2f} (least {fastest:.2f}) | {up / 1e6:.2f} | {down / 1e6:.3f} | {error:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
