"""Federated learning on real data through the real protocol: FedAvg, FedProx and FedAdam, at 8 to 20 bits and in floating point.

    python learning.py                          # two data sets, three ways, five precisions, three seeds: some minutes
    python learning.py --quick                  # the same in small, with checks
    python learning.py --plots DIR              # also accuracy curves as PNG and SVG

Twenty devices hold uneven parts of the data (each class is dealt out by a Dirichlet distribution). Each trains a small network
by mini-batch gradient descent; `unisono.simulate` plays the rounds, and the coordinator sees their sums only. The rows named
*float* average the same updates in floating point, without clipping and without the protocol.

Replace `Network` by your model: the protocol wants the change of all weights as one float32 vector, and a weight. With PyTorch
that is `torch.nn.utils.parameters_to_vector(model.parameters())` after training minus the same before.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import unisono
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.preprocessing import StandardScaler

DEVICES, CLIP, MAX_EXAMPLES = 20, 0.5, 256.0
BITS = (8, 12, 16, 20)
WAYS = ("FedAvg", "FedProx", "FedAdam")
DATA = {"digits": (load_digits, 32), "breast cancer": (load_breast_cancer, 16)}


class Network:
    """One hidden layer, all weights in one float32 vector."""

    def __init__(self, features, hidden, classes):
        self.shapes = [(features, hidden), (hidden,), (hidden, classes), (classes,)]
        self.size = sum(int(np.prod(shape)) for shape in self.shapes)

    def parts(self, vector):
        ends = np.cumsum([np.prod(shape) for shape in self.shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(vector, ends), self.shapes, strict=True)]

    def initial(self, rng):
        scaled = [rng.normal(0, 0.5 / np.sqrt(s[0]), s) if len(s) == 2 else np.zeros(s) for s in self.shapes]
        return np.concatenate([part.ravel() for part in scaled]).astype(np.float32)

    def predict(self, vector, x):
        w1, b1, w2, b2 = self.parts(vector)
        return (np.tanh(x @ w1 + b1) @ w2 + b2).argmax(axis=1)

    def gradient(self, vector, x, y):
        """Of the mean cross-entropy."""
        w1, b1, w2, b2 = self.parts(vector)
        hidden = np.tanh(x @ w1 + b1)
        logits = hidden @ w2 + b2
        error = np.exp(logits - logits.max(axis=1, keepdims=True))
        error /= error.sum(axis=1, keepdims=True)
        error[np.arange(len(y)), y] -= 1
        error /= len(y)
        back = (error @ w2.T) * (1 - hidden**2)
        return np.concatenate([(x.T @ back).ravel(), back.sum(0), (hidden.T @ error).ravel(), error.sum(0)])

    def update(self, vector, x, y, rng, epochs=2, batch=16, rate=0.1, mu=0.0):
        """What a device sends: the change of the weights after local training. `mu` is FedProx's pull to the global model."""
        local = vector.astype(np.float64)
        for _ in range(epochs):
            for chosen in np.array_split(rng.permutation(len(y)), max(1, len(y) // batch)):
                local -= rate * (self.gradient(local, x[chosen], y[chosen]) + mu * (local - vector))
        return (local - vector).astype(np.float32)


class Server:
    """What the coordinator does with a mean update: add it (FedAvg, FedProx), or take it for a gradient (FedAdam)."""

    def __init__(self, way, model, rate=0.03, decay=(0.9, 0.99), epsilon=1e-3):
        self.way, self.model, self.rate, self.decay, self.epsilon = way, model, rate, decay, epsilon
        self.first, self.second = np.zeros_like(model), np.zeros_like(model)

    def step(self, mean):
        if self.way == "FedAdam":
            one, two = self.decay
            self.first = one * self.first + (1 - one) * mean
            self.second = two * self.second + (1 - two) * mean**2
            mean = self.rate * self.first / (np.sqrt(self.second) + self.epsilon)
        self.model = (self.model + mean).astype(np.float32)


def split(labels, devices, alpha, rng):
    """Indices of each device: every class is dealt out by a Dirichlet distribution. Nobody is left without an example."""
    parts = [[] for _ in range(devices)]
    for label in np.unique(labels):
        places = rng.permutation(np.flatnonzero(labels == label))
        cuts = (np.cumsum(rng.dirichlet([alpha] * devices))[:-1] * len(places)).astype(int)
        for part, chunk in zip(parts, np.split(places, cuts), strict=True):
            part.extend(chunk)
    return [np.array(part or [rng.integers(len(labels))]) for part in parts]


class Task:
    """A data set dealt out to devices, and a network for it."""

    def __init__(self, name, alpha, seed):
        load, hidden = DATA[name]
        x, y = load(return_X_y=True)
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(y))
        test, train = np.split(order, [len(y) // 4])
        x = StandardScaler().fit(x[train]).transform(x)
        self.test, self.seed = (x[test], y[test]), seed
        self.parts = [(x[train][part], y[train][part]) for part in split(y[train], DEVICES, alpha, rng)]
        self.network = Network(x.shape[1], hidden, len(np.unique(y)))
        self.start = self.network.initial(rng)

    def train(self, way, bits, rounds, mode):
        """The accuracy after each round; `bits` is None for floating point."""
        server, accuracies = Server(way, self.start.copy()), []

        def update(client, number):
            rng = np.random.default_rng((self.seed, client, number))
            x, y = self.parts[client]
            mu = 0.1 if way == "FedProx" else 0.0
            return self.network.update(server.model, x, y, rng, mu=mu), float(len(y))

        def finished(number, mean):
            server.step(mean)
            x, y = self.test
            accuracies.append(float((self.network.predict(server.model, x) == y).mean()))

        if bits is None:
            for number in range(1, rounds + 1):
                updates, weights = zip(*(update(client, number) for client in range(DEVICES)), strict=True)
                finished(number, np.average(updates, axis=0, weights=weights).astype(np.float32))
            return accuracies
        result = unisono.simulate(
            clients=DEVICES,
            dim=self.network.size,
            rounds=rounds,
            mode=mode,
            seed=self.seed,
            quantiser=unisono.Quantiser(bits=bits, clip=CLIP, max_weight=MAX_EXAMPLES),
            updates=update,
            round_finished=finished,
        )
        assert all(played["exact_sum"] and played["survivors"] == DEVICES for played in result.rounds)
        return accuracies


def table(curves):
    """Mean accuracy in per cent at the end, and the spread over the seeds."""
    print("| data | way | " + " | ".join(f"{bits} bits" for bits in BITS) + " | float |")
    print("|---|---|" + "---:|" * (len(BITS) + 1))
    for name in DATA:
        for way in WAYS:
            ends = [[100 * curve[-1] for curve in curves[name, way, bits]] for bits in (*BITS, None)]
            print(f"| {name} | {way} | " + " | ".join(f"{np.mean(e):.1f} ± {np.std(e):.1f}" for e in ends) + " |")


def plots(curves, folder):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "learning-bits": [((name, "FedAvg", bits), f"{bits} bits" if bits else "float", name) for name in DATA for bits in (*BITS, None)],
        "learning-ways": [((name, way, 16), way, name) for name in DATA for way in WAYS],
    }
    for title, lines in figures.items():
        figure, axes = plt.subplots(1, len(DATA), figsize=(9, 3.4), layout="constrained")
        for axis, name in zip(axes, DATA, strict=True):
            for key, label, where in lines:
                if where == name:
                    mean = 100 * np.mean(curves[key], axis=0)
                    axis.plot(range(1, len(mean) + 1), mean, label=label, linestyle="--" if label == "float" else "-")
            axis.set(title=name, xlabel="round", ylabel="accuracy, %")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
        for kind in ("png", "svg"):
            # Without a date, so that the same curves give the same file.
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(folder / f"{title}.{kind}", dpi=110, metadata=metadata)
        plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--alpha", type=float, default=0.5, help="of the Dirichlet split; smaller is more uneven")
    parser.add_argument("--mode", choices=["malicious", "semi-honest"], default="semi-honest", help="the sums are the same")
    parser.add_argument("--plots", type=Path)
    parser.add_argument("--json", type=Path, help="file for all curves")
    parser.add_argument("--quick", action="store_true")
    a = parser.parse_args()
    if a.quick:
        a.rounds, a.seeds = 8, 1
    curves = {}
    for name in DATA:
        for way in WAYS:
            for bits in (*BITS, None):
                tasks = (Task(name, a.alpha, seed) for seed in range(a.seeds))
                curves[name, way, bits] = [task.train(way, bits, a.rounds, a.mode) for task in tasks]
    print(f"{DEVICES} devices, {a.rounds} rounds, alpha {a.alpha}, {a.seeds} seeds; accuracy on a quarter of the data, %\n")
    table(curves)
    if a.json:
        a.json.write_text(json.dumps({" / ".join(map(str, key)): value for key, value in curves.items()}))
    if a.plots:
        plots(curves, a.plots)
    for (name, way, bits), found in curves.items():
        assert np.mean([c[-1] for c in found]) > (0.5 if a.quick else 0.8), f"{name}, {way}, {bits} bits did not learn"
        if bits and bits >= 16:
            apart = abs(np.mean([c[-1] for c in found]) - np.mean([c[-1] for c in curves[name, way, None]]))
            assert apart < 0.03, f"{name}, {way}: {bits} bits are {apart:.3f} away from float"


if __name__ == "__main__":
    main()
