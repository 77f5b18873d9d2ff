"""The smallest Flower app with secure aggregation: the two lines that docs/python.md documents, and nothing else set.

    python flower_two_lines.py --clients 5 --drop 1

Each client adds a tenth to every parameter; those that vanish fail in `fit`. In this process, without Ray.
"""

import argparse
import tempfile

import numpy as np
from flwr.app import Context, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow
from flwr.server.workflow.constant import MAIN_PARAMS_RECORD
from local_grid import LocalGrid
from unisono.flower import UnisonoWorkflow, provision, unisono_mod


class Device(NumPyClient):
    def __init__(self, vanishes):
        self.vanishes = vanishes

    def fit(self, parameters, config):
        if self.vanishes:
            raise RuntimeError("this device lost its connection")
        return [array + np.float32(0.1) for array in parameters], 10, {}


def run(clients, dropped=0, **settings):
    """Parameters after the rounds, and the last round's report; `dropped` of the clients vanish."""
    return play(lambda partition: Device(partition < dropped), [np.zeros(20, np.float32)], clients, **settings)


def play(
    device,
    start,
    clients,
    rounds=1,
    sampled=None,
    mode="malicious",
    policy=None,
    strategy={},
    kept=None,
    mods=(),
    declared=(),
    clip=0.5,
    **settings,
):
    """The same with `device(partition)` for each client. `sampled` of the clients are asked, by default all; `strategy` holds further
    settings of FedAvg, and what is left are those of the workflow. A second run with the same dictionary `kept` has the same devices; `mods` come
    before that of secure aggregation, whose `metrics` are those `declared`. The run's history is kept["history"]."""
    kept = {} if kept is None else kept
    if "folder" not in kept:
        kept["folder"] = provision(tempfile.mkdtemp(), clients) if mode == "malicious" else None
    folder = kept["folder"]
    sampled = sampled or clients

    def client_fn(context):
        return device(int(context.node_config["partition-id"])).to_client()

    app = ClientApp(client_fn=client_fn, mods=[*mods, unisono_mod(folder, policy=policy, metrics=declared)])
    secure = UnisonoWorkflow(clip=clip, provisioning=folder, mode=mode, **settings)
    strategy = FedAvg(
        fraction_fit=sampled / clients,
        fraction_evaluate=0.0,
        min_fit_clients=sampled,
        min_available_clients=clients,
        initial_parameters=ndarrays_to_parameters(start),
        **strategy,
    )
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    legacy = LegacyContext(context=context, config=ServerConfig(num_rounds=rounds), strategy=strategy)
    DefaultWorkflow(fit_workflow=secure)(kept.setdefault("grid", LocalGrid(app, clients)), legacy)
    record = legacy.state.array_records[MAIN_PARAMS_RECORD]
    kept["history"] = legacy.history
    return [array.numpy() for array in record.values()], secure.report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--drop", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    a = parser.parse_args()
    parameters, report = run(a.clients, a.drop, rounds=a.rounds)
    if not report:
        raise SystemExit("no round had a sum; the log says why")
    print(f"{report['survivors']} of {report['clients']} updates in the sum: every parameter is {parameters[0].mean():.3f}")
