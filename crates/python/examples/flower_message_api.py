"""A Flower app in the Message API, with secure aggregation. Two lines differ from plain FedAvg: the mod and the grid.

    python flower_message_api.py --clients 5 --rounds 3 --drop 1
    python flower_message_api.py --plain                    # the same app without the two lines
    python flower_message_api.py --strategy FedAdam --engine ray

Each client trains softmax regression on its part of the digits data (see flower_digits.py); the last `--drop` clients vanish in every
round. The server also learns the weighted mean of the training loss, which both sides declare.
"""

import argparse
import tempfile

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg
from flwr.simulation import run_simulation
from flower_digits import accuracy, loss, partition, train
from local_grid import LocalGrid
from unisono.flower import SecureGrid, provision, unisono_mod

#: Above any element of an update here: what is clipped is not averaged as it was.
CLIP = 2.0


def client_app(clients, dropped, folder):
    """The app of all clients; `folder` holds their keys, or is None for plain messages."""
    app = ClientApp(mods=[unisono_mod(folder, metrics=["train_loss"])] if folder else [])

    def data(context):
        return partition(clients)[0][context.node_config["partition-id"]]

    @app.train()
    def fit(message: Message, context: Context):
        if context.node_config["partition-id"] >= clients - dropped:
            raise RuntimeError("this device lost its connection")
        images, labels = data(context)
        arrays, config = message.content["arrays"], message.content["config"]
        weights, bias = train(arrays["weights"].numpy(), arrays["bias"].numpy(), images, labels, rate=config["lr"])
        metrics = {"num-examples": len(labels), "train_loss": loss(weights, bias, images, labels)}
        content = {"arrays": record(weights, bias), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context):
        images, labels = data(context)
        arrays = message.content["arrays"]
        right = accuracy([arrays["weights"].numpy(), arrays["bias"].numpy()], (images, labels))
        metrics = {"num-examples": len(labels), "accuracy": right}
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    return app


def record(weights, bias):
    return ArrayRecord({"weights": Array(weights), "bias": Array(bias)})


def run(clients=5, rounds=3, dropped=1, strategy="FedAvg", plain=False, engine="local", **settings):
    """The app's result; `settings` are those of SecureGrid."""
    folder = None if plain else provision(tempfile.mkdtemp(), clients)
    app = client_app(clients, dropped, folder)
    found = {}

    def serve(grid, context):
        if not plain:
            grid = SecureGrid(grid, clip=CLIP, provisioning=folder, metrics={"train_loss": (0.0, 5.0)}, **settings)
        sampled = {"min_train_nodes": clients, "min_evaluate_nodes": clients, "min_available_nodes": clients}
        average = {"FedAvg": FedAvg, "FedAdam": FedAdam}[strategy](**sampled)
        found["result"] = average.start(
            grid=grid,
            initial_arrays=record(np.zeros((64, 10), np.float32), np.zeros(10, np.float32)),
            num_rounds=rounds,
            train_config=ConfigRecord({"lr": 0.5}),
        )
        found["report"] = None if plain else grid.report

    if engine == "local":
        serve(LocalGrid(app, clients), None)
    else:
        server = ServerApp()
        server.main()(serve)
        resources = {"init_args": {"num_cpus": 2}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
        run_simulation(server_app=server, client_app=app, num_supernodes=clients, backend_config=resources)
    result = found["result"]
    arrays = [result.arrays[name].numpy() for name in ("weights", "bias")]
    return {
        "arrays": arrays,
        "accuracy": accuracy(arrays, partition(clients)[1]),
        "train": [dict(metrics) for metrics in result.train_metrics_clientapp.values()],
        "evaluate": [dict(metrics) for metrics in result.evaluate_metrics_clientapp.values()],
        "report": found["report"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--drop", type=int, default=1)
    parser.add_argument("--strategy", choices=["FedAvg", "FedAdam"], default="FedAvg")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    a = parser.parse_args()
    found = run(a.clients, a.rounds, a.drop, a.strategy, a.plain, a.engine)
    if not found["report"] and not a.plain:
        raise SystemExit("no round had a sum; the log says why")
    print(f"accuracy {found['accuracy']:.3f} after {a.rounds} rounds; mean training loss by round:", end=" ")
    print(", ".join(f"{metrics['train_loss']:.3f}" for metrics in found["train"]))
    if found["report"]:
        print(f"{found['report']['survivors']} of {found['report']['clients']} updates in the last sum")
